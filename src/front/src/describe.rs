//! What the engine says about a grant or the broker, as properties of the contract.

use std::collections::BTreeMap;

use cgrant_proto::{
    Port, Transport,
    names::{ACCOUNT, CGROUP, GRANT, IDS, LINKS, MANAGER, MOUNTS},
};
use cgrant_wire::{
    Address, BridgeInfo, BrokerInfo, DepartedInfo, EndReason, Fate, GrantInfo, Lifetime, LinkEnd, LinkInfo,
    LinkKind, PublishedPort, Stat, Usage, UsageRow,
};
use zbus::Variant;

/// Properties of one interface.
pub type Properties<'a> = BTreeMap<&'static str, Variant<'a>>;

/// The properties of a grant, of its interface `interface`; `None` if it does not have that one.
pub fn grant<'a>(info: &'a GrantInfo, interface: &str) -> Option<Properties<'a>> {
    match interface {
        GRANT => Some(BTreeMap::from([
            ("Id", Variant::from(info.id.to_string())),
            ("Name", Variant::from(info.name.as_str())),
            ("Account", Variant::from(info.account)),
            ("Lifetime", Variant::from(lifetime(info.lifetime))),
            ("Created", Variant::from(info.created)),
            ("Parent", Variant::from(info.parent.map(|parent| parent.to_string()).unwrap_or_default())),
        ])),
        CGROUP => Some(BTreeMap::from([
            ("Limits", pairs(&info.limits)),
            ("Frozen", Variant::from(info.frozen)),
            ("Populated", Variant::from(info.populated)),
            ("CgroupId", Variant::from(info.cgroup_id)),
            (
                "Hierarchies",
                Variant::new(
                    info.hierarchies
                        .iter()
                        .map(|hierarchy| (hierarchy.name.as_str(), hierarchy.path.as_str()))
                        .collect::<Vec<_>>(),
                ),
            ),
        ])),
        LINKS => Some(BTreeMap::from([("Links", links(&info.links))])),
        IDS => info.range.map(|range| {
            BTreeMap::from([
                ("Uid", Variant::from(range.uid)),
                ("Gid", Variant::from(range.gid)),
                ("Count", Variant::from(range.count)),
                ("Nesting", Variant::from(info.nesting)),
            ])
        }),
        MOUNTS => info.range.map(|_| BTreeMap::new()),
        _ => None,
    }
}

/// All interfaces of a grant, with their properties.
pub fn whole_grant(info: &GrantInfo) -> BTreeMap<&'static str, Properties<'_>> {
    [GRANT, CGROUP, LINKS, IDS, MOUNTS]
        .into_iter()
        .filter_map(|name| Some((name, grant(info, name)?)))
        .collect()
}

/// The properties of an account, of its interface `interface`; `None` if it does not have that one.
pub fn account<'a>(usage: &'a Usage, interface: &str) -> Option<Properties<'a>> {
    (interface == ACCOUNT).then(|| {
        let figures = |figure: fn(&UsageRow) -> u64| {
            let figures = usage.rows.iter().map(|row| (row.resource.as_str(), figure(row)));
            Variant::from(figures.collect::<BTreeMap<_, _>>())
        };
        BTreeMap::from([
            ("Uid", Variant::from(usage.account)),
            ("Usage", figures(|row| row.used)),
            ("Quotas", figures(|row| row.quota)),
            ("Rule", Variant::from(usage.rule.as_str())),
            ("DiskMeasured", Variant::from(usage.disk_measured)),
        ])
    })
}

/// The properties of the broker, of its interface `interface`; `None` if that has none.
pub fn broker<'a>(info: &'a BrokerInfo, interface: &str) -> Option<Properties<'a>> {
    (interface == MANAGER).then(|| {
        BTreeMap::from([
            ("Version", Variant::from(info.version.as_str())),
            ("Instance", Variant::from(info.instance.as_str())),
            ("Hierarchy", Variant::from(info.hierarchy.as_str())),
            ("Systemd", Variant::from(info.systemd)),
            ("Controllers", Variant::new(info.controllers.iter().map(String::as_str).collect::<Vec<_>>())),
            (
                "Features",
                Variant::new(
                    info.features
                        .iter()
                        .map(|(name, there, without)| (name.as_str(), *there, without.as_str()))
                        .collect::<Vec<_>>(),
                ),
            ),
        ])
    })
}

