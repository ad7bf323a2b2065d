//! `Create` and `Remove`.

use std::io;

use cgrant_sys::{Dir, EntryKind};
use rustix::io::Errno;

use super::{
    actor::{Access, Actor},
    call::{Call, Target, target},
    fault::Fault,
    maker::as_owner,
    path::{self, LEAF, Wanted, components},
    v2::Asked,
};
use crate::cgroup::{Hierarchy, Kind, Node, Visit, inherit_cpuset, is_v1_cpuset, walk};

/// The file of a new v1 cgroup that stays root's: the kernel would start root's program by it.
const KEPT: &str = "notify_on_release";
/// The mode of a new cgroup.
const MODE: u32 = 0o755;

impl Call<'_> {
    /// Makes a cgroup below the requestor's own, and those on the way to it; each new one is the requestor's with all its
    /// files. Was the last one there before? `more` is asked before each one is made, with its depth from the root. On cgroup2
    /// it has the controllers that are named, as far as the requestor's own cgroup has them and policy lets it.
    ///
    /// An attacker wants a cgroup in a place that is not its own, or one with files that mean more than its limits. It has to be
    /// able to read and write the directory that the new one is made in, and gets the new one only, which lies under all limits
    /// that it is under itself. In the devices hierarchy nobody but root gets any.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Devices`], [`Fault::Barred`], [`Fault::Granted`], the fault of `more`, what the kernel refuses;
    /// [`Fault::NotToBeHad`] of a single controller. What was made before stays.
    pub fn create(
        &self,
        hierarchy: &Hierarchy,
        wanted: &Wanted,
        controllers: &str,
        more: &dyn Fn(usize) -> Result<(), Fault>,
    ) -> Result<bool, Fault> {
        let own = self.requestor.cgroup(hierarchy)?;
        if wanted.names.is_empty() {
            return self.need(&target(hierarchy, own)?.stat, Access::Read).map(|()| true);
        }
        self.may_hand_over(hierarchy)?;
        self.not_granted(hierarchy, &[own.as_slice(), &wanted.names].concat())?;
        let (first, last) = (own.len() + 1, own.len() + wanted.names.len());
        let mut place = target(hierarchy, own)?;
        let asked = Asked::new(controllers, &hierarchy.offered).allowed(self.may_have)?;
        let mut existed = true;
        for (depth, name) in (first..).zip(&wanted.names) {
            if hierarchy.kind == Kind::V2 {
                self.need_way(&place, name)?;
                self.enable(hierarchy, &place, &asked)?;
            }
            let there = match place.dir.open_dir(name) {
                Ok(dir) => Some(dir),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                    self.need(&place.stat, Access::Change)?;
                    more(depth)?;
                    match make(hierarchy, &place.dir, name, self.requestor)? {
                        Made::Theirs if depth == last => return Ok(false),
                        Made::Theirs | Made::Handed => None,
                        Made::There(dir) => Some(dir),
                    }
                }
                Err(error) => return Err(Fault::kernel("to open a cgroup")(error)),
            };
            existed = there.is_some();
            place = match there {
                Some(dir) => {
                    let inner = place.inner(dir, name)?;
                    self.need(&inner.stat, Access::Read)?;
                    inner
                }
                None => {
                    let dir = place.dir.open_dir(name).map_err(Fault::kernel("to open a new cgroup"))?;
                    place.inner(dir, name)?
                }
            };
        }
        Ok(existed)
    }

    /// Refuses what [`create`](Self::create) would refuse, before controllers are enabled for it.
    fn need_way(&self, place: &Target, name: &str) -> Result<(), Fault> {
        match place.dir.exists(name).map_err(Fault::kernel("to look for a cgroup"))? {
            true => self.need(&place.stat, Access::Search),
            false => self.need(&place.stat, Access::Change),
        }
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
        let refused = Fault::kernel("to remove a cgroup");
        if self.may_remove(hierarchy, &above, name).is_ok() {
            match above.dir.remove_dir(name) {
                Ok(()) => return Ok(true),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => return Ok(false),
                // There is something in it: cgroups that may go with it, its leaf.
                Err(error) if is_in_the_way(&error) => (),
                Err(error) => return Err(refused(error)),
            }
        }
        let dir = match above.dir.open_dir(name) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => return Ok(false),
            other => other.map_err(Fault::kernel("to open a cgroup"))?,
        };
        self.may_remove(hierarchy, &above, name)?;
        if recursive {
            remove_below(&dir).map_err(&refused)?;
        }
        drop(dir);
        remove_one(hierarchy, &above.dir, name).map(|()| true).map_err(refused)
    }

    /// Refuses to remove what is not the requestor's to remove, or grants'.
    fn may_remove(&self, hierarchy: &Hierarchy, above: &Target, name: &str) -> Result<(), Fault> {
        self.need(&above.stat, Access::Write)?;
        let names: Vec<String> =
            above.names.iter().map(String::as_str).chain([name]).map(str::to_owned).collect();
        self.not_granted(hierarchy, &names)?;
        match path::below(&components(&hierarchy.base_path), &names) {
            Some(_) => Err(Fault::Granted),
            None => Ok(()),
        }
    }
}

