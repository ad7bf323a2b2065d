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
        signalfd::{SfdFlags, SignalFd},
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
    // A pid 1 without handlers loses its signals unless they are blocked. They are read from a descriptor and
    // not waited for with sigwait, which unblocks them meanwhile: the launcher looks at what is blocked here to
    // see whether a signal is taken.
    let all = SigSet::all();
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC).at(Step::Process, "signals")?;
    let before =
        all.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK).at(Step::Process, "signals")?;
    let child = Clone3::new()
        .spawn(|| {
            let _ = before.thread_set_mask();
            init::report(channel, execute())
        })
        .at(Step::Fork, "")?;
    // The launcher takes the end of the channel for the command's execve: only the child has it now.
    let keep = [child.pidfd.as_fd().as_raw_fd(), signals.as_fd().as_raw_fd()];
    cgrant_sys::privilege::close_fds_from(3, &keep).at(Step::Process, "descriptors")?;
    Ok(serve(&child.pidfd, Pid::from_raw(child.pid.cast_signed()), &signals))
}

fn serve(command: &Pidfd, pid: Pid, signals: &SignalFd) -> i32 {
    loop {
        let Ok(Some(info)) = signals.read_signal() else { continue };
        match Signal::try_from(info.ssi_signo.cast_signed()) {
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
