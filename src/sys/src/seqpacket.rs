//! Datagrams with descriptors over a `SOCK_SEQPACKET` pair, bounded in every direction.
//!
//! A message of up to [`MAX_INLINE`] bytes is one datagram. A longer one lies in a sealed memory file that is
//! the first descriptor of a datagram of the single byte [`INDIRECT`]. The receiver believes nothing: bytes,
//! descriptors, seals and size are checked, and on any error every descriptor that came is closed.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use crate::{descriptor::close_aside, memfd};

/// Longest message that is sent inside a datagram, in bytes.
pub const MAX_INLINE: usize = 32 * 1024;
/// Longest message at all, in bytes: root's list of twenty thousand grants, each with its place in ten hierarchies.
pub const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// Most descriptors beside one message.
pub const MAX_FDS: usize = 16;
/// The whole datagram of a message that lies in the memory file beside it.
pub const INDIRECT: u8 = 0xff;

/// Room for the descriptors of a message and the memory file that may hold it.
const CONTROL_SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_FDS + 1));

thread_local! {
    /// Where this thread's datagrams arrive. One that is new for each would have to be zeroed each time, which takes longer than
    /// receiving a short one.
    static ARRIVALS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One end of a pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// One message.
#[derive(Debug)]
pub struct Received {
    /// Its bytes, never empty.
    pub bytes: Vec<u8>,
    /// The descriptors beside it, at most [`MAX_FDS`], close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Why a message was not sent or not received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nothing to receive, or no room to send, on a non-blocking channel.
    #[error("channel would block")]
    WouldBlock,
    /// The other end is closed (sending only; receiving says `None`).
    #[error("channel is closed")]
    Closed,
    /// An empty message can't be told from the end of the channel.
    #[error("message is empty")]
    Empty,
    /// The message is longer than [`MAX_MESSAGE`], or its datagram than [`MAX_INLINE`].
    #[error("message is too long")]
    TooLong,
    /// More descriptors than [`MAX_FDS`], or than this process may open.
    #[error("too many descriptors beside the message")]
    TooManyFds,
    /// The datagram says that the message lies beside it, but there is no sealed memory file that holds one.
    #[error("message beside the datagram is not in a sealed memory file")]
    NotSealed,
    /// Another error of the kernel's.
    #[error("channel failed")]
    Io(#[source] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            Errno::MSGSIZE => Self::TooLong,
            other => Self::Io(other.into()),
        }
    }
}

/// Two connected ends; blocking, close-on-exec.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn pair() -> io::Result<(Channel, Channel)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Channel(one), Channel(other)))
}

