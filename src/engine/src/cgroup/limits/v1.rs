//! Limits on cgroup v1: which files carry a portable key, and in which order they may change.
//!
//! Sources: Documentation/admin-guide/cgroup-v1/{memory,cpusets,hugetlb}.rst,
//! Documentation/scheduler/sched-bwc.rst, mm/memcontrol-v1.c, kernel/sched/core.c.
//!
//! What v1 can't carry out at all ([`LimitKey::lacks_on_v1`]) does not come here.

use std::io;

use cgrant_policy::{CpuList, CpuQuota, LimitKey, LimitValue, Setting};
use rustix::io::Errno;

use super::{Target, transaction::Transaction};
use crate::cgroup::{
    cpuset,
    equal::{ENDLESS, UNLIMITED, shares},
    error::CgroupError,
    mounts::Kind,
    node::Node,
};

pub(super) const MEMORY: &str = "memory.limit_in_bytes";
pub(super) const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";
pub(super) const CPU_QUOTA: &str = "cpu.cfs_quota_us";
const CPU_PERIOD: &str = "cpu.cfs_period_us";
pub(super) const CPU_SHARES: &str = "cpu.shares";
const CPUS: &str = "cpuset.cpus";
/// v1's counters count in these. Larger on some machines; rounding to less is harmless there.
const PAGE: u64 = 4096;

/// Sets one limit, but memory and swap, on the grant and on its payload.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn set(
    transaction: &mut Transaction,
    target: &Target<'_>,
    key: LimitKey,
    value: &LimitValue,
) -> io::Result<()> {
    match (key, value) {
        (_, LimitValue::Cpu(quota)) => set_cpu(transaction, target, *quota),
        (_, LimitValue::Cpus(cpus)) => set_cpus(transaction, target, cpus.as_ref()),
        (_, LimitValue::Weight(weight)) => {
            let shares = shares(*weight).to_string();
            target.nodes().try_for_each(|node| transaction.replace(node, CPU_SHARES, &shares))
        }
        (LimitKey::Hugetlb(size), LimitValue::Bytes(bytes)) => {
            let file = format!("hugetlb.{size}.limit_in_bytes");
            let text = bytes.map_or_else(|| UNLIMITED.to_owned(), |bytes| bytes.to_string());
            target.nodes().try_for_each(|node| transaction.replace(node, &file, &text))
        }
        (_, value) => {
            let (file, text) = (key.to_string(), value.to_string());
            target.nodes().try_for_each(|node| transaction.replace(node, &file, &text))
        }
    }
}

/// What v1 shows as bytes.
pub(super) fn bytes(text: &str) -> io::Result<Option<u64>> {
    let value: u64 = text.parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((value < ENDLESS).then_some(value))
}

/// Memory and swap of one cgroup. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// `memory.limit_in_bytes`.
    pub memory: Option<u64>,
    /// `memory.memsw.limit_in_bytes`, which counts both together.
    pub both: Option<u64>,
}

impl Memory {
    /// What a cgroup has. A kernel that does not account swap has no limit of it.
    pub fn of(node: &Node) -> io::Result<Self> {
        let memory = bytes(&node.read(MEMORY)?)?;
        let both = if node.has(MEMORY_AND_SWAP) { bytes(&node.read(MEMORY_AND_SWAP)?)? } else { None };
        Ok(Self { memory, both })
    }

    /// `memory.swap.max`: what remains of both when memory is full.
    pub fn swap(self) -> Option<u64> {
        self.both.map(|both| both.saturating_sub(self.memory.unwrap_or(both)))
    }

    /// With these limits instead. `None` if v1 can't express it: swap alone can't be limited there.
    fn with(self, memory: Option<Option<u64>>, swap: Option<Option<u64>>) -> Option<Self> {
        let whole = |bytes: u64| bytes / PAGE * PAGE;
        let memory = memory.unwrap_or(self.memory).map(whole);
        let both = match (memory, swap.unwrap_or_else(|| self.swap()).map(whole)) {
            (_, None) => None,
            (None, Some(_)) => return None,
            (Some(memory), Some(swap)) => memory.checked_add(swap).filter(|both| *both < ENDLESS),
        };
        Some(Self { memory, both })
    }
}

/// The memory limits among the settings: of memory, and of swap.
type Wanted = (Option<Option<u64>>, Option<Option<u64>>);

