//! What comes as a stream is put into a file first, one without a name: its sum is compared before anything is unpacked, and it
//! goes with whoever has it open.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

use cgrant_sys::Dir;
use rustix::fs::OFlags;

use crate::limits::Limits;
use crate::path::TreePath;
use crate::place::{PlaceError, Space, failed};
use crate::progress::{Progress, Step, Watch};

/// Why a stream is in no file.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// It can't be read.
    #[error("the source could not be read")]
    Read(#[source] io::Error),
    /// It is larger than [`Limits::bytes`].
    #[error("the source is larger than {0} bytes, which is more than is taken")]
    TooLarge(u64),
    /// There is not enough room for it.
    #[error(transparent)]
    NoRoom(#[from] PlaceError),
    /// Where it goes takes it not.
    #[error("what came could not be written")]
    Write(#[source] io::Error),
}

/// A file without a name that is written to as long as there is room.
#[derive(Debug)]
pub(crate) struct Spool {
    file: File,
    space: Space,
    full: Option<PlaceError>,
}

impl Spool {
    /// On the file system of `dir`, of which `keep_free` bytes stay free.
    pub fn new(dir: &Dir, keep_free: u64) -> Result<Self, SpoolError> {
        let make = || -> io::Result<(File, Space)> {
            let name = format!(".spool-{:016x}", cgrant_sys::process::random_u64()?);
            let file = dir.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
            dir.remove_file(&name)?;
            Ok((file.into(), Space::of(dir, keep_free)?))
        };
        let (file, mut space) = make().map_err(SpoolError::Write)?;
        space.look()?;
        Ok(Self { file, space, full: None })
    }

    /// The file, at its beginning; an error if there was not enough room.
    pub fn finish(self) -> Result<File, SpoolError> {
        let Self { mut file, full, .. } = self;
        if let Some(full) = full {
            return Err(full.into());
        }
        file.rewind().map_err(SpoolError::Write)?;
        Ok(file)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self
            .space
            .bytes(bytes.len() as u64)
            .and_then(|()| self.file.write(bytes).map_err(|source| failed(&TreePath::default(), source)));
        written.map_err(|full| {
            self.full = Some(full);
            io::ErrorKind::StorageFull.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Puts all that `source` gives into a file without a name on the file system of `dir`.
///
/// # Errors
/// [`SpoolError`].
pub fn spool(
    dir: &Dir,
    mut source: impl Read,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<File, SpoolError> {
    let mut spool = Spool::new(dir, limits.keep_free)?;
    let mut buffer = vec![0; 1 << 17];
    let mut done = 0_u64;
    loop {
        let count = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(SpoolError::Read)?,
        };
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        done = done.saturating_add(part.len() as u64);
        if done > limits.bytes {
            return Err(SpoolError::TooLarge(limits.bytes));
        }
        if spool.write_all(part).is_err() {
            break;
        }
        watch(Progress { step: Step::Receive, done, total: None });
    }
    spool.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_becomes_a_file_within_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let text = vec![7; 300_000];
        let limits = Limits { bytes: 300_000, keep_free: 0, ..Limits::default() };
        let mut last = 0;
        let file = spool(&dir, &text[..], &limits, &mut |progress| last = progress.done).unwrap();
        let mut read = Vec::new();
        { file }.read_to_end(&mut read).unwrap();
        assert_eq!((read, last), (text.clone(), 300_000));
        assert_eq!(dir.names().unwrap(), [] as [&str; 0], "it has no name");
        let small = Limits { bytes: 299_999, ..limits };
        let error = spool(&dir, &text[..], &small, &mut |_| ()).unwrap_err();
        assert!(matches!(error, SpoolError::TooLarge(299_999)));
        let full = Limits { keep_free: u64::MAX, ..limits };
        let error = spool(&dir, &text[..], &full, &mut |_| ()).unwrap_err();
        assert!(matches!(error, SpoolError::NoRoom(PlaceError::NearlyFull { .. })));
        let directory = File::open(directory.path()).unwrap();
        assert!(matches!(spool(&dir, directory, &limits, &mut |_| ()), Err(SpoolError::Read(_))));
    }
}
