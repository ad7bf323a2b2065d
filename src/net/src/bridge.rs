//! Bridges: the broker's own are made with the first link and removed with the last; the administrator's have to be there.
//!
//! May touch the own bridges' devices, addresses and settings.

use std::mem::discriminant;

use cgrant_sys::netlink::LinkState;
use cgrant_wire::net::{Bridge, BridgeKind};

use crate::{
    failure::Failure,
    state::{Bridged, Net},
    sysctl,
};

/// Largest packet where nothing else was said, in bytes.
const USUAL_MTU: u32 = 1500;

/// A device that links may be ports of.
pub(crate) fn is_bridge(device: &LinkState) -> bool {
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

    /// Deletes a device that was made just now, or that nobody wants any more.
    pub(crate) fn delete_device(&self, ifindex: u32) {
        if let Err(error) = self.route.delete_link(ifindex) {
            tracing::error!(%error, ifindex, "a device can't be deleted");
        }
    }
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
