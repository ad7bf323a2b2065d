//! Network devices, addresses, routes and events, in network namespaces that are made for each test and end with it.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    process::Command,
};

use cgrant_sys::{
    NetnsFd,
    netlink::{
        Event, NewVeth, NftEvent, NftEvents, PortFlags, Route, RouteEvents, in_netns,
        nftables::{Chain, Hook, Match, Verdict, replace_table},
    },
    tap::open_tap,
};
use nix::sched::{CloneFlags, unshare};

use crate::{Test, errno, is_readable_soon};

pub const TESTS: &[Test] = &[
    ("links::a_veth_is_born_whole", a_veth_is_born_whole),
    ("links::a_veth_that_cannot_be_leaves_nothing", a_veth_that_cannot_be_leaves_nothing),
    ("links::the_kernel_says_why", the_kernel_says_why),
    ("links::a_bridge_has_what_it_was_given", a_bridge_has_what_it_was_given),
    ("links::a_full_bridge_takes_no_more", a_full_bridge_takes_no_more),
    ("links::a_port_is_set_and_read", a_port_is_set_and_read),
    ("links::an_address_stays_behind_its_port", an_address_stays_behind_its_port),
    ("links::vlans_are_where_the_kernel_has_them", vlans_are_where_the_kernel_has_them),
    ("links::devices_can_be_changed", devices_can_be_changed),
    ("links::what_is_gone_is_no_error", what_is_gone_is_no_error),
    ("links::a_thousand_devices_are_listed", a_thousand_devices_are_listed),
    ("links::addresses_and_routes_lead_somewhere", addresses_and_routes_lead_somewhere),
    ("links::a_device_sends_no_faster_than_it_may", a_device_sends_no_faster_than_it_may),
    ("links::a_socket_stays_in_its_namespace", a_socket_stays_in_its_namespace),
    ("links::nobody_answers_in_the_kernels_place", nobody_answers_in_the_kernels_place),
    ("links::what_changes_is_told", what_changes_is_told),
    ("links::what_could_not_be_told_is_told", what_could_not_be_told_is_told),
    ("links::changes_to_nftables_are_told", changes_to_nftables_are_told),
    ("links::a_table_of_rules_is_put_in_place_whole", a_table_of_rules_is_put_in_place_whole),
    ("links::a_tap_lives_as_long_as_its_descriptor", a_tap_lives_as_long_as_its_descriptor),
    ("links::who_has_a_tap_may_change_it", who_has_a_tap_may_change_it),
];

const MAC: [u8; 6] = [0x02, 1, 2, 3, 4, 5];
const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1));

/// Moves this process into a network namespace of its own.
fn isolate() -> Route {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    Route::open().unwrap()
}

/// A network namespace besides, with nobody in it.
fn another() -> NetnsFd {
    let own = NetnsFd::own().unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let made = NetnsFd::own().unwrap();
    own.enter().unwrap();
    made
}

fn veth<'a>(name: &'a str, far: &'a NetnsFd) -> NewVeth<'a> {
    NewVeth {
        name,
        alias: "cgrant test 0 eth0",
        mtu: 1400,
        queue_length: 77,
        master: None,
        peer_name: "eth0",
        peer_mac: MAC,
        peer_netns: far,
    }
}

fn names(route: &Route) -> Vec<String> {
    let mut names: Vec<String> = route.links().unwrap().into_iter().map(|link| link.name).collect();
    names.sort();
    names
}

/// A program's output; it has to succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Sets both ends of a veth up and waits until they carry: the kernel lets devices run, and gives them addresses of
/// their own, some time after they are up.
fn carry(route: &Route, index: u32, far: &NetnsFd, end: u32) {
    let there = Route::open_in(far).unwrap();
    let mut near_events = RouteEvents::open().unwrap();
    let mut far_events = in_netns(far, RouteEvents::open).unwrap();
    route.set_up(index, true).unwrap();
    there.set_up(end, true).unwrap();
    next(&mut near_events, |_| operates(index));
    next(&mut far_events, |_| in_netns(far, || Ok(operates(end))).unwrap());
    assert!(route.link(index).unwrap().unwrap().running && there.link(end).unwrap().unwrap().running);
}

/// Has the kernel seen the device's carrier? One that it has not looked at yet runs too, in an unknown state.
fn operates(index: u32) -> bool {
    let start = format!("{index}: ");
    run("ip", &["-o", "link"]).lines().any(|line| line.starts_with(&start) && line.contains(" state UP "))
}

