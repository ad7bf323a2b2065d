//! Links: four containers of two accounts on a host in a namespace, whom each can reach and whom not, in both families; again
//! with the broker dead, after it was started again, and when its network helper was killed. In the end nothing is left.

use std::net::IpAddr;

use crate::common::{
    Broker, Container, Lab, Network, Options, User,
    network::{HOST4, HOST6, NEIGHBOUR4, NEIGHBOUR6, OUTSIDE4, OUTSIDE6},
    node::{Carrier, Node, Tcp, Udp},
    wait_until,
};

const BOTH: [Carrier; 2] = [Tcp, Udp];
// What every container and the host serve.
const SERVICE: u16 = 7000;

struct World<'lab> {
    network: Network<'lab>,
    broker: Broker,
    alice: User,
    bob: User,
    a1: Container,
    a2: Container,
    b1: Container,
    b2: Container,
}

fn both_families(four: &str, six: &str) -> [String; 2] {
    [four.to_owned(), format!("[{six}]")]
}

fn bare(address: &str) -> &str {
    address.trim_start_matches('[').trim_end_matches(']')
}

impl<'lab> World<'lab> {
    fn new(lab: &'lab Lab, network: Network<'lab>) -> Self {
        let broker = network.broker();
        let (alice, bob) = (lab.user(), lab.user());
        let client = alice.client(broker.socket());
        let ports = ["8080:7000", "8080:7000/udp"];
        let a1 = Container::new(&alice, &client, "a1", Options::new().ports(&ports));
        let a2 = Container::new(&alice, &client, "a2", Options::new());
        let client = bob.client(broker.socket());
        let b1 = Container::new(&bob, &client, "b1", Options::new());
        let b2 = Container::new(&bob, &client, "b2", Options::new());
        for node in [&a1.node, &a2.node, &b1.node, &b2.node, &network.host, &network.neighbour] {
            node.serve_all(SERVICE);
        }
        network.outside.serve_all(SERVICE);
        Self { network, broker, alice, bob, a1, a2, b1, b2 }
    }

    fn check(&self) {
        self.one_account();
        self.two_accounts();
        self.host();
        self.outward();
        self.inward();
        self.inward_by_loopback6();
    }

    // Containers of one account: everything, with their own addresses.
    fn one_account(&self) {
        for (from, to) in [(&self.a1, &self.a2), (&self.a2, &self.a1), (&self.b1, &self.b2)] {
            for (address, own) in to.link.both().iter().zip([from.link.ip4(), from.link.ip6()]) {
                assert!(from.node.pings(bare(address)), "no ping from {own} to {address}");
                for carrier in BOTH {
                    is_called_from(&from.node, carrier, &format!("{address}:{SERVICE}"), &own);
                }
            }
        }
    }

    // Containers of two accounts: nothing, also not by way of the gateway.
    fn two_accounts(&self) {
        for (from, to) in [(&self.a1, &self.b1), (&self.b2, &self.a2)] {
            let (four, six) = (to.link.ip4(), to.link.ip6());
            let (by4, by6) = (from.link.gateway4.unwrap(), from.link.gateway6.unwrap());
            let routes = |verb: &str| {
                format!("ip route {verb} {four}/32 via {by4}; ip -6 route {verb} {six}/128 via {by6}")
            };
            for routed in [false, true] {
                if routed {
                    from.node.sh(&routes("add"));
                }
                for address in to.link.both() {
                    for carrier in BOTH {
                        from.node.is_cut_off(carrier, &format!("{address}:{SERVICE}"));
                    }
                }
                // Both at once, because each takes its time to hear nothing.
                let said = from.node.sh(&format!(
                    "for to in {four} {six}; do busybox timeout 1 busybox ping -c 1 $to >/dev/null 2>&1 && echo $to & done; wait"
                ));
                assert_eq!(said, "", "answers a ping, routed: {routed}");
            }
            from.node.sh(&routes("del"));
        }
    }