impl Channel {
    /// Takes a descriptor that is one end of such a pair.
    ///
    /// # Errors
    /// `ENOTSOCK`; `EPROTOTYPE` if it is a socket of another kind.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if sockopt::socket_domain(&fd)? != AddressFamily::UNIX
            || sockopt::socket_type(&fd)? != SocketType::SEQPACKET
        {
            return Err(Errno::PROTOTYPE.into());
        }
        Ok(Self(fd))
    }

    /// Shall sending and receiving fail with [`ChannelError::WouldBlock`] instead of waiting?
    /// Both ends of an open file description share the setting.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, nonblocking)?)
    }

    /// Another descriptor of the same end.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends one message with descriptors, whole or not at all.
    ///
    /// # Errors
    /// [`ChannelError`]; the descriptors stay the caller's in any case.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if bytes.is_empty() {
            return Err(ChannelError::Empty);
        }
        if bytes.len() > MAX_MESSAGE {
            return Err(ChannelError::TooLong);
        }
        if fds.len() > MAX_FDS {
            return Err(ChannelError::TooManyFds);
        }
        if bytes.len() <= MAX_INLINE && bytes != [INDIRECT] {
            return self.send_datagram(bytes, fds);
        }
        let memfd = memfd::sealed("message", bytes).map_err(ChannelError::Io)?;
        let mut all = Vec::with_capacity(fds.len() + 1);
        all.push(memfd.as_fd());
        all.extend_from_slice(fds);
        self.send_datagram(&[INDIRECT], &all)
    }

    /// Receives one message; `None` when the other end is closed and everything was received.
    ///
    /// # Errors
    /// [`ChannelError`]. After [`ChannelError::TooLong`], [`ChannelError::TooManyFds`] and
    /// [`ChannelError::NotSealed`] the message is gone and the next one can be received, but an end that sends
    /// such a thing is not to be trusted.
    pub fn receive(&self) -> Result<Option<Received>, ChannelError> {
        ARRIVALS.with_borrow_mut(|buffer| {
            buffer.resize(MAX_INLINE, 0);
            self.receive_into(buffer)
        })
    }

    fn receive_into(&self, buffer: &mut [u8]) -> Result<Option<Received>, ChannelError> {
        let (datagram, mut fds) = self.receive_datagram(buffer)?;
        let message = datagram.and_then(|length| match buffer.get(..length).unwrap_or_default() {
            // The end, or a datagram of nothing, which no end of ours sends.
            [] => Ok(None),
            [INDIRECT] if fds.is_empty() => Err(ChannelError::NotSealed),
            [INDIRECT] => read_message(&fds.remove(0)).map(Some),
            bytes => Ok(Some(bytes.to_vec())),
        });
        match message {
            Ok(Some(_)) if fds.len() > MAX_FDS => Err(refuse(fds, ChannelError::TooManyFds)),
            Ok(Some(bytes)) if bytes.is_empty() => Err(refuse(fds, ChannelError::Empty)),
            Ok(Some(bytes)) => Ok(Some(Received { bytes, fds })),
            Ok(None) => Ok(None),
            Err(error) => Err(refuse(fds, error)),
        }
    }

    fn send_datagram(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ChannelError::TooManyFds);
        }
        let parts = [IoSlice::new(bytes)];
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &parts, &mut control, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// One datagram as it is: its length, unless some of it was lost, and all descriptors that came.
    fn receive_datagram(
        &self,
        buffer: &mut [u8],
    ) -> Result<(Result<usize, ChannelError>, Vec<OwnedFd>), ChannelError> {
        let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let length = if received.flags.contains(ReturnFlags::TRUNC) {
            Err(ChannelError::TooLong)
        } else if received.flags.contains(ReturnFlags::CTRUNC) {
            Err(ChannelError::TooManyFds)
        } else {
            Ok(received.bytes)
        };
        Ok((length, fds))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

/// The message in a memory file.
fn read_message(memfd: &OwnedFd) -> Result<Vec<u8>, ChannelError> {
    memfd::read_sealed(memfd, MAX_MESSAGE).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::FBIG) => ChannelError::TooLong,
        Some(Errno::INVAL | Errno::PERM | Errno::BADF) => ChannelError::NotSealed,
        _ => ChannelError::Io(error),
    })
}

