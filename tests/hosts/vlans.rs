//! VLANs on a bridge of the administrator's. Needs a kernel whose bridges filter VLANs, which the virtual machines have; on one that
//! has not, what is tested is that the refusal says so.

use crate::common::{Container, Lab, Network, Node, Options, node::Tcp, wait_until};

// A machine on the bridge in one VLAN.
fn machine(lab: &Lab, network: &Network<'_>, port: &str, vlan: u16, address: &str) -> Node {
    let node = lab.node("plain");
    network.host.sh(&format!(
        "ip link add {port} type veth peer name eth0 netns {}; ip link set {port} master office; ip link set {port} up
         bridge vlan del dev {port} vid 1; bridge vlan add dev {port} vid {vlan} pvid untagged",
        node.process.pid
    ));
    node.sh(&format!("ip link set lo up; ip link set eth0 up; ip address add {address}/24 dev eth0"));
    node.serve_all(7000);
    node
}

/// The kernel tells the state of a bridge and of its addresses late, so a look before that differs from any later.
fn settled(network: &Network) {
    wait_until("the bridge is up", || {
        network.host.run(&["ip", "link", "show", "office"]).contains("state UP")
    });
    wait_until("addresses are in use", || !network.host.run(&["ip", "-6", "address"]).contains("tentative"));
}

fn links_in_vlans(lab: &Lab) {
    let network = Network::new(lab);
    lab.write_config(
        "[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nsubnet4 = \"10.77.0.0/24\"\n",
    );
    lab.write_policy(
        "[[rule]]\nname = \"office\"\n[rule.network]\nbridges = [\"office\"]\nvlans = [42, \"100-199\"]\n",
    );
    let in_vlan = |vlan: u16| Options::new().with("vlan", vlan);
    let filters =
        network.host.try_run(&["ip", "link", "add", "office", "type", "bridge", "vlan_filtering", "1"]).0
            == 0;
    let installed = std::env::var_os("CGRANT_TEST_INSTALLED").is_some();
    assert!(filters || !installed, "the kernel of the virtual machines filters VLANs");
    let user = lab.user();
    if !filters {
        eprintln!(
            "THIS KERNEL'S BRIDGES FILTER NO VLANS: here only the refusal is tested, the rest in the virtual machines"
        );
        // With a port that stays, so that the bridge has an address and a carrier of its own before and after.
        network.host.sh(
            "ip link add office type bridge; ip link add desk type veth peer name lobby; ip link set desk master office
             ip link set office up; ip link set desk up; ip link set lobby up",
        );
        settled(&network);
        network.look();
        let broker = network.broker();
        let client = user.client(broker.socket());
        let refused = Container::try_new(&user, &client, "one", in_vlan(42)).err().unwrap();
        assert!(["Unsupported", "KernelRefused"].contains(&refused.name.as_str()), "{refused:?}");
        assert!(refused.message.to_lowercase().contains("vlan"), "{refused:?}");
        network.assert_as_before();
        network.host.sh("ip link del desk; ip link del office");
        network.look();
        return;
    }
    network.host.sh("ip link set office up");
    let here = machine(lab, &network, "desk", 42, "10.77.0.5");
    let elsewhere = machine(lab, &network, "lobby", 43, "10.77.0.6");
    settled(&network);
    network.look();
    let broker = network.broker();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", in_vlan(42));
    let two = Container::new(&user, &client, "two", in_vlan(42));
    let other = Container::new(&user, &client, "other", in_vlan(150));
    for container in [&one, &two, &other] {
        container.node.serve_all(7000);
    }
    wait_until("the desk is reached", || one.node.talk(Tcp, "10.77.0.5:7000").is_ok());
    here.talk(Tcp, &format!("{}:7000", one.link.ip4())).unwrap();
    one.node.talk(Tcp, &format!("{}:7000", two.link.ip4())).unwrap();
    for (node, to) in [
        (&one.node, "10.77.0.6".to_owned()),
        (&one.node, other.link.ip4()),
        (&other.node, one.link.ip4()),
        (&other.node, "10.77.0.5".into()),
        (&elsewhere, one.link.ip4()),
    ] {
        node.is_cut_off(Tcp, &format!("{to}:7000"));
    }
    // Its own port is in this VLAN and in no other; a tag of its own choice leads nowhere.
    let vlans = network.host.run(&["bridge", "vlan", "show", "dev", &one.link.host_name]);
    assert!(vlans.contains("42 PVID Egress Untagged") && !vlans.contains(" 1 "), "{vlans}");
    one.node.sh("ip link add link eth0 name eth0.43 type vlan id 43; ip link set eth0.43 up; ip address add 10.77.0.44/24 dev eth0.43; ip route add 10.77.0.6/32 dev eth0.43");
    one.node.is_cut_off(Tcp, "10.77.0.6:7000");
    // What policy does not give.
    let refused = Container::try_new(&user, &client, "late", in_vlan(43)).err().unwrap();
    refused.is("NotAuthorized", "43");
    for container in [one, two, other] {
        container.release(&client);
    }
    network.assert_as_before();
    drop((here, elsewhere));
    network.host.run(&["ip", "link", "del", "office"]);
    wait_until("the machines are gone", || {
        !network.devices().iter().any(|name| name == "desk" || name == "lobby")
    });
    network.look();
}

crate::tests![links_in_vlans];
