//! Sockets that hold published ports, so that no service of the host's and no other user is shadowed by one.
//!
//! Every published port is held, in each family that it is published in, by a socket that is bound and does not
//! listen: the packets are led to the container by nftables before any socket is looked for. Connections to `[::1]`,
//! which the kernel routes nowhere else, are served by the unprivileged [`crate::proxy`] on sockets that are bound here.
//!
//! What an attacker could want: the port of somebody else's container, or of a service of the host's. The kernel
//! decides who has a port, by binding; a port that is taken is refused, and the one that has it is named as far as
//! `/proc/net` shows it to everybody. An address that is not the host's is refused too: a rule for it would catch
//! packets that are only passing. (`ip_nonlocal_bind` makes the kernel lenient there, so rules ask for local addresses as well.)

mod holder;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, BorrowedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

pub use cgrant_sys::port::Occupant;
use cgrant_sys::port::{Refused, View};
use cgrant_wire::{PublishedPort, RefusalCode, net::LinkKey};

use self::holder::{Binding, Holder, intruder};
use crate::proxy::{
    child::{Proxy, ProxySettings},
    message::{Lead, PortId},
};

/// How long at the beginning a port is waited for that a proxy of a helper before us still serves: it closes them
/// when it notices that its helper is gone, which takes a moment.
const PREDECESSOR: Duration = Duration::from_secs(1);
/// How often that is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Why ports are not held; none of those asked for newly is.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// Another link, or the same one, has it.
    #[error("port {} is published already", describe(.port))]
    Published {
        /// The port.
        port: PublishedPort,
        /// By which link.
        by: LinkKey,
    },
    /// A program of the host's has it.
    #[error("port {} is taken by {}", describe(.port), describe_occupant(.by.as_ref()))]
    Taken {
        /// The port.
        port: PublishedPort,
        /// By which socket, if it can be seen: one that neither listens nor is connected can't.
        by: Option<Occupant>,
    },
    /// The address is none of the host's.
    #[error("port {}: the host has no such address", describe(.port))]
    NoSuchAddress {
        /// The port.
        port: PublishedPort,
    },
    /// Port 0, or an address that names no single host.
    #[error("port {}: not a port and an address of a host", describe(.port))]
    Invalid {
        /// The port.
        port: PublishedPort,
    },
    /// The kernel refused for another reason.
    #[error("port {}: the kernel refuses: {source}", describe(.port))]
    Kernel {
        /// The port.
        port: PublishedPort,
        /// What it said.
        source: std::io::Error,
    },
}

impl PortsError {
    /// Its kind for a caller, and what he can do about it.
    #[must_use]
    pub fn code_and_hint(&self) -> (RefusalCode, &'static str) {
        match self {
            Self::Published { .. } | Self::Taken { .. } => {
                (RefusalCode::AddressInUse, "publish another port of the host's, or end what has this one")
            }
            Self::NoSuchAddress { .. } => {
                (RefusalCode::InvalidArgument, "name an address of the host's, or none")
            }
            Self::Invalid { .. } => (RefusalCode::InvalidArgument, ""),
            Self::Kernel { .. } => (RefusalCode::KernelRefused, ""),
        }
    }
}

/// `80/tcp`, `192.0.2.1:53/udp`.
fn describe(port: &PublishedPort) -> String {
    let transport = match port.transport {
        cgrant_wire::Transport::Tcp => "tcp",
        cgrant_wire::Transport::Udp => "udp",
    };
    match port.address {
        None => format!("{}/{transport}", port.host),
        Some(address) => format!("{}/{transport}", SocketAddr::new(address, port.host)),
    }
}

fn describe_occupant(occupant: Option<&Occupant>) -> String {
    occupant.map_or_else(|| "a socket that is bound but does not listen".into(), Occupant::to_string)
}

/// Where the ports of a link lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The account that is charged: what it has of the proxy is bounded for all its links together.
    pub account: u32,
    /// The container's IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// Its IPv6 address, which is tried first.
    pub address6: Option<Ipv6Addr>,
}

