//! The role `end`: ends everything that runs in the grants of an instance, in order, because the machine is switched off.
//!
//! It needs no broker: what runs is read from the one cgroup2 hierarchy, which every process is in on every kind of host, be it
//! mounted or not. Who has a monitor is told by that alone, SIGTERM; where no monitor is, every process gets SIGTERM itself. What has not
//! ended when the time is over is killed, monitors last.
//!
//! What an attacker could want: root to signal a process of somebody else's, the machine never to be switched off, or the
//! containers of others to be killed for want of an order. Which process gets a signal says the cgroup, where the broker alone has put it,
//! and every pid is held by a pidfd before it is seen there. Whatever an account has running, all accounts are told at the same time, of
//! each so many processes at a time and with no descriptor kept of any, and the end of time is the same.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use cgrant_sys::{
    Pidfd,
    hierarchy::{self, CGROUP2},
    pidfd::Signal,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::instance::{Account, Instance, cgroup2};

/// How long the kernel and the monitors have when what these have in hand was killed, and how long the kernel has when everything was.
const KILLED: Duration = Duration::from_secs(4);
/// How often it is looked whether there is something new to tell: nothing says that.
const LOOK: Duration = Duration::from_millis(500);
/// Most grants that are named in a message.
const MAX_NAMES: usize = 20;

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
    #[error("killed what had not ended after {} s: {names}", patience.as_secs())]
    Killed {
        /// How long it had.
        patience: Duration,
        /// What it was.
        names: String,
    },
    /// Not even when it was killed.
    #[error("killed, and not ended: {0}; it hangs in the kernel, or is started again and again")]
    Stuck(String),
}

/// Ends everything that runs in grants of `instance`, whose scope systemd calls `unit`, within `patience`.
///
/// # Errors
/// [`EndError`].
pub fn end(instance: &str, unit: &str, patience: Duration) -> Result<(), EndError> {
    let root = cgroup2().map_err(EndError::Hierarchy)?;
    match Instance::find(&root, instance, unit).map_err(EndError::Tree)? {
        Some(instance) => end_all(&instance, patience),
        None => Ok(()),
    }
}

/// The processes that were told, each with when it started: a pid may be another's later.
type Told = HashMap<u32, u64>;

fn end_all(instance: &Instance, patience: Duration) -> Result<(), EndError> {
    let deadline = Instant::now() + patience;
    let mut told: HashMap<String, Told> = HashMap::new();
    loop {
        let populated = instance.populated().map_err(EndError::Tree)?;
        if populated.is_empty() {
            return Ok(());
        }
        for account in populated.iter().take_while(|_| Instant::now() < deadline) {
            let before = told.remove(account.name()).unwrap_or_default();
            told.insert(account.name().to_owned(), tell(account, &before));
            account.thaw();
        }
        if !wait(&populated, deadline) {
            return kill_all(instance, patience);
        }
    }
}

/// Tells everybody of an account's who has to be told and was not yet. What is gone meanwhile needs not be told, and what can't be
/// looked at is killed in the end.
fn tell(account: &Account, before: &Told) -> Told {
    let mut told = Told::new();
    for pid in account.to_be_told() {
        let Some((process, start)) = held(pid, |path| account.contains(path)) else { continue };
        if before.get(&pid) == Some(&start) {
            told.insert(pid, start);
        } else if process.send_signal(Signal::TERM).is_ok() {
            // One that was stopped could not take it.
            let _ = process.send_signal(Signal::CONT);
            told.insert(pid, start);
        }
    }
    told
}

/// The process and when it started, if the cgroup that it sits in is one of these: its pid was read before it was held, and may be
/// another's since.
fn held(pid: u32, is_ours: impl Fn(&str) -> bool) -> Option<(Pidfd, u64)> {
    let process = Pidfd::open(pid).ok()?;
    let places = hierarchy::places(pid).ok()?;
    let inside = places.iter().any(|place| place.hierarchy == CGROUP2 && is_ours(&place.path));
    // This also says that it was alive after its place was read.
    let start = process.start_time().ok()?;
    inside.then_some((process, start))
}

/// The time is over.
fn kill_all(instance: &Instance, patience: Duration) -> Result<(), EndError> {
    let names = names(&instance.populated().map_err(EndError::Tree)?);
    let mut left = Vec::new();
    for kill in [Account::kill_payloads, Account::kill] {
        left = kill_until(instance, kill)?;
        if left.is_empty() && names.is_empty() {
            return Ok(());
        }
        if left.is_empty() {
            return Err(EndError::Killed { patience, names });
        }
    }
    Err(EndError::Stuck(self::names(&left)))
}

/// Kills until nothing is left, or the time for that is over; what is left then. Whoever starts something meanwhile does so in vain.
fn kill_until(instance: &Instance, kill: fn(&Account)) -> Result<Vec<Account>, EndError> {
    let deadline = Instant::now() + KILLED;
    loop {
        let left = instance.populated().map_err(EndError::Tree)?;
        left.iter().for_each(kill);
        if left.is_empty() || !wait(&left, deadline) {
            return Ok(left);
        }
    }
}

/// What runs, for people.
fn names(accounts: &[Account]) -> String {
    let all: Vec<String> = accounts.iter().flat_map(Account::populated_grants).collect();
    let shown = all.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Waits until all of an account's has ended, or it is time to look again; `false` at the end of time.
fn wait(accounts: &[Account], deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds: Vec<PollFd<'_>> =
        accounts.iter().map(|account| PollFd::from_borrowed_fd(account.events(), PollFlags::PRI)).collect();
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
    fn a_process_is_held_only_where_it_sits() {
        let pid = std::process::id();
        let place = hierarchy::places(pid).unwrap().into_iter().find(|place| place.hierarchy == CGROUP2);
        let Some(place) = place else { panic!("every process is in the cgroup2 hierarchy") };
        let (_, start) = held(pid, |path| path == place.path).unwrap();
        assert_eq!(start, Pidfd::own().unwrap().start_time().unwrap());
        assert!(held(pid, |path| path != place.path).is_none());
        assert!(held(0, |_| true).is_none());
    }

    #[test]
    fn a_process_that_has_ended_is_nobody() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        // Ended, and not reaped: its pid is still its own.
        let process = Pidfd::open(child.id()).unwrap();
        while process.is_alive().unwrap() {
            std::thread::yield_now();
        }
        assert!(held(child.id(), |_| true).is_none());
        child.wait().unwrap();
    }
}
