//! Links when something goes wrong: each step fails in turn, the helper or the engine dies at it, somebody deletes what the broker made.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    Broker, Client, Container, Grant, Lab, Network, Node, Options, User, bus::Refused, checker,
    network::OUTSIDE4, node::Tcp, wait_until,
};

// One that runs all the while and must not notice.
struct Bystander {
    user: User,
    one: Container,
    two: Container,
}

impl Bystander {
    fn new(lab: &Lab, broker: &Broker) -> Self {
        let user = lab.user();
        let client = user.client(broker.socket());
        let one = Container::new(&user, &client, "one", Options::new().ports(&["9090:7000"]));
        let two = Container::new(&user, &client, "two", Options::new());
        one.node.serve_all(7000);
        Self { user, one, two }
    }

    #[track_caller]
    fn check(&self, network: &Network<'_>, when: &str) {
        for address in self.one.link.both() {
            let answer = self.two.node.talk(Tcp, &format!("{address}:7000"));
            assert!(answer.is_ok(), "{when}: {address} is not reached: {answer:?}");
        }
        let answer = network.outside.talk(Tcp, "192.0.2.2:9090");
        assert!(answer.is_ok(), "{when}: the published port is not reached: {answer:?}");
        assert!(self.two.node.pings(OUTSIDE4), "{when}: no way out");
    }

    fn release(self, broker: &Broker) {
        let client = self.user.client_again(broker.socket());
        self.one.release(&client);
        self.two.release(&client);
    }
}

