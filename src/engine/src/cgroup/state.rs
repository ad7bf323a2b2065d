//! Freezing, thawing, killing, and waiting for what the kernel says came of it.
//!
//! On cgroup2 only, which every host has: payload and children, never the monitor.
//! Source: Documentation/admin-guide/cgroup-v2.rst, "Core Interface Files".

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cgrant_policy::GrantPath;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, SeekFrom, seek},
    io::{Errno, read, retry_on_intr},
};

use super::{
    error::CgroupError,
    node::{Node, value_of},
    tree::{CHILDREN, PAYLOAD, Tree, below_base, with_part},
};

/// How long it is waited for what the kernel does by and by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as it may take.
    Full,
    /// Not so long that others notice who wait for the same account.
    Brief,
}

impl Patience {
    /// Until when, of what may take so long.
    pub(super) fn deadline(self, full: Duration) -> Instant {
        Instant::now() + if self == Self::Full { full } else { full.min(BRIEF) }
    }
}

/// [`Patience::Brief`].
const BRIEF: Duration = Duration::from_millis(500);
/// How long the kernel may take to freeze everything.
const FREEZE_WAIT: Duration = Duration::from_secs(5);
/// How long killed processes may take to end.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(10);
const EVENTS: &str = "cgroup.events";
const FREEZE: &str = "cgroup.freeze";
const KILL: &str = "cgroup.kill";

impl Tree {
    /// Freezes payload and children, and waits until every process in them stands still. If that takes too long they are
    /// thawed again, unless they were frozen before.
    ///
    /// A holder that forks does not outrun it: the kernel freezes what is born in a frozen cgroup.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], [`CgroupError::TimedOut`], what the kernel refuses.
    pub fn freeze(&self, grant: &GrantPath, patience: Patience) -> Result<(), CgroupError> {
        let parts = self.parts(grant)?;
        let deadline = patience.deadline(FREEZE_WAIT);
        let mut changed = Vec::new();
        let result = parts.iter().try_for_each(|node| {
            if !is_set(node)? {
                set_frozen(node, true)?;
                changed.push(node);
            }
            match wait(node, "frozen", 1, deadline)? {
                true => Ok(()),
                false => Err(CgroupError::TimedOut("freezing")),
            }
        });
        if result.is_err() {
            for node in changed {
                // The first error is told; a cgroup that can't be thawed was removed.
                let _ = set_frozen(node, false);
            }
        }
        result
    }

    /// Thaws payload and children.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn thaw(&self, grant: &GrantPath) -> Result<(), CgroupError> {
        self.parts(grant)?.iter().try_for_each(|node| set_frozen(node, false))
    }

    /// Was the grant frozen through the broker?
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn is_frozen(&self, grant: &GrantPath) -> Result<bool, CgroupError> {
        is_set(&self.need_part(self.v2(), grant, PAYLOAD)?)
    }

    /// Are there processes in payload or children?
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn is_populated(&self, grant: &GrantPath) -> Result<bool, CgroupError> {
        let events = with_part(&below_base(grant), EVENTS);
        match self.v2().base.keyed_below(&events, "populated")? {
            None => return Err(CgroupError::NoSuchGrant(grant.clone())),
            Some(Some(0)) => return Ok(false),
            // That may be the monitor.
            Some(_) => (),
        }
        for node in self.parts(grant)? {
            if node.is_populated()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Kills everything in payload and children and waits until nothing is left. Frozen processes die too.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], [`CgroupError::TimedOut`], what the kernel refuses.
    pub fn kill(&self, grant: &GrantPath, patience: Patience) -> Result<(), CgroupError> {
        let parts = self.parts(grant)?;
        parts.iter().try_for_each(kill_all)?;
        let deadline = patience.deadline(KILL_WAIT);
        parts.iter().try_for_each(|node| match wait(node, "populated", 0, deadline)? {
            true => Ok(()),
            false => Err(CgroupError::TimedOut("killing")),
        })
    }

    /// Waits until nothing is left in payload and children, for as long as a kill may take. Nothing is done to them.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn wait_until_empty(&self, grant: &GrantPath) -> Result<(), CgroupError> {
        let deadline = Patience::Full.deadline(KILL_WAIT);
        let parts = self.parts(grant)?;
        parts.iter().try_for_each(|node| wait(node, "populated", 0, deadline).map(drop))
    }

    /// What freeze, kill and the process list are about.
    pub(super) fn parts(&self, grant: &GrantPath) -> Result<[Node; 2], CgroupError> {
        let node = self.need(self.v2(), grant)?;
        let part = |name| node.child(name)?.ok_or_else(|| CgroupError::NoSuchGrant(grant.clone()));
        Ok([part(PAYLOAD)?, part(CHILDREN)?])
    }
}

fn is_set(node: &Node) -> Result<bool, CgroupError> {
    Ok(node.read_if_there(FREEZE)?.as_deref() == Some("1"))
}

/// Freezes or thaws a cgroup and all below it.
pub(super) fn set_frozen(node: &Node, frozen: bool) -> Result<(), CgroupError> {
    let value = if frozen { "1" } else { "0" };
    node.write(FREEZE, value).map_err(CgroupError::kernel("to freeze or thaw", node.path()))
}

/// Kills every process in a cgroup and below it, those being forked meanwhile included (kernel 5.14).
pub(super) fn kill_all(node: &Node) -> Result<(), CgroupError> {
    node.write(KILL, "1").map_err(CgroupError::kernel("to kill", node.path()))
}

/// Waits until a value of `cgroup.events` is this. `false` if the deadline comes first. A cgroup that is gone has no
/// processes, and is as frozen as it can be.
pub(super) fn wait(node: &Node, key: &str, value: u64, deadline: Instant) -> Result<bool, CgroupError> {
    let error = |errno: Errno| CgroupError::kernel("to watch", node.path_of(EVENTS))(errno.into());
    let file = node.open(EVENTS, OFlags::RDONLY)?;
    let mut buffer = [0; 256];
    loop {
        seek(&file, SeekFrom::Start(0)).map_err(error)?;
        let count = match retry_on_intr(|| read(&file, &mut buffer)) {
            Err(Errno::NODEV) => return Ok(true),
            other => other.map_err(error)?,
        };
        let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
        if value_of(&text, key) == Some(value) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        // cgroupfs says POLLPRI when a file with notification changed since it was read through this descriptor.
        let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => return Err(error(errno)),
        }
    }
}
