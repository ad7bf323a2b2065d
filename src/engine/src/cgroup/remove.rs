//! Removing a grant's cgroups, with everything that its holder made inside, while the holder may try to prevent it.

use std::{
    io,
    os::fd::AsFd,
    sync::PoisonError,
    time::{Duration, Instant},
};

use cgrant_policy::{GrantPath, HostUid};
use cgrant_sys::{Dir, Pidfd, pidfd::Signal};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    mounts::Kind,
    node::{Node, errno, is_missing, pids},
    state::{KILL_WAIT, Patience, kill_all, wait},
    tree::{
        CHILDREN, ENTRY, EVICTED, MONITOR, PAYLOAD, Tree, account_name, below_base, grants_in, with_part,
    },
    walk::{Visit, walk},
};

/// What a monitor has to end by itself after its payload is empty.
const MONITOR_GRACE: Duration = Duration::from_millis(200);
/// Most processes of one cgroup that are looked at in one round.
const MOST_PIDS: usize = 1 << 20;
const PROCS: &str = "cgroup.procs";

impl Tree {
    /// Removes a grant's cgroups in every hierarchy, grants inside of it included, and the account's node if nothing is left in
    /// it. Parts that are missing already are fine. With `kill` whatever is in it is killed, a monitor after a short grace.
    ///
    /// An attacker wants the grant to stay: it forks, makes cgroups in any depth, enters anew. With nobody in it nobody gets in
    /// (the common ancestor with everything outside is root's); directories are taken from the holder before they are listed;
    /// depth costs neither stack nor descriptors.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] if processes are in it and `kill` is not set: nothing is changed then.
    /// [`CgroupError::TimedOut`] if they don't end; what the kernel refuses. Another try goes on from there.
    pub fn remove(&self, grant: &GrantPath, kill: bool) -> Result<(), CgroupError> {
        let result = self.remove_grant(grant, kill, Patience::Full);
        self.remove_empty_account(grant.account);
        result
    }

    /// As [`Tree::remove`], but leaves the account's node for a grant that comes soon.
    ///
    /// # Errors
    /// As [`Tree::remove`].
    pub fn remove_grant(&self, grant: &GrantPath, kill: bool, patience: Patience) -> Result<(), CgroupError> {
        let names = below_base(grant);
        let parts = [MONITOR, PAYLOAD, CHILDREN].map(|part| with_part(&names, part));
        let is_gone = kill && remove_empty(self.v2(), &names, &parts);
        if !is_gone && let Some(node) = self.node(self.v2(), grant)? {
            empty(&node, kill, patience)?;
        }
        let mut first = Ok(());
        for hierarchy in self.hierarchies.all().rev() {
            if hierarchy.kind == Kind::V2 && is_gone || remove_empty(hierarchy, &names, &parts) {
                continue;
            }
            let result = match self.above_of(hierarchy, grant)? {
                Some((above, name)) => tear_down(hierarchy, &above, &name, kill, patience),
                None => Ok(()),
            };
            first = first.and(result);
        }
        first
    }

