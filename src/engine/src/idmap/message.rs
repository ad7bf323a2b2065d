//! What the engine says to its two helpers, and how an answer comes back.
//!
//! Every request brings the writing end of a pipe of its own for the answer, so the engine's threads neither share a
//! reader nor wait for each other.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cgrant_policy::IdSpan;
use cgrant_sys::{Channel, ChannelError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::error::MapRefusal;

/// Longest answer, in bytes: less than a pipe takes at once.
const MAX_ANSWER: usize = 512;

/// To the helper that writes maps: that a namespace will be mapped. Beside it: the pipe for the answer, the pipe that
/// the numbers come by ([`MapNumbers`]), then the user namespace, and after it its parent if that is to be another than the host's.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct MapRequest {
    /// Who must have made the namespace.
    pub owner: u32,
}

/// What is to be written. It comes last; if its pipe ends without it, nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapNumbers {
    /// The uid that 0 inside becomes, as the parent of the namespace counts.
    pub uid: u32,
    /// The gid that 0 inside becomes, counted likewise.
    pub gid: u32,
    /// How many ids.
    pub count: u32,
    /// The account's own uid and gid, if they are mapped too, as the id behind the range's last.
    pub own: Option<(u32, u32)>,
    /// May the namespace call setgroups?
    pub setgroups: bool,
}

impl MapNumbers {
    /// What is written into `uid_map` and `gid_map`.
    pub fn maps(&self) -> [String; 2] {
        let Self { uid, gid, count, own, .. } = *self;
        let map = |first: u32, own: Option<u32>| {
            let last = own.map(|id| format!("{count} {id} 1\n")).unwrap_or_default();
            format!("0 {first} {count}\n{last}")
        };
        [map(uid, own.map(|(uid, _)| uid)), map(gid, own.map(|(_, gid)| gid))]
    }
}

/// What came of it.
pub type MapAnswer = Result<(), MapRefusal>;

/// To the helper that asks the name service. Beside it: the pipe.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NamesRequest {
    /// The ids.
    pub span: IdSpan,
}

/// Whether any are known, or why that is not known.
pub type NamesAnswer = Result<bool, String>;

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Not in time.
    #[error("no answer in time")]
    TimedOut,
    /// The helper has ended.
    #[error("the helper has ended")]
    Gone,
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends a request and waits for its answer.
///
/// # Errors
/// [`AskError`].
pub fn ask<Q: Serialize, A: DeserializeOwned>(
    helper: &Channel,
    request: &Q,
    limit: Duration,
) -> Result<A, AskError> {
    let (answer, pipe) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    send(helper, request, &[pipe.as_fd()])?;
    drop(pipe);
    receive(&answer, Instant::now() + limit)
}

/// Waits for an answer.
///
/// # Errors
/// [`AskError`].
pub fn receive<A: DeserializeOwned>(answer: &OwnedFd, deadline: Instant) -> Result<A, AskError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if !wait(answer, PollFlags::IN, left)? {
        return Err(AskError::TimedOut);
    }
    read(answer)?.ok_or(AskError::Gone)
}

/// Reads what is there on a pipe, which is one message; `None` if the pipe has ended.
///
/// # Errors
/// Those of `read(2)`; `InvalidData` for what is no such message.
pub fn read<M: DeserializeOwned>(pipe: &OwnedFd) -> io::Result<Option<M>> {
    let mut bytes = [0; MAX_ANSWER];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut bytes))?;
    match bytes.get(..length) {
        Some(message) if !message.is_empty() => cgrant_wire::decode(message).map(Some).map_err(invalid),
        _ => Ok(None),
    }
}

/// Sends a message that something else follows, with the descriptors that belong to it.
///
/// # Errors
/// [`AskError`].
pub fn send<Q: Serialize>(helper: &Channel, request: &Q, fds: &[BorrowedFd<'_>]) -> Result<(), AskError> {
    let bytes = cgrant_wire::encode(request).map_err(invalid)?;
    helper.send(&bytes, fds).map_err(sending)
}

/// Answers a request. Nobody may be reading any more.
pub fn answer<A: Serialize>(pipe: &OwnedFd, answer: &A) {
    if let Ok(bytes) = cgrant_wire::encode(answer)
        && bytes.len() <= MAX_ANSWER
    {
        // An asker who has given up is no fault of ours.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(pipe, &bytes));
    }
}

/// Waits until something is there to read, or the descriptor's other end is gone; `false` if the time is up before.
///
/// # Errors
/// Those of `poll(2)`.
pub fn wait(fd: &impl AsFd, events: PollFlags, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(fd, events)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// As `poll(2)` wants it.
pub fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn invalid(error: cgrant_wire::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn sending(error: ChannelError) -> AskError {
    match error {
        ChannelError::Closed => AskError::Gone,
        ChannelError::Io(error) => AskError::Io(error),
        other => AskError::Io(io::Error::other(other)),
    }
}
