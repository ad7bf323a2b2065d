//! Credentials that somebody sent over a UNIX socket (`SCM_CREDENTIALS`), as the kernel vouches for them.
//!
//! The kernel lets a sender name itself by any of its own ids; another process only with `CAP_SYS_ADMIN` over its pid
//! namespace, other ids only with `CAP_SETUID` and `CAP_SETGID` (`scm_check_creds` of `net/core/scm.c`), and translates all of
//! it for the receiver. Whoever sends without naming anybody on a socket that passes credentials names itself.
//!
//! Source: `unix(7)`; `SO_PASSPIDFD` and `SCM_PIDFD` from kernel 6.5 on.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use crate::pidfd::Pidfd;

/// `SCM_PIDFD` (include/linux/socket.h): not yet in the libc crate.
const SCM_PIDFD: libc::c_int = 0x04;

/// Room for what comes beside a message, in bytes: credentials, a pidfd, the most descriptors that a message has (253, 4 bytes
/// each), a security label and a time stamp.
const ROOM: usize = 8 * 1024;

/// One message of a byte, taken off a socket.
#[derive(Debug)]
pub struct Message {
    /// Its length: 1; 0 at the end of a stream and for an empty datagram.
    pub length: usize,
    /// Was it longer, or was there more beside it than there was room for? That is lost.
    pub truncated: bool,
    /// Whom its sender named; `None` if the socket passes no credentials.
    pub credentials: Option<Credentials>,
    /// Descriptors that came with it. Closing them may wait for their sender: see [`crate::close_aside`].
    pub fds: Vec<OwnedFd>,
}

/// Whom a sender named.
#[derive(Debug)]
pub struct Credentials {
    /// The pid, as this process's pid namespace has it; 0 if it has none there, or nobody was named.
    pub pid: u32,
    /// The uid, as this process's user namespace has it.
    pub uid: u32,
    /// The gid, likewise.
    pub gid: u32,
    /// The process.
    pub process: SentProcess,
}

/// The process of credentials.
#[derive(Debug)]
pub enum SentProcess {
    /// This one, whatever has become of it.
    Some(Pidfd),
    /// It has ended.
    Gone,
    /// The kernel does not say (before 6.5), or was not asked when the message came.
    Unsaid,
}

/// Shall messages that are received come with a pidfd of whom they name? `false` if the kernel has no such thing.
///
/// # Errors
/// Those of `setsockopt(2)`; `EOPNOTSUPP` if it is no UNIX socket.
pub fn set_pass_pidfd(socket: impl AsFd, pass: bool) -> io::Result<bool> {
    match crate::socket::set_number(socket, libc::SO_PASSPIDFD, pass.into()) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::ENOPROTOOPT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes one message off a UNIX socket, with room for one byte of it. Does not wait for one.
///
/// May wait for others that have the same socket and are about to take a message off it into memory that is slow to be had
/// (`unix_dgram_recvmsg` of `net/unix/af_unix.c` holds the socket's `iolock` meanwhile): as long as they like.
///
/// # Errors
/// Those of `recvmsg(2)`: `EAGAIN` if there is none.
pub fn receive(socket: impl AsFd) -> io::Result<Message> {
    receive_with(socket.as_fd(), 0)
}

/// Looks at one message, which stays where it is; otherwise as [`receive`], also in that it may wait for others. Where it looks is
/// set by [`crate::socket::set_peek_offset`], which may wait as well.
///
/// # Errors
/// As [`receive`].
pub fn look(socket: impl AsFd) -> io::Result<Message> {
    receive_with(socket.as_fd(), libc::MSG_PEEK)
}

fn receive_with(socket: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<Message> {
    let mut byte = [0_u8; 1];
    let mut control = Control([0; ROOM]);
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: the structure is integers and pointers, for which zero bytes are a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = ROOM;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let length = loop {
        // SAFETY: the header names `part` and `control`, which outlive the call, with their lengths.
        let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(count) {
            Ok(count) => break count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => (),
                error => return Err(error),
            },
        }
    };
    let mut message = Message {
        length,
        truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        credentials: None,
        fds: Vec::new(),
    };
    let mut process = SentProcess::Unsaid;
    each_part(&header, |kind, data| match kind {
        libc::SCM_RIGHTS => message.fds.extend(numbers(data).map(own)),
        libc::SCM_CREDENTIALS => message.credentials = credentials(data),
        SCM_PIDFD => {
            // A negative number is why there is none: the process was reaped.
            let received = numbers(data).next().filter(|number| *number >= 0);
            process = received
                .map_or(SentProcess::Gone, |number| SentProcess::Some(Pidfd::from_kernel(own(number))));
        }
        _ => (),
    });
    if let Some(credentials) = &mut message.credentials {
        credentials.process = process;
    }
    Ok(message)
}

/// What comes beside a message, aligned as the kernel's headers in it are.
#[repr(align(8))]
struct Control([u8; ROOM]);

/// Calls `each` with kind and content of every part of level `SOL_SOCKET` that the kernel put beside a message. `header` must
/// be one that recvmsg(2) has just filled, with its buffer still there.
fn each_part(header: &libc::msghdr, mut each: impl FnMut(libc::c_int, &[u8])) {
    // SAFETY: the kernel has filled the buffer that the header names, and set its length.
    let mut part = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !part.is_null() {
        // SAFETY: `part` points to a whole header in that buffer: the macros give no other.
        let (level, kind, length) = unsafe { ((*part).cmsg_level, (*part).cmsg_type, (*part).cmsg_len) };
        // SAFETY: computes a number.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        if level == libc::SOL_SOCKET
            && let Some(length) = length.checked_sub(before)
        {
            // SAFETY: the kernel wrote a header and `length` bytes behind it, which the borrow of `header` outlives.
            each(kind, unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(part), length) });
        }
        // SAFETY: `part` is one that these macros gave for this header.
        part = unsafe { libc::CMSG_NXTHDR(header, part) };
    }
}

