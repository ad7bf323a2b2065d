//! One cgroup in one hierarchy: its directory, and what the kernel calls it for messages.
//!
//! Touches the files of that directory and nothing else. All names below a payload are the holder's choice and may be
//! any bytes.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{Dir, EntryKind};
use rustix::{
    fs::OFlags,
    io::{Errno, read, retry_on_intr},
};

use super::error::CgroupError;

/// Longest file of a cgroup that is read whole, bytes. `memory.stat` and `io.stat` have some kilobytes.
const MAX_FILE: usize = 256 * 1024;
/// How much of `cgroup.procs` is read at once, bytes.
const CHUNK: usize = 64 * 1024;

/// A cgroup in one hierarchy.
#[derive(Debug)]
pub(crate) struct Node {
    dir: Dir,
    path: String,
}

impl Node {
    /// `path` is `HIERARCHY:/path/from/its/root`, for messages.
    pub fn new(dir: Dir, path: String) -> Self {
        Self { dir, path }
    }

    /// Its directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Its directory alone.
    pub fn into_dir(self) -> Dir {
        self.dir
    }

    /// The same cgroup by another descriptor.
    pub fn again(&self) -> Result<Self, CgroupError> {
        let dir = self.dir.try_clone().map_err(CgroupError::system("duplicating a descriptor"))?;
        Ok(Self::new(dir, self.path.clone()))
    }

    /// What it is called in messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What a file or cgroup in it is called in messages.
    pub fn path_of(&self, name: impl AsRef<OsStr>) -> String {
        format!("{}/{}", self.path.trim_end_matches('/'), name.as_ref().to_string_lossy())
    }

    /// A cgroup in it, if it is there.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, CgroupError> {
        let name = name.as_ref();
        match self.dir.open_dir(name) {
            Ok(dir) => Ok(Some(Self::new(dir, self.path_of(name)))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(CgroupError::kernel("to open", self.path_of(name))(error)),
        }
    }

    /// A cgroup below it, by the names on the way there, if it is there.
    pub fn below(&self, names: &[String]) -> Result<Option<Self>, CgroupError> {
        let path = || self.path_of(names.join("/"));
        match self.dir.open_below(names) {
            Ok(dir) => Ok(Some(Self::new(dir, path()))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(CgroupError::kernel("to open", path())(error)),
        }
    }

    /// An error of the kernel's with a cgroup or file below it, by the names on the way there.
    fn failed_below(&self, doing: &'static str, names: &[String]) -> impl FnOnce(io::Error) -> CgroupError {
        CgroupError::kernel(doing, self.path_of(names.join("/")))
    }

    /// Makes a cgroup below it, by the names on the way there; `Ok(None)` if the one around it is not there, `Ok(Some(false))`
    /// if there is one of this name already.
    ///
    /// All that is on the way is the broker's own: root's directories, in which nobody else makes or renames anything, in a
    /// file system without links.
    pub fn make_below(&self, names: &[String]) -> Result<Option<bool>, CgroupError> {
        match self.dir.make_below(names, 0o755) {
            Ok(()) => Ok(Some(true)),
            Err(error) if errno(&error) == Some(Errno::EXIST) => Ok(Some(false)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed_below("to make", names)(error)),
        }
    }

    /// Removes a cgroup below it, by the names on the way there, which are the broker's own; fine if it is not there.
    /// `EBUSY` if processes or cgroups are in it.
    pub fn remove_below(&self, names: &[String]) -> io::Result<()> {
        match self.dir.remove_below(names) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }

    /// Opens a file or cgroup below it, by the names on the way there; `None` if it is not there.
    pub fn open_below(&self, names: &[String], flags: OFlags) -> Result<Option<OwnedFd>, CgroupError> {
        match self.dir.open_file_below(names, flags) {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed_below("to open", names)(error)),
        }
    }

