//! Portable limits: keys that mean the same on cgroup v1 and v2, and their values.
//!
//! A value is parsed from a caller's text with the key that it is for, and written back in one canonical
//! form. Bounds are those of the kernel (Documentation/admin-guide/cgroup-v2.rst), so that a value which is
//! accepted here is refused later only where this host's devices, CPUs or hierarchies lack something.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::raw::excerpt;

/// Longest text of a value, bytes.
pub const MAX_VALUE_TEXT: usize = 4096;
/// Most devices in one `io.max`.
pub const MAX_IO_DEVICES: usize = 64;
/// Most bytes of any limit: what v1's counters hold.
pub const MAX_BYTES: u64 = i64::MAX as u64;
/// Most tasks (`PID_MAX_LIMIT`).
pub const MAX_PIDS: u64 = 4_194_304;
/// Shortest and longest period of `cpu.max`, microseconds.
pub const CPU_PERIOD: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// The period that is meant where none is named, microseconds.
pub const DEFAULT_CPU_PERIOD: u64 = 100_000;
/// Smallest and largest quota of `cpu.max`, microseconds (the scheduler's own bounds).
pub const CPU_QUOTA: std::ops::RangeInclusive<u64> = 1_000..=(1 << 44) - 1;
/// Highest CPU number that is taken (`CONFIG_NR_CPUS` reaches 8192).
pub const MAX_CPU: u32 = 8_191;

/// A limit by its portable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LimitKey {
    /// `memory.max`: bytes beyond which the OOM killer acts.
    MemoryMax,
    /// `memory.high`: bytes beyond which allocations are slowed and reclaimed.
    MemoryHigh,
    /// `memory.swap.max`: bytes of swap.
    MemorySwapMax,
    /// `cpu.max`: CPU time per period.
    CpuMax,
    /// `cpu.weight`: share among siblings.
    CpuWeight,
    /// `cpuset.cpus`: CPUs that may be used.
    CpusetCpus,
    /// `io.max`: bytes and operations per second and device.
    IoMax,
    /// `pids.max`: tasks.
    PidsMax,
    /// `hugetlb.<size>.max`: bytes in huge pages of that size.
    Hugetlb(HugePageSize),
}

/// Size of a huge page, bytes: a power of two from 64 KiB to 1 TiB. Written as the kernel does, `2MB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HugePageSize(u64);

/// A number of bytes, or no limit.
pub type Bytes = Option<u64>;

/// A value that fits its key. `None` inside means "max", no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitValue {
    /// Bytes, for `memory.*` and `hugetlb.*`.
    Bytes(Bytes),
    /// Tasks, for `pids.max`.
    Count(Option<u64>),
    /// For `cpu.max`.
    Cpu(Option<CpuQuota>),
    /// For `cpu.weight`, 1 to 10000.
    Weight(u32),
    /// For `cpuset.cpus`; `None`: all that the cgroup above has.
    Cpus(Option<CpuList>),
    /// For `io.max`: the limits of each device named, in order of device. A device that is not named has none.
    Io(Vec<IoLimit>),
}

/// So much CPU time in each period, both microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    quota: u64,
    period: u64,
}

/// A set of CPUs as sorted ranges with gaps between them. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<(u32, u32)>);

/// What one block device may be asked for. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimit {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Bytes read per second.
    pub rbps: Option<u64>,
    /// Bytes written per second.
    pub wbps: Option<u64>,
    /// Reads per second.
    pub riops: Option<u64>,
    /// Writes per second.
    pub wiops: Option<u64>,
}

