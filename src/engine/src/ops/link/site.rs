//! The bridge that a link is to be on: its device, its networks, and who has which number in them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use cgrant_policy::{ACCOUNT_BRIDGE, BridgeConfig, DEFAULT_BRIDGE, FIRST_HOST, HostUid};
use cgrant_wire::{
    Address, Refusal, RefusalCode,
    net::{Bridge, BridgeKind, Order, Reply},
};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    addresses::{
        Networks, names,
        secret::{address4, address6},
    },
    engine::Engine,
    ops::check,
};

/// Host number of the bridge itself.
const GATEWAY: u32 = 1;
/// Host number of the bridge's name server.
const SERVER: u32 = 2;
/// Numbers of a network without IPv4, where nothing else bounds them.
const MANY: u32 = 65_535;
/// Most links on a bridge: a bridge has 1,023 ports (`BR_MAX_PORTS` of `net/bridge/br_private.h`, less one), and a name
/// server has one of them.
pub const MAX_ON_BRIDGE: usize = 1022;

/// A bridge, as a link on it has to know it.
#[derive(Debug, Clone)]
pub struct Site {
    /// For the helper.
    pub bridge: Bridge,
    /// Its networks.
    pub networks: Networks,
    /// The host numbers that links may have.
    pub span: RangeInclusive<u32>,
    /// Those of them that others have.
    pub excluded: Vec<u32>,
    /// Addresses on it that others have.
    pub others: Vec<IpAddr>,
    /// Where packets for elsewhere go, IPv4.
    pub gateway4: Option<Ipv4Addr>,
    /// Where packets for elsewhere go, IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Servers that know names.
    pub dns: Vec<IpAddr>,
    /// Is it one of the broker's own?
    pub managed: bool,
    /// May links use any address?
    pub any_address: bool,
}

impl Site {
    /// What says whether a link fits it.
    pub fn outline(&self) -> Outline {
        Outline { managed: self.managed, mtu: self.bridge.mtu, networks: Some(self.networks) }
    }
}

/// What says whether a link fits a bridge.
#[derive(Debug, Clone, Copy)]
pub struct Outline {
    /// Is it one of the broker's own?
    pub managed: bool,
    /// Most bytes of a packet on one of the broker's own.
    pub mtu: u32,
    /// Its networks; `None` where they are found only when there is to be a link.
    pub networks: Option<Networks>,
}

/// What can be said of the bridge of this name without looking at the network.
///
/// # Errors
/// [`RefusalCode::NoSuchBridge`].
pub fn outline(engine: &Engine, name: &str) -> Result<Outline, Refusal> {
    match engine.network.config.bridges.named(name) {
        Some(bridge) if !bridge.managed => Ok(foreign(bridge, Vec::new()).outline()),
        None if ![DEFAULT_BRIDGE, ACCOUNT_BRIDGE].contains(&name) => Err(unknown(name)),
        _ => Ok(Outline { managed: true, mtu: engine.network.config.mtu.bytes(), networks: None }),
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NoSuchBridge,
        format!("policy lets you use a bridge {name:?}, but cgrantd.toml has none of this name"),
    )
    .hint("the administrator can add it as [[network.bridge]]")
}

/// What a bridge is called where the helper and the records speak of it: an account's own has a name of its own, which no
/// bridge of the configuration can have.
pub fn key(name: &str, account: HostUid) -> String {
    if name == ACCOUNT_BRIDGE { format!("{ACCOUNT_BRIDGE}.{account}") } else { name.to_owned() }
}

/// The name that callers know the bridge by.
pub fn told(key: &str) -> &str {
    match key.split_once('.') {
        Some((ACCOUNT_BRIDGE, _)) => ACCOUNT_BRIDGE,
        _ => key,
    }
}

/// A network as it is told and sent.
pub fn network4(net: Ipv4Net) -> Address<Ipv4Addr> {
    Address { address: net.network(), prefix: net.prefix_len() }
}

/// A network as it is told and sent.
pub fn network6(net: Ipv6Net) -> Address<Ipv6Addr> {
    Address { address: net.network(), prefix: net.prefix_len() }
}

fn any<A: Into<IpAddr>>(network: Address<A>) -> Address<IpAddr> {
    Address { address: network.address.into(), prefix: network.prefix }
}

/// The device of one of the broker's own bridges.
pub fn device(engine: &Engine, name: &str, account: HostUid) -> String {
    match name {
        ACCOUNT_BRIDGE => names::account_bridge(&engine.instance, account.0),
        name => names::own_bridge(&engine.instance, name),
    }
}

