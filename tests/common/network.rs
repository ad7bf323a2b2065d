//! Network namespaces that play a host, its neighbour and the outside, so that nothing touches the machine's own network.
//!
//! ```text
//!   containers ── [ host: the whole broker ] ── up0 ──┐
//!                                                     ├ lan (192.0.2.0/24, 2001:db8:1::/64) [ router ] ── wan ── [ outside ]
//!                               [ neighbour ] ── up0 ─┘                       (198.51.100.0/24, 2001:db8:2::/64)
//! ```
//!
//! The outside knows a way to the host's network and to no other: what it answers came with an address of the host's. It serves DNS.
//! When the network is dropped the host's has to be as it was before the broker, to the byte.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Command,
};

use zbus::{Fd, OwnedFd as BusFd, OwnedVariant, Variant};

use super::{
    Broker, Client, Grant, Lab, Options, User,
    broker::Setup,
    bus::{PROPERTIES, Refused},
    node::Node,
    wait_until,
};

pub const LINKS: &str = "org.cgrant.Broker1.Links";
/// Addresses of those who play.
pub const HOST4: &str = "192.0.2.2";
pub const HOST6: &str = "2001:db8:1::2";
pub const NEIGHBOUR4: &str = "192.0.2.3";
pub const NEIGHBOUR6: &str = "2001:db8:1::3";
pub const OUTSIDE4: &str = "198.51.100.2";
pub const OUTSIDE6: &str = "2001:db8:2::2";

/// The namespaces.
pub struct Network<'lab> {
    lab: &'lab Lab,
    pub host: Node,
    pub router: Node,
    pub neighbour: Node,
    pub outside: Node,
    before: RefCell<Option<Snapshot>>,
    machine: Snapshot,
}

impl<'lab> Network<'lab> {
    pub fn new(lab: &'lab Lab) -> Self {
        let machine = Snapshot::of_machine();
        let [router, neighbour, outside] = ["router", "neighbour", "outside"].map(|_| lab.node("plain"));
        let network = Self {
            lab,
            host: lab.node("host"),
            router,
            neighbour,
            outside,
            before: RefCell::new(None),
            machine,
        };
        network.wire();
        // What the rest of the test compares with.
        network.look();
        network
    }

