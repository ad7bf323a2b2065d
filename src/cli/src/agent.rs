//! Asking the person at the terminal for a password: polkit's own agent for terminals, for the time of a call.
//!
//! In a session it is a fallback: where an agent of the session is there, which has windows, polkit asks by that one.

use std::{
    env,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_proto::Agent;
use cgrant_sys::{Pidfd, companion::ends_with_parent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, Signal, kill_process};

/// Polkit's agent, as distributions have it beside polkit.
const PROGRAM: &str = "pkttyagent";
/// Set where there is a session (pam_systemd(8)).
const SESSION: &str = "XDG_SESSION_ID";
/// How long, in milliseconds, it may take until polkit knows it, or has it end; after that things go on without.
const PATIENCE: u16 = 10_000;

/// The agent for this process, while a call is under way that it may have to ask about.
#[derive(Debug, Default)]
pub(crate) struct TerminalAgent {
    running: Mutex<Option<Child>>,
}

impl TerminalAgent {
    fn running(&self) -> MutexGuard<'_, Option<Child>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent for TerminalAgent {
    /// Where there is no such program, or polkit does not take it, the broker's answer says what can be done.
    fn begin(&self) {
        *self.running() = start().ok();
    }

    fn end(&self) {
        if let Some(mut child) = self.running().take() {
            stop(&mut child);
        }
    }
}

impl Drop for TerminalAgent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the agent, which asks for whom started it, and waits until polkit knows it.
fn start() -> io::Result<Child> {
    let (mut known, notify) = io::pipe()?;
    let child = {
        // Another descriptor of it, which stays open in the program, and is closed here once that runs.
        let passed = rustix::io::dup(&notify)?;
        let number = passed.as_raw_fd().to_string();
        let mut command = Command::new(PROGRAM);
        command.args(["--notify-fd", &number]).stdin(Stdio::null()).stdout(Stdio::null());
        // Polkit has no use for a fallback where there is no session.
        if env::var_os(SESSION).is_some() {
            command.arg("--fallback");
        }
        ends_with_parent(&mut command, Signal::TERM).spawn()
    }?;
    drop(notify);
    // It closes the descriptor when it is registered, or when it has failed.
    if is_ready(known.as_fd()) {
        let _ = known.read(&mut [0; 1]);
    }
    Ok(child)
}

/// Ends it. It gives the terminal its echo back first.
fn stop(child: &mut Child) {
    let pid = Pid::from_child(child);
    let told = kill_process(pid, Signal::TERM).and_then(|()| kill_process(pid, Signal::CONT));
    let ended = told.is_ok() && Pidfd::open(child.id()).is_ok_and(|process| is_ready(process.as_fd()));
    if !ended {
        let _ = child.kill();
    }
    let _ = child.wait();
}

fn is_ready(fd: impl AsFd) -> bool {
    let mut awaited = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut awaited, PollTimeout::from(PATIENCE)).is_ok_and(|ready| ready > 0)
}
