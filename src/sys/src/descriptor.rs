//! What kind of object a descriptor is, found out without touching that object.
//!
//! A descriptor that a caller sends may be a file of a FUSE file system whose server is the caller: `fstat`,
//! `fstatfs` and `ioctl` on it would wait for that server for as long as it likes. The name that the
//! kernel gives it in `/proc/self/fd` is made without asking the file system, and for objects of
//! the kernel's own (pidfds, namespaces) that name cannot be imitated: the name of a real file begins with `/`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{CWD, readlinkat};

/// The kernel's name of the object behind `fd`: `anon_inode:[pidfd]`, `user:[4026531837]`, `socket:[77]`, or
/// for a file its path, which begins with `/`. Bytes that are not UTF-8 are replaced.
///
/// Never waits for the file system of a file.
///
/// # Errors
/// Those of `readlink(2)` on `/proc/self/fd/N`; `ENOENT` if no proc is mounted.
pub fn kind_of(fd: impl AsFd) -> io::Result<String> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    Ok(readlinkat(CWD, path, Vec::new())?.to_string_lossy().into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_cannot_look_like_a_kernel_object() {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(directory.path().join("anon_inode:[pidfd]")).unwrap();
        assert!(kind_of(&file).unwrap().starts_with('/'));
        let memfd = rustix::fs::memfd_create("anon_inode:[pidfd]", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(kind_of(&memfd).unwrap().starts_with("/memfd:"));
    }

    #[test]
    fn kernel_objects_have_their_names() {
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        assert_eq!(kind_of(pidfd.unwrap()).unwrap(), "anon_inode:[pidfd]");
        let namespace = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert!(kind_of(namespace).unwrap().starts_with("user:["));
    }
}