fn a_veth_is_born_whole() {
    let route = isolate();
    let far = another();
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    let index = route.add_veth(&NewVeth { master: Some(bridge), ..veth("cgv0", &far) }).unwrap();
    let near = route.link(index).unwrap().unwrap();
    assert_eq!(near.name, "cgv0");
    assert_eq!(near.alias.as_deref(), Some("cgrant test 0 eth0"));
    assert_eq!(near.kind.as_deref(), Some("veth"));
    assert_eq!((near.mtu, near.queue_length, near.up), (1400, 77, false));
    assert_eq!(near.mac, Some([0xfe, 1, 2, 3, 4, 5]));
    assert_eq!(near.master, Some(bridge));
    assert_eq!(near.port, Some(PortFlags::default()));
    let there = Route::open_in(&far).unwrap();
    assert_eq!(names(&there), ["eth0", "lo"]);
    let end = there.link_by_name("eth0").unwrap().unwrap();
    assert_eq!((end.mac, end.mtu, end.queue_length, end.up), (Some(MAC), 1400, 77, false));
    assert_eq!((end.alias, end.master), (None, None));
    assert_eq!((near.peer_index, end.peer_index), (Some(end.index), Some(index)));
    assert_eq!(route.ports(bridge).unwrap(), std::slice::from_ref(&near));
    // Up, it has no address of its own: it is only a port.
    route.set_up(bridge, true).unwrap();
    carry(&route, index, &far, end.index);
    assert!(route.addresses().unwrap().iter().all(|address| address.ifindex != index));
    assert!(there.addresses().unwrap().iter().any(|address| address.ifindex == end.index));
    // Too small for IPv6, of which the kernel then knows nothing there.
    let small = NewVeth { mtu: 600, peer_name: "eth1", ..veth("cgv1", &far) };
    let small = route.link(route.add_veth(&small).unwrap()).unwrap().unwrap();
    assert_eq!((small.mtu, small.alias), (600, near.alias.clone()));
    // One end takes the other along.
    there.delete_link(end.index).unwrap();
    assert_eq!(route.link(index).unwrap(), None);
}

fn a_veth_that_cannot_be_leaves_nothing() {
    let route = isolate();
    let far = another();
    let there = Route::open_in(&far).unwrap();
    route.add_veth(&veth("cgv0", &far)).unwrap();
    let refused = |veth: &NewVeth<'_>| route.add_veth(veth).unwrap_err().errno();
    assert_eq!(refused(&NewVeth { peer_name: "eth1", ..veth("cgv0", &far) }), Some(libc::EEXIST));
    assert_eq!(refused(&veth("cgv1", &far)), Some(libc::EEXIST));
    let unknown = NewVeth { peer_name: "eth1", master: Some(4711), ..veth("cgv1", &far) };
    assert_eq!(refused(&unknown), Some(libc::EINVAL));
    let huge = NewVeth { peer_name: "eth1", mtu: 70_000, ..veth("cgv1", &far) };
    assert_eq!(refused(&huge), Some(libc::EINVAL));
    for (name, peer_name, alias) in
        [("", "eth1", ""), ("cgv1", "a/b", ""), ("cgv1", "eth%d", ""), ("cgv1", "eth1", "\0")]
    {
        let error = route.add_veth(&NewVeth { peer_name, alias, ..veth(name, &far) }).unwrap_err();
        assert_eq!(error.errno(), None, "{error}");
    }
    assert_eq!(names(&route), ["cgv0", "lo"]);
    assert_eq!(names(&there), ["eth0", "lo"]);
}

fn the_kernel_says_why() {
    let route = isolate();
    let far = another();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    let text = route.set_mtu(index, 10).unwrap_err().to_string();
    assert!(text.contains("mtu less than device minimum"), "{text}");
    let text = route.add_route(index, V4, 24, None).unwrap_err().to_string();
    assert!(text.contains("os error"), "{text}");
    // Of one socket, after errors.
    assert_eq!(route.link(index).unwrap().unwrap().mtu, 1400);
    let error = route.set_up(0, true).unwrap_err();
    assert_eq!(error.errno(), None, "{error}");
    assert!(route.set_up(4711, true).unwrap_err().is_absent());
}

