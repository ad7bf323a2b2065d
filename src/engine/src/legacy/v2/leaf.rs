//! The leaf: where the processes of a cgroup are, so that it may have cgroups with controllers too.
//!
//! The kernel enables controllers only in cgroups without processes of their own ("No Internal Process Constraint",
//! Documentation/admin-guide/cgroup-v2.rst). Clients expect a cgroup to have both. So a process that is moved into a cgroup goes
//! to a cgroup in it, which clients neither see nor name, and under all that bounds the one around it.
//!
//! Whoever owns the cgroup could make the leaf before us: it could as well move the processes of its cgroup to any other cgroup
//! in it that it made.

use std::io;

use cgrant_sys::Dir;
use rustix::{
    fs::{AtFlags, statat},
    io::Errno,
};

use super::super::path::LEAF;
use crate::cgroup::is_missing;

/// What processes and threads are moved by.
const MOVED_BY: [&str; 2] = ["cgroup.procs", "cgroup.threads"];
/// The mode of a new leaf, until it has that of its cgroup.
const MODE: u32 = 0o755;

/// The leaf of a cgroup, if it has one.
///
/// # Errors
/// Those of opening it.
pub fn behind(cgroup: &Dir) -> io::Result<Option<Dir>> {
    match cgroup.open_dir(LEAF) {
        Ok(leaf) => Ok(Some(leaf)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Is it the hierarchy's root? Nothing bounds that one, and it may have processes and controllers.
///
/// # Errors
/// Those of looking for a file that every other cgroup has.
pub fn is_root(cgroup: &Dir) -> io::Result<bool> {
    cgroup.exists("cgroup.events").map(|there| !there)
}

/// The cgroup that processes are to be moved into for them to be in this one.
///
/// That is the cgroup itself if it is the root, or has processes of its own: then it enables nothing. Else it is the leaf.
///
/// # Errors
/// What the kernel refuses.
pub fn entrance(cgroup: &Dir) -> io::Result<Dir> {
    if let Some(leaf) = behind(cgroup)? {
        return Ok(leaf);
    }
    if is_root(cgroup)? || has_processes(cgroup)? {
        return cgroup.try_clone();
    }
    match ensure(cgroup) {
        // No cgroup more is let in it (cgroup.max.descendants, cgroup.max.depth).
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => cgroup.try_clone(),
        other => other,
    }
}

/// Are there processes in the cgroup itself?
///
/// # Errors
/// Those of reading.
pub fn has_processes(cgroup: &Dir) -> io::Result<bool> {
    let file = cgroup.open_file(MOVED_BY[0], rustix::fs::OFlags::RDONLY)?;
    let mut byte = [0; 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut byte)) {
        Ok(count) => Ok(count > 0),
        // One of a threaded subtree: its processes show elsewhere.
        Err(Errno::OPNOTSUPP) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The leaf of a cgroup, made if it has none. It is as much somebody's as the cgroup is, but for its limits.
///
/// # Errors
/// What the kernel refuses.
pub fn ensure(cgroup: &Dir) -> io::Result<Dir> {
    match cgroup.make_dir(LEAF, MODE) {
        Ok(()) => (),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => return cgroup.open_dir(LEAF),
        Err(error) => return Err(error),
    }
    let leaf = cgroup.open_dir(LEAF)?;
    for file in MOVED_BY {
        let found = statat(cgroup, file, AtFlags::SYMLINK_NOFOLLOW)?;
        leaf.chown(file, found.st_uid, found.st_gid)?;
        leaf.chmod(file, found.st_mode & 0o777)?;
    }
    let found = rustix::fs::fstat(cgroup)?;
    leaf.chmod("", found.st_mode & 0o777)?;
    // The directory last: until then nobody but root makes anything in it.
    leaf.chown("", found.st_uid, found.st_gid)?;
    Ok(leaf)
}
