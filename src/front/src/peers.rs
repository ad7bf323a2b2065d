//! The connections of the broker's own socket: they call the broker's own interfaces, and hear its signals.

use std::{future::pending, os::fd::OwnedFd, rc::Rc, time::Duration};

use cgrant_wire::Audience;
use tokio::{sync::Notify, task::spawn_local, time::timeout};
use zbus::Guid;

use crate::{
    call::Caller,
    castoff::Castoffs,
    core::Core,
    sasl::Claim,
    session::{Peer, Session},
};

/// How long a peer that calls nothing hears no signals: it might be about to say `Hello`, which is sent right behind the
/// handshake, however late its process is given the time for it.
const BEFORE_HELLO: Duration = Duration::from_secs(2);

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
            if let Some(audience) = peer.audience {
                peers.core.subscribers.remove(audience, peer.connection);
            }
            peers.core.engine.closed(peer.connection).await;
        });
    }

    async fn session(&self, peer: Peer, socket: OwnedFd) {
        let Peer { connection, uid, claim, audience } = peer;
        let claim = claim.map_or(Claim::Own(uid), |claim| Claim::Inside { uid, claim });
        let bin = self.castoffs.of(uid);
        let Some(session) = Session::open(peer, claim, socket, &self.guid, bin).await else {
            return;
        };
        let outbox = session.outbox.clone();
        let subscribers = &self.core.subscribers;
        if let Some(audience) = audience {
            subscribers.add_peer(audience, connection, outbox.clone());
        }
        let begin = || audience.map(|audience| subscribers.begin(audience, connection));
        let is_root = uid == 0 || matches!(audience, Some(Audience::Inside(_, 0)));
        let caller = Caller { connection, uid, is_root, peer_to_peer: true, unix_fds: session.unix_fds };
        let places = self.core.calls.of(uid);
        let (mut is_first, called) = (true, Notify::new());
        let calls = session.serve(&places, async |parcel, slots| {
            self.core.call(caller, &parcel, &outbox, slots).await;
            // `Hello` is answered by now: nobody but this process is asked for it.
            if std::mem::take(&mut is_first) {
                begin();
                called.notify_one();
            }
        });
        let listening = async {
            let _ = timeout(BEFORE_HELLO, called.notified()).await;
            begin();
            pending().await
        };
        // Nothing waits for the time to pass when there was a call, or the connection has ended.
        tokio::select! {
            () = calls => {}
            () = listening => {}
        }
    }
}