/// A port that is held.
#[derive(Debug)]
struct Held {
    holder: Holder,
    /// What the proxy was told, and under which number.
    lead: Option<(PortId, Lead)>,
}

/// All published ports of an instance.
#[derive(Debug)]
pub struct Holders {
    links: BTreeMap<LinkKey, BTreeMap<Binding, Held>>,
    proxy: Proxy,
    begun: Instant,
}

impl Holders {
    /// Holds nothing yet. The proxy is started with the first port that it serves.
    #[must_use]
    pub fn new(settings: ProxySettings) -> Self {
        Self { links: BTreeMap::new(), proxy: Proxy::new(settings), begun: Instant::now() }
    }

    /// Gives a link exactly these ports: [`Holders::open`] and [`Holders::settle`].
    ///
    /// # Errors
    /// [`PortsError`]; the link then has the ports that it had.
    pub fn hold(
        &mut self,
        key: &LinkKey,
        target: &Target,
        ports: &[PublishedPort],
    ) -> Result<(), PortsError> {
        self.open(key, ports)?;
        self.settle(key, target, ports);
        Ok(())
    }

    /// Holds these ports besides those that the link has, all or none. Nothing leads anywhere yet: rules are set between
    /// this and [`Holders::settle`].
    ///
    /// # Errors
    /// [`PortsError`].
    pub fn open(&mut self, key: &LinkKey, ports: &[PublishedPort]) -> Result<(), PortsError> {
        let mut fresh = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut view = View::of(ports.iter().map(|port| port.host).collect());
        for port in ports {
            let binding = binding_of(port)?;
            if !seen.insert(binding) {
                return Err(PortsError::Published { port: *port, by: key.clone() });
            }
            if self.links.get(key).is_some_and(|held| held.contains_key(&binding)) {
                continue;
            }
            if let Some(by) = self.overlapping(key, &binding, ports) {
                return Err(PortsError::Published { port: *port, by });
            }
            let holder = self.bind(&binding, &mut view).map_err(|refused| refusal(port, refused))?;
            fresh.insert(binding, (*port, Held { holder, lead: None }));
        }
        let holders = fresh.iter().map(|(binding, (_, held))| (binding, &held.holder));
        if let Some((binding, by)) = intruder(holders)
            && let Some((port, _)) = fresh.get(binding)
        {
            return Err(PortsError::Taken { port: *port, by: Some(by) });
        }
        let mut fresh =
            fresh.into_iter().map(|(binding, (_, held))| (binding, held)).collect::<BTreeMap<_, _>>();
        if !fresh.is_empty() {
            self.links.entry(key.clone()).or_default().append(&mut fresh);
        }
        Ok(())
    }

    /// Ends all ports of a link but these, and leads the rest of them from `[::1]` to the target. Also undoes
    /// [`Holders::open`], with the ports that there were before.
    pub fn settle(&mut self, key: &LinkKey, target: &Target, ports: &[PublishedPort]) {
        let Some(held) = self.links.remove(key) else { return };
        let wanted: BTreeMap<Binding, u16> =
            ports.iter().filter_map(|port| Some((binding_of(port).ok()?, port.container))).collect();
        let (mut held, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(binding, _)| wanted.contains_key(binding));
        ended.values().for_each(|ended| self.end(ended));
        for (binding, port) in &mut held {
            let Some(container) = wanted.get(binding) else { continue };
            let Some(loopback) = port.holder.loopback() else { continue };
            let lead = lead_of(target, binding, *container);
            match &port.lead {
                Some((_, told)) if *told == lead => (),
                Some((id, _)) => {
                    self.proxy.change(*id, &lead);
                    port.lead = Some((*id, lead));
                }
                None => {
                    let id = self.proxy.serve(loopback.as_fd(), &lead);
                    port.lead = id.map(|id| (id, lead));
                }
            }
        }
        if !held.is_empty() {
            self.links.insert(key.clone(), held);
        }
    }

