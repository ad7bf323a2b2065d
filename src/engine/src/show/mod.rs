//! What is done with the sockets of Scm calls. They are the clients', and whoever has one too can make everybody wait who receives
//! from it or sets anything about it, for as long as it likes, and not even SIGKILL ends that. So the engine does nothing of it
//! itself: processes that it can do without do (`helper`), and have the rights that it takes.

mod helper;
mod message;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cgrant_policy::{HostUid, Pool};
use cgrant_sys::{
    Channel, ChannelError, Pidfd,
    credentials::{Credentials, Message, SentProcess},
    seqpacket,
};
use rustix::event::PollFlags;

pub use self::message::Shown;
use self::message::{Answer, Done, Named, NamedProcess, Request, Taken, WORKER};
use crate::idmap::{AskError, send, wait};

/// How long a worker may take: microseconds, but on a machine that has much else to do.
pub const LIMIT: Duration = Duration::from_secs(5);
/// Most workers that one account has made wait so long.
const MAX_LOST: usize = 3;
/// How long each of them counts at least: who makes others wait is not let to do so again at once.
const PENANCE: Duration = Duration::from_secs(60);
/// Workers that stay when there is nothing to do.
const KEPT: usize = 4;
/// Which id of the broker's own block the helper has beside the front's, counted from its first.
const SPARE: u32 = 5;

/// The helper, and its workers.
#[derive(Debug)]
pub struct Shower {
    line: Channel,
    process: Pidfd,
    limit: Duration,
    workers: Mutex<Workers>,
}

/// Processes that do one thing at a time. They end when the engine's end of their line is closed, unless a client keeps them.
#[derive(Debug, Default)]
struct Workers {
    idle: Vec<Channel>,
    lost: Vec<Lost>,
}

/// A worker that a client has made wait.
#[derive(Debug)]
struct Lost {
    account: HostUid,
    line: Channel,
    since: Instant,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The kernel refused.
    #[error("the kernel does not let it be done with the client's socket: {0}")]
    Refused(#[source] io::Error),
    /// The helper could not be asked.
    #[error("the helper that acts on clients' sockets could not be asked: {0}")]
    Unasked(#[from] AskError),
    /// Somebody who has the socket too makes whoever uses it wait.
    #[error("the socket is held up by somebody who has it too")]
    Held,
    /// The account has done so too often.
    #[error(
        "{MAX_LOST} calls of uid {0} were held up by who has their sockets too; wait a minute after that has ended"
    )]
    TooManyHeld(HostUid),
}

impl Shower {
    /// Starts the helper, whose messages have uid and gid of the socket `front`, and each of whose workers may take as long as
    /// `limit` ([`LIMIT`]). Only while this process has one thread, and before it gives up its capabilities.
    ///
    /// # Errors
    /// `EBUSY` with more than one thread; those of `clone3(2)` and `socketpair(2)`.
    pub fn start(pool: &Pool, front: (u32, u32), limit: Duration) -> io::Result<Self> {
        let own = pool.own_block().ok_or(io::ErrorKind::InvalidInput)?;
        let spare = own.first().saturating_add(SPARE);
        let (line, far_end) = seqpacket::pair()?;
        let process = helper::start(&far_end, front, (spare, spare))?.pidfd;
        Ok(Self { line, process, limit, workers: Mutex::default() })
    }