fn wanted(planned: &[(&Setting, Target<'_>)]) -> Wanted {
    let find = |key| {
        planned.iter().rev().find_map(|(setting, _)| match setting {
            Setting::Limit(found, LimitValue::Bytes(bytes)) if *found == key => Some(*bytes),
            _ => None,
        })
    };
    (find(LimitKey::MemoryMax), find(LimitKey::MemorySwapMax))
}

/// Can v1 express the memory and swap limits together? Asked before anything is set.
///
/// # Errors
/// [`CgroupError::Unsupported`].
pub(super) fn check_memory(planned: &[(&Setting, Target<'_>)]) -> Result<(), CgroupError> {
    let memory = |setting: &Setting| {
        matches!(setting, Setting::Limit(LimitKey::MemoryMax | LimitKey::MemorySwapMax, _))
    };
    let Some((_, target)) =
        planned.iter().find(|(setting, target)| memory(setting) && target.hierarchy.kind == Kind::V1)
    else {
        return Ok(());
    };
    let (memory, swap) = wanted(planned);
    let now =
        Memory::of(&target.outer).map_err(CgroupError::kernel("to read", target.outer.path_of(MEMORY)))?;
    match now.with(memory, swap) {
        Some(_) => Ok(()),
        None => Err(CgroupError::Unsupported {
            what: "memory.swap.max".to_owned(),
            reason: "cgroup v1 limits swap only together with memory: set memory.max too, or memory.swap.max to max",
        }),
    }
}

/// Sets memory and swap, which v1 couples: both together may never be less than memory alone.
///
/// # Errors
/// What the kernel refuses: `EBUSY` if more is in use and can't be reclaimed.
pub(super) fn set_memory(
    transaction: &mut Transaction,
    planned: &[(&Setting, Target<'_>)],
    target: &Target<'_>,
) -> io::Result<()> {
    let (memory, swap) = wanted(planned);
    target.nodes().try_for_each(|node| {
        let now = Memory::of(node)?;
        let new = now.with(memory, swap).ok_or(Errno::INVAL)?;
        let text = |bytes: Option<u64>| bytes.map_or_else(|| UNLIMITED.to_owned(), |bytes| bytes.to_string());
        let mut steps = [
            (MEMORY, text(new.memory), now.memory != new.memory),
            (MEMORY_AND_SWAP, text(new.both), now.both != new.both),
        ];
        // More memory than both together may be now: both has to grow first.
        if now.both.is_some_and(|both| new.memory.is_none_or(|memory| memory > both)) {
            steps.reverse();
        }
        for (file, value, changes) in steps {
            if changes {
                transaction.replace(node, file, &value)?;
            }
        }
        Ok(())
    })
}

/// Sets quota and period. On v1 no cgroup may have a larger share of time than the one above it has, at any moment,
/// and the two figures are two files.
fn set_cpu(transaction: &mut Transaction, target: &Target<'_>, quota: Option<CpuQuota>) -> io::Result<()> {
    // Without a quota of its own the payload has the grant's, whatever that becomes.
    if let Some(inner) = &target.inner {
        transaction.replace(inner, CPU_QUOTA, UNLIMITED)?;
    }
    let Some(quota) = quota else { return transaction.replace(&target.outer, CPU_QUOTA, UNLIMITED) };
    let (time, period) = (quota.quota().to_string(), quota.period().to_string());
    let old_period: u64 = number(&target.outer.read(CPU_PERIOD)?)?;
    let old_time = target.outer.read(CPU_QUOTA)?.parse::<u64>().ok();
    // Between the two writes the share is mixed from old and new; the smaller mixture is never more than both.
    let time_first = old_time.is_none_or(|old_time| {
        u128::from(quota.quota()) * u128::from(quota.period())
            <= u128::from(old_time) * u128::from(old_period)
    });
    let mut steps = [(CPU_QUOTA, &time), (CPU_PERIOD, &period)];
    if !time_first || old_time.is_none() {
        steps.reverse();
    }
    for (file, value) in steps {
        transaction.replace(&target.outer, file, value)?;
    }
    if let Some(inner) = &target.inner {
        transaction.replace(inner, CPU_PERIOD, &period)?;
        transaction.replace(inner, CPU_QUOTA, &time)?;
    }
    Ok(())
}

fn set_cpus(transaction: &mut Transaction, target: &Target<'_>, cpus: Option<&CpuList>) -> io::Result<()> {
    let wanted = match cpus {
        Some(cpus) => cpus.clone(),
        None => target.above.read(CPUS)?.parse().map_err(|_| io::ErrorKind::InvalidData)?,
    };
    let old = cpuset::masks(&target.outer)?;
    let new = cpuset::changed(&old, target.outer.dir().inode()?, &wanted);
    transaction.set_masks(&target.outer, old, &new)
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `cpu.max`: quota and period.
pub(super) fn cpu(node: &Node) -> io::Result<Option<CpuQuota>> {
    let period = number(&node.read(CPU_PERIOD)?)?;
    let quota = node.read(CPU_QUOTA)?.parse::<u64>().ok();
    Ok(quota.and_then(|quota| CpuQuota::new(quota, period)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_what_both_have_beyond_memory() {
        let endless = Memory { memory: None, both: None };
        let limited = endless.with(Some(Some(1 << 20)), Some(Some(4096))).unwrap();
        assert_eq!((limited.both, limited.swap()), (Some((1 << 20) + 4096), Some(4096)));
        // The swap limit stays when memory alone is changed.
        assert_eq!(
            limited.with(Some(Some(8192)), None).unwrap(),
            Memory { memory: Some(8192), both: Some(12288) }
        );
        assert_eq!(limited.with(None, Some(None)).unwrap().both, None);
        assert_eq!(endless.with(Some(Some(8192)), None).unwrap(), Memory { memory: Some(8192), both: None });
        // Swap alone can't be limited.
        assert_eq!(endless.with(None, Some(Some(0))), None);
        assert_eq!(limited.with(Some(None), None), None);
        assert!(limited.with(Some(None), Some(None)).is_some());
    }

    #[test]
    fn no_limit_is_a_large_number() {
        assert_eq!(bytes("9223372036854771712").unwrap(), None);
        assert_eq!(bytes("4096").unwrap(), Some(4096));
        assert!(bytes("max").is_err());
    }
}
