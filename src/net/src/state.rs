//! What the helper knows of what it made, and where orders go.
//!
//! It keeps nothing on disk but old kernel settings, which are the host's: after a restart the engine tells what ought to be, and the
//! kernel what is. Devices are known by index and by the alias that was written into them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
    time::Instant,
};

use cgrant_sys::{
    NetnsFd, NsId,
    dir::Dir,
    netlink::{LinkState, Route},
};
use cgrant_wire::{
    GrantId,
    link::{Address, PublishedPort},
    net::{Bridge, BridgeKind, Link, LinkKey, NetEvent, NetFailure, Order, Reply},
    patience,
};

use crate::{
    advert::Sender,
    examine,
    failure::Failure,
    fault::Fault,
    firewall::Firewall,
    names::NameServers,
    ports::{Holders, Target},
    proxy::child::ProxySettings,
    subnet,
    sysctl::Sysctls,
    watch::Watch,
};

/// What the boot message says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the instance.
    pub instance: String,
    /// Path of the helper's directory.
    pub path: PathBuf,
    /// Uid of processes that need no privilege.
    pub uid: u32,
    /// Their gid.
    pub gid: u32,
    /// Domain of containers' names.
    pub domain: String,
    /// Servers for other names; the host's own if empty.
    pub dns: Vec<IpAddr>,
    /// May IPv6 forwarding be set for single interfaces where the kernel can do that? Tests set the other way too.
    pub may_forward_singly: bool,
}

/// A link that is there.
#[derive(Debug, Clone)]
pub struct Made {
    /// As it ought to be; `info.ifindex` is the host's end.
    pub link: Link,
    /// Device name of its bridge.
    pub device: String,
}

/// A bridge with links on it.
#[derive(Debug, Clone)]
pub struct Bridged {
    /// As it ought to be.
    pub bridge: Bridge,
    /// Index of its device; 0 while one of the administrator's is gone.
    pub ifindex: u32,
    /// Largest packet of its device, in bytes.
    pub mtu: u32,
}

impl Bridged {
    /// Is it the broker's own?
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self.bridge.kind, BridgeKind::Own { .. })
    }

    /// The networks on it, with the host's addresses, if it is the broker's own.
    pub fn networks(&self) -> impl Iterator<Item = Address<IpAddr>> + use<> {
        let (four, six) = match &self.bridge.kind {
            BridgeKind::Own { gateway4, gateway6, .. } => (*gateway4, *gateway6),
            BridgeKind::Foreign => (None, None),
        };
        four.map(subnet::any).into_iter().chain(six.map(subnet::any))
    }
}

/// The host's network, as far as it is ours.
pub struct Net {
    pub(crate) settings: Settings,
    pub(crate) own: NsId,
    pub(crate) directory: Dir,
    pub(crate) route: Route,
    pub(crate) firewall: Firewall,
    pub(crate) holders: Holders,
    pub(crate) names: NameServers,
    pub(crate) adverts: Sender,
    pub(crate) sysctls: Sysctls,
    pub(crate) fault: Fault,
    /// By the names of their devices.
    pub(crate) bridges: BTreeMap<String, Bridged>,
    pub(crate) links: BTreeMap<LinkKey, Made>,
    /// Which link has the device of this index.
    pub(crate) by_index: HashMap<u32, LinkKey>,
    /// Clashes that were told.
    pub(crate) clashes: HashSet<(String, Address<IpAddr>)>,
    pub(crate) events: Vec<NetEvent>,
    pub(crate) watch: Watch,
    /// Does the host forward, as far as it is our business?
    pub(crate) is_routing: bool,
    pub(crate) is_restored: bool,
}

/// What an order came to, with the descriptors beside the reply.
pub type Carried = Result<(Reply, Vec<OwnedFd>), Failure>;

