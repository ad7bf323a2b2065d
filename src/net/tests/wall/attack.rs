//! Frames that nobody ought to send, and those that everybody must be able to.

use std::net::{Ipv4Addr, Ipv6Addr};

use cgrant_wire::{link::Mac, net::Link};

use crate::{
    Test,
    frame::{
        ALL, ALL6, AUTHENTICATION, FRAGMENT, HOP_BY_HOP, ICMP6, NODES, OPTIONS, ROUTING, UDP, arp, ethernet,
        fragment, header, icmp6, ip4, ip4_with, ip6, link_local, neighbour, option, same, udp,
    },
    world::{ABSENCE, ARRIVAL, GATEWAY_MAC, GATEWAY4, GATEWAY6, Kind, World, patience},
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("attacks reach neighbours where there is no wall", |called| attacks(Kind::Open, called)),
    ("attacks end at the wall", |called| attacks(Kind::Walled, called)),
    ("attacks end at the wall on a foreign bridge", |called| attacks(Kind::Foreign, called)),
    ("honest frames pass the wall", |called| honest(Kind::Walled, called)),
    ("honest frames pass the wall on a foreign bridge", |called| honest(Kind::Foreign, called)),
    ("honest frames do not reach other accounts", others),
    ("link-local addresses of its own making pass on an own bridge only", invented),
    ("frames to bridges go nowhere", groups),
    ("nobody hears its own broadcasts", echo),
    ("who may use any address may still not be anybody", any_address),
    ("a link without an address of a family has none", one_family),
];

/// The link-local address of own bridges.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Who is who, as seen by the first container.
struct Cast {
    mac: Mac,
    ip: Ipv4Addr,
    ip6: Ipv6Addr,
    /// The other container of the account: the victim, because nothing but the wall protects it.
    to: Mac,
    to_ip: Ipv4Addr,
    to_ip6: Ipv6Addr,
    /// Somebody whose place is taken.
    other: Mac,
    other_ip: Ipv4Addr,
    other_ip6: Ipv6Addr,
}

impl Cast {
    fn of(world: &World) -> Self {
        let [me, to, other] = [0, 1, 2].map(|number| &world.containers[number]);
        Self {
            mac: me.mac(),
            ip: me.ip4(),
            ip6: me.ip6(),
            to: to.mac(),
            to_ip: to.ip4(),
            to_ip6: to.ip6(),
            other: other.mac(),
            other_ip: other.ip4(),
            other_ip6: other.ip6(),
        }
    }

    fn own(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        ethernet(self.to, self.mac, kind, payload)
    }

    fn v4(&self, packet: &[u8]) -> Vec<u8> {
        self.own(0x0800, packet)
    }

    fn v6(&self, packet: &[u8]) -> Vec<u8> {
        self.own(0x86dd, packet)
    }

    fn udp4(&self, from: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
        self.v4(&ip4(from, self.to_ip, UDP, &udp(from.into(), self.to_ip.into(), ports)))
    }

    fn udp6(&self, from: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
        self.v6(&ip6(from, self.to_ip6, UDP, &udp(from.into(), self.to_ip6.into(), ports)))
    }

    fn icmp6(&self, from: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
        self.v6(&ip6(from, self.to_ip6, ICMP6, &icmp6(from, self.to_ip6, kind, rest)))
    }

    /// An advertisement of `target` at `mac`.
    fn claim(&self, from: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
        self.icmp6(from, 136, &neighbour(0x20, target, &[&option(2, mac)]))
    }

