//! Name servers: real dnsmasq, a real DHCP client, questions made by hand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use cgrant_net::{names::NameServers, state::Settings};
use cgrant_sys::{
    Child, Clone3, Dir, NetnsFd, Pidfd,
    netlink::{NewVeth, Route, in_netns},
    pidfd::Signal,
};
use cgrant_wire::{
    Address, LinkInfo, LinkKind, Mac,
    net::{Bridge, BridgeKind, Link},
};
use nix::sched::CloneFlags;

use crate::{
    Test,
    support::{SERVICE, children_of_own, eventually, key, start, status},
};

pub const TESTS: &[Test] = &[
    ("names::leases_and_names_of_known_containers", leases_and_names_of_known_containers),
    ("names::changes_are_taken_over", changes_are_taken_over),
    ("names::other_questions_go_to_the_hosts_servers", other_questions_go_to_the_hosts_servers),
    ("names::a_resolver_on_the_loopback_is_asked", a_resolver_on_the_loopback_is_asked),
    ("names::a_name_server_is_confined", a_name_server_is_confined),
    ("names::one_that_ends_is_made_again", one_that_ends_is_made_again),
    ("names::one_is_found_again_or_replaced", one_is_found_again_or_replaced),
    ("names::a_helper_that_dies_between_the_steps_leaves_nothing", a_helper_that_dies_between_the_steps),
    ("names::what_is_not_wanted_is_ended", what_is_not_wanted_is_ended),
    ("names::a_device_that_is_gone_is_missed", a_device_that_is_gone_is_missed),
    ("names::an_idle_one_sleeps", an_idle_one_sleeps),
    ("names::a_second_start_is_the_same", a_second_start_is_the_same),
];

const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 1);
const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 2);
const PREFIX6: [u16; 7] = [0xfd00, 1, 2, 3, 0, 0, 0];
const DEVICE: &str = "cgrant0";

fn six(host: u16) -> Ipv6Addr {
    let [a, b, c, d, e, f, g] = PREFIX6;
    Ipv6Addr::new(a, b, c, d, e, f, g, host)
}

fn bridge() -> Bridge {
    Bridge {
        name: "default".into(),
        device: DEVICE.into(),
        kind: BridgeKind::Own {
            gateway4: Some(Address { address: GATEWAY4, prefix: 22 }),
            gateway6: Some(Address { address: six(1), prefix: 64 }),
            server4: Some(SERVER4),
            server6: Some(six(2)),
        },
        mtu: 1400,
    }
}

fn mac(host: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, host])
}

fn link(host: u8, account: u32, names: &[&str]) -> Link {
    Link {
        key: key(host.into()),
        account,
        host_name: names[0].into(),
        names: names.iter().map(ToString::to_string).collect(),
        info: LinkInfo {
            name: "eth0".into(),
            kind: LinkKind::Veth,
            bridge: "default".into(),
            host_name: format!("cgv{host}"),
            ifindex: host.into(),
            mac: mac(host),
            address4: Some(Address { address: Ipv4Addr::new(10, 9, 8, host), prefix: 22 }),
            address6: Some(Address { address: six(host.into()), prefix: 64 }),
            gateway4: Some(GATEWAY4),
            gateway6: Some(six(1)),
            dns: vec![SERVER4.into()],
            mtu: 1400,
            queue_length: 0,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: Vec::new(),
        },
        configure: false,
        open: false,
        any_address: false,
    }
}

/// A host with a bridge, and a directory for the helper as the supervisor makes it.
struct Host {
    directory: tempfile::TempDir,
    route: Route,
    bridge: Bridge,
    index: u32,
}

impl Host {
    fn new() -> Self {
        let route = Route::open().unwrap();
        let index = route.add_bridge(DEVICE, "a bridge", [2, 9, 9, 9, 9, 9], 1400, false).unwrap();
        route.add_address(index, GATEWAY4.into(), 22, true).unwrap();
        route.add_address(index, six(1).into(), 64, true).unwrap();
        route.set_up(index, true).unwrap();
        let directory = tempfile::tempdir_in("/run").unwrap();
        Self { directory, route, bridge: bridge(), index }
    }

