//! What stands in the way of links on this host: rows for `doctor`.
//!
//! What the kernel can do is tried, in a network namespace that a child makes for it and that ends with the child. Nothing of the
//! host is changed, but that the kernel may load modules as it would with the first link.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Instant,
};

use cgrant_sys::{
    Clone3, NetnsFd,
    netlink::{LinkState, NewVeth, Route},
};
use cgrant_wire::{
    GrantId,
    link::{Address, LinkInfo, LinkKind, Mac},
    net::{Bridge, BridgeKind, Finding, Link, LinkKey},
    patience,
};
use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
    process::Signal,
};
use serde::Deserialize;

use crate::{bridge::is_bridge, failure::chain, firewall::Firewall, state::Net, sysctl};

/// Most that it says, in bytes.
const MOST: u64 = 64 * 1024;
/// Where distributions put the name server.
const DNSMASQ: [&str; 3] = ["/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq", "/sbin/dnsmasq"];

fn good(subject: &str, found: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), good: true, found: found.into(), remedy: String::new() }
}

fn bad(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { subject: subject.into(), good: false, found: found.into(), remedy: remedy.into() }
}

/// All rows.
pub fn examine(net: &Net) -> Vec<Finding> {
    let mut findings = kernel();
    findings.push(name_server());
    findings.push(taps());
    findings.push(forwarding(net, "IPv4 forwarding", "ipv4/conf"));
    findings.push(forwarding(net, "IPv6 forwarding", "ipv6/conf"));
    findings.extend(bridge_netfilter());
    findings.extend(foreign_rules(net));
    findings.extend(clashes(net));
    findings.extend(sharing(net));
    findings
}

fn name_server() -> Finding {
    match DNSMASQ.into_iter().find(|place| Path::new(place).exists()) {
        Some(place) => good("dnsmasq", place),
        None => bad(
            "dnsmasq",
            "the program is not installed: no names and no DHCP on bridges",
            "install the package dnsmasq-base",
        ),
    }
}

fn taps() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        good("taps", "/dev/net/tun")
    } else {
        bad("taps", "there is no /dev/net/tun: no links for virtual machines", "modprobe tun")
    }
}

