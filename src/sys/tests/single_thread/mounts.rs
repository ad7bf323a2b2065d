//! Mounts, in a mount namespace that ends with the test.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cgrant_sys::mount::{
    CGROUP2_MAGIC, MountAttrFlags, MountChange, MountPropagationFlags, PROC_MAGIC, TMPFS_MAGIC, fs_mount,
    mount_cgroup2_detached, mount_setattr, move_mount, open_place, open_tree_clone, pivot_root, statfs_magic,
};
use cgrant_sys::{Clone3, Dir, Exit};
use nix::sched::CloneFlags;
use rustix::io::Errno;

use crate::{Test, children::Waiting, errno};

pub const TESTS: &[Test] = &[
    ("mounts::a_detached_mount_can_be_used_and_attached", a_detached_mount_can_be_used_and_attached),
    ("mounts::attributes_are_changed_by_descriptor", attributes_are_changed_by_descriptor),
    ("mounts::owners_are_mapped", owners_are_mapped),
    ("mounts::the_root_is_exchanged", the_root_is_exchanged),
    ("mounts::cgroup2_can_be_had_without_a_place", cgroup2_can_be_had_without_a_place),
    ("mounts::a_dir_does_not_cross_mounts", a_dir_does_not_cross_mounts),
    ("mounts::a_proc_that_is_none_is_noticed", a_proc_that_is_none_is_noticed),
];

/// From here on this process's mounts are nobody else's; `/mnt` is an empty tmpfs.
fn private() {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    attach(tmpfs(), "/mnt");
}

fn tmpfs() -> OwnedFd {
    fs_mount("tmpfs", &[("size", Some("1m")), ("mode", Some("0755"))], MountAttrFlags::MOUNT_ATTR_NOSUID)
        .unwrap()
}

fn attach(mount: OwnedFd, path: &str) {
    let (directory, name) = path.rsplit_once('/').unwrap();
    let directory = open_place(Path::new(if directory.is_empty() { "/" } else { directory })).unwrap();
    move_mount(mount, directory, Path::new(name)).unwrap();
}

fn a_detached_mount_can_be_used_and_attached() {
    private();
    let mount = tmpfs();
    assert_eq!(statfs_magic(&mount).unwrap(), TMPFS_MAGIC);
    Dir::from_fd(mount.try_clone().unwrap()).unwrap().create_dir("d", 0o755).unwrap();
    assert!(!Path::new("/mnt/d").exists());
    move_mount(&mount, open_place(Path::new("/mnt")).unwrap(), Path::new("")).unwrap();
    assert!(Path::new("/mnt/d").is_dir());
    assert_eq!(errno(fs_mount("nothing", &[], MountAttrFlags::empty())), libc::ENODEV);
    assert_eq!(errno(fs_mount("tmpfs", &[("nothing", None)], MountAttrFlags::empty())), libc::EINVAL);
}

fn attributes_are_changed_by_descriptor() {
    private();
    fs::create_dir_all("/mnt/a/b").unwrap();
    fs::create_dir("/mnt/copy").unwrap();
    attach(tmpfs(), "/mnt/a/b");
    let copy = open_tree_clone(open_place(Path::new("/mnt")).unwrap(), Path::new("a"), true).unwrap();
    let change =
        MountChange { set: MountAttrFlags::MOUNT_ATTR_RDONLY, recursive: true, ..MountChange::default() };
    mount_setattr(&copy, &change).unwrap();
    attach(copy, "/mnt/copy");
    for (path, is_writable) in
        [("/mnt/a/f", true), ("/mnt/a/b/f", true), ("/mnt/copy/f", false), ("/mnt/copy/b/f", false)]
    {
        let found = fs::write(path, "");
        assert_eq!(found.is_ok(), is_writable, "{path}: {found:?}");
    }
    let change = MountChange { clear: MountAttrFlags::MOUNT_ATTR_RDONLY, ..MountChange::default() };
    mount_setattr(Dir::open(Path::new("/mnt/copy")).unwrap(), &change).unwrap();
    fs::write("/mnt/copy/g", "").unwrap();
    assert_eq!(fs::write("/mnt/copy/b/g", "").unwrap_err().raw_os_error(), Some(libc::EROFS));
}

