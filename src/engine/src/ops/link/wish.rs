//! Links as callers ask for them: every part checked, before anything changes.

use std::net::{IpAddr, Ipv6Addr};

use cgrant_policy::{
    ACCOUNT_BRIDGE, BridgeName, Caller as Subject, DEFAULT_BRIDGE, HostPort, HostUid, MAX_MTU, MIN_MTU,
    NewLink,
};
use cgrant_sys::{NetnsFd, UsernsFd, netlink::qdisc::RATES};
use cgrant_wire::{FdIndex, LinkInfo, LinkKind, LinkRequest, MAX_FDS, PublishedPort, Refusal, RefusalCode};

use super::{super::check, all_told};
use crate::{
    connection::{Caller, Inside},
    engine::Engine,
    net::ports_overlap,
    record::LinkRecord,
    registry::Grant,
};

/// Most links of one grant.
pub const MAX_LINKS: usize = 16;
/// Most taps of one request: their descriptors and the payload's come beside one answer.
const MAX_TAPS: usize = MAX_FDS - 1;
/// Most published ports of one link.
pub const MAX_PORTS: usize = 256;
/// Longest name of a network device (`IFNAMSIZ` less its end).
const MAX_NAME: usize = 15;
/// Longest transmit queue, in packets.
const MAX_QUEUE: u32 = 65_536;

/// A link that is asked for, checked.
#[derive(Debug)]
pub struct Wish {
    /// What was asked, with the name that the link will have.
    pub request: LinkRequest,
    /// Did the engine choose the name? Then it may choose another one.
    pub auto_name: bool,
    /// The network namespace of the far end.
    pub netns: Option<NetnsFd>,
    /// Bridges that it may be on, best first.
    pub bridges: Vec<String>,
    /// Is it asked for from inside a grant?
    nested: bool,
    /// The ports as policy looks at them.
    host_ports: Vec<HostPort>,
}

impl Wish {
    /// The link as policy looks at it.
    pub fn judged(&self) -> NewLink<'_> {
        NewLink {
            bridge: self.bridges.first().map_or("", String::as_str),
            nested: self.nested,
            address4: self.request.address4,
            address6: self.request.address6,
            upload: self.request.upload,
            download: self.request.download,
            vlan: self.request.vlan,
            ports: &self.host_ports,
        }
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, message)
}

