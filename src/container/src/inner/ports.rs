//! Ports of the container around that lead to those inside.
//!
//! Each is held by sockets, so that no service of the container around and no other one inside is shadowed, and led by a
//! table of nftables of its own. Both are there as long as somebody has them open, which is the monitor of the container that
//! they lead to: however that ends, they end with it. The table's note says whose the port is.
//!
//! What somebody could want: the port of a service of the container around, or of another one inside. The kernel decides who
//! has a port, by binding. Who publishes is root of the container around, in its network namespace: no port of any other
//! is in reach. Rules are made of numbers alone; the names in notes mean nothing to the kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use cgrant_proto::{Port, port};
use cgrant_sys::{
    netlink::nftables::{Chain, Family, Hook, Match, Rule, Verdict, own_table, tables},
    port::{Occupant, Refused, Transport, View, hold, who_has},
};

use super::{
    InnerError, InnerLink, Kept,
    bridge::Bridge,
    link::whose,
    rules::{self, IPPROTO_TCP, IPPROTO_UDP, LOOPBACK},
};

/// What the names of tables begin with.
const TABLES: &str = "cgrant-inner-port-";
/// And their notes.
const NOTE: &str = "cgrant inner ";
/// Most that one container has: each takes its monitor three descriptors.
const MOST: usize = 256;

/// Why ports of the container around do not lead to one inside; none of those that were asked for does.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// One in here has it.
    #[error("port {port} is published already, for {}", whose(.by))]
    Published {
        /// The port.
        port: Port,
        /// Which one.
        by: String,
    },
    /// A program in here has it.
    #[error("port {} is taken by {}", held(.port), occupant(.by.as_ref()))]
    Taken {
        /// The port.
        port: Port,
        /// By which socket, if it can be seen: one that neither listens nor is connected can't.
        by: Option<Occupant>,
    },
    /// The address is not this container's.
    #[error("port {}: this container has no such address", held(.0))]
    NoSuchAddress(Port),
    /// It has no address of the family.
    #[error("port {}: the container inside has no IPv6 address", held(.0))]
    NoIpv6(Port),
    /// `[::1]`.
    #[error(
        "port {}: the kernel leads nothing from [::1] to a container; publish it at 127.0.0.1 or without an address",
        held(.0)
    )]
    Loopback(Port),
    /// An address that names no single host.
    #[error("port {}: not an address of a host", held(.0))]
    Invalid(Port),
    /// More than a container may have.
    #[error("a container in a container has at most {MOST} published ports")]
    TooMany,
    /// The kernel refused for another reason.
    #[error("port {}: the kernel refuses: {source}", held(.port))]
    Kernel {
        /// The port.
        port: Port,
        /// What it said.
        source: std::io::Error,
    },
}

/// As refusals name it: where it is published, not where it leads.
fn held(port: &Port) -> String {
    match port.address {
        None => format!("{}/{}", port.host, port.transport),
        Some(address) => format!("{}/{}", SocketAddr::new(address, port.host), port.transport),
    }
}

fn occupant(occupant: Option<&Occupant>) -> String {
    occupant.map_or_else(|| "a socket that is bound but does not listen".into(), Occupant::to_string)
}

/// Refuses what can be published nowhere.
///
/// # Errors
/// [`PortError`].
pub fn check_ports(ports: &[Port]) -> Result<(), PortError> {
    let mut seen = BTreeSet::new();
    for port in ports {
        if port.address == Some(Ipv6Addr::LOCALHOST.into()) {
            return Err(PortError::Loopback(*port));
        }
        if !port.address.is_none_or(is_host) {
            return Err(PortError::Invalid(*port));
        }
        if !seen.insert((port.address, port.host, port.transport)) {
            return Err(PortError::Published { port: *port, by: "that is to have it".to_owned() });
        }
    }
    if ports.len() > MOST { Err(PortError::TooMany) } else { Ok(()) }
}

fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_multicast() && !address.is_broadcast(),
        IpAddr::V6(address) => {
            !address.is_multicast() && !address.is_unicast_link_local() && address.to_ipv4_mapped().is_none()
        }
    }
}

