//! Who reaches whom, with connections as programs make them: containers, the host, the outside, published ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cgrant_wire::link::{PublishedPort, Transport};

use crate::{
    Test,
    frame::{UDP, ethernet, ip4, ip6, link_local, same, udp},
    world::{
        ABSENCE, ARRIVAL, GATEWAY_MAC, GATEWAY4, GATEWAY6, HOST4, HOST6, Kind, OUTSIDE4, OUTSIDE6, SERVER4,
        SERVER6, Space, World,
    },
};

/// The tests of this file.
pub const TESTS: &[Test] = &[
    ("containers of an account reach each other", account),
    ("containers of other accounts are out of reach", other_accounts),
    ("nothing link-local is routed to other accounts", no_way_round),
    ("open links reach each other", open),
    ("the host reaches containers", host),
    ("containers reach nothing of the host's", services),
    ("containers reach the name server, which reaches the world", name_server),
    ("containers reach the outside in the host's name", outside),
    ("a source port that root alone may have stays inside", low_ports),
    ("containers are out of reach from outside", inside),
    ("a published port keeps the client's address", published),
    ("a published port is reached from the host and from containers", hairpin),
    ("a published port of one address is that address's", one_address),
    ("an address of another machine's can't be published", no_address_of_others),
    ("nobody takes a published port by sending from it", shadow),
    ("the host's loopback is out of reach", loopback),
    ("devices under guard forward to own bridges only", guard),
    ("links on a foreign bridge", foreign),
];

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Where a server listens to be reached at `ip`.
fn any(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { ANY4 } else { ANY6 }
}

/// Can `client` reach port `port` of `server`, which has the address `ip`?
fn reaches(client: &Space, server: &Space, ip: IpAddr, port: u16) -> bool {
    let to = SocketAddr::new(ip, port);
    client.connect(server, SocketAddr::new(any(ip), port), to).is_some()
}

fn through_gateway(world: &World, client: usize, server: usize) {
    let (client, server) = (&world.containers[client], &world.containers[server]);
    client.space.run(&format!("ip route add {}/32 via {GATEWAY4}", server.ip4()));
    client.space.run(&format!("ip route add {}/128 via {GATEWAY6}", server.ip6()));
}

fn account(called: bool) {
    let world = World::new(Kind::Walled, called);
    for (one, other) in [(0, 1), (1, 0), (2, 3)] {
        let (client, server) = (&world.containers[one], &world.containers[other]);
        for ip in server.ips() {
            assert!(reaches(&client.space, &server.space, ip, 80), "{one} to {other} at {ip}");
            assert!(client.space.ping(ip), "{one} pings {other} at {ip}");
        }
    }
    // Also if they take the long way.
    for (one, other) in [(0, 1), (1, 0)] {
        through_gateway(&world, one, other);
    }
    for ip in world.containers[1].ips() {
        assert!(reaches(&world.containers[0].space, &world.containers[1].space, ip, 81), "routed to {ip}");
    }
}

fn other_accounts(called: bool) {
    for kind in [Kind::Open, Kind::Walled] {
        let world = World::new(kind, called);
        let reached = kind == Kind::Open;
        for (one, other) in [(0, 2), (3, 1)] {
            let (client, server) = (&world.containers[one], &world.containers[other]);
            for ip in server.ips() {
                assert_eq!(
                    reaches(&client.space, &server.space, ip, 80),
                    reached,
                    "{one} to {other} at {ip}"
                );
            }
            // Both take the gateway, so that no answer is lost on its way back.
            through_gateway(&world, one, other);
            through_gateway(&world, other, one);
            for ip in server.ips() {
                assert_eq!(
                    reaches(&client.space, &server.space, ip, 81),
                    reached,
                    "routed, {one} to {other} at {ip}"
                );
                assert_eq!(client.space.ping(ip), reached, "routed ping, {one} to {other} at {ip}");
            }
        }
    }
}

