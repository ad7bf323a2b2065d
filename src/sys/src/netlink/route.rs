//! Routes.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{
    Result, Route,
    attribute::{attributes, ip, u32_of, unspecified},
};

/// `struct rtmsg`.
const HEADER: usize = 12;

/// A route as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteState {
    /// Where to: the network's address.
    pub dst: IpAddr,
    /// Length of its prefix; 0 for the default route.
    pub prefix: u8,
    /// Out of which device; `None` if there are several, or the packets are dropped.
    pub ifindex: Option<u32>,
    /// By way of whom, if not directly.
    pub gateway: Option<IpAddr>,
    /// Which table it stands in; 254 is the main one, 255 that of the host's own addresses.
    pub table: u32,
}

impl Route {
    /// Adds a route to the main table: directly out of the device, or by way of `gateway`, which need not lie in a
    /// network of the device's.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); `EEXIST`, `ENETDOWN` while the device is down.
    pub fn add_route(&self, ifindex: u32, dst: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> Result<()> {
        let message = RouteNetlinkMessage::NewRoute(message(ifindex, dst, prefix, gateway));
        self.socket.act("add a route", message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds the default route of the gateway's family.
    ///
    /// # Errors
    /// As [`Route::add_route`].
    pub fn add_default_route(&self, ifindex: u32, gateway: IpAddr) -> Result<()> {
        self.add_route(ifindex, zero(gateway), 0, Some(gateway))
    }

    /// Removes a route from the main table. -> was it there?
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError) but that it is not there.
    pub fn remove_route(
        &self,
        ifindex: u32,
        dst: IpAddr,
        prefix: u8,
        gateway: Option<IpAddr>,
    ) -> Result<bool> {
        let mut message = message(ifindex, dst, prefix, gateway);
        message.header.scope = RouteScope::NoWhere;
        match self.socket.act("remove a route", RouteNetlinkMessage::DelRoute(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The routes of all tables and both families, but for those to the host's own addresses and to groups of receivers.
    ///
    /// # Errors
    /// [`NetlinkError`](super::NetlinkError); [`TooMany`](super::NetlinkError::TooMany) on a router with all of the internet's.
    pub fn routes(&self) -> Result<Vec<RouteState>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let message = RouteNetlinkMessage::GetRoute(message);
            routes.extend(self.socket.list("list the routes", &message, |answer| {
                // Without IPv6 in the kernel, asking for it gives what it has.
                let asked = answer.payload.first() == Some(&u8::from(family));
                asked.then(|| RouteState::parse(answer.payload)).flatten()
            })?);
        }
        Ok(routes)
    }
}

fn zero(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn message(ifindex: u32, dst: IpAddr, prefix: u8, gateway: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match dst {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: prefix,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if prefix != 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(dst)));
    }
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::from(gateway))));
    message.attributes.push(RouteAttribute::Oif(ifindex));
    message
}

impl RouteState {
    /// Reads a message of kind `RTM_NEWROUTE` or `RTM_DELROUTE`; `None` for what `routes` leaves out.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let [family, prefix, _, _, table, _, _, kind, ..] = *payload else {
            return None;
        };
        let one_receiver = [
            RouteType::Unicast,
            RouteType::BlackHole,
            RouteType::Unreachable,
            RouteType::Prohibit,
            RouteType::Throw,
        ];
        if !one_receiver.contains(&RouteType::from(kind)) {
            return None;
        }
        let mut route =
            Self { dst: unspecified(family)?, prefix, ifindex: None, gateway: None, table: u32::from(table) };
        for (kind, value) in attributes(payload.get(HEADER..)?) {
            match kind {
                libc::RTA_DST => route.dst = ip(value)?,
                libc::RTA_OIF => route.ifindex = u32_of(value),
                libc::RTA_GATEWAY => route.gateway = ip(value),
                libc::RTA_TABLE => route.table = u32_of(value)?,
                _ => (),
            }
        }
        Some(route)
    }
}
