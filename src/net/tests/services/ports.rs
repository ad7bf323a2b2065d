//! Who can have a port that is held.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use cgrant_net::ports::PortsError;
use cgrant_sys::Exit;
use cgrant_wire::{PublishedPort, Transport};

use crate::{
    Test,
    support::{STRANGER, as_stranger, holders, in_child, key, published, start, target, ways_to},
};

pub const TESTS: &[Test] = &[
    ("ports::nobody_else_gets_a_held_port", nobody_else_gets_a_held_port),
    ("ports::a_port_at_one_address_is_held_there_alone", a_port_at_one_address_is_held_there_alone),
    ("ports::who_has_a_port_is_named", who_has_a_port_is_named),
    ("ports::all_or_none", all_or_none),
    ("ports::what_connections_left_is_no_hindrance", what_connections_left_is_no_hindrance),
    ("ports::who_listens_no_more_keeps_his_connections", who_listens_no_more_keeps_his_connections),
    ("ports::many_ports_are_looked_for_at_once", many_ports_are_looked_for_at_once),
    ("ports::links_share_no_port", links_share_no_port),
    ("ports::an_address_must_be_the_hosts", an_address_must_be_the_hosts),
    ("ports::a_host_without_ipv6_has_ports_too", a_host_without_ipv6_has_ports_too),
    ("ports::opening_can_be_undone", opening_can_be_undone),
];

/// The last two are the host's towards others.
const EVERYWHERE: &[&str] = &["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1", "192.0.2.9", "2001:db8::9"];

/// The ways in which a stranger, and root, get a port.
fn ways(port: u16) -> Vec<String> {
    // Without the limit on ports below 1024 it is the holder that keeps them out.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let try_all = || i32::try_from(ways_to(port, EVERYWHERE).len()).unwrap();
    let (Exit::Code(stranger), Exit::Code(root)) = (as_stranger(try_all), in_child(try_all)) else {
        panic!()
    };
    vec!["stranger".to_owned(); stranger.unsigned_abs() as usize]
        .into_iter()
        .chain(vec!["root".to_owned(); root.unsigned_abs() as usize])
        .collect()
}

/// Those of them that are TCP.
fn tcp_ways(port: u16) -> Vec<String> {
    ways_to(port, EVERYWHERE).into_iter().filter(|way| way.starts_with("tcp")).collect()
}

fn nobody_else_gets_a_held_port() {
    let mut holders = holders();
    let route = cgrant_sys::netlink::Route::open().unwrap();
    route.add_address(1, "192.0.2.9".parse().unwrap(), 32, true).unwrap();
    route.add_address(1, "2001:db8::9".parse().unwrap(), 128, true).unwrap();
    for port in [80, 8080] {
        // Every way leads to a free port: so the attempts are worth something.
        assert_eq!(ways(port).len(), 2 * EVERYWHERE.len() * 16);
        let ports = [Transport::Tcp, Transport::Udp].map(|transport| published(port, transport));
        holders.hold(&key(1), &target(), &ports).unwrap();
        assert_eq!(ways(port), [""; 0]);
        // Again, and still.
        holders.hold(&key(1), &target(), &ports).unwrap();
        assert_eq!(ways(port), [""; 0]);
        // Only what is served at ::1 takes connections.
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        holders.release(&key(1));
        // What that connection left does not keep us from the port, and others only as it would from any.
        holders.hold(&key(1), &target(), &ports).unwrap();
        assert_eq!(ways(port), [""; 0]);
        holders.release(&key(1));
    }
    assert!(ways(8081).len() > 100);
}

fn a_port_at_one_address_is_held_there_alone() {
    let mut holders = holders();
    let at = |address: &str, transport| PublishedPort {
        address: Some(address.parse().unwrap()),
        ..published(8080, transport)
    };
    for address in ["127.0.0.1", "::1"] {
        let ports = [at(address, Transport::Tcp), at(address, Transport::Udp)];
        holders.hold(&key(1), &target(), &ports).unwrap();
        let taken = ways_to(8080, &[address, if address == "::1" { "::" } else { "0.0.0.0" }]);
        assert_eq!(taken, [""; 0], "{address}");
        assert!(!ways_to(8080, &["127.0.0.2"]).is_empty());
        holders.release(&key(1));
    }
}

