//! A source becomes an image: a directory with `rootfs/` in it, and what is known of it.
//!
//! Which of the forms in which images come an archive has is told by what is in it, after it was unpacked: one way to
//! read all of them, whatever the order of their members.

use std::fs::File;
use std::io::{self, Seek};

use cgrant_sys::{Dir, EntryKind};
use rustix::fs::renameat;

use crate::copy::{CopyError, CopyOptions, copy};
use crate::digest::Sha256;
use crate::export::{ExportError, identity};
use crate::image::{About, MAX_TEXT};
use crate::limits::Limits;
use crate::place::Omissions;
use crate::progress::Watch;
use crate::remove::remove_tree;
use crate::unpack::{UnpackError, Unpacked, unpack};

/// Name of the files of an image, in its directory.
pub(crate) const ROOTFS: &str = "rootfs";
/// Where an archive is unpacked, until it is known what it is.
const TREE: &str = "tree";
/// Where the description of an image that comes in two archives is unpacked.
const META: &str = "meta";
/// What deep directories are called while they are removed.
pub(crate) const ASIDE: &str = ".old-";

/// Bounds of an archive that only describes an image.
const META_LIMITS: Limits =
    Limits { bytes: 16 << 20, entries: 1000, file_size: 1 << 20, ratio: 1000, keep_free: 0, ids: 65_536 };

/// What an image is made from.
#[derive(Debug)]
pub enum Source {
    /// A directory, as the storage namespace sees it. What belongs to these ids (the caller's own account there) will be root's.
    Directory(Dir, Option<(u32, u32)>),
    /// One archive: of the files alone, or an image for Incus in one piece. From its beginning.
    Archive(File),
    /// An image in two archives, as LXC (`meta.tar.xz`, `rootfs.tar.xz`) and Incus (`incus.tar.xz`, `root.tar.xz`) have them.
    Split {
        /// What describes it.
        meta: File,
        /// Its files.
        rootfs: File,
    },
}