/// The bridge of this name. The lock of [`crate::net::Network::finding`] is held, until an address on it has been given.
///
/// # Errors
/// [`RefusalCode::NoSuchBridge`]; those of [`find_networks`].
pub fn site(engine: &Engine, name: &str, account: HostUid) -> Result<Site, Refusal> {
    match engine.network.config.bridges.named(name) {
        Some(bridge) if !bridge.managed => Ok(foreign(bridge, host_addresses(engine, bridge)?)),
        Some(_) => own(engine, name, account),
        None if [DEFAULT_BRIDGE, ACCOUNT_BRIDGE].contains(&name) => own(engine, name, account),
        None => Err(unknown(name)),
    }
}

fn own(engine: &Engine, name: &str, account: HostUid) -> Result<Site, Refusal> {
    let key = key(name, account);
    let networks = if engine.network.addresses.in_use(&key) == 0 {
        find_networks(engine, &key)?
    } else {
        engine.network.addresses.networks(&key)
    };
    let at4 = |number| networks.subnet4.map(|net| address4(net, number));
    let at6 = |number| networks.subnet6.map(|net| address6(net, number));
    let (gateway4, gateway6, server4, server6) = (at4(GATEWAY), at6(GATEWAY), at4(SERVER), at6(SERVER));
    let with4 = |address| networks.subnet4.map(|net| Address { address, prefix: net.prefix_len() });
    let with6 = |address| networks.subnet6.map(|net| Address { address, prefix: net.prefix_len() });
    let kind = BridgeKind::Own {
        gateway4: gateway4.and_then(with4),
        gateway6: gateway6.and_then(with6),
        server4,
        server6,
    };
    let bridge = Bridge {
        name: key,
        device: device(engine, name, account),
        kind,
        mtu: engine.network.config.mtu.bytes(),
    };
    let dns = server4.map(IpAddr::V4).into_iter().chain(server6.map(IpAddr::V6)).collect();
    let span = numbers(networks.subnet4);
    let (excluded, others, managed) = (Vec::new(), Vec::new(), true);
    Ok(Site {
        bridge,
        networks,
        span,
        excluded,
        others,
        gateway4,
        gateway6,
        dns,
        managed,
        any_address: false,
    })
}

/// The host's own addresses, where links get any.
///
/// An attacker wants to be the host, for everybody on the administrator's bridge: by choosing its address there, or by chance.
fn host_addresses(engine: &Engine, config: &BridgeConfig) -> Result<Vec<IpAddr>, Refusal> {
    if config.subnet4.is_none() && config.subnet6.is_none() {
        return Ok(Vec::new());
    }
    match engine.network.helper.ask(Order::ListAddresses)? {
        Reply::Addresses(addresses) => Ok(addresses),
        _ => Err(check::internal("the network helper did not name the host's addresses")),
    }
}

fn foreign(config: &BridgeConfig, host: Vec<IpAddr>) -> Site {
    let subnet4 = config.subnet4.map(|net| net.0);
    let networks = Networks { subnet4, subnet6: config.subnet6.map(|net| net.0) };
    let number =
        |net: Ipv4Net, address: Ipv4Addr| u32::from(address).saturating_sub(u32::from(net.network()));
    let span = match (subnet4, config.range4) {
        (Some(net), Some(range)) => number(net, range.first)..=number(net, range.last),
        (net, _) => numbers(net),
    };
    let mut others = host;
    others.extend(config.gateway4.map(IpAddr::V4));
    others.extend(config.gateway6.map(IpAddr::V6));
    others.extend(&config.dns);
    // A number stands for an address of each family: what others have in either is nobody's.
    let number_of = |address: &IpAddr| match address {
        IpAddr::V4(address) => subnet4.filter(|net| net.contains(address)).map(|net| number(net, *address)),
        IpAddr::V6(address) => networks.subnet6.and_then(|net| number6(net, *address)),
    };
    let excluded = others.iter().filter_map(number_of).collect();
    let device = config.device.as_ref().map_or("", |device| device.as_str()).to_owned();
    Site {
        bridge: Bridge { name: config.name.as_str().to_owned(), device, kind: BridgeKind::Foreign, mtu: 0 },
        networks,
        span,
        excluded,
        others,
        gateway4: config.gateway4,
        gateway6: config.gateway6,
        dns: config.dns.clone(),
        managed: false,
        any_address: config.unfiltered,
    }
}

/// The number of an address in a network of 64 bits, if it has one.
fn number6(net: Ipv6Net, address: Ipv6Addr) -> Option<u32> {
    let low = u128::from(address).checked_sub(u128::from(net.network()))?;
    u32::try_from(low).ok()
}

/// Those after the broker's own, without the last, which is all of them at once (broadcast).
fn numbers(net: Option<Ipv4Net>) -> RangeInclusive<u32> {
    let size = |net: Ipv4Net| 1_u32.checked_shl(u32::from(32 - net.prefix_len())).unwrap_or(u32::MAX);
    let last = net.map_or(MANY, |net| size(net).saturating_sub(2));
    // A network of fewer than 16 addresses has no room for the broker's own.
    FIRST_HOST.min(last / 4 + 1)..=last
}

