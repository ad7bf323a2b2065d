//! From an event of the engine's to the signals of the contract, and to whom they go.
//!
//! A signal is sent to the connections of the account that it is about and to root's, or to those inside a grant, one by one. On a bus it is
//! addressed to each client and never broadcast: a broadcast would tell everybody what everybody runs.
//!
//! A peer of our own socket that takes it for a bus begins with `Hello`, and sd-bus ends a connection on which anything comes
//! before the answer. So what a new peer would hear is held back until it has called, or has not for a while.

use std::{cell::RefCell, collections::BTreeMap};

use cgrant_proto::names::{ACCOUNT, CGROUP, GRANT, IDS, LINKS, MANAGER, MANAGER_PATH, MOUNTS, account_path};
use cgrant_wire::{Audience, ConnectionId, Event, GrantChange};
use serde::Serialize;
use zbus::{DynamicType, Message, ObjectPath, Variant};

use crate::{
    contract::{OBJECT_MANAGER, PROPERTIES},
    describe,
    object::path_of,
    outbox::{Outbox, PEER_QUEUE},
};

/// Most signals that are held back for a peer. Its queue has room for all of them, and the answers beside them.
const MAX_HELD: usize = PEER_QUEUE / 2;

/// Who gets signals.
#[derive(Debug)]
struct Subscriber {
    outbox: Outbox,
    /// Its name on the bus; `None` on our own socket.
    destination: Option<String>,
    /// What is held back for it; `None` when it has begun to hear signals.
    held: Option<Vec<Message>>,
}

/// Everybody who gets signals, by what they are told of.
#[derive(Debug, Default)]
pub struct Subscribers(RefCell<BTreeMap<(Audience, ConnectionId), Subscriber>>);

impl Subscribers {
    /// Adds a client of a bus, which hears signals from now on.
    pub fn add_client(&self, audience: Audience, connection: ConnectionId, outbox: Outbox, name: String) {
        let subscriber = Subscriber { outbox, destination: Some(name), held: None };
        self.0.borrow_mut().insert((audience, connection), subscriber);
    }

    /// Adds a connection of our own socket, for which signals are held back until [`begin`](Self::begin).
    pub fn add_peer(&self, audience: Audience, connection: ConnectionId, outbox: Outbox) {
        let subscriber = Subscriber { outbox, destination: None, held: Some(Vec::new()) };
        self.0.borrow_mut().insert((audience, connection), subscriber);
    }

    /// Sends a peer what was held back for it, behind all that it was answered, and holds nothing back any more.
    pub fn begin(&self, audience: Audience, connection: ConnectionId) {
        if let Some(subscriber) = self.0.borrow_mut().get_mut(&(audience, connection))
            && let Some(held) = subscriber.held.take()
        {
            subscriber.send(&held);
        }
    }

    /// Removes one.
    pub fn remove(&self, audience: Audience, connection: ConnectionId) {
        self.0.borrow_mut().remove(&(audience, connection));
    }

    /// Sends the signals of an event to those whom it concerns.
    pub fn publish(&self, event: &Event, audience: Audience) {
        let root = match audience {
            Audience::Everybody => return self.publish_policy(),
            Audience::Account(0) | Audience::Inside(..) => None,
            Audience::Account(_) => Some(Audience::Account(0)),
        };
        let mut subscribers = self.0.borrow_mut();
        let mut for_peers: Option<Vec<Message>> = None;
        for who in std::iter::once(audience).chain(root) {
            let of_one = (who, ConnectionId(0))..=(who, ConnectionId(u64::MAX));
            for (_, subscriber) in subscribers.range_mut(of_one) {
                let built = match &subscriber.destination {
                    Some(name) => signals(event, Some(name)),
                    // The same messages serve all peers: nothing in them is about who gets them.
                    None => for_peers.clone().map_or_else(|| signals(event, None), Ok),
                };
                match built {
                    Ok(messages) => {
                        subscriber.take(&messages);
                        if subscriber.destination.is_none() {
                            for_peers = Some(messages);
                        }
                    }
                    Err(error) => tracing::error!(%error, "cannot build a signal"),
                }
            }
        }
    }
}

