//! Programs that limit devices, asked by the kernel: of a process in a cgroup of this run's own, by nodes in a file system of its own.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use cgrant_sys::{
    Clone3, Exit,
    bpf::{COMMANDS, Device, DeviceAccess, DeviceProgram},
    mount::{MountAttrFlags, fs_mount},
    privilege::{self, Capability},
    seccomp::{self, Action, RUNTIME},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat, unlinkat},
    io::Errno,
};

use crate::{Test, errno};

pub const TESTS: &[Test] = &[
    (
        "devices::the_kernel_allows_what_is_listed_and_nothing_else",
        the_kernel_allows_what_is_listed_and_nothing_else,
    ),
    (
        "devices::a_program_stays_when_whoever_attached_it_has_ended",
        a_program_stays_when_whoever_attached_it_has_ended,
    ),
    ("devices::one_is_replaced_by_another", one_is_replaced_by_another),
    ("devices::nobody_else_takes_it_away_or_gets_more_below", nobody_else_takes_it_away_or_gets_more_below),
    ("devices::nothing_but_a_cgroup_takes_one", nothing_but_a_cgroup_takes_one),
    (
        "devices::the_rights_and_calls_that_are_named_are_enough",
        the_rights_and_calls_that_are_named_are_enough,
    ),
];

const NULL: Device = Device { major: 1, minor: Some(3), access: DeviceAccess::ALL };
const ZERO: Device = Device { major: 1, minor: Some(5), access: DeviceAccess::ALL };

