//! `RemoveOnEmpty` and `Prune`: cgroups that are removed when they are empty, without the kernel's release agent.
//!
//! A wish is on disk before it is answered (`record`) and survives a restart of the broker. The kernel tells when a cgroup is to be
//! looked at (`watch`); then it is looked, in the order of the account's operations, whether anything is in it.
//!
//! As with the release agent, a v1 cgroup is removed when what was in it has gone, processes or cgroups, and not for being empty
//! when the wish comes; and a cgroup that is made in one whose removal is wished has that wish too. On cgroup2 it is removed at
//! once if it is empty, as CGManager did. What is removed is the very cgroup of the wish, if it is empty by the kernel's own word:
//! never what is around it or in it.

mod record;
#[cfg(test)]
mod tests;
mod watch;

use std::{cell::RefCell, io};

use cgrant_policy::HostUid;
use cgrant_sys::{Dir, Pidfd};

use self::record::WishRecord;
pub use self::watch::Wishes;
use super::{
    actor::Access,
    call::{Call, Target, open},
    fault::Fault,
    make::remove_one,
    path::{LEAF, Wanted, below, components},
};
use crate::{
    cgroup::{Hierarchies, Hierarchy, Kind, Visit, walk},
    watch::Watches,
};

/// Most open wishes of an account. Root may have [`MAX_OF_ALL`].
const MAX_OF_ACCOUNT: usize = 512;
/// Most open wishes.
const MAX_OF_ALL: usize = 16_384;
/// What a v1 cgroup's processes are listed in.
const PROCS: &str = "cgroup.procs";
/// Longest list of processes that is read, in bytes.
const MAX_PROCS: usize = 4 * 1024 * 1024;
/// What a cgroup2 cgroup says of itself.
const EVENTS: &str = "cgroup.events";
/// Longest such text, in bytes.
const MAX_EVENTS: usize = 4096;
/// Of how many processes one is looked for whose end can be waited for.
const MAX_CANDIDATES: usize = 64;

/// What the wishes are kept and looked after with.
pub struct Keeper<'e> {
    /// The wishes.
    pub wishes: &'e Wishes,
    /// What is waited for.
    pub watches: &'e Watches,
    /// The host's hierarchies.
    pub hierarchies: &'e Hierarchies,
    /// Identity of this boot.
    pub boot_id: &'e str,
}

/// What is in a cgroup.
enum Content {
    /// Processes; on v1 these.
    Processes(Vec<u32>),
    /// No processes, and cgroups.
    Cgroups,
    /// Nothing.
    Nothing,
}

impl Call<'_> {
    /// Has a cgroup below the requestor's own removed when it is empty.
    ///
    /// An attacker wants another one's cgroup removed: it has to be able to write in the cgroup, the kernel removes none that has
    /// anything in it, and grants are left alone.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::NoCgroup`], [`Fault::Granted`], [`Fault::Wishes`]; if the wish can't be written.
    pub fn remove_on_empty(
        &self,
        keeper: &Keeper<'_>,
        account: HostUid,
        hierarchy: &Hierarchy,
        wanted: &Wanted,
    ) -> Result<(), Fault> {
        let target = self.writable(hierarchy, wanted)?;
        keeper.wish(account, hierarchy, &target.names, &target.dir)
    }

    /// Removes what is empty of a cgroup below the requestor's own and all that is below it; the rest, when it is empty.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::NoCgroup`], [`Fault::Granted`]; what the kernel refuses to list. That something stays is none.
    pub fn prune(
        &self,
        keeper: &Keeper<'_>,
        account: HostUid,
        hierarchy: &Hierarchy,
        wanted: &Wanted,
    ) -> Result<(), Fault> {
        let target = self.writable(hierarchy, wanted)?;
        let way = RefCell::new(target.names.clone());
        let mut left: Vec<Vec<String>> = Vec::new();
        let hidden = |name: &std::ffi::OsStr| hierarchy.kind == Kind::V2 && name == LEAF;
        let brokers = components(&hierarchy.base_path);
        walk(&target.dir, |visit| {
            match visit {
                Visit::Enter { name, .. } => way.borrow_mut().push(name.to_string_lossy().into_owned()),
                Visit::Leave { parent, name } => {
                    let path = way.borrow().clone();
                    way.borrow_mut().pop();
                    if !hidden(name)
                        && below(&path, &brokers).is_none()
                        && let Some(name) = name.to_str()
                        && remove_one(hierarchy, parent, name).is_err()
                        && left.len() < MAX_OF_ACCOUNT
                    {
                        left.push(path);
                    }
                }
            }
            Ok::<(), Fault>(())
        })?;
        drop(target.dir);
        if let Some((name, above)) = target.names.split_last()
            && remove_one(hierarchy, &open(hierarchy, above)?, name).is_err()
        {
            left.push(target.names);
        }
        for names in left {
            // As many as may be wished; nobody is told of the others, which are in use.
            let wished =
                open(hierarchy, &names).and_then(|dir| keeper.wish(account, hierarchy, &names, &dir));
            if let Err(error) = wished {
                tracing::debug!(%error, "a cgroup that is pruned stays");
            }
        }
        Ok(())
    }

    fn writable(&self, hierarchy: &Hierarchy, wanted: &Wanted) -> Result<Target, Fault> {
        let target = self.below_own(hierarchy, &wanted.names)?;
        self.need(&target.stat, Access::Write)?;
        self.not_granted(hierarchy, &target.names)?;
        Ok(target)
    }
}

