//! Addresses of devices.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
};

use super::{
    Result, Route,
    attribute::{attributes, ip, u32_at, u32_of},
};

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
const HEADER: usize = 8;
const INDEX: usize = 4;

/// An address of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressState {
    /// Index of the device.
    pub ifindex: u32,
    /// The device's own address.
    pub address: IpAddr,
    /// Length of the prefix of the network that it lies in, or of the other end's address.
    pub prefix: u8,
    /// An address at the other end of a point-to-point device.
    pub peer: Option<IpAddr>,
    /// Is it still being found out if somebody else has it?
    pub tentative: bool,
    /// Does somebody else have it?
    pub duplicate: bool,
    /// Was it set by hand or program? Otherwise it came from router advertisements or DHCP and ends.
    pub permanent: bool,
}

impl Route {
    /// Gives a device an address and with it the route to its network. With `nodad` nobody is asked whether
    /// he has it already, so that an IPv6 address can be used at once.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EEXIST` if it has it, `EACCES`, `EPERM`, `EOPNOTSUPP` without IPv6.
    pub fn add_address(&self, ifindex: u32, address: IpAddr, prefix: u8, nodad: bool) -> Result<()> {
        let mut message = message(ifindex, address, prefix);
        match address {
            IpAddr::V4(_) => message.attributes.push(AddressAttribute::Address(address)),
            IpAddr::V6(_) if nodad => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
            IpAddr::V6(_) => (),
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.socket.act("give a network device an address", message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Takes an address from a device. -> did it have it?
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError) but that it is not there.
    pub fn remove_address(&self, ifindex: u32, address: IpAddr, prefix: u8) -> Result<bool> {
        let message = RouteNetlinkMessage::DelAddress(message(ifindex, address, prefix));
        match self.socket.act("take an address from a network device", message, 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The addresses of all devices, of both families.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError).
    pub fn addresses(&self) -> Result<Vec<AddressState>> {
        let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.socket.list("list the addresses", &message, |answer| AddressState::parse(answer.payload))
    }
}

fn message(ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    message.header.index = ifindex;
    message.header.prefix_len = prefix;
    message.attributes = vec![AddressAttribute::Local(address)];
    message
}

impl AddressState {
    /// Reads a message of kind `RTM_NEWADDR` or `RTM_DELADDR`; `None` for a family that is neither IPv4 nor IPv6.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let [_, prefix, flags, ..] = *payload else {
            return None;
        };
        let ifindex = u32_at(payload, INDEX)?;
        let (mut address, mut local) = (None, None);
        let mut flags = u32::from(flags);
        for (kind, value) in attributes(payload.get(HEADER..)?) {
            match kind {
                libc::IFA_ADDRESS => address = ip(value),
                libc::IFA_LOCAL => local = ip(value),
                libc::IFA_FLAGS => flags = u32_of(value)?,
                _ => (),
            }
        }
        // With both, IFA_LOCAL is the device's own, and IFA_ADDRESS the same or the other end's (rtnetlink(7)).
        let own = local.or(address)?;
        let has = |flag: AddressHeaderFlags| flags & u32::from(flag.bits()) != 0;
        Some(Self {
            ifindex,
            address: own,
            prefix,
            peer: address.filter(|address| *address != own),
            tentative: has(AddressHeaderFlags::Tentative),
            duplicate: has(AddressHeaderFlags::Dadfailed),
            permanent: has(AddressHeaderFlags::Permanent),
        })
    }
}