/// Checks links that are asked for in one request, for a grant of `account` that has `existing` ones. `userns` is the user
/// namespace that was shown in the same request, which then must own their network namespaces. Without `shown`, the caller and its
/// descriptors, nothing is to be made, and network namespaces don't matter. `inside` is the grant that they are asked for from inside of.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`], [`RefusalCode::InvalidName`], [`RefusalCode::LinkExists`],
/// [`RefusalCode::QuotaExceeded`], and those of [`own_netns`].
pub fn wishes(
    engine: &Engine,
    subject: &Subject,
    (account, inside): (HostUid, Option<&Inside>),
    requests: &[LinkRequest],
    existing: &[LinkRecord],
    mut shown: Option<(&Caller, &mut check::Descriptors)>,
    userns: Option<&UsernsFd>,
) -> Result<Vec<Wish>, Refusal> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let (count, most) = (requests.len() + existing.len(), MAX_LINKS as u64);
    if count > MAX_LINKS {
        return Err(Refusal::new(
            RefusalCode::QuotaExceeded,
            format!("a grant has at most {MAX_LINKS} links"),
        )
        .rule("built-in links-per-grant")
        .figures(most, existing.len() as u64));
    }
    let mut names: Vec<String> = existing.iter().map(|link| link.link.info.name.clone()).collect();
    for request in requests.iter().filter(|request| !request.name.is_empty()) {
        check_name(&request.name)?;
        if names.contains(&request.name) {
            return Err(Refusal::new(
                RefusalCode::LinkExists,
                format!("the grant would have two links named {}", request.name),
            ));
        }
        names.push(request.name.clone());
    }
    let mut wishes = Vec::with_capacity(requests.len());
    let mut taken: Vec<PublishedPort> = Vec::new();
    let mut known_already: Vec<(FdIndex, NetnsFd)> = Vec::new();
    if requests.iter().filter(|request| request.kind == LinkKind::Tap).count() > MAX_TAPS {
        return Err(invalid(format!(
            "one request makes at most {MAX_TAPS} taps; add more to the grant afterwards"
        )));
    }
    for request in requests {
        check_bridge(&request.bridge)?;
        let mut request = request.clone();
        if let Some(inside) = inside {
            fits_inside(&request)?;
            fits_around(engine, subject, &inside.grant, &mut request)?;
        }
        let nested = inside.is_some();
        check_figures(&request)?;
        check_ports(&request.ports, &taken)?;
        taken.extend(&request.ports);
        let auto_name = request.name.is_empty();
        if auto_name {
            request.name = free_name(&names);
            names.push(request.name.clone());
        }
        let netns = match (request.kind, request.netns, &mut shown) {
            (_, _, None) => None,
            (LinkKind::Veth, Some(index), Some((caller, fds))) => {
                // Several links may be born in one namespace, which is shown once.
                let known = known_already.iter().find(|(at, _)| *at == index);
                let netns = match known {
                    Some((_, netns)) => netns.try_clone().map_err(check::internal)?,
                    None => {
                        let fd = fds.take(index, "the network namespace")?;
                        own_netns(engine, caller, account, fd, userns)?
                    }
                };
                known_already.push((index, netns.try_clone().map_err(check::internal)?));
                Some(netns)
            }
            (LinkKind::Veth, None, _) => {
                return Err(invalid(
                    "a link of kind veth needs a netns: the network namespace that its far end is born in",
                ));
            }
            (LinkKind::Tap, Some(_), _) => {
                return Err(invalid("a tap has no far end: no network namespace is shown for it"));
            }
            (LinkKind::Tap, None, _) => None,
        };
        let bridges = bridges(engine, subject, &request.bridge);
        let host_ports = host_ports(&request.ports);
        wishes.push(Wish { request, auto_name, netns, bridges, nested, host_ports });
    }
    Ok(wishes)
}

/// Ports as policy looks at them.
pub fn host_ports(ports: &[PublishedPort]) -> Vec<HostPort> {
    ports.iter().map(|port| HostPort { address: port.address, port: port.host }).collect()
}

/// The first of `eth0`, `eth1` … that is not among `names`.
pub fn free_name(names: &[String]) -> String {
    let mut candidates = (0..).map(|number: u32| format!("eth{number}"));
    candidates.find(|name| !names.contains(name)).unwrap_or_default()
}

/// The bridge that is asked for, or all of policy's in its order.
fn bridges(engine: &Engine, subject: &Subject, asked: &str) -> Vec<String> {
    if !asked.is_empty() {
        return vec![asked.to_owned()];
    }
    let policy = engine.policy();
    let allowed = &policy.ruling(subject).network.bridges;
    allowed.iter().map(|bridge| bridge.as_str().to_owned()).filter(|name| exists(engine, name)).collect()
}

/// What a link of a grant inside another one can't be.
///
/// An attacker wants to be where others expect somebody else: on a port of the host's, or by an address that another container of
/// the account's is known by. Neither is to be had from inside; which bridge it is to be the root there says, and policy has
/// the last word on it.
fn fits_inside(request: &LinkRequest) -> Result<(), Refusal> {
    let refused = |message: &str, hint: &str| {
        Err(Refusal::new(RefusalCode::Unsupported, message).rule("built-in nesting").hint(hint))
    };
    let LinkRequest { kind, bridge, address4, address6, ports, .. } = request;
    if bridge.is_empty() {
        return refused(
            "a link of a grant inside a grant has to say its bridge",
            "ListBridges tells which there are; a network without any of the host's `cgrant --link` makes",
        );
    }
    if *kind == LinkKind::Tap {
        return refused("taps are not there for grants inside a grant", "make one in the container itself");
    }
    if address4.is_some() || address6.is_some() {
        return refused("addresses can't be chosen for grants inside a grant", "ask without one");
    }
    if !ports.is_empty() {
        return refused(
            "ports of the host's are not there for grants inside a grant",
            "publish one for the outermost container",
        );
    }
    Ok(())
}

