//! A place for a case, and storage namespaces to run it in.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cgrant_image::{Limits, remove_tree};
use cgrant_sys::{Clone3, Dir, Exit, mount};
use nix::sched::CloneFlags;

/// The caller's account.
pub const CALLER: u32 = 1_900_000_000;
/// The account's range for images.
pub const IMAGES: u32 = 1_900_100_000;
/// The account's range for a container.
pub const WEB: u32 = 1_900_200_000;
/// The caller's account in a storage namespace.
pub const INSIDE: (u32, u32) = (65_536, 65_536);

/// A directory of the caller's that goes when this goes.
pub struct Scene {
    parent: tempfile::TempDir,
}

impl Scene {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let parent = tempfile::tempdir().unwrap();
        std::fs::create_dir(parent.path().join("home")).unwrap();
        let scene = Self { parent };
        std::os::unix::fs::chown(scene.home(), Some(CALLER), Some(CALLER)).unwrap();
        let home = scene.dir();
        home.chmod("", 0o700).unwrap();
        // As of most temporary directories, others may pass.
        Dir::open(scene.parent.path()).unwrap().chmod("", 0o755).unwrap();
        scene
    }

    pub fn home(&self) -> PathBuf {
        self.parent.path().join("home")
    }

    pub fn dir(&self) -> Dir {
        Dir::open(&self.home()).unwrap()
    }

    /// Runs `case` as root of a storage namespace with this range, in a mount namespace of its own, with the home as root sees it there.
    pub fn inside(&self, range: u32, case: impl FnOnce(Dir)) {
        let home = self.home();
        in_namespace(&format!("0 {range} 65536\n65536 {CALLER} 1\n"), move || {
            case(Dir::open(&home).unwrap())
        });
    }

    /// Runs `case` as the caller, outside.
    pub fn outside(&self, case: impl FnOnce(&Path)) {
        let home = self.home();
        let child = Clone3::new().spawn(|| {
            become_id(CALLER);
            case(&home);
            0
        });
        assert_eq!(child.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // The real root's; deep trees and all.
        if let Ok(parent) = Dir::open(self.parent.path()) {
            let _ = remove_tree(&parent, OsStr::new("home"), ".old-");
        }
    }
}

fn become_id(id: u32) {
    nix::unistd::setgroups(&[]).unwrap();
    nix::unistd::setresgid(id.into(), id.into(), id.into()).unwrap();
    nix::unistd::setresuid(id.into(), id.into(), id.into()).unwrap();
}

/// Runs `case` as root of a new user namespace with this map.
pub fn in_namespace(map: &str, case: impl FnOnce()) {
    let (mut ready, mut tell) = std::io::pipe().unwrap();
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).spawn(|| {
        let mut byte = [0];
        ready.read_exact(&mut byte).unwrap();
        become_id(0);
        case();
        0
    });
    let child = child.unwrap();
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.pid), map).unwrap();
    }
    tell.write_all(b"x").unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
}

/// A detached clone of `directory` in which what the range `from` owns is owned by the range `to`.
pub fn mapped(directory: &Path, from: u32, to: u32) -> OwnedFd {
    let (mut ready, mut tell) = std::io::pipe().unwrap();
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWUSER).spawn(|| {
        let _ = ready.read_exact(&mut [0]);
        0
    });
    let child = child.unwrap();
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{}/{file}", child.pid), format!("{from} {to} 65536")).unwrap();
    }
    let namespace = std::fs::File::open(format!("/proc/{}/ns/user", child.pid)).unwrap();
    tell.write_all(b"x").unwrap();
    child.pidfd.wait().unwrap();
    let clone = mount::open_tree_clone(mount::open_place(directory).unwrap(), Path::new(""), false).unwrap();
    let change = mount::MountChange { id_map: Some(namespace.as_fd()), ..mount::MountChange::default() };
    mount::mount_setattr(&clone, &change).unwrap();
    clone
}

pub fn limits() -> Limits {
    Limits { keep_free: 0, ..Limits::default() }
}
