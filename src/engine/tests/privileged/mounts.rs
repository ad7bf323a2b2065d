//! Mounts of real directories for real namespaces of real users, and users who want more than that.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cgrant_engine::mountmap::{MountError, MountRefusal, Mounter, NodeWish, Shift, Step, Wish};
use cgrant_policy::HostUid;
use cgrant_sys::{
    Child, Clone3, MntnsFd, Pidfd,
    mount::{MountAttrFlags, MountChange, fs_mount, mount_setattr, move_mount, open_place},
    pidfd::Signal,
    privilege,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, openat},
    pipe::{PipeFlags, pipe_with},
};

use super::Test;

/// The tests.
pub const TESTS: &[Test] = &[
    (
        "mounts::files_belong_to_the_grant_and_stay_as_they_are",
        files_belong_to_the_grant_and_stay_as_they_are,
    ),
    ("mounts::what_a_mount_may_not_nobody_there_can_change", what_a_mount_may_not_nobody_there_can_change),
    ("mounts::what_is_written_belongs_to_who_is_on_the_map", what_is_written_belongs_to_who_is_on_the_map),
    ("mounts::a_directory_of_somebody_elses_is_refused", a_directory_of_somebody_elses_is_refused),
    ("mounts::a_directory_of_another_namespace_is_refused", a_directory_of_another_namespace_is_refused),
    ("mounts::a_mount_that_is_mapped_already_is_refused", a_mount_that_is_mapped_already_is_refused),
    ("mounts::file_systems_of_others_are_not_asked", file_systems_of_others_are_not_asked),
    ("mounts::what_the_account_mounted_itself_is_refused", what_the_account_mounted_itself_is_refused),
    ("mounts::what_is_hidden_under_a_mount_stays_hidden", what_is_hidden_under_a_mount_stays_hidden),
    ("mounts::renaming_and_unmounting_change_nothing", renaming_and_unmounting_change_nothing),
    ("mounts::what_is_kept_is_counted_to_who_keeps_it", what_is_kept_is_counted_to_who_keeps_it),
    ("mounts::an_asker_who_has_gone_leaves_nothing", an_asker_who_has_gone_leaves_nothing),
    ("mounts::a_node_is_the_hosts_device_with_another_owner", a_node_is_the_hosts_device_with_another_owner),
    ("mounts::a_group_gives_what_the_kernel_says_it_may", a_group_gives_what_the_kernel_says_it_may),
    ("mounts::the_helper_has_what_it_needs_and_no_more", the_helper_has_what_it_needs_and_no_more),
    ("mounts::the_helper_ends_with_the_engine", the_helper_ends_with_the_engine),
];

const USER: u32 = 3_000_000_001;
const OTHER: u32 = 3_000_000_002;
const DISK: u32 = 0x7900_0000;
const SHOWN: u32 = 0x7a00_0000;
const COUNT: u32 = 65_536;

/// A user's process in user and mount namespaces of its own, and a directory of theirs.
struct Place {
    process: Child,
    gate: Option<File>,
    directory: tempfile::TempDir,
}

impl Place {
    /// Of this user. `prepare` is done in the new mount namespace before it is anybody's: as root.
    fn of(uid: u32) -> Self {
        Self::after(uid, |_| ())
    }

    fn after(uid: u32, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::Builder::new().prefix("cgrant-mounts-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(directory.path(), Some(uid), Some(uid)).unwrap();
        let (far_end, gate) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (ready, say) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let path = directory.path().to_owned();
        let process = Clone3::new().spawn(|| {
            use std::os::fd::AsRawFd;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
                .unwrap();
            prepare(&path);
            privilege::close_fds_from(3, &[far_end.as_raw_fd(), say.as_raw_fd()]).unwrap();
            privilege::become_account(uid, uid).unwrap();
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).unwrap();
            privilege::set_dumpable(true).unwrap();
            rustix::io::write(&say, b"r").unwrap();
            i32::from(rustix::io::read(&far_end, &mut [0; 1]).is_err())
        });
        let process = process.unwrap();
        drop(say);
        assert_eq!(rustix::io::read(&ready, &mut [0; 1]), Ok(1), "the user could not make namespaces");
        Self { process, gate: Some(gate.into()), directory }
    }