/// Why a text is no value of a key: what was found, and what is expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not a portable limit's name.
    #[error(
        "`{0}` is no limit; there are memory.max, memory.high, memory.swap.max, cpu.max, cpu.weight, cpuset.cpus, io.max, pids.max and hugetlb.SIZE.max"
    )]
    UnknownKey(String),
    /// Longer than any value.
    #[error("the value has {0} bytes, at most 4096 are allowed")]
    TooLong(usize),
    /// Not an amount of bytes.
    #[error(
        "expected bytes with or without a suffix K, M, G or T (1024-based), at most 8 EiB, or max; found `{0}`"
    )]
    Bytes(String),
    /// Not a number of tasks.
    #[error("expected a number of tasks from 0 to 4194304, or max; found `{0}`")]
    Count(String),
    /// Not a share of CPU time.
    #[error(
        "expected QUOTA PERIOD in microseconds, a percentage such as 150%, a number of CPUs such as 1.5cpu, or max, with a period of 1000 to 1000000 and a quota of at least 1000; found `{0}`"
    )]
    Cpu(String),
    /// Not a weight.
    #[error("expected a number from 1 to 10000; found `{0}`")]
    Weight(String),
    /// Not a list of CPUs.
    #[error("expected a list of CPUs such as 0-3,8, or max; found `{0}`")]
    Cpus(String),
    /// Not limits of devices.
    #[error(
        "expected MAJOR:MINOR and one or more of rbps=, wbps=, riops=, wiops=, for each device once, devices separated by commas, or max; found `{0}`"
    )]
    Io(String),
}

impl LimitKey {
    /// Every key but `hugetlb`, of which there is one per page size of the host.
    pub const PLAIN: [Self; 8] = [
        Self::MemoryMax,
        Self::MemoryHigh,
        Self::MemorySwapMax,
        Self::CpuMax,
        Self::CpuWeight,
        Self::CpusetCpus,
        Self::IoMax,
        Self::PidsMax,
    ];

    /// The controller that carries it out, by its name on cgroup v2.
    pub fn controller(self) -> &'static str {
        match self {
            Self::MemoryMax | Self::MemoryHigh | Self::MemorySwapMax => "memory",
            Self::CpuMax | Self::CpuWeight => "cpu",
            Self::CpusetCpus => "cpuset",
            Self::IoMax => "io",
            Self::PidsMax => "pids",
            Self::Hugetlb(_) => "hugetlb",
        }
    }

    /// The same by its name on cgroup v1.
    pub fn controller_on_v1(self) -> &'static str {
        match self.controller() {
            "io" => "blkio",
            name => name,
        }
    }

    /// Why there is no such limit where its controller is on cgroup v1; `None` if there is.
    ///
    /// `blkio.throttle` of v1 bounds the processes of one cgroup (Documentation/admin-guide/cgroup-v1/blkio-controller.rst: "flat"), so
    /// that whoever gets into another one below it is rid of the limit: what does not hold is not promised.
    pub fn lacks_on_v1(self) -> Option<&'static str> {
        match self {
            Self::MemoryHigh => Some("cgroup v1 has no limit that only slows down"),
            Self::IoMax => Some(
                "cgroup v1 limits I/O of one cgroup, and of none inside it; with cgroup_no_v1=blkio on the kernel's command line \
                 I/O is on cgroup2, which limits all together",
            ),
            _ => None,
        }
    }

    fn plain_name(self) -> Option<&'static str> {
        Some(match self {
            Self::MemoryMax => "memory.max",
            Self::MemoryHigh => "memory.high",
            Self::MemorySwapMax => "memory.swap.max",
            Self::CpuMax => "cpu.max",
            Self::CpuWeight => "cpu.weight",
            Self::CpusetCpus => "cpuset.cpus",
            Self::IoMax => "io.max",
            Self::PidsMax => "pids.max",
            Self::Hugetlb(_) => return None,
        })
    }
}

