//! One link: a port of the bridge, the device in the container, their addresses.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use cgrant_sys::{
    NetnsFd,
    netlink::{LinkState, NewVeth, PortFlags, Route},
    process::random_u64,
};

use super::{InnerError, InnerLink, InnerWish, bridge::Bridge, kernel, subnet};

/// Name of the device in the container.
const NAME: &str = "eth0";
/// What the names of ports begin with.
const PORTS: &str = "cgi";
/// Numbers of addresses: the first is the bridge's, the last the broadcast's.
const FIRST: u16 = 2;
const LAST: u16 = 1022;

/// The bridge knows where each address is and learns nothing, so that nobody draws another's packets to himself by
/// having his address.
const PORT: PortFlags = PortFlags {
    learning: false,
    hairpin: false,
    isolated: false,
    neigh_suppress: false,
    unicast_flood: false,
    multicast_flood: true,
    broadcast_flood: true,
};

/// Makes it, or nothing.
pub(super) fn make(
    route: &Route,
    bridge: &Bridge,
    netns: &NetnsFd,
    wish: &InnerWish<'_>,
) -> Result<InnerLink, InnerError> {
    let number = number(route, wish.container)?;
    let link = InnerLink {
        container: wish.container.to_owned(),
        name: NAME,
        address4: subnet::address4(bridge.own4, number),
        address6: bridge.own6.map(|own| subnet::address6(own, number)),
    };
    let [a, b, c, d] = link.address4.addr().octets();
    let mac = [0x02, b'i', a, b, c, d];
    let index = route.add_veth(&NewVeth {
        name: &format!("{PORTS}{number}"),
        alias: &alias(&link),
        // A smaller one of a port would be that of all packets of the bridge's own.
        mtu: bridge.mtu,
        queue_length: wish.queue_length.unwrap_or(0),
        master: Some(bridge.index),
        peer_name: NAME,
        peer_mac: mac,
        peer_netns: netns,
    })?;
    let mtu = wish.mtu.filter(|mtu| *mtu < bridge.mtu);
    let done =
        set_port(route, index, mac).and_then(|()| set_far_end(route, bridge, netns, index, mtu, &link));
    match done.and_then(|()| Ok(route.set_up(index, true)?)) {
        Ok(()) => Ok(link),
        Err(error) => {
            // Why it failed is what matters.
            let _ = route.delete_link(index);
            Err(error)
        }
    }
}

/// A number that no port has, for a container always the same if that can be. A link that one of this name had before, whose
/// namespace the kernel has not taken apart yet, is removed.
fn number(route: &Route, container: &str) -> Result<u16, InnerError> {
    let mut taken = BTreeSet::new();
    for device in route.links()? {
        let Some(number) = device.name.strip_prefix(PORTS).and_then(|text| text.parse::<u16>().ok()) else {
            continue;
        };
        let before =
            of_device(&device).is_some_and(|link| !container.is_empty() && link.container == container);
        if !before || !route.delete_link(device.index)? {
            taken.insert(number);
        }
    }
    let mut hasher = DefaultHasher::new();
    match container {
        "" => random_u64().map_err(kernel("there is no randomness"))?.hash(&mut hasher),
        container => container.hash(&mut hasher),
    }
    let count = LAST - FIRST + 1;
    let begin = u16::try_from(hasher.finish() % u64::from(count)).unwrap_or(0);
    let mut all = (begin..count).chain(0..begin).map(|step| FIRST + step);
    all.find(|number| !taken.contains(number)).ok_or(InnerError::Full)
}

fn set_port(route: &Route, index: u32, mac: [u8; 6]) -> Result<(), InnerError> {
    route.set_port(index, &PORT)?;
    Ok(route.add_fdb(index, mac, None)?)
}

/// Addresses and routes in the container, of which nothing runs yet.
fn set_far_end(
    route: &Route,
    bridge: &Bridge,
    netns: &NetnsFd,
    index: u32,
    mtu: Option<u32>,
    link: &InnerLink,
) -> Result<(), InnerError> {
    let near = route.link(index)?.and_then(|near| near.peer_index);
    let there = Route::open_in(netns).map_err(kernel("the container's network can't be set"))?;
    let Some(far) = near else {
        return Err(kernel("the container's device is lost")(std::io::ErrorKind::NotFound.into()));
    };
    if let Some(mtu) = mtu {
        there.set_mtu(far, mtu)?;
    }
    there.add_address(far, link.address4.addr().into(), link.address4.prefix_len(), true)?;
    let mut gateways = vec![IpAddr::from(bridge.own4.addr())];
    if let Some((own, gateway)) = link.address6.zip(bridge.own6) {
        match there.add_address(far, own.addr().into(), own.prefix_len(), true) {
            Err(error) if error.is_without_ipv6() => {}
            added => {
                added?;
                gateways.push(gateway.addr().into());
            }
        }
    }
    there.set_up(far, true)?;
    for gateway in gateways {
        there.add_default_route(far, gateway)?;
    }
    Ok(())
}

/// Stands where a container has no name; none has this one.
const NAMELESS: &str = "-";

/// What the port tells: whose it is, and the addresses behind it.
fn alias(link: &InnerLink) -> String {
    let container = if link.container.is_empty() { NAMELESS } else { &link.container };
    let six = link.address6.map(|network| format!(" {network}")).unwrap_or_default();
    format!("cgrant inner {container} {}{six}", link.address4)
}

/// The link whose port the device is, if it is one.
pub(super) fn of_device(device: &LinkState) -> Option<InnerLink> {
    let mut words = device.alias.as_deref()?.strip_prefix("cgrant inner ")?.split(' ');
    let container = words.next().filter(|name| *name != NAMELESS).unwrap_or_default().to_owned();
    let address4 = words.next()?.parse().ok()?;
    let address6 = words.next().map(str::parse).transpose().ok()?;
    Some(InnerLink { container, name: NAME, address4, address6 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn device(alias: &str) -> LinkState {
        LinkState {
            index: 7,
            name: "cgi9".into(),
            alias: Some(alias.into()),
            mac: None,
            mtu: 1500,
            queue_length: 0,
            up: true,
            running: true,
            master: Some(2),
            kind: Some("veth".into()),
            peer_index: None,
            port: None,
        }
    }

    #[test]
    fn a_port_says_whose_it_is() {
        for (container, address6) in [("web", Some("fd00::9/64")), ("", None)] {
            let link = InnerLink {
                container: container.into(),
                name: NAME,
                address4: "100.64.0.9/22".parse().unwrap(),
                address6: address6.map(|text| text.parse().unwrap()),
            };
            assert_eq!(of_device(&device(&alias(&link))), Some(link));
        }
        for other in ["", "cgrant inner", "cgrant inner web", "cgrant inner web x", "cgrant default 01 eth0"]
        {
            assert_eq!(of_device(&device(other)), None, "{other}");
        }
    }
}
