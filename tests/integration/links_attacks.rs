//! Attackers with bare frames: whatever a container's root sends, nobody's traffic goes astray, nobody's address is taken, and
//! the host shows no more than it has to.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::common::{
    Container, Lab, Network, Options,
    frames::{
        ALL_NODES, ALL_NODES_MAC, ARP, EVERYBODY, IPV4, IPV6, Mac, advertisement, any_contains, arp,
        ethernet, icmp6, ipv4, ipv6, link_local, redirect4, redirect6, router_advertisement, solicitation,
        syn4, tagged, udp4, udp6,
    },
    network::{HOST4, NEIGHBOUR4, OUTSIDE4, OUTSIDE6},
    wait_until,
};

const FOREIGN: Mac = [0x02, 0x66, 0x66, 0x66, 0x66, 0x66];

// Who is who on the bridge.
struct Scene {
    // The attacker, another container of its account, and one of another account.
    mallory: Container,
    peer: Container,
    victim: Container,
    bridge: String,
    gateway: (Mac, Ipv4Addr, Ipv6Addr),
}

impl Scene {
    fn new(lab: &Lab, network: &Network<'_>, broker: &crate::common::Broker) -> Self {
        let (user, other) = (lab.user(), lab.user());
        let client = user.client(broker.socket());
        let mallory = Container::new(&user, &client, "mallory", Options::new());
        let peer = Container::new(&user, &client, "peer", Options::new());
        let victim = Container::new(&other, &other.client(broker.socket()), "victim", Options::new());
        for container in [&mallory, &peer, &victim] {
            // As careless as can be, and with link-local addresses in use at once.
            container
                .node
                .sh("for f in accept_ra accept_redirects; do echo 1 >/proc/sys/net/ipv6/conf/eth0/$f; done
                 for i in all eth0; do echo 1 >/proc/sys/net/ipv4/conf/$i/accept_redirects; done");
        }
        let bridge = network.host.sh(&format!(
            "ip -d link show {} | sed -n 's/.* master \\([^ ]*\\) .*/\\1/p'",
            mallory.link.host_name
        ));
        let bridge = bridge.trim().to_owned();
        let mac = network.host.sh(&format!("cat /sys/class/net/{bridge}/address"));
        let mac: Vec<u8> = mac.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        let gateway =
            (mac.try_into().unwrap(), mallory.link.gateway4.unwrap(), mallory.link.gateway6.unwrap());
        let scene = Self { mallory, peer, victim, bridge, gateway };
        for container in [&scene.mallory, &scene.peer, &scene.victim] {
            wait_until("link-local addresses are in use", || {
                !container.node.run(&["ip", "-6", "address"]).contains("tentative")
            });
            assert!(container.node.pings(&scene.gateway.1.to_string()));
            assert!(container.node.pings(&scene.gateway.2.to_string()));
        }
        scene
    }

    fn own(&self) -> (Mac, Ipv4Addr, Ipv6Addr) {
        who(&self.mallory)
    }

    // Sends frames; which of them the peer, the victim and the host's bridge get to see.
    fn try_frames(&self, network: &Network<'_>, frames: &[Vec<u8>]) -> Vec<(&'static str, usize)> {
        let places = [
            ("the peer", &self.peer.node, "eth0"),
            ("the victim", &self.victim.node, "eth0"),
            ("the host", &network.host, self.bridge.as_str()),
        ];
        let listening: Vec<u32> = places.iter().map(|(_, node, interface)| node.listen(interface)).collect();
        self.mallory.node.send("eth0", frames);
        // An honest packet each to peer and host comes after all that was sent before.
        let own = self.own();
        let control = |to: (Mac, Ipv4Addr, Ipv6Addr)| {
            ethernet(to.0, own.0, IPV4, &udp4((own.1, 4000), (to.1, 4001), b"the honest one"))
        };
        let mut seen: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 3];
        self.mallory.node.send("eth0", &[control(who(&self.peer)), control(self.gateway)]);
        wait_until("honest packets arrive", || {
            for ((frames, (_, node, _)), number) in seen.iter_mut().zip(&places).zip(&listening) {
                frames.extend(node.heard(*number));
            }
            [0, 2].iter().all(|at: &usize| any_contains(&seen[*at], b"the honest one"))
        });
        std::thread::sleep(std::time::Duration::from_millis(10));
        let mut found = Vec::new();
        for ((mut all, (name, node, _)), number) in seen.into_iter().zip(places).zip(listening) {
            all.extend(node.heard(number));
            node.close(number);
            for (at, frame) in frames.iter().enumerate() {
                // What is behind the addresses, whole; a tag may have been taken off on the way.
                let needle = &frame[14..];
                if any_contains(&all, needle)
                    || (frame[12..14] == [0x81, 0] && any_contains(&all, &frame[18..]))
                {
                    found.push((name, at));
                }
            }
        }
        found
    }
}

