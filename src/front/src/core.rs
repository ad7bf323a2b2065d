//! What both fronts share: from a call to its reply, with bounds on how much of it a caller may have under way.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{Arc, Weak},
};

use cgrant_wire::Consent;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_local,
};
use zbus::{Message, message::Flags};

use crate::{
    call::{Action, Call, Caller, Question, decode},
    contract::Contract,
    fault::Fault,
    link::{Engine, Pending},
    outbox::{Outbox, Outgoing},
    polkit::Polkit,
    refusals::Refusals,
    signal::Subscribers,
    view::View,
};

/// Calls of one connection that may be under way.
pub const CALLS_PER_CONNECTION: usize = 16;
/// Calls of one uid, over all its connections, that may be under way.
pub const CALLS_PER_UID: usize = 32;

/// What a front has.
#[derive(Debug)]
pub struct Core {
    /// The contract.
    pub contract: Contract,
    /// The engine.
    pub engine: Rc<Engine>,
    /// Who gets signals.
    pub subscribers: Subscribers,
    /// The calls that each uid may have under way.
    pub calls: PerUid,
    /// What is said of calls that are refused here.
    pub refusals: Refusals,
    /// The host's id.
    pub machine_id: Option<String>,
    /// Whom the engine's questions go to, while there is a bus.
    pub polkit: RefCell<Option<Rc<Polkit>>>,
}

/// A number of places for each uid, over all its connections.
#[derive(Debug)]
pub struct PerUid {
    places: usize,
    uids: RefCell<HashMap<u32, Weak<Semaphore>>>,
}

impl PerUid {
    /// With so many places each.
    pub fn new(places: usize) -> Self {
        Self { places, uids: RefCell::default() }
    }

    /// The places of a uid: one semaphore, for as long as somebody has it.
    pub fn of(&self, uid: u32) -> Arc<Semaphore> {
        let mut uids = self.uids.borrow_mut();
        if let Some(places) = uids.get(&uid).and_then(Weak::upgrade) {
            return places;
        }
        uids.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.places));
        uids.insert(uid, Arc::downgrade(&places));
        places
    }
}

impl Core {
    /// Of a contract and a link.
    pub fn new(contract: Contract, engine: Rc<Engine>, machine_id: Option<String>) -> Rc<Self> {
        Rc::new(Self {
            contract,
            engine,
            subscribers: Subscribers::default(),
            calls: PerUid::new(CALLS_PER_UID),
            refusals: Refusals::default(),
            machine_id,
            polkit: RefCell::default(),
        })
    }

    /// Asks polkit for the engine.
    pub async fn ask_polkit(&self, question: cgrant_wire::Question, process: Option<OwnedFd>) {
        let polkit = self.polkit.borrow().clone();
        match polkit {
            Some(polkit) => polkit.ask(question, process),
            None => {
                let consent = Consent::Unavailable("there is no bus".to_owned());
                self.engine.consent(question.id, consent).await;
            }
        }
    }

    /// Carries out a call, up to the point where the engine has it; the answer is waited for in a task of its own.
    /// Calls that are given one after the other reach the engine in that order.
    pub async fn call(
        self: &Rc<Self>,
        caller: Caller,
        message: &Message,
        outbox: &Outbox,
        slots: Vec<OwnedSemaphorePermit>,
    ) {
        let action = caught(|| decode(&self.contract, caller, self.machine_id.as_deref(), message));
        let result = match action {
            Ok(Action::Ask(question)) => return self.ask(caller, message, *question, outbox, slots).await,
            Ok(Action::Reply(reply)) => Ok(*reply),
            Err(fault) => {
                self.refusals.log(caller, message, &fault);
                Err(fault)
            }
        };
        if let Some(call) = prepared(message) {
            deliver(&call, result, outbox, slots).await;
        }
    }

    async fn ask(
        self: &Rc<Self>,
        caller: Caller,
        message: &Message,
        question: Question,
        outbox: &Outbox,
        slots: Vec<OwnedSemaphorePermit>,
    ) {
        let Question { op, fds, view } = question;
        let interactive = message.primary_header().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let asked = self.engine.ask(caller.connection, interactive, op, fds).await;
        // While the engine is at work.
        let Some(call) = prepared(message) else { return };
        match asked {
            Err(refusal) => deliver(&call, Err(refusal.into()), outbox, slots).await,
            Ok(pending) => {
                let (core, outbox) = (Rc::clone(self), outbox.clone());
                spawn_local(async move {
                    let reply = core.answer(&call, &view, pending).await;
                    deliver(&call, reply, &outbox, slots).await;
                });
            }
        }
    }

    async fn answer(&self, call: &Call, view: &View, pending: Pending) -> Result<Message, Fault> {
        let reply = pending.await.map_err(|_| Fault::internal())?;
        caught(|| view.reply(&self.contract, call.message(), reply.result, &reply.fds))
    }
}

/// Runs what works on a caller's bytes. A panic there is a fault of ours, and the caller's answer says so; it must not
/// take down the process that serves everybody.
pub fn caught<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    // What is shared is only read, so a panic leaves nothing half-changed behind.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Fault::internal()))
}

/// What is needed to answer a call.
pub fn prepared(message: &Message) -> Option<Call> {
    Call::of(message).inspect_err(|error| tracing::error!(%error, "cannot prepare a reply")).ok()
}

/// Sends what came of a call, if the caller wants to know.
pub async fn deliver(
    call: &Call,
    result: Result<Message, Fault>,
    outbox: &Outbox,
    slots: Vec<OwnedSemaphorePermit>,
) {
    if !call.reply_expected() {
        return;
    }
    match result.or_else(|fault| fault.reply(call.message())) {
        Ok(message) => outbox.reply(Outgoing { message, slots }).await,
        Err(error) => tracing::error!(%error, "cannot build a reply"),
    }
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_answer() {
        let caught = caught::<()>(|| std::panic::panic_any("a fault"));
        assert!(
            matches!(caught, Err(Fault::Refused(refusal)) if refusal.code == cgrant_wire::RefusalCode::Internal)
        );
    }
}