    /// A value of a flat keyed file below it; the outer `None` if the file is not there.
    pub fn keyed_below(&self, names: &[String], key: &str) -> Result<Option<Option<u64>>, CgroupError> {
        match self.dir.read_below(names, MAX_FILE) {
            Ok(text) => Ok(Some(value_of(&text, key))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(self.failed_below("to read", names)(error)),
        }
    }

    /// Makes a cgroup in it; `Ok(None)` if there is one of this name already.
    pub fn make(&self, name: impl AsRef<OsStr>) -> Result<Option<Self>, CgroupError> {
        let name = name.as_ref();
        match self.dir.create_dir(name, 0o755) {
            Ok(dir) => Ok(Some(Self::new(dir, self.path_of(name)))),
            Err(error) if errno(&error) == Some(Errno::EXIST) => Ok(None),
            Err(error) => Err(CgroupError::kernel("to make", self.path_of(name))(error)),
        }
    }

    /// A cgroup in it, made if it is not there. Says whether it was made now.
    pub fn ensure(&self, name: &str) -> Result<(Self, bool), CgroupError> {
        if let Some(there) = self.child(name)? {
            return Ok((there, false));
        }
        if let Some(made) = self.make(name)? {
            return Ok((made, true));
        }
        match self.child(name)? {
            Some(there) => Ok((there, false)),
            None => Err(CgroupError::kernel("to make", self.path_of(name))(Errno::NOENT.into())),
        }
    }

    /// Removes a cgroup in it; fine if it is not there. `EBUSY` if processes or cgroups are in it.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        match self.dir.remove_dir(name) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }

    /// A file's text without the line feed at its end.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let mut text = self.dir.read(file, MAX_FILE)?;
        text.truncate(text.trim_end().len());
        Ok(text)
    }

    /// A file's text; `None` if the kernel or this cgroup does not have the file.
    pub fn read_if_there(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match self.read(file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_missing(&error) || errno(&error) == Some(Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(CgroupError::kernel("to read", self.path_of(file))(error)),
        }
    }

    /// Writes a file. The empty value is written as a line feed: a write of no bytes does nothing.
    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        self.dir.write(file, if value.is_empty() { "\n" } else { value })
    }

    /// Opens a file of it.
    pub fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd, CgroupError> {
        self.dir.open_file(file, flags).map_err(CgroupError::kernel("to open", self.path_of(file)))
    }

    /// Does it have this file?
    pub fn has(&self, file: &str) -> bool {
        self.dir.exists(file).unwrap_or(false)
    }

    /// A value of a flat keyed file such as `cgroup.events`.
    pub fn keyed(&self, file: &str, key: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.read_if_there(file)?.and_then(|text| value_of(&text, key)))
    }

    /// Are there processes in it or below it? (cgroup2)
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        Ok(self.keyed("cgroup.events", "populated")? == Some(1))
    }

    /// The pids in it, not below it; those that can't be seen from this pid namespace left out.
    pub fn pids(&self, limit: usize) -> Result<Vec<u32>, CgroupError> {
        pids(&self.dir, limit).map_err(|error| match error {
            PidsError::TooMany => CgroupError::TooMany { what: "processes", limit },
            PidsError::Io(error) => CgroupError::kernel("to read", self.path_of("cgroup.procs"))(error),
        })
    }
}

/// Why the pids of a cgroup were not had.
pub(super) enum PidsError {
    /// There are more than the limit.
    TooMany,
    /// The kernel said no.
    Io(io::Error),
}

/// The pids in a cgroup. A threaded one has none of its own: its processes show in the cgroup that its threads belong to.
pub(super) fn pids(dir: &Dir, limit: usize) -> Result<Vec<u32>, PidsError> {
    let mut pids = Vec::new();
    let file = match dir.open_file("cgroup.procs", OFlags::RDONLY) {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Ok(pids),
        Err(error) => return Err(PidsError::Io(error)),
    };
    let mut buffer = vec![0; CHUNK];
    let mut line = Vec::new();
    loop {
        let count = match retry_on_intr(|| read(file.as_fd(), &mut *buffer)) {
            Ok(0) | Err(Errno::OPNOTSUPP | Errno::NODEV) => return Ok(pids),
            Ok(count) => count,
            Err(errno) => return Err(PidsError::Io(errno.into())),
        };
        for &byte in buffer.get(..count).unwrap_or_default() {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let pid = std::str::from_utf8(&line).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            line.clear();
            if pid == 0 {
                continue;
            }
            if pids.len() == limit {
                return Err(PidsError::TooMany);
            }
            pids.push(pid);
        }
    }
}

/// The names of the cgroups in a directory.
pub(super) fn children(dir: &Dir) -> io::Result<Vec<OsString>> {
    let entries = dir.entries()?.into_iter();
    Ok(entries.filter(|entry| entry.kind == EntryKind::Directory).map(|entry| entry.name).collect())
}

/// The number after `key` in a flat keyed text.
pub(super) fn value_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// The kernel's error number.
pub(super) fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error)
}

/// The cgroup or file is not there, or was removed while it was open.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::NOENT | Errno::NODEV))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "low 1\noom 22\noom_kill 3\n";
        assert_eq!(
            (value_of(text, "oom"), value_of(text, "oom_kill"), value_of(text, "kill")),
            (Some(22), Some(3), None)
        );
        assert_eq!(value_of("max\n", "max"), None);
    }
}
