//! The role `end`: ends everything that runs in the grants of an instance, in order, because the machine is switched off.
//!
//! It needs no broker: what runs is read from the one cgroup2 hierarchy, which every process is in on every kind of host, be it
//! mounted or not. Who has a monitor is told by that alone, SIGTERM: only the monitor knows how its container is ended, and what is in it
//! must not be ended beside it. Where no monitor is, every process gets SIGTERM itself. What has not ended when the time is over is killed.
//!
//! What an attacker could want: root to signal a process of somebody else's, or the machine never to be switched off. Which process
//! gets a signal says the cgroup, where the broker alone has put it, and every pid is held by a pidfd before it is seen there. Whatever
//! an account has running, all accounts are told at the same time, and the end of time is the same.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use cgrant_sys::{Dir, EntryKind, Pidfd, mount::mount_cgroup2_detached, pidfd::Signal};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

use crate::hierarchy::{self, CGROUP2};

/// How long everything has: longer than a monitor waits for its container, and shorter than `TimeoutStopSec=` of the unit.
const PATIENCE: Duration = Duration::from_secs(75);
/// How long the kernel has to end what was killed.
const KILLED: Duration = Duration::from_secs(5);
/// How often it is looked whether there is something new to tell: nothing says that.
const LOOK: Duration = Duration::from_millis(500);
/// Longest list of processes of one cgroup that is read, in bytes; the processes of a longer one are killed when the time is over.
const MAX_PROCS: usize = 1 << 20;
/// Longest file of the other ones, in bytes.
const MAX_FILE: usize = 4096;
/// Most processes that are held at one time. More are told as these end.
const MAX_HELD: usize = 4096;
/// How deep cgroups in a payload are looked into.
const MAX_DEPTH: u32 = 32;
/// Parts of a grant's cgroup, as the engine makes them.
const MONITOR: &str = "monitor";
const PAYLOAD: &str = "payload";
/// Of a cgroup: its processes, and whether there are any in it and below it.
const PROCS: &str = "cgroup.procs";
const EVENTS: &str = "cgroup.events";