/// Networks for one of the broker's own bridges that has no link yet: those that it had last, if nothing of the machine's is
/// in them by now, or others.
fn find_networks(engine: &Engine, key: &str) -> Result<Networks, Refusal> {
    let (network, before) = (&engine.network, engine.network.addresses.networks(key));
    let pools: Vec<_> = network.config.pools4.iter().map(|pool| network4(pool.0)).collect();
    let mut pool6: Vec<_> = before.subnet6.map(network6).into_iter().collect();
    for candidate in network.addresses.secret().networks6(network.config.pool6, key) {
        if !pool6.contains(&candidate) {
            pool6.push(candidate);
        }
    }
    let prefix4 = network.config.prefix4.bits();
    let wanted = before.subnet4.filter(|net| {
        net.prefix_len() == prefix4 && network.config.pools4.iter().any(|pool| pool.0.contains(net))
    });
    let mut found = Networks::default();
    if let Some(net) = wanted {
        found = ask(engine, key, vec![network4(net)], prefix4, pool6.clone())?;
    }
    if found.subnet4.is_none() {
        found = ask(engine, key, pools, prefix4, pool6)?;
    }
    if found.subnet4.is_none() && found.subnet6.is_none() {
        return Err(Refusal::new(
            RefusalCode::AddressInUse,
            "every network that the broker may use clashes with one of this machine's",
        )
        .hint("the administrator can name others as pools4 and pool6 in [network] of cgrantd.toml"));
    }
    network.addresses.set_networks(key, found).map_err(|error| {
        Refusal::new(
            RefusalCode::RecordUnwritable,
            format!("the broker can't note a bridge's network: {error}"),
        )
        .hint("the administrator should look whether the disk of the state directory is full or read-only")
    })?;
    network.helper.clash_is_over(key);
    Ok(found)
}

fn ask(
    engine: &Engine,
    key: &str,
    pools4: Vec<Address<Ipv4Addr>>,
    prefix4: u8,
    pool6: Vec<Address<Ipv6Addr>>,
) -> Result<Networks, Refusal> {
    let own = engine.network.addresses.other_networks(key);
    let configured = engine.network.config.bridges.all().iter().map(|bridge| Networks {
        subnet4: bridge.subnet4.map(|net| net.0),
        subnet6: bridge.subnet6.map(|net| net.0),
    });
    let taken = own
        .into_iter()
        .chain(configured)
        .flat_map(|networks| {
            let four = networks.subnet4.map(|net| any(network4(net)));
            four.into_iter().chain(networks.subnet6.map(|net| any(network6(net))))
        })
        .collect();
    match engine.network.helper.ask(Order::FindSubnets { pools4, prefix4, pool6, taken })? {
        Reply::Subnets { subnet4, subnet6 } => Ok(Networks {
            subnet4: subnet4.and_then(|net| Ipv4Net::new(net.address, net.prefix).ok()),
            subnet6: subnet6.and_then(|net| Ipv6Net::new(net.address, net.prefix).ok()),
        }),
        _ => Err(check::internal("the network helper did not name networks")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_accounts_bridge_has_a_name_of_its_own() {
        assert_eq!(key("default", HostUid(1000)), "default");
        assert_eq!(key("account", HostUid(1000)), "account.1000");
        assert_eq!(told(&key("account", HostUid(1000))), "account");
        assert_eq!(told("lan"), "lan");
    }

    #[test]
    fn numbers_leave_room_for_the_brokers_own_and_broadcast() {
        assert_eq!(numbers(Some("10.0.0.0/22".parse().unwrap())), 16..=1022);
        assert_eq!(numbers(Some("10.0.0.0/29".parse().unwrap())), 2..=6);
        assert_eq!(numbers(Some("10.0.0.0/8".parse().unwrap())), 16..=0xff_fffe);
        assert_eq!(numbers(None), 16..=MANY);
    }

    #[test]
    fn an_administrators_bridge_gives_what_its_table_says() {
        let text = "[[network.bridge]]\nname = \"lan\"\ndevice = \"br0\"\nsubnet4 = \"192.168.1.0/24\"\nrange4 = \"192.168.1.100-192.168.1.110\"\ngateway4 = \"192.168.1.105\"\ndns = [\"192.168.1.106\", \"::1\", \"fd00::6c\"]\nsubnet6 = \"fd00::/64\"\ngateway6 = \"fd00::6b\"\n";
        let config = cgrant_policy::Config::parse("x", text).unwrap();
        let host = ["192.168.1.103", "10.0.0.1", "fd00::68"].map(|address| address.parse().unwrap());
        let mut site = foreign(&config.network.bridges.all()[0], host.into());
        site.excluded.sort_unstable();
        assert_eq!((site.span, site.excluded), (100..=110, vec![103, 104, 105, 106, 107, 108]));
        assert_eq!(site.bridge.kind, BridgeKind::Foreign);
        assert!(!site.any_address && !site.managed);
    }
}
