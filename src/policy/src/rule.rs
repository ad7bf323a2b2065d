//! The rules of policy as they stand in files: whom a rule is for, and what it gives.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use toml::Spanned;

use crate::{
    application::ApplicationPattern,
    controller::Controllers,
    device::{NodeName, NodePattern},
    diagnostic::{FileError, read, text},
    ids::{HostGid, IdSpan},
    limit::{LimitKey, LimitValue},
    most::Most,
    network::{BridgeName, Net},
    raw::{Key, RawKey},
};

/// A policy file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyFile {
    #[serde(default)]
    pub(crate) rule: Vec<Spanned<Rule>>,
}

impl PolicyFile {
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, FileError> {
        read(file, text)
    }
}

/// A rule. What it does not say is `None`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Rule {
    pub(crate) name: RuleName,
    pub(crate) uids: Option<Vec<Ids>>,
    pub(crate) gids: Option<Vec<Ids>>,
    pub(crate) groups: Option<Vec<GroupName>>,
    pub(crate) applications: Option<Vec<ApplicationPattern>>,
    #[serde(default)]
    pub(crate) access: AccessText,
    #[serde(default)]
    pub(crate) quota: QuotaText,
    pub(crate) grant_ceiling: Option<Ceilings>,
    pub(crate) account_ceiling: Option<Ceilings>,
    #[serde(default)]
    pub(crate) raw: RawText,
    #[serde(default)]
    pub(crate) network: NetworkText,
    #[serde(default)]
    pub(crate) lifetime: LifetimeText,
    /// Gids of `groups`, put in by whoever reads the group file.
    #[serde(skip)]
    pub(crate) resolved: BTreeSet<HostGid>,
}

/// What policy says to a kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Yes, within the quotas.
    Allow,
    /// If polkit says so.
    Ask,
    /// No.
    Deny,
}

/// As [`Access`], where nobody can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Door {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

/// As [`Access`], for what nobody has without somebody's consent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exception {
    /// If polkit says so.
    Ask,
    /// No.
    Deny,
}

/// What becomes of grants when their account's user logs out. The later one ends more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Logout {
    /// Nothing.
    #[default]
    Keep,
    /// They end with the last session, unless the user lingers (loginctl(1), `enable-linger`).
    Linger,
    /// They end with the last session.
    End,
}

/// What becomes of grants when their account's user is deleted. The later one ends more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Departed {
    /// Nothing, until the uid is somebody else's.
    #[default]
    Keep,
    /// They end, those that stay until they are released too.
    End,
    /// They end, and files of the account's ids are removed where the configuration says (`[departed]` of `cgrantd.toml`).
    Remove,
}

/// Which grants' programs open no devices but the standard ones and those that policy, or the broker at somebody's word, adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceLimit {
    /// Nobody's.
    None,
    /// Those of grants with ids.
    Containers,
    /// Those of all grants.
    All,
}

impl DeviceLimit {
    /// Is it for a grant that has ids, or has none?
    pub fn is_for(self, has_ids: bool) -> bool {
        self == Self::All || has_ids && self == Self::Containers
    }
}

macro_rules! table {
    ($(#[$doc:meta])* $whole:ident, $text:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $written:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $whole {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub(crate) struct $text {
            $($field: Option<$written>,)*
        }

        impl $whole {
            /// Key and value of each, as they would stand in a file.
            pub(crate) fn rows(&self) -> Vec<(String, String)> {
                vec![$((stringify!($field).replace('_', "-"), self.$field.shown())),*]
            }
        }

        impl $text {
            /// Everything that this says, and the rest as the other says; `None` if neither says it all.
            pub(crate) fn over(&self, base: &Self) -> Option<$whole> {
                Some($whole { $($field: self.$field.clone().or_else(|| base.$field.clone())?.into(),)* })
            }
        }
    };
}

