//! Who asks, who passes it on, and who it is about: what the kernel says of them, and what follows for cgroups and processes.

use std::{borrow::Cow, cell::OnceCell, io, ops::Deref, sync::OnceLock};

use cgrant_sys::{
    Numbering, Pidfd, PidfdInfo, ProcFs, UsernsFd,
    process::{CgroupList, IdExtent, IdKind},
};
use rustix::fs::Stat;

use super::{
    fault::Fault,
    path::{components, shown},
};
use crate::cgroup::{Hierarchy, Kind};

/// As deep as user namespaces are nested by the kernel (`create_user_ns` of kernel/user_namespace.c).
const MAX_NESTED: usize = 33;

/// What is wanted of a directory or file; the bits of one class of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read it.
    Read = 4,
    /// To write in it.
    Write = 2,
    /// To make something in it.
    Change = 6,
    /// To pass through it.
    Search = 1,
}

/// What is known of a connection's process for as long as it lives, and is looked up once.
#[derive(Debug)]
pub struct Known {
    /// Its pid, which is nobody else's while its pidfd says that it lives.
    pid: u32,
    cgroups: CgroupList,
    /// Is its pid namespace ours? It never gets into another one itself.
    shares_pid_namespace: OnceLock<bool>,
}

/// A process's pidfd, the actor's own or that of the connection.
enum Held<'p> {
    Own(Pidfd),
    Connection(&'p Pidfd),
}

impl Deref for Held<'_> {
    type Target = Pidfd;

    fn deref(&self) -> &Pidfd {
        match self {
            Self::Own(process) => process,
            Self::Connection(process) => process,
        }
    }
}

/// A process that a call comes from or is about.
pub struct Actor<'p> {
    proc: &'p ProcFs,
    process: Held<'p>,
    pid: u32,
    /// Its uid, as the kernel told with the connection or the message; not what the process has become.
    pub uid: u32,
    /// Its gid, likewise.
    pub gid: u32,
    /// Its supplementary groups, if they were told.
    groups: Cow<'p, [u32]>,
    cgroups: Vec<(String, String)>,
    known: Option<&'p Known>,
    /// What its pidfd told, of one whose ids are its own.
    info: Option<PidfdInfo>,
    map: OnceCell<Vec<IdExtent>>,
}

