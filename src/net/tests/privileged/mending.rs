//! What others do behind the helper's back is noticed, and mended or told.

use std::time::Instant;

use cgrant_wire::net::NetEvent;
use rustix::event::Timespec;

use crate::{
    Test,
    support::{
        Host, admin_bridge, assert_same, foreign_bridge, link, namespace, net, own_bridge, run, run_in,
        snapshot,
    },
};

pub const TESTS: &[Test] = &[
    ("a_far_end_may_be_deleted_by_its_owner", a_far_end_may_be_deleted_by_its_owner),
    ("a_namespace_may_die", a_namespace_may_die),
    ("many_links_that_end_at_once_leave_turns_to_others", many_links_that_end_at_once_leave_turns_to_others),
    ("a_device_that_was_changed_is_mended", a_device_that_was_changed_is_mended),
    ("a_bridge_that_was_deleted_is_made_again", a_bridge_that_was_deleted_is_made_again),
    ("a_port_that_tells_before_its_bridge_is_no_less_mended", a_port_that_tells_before_its_bridge),
    ("no_link_ends_with_another_when_a_bridge_is_made_again", no_link_ends_with_another),
    ("a_bridge_that_was_changed_is_mended", a_bridge_that_was_changed_is_mended),
    ("rules_that_were_flushed_are_set_again", rules_that_were_flushed_are_set_again),
    ("a_clash_is_told_once", a_clash_is_told_once),
    ("a_new_uplink_forwards", a_new_uplink_forwards),
    ("links_wait_for_a_foreign_bridge", links_wait_for_a_foreign_bridge),
    ("who_insists_gets_his_way", who_insists_gets_his_way),
];

fn works(netns: &cgrant_sys::NetnsFd) {
    run_in(netns, "busybox ping -c 1 -W 5 10.77.0.1");
    run_in(netns, "busybox ping -c 1 -W 5 fd77::1");
}

fn a_far_end_may_be_deleted_by_its_owner() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    assert!(host.settle().is_empty(), "what the helper does itself is no news");
    run_in(&netns, "ip link del eth0");
    assert_eq!(host.settle(), [NetEvent::LinkGone { key: link(1).key, far_end: true }]);
    assert_same(&before, &snapshot(), "after the link is gone");
}

fn a_namespace_may_die() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    drop(netns);
    assert_eq!(host.settle(), [NetEvent::LinkGone { key: link(1).key, far_end: true }]);
    assert_same(&before, &snapshot(), "after the link is gone");
}

/// One turn of the helper's loop, orders aside.
fn turn(host: &mut Host) -> usize {
    let ready = host.readable(Timespec { tv_sec: 0, tv_nsec: 0 });
    ready.into_iter().for_each(|fd| host.net.ready(fd));
    host.net.tend(Instant::now());
    host.net.take_events().len()
}

/// Each costs a run of `nft`: who ends all of his at once would have everybody wait.
fn many_links_that_end_at_once_leave_turns_to_others() {
    const MANY: u16 = 10;
    let mut host = Host::new();
    let before = snapshot();
    let there: Vec<_> = (1..=MANY).map(|number| (link(number), namespace())).collect();
    for (link, netns) in &there {
        host.add(&own_bridge(), link, netns).unwrap();
    }
    assert!(host.settle().is_empty());
    let names: Vec<_> = there.iter().map(|(link, _)| link.info.host_name.clone()).collect();
    drop(there);
    while names.iter().any(|name| host.device(name).is_some()) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut gone = 0;
    while gone < usize::from(MANY) {
        let now = turn(&mut host);
        assert!(now <= 4, "{now} links in one turn");
        assert!(gone + now == usize::from(MANY) || host.net.deadline().is_some(), "the rest is forgotten");
        gone += now;
    }
    assert!(host.settle().is_empty());
    assert_same(&before, &snapshot(), "after all links are gone");
}