impl LimitValue {
    /// What a caller's text means for this key.
    ///
    /// # Errors
    /// Says which form and which bounds the key's values have.
    pub fn parse(key: &LimitKey, text: &str) -> Result<Self, LimitError> {
        if text.len() > MAX_VALUE_TEXT {
            return Err(LimitError::TooLong(text.len()));
        }
        let text = text.trim_matches(' ');
        match key {
            LimitKey::MemoryMax | LimitKey::MemoryHigh | LimitKey::MemorySwapMax | LimitKey::Hugetlb(_) => {
                or_max(text, bytes).map(Self::Bytes).ok_or_else(|| LimitError::Bytes(excerpt(text)))
            }
            LimitKey::CpuMax => cpu(text).map(Self::Cpu).ok_or_else(|| LimitError::Cpu(excerpt(text))),
            LimitKey::CpuWeight => number(text)
                .and_then(|weight| u32::try_from(weight).ok())
                .filter(|weight| (1..=10_000).contains(weight))
                .map(Self::Weight)
                .ok_or_else(|| LimitError::Weight(excerpt(text))),
            LimitKey::CpusetCpus => or_max(text, |text| text.parse().ok())
                .map(Self::Cpus)
                .ok_or_else(|| LimitError::Cpus(excerpt(text))),
            LimitKey::IoMax => io(text).map(Self::Io).ok_or_else(|| LimitError::Io(excerpt(text))),
            LimitKey::PidsMax => or_max(text, |text| number(text).filter(|count| *count <= MAX_PIDS))
                .map(Self::Count)
                .ok_or_else(|| LimitError::Count(excerpt(text))),
        }
    }

    /// The value that lifts the limit of this key; `None` for `cpu.weight`, which is no limit.
    pub fn unlimited(key: LimitKey) -> Option<Self> {
        match key {
            LimitKey::CpuWeight => None,
            LimitKey::CpuMax => Some(Self::Cpu(None)),
            LimitKey::CpusetCpus => Some(Self::Cpus(None)),
            LimitKey::IoMax => Some(Self::Io(Vec::new())),
            LimitKey::PidsMax => Some(Self::Count(None)),
            _ => Some(Self::Bytes(None)),
        }
    }

    /// Does it lift the limit of this key?
    pub fn is_unlimited(&self, key: LimitKey) -> bool {
        Self::unlimited(key).as_ref() == Some(self)
    }

    /// Does it allow anything that the ceiling does not? Values of different keys exceed each other.
    pub fn exceeds(&self, ceiling: &Self) -> bool {
        match (self, ceiling) {
            (Self::Bytes(value), Self::Bytes(most)) | (Self::Count(value), Self::Count(most)) => {
                above(*value, *most)
            }
            (Self::Weight(value), Self::Weight(most)) => value > most,
            (Self::Cpu(_), Self::Cpu(None)) | (Self::Cpus(_), Self::Cpus(None)) => false,
            (Self::Cpu(None), Self::Cpu(Some(_))) | (Self::Cpus(None), Self::Cpus(Some(_))) => true,
            (Self::Cpu(Some(value)), Self::Cpu(Some(most))) => value.compare(most) == Ordering::Greater,
            (Self::Cpus(Some(value)), Self::Cpus(Some(most))) => !value.is_within(most),
            (Self::Io(value), Self::Io(most)) => most.iter().any(|most| {
                let found = value.iter().find(|limit| limit.device == most.device);
                found.is_none_or(|limit| limit.exceeds(most))
            }),
            _ => true,
        }
    }
}

/// Is the first a laxer limit than the second?
fn above(value: Option<u64>, most: Option<u64>) -> bool {
    match (value, most) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(value), Some(most)) => value > most,
    }
}

impl HugePageSize {
    /// A size in bytes; `None` if no kernel has such pages.
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 16..=1 << 40).contains(&bytes)).then_some(Self(bytes))
    }

    /// The size, bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl CpuQuota {
    /// A quota and a period, microseconds; `None` if the kernel would not take them.
    pub fn new(quota: u64, period: u64) -> Option<Self> {
        (CPU_QUOTA.contains(&quota) && CPU_PERIOD.contains(&period)).then_some(Self { quota, period })
    }

    /// CPU time in each period, microseconds.
    pub fn quota(self) -> u64 {
        self.quota
    }

    /// Length of a period, microseconds.
    pub fn period(self) -> u64 {
        self.period
    }

    /// Which gives more CPU time?
    fn compare(self, other: &Self) -> Ordering {
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        product(self.quota, other.period).cmp(&product(other.quota, self.period))
    }
}

impl CpuList {
    /// The CPUs of these ranges, both ends included; `None` if there are none or a range is no range.
    pub fn new(mut ranges: Vec<(u32, u32)>) -> Option<Self> {
        if ranges.is_empty() || ranges.iter().any(|(first, last)| first > last || *last > MAX_CPU) {
            return None;
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= *end + 1 => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        Some(Self(merged))
    }

    /// The ranges, both ends included, sorted, with gaps between them.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Does the other have all of these?
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(first, last)| other.0.iter().any(|(from, to)| from <= first && last <= to))
    }
}