/// Why not everything could be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The hierarchy can't be reached.
    #[error("cannot open the cgroup2 hierarchy: {0}")]
    Hierarchy(#[source] io::Error),
    /// The instance's part of it can't be read.
    #[error("cannot read the cgroups of the instance: {0}")]
    Tree(#[source] io::Error),
    /// Somebody did not end in time.
    #[error("killed what had not ended after {} s: {}", PATIENCE.as_secs(), .0.join(", "))]
    Killed(Vec<String>),
    /// Not even when it was killed.
    #[error("killed, and not ended: {}; it hangs in the kernel", .0.join(", "))]
    Stuck(Vec<String>),
}

/// Ends everything that runs in grants of `instance`, whose scope systemd calls `unit`.
///
/// # Errors
/// [`EndError`].
pub fn end(instance: &str, unit: &str) -> Result<(), EndError> {
    let mount = mount().map_err(EndError::Hierarchy)?;
    match Tree::find(&mount, instance, unit).map_err(EndError::Tree)? {
        Some(tree) => tree.end(PATIENCE),
        None => Ok(()),
    }
}

/// Root of the cgroup2 hierarchy, as it is mounted, or of a mount of our own that nobody else sees.
fn mount() -> io::Result<Dir> {
    match hierarchy::mounted()?.into_iter().find(|(name, _)| name == CGROUP2) {
        Some((_, path)) => Dir::open(&path),
        None => Dir::from_fd(mount_cgroup2_detached()?),
    }
}

/// Where an instance has its cgroups: as the broker makes them itself, and where systemd has the scope.
fn places(instance: &str, unit: &str) -> [PathBuf; 2] {
    let first = hierarchy::places(1).unwrap_or_default().into_iter().find(|place| place.hierarchy == CGROUP2);
    let above = first.and_then(|place| place.path.strip_suffix("/init.scope").map(str::to_owned));
    let scope = PathBuf::from(above.unwrap_or_default()).join("system.slice").join(unit);
    [PathBuf::from(format!("cgrant-{instance}")), scope]
}

/// The cgroups of an instance.
struct Tree {
    dir: Dir,
    /// From the hierarchy's root.
    path: String,
}

impl Tree {
    /// The one of the places that there is.
    fn find(mount: &Dir, instance: &str, unit: &str) -> io::Result<Option<Self>> {
        for place in places(instance, unit) {
            let names: Vec<OsString> =
                place.iter().filter(|name| *name != "/").map(ToOwned::to_owned).collect();
            match mount.open_below(&names) {
                Ok(dir) => {
                    let path = names.iter().map(|name| format!("/{}", name.to_string_lossy())).collect();
                    return Ok(Some(Self { dir, path }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn end(&self, patience: Duration) -> Result<(), EndError> {
        let deadline = Instant::now() + patience;
        let mut told: HashMap<u32, Pidfd> = HashMap::new();
        loop {
            let populated = self.populated().map_err(EndError::Tree)?;
            if populated.is_empty() {
                return Ok(());
            }
            told.retain(|_, process| process.is_alive().unwrap_or(false));
            populated.iter().for_each(|account| self.tell(account, &mut told));
            if !wait(&populated, &told, deadline) {
                return self.kill();
            }
        }
    }

    /// The accounts in whose grants something runs.
    fn populated(&self) -> io::Result<Vec<Account>> {
        let mut accounts = Vec::new();
        for entry in self.dir.entries()? {
            let Some(name) = account_name(&entry.name, entry.kind) else { continue };
            let Ok(dir) = self.dir.open_dir(&name) else { continue };
            let Ok(events) = dir.open_file(EVENTS, OFlags::RDONLY) else { continue };
            if says_populated(&events) {
                accounts.push(Account { name, dir, events });
            }
        }
        Ok(accounts)
    }

    /// Tells everybody of an account's who has to be told and was not yet. What is gone meanwhile needs not be told, and what can't be
    /// looked at is killed in the end.
    fn tell(&self, account: &Account, told: &mut HashMap<u32, Pidfd>) {
        let above = format!("{}/{}/", self.path, account.name);
        for grant in account.grants() {
            for pid in grant.to_be_told() {
                if told.len() >= MAX_HELD {
                    return;
                }
                if told.contains_key(&pid) {
                    continue;
                }
                let Some(process) = held(pid, &above) else { continue };
                if process.send_signal(Signal::TERM).is_ok() {
                    // One that was stopped could not take it.
                    let _ = process.send_signal(Signal::CONT);
                    told.insert(pid, process);
                }
            }
            grant.thaw();
        }
    }

    /// The time is over.
    fn kill(&self) -> Result<(), EndError> {
        let left = self.populated().map_err(EndError::Tree)?;
        let names = left.iter().flat_map(Account::names_of_populated).collect();
        for account in &left {
            let _ = account.dir.write("cgroup.kill", "1");
        }
        let deadline = Instant::now() + KILLED;
        let nobody = HashMap::new();
        loop {
            let left = self.populated().map_err(EndError::Tree)?;
            if left.is_empty() {
                return Err(EndError::Killed(names));
            }
            if !wait(&left, &nobody, deadline) {
                return Err(EndError::Stuck(left.iter().flat_map(Account::names_of_populated).collect()));
            }
        }
    }
}

/// An account's cgroup.
struct Account {
    name: String,
    dir: Dir,
    /// Has something new to say when the last process in it ends.
    events: OwnedFd,
}

impl Account {
    fn grants(&self) -> Vec<Grant> {
        let names = self.dir.dirs().unwrap_or_default();
        let open = |name: String| self.dir.open_dir(&name).ok().map(|dir| Grant { name, dir });
        names.into_iter().filter_map(open).collect()
    }

    /// For people: whose grants these are, and what they are called. Names of grants are the broker's, and can be printed.
    fn names_of_populated(&self) -> Vec<String> {
        let uid = self.name.trim_start_matches('u');
        let populated = self.grants().into_iter().filter(|grant| is_populated(&grant.dir));
        populated.map(|grant| format!("grant {} of uid {uid}", grant.name)).collect()
    }
}

/// A grant's cgroup.
struct Grant {
    name: String,
    dir: Dir,
}

impl Grant {
    /// The monitor, or where none is everybody.
    fn to_be_told(&self) -> Vec<u32> {
        let monitors = self.dir.open_dir(MONITOR).map(|monitor| processes(&monitor)).unwrap_or_default();
        if monitors.is_empty() {
            let mut pids = Vec::new();
            collect(&self.dir, MAX_DEPTH, &mut pids);
            pids
        } else {
            monitors
        }
    }

    /// What was paused can't end in order. The file is root's own, in a cgroup that the broker made.
    fn thaw(&self) {
        if let Ok(payload) = self.dir.open_dir(PAYLOAD)
            && payload.read("cgroup.freeze", MAX_FILE).is_ok_and(|text| text.trim_end() == "1")
        {
            let _ = payload.write("cgroup.freeze", "0");
        }
    }
}

/// The name, if it is that of an account's cgroup.
fn account_name(name: &OsString, kind: EntryKind) -> Option<String> {
    let name = name.to_str()?;
    let uid = name.strip_prefix('u')?;
    let is_number = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit());
    (kind == EntryKind::Directory && is_number).then(|| name.to_owned())
}

fn is_populated(dir: &Dir) -> bool {
    dir.open_file(EVENTS, OFlags::RDONLY).is_ok_and(|events| says_populated(&events))
}

/// What a poll waits for is what comes after the last read of this same descriptor (kernfs_generic_poll).
fn says_populated(events: &OwnedFd) -> bool {
    let mut text = [0; MAX_FILE];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(events, &mut text)).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    text.lines().any(|line| line == "populated 1")
}

fn processes(dir: &Dir) -> Vec<u32> {
    let listed = dir.read(PROCS, MAX_PROCS).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// All processes in a cgroup and those below it, whose names are the holder's choice.
fn collect(dir: &Dir, depth: u32, pids: &mut Vec<u32>) {
    pids.extend(processes(dir));
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in dir.entries().unwrap_or_default() {
        if pids.len() >= MAX_HELD {
            return;
        }
        if let (EntryKind::Directory, Ok(below)) = (entry.kind, dir.open_dir(&entry.name)) {
            collect(&below, depth, pids);
        }
    }
}

/// The process, if it is one that sits below there: its pid was read before it was held, and may be another's since.
fn held(pid: u32, above: &str) -> Option<Pidfd> {
    let process = Pidfd::open(pid).ok()?;
    let places = hierarchy::places(pid).ok()?;
    let inside = places.iter().any(|place| place.hierarchy == CGROUP2 && place.path.starts_with(above));
    (inside && process.is_alive().unwrap_or(false)).then_some(process)
}

/// Waits until something has ended, or it is time to look again; `false` at the end of time.
fn wait(accounts: &[Account], told: &HashMap<u32, Pidfd>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds: Vec<PollFd<'_>> =
        told.values().map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)).collect();
    fds.extend(
        accounts.iter().map(|account| PollFd::from_borrowed_fd(account.events.as_fd(), PollFlags::PRI)),
    );
    // A time of this length fits.
    let timeout = Timespec::try_from(left.min(LOOK)).unwrap_or_default();
    let _ = poll(&mut fds, Some(&timeout));
    !left.is_zero()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_known_by_their_names() {
        let account = |name: &str, kind| account_name(&OsString::from(name), kind);
        assert_eq!(account("u1000", EntryKind::Directory).unwrap(), "u1000");
        assert_eq!(account("u1000", EntryKind::File), None);
        for name in ["keeper", "u", "u1x", "1000", "_evicted"] {
            assert_eq!(account(name, EntryKind::Directory), None, "{name}");
        }
    }

    #[test]
    fn an_instance_has_its_cgroups_in_one_of_two_places() {
        let [own, scope] = places("t1", "cgrant-t1.scope");
        assert_eq!(own, PathBuf::from("cgrant-t1"));
        assert!(scope.ends_with("system.slice/cgrant-t1.scope"));
    }

    #[test]
    fn a_process_is_held_only_where_it_sits() {
        let pid = std::process::id();
        let place = hierarchy::places(pid).unwrap().into_iter().find(|place| place.hierarchy == CGROUP2);
        let Some(place) = place else { panic!("every process is in the cgroup2 hierarchy") };
        assert!(held(pid, &place.path).is_some());
        assert!(held(pid, "/elsewhere/").is_none());
        assert!(held(0, &place.path).is_none());
    }
}
