//! What callers show that is not what a link may lead into.

use std::{fs::File, os::fd::AsFd};

use cgrant_sys::NetnsFd;
use cgrant_wire::{FdIndex, RefusalCode, net::Order};

use crate::{
    Test,
    support::{Host, assert_same, foreign_bridge, link, namespace, own_bridge, run_in, snapshot},
};

pub const TESTS: &[Test] = &[
    ("only_a_network_namespace_of_anothers_will_do", only_a_network_namespace_of_anothers_will_do),
    ("a_name_that_is_taken_is_told", a_name_that_is_taken_is_told),
    ("an_owner_without_ipv6_gets_a_link", an_owner_without_ipv6_gets_a_link),
    ("a_device_of_the_bridges_name_is_not_touched", a_device_of_the_bridges_name_is_not_touched),
    ("an_own_bridge_is_no_foreign_one", an_own_bridge_is_no_foreign_one),
];

fn only_a_network_namespace_of_anothers_will_do() {
    let mut host = Host::new();
    let before = snapshot();
    let mut show = |path: &str| {
        let order = Order::AddLink { bridge: own_bridge(), link: link(1), netns: Some(FdIndex(0)) };
        host.order(order, vec![File::open(path).unwrap().into()]).unwrap_err()
    };
    for path in ["/proc/self/ns/net", "/proc/self/ns/user", "/dev/null"] {
        let failure = show(path);
        assert_eq!(failure.code, RefusalCode::InvalidDescriptor, "{path}: {failure:?}");
    }
    assert_same(&before, &snapshot(), "after refusals");
}

fn a_name_that_is_taken_is_told() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    run_in(&netns, "ip link add eth0 type bridge");
    let failure = host.add(&own_bridge(), &link(1), &netns).unwrap_err();
    assert_eq!(failure.code, RefusalCode::LinkExists, "{failure:?}");
    assert!(failure.message.contains("eth0"), "{failure:?}");
    assert_same(&before, &snapshot(), "after the refusal");
}

fn an_owner_without_ipv6_gets_a_link() {
    let mut host = Host::new();
    let netns = namespace();
    let off = || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    cgrant_sys::netlink::in_netns(&netns, off).unwrap();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    let addresses = run_in(&netns, "ip -o addr show eth0");
    assert!(addresses.contains("10.77.0.17/22") && !addresses.contains("fd77"), "{addresses}");
}

fn a_device_of_the_bridges_name_is_not_touched() {
    let mut host = Host::new();
    host.route.add_bridge("cgrant0", "the administrator's", [2, 0, 0, 3, 0, 1], 1500, false).unwrap();
    let before = snapshot();
    let netns = namespace();
    let failure = host.add(&own_bridge(), &link(1), &netns).unwrap_err();
    assert!(failure.message.contains("cgrant0"), "{failure:?}");
    assert_same(&before, &snapshot(), "after the refusal");
}

fn an_own_bridge_is_no_foreign_one() {
    let mut host = Host::new();
    let netns = namespace();
    let clone = NetnsFd::from_fd(netns.as_fd().try_clone_to_owned().unwrap()).unwrap();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    let mut other = link(2);
    other.info.bridge = "lan".into();
    other.info.name = "eth1".into();
    // Its configuration names the broker's own bridge as the administrator's.
    let mut bridge = foreign_bridge("cgrant0");
    bridge.device = "cgrant0".into();
    let result = host.add(&bridge, &other, &clone);
    assert!(result.is_err(), "{result:?}");
}