fn forwarding(net: &Net, subject: &str, family: &str) -> Finding {
    let all = if family.starts_with("ipv4") { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
    let Some(all) = sysctl::read(all) else {
        return good(subject, "the kernel was started without it");
    };
    if all == "1" {
        return good(subject, "on for the whole host");
    }
    if !net.is_routing {
        return good(subject, "off; the interfaces that need it get it with the first link");
    }
    let is_single = family.starts_with("ipv6") && net.forwards_singly();
    let name = if is_single { "force_forwarding" } else { "forwarding" };
    let off = net.bridges.values().filter(|bridge| bridge.is_own()).find(|bridge| {
        sysctl::read(&format!("{family}/{}/{name}", bridge.bridge.device)).as_deref() == Some("0")
    });
    match off {
        None => good(subject, "on for the interfaces that need it"),
        Some(bridge) => bad(
            subject,
            format!("somebody has switched it off for {}", bridge.bridge.device),
            format!("sysctl -w net.{}.{}.{name}=1", family.replace('/', "."), bridge.bridge.device),
        ),
    }
}

/// Not a fault either way: everything works with 0 and 1. It tells which other rules see what is bridged.
fn bridge_netfilter() -> Option<Finding> {
    let value = sysctl::read("bridge/bridge-nf-call-iptables")?;
    let what = if value == "1" { "frames on bridges pass the host's forward rules too" } else { "off" };
    Some(good("br_netfilter", what))
}

fn clashes(net: &Net) -> Vec<Finding> {
    net.clashes
        .iter()
        .map(|(bridge, with)| {
            bad(
                "networks",
                format!(
                    "the host's network {}/{} is also that of the bridge {bridge}",
                    with.address, with.prefix
                ),
                "give the bridge another network in cgrantd.toml, and start its containers anew",
            )
        })
        .collect()
}

/// Others that route by what the broker switched on, and what its guard keeps from them: Docker and libvirt with networks of
/// their own, say.
fn sharing(net: &Net) -> Vec<Finding> {
    let guard = net.firewall.guard();
    let Ok(devices) = net.route.links() else { return Vec::new() };
    let is_others = |device: &&LinkState| device.name != "lo" && !net.is_ours(device);
    let others: Vec<&LinkState> = devices.iter().filter(is_others).collect();
    let mut findings = Vec::new();
    for (family, prefix, name, guarded) in [
        ("IPv4", "ipv4/conf", "forwarding", &guard.forwarding4),
        ("IPv6", "ipv6/conf", "force_forwarding", &guard.forwarding6),
    ] {
        let others = others.iter().filter(|device| !guarded.contains(&device.name));
        let routes = |device: &LinkState| {
            sysctl::read(&format!("{prefix}/{}/{name}", device.name)).as_deref() == Some("1")
        };
        let routing = others.filter(|device| routes(device));
        let names: Vec<&str> = routing.map(|device| device.name.as_str()).collect();
        if !guarded.is_empty() && !names.is_empty() {
            findings.push(shared(family, &names.join(", "), &guarded.join(", ")));
        }
    }
    if !guard.forwarding6.is_empty() && !net.forwards_singly() {
        let addresses = net.route.addresses().unwrap_or_default();
        let has_network = |device: &&&LinkState| {
            is_bridge(device)
                && addresses.iter().any(|one| {
                    one.ifindex == device.index
                        && matches!(one.address, std::net::IpAddr::V6(six) if !six.is_unicast_link_local())
                })
        };
        let names: Vec<&str> = others.iter().filter(has_network).map(|device| device.name.as_str()).collect();
        if !names.is_empty() {
            findings.push(shared("IPv6", &names.join(", "), &guard.forwarding6.join(", ")));
        }
    }
    findings
}

fn shared(family: &str, names: &str, guarded: &str) -> Finding {
    let switch = if family == "IPv4" { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
    bad(
        "shared forwarding",
        format!(
            "{names}: packets of {family} for it that come in by {guarded} are dropped, because that routes for the broker's links only, and no more when there is none"
        ),
        format!(
            "if it shall reach others by this host: `{switch} = 1` in /etc/sysctl.d, then `sysctl --system` when there is no link"
        ),
    )
}

/// One line of `nft -j list chains`.
#[derive(Debug, Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    #[serde(default)]
    hook: String,
    #[serde(default)]
    policy: String,
}

#[derive(Debug, Deserialize)]
struct Listed {
    chain: Option<Chain>,
}

#[derive(Debug, Deserialize)]
struct Listing {
    nftables: Vec<Listed>,
}

fn foreign_rules(net: &Net) -> Vec<Finding> {
    let mut findings = match net.firewall.list_chains() {
        Ok(listing) => foreign_drops(&listing, &net.firewall.table(), &devices(net)),
        Err(error) => vec![bad("nftables", chain(&error), "install the package nftables")],
    };
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "filter") {
        findings.push(bad(
            "foreign rules",
            "the old iptables has a table filter, whose policy is not visible here",
            "see that `iptables-legacy -S FORWARD` drops nothing of the bridges'",
        ));
    }
    if findings.is_empty() {
        findings.push(good("foreign rules", "none that drops what is forwarded"));
    }
    findings
}

/// The bridges that rules of others would have to let pass.
fn devices(net: &Net) -> Vec<String> {
    let own: Vec<_> = net
        .bridges
        .values()
        .filter(|bridge| bridge.is_own())
        .map(|bridge| bridge.bridge.device.clone())
        .collect();
    if own.is_empty() { vec!["cgrant0".into()] } else { own }
}

/// Chains of others that drop what no rule of theirs lets pass: an accept of ours can't help against them.
fn foreign_drops(listing: &[u8], own: &str, bridges: &[String]) -> Vec<Finding> {
    let Ok(listing) = serde_json::from_slice::<Listing>(listing) else {
        return vec![bad("foreign rules", "what nft lists is not understood", "look at `nft list chains`")];
    };
    let chains: Vec<Chain> = listing.nftables.into_iter().filter_map(|listed| listed.chain).collect();
    let has = |name: &str| chains.iter().any(|chain| chain.name == name);
    let drops = |chain: &&Chain| {
        let is_routed = matches!(chain.family.as_str(), "ip" | "ip6" | "inet");
        is_routed && chain.hook == "forward" && chain.policy == "drop" && chain.table != own
    };
    let mut findings: Vec<Finding> = chains
        .iter()
        .filter(drops)
        .map(|chain| {
            let found = format!(
                "the chain {} of the table {} {} drops what is forwarded and not let pass there",
                chain.name, chain.family, chain.table
            );
            bad("foreign rules", found, remedy(chain, &has, bridges))
        })
        .collect();
    // It refuses by its last rule, not by policy.
    if chains.iter().any(|chain| chain.table == "firewalld" && chain.hook == "forward") {
        let each = bridges
            .iter()
            .map(|bridge| format!("firewall-cmd --permanent --zone=trusted --add-interface={bridge}"));
        let remedy = format!("{}; firewall-cmd --reload", each.collect::<Vec<_>>().join("; "));
        findings.push(bad("foreign rules", "firewalld refuses what is forwarded between its zones", remedy));
    }
    findings
}

