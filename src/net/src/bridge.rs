//! Bridges: the broker's own are made with the first link and removed with the last; the administrator's have to be there.
//!
//! May touch the own bridges' devices, addresses and settings, and the settings of the host that
//! routing between a bridge and elsewhere needs.

use std::{collections::BTreeSet, mem::discriminant};

use cgrant_sys::netlink::LinkState;
use cgrant_wire::net::{Bridge, BridgeKind};

use crate::{
    failure::Failure,
    firewall::Guard,
    state::{Bridged, Net},
    sysctl,
};

/// Largest packet where nothing else was said, in bytes.
const USUAL_MTU: u32 = 1500;

/// Has a device addresses of IPv4, and of IPv6?
#[derive(Debug, Clone, Copy)]
struct Families {
    four: bool,
    six: bool,
}

/// A device of the host's by which others are reached.
type Uplink<'d> = (&'d LinkState, Families);

/// IPv6's switch for all interfaces.
const ALL_IPV6: &str = "ipv6/conf/all/forwarding";

/// A device that links may be ports of.
fn is_bridge(device: &LinkState) -> bool {
    device.kind.as_deref() == Some("bridge")
}

impl Net {
    /// The bridge's device, made if need be. -> its index, and whether it was made now.
    pub(crate) fn ensure_bridge(&mut self, bridge: &Bridge) -> Result<(u32, bool), Failure> {
        match self.bridges.get(&bridge.device) {
            Some(known)
                if known.bridge.name != bridge.name
                    || discriminant(&known.bridge.kind) != discriminant(&bridge.kind) =>
            {
                let what = format!("the device {} is the bridge {}", bridge.device, known.bridge.name);
                return Err(Failure::ForeignDevice(what));
            }
            Some(known) if known.ifindex != 0 => return Ok((known.ifindex, false)),
            _ => {}
        }
        match &bridge.kind {
            BridgeKind::Own { .. } => self.make_bridge(bridge).map(|index| (index, true)),
            BridgeKind::Foreign => self.find_bridge(bridge).map(|index| (index, false)),
        }
    }

    fn find_bridge(&mut self, bridge: &Bridge) -> Result<u32, Failure> {
        let device = self.route.link_by_name(&bridge.device)?;
        let device = device.ok_or_else(|| Failure::NoBridge(bridge.device.clone()))?;
        if !is_bridge(&device) {
            return Err(Failure::ForeignDevice(format!("the device {} is no bridge", bridge.device)));
        }
        if self.owned(&device).is_some() {
            let what = format!("the device {} is no bridge of the administrator's", bridge.device);
            return Err(Failure::ForeignDevice(what));
        }
        let known = Bridged { bridge: bridge.clone(), ifindex: device.index, mtu: device.mtu };
        self.bridges.insert(bridge.device.clone(), known);
        Ok(device.index)
    }

    fn make_bridge(&mut self, bridge: &Bridge) -> Result<u32, Failure> {
        self.fault.step("look for the bridge")?;
        if self.route.link_by_name(&bridge.device)?.is_some() {
            let what =
                format!("there is a device named {} already, which is not the broker's", bridge.device);
            return Err(Failure::ForeignDevice(what));
        }
        let mtu = if bridge.mtu == 0 { USUAL_MTU } else { bridge.mtu };
        self.note_unfinished(&bridge.device)?;
        self.fault.step("bridge")?;
        let mac = mac_of(bridge);
        let ifindex = self.route.add_bridge(&bridge.device, &self.bridge_alias(bridge), mac, mtu, false)?;
        if let Err(failure) = self.set_bridge_up(bridge, ifindex, mtu) {
            self.delete_device(ifindex);
            return Err(failure);
        }
        self.bridges.insert(bridge.device.clone(), Bridged { bridge: bridge.clone(), ifindex, mtu });
        Ok(ifindex)
    }

