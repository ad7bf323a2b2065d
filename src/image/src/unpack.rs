//! An archive becomes a tree of files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;

use cgrant_sys::Dir;

use crate::archive::{ArchiveError, Compression, Decoder, Kind, Member, Reader, Segment};
use crate::limits::Limits;
use crate::path::TreePath;
use crate::place::{Content, Omissions, PIECE, PlaceError, Placer, failed, write_piece};
use crate::progress::{Progress, Step, Watch};

/// Why an archive did not become a tree. What was made of it until then is left for whoever made the directory.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A member of it can't be made.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// It is something else.
    #[error("{}", unsupported(*.0))]
    Unsupported(Compression),
    /// The directory to unpack into can't be used.
    #[error("the directory to unpack into can't be used")]
    Directory(#[source] io::Error),
}

/// What became of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Members that it had.
    pub entries: u64,
    /// Bytes of data that were written.
    pub bytes: u64,
    /// What was left out.
    pub omissions: Omissions,
    /// What it was compressed with.
    pub compression: Compression,
}

/// Unpacks a tar archive, compressed or not, into the empty directory `root`. `size` is that of the source, if it is known.
///
/// Owners are set as the archive has them, so this runs as root of the storage namespace. Nothing outside of `root` is
/// touched, whatever the archive holds; on an error the directory is to be removed.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(
    source: impl Read,
    size: Option<u64>,
    root: &Dir,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Unpacked, UnpackError> {
    let decoder = Decoder::new(source, *limits).map_err(ArchiveError::from)?;
    let decoder = decoder.map_err(UnpackError::Unsupported)?;
    let compression = decoder.compression();
    let mut content =
        ArchiveData { consumed: decoder.consumed(), reader: Reader::new(decoder, *limits), size, watch };
    let mut placer = Placer::new(root, *limits, false).map_err(UnpackError::Directory)?;
    while let Some(member) = content.reader.next_member()? {
        placer.place(&member, &mut content)?;
        content.report();
    }
    content.reader.finish()?;
    let (omissions, entries, bytes) = placer.finish()?;
    Ok(Unpacked { entries, bytes, omissions, compression })
}

/// The data of the member that the reader is at.
struct ArchiveData<'a, 'w, R> {
    reader: Reader<R>,
    consumed: Rc<Cell<u64>>,
    size: Option<u64>,
    watch: &'a mut Watch<'w>,
}

impl<R> ArchiveData<'_, '_, R> {
    fn report(&mut self) {
        (self.watch)(Progress { step: Step::Unpack, done: self.consumed.get(), total: self.size });
    }
}

impl<R: Read> Content for ArchiveData<'_, '_, R> {
    type Error = UnpackError;

    fn fill(
        &mut self,
        file: &File,
        member: &Member,
        wrote: &mut dyn FnMut(u64) -> Result<(), PlaceError>,
    ) -> Result<(), UnpackError> {
        let whole = [Segment { offset: 0, length: member.size }];
        let segments = match &member.kind {
            Kind::File(Some(segments)) => segments.as_slice(),
            _ => &whole,
        };
        let mut piece = vec![0; PIECE];
        for segment in segments {
            let mut offset = segment.offset;
            let mut left = segment.length;
            while left > 0 {
                let count = self.piece(&mut piece, left)?;
                let bytes = piece.get(..count).unwrap_or_default();
                wrote(count as u64)?;
                let path = || TreePath::parse(&member.name).unwrap_or_default();
                write_piece(file, bytes, offset).map_err(|source| failed(&path(), source))?;
                // The reader checked that segments lie within the file's size.
                offset = offset.saturating_add(count as u64);
                left = left.saturating_sub(count as u64);
                self.report();
            }
        }
        Ok(())
    }
}