/// The kernel routes what comes from a link-local address, or goes to one, if it leaves where it came in [tried: 6.18].
fn no_way_round(called: bool) {
    for kind in [Kind::Open, Kind::Walled] {
        let world = World::new(kind, called);
        let (one, other) = (&world.containers[0], &world.containers[2]);
        let (own, theirs) = (link_local(one.mac()), link_local(other.mac()));
        for (from, to) in [(own, other.ip6()), (own, theirs), (one.ip6(), theirs)] {
            let text = format!("{from} {to}");
            let mut data = udp(from.into(), to.into(), (5000, 5001));
            data.truncate(8);
            let frame = ethernet(GATEWAY_MAC, one.mac(), 0x86dd, &ip6(from, to, UDP, &data));
            let watch = other.space.packets("eth0", 3);
            one.wire.send(&frame);
            let (time, walled) = if kind == Kind::Open { (ARRIVAL, false) } else { (ABSENCE, true) };
            let addresses = [from.octets(), to.octets()].concat();
            let arrived = watch.sees(time, |seen| seen.get(22..54) == Some(&addresses[..]));
            assert_eq!(arrived, !walled, "{text}");
        }
    }
}

fn open(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    for number in [0, 2] {
        let mut link = world.containers[number].link.clone();
        link.open = true;
        world.wall(|firewall, bridge| firewall.add_link(bridge, &link.info.host_name, &link).unwrap());
    }
    for (one, other, expected) in
        [(0, 2, true), (2, 0, true), (0, 3, false), (3, 0, false), (1, 2, false), (0, 1, true)]
    {
        let (client, server) = (&world.containers[one], &world.containers[other]);
        for ip in server.ips() {
            assert_eq!(reaches(&client.space, &server.space, ip, 80), expected, "{one} to {other} at {ip}");
        }
    }
    through_gateway(&world, 0, 2);
    through_gateway(&world, 2, 0);
    for ip in world.containers[2].ips() {
        assert!(reaches(&world.containers[0].space, &world.containers[2].space, ip, 81), "routed to {ip}");
    }
}

fn host(called: bool) {
    let world = World::new(Kind::Walled, called);
    for container in &world.containers {
        for ip in container.ips() {
            assert!(reaches(&world.host, &container.space, ip, 80), "host to {ip}");
            assert!(world.host.ping(ip), "host pings {ip}");
        }
    }
}

fn services(called: bool) {
    for kind in [Kind::Open, Kind::Walled] {
        let world = World::new(kind, called);
        let container = &world.containers[0].space;
        let reached = kind == Kind::Open;
        let addresses: [IpAddr; 4] = [GATEWAY4.into(), GATEWAY6.into(), HOST4.into(), HOST6.into()];
        for ip in addresses {
            for port in [22, 53, 67, 111, 8080] {
                let to = SocketAddr::new(ip, port);
                let listen = to;
                assert_eq!(container.connect(&world.host, listen, to).is_some(), reached, "tcp {to}");
                assert_eq!(container.ask(0, &world.host, listen, to).is_some(), reached, "udp {to}");
            }
            assert!(container.ping(ip), "the host answers pings at {ip}");
        }
    }
}

fn name_server(called: bool) {
    let world = World::new(Kind::Walled, called);
    let server = &world.server;
    for container in &world.containers {
        for ip in [IpAddr::V4(SERVER4), IpAddr::V6(SERVER6)] {
            let (listen, to) = (SocketAddr::new(any(ip), 53), SocketAddr::new(ip, 53));
            let seen = container.space.ask(0, server, listen, to).unwrap_or_else(|| panic!("ask {ip}"));
            assert!(container.ips().contains(&seen.ip()), "the server sees who asks: {seen}");
            assert!(container.space.connect(server, listen, to).is_some(), "ask {ip} by TCP");
        }
    }
    for (ip, seen) in [(IpAddr::V4(OUTSIDE4), IpAddr::V4(HOST4)), (OUTSIDE6.into(), HOST6.into())] {
        let (listen, to) = (SocketAddr::new(any(ip), 53), SocketAddr::new(ip, 53));
        assert_eq!(server.ask(0, &world.outside, listen, to).map(|from| from.ip()), Some(seen));
    }
    // It has nothing else to say outside, whatever became of it.
    for ip in [IpAddr::V4(OUTSIDE4), OUTSIDE6.into()] {
        let (listen, to) = (SocketAddr::new(any(ip), 80), SocketAddr::new(ip, 80));
        assert_eq!(server.connect(&world.outside, listen, to), None, "{to}");
        assert_eq!(server.ask(0, &world.outside, listen, to), None, "udp {to}");
        assert!(!server.ping(ip), "ping {ip}");
    }
    // A resolver on the host, but nothing else there.
    for ip in [IpAddr::V4(HOST4), IpAddr::V6(HOST6)] {
        for (port, expected) in [(53, true), (54, false)] {
            let to = SocketAddr::new(ip, port);
            assert_eq!(server.ask(0, &world.host, to, to).is_some(), expected, "udp {to}");
            assert_eq!(server.connect(&world.host, to, to).is_some(), expected, "tcp {to}");
        }
    }
    // It may answer DHCP, and it alone.
    let packets = server.packets("eth0", 3);
    let client = &world.containers[2];
    let watch = client.space.packets("eth0", 3);
    let answer = udp(SERVER4.into(), client.ip4().into(), (67, 68));
    let packet = ip4(SERVER4, client.ip4(), UDP, &answer);
    let frame = ethernet(client.mac(), crate::world::SERVER_MAC, 0x0800, &packet);
    packets.send(&frame);
    assert!(watch.sees(ARRIVAL, |seen| same(seen, &frame)), "an answer of the name server's");
    let forged =
        ethernet(client.mac(), crate::world::SERVER_MAC, 0x0800, &ip4(GATEWAY4, client.ip4(), UDP, &answer));
    packets.send(&forged);
    assert!(!watch.sees(ABSENCE, |seen| same(seen, &forged)), "an answer in the gateway's name");
}