    fn wire(&self) {
        let quick = "ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/dad_transmits";
        let pid = |node: &Node| node.process.pid;
        for node in [&self.host, &self.neighbour, &self.outside] {
            node.sh(quick);
        }
        self.router.sh(&format!(
            "{quick}
             ip link add lan type bridge
             ip link add to-host type veth peer name up0 netns {}
             ip link add to-near type veth peer name up0 netns {}
             ip link add wan type veth peer name up0 netns {}
             for port in to-host to-near; do ip link set $port master lan; ip link set $port up; done
             ip link set lan up; ip link set wan up
             ip address add 192.0.2.1/24 dev lan; ip address add 2001:db8:1::1/64 dev lan nodad
             ip address add 198.51.100.1/24 dev wan; ip address add 2001:db8:2::1/64 dev wan nodad
             echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
            pid(&self.host),
            pid(&self.neighbour),
            pid(&self.outside)
        ));
        for (node, address4, address6) in
            [(&self.host, HOST4, HOST6), (&self.neighbour, NEIGHBOUR4, NEIGHBOUR6)]
        {
            node.sh(&format!(
                "ip link set up0 up
                 ip address add {address4}/24 dev up0; ip address add {address6}/64 dev up0 nodad
                 ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:1::1"
            ));
        }
        self.outside.sh(&format!(
            "ip link set up0 up
             ip address add {OUTSIDE4}/24 dev up0; ip address add {OUTSIDE6}/64 dev up0 nodad
             ip route add 192.0.2.0/24 via 198.51.100.1; ip -6 route add 2001:db8:1::/64 via 2001:db8:2::1"
        ));
        let resolvers = self.lab.scratch.join("resolv.conf");
        fs::write(&resolvers, format!("nameserver {OUTSIDE4}\n")).unwrap();
        self.host.sh(&format!("mount --bind {} /etc/resolv.conf", resolvers.display()));
        self.outside.background(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            &format!("--address=/far.test/{OUTSIDE4}"),
            &format!("--address=/far.test/{OUTSIDE6}"),
        ]);
        let settled = |node: &Node| !node.run(&["ip", "-6", "address"]).contains("tentative");
        wait_until("the addresses are in use", || {
            [&self.host, &self.neighbour, &self.outside, &self.router].into_iter().all(settled)
        });
    }

    /// What is there now is what has to be there in the end.
    pub fn look(&self) {
        self.before.replace(Some(Snapshot::of(&self.host)));
    }

    /// The broker's setup, in the host's namespaces.
    pub fn setup(&self) -> Setup {
        self.lab.setup().within(self.host.process.pid)
    }

    /// A broker in the host's namespaces.
    pub fn broker(&self) -> Broker {
        self.setup().start()
    }

    /// A process of a user's in the host's namespaces.
    pub fn node_of(&self, user: &User) -> Node {
        let mut command = self.enter(user.dropped().get_program());
        command.args(["--agent", "as", &user.uid.to_string(), &user.gid.to_string(), "", "role"]);
        Node::start(command, "here")
    }

    /// The command-line client as this user, on the host.
    pub fn cgrant(&self, user: &User, broker: &Broker, arguments: &[&str]) -> std::process::Output {
        self.cgrant_command(user, broker, arguments).output().unwrap()
    }

    /// The same to be started otherwise.
    pub fn cgrant_command(&self, user: &User, broker: &Broker, arguments: &[&str]) -> Command {
        self.cgrant_at(user, broker.socket(), arguments)
    }

    /// The same by the broker's socket alone.
    pub fn cgrant_at(&self, user: &User, socket: &Path, arguments: &[&str]) -> Command {
        let plain = user.command(self.lab.programs.join("cgrant"));
        let mut command = self.enter(plain.get_program());
        command.args(plain.get_args()).args(arguments);
        command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("CGRANT_SOCKET", socket).stdin(std::process::Stdio::null());
        command
    }

    fn enter(&self, program: &std::ffi::OsStr) -> Command {
        enter(self.host.process.pid, program)
    }

    /// What is different from before; empty if nothing is.
    pub fn differences(&self) -> String {
        let before = self.before.borrow();
        before.as_ref().unwrap().differences(&Snapshot::of(&self.host))
    }

    /// Everything is as it was before, soon: the last link may be on its way out.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_as_before(&self) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let mut differences = self.differences();
        while !differences.is_empty() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(30));
            differences = self.differences();
        }
        assert!(differences.is_empty(), "the host's network is not as before:\n{differences}");
    }

    /// Devices of the broker's on the host.
    pub fn devices(&self) -> Vec<String> {
        let text = self.host.run(&["ip", "-br", "link"]);
        let names = text.lines().filter_map(|line| line.split(['@', ' ']).next());
        names.filter(|name| !["lo", "up0"].contains(name)).map(str::to_owned).collect()
    }

    /// Processes of dnsmasq's that the broker started, by pid.
    pub fn name_servers(&self) -> Vec<u32> {
        let outside = super::harness::descendants_of(self.outside.process.pid);
        let is_one = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "dnsmasq")
        };
        super::harness::descendants()
            .into_iter()
            .filter(|pid| is_one(pid) && !outside.contains(pid))
            .collect()
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.assert_as_before();
        let differences = self.machine.differences(&Snapshot::of_machine());
        assert!(differences.is_empty(), "the machine's own network was touched:\n{differences}");
    }
}

/// A command in the network and mount namespaces of a process.
pub fn enter(pid: u32, program: &std::ffi::OsStr) -> Command {
    let mut command = Command::new("nsenter");
    command.args([format!("--net=/proc/{pid}/ns/net"), format!("--mount=/proc/{pid}/ns/mnt")]).arg(program);
    command
}

/// Everything that there is to be seen of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

/// What changes by itself, and why nothing else is hidden with it: the word after each is a clock or counts packets.
const VOLATILE: [&str; 13] = [
    // Lifetimes of what routers advertised.
    "valid_lft",
    "preferred_lft",
    "expires",
    "age",
    // Clocks of a bridge of the administrator's.
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    // Counters in rules of others.
    "packets",
    "bytes",
];

/// Settings that are measurements.
const MEASURED: [&str; 1] = [
    // Connections that the kernel remembers; each is forgotten by itself.
    "/proc/sys/net/netfilter/nf_conntrack_count",
];

impl Snapshot {
    /// Of a node's network.
    pub fn of(node: &Node) -> Self {
        let mut all = node.settings();
        for name in MEASURED {
            all.remove(name);
        }
        for words in [
            &["ip", "-d", "link"][..],
            &["ip", "address"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "rule"],
            &["ip", "-6", "rule"],
            &["tc", "qdisc"],
            &["nft", "list", "ruleset"],
        ] {
            all.insert(words.join(" "), without_clocks(&node.run(words)));
        }
        Self(all)
    }

