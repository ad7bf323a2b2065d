//! Telling whoever waits for the broker how it is: the service manager, a script that reads standard
//! output, the command that went to the background.

use std::{io::Write, os::fd::OwnedFd};

use sd_notify::NotifyState;

/// The byte by which the background process says that it is ready.
pub const READY_BYTE: u8 = b'R';

/// Where readiness is said beside sd_notify(3).
#[derive(Debug)]
pub enum Listener {
    /// On standard output, as the line `READY`.
    Foreground,
    /// To the process that waits in the foreground.
    Pipe(OwnedFd),
    /// It has been said.
    Told,
}

/// Says how the broker is. Nobody listening is no error: READY is a service, not a condition.
#[derive(Debug)]
pub struct Announcer {
    listener: Listener,
}

impl Announcer {
    /// An announcer to `listener`.
    pub fn new(listener: Listener) -> Self {
        Self { listener }
    }

    /// Calls are answered from now on. The first time everybody is told, later the service manager only.
    pub fn ready(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("Serving")]);
        match std::mem::replace(&mut self.listener, Listener::Told) {
            Listener::Foreground => {
                let mut out = std::io::stdout().lock();
                let _ = out.write_all(b"READY\n").and_then(|()| out.flush());
            }
            Listener::Pipe(pipe) => {
                let _ = rustix::io::write(&pipe, &[READY_BYTE]);
            }
            Listener::Told => {}
        }
    }

    /// Something is amiss, in one sentence.
    pub fn status(&self, sentence: &str) {
        let _ = sd_notify::notify(&[NotifyState::Status(sentence)]);
    }

    /// The configuration is read again; followed by [`Announcer::ready`].
    pub fn reloading(&self) {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now().ok());
        let _ = sd_notify::notify(&states);
    }

    /// The broker ends.
    pub fn stopping(&self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("Ending")]);
    }
}
