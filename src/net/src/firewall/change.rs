//! What is in the tables, and changes of it: each is worked out from what it touches, not from everything there is.

use std::{collections::BTreeMap, rc::Rc};

use cgrant_wire::net::LinkKey;

use super::{
    FirewallError, Guard, Placed, Server,
    element::{self, Counts, Element},
    link,
    mark::{Mark, Marks},
    nft,
    schema::Command,
};

/// What is in the tables.
#[derive(Default)]
pub struct State {
    links: BTreeMap<LinkKey, Rc<Placed>>,
    /// By the bridge's device.
    servers: BTreeMap<String, Rc<Server>>,
    marks: Marks,
    guard: Guard,
    counts: Counts,
}

/// A change: what goes, then what comes.
#[derive(Default)]
pub struct Change {
    old: Part,
    new: Part,
}

/// One side of a change.
#[derive(Default, Clone)]
struct Part {
    links: Vec<Rc<Placed>>,
    servers: Vec<(String, Rc<Server>)>,
    guard: Option<Guard>,
    elements: Vec<Element>,
}

impl Change {
    /// A link goes.
    pub fn remove_link(&mut self, link: Rc<Placed>) {
        self.old.elements.extend(element::of_link(&link));
        self.old.links.push(link);
    }

    /// A link comes.
    pub fn add_link(&mut self, link: Placed) {
        self.new.elements.extend(element::of_link(&link));
        self.new.links.push(Rc::new(link));
    }

    /// A server's port goes.
    pub fn remove_server(&mut self, bridge: &str, server: Rc<Server>) {
        self.old.elements.extend(element::of_server(&server));
        self.old.servers.push((bridge.to_owned(), server));
    }

    /// A server's port comes.
    pub fn add_server(&mut self, bridge: &str, server: Server) {
        self.new.elements.extend(element::of_server(&server));
        self.new.servers.push((bridge.to_owned(), Rc::new(server)));
    }

    /// The guard changes.
    pub fn of_guard(old: &Guard, new: &Guard) -> Self {
        let part = |guard: &Guard| Part {
            elements: element::of_guard(guard),
            guard: Some(guard.clone()),
            ..Part::default()
        };
        Self { old: part(old), new: part(new) }
    }

    /// The way back.
    pub fn inverse(&self) -> Self {
        Self { old: self.new.clone(), new: self.old.clone() }
    }
}

impl State {
    /// Is there nothing that needs tables?
    pub fn is_empty(&self) -> bool {
        !self.has_walls() && self.guard == Guard::default()
    }

    /// Are there links or servers?
    pub fn has_walls(&self) -> bool {
        !self.links.is_empty() || !self.servers.is_empty()
    }

    /// A link.
    pub fn link(&self, key: &LinkKey) -> Option<Rc<Placed>> {
        self.links.get(key).cloned()
    }

    /// The port of the server of the bridge with this device.
    pub fn server(&self, bridge: &str) -> Option<Rc<Server>> {
        self.servers.get(bridge).cloned()
    }

    /// The guard.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Elements of sets.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The mark that the account has, or would get.
    ///
    /// # Errors
    /// [`FirewallError::Accounts`] if all are taken.
    pub fn mark(&self, account: u32) -> Result<Mark, FirewallError> {
        self.marks.of(account)
    }

    /// May the change be made? No port of the host's may lead to two places.
    ///
    /// # Errors
    /// [`FirewallError::PortTaken`].
    pub fn check(&self, change: &Change) -> Result<(), FirewallError> {
        match self.counts.conflict(&change.old.elements, &change.new.elements) {
            Some(port) => Err(FirewallError::PortTaken(port)),
            None => Ok(()),
        }
    }

    /// The change as commands: chains go, elements go and come, chains come. A wall that stays as it is is left alone.
    pub fn commands(&self, table: &str, change: &Change) -> Vec<Command> {
        let mut commands = Vec::new();
        let (old, new) = (&change.old, &change.new);
        let same_link = |a: &Rc<Placed>, others: &[Rc<Placed>]| others.iter().any(|b| link::same_wall(a, b));
        for gone in old.links.iter().filter(|link| !same_link(link, &new.links)) {
            commands.extend(link::removal(table, &gone.device));
        }
        for (_, gone) in &old.servers {
            commands.extend(link::removal(table, &gone.device));
        }
        commands.extend(element::changes(table, &self.counts, &old.elements, &new.elements));
        for (_, come) in &new.servers {
            commands.extend(link::server(table, come));
        }
        for come in new.links.iter().filter(|link| !same_link(link, &old.links)) {
            commands.extend(link::wall(table, come));
        }
        commands
    }

    /// Makes the change in what is known.
    pub fn apply(&mut self, change: &Change) {
        let (old, new) = (&change.old, &change.new);
        for link in &old.links {
            self.links.remove(&link.link.key);
            self.marks.give_back(link.link.account);
        }
        for (bridge, _) in &old.servers {
            self.servers.remove(bridge);
        }
        for link in &new.links {
            self.marks.hold(link.link.account, link.mark);
            self.links.insert(link.link.key.clone(), Rc::clone(link));
        }
        for (bridge, server) in &new.servers {
            self.servers.insert(bridge.clone(), Rc::clone(server));
        }
        if let Some(guard) = &new.guard {
            self.guard = guard.clone();
        }
        self.counts.apply(&old.elements, &new.elements);
    }

    /// The chains of all links and servers. Not of a device that has died or changed its name, and that nobody told of yet:
    /// for one, nothing could be built at all, and without a chain it reaches nobody.
    pub fn walls(&self, table: &str) -> Vec<Command> {
        let is_there = |device: &str, index| nft::index_of(device).is_ok_and(|now| now == index);
        let servers = self.servers.values().filter(|server| is_there(&server.device, server.index));
        let links = self.links.values().filter(|placed| is_there(&placed.device, placed.index));
        let servers = servers.flat_map(|server| link::server(table, server));
        servers.chain(links.flat_map(|placed| link::wall(table, placed))).collect()
    }

    /// Names of devices by index, as far as they are known.
    pub fn device_names(&self) -> BTreeMap<u32, &str> {
        let links = self.links.values().flat_map(|placed| {
            [(placed.index, placed.device.as_str()), (placed.bridge, placed.bridge_device.as_str())]
        });
        let servers = self.servers.iter().flat_map(|(bridge, server)| {
            [(server.index, server.device.as_str()), (server.bridge, bridge.as_str())]
        });
        links.chain(servers).collect()
    }
}