fn a_device_that_was_changed_is_mended() {
    let mut host = Host::new();
    let netns = namespace();
    let index = host.add(&own_bridge(), &link(1), &netns).unwrap();
    let rules = run("nft list ruleset");
    for line in [
        "ip link set cgv0000000001 name other",
        "ip link set cgv0000000001 nomaster",
        "ip link set cgv0000000001 down",
    ] {
        run(line);
        let events = host.settle();
        assert!(events.iter().any(|event| matches!(event, NetEvent::Mended(_))), "{line}: {events:?}");
        assert_eq!(host.device("cgv0000000001").unwrap().index, index, "{line}");
        works(&netns);
    }
    assert_same(&rules, &run("nft list ruleset"), "mended");
}

fn a_bridge_that_was_deleted_is_made_again() {
    let mut host = Host::new();
    let before = snapshot();
    let (one, two) = (namespace(), namespace());
    host.add(&own_bridge(), &link(1), &one).unwrap();
    host.add(&own_bridge(), &link(2), &two).unwrap();
    // They have the gateway's address on the data link layer in their tables.
    works(&one);
    run("ip link del cgrant0");
    let events = host.settle();
    assert!(format!("{events:?}").contains("the bridge cgrant0 was deleted"), "{events:?}");
    works(&one);
    run_in(&two, "busybox ping -c 1 -W 5 10.77.0.17");
    host.remove(&link(1));
    host.remove(&link(2));
    assert_same(&before, &snapshot(), "after the last link");
}

/// What is readable now is read, and nothing is done about it yet.
fn read_events(host: &mut Host) {
    let ready = host.readable(Timespec { tv_sec: 5, tv_nsec: 0 });
    ready.into_iter().for_each(|fd| host.net.ready(fd));
}

/// The kernel tells of each port, then of the bridge; the helper may look in between.
fn a_port_that_tells_before_its_bridge() {
    let mut host = Host::new();
    let (one, two) = (namespace(), namespace());
    host.add(&own_bridge(), &link(1), &one).unwrap();
    host.add(&own_bridge(), &link(2), &two).unwrap();
    assert!(host.settle().is_empty());
    run("ip link set cgv0000000001 nomaster");
    read_events(&mut host);
    run("ip link del cgrant0");
    host.net.tend(Instant::now());
    let mut events = host.net.take_events();
    events.extend(host.settle());
    assert!(events.iter().all(|event| matches!(event, NetEvent::Mended(_))), "{events:?}");
    assert!(format!("{events:?}").contains("the bridge cgrant0 was deleted"), "{events:?}");
    works(&one);
    works(&two);
}

/// One link dies in the moment in which the bridge is deleted, another one's device is renamed.
fn no_link_ends_with_another() {
    let mut host = Host::new();
    let spaces: Vec<_> = (1..=3).map(|_| namespace()).collect();
    for (number, netns) in (1..).zip(&spaces) {
        host.add(&own_bridge(), &link(number), netns).unwrap();
    }
    assert!(host.settle().is_empty());
    run("ip link set cgv0000000003 nomaster");
    read_events(&mut host);
    run("ip link del cgrant0");
    run_in(&spaces[0], "ip link del eth0");
    run("ip link set cgv0000000002 name other");
    host.net.tend(Instant::now());
    let mut events = host.net.take_events();
    events.extend(host.settle());
    let gone: Vec<_> = events.iter().filter(|event| !matches!(event, NetEvent::Mended(_))).collect();
    assert_eq!(gone, [&NetEvent::LinkGone { key: link(1).key, far_end: true }]);
    works(&spaces[1]);
    works(&spaces[2]);
    assert!(host.net.deadline().is_none(), "nothing is left to be done");
}

fn a_bridge_that_was_changed_is_mended() {
    let mut host = Host::new();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    for line in
        ["ip addr del 10.77.0.1/22 dev cgrant0", "ip link set cgrant0 down", "ip link set cgrant0 name other"]
    {
        run(line);
        let events = host.settle();
        assert!(format!("{events:?}").contains("cgrant0 was changed"), "{line}: {events:?}");
        works(&netns);
    }
}