fn owners_are_mapped() {
    private();
    fs::create_dir("/mnt/a").unwrap();
    fs::create_dir("/mnt/mapped").unwrap();
    fs::write("/mnt/a/f", "").unwrap();
    let waiting = Waiting::start(Clone3::new().flags(CloneFlags::CLONE_NEWUSER), || ());
    let child = &waiting.0;
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", child.pid), "0 100000 65536").unwrap();
    }
    let namespace = child.pidfd.user_namespace().unwrap();
    drop(waiting);
    let copy = open_tree_clone(open_place(Path::new("/mnt/a")).unwrap(), Path::new(""), false).unwrap();
    let change = MountChange { id_map: Some(namespace.as_fd()), ..MountChange::default() };
    match mount_setattr(&copy, &change) {
        Ok(()) => {
            attach(copy, "/mnt/mapped");
            assert_eq!(fs::metadata("/mnt/mapped/f").unwrap().uid(), 100_000);
            assert_eq!(fs::metadata("/mnt/a/f").unwrap().uid(), 0);
        }
        // tmpfs has id maps from kernel 6.3 on.
        Err(error) => {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::INVAL));
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
            assert!((numbers.next().unwrap(), numbers.next().unwrap()) < (6, 3), "{release}");
        }
    }
}

fn the_root_is_exchanged() {
    private();
    fs::write("/mnt/marker", "").unwrap();
    pivot_root(Dir::open(Path::new("/mnt")).unwrap()).unwrap();
    assert!(Path::new("/marker").exists());
    assert!(!Path::new("/proc/self").exists());
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
    fs::create_dir("/d").unwrap();
    assert_eq!(errno(pivot_root(Dir::open(Path::new("/d")).unwrap())), libc::EBUSY);
}

fn cgroup2_can_be_had_without_a_place() {
    // In a cgroup namespace of its own, so that the options of the host's superblock stay as they are.
    let flags = CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS;
    let child = Clone3::new().flags(flags).spawn(|| {
        let mount = mount_cgroup2_detached().unwrap();
        assert_eq!(statfs_magic(&mount).unwrap(), CGROUP2_MAGIC);
        let own = Dir::from_fd(mount).unwrap().read("cgroup.procs", 1 << 20).unwrap();
        i32::from(!own.lines().any(|pid| pid == std::process::id().to_string()))
    });
    assert_eq!(child.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
}

fn a_dir_does_not_cross_mounts() {
    private();
    fs::create_dir("/mnt/inner").unwrap();
    let outer = Dir::open(Path::new("/mnt")).unwrap();
    assert!(outer.open_dir("inner").is_ok());
    attach(tmpfs(), "/mnt/inner");
    assert_eq!(errno(outer.open_dir("inner")), libc::EXDEV);
    fs::write("/mnt/file", "outer").unwrap();
    fs::write("/mnt/inner/other", "inner").unwrap();
    rustix::mount::mount_bind("/mnt/inner/other", "/mnt/file").unwrap();
    assert_eq!(errno(outer.read("file", 10)), libc::EXDEV);
    assert_eq!(errno(outer.write("file", "x")), libc::EXDEV);
    assert_eq!(errno(outer.chmod("file", 0o777)), libc::EXDEV);
}

fn a_proc_that_is_none_is_noticed() {
    private();
    let proc = open_place(Path::new("/proc")).unwrap();
    assert_eq!(statfs_magic(&proc).unwrap(), PROC_MAGIC);
    move_mount(tmpfs(), proc.as_fd(), Path::new("")).unwrap();
    assert_eq!(errno(cgrant_sys::ProcFs::open()), libc::ENODEV);
}