fn a_bridge_has_what_it_was_given() {
    let route = isolate();
    let index = route.add_bridge("cgrant0", "cgrant test", MAC, 9000, false).unwrap();
    let bridge = route.link_by_name("cgrant0").unwrap().unwrap();
    assert_eq!(bridge.index, index);
    assert_eq!((bridge.mac, bridge.mtu, bridge.up), (Some(MAC), 9000, false));
    assert_eq!((bridge.alias.as_deref(), bridge.kind.as_deref()), (Some("cgrant test"), Some("bridge")));
    let details = run("ip", &["-d", "-j", "link", "show", "dev", "cgrant0"]);
    assert!(details.contains(r#""stp_state":0"#) && details.contains(r#""forward_delay":0"#), "{details}");
    assert!(details.contains(r#""mcast_snooping":0"#), "{details}");
    assert!(route.add_bridge("cgrant0", "", MAC, 1500, false).unwrap_err().is(libc::EEXIST));
    assert_eq!(route.ports(index).unwrap(), []);
}

/// Which number a bridge refuses the 1,024th port with.
fn a_full_bridge_takes_no_more() {
    let route = isolate();
    let far = another();
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    let make = |number: u32| {
        let (name, peer_name) = (format!("cgv{number}"), format!("eth{number}"));
        let made = NewVeth { master: Some(bridge), peer_name: &peer_name, ..veth(&name, &far) };
        route.add_veth(&made)
    };
    for number in 0..1023 {
        make(number).unwrap();
    }
    let error = make(1023).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EXFULL), "{error}");
    assert_eq!(route.ports(bridge).unwrap().len(), 1023);
    assert_eq!(route.link_by_name("cgv1023").unwrap(), None);
    route.delete_link(bridge).unwrap();
    assert_eq!(route.links().unwrap().len(), 1024);
}

fn a_port_is_set_and_read() {
    let route = isolate();
    let far = another();
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    assert!(route.set_port(index, &PortFlags::default()).is_err(), "no port yet");
    route.set_master(index, Some(bridge)).unwrap();
    let port = || route.link(index).unwrap().unwrap().port.unwrap();
    let all = [
        PortFlags { learning: false, ..PortFlags::default() },
        PortFlags { hairpin: true, ..PortFlags::default() },
        PortFlags { isolated: true, ..PortFlags::default() },
        PortFlags { neigh_suppress: true, ..PortFlags::default() },
        PortFlags { unicast_flood: false, ..PortFlags::default() },
        PortFlags { multicast_flood: false, ..PortFlags::default() },
        PortFlags { broadcast_flood: false, ..PortFlags::default() },
    ];
    for flags in all {
        route.set_port(index, &flags).unwrap();
        assert_eq!(port(), flags);
    }
    route.set_master(index, None).unwrap();
    let link = route.link(index).unwrap().unwrap();
    assert_eq!((link.master, link.port), (None, None));
}

fn an_address_stays_behind_its_port() {
    let route = isolate();
    let far = another();
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    let one = route.add_veth(&NewVeth { master: Some(bridge), ..veth("cgv0", &far) }).unwrap();
    let other =
        route.add_veth(&NewVeth { master: Some(bridge), peer_name: "eth1", ..veth("cgv1", &far) }).unwrap();
    assert!(route.add_fdb(bridge, MAC, None).is_err(), "the bridge itself is no port");
    route.add_fdb(one, MAC, None).unwrap();
    let entry = || {
        let list = run("bridge", &["fdb", "show", "br", "br"]);
        let line = list.lines().find(|line| line.starts_with("02:01:02:03:04:05")).map(str::to_owned);
        line.unwrap_or_default()
    };
    assert!(
        entry().contains("dev cgv0") && entry().contains("sticky") && entry().contains("static"),
        "{}",
        entry()
    );
    // Somebody else sends from that address through a port that learns.
    let there = Route::open_in(&far).unwrap();
    route.set_up(bridge, true).unwrap();
    let thief = there.link_by_name("eth1").unwrap().unwrap();
    assert_eq!(thief.mac, Some(MAC));
    carry(&route, other, &far, thief.index);
    carry(&route, one, &far, there.link_by_name("eth0").unwrap().unwrap().index);
    there.add_address(thief.index, V4, 24, false).unwrap();
    in_netns(&far, || {
        let socket = std::net::UdpSocket::bind((V4, 0))?;
        socket.set_broadcast(true)?;
        socket.send_to(b"mine", "192.0.2.255:9").map(|_| ())
    })
    .unwrap();
    assert!(entry().contains("dev cgv0"), "{}", entry());
    // Said again it may be elsewhere; and gone is gone.
    route.add_fdb(other, MAC, None).unwrap();
    assert!(entry().contains("dev cgv1"), "{}", entry());
    assert!(route.remove_fdb(other, MAC, None).unwrap());
    assert!(!route.remove_fdb(other, MAC, None).unwrap());
    assert!(!entry().contains("static"), "{}", entry());
}

/// The kernels of some test machines have no VLANs on bridges: those have to say so.
fn vlans_are_where_the_kernel_has_them() {
    let route = isolate();
    let far = another();
    let other = ["link", "add", "other", "type", "bridge", "vlan_filtering", "1"];
    let has_vlans = Command::new("ip").args(other).output().unwrap().status.success();
    let bridge = match route.add_bridge("br", "", [2; 6], 1500, true) {
        Ok(bridge) => bridge,
        Err(error) => {
            assert!(error.is(libc::EOPNOTSUPP) && !has_vlans, "{error}");
            return;
        }
    };
    let index = route.add_veth(&NewVeth { master: Some(bridge), ..veth("cgv0", &far) }).unwrap();
    match route.add_vlan(index, 12, true) {
        Err(error) => assert!(error.is(libc::EOPNOTSUPP) && route.vlans().unwrap().is_empty(), "{error}"),
        Ok(()) => {
            route.remove_vlan(index, 1).unwrap();
            route.remove_vlan(index, 1).unwrap();
            route.add_vlan(index, 13, false).unwrap();
            let mut vlans = route.vlans().unwrap();
            vlans.retain(|vlan| vlan.ifindex == index);
            let listed: Vec<_> = vlans.iter().map(|vlan| (vlan.vid, vlan.pvid, vlan.untagged)).collect();
            assert_eq!(listed, [(12, true, true), (13, false, false)]);
            assert!(route.add_vlan(index, 4095, false).is_err());
        }
    }
}

fn devices_can_be_changed() {
    let route = isolate();
    let far = another();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    route.set_name(index, "renamed").unwrap();
    route.set_alias(index, "another").unwrap();
    route.set_mtu(index, 1300).unwrap();
    route.set_mac(index, [2, 9, 9, 9, 9, 9]).unwrap();
    route.set_queue_length(index, 5).unwrap();
    let link = route.link_by_name("renamed").unwrap().unwrap();
    assert_eq!((link.index, link.alias.as_deref()), (index, Some("another")));
    assert_eq!((link.mtu, link.queue_length, link.mac), (1300, 5, Some([2, 9, 9, 9, 9, 9])));
    assert_eq!(route.link_by_name("cgv0").unwrap(), None);
    assert!(route.set_name(index, "lo").unwrap_err().is(libc::EEXIST));
    for up in [true, false] {
        route.set_up(index, up).unwrap();
        assert_eq!(route.link(index).unwrap().unwrap().up, up);
    }
    route.set_alias(index, "").unwrap();
    assert_eq!(route.link(index).unwrap().unwrap().alias, None);
    let there = Route::open_in(&far).unwrap();
    let end = there.link_by_name("eth0").unwrap().unwrap().index;
    there.set_without_link_local(end).unwrap();
    carry(&route, index, &far, end);
    assert!(there.addresses().unwrap().iter().all(|address| address.ifindex != end));
}

fn what_is_gone_is_no_error() {
    let route = isolate();
    let far = another();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    assert!(route.delete_link(index).unwrap());
    assert!(!route.delete_link(index).unwrap());
    assert_eq!(route.link(index).unwrap(), None);
    assert_eq!(route.link(0).unwrap(), None);
    assert_eq!(route.link_by_name("cgv0").unwrap(), None);
    assert!(!route.remove_address(index, V4, 24).unwrap());
    assert!(!route.remove_route(index, V4, 32, None).unwrap());
    assert!(!route.remove_qdisc(index).unwrap());
}

fn a_thousand_devices_are_listed() {
    let route = isolate();
    let far = another();
    for number in 0..500 {
        let (name, peer_name) = (format!("cgv{number}"), format!("eth{number}"));
        route.add_veth(&NewVeth { peer_name: &peer_name, peer_netns: &far, ..veth(&name, &far) }).unwrap();
    }
    let links = route.links().unwrap();
    assert_eq!(links.len(), 501);
    assert_eq!(links.iter().filter(|link| link.alias.as_deref() == Some("cgrant test 0 eth0")).count(), 500);
    for link in links.iter().filter(|link| link.kind.is_some()) {
        route.delete_link(link.index).unwrap();
    }
    assert_eq!(names(&route), ["lo"]);
    assert_eq!(names(&Route::open_in(&far).unwrap()), ["lo"]);
}

fn addresses_and_routes_lead_somewhere() {
    let route = isolate();
    let far = another();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    let there = Route::open_in(&far).unwrap();
    let end = there.link_by_name("eth0").unwrap().unwrap().index;
    route.add_address(index, V4, 24, true).unwrap();
    route.add_address(index, V6, 64, true).unwrap();
    assert!(route.add_address(index, V4, 24, true).unwrap_err().is(libc::EEXIST));
    let gateways: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "fd00:1:2:3::1".parse().unwrap()];
    let own: [IpAddr; 2] = ["192.0.2.9".parse().unwrap(), "fd00:1:2:3::9".parse().unwrap()];
    there.add_address(end, own[0], 24, true).unwrap();
    there.add_address(end, own[1], 64, true).unwrap();
    route.set_up(index, true).unwrap();
    there.set_up(end, true).unwrap();
    for gateway in gateways {
        there.add_default_route(end, gateway).unwrap();
        assert!(there.add_default_route(end, gateway).unwrap_err().is(libc::EEXIST));
    }
    let addresses = there.addresses().unwrap();
    for (address, prefix) in [(own[0], 24), (own[1], 64)] {
        let state = addresses.iter().find(|state| state.address == address).unwrap();
        assert_eq!((state.ifindex, state.prefix, state.peer), (end, prefix, None));
        assert!(state.permanent && !state.tentative && !state.duplicate);
    }
    let routes = there.routes().unwrap();
    for gateway in gateways {
        let default = routes.iter().find(|route| route.gateway == Some(gateway)).unwrap();
        assert_eq!((default.prefix, default.ifindex, default.table), (0, Some(end), 254));
        assert!(default.dst.is_unspecified());
    }
    assert!(
        routes.iter().any(|route| route.dst == "192.0.2.0".parse::<IpAddr>().unwrap() && route.prefix == 24)
    );
    assert!(
        routes
            .iter()
            .any(|route| route.dst == "fd00:1:2:3::".parse::<IpAddr>().unwrap() && route.prefix == 64)
    );
    // Own addresses and groups are left out.
    assert!(
        routes.iter().all(|route| route.dst != own[0] && route.dst != own[1] && !route.dst.is_multicast())
    );
    in_netns(&far, || {
        for gateway in gateways {
            std::net::UdpSocket::bind(if gateway.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?
                .send_to(b"hello", (gateway, 9))?;
        }
        Ok(())
    })
    .unwrap();
    assert!(there.remove_route(end, Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateways[0])).unwrap());
    assert!(there.remove_address(end, own[1], 64).unwrap());
    assert!(there.routes().unwrap().iter().all(|route| route.gateway != Some(gateways[0])));
    route.add_route(index, "198.51.100.0".parse().unwrap(), 24, None).unwrap();
    assert!(route.routes().unwrap().iter().any(|route| route.dst.to_string() == "198.51.100.0"));
}

fn a_device_sends_no_faster_than_it_may() {
    let route = isolate();
    let far = another();
    let index = route.add_veth(&veth("cgv0", &far)).unwrap();
    assert!(route.qdiscs().unwrap().iter().all(|qdisc| qdisc.kind != "tbf"));
    assert!(route.add_tbf(index, 0, 10_000, 10_000).is_err());
    for rate in [125_000, 12_500_000_000] {
        route.add_tbf(index, rate, 20_000, 100_000).unwrap();
        let qdiscs = route.qdiscs().unwrap();
        let limit: Vec<_> = qdiscs.iter().filter(|qdisc| qdisc.kind == "tbf").collect();
        assert_eq!(limit.len(), 1);
        assert_eq!((limit[0].ifindex, limit[0].parent, limit[0].rate), (index, u32::MAX, Some(rate)));
    }
    route.add_tbf(index, 5_000, 2_000, 10_000).unwrap();
    route.add_address(index, V4, 24, true).unwrap();
    let there = Route::open_in(&far).unwrap();
    let end = there.link_by_name("eth0").unwrap().unwrap().index;
    let receiver: IpAddr = "192.0.2.9".parse().unwrap();
    there.add_address(end, receiver, 24, true).unwrap();
    carry(&route, index, &far, end);
    let received = in_netns(&far, || std::net::UdpSocket::bind((receiver, 7000))).unwrap();
    let sender = std::net::UdpSocket::bind((V4, 0)).unwrap();
    // Of 100 kB at once the limit keeps 10 kB, and 2 kB go at once; five more go in each second that this takes.
    for _ in 0..100 {
        let _ = sender.send_to(&[0; 1000], (receiver, 7000));
    }
    assert!(is_readable_soon(&received));
    received.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    let count = std::iter::from_fn(|| received.recv(&mut [0; 2000]).ok()).count();
    assert!((1..40).contains(&count), "{count}");
    assert!(route.remove_qdisc(index).unwrap());
    assert!(route.qdiscs().unwrap().iter().all(|qdisc| qdisc.kind != "tbf"));
}

fn a_socket_stays_in_its_namespace() {
    let route = isolate();
    let own = NetnsFd::own().unwrap().id().unwrap();
    let far = another();
    let there = Route::open_in(&far).unwrap();
    assert_eq!(NetnsFd::own().unwrap().id().unwrap(), own);
    there.add_bridge("there", "", MAC, 1500, false).unwrap();
    route.add_bridge("here", "", MAC, 1500, false).unwrap();
    assert_eq!(
        (names(&route), names(&there)),
        (vec!["here".to_owned(), "lo".to_owned()], vec!["lo".to_owned(), "there".to_owned()])
    );
    // Neither an error nor a panic keeps us there.
    let failed = in_netns(&far, || Err::<(), _>(rustix::io::Errno::XFULL.into()));
    assert_eq!(errno(failed), libc::EXFULL);
    let panicked =
        std::panic::catch_unwind(|| in_netns::<()>(&far, || std::panic::resume_unwind(Box::new(()))));
    assert!(panicked.is_err());
    assert_eq!(NetnsFd::own().unwrap().id().unwrap(), own);
    // A namespace with threads in its process is none to leave.
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || receiver.recv());
        assert_eq!(errno(Route::open_in(&far)), libc::EBUSY);
        drop(sender);
    });
    assert_eq!(NetnsFd::own().unwrap().id().unwrap(), own);
}