/// Refuses a link where the grant around has none, and has it be no faster than that one.
///
/// An attacker wants on a network that policy lets those inside have links on, but that its own container was not put on, or more of it than
/// that has: in a VLAN of its own, or as fast as the bridge.
fn fits_around(
    engine: &Engine,
    subject: &Subject,
    around: &Grant,
    request: &mut LinkRequest,
) -> Result<(), Refusal> {
    let policy = engine.policy();
    let network = &policy.ruling(subject).network;
    if !network.nesting_bridges.iter().any(|bridge| bridge.as_str() == request.bridge) {
        // Which policy has words for.
        return Ok(());
    }
    let links = links_on(around, &request.bridge);
    let beside: Vec<_> = links.iter().filter(|link| link.vlan == request.vlan).collect();
    if beside.is_empty() {
        let network = match request.vlan {
            0 => format!("bridge {}", request.bridge),
            vlan => format!("VLAN {vlan} of bridge {}", request.bridge),
        };
        let message =
            format!("the container around has no link on {network}, so those inside it can't have one");
        return Err(Refusal::new(RefusalCode::NotAuthorized, message)
            .rule("built-in nesting")
            .hint("have the container around given one first, by whom it was launched"));
    }
    let most = |rate: fn(&LinkInfo) -> u64| match beside.iter().map(|link| rate(link)).min() {
        // Of one without a limit there is as much as policy gives.
        Some(0) | None => 0,
        Some(_) => beside.iter().map(|link| rate(link)).max().unwrap_or(0),
    };
    let (upload, download) = (most(|link| link.upload), most(|link| link.download));
    bound("upload", &mut request.upload, upload, network.upload(0))?;
    bound("download", &mut request.download, download, network.download(0))
}

/// The links that a grant has on a bridge.
pub fn links_on(grant: &Grant, bridge: &str) -> Vec<LinkInfo> {
    let links = all_told(&grant.live().record);
    links.into_iter().filter(|link| link.bridge == bridge).collect()
}

/// A rate of no more than this; one that was not asked for is policy's, if that is less. 0 is no limit.
fn bound(name: &str, rate: &mut u64, most: u64, usual: u64) -> Result<(), Refusal> {
    if most == 0 {
        return Ok(());
    }
    if *rate > most {
        return Err(Refusal::new(
            RefusalCode::QuotaExceeded,
            format!("{name} is more than that of the link that the container around has there"),
        )
        .rule("built-in nesting")
        .figures(most, *rate)
        .hint(format!("ask for {most} bits a second or less, or for none, which gives that")));
    }
    if *rate == 0 {
        *rate = if usual == 0 { most } else { usual.min(most) };
    }
    Ok(())
}

/// What can't be the name of a bridge is refused here, before it gets into any message.
fn check_bridge(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.parse::<BridgeName>().is_ok() {
        return Ok(());
    }
    Err(Refusal::new(RefusalCode::NoSuchBridge, "there is no bridge of that name, which none can have"))
}

/// Is there such a bridge in the configuration?
pub fn exists(engine: &Engine, name: &str) -> bool {
    [DEFAULT_BRIDGE, ACCOUNT_BRIDGE].contains(&name) || engine.network.config.bridges.named(name).is_some()
}

/// Can this be a link's name?
///
/// An attacker wants a name that the kernel or a program takes for something else: `%` is a pattern, `/` and `.` lead
/// elsewhere in sysfs and `/proc/sys`, `all` and `default` are no devices there, and `:` is an alias.
///
/// # Errors
/// [`RefusalCode::InvalidName`].
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let form = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let special = ["lo", "all", "default"].contains(&name);
    if starts && name.len() <= MAX_NAME && name.bytes().all(form) && !special {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::InvalidName,
        format!(
            "a link's name is 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, and begins with a letter or digit; lo, all and default are taken"
        ),
    ))
}