/// Removes a cgroup that has no processes, and no cgroups but its leaf; fine if somebody else was quicker.
///
/// # Errors
/// `EBUSY` if there are any; what the kernel refuses.
pub fn remove_one(hierarchy: &Hierarchy, above: &Dir, name: &str) -> io::Result<()> {
    let there = |error: &io::Error| !matches!(Errno::from_io_error(error), Some(Errno::NOENT));
    if hierarchy.kind == Kind::V2 {
        match above.open_dir(name).and_then(|dir| remove_leaf(&dir)) {
            Err(error) if there(&error) => return Err(error),
            _ => (),
        }
    }
    match above.remove_dir(name) {
        Err(error) if there(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Removes the leaf of a cgroup that has no other cgroups.
fn remove_leaf(dir: &Dir) -> io::Result<()> {
    if dir.dirs()?.iter().any(|name| name != LEAF) {
        return Err(Errno::BUSY.into());
    }
    match dir.remove_dir(LEAF) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::NOENT) => Err(error),
        _ => Ok(()),
    }
}

/// How a cgroup came to be there.
enum Made {
    /// Made as its owner's.
    Theirs,
    /// Made, and handed over.
    Handed,
    /// Somebody else was quicker.
    There(Dir),
}

/// Makes a cgroup that is its owner's with its files.
///
/// Where the owner may do so by the kernel's own rules too it is made as the owner. Nobody gets the file that stays root's who
/// could not have made the cgroup without us, before that is taken back. Where the kernel does not let the owner (root of a user
/// namespace in what belongs to another uid of it, say) it is made, and given away, by root.
fn make(hierarchy: &Hierarchy, above: &Dir, name: &str, to: &Actor<'_>) -> Result<Made, Fault> {
    let refused = Fault::kernel("to make a cgroup");
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let ids = (to.uid, to.gid);
    let is_roots = ids == (0, 0);
    let make = || above.make_dir(name, MODE);
    let as_theirs = if is_roots { (make(), true) } else { as_owner(ids, make) };
    let (made, theirs) = match as_theirs {
        (Err(error), _) if is_refused(&error) => (make(), is_roots),
        made => made,
    };
    match made {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
            return above.open_dir(name).map(Made::There).map_err(Fault::kernel("to open a cgroup"));
        }
        made => made.map_err(&refused)?,
    }
    if is_v1_cpuset(hierarchy) || !theirs {
        let dir = above.open_dir(name).map_err(Fault::kernel("to open a new cgroup"))?;
        set_up(hierarchy, above, &dir)?;
        if !theirs {
            hand_over(&dir, to)?;
            return Ok(Made::Handed);
        }
    }
    if !is_roots && hierarchy.kind == Kind::V1 {
        above.chown_below(&[name, KEPT], 0, 0).map_err(Fault::kernel("to keep a file of a new cgroup"))?;
    }
    Ok(Made::Theirs)
}

/// Gives a new v1 cpuset the CPUs and nodes of the one that it is in: the kernel gives it none, and it would take no process.
fn set_up(hierarchy: &Hierarchy, above: &Dir, new: &Dir) -> Result<(), Fault> {
    if !is_v1_cpuset(hierarchy) {
        return Ok(());
    }
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
    let refused = Fault::kernel("to hand a new cgroup over");
    for entry in dir.entries().map_err(&refused)? {
        if entry.kind == EntryKind::File && entry.name != KEPT {
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