fn rules_that_were_flushed_are_set_again() {
    let mut host = Host::new();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    let rules = run("nft list ruleset");
    for line in
        ["nft flush ruleset", "nft delete table netdev cgrant-test", "nft flush table inet cgrant-test"]
    {
        run(line);
        let events = host.settle();
        assert!(format!("{events:?}").contains("nftables rules were changed"), "{line}: {events:?}");
        assert_same(&rules, &run("nft list ruleset"), line);
        works(&netns);
    }
    // Others' tables are others' business.
    run("nft add table inet another");
    assert!(host.settle().is_empty());
}

fn a_clash_is_told_once() {
    let mut host = Host::new();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    assert!(host.settle().is_empty());
    run("ip addr add 10.77.1.5/24 dev up0");
    let clash = NetEvent::Clash { bridge: "default".into(), with: net("10.77.1.5/24") };
    let events = host.settle();
    assert!(events.contains(&clash), "{events:?}");
    run("ip route add 10.64.0.0/10 dev up0");
    let events = host.settle();
    assert_eq!(events, [NetEvent::Clash { bridge: "default".into(), with: net("10.64.0.0/10") }]);
    run("ip -6 route add fd00::/8 dev up0");
    assert_eq!(host.settle(), [NetEvent::Clash { bridge: "default".into(), with: net("fd00::/8") }]);
    run("ip route add 192.0.2.0/24 dev up0");
    run("ip route add 10.78.0.0/16 dev up0");
    assert!(host.settle().is_empty());
}

fn a_new_uplink_forwards() {
    let mut host = Host::new();
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/conf/default/forwarding").unwrap();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    run("ip link add tunnel0 type veth peer name tunnel1");
    run("ip addr add 203.0.113.1/24 dev tunnel0");
    host.settle();
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/tunnel0/forwarding").unwrap();
    assert_eq!(forwarding(), "1\n");
    host.remove(&link(1));
    assert_eq!(forwarding(), before);
}

fn links_wait_for_a_foreign_bridge() {
    let mut host = Host::new();
    let netns = namespace();
    admin_bridge(&host);
    let mut link = link(1);
    link.info.bridge = "lan".into();
    host.add(&foreign_bridge("br0"), &link, &netns).unwrap();
    run("ip link del br0");
    let events = host.settle();
    assert!(format!("{events:?}").contains("br0 is gone"), "{events:?}");
    let index = admin_bridge(&host);
    let events = host.settle();
    assert!(format!("{events:?}").contains("as before"), "{events:?}");
    assert_eq!(host.device(&link.info.host_name).unwrap().master, Some(index));
    let rules = run("nft list ruleset");
    assert!(rules.contains("chain cgv0000000001"), "{rules}");
    // A helper that starts while it is gone builds the rules of the others all the same.
    let (netns, mut own) = (namespace(), crate::support::link(2));
    own.info.ifindex = host.add(&own_bridge(), &own, &netns).unwrap();
    run("ip link del br0");
    run("nft flush ruleset");
    link.info.ifindex = host.device(&link.info.host_name).unwrap().index;
    host.restart(&[own_bridge(), foreign_bridge("br0")], vec![link.clone(), own]);
    works(&netns);
    assert!(host.settle().is_empty());
    let index = admin_bridge(&host);
    host.settle();
    assert_eq!(host.device(&link.info.host_name).unwrap().master, Some(index));
    let rules = run("nft list ruleset");
    assert!(rules.contains("chain cgv0000000001") && rules.contains("chain cgv0000000002"), "{rules}");
}

fn who_insists_gets_his_way() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    for _ in 0..20 {
        if host.device("cgv0000000001").is_none() {
            break;
        }
        run("ip link set cgv0000000001 down");
        let events = host.settle();
        if events.contains(&NetEvent::LinkGone { key: link(1).key, far_end: false }) {
            return assert_same(&before, &snapshot(), "after the link was given up");
        }
    }
    panic!("the helper fights for ever");
}