/// Links, in the order of their names.
pub fn links(links: &[LinkInfo]) -> Variant<'_> {
    let mut links: Vec<&LinkInfo> = links.iter().collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Variant::new(links.into_iter().map(link).collect::<Vec<_>>())
}

/// A link; what does not apply is left out.
pub fn link(info: &LinkInfo) -> Properties<'_> {
    let mut link = Properties::from([
        ("name", Variant::from(info.name.as_str())),
        ("kind", Variant::from(kind(info.kind))),
        ("bridge", Variant::from(info.bridge.as_str())),
        ("host-name", Variant::from(info.host_name.as_str())),
        ("mac", Variant::from(info.mac.to_string())),
        ("ports", Variant::new(info.ports.iter().map(|port| port_text(*port)).collect::<Vec<_>>())),
    ]);
    let addresses = [
        ("address4", info.address4.map(with_prefix)),
        ("address6", info.address6.map(with_prefix)),
        ("gateway4", info.gateway4.map(|address| address.to_string())),
        ("gateway6", info.gateway6.map(|address| address.to_string())),
    ];
    link.extend(addresses.into_iter().filter_map(|(key, text)| Some((key, Variant::from(text?)))));
    let numbers = [("ifindex", info.ifindex), ("mtu", info.mtu), ("queue-length", info.queue_length)];
    link.extend(numbers.into_iter().filter(|(_, n)| *n != 0).map(|(key, n)| (key, Variant::from(n))));
    let rates = [("upload", info.upload), ("download", info.download)];
    link.extend(rates.into_iter().filter(|(_, n)| *n != 0).map(|(key, n)| (key, Variant::from(n))));
    if info.vlan != 0 {
        link.insert("vlan", Variant::from(info.vlan));
    }
    if !info.dns.is_empty() {
        link.insert("dns", Variant::new(info.dns.iter().map(ToString::to_string).collect::<Vec<_>>()));
    }
    link
}

/// Ids of a user who is gone.
pub fn departed(info: &DepartedInfo) -> (u32, &str, u32, u32, &'static str, u32) {
    let fate = match info.fate {
        Fate::Retired => "retired",
        Fate::Leaving => "leaving",
        Fate::Taken => "taken",
    };
    (info.account, &info.user, info.first, info.count, fate, info.grants)
}

/// A bridge that the caller may have links on.
pub fn bridge(info: &BridgeInfo) -> Properties<'_> {
    let mut bridge = Properties::from([
        ("name", Variant::from(info.name.as_str())),
        ("device", Variant::from(info.device.as_str())),
        ("managed", Variant::from(info.managed)),
        ("links", Variant::from(info.links)),
    ]);
    let networks = [
        ("subnet4", info.subnet4.map(with_prefix)),
        ("subnet6", info.subnet6.map(with_prefix)),
        ("clash", info.clash.map(with_prefix)),
    ];
    bridge.extend(networks.into_iter().filter_map(|(key, text)| Some((key, Variant::from(text?)))));
    bridge
}

fn with_prefix<A: std::fmt::Display>(Address { address, prefix }: Address<A>) -> String {
    format!("{address}/{prefix}")
}

const fn kind(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::Veth => "veth",
        LinkKind::Tap => "tap",
    }
}

fn port_text(port: PublishedPort) -> String {
    let PublishedPort { address, host, container, transport } = port;
    let transport = match transport {
        cgrant_wire::Transport::Tcp => Transport::Tcp,
        cgrant_wire::Transport::Udp => Transport::Udp,
    };
    Port { address, host, container, transport }.to_string()
}

