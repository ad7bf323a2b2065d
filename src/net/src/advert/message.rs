//! Router advertisements and solicitations as bytes.
//!
//! Sources: RFC 4861 (sections 4.1, 4.2, 4.6, 6.1.1), RFC 8106 (name servers and domains).

use std::net::Ipv6Addr;

/// `ICMPv6` types.
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// Options.
mod option {
    pub const SOURCE_MAC: u8 = 1;
    pub const PREFIX: u8 = 3;
    pub const MTU: u8 = 5;
    pub const NAME_SERVERS: u8 = 25;
    pub const DOMAINS: u8 = 31;
}

/// Hop limit that hosts are to use for what they send.
const HOP_LIMIT: u8 = 64;
/// Addresses and everything else are had by DHCPv6.
const MANAGED_AND_OTHER: u8 = 0x80 | 0x40;
/// Neighbours with addresses of the prefix are on this link. Without the flag 0x40: nobody makes an address of it himself.
const ON_LINK: u8 = 0x80;
/// How long hosts may believe the router and its name servers, in seconds: three times the longest pause.
const LIFETIME: u16 = 1800;
/// The same of the prefix.
const PREFIX_VALID: u32 = 86_400;
const PREFIX_PREFERRED: u32 = 14_400;
/// Least MTU of IPv6; hosts ignore less.
const LEAST_MTU: u32 = 1280;

/// Longest solicitation that is looked at, in bytes: one with its only option has 16.
pub const LONGEST_SOLICITATION: usize = 256;
/// Most servers that fit into an advertisement which is not to be cut anywhere.
const MOST_SERVERS: usize = 8;

/// What an advertisement says.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// The bridge's address on the data link layer.
    pub mac: Option<[u8; 6]>,
    /// Largest packet.
    pub mtu: u32,
    /// An address in the network.
    pub network: Ipv6Addr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Name servers.
    pub dns: &'a [Ipv6Addr],
    /// The domain.
    pub domain: &'a str,
}

/// The advertisement, or with `ends` the one that takes it back. The checksum is left to the kernel. `None` if the domain is no name.
pub fn advertisement(contents: &Contents<'_>, ends: bool) -> Option<Vec<u8>> {
    let lifetime = if ends { 0 } else { LIFETIME };
    let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, MANAGED_AND_OTHER];
    bytes.extend(lifetime.to_be_bytes());
    // Times of neighbour discovery: the host's own choice.
    bytes.extend([0; 8]);
    if let Some(mac) = contents.mac {
        put(&mut bytes, option::SOURCE_MAC, &mac);
    }
    if contents.mtu >= LEAST_MTU {
        put(&mut bytes, option::MTU, &[&[0, 0][..], &contents.mtu.to_be_bytes()].concat());
    }
    if !ends {
        put(&mut bytes, option::PREFIX, &prefix(contents));
    }
    let times = [&[0, 0][..], &u32::from(lifetime).to_be_bytes()].concat();
    if !contents.dns.is_empty() {
        let servers = contents.dns.iter().take(MOST_SERVERS).flat_map(Ipv6Addr::octets);
        put(&mut bytes, option::NAME_SERVERS, &times.iter().copied().chain(servers).collect::<Vec<_>>());
    }
    if !contents.domain.is_empty() {
        put(&mut bytes, option::DOMAINS, &[times, encode_domain(contents.domain)?].concat());
    }
    Some(bytes)
}

fn prefix(contents: &Contents<'_>) -> Vec<u8> {
    let mask = u128::MAX.checked_shl(128 - u32::from(contents.prefix.min(128))).unwrap_or(0);
    let mut value = vec![contents.prefix.min(128), ON_LINK];
    value.extend(PREFIX_VALID.to_be_bytes());
    value.extend(PREFIX_PREFERRED.to_be_bytes());
    value.extend([0; 4]);
    value.extend((contents.network.to_bits() & mask).to_be_bytes());
    value
}

/// Adds an option, filled up to a multiple of eight bytes, which its length is counted in.
fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = (2 + value.len()).next_multiple_of(8);
    // No option here has more than 300 bytes.
    bytes.extend([kind, u8::try_from(length / 8).unwrap_or(u8::MAX)]);
    bytes.extend(value);
    bytes.resize(bytes.len() + length - 2 - value.len(), 0);
}

