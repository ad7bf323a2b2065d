//! The protocol between engine and network helper (`cgrant-net`), which alone touches devices, addresses, nftables and ports.
//!
//! The engine decides, keeps the record and chooses every address; the helper carries out, keeps nothing on disk, and
//! is told with [`ToNet::Restore`] all that ought to be. Each [`Order`] is all or nothing and may be repeated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    grant::GrantId,
    link::{Address, LinkInfo, PublishedPort},
    op::FdIndex,
    refusal::RefusalCode,
};

/// Which link: a grant's, by name. Written into the device's ifalias as `cgrant INSTANCE GRANT NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkKey {
    /// The grant.
    pub grant: GrantId,
    /// The link's name in it.
    pub name: String,
}

/// Number of an order, chosen by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrderId(pub u64);

/// How a bridge is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BridgeKind {
    /// The broker's own: made with the first link on it, removed with the last; addresses, DHCP, names, advertisements, NAT.
    Own {
        /// The host's address in its IPv4 network.
        gateway4: Option<Address<Ipv4Addr>>,
        /// The host's address in its IPv6 network.
        gateway6: Option<Address<Ipv6Addr>>,
        /// Address of its name server (dnsmasq's own port on the bridge).
        server4: Option<Ipv4Addr>,
        /// The same, IPv6.
        server6: Option<Ipv6Addr>,
    },
    /// One of the administrator's: it has to be there, and is only given ports.
    Foreign,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name in the configuration.
    pub name: String,
    /// The device's name.
    pub device: String,
    /// How it is kept.
    pub kind: BridgeKind,
    /// Largest packet in bytes, of an own bridge.
    pub mtu: u32,
}

/// A link as it ought to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Which.
    pub key: LinkKey,
    /// Who is charged; decides who can reach whom.
    pub account: u32,
    /// Name of the container (the grant's), for DHCP.
    pub host_name: String,
    /// Names without the domain that lead to its addresses, the first for the way back.
    pub names: Vec<String>,
    /// Everything that its account is told too. `ifindex` is 0 for a link that is to be made.
    pub info: LinkInfo,
    /// Set addresses and routes in the namespace.
    pub configure: bool,
    /// May it be reached by, and reach, links of other accounts on its bridge?
    pub open: bool,
    /// May it use addresses that the broker does not know? On a bridge of the administrator's only.
    pub any_address: bool,
}

/// What the helper is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// There is one at a time, on its way.
#[allow(clippy::large_enum_variant)]
pub enum Order {
    /// Looks for a network that clashes with none of the machine's own. Changes nothing. -> [`Reply::Subnets`]
    FindSubnets {
        /// IPv4 networks to choose from; a network of `prefix4` in one of them.
        pools4: Vec<Address<Ipv4Addr>>,
        /// Length of the prefix.
        prefix4: u8,
        /// IPv6 networks (prefix 64) to choose from, best first.
        pool6: Vec<Address<Ipv6Addr>>,
        /// Networks that other bridges have, up or not.
        taken: Vec<Address<IpAddr>>,
    },
    /// Makes a link, its bridge before it if need be, and its ports. -> [`Reply::Link`]
    AddLink {
        /// Its bridge.
        bridge: Bridge,
        /// The link.
        link: Link,
        /// The network namespace for a veth's far end.
        netns: Option<FdIndex>,
    },
    /// Removes a link with its ports and rules, and with the last one the bridge and everything else. It may be gone
    /// already. -> [`Reply::Done`]
    RemoveLink(LinkKey),
    /// Removes all links of a grant; as [`Order::RemoveLink`]. -> [`Reply::Done`]
    RemoveLinks(GrantId),
    /// Gives a link exactly these published ports: new ones are opened, others closed, all or none. -> [`Reply::Done`]
    SetPorts {
        /// Which link.
        key: LinkKey,
        /// Its ports from now on.
        ports: Vec<PublishedPort>,
    },
    /// What stands in the way of links on this host: rows for `doctor`. -> [`Reply::Findings`]
    Examine,
    /// Which addresses the host has. Changes nothing. -> [`Reply::Addresses`]
    ListAddresses,
}

/// The answer to an order that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// To [`Order::FindSubnets`].
    Subnets {
        /// IPv4; `None` if none is free.
        subnet4: Option<Address<Ipv4Addr>>,
        /// IPv6.
        subnet6: Option<Address<Ipv6Addr>>,
    },
    /// To [`Order::AddLink`].
    Link {
        /// Index of the host's end.
        ifindex: u32,
        /// The largest packet that it came to have.
        mtu: u32,
        /// For a tap, its descriptor.
        tap: Option<FdIndex>,
    },
    /// To [`Order::Examine`].
    Findings(Vec<Finding>),
    /// To [`Order::ListAddresses`].
    Addresses(Vec<IpAddr>),
}

/// One thing that `doctor` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// Is it as it should be?
    pub good: bool,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

/// Why an order was not carried out; nothing of it remains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetFailure {
    /// Its kind for the caller.
    pub code: RefusalCode,
    /// One sentence: what and why.
    pub message: String,
    /// What to do about it; empty if nothing.
    pub hint: String,
}

/// From the engine to the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
// There is one at a time, on its way.
#[allow(clippy::large_enum_variant)]
pub enum ToNet {
    /// First message, and only then: everything that ought to be there. What the kernel has of this instance besides is
    /// removed, what lacks is made again where that can be, the rest is told with [`NetEvent::LinkGone`].
    Restore {
        /// Bridges with links.
        bridges: Vec<Bridge>,
        /// Links, with the index that their host's ends had.
        links: Vec<Link>,
    },
    /// An order.
    Order {
        /// Number for the answer.
        id: OrderId,
        /// What to do.
        order: Order,
    },
}

/// Something happened to what the helper made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetEvent {
    /// A link is gone, its rules and ports with it. `far_end`: by its holder's doing, which is nothing unusual.
    LinkGone {
        /// Which.
        key: LinkKey,
        /// Was it by its far end, or with its network namespace?
        far_end: bool,
    },
    /// The host's networks changed and one now clashes with a bridge's.
    Clash {
        /// The bridge's name in the configuration.
        bridge: String,
        /// The host's network.
        with: Address<IpAddr>,
    },
    /// Published ports of a link that could not be held again when the helper started: somebody else has them by now, and
    /// they lead to the link no more.
    PortsLost {
        /// Which link.
        key: LinkKey,
        /// Its ports that are lost.
        ports: Vec<PublishedPort>,
    },
    /// Something of ours was changed behind our back and was mended; one sentence.
    Mended(String),
}

/// From the helper to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromNet {
    /// The state after [`ToNet::Restore`] is as it ought to be, but for what events told.
    Restored,
    /// The answer to an order.
    Answer {
        /// Which.
        id: OrderId,
        /// What came of it.
        result: Result<Reply, NetFailure>,
    },
    /// Something happened.
    Event(NetEvent),
}
