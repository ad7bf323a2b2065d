//! The bridge of a container: its device and its networks.
//!
//! May touch the device of that name, its addresses and its settings.

use std::{io, net::IpAddr};

use cgrant_sys::{
    netlink::{LinkState, Route},
    process::random_u64,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{InnerError, kernel, rules, subnet};

/// Name of the device. It is no name of a bridge that a broker makes in its own network namespace.
pub const BRIDGE: &str = "cgrant-inner";
/// By which it is known again.
const ALIAS: &str = "cgrant inner";
/// Largest packet where no way leads out, in bytes.
const USUAL_MTU: u32 = 1500;
/// Whom the containers ask for the way out.
const GATEWAY: u16 = 1;
/// Neighbour discovery needs a link-local address to ask from.
const LINK_LOCAL: (IpAddr, u8) = (IpAddr::V6(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64);

/// The bridge as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bridge {
    pub(super) index: u32,
    pub(super) mtu: u32,
    /// Its own address in its network.
    pub(super) own4: Ipv4Net,
    /// `None` where there is no IPv6.
    pub(super) own6: Option<Ipv6Net>,
}

impl Bridge {
    /// Its networks, with the lengths of their prefixes.
    pub(super) fn networks(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        let six = self.own6.map(|own| (own.network().into(), own.prefix_len()));
        std::iter::once((self.own4.network().into(), self.own4.prefix_len())).chain(six)
    }
}

/// The bridge, made if need be. What an earlier process did not finish is finished.
pub(super) fn ensure(route: &Route) -> Result<Bridge, InnerError> {
    let (index, mtu) = device(route)?;
    let own: Vec<IpNet> = addresses(route, |of| of == index)?;
    let four = own.iter().find_map(|own| if let IpNet::V4(four) = own { Some(*four) } else { None });
    let six = own.iter().find_map(|own| match own {
        IpNet::V6(six) if !six.addr().is_unicast_link_local() => Some(*six),
        _ => None,
    });
    let own4 = match four {
        Some(own4) => own4,
        None => {
            let own4 = subnet::address4(free(route)?, GATEWAY);
            route.add_address(index, own4.addr().into(), own4.prefix_len(), true)?;
            own4
        }
    };
    let own6 = match six {
        Some(own6) => Some(own6),
        None => add6(route, index)?,
    };
    route.set_up(index, true)?;
    Ok(Bridge { index, mtu, own4, own6 })
}

/// Its index and its largest packet.
fn device(route: &Route) -> Result<(u32, u32), InnerError> {
    let is_bridge = |device: &LinkState| device.kind.as_deref() == Some("bridge");
    match route.link_by_name(BRIDGE)? {
        Some(device) if is_bridge(&device) && device.alias.as_deref() == Some(ALIAS) => {
            return Ok((device.index, device.mtu));
        }
        // Whoever made it was killed before it had its alias.
        Some(device) if is_bridge(&device) && device.alias.is_none() && !device.up => {
            route.delete_link(device.index)?;
        }
        Some(_) => return Err(InnerError::ForeignDevice),
        None => {}
    }
    let mtu = mtu_of_the_way_out(route)?;
    let [_, chance @ .., _, _] = chance()?;
    let [a, b, c, d, e] = chance;
    let index = route.add_bridge(BRIDGE, ALIAS, [0x02, a, b, c, d, e], mtu, false)?;
    // What was set by hand does not follow the smallest port's.
    route.set_mtu(index, mtu)?;
    rules::quieten(BRIDGE);
    Ok((index, mtu))
}

/// A packet that fits into a container fits through the one around it.
fn mtu_of_the_way_out(route: &Route) -> Result<u32, InnerError> {
    let out = route.routes()?.into_iter().filter(|way| way.prefix == 0).find_map(|way| way.ifindex);
    let device = out.map(|index| route.link(index)).transpose()?.flatten();
    Ok(device.map_or(USUAL_MTU, |device| device.mtu.min(65_535)))
}

/// A network that nothing here has or leads to.
fn free(route: &Route) -> Result<Ipv4Net, InnerError> {
    let ways = route.routes()?;
    let ways =
        ways.iter().filter(|way| way.prefix > 0).filter_map(|way| IpNet::new(way.dst, way.prefix).ok());
    let four = |network: IpNet| if let IpNet::V4(four) = network { Some(four.trunc()) } else { None };
    let used: Vec<Ipv4Net> = ways.chain(addresses(route, |_| true)?).filter_map(four).collect();
    subnet::choose(&used).ok_or(InnerError::NoNetwork)
}

fn addresses(route: &Route, is_one: impl Fn(u32) -> bool) -> Result<Vec<IpNet>, InnerError> {
    let all = route.addresses()?.into_iter().filter(|own| is_one(own.ifindex));
    Ok(all.filter_map(|own| IpNet::new(own.address, own.prefix).ok()).collect())
}

/// Its IPv6 network; `None` where the kernel has no IPv6, or the container none.
fn add6(route: &Route, index: u32) -> Result<Option<Ipv6Net>, InnerError> {
    let [_, chance @ ..] = chance()?;
    let own6 = subnet::address6(subnet::unique_local(chance), GATEWAY);
    for (address, prefix) in [LINK_LOCAL, (own6.addr().into(), own6.prefix_len())] {
        match route.add_address(index, address, prefix, true) {
            Err(error) if error.is_without_ipv6() => return Ok(None),
            Err(error) if error.is(nix::libc::EEXIST) => {}
            added => added?,
        }
    }
    Ok(Some(own6))
}

fn chance() -> Result<[u8; subnet::CHANCE + 1], InnerError> {
    let random: io::Result<u64> = random_u64();
    random.map(u64::to_ne_bytes).map_err(kernel("there is no randomness"))
}
