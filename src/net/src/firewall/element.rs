//! Sets and maps: what links, servers and ports put into them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use cgrant_wire::link::{PublishedPort, Transport};

use super::{
    Guard, Placed, Server,
    link::link_local,
    schema::{Command, Elements, Expression, Family, Key, Set},
};

/// A set or map of ours.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Its table's family.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    key: &'static [&'static str],
    map: Option<&'static str>,
}

macro_rules! kinds {
    (@map) => { None };
    (@map $map:literal) => { Some($map) };
    ($($(#[$doc:meta])* $constant:ident $family:ident $name:literal [$($key:literal),+] $($map:literal)?;)*) => {
        $($(#[$doc])* pub static $constant: Kind = Kind {
            family: Family::$family, name: $name, key: &[$($key),+], map: kinds!(@map $($map)?),
        };)*
        /// All of them.
        static KINDS: &[&Kind] = &[$(&$constant),*];
    };
}

kinds! {
    /// Addresses of all links.
    TAKEN4 Netdev "taken4" ["ipv4_addr"];
    /// The same, IPv6.
    TAKEN6 Netdev "taken6" ["ipv6_addr"];
    /// Ports of links.
    LINKS Bridge "links" ["iface_index"];
    /// Those on bridges of the administrator's.
    FOREIGN Bridge "foreign" ["iface_index"];
    /// Those that reach, and are reached by, other accounts' links that want that too.
    OPEN Bridge "open" ["iface_index"];
    /// Ports of name servers.
    SERVERS Bridge "servers" ["iface_index"];
    /// Each port beside itself.
    ITSELF Bridge "itself" ["iface_index", "iface_index"];
    /// Which mark reaches which port.
    SAME Bridge "same" ["mark", "iface_index"];
    /// Own bridges.
    BRIDGES Inet "bridges" ["iface_index"];
    /// Addresses of all links.
    KNOWN4 Inet "known4" ["ipv4_addr"];
    /// The same, IPv6.
    KNOWN6 Inet "known6" ["ipv6_addr"];
    /// Those of open links.
    OPEN4 Inet "open4" ["ipv4_addr"];
    /// The same, IPv6.
    OPEN6 Inet "open6" ["ipv6_addr"];
    /// Which mark reaches which address.
    SAME4 Inet "same4" ["mark", "ipv4_addr"];
    /// The same, IPv6.
    SAME6 Inet "same6" ["mark", "ipv6_addr"];
    /// Addresses of name servers, and their bridges.
    SERVERS4 Inet "servers4" ["iface_index", "ipv4_addr"];
    /// The same, IPv6.
    SERVERS6 Inet "servers6" ["iface_index", "ipv6_addr"];
    /// Published on all addresses: to which address.
    ANY4 Inet "any4" ["inet_proto", "inet_service"] "ipv4_addr";
    /// And to which port.
    ANY4_PORT Inet "any4port" ["inet_proto", "inet_service"] "inet_service";
    /// The same, IPv6.
    ANY6 Inet "any6" ["inet_proto", "inet_service"] "ipv6_addr";
    /// And to which port.
    ANY6_PORT Inet "any6port" ["inet_proto", "inet_service"] "inet_service";
    /// Published on one address: to which address.
    ONE4 Inet "one4" ["ipv4_addr", "inet_proto", "inet_service"] "ipv4_addr";
    /// And to which port.
    ONE4_PORT Inet "one4port" ["ipv4_addr", "inet_proto", "inet_service"] "inet_service";
    /// The same, IPv6.
    ONE6 Inet "one6" ["ipv6_addr", "inet_proto", "inet_service"] "ipv6_addr";
    /// And to which port.
    ONE6_PORT Inet "one6port" ["ipv6_addr", "inet_proto", "inet_service"] "inet_service";
    /// Published ports of the host's.
    HELD Inet "held" ["inet_proto", "inet_service"];
    /// Which container has which of them.
    HELD4 Inet "held4" ["ipv4_addr", "inet_proto", "inet_service"];
    /// The same, IPv6.
    HELD6 Inet "held6" ["ipv6_addr", "inet_proto", "inet_service"];
    /// Devices that forward only because of the broker.
    GUARD4 Inet "guard4" ["ifname"];
    /// The same, IPv6.
    GUARD6 Inet "guard6" ["ifname"];
}

/// A part of a key, or a value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Index(u32),
    Mark(u32),
    Address(IpAddr),
    Transport(Transport),
    Port(u16),
    Name(String),
}

/// An element of a set or map. Ordered by place and key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    kind: &'static Kind,
    key: Vec<Atom>,
    value: Option<Atom>,
}

/// How many times each element is asked for: several links have the same bridge, and ports the same number on several addresses.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Element, usize>);