    fn router(&self) -> Vec<u8> {
        let local = link_local(self.mac);
        icmp6(local, NODES, 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    fn to_all6(&self, next: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(ALL6, self.mac, 0x86dd, &ip6(link_local(self.mac), NODES, next, payload))
    }
}

type Named = (&'static str, Vec<u8>);

fn spoofed(c: &Cast) -> Vec<Named> {
    let from = |mac, packet: &[u8]| ethernet(c.to, mac, 0x0800, packet);
    let datagram = ip4(c.ip, c.to_ip, UDP, &udp(c.ip.into(), c.to_ip.into(), (5000, 5000)));
    let stranger: Ipv6Addr = "fd77::dead".parse().unwrap();
    vec![
        ("another's MAC", from(c.other, &datagram)),
        ("the gateway's MAC", from(GATEWAY_MAC, &datagram)),
        ("an invented MAC", from(Mac([2, 1, 2, 3, 4, 5]), &datagram)),
        ("another's IPv4", c.udp4(c.other_ip, (5000, 5000))),
        ("the gateway's IPv4", c.udp4(GATEWAY4, (5000, 5000))),
        ("an IPv4 from outside", c.udp4(Ipv4Addr::new(9, 9, 9, 9), (5000, 5000))),
        ("an invented IPv4 of the network", c.udp4(Ipv4Addr::new(10, 77, 1, 1), (5000, 5000))),
        ("no IPv4, and no DHCP", c.udp4(Ipv4Addr::UNSPECIFIED, (5000, 5000))),
        ("another's IPv6", c.udp6(c.other_ip6, (5000, 5000))),
        ("the gateway's IPv6", c.udp6(GATEWAY6, (5000, 5000))),
        ("an invented IPv6 of the network", c.udp6(stranger, (5000, 5000))),
        ("another's link-local", c.udp6(link_local(c.other), (5000, 5000))),
        ("the gateway's link-local", c.udp6(link_local(GATEWAY_MAC), (5000, 5000))),
        ("the router's link-local", c.udp6(ROUTER, (5000, 5000))),
        ("no IPv6", c.udp6(Ipv6Addr::UNSPECIFIED, (5000, 5000))),
    ]
}

fn arps(c: &Cast) -> Vec<Named> {
    let reply = |sender, target| c.own(0x0806, &arp(2, sender, target));
    let victim = (c.to, c.to_ip);
    let mut long = arp(2, (c.mac, c.ip), victim);
    long[4] = 8;
    let mut token_ring = arp(2, (c.mac, c.ip), victim);
    token_ring[1] = 6;
    vec![
        ("ARP answer for another", reply((c.mac, c.other_ip), victim)),
        ("ARP answer for the gateway", reply((c.mac, GATEWAY4), victim)),
        ("ARP answer with another's MAC", reply((c.other, c.ip), victim)),
        ("ARP answer in another's name", reply((c.other, c.other_ip), victim)),
        (
            "ARP claim to all of another's address",
            ethernet(ALL, c.mac, 0x0806, &arp(1, (c.mac, c.other_ip), (Mac([0; 6]), c.other_ip))),
        ),
        (
            "ARP probe of another's address",
            ethernet(ALL, c.mac, 0x0806, &arp(1, (c.mac, Ipv4Addr::UNSPECIFIED), (Mac([0; 6]), c.other_ip))),
        ),
        ("ARP of other sizes", c.own(0x0806, &long)),
        ("ARP of another hardware", c.own(0x0806, &token_ring)),
        ("RARP", c.own(0x8035, &arp(3, (c.mac, c.ip), victim))),
    ]
}

fn neighbours(c: &Cast) -> Vec<Named> {
    let local = link_local(c.mac);
    let ask = |from, options: &[&[u8]]| c.icmp6(from, 135, &neighbour(0, c.to_ip6, options));
    vec![
        ("advertisement of another's address", c.claim(c.ip6, c.other_ip6, c.mac)),
        ("advertisement of the gateway", c.claim(c.ip6, GATEWAY6, c.mac)),
        ("advertisement of the gateway's link-local", c.claim(local, link_local(GATEWAY_MAC), c.mac)),
        ("advertisement of the router's link-local", c.claim(local, ROUTER, c.mac)),
        ("advertisement of another's link-local", c.claim(local, link_local(c.other), c.mac)),
        ("advertisement with another's MAC", c.claim(c.ip6, c.ip6, c.other)),
        ("advertisement in another's name", c.claim(c.other_ip6, c.other_ip6, c.mac)),
        ("advertisement from nowhere", c.claim(Ipv6Addr::UNSPECIFIED, c.ip6, c.mac)),
        (
            "advertisement of another's address without option",
            c.icmp6(c.ip6, 136, &neighbour(0x20, c.other_ip6, &[])),
        ),
        (
            "advertisement with two MACs",
            c.icmp6(c.ip6, 136, &neighbour(0x20, c.ip6, &[&option(2, c.mac), &option(2, c.other)])),
        ),
        (
            "advertisement with an option of another kind before",
            c.icmp6(c.ip6, 136, &neighbour(0x20, c.ip6, &[&[14, 1, 0, 0, 0, 0, 0, 0], &option(2, c.other)])),
        ),
        ("solicitation with another's MAC", ask(c.ip6, &[&option(1, c.other)])),
        ("solicitation with two MACs", ask(c.ip6, &[&option(1, c.mac), &option(1, c.other)])),
        ("solicitation in another's name", ask(c.other_ip6, &[&option(1, c.mac)])),
        ("solicitation from nowhere with a MAC", ask(Ipv6Addr::UNSPECIFIED, &[&option(1, c.mac)])),
        ("claim of another's address", c.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, c.other_ip6, &[]))),
        (
            "claim of the gateway's link-local",
            c.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, link_local(GATEWAY_MAC), &[])),
        ),
        (
            "router solicitation with another's MAC",
            c.icmp6(local, 133, &[&[0; 4][..], &option(1, c.other)].concat()),
        ),
    ]
}

