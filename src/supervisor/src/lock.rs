//! The locks that keep an instance from running twice, and two instances from one another's directories.
//!
//! * `lock` in the runtime directory is held by the supervisor alone: a second one says so at once. So is
//!   `instance-NAME.lock` beside the record of ranges, which all instances of the host share: cgroups go by the
//!   instance's name, so a second one of that name would take the first one's for left over, whatever its directories.
//! * The run directory (`state` in the runtime directory) and the state directory themselves are locked through the
//!   very open files that the engine is given, so that the locks last until the supervisor **and** the engine have
//!   ended. A supervisor that starts after its predecessor was killed waits here until the old engine, which has seen
//!   its end, is gone.
//!
//! Every locked file or directory is root's alone, so nobody else can hold a lock and keep the broker from starting.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

/// How long the old engine may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked at; only while a broker starts beside the rest of an old one.
const LOOK: Duration = Duration::from_millis(20);

/// Why the instance cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another supervisor holds it.
    #[error(
        "another cgrantd ({holder}) runs this instance and holds {file}; end it first, or choose --instance for a second one with directories of its own"
    )]
    Taken {
        /// `process PID`, as that one wrote it.
        holder: String,
        /// The lock file.
        file: PathBuf,
    },
    /// The engine of a supervisor that is gone does not end, or another instance has the directory.
    #[error("another cgrantd, or the engine of an earlier one, still works in {0}")]
    InUse(PathBuf),
    /// The kernel said no.
    #[error("{path}: {source}")]
    System {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The supervisor's lock; it ends with this value, or with the process.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// Takes the supervisor's lock `name` in `directory`, whose path is `path`.
///
/// # Errors
/// [`LockError::Taken`] when another supervisor has it; [`LockError::System`].
pub fn lock_instance(directory: &OwnedFd, path: &Path, name: &str) -> Result<InstanceLock, LockError> {
    let named = path.join(name);
    let failed = |source: io::Error| LockError::System { path: named.clone(), source };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut file =
        File::from(rustix::fs::openat(directory, name, flags, mode).map_err(|e| failed(e.into()))?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(LockError::Taken { holder: holder(&mut file), file: named });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    file.set_len(0).and_then(|()| write!(file, "process {}", std::process::id())).map_err(failed)?;
    Ok(InstanceLock { _file: file })
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(64).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "just starting".to_owned(),
    }
}

/// Locks a directory of the engine's for this supervisor and the engines it will start, waiting for an old engine's end.
///
/// # Errors
/// [`LockError::InUse`] when that takes longer than 20 s; [`LockError::System`].
pub fn lock_directory(directory: &OwnedFd, path: &Path) -> Result<(), LockError> {
    lock_directory_within(directory, path, PATIENCE)
}

fn lock_directory_within(directory: &OwnedFd, path: &Path, patience: Duration) -> Result<(), LockError> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOOK),
            Err(Errno::WOULDBLOCK) => return Err(LockError::InUse(path.to_owned())),
            Err(errno) => return Err(LockError::System { path: path.to_owned(), source: errno.into() }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::dirs;

    #[test]
    fn a_second_supervisor_is_told_who_has_the_lock() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = dirs::open(scratch.path()).unwrap();
        let first = lock_instance(&directory, scratch.path(), "lock").unwrap();
        let second = lock_instance(&directory, scratch.path(), "lock").unwrap_err();
        let LockError::Taken { holder, .. } = second else { panic!("{second}") };
        assert_eq!(holder, format!("process {}", std::process::id()));
        drop(first);
        lock_instance(&directory, scratch.path(), "lock").unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_dead_supervisor_is_no_obstacle() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("lock"), "process 4194304, long gone").unwrap();
        let directory = dirs::open(scratch.path()).unwrap();
        let _lock = lock_instance(&directory, scratch.path(), "lock").unwrap();
        let text = std::fs::read_to_string(scratch.path().join("lock")).unwrap();
        assert_eq!(text, format!("process {}", std::process::id()));
    }

    #[test]
    fn a_link_in_place_of_the_lock_file_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let victim = scratch.path().join("victim");
        std::fs::write(&victim, "keep").unwrap();
        std::os::unix::fs::symlink(&victim, scratch.path().join("lock")).unwrap();
        let directory = dirs::open(scratch.path()).unwrap();
        assert!(matches!(lock_instance(&directory, scratch.path(), "lock"), Err(LockError::System { .. })));
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "keep");
    }

    #[test]
    fn a_directory_stays_locked_while_a_copy_of_its_descriptor_lives() {
        let scratch = tempfile::tempdir().unwrap();
        let supervisors = dirs::open(scratch.path()).unwrap();
        lock_directory(&supervisors, scratch.path()).unwrap();
        let engines = supervisors.try_clone().unwrap();
        drop(supervisors);
        let next = dirs::open(scratch.path()).unwrap();
        let early = lock_directory_within(&next, scratch.path(), Duration::from_millis(50));
        assert!(matches!(early, Err(LockError::InUse(_))));
        drop(engines);
        lock_directory(&next, scratch.path()).unwrap();
    }
}
