//! Mounts by descriptor: made detached, set up, and only then put into the tree.
//!
//! Sources: `fsopen(2)`, `fsmount(2)`, `open_tree(2)`, `mount_setattr(2)`, `move_mount(2)`, `pivot_root(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, fstatfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, unmount,
};
use rustix::process::{chdir, fchdir};

pub use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// `statfs` magic of cgroup2.
pub const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// `statfs` magic of a cgroup v1 hierarchy.
pub const CGROUP1_MAGIC: u64 = 0x0027_e0eb;
/// `statfs` magic of proc.
pub const PROC_MAGIC: u64 = 0x9fa0;
/// `statfs` magic of tmpfs.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;

/// A change of the attributes of a mount.
#[derive(Debug, Clone, Copy)]
pub struct MountChange<'fd> {
    /// Attributes to set.
    pub set: MountAttrFlags,
    /// Attributes to clear.
    pub clear: MountAttrFlags,
    /// New propagation; `None` leaves it.
    pub propagation: Option<MountPropagationFlags>,
    /// Map the owners of files through this user namespace.
    pub id_map: Option<BorrowedFd<'fd>>,
    /// The mounts below too.
    pub recursive: bool,
}

impl Default for MountChange<'_> {
    fn default() -> Self {
        let (set, clear) = (MountAttrFlags::empty(), MountAttrFlags::empty());
        Self { set, clear, propagation: None, id_map: None, recursive: false }
    }
}

/// A new mount of `fstype`, attached nowhere. An option without value is a flag.
///
/// # Errors
/// `ENODEV` for a file system that the kernel does not have; `EINVAL` for an option that it does not take; `EPERM`.
pub fn fs_mount(
    fstype: &str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
            None => fsconfig_set_flag(context.as_fd(), *key)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The host's cgroup2 tree, attached nowhere.
///
/// In the initial cgroup namespace this rewrites the options of the one cgroup2 superblock (`nsdelegate` …): only
/// for hosts where nobody has mounted it.
///
/// # Errors
/// `EPERM`, `ENODEV`.
pub fn mount_cgroup2_detached() -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fs_mount("cgroup2", &[], attributes)
}

/// A detached copy of the mount at `path` below `directory` (empty: of `directory` itself), links at its end not followed.
///
/// # Errors
/// `EINVAL` if the directory is in another mount namespace; `EPERM`.
pub fn open_tree_clone(directory: impl AsFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(directory, path, flags)?)
}

/// Changes the attributes of the mount that `mount` is the root of.
///
/// # Errors
/// `EINVAL` for what can't be changed: an id map on a mount that has one or is attached, or a file system without them;
/// `EPERM`, also for an id map of the initial user namespace; `ENOSYS` before kernel 5.12.
pub fn mount_setattr(mount: impl AsFd, change: &MountChange<'_>) -> io::Result<()> {
    // SAFETY: the structure is plain integers, for which zero bytes are a valid value.
    let mut raw: libc::mount_attr = unsafe { std::mem::zeroed() };
    raw.attr_set = u64::from(change.set.bits());
    raw.attr_clr = u64::from(change.clear.bits());
    raw.propagation = change.propagation.map_or(0, |propagation| u64::from(propagation.bits()));
    if let Some(namespace) = change.id_map {
        raw.attr_set |= libc::MOUNT_ATTR_IDMAP;
        raw.userns_fd = u64::from(namespace.as_raw_fd().cast_unsigned());
    }
    let flags = libc::AT_EMPTY_PATH | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and structure outlive the call, the size is the structure's, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount at `path` below `directory` (empty: on `directory` itself), links at its end not followed.
///
/// # Errors
/// Those of `move_mount(2)`.
pub fn move_mount(mount: impl AsFd, directory: impl AsFd, path: &Path) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.as_os_str().is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(rustix::mount::move_mount(mount, "", directory, path, flags)?)
}

/// Makes `root`, which must be a mount, the root of this mount namespace, and lets go of the old one with all below it.
///
/// # Errors
/// Those of `pivot_root(2)`: `EBUSY` if `root` is on the mount that is the root now; `EINVAL` if it is no mount, or one in
/// question is shared; `EPERM`.
pub fn pivot_root(root: impl AsFd) -> io::Result<()> {
    fchdir(root)?;
    // With one directory as both arguments the old root ends up on top of the new one (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

/// Which kind of file system `fd` is on. Waits for the server of a FUSE file.
///
/// # Errors
/// Those of `fstatfs(2)`.
pub fn statfs_magic(fd: impl AsFd) -> io::Result<u64> {
    // The field is signed on some architectures; the magic numbers are 32 bits.
    Ok(u64::from(fstatfs(fd)?.f_type as u32))
}

/// Opens the directory `path` as a place to mount on or from (`O_PATH`).
///
/// # Errors
/// Those of `openat(2)`.
pub fn open_place(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}