    // Of the host: ICMP and names, nothing else, by whatever address of its own.
    fn host(&self) {
        let mut addresses = self.a1.link.gateways().to_vec();
        addresses.extend(both_families(HOST4, HOST6));
        for address in addresses {
            assert!(self.a1.node.pings(bare(&address)), "the host does not answer a ping to {address}");
            for carrier in BOTH {
                self.a1.node.is_cut_off(carrier, &format!("{address}:{SERVICE}"));
            }
        }
    }

    // To the outside with the host's address, and never from a port that others trust.
    fn outward(&self) {
        for (own, host, outside, near) in [
            ("0.0.0.0", HOST4, OUTSIDE4.to_owned(), NEIGHBOUR4.to_owned()),
            ("[::]", HOST6, format!("[{OUTSIDE6}]"), format!("[{NEIGHBOUR6}]")),
        ] {
            assert!(self.a1.node.pings(bare(&outside)), "no ping to {outside}");
            for address in [&outside, &near] {
                for carrier in BOTH {
                    for port in [0, 700] {
                        let from = format!("{own}:{port}");
                        let seen = self
                            .a1
                            .node
                            .talk_from(carrier, Some(&from), &format!("{address}:{SERVICE}"), 3000)
                            .unwrap_or_else(|e| panic!("{carrier:?} from port {port} to {address}: {e}"));
                        assert_eq!(seen.ip().to_canonical(), host.parse::<IpAddr>().unwrap());
                        assert!(seen.port() > 1023, "port {port} leaves as {}", seen.port());
                    }
                }
            }
        }
    }

    // The published port: from everywhere, with the caller's address where it is outside, the bridge's otherwise.
    fn inward(&self) {
        let World { network, a1, a2, b1, .. } = self;
        let gateways = a1.link.gateways();
        for (host, bridge, near, far) in [
            (HOST4.to_owned(), &gateways[0], NEIGHBOUR4, OUTSIDE4),
            (format!("[{HOST6}]"), &gateways[1], NEIGHBOUR6, OUTSIDE6),
        ] {
            let at = format!("{host}:8080");
            for carrier in BOTH {
                is_called_from(&network.outside, carrier, &at, far);
                is_called_from(&network.neighbour, carrier, &at, near);
                for at in [at.clone(), format!("{bridge}:8080")] {
                    is_called_from(&network.host, carrier, &at, bare(bridge));
                    // Hairpin, and everybody's containers: it is published.
                    for container in [a1, a2, b1] {
                        is_called_from(&container.node, carrier, &at, bare(bridge));
                    }
                }
            }
        }
        for carrier in BOTH {
            is_called_from(&network.host, carrier, "127.0.0.1:8080", bare(&gateways[0]));
        }
    }

    // The kernel has no way from [::1] to elsewhere; a proxy has, which ends with the helper that started it.
    fn inward_by_loopback6(&self) {
        let bridge = self.a1.link.gateway6.unwrap().to_string();
        is_called_from(&self.network.host, Tcp, "[::1]:8080", &bridge);
    }

    fn release(self) {
        let client = self.alice.client(self.broker.socket());
        self.a1.release(&client);
        self.a2.release(&client);
        let client = self.bob.client(self.broker.socket());
        self.b1.release(&client);
        assert!(!self.network.devices().is_empty());
        self.b2.release(&client);
        self.network.assert_as_before();
        wait_until("the name server ends", || self.network.name_servers().is_empty());
    }
}

// Who is called sees the call come from `address`.
#[track_caller]
fn is_called_from(from: &Node, carrier: Carrier, to: &str, address: &str) {
    let seen = from.talk(carrier, to);
    assert_eq!(seen, Ok(address.parse::<IpAddr>().unwrap()), "{carrier:?} to {to}");
}

fn four_containers_of_two_accounts(lab: &Lab) {
    let mut world = World::new(lab, Network::new(lab));
    world.check();
    // What is there stays as it is without a broker, and with the next one.
    let before = world.network.devices();
    world.broker.kill_but_servants();
    world.one_account();
    world.outward();
    world.inward();
    world.broker.start_again();
    world.check();
    assert_eq!(world.network.devices(), before);
    let net = world.broker.net();
    world.broker.kill(net);
    wait_until("another network helper runs", || world.broker.net() != net);
    settled(&world.broker, &world.alice);
    world.inward();
    // With all that serves links.
    world.broker.kill_everything();
    world.one_account();
    world.broker.start_again();
    settled(&world.broker, &world.alice);
    world.check();
    assert_eq!(world.network.devices(), before);
    world.release();
}

