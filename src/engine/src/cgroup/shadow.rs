//! How many cgroups an account has on cgroup v1, where the kernel bounds no number.
//!
//! On cgroup2 the holder removes cgroups itself, and those on v1 that answered to them, which are root's, stay. The broker counts what it
//! makes there, and removes what answers to nothing any more when that may be more than the account has on cgroup2, where its quota is kept.
//! Processes in it go one up, as on cgroup2 the holder has moved them already.

use std::{ffi::OsStr, io, sync::PoisonError};

use cgrant_policy::{GrantPath, HostUid};
use cgrant_sys::{Dir, Pidfd};

use super::{
    attach::{PROCS, path_in},
    error::CgroupError,
    hierarchy::Hierarchy,
    node::{Node, is_missing, pids, value_of},
    tree::{CHILDREN, EVICTED, LEAF, PAYLOAD, Tree, account_name},
    walk::{Visit, walk},
};

/// How many more than on cgroup2 an account may have: what is left over is not looked for each time that a cgroup is made.
const MORE: u64 = 64;
/// Most processes of one cgroup that go one up at a time.
const MOST_PIDS: usize = 4096;

/// Where in an account's tree a cgroup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The account's node, or what is for grants inside another one.
    Grants,
    /// A grant's own.
    Grant,
    /// A grant's payload.
    Payload,
    /// Another one of the broker's own, which need not be in every hierarchy.
    Own,
    /// One that was made below a payload.
    Below,
}

impl Place {
    /// Of a cgroup of this name in it. What a caller names like one of the broker's own is none.
    fn of(self, name: &OsStr) -> Self {
        match self {
            Self::Grants if name == EVICTED => Self::Own,
            Self::Grants => Self::Grant,
            Self::Grant if name == PAYLOAD => Self::Payload,
            Self::Grant if name == CHILDREN => Self::Grants,
            Self::Payload if name == LEAF => Self::Own,
            Self::Payload | Self::Below => Self::Below,
            Self::Grant | Self::Own => Self::Own,
        }
    }
}

impl Tree {
    /// Counts so many cgroups that are about to be made for an account in each v1 hierarchy; those that were not are told to
    /// [`Tree::uncount_shadow`]. Removes what answers to no cgroup on cgroup2 if they are too many otherwise.
    ///
    /// An attacker wants the host to have no more cgroups to give (65,535 that have memory, on the whole host): it has one made, removes
    /// it on cgroup2, where it counts no more, and has the next one made, in this grant or in another one; with a process in it, or one
    /// that forks on. Or it wants others of its account to be refused for that: what it leaves is gone when they come. To look through
    /// all costs as many cgroups as it has, once in [`MORE`] at least.
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
            None => self.prune(account, &name, &on_v2)?,
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
    fn prune(&self, account: HostUid, name: &str, on_v2: &Node) -> Result<u64, CgroupError> {
        let mut most = 0;
        for hierarchy in &self.hierarchies.v1 {
            let Some(on_v1) = hierarchy.base.child(name)? else { continue };
            most = most.max(self.prune_below(account, hierarchy, &on_v1, on_v2)?);
        }
        Ok(most)
    }

    fn prune_below(
        &self,
        account: HostUid,
        hierarchy: &Hierarchy,
        on_v1: &Node,
        on_v2: &Node,
    ) -> Result<u64, CgroupError> {
        let mut left: u64 = 0;
        // On the way down: where each is, and what it answers to. No more than names and grants may be in one another. Nobody but the
        // broker makes or removes any here, and of one account one after the other.
        let mut way: Vec<(Place, Option<Node>)> = Vec::new();
        walk(on_v1.dir(), |visit| {
            match visit {
                Visit::Enter { name, .. } => {
                    let (place, above) = way
                        .last()
                        .map_or((Place::Grants, Some(on_v2)), |(place, node)| (*place, node.as_ref()));
                    let answer =
                        above.map_or(Ok(None), |above| above.child(name)).map_err(io::Error::other)?;
                    way.push((place.of(name), answer));
                }
                Visit::Leave { parent, name } => {
                    let is_stale = matches!(way.pop(), Some((Place::Below, None)));
                    if !is_stale || !self.rid(account, hierarchy, parent, name) {
                        left = left.saturating_add(1);
                    }
                }
            }
            io::Result::Ok(())
        })
        .map_err(CgroupError::kernel("to list", on_v1.path()))?;
        Ok(left)
    }

    /// Removes one on v1, and has the processes in it go one up. Says whether it is gone.
    fn rid(&self, account: HostUid, hierarchy: &Hierarchy, parent: &Dir, name: &OsStr) -> bool {
        match parent.remove_dir(name) {
            Ok(()) => return true,
            Err(error) if is_missing(&error) => return true,
            Err(_) => (),
        }
        let found = parent.open_dir(name).ok().and_then(|dir| pids(&dir, MOST_PIDS).ok());
        for pid in found.unwrap_or_default() {
            self.go_up(account, hierarchy, parent, name, pid);
        }
        parent.remove_dir(name).is_ok()
    }

    /// An attacker wants a process of somebody else's moved to where its own are bounded: it ends its own just now, and the number is given
    /// away. So the process is held, seen to be there, and asked again whether it was the one.
    fn go_up(&self, account: HostUid, hierarchy: &Hierarchy, parent: &Dir, name: &OsStr, pid: u32) {
        let Ok(process) = Pidfd::open(pid) else { return };
        let origin = self.proc.cgroups(pid).unwrap_or_default();
        let is_there = path_in(&origin, hierarchy)
            .and_then(|path| path.rsplit('/').next())
            .is_some_and(|last| name == last);
        if !is_there || !process.is_alive().unwrap_or(false) {
            return;
        }
        let moved = parent.write(PROCS, &pid.to_string()).is_ok();
        if moved && !process.is_alive().unwrap_or(false) {
            self.put_right(&GrantPath::of_account(account), hierarchy, pid);
        }
    }
}
