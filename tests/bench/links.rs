//! Links: how fast and how quick they are, and how long they take to make, beside a veth of root's without any rule, beside
//! user-mode networking, beside the bare netlink messages and lxc's set-uid helper.
//!
//! All in namespaces: the host, a router and the outside are played (`tests/common/network.rs`), nothing touches the machine's network.

use std::{
    cell::RefCell,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use cgrant_sys::{
    namespace::NetnsFd,
    netlink::{NewVeth, PortFlags, Route},
};

use crate::{
    Bench,
    common::{
        Client, Container, Network, Node, Options,
        network::{HOST4, OUTSIDE4, namespace_of},
        wait_until,
    },
    sample::{self, Case, time},
};

const ECHO: u16 = 7100;
const IPERF: &str = "7200";
/// How often each is measured.
const ROUNDS: usize = 3;

/// Somebody who gets somewhere: from where, where to, and over what.
struct Way<'a> {
    path: &'static str,
    over: &'static str,
    from: &'a Node,
    to: String,
    gigabits: Vec<f64>,
    microseconds: Vec<f64>,
}

/// The part `links`.
pub fn measure(bench: &Bench) {
    let network = Network::new(&bench.lab);
    let plain = Plain::new(bench, &network);
    // What is measured beside the broker stays until the end.
    network.look();
    let broker = network.broker();
    let client = bench.user.client(broker.socket());
    throughput(bench, &network, &client, &plain);
    creation(bench, &network, &client, &plain);
    drop(client);
    broker.settle();
    drop((broker, plain));
    let left: Vec<String> = network.devices().into_iter().filter(|name| name.starts_with("cg")).collect();
    assert!(left.is_empty(), "devices are left: {left:?}");
    // The namespaces of what it was compared with go at their leisure.
    network.look();
    wait_until("what it was compared with is gone", || {
        let same = network.differences().is_empty();
        network.look();
        same
    });
}

// Two namespaces of root's on a bridge, without rules or translation; the outside knows the way to them.
struct Plain {
    one: Node,
    two: Node,
}