/// The `int`s of a part.
fn numbers(data: &[u8]) -> impl Iterator<Item = RawFd> + '_ {
    data.as_chunks().0.iter().map(|bytes| RawFd::from_ne_bytes(*bytes))
}

/// A descriptor that the kernel has just made beside a message.
fn own(number: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) has just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// `struct ucred`: three numbers of 32 bits.
fn credentials(data: &[u8]) -> Option<Credentials> {
    let mut numbers = data.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes));
    let (pid, uid, gid) = (numbers.next()?, numbers.next()?, numbers.next()?);
    Some(Credentials { pid, uid, gid, process: SentProcess::Unsaid })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::{io::IoSlice, mem::MaybeUninit};

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
        sendmsg, socketpair, sockopt,
    };

    fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn send(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    #[test]
    fn who_sends_is_named() {
        for kind in [SocketType::DGRAM, SocketType::STREAM] {
            let (one, other) = pair(kind);
            sockopt::set_socket_passcred(&other, true).unwrap();
            let has_pidfd = set_pass_pidfd(&other, true).unwrap();
            assert_eq!(receive(&other).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            send(&one, b"p", &[]);
            let message = receive(&other).unwrap();
            assert_eq!((message.length, message.truncated, message.fds.len()), (1, false, 0));
            let named = message.credentials.unwrap();
            let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            assert_eq!((named.pid, (named.uid, named.gid)), (std::process::id(), own));
            match named.process {
                SentProcess::Some(process) => assert_eq!(process.pid().unwrap(), std::process::id()),
                other => assert!(matches!(other, SentProcess::Unsaid) && !has_pidfd, "{other:?}"),
            }
        }
    }

    #[test]
    fn without_the_setting_nobody_is_named() {
        let (one, other) = pair(SocketType::DGRAM);
        send(&one, b"p", &[]);
        assert!(receive(&other).unwrap().credentials.is_none());
        // Set too late: the kernel has noted nobody, and says the ids that mean that.
        send(&one, b"p", &[]);
        sockopt::set_socket_passcred(&other, true).unwrap();
        assert_eq!(receive(&other).unwrap().credentials.unwrap().pid, 0);
    }

    #[test]
    fn what_is_longer_is_told_and_descriptors_are_all_taken() {
        let (one, other) = pair(SocketType::DGRAM);
        send(&one, b"pp", &[]);
        assert!(receive(&other).unwrap().truncated);
        send(&one, b"", &[]);
        assert_eq!(receive(&other).unwrap().length, 0);
        send(&one, b"p", &vec![&one; 253]);
        let message = receive(&other).unwrap();
        assert_eq!((message.fds.len(), message.truncated), (253, false));
        assert!(
            message.fds.iter().all(|fd| rustix::io::fcntl_getfd(fd).unwrap() == rustix::io::FdFlags::CLOEXEC)
        );
        // Of a stream one byte is taken at a time.
        let (one, other) = pair(SocketType::STREAM);
        send(&one, b"pp", &[]);
        assert_eq!([receive(&other).unwrap().length, receive(&other).unwrap().length], [1, 1]);
        drop(one);
        assert_eq!(receive(&other).unwrap().length, 0);
    }

    #[test]
    fn what_was_looked_at_is_there_still() {
        let (one, other) = pair(SocketType::DGRAM);
        sockopt::set_socket_passcred(&other, true).unwrap();
        set_pass_pidfd(&other, true).unwrap();
        for _ in 0..3 {
            assert_eq!(look(&other).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            send(&one, b"p", &[&one]);
            let message = look(&other).unwrap();
            assert_eq!((message.fds.len(), message.credentials.unwrap().pid), (1, std::process::id()));
            receive(&other).unwrap();
        }
    }

    #[test]
    fn a_process_that_was_reaped_is_gone() {
        let (one, other) = pair(SocketType::DGRAM);
        sockopt::set_socket_passcred(&other, true).unwrap();
        let has_pidfd = set_pass_pidfd(&other, true).unwrap();
        // A child that writes a byte and ends.
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "printf p"])
            .stdout(std::process::Stdio::from(one))
            .spawn()
            .unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let named = receive(&other).unwrap().credentials.unwrap();
        match named.process {
            SentProcess::Some(process) => assert!(process.pid().is_err(), "reaped, and yet it has a number"),
            SentProcess::Gone => (),
            SentProcess::Unsaid => assert!(!has_pidfd),
        }
        assert!(named.pid == pid || named.pid == 0, "{}", named.pid);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert_eq!(receive(&null).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert!(set_pass_pidfd(&null, true).is_err());
    }
}
