//! Signal dispositions and mask, as a program that is to be executed expects to find them.
//!
//! Source: `execve(2)`: ignored signals stay ignored and blocked ones blocked.

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

/// Gives every signal its default action and unblocks all.
///
/// # Errors
/// None that is known; what the kernel says otherwise.
pub fn reset() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action runs no code of this process, so there is no handler to be unsafe; the
        // old handler is not used.
        unsafe { sigaction(signal, &default) }?;
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}
