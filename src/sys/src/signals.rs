//! Signal dispositions and mask, as a program that is to be executed expects to find them.
//!
//! Source: `execve(2)`: ignored signals stay ignored and blocked ones blocked.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Gives every signal its default action, the real-time ones too, and unblocks all.
///
/// # Errors
/// None that is known; what the kernel says otherwise.
pub fn reset() -> io::Result<()> {
    for number in (1..=libc::SIGRTMAX()).filter(|number| is_settable(*number)) {
        // SAFETY: the default action runs no code of this process, so there is no handler to be unsafe.
        if unsafe { libc::signal(number, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Those between the standard and the real-time ones (32, 33) are libc's own: it sets them when it needs them.
fn is_settable(number: libc::c_int) -> bool {
    !matches!(number, libc::SIGKILL | libc::SIGSTOP) && (number <= libc::SIGSYS || number >= libc::SIGRTMIN())
}
