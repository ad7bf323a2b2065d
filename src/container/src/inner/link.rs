//! One link: a port of the bridge, the device in the container, their addresses.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cgrant_sys::{
    NetnsFd,
    netlink::{
        LinkState, NewVeth, PortFlags, Route,
        nftables::{Chain, Family, Hook, Match, Verdict, own_table, tables},
        qdisc::{policing, shaping},
    },
    process::random_u64,
};

use super::{
    InnerError, InnerLink, InnerWish, Kept,
    bridge::Bridge,
    kernel, ports,
    rules::{self, LOOPBACK},
    subnet,
};

/// Name of the device in the container.
const NAME: &str = "eth0";
/// What says that something is of this.
const ALIAS: &str = "cgrant inner";
/// Name of what is kept for each link.
const WALL: &str = "wall";
/// What the names of ports begin with.
const PORTS: &str = "cgi";
/// And those of the tables of their rules.
const TABLES: &str = "cgrant-inner-";
/// Where link-local addresses of IPv6 lie.
const LINK_LOCAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);
/// Types of ICMPv6: what a router says of itself, whose an address is, and which way is shorter.
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Numbers of addresses: the first is the bridge's, the last the broadcast's.
const FIRST: u16 = 2;
const LAST: u16 = 1022;

/// The bridge knows where each address is and learns nothing, so that nobody draws another's packets to himself by
/// having his address.
const PORT: PortFlags = PortFlags {
    learning: false,
    // With bridge-nf-call-iptables what goes to a published port of the sender's own is bridged; the rules of the link drop the rest.
    hairpin: true,
    isolated: false,
    neigh_suppress: false,
    unicast_flood: false,
    multicast_flood: true,
    broadcast_flood: true,
};

/// Makes it, or nothing; and what is there for it as long as that is kept.
pub(super) fn make(
    route: &Route,
    bridge: &Bridge,
    netns: &NetnsFd,
    wish: &InnerWish<'_>,
) -> Result<(InnerLink, Vec<Kept>), InnerError> {
    let fixed = wish.address4.map(|address| fixed(bridge, address)).transpose()?;
    let number = number(route, wish.container, fixed)?;
    let link = InnerLink {
        container: wish.container.to_owned(),
        name: NAME,
        address4: subnet::address4(bridge.own4, number),
        address6: bridge.own6.map(|own| subnet::address6(own, number)),
    };
    let [a, b, c, d] = link.address4.addr().octets();
    let mac = [0x02, b'i', a, b, c, d];
    let name = format!("{PORTS}{number}");
    let index = route.add_veth(&NewVeth {
        name: &name,
        alias: &alias(&link),
        // A smaller one of a port would be that of all packets of the bridge's own.
        mtu: bridge.mtu,
        queue_length: wish.queue_length.unwrap_or(0),
        master: Some(bridge.index),
        peer_name: NAME,
        peer_mac: mac,
        peer_netns: netns,
    })?;
    let mtu = wish.mtu.filter(|mtu| *mtu < bridge.mtu);
    let make = || {
        set_port(route, index, mac)?;
        rules::silence(&name).map_err(kernel("the link's port can't be kept from IPv6"))?;
        let mut kept = vec![wall(route, (index, &name), bridge.mtu, &link, wish)?];
        set_far_end(route, bridge, netns, index, mtu, &link)?;
        kept.extend(ports::publish(bridge, &link, wish.ports)?);
        route.set_up(index, true)?;
        Ok(kept)
    };
    match make() {
        Ok(kept) => Ok((link, kept)),
        Err(error) => {
            // Why it failed is what matters.
            let _ = route.delete_link(index);
            Err(error)
        }
    }
}

/// The number of a fixed address: one of the bridge's network, and neither the bridge's own nor that of all. Any other would be
/// another one's around or beside it.
fn fixed(bridge: &Bridge, address: Ipv4Addr) -> Result<u16, InnerError> {
    let number = u32::from(address).wrapping_sub(u32::from(bridge.own4.network()));
    u16::try_from(number).ok().filter(|number| (FIRST..=LAST).contains(number)).ok_or_else(|| {
        let [first, last] = [FIRST, LAST].map(|number| subnet::address4(bridge.own4, number).addr());
        InnerError::AddressElsewhere { address, first, last }
    })
}

