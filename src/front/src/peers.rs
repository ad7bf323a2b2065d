//! The socket front: serves the connections that the engine accepts.

use std::{
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cgrant_sys::socket::set_pass_rights;
use cgrant_wire::ConnectionId;
use rustix::io::ioctl_fionread;
use tokio::{
    sync::Semaphore,
    task::spawn_local,
    time::{sleep, timeout},
};
use zbus::{Guid, message::Type};

use crate::{
    call::Caller,
    castoff::{Bin, Castoffs},
    core::{CALLS_PER_CONNECTION, Core},
    handshake,
    outbox::{Outbox, PEER_QUEUE},
    stream::{Reader, TooLong, halves, shut_down},
    watched::Watched,
};

/// How long between two looks whether a connection can be closed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a message may take from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connections of our own socket.
#[derive(Debug)]
pub struct Peers {
    core: Rc<Core>,
    guid: String,
    castoffs: Castoffs,
}

impl Peers {
    /// Of a front.
    pub fn new(core: Rc<Core>) -> Self {
        Self { core, guid: Guid::generate().to_string(), castoffs: Castoffs::default() }
    }

    /// Serves a connection in a task of its own, to its end.
    pub fn serve(self: &Rc<Self>, connection: ConnectionId, uid: u32, socket: OwnedFd) {
        let peers = Rc::clone(self);
        spawn_local(async move {
            let session = spawn_local({
                let peers = Rc::clone(&peers);
                async move { peers.session(connection, uid, socket).await }
            });
            // However it ended, by a fault of ours too, the engine must hear of it.
            let _ = session.await;
            peers.core.subscribers.remove(uid, connection);
            peers.core.engine.closed(connection).await;
        });
    }

    async fn session(&self, connection: ConnectionId, uid: u32, socket: OwnedFd) {
        let stream = match to_stream(socket) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "cannot watch a connection"),
        };
        let bin = self.castoffs.of(uid);
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
            return part(&stream, &bin).await;
        }
        let unix_fds = match handshake::serve(&stream, uid, &self.guid, &bin).await {
            Ok(unix_fds) => unix_fds,
            Err(error) => {
                tracing::info!(connection = connection.0, uid, %error, "handshake failed");
                return part(&stream, &bin).await;
            }
        };
        let (reader, writer) = halves(stream, unix_fds, TooLong::Fail, bin.clone());
        let stream = Arc::clone(reader.stream());
        let (outbox, writing) = Outbox::new(writer, Arc::clone(reader.stream()), PEER_QUEUE);
        spawn_local(writing);
        self.core.subscribers.add(uid, connection, outbox.clone(), None);
        let caller = Caller { connection, uid, peer_to_peer: true, unix_fds };
        self.read(caller, reader, &outbox).await;
        part(&stream, &bin).await;
    }

    /// Reads calls to the end of the connection. A message is read only when there are slots for it, its
    /// connection's and its uid's: a flood waits in the flooder's own socket, and everybody else is served. So what a
    /// uid can make this process hold, in bytes and in descriptors, is bounded however many connections it has.
    async fn read(&self, caller: Caller, mut reader: Reader, outbox: &Outbox) {
        let own = Arc::new(Semaphore::new(CALLS_PER_CONNECTION));
        let of_uid = self.core.calls.of(caller.uid);
        loop {
            let Ok(slot) = Arc::clone(&own).acquire_owned().await else { return };
            if reader.readable().await.is_err() {
                return;
            }
            let Ok(uid_slot) = Arc::clone(&of_uid).acquire_owned().await else { return };
            let message = match timeout(PATIENCE, reader.next()).await {
                Ok(Ok(message)) => message,
                Ok(Err(error)) => {
                    tracing::debug!(connection = caller.connection.0, uid = caller.uid, %error, "connection ended");
                    return;
                }
                Err(_) => {
                    let connection = caller.connection.0;
                    return tracing::info!(connection, uid = caller.uid, "a message is not sent to its end");
                }
            };
            // Replies and signals of a peer mean nothing to us.
            if message.message_type() == Type::MethodCall {
                self.core.call(caller, &message, outbox, vec![slot, uid_slot]).await;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Ends a connection. Nothing can be sent over it from now on; what is unread is taken out of it before it is closed, where
/// nobody waits. A uid whose closings don't come to an end keeps its connections, which are counted, until they do.
async fn part(stream: &Watched, bin: &Bin) {
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

fn to_stream(socket: OwnedFd) -> std::io::Result<Watched> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    Watched::new(socket)
}