fn outside(called: bool) {
    let world = World::new(Kind::Walled, called);
    for container in &world.containers {
        for (ip, seen) in [(IpAddr::V4(OUTSIDE4), IpAddr::V4(HOST4)), (OUTSIDE6.into(), HOST6.into())] {
            let (listen, to) = (SocketAddr::new(any(ip), 80), SocketAddr::new(ip, 80));
            assert_eq!(container.space.connect(&world.outside, listen, to), Some(seen), "tcp to {to}");
            let asked = container.space.ask(0, &world.outside, listen, to);
            assert_eq!(asked.map(|from| from.ip()), Some(seen), "udp to {to}");
            assert!(container.space.ping(ip), "ping to {ip}");
        }
    }
}

fn low_ports(called: bool) {
    let world = World::new(Kind::Walled, called);
    for ip in [IpAddr::V4(OUTSIDE4), IpAddr::V6(OUTSIDE6)] {
        for port in [1, 700, 1023] {
            let (listen, to) = (SocketAddr::new(any(ip), 2049), SocketAddr::new(ip, 2049));
            let seen = world.containers[0].space.ask(port, &world.outside, listen, to).unwrap();
            assert!(seen.port() >= 1024, "port {port} left as {seen}");
        }
        let (listen, to) = (SocketAddr::new(any(ip), 2049), SocketAddr::new(ip, 2049));
        let seen = world.containers[0].space.ask(7000, &world.outside, listen, to).unwrap();
        assert_eq!(seen.port(), 7000, "another port stays as it is");
        let seen = tcp_from(&world, 700, ip);
        assert!(seen.port() >= 1024, "port 700 left as {seen}");
    }
}

/// What the outside sees of a TCP connection from port `port` of the first container.
fn tcp_from(world: &World, port: u16, ip: IpAddr) -> SocketAddr {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let listener = world.outside.enter(|| std::net::TcpListener::bind((any(ip), 2050))).unwrap();
    let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    world.containers[0].space.enter(|| {
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, &SocketAddr::new(any(ip), port)).unwrap();
        connect(&socket, &SocketAddr::new(ip, 2050)).unwrap();
    });
    listener.accept().unwrap().1
}

fn inside(called: bool) {
    for kind in [Kind::Open, Kind::Walled] {
        let world = World::new(kind, called);
        world.outside.run(&format!("ip route add 10.77.0.0/22 via {HOST4}"));
        world.outside.run(&format!("ip route add fd77::/64 via {HOST6}"));
        for ip in world.containers[0].ips() {
            let reached = reaches(&world.outside, &world.containers[0].space, ip, 80);
            assert_eq!(reached, kind == Kind::Open, "outside to {ip}");
            assert_eq!(world.outside.ping(ip), kind == Kind::Open, "outside pings {ip}");
        }
    }
}

fn port(address: Option<IpAddr>, host: u16, container: u16, transport: Transport) -> PublishedPort {
    PublishedPort { address, host, container, transport }
}

/// TCP 80 to 8080 and UDP 53 to 5353, on all addresses.
fn usual() -> [PublishedPort; 2] {
    [port(None, 80, 8080, Transport::Tcp), port(None, 53, 5353, Transport::Udp)]
}