impl Net {
    /// Nothing is looked at and nothing changed yet, but what is remembered in `directory`, the helper's own. In `host` all
    /// instances of the host remember what they share.
    ///
    /// # Errors
    /// Those of opening sockets and of reading in `directory`.
    pub fn open(settings: Settings, directory: Dir, host: Dir) -> io::Result<Self> {
        directory.sweep()?;
        let own = NetnsFd::own()?.id()?;
        Ok(Self {
            own,
            route: Route::open()?,
            firewall: Firewall::new(&settings.instance),
            holders: Holders::new(ProxySettings { uid: settings.uid, gid: settings.gid }),
            names: NameServers::new(&settings, directory.try_clone()?),
            adverts: Sender::new(),
            sysctls: Sysctls::new(host, own, &settings.instance),
            fault: Fault::new(&directory)?,
            settings,
            directory,
            bridges: BTreeMap::new(),
            links: BTreeMap::new(),
            by_index: HashMap::new(),
            clashes: HashSet::new(),
            events: Vec::new(),
            watch: Watch::default(),
            is_routing: false,
            is_restored: false,
        })
    }

    /// Does what the engine says.
    ///
    /// # Errors
    /// Why it was not done; nothing of it remains.
    pub fn carry_out(
        &mut self,
        order: Order,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), NetFailure> {
        self.perform(order, fds).map_err(Failure::told)
    }

    fn perform(&mut self, order: Order, fds: Vec<OwnedFd>) -> Carried {
        let needs_nothing =
            matches!(order, Order::FindSubnets { .. } | Order::Examine | Order::ListAddresses);
        if !needs_nothing && !self.is_restored {
            return Err(Failure::Malformed("it came before what ought to be was told"));
        }
        self.firewall.allow(patience::NFT);
        let done = |()| (Reply::Done, Vec::new());
        match order {
            Order::FindSubnets { pools4, prefix4, pool6, taken } => {
                let mut used = self.used_networks()?;
                used.extend(taken);
                let seed = format!("{}{}", machine_id(), self.settings.instance);
                let subnet4 = subnet::choose4(&pools4, prefix4, &used, &seed);
                let subnet6 = subnet::choose6(&pool6, &used);
                Ok((Reply::Subnets { subnet4, subnet6 }, Vec::new()))
            }
            Order::AddLink { bridge, link, netns } => {
                let netns = netns.map(|index| {
                    let fd = fds.into_iter().nth(usize::from(index.0));
                    fd.ok_or(Failure::Malformed("a descriptor lacks"))
                });
                self.add_link(&bridge, &link, netns.transpose()?)
            }
            Order::RemoveLink(key) => self.remove_link(&key).map(done),
            Order::RemoveLinks(grant) => self.remove_links(grant).map(done),
            Order::SetPorts { key, ports } => self.set_ports(&key, &ports).map(done),
            Order::Examine => {
                if self.has_needless_guard() {
                    self.tried("the host's settings", Self::settle_forwarding);
                }
                Ok((Reply::Findings(examine::examine(self)), Vec::new()))
            }
            Order::ListAddresses => {
                let addresses = self.route.addresses()?.into_iter().map(|address| address.address);
                Ok((Reply::Addresses(addresses.collect()), Vec::new()))
            }
        }
    }

    /// The networks that the host has to do with, but for our own bridges': they come among those that are taken.
    fn used_networks(&self) -> Result<Vec<Address<IpAddr>>, Failure> {
        let addresses = self.route.addresses()?;
        let routes = self.route.routes()?;
        let is_ours =
            |index: u32| self.bridges.values().any(|bridge| bridge.is_own() && bridge.ifindex == index);
        let addresses = addresses
            .iter()
            .filter(|address| !is_ours(address.ifindex))
            .map(|address| Address { address: address.address, prefix: address.prefix });
        let routes = routes
            .iter()
            .filter(|route| !route.ifindex.is_some_and(is_ours))
            .map(|route| Address { address: route.dst, prefix: route.prefix });
        Ok(addresses.chain(routes).filter(|network| subnet::is_specific(*network)).collect())
    }

    fn remove_links(&mut self, grant: GrantId) -> Result<(), Failure> {
        let keys: Vec<_> = self.links.keys().filter(|key| key.grant == grant).cloned().collect();
        // Each is tried, whatever becomes of the others.
        let results: Vec<_> = keys.iter().map(|key| self.remove_link(key)).collect();
        results.into_iter().collect()
    }

