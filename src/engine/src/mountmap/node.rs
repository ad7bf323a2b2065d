//! A node of a device that belongs to a container's root, as a mount.
//!
//! The host's own node can't be shown instead: nobody in the container is its owner or in its group, and its file system
//! (devtmpfs) takes no id map. So the worker makes another one of the same number, alone on a tmpfs of its own.
//!
//! **What an attacker could want, and why it can't have it.** It gets a mount whose root is the node.
//!
//! * *Another device*: kind and number are those of the descriptor that the engine looked at, and no call changes a node's number.
//! * *More nodes*: the file system belongs to the host's user namespace, so that making one there needs the host's `CAP_MKNOD`;
//!   no directory of it is reached from its node, and its flags can't be changed by who has the mount.
//! * *Devices of a group that it is not in, or that the group may not use*: the kernel is asked on behalf of a process that is in
//!   this group and is nobody otherwise, access control lists included.
//! * *Mounts on the host*: the worker's mount namespace is a copy that passes nothing on.
//! * *To use up what the host has*: mounts are counted to the account as mount namespaces, one each ([`counted_to`]).

use std::{io, os::fd::OwnedFd, path::Path};

use cgrant_sys::{
    Clone3, Exit,
    mount::{
        MountAttrFlags, MountChange, MountPropagationFlags, fs_mount, mount_setattr, move_mount, open_place,
        open_tree_clone,
    },
    privilege,
};
use nix::{
    fcntl::AtFlags as NixAtFlags,
    sched::{CloneFlags, unshare},
    unistd::{AccessFlags, faccessat},
};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, fstat, mknodat, openat};

use super::{
    error::{MountRefusal, Step},
    helper::counted_to,
    message::NodeRequest,
};

/// What the node is called where nobody sees it.
const NODE: &str = "node";
/// Who owns no files.
const NOBODY: u32 = 65_534;

/// Makes it. Afterwards this process is in a mount namespace of its own.
pub(super) fn make(host: &OwnedFd, request: &NodeRequest) -> Result<OwnedFd, MountRefusal> {
    let found = fstat(host).map_err(|errno| MountRefusal::at(Step::Owner)(errno.into()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice {
        return Err(MountRefusal::NoDevice);
    }
    if let Some(group) = request.by_group
        && !may_use(host, group).map_err(MountRefusal::at(Step::Group))?
    {
        return Err(MountRefusal::NotForGroup(group));
    }
    mount(&found, request).map_err(MountRefusal::at(Step::Node))
}

/// May a process that is in this group and nobody otherwise read and write it?
fn may_use(host: &OwnedFd, group: u32) -> io::Result<bool> {
    let ask = || {
        // Other processes of nobody's are to have no right over it.
        if privilege::become_account(NOBODY, group).and_then(|()| privilege::set_dumpable(false)).is_err() {
            return 2;
        }
        let both = AccessFlags::R_OK | AccessFlags::W_OK;
        i32::from(faccessat(host, "", both, NixAtFlags::AT_EMPTY_PATH | NixAtFlags::AT_EACCESS).is_err())
    };
    match Clone3::new().spawn(ask)?.pidfd.wait()? {
        Exit::Code(0) => Ok(true),
        Exit::Code(1) => Ok(false),
        _ => Err(io::ErrorKind::Interrupted.into()),
    }
}

fn mount(found: &Stat, request: &NodeRequest) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let propagation = Some(MountPropagationFlags::PRIVATE);
    let private = MountChange { propagation, recursive: true, ..MountChange::default() };
    mount_setattr(open_place(Path::new("/"))?, &private)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("mode", Some("0700")), ("size", Some("4096")), ("nr_inodes", Some("8"))];
    let tree = fs_mount("tmpfs", &options, flags)?;
    // Before kernel 6.15 only what is attached can be cloned.
    move_mount(&tree, open_place(Path::new("/proc"))?, Path::new(""))?;
    let mode = Mode::from_raw_mode(found.st_mode & 0o777);
    mknodat(&tree, NODE, FileType::CharacterDevice, mode, found.st_rdev)?;
    // Whatever the umask is.
    chmodat(&tree, NODE, mode, AtFlags::empty())?;
    let (uid, gid) = (Uid::from_raw(request.uid), Gid::from_raw(request.gid));
    chownat(&tree, NODE, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let node = openat(&tree, NODE, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    counted_to(request.account, || open_tree_clone(&node, Path::new(""), false))
}
