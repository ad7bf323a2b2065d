//! How rules come and go: all or nothing, and nothing left; what happens when somebody else changes them.

use std::net::IpAddr;

use cgrant_net::firewall::{Firewall, FirewallError};
use cgrant_wire::link::{Mac, PublishedPort, Transport};

use crate::{
    Test,
    frame::{UDP, ethernet, ip4, same, udp},
    world::{ABSENCE, ARRIVAL, GATEWAY4, Kind, SERVER_MAC, World, link},
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("everything is gone with the last link", gone),
    ("what is there is what was put there", intact),
    ("whoever has no wall reaches nobody", unwalled),
    ("a device that dies takes its rules along", death),
    ("everything is built again at once", restored),
    ("a port leads to one place", conflict),
    ("what the kernel refuses changes nothing", refused),
    ("an upload limit limits", limited),
    ("a thousand ports and many accounts", many),
];

fn listing(world: &World) -> String {
    world.host.run("nft list ruleset")
}

fn gone(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.host.run("nft add table inet theirs");
    world.publish(0, &[PublishedPort { address: None, host: 80, container: 80, transport: Transport::Tcp }]);
    let keys: Vec<_> = world.containers.iter().map(|container| container.link.key.clone()).collect();
    for key in &keys {
        assert!(listing(&world).contains("cgrant-test"));
        world.wall(|firewall, _| firewall.remove_link(key).unwrap());
        assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    }
    world.wall(|firewall, bridge| firewall.remove_server(bridge).unwrap());
    assert_eq!(listing(&world), "table inet theirs {\n}\n");
    world.wall(|firewall, _| firewall.remove_link(&keys[0]).unwrap());
    // And again from nothing.
    let (device, link) = (world.containers[0].device.clone(), world.containers[0].link.clone());
    world.wall(|firewall, bridge| firewall.add_link(bridge, &device, &link).unwrap());
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    world.wall(|firewall, _| firewall.clear().unwrap());
    assert_eq!(listing(&world), "table inet theirs {\n}\n");
}

fn intact(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let limited = {
        let mut link = world.containers[1].link.clone();
        link.info.upload = 8_000_000;
        link.open = true;
        link
    };
    world.wall(|firewall, bridge| firewall.add_link(bridge, "cgv1", &limited).unwrap());
    world.publish(
        0,
        &[
            PublishedPort { address: None, host: 80, container: 8080, transport: Transport::Tcp },
            PublishedPort {
                address: Some(GATEWAY4.into()),
                host: 53,
                container: 53,
                transport: Transport::Udp,
            },
            PublishedPort {
                address: Some("2001:db8::1".parse().unwrap()),
                host: 53,
                container: 53,
                transport: Transport::Udp,
            },
        ],
    );
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    world.host.run("nft add table ip theirs");
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()), "another's table is another's business");
    for change in [
        "flush ruleset",
        "delete table inet cgrant-test",
        "delete table bridge cgrant-test",
        "delete table netdev cgrant-test",
        "flush chain netdev cgrant-test cgv0",
        "flush chain inet cgrant-test outside",
        "insert rule bridge cgrant-test forward accept",
        "add rule inet cgrant-test host accept",
        "delete element bridge cgrant-test links { cgv1 }",
        "delete element inet cgrant-test any4 { tcp . 80 : 10.77.0.16 }",
        "add element inet cgrant-test known4 { 9.9.9.9 }",
        "flush set inet cgrant-test bridges",
        "add chain bridge cgrant-test forward { policy drop; }",
        "add chain inet cgrant-test theirs",
    ] {
        world.host.enter(|| {
            let words = change.split(' ');
            let status = std::process::Command::new("nft").args(words).status().unwrap();
            assert!(status.success(), "{change}");
        });
        assert!(!world.wall(|firewall, _| firewall.is_intact().unwrap()), "not noticed: {change}");
        world.wall(|firewall, _| firewall.mend().unwrap());
        assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()), "not mended: {change}");
    }
    // A change finds its way even if everything is gone.
    world.host.run("nft flush ruleset");
    world.publish(0, &[]);
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
}