/// The ports of all containers that were started here, with the names of those.
pub(super) fn published() -> Result<Vec<(String, Port)>, InnerError> {
    let read = |(name, note): &(String, String)| {
        name.strip_prefix(TABLES)?;
        let (container, port) = note.strip_prefix(NOTE)?.split_once(' ')?;
        Some((container.to_owned(), port.parse().ok()?))
    };
    Ok(tables(Family::Internet)?.iter().filter_map(read).collect())
}

/// Publishes these, all or none.
pub(super) fn publish(bridge: &Bridge, link: &InnerLink, ports: &[Port]) -> Result<Vec<Kept>, InnerError> {
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    check_ports(ports)?;
    let there = published()?;
    // Those without a name share none, and get all of theirs at once.
    let is_own = |container: &str| !link.container.is_empty() && container == link.container;
    if there.iter().filter(|(container, _)| is_own(container)).count() + ports.len() > MOST {
        return Err(PortError::TooMany.into());
    }
    let mut view = View::of(ports.iter().map(|port| port.host).collect());
    let one = |port: &Port| {
        if let Some((by, other)) = there.iter().find(|(_, other)| overlaps(other, port)) {
            return Err(InnerError::from(PortError::Published { port: *other, by: by.clone() }));
        }
        let target = Target::new(link, port)?;
        let mut descriptors = target.hold(port, &mut view)?;
        if target.four.is_some() && port.address.is_none_or(|address| address.is_loopback()) {
            rules::route_loopback()?;
        }
        let note = format!("{NOTE}{} {port}", link.noted());
        descriptors.push(own_table(Family::Internet, &name(port), &note, &target.chains(bridge, port))?);
        Ok(Kept { name: port.to_string(), descriptors })
    };
    ports.iter().map(one).collect()
}

/// A port of one place, of which there is only one at a time.
fn name(port: &Port) -> String {
    let address = match port.address {
        None => String::new(),
        Some(IpAddr::V4(address)) => format!("-{:08x}", u32::from(address)),
        Some(IpAddr::V6(address)) => format!("-{:032x}", u128::from(address)),
    };
    format!("{TABLES}{}-{}{address}", port.host, port.transport)
}

