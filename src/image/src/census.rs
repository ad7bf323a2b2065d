//! Files that belong to ids of the broker's pool: counted, by block of ids.
//!
//! Root does this, in directories that somebody else may change meanwhile, who wants to have fewer files than he has, or others to have
//! more. Links are not followed and mounts not entered; owners are the kernel's word; a file with several names counts once. Trees may be as
//! deep and as wide as the file system lets them be. Directories are looked through once, wherever somebody moves them meanwhile; who moves
//! files while their directory is read may have some counted twice or not at all, as anywhere where files are counted one by one.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cgrant_sys::Dir;
use rustix::fs::{FileType, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, seek};
use rustix::io::Errno;

use crate::step::{Found, step};
use crate::usage::{BLOCK, DiskUsage};
use crate::walk::reopen;

/// Ids in a block.
const IDS: u32 = 65536;
/// How many directories on the way down are held open; those below are found again by `..`.
const HELD: usize = 128;
/// How much of a directory is read at once, in bytes: what stands behind a directory in it is read again after that.
const READ: usize = 4096;
/// Of how many files with several names it is known that they were counted: of one block, and of all. Of further ones each name counts,
/// with its part of the bytes.
const LINKED: usize = 1 << 17;
const ALL_LINKED: usize = 1 << 21;
/// Of how many directories it is known that they were looked through.
const VISITED: usize = 1 << 21;
/// How many failures are told one by one.
const TOLD: usize = 16;

/// What a file is, on all file systems.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// What files of blocks of ids take, in directories that are looked through one after the other.
#[derive(Debug)]
pub struct Census {
    /// First ids of the blocks.
    blocks: HashSet<u32>,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    usage: BTreeMap<u32, DiskUsage>,
    /// Files with several names.
    linked: HashSet<Identity>,
    links: BTreeMap<u32, usize>,
    /// Directories that were looked through, or are.
    visited: HashSet<Identity>,
}

/// What could not be looked at.
#[derive(Debug, Default)]
pub struct Unseen {
    /// How many directories and files.
    pub failed: u64,
    /// Where and why, of the first ones.
    pub failures: Vec<(PathBuf, io::Error)>,
}

/// A directory on the way down.
struct Above {
    dir: Option<Dir>,
    identity: Identity,
    /// Where its reading goes on.
    next: u64,
}

impl Census {
    /// Of the blocks that begin with these ids.
    pub fn new(blocks: HashSet<u32>) -> Self {
        Self { blocks, counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted until now, by the first ids of the blocks that have files.
    pub fn usage(&self) -> BTreeMap<u32, DiskUsage> {
        self.counted().usage.clone()
    }

    fn count(&self, stat: &Stat) {
        let block = stat.st_uid - stat.st_uid % IDS;
        if !self.blocks.contains(&block) {
            return;
        }
        let mut counted = self.counted();
        let mut bytes = stat.st_blocks.cast_unsigned().saturating_mul(BLOCK);
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory && stat.st_nlink > 1 {
            if counted.linked.contains(&identity(stat)) {
                return;
            }
            let is_room = counted.linked.len() < ALL_LINKED;
            let links = counted.links.entry(block).or_default();
            if is_room && *links < LINKED {
                *links += 1;
                counted.linked.insert(identity(stat));
            } else {
                bytes /= stat.st_nlink;
            }
        }
        *counted.usage.entry(block).or_default() += DiskUsage { bytes, files: 1 };
    }

    /// Is this the first time that the directory is come to? As far as that is remembered.
    fn is_new(&self, directory: Identity) -> bool {
        let mut counted = self.counted();
        match counted.visited.len() < VISITED {
            true => counted.visited.insert(directory),
            false => !counted.visited.contains(&directory),
        }
    }

    /// Looks through `root` and all below it on the same mount, but for directories that are other `roots`, by device and inode. `looked`
    /// goes up with every name that is looked at, so that somebody else may see that it goes on.
    pub fn look(&self, root: &Dir, roots: &HashSet<(u64, u64)>, looked: &AtomicU64) -> Unseen {
        let mut unseen = Unseen::default();
        let begin = reopen(root).and_then(|root| Ok((fstat(&root)?, root)));
        match begin {
            Ok((stat, dir)) => {
                self.count(&stat);
                Walk { census: self, roots, looked, unseen: &mut unseen, above: Vec::new() }
                    .all(dir, identity(&stat));
            }
            Err(error) => unseen.fail(root, error),
        }
        unseen
    }
}

impl Unseen {
    fn fail(&mut self, dir: &Dir, error: io::Error) {
        self.failed = self.failed.saturating_add(1);
        if self.failures.len() < TOLD {
            let link = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
            self.failures.push((std::fs::read_link(link).unwrap_or_default(), error));
        }
    }
}

/// What comes next of a directory.
enum Next {
    /// One in it, and where to go on behind that.
    Below(Dir, Identity, u64),
    End,
}

struct Walk<'a> {
    census: &'a Census,
    roots: &'a HashSet<Identity>,
    looked: &'a AtomicU64,
    unseen: &'a mut Unseen,
    above: Vec<Above>,
}

impl Walk<'_> {
    fn all(&mut self, root: Dir, root_is: Identity) {
        let (mut dir, mut is, mut at) = (root, root_is, 0);
        loop {
            let next = self.read(&dir, at).unwrap_or_else(|error| {
                self.unseen.fail(&dir, error);
                Next::End
            });
            (dir, is, at) = match next {
                Next::Below(below, below_is, next) => {
                    let held = self.above.len() < HELD;
                    self.above.push(Above { dir: held.then_some(dir), identity: is, next });
                    (below, below_is, 0)
                }
                Next::End => match self.up(&dir) {
                    Some(place) => place,
                    None => return,
                },
            };
        }
    }