/// How much more often elements are asked for after a change.
type Difference<'a> = BTreeMap<&'a Element, isize>;

impl Counts {
    /// A port of the host's that would lead to two places; in words.
    pub fn conflict(&self, old: &[Element], new: &[Element]) -> Option<String> {
        let difference = difference(old, new);
        let stays = |element: &Element| self.after(element, difference.get(element).copied()) > 0;
        let clashes = |element: &&Element| {
            let there =
                self.0.range(Element::first_of(element)..).take_while(|(other, _)| other.same_key(element));
            let coming = difference.keys().copied().filter(|other| other.same_key(element));
            let mut others = there.map(|(other, _)| other).chain(coming);
            others.any(|other| other.value != element.value && stays(other))
        };
        new.iter().filter(|element| element.value.is_some()).find(clashes).map(Element::port_in_words)
    }

    /// Makes the change.
    pub fn apply(&mut self, old: &[Element], new: &[Element]) {
        for (element, more) in difference(old, new) {
            match self.after(element, Some(more)) {
                0 => self.0.remove(element),
                count => self.0.insert(element.clone(), count),
            };
        }
    }

    fn after(&self, element: &Element, more: Option<isize>) -> usize {
        self.0.get(element).copied().unwrap_or(0).saturating_add_signed(more.unwrap_or(0))
    }
}

fn difference<'a>(old: &'a [Element], new: &'a [Element]) -> Difference<'a> {
    let mut difference = Difference::new();
    old.iter().for_each(|element| *difference.entry(element).or_default() -= 1);
    new.iter().for_each(|element| *difference.entry(element).or_default() += 1);
    difference.retain(|_, more| *more != 0);
    difference
}

/// All sets with what is in them.
pub fn sets(table: &str, counts: &Counts) -> Vec<Command> {
    let mut filled: BTreeMap<&Kind, Vec<Expression>> = BTreeMap::new();
    counts.0.keys().for_each(|element| filled.entry(element.kind).or_default().push(element.expression()));
    let set = |kind: &&Kind| {
        let elem = filled.remove(*kind).unwrap_or_default();
        let name = kind.name.to_owned();
        let key = if let [one] = kind.key { Key::One(one) } else { Key::Several(kind.key) };
        Command::add(Set { family: kind.family, table: table.to_owned(), name, key, map: kind.map, elem })
    };
    KINDS.iter().map(set).collect()
}

/// The elements that go and come with a change of `counts`; those that go first, so that a key can get another value.
pub fn changes(table: &str, counts: &Counts, old: &[Element], new: &[Element]) -> Vec<Command> {
    let (mut gone, mut come) = (BTreeMap::new(), BTreeMap::new());
    for (element, more) in difference(old, new) {
        let (before, after) = (counts.after(element, None), counts.after(element, Some(more)));
        let list: &mut BTreeMap<&Kind, Vec<Expression>> = match (before, after) {
            (0, 0) => continue,
            (0, _) => &mut come,
            (_, 0) => &mut gone,
            _ => continue,
        };
        list.entry(element.kind).or_default().push(element.expression());
    }
    let elements = |(kind, elem): (&Kind, Vec<Expression>)| {
        let (table, name) = (table.to_owned(), kind.name.to_owned());
        Elements { family: kind.family, table, name, elem }
    };
    let gone = gone.into_iter().map(|group| Command::delete(elements(group)));
    gone.chain(come.into_iter().map(|group| Command::add(elements(group)))).collect()
}

impl Element {
    fn member(kind: &'static Kind, key: impl Into<Vec<Atom>>) -> Self {
        Self { kind, key: key.into(), value: None }
    }

    fn pair(kind: &'static Kind, key: impl Into<Vec<Atom>>, value: Atom) -> Self {
        Self { kind, key: key.into(), value: Some(value) }
    }

    fn first_of(element: &Self) -> Self {
        Self { kind: element.kind, key: element.key.clone(), value: None }
    }

    fn same_key(&self, other: &Self) -> bool {
        (self.kind, &self.key) == (other.kind, &other.key)
    }

    fn expression(&self) -> Expression {
        let mut parts: Vec<Expression> = self.key.iter().map(Atom::expression).collect();
        let key = if parts.len() == 1 { parts.pop() } else { None };
        let key = key.unwrap_or(Expression::Concat(parts));
        match &self.value {
            Some(value) => Expression::Pair(Box::new([key, value.expression()])),
            None => key,
        }
    }

    fn port_in_words(&self) -> String {
        let words: Vec<String> = self.key.iter().rev().map(Atom::in_words).collect();
        words.join(" ")
    }
}