    /// Tells a grant's monitors to end what runs in it, or, where there is none, what runs (SIGTERM). Says whether anybody is there
    /// to be told. Of each cgroup so many processes are told as are held at a time; what is not told is killed in the end.
    ///
    /// An attacker wants a signal to reach somebody else's process: each is held, and seen in the cgroup, before it is told.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn tell_to_end(&self, grant: &GrantPath) -> Result<bool, CgroupError> {
        if let Some(monitor) = self.part(self.v2(), grant, MONITOR)?
            && tell(monitor.dir()).map_err(CgroupError::kernel("to list", monitor.path()))?
        {
            return Ok(true);
        }
        let mut told = false;
        for part in self.parts(grant)? {
            let mut below = |dir: &Dir| -> io::Result<()> {
                told |= tell(dir)?;
                Ok(())
            };
            below(part.dir())
                .and_then(|()| {
                    walk(part.dir(), |visit| match visit {
                        Visit::Enter { dir, .. } => below(dir),
                        Visit::Leave { .. } => io::Result::Ok(()),
                    })
                })
                .map_err(CgroupError::kernel("to list", part.path()))?;
        }
        Ok(told)
    }

    /// The cgroup that a grant's is in, and the grant's name there.
    fn above_of(
        &self,
        hierarchy: &Hierarchy,
        grant: &GrantPath,
    ) -> Result<Option<(Node, String)>, CgroupError> {
        let Some(step) = grant.steps.last() else { return Ok(None) };
        let around = grant.around();
        let above = match grant.is_nested() {
            false => self.node(hierarchy, &around)?,
            true => self.part(hierarchy, &around, CHILDREN)?,
        };
        Ok(above.map(|above| (above, step.to_string())))
    }

    /// Removes an account's node where nothing is in it any more.
    pub fn remove_empty_account(&self, account: HostUid) {
        self.governed.lock().unwrap_or_else(PoisonError::into_inner).remove(&account);
        let name = account_name(account);
        for hierarchy in self.hierarchies.all() {
            // EBUSY is the usual answer: other grants are there.
            if hierarchy.base.remove(&name).is_ok() {
                continue;
            }
            let Ok(Some(node)) = hierarchy.base.child(&name) else { continue };
            let rid = node.remove(EVICTED).is_ok();
            let others = if rid { hierarchy.base.remove(&name).is_err() } else { grants_in(node.dir()) > 1 };
            if others {
                // Grants have cgroups in every hierarchy: the account's nodes stay.
                return;
            }
        }
        self.forget_shadow(account);
    }
}

/// Removes a grant's cgroup in one hierarchy, if nobody is in it and nothing but its own parts.
///
/// The monitor's goes first: on cgroup2 nobody gets into the payload any more when that is empty and gone, and while
/// somebody is in it everything stays as it is.
fn remove_empty(hierarchy: &Hierarchy, names: &[String], parts: &[Vec<String>]) -> bool {
    parts.iter().all(|part| hierarchy.base.remove_below(part).is_ok())
        && hierarchy.base.remove_below(names).is_ok()
}

/// Sees to it that nobody is in a grant's cgroup2 cgroups.
fn empty(grant: &Node, kill: bool, patience: Patience) -> Result<(), CgroupError> {
    if !grant.is_populated()? {
        return Ok(());
    }
    if !kill {
        return Err(CgroupError::Populated { cgroup: grant.path().to_owned() });
    }
    // From here on nobody goes from the monitor into the payload, or from outside anywhere.
    take_back(grant.dir()).map_err(CgroupError::kernel("to take back", grant.path()))?;
    let deadline = patience.deadline(KILL_WAIT);
    for name in [PAYLOAD, CHILDREN, ENTRY] {
        if let Some(part) = grant.child(name)? {
            kill_all(&part)?;
            if !wait(&part, "populated", 0, deadline)? {
                return Err(CgroupError::TimedOut("killing"));
            }
        }
    }
    if let Some(monitor) = grant.child(MONITOR)? {
        wait(&monitor, "populated", 0, Instant::now() + MONITOR_GRACE)?;
    }
    kill_all(grant)?;
    match wait(grant, "populated", 0, deadline)? {
        true => Ok(()),
        false => Err(CgroupError::TimedOut("killing")),
    }
}

/// Removes a grant's cgroup in one hierarchy, with all below it.
fn tear_down(
    hierarchy: &Hierarchy,
    above: &Node,
    name: &str,
    kill: bool,
    patience: Patience,
) -> Result<(), CgroupError> {
    let Some(grant) = above.child(name)? else { return Ok(()) };
    for part in [PAYLOAD, CHILDREN, MONITOR, ENTRY] {
        // What is empty goes at once; what is not, below.
        let _ = grant.remove(part);
    }
    if above.remove(name).is_ok() {
        return Ok(());
    }
    if hierarchy.kind == Kind::V1 {
        empty_v1(&grant, kill, patience)?;
    }
    remove_below(&grant)?;
    above.remove(name).map_err(|error| busy(error, &grant))
}

