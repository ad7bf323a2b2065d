//! A tree of files as members of an archive: what copies, archives and the identity of a tree are made of.
//!
//! The tree may be a container's, which is as hostile as an archive: links are not followed, pipes not opened, mounts
//! not entered, and depth and number have bounds.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;

use cgrant_sys::Dir;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, openat, readlinkat, seek, statat};
use rustix::io::Errno;

use crate::archive::{Kind, Member, Segment, Time};
use crate::attributes::{LeftOut, read_xattrs};
use crate::limits::Limits;
use crate::path::TreePath;
use crate::place::Omissions;

/// Most bytes of names of files with several names that are remembered.
const MAX_REMEMBERED: usize = 256 << 20;

/// Why a tree can't be read.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// Reading a file or directory failed.
    #[error("`{path}` could not be read")]
    Read {
        /// Which.
        path: TreePath,
        /// What the kernel said.
        source: io::Error,
    },
    /// More entries than [`Limits::entries`].
    #[error("there are more than {0} files")]
    TooMany(u64),
    /// Deeper than [`Limits::DEPTH`].
    #[error("`{0}` is more than {max} directories deep", max = Limits::DEPTH)]
    TooDeep(TreePath),
}

/// Something in a tree.
pub(crate) struct Found<'a> {
    pub path: &'a TreePath,
    /// What it is, as an archive would say it. Its name is the path without leading `/`; empty for the root.
    pub member: Member,
    /// The file or directory itself, opened to be read.
    pub file: Option<File>,
}

/// A walk through a tree.
pub(crate) struct Walk<'a, V> {
    limits: &'a Limits,
    visit: V,
    entries: u64,
    /// Files with several names: where the first is.
    seen: HashMap<(u64, u64), Vec<u8>>,
    /// How many bytes the names of those have.
    remembered: usize,
    pub omissions: Omissions,
}

impl<'a, V> Walk<'a, V> {
    pub fn new(limits: &'a Limits, visit: V) -> Self {
        Self {
            limits,
            visit,
            entries: 0,
            seen: HashMap::new(),
            remembered: 0,
            omissions: Omissions::default(),
        }
    }

    /// Visits the root and all below it, each directory before its entries, which come in the order of their names.
    pub fn run<E: From<WalkError>>(&mut self, root: &Dir) -> Result<(), E>
    where
        V: FnMut(Found<'_>) -> Result<(), E>,
    {
        let path = TreePath::default();
        let read = |source| WalkError::Read { path: path.clone(), source };
        // A mount's own descriptor can't be read from.
        let root = reopen(root).map_err(read)?;
        let stat = rustix::fs::fstat(&root).map_err(|errno| read(errno.into()))?;
        self.directory(&root, &path, &stat)
    }

    fn directory<E: From<WalkError>>(&mut self, dir: &Dir, path: &TreePath, stat: &Stat) -> Result<(), E>
    where
        V: FnMut(Found<'_>) -> Result<(), E>,
    {
        if path.components().len() > Limits::DEPTH {
            return Err(WalkError::TooDeep(path.clone()).into());
        }
        let read = |source| WalkError::Read { path: path.clone(), source };
        let file = File::from(std::os::fd::OwnedFd::from(dir.try_clone().map_err(read)?));
        self.found(path, Kind::Directory, stat, Some(file))?;
        let mut entries = dir.entries().map_err(read)?;
        // Counted before they are looked at: the lists of all directories above are held meanwhile.
        self.entries = self.entries.saturating_add(entries.len() as u64);
        if self.entries > self.limits.entries {
            return Err(WalkError::TooMany(self.limits.entries).into());
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        for entry in entries {
            self.entry(dir, &entry.name, &path.join(&entry.name))?;
        }
        Ok(())
    }

    fn entry<E: From<WalkError>>(&mut self, dir: &Dir, name: &OsStr, path: &TreePath) -> Result<(), E>
    where
        V: FnMut(Found<'_>) -> Result<(), E>,
    {
        let read = |source: io::Error| WalkError::Read { path: path.clone(), source };
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // It went meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            result => result.map_err(|errno| read(errno.into()))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let below = dir.open_dir(name).map_err(read)?;
            return self.directory(&below, path, &stat);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)) {
                return self.found(path, Kind::HardLink(first.clone()), &stat, None);
            }
            let name = path.bytes();
            self.remembered = self.remembered.saturating_add(name.len());
            if self.remembered > MAX_REMEMBERED {
                return Err(WalkError::TooMany(self.entries).into());
            }
            self.seen.insert((stat.st_dev, stat.st_ino), name);
        }
        match kind {
            FileType::RegularFile => {
                // Not to be held up by what takes the file's place meanwhile.
                let file = dir.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(read)?;
                let kind = Kind::File(segments(&file, &stat).map_err(read)?);
                self.found(path, kind, &stat, Some(file.into()))
            }
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(|errno| read(errno.into()))?;
                self.found(path, Kind::SymbolicLink(target.into_bytes()), &stat, None)
            }
            FileType::Fifo => self.found(path, Kind::Fifo, &stat, None),
            FileType::CharacterDevice if stat.st_rdev == 0 => self.found(path, Kind::Whiteout, &stat, None),
            FileType::CharacterDevice | FileType::BlockDevice => self.found(path, Kind::Device, &stat, None),
            _ => {
                self.omissions.add(path, LeftOut::Socket);
                Ok(())
            }
        }
    }