/// The figures of a grant; one that the kernel does not give is left out.
pub fn stat(stat: &Stat) -> Properties<'_> {
    let figures = [
        ("memory-current", stat.memory_current),
        ("memory-peak", stat.memory_peak),
        ("swap-current", stat.swap_current),
        ("oom-kills", stat.oom_kills),
        ("cpu-usage-usec", stat.cpu_usage_usec),
        ("cpu-user-usec", stat.cpu_user_usec),
        ("cpu-system-usec", stat.cpu_system_usec),
        ("cpu-throttled-usec", stat.cpu_throttled_usec),
        ("pids-current", stat.pids_current),
    ];
    let mut properties: Properties<'_> =
        figures.into_iter().filter_map(|(key, figure)| Some((key, Variant::from(figure?)))).collect();
    if !stat.io.is_empty() {
        properties.insert("io", Variant::new(stat.io.clone()));
    }
    if !stat.pressure.is_empty() {
        let rows: Vec<_> = stat
            .pressure
            .iter()
            .map(|(resource, kind, [ten, sixty, three_hundred], total)| {
                (resource.as_str(), kind.as_str(), *ten, *sixty, *three_hundred, *total)
            })
            .collect();
        properties.insert("pressure", Variant::new(rows));
    }
    properties
}

/// Keys and values as `a{ss}`.
pub fn pairs(pairs: &[(String, String)]) -> Variant<'_> {
    Variant::from(dictionary(pairs))
}

/// Keys and values as a map.
pub fn dictionary(pairs: &[(String, String)]) -> BTreeMap<&str, &str> {
    pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// What ends a grant, in the contract's word.
pub const fn lifetime(lifetime: Lifetime) -> &'static str {
    match lifetime {
        Lifetime::Process => "process",
        Lifetime::Connection => "connection",
        Lifetime::Persistent => "persistent",
        Lifetime::Populated => "populated",
    }
}

/// Why a grant ended, in the contract's word.
pub const fn reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Released => "released",
        EndReason::HolderDied => "holder-died",
        EndReason::ConnectionClosed => "connection-closed",
        EndReason::Empty => "empty",
        EndReason::Lost => "lost",
        EndReason::LoggedOut => "logged-out",
        EndReason::UserGone => "user-gone",
        EndReason::ParentEnded => "parent-ended",
    }
}

