//! Signal dispositions and mask, as a program that is to be executed expects to find them.
//!
//! Source: `execve(2)`: ignored signals stay ignored and blocked ones blocked; `rt_sigaction(2)`.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// Highest signal number of the kernel, on every architecture that the broker is built for.
const LAST: libc::c_int = 64;
/// Size of the kernel's set of so many signals, in bytes.
const SET_SIZE: usize = 8;

/// Gives every signal its default action and unblocks all. Those that the C library keeps for itself (32 and 33)
/// are among them: what is executed next has its own.
///
/// # Errors
/// None that is known; what the kernel says otherwise.
pub fn reset() -> io::Result<()> {
    // The kernel's structure is no longer than this on any architecture, and all zero is the default action with
    // no flags and an empty mask.
    let default = [0_u64; 8];
    for signal in (1..=LAST).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)) {
        // SAFETY: the kernel reads its structure from a longer array and writes nothing (the pointer for the old
        // action is null). The default action runs no code of this process, so no handler can be unsound.
        let result = unsafe {
            let none = std::ptr::null_mut::<libc::c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, SET_SIZE)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// Ignores a signal, in what is executed next as well until that has an action of its own.
///
/// # Errors
/// `EINVAL` for a signal that can't be ignored.
pub fn ignore(signal: nix::sys::signal::Signal) -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, sigaction};

    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler is set, so no code of this process can run at a bad moment.
    unsafe { sigaction(signal, &ignored) }?;
    Ok(())
}

/// Does this process ignore a signal? So it does from its beginning if whoever executed it did (nohup(1)).
///
/// # Errors
/// None that is known; what the kernel says otherwise.
pub fn is_ignored(signal: nix::sys::signal::Signal) -> io::Result<bool> {
    // SAFETY: the structure is integers, a set of bits and an optional function, for all of which zero bytes are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set (the pointer to a new action is null), and what there is is written into a structure of its own.
    let result = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(action.sa_sigaction == libc::SIG_IGN) }
}