impl Plain {
    fn new(bench: &Bench, network: &Network<'_>) -> Self {
        let [one, two] = [1, 2].map(|number| {
            let node = bench.lab.node("plain");
            (node, number)
        });
        network
            .host
            .sh("ip link add plain type bridge; ip link set plain up; ip address add 10.200.0.1/24 dev plain
             for d in plain up0; do echo 1 >/proc/sys/net/ipv4/conf/$d/forwarding; done");
        for (node, number) in [&one, &two] as [&(Node, i32); 2] {
            network.host.sh(&format!(
                "ip link add plain{number} type veth peer name eth0 netns {}; ip link set plain{number} master plain up",
                node.process.pid
            ));
            node.sh(&format!(
                "ip link set lo up; ip link set eth0 up; ip address add 10.200.0.1{number}/24 dev eth0; ip route add default via 10.200.0.1"
            ));
        }
        network.router.sh(&format!("ip route add 10.200.0.0/24 via {HOST4}"));
        network.outside.sh("ip route add 10.200.0.0/24 via 198.51.100.1");
        Self { one: one.0, two: two.0 }
    }
}

fn throughput(bench: &Bench, network: &Network<'_>, client: &Client, plain: &Plain) {
    let one = Container::new(&bench.user, client, "one", Options::new());
    let two = Container::new(&bench.user, client, "two", Options::new());
    // On a machine of people's everybody may open it.
    network.host.sh("mount -t tmpfs tun /dev/net; mknod -m 666 /dev/net/tun c 10 200");
    let helper = network.node_of(&bench.user);
    let (pasta, slirp) = (user_mode(bench, &helper, Mode::Pasta), user_mode(bench, &helper, Mode::Slirp));
    for node in [&two.node, &plain.two, &network.host, &network.outside] {
        node.echo(&format!("0.0.0.0:{ECHO}"));
        node.background(&["iperf3", "--server", "--port", IPERF]);
    }
    let way = |path, over, from, to: &str| Way {
        path,
        over,
        from,
        to: to.to_owned(),
        gigabits: Vec::new(),
        microseconds: Vec::new(),
    };
    // Of the host a container reaches names, DHCP and pings only; what a published port costs is measured in its place.
    let published =
        Container::new(&bench.user, client, "published", Options::new().ports(&["7300:7100", "7301:7200"]));
    published.node.echo(&format!("0.0.0.0:{ECHO}"));
    published.node.background(&["iperf3", "--server", "--port", IPERF]);
    let mut ways = vec![
        way("container to container", "cgrant link", &one.node, &two.link.ip4()),
        way("container to container", "plain veth", &plain.one, "10.200.0.12"),
        way("host to container", "cgrant link", &network.host, &two.link.ip4()),
        way("host to container", "plain veth", &network.host, "10.200.0.12"),
        way("container to outside", "cgrant link, NAT", &one.node, OUTSIDE4),
        way("container to outside", "plain veth, routed", &plain.one, OUTSIDE4),
    ];
    if let Some(node) = &pasta {
        ways.push(way("container to outside", "pasta", node, OUTSIDE4));
        ways.push(way("container to host", "pasta", node, "192.0.2.1"));
    }
    if let Some(node) = &slirp {
        ways.push(way("container to outside", "slirp4netns", node, OUTSIDE4));
        ways.push(way("container to host", "slirp4netns", node, "10.0.2.2"));
    }
    ways.push(way("container to host", "plain veth", &plain.one, "10.200.0.1"));
    wait_until("the servers listen", || {
        plain
            .one
            .talk(crate::common::node::Tcp, &format!("10.200.0.12:{IPERF}"))
            .is_err_and(|e| e != "ECONNREFUSED")
    });
    for _ in 0..ROUNDS {
        for way in &mut ways {
            measure_way(way);
        }
    }
    // The published port has ports of its own.
    let mut inward = way("outside to published port", "cgrant link", &network.outside, HOST4);
    for _ in 0..ROUNDS {
        inward.microseconds.extend(round_trips(inward.from, &format!("{HOST4}:7300")));
        inward.gigabits.extend(iperf(inward.from, HOST4, "7301"));
    }
    ways.push(inward);
    ways.sort_by_key(|way| way.path);
    println!(
        "\nTCP over links, best of {ROUNDS} (iperf3, one stream, one second each) and the time of one byte there and back"
    );
    println!("{:28}{:22}{:>10}{:>14}{:>14}", "", "", "Gbit/s", "µs, median", "µs, best");
    for way in ways {
        let best = way.gigabits.iter().copied().fold(0.0, f64::max);
        let mut times = way.microseconds.clone();
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        let least = times.first().copied().unwrap_or(f64::NAN);
        println!("{:28}{:22}{best:>10.2}{median:>14.1}{least:>14.1}", way.path, way.over);
    }
    for (name, node) in [("pasta", &pasta), ("slirp4netns", &slirp)] {
        if node.is_none() {
            println!("absent: {name}: not installed, or it does not start here");
        }
    }
    one.release(client);
    two.release(client);
    published.release(client);
}

fn measure_way(way: &mut Way<'_>) {
    way.microseconds.extend(round_trips(way.from, &format!("{}:{ECHO}", way.to)));
    way.gigabits.extend(iperf(way.from, &way.to, IPERF));
}

fn round_trips(from: &Node, to: &str) -> Vec<f64> {
    #[allow(clippy::cast_precision_loss)]
    let all = from.ping_pong(to, 2000).map(|all| all.into_iter().map(|n| n as f64 / 1000.0).collect());
    all.unwrap_or_else(|error| {
        println!("{to} is not reached: {error}");
        Vec::new()
    })
}

fn iperf(from: &Node, to: &str, port: &str) -> Option<f64> {
    let (_, text) = from.try_run(&["iperf3", "--client", to, "--port", port, "--time", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).ok()?;
    report["end"]["sum_received"]["bits_per_second"].as_f64().map(|bits| bits / 1e9)
}

enum Mode {
    Pasta,
    Slirp,
}

// A container with user-mode networking of the user's own, from the played host.
fn user_mode(bench: &Bench, helper: &Node, mode: Mode) -> Option<Node> {
    let node = Node::container(&bench.user);
    node.sh("ip link set lo up");
    let pid = node.process.pid.to_string();
    match mode {
        Mode::Pasta => helper.background(&[
            "pasta",
            "--foreground",
            "--quiet",
            "--config-net",
            "-t",
            "none",
            "-u",
            "none",
            &pid,
        ]),
        Mode::Slirp => helper.background(&["slirp4netns", "--configure", "--mtu=65520", &pid, "tap0"]),
    };
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while !node.run(&["ip", "route"]).contains("default") {
        if std::time::Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It is there a moment later.
    std::thread::sleep(Duration::from_millis(300));
    Some(node)
}

fn creation(bench: &Bench, network: &Network<'_>, client: &Client, plain: &Plain) {
    let kept = Container::new(&bench.user, client, "kept", Options::new());
    let grant = client.create("made", Options::new().no_range()).unwrap();
    let node = Node::container(&bench.user);
    let bare = Bare::start(network, &plain.one);
    let lxc = lxc(bench, network);
    let mut cases = vec![
        Case::new("bare netlink messages", || {
            let (add, remove) = bare.borrow_mut().once();
            vec![("make", add), ("remove", remove)]
        }),
        Case::new("broker, a link on a grant that is there", || {
            let (add, link) =
                time(|| client.add_link(&grant.path, Options::new().netns(&node.netns)).unwrap());
            let (remove, ()) = time(|| client.remove_link(&grant.path, &link.name).unwrap());
            vec![("make", add), ("remove", remove)]
        }),
    ];
    if let Some(helper) = &lxc {
        let target = &node;
        cases.push(Case::new("lxc-user-nic", move || {
            let pid = target.process.pid.to_string();
            let (add, said) = time(|| {
                helper.try_run(&[
                    "/usr/libexec/lxc/lxc-user-nic",
                    "create",
                    "/tmp",
                    "bench",
                    &pid,
                    "veth",
                    "plain",
                    "nic0",
                ])
            });
            assert_eq!(said.0, 0, "{}", said.1);
            target.run(&["ip", "link", "del", "nic0"]);
            vec![("make", add)]
        }));
    }
    let mut rows = sample::take(&mut cases, bench.runs, || ());
    drop(cases);
    rows.sort_by_key(|row| row.name.ends_with("remove"));
    sample::print(
        "A veth on a bridge with its far end in a container (the broker's: addressed, filtered, named; both families)",
        &rows,
    );
    if lxc.is_none() {
        println!("absent: lxc-user-nic: not installed, or it refuses here");
    }
    client.release(&grant.path, false).unwrap();
    kept.release(client);
}

// Lets the set-uid helper of lxc work for the user on the plain bridge; `None` if it can't.
fn lxc(bench: &Bench, network: &Network<'_>) -> Option<Node> {
    let scratch = bench.lab.scratch.display();
    let uid = bench.user.uid;
    let (status, _) = network.host.try_run(&["test", "-u", "/usr/libexec/lxc/lxc-user-nic"]);
    if status != 0 {
        return None;
    }
    network.host.sh(&format!(
        "mount -t tmpfs lxc /etc/lxc; echo 'bench veth plain 100' >/etc/lxc/lxc-usernet
         {{ cat /etc/passwd; echo 'bench:x:{uid}:{uid}::{}:/bin/sh'; }} >{scratch}/passwd; mount --bind {scratch}/passwd /etc/passwd
         mount -t tmpfs run /run; mkdir /run/lxc",
        bench.user.home.display()
    ));
    let helper = network.node_of(&bench.user);
    let probe = Node::container(&bench.user);
    let pid = probe.process.pid.to_string();
    let (status, said) = helper.try_run(&[
        "/usr/libexec/lxc/lxc-user-nic",
        "create",
        "/tmp",
        "bench",
        &pid,
        "veth",
        "plain",
        "nic0",
    ]);
    if status != 0 {
        println!("lxc-user-nic: {}", said.trim());
        return None;
    }
    Some(helper)
}

// A process in the host's namespace that sends the messages which a link can't do without.
struct Bare {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Bare {
    fn start(network: &Network<'_>, to: &Node) -> RefCell<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--bare-links", &network.host.process.pid.to_string(), &to.process.pid.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        RefCell::new(Self { child, answers })
    }

    fn once(&mut self) -> (Duration, Duration) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let (add, remove) = line.trim().split_once(' ').expect("the messages were refused");
        let time = |text: &str| Duration::from_nanos(text.parse().unwrap());
        (time(add), time(remove))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Is this process to send bare messages? Then between which processes' namespaces.
pub fn requested() -> Option<Vec<String>> {
    let mut words = std::env::args().skip(1);
    (words.next().as_deref() == Some("--bare-links")).then(|| words.collect())
}

/// The sender's main function: one link for each line that it reads.
pub fn main(words: &[String]) -> ExitCode {
    let [host, far] = words else { return ExitCode::from(2) };
    let netns = |pid: &String| NetnsFd::from_fd(namespace_of(pid.parse().unwrap(), "net")).unwrap();
    let far = netns(far);
    let host: OwnedFd = namespace_of(host.parse().unwrap(), "net");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&host),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .unwrap();
    let route = Route::open().unwrap();
    let bridge = route.link_by_name("plain").unwrap().unwrap().index;
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        let (add, index) = time(|| make(&route, bridge, &far));
        let (remove, _) = time(|| route.delete_link(index).unwrap());
        println!("{} {}", add.as_nanos(), remove.as_nanos());
    }
    ExitCode::SUCCESS
}

// As the broker makes one, without rules: born, named, addressed, up.
fn make(route: &Route, bridge: u32, far: &NetnsFd) -> u32 {
    let mac = [2, 0xbe, 0, 0, 0, 1];
    let index = route
        .add_veth(&NewVeth {
            name: "bare0",
            alias: "bench",
            mtu: 1500,
            queue_length: 1000,
            master: Some(bridge),
            peer_name: "bare1",
            peer_mac: mac,
            peer_netns: far,
        })
        .unwrap();
    route.set_port(index, &PortFlags { learning: false, ..PortFlags::default() }).unwrap();
    route.add_fdb(index, mac, None).unwrap();
    route.set_up(index, true).unwrap();
    let inside = Route::open_in(far).unwrap();
    let there = inside.link_by_name("bare1").unwrap().unwrap().index;
    let (four, six) = (Ipv4Addr::new(10, 201, 0, 9), Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 9));
    inside.add_address(there, IpAddr::V4(four), 24, false).unwrap();
    inside.add_address(there, IpAddr::V6(six), 64, true).unwrap();
    inside.set_up(there, true).unwrap();
    index
}
