//! The socket that came with an Scm call. It is the client's: who else has it, and what is in it, is not known.
//!
//! What an attacker could want is that the broker's word reaches somebody else over it: what is written on a socket comes with
//! the writer's credentials. So it has to be one end of a pair that nobody else can have by a name, and only this process,
//! whose account means nothing to anybody, writes on it; the engine refuses that account as a requestor.
//!
//! Nothing is received here. Messages stay where they are for the engine, which takes credentials from no one else than the
//! kernel.
//!
//! An attacker could want that everybody has to wait, too: this process has one thread. Whoever has the same socket can keep two
//! locks of it for as long as it likes, with memory that is a file of a FUSE file system of its own: one by receiving into such memory,
//! which all take who receive or look at what is there, the other by setting a socket filter out of it, which all take who set
//! anything. So nothing of that kind is done here, whether it would wait for messages or not, but asked of the engine
//! ([`cgrant_wire::legacy::OnSocket`]). What is left takes neither: sending, asking what is set and how much there is to be read
//! (`net/unix/af_unix.c`, `sk_getsockopt` of `net/core/sock.c`).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::socket::is_end_of_pair;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionread},
    net::{SendFlags, SocketType, sockopt},
};

use crate::{castoff::Pins, watched::Watched};

/// What the daemon sends to ask for a credential.
const KICK: &[u8] = b"1";

/// Why there is no exchange over a socket, or it goes on no more.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something else came, or more than one.
    #[error("not one UNIX socket")]
    NotOne,
    /// Whoever knows its name, or that of its other end, can have it too.
    #[error("not one end of a socket pair")]
    Named,
    /// It failed, or its other end is closed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// The socket of an exchange.
#[derive(Debug)]
pub struct ExchangeSocket {
    // Closed before its pins, and so never the last.
    watched: Watched,
    kind: SocketType,
    pins: Pins,
}

impl ExchangeSocket {
    /// Takes what came with a call.
    ///
    /// # Errors
    /// [`SocketError`], with what came: that is not to be closed before the message is.
    pub fn take(pins: Pins) -> Result<Self, (SocketError, Pins)> {
        match open(&pins) {
            Ok((watched, kind)) => Ok(Self { watched, kind, pins }),
            Err(error) => Err((error, pins)),
        }
    }

    /// What came.
    pub fn into_pins(self) -> Pins {
        self.pins
    }

    /// Asks for a credential; at once, or not at all.
    ///
    /// # Errors
    /// `WouldBlock` if the client has filled the socket up.
    pub fn kick(&self) -> Result<(), SocketError> {
        self.send_now(KICK)?;
        Ok(())
    }

    /// Does whoever sends over it show who it is? CGManager's clients set that themselves.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn passes_credentials(&self) -> Result<bool, SocketError> {
        Ok(sockopt::socket_passcred(&self.watched)?)
    }

    /// Waits until the first message is there.
    ///
    /// # Errors
    /// [`SocketError::Io`], `UnexpectedEof` if none can come any more.
    pub async fn await_first(&self) -> Result<(), SocketError> {
        self.watched.read(|| ready(&self.watched, PollFlags::IN)).await?;
        // Nothing to be read means the end, or a message of nothing, which has no credentials.
        if self.readable()? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Waits until there may be a second message behind the first: how many bytes that one has; `None` if the second is there for
    /// sure.
    ///
    /// # Errors
    /// [`SocketError::Io`], `UnexpectedEof` if none can come any more.
    pub async fn await_second(&self) -> Result<Option<u32>, SocketError> {
        if self.kind == SocketType::STREAM {
            self.watched.read(|| self.has_two_bytes()).await?;
            return Ok(None);
        }
        // Of datagrams, the kernel tells the length of the first.
        let first = self.readable()?;
        self.watched.news().await?;
        Ok(Some(first.try_into().unwrap_or(u32::MAX)))
    }

    /// Another descriptor of it, for the engine. These are closed before the pins are.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.watched.as_fd().try_clone_to_owned()
    }

    /// What room there is to send, as getsockopt(2) says it.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn room(&self) -> Result<u32, SocketError> {
        Ok(sockopt::socket_send_buffer_size(&self.watched)?.try_into().unwrap_or(u32::MAX))
    }

    /// Waits for room to send.
    ///
    /// # Errors
    /// [`SocketError::Io`].
    pub async fn await_room(&self) -> Result<(), SocketError> {
        Ok(self.watched.write(|| ready(&self.watched, PollFlags::OUT)).await?)
    }

    /// Sends a datagram, or on a stream its bytes, waiting for room.
    ///
    /// # Errors
    /// [`SocketError::Io`]; see [`SocketError::is_too_long`].
    pub async fn send(&self, datagram: &[u8]) -> Result<(), SocketError> {
        let mut rest = datagram;
        loop {
            let sent = self.watched.write(|| self.send_now(rest)).await?;
            rest = rest.get(sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() && self.kind == SocketType::STREAM {
            return Ok(0);
        }
        Ok(rustix::net::send(&self.watched, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    fn readable(&self) -> io::Result<u64> {
        Ok(ioctl_fionread(&self.watched)?)
    }

    fn has_two_bytes(&self) -> io::Result<()> {
        if self.readable()? >= 2 {
            return Ok(());
        }
        ready(&self.watched, PollFlags::RDHUP)?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl SocketError {
    /// Is a datagram longer than what the socket takes at once?
    pub fn is_too_long(&self) -> bool {
        matches!(self, Self::Io(error) if Errno::from_io_error(error) == Some(Errno::MSGSIZE))
    }
}

fn open(pins: &Pins) -> Result<(Watched, SocketType), SocketError> {
    let socket = pins.only().ok_or(SocketError::NotOne)?;
    let kind = sockopt::socket_type(socket).map_err(|_| SocketError::NotOne)?;
    if !matches!(kind, SocketType::DGRAM | SocketType::STREAM) {
        return Err(SocketError::NotOne);
    }
    if !is_end_of_pair(socket)? {
        return Err(SocketError::Named);
    }
    Ok((Watched::new(socket.try_clone()?)?, kind))
}

fn ready(socket: &Watched, wanted: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(socket, wanted)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [fd] = fds;
    if fd.revents().is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}