// Waits until the rules are these; the order of a set's elements is the kernel's.
#[track_caller]
fn await_rules(network: &Network<'_>, before: &str) {
    let sorted = |text: &str| {
        let mut words: Vec<String> = text.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
        words.sort();
        words.retain(|word| !word.is_empty());
        words
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let now = network.host.run(&["nft", "list", "ruleset"]);
        if sorted(&now) == sorted(before) {
            return;
        }
        let missing: Vec<&str> =
            before.lines().filter(|line| !now.lines().any(|other| other == *line)).collect();
        let new: Vec<&str> = now.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
        assert!(
            std::time::Instant::now() < end,
            "the rules are not back: missing {missing:#?}, new {new:#?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
}

// A grant with two links, limits of rate, and published ports of both kinds.
fn all_of_it(client: &Client, node: &Node) -> Result<Grant, Refused> {
    let first = Options::new()
        .netns(&node.netns)
        .with("upload", 8_000_000_u64)
        .with("download", 8_000_000_u64)
        .ports(&["8080:80", "8080:80/udp"]);
    let second = Options::new().netns(&node.netns);
    client
        .create("whole", Options::new().lifetime("persistent").no_range().key("k").links(vec![first, second]))
}

fn is_bare(node: &Node) -> bool {
    !node.run(&["ip", "-br", "link"]).contains("eth")
}

// The steps that a request takes in the network helper, or in the engine.
fn steps(broker: &Broker, client: &Client, user: &User, net: bool) -> Vec<String> {
    order(broker, net, "count");
    let node = Node::container(user);
    let grant = all_of_it(client, &node).unwrap();
    let all = taken(broker, net);
    client.release(&grant.path, false).unwrap();
    all
}

fn order(broker: &Broker, net: bool, order: &str) {
    if net { broker.order_net_fault(order) } else { broker.order_fault(order) }
}

fn taken(broker: &Broker, net: bool) -> Vec<String> {
    if net { broker.net_fault_steps() } else { broker.fault_steps() }
}

fn is_done(broker: &Broker, net: bool) -> bool {
    if net { broker.net_fault_done() } else { broker.fault_done() }
}

// Alone, so that the bridge, the tables and all that comes with the first link is made in it too.
fn each_step_fails_in_turn(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    for net in [true, false] {
        let all = steps(&broker, &client, &user, net);
        network.assert_as_before();
        assert!(all.len() >= 8, "{all:?}");
        for (number, step) in all.iter().enumerate() {
            let node = Node::container(&user);
            order(&broker, net, &format!("fail:{}", number + 1));
            let result = all_of_it(&client, &node);
            assert!(is_done(&broker, net), "{step} was not reached");
            taken(&broker, net);
            match result {
                Ok(grant) => {
                    // Made and recorded, or something that it does not need.
                    assert_eq!(client.links(&grant.path).len(), 2, "{step}: half of it was made");
                    client.release(&grant.path, false).unwrap();
                }
                Err(refused) => {
                    assert_eq!(refused.name, "KernelRefused", "{step}: {refused:?}");
                    assert!(is_bare(&node), "{step}: {}", node.run(&["ip", "link"]));
                }
            }
            let differences = network.differences();
            assert!(
                differences.is_empty() || {
                    network.assert_as_before();
                    true
                },
                "{step}: {differences}"
            );
            assert!(client.names().is_empty(), "{step}");
            checker::assert_empty(lab);
        }
    }
    // It all works still.
    let node = Node::container(&user);
    let grant = all_of_it(&client, &node).unwrap();
    client.release(&grant.path, false).unwrap();
}

fn each_step_dies_in_turn(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    for net in [true, false] {
        let client = user.client_again(broker.socket());
        let all = steps(&broker, &client, &user, net);
        drop(client);
        for (number, step) in all.iter().enumerate() {
            let client = user.client_again(broker.socket());
            let node = Node::container(&user);
            order(&broker, net, &format!("die:{}", number + 1));
            let result = all_of_it(&client, &node);
            assert!(is_done(&broker, net), "{step} was not reached");
            drop(client);
            let client = user.client_again(broker.socket());
            taken(&broker, net);
            // The same request again gives the same grant or the first one; half a one is not there.
            let again = match result {
                Ok(grant) => grant,
                Err(_) => {
                    let fresh = Node::container(&user);
                    let mut again = None;
                    wait_until(&format!("{step}: the request is answered again"), || {
                        again = all_of_it(&client, &fresh).ok();
                        again.is_some()
                    });
                    again.unwrap()
                }
            };
            assert_eq!(client.names(), ["whole"], "{step}");
            client.release(&again.path, false).unwrap_or_else(|refused| panic!("{step}: {refused:?}"));
            bystander.check(&network, step);
            checker::assert_in_order(lab);
            drop(client);
            if number % 5 == 4 {
                // An engine that dies again and again is started later and later, up to half a minute.
                broker.stop();
                broker.start_again();
            }
        }
    }
    bystander.release(&broker);
    network.assert_as_before();
    checker::assert_empty(lab);
}

fn what_somebody_breaks_is_mended_or_told(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let bystander = Bystander::new(lab, &broker);
    let ok = |what: &str| {
        let host = &bystander.one;
        wait_until(&format!("{what} is mended"), || {
            bystander.two.node.talk_from(Tcp, None, &format!("{}:7000", host.link.ip4()), 200).is_ok()
                && network.outside.talk_from(Tcp, None, "192.0.2.2:9090", 200).is_ok()
                && bystander.two.node.pings(OUTSIDE4)
        });
        bystander.check(&network, what);
    };
    ok("nothing");
    let before = network.host.run(&["nft", "list", "ruleset"]);
    assert!(before.contains(&format!("cgrant-{}", lab.instance)), "{before}");
    // A reload of the host's own firewall begins with this.
    network.host.run(&["nft", "flush", "ruleset"]);
    await_rules(&network, &before);
    ok("a flushed ruleset");
    // A part of it.
    let table = before.lines().find(|line| line.starts_with("table netdev")).expect("no netdev table");
    let name: Vec<&str> = table.split_whitespace().collect();
    network.host.run(&["nft", "delete", "table", "netdev", name[2]]);
    await_rules(&network, &before);
    // Our own end renamed.
    let end = bystander.one.link.host_name.clone();
    network
        .host
        .sh(&format!("ip link set {end} down; ip link set {end} name astray; ip link set astray up || true"));
    wait_until("the rename is seen", || {
        network.devices().contains(&end)
            || network.host.run(&["nft", "list", "ruleset"]).contains("astray")
            || broker.log().contains("astray")
    });
    ok("a renamed end");
    // An end that is taken off its bridge or shut down.
    let end = bystander.two.link.host_name.clone();
    network.host.sh(&format!("ip link set {end} nomaster"));
    ok("an end off its bridge");
    // Somebody who knows no better switches forwarding off.
    let bridge = network
        .host
        .sh(&format!("ip -d link show {end} | sed -n 's/.* master \\([^ ]*\\) .*/\\1/p'"))
        .trim()
        .to_owned();
    // The bridge, with all that hangs on it.
    network.host.run(&["ip", "link", "del", &bridge]);
    wait_until("the bridge is mended, or a link is told to be lost", || {
        let client = bystander.user.client(broker.socket());
        let gone = client.links(&bystander.two.grant.path).is_empty()
            || client.links(&bystander.one.grant.path).is_empty();
        gone || bystander
            .two
            .node
            .talk_from(Tcp, None, &format!("{}:7000", bystander.one.link.ip4()), 200)
            .is_ok()
    });
    let client = bystander.user.client(broker.socket());
    let kept = [&bystander.one, &bystander.two].iter().all(|one| !client.links(&one.grant.path).is_empty());
    if kept {
        ok("a deleted bridge");
    }
    // An end that is deleted on the host can't be mended: its far end is gone with it.
    if kept {
        let mut watch = client.watch();
        client.links(&bystander.two.grant.path);
        network.host.sh(&format!("ip link del {end}"));
        let told: (String, (String, String)) =
            client.signal(&mut watch, "LinkRemoved", crate::common::PATIENCE).unwrap();
        assert_eq!((told.0.as_str(), told.1.0.as_str()), (bystander.two.grant.path.as_str(), "eth0"));
        assert!(client.links(&bystander.two.grant.path).is_empty());
    }
    drop(client);
    bystander.release(&broker);
    network.assert_as_before();
}

fn whoever_meddles_while_nobody_looks_is_found_out(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let bystander = Bystander::new(lab, &broker);
    let before = network.host.run(&["nft", "list", "ruleset"]);
    broker.kill_everything();
    // Rules gone, one container gone, a device that bears the broker's mark and is nobody's, and its own deleted.
    network.host.run(&["nft", "flush", "ruleset"]);
    let orphan = "cgvffffffffff";
    network.host.sh(&format!("ip link add {orphan} type veth peer name cgpffffffffff; ip link set {orphan} alias 'cgrant {} ffffffffffffffff eth0'", lab.instance));
    broker.start_again();
    await_rules(&network, &before);
    wait_until("what is nobody's is removed", || !network.devices().iter().any(|name| name == orphan));
    bystander.check(&network, "after the restart");
    // What is not the broker's own stays, whatever its name is.
    broker.kill_everything();
    network.host.sh("ip link add cgvnotours type bridge; nft add table inet cgrant-somebody-elses");
    broker.start_again();
    bystander.check(&network, "after another restart");
    let now = network.devices();
    assert!(now.iter().any(|name| name == "cgvnotours"), "{now:?}");
    assert!(network.host.run(&["nft", "list", "tables"]).contains("cgrant-somebody-elses"));
    network.host.sh("ip link del cgvnotours; nft delete table inet cgrant-somebody-elses");
    // A container that ends while no broker runs leaves nothing, once there is one.
    let client = bystander.user.client(broker.socket());
    drop(client);
    broker.kill_everything();
    let Bystander { user, one, two } = bystander;
    drop(two.node);
    wait_until("its end on the host is gone", || !network.devices().contains(&two.link.host_name));
    broker.start_again();
    let client = user.client(broker.socket());
    wait_until("the link is known to be gone", || client.links(&two.grant.path).is_empty());
    client.release(&two.grant.path, false).unwrap();
    one.release(&client);
}

// Stops a process, or lets it go on.
fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

// While the helper is dead, somebody takes a port that it held.
fn a_port_that_was_taken_meanwhile_is_the_grants_no_more(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let web = Container::new(&user, &client, "web", Options::new().ports(&["8080:80", "8081:81"]));
    let mut watch = client.watch();
    let (supervisor, net) = (broker.processes()[0].0, broker.net());
    signal(supervisor, Signal::STOP);
    signal(net, Signal::KILL);
    let mut service = None;
    wait_until("the port is free", || {
        service = network.host.bind(Tcp, "0.0.0.0:8080", false).ok();
        service.is_some()
    });
    signal(supervisor, Signal::CONT);
    let changed = client.change_of_grant(&mut watch, Duration::from_secs(30));
    assert_eq!(changed.unwrap().0, web.grant.path, "the change is told");
    let left = client.links(&web.grant.path).remove(0).ports;
    assert!(left.len() == 1 && left[0].contains("8081:81"), "{left:?}");
    // It counts no more, and who has it now can be followed by whoever asks next.
    let refused = client.publish(&web.grant.path, "eth0", &["8080:80"]).unwrap_err();
    refused.is("AddressInUse", "8080");
    network.host.close(service.unwrap());
    client.publish(&web.grant.path, "eth0", &["8080:80"]).unwrap();
    assert_eq!(client.links(&web.grant.path)[0].ports.len(), 2);
    web.release(&client);
}

// The helper gives no sign any more: it is killed, and the next one takes over what is there.
fn a_helper_that_hangs_is_replaced(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    let client = user.client(broker.socket());
    let net = broker.net();
    signal(net, Signal::STOP);
    let refused = Container::try_new(&user, &client, "late", Options::new()).err().unwrap();
    refused.is("TimedOut", "gave no sign");
    wait_until("it is gone", || broker.net() != net);
    let late = Container::new(&user, &client, "late", Options::new());
    assert!(late.node.pings(OUTSIDE4));
    bystander.check(&network, "after the helper was replaced");
    assert!(broker.log().contains("it gave no sign and was killed"));
    late.release(&client);
    bystander.release(&broker);
    network.look();
}

fn the_hosts_networks_change(lab: &Lab) {
    let network = Network::new(lab);
    // All of one pool is the host's own already: the other is taken, and never a network that is routed elsewhere.
    network.host.sh("ip route add 10.0.0.0/8 via 192.0.2.1");
    network.look();
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new());
    let octets = one.link.address4.unwrap().octets();
    assert!(octets[0] == 172 && (16..32).contains(&octets[1]), "{}", one.link.ip4());
    // A network that comes later and clashes is told.
    network.host.sh(&format!("ip address add {}.{}.0.1/16 dev lo", octets[0], octets[1]));
    wait_until("the clash is told", || {
        broker.log().contains("clash")
            || client
                .examine_network()
                .iter()
                .any(|(_, good, found, _)| !good && found.contains(&format!("{}.{}", octets[0], octets[1])))
    });
    network.host.sh(&format!("ip address del {}.{}.0.1/16 dev lo", octets[0], octets[1]));
    one.release(&client);
}

fn a_host_that_is_configured_by_advertisements_stays_so(lab: &Lab) {
    let network = Network::new(lab);
    // The router tells the host its way out; a router itself would not listen to that.
    network.host.sh("ip -6 route del default; echo 1 >/proc/sys/net/ipv6/conf/up0/accept_ra");
    let mac = network
        .router
        .sh("cat /sys/class/net/lan/address 2>/dev/null || ip -br link show lan | tr -s ' ' | cut -d' ' -f3");
    let mac: Vec<u8> = mac.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    let mac: [u8; 6] = mac.try_into().unwrap();
    let local = crate::common::frames::link_local(mac);
    let advertise = || {
        let packet = crate::common::frames::router_advertisement(local, mac);
        let frame = crate::common::frames::ethernet(
            crate::common::frames::ALL_NODES_MAC,
            mac,
            crate::common::frames::IPV6,
            &packet,
        );
        network.router.send("to-host", &[frame]);
    };
    let default = || network.host.run(&["ip", "-6", "route", "show", "default"]);
    wait_until("the host has a router", || {
        advertise();
        default().contains(&local.to_string())
    });
    wait_until("its address is in use", || !network.host.run(&["ip", "-6", "address"]).contains("tentative"));
    network.look();
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new());
    assert!(default().contains(&local.to_string()), "the host lost its router: {}", default());
    network.host.sh("ip -6 route flush default || true; ip -6 route del default 2>/dev/null || true");
    wait_until("it listens to routers still", || {
        advertise();
        default().contains(&local.to_string())
    });
    one.release(&client);
    // A route that came again has no age that could be compared; what else there is has to be as before.
    advertise();
    network.assert_as_before();
}

