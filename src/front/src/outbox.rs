//! What waits to be sent to a peer: a bounded queue with one task that writes.
//!
//! A reply waits for room, and holds its caller's slot until it is written, so that a caller who does not read
//! stops being read. A signal does not wait: a peer that lets its queue fill up with signals is disconnected.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use zbus::Message;

use crate::{
    stream::{Writer, shut_down},
    watched::Watched,
};

/// Messages that may wait for a peer of our own socket. An account's thousand grants may end at once, with three
/// signals each; the messages themselves are shared by all peers that get them.
pub const PEER_QUEUE: usize = 4096;
/// Messages that may wait for the bus daemon, which serves all its clients by one socket.
pub const BUS_QUEUE: usize = 4096;
/// Most messages that are taken out of a queue at once: a reply and the signals of an event.
const AT_ONCE: usize = 8;
/// How long a peer may take none of what waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A message on its way, and what its caller gets back when it is written.
#[derive(Debug)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// The slots of the call that it answers.
    pub slots: Vec<OwnedSemaphorePermit>,
}

/// The sending end.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: mpsc::Sender<Outgoing>,
    stream: Arc<Watched>,
}

impl Outbox {
    /// A queue for what `writer` writes, and the task that writes. The task ends with the connection, and shuts the
    /// connection down when it can't write.
    pub fn new(mut writer: Writer, stream: Arc<Watched>, length: usize) -> (Self, impl Future<Output = ()>) {
        let (queue, mut messages) = mpsc::channel::<Outgoing>(length);
        let outbox = Self { queue, stream: Arc::clone(&stream) };
        let writing = async move {
            let mut next = Vec::new();
            while messages.recv_many(&mut next, AT_ONCE).await > 0 {
                let sent = timeout(PATIENCE, writer.send(next.iter().map(|next| &next.message))).await;
                next.drain(..).for_each(|next| drop(next.slots));
                match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "cannot send to a peer");
                        break;
                    }
                    Err(_) => {
                        tracing::info!("a peer that does not read is disconnected");
                        break;
                    }
                }
            }
            shut_down(&stream);
        };
        (outbox, writing)
    }

    /// Sends a reply, waiting for room. A connection that has ended needs none.
    pub async fn reply(&self, outgoing: Outgoing) {
        let _ = self.queue.send(outgoing).await;
    }

    /// Sends a message if there is room.
    pub fn try_send(&self, message: Message) -> bool {
        let outgoing = Outgoing { message, slots: Vec::new() };
        !matches!(self.queue.try_send(outgoing), Err(mpsc::error::TrySendError::Full(_)))
    }

    /// Ends the connection.
    pub fn disconnect(&self) {
        shut_down(&self.stream);
    }
}
