//! Links are made as they are asked for, and the host is as before when the last is gone.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cgrant_sys::netlink::Route;
use cgrant_wire::{
    RefusalCode,
    link::{LinkKind, PublishedPort, Transport},
    net::{Order, Reply},
};

use crate::{
    Test,
    support::{
        Host, admin_bridge, assert_same, foreign_bridge, link, namespace, net, own_bridge, port, run, run_in,
        snapshot, v4,
    },
};

pub const TESTS: &[Test] = &[
    ("a_link_is_as_asked_for", a_link_is_as_asked_for),
    ("the_host_is_as_before_after_the_last_link", the_host_is_as_before_after_the_last_link),
    ("forwarding_the_old_way_is_undone_too", forwarding_the_old_way_is_undone_too),
    ("a_second_link_leaves_the_first_ones_way_out", a_second_link_leaves_the_first_ones_way_out),
    ("limits_and_sizes_are_set", limits_and_sizes_are_set),
    ("a_tap_lives_behind_a_pair", a_tap_lives_behind_a_pair),
    ("links_on_a_foreign_bridge_leave_it_alone", links_on_a_foreign_bridge_leave_it_alone),
    ("a_full_bridge_is_told", a_full_bridge_is_told),
    ("ports_are_all_or_none", ports_are_all_or_none),
    ("subnets_clash_with_nothing", subnets_clash_with_nothing),
    ("all_links_of_a_grant_go_together", all_links_of_a_grant_go_together),
    ("an_order_may_be_repeated", an_order_may_be_repeated),
];

fn read(setting: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap().trim().to_owned()
}

fn a_link_is_as_asked_for() {
    let mut host = Host::new();
    let (netns, link) = (namespace(), link(1));
    let index = host.add(&own_bridge(), &link, &netns).unwrap();
    let bridge = host.device("cgrant0").unwrap();
    let near = host.device(&link.info.host_name).unwrap();
    assert_eq!((near.index, near.master, near.up), (index, Some(bridge.index), true));
    assert_eq!(near.alias.as_deref(), Some("cgrant test 0000000000000001 eth0"));
    let flags = near.port.unwrap();
    assert!(!flags.learning && !flags.unicast_flood && flags.hairpin && !flags.isolated, "{flags:?}");
    let fdb = run("bridge fdb show dev cgv0000000001");
    assert!(fdb.contains("02:00:00:07:00:01") && fdb.contains("static"), "{fdb}");
    let far = Route::open_in(&netns).unwrap();
    let device = far.link_by_name("eth0").unwrap().unwrap();
    assert_eq!((device.mac, device.mtu, device.up), (Some(link.info.mac.0), 1500, true));
    let addresses = run_in(&netns, "ip -o addr show eth0");
    assert!(addresses.contains("10.77.0.17/22") && addresses.contains("fd77::11/64"), "{addresses}");
    assert!(!addresses.contains("tentative fd77"), "{addresses}");
    assert!(run_in(&netns, "ip route").contains("default via 10.77.0.1"));
    assert!(run_in(&netns, "ip -6 route").contains("default via fd77::1"));
    // The gateway answers, in both families.
    run_in(&netns, "busybox ping -c 1 -W 5 10.77.0.1");
    run_in(&netns, "busybox ping -c 1 -W 5 fd77::1");
    the_outside_answers(&netns);
    assert_eq!(read("ipv4/conf/up0/forwarding"), "1");
    assert_eq!((read("ipv4/ip_forward").as_str(), read("ipv6/conf/all/forwarding").as_str()), ("0", "0"));
}

fn the_host_is_as_before_after_the_last_link() {
    let mut host = Host::new();
    let before = snapshot();
    let (one, two) = (namespace(), namespace());
    let (mut first, second) = (link(1), link(2));
    first.info.ports = vec![port(8080, 80)];
    host.add(&own_bridge(), &first, &one).unwrap();
    host.add(&own_bridge(), &second, &two).unwrap();
    assert_eq!(read("ipv4/conf/cgrant0/route_localnet"), "1");
    host.remove(&first);
    assert_eq!(read("ipv4/conf/cgrant0/route_localnet"), "0");
    assert!(host.device("cgrant0").is_some());
    host.remove(&second);
    assert_same(&before, &snapshot(), "after the last link");
    assert!(host.net.descriptors().is_empty(), "nothing is listened to without links");
    let files: Vec<_> = std::fs::read_dir(host.directory.path()).unwrap().collect();
    assert!(files.is_empty(), "{files:?}");
    assert!(host.net.deadline().is_none());
    assert!(host.settle().is_empty());
}

