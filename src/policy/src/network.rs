//! `[network]` of `cgrantd.toml`: where addresses come from, and which bridges there are beside the broker's own.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::diagnostic::text;

/// Name of the broker's own bridge that accounts share.
pub const DEFAULT_BRIDGE: &str = "default";
/// Stands for a bridge of the broker's own that only the caller's account is on.
pub const ACCOUNT_BRIDGE: &str = "account";
/// Host number of the first address that a container may have; those before are the broker's.
pub const FIRST_HOST: u32 = 16;
/// Smallest largest packet: what every IPv6 link must carry (RFC 8200, section 5).
pub const MIN_MTU: u32 = 1280;
/// Largest largest packet of an Ethernet device on Linux.
pub const MAX_MTU: u32 = 65_535;
/// Most bridges in the file.
const MAX_BRIDGES: usize = 64;

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// IPv4 networks that the broker's own bridges get theirs from.
    pub pools4: Vec<Net4>,
    /// Length of the prefix of an own bridge's IPv4 network.
    pub prefix4: Prefix4,
    /// The IPv6 network that own bridges get theirs of 64 bits from; a unique local one, chosen once, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool6: Option<Net6>,
    /// Largest packet on own bridges, in bytes.
    pub mtu: Mtu,
    /// Domain of the names of containers.
    pub domain: Domain,
    /// Servers that are asked for all other names.
    pub dns: Resolvers,
    /// Further bridges.
    #[serde(rename = "bridge")]
    pub bridges: Bridges,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let pool = |a, b, length| Ipv4Net::new(Ipv4Addr::new(a, b, 0, 0), length).ok().map(Net4);
        Self {
            pools4: [pool(10, 0, 8), pool(172, 16, 12)].into_iter().flatten().collect(),
            prefix4: Prefix4(22),
            pool6: None,
            mtu: Mtu(1500),
            domain: Domain("cgrant".to_owned()),
            dns: Resolvers::default(),
            bridges: Bridges::default(),
        }
    }
}

/// A bridge of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BridgeConfig {
    /// What policy and callers name it by.
    pub name: BridgeName,
    /// The device: one of the administrator's, which has to be there. Absent for an own one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceName>,
    /// Is it one of the broker's own, with addresses, names and NAT?
    #[serde(default)]
    pub managed: bool,
    /// IPv4 network on an administrator's bridge. Links get addresses of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet4: Option<Net4>,
    /// The addresses of `subnet4` that links may have; all from host 16 on if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range4: Option<Range4>,
    /// Where IPv4 packets for elsewhere go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway4: Option<Ipv4Addr>,
    /// IPv6 network, with a prefix of 64 bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Net6>,
    /// Where IPv6 packets for elsewhere go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// Servers that know names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// May links use any address? Needed on a bridge without a subnet, where others give the addresses.
    #[serde(default)]
    pub unfiltered: bool,
}

impl BridgeConfig {
    /// What does not fit together in it, if anything.
    fn fault(&self) -> Option<&'static str> {
        let reserved = [DEFAULT_BRIDGE, ACCOUNT_BRIDGE].contains(&self.name.as_str());
        let given = self.subnet4.is_some()
            || self.range4.is_some()
            || self.gateway4.is_some()
            || self.subnet6.is_some()
            || self.gateway6.is_some()
            || !self.dns.is_empty()
            || self.unfiltered;
        if reserved {
            return Some("the names `default` and `account` are those of the broker's own bridges");
        }
        if self.managed {
            return match (&self.device, given) {
                (Some(_), _) => Some("a managed bridge is made by the broker, which names the device itself"),
                (None, true) => Some("a managed bridge gets its network from pools4 and pool6"),
                (None, false) => None,
            };
        }
        if self.device.is_none() {
            return Some("say the bridge's `device`, or `managed = true` for one that the broker makes");
        }
        if self.subnet4.is_none() && self.subnet6.is_none() && !self.unfiltered {
            return Some(
                "without subnet4 or subnet6 links have no addresses that could be filtered; say `unfiltered = true` to let them use any",
            );
        }
        self.address_fault()
    }

    fn address_fault(&self) -> Option<&'static str> {
        let inside4 = |address: Ipv4Addr| self.subnet4.is_some_and(|net| net.0.contains(&address));
        if self.gateway4.is_some_and(|gateway| !inside4(gateway)) {
            return Some("gateway4 is not in subnet4");
        }
        if self.range4.is_some_and(|range| !inside4(range.first) || !inside4(range.last)) {
            return Some("range4 is not in subnet4");
        }
        if self.subnet4.is_some_and(|net| !(8..=29).contains(&net.0.prefix_len())) {
            return Some("subnet4 needs a prefix of 8 to 29 bits");
        }
        if self.subnet6.is_some_and(|net| net.0.prefix_len() != 64) {
            return Some("subnet6 needs a prefix of 64 bits");
        }
        let inside6 = |address: Ipv6Addr| self.subnet6.is_some_and(|net| net.0.contains(&address));
        let link_local = |address: Ipv6Addr| address.segments()[0] & 0xffc0 == 0xfe80;
        if self.gateway6.is_some_and(|gateway| !inside6(gateway) && !link_local(gateway)) {
            return Some("gateway6 is neither in subnet6 nor link-local");
        }
        None
    }
}

