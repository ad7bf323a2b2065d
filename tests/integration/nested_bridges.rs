//! Links of containers in containers to bridges of the host's: where policy names them for those inside, made by the broker, and
//! what the roots in there try to have by them.

use std::{net::Ipv4Addr, process::Command};

use zbus::Variant;

use crate::{
    common::{
        Client, Lab, Network, Node, Options, User,
        bus::Refused,
        checker,
        containers::{Shell, busybox_with_command, inside},
        level::{Level, nesting, release},
        network::{Container, Link},
        node::Tcp,
        wait_until,
    },
    explain::{explain, same},
};

const BRIDGES: &str = "[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nsubnet4 = \"10.77.0.0/24\"\n\
    range4 = \"10.77.0.100-10.77.0.120\"\ngateway4 = \"10.77.0.1\"\n";
const ALLOWED: &str = "[[rule]]\nname = \"office\"\nnetwork.bridges = [\"default\", \"account\", \"office\"]\n\
    network.nesting-bridges = [\"office\"]\nquota.links = 6\n";
/// Of the administrator's machine there.
const PRINTER: &str = "10.77.0.5";

// A bridge of the administrator's with a machine on it.
fn office(lab: &Lab, network: &Network<'_>) -> Node {
    let printer = lab.node("plain");
    network.host.sh(&format!(
        "ip link add office type bridge; ip link set office up; ip address add 10.77.0.1/24 dev office
         ip link add desk type veth peer name eth0 netns {}; ip link set desk master office; ip link set desk up",
        printer.process.pid
    ));
    printer.sh(&format!("ip link set eth0 up; ip address add {PRINTER}/24 dev eth0"));
    wait_until("the office is open", || {
        network.host.pings(PRINTER)
            && network.host.run(&["ip", "link", "show", "office"]).contains("state UP")
            && !network.host.run(&["ip", "-6", "address"]).contains("tentative")
    });
    network.look();
    lab.write_config(BRIDGES);
    printer
}

fn close(network: &Network<'_>, printer: Node) {
    network.assert_as_before();
    drop(printer);
    network.host.run(&["ip", "link", "del", "office"]);
    wait_until("the desk is gone", || !network.devices().iter().any(|name| name == "desk"));
    network.look();
}

// A network namespace of a user namespace that the root of this level made.
fn node_inside(lab: &Lab, level: &Level) -> Node {
    let programs = lab.programs.join("tests");
    let mut command = Command::new("nsenter");
    command.arg(format!("--user=/proc/{}/ns/user", level.namespace.pid)).args(["-S0", "-G0"]);
    command.arg(programs).arg("--role");
    let node = Node::start(command, "container");
    node.sh("ip link set lo up");
    node
}

fn on(bridge: &str, node: &Node) -> Options {
    Options::new().netns(&node.netns).with("bridge", bridge.to_owned())
}

fn with_link(client: &Client, name: &str, link: Options) -> Result<(String, Link), Refused> {
    let grant = client.create(name, Options::new().no_range().links(vec![link]))?;
    let link = client.links(&grant.path).remove(0);
    Ok((grant.path, link))
}

fn is_of_the_office(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    octets[..3] == [10, 77, 0] && (100..=120).contains(&octets[3])
}

