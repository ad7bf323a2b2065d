//! The socket that came with an Scm call. It is the client's: who else has it, and what is in it, is not known.
//!
//! What an attacker could want is that the broker's word reaches somebody else over it: what is written on a socket comes with
//! the writer's credentials. So it has to be one end of a pair that nobody else can have by a name, and only this process,
//! whose account means nothing to anybody, writes on it; the engine refuses that account as a requestor.
//!
//! Nothing is received here. Messages stay where they are for the engine, which takes credentials from no one else than the
//! kernel. What has come is looked at from behind the first message on, by a thread that waits for nobody else: whoever has the same
//! socket, and receives from it into memory of a file system of its own, holds up everybody that wants to look meanwhile
//! (`unix_dgram_recvmsg` of `net/unix/af_unix.c`, under the socket's `iolock`), whether that would wait for messages or not.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use cgrant_sys::{
    credentials,
    socket::{is_end_of_pair, set_peek_offset},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionread},
    net::{SendFlags, SocketType, sockopt},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{castoff::Pins, watched::Watched};

/// What the daemon sends to ask for a credential.
const KICK: &[u8] = b"1";
/// Stack of a thread that looks, in bytes.
const STACK: usize = 128 * 1024;

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

/// The room that a socket has to send. When this is dropped it has no more, whatever it was given meanwhile: whoever has the
/// socket too could fill it with what nobody reads, and pass on to the next.
#[derive(Debug)]
pub struct Room<'a> {
    socket: &'a Watched,
    bytes: usize,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        // The kernel doubles what it is told.
        if let Err(error) = sockopt::set_socket_send_buffer_size(self.socket, self.bytes / 2) {
            tracing::debug!(%error, "a socket keeps its room");
        }
    }
}

impl ExchangeSocket {
    /// Takes what came with a call. Whoever sends over it shows who it is from now on.
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

    /// Waits until so many messages (one or two) are there. `place` is taken for as long as the client makes anything of this
    /// process wait, also beyond the end of the exchange.
    ///
    /// # Errors
    /// [`SocketError::Io`], `UnexpectedEof` if none can come any more.
    pub async fn await_messages(
        &self,
        count: usize,
        place: &Arc<OwnedSemaphorePermit>,
    ) -> Result<(), SocketError> {
        match (count, self.kind) {
            (0, _) => return Ok(()),
            (1, _) => self.watched.read(|| ready(&self.watched, PollFlags::IN)).await?,
            (_, SocketType::STREAM) => self.watched.read(|| self.has_bytes(count)).await?,
            _ => return self.await_second(place).await,
        }
        // Nothing to be read means the end, or a message of nothing, which has no credentials.
        if ioctl_fionread(&self.watched)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Another descriptor of it, for the engine. These are closed before the pins are.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.watched.as_fd().try_clone_to_owned()
    }

    /// What room there is, to be given back.
    ///
    /// # Errors
    /// Those of `getsockopt(2)`.
    pub fn room(&self) -> Result<Room<'_>, SocketError> {
        let bytes = sockopt::socket_send_buffer_size(&self.watched)?;
        Ok(Room { socket: &self.watched, bytes })
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

    fn has_bytes(&self, count: usize) -> io::Result<()> {
        if ioctl_fionread(&self.watched)? >= count as u64 {
            return Ok(());
        }
        ready(&self.watched, PollFlags::RDHUP)?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn await_second(&self, place: &Arc<OwnedSemaphorePermit>) -> Result<(), SocketError> {
        let first = ioctl_fionread(&self.watched)?;
        loop {
            // First, so that what comes after the look is looked at.
            self.watched.news().await?;
            let (socket, place) = (self.duplicate()?, Arc::clone(place));
            let (tell, told) = oneshot::channel();
            std::thread::Builder::new().name("look".to_owned()).stack_size(STACK).spawn(move || {
                let found = is_behind(&socket, first);
                // Here, where nobody waits, as it may be the last one.
                drop(socket);
                drop(place);
                // The exchange may have ended meanwhile.
                let _ = tell.send(found);
            })?;
            let found = told.await.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()));
            match found {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                found => return Ok(found?),
            }
        }
    }
}

/// Is there a message behind so many bytes? `WouldBlock` if not.
fn is_behind(socket: &OwnedFd, first: u64) -> io::Result<()> {
    set_peek_offset(socket, Some(first))?;
    let second = credentials::look(socket);
    // The engine looks at nothing, but the client may.
    set_peek_offset(socket, None)?;
    second.map(drop)
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
    sockopt::set_socket_passcred(socket, true)?;
    Ok((Watched::new(socket.try_clone()?)?, kind))
}

fn ready(socket: &Watched, wanted: PollFlags) -> io::Result<()> {
    let mut fds = [PollFd::new(socket, wanted)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [fd] = fds;
    if fd.revents().is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}
