//! Moving one process into a grant, in every hierarchy, and back if something fails.
//!
//! `cgroup.procs` takes a pid, and pids are recycled. Every move is made under a pidfd, which is asked afterwards whether the
//! process was still alive; if it was not, the pid may have meant somebody else by then, who is put right (see
//! [`Tree::put_right`]).

use std::{io, sync::Arc};

use cgrant_policy::GrantPath;
use cgrant_sys::{Pidfd, PidfdInfo, ProcFs, process::Stat};
use cgrant_wire::AttachTarget;
use rustix::io::Errno;

use super::{
    error::CgroupError,
    evict::evicted,
    hierarchy::{CGROUP2, Hierarchies, Hierarchy},
    mounts::Kind,
    node::{Node, errno},
    tree::{CHILDREN, LEAF, MONITOR, PAYLOAD, Tree},
};

pub(super) const PROCS: &str = "cgroup.procs";
/// The first process of all, which takes orphans in.
const INIT: u32 = 1;
/// How `/proc/PID/cgroup` marks a cgroup that was removed under a zombie.
const DELETED: &str = " (deleted)";

/// Where a process is: hierarchy and path, as `/proc/PID/cgroup` has them.
pub(super) type Origin = Vec<(String, String)>;

/// A process that was moved, and where it was before.
#[derive(Debug)]
pub(super) struct Moved {
    pub pid: u32,
    /// Tells it from a later process of the same pid.
    pub start_time: u64,
    pub origin: Origin,
}

/// Processes that were attached.
#[derive(Debug)]
#[must_use]
pub struct Attached {
    hierarchies: Arc<Hierarchies>,
    /// What the grant is in.
    around: GrantPath,
    moved: Vec<Moved>,
}

impl Attached {
    /// How many processes.
    pub fn count(&self) -> u32 {
        u32::try_from(self.moved.len()).unwrap_or(u32::MAX)
    }

    /// Puts them back to where they were, for a caller whose next step failed. Those that have ended are left out; one whose
    /// cgroup was removed meanwhile goes to `_evicted` of what the grant is in.
    pub fn put_back(self) {
        for moved in self.moved.iter().rev() {
            put_back(&self.hierarchies, &self.around, moved);
        }
    }
}

/// Puts one process back in every hierarchy, cgroup2 first: the opposite order.
pub(super) fn put_back(hierarchies: &Hierarchies, around: &GrantPath, moved: &Moved) {
    let Ok(process) = Pidfd::open(moved.pid) else { return };
    if process.start_time().ok() != Some(moved.start_time) {
        return;
    }
    for hierarchy in hierarchies.all().rev() {
        if let Some(path) = path_in(&moved.origin, hierarchy)
            && let Err(error) = put_into(hierarchy, path, around, moved.pid)
        {
            tracing::warn!(pid = moved.pid, hierarchy = hierarchy.name, path, %error, "a process could not be put back");
        }
    }
}

/// The path of an origin in a hierarchy.
pub(super) fn path_in<'o>(origin: &'o Origin, hierarchy: &Hierarchy) -> Option<&'o str> {
    let (_, path) = origin.iter().find(|(name, _)| *name == hierarchy.name)?;
    Some(path.strip_suffix(DELETED).unwrap_or(path))
}

/// Moves a process into the cgroup at `path`, or where that is gone or takes no processes, into `_evicted` of `around`.
///
/// An attacker wants a process of its own out of what bounds it: it removes the cgroup that the process came from, or hands
/// controllers down in it, while the broker has the process, and is refused something. The cgroups above may well take
/// none either, up to the hierarchy's root, which bounds nothing and always does. So none of them is tried.
fn put_into(hierarchy: &Hierarchy, path: &str, around: &GrantPath, pid: u32) -> Result<(), CgroupError> {
    let ended = |error: &io::Error| errno(error) == Some(Errno::SRCH);
    match hierarchy.open(path).and_then(|dir| dir.write(PROCS, &pid.to_string())) {
        Ok(()) => return Ok(()),
        Err(error) if ended(&error) => return Ok(()),
        Err(_) => (),
    }
    let evicted = evicted(hierarchy, around)?;
    match evicted.write(PROCS, &pid.to_string()) {
        Err(source) if !ended(&source) => {
            Err(CgroupError::Move { pid, cgroup: evicted.path().to_owned(), source })
        }
        _ => Ok(()),
    }
}