fn forwarding_the_old_way_is_undone_too() {
    let mut host = Host::with(false);
    std::fs::write("/proc/sys/net/ipv6/conf/lo/forwarding", "1").unwrap();
    let before = snapshot();
    let (netns, link) = (namespace(), link(1));
    host.add(&own_bridge(), &link, &netns).unwrap();
    assert_eq!(
        (read("ipv6/conf/all/forwarding").as_str(), read("ipv6/conf/up0/accept_ra").as_str()),
        ("1", "2")
    );
    the_outside_answers(&netns);
    host.remove(&link);
    assert_same(&before, &snapshot(), "after the last link");
}

fn the_outside_answers(netns: &cgrant_sys::NetnsFd) {
    run_in(netns, "busybox ping -c 1 -W 5 198.51.100.1");
    run_in(netns, "busybox ping -c 1 -W 5 2001:db8::1");
}

fn a_second_link_leaves_the_first_ones_way_out() {
    let mut host = Host::new();
    let netns = namespace();
    let (first, mut second) = (link(1), link(2));
    second.info.name = "eth1".into();
    second.key.name = "eth1".into();
    host.add(&own_bridge(), &first, &netns).unwrap();
    host.add(&own_bridge(), &second, &netns).unwrap();
    let routes = run_in(&netns, "ip route");
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    assert!(routes.contains("default via 10.77.0.1 dev eth0"), "{routes}");
}

fn limits_and_sizes_are_set() {
    let mut host = Host::new();
    let (netns, mut link) = (namespace(), link(1));
    link.info.mtu = 1400;
    link.info.queue_length = 77;
    link.info.download = 8_000_000;
    link.info.upload = 4_000_000;
    let index = host.add(&own_bridge(), &link, &netns).unwrap();
    let qdiscs = host.route.qdiscs().unwrap();
    let tbf = qdiscs.iter().find(|qdisc| qdisc.ifindex == index && qdisc.kind == "tbf").unwrap();
    assert_eq!(tbf.rate, Some(1_000_000));
    let far = Route::open_in(&netns).unwrap().link_by_name("eth0").unwrap().unwrap();
    assert_eq!((far.mtu, far.queue_length), (1400, 77));
    // The others on the bridge keep theirs.
    assert_eq!(host.device("cgrant0").unwrap().mtu, 1500);
    assert_eq!(host.device(&link.info.host_name).unwrap().mtu, 1500);
}

fn a_tap_lives_behind_a_pair() {
    let mut host = Host::new();
    let before = snapshot();
    let mut tap = link(1);
    tap.info.kind = LinkKind::Tap;
    tap.info.mtu = 1400;
    let order = Order::AddLink { bridge: own_bridge(), link: tap.clone(), netns: None };
    let (reply, mut fds) = host.order(order, Vec::new()).unwrap();
    assert!(matches!(reply, Reply::Link { mtu: 1400, tap: Some(cgrant_wire::FdIndex(0)), .. }), "{reply:?}");
    // A frame that the machine sends arrives at the gateway, which answers.
    let request = arp_request(tap.info.mac.0, v4("10.77.0.17"), v4("10.77.0.1"));
    let answer = exchange(&fds[0], &request);
    assert_eq!(&answer[12..14], &[0x08, 0x06], "{answer:?}");
    assert_eq!(&answer[28..32], &[10, 77, 0, 1], "{answer:?}");
    // Its owner changes the device's address: it is none of the bridge's business.
    let fdb = run("bridge fdb show br cgrant0");
    assert!(fdb.contains("02:00:00:07:00:01 dev cgv0000000001 "), "{fdb}");
    // Closing the descriptor is the end of the link.
    fds.clear();
    let events = host.settle();
    assert!(format!("{events:?}").contains("far_end: true"), "{events:?}");
    assert_same(&before, &snapshot(), "after the tap was closed");
}

