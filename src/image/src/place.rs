//! Members become files below one directory, and nowhere else.
//!
//! An attacker who writes a source could want to write outside of the directory, or into it by a way that is not its
//! name: through a link that an earlier member made, by `..`, by an absolute name, by replacing a directory by a link
//! after it was checked. He can't: every parent is opened from the root in one step that refuses links and mounts, what
//! is made is made by one name in a directory that is held open, nothing is opened that was there before, and no
//! directory is ever replaced. He could want to fill the disk: what is free is looked at while data are written.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use cgrant_sys::Dir;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, fsetxattr, fstatvfs, ftruncate, linkat, mknodat, symlinkat,
};
use rustix::io::Errno;

use crate::acl::{Acl, BadAcl, Whose};
use crate::archive::{Kind, Member, Time};
use crate::attributes::{Attributes, ForeignOwner, LeftOut, NamedAcl, set_modified, set_modified_at};
use crate::limits::Limits;
use crate::path::{BadPath, TreePath, shown};
use crate::walk::reopen;

/// How much is written between two looks at what is free.
const LOOK_BYTES: u64 = 16 << 20;
/// How many entries are made between two looks at what is free.
const LOOK_ENTRIES: u64 = 2048;
/// How many things that were left out are told one by one.
const MAX_TOLD: usize = 200;
/// Most bytes of directories' names that are remembered.
const MAX_REMEMBERED: usize = 64 << 20;
/// Most access control lists that name somebody.
const MAX_NAMED: usize = 4096;
/// Largest list of users or groups of a tree that is looked into, in bytes.
const MAX_ACCOUNTS: usize = 1 << 20;
/// Size of pieces in which data are written.
pub(crate) const PIECE: usize = 1 << 16;

