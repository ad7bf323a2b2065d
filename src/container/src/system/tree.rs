//! The tree of a system container: what is mounted over its root beside what every container has, and its console.
//!
//! | place | what |
//! |---|---|
//! | `/proc` | `/proc/sys` read-only but for `/proc/sys/net`, which is of the container's own network namespace; a boot id of its own; parts masked |
//! | `/sys` | read-only, by which systemd knows that devices are not its business; `/sys/fs/cgroup` writable |
//! | `/dev` | as every container's, and `console`: a terminal of the container's own devpts; for an init that is not systemd `tty1` too |
//! | `/run`, `/run/host` | tmpfs; what systemd is told |
//! | `/run/cgrant` | the broker's sockets, if containers may be made inside |
//!
//! `/tmp` is the image's business.
//!
//! In the end all mounts are shared ones, as a host's are: systemd makes its mounts so on a host and trusts a container's
//! manager to have done it (`mount_setup()`), and credentials of its units come from a helper whose mount has to be seen.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgrant_sys::{
    mount::{
        MountAttrFlags, MountChange, MountPropagationFlags, mount_setattr, move_mount, open_place,
        open_tree_clone,
    },
    process::random_u64,
};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
    pty::unlockpt,
};

use super::{
    confine::{MASKED_DIRECTORIES, MASKED_FILES, READ_ONLY as READ_ONLY_PLACES},
    environment,
    host_view::HostView,
    personal,
    spec::{MachineId, Prepared},
};
use crate::{
    failure::{At, Step, StepFailure},
    launch::Placement,
    network,
    root::{INERT, NewRoot, READ_ONLY, SAFE},
    spec::Root,
};

/// A place that only root can enter.
const HIDDEN: &str = "run/.cgrant";
/// Where the broker's sockets are found.
const BROKER: &str = "run/cgrant";
/// Where the kernel tells its own (random(4)).
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";

/// What the monitor keeps of a container's tree.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The console's master.
    pub(crate) console: OwnedFd,
    /// The directory of the container's terminals.
    pub(crate) terminals: OwnedFd,
    /// The socket that init notifies.
    pub(crate) notify: OwnedFd,
}

/// What is taken from outside.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The root's copy.
    pub(crate) root: NewRoot,
    /// The directory of the broker's sockets, if that is to be seen.
    broker: Option<OwnedFd>,
}

/// Opens what is outside, and copies the root, as the account.
pub(crate) fn open(spec: &Prepared) -> Result<Opened, StepFailure> {
    let root = NewRoot::open(&Root::Directory { path: spec.root.clone(), read_only: false })?;
    let show = |path: &PathBuf| {
        let copy = open_tree_clone(open_place(path)?, Path::new(""), false)?;
        mount_setattr(&copy, &MountChange { set: INERT | READ_ONLY, ..MountChange::default() })?;
        Ok::<_, io::Error>(copy)
    };
    let name = || spec.broker.iter().map(|path| path.display().to_string()).collect::<String>();
    let broker = spec.broker.as_ref().map(show).transpose().at(Step::Broker, &name())?;
    Ok(Opened { root, broker })
}

/// Mounts everything in it and makes it the root, as the namespace's root.
pub(crate) fn enter(
    Opened { root, broker }: &Opened,
    spec: &Prepared,
    placement: &Placement,
    os_release: &str,
) -> Result<Kept, StepFailure> {
    let tree = &root.tree;
    root.attach()?;
    personal::write(tree, spec)?;
    root.mount_kernel_views()?;
    root.mount_devices(placement.ids)?;
    spec.devices.iter().try_for_each(|name| show_device(tree, name).at(Step::Device, name))?;
    root.mount("tmpfs", &[("mode", Some("0755"))], SAFE, "run")?;
    tell_services(tree, spec).at(Step::Personal, "run/systemd/system.conf.d")?;
    if let Some(broker) = broker {
        mkdirat(tree, BROKER, Mode::from_raw_mode(0o755)).at(Step::Broker, BROKER)?;
        move_mount(broker, tree, Path::new(BROKER)).at(Step::Broker, BROKER)?;
    }
    let view = HostView::make(tree, spec, os_release)?;
    let network = placement.network.clone().unwrap_or_default();
    if !network.dns.is_empty() {
        personal::make_place(tree, "resolv.conf")?;
    }
    network::show_servers(tree, &network)?;
    network::open_ping(tree, placement.ids);
    protect_settings(tree)?;
    show_boot_id(tree).at(Step::Mount, BOOT_ID)?;
    match spec.nesting {
        true => keep_whole_views(root)?,
        false => mask(tree)?,
    }
    let (console, terminals) = make_console(tree).at(Step::Console, "/dev/console")?;
    if has_other_init(tree) {
        show_again(tree, "dev/console", "dev/tty1").at(Step::Console, "/dev/tty1")?;
    }
    view.seal()?;
    root.leave_host()?;
    let propagation = Some(MountPropagationFlags::SHARED);
    let shared = MountChange { propagation, recursive: true, ..MountChange::default() };
    mount_setattr(tree, &shared).at(Step::EnterRoot, "/")?;
    Ok(Kept { console, terminals, notify: view.notify })
}

/// Has systemd give its services what was asked for: its own environment is not theirs.
fn tell_services(tree: &OwnedFd, spec: &Prepared) -> io::Result<()> {
    let Some(text) = environment::of_services(&spec.environment) else { return Ok(()) };
    for directory in ["run/systemd", "run/systemd/system.conf.d"] {
        mkdirat(tree, directory, Mode::from_raw_mode(0o755))?;
    }
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(tree, "run/systemd/system.conf.d/50-cgrant.conf", create, Mode::from_raw_mode(0o644))?;
    io::Write::write_all(&mut std::fs::File::from(file), text.as_bytes())
}