fn check_figures(request: &LinkRequest) -> Result<(), Refusal> {
    if request.mtu != 0 && !(MIN_MTU..=MAX_MTU).contains(&request.mtu) {
        return Err(invalid(format!("mtu is {MIN_MTU} to {MAX_MTU} bytes, or 0 for the bridge's")));
    }
    if request.queue_length > MAX_QUEUE {
        return Err(invalid(format!("queue-length is at most {MAX_QUEUE} packets")));
    }
    for (name, rate) in [("upload", request.upload), ("download", request.download)] {
        if rate != 0 && !RATES.contains(&rate) {
            return Err(invalid(format!(
                "{name} is {} to {} bits a second, or 0 for no limit",
                RATES.start(),
                RATES.end()
            )));
        }
    }
    if request.vlan > 4094 {
        return Err(invalid("vlan is 1 to 4094, or 0 for none"));
    }
    let odd4 = request.address4.is_some_and(|a| a.is_unspecified() || a.is_multicast() || a.is_loopback());
    let odd6 = request
        .address6
        .is_some_and(|a| a.is_unspecified() || a.is_multicast() || a.is_loopback() || is_link_local(a));
    if odd4 || odd6 {
        return Err(invalid("a fixed address is one of a single host, in the bridge's network"));
    }
    Ok(())
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Checks ports that are to be published beside `taken`.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`], [`RefusalCode::AddressInUse`] when two are about the same port of the host's.
pub fn check_ports(ports: &[PublishedPort], taken: &[PublishedPort]) -> Result<(), Refusal> {
    if ports.len() > MAX_PORTS {
        return Err(invalid(format!("a link has at most {MAX_PORTS} published ports")));
    }
    for (at, port) in ports.iter().enumerate() {
        if port.host == 0 || port.container == 0 {
            return Err(invalid("a port is 1 to 65535"));
        }
        if let Some(address) = port.address {
            let odd = match address {
                IpAddr::V4(address) => {
                    address.is_unspecified() || address.is_multicast() || address.is_broadcast()
                }
                IpAddr::V6(address) => {
                    address.is_unspecified()
                        || address.is_multicast()
                        || is_link_local(address)
                        || address.to_ipv4_mapped().is_some()
                }
            };
            if odd {
                return Err(invalid(format!("a port can't be published on {address}"))
                    .hint("leave the address out to publish on all of the host's, IPv4 and IPv6"));
            }
        }
        let earlier = ports.iter().take(at).chain(taken);
        let same = |other: &&PublishedPort| {
            (other.transport, other.host) == (port.transport, port.host)
                && ports_overlap(other.address, port.address)
        };
        if { earlier }.any(|other| same(&other)) {
            return Err(Refusal::new(
                RefusalCode::AddressInUse,
                format!("port {} of the host is published twice in this request", port.host),
            ));
        }
    }
    Ok(())
}

/// A network namespace that the account may have links in.
///
/// An attacker wants an interface in a network that is not its own: another's container, the host, or one that a program of
/// root's uses. The kernel's word on the very descriptor decides that the helper is given: it is a network namespace, not the
/// host's, and ruled by a user namespace that the account made. (Who made a user namespace has every right in it.) When a user
/// namespace is shown in the same request, it must be that one, so that a grant is not given to two containers. A namespace
/// that dies meanwhile is no danger: the descriptor keeps naming it and nothing else. For the root of a grant it has to be one of its
/// own making, which the container that it is in is not: that has the links that it was given outside.
///
/// # Errors
/// [`RefusalCode::InvalidDescriptor`] or [`RefusalCode::NotAuthorized`].
pub fn own_netns(
    engine: &Engine,
    caller: &Caller,
    account: HostUid,
    fd: std::os::fd::OwnedFd,
    userns: Option<&UsernsFd>,
) -> Result<NetnsFd, Refusal> {
    let wrong = |message: &str| Refusal::new(RefusalCode::InvalidDescriptor, message);
    let foreign = |message: String| {
        Refusal::new(RefusalCode::NotAuthorized, message).rule("built-in own-namespaces").hint(
            "show a network namespace that was made in a user namespace of yours (unshare --user --net)",
        )
    };
    let netns = NetnsFd::from_fd(fd)
        .map_err(|error| wrong(&format!("the descriptor of a network namespace is not one: {error}")))?;
    if netns.id().map_err(check::internal)? == engine.own_netns {
        return Err(foreign("the network namespace is the host's own".to_owned()));
    }
    let ruler = netns
        .owner_userns()
        .map_err(|_| foreign("the network namespace is not ruled by a user namespace of yours".to_owned()))?;
    let id = ruler.id().map_err(check::internal)?;
    if let Some(shown) = userns
        && shown.id().map_err(check::internal)? != id
    {
        return Err(foreign(
            "the network namespace is not ruled by the user namespace that was shown with it".to_owned(),
        ));
    }
    // Root rules what others made too, and what was made in the host's own user namespace.
    if caller.uid.is_root() {
        return Ok(netns);
    }
    if id == engine.own_userns {
        return Err(foreign("the network namespace belongs to the host".to_owned()));
    }
    let owner = ruler.owner_uid().map_err(check::internal)?;
    match caller.nested {
        // A range's ids are mapped by one grant at a time: nobody else has this uid.
        Some(_) if owner != caller.uid.0 => {
            Err(foreign("the network namespace belongs to another uid than yours".to_owned()))
        }
        None if owner != account.0 => {
            Err(foreign(format!("the network namespace belongs to uid {owner}, not to you")))
        }
        _ => Ok(netns),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_wire::Transport;

    use super::*;

    fn port(address: Option<&str>, host: u16) -> PublishedPort {
        let address = address.map(|text| text.parse().unwrap());
        PublishedPort { address, host, container: 80, transport: Transport::Tcp }
    }

    fn request() -> LinkRequest {
        LinkRequest {
            kind: LinkKind::Veth,
            netns: None,
            name: String::new(),
            bridge: String::new(),
            address4: None,
            address6: None,
            configure: true,
            mtu: 0,
            queue_length: 0,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: Vec::new(),
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for good in ["eth0", "0", "a.b-c_d", "abcdefghijklmno"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "lo",
            "all",
            "default",
            ".",
            "..",
            "a/b",
            "eth%d",
            "a:1",
            "a b",
            "-a",
            "abcdefghijklmnop",
            "é",
        ] {
            assert_eq!(check_name(bad).unwrap_err().code, RefusalCode::InvalidName, "{bad}");
        }
        assert_eq!(free_name(&["eth0".into(), "eth2".into()]), "eth1");
    }

    #[test]
    fn what_can_be_no_bridge_is_not_repeated() {
        assert!(check_bridge("").is_ok() && check_bridge("lan").is_ok());
        for bad in ["account.1000", "LAN", &"x".repeat(100_000)] {
            let refused = check_bridge(bad).unwrap_err();
            assert_eq!(refused.code, RefusalCode::NoSuchBridge);
            assert!(!refused.message.contains(bad));
        }
    }

    #[test]
    fn figures_are_bounded() {
        assert!(check_figures(&request()).is_ok());
        let good = LinkRequest { mtu: 9000, queue_length: 1000, upload: 8000, vlan: 4094, ..request() };
        assert!(check_figures(&good).is_ok());
        for bad in [
            LinkRequest { mtu: 1279, ..request() },
            LinkRequest { mtu: 65_536, ..request() },
            LinkRequest { queue_length: MAX_QUEUE + 1, ..request() },
            LinkRequest { upload: 7999, ..request() },
            LinkRequest { download: u64::MAX, ..request() },
            LinkRequest { vlan: 4095, ..request() },
            LinkRequest { address4: Some([127, 0, 0, 1].into()), ..request() },
            LinkRequest { address6: Some("fe80::1".parse().unwrap()), ..request() },
        ] {
            assert_eq!(check_figures(&bad).unwrap_err().code, RefusalCode::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn ports_are_checked_alone_and_together() {
        assert!(check_ports(&[port(None, 80), port(None, 81)], &[]).is_ok());
        assert!(check_ports(&[port(Some("127.0.0.1"), 80), port(Some("::1"), 80)], &[]).is_ok());
        for bad in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1", "::ffff:1.2.3.4", "255.255.255.255"] {
            let refused = check_ports(&[port(Some(bad), 80)], &[]).unwrap_err();
            assert_eq!(refused.code, RefusalCode::InvalidArgument, "{bad}");
        }
        assert!(check_ports(&[port(None, 0)], &[]).is_err());
        for (ports, taken) in [
            (vec![port(None, 80), port(Some("::1"), 80)], vec![]),
            (vec![port(None, 80)], vec![port(None, 80)]),
        ] {
            assert_eq!(check_ports(&ports, &taken).unwrap_err().code, RefusalCode::AddressInUse);
        }
        assert!(check_ports(&vec![port(None, 80); MAX_PORTS + 1], &[]).is_err());
    }
}
