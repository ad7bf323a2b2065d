//! The host keys of an SSH server in the root: those of an image are the same in every container that is made of it, and known to
//! whoever has the image.
//!
//! They are removed at the first start, and made anew by the root's own program (`ssh-keygen -A`), as Debian's package does when it is
//! installed: in the container, with the rights of its processes, before its init. An init could do that itself, but those that
//! have a unit for it are few.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{Clone3, Dir, pidfd::Signal};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, Mode, OFlags, openat, statat},
    io::Errno,
};

use super::personal::open;
use crate::{init::execute_first, spec::DEFAULT_PATH};

const PROGRAM: &std::ffi::CStr = c"/usr/bin/ssh-keygen";
const SERVER: &str = "/usr/sbin/sshd";
/// A program that takes longer is ended, and the container starts without keys.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Removes them, as the namespace's root.
pub(crate) fn forget(tree: &OwnedFd) -> io::Result<()> {
    let Ok(place) = open(tree, "etc/ssh") else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = Dir::from_fd(openat(place, ".", flags, Mode::empty())?)?;
    let names = directory.entries()?.into_iter().filter_map(|entry| entry.name.into_string().ok());
    names.filter(|name| is_key(name)).try_for_each(|name| directory.remove_file(name))
}

fn is_key(name: &str) -> bool {
    name.starts_with("ssh_host_") && (name.ends_with("_key") || name.ends_with("_key.pub"))
}

/// Makes those that are not there, if the root has a server. For the first process, in its tree and with no more rights than init.
/// A container without keys is one without an SSH server: no reason not to start.
pub(crate) fn make() -> io::Result<()> {
    if statat(CWD, SERVER, AtFlags::empty()).is_err() {
        return Ok(());
    }
    let argv = [c"ssh-keygen".to_owned(), c"-A".to_owned()];
    let path = std::ffi::CString::new(format!("PATH={DEFAULT_PATH}"))?;
    let maker = Clone3::new().spawn(|| {
        let Err(_) = execute_first(&[PROGRAM.to_owned()], &argv, &[path]);
        1
    })?;
    let mut ended = [PollFd::from_borrowed_fd(maker.pidfd.as_fd(), PollFlags::IN)];
    if !matches!(poll(&mut ended, Some(&PATIENCE)), Ok(1..) | Err(Errno::INTR)) {
        maker.pidfd.send_signal(Signal::KILL)?;
    }
    maker.pidfd.wait().map(drop)
}
