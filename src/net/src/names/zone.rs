//! The text of a name server's files. Pure: what is made of numbers, addresses and labels can say nothing else.
//!
//! What an attacker could want: to have his container answer to somebody else's name, or to write lines of his own into a
//! file. Every name is a label made anew ([`super::label`]); a name belongs to the account whose container had it
//! first, and the server ignores names that DHCP clients claim. Source: `dnsmasq(8)`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cgrant_wire::net::{Bridge, BridgeKind, Link};

use super::label;

/// Name of the device in the name server's namespace.
pub const DEVICE: &str = "eth0";
/// How long an address is leased: it stays the same for ever, but who is gone should not use it for ever.
const LEASE: &str = "1h";
/// Most leases: a bridge has 1,023 ports, each with two addresses.
const MOST_LEASES: u32 = 4096;

/// The configuration of the name server of an own bridge, whose files it sees in `place`.
pub fn configuration(bridge: &Bridge, domain: &str, place: &str) -> String {
    let mut text = String::from("# Written by cgrant-net; changes are lost.\n");
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    for fixed in [
        "except-interface=lo",
        "no-hosts",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        // Only those that we know, under the names that we know.
        "dhcp-ignore=tag:!known",
        "dhcp-ignore-names",
        "quiet-dhcp",
        "quiet-dhcp6",
        "log-facility=/dev/null",
        "pid-file=",
        "cache-size=1000",
    ] {
        line(fixed.into());
    }
    line(format!("interface={DEVICE}"));
    line(format!("addn-hosts={place}/{}", super::HOSTS));
    line(format!("dhcp-hostsfile={place}/{}", super::DHCP_HOSTS));
    line(format!("resolv-file={place}/{}", super::RESOLV));
    // Not as the server's own domain: it would let the names of its leases be found in it for as long as they last,
    // and the container may be gone.
    line(format!("dhcp-option=option:domain-name,{domain}"));
    line(format!("local=/{domain}/"));
    line(format!("dhcp-lease-max={MOST_LEASES}"));
    let BridgeKind::Own { gateway4, gateway6, server4, server6 } = &bridge.kind else { return text };
    if let Some(gateway) = gateway4 {
        let mask = Ipv4Addr::from(mask4(gateway.prefix));
        let network = Ipv4Addr::from(gateway.address.to_bits() & mask4(gateway.prefix));
        line(format!("dhcp-range={network},static,{mask},{LEASE}"));
        line(format!("dhcp-option=option:router,{}", gateway.address));
        line(format!("dhcp-option=option:mtu,{}", bridge.mtu));
        zones4(network, gateway.prefix).into_iter().for_each(|zone| line(format!("local=/{zone}/")));
    }
    if let Some(server) = server4 {
        line(format!("dhcp-option=option:dns-server,{server}"));
    }
    if let Some(gateway) = gateway6 {
        let mask = u128::MAX.checked_shl(128_u32.saturating_sub(gateway.prefix.into())).unwrap_or(0);
        let network = Ipv6Addr::from(gateway.address.to_bits() & mask);
        line(format!("dhcp-range={network},static,{},{LEASE}", gateway.prefix));
        line(format!("dhcp-option=option6:domain-search,{domain}"));
        line(format!("local=/{}/", zone6(network, gateway.prefix)));
    }
    if let Some(server) = server6 {
        line(format!("dhcp-option=option6:dns-server,[{server}]"));
    }
    text
}

fn mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0)
}

/// Most zones of one network: a longer list than a /16 needs says less than it costs.
const MOST_ZONES: u32 = 256;

/// The reverse zones of an IPv4 network: those of its whole bytes, as many as it takes.
fn zones4(network: Ipv4Addr, prefix: u8) -> Vec<String> {
    let bytes = prefix.div_ceil(8).clamp(1, 3);
    let [a, b, c, _] = network.octets();
    let count = 1_u32.checked_shl(u32::from(bytes.saturating_mul(8).saturating_sub(prefix))).unwrap_or(0);
    (0..count.min(MOST_ZONES))
        .filter_map(|number| u8::try_from(number).ok())
        .map(|number| match bytes {
            1 => format!("{}.in-addr.arpa", a.wrapping_add(number)),
            2 => format!("{}.{a}.in-addr.arpa", b.wrapping_add(number)),
            _ => format!("{}.{b}.{a}.in-addr.arpa", c.wrapping_add(number)),
        })
        .collect()
}

/// The reverse zone of the whole hexadecimal digits of an IPv6 network.
fn zone6(network: Ipv6Addr, prefix: u8) -> String {
    let digits = format!("{:032x}", network.to_bits());
    let count = usize::from(prefix / 4);
    let mut zone = String::new();
    for digit in digits.chars().take(count).collect::<Vec<_>>().into_iter().rev() {
        zone.push(digit);
        zone.push('.');
    }
    zone + "ip6.arpa"
}

/// The links in the order in which they were made: an older one's names are its own.
fn oldest_first<'a>(links: impl IntoIterator<Item = &'a Link>) -> Vec<&'a Link> {
    let mut links: Vec<&Link> = links.into_iter().collect();
    links.sort_by(|one, other| (one.info.ifindex, &one.key).cmp(&(other.info.ifindex, &other.key)));
    links
}

/// The links, oldest first, each with those of its names that are its account's.
fn owned_names<'a>(links: impl IntoIterator<Item = &'a Link>) -> Vec<(&'a Link, Vec<String>)> {
    let mut owners: BTreeMap<String, u32> = BTreeMap::new();
    let mut owned = Vec::new();
    for link in oldest_first(links) {
        let mut names: Vec<String> = Vec::new();
        for name in link.names.iter().filter_map(|name| label::name(name)) {
            let owner = *owners.entry(name.clone()).or_insert(link.account);
            if owner == link.account && !names.contains(&name) {
                names.push(name);
            }
        }
        owned.push((link, names));
    }
    owned
}