    fn settings(&self, dns: &[IpAddr]) -> Settings {
        Settings {
            instance: "test".into(),
            path: self.directory.path().into(),
            uid: SERVICE,
            gid: SERVICE,
            domain: "cgrant".into(),
            dns: dns.to_vec(),
            may_forward_singly: true,
        }
    }

    fn names(&self) -> NameServers {
        self.names_asking(&[])
    }

    fn names_asking(&self, dns: &[IpAddr]) -> NameServers {
        let mut names = NameServers::new(&self.settings(dns), Dir::open(self.directory.path()).unwrap());
        names.keep_only(&self.route, &[DEVICE]).unwrap();
        names
    }

    fn launch(&self, names: &mut NameServers) -> bool {
        let port = names.prepare(&self.route, &self.bridge, self.index).unwrap();
        assert!(names.is_port(&port.ifname) && port.ifname.starts_with("cgd") && port.ifname.len() <= 15);
        let link = self.route.link(port.ifindex).unwrap().unwrap();
        assert_eq!(
            (link.master, link.up, link.alias.as_deref()),
            (Some(self.index), port.is_running, Some("cgrant test names cgrant0"))
        );
        names.launch(&self.route, &self.bridge).unwrap();
        port.is_running
    }

    /// The process of the name server, by its record.
    fn process(&self) -> u32 {
        let record = std::fs::read_to_string(self.directory.path().join("names/cgrant0.record")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        record["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Nothing of a name server is there.
    fn assert_clean(&self) {
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 0);
        let devices: Vec<String> = self.route.links().unwrap().into_iter().map(|link| link.name).collect();
        assert!(!devices.iter().any(|name| name.starts_with("cgd")), "{devices:?}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A name server outlives who made it.
        self.names().stop(&self.route, DEVICE).unwrap();
    }
}

/// A child that ends with the test, whatever comes of that.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.pidfd.send_signal(Signal::KILL).unwrap();
        self.0.pidfd.wait().unwrap();
    }
}

/// A network namespace with one device on the bridge.
struct Container {
    netns: NetnsFd,
    index: u32,
    process: Pidfd,
}

impl Container {
    fn new(host: &Host, number: u8) -> Self {
        let child = Clone3::new()
            .flags(CloneFlags::CLONE_NEWNET)
            .spawn(|| {
                std::thread::sleep(Duration::from_secs(120));
                0
            })
            .unwrap();
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", child.pid)).unwrap();
        let netns = NetnsFd::from_fd(netns.into()).unwrap();
        let near = host
            .route
            .add_veth(&NewVeth {
                name: &format!("cgv{number}"),
                alias: "a container",
                mtu: 1400,
                queue_length: 0,
                master: Some(host.index),
                peer_name: "eth0",
                peer_mac: mac(number).0,
                peer_netns: &netns,
            })
            .unwrap();
        host.route.set_up(near, true).unwrap();
        let route = Route::open_in(&netns).unwrap();
        let index = route.link_by_name("eth0").unwrap().unwrap().index;
        route.set_up(1, true).unwrap();
        // The link-local address that it would have a second later.
        route.add_address(index, Self::link_local(number).into(), 64, true).unwrap();
        route.set_up(index, true).unwrap();
        Self { netns, index, process: child.pidfd }
    }

    fn link_local(number: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, number.into())
    }

    fn configured(host: &Host, number: u8) -> Self {
        let container = Self::new(host, number);
        let route = Route::open_in(&container.netns).unwrap();
        route.add_address(container.index, Ipv4Addr::new(10, 9, 8, number).into(), 22, true).unwrap();
        route.add_address(container.index, six(number.into()).into(), 64, true).unwrap();
        container
    }

