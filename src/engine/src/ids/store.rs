//! The files of the record, and how instances learn of each other's changes.
//!
//! Two directories, both root's alone, the same for every instance of the host:
//!
//! * `record` (survives a reboot): one file an area, `FIRST.BLOCKS.ACCOUNT.json`, written whole and flushed before
//!   anything of it is used; and `lock`, which every reader and writer of either directory holds.
//! * `live` (describes this boot): one file a range in use, `GRANT.FIRST.COUNT.ACCOUNT.INSTANCE` with the boot's id in it;
//!   and `changes`, to which every change appends the name of the file *before* it makes it. Whoever takes the
//!   lock reads what was appended since, and with it just those files. A file of another beginning is read as
//!   "everything may have changed".

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use cgrant_policy::{HostUid, IdSpan};
use cgrant_sys::{Dir, LockGuard, process};
use cgrant_wire::GrantId;
use rustix::fs::OFlags;

use super::{area::Area, error::IdError, index::Mark};

const LOCK: &str = "lock";
const CHANGES: &str = "changes";
/// Longest file of an area, in bytes.
const MAX_AREA: usize = 64 * 1024;
/// Longest list of changes, in bytes; then a new one is begun.
const MAX_CHANGES: u64 = 256 * 1024;
/// Length of the random line that a list of changes begins with.
const EPOCH: usize = 17;

/// The two directories.
pub struct Store {
    record: Dir,
    live: Dir,
    changes: File,
    epoch: [u8; EPOCH],
    seen: u64,
    boot: String,
}

/// What other instances changed.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Anything.
    Everything,
    /// What these files of areas and marks say; they may be gone.
    Files(Vec<Named>),
}

/// A file by what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// Of an area.
    Area(String),
    /// Of a range in use.
    Mark(String),
}

/// What an area's file is.
pub enum AreaFile {
    /// An area, or a damaged one.
    Area(Area),
    /// None: not there.
    Missing,
}