    /// Ends all ports of a link, if it has any. Connections through the proxy are cut.
    pub fn release(&mut self, key: &LinkKey) {
        for held in self.links.remove(key).unwrap_or_default().values() {
            self.end(held);
        }
    }

    /// Links that have ports.
    pub fn links(&self) -> impl Iterator<Item = &LinkKey> {
        self.links.keys()
    }

    /// What is to be watched for being readable. It changes with every call of anything else.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.proxy.descriptors()
    }

    /// One of [`Holders::descriptors`] is readable. Others are ignored.
    pub fn ready(&mut self, fd: RawFd) {
        if !self.proxy.ready(fd) {
            return;
        }
        // A new proxy has to be told everything.
        let leads = self.links.values().flat_map(BTreeMap::values).filter_map(|held| {
            let (id, lead) = held.lead.as_ref()?;
            Some((*id, held.holder.loopback()?.as_fd(), lead))
        });
        self.proxy.restart(leads);
    }

    fn end(&mut self, held: &Held) {
        if let Some((id, _)) = &held.lead {
            self.proxy.end(*id);
        }
    }

    /// Another binding of ours that would be in the way: the kernel would only say that "a socket" is.
    fn overlapping(&self, key: &LinkKey, wanted: &Binding, ports: &[PublishedPort]) -> Option<LinkKey> {
        let within = ports.iter().filter_map(|port| binding_of(port).ok());
        if within.filter(|other| other != wanted).any(|other| overlaps(&other, wanted)) {
            return Some(key.clone());
        }
        let links = self.links.iter();
        links
            .flat_map(|(key, held)| held.keys().map(move |binding| (key, binding)))
            .find_map(|(key, binding)| overlaps(binding, wanted).then(|| key.clone()))
    }

    /// Binds; at the beginning with patience for a proxy of a helper before us. Later a refusal is one at once, so that
    /// who asks for ports that others have keeps nobody waiting.
    fn bind(&self, binding: &Binding, view: &mut View) -> Result<Holder, Refused> {
        loop {
            let result = Holder::bind(binding, view);
            let is_loopback = |by: &Occupant| by.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST);
            let waits = matches!(&result, Err(Refused::Taken(Some(by))) if is_loopback(by));
            if !waits || self.begun.elapsed() > PREDECESSOR {
                return result;
            }
            thread::sleep(LOOK_AGAIN);
            view.look_again();
        }
    }
}

fn binding_of(port: &PublishedPort) -> Result<Binding, PortsError> {
    let is_host = |address: IpAddr| match address {
        IpAddr::V4(address) => !address.is_multicast() && !address.is_broadcast(),
        IpAddr::V6(address) => {
            !address.is_multicast() && !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none()
        }
    };
    if port.host == 0 || port.container == 0 || !port.address.is_none_or(is_host) {
        return Err(PortsError::Invalid { port: *port });
    }
    Ok(Binding { address: port.address, port: port.host, transport: port.transport })
}

fn refusal(port: &PublishedPort, refused: Refused) -> PortsError {
    let port = *port;
    match refused {
        Refused::Taken(by) => PortsError::Taken { port, by },
        Refused::NoSuchAddress => PortsError::NoSuchAddress { port },
        Refused::Kernel(source) => PortsError::Kernel { port, source },
    }
}

fn overlaps(one: &Binding, other: &Binding) -> bool {
    let is_all_of = |all: IpAddr, one: IpAddr| all.is_unspecified() && all.is_ipv4() == one.is_ipv4();
    one.port == other.port
        && one.transport == other.transport
        && match (one.address, other.address) {
            (None, _) | (_, None) => true,
            (Some(one), Some(other)) => one == other || is_all_of(one, other) || is_all_of(other, one),
        }
}

fn lead_of(target: &Target, binding: &Binding, container: u16) -> Lead {
    Lead {
        transport: binding.transport,
        account: target.account,
        is_brief: false,
        target6: target.address6.map(|address| SocketAddrV6::new(address, container, 0, 0)),
        target4: target.address4.map(|address| SocketAddrV4::new(address, container)),
    }
}
