//! A tree becomes another one, without copying data where the file system can share them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cgrant_sys::Dir;
use rustix::fs::ioctl_ficlone;

use crate::archive::Member;
use crate::limits::Limits;
use crate::path::TreePath;
use crate::place::{Content, Omissions, PIECE, PlaceError, Placer, failed, write_piece};
use crate::progress::{Progress, Step, Watch};
use crate::walk::{Walk, WalkError, pieces};

/// Why a tree was not copied. What was made until then is left for whoever made the directory.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It can't be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// A file of it can't be made.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A directory can't be used.
    #[error("the directory to copy into can't be used")]
    Directory(#[source] io::Error),
}

/// How a tree is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyOptions {
    /// The caller's own account has these ids in the storage namespace; what is theirs belongs to root in the copy.
    /// For directories of the caller's that become images.
    pub caller: Option<(u32, u32)>,
    /// The tree is the upper layer of an overlay: whiteouts and the overlay's attributes are copied.
    pub layer: bool,
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories and all else.
    pub entries: u64,
    /// Bytes of data that were written, those shared with the source not counted.
    pub bytes: u64,
    /// What was left out.
    pub omissions: Omissions,
}

/// Copies what is in `source` into the empty directory `target`, attributes of both included.
///
/// Both are seen with the owners of the storage namespace, so this runs as its root: a tree of another range through an
/// id-mapped mount. File data are shared (reflink) where the file system can. Holes stay holes.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    source: &Dir,
    target: &Dir,
    options: CopyOptions,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Copied, CopyError> {
    let mut placer = Placer::new(target, *limits, options.layer).map_err(CopyError::Directory)?;
    let mut data = FileData::new(None, watch);
    let mut walk = Walk::new(limits, |found: crate::walk::Found<'_>| {
        let mut member = found.member;
        if let Some((uid, gid)) = options.caller {
            member.uid = if member.uid == u64::from(uid) { 0 } else { member.uid };
            member.gid = if member.gid == u64::from(gid) { 0 } else { member.gid };
        }
        data.place(&mut placer, member, found.file)
    });
    walk.run::<CopyError>(source)?;
    let sockets = walk.omissions;
    let (mut omissions, entries, bytes) = placer.finish()?;
    omissions.count = omissions.count.saturating_add(sockets.count);
    omissions.first.extend(sockets.first);
    Ok(Copied { entries, bytes, omissions })
}

/// Data that come from files.
pub(crate) struct FileData<'a, 'w> {
    from: Option<File>,
    /// Data may be shared with the source, as far as is known.
    shares: bool,
    done: u64,
    total: Option<u64>,
    watch: &'a mut Watch<'w>,
}

impl<'a, 'w> FileData<'a, 'w> {
    /// `total`: how many bytes there are, where it is known.
    pub(crate) fn new(total: Option<u64>, watch: &'a mut Watch<'w>) -> Self {
        Self { from: None, shares: true, done: 0, total, watch }
    }

    /// Makes a member of a tree, whose name is empty if it is the root, with what is in `from`.
    pub(crate) fn place(
        &mut self,
        placer: &mut Placer,
        mut member: Member,
        from: Option<File>,
    ) -> Result<(), CopyError> {
        if member.name.is_empty() {
            member.name = b".".to_vec();
        }
        self.from = from;
        placer.place(&member, self)
    }

    fn came(&mut self, count: u64) {
        self.done = self.done.saturating_add(count);
        (self.watch)(Progress { step: Step::Copy, done: self.done, total: self.total });
    }

    /// Copies the pieces that hold data.
    fn pieces(
        &mut self,
        from: &File,
        to: &File,
        member: &Member,
        wrote: &mut dyn FnMut(u64) -> Result<(), PlaceError>,
    ) -> Result<(), CopyError> {
        let path = || TreePath::parse(&member.name).unwrap_or_default();
        let mut buffer = vec![0; PIECE];
        for segment in pieces(member) {
            let end = segment.offset.saturating_add(segment.length);
            let mut offset = segment.offset;
            while offset < end {
                let most =
                    usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
                let piece = buffer.get_mut(..most).unwrap_or_default();
                let count =
                    from.read_at(piece, offset).map_err(|source| WalkError::Read { path: path(), source })?;
                if count == 0 {
                    // It became shorter meanwhile; the copy has a hole there.
                    break;
                }
                wrote(count as u64)?;
                write_piece(to, piece.get(..count).unwrap_or_default(), offset)
                    .map_err(|source| failed(&path(), source))?;
                offset = offset.saturating_add(count as u64);
                self.came(count as u64);
            }
        }
        Ok(())
    }
}

impl Content for FileData<'_, '_> {
    type Error = CopyError;

    fn fill(
        &mut self,
        file: &File,
        member: &Member,
        wrote: &mut dyn FnMut(u64) -> Result<(), PlaceError>,
    ) -> Result<(), CopyError> {
        let Some(from) = self.from.take() else { return Ok(()) };
        // Either a file system shares data between these two trees or it doesn't: one refusal is enough.
        if self.shares && member.size > 0 {
            match ioctl_ficlone(file, &from) {
                Ok(()) => {
                    self.came(pieces(member).iter().fold(0, |sum, piece| sum.saturating_add(piece.length)));
                    return Ok(());
                }
                Err(_) => self.shares = false,
            }
        }
        self.pieces(&from, file, member, wrote)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use crate::attributes::LeftOut;

    struct Scene {
        directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("from")).unwrap();
            std::fs::create_dir(directory.path().join("to")).unwrap();
            Self { directory }
        }