/// Root of a container may send to sockets in its namespace, ours among them.
fn nobody_answers_in_the_kernels_place() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, getsockname, sendto, socket,
    };
    let route = isolate();
    let address: NetlinkAddr = getsockname(route.as_fd().as_raw_fd()).unwrap();
    assert_ne!(address.pid(), 0);
    let liar = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .unwrap();
    let lie = [0; 64];
    let sent = sendto(liar.as_raw_fd(), &lie, &address, MsgFlags::empty());
    assert_eq!(sent, Err(nix::errno::Errno::ECONNREFUSED));
    // To one that listens to everybody it can be sent, and is not heard.
    let mut events = RouteEvents::open().unwrap();
    let listener: NetlinkAddr = getsockname(events.as_fd().as_raw_fd()).unwrap();
    assert_eq!(sendto(liar.as_raw_fd(), &lie, &listener, MsgFlags::empty()), Ok(lie.len()));
    assert_eq!(events.next().unwrap(), None);
    assert_eq!(names(&route), ["lo"]);
}

fn next(events: &mut RouteEvents, mut wanted: impl FnMut(&Event) -> bool) {
    loop {
        while let Some(event) = events.next().unwrap() {
            if wanted(&event) {
                return;
            }
        }
        assert!(is_readable_soon(&*events), "it was not told");
    }
}