    /// Everything about an own bridge but its being there. May be repeated.
    pub(crate) fn set_bridge_up(&self, bridge: &Bridge, ifindex: u32, mtu: u32) -> Result<(), Failure> {
        self.fault.step("mtu of the bridge")?;
        // What was set by hand does not follow the smallest port's: no link can make all others smaller.
        self.route.set_mtu(ifindex, mtu)?;
        let networks: Vec<_> = Bridged { bridge: bridge.clone(), ifindex, mtu }.networks().collect();
        self.prepare_ipv6(&bridge.device, networks.iter().any(|network| network.address.is_ipv6()));
        for network in networks {
            self.fault.step("address of the bridge")?;
            match self.route.add_address(ifindex, network.address, network.prefix, true) {
                Err(error) if error.is(nix::libc::EEXIST) => {}
                // A host that was started without IPv6.
                Err(_) if network.address.is_ipv6() && sysctl::read("ipv6/conf/all/forwarding").is_none() => {
                }
                result => result?,
            }
        }
        self.fault.step("bridge up")?;
        Ok(self.route.set_up(ifindex, true)?)
    }

    /// The bridge's own behaviour, which ends with it. A kernel without IPv6 has none of these files, and an older one
    /// not all.
    fn prepare_ipv6(&self, device: &str, wanted: bool) {
        let set = |name: &str, value| {
            if let Err(error) = sysctl::write(&format!("ipv6/conf/{device}/{name}"), value) {
                tracing::debug!(%error, "a setting of a bridge is not to be had");
            }
        };
        // The host must not follow what a container advertises, whatever gets past the rules.
        set("accept_ra", "0");
        set("autoconf", "0");
        set("accept_redirects", "0");
        // Nobody else is there yet: its addresses can be used at once.
        set("accept_dad", "0");
        set("disable_ipv6", if wanted { "0" } else { "1" });
    }

    /// Makes the kernel route between bridges and elsewhere, if there is a link that needs it; puts everything back if not.
    ///
    /// Per interface where the kernel lets it: the global switch would make a router of a host that was none. Packets between
    /// two interfaces of the host that did not route before are dropped by a rule of ours.
    pub(crate) fn settle_forwarding(&mut self) -> Result<(), Failure> {
        self.is_routing = self.needs_routing();
        if !self.is_routing {
            return self.end_forwarding();
        }
        let devices = self.route.links()?;
        self.keep_routers(&devices)?;
        let mut guarded4 = BTreeSet::new();
        let mut guarded6 = BTreeSet::new();
        for bridge in self.bridges.values().filter(|bridge| bridge.is_own()) {
            let device = &bridge.bridge.device;
            sysctl::write(&format!("ipv4/conf/{device}/forwarding"), "1")?;
            if sysctl::read(&format!("ipv6/conf/{device}/forwarding")).is_some() {
                // Neighbours see by it that the gateway is a router.
                sysctl::write(&format!("ipv6/conf/{device}/forwarding"), "1")?;
            }
        }
        let uplinks = self.uplinks(&devices)?;
        if sysctl::read("ipv4/ip_forward").as_deref() != Some("1") {
            for (device, _) in uplinks.iter().filter(|(_, families)| families.four) {
                if self.sysctls.set(&format!("ipv4/conf/{}/forwarding", device.name), device.index, "1")? {
                    guarded4.insert(device.name.clone());
                }
            }
        }
        self.forward_ipv6(&devices, &uplinks, &mut guarded6)?;
        let guard = Guard {
            forwarding4: guarded4.into_iter().collect(),
            forwarding6: guarded6.into_iter().collect(),
        };
        self.wall(|wall| wall.set_guard(guard))
    }

