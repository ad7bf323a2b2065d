//! What the container around does with packets of those inside: it routes and translates them, and lets nobody else in.
//!
//! May touch one table of nftables and settings below `/proc/sys/net`, of this network namespace.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use cgrant_sys::netlink::nftables::{Chain, Hook, Match, Rule, Verdict, replace_table};

use super::{
    InnerError,
    bridge::{BRIDGE, Bridge},
    kernel,
};

/// Name of the table.
const TABLE: &str = "cgrant-inner";
const SETTINGS: &str = "/proc/sys/net";
const IPPROTO_ICMP: u8 = 1;
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
/// What a host sends to itself.
pub(super) const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);

/// Sets everything, at each link anew: somebody may have flushed all rules meanwhile.
///
/// A container inside wants to be taken for somebody else outside, so none gets out with an address that is not of its bridge's
/// network, nor with its own. It wants at services of the container around, as that one at the host's: it may ping it, no
/// more. Those around want at it: they reach what it answers to, and what is published, and nothing else. The rules stand before
/// anything is routed.
pub(super) fn set(bridge: &Bridge) -> Result<(), InnerError> {
    replace_table(TABLE, &chains(bridge))?;
    let routed = write("ipv4/ip_forward", "1").and_then(|()| match bridge.own6 {
        Some(_) => route_ipv6(),
        None => Ok(()),
    });
    routed.map_err(kernel("this container can't be made to route"))
}

/// Has the bridge route what this container sends to itself, for published ports. The rules of each link keep those on it from that.
pub(super) fn route_loopback() -> Result<(), InnerError> {
    write(&format!("ipv4/conf/{BRIDGE}/route_localnet"), "1")
        .map_err(kernel("the bridge can't be made to route from 127.0.0.1"))
}

fn chains(bridge: &Bridge) -> [Chain; 3] {
    let index = bridge.index;
    let networks: Vec<(IpAddr, u8)> = bridge.networks().collect();
    let each = |rule: fn(u32, IpAddr, u8) -> Rule| {
        networks.iter().map(move |(net, prefix)| rule(index, *net, *prefix))
    };
    let forged = each(|index, network, prefix| {
        (vec![Match::From(index), Match::ForeignSource(network, prefix)], Verdict::Drop)
    });
    let uninvited = [Match::To(index), Match::NotFrom(index), Match::Unknown, Match::NotRedirected];
    let uninvited = (uninvited.into(), Verdict::Drop);
    let translated = each(|index, network, prefix| {
        (vec![Match::NotTo(index), Match::Source(network, prefix)], Verdict::Masquerade)
    });
    let but_ping = [Match::NotProtocol(IPPROTO_ICMP), Match::NotProtocol(IPPROTO_ICMPV6)];
    let service = [&[Match::From(index), Match::Unknown], &but_ping[..]].concat();
    [
        Chain { name: "forward", hook: Hook::Forward, rules: forged.chain([uninvited]).collect() },
        Chain { name: "input", hook: Hook::Input, rules: vec![(service, Verdict::Drop)] },
        Chain { name: "out", hook: Hook::SourceNat, rules: translated.collect() },
    ]
}

/// A router believes no other router, if it is not told to: what the container around learned so far it is to learn on, by the
/// devices that it has. Those that come later, the ports of links among them, begin as the kernel has it.
fn route_ipv6() -> io::Result<()> {
    const ALL: &str = "ipv6/conf/all/forwarding";
    if read(ALL).as_deref() == Some("1") {
        return Ok(());
    }
    for device in fs::read_dir(Path::new(SETTINGS).join("ipv6/conf"))? {
        let name = device?.file_name();
        if ["all", "default", BRIDGE].iter().any(|other| name == *other) {
            continue;
        }
        let setting = format!("ipv6/conf/{}/accept_ra", name.display());
        if read(&setting).as_deref() == Some("1") {
            // The device may be gone again.
            let _ = write(&setting, "2");
        }
    }
    write(ALL, "1")
}

/// Has the port of a link speak for nobody: what comes by it is the bridge's. A kernel without IPv6 has nothing to be silenced.
pub(super) fn silence(port: &str) -> io::Result<()> {
    match write(&format!("ipv6/conf/{port}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Makes nothing of what those on a bridge advertise. A kernel without IPv6 has nothing to be set.
pub(super) fn quieten(device: &str) {
    for name in ["accept_ra", "autoconf", "accept_redirects", "accept_dad"] {
        let _ = write(&format!("ipv6/conf/{device}/{name}"), "0");
    }
}

fn read(setting: &str) -> Option<String> {
    fs::read_to_string(Path::new(SETTINGS).join(setting)).ok().map(|text| text.trim().to_owned())
}

fn write(setting: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new(SETTINGS).join(setting), value)
}
