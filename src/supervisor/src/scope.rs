//! The scope that systemd gives: asked for by a one-shot helper, which alone speaks with systemd.

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use cgrant_sys::{Exit, Pidfd, Received};
use cgrant_wire::boot::ScopeReport;
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    args::InstanceName,
    process::{Process, ProcessError, Program},
};

/// How long the helper may take; its own limit is shorter.
const PATIENCE: Duration = Duration::from_secs(60);
/// There on every host that systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The helper said why.
    #[error("no cgroup from systemd: {0}")]
    Refused(String),
    /// The helper ended without a word, or spoke nonsense.
    #[error("no cgroup from systemd: the helper cgrant-scope failed")]
    NoAnswer,
    /// The helper could not be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// What the broker has from systemd.
#[derive(Debug)]
pub struct Scope {
    /// Where it lies.
    pub report: ScopeReport,
    /// The process that holds it.
    pub keeper: Pidfd,
}

/// Does systemd run this host?
pub fn systemd_runs() -> bool {
    std::fs::symlink_metadata(Path::new(BOOTED)).is_ok_and(|metadata| metadata.is_dir())
}

/// Name of the scope's unit.
fn unit(instance: &InstanceName) -> String {
    if instance.is_default() {
        "cgrant.scope".to_owned()
    } else {
        format!("cgrant-{}.scope", instance.as_str())
    }
}

/// Gets the scope of `instance`, the one that lives or a new one.
///
/// # Errors
/// [`ScopeError`].
pub fn obtain(helper: &Program, instance: &InstanceName) -> Result<Scope, ScopeError> {
    let unit = CString::new(unit(instance)).map_err(|_| ScopeError::NoAnswer)?;
    let process = helper.start(&[CString::from(c"make"), unit], &SigSet::empty())?;
    let answer = answer(&process);
    if answer.is_none() {
        process.kill();
    }
    let _ = process.pidfd.wait();
    let received = answer.ok_or(ScopeError::NoAnswer)?;
    let report: Result<ScopeReport, String> =
        cgrant_wire::decode(&received.bytes).map_err(|_| ScopeError::NoAnswer)?;
    let report = report.map_err(ScopeError::Refused)?;
    let keeper = received.fds.into_iter().next().ok_or(ScopeError::NoAnswer)?;
    let keeper = Pidfd::from_fd(keeper).map_err(|_| ScopeError::NoAnswer)?;
    Ok(Scope { report, keeper })
}

/// Gives the scope back if no grant is left in it; one that is needed stays.
///
/// # Errors
/// [`ScopeError::NoAnswer`], [`ScopeError::Process`].
pub fn leave(helper: &Program, scope: &Scope) -> Result<(), ScopeError> {
    let process = helper.start(&[CString::from(c"leave")], &SigSet::empty())?;
    let message = cgrant_wire::encode(&scope.report).map_err(|_| ScopeError::NoAnswer)?;
    process.control.send(&message, &[scope.keeper.as_fd()]).map_err(|_| ScopeError::NoAnswer)?;
    if !becomes_readable(process.pidfd.as_fd()) {
        process.kill();
    }
    match process.pidfd.wait() {
        Ok(Exit::Code(0)) => Ok(()),
        _ => Err(ScopeError::NoAnswer),
    }
}

/// Ends everything that runs in grants of `instance` within `seconds`; did it all end in order? What did not, the helper names.
///
/// Waits for the helper without limit: that has one of its own.
///
/// # Errors
/// [`ScopeError::NoAnswer`], [`ScopeError::Process`].
pub fn end_all(helper: &Program, instance: &InstanceName, seconds: u32) -> Result<bool, ScopeError> {
    let argument = |text: &str| CString::new(text).map_err(|_| ScopeError::NoAnswer);
    let (name, unit) = (argument(instance.as_str())?, argument(&unit(instance))?);
    let arguments = [c"end".to_owned(), name, unit, argument(&seconds.to_string())?];
    let process = helper.start(&arguments, &SigSet::empty())?;
    match process.pidfd.wait() {
        Ok(Exit::Code(code)) => Ok(code == 0),
        _ => Err(ScopeError::NoAnswer),
    }
}

/// The helper's one message, if it comes in time.
fn answer(process: &Process) -> Option<Received> {
    if !becomes_readable(process.control.as_fd()) {
        return None;
    }
    process.control.receive().ok().flatten()
}

/// Waits until there is something to read (of a pidfd: its end), at most as long as the helper may take.
fn becomes_readable(fd: BorrowedFd<'_>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_instance_has_a_unit_of_its_own() {
        assert_eq!(unit(&"default".parse().unwrap()), "cgrant.scope");
        assert_eq!(unit(&"test-2".parse().unwrap()), "cgrant-test-2.scope");
    }
}
