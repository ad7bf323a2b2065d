//! Router advertisements, heard by the kernel of a container and by a raw socket that also says what it should not.
//!
//! Without libtest, which starts threads: every test runs in a child of its own, in network namespaces of its own. Needs root, and
//! says so by failing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use cgrant_net::advert::{Advert, AdvertError, ROUTER, Sender};
use cgrant_sys::{
    Clone3, Exit, NetnsFd,
    netlink::{NewVeth, Route, in_netns},
};
use cgrant_wire::link::Address;
use nix::sched::{CloneFlags, unshare};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, socket_with,
        sockopt,
    },
};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("a_kernel_takes_the_route_and_makes_no_address", a_kernel_takes_the_route_and_makes_no_address),
    ("who_asks_is_answered", who_asks_is_answered),
    ("what_is_no_solicitation_is_not_answered", what_is_no_solicitation_is_not_answered),
    ("a_flood_is_answered_seldom", a_flood_is_answered_seldom),
    ("what_cannot_be_advertised_is_told", what_cannot_be_advertised_is_told),
    ("a_bridge_that_is_deleted_is_no_failure", a_bridge_that_is_deleted_is_no_failure),
];

const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1);
const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 2);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MTU: u32 = 1380;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        // What a test runner reads; there is no ignored test to list.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        let child = Clone3::new().spawn(|| {
            test();
            0
        });
        let is_good = child.expect("cannot make a child").pidfd.wait().unwrap() == Exit::Code(0);
        println!("test {name} ... {}", if is_good { "ok" } else { "FAILED" });
        if is_good { passed += 1 } else { failed += 1 }
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    ExitCode::from(u8::from(failed != 0))
}

/// A host with a bridge, and a container on it.
struct Scene {
    route: Route,
    bridge: u32,
    container: NetnsFd,
    inside: Route,
    eth0: u32,
    sender: Sender,
}

impl Scene {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let container = NetnsFd::own().unwrap();
        // The container first: then this process is left in the host's.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let route = Route::open().unwrap();
        let bridge = route.add_bridge("cgrant0", "", [2, 0, 0, 0, 0, 1], 1500, false).unwrap();
        route.add_address(bridge, IpAddr::V6(GATEWAY), 64, true).unwrap();
        let veth = NewVeth {
            name: "cgv0",
            alias: "",
            mtu: 1500,
            queue_length: 0,
            master: Some(bridge),
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 0, 9],
            peer_netns: &container,
        };
        let port = route.add_veth(&veth).unwrap();
        route.set_up(bridge, true).unwrap();
        route.set_up(port, true).unwrap();
        let inside = Route::open_in(&container).unwrap();
        let eth0 = inside.link_by_name("eth0").unwrap().unwrap().index;
        Self { route, bridge, container, inside, eth0, sender: Sender::new() }
    }

    fn advert(&self) -> Advert<'static> {
        Advert {
            ifindex: self.bridge,
            network: Address { address: GATEWAY, prefix: 64 },
            mtu: MTU,
            dns: &[SERVER],
            domain: "cgrant",
        }
    }

    fn start(&mut self) {
        let advert = self.advert();
        self.sender.start(&self.route, &advert).unwrap();
    }

    /// Lets the sender do what it has to, until `is_done` or for some time. -> how often it had something to do, if it is done.
    fn serve(&mut self, limit: Duration, mut is_done: impl FnMut(&mut Self) -> bool) -> Option<u32> {
        let end = Instant::now() + limit;
        let mut turns = 0;
        loop {
            if is_done(self) {
                return Some(turns);
            }
            if Instant::now() >= end {
                return None;
            }
            let watched = self.sender.descriptors();
            let mut fds: Vec<_> =
                watched.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
            let ready: Vec<_> = watched
                .iter()
                .zip(&fds)
                .filter(|(_, state)| !state.revents().is_empty())
                .map(|(fd, _)| fd.as_raw_fd())
                .collect();
            for fd in ready {
                turns += 1;
                self.sender.ready(fd);
            }
        }
    }

    fn default_routes(&self) -> Vec<Option<IpAddr>> {
        let routes = self.inside.routes().unwrap();
        let is_default = |route: &&cgrant_sys::netlink::RouteState| {
            route.dst == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && route.prefix == 0
                && route.ifindex == Some(self.eth0)
        };
        routes.iter().filter(is_default).map(|route| route.gateway).collect()
    }

    /// A raw socket in the container, whose kernel neither asks nor believes anything itself.
    fn raw(&self) -> Raw {
        let socket = in_netns(&self.container, || {
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0")?;
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?)
        })
        .unwrap();
        self.inside.set_up(self.eth0, true).unwrap();
        sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
        let raw = Raw { socket, eth0: self.eth0 };
        // Until the device can send.
        let end = Instant::now() + Duration::from_secs(10);
        while !raw.try_send(ALL_ROUTERS, &[200; 8]) {
            assert!(Instant::now() < end, "the container's device does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        raw
    }
}