    /// The directory above; if `dir` was moved meanwhile, the next one that is held open.
    fn up(&mut self, dir: &Dir) -> Option<(Dir, Identity, u64)> {
        let mut from = Some(dir);
        while let Some(Above { dir: held, identity, next }) = self.above.pop() {
            let by_name = || above(from.take()?, identity);
            if let Some(dir) = held.or_else(by_name) {
                return Some((dir, identity, next));
            }
        }
        None
    }

    /// Reads on in a directory: counts files until there is a directory.
    fn read(&mut self, dir: &Dir, at: u64) -> io::Result<Next> {
        seek(dir, SeekFrom::Start(at))?;
        let mut buffer = Vec::with_capacity(READ);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // Somebody has removed the directory: there is nothing in it any more.
                Err(Errno::NOENT) => return Ok(Next::End),
                entry => entry?,
            };
            self.looked.fetch_add(1, Ordering::Relaxed);
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let is_directory = match entry.file_type() {
                FileType::Unknown => None,
                kind => Some(kind == FileType::Directory),
            };
            match step(dir, name, is_directory) {
                Ok(Found::File(stat)) => self.census.count(&stat),
                Ok(Found::Directory(below)) => {
                    let stat = fstat(&below)?;
                    if !self.roots.contains(&identity(&stat)) && self.census.is_new(identity(&stat)) {
                        self.census.count(&stat);
                        return Ok(Next::Below(below, identity(&stat), entry.next_entry_cookie()));
                    }
                }
                Ok(Found::Nothing) => (),
                Err(error) => self.unseen.fail(dir, error),
            }
        }
        Ok(Next::End)
    }
}