table! {
    /// What policy says to each kind of request.
    AccessRules, AccessText {
        /// To connections.
        connect: Door = Door,
        /// To calls of CGManager's interface.
        legacy: Door = Door,
        /// To figures about all accounts, for whoever is not root.
        metrics: Door = Door,
        /// To new grants.
        grant: Access = Access,
        /// To grants that outlive their maker.
        persistent: Access = Access,
        /// To changed limits.
        limits: Access = Access,
        /// To values written into files of the kernel's.
        raw_write: Access = Access,
        /// To setgroups(2) in user namespaces.
        setgroups: Door = Door,
        /// To links.
        link: Access = Access,
        /// To directories as mounts of containers.
        mounts: Door = Door,
        /// To more than the quotas and ceilings.
        over_quota: Exception = Exception,
        /// To looking after the grants of other accounts.
        others: Exception = Exception,
        /// To values written into files that `raw.write` does not list.
        unlisted_raw: Exception = Exception,
        /// To links that are on other bridges, or otherwise than `network` has it.
        unlisted_network: Exception = Exception,
        /// Device nodes that containers may get.
        devices: Vec<NodePattern> = Vec<NodePattern>,
        /// Controllers that grants may have.
        controllers: Controllers = Controllers,
        /// Grants whose programs open no others.
        limit_devices: DeviceLimit = DeviceLimit,
        /// To such grants where the kernel can't hold them to it.
        unlimited_devices: Door = Door,
    }
}

table! {
    /// How much an account may have at one time.
    Quotas, QuotaText {
        /// Connections.
        connections: u64 = Bounded<65_536>,
        /// Requests under way.
        requests: u64 = Bounded<65_536>,
        /// Requests that begin in a second, and at once when there were none for so long.
        requests_per_second: u64 = Bounded<1_000_000>,
        /// Grants.
        grants: u64 = Bounded<65_536>,
        /// Grants that outlive their maker; they count among the grants too.
        persistent_grants: u64 = Bounded<65_536>,
        /// Cgroups in all grants.
        cgroups: u64 = Bounded<1_048_576>,
        /// Levels of cgroups below a payload.
        cgroup_depth: u64 = Bounded<32>,
        /// Ids, uids and gids counted once.
        ids: u64 = Bounded<4_294_967_295>,
        /// Bytes that files of its ids take, as measured last; above it there is no new grant with ids.
        disk: Most = Most,
        /// How many such files, likewise.
        disk_files: Most = Most,
        /// Ids in one grant.
        ids_per_grant: u64 = Bounded<4_294_967_295>,
        /// Blocks of 65536 ids that one grant has for grants made from inside.
        nesting_blocks: u64 = Bounded<1024>,
        /// Levels of grants inside a grant that was made from the host.
        nesting_depth: u64 = Bounded<8>,
        /// Such blocks of a grant's that one ordinary user inside of it may have in grants of its own; who has none is not served.
        nesting_user_blocks: u64 = Bounded<1024>,
        /// Notices about pressure.
        pressure_watches: u64 = Bounded<65_536>,
        /// Links in all grants.
        links: u64 = Bounded<65_536>,
        /// Ports of the host's that lead to links.
        published_ports: u64 = Bounded<65_536>,
        /// Addresses that are kept for the account's links, in use or not.
        addresses: u64 = Bounded<65_536>,
    }
}

table! {
    /// Files of the kernel's that may be read and written.
    RawRules, RawText {
        /// May be read.
        read: BTreeSet<RawKey> = RawReadKeys,
        /// May be written, and read.
        write: BTreeSet<RawKey> = RawWriteKeys,
    }
}

