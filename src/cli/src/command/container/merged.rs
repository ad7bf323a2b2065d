//! The files of a container that does not run, as it sees them itself: its own over those of its image, in one tree.
//!
//! The overlay is read-only and has the container's layer as its uppermost lower one, so that nothing of it changes. A child of the
//! job mounts it, in a mount namespace of its own.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use cgrant_sys::{
    Channel, Clone3, Dir,
    mount::{MountAttrFlags, fs_mount, move_mount},
};
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::{fchdir, getpid},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{config::Root, create::ROOTFS, layered::mapped};
use crate::storage::{JobFailure, Worker, end_with};

/// Does `work` with the files of the container in this directory, which is made of this image.
pub(super) fn with_files<R: Serialize + DeserializeOwned>(
    worker: &Worker,
    channel: &Channel,
    container: &Dir,
    (root, image): (Root, &str),
    work: impl Fn(&Dir) -> Result<R, JobFailure>,
) -> Result<R, JobFailure> {
    let unusable = |error: &io::Error| JobFailure::kernel("the container's files can't be used", error);
    if root == Root::Copy {
        return work(&container.open_dir(ROOTFS).map_err(|error| unusable(&error))?);
    }
    // A directory of this mount namespace is of no use in the child's, but the working directory goes along.
    fchdir(container).map_err(|error| unusable(&error.into()))?;
    let image = Path::new("../../images").join(image).join(ROOTFS);
    let (mut told, tell) = io::pipe().map_err(|error| unusable(&error))?;
    let tell = Cell::new(Some(tell));
    let parent = getpid();
    let main = || {
        let ended = end_with(parent).map_err(|error| unusable(&error));
        let tree = ended.and_then(|()| {
            let mount = mapped(worker, channel, &image).map_err(JobFailure::machine)?;
            merge(&mount).map_err(|error| unusable(&error))
        });
        let result = tree.and_then(|tree| work(&tree));
        let text = serde_json::to_vec(&result).unwrap_or_default();
        i32::from(tell.take().is_none_or(|mut tell| tell.write_all(&text).is_err()))
    };
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWNS).spawn(main);
    let child = child.map_err(|error| unusable(&error))?;
    drop(tell.take());
    let mut text = Vec::new();
    told.read_to_end(&mut text).map_err(|error| unusable(&error))?;
    child.pidfd.wait().map_err(|error| unusable(&error))?;
    let died = || JobFailure::machine("a process that read the container's files was killed");
    serde_json::from_slice::<Result<R, JobFailure>>(&text).unwrap_or_else(|_| Err(died()))
}

/// Both layers as one tree, attached nowhere, in the child of a job.
fn merge(image: &OwnedFd) -> io::Result<Dir> {
    let open = |path: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty())
    };
    let (container, upper) = (open(".")?, open("upper")?);
    // A layer must be attached in this namespace, and be no part of another one.
    move_mount(image, container, Path::new(""))?;
    let layers = format!("/proc/self/fd/{}:/proc/self/fd/{}", upper.as_raw_fd(), image.as_raw_fd());
    let options = [("source", Some("cgrant")), ("lowerdir", Some(layers.as_str())), ("userxattr", None)];
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let tree = fs_mount("overlay", &options, attributes)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::from_fd(openat(tree.as_fd(), ".", flags, Mode::empty())?)
}
