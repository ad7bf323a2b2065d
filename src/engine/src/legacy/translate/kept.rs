//! Names whose content is the same in both, or always the same on cgroup2.

use super::{Equal, Step, Texts, Unwritten, never, one};

pub(super) const EQUALS: &[Equal] = &[
    // Threads and processes are read elsewhere, with those of the leaf; owner and mode are these.
    Equal { key: "tasks", files: &["cgroup.procs"], own: 1, read: same, write: never },
    Equal {
        key: "freezer.state",
        files: &["cgroup.freeze", "cgroup.events"],
        own: 1,
        read: state,
        write: write_state,
    },
    Equal { key: "freezer.self_freezing", files: &["cgroup.freeze"], own: 1, read: same, write: never },
    // A v1 cgroup below one with `cgroup.clone_children`, which CGManager sets, begins with what is above it; on cgroup2 it has that
    // as long as it is given nothing else.
    Equal {
        key: "cpuset.cpus",
        files: &["cpuset.cpus", "cpuset.cpus.effective"],
        own: 1,
        read: own_or_effective,
        write: verbatim,
    },
    Equal { key: "cpuset.cpus", files: &["cpuset.cpus.effective"], own: 1, read: same, write: never },
    Equal {
        key: "cpuset.mems",
        files: &["cpuset.mems", "cpuset.mems.effective"],
        own: 1,
        read: own_or_effective,
        write: verbatim,
    },
    Equal { key: "cpuset.mems", files: &["cpuset.mems.effective"], own: 1, read: same, write: never },
    Equal {
        key: "cpuset.effective_cpus",
        files: &["cpuset.cpus.effective"],
        own: 1,
        read: same,
        write: never,
    },
    Equal {
        key: "cpuset.effective_mems",
        files: &["cpuset.mems.effective"],
        own: 1,
        read: same,
        write: never,
    },
    Equal { key: "memory.use_hierarchy", files: &["memory.max"], own: 0, read: yes, write: write_yes },
    Equal { key: "memory.use_hierarchy", files: &["memory.stat"], own: 0, read: yes, write: write_yes },
    Equal { key: "cgroup.clone_children", files: &["cpuset.cpus"], own: 0, read: yes, write: write_yes },
];

fn same(texts: &Texts<'_>) -> Option<String> {
    Some(texts.at(0).to_owned())
}

fn verbatim(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    one(value.to_owned(), texts)
}

fn own_or_effective(texts: &Texts<'_>) -> Option<String> {
    Some(if texts.at(0).is_empty() { texts.at(1) } else { texts.at(0) }.to_owned())
}

/// `cgroup.events` says when everything stands still.
fn state(texts: &Texts<'_>) -> Option<String> {
    let frozen = super::figure(texts.at(1), "frozen")? == 1;
    let state = match (frozen, texts.at(0)) {
        (true, _) => "FROZEN",
        (false, "1") => "FREEZING",
        (false, _) => "THAWED",
    };
    Some(state.to_owned())
}

fn write_state(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    match value {
        "FROZEN" => one("1".to_owned(), texts),
        "THAWED" => one("0".to_owned(), texts),
        _ => Err(Unwritten::Value),
    }
}

fn yes(_: &Texts<'_>) -> Option<String> {
    Some("1".to_owned())
}

fn write_yes(value: &str, _: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    match value {
        "1" => Ok(Vec::new()),
        "0" => Err(Unwritten::Never("it is always on there")),
        _ => Err(Unwritten::Value),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::{
        super::tests::{read, write},
        *,
    };

    #[test]
    fn freezing_is_seen() {
        let state = |freeze, events| {
            read("freezer.state", &[("cgroup.freeze", freeze), ("cgroup.events", events)]).unwrap()
        };
        assert_eq!(state("0", "populated 1\nfrozen 0"), "THAWED");
        assert_eq!(state("1", "populated 1\nfrozen 0"), "FREEZING");
        assert_eq!(state("1", "populated 1\nfrozen 1"), "FROZEN");
        assert_eq!(state("0", "populated 1\nfrozen 1"), "FROZEN", "by one above");
        let set =
            |value| write("freezer.state", value, &[("cgroup.freeze", "0"), ("cgroup.events", "frozen 0")]);
        assert_eq!(set("FROZEN").unwrap(), [("cgroup.freeze".to_owned(), "1".to_owned())]);
        assert_eq!(set("THAWED").unwrap(), [("cgroup.freeze".to_owned(), "0".to_owned())]);
        for bad in ["FREEZING", "frozen", "1", ""] {
            assert_eq!(set(bad), Err(Unwritten::Value), "{bad}");
        }
    }

    #[test]
    fn who_has_no_cpus_of_its_own_has_those_above() {
        let cpus =
            |own| read("cpuset.cpus", &[("cpuset.cpus", own), ("cpuset.cpus.effective", "0-3")]).unwrap();
        assert_eq!((cpus(""), cpus("1")), ("0-3".into(), "1".into()));
        assert_eq!(read("cpuset.mems", &[("cpuset.mems.effective", "0")]).unwrap(), "0", "of the root");
        assert_eq!(read("cpuset.effective_cpus", &[("cpuset.cpus.effective", "0-3")]).unwrap(), "0-3");
    }

    #[test]
    fn what_is_always_so_can_be_asked_for() {
        let there = [("memory.max", "max")];
        assert_eq!(read("memory.use_hierarchy", &there).unwrap(), "1");
        assert_eq!(write("memory.use_hierarchy", "1", &there).unwrap(), []);
        assert!(matches!(write("memory.use_hierarchy", "0", &there), Err(Unwritten::Never(_))));
    }
}