impl Keeper<'_> {
    /// Notes that a cgroup is to be removed when it is empty. It may have been noted before. The root is never removed.
    fn wish(
        &self,
        account: HostUid,
        hierarchy: &Hierarchy,
        names: &[String],
        dir: &Dir,
    ) -> Result<(), Fault> {
        if names.is_empty() {
            return Ok(());
        }
        let cgroup = dir.inode().map_err(Fault::kernel("to look at a cgroup"))?;
        if let Some(id) = self.wishes.at(&hierarchy.name, names) {
            if self.wishes.record(id).is_some_and(|record| record.cgroup == cgroup) {
                return Ok(());
            }
            self.wishes.forget(id, Some(self.watches));
        }
        self.may_wish(account)?;
        let had = !matches!(content(hierarchy, dir)?, Content::Nothing);
        let place = (hierarchy.name.clone(), names.to_vec());
        let record = WishRecord::new(self.boot_id, account.0, place, cgroup, had);
        let id = self.wishes.add(None, record, hierarchy.kind, dir).map_err(Fault::Unwished)?;
        self.look(id);
        Ok(())
    }

    /// A new v1 cgroup is to be removed when it is empty if that is wished of the one that it is in, as the kernel does with
    /// `notify_on_release`. That it can't be noted is no reason not to have it.
    pub fn inherit(&self, account: HostUid, hierarchy: &Hierarchy, names: &[String]) {
        let Some((_, above)) = names.split_last().filter(|_| hierarchy.kind == Kind::V1) else { return };
        if self.wishes.at(&hierarchy.name, above).is_none() {
            return;
        }
        let wished = open(hierarchy, names).and_then(|dir| self.wish(account, hierarchy, names, &dir));
        if let Err(error) = wished {
            tracing::debug!(%error, "a new cgroup is not removed when it is empty");
        }
    }

    /// Refuses a wish too many, when those that mean nothing any more are closed.
    fn may_wish(&self, account: HostUid) -> Result<(), Fault> {
        let is_full = || {
            let most = if account.is_root() { MAX_OF_ALL } else { MAX_OF_ACCOUNT };
            self.wishes.of(Some(account)).len() >= most || self.wishes.of(None).len() >= MAX_OF_ALL
        };
        if is_full() {
            self.wishes.of(Some(account)).into_iter().for_each(|id| self.look(id));
        }
        if is_full() { Err(Fault::Wishes) } else { Ok(()) }
    }

    /// Goes on with the wishes on disk. Before anybody is served.
    ///
    /// # Errors
    /// If they can't be listed.
    pub fn take_over(&self) -> io::Result<()> {
        for (id, record) in self.wishes.load(self.boot_id)? {
            let hierarchy = self.hierarchies.all().find(|hierarchy| hierarchy.name == record.hierarchy);
            let dir = hierarchy.and_then(|hierarchy| Some((hierarchy, open(hierarchy, &record.names).ok()?)));
            let Some((hierarchy, dir)) = dir else {
                self.wishes.forget(id, None);
                continue;
            };
            match self.wishes.add(Some(id), record, hierarchy.kind, &dir) {
                Ok(id) => self.look(id),
                Err(error) => tracing::warn!(%error, "a cgroup is not removed when it is empty"),
            }
        }
        Ok(())
    }

    /// Looks at the cgroup of a wish, and removes it if it is time to.
    pub fn look(&self, id: u64) {
        let Some(record) = self.wishes.record(id) else { return };
        match self.go_on(id, &record) {
            Ok(()) => (),
            Err(Fault::NoCgroup) => self.wishes.forget(id, Some(self.watches)),
            Err(error) => {
                tracing::debug!(%error, hierarchy = record.hierarchy, path = record.names.join("/"), "looked at again");
                self.wishes.await_time(id, self.watches);
            }
        }
    }

    fn go_on(&self, id: u64, record: &WishRecord) -> Result<(), Fault> {
        let hierarchy = self.hierarchies.all().find(|hierarchy| hierarchy.name == record.hierarchy);
        let (hierarchy, (name, above)) = hierarchy.zip(record.names.split_last()).ok_or(Fault::NoCgroup)?;
        let above = open(hierarchy, above)?;
        let dir = above.open_dir(name).map_err(Fault::kernel("to open a cgroup"))?;
        if dir.inode().map_err(Fault::kernel("to look at a cgroup"))? != record.cgroup {
            return Err(Fault::NoCgroup);
        }
        match content(hierarchy, &dir)? {
            Content::Nothing if record.had || hierarchy.kind == Kind::V2 => {
                drop(dir);
                remove_one(hierarchy, &above, name).map_err(Fault::kernel("to remove a cgroup"))?;
                tracing::info!(
                    target: "legacy", hierarchy = hierarchy.name, path = record.names.join("/"),
                    account = record.account, "removed a cgroup that is empty, as was wished"
                );
                self.wishes.forget(id, Some(self.watches));
                return Ok(());
            }
            Content::Nothing => self.wishes.await_files(id, self.watches),
            Content::Processes(pids) if hierarchy.kind == Kind::V1 => {
                self.wishes.has_been_used(id);
                let process = first_alive(&dir, &pids)?.ok_or(Fault::Gone)?;
                let awaited = self.wishes.await_process(id, process, self.watches);
                awaited.map_err(Fault::kernel("to wait for a process"))?;
            }
            Content::Processes(_) | Content::Cgroups => {
                self.wishes.has_been_used(id);
                self.wishes.await_files(id, self.watches);
            }
        }
        Ok(())
    }
}

