//! What is written into a container's root at its first start: `/etc/hostname`, `/etc/machine-id`, `/etc/localtime`; and places for what
//! is bound over, if there are none. All else of the image stays as it is.
//!
//! Done by the namespace's root, in a tree of unknown origin: directories are looked up with the tree as root, so that
//! links in it lead nowhere else, and files are made anew, never written through what is there.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags, openat, openat2, renameat, statat, symlinkat, unlinkat},
    io::Errno,
};

use super::spec::Prepared;
use crate::{
    failure::{At, Step, StepFailure},
    network::{self, Network},
};

/// The name of what is not finished.
const UNFINISHED: &str = ".cgrant-new";

/// Writes it. A root without `/etc` is left as it is.
pub(crate) fn write(tree: &OwnedFd, spec: &Prepared) -> Result<(), StepFailure> {
    let Some(personal) = &spec.personal else { return Ok(()) };
    let Some(etc) = etc(tree)? else { return Ok(()) };
    replace(&etc, "hostname", &format!("{}\n", spec.hostname)).at(Step::Personal, "etc/hostname")?;
    replace(&etc, "machine-id", &format!("{}\n", spec.machine)).at(Step::Personal, "etc/machine-id")?;
    match &personal.timezone {
        Some(zone) => link_zone(tree, &etc, zone).at(Step::Personal, "etc/localtime"),
        None => Ok(()),
    }
}

/// Makes the files of /etc that are bound over later, empty, where the root has none: a Debian that was just built has no
/// resolv.conf.
pub(crate) fn make_places(tree: &OwnedFd, network: &Network) -> Result<(), StepFailure> {
    let Some(etc) = etc(tree)? else { return Ok(()) };
    for name in network::covered(network) {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&etc, *name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).at(Step::Names, name),
        }
    }
    Ok(())
}

fn etc(tree: &OwnedFd) -> Result<Option<OwnedFd>, StepFailure> {
    match open(tree, "etc") {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        etc => etc.map(Some).at(Step::Personal, "etc"),
    }
}

fn open(tree: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(tree, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

fn replace(directory: &OwnedFd, name: &str, text: &str) -> Result<(), Errno> {
    clear(directory)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(directory, UNFINISHED, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&file, text.as_bytes())?;
    renameat(directory, UNFINISHED, directory, name)
}

/// A start that was cut off may have left one.
fn clear(directory: &OwnedFd) -> Result<(), Errno> {
    match unlinkat(directory, UNFINISHED, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// localtime(5), if the root has the zone.
fn link_zone(tree: &OwnedFd, etc: &OwnedFd, zone: &str) -> Result<(), Errno> {
    let Ok(zones) = open(tree, "usr/share/zoneinfo") else { return Ok(()) };
    if statat(&zones, zone, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        return Ok(());
    }
    clear(etc)?;
    symlinkat(format!("../usr/share/zoneinfo/{zone}"), etc, UNFINISHED)?;
    renameat(etc, UNFINISHED, etc, "localtime")
}