fn who(container: &Container) -> (Mac, Ipv4Addr, Ipv6Addr) {
    (container.link.mac(), container.link.address4.unwrap(), container.link.address6.unwrap())
}

// A packet that lies about who sent it, to each of these, in IPv4 and IPv6.
fn lying(source: (Mac, Ipv4Addr, Ipv6Addr), to: &[(Mac, Ipv4Addr, Ipv6Addr)]) -> Vec<Vec<u8>> {
    to.iter()
        .flat_map(|to| {
            let data = format!("a lie of {:?} to {:?}", source, to).into_bytes();
            [
                ethernet(to.0, source.0, IPV4, &udp4((source.1, 5000), (to.1, 5001), &data)),
                ethernet(to.0, source.0, IPV6, &udp6((source.2, 5000), (to.2, 5001), &data)),
            ]
        })
        .collect()
}

fn no_lie_leaves_a_container(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let scene = Scene::new(lab, &network, &broker);
    let (own, peer, victim, gateway) = (scene.own(), who(&scene.peer), who(&scene.victim), scene.gateway);
    let all = [peer, victim, gateway];
    let own_local = link_local(own.0);
    let solicited = |address: Ipv6Addr| {
        let [.., a, b, c] = address.octets();
        (
            [0x33, 0x33, 0xff, a, b, c],
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c])),
        )
    };
    let nobody4 = Ipv4Addr::from(u32::from(own.1) + 77);
    let nobody6 = Ipv6Addr::from(u128::from(own.2) + 0x7700);
    let far4: Ipv4Addr = "203.0.113.9".parse().unwrap();
    let far6: Ipv6Addr = "2001:db8:77::9".parse().unwrap();
    let eth = |to: Mac, kind: u16, payload: &[u8]| ethernet(to, own.0, kind, payload);
    let ra = router_advertisement(own_local, own.0);
    let behind = |next: u8, header: &[u8], packet: &[u8]| {
        // The message of an IPv6 packet behind another header.
        let (from, to) = (own_local, ALL_NODES);
        ipv6(from, to, next, &[header, &packet[40..]].concat())
    };
    let mut attacks: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a MAC of nobody's", lying((FOREIGN, own.1, own.2), &all)),
        ("the peer's MAC", lying((peer.0, own.1, own.2), &[victim, gateway])),
        ("the gateway's MAC", lying((gateway.0, own.1, own.2), &[peer, victim])),
        ("a MAC for many", lying(([3, 0, 0, 0, 0, 1], own.1, own.2), &all)),
        ("the peer's addresses", lying((own.0, peer.1, peer.2), &[victim, gateway])),
        ("all that is the peer's", lying(peer, &[victim, gateway])),
        ("the victim's addresses", lying((own.0, victim.1, victim.2), &[peer, gateway])),
        ("all that is the victim's", lying(victim, &[peer, gateway])),
        ("the gateway's addresses", lying((own.0, gateway.1, gateway.2), &[peer, victim])),
        ("addresses of nobody's on the bridge", lying((own.0, nobody4, nobody6), &all)),
        ("addresses of the host's network", lying((own.0, HOST4.parse().unwrap(), far6), &all)),
        ("addresses of its neighbour's", lying((own.0, NEIGHBOUR4.parse().unwrap(), far6), &all)),
        ("addresses from far away", lying((own.0, far4, far6), &all)),
        ("loopback as source", lying((own.0, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), &all)),
        ("no address as source", lying((own.0, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), &all)),
        (
            "the gateway's link-local address",
            lying((own.0, own.1, link_local(gateway.0)), &[peer])
                .into_iter()
                .filter(|frame| frame[12..14] == IPV6.to_be_bytes())
                .collect(),
        ),
        (
            "the peer's link-local address",
            lying((own.0, own.1, link_local(peer.0)), &[gateway])
                .into_iter()
                .filter(|frame| frame[12..14] == IPV6.to_be_bytes())
                .collect(),
        ),
        (
            "the victim's link-local address",
            lying((own.0, own.1, link_local(victim.0)), &[gateway, peer])
                .into_iter()
                .filter(|frame| frame[12..14] == IPV6.to_be_bytes())
                .collect(),
        ),
        ("other containers' packets to other accounts", lying(own, &[victim])),
    ];
    // Address resolution: for every other one, as answer and as question, to one and to all.
    for (name, address) in
        [("peer", peer.1), ("victim", victim.1), ("gateway", gateway.1), ("nobody", nobody4)]
    {
        let mut frames = Vec::new();
        for operation in [1, 2] {
            for mac in [own.0, FOREIGN] {
                frames.push(eth(EVERYBODY, ARP, &arp(operation, (mac, address), ([0; 6], address))));
                frames.push(eth(gateway.0, ARP, &arp(operation, (mac, address), (gateway.0, gateway.1))));
                frames.push(eth(peer.0, ARP, &arp(operation, (mac, address), (peer.0, peer.1))));
            }
        }
        let _: &str = name;
        attacks.push(("ARP for an address of another's", frames));
    }
    attacks.push((
        "ARP with a MAC of another's",
        [peer.0, FOREIGN, gateway.0]
            .iter()
            .map(|mac| eth(EVERYBODY, ARP, &arp(2, (*mac, own.1), ([0xff; 6], own.1))))
            .collect(),
    ));
    attacks.push((
        "ARP of another's to the victim",
        vec![
            eth(victim.0, ARP, &arp(2, (own.0, own.1), (victim.0, victim.1))),
            eth(EVERYBODY, ARP, &arp(1, (own.0, gateway.1), ([0; 6], victim.1))),
        ],
    ));
    for target in [
        peer.2,
        victim.2,
        gateway.2,
        nobody6,
        link_local(peer.0),
        link_local(victim.0),
        link_local(gateway.0),
    ] {
        let (to_mac, to) = solicited(target);
        attacks.push((
            "neighbour discovery for an address of another's",
            vec![
                eth(ALL_NODES_MAC, IPV6, &advertisement(own_local, ALL_NODES, target, own.0)),
                eth(ALL_NODES_MAC, IPV6, &advertisement(own.2, ALL_NODES, target, own.0)),
                eth(ALL_NODES_MAC, IPV6, &advertisement(target, ALL_NODES, target, own.0)),
                eth(gateway.0, IPV6, &advertisement(own.2, gateway.2, target, own.0)),
                // A question that has the answer in it.
                eth(to_mac, IPV6, &solicitation((own.0, target), to, gateway.2)),
                // "Is it mine?", which keeps its owner from having it.
                eth(
                    to_mac,
                    IPV6,
                    &icmp6(Ipv6Addr::UNSPECIFIED, to, 135, &[&[0; 4], target.octets().as_slice()].concat()),
                ),
            ],
        ));
    }
    attacks.push((
        "neighbour discovery with a MAC of another's",
        vec![
            eth(ALL_NODES_MAC, IPV6, &advertisement(own.2, ALL_NODES, own.2, FOREIGN)),
            eth(ALL_NODES_MAC, IPV6, &advertisement(own.2, ALL_NODES, own.2, peer.0)),
            eth(solicited(peer.2).0, IPV6, &solicitation((peer.0, own.2), solicited(peer.2).1, peer.2)),
        ],
    ));
    attacks.push((
        "router advertisements",
        vec![
            eth(ALL_NODES_MAC, IPV6, &ra),
            eth(peer.0, IPV6, &ra),
            eth(ALL_NODES_MAC, IPV6, &router_advertisement(link_local(gateway.0), own.0)),
            // Behind options for each hop, for the destination, and in the only fragment of a packet.
            eth(ALL_NODES_MAC, IPV6, &behind(0, &[58, 0, 1, 4, 0, 0, 0, 0], &ra)),
            eth(ALL_NODES_MAC, IPV6, &behind(60, &[58, 0, 1, 4, 0, 0, 0, 0], &ra)),
            eth(ALL_NODES_MAC, IPV6, &behind(44, &[58, 0, 0, 0, 0, 0, 0, 9], &ra)),
        ],
    ));
    attacks.push((
        "redirects",
        vec![
            eth(peer.0, IPV6, &redirect6(link_local(gateway.0), peer.2, own.2, OUTSIDE6.parse().unwrap())),
            eth(peer.0, IPV6, &redirect6(own_local, peer.2, own_local, OUTSIDE6.parse().unwrap())),
            eth(peer.0, IPV4, &redirect4(gateway.1, peer.1, own.1, OUTSIDE4.parse().unwrap())),
        ],
    ));
    let answer = [2; 244];
    attacks.push((
        "DHCP answers",
        vec![
            eth(EVERYBODY, IPV4, &udp4((own.1, 67), (Ipv4Addr::BROADCAST, 68), &answer)),
            eth(peer.0, IPV4, &udp4((own.1, 67), (peer.1, 68), &answer)),
            eth(peer.0, IPV6, &udp6((own_local, 547), (link_local(peer.0), 546), &answer)),
            eth(ALL_NODES_MAC, IPV6, &udp6((own_local, 547), (ALL_NODES, 546), &answer)),
            eth(peer.0, IPV4, &with_options(&udp4((own.1, 67), (peer.1, 68), &answer))),
        ],
    ));
    let honest = udp4((own.1, 5000), (peer.1, 5001), b"a packet in a strange frame");
    attacks.push((
        "frames that are not for anybody's ears",
        (0..16_u8)
            .map(|last| {
                ethernet(
                    [1, 0x80, 0xc2, 0, 0, last],
                    peer.0,
                    IPV4,
                    &udp4((peer.1, 1), (own.1, 2), &[last; 24]),
                )
            })
            .chain((0..16).map(|last| {
                eth([1, 0x80, 0xc2, 0, 0, last], IPV4, &udp4((own.1, 1), (peer.1, 2), &[last; 25]))
            }))
            .collect(),
    ));
    attacks.push((
        "other protocols than IP",
        [0x0026, 0x88cc, 0x888e, 0x1234, 0x0800 ^ 1, 0x8864, 0x88a8, 0x9000, 0x88f7, 0x8847]
            .iter()
            .flat_map(|kind| {
                [
                    eth(EVERYBODY, *kind, &kind.to_be_bytes().repeat(30)),
                    eth(peer.0, *kind, &kind.to_be_bytes().repeat(31)),
                ]
            })
            .collect(),
    ));
    attacks.push((
        "tagged frames",
        [0, 1, 42, 4094].iter().map(|vlan| tagged(&eth(peer.0, IPV4, &honest), *vlan)).collect(),
    ));
    attacks.push((
        "IPv4 in a frame that says IPv6, and the other way",
        vec![
            eth(peer.0, IPV6, &udp4((peer.1, 5000), (victim.1, 5001), b"not of this version")),
            eth(peer.0, IPV4, &udp6((peer.2, 5000), (victim.2, 5001), b"not of that version")),
        ],
    ));
    let mut failed = Vec::new();
    for (name, frames) in &attacks {
        for (place, at) in scene.try_frames(&network, frames) {
            failed.push(format!(
                "{name}, frame {at}: {place} saw {:02x?}",
                &frames[at][..frames[at].len().min(70)]
            ));
        }
    }
    assert!(failed.is_empty(), "{} frames passed:\n  {}", failed.len(), failed.join("\n  "));
    unharmed(&network, &scene);
    // What anybody needs passes.
    let own_other = Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, 4);
    let (own_mac, own_group) = solicited(own_other);
    for (name, frame, place) in [
        ("own ARP", eth(EVERYBODY, ARP, &arp(1, (own.0, own.1), ([0; 6], gateway.1))), "the host"),
        ("own ARP to the peer", eth(EVERYBODY, ARP, &arp(1, (own.0, own.1), ([0; 6], peer.1))), "the peer"),
        (
            "a probe for its own address",
            eth(EVERYBODY, ARP, &arp(1, (own.0, Ipv4Addr::UNSPECIFIED), ([0; 6], own.1))),
            "the host",
        ),
        (
            "a link-local address that nobody has",
            eth(
                own_mac,
                IPV6,
                &icmp6(
                    Ipv6Addr::UNSPECIFIED,
                    own_group,
                    135,
                    &[&[0; 4], own_other.octets().as_slice()].concat(),
                ),
            ),
            "the peer",
        ),
        (
            "own neighbour advertisement",
            eth(peer.0, IPV6, &advertisement(own.2, peer.2, own.2, own.0)),
            "the peer",
        ),
        (
            "a question for the gateway",
            eth(
                solicited(gateway.2).0,
                IPV6,
                &solicitation((own.0, own.2), solicited(gateway.2).1, gateway.2),
            ),
            "the host",
        ),
    ] {
        let seen = scene.try_frames(&network, &[frame]);
        assert!(seen.iter().any(|(at, _)| *at == place), "{name} did not reach {place}: {seen:?}");
    }
    release(scene, lab, &broker);
}