/// What is in a cgroup.
fn content(hierarchy: &Hierarchy, dir: &Dir) -> Result<Content, Fault> {
    let refused = Fault::kernel("to look into a cgroup");
    match hierarchy.kind {
        Kind::V1 => {
            let pids = processes(dir)?;
            if !pids.is_empty() {
                return Ok(Content::Processes(pids));
            }
        }
        Kind::V2 => {
            let text = dir.read(EVENTS, MAX_EVENTS).map_err(&refused)?;
            if text.lines().any(|line| line == "populated 1") {
                return Ok(Content::Processes(Vec::new()));
            }
        }
    }
    let hidden = |name: &String| hierarchy.kind == Kind::V2 && name == LEAF;
    let has_cgroups = dir.dirs().map_err(refused)?.iter().any(|name| !hidden(name));
    Ok(if has_cgroups { Content::Cgroups } else { Content::Nothing })
}

fn processes(dir: &Dir) -> Result<Vec<u32>, Fault> {
    let text = dir.read(PROCS, MAX_PROCS).map_err(Fault::kernel("to list a cgroup"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The first of a cgroup's processes that lives, and is in it still when its descriptor is there: then it is the one.
fn first_alive(dir: &Dir, pids: &[u32]) -> Result<Option<Pidfd>, Fault> {
    for pid in pids.iter().take(MAX_CANDIDATES) {
        let Ok(process) = Pidfd::open(*pid) else { continue };
        if processes(dir)?.contains(pid) && process.is_alive().map_err(|_| Fault::Gone)? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}
