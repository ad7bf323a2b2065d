//! A root in two layers: files of an image, which many containers share and none changes, and what this container makes of them.
//!
//! Both layers become one tree by an overlay that the container's user namespace mounts, over the container's own directory,
//! in a mount namespace that outlasts reboots: it is made with the user namespace, and each start begins with a copy of it. The
//! image's files belong to other ids on disk; a mount that shows them as the container's own comes from the broker.
//!
//! A root that is a copy of an image is one directory, mounted there over itself if directories of the account's own are seen in it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgrant_sys::{
    Channel, Clone3, Dir, MntnsFd, UsernsFd,
    mount::{MountAttrFlags, fs_mount, move_mount, open_place, open_tree_clone},
    privilege, seqpacket,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};

use super::message::FromInit;
use crate::{
    failure::{At, Step, StepFailure},
    init::{UMASK, become_root},
    message::{receive, send},
};

/// Opens a directory for reading, as the account in the namespace of this process: that is what proves to the broker that
/// it is the account's to show.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// What becomes one tree. Mounts are the broker's, attached nowhere.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    /// The container's directory, which has `upper` and `work`, or is the root itself without an image; covered by the result.
    pub(crate) place: &'a Path,
    /// The image's files.
    pub(crate) image: Option<OwnedFd>,
    /// Directories of the account's own, and where they are seen inside.
    pub(crate) binds: Vec<(OwnedFd, &'a Path)>,
    /// Nodes of devices, and the host's that they cover in this mount namespace: there each boot takes them from.
    pub(crate) devices: Vec<(OwnedFd, &'a Path)>,
}

/// Mounts it.
pub(crate) fn mount(user: &UsernsFd, mounts: &MntnsFd, layers: &Layers<'_>) -> Result<(), StepFailure> {
    let (near, far) = seqpacket::pair().at(Step::Fork, "")?;
    let child = Clone3::new().spawn(|| enter_and_mount(&far, user, mounts, layers)).at(Step::Fork, "")?;
    drop(far);
    let said = receive::<FromInit>(&near);
    let ended = child.pidfd.wait();
    match (said, ended) {
        (Ok(Some((FromInit::Failed(failure), _))), _) => Err(failure),
        (_, Ok(cgrant_sys::Exit::Code(0))) => Ok(()),
        _ => Err(died(layers.place)),
    }
}

/// The process that died had no time to say why.
fn died(place: &Path) -> StepFailure {
    StepFailure { step: Step::Layers, subject: place.display().to_string(), errno: 0 }
}

fn enter_and_mount(channel: &Channel, user: &UsernsFd, mounts: &MntnsFd, layers: &Layers<'_>) -> i32 {
    let subject = layers.place.display().to_string();
    let steps = || {
        // Nothing inside may look through it at what the monitor has in memory.
        privilege::set_dumpable(false).at(Step::Process, "memory")?;
        user.enter().and_then(|()| mounts.enter()).at(Step::Join, "")?;
        // As the account: root of the container can't get there.
        let found = match &layers.image {
            Some(_) => open_layers(layers.place).map(Found::Layers),
            None => open_directory(layers.place).map(Found::Whole),
        };
        let found = found.at(Step::Layers, &subject)?;
        become_root(true)?;
        rustix::process::umask(Mode::from_raw_mode(UMASK));
        let tree = match (&found, &layers.image) {
            (Found::Layers(container), Some(image)) => overlay(container, image),
            (Found::Layers([place, ..]) | Found::Whole(place), _) => over_itself(place),
        };
        let tree = tree.at(Step::Layers, &subject)?;
        layers.devices.iter().try_for_each(|(node, host)| {
            let covered = open_place(host).and_then(|place| move_mount(node, place, Path::new("")));
            covered.at(Step::Device, &host.display().to_string())
        })?;
        layers.binds.iter().try_for_each(|(bind, target)| {
            let bound = make_place(&tree, target).and_then(|place| move_mount(bind, place, Path::new("")));
            bound.at(Step::Bind, &target.display().to_string())
        })
    };
    let Err(failure) = steps() else { return 0 };
    let _ = send(channel, &FromInit::Failed(failure), None);
    1
}

/// The directory at a place inside, made where it is not there. Links are followed with the tree as root.
fn make_place(tree: &OwnedFd, target: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| openat2(tree, path, flags, Mode::empty(), resolve);
    let (mut path, mut place) = (PathBuf::from("/"), open(Path::new("/"))?);
    for name in target.components().skip(1) {
        path.push(name);
        place = match open(&path) {
            Err(Errno::NOENT) => {
                mkdirat(&place, name.as_os_str(), Mode::from_raw_mode(0o755))?;
                open(&path)?
            }
            opened => opened?,
        };
    }
    Ok(place)
}

/// What a root is made of, opened.
#[derive(Debug)]
enum Found {
    /// The container's directory and its two.
    Layers([OwnedFd; 3]),
    /// The root itself.
    Whole(OwnedFd),
}

fn over_itself(place: &OwnedFd) -> io::Result<OwnedFd> {
    let tree = open_tree_clone(place, Path::new(""), false)?;
    move_mount(&tree, place, Path::new(""))?;
    Ok(tree)
}

/// The container's directory and its two.
fn open_layers(place: &Path) -> io::Result<[OwnedFd; 3]> {
    let container = Dir::open(place)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let (upper, work) = (container.open_file("upper", flags)?, container.open_file("work", flags)?);
    Ok([container.as_fd().try_clone_to_owned()?, upper, work])
}

/// `userxattr` (kernel 5.11): the only kind of overlay that a user namespace may mount.
fn overlay([container, upper, work]: &[OwnedFd; 3], image: &OwnedFd) -> io::Result<OwnedFd> {
    // A layer must be attached in this namespace (`clone_private_mount()` in fs/namespace.c), and be no part of another
    // one (`ovl_check_layer()`): the container's directory is covered by the result, so nobody sees it there.
    move_mount(image, container, Path::new(""))?;
    let path = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let (lower, upper, work) = (path(image.as_fd()), path(upper.as_fd()), path(work.as_fd()));
    let options = [
        ("source", Some("cgrant")),
        ("lowerdir", Some(lower.as_str())),
        ("upperdir", Some(upper.as_str())),
        ("workdir", Some(work.as_str())),
        ("userxattr", None),
    ];
    let overlay = fs_mount("overlay", &options, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    move_mount(&overlay, image, Path::new(""))?;
    Ok(overlay)
}
