//! Starting the other programs: from a file that was opened when the broker started, with two descriptors'
//! worth of environment and nothing else.
//!
//! A child gets standard streams (input from nowhere, output to the log), its end of the control pair as
//! descriptor 3, no environment, and those signals blocked that its starter says. The file is held open so that a package upgrade under a
//! running broker does not mix two versions.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgrant_sys::{Channel, Clone3, Exit, Pidfd, privilege::close_fds_from, seqpacket};
use cgrant_wire::boot::CONTROL_FD;
use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::SigSet,
};
use rustix::fs::{CWD, Mode, OFlags};

/// Descriptors are moved up here before everything below is closed.
const ASIDE: i32 = 64;
/// Status of a child that could not become its program.
const NOT_STARTED: i32 = 127;

/// Why a program cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its file is nowhere.
    #[error("{name} is neither in {own} nor in {libexec}; is the installation complete?")]
    NotFound {
        /// The program.
        name: &'static str,
        /// Directory of who starts it.
        own: PathBuf,
        /// The directory for programs that people do not start.
        libexec: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot start {name}: {source}")]
    System {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A program that children are made of.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    file: OwnedFd,
}

impl Program {
    /// Opens the program `name` beside the running executable, or in `../libexec/cgrant` from there.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn find(name: &'static str) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { name, source };
        let me = std::env::current_exe().map_err(failed)?;
        let own = me.parent().unwrap_or(Path::new("/")).to_owned();
        let libexec = own.parent().unwrap_or(Path::new("/")).join("libexec/cgrant");
        for directory in [&own, &libexec] {
            match rustix::fs::openat(CWD, directory.join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            {
                Ok(file) => return Ok(Self { name, file }),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Err(ProcessError::NotFound { name, own, libexec })
    }

    /// Starts it with `arguments` and with the signals in `blocked` blocked.
    ///
    /// # Errors
    /// [`ProcessError::System`]. That the file is no program shows as a child that ends with status 127.
    pub fn start(&self, arguments: &[CString], blocked: &SigSet) -> Result<Process, ProcessError> {
        let failed = |source| ProcessError::System { name: self.name, source };
        let (control, theirs) = seqpacket::pair().map_err(failed)?;
        control.set_nonblocking(true).map_err(failed)?;
        let child = Clone3::new().spawn(|| self.become_it(arguments, blocked, &theirs)).map_err(failed)?;
        Ok(Process { pid: child.pid, pidfd: child.pidfd, control })
    }

    /// The child's part; returns only when it failed.
    fn become_it(&self, arguments: &[CString], blocked: &SigSet, control: &Channel) -> i32 {
        match self.execute(arguments, blocked, control) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("cannot start {}: {error}", self.name);
                NOT_STARTED
            }
        }
    }

    fn execute(&self, arguments: &[CString], blocked: &SigSet, control: &Channel) -> io::Result<Infallible> {
        blocked.thread_set_mask()?;
        let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(io::stderr())?;
        let control = rustix::io::fcntl_dupfd_cloexec(control.as_fd(), ASIDE)?;
        let file = rustix::io::fcntl_dupfd_cloexec(&self.file, ASIDE)?;
        close_fds_from(CONTROL_FD, &[control.as_raw_fd(), file.as_raw_fd()])?;
        // Everything from 3 up to here is closed, so the lowest free number is 3; this copy stays open at exec.
        if fcntl(&control, FcntlArg::F_DUPFD(CONTROL_FD))? != CONTROL_FD {
            return Err(rustix::io::Errno::BADF.into());
        }
        let name = CString::new(self.name)?;
        let argv: Vec<&CStr> =
            std::iter::once(name.as_c_str()).chain(arguments.iter().map(CString::as_c_str)).collect();
        let environment: [&CStr; 0] = [];
        Ok(nix::unistd::fexecve(&file, &argv, &environment)?)
    }
}

/// A child that runs.
#[derive(Debug)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: Pidfd,
    /// Our end of the pair; it does not block.
    pub control: Channel,
}

impl Process {
    /// Kills it. That it has ended already is no error.
    pub fn kill(&self) {
        let _ = self.pidfd.send_signal(cgrant_sys::pidfd::Signal::KILL);
    }
}

/// How a child ended, in words.
pub fn describe(exit: &Exit) -> String {
    match exit {
        Exit::Code(0) => "it ended".to_owned(),
        Exit::Code(code) => format!("it ended with status {code}"),
        Exit::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
            Ok(signal) => format!("it was killed by {signal}"),
            Err(_) => format!("it was killed by signal {number}"),
        },
    }
}
