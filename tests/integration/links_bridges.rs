//! Bridges of the administrator's: links get ports on them and addresses of their networks, and nothing else of them is touched.

use crate::common::{
    Container, Lab, Network, Node, Options,
    frames::{IPV4, ethernet, udp4},
    node::{Tcp, Udp},
    wait_until,
};

// A bridge with a machine of the administrator's on it.
fn office(lab: &Lab, network: &Network<'_>) -> Node {
    let printer = lab.node("plain");
    printer.sh("ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/dad_transmits");
    network.host.sh(&format!(
        "ip link add office type bridge; ip link set office up; ip address add 10.77.0.1/24 dev office
         ip link add desk type veth peer name eth0 netns {}; ip link set desk master office; ip link set desk up",
        printer.process.pid
    ));
    printer.sh(
        "ip link set eth0 up; ip address add 10.77.0.5/24 dev eth0; ip address add 2001:db8:77::5/64 dev eth0 nodad
         ip route add default via 10.77.0.1",
    );
    printer.serve_all(7000);
    network.host.serve_all(7000);
    wait_until("the office is open", || {
        network.host.pings("10.77.0.5")
            && network.host.run(&["ip", "link", "show", "office"]).contains("state UP")
            && !network.host.run(&["ip", "-6", "address"]).contains("tentative")
    });
    network.look();
    printer
}

// Everything is as it was; then the office goes too, and what is left is not the broker's doing.
fn close(network: &Network<'_>, printer: Node) {
    network.assert_as_before();
    drop(printer);
    network.host.run(&["ip", "link", "del", "office"]);
    wait_until("the desk is gone", || !network.devices().iter().any(|name| name == "desk"));
    network.look();
}

const OFFICE: &str = "[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nsubnet4 = \"10.77.0.0/24\"\nrange4 = \"10.77.0.100-10.77.0.120\"\ngateway4 = \"10.77.0.1\"\nsubnet6 = \"2001:db8:77::/64\"\n";
const ALLOWED: &str = "[[rule]]\nname = \"office\"\n[rule.network]\nbridges = [\"default\", \"office\"]\n";

fn a_bridge_of_the_administrators_stays_theirs(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_config(OFFICE);
    lab.write_policy(ALLOWED);
    let broker = network.broker();
    let (alice, bob) = (lab.user(), lab.user());
    let (client, other) = (alice.client(broker.socket()), bob.client(broker.socket()));
    let names: Vec<String> =
        client.bridges().iter().map(|b| <&str>::try_from(&b["name"]).unwrap().to_owned()).collect();
    assert_eq!(names, ["default", "office"]);
    let there = || Options::new().with("bridge", "office".to_owned());
    let a1 = Container::new(&alice, &client, "a1", there());
    let a2 = Container::new(&alice, &client, "a2", there());
    let b = Container::new(&bob, &other, "b", there());
    for container in [&a1, &a2, &b] {
        let address = container.link.address4.unwrap().octets();
        assert!(address[..3] == [10, 77, 0] && (100..=120).contains(&address[3]), "{}", container.link.ip4());
        assert_eq!(container.link.bridge, "office");
        container.node.serve_all(7000);
    }
    // The administrator's machines and a1 reach each other; its own account's do, others don't.
    a1.node.talk(Tcp, "10.77.0.5:7000").unwrap();
    a1.node.talk(Udp, "[2001:db8:77::5]:7000").unwrap();
    printer.talk(Tcp, &format!("{}:7000", a1.link.ip4())).unwrap();
    a1.node.talk(Tcp, &format!("{}:7000", a2.link.ip4())).unwrap();
    for address in b.link.both() {
        a1.node.is_cut_off(Tcp, &format!("{address}:7000"));
    }
    // Nobody lies here either.
    let heard = printer.listen("eth0");
    let mac: Vec<u8> = printer
        .sh("ip -br link show eth0 | tr -s ' ' | cut -d' ' -f3")
        .trim()
        .split(':')
        .map(|b| u8::from_str_radix(b, 16).unwrap())
        .collect();
    let mac: [u8; 6] = mac.try_into().unwrap();
    let to = "10.77.0.5".parse().unwrap();
    let frame = |source: [u8; 6], address: std::net::Ipv4Addr, data: &[u8]| {
        ethernet(mac, source, IPV4, &udp4((address, 5), (to, 6), data))
    };
    let own = (a1.link.mac(), a1.link.address4.unwrap());
    a1.node.send(
        "eth0",
        &[
            frame([2, 1, 1, 1, 1, 1], own.1, b"a lie about the MAC"),
            frame(own.0, b.link.address4.unwrap(), b"a lie about the address"),
            frame(own.0, own.1, b"no lie"),
        ],
    );
    let mut frames = Vec::new();
    wait_until("the honest frame arrives", || {
        frames.extend(printer.heard(heard));
        crate::common::frames::any_contains(&frames, b"no lie")
    });
    assert!(!crate::common::frames::any_contains(&frames, b"a lie"));
    // The bridge with all that the administrator has on it is as before but for the ports.
    let now = network.differences();
    let changed: Vec<&str> = now.lines().filter(|line| line.starts_with("    -")).collect();
    assert!(changed.is_empty(), "{now}");
    a1.release(&client);
    a2.release(&client);
    b.release(&other);
    assert!(network.host.pings("10.77.0.5"));
    close(&network, printer);
}

