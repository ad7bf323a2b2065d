//! Removing trees that somebody else made: as deep and as wide as the file system lets them be.

use std::ffi::{OsStr, OsString};
use std::io;

use cgrant_sys::Dir;
use rustix::fs::{AtFlags, RawDir, renameat, unlinkat};
use rustix::io::Errno;

/// How many directories are held open at once. What is deeper is moved up and removed from there.
const DEPTH: usize = 64;

/// Removes `name` in `dir`, and everything below it if it is a directory. Nothing is followed, no mount is entered
/// (`EBUSY`, `EXDEV`), and it may be called again after an error.
///
/// `dir` must be of the same file system, and what is in it changed by nobody else: directories that are too deep are
/// moved into it under names that begin with `prefix`, and removed from there.
///
/// # Errors
/// Those of `unlinkat(2)`, `openat2(2)`, `getdents64(2)`; `ENOENT` is none.
pub fn remove_tree(dir: &Dir, name: &OsStr, prefix: &str) -> io::Result<()> {
    let mut todo = vec![name.to_owned()];
    let mut moved = 0_u64;
    while let Some(name) = todo.pop() {
        let mut aside = |from: &Dir, deep: &OsStr| {
            moved = moved.saturating_add(1);
            let place =
                OsString::from(format!("{prefix}{:016x}-{moved}", cgrant_sys::process::random_u64()?));
            renameat(from, deep, dir, &place)?;
            todo.push(place);
            Ok(())
        };
        remove(dir, &name, DEPTH, &mut aside)?;
    }
    Ok(())
}

fn remove(
    dir: &Dir,
    name: &OsStr,
    depth: usize,
    aside: &mut dyn FnMut(&Dir, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => (),
        Err(errno) => return Err(errno.into()),
    }
    let Some(below) = depth.checked_sub(1) else { return aside(dir, name) };
    let opened = dir.open_dir(name)?;
    // A directory that changes while it is read may be read incompletely.
    loop {
        match unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => (),
            Err(errno) => return Err(errno.into()),
        }
        empty(dir, name, &opened, below, aside)?;
    }
}

/// Removes the entries of a directory, one bufferful after the other.
fn empty(
    parent: &Dir,
    name: &OsStr,
    opened: &Dir,
    depth: usize,
    aside: &mut dyn FnMut(&Dir, &OsStr) -> io::Result<()>,
) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    // Another description, so that each reading begins at the start.
    let reading = parent.open_dir(name)?;
    let mut buffer = Vec::with_capacity(1 << 15);
    let mut entries = RawDir::new(&reading, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove(opened, name, depth, aside)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn trees_go_whole_and_what_links_name_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("victim"), "").unwrap();
        std::fs::create_dir_all(path.join("keep")).unwrap();
        std::fs::create_dir_all(path.join("t/a/b")).unwrap();
        for place in 0..3000 {
            std::fs::write(path.join(format!("t/a/{place}")), "").unwrap();
        }
        std::os::unix::fs::symlink("../keep", path.join("t/link")).unwrap();
        std::os::unix::fs::symlink("/", path.join("t/a/b/root")).unwrap();
        let dir = Dir::open(path).unwrap();
        for _ in 0..2 {
            remove_tree(&dir, OsStr::new("t"), ".old-").unwrap();
        }
        let mut names = dir.names().unwrap();
        names.sort();
        assert_eq!(names, ["keep", "victim"]);
    }

    #[test]
    fn depth_takes_no_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let mut deepest = dir.create_dir("t", 0o700).unwrap();
        // Longer than a path may be, and deeper than descriptors may be open.
        for _ in 0..3000 {
            deepest = deepest.create_dir("d", 0o700).unwrap();
            deepest.write_atomic("f", b"", false).unwrap();
        }
        drop(deepest);
        remove_tree(&dir, OsStr::new("t"), ".old-").unwrap();
        assert_eq!(dir.names().unwrap(), [] as [&str; 0]);
    }
}