    fn namespace(&self) -> MntnsFd {
        MntnsFd::from_fd(File::open(format!("/proc/{}/ns/mnt", self.process.pid)).unwrap().into()).unwrap()
    }

    /// A path of the host's, as this process's mount namespace has it.
    fn inside(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.process.pid)).join(path.strip_prefix("/").unwrap())
    }

    /// A directory below its own, opened there.
    fn open(&self, name: &str) -> OwnedFd {
        open(&self.inside(&self.directory.path().join(name)))
    }

    /// Ends the process.
    fn end(&mut self) {
        if self.gate.take().is_some() {
            self.process.pidfd.wait().unwrap();
        }
    }

    /// Makes a directory below its own, that belongs to this id.
    fn make(&self, name: &str, owner: u32) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end();
    }
}

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn range() -> Shift {
    Shift { disk: DISK, shown: SHOWN, count: COUNT }
}

fn ask(
    mounter: &Mounter,
    directory: &OwnedFd,
    namespace: &MntnsFd,
    shift: Shift,
) -> Result<OwnedFd, MountError> {
    mounter.make(&Wish {
        account: HostUid(USER),
        directory: directory.as_fd(),
        namespace,
        uids: shift,
        gids: shift,
        read_only: false,
    })
}

fn refusal(result: Result<OwnedFd, MountError>) -> MountRefusal {
    match result {
        Err(MountError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn owner(directory: &OwnedFd, name: &str) -> (u32, u32) {
    let stat = rustix::fs::statat(directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    (stat.st_uid, stat.st_gid)
}

fn files_belong_to_the_grant_and_stay_as_they_are() {
    let mounter = Mounter::start().unwrap();
    let place = Place::of(USER);
    let rootfs = place.make("rootfs", DISK);
    for (name, owner) in [("root", DISK), ("last", DISK + COUNT - 1), ("above", DISK + COUNT), ("host", 0)] {
        fs::write(rootfs.join(name), name).unwrap();
        chown(rootfs.join(name), Some(owner), Some(owner)).unwrap();
    }
    let (directory, namespace) = (place.open("rootfs"), place.namespace());
    let wish = |read_only| Wish {
        account: HostUid(USER),
        directory: directory.as_fd(),
        namespace: &namespace,
        uids: range(),
        gids: range(),
        read_only,
    };
    let nobody = (65_534, 65_534);
    let locked = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    for read_only in [false, true] {
        let mount = mounter.make(&wish(read_only)).unwrap();
        assert_eq!(fstat(&mount).unwrap().st_uid, SHOWN);
        assert_eq!(owner(&mount, "root"), (SHOWN, SHOWN));
        assert_eq!(owner(&mount, "last"), (SHOWN + COUNT - 1, SHOWN + COUNT - 1));
        assert_eq!([owner(&mount, "above"), owner(&mount, "host")], [nobody; 2]);
        let flags = fstatvfs(&mount).unwrap().f_flag;
        assert!(flags.contains(locked), "{flags:?}");
        assert_eq!(flags.contains(StatVfsMountFlags::RDONLY), read_only);
        // By whatever right: what is nobody's can't be written.
        let written = openat(&mount, "host", OFlags::WRONLY, Mode::empty());
        assert!(written.is_err(), "a file that is not on the map was opened for writing");
    }
    assert_eq!(owner(&directory, "root"), (DISK, DISK));
}

fn what_a_mount_may_not_nobody_there_can_change() {
    let mounter = Mounter::start().unwrap();
    let place = Place::of(USER);
    place.make("rootfs", DISK);
    place.make("at", USER);
    let (directory, namespace) = (place.open("rootfs"), place.namespace());
    let wish = Wish {
        account: HostUid(USER),
        directory: directory.as_fd(),
        namespace: &namespace,
        uids: range(),
        gids: range(),
        read_only: true,
    };
    let mount = mounter.make(&wish).unwrap();
    let at = place.directory.path().join("at");
    let userns = place.process.pidfd.user_namespace().unwrap();
    let child = Clone3::new().spawn(|| {
        // With every right that there is in there.
        userns.enter().unwrap();
        namespace.enter().unwrap();
        let changes = || {
            let flags = [
                MountAttrFlags::MOUNT_ATTR_RDONLY,
                MountAttrFlags::MOUNT_ATTR_NOSUID,
                MountAttrFlags::MOUNT_ATTR_NODEV,
            ];
            flags.map(|clear| mount_setattr(&mount, &MountChange { clear, ..MountChange::default() }))
        };
        let refused = |result: &std::io::Result<()>| {
            result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        };
        assert!(changes().iter().all(refused));
        move_mount(&mount, open_place(&at).unwrap(), Path::new("")).unwrap();
        assert!(changes().iter().all(refused));
        // Its place is not locked.
        nix::mount::umount2(&at, nix::mount::MntFlags::MNT_DETACH).unwrap();
        0
    });
    assert_eq!(child.unwrap().pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
}

fn what_is_written_belongs_to_who_is_on_the_map() {
    let mounter = Mounter::start().unwrap();
    let place = Place::of(USER);
    let path = place.make("own", USER);
    let one = Shift { disk: USER, shown: SHOWN + 1000, count: 1 };
    let mount = ask(&mounter, &place.open("own"), &place.namespace(), one).unwrap();
    let write = |uid: u32, name: &str| {
        let child = Clone3::new().spawn(|| {
            privilege::become_account(uid, uid).unwrap();
            match openat(&mount, name, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR) {
                Ok(_) => 0,
                Err(errno) => errno.raw_os_error(),
            }
        });
        child.unwrap().pidfd.wait().unwrap()
    };
    assert_eq!(write(SHOWN + 1000, "mine"), cgrant_sys::Exit::Code(0));
    let stat = fs::metadata(path.join("mine")).unwrap();
    assert_eq!(
        (std::os::unix::fs::MetadataExt::uid(&stat), std::os::unix::fs::MetadataExt::gid(&stat)),
        (USER, USER)
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let overflow = rustix::io::Errno::OVERFLOW.raw_os_error();
    assert_eq!(write(SHOWN, "others"), cgrant_sys::Exit::Code(overflow));
    assert_eq!(write(USER, "others"), cgrant_sys::Exit::Code(overflow));
}

fn a_directory_of_somebody_elses_is_refused() {
    let mounter = Mounter::start().unwrap();
    let place = Place::of(USER);
    for (name, owner) in [("other", OTHER), ("root", 0), ("above", DISK + COUNT), ("shown", SHOWN)] {
        place.make(name, owner);
        let asked = ask(&mounter, &place.open(name), &place.namespace(), range());
        assert_eq!(refusal(asked), MountRefusal::Others(owner), "{name}");
    }
    // One that is in theirs, which the account may enter.
    for path in ["/", "/etc", "/usr"] {
        let directory = open(&place.inside(Path::new(path)));
        let refused = refusal(ask(&mounter, &directory, &place.namespace(), range()));
        assert!(
            matches!(refused, MountRefusal::Others(0) | MountRefusal::FileSystem(_)),
            "{path}: {refused:?}"
        );
    }
    for path in ["/proc", "/sys"] {
        let directory = open(&place.inside(Path::new(path)));
        let refused = refusal(ask(&mounter, &directory, &place.namespace(), range()));
        assert!(matches!(refused, MountRefusal::FileSystem(_)), "{path}: {refused:?}");
    }
}

fn a_directory_of_another_namespace_is_refused() {
    let mounter = Mounter::start().unwrap();
    let (place, second) = (Place::of(USER), Place::of(USER));
    place.make("rootfs", DISK);
    let hosts = open(&place.directory.path().join("rootfs"));
    for (directory, namespace) in [(&hosts, place.namespace()), (&place.open("rootfs"), second.namespace())] {
        assert_eq!(refusal(ask(&mounter, directory, &namespace, range())), MountRefusal::Elsewhere);
    }
    // What is attached nowhere is in none.
    let detached = ask(&mounter, &place.open("rootfs"), &place.namespace(), range()).unwrap();
    let detached = openat(&detached, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(refusal(ask(&mounter, &detached, &place.namespace(), range())), MountRefusal::Elsewhere);
}

fn a_mount_that_is_mapped_already_is_refused() {
    let mounter = Mounter::start().unwrap();
    let first = Place::of(USER);
    first.make("rootfs", DISK);
    let mapped = ask(&mounter, &first.open("rootfs"), &first.namespace(), range()).unwrap();
    let place = Place::after(USER, |path| {
        fs::create_dir(path.join("mapped")).unwrap();
        let at = open_place(&path.join("mapped")).unwrap();
        move_mount(&mapped, at, Path::new("")).unwrap();
    });
    // There it belongs to ids of the account, as far as one can see.
    let back = Shift { disk: SHOWN, shown: DISK, count: COUNT };
    let refused = refusal(ask(&mounter, &place.open("mapped"), &place.namespace(), back));
    assert_eq!(refused, MountRefusal::Mapped);
}

/// A FUSE file system whose root directory can be opened, and which answers nothing else.
fn fuse_that_hangs(path: &Path) -> File {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    use std::os::fd::AsRawFd;
    let options =
        format!("fd={},rootmode=40755,user_id={USER},group_id={USER},allow_other", device.as_raw_fd());
    mount(Some("made-up"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
    device
}

/// Serves until the directory is open: answers INIT, and says to OPENDIR that nobody needs to ask.
fn serve_fuse(mut device: &File) {
    const INIT: u32 = 26;
    const OPENDIR: u32 = 27;
    loop {
        let mut request = vec![0; 1 << 17];
        let length = device.read(&mut request).unwrap();
        assert!(length >= 40);
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let (opcode, unique) = (word(4), &request[8..16]);
        let answer = |error: i32, body: &[u8]| {
            let length = u32::try_from(16 + body.len()).unwrap();
            [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique, body].concat()
        };
        match opcode {
            INIT => {
                // struct fuse_init_out: version 7.31, and the most that is written at once.
                let mut body = [0; 64];
                body[0..4].copy_from_slice(&7_u32.to_ne_bytes());
                body[4..8].copy_from_slice(&31_u32.to_ne_bytes());
                body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                device.write_all(&answer(0, &body)).unwrap();
            }
            OPENDIR => {
                let no = rustix::io::Errno::NOSYS.raw_os_error();
                device.write_all(&answer(-no, &[])).unwrap();
                return;
            }
            other => panic!("unexpected request {other}"),
        }
    }
}

fn file_systems_of_others_are_not_asked() {
    let mounter = Mounter::start().unwrap();
    let parent = tempfile::Builder::new().prefix("cgrant-fuse-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // In a mount namespace that ends with this process.
    let result = Clone3::new().flags(CloneFlags::CLONE_NEWNS).spawn(|| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        let device = fuse_that_hangs(parent.path());
        let place = Place::of(USER);
        let server = Clone3::new().spawn(|| {
            serve_fuse(&device);
            0
        });
        let directory = open(&place.inside(parent.path()));
        server.unwrap().pidfd.wait().unwrap();
        let before = Instant::now();
        let refused = refusal(ask(&mounter, &directory, &place.namespace(), range()));
        assert_eq!(refused, MountRefusal::FileSystem("fuse".to_owned()));
        // Nor does it keep anybody from what comes next.
        place.make("rootfs", DISK);
        ask(&mounter, &place.open("rootfs"), &place.namespace(), range()).unwrap();
        assert!(before.elapsed() < Duration::from_secs(60));
        0
    });
    assert_eq!(result.unwrap().pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
}

fn what_the_account_mounted_itself_is_refused() {
    let mounter = Mounter::start().unwrap();
    // A file system that no other namespace has: a stand-in for one that was mounted in the account's own.
    let place = Place::after(USER, |path| {
        fs::create_dir(path.join("own")).unwrap();
        let owner = DISK.to_string();
        let options = [("size", Some("1m")), ("uid", Some(owner.as_str())), ("mode", Some("755"))];
        let tmpfs = fs_mount("tmpfs", &options, MountAttrFlags::empty()).unwrap();
        move_mount(&tmpfs, open_place(&path.join("own")).unwrap(), Path::new("")).unwrap();
    });
    let refused = refusal(ask(&mounter, &place.open("own"), &place.namespace(), range()));
    assert_eq!(refused, MountRefusal::NotTheHosts);
}

fn what_is_hidden_under_a_mount_stays_hidden() {
    let mounter = Mounter::start().unwrap();
    let place = Place::after(USER, |path| {
        fs::create_dir_all(path.join("rootfs/hidden")).unwrap();
        fs::write(path.join("rootfs/hidden/secret"), "").unwrap();
        for directory in ["rootfs", "rootfs/hidden"] {
            chown(path.join(directory), Some(DISK), Some(DISK)).unwrap();
        }
        mount(Some("none"), &path.join("rootfs/hidden"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap();
    });
    let refused = refusal(ask(&mounter, &place.open("rootfs"), &place.namespace(), range()));
    assert!(matches!(refused, MountRefusal::Kernel { step: Step::Clone, .. }), "{refused:?}");
}

fn renaming_and_unmounting_change_nothing() {
    let mounter = Mounter::start().unwrap();
    let mut place = Place::of(USER);
    let path = place.make("rootfs", DISK);
    let directory = place.open("rootfs");
    // Where it was is now one of somebody else's.
    fs::rename(&path, place.directory.path().join("elsewhere")).unwrap();
    place.make("rootfs", 0);
    fs::write(path.join("not-this"), "").unwrap();
    let mount = ask(&mounter, &directory, &place.namespace(), range()).unwrap();
    assert_eq!(fstat(&mount).unwrap().st_uid, SHOWN);
    assert!(openat(&mount, "not-this", OFlags::RDONLY, Mode::empty()).is_err());
    // The namespace outlives its processes by its descriptor.
    let namespace = place.namespace();
    place.end();
    ask(&mounter, &directory, &namespace, range()).unwrap();
    // A directory that is gone is no use to anybody.
    drop(place);
    let refused = refusal(ask(&mounter, &directory, &namespace, range()));
    assert!(matches!(refused, MountRefusal::Kernel { .. }), "{refused:?}");
}

/// Says that this program is the one in the namespace.
const INSIDE: &str = "CGRANT_TEST_INSIDE";

// In a user namespace of its own, which has such limits for itself: it stands for the host. Executed anew there, because the
// memory of a process belongs to the user namespace that it was executed in.
fn what_is_kept_is_counted_to_who_keeps_it() {
    if std::env::var_os(INSIDE).is_some() {
        return keep_until_there_is_no_more();
    }
    let (mapped, say) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    let child = Clone3::new().flags(flags).spawn(|| {
        use std::os::unix::process::CommandExt;
        assert_eq!(rustix::io::read(&mapped, &mut [0; 1]), Ok(1));
        let mut again = std::process::Command::new("/proc/self/exe");
        panic!("{}", again.arg("mounts::what_is_kept").env(INSIDE, "1").exec())
    });
    let child = child.unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.pid), "0 0 4294967295").unwrap();
    }
    rustix::io::write(&say, b"x").unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
}

fn keep_until_there_is_no_more() {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
    for file in ["max_user_namespaces", "max_mnt_namespaces"] {
        fs::write(Path::new("/proc/sys/user").join(file), "24").unwrap();
    }
    let mounter = Mounter::start().unwrap();
    let asker = |uid| {
        let place = Place::of(uid);
        place.make("rootfs", DISK);
        let (directory, namespace) = (place.open("rootfs"), place.namespace());
        (place, directory, namespace)
    };
    let ask = |uid, (_, directory, namespace): &(Place, OwnedFd, MntnsFd)| {
        let (account, directory) = (HostUid(uid), directory.as_fd());
        let (uids, gids) = (range(), range());
        mounter.make(&Wish { account, directory, namespace, uids, gids, read_only: false })
    };
    let (greedy, other) = (asker(USER), asker(OTHER));
    let mut kept = Vec::new();
    let refused = loop {
        match ask(USER, &greedy) {
            Ok(mount) => kept.push(mount),
            Err(error) => break error,
        }
        assert!(kept.len() < 24, "there is no limit");
    };
    assert!(kept.len() > 8, "{refused} after {}", kept.len());
    let full = rustix::io::Errno::NOSPC.raw_os_error();
    assert!(
        matches!(refused, MountError::Refused(MountRefusal::Kernel { errno, .. }) if errno == full),
        "{refused:?}"
    );
    // Nobody else feels it, and who lets go has room again.
    ask(OTHER, &other).unwrap();
    ask(0, &other).unwrap();
    drop(kept);
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = ask(USER, &greedy) {
        assert!(Instant::now() < end, "{error}");
    }
}

fn an_asker_who_has_gone_leaves_nothing() {
    let mounter = Mounter::start().unwrap();
    let helper = Pidfd::from_fd(mounter.process().try_clone_to_owned().unwrap()).unwrap().pid().unwrap();
    let place = Place::of(USER);
    place.make("rootfs", DISK);
    let (directory, namespace) = (place.open("rootfs"), place.namespace());
    for _ in 0..20 {
        let asker =
            Clone3::new().spawn(|| i32::from(ask(&mounter, &directory, &namespace, range()).is_err()));
        let asker = asker.unwrap();
        asker.pidfd.send_signal(Signal::KILL).unwrap();
        asker.pidfd.wait().unwrap();
    }
    ask(&mounter, &directory, &namespace, range()).unwrap();
    let children = || {
        fs::read_to_string(format!("/proc/{helper}/task/{helper}/children"))
            .unwrap()
            .split_whitespace()
            .count()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while children() > 0 {
        assert!(Instant::now() < deadline, "processes of the helper are left");
        std::thread::yield_now();
    }
}

const GROUP: u32 = 3_000_000_003;

// What is done with nodes of a tmpfs, as root and where nobody else sees them. The numbers are those of /dev/zero.
fn with_nodes(script: &str, then: impl FnOnce(&dyn Fn(&str) -> OwnedFd)) {
    let directory = tempfile::Builder::new().prefix("cgrant-nodes-").tempdir_in("/tmp").unwrap();
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWNS).spawn(|| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        mount(Some("nodes"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        let mut shell = std::process::Command::new("sh");
        assert!(shell.current_dir(directory.path()).args(["-euc", script]).status().unwrap().success());
        let open = |name: &str| {
            openat(CWD, directory.path().join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        then(&open);
        0
    });
    assert_eq!(child.unwrap().pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
}

fn make_node(mounter: &Mounter, host: &OwnedFd, by_group: Option<u32>) -> Result<OwnedFd, MountError> {
    mounter.make_node(&NodeWish {
        account: HostUid(USER),
        host: host.as_fd(),
        uid: SHOWN,
        gid: SHOWN + 1,
        by_group,
    })
}

fn a_node_is_the_hosts_device_with_another_owner() {
    let mounter = Mounter::start().unwrap();
    let script =
        "umask 0; mknod zero c 1 5; chmod 640 zero; mknod block b 7 0; mkfifo fifo; >file; mkdir directory";
    with_nodes(script, |open| {
        let node = make_node(&mounter, &open("zero"), None).unwrap();
        let found = fstat(&node).unwrap();
        assert_eq!((found.st_mode, found.st_uid, found.st_gid), (0o20_640, SHOWN, SHOWN + 1));
        assert_eq!(found.st_rdev, fstat(open("zero")).unwrap().st_rdev);
        let flags = fstatvfs(&node).unwrap().f_flag;
        assert!(flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC), "{flags:?}");
        assert!(!flags.contains(StatVfsMountFlags::NODEV), "{flags:?}");
        // Its owner may use it, and nobody else.
        for (uid, may) in [(SHOWN, true), (USER, false)] {
            let user = Clone3::new().spawn(|| {
                use std::os::fd::AsRawFd;
                privilege::become_account(uid, uid).unwrap();
                privilege::set_dumpable(true).unwrap();
                let opened =
                    openat(CWD, format!("/proc/self/fd/{}", node.as_raw_fd()), OFlags::RDWR, Mode::empty());
                let read = opened.map(|zero| rustix::io::read(&zero, &mut [1; 1]));
                i32::from(matches!(read, Ok(Ok(1))))
            });
            assert_eq!(user.unwrap().pidfd.wait().unwrap(), cgrant_sys::Exit::Code(may.into()), "{uid}");
        }
        for name in ["block", "fifo", "file", "directory"] {
            assert_eq!(refusal(make_node(&mounter, &open(name), None)), MountRefusal::NoDevice, "{name}");
        }
    });
}

fn a_group_gives_what_the_kernel_says_it_may() {
    let mounter = Mounter::start().unwrap();
    let script = "for mode in 660 640 620 606 600 666; do mknod $mode c 1 5; chown 0:3000000003 $mode; chmod $mode $mode; done
        mknod listed c 1 5; chown 0:3000000003 listed; chmod 660 listed";
    with_nodes(script, |open| {
        // The owning group has no right by this list, which the mode shows as its mask; uid USER has.
        let entries: [(u16, u16, u32); 5] =
            [(1, 6, u32::MAX), (2, 6, USER), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)];
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            list.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        let path = {
            use std::os::fd::AsRawFd;
            let listed = open("listed");
            fs::read_link(format!("/proc/self/fd/{}", listed.as_raw_fd())).unwrap()
        };
        rustix::fs::setxattr(&path, "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty())
            .unwrap();
        assert_eq!(fstat(open("listed")).unwrap().st_mode & 0o777, 0o660);
        for (name, may) in
            [("660", true), ("666", true), ("640", false), ("620", false), ("600", false), ("listed", false)]
        {
            match make_node(&mounter, &open(name), Some(GROUP)) {
                Ok(_) => assert!(may, "{name}"),
                refused => {
                    assert_eq!(refusal(refused), MountRefusal::NotForGroup(GROUP), "{name}");
                    assert!(!may, "{name}");
                }
            }
        }
        // Who is in the group has no part in what others may.
        assert_eq!(refusal(make_node(&mounter, &open("606"), Some(GROUP))), MountRefusal::NotForGroup(GROUP));
        assert_eq!(
            refusal(make_node(&mounter, &open("660"), Some(GROUP + 1))),
            MountRefusal::NotForGroup(GROUP + 1)
        );
    });
}

fn the_helper_has_what_it_needs_and_no_more() {
    let mounter = Mounter::start().unwrap();
    let place = Place::of(USER);
    place.make("rootfs", DISK);
    // When it has answered it is what it is.
    ask(&mounter, &place.open("rootfs"), &place.namespace(), range()).unwrap();
    let helper = Pidfd::from_fd(mounter.process().try_clone_to_owned().unwrap()).unwrap().pid().unwrap();
    // CAP_CHOWN, CAP_SETGID, CAP_SETUID, CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_MKNOD.
    let expected: u64 = [0, 6, 7, 18, 19, 21, 27].iter().map(|bit| 1_u64 << bit).sum();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let found = u64::from_str_radix(&super::support::status(helper, set), 16).unwrap();
        assert_eq!(found & !expected, 0, "{set}");
    }
    assert_eq!(super::support::status(helper, "NoNewPrivs"), "1");
    // One above the standard ones, when it has reaped what served the request.
    let above = || {
        let open = fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
        let names = open.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<u32>().unwrap());
        names.filter(|number| *number > 2).count()
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while above() != 1 {
        assert!(Instant::now() < deadline, "{} descriptors", above());
        std::thread::yield_now();
    }
}

fn the_helper_ends_with_the_engine() {
    let mounter = Mounter::start().unwrap();
    let helper = Pidfd::from_fd(mounter.process().try_clone_to_owned().unwrap()).unwrap();
    drop(mounter);
    assert_eq!(helper.wait().unwrap(), cgrant_sys::Exit::Code(0));
}