fn published(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.publish(0, &usual());
    let container = &world.containers[0].space;
    for (ip, client) in [(IpAddr::V4(HOST4), IpAddr::V4(OUTSIDE4)), (HOST6.into(), OUTSIDE6.into())] {
        let seen = world.outside.connect(container, SocketAddr::new(any(ip), 8080), SocketAddr::new(ip, 80));
        assert_eq!(seen, Some(client), "tcp to {ip}");
        let seen = world.outside.ask(0, container, SocketAddr::new(any(ip), 5353), SocketAddr::new(ip, 53));
        assert_eq!(seen.map(|from| from.ip()), Some(client), "udp to {ip}");
        let seen = world.outside.connect(container, SocketAddr::new(any(ip), 8080), SocketAddr::new(ip, 81));
        assert_eq!(seen, None, "another port of {ip}");
    }
    world.publish(0, &[]);
    let container = &world.containers[0].space;
    let ip = IpAddr::V4(HOST4);
    let seen = world.outside.connect(container, SocketAddr::new(any(ip), 8080), SocketAddr::new(ip, 80));
    assert_eq!(seen, None, "not published any more");
}

fn hairpin(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.publish(0, &usual());
    let server = &world.containers[0].space;
    let gateway = |ip: IpAddr| if ip.is_ipv4() { IpAddr::V4(GATEWAY4) } else { GATEWAY6.into() };
    let addresses: [IpAddr; 4] = [GATEWAY4.into(), GATEWAY6.into(), HOST4.into(), HOST6.into()];
    for ip in addresses {
        let (tcp, udp) = (SocketAddr::new(ip, 80), SocketAddr::new(ip, 53));
        let (listen_tcp, listen_udp) = (SocketAddr::new(any(ip), 8080), SocketAddr::new(any(ip), 5353));
        for (number, client) in world.containers.iter().enumerate() {
            // It can't listen for itself and ask itself by the same helper, but it can ask itself.
            let seen = client.space.connect(server, listen_tcp, tcp);
            assert_eq!(seen, Some(gateway(ip)), "container {number} at {tcp}");
            let seen = client.space.ask(0, server, listen_udp, udp);
            assert_eq!(seen.map(|from| from.ip()), Some(gateway(ip)), "container {number} at udp {udp}");
        }
        let seen = world.host.connect(server, listen_tcp, tcp);
        assert_eq!(seen, Some(gateway(ip)), "host at {tcp}");
        let seen = world.host.ask(0, server, listen_udp, udp);
        assert_eq!(seen.map(|from| from.ip()), Some(gateway(ip)), "host at udp {udp}");
    }
    for local in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 1, 2, 3)] {
        let to = SocketAddr::new(local.into(), 80);
        let seen = world.host.connect(server, SocketAddr::new(ANY4, 8080), to);
        assert_eq!(seen, Some(GATEWAY4.into()), "host's loopback at {to}");
    }
    // That a port is published opens that port, and no other way between the accounts.
    for ip in world.containers[0].ips() {
        assert!(!reaches(&world.containers[2].space, server, ip, 8080), "straight to {ip}");
    }
}

fn one_address(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    let ports = [
        port(Some(HOST4.into()), 80, 8080, Transport::Tcp),
        port(Some(HOST6.into()), 80, 8080, Transport::Tcp),
        port(Some(Ipv4Addr::LOCALHOST.into()), 81, 8080, Transport::Tcp),
    ];
    world.publish(0, &ports);
    // The same number, elsewhere.
    world.publish(2, &[port(Some(GATEWAY4.into()), 80, 9090, Transport::Tcp)]);
    let (one, other) = (&world.containers[0].space, &world.containers[2].space);
    for ip in [IpAddr::V4(HOST4), IpAddr::V6(HOST6)] {
        let listen = SocketAddr::new(any(ip), 8080);
        assert!(world.outside.connect(one, listen, SocketAddr::new(ip, 80)).is_some(), "{ip}");
        assert_eq!(
            world.outside.connect(one, listen, SocketAddr::new(ip, 81)),
            None,
            "loopback's from outside"
        );
    }
    let listen = SocketAddr::new(ANY4, 9090);
    let to = SocketAddr::new(GATEWAY4.into(), 80);
    assert!(world.containers[1].space.connect(other, listen, to).is_some());
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 81);
    assert!(world.host.connect(one, SocketAddr::new(ANY4, 8080), to).is_some(), "loopback's from the host");
}

