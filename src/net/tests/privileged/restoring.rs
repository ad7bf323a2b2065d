//! A helper that starts finds what its predecessor made, and brings it in agreement with what ought to be.

use cgrant_wire::{link::Transport, net::NetEvent};

use crate::{
    Test,
    support::{Host, assert_same, link, namespace, own_bridge, port, run, run_in, snapshot},
};

pub const TESTS: &[Test] = &[
    ("everything_is_found_again", everything_is_found_again),
    ("what_nobody_wants_is_removed", what_nobody_wants_is_removed),
    ("what_was_changed_meanwhile_is_mended", what_was_changed_meanwhile_is_mended),
    ("a_port_that_was_taken_meanwhile_is_told", a_port_that_was_taken_meanwhile_is_told),
    ("a_device_that_was_not_finished_is_removed", a_device_that_was_not_finished_is_removed),
    ("it_may_die_at_each_step", it_may_die_at_each_step),
];

fn everything_is_found_again() {
    let mut host = Host::new();
    let before = snapshot();
    let netns = namespace();
    let mut one = link(1);
    one.info.ports = vec![port(8080, 80)];
    one.info.ifindex = host.add(&own_bridge(), &one, &netns).unwrap();
    let with_link = snapshot();
    let events = host.restart(&[own_bridge()], vec![one.clone()]);
    assert!(events.is_empty(), "{events:?}");
    assert_same(&with_link, &snapshot(), "after a restart");
    run_in(&netns, "busybox ping -c 1 -W 5 10.77.0.1");
    assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_err(), "the port is held again");
    assert!(host.settle().is_empty());
    host.remove(&one);
    assert_same(&before, &snapshot(), "after the last link");
}

fn what_nobody_wants_is_removed() {
    let mut host = Host::new();
    let before = snapshot();
    let (one, two) = (namespace(), namespace());
    let mut kept = link(1);
    kept.info.ifindex = host.add(&own_bridge(), &kept, &one).unwrap();
    host.add(&own_bridge(), &link(2), &two).unwrap();
    let events = host.restart(&[own_bridge()], vec![kept.clone(), link(3)]);
    assert_eq!(events, [NetEvent::LinkGone { key: link(3).key, far_end: true }]);
    assert!(host.device(&link(2).info.host_name).is_none());
    assert!(host.device(&kept.info.host_name).is_some());
    // The engine has lost everything.
    host.restart(&[own_bridge()], Vec::new());
    assert_same(&before, &snapshot(), "after a restart with nothing");
    assert!(host.net.descriptors().is_empty());
}

fn what_was_changed_meanwhile_is_mended() {
    let mut host = Host::new();
    let netns = namespace();
    let mut one = link(1);
    one.info.ifindex = host.add(&own_bridge(), &one, &netns).unwrap();
    for line in [
        "nft flush ruleset",
        "ip link del cgrant0",
        "ip link set cgrant0 name other",
        "ip link set cgv0000000001 name other",
        "ip link set cgv0000000001 nomaster",
    ] {
        run(line);
        let events = host.restart(&[own_bridge()], vec![one.clone()]);
        let gone = events.iter().any(|event| matches!(event, NetEvent::LinkGone { .. }));
        assert!(!gone, "{line}: {events:?}");
        run_in(&netns, "busybox ping -c 1 -W 5 10.77.0.1");
        run_in(&netns, "busybox ping -c 1 -W 5 fd77::1");
        assert!(host.settle().is_empty(), "{line}");
    }
    // A device of that index, but not of that alias, is not the link's.
    run("ip link set cgv0000000001 alias somebody");
    let events = host.restart(&[own_bridge()], vec![one.clone()]);
    assert_eq!(events, [NetEvent::LinkGone { key: one.key, far_end: true }]);
    assert!(host.device("cgv0000000001").is_some());
}

fn a_port_that_was_taken_meanwhile_is_told() {
    let mut host = Host::new();
    let netns = namespace();
    let mut one = link(1);
    let mut udp = port(8080, 53);
    udp.transport = Transport::Udp;
    one.info.ports = vec![port(8080, 80), udp];
    one.info.ifindex = host.add(&own_bridge(), &one, &netns).unwrap();
    host.die();
    let _taken = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();
    let events = host.restart(&[own_bridge()], vec![one.clone()]);
    assert_eq!(events, [NetEvent::PortsLost { key: one.key, ports: vec![port(8080, 80)] }]);
    assert!(std::net::UdpSocket::bind("0.0.0.0:8080").is_err());
    let rules = run("nft list table inet cgrant-test");
    assert!(!rules.contains("tcp . 8080") && rules.contains("8080"), "{rules}");
}

fn a_device_that_was_not_finished_is_removed() {
    let mut host = Host::new();
    let before = snapshot();
    run("ip link add cgv00000000ff type veth peer name far0");
    std::fs::write(host.directory.path().join("unfinished"), "cgv00000000ff").unwrap();
    host.restart(&[], Vec::new());
    assert_same(&before, &snapshot(), "after a restart");
    // But not one that somebody else uses.
    std::fs::write(host.directory.path().join("unfinished"), "up0").unwrap();
    host.restart(&[], Vec::new());
    assert_same(&before, &snapshot(), "after another restart");
}

/// The helper dies at each step of making a link; the next one is told that there is none.
fn it_may_die_at_each_step() {
    use cgrant_sys::{Clone3, Exit};
    let mut host = Host::new();
    let before = snapshot();
    let mut one = link(1);
    one.info.ports = vec![port(8080, 80)];
    let netns = namespace();
    host.fault("count");
    host.add(&own_bridge(), &one, &netns).unwrap();
    let steps = host.steps();
    host.remove(&one);
    for (number, step) in steps.iter().enumerate() {
        host.fault(&format!("die:{}", number + 1));
        host.restart(&[], Vec::new());
        let child = Clone3::new()
            .spawn(|| {
                let _ = host.add(&own_bridge(), &one, &netns);
                0
            })
            .unwrap();
        let exit = child.pidfd.wait().unwrap();
        assert!(matches!(exit, Exit::Signal(_)), "{step}: {exit:?}");
        std::fs::remove_file(host.directory.path().join("fault")).unwrap();
        host.restart(&[], Vec::new());
        assert_same(&before, &snapshot(), &format!("after it died at `{step}`"));
    }
}
