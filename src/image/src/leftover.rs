//! Files that belong to ids which nobody has any more: counted, and removed.
//!
//! Root does this, in directories that somebody else may change meanwhile and wants to lead it elsewhere by: to have files of others
//! removed, or some of the old ones kept. What is removed are names of files whose owner was one of the ids when it was looked,
//! in a directory that is held by descriptor; so no change of a path makes a difference, links are not followed, and mounts not
//! entered. Whoever swaps a name between the look and the removal must be able to remove names from that directory himself, and what he
//! put there. A directory goes when it is such an id's and empty. Trees may be as deep and as wide as the file system lets
//! them be; a file that can't be removed keeps nothing else.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use cgrant_sys::Dir;
use rustix::fs::{AtFlags, FileType, RawDir, Stat, fstat, renameat, statat, unlinkat};
use rustix::io::Errno;

use crate::limits::Limits;
use crate::path::TreePath;
use crate::usage::{BLOCK, DiskUsage};
use crate::walk::{WalkError, reopen};

/// How many failures are told one by one.
const TOLD: usize = 16;
/// What begins the names of directories that were too deep where they were, until they are removed.
const ASIDE: &str = ".cgrant-leftover-";

/// What is done with files of the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// They are counted.
    Count,
    /// They are removed, and counted.
    Remove,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// The files of the ids: those that are there, or those that were removed.
    pub usage: DiskUsage,
    /// Files of others in directories of the ids, which stay, as these directories do.
    pub foreign: u64,
    /// How many files and directories could not be looked at, or not removed.
    pub failed: u64,
    /// Why, of the first ones.
    pub failures: Vec<WalkError>,
}

/// Looks through `root` and all below it on the same file system for files whose owner is one of `ids`, each first and last. `root`
/// itself stays.
pub fn leftovers(root: &Dir, ids: &[(u32, u32)], act: Act) -> Leftovers {
    let mut search =
        Search { ids, act, device: 0, seen: HashSet::new(), changed: 0, found: Leftovers::default() };
    let path = TreePath::default();
    match reopen(root).and_then(|root| Ok((fstat(&root)?, root))) {
        Ok((stat, root)) => {
            search.device = stat.st_dev;
            search.directory(&root, &path, search.is_left(&stat), &Above { depth: 0, top: None });
        }
        Err(source) => search.fail(&path, source),
    }
    search.found
}

/// What is above a directory.
struct Above<'a> {
    depth: usize,
    /// The uppermost directory of the ids that it is in, and how deep what is in that one is.
    top: Option<(&'a Dir, usize)>,
}

struct Search<'a> {
    ids: &'a [(u32, u32)],
    act: Act,
    device: u64,
    /// Files with several names that were counted.
    seen: HashSet<u64>,
    /// How many names were removed or moved.
    changed: u64,
    found: Leftovers,
}

