//! What another proxy, of a container in this one, passes on. CGManager refused that.
//!
//! Outside this proxy is who passes the call on, and whatever is counted from the proxy's cgroup is counted from this one's. So
//! what an inner proxy must not see is kept from it here: its paths begin at its own cgroup, and what is read lies below it.

use cgrant_sys::ProcFs;
use cgrant_wire::{LegacyAnswer, LegacyCall, Place};

use crate::peer::Peer;

/// The name of cgroup2 in the list of a process's cgroups.
const CGROUP2: &str = "cgroup2";
/// The controller whose hierarchy the broker hands to nobody but the host's root.
const DEVICES: &str = "devices";
/// What the broker puts processes of a cgroup2 cgroup into, which is hidden from clients.
const LEAF: &str = ".cgm_leaf";
/// Ends of a proxy's cgroup that systemd has made, which the paths of its container's processes don't have.
const CUT: [&[&str]; 2] = [&["init.scope"], &["system.slice", "cgproxy.service"]];

/// Where a proxy is, and where this one is, in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    inner: Vec<String>,
    own: Vec<String>,
}

/// A call as it is passed on, and what of its answer is the inner proxy's.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// The calls; one after the other, and the last one's answer counts.
    pub calls: Vec<LegacyCall>,
    /// What the text of the answer begins with that the inner proxy does not see.
    pub hidden: Option<Vec<String>>,
}

impl Passed {
    /// The call as it is.
    pub fn unchanged(call: LegacyCall) -> Self {
        Self { calls: vec![call], hidden: None }
    }

    /// Does a part of a list not count that fails? The broker hands the devices hierarchy to nobody but the host's root, and passes
    /// it over in a list; a part alone is refused.
    pub fn is_passed_over(&self, call: &LegacyCall) -> bool {
        let names = match call {
            LegacyCall::MovePid { place, .. } => place.controllers.as_str(),
            _ => "",
        };
        self.calls.len() > 1 && names.split(',').any(|name| name == DEVICES)
    }

    /// The answer as the inner proxy sees it; `None` if that is nothing for it.
    pub fn answer(&self, answer: LegacyAnswer) -> Option<LegacyAnswer> {
        match (&self.hidden, answer) {
            (Some(hidden), LegacyAnswer::Text(path)) => {
                let rest = below(&names(&path), hidden)?.join("/");
                Some(LegacyAnswer::Text(format!("/{rest}")))
            }
            (_, answer) => Some(answer),
        }
    }
}

impl Places {
    /// In the hierarchy of a controller. `None` if that is not to be had.
    pub fn of(proc: &ProcFs, peer: &Peer, controller: &str) -> Option<Self> {
        let of = |pid| cgroup(&proc.cgroups(pid).ok()?, controller);
        let places = Self { inner: of(peer.named.pid)?, own: of(std::process::id())? };
        peer.is_alive().then_some(places)
    }

    /// From here to the inner proxy; `cut` as paths of moves are counted.
    fn between(&self, cut: bool) -> Option<Vec<String>> {
        let (inner, own) = if cut {
            (without_end(&self.inner), without_end(&self.own))
        } else {
            (self.inner.as_slice(), self.own.as_slice())
        };
        below(inner, own).map(<[String]>::to_vec)
    }
}