/// Why a member can't be placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Its name is no way into the tree.
    #[error("the name `{name}` is refused: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: BadPath,
    },
    /// Something on the way to it is a link, a file or a mount.
    #[error("`{0}` is below something that is no directory (a link, perhaps), which is refused")]
    NotBelowDirectory(TreePath),
    /// A directory would be replaced, or something else by a directory.
    #[error("`{0}` comes twice, once as a directory and once as something else, which is refused")]
    Replaces(TreePath),
    /// A hard link to nothing that was there before it.
    #[error("`{path}` is a hard link to `{target}`, which is no file that came before it")]
    NoTarget {
        /// The link.
        path: TreePath,
        /// What it names.
        target: TreePath,
    },
    /// Its owner is not of the container's range.
    #[error("`{path}` belongs to the id {id}; a container has the ids 0 to {}", ids.saturating_sub(1))]
    Owner {
        /// The file.
        path: TreePath,
        /// Its uid or gid.
        id: u64,
        /// How many ids there are.
        ids: u32,
    },
    /// More would leave too little free for everybody else.
    #[error(
        "the file system is nearly full ({free} bytes are free, {keep} must stay so): make room, or use another data directory"
    )]
    NearlyFull {
        /// How many bytes are free.
        free: u64,
        /// How many bytes stay free.
        keep: u64,
    },
    /// The file system is full, or out of inodes.
    #[error("the file system is full: make room, or use another data directory")]
    Full,
    /// The account's quota is reached.
    #[error("the disk quota of your account is reached: make room, or ask the administrator for more")]
    Quota,
    /// The kernel refused a step.
    #[error("`{path}` could not be made")]
    Make {
        /// The file.
        path: TreePath,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What was left out of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Omissions {
    /// How many things.
    pub count: u64,
    /// The first of them.
    pub first: Vec<(TreePath, LeftOut)>,
}

impl Omissions {
    pub(crate) fn add(&mut self, path: &TreePath, what: LeftOut) {
        self.count = self.count.saturating_add(1);
        if self.first.len() < MAX_TOLD {
            self.first.push((path.clone(), what));
        }
    }
}

/// Where the data of a file come from.
pub(crate) trait Content {
    /// Why they may not come.
    type Error: From<PlaceError>;

    /// Puts the data of `member` into `file`, which is empty. Tells `wrote` before each piece how long it is.
    fn fill(
        &mut self,
        file: &File,
        member: &Member,
        wrote: &mut dyn FnMut(u64) -> Result<(), PlaceError>,
    ) -> Result<(), Self::Error>;
}

/// A tree that is being made.
pub(crate) struct Placer {
    root: Dir,
    limits: Limits,
    /// This is the upper layer of an overlay: its whiteouts and attributes mean something.
    overlay: bool,
    space: Space,
    /// The directory of the last member: most members follow their siblings.
    parent: Option<(Vec<OsString>, Dir)>,
    /// Directories' times are set last, since each entry that is made changes them.
    directories: HashMap<Vec<u8>, Time>,
    /// How many bytes the names of those have.
    remembered: usize,
    /// Access control lists that can be set when it is known who is who.
    named: Vec<(TreePath, NamedAcl)>,
    pub omissions: Omissions,
    pub entries: u64,
    pub bytes: u64,
}

impl Placer {
    /// `root` is an empty directory of our own.
    pub fn new(root: &Dir, limits: Limits, overlay: bool) -> io::Result<Self> {
        let root = reopen(root)?;
        let space = Space::of(&root, limits.keep_free)?;
        Ok(Self {
            root,
            limits,
            overlay,
            space,
            parent: None,
            directories: HashMap::new(),
            remembered: 0,
            named: Vec::new(),
            omissions: Omissions::default(),
            entries: 0,
            bytes: 0,
        })
    }

    /// Makes one member.
    pub fn place<C: Content>(&mut self, member: &Member, content: &mut C) -> Result<(), C::Error> {
        let path = tree_path(&member.name)?;
        if self.entries == 0 {
            self.space.look()?;
        }
        self.entries = self.entries.saturating_add(1);
        self.space.entry()?;
        self.space.bytes(attributes_size(member))?;
        let left_out = match member.kind {
            Kind::Device => Some(LeftOut::Device),
            Kind::Whiteout if !self.overlay => Some(LeftOut::Whiteout),
            _ => None,
        };
        if let Some(left_out) = left_out {
            self.omissions.add(&path, left_out);
            return Ok(());
        }
        let mut omitted = Vec::new();
        let attributes =
            Attributes::of(member, self.limits.ids, self.overlay, &mut |left_out| omitted.push(left_out));
        let attributes = attributes.map_err(|ForeignOwner(id)| PlaceError::Owner {
            path: path.clone(),
            id,
            ids: self.limits.ids,
        })?;
        match &member.kind {
            Kind::Directory => self.directory(&path, &attributes, &mut omitted)?,
            Kind::File(_) => self.file(&path, member, &attributes, content, &mut omitted)?,
            Kind::HardLink(target) => self.hard_link(&path, target)?,
            Kind::SymbolicLink(target) => {
                self.special(&path, &attributes, &mut |dir, name| symlinkat(target.as_slice(), dir, name))?;
            }
            Kind::Fifo => self.node(&path, &attributes, FileType::Fifo)?,
            Kind::Whiteout | Kind::Device => self.node(&path, &attributes, FileType::CharacterDevice)?,
        }
        for left_out in omitted {
            self.omissions.add(&path, left_out);
        }
        for acl in attributes.named {
            if self.named.len() < MAX_NAMED {
                self.named.push((path.clone(), acl));
            } else {
                self.omissions.add(&path, LeftOut::Acl(BadAcl::Named));
            }
        }
        Ok(())
    }

    /// Sets what could not be set before everything was there.
    pub fn finish(mut self) -> Result<(Omissions, u64, u64), PlaceError> {
        if !self.named.is_empty() {
            self.set_named();
        }
        self.set_times()?;
        Ok((self.omissions, self.entries, self.bytes))
    }

    /// Gives directories the times that they are remembered with.
    fn set_times(&mut self) -> Result<(), PlaceError> {
        self.remembered = 0;
        for (name, modified) in std::mem::take(&mut self.directories) {
            let path = if name.is_empty() { TreePath::default() } else { tree_path(&name)? };
            let dir = self.open(&path).map_err(|source| failed(&path, source))?;
            set_modified(&dir, modified).map_err(|source| failed(&path, source))?;
        }
        Ok(())
    }

    /// Sets the lists that name users and groups, by the numbers that these have in the tree.
    fn set_named(&mut self) {
        let accounts = Accounts::of(&self.root);
        for (path, NamedAcl { xattr, text }) in std::mem::take(&mut self.named) {
            let acl = Acl::from_text_with(&text, self.limits.ids, &|whose, name| accounts.find(whose, name));
            let set = acl.and_then(|acl| {
                // It may have been replaced since; a pipe is not waited for.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = match path.components() {
                    [] => self.root.try_clone().map(OwnedFd::from),
                    names => self.root.open_file_below(names, flags),
                };
                let set = |file| Ok(fsetxattr(&file, xattr, &acl.to_bytes(), XattrFlags::empty())?);
                file.and_then(set).map_err(|_| BadAcl::Named)
            });
            if let Err(error) = set {
                self.omissions.add(&path, LeftOut::Acl(error));
            }
        }
    }

    fn open(&self, path: &TreePath) -> io::Result<Dir> {
        match path.components() {
            [] => self.root.try_clone(),
            names => self.root.open_below(names),
        }
    }

    fn directory(
        &mut self,
        path: &TreePath,
        attributes: &Attributes,
        omitted: &mut Vec<LeftOut>,
    ) -> Result<(), PlaceError> {
        let dir = match path.split() {
            None => self.root.try_clone().map_err(|source| failed(path, source))?,
            Some((parents, name)) => {
                let parent = self.parent(path, parents)?;
                match parent.make_dir(name, 0o700) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(failed(path, error));
                    }
                    _ => (),
                }
                parent.open_dir(name).map_err(|error| match Errno::from_io_error(&error) {
                    Some(Errno::LOOP | Errno::NOTDIR) => PlaceError::Replaces(path.clone()),
                    _ => failed(path, error),
                })?
            }
        };
        let result = attributes.apply(&dir, &mut |left_out| omitted.push(left_out));
        result.map_err(|source| failed(path, source))?;
        let name = path.bytes();
        self.remembered = self.remembered.saturating_add(name.len());
        self.directories.insert(name, attributes.modified);
        // Names that are made to fill the memory cost the directories' times, no more.
        if self.remembered > MAX_REMEMBERED { self.set_times() } else { Ok(()) }
    }

    fn file<C: Content>(
        &mut self,
        path: &TreePath,
        member: &Member,
        attributes: &Attributes,
        content: &mut C,
        omitted: &mut Vec<LeftOut>,
    ) -> Result<(), C::Error> {
        let file = self.make(path, &mut |dir, name| {
            dir.open_file(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL).map(File::from)
        })?;
        let (space, bytes) = (&mut self.space, &mut self.bytes);
        content.fill(&file, member, &mut |count| {
            *bytes = bytes.saturating_add(count);
            space.bytes(count)
        })?;
        let end = || -> io::Result<()> {
            ftruncate(&file, member.size)?;
            attributes.apply(&file, &mut |left_out| omitted.push(left_out))
        };
        Ok({ end }().map_err(|source| failed(path, source))?)
    }

    fn hard_link(&mut self, path: &TreePath, target: &[u8]) -> Result<(), PlaceError> {
        let target = tree_path(target)?;
        if target == *path {
            // It is there already, and would be removed to make room for itself.
            return Ok(());
        }
        let none = || PlaceError::NoTarget { path: path.clone(), target: target.clone() };
        let Some((parents, last)) = target.split() else { return Err(none()) };
        let from = match parents {
            [] => self.root.try_clone(),
            names => self.root.open_below(names),
        };
        let from = from.map_err(|_| none())?;
        let stat = rustix::fs::statat(&from, last, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| none())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(none());
        }
        self.make(path, &mut |dir, name| Ok(linkat(&from, last, dir, name, AtFlags::empty())?))
    }

    fn node(&mut self, path: &TreePath, attributes: &Attributes, kind: FileType) -> Result<(), PlaceError> {
        let make = &mut |dir: &Dir, name: &std::ffi::OsStr| mknodat(dir, name, kind, Mode::RUSR, 0);
        self.special(path, attributes, make)?;
        let Some((parents, name)) = path.split() else { return Ok(()) };
        let dir = self.parent(path, parents)?;
        let set =
            dir.chmod(name, attributes.mode).and_then(|()| set_modified_at(dir, name, attributes.modified));
        set.map_err(|source| failed(path, source))
    }

    /// What is made by its name and can't be opened.
    fn special(
        &mut self,
        path: &TreePath,
        attributes: &Attributes,
        make: &mut dyn FnMut(&Dir, &std::ffi::OsStr) -> Result<(), Errno>,
    ) -> Result<(), PlaceError> {
        self.make(path, &mut |dir, name| {
            make(dir, name)?;
            dir.chown(name, attributes.uid, attributes.gid)?;
            set_modified_at(dir, name, attributes.modified)
        })
    }

    /// Makes something at `path`; what is there and no directory makes room for it.
    fn make<T>(
        &mut self,
        path: &TreePath,
        make: &mut dyn FnMut(&Dir, &std::ffi::OsStr) -> io::Result<T>,
    ) -> Result<T, PlaceError> {
        let (parents, name) = path.split().ok_or_else(|| PlaceError::Replaces(path.clone()))?;
        let dir = self.parent(path, parents)?;
        match make(dir, name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            result => return result.map_err(|source| failed(path, source)),
        }
        dir.remove_file(name).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::ISDIR) => PlaceError::Replaces(path.clone()),
            _ => failed(path, error),
        })?;
        make(dir, name).map_err(|source| failed(path, source))
    }

    /// The directory of a member; made if it did not come before.
    fn parent(&mut self, path: &TreePath, names: &[OsString]) -> Result<&Dir, PlaceError> {
        if self.parent.as_ref().is_none_or(|(held, _)| held != names) {
            let dir = self.open_parent(names).map_err(|error| match Errno::from_io_error(&error) {
                Some(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                    PlaceError::NotBelowDirectory(path.clone())
                }
                _ => failed(path, error),
            })?;
            self.parent = Some((names.to_vec(), dir));
        }
        match &self.parent {
            Some((_, dir)) => Ok(dir),
            None => Ok(&self.root),
        }
    }

    fn open_parent(&mut self, names: &[OsString]) -> io::Result<Dir> {
        if names.is_empty() {
            return self.root.try_clone();
        }
        match self.root.open_below(names) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            result => return result,
        }
        let mut dir = self.root.try_clone()?;
        for name in names {
            match dir.make_dir(name, 0o700) {
                Ok(()) => dir.chmod(name, 0o755)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                Err(error) => return Err(error),
            }
            dir = dir.open_dir(name)?;
        }
        Ok(dir)
    }
}

