//! The host, its containers and the outside, as network namespaces.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    num::NonZeroU32,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use cgrant_net::firewall::Firewall;
use cgrant_wire::{
    grant::GrantId,
    link::{Address, LinkInfo, LinkKind, Mac, PublishedPort},
    net::{Bridge, BridgeKind, Link, LinkKey},
};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns, unshare},
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, send, socket_with,
};

/// How long something that ought to arrive may take, and how long something that ought not to is waited for.
pub const ARRIVAL: Duration = Duration::from_secs(10);
pub const ABSENCE: Duration = Duration::from_millis(400);

/// How long a connection is waited for, which may come or not: longer on a machine that is slow, an emulated one for instance, and
/// never less than it takes TCP to try once more, after a second (RFC 6298, 2.1).
pub fn patience() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        let begun = Instant::now();
        Space::new();
        (begun.elapsed() * 30).clamp(Duration::from_millis(1500), Duration::from_secs(8))
    })
}

static HOME: OnceLock<File> = OnceLock::new();

fn home() -> &'static File {
    HOME.get_or_init(|| File::open("/proc/self/ns/net").unwrap())
}

/// Back to where the test program was started.
fn go_home() {
    setns(home(), CloneFlags::CLONE_NEWNET).unwrap();
}

/// Has this kernel bridge-nf-call, and its switches in each namespace?
pub fn can_call() -> bool {
    let space = Space::new();
    space.run("ip link add probe type bridge");
    space.enter(|| std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").is_ok())
}

/// A network namespace.
pub struct Space(File);

impl Space {
    /// A new one, with its loopback device up and no waiting for duplicate addresses.
    pub fn new() -> Self {
        home();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let space = Self(File::open("/proc/self/ns/net").unwrap());
        go_home();
        space.run("ip link set lo up");
        for place in ["all", "default"] {
            space.set(&format!("ipv6/conf/{place}/accept_dad"), "0");
            space.set(&format!("ipv6/conf/{place}/router_solicitations"), "0");
        }
        space
    }

    /// Does something in it.
    pub fn enter<R>(&self, what: impl FnOnce() -> R) -> R {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
        let result = what();
        go_home();
        result
    }

    /// Runs a program in it, which has to succeed; what it printed.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let output = self.enter(|| Command::new(words.next().unwrap()).args(words).output().unwrap());
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sets a sysctl of the network.
    pub fn set(&self, name: &str, value: &str) {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{name}"), value)).unwrap();
    }

    /// All frames of `protocol` (0 for none, 3 for all) that come by at a device.
    pub fn packets(&self, device: &str, protocol: u16) -> Packets {
        self.enter(|| {
            let protocol = NonZeroU32::new(u32::from(protocol.to_be())).map(Protocol::from_raw);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol).unwrap();
            let mut addresses = getifaddrs().unwrap().filter(|entry| entry.interface_name == device);
            let link =
                addresses.find_map(|entry| entry.address.and_then(|address| address.as_link_addr().copied()));
            nix::sys::socket::bind(socket.as_raw_fd(), &link.unwrap()).unwrap();
            Packets(socket)
        })
    }

    /// Can it connect to `to`? The address that the server, in `server`, sees it come from.
    pub fn connect(&self, server: &Space, listen: SocketAddr, to: SocketAddr) -> Option<IpAddr> {
        let (listener, time) = (server.enter(|| TcpListener::bind(listen)).unwrap(), patience());
        let stream = self.enter(|| TcpStream::connect_timeout(&to, time));
        let _stream = stream.ok()?;
        listener.set_nonblocking(true).unwrap();
        // Somebody else may have answered; or the server's kernel has not yet seen the last step of the handshake.
        let end = Instant::now() + time;
        loop {
            match listener.accept() {
                Ok((_, peer)) => return Some(peer.ip()),
                Err(_) if Instant::now() > end => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// As [`Space::connect`], with a datagram there and back, from port `from` (0 for any); the sender that the server saw.
    pub fn ask(&self, from: u16, server: &Space, listen: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let listener = server.enter(|| UdpSocket::bind(listen)).unwrap();
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = self.enter(|| UdpSocket::bind((any, from))).unwrap();
        for socket in [&listener, &client] {
            socket.set_read_timeout(Some(patience())).unwrap();
        }
        self.enter(|| client.connect(to)).ok()?;
        client.send(b"question").ok()?;
        let (_, seen) = listener.recv_from(&mut [0; 16]).ok()?;
        listener.send_to(b"answer", seen).ok()?;
        client.recv(&mut [0; 16]).ok().map(|_| seen)
    }

    /// Does `to` answer a ping?
    pub fn ping(&self, to: IpAddr) -> bool {
        self.set("ipv4/ping_group_range", "0 2147483647");
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = self.enter(|| socket_with(family, SocketType::DGRAM, flags, Some(protocol)).unwrap());
        if self.enter(|| rustix::net::connect(&socket, &SocketAddr::new(to, 0))).is_err() {
            return false;
        }
        let _ = send(&socket, &[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'i'], SendFlags::empty());
        Packets(socket).sees(patience(), |_| true)
    }
}

/// A packet socket.
pub struct Packets(OwnedFd);

impl Packets {
    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(send(&self.0, frame, SendFlags::empty()).unwrap(), frame.len());
    }

    /// Does a frame come that `wanted` knows, within `time`? Forgets what came before it.
    pub fn sees(&self, time: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
        let end = Instant::now() + time;
        let mut buffer = [0; 4096];
        loop {
            match recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok((length, _)) if wanted(&buffer[..length]) => return true,
                Ok(_) => {}
                Err(_) if Instant::now() > end => return false,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

/// The host's addresses on its bridge, and the name server's.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The host's address outside, and that of somebody there.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// MACs of the bridge and the name server.
pub const GATEWAY_MAC: Mac = Mac([2, 0xca, 0, 0, 0, 1]);
pub const SERVER_MAC: Mac = Mac([2, 0xca, 0, 0, 0, 2]);

/// A container.
pub struct Container {
    /// Its namespace; its device is `eth0`.
    pub space: Space,
    /// Its link.
    pub link: Link,
    /// Name of the host's end.
    pub device: String,
    /// Its packet socket.
    pub wire: Packets,
}

impl Container {
    /// Its MAC.
    pub fn mac(&self) -> Mac {
        self.link.info.mac
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.link.info.address4.unwrap().address
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Ipv6Addr {
        self.link.info.address6.unwrap().address
    }

    /// Both addresses.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }
}

/// A host with containers.
pub struct World {
    /// The host.
    pub host: Space,
    /// Somebody on its network.
    pub outside: Space,
    /// The name server.
    pub server: Space,
    /// Two containers of account 1000, two of account 1001.
    pub containers: Vec<Container>,
    /// The host's rules.
    pub firewall: Firewall,
    /// The bridge.
    pub bridge: Bridge,
}

/// What is left out of a world.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The broker's own bridge and the wall.
    Walled,
    /// No rule at all.
    Open,
    /// A bridge of the administrator's.
    Foreign,
}

impl World {
    /// Builds it all. `called`: bridged packets pass the host's rules too.
    pub fn new(kind: Kind, called: bool) -> Self {
        let (host, outside, server) = (Space::new(), Space::new(), Space::new());
        host.run(&format!("ip link add cgrant0 address {GATEWAY_MAC} type bridge"));
        host.run("ip link set cgrant0 up");
        host.run(&format!("ip addr add {GATEWAY4}/22 dev cgrant0"));
        host.run(&format!("ip addr add {GATEWAY6}/64 dev cgrant0 nodad"));
        if can_call() {
            for name in ["iptables", "ip6tables"] {
                host.set(&format!("bridge/bridge-nf-call-{name}"), if called { "1" } else { "0" });
            }
        }
        connect(&host, "up0", &outside, "eth0", None);
        for (space, device, v4, v6) in [(&host, "up0", HOST4, HOST6), (&outside, "eth0", OUTSIDE4, OUTSIDE6)]
        {
            space.run(&format!("ip addr add {v4}/24 dev {device}"));
            space.run(&format!("ip addr add {v6}/64 dev {device} nodad"));
        }
        for device in ["up0", "cgrant0"] {
            host.set(&format!("ipv4/conf/{device}/forwarding"), "1");
        }
        host.set("ipv6/conf/all/forwarding", "1");
        let own = BridgeKind::Own {
            gateway4: Some(Address { address: GATEWAY4, prefix: 22 }),
            gateway6: Some(Address { address: GATEWAY6, prefix: 64 }),
            server4: Some(SERVER4),
            server6: Some(SERVER6),
        };
        let bridge_kind = if kind == Kind::Foreign { BridgeKind::Foreign } else { own };
        let bridge =
            Bridge { name: "default".into(), device: "cgrant0".into(), kind: bridge_kind, mtu: 1500 };
        let mut world =
            Self { host, outside, server, containers: Vec::new(), firewall: Firewall::new("test"), bridge };
        world.add_server(kind);
        for number in 0..4 {
            world.add_container(kind, number);
        }
        if kind == Kind::Walled {
            world.host.set("ipv4/conf/cgrant0/route_localnet", "1");
        }
        world.wait();
        world
    }

    /// Waits until the bridge has seen that its ports are up, which it does when it has time.
    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        for ip in self.containers.iter().flat_map(Container::ips) {
            while !self.host.ping(ip) {
                assert!(Instant::now() < end, "the container at {ip} is out of reach of its host");
            }
        }
    }

    fn add_server(&mut self, kind: Kind) {
        connect(&self.host, "cgd0", &self.server, "eth0", Some(SERVER_MAC));
        self.host.run("ip link set cgd0 master cgrant0");
        configure(&self.server, SERVER4, SERVER6);
        if kind == Kind::Walled {
            self.wall(|firewall, bridge| firewall.add_server(bridge, "cgd0", SERVER_MAC).unwrap());
        }
    }

    fn add_container(&mut self, kind: Kind, number: u8) {
        let space = Space::new();
        let device = format!("cgv{number}");
        let mac = Mac([2, 0xca, 0, 0, 1, number]);
        connect(&self.host, &device, &space, "eth0", Some(mac));
        self.host.run(&format!("ip link set {device} master cgrant0"));
        self.host.run(&format!("bridge link set dev {device} learning off hairpin on"));
        self.host.run(&format!("bridge fdb replace {mac} dev {device} master static"));
        let link = link(number, mac, &device);
        if kind != Kind::Open {
            self.wall(|firewall, bridge| firewall.add_link(bridge, &device, &link).unwrap());
        }
        configure(&space, link.info.address4.unwrap().address, link.info.address6.unwrap().address);
        let wire = space.packets("eth0", 3);
        self.containers.push(Container { space, link, device, wire });
    }

    /// A cable from the host's device `device` to somebody's `eth0`.
    pub fn join(&self, far: &Space, device: &str) {
        connect(&self.host, device, far, "eth0", None);
        self.host.set(&format!("ipv4/conf/{device}/forwarding"), "1");
    }

    /// Changes the rules, on the host.
    pub fn wall<R>(&mut self, what: impl FnOnce(&mut Firewall, &Bridge) -> R) -> R {
        let (firewall, bridge) = (&mut self.firewall, &self.bridge);
        self.host.enter(|| what(firewall, bridge))
    }

    /// Gives a container these ports.
    pub fn publish(&mut self, number: usize, ports: &[PublishedPort]) {
        let key = self.containers[number].link.key.clone();
        self.wall(|firewall, _| firewall.set_ports(&key, ports).unwrap());
    }
}

fn connect(host: &Space, device: &str, far: &Space, name: &str, mac: Option<Mac>) {
    let address = mac.map(|mac| format!(" address {mac}")).unwrap_or_default();
    // The far end is born there; ip wants a name of a namespace, or a process in it.
    let mut holder = far.enter(|| Command::new("sleep").arg("60").spawn().unwrap());
    host.run(&format!("ip link add {device} type veth peer name {name}{address} netns {}", holder.id()));
    let _ = holder.kill();
    let _ = holder.wait();
    host.run(&format!("ip link set {device} up"));
    far.run(&format!("ip link set {name} up"));
}

fn configure(space: &Space, v4: Ipv4Addr, v6: Ipv6Addr) {
    space.run(&format!("ip addr add {v4}/22 dev eth0"));
    space.run(&format!("ip addr add {v6}/64 dev eth0 nodad"));
    space.run(&format!("ip route add default via {GATEWAY4}"));
    space.run(&format!("ip route add default via {GATEWAY6}"));
}

/// The link of container `number`.
pub fn link(number: u8, mac: Mac, device: &str) -> Link {
    Link {
        key: LinkKey { grant: GrantId(u64::from(number) + 1), name: "eth0".into() },
        account: 1000 + u32::from(number) / 2,
        host_name: format!("c{number}"),
        names: vec![format!("c{number}")],
        info: LinkInfo {
            name: "eth0".into(),
            kind: LinkKind::Veth,
            bridge: "default".into(),
            host_name: device.into(),
            ifindex: 0,
            mac,
            address4: Some(Address { address: Ipv4Addr::new(10, 77, 0, 16 + number), prefix: 22 }),
            address6: Some(Address {
                address: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 16 + u16::from(number)),
                prefix: 64,
            }),
            gateway4: Some(GATEWAY4),
            gateway6: Some(GATEWAY6),
            dns: Vec::new(),
            mtu: 1500,
            queue_length: 0,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: Vec::new(),
        },
        configure: true,
        open: false,
        any_address: false,
    }
}