/// Closes what came with a message that is not to be had. The sender cannot make that wait.
fn refuse(fds: Vec<OwnedFd>, error: ChannelError) -> ChannelError {
    close_aside(fds);
    error
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::{FdFlags, fcntl_getfd};

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    /// Sends as an end that keeps no rule would.
    fn send_raw(channel: &Channel, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        sendmsg(&channel.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// A pipe whose reading end says when its writing end was closed by everybody.
    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).unwrap()
    }

    fn is_closed(reader: &OwnedFd) -> bool {
        rustix::io::read(reader, &mut [0; 1]) == Ok(0)
    }

    #[test]
    fn every_length_arrives_with_its_descriptors() {
        let (one, other) = pair().unwrap();
        let null = null();
        for length in [1, 2, MAX_INLINE - 1, MAX_INLINE, MAX_INLINE + 1, MAX_MESSAGE] {
            for count in [0, 1, MAX_FDS] {
                let bytes = vec![INDIRECT; length];
                one.send(&bytes, &vec![null.as_fd(); count]).unwrap();
                let received = other.receive().unwrap().unwrap();
                assert!(received.bytes == bytes, "{length}");
                assert_eq!(received.fds.len(), count, "{length}");
                for fd in &received.fds {
                    assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
                }
            }
        }
    }

    #[test]
    fn nothing_past_the_limits_is_sent() {
        let (one, other) = pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let null = null();
        assert!(matches!(one.send(&[], &[]), Err(ChannelError::Empty)));
        assert!(matches!(one.send(&vec![0; MAX_MESSAGE + 1], &[]), Err(ChannelError::TooLong)));
        assert!(matches!(one.send(&[1], &[null.as_fd(); MAX_FDS + 1]), Err(ChannelError::TooManyFds)));
        assert!(matches!(other.receive(), Err(ChannelError::WouldBlock)));
    }

    #[test]
    fn nothing_past_the_limits_is_received_and_all_of_it_is_closed() {
        let (one, other) = pair().unwrap();
        let (reader, writer) = pipe();
        let plain = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let long = memfd::sealed("test", &vec![0; MAX_MESSAGE + 1]).unwrap();
        let empty = memfd::sealed("test", &[]).unwrap();
        let good = memfd::sealed("test", b"x").unwrap();
        let fds = |first: &[&OwnedFd], count: usize| -> Vec<OwnedFd> {
            let first = first.iter().map(|fd| fd.try_clone().unwrap());
            first.chain((0..count).map(|_| writer.try_clone().unwrap())).collect()
        };
        type Case<'bytes> = (&'bytes [u8], Vec<OwnedFd>, fn(&ChannelError) -> bool);
        let cases: [Case<'_>; 9] = [
            (&[0; MAX_INLINE + 1], fds(&[], 1), |error| matches!(error, ChannelError::TooLong)),
            (&[1], fds(&[], MAX_FDS + 1), |error| matches!(error, ChannelError::TooManyFds)),
            (&[1], fds(&[], MAX_FDS + 2), |error| matches!(error, ChannelError::TooManyFds)),
            (&[1], fds(&[], 60), |error| matches!(error, ChannelError::TooManyFds)),
            (&[INDIRECT], fds(&[], 0), |error| matches!(error, ChannelError::NotSealed)),
            (&[INDIRECT], fds(&[&writer], 1), |error| matches!(error, ChannelError::NotSealed)),
            (&[INDIRECT], fds(&[&plain], 1), |error| matches!(error, ChannelError::NotSealed)),
            (&[INDIRECT], fds(&[&long], 1), |error| matches!(error, ChannelError::TooLong)),
            (&[INDIRECT], fds(&[&good], MAX_FDS + 1), |error| matches!(error, ChannelError::TooManyFds)),
        ];
        for (number, (bytes, fds, expected)) in cases.into_iter().enumerate() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            send_raw(&one, bytes, &borrowed);
            let error = other.receive().unwrap_err();
            assert!(expected(&error), "{number}: {error:?}");
        }
        send_raw(&one, &[INDIRECT], &[empty.as_fd(), writer.as_fd()]);
        assert!(matches!(other.receive(), Err(ChannelError::Empty)));
        drop(writer);
        assert!(is_closed(&reader));
        one.send(b"next", &[]).unwrap();
        assert_eq!(other.receive().unwrap().unwrap().bytes, b"next");
    }

    #[test]
    fn the_end_is_told_apart_from_waiting() {
        let (one, other) = pair().unwrap();
        other.set_nonblocking(true).unwrap();
        assert!(matches!(other.receive(), Err(ChannelError::WouldBlock)));
        one.send(b"last", &[]).unwrap();
        drop(one);
        assert_eq!(other.receive().unwrap().unwrap().bytes, b"last");
        assert!(other.receive().unwrap().is_none());
        assert!(matches!(other.send(b"x", &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn a_full_channel_says_so() {
        let (one, _other) = pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let error = loop {
            match one.send(&[1; 1024], &[]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(sent > 0 && matches!(error, ChannelError::WouldBlock), "{error:?}");
    }

    #[test]
    fn other_sockets_are_refused() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(Channel::from_fd(stream.into()).unwrap_err().raw_os_error(), Some(libc::EPROTOTYPE));
        assert_eq!(Channel::from_fd(null()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        let (one, _other) = pair().unwrap();
        assert!(Channel::from_fd(one.into()).is_ok());
    }
}