    fn forward_ipv6(
        &mut self,
        devices: &[LinkState],
        uplinks: &[Uplink<'_>],
        guarded: &mut BTreeSet<String>,
    ) -> Result<(), Failure> {
        let is_needed =
            self.bridges.values().any(|bridge| bridge.networks().any(|one| one.address.is_ipv6()));
        let Some(all) = sysctl::read(ALL_IPV6).filter(|_| is_needed) else { return Ok(()) };
        if all == "1" && !self.sysctls.has_changed(ALL_IPV6, 0) {
            return Ok(());
        }
        // From Linux 6.17 on each interface can be told by itself, without becoming a router in anything else.
        if sysctl::read("ipv6/conf/all/force_forwarding").is_some() && self.settings.may_forward_singly {
            let ours = self.bridges.values().filter(|bridge| bridge.is_own());
            for bridge in ours {
                sysctl::write(&format!("ipv6/conf/{}/force_forwarding", bridge.bridge.device), "1")?;
            }
            for (device, _) in uplinks.iter().filter(|(_, families)| families.six) {
                let setting = format!("ipv6/conf/{}/force_forwarding", device.name);
                if self.sysctls.set(&setting, device.index, "1")? {
                    guarded.insert(device.name.clone());
                }
            }
            return Ok(());
        }
        self.forward_all_ipv6(devices, guarded)
    }

    /// Who configures itself by advertisements goes on doing so. The routes that came with them are dropped otherwise as
    /// soon as any interface is a router, a bridge of ours too (`addrconf_fixup_forwarding` in net/ipv6/addrconf.c).
    fn keep_routers(&mut self, devices: &[LinkState]) -> Result<(), Failure> {
        let value = |device: &str, name: &str| sysctl::read(&format!("ipv6/conf/{device}/{name}"));
        let others: Vec<_> = devices.iter().filter(|device| !self.is_ours(device)).collect();
        for device in others {
            if value(&device.name, "accept_ra").as_deref() == Some("1")
                && value(&device.name, "forwarding").as_deref() == Some("0")
            {
                self.sysctls.set(&format!("ipv6/conf/{}/accept_ra", device.name), device.index, "2")?;
            }
        }
        Ok(())
    }

    /// The switch sets every interface's value, and the default: each is remembered.
    fn forward_all_ipv6(
        &mut self,
        devices: &[LinkState],
        guarded: &mut BTreeSet<String>,
    ) -> Result<(), Failure> {
        let value = |device: &str, name: &str| sysctl::read(&format!("ipv6/conf/{device}/{name}"));
        let others: Vec<_> = devices.iter().filter(|device| !self.is_ours(device)).collect();
        for (name, index) in
            others.iter().map(|device| (device.name.as_str(), device.index)).chain([("default", 0)])
        {
            let setting = format!("ipv6/conf/{name}/forwarding");
            match value(name, "forwarding").as_deref() {
                Some("0") => {
                    self.sysctls.set(&setting, index, "1")?;
                }
                // Putting the switch back will change this one.
                Some("1") if !self.sysctls.has_changed(ALL_IPV6, 0) => {
                    self.sysctls.remember(&setting, index, "1", "0")?;
                }
                _ => {}
            }
            if index != 0 && self.sysctls.has_set(&setting, index) {
                guarded.insert(name.to_owned());
            }
        }
        self.sysctls.set(ALL_IPV6, 0, "1")?;
        Ok(())
    }

    fn end_forwarding(&mut self) -> Result<(), Failure> {
        self.wall(|wall| wall.set_guard(Guard::default()))?;
        if self.sysctls.is_empty() {
            return Ok(());
        }
        if sysctl::read("ipv4/ip_forward").as_deref() == Some("1") {
            // Somebody has made a router of the host meanwhile: its interfaces forward for him too.
            self.sysctls.forget(|setting| setting.starts_with("ipv4/") && setting.ends_with("/forwarding"));
        }
        let devices = self.route.links()?;
        // Another instance may rely on what we changed, and could not know that it was us.
        if devices.iter().any(|device| self.is_anothers(device)) {
            tracing::info!("another instance has links: the host's settings stay as they are");
            return Ok(());
        }
        let index_of =
            |name: &str| devices.iter().find(|device| device.name == name).map(|device| device.index);
        Ok(self.sysctls.put_back(index_of)?)
    }

    /// Is there a link whose packets the host has to route?
    pub(crate) fn needs_routing(&self) -> bool {
        self.links.values().any(|made| {
            !made.link.info.ports.is_empty() || self.bridges.get(&made.device).is_some_and(Bridged::is_own)
        })
    }

    /// The interfaces by which others are reached, each with the families that it has addresses of.
    fn uplinks<'d>(&self, devices: &'d [LinkState]) -> Result<Vec<Uplink<'d>>, Failure> {
        let addresses = self.route.addresses()?;
        let routes = self.route.routes()?;
        let families = |device: &LinkState| {
            let has = |is_ipv4: bool| {
                addresses.iter().any(|address| {
                    let is_of_host =
                        !matches!(address.address, std::net::IpAddr::V6(six) if six.is_unicast_link_local());
                    address.ifindex == device.index && address.address.is_ipv4() == is_ipv4 && is_of_host
                })
            };
            Families { four: has(true), six: has(false) }
        };
        let leads_on =
            |index: u32| routes.iter().any(|route| route.ifindex == Some(index) && route.gateway.is_some());
        let is_loopback = |device: &LinkState| device.name == "lo";
        let is_inner =
            |device: &LinkState| is_bridge(device) && !leads_on(device.index) && is_virtual(device, devices);
        Ok(devices
            .iter()
            .filter(|device| !is_loopback(device) && !self.is_ours(device) && !is_inner(device))
            .map(|device| (device, families(device)))
            .filter(|(_, families)| families.four || families.six)
            .collect())
    }

    /// Is the device of this instance or, as its alias says, of another?
    pub(crate) fn is_ours(&self, device: &LinkState) -> bool {
        self.owned(device).is_some() || self.is_anothers(device) || self.names.is_port(&device.name)
    }

    fn is_anothers(&self, device: &LinkState) -> bool {
        let is_this = |rest: &str| {
            rest.strip_prefix(self.settings.instance.as_str()).is_some_and(|rest| rest.starts_with(' '))
        };
        device
            .alias
            .as_deref()
            .and_then(|alias| alias.strip_prefix("cgrant "))
            .is_some_and(|rest| !is_this(rest))
    }

    /// Packets from the host's loopback reach published ports on a bridge exactly while there are some: a rule that drops
    /// such addresses from the bridge was set with its first link.
    pub(crate) fn settle_loopback(&self, device: &str) -> Result<(), Failure> {
        let Some(bridge) = self.bridges.get(device).filter(|bridge| bridge.is_own()) else { return Ok(()) };
        let has_ports =
            self.links.values().any(|made| made.device == device && !made.link.info.ports.is_empty());
        let setting = format!("ipv4/conf/{}/route_localnet", bridge.bridge.device);
        let value = if has_ports { "1" } else { "0" };
        if sysctl::read(&setting).as_deref() == Some(value) {
            return Ok(());
        }
        Ok(sysctl::write(&setting, value)?)
    }

    /// Both of the above where nothing can be told any more.
    pub(crate) fn settle_quietly(&mut self, device: &str) {
        let settled = self.settle_loopback(device).and_then(|()| self.settle_forwarding());
        if let Err(error) = settled {
            tracing::error!(%error, "the host's settings are not as they should be");
        }
    }

    /// Deletes a device that was made just now, or that nobody wants any more.
    pub(crate) fn delete_device(&self, ifindex: u32) {
        if let Err(error) = self.route.delete_link(ifindex) {
            tracing::error!(%error, ifindex, "a device can't be deleted");
        }
    }
}