/// A domain as DNS has it: parts with their lengths before them, and an end.
fn encode_domain(domain: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in domain.trim_end_matches('.').split('.') {
        let is_name = (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        bytes.push(u8::try_from(label.len()).ok().filter(|_| is_name)?);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// Is it a solicitation as RFC 4861 section 6.1.1 wants it? (The kernel has looked at the checksum.)
pub fn is_solicitation(message: &[u8], source: Ipv6Addr) -> bool {
    let [SOLICITATION, 0, _, _, _, _, _, _, options @ ..] = message else {
        return false;
    };
    let mut rest = options;
    while let [kind, eighths, ..] = *rest {
        let length = usize::from(eighths) * 8;
        // Who has no address can't say where he is to be reached.
        let is_contradiction = kind == option::SOURCE_MAC && source.is_unspecified();
        match rest.get(length..) {
            Some(after) if length != 0 && !is_contradiction => rest = after,
            _ => return false,
        }
    }
    rest.is_empty() && !source.is_multicast()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 2);

    fn contents() -> Contents<'static> {
        Contents {
            mac: Some([2, 1, 2, 3, 4, 5]),
            mtu: 1400,
            network: Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 1),
            prefix: 64,
            dns: &[SERVER],
            domain: "cgrant",
        }
    }

    /// Kind and value of each option; each has to be whole.
    fn options(message: &[u8]) -> Vec<(u8, &[u8])> {
        let mut rest = &message[16..];
        let mut list = Vec::new();
        while !rest.is_empty() {
            let length = usize::from(rest[1]) * 8;
            list.push((rest[0], &rest[2..length]));
            rest = &rest[length..];
        }
        list
    }

    #[test]
    fn an_advertisement_says_what_is_wanted_and_no_more() {
        let message = advertisement(&contents(), false).unwrap();
        assert_eq!(message[..16], [134, 0, 0, 0, 64, 0xc0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let list = options(&message);
        assert_eq!(list.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 5, 3, 25, 31]);
        assert_eq!(list[0].1, [2, 1, 2, 3, 4, 5]);
        assert_eq!(list[1].1, [0, 0, 0, 0, 5, 0x78]);
        // On-link, and nobody makes himself an address.
        assert_eq!(list[2].1[..2], [64, 0x80]);
        assert_eq!(list[2].1[14..], Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 0).octets());
        assert_eq!(list[3].1[2..6], [0, 0, 7, 8]);
        assert_eq!(list[3].1[6..], SERVER.octets());
        assert_eq!(&list[4].1[6..], b"\x06cgrant\0");
    }

    #[test]
    fn the_last_one_takes_everything_back() {
        let message = advertisement(&contents(), true).unwrap();
        assert_eq!(message[6..8], [0, 0]);
        let list = options(&message);
        assert_eq!(list.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [1, 5, 25, 31]);
        assert!(list[2..].iter().all(|(_, value)| value[2..6] == [0; 4]));
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let bare = Contents { mac: None, mtu: 1000, dns: &[], domain: "", ..contents() };
        assert_eq!(options(&advertisement(&bare, false).unwrap()).len(), 1);
        let many = Contents { dns: &[SERVER; 100], ..contents() };
        assert_eq!(advertisement(&many, false).unwrap().len() % 8, 0);
        for (prefix, expected) in [(0, 0), (7, 0xfc00), (16, 0xfd00), (128, 0xfd00), (200, 0xfd00)] {
            let message = advertisement(&Contents { prefix, ..contents() }, false).unwrap();
            assert_eq!(options(&message)[2].1[14..16], u16::to_be_bytes(expected), "{prefix}");
        }
    }

    #[test]
    fn domains_are_names() {
        assert_eq!(encode_domain("a.bc.").unwrap(), b"\x01a\x02bc\0");
        let long = "x".repeat(64);
        let many = vec!["x".repeat(60); 5].join(".");
        for bad in ["", ".", "a..b", "a b", "ä", "a\0", &long, &many] {
            assert_eq!(encode_domain(bad), None, "{bad:?}");
        }
        assert!(advertisement(&Contents { domain: "a..b", ..contents() }, false).is_none());
    }

    #[test]
    fn only_whole_solicitations_count() {
        let somebody = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
        let plain = [133, 0, 1, 2, 0, 0, 0, 0];
        let with = |option: &[u8]| [&plain[..], option].concat();
        assert!(is_solicitation(&plain, somebody) && is_solicitation(&plain, Ipv6Addr::UNSPECIFIED));
        assert!(is_solicitation(&with(&[1, 1, 2, 0, 0, 0, 0, 1]), somebody));
        assert!(is_solicitation(&with(&[200, 1, 0, 0, 0, 0, 0, 0]), somebody));
        assert!(!is_solicitation(&with(&[1, 1, 2, 0, 0, 0, 0, 1]), Ipv6Addr::UNSPECIFIED));
        assert!(!is_solicitation(&plain, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)));
        for bad in [
            &plain[..7],
            &[],
            &[134, 0, 0, 0, 0, 0, 0, 0],
            &[133, 1, 0, 0, 0, 0, 0, 0],
            &with(&[1]),
            &with(&[1, 0, 0, 0, 0, 0, 0, 0]),
            &with(&[1, 2, 0, 0, 0, 0, 0, 0]),
            &with(&[200, 255]),
            &with(&[1, 1, 2, 0, 0, 0, 0, 1, 9]),
        ] {
            assert!(!is_solicitation(bad, somebody), "{bad:?}");
        }
    }
}