// Waits until links can be made and removed: then the network helper knows again what ought to be.
fn settled(broker: &Broker, user: &User) {
    wait_until("links can be made", || {
        let client = user.client(broker.socket());
        let node = Node::container(user);
        let made =
            client.create("probe", Options::new().no_range().links(vec![Options::new().netns(&node.netns)]));
        made.is_ok_and(|grant| client.release(&grant.path, false).is_ok())
    });
}

fn bridged_traffic_may_pass_the_other_tables_or_not(lab: &Lab) {
    let network = Network::new(lab);
    let names =
        ["iptables", "ip6tables", "arptables"].map(|t| format!("/proc/sys/net/bridge/bridge-nf-call-{t}"));
    // In a kernel with br_netfilter, which this has to be.
    let now = network.host.sh(&format!("cat {}", names.join(" ")));
    let other = if now.starts_with('1') { 0 } else { 1 };
    for name in names {
        network.host.sh(&format!("echo {other} >{name}"));
    }
    // A firewall that lets nothing through what is bridged would be seen.
    network.look();
    let world = World::new(lab, network);
    world.check();
    world.release();
}

fn names_lead_both_ways(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new());
    let two = Container::new(&user, &client, "two", Options::new());
    let other = lab.user();
    let there = Container::new(&other, &other.client(broker.socket()), "three", Options::new());
    let check = || {
        assert!(!one.link.dns.is_empty(), "{:?}", one.link);
        for server in &one.link.dns {
            for (name, kind, answer) in [
                ("two.cgrant", "a", two.link.ip4()),
                ("two.cgrant", "aaaa", two.link.ip6()),
                ("three.cgrant", "a", there.link.ip4()),
                (reverse(&two.link.ip4()).as_str(), "ptr", "two.cgrant".into()),
                (reverse(&two.link.ip6()).as_str(), "ptr", "two.cgrant".into()),
                // What the outside's server knows.
                ("far.test", "a", OUTSIDE4.into()),
                ("far.test", "aaaa", OUTSIDE6.into()),
            ] {
                let said = lookup(&one.node, name, kind, *server);
                assert!(said.contains(&answer), "{name} ({kind}) from {server}: {said}");
            }
            // Nothing of ours is asked for outside.
            let said = lookup(&one.node, "nobody.cgrant", "a", *server);
            assert!(said.contains("NXDOMAIN") || said.contains("can't find"), "{said}");
        }
    };
    check();
    // A name server that dies is replaced; one that lives outlives the broker.
    let first = network.name_servers();
    assert_eq!(first.len(), 1, "{first:?}");
    broker.kill(first[0]);
    wait_until("another name server", || {
        let now = network.name_servers();
        now.len() == 1
            && now != first
            && lookup(&one.node, "two.cgrant", "a", one.link.dns[0]).contains(&two.link.ip4())
    });
    drop(client);
    broker.kill_but_servants();
    check();
    broker.start_again();
    wait_until("one name server", || network.name_servers().len() == 1);
    check();
    let client = user.client(broker.socket());
    two.release(&client);
    let said = lookup(&one.node, "two.cgrant", "a", one.link.dns[0]);
    assert!(
        said.contains("NXDOMAIN") || said.contains("can't find"),
        "a name outlives its container: {said}"
    );
    one.release(&client);
    there.release(&other.client(broker.socket()));
}

