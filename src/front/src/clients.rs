//! The bus front: serves clients of a message bus.
//!
//! A client's first call makes the front ask the bus who it is, and introduce it to the engine; its calls wait so
//! long. The front hears of its end by a match on its name alone, so that nothing else that happens on the bus wakes it.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
};

use cgrant_sys::Pidfd;
use cgrant_wire::{Answer, Audience, BusClient};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_local,
};
use zbus::{Message, OwnedVariant, Variant, message::Type};

use crate::{
    boot::NOBODY_ASKED,
    bus::{Bus, BusError},
    call::{Call, Caller},
    contract::DRIVER,
    core::{CALLS_PER_CONNECTION, Core, PerUid},
    fault::Fault,
    polkit::{POLKIT, Polkit},
    stream::{Parcel, Reader},
};

/// Most clients at once. Each costs a match rule, of which a bus gives 512 to a connection as it is shipped.
const MAX_CLIENTS: usize = 448;
/// Most of one uid; root has no such limit.
const MAX_CLIENTS_PER_UID: usize = 64;
/// Descriptors that calls may hold while they wait for their client's introduction, all clients together.
const MAX_WAITING_FDS: usize = 512;
/// Flag bits of `RequestName`: none, so that we wait for a name that somebody else still has.
const QUEUE_FOR_NAME: u32 = 0;
/// Answer of `RequestName`: we have the name now.
const PRIMARY_OWNER: u32 = 1;

/// A client.
#[derive(Debug)]
enum Client {
    /// The bus and the engine are being asked about it; its calls wait.
    Introducing(VecDeque<Parcel>),
    /// It is known.
    Known {
        caller: Caller,
        audience: Option<Audience>,
        slots: Arc<Semaphore>,
        /// Its place among its uid's clients, given back when it leaves.
        _place: Option<OwnedSemaphorePermit>,
    },
}

/// A client that the engine knows.
struct Introduced {
    caller: Caller,
    audience: Option<Audience>,
    place: Option<OwnedSemaphorePermit>,
}

/// The clients of a bus.
#[derive(Debug)]
pub struct Clients {
    core: Rc<Core>,
    bus: Rc<Bus>,
    clients: RefCell<HashMap<String, Client>>,
    places: PerUid,
}

/// What the bus says about a client.
#[derive(Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    groups: Vec<u32>,
    pid: Option<u32>,
}

impl Clients {
    /// Of a bus that has let us in.
    pub fn new(core: Rc<Core>, bus: Rc<Bus>) -> Rc<Self> {
        Rc::new(Self { core, bus, clients: RefCell::default(), places: PerUid::new(MAX_CLIENTS_PER_UID) })
    }

    /// Greets the bus and asks it for our name.
    ///
    /// # Errors
    /// [`BusError`]: most often the bus's policy does not let this account have the name.
    pub async fn register(&self, name: &str) -> Result<(), BusError> {
        self.bus.call("Hello", &()).await?;
        let answer = self.bus.call("RequestName", &(name, QUEUE_FOR_NAME)).await?;
        if answer.body().deserialize::<u32>()? != PRIMARY_OWNER {
            tracing::warn!(name, "the bus name belongs to somebody else; it is ours when they leave it");
        }
        let polkit = Polkit::new(Rc::clone(&self.bus), Rc::clone(&self.core.engine));
        *self.core.polkit.borrow_mut() = Some(Rc::clone(&polkit));
        match polkit.look_out().await {
            Ok(true) => tracing::info!("polkit is asked where policy says \"ask\""),
            Ok(false) => tracing::warn!(hint = NOBODY_ASKED, "polkit is not on the bus"),
            Err(error) => {
                tracing::warn!(%error, hint = NOBODY_ASKED, "the bus does not say whether polkit is there")
            }
        }
        Ok(())
    }

    /// Reads the bus to its end.
    pub async fn read(self: &Rc<Self>, mut reader: Reader) {
        loop {
            match reader.next().await {
                Ok(message) => self.take(message).await,
                Err(error @ zbus::Error::InputOutput(_)) => {
                    tracing::warn!(%error, "the bus is gone");
                    break;
                }
                // The bus has passed on what one of its clients made; that must not cost the others the bus.
                Err(error) => tracing::debug!(%error, "a message that can't be read"),
            }
            tokio::task::yield_now().await;
        }
    }

    /// Forgets everybody: the bus is gone.
    pub async fn forget(&self) {
        self.bus.ended();
        if self.core.polkit.take().is_some() {
            self.core.engine.polkit(false).await;
        }
        let clients = std::mem::take(&mut *self.clients.borrow_mut());
        for client in clients.into_values() {
            self.end(client).await;
        }
    }

    async fn take(self: &Rc<Self>, message: Parcel) {
        if self.bus.take_answer(Message::clone(&message)).is_none() {
            return;
        }
        match message.message_type() {
            Type::MethodCall => self.call(message).await,
            Type::Signal => self.signal(&message).await,
            Type::MethodReturn | Type::Error => {}
        }
    }

