//! `pam_cgrant.so`: puts a login session into a delegated cgroup of its own, as CGManager's module did, on hosts that systemd
//! does not run (there, logind does it).
//!
//! It runs as root in sshd, login and su, so it does as little as can be: it asks the broker over the socket of CGManager's
//! interface and touches no cgroupfs itself. Nothing in it panics past the call, no call waits longer than was said, and no
//! descriptor is left open. A broker that is not there is no reason to keep anybody out, unless the administrator says so
//! (`--required`); a user who has as many sessions as may be is.
//!
//! | module | idea |
//! |---|---|
//! | [`options`], [`pattern`] | what the administrator wants; pure |
//! | [`message`] | D-Bus, as much as is needed; pure |
//! | [`manager`] | the connection and its calls |
//! | [`session`] | what is done with them |

pub mod manager;
pub mod message;
pub mod options;
pub mod pattern;
pub mod session;

use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    path::Path,
};

use cgrant_sys::pam::{Handle, Priority, SessionModule, Verdict};
use nix::unistd::{Group, User};

use self::{
    manager::{Manager, ManagerError},
    options::{OptionError, Options, is_required},
    pattern::{PatternError, Person},
    session::{Session, SessionError},
};

/// There if systemd runs the host (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// Why nothing was done, or not all.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The arguments.
    #[error("{0}; the session gets no cgroup")]
    Options(#[from] OptionError),
    /// The pattern.
    #[error("{0}; the session gets no cgroup")]
    Pattern(#[from] PatternError),
    /// The user.
    #[error("it is not known whose session it is, so it gets no cgroup")]
    NoUser,
    /// The session.
    #[error("the session gets no cgroup: {0}")]
    Session(#[from] SessionError),
    /// It is open, and can't be closed afterwards.
    #[error("there is no memory to note the session's cgroup, which will stay")]
    Memory,
    /// At its end.
    #[error("the session's cgroup can't be removed: {0}")]
    Close(#[from] ManagerError),
    /// A fault of ours.
    #[error("the module has a fault and gave up")]
    Panicked,
}

impl Fault {
    /// Could whoever it is about have brought it about? Then to be let in without a cgroup would be a way out of its limits.
    const fn is_users_doing(&self) -> bool {
        matches!(self, Self::Session(SessionError::NoNumber(_)))
    }
}

/// The module.
#[derive(Debug)]
pub struct Module;

cgrant_sys::pam_session_module!(Module);

impl SessionModule for Module {
    fn open_session(handle: &mut Handle, arguments: &[OsString]) -> Verdict {
        quiet();
        let outcome = guarded(|| open(handle, arguments));
        verdict(handle, outcome, is_required(arguments))
    }

    /// Nobody can be kept in.
    fn close_session(handle: &mut Handle, arguments: &[OsString]) -> Verdict {
        quiet();
        let outcome = guarded(|| close(handle, arguments));
        verdict(handle, outcome, false)
    }
}

/// What a panic says would go to the standard error of the program, which may be the user's.
fn quiet() {
    set_hook(Box::new(|_| ()));
}

fn guarded(act: impl FnOnce() -> Result<(), Fault>) -> Result<(), Fault> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(Fault::Panicked))
}

fn verdict(handle: &Handle, outcome: Result<(), Fault>, required: bool) -> Verdict {
    let Err(fault) = outcome else { return Verdict::Success };
    handle.log(Priority::Error, &fault);
    if required || fault.is_users_doing() { Verdict::SessionError } else { Verdict::Success }
}

fn open(handle: &mut Handle, arguments: &[OsString]) -> Result<(), Fault> {
    let options = Options::parse(arguments)?;
    if Path::new(SYSTEMD).is_dir() {
        handle.log(Priority::Debug, &"systemd runs this host, and sessions have its cgroups");
        return Ok(());
    }
    let person = person(handle.user())?;
    let way = options.pattern.way(&person, options.max_idx.is_some())?;
    let mut note = |priority, line: String| handle.log(priority, &line);
    let mut manager =
        Manager::connect(options.socket.as_deref(), options.timeout).map_err(SessionError::Manager)?;
    let session = session::open(&mut manager, &options, &person, &way, &mut note)?;
    if handle.keep(&session.to_word()) { Ok(()) } else { Err(Fault::Memory) }
}

fn close(handle: &Handle, arguments: &[OsString]) -> Result<(), Fault> {
    let options = Options::parse(arguments)?;
    let Some(session) = handle.kept().and_then(|word| Session::from_word(&word)) else { return Ok(()) };
    let mut manager = Manager::connect(options.socket.as_deref(), options.timeout)?;
    Ok(session::close(&mut manager, &session, options.prune_depth)?)
}

/// Who the user is.
fn person(user: Option<String>) -> Result<Person, Fault> {
    let user = user.ok_or(Fault::NoUser)?;
    let found = User::from_name(&user).ok().flatten().ok_or(Fault::NoUser)?;
    let group = Group::from_gid(found.gid).ok().flatten().map(|group| group.name);
    Ok(Person {
        user,
        uid: found.uid.as_raw(),
        group: group.unwrap_or_else(|| found.gid.to_string()),
        gid: found.gid.as_raw(),
        pid: std::process::id(),
        parent: std::os::unix::process::parent_id(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_fault_like_others() {
        assert!(matches!(guarded(|| panic!("on purpose")), Err(Fault::Panicked)));
        assert!(guarded(|| Ok(())).is_ok());
    }
}