fn what_changes_is_told() {
    let route = isolate();
    let mut events = RouteEvents::open().unwrap();
    assert_eq!(events.next().unwrap(), None);
    let bridge = route.add_bridge("br", "mine", MAC, 1500, false).unwrap();
    next(&mut events, |event| matches!(event, Event::Link(link) if link.index == bridge));
    route.set_name(bridge, "other").unwrap();
    next(&mut events, |event| matches!(event, Event::Link(link) if link.name == "other"));
    let far = another();
    let port = route.add_veth(&NewVeth { master: Some(bridge), ..veth("cgv0", &far) }).unwrap();
    next(&mut events, |event| matches!(event, Event::Link(link) if link.master == Some(bridge)));
    route.set_up(bridge, true).unwrap();
    for (address, prefix) in [(V4, 24), (V6, 64)] {
        route.add_address(bridge, address, prefix, true).unwrap();
        next(
            &mut events,
            |event| matches!(event, Event::Address(state) if (state.ifindex, state.address) == (bridge, address)),
        );
    }
    let dst: IpAddr = "198.51.100.0".parse().unwrap();
    route.add_route(bridge, dst, 24, None).unwrap();
    next(&mut events, |event| matches!(event, Event::Route(route) if route.dst == dst));
    route.remove_route(bridge, dst, 24, None).unwrap();
    next(&mut events, |event| matches!(event, Event::RouteGone(route) if route.dst == dst));
    route.remove_address(bridge, V4, 24).unwrap();
    next(&mut events, |event| matches!(event, Event::AddressGone(state) if state.address == V4));
    // A port that leaves its bridge is no device that is gone.
    route.set_master(port, None).unwrap();
    next(&mut events, |event| {
        assert!(!matches!(event, Event::LinkGone(_)));
        matches!(event, Event::Link(link) if link.index == port && link.master.is_none())
    });
    let there = Route::open_in(&far).unwrap();
    there.delete_link(there.link_by_name("eth0").unwrap().unwrap().index).unwrap();
    next(
        &mut events,
        |event| matches!(event, Event::LinkGone(link) if link.index == port && link.name == "cgv0"),
    );
    route.delete_link(bridge).unwrap();
    next(&mut events, |event| matches!(event, Event::LinkGone(link) if link.index == bridge));
}

