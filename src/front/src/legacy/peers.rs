//! The connections of CGManager's socket.

use std::{os::fd::OwnedFd, rc::Rc};

use cgrant_wire::{Answer, Legacy, LegacyCall, Op};
use tokio::{
    sync::OwnedSemaphorePermit,
    task::{JoinSet, spawn_local},
};
use zbus::{Guid, Message};

use super::{
    answer::View,
    call::{Action, INVALID, decode},
    exchange::Exchange,
};
use crate::{
    call::Caller,
    castoff::{Castoffs, Pins},
    core::{CALLS_PER_UID, Core, PerUid, caught, deliver, prepared},
    fault::Fault,
    outbox::Outbox,
    sasl::Claim,
    session::{Peer, Session},
    stream::Parcel,
};

/// Exchanges of one account, over all its connections, that may be under way.
const EXCHANGES: usize = 64;

/// The connections of CGManager's socket. What they may have under way is counted to their accounts: one account may have
/// many uids in its containers.
#[derive(Debug)]
pub struct LegacyPeers {
    core: Rc<Core>,
    guid: String,
    castoffs: Castoffs,
    calls: PerUid,
    exchanges: PerUid,
}

/// One of them.
#[derive(Debug)]
struct Client<'a> {
    peers: &'a LegacyPeers,
    caller: Caller,
    account: u32,
    outbox: Outbox,
    exchanges: JoinSet<()>,
}

impl LegacyPeers {
    /// Of a front.
    pub fn new(core: Rc<Core>) -> Self {
        Self {
            core,
            guid: Guid::generate().to_string(),
            castoffs: Castoffs::default(),
            calls: PerUid::new(CALLS_PER_UID),
            exchanges: PerUid::new(EXCHANGES),
        }
    }

    /// Serves a connection in a task of its own, to its end.
    pub fn serve(self: &Rc<Self>, peer: Peer, account: u32, socket: OwnedFd) {
        let peers = Rc::clone(self);
        spawn_local(async move {
            let session = spawn_local({
                let peers = Rc::clone(&peers);
                async move { peers.session(peer, account, socket).await }
            });
            // However it ended, by a fault of ours too, the engine must hear of it.
            let _ = session.await;
            peers.core.engine.closed(peer.connection).await;
        });
    }

    async fn session(&self, peer: Peer, account: u32, socket: OwnedFd) {
        let bin = self.castoffs.of_legacy(account);
        let Some(session) = Session::open(peer, Claim::Any, socket, &self.guid, bin).await else { return };
        let caller = Caller {
            connection: peer.connection,
            uid: peer.uid,
            is_root: peer.uid == 0,
            peer_to_peer: true,
            unix_fds: session.unix_fds,
        };
        let (outbox, exchanges) = (session.outbox.clone(), JoinSet::new());
        let mut client = Client { peers: self, caller, account, outbox, exchanges };
        let places = self.calls.of(account);
        session.serve(&places, async |parcel, slots| client.call(parcel, slots).await).await;
        // The connection says who the proxy is, so the engine must know it until they have ended.
        while client.exchanges.join_next().await.is_some() {}
    }
}

impl Client<'_> {
    async fn call(&mut self, parcel: Parcel, slots: Vec<OwnedSemaphorePermit>) {
        while self.exchanges.try_join_next().is_some() {}
        let (message, pins) = parcel.into_parts();
        let core = &self.peers.core;
        let action = caught(|| decode(&core.contract, core.machine_id.as_deref(), &message));
        let pins = match action {
            Ok(Action::Exchange(call)) => self.exchange(&message, call, pins, slots).await,
            Ok(Action::Ask(call)) => {
                self.ask(&message, call, slots).await;
                Some(pins)
            }
            Ok(Action::Reply(reply)) => {
                self.reply(&message, Ok(*reply), slots).await;
                Some(pins)
            }
            Err(fault) => {
                self.reply(&message, Err(fault), slots).await;
                Some(pins)
            }
        };
        drop(message);
        // After the message, so that what may be slow is not closed with it.
        drop(pins);
    }

    async fn reply(
        &self,
        message: &Message,
        result: Result<Message, Fault>,
        slots: Vec<OwnedSemaphorePermit>,
    ) {
        if let Err(fault) = &result {
            self.peers.core.refusals.log(self.caller, message, fault);
        }
        if let Some(call) = prepared(message) {
            deliver(&call, result, &self.outbox, slots).await;
        }
    }

    /// A plain call: the requestor is the peer itself.
    async fn ask(&self, message: &Message, call: LegacyCall, slots: Vec<OwnedSemaphorePermit>) {
        let core = &self.peers.core;
        let view = View::of(&call);
        let op = Op::Legacy(Legacy { exchange: None, call });
        let asked = core.engine.ask(self.caller.connection, false, op, Vec::new()).await;
        let Some(call) = prepared(message) else { return };
        let outbox = self.outbox.clone();
        spawn_local(async move {
            let result = match asked {
                Err(refusal) => view.reply(call.message(), Err(refusal)),
                Ok(pending) => match pending.await.map(|reply| reply.result) {
                    Ok(Ok(Answer::Legacy(answer))) => view.reply(call.message(), Ok(answer)),
                    Ok(Err(refusal)) => view.reply(call.message(), Err(refusal)),
                    Ok(Ok(_)) | Err(_) => Err(Fault::InvalidArgs(INVALID.to_owned())),
                },
            };
            deliver(&call, result, &outbox, slots).await;
        });
    }

    /// The twin of a method. The client is asked for credentials before the call is answered, as CGManager did. Gives back what it
    /// does not take.
    async fn exchange(
        &mut self,
        message: &Message,
        call: LegacyCall,
        pins: Pins,
        slots: Vec<OwnedSemaphorePermit>,
    ) -> Option<Pins> {
        match self.begin(pins).await {
            Err((told, pins)) => {
                self.reply(message, Err(Fault::InvalidArgs(told)), slots).await;
                Some(pins)
            }
            Ok(exchange) => {
                let reply =
                    Message::method_return(&message.header()).build(&()).map_err(|_| Fault::internal());
                self.reply(message, reply, slots).await;
                self.exchanges.spawn_local(exchange.run(call));
                None
            }
        }
    }

    /// Begins an exchange over what came with a call; else what the caller is told, and what came.
    async fn begin(&self, pins: Pins) -> Result<Exchange, (String, Pins)> {
        let core = &self.peers.core;
        let Ok(place) = self.peers.exchanges.of(self.account).try_acquire_owned() else {
            let told = format!("{INVALID}: {EXCHANGES} calls of the account wait for credentials");
            return Err((told, pins));
        };
        let connection = self.caller.connection;
        Exchange::begin(Rc::clone(&core.engine), connection, pins, place).await.map_err(|(error, pins)| {
            tracing::debug!(connection = connection.0, %error, "no exchange");
            (INVALID.to_owned(), pins)
        })
    }
}