/// Why a link is no more, in the contract's word.
pub const fn link_end(reason: LinkEnd) -> &'static str {
    match reason {
        LinkEnd::Removed => "removed",
        LinkEnd::FarEndGone => "far-end-gone",
        LinkEnd::Lost => "lost",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
pub mod tests {
    use cgrant_wire::{GrantId, Hierarchy, Mac, Range};
    use zbus_xml::Node;

    use super::*;
    use crate::contract::OWN;

    /// A link with everything that one can have.
    pub fn link(name: &str) -> LinkInfo {
        LinkInfo {
            name: name.to_owned(),
            kind: LinkKind::Veth,
            bridge: "default".to_owned(),
            host_name: "cgv0123456789".to_owned(),
            ifindex: 7,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address4: Some(Address { address: [10, 1, 2, 16].into(), prefix: 22 }),
            address6: Some(Address { address: "fd00::10".parse().unwrap(), prefix: 64 }),
            gateway4: Some([10, 1, 2, 1].into()),
            gateway6: Some("fd00::1".parse().unwrap()),
            dns: vec![[10, 1, 2, 2].into()],
            mtu: 1500,
            queue_length: 1000,
            upload: 1_000_000,
            download: 2_000_000,
            vlan: 12,
            ports: vec![PublishedPort {
                address: Some("::1".parse().unwrap()),
                host: 8080,
                container: 80,
                transport: cgrant_wire::Transport::Udp,
            }],
        }
    }

    /// Name and signature of each property that the contract has for an interface.
    fn contract(name: &str) -> BTreeMap<String, String> {
        OWN.iter()
            .flat_map(|xml| Node::from_reader(xml.as_bytes()).unwrap().interfaces().to_vec())
            .filter(|interface| interface.name() == name)
            .flat_map(|interface| {
                interface
                    .properties()
                    .map(|property| (property.name().to_string(), property.ty().to_string()))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    fn served(properties: &Properties<'_>) -> BTreeMap<String, String> {
        properties
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.value_signature().to_string()))
            .collect()
    }

    #[test]
    fn properties_and_their_types_are_those_of_the_contract() {
        let mut info = GrantInfo {
            id: GrantId(1),
            name: "name".to_owned(),
            account: 1000,
            lifetime: Lifetime::Process,
            range: Some(Range { uid: 1, gid: 2, count: 3 }),
            limits: Vec::new(),
            frozen: false,
            populated: true,
            created: 0,
            cgroup_id: 7,
            hierarchies: vec![Hierarchy { name: "cgroup2".to_owned(), path: "/x".to_owned() }],
            links: vec![link("eth0")],
            nesting: 0,
            parent: None,
        };
        for name in [GRANT, CGROUP, LINKS, IDS] {
            assert_eq!(served(&grant(&info, name).unwrap()), contract(name), "{name}");
        }
        info.hierarchies.clear();
        info.links.clear();
        for name in [CGROUP, LINKS] {
            assert_eq!(served(&grant(&info, name).unwrap()), contract(name), "empty lists keep their type");
        }
        info.range = None;
        assert!(grant(&info, IDS).is_none());
        assert_eq!(whole_grant(&info).len(), 3);
        let usage = Usage {
            account: 1000,
            rule: String::new(),
            rows: vec![UsageRow { resource: "grants".to_owned(), used: 1, quota: 2 }],
            disk_measured: 3,
        };
        assert_eq!(served(&account(&usage, ACCOUNT).unwrap()), contract(ACCOUNT));
        let info = BrokerInfo {
            version: String::new(),
            instance: String::new(),
            hierarchy: String::new(),
            systemd: false,
            controllers: Vec::new(),
            features: Vec::new(),
            account: 0,
        };
        assert_eq!(served(&broker(&info, MANAGER).unwrap()), contract(MANAGER));
    }

    #[test]
    fn a_link_is_described_by_what_applies() {
        let types = |link: &Properties<'_>| -> Vec<_> {
            link.iter().map(|(key, value)| format!("{key} {}", value.value_signature())).collect()
        };
        let whole = link("eth0");
        let full = super::link(&whole);
        assert_eq!(
            types(&full).join(", "),
            "address4 s, address6 s, bridge s, dns as, download t, gateway4 s, gateway6 s, host-name s, \
             ifindex u, kind s, mac s, mtu u, name s, ports as, queue-length u, upload t, vlan q"
        );
        assert_eq!(full["address4"], Variant::new("10.1.2.16/22"));
        assert_eq!(full["mac"], Variant::new("02:00:00:00:00:01"));
        assert_eq!(full["ports"], Variant::new(vec!["[::1]:8080:80/udp"]));
        let bare = LinkInfo {
            address4: None,
            address6: None,
            gateway4: None,
            gateway6: None,
            ifindex: 0,
            dns: Vec::new(),
            mtu: 0,
            queue_length: 0,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: Vec::new(),
            ..link("eth0")
        };
        assert_eq!(
            types(&super::link(&bare)).join(", "),
            "bridge s, host-name s, kind s, mac s, name s, ports as"
        );
    }

    #[test]
    fn links_are_in_the_order_of_their_names() {
        let both = [link("eth1"), link("eth0")];
        let Variant::Array(list) = links(&both) else { panic!("no list") };
        let text = list.iter().map(|link| format!("{link}")).collect::<Vec<_>>();
        assert!(text[0].contains("eth0") && text[1].contains("eth1"), "{text:?}");
    }

    #[test]
    fn a_figure_that_is_not_known_is_left_out() {
        assert!(stat(&Stat::default()).is_empty());
        let some = Stat {
            memory_current: Some(5),
            io: vec![(8, 0, 1, 2, 3, 4)],
            pressure: vec![("cpu".to_owned(), "some".to_owned(), [1, 2, 3], 4)],
            ..Stat::default()
        };
        let types: Vec<_> =
            stat(&some).into_iter().map(|(key, value)| (key, value.value_signature().to_string())).collect();
        assert_eq!(
            types,
            [
                ("io", "a(uutttt)".to_owned()),
                ("memory-current", "t".to_owned()),
                ("pressure", "a(ssuuut)".to_owned())
            ]
        );
    }
}