fn what_could_not_be_told_is_told() {
    let route = isolate();
    let mut events = RouteEvents::open().unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(events.as_fd(), 4096).unwrap();
    let bridge = route.add_bridge("br", "", MAC, 1500, false).unwrap();
    for number in 0..200 {
        route.set_name(bridge, &format!("br{number}")).unwrap();
    }
    next(&mut events, |event| *event == Event::Overrun);
    while events.next().unwrap().is_some() {}
    // And goes on.
    route.set_name(bridge, "after").unwrap();
    next(&mut events, |event| matches!(event, Event::Link(link) if link.name == "after"));
}

fn changes_to_nftables_are_told() {
    isolate();
    let mut events = NftEvents::open().unwrap();
    assert_eq!(events.next().unwrap(), None);
    let mut heard = |script: &[&str]| {
        run("/usr/sbin/nft", script);
        let (mut tables, mut last) = (Vec::new(), None);
        while last.is_none() {
            assert!(is_readable_soon(&events));
            while let Some(event) = events.next().unwrap() {
                match event {
                    NftEvent::Changed { family, table, .. } => tables.push((family, table)),
                    NftEvent::Generation { id, process, .. } => last = Some((id, process)),
                    NftEvent::Overrun => panic!("overrun"),
                }
            }
        }
        let (id, process) = last.unwrap();
        assert_eq!(process, "nft");
        tables.dedup();
        (tables, id)
    };
    let inet = 1;
    let (tables, first) = heard(&["add", "table", "inet", "one"]);
    assert_eq!(tables, [(inet, "one".to_owned())]);
    let (tables, second) = heard(&["add", "chain", "inet", "one", "steps"]);
    assert_eq!(tables, [(inet, "one".to_owned())]);
    assert!(second > first);
    let (tables, _) = heard(&["add", "rule", "inet", "one", "steps", "drop"]);
    assert_eq!(tables, [(inet, "one".to_owned())]);
    let (tables, _) =
        heard(&["add", "set", "inet", "one", "few", "{ type ipv4_addr; elements = { 192.0.2.1 }; }"]);
    assert_eq!(tables, [(inet, "one".to_owned())]);
    let (tables, _) = heard(&["flush", "ruleset"]);
    assert!(tables.contains(&(inet, "one".to_owned())));
}