impl<'p> Actor<'p> {
    /// An actor with these ids.
    ///
    /// An attacker wants to be taken to be in a cgroup that it is not in: the pid is that of a process whose pidfd was
    /// held while it connected or sent, and which lives when `/proc` has told its cgroups.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn new(
        proc: &'p ProcFs,
        process: Pidfd,
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
    ) -> Result<Self, Fault> {
        let pid = process.pid().map_err(gone)?;
        let cgroups = proc.cgroups(pid).map_err(gone)?;
        Self::alive(Self {
            proc,
            process: Held::Own(process),
            pid,
            uid,
            gid,
            groups: Cow::Owned(groups),
            cgroups,
            known: None,
            info: None,
            map: OnceCell::new(),
        })
    }

    /// A process with the real ids that it has now.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn of_process(proc: &'p ProcFs, process: Pidfd) -> Result<Self, Fault> {
        let info = process.told().map_err(gone)?;
        let cgroups = proc.cgroups(info.pid).map_err(gone)?;
        Self::alive(Self {
            proc,
            process: Held::Own(process),
            pid: info.pid,
            uid: info.ruid,
            gid: info.rgid,
            groups: Cow::Borrowed(&[]),
            cgroups,
            known: None,
            info: Some(info),
            map: OnceCell::new(),
        })
    }

    /// A connection's process, with the ids that it connected with. What is known of it is looked up for its first call.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn of_peer(
        proc: &'p ProcFs,
        process: &'p Pidfd,
        known: &'p OnceLock<Known>,
        (uid, gid): (u32, u32),
        groups: &'p [u32],
    ) -> Result<Self, Fault> {
        let known = match known.get() {
            Some(known) => known,
            None => {
                let looked_up = Known::look_up(proc, process).map_err(gone)?;
                known.get_or_init(|| looked_up)
            }
        };
        let cgroups = known.cgroups(proc).map_err(gone)?;
        Self::alive(Self {
            proc,
            process: Held::Connection(process),
            pid: known.pid,
            uid,
            gid,
            groups: Cow::Borrowed(groups),
            cgroups,
            known: Some(known),
            info: None,
            map: OnceCell::new(),
        })
    }

    /// The actor, if it lives when all that was asked of `/proc` was told.
    fn alive(actor: Self) -> Result<Self, Fault> {
        if actor.process.is_alive().map_err(gone)? { Ok(actor) } else { Err(Fault::Gone) }
    }

    /// Where it was looked up.
    pub fn proc(&self) -> &ProcFs {
        self.proc
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Is its pid namespace ours, so that its numbers of processes are those that we see?
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn shares_pid_namespace(&self) -> Result<bool, Fault> {
        if let Some(shares) = self.known.and_then(|known| known.shares_pid_namespace.get()) {
            return Ok(*shares);
        }
        let own = self.proc.pid_namespace(std::process::id()).map_err(gone)?;
        let its = self.proc.pid_namespace(self.pid).map_err(gone)?;
        if !self.process.is_alive().map_err(gone)? {
            return Ok(false);
        }
        if let Some(known) = self.known {
            // Who comes first says the same.
            let _ = known.shares_pid_namespace.set(own == its);
        }
        Ok(own == its)
    }

    /// What processes and threads have as their numbers in its pid namespace, those that are seen there; `None` if the kernel
    /// does not tell, and the namespace is not ours.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn as_it_numbers(&self, pids: Vec<u32>) -> Result<Option<Vec<u32>>, Fault> {
        if self.shares_pid_namespace()? {
            return Ok(Some(pids));
        }
        let numbering = self.numbering()?;
        let numbers: Result<Vec<_>, _> = pids.into_iter().map(|pid| numbering.number_of(pid)).collect();
        let mut numbers: Vec<u32> = match numbers {
            Ok(numbers) => numbers.into_iter().flatten().collect(),
            Err(_) => return Ok(None),
        };
        numbers.sort_unstable();
        Ok(Some(numbers))
    }

    /// The process that has this number in its pid namespace, which is not ours; `None` if nobody has, or the kernel does not
    /// tell and none of the `candidates` is it.
    ///
    /// An attacker wants a process that it does not see itself, or one that has come to have the number since: who is found is
    /// held by pidfd, is then asked what it is called in that very namespace, and lives after the answer.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn process_that_it_calls(
        &self,
        number: u32,
        candidates: impl IntoIterator<Item = u32>,
    ) -> Result<Option<Pidfd>, Fault> {
        self.numbering()?.process(number, candidates).map_err(gone)
    }

    fn numbering(&self) -> Result<Numbering<'_>, Fault> {
        Numbering::of(self.proc, &self.process).map_err(gone)
    }

    /// The host's ids that a uid and a gid of its user namespace stand for; `None` if they stand for none.
    ///
    /// An attacker wants ids of one namespace taken by the map of another, which it enters in between: it has to be in the same
    /// one before and after both maps were read. What they may be used for is asked of the host's ids, like everybody's.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn ids_outside(&self, uid: u32, gid: u32) -> Result<Option<(u32, u32)>, Fault> {
        let namespace = || self.user_namespace()?.id().map_err(gone);
        let before = namespace()?;
        let outside = |kind, id| {
            let map = self.proc.id_map(self.pid, kind).map_err(gone)?;
            Ok::<_, Fault>(map.iter().find_map(|extent| extent.outside(id)))
        };
        let ids = outside(IdKind::Uid, uid)?.zip(outside(IdKind::Gid, gid)?);
        if namespace()? == before { Ok(ids) } else { Err(Fault::Gone) }
    }

    /// Its process.
    pub fn process(&self) -> &Pidfd {
        &self.process
    }

    /// Who it is by its pidfd.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn info(&self) -> Result<PidfdInfo, Fault> {
        match &self.info {
            Some(info) => Ok(*info),
            None => self.process.info().map_err(gone),
        }
    }

    /// The names on the way to its cgroup in a hierarchy, from the root of our cgroup namespace; of a leaf on cgroup2 that which
    /// it is the leaf of.
    ///
    /// An attacker wants to be taken to be in the root: `/proc` says so of every process whose first thread has ended, in v1
    /// hierarchies, while its others live. Nobody is believed to be in the root whose first thread is not seen alive after.
    ///
    /// # Errors
    /// [`Fault::Gone`] if it has ended, its first thread has, or its cgroup lies outside or is removed;
    /// [`Fault::NoCgroup`] if `/proc` does not have the hierarchy.
    pub fn cgroup(&self, hierarchy: &Hierarchy) -> Result<Vec<String>, Fault> {
        let place = self.cgroups.iter().find(|(name, _)| *name == hierarchy.name);
        let (_, path) = place.ok_or(Fault::NoCgroup)?;
        if path.starts_with("/..") || path.ends_with(" (deleted)") {
            return Err(Fault::Gone);
        }
        if path == "/" && hierarchy.kind == Kind::V1 {
            let stat = self.proc.stat(self.pid).map_err(|_| Fault::Gone)?;
            if stat.exiting || !self.process.is_alive().map_err(|_| Fault::Gone)? {
                return Err(Fault::Gone);
            }
        }
        let names = components(path);
        Ok(if hierarchy.kind == Kind::V2 { shown(names) } else { names })
    }

    /// Is its cgroup namespace ours, so that the kernel lets it at all that its bits let it at?
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn shares_cgroup_namespace(&self) -> Result<bool, Fault> {
        let own = self.proc.cgroup_namespace(std::process::id()).map_err(gone)?;
        let its = self.proc.cgroup_namespace(self.pid).map_err(gone)?;
        Ok(self.process.is_alive().map_err(gone)? && own == its)
    }

    /// May it do this to what has this owner and mode?
    ///
    /// An attacker wants at what another one owns: its bits decide, as the kernel's own check would, but that root of a user
    /// namespace is let to whatever belongs to a uid of that namespace.
    pub fn may(&self, stat: &Stat, access: Access) -> bool {
        self.uid == 0 || self.bits_let(stat, access) || self.is_root_over(stat.st_uid)
    }

    fn bits_let(&self, stat: &Stat, access: Access) -> bool {
        let class = if self.uid == stat.st_uid {
            stat.st_mode >> 6
        } else if self.gid == stat.st_gid || self.groups.contains(&stat.st_gid) {
            stat.st_mode >> 3
        } else {
            stat.st_mode
        };
        class & access as u32 == access as u32
    }

    /// Is it uid 0 in its user namespace, and has that one this uid?
    pub fn is_root_over(&self, uid: u32) -> bool {
        self.uid == 0 || (self.inside(self.uid) == Some(0) && self.inside(uid).is_some())
    }

    /// What a uid is called in its user namespace.
    pub fn inside(&self, uid: u32) -> Option<u32> {
        self.map.get_or_init(|| self.read_map(IdKind::Uid)).iter().find_map(|extent| extent.inside(uid))
    }

    /// What a gid is called in its user namespace.
    pub fn gid_map(&self) -> Vec<IdExtent> {
        self.read_map(IdKind::Gid)
    }

    /// The map of its user namespace; empty, so that it is root over nobody, if it has ended.
    fn read_map(&self, kind: IdKind) -> Vec<IdExtent> {
        let map = self.proc.id_map(self.pid, kind).unwrap_or_default();
        if self.process.is_alive().unwrap_or(false) { map } else { Vec::new() }
    }

    /// Does it answer for whoever it passes a call on for?
    ///
    /// An attacker wants to be taken for somebody else: it has a program with more rights write a byte on the socket of the call,
    /// which names that program. So it can pass on calls of those only whom it could name or become by the kernel's own rules:
    /// of its own uid; of all, as uid 0; of the uids of the user namespace that it is root of; and of whoever is in a user
    /// namespace that its uid made out of the one that it is in itself.
    ///
    /// # Errors
    /// [`Fault::Gone`] if the requestor has ended.
    pub fn answers_for(&self, requestor: &Self) -> Result<bool, Fault> {
        if self.uid == requestor.uid || self.is_root_over(requestor.uid) {
            return Ok(true);
        }
        self.owns_namespace_around(requestor)
    }

    fn owns_namespace_around(&self, requestor: &Self) -> Result<bool, Fault> {
        let own = self.user_namespace()?.id().map_err(|_| Fault::Gone)?;
        let mut around = requestor.user_namespace()?;
        for _ in 0..MAX_NESTED {
            let (Ok(above), Ok(owner)) = (around.parent(), around.owner_uid()) else { break };
            if owner == self.uid && above.id().is_ok_and(|above| above == own) {
                return Ok(true);
            }
            around = above;
        }
        Ok(false)
    }

    /// Its user namespace.
    ///
    /// # Errors
    /// [`Fault::Gone`].
    pub fn user_namespace(&self) -> Result<UsernsFd, Fault> {
        self.process.user_namespace().map_err(|_| Fault::Gone)
    }

    /// Is it not uid 0, and any uid of a process its own, or in the user namespace that it is root of?
    pub fn has_part_in(&self, process: &PidfdInfo) -> bool {
        let uids = [process.ruid, process.euid, process.suid];
        self.uid != 0 && uids.iter().any(|uid| *uid == self.uid || self.is_root_over(*uid))
    }

    /// May it move a process?
    ///
    /// An attacker wants to freeze or starve what belongs to another one: all uids of the process have to be its own, the
    /// effective and the saved one too, so that a program that runs with more rights than its user has is not the user's;
    /// or all have to be in the user namespace that it is root of.
    pub fn may_move(&self, victim: &PidfdInfo) -> bool {
        let uids = [victim.ruid, victim.euid, victim.suid];
        self.uid == 0
            || uids.iter().all(|uid| *uid == self.uid)
            || uids.iter().all(|uid| self.is_root_over(*uid))
    }
}

impl Known {
    fn look_up(proc: &ProcFs, process: &Pidfd) -> io::Result<Self> {
        let pid = process.pid()?;
        let cgroups = proc.open_cgroups(pid)?;
        // Only of one that lives was this the number.
        if !process.is_alive()? {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { pid, cgroups, shares_pid_namespace: OnceLock::new() })
    }

    fn cgroups(&self, proc: &ProcFs) -> io::Result<Vec<(String, String)>> {
        match self.cgroups.read() {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => proc.cgroups(self.pid),
            read => read,
        }
    }
}

fn gone(_: io::Error) -> Fault {
    Fault::Gone
}