impl Subscribers {
    /// Tells everybody that another policy is in force: what the own account may have can be another by now.
    fn publish_policy(&self) {
        for ((audience, _), subscriber) in self.0.borrow_mut().iter_mut() {
            // Inside a grant the account is called as the user is there.
            let (Audience::Account(uid) | Audience::Inside(_, uid)) = audience else { continue };
            match Destination(subscriber.destination.as_deref()).quotas_changed(*uid) {
                Ok(message) => subscriber.take(&[message]),
                Err(error) => tracing::error!(%error, "cannot build a signal"),
            }
        }
    }
}

impl Subscriber {
    /// Sends signals, or holds them back.
    fn take(&mut self, messages: &[Message]) {
        match &mut self.held {
            None => self.send(messages),
            Some(held) if held.len() + messages.len() <= MAX_HELD => held.extend_from_slice(messages),
            Some(_) => self.give_up(),
        }
    }

    fn send(&self, messages: &[Message]) {
        for message in messages {
            if self.outbox.try_send(message.clone()) {
                continue;
            }
            if self.destination.is_some() {
                tracing::warn!("the bus does not take messages; a signal is lost");
            } else {
                self.give_up();
            }
            return;
        }
    }

    /// Ends a connection for which more waits than is kept for anybody.
    fn give_up(&self) {
        tracing::info!("a peer that does not read its signals is disconnected");
        self.outbox.disconnect();
    }
}

/// The signals of an event, in the order in which they are sent.
fn signals(event: &Event, destination: Option<&str>) -> zbus::Result<Vec<Message>> {
    let to = Destination(destination);
    match event {
        Event::Added { grant } => {
            let path = path_of(grant.id);
            let object = ObjectPath::try_from(path.as_str())?;
            Ok(vec![
                to.signal(
                    MANAGER_PATH,
                    MANAGER,
                    "GrantAdded",
                    &(&object, grant.name.as_str(), grant.account),
                )?,
                to.signal(
                    MANAGER_PATH,
                    OBJECT_MANAGER,
                    "InterfacesAdded",
                    &(&object, describe::whole_grant(grant)),
                )?,
            ])
        }
        Event::Ended { grant, name, account, reason } => {
            let path = path_of(*grant);
            let object = ObjectPath::try_from(path.as_str())?;
            let reason = describe::reason(*reason);
            Ok(vec![
                to.signal(&path, GRANT, "Ended", &reason)?,
                to.signal(
                    MANAGER_PATH,
                    MANAGER,
                    "GrantRemoved",
                    &(&object, name.as_str(), *account, reason),
                )?,
                to.signal(
                    MANAGER_PATH,
                    OBJECT_MANAGER,
                    "InterfacesRemoved",
                    &(&object, [GRANT, CGROUP, LINKS, IDS, MOUNTS].as_slice()),
                )?,
            ])
        }
        Event::Changed { grant, change, .. } => {
            let (interface, name, value) = property(change);
            let changed = BTreeMap::from([(name, value)]);
            let body = (interface, changed, [].as_slice() as &[&str]);
            Ok(vec![to.signal(&path_of(*grant), PROPERTIES, "PropertiesChanged", &body)?])
        }
        Event::LinkAdded { grant, link, .. } => {
            let body = (link.name.as_str(), describe::link(link));
            Ok(vec![to.signal(&path_of(*grant), LINKS, "LinkAdded", &body)?])
        }
        Event::LinkRemoved { grant, name, reason, .. } => {
            let body = (name.as_str(), describe::link_end(*reason));
            Ok(vec![to.signal(&path_of(*grant), LINKS, "LinkRemoved", &body)?])
        }
        Event::Oom { grant, kills, .. } => Ok(vec![to.signal(&path_of(*grant), CGROUP, "Oom", kills)?]),
        Event::Usage { account, usage } => {
            let figures: BTreeMap<_, _> = usage.iter().map(|(name, used)| (name.as_str(), *used)).collect();
            let changed = BTreeMap::from([("Usage", Variant::from(figures))]);
            let body = (ACCOUNT, changed, [].as_slice() as &[&str]);
            Ok(vec![to.signal(&account_path(*account), PROPERTIES, "PropertiesChanged", &body)?])
        }
        // Is about the account of whoever gets it.
        Event::Policy => Ok(Vec::new()),
        Event::Pressure { grant, resource, .. } => {
            Ok(vec![to.signal(&path_of(*grant), CGROUP, "Pressure", resource)?])
        }
    }
}