impl IoLimit {
    /// The names of its four figures and the figures.
    pub fn figures(&self) -> [(&'static str, Option<u64>); 4] {
        [("rbps", self.rbps), ("wbps", self.wbps), ("riops", self.riops), ("wiops", self.wiops)]
    }

    fn exceeds(&self, ceiling: &Self) -> bool {
        self.figures().iter().zip(ceiling.figures()).any(|((_, value), (_, most))| above(*value, most))
    }
}

/// `max` or what the parser makes of it; the outer `None` if it makes nothing of it.
fn or_max<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "max" { Some(None) } else { parse(text).map(Some) }
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `text` times `unit`, where the text may have up to six decimals. Rounded down.
fn decimal(text: &str, unit: u64) -> Option<u64> {
    let (whole, decimals) = match text.split_once('.') {
        None => (number(text)?, 0),
        Some((whole, part)) if part.len() <= 6 => (
            number(whole)?,
            number(part)?.checked_mul(10u64.checked_pow(6 - u32::try_from(part.len()).ok()?)?)?,
        ),
        Some(_) => return None,
    };
    let total = u128::from(whole) * u128::from(unit) + u128::from(decimals) * u128::from(unit) / 1_000_000;
    u64::try_from(total).ok()
}

/// An amount of bytes: `1048576`, `512M`, `1.5G`, `64KiB`. `MB` and the like are refused: nobody knows
/// whether 1000 or 1024 is meant.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)?.to_ascii_uppercase().as_str() {
        "" if digits.contains('.') => return None,
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return None,
    };
    decimal(digits, unit).filter(|bytes| *bytes <= MAX_BYTES)
}

fn cpu(text: &str) -> Option<Option<CpuQuota>> {
    if let Some(percent) = text.strip_suffix('%') {
        return CpuQuota::new(decimal(percent, DEFAULT_CPU_PERIOD / 100)?, DEFAULT_CPU_PERIOD).map(Some);
    }
    if let Some(cpus) = text.strip_suffix("cpus").or_else(|| text.strip_suffix("cpu")) {
        return CpuQuota::new(decimal(cpus.trim_end(), DEFAULT_CPU_PERIOD)?, DEFAULT_CPU_PERIOD).map(Some);
    }
    let mut words = text.split_ascii_whitespace();
    let quota = or_max(words.next()?, number)?;
    let period = words.next().map_or(Some(DEFAULT_CPU_PERIOD), number)?;
    if words.next().is_some() || !CPU_PERIOD.contains(&period) {
        return None;
    }
    match quota {
        None => Some(None),
        Some(quota) => CpuQuota::new(quota, period).map(Some),
    }
}

fn io(text: &str) -> Option<Vec<IoLimit>> {
    if text == "max" {
        return Some(Vec::new());
    }
    let mut limits: Vec<IoLimit> = text.split([',', '\n']).map(io_device).collect::<Option<_>>()?;
    limits.sort_unstable_by_key(|limit| limit.device);
    let count = limits.len();
    limits.dedup_by_key(|limit| limit.device);
    (count == limits.len() && count <= MAX_IO_DEVICES).then_some(limits)
}

fn io_device(text: &str) -> Option<IoLimit> {
    let mut words = text.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    // The kernel's dev_t has 12 bits of major and 20 of minor number.
    let part = |text, most: u64| number(text).filter(|n| *n <= most).and_then(|n| u32::try_from(n).ok());
    let device = (part(major, 0xfff)?, part(minor, 0xf_ffff)?);
    let mut figures = [("rbps", None), ("wbps", None), ("riops", None), ("wiops", None)];
    for word in words {
        let (name, value) = word.split_once('=')?;
        let (_, figure) = figures.iter_mut().find(|(known, figure)| *known == name && figure.is_none())?;
        let value = or_max(value, if name.ends_with("iops") { operations } else { bytes })?;
        *figure = Some(value.filter(|value| *value > 0).or(value.is_none().then_some(u64::MAX))?);
    }
    let [(_, rbps), (_, wbps), (_, riops), (_, wiops)] = figures;
    rbps.or(wbps).or(riops).or(wiops)?;
    let limited = |figure: Option<u64>| figure.filter(|value| *value != u64::MAX);
    Some(IoLimit {
        device,
        rbps: limited(rbps),
        wbps: limited(wbps),
        riops: limited(riops),
        wiops: limited(wiops),
    })
}

