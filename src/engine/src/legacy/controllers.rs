//! The controllers argument: which hierarchies it stands for. Pure.
//!
//! A v1 hierarchy is called what the kernel calls it. cgroup2 is called by the v1 names of all controllers that it has, as if
//! they were mounted together. Where there are controllers on v1, clients look for all of them there: what cgroup2 has besides
//! is to be had by its name, but is neither listed nor part of `all`.

use super::fault::Fault;
use crate::cgroup::{Hierarchies, Hierarchy};

/// Every hierarchy.
const ALL: &str = "all";
/// systemd's own hierarchy, which is cgroup2 where there is no v1 one of this name. Not listed.
const SYSTEMD: &str = "name=systemd";
/// What every cgroup2 does without a controller of the kernel's, and v1 with one.
const ALWAYS: [&str; 2] = ["cpuacct", "freezer"];
/// v2 and v1 name of the controller that has two.
const IO: (&str, &str) = ("io", "blkio");

/// What clients call a hierarchy.
pub struct Names {
    /// Its controllers, sorted as they are listed.
    controllers: Vec<String>,
    /// What it is called too.
    other: &'static [&'static str],
    /// Is it had by name alone?
    unlisted: bool,
}

impl Names {
    fn new(controllers: Vec<String>) -> Self {
        Self { controllers, other: &[], unlisted: false }
    }

    /// What it is called in `ListControllers`; `None` if it is not in there.
    pub fn listed(&self) -> Option<String> {
        (!self.unlisted).then(|| self.controllers.join(","))
    }

    /// Is it this controller of this hierarchy? Named ones go by their bare name too.
    fn has(&self, controller: &str) -> bool {
        let mut names = self.controllers.iter().map(String::as_str).chain(self.other.iter().copied());
        names.any(|name| name == controller || name.strip_prefix("name=") == Some(controller))
    }
}

/// The hierarchies that clients know of, in a fixed order. cgroup2 is one of them if it has any controller that v1 has not.
pub fn known(hierarchies: &Hierarchies) -> Vec<(Names, &Hierarchy)> {
    let v1_names = |hierarchy: &Hierarchy| Names::new(hierarchy.name.split(',').map(str::to_owned).collect());
    let mut known: Vec<_> = hierarchies.v1.iter().map(|hierarchy| (v1_names(hierarchy), hierarchy)).collect();
    let v2 = &hierarchies.v2;
    if v2.detached.is_none()
        && let Some(names) = v2_names(&v2.offered, |name| known.iter().any(|(other, _)| other.has(name)))
    {
        let unlisted = hierarchies.v1.iter().any(|hierarchy| !hierarchy.controllers.is_empty());
        known.push((Names { unlisted, ..names }, v2));
    }
    known
}

/// The v1 hierarchy that a single name stands for, which is the first of [`known`] that has it; without making that.
pub fn v1_of<'h>(wanted: &str, hierarchies: &'h Hierarchies) -> Option<&'h Hierarchy> {
    let is_it = |name: &str| name == wanted || name.strip_prefix("name=") == Some(wanted);
    hierarchies.v1.iter().find(|hierarchy| hierarchy.name.split(',').any(is_it))
}

/// What cgroup2 with these controllers is called, but for what another hierarchy is called; `None` if nothing is left.
fn v2_names(offered: &[String], taken: impl Fn(&str) -> bool) -> Option<Names> {
    let offered = offered.iter().map(|name| v1_name(name));
    let mut controllers: Vec<String> =
        offered.chain(ALWAYS).filter(|name| !taken(name)).map(str::to_owned).collect();
    controllers.sort_unstable();
    let other: &[&str] = if taken(SYSTEMD) { &[IO.0] } else { &[IO.0, SYSTEMD] };
    (!controllers.is_empty()).then_some(Names { controllers, other, unlisted: false })
}

/// The v1 name of a controller of cgroup2's.
pub fn v1_name(controller: &str) -> &str {
    if controller == IO.0 { IO.1 } else { controller }
}

/// The controllers of cgroup2's that a list, or `all`, asks for. Names of what has no controller there are left out.
pub fn of_v2(wanted: &str, offered: &[String]) -> Vec<String> {
    let asked = |name: &&String| {
        wanted == ALL || wanted.split(',').any(|other| other == v1_name(name) || other == name.as_str())
    };
    offered.iter().filter(asked).cloned().collect()
}

/// Does it name controllers, of which each is to be had?
pub fn is_one(wanted: &str) -> bool {
    wanted != ALL && !wanted.contains(',')
}

/// A list without the names that nobody knows; as it is if none would be left.
pub fn without_unknown<T>(wanted: &str, known: &[(Names, T)]) -> String {
    if is_one(wanted) || wanted.len() > cgrant_wire::legacy::MAX_TEXT {
        return wanted.to_owned();
    }
    let is_known = |name: &&str| known.iter().any(|(names, _)| names.has(name));
    let kept: Vec<&str> = wanted.split(',').filter(is_known).collect();
    if kept.is_empty() { wanted.to_owned() } else { kept.join(",") }
}

/// The hierarchy (by its place in `known`) that all members of the list belong to.
///
/// # Errors
/// [`Fault::Controllers`].
pub fn one<T>(wanted: &str, known: &[(Names, T)]) -> Result<usize, Fault> {
    match list(wanted, known)?.as_slice() {
        [only] => Ok(*only),
        _ => Err(unknown(wanted)),
    }
}

