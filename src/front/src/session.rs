//! A connection that the engine has accepted, from its handshake to its end: what both interfaces do alike.
//!
//! What its peer can make this process hold or wait for is bounded here, whatever it calls.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use cgrant_sys::socket::set_pass_rights;
use cgrant_wire::{Audience, ConnectionId};
use rustix::io::ioctl_fionread;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_local,
    time::{sleep, timeout},
};
use zbus::message::Type;

use crate::{
    castoff::Bin,
    core::CALLS_PER_CONNECTION,
    handshake,
    outbox::{Outbox, PEER_QUEUE},
    sasl::Claim,
    stream::{Parcel, Reader, TooLong, halves, shut_down},
    watched::Watched,
};

/// How long between two looks whether a connection can be closed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a message may take from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose connection it is, in the engine's words.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its number.
    pub connection: ConnectionId,
    /// The uid behind it.
    pub uid: u32,
    /// The uid that it has in its own user namespace, if that is another one and known.
    pub claim: Option<u32>,
    /// What it is told of, if it is of anything.
    pub audience: Option<Audience>,
}

/// A connection over which messages go.
#[derive(Debug)]
pub struct Session {
    peer: Peer,
    reader: Reader,
    bin: Bin,
    /// What is sent to the peer.
    pub outbox: Outbox,
    /// Were descriptors agreed on?
    pub unix_fds: bool,
}

impl Session {
    /// Serves the handshake; `None` if the connection has ended with it.
    pub async fn open(peer: Peer, claim: Claim, socket: OwnedFd, guid: &str, bin: Bin) -> Option<Self> {
        let Peer { connection, uid, .. } = peer;
        let stream = to_stream(socket)
            .inspect_err(|error| tracing::warn!(%error, "cannot watch a connection"))
            .ok()?;
        // From now on, and not before, the peer may send descriptors: there is somebody who takes them.
        if let Err(error) = set_pass_rights(stream.as_fd(), true) {
            tracing::warn!(connection = connection.0, %error, "no descriptors can be sent over a connection");
        }
        if !bin.has_room() {
            tracing::warn!(
                connection = connection.0,
                uid,
                "descriptors that this uid sent can't be closed; not served"
            );
            part(&stream, &bin).await;
            return None;
        }
        let unix_fds = match handshake::serve(&stream, claim, guid, &bin).await {
            Ok(unix_fds) => unix_fds,
            Err(error) => {
                tracing::info!(connection = connection.0, uid, %error, "handshake failed");
                part(&stream, &bin).await;
                return None;
            }
        };
        let (reader, writer) = halves(stream, unix_fds, TooLong::Fail, bin.clone());
        let (outbox, writing) = Outbox::new(writer, Arc::clone(reader.stream()), PEER_QUEUE);
        spawn_local(writing);
        Some(Self { peer, reader, bin, outbox, unix_fds })
    }

    /// Reads calls to the end of the connection, and gives each to `take`. A message is read only when there are slots for it,
    /// its connection's and one of `places`: a flood waits in the flooder's own socket, and everybody else is served. So what
    /// those who share the places can make this process hold, in bytes and in descriptors, is bounded however many
    /// connections they have.
    pub async fn serve(
        mut self,
        places: &Arc<Semaphore>,
        mut take: impl AsyncFnMut(Parcel, Vec<OwnedSemaphorePermit>),
    ) {
        let own = Arc::new(Semaphore::new(CALLS_PER_CONNECTION));
        while let Some((parcel, slots)) = self.next(&own, places).await {
            // Replies and signals of a peer mean nothing to us.
            if parcel.message_type() == Type::MethodCall {
                take(parcel, slots).await;
            }
            if self.reader.has_more() {
                tokio::task::yield_now().await;
            }
        }
        part(self.reader.stream(), &self.bin).await;
    }

    async fn next(
        &mut self,
        own: &Arc<Semaphore>,
        places: &Arc<Semaphore>,
    ) -> Option<(Parcel, Vec<OwnedSemaphorePermit>)> {
        let (connection, uid) = (self.peer.connection.0, self.peer.uid);
        let slot = Arc::clone(own).acquire_owned().await.ok()?;
        self.reader.readable().await.ok()?;
        let place = Arc::clone(places).acquire_owned().await.ok()?;
        match timeout(PATIENCE, self.reader.next()).await {
            Ok(Ok(parcel)) => Some((parcel, vec![slot, place])),
            Ok(Err(error)) => {
                tracing::debug!(connection, uid, %error, "connection ended");
                None
            }
            Err(_) => {
                tracing::info!(connection, uid, "a message is not sent to its end");
                None
            }
        }
    }
}

/// Ends a connection. Nothing can be sent over it from now on; what is unread is taken out of it before it is closed, where
/// nobody waits. A uid whose closings don't come to an end keeps its connections, which are counted, until they do.
pub(crate) async fn part(stream: &Watched, bin: &Bin) {
    shut_down(stream);
    while ioctl_fionread(stream).is_ok_and(|unread| unread > 0) {
        if bin.has_room() {
            match bin.empty(stream) {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "no thread for what is left in a connection"),
            }
        }
        sleep(PAUSE).await;
    }
}

/// Has the runtime watch a socket.
pub(crate) fn to_stream(socket: OwnedFd) -> std::io::Result<Watched> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    Watched::new(socket)
}