fn remedy(chain: &Chain, has: &dyn Fn(&str) -> bool, bridges: &[String]) -> String {
    let iptables = if chain.family == "ip6" { "ip6tables" } else { "iptables" };
    let each = |line: &dyn Fn(&str) -> String| {
        bridges.iter().map(|bridge| line(bridge)).collect::<Vec<_>>().join("; ")
    };
    let is_iptables = chain.table == "filter" && chain.name == "FORWARD";
    if is_iptables && (has("ufw-user-forward") || has("ufw-before-forward")) {
        return each(&|bridge| format!("ufw route allow in on {bridge}; ufw route allow out on {bridge}"));
    }
    if is_iptables {
        let into = if has("DOCKER-USER") { "DOCKER-USER" } else { "FORWARD" };
        return each(&|bridge| {
            format!("{iptables} -I {into} -i {bridge} -j ACCEPT; {iptables} -I {into} -o {bridge} -j ACCEPT")
        });
    }
    let Chain { family, table, name, .. } = chain;
    each(&|bridge| {
        format!(
            "nft insert rule {family} {table} {name} iifname {bridge} accept; \
             nft insert rule {family} {table} {name} oifname {bridge} accept"
        )
    })
}

/// What a child found out about the kernel: one line each, `subject`, tab, and what was wrong or nothing.
fn kernel() -> Vec<Finding> {
    let told = match ask_child() {
        Ok(told) => told,
        Err(error) => {
            return vec![bad("kernel", format!("what it can do could not be tried: {error}"), "try again")];
        }
    };
    let mut lines = told.lines().filter_map(|line| line.split_once('\t')).peekable();
    if lines.peek().is_none() {
        return vec![bad("kernel", "what it can do could not be tried in time", "try again")];
    }
    lines
        .map(
            |(subject, wrong)| {
                if wrong.is_empty() {
                    good(subject, "works")
                } else {
                    bad(subject, wrong, remedy_of(subject))
                }
            },
        )
        .collect()
}

fn remedy_of(subject: &str) -> &'static str {
    match subject {
        "bridge" => "modprobe bridge",
        "veth" => "modprobe veth",
        "tbf" => "modprobe sch_tbf; without it only limits of what a container receives are refused",
        "vlan filtering" => {
            "a kernel with CONFIG_BRIDGE_VLAN_FILTERING; without it only links with a VLAN id are refused"
        }
        "nftables" => {
            "install the package nftables; a kernel with nf_tables, its families inet, bridge and netdev, and NAT"
        }
        _ => "a kernel that has network namespaces",
    }
}

fn ask_child() -> std::io::Result<String> {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWNET).spawn(|| {
        try_kernel(&mut File::from(theirs));
        0
    })?;
    let deadline = Instant::now() + patience::EXAMINE;
    let mut told = Vec::new();
    let result = read_until(&ours, deadline, &mut told);
    // It has ended, or has had its time.
    let _ = child.pidfd.send_signal(Signal::KILL);
    let _ = child.pidfd.wait();
    result.map(|()| String::from_utf8_lossy(&told).into_owned())
}

