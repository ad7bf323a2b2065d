//! What the processes of a job say to each other, over a SEQPACKET pair.

use std::os::fd::{BorrowedFd, OwnedFd};

use cgrant_image::Progress;
use cgrant_sys::{Channel, seqpacket::ChannelError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::exit;

/// From the keeper and the job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromWorker {
    /// The user namespace is made; its descriptor comes beside the message.
    Namespace,
    /// The job waits; its pidfd comes beside the message.
    Job,
    /// How it gets on.
    Told(Told),
    /// Its result.
    Done(Value),
    /// Why it has none.
    Failed(JobFailure),
}

/// To them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromOwner {
    /// The ids are mapped, and the job is in its cgroup.
    Go,
    /// The job shall end.
    Stop,
}

/// What a job tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// How far it has come.
    Progress(Progress),
    /// A line for whoever wants to know more.
    Line(String),
}

/// Why a job has no result: what crosses from its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobFailure {
    /// One sentence, with its causes. Lines after the first are what a program said.
    pub(crate) text: String,
    /// The exit code.
    pub(crate) code: u8,
}

impl JobFailure {
    /// What this machine refused.
    pub(crate) fn machine(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: exit::MACHINE }
    }

    /// An error with all its causes, which it does not repeat.
    pub(crate) fn of(error: &dyn std::error::Error, code: u8) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        Self { text, code }
    }
}

pub(super) fn send<T: Serialize>(
    channel: &Channel,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), ChannelError> {
    let bytes = serde_json::to_vec(message).map_err(|_| ChannelError::TooLong)?;
    channel.send(&bytes, fd.as_slice())
}

/// The next message and its descriptor; `None` when nobody is there to send one any more.
pub(super) fn receive<T: DeserializeOwned>(channel: &Channel) -> Option<(T, Option<OwnedFd>)> {
    let received = match channel.receive() {
        // An end that was closed with a message unread is told once, before what it had said (unix(7), ECONNRESET).
        Err(ChannelError::Closed) => channel.receive(),
        received => received,
    };
    let received = received.ok()??;
    let message = serde_json::from_slice(&received.bytes).ok()?;
    Some((message, received.fds.into_iter().next()))
}