fn who_has_a_port_is_named() {
    let mut holders = holders();
    let (ready, wait) = std::io::pipe().unwrap();
    let other = start(|| {
        cgrant_sys::privilege::become_account(STRANGER, STRANGER).unwrap();
        let _tcp = TcpListener::bind("127.0.0.1:8080").unwrap();
        let _udp = UdpSocket::bind("[::1]:8081").unwrap();
        drop(wait.try_clone().map(|mut wait| std::io::Write::write_all(&mut wait, b"x")));
        std::thread::sleep(std::time::Duration::from_secs(60));
        0
    });
    std::io::Read::read_exact(&mut &ready, &mut [0]).unwrap();
    let tcp = holders.hold(&key(1), &target(), &[published(8080, Transport::Tcp)]).unwrap_err();
    assert_eq!(
        tcp.to_string(),
        "port 8080/tcp is taken by a listening TCP socket at 127.0.0.1:8080 of uid 4242"
    );
    let udp = holders.hold(&key(1), &target(), &[published(8081, Transport::Udp)]).unwrap_err();
    assert_eq!(udp.to_string(), "port 8081/udp is taken by a UDP socket at [::1]:8081 of uid 4242");
    // The other transport is free.
    holders.hold(&key(1), &target(), &[published(8080, Transport::Udp)]).unwrap();
    other.pidfd.send_signal(cgrant_sys::pidfd::Signal::KILL).unwrap();
    other.pidfd.wait().unwrap();
    holders.hold(&key(1), &target(), &[published(8080, Transport::Tcp)]).unwrap();
    // Another instance's holder does not listen, so it can't be seen, but it is there.
    let mut others = crate::support::holders();
    let hidden = others.hold(
        &key(2),
        &target(),
        &[PublishedPort { address: Some("127.0.0.1".parse().unwrap()), ..published(8080, Transport::Tcp) }],
    );
    let Err(PortsError::Taken { by, .. }) = hidden else { panic!("{hidden:?}") };
    assert!(by.is_none_or(|by| by.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST)));
}

fn all_or_none() {
    let mut holders = holders();
    let ports = [8080, 8081, 8082].map(|port| published(port, Transport::Tcp));
    holders.hold(&key(1), &target(), &ports[..1]).unwrap();
    let in_the_way = TcpListener::bind("[::]:8082").unwrap();
    let Err(PortsError::Taken { port, by: Some(by) }) = holders.hold(&key(1), &target(), &ports) else {
        panic!()
    };
    assert_eq!((port.host, by.uid, by.listens), (8082, 0, true));
    assert!(tcp_ways(8080).is_empty());
    assert!(!tcp_ways(8081).is_empty());
    drop(in_the_way);
    holders.hold(&key(1), &target(), &ports).unwrap();
    // Exactly these: the first two end.
    holders.hold(&key(1), &target(), &ports[2..]).unwrap();
    assert!(!tcp_ways(8080).is_empty() && !tcp_ways(8081).is_empty() && tcp_ways(8082).is_empty());
    holders.release(&key(1));
    assert_eq!(holders.links().count(), 0);
}

fn what_connections_left_is_no_hindrance() {
    for place in ["127.0.0.1:8080", "[::1]:8080"] {
        // A server that closes first and ends leaves its port behind for a minute.
        let server = TcpListener::bind(place).unwrap();
        let client = TcpStream::connect(place).unwrap();
        let (connection, _) = server.accept().unwrap();
        drop((connection, server));
        std::io::Read::read_to_end(&mut &client, &mut Vec::new()).unwrap();
        drop(client);
        let mut holders = holders();
        holders.hold(&key(1), &target(), &[published(8080, Transport::Tcp)]).unwrap();
        assert_eq!(tcp_ways(8080), [""; 0]);
        assert!(TcpStream::connect("127.0.0.1:8080").is_err());
    }
}

fn who_listens_no_more_keeps_his_connections() {
    // As a server that is being replaced: it takes nobody any more, and those who came are still served.
    let server = TcpListener::bind("127.0.0.1:8080").unwrap();
    let client = TcpStream::connect("127.0.0.1:8080").unwrap();
    let (connection, _) = server.accept().unwrap();
    drop(server);
    let error = holders().hold(&key(1), &target(), &[published(8080, Transport::Tcp)]).unwrap_err();
    let PortsError::Taken { by: Some(by), .. } = &error else { panic!("{error}") };
    assert_eq!((by.listens, by.address.port()), (false, 8080));
    drop((client, connection));
}