/// Binds a device node of the host's. Only a node: a directory, or the files of another program in one, are shown nobody by this.
fn show_device(tree: &OwnedFd, name: &str) -> io::Result<()> {
    let device = open_tree_clone(open_place(Path::new("/dev"))?, Path::new(name), false)?;
    let found = rustix::fs::fstat(&device)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Err(Errno::NODEV.into());
    }
    // Of a node that the broker did not make nobody inside is the owner, or in the group: those are the host's.
    if found.st_uid != 0 && !Mode::from_raw_mode(found.st_mode).contains(Mode::ROTH) {
        return Err(Errno::ACCESS.into());
    }
    let target = format!("dev/{name}");
    for (at, _) in name.match_indices('/') {
        let directory = format!("dev/{}", name.get(..at).unwrap_or_default());
        match mkdirat(tree, directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // One of the usual ones is there already.
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(tree, &target, create, Mode::from_raw_mode(0o600)) {
        Ok(_) => move_mount(device, tree, Path::new(&target)),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The first terminal of the container's own devpts, which belongs to its root because that opens it here, shown as `/dev/console`.
fn make_console(tree: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let terminals = openat(tree, "dev/pts", directory, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = openat(&terminals, "ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let name = name.to_str().ok().and_then(|path| path.strip_prefix("/dev/pts/")).ok_or(Errno::NOTTY)?;
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(openat(tree, "dev/console", create, Mode::from_raw_mode(0o600))?);
    move_mount(open_tree_clone(&terminals, Path::new(name), false)?, tree, Path::new("dev/console"))?;
    Ok((master, terminals))
}

/// Is the root's init another one than systemd, which wants no terminals of the kernel's in a container (its CONTAINER_INTERFACE)?
fn has_other_init(tree: &OwnedFd) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = |path: &str| {
        let file = openat2(tree, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        file.and_then(rustix::fs::fstat).map(|data| (data.st_dev, data.st_ino))
    };
    let systemd = ["usr/lib/systemd/systemd", "lib/systemd/systemd"].map(file);
    file("sbin/init").is_ok_and(|init| !systemd.contains(&Ok(init)))
}

/// System V's init, busybox's and OpenRC's log in people on tty1, and not on the console.
fn show_again(tree: &OwnedFd, what: &str, place: &str) -> io::Result<()> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    drop(openat(tree, place, create, Mode::from_raw_mode(0o600))?);
    move_mount(open_tree_clone(tree, Path::new(what), false)?, tree, Path::new(place))
}

/// The kernel's settings are the host's, but those of the network namespace.
fn protect_settings(tree: &OwnedFd) -> Result<(), StepFailure> {
    let own = copy(tree, "proc/sys/net", INERT).at(Step::Mount, "/proc/sys/net")?;
    bind(tree, "proc/sys", INERT | READ_ONLY).at(Step::Mount, "/proc/sys")?;
    move_mount(own, tree, Path::new("proc/sys/net")).at(Step::Mount, "/proc/sys/net")
}

/// Boots of one container are told apart by it, in its journal among others; the host's is the same for all of them.
fn show_boot_id(tree: &OwnedFd) -> io::Result<()> {
    let random = (u128::from(random_u64()?) << 64) | u128::from(random_u64()?);
    let id = MachineId::from_random(random.to_be_bytes()).hyphenated();
    network::cover(tree, BOOT_ID, &format!("{id}\n"))
}

fn mask(tree: &OwnedFd) -> Result<(), StepFailure> {
    let masked = |with: &'static str| move |place: &'static str| (place, with);
    let files = MASKED_FILES.into_iter().map(masked("run/host/inaccessible/reg"));
    let directories = MASKED_DIRECTORIES.into_iter().map(masked("run/host/inaccessible/dir"));
    for (place, with) in files.chain(directories) {
        if_there(cover(tree, place, with)).at(Step::Mount, place)?;
    }
    for place in READ_ONLY_PLACES {
        if_there(bind(tree, place, INERT | READ_ONLY)).at(Step::Mount, place)?;
    }
    Ok(())
}

/// What this kernel does not have needs no mask.
fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn cover(tree: &OwnedFd, place: &str, with: &str) -> io::Result<()> {
    move_mount(copy(tree, with, INERT | READ_ONLY)?, tree, Path::new(place))
}

/// Binds a part of the tree over itself, with more attributes.
fn bind(tree: &OwnedFd, place: &str, attributes: MountAttrFlags) -> io::Result<()> {
    move_mount(copy(tree, place, attributes)?, tree, Path::new(place))
}

fn copy(tree: &OwnedFd, place: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let copy = open_tree_clone(tree.as_fd(), Path::new(place), false)?;
    mount_setattr(&copy, &MountChange { set: attributes, ..MountChange::default() })?;
    Ok(copy)
}

/// Complete proc and sysfs mounts: the kernel gives an inner namespace new ones only where it sees whole ones already.
fn keep_whole_views(root: &NewRoot) -> Result<(), StepFailure> {
    let make = |path: &str, mode| mkdirat(&root.tree, path, Mode::from_raw_mode(mode)).at(Step::Mount, path);
    make(HIDDEN, 0o700)?;
    for (kind, place) in [("proc", "run/.cgrant/proc"), ("sysfs", "run/.cgrant/sys")] {
        make(place, 0o755)?;
        root.mount(kind, &[], INERT, place)?;
    }
    Ok(())
}