    /// A client calls.
    async fn call(self: &Rc<Self>, message: Parcel) {
        let Some(name) = message.header().sender().map(ToString::to_string) else { return };
        let known = {
            let mut clients = self.clients.borrow_mut();
            let full = clients.len() >= MAX_CLIENTS;
            let fits = message.data().fds().is_empty() || waiting_fds(&clients) < MAX_WAITING_FDS;
            match clients.get_mut(&name) {
                Some(Client::Known { caller, slots, .. }) => Some((*caller, Arc::clone(slots))),
                Some(Client::Introducing(calls)) if calls.len() < CALLS_PER_CONNECTION && fits => {
                    calls.push_back(message);
                    return;
                }
                Some(Client::Introducing(_)) => None,
                None if full || !fits => None,
                None => {
                    clients.insert(name.clone(), Client::Introducing(VecDeque::from([message])));
                    drop(clients);
                    let this = Rc::clone(self);
                    spawn_local(async move { this.introduce(&name).await });
                    return;
                }
            }
        };
        match known {
            Some((caller, slots)) => self.serve(caller, &slots, message).await,
            None => self.refuse(&message, &too_many()),
        }
    }

    /// Passes a call on if its client and its uid have a slot. Others' calls come over the same connection, so none
    /// can be made to wait here.
    async fn serve(&self, caller: Caller, slots: &Arc<Semaphore>, message: Parcel) {
        let own = Arc::clone(slots).try_acquire_owned();
        let of_uid = self.core.calls.of(caller.uid).try_acquire_owned();
        match (own, of_uid) {
            (Ok(own), Ok(of_uid)) => {
                self.core.call(caller, &message, self.bus.outbox(), vec![own, of_uid]).await;
            }
            _ => {
                let fault = too_many();
                self.core.refusals.log(caller, &message, &fault);
                self.refuse(&message, &fault);
            }
        }
    }

    fn refuse(&self, message: &Message, fault: &Fault) {
        let reply =
            Call::of(message).and_then(|call| Ok((call.reply_expected(), fault.reply(call.message())?)));
        match reply {
            Ok((true, message)) => {
                // No slot is held, so a client that floods must not be able to make us wait either.
                if !self.bus.outbox().try_send(message) {
                    tracing::warn!("the bus does not take messages; a refusal is lost");
                }
            }
            Ok((false, _)) => {}
            Err(error) => tracing::error!(%error, "cannot build a reply"),
        }
    }

    /// Finds out who a client is, and serves the calls that waited for it.
    async fn introduce(&self, name: &str) {
        if let Err(error) = self.bus.call("AddMatch", &match_rule(name)).await {
            tracing::warn!(name, %error, "cannot watch a client's name");
        }
        let fault = match self.ask_about(name).await {
            Ok(introduced) => return self.admit(name, introduced).await,
            Err(fault) => fault,
        };
        self.bus.tell("RemoveMatch", &match_rule(name));
        let client = self.clients.borrow_mut().remove(name);
        if let Some(Client::Introducing(calls)) = client {
            for call in calls {
                self.refuse(&call, &fault);
            }
        }
    }

    /// Serves the calls that waited, in their order; one that comes meanwhile waits behind them.
    async fn admit(&self, name: &str, introduced: Introduced) {
        let Introduced { caller, audience, place } = introduced;
        let slots = Arc::new(Semaphore::new(CALLS_PER_CONNECTION));
        loop {
            let Some(next) = self.next_waiting(name) else {
                // It has left meanwhile.
                return self.core.engine.closed(caller.connection).await;
            };
            match next {
                Some(call) => self.serve(caller, &slots, call).await,
                None => break,
            }
        }
        tracing::debug!(name, uid = caller.uid, connection = caller.connection.0, "client introduced");
        if let Some(audience) = audience {
            let outbox = self.bus.outbox().clone();
            self.core.subscribers.add_client(audience, caller.connection, outbox, name.to_owned());
        }
        let client = Client::Known { caller, audience, slots, _place: place };
        self.clients.borrow_mut().insert(name.to_owned(), client);
    }

    /// The next call that waits for its client's introduction; `None` if that client is not being introduced.
    fn next_waiting(&self, name: &str) -> Option<Option<Parcel>> {
        match self.clients.borrow_mut().get_mut(name) {
            Some(Client::Introducing(calls)) => Some(calls.pop_front()),
            _ => None,
        }
    }

    /// Asks the bus who a client is, and has the engine give it a number.
    async fn ask_about(&self, name: &str) -> Result<Introduced, Fault> {
        let (credentials, process) = self.credentials(name).await?;
        let uid = credentials.uid;
        let place = match uid {
            0 => None,
            _ => Some(self.places.of(uid).try_acquire_owned().map_err(|_| too_many())?),
        };
        let is_certain = process.is_some();
        let pidfd = self.pidfd(name, &credentials, process).await;
        let client = BusClient {
            name: name.to_owned(),
            uid,
            groups: credentials.groups,
            pid: credentials.pid,
            is_certain,
        };
        let pending = self.core.engine.introduce(client, pidfd).await.map_err(Fault::from)?;
        let reply = pending.await.map_err(|_| Fault::internal())?;
        match reply.result? {
            Answer::Connection { connection, audience } => {
                let caller =
                    Caller { connection, uid, is_root: uid == 0, peer_to_peer: false, unix_fds: true };
                Ok(Introduced { caller, audience, place })
            }
            _ => Err(Fault::internal()),
        }
    }