        fn from(&self, name: &str) -> std::path::PathBuf {
            self.directory.path().join("from").join(name)
        }

        fn to(&self, name: &str) -> std::fs::Metadata {
            std::fs::symlink_metadata(self.directory.path().join("to").join(name)).unwrap()
        }

        fn copy(&self, options: CopyOptions) -> Result<Copied, CopyError> {
            let open = |name: &str| Dir::open(&self.directory.path().join(name)).unwrap();
            copy(&open("from"), &open("to"), options, &Limits::default(), &mut |_| ())
        }
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_copy_is_as_the_tree_was() {
        let scene = Scene::new();
        std::fs::create_dir_all(scene.from("d/e")).unwrap();
        std::fs::write(scene.from("d/e/f"), "text").unwrap();
        std::os::unix::fs::chown(scene.from("d/e/f"), Some(5), Some(6)).unwrap();
        set_mode(&scene.from("d/e/f"), 0o6751);
        set_mode(&scene.from("d/e"), 0o1700);
        rustix::fs::setxattr(scene.from("d/e/f"), "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        std::fs::hard_link(scene.from("d/e/f"), scene.from("g")).unwrap();
        symlink("../../etc/passwd", scene.from("l")).unwrap();
        nix::unistd::mkfifo(&scene.from("p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(scene.from("s")).unwrap();
        drop(socket);
        let sparse = File::create(scene.from("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"x", 32 << 20).unwrap();
        let copied = scene.copy(CopyOptions::default()).unwrap();
        assert_eq!((copied.entries, copied.omissions.count), (8, 1));
        assert_eq!(copied.omissions.first[0].1, LeftOut::Socket);
        let file = scene.to("d/e/f");
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (5, 6, 0o6751));
        assert_eq!(file.mtime(), std::fs::metadata(scene.from("g")).unwrap().mtime());
        assert_eq!(file.ino(), scene.to("g").ino());
        assert_eq!(scene.to("d/e").mode() & 0o7777, 0o1700);
        assert_eq!(scene.to("d").mtime_nsec(), std::fs::metadata(scene.from("d")).unwrap().mtime_nsec());
        assert!(scene.to("p").file_type().is_fifo() && scene.to("l").is_symlink());
        assert_eq!(scene.to("sparse").len(), 64 << 20);
        assert!(scene.to("sparse").blocks() < 2048);
        let mut value = [0; 8];
        let path = scene.directory.path().join("to/g");
        assert_eq!(rustix::fs::getxattr(&path, "user.x", &mut value[..]).unwrap(), 1);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "text");
    }

    #[test]
    fn trees_are_bounded() {
        let scene = Scene::new();
        for file in 0..20 {
            std::fs::write(scene.from(&format!("f{file}")), "").unwrap();
        }
        let open = |name: &str| Dir::open(&scene.directory.path().join(name)).unwrap();
        let limits = Limits { entries: 19, ..Limits::default() };
        let result = copy(&open("from"), &open("to"), CopyOptions::default(), &limits, &mut |_| ());
        assert!(matches!(result, Err(CopyError::Walk(WalkError::TooMany(19)))));
        let scene = Scene::new();
        std::fs::create_dir_all(scene.from(&"d/".repeat(Limits::DEPTH + 1))).unwrap();
        assert!(matches!(scene.copy(CopyOptions::default()), Err(CopyError::Walk(WalkError::TooDeep(_)))));
    }

    #[test]
    fn what_is_the_callers_becomes_roots() {
        let scene = Scene::new();
        std::fs::write(scene.from("f"), "").unwrap();
        std::os::unix::fs::chown(scene.from("f"), Some(70_000), Some(70_001)).unwrap();
        let error = scene.copy(CopyOptions::default()).unwrap_err();
        assert!(matches!(error, CopyError::Place(PlaceError::Owner { id: 70_000, .. })));
        let scene = Scene { ..scene };
        scene.copy(CopyOptions { caller: Some((70_000, 70_001)), layer: false }).unwrap();
        assert_eq!((scene.to("f").uid(), scene.to("f").gid()), (0, 0));
    }

    #[test]
    fn a_layer_keeps_its_whiteouts() {
        let make = |layer: bool| {
            let scene = Scene::new();
            let kind = nix::sys::stat::SFlag::S_IFCHR;
            nix::sys::stat::mknod(&scene.from("gone"), kind, nix::sys::stat::Mode::empty(), 0).unwrap();
            let copied = scene.copy(CopyOptions { caller: None, layer }).unwrap();
            (scene, copied.omissions.count)
        };
        let (scene, left_out) = make(true);
        assert_eq!((scene.to("gone").rdev(), left_out), (0, 0));
        assert!(scene.to("gone").file_type().is_char_device());
        assert_eq!(make(false).1, 1);
    }
}