impl Store {
    /// Opens the directories. Nothing has been read yet.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn open(record: Dir, live: Dir) -> Result<Self, IdError> {
        let changes = open_changes(&live)?;
        let boot = process::boot_id().map_err(IdError::io("boot_id"))?;
        Ok(Self { record, live, changes, epoch: [0; EPOCH], seen: 0, boot })
    }

    /// Keeps every other instance out while the guard lives.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn lock(&self) -> Result<LockGuard, IdError> {
        self.record.lock(LOCK).map_err(IdError::io(LOCK))
    }

    /// What changed since the last time. Under the lock.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn news(&mut self) -> Result<News, IdError> {
        self.read_news().map_err(IdError::io(CHANGES))
    }

    fn read_news(&mut self) -> io::Result<News> {
        let mut metadata = self.changes.metadata()?;
        if metadata.nlink() == 0 {
            self.changes = File::from(self.live.open_file(CHANGES, OFlags::RDWR | OFlags::CREATE)?);
            metadata = self.changes.metadata()?;
        }
        let mut epoch = [0; EPOCH];
        let is_whole = metadata.len() >= EPOCH as u64 && self.changes.read_exact_at(&mut epoch, 0).is_ok();
        if !is_whole || epoch.last() != Some(&b'\n') {
            self.begin()?;
            return Ok(News::Everything);
        }
        if epoch != self.epoch || metadata.len() < self.seen {
            (self.epoch, self.seen) = (epoch, metadata.len());
            return Ok(News::Everything);
        }
        let length = usize::try_from(metadata.len() - self.seen).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut news = vec![0; length];
        self.changes.read_exact_at(&mut news, self.seen)?;
        let files = String::from_utf8(news).ok().and_then(|news| named_files(&news));
        let Some(files) = files else {
            // Somebody died while appending.
            self.begin()?;
            return Ok(News::Everything);
        };
        self.seen = metadata.len();
        Ok(News::Files(files))
    }

    /// Begins a new list: every other instance will read everything.
    fn begin(&mut self) -> io::Result<()> {
        let epoch = format!("{:016x}\n", process::random_u64()?);
        self.changes.set_len(0)?;
        self.changes.write_all_at(epoch.as_bytes(), 0)?;
        self.epoch = epoch.as_bytes().try_into().map_err(|_| io::ErrorKind::InvalidData)?;
        self.seen = EPOCH as u64;
        Ok(())
    }

    /// Says which file is about to change.
    fn announce(&mut self, kind: char, file: &str) -> Result<(), IdError> {
        let result = (|| {
            if self.seen > MAX_CHANGES {
                self.begin()?;
            }
            let line = format!("{kind} {file}\n");
            self.changes.write_all_at(line.as_bytes(), self.seen)?;
            self.seen += line.len() as u64;
            Ok(())
        })();
        result.map_err(IdError::io(CHANGES))
    }

    /// Everything in the directories: areas, damaged ones among them, and ranges in use. Leftovers of interrupted
    /// writes and of earlier boots are removed. Under the lock.
    ///
    /// # Errors
    /// [`IdError::Io`]; [`IdError::Damaged`] for a file that may be an area's but does not say which ids it is about.
    pub fn load(&mut self) -> Result<(Vec<Area>, Vec<Mark>), IdError> {
        self.record.sweep().map_err(IdError::io("the record of ranges"))?;
        self.live.sweep().map_err(IdError::io("the list of ranges in use"))?;
        let mut areas = Vec::new();
        for file in self.record.names().map_err(IdError::io("the record of ranges"))? {
            if !file.ends_with(".json") {
                continue;
            }
            if Area::from_file_name(&file).is_none() {
                let reason = "its name does not say which ids it is about".to_owned();
                return Err(IdError::Damaged { file, reason });
            }
            if let AreaFile::Area(area) = self.read_area(&file)? {
                areas.push(area);
            }
        }
        let mut marks = Vec::new();
        for file in self.live.names().map_err(IdError::io("the list of ranges in use"))? {
            if file != CHANGES
                && let Some(mark) = self.read_mark(&file)?
            {
                marks.push(mark);
            }
        }
        Ok((areas, marks))
    }

    /// The area that a file is about. A file that can't be made sense of gives a damaged area of the ids in its name.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn read_area(&self, file: &str) -> Result<AreaFile, IdError> {
        let Some(empty) = Area::from_file_name(file) else { return Ok(AreaFile::Missing) };
        let damaged = |reason: String| {
            tracing::error!(
                file,
                reason,
                "the record of ranges is damaged; nothing of these ids is given out"
            );
            AreaFile::Area(empty.clone().into_damaged(reason))
        };
        match self.record.read(file, MAX_AREA) {
            Ok(text) => Ok(empty.clone().with_text(&text).map_or_else(damaged, AreaFile::Area)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(AreaFile::Missing),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge) =>
            {
                Ok(damaged(error.to_string()))
            }
            Err(error) => Err(IdError::io(file)(error)),
        }
    }

    /// Writes an area's file and flushes it and its name to the disk.
    ///
    /// # Errors
    /// [`IdError::Io`]; the file is as it was then, or as it was to be.
    pub fn write_area(&mut self, area: &Area) -> Result<(), IdError> {
        let file = area.file();
        let bytes = area.to_bytes().map_err(|error| IdError::io(&*file)(error.into()))?;
        self.announce('a', &file)?;
        self.record.write_atomic(&file, &bytes, true).map_err(IdError::io(file))
    }

    /// Says that a range is in use. Whoever dies meanwhile leaves a file that is cut short, which says the same.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn write_mark(&mut self, mark: &Mark) -> Result<(), IdError> {
        let file = mark_file(mark);
        self.announce('m', &file)?;
        let boot = self.boot.as_bytes();
        match self.live.write_first(&file, boot) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.live.write_atomic(&file, boot, false)
            }
            other => other,
        }
        .map_err(IdError::io(file))
    }

    /// Says that it is not any more.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn remove_mark(&mut self, mark: &Mark) -> Result<(), IdError> {
        let file = mark_file(mark);
        self.announce('m', &file)?;
        match self.live.remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IdError::io(file)(error)),
            _ => Ok(()),
        }
    }

    /// The range in use that a file is about, if it is of this boot. One of an earlier boot is removed.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn read_mark(&self, file: &str) -> Result<Option<Mark>, IdError> {
        let Some(mark) = mark_from(file) else {
            tracing::warn!(file, "a file that is not the broker's lies among the ranges in use");
            return Ok(None);
        };
        match self.live.read(file, 64) {
            Ok(boot) if boot.len() == self.boot.len() && boot != self.boot => {
                self.live.remove_file(file).map_err(IdError::io(file)).map(|()| None)
            }
            // One that is cut short counts as of this boot: better kept too long than given out twice.
            Ok(_) => Ok(Some(mark)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(mark)),
            Err(error) => Err(IdError::io(file)(error)),
        }
    }
}

fn open_changes(live: &Dir) -> Result<File, IdError> {
    live.open_file(CHANGES, OFlags::RDWR | OFlags::CREATE).map(File::from).map_err(IdError::io(CHANGES))
}

fn named_files(news: &str) -> Option<Vec<Named>> {
    if !news.is_empty() && !news.ends_with('\n') {
        return None;
    }
    let file = |line: &str| match line.split_once(' ')? {
        ("a", file) => Some(Named::Area(file.to_owned())),
        ("m", file) => Some(Named::Mark(file.to_owned())),
        _ => None,
    };
    news.lines().map(file).collect()
}

fn mark_file(mark: &Mark) -> String {
    let Mark { grant, span, account, instance } = mark;
    format!("{grant}.{}.{}.{account}.{instance}", span.first(), span.count())
}

/// What the name of a mark's file says.
pub fn mark_from(file: &str) -> Option<Mark> {
    let mut parts = file.splitn(5, '.');
    let grant: GrantId = parts.next()?.parse().ok()?;
    let span = IdSpan::new(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?).ok()?;
    let account = HostUid(parts.next()?.parse().ok()?);
    let instance = parts.next()?.to_owned();
    Some(Mark { grant, span, account, instance })
}