fn an_unfiltered_bridge_lets_links_have_any_address(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_config("[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nunfiltered = true\n");
    lab.write_policy(ALLOWED);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new().with("bridge", "office".to_owned()));
    assert!(one.link.address4.is_none(), "{:?}", one.link);
    one.node.sh("ip link set eth0 up; ip address add 10.77.0.33/24 dev eth0");
    assert_eq!(one.node.talk(Tcp, "10.77.0.5:7000").unwrap().to_string(), "10.77.0.33");
    printer.run(&["busybox", "ping", "-c", "1", "-W", "2", "10.77.0.33"]);
    // The MAC is its own all the same.
    one.node.sh("ip link set eth0 down; ip link set eth0 address 02:01:01:01:01:01; ip link set eth0 up");
    one.node.is_cut_off(Tcp, "10.77.0.5:7000");
    one.release(&client);
    close(&network, printer);
}

fn a_bridge_that_is_not_there_or_is_full(lab: &Lab) {
    let network = Network::new(lab);
    lab.write_config(OFFICE);
    lab.write_policy(ALLOWED);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let there = || Options::new().with("bridge", "office".to_owned());
    let refused = Container::try_new(&user, &client, "one", there()).err().unwrap();
    refused.is("NoSuchBridge", "office");
    // A device of this name that is no bridge.
    network.host.sh("ip link add office type veth peer name other");
    let refused = Container::try_new(&user, &client, "one", there()).err().unwrap();
    assert!(["NoSuchBridge", "KernelRefused", "Unsupported"].contains(&refused.name.as_str()), "{refused:?}");
    network.host.sh("ip link del office");
    network.assert_as_before();
    let printer = office(lab, &network);
    // A kernel's bridge has 1,023 ports. The other ends are elsewhere.
    let crowd = lab.node("plain");
    network.host.sh(&format!(
        "seq 1022 | sed 's/.*/link add p& master office type veth peer name q& netns {}/' | ip -batch -",
        crowd.process.pid
    ));
    let refused = Container::try_new(&user, &client, "one", there()).err().unwrap();
    refused.is("QuotaExceeded", "office");
    network.host.sh("ip link del p7");
    let one = Container::new(&user, &client, "one", there());
    assert!(one.node.pings("10.77.0.5"));
    one.release(&client);
    drop(crowd);
    wait_until("the crowd is gone", || network.devices().len() == 2);
    close(&network, printer);
}

crate::tests![
    a_bridge_of_the_administrators_stays_theirs,
    an_unfiltered_bridge_lets_links_have_any_address,
    a_bridge_that_is_not_there_or_is_full,
];