    fn socket(&self, place: impl Into<SocketAddr>) -> UdpSocket {
        let place = place.into();
        let socket = in_netns(&self.netns, || UdpSocket::bind(place)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    }

    /// Asks for an address by DHCPv4; what the client was told.
    fn lease4(&self) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let (script, told) = (directory.join("script"), directory.join("told"));
        std::fs::write(&script, format!("#!/bin/sh\n[ \"$1\" != bound ] || env > {}\n", told.display()))
            .unwrap();
        Command::new("chmod").arg("755").arg(&script).status().unwrap();
        let _ = std::fs::remove_file(&told);
        let client = start(|| {
            self.netns.enter().unwrap();
            let status = Command::new("busybox")
                .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-O", "mtu"])
                // It would like to be somebody else.
                .args(["-x", "hostname:db", "-x", "0x0c:6576696c", "-F", "evil.cgrant", "-s"])
                .arg(&script)
                .env_clear()
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            status.code().unwrap_or(99)
        });
        client.pidfd.wait().unwrap();
        std::fs::read_to_string(told).ok()
    }

    /// Asks for an address by DHCPv6, with a DUID that says nothing of the device; the answer's bytes.
    fn lease6(&self, number: u8) -> Option<Vec<u8>> {
        let place = SocketAddrV6::new(Self::link_local(number), 546, 0, self.index);
        let socket = self.socket(place);
        let duid = [0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number];
        let mut question = vec![1, 1, 2, 3];
        let mut option = |code: u16, content: &[u8]| {
            question.extend(code.to_be_bytes());
            question.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            question.extend(content);
        };
        option(1, &duid);
        option(3, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        option(6, &[0, 23, 0, 24]);
        option(8, &[0, 0]);
        let all_servers = SocketAddrV6::new("ff02::1:2".parse().unwrap(), 547, 0, self.index);
        let mut bytes = vec![0; 1500];
        for _ in 0..6 {
            socket.send_to(&question, all_servers).unwrap();
            if let Ok((length, _)) = socket.recv_from(&mut bytes) {
                bytes.truncate(length);
                return Some(bytes);
            }
        }
        None
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.process.send_signal(Signal::KILL).unwrap();
        self.process.wait().unwrap();
    }
}

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;

/// Asks a server; the code of the answer (0: well, 3: no such name) and the contents of what it says.
fn ask(socket: &UdpSocket, server: impl Into<IpAddr>, name: &str, kind: u16) -> Option<(u8, Vec<Vec<u8>>)> {
    static LAST: AtomicU16 = AtomicU16::new(0);
    let id = LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut question = vec![id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(encode(name));
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    let server = SocketAddr::new(server.into(), 53);
    for _ in 0..4 {
        socket.send_to(&question, server).ok()?;
        let mut bytes = vec![0; 1500];
        let Ok((length, from)) = socket.recv_from(&mut bytes) else { continue };
        assert_eq!(from, server);
        bytes.truncate(length);
        if bytes[..2] != id {
            // To an earlier question that was asked twice.
            continue;
        }
        let count = usize::from(bytes[7]);
        let mut at = question.len();
        let answers = (0..count).map(|_| {
            // A pointer to the name, type, class, time to live, length.
            assert!(bytes[at] & 0xc0 == 0xc0);
            let length = usize::from(bytes[at + 11]);
            let content = bytes[at + 12..at + 12 + length].to_vec();
            at += 12 + length;
            content
        });
        return Some((bytes[3] & 15, answers.collect()));
    }
    None
}

fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn reverse6(address: Ipv6Addr) -> String {
    let digits: Vec<String> =
        format!("{:032x}", address.to_bits()).chars().rev().map(|digit| digit.to_string()).collect();
    digits.join(".") + ".ip6.arpa"
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn leases_and_names_of_known_containers() {
    let host = Host::new();
    let mut names = host.names();
    assert!(!host.launch(&mut names));
    let links = [link(16, 1000, &["My_Web", "my-web.u1000"]), link(17, 1001, &["db"])];
    names.set_hosts(DEVICE, links.iter()).unwrap();

    let (web, unknown) = (Container::new(&host, 16), Container::new(&host, 99));
    let told = web.lease4().expect("no lease");
    for line in ["ip=10.9.8.16", "mask=22", "router=10.9.8.1", "dns=10.9.8.2", "domain=cgrant", "mtu=1400"] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
    assert_eq!(unknown.lease4(), None);
    let told = web.lease6(16).expect("no lease");
    assert!(contains(&told, &six(16).octets()), "{told:?}");
    assert!(contains(&told, &six(2).octets()), "{told:?}");
    let told = unknown.lease6(99);
    assert!(told.is_none_or(|told| !contains(&told, &six(0).octets()[..15])));

    let db = Container::configured(&host, 17);
    let (four, six_socket) = (db.socket((Ipv4Addr::UNSPECIFIED, 0)), db.socket((Ipv6Addr::UNSPECIFIED, 0)));
    for (socket, server) in [(&four, IpAddr::V4(SERVER4)), (&six_socket, six(2).into())] {
        let ask = |name: &str, kind| ask(socket, server, name, kind).unwrap();
        for name in ["my-web.cgrant", "MY-WEB.cgrant", "my-web.u1000.cgrant"] {
            assert_eq!(ask(name, A), (0, vec![vec![10, 9, 8, 16]]));
            assert_eq!(ask(name, AAAA), (0, vec![six(16).octets().to_vec()]));
        }
        assert_eq!(ask("db.cgrant", A), (0, vec![vec![10, 9, 8, 17]]));
        assert_eq!(ask("16.8.9.10.in-addr.arpa", PTR), (0, vec![encode("my-web.cgrant")]));
        assert_eq!(ask(&reverse6(six(17)), PTR), (0, vec![encode("db.cgrant")]));
        // What nobody has is nobody's, and nobody else is asked.
        for (name, kind) in [
            ("nobody.cgrant", A),
            ("evil.cgrant", A),
            ("18.8.9.10.in-addr.arpa", PTR),
            (&reverse6(six(18)), PTR),
        ] {
            assert_eq!(ask(name, kind), (3, vec![]), "{name}");
        }
    }
    names.stop(&host.route, DEVICE).unwrap();
    host.assert_clean();
}

fn changes_are_taken_over() {
    let host = Host::new();
    let mut names = host.names();
    host.launch(&mut names);
    let process = host.process();
    let container = Container::configured(&host, 20);
    let socket = container.socket((Ipv4Addr::UNSPECIFIED, 0));
    let lookup = |name: &str| ask(&socket, SERVER4, name, A).map(|(_, answers)| answers);
    let is = |name: &str, host: Option<u8>| {
        let wanted = Some(host.map(|host| vec![10, 9, 8, host]).into_iter().collect::<Vec<_>>());
        eventually(&format!("{name} {host:?}"), || lookup(name) == wanted);
    };
    let all: Vec<Link> = (16..116).map(|host| link(host, 1000, &[&format!("c{host}")])).collect();
    names.set_hosts(DEVICE, all.iter()).unwrap();
    is("c16.cgrant", Some(16));
    is("c115.cgrant", Some(115));
    // Most go, one has another address now.
    let mut moved = link(17, 1000, &["c16"]);
    moved.info.ifindex = 200;
    names.set_hosts(DEVICE, [moved.clone()].iter()).unwrap();
    is("c16.cgrant", Some(17));
    is("c115.cgrant", None);
    let old = Container::new(&host, 16);
    assert_eq!(old.lease4(), None);
    let new = Container::new(&host, 17);
    assert!(new.lease4().is_some_and(|told| told.contains("ip=10.9.8.17")));
    // Another account's younger container has no part of the name.
    let other = link(18, 1001, &["C16"]);
    let mut older = moved;
    older.info.ifindex = 10;
    names.set_hosts(DEVICE, [other, older].iter()).unwrap();
    is("c16.cgrant", Some(17));
    names.set_hosts(DEVICE, [].iter()).unwrap();
    is("c16.cgrant", None);
    assert_eq!(host.process(), process);
    assert!(Pidfd::open(process).unwrap().is_alive().unwrap());
}

/// Says of every name that it is at 198.51.100.7.
fn answering(address: IpAddr) -> Killed {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    Killed(start(|| {
        let mut bytes = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).unwrap();
            // The question without what may follow it.
            let end = 12 + bytes[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let mut answer = bytes[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7]);
            socket.send_to(&answer, from).unwrap();
        }
    }))
}

/// The resolver of the host listens on its loopback only, where the name server can't come.
fn a_resolver_on_the_loopback_is_asked() {
    let host = Host::new();
    let resolver = [127, 0, 0, 1].into();
    let server = answering(resolver);
    for round in 0..2_u8 {
        let mut names = host.names_asking(&[resolver]);
        host.launch(&mut names);
        names.set_hosts(DEVICE, [].iter()).unwrap();
        let container = Container::configured(&host, 16 + round);
        let socket = container.socket((Ipv4Addr::UNSPECIFIED, 0));
        for number in 0..50 {
            let name = format!("www{round}x{number}.example.org");
            assert_eq!(ask(&socket, SERVER4, &name, A), Some((0, vec![vec![198, 51, 100, 7]])));
        }
        // From the bridge alone: rules then say who may.
        let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
        outside.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert_eq!(ask(&outside, GATEWAY4, "www.example.org", A), None);
        if round == 0 {
            // Replaced by another helper, which finds the name server.
            drop(names);
        } else {
            names.stop(&host.route, DEVICE).unwrap();
            assert!(names.descriptors().is_empty());
        }
    }
    drop(server);
}

fn other_questions_go_to_the_hosts_servers() {
    let host = Host::new();
    let upstream: IpAddr = [192, 0, 2, 53].into();
    host.route.add_address(1, upstream, 32, true).unwrap();
    let server = answering(upstream);
    let link_local = [169, 254, 1, 1].into();
    let mut names = host.names_asking(&[link_local, upstream]);
    host.launch(&mut names);
    names.set_hosts(DEVICE, [].iter()).unwrap();
    let container = Container::configured(&host, 16);
    let socket = container.socket((Ipv4Addr::UNSPECIFIED, 0));
    assert_eq!(ask(&socket, SERVER4, "www.example.org", A), Some((0, vec![vec![198, 51, 100, 7]])));
    assert_eq!(ask(&socket, SERVER4, "www.cgrant", A), Some((3, vec![])));
    let files = host.directory.path().join("names/cgrant0/resolv.conf");
    assert_eq!(std::fs::read_to_string(files).unwrap(), "nameserver 192.0.2.53\n");
    drop(server);
}

fn a_name_server_is_confined() {
    let host = Host::new();
    let mut names = host.names();
    host.launch(&mut names);
    let process = host.process();
    let ids = [SERVICE.to_string().as_str(); 4].join("\t");
    assert_eq!((status(process, "Uid"), status(process, "Gid")), (ids.clone(), ids));
    assert_eq!(status(process, "Groups"), "");
    // NET_BIND_SERVICE, NET_ADMIN, NET_RAW, over what is its own.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(
            u64::from_str_radix(&status(process, set), 16).unwrap(),
            1 << 10 | 1 << 12 | 1 << 13,
            "{set}"
        );
    }
    assert_eq!((status(process, "NoNewPrivs").as_str(), status(process, "Seccomp").as_str()), ("1", "2"));
    assert_eq!(status(process, "NSpid").split_whitespace().last(), Some("1"));
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["user", "net", "mnt", "pid", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace("self", kind), namespace(&process.to_string(), kind), "{kind}");
    }
    // Its directory is where the host's sockets would be, and can't be written.
    let run = PathBuf::from(format!("/proc/{process}/root/run"));
    let mut files: Vec<_> = std::fs::read_dir(&run)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["dhcp-hosts", "dnsmasq.conf", "hosts", "resolv.conf"]);
    let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    let run = mounts.lines().rfind(|line| line.contains(" /run ")).unwrap();
    assert!(run.contains(" ro,nosuid,nodev,noexec"), "{run}");
    // Nobody else reads them.
    let directory = host.directory.path().join("names");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(directory).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    // It has no descriptor of the helper's. What it reads itself while it starts is closed soon.
    let begun = Instant::now();
    loop {
        let entries = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        let leads = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        let leads: Vec<_> = leads.map(|path| path.into_os_string().into_string().unwrap()).collect();
        let is_own = |leads: &String| {
            ["socket:", "pipe:", "anon_inode:inotify", "/dev/null", "/memfd:complaints"]
                .iter()
                .any(|own| leads.starts_with(own))
        };
        if !leads.is_empty() && leads.iter().all(is_own) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{leads:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As the helper's loop does: waits for one descriptor.
fn let_happen(names: &mut NameServers) {
    let (numbers, mut polled): (Vec<_>, Vec<_>) = names
        .descriptors()
        .into_iter()
        .map(|fd| (fd.as_raw_fd(), rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)))
        .unzip();
    let timeout = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert!(rustix::event::poll(&mut polled, Some(&timeout)).unwrap() > 0, "nothing happens");
    let ready = polled.iter().position(|polled| !polled.revents().is_empty()).unwrap();
    drop(polled);
    names.ready(numbers[ready]);
}

fn one_that_ends_is_made_again() {
    let host = Host::new();
    let mut names = host.names();
    host.launch(&mut names);
    let links = [link(16, 1000, &["web"])];
    let container = Container::configured(&host, 16);
    let socket = container.socket((Ipv4Addr::UNSPECIFIED, 0));
    for _ in 0..2 {
        names.set_hosts(DEVICE, links.iter()).unwrap();
        eventually("a name", || ask(&socket, SERVER4, "web.cgrant", A).is_some_and(|(code, _)| code == 0));
        Pidfd::open(host.process()).unwrap().send_signal(Signal::KILL).unwrap();
        let_happen(&mut names);
        assert!(names.due().is_empty());
        let_happen(&mut names);
        assert_eq!(names.due(), [DEVICE]);
        assert!(!host.launch(&mut names));
    }
    // An attempt that fails is followed by another.
    Pidfd::open(host.process()).unwrap().send_signal(Signal::KILL).unwrap();
    let_happen(&mut names);
    let_happen(&mut names);
    assert_eq!(names.due(), [DEVICE]);
    assert!(names.prepare(&host.route, &host.bridge, 4711).is_err());
    names.retry(DEVICE);
    // Links come and go meanwhile.
    names.set_hosts(DEVICE, links.iter()).unwrap();
    let_happen(&mut names);
    assert_eq!(names.due(), [DEVICE]);
    host.launch(&mut names);
    names.stop(&host.route, DEVICE).unwrap();
    host.assert_clean();
    assert!(names.descriptors().is_empty());
}

fn one_is_found_again_or_replaced() {
    let host = Host::new();
    let helper = start(|| {
        let mut names = host.names();
        host.launch(&mut names);
        names.set_hosts(DEVICE, [link(16, 1000, &["web"])].iter()).unwrap();
        // Nothing is dropped.
        std::process::exit(0)
    });
    assert_eq!(helper.pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
    let process = host.process();
    let container = Container::configured(&host, 16);
    let socket = container.socket((Ipv4Addr::UNSPECIFIED, 0));
    assert_eq!(ask(&socket, SERVER4, "web.cgrant", A), Some((0, vec![vec![10, 9, 8, 16]])));

    let mut names = host.names();
    assert!(host.launch(&mut names));
    assert_eq!(host.process(), process);
    names.set_hosts(DEVICE, [link(17, 1000, &["db"])].iter()).unwrap();
    eventually("the change", || ask(&socket, SERVER4, "db.cgrant", A).is_some_and(|(code, _)| code == 0));
    drop(names);

    // With other settings the old one is of no use.
    let mut host = host;
    host.bridge.mtu = 1300;
    let mut names = host.names();
    assert!(!host.launch(&mut names));
    assert_ne!(host.process(), process);
    let is_gone = |pid| Pidfd::open(pid).is_err() || status(pid, "State").starts_with('Z');
    eventually("the old one's end", || is_gone(process));
    let process = host.process();

    // A number that is another's now is left alone.
    names.set_hosts(DEVICE, [].iter()).unwrap();
    let path = host.directory.path().join("names/cgrant0.record");
    let stranger = start(|| {
        std::thread::sleep(Duration::from_secs(60));
        0
    });
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        record.replace(&format!("\"pid\":{process}"), &format!("\"pid\":{}", stranger.pid)),
    )
    .unwrap();
    let mut next = host.names();
    assert!(!next.prepare(&host.route, &host.bridge, host.index).unwrap().is_running);
    assert!(stranger.pidfd.is_alive().unwrap());
    next.stop(&host.route, DEVICE).unwrap();
    names.stop(&host.route, DEVICE).unwrap();
    host.assert_clean();
    stranger.pidfd.send_signal(Signal::KILL).unwrap();
    stranger.pidfd.wait().unwrap();
}

fn a_helper_that_dies_between_the_steps() {
    let host = Host::new();
    let helper = start(|| {
        let mut names = host.names();
        names.prepare(&host.route, &host.bridge, host.index).unwrap();
        std::process::exit(0)
    });
    helper.pidfd.wait().unwrap();
    let process = host.process();
    eventually("the end of the one that waits", || Pidfd::open(process).is_err());
    let mut names = host.names();
    assert!(!host.launch(&mut names));
    names.stop(&host.route, DEVICE).unwrap();
    host.assert_clean();
}

fn what_is_not_wanted_is_ended() {
    let host = Host::new();
    let helper = start(|| {
        host.launch(&mut host.names());
        std::process::exit(0)
    });
    helper.pidfd.wait().unwrap();
    let process = host.process();
    let mut names = NameServers::new(&host.settings(&[]), Dir::open(host.directory.path()).unwrap());
    names.keep_only(&host.route, &["another"]).unwrap();
    eventually("its end", || Pidfd::open(process).is_err());
    host.assert_clean();
}

fn a_device_that_is_gone_is_missed() {
    let host = Host::new();
    let mut names = host.names();
    host.launch(&mut names);
    let port = names.ports().next().unwrap().1.clone();
    assert_eq!(names.bridge_of_port(port.ifindex), Some(DEVICE));
    assert!(names.is_whole(&host.route, DEVICE, host.index).unwrap());
    host.route.set_master(port.ifindex, None).unwrap();
    assert!(!names.is_whole(&host.route, DEVICE, host.index).unwrap());
    let old = host.process();
    assert!(!host.launch(&mut names));
    assert_ne!(host.process(), old);
    let port = names.ports().next().unwrap().1.clone();
    host.route.delete_link(port.ifindex).unwrap();
    assert!(!names.is_whole(&host.route, DEVICE, host.index).unwrap());
    host.launch(&mut names);
    assert!(names.is_whole(&host.route, DEVICE, host.index).unwrap());
}

fn an_idle_one_sleeps() {
    let host = Host::new();
    let resolver = [127, 0, 0, 1].into();
    let mut names = host.names_asking(&[resolver]);
    host.launch(&mut names);
    names.set_hosts(DEVICE, [link(16, 1000, &["web"])].iter()).unwrap();
    let processes = children_of_own();
    assert_eq!(processes.len(), 2, "a name server and a proxy");
    let woken = || processes.iter().map(|pid| status(*pid, "voluntary_ctxt_switches")).collect::<Vec<_>>();
    // What the start brings with it on the bridge takes a moment.
    let mut before = woken();
    eventually("rest", || {
        std::thread::sleep(Duration::from_millis(1500));
        let now = woken();
        std::mem::replace(&mut before, now.clone()) == now
    });
}

fn a_second_start_is_the_same() {
    let host = Host::new();
    let mut names = host.names();
    host.launch(&mut names);
    let (process, children) = (host.process(), children_of_own());
    assert!(host.launch(&mut names), "is there");
    assert_eq!((host.process(), children_of_own()), (process, children));
    assert_eq!(names.ports().count(), 1);
    names.stop(&host.route, DEVICE).unwrap();
    names.stop(&host.route, DEVICE).unwrap();
    host.assert_clean();
    assert_eq!(children_of_own(), [0; 0]);
}