/// The bridges of the file, each of another name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bridges(Vec<BridgeConfig>);

impl Bridges {
    /// All of them, in the order of the file.
    pub fn all(&self) -> &[BridgeConfig] {
        &self.0
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<&BridgeConfig> {
        self.0.iter().find(|bridge| bridge.name.as_str() == name)
    }
}

impl<'de> Deserialize<'de> for Bridges {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Bridges;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[[network.bridge]] tables")
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Bridges, A::Error> {
                let mut bridges: Vec<BridgeConfig> = Vec::new();
                while let Some(bridge) = list.next_element::<BridgeConfig>()? {
                    if let Some(fault) = bridge.fault() {
                        return Err(de::Error::custom(fault));
                    }
                    if bridges.iter().any(|known| known.name == bridge.name) {
                        return Err(de::Error::custom("two bridges have this name"));
                    }
                    if bridge.device.is_some() && bridges.iter().any(|known| known.device == bridge.device) {
                        return Err(de::Error::custom("two bridges have this device"));
                    }
                    bridges.push(bridge);
                    if bridges.len() > MAX_BRIDGES {
                        return Err(de::Error::custom(format!("more than {MAX_BRIDGES} bridges")));
                    }
                }
                Ok(Bridges(bridges))
            }
        }
        from.deserialize_seq(Visitor)
    }
}

macro_rules! textual {
    ($(#[$doc:meta])* $name:ident($inner:ty), $expected:literal, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub(crate) $inner);

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                text(from, $expected, str::parse)
            }
        }
    };
}

textual! {
    /// What policy and callers name a bridge by.
    BridgeName(String), "the name of a bridge", |text| {
        let form = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let fits = starts && text.len() <= 32 && text.bytes().all(form);
        fits.then(|| text.to_owned())
            .ok_or_else(|| "expected a name of 1 to 32 lower-case letters, digits, `-` and `_`".to_owned())
    }
}

textual! {
    /// Name of a network device.
    DeviceName(String), "the name of a network device", |text| {
        let form = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
        let fits = (1..=15).contains(&text.len()) && text.bytes().all(form) && text != "." && text != "..";
        fits.then(|| text.to_owned())
            .ok_or_else(|| "expected the name of a device, 1 to 15 characters without `/` and `:`".to_owned())
    }
}

textual! {
    /// A domain, lower-case, without a dot at either end.
    Domain(String), "a domain such as \"cgrant\"", |text| {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let fits = text.len() <= 63 && text.split('.').all(label);
        fits.then(|| text.to_owned())
            .ok_or_else(|| "expected a domain of lower-case letters, digits and `-`, at most 63 characters".to_owned())
    }
}

