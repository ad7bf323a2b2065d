//! Who makes a router of the host, and what is as before afterwards: in which order, and with two instances.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use cgrant_sys::NetnsFd;
use cgrant_wire::{
    link::{Address, Mac},
    net::{Bridge, BridgeKind, Link, NetEvent},
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    Test,
    support::{
        Host, assert_same, link, namespace, own_bridge, port, run, run_in, settings_of_host, snapshot, v4, v6,
    },
};

pub const TESTS: &[Test] = &[
    ("the_guard_falls_when_nothing_is_routed_any_more", the_guard_falls_when_nothing_is_routed_any_more),
    ("rules_are_never_without_their_guard", rules_are_never_without_their_guard),
    ("nothing_is_routed_without_rules", nothing_is_routed_without_rules),
    ("two_instances_share_the_hosts_settings", two_instances_share_the_hosts_settings),
    ("two_instances_share_them_where_ipv6_has_one_switch", two_instances_share_the_one_switch),
    ("an_instance_that_is_gone_needs_nothing", an_instance_that_is_gone_needs_nothing),
    ("two_instances_reach_the_outside", two_instances_reach_the_outside),
    ("who_comes_after_the_switch_is_under_guard", who_comes_after_the_switch_is_under_guard),
];

fn setting(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap().trim().to_owned()
}

fn forwards() -> bool {
    setting("ipv4/conf/up0/forwarding") == "1"
}

fn is_guarded() -> bool {
    let rules = run("nft list ruleset");
    let set = rules.split("set guard4 {").nth(1).and_then(|rest| rest.split('}').next());
    set.is_some_and(|elements| elements.contains("up0"))
}

/// The lock of the host's record, as another instance would have it.
fn lock(host: &Host) -> File {
    let path = host.shared.path().join("lock");
    let file = File::options().create(true).append(true).open(path).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

fn the_guard_falls_when_nothing_is_routed_any_more() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    assert!(forwards() && is_guarded());
    let kept = lock(&host);
    let refused = host.order(cgrant_wire::net::Order::RemoveLink(link(1).key), Vec::new());
    assert!(refused.is_err_and(|failure| failure.message.contains("another instance")));
    assert!(forwards() && is_guarded(), "what can't be put back yet stays under guard");
    // Nor may a helper that starts now take the guard away.
    host.restart(&[own_bridge()], Vec::new());
    assert!(forwards() && is_guarded(), "after a restart");
    drop(kept);
    host.settle();
    assert!(!forwards());
    assert_same(&before, &snapshot(), "after a while");
    assert!(host.net.deadline().is_none());
}

#[cfg(feature = "fault-injection")]
fn dies(host: &mut Host, step: &str, act: &dyn Fn(&mut Host)) {
    use cgrant_sys::{Clone3, Exit};
    host.fault("count");
    let child = Clone3::new().spawn(|| {
        act(host);
        0
    });
    assert_eq!(child.unwrap().pidfd.wait().unwrap(), Exit::Code(0));
    let steps = host.steps();
    let number =
        steps.iter().position(|passed| passed == step).unwrap_or_else(|| panic!("{step}: {steps:?}"));
    host.die();
    run("nft flush ruleset");
    host.fault(&format!("die:{}", number + 1));
    let child = Clone3::new().spawn(|| {
        act(host);
        0
    });
    assert!(matches!(child.unwrap().pidfd.wait().unwrap(), Exit::Signal(_)));
    std::fs::remove_file(host.directory.path().join("fault")).unwrap();
}

/// The helper dies in the moment before it makes the host a router.
#[cfg(feature = "fault-injection")]
fn the_guard_stands_before_the_host_routes(host: &mut Host) {
    let netns = namespace();
    dies(host, "settings of the host", &|host| {
        host.net.restore(&[], Vec::new());
        host.add(&own_bridge(), &link(1), &netns).unwrap();
    });
    assert!(!forwards() && is_guarded(), "the guard comes first");
    host.restart(&[], Vec::new());
}

#[cfg(not(feature = "fault-injection"))]
fn the_guard_stands_before_the_host_routes(_: &mut Host) {}

fn rules_are_never_without_their_guard() {
    let mut host = Host::new();
    host.die();
    the_guard_stands_before_the_host_routes(&mut host);
    let netns = namespace();
    let mut one = link(1);
    one.info.ifindex = host.add(&own_bridge(), &one, &netns).unwrap();
    a_helper_that_starts_builds_both_at_once(&mut host, &one);
    host.restart(&[own_bridge()], vec![one.clone()]);
    assert!(forwards() && is_guarded());
}

/// The helper dies when it has set the rules, and has not come to what the host needs to route.
#[cfg(feature = "fault-injection")]
fn a_helper_that_starts_builds_both_at_once(host: &mut Host, one: &Link) {
    host.die();
    run("nft flush ruleset");
    let restore = |host: &mut Host| host.net.restore(&[own_bridge()], vec![one.clone()]);
    dies(host, "guard", &restore);
    assert!(forwards() && is_guarded(), "the rules were there without their guard");
}

#[cfg(not(feature = "fault-injection"))]
fn a_helper_that_starts_builds_both_at_once(_: &mut Host, _: &Link) {}

