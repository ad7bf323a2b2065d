//! One link: the transaction that makes it, and its undo.
//!
//! What is made is noted as a [`Step`]; if a later one fails, those are undone in reverse order. Removing a link is
//! the undo of all its steps, and every undo lets pass that its object is gone already, because its owner, the
//! administrator or the end of a network namespace may have been faster.

use std::{net::IpAddr, os::fd::OwnedFd};

use cgrant_sys::{
    NetnsFd,
    netlink::{LinkState, NetlinkError, NewVeth, PortFlags, Route, qdisc},
};
use cgrant_wire::{
    link::LinkKind,
    net::{Bridge, Link, LinkKey, Reply},
    patience,
};
use nix::libc;

use crate::{
    failure::{Failure, kernel},
    state::{Carried, Net},
    subnet, sysctl,
    tap::{self, Tap},
};

/// The name of the device that is being made, until it has its alias.
const UNFINISHED: &str = "unfinished";

/// How our ports are set: the bridge knows where their addresses are and learns nothing from them, so that nobody
/// can draw another's packets to himself, and nobody gets what is addressed to somebody unknown. Hairpin, because with
/// bridge-nf-call-iptables what goes to a published port of the sender's own is bridged; the firewall drops the rest.
const PORT: PortFlags = PortFlags {
    learning: false,
    hairpin: true,
    isolated: false,
    neigh_suppress: false,
    unicast_flood: false,
    multicast_flood: true,
    broadcast_flood: true,
};

/// Something that was done for a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Its bridge was made.
    Bridge,
    /// Its device.
    Device(u32),
    /// Its ports are held.
    Held,
    /// Its rules are set.
    Walled,
    /// The bridge's name server was started, and has rules.
    Server,
    /// The name server knows it.
    Named,
    /// The bridge is advertised.
    Advert,
    /// The host forwards.
    Forwarding,
    /// Packets from the host's loopback reach its ports.
    Loopback,
    /// Its device is up.
    Up(u32),
}

/// What is being done for one link.
struct Work<'a> {
    bridge: &'a Bridge,
    link: &'a Link,
    done: Vec<Step>,
}

/// What came of it.
struct Outcome {
    ifindex: u32,
    mtu: u32,
    tap: Option<OwnedFd>,
}

/// The far end's place.
enum Far {
    Netns(NetnsFd),
    Tap(Tap),
}

impl Far {
    fn netns(&self) -> &NetnsFd {
        match self {
            Self::Netns(netns) => netns,
            Self::Tap(tap) => &tap.netns,
        }
    }
}

impl Net {
    /// Makes a link with all that belongs to it, or nothing. A link of the same key is replaced.
    ///
    /// What an attacker could want: a device in a namespace that is not his (the engine has checked whose it is, and the
    /// host's own is refused here as well); to reach the bridge before the rules are there (the host's end comes up
    /// last); to lead the helper astray by renaming, moving or deleting the far end meanwhile (it is found by index, address
    /// and kind, and whatever is changed there is in his own namespace); to block it (no call waits for a peer).
    pub(crate) fn add_link(&mut self, bridge: &Bridge, link: &Link, netns: Option<OwnedFd>) -> Carried {
        if self.links.contains_key(&link.key) {
            self.remove_link(&link.key)?;
        }
        let key = link.key.clone();
        let far = self.far_place(link, netns)?;
        self.fault.step("events")?;
        self.watch.begin().map_err(kernel("cannot listen for changes of the network"))?;
        let mut work = Work { bridge, link, done: Vec::new() };
        match self.make_link(&mut work, far) {
            Ok(outcome) => {
                let tap = outcome.tap.as_ref().map(|_| cgrant_wire::FdIndex(0));
                let reply = Reply::Link { ifindex: outcome.ifindex, mtu: outcome.mtu, tap };
                Ok((reply, outcome.tap.into_iter().collect()))
            }
            Err(failure) => {
                let done = work.done;
                self.forget(&key);
                self.firewall.allow(patience::NFT_UNDO);
                if let Err(error) = self.undo(bridge, link, done) {
                    tracing::error!(%error, "not everything of a link that was not made could be undone");
                }
                Err(failure)
            }
        }
    }

    fn far_place(&self, link: &Link, netns: Option<OwnedFd>) -> Result<Far, Failure> {
        match (link.info.kind, netns) {
            (LinkKind::Veth, Some(fd)) => {
                let no_netns = |_| Failure::Namespace("the descriptor does not name a network namespace");
                let netns = NetnsFd::from_fd(fd).map_err(no_netns)?;
                let id = netns.id().map_err(kernel("cannot tell one network namespace from another"))?;
                if id == self.own {
                    return Err(Failure::Namespace("the network namespace is the host's own"));
                }
                Ok(Far::Netns(netns))
            }
            (LinkKind::Veth, None) => Err(Failure::Malformed("a veth pair needs a network namespace")),
            (LinkKind::Tap, _) => {
                self.fault.step("tap")?;
                Ok(Far::Tap(Tap::make()?))
            }
        }
    }