/// Can container 0 reach its friend, another account, and the host with a datagram?
fn reach(world: &World) -> [bool; 3] {
    let me = &world.containers[0];
    let mac = |number: usize| world.containers[number].mac();
    let watch = [1, 2].map(|number| world.containers[number].space.packets("eth0", 3));
    let socket = world.host.enter(|| std::net::UdpSocket::bind((GATEWAY4, 5001))).unwrap();
    socket.set_read_timeout(Some(ABSENCE)).unwrap();
    let datagram = |to: IpAddr, mac: Mac| {
        let IpAddr::V4(ip) = to else { panic!("IPv4 only") };
        ethernet(mac, me.mac(), 0x0800, &ip4(me.ip4(), ip, UDP, &udp(me.ip4().into(), to, (5000, 5001))))
    };
    let seen = [1, 2].map(|number| {
        let frame = datagram(world.containers[number].ip4().into(), mac(number));
        me.wire.send(&frame);
        watch[number - 1].sees(ABSENCE, |seen| same(seen, &frame))
    });
    me.wire.send(&datagram(GATEWAY4.into(), crate::world::GATEWAY_MAC));
    [seen[0], seen[1], socket.recv(&mut [0; 64]).is_ok()]
}

fn unwalled(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    assert_eq!(reach(&world), [true, false, false]);
    world.host.run("nft delete table netdev cgrant-test");
    assert_eq!(reach(&world), [false, false, false], "without the walls");
    world.wall(|firewall, _| firewall.mend().unwrap());
    assert_eq!(reach(&world), [true, false, false], "mended");
    // Since Linux 6.16 a hook goes by its device's name, and is gone when the name is.
    world.host.run("ip link set cgv0 down");
    world.host.run("ip link set cgv0 name other0");
    world.host.run("ip link set other0 up");
    let [_, other, host] = reach(&world);
    assert_eq!([other, host], [false, false], "under another name");
    world.wall(|firewall, _| firewall.mend().unwrap());
    let [_, other, host] = reach(&world);
    assert_eq!([other, host], [false, false], "under another name, mended for the others");
    world.host.run("ip link set other0 down");
    world.host.run("ip link set other0 name cgv0");
    world.host.run("ip link set cgv0 up");
    world.wall(|firewall, _| firewall.mend().unwrap());
    assert_eq!(reach(&world), [true, false, false], "under its own name again");
    world.host.run("nft delete table bridge cgrant-test");
    let [_, _, host] = reach(&world);
    assert!(!host, "without the bridge's table");
}

fn death(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.host.run("ip link del cgv0");
    let key = world.containers[0].link.key.clone();
    world.wall(|firewall, _| firewall.forget_link(&key).unwrap());
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    assert!(!listing(&world).contains("cgv0"));
    // Two at once, of which one is not known to be dead when the other one's rules go.
    world.host.run("ip link del cgv1");
    world.host.run("ip link del cgv2");
    world.wall(|firewall, _| firewall.mend().unwrap());
    for number in [1, 2] {
        let key = world.containers[number].link.key.clone();
        world.wall(|firewall, _| firewall.remove_link(&key).unwrap());
    }
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    let (device, link) = ("cgv2".to_owned(), world.containers[2].link.clone());
    let error = world.wall(|firewall, bridge| firewall.add_link(bridge, &device, &link).unwrap_err());
    assert!(matches!(error, FirewallError::NoDevice(_)), "{error}");
}

fn restored(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let port = PublishedPort { address: None, host: 80, container: 80, transport: Transport::Tcp };
    world.publish(0, &[port]);
    let before = listing(&world);
    let links: Vec<_> = world
        .containers
        .iter()
        .map(|container| {
            let mut link = container.link.clone();
            link.info.ports = if container.device == "cgv0" { vec![port] } else { Vec::new() };
            (link, container.device.clone())
        })
        .collect();
    let servers = [(world.bridge.clone(), "cgd0".to_owned(), SERVER_MAC)];
    // Another broker process, over what the first one left and what somebody else made of it.
    for change in [
        "",
        "nft flush ruleset",
        "nft add rule inet cgrant-test host accept",
        "nft flush table netdev cgrant-test",
    ] {
        if !change.is_empty() {
            world.host.run(change);
        }
        let bridges = [world.bridge.clone()];
        world.firewall = Firewall::new("test");
        world.wall(|firewall, _| firewall.restore(&bridges, &links, &servers).unwrap());
        assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()), "{change}");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&listing(&world)), sorted(&before), "{change}");
    }
    world.firewall = Firewall::new("test");
    world.wall(|firewall, _| firewall.restore(&[], &[], &[]).unwrap());
    assert_eq!(listing(&world), "");
}

