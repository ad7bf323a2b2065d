//! Which network the bridge of a container gets: one that no level above it has. Pure.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

/// Addresses that neither the public internet nor private networks have (RFC 6598), and the broker's own bridges only if the
/// administrator says so.
pub(super) const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
/// A level takes its network out of one block of this size.
const LEVEL: u8 = 16;
/// Size of a network: a thousand addresses, which is how many ports a bridge has.
const PREFIX: u8 = 22;
/// Bytes of an IPv6 network that chance decides (RFC 4193: 40 bits of a global ID; and those of the subnet).
pub(super) const CHANCE: usize = 7;

/// A network that has nothing in common with those in use.
///
/// A container sees its own network and that of its bridge, which is the one around those inside. Each level takes the block
/// after the last one that it sees: so all levels have different ones, though none sees but the next.
pub(super) fn choose(used: &[Ipv4Net]) -> Option<Ipv4Net> {
    let blocks: Vec<Ipv4Net> = POOL.subnets(LEVEL).ok()?.collect();
    let is_seen = |block: &Ipv4Net| used.iter().any(|network| block.contains(network));
    let first = blocks.iter().rposition(is_seen).map_or(0, |last| last + 1);
    let (before, after) = blocks.split_at_checked(first)?;
    let free =
        |network: &Ipv4Net| used.iter().all(|other| !other.contains(network) && !network.contains(other));
    let candidates = after.iter().chain(before).filter_map(|block| block.subnets(PREFIX).ok()).flatten();
    candidates.into_iter().find(free)
}

/// A unique local network, out of what chance gave.
pub(super) fn unique_local([a, b, c, d, e, f, g]: [u8; CHANCE]) -> Ipv6Net {
    let bytes = [0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0];
    Ipv6Net::new_assert(bytes.into(), 64)
}

/// The address of this number in a network of either family.
pub(super) fn address4(network: Ipv4Net, number: u16) -> Ipv4Net {
    let address = u32::from(network.network()) | u32::from(number);
    Ipv4Net::new(address.into(), network.prefix_len()).unwrap_or(network)
}

/// The same of IPv6.
pub(super) fn address6(network: Ipv6Net, number: u16) -> Ipv6Net {
    let address = u128::from(network.network()) | u128::from(number);
    Ipv6Net::new(address.into(), network.prefix_len()).unwrap_or(network)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn no_level_has_a_network_of_another_one() {
        // The kernel nests 32 user namespaces.
        let mut all: Vec<Ipv4Net> = nets(&["10.9.8.0/22"]);
        for _ in 0..32 {
            // All that is seen: the network that one is in.
            let around = *all.last().unwrap();
            let own = choose(&[around, nets(&["127.0.0.0/8"])[0]]).unwrap();
            assert!(POOL.contains(&own) && all.iter().all(|net| !net.contains(&own) && !own.contains(net)));
            all.push(own);
        }
    }

    #[test]
    fn what_is_in_use_is_left_out() {
        assert_eq!(choose(&[]), Some(nets(&["100.64.0.0/22"])[0]));
        assert_eq!(choose(&nets(&["100.64.0.0/16"])), Some(nets(&["100.65.0.0/22"])[0]));
        // A tunnel has most of it, and the last block is seen.
        let used = nets(&["100.64.0.0/11", "100.96.0.0/12", "100.127.0.0/22"]);
        assert_eq!(choose(&used), Some(nets(&["100.112.0.0/22"])[0]));
        assert_eq!(choose(&nets(&["100.0.0.0/8"])), None);
    }

    #[test]
    fn addresses_are_in_their_network() {
        let four: Ipv4Net = "100.64.4.0/22".parse().unwrap();
        assert_eq!(address4(four, 1022).to_string(), "100.64.7.254/22");
        let six = unique_local([1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(address6(six, 258).to_string(), "fd01:203:405:607::102/64");
    }
}
