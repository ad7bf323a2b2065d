//! Id-mapped mounts of callers' directories, and nodes of devices as mounts, made by a process that does nothing else.
//!
//! The helper is forked from the engine at its start, and is all that keeps the rights this takes (`helper`). It is asked
//! over a channel of its own; any thread may ask, and nobody waits for another's request.

mod error;
mod helper;
mod message;
mod node;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use cgrant_policy::HostUid;
use cgrant_sys::{Channel, ChannelError, MntnsFd, Pidfd, seqpacket};
use rustix::event::PollFlags;

use self::message::{MountAnswer, MountRequest, NodeRequest, ToHelper};
pub use self::{
    error::{MountError, MountRefusal, Step},
    message::Shift,
};
use crate::idmap::wait;

/// How long a mount may take: more than the helper gives its processes.
const LIMIT: Duration = Duration::from_secs(15);

/// The helper.
#[derive(Debug)]
pub struct Mounter {
    line: Channel,
    process: Pidfd,
}

/// A directory that is to be had as a mount.
#[derive(Debug)]
pub struct Wish<'fd> {
    /// Whose it must be.
    pub account: HostUid,
    /// The directory, opened as one for reading.
    pub directory: BorrowedFd<'fd>,
    /// The mount namespace that it was opened in.
    pub namespace: &'fd MntnsFd,
    /// Its uids.
    pub uids: Shift,
    /// Its gids.
    pub gids: Shift,
    /// Can nothing be written through the mount?
    pub read_only: bool,
}

/// A device that is to be had as a node of a container's own.
#[derive(Debug)]
pub struct NodeWish<'fd> {
    /// Who is to have it.
    pub account: HostUid,
    /// The host's node.
    pub host: BorrowedFd<'fd>,
    /// Owner of the new node, as the host knows it.
    pub uid: u32,
    /// Its group, likewise.
    pub gid: u32,
    /// Only if this group of the host's may read and write the host's node.
    pub by_group: Option<u32>,
}

impl Mounter {
    /// Starts the helper. Only while this process has one thread, and before it gives up its capabilities.
    ///
    /// # Errors
    /// `EBUSY` with more than one thread; those of `clone3(2)` and `socketpair(2)`.
    pub fn start() -> io::Result<Self> {
        let (line, far_end) = seqpacket::pair()?;
        let process = helper::start(&far_end)?.pidfd;
        Ok(Self { line, process })
    }

    /// A mount of the directory, attached nowhere: `nosuid`, `nodev`, its ids shown as the wish says and all others as nobody's.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn make(&self, wish: &Wish<'_>) -> Result<OwnedFd, MountError> {
        let Wish { account, directory, namespace, uids, gids, read_only } = wish;
        let request = MountRequest { account: account.0, uids: *uids, gids: *gids, read_only: *read_only };
        self.ask(&ToHelper::Directory(request), &[*directory, namespace.as_fd()])
    }

    /// A node of the device as a mount, attached nowhere: `nosuid` and `noexec`, alone on a file system of its own, with kind, number
    /// and mode of the host's.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn make_node(&self, wish: &NodeWish<'_>) -> Result<OwnedFd, MountError> {
        let NodeWish { account, host, uid, gid, by_group } = wish;
        let request = NodeRequest { account: account.0, uid: *uid, gid: *gid, by_group: *by_group };
        self.ask(&ToHelper::Node(request), &[*host])
    }

    fn ask(&self, request: &ToHelper, fds: &[BorrowedFd<'_>]) -> Result<OwnedFd, MountError> {
        let (answer, far_end) = seqpacket::pair()?;
        let bytes = cgrant_wire::encode(request).map_err(invalid)?;
        self.line.send(&bytes, &[&[far_end.as_fd()], fds].concat()).map_err(failed)?;
        drop(far_end);
        if !wait(&answer, PollFlags::IN, LIMIT)? {
            return Err(MountError::TimedOut);
        }
        // The end without an answer: the process of this request was ended, or the helper.
        let received = answer.receive().map_err(failed)?.ok_or(MountRefusal::Interfered)?;
        cgrant_wire::decode::<MountAnswer>(&received.bytes).map_err(invalid)??;
        received.fds.into_iter().next().ok_or(MountError::Refused(MountRefusal::Interfered))
    }

    /// Pidfd of the helper. When it becomes readable the helper has died: no more mounts are made until the engine is
    /// started anew.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

fn invalid(error: cgrant_wire::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn failed(error: ChannelError) -> MountError {
    match error {
        ChannelError::Closed => MountError::HelperGone,
        ChannelError::Io(error) => MountError::Io(error),
        other => MountError::Io(io::Error::other(other)),
    }
}