    fn found<E: From<WalkError>>(
        &mut self,
        path: &TreePath,
        kind: Kind,
        stat: &Stat,
        file: Option<File>,
    ) -> Result<(), E>
    where
        V: FnMut(Found<'_>) -> Result<(), E>,
    {
        let size = if matches!(kind, Kind::File(_)) { stat.st_size.cast_unsigned() } else { 0 };
        let mut member = Member {
            name: path.bytes(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid.into(),
            gid: stat.st_gid.into(),
            modified: Time {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
            },
            size,
            xattrs: Vec::new(),
            acl_access: None,
            acl_default: None,
        };
        if let Some(file) = &file {
            let read = |source| WalkError::Read { path: path.clone(), source };
            read_xattrs(file, &mut member).map_err(read)?;
        }
        (self.visit)(Found { path, member, file })
    }
}

/// Another description of the same directory, to read from, with its own lock and its own place in the listing.
pub(crate) fn reopen(dir: &Dir) -> io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Dir::from_fd(openat(dir, ".", flags, Mode::empty())?)
}

/// What of a file is no hole; `None` if it has none.
fn segments(file: &std::os::fd::OwnedFd, stat: &Stat) -> io::Result<Option<Vec<Segment>>> {
    let size = stat.st_size.cast_unsigned();
    // Without a hole it has a block for every byte.
    if stat.st_blocks.cast_unsigned().saturating_mul(512) >= size {
        return Ok(None);
    }
    let mut segments = Vec::new();
    let mut end = 0;
    while segments.len() < Limits::SEGMENTS {
        let offset = match seek(file, SeekFrom::Data(end)) {
            // No data from here on.
            Err(Errno::NXIO) => break,
            // Not known of this file system.
            Err(Errno::INVAL) => return Ok(None),
            result => result?,
        };
        end = seek(file, SeekFrom::Hole(offset))?.min(size);
        if offset >= end {
            break;
        }
        segments.push(Segment { offset, length: end.saturating_sub(offset) });
    }
    let all = [Segment { offset: 0, length: size }];
    Ok(if segments.len() == Limits::SEGMENTS || segments == all { None } else { Some(segments) })
}

/// The pieces of a file that hold data.
pub(crate) fn pieces(member: &Member) -> Vec<Segment> {
    match &member.kind {
        Kind::File(Some(segments)) => segments.clone(),
        Kind::File(None) => vec![Segment { offset: 0, length: member.size }],
        _ => Vec::new(),
    }
}
