//! Who is at the other end of a UNIX stream socket, as the kernel recorded it at connect.
//!
//! Source: `unix(7)`, `net/core/sock.c`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt as nix_sockopt};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, accept_with, getpeername, getsockname, sockopt,
};

use crate::pidfd::Pidfd;

/// `SO_PASSRIGHTS` (include/uapi/asm-generic/socket.h): in the kernel from 6.16 on, not yet in the libc crate.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Most supplementary groups that a process can have (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65536;

/// Length of an address without a name, in bytes: the family alone.
const UNNAMED: u32 = 2;
/// Length of an address that the kernel makes up: a zero byte and five hexadecimal digits more.
const AUTOBIND: u32 = UNNAMED + 6;

/// Who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Effective uid, as this process's user namespace sees it.
    pub uid: u32,
    /// Effective gid, likewise.
    pub gid: u32,
    /// Pid; `None` if it is not visible from this process's pid namespace.
    pub pid: Option<u32>,
}

/// The process that connected.
#[derive(Debug)]
pub enum PeerPidfd {
    /// This one. It was alive when it was asked for.
    Some(Pidfd),
    /// It has ended.
    Gone,
    /// The kernel does not say (before 6.5).
    Unsupported,
}

/// Accepts one connection of a listening socket; close-on-exec, non-blocking.
///
/// # Errors
/// Those of `accept4(2)`; `EAGAIN` if nobody waits and the listener does not block.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::io::retry_on_intr(|| accept_with(&listener, flags))?)
}

