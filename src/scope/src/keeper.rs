//! The keeper: the one process that the scope always has.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitCode, Stdio},
};

use cgrant_sys::Pidfd;
use nix::sys::signal::{SigSet, Signal};

/// Starts a keeper. It is our child until this program ends, so its pid stays its own.
///
/// # Errors
/// What the kernel says to fork and exec.
pub fn start() -> io::Result<Starting> {
    let child = Command::new("/proc/self/exe")
        .arg0("cgrant-keeper")
        .arg("keep")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Starting { child: Some(child) })
}

/// A keeper that is killed again unless [`Starting::settled`] is called.
#[derive(Debug)]
pub struct Starting {
    child: Option<Child>,
}

impl Starting {
    /// Its pid.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// It sits where it belongs: let it live when this program ends.
    ///
    /// # Errors
    /// `ESRCH` if it has ended already.
    pub fn settled(mut self) -> io::Result<Pidfd> {
        let child = self.child.take().ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = Pidfd::open(child.id())?;
        if !pidfd.is_alive()? {
            return Err(rustix::io::Errno::SRCH.into());
        }
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

/// The role `keep`: sleeps until SIGTERM, which systemd sends when the scope is stopped.
pub fn keep() -> ExitCode {
    // Out of the session of whoever started the broker, so that the end of a terminal is not its end.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"cgrant-keeper");
    if SigSet::all().thread_set_mask().is_err() {
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
