//! `Chown` and `Chmod`.

use std::{io, os::fd::AsFd};

use cgrant_sys::Dir;
use rustix::fs::OFlags;

use super::{
    actor::Access,
    call::{Call, stat},
    fault::Fault,
    path::{Wanted, file_name},
    v2::behind,
};
use crate::cgroup::{Hierarchy, Kind};

/// What changes hands with a v1 cgroup: what moves processes into it, not its limits.
const HANDED: [&str; 2] = ["tasks", "cgroup.procs"];
/// What changes hands with a cgroup2 cgroup: that, and what its owner says with what is enabled below it ("Delegation",
/// Documentation/admin-guide/cgroup-v2.rst).
const HANDED_V2: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// The id of chown(2) that leaves it as it is.
const STAYS: u32 = u32::MAX;
/// The bits of a mode that a cgroup's files have.
const MODE: i32 = 0o777;

impl Call<'_> {
    /// Gives a cgroup to a uid and gid, as the host numbers them: the directory, `tasks` and `cgroup.procs`. Its limits stay
    /// whose they are. Of the host's root, -1 for either is what it is for chown(2): that one stays.
    ///
    /// An attacker wants to be given what bounds it, or to give to others what makes them its tools. Only root of a user
    /// namespace gives, what it may write in, and to ids of that namespace; the files of limits stay with their owner. In the
    /// devices hierarchy nobody but root gets any.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Devices`], [`Fault::Barred`], [`Fault::NoCgroup`], what the kernel refuses.
    pub fn chown(&self, hierarchy: &Hierarchy, wanted: &Wanted, ids: (u32, u32)) -> Result<(), Fault> {
        let (uid, gid) = ids;
        let is_known = |uid, gid| {
            self.requestor.is_root_over(uid)
                && self.requestor.gid_map().iter().any(|extent| extent.inside(gid).is_some())
        };
        let may = self.requestor.uid == 0 || (uid != STAYS && gid != STAYS && is_known(uid, gid));
        if !may {
            return Err(Fault::Denied);
        }
        self.may_hand_over(hierarchy)?;
        let target = self.below_own(hierarchy, &wanted.names)?;
        self.not_granted(hierarchy, &target.names)?;
        self.need(&target.stat, Access::Change)?;
        let refused = Fault::kernel("to give a cgroup away");
        let files: &[&str] = if hierarchy.kind == Kind::V1 { &HANDED } else { &HANDED_V2 };
        for dir in with_leaf(hierarchy, &target.dir).map_err(&refused)? {
            for file in files {
                match dir.chown(file, uid, gid).map_err(&refused) {
                    // A threaded cgroup, or an old kernel, may lack one.
                    Err(Fault::NoCgroup) => (),
                    other => other?,
                }
            }
            dir.chown("", uid, gid).map_err(&refused)?;
        }
        Ok(())
    }

    /// Sets the mode of a cgroup (`file` empty) or of a file in it.
    ///
    /// An attacker wants to write where it may not: it has to be able to read and write what gets another mode already.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::File`], [`Fault::Devices`], [`Fault::NoCgroup`], what the kernel refuses.
    pub fn chmod(&self, hierarchy: &Hierarchy, wanted: &Wanted, file: &str, mode: i32) -> Result<(), Fault> {
        self.may_hand_over(hierarchy)?;
        let target = self.below_own(hierarchy, &wanted.names)?;
        self.not_granted(hierarchy, &target.names)?;
        let mode = (mode & MODE).unsigned_abs();
        let refused = Fault::kernel("to set a mode");
        let dirs = with_leaf(hierarchy, &target.dir).map_err(&refused)?;
        if file.is_empty() {
            self.need(&target.stat, Access::Change)?;
            return dirs.iter().try_for_each(|dir| dir.chmod("", mode)).map_err(refused);
        }
        let file = file_name(file)?;
        let files = match hierarchy.kind {
            Kind::V1 => vec![file.to_owned()],
            Kind::V2 => self.files_v2(hierarchy, &target.dir, file)?,
        };
        for file in &files {
            let open = target.dir.open_file(file, OFlags::PATH).map_err(&refused)?;
            self.need_file(&stat(open.as_fd())?, Access::Change, file)?;
        }
        // The leaf has no limits of its own, and is entered as its cgroup is.
        let of_leaf = |file: &str| HANDED_V2.contains(&file);
        for (at, dir) in dirs.iter().enumerate() {
            for file in files.iter().filter(|file| at == 0 || of_leaf(file)) {
                dir.chmod(file, mode).map_err(&refused)?;
            }
        }
        Ok(())
    }
}

/// A cgroup, and on cgroup2 its leaf.
fn with_leaf(hierarchy: &Hierarchy, dir: &Dir) -> io::Result<Vec<Dir>> {
    let mut dirs = vec![dir.try_clone()?];
    if hierarchy.kind == Kind::V2 {
        dirs.extend(behind(dir)?);
    }
    Ok(dirs)
}