/// Has a bridge only ports behind which there are containers and machines of this host, or none?
fn is_virtual(bridge: &LinkState, devices: &[LinkState]) -> bool {
    let mut ports = devices.iter().filter(|device| device.master == Some(bridge.index));
    ports.all(|port| matches!(port.kind.as_deref(), Some("veth" | "tun")))
}

/// The address of an own bridge: always the same for the same network, because containers go on sending to it when the bridge
/// has to be made again.
fn mac_of(bridge: &Bridge) -> [u8; 6] {
    let [a, b, c, d] = match &bridge.kind {
        BridgeKind::Own { gateway4: Some(gateway), .. } => gateway.address.octets(),
        BridgeKind::Own { gateway6: Some(gateway), .. } => {
            let [_, _, a, b, c, d, ..] = gateway.address.octets();
            [a, b, c, d]
        }
        _ => [0; 4],
    };
    [0x02, b'c', a, b, c, d]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_bridges_address_is_that_of_its_network() {
        use cgrant_wire::link::Address;
        let bridge = |four: Option<&str>, six: Option<&str>| Bridge {
            name: "default".into(),
            device: "cgrant0".into(),
            kind: BridgeKind::Own {
                gateway4: four.map(|text| Address { address: text.parse().unwrap(), prefix: 22 }),
                gateway6: six.map(|text| Address { address: text.parse().unwrap(), prefix: 64 }),
                server4: None,
                server6: None,
            },
            mtu: 1500,
        };
        assert_eq!(mac_of(&bridge(Some("10.1.2.1"), Some("fd00::1"))), [2, 0x63, 10, 1, 2, 1]);
        assert_eq!(mac_of(&bridge(None, Some("fd00:102:304::1"))), [2, 0x63, 1, 2, 3, 4]);
    }
}
