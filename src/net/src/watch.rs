//! What happens behind the helper's back: devices that are deleted, renamed or moved, rules that are flushed, networks that
//! the host gets. It is mended or told.
//!
//! Events only say where to look; what is done follows from how things are then. Sockets for them are open while there
//! are links only. What costs a program's run waits a moment, so that a hundred events cost one.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::{Duration, Instant},
};

use cgrant_sys::netlink::{Event, LinkState, NftEvent, NftEvents, RouteEvents};
use cgrant_wire::{
    link::Address,
    net::{LinkKey, NetEvent},
    patience,
};
use nix::libc;

use crate::{
    failure::{Failure, chain},
    firewall::{Firewall, FirewallError},
    state::{Bridged, Net},
    subnet,
};

/// Events taken at once before orders get their turn.
const TURN: usize = 4096;
/// Links that are looked at before orders get their turn. One that is gone costs a run of `nft`.
///
/// An attacker wants others to wait: he has a hundred links, or as many accounts as he has friends, and ends all of their
/// namespaces at once.
const FEW: usize = 4;
/// How long what is dear waits for more of its kind.
const PATIENCE: Duration = Duration::from_millis(100);
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// So often in [`MENDING`] a link is mended; then somebody does not want it, and it is given up.
const MOST_MENDED: u32 = 8;
/// The time that they are counted in.
const MENDING: Duration = Duration::from_secs(60);

/// What is listened to, and what is to be looked at soon.
#[derive(Default)]
pub struct Watch {
    sockets: Option<(RouteEvents, NftEvents)>,
    due: Option<Instant>,
    rules: bool,
    settings: bool,
    mended: HashMap<LinkKey, (Instant, u32)>,
    /// Indexes of links that are to be looked at.
    doubtful: BTreeSet<u32>,
}

/// What events were about.
#[derive(Default)]
struct Changes {
    everything: bool,
    links: BTreeSet<u32>,
    bridges: BTreeSet<String>,
}

impl Watch {
    /// Listens, if that is not being done.
    ///
    /// # Errors
    /// Those of opening sockets.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.sockets.is_none() {
            self.sockets = Some((RouteEvents::open()?, NftEvents::open()?));
        }
        Ok(())
    }

    /// Listens no more. What is still to be done is done.
    pub fn end(&mut self) {
        let (due, rules, settings) = (self.due, self.rules, self.settings);
        *self = Self { due, rules, settings, ..Self::default() };
    }

    /// What is to be watched for being readable.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.sockets.iter().flat_map(|(route, nft)| [route.as_fd(), nft.as_fd()]).collect()
    }

    /// Is it one of [`Watch::descriptors`]?
    pub fn is_its(&self, fd: RawFd) -> bool {
        self.descriptors().iter().any(|own| own.as_raw_fd() == fd)
    }

    /// When something is to be done.
    pub fn deadline(&self) -> Option<Instant> {
        if self.doubtful.is_empty() { self.due } else { Some(Instant::now()) }
    }

    /// The rules are to be looked at soon.
    pub fn rules_are_doubtful(&mut self) {
        self.rules = true;
        self.soon(PATIENCE);
    }

    /// The link of this index is to be looked at soon.
    pub fn is_doubtful(&mut self, index: u32) {
        self.doubtful.insert(index);
    }

    /// The host's settings are to be looked at soon.
    pub fn settings_are_doubtful(&mut self) {
        self.settings = true;
        self.soon(PATIENCE);
    }

    fn soon(&mut self, delay: Duration) {
        self.due.get_or_insert(Instant::now() + delay);
    }

    fn next_route(&mut self) -> Option<Event> {
        let (route, _) = self.sockets.as_mut()?;
        route.next().unwrap_or_else(|error| {
            tracing::error!(%error, "changes of the network can't be read");
            Some(Event::Overrun)
        })
    }

    fn next_nft(&mut self) -> Option<NftEvent> {
        let (_, nft) = self.sockets.as_mut()?;
        nft.next().unwrap_or_else(|error| {
            tracing::error!(%error, "changes of rules can't be read");
            Some(NftEvent::Overrun)
        })
    }

    /// May this link be mended once more?
    fn may_mend(&mut self, key: &LinkKey) -> bool {
        let now = Instant::now();
        self.mended.retain(|_, (begun, _)| now.duration_since(*begun) < MENDING);
        let (_, count) = self.mended.entry(key.clone()).or_insert((now, 0));
        *count += 1;
        *count <= MOST_MENDED
    }
}