/// As if the kernel had let the port be held, as it does for any address where `ip_nonlocal_bind` is set.
fn no_address_of_others(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    for (number, ip) in [(0, IpAddr::V4(OUTSIDE4)), (1, OUTSIDE6.into())] {
        world.publish(number, &[port(Some(ip), 7000, 8080, Transport::Tcp)]);
        let (listen, to) = (SocketAddr::new(any(ip), 7000), SocketAddr::new(ip, 7000));
        assert!(world.host.connect(&world.outside, listen, to).is_some(), "the host's own to {ip}");
        assert!(
            world.containers[2].space.connect(&world.outside, listen, to).is_some(),
            "through it to {ip}"
        );
    }
}

fn shadow(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.publish(0, &[port(None, 5000, 6000, Transport::Udp), port(None, 5001, 6001, Transport::Tcp)]);
    for ip in [IpAddr::V4(OUTSIDE4), IpAddr::V6(OUTSIDE6)] {
        let (listen, to) = (SocketAddr::new(any(ip), 7000), SocketAddr::new(ip, 7000));
        let taken = world.containers[2].space.ask(5000, &world.outside, listen, to).unwrap();
        assert_ne!(taken.port(), 5000, "another account's container sent from the port");
        let own = world.containers[0].space.ask(5000, &world.outside, listen, to).unwrap();
        assert_eq!(own.port(), 5000, "its own container may");
        let other = world.containers[0].space.ask(5002, &world.outside, listen, to).unwrap();
        assert_eq!(other.port(), 5002, "a port that nobody published");
        assert_ne!(tcp_from(&world, 5000, ip).port(), 0);
    }
}

fn loopback(called: bool) {
    let mut world = World::new(Kind::Walled, called);
    world.publish(0, &usual());
    let container = &world.containers[2];
    container.space.set("ipv4/conf/eth0/route_localnet", "1");
    container.space.run("ip addr del 127.0.0.1/8 dev lo");
    container.space.run(&format!("ip route add 127.0.0.0/8 via {GATEWAY4}"));
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 631);
    assert_eq!(container.space.connect(&world.host, to, to), None, "a service on the host's loopback");
    // Frame by frame too, past what the container's kernel would send; the host would answer with a port unreachable.
    let lo = world.host.packets("lo", 3);
    let socket = world.host.enter(|| std::net::UdpSocket::bind("127.0.0.1:632")).unwrap();
    socket.set_read_timeout(Some(ABSENCE)).unwrap();
    for source in [container.ip4(), Ipv4Addr::LOCALHOST] {
        let packet = ip4(
            source,
            Ipv4Addr::LOCALHOST,
            UDP,
            &udp(source.into(), Ipv4Addr::LOCALHOST.into(), (5000, 632)),
        );
        container.wire.send(&ethernet(GATEWAY_MAC, container.mac(), 0x0800, &packet));
    }
    assert!(socket.recv(&mut [0; 32]).is_err(), "a datagram reached the host's loopback");
    assert!(!lo.sees(ABSENCE, |_| true), "something happened on the host's loopback");
    // The second line, without the first: the wall is taken away, the other tables stay.
    world.host.run("nft delete table netdev cgrant-test");
    world.host.run("nft delete table bridge cgrant-test");
    let container = &world.containers[2];
    for source in [container.ip4(), Ipv4Addr::LOCALHOST] {
        let packet = ip4(
            source,
            Ipv4Addr::LOCALHOST,
            UDP,
            &udp(source.into(), Ipv4Addr::LOCALHOST.into(), (5000, 632)),
        );
        container.wire.send(&ethernet(GATEWAY_MAC, container.mac(), 0x0800, &packet));
    }
    assert!(socket.recv(&mut [0; 32]).is_err(), "a datagram reached the host's loopback by the second line");
    // Without any, it does: the attack is one.
    world.host.run("nft delete table inet cgrant-test");
    let container = &world.containers[2];
    let packet = ip4(
        container.ip4(),
        Ipv4Addr::LOCALHOST,
        UDP,
        &udp(container.ip4().into(), Ipv4Addr::LOCALHOST.into(), (5000, 632)),
    );
    container.wire.send(&ethernet(GATEWAY_MAC, container.mac(), 0x0800, &packet));
    assert!(socket.recv(&mut [0; 32]).is_ok(), "the attack was none");
}