    /// What is to be watched for being readable, beside the channels.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = self.watch.descriptors();
        all.extend(self.holders.descriptors());
        all.extend(self.names.descriptors());
        all.extend(self.adverts.descriptors());
        all
    }

    /// One of [`Net::descriptors`] is readable.
    pub fn ready(&mut self, fd: RawFd) {
        self.firewall.allow(patience::NFT);
        if self.watch.is_its(fd) {
            self.look();
        } else {
            self.holders.ready(fd);
            self.adverts.ready(fd);
            self.names_ready(fd);
        }
    }

    /// When [`Net::tend`] is to be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.watch.deadline()
    }

    /// What happened since the last time.
    pub fn take_events(&mut self) -> Vec<NetEvent> {
        std::mem::take(&mut self.events)
    }

    /// The alias of a link's device on the host.
    pub(crate) fn alias(&self, key: &LinkKey) -> String {
        format!("cgrant {} {} {}", self.settings.instance, key.grant, key.name)
    }

    /// The alias of an own bridge.
    pub(crate) fn bridge_alias(&self, bridge: &Bridge) -> String {
        format!("cgrant {} bridge {}", self.settings.instance, bridge.name)
    }

    /// Which of this instance's things a device is, by its alias.
    pub(crate) fn owned(&self, device: &LinkState) -> Option<Owned> {
        let rest = device.alias.as_deref()?.strip_prefix("cgrant ")?;
        let (what, name) = rest.strip_prefix(&self.settings.instance)?.strip_prefix(' ')?.split_once(' ')?;
        if what == "bridge" {
            return Some(Owned::Bridge);
        }
        Some(Owned::Link(LinkKey { grant: what.parse().ok()?, name: name.to_owned() }))
    }

    /// Where the published ports of a link lead.
    pub(crate) fn target(link: &Link) -> Target {
        Target {
            account: link.account,
            address4: link.info.address4.map(|address| address.address),
            address6: link.info.address6.map(|address| address.address),
        }
    }

    /// Notes that a link is there.
    pub(crate) fn know(&mut self, link: Link, device: &str) {
        self.by_index.insert(link.info.ifindex, link.key.clone());
        self.links.insert(link.key.clone(), Made { link, device: device.to_owned() });
    }

    /// Notes that a link is gone.
    pub(crate) fn forget(&mut self, key: &LinkKey) {
        if let Some(made) = self.links.remove(key) {
            self.by_index.remove(&made.link.info.ifindex);
        }
    }

    /// Gives a link exactly these ports. New ones are held before a rule leads to them, and what ends is led nowhere
    /// before somebody else can have it.
    fn set_ports(&mut self, key: &LinkKey, ports: &[PublishedPort]) -> Result<(), Failure> {
        let made = self.links.get(key).ok_or(Failure::NoSuchLink)?;
        let (target, before, device) =
            (Self::target(&made.link), made.link.info.ports.clone(), made.device.clone());
        self.fault.step("hold ports")?;
        self.holders.open(key, ports)?;
        self.keep_ports(key, ports);
        let changed = self.rules_and_settings(key, ports, &device);
        if let Err(failure) = changed {
            self.firewall.allow(patience::NFT_UNDO);
            self.keep_ports(key, &before);
            // They may not have been changed; then this changes nothing.
            if let Err(error) = self.wall(|wall| wall.set_ports(key, &before)) {
                tracing::error!(%error, "the rules of ports can't be put back yet");
                self.watch.rules_are_doubtful();
            }
            self.holders.settle(key, &target, &before);
            self.settle_quietly(&device);
            return Err(failure);
        }
        self.holders.settle(key, &target, ports);
        Ok(())
    }

    pub(crate) fn keep_ports(&mut self, key: &LinkKey, ports: &[PublishedPort]) {
        if let Some(made) = self.links.get_mut(key) {
            made.link.info.ports = ports.to_vec();
        }
    }

    fn rules_and_settings(
        &mut self,
        key: &LinkKey,
        ports: &[PublishedPort],
        device: &str,
    ) -> Result<(), Failure> {
        self.fault.step("rules of ports")?;
        self.wall(|wall| wall.set_ports(key, ports))?;
        self.fault.step("settings for ports")?;
        if self.needs_routing() != self.is_routing {
            self.settle_forwarding()?;
        }
        self.settle_loopback(device)
    }
}

/// Which thing of an instance a device is.
pub enum Owned {
    /// The host's end of a link.
    Link(LinkKey),
    /// A bridge.
    Bridge,
}

/// Something that differs from host to host.
fn machine_id() -> String {
    std::fs::read_to_string("/etc/machine-id").unwrap_or_default()
}
