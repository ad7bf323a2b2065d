//! Wishes on disk: a file each in the run directory, written before the wish is answered, so that a restart of the broker goes on
//! with it. Only this module reads and writes these files.

use std::io;

use cgrant_sys::Dir;
use serde::{Deserialize, Serialize};

/// Format of the files. A file of another format is not gone by.
const FORMAT: u32 = 1;
/// The directory of the files, in the run directory.
const DIRECTORY: &str = "legacy-empty";
/// Longest file that is read, in bytes.
const MAX_RECORD: usize = 64 * 1024;

/// That a cgroup shall be removed when it is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WishRecord {
    format: u32,
    /// The boot that the cgroup belongs to.
    boot: String,
    /// The account that the wish is counted to.
    pub account: u32,
    /// Name of its hierarchy.
    pub hierarchy: String,
    /// The names on the way to it from the root of our cgroup namespace; at least one.
    pub names: Vec<String>,
    /// Its kernel id: another cgroup of this name has another one.
    pub cgroup: u64,
    /// v1: was anything in it since the wish? If not it stays, as it would with the kernel's release agent.
    pub had: bool,
}

impl WishRecord {
    /// A record of the current format.
    pub fn new(boot: &str, account: u32, place: (String, Vec<String>), cgroup: u64, had: bool) -> Self {
        let (hierarchy, names) = place;
        Self { format: FORMAT, boot: boot.to_owned(), account, hierarchy, names, cgroup, had }
    }
}

/// The directory of the files.
#[derive(Debug)]
pub struct WishFiles(Dir);

fn file_name(id: u64) -> String {
    format!("{id:016x}.json")
}

impl WishFiles {
    /// In the instance's run directory.
    ///
    /// # Errors
    /// If the directory can't be made or opened.
    pub fn open(run: &Dir) -> io::Result<Self> {
        match run.make_dir(DIRECTORY, 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
        let directory = run.open_dir(DIRECTORY)?;
        directory.sweep()?;
        Ok(Self(directory))
    }

    /// The wishes of this boot with their numbers. What can't be read, and what is of an earlier boot, is removed.
    ///
    /// # Errors
    /// If the directory can't be listed.
    pub fn load(&self, boot: &str) -> io::Result<Vec<(u64, WishRecord)>> {
        let mut wishes = Vec::new();
        for file in self.0.names()? {
            match self.read(&file) {
                Ok((id, record)) if record.boot == boot => wishes.push((id, record)),
                Ok(_) => self.remove_file(&file),
                Err(error) => {
                    tracing::warn!(%error, file, "a wish to remove a cgroup can't be read and is dropped");
                    self.remove_file(&file);
                }
            }
        }
        wishes.sort_unstable_by_key(|(id, _)| *id);
        Ok(wishes)
    }

    fn read(&self, file: &str) -> io::Result<(u64, WishRecord)> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let number = file.strip_suffix(".json").and_then(|text| u64::from_str_radix(text, 16).ok());
        let id =
            number.filter(|id| file_name(*id) == file).ok_or_else(|| invalid("its name is no number"))?;
        let record: WishRecord = serde_json::from_str(&self.0.read(file, MAX_RECORD)?)?;
        if record.format != FORMAT || record.names.is_empty() {
            return Err(invalid("of another format"));
        }
        Ok((id, record))
    }

    /// Writes a wish, in the place of what was there.
    ///
    /// # Errors
    /// If it can't be; nothing has changed then.
    pub fn write(&self, id: u64, record: &WishRecord) -> io::Result<()> {
        self.0.write_atomic(file_name(id), &serde_json::to_vec(record)?, false)
    }

    /// Removes a wish.
    pub fn remove(&self, id: u64) {
        self.remove_file(&file_name(id));
    }

    fn remove_file(&self, file: &str) {
        match self.0.remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // The next start finds that its cgroup is gone.
                tracing::warn!(%error, file, "a wish to remove a cgroup stays in the record");
            }
            _ => (),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn record(name: &str, boot: &str) -> WishRecord {
        WishRecord::new(boot, 7, ("memory".to_owned(), vec![name.to_owned()]), 42, true)
    }

    #[test]
    fn what_was_wished_is_there_after_a_restart() {
        let run = tempfile::tempdir().unwrap();
        let open = || WishFiles::open(&Dir::open(run.path()).unwrap()).unwrap();
        let files = open();
        for (id, boot) in [(2, "now"), (1, "now"), (3, "before")] {
            files.write(id, &record("a", boot)).unwrap();
        }
        files.write(2, &record("b", "now")).unwrap();
        let directory = run.path().join(DIRECTORY);
        std::fs::write(directory.join("0000000000000004.json"), "{}").unwrap();
        std::fs::write(directory.join("something"), "else").unwrap();
        let files = open();
        assert_eq!(files.load("now").unwrap(), [(1, record("a", "now")), (2, record("b", "now"))]);
        assert_eq!(directory.read_dir().unwrap().count(), 2, "the others are gone");
        files.remove(1);
        files.remove(1);
        assert_eq!(open().load("now").unwrap(), [(2, record("b", "now"))]);
    }
}
