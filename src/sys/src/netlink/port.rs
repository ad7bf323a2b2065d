//! Ports of a bridge: how they are set, the addresses behind them, their VLANs.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridgePort, InfoPortData, InfoPortKind,
        LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::{
    Result, Route,
    attribute::{attributes, find, flag, u16_of, u32_at},
};

/// `IFLA_BRPORT_*`, `include/uapi/linux/if_link.h`.
mod kind {
    pub const MODE: u16 = 4;
    pub const LEARNING: u16 = 8;
    pub const UNICAST_FLOOD: u16 = 9;
    pub const MULTICAST_FLOOD: u16 = 27;
    pub const BROADCAST_FLOOD: u16 = 30;
    pub const NEIGH_SUPPRESS: u16 = 32;
    pub const ISOLATED: u16 = 33;
}

/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;

/// `IFLA_BRIDGE_VLAN_INFO`.
const VLAN_INFO: u16 = 2;

/// How a port of a bridge is to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlags {
    /// Learns which addresses are behind it from what comes in.
    pub learning: bool,
    /// Sends back out what came in.
    pub hairpin: bool,
    /// Exchanges nothing with other isolated ports.
    pub isolated: bool,
    /// The bridge answers for known neighbours itself.
    pub neigh_suppress: bool,
    /// Gets what is addressed to nobody known.
    pub unicast_flood: bool,
    /// Gets multicasts.
    pub multicast_flood: bool,
    /// Gets broadcasts.
    pub broadcast_flood: bool,
}

/// How a port of a bridge is set.
pub type PortState = PortFlags;

/// What the kernel sets at a new port.
impl Default for PortFlags {
    fn default() -> Self {
        Self {
            learning: true,
            hairpin: false,
            isolated: false,
            neigh_suppress: false,
            unicast_flood: true,
            multicast_flood: true,
            broadcast_flood: true,
        }
    }
}

/// A VLAN of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanState {
    /// Index of the port.
    pub ifindex: u32,
    /// VLAN id.
    pub vid: u16,
    /// What comes in without tag belongs to it.
    pub pvid: bool,
    /// What goes out loses its tag.
    pub untagged: bool,
}

impl PortFlags {
    /// Reads the attributes of a port; what is not told is as the kernel sets it.
    pub(super) fn parse(data: &[u8]) -> Self {
        let mut port = Self::default();
        for (kind, value) in attributes(data) {
            let place = match kind {
                kind::MODE => &mut port.hairpin,
                kind::LEARNING => &mut port.learning,
                kind::UNICAST_FLOOD => &mut port.unicast_flood,
                kind::MULTICAST_FLOOD => &mut port.multicast_flood,
                kind::BROADCAST_FLOOD => &mut port.broadcast_flood,
                kind::NEIGH_SUPPRESS => &mut port.neigh_suppress,
                kind::ISOLATED => &mut port.isolated,
                _ => continue,
            };
            *place = flag(value);
        }
        port
    }

    fn attributes(self) -> Vec<InfoBridgePort> {
        vec![
            InfoBridgePort::HairpinMode(self.hairpin),
            InfoBridgePort::Learning(self.learning),
            InfoBridgePort::UnicastFlood(self.unicast_flood),
            InfoBridgePort::MulticastFlood(self.multicast_flood),
            InfoBridgePort::BroadcastFlood(self.broadcast_flood),
            InfoBridgePort::NeighSupress(self.neigh_suppress),
            InfoBridgePort::Isolated(self.isolated),
        ]
    }
}

impl Route {
    /// Sets a port of a bridge, all its flags at once.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EINVAL` if the device is no port of a bridge.
    pub fn set_port(&self, ifindex: u32, flags: &PortFlags) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(flags.attributes())),
        ])];
        // RTM_SETLINK takes no notice of it [tried].
        self.act_on(ifindex, "set a port of a bridge", message, RouteNetlinkMessage::NewLink)
    }

    /// Says for good that an address is behind a port (static and sticky: whoever else sends from it changes nothing), in
    /// one VLAN or outside of any. Replaces what the bridge learned.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EINVAL`, `EOPNOTSUPP` if the device is no port of a bridge.
    pub fn add_fdb(&self, ifindex: u32, mac: [u8; 6], vlan: Option<u16>) -> Result<()> {
        let message = fdb_entry(ifindex, mac, vlan);
        let action = "tell a bridge an address";
        self.socket.act(action, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away from a port. -> was it there?
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError) but that it is not there.
    pub fn remove_fdb(&self, ifindex: u32, mac: [u8; 6], vlan: Option<u16>) -> Result<bool> {
        let message = fdb_entry(ifindex, mac, vlan);
        match self.socket.act("take an address from a bridge", RouteNetlinkMessage::DelNeighbour(message), 0)
        {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a port a member of a VLAN; with `pvid_untagged` of this one for all that has no tag, both ways.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EOPNOTSUPP` if the kernel or the device has no VLANs, `EINVAL` for a bad id.
    pub fn add_vlan(&self, ifindex: u32, vid: u16, pvid_untagged: bool) -> Result<()> {
        let flags = if pvid_untagged {
            BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged
        } else {
            BridgeVlanInfoFlags::empty()
        };
        let message = vlan_message(vid, flags);
        self.act_on(ifindex, "add a port to a VLAN", message, RouteNetlinkMessage::SetLink)
    }

    /// Takes a port out of a VLAN. The kernel does not say whether it was in it.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EOPNOTSUPP` as [`Route::add_vlan`].
    pub fn remove_vlan(&self, ifindex: u32, vid: u16) -> Result<()> {
        let message = vlan_message(vid, BridgeVlanInfoFlags::empty());
        self.act_on(ifindex, "take a port out of a VLAN", message, RouteNetlinkMessage::DelLink)
    }

    /// The VLANs of all ports, and of the bridges themselves.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError).
    pub fn vlans(&self) -> Result<Vec<VlanState>> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan])];
        let lists = self.socket.list(
            "list the VLANs of bridges",
            &RouteNetlinkMessage::GetLink(message),
            |answer| Some(vlans_of(answer.payload)),
        )?;
        Ok(lists.concat())
    }
}

fn fdb_entry(ifindex: u32, mac: [u8; 6], vlan: Option<u16>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller | NeighbourFlags::Sticky;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message.attributes.extend(vlan.map(NeighbourAttribute::Vlan));
    message
}

fn vlan_message(vid: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    let vlan = AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    message.attributes = vec![LinkAttribute::AfSpecBridge(vec![vlan])];
    message
}

fn vlans_of(payload: &[u8]) -> Vec<VlanState> {
    let family = payload.first().copied();
    if family != Some(u8::from(AddressFamily::Bridge)) {
        return Vec::new();
    }
    let Some(ifindex) = u32_at(payload, LINK_INDEX) else {
        return Vec::new();
    };
    let list = payload.get(LINK_HEADER..).and_then(|rest| find(rest, libc::IFLA_AF_SPEC)).unwrap_or_default();
    attributes(list)
        .filter(|(kind, _)| *kind == VLAN_INFO)
        .filter_map(|(_, value)| {
            let flags = BridgeVlanInfoFlags::from_bits_retain(u16_of(value)?);
            Some(VlanState {
                ifindex,
                vid: u16_of(value.get(2..)?)?,
                pvid: flags.contains(BridgeVlanInfoFlags::Pvid),
                untagged: flags.contains(BridgeVlanInfoFlags::Untagged),
            })
        })
        .collect()
}