    // Of the machine's own network as far as others leave it alone: its switches, and what has the project's name.
    fn of_machine() -> Self {
        let mut all = BTreeMap::new();
        for name in [
            "ipv4/ip_forward",
            "ipv4/conf/all/route_localnet",
            "ipv4/conf/default/forwarding",
            "ipv4/conf/eth0/forwarding",
            "ipv6/conf/all/forwarding",
            "ipv6/conf/all/accept_ra",
            "ipv6/conf/eth0/accept_ra",
        ] {
            let path = format!("/proc/sys/net/{name}");
            all.insert(path.clone(), fs::read_to_string(&path).unwrap_or_default());
        }
        let output = Command::new("nft").args(["list", "tables"]).output().unwrap();
        let tables = String::from_utf8_lossy(&output.stdout).into_owned();
        let ours: Vec<&str> = tables.lines().filter(|line| line.contains("cgrant")).collect();
        all.insert("nft list tables".into(), ours.join("\n"));
        Self(all)
    }

    /// Line by line, what is gone and what is new; empty if nothing is.
    pub fn differences(&self, now: &Self) -> String {
        let mut text = String::new();
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(now.0.keys()).collect();
        for name in names {
            let (old, new) = (self.0.get(name), now.0.get(name));
            if old == new {
                continue;
            }
            let lines = |part: Option<&String>| {
                part.map_or_else(Vec::new, |p| p.lines().map(str::to_owned).collect())
            };
            let (old, new): (Vec<String>, Vec<String>) = (lines(old), lines(new));
            writeln!(text, "  {name}").unwrap();
            for line in old.iter().filter(|line| !new.contains(line)) {
                writeln!(text, "    - {line}").unwrap();
            }
            for line in new.iter().filter(|line| !old.contains(line)) {
                writeln!(text, "    + {line}").unwrap();
            }
        }
        if text.lines().count() > 60 {
            let start: Vec<&str> =
                text.lines().filter(|line| !line.trim_end().ends_with('+')).take(60).collect();
            text = start.join("\n") + "\n  and more";
        }
        text
    }
}

// Words only: how far apart they are printed depends on the clocks too.
fn without_clocks(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for line in text.lines() {
        let mut mask = false;
        for word in line.split_whitespace() {
            result.push_str(if mask { "*" } else { word });
            result.push(' ');
            mask = !mask && VOLATILE.contains(&word);
        }
        result.push('\n');
    }
    result
}

/// A link as its account is told of it.
#[derive(Debug)]
pub struct Link {
    pub name: String,
    pub bridge: String,
    pub host_name: String,
    pub ifindex: u32,
    pub mac: String,
    pub address4: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    pub gateway4: Option<Ipv4Addr>,
    pub gateway6: Option<Ipv6Addr>,
    pub dns: Vec<IpAddr>,
    pub mtu: u32,
    pub ports: Vec<String>,
    pub tap: Option<OwnedFd>,
    pub all: HashMap<String, OwnedVariant>,
}