fn settings_that_others_changed_are_left_alone(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    // The administrator switches forwarding on, for reasons of its own, while there are links.
    let one = Container::new(&user, &client, "one", Options::new());
    network.host.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
    one.release(&client);
    wait_until("the links are gone", || network.devices().is_empty());
    assert_eq!(network.host.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n", "a global switch was put back");
    network.host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    // What was on before stays on.
    network
        .host
        .sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv4/conf/up0/forwarding");
    network.look();
    let one = Container::new(&user, &client, "one", Options::new());
    one.release(&client);
    network.assert_as_before();
}

fn another_firewall_in_the_way_is_named(lab: &Lab) {
    let network = Network::new(lab);
    network.host.sh("nft add table inet filter; nft add chain inet filter forward '{ type filter hook forward priority 0; policy drop; }'");
    network.look();
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new());
    let found = client.examine_network();
    assert!(
        found.iter().any(|(_, good, what, remedy)| !good
            && (what.contains("filter") || what.contains("forward"))
            && !remedy.is_empty()),
        "{found:?}"
    );
    let output = network.cgrant(&user, &broker, &["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("forward"), "{said}");
    one.release(&client);
}

fn a_thousand_links(lab: &Lab) {
    let network = Network::new(lab);
    lab.write_policy("[[rule]]\nname = \"many\"\n[rule.quota]\nlinks = 64\ngrants = 64\n");
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let nodes: Vec<Node> = (0..10).map(|_| Node::container(&user)).collect();
    let kept = Container::new(&user, &client, "kept", Options::new());
    network.look();
    let start = std::time::Instant::now();
    let mut addresses = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let grants: Vec<Grant> = (0..10)
            .map(|n| {
                let links = (0..10).map(|_| Options::new().netns(&nodes[n].netns)).collect();
                client.create(&format!("g{n}"), Options::new().no_range().links(links))
            })
            .enumerate()
            .map_while(|(n, result)| match result {
                // The quota is met in the seventh: 64 with the one that is kept.
                Err(refused) => {
                    assert_eq!((n, refused.name.as_str()), (6, "QuotaExceeded"), "{refused:?}");
                    None
                }
                Ok(grant) => Some(grant),
            })
            .collect();
        assert_eq!(grants.len(), 6);
        for grant in &grants {
            addresses.extend(client.links(&grant.path).into_iter().map(|link| link.ip4()));
        }
        for grant in grants {
            client.release(&grant.path, false).unwrap();
        }
    }
    let time = start.elapsed();
    // The same names have the same addresses, so nothing is used up.
    assert_eq!(addresses.len(), 60);
    assert!(time.as_secs() < 240, "600 links took {time:?}");
    // One by one, four hundred more: a thousand.
    let grant = client.create("single", Options::new().no_range()).unwrap();
    for _ in 0..400 {
        let link = client.add_link(&grant.path, Options::new().netns(&nodes[0].netns)).unwrap();
        client.remove_link(&grant.path, &link.name).unwrap();
    }
    client.release(&grant.path, false).unwrap();
    network.assert_as_before();
    assert!(kept.node.pings(OUTSIDE4));
    // The helper holds on to nothing.
    let net = broker.net();
    let descriptors = std::fs::read_dir(format!("/proc/{net}/fd")).unwrap().count();
    assert!(descriptors < 40, "{descriptors} descriptors are open");
    kept.release(&client);
    wait_until("nothing is left", || network.devices().is_empty());
    network.look();
}

crate::tests![
    each_step_fails_in_turn,
    each_step_dies_in_turn,
    what_somebody_breaks_is_mended_or_told,
    whoever_meddles_while_nobody_looks_is_found_out,
    a_port_that_was_taken_meanwhile_is_the_grants_no_more,
    a_helper_that_hangs_is_replaced,
    the_hosts_networks_change,
    a_host_that_is_configured_by_advertisements_stays_so,
    settings_that_others_changed_are_left_alone,
    another_firewall_in_the_way_is_named,
    a_thousand_links,
];