impl Net {
    /// Changes the rules, and tells our own change of them from others'.
    pub(crate) fn wall(
        &mut self,
        change: impl FnOnce(&mut Firewall) -> Result<(), FirewallError>,
    ) -> Result<(), Failure> {
        self.look_at_rules();
        let own = self.firewall.table();
        let result = change(&mut self.firewall);
        // Everything that one program changed comes from one netlink port.
        let mut ports = BTreeSet::new();
        for _ in 0..TURN {
            match self.watch.next_nft() {
                Some(NftEvent::Changed { table, port, .. }) if table == own => {
                    ports.insert(port);
                }
                Some(NftEvent::Overrun) => {
                    // Of a great change of ours too; whether it was only that is found out later.
                    self.watch.rules_are_doubtful();
                    break;
                }
                Some(_) => {}
                None => break,
            }
        }
        if ports.len() > 1 {
            self.watch.rules_are_doubtful();
        }
        Ok(result?)
    }

    fn look_at_rules(&mut self) {
        let own = self.firewall.table();
        for _ in 0..TURN {
            match self.watch.next_nft() {
                Some(NftEvent::Changed { table, .. }) if table == own => {
                    self.watch.rules_are_doubtful();
                }
                Some(NftEvent::Overrun) => return self.watch.rules_are_doubtful(),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Looks at what happened.
    pub(crate) fn look(&mut self) {
        let mut changes = Changes::default();
        for _ in 0..TURN {
            let Some(event) = self.watch.next_route() else { break };
            if event == Event::Overrun {
                changes.everything = true;
                break;
            }
            self.note(event, &mut changes);
        }
        self.look_at_rules();
        self.follow(changes);
    }

    fn note(&mut self, event: Event, changes: &mut Changes) {
        match event {
            Event::LinkGone(device) => {
                if self.by_index.contains_key(&device.index) {
                    changes.links.insert(device.index);
                }
                changes.bridges.extend(self.bridge_of_index(device.index));
                changes.bridges.extend(self.names.bridge_of_port(device.index).map(str::to_owned));
            }
            Event::Link(device) => self.note_link(&device, changes),
            Event::Address(address) => {
                let network = Address { address: address.address, prefix: address.prefix };
                self.note_network(network, Some(address.ifindex));
                self.note_settings(address.ifindex);
            }
            Event::AddressGone(address) => {
                changes.bridges.extend(self.bridge_of_index(address.ifindex));
                let network = Address { address: address.address, prefix: address.prefix };
                self.clashes.retain(|(_, with)| *with != network);
                self.note_settings(address.ifindex);
            }
            Event::Route(route) => {
                self.note_network(Address { address: route.dst, prefix: route.prefix }, route.ifindex);
            }
            Event::RouteGone(route) => {
                let network = Address { address: route.dst, prefix: route.prefix };
                self.clashes.retain(|(_, with)| *with != network);
            }
            Event::Overrun => changes.everything = true,
        }
    }

    fn note_link(&self, device: &LinkState, changes: &mut Changes) {
        if let Some(made) = self.by_index.get(&device.index).and_then(|key| self.links.get(key)) {
            let master = self.bridges.get(&made.device).map(|bridge| bridge.ifindex);
            if device.name != made.link.info.host_name || device.master != master || !device.up {
                changes.links.insert(device.index);
            }
            return;
        }
        // Looked at as the bridge is: such a port changes when it is made, and seldom after.
        changes.bridges.extend(self.names.bridge_of_port(device.index).map(str::to_owned));
        let is_awaited = |bridge: &Bridged| bridge.ifindex == 0 && bridge.bridge.device == device.name;
        if let Some(bridge) = self.bridges.values().find(|bridge| is_awaited(bridge)) {
            changes.bridges.insert(bridge.bridge.device.clone());
        }
        if let Some(name) = self.bridge_of_index(device.index)
            && self.bridges.get(&name).is_some_and(|bridge| {
                bridge.is_own() && (device.name != name || !device.up || device.mtu != bridge.mtu)
            })
        {
            changes.bridges.insert(name);
        }
    }

    fn bridge_of_index(&self, index: u32) -> Option<String> {
        let is_it = |(_, bridge): &(&String, &Bridged)| bridge.ifindex == index && index != 0;
        self.bridges.iter().find(is_it).map(|(name, _)| name.clone())
    }

    /// An interface of the host's has or lost an address: it may be one that must forward now.
    fn note_settings(&mut self, index: u32) {
        if self.is_routing && self.bridge_of_index(index).is_none() {
            self.watch.settings_are_doubtful();
        }
    }

    /// A network that the host has to do with: does it clash with one of ours?
    fn note_network(&mut self, network: Address<IpAddr>, index: Option<u32>) {
        if !subnet::is_specific(network) || index.is_some_and(|index| self.is_own_bridge(index)) {
            return;
        }
        let clashing: Vec<String> = self
            .bridges
            .values()
            .filter(|bridge| bridge.networks().any(|ours| subnet::overlap(ours, network)))
            .map(|bridge| bridge.bridge.name.clone())
            .collect();
        for bridge in clashing {
            if self.clashes.insert((bridge.clone(), network)) {
                self.events.push(NetEvent::Clash { bridge, with: network });
            }
        }
    }

    fn is_own_bridge(&self, index: u32) -> bool {
        self.bridges.values().any(|bridge| bridge.is_own() && bridge.ifindex == index)
    }

    /// All networks that the host has now, as if each had just come.
    pub(crate) fn look_for_clashes(&mut self) {
        let (Ok(addresses), Ok(routes)) = (self.route.addresses(), self.route.routes()) else { return };
        for address in addresses {
            let network = Address { address: address.address, prefix: address.prefix };
            self.note_network(network, Some(address.ifindex));
        }
        for route in routes {
            self.note_network(Address { address: route.dst, prefix: route.prefix }, route.ifindex);
        }
    }

    fn follow(&mut self, mut changes: Changes) {
        if changes.everything {
            changes.bridges = self.bridges.keys().cloned().collect();
            changes.links = self.by_index.keys().copied().collect();
            self.watch.rules_are_doubtful();
            if self.is_routing {
                self.watch.settings_are_doubtful();
            }
            self.look_for_clashes();
        }
        for device in changes.bridges {
            self.check_bridge(&device);
        }
        self.watch.doubtful.extend(changes.links);
    }

    /// Looks at a few of the links that something happened to.
    fn look_at_links(&mut self) {
        for _ in 0..FEW {
            let Some(index) = self.watch.doubtful.pop_first() else { return };
            if let Some(key) = self.by_index.get(&index).cloned() {
                self.check_link(&key, index);
            }
        }
    }

    fn check_link(&mut self, key: &LinkKey, index: u32) {
        match self.route.link(index) {
            // Deleted with its far end, or, what can't be told from it, by itself.
            Ok(None) => self.end_link(key, true),
            Ok(Some(device)) => {
                if let Err(error) = self.mend_link(key, &device) {
                    tracing::error!(%error, device = device.name, "a link can't be mended");
                    self.end_link(key, false);
                }
            }
            Err(error) => tracing::error!(%error, "a link can't be looked at"),
        }
    }

    /// The link is no more; what is left of it is removed.
    pub(crate) fn end_link(&mut self, key: &LinkKey, far_end: bool) {
        if let Err(error) = self.remove_link(key) {
            tracing::error!(%error, grant = %key.grant, "something of a link that is gone remains");
        }
        self.events.push(NetEvent::LinkGone { key: key.clone(), far_end });
    }

    /// Makes the host's end as it ought to be, and tells if it was not.
    pub(crate) fn mend_link(&mut self, key: &LinkKey, device: &LinkState) -> Result<(), Failure> {
        let Some(made) = self.links.get(key).cloned() else { return Ok(()) };
        let Some(bridged) = self.bridges.get(&made.device).cloned() else { return Ok(()) };
        let (index, info) = (device.index, &made.link.info);
        let is_renamed = device.name != info.host_name;
        let is_moved = device.master != Some(bridged.ifindex) && bridged.ifindex != 0;
        let mut what = Vec::new();
        if is_renamed {
            what.push("renamed");
        }
        if is_moved {
            what.push("taken off its bridge");
        }
        if !device.up {
            what.push("set down");
        }
        if what.is_empty() {
            return Ok(());
        }
        if !self.watch.may_mend(key) {
            return Err(Failure::ForeignDevice(format!(
                "the device {} is changed again and again",
                info.host_name
            )));
        }
        if is_renamed {
            if self.route.set_name(index, &info.host_name).is_err() {
                // Before Linux 6.3 it has to be down.
                self.route.set_up(index, false)?;
                self.route.set_name(index, &info.host_name)?;
            }
            self.watch.rules_are_doubtful();
        }
        if is_moved {
            match self.route.set_master(index, Some(bridged.ifindex)) {
                Err(error) if error.is(libc::EXFULL) => return Err(Failure::Full(made.device)),
                // It was taken off because its bridge was deleted, of which nobody told yet: all its ports are led back together.
                Err(_) if self.route.link(bridged.ifindex)?.is_none() => {
                    self.check_bridge(&made.device);
                    return Ok(());
                }
                result => result?,
            }
            self.set_device(&bridged.bridge, &made.link, index, bridged.mtu)?;
        }
        self.route.set_up(index, true)?;
        let sentence =
            format!("the device {} of a link was {}; it is as before", info.host_name, what.join(" and "));
        tracing::warn!("{sentence}");
        self.events.push(NetEvent::Mended(sentence));
        Ok(())
    }

    fn check_bridge(&mut self, device: &str) {
        let Some(bridged) = self.bridges.get(device).cloned() else { return };
        let result =
            if bridged.is_own() { self.check_own_bridge(&bridged) } else { self.check_foreign(&bridged) };
        let Err(error) = result else { return };
        tracing::error!(%error, device, "a bridge can't be mended; its links are given up");
        let keys: Vec<_> =
            self.links.iter().filter(|(_, made)| made.device == device).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.end_link(&key, false);
        }
    }

    fn check_own_bridge(&mut self, bridged: &Bridged) -> Result<(), Failure> {
        let device = &bridged.bridge.device;
        let Some(state) = self.route.link(bridged.ifindex)? else { return self.make_again(bridged) };
        let addresses = self.route.addresses()?;
        let has_all = bridged.networks().all(|ours| {
            addresses.iter().any(|one| one.ifindex == bridged.ifindex && one.address == ours.address)
        });
        if state.name == *device && state.up && state.mtu == bridged.mtu && has_all {
            return self.check_server(bridged);
        }
        if state.name != *device && self.route.set_name(bridged.ifindex, device).is_err() {
            self.route.set_up(bridged.ifindex, false)?;
            self.route.set_name(bridged.ifindex, device)?;
        }
        self.set_bridge_up(&bridged.bridge, bridged.ifindex, bridged.mtu)?;
        self.watch.rules_are_doubtful();
        self.watch.settings_are_doubtful();
        self.mended(format!("the bridge {device} was changed; it is as before"));
        Ok(())
    }

    /// The name server's device was deleted, taken from the bridge or renamed: it gets another one.
    fn check_server(&mut self, bridged: &Bridged) -> Result<(), Failure> {
        let device = &bridged.bridge.device;
        if self.names.is_whole(&self.route, device, bridged.ifindex)? {
            return Ok(());
        }
        if let Err(error) = self.start_server(&bridged.bridge) {
            tracing::error!(%error, device, "the name server can't be started again");
            self.names.retry(device);
            return Ok(());
        }
        self.mended(format!("the name server of {device} had lost its device; it was started again"));
        Ok(())
    }

    /// The bridge was deleted: its ports are there still, and only have to be led back. What can't be had again now (rules, a
    /// name server) is tried again later; no link ends by that, and without its rules none reaches anybody.
    fn make_again(&mut self, bridged: &Bridged) -> Result<(), Failure> {
        let (bridge, device) = (&bridged.bridge, &bridged.bridge.device);
        self.stop_advert(device);
        if let Err(error) = self.stop_server(bridge) {
            tracing::error!(%error, device, "a name server can't be stopped");
        }
        if let Some(known) = self.bridges.get_mut(device) {
            known.ifindex = 0;
        }
        let (master, _) = self.ensure_bridge(bridge)?;
        let ours: Vec<_> = self.links.values().filter(|made| &made.device == device).cloned().collect();
        for made in ours {
            let index = made.link.info.ifindex;
            let joined = self.route.set_master(index, Some(master)).map_err(Failure::from);
            let joined = joined.and_then(|()| self.set_device(bridge, &made.link, index, bridged.mtu));
            let Err(error) = joined else { continue };
            if self.route.link(master)?.is_none() {
                // Deleted once more: what tells so is on its way.
                return Ok(());
            }
            tracing::error!(%error, "a link can't be led back to its bridge");
            self.end_link(&made.link.key, self.route.link(index).is_ok_and(|found| found.is_none()));
        }
        if !self.bridges.contains_key(device) {
            // Its last link ended.
            return Ok(());
        }
        // Rules name the bridge by its index, which is another one now.
        self.tried("the rules", Self::set_all_rules);
        if let Err(error) = self.start_server(bridge) {
            tracing::error!(error = chain(&error), device, "the name server can't be started again");
            self.names.retry(device);
        }
        self.tried("router advertisements", |net| net.start_advert(device));
        self.tried("the host's settings", Self::settle_all);
        self.mended(format!("the bridge {device} was deleted; it was made again"));
        Ok(())
    }

    /// The administrator may remove and make his bridge as he likes: our links wait for it.
    fn check_foreign(&mut self, bridged: &Bridged) -> Result<(), Failure> {
        let device = &bridged.bridge.device;
        if bridged.ifindex != 0 && self.route.link(bridged.ifindex)?.is_some() {
            return Ok(());
        }
        let found = self.route.link_by_name(device)?;
        let Some(found) = found.filter(|found| found.kind.as_deref() == Some("bridge")) else {
            if let Some(known) = self.bridges.get_mut(device).filter(|known| known.ifindex != 0) {
                known.ifindex = 0;
                self.mended(format!("the bridge {device} is gone; its links wait for it to come back"));
            }
            return Ok(());
        };
        if let Some(known) = self.bridges.get_mut(device) {
            (known.ifindex, known.mtu) = (found.index, found.mtu);
        }
        let indices: Vec<_> = self
            .links
            .values()
            .filter(|made| &made.device == device)
            .map(|made| made.link.info.ifindex)
            .collect();
        for index in indices {
            if let Some(key) = self.by_index.get(&index).cloned() {
                self.check_link(&key, index);
            }
        }
        // They name the bridge by its index, which is another one now.
        self.tried("the rules", Self::set_all_rules);
        Ok(())
    }

    pub(crate) fn mended(&mut self, sentence: String) {
        tracing::warn!("{sentence}");
        self.events.push(NetEvent::Mended(sentence));
    }

    /// Does what is due.
    pub fn tend(&mut self, now: Instant) {
        self.firewall.allow(patience::NFT);
        self.look_at_links();
        if self.watch.due.is_none_or(|due| due > now) {
            return;
        }
        self.watch.due = None;
        if std::mem::take(&mut self.watch.rules)
            && let Err(error) = self.check_rules()
        {
            tracing::error!(%error, "the rules are not as they should be");
            self.watch.rules = true;
            self.watch.soon(AGAIN);
        }
        // Without rules nothing is routed, so they come first.
        if std::mem::take(&mut self.watch.settings)
            && let Err(error) = self.settle_all()
        {
            tracing::error!(%error, "the host's settings are not as they should be");
            self.watch.settings = true;
            self.watch.soon(AGAIN);
        }
    }

    /// All settings of the host that links need, or none. When there is no link any more the rules go with them.
    pub(crate) fn settle_all(&mut self) -> Result<(), Failure> {
        self.settle_forwarding()?;
        for device in self.bridges.keys().cloned().collect::<Vec<_>>() {
            self.settle_loopback(&device)?;
        }
        if self.links.is_empty() { self.clear_rules() } else { Ok(()) }
    }

    fn check_rules(&mut self) -> Result<(), Failure> {
        if self.links.is_empty() {
            return self.settle_all();
        }
        if self.are_all_walled() && self.firewall.is_intact()? {
            return Ok(());
        }
        self.set_all_rules()?;
        self.mended("the broker's nftables rules were changed or removed; they are as before".into());
        Ok(())
    }
}