/// An image that is in its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The sum of the source; of a directory, of its files. It's Incus' fingerprint of the same image.
    pub id: Sha256,
    /// What is known of it.
    pub about: About,
    /// Files, directories and all else.
    pub entries: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// What was left out.
    pub omissions: Omissions,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source is not what it should be.
    #[error(
        "the checksum is {found}, but should be {expected}: it did not arrive whole, or is not what you were told"
    )]
    Checksum {
        /// What it should be.
        expected: Sha256,
        /// What it is.
        found: Sha256,
    },
    /// An archive that can't be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A directory that can't be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The files can't be read again.
    #[error(transparent)]
    Identity(#[from] ExportError),
    /// It has no files.
    #[error(
        "this archive only describes an image: give the one with its files too (`rootfs.tar.xz`, `root.tar.xz`)"
    )]
    DescriptionOnly,
    /// It is a backup.
    #[error(
        "this is a backup of an instance of Incus, not an image: `incus publish` makes an image of an instance, `incus image export` a file of that"
    )]
    Backup,
    /// It is an image for application containers.
    #[error(
        "this is an OCI image, of layers for application containers: export a container of it (`podman export`) and import that"
    )]
    Oci,
    /// There is no system in it.
    #[error("there is no system in it: neither `/etc`, `/usr`, `/bin` nor `/sbin`")]
    NoSystem,
    /// The source can't be read.
    #[error("the source could not be read")]
    Read(#[source] io::Error),
    /// The image's directory can't be changed.
    #[error("the image's directory could not be changed")]
    Directory(#[source] io::Error),
}

/// Makes an image in the empty directory `image`, as root of the storage namespace. `expected` is the sum that the source
/// must have, known from elsewhere (of a split image: of both archives, one after the other, as Incus reckons); nothing
/// is unpacked before it is compared.
///
/// # Errors
/// [`ImportError`]; `image` is to be removed then.
pub fn import(
    image: &Dir,
    source: Source,
    expected: Option<Sha256>,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Imported, ImportError> {
    let imported = match source {
        Source::Directory(directory, caller) => from_directory(image, &directory, caller, limits, watch)?,
        Source::Archive(mut archive) => {
            let id = sum(&mut [&mut archive], expected, watch)?;
            from_archive(image, archive, id, limits, watch)?
        }
        Source::Split { mut meta, mut rootfs } => {
            let id = sum(&mut [&mut meta, &mut rootfs], expected, watch)?;
            let about = describe(image, meta)?;
            let imported = from_archive(image, rootfs, id, limits, watch)?;
            Imported { about: about.or(imported.about), ..imported }
        }
    };
    match expected {
        Some(expected) if expected != imported.id => {
            Err(ImportError::Checksum { expected, found: imported.id })
        }
        _ => Ok(imported),
    }
}

/// Makes the root of the files one that everybody in a container can pass through, and that is its root's: archives of a
/// directory that was somebody's own, or made to be private (`mktemp -d`), say otherwise.
fn open_root(rootfs: &Dir) -> io::Result<()> {
    rootfs.chown("", 0, 0)?;
    rootfs.chmod("", 0o755)
}

/// Describes a tree that was made in `image` by somebody else, `build` for example.
///
/// # Errors
/// [`ImportError::NoSystem`], [`ImportError::Directory`], [`ImportError::Identity`].
pub fn describe_built(image: &Dir, limits: &Limits, watch: &mut Watch<'_>) -> Result<Imported, ImportError> {
    let rootfs = image.open_dir(ROOTFS).map_err(ImportError::Directory)?;
    if !has_system(&rootfs)? {
        return Err(ImportError::NoSystem);
    }
    let (mut entries, mut bytes) = (0_u64, 0_u64);
    let mut count = crate::walk::Walk::new(limits, |found: crate::walk::Found<'_>| {
        entries = entries.saturating_add(1);
        let pieces = crate::walk::pieces(&found.member);
        bytes = pieces.iter().fold(bytes, |sum, piece| sum.saturating_add(piece.length));
        Ok::<(), ExportError>(())
    });
    count.run(&rootfs)?;
    let id = identity(&rootfs, limits, watch)?;
    Ok(Imported { id, about: About::of_system(&rootfs), entries, bytes, omissions: Omissions::default() })
}

fn from_directory(
    image: &Dir,
    source: &Dir,
    caller: Option<(u32, u32)>,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Imported, ImportError> {
    if !has_system(source)? {
        return Err(ImportError::NoSystem);
    }
    let rootfs = image.create_dir(ROOTFS, 0o755).map_err(ImportError::Directory)?;
    let copied = copy(source, &rootfs, CopyOptions { caller, layer: false }, limits, watch)?;
    open_root(&rootfs).map_err(ImportError::Directory)?;
    let id = identity(&rootfs, limits, watch)?;
    let about = About::of_system(&rootfs);
    Ok(Imported { id, about, entries: copied.entries, bytes: copied.bytes, omissions: copied.omissions })
}

fn from_archive(
    image: &Dir,
    archive: File,
    id: Sha256,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Imported, ImportError> {
    let tree = image.create_dir(TREE, 0o755).map_err(ImportError::Directory)?;
    // mkdir obeys the umask, and an archive need not have a member for its root.
    tree.chmod("", 0o755).map_err(ImportError::Directory)?;
    let size = archive.metadata().map_err(ImportError::Read)?.len();
    let Unpacked { entries, bytes, omissions, .. } = unpack(archive, Some(size), &tree, limits, watch)?;
    let told = settle(image, &tree)?;
    let rootfs = image.open_dir(ROOTFS).map_err(ImportError::Directory)?;
    open_root(&rootfs).map_err(ImportError::Directory)?;
    let about = told.or(About::of_system(&rootfs));
    Ok(Imported { id, about, entries, bytes, omissions })
}

/// Puts the files of what was unpacked to their place, and gives what the archive said of them.
fn settle(image: &Dir, tree: &Dir) -> Result<About, ImportError> {
    let directory = ImportError::Directory;
    let entries = tree.entries().map_err(directory)?;
    let has = |name: &str, kind| entries.iter().any(|entry| entry.name == name && entry.kind == kind);
    let only = |names: &[&str]| entries.iter().all(|entry| names.iter().any(|name| entry.name == *name));
    let described = has("metadata.yaml", EntryKind::File);
    if has(ROOTFS, EntryKind::Directory) && only(&["metadata.yaml", "templates", ROOTFS]) {
        let about = about(tree);
        renameat(tree, ROOTFS, image, ROOTFS).map_err(|errno| directory(errno.into()))?;
        remove_tree(image, TREE.as_ref(), ASIDE).map_err(directory)?;
        let rootfs = image.open_dir(ROOTFS).map_err(directory)?;
        return if has_system(&rootfs)? { Ok(about) } else { Err(ImportError::NoSystem) };
    }
    if has_system(tree)? {
        renameat(image, TREE, image, ROOTFS).map_err(|errno| directory(errno.into()))?;
        return Ok(About::default());
    }
    if described || has("create-message", EntryKind::File) || has("config", EntryKind::File) {
        // LXC's descriptions have a `config`; layers of an OCI image may, too, but those have an `oci-layout`.
        return Err(if has("oci-layout", EntryKind::File) {
            ImportError::Oci
        } else {
            ImportError::DescriptionOnly
        });
    }
    if has("oci-layout", EntryKind::File) || has("manifest.json", EntryKind::File) {
        return Err(ImportError::Oci);
    }
    if tree.read_below(&["backup", "index.yaml"], MAX_TEXT).is_ok() {
        return Err(ImportError::Backup);
    }
    Err(ImportError::NoSystem)
}

/// What an archive that describes an image says.
fn describe(image: &Dir, archive: File) -> Result<About, ImportError> {
    let tree = image.create_dir(META, 0o700).map_err(ImportError::Directory)?;
    unpack(archive, None, &tree, &META_LIMITS, &mut |_| ())?;
    let about = about(&tree);
    remove_tree(image, META.as_ref(), ASIDE).map_err(ImportError::Directory)?;
    Ok(about)
}

fn about(tree: &Dir) -> About {
    tree.read("metadata.yaml", MAX_TEXT).map(|text| About::of_metadata(&text)).unwrap_or_default()
}

/// Is there anything that looks like the root of a system?
fn has_system(tree: &Dir) -> Result<bool, ImportError> {
    for name in ["etc", "usr", "bin", "sbin"] {
        if tree.exists(name).map_err(ImportError::Directory)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The sum of files, one after the other, which are left at their beginnings; compared before anything is unpacked.
fn sum(
    files: &mut [&mut File],
    expected: Option<Sha256>,
    watch: &mut Watch<'_>,
) -> Result<Sha256, ImportError> {
    let mut size = 0_u64;
    let mut all: Box<dyn io::Read> = Box::new(io::empty());
    for file in files.iter() {
        size = size.saturating_add(file.metadata().map_err(ImportError::Read)?.len());
        all = Box::new(io::Read::chain(all, file.try_clone().map_err(ImportError::Read)?));
    }
    let found = Sha256::of_reader(all, Some(size), watch).map_err(ImportError::Read)?;
    for file in files {
        file.rewind().map_err(ImportError::Read)?;
    }
    match expected {
        Some(expected) if expected != found => Err(ImportError::Checksum { expected, found }),
        _ => Ok(found),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::io::Write;

    use crate::archive::{Kind, Member};
    use crate::unpack::tests::{archive, file, member};

    fn held(bytes: &[u8]) -> File {
        let mut held = tempfile::tempfile().unwrap();
        held.write_all(bytes).unwrap();
        held.rewind().unwrap();
        held
    }

    fn imported(
        source: Source,
        expected: Option<Sha256>,
    ) -> (tempfile::TempDir, Result<Imported, ImportError>) {
        let directory = tempfile::tempdir().unwrap();
        let image = Dir::open(directory.path()).unwrap();
        let result = import(&image, source, expected, &Limits::default(), &mut |_| ());
        if result.is_ok() {
            assert_eq!(image.names().unwrap(), [ROOTFS]);
        }
        (directory, result)
    }

    fn of_archive(members: &[Member]) -> (tempfile::TempDir, Result<Imported, ImportError>) {
        imported(Source::Archive(held(&archive(members))), None)
    }

    #[test]
    fn plain_and_unified_archives_are_told_apart() {
        let (directory, result) = of_archive(&[file("./etc/hostname"), file("bin/sh")]);
        assert_eq!(result.unwrap().entries, 2);
        assert!(directory.path().join("rootfs/etc/hostname").exists());
        // In any order.
        for members in [
            [file("rootfs/etc/x"), file("metadata.yaml"), file("templates/x")],
            [file("templates/x"), file("metadata.yaml"), file("rootfs/etc/x")],
        ] {
            let (directory, result) = of_archive(&members);
            result.unwrap();
            assert!(directory.path().join("rootfs/etc/x").exists());
        }
        let (directory, result) = of_archive(&[file("rootfs/usr/x")]);
        result.unwrap();
        assert!(directory.path().join("rootfs/usr/x").exists());
        // A system that happens to have a directory of this name.
        let (directory, result) = of_archive(&[file("rootfs/usr/x"), file("etc/x")]);
        result.unwrap();
        assert!(directory.path().join("rootfs/rootfs/usr/x").exists());
    }

    #[test]
    fn everybody_can_pass_through_the_root() {
        use std::os::unix::fs::MetadataExt;
        for mode in [0o700, 0, 0o1777, 0o2750] {
            let mut root = crate::unpack::tests::dir("./");
            (root.mode, root.uid, root.gid) = (mode, 1000, 8);
            let (directory, result) = of_archive(&[root, file("etc/x")]);
            result.unwrap();
            let meta = std::fs::metadata(directory.path().join("rootfs")).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o755, 0, 0), "{mode:o}");
        }
    }

    #[test]
    fn two_archives_are_one_image() {
        let (meta, rootfs) =
            (archive(&[file("metadata.yaml"), file("templates/x")]), archive(&[file("etc/x")]));
        let both = [meta.clone(), rootfs.clone()].concat();
        let id = Sha256::of_reader(&both[..], None, &mut |_| ()).unwrap();
        let source = || Source::Split { meta: held(&meta), rootfs: held(&rootfs) };
        assert_eq!(imported(source(), Some(id)).1.unwrap().id, id);
        let lxc = archive(&[file("config"), file("create-message"), file("templates")]);
        imported(Source::Split { meta: held(&lxc), rootfs: held(&rootfs) }, None).1.unwrap();
        let bomb = archive(&vec![file("x"); 1001]);
        let result = imported(Source::Split { meta: held(&bomb), rootfs: held(&rootfs) }, None).1;
        assert!(matches!(result, Err(ImportError::Unpack(_))));
    }

    #[test]
    fn a_wrong_sum_is_seen_before_anything_is_unpacked() {
        let other = Sha256::of_reader(&b""[..], None, &mut |_| ()).unwrap();
        let (directory, result) = imported(Source::Archive(held(&archive(&[file("etc/x")]))), Some(other));
        assert!(matches!(result, Err(ImportError::Checksum { expected, .. }) if expected == other));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_image_says_what_it_is() {
        let is = |members: &[Member]| of_archive(members).1.unwrap_err().to_string();
        assert!(is(&[file("metadata.yaml"), file("templates/a")]).contains("describes"));
        assert!(is(&[file("config"), file("create-message")]).contains("describes"));
        assert!(is(&[file("oci-layout"), file("blobs/x"), file("index.json")]).contains("OCI"));
        assert!(is(&[file("manifest.json"), file("x.json")]).contains("OCI"));
        assert!(is(&[file("backup/index.yaml")]).contains("incus publish"));
        assert!(is(&[file("readme")]).contains("no system"));
        assert!(is(&[file("rootfs/readme"), file("metadata.yaml")]).contains("no system"));
        assert!(
            is(&[member("rootfs", Kind::SymbolicLink("/".into())), file("metadata.yaml")])
                .contains("describes")
        );
    }

    #[test]
    fn a_directory_is_known_by_its_files() {
        let make = |content: &str| {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("etc")).unwrap();
            std::fs::write(directory.path().join("etc/x"), content).unwrap();
            for name in ["etc/x", "etc", "."] {
                let dir = Dir::open(directory.path()).unwrap();
                match name {
                    "." => crate::attributes::set_modified(&dir, Default::default()).unwrap(),
                    "etc" => {
                        crate::attributes::set_modified_at(&dir, "etc".as_ref(), Default::default()).unwrap()
                    }
                    _ => {
                        let etc = dir.open_dir("etc").unwrap();
                        crate::attributes::set_modified_at(&etc, "x".as_ref(), Default::default()).unwrap();
                    }
                }
            }
            let source = Source::Directory(Dir::open(directory.path()).unwrap(), None);
            imported(source, None).1.unwrap().id
        };
        assert_eq!(make("one"), make("one"));
        assert_ne!(make("one"), make("two"));
        let empty = tempfile::tempdir().unwrap();
        let result = imported(Source::Directory(Dir::open(empty.path()).unwrap(), None), None).1;
        assert!(matches!(result, Err(ImportError::NoSystem)));
    }
}