/// May peers send descriptors over this socket? What a listener accepts begins as the listener is, so that a peer can be kept
/// from it until somebody is there to take them: descriptors in messages that nobody reads are closed with the socket, which
/// may take as long as their sender likes. `false` if the kernel has no such setting (before 6.16): peers always may then.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_pass_rights(socket: impl AsFd, pass: bool) -> io::Result<bool> {
    match set_number(socket, SO_PASSRIGHTS, pass.into()) {
        Ok(()) => Ok(true),
        Err(Errno::ENOPROTOOPT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Where looking at what is to be received (`MSG_PEEK`) begins, in bytes behind what comes next; `None` for its start, as it is
/// for a new socket. Everybody who has the socket shares the setting, and who receives from it just now can make this wait
/// ([`crate::credentials::receive`]).
///
/// # Errors
/// Those of `setsockopt(2)`; `EINVAL` past 2 GiB.
pub fn set_peek_offset(socket: impl AsFd, offset: Option<u64>) -> io::Result<()> {
    let offset = offset.map_or(Ok(-1), |offset| offset.try_into().map_err(|_| Errno::EINVAL))?;
    Ok(set_number(socket, libc::SO_PEEK_OFF, offset)?)
}

/// Sets an option of `SOL_SOCKET` whose value is a number.
pub(crate) fn set_number(socket: impl AsFd, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `length` bytes of a value that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

/// Is it one end of a pair of UNIX sockets, that nobody else can have by a name, nor the other end? Names that the kernel makes up
/// for a socket that sends and has none count as none (unix(7), "Autobind feature").
///
/// # Errors
/// Those of `getsockopt(2)`, `getsockname(2)` and `getpeername(2)`: `ENOTSOCK`, `ENOTCONN` without another end.
pub fn is_end_of_pair(socket: impl AsFd) -> io::Result<bool> {
    if sockopt::socket_domain(&socket)? != AddressFamily::UNIX {
        return Ok(false);
    }
    Ok(is_nameless(&getsockname(&socket)?) && getpeername(&socket)?.is_some_and(|peer| is_nameless(&peer)))
}

/// Has it no name, or one that the kernel made up?
fn is_nameless(address: &SocketAddrAny) -> bool {
    match address.addr_len() {
        UNNAMED => true,
        // Names of other lengths are not decoded: rustix takes for granted that a path ends with a zero byte.
        AUTOBIND => SocketAddrUnix::try_from(address.clone()).is_ok_and(|address| {
            address.abstract_name().is_some_and(|name| name.iter().all(u8::is_ascii_hexdigit))
        }),
        _ => false,
    }
}

/// `SO_PEERCRED`.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let raw = getsockopt(&socket.as_fd(), nix_sockopt::PeerCredentials)?;
    let pid = u32::try_from(raw.pid()).ok().filter(|pid| *pid != 0);
    Ok(PeerCredentials { uid: raw.uid(), gid: raw.gid(), pid })
}

/// `SO_PEERPIDFD`.
///
/// # Errors
/// Those of `getsockopt(2)` that mean neither that the peer is gone nor that the kernel is too old.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<PeerPidfd> {
    match getsockopt(&socket.as_fd(), nix_sockopt::PeerPidfd) {
        Ok(fd) => {
            let pidfd = Pidfd::from_kernel(fd);
            // Newer kernels give the pidfd of a peer that has ended, older ones refuse.
            Ok(if pidfd.is_alive()? { PeerPidfd::Some(pidfd) } else { PeerPidfd::Gone })
        }
        Err(Errno::ENOPROTOOPT) => Ok(PeerPidfd::Unsupported),
        Err(Errno::EINVAL | Errno::ESRCH) => Ok(PeerPidfd::Gone),
        Err(errno) => Err(errno.into()),
    }
}

/// `SO_PEERGROUPS`: the supplementary groups, as this process's user namespace sees them.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 32];
    loop {
        let mut length =
            libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(|_| Errno::EINVAL)?;
        // SAFETY: `groups` has room for `length` bytes, and the kernel writes at most that many.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        match Errno::last() {
            // The kernel has put the length that it needs into `length`.
            Errno::ERANGE if count > groups.len() && count <= MAX_GROUPS => groups.resize(count, 0),
            errno => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_peer_sends_descriptors_when_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let has_setting = set_pass_rights(&listener, false).unwrap();
        let stream = UnixStream::connect(directory.path().join("socket")).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let send = || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            let fds = [listener.as_fd()];
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            let flags = rustix::net::SendFlags::NOSIGNAL;
            rustix::net::sendmsg(&stream, &[io::IoSlice::new(b"x")], &mut control, flags)
        };
        assert_eq!(send().is_err(), has_setting);
        assert_eq!(set_pass_rights(&accepted, true).unwrap(), has_setting);
        assert_eq!(send(), Ok(1));
    }

    #[test]
    fn what_is_behind_the_next_datagram_can_be_looked_at() {
        use rustix::net::{RecvFlags, recv};
        let (one, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        one.send(b"first").unwrap();
        set_peek_offset(&other, Some(5)).unwrap();
        let mut piece = [0; 8];
        let look = |piece: &mut [u8]| recv(&other, piece, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        assert_eq!(look(&mut piece).unwrap_err(), rustix::io::Errno::AGAIN);
        one.send(b"second").unwrap();
        assert_eq!(look(&mut piece).unwrap(), (6, 6));
        assert_eq!(&piece[..6], b"second");
        set_peek_offset(&other, None).unwrap();
        assert_eq!(other.recv(&mut piece).unwrap(), 5);
    }

    #[test]
    fn what_has_a_name_is_no_end_of_a_pair() {
        use rustix::net::{SocketType, socketpair};
        use std::os::unix::net::UnixDatagram;
        for kind in [SocketType::DGRAM, SocketType::STREAM] {
            let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            assert!(is_end_of_pair(&one).unwrap());
            // The kernel gives one that sends a name now.
            sockopt::set_socket_passcred(&one, true).unwrap();
            rustix::net::send(&one, b"x", rustix::net::SendFlags::NOSIGNAL).unwrap();
            assert!(is_end_of_pair(&one).unwrap() && is_end_of_pair(&other).unwrap());
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let named = UnixDatagram::bind(&path).unwrap();
        assert!(!is_end_of_pair(&named).unwrap());
        assert!(is_end_of_pair(UnixDatagram::unbound().unwrap()).is_err(), "it has no other end");
        let connected = UnixDatagram::unbound().unwrap();
        connected.connect(&path).unwrap();
        assert!(!is_end_of_pair(&connected).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_end_of_pair(&listener).unwrap());
        assert!(is_end_of_pair(std::fs::File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn both_ends_of_a_pair_are_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&one).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        assert_eq!(peer, PeerCredentials { uid, gid, pid: Some(std::process::id()) });
        match peer_pidfd(&one).unwrap() {
            PeerPidfd::Some(pidfd) => assert_eq!(pidfd.pid().unwrap(), std::process::id()),
            other => assert!(matches!(other, PeerPidfd::Unsupported)),
        }
        let own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(peer_groups(&one).unwrap(), own);
    }

    #[test]
    fn what_was_accepted_does_not_block_and_is_not_inherited() {
        use rustix::fs::{OFlags, fcntl_getfl};
        use rustix::io::{FdFlags, fcntl_getfd};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let accepted = accept(&listener).unwrap();
        assert!(fcntl_getfl(&accepted).unwrap().contains(OFlags::NONBLOCK));
        assert!(fcntl_getfd(&accepted).unwrap().contains(FdFlags::CLOEXEC));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(accept(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn other_descriptors_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(peer_credentials(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(peer_pidfd(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(peer_groups(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