fn a_table_of_rules_is_put_in_place_whole() {
    isolate();
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0));
    let chain = |name, hook, rules| Chain { name, hook, rules };
    let lo = 1;
    let first = [
        chain(
            "out",
            Hook::SourceNat,
            vec![
                (vec![Match::NotTo(lo), Match::Source(V4, 22)], Verdict::Masquerade),
                (vec![Match::NotTo(lo), Match::Source(v6, 64)], Verdict::Masquerade),
            ],
        ),
        chain(
            "through",
            Hook::Forward,
            vec![
                (vec![Match::To(lo), Match::NotFrom(lo), Match::Unknown], Verdict::Drop),
                (vec![Match::From(lo), Match::ForeignSource(V4, 22)], Verdict::Drop),
            ],
        ),
        chain("in", Hook::Input, vec![(vec![Match::From(lo), Match::NotProtocol(58)], Verdict::Drop)]),
    ];
    let list = || run("/usr/sbin/nft", &["-nn", "list", "table", "inet", "own"]);
    for _ in 0..2 {
        replace_table("own", &first).unwrap();
        assert_eq!(
            list(),
            "table inet own {
\tchain out {
\t\ttype nat hook postrouting priority 100; policy accept;
\t\toif != \"lo\" ip saddr 192.0.0.0/22 masquerade
\t\toif != \"lo\" ip6 saddr fd00:1:2:3::/64 masquerade
\t}

\tchain through {
\t\ttype filter hook forward priority 0; policy accept;
\t\toif \"lo\" iif != \"lo\" ct state 0x1,0x8,0x40 drop
\t\tiif \"lo\" ip saddr != 192.0.0.0/22 drop
\t}

\tchain in {
\t\ttype filter hook input priority 0; policy accept;
\t\tiif \"lo\" meta l4proto != 58 drop
\t}
}
"
        );
    }
    // Masquerading is not for a chain that filters. What was there before stays.
    let wrong = [chain("in", Hook::Input, vec![(vec![], Verdict::Masquerade)])];
    assert!(replace_table("own", &wrong).unwrap_err().errno().is_some());
    assert!(list().contains("chain through"));
    replace_table("own", &[]).unwrap();
    assert_eq!(list(), "table inet own {\n}\n");
}

