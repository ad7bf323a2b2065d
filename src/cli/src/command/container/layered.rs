//! Can a container's root be layers over its image here? Tried before a container is made so, and not at its first start.
//!
//! It takes a mount of the image's files with the container's ids, which the broker makes where kernel and file system
//! can, and an overlay over it that the container's user namespace may mount, with all that an upper layer needs. A child of
//! the job tries that, in a mount namespace of its own with the container's ids, in directories that are removed then.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use cgrant_container::{Session, SessionError};
use cgrant_image::{Sha256, remove_tree};
use cgrant_proto::{Code, Error, MapDirectory};
use cgrant_sys::{
    Channel, Clone3, Dir,
    mount::{MountAttrFlags, fs_mount, move_mount},
    seqpacket::{self, Received},
};
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, Mode, OFlags, XattrFlags, fsetxattr, openat},
    process::{chdir, fchdir, getpid},
};
use serde::{Deserialize, Serialize};
use zbus::{Fd, OwnedObjectPath};

use super::create::ROOTFS;
use crate::{
    error::{Doing, Failure},
    storage::{self, JobFailure, Worker, end_with},
};

/// Where it is tried, below the container's directory.
const TRIAL: &str = "trial";
const LOWER: &str = "lower";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// The broker's mount comes beside it; any other answer is why there is none.
pub(super) const MAPPED: &[u8] = b"mapped";
/// What the child says if all of it can be done.
const GOOD: &str = "good";
/// What the upper layer marks directories with.
const MARK: &str = "user.overlay.opaque";

/// What became of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layered {
    /// It is made.
    Done,
    /// Nothing is, because of this.
    Not(String),
}

/// What the job and this process talk over: the former's end second.
pub(super) fn pair() -> Result<(Channel, Channel), Failure> {
    seqpacket::pair().map_err(|source| Failure::Machine { doing: "make a channel to a process", source })
}

/// In the job: why the image's files can't be the lower layer of a container in the directory `new`; `None` if they can.
pub(super) fn hindrance(
    worker: &Worker,
    channel: &Channel,
    new: &Dir,
    image: Sha256,
) -> Result<Option<String>, JobFailure> {
    let found = try_it(worker, channel, new, image);
    found.map_err(|error| JobFailure::machine(format!("it could not be tried what its root can be: {error}")))
}

fn try_it(worker: &Worker, channel: &Channel, new: &Dir, image: Sha256) -> io::Result<Option<String>> {
    let trial = new.create_dir(TRIAL, 0o700)?;
    [LOWER, UPPER, WORK].into_iter().try_for_each(|name| trial.make_dir(name, 0o700))?;
    let image = Path::new("../../../images").join(image.to_string()).join(ROOTFS);
    // A directory of this mount namespace is of no use in the child's, but the working directory goes along.
    fchdir(&trial)?;
    let (mut told, tell) = io::pipe()?;
    let tell = Cell::new(Some(tell));
    let parent = getpid();
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWNS).spawn(|| {
        let ended = end_with(parent);
        let found = ended.map_err(|error| error.to_string()).and_then(|()| attempt(worker, channel, &image));
        let text = found.err().unwrap_or_else(|| GOOD.to_owned());
        i32::from(tell.take().is_none_or(|mut tell| tell.write_all(text.as_bytes()).is_err()))
    })?;
    drop(tell.take());
    let mut text = String::new();
    told.read_to_string(&mut text)?;
    child.pidfd.wait()?;
    chdir("/")?;
    remove_tree(new, TRIAL.as_ref(), ".old-")?;
    match text.as_str() {
        GOOD => Ok(None),
        "" => Err(io::Error::other("a process was killed")),
        why => Ok(Some(why.to_owned())),
    }
}

/// In the child: has the image mapped, and lays over it. What it gives is why that is not possible.
fn attempt(worker: &Worker, channel: &Channel, image: &Path) -> Result<(), String> {
    let failed = |what: &'static str| move |error: &dyn std::error::Error| format!("{what}: {error}");
    let mount = mapped(worker, channel, image)?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = openat(CWD, UPPER, directory, Mode::empty())
        .map_err(|error| failed("no directory can be made")(&error))?;
    // Without it no directory can take the place of one below.
    fsetxattr(&upper, MARK, b"y", XattrFlags::empty())
        .map_err(|_| "this file system keeps no extended attributes, which layers need".to_owned())?;
    overlay(&mount).map_err(|error| failed("no overlay can be mounted over them")(&error))
}

