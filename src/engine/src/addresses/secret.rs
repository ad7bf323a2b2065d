//! The instance's secret, made once, and the numbers that follow from it: they stay the same and nobody can foretell them.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use cgrant_policy::network::Net6;
use cgrant_sys::{Dir, process};
use cgrant_wire::{Address, Mac};
use siphasher::sip128::SipHasher24;

/// The file.
const FILE: &str = "secret";
/// Networks of 64 bits that are tried for one bridge.
const TRIES: u8 = 8;

/// The secret.
pub struct Secret([u8; 16]);

impl Secret {
    /// Reads it, or makes it.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub fn open(directory: &Dir) -> io::Result<Self> {
        match directory.read(FILE, 64) {
            Ok(text) => match u128::from_str_radix(text.trim(), 16) {
                Ok(number) => Ok(Self(number.to_be_bytes())),
                Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file secret is damaged")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let number = u128::from(process::random_u64()?) << 64 | u128::from(process::random_u64()?);
                directory.write_atomic(FILE, format!("{number:032x}\n").as_bytes(), true)?;
                Ok(Self(number.to_be_bytes()))
            }
            Err(error) => Err(error),
        }
    }

    /// A number that follows from these parts, in this order.
    pub fn hash(&self, parts: &[&[u8]]) -> u128 {
        keyed(&self.0, parts)
    }

    /// The address on the data link layer of a container's link: a local one of a single device (IEEE 802, bits 1 and 0 of the
    /// first byte). `salt` is not 0 where the one before was taken.
    pub fn mac(&self, account: u32, grant: &str, link: &str, salt: u8) -> Mac {
        let account = account.to_be_bytes();
        let hash = self.hash(&[b"mac", &account, grant.as_bytes(), link.as_bytes(), &[salt]]);
        let [a, b, c, d, e, f, ..] = hash.to_be_bytes();
        Mac([a & 0xfc | 0x02, b, c, d, e, f])
    }

    /// Networks for an own bridge, best first: of `pool`, or of the unique local prefix that follows from the secret
    /// (RFC 4193, section 3.2.2: 40 random bits).
    pub fn networks6(&self, pool: Option<Net6>, bridge: &str) -> Vec<Address<Ipv6Addr>> {
        let local = (0xfd << 120) | (self.hash(&[b"unique local"]) >> 88 << 80);
        let (base, prefix) =
            pool.map_or((local, 48), |Net6(net)| (u128::from(net.network()), net.prefix_len()));
        let free = 64_u8.saturating_sub(prefix);
        let mut found: Vec<Address<Ipv6Addr>> = Vec::new();
        for attempt in 0..TRIES {
            let bits = self.hash(&[b"network", bridge.as_bytes(), &[attempt]]) >> 64;
            // `free` is at most 48: a shift by it is defined.
            let subnet = bits & ((1_u128 << free) - 1);
            let address = Ipv6Addr::from(base | subnet << 64);
            if !found.iter().any(|known| known.address == address) {
                found.push(Address { address, prefix: 64 });
            }
        }
        found
    }
}

/// SipHash-2-4 with 128 bits of output, over parts that can't run into each other.
fn keyed(key: &[u8; 16], parts: &[&[u8]]) -> u128 {
    let mut bytes = Vec::with_capacity(64);
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    let hash = SipHasher24::new_with_key(key).hash(&bytes);
    u128::from(hash.h1) << 64 | u128::from(hash.h2)
}

/// A number for names of devices: anybody may know it, and it follows from the parts alone.
pub fn public(parts: &[&[u8]]) -> u128 {
    keyed(&[0; 16], parts)
}

/// The address at this number of a network.
pub fn address4(network: ipnet::Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(network.network()).saturating_add(number))
}

/// The address at this number of a network.
pub fn address6(network: ipnet::Ipv6Net, number: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network.network()).saturating_add(number.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let base = tempfile::tempdir().unwrap();
        let directory = Dir::open(base.path()).unwrap();
        let (one, other) = (Secret::open(&directory).unwrap(), Secret::open(&directory).unwrap());
        assert_eq!(one.0, other.0);
        std::fs::write(base.path().join(FILE), "x").unwrap();
        assert!(Secret::open(&directory).is_err());
    }

    #[test]
    fn what_follows_from_it_is_well_formed_and_differs_by_every_part() {
        let (one, other) = (Secret([1; 16]), Secret([2; 16]));
        let mac = one.mac(1000, "web", "eth0", 0);
        assert_eq!(mac.0[0] & 3, 2, "local, of one device");
        let others = [
            other.mac(1000, "web", "eth0", 0),
            one.mac(1001, "web", "eth0", 0),
            one.mac(1000, "we", "beth0", 0),
            one.mac(1000, "web", "eth1", 0),
            one.mac(1000, "web", "eth0", 1),
        ];
        assert!(!others.contains(&mac));
        assert_eq!(mac, one.mac(1000, "web", "eth0", 0));
        let networks = one.networks6(None, "default");
        assert!(networks.len() > 1);
        let global = networks[0].address.octets()[..6].to_vec();
        assert_eq!(global[0], 0xfd);
        for network in &networks {
            assert_eq!(network.address.octets()[..6], global[..]);
            assert_eq!(network.address.octets()[8..], [0; 8]);
        }
        assert_ne!(other.networks6(None, "default")[0], networks[0]);
        let pool: Net6 = "2001:db8:1:2::/64".parse().unwrap();
        assert_eq!(one.networks6(Some(pool), "x"), [Address { address: pool.0.network(), prefix: 64 }]);
    }

    #[test]
    fn numbers_become_addresses() {
        assert_eq!(address4("10.1.4.0/22".parse().unwrap(), 300), Ipv4Addr::new(10, 1, 5, 44));
        assert_eq!(address6("fd00::/64".parse().unwrap(), 16).to_string(), "fd00::10");
    }
}
