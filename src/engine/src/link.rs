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
use cgrant_wire::{FromEngine, Refusal, RefusalCode, ToEngine, boot::FrontKind};
use nix::sys::epoll::EpollFlags;

/// Most messages that wait for a front to read.
const MAX_OUTBOX: usize = 8192;
/// Most bytes of theirs, beside what the socket holds.
const MAX_BYTES: usize = 64 * 1024 * 1024;

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Outgoing>,
    bytes: usize,
}

impl Outbox {
    fn has_room(&self) -> bool {
        self.queue.len() < MAX_OUTBOX && self.bytes < MAX_BYTES
    }

    fn push(&mut self, message: Outgoing) {
        self.bytes = self.bytes.saturating_add(message.bytes.len());
        self.queue.push_back(message);
    }

    fn pop(&mut self) {
        if let Some(sent) = self.queue.pop_front() {
            self.bytes = self.bytes.saturating_sub(sent.bytes.len());
        }
    }
}

struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A front's link.
pub struct Link {
    kind: FrontKind,
    channel: Channel,
    outbox: Mutex<Outbox>,
    broken: AtomicBool,
}

/// Encodes a message. A caller whose answer does not fit into one is told so, and not left waiting.
fn encode(message: &FromEngine, fds: Vec<OwnedFd>) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let error = match cgrant_wire::encode(message) {
        Ok(bytes) => return Some((bytes, fds)),
        Err(error) => error,
    };
    tracing::error!(%error, "a message could not be encoded");
    let FromEngine::Answer { id, .. } = message else { return None };
    let refusal = Refusal::new(RefusalCode::Internal, format!("the answer can't be given: {error}"));
    let told = cgrant_wire::encode(&FromEngine::Answer { id: *id, result: Err(refusal) }).ok()?;
    Some((told, Vec::new()))
}

/// What was read from a link.
pub enum Incoming {
    /// A message and the descriptors that came beside it.
    Message(Box<ToEngine>, Vec<OwnedFd>),
    /// Nothing more for now.
    Drained,
    /// The front is gone or has to go.
    Gone,
}

impl Link {
    /// What epoll is to tell of a link: each message that comes, once, so that one alone of the threads that wait is woken for it.
    /// Who is told therefore reads until nothing is left, or asks to be told anew.
    pub const AWAITED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

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
                Ok(message) => Incoming::Message(Box::new(message), received.fds),
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
        let Some((bytes, fds)) = encode(message, fds) else { return false };
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        if !outbox.has_room() {
            tracing::error!(front = ?self.kind, "a front does not read its messages; it is cut off");
            self.broken.store(true, Ordering::Relaxed);
            let _ = rustix::net::shutdown(self.channel.as_fd(), rustix::net::Shutdown::Both);
            return false;
        }
        outbox.push(Outgoing { bytes, fds });
        self.drain(&mut outbox)
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&self) {
        self.drain(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Calls `watch` with what epoll is to tell of the link now. Nothing is sent meanwhile, so that of two calls the one
    /// that knows less can't be the last.
    pub fn while_waiting<T>(&self, watch: impl FnOnce(EpollFlags) -> T) -> T {
        let outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let room = if outbox.queue.is_empty() { EpollFlags::empty() } else { EpollFlags::EPOLLOUT };
        watch(Self::AWAITED | room)
    }

    fn drain(&self, outbox: &mut Outbox) -> bool {
        while let Some(next) = outbox.queue.front() {
            let fds: Vec<_> = next.fds.iter().map(AsFd::as_fd).collect();
            match self.channel.send(&next.bytes, &fds) {
                Ok(()) => outbox.pop(),
                Err(ChannelError::WouldBlock) => return true,
                Err(_) => {
                    *outbox = Outbox::default();
                    return false;
                }
            }
        }
        false
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use cgrant_sys::seqpacket;
    use cgrant_wire::{Answer, RequestId};

    use super::*;

    fn answer(id: u64, bytes: usize) -> FromEngine {
        let result = Ok(Answer::Cgroups(vec!["x".repeat(bytes)]));
        FromEngine::Answer { id: RequestId(id), result }
    }

    #[test]
    fn an_answer_that_is_too_long_becomes_a_refusal() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let link = Link::new(FrontKind::Socket, ours).unwrap();
        link.send(&answer(7, cgrant_wire::frame::MAX_MESSAGE), Vec::new());
        let received = theirs.receive().unwrap().unwrap();
        match cgrant_wire::decode(&received.bytes).unwrap() {
            FromEngine::Answer { id: RequestId(7), result: Err(refusal) } => {
                assert_eq!(refusal.code, RefusalCode::Internal);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_front_that_does_not_read_is_cut_off_before_it_costs_much() {
        let (ours, theirs) = seqpacket::pair().unwrap();
        let link = Link::new(FrontKind::Socket, ours).unwrap();
        let (length, mut sent) = (500_000, 0);
        while !link.broken.load(Ordering::Relaxed) {
            link.send(&answer(1, length), Vec::new());
            sent += length;
            // Memory files on their way count in the socket as the few bytes that they are sent with.
            assert!(sent < MAX_BYTES + 400 * length, "{sent} bytes wait");
        }
        assert!(matches!(link.receive(), Incoming::Gone));
        drop(theirs);
    }
}