// The name that stands for an address.
fn reverse(address: &str) -> String {
    match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = address.octets().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            digits.chars().rev().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

fn lookup(node: &Node, name: &str, kind: &str, server: IpAddr) -> String {
    let server = server.to_string();
    node.try_run(&["busybox", "timeout", "5", "busybox", "nslookup", &format!("-type={kind}"), name, &server])
        .1
}

fn payloads_may_ask_for_their_addresses(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let asking = Container::new(&user, &client, "asks", Options::new().with("configure", false));
    let node = &asking.node;
    let addresses = || node.run(&["ip", "address", "show", "dev", "eth0"]);
    assert!(!addresses().contains("inet "), "it was configured: {}", addresses());
    // The advertisement names a router and says that addresses are to be asked for; none is made up.
    node.sh("echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip link set eth0 down");
    node.sh("ip link set eth0 up");
    let heard = node.listen("eth0");
    let mut flags = None;
    wait_until("a router is advertised", || {
        let advertisement =
            node.heard(heard).into_iter().find(|f| f.len() > 78 && f[12..14] == [0x86, 0xdd] && f[54] == 134);
        flags = flags.or(advertisement.map(|frame| frame[59]));
        flags.is_some() && node.run(&["ip", "-6", "route"]).contains("default via fe80")
    });
    assert_eq!(flags.unwrap() & 0x80, 0x80, "not managed");
    assert!(!addresses().contains("scope global"), "it made up an address: {}", addresses());
    // DHCP gives what the broker says, and nothing to somebody else.
    let script = lab.scratch.join("udhcpc");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" != bound ] || { ip address add $ip/$mask dev eth0; ip route add default via $router; echo \"dns $dns\"; }\n").unwrap();
    std::os::unix::fs::chown(&script, Some(0), Some(0)).unwrap();
    let ask = |more: &[&str]| {
        let script = format!("sh {}", script.display());
        let wrapper = lab.scratch.join("udhcpc-wrapper");
        std::fs::write(&wrapper, format!("#!/bin/sh\nexec {script} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let wrapper = wrapper.to_str().unwrap().to_owned();
        let words = [
            &["busybox", "udhcpc", "-n", "-q", "-f", "-t", "3", "-T", "1", "-i", "eth0", "-s", &wrapper],
            more,
        ]
        .concat();
        node.try_run(&words)
    };
    let (status, said) = ask(&[]);
    assert_eq!(status, 0, "{said}");
    assert!(addresses().contains(&format!("inet {}/", asking.link.ip4())), "{}\n{said}", addresses());
    assert!(
        said.contains(&format!("dns {}", asking.link.dns.iter().find(|a| a.is_ipv4()).unwrap())),
        "{said}"
    );
    assert!(node.run(&["ip", "route"]).contains(&format!("default via {}", asking.link.gateway4.unwrap())));
    let given = crate::common::dhcp6::ask(node, "eth0", asking.link.mac());
    assert_eq!(given.map(|a| a.to_string()), Some(asking.link.ip6()));
    node.sh(&format!("ip -6 address add {}/64 dev eth0 nodad", asking.link.ip6()));
    assert!(node.pings(OUTSIDE4) && node.pings(OUTSIDE6));
    asking.release(&client);
}

fn what_a_link_is_like(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let options = || {
        Options::new()
            .with("name", "up7".to_owned())
            .with("mtu", 1400_u32)
            .with("queue-length", 77_u32)
            .with("download", 4_000_000_u64)
            .with("upload", 4_000_000_u64)
    };
    let one = Container::new(&user, &client, "odd", options());
    let link = &one.link;
    assert_eq!((link.name.as_str(), link.mtu), ("up7", 1400));
    let inside = one.node.run(&["ip", "-d", "link", "show", "up7"]);
    for words in ["mtu 1400", "qlen 77", &link.mac, "state UP"] {
        assert!(inside.contains(words), "{words}: {inside}");
    }
    let outside = network.host.run(&["ip", "-d", "link", "show", &link.host_name]);
    for words in ["mtu 1500", "master", "learning off", &format!("{}:", link.ifindex), "alias cgrant"] {
        assert!(outside.contains(words), "{words}: {outside}");
    }
    assert!(outside.contains(&one.grant.id) && outside.contains(&lab.instance), "{outside}");
    // Both limits hold: of a burst that takes far longer than the time there is, most is lost.
    let two = Container::new(&user, &client, "two", Options::new());
    for (from, to, interface) in [(&one, &two, "eth0"), (&two, &one, "up7")] {
        let heard = to.node.listen(interface);
        from.node.flood(&format!("{}:9", to.link.ip4()), 3000, 1000);
        let arrived = to.node.heard(heard).iter().filter(|frame| frame.len() > 1000).count();
        assert!((1..2000).contains(&arrived), "{arrived} of 3000 packets passed a limit");
        to.node.close(heard);
    }
    // The same name is the same place again.
    let before = (link.mac.clone(), link.ip4(), link.ip6());
    one.release(&client);
    let again = Container::new(&user, &client, "odd", options());
    assert_eq!((again.link.mac.clone(), again.link.ip4(), again.link.ip6()), before);
    again.release(&client);
    two.release(&client);
}

fn links_come_and_go_while_a_grant_lives(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("lives", Options::new().no_range()).unwrap();
    assert!(client.links(&grant.path).is_empty());
    let node = Node::container(&user);
    let mut watch = client.watch();
    let first = client.add_link(&grant.path, Options::new().netns(&node.netns)).unwrap();
    let second = client.add_link(&grant.path, Options::new().netns(&node.netns)).unwrap();
    assert_eq!((first.name.as_str(), second.name.as_str()), ("eth0", "eth1"));
    let told: (String, (String, std::collections::HashMap<String, zbus::OwnedVariant>)) =
        client.signal(&mut watch, "LinkAdded", crate::common::PATIENCE).unwrap();
    assert_eq!((told.0.as_str(), told.1.0.as_str()), (grant.path.as_str(), "eth0"));
    client
        .add_link(&grant.path, Options::new().netns(&node.netns).with("name", "eth1".to_owned()))
        .unwrap_err()
        .is("LinkExists", "eth1");
    let usage: (u32, String, Vec<(String, u64, u64)>) =
        client.manager("GetUsage", &Options::new().0).unwrap();
    assert!(usage.2.iter().any(|(what, used, _)| what == "links" && *used == 2), "{usage:?}");
    client.remove_link(&grant.path, "eth0").unwrap();
    let told: (String, (String, String)) =
        client.signal(&mut watch, "LinkRemoved", crate::common::PATIENCE).unwrap();
    assert_eq!(told.1, ("eth0".into(), "removed".into()));
    assert_eq!(node.sh("ls -1 /proc/sys/net/ipv4/conf | grep eth"), "eth1\n");
    client.remove_link(&grant.path, "eth0").unwrap_err().is("NoSuchLink", "eth0");
    // The payload deletes its own end: a normal event.
    node.sh("ip link del eth1");
    let told: (String, (String, String)) =
        client.signal(&mut watch, "LinkRemoved", crate::common::PATIENCE).unwrap();
    assert_eq!(told.1, ("eth1".into(), "far-end-gone".into()));
    assert!(client.links(&grant.path).is_empty());
    network.assert_as_before();
    // So does one whose namespace ends.
    let doomed = Node::container(&user);
    client.add_link(&grant.path, Options::new().netns(&doomed.netns).ports(&["8081:80"])).unwrap();
    drop(doomed);
    let told: (String, (String, String)) =
        client.signal(&mut watch, "LinkRemoved", crate::common::PATIENCE).unwrap();
    assert_eq!(told.1, ("eth0".into(), "far-end-gone".into()));
    network.assert_as_before();
    // A grant that ends takes its links along.
    client.add_link(&grant.path, Options::new().netns(&node.netns)).unwrap();
    drop((client, watch));
    broker.settle();
    network.assert_as_before();
}

fn a_tap_speaks_with_containers(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let one = Container::new(&user, &client, "one", Options::new());
    let machine = client.create("machine", Options::new().no_range()).unwrap();
    let mut link = client.add_link(&machine.path, Options::new().with("kind", "tap".to_owned())).unwrap();
    let tap = std::fs::File::from(link.tap.take().expect("no descriptor"));
    assert_eq!(link.all.get("kind").and_then(|v| <&str>::try_from(v).ok()), Some("tap"));
    // The machine answers for its address and for no other.
    use crate::common::frames::{ARP, EVERYBODY, arp, ethernet};
    use std::io::{Read, Write};
    let asked = ethernet(
        EVERYBODY,
        link.mac(),
        ARP,
        &arp(1, (link.mac(), link.address4.unwrap()), ([0; 6], one.link.address4.unwrap())),
    );
    let mut space = [0; 2048];
    let mut is_answered = || {
        // Before each frame is a header for virtual machines; all zero it says nothing.
        (&tap).write_all(&[&[0; 10], asked.as_slice()].concat()).unwrap();
        let mut poll = [rustix::event::PollFd::new(&tap, rustix::event::PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        while rustix::event::poll(&mut poll, Some(&patience)).unwrap() == 1 {
            let length = (&tap).read(&mut space).unwrap();
            if length >= 52 && space[22..24] == [8, 6] && space[30..32] == [0, 2] {
                return true;
            }
        }
        false
    };
    // The kernel makes a port forward in its own time: who asks earlier is not heard, and asks again.
    wait_until("ARP is answered", &mut is_answered);
    let buffer = &space[10..];
    assert_eq!(buffer[..6], link.mac());
    assert_eq!(buffer[22..28], one.link.mac());
    // The descriptor's end is the link's.
    let mut watch = client.watch();
    drop(tap);
    let told: (String, (String, String)) =
        client.signal(&mut watch, "LinkRemoved", crate::common::PATIENCE).unwrap();
    assert_eq!(told.1.1, "far-end-gone");
    one.release(&client);
}

fn the_command_line(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    // In the container's own /tmp: that of the host is not to be seen.
    const SERVE: &str = "echo served > /tmp/index.html; exec busybox httpd -f -p 80 -h /tmp";
    let words = ["run", "--name", "web", "--link", "-p", "8088:80", "--", "/bin/sh", "-c", SERVE];
    let mut command = network.cgrant_command(&user, &broker, &words);
    let said = std::fs::File::create(lab.scratch.join("log-of-run")).unwrap();
    command.stdout(std::process::Stdio::null()).stderr(said);
    let mut web = crate::common::Process::of(&mut command);
    let fetch = |node: &Node, at: &str| {
        node.try_run(&["busybox", "timeout", "3", "busybox", "wget", "-qO-", &format!("http://{at}:8088/")])
    };
    wait_until("the page is served", || {
        let said = std::fs::read_to_string(lab.scratch.join("log-of-run")).unwrap();
        assert!(web.is_alive(), "cgrant run has ended: {said}");
        fetch(&network.outside, HOST4).1 == "served\n"
    });
    for (node, at) in [(&network.neighbour, HOST4), (&network.host, "127.0.0.1"), (&network.host, "[::1]")] {
        assert_eq!(fetch(node, at).1, "served\n", "{at}");
    }
    let said = |arguments: &[&str]| {
        let output = network.cgrant(&user, &broker, arguments);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (status, text) = said(&["link", "list"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("web") && text.contains("eth0") && text.contains("8088:80"), "{text}");
    let (status, text) = said(&["--format", "json", "link", "list"]);
    assert_eq!(status, Some(0), "{text}");
    serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let (status, text) = said(&["link", "publish", "web", "eth0", "8089:80"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(
        network
            .outside
            .talk(Tcp, &format!("{HOST4}:8089"))
            .is_err_and(|e| e != "ECONNREFUSED" && e != "ETIMEDOUT")
    );
    let (status, text) = said(&["link", "unpublish", "web", "eth0", "8089:80"]);
    assert_eq!(status, Some(0), "{text}");
    network.outside.is_cut_off(Tcp, &format!("{HOST4}:8089"));
    // A second run reaches the first by its name, and the outside.
    let (status, text) = said(&[
        "run",
        "--link",
        "--",
        "/bin/sh",
        "-c",
        &format!(
            "busybox wget -qO- http://web.cgrant/ && busybox ping -c 1 -W 3 {OUTSIDE4} >/dev/null && echo reached"
        ),
    ]);
    assert_eq!((status, text.as_str()), (Some(0), "served\nreached\n"));
    let (status, text) = said(&["link", "remove", "web", "eth0"]);
    assert_eq!(status, Some(0), "{text}");
    network.assert_as_before();
    web.kill();
    broker.settle();
}

crate::tests![
    four_containers_of_two_accounts,
    bridged_traffic_may_pass_the_other_tables_or_not,
    names_lead_both_ways,
    payloads_may_ask_for_their_addresses,
    what_a_link_is_like,
    links_come_and_go_while_a_grant_lives,
    a_tap_speaks_with_containers,
    the_command_line,
];