fn conflict(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let port =
        |address, host, container| PublishedPort { address, host, container, transport: Transport::Tcp };
    world.publish(0, &[port(None, 80, 8080), port(Some(GATEWAY4.into()), 81, 8080)]);
    let before = listing(&world);
    let key = world.containers[2].link.key.clone();
    for ports in [vec![port(None, 80, 8080)], vec![port(None, 90, 1), port(Some(GATEWAY4.into()), 81, 1)]] {
        let error = world.wall(|firewall, _| firewall.set_ports(&key, &ports).unwrap_err());
        assert!(matches!(error, FirewallError::PortTaken(_)), "{error}");
        assert_eq!(listing(&world), before);
    }
    // It may give its own port another place, or pass it on.
    world.publish(0, &[port(None, 80, 9090)]);
    assert!(listing(&world).contains("9090"));
    world.publish(0, &[]);
    world.publish(2, &[port(None, 80, 8080)]);
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
}

fn refused(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let before = listing(&world);
    let mac = Mac([2, 0xca, 0, 0, 9, 9]);
    let link = link(9, mac, "lo");
    // A name that exists, and that nft takes for no device's: the transaction fails in the middle.
    let mut odd = link.clone();
    odd.info.ports =
        vec![PublishedPort { address: None, host: 80, container: 80, transport: Transport::Tcp }];
    world.host.run("ip link add dummy_bridge0 type bridge");
    let bridge = world.bridge.clone();
    world.host.enter(|| {
        let error = world.firewall.add_link(&bridge, "nothing0", &odd).unwrap_err();
        assert!(matches!(error, FirewallError::NoDevice(_)), "{error}");
    });
    assert_eq!(listing(&world), before);
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    world.wall(|firewall, bridge| firewall.add_link(bridge, "dummy_bridge0", &odd).unwrap());
    world.wall(|firewall, _| firewall.remove_link(&odd.key).unwrap());
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
}

fn limited(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let mut link = world.containers[0].link.clone();
    link.info.upload = 1_000_000;
    world.wall(|firewall, bridge| firewall.add_link(bridge, "cgv0", &link).unwrap());
    let (me, friend) = (&world.containers[0], &world.containers[1]);
    let watch = friend.space.packets("eth0", 3);
    let payload = [udp(me.ip4().into(), friend.ip4().into(), (5000, 5000)), vec![0; 1000]].concat();
    let frame = ethernet(friend.mac(), me.mac(), 0x0800, &ip4(me.ip4(), friend.ip4(), UDP, &payload));
    assert!({
        me.wire.send(&frame);
        watch.sees(ARRIVAL, |seen| same(seen, &frame))
    });
    // 2 MiB are eight times what is let through at once, and sixteen seconds' worth.
    let mut arrived = 0;
    for _ in 0..2000 {
        me.wire.send(&frame);
        arrived += usize::from(watch.sees(std::time::Duration::ZERO, |seen| same(seen, &frame)));
    }
    assert!((100..1500).contains(&arrived), "{arrived} of 2000 frames arrived");
}

fn many(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let ports: Vec<PublishedPort> = (0..1000)
        .map(|number| PublishedPort {
            address: None,
            host: 10_000 + number,
            container: number + 1,
            transport: Transport::Udp,
        })
        .collect();
    world.publish(0, &ports);
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    world.publish(0, &ports[500..]);
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    for number in 10..60_u8 {
        world.host.run(&format!("ip link add cgx{number} type bridge"));
        let mut link = link(number, Mac([2, 0xca, 0, 0, 2, number]), "");
        link.account = 5000 + u32::from(number);
        world.wall(|firewall, bridge| firewall.add_link(bridge, &format!("cgx{number}"), &link).unwrap());
    }
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    for number in (10..60_u8).rev() {
        let key = link(number, SERVER_MAC, "").key;
        world.wall(|firewall, _| firewall.remove_link(&key).unwrap());
    }
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
}