/// In a process with a mount namespace of its own, below the container's directory: the files of an image with the container's ids,
/// as the broker maps them.
pub(super) fn mapped(worker: &Worker, channel: &Channel, image: &Path) -> Result<OwnedFd, String> {
    shown(worker, channel, image, b"map")
}

/// The same for any directory: `asked` is what the answering side goes by.
pub(super) fn shown(
    worker: &Worker,
    channel: &Channel,
    directory: &Path,
    asked: &[u8],
) -> Result<OwnedFd, String> {
    let failed = |what: &'static str| move |error: &dyn std::error::Error| format!("{what}: {error}");
    let open = |path: &Path, flags: OFlags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let shown = open(directory, OFlags::RDONLY | OFlags::DIRECTORY)
        .and_then(|directory| Ok((open(Path::new("/proc/self/ns/mnt"), OFlags::RDONLY)?, directory)));
    let (mounts, directory) = shown.map_err(|error| failed("the files can't be shown")(&error))?;
    let lost = |error: &dyn std::error::Error| failed("the answer of the broker did not arrive")(error);
    channel.send(asked, &[mounts.as_fd(), directory.as_fd()]).map_err(|error| lost(&error))?;
    worker.asks();
    let answer = channel.receive().map_err(|error| lost(&error))?;
    let Received { bytes, fds } = answer.ok_or("the answer of the broker did not arrive")?;
    match (bytes.as_slice(), fds.into_iter().next()) {
        (MAPPED, Some(mount)) => Ok(mount),
        (why, _) => Err(String::from_utf8_lossy(why).into_owned()),
    }
}

/// As a container's root is mounted, but attached nowhere.
fn overlay(image: &OwnedFd) -> io::Result<()> {
    let place = openat(CWD, LOWER, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    move_mount(image, place, Path::new(""))?;
    let lower = format!("/proc/self/fd/{}", image.as_raw_fd());
    let options = [
        ("source", Some("cgrant")),
        ("lowerdir", Some(lower.as_str())),
        ("upperdir", Some(UPPER)),
        ("workdir", Some(WORK)),
        ("userxattr", None),
    ];
    fs_mount("overlay", &options, MountAttrFlags::MOUNT_ATTR_NODEV).map(drop)
}

/// Outside: has the broker map what the job's child shows, in the container's grant, and passes on what it says.
pub(super) fn answer(
    channel: &Channel,
    session: &Session,
    grant: &OwnedObjectPath,
    doing: &str,
) -> Result<(), Failure> {
    let lost = |_| storage::died(doing);
    let asked = channel.receive().map_err(lost)?.map(|received| received.fds);
    let Ok([mounts, directory]) = <[OwnedFd; 2]>::try_from(asked.unwrap_or_default()) else {
        return Err(storage::died(doing));
    };
    let options = MapDirectory::new().from_range(storage::IMAGES).read_only();
    let map = || {
        session.call(session.mounts(grant)?.map_directory(Fd::from(directory), Fd::from(mounts), &options))
    };
    let refused = match map() {
        Ok(mount) => return channel.send(MAPPED, &[mount.as_fd()]).map_err(lost),
        // Its advice is to copy.
        Err(SessionError::Broker(Error::Refused(refusal))) if refusal.code == Code::Unsupported => {
            return channel.send(refusal.message.as_bytes(), &[]).map_err(lost);
        }
        Err(refused) => refused,
    };
    // Whether it hears this or not, nothing is made.
    let _ = channel.send(b"refused", &[]);
    match refused {
        SessionError::Broker(error) if error.code() == Some(Code::NotAuthorized) => Err(Failure::Refused(
            format!("cannot {doing}: {error}; with --copy it gets files of its own instead"),
        )),
        other => Err(other).doing(|| doing.to_owned()),
    }
}
