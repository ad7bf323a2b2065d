//! Networks that clash with none of the host's: which are in use, and which to take. Pure.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cgrant_wire::link::Address;

/// Most networks of one pool that are tried.
const MOST_TRIED: u32 = 1 << 16;

/// Do two networks have an address in common?
#[must_use]
pub fn overlap(one: Address<IpAddr>, other: Address<IpAddr>) -> bool {
    let shared = one.prefix.min(other.prefix);
    match (one.address, other.address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let different = u32::from(a) ^ u32::from(b);
            different.checked_shr(32_u32.saturating_sub(shared.into())).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let different = u128::from(a) ^ u128::from(b);
            different.checked_shr(128_u32.saturating_sub(shared.into())).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// An address of either family.
pub fn any<A: Into<IpAddr> + Copy>(address: Address<A>) -> Address<IpAddr> {
    Address { address: address.address.into(), prefix: address.prefix }
}

/// Does the network tell anything about who else uses an address? A default route does not.
#[must_use]
pub fn is_specific(network: Address<IpAddr>) -> bool {
    network.prefix > 0
}

/// The first network of `prefix` bits in one of `pools` that overlaps none of `used`. Where the search begins in a pool
/// follows from `seed`, so that two hosts seldom take the same one.
#[must_use]
pub fn choose4(
    pools: &[Address<Ipv4Addr>],
    prefix: u8,
    used: &[Address<IpAddr>],
    seed: &str,
) -> Option<Address<Ipv4Addr>> {
    pools.iter().find_map(|pool| choose_in(*pool, prefix, used, seed))
}

fn choose_in(
    pool: Address<Ipv4Addr>,
    prefix: u8,
    used: &[Address<IpAddr>],
    seed: &str,
) -> Option<Address<Ipv4Addr>> {
    let bits = u32::from(prefix.checked_sub(pool.prefix)?);
    // Of a host that knows a million routes only those few matter that lie in the pool.
    let used: Vec<_> = used.iter().copied().filter(|network| overlap(*network, any(pool))).collect();
    let count = 1_u64.checked_shl(bits).filter(|count| *count <= 1 << 32)?;
    let size = 1_u64.checked_shl(32_u32.checked_sub(prefix.into())?)?;
    let base = u64::from(u32::from(pool.address)) / (size * count) * (size * count);
    let mut hasher = DefaultHasher::new();
    (seed, pool).hash(&mut hasher);
    let first = hasher.finish() % count;
    (0..count.min(MOST_TRIED.into())).find_map(|step| {
        let network = base + (first + step) % count * size;
        let candidate = Address { address: Ipv4Addr::from(u32::try_from(network).ok()?), prefix };
        used.iter().all(|network| !overlap(*network, any(candidate))).then_some(candidate)
    })
}

/// The first of `pool` that overlaps none of `used`.
#[must_use]
pub fn choose6(pool: &[Address<Ipv6Addr>], used: &[Address<IpAddr>]) -> Option<Address<Ipv6Addr>> {
    pool.iter().copied().find(|candidate| used.iter().all(|network| !overlap(*network, any(*candidate))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn net(text: &str) -> Address<IpAddr> {
        let (address, prefix) = text.split_once('/').unwrap();
        Address { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn net4(text: &str) -> Address<Ipv4Addr> {
        match net(text) {
            Address { address: IpAddr::V4(address), prefix } => Address { address, prefix },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn networks_overlap_when_one_contains_the_other() {
        for (one, other, expected) in [
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.1.2.0/24", "10.1.3.0/24", false),
            ("10.1.2.3/32", "10.1.2.3/32", true),
            ("10.1.2.3/32", "10.1.2.2/32", false),
            ("0.0.0.0/0", "192.168.0.0/16", true),
            ("0.0.0.0/0", "fd00::/8", false),
            ("fd00::/8", "fd12:3456::/64", true),
            ("fd12:3456::/64", "fd12:3456:0:1::/64", false),
            ("::/0", "fd00::/8", true),
        ] {
            assert_eq!(overlap(net(one), net(other)), expected, "{one} {other}");
            assert_eq!(overlap(net(other), net(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_network_is_taken_that_nobody_has() {
        let pools = [net4("10.0.0.0/8"), net4("172.16.0.0/12")];
        let free = choose4(&pools, 22, &[], "one").unwrap();
        assert!(overlap(any(free), net("10.0.0.0/8")) && free.prefix == 22);
        assert_eq!(u32::from(free.address) % 1024, 0);
        // The same again once that one is in use, and never that one.
        let second = choose4(&pools, 22, &[any(free)], "one").unwrap();
        assert!(!overlap(any(free), any(second)));
        assert_ne!(choose4(&pools, 22, &[], "two").unwrap(), free, "two hosts begin at different places");
        // A tunnel takes all of the first pool.
        let next = choose4(&pools, 22, &[net("10.0.0.0/8")], "one").unwrap();
        assert!(overlap(any(next), net("172.16.0.0/12")));
        assert_eq!(choose4(&pools, 22, &[net("10.0.0.0/8"), net("172.0.0.0/8")], "one"), None);
    }

    #[test]
    fn the_last_free_one_is_found_wherever_the_search_begins() {
        let pool = [net4("192.168.4.0/22")];
        let used: Vec<_> = ["192.168.4.0/24", "192.168.5.0/24", "192.168.7.9/32"].map(net).to_vec();
        for seed in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(choose4(&pool, 24, &used, seed), Some(net4("192.168.6.0/24")), "{seed}");
        }
        // A prefix that is shorter than the pool's, or none at all, gives nothing and no panic.
        assert_eq!(choose4(&pool, 21, &[], "a"), None);
        assert_eq!(choose4(&pool, 33, &[], "a"), None);
        assert_eq!(choose4(&[net4("0.0.0.0/0")], 32, &[], "a").map(|found| found.prefix), Some(32));
    }

    #[test]
    fn the_best_ipv6_network_that_is_free() {
        let pool: Vec<Address<Ipv6Addr>> =
            ["fd01::", "fd02::"].map(|text| Address { address: text.parse().unwrap(), prefix: 64 }).to_vec();
        assert_eq!(choose6(&pool, &[]), Some(pool[0]));
        assert_eq!(choose6(&pool, &[net("fd01::1/128")]), Some(pool[1]));
        assert_eq!(choose6(&pool, &[net("fd00::/8")]), None);
    }
}