fn a_tap_lives_as_long_as_its_descriptor() {
    let route = isolate();
    let tap = open_tap("cgt0", true).unwrap();
    let link = route.link_by_name("cgt0").unwrap().unwrap();
    assert_eq!((link.kind.as_deref(), link.up), (Some("tun"), false));
    assert_eq!(errno(open_tap("cgt0", false)), libc::EBUSY);
    for bad in ["", "tap%d", "a/b", "sixteen__letters", "a\0b"] {
        assert_eq!(errno(open_tap(bad, false)), libc::EINVAL, "{bad:?}");
    }
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    route.set_master(link.index, Some(bridge)).unwrap();
    let copy = tap.try_clone().unwrap();
    drop(tap);
    assert!(route.link(link.index).unwrap().is_some());
    drop(copy);
    assert_eq!(route.link(link.index).unwrap(), None);
    // Without /dev/net/tun there is none, and an error.
    assert!(File::open("/dev/net/tun").is_ok());
}

/// Why a tap whose descriptor is given away is no port of a shared bridge: what is proved here needs no right.
fn who_has_a_tap_may_change_it() {
    let route = isolate();
    let far = another();
    let bridge = route.add_bridge("br", "", [2; 6], 1500, false).unwrap();
    let neighbour = route.add_veth(&NewVeth { master: Some(bridge), ..veth("cgv0", &far) }).unwrap();
    route.add_fdb(neighbour, MAC, None).unwrap();
    let tap = open_tap("cgt0", false).unwrap();
    let index = route.link_by_name("cgt0").unwrap().unwrap().index;
    route.set_master(index, Some(bridge)).unwrap();
    cgrant_sys::privilege::become_account(65534, 65534).unwrap();
    let told = run("sh", &["-c", "cat /proc/self/status | grep CapEff"]);
    assert!(told.contains("0000000000000000"), "{told}");
    assert_eq!(set_mac(&tap, MAC), 0);
    assert_eq!(route.link(index).unwrap().unwrap().mac, Some(MAC));
    let list = run("bridge", &["fdb", "show", "br", "br"]);
    assert!(!list.contains("02:01:02:03:04:05 dev cgv0"), "{list}");
}

/// `SIOCSIFHWADDR` on the descriptor of a tap.
fn set_mac(tap: &std::os::fd::OwnedFd, mac: [u8; 6]) -> i32 {
    let mut sa_data = [0; 14];
    for (place, byte) in sa_data.iter_mut().zip(mac) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data };
    let request =
        libc::ifreq { ifr_name: [0; 16], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_hwaddr: address } };
    // SAFETY: the request reads a struct ifreq at the address of one that outlives the call.
    unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) }
}