fn nothing_is_routed_without_rules() {
    let mut host = Host::new();
    let netns = namespace();
    let mut one = link(1);
    one.info.ports = vec![port(8080, 80)];
    one.info.ifindex = host.add(&own_bridge(), &one, &netns).unwrap();
    host.die();
    run("nft flush ruleset");
    run("sysctl -w net.ipv4.conf.up0.forwarding=0 net.ipv4.conf.cgrant0.route_localnet=0");
    run("mount --bind /bin/false /usr/sbin/nft");
    host.net.restore(&[own_bridge()], vec![one.clone()]);
    assert!(
        !forwards() && setting("ipv4/conf/cgrant0/route_localnet") == "0",
        "the host routes without rules"
    );
    run("umount /usr/sbin/nft");
    let begun = Instant::now();
    while !(forwards() && setting("ipv4/conf/cgrant0/route_localnet") == "1") {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is never mended");
        host.settle();
    }
    assert!(is_guarded());
}

fn other_bridge() -> Bridge {
    Bridge {
        name: "default".into(),
        device: "cgb0000000002".into(),
        kind: BridgeKind::Own {
            gateway4: Some(Address { address: v4("10.78.0.1"), prefix: 22 }),
            gateway6: Some(Address { address: v6("fd78::1"), prefix: 64 }),
            server4: Some(v4("10.78.0.2")),
            server6: Some(v6("fd78::2")),
        },
        mtu: 1500,
    }
}

fn other_link() -> Link {
    let mut link = link(2);
    link.info.mac = Mac([2, 0, 0, 8, 0, 2]);
    link.info.address4 = Some(Address { address: v4("10.78.0.16"), prefix: 22 });
    link.info.address6 = Some(Address { address: v6("fd78::16"), prefix: 64 });
    (link.info.gateway4, link.info.gateway6) = (Some(v4("10.78.0.1")), Some(v6("fd78::1")));
    link
}

/// Two instances, each with a link; the first ends first, then the second; then the other way round.
fn share(may_forward_singly: bool) {
    let mut host = Host::with(may_forward_singly);
    run("sysctl -w net.ipv6.conf.up0.accept_ra=1");
    let before = snapshot();
    let mut other = host.other();
    let (one, two) = (namespace(), namespace());
    for first_goes_first in [true, false] {
        host.add(&own_bridge(), &link(1), &one).unwrap();
        let with_one = settings_of_host();
        host.swap(&mut other);
        host.add(&other_bridge(), &other_link(), &two).unwrap();
        assert_same(&with_one, &settings_of_host(), "the second changes nothing more");
        if first_goes_first {
            host.swap(&mut other);
            host.remove(&link(1));
            host.swap(&mut other);
        } else {
            host.remove(&other_link());
            host.swap(&mut other);
        }
        assert!(forwards() && is_guarded(), "the one that stays lost its settings");
        assert_same(&with_one, &settings_of_host(), "one is gone");
        if first_goes_first {
            host.remove(&other_link());
            host.swap(&mut other);
        } else {
            host.remove(&link(1));
        }
        assert_same(&before, &snapshot(), "both are gone");
    }
}

fn two_instances_share_the_hosts_settings() {
    share(true);
}

fn two_instances_share_the_one_switch() {
    share(false);
}

/// The other one crashed, and its link went with its container: nobody will ever say so.
fn an_instance_that_is_gone_needs_nothing() {
    let mut host = Host::new();
    let before = snapshot();
    let (one, two) = (namespace(), namespace());
    host.add(&own_bridge(), &link(1), &one).unwrap();
    let mut other = host.other();
    host.swap(&mut other);
    host.add(&other_bridge(), &other_link(), &two).unwrap();
    host.swap(&mut other);
    host.remove(&link(1));
    assert!(forwards(), "its link works without it");
    host.add(&own_bridge(), &link(1), &one).unwrap();
    run("ip link del cgb0000000002");
    run_in(&two, "ip link del eth0");
    host.remove(&link(1));
    assert!(!forwards());
    host.swap(&mut other);
    host.restart(&[], Vec::new());
    assert_same(&before, &snapshot(), "after all");
}

/// Answers from outside must pass the guards of both.
fn two_instances_reach_the_outside() {
    let mut host = Host::new();
    let (one, two) = (namespace(), namespace());
    host.add(&own_bridge(), &link(1), &one).unwrap();
    let mut other = host.other();
    host.swap(&mut other);
    host.add(&other_bridge(), &other_link(), &two).unwrap();
    let reach = |netns: &NetnsFd| {
        run_in(netns, "busybox ping -c 1 -W 5 198.51.100.1");
        run_in(netns, "busybox ping -c 1 -W 5 2001:db8::1");
    };
    reach(&one);
    reach(&two);
    host.remove(&other_link());
    reach(&one);
}

fn who_comes_after_the_switch_is_under_guard() {
    let mut host = Host::with(false);
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    run("ip link add late0 type veth peer name late1");
    assert_eq!(setting("ipv6/conf/late0/forwarding"), "1", "it has it from the switch");
    run("ip addr add 2001:db8:9::1/64 dev late0");
    let told: Vec<NetEvent> = host.settle();
    assert!(told.is_empty(), "{told:?}");
    let rules = run("nft list set inet cgrant-test guard6");
    assert!(rules.contains("late0"), "{rules}");
    host.remove(&link(1));
    assert_eq!(setting("ipv6/conf/late0/forwarding"), "0");
}