impl Atom {
    fn expression(&self) -> Expression {
        match self {
            Self::Index(number) | Self::Mark(number) => Expression::Number(u64::from(*number)),
            Self::Port(port) => Expression::Number(u64::from(*port)),
            Self::Address(_) | Self::Transport(_) | Self::Name(_) => Expression::Text(self.in_words()),
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Index(number) | Self::Mark(number) => number.to_string(),
            Self::Port(port) => port.to_string(),
            Self::Address(address) => address.to_string(),
            Self::Transport(Transport::Tcp) => "tcp".to_owned(),
            Self::Transport(Transport::Udp) => "udp".to_owned(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// Chooses by the address's family.
fn by_family(address: IpAddr, v4: &'static Kind, v6: &'static Kind) -> &'static Kind {
    if address.is_ipv4() { v4 } else { v6 }
}

/// What a link puts into sets.
pub fn of_link(placed: &Placed) -> Vec<Element> {
    let (index, mark) = (Atom::Index(placed.index), Atom::Mark(placed.mark.0));
    let mut elements = vec![
        Element::member(&LINKS, [index.clone()]),
        Element::member(&ITSELF, [index.clone(), index.clone()]),
        Element::member(&SAME, [mark.clone(), index.clone()]),
    ];
    if placed.own_bridge {
        elements.push(Element::member(&BRIDGES, [Atom::Index(placed.bridge)]));
    } else {
        elements.push(Element::member(&FOREIGN, [index.clone()]));
    }
    if placed.link.open {
        elements.push(Element::member(&OPEN, [index]));
    }
    // By its link-local address it is reached too; ports lead to the others.
    let local = Atom::Address(IpAddr::V6(link_local(placed.link.info.mac)));
    elements.push(Element::member(&KNOWN6, [local.clone()]));
    elements.push(Element::member(&SAME6, [mark.clone(), local]));
    for address in placed.addresses() {
        let atom = Atom::Address(address);
        elements.push(Element::member(by_family(address, &TAKEN4, &TAKEN6), [atom.clone()]));
        elements.push(Element::member(by_family(address, &KNOWN4, &KNOWN6), [atom.clone()]));
        elements.push(Element::member(by_family(address, &SAME4, &SAME6), [mark.clone(), atom.clone()]));
        if placed.link.open {
            elements.push(Element::member(by_family(address, &OPEN4, &OPEN6), [atom]));
        }
        for port in &placed.link.info.ports {
            elements.extend(of_port(port, address));
        }
    }
    elements.sort();
    // One port may be published on several addresses; the sets of held ports have it once.
    elements.dedup();
    elements
}

/// What a published port puts into sets, to reach its container by `address`.
fn of_port(port: &PublishedPort, address: IpAddr) -> Vec<Element> {
    let other_family = port.address.is_some_and(|host| host.is_ipv4() != address.is_ipv4());
    // From ::1 no packet leaves the loopback device, whatever its new destination: there the proxy serves.
    if other_family || port.address == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
        return Vec::new();
    }
    let service = [Atom::Transport(port.transport), Atom::Port(port.host)];
    let mut key: Vec<Atom> = port.address.map(Atom::Address).into_iter().collect();
    key.extend(service.clone());
    let (to_address, to_port) = match (port.address.is_some(), address.is_ipv4()) {
        (false, true) => (&ANY4, &ANY4_PORT),
        (false, false) => (&ANY6, &ANY6_PORT),
        (true, true) => (&ONE4, &ONE4_PORT),
        (true, false) => (&ONE6, &ONE6_PORT),
    };
    let [transport, number] = service.clone();
    vec![
        Element::pair(to_address, key.clone(), Atom::Address(address)),
        Element::pair(to_port, key, Atom::Port(port.container)),
        Element::member(&HELD, service),
        Element::member(by_family(address, &HELD4, &HELD6), [Atom::Address(address), transport, number]),
    ]
}

/// What a name server puts into sets.
pub fn of_server(server: &Server) -> Vec<Element> {
    let bridge = Atom::Index(server.bridge);
    let mut elements = vec![
        Element::member(&SERVERS, [Atom::Index(server.index)]),
        Element::member(&BRIDGES, [bridge.clone()]),
    ];
    for address in server.addresses() {
        let kind = by_family(address, &SERVERS4, &SERVERS6);
        elements.push(Element::member(kind, [bridge.clone(), Atom::Address(address)]));
    }
    elements
}

/// What the guard puts into sets.
pub fn of_guard(guard: &Guard) -> Vec<Element> {
    let names = |kind, names: &[String]| -> Vec<Element> {
        names.iter().map(|name| Element::member(kind, [Atom::Name(name.clone())])).collect()
    };
    let mut elements = names(&GUARD4, &guard.forwarding4);
    elements.extend(names(&GUARD6, &guard.forwarding6));
    elements
}