impl BridgeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeviceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Domain {
    /// The domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An IPv4 network, written with no bits set behind its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Net4(pub Ipv4Net);

/// An IPv6 network, likewise; as a pool with a prefix of at most 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Net6(pub Ipv6Net);

/// A network of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Net(pub IpNet);

impl Net {
    /// All addresses that there are.
    pub(crate) fn everywhere() -> Vec<Self> {
        vec![Self(IpNet::V4(Ipv4Net::default())), Self(IpNet::V6(Ipv6Net::default()))]
    }
}

macro_rules! network {
    ($name:ident, $inner:ty, $example:literal, $fits:expr) => {
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let fits: fn(&$inner) -> bool = $fits;
                let expected = || format!("expected a network such as {}", $example);
                let net: $inner = text.parse().map_err(|_| expected())?;
                if net.trunc() != net {
                    return Err(format!("the network of this prefix begins at {}", net.trunc()));
                }
                if fits(&net) { Ok(Self(net)) } else { Err(expected()) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                text(from, "a network", str::parse)
            }
        }
    };
}

network!(Net4, Ipv4Net, "10.0.0.0/8, not loopback, link-local or multicast", |net| {
    let first = net.network();
    !first.is_loopback() && !first.is_link_local() && !first.is_multicast() && !first.is_unspecified()
});
network!(Net6, Ipv6Net, "fd12:3456:789a::/48, with a prefix of 16 to 64 bits", |net| {
    let first = net.network();
    (16..=64).contains(&net.prefix_len())
        && !first.is_multicast()
        && !first.is_unspecified()
        && first.segments()[0] & 0xffc0 != 0xfe80
});
network!(Net, IpNet, "192.0.2.0/24 or 2001:db8::/32", |_| true);

/// Length of the prefix of an own bridge's IPv4 network: room for 8 to 65,536 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Prefix4(u8);

/// Largest packet, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Mtu(u32);

impl Prefix4 {
    /// The length, in bits.
    pub fn bits(self) -> u8 {
        self.0
    }
}

impl Mtu {
    /// The size, in bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }
}

fn number<'de, D, T>(
    from: D,
    bounds: std::ops::RangeInclusive<u32>,
    make: fn(u32) -> T,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct Visitor<T>(std::ops::RangeInclusive<u32>, fn(u32) -> T);
    impl<T> de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from {} to {}", self.0.start(), self.0.end())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            let known = u32::try_from(number).ok().filter(|number| self.0.contains(number));
            known.map(self.1).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
        }
    }
    from.deserialize_any(Visitor(bounds, make))
}

impl<'de> Deserialize<'de> for Prefix4 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // The bounds hold in a byte.
        number(from, 16..=27, |bits| Self(u8::try_from(bits).unwrap_or(u8::MAX)))
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        number(from, MIN_MTU..=MAX_MTU, Self)
    }
}

/// `["auto"]`, the host's own, or addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers(Vec<IpAddr>);

impl Resolvers {
    /// The addresses; none for the host's own.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0
    }
}

impl Serialize for Resolvers {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() { ["auto"].serialize(to) } else { self.0.serialize(to) }
    }
}

impl<'de> Deserialize<'de> for Resolvers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entry(Option<IpAddr>);
        impl<'de> Deserialize<'de> for Entry {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                text(from, "`auto` or an address", |text| match text {
                    "auto" => Ok(Self(None)),
                    other => other.parse().map(|address| Self(Some(address))),
                })
            }
        }
        let entries = Vec::<Entry>::deserialize(from)?;
        Ok(Self(entries.into_iter().filter_map(|entry| entry.0).take(8).collect()))
    }
}

/// `FIRST-LAST`, both IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range4 {
    /// The first.
    pub first: Ipv4Addr,
    /// The last, which belongs to it.
    pub last: Ipv4Addr,
}

impl fmt::Display for Range4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for Range4 {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range4 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "a range of addresses", str::parse)
    }
}

