//! Links of containers that are started in a container: the broker has no part in them, they are made here with one's own rights,
//! unless they are to be on a bridge of the host's.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::BorrowedFd,
    path::Path,
};

use cgrant_container::{
    Network,
    inner::{self, BRIDGE, InnerError, InnerLink, InnerWish, Kept},
};
use cgrant_proto::{Endpoint, Port, names::INNER_SOCKET};
use cgrant_sys::netlink::qdisc::RATES;
use rustix::process::geteuid;
use serde_json::{Map, Value, json};

use super::link;
use crate::{args::LinkArgs, error::Failure};

/// Where a container says who answers for names (resolv.conf(5)); where systemd-resolved asks others for it, whom that asks.
const RESOLVERS: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"];
/// The longest that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Is the broker asked from inside a container?
pub(crate) fn is_here(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Socket(path) if path == Path::new(INNER_SOCKET))
}

/// Is a link to this bridge made here? One to a bridge of another name is the broker's to make, where policy lets it.
pub(crate) fn is_own(endpoint: &Endpoint, bridge: Option<&str>) -> bool {
    is_here(endpoint) && bridge.is_none_or(|bridge| ["", BRIDGE].contains(&bridge))
}

/// Refuses what a link in a container can't have.
pub(crate) fn check(ports: &[Port], properties: &LinkArgs) -> Result<(), Failure> {
    let LinkArgs { address, dhcp, mtu: _, queue_length: _, upload, download, vlan } = properties;
    // As everywhere: an address for each family.
    link::options(None, ports, properties)?;
    let mut rates = upload.iter().chain(download);
    if rates.any(|rate| !RATES.contains(rate)) {
        let (least, most) = (RATES.start(), RATES.end());
        return Err(Failure::Usage(format!("a rate is {least} to {most} bits a second")));
    }
    let refused = [
        (
            address.iter().any(IpAddr::is_ipv6),
            "has an IPv6 network by chance, another one at each start: leave the IPv6 --address out",
        ),
        (*dhcp, "answers no DHCP: leave --dhcp out"),
        (
            vlan.is_some(),
            "has no VLANs on its bridge, which leads to no network of others: leave --vlan out, or give --link=BRIDGE",
        ),
    ];
    match refused.iter().find(|(is_asked_for, _)| *is_asked_for) {
        Some((_, why)) => Err(Failure::Usage(format!("a container {why}"))),
        None => inner::check_ports(ports).map_err(|error| Failure::Usage(error.to_string())),
    }
}

/// Gives the container whose network namespace this is a link; what it is told of it, and what is there as long as it is kept.
pub(crate) fn connect(
    netns: BorrowedFd<'_>,
    container: &str,
    ports: &[Port],
    properties: &LinkArgs,
) -> Result<(Network, Vec<Kept>), Failure> {
    let LinkArgs { address, dhcp: _, mtu, queue_length, upload, download, vlan: _ } = properties;
    let four = |address: &IpAddr| if let IpAddr::V4(four) = address { Some(*four) } else { None };
    let wish = InnerWish {
        container,
        mtu: *mtu,
        queue_length: *queue_length,
        address4: address.iter().find_map(four),
        upload: *upload,
        download: *download,
        ports,
    };
    let (link, kept) =
        inner::connect(netns, &wish).map_err(|error| failed("give the container a link", error))?;
    Ok((Network { dns: resolvers(), addresses: link.addresses().collect() }, kept))
}

/// Publishes more ports for a container that was started here; they are there as long as they are kept.
pub(crate) fn publish(container: &str, ports: &[Port]) -> Result<Vec<Kept>, Failure> {
    inner::publish(container, ports).map_err(|error| failed("publish ports to the container", error))
}

fn failed(doing: &'static str, error: InnerError) -> Failure {
    match error.is_refusal() {
        true => Failure::Refused(format!("cannot {doing}: {error}")),
        false => Failure::Machine { doing, source: io::Error::other(error) },
    }
}