table! {
    /// What links may be like.
    NetworkRules, NetworkText {
        /// Bridges that links may be on, the first unless the caller says which.
        bridges: Vec<BridgeName> = Vec<BridgeName>,
        /// Bridges that links of grants made from inside others may be on.
        nesting_bridges: Vec<BridgeName> = Vec<BridgeName>,
        /// Networks in which the caller may choose its address.
        fixed_addresses: Vec<Net> = Vec<Net>,
        /// Ports of the host's that may be published.
        ports: Vec<PortSpan> = Vec<PortSpan>,
        /// Networks of the host's addresses on which they may be; any and all of them if empty.
        port_addresses: Vec<Net> = Vec<Net>,
        /// Most that a link may send, in bits a second; no limit if 0.
        max_upload: u64 = Rate,
        /// Most that is sent to a link, in bits a second; no limit if 0.
        max_download: u64 = Rate,
        /// Do the account's links reach those of other accounts on their bridge, and are reached by them?
        open: bool = bool,
        /// VLANs that links on an administrator's bridge may be in.
        vlans: Vec<VlanSpan> = Vec<VlanSpan>,
    }
}

table! {
    /// What else ends grants than their holders.
    LifetimeRules, LifetimeText {
        /// When the account's user logs out.
        logout: Logout = Logout,
        /// When the account's user is deleted.
        departed: Departed = Departed,
    }
}

impl LifetimeRules {
    /// Of each the one that ends more.
    #[must_use]
    pub fn shorter(&self, other: &Self) -> Self {
        Self { logout: self.logout.max(other.logout), departed: self.departed.max(other.departed) }
    }
}

impl QuotaText {
    /// Does it name what is set on the account's own cgroup?
    pub(crate) fn bounds_the_account(&self) -> bool {
        self.cgroups.is_some() || self.cgroup_depth.is_some() || self.nesting_depth.is_some()
    }
}

impl Quotas {
    /// Each quota as it is lower.
    #[must_use]
    pub fn least(&self, other: &Self) -> Self {
        Self {
            connections: self.connections.min(other.connections),
            requests: self.requests.min(other.requests),
            requests_per_second: self.requests_per_second.min(other.requests_per_second),
            grants: self.grants.min(other.grants),
            persistent_grants: self.persistent_grants.min(other.persistent_grants),
            cgroups: self.cgroups.min(other.cgroups),
            cgroup_depth: self.cgroup_depth.min(other.cgroup_depth),
            ids: self.ids.min(other.ids),
            disk: self.disk.min(other.disk),
            disk_files: self.disk_files.min(other.disk_files),
            ids_per_grant: self.ids_per_grant.min(other.ids_per_grant),
            nesting_blocks: self.nesting_blocks.min(other.nesting_blocks),
            nesting_depth: self.nesting_depth.min(other.nesting_depth),
            nesting_user_blocks: self.nesting_user_blocks.min(other.nesting_user_blocks),
            pressure_watches: self.pressure_watches.min(other.pressure_watches),
            links: self.links.min(other.links),
            published_ports: self.published_ports.min(other.published_ports),
            addresses: self.addresses.min(other.addresses),
        }
    }
}

impl AccessRules {
    /// May containers get this device node?
    pub fn may_have(&self, node: &NodeName) -> bool {
        self.devices.iter().any(|pattern| pattern.names(node))
    }
}

impl NetworkRules {
    /// May the host's port be published on this address, or on all if `None`?
    pub fn may_publish(&self, address: Option<IpAddr>, port: u16) -> bool {
        let on_address = self.port_addresses.is_empty()
            || address.is_some_and(|address| self.port_addresses.iter().any(|net| net.0.contains(&address)));
        on_address && self.ports.iter().any(|span| span.contains(port))
    }

    /// The limit that a link gets for which this one is asked.
    pub fn upload(&self, asked: u64) -> u64 {
        if asked == 0 { self.max_upload } else { asked }
    }

    /// As [`upload`](Self::upload), the other way.
    pub fn download(&self, asked: u64) -> u64 {
        if asked == 0 { self.max_download } else { asked }
    }
}

/// `8080` or `"1024-65535"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<const LAST: u16> {
    first: u16,
    last: u16,
}

