//! A host to test on: an uplink, a helper, containers' namespaces, and what is compared before and after.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cgrant_net::state::{Net, Settings};
use cgrant_sys::{
    Clone3, Dir, NetnsFd,
    netlink::{LinkState, NewVeth, Route},
};
use cgrant_wire::{
    FdIndex, GrantId,
    link::{Address, LinkInfo, LinkKind, Mac, PublishedPort, Transport},
    net::{Bridge, BridgeKind, Link, LinkKey, NetEvent, NetFailure, Order, Reply},
};
use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::Signal,
};
use tempfile::TempDir;

/// A host with a helper on it.
pub struct Host {
    pub net: Net,
    pub directory: TempDir,
    /// What all instances of the host share.
    pub shared: TempDir,
    pub route: Route,
    /// Where the uplink leads; it ends with this.
    _outside: NetnsFd,
    may_forward_singly: bool,
    instance: &'static str,
}

pub fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> Address<IpAddr> {
    let (address, prefix) = text.split_once('/').unwrap();
    Address { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

/// A network namespace that nobody is in.
pub fn namespace() -> NetnsFd {
    let child = Clone3::new()
        .flags(CloneFlags::CLONE_NEWNET)
        .spawn(|| {
            std::thread::sleep(Duration::from_secs(60));
            0
        })
        .unwrap();
    let file = File::open(format!("/proc/{}/ns/net", child.pid)).unwrap();
    child.pidfd.send_signal(Signal::KILL).unwrap();
    child.pidfd.wait().unwrap();
    NetnsFd::from_fd(file.into()).unwrap()
}

/// Runs a program, which has to end well, and gives what it printed.
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program in another network namespace.
pub fn run_in(netns: &NetnsFd, line: &str) -> String {
    cgrant_sys::netlink::in_netns(netns, || Ok(run(line))).unwrap()
}

/// Waits until the kernel has taken notice that devices of links are up, which it does in its own time.
fn wait_for_devices() {
    let read = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let is_late = |path: &Path| {
        let flags = read(path, "flags");
        let is_up = flags
            .trim()
            .strip_prefix("0x")
            .is_some_and(|digits| u32::from_str_radix(digits, 16).unwrap() & 1 == 1);
        is_up && read(path, "carrier") == "1\n" && read(path, "operstate") == "down\n"
    };
    let begun = Instant::now();
    while std::fs::read_dir("/sys/class/net").unwrap().any(|entry| is_late(&entry.unwrap().path())) {
        assert!(begun.elapsed() < Duration::from_secs(10), "a device does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything that links could leave behind.
pub fn snapshot() -> String {
    wait_for_devices();
    let mut all = String::new();
    for line in
        ["ip -d link", "ip addr", "ip route show table all", "ip -6 route show table all", "nft list ruleset"]
    {
        all += &format!("# {line}\n{}", run(line));
    }
    settings(Path::new("/proc/sys/net"), &mut all);
    let lines: Vec<_> = all.lines().filter(|line| !line.contains("valid_lft")).map(without_timers).collect();
    lines.join("\n")
}

/// What counts down by itself.
fn without_timers(line: &str) -> String {
    let mut kept = Vec::new();
    let mut is_value = false;
    for word in line.split_whitespace() {
        if !is_value {
            kept.push(word);
        }
        is_value = word.ends_with("_timer");
    }
    kept.join(" ")
}

/// A bridge of the administrator's, which has a port besides ours.
pub fn admin_bridge(host: &Host) -> u32 {
    let index = host.route.add_bridge("br0", "the administrator's", [2, 0, 0, 3, 0, 1], 1500, false).unwrap();
    host.route.set_mtu(index, 1450).unwrap();
    host.route.set_up(index, true).unwrap();
    if host.device("lan0").is_none() {
        run("ip link add lan0 type veth peer name lan1");
        run("ip link set lan1 up");
    }
    run("ip link set lan0 mtu 1450 master br0 up");
    index
}

fn settings(directory: &Path, all: &mut String) {
    let mut entries: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            settings(&path, all);
        } else if let Ok(value) = std::fs::read_to_string(&path) {
            // Are of the whole machine, and change by themselves.
            if !path.starts_with("/proc/sys/net/netfilter") && !path.ends_with("tcp_fastopen_key") {
                *all += &format!("{} = {value}", path.display());
            }
        }
    }
}

/// The settings of the host's own interfaces.
pub fn settings_of_host() -> String {
    let mut all = String::new();
    for family in ["ipv4", "ipv6"] {
        for interface in ["all", "default", "lo", "up0"] {
            settings(Path::new(&format!("/proc/sys/net/{family}/conf/{interface}")), &mut all);
        }
    }
    all
}

/// Shows where two snapshots differ.
pub fn assert_same(before: &str, after: &str, what: &str) {
    // Sets are listed in any order.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    if sorted(before) != sorted(after) {
        let lost = before.lines().filter(|line| !after.lines().any(|other| other == *line));
        let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
        let lost: Vec<_> = lost.map(|line| format!("- {line}")).collect();
        let new: Vec<_> = new.map(|line| format!("+ {line}")).collect();
        panic!("{what}: it is not as before:\n{}\n{}", lost.join("\n"), new.join("\n"));
    }
}

pub fn own_bridge() -> Bridge {
    Bridge {
        name: "default".into(),
        device: "cgrant0".into(),
        kind: BridgeKind::Own {
            gateway4: Some(Address { address: v4("10.77.0.1"), prefix: 22 }),
            gateway6: Some(Address { address: v6("fd77::1"), prefix: 64 }),
            server4: Some(v4("10.77.0.2")),
            server6: Some(v6("fd77::2")),
        },
        mtu: 1500,
    }
}

pub fn foreign_bridge(device: &str) -> Bridge {
    Bridge { name: "lan".into(), device: device.into(), kind: BridgeKind::Foreign, mtu: 0 }
}

/// A link on the own bridge; `number` tells it from others.
pub fn link(number: u16) -> Link {
    let [a, b] = number.to_be_bytes();
    let host = 16 + number;
    let [c, d] = host.to_be_bytes();
    let info = LinkInfo {
        name: "eth0".into(),
        kind: LinkKind::Veth,
        bridge: "default".into(),
        host_name: format!("cgv{number:010x}"),
        ifindex: 0,
        mac: Mac([2, 0, 0, 7, a, b]),
        address4: Some(Address { address: Ipv4Addr::new(10, 77, c, d), prefix: 22 }),
        address6: Some(Address { address: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host), prefix: 64 }),
        gateway4: Some(v4("10.77.0.1")),
        gateway6: Some(v6("fd77::1")),
        dns: vec![v4("10.77.0.2").into()],
        mtu: 0,
        queue_length: 0,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: Vec::new(),
    };
    Link {
        key: LinkKey { grant: GrantId(u64::from(number)), name: "eth0".into() },
        account: 1000,
        host_name: format!("c{number}"),
        names: vec![format!("c{number}")],
        info,
        configure: true,
        open: false,
        any_address: false,
    }
}

pub fn port(host: u16, container: u16) -> PublishedPort {
    PublishedPort { address: None, host, container, transport: Transport::Tcp }
}

impl Host {
    /// With an uplink that has addresses and default routes, and a helper that has nothing yet.
    pub fn new() -> Self {
        Self::with(true)
    }

    /// The same; may IPv6 forwarding be set for single interfaces?
    pub fn with(may_forward_singly: bool) -> Self {
        let (route, outside) = (Route::open().unwrap(), namespace());
        route.set_up(1, true).unwrap();
        let uplink = route
            .add_veth(&NewVeth {
                name: "up0",
                alias: "the uplink",
                mtu: 1500,
                queue_length: 0,
                master: None,
                peer_name: "out0",
                peer_mac: [2, 0, 0, 1, 0, 1],
                peer_netns: &outside,
            })
            .unwrap();
        let far = Route::open_in(&outside).unwrap();
        let peer = far.link_by_name("out0").unwrap().unwrap().index;
        for (socket, index, last) in [(&route, uplink, 2), (&far, peer, 1)] {
            let four = Ipv4Addr::new(198, 51, 100, last);
            let six = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into());
            socket.add_address(index, four.into(), 24, true).unwrap();
            socket.add_address(index, six.into(), 64, true).unwrap();
            socket.set_up(index, true).unwrap();
        }
        route.add_default_route(uplink, v4("198.51.100.1").into()).unwrap();
        route.add_default_route(uplink, v6("2001:db8::1").into()).unwrap();
        // Its last route comes when the kernel has taken notice that the other end is up too.
        let begun = Instant::now();
        while !run("ip -6 route show table local").contains("2001:db8::2 ") {
            assert!(begun.elapsed() < Duration::from_secs(10), "the uplink does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (directory, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let net = helper("test", directory.path(), shared.path(), may_forward_singly);
        let mut host =
            Self { net, directory, shared, route, _outside: outside, may_forward_singly, instance: "test" };
        host.net.restore(&[], Vec::new());
        host
    }

    /// The helper dies and another one is started, which is told what ought to be.
    pub fn restart(&mut self, bridges: &[Bridge], links: Vec<Link>) -> Vec<NetEvent> {
        self.die();
        self.net.restore(bridges, links);
        self.net.take_events()
    }

    /// Everything that the helper had open is closed; another one knows of nothing yet.
    pub fn die(&mut self) {
        self.net = helper(self.instance, self.directory.path(), self.shared.path(), self.may_forward_singly);
    }

    /// Changes places with the helper of another instance.
    pub fn swap(&mut self, other: &mut Other) {
        std::mem::swap(&mut self.net, &mut other.net);
        std::mem::swap(&mut self.directory, &mut other.directory);
        std::mem::swap(&mut self.instance, &mut other.instance);
    }

    /// The helper of another instance on this host, which has nothing yet.
    pub fn other(&self) -> Other {
        let directory = tempfile::tempdir().unwrap();
        let mut net = helper("other", directory.path(), self.shared.path(), self.may_forward_singly);
        net.restore(&[], Vec::new());
        Other { net, directory, instance: "other" }
    }

    pub fn order(&mut self, order: Order, fds: Vec<OwnedFd>) -> Result<(Reply, Vec<OwnedFd>), NetFailure> {
        self.net.carry_out(order, fds)
    }

    /// Adds a link; its index.
    pub fn add(&mut self, bridge: &Bridge, link: &Link, netns: &NetnsFd) -> Result<u32, NetFailure> {
        let netns = netns.as_fd().try_clone_to_owned().unwrap();
        let order = Order::AddLink { bridge: bridge.clone(), link: link.clone(), netns: Some(FdIndex(0)) };
        match self.order(order, vec![netns])? {
            (Reply::Link { ifindex, tap: None, .. }, fds) if fds.is_empty() => Ok(ifindex),
            other => panic!("{other:?}"),
        }
    }

    pub fn remove(&mut self, link: &Link) {
        assert_eq!(self.order(Order::RemoveLink(link.key.clone()), Vec::new()).unwrap().0, Reply::Done);
    }

    pub fn device(&self, name: &str) -> Option<LinkState> {
        self.route.link_by_name(name).unwrap()
    }

    /// What a test build shall do at its steps.
    pub fn fault(&self, order: &str) {
        std::fs::write(self.directory.path().join("fault"), order).unwrap();
        let _ = std::fs::remove_file(self.directory.path().join("fault.log"));
    }

    /// The steps that were passed since.
    pub fn steps(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.directory.path().join("fault.log")).unwrap_or_default();
        std::fs::remove_file(self.directory.path().join("fault")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// What the helper could read, within so much time.
    pub fn readable(&self, patience: Timespec) -> Vec<RawFd> {
        let descriptors = self.net.descriptors();
        let mut fds: Vec<_> =
            descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        poll(&mut fds, Some(&patience)).unwrap();
        fds.iter().filter(|fd| !fd.revents().is_empty()).map(|fd| fd.as_fd().as_raw_fd()).collect()
    }

    /// Lets the helper look about for as long as something happens, and gives what it tells.
    pub fn settle(&mut self) -> Vec<NetEvent> {
        let mut events = Vec::new();
        // Longer than it waits for more of the same.
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < Duration::from_millis(400) {
            let ready = self.readable(Timespec { tv_sec: 0, tv_nsec: 20_000_000 });
            if !ready.is_empty() {
                quiet_since = Instant::now();
            }
            ready.into_iter().for_each(|fd| self.net.ready(fd));
            self.net.tend(Instant::now());
            events.extend(self.net.take_events());
        }
        events
    }
}

/// Another instance's helper; see [`Host::swap`].
pub struct Other {
    net: Net,
    directory: TempDir,
    instance: &'static str,
}

fn helper(instance: &str, directory: &Path, shared: &Path, may_forward_singly: bool) -> Net {
    let settings = Settings {
        instance: instance.into(),
        path: directory.into(),
        uid: 64_999,
        gid: 64_999,
        domain: "cgrant".into(),
        dns: vec![v4("198.51.100.1").into()],
        may_forward_singly,
    };
    Net::open(settings, Dir::open(directory).unwrap(), Dir::open(shared).unwrap()).unwrap()
}