fn overlaps(one: &Port, other: &Port) -> bool {
    one.host == other.host
        && one.transport == other.transport
        && match (one.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
}

/// Where a port leads, in each family that it is published in.
struct Target {
    four: Option<SocketAddr>,
    six: Option<SocketAddr>,
}

impl Target {
    fn new(link: &InnerLink, port: &Port) -> Result<Self, PortError> {
        let to = |address: IpAddr| SocketAddr::new(address, port.container);
        let four = to(link.address4.addr().into());
        let six = link.address6.map(|own| to(own.addr().into()));
        Ok(match port.address {
            None => Self { four: Some(four), six },
            Some(IpAddr::V4(_)) => Self { four: Some(four), six: None },
            Some(IpAddr::V6(_)) => Self { four: None, six: Some(six.ok_or(PortError::NoIpv6(*port))?) },
        })
    }

    /// Sockets that have the port.
    fn hold(&self, port: &Port, view: &mut View) -> Result<Vec<OwnedFd>, PortError> {
        let any: [(Option<SocketAddr>, IpAddr); 2] =
            [(self.four, Ipv4Addr::UNSPECIFIED.into()), (self.six, Ipv6Addr::UNSPECIFIED.into())];
        let places = any.into_iter().filter(|(target, _)| target.is_some());
        let places = places.map(|(_, any)| SocketAddr::new(port.address.unwrap_or(any), port.host));
        let transport = carried(port.transport);
        places.map(|place| hold(transport, place, view)).collect::<Result<_, _>>().map_err(|refused| {
            let port = *port;
            match refused {
                Refused::Taken(by) => {
                    let by = by.or_else(|| who_has(transport, port.address, port.host, view));
                    PortError::Taken { port, by }
                }
                Refused::NoSuchAddress => PortError::NoSuchAddress(port),
                Refused::Kernel(source) => PortError::Kernel { port, source },
            }
        })
    }

    /// What leads there, and back.
    ///
    /// Wants: somebody beside the container that has the port, to be the one that clients of it reach. Who sends from the
    /// port's number to a client is the one that the client's packets to the port are an answer to; so only that container
    /// keeps the number, others get any, and if chance chose this one the connection is not made.
    fn chains(&self, bridge: &Bridge, port: &Port) -> Vec<Chain> {
        let protocol = match port.transport {
            port::Transport::Tcp => IPPROTO_TCP,
            port::Transport::Udp => IPPROTO_UDP,
        };
        let targets = || [self.four, self.six].into_iter().flatten();
        let led = |target: SocketAddr| -> Rule {
            let mut matches = vec![Match::Local];
            matches.push(match (port.address, target.ip()) {
                (Some(address), _) => Match::Destination(address, if address.is_ipv4() { 32 } else { 128 }),
                (None, IpAddr::V4(_)) => Match::Destination(Ipv4Addr::UNSPECIFIED.into(), 0),
                // From ::1 nothing leaves the loopback device.
                (None, IpAddr::V6(_)) => Match::ForeignDestination(Ipv6Addr::LOCALHOST.into(), 128),
            });
            matches.extend([Match::Protocol(protocol), Match::DestinationPort(port.host)]);
            (matches, Verdict::Redirect(target))
        };
        let led: Vec<Rule> = targets().map(led).collect();
        // Clients outside keep their address. The container must answer those that share its bridge, or the container around, by
        // way of that one.
        let answered = |(network, prefix): (IpAddr, u8)| -> Rule {
            let matches = vec![Match::To(bridge.index), Match::Redirected, Match::Source(network, prefix)];
            (matches, Verdict::Masquerade)
        };
        let others = |target: SocketAddr, verdict: Verdict| -> Rule {
            let matches = vec![
                Match::From(bridge.index),
                Match::NotTo(bridge.index),
                Match::Unknown,
                Match::Protocol(protocol),
                Match::SourcePort(port.host),
                Match::NotBegunBy(target.ip()),
            ];
            (matches, verdict)
        };
        let all_others = |verdict: Verdict| targets().map(|target| others(target, verdict)).collect();
        let from = bridge.networks().chain([LOOPBACK]);
        vec![
            Chain { name: "published", hook: Hook::DestinationNat, rules: led.clone() },
            Chain { name: "published-here", hook: Hook::OwnDestinationNat, rules: led },
            Chain { name: "back", hook: Hook::SourceNat, rules: from.map(answered).collect() },
            Chain { name: "others", hook: Hook::FirstSourceNat, rules: all_others(Verdict::MasqueradeAnew) },
            Chain { name: "shadow", hook: Hook::Leaving, rules: all_others(Verdict::Drop) },
        ]
    }
}

fn carried(transport: port::Transport) -> Transport {
    match transport {
        port::Transport::Tcp => Transport::Tcp,
        port::Transport::Udp => Transport::Udp,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn port(text: &str) -> Port {
        text.parse().unwrap()
    }

    #[test]
    fn what_can_be_published_nowhere_is_refused() {
        check_ports(&["80:80", "127.0.0.1:81:80", "[fd00::1]:82:80/udp", "80:80/udp"].map(port)).unwrap();
        let refused = |texts: &[&str]| {
            let ports: Vec<Port> = texts.iter().map(|text| port(text)).collect();
            check_ports(&ports).unwrap_err().to_string()
        };
        assert!(refused(&["[::1]:80:80"]).contains("publish it at 127.0.0.1"));
        for text in ["224.0.0.1:80:80", "[fe80::1]:80:80", "[ff02::1]:80:80", "[::ffff:1.2.3.4]:80:80"] {
            assert!(refused(&[text]).contains("not an address of a host"), "{text}");
        }
        assert!(refused(&["80:80", "80:81"]).contains("published already"));
        let many: Vec<Port> = (1..=257).map(|number| port(&format!("{number}:80"))).collect();
        assert!(matches!(check_ports(&many), Err(PortError::TooMany)));
    }

    #[test]
    fn ports_share_a_place_or_not() {
        for (one, other, same) in [
            ("80:80", "80:81", true),
            ("80:80", "80:80/udp", false),
            ("80:80", "127.0.0.1:80:80", true),
            ("127.0.0.2:80:80", "127.0.0.1:80:80", false),
        ] {
            assert_eq!(overlaps(&port(one), &port(other)), same, "{one} {other}");
            let names = (name(&port(one)), name(&port(other)));
            assert!(same || names.0 != names.1, "{names:?}");
        }
        assert_eq!(name(&port("[fd00::1]:80:8080")), format!("cgrant-inner-port-80-tcp-fd{:030x}", 1));
    }
}