/// A call of an inner proxy's as it is passed on. `places` tells where it and we are in the hierarchy of a controller, `is_below`
/// whether the requestor is below it, and `all` which controllers there are.
///
/// `None` for what an inner proxy may not ask for.
pub fn pass(
    call: LegacyCall,
    places: impl Fn(&str) -> Option<Places>,
    is_below: impl Fn(&str) -> bool,
    all: &[String],
) -> Option<Passed> {
    match call {
        LegacyCall::PidCgroup { ref controllers, absolute: true, .. } => {
            let hidden = places(first(controllers))?.between(false)?;
            Some(Passed { calls: vec![call], hidden: Some(hidden) })
        }
        LegacyCall::MovePid { place, absolute: true, pid } => {
            let each = each(&place.controllers, all).into_iter().map(|controllers| {
                let between = places(first(&controllers))?.between(true)?;
                let path = [between.join("/"), place.path.trim_start_matches('/').to_owned()];
                let path = path.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/");
                Some(LegacyCall::MovePid { place: Place { controllers, path }, absolute: true, pid })
            });
            Some(Passed { calls: each.collect::<Option<_>>()?, hidden: None })
        }
        LegacyCall::GetValue { ref place, .. }
        | LegacyCall::SetValue { ref place, .. }
        | LegacyCall::Tasks { ref place, .. }
        | LegacyCall::Children(ref place)
        | LegacyCall::Keys(ref place) => {
            let may = each(&place.controllers, all).iter().all(|controllers| {
                let controller = first(controllers);
                if place.path.starts_with('/') {
                    places(controller).is_some_and(|at| below(&names(&place.path), &at.inner).is_some())
                } else {
                    is_below(controller)
                }
            });
            may.then(|| Passed::unchanged(call))
        }
        call => Some(Passed::unchanged(call)),
    }
}

/// Is a process in an inner proxy's cgroup, or below it, in the hierarchy of a controller?
pub fn is_below(proc: &ProcFs, peer: &Peer, pid: u32, controller: &str) -> bool {
    let its = proc.cgroups(pid).ok().and_then(|cgroups| cgroup(&cgroups, controller));
    let places = Places::of(proc, peer, controller);
    matches!((its, places), (Some(its), Some(places)) if below(&its, &places.inner).is_some())
}

/// The arguments that a list stands for, one a hierarchy.
fn each(controllers: &str, all: &[String]) -> Vec<String> {
    if controllers == "all" {
        return all.to_vec();
    }
    controllers.split(',').map(str::to_owned).collect()
}

/// Of those that share a hierarchy any will do.
fn first(controllers: &str) -> &str {
    controllers.split(',').next().unwrap_or_default()
}

/// The names of a process's cgroup in the hierarchy of a controller: on v1 its own, else cgroup2.
fn cgroup(cgroups: &[(String, String)], controller: &str) -> Option<Vec<String>> {
    let named = |hierarchy: &str| {
        hierarchy.split(',').any(|name| name == controller || name.strip_prefix("name=") == Some(controller))
    };
    let own = cgroups.iter().find(|(hierarchy, _)| named(hierarchy));
    let (_, path) = own.or_else(|| cgroups.iter().find(|(hierarchy, _)| hierarchy == CGROUP2))?;
    // Outside of what can be seen from here, or gone.
    if path.starts_with("/..") || path.ends_with(" (deleted)") {
        return None;
    }
    let mut names = names(path);
    if names.last().is_some_and(|name| name == LEAF) {
        names.pop();
    }
    Some(names)
}

fn names(path: &str) -> Vec<String> {
    path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What of a path lies below another, name by name.
fn below<'a>(path: &'a [String], base: &[String]) -> Option<&'a [String]> {
    path.strip_prefix(base)
}

