//! The child that parses what callers send: the broker's own front, with nothing but its channel to this process.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use cgrant_process::program::{Process, ProcessError, Program};
use cgrant_sys::{Channel, ChannelError, Received, seqpacket};
use cgrant_wire::{
    FdIndex,
    boot::{FromChild, FrontBoot, FrontKind, LogTarget, ToChild},
};
use nix::sys::signal::SigSet;
use tokio::io::unix::AsyncFd;

use crate::args::Args;

/// The user whose account it gets, and what it gets where there is none: an id of nobody.
const USER: &str = "cgrant-socket";
const NOBODY: u32 = 65534;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// It can't be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It ended, or said why it can't begin.
    #[error("what parses calls did not start: {0}; --account chooses another uid for it")]
    Failed(String),
    /// The channel to it.
    #[error("the channel to what parses calls: {0}")]
    Channel(#[from] io::Error),
}

/// A front that was started.
#[derive(Debug)]
pub struct Front {
    /// Its uid.
    pub uid: u32,
    process: Process,
    link: Channel,
}

/// A front that serves.
#[derive(Debug)]
pub struct Served {
    /// The channel that requests come by.
    pub link: Rc<Link>,
    // It ends with this one.
    _process: Process,
}

impl Front {
    /// Starts it.
    ///
    /// # Errors
    /// [`FrontError`].
    pub fn start(args: &Args) -> Result<Self, FrontError> {
        let uid = args.account.or_else(account_of_user).unwrap_or(NOBODY);
        let process = Program::find("cgrant-front")?.start(&[], &SigSet::empty())?;
        let (link, theirs) = seqpacket::pair()?;
        let boot = FrontBoot {
            kind: FrontKind::Socket,
            instance: "default".to_owned(),
            engine: FdIndex(0),
            uid,
            gid: uid,
            bus_address: String::new(),
            log: LogTarget::Terminal,
        };
        let sent =
            cgrant_wire::encode(&ToChild::Front(boot)).map_err(|error| error.to_string()).and_then(|bytes| {
                process.control.send(&bytes, &[theirs.as_fd()]).map_err(|error| error.to_string())
            });
        sent.map_err(FrontError::Failed)?;
        Ok(Self { uid, process, link })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// [`FrontError::Failed`].
    pub async fn ready(self) -> Result<Served, FrontError> {
        let control = Link::new(self.process.control.try_clone()?)?;
        let said = control.receive().await?;
        match said.and_then(|said| cgrant_wire::decode(&said.bytes).ok()) {
            Some(FromChild::Ready) => {}
            Some(FromChild::Failed(reason)) => return Err(FrontError::Failed(reason)),
            _ => return Err(FrontError::Failed("it ended".to_owned())),
        }
        Ok(Served { link: Rc::new(Link::new(self.link)?), _process: self.process })
    }
}

/// The uid of the user, if the container has it.
fn account_of_user() -> Option<u32> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find_map(|line| line.strip_prefix(USER)?.strip_prefix(':'))?;
    line.split(':').nth(1)?.parse().ok().filter(|uid| *uid != 0)
}

/// A descriptor in the runtime.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
#[expect(
    deprecated,
    reason = "only for types that may give another descriptor than they own, which OwnedFd can't"
)]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    Ok(AsyncFd::try_new(fd)?)
}

/// A channel in the runtime.
#[derive(Debug)]
pub struct Link {
    channel: Channel,
    watched: AsyncFd<OwnedFd>,
}

impl Link {
    /// Of a channel.
    ///
    /// # Errors
    /// Those of `fcntl(2)` and `epoll_ctl(2)`.
    pub fn new(channel: Channel) -> io::Result<Self> {
        channel.set_nonblocking(true)?;
        let watched = watch(channel.as_fd().try_clone_to_owned()?)?;
        Ok(Self { channel, watched })
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// What the channel says.
    pub async fn receive(&self) -> io::Result<Option<Received>> {
        loop {
            let mut guard = self.watched.readable().await?;
            match self.channel.receive() {
                Ok(received) => return Ok(received),
                Err(ChannelError::Closed) => return Ok(None),
                Err(ChannelError::WouldBlock) => guard.clear_ready(),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    /// What the channel says.
    pub async fn send(&self, bytes: &[u8], fd: Option<impl AsFd>) -> io::Result<()> {
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        loop {
            match self.channel.send(bytes, &fds) {
                Ok(()) => return Ok(()),
                Err(ChannelError::WouldBlock) => self.watched.writable().await?.clear_ready(),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}
