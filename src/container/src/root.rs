//! The container's tree: its root, what is mounted in it, and the way from the host's tree to it.
//!
//! Done in three parts in the container's own mount namespace, which its user namespace owns: opened as the account,
//! built as the namespace's root, entered by the first process. Targets are looked up from the
//! descriptor of the new root, and what is not ours in such a path is its last component, where no symlink is
//! followed: a root of unknown origin can't lead a mount elsewhere. The host's tree stays until the end: the
//! kernel mounts proc and sysfs for a user namespace only where it can see whole ones, and the device nodes
//! are shown from there (a user namespace can't make any).
//!
//! Attributes are set on mounts, never on superblocks: a sysfs whose superblock was made read-only would make
//! every later one of the namespace read-only.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgrant_sys::mount::{
    MountAttrFlags, MountChange, MountPropagationFlags, fs_mount, mount_setattr, move_mount, open_place,
    open_tree_clone, pivot_root,
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
};

use crate::{
    failure::{At, Step, StepFailure},
    launch::Placement,
    network,
    spec::Root,
};

pub(crate) const READ_ONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NO_DEVICES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
pub(crate) const SAFE: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(NO_DEVICES);
pub(crate) const INERT: MountAttrFlags = SAFE.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// For `/dev` and its terminals: device nodes are what they are for.
const DEVICE_TREE: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The device nodes of the host that a container sees. None of them gives access to anything of the host's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links that programs expect in `/dev`: name and target.
const LINKS: [(&str, &str); 5] = [
    ("dev/fd", "/proc/self/fd"),
    ("dev/stdin", "/proc/self/fd/0"),
    ("dev/stdout", "/proc/self/fd/1"),
    ("dev/stderr", "/proc/self/fd/2"),
    ("dev/ptmx", "pts/ptmx"),
];

/// The group that owns terminals on every distribution (`tty`).
const TERMINAL_GROUP: u32 = 5;

type Options<'a> = &'a [(&'a str, Option<&'a str>)];

/// A copy of the tree that becomes the root, and the place in the host's tree where it is mounted for a moment.
#[derive(Debug)]
pub(crate) struct NewRoot {
    pub(crate) tree: OwnedFd,
    place: OwnedFd,
    name: String,
}

impl NewRoot {
    /// Opens and copies the tree, as the account.
    ///
    /// The copy is recursive: the kernel does not let a user namespace see what is below a mount that it did
    /// not make. It is private: what the host mounts later must not appear in it without these attributes.
    pub(crate) fn open(root: &Root) -> Result<Self, StepFailure> {
        let (path, attributes) = match root {
            Root::Host => (PathBuf::from("/"), SAFE | READ_ONLY),
            Root::Directory { path, read_only: true } => (path.clone(), NO_DEVICES | READ_ONLY),
            Root::Directory { path, read_only: false } => (path.clone(), NO_DEVICES),
        };
        let name = path.display().to_string();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(CWD, &path, flags, Mode::empty()).at(Step::OpenRoot, &name)?;
        let tree = open_tree_clone(&place, Path::new(""), true).at(Step::OpenRoot, &name)?;
        restrict(&tree, attributes).at(Step::RestrictRoot, &name)?;
        Ok(Self { tree, place, name })
    }

    /// Mounts in it what a namespace of this placement's ids has, but for what shows pids and cgroups.
    pub(crate) fn build(&self, hostname: &str, placement: &Placement) -> Result<(), StepFailure> {
        self.attach()?;
        self.mount_sys()?;
        self.mount_devices(placement.ids)?;
        self.mount("tmpfs", &[("mode", Some("0755"))], SAFE, "run")?;
        self.mount("tmpfs", &[("mode", Some("1777"))], SAFE, "tmp")?;
        match &placement.network {
            Some(given) => network::show(&self.tree, given, hostname),
            None => Ok(()),
        }
    }

    /// Mounts the rest and makes it the root, leaving the host's tree: for the first process of the pid namespace, in
    /// its cgroup namespace.
    pub(crate) fn enter(&self, placement: &Placement) -> Result<(), StepFailure> {
        self.mount_pids_and_cgroups()?;
        if placement.network.is_some() {
            network::open_ping(&self.tree, placement.ids);
        }
        self.leave_host()
    }

    /// Puts it into the mount namespace, over the place that it is a copy of.
    pub(crate) fn attach(&self) -> Result<(), StepFailure> {
        move_mount(&self.tree, &self.place, Path::new("")).at(Step::EnterRoot, &self.name)
    }