    fn make_link(&mut self, work: &mut Work<'_>, far: Far) -> Result<Outcome, Failure> {
        let (master, is_new) = self.ensure_bridge(work.bridge)?;
        if is_new {
            work.done.push(Step::Bridge);
        }
        let bridge_mtu = self.bridges.get(&work.bridge.device).map_or(0, |bridge| bridge.mtu);
        let wanted = work.link.info.mtu;
        // The host's end has the bridge's: a smaller one would become that of all who share the bridge.
        let mtu = if wanted == 0 { bridge_mtu } else { wanted.min(bridge_mtu) };
        let ifindex = self.make_device(work, master, bridge_mtu, &far)?;
        self.set_device(work.bridge, work.link, ifindex, bridge_mtu)?;
        let mut made = work.link.clone();
        made.info.ifindex = ifindex;
        made.info.mtu = mtu;
        self.know(made.clone(), &work.bridge.device);
        self.serve(work, &made)?;
        match &far {
            Far::Netns(netns) => self.configure(netns, &made, bridge_mtu)?,
            Far::Tap(tap) => {
                tap.join(made.info.mac.0, mtu, made.info.queue_length, &self.fault)?;
            }
        }
        self.fault.step("device up")?;
        self.route.set_up(ifindex, true).map_err(lost)?;
        work.done.push(Step::Up(ifindex));
        let tap = match far {
            Far::Netns(_) => None,
            Far::Tap(tap) => Some(tap.descriptor),
        };
        Ok(Outcome { ifindex, mtu, tap })
    }

    /// The pair of devices, both ends down, ours already a port of the bridge.
    fn make_device(&self, work: &mut Work<'_>, master: u32, mtu: u32, far: &Far) -> Result<u32, Failure> {
        let info = &work.link.info;
        self.note_unfinished(&info.host_name)?;
        self.fault.step("device")?;
        let (peer_name, peer_mac) = match far {
            Far::Netns(_) => (info.name.as_str(), info.mac.0),
            // The bridge beside the tap would keep to itself what is addressed to one of its own ports.
            Far::Tap(_) => (tap::PORT, tap::helper_mac(info.mac.0, 1)),
        };
        let made = self.route.add_veth(&NewVeth {
            name: &info.host_name,
            alias: &self.alias(&work.link.key),
            mtu,
            queue_length: info.queue_length,
            master: Some(master),
            peer_name,
            peer_mac,
            peer_netns: far.netns(),
        });
        let ifindex = made.map_err(|error| self.not_made(error, work))?;
        work.done.push(Step::Device(ifindex));
        Ok(ifindex)
    }

    /// Why there is no device.
    fn not_made(&self, error: NetlinkError, work: &Work<'_>) -> Failure {
        match error.errno() {
            Some(libc::EXFULL) => Failure::Full(work.bridge.device.clone()),
            Some(libc::EEXIST) => match self.route.link_by_name(&work.link.info.host_name) {
                Ok(Some(device)) => {
                    let what = format!("there is a device named {} already", device.name);
                    Failure::ForeignDevice(what)
                }
                _ => Failure::NameTaken(work.link.info.name.clone()),
            },
            _ => error.into(),
        }
    }