fn operations(text: &str) -> Option<u64> {
    number(text).filter(|count| *count <= u64::from(u32::MAX))
}

impl FromStr for LimitKey {
    type Err = LimitError;
    fn from_str(text: &str) -> Result<Self, LimitError> {
        if let Some(key) = Self::PLAIN.into_iter().find(|key| key.plain_name() == Some(text)) {
            return Ok(key);
        }
        text.strip_prefix("hugetlb.")
            .and_then(|rest| rest.strip_suffix(".max"))
            .and_then(|size| size.parse().ok())
            .map(Self::Hugetlb)
            .ok_or_else(|| LimitError::UnknownKey(excerpt(text)))
    }
}

impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.plain_name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Hugetlb(size)) => write!(f, "hugetlb.{size}.max"),
            (None, _) => Ok(()),
        }
    }
}

/// The text is not a page size as the kernel writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the size of a huge page as the kernel writes it, such as 2MB or 1GB")]
pub struct BadHugePageSize;

impl FromStr for HugePageSize {
    type Err = BadHugePageSize;
    fn from_str(text: &str) -> Result<Self, BadHugePageSize> {
        let units = [("KB", 10), ("MB", 20), ("GB", 30)];
        let size = units.iter().find_map(|(suffix, shift)| {
            number(text.strip_suffix(suffix)?)?.checked_mul(1 << shift).and_then(Self::new)
        });
        size.filter(|size| size.to_string() == text).ok_or(BadHugePageSize)
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            size if size >= 1 << 30 => write!(f, "{}GB", size >> 30),
            size if size >= 1 << 20 => write!(f, "{}MB", size >> 20),
            size => write!(f, "{}KB", size >> 10),
        }
    }
}

impl FromStr for CpuList {
    type Err = LimitError;
    fn from_str(text: &str) -> Result<Self, LimitError> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((u32::try_from(number(first)?).ok()?, u32::try_from(number(last)?).ok()?))
        };
        let ranges = text.split(',').map(range).collect::<Option<_>>();
        ranges.and_then(Self::new).ok_or_else(|| LimitError::Cpus(excerpt(text)))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A figure or `max`.
struct OrMax(Option<u64>);

impl fmt::Display for OrMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("max"),
        }
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota, self.period)
    }
}

impl fmt::Display for IoLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device.0, self.device.1)?;
        self.figures().iter().try_for_each(|(name, value)| write!(f, " {name}={}", OrMax(*value)))
    }
}

impl fmt::Display for LimitValue {
    /// The canonical form: what parses back to the same value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(value) | Self::Count(value) => OrMax(*value).fmt(f),
            Self::Weight(weight) => weight.fmt(f),
            Self::Cpu(Some(quota)) => quota.fmt(f),
            Self::Cpus(Some(cpus)) => cpus.fmt(f),
            Self::Io(limits) if !limits.is_empty() => limits
                .iter()
                .enumerate()
                .try_for_each(|(at, limit)| write!(f, "{}{limit}", if at == 0 { "" } else { ", " })),
            Self::Cpu(None) | Self::Cpus(None) | Self::Io(_) => f.write_str("max"),
        }
    }
}

impl TryFrom<String> for LimitKey {
    type Error = LimitError;
    fn try_from(text: String) -> Result<Self, LimitError> {
        text.parse()
    }
}

