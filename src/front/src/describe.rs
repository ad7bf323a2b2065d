//! What the engine says about a grant or the broker, as properties of the contract.

use std::collections::BTreeMap;

use cgrant_proto::names::{CGROUP, GRANT, IDS, MANAGER};
use cgrant_wire::{BrokerInfo, EndReason, GrantInfo, Lifetime, Stat};
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
        IDS => info.range.map(|range| {
            BTreeMap::from([
                ("Uid", Variant::from(range.uid)),
                ("Gid", Variant::from(range.gid)),
                ("Count", Variant::from(range.count)),
            ])
        }),
        _ => None,
    }
}

/// All interfaces of a grant that have properties, with them.
pub fn whole_grant(info: &GrantInfo) -> BTreeMap<&'static str, Properties<'_>> {
    [GRANT, CGROUP, IDS].into_iter().filter_map(|name| Some((name, grant(info, name)?))).collect()
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
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cgrant_wire::{GrantId, Hierarchy, Range};
    use zbus_xml::Node;

    use super::*;
    use crate::contract::OWN;

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
        };
        for name in [GRANT, CGROUP, IDS] {
            assert_eq!(served(&grant(&info, name).unwrap()), contract(name), "{name}");
        }
        info.hierarchies.clear();
        assert_eq!(served(&grant(&info, CGROUP).unwrap()), contract(CGROUP), "empty lists keep their type");
        info.range = None;
        assert!(grant(&info, IDS).is_none());
        assert_eq!(whole_grant(&info).len(), 2);
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
