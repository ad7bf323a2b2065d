//! What a tree takes on its disk, as du(1) counts it.
//!
//! The tree may be a container's that runs: links are not followed, mounts not entered, what goes meanwhile is left out, and
//! depth and number have bounds. Files are looked at and never opened.

use std::collections::HashSet;
use std::io;
use std::ops::AddAssign;

use cgrant_sys::Dir;
use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use crate::path::TreePath;
use crate::walk::{WalkError, reopen};

/// The unit of `st_blocks` (stat(2)), in bytes.
pub(crate) const BLOCK: u64 = 512;

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Bytes of their blocks. What several files share (reflink) counts for each.
    pub bytes: u64,
    /// Files, directories and links (inodes); one with several names once.
    pub files: u64,
}

impl AddAssign for DiskUsage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.files = self.files.saturating_add(other.files);
    }
}

/// What `root` and all below it on the same file system takes.
///
/// # Errors
/// [`WalkError`].
pub fn disk_usage(root: &Dir, limits: &Limits) -> Result<DiskUsage, WalkError> {
    let path = TreePath::default();
    let read = |source| WalkError::Read { path: path.clone(), source };
    // A mount's own descriptor can't be read from.
    let root = reopen(root).map_err(read)?;
    let stat = fstat(&root).map_err(|errno| read(errno.into()))?;
    let mut counted = Counted {
        device: stat.st_dev,
        most: limits.entries,
        entries: 0,
        seen: HashSet::new(),
        usage: DiskUsage::default(),
    };
    counted.directory(&root, &path, &stat)?;
    Ok(counted.usage)
}

struct Counted {
    device: u64,
    most: u64,
    entries: u64,
    /// Files with several names that were counted.
    seen: HashSet<u64>,
    usage: DiskUsage,
}

impl Counted {
    fn count(&mut self, stat: &Stat) {
        let bytes = stat.st_blocks.cast_unsigned().saturating_mul(BLOCK);
        self.usage += DiskUsage { bytes, files: 1 };
    }

    fn directory(&mut self, dir: &Dir, path: &TreePath, stat: &Stat) -> Result<(), WalkError> {
        if path.components().len() > Limits::DEPTH {
            return Err(WalkError::TooDeep(path.clone()));
        }
        self.count(stat);
        let read = |source| WalkError::Read { path: path.clone(), source };
        let entries = dir.entries().map_err(read)?;
        self.entries = self.entries.saturating_add(entries.len() as u64);
        if self.entries > self.most {
            return Err(WalkError::TooMany(self.most));
        }
        for entry in entries {
            let path = path.join(&entry.name);
            let read = |source: io::Error| WalkError::Read { path: path.clone(), source };
            let stat = match statat(dir, &entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                result => result.map_err(|errno| read(errno.into()))?,
            };
            if stat.st_dev != self.device {
                continue;
            }
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                if stat.st_nlink == 1 || self.seen.insert(stat.st_ino) {
                    self.count(&stat);
                }
                continue;
            }
            let below = match dir.open_dir(&entry.name) {
                Ok(below) => below,
                // Something else has its name by now.
                Err(error) if is_other(&error) => continue,
                Err(error) => return Err(read(error)),
            };
            self.directory(&below, &path, &stat)?;
        }
        Ok(())
    }
}

fn is_other(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn blocks_and_files_are_counted_once() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir(root.join("a")).unwrap();
        fs::write(root.join("a/data"), vec![1; 300_000]).unwrap();
        fs::hard_link(root.join("a/data"), root.join("again")).unwrap();
        fs::File::create(root.join("holes")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let measured = || disk_usage(&Dir::open(root).unwrap(), &Limits::default());
        let before = measured().unwrap();
        assert_eq!(before.files, 5);
        assert!((300_000..400_000).contains(&before.bytes), "{before:?}");
        fs::write(root.join("more"), vec![1; 100_000]).unwrap();
        let after = measured().unwrap();
        assert!(after.files == 6 && after.bytes >= before.bytes + 100_000, "{after:?}");
    }

    #[test]
    fn number_and_depth_have_bounds() {
        let place = tempfile::tempdir().unwrap();
        let mut deep = place.path().to_owned();
        for _ in 0..=Limits::DEPTH {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let root = Dir::open(place.path()).unwrap();
        assert!(matches!(disk_usage(&root, &Limits::default()), Err(WalkError::TooDeep(_))));
        let few = Limits { entries: 3, ..Limits::default() };
        assert!(matches!(disk_usage(&root, &few), Err(WalkError::TooMany(3))));
    }
}