/// Has the container a link of this name that was made here?
pub(crate) fn is_connected(container: &str, link: &str) -> bool {
    let is_it = |known: &InnerLink| known.container == container && known.name == link;
    // Others in here have containers of their own, which may have the same names.
    geteuid().is_root() && !container.is_empty() && inner::links().is_ok_and(|links| links.iter().any(is_it))
}

/// The links of all containers that were started here, which root started, by the containers' names, as the broker describes its own.
pub(crate) fn links() -> Map<String, Value> {
    if !geteuid().is_root() {
        return Map::new();
    }
    let ports = inner::published().unwrap_or_default();
    let described = |link: InnerLink| {
        let text = |address: String| Value::from(address);
        let mut all = json!({ "name": link.name, "bridge": BRIDGE, "address4": link.address4.to_string() });
        if let (Some(six), Some(all)) = (link.address6, all.as_object_mut()) {
            all.insert("address6".to_owned(), text(six.to_string()));
        }
        let own = ports.iter().filter(|(container, _)| *container == link.container);
        let own: Vec<String> = own.map(|(_, port)| port.to_string()).collect();
        if let (false, Some(all)) = (own.is_empty(), all.as_object_mut()) {
            all.insert("ports".to_owned(), own.into());
        }
        (link.container, Value::from(vec![all]))
    };
    // Who can't look at its own network has no links in it.
    inner::links().unwrap_or_default().into_iter().map(described).collect()
}

/// Whom this container asks for names. One that it has itself nobody inside reaches.
fn resolvers() -> Vec<IpAddr> {
    let read = |path: &str| {
        let mut text = String::new();
        File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
        Ok::<_, io::Error>(servers(&text))
    };
    let mut all = RESOLVERS.iter().filter_map(|path| read(path).ok());
    all.find(|servers| !servers.is_empty()).unwrap_or_default()
}

fn servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.parse::<IpAddr>().ok().filter(|address| !address.is_loopback())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_for_names_is_asked_by_those_inside_too() {
        let text = "# of its link\nnameserver 10.0.0.2\nsearch a.b\nnameserver 127.0.0.53\n nameserver\tfd00::2 x\n\
                    nameserver ::1\nnameserver\nnameserver x\n";
        assert_eq!(servers(text), ["10.0.0.2", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn a_bridge_of_the_hosts_is_the_brokers() {
        let (here, host) = (Endpoint::Socket(INNER_SOCKET.into()), Endpoint::Socket("/x".into()));
        for own in [None, Some(""), Some(BRIDGE)] {
            assert!(is_own(&here, own) && !is_own(&host, own));
        }
        assert!(!is_own(&here, Some("lan")) && !is_own(&host, Some("lan")));
    }

    #[test]
    fn what_there_is_not_inside_is_refused() {
        let none = LinkArgs::default();
        check(&["80:80".parse().unwrap()], &none).unwrap();
        let all = LinkArgs {
            address: vec!["100.64.0.9".parse().unwrap()],
            mtu: Some(1400),
            queue_length: Some(9),
            upload: Some(1_000_000),
            download: Some(1_000_000),
            ..none.clone()
        };
        check(&[], &all).unwrap();
        let refused =
            |ports: &[Port], properties: LinkArgs| check(ports, &properties).unwrap_err().to_string();
        assert!(refused(&["[::1]:80:80".parse().unwrap()], none.clone()).contains("127.0.0.1"));
        for properties in [
            LinkArgs { address: vec!["fd00::9".parse().unwrap()], ..none.clone() },
            LinkArgs { dhcp: true, ..none.clone() },
            LinkArgs { vlan: Some(9), ..none.clone() },
        ] {
            assert!(refused(&[], properties.clone()).contains("leave"), "{properties:?}");
        }
        let twice = ["100.64.0.9", "100.64.0.10"].map(|text| text.parse().unwrap()).into();
        assert!(refused(&[], LinkArgs { address: twice, ..none.clone() }).contains("one IPv4 address"));
        for slow in [
            LinkArgs { upload: Some(7999), ..none.clone() },
            LinkArgs { download: Some(7999), ..none.clone() },
        ] {
            assert!(refused(&[], slow).contains("8000 to"));
        }
    }
}