impl From<LimitKey> for String {
    fn from(key: LimitKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(key: &str, text: &str) -> Result<String, LimitError> {
        LimitValue::parse(&key.parse()?, text).map(|value| value.to_string())
    }

    #[test]
    fn keys_by_name() {
        for key in LimitKey::PLAIN {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for size in ["64KB", "2MB", "32MB", "1GB", "16GB"] {
            let name = format!("hugetlb.{size}.max");
            assert_eq!(name.parse::<LimitKey>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "memory",
            "memory.Max",
            "hugetlb.max",
            "hugetlb.3MB.max",
            "hugetlb.2048KB.max",
            "hugetlb.4KB.max",
        ] {
            assert_eq!(bad.parse::<LimitKey>(), Err(LimitError::UnknownKey(bad.to_owned())));
        }
    }

    #[test]
    fn values_in_canonical_form() {
        for (key, text, expected) in [
            ("memory.max", "max", "max"),
            ("memory.max", "0", "0"),
            ("memory.max", "1024", "1024"),
            ("memory.max", "64k", "65536"),
            ("memory.high", "512M", "536870912"),
            ("memory.high", "512MiB", "536870912"),
            ("memory.swap.max", "1.5G", "1610612736"),
            ("memory.max", "9223372036854775807", "9223372036854775807"),
            ("hugetlb.2MB.max", "4M", "4194304"),
            ("cpu.max", "max", "max"),
            ("cpu.max", "max 50000", "max"),
            ("cpu.max", "150%", "150000 100000"),
            ("cpu.max", "1.5cpu", "150000 100000"),
            ("cpu.max", "2 cpus", "200000 100000"),
            ("cpu.max", "12.5%", "12500 100000"),
            ("cpu.max", "50000", "50000 100000"),
            ("cpu.max", "50000 200000", "50000 200000"),
            ("cpu.weight", "10000", "10000"),
            ("cpuset.cpus", "3,0-1,2", "0-3"),
            ("cpuset.cpus", "8,0", "0,8"),
            ("cpuset.cpus", "max", "max"),
            ("pids.max", "4194304", "4194304"),
            ("pids.max", "max", "max"),
            ("io.max", "max", "max"),
            ("io.max", "8:0 rbps=1M", "8:0 rbps=1048576 wbps=max riops=max wiops=max"),
            (
                "io.max",
                "259:1 wiops=10 rbps=max, 8:0 wbps=2K",
                "8:0 rbps=max wbps=2048 riops=max wiops=max, 259:1 rbps=max wbps=max riops=max wiops=10",
            ),
        ] {
            assert_eq!(canonical(key, text).as_deref(), Ok(expected), "{key} {text}");
            assert_eq!(canonical(key, expected).as_deref(), Ok(expected), "{key} {text}");
        }
    }

    #[test]
    fn values_that_are_refused() {
        let forms = [
            (
                "memory.max",
                &[
                    "",
                    "-1",
                    "+1",
                    "1MB",
                    "1KB",
                    "1 M",
                    "1.5",
                    "M",
                    "0x10",
                    "9223372036854775808",
                    "8388608T",
                    "99999999999999999999",
                    "1.2345678G",
                    "unlimited",
                ][..],
            ),
            (
                "cpu.max",
                &[
                    "",
                    "0",
                    "999",
                    "50000 999",
                    "50000 1000001",
                    "1 2 3",
                    "0%",
                    "%",
                    "cpu",
                    "-5%",
                    "max max",
                    "99999999999999999 100000",
                    "1e9%",
                ],
            ),
            ("cpu.weight", &["", "0", "10001", "max", "1.5", "-1"]),
            ("cpuset.cpus", &["", "a", "3-1", "1-", "-1", "0,,1", "0, 1", "8192", "4294967296"]),
            ("pids.max", &["", "-1", "4194305", "1K"]),
            (
                "io.max",
                &[
                    "",
                    "8",
                    "8:0",
                    "8:0 rbps",
                    "8:0 rbps=0",
                    "8:0 x=1",
                    "8:0 rbps=1 rbps=2",
                    "8:0 rbps=1,8:0 wbps=1",
                    "4096:0 rbps=1",
                    "8:1048576 rbps=1",
                    "8:0 riops=1K",
                    "8:0 riops=4294967296",
                    "/dev/sda rbps=1",
                    "8:0 rbps=1,",
                ],
            ),
        ];
        for (key, texts) in forms {
            for text in texts {
                let error = canonical(key, text).unwrap_err();
                assert!(error.to_string().starts_with("expected "), "{key} {text:?}: {error}");
            }
        }
        assert_eq!(canonical("cpuset.cpus", &"0,".repeat(2049)), Err(LimitError::TooLong(4098)));
        let many: Vec<String> = (0..65).map(|minor| format!("8:{minor} rbps=1")).collect();
        assert!(canonical("io.max", &many.join(",")).is_err());
        assert!(canonical("io.max", &many[..64].join(",")).is_ok());
    }

    #[test]
    fn what_exceeds_a_ceiling() {
        for (key, value, ceiling, exceeds) in [
            ("memory.max", "2G", "2G", false),
            ("memory.max", "2049M", "2G", true),
            ("memory.max", "max", "2G", true),
            ("memory.max", "max", "max", false),
            ("cpu.max", "100000 50000", "200%", false),
            ("cpu.max", "100001 50000", "200%", true),
            ("cpu.max", "max", "200%", true),
            ("cpu.weight", "101", "100", true),
            ("cpuset.cpus", "1,3", "0-3", false),
            ("cpuset.cpus", "1,4", "0-3", true),
            ("cpuset.cpus", "max", "0-3", true),
            ("pids.max", "11", "10", true),
            ("io.max", "8:0 rbps=1M wbps=5", "8:0 rbps=1M", false),
            ("io.max", "8:0 wbps=1M", "8:0 rbps=1M", true),
            ("io.max", "8:16 rbps=1M", "8:0 rbps=1M", true),
            ("io.max", "max", "8:0 rbps=1M", true),
            ("io.max", "max", "max", false),
        ] {
            let key: LimitKey = key.parse().unwrap();
            let parse = |text| LimitValue::parse(&key, text).unwrap();
            assert_eq!(parse(value).exceeds(&parse(ceiling)), exceeds, "{key} {value} over {ceiling}");
        }
        assert!(LimitValue::Weight(1).exceeds(&LimitValue::Count(Some(5))));
    }

    fn any_key() -> impl Strategy<Value = LimitKey> {
        prop_oneof![
            prop::sample::select(LimitKey::PLAIN.to_vec()),
            (16u32..41).prop_map(|shift| LimitKey::Hugetlb(HugePageSize::new(1 << shift).unwrap())),
        ]
    }

    proptest! {
        #[test]
        fn every_text_is_refused_or_has_one_canonical_form(key in any_key(), text in "\\PC{0,60}|[0-9a-zA-Z:=%., -]{0,60}") {
            if let Ok(value) = LimitValue::parse(&key, &text) {
                let written = value.to_string();
                prop_assert!(!written.chars().any(char::is_control));
                prop_assert_eq!(LimitValue::parse(&key, &written).unwrap(), value);
            }
        }

        #[test]
        fn sizes_with_units_are_exact(count in 0u64..1 << 20, unit in 0usize..4) {
            let text = format!("{count}{}", ["K", "M", "G", "T"][unit]);
            let expected = u128::from(count) << (10 * (unit + 1));
            let parsed = LimitValue::parse(&LimitKey::MemoryMax, &text).ok();
            let fits = u64::try_from(expected).ok().filter(|bytes| *bytes <= MAX_BYTES);
            prop_assert_eq!(parsed, fits.map(|bytes| LimitValue::Bytes(Some(bytes))));
        }

        #[test]
        fn a_cpu_list_has_the_cpus_it_names(ranges in prop::collection::vec((0u32..64, 0u32..8), 1..8)) {
            let ranges: Vec<(u32, u32)> = ranges.iter().map(|(first, more)| (*first, first + more)).collect();
            let list = CpuList::new(ranges.clone()).unwrap();
            for cpu in 0..80 {
                let named = ranges.iter().any(|(a, b)| (*a..=*b).contains(&cpu));
                let has = list.ranges().iter().any(|(a, b)| (*a..=*b).contains(&cpu));
                prop_assert_eq!(named, has);
            }
            prop_assert!(list.ranges().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            prop_assert_eq!(list.to_string().parse(), Ok(list));
        }
    }
}