fn guard(called: bool) {
    use cgrant_net::firewall::Guard;
    let mut world = World::new(Kind::Walled, called);
    // Another network of the host's, that it is no router for.
    let neighbour = Space::new();
    world.join(&neighbour, "up1");
    for (space, device, v4, v6) in [
        (&world.host, "up1", "203.0.113.1", "2001:db8:1::1"),
        (&neighbour, "eth0", "203.0.113.2", "2001:db8:1::2"),
    ] {
        space.run(&format!("ip addr add {v4}/24 dev {device}"));
        space.run(&format!("ip addr add {v6}/64 dev {device} nodad"));
    }
    neighbour.run("ip route add default via 203.0.113.1");
    neighbour.run("ip route add default via 2001:db8:1::1");
    world.outside.run(&format!("ip route add default via {HOST4}"));
    world.outside.run(&format!("ip route add default via {HOST6}"));
    let ips: [IpAddr; 2] = ["203.0.113.2".parse().unwrap(), "2001:db8:1::2".parse().unwrap()];
    for ip in ips {
        assert!(reaches(&world.outside, &neighbour, ip, 80), "without a guard the host routes to {ip}");
    }
    let names = vec!["up0".to_owned(), "up1".to_owned()];
    let guard = Guard { forwarding4: names.clone(), forwarding6: names };
    world.wall(|firewall, _| firewall.set_guard(guard).unwrap());
    for ip in ips {
        assert!(!reaches(&world.outside, &neighbour, ip, 80), "under guard the host routes to {ip}");
    }
    for ip in [IpAddr::V4(OUTSIDE4), IpAddr::V6(OUTSIDE6)] {
        assert!(reaches(&world.containers[0].space, &world.outside, ip, 80), "containers to {ip}");
    }
    world.publish(0, &usual());
    let to = SocketAddr::new(HOST4.into(), 80);
    assert!(world.outside.connect(&world.containers[0].space, SocketAddr::new(ANY4, 8080), to).is_some());
    assert!(world.wall(|firewall, _| firewall.is_intact().unwrap()));
    world.wall(|firewall, _| firewall.set_guard(Guard::default()).unwrap());
    for ip in ips {
        assert!(reaches(&world.outside, &neighbour, ip, 80), "without a guard again, to {ip}");
    }
}

fn foreign(called: bool) {
    let world = World::new(Kind::Foreign, called);
    let [one, friend, other] = [0, 1, 2].map(|number| &world.containers[number]);
    for ip in friend.ips() {
        assert!(reaches(&one.space, &friend.space, ip, 80), "same account at {ip}");
    }
    for ip in other.ips() {
        assert!(!reaches(&one.space, &other.space, ip, 80), "another account at {ip}");
    }
    // What else is on the bridge, here the name server's namespace, is what the link is for.
    for ip in [IpAddr::V4(SERVER4), IpAddr::V6(SERVER6)] {
        assert!(reaches(&one.space, &world.server, ip, 8080), "the administrator's network at {ip}");
    }
    for ip in one.ips() {
        assert!(reaches(&world.server, &one.space, ip, 8081), "from the administrator's network to {ip}");
        assert!(reaches(&world.host, &one.space, ip, 8082), "from the host to {ip}");
    }
    // The host's services stay the host's, but for what the administrator's network needs; others on it are not touched.
    for ip in [IpAddr::V4(GATEWAY4), IpAddr::V6(GATEWAY6)] {
        for (number, expected) in [(22, false), (53, true), (67, false)] {
            assert_eq!(reaches(&one.space, &world.host, ip, number), expected, "tcp {number} of {ip}");
        }
        let (listen, to) = (SocketAddr::new(any(ip), 67), SocketAddr::new(ip, 67));
        assert!(one.space.ask(0, &world.host, listen, to).is_some(), "udp 67 of {ip}");
        assert!(reaches(&world.server, &world.host, ip, 22), "the administrator's network to tcp 22 of {ip}");
    }
    // Not by way of the host either.
    through_gateway(&world, 0, 2);
    through_gateway(&world, 2, 0);
    for ip in other.ips() {
        assert!(!reaches(&one.space, &other.space, ip, 81), "routed to another account at {ip}");
    }
}
