//! The containers in this one: told to end, the innermost first, before its own init is.
//!
//! A system that shuts down has a moment for all that runs in it, and does not know that some of that are systems. Their monitors are
//! found in the cgroups of the grants that lie in this container's own, where this container's monitor is: beside the payload, so that nobody
//! in it sees them, and this monitor only from outside of all containers. Inside, who stops a container that has others in it
//! stops these before (systemd does, by units that `cgrant` makes).
//!
//! An attacker in the container wants a process ended that is not in it, or the end of the container never to come. Who is told is in a
//! cgroup of the container's when it is told, and how long all of that may take is the caller's.

use std::path::Path;

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
/// Most monitors that are told at a time.
const MOST: usize = 1024;

/// Those that are being ended.
#[derive(Debug)]
pub(super) struct Children {
    /// The grants in the one that this process monitors.
    grants: Dir,
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
        Some(Self { grants: grants?, told: Vec::new() })
    }

    /// Tells those that nobody lives in any more; `false` if there is nobody left to be waited for.
    pub(super) fn go_on(&mut self) -> bool {
        self.told.retain(|monitor| monitor.is_alive().unwrap_or(false));
        if self.told.is_empty() {
            let mut innermost = (0, Vec::new());
            find(&self.grants, 1, &mut innermost);
            self.told = innermost.1;
            self.told.retain(|monitor| monitor.send_signal(Signal::TERM).is_ok());
        }
        !self.told.is_empty()
    }
}

/// The monitors that lie deepest, and how deep that is.
fn find(grants: &Dir, depth: usize, innermost: &mut (usize, Vec<Pidfd>)) {
    for name in grants.dirs().unwrap_or_default() {
        let Ok(grant) = grants.open_dir(&name) else { continue };
        if depth < DEPTH
            && let Ok(children) = grant.open_dir(CHILDREN)
        {
            find(&children, depth + 1, innermost);
        }
        if depth < innermost.0 {
            continue;
        }
        let Ok(monitor) = grant.open_dir(MONITOR) else { continue };
        let living = living(&monitor);
        if living.is_empty() {
            continue;
        }
        if depth > innermost.0 {
            *innermost = (depth, Vec::new());
        }
        innermost.1.extend(living);
        innermost.1.truncate(MOST);
    }
}

/// The processes in a cgroup. One that has ended may have left its number to another process, of the account's even: who is still listed when
/// there is a descriptor of it is in there.
fn living(cgroup: &Dir) -> Vec<Pidfd> {
    let listed = || {
        let text = cgroup.read(PROCS, PROCS_MAX).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).take(MOST).collect::<Vec<u32>>()
    };
    let opened: Vec<_> = listed().into_iter().filter_map(|pid| Some((pid, Pidfd::open(pid).ok()?))).collect();
    let still = listed();
    let is_in = |pid: u32, process: &Pidfd| still.contains(&pid) && process.is_alive().unwrap_or(false);
    opened.into_iter().filter(|(pid, process)| is_in(*pid, process)).map(|(_, process)| process).collect()
}
