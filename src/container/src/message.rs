//! What launcher, launch stage and first process say to each other over the launch's SEQPACKET pair.

use std::os::fd::{BorrowedFd, OwnedFd};

use cgrant_sys::seqpacket::{Channel, ChannelError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    failure::{LaunchError, StepFailure},
    launch::Placement,
};

/// From the stage, and later from the container's first process, to the launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromStage {
    /// The stage is in a new user namespace, whose descriptor comes beside the message.
    UserNamespace,
    /// Follows the first if links are wanted: the network namespace, made with the user namespace and owned by it.
    NetworkNamespace,
    /// The first process exists; its pidfd comes beside the message.
    Init,
    /// Everything is set up; next comes execve. If it succeeds, the channel ends.
    Executing,
    /// A step failed; the sender ends.
    Failed(StepFailure),
}

/// From the launcher to the stage, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromLauncher {
    /// The grant is made and its ids are mapped.
    Mapped(Placement),
    /// The stage is attached to the grant; a descriptor of the payload comes beside the message, unless the stage is in that.
    Attached,
}

/// Sends one message with at most one descriptor.
pub(crate) fn send<T: Serialize>(
    channel: &Channel,
    message: &T,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), LaunchError> {
    send_all(channel, message, fd.as_slice())
}

/// Sends one message with these descriptors.
pub(crate) fn send_all<T: Serialize>(
    channel: &Channel,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), LaunchError> {
    let bytes = serde_json::to_vec(message).map_err(|_| LaunchError::OutOfTurn)?;
    Ok(channel.send(&bytes, fds)?)
}

/// Receives one message and its descriptor; `None` when the other end is closed.
pub(crate) fn receive<T: DeserializeOwned>(
    channel: &Channel,
) -> Result<Option<(T, Option<OwnedFd>)>, LaunchError> {
    Ok(receive_all(channel)?.map(|(message, fds)| (message, fds.into_iter().next())))
}

/// Receives one message and its descriptors; `None` when the other end is closed.
pub(crate) fn receive_all<T: DeserializeOwned>(
    channel: &Channel,
) -> Result<Option<(T, Vec<OwnedFd>)>, LaunchError> {
    let received = match channel.receive() {
        // An end that was closed with a message unread is told once, before what it had said (unix(7), ECONNRESET).
        Err(ChannelError::Closed) => channel.receive()?,
        received => received?,
    };
    let Some(received) = received else { return Ok(None) };
    let message = serde_json::from_slice(&received.bytes).map_err(|_| LaunchError::OutOfTurn)?;
    Ok(Some((message, received.fds)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::fd::AsFd;

    use cgrant_sys::seqpacket::pair;

    use super::*;
    use crate::Step;

    #[test]
    fn messages_and_their_descriptor_arrive() {
        let (near, far) = pair().unwrap();
        let failure = StepFailure { step: Step::Mount, subject: "\u{fffd} \" x".into(), errno: 13 };
        send(&near, &FromStage::Failed(failure.clone()), None).unwrap();
        send(&near, &FromStage::UserNamespace, Some(std::io::stdin().as_fd())).unwrap();
        let placement = Placement { hostname: "x".into(), ids: 7, network: None };
        send(&near, &FromLauncher::Mapped(placement.clone()), None).unwrap();
        let (message, fd) = receive(&far).unwrap().unwrap();
        assert_eq!((message, fd.is_none()), (FromStage::Failed(failure), true));
        let (message, fd) = receive(&far).unwrap().unwrap();
        assert_eq!((message, fd.is_some()), (FromStage::UserNamespace, true));
        assert_eq!(receive::<FromLauncher>(&far).unwrap().unwrap().0, FromLauncher::Mapped(placement));
        drop(near);
        assert!(receive::<FromLauncher>(&far).unwrap().is_none());
    }

    #[test]
    fn last_words_arrive_though_the_speaker_did_not_listen() {
        let (near, far) = pair().unwrap();
        send(&far, &FromLauncher::Attached, None).unwrap();
        send(&near, &FromStage::Executing, None).unwrap();
        drop(near);
        assert_eq!(receive::<FromStage>(&far).unwrap().unwrap().0, FromStage::Executing);
        assert!(receive::<FromStage>(&far).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let (near, far) = pair().unwrap();
        near.send(b"{}", &[]).unwrap();
        assert!(matches!(receive::<FromStage>(&far), Err(LaunchError::OutOfTurn)));
        near.send(b"\"Init\" x", &[]).unwrap();
        assert!(matches!(receive::<FromStage>(&far), Err(LaunchError::OutOfTurn)));
    }
}
