//! `Create` and `Remove`.

use std::io;

use cgrant_sys::{Dir, EntryKind};
use rustix::io::Errno;

use super::{
    actor::{Access, Actor},
    call::{Call, Target},
    fault::Fault,
    path::Wanted,
};
use crate::cgroup::{Hierarchy, Node, Visit, inherit_cpuset, walk};

/// Files of a new cgroup that stay root's: the kernel would start root's program by them.
const KEPT: [&str; 2] = ["notify_on_release", "release_agent"];
/// The mode of a new cgroup.
const MODE: u32 = 0o755;

impl Call<'_> {
    /// Makes a cgroup below the requestor's own, and those on the way to it; each new one is the requestor's with all its
    /// files. Was the last one there before? `more` is asked before each one is made, with its depth from the root.
    ///
    /// An attacker wants a cgroup in a place that is not its own, or one with files that mean more than its limits. It has to be
    /// able to read and write the directory that the new one is made in, and gets the new one only, which lies under all limits
    /// that it is under itself. In the devices hierarchy nobody but root gets any.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Devices`], the fault of `more`, what the kernel refuses. What was made before stays.
    pub fn create(
        &self,
        hierarchy: &Hierarchy,
        wanted: &Wanted,
        more: &dyn Fn(usize) -> Result<(), Fault>,
    ) -> Result<bool, Fault> {
        if wanted.names.is_empty() {
            return Ok(false);
        }
        self.may_hand_over(hierarchy)?;
        let own = self.requestor.cgroup(hierarchy)?;
        let mut place = Target::new(super::call::open(hierarchy, &own)?)?;
        let mut existed = true;
        for (depth, name) in (own.len() + 1..).zip(&wanted.names) {
            let there = match place.dir.open_dir(name) {
                Ok(dir) => Some(dir),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                    self.need(&place.stat, Access::Change)?;
                    more(depth)?;
                    make(&place.dir, name)?
                }
                Err(error) => return Err(Fault::kernel("to open a cgroup")(error)),
            };
            existed = there.is_some();
            place = match there {
                Some(dir) => {
                    let target = Target::new(dir)?;
                    self.need(&target.stat, Access::Read)?;
                    target
                }
                None => {
                    let dir = place.dir.open_dir(name).map_err(Fault::kernel("to open a new cgroup"))?;
                    set_up(hierarchy, &place.dir, &dir)?;
                    hand_over(&dir, self.requestor)?;
                    Target::new(dir)?
                }
            };
        }
        Ok(existed)
    }

    /// Removes a cgroup below the requestor's own, with all that are below it if `recursive`. Was it there?
    ///
    /// An attacker wants to remove another one's: it has to be able to write in the directory that the cgroup is in, and the
    /// kernel removes none that has processes. What is removed below it is its own or empty.
    ///
    /// # Errors
    /// [`Fault::Denied`]; `EBUSY` of the kernel's if processes or, without `recursive`, cgroups are in it: what could be removed
    /// is gone then.
    pub fn remove(&self, hierarchy: &Hierarchy, wanted: &Wanted, recursive: bool) -> Result<bool, Fault> {
        let Some((name, way)) = wanted.names.split_last() else { return Err(Fault::Denied) };
        let above = match self.below_own(hierarchy, way) {
            Err(Fault::NoCgroup) => return Ok(false),
            other => other?,
        };
        let dir = match above.dir.open_dir(name) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => return Ok(false),
            other => other.map_err(Fault::kernel("to open a cgroup"))?,
        };
        self.need(&above.stat, Access::Write)?;
        if recursive {
            remove_below(&dir).map_err(Fault::kernel("to remove a cgroup"))?;
        }
        drop(dir);
        match above.dir.remove_dir(name) {
            // Somebody else was quicker.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(true),
            other => other.map(|()| true).map_err(Fault::kernel("to remove a cgroup")),
        }
    }
}

/// Makes a cgroup; if somebody else was quicker, that one is opened.
fn make(above: &Dir, name: &str) -> Result<Option<Dir>, Fault> {
    match above.make_dir(name, MODE) {
        Ok(()) => Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
            above.open_dir(name).map(Some).map_err(Fault::kernel("to open a cgroup"))
        }
        Err(error) => Err(Fault::kernel("to make a cgroup")(error)),
    }
}

/// Gives a new v1 cpuset the CPUs and nodes of the one that it is in: the kernel gives it none, and it would take no process.
fn set_up(hierarchy: &Hierarchy, above: &Dir, new: &Dir) -> Result<(), Fault> {
    let refused = Fault::kernel("to set up a new cgroup");
    let above = Node::new(above.try_clone().map_err(&refused)?, String::new());
    let new = Node::new(new.try_clone().map_err(&refused)?, String::new());
    inherit_cpuset(hierarchy, &above, &new).map(drop).map_err(|error| refused(io::Error::other(error)))
}

/// Gives a new cgroup and its files to whoever it was made for.
///
/// Whoever owns the directory that it is in could have put another one of it in its place: that one already lies under limits
/// that are the requestor's own to set.
fn hand_over(dir: &Dir, to: &Actor<'_>) -> Result<(), Fault> {
    if (to.uid, to.gid) == (0, 0) {
        return Ok(());
    }
    let refused = Fault::kernel("to hand a new cgroup over");
    for entry in dir.entries().map_err(&refused)? {
        if entry.kind == EntryKind::File && !KEPT.iter().any(|kept| entry.name == *kept) {
            dir.chown(&entry.name, to.uid, to.gid).map_err(&refused)?;
        }
    }
    dir.chown("", to.uid, to.gid).map_err(&refused)
}

/// Removes everything below a cgroup that can be, the innermost first. One that is in use is left, and those around it; the
/// kernel says so when the last one is removed.
fn remove_below(dir: &Dir) -> io::Result<()> {
    walk(dir, |visit| match visit {
        Visit::Leave { parent, name } => match parent.remove_dir(name) {
            Err(error) if !is_in_the_way(&error) => Err(error),
            _ => Ok(()),
        },
        Visit::Enter { .. } => io::Result::Ok(()),
    })
}

fn is_in_the_way(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::BUSY | Errno::NOTEMPTY | Errno::NOENT))
}