/// Ports of the host's.
pub type PortSpan = Span<65_535>;
/// Numbers of VLANs (IEEE 802.1Q: 4095 is reserved).
pub type VlanSpan = Span<4094>;

impl<const LAST: u16> Span<LAST> {
    /// All numbers that there are.
    pub(crate) const ALL: Self = Self { first: 1, last: LAST };

    /// Is the number in it?
    pub fn contains(self, number: u16) -> bool {
        (self.first..=self.last).contains(&number)
    }
}

impl<const LAST: u16> FromStr for Span<LAST> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| (1..=LAST).contains(number));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("expected a number from 1 to {LAST}, or FIRST-LAST")),
        }
    }
}

impl<'de, const LAST: u16> Deserialize<'de> for Span<LAST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor<const LAST: u16>;
        impl<const LAST: u16> de::Visitor<'_> for Visitor<LAST> {
            type Value = Span<LAST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number from 1 to {LAST}, or \"FIRST-LAST\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                number.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// Bits a second: a number, or a text such as `"100M"`, 1000-based. 0 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate(u64);

/// Less would not carry the smallest packets of a working connection.
const MIN_RATE: u64 = 8_000;

impl FromStr for Rate {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, factor) = match text.as_bytes().last() {
            Some(b'k') => (text.get(..text.len() - 1), 1_000),
            Some(b'M') => (text.get(..text.len() - 1), 1_000_000),
            Some(b'G') => (text.get(..text.len() - 1), 1_000_000_000),
            _ => (Some(text), 1),
        };
        let number = digits.and_then(|digits| digits.parse::<u64>().ok());
        let rate = number.and_then(|number| number.checked_mul(factor));
        let fits = rate.filter(|rate| *rate == 0 || *rate >= MIN_RATE);
        fits.map(Self).ok_or("expected bits a second, as in \"100M\", from 8k on, or 0 for no limit")
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Rate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bits a second, as in \"100M\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Rate, E> {
                number.to_string().parse().map_err(E::custom)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// Limits that nothing may be above, one a key at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ceilings(Vec<(LimitKey, LimitValue)>);

impl Ceilings {
    /// The ceilings, in the order of their keys.
    pub fn limits(&self) -> &[(LimitKey, LimitValue)] {
        &self.0
    }

    /// Key and value of each, as they would stand in a file.
    pub(crate) fn rows(&self) -> Vec<(String, String)> {
        self.0.iter().map(|(key, value)| (quoted(key), quoted(value))).collect()
    }

    /// The lower one of each that either has.
    #[must_use]
    pub(crate) fn lower(&self, other: &Self) -> Self {
        let own = self.0.iter().map(|(key, value)| {
            let lower = other.of(*key).filter(|most| value.exceeds(most)).unwrap_or(value);
            (*key, lower.clone())
        });
        let more = other.0.iter().filter(|(key, _)| self.of(*key).is_none()).cloned();
        let mut all: Vec<_> = own.chain(more).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        Self(all)
    }

    /// The ceiling of this key.
    pub fn of(&self, key: LimitKey) -> Option<&LimitValue> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }
}

/// A value as it would stand in a file.
trait Shown {
    fn shown(&self) -> String;
}

impl Shown for u64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Most {
    fn shown(&self) -> String {
        let text = self.to_string();
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text } else { quoted(text) }
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Access {
    fn shown(&self) -> String {
        let word = match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        };
        quoted(word)
    }
}

impl Shown for Door {
    fn shown(&self) -> String {
        quoted(if *self == Self::Allow { "allow" } else { "deny" })
    }
}

impl Shown for DeviceLimit {
    fn shown(&self) -> String {
        quoted(match self {
            Self::None => "none",
            Self::Containers => "containers",
            Self::All => "all",
        })
    }
}

impl Shown for Exception {
    fn shown(&self) -> String {
        quoted(if *self == Self::Ask { "ask" } else { "deny" })
    }
}