fn routers(c: &Cast) -> Vec<Named> {
    let local = link_local(c.mac);
    let query = icmp6(local, NODES, 130, &[0; 24]);
    let redirect = [&[0; 4][..], &c.ip6.octets(), &c.other_ip6.octets()].concat();
    let icmp =
        |kind| c.v4(&ip4(c.ip, c.to_ip, 1, &[kind, 0, 0, 0, 10, 77, 0, 16, 0x45, 0, 0, 28, 0, 0, 0, 0]));
    vec![
        ("router advertisement", c.to_all6(ICMP6, &c.router())),
        ("router advertisement to one", c.icmp6(local, 134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("redirect", c.icmp6(local, 137, &redirect)),
        ("multicast query", c.to_all6(HOP_BY_HOP, &header(HOP_BY_HOP, ICMP6, &query))),
        ("multicast query without a header", c.to_all6(ICMP6, &query)),
        ("node information", c.icmp6(c.ip6, 140, &[0; 12])),
        ("IPv4 redirect", icmp(5)),
        ("IPv4 router advertisement", icmp(9)),
        ("IGMP query", c.v4(&ip4_with(c.ip, c.to_ip, 2, 0, &[0x94, 4, 0, 0], &[0x11, 10, 0, 0, 0, 0, 0, 0]))),
        ("DHCP answer", c.udp4(c.ip, (67, 68))),
        ("DHCP answer from another port", c.udp4(c.ip, (5000, 68))),
        ("DHCP from the server's port", c.udp4(c.ip, (67, 5000))),
        (
            "DHCP answer in fragments",
            c.v4(&ip4_with(c.ip, c.to_ip, UDP, 0x2000, &[], &udp(c.ip.into(), c.to_ip.into(), (67, 68)))),
        ),
        ("DHCPv6 answer", c.udp6(c.ip6, (547, 546))),
        ("DHCPv6 answer from another port", c.udp6(c.ip6, (5000, 546))),
        ("DHCPv6 from the server's port", c.udp6(c.ip6, (547, 5000))),
        (
            "DHCPv6 answer in fragments",
            c.v6(&ip6(
                c.ip6,
                c.to_ip6,
                FRAGMENT,
                &fragment(UDP, 0, &udp(c.ip6.into(), c.to_ip6.into(), (547, 546))),
            )),
        ),
    ]
}

fn hidden(c: &Cast) -> Vec<Named> {
    let router = c.router();
    let claim = icmp6(c.ip6, c.to_ip6, 136, &neighbour(0x20, c.other_ip6, &[&option(2, c.mac)]));
    let datagram = udp(c.ip6.into(), c.to_ip6.into(), (547, 546));
    let behind = |kinds: &[u8], last: u8, payload: &[u8]| {
        let (mut next, mut packet) = (last, payload.to_vec());
        for kind in kinds.iter().rev() {
            packet = header(*kind, next, &packet);
            next = *kind;
        }
        (next, packet)
    };
    let to_all = |kinds: &[u8]| {
        let (next, packet) = behind(kinds, ICMP6, &router);
        c.to_all6(next, &packet)
    };
    let to_one = |kinds: &[u8], last, payload: &[u8]| {
        let (next, packet) = behind(kinds, last, payload);
        c.v6(&ip6(c.ip6, c.to_ip6, next, &packet))
    };
    let piece = |next, offset, payload: &[u8]| {
        c.v6(&ip6(c.ip6, c.to_ip6, FRAGMENT, &fragment(next, offset, payload)))
    };
    vec![
        ("router advertisement behind hop-by-hop options", to_all(&[HOP_BY_HOP])),
        ("router advertisement behind destination options", to_all(&[OPTIONS])),
        ("router advertisement behind a routing header", to_all(&[ROUTING])),
        ("router advertisement behind an authentication header", to_all(&[AUTHENTICATION])),
        ("router advertisement as one fragment", to_all(&[FRAGMENT])),
        ("router advertisement as a fragment behind options", to_all(&[FRAGMENT, OPTIONS])),
        ("router advertisement as a fragment of a fragment", to_all(&[FRAGMENT, FRAGMENT])),
        ("router advertisement behind options, as a fragment", to_all(&[OPTIONS, FRAGMENT])),
        ("claim behind hop-by-hop options", to_one(&[HOP_BY_HOP], ICMP6, &claim)),
        ("claim behind destination options", to_one(&[OPTIONS], ICMP6, &claim)),
        ("claim behind two headers", to_one(&[HOP_BY_HOP, OPTIONS], ICMP6, &claim)),
        ("claim as one fragment", to_one(&[FRAGMENT], ICMP6, &claim)),
        ("claim's first fragment", piece(ICMP6, 0, &claim[..24])),
        ("claim's first fragment behind options", piece(OPTIONS, 0, &header(OPTIONS, ICMP6, &claim[..24]))),
        ("a later fragment of options", piece(OPTIONS, 8, &claim[..24])),
        ("a later fragment of hop-by-hop options", piece(HOP_BY_HOP, 8, &claim[..24])),
        ("DHCPv6 behind destination options", to_one(&[OPTIONS], UDP, &datagram)),
        ("DHCPv6 behind a routing header", to_one(&[ROUTING], UDP, &datagram)),
        ("a header that nobody knows", to_one(&[], 253, &claim)),
        ("no next header", to_one(&[], 59, &claim)),
    ]
}

fn strange(c: &Cast) -> Vec<Named> {
    let datagram = ip4(c.ip, c.to_ip, UDP, &udp(c.ip.into(), c.to_ip.into(), (5000, 5000)));
    let tagged = |id: u16, payload: &[u8]| [&id.to_be_bytes()[..], &[8, 0], payload].concat();
    let inner = [&[0x81, 0][..], &tagged(6, &datagram)].concat();
    let source_route = [0x83, 7, 4, 10, 77, 0, 18, 0];
    vec![
        ("a VLAN tag", c.own(0x8100, &tagged(5, &datagram))),
        ("a VLAN tag without VLAN", c.own(0x8100, &tagged(0, &datagram))),
        ("a service VLAN tag", c.own(0x88a8, &tagged(5, &datagram))),
        ("two VLAN tags", c.own(0x88a8, &[&[0, 5][..], &inner].concat())),
        ("an LLC frame", c.own(38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0])),
        ("LLDP", c.own(0x88cc, &[2, 7, 4, 1, 2, 3, 4, 5, 6])),
        ("PPPoE", c.own(0x8863, &[0x11, 9, 0, 0, 0, 4])),
        ("MPLS", c.own(0x8847, &[0, 1, 1, 64])),
        ("MACsec", c.own(0x88e5, &[0; 20])),
        ("EAPOL", c.own(0x888e, &[1, 1, 0, 0])),
        ("an experiment", c.own(0x88b5, &[0; 20])),
        (
            "a source route",
            c.v4(&ip4_with(
                c.ip,
                c.to_ip,
                UDP,
                0,
                &source_route,
                &udp(c.ip.into(), c.to_ip.into(), (5000, 5000)),
            )),
        ),
        ("half an IPv4 header", c.own(0x0800, &datagram[..16])[..30].to_vec()),
        ("half an IPv6 header", c.own(0x86dd, &ip6(c.ip6, c.to_ip6, UDP, &[])[..20])[..34].to_vec()),
        (
            "a frame to the host's loopback",
            c.v4(&ip4(
                c.ip,
                Ipv4Addr::LOCALHOST,
                UDP,
                &udp(c.ip.into(), Ipv4Addr::LOCALHOST.into(), (5000, 5000)),
            )),
        ),
        ("a frame from the host's loopback", c.udp4(Ipv4Addr::LOCALHOST, (5000, 5000))),
    ]
}

fn all(c: &Cast) -> Vec<Named> {
    [spoofed(c), arps(c), neighbours(c), routers(c), hidden(c), strange(c)].concat()
}

/// What has to arrive.
fn good(c: &Cast) -> Vec<Named> {
    let local = link_local(c.mac);
    let request = |sender, target| ethernet(ALL, c.mac, 0x0806, &arp(1, sender, (Mac([0; 6]), target)));
    let asked = |rest: &[u8]| c.icmp6(c.ip6, 135, rest);
    let report = icmp6(
        local,
        c.to_ip6,
        143,
        &[0, 0, 0, 1, 4, 0, 0, 0, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
    );
    let big = [7_u8; 64];
    let later = |next| c.v6(&ip6(c.ip6, c.to_ip6, FRAGMENT, &fragment(next, 64, &big)));
    let dhcp = udp(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into(), (68, 67));
    vec![
        ("IPv4", c.udp4(c.ip, (5000, 5000))),
        ("IPv6", c.udp6(c.ip6, (5000, 5000))),
        ("IPv6 from link-local", c.udp6(local, (5000, 5000))),
        ("ARP request", request((c.mac, c.ip), c.to_ip)),
        ("ARP announcement", request((c.mac, c.ip), c.ip)),
        ("ARP probe", request((c.mac, Ipv4Addr::UNSPECIFIED), c.ip)),
        ("ARP answer", c.own(0x0806, &arp(2, (c.mac, c.ip), (c.to, c.to_ip)))),
        ("solicitation", asked(&neighbour(0, c.to_ip6, &[&option(1, c.mac)]))),
        ("solicitation without MAC", asked(&neighbour(0, c.to_ip6, &[]))),
        ("is it free", c.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, c.ip6, &[]))),
        (
            "is it free, with a nonce",
            c.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, c.ip6, &[&[14, 1, 1, 2, 3, 4, 5, 6]])),
        ),
        ("is the link-local free", c.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, local, &[]))),
        ("advertisement", c.claim(c.ip6, c.ip6, c.mac)),
        ("advertisement of link-local", c.claim(local, local, c.mac)),
        ("advertisement without option", c.icmp6(c.ip6, 136, &neighbour(0x60, c.ip6, &[]))),
        ("router solicitation", c.icmp6(local, 133, &[&[0; 4][..], &option(1, c.mac)].concat())),
        ("router solicitation from nowhere", c.icmp6(Ipv6Addr::UNSPECIFIED, 133, &[0; 4])),
        ("multicast report", c.v6(&ip6(local, c.to_ip6, HOP_BY_HOP, &header(HOP_BY_HOP, ICMP6, &report)))),
        ("ping", c.icmp6(c.ip6, 128, b"1234ping")),
        (
            "first fragment of a ping",
            c.v6(&ip6(c.ip6, c.to_ip6, FRAGMENT, &fragment(ICMP6, 0, &icmp6(c.ip6, c.to_ip6, 128, &big)))),
        ),
        ("later fragment of a ping", later(ICMP6)),
        ("later fragment of a datagram", later(UDP)),
        ("IPv4 fragment", c.v4(&ip4_with(c.ip, c.to_ip, UDP, 0x2008, &[], &big))),
        ("IGMP report", c.v4(&ip4_with(c.ip, c.to_ip, 2, 0, &[0x94, 4, 0, 0], &[0x22, 0, 0, 0, 0, 0, 0, 0]))),
        (
            "DHCP question",
            ethernet(ALL, c.mac, 0x0800, &ip4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, UDP, &dhcp)),
        ),
        ("DHCPv6 question", c.udp6(local, (546, 547))),
        ("IPv4 ping", c.v4(&ip4(c.ip, c.to_ip, 1, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]))),
        (
            "broadcast",
            ethernet(
                ALL,
                c.mac,
                0x0800,
                &ip4(
                    c.ip,
                    Ipv4Addr::new(10, 77, 3, 255),
                    UDP,
                    &udp(c.ip.into(), Ipv4Addr::new(10, 77, 3, 255).into(), (137, 137)),
                ),
            ),
        ),
    ]
}

