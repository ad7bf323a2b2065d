//! `GetPidCgroup`, `MovePid`, `GetTasks` and their variants.

use std::os::fd::AsFd;

use cgrant_sys::Dir;
use rustix::fs::OFlags;

use super::{
    actor::{Access, Actor},
    call::{Call, open, stat},
    fault::Fault,
    path::{self, Wanted, components},
    values::read_all,
};
use crate::cgroup::{Hierarchy, Visit, walk};

/// The threads of a v1 cgroup.
const TASKS: &str = "tasks";
/// What a process is moved by.
const PROCS: &str = "cgroup.procs";
/// Most tasks that are listed.
const MOST_TASKS: usize = 100_000;
/// Ends of the cgroup of a proxy that systemd started, which its containers' own paths don't have.
const CUT: [&[&str]; 2] = [&["init.scope"], &["system.slice", "cgproxy.service"]];

impl Call<'_> {
    /// The cgroup of a process below the requestor's own without `/` at its beginning; or, `absolute`, below the proxy's
    /// with it, the root in a plain call. `/` if it is the same one.
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
        } else if self.plain {
            Vec::new()
        } else {
            self.proxy.cgroup(hierarchy)?
        };
        let cgroup = victim.cgroup(hierarchy)?;
        let rest = path::below(&cgroup, &base).ok_or(Fault::Outside)?.join("/");
        Ok(if absolute || rest.is_empty() { format!("/{rest}") } else { rest })
    }

    /// Moves a process into a cgroup below the requestor's own; or, `absolute`, below the proxy's, the root in a plain call.
    ///
    /// An attacker wants somebody else's process moved, or its own out of what bounds it. It has to be allowed to move the
    /// process by all of its uids; the process has to be below the same cgroup already, and in no grant; and the bits of the
    /// cgroup and of its `tasks` decide, which root gave it or which are of its own making, under the limits of what it was
    /// given.
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
        let info = victim.process().info().map_err(|_| Fault::Gone)?;
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
        let target = self.descend(open(hierarchy, &base)?, &wanted.names)?;
        self.need(&target.stat, Access::Read)?;
        let refused = Fault::kernel("to move a process");
        let tasks = target.dir.open_file(TASKS, OFlags::PATH).map_err(&refused)?;
        self.need(&stat(tasks.as_fd())?, Access::Write)?;
        if !victim.process().is_alive().map_err(&refused)? {
            return Err(Fault::Gone);
        }
        target.dir.write(PROCS, &info.pid.to_string()).map_err(&refused)?;
        if victim.process().is_alive().map_err(&refused)? { Ok(()) } else { Err(Fault::Gone) }
    }

    /// Where the path of a move is counted from.
    fn base(&self, hierarchy: &Hierarchy, absolute: bool) -> Result<Vec<String>, Fault> {
        let mut base = match (absolute, self.plain) {
            (true, true) => Vec::new(),
            (true, false) => self.proxy.cgroup(hierarchy)?,
            (false, _) => self.requestor.cgroup(hierarchy)?,
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
        add(&target.dir, &mut found)?;
        if recursive {
            walk(&target.dir, |visit| match visit {
                Visit::Enter { dir, .. } => match add(dir, &mut found) {
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

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::kernel("to list a cgroup")(error)
    }
}

/// Adds the tasks of one cgroup.
fn add(dir: &Dir, found: &mut Vec<u32>) -> Result<(), Fault> {
    let file = dir.open_file(TASKS, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let bytes = read_all(file.as_fd())?;
    let text = String::from_utf8_lossy(&bytes);
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    if found.len() > MOST_TASKS {
        return Err(std::io::Error::from(rustix::io::Errno::FBIG).into());
    }
    Ok(())
}
