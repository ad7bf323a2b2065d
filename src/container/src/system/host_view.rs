//! `/run/host`: what a container's systemd is told of its manager (systemd's CONTAINER_INTERFACE), on a tmpfs of its own,
//! which is read-only once it is made.
//!
//! | entry | what it is |
//! |---|---|
//! | `container-manager`, `container-uuid` | as in the environment |
//! | `os-release` | the host's |
//! | `notify` | the monitor's datagram socket |
//! | `credentials/` | credentials, for root alone |
//! | `inaccessible/` | things without any rights, to be bound over others; no device nodes: a user namespace can't make any |

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use cgrant_sys::mount::{MountChange, fs_mount, mount_setattr, move_mount};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fchmod, mkdirat, mknodat, openat},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
};

use super::{environment::MANAGER, spec::Prepared};
use crate::{
    failure::{At, Step, StepFailure},
    root::{READ_ONLY, SAFE},
};

/// Where it is mounted, from the root.
const PLACE: &str = "run/host";

/// It, not yet read-only.
#[derive(Debug)]
pub(crate) struct HostView {
    mount: OwnedFd,
    /// The socket that the container's init notifies.
    pub(crate) notify: OwnedFd,
}

impl HostView {
    /// Makes and mounts it in `tree`, whose `/run` is there.
    pub(crate) fn make(tree: &OwnedFd, spec: &Prepared, os_release: &str) -> Result<Self, StepFailure> {
        let mount = fs_mount("tmpfs", &[("mode", Some("0755"))], SAFE).at(Step::HostView, "")?;
        let files = [
            ("container-manager", MANAGER.to_owned()),
            ("container-uuid", spec.machine.hyphenated()),
            ("os-release", os_release.to_owned()),
        ];
        for (name, text) in files {
            write(&mount, name, text.as_bytes(), 0o444).at(Step::HostView, name)?;
        }
        make_inaccessible(&mount).at(Step::HostView, "inaccessible")?;
        write_credentials(&mount, &spec.credentials).at(Step::HostView, "credentials")?;
        let notify = listen(&mount).at(Step::HostView, "notify")?;
        mkdirat(tree, PLACE, Mode::from_raw_mode(0o755)).at(Step::HostView, "")?;
        move_mount(&mount, tree, PLACE.as_ref()).at(Step::HostView, "")?;
        Ok(Self { mount, notify })
    }

    /// Nobody writes there any more; sockets take messages all the same.
    pub(crate) fn seal(&self) -> Result<(), StepFailure> {
        let change = MountChange { set: READ_ONLY, ..MountChange::default() };
        mount_setattr(&self.mount, &change).at(Step::HostView, "")
    }
}

fn write(directory: &impl AsFd, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    io::Write::write_all(&mut std::fs::File::from(file.try_clone()?), bytes)?;
    Ok(fchmod(&file, Mode::from_raw_mode(mode))?)
}

fn make_inaccessible(mount: &OwnedFd) -> io::Result<()> {
    const DIRECTORY: &str = "inaccessible";
    mkdirat(mount, DIRECTORY, Mode::from_raw_mode(0o755))?;
    let nothing = Mode::empty();
    mkdirat(mount, "inaccessible/dir", nothing)?;
    for (name, kind) in [("reg", FileType::RegularFile), ("fifo", FileType::Fifo), ("sock", FileType::Socket)]
    {
        mknodat(mount, format!("{DIRECTORY}/{name}"), kind, nothing, 0)?;
    }
    Ok(())
}

fn write_credentials(mount: &OwnedFd, credentials: &[(String, Vec<u8>)]) -> io::Result<()> {
    if credentials.is_empty() {
        return Ok(());
    }
    mkdirat(mount, "credentials", Mode::from_raw_mode(0o700))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(mount, "credentials", flags, Mode::empty())?;
    credentials.iter().try_for_each(|(name, value)| write(&directory, name, value, 0o400))
}

/// Init may write to it, and no other user of the container's. Who wrote is told with each message.
fn listen(mount: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    let path = format!("/proc/self/fd/{}/notify", mount.as_raw_fd());
    bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())?;
    Ok(socket)
}