impl Link {
    fn from(mut all: HashMap<String, OwnedVariant>) -> Self {
        let text =
            |key: &str| all.get(key).and_then(|v| <&str>::try_from(v).ok()).unwrap_or_default().to_owned();
        let number = |key: &str| all.get(key).and_then(|v| u32::try_from(v).ok()).unwrap_or_default();
        let list = |key: &str| {
            all.get(key).and_then(|v| Vec::<String>::try_from(v.clone()).ok()).unwrap_or_default()
        };
        let address = |key: &str| text(key).split('/').next().and_then(|a| a.parse::<IpAddr>().ok());
        let v4 = |key: &str| match address(key) {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        };
        let v6 = |key: &str| match address(key) {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        };
        let mut link = Self {
            name: text("name"),
            bridge: text("bridge"),
            host_name: text("host-name"),
            ifindex: number("ifindex"),
            mac: text("mac"),
            address4: v4("address4"),
            address6: v6("address6"),
            gateway4: v4("gateway4"),
            gateway6: v6("gateway6"),
            dns: list("dns").iter().map(|address| address.parse().unwrap()).collect(),
            mtu: number("mtu"),
            ports: list("ports"),
            tap: None,
            all: HashMap::new(),
        };
        link.tap = all.remove("tap").map(|fd| BusFd::from(Fd::try_from(fd).unwrap()).into());
        link.all = all;
        link
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> String {
        self.address4.unwrap_or_else(|| panic!("no IPv4 address: {self:?}")).to_string()
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> String {
        self.address6.unwrap_or_else(|| panic!("no IPv6 address: {self:?}")).to_string()
    }

    /// Both, as they are written before a port.
    pub fn both(&self) -> [String; 2] {
        [self.ip4(), format!("[{}]", self.ip6())]
    }

    /// The host's addresses on the bridge, alike.
    pub fn gateways(&self) -> [String; 2] {
        [self.gateway4.unwrap().to_string(), format!("[{}]", self.gateway6.unwrap())]
    }

    /// Its address on the data link layer.
    pub fn mac(&self) -> [u8; 6] {
        let bytes: Vec<u8> = self.mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }
}

impl Options {
    /// The namespace of the far end.
    pub fn netns(self, netns: &OwnedFd) -> Self {
        self.fd("netns", netns)
    }

    /// Ports to publish.
    pub fn ports(self, ports: &[&str]) -> Self {
        let ports: Vec<String> = ports.iter().map(|port| (*port).to_owned()).collect();
        self.with("ports", ports)
    }

    /// Links of a grant that is made.
    pub fn links(self, links: Vec<Self>) -> Self {
        let links: Vec<HashMap<String, Variant<'static>>> = links.into_iter().map(|link| link.0).collect();
        self.with("links", links)
    }
}

impl Client {
    pub fn add_link(&self, grant: &str, options: Options) -> Result<Link, Refused> {
        self.call(grant, LINKS, "AddLink", &options.0).map(Link::from)
    }

    pub fn remove_link(&self, grant: &str, name: &str) -> Result<(), Refused> {
        self.call(grant, LINKS, "RemoveLink", &name)
    }

    pub fn publish(&self, grant: &str, name: &str, ports: &[&str]) -> Result<(), Refused> {
        self.call(grant, LINKS, "PublishPorts", &(name, ports))
    }

    pub fn unpublish(&self, grant: &str, name: &str, ports: &[&str]) -> Result<(), Refused> {
        self.call(grant, LINKS, "UnpublishPorts", &(name, ports))
    }

    /// The links of a grant.
    pub fn links(&self, grant: &str) -> Vec<Link> {
        let value: OwnedVariant = self.call(grant, PROPERTIES, "Get", &(LINKS, "Links")).unwrap();
        let all = Vec::<HashMap<String, OwnedVariant>>::try_from(value).unwrap();
        all.into_iter().map(Link::from).collect()
    }

    /// The bridges that this client may use.
    pub fn bridges(&self) -> Vec<HashMap<String, OwnedVariant>> {
        self.manager("ListBridges", &()).unwrap()
    }

    /// What stands in the way of links: subject, is it good, what was found, what to do.
    pub fn examine_network(&self) -> Vec<(String, bool, String, String)> {
        self.manager("ExamineNetwork", &()).unwrap()
    }
}

/// A container with a link, made in one request.
pub struct Container {
    pub node: Node,
    pub grant: Grant,
    pub link: Link,
}

impl Container {
    /// A persistent grant `name` with one link, whose options are `link`.
    pub fn try_new(user: &User, client: &Client, name: &str, link: Options) -> Result<Self, Refused> {
        let node = Node::container(user);
        node.sh("ip link set lo up");
        let link = link.netns(&node.netns);
        let grant =
            client.create(name, Options::new().lifetime("persistent").no_range().links(vec![link]))?;
        let mut links = client.links(&grant.path);
        assert_eq!(links.len(), 1, "{links:?}");
        Ok(Self { node, grant, link: links.remove(0) })
    }

    /// The same where it is not refused.
    #[track_caller]
    pub fn new(user: &User, client: &Client, name: &str, link: Options) -> Self {
        Self::try_new(user, client, name, link).unwrap_or_else(|refused| panic!("{name}: {refused:?}"))
    }

    /// Releases it.
    pub fn release(self, client: &Client) {
        client.release(&self.grant.path, false).unwrap();
    }
}

impl Setup {
    /// A setup in the namespaces of a process.
    pub fn within(mut self, pid: u32) -> Self {
        self.inside = Some(pid);
        self
    }
}

impl Lab {
    /// A network namespace of root's.
    pub fn node(&self, kind: &str) -> Node {
        Node::of_root(&self.programs, kind)
    }
}

/// A namespace descriptor of a process.
pub fn namespace_of(pid: u32, kind: &str) -> OwnedFd {
    let file = fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
    file.as_fd().try_clone_to_owned().unwrap()
}
