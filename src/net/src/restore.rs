//! Bringing the kernel in agreement with what the engine says ought to be, after a restart of either.
//!
//! What the helper made is still there, and packets flow: rules are replaced in one step and devices left alone unless they
//! are wrong. A published port is trusted only when it is held again, because somebody else could have taken
//! it meanwhile. What nobody wants any more is removed.

use std::{collections::BTreeSet, io};

use cgrant_sys::netlink::LinkState;
use cgrant_wire::{
    link::PublishedPort,
    net::{Bridge, Link, NetEvent},
    patience,
};

use crate::{
    failure::{Failure, chain, kernel},
    state::{Bridged, Net, Owned},
};

/// The file that is there while there are tables of ours.
const WITH_RULES: &str = "rules";

impl Net {
    /// Makes everything as it ought to be, as far as it can be made; what can't is told by events.
    pub fn restore(&mut self, bridges: &[Bridge], links: Vec<Link>) {
        if std::mem::replace(&mut self.is_restored, true) {
            tracing::error!("the engine told a second time what ought to be");
            return;
        }
        self.firewall.allow(patience::NFT_RESTORE);
        if !links.is_empty()
            && let Err(error) = self.watch.begin()
        {
            tracing::error!(%error, "changes of the network will not be noticed");
        }
        self.tried("a device that was not finished", |net| net.remove_unfinished());
        let devices = self.route.links().unwrap_or_else(|error| {
            tracing::error!(%error, "the devices can't be listed");
            Vec::new()
        });
        let found = self.find_links(bridges, links, &devices);
        self.remove_strays(&found, bridges, &devices);
        for (link, bridge, index) in found {
            self.take_over(link, &bridge, index, &devices);
        }
        self.hold_ports_again();
        let own: Vec<Bridge> = self
            .bridges
            .values()
            .filter(|bridged| bridged.is_own())
            .map(|bridged| bridged.bridge.clone())
            .collect();
        self.prepare_servers(&own);
        if self.links.is_empty() {
            self.end_rules();
        } else {
            self.tried("the guard", Self::expect_guard);
            self.tried("the rules", Self::set_all_rules);
            self.serve_all(&own);
            self.tried("the host's settings", Self::settle_all);
        }
        self.look_for_clashes();
        if self.links.is_empty() {
            self.watch.end();
        }
    }

    pub(crate) fn tried(&mut self, what: &str, act: impl FnOnce(&mut Self) -> Result<(), Failure>) {
        if let Err(error) = act(self) {
            tracing::error!(%error, "{what}: not as it ought to be");
            self.watch.rules_are_doubtful();
            self.watch.settings_are_doubtful();
        }
    }

    /// Without links there is nothing to route, and when nothing is routed there are no rules.
    fn end_rules(&mut self) {
        match self.settle_forwarding() {
            Ok(()) => self.tried("the rules", Self::clear_rules),
            Err(error) => {
                tracing::error!(%error, "the host's settings can't be put back yet; the rules stay as long");
                self.watch.settings_are_doubtful();
            }
        }
    }

    /// Those links that are there, each with its bridge and its index. The others are told as gone.
    fn find_links(
        &mut self,
        bridges: &[Bridge],
        links: Vec<Link>,
        devices: &[LinkState],
    ) -> Vec<(Link, Bridge, u32)> {
        let mut found = Vec::new();
        for link in links {
            let alias = self.alias(&link.key);
            let is_it = |device: &&LinkState| device.alias.as_deref() == Some(&alias);
            // The index of a device that is gone may be another's by now, so it is nothing without the alias.
            let device = devices.iter().filter(is_it).max_by_key(|device| device.index == link.info.ifindex);
            let bridge = bridges.iter().find(|bridge| bridge.name == link.info.bridge);
            match (device, bridge) {
                (Some(device), Some(bridge)) => found.push((link, bridge.clone(), device.index)),
                _ => self.events.push(NetEvent::LinkGone { key: link.key, far_end: device.is_none() }),
            }
        }
        found
    }

    /// Devices of this instance that nobody wants.
    fn remove_strays(&self, found: &[(Link, Bridge, u32)], bridges: &[Bridge], devices: &[LinkState]) {
        let wanted: BTreeSet<u32> = found.iter().map(|(_, _, index)| *index).collect();
        let has_links = |bridge: &Bridge| found.iter().any(|(_, with, _)| with.device == bridge.device);
        for device in devices {
            let is_stray = match self.owned(device) {
                Some(Owned::Link(_)) => !wanted.contains(&device.index),
                Some(Owned::Bridge) => !bridges.iter().any(|bridge| {
                    device.alias.as_deref() == Some(&self.bridge_alias(bridge)) && has_links(bridge)
                }),
                None => false,
            };
            if is_stray {
                tracing::info!(device = device.name, "a device that nobody wants is removed");
                self.delete_device(device.index);
            }
        }
    }

    /// A link that is there becomes known, and its bridge before it.
    fn take_over(&mut self, mut link: Link, bridge: &Bridge, index: u32, devices: &[LinkState]) {
        link.info.ifindex = index;
        let key = link.key.clone();
        let taken = self.take_over_bridge(bridge, devices);
        self.know(link, &bridge.device);
        let mended = taken.and_then(|()| {
            let Some(device) = self.route.link(index)? else { return Err(Failure::FarEndLost) };
            self.mend_link(&key, &device)
        });
        match mended {
            Ok(()) => {}
            Err(Failure::FarEndLost) => self.end_link(&key, true),
            Err(error) => {
                tracing::error!(%error, grant = %key.grant, "a link can't be kept");
                self.end_link(&key, false);
            }
        }
    }

