//! Who is at the other end of a connection, and what may be said of them to the outer socket.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{NsId, Numbering, PeerPidfd, Pidfd, ProcFs, process::IdKind, socket};
use cgrant_wire::LegacyAnswer;
use rustix::io::Errno;
use tokio::sync::Mutex;

/// Most processes that are looked through for one that a caller names, on kernels that don't say which it is.
const MOST_LOOKED_THROUGH: usize = 10_000;

/// Whom a credential names, by the numbers of this process's namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The process.
    pub pid: u32,
    /// The uid.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
}

impl Named {
    /// This process.
    pub fn own() -> Self {
        Self {
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }
}

/// Whom a credential is to name, and the process that is meant, not who has its number by then.
#[derive(Debug)]
pub struct Vouched {
    /// By number.
    pub named: Named,
    process: Option<Pidfd>,
}

impl Vouched {
    /// A process that was held when the number was its own; `None` if the kernel did not tell, or only ids count.
    pub const fn new(named: Named, process: Option<Pidfd>) -> Self {
        Self { named, process }
    }

    /// Has the number not been anybody else's until now?
    pub fn is_there(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process.is_alive().unwrap_or(false))
    }
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Whom the kernel said when it was made.
    pub named: Named,
    /// Its calls are carried out one after the other, as it made them.
    pub turn: Mutex<()>,
    process: Pidfd,
}

impl Peer {
    /// Of a connection.
    ///
    /// # Errors
    /// `NotFound` if it has ended, or cannot be seen from this pid namespace; those of the kernel.
    pub fn of(connection: &OwnedFd) -> io::Result<Self> {
        let said = socket::peer_credentials(connection)?;
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let pid = said.pid.ok_or_else(gone)?;
        let process = match socket::peer_pidfd(connection.as_fd())? {
            PeerPidfd::Some(process) => process,
            PeerPidfd::Gone => return Err(gone()),
            // A kernel that is too old to say: whoever connected waits for an answer, so it is most likely there.
            PeerPidfd::Unsupported => Pidfd::open(pid)?,
        };
        let named = Named { pid, uid: said.uid, gid: said.gid };
        Ok(Self { named, turn: Mutex::new(()), process })
    }

    /// Does it live? What was asked of `/proc` about its number is its own only if it does afterwards.
    pub fn is_alive(&self) -> bool {
        self.process.is_alive().unwrap_or(false)
    }

    /// It, to be named.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn vouched(&self) -> io::Result<Vouched> {
        Ok(Vouched::new(self.named, Some(self.process.try_clone()?)))
    }

    /// Does it count processes as this process does?
    pub fn shares_pid_namespace(&self, proc: &ProcFs) -> bool {
        let own = proc.pid_namespace(std::process::id());
        let its = proc.pid_namespace(self.named.pid);
        self.is_alive() && matches!((own, its), (Ok(own), Ok(its)) if own == its)
    }

    /// Processes as it numbers them, without those that are not in its pid namespace. Before Linux 6.11 the kernel does not tell
    /// of threads in another namespace than ours.
    ///
    /// # Errors
    /// `NotFound` if it has ended; those of the kernel.
    pub fn numbers(&self, proc: &ProcFs, pids: Vec<u32>) -> io::Result<LegacyAnswer> {
        if self.shares_pid_namespace(proc) {
            return Ok(LegacyAnswer::Tasks(pids));
        }
        let numbering = Numbering::of(proc, &self.process)?;
        let numbers: io::Result<Vec<_>> = pids.into_iter().map(|pid| numbering.number_of(pid)).collect();
        match numbers {
            Ok(numbers) => {
                let mut numbers: Vec<u32> = numbers.into_iter().flatten().collect();
                numbers.sort_unstable();
                Ok(LegacyAnswer::Tasks(numbers))
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTTY) => {
                Ok(LegacyAnswer::OtherNamespace)
            }
            Err(error) => Err(error),
        }
    }

    /// The process that it calls by this number; `None` if there is none.
    ///
    /// # Errors
    /// `NotFound` if it has ended itself; those of the kernel.
    pub fn process_that_it_calls(&self, proc: &ProcFs, number: u32) -> io::Result<Option<Pidfd>> {
        if self.shares_pid_namespace(proc) {
            return Pidfd::open(number).map(Some);
        }
        // Those of this container, of which there are not many.
        let all = std::iter::once_with(|| proc.pids().unwrap_or_default()).flatten();
        let candidates = std::iter::once(self.named.pid).chain(all).take(MOST_LOOKED_THROUGH);
        Numbering::of(proc, &self.process)?.process(number, candidates)
    }

    /// What a uid and a gid of its user namespace are called in ours; `None` if they are none of ours.
    ///
    /// # Errors
    /// `NotFound` if it has ended, or went into another namespace meanwhile; those of reading `/proc`.
    pub fn ids_here(&self, proc: &ProcFs, uid: u32, gid: u32) -> io::Result<Option<(u32, u32)>> {
        let before = user_namespace(&self.process);
        let here = |kind, id| {
            let map = proc.id_map(self.named.pid, kind)?;
            Ok::<_, io::Error>(map.iter().find_map(|extent| extent.outside(id)))
        };
        let ids = here(IdKind::Uid, uid)?.zip(here(IdKind::Gid, gid)?);
        let is_one = before.is_some() && before == user_namespace(&self.process);
        if is_one { Ok(ids) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Does it count users as this process does?
    pub fn shares_user_namespace(&self) -> bool {
        let own = Pidfd::own().ok().and_then(|own| user_namespace(&own));
        own.is_some() && own == user_namespace(&self.process)
    }

    /// May it have somebody named whose call it passes on?
    ///
    /// An attacker wants to be taken for somebody else: it has a program with more rights write a byte on the socket of the call,
    /// which names that program. So it can pass on calls of those only whom it could name or become by the kernel's own rules: of
    /// its own uid, of all as root of this container, and of the uids of a container in it that it is root of.
    pub fn answers_for(&self, proc: &ProcFs, requestor: Named) -> bool {
        self.named.uid == requestor.uid || self.named.uid == 0 || self.is_root_over(proc, requestor.uid)
    }

    fn is_root_over(&self, proc: &ProcFs, uid: u32) -> bool {
        // Of one's own namespace the map says how the outer one counts.
        if self.shares_user_namespace() {
            return false;
        }
        let map = proc.id_map(self.named.pid, IdKind::Uid).unwrap_or_default();
        let inside = |uid| map.iter().find_map(|extent| extent.inside(uid));
        self.is_alive() && inside(self.named.uid) == Some(0) && inside(uid).is_some()
    }
}

/// Which user namespace a process is in.
fn user_namespace(process: &Pidfd) -> Option<NsId> {
    process.user_namespace().ok()?.id().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_answers_for_oneself_and_root_for_all() {
        let proc = ProcFs::open().unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        let mut peer = Peer::of(&one.into()).unwrap();
        assert_eq!(peer.named, Named::own());
        assert!(peer.shares_pid_namespace(&proc) && peer.shares_user_namespace());
        let of = |uid| Named { pid: 1, uid, gid: 0 };
        for (own, other, answers) in [(0, 7, true), (7, 7, true), (7, 8, false), (7, 0, false)] {
            peer.named.uid = own;
            assert_eq!(peer.answers_for(&proc, of(other)), answers, "{own} {other}");
        }
    }
}
