//! Going to the background: the command that was typed returns when the broker is ready, or has failed.

use std::io;

use cgrant_sys::{Clone3, Exit};
use rustix::{
    fs::{CWD, Mode, OFlags},
    pipe::PipeFlags,
};

use crate::{
    error::SupervisorError,
    ready::{Listener, READY_BYTE},
};

/// Runs `serve` in a process of its own session and waits until it is ready. Its log stays on standard error.
///
/// # Errors
/// [`SupervisorError::BackgroundFailed`] after it has said why; [`SupervisorError::System`].
pub fn run(serve: impl FnOnce(Listener) -> i32) -> Result<(), SupervisorError> {
    let (wait, tell) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(SupervisorError::system("pipe"))?;
    let child = Clone3::new()
        .spawn(move || match detach() {
            Ok(()) => serve(Listener::Pipe(tell)),
            Err(errno) => {
                eprintln!("cgrantd: cannot leave the foreground: {errno}");
                1
            }
        })
        .map_err(SupervisorError::system("clone3"))?;
    let mut byte = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut byte));
    if read == Ok(1) && byte == [READY_BYTE] {
        return Ok(());
    }
    match child.pidfd.wait() {
        Ok(Exit::Code(0)) => Ok(()),
        _ => Err(SupervisorError::BackgroundFailed),
    }
}

fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(nix::unistd::dup2_stdout(&null)?)
}