/// However many sockets there are, and however many ports are asked for: others wait for the answer.
fn many_ports_are_looked_for_at_once() {
    const MANY: usize = 10_000;
    // A port that is published at ::1 too is looked for after it was bound.
    let crowd: Vec<UdpSocket> = (0..MANY).map(|_| UdpSocket::bind("[::1]:0").unwrap()).collect();
    let used: std::collections::BTreeSet<u16> =
        crowd.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
    let free = (1024_u16..).filter(|port| !used.contains(port)).take(256);
    let ports: Vec<PublishedPort> = free.map(|port| published(port, Transport::Udp)).collect();
    let mut holders = holders();
    let begun = std::time::Instant::now();
    holders.open(&key(1), &ports).unwrap();
    let all = begun.elapsed();
    let begun = std::time::Instant::now();
    std::fs::read_to_string("/proc/net/udp6").unwrap();
    let once = begun.elapsed();
    assert!(all < once * 50 + std::time::Duration::from_millis(500), "{all:?}, and one look takes {once:?}");
}

fn links_share_no_port() {
    let mut holders = holders();
    let everywhere = published(8080, Transport::Tcp);
    let here = PublishedPort { address: Some(Ipv4Addr::LOCALHOST.into()), ..everywhere };
    holders.hold(&key(1), &target(), &[everywhere]).unwrap();
    for port in [everywhere, here, PublishedPort { container: 81, ..everywhere }] {
        let Err(PortsError::Published { by, .. }) = holders.hold(&key(2), &target(), &[port]) else {
            panic!()
        };
        assert_eq!(by, key(1));
    }
    holders.hold(&key(2), &target(), &[published(8080, Transport::Udp)]).unwrap();
    let twice =
        holders.hold(&key(3), &target(), &[published(81, Transport::Tcp), published(81, Transport::Tcp)]);
    assert!(matches!(twice, Err(PortsError::Published { .. })));
    let overlapping =
        PublishedPort { address: Some(Ipv4Addr::LOCALHOST.into()), ..published(81, Transport::Tcp) };
    let both = holders.hold(&key(3), &target(), &[published(81, Transport::Tcp), overlapping]);
    assert!(matches!(both, Err(PortsError::Published { .. })));
    holders.release(&key(1));
    holders.hold(&key(3), &target(), &[here]).unwrap();
}

fn an_address_must_be_the_hosts() {
    let mut holders = holders();
    let at = |address: &str, host, container| PublishedPort {
        address: Some(address.parse().unwrap()),
        host,
        container,
        transport: Transport::Tcp,
    };
    for address in ["192.0.2.1", "2001:db8::1"] {
        let error = holders.hold(&key(1), &target(), &[at(address, 80, 80)]).unwrap_err();
        assert!(matches!(error, PortsError::NoSuchAddress { .. }), "{error}");
    }
    for port in [
        at("224.0.0.1", 80, 80),
        at("255.255.255.255", 80, 80),
        at("ff02::1", 80, 80),
        at("fe80::1", 80, 80),
        at("::ffff:127.0.0.1", 80, 80),
        at("127.0.0.1", 0, 80),
        at("127.0.0.1", 80, 0),
    ] {
        let error = holders.hold(&key(1), &target(), &[port]).unwrap_err();
        assert!(matches!(error, PortsError::Invalid { .. }), "{error}");
    }
    assert_eq!(holders.links().count(), 0);
}

fn a_host_without_ipv6_has_ports_too() {
    std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
    let mut holders = holders();
    let ports = [Transport::Tcp, Transport::Udp].map(|transport| published(8080, transport));
    holders.hold(&key(1), &target(), &ports).unwrap();
    assert_eq!(ways(8080), [""; 0]);
    assert!(holders.descriptors().is_empty(), "a proxy with nothing to serve");
}

fn opening_can_be_undone() {
    let mut holders = holders();
    let (old, new) = ([published(8080, Transport::Tcp)], [published(8081, Transport::Tcp)]);
    holders.hold(&key(1), &target(), &old).unwrap();
    holders.open(&key(1), &new).unwrap();
    assert!(tcp_ways(8080).is_empty() && tcp_ways(8081).is_empty());
    holders.settle(&key(1), &target(), &old);
    assert!(tcp_ways(8080).is_empty() && !tcp_ways(8081).is_empty());
}
