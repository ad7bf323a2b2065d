//! Controllers for what is below a cgroup: those that a client names when it makes a cgroup, in every cgroup on the way from its own
//! to that one, and nowhere above.
//!
//! Above are the cgroups of others: what is enabled there is theirs to say (an administrator's, systemd's).

use std::io;

use cgrant_sys::{Dir, EntryKind, Pidfd};
use rustix::{
    fs::{AtFlags, OFlags, statat},
    io::Errno,
};

use super::{
    super::{
        actor::Access,
        call::{Call, Target, stat},
        controllers::{is_one, of_v2, v1_name},
        fault::Fault,
    },
    leaf,
};
use crate::cgroup::{Hierarchy, is_missing};

const CONTROL: &str = "cgroup.subtree_control";
const PROCS: &str = "cgroup.procs";
/// A file that every cgroup has and that is never handed over alone: whose it is, all limits are.
const LIMIT: &str = "cgroup.max.descendants";
/// Longest list of controllers, in bytes.
const MAX_LIST: usize = 4096;
/// How often processes are moved out of the way that others go on to fork there.
const ROUNDS: usize = 64;
/// Longest list of processes, in bytes.
const MAX_PIDS: usize = 1 << 20;

/// Controllers that a client asks for.
pub struct Asked {
    /// Their names on cgroup2.
    controllers: Vec<String>,
    /// Is it an error if they can't be had? Not of `all` and lists.
    needed: bool,
}

impl Asked {
    /// By the argument of a call, of those that the host has on cgroup2.
    pub fn new(argument: &str, offered: &[String]) -> Self {
        Self { controllers: of_v2(argument, offered), needed: is_one(argument) }
    }

    /// Leaves out of `all` and lists what is not allowed.
    ///
    /// # Errors
    /// What is said of the first one, if it is needed.
    pub fn allowed(mut self, allow: impl Fn(&str) -> Result<(), Fault>) -> Result<Self, Fault> {
        if self.needed {
            self.controllers.iter().try_for_each(|name| allow(name))?;
        } else {
            self.controllers.retain(|name| allow(name).is_ok());
        }
        Ok(self)
    }
}

impl Call<'_> {
    /// Enables controllers for what is below a cgroup. What has processes of its own then has them in its leaf.
    ///
    /// An attacker wants processes moved that are not its own, or controllers enabled for others: it has to be able to write
    /// `cgroup.subtree_control`, and `cgroup.procs` for whatever is in the cgroup, which by the kernel's own rules lets it
    /// do both. All processes stay under what bounded them. Limits that appear in cgroups that were given to somebody are
    /// whose their other limits are.
    ///
    /// # Errors
    /// If they are needed: [`Fault::NotToBeHad`], [`Fault::Denied`]. What the kernel refuses to read.
    pub fn enable(&self, hierarchy: &Hierarchy, place: &Target, asked: &Asked) -> Result<(), Fault> {
        let refused = Fault::kernel("to look at the controllers of a cgroup");
        let on = list(&place.dir, CONTROL).map_err(&refused)?;
        let mut missing = asked.controllers.clone();
        missing.retain(|name| !on.contains(name));
        if missing.is_empty() {
            return Ok(());
        }
        let have = list(&place.dir, "cgroup.controllers").map_err(&refused)?;
        let result = match missing.iter().find(|name| !have.contains(name)) {
            Some(name) if asked.needed => Err(lacking(name, NOT_ABOVE)),
            _ => {
                missing.retain(|name| have.contains(name));
                self.enable_missing(hierarchy, place, &missing)
            }
        };
        if asked.needed { result } else { Ok(()) }
    }

    fn enable_missing(&self, hierarchy: &Hierarchy, place: &Target, missing: &[String]) -> Result<(), Fault> {
        let Some(first) = missing.first() else { return Ok(()) };
        let refused = Fault::kernel("to enable a controller");
        let may = |file: &str| {
            let file = place.dir.open_file(file, OFlags::PATH).map_err(&refused)?;
            self.need(&stat(&file)?, Access::Write)
        };
        may(CONTROL)?;
        if !leaf::is_root(&place.dir).map_err(&refused)?
            && leaf::has_processes(&place.dir).map_err(&refused)?
        {
            may(PROCS)?;
            let vacated = self.vacate(hierarchy, place);
            vacated.map_err(|error| lacking(first, why(&error)))?;
        }
        let order =
            |names: &[String]| names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        let mut result = Ok(());
        if place.dir.write(CONTROL, &order(missing)).is_err() {
            // One that can't be (cpu, where a process is a real-time one) does not keep the others away.
            for name in missing {
                if let Err(error) = place.dir.write(CONTROL, &format!("+{name}")) {
                    result = Err(lacking(name, why(&error)));
                }
            }
        }
        give_limits(&place.dir, missing).map_err(refused)?;
        result
    }

    /// Moves all processes of a cgroup into its leaf, with all that they fork meanwhile.
    fn vacate(&self, hierarchy: &Hierarchy, place: &Target) -> io::Result<()> {
        let leaf = leaf::ensure(&place.dir)?;
        for _ in 0..ROUNDS {
            let text = place.dir.read(PROCS, MAX_PIDS)?;
            let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                // One that can't be seen from here.
                if pid == 0 {
                    return Err(Errno::BUSY.into());
                }
                self.follow(hierarchy, &place.names, &leaf, pid)?;
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Moves a process that was seen in a cgroup to the leaf.
    ///
    /// An attacker wants somebody else's process in its cgroup: one of its own ends, and another one gets the number. So the
    /// process is held by a descriptor when it is seen in the cgroup again; and if it has ended once it was moved, whoever
    /// has the number now is put right.
    fn follow(&self, hierarchy: &Hierarchy, names: &[String], leaf: &Dir, pid: u32) -> io::Result<()> {
        let Ok(process) = Pidfd::open(pid) else { return Ok(()) };
        if self.place_of(hierarchy, pid).as_deref() != Some(names) {
            return Ok(());
        }
        match leaf.write(PROCS, &pid.to_string()) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                if !process.is_alive()? {
                    self.put_right(hierarchy, names, pid);
                }
                Ok(())
            }
        }
    }
}