fn arp_request(mac: [u8; 6], from: std::net::Ipv4Addr, to: std::net::Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let frame = [&[0xff; 6][..], &mac, &[8, 6], &head, &mac, &from.octets(), &[0; 6], &to.octets()].concat();
    // struct virtio_net_hdr before it.
    [&[0; 10][..], &frame].concat()
}

/// Sends a frame until an answer comes.
fn exchange(tap: &std::os::fd::OwnedFd, frame: &[u8]) -> Vec<u8> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    for _ in 0..50 {
        rustix::io::write(tap, frame).unwrap();
        let mut fds = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)];
        while poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap() > 0 {
            let mut buffer = [0; 2048];
            let length = rustix::io::read(tap, &mut buffer).unwrap();
            if buffer[22..24] == [8, 6] && buffer[30..32] == [0, 2] {
                return buffer[10..length].to_vec();
            }
        }
    }
    panic!("nobody answers");
}

fn links_on_a_foreign_bridge_leave_it_alone() {
    let mut host = Host::new();
    admin_bridge(&host);
    host.settle();
    std::thread::sleep(Duration::from_secs(2));
    let before = snapshot();
    let (netns, mut link) = (namespace(), link(1));
    link.info.bridge = "lan".into();
    (link.info.gateway4, link.info.gateway6) = (None, None);
    link.info.mtu = 1300;
    host.add(&foreign_bridge("br0"), &link, &netns).unwrap();
    assert_eq!(host.device("br0").unwrap().mtu, 1450);
    assert_eq!(read("ipv4/conf/up0/forwarding"), "0", "what is only bridged needs no routing");
    host.remove(&link);
    assert_same(&before, &snapshot(), "after the last link");
    let failure = host.add(&foreign_bridge("br1"), &link, &netns).unwrap_err();
    assert_eq!(failure.code, RefusalCode::NoSuchBridge, "{failure:?}");
    let failure = host.add(&foreign_bridge("up0"), &link, &netns).unwrap_err();
    assert!(failure.message.contains("no bridge"), "{failure:?}");
    assert_same(&before, &snapshot(), "after refusals");
}

fn a_full_bridge_is_told() {
    let mut host = Host::new();
    let index = host.route.add_bridge("br0", "the administrator's", [2, 0, 0, 3, 0, 1], 1500, false).unwrap();
    let filler = namespace();
    for number in 0..1022_u16 {
        let [a, b] = number.to_be_bytes();
        host.route
            .add_veth(&cgrant_sys::netlink::NewVeth {
                name: &format!("f{number}"),
                alias: "a port",
                mtu: 1500,
                queue_length: 0,
                master: Some(index),
                peer_name: &format!("f{number}"),
                peer_mac: [2, 0, 0, 4, a, b],
                peer_netns: &filler,
            })
            .unwrap();
    }
    let (one, two) = (namespace(), namespace());
    let (mut first, mut second) = (link(1), link(2));
    first.info.bridge = "lan".into();
    second.info.bridge = "lan".into();
    host.add(&foreign_bridge("br0"), &first, &one).unwrap();
    let failure = host.add(&foreign_bridge("br0"), &second, &two).unwrap_err();
    assert_eq!(failure.code, RefusalCode::QuotaExceeded, "{failure:?}");
    assert!(failure.message.contains("1023 ports"), "{failure:?}");
    assert!(host.device(&second.info.host_name).is_none());
}

