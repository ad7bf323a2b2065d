//! Links: network devices of a grant, as callers ask for them and as they are told of them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::op::FdIndex;

/// The address of a device on the data link layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LinkKind {
    /// A veth pair: one end on the bridge, the other born in the shown network namespace.
    Veth,
    /// A tap device on the bridge, whose descriptor the caller gets.
    Tap,
}

/// What a published port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host's that leads to a port of a container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The host's address; all of them, IPv4 and IPv6, if `None`.
    pub address: Option<IpAddr>,
    /// The host's port, not 0.
    pub host: u16,
    /// The container's port, not 0.
    pub container: u16,
    /// What is carried.
    pub transport: Transport,
}

/// A link that is asked for. Numbers that are 0 and texts that are empty mean "what is usual".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    /// What it is made of.
    pub kind: LinkKind,
    /// The network namespace that the far end is born in; for a veth only, and needed there.
    pub netns: Option<FdIndex>,
    /// Its name there, and the link's name in the grant; the first free of `eth0`, `eth1` … if empty.
    pub name: String,
    /// The bridge's name in the broker's configuration; policy's first if empty.
    pub bridge: String,
    /// A fixed IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// A fixed IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// Addresses and routes are set in the namespace; otherwise the payload asks for them itself (DHCP).
    pub configure: bool,
    /// Largest packet, in bytes; the bridge's if 0.
    pub mtu: u32,
    /// Length of the transmit queue, in packets; the kernel's if 0.
    pub queue_length: u32,
    /// Most that the container may send, in bits a second; no limit if 0.
    pub upload: u64,
    /// Most that is sent to the container, in bits a second; no limit if 0.
    pub download: u64,
    /// VLAN id on a bridge of the administrator's that knows VLANs; none if 0.
    pub vlan: u16,
    /// Ports of the host's that lead to it.
    pub ports: Vec<PublishedPort>,
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address<A> {
    /// The address.
    pub address: A,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Its name in the grant; also that of its far end when it was born.
    pub name: String,
    /// What it is made of.
    pub kind: LinkKind,
    /// The bridge's name in the broker's configuration.
    pub bridge: String,
    /// Name of the host's end.
    pub host_name: String,
    /// Interface index of the host's end; 0 while it is being made.
    pub ifindex: u32,
    /// The container's address on the data link layer; stable for account, grant name and link name.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address4: Option<Address<Ipv4Addr>>,
    /// Its IPv6 address.
    pub address6: Option<Address<Ipv6Addr>>,
    /// Where packets for elsewhere go, IPv4.
    pub gateway4: Option<Ipv4Addr>,
    /// Where packets for elsewhere go, IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Servers that know names.
    pub dns: Vec<IpAddr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Length of the transmit queue, in packets; the kernel's if 0.
    pub queue_length: u32,
    /// Most that the container may send, in bits a second; no limit if 0.
    pub upload: u64,
    /// Most that is sent to the container, in bits a second; no limit if 0.
    pub download: u64,
    /// VLAN id; none if 0.
    pub vlan: u16,
    /// Ports of the host's that lead to it.
    pub ports: Vec<PublishedPort>,
}

/// A bridge that the caller may have links on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeInfo {
    /// Its name in the broker's configuration.
    pub name: String,
    /// Name of the device; of the broker's own also while it does not exist.
    pub device: String,
    /// Is it the broker's own, with addresses, names and NAT?
    pub managed: bool,
    /// Its IPv4 network; `None` until the first link if it is the broker's own.
    pub subnet4: Option<Address<Ipv4Addr>>,
    /// Its IPv6 network.
    pub subnet6: Option<Address<Ipv6Addr>>,
    /// Links that the caller's account has on it.
    pub links: u32,
    /// A network that the host got since and that is in the bridge's: the two can't reach each other.
    pub clash: Option<Address<IpAddr>>,
}

/// Why a link is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkEnd {
    /// Somebody with authority removed it, or its grant ended.
    Removed,
    /// Its far end was deleted, or died with its network namespace.
    FarEndGone,
    /// The host's end or the bridge was deleted behind the broker's back and could not be mended.
    Lost,
}
