//! Controllers of cgroups by name, and which of them grants may have.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::diagnostic::text;

/// Those that policy speaks of: cgroup2's, and of v1 those that cgroup2 has nothing for (Documentation/admin-guide/cgroup-v2.rst,
/// "Controllers"; include/linux/cgroup_subsys.h).
const KNOWN: [&str; 11] =
    ["cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "net_cls", "net_prio", "pids", "rdma"];
/// What is called a controller and gives no resource: cgroup2 does in its core what freezer and perf_event do, and devices have rules of
/// their own. `cgroup` is what files of the core begin with.
const CORE: [&str; 4] = ["cgroup", "devices", "freezer", "perf_event"];
/// The word for all that there are.
const ALL: &str = "all";

/// A controller by its name on cgroup2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Controller(&'static str);

/// The controllers that grants may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Controllers {
    /// All that the host has.
    #[default]
    All,
    /// These, and what is no resource.
    Only(BTreeSet<Controller>),
}

impl Controllers {
    /// Is this one among them, by a name of the kernel's, of v1 or of cgroup2? One that nobody knows is among all only.
    pub fn allow(&self, name: &str) -> bool {
        let name = match name {
            "blkio" => "io",
            "cpuacct" => "cpu",
            name => name,
        };
        match self {
            Self::All => true,
            Self::Only(some) => CORE.contains(&name) || some.iter().any(|known| known.0 == name),
        }
    }

    /// Those that both have.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, some) | (some, Self::All) => some.clone(),
            (Self::Only(own), Self::Only(others)) => Self::Only(own & others),
        }
    }
}

/// As in a policy file.
impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "\"{ALL}\""),
            Self::Only(some) => {
                let names: Vec<String> = some.iter().map(|name| format!("\"{}\"", name.0)).collect();
                write!(f, "[{}]", names.join(", "))
            }
        }
    }
}

impl Serialize for Controllers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => to.serialize_str(ALL),
            Self::Only(some) => to.collect_seq(some.iter().map(|name| name.0)),
        }
    }
}

impl<'de> Deserialize<'de> for Controllers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Controllers;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"{ALL}\", or a list of controllers such as [\"cpu\", \"memory\", \"pids\"]")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Controllers, E> {
                match text {
                    ALL => Ok(Controllers::All),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Controllers, A::Error> {
                let mut some = BTreeSet::new();
                while let Some(name) = list.next_element()? {
                    some.insert(name);
                }
                Ok(Controllers::Only(some))
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Controller {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the name of a controller", |text| {
            let found = KNOWN.into_iter().find(|known| *known == text).map(Self);
            found.ok_or_else(|| {
                format!(
                    "there is no such controller to be allowed; there are {} (blkio is io, cpuacct belongs to cpu)",
                    KNOWN.join(", ")
                )
            })
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn only(names: &[&str]) -> Controllers {
        let known = |name: &&str| Controller(KNOWN.into_iter().find(|known| known == name).unwrap());
        Controllers::Only(names.iter().map(known).collect())
    }

    #[test]
    fn names_of_both_versions_mean_the_same() {
        let some = only(&["io", "cpu"]);
        for (name, is_allowed) in [
            ("io", true),
            ("blkio", true),
            ("cpu", true),
            ("cpuacct", true),
            ("cpuset", false),
            ("memory", false),
            ("freezer", true),
            ("devices", true),
            ("cgroup", true),
            ("", false),
            ("one-of-tomorrow", false),
        ] {
            assert_eq!(some.allow(name), is_allowed, "{name}");
            assert!(Controllers::All.allow(name));
        }
        assert!(!only(&[]).allow("pids") && only(&[]).allow("freezer"));
    }

    #[test]
    fn nobody_gets_what_one_of_two_does_not_have() {
        let (own, other) = (only(&["cpu", "io"]), only(&["io", "pids"]));
        assert_eq!(own.common(&other), only(&["io"]));
        assert_eq!(own.common(&Controllers::All), own);
        assert_eq!(Controllers::All.common(&other), other);
        assert_eq!(only(&[]).common(&Controllers::All), only(&[]));
    }
}