    async fn credentials(&self, name: &str) -> Result<(Credentials, Option<OwnedFd>), Fault> {
        let answer = self.bus.call("GetConnectionCredentials", &name).await.map_err(|error| {
            tracing::info!(name, %error, "the bus does not say who a client is");
            Fault::AccessDenied("the bus does not say who you are".to_owned())
        })?;
        let (credentials, process) = read_credentials(&answer)
            .ok_or_else(|| Fault::AccessDenied("the bus does not say what your uid is".to_owned()))?;
        Ok((credentials, process))
    }

    /// The client's process. Where the bus gives only a pid, that is another process's by now if the client's has
    /// died since it connected. So the descriptor is taken first, and then the bus is asked again: it says the
    /// same of a client that still is connected.
    async fn pidfd(
        &self,
        name: &str,
        credentials: &Credentials,
        process: Option<OwnedFd>,
    ) -> Option<OwnedFd> {
        if process.is_some() {
            return process;
        }
        let pidfd = Pidfd::open(credentials.pid?).ok()?;
        let (again, _) = self.credentials(name).await.ok()?;
        let alive = pidfd.is_alive().ok()?;
        (alive && again == *credentials).then(|| pidfd.into())
    }

    /// The bus tells of a client that has left.
    async fn signal(&self, message: &Message) {
        let header = message.header();
        let from_bus = header.sender().is_some_and(|sender| sender.as_str() == DRIVER);
        let member = header.member().map_or("", |member| member.as_str());
        if !from_bus {
            return;
        }
        if member == "NameLost" {
            tracing::warn!("the bus has given our name to somebody else");
        }
        if member != "NameOwnerChanged" {
            return;
        }
        let body = message.body();
        let Ok((name, _, new)) = body.deserialize::<(&str, &str, &str)>() else { return };
        if name == POLKIT {
            return self.polkit_changed();
        }
        if !new.is_empty() {
            return;
        }
        let client = self.clients.borrow_mut().remove(name);
        if let Some(client) = client {
            self.bus.tell("RemoveMatch", &match_rule(name));
            self.end(client).await;
        }
    }

    /// Polkit came or went. The bus is asked in a task of its own: whoever reads it can't wait for its answers.
    fn polkit_changed(&self) {
        let Some(polkit) = self.core.polkit.borrow().clone() else { return };
        spawn_local(async move {
            if let Err(error) = polkit.look().await {
                tracing::warn!(%error, "the bus does not say whether polkit is there");
            }
        });
    }

    async fn end(&self, client: Client) {
        if let Client::Known { caller, audience, .. } = client {
            if let Some(audience) = audience {
                self.core.subscribers.remove(audience, caller.connection);
            }
            self.core.engine.closed(caller.connection).await;
        }
    }
}

/// The descriptors of the calls that wait. Few wait at a time: an introduction takes a millisecond.
fn waiting_fds(clients: &HashMap<String, Client>) -> usize {
    clients
        .values()
        .map(|client| match client {
            Client::Introducing(calls) => calls.iter().map(|call| call.data().fds().len()).sum(),
            Client::Known { .. } => 0,
        })
        .sum()
}

/// What tells of the end of one client and of nothing else.
fn match_rule(name: &str) -> String {
    format!("type='signal',sender='{DRIVER}',interface='{DRIVER}',member='NameOwnerChanged',arg0='{name}'")
}

fn too_many() -> Fault {
    Fault::LimitsExceeded("too many calls of yours are under way".to_owned())
}

/// Reads the bus's answer; `None` without a uid. Keys that are of no use here are left out.
fn read_credentials(answer: &Message) -> Option<(Credentials, Option<OwnedFd>)> {
    let mut map: HashMap<String, OwnedVariant> = answer.body().deserialize().ok()?;
    let number = |map: &HashMap<String, OwnedVariant>, key| match &**map.get(key)? {
        Variant::U32(number) => Some(*number),
        _ => None,
    };
    let credentials = Credentials {
        uid: number(&map, "UnixUserID")?,
        groups: map
            .get("UnixGroupIDs")
            .and_then(|groups| Vec::<u32>::try_from(groups.try_clone().ok()?).ok())
            .unwrap_or_default(),
        pid: number(&map, "ProcessID"),
    };
    let process = map.remove("ProcessFD").and_then(|fd| match Variant::from(fd) {
        Variant::Fd(fd) => OwnedFd::try_from(fd).ok(),
        _ => None,
    });
    Some((credentials, process))
}
