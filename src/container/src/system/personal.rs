//! What is written into a container's root at its first start, or when it was given another name: `/etc/hostname`, `/etc/machine-id`,
//! a line of `/etc/hosts`, `/etc/localtime`; a link for a machine id of D-Bus's own; and an empty `/etc/resolv.conf` to bind over, if there is
//! none. All else of the image stays as it is.
//!
//! Done by the namespace's root, in a tree of unknown origin: directories are looked up with the tree as root, so that
//! links in it lead nowhere else, and files are made anew, never written through what is there.

use std::{io, os::fd::OwnedFd};

use cgrant_sys::Dir;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, openat, openat2, renameat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};

use super::{
    host_keys,
    spec::{Prepared, Timezone},
};
use crate::failure::{At, Step, StepFailure};

/// The name of what is not finished.
const UNFINISHED: &str = ".cgrant-new";

/// The longest `/etc/hosts` that a line is added to, in bytes.
const HOSTS_MAX: usize = 64 * 1024;
/// Debian's address of a machine's own name, where that has no other (its reference, 5.1.1).
const OWN_ADDRESS: &str = "127.0.1.1";
/// What a hosts file of its own begins with.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Writes it. A root without `/etc` is left as it is.
pub(crate) fn write(tree: &OwnedFd, spec: &Prepared) -> Result<(), StepFailure> {
    let Some(personal) = &spec.personal else { return Ok(()) };
    let Some(etc) = etc(tree)? else { return Ok(()) };
    replace(&etc, "hostname", &format!("{}\n", spec.hostname)).at(Step::Personal, "etc/hostname")?;
    replace(&etc, "machine-id", &format!("{}\n", spec.machine)).at(Step::Personal, "etc/machine-id")?;
    write_hosts(&etc, &spec.hostname).at(Step::Personal, "etc/hosts")?;
    if personal.new {
        host_keys::forget(tree).at(Step::Personal, "etc/ssh")?;
        link_dbus(tree).at(Step::Personal, "var/lib/dbus/machine-id")?;
    }
    match &personal.timezone {
        Some(zone) => {
            let subject = format!("etc/localtime for the time zone {}", zone.name());
            link_zone(tree, &etc, zone).at(Step::Personal, &subject)
        }
        None => Ok(()),
    }
}

/// Makes a file of `/etc` that is bound over later, empty, where the root has none: a Debian that was just built has no
/// resolv.conf.
pub(crate) fn make_place(tree: &OwnedFd, name: &str) -> Result<(), StepFailure> {
    let Some(etc) = etc(tree)? else { return Ok(()) };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(&etc, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).at(Step::Names, name),
    }
}

/// The container's own name has an address, so that sudo and others find it. What stands there stays, and is the container's to change.
fn write_hosts(etc: &OwnedFd, hostname: &str) -> io::Result<()> {
    let now = match Dir::from_fd(reopen(etc)?)?.read("hosts", HOSTS_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        // A link, or what is no text, is somebody's own idea.
        Err(_) => return Ok(()),
    };
    Ok(replace(etc, "hosts", &hosts(&now, hostname))?)
}

/// A directory that can be read, of one that was only looked up.
fn reopen(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(directory, ".", flags, Mode::empty())?)
}

fn hosts(now: &str, hostname: &str) -> String {
    let address = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let kept = now.lines().filter(|line| address(line).as_deref() != Some(OWN_ADDRESS));
    let mut text: String = kept.map(|line| format!("{line}\n")).collect();
    if !text.split_whitespace().any(|word| word == "localhost") {
        text.insert_str(0, LOCALHOST);
    }
    text.push_str(&format!("{OWN_ADDRESS}\t{hostname}\n"));
    text
}

fn etc(tree: &OwnedFd) -> Result<Option<OwnedFd>, StepFailure> {
    match open(tree, "etc") {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        etc => etc.map(Some).at(Step::Personal, "etc"),
    }
}

/// Looks up a directory with the tree as root.
pub(super) fn open(tree: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
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

/// A machine id that D-Bus has a file of its own for, as systems without systemd do, and looks at first: it becomes a link to the
/// other, as it is where systemd makes it (`tmpfiles.d/dbus.conf`).
fn link_dbus(tree: &OwnedFd) -> Result<(), Errno> {
    let Ok(dbus) = open(tree, "var/lib/dbus") else { return Ok(()) };
    let is_file = |mode| FileType::from_raw_mode(mode) == FileType::RegularFile;
    match statat(&dbus, "machine-id", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_file(stat.st_mode) => {}
        _ => return Ok(()),
    }
    clear(&dbus)?;
    symlinkat("/etc/machine-id", &dbus, UNFINISHED)?;
    renameat(&dbus, UNFINISHED, &dbus, "machine-id")
}

/// localtime(5), and Debian's older way of saying it where the root has that.
fn link_zone(tree: &OwnedFd, etc: &OwnedFd, zone: &Timezone) -> Result<(), Errno> {
    let name = zone.name();
    let found =
        open(tree, "usr/share/zoneinfo").and_then(|zones| statat(zones, name, AtFlags::SYMLINK_NOFOLLOW));
    match (found, zone) {
        (Ok(_), _) => {}
        (Err(errno), Timezone::Asked(_)) => return Err(errno),
        (Err(_), Timezone::Host(_)) => return Ok(()),
    }
    clear(etc)?;
    symlinkat(format!("../usr/share/zoneinfo/{name}"), etc, UNFINISHED)?;
    renameat(etc, UNFINISHED, etc, "localtime")?;
    match statat(etc, "timezone", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => replace(etc, "timezone", &format!("{name}\n")),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_added_to_what_is_there() {
        assert_eq!(hosts("", "web"), format!("{LOCALHOST}127.0.1.1\tweb\n"));
        let before = "127.0.0.1 localhost\n# mine\n127.0.1.1 image\n10.0.0.1 db";
        assert_eq!(hosts(before, "web"), "127.0.0.1 localhost\n# mine\n10.0.0.1 db\n127.0.1.1\tweb\n");
        assert_eq!(hosts(&hosts(before, "web"), "www").matches("127.0.1.1").count(), 1);
    }
}