/// The users and groups of a tree.
struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// What can't be read names nobody.
    fn of(root: &Dir) -> Self {
        let read = |name| root.read_below(&["etc", name], MAX_ACCOUNTS).unwrap_or_default();
        Self { passwd: read("passwd"), group: read("group") }
    }

    fn find(&self, whose: Whose, name: &str) -> Option<u32> {
        let text = if whose == Whose::User { &self.passwd } else { &self.group };
        let mut lines = text.lines().map(|line| line.split(':'));
        lines.find_map(
            |mut fields| if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None },
        )
    }
}

/// What is free on the file system that is written to.
#[derive(Debug)]
pub(crate) struct Space {
    root: OwnedFd,
    keep: u64,
    /// Written since the last look.
    bytes: u64,
    entries: u64,
}

impl Space {
    /// Of the file system that `dir` is on; `keep` bytes of it stay free.
    pub fn of(dir: &Dir, keep: u64) -> io::Result<Self> {
        Ok(Self { root: reopen(dir)?.into(), keep, bytes: 0, entries: 0 })
    }

    /// So many bytes are about to be written.
    pub fn bytes(&mut self, count: u64) -> Result<(), PlaceError> {
        self.bytes = self.bytes.saturating_add(count);
        if self.bytes >= LOOK_BYTES { self.look() } else { Ok(()) }
    }