fn release(scene: Scene, _lab: &Lab, broker: &crate::common::Broker) {
    let root = _lab.root().client(broker.socket());
    for container in [scene.mallory, scene.peer, scene.victim] {
        container.release(&root);
    }
}

// Everybody knows the right neighbours, and reaches them.
fn unharmed(network: &Network<'_>, scene: &Scene) {
    let gateway_mac = network.host.sh(&format!("cat /sys/class/net/{}/address", scene.bridge));
    for container in [&scene.peer, &scene.victim] {
        for address in [
            OUTSIDE4.to_owned(),
            OUTSIDE6.to_owned(),
            scene.gateway.1.to_string(),
            scene.gateway.2.to_string(),
        ] {
            assert!(container.node.pings(&address), "no way to {address} any more");
        }
        for gateway in [scene.gateway.1.to_string(), scene.gateway.2.to_string()] {
            let known = container.node.run(&["ip", "neigh", "show", &gateway]);
            assert!(known.contains(gateway_mac.trim()), "{known}");
        }
        let routes = container.node.run(&["ip", "-6", "route"])
            + &container.node.run(&["ip", "route", "show", "cache"]);
        let liar = link_local(scene.mallory.link.mac()).to_string();
        assert!(!routes.contains(&liar) && !routes.contains("redirect"), "{routes}");
        let addresses = container.node.run(&["ip", "-6", "address"]);
        assert!(!addresses.contains("2001:db8:bad") && !addresses.contains("dadfailed"), "{addresses}");
    }
    for container in [&scene.peer, &scene.victim, &scene.mallory] {
        let known = network.host.run(&["ip", "neigh", "show", &container.link.ip4()]);
        assert!(known.is_empty() || known.contains(&container.link.mac), "{known}");
    }
}

