//! `Chown` and `Chmod`.

use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags};

use super::{
    actor::Access,
    call::{Call, stat},
    fault::Fault,
    path::{Wanted, file_name},
};
use crate::cgroup::Hierarchy;

/// What changes hands with a cgroup: what moves processes into it, not its limits.
const HANDED: [&str; 2] = ["tasks", "cgroup.procs"];
/// The bits of a mode that a cgroup's files have.
const MODE: i32 = 0o777;

impl Call<'_> {
    /// Gives a cgroup to a uid and gid, as the host numbers them: the directory, `tasks` and `cgroup.procs`. Its limits stay
    /// whose they are.
    ///
    /// An attacker wants to be given what bounds it, or to give to others what makes them its tools. Only root of a user
    /// namespace gives, what it may write in, and to ids of that namespace; the files of limits stay with their owner. In the
    /// devices hierarchy nobody but root gets any.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Devices`], [`Fault::NoCgroup`], what the kernel refuses.
    pub fn chown(&self, hierarchy: &Hierarchy, wanted: &Wanted, ids: (u32, u32)) -> Result<(), Fault> {
        let (uid, gid) = ids;
        let known = self.requestor.uid == 0
            || (self.requestor.is_root_over(uid)
                && self.requestor.gid_map().iter().any(|extent| extent.inside(gid).is_some()));
        if !known || uid == u32::MAX || gid == u32::MAX {
            return Err(Fault::Denied);
        }
        self.may_hand_over(hierarchy)?;
        let target = self.below_own(hierarchy, &wanted.names)?;
        self.need(&target.stat, Access::Change)?;
        let refused = Fault::kernel("to give a cgroup away");
        for file in HANDED {
            match target.dir.chown(file, uid, gid).map_err(&refused) {
                // cgroup2 has no `tasks`.
                Err(Fault::NoCgroup) => (),
                other => other?,
            }
        }
        target.dir.chown("", uid, gid).map_err(&refused)
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
        let mode = (mode & MODE).unsigned_abs();
        let refused = Fault::kernel("to set a mode");
        if file.is_empty() {
            self.need(&target.stat, Access::Change)?;
            return target.dir.chmod("", mode).map_err(refused);
        }
        let file = file_name(file)?;
        let open = target.dir.open_file(file, OFlags::PATH).map_err(&refused)?;
        let found = stat(open.as_fd())?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(Fault::File(file.to_owned()));
        }
        self.need(&found, Access::Change)?;
        target.dir.chmod(file, mode).map_err(refused)
    }
}
