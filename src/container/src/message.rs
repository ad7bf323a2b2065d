//! What launcher, launch stage and first process say to each other over the launch's SEQPACKET pair.
//!
//! The launcher says one thing only: a [`crate::Placement`], once the ids are mapped.

use std::os::fd::{BorrowedFd, OwnedFd};

use cgrant_sys::seqpacket::Channel;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::failure::{LaunchError, StepFailure};

/// From the stage, and later from the container's first process, to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromStage {
    /// The stage is in a new user namespace, whose descriptor comes beside the message.
    UserNamespace,
    /// The first process exists; its pidfd comes beside the message.
    Init,
    /// Everything is set up; next comes execve. If it succeeds, the channel ends.
    Executing,
    /// A step failed; the sender ends.
    Failed(StepFailure),
}

/// Sends one message with at most one descriptor.
pub(crate) fn send<T: Serialize>(
    channel: &Channel,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), LaunchError> {
    let bytes = serde_json::to_vec(message).map_err(|_| LaunchError::OutOfTurn)?;
    Ok(channel.send(&bytes, fd.as_slice())?)
}

/// Receives one message and its descriptor; `None` when the other end is closed.
pub(crate) fn receive<T: DeserializeOwned>(
    channel: &Channel,
) -> Result<Option<(T, Option<OwnedFd>)>, LaunchError> {
    let Some(received) = channel.receive()? else { return Ok(None) };
    let message = serde_json::from_slice(&received.bytes).map_err(|_| LaunchError::OutOfTurn)?;
    Ok(Some((message, received.fds.into_iter().next())))
}