fn property(change: &GrantChange) -> (&'static str, &'static str, Variant<'_>) {
    match change {
        GrantChange::Limits(limits) => (CGROUP, "Limits", describe::pairs(limits)),
        GrantChange::Frozen(frozen) => (CGROUP, "Frozen", Variant::from(*frozen)),
        GrantChange::Populated(populated) => (CGROUP, "Populated", Variant::from(*populated)),
        GrantChange::Lifetime(lifetime) => (GRANT, "Lifetime", Variant::from(describe::lifetime(*lifetime))),
        GrantChange::Links(links) => (LINKS, "Links", describe::links(links)),
    }
}

struct Destination<'a>(Option<&'a str>);

impl Destination<'_> {
    fn quotas_changed(&self, uid: u32) -> zbus::Result<Message> {
        let changed: BTreeMap<&str, Variant<'_>> = BTreeMap::new();
        let body = (ACCOUNT, changed, ["Quotas", "Rule"].as_slice());
        self.signal(&account_path(uid), PROPERTIES, "PropertiesChanged", &body)
    }

    fn signal<B: Serialize + DynamicType>(
        &self,
        path: &str,
        interface: &'static str,
        name: &'static str,
        body: &B,
    ) -> zbus::Result<Message> {
        let signal = Message::signal(path, interface, name);
        match self.0 {
            Some(destination) => signal.destination(destination).build(body),
            None => signal.build(body),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use cgrant_wire::{EndReason, GrantId, GrantInfo, Lifetime, LinkEnd, Range};
    use zbus_xml::Node;

    use super::*;
    use crate::{contract::OWN, describe::tests::link};

    /// Signature of a signal in the contract.
    fn contract(interface: &str, signal: &str) -> String {
        let standard = include_str!("standard.xml");
        OWN.iter()
            .chain([&standard])
            .flat_map(|xml| Node::from_reader(xml.as_bytes()).unwrap().interfaces().to_vec())
            .filter(|found| found.name() == interface)
            .flat_map(|found| found.signals().cloned().collect::<Vec<_>>())
            .find(|found| found.name() == signal)
            .map(|found| found.args().iter().map(|arg| arg.ty().to_string()).collect())
            .unwrap()
    }

    #[test]
    fn signals_are_those_of_the_contract() {
        let grant = GrantId(0xfeed);
        let info = GrantInfo {
            id: grant,
            name: "web".to_owned(),
            account: 1000,
            lifetime: Lifetime::Connection,
            range: Some(Range { uid: 1, gid: 1, count: 1 }),
            limits: vec![("pids.max".to_owned(), "5".to_owned())],
            frozen: false,
            populated: false,
            created: 1,
            cgroup_id: 2,
            hierarchies: Vec::new(),
            links: vec![link("eth0")],
            nesting: 0,
            parent: None,
        };
        let change = |change| Event::Changed { grant, account: 1000, change };
        let removed = |reason| Event::LinkRemoved { grant, account: 1000, name: "eth0".to_owned(), reason };
        let events = [
            (Event::Added { grant: info }, 2),
            (Event::Ended { grant, name: "web".to_owned(), account: 1000, reason: EndReason::HolderDied }, 3),
            (change(GrantChange::Limits(Vec::new())), 1),
            (change(GrantChange::Frozen(true)), 1),
            (change(GrantChange::Populated(true)), 1),
            (change(GrantChange::Lifetime(Lifetime::Persistent)), 1),
            (change(GrantChange::Links(Vec::new())), 1),
            (change(GrantChange::Links(vec![link("eth0")])), 1),
            (Event::LinkAdded { grant, account: 1000, link: link("eth1") }, 1),
            (removed(LinkEnd::FarEndGone), 1),
            (Event::Oom { grant, account: 1000, kills: 1 }, 1),
            (Event::Pressure { grant, account: 1000, resource: "cpu".to_owned() }, 1),
        ];
        for (event, count) in events {
            let messages = signals(&event, Some(":1.5")).unwrap();
            assert_eq!(messages.len(), count, "{event:?}");
            for message in messages {
                let header = message.header();
                let (interface, member) = (header.interface().unwrap(), header.member().unwrap());
                assert_eq!(header.signature().to_string_no_parens(), contract(interface, member), "{member}");
                assert_eq!(header.destination().unwrap().as_str(), ":1.5");
                let on_grant =
                    header.path().unwrap().as_str() == "/org/cgrant/Broker1/grant/000000000000feed";
                assert_eq!(on_grant, ![MANAGER, OBJECT_MANAGER].contains(&interface.as_str()), "{member}");
            }
        }
    }
}