/// A raw ICMPv6 socket.
struct Raw {
    socket: OwnedFd,
    eth0: u32,
}

impl Raw {
    fn try_send(&self, to: Ipv6Addr, message: &[u8]) -> bool {
        let to = SocketAddrV6::new(to, 0, 0, self.eth0);
        sendto(&self.socket, message, SendFlags::empty(), &to) == Ok(message.len())
    }

    fn solicit(&self) {
        assert!(self.try_send(ALL_ROUTERS, &SOLICITATION));
    }

    /// The advertisements that came in.
    fn heard(&self) -> Vec<(Ipv6Addr, Vec<u8>)> {
        let mut list = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok((length, _, from)) = recvfrom(&self.socket, &mut buffer, RecvFlags::empty()) {
            let from = SocketAddrV6::try_from(from.unwrap()).unwrap();
            if buffer[0] == 134 {
                list.push((*from.ip(), buffer[..length].to_vec()));
            }
        }
        list
    }
}

const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];

fn a_kernel_takes_the_route_and_makes_no_address() {
    let mut scene = Scene::new();
    scene.start();
    // What the sender says now nobody hears: the container asks when it comes up.
    scene.inside.set_up(scene.eth0, true).unwrap();
    let limit = Duration::from_secs(15);
    scene.serve(limit, |scene| !scene.default_routes().is_empty()).expect("no default route");
    assert_eq!(scene.default_routes(), [Some(IpAddr::V6(ROUTER))]);
    let prefix: IpAddr = "fd00:1:2:3::".parse().unwrap();
    let is_on_link = |route: &cgrant_sys::netlink::RouteState| {
        (route.dst, route.prefix, route.gateway) == (prefix, 64, None)
    };
    assert!(scene.inside.routes().unwrap().iter().any(is_on_link));
    let mtu = in_netns(&scene.container, || std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu"));
    assert_eq!(mtu.unwrap().trim(), MTU.to_string());
    // An address would be there at once.
    scene.serve(Duration::from_secs(1), |_| false);
    let own: Vec<_> = scene.inside.addresses().unwrap();
    let own: Vec<_> = own.iter().filter(|address| address.ifindex == scene.eth0).collect();
    let is_link_local = |address: IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
    assert!(!own.is_empty() && own.iter().all(|address| is_link_local(address.address)), "{own:?}");
    // The end is told too.
    assert!(scene.sender.advertises(scene.bridge));
    scene.sender.stop(scene.bridge);
    assert!(!scene.sender.advertises(scene.bridge) && scene.sender.descriptors().is_empty());
    scene.serve(Duration::from_secs(5), |scene| scene.default_routes().is_empty()).expect("still a route");
}

fn who_asks_is_answered() {
    let mut scene = Scene::new();
    let raw = scene.raw();
    scene.start();
    scene.serve(Duration::from_secs(5), |_| !raw.heard().is_empty()).expect("the first one is not asked for");
    // Then nothing, for a while.
    assert_eq!(scene.serve(Duration::from_secs(1), |_| !raw.heard().is_empty()), None);
    for _ in 0..3 {
        raw.solicit();
        let mut answers = Vec::new();
        let asked = Instant::now();
        scene
            .serve(Duration::from_secs(5), |_| {
                answers.extend(raw.heard());
                !answers.is_empty()
            })
            .expect("no answer");
        assert!(asked.elapsed() < Duration::from_secs(1), "late");
        let (from, message) = &answers[0];
        assert_eq!(*from, ROUTER);
        assert_eq!(message[5], 0xc0, "managed, and other configuration");
        let contains = |bytes: &[u8]| message.windows(bytes.len()).any(|window| window == bytes);
        assert!(contains(&SERVER.octets()) && contains(b"\x06cgrant\0"));
        assert!(contains(&[1, 1, 2, 0, 0, 0, 0, 1]), "the bridge's address");
        assert!(contains(&[3, 4, 64, 0x80]), "on-link without the A flag");
    }
}

fn what_is_no_solicitation_is_not_answered() {
    let mut scene = Scene::new();
    let raw = scene.raw();
    scene.start();
    scene.serve(Duration::from_secs(5), |_| !raw.heard().is_empty()).expect("the first one");
    let with = |option: &[u8]| [&SOLICITATION[..], option].concat();
    for bad in [
        SOLICITATION[..7].to_vec(),
        vec![133, 1, 0, 0, 0, 0, 0, 0],
        vec![134, 0, 0, 0, 0, 0, 0, 0],
        with(&[1, 0, 0, 0, 0, 0, 0, 0]),
        with(&[1, 200, 0, 0, 0, 0, 0, 0]),
        with(&[1]),
        with(&[7; 1000]),
        with(&[0xff; 1232]),
    ] {
        raw.try_send(ALL_ROUTERS, &bad);
    }
    // From behind a router, it seems.
    sockopt::set_ipv6_multicast_hops(&raw.socket, 254).unwrap();
    raw.solicit();
    assert_eq!(scene.serve(Duration::from_millis(1500), |_| !raw.heard().is_empty()), None);
    sockopt::set_ipv6_multicast_hops(&raw.socket, 255).unwrap();
    raw.solicit();
    scene.serve(Duration::from_secs(5), |_| !raw.heard().is_empty()).expect("no answer to a good one");
}

fn a_flood_is_answered_seldom() {
    for flood in [&SOLICITATION[..], &[133, 9, 0, 0, 0, 0, 0, 0], &[133; 1000]] {
        let mut scene = Scene::new();
        let raw = scene.raw();
        scene.start();
        let (mut answers, mut sent) = (0, 0);
        let end = Instant::now() + Duration::from_secs(4);
        let turns = scene.serve(Duration::from_secs(30), |_| {
            for _ in 0..100 {
                sent += u32::from(raw.try_send(ALL_ROUTERS, flood));
            }
            answers += raw.heard().len();
            Instant::now() > end
        });
        // Eight at once, the first, and one each three seconds; and hardly more work than that.
        assert!((2..=11).contains(&answers), "{answers} answers to {sent}");
        assert!(turns.unwrap() <= 60, "{turns:?} turns for {sent}");
        assert!(sent > 1000, "{sent}");
        // Who asks after it is answered all the same.
        raw.heard();
        raw.solicit();
        scene.serve(Duration::from_secs(5), |_| !raw.heard().is_empty()).expect("no answer after a flood");
    }
}

fn what_cannot_be_advertised_is_told() {
    let mut scene = Scene::new();
    let advert = scene.advert();
    let nothing = Advert { ifindex: 4711, ..advert };
    assert!(matches!(scene.sender.start(&scene.route, &nothing), Err(AdvertError::NoBridge)));
    let odd = Advert { domain: "a..b", ..advert };
    assert!(matches!(scene.sender.start(&scene.route, &odd), Err(AdvertError::Domain(_))));
    assert!(scene.sender.descriptors().is_empty());
    scene.start();
    assert!(scene.sender.start(&scene.route, &odd).is_err());
    assert!(scene.sender.advertises(scene.bridge));
    // Said twice is said once.
    scene.start();
    assert_eq!(scene.sender.descriptors().len(), 2);
    let own = scene.route.addresses().unwrap();
    let is_router = |address: &&cgrant_sys::netlink::AddressState| address.address == IpAddr::V6(ROUTER);
    assert_eq!(own.iter().filter(is_router).count(), 1);
    // It is the only one that is not known beforehand to everybody.
    let is_link_local = |address: IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
    let count = own.iter().filter(|one| one.ifindex == scene.bridge && is_link_local(one.address)).count();
    assert_eq!(count, 1, "{own:?}");
}

fn a_bridge_that_is_deleted_is_no_failure() {
    let mut scene = Scene::new();
    let raw = scene.raw();
    scene.start();
    scene.route.delete_link(scene.bridge).unwrap();
    raw.try_send(ALL_ROUTERS, &SOLICITATION);
    let turns = scene.serve(Duration::from_secs(1), |_| false);
    assert_eq!(turns, None);
    scene.sender.stop(scene.bridge);
    scene.sender.stop(scene.bridge);
    assert!(scene.sender.descriptors().is_empty());
    // Nor one that is down and comes back.
    scene.bridge = scene.route.add_bridge("cgrant1", "", [2, 0, 0, 0, 0, 1], 1500, false).unwrap();
    scene.route.set_up(scene.bridge, true).unwrap();
    scene.start();
    let port = scene.route.link_by_name("cgv0").unwrap().unwrap().index;
    scene.route.set_master(port, Some(scene.bridge)).unwrap();
    raw.heard();
    // The bridge can send as soon as the kernel has noticed that a port of it is up; hosts ask more than once.
    let mut next = Instant::now();
    let is_answered = |_: &mut Scene| {
        if Instant::now() >= next {
            raw.solicit();
            next = Instant::now() + Duration::from_secs(1);
        }
        !raw.heard().is_empty()
    };
    scene.serve(Duration::from_secs(10), is_answered).expect("no answer on the new one");
}
