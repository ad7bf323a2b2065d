//! How many cgroups an account has on cgroup v1, where the kernel bounds no number.
//!
//! On cgroup2 the holder removes cgroups itself, and those on v1 that answered to them, which are root's, stay. The broker counts what it
//! makes there, and removes what answers to nothing any more when that may be more than the account has on cgroup2, where its quota is kept.

use std::{io, sync::PoisonError};

use cgrant_policy::HostUid;

use super::{
    error::CgroupError,
    node::{Node, value_of},
    tree::{CHILDREN, ENTRY, EVICTED, LEAF, MONITOR, PAYLOAD, Tree, account_name},
    walk::{Visit, walk},
};

/// How many more than on cgroup2 an account may have: what is left over is not looked for each time that a cgroup is made.
const MORE: u64 = 64;
/// The broker's own cgroups, which need not be in every hierarchy.
const OWN: [&str; 6] = [PAYLOAD, MONITOR, CHILDREN, ENTRY, LEAF, EVICTED];

impl Tree {
    /// Counts so many cgroups that are about to be made for an account in each v1 hierarchy; those that were not are told to
    /// [`Tree::uncount_shadow`]. Removes what answers to no cgroup on cgroup2 if they are too many otherwise.
    ///
    /// An attacker wants the host to have no more cgroups to give (65,535 that have memory, on the whole host): it has one made, removes
    /// it on cgroup2, where it counts no more, and has the next one made, in this grant or in another one. What it keeps processes in on v1
    /// can't be removed, and is counted still. To look through all costs as many cgroups as it has, once in [`MORE`] at least.
    ///
    /// # Errors
    /// [`CgroupError::TooMany`] if they stay too many; what the kernel refuses.
    pub(super) fn count_shadow(&self, account: HostUid, more: usize) -> Result<(), CgroupError> {
        if self.hierarchies.v1.is_empty() {
            return Ok(());
        }
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        let name = account_name(account);
        let Some(on_v2) = self.v2().base.child(&name)? else { return Ok(()) };
        let stat = on_v2.read("cgroup.stat");
        let stat = stat.map_err(CgroupError::kernel("to read", on_v2.path_of("cgroup.stat")))?;
        let most = value_of(&stat, "nr_descendants").unwrap_or(0).saturating_add(MORE);
        let known = self.shadows.lock().unwrap_or_else(PoisonError::into_inner).get(&account).copied();
        let known = match known.filter(|known| known.saturating_add(more) <= most) {
            Some(known) => known,
            None => self.prune(&name, &on_v2)?,
        };
        let all = known.saturating_add(more);
        if all > most {
            let limit = usize::try_from(most).unwrap_or(usize::MAX);
            return Err(CgroupError::TooMany {
                what: "cgroups on cgroup v1, with what is gone on cgroup2",
                limit,
            });
        }
        self.shadows.lock().unwrap_or_else(PoisonError::into_inner).insert(account, all);
        Ok(())
    }

    /// So many of those that were counted are in no v1 hierarchy, or not any more.
    pub(super) fn uncount_shadow(&self, account: HostUid, fewer: usize) {
        let fewer = u64::try_from(fewer).unwrap_or(u64::MAX);
        if let Some(all) = self.shadows.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&account) {
            *all = all.saturating_sub(fewer);
        }
    }

    /// The account has none any more.
    pub(super) fn forget_shadow(&self, account: HostUid) {
        self.shadows.lock().unwrap_or_else(PoisonError::into_inner).remove(&account);
    }

    /// Removes what answers to nothing, and says how many there are still in the hierarchy that has most.
    fn prune(&self, account: &str, on_v2: &Node) -> Result<u64, CgroupError> {
        let mut most = 0;
        for hierarchy in &self.hierarchies.v1 {
            let Some(on_v1) = hierarchy.base.child(account)? else { continue };
            most = most.max(prune_below(&on_v1, on_v2)?);
        }
        Ok(most)
    }
}

/// Removes what answers to nothing below one cgroup, and says how many there are still.
fn prune_below(on_v1: &Node, on_v2: &Node) -> Result<u64, CgroupError> {
    let mut left: u64 = 0;
    // What each cgroup on the way down answers to: no more than names and grants may be in one another. Nobody but the broker makes or
    // removes any here, and of one account one after the other.
    let mut answers: Vec<Option<Node>> = Vec::new();
    walk(on_v1.dir(), |visit| {
        match visit {
            Visit::Enter { name, .. } => {
                let above = answers.last().map_or(Some(on_v2), Option::as_ref);
                let answer = above.map_or(Ok(None), |above| above.child(name)).map_err(io::Error::other)?;
                answers.push(answer);
            }
            Visit::Leave { parent, name } => {
                let answers_to_one = answers.pop().flatten().is_some();
                let is_own = OWN.iter().any(|own| name == *own);
                // With processes in it, it stays.
                if answers_to_one || is_own || parent.remove_dir(name).is_err() {
                    left = left.saturating_add(1);
                }
            }
        }
        io::Result::Ok(())
    })
    .map_err(CgroupError::kernel("to list", on_v1.path()))?;
    Ok(left)
}
