//! The containers in this one: told to end, the innermost first, before its own init is.
//!
//! A system that shuts down has a moment for all that runs in it, and does not know that some of that are systems. Their monitors are
//! found in the cgroups of the grants that lie in this container's own, where this container's monitor is: beside the payload, so that nobody
//! in it sees them, and this monitor only from outside of all containers. Inside, who stops a container that has others in it
//! stops these before (systemd does, by units that `cgrant` makes).
//!
//! An attacker in the container wants a process ended that is not in it, the end of the container never to come, or others in there not to
//! end in order. Who is told is in a cgroup of the container's when it is told, how long all of that may take is the caller's, and each
//! level has its part of it, whoever does not end.

use std::{path::Path, time::Instant};

use cgrant_sys::{
    Dir, Pidfd,
    hierarchy::{CGROUP2, mounted, places},
    pidfd::Signal,
};

/// Parts of a grant's cgroup, as the broker names them.
const MONITOR: &str = "monitor";
const CHILDREN: &str = "children";
const PROCS: &str = "cgroup.procs";
/// Longest list of processes, in bytes.
const PROCS_MAX: usize = 64 * 1024;
/// Grants in each other: more than any policy lets be made.
const DEPTH: usize = 32;
/// Most monitors that are told at a time, and of one grant, which has one.
const MOST: usize = 1024;
const MOST_OF_ONE: usize = 16;

/// Those that are being ended.
#[derive(Debug)]
pub(super) struct Children {
    /// The grants in the one that this process monitors.
    grants: Dir,
    /// How deep those lie that are told now, and until when they are waited for.
    level: Option<(usize, Instant)>,
    /// Monitors that were told.
    told: Vec<Pidfd>,
}

impl Children {
    /// Of the container that this process monitors; `None` if there are none, or they can't be seen from here.
    pub(super) fn of_this_monitor() -> Option<Self> {
        let mounted = mounted().ok()?;
        let mut places = places(std::process::id()).ok()?;
        // By any hierarchy, if that one is not mounted.
        places.sort_by_key(|place| place.hierarchy != CGROUP2);
        let grants = places.iter().find_map(|place| {
            let (_, root) = mounted.iter().find(|(hierarchy, _)| *hierarchy == place.hierarchy)?;
            let grant = Path::new(&place.path).strip_prefix("/").ok()?.parent()?;
            let is_monitors = place.path.ends_with(&format!("/{MONITOR}")) && !place.path.contains("/../");
            is_monitors.then(|| Dir::open(&root.join(grant).join(CHILDREN)).ok()).flatten()
        });
        Some(Self { grants: grants?, level: None, told: Vec::new() })
    }

    /// Tells those that nobody lives in any more; there is time `until` then. `false` if there is nobody left to be waited for.
    pub(super) fn go_on(&mut self, until: Instant) -> bool {
        self.told.retain(|monitor| monitor.is_alive().unwrap_or(false));
        let now = Instant::now();
        if let Some((depth, end)) = self.level
            && now < end
            && (!self.told.is_empty() || self.tell(depth))
        {
            return true;
        }
        // From the innermost outwards, and never back to who did not end.
        let below = self.level.map_or(DEPTH + 1, |(depth, _)| depth);
        let Some(depth) = deepest(&self.grants, 1, below) else { return false };
        let levels = u32::try_from(depth).unwrap_or(u32::MAX).max(1);
        self.level = Some((depth, now + until.saturating_duration_since(now) / levels));
        self.tell(depth);
        true
    }

    /// Tells the monitors that live so deep; `false` if there are none.
    fn tell(&mut self, depth: usize) -> bool {
        let mut monitors = Vec::new();
        at_depth(&self.grants, depth, &mut monitors);
        let are_there = !monitors.is_empty();
        // One that can't be told is ending.
        monitors.retain(|monitor| monitor.send_signal(Signal::TERM).is_ok());
        self.told = monitors;
        are_there
    }
}

/// How deep the innermost monitors lie, of those that lie less deep than `below`.
fn deepest(grants: &Dir, depth: usize, below: usize) -> Option<usize> {
    if depth >= below {
        return None;
    }
    let each = |name: &String| {
        let grant = grants.open_dir(name).ok()?;
        let inner = grant.open_dir(CHILDREN).ok().and_then(|inner| deepest(&inner, depth + 1, below));
        inner.or_else(|| (!living(&grant.open_dir(MONITOR).ok()?).is_empty()).then_some(depth))
    };
    grants.dirs().unwrap_or_default().iter().filter_map(each).max()
}

/// The monitors that lie `depth` grants deep, at most [`MOST`].
fn at_depth(grants: &Dir, depth: usize, monitors: &mut Vec<Pidfd>) {
    for name in grants.dirs().unwrap_or_default() {
        let Ok(grant) = grants.open_dir(&name) else { continue };
        if depth > 1 {
            if let Ok(inner) = grant.open_dir(CHILDREN) {
                at_depth(&inner, depth - 1, monitors);
            }
        } else if let Ok(monitor) = grant.open_dir(MONITOR) {
            monitors.extend(living(&monitor));
        }
        monitors.truncate(MOST);
    }
}

/// The processes in a cgroup. One that has ended may have left its number to another process, of the account's even: who is still listed when
/// there is a descriptor of it is in there.
fn living(cgroup: &Dir) -> Vec<Pidfd> {
    let listed = || {
        let text = cgroup.read(PROCS, PROCS_MAX).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>()
    };
    let opened: Vec<_> = listed()
        .into_iter()
        .take(MOST_OF_ONE)
        .filter_map(|pid| Some((pid, Pidfd::open(pid).ok()?)))
        .collect();
    let still = listed();
    let is_in = |pid: u32, process: &Pidfd| still.contains(&pid) && process.is_alive().unwrap_or(false);
    opened.into_iter().filter(|(pid, process)| is_in(*pid, process)).map(|(_, process)| process).collect()
}
