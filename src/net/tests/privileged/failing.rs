//! Each step of making a link fails in turn: all or nothing.

use cgrant_wire::{
    link::{LinkKind, Transport},
    net::Order,
};

use crate::{
    Test,
    support::{Host, assert_same, link, namespace, own_bridge, port, snapshot},
};

pub const TESTS: &[Test] = &[
    ("each_step_of_a_link_fails_in_turn", each_step_of_a_link_fails_in_turn),
    ("each_step_of_a_tap_fails_in_turn", each_step_of_a_tap_fails_in_turn),
    ("each_step_of_a_second_link_fails_in_turn", each_step_of_a_second_link_fails_in_turn),
    ("each_step_of_ports_fails_in_turn", each_step_of_ports_fails_in_turn),
];

/// Lets `act` fail at each of its steps; the host must be as before each time. Then it must go well.
fn fail_each(host: &mut Host, mut act: impl FnMut(&mut Host) -> bool, mut undo: impl FnMut(&mut Host)) {
    let before = snapshot();
    host.fault("count");
    assert!(act(host), "it does not go well at all");
    let steps = host.steps();
    undo(host);
    assert_same(&before, &snapshot(), "undone");
    assert!(steps.len() > 2, "{steps:?}");
    for (number, step) in steps.iter().enumerate() {
        host.fault(&format!("fail:{}", number + 1));
        assert!(!act(host), "it went well although `{step}` failed");
        host.steps();
        assert_same(&before, &snapshot(), &format!("after `{step}` failed"));
    }
    assert!(act(host));
}

fn each_step_of_a_link_fails_in_turn() {
    let mut host = Host::new();
    let (netns, mut link) = (namespace(), link(1));
    link.info.mtu = 1400;
    link.info.download = 1_000_000;
    link.info.ports = vec![port(8080, 80)];
    let (add, gone) = (link.clone(), link.clone());
    fail_each(
        &mut host,
        move |host| host.add(&own_bridge(), &add, &netns).is_ok(),
        move |host| host.remove(&gone),
    );
}

fn each_step_of_a_tap_fails_in_turn() {
    let mut host = Host::new();
    let mut link = link(1);
    link.info.kind = LinkKind::Tap;
    let gone = link.clone();
    let mut taps = Vec::new();
    fail_each(
        &mut host,
        move |host| {
            let order = Order::AddLink { bridge: own_bridge(), link: link.clone(), netns: None };
            host.order(order, Vec::new()).map(|(_, fds)| taps.push(fds)).is_ok()
        },
        move |host| host.remove(&gone),
    );
}

fn each_step_of_a_second_link_fails_in_turn() {
    let mut host = Host::new();
    let (one, two) = (namespace(), namespace());
    host.add(&own_bridge(), &link(1), &one).unwrap();
    fail_each(
        &mut host,
        move |host| host.add(&own_bridge(), &link(2), &two).is_ok(),
        |host| host.remove(&link(2)),
    );
}

fn each_step_of_ports_fails_in_turn() {
    let mut host = Host::new();
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    let set = |host: &mut Host, ports: Vec<_>| {
        host.order(Order::SetPorts { key: link(1).key, ports }, Vec::new()).is_ok()
    };
    let mut udp = port(8081, 53);
    udp.transport = Transport::Udp;
    fail_each(
        &mut host,
        move |host| set(host, vec![port(8080, 80), udp]),
        move |host| assert!(set(host, Vec::new())),
    );
}
