//! The connections of the broker's own socket: they call the broker's own interfaces, and hear its signals.

use std::{os::fd::OwnedFd, rc::Rc};

use tokio::task::spawn_local;
use zbus::Guid;

use crate::{
    call::Caller,
    castoff::Castoffs,
    core::Core,
    sasl::Claim,
    session::{Peer, Session},
};

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
    pub fn serve(self: &Rc<Self>, peer: Peer, socket: OwnedFd) {
        let peers = Rc::clone(self);
        spawn_local(async move {
            let session = spawn_local({
                let peers = Rc::clone(&peers);
                async move { peers.session(peer, socket).await }
            });
            // However it ended, by a fault of ours too, the engine must hear of it.
            let _ = session.await;
            peers.core.subscribers.remove(peer.uid, peer.connection);
            peers.core.engine.closed(peer.connection).await;
        });
    }

    async fn session(&self, peer: Peer, socket: OwnedFd) {
        let Peer { connection, uid } = peer;
        let bin = self.castoffs.of(uid);
        let Some(session) = Session::open(peer, Claim::Own(uid), socket, &self.guid, bin).await else {
            return;
        };
        let outbox = session.outbox.clone();
        self.core.subscribers.add(uid, connection, outbox.clone(), None);
        let caller = Caller { connection, uid, peer_to_peer: true, unix_fds: session.unix_fds };
        let places = self.core.calls.of(uid);
        session
            .serve(&places, async |parcel, slots| self.core.call(caller, &parcel, &outbox, slots).await)
            .await;
    }
}