impl Shown for Controllers {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for Logout {
    fn shown(&self) -> String {
        let word = match self {
            Self::Keep => "keep",
            Self::Linger => "linger",
            Self::End => "end",
        };
        quoted(word)
    }
}

impl Shown for Departed {
    fn shown(&self) -> String {
        let word = match self {
            Self::Keep => "keep",
            Self::End => "end",
            Self::Remove => "remove",
        };
        quoted(word)
    }
}

impl Shown for NodePattern {
    fn shown(&self) -> String {
        quoted(self)
    }
}

impl Shown for RawKey {
    fn shown(&self) -> String {
        quoted(self)
    }
}

impl Shown for BridgeName {
    fn shown(&self) -> String {
        quoted(self.as_str())
    }
}

impl Shown for Net {
    fn shown(&self) -> String {
        quoted(self.0)
    }
}

impl<const LAST: u16> Shown for Span<LAST> {
    fn shown(&self) -> String {
        if self.first == self.last {
            self.first.to_string()
        } else {
            quoted(format!("{}-{}", self.first, self.last))
        }
    }
}

impl<T: Shown> Shown for Vec<T> {
    fn shown(&self) -> String {
        listed(self)
    }
}

impl<T: Shown> Shown for BTreeSet<T> {
    fn shown(&self) -> String {
        listed(self)
    }
}

fn listed<'a, T: Shown + 'a>(values: impl IntoIterator<Item = &'a T>) -> String {
    format!("[{}]", values.into_iter().map(Shown::shown).collect::<Vec<_>>().join(", "))
}

/// None of the texts of a policy has a character that TOML wants escaped.
fn quoted(text: impl fmt::Display) -> String {
    format!("\"{text}\"")
}

/// A whole number from 0 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounded<const MAX: u64>(u64);

impl<const MAX: u64> From<Bounded<MAX>> for u64 {
    fn from(number: Bounded<MAX>) -> Self {
        number.0
    }
}

/// `1000`, `"1000"` or `"1000-1999"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids(pub(crate) IdSpan);

/// As in a policy file.
impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.count() {
            1 => write!(f, "{}", self.0.first()),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// What a rule is called in answers and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleName(pub(crate) String);

/// A group's name as in group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupName(pub(crate) String);

/// Keys that may be listed for reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawReadKeys(BTreeSet<RawKey>);

/// Keys that may be listed for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawWriteKeys(BTreeSet<RawKey>);

impl From<RawReadKeys> for BTreeSet<RawKey> {
    fn from(keys: RawReadKeys) -> Self {
        keys.0
    }
}

impl From<RawWriteKeys> for BTreeSet<RawKey> {
    fn from(keys: RawWriteKeys) -> Self {
        keys.0
    }
}

/// Files that no policy can make writable: they move or free processes, reach devices, or are what a portable
/// limit, with its ceiling, is carried out with.
pub(crate) fn never_writable(key: &RawKey) -> bool {
    let name = key.as_str();
    matches!(key.controller(), "cgroup" | "devices" | "freezer" | "release_agent" | "debug")
        || name.starts_with("blkio.throttle.")
        || name.starts_with("hugetlb.")
        || name.starts_with("memory.kmem.")
        || matches!(
            name,
            "cpu.cfs_burst_us"
                | "cpu.cfs_period_us"
                | "cpu.cfs_quota_us"
                | "cpu.max.burst"
                | "cpu.rt_period_us"
                | "cpu.rt_runtime_us"
                | "cpu.shares"
                | "cpu.weight.nice"
                | "cpuset.cpus.exclusive"
                | "cpuset.cpus.partition"
                | "cpuset.cpu_exclusive"
                | "cpuset.mem_exclusive"
                | "memory.limit_in_bytes"
                | "memory.memsw.limit_in_bytes"
                | "memory.oom_control"
                | "memory.move_charge_at_immigrate"
                | "memory.use_hierarchy"
                | "memory.force_empty"
        )
}

fn raw_key(text: &str) -> Result<RawKey, String> {
    match text.parse() {
        Ok(Key::Raw(key)) => Ok(key),
        Ok(Key::Limit(key)) => {
            Err(format!("`{key}` is a limit, which needs no entry here; grant-ceiling bounds it"))
        }
        Err(error) => Err(error.to_string()),
    }
}

impl<'de> Deserialize<'de> for RawReadKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let keys = Vec::<Readable>::deserialize(from)?;
        Ok(Self(keys.into_iter().map(|key| key.0).collect()))
    }
}

