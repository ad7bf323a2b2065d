//! The engine's end of the pair with a front: decoding what comes, and sending without ever waiting for the front.
//!
//! A front that does not read what it is sent is cut off: its outbox is bounded. What comes from it is
//! bounded by the channel and decoded strictly; a malformed message cuts the link too, because our own
//! front sends none, so one that does has been taken over.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cgrant_sys::seqpacket::{Channel, ChannelError};
use cgrant_wire::{FromEngine, ToEngine, boot::FrontKind};

/// Most messages that wait for a front to read.
const MAX_OUTBOX: usize = 8192;

struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A front's link.
pub struct Link {
    kind: FrontKind,
    channel: Channel,
    outbox: Mutex<VecDeque<Outgoing>>,
    broken: AtomicBool,
}

/// What was read from a link.
pub enum Incoming {
    /// A message and the descriptors that came beside it.
    Message(ToEngine, Vec<OwnedFd>),
    /// Nothing more for now.
    Drained,
    /// The front is gone or has to go.
    Gone,
}

impl Link {
    /// A link to a front of `kind`. The channel is owned, and made non-blocking.
    ///
    /// # Errors
    /// If the channel cannot be made non-blocking.
    pub fn new(kind: FrontKind, channel: Channel) -> std::io::Result<Self> {
        channel.set_nonblocking(true)?;
        Ok(Self { kind, channel, outbox: Mutex::default(), broken: AtomicBool::new(false) })
    }

    /// The descriptor to poll; borrowed.
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Reads one message.
    pub fn receive(&self) -> Incoming {
        if self.broken.load(Ordering::Relaxed) {
            return Incoming::Gone;
        }
        match self.channel.receive() {
            Ok(Some(received)) => match cgrant_wire::decode(&received.bytes) {
                Ok(message) => Incoming::Message(message, received.fds),
                Err(error) => {
                    tracing::error!(front = ?self.kind, %error, "a front sent what no front of ours sends; it is cut off");
                    Incoming::Gone
                }
            },
            Ok(None) => Incoming::Gone,
            Err(ChannelError::WouldBlock) => Incoming::Drained,
            Err(error) => {
                tracing::error!(front = ?self.kind, %error, "the link to a front is broken");
                Incoming::Gone
            }
        }
    }

    /// Sends `message`, now or when the front reads again. True if the link wants to be told when it is writable.
    pub fn send(&self, message: &FromEngine, fds: Vec<OwnedFd>) -> bool {
        let bytes = match cgrant_wire::encode(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "an answer could not be encoded");
                return false;
            }
        };
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if outbox.len() >= MAX_OUTBOX {
            tracing::error!(front = ?self.kind, "a front does not read its messages; it is cut off");
            self.broken.store(true, Ordering::Relaxed);
            let _ = rustix::net::shutdown(self.channel.as_fd(), rustix::net::Shutdown::Both);
            return false;
        }
        outbox.push_back(Outgoing { bytes, fds });
        self.drain(&mut outbox)
    }

    /// Sends what waits. True if something still does.
    pub fn flush(&self) -> bool {
        self.drain(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn drain(&self, outbox: &mut VecDeque<Outgoing>) -> bool {
        while let Some(next) = outbox.front() {
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match self.channel.send(&next.bytes, &fds) {
                Ok(()) => {
                    outbox.pop_front();
                }
                Err(ChannelError::WouldBlock) => return true,
                Err(_) => {
                    outbox.clear();
                    return false;
                }
            }
        }
        false
    }
}
