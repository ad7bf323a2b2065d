//! Which devices the programs in a grant may open, and make nodes of.
//!
//! On every kind of host a program of the kernel's says so that is attached to the grant's own cgroup2 cgroup, root's, around all
//! that is in the grant. The v1 hierarchy of devices is left alone: what is in a grant is in a cgroup2 cgroup there too. The
//! program needs no process of the broker's, and grants inside are below it: they get what the grant has, or less.
//!
//! This process can neither load nor attach programs; one that does nothing else does (`helper`).
//!
//! Touches that helper, and looks at nodes in the host's `/dev`.

mod helper;
mod list;
mod message;
mod node;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cgrant_sys::{Channel, Pidfd, seqpacket};
use cgrant_wire::{Refusal, RefusalCode};
use rustix::pipe::{PipeFlags, pipe_with};

use self::message::{Done, Request};
pub use self::{
    list::{DeviceList, Number},
    node::look,
};
use crate::idmap::{AskError, receive, send};

/// How long it may take: less than a millisecond, but on a machine that has much else to do.
const LIMIT: Duration = Duration::from_secs(5);

/// The helper, and what it found.
#[derive(Debug)]
pub struct Devices {
    line: Channel,
    process: Pidfd,
    /// Why devices can't be limited here.
    lacks: Option<String>,
}

/// Why a grant's devices were not limited.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The kernel refused.
    #[error("the kernel refused to limit the devices of a cgroup: {0}")]
    Refused(#[source] io::Error),
    /// The helper could not be asked.
    #[error("the helper that limits devices could not be asked: {0}")]
    Unasked(#[from] AskError),
}

/// A grant whose devices are being limited.
#[derive(Debug)]
#[must_use = "nothing is known of it before it is waited for"]
pub struct Limiting(OwnedFd, Instant);

impl Devices {
    /// Starts the helper, and tries whether it can do what it is for. Only while this process has one thread, and before it gives up
    /// its capabilities.
    ///
    /// # Errors
    /// `EBUSY` with more than one thread; those of `clone3(2)` and `socketpair(2)`.
    pub fn start() -> io::Result<Self> {
        let (line, far_end) = seqpacket::pair()?;
        let process = helper::start(&far_end)?.pidfd;
        drop(far_end);
        let mut devices = Self { line, process, lacks: None };
        devices.lacks = devices.ask(&Request::Try, None).err().map(|error| error.to_string());
        Ok(devices)
    }

    /// Why devices can't be limited here; `None` if they can.
    pub fn lacks(&self) -> Option<&str> {
        self.lacks.as_deref()
    }

    /// As a row of what the host has.
    pub fn feature(&self) -> (String, bool, String) {
        let without = "grants are made without a limit of devices, or refused where policy says unlimited-devices = \"deny\"";
        let why = self.lacks.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        ("devices".to_owned(), self.lacks.is_none(), format!("{without}{why}"))
    }

    /// Limits the devices of a new grant, by its cgroup2 directory, in which nothing has started yet.
    ///
    /// # Errors
    /// [`DevicesError::Unasked`].
    pub fn begin(&self, grant: BorrowedFd<'_>, list: &DeviceList) -> Result<Limiting, DevicesError> {
        self.tell(&Request::New(list.numbers().to_vec()), Some(grant))
    }

    /// Limits them to these in place of those before. At no time are they not limited.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub fn set(&self, grant: BorrowedFd<'_>, list: &DeviceList) -> Result<(), DevicesError> {
        self.ask(&Request::Set(list.numbers().to_vec()), Some(grant))
    }

    fn ask(&self, request: &Request, grant: Option<BorrowedFd<'_>>) -> Result<(), DevicesError> {
        self.tell(request, grant)?.finish()
    }

    fn tell(&self, request: &Request, grant: Option<BorrowedFd<'_>>) -> Result<Limiting, DevicesError> {
        let (answer, pipe) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|errno| AskError::from(io::Error::from(errno)))?;
        let fds: Vec<_> = [pipe.as_fd()].into_iter().chain(grant).collect();
        send(&self.line, request, &fds)?;
        Ok(Limiting(answer, Instant::now() + LIMIT))
    }

    /// Pidfd of the helper. When it becomes readable the helper has died: no more devices are limited until the engine is
    /// started anew.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl Limiting {
    /// Waits until it is done.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub fn finish(self) -> Result<(), DevicesError> {
        let Self(answer, deadline) = self;
        let done: Done = receive(&answer, deadline)?;
        done.map_err(|errno| DevicesError::Refused(io::Error::from_raw_os_error(errno)))
    }
}

impl From<DevicesError> for Refusal {
    fn from(error: DevicesError) -> Self {
        let of = |code| Self::new(code, error.to_string());
        match &error {
            DevicesError::Refused(_) => of(RefusalCode::KernelRefused)
                .hint("see what `bpftool cgroup tree` shows above; an administrator can say limit-devices = \"none\" in a rule of policy"),
            DevicesError::Unasked(AskError::TimedOut) => of(RefusalCode::TimedOut).hint("try again"),
            DevicesError::Unasked(_) => of(RefusalCode::Internal).hint("the broker's log has the details"),
        }
    }
}