    /// Everything about the host's end but its being there and up. May be repeated.
    pub(crate) fn set_device(
        &self,
        bridge: &Bridge,
        link: &Link,
        ifindex: u32,
        mtu: u32,
    ) -> Result<(), Failure> {
        let info = &link.info;
        self.fault.step("port")?;
        self.route.set_port(ifindex, &PORT).map_err(lost)?;
        let vlan = (info.vlan != 0).then_some(info.vlan);
        if let Some(vid) = vlan {
            self.join_vlan(bridge, ifindex, vid)?;
        }
        self.fault.step("forwarding entry")?;
        self.route.add_fdb(ifindex, info.mac.0, vlan).map_err(lost)?;
        if info.download != 0 {
            self.fault.step("download limit")?;
            let (rate, burst, limit) = qdisc::shaping(info.download, mtu);
            self.route.add_tbf(ifindex, rate, burst, limit).map_err(lost)?;
        }
        self.fault.step("device without IPv6")?;
        match sysctl::write(&format!("ipv6/conf/{}/disable_ipv6", info.host_name), "1") {
            // A port speaks for nobody; without IPv6 in the kernel there is nothing to be silenced.
            Err(sysctl::SysctlError::Setting { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn join_vlan(&self, bridge: &Bridge, ifindex: u32, vid: u16) -> Result<(), Failure> {
        let no_vlans = || Failure::NoVlans(bridge.device.clone());
        let filters = format!("/sys/class/net/{}/bridge/vlan_filtering", bridge.device);
        if std::fs::read_to_string(filters).is_ok_and(|text| text.trim() == "0") {
            return Err(no_vlans());
        }
        self.fault.step("vlan")?;
        match self.route.add_vlan(ifindex, vid, true) {
            Err(error) if error.is(libc::EOPNOTSUPP) => return Err(no_vlans()),
            result => result.map_err(lost)?,
        }
        let others =
            self.route.vlans()?.into_iter().filter(|vlan| vlan.ifindex == ifindex && vlan.vid != vid);
        for other in others {
            self.fault.step("no other vlan")?;
            self.route.remove_vlan(ifindex, other.vid)?;
        }
        Ok(())
    }

    /// Ports, rules, names, advertisements and forwarding.
    fn serve(&mut self, work: &mut Work<'_>, link: &Link) -> Result<(), Failure> {
        let device = &work.bridge.device;
        let is_first = self.links.values().filter(|made| &made.device == device).count() == 1;
        if !link.info.ports.is_empty() {
            self.fault.step("hold ports")?;
            self.holders.hold(&link.key, &Self::target(link), &link.info.ports)?;
            work.done.push(Step::Held);
        }
        self.fault.step("rules")?;
        if self.links.len() == 1 {
            self.note_rules(true)?;
        }
        self.wall(|wall| wall.add_link(work.bridge, &link.info.host_name, link))?;
        work.done.push(Step::Walled);
        if self.bridges.get(device).is_some_and(crate::state::Bridged::is_own) {
            self.serve_bridge(work, is_first)?;
        }
        if is_first || self.needs_routing() != self.is_routing {
            self.fault.step("forwarding")?;
            work.done.push(Step::Forwarding);
            self.settle_forwarding()?;
        }
        self.fault.step("loopback")?;
        work.done.push(Step::Loopback);
        self.settle_loopback(device)
    }

    fn serve_bridge(&mut self, work: &mut Work<'_>, is_first: bool) -> Result<(), Failure> {
        if is_first {
            self.fault.step("name server")?;
            work.done.push(Step::Server);
            self.start_server(work.bridge)?;
            self.fault.step("advertisements")?;
            work.done.push(Step::Advert);
            return self.start_advert(&work.bridge.device);
        }
        self.fault.step("names")?;
        work.done.push(Step::Named);
        self.tell_names(work.bridge)
    }

    /// Addresses and routes at the far end.
    ///
    /// Everything there may be changed by its owner at any moment. The helper is inside only while a socket is opened;
    /// that one talks with the kernel alone.
    fn configure(&self, netns: &NetnsFd, link: &Link, bridge_mtu: u32) -> Result<(), Failure> {
        let info = &link.info;
        self.fault.step("far end")?;
        let near = self.route.link(info.ifindex)?.ok_or(Failure::FarEndLost)?;
        let peer = near.peer_index.ok_or(Failure::FarEndLost)?;
        let far = Route::open_in(netns).map_err(kernel("cannot open a socket in the network namespace"))?;
        let is_it =
            |device: &LinkState| device.kind.as_deref() == Some("veth") && device.mac == Some(info.mac.0);
        far.link(peer)?.filter(is_it).ok_or(Failure::FarEndLost)?;
        if info.mtu != bridge_mtu {
            self.fault.step("mtu of the far end")?;
            far.set_mtu(peer, info.mtu).map_err(lost)?;
        }
        if !link.configure {
            return Ok(());
        }
        let addresses = info.address4.map(subnet::any).into_iter().chain(info.address6.map(subnet::any));
        let mut without_ipv6 = false;
        for address in addresses {
            self.fault.step("address of the far end")?;
            match far.add_address(peer, address.address, address.prefix, true) {
                // Its owner has switched IPv6 off there, or the host has none.
                Err(error) if address.address.is_ipv6() && error.is_without_ipv6() => without_ipv6 = true,
                result => result.map_err(lost)?,
            }
        }
        self.fault.step("far end up")?;
        far.set_up(peer, true).map_err(lost)?;
        let gateways = info.gateway4.map(IpAddr::from).into_iter().chain(info.gateway6.map(IpAddr::from));
        for gateway in gateways.filter(|gateway| gateway.is_ipv4() || !without_ipv6) {
            self.fault.step("route of the far end")?;
            match far.add_default_route(peer, gateway) {
                // The way out is another link's.
                Err(error) if error.is(libc::EEXIST) => {}
                result => result.map_err(lost)?,
            }
        }
        Ok(())
    }

    /// Removes a link with all that belongs to it. One that is gone already is removed as well as one can.
    pub(crate) fn remove_link(&mut self, key: &LinkKey) -> Result<(), Failure> {
        let Some(made) = self.links.get(key).cloned() else { return Ok(()) };
        let Some(bridged) = self.bridges.get(&made.device).cloned() else {
            return Err(Failure::Malformed("the link has no bridge"));
        };
        self.forget(key);
        let ifindex = made.link.info.ifindex;
        let is_last = !self.links.values().any(|other| other.device == made.device);
        let mut done = vec![Step::Held, Step::Walled];
        if bridged.is_own() {
            if is_last {
                done.insert(0, Step::Bridge);
                done.extend([Step::Server, Step::Advert]);
            } else {
                done.push(Step::Named);
            }
        }
        // The device goes first: nothing ever passes it without rules.
        done.extend([Step::Forwarding, Step::Loopback, Step::Device(ifindex)]);
        let result = self.undo(&bridged.bridge, &made.link, done);
        if is_last && !bridged.is_own() {
            self.bridges.remove(&made.device);
        }
        result
    }

    /// Undoes steps in reverse order, all of them whatever becomes of each. Gives the first failure.
    fn undo(&mut self, bridge: &Bridge, link: &Link, done: Vec<Step>) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for step in done.into_iter().rev() {
            if let Err(failure) = self.undo_one(bridge, link, &step) {
                if matches!(step, Step::Forwarding | Step::Loopback) {
                    self.watch.settings_are_doubtful();
                }
                tracing::error!(?step, error = %failure, grant = %link.key.grant, "a link is not removed cleanly");
                outcome = outcome.and(Err(failure));
            }
        }
        if self.links.is_empty() {
            if !self.bridges.values().any(crate::state::Bridged::is_own) {
                self.watch.end();
            }
            self.clashes.clear();
            if outcome.is_ok() {
                outcome = self.note_rules(false);
            }
            let _ = self.directory.remove_file(UNFINISHED);
        }
        outcome
    }

    fn undo_one(&mut self, bridge: &Bridge, link: &Link, step: &Step) -> Result<(), Failure> {
        let device = &bridge.device;
        match step {
            Step::Up(ifindex) => match self.route.set_up(*ifindex, false) {
                Err(error) if error.is_absent() => Ok(()),
                result => Ok(result?),
            },
            Step::Loopback => self.settle_loopback(device),
            Step::Forwarding if self.needs_routing() => Ok(()),
            Step::Forwarding => self.settle_forwarding(),
            Step::Advert => {
                self.stop_advert(device);
                Ok(())
            }
            Step::Named => self.tell_names(bridge),
            Step::Server => self.stop_server(bridge),
            Step::Walled => self.unwall(link),
            Step::Held => {
                self.holders.release(&link.key);
                Ok(())
            }
            Step::Device(ifindex) => Ok(self.route.delete_link(*ifindex).map(|_| ())?),
            Step::Bridge => {
                let Some(bridged) = self.bridges.remove(device) else { return Ok(()) };
                Ok(self.route.delete_link(bridged.ifindex).map(|_| ())?)
            }
        }
    }

    fn unwall(&mut self, link: &Link) -> Result<(), Failure> {
        let is_there = self.route.link(link.info.ifindex)?.is_some();
        if is_there && self.wall(|wall| wall.remove_link(&link.key)).is_ok() {
            return Ok(());
        }
        // With the device the kernel has dropped what hung on it.
        let forgotten = self.wall(|wall| wall.forget_link(&link.key));
        if forgotten.is_err() {
            self.watch.rules_are_doubtful();
        }
        forgotten
    }

    /// Writes down which device is about to be made: until its alias is set, nothing else says that it is ours.
    pub(crate) fn note_unfinished(&self, name: &str) -> Result<(), Failure> {
        self.fault.step("note the device")?;
        let written = self.directory.write_atomic(UNFINISHED, name.as_bytes(), false);
        written.map_err(kernel("cannot write down which device is made"))
    }

    /// Removes the device that an earlier run was making when it ended.
    pub(crate) fn remove_unfinished(&self) -> Result<(), Failure> {
        let Ok(name) = self.directory.read(UNFINISHED, 64) else { return Ok(()) };
        if let Some(device) = self.route.link_by_name(&name)?
            && device.alias.is_none()
            && matches!(device.kind.as_deref(), Some("veth" | "bridge"))
            && !device.up
        {
            self.route.delete_link(device.index)?;
        }
        let _ = self.directory.remove_file(UNFINISHED);
        Ok(())
    }
}

/// That something is absent means that its owner took it away.
fn lost(error: NetlinkError) -> Failure {
    if error.is_absent() { Failure::FarEndLost } else { error.into() }
}
