//! Processes that do not outlive the one that started them.

use std::{io, os::unix::process::CommandExt, process::Command};

use rustix::{
    io::Errno,
    process::{Signal, getpid, getppid, set_parent_process_death_signal},
};

/// Has the command's process get `signal` when the thread that starts it ends, however it does (prctl(2),
/// `PR_SET_PDEATHSIG`). The kernel forgets it where a set-user-ID program is executed.
pub fn ends_with_parent(command: &mut Command, signal: Signal) -> &mut Command {
    let parent = getpid();
    let prepare = move || {
        set_parent_process_death_signal(Some(signal))?;
        // It may have ended before the kernel was told.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
    };
    // SAFETY: between fork and exec it makes three system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, process::Stdio, thread};

    use super::*;

    #[test]
    fn who_is_started_ends_with_the_thread_that_did_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000").stdout(Stdio::piped());
            ends_with_parent(&mut command, Signal::TERM).spawn().unwrap()
        };
        let mut child = thread::spawn(start).join().unwrap();
        // The pipe ends with it.
        let read = child.stdout.take().unwrap().read(&mut [0; 8]).unwrap();
        assert_eq!(read, 0);
        assert!(!child.wait().unwrap().success());
    }
}