/// bridge-nf-call puts fragments together, drops what makes no sense to IP, and takes off tags, before it hands frames on: such a
/// frame does not arrive as it was sent, wall or none.
fn is_bridge_business(name: &str, called: bool) -> bool {
    let touched = ["fragment", "half", "source route", "loopback", "VLAN", "nobody knows", "no next header"];
    called && touched.iter().any(|word| name.contains(word))
}

fn attacks(kind: Kind, called: bool) {
    let world = World::new(kind, called);
    let cast = Cast::of(&world);
    let victim = world.containers[1].space.packets("eth0", 3);
    let host = world.host.packets("cgrant0", 3);
    let every = all(&cast);
    assert!(every.len() > 90, "only {} attacks", every.len());
    let mut wrong = Vec::new();
    for (name, frame) in &every {
        world.containers[0].wire.send(frame);
        if kind == Kind::Open {
            // A switch in software may take a tag off; what is behind it arrives.
            let arrived =
                |seen: &[u8]| same(seen, frame) || (name.contains("VLAN") && seen.ends_with(&frame[18..]));
            if !is_bridge_business(name, called) && !victim.sees(patience(), arrived) {
                wrong.push(*name);
            }
            continue;
        }
        // Any of them: one may come late.
        for ears in [&victim, &host] {
            ears.sees(ABSENCE / 40, |seen| {
                let found = every.iter().find(|(_, frame)| same(seen, frame));
                wrong.extend(found.map(|(name, _)| *name));
                found.is_some()
            });
        }
    }
    if kind != Kind::Open {
        for ears in [&victim, &host] {
            ears.sees(patience(), |seen| {
                wrong.extend(every.iter().find(|(_, frame)| same(seen, frame)).map(|(name, _)| *name));
                false
            });
        }
    }
    assert!(wrong.is_empty(), "{} went wrong: {wrong:#?}", wrong.len());
}