    fn entry(&mut self) -> Result<(), PlaceError> {
        self.entries = self.entries.saturating_add(1);
        if self.entries >= LOOK_ENTRIES { self.look() } else { Ok(()) }
    }

    /// Is there enough room?
    pub fn look(&mut self) -> Result<(), PlaceError> {
        (self.bytes, self.entries) = (0, 0);
        let root = TreePath::default();
        let space = fstatvfs(&self.root).map_err(|errno| failed(&root, errno.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        // Those that live in memory without a bound count no blocks.
        if space.f_blocks > 0 && free < self.keep {
            return Err(PlaceError::NearlyFull { free, keep: self.keep });
        }
        // Some file systems count no inodes.
        if space.f_files > 0 && space.f_favail < LOOK_ENTRIES { Err(PlaceError::Full) } else { Ok(()) }
    }
}

/// Bytes of what a member has beside its data: file systems keep up to 64 KiB of each attribute.
fn attributes_size(member: &Member) -> u64 {
    let lists = [&member.acl_access, &member.acl_default].into_iter().flatten();
    let xattrs = member.xattrs.iter().map(|(name, value)| name.len().saturating_add(value.len()));
    lists.map(Vec::len).chain(xattrs).fold(0, |sum, length| sum.saturating_add(length as u64))
}

fn tree_path(name: &[u8]) -> Result<TreePath, PlaceError> {
    TreePath::parse(name).map_err(|reason| PlaceError::Name { name: shown(name), reason })
}

/// A step that the kernel refused; a full disk has words of its own.
pub(crate) fn failed(path: &TreePath, source: io::Error) -> PlaceError {
    match Errno::from_io_error(&source) {
        Some(Errno::NOSPC) => PlaceError::Full,
        Some(Errno::DQUOT) => PlaceError::Quota,
        _ => PlaceError::Make { path: path.clone(), source },
    }
}

/// Writes a piece of a file; pieces of zeros become holes.
pub(crate) fn write_piece(file: &File, piece: &[u8], offset: u64) -> io::Result<()> {
    // In steps of whole pieces: what is written at other places is seldom zeros.
    if piece.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    file.write_all_at(piece, offset)
}
