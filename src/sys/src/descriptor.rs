//! What kind of object a descriptor is, found out without touching that object.
//!
//! A descriptor that a caller sends may be a file of a FUSE file system whose server is the caller: `fstat`,
//! `fstatfs` and `ioctl` on it would wait for that server for as long as it likes. The name that the
//! kernel gives it in `/proc/self/fd` is made without asking the file system, and for objects of
//! the kernel's own (pidfds, namespaces) that name cannot be imitated: the name of a real file begins with `/`.
//!
//! `close(2)` can wait too: for the server of a FUSE file to answer FLUSH, not even SIGKILL ends that; for a TCP socket with
//! `SO_LINGER` as long as the sender has set. So a process that must not be held up closes what it was sent with [`close_aside`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::fs::{CWD, OFlags, fcntl_getfl, readlinkat};

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

/// Is it a directory that was opened as one (`O_DIRECTORY`), for reading and not `O_PATH`?
///
/// Never waits for the file system: the kernel lets nothing be opened so but what is a directory (`do_open` of `fs/namei.c`), and
/// nobody can set the flag later. A file without a name is opened with a flag that holds this one, and is none.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn is_open_directory(fd: impl AsFd) -> io::Result<bool> {
    let flags = fcntl_getfl(fd)?;
    Ok(flags.contains(OFlags::DIRECTORY) && !flags.contains(OFlags::TMPFILE) && !flags.contains(OFlags::PATH))
}

/// Closes descriptors that somebody sent, without waiting for anybody: those that may make `close(2)` wait, by a thread
/// of its own. `None` if there was none of these.
///
/// The thread lives as long as the sender makes it wait. Whoever can be sent descriptors without end must count the threads that
/// are not finished to the sender's account, and take nothing more from it past a few.
///
/// Where no thread can be made (their number, or a seccomp filter) they are closed here and now.
pub fn close_aside(fds: Vec<OwnedFd>) -> Option<JoinHandle<()>> {
    let slow: Vec<OwnedFd> =
        fds.into_iter().filter(|fd| !kind_of(fd).is_ok_and(|name| closes_at_once(&name))).collect();
    if slow.is_empty() {
        return None;
    }
    std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(slow)).ok()
}

/// Kinds whose release never waits: pidfds, event descriptors and the like, pipes, namespaces but those of mounts, which the
/// last who closes one takes apart.
fn closes_at_once(name: &str) -> bool {
    let kind = name.split_once(":[").map_or("", |(kind, _)| kind);
    matches!(name, "anon_inode:[pidfd]" | "anon_inode:[eventfd]" | "anon_inode:[timerfd]")
        || kind == "pipe"
        || (kind != "mnt" && crate::namespace::KINDS.contains(&kind))
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
    fn only_a_directory_opened_as_one_is_one() {
        use rustix::fs::{Mode, openat};
        let directory = tempfile::tempdir().unwrap();
        let open =
            |flags: OFlags| openat(CWD, directory.path(), flags | OFlags::CLOEXEC, Mode::RWXU).unwrap();
        assert!(is_open_directory(open(OFlags::RDONLY | OFlags::DIRECTORY)).unwrap());
        assert!(!is_open_directory(open(OFlags::RDONLY)).unwrap());
        assert!(!is_open_directory(open(OFlags::PATH | OFlags::DIRECTORY)).unwrap());
        let unnamed = open(OFlags::RDWR | OFlags::TMPFILE);
        assert!(!is_open_directory(&unnamed).unwrap());
        let file = std::fs::File::create(directory.path().join("f")).unwrap();
        // Not even its owner can make it look like one.
        let _ = rustix::fs::fcntl_setfl(&file, OFlags::DIRECTORY);
        assert!(!is_open_directory(&file).unwrap());
    }

    #[test]
    fn kernel_objects_have_their_names() {
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        assert_eq!(kind_of(pidfd.unwrap()).unwrap(), "anon_inode:[pidfd]");
        let namespace = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert!(kind_of(namespace).unwrap().starts_with("user:["));
    }

    #[test]
    fn a_socket_that_lingers_is_closed_by_somebody_else() {
        use std::io::Write;
        use std::net::{TcpListener, TcpStream};
        use std::time::{Duration, Instant};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        // More than the receiver, who never reads, has room for: what is left keeps `close` waiting.
        while sender.write(&[0; 65536]).is_ok() {}
        rustix::net::sockopt::set_socket_linger(&sender, Some(Duration::from_secs(60))).unwrap();
        sender.set_nonblocking(false).unwrap();
        let before = Instant::now();
        let thread = close_aside(vec![sender.into()]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished(), "close did not wait, so this shows nothing");
        assert!(before.elapsed() < Duration::from_secs(30));
        // Unread data makes this a reset, which ends the waiting.
        drop(receiver);
        thread.join().unwrap();
    }

    #[test]
    fn what_cannot_wait_is_closed_at_once() {
        let pidfd = crate::Pidfd::own().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let namespace = std::fs::File::open("/proc/self/ns/net").unwrap();
        assert!(close_aside(vec![pidfd.into(), writer, namespace.into()]).is_none());
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }
}