/// Addresses and the names that lead to them; the first name of an address is the way back.
pub fn hosts<'a>(links: impl IntoIterator<Item = &'a Link>, domain: &str) -> String {
    let mut text = String::new();
    for (link, names) in owned_names(links) {
        for address in addresses(link).filter(|_| !names.is_empty()) {
            text.push_str(&address.to_string());
            for name in &names {
                // Writing to a string can't fail.
                let _ = write!(text, " {name}.{domain}");
            }
            text.push('\n');
        }
    }
    text
}

/// Whose request gets which addresses; without a name, which would be found for as long as the lease lasts.
pub fn dhcp_hosts<'a>(links: impl IntoIterator<Item = &'a Link>) -> String {
    let mut text = String::new();
    for link in oldest_first(links) {
        text.push_str(&link.info.mac.to_string());
        for address in addresses(link) {
            let _ = match address {
                IpAddr::V4(address) => write!(text, ",{address}"),
                IpAddr::V6(address) => write!(text, ",[{address}]"),
            };
        }
        let _ = writeln!(text, ",{LEASE}");
    }
    text
}

fn addresses(link: &Link) -> impl Iterator<Item = IpAddr> {
    let four = link.info.address4.map(|address| IpAddr::V4(address.address));
    let six = link.info.address6.map(|address| IpAddr::V6(address.address));
    four.into_iter().chain(six)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use cgrant_wire::{Address, GrantId, LinkInfo, LinkKind, Mac, net::LinkKey};

    use super::*;

    fn link(ifindex: u32, account: u32, names: &[&str]) -> Link {
        let host = u8::try_from(ifindex).unwrap();
        Link {
            key: LinkKey { grant: GrantId(ifindex.into()), name: "eth0".into() },
            account,
            host_name: names[0].into(),
            names: names.iter().map(ToString::to_string).collect(),
            info: LinkInfo {
                name: "eth0".into(),
                kind: LinkKind::Veth,
                bridge: "default".into(),
                host_name: format!("cgv{ifindex}"),
                ifindex,
                mac: Mac([2, 0, 0, 0, 0, host]),
                address4: Some(Address { address: [10, 9, 8, host].into(), prefix: 22 }),
                address6: Some(Address {
                    address: [0xfd00, 1, 2, 3, 0, 0, 0, host.into()].into(),
                    prefix: 64,
                }),
                gateway4: None,
                gateway6: None,
                dns: Vec::new(),
                mtu: 1500,
                queue_length: 0,
                upload: 0,
                download: 0,
                vlan: 0,
                ports: Vec::new(),
            },
            configure: true,
            open: false,
            any_address: false,
        }
    }

    #[test]
    fn names_lead_to_addresses() {
        let links = [link(7, 1000, &["My_Web", "my-web.u1000"]), link(5, 1000, &["db"])];
        assert_eq!(
            hosts(&links, "cgrant"),
            "10.9.8.5 db.cgrant\nfd00:1:2:3::5 db.cgrant\n\
             10.9.8.7 my-web.cgrant my-web.u1000.cgrant\nfd00:1:2:3::7 my-web.cgrant my-web.u1000.cgrant\n"
        );
        assert_eq!(
            dhcp_hosts(&links),
            "02:00:00:00:00:05,10.9.8.5,[fd00:1:2:3::5],1h\n\
             02:00:00:00:00:07,10.9.8.7,[fd00:1:2:3::7],1h\n"
        );
    }

    #[test]
    fn a_name_belongs_to_the_account_that_had_it_first() {
        let links =
            [link(9, 1001, &["DB", "db.u1001"]), link(5, 1000, &["db"]), link(11, 1000, &["d_b", "db"])];
        let text = hosts(&links, "cgrant");
        assert!(!text.lines().any(|line| line.starts_with("10.9.8.9 db.cgrant")), "{text}");
        assert!(text.contains("10.9.8.9 db.u1001.cgrant\n"), "{text}");
        assert!(text.contains("10.9.8.11 d-b.cgrant db.cgrant\n"), "{text}");
    }

    #[test]
    fn a_name_that_is_none_makes_no_line() {
        let mut evil = link(3, 1000, &["a\n10.0.0.1 b"]);
        evil.host_name = "x,set:known".into();
        assert_eq!(hosts([&evil], "cgrant"), "");
        assert_eq!(dhcp_hosts([&evil]), "02:00:00:00:00:03,10.9.8.3,[fd00:1:2:3::3],1h\n");
    }

    #[test]
    fn reverse_zones_are_those_of_the_network_alone() {
        assert_eq!(
            zones4([10, 9, 8, 0].into(), 22),
            [8, 9, 10, 11].map(|c| format!("{c}.9.10.in-addr.arpa"))
        );
        assert_eq!(zones4([10, 9, 8, 0].into(), 24), ["8.9.10.in-addr.arpa"]);
        assert_eq!(zones4([10, 9, 8, 128].into(), 25), ["8.9.10.in-addr.arpa"]);
        assert_eq!(zones4([172, 16, 0, 0].into(), 12).len(), 16);
        assert_eq!(zones4([10, 0, 0, 0].into(), 8), ["10.in-addr.arpa"]);
        assert_eq!(
            zone6("fd12:3456:789a:bcde::".parse().unwrap(), 64),
            "e.d.c.b.a.9.8.7.6.5.4.3.2.1.d.f.ip6.arpa"
        );
    }
}
