//! Directories by descriptor: one name at a time, never out of the directory, never through a link.
//!
//! Every name is one component: no `/`, no `.` or `..`, no NUL, not empty. What is opened is opened with
//! `openat2(2)` and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV`, so neither
//! a link nor a mount that somebody put there leads anywhere else. Names may be any bytes (`&str` or `OsString`):
//! the holder of a cgroup chooses the names below it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, RawDir, ResolveFlags, Stat, Uid, chmodat,
    chownat, flock, fstat, fsync, mkdirat, openat, openat2, renameat, statat, unlinkat,
};
use rustix::io::{Errno, read, retry_on_intr, write};

/// Most entries that a directory may have to be listed.
pub const MAX_ENTRIES: usize = 1 << 20;

/// How much of a directory's entries is read at once, in bytes; room for many of the longest names.
const LISTED_AT_ONCE: usize = 32 * 1024;

/// How a step from a directory to one of its entries is resolved.
const STEP: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

const OPEN_DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What files that this module writes are named until they are whole.
const UNFINISHED: &str = ".new";

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// A lock on a file, held until this is dropped or its process ends.
#[derive(Debug)]
pub struct LockGuard {
    _file: OwnedFd,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// Anything else, links included.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name: any bytes but `/` and NUL.
    pub name: OsString,
    /// What it was when the directory was read.
    pub kind: EntryKind,
}