fn ports_are_all_or_none() {
    let mut host = Host::new();
    let (netns, link) = (namespace(), link(1));
    host.add(&own_bridge(), &link, &netns).unwrap();
    let taken = std::net::TcpListener::bind("0.0.0.0:9001").unwrap();
    let set = |host: &mut Host, ports: Vec<PublishedPort>| {
        host.order(Order::SetPorts { key: link.key.clone(), ports }, Vec::new())
    };
    set(&mut host, vec![port(9000, 80)]).unwrap();
    let before = run("nft list ruleset");
    let failure = set(&mut host, vec![port(9000, 80), port(9002, 80), port(9001, 80)]).unwrap_err();
    assert_eq!(failure.code, RefusalCode::AddressInUse, "{failure:?}");
    assert!(failure.message.contains("9001") && failure.message.contains("uid 0"), "{failure:?}");
    assert_eq!(run("nft list ruleset"), before);
    // Nobody has what was refused, and nobody else what is published.
    std::net::TcpListener::bind("0.0.0.0:9002").unwrap();
    assert!(std::net::TcpListener::bind("127.0.0.1:9000").is_err());
    drop(taken);
    let udp = PublishedPort { transport: Transport::Udp, ..port(9000, 53) };
    soon(|| set(&mut host, vec![port(9001, 80), udp]).is_ok());
    soon(|| std::net::TcpListener::bind("0.0.0.0:9000").is_ok());
    assert!(std::net::UdpSocket::bind("0.0.0.0:9000").is_err());
    set(&mut host, Vec::new()).unwrap();
    assert_eq!(read("ipv4/conf/cgrant0/route_localnet"), "0");
    let failure = host
        .order(Order::SetPorts { key: crate::support::link(9).key, ports: Vec::new() }, Vec::new())
        .unwrap_err();
    assert_eq!(failure.code, RefusalCode::NoSuchLink);
}

/// A port is free when the last process that was just being started has closed its copy of the socket.
fn soon(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(5), "a port does not become free");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn subnets_clash_with_nothing() {
    let mut host = Host::new();
    let four = |text: &str| match net(text) {
        cgrant_wire::link::Address { address: std::net::IpAddr::V4(address), prefix } => {
            cgrant_wire::link::Address { address, prefix }
        }
        other => panic!("{other:?}"),
    };
    let six = |text: &str| match net(text) {
        cgrant_wire::link::Address { address: std::net::IpAddr::V6(address), prefix } => {
            cgrant_wire::link::Address { address, prefix }
        }
        other => panic!("{other:?}"),
    };
    let mut ask = |taken: Vec<_>| {
        let order = Order::FindSubnets {
            pools4: vec![four("10.0.0.0/8"), four("172.16.0.0/30")],
            prefix4: 30,
            pool6: vec![six("fd01::/64"), six("fd02::/64")],
            taken,
        };
        match host.order(order, Vec::new()).unwrap().0 {
            Reply::Subnets { subnet4, subnet6 } => (subnet4, subnet6),
            other => panic!("{other:?}"),
        }
    };
    let before = snapshot();
    let free = ask(Vec::new());
    assert!(free.0.is_some() && free.1 == Some(six("fd01::/64")), "{free:?}");
    assert_same(&before, &snapshot(), "asking changes nothing");
    run("ip route add 10.0.0.0/8 dev up0");
    run("ip -6 route add blackhole fd01::/48");
    assert_eq!(ask(Vec::new()), (Some(four("172.16.0.0/30")), Some(six("fd02::/64"))));
    run("ip addr add 172.16.0.2/32 dev up0");
    assert_eq!(ask(vec![net("fd02::/64")]), (None, None));
}

fn all_links_of_a_grant_go_together() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    let (first, mut second, third) = (link(1), link(2), link(3));
    second.key = cgrant_wire::net::LinkKey { grant: first.key.grant, name: "eth1".into() };
    second.info.name = "eth1".into();
    host.add(&own_bridge(), &first, &netns).unwrap();
    host.add(&own_bridge(), &second, &netns).unwrap();
    let other = namespace();
    host.add(&own_bridge(), &third, &other).unwrap();
    host.order(Order::RemoveLinks(first.key.grant), Vec::new()).unwrap();
    assert!(host.device(&first.info.host_name).is_none() && host.device(&second.info.host_name).is_none());
    assert!(host.device(&third.info.host_name).is_some());
    host.order(Order::RemoveLinks(third.key.grant), Vec::new()).unwrap();
    assert_same(&before, &snapshot(), "after all");
}

fn an_order_may_be_repeated() {
    let mut host = Host::new();
    let before = snapshot();
    let (netns, link) = (namespace(), link(1));
    let first = host.add(&own_bridge(), &link, &netns).unwrap();
    let again = host.add(&own_bridge(), &link, &netns).unwrap();
    assert_ne!(first, again);
    assert_eq!(run_in(&netns, "ip -o link").lines().count(), 2);
    host.remove(&link);
    host.remove(&link);
    assert_same(&before, &snapshot(), "after the last link");
}
