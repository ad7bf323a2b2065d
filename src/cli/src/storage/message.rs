//! What the processes of a job say to each other, over a SEQPACKET pair.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

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
    /// It has said something on a channel of its own, and waits for the answer.
    Asks,
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

    /// What can't be because something else is.
    pub(crate) fn refused(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: exit::REFUSED }
    }

    /// An error with all its causes, which it does not repeat.
    pub(crate) fn of(error: &dyn std::error::Error, code: u8) -> Self {
        let mut text = error.to_string();
        let mut advice = None;
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            advice = advice.or_else(|| error.downcast_ref().and_then(room));
            cause = error.source();
        }
        Self { text: advised(text, advice), code }
    }

    /// What the kernel refused this machine.
    pub(crate) fn kernel(what: &str, error: &io::Error) -> Self {
        Self::machine(advised(format!("{what}: {error}"), room(error)))
    }
}

/// What to do where there is no room for files.
pub(crate) fn room(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull => Some("the disk is full: make room on it"),
        io::ErrorKind::QuotaExceeded => {
            Some("the disk quota of your account is reached: make room, or ask the administrator for more")
        }
        _ => None,
    }
}

fn advised(text: String, advice: Option<&str>) -> String {
    advice.map(|advice| format!("{text}; {advice}")).unwrap_or(text)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{io, os::fd::AsFd};

    use cgrant_image::{ImportError, UnpackError, build::BuildError, store::StoreError};
    use cgrant_sys::seqpacket::pair;

    use super::*;
    use crate::error::Failure;

    #[test]
    fn a_failure_names_its_causes_once_and_has_the_code_of_the_inmost() {
        let denied = || io::Error::from_raw_os_error(13);
        let error = StoreError::Use { what: "x".into(), source: denied() };
        let failure = JobFailure::from(error);
        assert_eq!(
            failure.text,
            "`x` in the data directory could not be used: Permission denied (os error 13)"
        );
        assert_eq!(failure.code, exit::MACHINE);
        // What is transparent is not said twice.
        let failure = JobFailure::from(ImportError::Unpack(UnpackError::Directory(denied())));
        assert_eq!(failure.text.matches("Permission denied").count(), 1, "{}", failure.text);
        assert_eq!(failure.code, exit::MACHINE);
        assert_eq!(JobFailure::from(ImportError::NoSystem).code, exit::SOURCE);
        assert_eq!(JobFailure::from(StoreError::UnknownImage("x".into())).code, exit::REFUSED);
    }

    #[test]
    fn what_a_builder_said_last_keeps_its_lines_and_nothing_else() {
        let last = vec!["E: one".to_owned(), "E: \x1b[1mtwo".to_owned()];
        let failed = JobFailure::from(BuildError::Failed { status: "status 3".into(), last });
        let line = Failure::work("build x", failed).line();
        assert!(line.starts_with("cgrant: cannot build x: mmdebstrap failed (status 3)"), "{line}");
        assert!(line.ends_with("\nE: one\nE: \u{fffd}[1mtwo"), "{line:?}");
    }

    #[test]
    fn messages_and_last_words_arrive() {
        let (near, far) = pair().unwrap();
        send(&far, &FromWorker::Namespace, Some(io::stdin().as_fd())).unwrap();
        send(&near, &FromOwner::Go, None).unwrap();
        let large = "x".repeat(1 << 20);
        send(&far, &FromWorker::Done(large.clone().into()), None).unwrap();
        // With what it was told unread.
        drop(far);
        assert!(matches!(receive(&near), Some((FromWorker::Namespace, Some(_)))));
        assert!(matches!(receive(&near), Some((FromWorker::Done(value), None)) if value == large.as_str()));
        assert!(receive::<FromWorker>(&near).is_none());
    }
}
