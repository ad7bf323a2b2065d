//! The keeper: the one process that the scope always has.

use std::{
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, Stdio},
};

use cgrant_sys::Pidfd;
use nix::sys::signal::{SigSet, Signal};

/// The keeper's name among the host's processes.
pub const NAME: &str = "cgrant-keeper";

/// Starts a keeper. It is our child until this program ends, so its pid stays its own.
///
/// # Errors
/// What the kernel says to fork and exec.
pub fn start() -> io::Result<Starting> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(NAME).arg("keep");
    spawn(&mut command)
}

/// Starts a program of systemd's that becomes a keeper: `before` and then this program in the role `keep`.
///
/// # Errors
/// What the kernel says to fork and exec, or to finding out where this program is.
pub fn start_through(program: &str, before: &[&str]) -> io::Result<Starting> {
    let me = std::env::current_exe()?;
    let mut command = Command::new(program);
    command.args(before).arg(me).arg("keep");
    spawn(&mut command)
}

fn spawn(command: &mut Command) -> io::Result<Starting> {
    let child = command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Starting { child: Some(child) })
}

/// A keeper that is killed again unless [`Starting::settled`] is called; and that ends by itself if this program is
/// killed before, because it waits for a word on its standard input.
#[derive(Debug)]
pub struct Starting {
    child: Option<Child>,
}

impl Starting {
    /// Its pid.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Has it ended already?
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// It sits where it belongs: let it live when this program ends.
    ///
    /// # Errors
    /// `ESRCH` if it has ended already.
    pub fn settled(mut self) -> io::Result<Pidfd> {
        let child = self.child.as_mut().ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = Pidfd::open(child.id())?;
        if !pidfd.is_alive()? {
            return Err(rustix::io::Errno::SRCH.into());
        }
        child.stdin.take().ok_or(rustix::io::Errno::SRCH)?.write_all(&[0])?;
        self.child = None;
        Ok(pidfd)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The role `keep`: waits for the word that it sits where it belongs, then sleeps until SIGTERM, which systemd sends when
/// the scope is stopped.
pub fn keep() -> ExitCode {
    // Out of the session of whoever started the broker, so that the end of a terminal is not its end.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cgrant-keeper");
    if SigSet::all().thread_set_mask().is_err() {
        return ExitCode::FAILURE;
    }
    if io::stdin().read_exact(&mut [0]).is_err() {
        return ExitCode::FAILURE;
    }
    let mut end = SigSet::empty();
    end.add(Signal::SIGTERM);
    loop {
        match end.wait() {
            Ok(Signal::SIGTERM) => return ExitCode::SUCCESS,
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
