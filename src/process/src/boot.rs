//! The first steps of a process, and what it says when one of them fails.

use std::{os::fd::OwnedFd, process::ExitCode};

use cgrant_sys::{inherited, seqpacket::Channel};
use cgrant_wire::boot::{CONTROL_FD, FromChild, ToChild};

/// Why the process can't start or go on. The sentence goes to the administrator.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// There is no supervisor, or it did not say what it should.
    #[error("it is started by cgrantd, not by hand: {0}")]
    NotStarted(String),
    /// A step failed.
    #[error("{what}: {reason}")]
    Step {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// Turns a failure of `what` into a sentence.
///
/// # Errors
/// [`BootError::Step`] for an error.
pub fn step<T, E: std::fmt::Display>(what: &'static str, result: Result<T, E>) -> Result<T, BootError> {
    result.map_err(|error| BootError::Step { what, reason: error.to_string() })
}

/// Lives the `life` of a process, `program`, that was started with its channel to the supervisor as descriptor
/// [`CONTROL_FD`]. If it fails the supervisor is told, and the log.
pub fn run(program: &str, life: impl FnOnce(&Channel) -> Result<(), BootError>) -> ExitCode {
    let control = match inherited::take(CONTROL_FD).and_then(Channel::from_fd) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("{program}: {}", BootError::NotStarted(error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match life(&control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "{program} can't go on");
            if let Ok(bytes) = cgrant_wire::encode(&FromChild::Failed(error.to_string())) {
                // The supervisor may be gone, which is one of the reasons to be here.
                let _ = control.send(&bytes, &[]);
            }
            ExitCode::FAILURE
        }
    }
}

/// The first message of the supervisor, of which `wanted` gives what is for this kind of process, and its descriptors.
///
/// # Errors
/// [`BootError::NotStarted`] if none comes, or another one.
pub fn receive<B>(
    control: &Channel,
    wanted: impl FnOnce(ToChild) -> Option<B>,
) -> Result<(B, Vec<OwnedFd>), BootError> {
    let no_boot = |reason: String| BootError::NotStarted(reason);
    let received = control
        .receive()
        .map_err(|error| no_boot(error.to_string()))?
        .ok_or_else(|| no_boot("no boot message".into()))?;
    let boot = cgrant_wire::decode(&received.bytes).ok().and_then(wanted);
    let boot = boot.ok_or_else(|| no_boot("the first message is not its boot message".into()))?;
    Ok((boot, received.fds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cgrant_sys::seqpacket;

    use super::*;

    #[test]
    fn only_the_own_boot_message_begins_a_process() {
        let (ours, supervisors) = seqpacket::pair().unwrap();
        let net = |message| if let ToChild::Net(boot) = message { Some(boot) } else { None };
        supervisors.send(&cgrant_wire::encode(&ToChild::Stop).unwrap(), &[]).unwrap();
        assert!(matches!(receive(&ours, net), Err(BootError::NotStarted(_))));
        supervisors.send(&[0xff; 7], &[]).unwrap();
        assert!(matches!(receive(&ours, net), Err(BootError::NotStarted(_))));
        supervisors.send(&cgrant_wire::encode(&ToChild::Stop).unwrap(), &[]).unwrap();
        assert!(receive(&ours, |message| matches!(message, ToChild::Stop).then_some(())).is_ok());
        drop(supervisors);
        assert!(matches!(receive(&ours, net), Err(BootError::NotStarted(_))));
    }
}
