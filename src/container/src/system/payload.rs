//! The payload's cgroup, as the container's own user namespace may change it: cleaned before a reboot, entered by exec unless it is
//! frozen.

use std::{io, os::fd::OwnedFd};

use cgrant_sys::{Clone3, Dir};
use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    io::{Errno, read},
};

use crate::{
    failure::{At, Step, StepFailure},
    init::become_root,
};

/// The leaf for processes that come from outside into a payload that has cgroups of its own. The broker knows it by this name
/// too.
const LEAF: &str = ".cgrant";
/// Where a container sees its payload.
const ROOT: &str = "/sys/fs/cgroup";
const PROCS: &str = "cgroup.procs";
const FREEZE: &str = "cgroup.freeze";
const HANDED_DOWN: &str = "cgroup.subtree_control";
/// Longest list of controllers, in bytes.
const CONTROLLERS_MAX: usize = 4096;
/// Cgroups below each other: more than any system makes.
const DEPTH: usize = 32;

/// Removes the cgroups that an init before left, and hands no controller down any more: the kernel lets no process into a
/// cgroup that does. Cgroups that still have processes stay, with what is above them.
pub(crate) fn clean(payload: &OwnedFd) -> Result<(), StepFailure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(payload, ".", flags, Mode::empty()).at(Step::Clean, "")?;
    let directory = Dir::from_fd(directory).at(Step::Clean, "")?;
    remove_below(&directory, DEPTH);
    let handed_down = directory.read(HANDED_DOWN, CONTROLLERS_MAX).at(Step::Clean, HANDED_DOWN)?;
    for controller in handed_down.split_whitespace() {
        directory.write(HANDED_DOWN, &format!("-{controller}")).at(Step::Clean, controller)?;
    }
    Ok(())
}

fn remove_below(directory: &Dir, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else { return };
    for name in directory.dirs().unwrap_or_default() {
        if let Ok(inner) = directory.open_dir(&name) {
            remove_below(&inner, depth);
        }
        let _ = directory.remove_dir(&name);
    }
}

/// Puts this process into the cgroup whose `cgroup.procs` this is: with the rights, and in the cgroup namespace, of who opened it
/// (`cgroup_procs_write()`).
pub(crate) fn enter(procs: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::write(procs, b"0").map(drop)
}

/// From inside, in the payload's own cgroup namespace, as the container's root: its directory, what puts a process into it, and what puts
/// one into its leaf, which is made if it is not there.
pub(crate) fn open_inside() -> io::Result<[OwnedFd; 3]> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let payload = openat(rustix::fs::CWD, ROOT, directory, Mode::empty())?;
    match mkdirat(&payload, LEAF, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let procs = |path: &str| openat(&payload, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    let (own, leaf) = (procs(PROCS)?, procs(&format!("{LEAF}/{PROCS}"))?);
    Ok([payload, own, leaf])
}

/// Was it frozen through the broker? What is cloned into it stands still then, from its first instruction on.
pub(crate) fn is_frozen(payload: &OwnedFd) -> bool {
    let mut value = [0; 1];
    let file = openat(payload, FREEZE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.and_then(|file| read(&file, &mut value)).is_ok() && value == *b"1"
}

/// Where a process enters the payload of a running container: the leaf, made if it is not there, by a child that is the
/// container's root, to whom it then belongs. For a process in the container's user namespace that still has the account's uid.
pub(crate) fn entrance(payload: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(payload, LEAF, flags, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {}
        leaf => return Ok(leaf?),
    }
    let maker = Clone3::new().spawn(|| i32::from(make(payload).is_none()))?;
    maker.pidfd.wait()?;
    Ok(open()?)
}

fn make(payload: &OwnedFd) -> Option<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    become_root(true).ok()?;
    mkdirat(payload, LEAF, Mode::from_raw_mode(0o755)).ok()
}
