//! Files that belong to ids which nobody has any more: counted, and removed.
//!
//! Root does this, in directories that somebody else may change meanwhile and wants to lead it elsewhere by: to have files of others
//! removed, or some of the old ones kept. What is removed are names of files whose owner was one of the ids when it was looked,
//! in a directory that is held by descriptor; so no change of a path makes a difference, links are not followed, and mounts neither
//! entered nor asked about. Whoever swaps a name between the look and the removal must be able to remove names from that directory himself,
//! and what he put there. Where that is everybody, because the directory is shared and its sticky bit is what keeps names, he must
//! have the ids that are looked for. A directory goes when it is such an id's and empty. Trees may be as deep and as wide as the file system
//! lets them be; a file that can't be removed keeps nothing else.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use cgrant_sys::Dir;
use rustix::fs::{AtFlags, FileType, RawDir, Stat, fstat, renameat, unlinkat};
use rustix::io::Errno;

use crate::limits::Limits;
use crate::path::TreePath;
use crate::step::{Found, step};
use crate::usage::{BLOCK, DiskUsage};
use crate::walk::{WalkError, reopen};

/// How many failures are told one by one.
const TOLD: usize = 16;
/// How often a directory is read that loses names each time: who makes new ones meanwhile does not keep the search from its end.
const PASSES: usize = 64;
/// How many directories that are too deep are brought up, at most.
const ASIDES: usize = 1 << 16;
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

/// Looks through `root` and all below it on the same mount for files whose owner is one of `ids`, each first and last. `root`
/// itself stays. `looked` goes up with every name that is looked at, so that somebody else may see that it goes on.
pub fn leftovers(root: &Dir, ids: &[(u32, u32)], act: Act, looked: &AtomicU64) -> Leftovers {
    let (linked, entered) = (HashSet::new(), HashSet::new());
    let found = Leftovers::default();
    let mut search = Search { ids, act, looked, linked, entered, changed: BTreeSet::new(), asides: 0, found };
    let path = TreePath::default();
    match reopen(root).and_then(|root| Ok((fstat(&root)?, root))) {
        Ok((stat, root)) => {
            let place =
                Place { dir: &root, path: &path, is_left: search.is_left(&stat), depth: 0, top: None };
            search.directory(&place);
        }
        Err(source) => search.fail(&path, source),
    }
    search.found
}

/// A directory, and what is above it.
struct Place<'a> {
    dir: &'a Dir,
    path: &'a TreePath,
    /// Is it one of the ids'?
    is_left: bool,
    depth: usize,
    /// The uppermost directory of the ids on the same file system that it is or is in.
    top: Option<Top<'a>>,
}

#[derive(Clone, Copy)]
struct Top<'a> {
    dir: &'a Dir,
    depth: usize,
    device: u64,
}

/// What a reading of a directory found in it; what is in directories in it is not counted here.
#[derive(Default)]
struct Pass {
    foreign: u64,
    failed: u64,
    failures: Vec<WalkError>,
}

impl Pass {
    fn failed(&mut self, error: WalkError) {
        self.failed = self.failed.saturating_add(1);
        if self.failures.len() < TOLD {
            self.failures.push(error);
        }
    }
}

/// What became of a directory while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// It lost names.
    Lost,
    /// Directories from below were brought up as well, which comes to an end of its own ([`ASIDES`]).
    Raised,
}

/// Has a directory read until that changes nothing; `false` if it is never so.
fn settles(mut read: impl FnMut() -> io::Result<Change>) -> io::Result<bool> {
    let mut losses = 0;
    while losses < PASSES {
        match read()? {
            Change::Nothing => return Ok(true),
            Change::Lost => losses += 1,
            Change::Raised => (),
        }
    }
    Ok(false)
}