fn containers_in_containers_on_a_bridge_of_the_hosts(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_policy(ALLOWED);
    let mut broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    let archive = busybox_with_command(lab);
    shell.import_inside(&[], &archive, "box");
    shell.done(&["launch", "box", "one", "--nesting"]);
    let bridges = shell.done(&inside(&["one"], &["cgrant", "--format", "json", "link", "bridges"]));
    assert!(!bridges.contains("office"), "the container has no link there: {bridges}");
    shell.done(&["delete", "--force", "one"]);
    shell.done(&["launch", "box", "one", "--nesting", "--link=office"]);
    shell.import_inside(&["one"], &archive, "box");
    let bridges = shell.done(&inside(&["one"], &["cgrant", "--format", "json", "link", "bridges"]));
    assert!(bridges.contains("\"office\"") && !bridges.contains("default"), "{bridges}");
    shell.done(&inside(&["one"], &["cgrant", "launch", "box", "two", "--nesting", "--link=office"]));
    shell.import_inside(&["one", "two"], &archive, "box");
    shell.done(&inside(&["one", "two"], &["cgrant", "launch", "box", "three", "--link=office"]));
    shell.done(&inside(
        &["one"],
        &["cgrant", "run", "--link=office", "--", "/bin/ip", "link", "show", "eth0"],
    ));
    checker::assert_in_order(lab);
    let address = |levels: &[&str], name: &str| {
        let list = shell.done(&inside(levels, &["cgrant", "--format", "json", "list", name]));
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        list[0]["address"][0].as_str().unwrap().parse::<Ipv4Addr>().unwrap()
    };
    let (two, three) = (address(&["one"], "two"), address(&["one", "two"], "three"));
    assert!(two != three && is_of_the_office(two) && is_of_the_office(three), "{two} {three}");
    let all = ["one", "two", "three"];
    let reaches = |levels: &[&str], to: &str| {
        let ping = inside(levels, &["ping", "-c", "1", "-W", "1", to]);
        wait_until(&format!("{levels:?} reach {to}"), || shell.output(&ping).status.success());
    };
    reaches(&all[..2], PRINTER);
    reaches(&all, PRINTER);
    assert!(printer.pings(&three.to_string()) && printer.pings(&two.to_string()));
    // The one around has no part in it, and no interface by it.
    let devices = shell.done(&inside(&["one"], &["ip", "-o", "link"]));
    assert!(!devices.contains("cg") && !devices.contains("office"), "{devices}");
    broker.kill_everything();
    assert!(printer.pings(&three.to_string()));
    broker.start_again();
    wait_until("the broker is back", || shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    reaches(&all, PRINTER);
    // It goes with its container.
    shell.done(&inside(&["one", "two"], &["cgrant", "stop", "three"]));
    wait_until("its link is gone", || !printer.pings(&three.to_string()));
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
    close(&network, printer);
}

// Without a word of policy's about those inside there is no bridge for them.
fn a_bridge_that_policy_does_not_name_is_not_there(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_policy("[[rule]]\nname = \"office\"\nnetwork.bridges = [\"default\", \"office\"]\n");
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Level::new(&user, &client, "one", nesting(2));
    let first = one.client(lab, &user, broker.socket());
    assert!(first.bridges().is_empty());
    let node = node_inside(lab, &one);
    for bridge in ["default", "account", "office", "none"] {
        with_link(&first, "x", on(bridge, &node)).unwrap_err().is("NoSuchBridge", "there is no bridge");
    }
    let grant = first.create("x", Options::new().no_range()).unwrap();
    first.add_link(&grant.path, on("office", &node)).unwrap_err().is("NoSuchBridge", "there is no bridge");
    first.release(&grant.path, false).unwrap();
    release(&client, &one.grant.path, Options::new()).unwrap();
    checker::assert_empty(lab);
    close(&network, printer);
}

// A link of the account's own, of a container that it has given one.
fn given(client: &Client, level: &Level, user: &User, options: fn(&Node) -> Options) -> Node {
    let node = Node::container(user);
    client.add_link(&level.grant.path, options(&node)).unwrap();
    node
}

fn of_office(node: &Node) -> Options {
    on("office", node)
}

// Policy names the bridge for all containers of the account in containers; which of them have it says who makes the one around.
fn a_bridge_that_the_container_has_no_link_on_is_not_there(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_policy(ALLOWED);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Level::new(&user, &client, "one", nesting(3));
    let first = one.client(lab, &user, broker.socket());
    let node = node_inside(lab, &one);
    let bare = first.create("bare", Options::new().no_range()).unwrap();
    let refused = |caller: &Client, node: &Node, grant: &str, want: &dyn Fn() -> Options, code, why| {
        let link = || want().netns(&node.netns);
        let real = caller.add_link(grant, link());
        same(
            why,
            &explain(caller, "AddLink", Options::new().links(vec![want()]).with("grant", grant.to_owned()))
                .unwrap(),
            &real,
        );
        real.unwrap_err().is(code, why);
        with_link(caller, "x", link()).unwrap_err().is(code, why);
    };
    let plain = || Options::new().with("bridge", "office");
    let rates = |path: &str| {
        let link = client.links(path).remove(0);
        ["upload", "download"].map(|key| u64::try_from(link.all[key].try_clone().unwrap()).unwrap())
    };
    assert!(first.bridges().is_empty());
    refused(&first, &node, &bare.path, &plain, "NotAuthorized", "has no link on bridge office");
    // A link elsewhere is none there.
    let elsewhere = given(&client, &one, &user, |node| on("account", node));
    refused(&first, &node, &bare.path, &plain, "NotAuthorized", "has no link on bridge office");
    let outer = given(&client, &one, &user, |node| {
        on("office", node).with("upload", 2_000_000_u64).with("download", 3_000_000_u64)
    });
    assert_eq!(first.bridges().len(), 1);
    // What it has bounds what those inside have.
    for (key, rate) in [("upload", 2_000_001_u64), ("download", 3_000_001)] {
        refused(&first, &node, &bare.path, &|| plain().with(key, rate), "QuotaExceeded", key);
    }
    refused(
        &first,
        &node,
        &bare.path,
        &|| plain().with("vlan", 5_u16),
        "NotAuthorized",
        "has no link on VLAN 5",
    );
    first.add_link(&bare.path, on("office", &node)).unwrap();
    assert_eq!(rates(&bare.path), [2_000_000, 3_000_000]);
    // One further in has what the one around it has, not what is further out.
    let two = one.inner(&user, &first, "two", nesting(1));
    let second = two.client(lab, &user, broker.socket());
    let lower = node_inside(lab, &two);
    let deep = second.create("deep", Options::new().no_range()).unwrap();
    refused(&second, &lower, &deep.path, &plain, "NotAuthorized", "has no link on bridge office");
    let between = node_inside(lab, &one);
    first.add_link(&two.grant.path, on("office", &between).with("upload", 1_000_000_u64)).unwrap();
    second.add_link(&deep.path, on("office", &lower)).unwrap();
    assert_eq!(rates(&deep.path), [1_000_000, 3_000_000]);
    checker::assert_in_order(lab);
    // With the container's own all go that are inside.
    let office = client.links(&one.grant.path).into_iter().find(|link| link.bridge == "office").unwrap();
    client.remove_link(&one.grant.path, &office.name).unwrap();
    for path in [&bare.path, &two.grant.path, &deep.path] {
        assert!(client.links(path).is_empty(), "{path}");
    }
    assert!(first.bridges().is_empty());
    assert_eq!(client.links(&one.grant.path).len(), 1);
    checker::assert_in_order(lab);
    // Also when that ends at the container's end, by whoever is in there.
    let again = given(&client, &one, &user, of_office);
    first.add_link(&bare.path, on("office", &node)).unwrap();
    let office = client.links(&one.grant.path).into_iter().find(|link| link.bridge == "office").unwrap();
    again.run(&["ip", "link", "del", &office.name]);
    wait_until("those inside went with it", || client.links(&bare.path).is_empty());
    checker::assert_in_order(lab);
    drop(again);
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    drop((elsewhere, outer));
    checker::assert_empty(lab);
    close(&network, printer);
}

// The root of a container wants into other networks, to be somebody else there, or to use up what others are to have.
fn nobody_inside_gets_more_than_a_link_of_its_own(lab: &Lab) {
    let network = Network::new(lab);
    let printer = office(lab, &network);
    lab.write_policy(ALLOWED);
    let broker = network.broker();
    let (user, stranger) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let one = Level::new(&user, &client, "one", nesting(6));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(2));
    let second = two.client(lab, &user, broker.socket());
    let node = node_inside(lab, &one);
    let own = given(&client, &one, &user, of_office);
    let between = node_inside(lab, &one);
    first.add_link(&two.grant.path, on("office", &between)).unwrap();
    printer.serve_all(7000);
    let service = format!("{PRINTER}:7000");
    // Bridges that policy has for the account alone, one that is the account's own, or none.
    for bridge in ["default", "account", "none"] {
        with_link(&first, "x", on(bridge, &node)).unwrap_err().is("NoSuchBridge", "");
    }
    let named: Vec<String> =
        first.bridges().iter().map(|bridge| <&str>::try_from(&bridge["name"]).unwrap().to_owned()).collect();
    assert_eq!(named, ["office"]);
    assert_eq!(first.bridges()[0]["device"], Variant::from("").try_into().unwrap());
    // What is the host's, or could be another container's.
    for (link, why) in [
        (Options::new().netns(&node.netns), "has to say its bridge"),
        (on("office", &node).with("address4", "10.77.0.111".to_owned()), "can't be chosen"),
        (on("office", &node).with("ports", vec!["8080:80".to_owned()]), "ports of the host's"),
        (Options::new().with("kind", "tap".to_owned()).with("bridge", "office".to_owned()), "taps are not"),
    ] {
        with_link(&first, "x", link).unwrap_err().is("Unsupported", why);
    }
    // Network namespaces of others: the host's, one of the account's, of the level below, of another account.
    let outer = Node::container(&user);
    let lower = node_inside(lab, &two);
    let theirs = Node::container(&stranger);
    for (caller, node) in [
        (&first, &network.host),
        (&first, &printer),
        (&first, &outer),
        (&first, &lower),
        (&first, &theirs),
        (&second, &node),
        (&second, &outer),
        (&client, &lower),
    ] {
        let refused = with_link(caller, "x", on("office", node)).unwrap_err();
        refused.is("NotAuthorized", "");
        let said = format!("{refused:?}");
        assert!(std::ptr::eq(caller, &client) || !said.contains(&user.uid.to_string()), "{said}");
    }
    // A name inside is no other's: neither its address nor its place in the record.
    let web = Container::new(&user, &client, "web", on("office", &Node::container(&user)));
    let (address, mac) = (web.link.address4.unwrap(), web.link.mac.clone());
    web.release(&client);
    let (inner, link) = with_link(&first, "web", on("office", &node)).unwrap();
    assert!(link.address4 != Some(address) && link.mac != mac, "{link:?}");
    assert!(is_of_the_office(link.address4.unwrap()) && link.bridge == "office");
    assert_eq!((link.host_name.as_str(), link.ifindex), ("", 0), "the host's end is the host's");
    let again = Container::new(&user, &client, "web", on("office", &Node::container(&user)));
    assert_eq!((again.link.address4.unwrap(), &again.link.mac), (address, &mac));
    // It reaches whom it may, as itself alone.
    node.talk(Tcp, &service).unwrap();
    node.sh("ip address add 10.77.0.119/24 dev eth0");
    assert!(node.talk_from(Tcp, Some("10.77.0.119:0"), &service, 150).is_err());
    assert!(!printer.run(&["ip", "neigh"]).contains("10.77.0.119 "), "nobody heard of it");
    // All count as the account's: it has six.
    let more = [node_inside(lab, &one), node_inside(lab, &one), node_inside(lab, &one)];
    let grant = first.create("more", Options::new().no_range()).unwrap();
    first.add_link(&grant.path, on("office", &more[0])).unwrap();
    first.add_link(&grant.path, on("office", &more[1])).unwrap();
    let refused = first.add_link(&grant.path, on("office", &more[2])).unwrap_err();
    refused.is("QuotaExceeded", "links");
    // Nobody else takes them away.
    let sibling = one.inner(&user, &first, "sibling", nesting(1));
    let beside = sibling.client(lab, &user, broker.socket());
    let other = stranger.client(broker.socket());
    for caller in [&second, &beside, &other] {
        caller.remove_link(&inner, "eth0").unwrap_err().is("NoSuchGrant", "");
        release(caller, &inner, Options::new().with("force", true)).unwrap_err().is("NoSuchGrant", "");
        caller.add_link(&inner, on("office", &more[2])).unwrap_err().is("NoSuchGrant", "");
    }
    node.talk(Tcp, &service).unwrap();
    checker::assert_in_order(lab);
    // Their own they do, and with the grant around they go.
    first.remove_link(&grant.path, "eth1").unwrap();
    first.add_link(&grant.path, on("office", &more[2])).unwrap();
    let ports = || network.host.run(&["ip", "-br", "link", "show", "master", "office"]).lines().count();
    assert_eq!(ports(), 1 + 6);
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    assert_eq!(ports(), 1 + 1);
    drop(own);
    again.release(&client);
    checker::assert_empty(lab);
    close(&network, printer);
}

crate::tests![
    containers_in_containers_on_a_bridge_of_the_hosts,
    a_bridge_that_policy_does_not_name_is_not_there,
    a_bridge_that_the_container_has_no_link_on_is_not_there,
    nobody_inside_gets_more_than_a_link_of_its_own,
];
