//! Which cgroups were made over CGManager's interface, by account: what its quota of cgroups is counted by on v1, where
//! the kernel counts for nobody.
//!
//! A cgroup that its owner, or the kernel's release agent, has removed meanwhile is noticed when the quota is met: only then
//! is the host asked which of them are left.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::HostUid;

/// A cgroup: name of its hierarchy, and the names on the way to it.
type Made = (String, Vec<String>);

/// The cgroups that were made, by account.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<HashMap<HostUid, HashSet<Made>>>);

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, HashMap<HostUid, HashSet<Made>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many the account has, at most.
    pub fn count(&self, account: HostUid) -> u64 {
        self.lock().get(&account).map_or(0, |made| u64::try_from(made.len()).unwrap_or(u64::MAX))
    }

    /// One was made.
    pub fn made(&self, account: HostUid, hierarchy: &str, names: Vec<String>) {
        self.lock().entry(account).or_default().insert((hierarchy.to_owned(), names));
    }

    /// Forgets those that are gone. The account's operations come one after the other, so that none is made meanwhile.
    pub fn sweep(&self, account: HostUid, is_there: impl Fn(&str, &[String]) -> bool) {
        let taken = self.lock().remove(&account);
        let Some(mut made) = taken else { return };
        made.retain(|(hierarchy, names)| is_there(hierarchy, names));
        if !made.is_empty() {
            self.lock().insert(account, made);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten() {
        let (ledger, account) = (Ledger::default(), HostUid(7));
        let names = |name: &str| vec!["top".to_owned(), name.to_owned()];
        for name in ["a", "b", "b"] {
            ledger.made(account, "memory", names(name));
        }
        assert_eq!((ledger.count(account), ledger.count(HostUid(8))), (2, 0));
        ledger.sweep(account, |hierarchy, names| hierarchy == "memory" && names.ends_with(&["b".to_owned()]));
        assert_eq!(ledger.count(account), 1);
        ledger.sweep(account, |_, _| false);
        assert_eq!(ledger.count(account), 0);
    }
}
