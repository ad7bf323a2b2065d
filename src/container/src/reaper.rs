//! A tiny pid 1: starts the command as its child, reaps what is orphaned, passes signals on, ends as the
//! command ends.
//!
//! It stays what it was set up as: not dumpable, so that nothing inside can read the launcher's memory out
//! of it.

use std::os::fd::{AsFd, AsRawFd};

use cgrant_sys::{Channel, Clone3, Pidfd, pidfd::Signal as PidfdSignal};
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    failure::{At, Step, StepFailure},
    init,
};

/// Runs `execute` in a child and gives the exit status of the whole: the command's own, or 128 + the signal
/// that ended it, because pid 1 of a namespace can't die of one.
pub(crate) fn run(channel: &Channel, execute: impl FnOnce() -> StepFailure) -> Result<i32, StepFailure> {
    // Signals that would be lost on a pid 1 without handlers are kept for `wait` while they are blocked.
    let all = SigSet::all();
    let before =
        all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK).at(Step::Process, "signals")?;
    let child = Clone3::new()
        .spawn(|| {
            let _ = before.thread_set_mask();
            init::report(channel, execute())
        })
        .at(Step::Fork, "")?;
    // The launcher takes the end of the channel for the command's execve: only the child has it now.
    cgrant_sys::privilege::close_fds_from(3, &[child.pidfd.as_fd().as_raw_fd()])
        .at(Step::Process, "descriptors")?;
    Ok(serve(&child.pidfd, Pid::from_raw(child.pid.cast_signed()), &all))
}

fn serve(command: &Pidfd, pid: Pid, signals: &SigSet) -> i32 {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(pid) {
                    return status;
                }
            }
            Ok(signal) => pass_on(command, signal),
            Err(_) => {}
        }
    }
}

/// Reaps everything that has ended; the command's exit status if it was among it.
fn reap(command: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => return Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return None,
            Ok(_) | Err(_) => {}
        }
    }
}

fn pass_on(command: &Pidfd, signal: Signal) {
    if let Some(signal) = PidfdSignal::from_named_raw(signal as i32) {
        // The command may be a zombie by now; SIGCHLD follows.
        let _ = command.send_signal(signal);
    }
}