impl<'de> Deserialize<'de> for RawWriteKeys {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let keys = Vec::<Writable>::deserialize(from)?;
        Ok(Self(keys.into_iter().map(|key| key.0).collect()))
    }
}

struct Readable(RawKey);
struct Writable(RawKey);

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the name of a cgroup file", raw_key).map(Self)
    }
}

impl<'de> Deserialize<'de> for Writable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the name of a cgroup file", |text| match raw_key(text)? {
            key if never_writable(&key) => {
                Err(format!("`{key}` can't be made writable: it would let a holder around its limits"))
            }
            key => Ok(Self(key)),
        })
    }
}

impl<'de, const MAX: u64> Deserialize<'de> for Bounded<MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor<const MAX: u64>;
        impl<const MAX: u64> de::Visitor<'_> for Visitor<MAX> {
            type Value = Bounded<MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {MAX}")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                if number > MAX {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(number), &self));
                }
                Ok(Bounded(number))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                let error = E::invalid_value(de::Unexpected::Signed(number), &self);
                self.visit_u64(u64::try_from(number).map_err(|_| error)?)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Ids;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id such as 1000, or a range such as \"1000-1999\"")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Ids, E> {
                let span = u32::try_from(number).ok().and_then(|id| IdSpan::new(id, 1).ok());
                span.map(Ids).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Ids, E> {
                text.parse().map(Ids).map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for RuleName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "a name", |text| {
            let form = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
            let fits = !text.trim().is_empty() && text.chars().count() <= 64 && text.chars().all(form);
            let error = "expected a name of 1 to 64 letters, digits, spaces, `-`, `_` and `.`";
            fits.then(|| Self(text.to_owned())).ok_or(error)
        })
    }
}

impl<'de> Deserialize<'de> for GroupName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the name of a group", |text| {
            let form = |c: char| !c.is_control() && !c.is_whitespace() && c != ':' && c != ',';
            let number = text.bytes().all(|b| b.is_ascii_digit());
            let fits = (1..=256).contains(&text.len()) && text.chars().all(form) && !number;
            fits.then(|| Self(text.to_owned())).ok_or("expected the name of a group; numbers go into `gids`")
        })
    }
}

impl<'de> Deserialize<'de> for Ceilings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Ceilings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("limits, such as \"memory.max\" = \"4G\"")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Ceilings, A::Error> {
                let mut limits = Vec::new();
                while let Some(key) = map.next_key::<LimitKey>()? {
                    limits.push((key, map.next_value_seed(ValueOf(key))?));
                }
                limits.sort_unstable_by_key(|(key, _)| *key);
                Ok(Ceilings(limits))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// Reads the value of a known key, so that a mistake in it is reported at the value's place.
struct ValueOf(LimitKey);

impl<'de> de::DeserializeSeed<'de> for ValueOf {
    type Value = LimitValue;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<LimitValue, D::Error> {
        from.deserialize_any(self)
    }
}

impl de::Visitor<'_> for ValueOf {
    type Value = LimitValue;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value of {}", self.0)
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<LimitValue, E> {
        LimitValue::parse(&self.0, text).map_err(E::custom)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<LimitValue, E> {
        self.visit_str(&number.to_string())
    }
}