impl Tree {
    /// Attaches a process to a grant, in every hierarchy; with `tree` all its descendants too, however fast they fork. All that
    /// `may` allows, or none.
    ///
    /// [`AttachTarget::Stage`] is `monitor` on cgroup2 and the payload on v1, where what it clones has to be from the start.
    /// [`AttachTarget::Monitor`] is `monitor` on both; limits of the grant's own hold there too, but for those of `blkio`, which v1
    /// has in the payload alone.
    ///
    /// An attacker wants a process of somebody else's moved, or one of its own out of a grant's limits. `may` decides on every
    /// process by what its pidfd says; nobody is taken out of another grant, nor out of this one's payload into its monitor.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchProcess`], [`CgroupError::NotMovable`], [`CgroupError::Move`], [`CgroupError::NoSuchGrant`];
    /// [`CgroupError::TimedOut`] for a tree that forks faster than it can be caught. Nobody is moved then.
    pub fn attach(
        &self,
        grant: &GrantPath,
        target: AttachTarget,
        process: &Pidfd,
        tree: bool,
        may: &dyn Fn(&PidfdInfo) -> bool,
    ) -> Result<Attached, CgroupError> {
        let places = self.places(grant, target)?;
        let moved = match tree {
            true => self.attach_tree(grant, target, &places, process, may)?,
            false => vec![self.attach_one(grant, target, &places, process, may)?],
        };
        Ok(Attached { hierarchies: Arc::clone(&self.hierarchies), around: grant.around(), moved })
    }

    /// Where processes go, in the order of [`Hierarchies::all`].
    fn places(&self, grant: &GrantPath, target: AttachTarget) -> Result<Vec<Node>, CgroupError> {
        let place = |hierarchy: &Hierarchy| match (hierarchy.kind, target) {
            (_, AttachTarget::Monitor) | (Kind::V2, AttachTarget::Stage) => {
                self.need_part(hierarchy, grant, MONITOR)
            }
            (Kind::V2, AttachTarget::Payload) => self.entrance(&self.need_part(hierarchy, grant, PAYLOAD)?),
            (Kind::V1, _) => self.need_part(hierarchy, grant, PAYLOAD),
        };
        self.hierarchies.all().map(place).collect()
    }

    /// The cgroup of a payload that takes processes from outside: the payload, or once it has cgroups or hands controllers
    /// down, its leaf.
    fn entrance(&self, payload: &Node) -> Result<Node, CgroupError> {
        let hands_down =
            payload.read_if_there("cgroup.subtree_control")?.is_some_and(|text| !text.is_empty());
        let inner = super::tree::grants_in(payload.dir()) > 0;
        if !hands_down && !inner {
            return payload.again();
        }
        match payload.child(LEAF)? {
            Some(leaf) => Ok(leaf),
            None => self.ensure_leaf(payload),
        }
    }

    fn attach_one(
        &self,
        grant: &GrantPath,
        target: AttachTarget,
        places: &[Node],
        process: &Pidfd,
        may: &dyn Fn(&PidfdInfo) -> bool,
    ) -> Result<Moved, CgroupError> {
        let moved = self.examine(grant, target, process, may)?;
        let result = places.iter().try_for_each(|place| enter(place, process, moved.pid));
        if let Err(error) = result {
            // Hierarchies that it was not moved in yet take it back where it is: no harm.
            put_back(&self.hierarchies, &grant.around(), &moved);
            if matches!(error, CgroupError::NoSuchProcess) {
                self.hierarchies.all().for_each(|hierarchy| self.put_right(grant, hierarchy, moved.pid));
            }
            return Err(error);
        }
        Ok(moved)
    }

    /// Who a process is, and where.
    ///
    /// One whose first thread has ended while others go on is refused: `/proc` says of it that it is in the root of every
    /// v1 hierarchy, and put back there it would be out of whatever bounded it.
    pub(super) fn look_at(process: &Pidfd, proc: &ProcFs) -> Result<(PidfdInfo, Moved), CgroupError> {
        let info = process.info().map_err(gone)?;
        let origin = proc.cgroups(info.pid).map_err(gone)?;
        let stat = proc.stat(info.pid).map_err(gone)?;
        if !process.is_alive().map_err(gone)? || stat.exiting && stat.threads <= 1 {
            return Err(CgroupError::NoSuchProcess);
        }
        if stat.exiting {
            return Err(CgroupError::NotMovable { pid: info.pid });
        }
        Ok((info, Moved { pid: info.pid, start_time: stat.start_time, origin }))
    }