/// What is above `dir`, if that is still what it was.
fn above(dir: &Dir, expected: Identity) -> Option<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(dir, "..", flags, Mode::empty()).ok()?;
    let is_it = fstat(&found).is_ok_and(|stat| identity(&stat) == expected);
    is_it.then(|| Dir::from_fd(found).ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, lchown, symlink};
    use std::path::Path;

    use super::*;

    const FIRST: u32 = 32767 * IDS;
    const OTHER: u32 = FIRST - IDS;

    fn census() -> Census {
        Census::new([FIRST, OTHER].into())
    }

    fn roots(paths: &[&Path]) -> HashSet<(u64, u64)> {
        paths.iter().map(|path| path.metadata().map(|data| (data.dev(), data.ino())).unwrap()).collect()
    }

    fn look(census: &Census, paths: &[&Path]) {
        for path in paths {
            let unseen = census.look(&Dir::open(path).unwrap(), &roots(paths), &AtomicU64::default());
            assert_eq!(unseen.failed, 0, "{:?}", unseen.failures);
        }
    }

    fn own(path: impl AsRef<Path>, uid: u32) {
        lchown(path, Some(uid), Some(uid)).unwrap();
    }

    fn blocks(path: &Path) -> u64 {
        path.symlink_metadata().unwrap().blocks() * BLOCK
    }

    #[test]
    fn owners_are_told_apart_and_each_file_counts_once() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        for (name, uid, size) in [
            ("a/data", FIRST + 3, 300_000),
            ("a/b/end", FIRST + IDS - 1, 100),
            ("other", OTHER, 50_000),
            ("below", OTHER - 1, 70_000),
            ("behind", FIRST + IDS, 70_000),
            ("mine", 1000, 70_000),
            // Whoever may write to a directory of somebody else's group makes files of that group.
            ("group", 1000, 70_000),
        ] {
            fs::write(root.join(name), vec![1; size]).unwrap();
            own(root.join(name), uid);
        }
        lchown(root.join("group"), Some(1000), Some(FIRST)).unwrap();
        fs::hard_link(root.join("a/data"), root.join("a/b/again")).unwrap();
        fs::hard_link(root.join("a/data"), root.join("zzz")).unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        symlink("/", root.join("link")).unwrap();
        symlink("a", root.join("loop")).unwrap();
        for name in ["sparse", "fifo", "link", "loop", "a/b"] {
            own(root.join(name), FIRST);
        }
        let census = census();
        look(&census, &[root]);
        let usage = census.usage();
        let files = ["a/data", "a/b/end", "sparse", "fifo", "link", "loop", "a/b"];
        let bytes: u64 = files.iter().map(|name| blocks(&root.join(name))).sum();
        assert_eq!(usage[&FIRST], DiskUsage { bytes, files: 7 });
        assert!(bytes < 1 << 20, "{bytes}: holes take nothing");
        assert_eq!(usage[&OTHER], DiskUsage { bytes: blocks(&root.join("other")), files: 1 });
        assert_eq!(usage.len(), 2);
    }

    #[test]
    fn directories_in_one_another_are_looked_through_once() {
        let place = tempfile::tempdir().unwrap();
        let (outer, inner) = (place.path().join("home"), place.path().join("home/alice"));
        fs::create_dir_all(inner.join("x")).unwrap();
        for path in [&inner, &inner.join("x")] {
            own(path, FIRST);
        }
        fs::write(outer.join("shared"), "x").unwrap();
        own(outer.join("shared"), FIRST);
        fs::hard_link(outer.join("shared"), inner.join("shared")).unwrap();
        for paths in [[&*outer, &*inner], [&*inner, &*outer]] {
            let census = census();
            look(&census, &paths);
            assert_eq!(census.usage()[&FIRST].files, 3);
        }
    }

    /// Deeper than descriptors can be held, and with something to find after each return.
    #[test]
    fn no_depth_and_no_width_hides_a_file() {
        let place = tempfile::tempdir().unwrap();
        let mut dir = Dir::open(place.path()).unwrap();
        const DEPTH: usize = 3000;
        for _ in 0..DEPTH {
            for name in ["a", "z"] {
                rustix::fs::mknodat(&dir, name, FileType::RegularFile, Mode::RUSR, 0).unwrap();
                dir.chown(name, FIRST, FIRST).unwrap();
            }
            dir = dir.create_dir("d", 0o700).unwrap();
        }
        for number in 0..2000 {
            let name = format!("a-rather-long-name-so-that-several-readings-are-needed-{number}");
            dir.make_dir(&name, 0o700).unwrap();
            dir.chown(&name, FIRST, FIRST).unwrap();
        }
        let census = census();
        look(&census, &[place.path()]);
        assert_eq!(census.usage()[&FIRST].files, 2 * DEPTH as u64 + 2000);
        // What removes the scratch directory may not go so deep.
        let removed = std::process::Command::new("rm").arg("-rf").arg(place.path()).status().unwrap();
        assert!(removed.success());
    }

    #[test]
    fn what_is_removed_meanwhile_is_no_failure() {
        let place = tempfile::tempdir().unwrap();
        let gone = Dir::open(place.path()).unwrap().create_dir("gone", 0o700).unwrap();
        fs::remove_dir(place.path().join("gone")).unwrap();
        let census = census();
        let (roots, looked, mut unseen) = (HashSet::new(), AtomicU64::new(0), Unseen::default());
        let is = identity(&fstat(&gone).unwrap());
        Walk { census: &census, roots: &roots, looked: &looked, unseen: &mut unseen, above: Vec::new() }
            .all(gone, is);
        assert_eq!(unseen.failed, 0, "{:?}", unseen.failures);
    }

    /// As somebody would who moves it to where it was not looked yet.
    #[test]
    fn a_directory_that_is_come_to_again_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("again")).unwrap();
        fs::write(place.path().join("again/data"), "x").unwrap();
        for name in ["again", "again/data"] {
            own(place.path().join(name), FIRST);
        }
        let census = census();
        look(&census, &[place.path()]);
        look(&census, &[place.path()]);
        assert_eq!(census.usage()[&FIRST].files, 2);
    }

    #[test]
    fn names_beyond_what_is_remembered_have_their_part() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("data"), vec![1; 1 << 20]).unwrap();
        own(place.path().join("data"), FIRST);
        for number in 0..3 {
            fs::hard_link(place.path().join("data"), place.path().join(number.to_string())).unwrap();
        }
        let census = census();
        census.counted().links.insert(FIRST, LINKED);
        look(&census, &[place.path()]);
        assert_eq!(census.usage()[&FIRST].bytes, blocks(&place.path().join("data")));
    }

    #[test]
    fn what_is_moved_away_ends_the_way_back_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let root = Dir::open(place.path()).unwrap();
        let below = root.create_dir("a", 0o700).unwrap().create_dir("b", 0o700).unwrap();
        let a = identity(&fstat(root.open_dir("a").unwrap()).unwrap());
        assert!(above(&below, a).is_some());
        fs::rename(place.path().join("a/b"), place.path().join("b")).unwrap();
        assert!(above(&below, a).is_none());
        // The next one that is held open is where it goes on.
        let census = census();
        let (roots, looked, mut unseen) = (HashSet::new(), AtomicU64::new(0), Unseen::default());
        let root_is = identity(&fstat(&root).unwrap());
        let held = vec![
            Above { dir: Some(root), identity: root_is, next: 7 },
            Above { dir: None, identity: a, next: 9 },
        ];
        let mut walk =
            Walk { census: &census, roots: &roots, looked: &looked, unseen: &mut unseen, above: held };
        let (_, is, next) = walk.up(&below).unwrap();
        assert_eq!((is, next), (root_is, 7));
    }
}