impl Dir {
    /// Opens a directory by an absolute path of our own, at start. Links are followed: whoever may change that path is trusted.
    ///
    /// # Errors
    /// `EINVAL` if the path is not absolute; those of `openat(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.is_absolute() {
            return Err(Errno::INVAL.into());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    /// Takes a descriptor that is a directory. It must have been opened for reading to be listed, locked or synced.
    ///
    /// Asks the file system: a descriptor of a FUSE file may make this wait for its server.
    ///
    /// # Errors
    /// `ENOTDIR`; those of `fstat(2)`.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Self(fd))
    }

    /// Another descriptor of the same directory.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Opens a directory in it.
    ///
    /// # Errors
    /// `EINVAL` for a name that is not one component; `ENOENT`, `ENOTDIR`, `ELOOP` for a link, `EXDEV` for a mount.
    pub fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        Ok(Self(self.step(name.as_ref(), OPEN_DIR, Mode::empty())?))
    }

    /// Opens a directory below it, by the names on the way there, in one call. None of them may be a link or a mount.
    ///
    /// # Errors
    /// As [`Dir::open_dir`]; `EINVAL` also without a name.
    pub fn open_below<N: AsRef<OsStr>>(&self, names: &[N]) -> io::Result<Self> {
        Ok(Self(self.resolve(&joined(names)?, OPEN_DIR, Mode::empty())?))
    }

    /// Opens a file below it that is there, by the names on the way there, in one call. None of them may be a link or a mount.
    ///
    /// # Errors
    /// As [`Dir::open_below`].
    pub fn open_file_below<N: AsRef<OsStr>>(&self, names: &[N], flags: OFlags) -> io::Result<OwnedFd> {
        Ok(self.resolve(&joined(names)?, opening(flags.difference(OFlags::CREATE)), Mode::empty())?)
    }

    /// The whole text of a file below it of at most `max` bytes, by the names on the way there.
    ///
    /// # Errors
    /// As [`Dir::read`] and [`Dir::open_below`].
    pub fn read_below<N: AsRef<OsStr>>(&self, names: &[N], max: usize) -> io::Result<String> {
        let file = self.open_file_below(names, OFlags::RDONLY | OFlags::NONBLOCK)?;
        String::from_utf8(read_bounded(&file, max)?).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Makes a directory below it (mode `mode` less the umask), by the names on the way there, in one call.
    ///
    /// mkdirat(2) can't be told to refuse links and mounts on the way. So this is for trees in which nobody but
    /// ourselves makes what is on the way, or there are no links, as in cgroupfs.
    ///
    /// # Errors
    /// `EINVAL` for a bad name or none; those of `mkdirat(2)`: `EEXIST` if there is anything of this name.
    pub fn make_below<N: AsRef<OsStr>>(&self, names: &[N], mode: u32) -> io::Result<()> {
        Ok(mkdirat(&self.0, &joined(names)?, Mode::from_raw_mode(mode))?)
    }

    /// Removes an empty directory (or a cgroup) below it, by the names on the way there, in one call. For such trees as
    /// [`Dir::make_below`].
    ///
    /// # Errors
    /// `EINVAL` for a bad name or none; as [`Dir::remove_dir`].
    pub fn remove_below<N: AsRef<OsStr>>(&self, names: &[N]) -> io::Result<()> {
        Ok(unlinkat(&self.0, &joined(names)?, AtFlags::REMOVEDIR)?)
    }

    /// Gives an entry below it to `uid` and `gid`, by the names on the way there, in one call. For such trees as
    /// [`Dir::make_below`].
    ///
    /// # Errors
    /// `EINVAL` for a bad name or none; those of `fchownat(2)`.
    pub fn chown_below<N: AsRef<OsStr>>(&self, names: &[N], uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(chownat(&self.0, &joined(names)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the mode of an entry below it, by the names on the way there, in one call. For such trees as
    /// [`Dir::make_below`] in which that entry is no link: one is followed.
    ///
    /// # Errors
    /// `EINVAL` for a bad name or none; those of `fchmodat(2)`.
    pub fn chmod_below<N: AsRef<OsStr>>(&self, names: &[N], mode: u32) -> io::Result<()> {
        Ok(chmodat(&self.0, &joined(names)?, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    /// Makes a directory (mode `mode` less the umask) and opens it.
    ///
    /// # Errors
    /// As [`Dir::open_dir`], and those of `mkdirat(2)`: `EEXIST` if there is anything of this name.
    pub fn create_dir(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        self.make_dir(name.as_ref(), mode)?;
        self.open_dir(name)
    }

    /// Makes a directory (mode `mode` less the umask) without opening it.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `mkdirat(2)`: `EEXIST` if there is anything of this name.
    pub fn make_dir(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
        Ok(mkdirat(&self.0, component(name.as_ref())?, Mode::from_raw_mode(mode))?)
    }

    /// Removes an empty directory (or a cgroup).
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `unlinkat(2)`: `ENOTEMPTY`, `EBUSY` for a cgroup that is not empty, `ENOTDIR`.
    pub fn remove_dir(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(&self.0, component(name.as_ref())?, AtFlags::REMOVEDIR)?)
    }

    /// Removes a file, or a link itself.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `unlinkat(2)`.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(unlinkat(&self.0, component(name.as_ref())?, AtFlags::empty())?)
    }

    /// The whole text of a file of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Dir::open_file`]; `EFBIG` if there is more; `InvalidData` if it is not UTF-8.
    pub fn read(&self, file: impl AsRef<OsStr>, max: usize) -> io::Result<String> {
        String::from_utf8(self.read_bytes(file, max)?).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The whole content of a file of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Dir::open_file`]; `EFBIG` if there is more.
    pub fn read_bytes(&self, file: impl AsRef<OsStr>, max: usize) -> io::Result<Vec<u8>> {
        // Non-blocking so that a FIFO can't hold us up.
        read_bounded(&self.open_file(file, OFlags::RDONLY | OFlags::NONBLOCK)?, max)
    }

    /// Writes `value` into an existing file with one `write(2)`, as kernel interfaces want it. Does not truncate.
    ///
    /// # Errors
    /// As [`Dir::open_file`]; the kernel's verdict on the value; `WriteZero` if it took only a part.
    pub fn write(&self, file: impl AsRef<OsStr>, value: &str) -> io::Result<()> {
        let file = self.open_file(file, OFlags::WRONLY)?;
        if retry_on_intr(|| write(&file, value.as_bytes()))? == value.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Makes or replaces a file (mode 0600): whoever reads it, after a crash as well, finds the old content or the new one.
    /// With `durable` it is on the disk when this returns, and its name is.
    ///
    /// A crash may leave an unfinished file behind; [`Dir::sweep`] removes those.
    ///
    /// # Errors
    /// Those of `openat2(2)`, `write(2)`, `fsync(2)`, `renameat(2)`: `ENOSPC`, `EROFS` … On an error the old file is as it was,
    /// except when the last `fsync` of the directory failed: then the new one is there, perhaps not for good.
    pub fn write_atomic(&self, file: impl AsRef<OsStr>, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.replace(file.as_ref(), |unfinished| self.write_new(unfinished, bytes, durable))?;
        if durable { self.sync() } else { Ok(()) }
    }

    /// Makes a file (mode 0600) that is not there yet, under its name from the beginning: a crash may leave it cut short, and
    /// whoever reads it has to know what that means.
    ///
    /// # Errors
    /// Those of `openat2(2)` and `write(2)`: `EEXIST` if there is anything of this name. On another one there is no file then.
    pub fn write_first(&self, file: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<()> {
        let file = file.as_ref();
        let result = self.write_new(file, bytes, false);
        if matches!(&result, Err(error) if error.kind() != io::ErrorKind::AlreadyExists) {
            // Nothing more can be done about a file that can't be removed.
            let _ = self.remove_file(file);
        }
        result
    }

    /// Lets `write` make a file under another name, which then takes the place of `file`.
    fn replace(&self, file: &OsStr, write: impl FnOnce(&OsStr) -> io::Result<()>) -> io::Result<()> {
        let file = component(file)?;
        let mut unfinished = OsString::from(".");
        unfinished.push(file);
        unfinished.push(format!(".{:016x}{UNFINISHED}", crate::process::random_u64()?));
        let result =
            write(&unfinished).and_then(|()| Ok(renameat(&self.0, unfinished.as_os_str(), &self.0, file)?));
        if result.is_err() {
            // Nothing more can be done about a file that can't be removed; `sweep` will meet it.
            let _ = self.remove_file(&unfinished);
        }
        result
    }

    /// As [`Dir::write_atomic`] without `durable`, but everybody may read the file (mode 0644), from the moment it has its name.
    ///
    /// # Errors
    /// As [`Dir::write_atomic`], and those of `fchmod(2)`.
    pub fn write_readable(&self, file: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<()> {
        self.replace(file.as_ref(), |unfinished| {
            self.write_new(unfinished, bytes, false)?;
            self.chmod(unfinished, 0o644)
        })
    }

    /// Gives an entry another name, in the place of whatever has that. Whoever looks, after a crash as well, finds one of the names.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `renameat(2)`: `ENOENT` if it is not there.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(renameat(&self.0, component(from.as_ref())?, &self.0, component(to.as_ref())?)?)
    }

    /// Puts the directory itself on the disk: the names that were made, changed and removed in it.
    ///
    /// # Errors
    /// Those of `fsync(2)`.
    pub fn sync(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| fsync(&self.0))?)
    }

    /// Removes what a crash in [`Dir::write_atomic`] left. To be called at start, while nobody writes here.
    ///
    /// # Errors
    /// Those of listing and of `unlinkat(2)`.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in self.entries()? {
            let name = entry.name.as_bytes();
            if entry.kind == EntryKind::File
                && name.starts_with(b".")
                && name.ends_with(UNFINISHED.as_bytes())
            {
                self.remove_file(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Gives an entry, or with the empty name the directory itself, to `uid` and `gid`; either stays what it is if that is
    /// [`u32::MAX`], as in `chown(2)`. Never follows a link.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `fchownat(2)`.
    pub fn chown(&self, file: impl AsRef<OsStr>, uid: u32, gid: u32) -> io::Result<()> {
        let is_given = |id: &u32| *id != u32::MAX;
        let (uid, gid) = (Some(uid).filter(is_given), Some(gid).filter(is_given));
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        let file = file.as_ref();
        if file.is_empty() {
            return Ok(chownat(&self.0, "", uid, gid, AtFlags::EMPTY_PATH)?);
        }
        Ok(chownat(&self.0, component(file)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the mode of an entry, or with the empty name of the directory itself. Never follows a link.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; `ELOOP` for a link; those of `fchmodat(2)`.
    pub fn chmod(&self, file: impl AsRef<OsStr>, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        let file = file.as_ref();
        if file.is_empty() {
            return Ok(chmodat(CWD, magic_link(&self.0), mode, AtFlags::empty())?);
        }
        // fchmodat(2) can't be told not to follow links before kernel 6.6: pin the entry, then go by the descriptor.
        let entry = self.step(file, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        Ok(chmodat(CWD, magic_link(&entry), mode, AtFlags::empty())?)
    }

    /// Is there an entry of this name? Links count as themselves.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; those of `fstatat(2)` but `ENOENT`.
    pub fn exists(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        match statat(&self.0, component(name.as_ref())?, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What an entry is, and whose. Links count as themselves. Of what is mounted there its file system is not asked anything, which
    /// may be somebody's who does not answer.
    ///
    /// # Errors
    /// `EINVAL` for a bad name; `ENOENT`; `EXDEV` for a mount; those of `fstat(2)`.
    pub fn look(&self, name: impl AsRef<OsStr>) -> io::Result<Stat> {
        // With both flags a link at the end is opened itself, whatever else is said of links (openat2(2)).
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fstat(self.step(name.as_ref(), flags, Mode::empty())?)?)
    }

    /// The directory's inode number; of a cgroup its kernel id.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(fstat(&self.0)?.st_ino)
    }

    /// Owner and group of the directory.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn owner(&self) -> io::Result<(u32, u32)> {
        let stat = fstat(&self.0)?;
        Ok((stat.st_uid, stat.st_gid))
    }

    /// Can nobody but root make anything in it, by its owner and mode?
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn is_roots(&self) -> io::Result<bool> {
        Ok(only_root_writes(&fstat(&self.0)?))
    }

    /// Opens an entry. Links are refused, `O_CLOEXEC` and `O_NOCTTY` are added; with `O_CREAT` the mode is 0600.
    ///
    /// # Errors
    /// As [`Dir::open_dir`].
    pub fn open_file(&self, name: impl AsRef<OsStr>, flags: OFlags) -> io::Result<OwnedFd> {
        let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        Ok(self.step(name.as_ref(), opening(flags), mode)?)
    }

    /// The names of all entries, in no order.
    ///
    /// # Errors
    /// As [`Dir::entries`]; `InvalidData` if a name is not UTF-8.
    pub fn names(&self) -> io::Result<Vec<String>> {
        self.entries()?.into_iter().map(|entry| utf8(entry.name)).collect()
    }

    /// The names of all directories in it, in no order.
    ///
    /// # Errors
    /// As [`Dir::names`].
    pub fn dirs(&self) -> io::Result<Vec<String>> {
        let mut dirs = Vec::new();
        self.each_entry(|name, kind| {
            if kind == EntryKind::Directory {
                dirs.push(name.to_str().ok_or(io::ErrorKind::InvalidData)?.to_owned());
            }
            Ok(())
        })?;
        Ok(dirs)
    }

    /// All entries with what they are, in no order, without `.` and `..`.
    ///
    /// # Errors
    /// Those of `openat(2)` and `getdents64(2)`; `EFBIG` past [`MAX_ENTRIES`].
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.each_entry(|name, kind| {
            entries.push(Entry { name: name.to_owned(), kind });
            Ok(())
        })?;
        Ok(entries)
    }

    fn each_entry(&self, mut take: impl FnMut(&OsStr, EntryKind) -> io::Result<()>) -> io::Result<()> {
        let (mut buffer, mut count) = (Vec::with_capacity(LISTED_AT_ONCE), 0);
        let mut entries =
            RawDir::new(openat(&self.0, ".", OPEN_DIR, Mode::empty())?, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if count == MAX_ENTRIES {
                return Err(Errno::FBIG.into());
            }
            count += 1;
            let kind = match entry.file_type() {
                FileType::Unknown => self.kind_of_entry(name)?,
                known => EntryKind::from(known),
            };
            take(name, kind)?;
        }
        Ok(())
    }

    /// Locks a file (made if there is none) for this alone; waits for whoever has it.
    ///
    /// # Errors
    /// As [`Dir::open_file`]; those of `flock(2)`.
    pub fn lock(&self, file: impl AsRef<OsStr>) -> io::Result<LockGuard> {
        let file = self.open_file(file, OFlags::RDWR | OFlags::CREATE)?;
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(LockGuard { _file: file })
    }

    fn step(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        self.resolve(component(name)?, flags, mode)
    }

    /// `path` is made of nothing but checked components.
    fn resolve(&self, path: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        // EAGAIN: the kernel could not rule out a race with a rename, and asks for another try (openat2(2)).
        for _ in 0..16 {
            match openat2(&self.0, path, flags, mode, STEP) {
                Err(Errno::AGAIN | Errno::INTR) => (),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    fn write_new(&self, name: &OsStr, bytes: &[u8], durable: bool) -> io::Result<()> {
        let file = self.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let written = retry_on_intr(|| write(&file, rest))?;
            rest = rest.get(written..).filter(|_| written > 0).ok_or(io::ErrorKind::WriteZero)?;
        }
        if durable {
            retry_on_intr(|| fsync(&file))?;
        }
        Ok(())
    }

    /// For file systems that do not say in the listing what an entry is.
    fn kind_of_entry(&self, name: &OsStr) -> io::Result<EntryKind> {
        match statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).into()),
            Err(Errno::NOENT) => Ok(EntryKind::Other),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.0
    }
}

impl From<FileType> for EntryKind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File,
            _ => Self::Other,
        }
    }
}

/// The flags that something is opened with.
fn opening(flags: OFlags) -> OFlags {
    // O_PATH with O_NOFOLLOW would open a link itself; without it RESOLVE_NO_SYMLINKS refuses every link.
    let flags = flags.difference(OFlags::NOFOLLOW) | OFlags::CLOEXEC;
    if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOCTTY }
}

/// A path of names that are one component each.
fn joined<N: AsRef<OsStr>>(names: &[N]) -> Result<OsString, Errno> {
    let mut path = OsString::with_capacity(names.iter().map(|name| name.as_ref().len() + 1).sum());
    for name in names {
        if !path.is_empty() {
            path.push("/");
        }
        path.push(component(name.as_ref())?);
    }
    if path.is_empty() { Err(Errno::INVAL) } else { Ok(path) }
}

/// `name` if it is one component of a path.
fn component(name: &OsStr) -> Result<&OsStr, Errno> {
    let bytes = name.as_bytes();
    if bytes.is_empty()
        || bytes == b"."
        || bytes == b".."
        || bytes.iter().any(|byte| matches!(byte, b'/' | 0))
    {
        return Err(Errno::INVAL);
    }
    Ok(name)
}

/// The kernel's own link to what a descriptor of this process names.
fn magic_link(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn utf8(name: OsString) -> io::Result<String> {
    String::from_utf8(name.into_vec()).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Everything that `file` gives from its position on, at most `max` bytes.
/// Is it root's, and can neither others nor a group but root's write to it?
pub(crate) fn only_root_writes(stat: &Stat) -> bool {
    let dangerous = if stat.st_gid == 0 { Mode::WOTH } else { Mode::WOTH | Mode::WGRP };
    stat.st_uid == 0 && !Mode::from_raw_mode(stat.st_mode).intersects(dangerous)
}

pub(crate) fn read_bounded(file: &OwnedFd, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = retry_on_intr(|| read(file, &mut chunk))?;
        let Some(part) = chunk.get(..count).filter(|part| !part.is_empty()) else { return Ok(bytes) };
        if part.len() > max.saturating_sub(bytes.len()) {
            return Err(Errno::FBIG.into());
        }
        bytes.extend_from_slice(part);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn scratch() -> (tempfile::TempDir, Dir) {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        (directory, dir)
    }

    fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<Errno> {
        Errno::from_io_error(&result.unwrap_err())
    }

    #[test]
    fn names_are_one_component() {
        let (directory, dir) = scratch();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        for bad in ["", ".", "..", "/", "d/", "d/x", "../d", "/etc", "d\0"] {
            assert_eq!(errno(dir.open_dir(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.create_dir(bad, 0o755)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.remove_dir(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.remove_file(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.read(bad, 10)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.write(bad, "x")), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.write_atomic(bad, b"x", false)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.exists(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.rename("d", bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.rename(bad, "d")), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.lock(bad)), Some(Errno::INVAL), "{bad:?}");
            if !bad.is_empty() {
                assert_eq!(errno(dir.chown(bad, 0, 0)), Some(Errno::INVAL), "{bad:?}");
                assert_eq!(errno(dir.chmod(bad, 0o700)), Some(Errno::INVAL), "{bad:?}");
            }
        }
        assert_eq!(dir.names().unwrap(), ["d"]);
    }

    #[test]
    fn links_lead_nowhere() {
        let (directory, dir) = scratch();
        let path = directory.path();
        std::fs::create_dir(path.join("d")).unwrap();
        std::fs::write(path.join("f"), "secret").unwrap();
        symlink("d", path.join("to-dir")).unwrap();
        symlink("f", path.join("to-file")).unwrap();
        symlink("missing", path.join("to-nothing")).unwrap();
        symlink("/proc/self/root", path.join("to-root")).unwrap();
        for link in ["to-dir", "to-root"] {
            assert_eq!(errno(dir.open_dir(link)), Some(Errno::LOOP), "{link}");
            let path = dir.open_file(link, OFlags::PATH | OFlags::NOFOLLOW);
            assert_eq!(errno(path), Some(Errno::LOOP), "{link}");
        }
        assert_eq!(errno(dir.read("to-file", 100)), Some(Errno::LOOP));
        assert_eq!(errno(dir.write("to-file", "x")), Some(Errno::LOOP));
        assert_eq!(errno(dir.lock("to-nothing")), Some(Errno::LOOP));
        assert!(!path.join("missing").exists());
        dir.write_atomic("to-file", b"new", false).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("f")).unwrap(), "secret");
        assert_eq!(dir.read("to-file", 3).unwrap(), "new");
        assert!(dir.exists("to-nothing").unwrap());
        dir.remove_file("to-dir").unwrap();
        assert!(dir.exists("d").unwrap());
        assert_eq!(errno(dir.remove_dir("to-root")), Some(Errno::NOTDIR));
    }

    #[test]
    fn several_names_are_as_safe_as_one() {
        let (directory, dir) = scratch();
        let path = directory.path();
        std::fs::create_dir_all(path.join("a/b/c")).unwrap();
        std::os::unix::fs::symlink("b", path.join("a/link")).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path.join("a/b/c")).unwrap());
        assert_eq!(dir.open_below(&["a", "b", "c"]).unwrap().inode().unwrap(), inode);
        assert_eq!(errno(dir.open_below(&["a", "link", "c"])), Some(Errno::LOOP));
        assert_eq!(errno(dir.open_below(&["a", "none", "c"])), Some(Errno::NOENT));
        for bad in [&["a", "..", "a"][..], &["a/b"], &["", "a"], &["/"], &[]] {
            assert_eq!(errno(dir.open_below(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.open_file_below(bad, OFlags::RDONLY)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.make_below(bad, 0o700)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.remove_below(bad)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.chown_below(bad, 0, 0)), Some(Errno::INVAL), "{bad:?}");
            assert_eq!(errno(dir.chmod_below(bad, 0o700)), Some(Errno::INVAL), "{bad:?}");
        }
        std::fs::write(path.join("a/b/f"), "text").unwrap();
        assert_eq!(dir.read_below(&["a", "b", "f"], 4).unwrap(), "text");
        assert_eq!(errno(dir.read_below(&["a", "b", "f"], 3)), Some(Errno::FBIG));
        dir.chmod_below(&["a", "b", "f"], 0o640).unwrap();
        dir.chown_below(&["a", "b", "f"], 12345, 12346).unwrap();
        let meta = std::fs::metadata(path.join("a/b/f")).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid(), meta.gid()), (0o640, 12345, 12346));
        assert_eq!(errno(dir.chown_below(&["a", "none", "f"], 0, 0)), Some(Errno::NOENT));
        assert_eq!(errno(dir.read_below(&["a", "link", "f"], 4)), Some(Errno::LOOP));
        dir.make_below(&["a", "b", "new"], 0o700).unwrap();
        assert_eq!(errno(dir.make_below(&["a", "b", "new"], 0o700)), Some(Errno::EXIST));
        assert_eq!(errno(dir.make_below(&["a", "none", "new"], 0o700)), Some(Errno::NOENT));
        assert_eq!(errno(dir.remove_below(&["a", "b"])), Some(Errno::NOTEMPTY));
        dir.remove_below(&["a", "b", "new"]).unwrap();
        assert_eq!(errno(dir.remove_below(&["a", "b", "new"])), Some(Errno::NOENT));
        let proc = Dir::open(Path::new("/")).unwrap();
        assert_eq!(errno(proc.open_below(&["proc", "self"])), Some(Errno::XDEV));
    }

    #[test]
    fn mode_and_owner_of_a_link_target_stay() {
        let (directory, dir) = scratch();
        let target = directory.path().join("f");
        std::fs::write(&target, "").unwrap();
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o640)).unwrap();
        symlink("f", directory.path().join("link")).unwrap();
        dir.chown("link", 12345, 12346).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().uid(), rustix::process::geteuid().as_raw());
        assert_eq!(errno(dir.chmod("link", 0o777)), Some(Errno::LOOP));
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o640);
        dir.chmod("f", 0o604).unwrap();
        dir.chown("f", 12345, 12346).unwrap();
        let metadata = std::fs::metadata(&target).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12345, 12346, 0o604));
    }

    #[test]
    fn the_empty_name_is_the_directory() {
        let (directory, dir) = scratch();
        dir.chmod("", 0o711).unwrap();
        dir.chown("", 12345, 12346).unwrap();
        let metadata = std::fs::metadata(directory.path()).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12345, 12346, 0o711));
        assert_eq!(dir.owner().unwrap(), (12345, 12346));
        assert_eq!(dir.inode().unwrap(), metadata.ino());
    }

    #[test]
    fn reading_is_bounded() {
        let (directory, dir) = scratch();
        std::fs::write(directory.path().join("f"), vec![b'x'; 10_000]).unwrap();
        assert_eq!(dir.read("f", 10_000).unwrap().len(), 10_000);
        assert_eq!(errno(dir.read("f", 9_999)), Some(Errno::FBIG));
        std::fs::write(directory.path().join("bad"), b"\xff").unwrap();
        assert_eq!(dir.read("bad", 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(dir.read_bytes("bad", 10).unwrap(), b"\xff");
        nix::unistd::mkfifo(&directory.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(dir.read("fifo", 10).unwrap(), "");
    }

    #[test]
    fn writing_needs_the_file() {
        let (directory, dir) = scratch();
        assert_eq!(errno(dir.write("f", "x")), Some(Errno::NOENT));
        std::fs::write(directory.path().join("f"), "abc").unwrap();
        dir.write("f", "x").unwrap();
        assert_eq!(dir.read("f", 10).unwrap(), "xbc");
    }

    #[test]
    fn atomic_writing_leaves_one_file_of_mode_0600() {
        let (directory, dir) = scratch();
        for (durable, content) in [(false, "one"), (true, "two"), (true, "")] {
            dir.write_atomic("f", content.as_bytes(), durable).unwrap();
            assert_eq!(dir.read("f", 10).unwrap(), content);
            assert_eq!(dir.names().unwrap(), ["f"]);
        }
        assert_eq!(std::fs::metadata(directory.path().join("f")).unwrap().mode() & 0o7777, 0o600);
        dir.create_dir("d", 0o700).unwrap();
        assert_eq!(errno(dir.write_atomic("d", b"x", false)), Some(Errno::ISDIR));
        let mut names = dir.names().unwrap();
        names.sort();
        assert_eq!(names, ["d", "f"]);
    }

    #[test]
    fn what_is_there_is_not_written_first() {
        let (directory, dir) = scratch();
        dir.write_first("f", b"one").unwrap();
        assert_eq!(errno(dir.write_first("f", b"two")), Some(Errno::EXIST));
        assert_eq!(dir.read("f", 10).unwrap(), "one");
        assert_eq!(std::fs::metadata(directory.path().join("f")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(errno(dir.write_first("x/f", b"")), Some(Errno::INVAL));
        assert_eq!(dir.names().unwrap(), ["f"]);
    }

    #[test]
    fn what_all_may_read_is_so_under_any_umask() {
        let (directory, dir) = scratch();
        for content in ["one", "two"] {
            dir.write_readable("f", content.as_bytes()).unwrap();
            assert_eq!((dir.read("f", 10).unwrap().as_str(), dir.names().unwrap().len()), (content, 1));
            assert_eq!(std::fs::metadata(directory.path().join("f")).unwrap().mode() & 0o7777, 0o644);
        }
    }

    #[test]
    fn sweeping_takes_unfinished_files_only() {
        let (directory, dir) = scratch();
        for name in [".f.0123456789abcdef.new", "f", ".hidden", "x.new"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        dir.create_dir(".d.new", 0o700).unwrap();
        dir.sweep().unwrap();
        let mut names = dir.names().unwrap();
        names.sort();
        assert_eq!(names, [".d.new", ".hidden", "f", "x.new"]);
    }

    #[test]
    fn listing_tells_kinds_and_takes_any_bytes() {
        let (directory, dir) = scratch();
        let odd = OsString::from_vec(b"\xff\n".to_vec());
        dir.create_dir("d", 0o700).unwrap();
        std::fs::write(directory.path().join("f"), "").unwrap();
        symlink("d", directory.path().join("l")).unwrap();
        assert_eq!(dir.dirs().unwrap(), ["d"]);
        dir.create_dir(&odd, 0o700).unwrap();
        let mut entries = dir.entries().unwrap();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let kinds: Vec<_> = entries.iter().map(|entry| (entry.name.as_bytes(), entry.kind)).collect();
        let expected: [(&[u8], EntryKind); 4] = [
            (b"d", EntryKind::Directory),
            (b"f", EntryKind::File),
            (b"l", EntryKind::Other),
            (b"\xff\n", EntryKind::Directory),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(dir.names().unwrap_err().kind(), io::ErrorKind::InvalidData);
        dir.remove_dir(&odd).unwrap();
        assert_eq!(dir.names().unwrap().len(), 3);
    }

    #[test]
    fn directories_are_made_once_and_removed_empty() {
        let (_directory, dir) = scratch();
        let made = dir.create_dir("d", 0o700).unwrap();
        assert_eq!(errno(dir.create_dir("d", 0o700)), Some(Errno::EXIST));
        assert_eq!(dir.open_dir("d").unwrap().inode().unwrap(), made.inode().unwrap());
        made.write_atomic("f", b"", false).unwrap();
        assert_eq!(errno(dir.remove_dir("d")), Some(Errno::NOTEMPTY));
        assert_eq!(errno(dir.open_dir("f")), Some(Errno::NOENT));
        made.remove_file("f").unwrap();
        dir.remove_dir("d").unwrap();
        assert!(!dir.exists("d").unwrap());
    }

    #[test]
    fn a_lock_has_one_holder() {
        let (_directory, dir) = scratch();
        let guard = dir.lock("lock").unwrap();
        let again = dir.open_file("lock", OFlags::RDWR).unwrap();
        let locked = || flock(&again, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked(), Err(Errno::WOULDBLOCK));
        drop(guard);
        assert_eq!(locked(), Ok(()));
    }

    #[test]
    fn only_directories_are_taken() {
        assert_eq!(
            errno(Dir::from_fd(std::fs::File::open("/dev/null").unwrap().into())),
            Some(Errno::NOTDIR)
        );
        assert!(Dir::from_fd(std::fs::File::open("/").unwrap().into()).is_ok());
        assert_eq!(errno(Dir::open(Path::new("proc"))), Some(Errno::INVAL));
    }
}