/// A cgroup2 cgroup that goes with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|mount| Path::new(mount).join("cgroup.controllers").exists())
            .expect("no cgroup2 is mounted");
        let cgroup = Self(Path::new(mount).join(format!("cgrant-test-{}-{name}", std::process::id())));
        fs::create_dir(&cgroup.0).unwrap();
        cgroup
    }

    fn dir(&self) -> OwnedFd {
        openat(CWD, &self.0, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// What a process in it says.
    fn inside(&self, child: impl FnOnce() -> i32) -> Exit {
        // By moving, as what is attached to a grant is moved.
        let exit = Clone3::new().spawn(|| {
            fs::write(self.0.join("cgroup.procs"), "0").unwrap();
            child()
        });
        exit.unwrap().pidfd.wait().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A file system where nodes can be made.
fn nodes() -> OwnedFd {
    fs_mount("tmpfs", &[], MountAttrFlags::empty()).unwrap()
}

fn makes(nodes: &OwnedFd, kind: FileType, major: u32, minor: u32) -> Result<(), Errno> {
    let made = mknodat(nodes, "node", kind, Mode::from_raw_mode(0o666), makedev(major, minor));
    let _ = unlinkat(nodes, "node", rustix::fs::AtFlags::empty());
    made
}

/// A node, made outside, that is opened inside.
fn opens(nodes: &OwnedFd, name: &str, flags: OFlags) -> Result<(), Errno> {
    openat(nodes, name, flags | OFlags::CLOEXEC, Mode::empty()).map(drop)
}

fn put(nodes: &OwnedFd, name: &str, kind: FileType, major: u32, minor: u32) {
    mknodat(nodes, name, kind, Mode::from_raw_mode(0o666), makedev(major, minor)).unwrap();
}

fn expect(what: &str, found: Result<(), Errno>, allowed: bool) {
    let expected = if allowed { Ok(()) } else { Err(Errno::PERM) };
    assert_eq!(found, expected, "{what}");
}

fn the_kernel_allows_what_is_listed_and_nothing_else() {
    let nodes = nodes();
    put(&nodes, "null", FileType::CharacterDevice, 1, 3);
    put(&nodes, "zero", FileType::CharacterDevice, 1, 5);
    put(&nodes, "kmsg", FileType::CharacterDevice, 1, 11);
    put(&nodes, "loop", FileType::BlockDevice, 7, 0);
    for bits in 0..=7 {
        for minor in [Some(3), None] {
            let cgroup = Cgroup::new("listed");
            let access = DeviceAccess::from_bits(bits);
            let listed = [
                Device { major: 9, minor: None, access: DeviceAccess::ALL },
                Device { major: 1, minor, access },
            ];
            DeviceProgram::load(&listed).unwrap().attach(cgroup.dir().as_fd()).unwrap();
            let has = |of: DeviceAccess| bits & of.bits() != 0;
            let exit = cgroup.inside(|| {
                let what = |name: &str| format!("{name} with {bits} for {minor:?}");
                for (name, is_listed) in
                    [("null", true), ("zero", minor.is_none()), ("kmsg", minor.is_none())]
                {
                    let (read, write) = (has(DeviceAccess::READ), has(DeviceAccess::WRITE));
                    expect(&what(name), opens(&nodes, name, OFlags::RDONLY), is_listed && read);
                    expect(&what(name), opens(&nodes, name, OFlags::WRONLY), is_listed && write);
                    expect(&what(name), opens(&nodes, name, OFlags::RDWR), is_listed && read && write);
                    // To look is no access.
                    expect(&what(name), opens(&nodes, name, OFlags::PATH), true);
                }
                expect(&what("loop"), opens(&nodes, "loop", OFlags::RDONLY), false);
                let mknod = has(DeviceAccess::MKNOD);
                for (kind, major, number, allowed) in [
                    (FileType::CharacterDevice, 1, 3, mknod),
                    (FileType::CharacterDevice, 1, 5, mknod && minor.is_none()),
                    (FileType::CharacterDevice, 2, 3, false),
                    (FileType::CharacterDevice, 9, 77, true),
                    (FileType::BlockDevice, 1, 3, false),
                    (FileType::BlockDevice, 9, 77, false),
                    (FileType::Fifo, 0, 0, true),
                    // What overlays write in the place of what was removed is nobody's device.
                    (FileType::CharacterDevice, 0, 0, true),
                ] {
                    let what = format!("a node {kind:?} {major}:{number} with {bits} for {minor:?}");
                    expect(&what, makes(&nodes, kind, major, number), allowed);
                }
                0
            });
            assert_eq!(exit, Exit::Code(0), "{bits} {minor:?}");
        }
    }
}

fn a_program_stays_when_whoever_attached_it_has_ended() {
    let (cgroup, nodes) = (Cgroup::new("stays"), nodes());
    let attached = Clone3::new().spawn(|| {
        DeviceProgram::load(&[NULL]).unwrap().attach(cgroup.dir().as_fd()).unwrap();
        0
    });
    assert_eq!(attached.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
    let tries = || {
        expect("null", makes(&nodes, FileType::CharacterDevice, 1, 3), true);
        expect("zero", makes(&nodes, FileType::CharacterDevice, 1, 5), false);
        0
    };
    assert_eq!(cgroup.inside(tries), Exit::Code(0));
    // Outside of it nothing changed.
    makes(&nodes, FileType::CharacterDevice, 1, 5).unwrap();
}

fn one_is_replaced_by_another() {
    let (cgroup, nodes) = (Cgroup::new("replaced"), nodes());
    let dir = cgroup.dir();
    assert!(DeviceProgram::attached(dir.as_fd()).unwrap().is_none());
    DeviceProgram::load(&[NULL]).unwrap().attach(dir.as_fd()).unwrap();
    let is = |null: bool, zero: bool| {
        let exit = cgroup.inside(|| {
            expect("null", makes(&nodes, FileType::CharacterDevice, 1, 3), null);
            expect("zero", makes(&nodes, FileType::CharacterDevice, 1, 5), zero);
            0
        });
        assert_eq!(exit, Exit::Code(0));
    };
    is(true, false);
    // As often as anybody likes: there is never more than one.
    for _ in 0..200 {
        let before = DeviceProgram::attached(dir.as_fd()).unwrap().unwrap();
        DeviceProgram::load(&[ZERO]).unwrap().replace(dir.as_fd(), &before).unwrap();
    }
    is(false, true);
    let stranger = DeviceProgram::load(&[NULL]).unwrap();
    assert_eq!(errno(DeviceProgram::load(&[NULL]).unwrap().replace(dir.as_fd(), &stranger)), libc::ENOENT);
    is(false, true);
}

/// `BPF_PROG_DETACH` at a cgroup of whatever program the kernel takes that to mean.
fn detaches(dir: &OwnedFd, program: u32) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    const PROG_DETACH: libc::c_int = 9;
    // target_fd, attach_bpf_fd, attach_type: of a device program.
    let attributes: [u32; 5] = [dir.as_raw_fd().cast_unsigned(), program, 6, 0, 0];
    // SAFETY: the kernel reads so many bytes of what is plain integers, and the command takes no pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_DETACH, attributes.as_ptr(), size_of_val(&attributes)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

fn nobody_else_takes_it_away_or_gets_more_below() {
    let (cgroup, nodes) = (Cgroup::new("around"), nodes());
    DeviceProgram::load(&[NULL]).unwrap().attach(cgroup.dir().as_fd()).unwrap();
    let below = Cgroup(cgroup.0.join("below"));
    fs::create_dir(&below.0).unwrap();
    let is_limited = || {
        let exit = below.inside(|| {
            expect("zero", makes(&nodes, FileType::CharacterDevice, 1, 5), false);
            expect("kmsg", makes(&nodes, FileType::CharacterDevice, 1, 11), false);
            0
        });
        assert_eq!(exit, Exit::Code(0));
    };
    is_limited();
    // Who has the right to programs attaches one below that allows more: both are asked.
    let more = DeviceProgram::load(&[NULL, ZERO, Device { minor: Some(11), ..ZERO }]).unwrap();
    more.attach(below.dir().as_fd()).unwrap();
    is_limited();
    // And without the program's descriptor nobody detaches it, root of the host included.
    for dir in [cgroup.dir(), below.dir()] {
        assert!(detaches(&dir, 0).is_err());
        assert!(detaches(&dir, u32::MAX).is_err());
    }
    is_limited();
    // Nobody without rights finds, loads or detaches any.
    let exit = Clone3::new().spawn(|| {
        let dirs = [cgroup.dir(), below.dir()];
        privilege::become_account(2_147_410_000, 2_147_410_000).unwrap();
        for dir in &dirs {
            assert!(detaches(dir, 0).is_err());
            assert_eq!(errno(DeviceProgram::attached(dir.as_fd())), libc::EPERM);
        }
        assert_eq!(errno(DeviceProgram::load(&[ZERO])), libc::EPERM);
        0
    });
    assert_eq!(exit.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
    is_limited();
}

fn nothing_but_a_cgroup_takes_one() {
    let program = DeviceProgram::load(&[NULL]).unwrap();
    for path in ["/", "/proc", "/dev/null"] {
        let file = fs::File::open(path).unwrap();
        assert_eq!(errno(program.attach(file.as_fd())), libc::EBADF, "{path}");
        assert!(DeviceProgram::attached(file.as_fd()).is_err(), "{path}");
    }
    // Too long for any kernel: refused, not cut.
    let many = vec![NULL; 200_000];
    assert_eq!(errno(DeviceProgram::load(&many)), libc::E2BIG);
    DeviceProgram::load(&many[..256]).unwrap();
}

fn the_rights_and_calls_that_are_named_are_enough() {
    let cgroup = Cgroup::new("rights");
    let exit = Clone3::new().spawn(|| {
        let dir = cgroup.dir();
        privilege::drop_capabilities(&[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN]).unwrap();
        seccomp::apply_narrowed(RUNTIME, &[(libc::SYS_bpf, &COMMANDS)], Action::Refuse).unwrap();
        let program = DeviceProgram::load(&[NULL]).unwrap();
        program.attach(dir.as_fd()).unwrap();
        let before = DeviceProgram::attached(dir.as_fd()).unwrap().unwrap();
        DeviceProgram::load(&[ZERO]).unwrap().replace(dir.as_fd(), &before).unwrap();
        // Another command is refused before the kernel looks at it.
        assert_eq!(errno(detaches(&dir, 0)), libc::EPERM);
        0
    });
    assert_eq!(exit.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
}