impl<R: Read> ArchiveData<'_, '_, R> {
    /// The next piece, whole unless the data end: zeros are told by whole pieces.
    fn piece(&mut self, piece: &mut [u8], left: u64) -> Result<usize, UnpackError> {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let mut filled = 0_usize;
        while filled < most {
            let count = self.reader.read_data(piece.get_mut(filled..most).unwrap_or_default())?;
            if count == 0 {
                return Err(ArchiveError::CutOff.into());
            }
            filled = filled.saturating_add(count);
        }
        Ok(filled)
    }
}

/// What it is instead, and what to do.
fn unsupported(compression: Compression) -> &'static str {
    match compression {
        Compression::Squashfs => {
            "this is a squashfs file system, which is not read here: take the image's tar form (`root.tar.xz`, \
             `rootfs.tar.xz`), or unpack it with unsquashfs and import the directory"
        }
        Compression::Qcow2 => "this is a disk image of a virtual machine: take the container's image",
        Compression::Zip => "this is a zip archive, which knows no owners: an image is a tar archive",
        Compression::Bzip2 => "bzip2 is not read here: decompress it first with bunzip2",
        _ => {
            "this is no tar archive: it may be an error page of a server, or a file that did not arrive whole"
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
pub(crate) mod tests {
    use super::*;

    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    use std::path::Path;

    use proptest::prelude::*;
    use rustix::io::Errno;

    use crate::archive::{Time, Writer};
    use crate::attributes::LeftOut;

    pub fn file(name: &str) -> Member {
        member(name, Kind::File(None))
    }

    pub fn member(name: &str, kind: Kind) -> Member {
        let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
        let (uid, gid) = (0, 0);
        let modified = Time { seconds: 1_000_000_000, nanoseconds: 500 };
        Member {
            name: name.into(),
            kind,
            mode,
            uid,
            gid,
            modified,
            size: 0,
            xattrs: Vec::new(),
            acl_access: None,
            acl_default: None,
        }
    }

    fn link(name: &str, target: &str) -> Member {
        member(name, Kind::SymbolicLink(target.into()))
    }

    fn hard(name: &str, target: &str) -> Member {
        member(name, Kind::HardLink(target.into()))
    }

    pub fn dir(name: &str) -> Member {
        member(name, Kind::Directory)
    }

    /// An archive; files hold their own name.
    pub fn archive(members: &[Member]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for member in members {
            let mut member = member.clone();
            let is_file = member.kind == Kind::File(None);
            let data = if is_file { member.name.clone() } else { Vec::new() };
            member.size = data.len() as u64;
            writer.start(&member).unwrap();
            writer.data(&data).unwrap();
            writer.finish_member().unwrap();
        }
        writer.finish().unwrap()
    }

    /// A directory with something beside the root that must stay as it is.
    struct Scene {
        directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("root")).unwrap();
            std::fs::create_dir(directory.path().join("outside")).unwrap();
            std::fs::write(directory.path().join("outside/victim"), "victim").unwrap();
            Self { directory }
        }

        fn root(&self) -> std::path::PathBuf {
            self.directory.path().join("root")
        }

        fn unpack(&self, members: &[Member], limits: &Limits) -> Result<Unpacked, UnpackError> {
            let root = Dir::open(&self.root()).unwrap();
            let result = unpack(&archive(members)[..], None, &root, limits, &mut |_| ());
            self.outside_is_untouched();
            result
        }

        fn outside_is_untouched(&self) {
            let outside = self.directory.path().join("outside");
            assert_eq!(names(self.directory.path()), ["outside", "root"]);
            assert_eq!(names(&outside), ["victim"]);
            let victim = std::fs::metadata(outside.join("victim")).unwrap();
            assert_eq!((victim.nlink(), victim.mode() & 0o7777), (1, 0o644));
            assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "victim");
        }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_tree_is_as_the_archive_says() {
        let scene = Scene::new();
        let mut setuid = file("./usr/bin/su");
        setuid.mode = 0o4755;
        setuid.xattrs.push((b"user.note".to_vec(), b"\0x".to_vec()));
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut ping = file("usr/bin/ping");
        ping.xattrs.push((b"security.capability".to_vec(), capability.to_vec()));
        ping.acl_access = Some(b"user::rw-,user:7:r--,group::r--,mask::r--,other::---".to_vec());
        let mut owned = dir("var/mail");
        (owned.uid, owned.gid, owned.mode) = (8, 65_535, 0o2775);
        owned.acl_default = Some(b"user::rwx,group::r-x,other::---".to_vec());
        let mut pipe = member("run/pipe", Kind::Fifo);
        pipe.mode = 0o620;
        let members = [
            dir("./"),
            setuid,
            ping,
            owned,
            file("var/mail/root"),
            link("bin", "usr/bin"),
            hard("usr/bin/again", "./usr/bin/su"),
            hard("sbin", "bin"),
            pipe,
            member("dev/null", Kind::Device),
        ];
        let unpacked = scene.unpack(&members, &Limits::default()).unwrap();
        assert_eq!((unpacked.entries, unpacked.omissions.count), (10, 1));
        assert_eq!(unpacked.omissions.first[0].1, LeftOut::Device);
        let root = scene.root();
        let metadata = |path: &str| std::fs::symlink_metadata(root.join(path)).unwrap();
        assert_eq!(metadata("usr/bin/su").mode() & 0o7777, 0o4755);
        assert_eq!(
            (metadata("usr/bin/su").mtime(), metadata("usr/bin/su").mtime_nsec()),
            (1_000_000_000, 500)
        );
        assert_eq!(metadata("usr/bin/su").ino(), metadata("usr/bin/again").ino());
        assert_eq!(metadata("usr").mode() & 0o7777, 0o755, "implied");
        assert_eq!(metadata("var/mail").mode() & 0o7777, 0o2775);
        assert_eq!((metadata("var/mail").uid(), metadata("var/mail").gid()), (8, 65_535));
        assert_eq!(metadata("var/mail").mtime(), 1_000_000_000, "after its entries were made");
        assert_eq!(std::fs::read_to_string(root.join("var/mail/root")).unwrap(), "var/mail/root");
        assert_eq!(std::fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(metadata("bin").ino(), metadata("sbin").ino());
        assert!(metadata("run/pipe").file_type().is_fifo() && metadata("run/pipe").mode() & 0o7777 == 0o620);
        assert!(!root.join("dev/null").exists());
        let xattr = |path: &str, name: &str| {
            let mut value = vec![0; 1000];
            let length = rustix::fs::getxattr(root.join(path), name, value.as_mut_slice())?;
            value.truncate(length);
            Ok::<_, Errno>(value)
        };
        assert_eq!(xattr("usr/bin/su", "user.note").unwrap(), b"\0x");
        assert_eq!(xattr("usr/bin/ping", "security.capability").unwrap(), capability);
        assert_eq!(xattr("usr/bin/ping", "system.posix_acl_access").unwrap().len(), 4 + 5 * 8);
        assert_eq!(xattr("var/mail", "system.posix_acl_default").unwrap().len(), 4 + 3 * 8);
        assert_eq!(std::fs::metadata(&root).unwrap().mtime(), 1_000_000_000);
    }

    #[test]
    fn hostile_archives_write_nowhere_else() {
        let deep = "d/".repeat(300);
        let up = |result: &UnpackError| matches!(result, UnpackError::Place(PlaceError::Name { .. }));
        let below =
            |result: &UnpackError| matches!(result, UnpackError::Place(PlaceError::NotBelowDirectory(_)));
        let replaces = |result: &UnpackError| matches!(result, UnpackError::Place(PlaceError::Replaces(_)));
        let no_target =
            |result: &UnpackError| matches!(result, UnpackError::Place(PlaceError::NoTarget { .. }));
        type Check<'a> = &'a dyn Fn(&UnpackError) -> bool;
        let corpus: &[(&str, &[Member], Check<'_>)] = &[
            ("up", &[file("../outside/new")], &up),
            ("up inside", &[file("a/../../outside/new")], &up),
            ("up at the end", &[dir("a/..")], &up),
            ("through a link", &[link("l", "../outside"), file("l/new")], &below),
            ("through an absolute link", &[link("l", "/tmp"), file("l/new")], &below),
            ("through two", &[link("a", "b"), link("b", "../outside"), file("a/victim")], &below),
            ("a directory there", &[link("l", "../outside"), dir("l/new")], &below),
            ("the link as directory", &[link("l", "../outside"), dir("l"), file("l/new")], &replaces),
            ("directory for link", &[dir("d"), link("d", "../outside"), file("d/new")], &replaces),
            ("filled directory for link", &[file("d/f"), link("d", "../outside"), file("d/x")], &replaces),
            ("directory for file", &[dir("d"), file("d")], &replaces),
            ("directory for hard link", &[file("f"), dir("d"), hard("d", "f")], &replaces),
            ("the root for link", &[link("./", "../outside")], &replaces),
            ("the root for file", &[file("./.")], &replaces),
            ("hard link out", &[hard("h", "../outside/victim")], &up),
            ("absolute hard link", &[hard("h", "/etc/passwd")], &no_target),
            ("hard link through link", &[link("l", "../outside"), hard("h", "l/victim")], &no_target),
            ("hard link to a directory", &[dir("d"), hard("h", "d")], &no_target),
            ("hard link to the root", &[hard("h", "./")], &no_target),
            ("hard link to what comes", &[hard("h", "later"), file("later")], &no_target),
            ("below a file", &[file("f"), file("f/x")], &below),
            ("below a pipe", &[member("p", Kind::Fifo), file("p/x")], &below),
            ("too deep", &[file(&deep)], &up),
        ];
        for (what, members, check) in corpus {
            let scene = Scene::new();
            let error = scene.unpack(members, &Limits::default()).expect_err(what);
            assert!(check(&error), "{what}: {error:?}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
        let scene = Scene::new();
        let (root, ended) = (scene.root(), std::sync::atomic::AtomicBool::new(false));
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("l")).unwrap();
        let members: Vec<Member> = (0..3000)
            .flat_map(|n| [file(&format!("d/e/f{n}")), hard(&format!("d/h{n}"), "d/victim")])
            .collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let dir = Dir::open(&root).unwrap();
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = rustix::fs::renameat_with(&dir, "d", &dir, "l", exchange);
                }
            });
            // Each is refused, or made in the directory that was there; the scene looks at what is outside.
            for members in members.chunks(2) {
                let _ = scene.unpack(members, &Limits::default());
            }
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        scene.outside_is_untouched();
    }

    #[test]
    fn holes_and_attributes_fill_no_disk() {
        let of_holes = |size: u64| {
            let mut writer = Writer::new(Vec::new());
            let mut sparse = member("sparse", Kind::File(Some(vec![])));
            sparse.size = size;
            writer.start(&sparse).unwrap();
            writer.finish_member().unwrap();
            let scene = Scene::new();
            let root = Dir::open(&scene.root()).unwrap();
            let bytes = writer.finish().unwrap();
            let unpacked = unpack(&bytes[..], None, &root, &Limits::default(), &mut |_| ());
            (scene, unpacked)
        };
        // One that claims more than it may, and one that is as large as it may be, of which no block is there.
        let error = of_holes(Limits::default().file_size + 1).1.unwrap_err();
        assert!(matches!(error, UnpackError::Archive(ArchiveError::FileTooLarge(_))), "{error:?}");
        let (scene, unpacked) = of_holes(Limits::default().file_size);
        unpacked.unwrap();
        let metadata = std::fs::metadata(scene.root().join("sparse")).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (1 << 40, 0));
        // Attributes beyond what a header may have.
        let mut heavy = file("heavy");
        heavy.xattrs = (0..20).map(|n| (format!("user.n{n}").into_bytes(), vec![b'x'; 60_000])).collect();
        let error = Scene::new().unpack(&[heavy], &Limits::default()).unwrap_err();
        assert!(matches!(error, UnpackError::Archive(ArchiveError::HeaderTooLarge)), "{error:?}");
    }

    #[test]
    fn links_that_lead_out_are_only_text() {
        let scene = Scene::new();
        let members = [
            link("a", "../outside/victim"),
            file("a"),
            link("b", "../outside/victim"),
            hard("c", "b"),
            file("b"),
        ];
        scene.unpack(&members, &Limits::default()).unwrap();
        // What came later replaced the link, and wrote not through it.
        assert!(std::fs::symlink_metadata(scene.root().join("a")).unwrap().is_file());
        assert!(std::fs::symlink_metadata(scene.root().join("b")).unwrap().is_file());
        assert!(std::fs::symlink_metadata(scene.root().join("c")).unwrap().is_symlink());
    }

    #[test]
    fn a_replaced_file_keeps_its_other_names() {
        let scene = Scene::new();
        let members = [file("f"), hard("g", "f"), hard("g", "g"), link("f", "x")];
        scene.unpack(&members, &Limits::default()).unwrap();
        assert_eq!(std::fs::read_to_string(scene.root().join("g")).unwrap(), "f");
    }

    #[test]
    fn absolute_names_are_stripped() {
        let scene = Scene::new();
        scene.unpack(&[file("/etc/new"), link("/l", "/etc")], &Limits::default()).unwrap();
        assert_eq!(names(&scene.root()), ["etc", "l"]);
        assert!(!Path::new("/etc/new").exists());
    }

    #[test]
    fn foreign_owners_are_refused() {
        for uid in [65_536, u64::from(u32::MAX), u64::MAX] {
            let mut member = file("f");
            member.uid = uid;
            let error = Scene::new().unpack(&[member], &Limits::default()).unwrap_err();
            assert!(matches!(error, UnpackError::Place(PlaceError::Owner { id, .. }) if id == uid));
        }
    }

    #[test]
    fn what_must_stay_free_stays_free() {
        let limits = Limits { keep_free: u64::MAX, ..Limits::default() };
        let error = Scene::new().unpack(&[file("f")], &limits).unwrap_err();
        assert!(matches!(error, UnpackError::Place(PlaceError::NearlyFull { .. })));
    }

    #[test]
    fn lists_that_name_users_mean_those_of_the_tree() {
        let scene = Scene::new();
        let mut journal = dir("var/log/journal");
        journal.acl_access =
            Some(b"user::rwx,user:joe:r--,group::r-x,group:adm:r-x,mask::r-x,other::---".to_vec());
        let mut unknown = file("x");
        unknown.acl_access =
            Some(b"user::rw-,user:nobody-knows:r--,group::r--,mask::r--,other::---".to_vec());
        let mut foreign = file("y");
        foreign.acl_access = Some(b"user::rw-,user:large:r--,group::r--,mask::r--,other::---".to_vec());
        let mut writer = Writer::new(Vec::new());
        let passwd = b"root:x:0:0::/:/bin/sh\njoe:x:1234:5::/:\nlarge:x:65536:5::/:\n".to_vec();
        let group = b"adm:x:4:joe\njoe:x:77:\n".to_vec();
        for (mut member, data) in [
            (journal, Vec::new()),
            (unknown, Vec::new()),
            (foreign, Vec::new()),
            (file("etc/passwd"), passwd),
            (file("etc/group"), group),
        ] {
            member.size = data.len() as u64;
            writer.start(&member).unwrap();
            writer.data(&data).unwrap();
            writer.finish_member().unwrap();
        }
        let root = Dir::open(&scene.root()).unwrap();
        let archive = writer.finish().unwrap();
        let unpacked = unpack(&archive[..], None, &root, &Limits::default(), &mut |_| ()).unwrap();
        let left_out: Vec<String> =
            unpacked.omissions.first.iter().map(|(path, what)| format!("{path}: {what}")).collect();
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        assert!(
            left_out[0].starts_with("/x: access control list") && left_out[1].contains("range"),
            "{left_out:?}"
        );
        let mut value = vec![0; 1000];
        let path = scene.root().join("var/log/journal");
        let length = rustix::fs::getxattr(path, "system.posix_acl_access", value.as_mut_slice()).unwrap();
        let acl = crate::acl::Acl::from_bytes(&value[..length], 65_536).unwrap().to_text();
        assert_eq!(acl, "user::rwx,user:1234:r--,group::r-x,group:4:r-x,mask::r-x,other::---");
    }

    #[test]
    fn holes_stay_holes_and_zeros_become_some() {
        let scene = Scene::new();
        let mut writer = Writer::new(Vec::new());
        let map = vec![Segment { offset: 5 << 20, length: 3 }];
        let mut sparse = member("sparse", Kind::File(Some(map)));
        sparse.size = 10 << 20;
        writer.start(&sparse).unwrap();
        writer.data(b"abc").unwrap();
        writer.finish_member().unwrap();
        let mut zeros = file("zeros");
        zeros.size = 10 << 20;
        writer.start(&zeros).unwrap();
        writer.data(&vec![0; 10 << 20]).unwrap();
        writer.finish_member().unwrap();
        let bytes = writer.finish().unwrap();
        let root = Dir::open(&scene.root()).unwrap();
        unpack(&bytes[..], None, &root, &Limits::default(), &mut |_| ()).unwrap();
        for name in ["sparse", "zeros"] {
            let metadata = std::fs::metadata(scene.root().join(name)).unwrap();
            assert_eq!(metadata.len(), 10 << 20);
            assert!(metadata.blocks() < 1024, "{name}: {}", metadata.blocks());
        }
        let content = std::fs::read(scene.root().join("sparse")).unwrap();
        assert_eq!(&content[(5 << 20) - 1..(5 << 20) + 4], b"\0abc\0");
    }

    #[test]
    fn what_is_no_archive_is_named() {
        let scene = Scene::new();
        let root = Dir::open(&scene.root()).unwrap();
        for (bytes, word) in
            [(&b"hsqs"[..], "unsquashfs"), (b"<html>", "error page"), (b"", "no tar archive")]
        {
            let error = unpack(bytes, None, &root, &Limits::default(), &mut |_| ()).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn the_umask_changes_nothing() {
        let scene = Scene::new();
        let mut open = file("a/b/f");
        open.mode = 0o666;
        scene.unpack(&[open], &Limits::default()).unwrap();
        let mode =
            |path: &str| std::fs::metadata(scene.root().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/f")), (0o755, 0o755, 0o666));
    }

    fn hostile_name() -> impl Strategy<Value = String> {
        let component = prop_oneof![
            4 => Just("a".to_owned()), 4 => Just("b".to_owned()), 2 => Just("c".to_owned()),
            1 => Just("..".to_owned()), 1 => Just(".".to_owned()), 1 => Just(String::new()),
            1 => Just("outside".to_owned()), 1 => Just("victim".to_owned()),
        ];
        proptest::collection::vec(component, 1..4).prop_map(|parts| parts.join("/"))
    }

    fn hostile_member() -> impl Strategy<Value = Member> {
        (hostile_name(), hostile_name(), 0..5_u8).prop_map(|(name, target, kind)| match kind {
            0 => dir(&name),
            1 => file(&name),
            2 => link(&name, &format!("../{target}")),
            3 => hard(&name, &target),
            _ => link(&name, &target),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn nothing_gets_out(members in proptest::collection::vec(hostile_member(), 1..12)) {
            // Whether it is refused or not: the scene looks at what is outside.
            let _ = Scene::new().unpack(&members, &Limits::default());
        }
    }
}