/// Why a controller is not there at all.
const NOT_ABOVE: &str = "the cgroup that it is wanted below has it not enabled for itself. Whoever made that cgroup says so: an administrator in cgroup.subtree_control above it, systemd with Delegate= or the accounting of the unit";

fn lacking(controller: &str, why: &'static str) -> Fault {
    Fault::NotToBeHad { controller: v1_name(controller).to_owned(), why }
}

fn why(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) => "there are processes in the cgroup itself that can't be moved out of the way",
        Some(Errno::OPNOTSUPP) => "the cgroup belongs to a threaded subtree",
        Some(Errno::NOENT) => NOT_ABOVE,
        Some(Errno::INVAL) => {
            "a real-time process is in the way, or the kernel does not let it for another reason"
        }
        Some(Errno::AGAIN) => "the cgroup may not have one more in it",
        _ => "the kernel does not let it",
    }
}

fn list(dir: &Dir, file: &str) -> io::Result<Vec<String>> {
    let text = dir.read(file, MAX_LIST)?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Gives the files of controllers that were enabled just now, in the cgroups below, to whom the other limits there belong.
fn give_limits(cgroup: &Dir, controllers: &[String]) -> io::Result<()> {
    for entry in cgroup.entries()? {
        if entry.kind != EntryKind::Directory {
            continue;
        }
        match give_limits_in(&cgroup.open_dir(&entry.name), controllers) {
            Err(error) if !is_missing(&error) => return Err(error),
            _ => (),
        }
    }
    Ok(())
}

fn give_limits_in(child: &io::Result<Dir>, controllers: &[String]) -> io::Result<()> {
    // Gone meanwhile.
    let Ok(child) = child else { return Ok(()) };
    let owner = statat(child, LIMIT, AtFlags::SYMLINK_NOFOLLOW)?;
    if (owner.st_uid, owner.st_gid) == (0, 0) {
        return Ok(());
    }
    for entry in child.entries()? {
        let Some(name) = entry.name.to_str().filter(|_| entry.kind == EntryKind::File) else { continue };
        let new = controllers.iter().any(|controller| name.split('.').next() == Some(controller));
        if new {
            child.chown(name, owner.st_uid, owner.st_gid)?;
        }
    }
    Ok(())
}
