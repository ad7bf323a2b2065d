//! The time between a container's start and its end: signals are passed on, the end is waited for.
//!
//! The container is in a session of its own, so the terminal's signals reach this process only. Pid 1 of a pid
//! namespace takes no default actions: where an ordinary process would be ended by a signal, the container is
//! ended here, so that ^C and SIGTERM do what people expect.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use cgrant_container::{Container, Disposition, Signal};
use cgrant_sys::signals::is_ignored;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal as NixSignal, raise},
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::run::Made;
use crate::error::Failure;

/// What is passed on. All but SIGWINCH end an ordinary process that has no handler.
const PASSED_ON: [NixSignal; 7] = [
    NixSignal::SIGHUP,
    NixSignal::SIGINT,
    NixSignal::SIGQUIT,
    NixSignal::SIGTERM,
    NixSignal::SIGUSR1,
    NixSignal::SIGUSR2,
    NixSignal::SIGWINCH,
];

fn machine<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Machine { doing, source: error.into() }
}

/// Those of the signals that are to be served. One that whoever started this program had ignored stays ignored (nohup(1), a
/// shell's background job): it would not be, once it is blocked.
pub(super) fn served(signals: impl IntoIterator<Item = NixSignal>) -> SigSet {
    signals.into_iter().filter(|signal| !is_ignored(*signal).unwrap_or(false)).collect()
}

/// Serves until the container's first process has ended; the exit status that it leaves.
pub(super) fn supervise(container: &Container, grant: &Made<'_>) -> Result<u8, Failure> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = served(PASSED_ON.into_iter().chain([NixSignal::SIGTSTP]));
    // Until here a signal ended this process, and the broker what it held.
    signals.thread_block().map_err(machine("hold signals"))?;
    let pending = SignalFd::with_flags(&signals, flags).map_err(machine("receive signals"))?;
    let mut ended_by = None;
    while !wait(container.as_fd(), pending.as_fd())? {
        while let Some(info) = pending.read_signal().map_err(machine("receive signals"))? {
            let number = info.ssi_signo.cast_signed();
            match NixSignal::try_from(number) {
                Ok(NixSignal::SIGTSTP) => stop(grant)?,
                Ok(signal) => ended_by = ended_by.or(pass_on(container, signal)),
                Err(_) => {}
            }
        }
    }
    let status = container.wait().map_err(machine("wait for the container"))?.status();
    Ok(ended_by.and_then(|signal| u8::try_from(128 + signal as i32).ok()).unwrap_or(status))
}

/// Waits for either; has the container ended?
fn wait(container: BorrowedFd<'_>, signals: BorrowedFd<'_>) -> Result<bool, Failure> {
    let mut fds = [PollFd::new(container, PollFlags::POLLIN), PollFd::new(signals, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(machine("wait for the container")(errno)),
    }
    Ok(fds.first().and_then(PollFd::any).unwrap_or(false))
}

/// Passes a signal on to the first process, or does in its place what it can't do; the signal, if the container
/// was ended for it.
fn pass_on(container: &Container, signal: NixSignal) -> Option<NixSignal> {
    let raw = Signal::from_named_raw(signal as i32)?;
    match container.disposition(raw) {
        Ok(Disposition::Ignores) => None,
        Ok(Disposition::Default) if signal != NixSignal::SIGWINCH => {
            // Whether it was in time shows in how the process ends; ESRCH: it has ended.
            container.signal(Signal::KILL).ok().map(|()| signal)
        }
        _ => {
            let _ = container.signal(raw);
            None
        }
    }
}

/// ^Z: everything in the container stops, then this process, as the shell wants it. What follows is `fg` or `bg`.
fn stop(grant: &Made<'_>) -> Result<(), Failure> {
    grant.freeze(true)?;
    raise(NixSignal::SIGSTOP).map_err(machine("stop"))?;
    grant.freeze(false)
}