/// The hierarchies that a list, or `all`, stands for, each once.
///
/// # Errors
/// [`Fault::Controllers`].
pub fn many<T>(wanted: &str, known: &[(Names, T)]) -> Result<Vec<usize>, Fault> {
    if wanted != ALL {
        return list(wanted, known);
    }
    let all = known.iter().enumerate().filter(|(_, (names, _))| !names.unlisted);
    Ok(all.map(|(place, _)| place).collect())
}

fn list<T>(wanted: &str, known: &[(Names, T)]) -> Result<Vec<usize>, Fault> {
    if wanted.len() > cgrant_wire::legacy::MAX_TEXT {
        return Err(unknown(wanted));
    }
    let mut found = Vec::new();
    // Empty names in a list are none, as in CGManager; but it has to name something.
    for name in wanted.split(',').filter(|name| !name.is_empty()) {
        let place = known.iter().position(|(names, _)| names.has(name));
        let place = place.ok_or_else(|| unknown(name))?;
        if !found.contains(&place) {
            found.push(place);
        }
    }
    if found.is_empty() { Err(unknown(wanted)) } else { Ok(found) }
}

fn unknown(wanted: &str) -> Fault {
    Fault::Controllers(wanted.escape_default().take(64).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn host() -> [(Names, ()); 3] {
        ["cpu cpuacct", "memory", "name=systemd"].map(|names| (Names::new(texts(names)), ()))
    }

    #[test]
    fn one_hierarchy_by_any_of_its_names() {
        for (wanted, place) in [
            ("cpu", 0),
            ("cpuacct", 0),
            ("cpu,cpuacct", 0),
            ("memory,", 1),
            ("memory", 1),
            ("name=systemd", 2),
            ("systemd", 2),
        ] {
            assert_eq!(one(wanted, &host()).unwrap(), place, "{wanted}");
        }
        for wanted in ["", "all", "cpu,memory", "cpus", "mem", "name=memory", ",", "../memory"] {
            assert!(matches!(one(wanted, &host()), Err(Fault::Controllers(_))), "{wanted}");
        }
    }

    #[test]
    fn lists_name_each_hierarchy_once() {
        assert_eq!(many("all", &host()).unwrap(), [0, 1, 2]);
        assert_eq!(many("systemd,cpuacct,cpu", &host()).unwrap(), [2, 0]);
        assert!(many("cpu,all", &host()).is_err());
        assert_eq!(many(",cpu,,memory", &host()).unwrap(), [0, 1]);
        assert!(many(",", &host()).is_err() && many("", &host()).is_err());
    }

    #[test]
    fn names_that_nobody_knows_can_be_left_out_of_a_list() {
        let without = |wanted| without_unknown(wanted, &host());
        assert_eq!(without("memory,nothing,,systemd"), "memory,systemd");
        assert_eq!(without("nothing,memory"), "memory");
        for wanted in ["memory", "nothing", "all", "nothing,all", "nothing,", ",", ""] {
            assert_eq!(without(wanted), wanted);
        }
    }

    #[test]
    fn cgroup2_has_the_names_of_v1() {
        let names = v2_names(&texts("cpuset cpu io memory hugetlb pids"), |_| false).unwrap();
        assert_eq!(names.listed().unwrap(), "blkio,cpu,cpuacct,cpuset,freezer,hugetlb,memory,pids");
        let host = [(names, ())];
        for wanted in ["memory", "io", "blkio", "systemd", "name=systemd", "cpu,freezer,cpuacct,pids"] {
            assert_eq!(one(wanted, &host).unwrap(), 0, "{wanted}");
            assert_eq!(many(wanted, &host).unwrap(), [0], "{wanted}");
        }
        for wanted in ["devices", "net_cls", "cgroup2", "memory,devices"] {
            assert!(one(wanted, &host).is_err(), "{wanted}");
        }
    }

    #[test]
    fn on_a_hybrid_host_cgroup2_has_what_v1_has_not() {
        let v1 = ["freezer", "cpuacct", "blkio", "name=systemd"];
        let names = v2_names(&texts("hugetlb io"), |name| v1.contains(&name)).unwrap();
        assert_eq!(names.listed().unwrap(), "hugetlb");
        assert!(names.has("hugetlb") && !names.has("systemd"));
        let host = [(Names::new(texts("memory")), ()), (Names { unlisted: true, ..names }, ())];
        assert_eq!(
            (many("all", &host).unwrap(), many("hugetlb,memory", &host).unwrap()),
            (vec![0], vec![1, 0])
        );
        assert_eq!((one("hugetlb", &host).unwrap(), host[1].0.listed()), (1, None));
        assert!(v2_names(&[], |name| v1.contains(&name)).is_none());
    }

    #[test]
    fn controllers_that_are_asked_for_by_their_v1_names() {
        let offered = texts("cpu io memory");
        assert_eq!(of_v2("all", &offered), ["cpu", "io", "memory"]);
        assert_eq!(of_v2("memory,blkio,freezer", &offered), ["io", "memory"]);
        assert!(of_v2("cpuacct,freezer,systemd", &offered).is_empty());
    }
}