// The same packet with an option of IPv4 (no operation), so that the ports are elsewhere.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
    let plain = ipv4(address(12), address(16), 17, &[&[1; 4], &packet[20..]].concat());
    let mut packet = plain;
    packet[0] = 0x46;
    packet[10..12].fill(0);
    let mut sum: u32 = packet[..24].chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn nobody_steals_or_fills_the_bridges_memory(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let scene = Scene::new(lab, &network, &broker);
    let fdb = || {
        let text = network.host.run(&["bridge", "fdb", "show", "br", &scene.bridge]);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = fdb();
    let place = |container: &Container| format!("{} dev {}", container.link.mac, container.link.host_name);
    for container in [&scene.mallory, &scene.peer, &scene.victim] {
        assert!(
            before.iter().any(|line| line.starts_with(&place(container)) && line.contains("static")),
            "{before:?}"
        );
    }
    let mut frames = Vec::new();
    for n in 0..600_u16 {
        let [high, low] = n.to_be_bytes();
        frames.push(ethernet(
            EVERYBODY,
            [2, 9, 9, 9, high, low],
            IPV4,
            &udp4((scene.own().1, n), (Ipv4Addr::BROADCAST, 9), b""),
        ));
    }
    for to in [EVERYBODY, [1, 0x80, 0xc2, 0, 0, 0], [1, 0x80, 0xc2, 0, 0, 0xe], scene.gateway.0] {
        for from in [scene.peer.link.mac(), scene.victim.link.mac(), scene.gateway.0] {
            frames.push(ethernet(to, from, IPV4, &udp4((scene.own().1, 1), (Ipv4Addr::BROADCAST, 9), b"")));
            frames.push(ethernet(to, from, 0x0026, &[0x42; 40]));
        }
    }
    scene.mallory.node.send("eth0", &frames);
    assert!(scene.peer.node.pings(&scene.victim.link.gateway4.unwrap().to_string()));
    assert_eq!(fdb(), before);
    unharmed(&network, &scene);
    // The container's own device says it is somebody else: it is heard no more, and nobody else is hurt.
    scene.mallory.node.sh(&format!(
        "ip link set eth0 down; ip link set eth0 address {}; ip link set eth0 up; ip address add {}/24 dev eth0 || true",
        scene.victim.link.mac,
        scene.victim.link.ip4()
    ));
    assert!(!scene.mallory.node.pings(&scene.gateway.1.to_string()));
    unharmed(&network, &scene);
    assert_eq!(fdb(), before);
    release(scene, lab, &broker);
}

fn the_hosts_loopback_is_the_hosts(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    // Something that trusts whoever speaks to it by loopback.
    let trusting = network.host.bind(crate::common::node::Udp, "0.0.0.0:7001", false).unwrap();
    let trusting_too = network.host.bind(crate::common::node::Udp, "127.0.0.1:7002", false).unwrap();
    let scene = Scene::new(lab, &network, &broker);
    // With a published port, route_localnet is in force on the bridge.
    let root = lab.root().client(broker.socket());
    root.publish(&scene.peer.grant.path, "eth0", &["8080:80", "8080:80/udp"]).unwrap();
    let (own, gateway) = (scene.own(), scene.gateway);
    let frames: Vec<Vec<u8>> = ["127.0.0.1", "127.1.2.3", "127.255.255.254"]
        .into_iter()
        .flat_map(|to| {
            let to: Ipv4Addr = to.parse().unwrap();
            [7001, 7002]
                .map(|port| ethernet(gateway.0, own.0, IPV4, &udp4((own.1, 5000), (to, port), b"trust me")))
        })
        .chain([7001, 7002, 8080].map(|port| {
            ethernet(
                gateway.0,
                own.0,
                IPV4,
                &udp4((Ipv4Addr::LOCALHOST, 5000), (gateway.1, port), b"trust me"),
            )
        }))
        .chain([ethernet(gateway.0, own.0, IPV4, &syn4((own.1, 5000), (Ipv4Addr::LOCALHOST, 8080)))])
        .collect();
    let heard = scene.mallory.node.listen("eth0");
    scene.mallory.node.send("eth0", &frames);
    scene.mallory.node.sh("ip route add 127.0.0.0/8 via \"$(ip route show default | cut -d' ' -f3)\" dev eth0 || true; echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet");
    for port in [7001, 7002] {
        scene.mallory.node.is_cut_off(crate::common::node::Udp, &format!("{}:{port}", gateway.1));
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    for socket in [trusting, trusting_too] {
        assert!(network.host.heard(socket).is_empty(), "the host's loopback service was spoken to");
        network.host.close(socket);
    }
    assert!(!any_contains(&scene.mallory.node.heard(heard), &[127, 0, 0, 1]), "an answer from loopback");
    release(scene, lab, &broker);
}

crate::tests![
    no_lie_leaves_a_container,
    nobody_steals_or_fills_the_bridges_memory,
    the_hosts_loopback_is_the_hosts,
];