/// How fast it may send and be sent to, and that it sends nothing to what is a host's own. What it sends is looked at on this
/// side, where the container has no say. The rules are there as long as the link is, also when somebody flushes all others.
///
/// Wants: round all rules that are about the bridge, to services of this container. What goes to a reserved group a bridge hands up
/// as its port's own, which no rule is about.
///
/// Wants: to hide from rules about addresses behind tags. The kernel takes one off before this and another one behind it.
///
/// Wants: what this container has for itself alone on 127.0.0.1. With published ports the bridge routes that.
fn wall(
    route: &Route,
    (index, name): (u32, &str),
    mtu: u32,
    link: &InnerLink,
    wish: &InnerWish<'_>,
) -> Result<Kept, InnerError> {
    if let Some(bits) = wish.download {
        let (rate, burst, limit) = shaping(bits, mtu);
        route.add_tbf(index, rate, burst, limit)?;
    }
    let limit = wish.upload.map(policing).map(|(rate, burst)| Match::Over(rate, burst));
    let (network, prefix) = LOOPBACK;
    let never = [
        Match::OtherFrame,
        Match::ReservedGroup,
        Match::Source(network, prefix),
        Match::Destination(network, prefix),
    ];
    let never = limit.into_iter().chain(never).map(|what| vec![what]).chain(forged(link));
    let rules = never.map(|what| (what, Verdict::Drop)).collect();
    let chain = Chain { name: "wall", hook: Hook::Ingress(name.to_owned()), rules };
    let table = own_table(Family::Devices, &format!("{TABLES}{name}"), &alias(link), &[chain])?;
    // What it says to all it need not hear.
    let echo = vec![Match::From(index), Match::To(index), Match::Group];
    let chain = Chain { name: "echo", hook: Hook::Bridged, rules: vec![(echo, Verdict::Drop)] };
    let echoes = own_table(Family::Bridges, &format!("{TABLES}{name}"), &alias(link), &[chain])?;
    Ok(Kept { name: WALL.to_owned(), descriptors: vec![table, echoes] })
}

/// What it would say in the name of others.
///
/// Wants: to be one beside it for whoever is asked by that one, to have the number of a port that that one has, or to draw its
/// packets to itself; to be the router of those beside it.
fn forged(link: &InnerLink) -> Vec<Vec<Match>> {
    let own4 = link.address4.addr();
    let (local, prefix) = LINK_LOCAL;
    let mut sources6 = vec![
        Match::ForeignSource(local.into(), prefix),
        Match::ForeignSource(Ipv6Addr::UNSPECIFIED.into(), 128),
    ];
    let mut claims6 = vec![Match::Icmp6(NEIGHBOUR_ADVERTISEMENT), Match::ForeignTarget6(local, prefix)];
    if let Some(own6) = link.address6 {
        sources6.push(Match::ForeignSource(own6.addr().into(), 128));
        claims6.push(Match::ForeignTarget6(own6.addr(), 128));
    }
    vec![
        vec![Match::ForeignSource(own4.into(), 32)],
        vec![Match::ForeignClaim4(own4)],
        sources6,
        claims6,
        vec![Match::Icmp6(ROUTER_ADVERTISEMENT)],
        vec![Match::Icmp6(REDIRECT)],
    ]
}

/// The number of the fixed address, or one that no port has, for a container always the same if that can be. A link that one of this name had before, whose
/// namespace the kernel has not taken apart yet, is removed.
fn number(route: &Route, container: &str, fixed: Option<u16>) -> Result<u16, InnerError> {
    let mut taken = BTreeMap::new();
    for device in route.links()? {
        let Some(number) = device.name.strip_prefix(PORTS).and_then(|text| text.parse::<u16>().ok()) else {
            continue;
        };
        let link = of_device(&device);
        let before = link.as_ref().is_some_and(|link| !container.is_empty() && link.container == container);
        if !before || !route.delete_link(device.index)? {
            taken.insert(number, link);
        }
    }
    // Whoever is inside can take its device away, and has the number on as long as its monitor has the rules.
    for (name, note) in tables(Family::Devices)? {
        let number = name.strip_prefix(TABLES).and_then(|port| port.strip_prefix(PORTS)?.parse::<u16>().ok());
        if let Some(number) = number {
            taken.entry(number).or_insert_with(|| noted(&note));
        }
    }
    if let Some(number) = fixed {
        return match taken.remove(&number) {
            Some(by) => {
                Err(InnerError::AddressTaken { by: by.map(|link| link.container).unwrap_or_default() })
            }
            None => Ok(number),
        };
    }
    let mut hasher = DefaultHasher::new();
    match container {
        "" => random_u64().map_err(kernel("there is no randomness"))?.hash(&mut hasher),
        container => container.hash(&mut hasher),
    }
    let count = LAST - FIRST + 1;
    let begin = u16::try_from(hasher.finish() % u64::from(count)).unwrap_or(0);
    let mut all = (begin..count).chain(0..begin).map(|step| FIRST + step);
    all.find(|number| !taken.contains_key(number)).ok_or(InnerError::Full)
}

