//! `GetPidCgroup`, `MovePid`, `GetTasks` and their variants.

use std::{io, os::fd::AsFd};

use cgrant_sys::Dir;
use rustix::{
    fs::{AtFlags, OFlags, statat},
    io::Errno,
};

use super::{
    actor::{Access, Actor},
    call::{Call, target},
    fault::Fault,
    path::{self, Wanted, components},
    v2::{behind, entrance},
    values::read_all,
};
use crate::cgroup::{Hierarchy, Kind, Visit, walk};

/// The threads of a v1 cgroup.
const TASKS: &str = "tasks";
/// What a process is moved by.
const PROCS: &str = "cgroup.procs";
/// How often a process is moved that finds its place gone.
const TRIES: usize = 3;
/// Most tasks that are listed.
const MOST_TASKS: usize = 100_000;
/// Most processes that are looked through for one that a caller names, on kernels that don't say which it is.
const MOST_LOOKED_THROUGH: usize = 10_000;
/// Ends of the cgroup of a proxy that systemd started, which its containers' own paths don't have.
const CUT: [&[&str]; 2] = [&["init.scope"], &["system.slice", "cgproxy.service"]];

impl Call<'_> {
    /// The cgroup of a process below the requestor's own without `/` at its beginning; or, `absolute`, below the proxy's
    /// with it, or [the root](Self::counts_from_root). `/` if it is the same one.
    ///
    /// # Errors
    /// [`Fault::Outside`] if it is not below; [`Fault::Gone`].
    pub fn pid_cgroup(
        &self,
        hierarchy: &Hierarchy,
        victim: &Actor<'_>,
        absolute: bool,
    ) -> Result<String, Fault> {
        let base = if !absolute {
            self.requestor.cgroup(hierarchy)?
        } else if self.counts_from_root()? {
            Vec::new()
        } else {
            self.proxy.cgroup(hierarchy)?
        };
        let cgroup = victim.cgroup(hierarchy)?;
        let rest = path::below(&cgroup, &base).ok_or(Fault::Outside)?.join("/");
        Ok(if absolute || rest.is_empty() { format!("/{rest}") } else { rest })
    }

    /// Moves a process into a cgroup below the requestor's own; or, `absolute`, below the proxy's or
    /// [the root](Self::counts_from_root).
    ///
    /// An attacker wants somebody else's process moved, or its own out of what bounds it. It has to be allowed to move the
    /// process by all of its uids; the process has to be below the same cgroup already, and in no grant; and the bits of the
    /// cgroup and of its `tasks` (on cgroup2, `cgroup.procs`) decide, which root gave it or which are of its own making, under
    /// the limits of what it was given. On cgroup2 [`may_go`](Self::may_go) has a word too.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Outside`], [`Fault::Path`], [`Fault::NoCgroup`], [`Fault::Gone`], [`Fault::Devices`], what the
    /// kernel refuses.
    pub fn move_process(
        &self,
        hierarchy: &Hierarchy,
        wanted: &Wanted,
        victim: &Actor<'_>,
        absolute: bool,
    ) -> Result<(), Fault> {
        if wanted.absolute && !absolute {
            return Err(Fault::Path);
        }
        self.may_hand_over(hierarchy)?;
        let info = victim.info()?;
        let itself = info.pid == self.requestor.pid();
        if !itself && !self.requestor.may_move(&info) {
            return Err(Fault::Denied);
        }
        let base = self.base(hierarchy, absolute)?;
        let from = victim.cgroup(hierarchy)?;
        path::below(&from, &base).ok_or(Fault::Outside)?;
        // What lies in a grant stays in it.
        let granted = path::below(&from, &components(&hierarchy.base_path)).is_some();
        if granted && self.requestor.uid != 0 {
            return Err(Fault::Outside);
        }
        let target = self.descend(target(hierarchy, base)?, &wanted.names)?;
        self.not_granted(hierarchy, &target.names)?;
        self.may_go(hierarchy, &from, &target.names)?;
        self.need(&target.stat, Access::Read)?;
        let refused = Fault::kernel("to move a process");
        let entered_by = if hierarchy.kind == Kind::V1 { TASKS } else { PROCS };
        let tasks = statat(&target.dir, entered_by, AtFlags::SYMLINK_NOFOLLOW);
        self.need(&tasks.map_err(|errno| refused(errno.into()))?, Access::Write)?;
        if !victim.process().is_alive().map_err(&refused)? {
            return Err(Fault::Gone);
        }
        put_into(hierarchy, &target.dir, info.pid).map_err(&refused)?;
        if !victim.process().is_alive().map_err(&refused)? {
            self.put_right(hierarchy, &target.names, info.pid);
            return Err(Fault::Gone);
        }
        Ok(())
    }

    /// Does what is called absolute begin at the root, and not at the proxy's cgroup? In a plain call, as CGManager has it; but
    /// that one answers only those who number processes as it does.
    ///
    /// An attacker wants out of the container that it is root of, maybe the host's root, by a plain call, whose numbers are
    /// translated: it gets what the same call would by its twin, which begins at its own cgroup.
    fn counts_from_root(&self) -> Result<bool, Fault> {
        Ok(self.plain && self.requestor.shares_pid_namespace()?)
    }

    /// The processes in the requestor's own cgroup and below it, the requestor first: among them is whoever it may name, in the
    /// hierarchies that these names stand for. Up to [`MOST_LOOKED_THROUGH`].
    pub fn own_processes(&self, controllers: &str) -> impl Iterator<Item = u32> {
        let listed = || {
            let hierarchies = self.many(controllers).unwrap_or_default();
            hierarchies.into_iter().flat_map(|hierarchy| self.listed_below_own(hierarchy).unwrap_or_default())
        };
        let all = std::iter::once_with(listed).flatten();
        std::iter::once(self.requestor.pid()).chain(all).take(MOST_LOOKED_THROUGH)
    }

    fn listed_below_own(&self, hierarchy: &Hierarchy) -> Result<Vec<u32>, Fault> {
        let mut found = Vec::new();
        let own = self.own_cgroup(hierarchy)?.dir;
        add(PROCS, &own, &mut found)?;
        walk(&own, |visit| match visit {
            Visit::Enter { dir, .. } if found.len() < MOST_LOOKED_THROUGH => {
                match add(PROCS, dir, &mut found) {
                    Err(Fault::NoCgroup) => Ok(()),
                    other => other,
                }
            }
            Visit::Enter { .. } | Visit::Leave { .. } => Ok(()),
        })?;
        Ok(found)
    }

    /// Where the path of a move is counted from.
    fn base(&self, hierarchy: &Hierarchy, absolute: bool) -> Result<Vec<String>, Fault> {
        let mut base = match absolute {
            true if self.counts_from_root()? => Vec::new(),
            true => self.proxy.cgroup(hierarchy)?,
            false => self.requestor.cgroup(hierarchy)?,
        };
        for end in CUT {
            let kept = base.len().saturating_sub(end.len());
            if base.get(kept..).is_some_and(|names| names.iter().eq(end.iter())) {
                base.truncate(kept);
                break;
            }
        }
        Ok(base)
    }

    /// The tasks of a cgroup, and `recursive` of those below it, as the engine numbers them: sorted, each once.
    ///
    /// # Errors
    /// As [`Call::readable`]; `EFBIG` past 100,000.
    pub fn tasks(&self, hierarchy: &Hierarchy, path: &str, recursive: bool) -> Result<Vec<u32>, Fault> {
        let target = self.readable(hierarchy, path)?;
        let mut found = Vec::new();
        let listed = if hierarchy.kind == Kind::V1 { TASKS } else { PROCS };
        add(listed, &target.dir, &mut found)?;
        if hierarchy.kind == Kind::V2
            && let Some(leaf) = behind(&target.dir)?
        {
            add(listed, &leaf, &mut found)?;
        }
        if recursive {
            walk(&target.dir, |visit| match visit {
                Visit::Enter { dir, .. } => match add(listed, dir, &mut found) {
                    Err(Fault::NoCgroup) => Ok(()),
                    other => other,
                },
                Visit::Leave { .. } => Ok(()),
            })?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::kernel("to list a cgroup")(error)
    }
}

/// Moves a process into a cgroup; on cgroup2 to its leaf, as a rule.
fn put_into(hierarchy: &Hierarchy, cgroup: &Dir, pid: u32) -> io::Result<()> {
    if hierarchy.kind == Kind::V1 {
        return cgroup.write(PROCS, &pid.to_string());
    }
    let mut tries = 0;
    loop {
        let result = entrance(cgroup)?.write(PROCS, &pid.to_string());
        tries += 1;
        match result {
            // The leaf was removed meanwhile, or controllers were enabled in a cgroup with processes of its own.
            Err(error)
                if tries < TRIES
                    && matches!(Errno::from_io_error(&error), Some(Errno::NODEV | Errno::BUSY)) => {}
            other => return other,
        }
    }
}

/// Adds what a file of one cgroup lists.
fn add(name: &str, dir: &Dir, found: &mut Vec<u32>) -> Result<(), Fault> {
    let file = dir.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let bytes = match read_all(file.as_fd()) {
        // The processes of a threaded subtree show in the cgroup that it begins with.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let text = String::from_utf8_lossy(&bytes);
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    if found.len() > MOST_TASKS {
        return Err(io::Error::from(Errno::FBIG).into());
    }
    Ok(())
}
