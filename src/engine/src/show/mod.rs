//! What is written on the sockets of Scm calls with a right that the engine does not have: by a process that does nothing else
//! (`helper`). The engine itself writes nothing there.

mod helper;
mod message;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use cgrant_policy::Pool;
use cgrant_sys::{Channel, Pidfd, seqpacket};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

pub use self::message::Shown;
use self::message::{ShowAnswer, ShowRequest};
use crate::idmap::{AskError, receive, send};

/// How long the helper may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Which id of the broker's own block the helper has beside the front's, counted from its first.
const SPARE: u32 = 5;

/// The helper.
#[derive(Debug)]
pub struct Shower {
    line: Channel,
    process: Pidfd,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The kernel refused.
    #[error("the kernel does not let it be sent: {0}")]
    Refused(#[source] io::Error),
    /// The helper could not be asked.
    #[error("the helper that shows processes could not be asked: {0}")]
    Unasked(#[from] AskError),
}

impl Shower {
    /// Starts the helper, whose messages have uid and gid of the socket `front`. Only while this process has one thread, and
    /// before it gives up its capabilities.
    ///
    /// # Errors
    /// `EBUSY` with more than one thread; those of `clone3(2)` and `socketpair(2)`.
    pub fn start(pool: &Pool, front: (u32, u32)) -> io::Result<Self> {
        let own = pool.own_block().ok_or(io::ErrorKind::InvalidInput)?;
        let spare = own.first().saturating_add(SPARE);
        let (line, far_end) = seqpacket::pair()?;
        let process = helper::start(&far_end, front, (spare, spare))?.pidfd;
        Ok(Self { line, process })
    }

    /// Shows processes on a client's socket, as many as there is room for now: a datagram with a credential for each. One that
    /// has ended is shown as `known`, or as another that lives.
    ///
    /// The front says which: that a process of this number lives, and what a reader's namespace calls it, is all that anybody
    /// can learn from it.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn show(&self, socket: BorrowedFd<'_>, pids: &[u32], known: Option<u32>) -> Result<Shown, ShowError> {
        self.ask(socket, &ShowRequest::Processes { pids: pids.to_vec(), known })
    }

    /// Sees to it that a datagram of so many bytes can be sent on a client's socket.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn make_room(&self, socket: BorrowedFd<'_>, bytes: u32) -> Result<(), ShowError> {
        self.ask(socket, &ShowRequest::Room(bytes)).map(|_| ())
    }

    fn ask(&self, socket: BorrowedFd<'_>, request: &ShowRequest) -> Result<Shown, ShowError> {
        let unasked = |errno: Errno| AskError::Io(errno.into());
        let (answer, pipe) = pipe_with(PipeFlags::CLOEXEC).map_err(unasked)?;
        send(&self.line, request, &[pipe.as_fd(), socket])?;
        drop(pipe);
        let answer: ShowAnswer = receive(&answer, Instant::now() + LIMIT)?;
        answer.map_err(|errno| ShowError::Refused(io::Error::from_raw_os_error(errno)))
    }

    /// Pidfd of the helper. When it becomes readable the helper has died: nothing is shown until the engine is started anew.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}
