//! Images and containers that are being made: under a name of their own, until they are whole.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use cgrant_sys::Dir;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::lock;
use crate::import::ASIDE;
use crate::remove::remove_tree;

/// What unfinished ones are called.
const NEW: &[u8] = b".new-";

/// A directory for something that is being made. Dropped, it is removed; if its maker dies, by whoever makes something next.
#[derive(Debug)]
pub struct Unfinished {
    parent: Dir,
    name: String,
    /// Locked for as long as this lives.
    dir: Dir,
    finished: bool,
}

impl Unfinished {
    /// Makes one in `parent`, and removes what dead makers left there.
    pub(super) fn new(parent: &Dir) -> io::Result<Self> {
        // What can't be removed is not in the way.
        let _ = sweep(parent);
        let name = format!(".new-{:016x}", cgrant_sys::process::random_u64()?);
        // Nobody sweeps between the two steps.
        let _locked = lock(parent)?;
        let dir = parent.create_dir(&name, 0o700)?;
        flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { parent: parent.try_clone()?, name, dir, finished: false })
    }

    /// The directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Puts all that it holds on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.dir)?)
    }

    /// Gives it its name, if that is free.
    pub(super) fn finish(mut self, name: &OsStr) -> io::Result<()> {
        renameat_with(&self.parent, self.name.as_str(), &self.parent, name, RenameFlags::NOREPLACE)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // What can't be removed now will be met by `sweep`.
            let _ = remove_tree(&self.parent, OsStr::new(&self.name), ASIDE);
        }
    }
}

/// Takes something out of sight at once, to be removed then. Gives the name that it has now.
pub(super) fn put_aside(parent: &Dir, name: &OsStr) -> io::Result<OsString> {
    let aside = format!("{ASIDE}{:016x}", cgrant_sys::process::random_u64()?);
    rustix::fs::renameat(parent, name, parent, aside.as_str())?;
    Ok(aside.into())
}

/// Removes what nobody is making any more.
pub(super) fn sweep(parent: &Dir) -> io::Result<()> {
    let mut result = Ok(());
    for entry in crate::walk::reopen(parent)?.entries()? {
        let name = entry.name.as_bytes();
        if name.starts_with(ASIDE.as_bytes()) || (name.starts_with(NEW) && is_abandoned(parent, &entry.name))
        {
            result = result.and(remove_tree(parent, &entry.name, ASIDE));
        }
    }
    result
}

fn is_abandoned(parent: &Dir, name: &OsStr) -> bool {
    let Ok(_locked) = lock(parent) else { return false };
    let Ok(dir) = parent.open_dir(name) else { return false };
    flock(&dir, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
}
