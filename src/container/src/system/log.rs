//! What a container printed on its console: the newest of it, in two files of bounded length.
//!
//! What is printed is appended to `console.log`. When that is full, it becomes `console.log.1`, in place of the one before. So
//! between one and two times the bound is kept, at every moment, whoever is killed.

use std::{io, os::fd::OwnedFd};

use cgrant_sys::Dir;
use rustix::fs::{OFlags, renameat};

const FILE: &str = "console.log";
const BEFORE: &str = "console.log.1";
/// How much one file holds, in bytes.
const FULL: u64 = 64 * 1024;

/// It, open for writing.
#[derive(Debug)]
pub(crate) struct Log {
    run: Dir,
    file: OwnedFd,
    length: u64,
}

impl Log {
    /// Goes on with what is there.
    pub(crate) fn open(run: &Dir) -> io::Result<Self> {
        let file = run.open_file(FILE, OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND)?;
        let length = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(FULL);
        Ok(Self { run: run.try_clone()?, file, length })
    }

    /// Appends. What a full disk does not take is lost: the container goes on.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if self.length >= FULL && self.turn().is_err() {
            return;
        }
        if let Ok(written) = rustix::io::write(&self.file, bytes) {
            self.length = self.length.saturating_add(written as u64);
        }
    }

    fn turn(&mut self) -> io::Result<()> {
        renameat(&self.run, FILE, &self.run, BEFORE)?;
        *self = Self::open(&self.run)?;
        Ok(())
    }
}

/// The newest `max` bytes, or all that is kept; empty if nothing ever was. What the container printed is not to be shown on
/// a terminal as it is.
///
/// # Errors
/// Those of reading the files.
pub fn read_log(run: &Dir, max: usize) -> io::Result<Vec<u8>> {
    // A write that was under way when the file was full may have made it longer.
    let bound = usize::try_from(FULL).unwrap_or(usize::MAX).saturating_mul(2);
    let read = |name| match run.read_bytes(name, bound) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        bytes => bytes,
    };
    let mut bytes = read(BEFORE)?;
    bytes.extend(read(FILE)?);
    let surplus = bytes.len().saturating_sub(max);
    bytes.drain(..surplus);
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_and_not_more() {
        let directory = tempfile::tempdir().unwrap();
        let run = Dir::open(directory.path()).unwrap();
        assert!(read_log(&run, 100).unwrap().is_empty());
        let mut log = Log::open(&run).unwrap();
        let line = |number: u32| format!("{number:07}\n").into_bytes();
        for number in 0..50_000 {
            log.append(&line(number));
        }
        let kept = read_log(&run, usize::MAX).unwrap();
        assert!((65_536..=131_072).contains(&kept.len()), "{}", kept.len());
        assert!(kept.ends_with(&line(49_999)));
        assert_eq!(read_log(&run, 8).unwrap(), line(49_999));
        drop(log);
        Log::open(&run).unwrap().append(b"again");
        assert!(read_log(&run, usize::MAX).unwrap().ends_with(b"0049999\nagain"));
        assert_eq!(run.names().unwrap().len(), 2);
    }
}