/// Removes every cgroup below one. Goes on where one can't be removed, and gives the first error.
fn remove_below(top: &Node) -> Result<(), CgroupError> {
    let mut first = None;
    take_back(top.dir()).map_err(CgroupError::kernel("to take back", top.path()))?;
    walk(top.dir(), |visit| {
        match visit {
            // Before its cgroups are listed, so that none is made after the listing.
            Visit::Enter { dir, .. } => take_back(dir)?,
            Visit::Leave { parent, name } => match parent.remove_dir(name) {
                Err(error) if !is_missing(&error) => {
                    first.get_or_insert(error);
                }
                _ => (),
            },
        }
        io::Result::Ok(())
    })
    .map_err(CgroupError::kernel("to remove what is in", top.path()))?;
    match first {
        None => Ok(()),
        Some(error) => Err(busy(error, top)),
    }
}

fn busy(error: io::Error, node: &Node) -> CgroupError {
    match errno(&error) {
        Some(Errno::BUSY) => CgroupError::Populated { cgroup: node.path().to_owned() },
        _ => CgroupError::kernel("to remove", node.path())(error),
    }
}

/// Makes a cgroup root's again: nobody else makes cgroups in it, and nobody else moves processes into it.
fn take_back(dir: &Dir) -> io::Result<()> {
    for file in ["", PROCS, "cgroup.threads"] {
        match dir.chown(file, 0, 0) {
            Err(error) if !is_missing(&error) => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

/// Sees to it that nobody is in v1 cgroups of a grant who is not in its cgroup2 ones. That takes a hand of root's, and is
/// coped with all the same.
fn empty_v1(grant: &Node, kill: bool, patience: Patience) -> Result<(), CgroupError> {
    let deadline = patience.deadline(KILL_WAIT);
    loop {
        let mut alive = Vec::new();
        let mut look = |dir: &Dir| -> io::Result<()> {
            if alive.len() < BATCH {
                alive.extend(members(dir)?);
            }
            Ok(())
        };
        look(grant.dir()).map_err(CgroupError::kernel("to list", grant.path()))?;
        walk(grant.dir(), |visit| match visit {
            Visit::Enter { dir, .. } => look(dir),
            Visit::Leave { .. } => io::Result::Ok(()),
        })
        .map_err(CgroupError::kernel("to list", grant.path()))?;
        if alive.is_empty() {
            return Ok(());
        }
        if !kill {
            return Err(CgroupError::Populated { cgroup: grant.path().to_owned() });
        }
        for process in &alive {
            // It may have ended by itself.
            let _ = process.send_signal(Signal::KILL);
        }
        for process in &alive {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::TimedOut("killing"));
            }
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timeout));
        }
    }
}

/// Tells processes of a cgroup to end; false if there is none.
fn tell(dir: &Dir) -> io::Result<bool> {
    let members = members(dir)?;
    for process in &members {
        // One that was stopped could not take it; one that has ended by itself needs it not.
        let _ = process.send_signal(Signal::TERM);
        let _ = process.send_signal(Signal::CONT);
    }
    Ok(!members.is_empty())
}

/// At most how many processes are held by descriptor at a time.
const BATCH: usize = 128;

/// Some processes that are in a cgroup: their pid was in the list again after their pidfd was had, so it is theirs.
fn members(dir: &Dir) -> io::Result<Vec<Pidfd>> {
    let list = || match pids(dir, MOST_PIDS) {
        Ok(pids) => Ok(pids),
        Err(super::node::PidsError::TooMany) => Err(Errno::FBIG.into()),
        Err(super::node::PidsError::Io(error)) => Err(error),
    };
    let first = list()?;
    let held: Vec<(u32, Pidfd)> =
        first.into_iter().take(BATCH).filter_map(|pid| Some((pid, Pidfd::open(pid).ok()?))).collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let still = list()?;
    let there =
        |(pid, process): (u32, Pidfd)| (still.contains(&pid) && process.is_alive().ok()?).then_some(process);
    Ok(held.into_iter().filter_map(there).collect())
}