impl Search<'_> {
    fn is_left(&self, stat: &Stat) -> bool {
        self.ids.iter().any(|(first, last)| (*first..=*last).contains(&stat.st_uid))
    }

    fn count(&mut self, stat: &Stat) {
        let bytes = stat.st_blocks.cast_unsigned().saturating_mul(BLOCK);
        self.found.usage += DiskUsage { bytes, files: 1 };
    }

    fn fail(&mut self, path: &TreePath, source: io::Error) {
        self.failed(WalkError::Read { path: path.clone(), source });
    }

    fn failed(&mut self, error: WalkError) {
        self.found.failed = self.found.failed.saturating_add(1);
        if self.found.failures.len() < TOLD {
            self.found.failures.push(error);
        }
    }

    /// Looks at the entries of a directory until there is nothing more to remove: one that changes while it is read may be read
    /// incompletely. A second look finds what the first one left, and says nothing of it again.
    fn directory(&mut self, dir: &Dir, path: &TreePath, is_left: bool, above: &Above<'_>) {
        loop {
            let before = self.changed;
            let (failed, foreign) = (self.found.failed, self.found.foreign);
            let told = self.found.failures.len();
            if let Err(source) = self.entries(dir, path, is_left, above) {
                return self.fail(path, source);
            }
            if self.changed == before {
                return;
            }
            (self.found.failed, self.found.foreign) = (failed, foreign);
            self.found.failures.truncate(told);
        }
    }

    fn entries(&mut self, dir: &Dir, path: &TreePath, is_left: bool, above: &Above<'_>) -> io::Result<()> {
        // Another description, so that each reading begins at the start.
        let reading = reopen(dir)?;
        let mut buffer = Vec::with_capacity(1 << 15);
        let mut entries = RawDir::new(&reading, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => None,
                kind => Some(kind == FileType::Directory),
            };
            let result = self.entry(dir, name, is_directory, path, is_left, above);
            if let Err(source) = result {
                self.fail(&path.join(name), source);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        is_directory: Option<bool>,
        path: &TreePath,
        in_left: bool,
        above: &Above<'_>,
    ) -> io::Result<()> {
        // A directory that may be a mount of somebody's who does not answer is not asked about itself before it is opened.
        if is_directory != Some(false) {
            match dir.open_dir(name) {
                Ok(below) => return self.below(dir, name, &below, path, in_left, above),
                Err(error) => match Errno::from_io_error(&error) {
                    // A mount, or not there any more.
                    Some(Errno::XDEV | Errno::NOENT) => return Ok(()),
                    // Something else has its name.
                    Some(Errno::NOTDIR | Errno::LOOP) => (),
                    _ => return Err(error),
                },
            }
        }
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            result => result?,
        };
        if stat.st_dev != self.device || FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(());
        }
        if !self.is_left(&stat) {
            self.found.foreign = self.found.foreign.saturating_add(in_left.into());
            return Ok(());
        }
        if self.act == Act::Remove {
            unlinkat(dir, name, AtFlags::empty())?;
            self.changed += 1;
        }
        // The blocks of one with several names are free with the last of them.
        let counts = match self.act {
            Act::Count => stat.st_nlink == 1 || self.seen.insert(stat.st_ino),
            Act::Remove => stat.st_nlink == 1,
        };
        if counts {
            self.count(&stat);
        }
        Ok(())
    }

    /// A directory that was opened, by its name in `dir`.
    fn below(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        below: &Dir,
        path: &TreePath,
        in_left: bool,
        above: &Above<'_>,
    ) -> io::Result<()> {
        let stat = fstat(below)?;
        let (is_left, path) = (self.is_left(&stat), path.join(name));
        if above.depth >= Limits::DEPTH {
            return match (self.act, above.top) {
                // It must come up by that.
                (Act::Remove, Some((top, depth))) if is_left && depth < above.depth => {
                    self.put_aside(dir, name, top)
                }
                _ => {
                    self.failed(WalkError::TooDeep(path));
                    Ok(())
                }
            };
        }
        let depth = above.depth + 1;
        let top = above.top.or(is_left.then_some((below, depth)));
        self.directory(below, &path, is_left, &Above { depth, top });
        if !is_left {
            self.found.foreign = self.found.foreign.saturating_add(in_left.into());
            return Ok(());
        }
        if self.act == Act::Remove {
            match unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) => self.changed += 1,
                // Because of what was said already to stay in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        self.count(&stat);
        Ok(())
    }

    /// Moves a directory of the ids up into another one of them, which is looked through once more then.
    fn put_aside(&mut self, dir: &Dir, name: &OsStr, top: &Dir) -> io::Result<()> {
        let place = OsString::from(format!("{ASIDE}{:016x}", cgrant_sys::process::random_u64()?));
        renameat(dir.as_fd(), name, top.as_fd(), &place)?;
        self.changed += 1;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, lchown, symlink};
    use std::path::Path;

    use super::*;

    const OLD: u32 = 2_147_300_000;
    const IDS: [(u32, u32); 2] = [(OLD, OLD + 9), (OLD + 100, OLD + 109)];

    fn search(place: &Path, act: Act) -> Leftovers {
        leftovers(&Dir::open(place).unwrap(), &IDS, act)
    }

    fn own(path: impl AsRef<Path>, uid: u32) {
        lchown(path, Some(uid), Some(uid)).unwrap();
    }

    fn tree(place: &Path) {
        fs::create_dir_all(place.join("store/web/upper/etc")).unwrap();
        fs::write(place.join("store/web/config.json"), "{}").unwrap();
        fs::write(place.join("store/web/upper/etc/data"), vec![1; 200_000]).unwrap();
        fs::hard_link(place.join("store/web/upper/etc/data"), place.join("store/web/upper/again")).unwrap();
        symlink("/etc/passwd", place.join("store/web/upper/link")).unwrap();
        for name in ["", "/etc", "/etc/data", "/link"] {
            own(place.join(format!("store/web/upper{name}")), OLD + 3);
        }
        fs::write(place.join("other-end"), "").unwrap();
        own(place.join("other-end"), OLD + 109);
    }

    #[test]
    fn what_is_left_goes_and_all_else_stays() {
        let place = tempfile::tempdir().unwrap();
        tree(place.path());
        for (name, uid) in [("below", OLD - 1), ("between", OLD + 10), ("above", OLD + 110)] {
            fs::write(place.path().join(name), "").unwrap();
            own(place.path().join(name), uid);
        }
        let before = search(place.path(), Act::Count);
        assert!(before.failures.is_empty() && before.foreign == 0, "{before:?}");
        assert_eq!(before.usage.files, 5);
        let removed = search(place.path(), Act::Remove);
        assert_eq!((removed.usage, removed.failed, removed.foreign), (before.usage, 0, 0));
        assert!(removed.usage.bytes >= 200_000);
        assert!(!place.path().join("store/web/upper").exists());
        for name in ["store/web/config.json", "below", "between", "above"] {
            assert!(place.path().join(name).exists(), "{name}");
        }
        assert_eq!(search(place.path(), Act::Count).usage, DiskUsage::default());
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn files_of_others_stay_where_they_are() {
        let place = tempfile::tempdir().unwrap();
        tree(place.path());
        let upper = place.path().join("store/web/upper");
        fs::create_dir_all(upper.join("tmp/mine/deep")).unwrap();
        own(upper.join("tmp"), OLD);
        fs::write(upper.join("tmp/mine/deep/file"), "").unwrap();
        fs::write(upper.join("etc/mine"), "").unwrap();
        let removed = search(place.path(), Act::Remove);
        assert_eq!((removed.foreign, removed.failed), (2, 0), "{removed:?}");
        assert!(upper.join("tmp/mine/deep/file").exists() && upper.join("etc/mine").exists());
        assert!(!upper.join("link").exists() && !upper.join("etc/data").exists());
    }

    #[test]
    fn links_and_mounts_lead_nowhere() {
        let (place, victim) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(victim.path().join("kept"), "").unwrap();
        own(victim.path().join("kept"), OLD);
        symlink(victim.path(), place.path().join("link")).unwrap();
        own(place.path().join("link"), 1);
        fs::create_dir(place.path().join("dir")).unwrap();
        own(place.path().join("dir"), OLD);
        symlink(victim.path(), place.path().join("dir/link")).unwrap();
        own(place.path().join("dir/link"), OLD);
        let removed = search(place.path(), Act::Remove);
        assert_eq!((removed.usage.files, removed.failed), (2, 0), "{removed:?}");
        assert!(victim.path().join("kept").exists());
    }

    /// The owner of the directories around swaps them for links and for others' directories all the time.
    #[test]
    fn who_swaps_names_meanwhile_has_nothing_removed_of_others() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("victim/sub")).unwrap();
        for file in 0..50 {
            fs::write(at(&format!("victim/sub/{file}")), "").unwrap();
        }
        chown(at("victim"), Some(77), Some(77)).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = fs::rename(at("victim"), at("home/old"))
                        .and_then(|()| fs::rename(at("home/old"), at("victim")));
                    let _ = symlink(at("victim"), at("home/old"));
                    let _ = fs::remove_file(at("home/old"));
                }
            });
            for _ in 0..200 {
                fs::create_dir_all(at("home")).unwrap();
                if fs::create_dir(at("home/old")).is_ok() {
                    own(at("home/old"), OLD);
                    let _ = fs::write(at("home/old/file"), "")
                        .and_then(|()| lchown(at("home/old/file"), Some(OLD), None));
                }
                search(&at("home"), Act::Remove);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let there = [at("victim/sub"), at("home/old/sub")].into_iter().find(|path| path.exists()).unwrap();
        assert_eq!(fs::read_dir(there).unwrap().count(), 50);
    }

    #[test]
    fn depth_and_width_save_nothing() {
        let place = tempfile::tempdir().unwrap();
        let root = Dir::open(place.path()).unwrap();
        let mut deepest = root.create_dir("t", 0o700).unwrap();
        for _ in 0..700 {
            deepest.chown("", OLD, OLD).unwrap();
            deepest.write_atomic("f", b"", false).unwrap();
            deepest.chown("f", OLD, OLD).unwrap();
            deepest = deepest.create_dir("d", 0o000).unwrap();
        }
        deepest.chown("", OLD, OLD).unwrap();
        for file in 0..5000 {
            let name = format!("{file}");
            deepest.write_atomic(&name, b"", false).unwrap();
            deepest.chown(&name, OLD, OLD).unwrap();
        }
        drop(deepest);
        assert!(
            search(place.path(), Act::Count)
                .failures
                .iter()
                .any(|error| matches!(error, WalkError::TooDeep(_)))
        );
        let removed = search(place.path(), Act::Remove);
        assert_eq!((removed.failed, removed.usage.files), (0, 701 + 700 + 5000), "{removed:?}");
        assert_eq!(root.names().unwrap(), [] as [&str; 0]);
    }

    /// Below so many directories of others that there is no place to move what is too deep up to.
    #[test]
    fn what_can_come_up_no_further_is_said_and_the_search_ends() {
        let place = tempfile::tempdir().unwrap();
        let mut dir = Dir::open(place.path()).unwrap();
        for _ in 1..Limits::DEPTH {
            dir = dir.create_dir("d", 0o755).unwrap();
        }
        for _ in 0..3 {
            dir = dir.create_dir("d", 0o755).unwrap();
            dir.chown("", OLD, OLD).unwrap();
        }
        let removed = search(place.path(), Act::Remove);
        assert!(matches!(removed.failures[..], [WalkError::TooDeep(_)]), "{removed:?}");
        assert_eq!(search(place.path(), Act::Count).usage.files, 1, "{removed:?}");
    }

    #[test]
    fn what_is_deep_and_others_is_said_and_stays() {
        let place = tempfile::tempdir().unwrap();
        let mut deep = place.path().to_owned();
        for _ in 0..Limits::DEPTH + 2 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(place.path().join("old"), "").unwrap();
        own(place.path().join("old"), OLD);
        let removed = search(place.path(), Act::Remove);
        assert!(matches!(removed.failures[..], [WalkError::TooDeep(_)]), "{removed:?}");
        assert_eq!(removed.usage.files, 1);
        assert!(deep.exists());
    }
}