fn read_until(from: &OwnedFd, deadline: Instant, told: &mut Vec<u8>) -> std::io::Result<()> {
    let mut file = File::from(from.try_clone()?).take(MOST);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        match poll(&mut [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 4096];
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        told.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
}

/// In a network namespace of our own, where everything may be made.
fn try_kernel(out: &mut File) {
    let mut say = |subject: &str, result: Result<(), String>| {
        let wrong = result.err().unwrap_or_default().replace(['\n', '\t'], " ");
        let _ = writeln!(out, "{subject}\t{wrong}");
        wrong.is_empty()
    };
    let (route, netns) = match (Route::open(), NetnsFd::own()) {
        (Ok(route), Ok(netns)) => (route, netns),
        (Err(error), _) | (_, Err(error)) => {
            say("network namespaces", Err(error.to_string()));
            return;
        }
    };
    let text = |error: &dyn std::error::Error| chain(error);
    let bridge = route.add_bridge("probe", "cgrant probe", [2, 0, 0, 0, 0, 1], 1500, false);
    say("bridge", bridge.as_ref().map(|_| ()).map_err(|error| text(error)));
    let filtering = route.add_bridge("vlans", "cgrant probe", [2, 0, 0, 0, 0, 2], 1500, true);
    say("vlan filtering", filtering.map(|_| ()).map_err(|error| text(&error)));
    let veth = route.add_veth(&NewVeth {
        name: "near",
        alias: "cgrant probe",
        mtu: 1500,
        queue_length: 0,
        master: bridge.ok(),
        peer_name: "far",
        peer_mac: [2, 0, 0, 0, 0, 3],
        peer_netns: &netns,
    });
    if !say("veth", veth.as_ref().map(|_| ()).map_err(|error| text(error))) {
        return;
    }
    let limited = veth.and_then(|index| route.add_tbf(index, 1_000_000, 65_536, 65_536));
    say("tbf", limited.map_err(|error| text(&error)));
    let (bridge, link) = sample();
    let walled = Firewall::new("probe").add_link(&bridge, "near", &link);
    say("nftables", walled.map_err(|error| text(&error)));
}

/// A link that has a bit of everything, for rules.
fn sample() -> (Bridge, Link) {
    let address4 = |last| Address { address: Ipv4Addr::new(10, 0, 0, last), prefix: 24 };
    let address6 = |last| Address { address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last), prefix: 64 };
    let bridge = Bridge {
        name: "probe".into(),
        device: "probe".into(),
        kind: BridgeKind::Own {
            gateway4: Some(address4(1)),
            gateway6: Some(address6(1)),
            server4: Some(Ipv4Addr::new(10, 0, 0, 2)),
            server6: Some(address6(2).address),
        },
        mtu: 1500,
    };
    let info = LinkInfo {
        name: "eth0".into(),
        kind: LinkKind::Veth,
        bridge: "probe".into(),
        host_name: "near".into(),
        ifindex: 0,
        mac: Mac([2, 0, 0, 0, 0, 3]),
        address4: Some(address4(16)),
        address6: Some(address6(16)),
        gateway4: Some(address4(1).address),
        gateway6: Some(address6(1).address),
        dns: Vec::new(),
        mtu: 1500,
        queue_length: 0,
        upload: 1_000_000,
        download: 0,
        vlan: 0,
        ports: Vec::new(),
    };
    let link = Link {
        key: LinkKey { grant: GrantId(0), name: "eth0".into() },
        account: 0,
        host_name: "probe".into(),
        names: Vec::new(),
        info,
        configure: false,
        open: false,
        any_address: false,
    };
    (bridge, link)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn drops(chains: &str) -> Vec<Finding> {
        let listing = format!(r#"{{"nftables":[{{"metainfo":{{"version":"1"}}}},{chains}]}}"#);
        foreign_drops(listing.as_bytes(), "cgrant-default", &["cgrant0".into()])
    }

    fn forward(table: &str, name: &str, policy: &str) -> String {
        format!(
            r#"{{"chain":{{"family":"ip","table":"{table}","name":"{name}","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"{policy}"}}}}"#
        )
    }

    #[test]
    fn a_foreign_drop_is_named_with_its_fix() {
        let found = drops(&forward("mine", "fwd", "drop"));
        assert!(found[0].found.contains("fwd of the table ip mine"), "{found:?}");
        assert!(
            found[0].remedy.starts_with("nft insert rule ip mine fwd iifname cgrant0 accept"),
            "{found:?}"
        );
        assert_eq!(drops(&forward("mine", "fwd", "accept")), []);
        assert_eq!(drops(&forward("cgrant-default", "forward", "drop")), []);
    }

    #[test]
    fn the_fix_is_the_one_of_who_made_the_rule() {
        let plain = forward("filter", "FORWARD", "drop");
        let with = |name: &str| {
            format!(r#"{plain},{{"chain":{{"family":"ip","table":"filter","name":"{name}","handle":2}}}}"#)
        };
        assert!(drops(&plain)[0].remedy.starts_with("iptables -I FORWARD -i cgrant0"));
        assert!(drops(&with("DOCKER-USER"))[0].remedy.starts_with("iptables -I DOCKER-USER -i cgrant0"));
        assert!(drops(&with("ufw-user-forward"))[0].remedy.starts_with("ufw route allow in on cgrant0"));
        let firewalld = forward("firewalld", "filter_FORWARD", "accept");
        assert!(drops(&firewalld)[0].remedy.contains("firewall-cmd"), "{:?}", drops(&firewalld));
    }

    #[test]
    fn nonsense_is_told_as_such() {
        assert!(!foreign_drops(b"{", "x", &[])[0].good);
    }
}