    /// Makes it the root, and lets go of the host's tree.
    pub(crate) fn leave_host(&self) -> Result<(), StepFailure> {
        pivot_root(&self.tree).at(Step::EnterRoot, &self.name)
    }

    /// `/proc`, `/sys` and the container's own cgroup tree.
    pub(crate) fn mount_kernel_views(&self) -> Result<(), StepFailure> {
        self.mount_sys()?;
        self.mount_pids_and_cgroups()
    }

    /// What shows the namespaces that begin with the container's first process.
    fn mount_pids_and_cgroups(&self) -> Result<(), StepFailure> {
        self.mount("proc", &[], INERT, "proc")?;
        self.mount("cgroup2", &[], INERT, "sys/fs/cgroup")
    }

    fn mount_sys(&self) -> Result<(), StepFailure> {
        match self.mount("sysfs", &[], INERT | READ_ONLY, "sys") {
            // Something hides a part of the host's /sys: what is to be seen of it is seen inside as well.
            Err(failure) if failure.errno == Errno::PERM.raw_os_error() => self.show_host_sys(),
            result => result,
        }
    }

    fn show_host_sys(&self) -> Result<(), StepFailure> {
        let show = || {
            let tree = open_tree_clone(CWD, Path::new("/sys"), true)?;
            restrict(&tree, INERT | READ_ONLY)?;
            move_mount(&tree, &self.tree, Path::new("sys"))
        };
        show().at(Step::Mount, "the host's /sys on /sys")
    }

    /// A `/dev` of the container's own.
    pub(crate) fn mount_devices(&self, ids: u32) -> Result<(), StepFailure> {
        self.mount("tmpfs", &[("mode", Some("0755"))], DEVICE_TREE, "dev")?;
        for name in DEVICES {
            self.show_device(name).at(Step::Device, name)?;
        }
        for directory in ["dev/pts", "dev/shm", "dev/mqueue"] {
            rustix::fs::mkdirat(&self.tree, directory, Mode::from_raw_mode(0o755))
                .at(Step::Mount, directory)?;
        }
        self.mount("devpts", terminal_options(ids), DEVICE_TREE, "dev/pts")?;
        self.mount("tmpfs", &[("mode", Some("1777"))], SAFE, "dev/shm")?;
        self.mount("mqueue", &[], INERT, "dev/mqueue")?;
        for (link, target) in LINKS {
            rustix::fs::symlinkat(target, &self.tree, link).at(Step::DeviceLink, link)?;
        }
        Ok(())
    }

    fn show_device(&self, name: &str) -> io::Result<()> {
        let target = format!("dev/{name}");
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&self.tree, &target, create, Mode::from_raw_mode(0o666))?);
        let device = open_tree_clone(open_place(Path::new("/dev"))?, Path::new(name), false)?;
        move_mount(&device, &self.tree, Path::new(&target))
    }

    pub(crate) fn mount(
        &self,
        kind: &str,
        options: Options<'_>,
        attributes: MountAttrFlags,
        target: &str,
    ) -> Result<(), StepFailure> {
        fs_mount(kind, options, attributes)
            .and_then(|mount| move_mount(&mount, &self.tree, Path::new(target)))
            .map_err(|error| StepFailure {
                step: Step::Mount,
                subject: format!("{kind} on /{target}"),
                errno: error.raw_os_error().unwrap_or(0),
            })
    }
}

/// Terminals of the container's own, which belong to the group that has them everywhere, if it is mapped.
fn terminal_options(ids: u32) -> Options<'static> {
    const OPEN: (&str, Option<&str>) = ("ptmxmode", Some("0666"));
    if ids > TERMINAL_GROUP {
        &[OPEN, ("mode", Some("0620")), ("gid", Some("5"))]
    } else {
        &[OPEN, ("mode", Some("0600"))]
    }
}

/// Only ever adds attributes, so that those that the kernel has locked on the host's mounts are no obstacle.
fn restrict(tree: impl AsFd, attributes: MountAttrFlags) -> io::Result<()> {
    let change = MountChange {
        set: attributes,
        propagation: Some(MountPropagationFlags::PRIVATE),
        recursive: true,
        ..MountChange::default()
    };
    mount_setattr(tree, &change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_belong_to_a_group_only_if_it_is_mapped() {
        assert!(!terminal_options(5).iter().any(|(key, _)| *key == "gid"));
        assert!(terminal_options(6).contains(&("gid", Some("5"))));
    }
}