    /// Who a process is and where, if it may be moved.
    pub(super) fn examine(
        &self,
        grant: &GrantPath,
        target: AttachTarget,
        process: &Pidfd,
        may: &dyn Fn(&PidfdInfo) -> bool,
    ) -> Result<Moved, CgroupError> {
        let (info, moved) = Self::look_at(process, &self.proc)?;
        let refused = CgroupError::NotMovable { pid: info.pid };
        // Root may ask for a tree that the engine itself is in. Frozen, it would never thaw it.
        if info.pid == std::process::id() || !may(&info) {
            return Err(refused);
        }
        let inside = moved.origin.iter().find_map(|(hierarchy, path)| self.place_of(hierarchy, path));
        if let Some((around, part)) = inside {
            let within = part == PAYLOAD || part == CHILDREN;
            // From a grant into one inside of it: the limits of the outer one go on holding.
            let deeper = within && grant.is_inside(&around);
            let stays = around == *grant && (target == AttachTarget::Payload || !within);
            if !deeper && !stays {
                return Err(refused);
            }
        }
        Ok(moved)
    }

    /// Puts right what a move under a pid may have done that was recycled before the kernel read it.
    ///
    /// The process that has the number now is in our cgroup then, while the one that forked it is not: nobody but us put it
    /// there, and where it would be is where its parent is. A process that was forked inside has its parent inside too, and
    /// stays; also if that has ended ([`is_orphan`]).
    pub(super) fn put_right(&self, grant: &GrantPath, hierarchy: &Hierarchy, pid: u32) {
        let Ok(process) = Pidfd::open(pid) else { return };
        // Of a process that is ending, its v1 paths are not told.
        let path = |pid: u32| {
            let origin = self.proc.cgroups(pid).ok()?;
            let told = !self.proc.stat(pid).ok()?.exiting;
            path_in(&origin, hierarchy).filter(|_| told).map(str::to_owned)
        };
        let above = format!(
            "{}/{}",
            hierarchy.base_path.trim_end_matches('/'),
            super::tree::below_base(grant).join("/")
        );
        let inside = |path: &str| super::hierarchy::strip(path, &above).is_some();
        let (Ok(stat), Ok(info)) = (self.proc.stat(pid), process.info()) else { return };
        if is_orphan(&stat, &info) {
            return;
        }
        let (Some(own), Some(parents)) = (path(pid), path(stat.ppid)) else { return };
        // What was read is about this process only if it is still there.
        if !inside(&own) || inside(&parents) || !process.is_alive().unwrap_or(false) {
            return;
        }
        tracing::warn!(
            pid,
            hierarchy = hierarchy.name,
            "a process ended while it was attached and its number was given away: put right"
        );
        if let Err(error) = put_into(hierarchy, &parents, &grant.around(), pid) {
            tracing::error!(pid, hierarchy = hierarchy.name, %error, "it could not be put right");
        }
    }
}

/// May the first process of all be the parent of this one for no other reason than that the one that forked it has ended?
///
/// An attacker wants out of what bounds it, to where that first process is: it forks inside, and its forker ends. What init itself
/// starts begins as root's.
pub fn is_orphan(stat: &Stat, info: &PidfdInfo) -> bool {
    stat.ppid == INIT && [info.ruid, info.euid, info.suid] != [0; 3]
}

/// Moves a process into a cgroup, and asks its pidfd whether it was the one.
pub(super) fn enter(place: &Node, process: &Pidfd, pid: u32) -> Result<(), CgroupError> {
    match place.write(PROCS, &pid.to_string()) {
        Ok(()) => (),
        Err(error) if errno(&error) == Some(Errno::SRCH) => return Err(CgroupError::NoSuchProcess),
        Err(source) => return Err(CgroupError::Move { pid, cgroup: place.path().to_owned(), source }),
    }
    match process.is_alive() {
        Ok(true) => Ok(()),
        _ => Err(CgroupError::NoSuchProcess),
    }
}

/// The process was not to be had: it has ended, or its pid can't be seen from here.
pub(super) fn gone(error: io::Error) -> CgroupError {
    match errno(&error) {
        Some(Errno::SRCH | Errno::NOENT) => CgroupError::NoSuchProcess,
        _ => CgroupError::System { doing: "looking at a process", source: error },
    }
}

/// The cgroup2 path of an origin.
pub(super) fn cgroup2_path(origin: &Origin) -> Option<&str> {
    origin
        .iter()
        .find(|(name, _)| name == CGROUP2)
        .map(|(_, path)| path.strip_suffix(DELETED).unwrap_or(path))
}