struct Search<'a> {
    ids: &'a [(u32, u32)],
    act: Act,
    looked: &'a AtomicU64,
    /// Files with several names that were counted. A subvolume has a device number of its own.
    linked: HashSet<(u64, u64)>,
    /// Directories that were looked through, and are there still.
    entered: HashSet<(u64, u64)>,
    /// How deep those directories are, of the one that is read now and those above, whose names were removed or moved while they were read.
    changed: BTreeSet<usize>,
    /// How many directories were brought up.
    asides: usize,
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
        let mut pass = Pass::default();
        pass.failed(WalkError::Read { path: path.clone(), source });
        self.keep(pass);
    }

    fn keep(&mut self, pass: Pass) {
        self.found.foreign = self.found.foreign.saturating_add(pass.foreign);
        self.found.failed = self.found.failed.saturating_add(pass.failed);
        let room = TOLD.saturating_sub(self.found.failures.len());
        self.found.failures.extend(pass.failures.into_iter().take(room));
    }

    /// Reads a directory until it loses no more names: one that changes while it is read may be read incompletely. What the last
    /// reading found is what is said. Directories in it are looked through once.
    fn directory(&mut self, place: &Place<'_>) {
        let mut pass = Pass::default();
        let settled = settles(|| {
            pass = Pass::default();
            self.reading(place, &mut pass)
        });
        self.keep(pass);
        match settled {
            Ok(true) => (),
            Ok(false) => self.fail(place.path, io::Error::other("it changes meanwhile")),
            Err(source) => self.fail(place.path, source),
        }
    }

    fn reading(&mut self, place: &Place<'_>, pass: &mut Pass) -> io::Result<Change> {
        self.changed.remove(&place.depth);
        let asides = self.asides;
        self.entries(place, pass)?;
        Ok(match self.changed.contains(&place.depth) {
            false => Change::Nothing,
            true if self.asides == asides => Change::Lost,
            true => Change::Raised,
        })
    }

    fn entries(&mut self, place: &Place<'_>, pass: &mut Pass) -> io::Result<()> {
        // Another description, so that each reading begins at the start.
        let reading = reopen(place.dir)?;
        let mut buffer = Vec::with_capacity(1 << 15);
        let mut entries = RawDir::new(&reading, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            self.looked.fetch_add(1, Ordering::Relaxed);
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => None,
                kind => Some(kind == FileType::Directory),
            };
            if let Err(source) = self.entry(place, name, is_directory, pass) {
                pass.failed(WalkError::Read { path: place.path.join(name), source });
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        place: &Place<'_>,
        name: &OsStr,
        is_directory: Option<bool>,
        pass: &mut Pass,
    ) -> io::Result<()> {
        let Place { dir, is_left: in_left, .. } = *place;
        let stat = match step(dir, name, is_directory)? {
            Found::Directory(below) => return self.below(place, name, &below, pass),
            Found::File(stat) => stat,
            Found::Nothing => return Ok(()),
        };
        if !self.is_left(&stat) {
            pass.foreign = pass.foreign.saturating_add(in_left.into());
            return Ok(());
        }
        if self.act == Act::Remove {
            unlinkat(dir, name, AtFlags::empty())?;
            self.changed.insert(place.depth);
        }
        // The blocks of one with several names are free with the last of them.
        let counts = match self.act {
            Act::Count => stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)),
            Act::Remove => stat.st_nlink == 1,
        };
        if counts {
            self.count(&stat);
        }
        Ok(())
    }

    /// A directory that was opened, by its name in that of `place`.
    fn below(&mut self, place: &Place<'_>, name: &OsStr, below: &Dir, pass: &mut Pass) -> io::Result<()> {
        let stat = fstat(below)?;
        let (is_left, path) = (self.is_left(&stat), place.path.join(name));
        // Nothing can be moved from one file system to another.
        let top = place.top.filter(|top| top.device == stat.st_dev);
        if place.depth >= Limits::DEPTH {
            return match (self.act, top) {
                // It must come up by that.
                (Act::Remove, Some(top)) if is_left && top.depth < place.depth && self.asides < ASIDES => {
                    self.put_aside(place, name, top)
                }
                _ => {
                    pass.failed(WalkError::TooDeep(path));
                    Ok(())
                }
            };
        }
        let depth = place.depth + 1;
        if self.entered.insert((stat.st_dev, stat.st_ino)) {
            let top = top.or(is_left.then_some(Top { dir: below, depth, device: stat.st_dev }));
            self.directory(&Place { dir: below, path: &path, is_left, depth, top });
            if is_left && self.act == Act::Count {
                self.count(&stat);
            }
        }
        if !is_left {
            pass.foreign = pass.foreign.saturating_add(place.is_left.into());
            return Ok(());
        }
        if self.act == Act::Remove {
            match unlinkat(place.dir, name, AtFlags::REMOVEDIR) {
                Ok(()) => self.changed.insert(place.depth),
                // Because of what was said already to stay in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            // Its number may be another's now.
            self.entered.remove(&(stat.st_dev, stat.st_ino));
            self.count(&stat);
        }
        Ok(())
    }

    /// Moves a directory of the ids up into another one of them, which is read once more then.
    fn put_aside(&mut self, place: &Place<'_>, name: &OsStr, top: Top<'_>) -> io::Result<()> {
        let aside = OsString::from(format!("{ASIDE}{:016x}", cgrant_sys::process::random_u64()?));
        renameat(place.dir.as_fd(), name, top.dir.as_fd(), &aside)?;
        self.asides += 1;
        self.changed.extend([place.depth, top.depth]);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, lchown, symlink};
    use std::path::Path;
    use std::sync::atomic::AtomicBool;

    use super::*;

    const OLD: u32 = 2_147_300_000;
    const IDS: [(u32, u32); 2] = [(OLD, OLD + 9), (OLD + 100, OLD + 109)];

    fn search(place: &Path, act: Act) -> Leftovers {
        leftovers(&Dir::open(place).unwrap(), &IDS, act, &AtomicU64::default())
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

    /// Every directory on the way loses something and keeps something.
    #[test]
    fn what_stays_is_counted_once_however_often_it_is_looked_at() {
        let place = tempfile::tempdir().unwrap();
        let mut dir = place.path().to_owned();
        for _ in 0..100 {
            dir.push("d");
            fs::create_dir(&dir).unwrap();
            own(&dir, OLD);
            for (name, uid) in [("a", OLD), ("foreign", 1), ("z", OLD)] {
                fs::write(dir.join(name), "").unwrap();
                own(dir.join(name), uid);
            }
        }
        let removed = search(place.path(), Act::Remove);
        assert_eq!((removed.usage.files, removed.foreign, removed.failed), (200, 100, 0), "{removed:?}");
        let left = search(place.path(), Act::Count);
        assert_eq!((left.usage.files, left.foreign, left.failed), (100, 100, 0), "{left:?}");
    }

    #[test]
    fn what_changes_each_time_is_given_up() {
        let mut reads = 0;
        let mut reading = |changes: &mut dyn Iterator<Item = Change>| {
            reads = 0;
            let read = || {
                reads += 1;
                Ok(if reads > 10_000 { Change::Nothing } else { changes.next().unwrap_or(Change::Nothing) })
            };
            (settles(read).unwrap(), reads)
        };
        assert_eq!(reading(&mut std::iter::repeat(Change::Lost)), (false, PASSES));
        assert_eq!(reading(&mut std::iter::repeat_n(Change::Raised, 1000)), (true, 1001));
        assert_eq!(reading(&mut std::iter::repeat_n(Change::Lost, 2)), (true, 3));
    }

    /// Somebody links a file faster than its names are removed.
    #[test]
    fn who_makes_names_meanwhile_keeps_no_search_from_its_end() {
        let place = tempfile::tempdir().unwrap();
        let (source, searched) = (place.path().join("source"), place.path().join("searched"));
        fs::write(&source, "").unwrap();
        own(&source, OLD);
        fs::create_dir(&searched).unwrap();
        let names: Vec<_> = (0..100).map(|name| searched.join(name.to_string())).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        names.iter().for_each(|name| drop(fs::hard_link(&source, name)));
                    }
                });
            }
            for _ in 0..5 {
                let removed = search(&searched, Act::Remove);
                let told: Vec<String> = removed.failures.iter().map(|error| format!("{error:?}")).collect();
                assert!(told.iter().all(|error| error.contains("it changes meanwhile")), "{told:?}");
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(search(&searched, Act::Remove).failed, 0);
    }

    #[test]
    fn links_lead_nowhere() {
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
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
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
            done.store(true, Ordering::Relaxed);
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