    /// Whoever sends over a client's socket shows who it is from now on.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn pass_credentials(&self, account: HostUid, socket: BorrowedFd<'_>) -> Result<(), ShowError> {
        self.ask(account, socket, &Request::PassCredentials).map(drop)
    }

    /// Is there a message behind so many bytes?
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn look(&self, account: HostUid, socket: BorrowedFd<'_>, behind: u32) -> Result<bool, ShowError> {
        match self.ask(account, socket, &Request::Look(behind))? {
            (Done::There(there), _) => Ok(there),
            _ => Err(strange()),
        }
    }

    /// Takes so many messages off a client's socket, or as many as there are. What comes with one beside credentials is closed, and
    /// the message said to be truncated.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn take(
        &self,
        account: HostUid,
        socket: BorrowedFd<'_>,
        count: usize,
    ) -> Result<Vec<Message>, ShowError> {
        let count = count.try_into().unwrap_or(u8::MAX);
        let (Done::Taken(taken), processes) = self.ask(account, socket, &Request::Take(count))? else {
            return Err(strange());
        };
        let mut processes = processes.into_iter();
        Ok(taken.into_iter().map(|taken| message(&taken, &mut processes)).collect())
    }

    /// Shows processes on a client's socket, as many as there is room for now: a datagram with a credential for each. One that
    /// has ended is shown as `known`, or as another that lives.
    ///
    /// The front says which: that a process of this number lives, and what a reader's namespace calls it, is all that anybody
    /// can learn from it.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn show(
        &self,
        account: HostUid,
        socket: BorrowedFd<'_>,
        pids: &[u32],
        known: Option<u32>,
    ) -> Result<Shown, ShowError> {
        match self.ask(account, socket, &Request::Processes { pids: pids.to_vec(), known })? {
            (Done::Shown(shown), _) => Ok(shown),
            _ => Err(strange()),
        }
    }

    /// Sees to it that a datagram of so many bytes can be sent on a client's socket.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn make_room(&self, account: HostUid, socket: BorrowedFd<'_>, bytes: u32) -> Result<(), ShowError> {
        self.ask(account, socket, &Request::Room(bytes)).map(drop)
    }

    /// Takes room back: no more than so many bytes, as getsockopt(2) says it.
    ///
    /// # Errors
    /// [`ShowError`].
    pub fn no_more_room(
        &self,
        account: HostUid,
        socket: BorrowedFd<'_>,
        bytes: u32,
    ) -> Result<(), ShowError> {
        self.ask(account, socket, &Request::NoMoreRoom(bytes)).map(drop)
    }

    /// Has a worker do it. One that does not get it done is left to itself.
    fn ask(
        &self,
        account: HostUid,
        socket: BorrowedFd<'_>,
        request: &Request,
    ) -> Result<(Done, Vec<OwnedFd>), ShowError> {
        let worker = self.begin(account, socket, request)?;
        if !wait(&worker, PollFlags::IN, self.limit).map_err(AskError::from)? {
            tracing::warn!(
                uid = account.0,
                "a client's socket is held up; what was to be done with it is left"
            );
            self.lock().lost.push(Lost { account, line: worker, since: Instant::now() });
            return Err(ShowError::Held);
        }
        let answer = match worker.receive() {
            Ok(answer) => answer.ok_or(AskError::Gone)?,
            Err(ChannelError::Closed) => return Err(AskError::Gone.into()),
            Err(error) => return Err(AskError::from(io::Error::other(error)).into()),
        };
        self.keep(worker);
        let done: Answer = cgrant_wire::decode(&answer.bytes).map_err(|_| strange())?;
        done.map(|done| (done, answer.fds))
            .map_err(|errno| ShowError::Refused(io::Error::from_raw_os_error(errno)))
    }

    /// A worker that has the request.
    fn begin(
        &self,
        account: HostUid,
        socket: BorrowedFd<'_>,
        request: &Request,
    ) -> Result<Channel, ShowError> {
        loop {
            let idle = self.lock().idle_for(account)?;
            let Some(worker) = idle else { break };
            // One that was killed has no reader.
            if send(&worker, request, &[socket]).is_ok() {
                return Ok(worker);
            }
        }
        let (worker, far_end) = seqpacket::pair().map_err(AskError::from)?;
        send(&self.line, &WORKER, &[far_end.as_fd()])?;
        drop(far_end);
        send(&worker, request, &[socket])?;
        Ok(worker)
    }

    fn keep(&self, worker: Channel) {
        let mut workers = self.lock();
        if workers.idle.len() < KEPT {
            workers.idle.push(worker);
        }
    }

    /// Nothing is left half done in there.
    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pidfd of the helper. When it becomes readable the helper has died: nothing is done until the engine is started anew.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

impl Workers {
    /// A worker that has nothing to do, if there is one, for an account that may have one.
    fn idle_for(&mut self, account: HostUid) -> Result<Option<Channel>, ShowError> {
        self.lost.retain(|lost| lost.since.elapsed() < PENANCE || !lost.has_ended());
        let of_account = self.lost.iter().filter(|lost| lost.account == account).count();
        if of_account >= MAX_LOST { Err(ShowError::TooManyHeld(account)) } else { Ok(self.idle.pop()) }
    }
}

impl Lost {
    /// Has it gone on? It answers then, or has no end of the line any more.
    fn has_ended(&self) -> bool {
        wait(&self.line, PollFlags::IN, Duration::ZERO).unwrap_or(true)
    }
}

/// A worker's answer that is none to what was asked.
fn strange() -> ShowError {
    AskError::from(io::Error::from(io::ErrorKind::InvalidData)).into()
}

/// A message as it was taken off the socket.
fn message(taken: &Taken, processes: &mut impl Iterator<Item = OwnedFd>) -> Message {
    let credentials = taken.named.map(|Named { pid, uid, gid, process }| {
        let process = match process {
            NamedProcess::Unsaid => SentProcess::Unsaid,
            NamedProcess::Gone => SentProcess::Gone,
            NamedProcess::Beside => processes
                .next()
                .and_then(|fd| Pidfd::from_fd(fd).ok())
                .map_or(SentProcess::Gone, SentProcess::Some),
        };
        Credentials { pid, uid, gid, process }
    });
    Message { length: 1, truncated: !taken.is_proper, credentials, fds: Vec::new() }
}