    fn take_over_bridge(&mut self, bridge: &Bridge, devices: &[LinkState]) -> Result<(), Failure> {
        if self.bridges.contains_key(&bridge.device) {
            return Ok(());
        }
        let alias = self.bridge_alias(bridge);
        let device = devices.iter().find(|device| device.alias.as_deref() == Some(&alias));
        let known = Bridged { bridge: bridge.clone(), ifindex: 0, mtu: bridge.mtu };
        let Some(device) = device.filter(|_| known.is_own()) else {
            // Of the administrator's too: while it is gone its links wait.
            return match self.ensure_bridge(bridge) {
                Ok((_, true)) => {
                    self.mended(format!("the bridge {} was deleted; it was made again", bridge.device));
                    Ok(())
                }
                Err(Failure::NoBridge(_)) if !known.is_own() => {
                    self.bridges.insert(bridge.device.clone(), known);
                    Ok(())
                }
                result => result.map(|_| ()),
            };
        };
        let bridged = Bridged { ifindex: device.index, mtu: device.mtu, ..known };
        if device.name != bridge.device && self.route.set_name(device.index, &bridge.device).is_err() {
            self.route.set_up(device.index, false)?;
            self.route.set_name(device.index, &bridge.device)?;
        }
        self.set_bridge_up(bridge, device.index, device.mtu)?;
        self.bridges.insert(bridge.device.clone(), bridged);
        Ok(())
    }

    /// Each port that can't be had again is closed, and told: whoever has it now was not to be shadowed.
    fn hold_ports_again(&mut self) {
        let with_ports: Vec<Link> = self
            .links
            .values()
            .filter(|made| !made.link.info.ports.is_empty())
            .map(|made| made.link.clone())
            .collect();
        for link in with_ports {
            let mut lost: Vec<PublishedPort> = Vec::new();
            let target = Self::target(&link);
            if self.holders.hold(&link.key, &target, &link.info.ports).is_ok() {
                continue;
            }
            let mut held: Vec<PublishedPort> = Vec::new();
            for port in &link.info.ports {
                match self.holders.open(&link.key, &[*port]) {
                    Ok(()) => held.push(*port),
                    Err(error) => {
                        tracing::error!("{error}; it leads to the link {} no more", link.info.host_name);
                        lost.push(*port);
                    }
                }
            }
            self.holders.settle(&link.key, &target, &held);
            self.keep_ports(&link.key, &held);
            self.events.push(NetEvent::PortsLost { key: link.key, ports: lost });
        }
    }

    /// Replaces all rules in one step, whatever is there. A link whose device or bridge is not there gets none, and is looked at
    /// soon if it ought to be: the others must not suffer by it.
    pub(crate) fn set_all_rules(&mut self) -> Result<(), Failure> {
        let devices = self.route.links()?;
        let is_there = |name: &str| devices.iter().any(|device| device.name == name);
        let is_it = |name: &str, index: u32| {
            devices.iter().any(|device| device.index == index && device.name == name)
        };
        let bridges = self.bridges.values().filter(|known| is_it(&known.bridge.device, known.ifindex));
        let bridges: Vec<Bridge> = bridges.map(|bridged| bridged.bridge.clone()).collect();
        let (mut links, mut doubtful) = (Vec::new(), Vec::new());
        for made in self.links.values() {
            let info = &made.link.info;
            if !is_it(&info.host_name, info.ifindex) {
                doubtful.push(info.ifindex);
            } else if bridges.iter().any(|bridge| bridge.device == made.device) {
                links.push((made.link.clone(), info.host_name.clone()));
            }
        }
        let mut servers = self.servers();
        servers.retain(|(bridge, port, _)| bridges.contains(bridge) && is_there(port));
        doubtful.into_iter().for_each(|index| self.watch.is_doubtful(index));
        self.wall(|wall| wall.restore(&bridges, &links, &servers))
    }

    /// Has each link its rules, as far as is known, but for those that wait for their bridge?
    pub(crate) fn are_all_walled(&self) -> bool {
        let waits = |device: &str| self.bridges.get(device).is_none_or(|bridged| bridged.ifindex == 0);
        self.links.iter().all(|(key, made)| waits(&made.device) || self.firewall.knows(key))
    }

    /// Without links there are no rules. On a host that never had a link `nft` is not even run.
    pub(crate) fn clear_rules(&mut self) -> Result<(), Failure> {
        if !self.directory.exists(WITH_RULES).map_err(kernel("cannot look into the helper's directory"))? {
            return Ok(());
        }
        self.wall(|wall| wall.clear())?;
        self.note_rules(false)
    }

    /// Notes that there are tables of ours, or none, for a helper after this one.
    pub(crate) fn note_rules(&self, are_there: bool) -> Result<(), Failure> {
        let noted = if are_there {
            self.directory.write_atomic(WITH_RULES, b"", false)
        } else {
            self.directory.remove_file(WITH_RULES)
        };
        match noted {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(kernel("cannot note that there are rules")),
        }
    }

    fn serve_all(&mut self, own: &[Bridge]) {
        for bridge in own {
            if let Err(error) = self.start_server(bridge) {
                tracing::error!(error = chain(&error), "a name server can't be had");
                self.names.retry(&bridge.device);
            }
            self.tried("router advertisements", |net| net.start_advert(&bridge.device));
        }
    }
}