fn set_port(route: &Route, index: u32, mac: [u8; 6]) -> Result<(), InnerError> {
    route.set_port(index, &PORT)?;
    Ok(route.add_fdb(index, mac, None)?)
}

/// Addresses and routes in the container, of which nothing runs yet.
fn set_far_end(
    route: &Route,
    bridge: &Bridge,
    netns: &NetnsFd,
    index: u32,
    mtu: Option<u32>,
    link: &InnerLink,
) -> Result<(), InnerError> {
    let near = route.link(index)?.and_then(|near| near.peer_index);
    let there = Route::open_in(netns).map_err(kernel("the container's network can't be set"))?;
    let Some(far) = near else {
        return Err(kernel("the container's device is lost")(std::io::ErrorKind::NotFound.into()));
    };
    if let Some(mtu) = mtu {
        there.set_mtu(far, mtu)?;
    }
    there.add_address(far, link.address4.addr().into(), link.address4.prefix_len(), true)?;
    let mut gateways = vec![IpAddr::from(bridge.own4.addr())];
    if let Some((own, gateway)) = link.address6.zip(bridge.own6) {
        match there.add_address(far, own.addr().into(), own.prefix_len(), true) {
            Err(error) if error.is_without_ipv6() => {}
            added => {
                added?;
                gateways.push(gateway.addr().into());
            }
        }
    }
    there.set_up(far, true)?;
    for gateway in gateways {
        there.add_default_route(far, gateway)?;
    }
    Ok(())
}

impl InnerLink {
    /// The container as notes have it.
    pub(super) fn noted(&self) -> &str {
        if self.container.is_empty() { NAMELESS } else { &self.container }
    }
}

/// Stands where a container has no name; none has this one.
const NAMELESS: &str = "-";

/// As refusals name it, by what there is of its name.
pub(super) fn whose(container: &str) -> String {
    match container {
        "" | NAMELESS => "a command without a name".to_owned(),
        container => format!("the container {container:?}"),
    }
}

/// What the port tells: whose it is, and the addresses behind it.
fn alias(link: &InnerLink) -> String {
    let container = link.noted();
    let six = link.address6.map(|network| format!(" {network}")).unwrap_or_default();
    format!("{ALIAS} {container} {}{six}", link.address4)
}

/// The link whose port the device is, if it is one.
pub(super) fn of_device(device: &LinkState) -> Option<InnerLink> {
    noted(device.alias.as_deref()?)
}

fn noted(alias: &str) -> Option<InnerLink> {
    let mut words = alias.strip_prefix("cgrant inner ")?.split(' ');
    let container = words.next().filter(|name| *name != NAMELESS).unwrap_or_default().to_owned();
    let address4 = words.next()?.parse().ok()?;
    let address6 = words.next().map(str::parse).transpose().ok()?;
    Some(InnerLink { container, name: NAME, address4, address6 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn device(alias: &str) -> LinkState {
        LinkState {
            index: 7,
            name: "cgi9".into(),
            alias: Some(alias.into()),
            mac: None,
            mtu: 1500,
            queue_length: 0,
            up: true,
            running: true,
            master: Some(2),
            kind: Some("veth".into()),
            peer_index: None,
            port: None,
        }
    }

    #[test]
    fn a_port_says_whose_it_is() {
        for (container, address6) in [("web", Some("fd00::9/64")), ("", None)] {
            let link = InnerLink {
                container: container.into(),
                name: NAME,
                address4: "100.64.0.9/22".parse().unwrap(),
                address6: address6.map(|text| text.parse().unwrap()),
            };
            assert_eq!(of_device(&device(&alias(&link))), Some(link));
        }
        for other in ["", "cgrant inner", "cgrant inner web", "cgrant inner web x", "cgrant default 01 eth0"]
        {
            assert_eq!(of_device(&device(other)), None, "{other}");
        }
    }
}