fn without_end(names: &[String]) -> &[String] {
    let kept = CUT.iter().find_map(|end| {
        let (kept, last) = names.split_at_checked(names.len().checked_sub(end.len())?)?;
        last.iter().eq(end.iter()).then_some(kept)
    });
    kept.unwrap_or(names)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn place(controllers: &str, path: &str) -> Place {
        Place { controllers: controllers.to_owned(), path: path.to_owned() }
    }

    fn at(controller: &str) -> Option<Places> {
        let of = |path: &str| names(path);
        match controller {
            "memory" => Some(Places { inner: of("/c1/lxc/c2"), own: of("/c1") }),
            "pids" => Some(Places { inner: of("/c1/b"), own: of("/c1/init.scope") }),
            "devices" => Some(Places { inner: of("/c1"), own: of("/c1") }),
            "elsewhere" => Some(Places { inner: of("/c10"), own: of("/c1") }),
            _ => None,
        }
    }

    fn passed(call: LegacyCall) -> Option<Passed> {
        let all = ["devices", "memory", "pids"].map(str::to_owned);
        pass(call, at, |controller| controller == "memory", &all)
    }

    #[test]
    fn moves_begin_at_the_inner_proxys_cgroup() {
        let moved = |controllers, path| {
            let call = LegacyCall::MovePid { place: place(controllers, path), absolute: true, pid: None };
            let calls = passed(call)?.calls.into_iter();
            let paths = calls.map(|call| match call {
                LegacyCall::MovePid { place, absolute: true, pid: None } => (place.controllers, place.path),
                other => panic!("{other:?}"),
            });
            Some(paths.collect::<Vec<_>>())
        };
        let one = |controller: &str, path: &str| (controller.to_owned(), path.to_owned());
        assert_eq!(moved("memory", "/x"), Some(vec![one("memory", "lxc/c2/x")]));
        assert_eq!(moved("memory", "/"), Some(vec![one("memory", "lxc/c2")]));
        let both = Some(vec![one("devices", "x"), one("memory", "lxc/c2/x"), one("pids", "b/x")]);
        assert_eq!(moved("all", "x"), both, "each from its place in its hierarchy, without systemd's ends");
        assert_eq!(moved("elsewhere", "x"), None, "/c10 is not below /c1");
        assert_eq!(moved("memory,none", "x"), None);
    }

    #[test]
    fn devices_that_nobody_is_given_do_not_count_in_a_list() {
        let of = |controllers| {
            let call = LegacyCall::MovePid { place: place(controllers, "x"), absolute: true, pid: None };
            let passed = passed(call).unwrap();
            passed.calls.iter().map(|call| passed.is_passed_over(call)).collect::<Vec<_>>()
        };
        assert_eq!(of("all"), [true, false, false]);
        assert_eq!((of("devices"), of("memory")), (vec![false], vec![false]));
    }

    #[test]
    fn paths_of_processes_do_not_show_what_is_around() {
        let call = LegacyCall::PidCgroup { controllers: "memory".to_owned(), absolute: true, pid: None };
        let passed = passed(call).unwrap();
        let text = |text: &str| LegacyAnswer::Text(text.to_owned());
        assert_eq!(passed.answer(text("/lxc/c2/x")), Some(text("/x")));
        assert_eq!(passed.answer(text("/lxc/c2")), Some(text("/")));
        assert_eq!(passed.answer(text("/lxc/c20/x")), None);
    }

    #[test]
    fn what_is_read_lies_below_the_inner_proxy() {
        let read = |controllers, path| {
            passed(LegacyCall::GetValue { place: place(controllers, path), key: "k".to_owned() }).is_some()
        };
        assert!(read("memory", "x") && read("memory", "") && read("memory", "/c1/lxc/c2/x"));
        for (controllers, path) in
            [("memory", "/c1"), ("memory", "/"), ("memory", "/c1/lxc/c20"), ("pids", "x"), ("all", "x")]
        {
            assert!(!read(controllers, path), "{controllers} {path}");
        }
        assert!(
            passed(LegacyCall::Create(place("pids", "/x"))).is_some(),
            "what is written is the requestor's"
        );
    }

    #[test]
    fn a_process_is_in_one_cgroup_of_each_hierarchy() {
        let of = |name: &str, path: &str| (name.to_owned(), path.to_owned());
        let cgroups = [of("cpu,cpuacct", "/a"), of("name=systemd", "/s"), of(CGROUP2, "/u/.cgm_leaf")];
        for (controller, path) in
            [("cpuacct", "/a"), ("systemd", "/s"), ("name=systemd", "/s"), ("memory", "/u")]
        {
            assert_eq!(cgroup(&cgroups, controller), Some(names(path)), "{controller}");
        }
        assert_eq!(cgroup(&[of("memory", "/../x")], "memory"), None);
    }
}