impl FromStr for Range4 {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |text: &str| text.trim().parse::<Ipv4Addr>().ok();
        let ends = text.split_once('-').and_then(|(first, last)| parse(first).zip(parse(last)));
        match ends {
            Some((first, last)) if first <= last => Ok(Self { first, last }),
            _ => Err("expected FIRST-LAST, as in 192.168.1.100-192.168.1.199"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn nothing_written_is_the_default() {
        let config = Config::parse("x", "[network]\n").unwrap();
        assert_eq!(config.network, NetworkConfig::default());
        assert_eq!(config.network.pools4.len(), 2);
        assert_eq!((config.network.prefix4.bits(), config.network.mtu.bytes()), (22, 1500));
        assert!(config.network.dns.addresses().is_empty());
    }

    #[test]
    fn what_is_written_is_taken_and_printed_again() {
        let text = r#"
[network]
pools4 = ["100.64.0.0/10"]
prefix4 = 24
pool6 = "2001:db8::/48"
mtu = 9000
domain = "lab.internal"
dns = ["192.0.2.53", "2001:db8::53"]
[[network.bridge]]
name = "lan"
device = "br0"
subnet4 = "192.168.1.0/24"
range4 = "192.168.1.100-192.168.1.150"
gateway4 = "192.168.1.1"
subnet6 = "2001:db8:0:1::/64"
gateway6 = "fe80::1"
dns = ["192.168.1.1"]
[[network.bridge]]
name = "dhcp"
device = "br1"
unfiltered = true
[[network.bridge]]
name = "second"
managed = true
"#;
        let config = Config::parse("x", text).unwrap();
        assert_eq!(config.network.dns.addresses().len(), 2);
        let names: Vec<_> = config.network.bridges.all().iter().map(|bridge| bridge.name.as_str()).collect();
        assert_eq!(names, ["lan", "dhcp", "second"]);
        assert!(config.network.bridges.named("second").unwrap().managed);
        assert_eq!(Config::parse("x", &config.to_string()).unwrap(), config);
    }

    #[test]
    fn mistakes_have_their_place() {
        let bridge = "[[network.bridge]]\nname = \"a\"\n";
        for (text, words) in [
            ("[network]\npools4 = [\"10.0.0.1/8\"]\n".to_owned(), "begins at 10.0.0.0/8"),
            ("[network]\npools4 = [\"127.0.0.0/8\"]\n".to_owned(), "not loopback"),
            ("[network]\npool6 = \"fe80::/64\"\n".to_owned(), "16 to 64"),
            ("[network]\npool6 = \"fd00::/96\"\n".to_owned(), "16 to 64"),
            ("[network]\nprefix4 = 30\n".to_owned(), "16 to 27"),
            ("[network]\nmtu = 1000\n".to_owned(), "1280 to 65535"),
            ("[network]\ndomain = \"A.b\"\n".to_owned(), "lower-case"),
            ("[network]\ndns = [\"x\"]\n".to_owned(), "invalid IP"),
            ("[network]\npols4 = []\n".to_owned(), "unknown field"),
            (bridge.to_owned(), "`device`"),
            (format!("{bridge}device = \"br0\"\n"), "unfiltered"),
            (format!("{bridge}device = \"a/b\"\n"), "1 to 15"),
            (format!("{bridge}device = \"br0\"\nmanaged = true\n"), "made by the broker"),
            (format!("{bridge}managed = true\nsubnet4 = \"10.0.0.0/24\"\n"), "pools4"),
            (
                format!("{bridge}device = \"b\"\nsubnet4 = \"10.0.0.0/24\"\ngateway4 = \"10.0.1.1\"\n"),
                "gateway4",
            ),
            (
                format!(
                    "{bridge}device = \"b\"\nsubnet4 = \"10.0.0.0/24\"\nrange4 = \"10.0.0.9-10.0.0.3\"\n"
                ),
                "FIRST-LAST",
            ),
            (
                format!(
                    "{bridge}device = \"b\"\nsubnet4 = \"10.0.0.0/24\"\nrange4 = \"10.0.0.9-10.0.1.3\"\n"
                ),
                "range4",
            ),
            (format!("{bridge}device = \"b\"\nsubnet4 = \"10.0.0.0/30\"\n"), "8 to 29"),
            (format!("{bridge}device = \"b\"\nsubnet6 = \"2001:db8::/48\"\n"), "64 bits"),
            (format!("{bridge}managed = true\n{bridge}managed = true\n"), "two bridges"),
            ("[[network.bridge]]\nname = \"account\"\nmanaged = true\n".to_owned(), "broker's own"),
        ] {
            let error = Config::parse("c.toml", &text).unwrap_err();
            assert!(error.message.contains(words), "{text}: {error}");
        }
    }
}
