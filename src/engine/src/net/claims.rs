//! Which link has which port of the host's, of all accounts: two links never have the same. No I/O.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_wire::{PublishedPort, Transport, net::LinkKey};

/// Another link has the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The port that was asked for.
    pub port: PublishedPort,
    /// The account whose it is.
    pub account: u32,
}

#[derive(Debug)]
struct Claim {
    address: Option<IpAddr>,
    account: u32,
    link: LinkKey,
}

type Table = HashMap<(Transport, u16), Vec<Claim>>;

/// The ports that are published or about to be.
#[derive(Debug, Default)]
pub struct Claims(Mutex<Table>);

/// Is there an address of the host's that both are about?
pub fn overlap(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    }
}

impl Claims {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims all of the ports for a link, or none. Those that it has already stay its own.
    ///
    /// # Errors
    /// [`Conflict`]: the first that another link has.
    pub fn claim(&self, link: &LinkKey, account: u32, ports: &[PublishedPort]) -> Result<(), Conflict> {
        let mut table = self.table();
        are_free(&table, link, ports)?;
        for port in ports {
            let claims = table.entry((port.transport, port.host)).or_default();
            if !claims.iter().any(|claim| claim.link == *link && claim.address == port.address) {
                claims.push(Claim { address: port.address, account, link: link.clone() });
            }
        }
        Ok(())
    }

    /// Could a link claim all of the ports now?
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub fn are_free(&self, link: &LinkKey, ports: &[PublishedPort]) -> Result<(), Conflict> {
        are_free(&self.table(), link, ports)
    }

    /// The link has these ports no more.
    pub fn release(&self, link: &LinkKey, ports: &[PublishedPort]) {
        let mut table = self.table();
        for port in ports {
            let key = (port.transport, port.host);
            if let Some(claims) = table.get_mut(&key) {
                claims.retain(|claim| claim.link != *link || claim.address != port.address);
                if claims.is_empty() {
                    table.remove(&key);
                }
            }
        }
    }
}

fn are_free(table: &Table, link: &LinkKey, ports: &[PublishedPort]) -> Result<(), Conflict> {
    for port in ports {
        let claims = table.get(&(port.transport, port.host)).into_iter().flatten();
        let mut others = claims.filter(|claim| claim.link != *link);
        if let Some(claim) = others.find(|claim| overlap(claim.address, port.address)) {
            return Err(Conflict { port: *port, account: claim.account });
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_wire::GrantId;

    use super::*;

    fn port(address: Option<&str>, host: u16, transport: Transport) -> PublishedPort {
        PublishedPort { address: address.map(|text| text.parse().unwrap()), host, container: 80, transport }
    }

    #[test]
    fn a_port_is_one_links_only() {
        let claims = Claims::default();
        let key = |grant| LinkKey { grant: GrantId(grant), name: "eth0".into() };
        let (all, local, other) = (
            port(None, 8080, Transport::Tcp),
            port(Some("127.0.0.1"), 8080, Transport::Tcp),
            port(Some("::1"), 8080, Transport::Tcp),
        );
        claims.claim(&key(1), 7, &[local]).unwrap();
        claims.claim(&key(1), 7, &[local]).unwrap();
        claims.claim(&key(2), 8, &[other, port(None, 8080, Transport::Udp)]).unwrap();
        let conflict = claims.claim(&key(3), 9, &[port(None, 9000, Transport::Tcp), all]);
        assert_eq!(conflict, Err(Conflict { port: all, account: 7 }));
        claims.claim(&key(4), 9, &[port(None, 9000, Transport::Tcp)]).unwrap();
        claims.release(&key(3), &[local]);
        assert!(claims.claim(&key(3), 9, &[local]).is_err(), "released by another link");
        claims.release(&key(1), &[local]);
        claims.release(&key(2), &[other]);
        claims.claim(&key(3), 9, &[all]).unwrap();
        claims.release(&key(3), &[all]);
        claims.release(&key(4), &[port(None, 9000, Transport::Tcp)]);
        claims.release(&key(2), &[port(None, 8080, Transport::Udp)]);
        assert!(claims.table().is_empty());
    }
}