fn honest(kind: Kind, called: bool) {
    let world = World::new(kind, called);
    let cast = Cast::of(&world);
    let friend = world.containers[1].space.packets("eth0", 3);
    let mut missing = Vec::new();
    for (name, frame) in good(&cast) {
        world.containers[0].wire.send(&frame);
        if !friend.sees(patience(), |seen| same(seen, &frame)) && !is_bridge_business(name, called) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "did not arrive: {missing:#?}");
}

/// The same frames, sent to all, to another account's container by name, and to its MAC with addresses that may be reached.
fn others(called: bool) {
    let world = World::new(Kind::Walled, called);
    let cast = Cast::of(&world);
    let sniffers = [2, 3].map(|number| world.containers[number].space.packets("eth0", 3));
    let friend = world.containers[1].space.packets("eth0", 3);
    let mut wrong = Vec::new();
    for (name, frame) in good(&cast) {
        for to in [cast.other, world.containers[3].mac(), ALL, ALL6] {
            let mut frame = frame.clone();
            frame[..6].copy_from_slice(&to.0);
            world.containers[0].wire.send(&frame);
            // Anything of its sender's: it may come late.
            let known = |seen: &[u8]| seen[6..12] == cast.mac.0;
            if sniffers.iter().any(|sniffer| sniffer.sees(ABSENCE / 40, known)) {
                wrong.push(format!("{name} to {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "reached another account: {wrong:#?}");
    world.containers[0].wire.send(&cast.udp4(cast.ip, (1, 1)));
    assert!(
        friend.sees(ARRIVAL, |seen| same(seen, &cast.udp4(cast.ip, (1, 1)))),
        "the friend heard nothing at all"
    );
}

fn invented(called: bool) {
    let own: Ipv6Addr = "fe80::1234:5678:9abc:def0".parse().unwrap();
    let made_of_mac: Ipv6Addr = "fe80::42:ff:fe11:2233".parse().unwrap();
    let other_prefix: Ipv6Addr = "fe80:0:0:1:1234:5678:9abc:def0".parse().unwrap();
    for (kind, passes) in [(Kind::Walled, true), (Kind::Foreign, false)] {
        let world = World::new(kind, called);
        let cast = Cast::of(&world);
        let friend = world.containers[1].space.packets("eth0", 3);
        let tried = |address, expected: bool| {
            let claim = cast.icmp6(Ipv6Addr::UNSPECIFIED, 135, &neighbour(0, address, &[]));
            let frames = [cast.udp6(address, (5000, 5000)), cast.claim(address, address, cast.mac), claim];
            for (number, frame) in frames.iter().enumerate() {
                world.containers[0].wire.send(frame);
                let time = if expected { ARRIVAL } else { ABSENCE };
                let arrived = friend.sees(time, |seen| same(seen, frame));
                assert_eq!(arrived, expected, "{address}, frame {number}");
            }
        };
        tried(own, passes);
        tried(made_of_mac, false);
        tried(other_prefix, false);
        tried(cgrant_net::advert::ROUTER, false);
    }
}

/// Frames to the groups that bridges keep to themselves are seen on the port by who asks for their type, and nowhere else.
fn groups(called: bool) {
    for kind in [Kind::Open, Kind::Walled, Kind::Foreign] {
        let world = World::new(kind, called);
        let cast = Cast::of(&world);
        let sniffer = world.host.packets("cgv0", 0x88b5);
        let bridge = world.host.packets("cgrant0", 0x88b5);
        let victim = world.containers[1].space.packets("eth0", 3);
        let mut seen_any = false;
        for last in 0..16 {
            let to = Mac([1, 0x80, 0xc2, 0, 0, last]);
            for (from, kind_of_frame) in [(cast.mac, 0x88b5), (cast.other, 0x88b5), (cast.mac, 0x0800)] {
                let datagram =
                    ip4(cast.ip, cast.to_ip, UDP, &udp(cast.ip.into(), cast.to_ip.into(), (5000, 5000)));
                let frame = ethernet(to, from, kind_of_frame, &datagram);
                world.containers[0].wire.send(&frame);
                let known = |seen: &[u8]| seen[..5] == [1, 0x80, 0xc2, 0, 0];
                seen_any |=
                    [&sniffer, &bridge, &victim].iter().any(|packets| packets.sees(ABSENCE / 100, known));
            }
        }
        let known = |seen: &[u8]| seen[..5] == [1, 0x80, 0xc2, 0, 0];
        seen_any |= [&sniffer, &bridge, &victim].iter().any(|packets| packets.sees(ABSENCE, known));
        assert_eq!(seen_any, kind == Kind::Open, "frames to bridges were seen");
    }
}

/// Ports are in hairpin mode: a container that heard its own question whether an address is free would not use it.
fn echo(called: bool) {
    for (kind, heard) in [(Kind::Open, true), (Kind::Walled, false), (Kind::Foreign, false)] {
        let world = World::new(kind, called);
        let cast = Cast::of(&world);
        let question = neighbour(0, cast.ip6, &[]);
        let message = icmp6(Ipv6Addr::UNSPECIFIED, NODES, 135, &question);
        let frame = ethernet(ALL6, cast.mac, 0x86dd, &ip6(Ipv6Addr::UNSPECIFIED, NODES, ICMP6, &message));
        // Sent by another socket, so that this one sees only what comes back, and its own sending once.
        let ears = world.containers[0].space.packets("eth0", 0x86dd);
        world.containers[0].wire.send(&frame);
        let time = if heard { ARRIVAL } else { ABSENCE };
        assert_eq!(
            ears.sees(time, |seen| same(seen, &frame)),
            heard,
            "{}",
            if heard { "no hairpin" } else { "heard" }
        );
    }
}

/// Which of `frames` reach the other container of the account, when the first one's link is `changed`?
fn arriving(
    kind: Kind,
    called: bool,
    changed: impl Fn(&mut Link),
    frames: fn(&Cast) -> Vec<Named>,
) -> Vec<String> {
    let mut world = World::new(kind, called);
    let mut link = world.containers[0].link.clone();
    changed(&mut link);
    world.wall(|firewall, bridge| firewall.add_link(bridge, "cgv0", &link).unwrap());
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    let cast = Cast::of(&world);
    let friend = world.containers[1].space.packets("eth0", 3);
    let frames = frames(&cast);
    let mut arrived = Vec::new();
    let listen = |time, arrived: &mut Vec<String>| {
        friend.sees(time, |seen| {
            let found = frames.iter().find(|(_, frame)| same(seen, frame));
            arrived.extend(found.map(|(name, _)| (*name).to_owned()));
            false
        });
    };
    for (_, frame) in &frames {
        world.containers[0].wire.send(frame);
        listen(ABSENCE / 40, &mut arrived);
    }
    listen(patience(), &mut arrived);
    arrived
}

fn any_address(called: bool) {
    let any = |link: &mut Link| link.any_address = true;
    let mut arrived = arriving(Kind::Foreign, called, any, all);
    arrived.sort();
    arrived.dedup();
    let mut allowed = vec![
        "ARP answer for the gateway",
        "a frame from the host's loopback",
        "advertisement of another's address",
        "advertisement of another's address without option",
        "advertisement of the gateway",
        "an IPv4 from outside",
        "an invented IPv4 of the network",
        "an invented IPv6 of the network",
        "claim of another's address",
        "the gateway's IPv4",
        "the gateway's IPv6",
    ];
    if called {
        // The host's rules see them too: IP refuses some, and accounts are told apart by known addresses.
        allowed.retain(|name| arrived.iter().any(|arrived| arrived == name));
        assert!(allowed.contains(&"ARP answer for the gateway"), "{allowed:#?}");
    }
    assert_eq!(arrived, allowed);
    // On an own bridge that is not for anybody to say.
    let arrived = arriving(Kind::Walled, called, any, all);
    assert!(arrived.is_empty(), "{arrived:#?}");
}

fn one_family(called: bool) {
    let arrived = arriving(Kind::Walled, called, |link| link.info.address4 = None, good);
    assert!(arrived.iter().any(|name| name == "IPv6"), "{arrived:#?}");
    assert!(!arrived.iter().any(|name| name.contains("IPv4") || name.contains("ARP")), "{arrived:#?}");
    let arrived = arriving(Kind::Walled, called, |link| link.info.address6 = None, good);
    assert!(arrived.iter().any(|name| name == "IPv4"), "{arrived:#?}");
    assert!(arrived.iter().any(|name| name == "IPv6 from link-local"), "{arrived:#?}");
    assert!(!arrived.iter().any(|name| name == "IPv6" || name == "advertisement"), "{arrived:#?}");
}
