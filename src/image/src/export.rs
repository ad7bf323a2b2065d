//! A tree becomes an archive, with owners as they are inside the container.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use cgrant_sys::Dir;

use crate::archive::{Compression, Kind, Member, Segment, Time, Writer};
use crate::attributes::LeftOut;
use crate::digest::{Hasher, Sha256};
use crate::limits::Limits;
use crate::place::{Omissions, PIECE};
use crate::progress::{Progress, Step, Watch};
use crate::walk::{Found, Walk, WalkError, pieces};

/// How well and how slowly zstd compresses: its own default.
const ZSTD_LEVEL: i32 = 3;
/// The same for xz.
const XZ_LEVEL: u32 = 6;

/// Why a tree did not become an archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It can't be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// Where the archive goes takes it not.
    #[error("the archive could not be written")]
    Write(#[source] io::Error),
    /// Not something that archives are compressed with here.
    #[error("archives are written as tar, tar.gz, tar.xz and tar.zst")]
    Compression,
}

/// What an archive is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'a> {
    /// The files alone, as every tool for containers takes them.
    Plain,
    /// An image for Incus, in one archive: this `metadata.yaml`, and the files below `rootfs/`.
    Unified(&'a str),
    /// A container: a member of this name with this text, and the files below `rootfs/`.
    Described(&'a str, &'a str),
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Sum of the archive as it was written.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// What was left out.
    pub omissions: Omissions,
}

/// Writes what is below `root`, which nobody changes meanwhile, to `output`, as root of the storage namespace.
///
/// # Errors
/// [`ExportError`]; what was written until then is no archive.
pub fn export(
    root: &Dir,
    form: Form<'_>,
    compression: Compression,
    output: impl Write,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Exported, ExportError> {
    let mut hasher = Hasher::new(output);
    let write = ExportError::Write;
    let omissions = match compression {
        Compression::None => tree(root, form, &mut hasher, limits, watch)?,
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut hasher, flate2::Compression::default());
            let omissions = tree(root, form, &mut encoder, limits, watch)?;
            encoder.finish().map_err(write)?;
            omissions
        }
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(&mut hasher, XZ_LEVEL);
            let omissions = tree(root, form, &mut encoder, limits, watch)?;
            encoder.finish().map_err(write)?;
            omissions
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut hasher, ZSTD_LEVEL).map_err(write)?;
            encoder.include_checksum(true).map_err(write)?;
            let omissions = tree(root, form, &mut encoder, limits, watch)?;
            encoder.finish().map_err(write)?;
            omissions
        }
        _ => return Err(ExportError::Compression),
    };
    hasher.flush().map_err(write)?;
    let size = hasher.count();
    Ok(Exported { sha256: hasher.finish().0, size, omissions })
}

/// What a tree is known by: the sum of all names, attributes and data in it. Where files have holes instead of zeros does not
/// matter, since copies may differ in that.
///
/// # Errors
/// [`ExportError::Walk`].
pub fn identity(root: &Dir, limits: &Limits, watch: &mut Watch<'_>) -> Result<Sha256, ExportError> {
    let mut hasher = Hasher::new(io::sink());
    let mut walk = Walk::new(limits, |found: Found<'_>| {
        let Found { path, mut member, file } = found;
        member.name = [&b"./"[..], &member.name].concat();
        let pieces = pieces(&member);
        if let Kind::File(segments) = &mut member.kind {
            *segments = Some(Vec::new());
        }
        Writer::new(&mut hasher).start(&member).map_err(ExportError::Write)?;
        if let Some(file) = file.filter(|_| matches!(member.kind, Kind::File(_))) {
            let read = |source| WalkError::Read { path: path.clone(), source };
            hash(&mut hasher, &file, &pieces).map_err(read)?;
        }
        watch(Progress { step: Step::Verify, done: hasher.count(), total: None });
        Ok(())
    });
    walk.run::<ExportError>(root)?;
    Ok(hasher.finish().0)
}

/// Hashes the data of a file: pieces of one size, those of zeros left out, each with its place.
fn hash(hasher: &mut Hasher<io::Sink>, file: &File, segments: &[Segment]) -> io::Result<()> {
    let size = PIECE as u64;
    let mut buffer = vec![0; PIECE];
    let mut next = 0;
    for segment in segments {
        let end = segment.offset.saturating_add(segment.length);
        // Of a piece that was hashed with the segment before, nothing is left.
        let mut offset = next.max(segment.offset - segment.offset % size);
        while offset < end {
            let mut filled = 0;
            while filled < buffer.len() {
                let rest = buffer.get_mut(filled..).unwrap_or_default();
                match file.read_at(rest, offset.saturating_add(filled as u64))? {
                    0 => break,
                    count => filled = filled.saturating_add(count),
                }
            }
            let piece = buffer.get(..filled).unwrap_or_default();
            if piece.iter().any(|byte| *byte != 0) {
                hasher.write_all(&offset.to_le_bytes())?;
                hasher.write_all(piece)?;
            }
            offset = offset.saturating_add(size);
        }
        next = offset;
    }
    Ok(())
}

fn tree(
    root: &Dir,
    form: Form<'_>,
    output: impl Write,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Omissions, ExportError> {
    let mut writer = Writer::new(output);
    let prefix = match form {
        Form::Plain => &b"./"[..],
        Form::Unified(metadata) => {
            description(&mut writer, "metadata.yaml", metadata).map_err(ExportError::Write)?;
            b"rootfs/"
        }
        Form::Described(name, text) => {
            description(&mut writer, name, text).map_err(ExportError::Write)?;
            b"rootfs/"
        }
    };
    let mut omissions = Omissions::default();
    let mut done = 0;
    let mut walk = Walk::new(limits, |found: Found<'_>| {
        let Found { path, mut member, file } = found;
        match member.kind {
            Kind::Device => omissions.add(path, LeftOut::Device),
            Kind::Whiteout => omissions.add(path, LeftOut::Whiteout),
            _ => {
                member.name = [prefix, &member.name].concat();
                if let Kind::HardLink(target) = &mut member.kind {
                    *target = [prefix, target].concat();
                }
                writer.start(&member).map_err(ExportError::Write)?;
                if let (Some(file), Kind::File(_)) = (file, &member.kind) {
                    let read = |source| WalkError::Read { path: path.clone(), source };
                    data(&mut writer, &member, &file, &mut |count| {
                        done += count;
                        watch(Progress { step: Step::Copy, done, total: None });
                    })
                    .map_err(|failure| match failure {
                        Failure::Read(source) => ExportError::Walk(read(source)),
                        Failure::Write(source) => ExportError::Write(source),
                    })?;
                }
                writer.finish_member().map_err(ExportError::Write)?;
            }
        }
        Ok(())
    });
    walk.run::<ExportError>(root)?;
    let sockets = walk.omissions;
    writer.finish().map_err(ExportError::Write)?;
    omissions.count = omissions.count.saturating_add(sockets.count);
    omissions.first.extend(sockets.first);
    Ok(omissions)
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

/// The data of a file. What it lost since its size was read is zeros.
fn data(
    writer: &mut Writer<impl Write>,
    member: &Member,
    file: &File,
    done: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE];
    for segment in pieces(member) {
        let mut offset = segment.offset;
        let end = segment.offset.saturating_add(segment.length);
        while offset < end {
            let most = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..most).unwrap_or_default();
            let count = file.read_at(piece, offset).map_err(Failure::Read)?;
            let count = if count == 0 {
                piece.fill(0);
                most
            } else {
                count
            };
            writer.data(piece.get(..count).unwrap_or_default()).map_err(Failure::Write)?;
            offset = offset.saturating_add(count as u64);
            done(count as u64);
        }
    }
    Ok(())
}

/// The first member, which says what the others are.
fn description(writer: &mut Writer<impl Write>, name: &str, metadata: &str) -> io::Result<()> {
    let member = Member {
        name: name.as_bytes().to_vec(),
        kind: Kind::File(None),
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Time::default(),
        size: metadata.len() as u64,
        xattrs: Vec::new(),
        acl_access: None,
        acl_default: None,
    };
    writer.start(&member)?;
    writer.data(metadata.as_bytes())?;
    writer.finish_member()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{MetadataExt, symlink};

    use crate::unpack::unpack;

    fn scene() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("usr/bin").join("x".repeat(150))).unwrap();
        std::fs::write(root.join("usr/bin/su"), "su").unwrap();
        std::os::unix::fs::chown(root.join("usr/bin/su"), Some(3), Some(4)).unwrap();
        rustix::fs::chmod(root.join("usr/bin/su"), rustix::fs::Mode::from_raw_mode(0o4755)).unwrap();
        rustix::fs::setxattr(root.join("usr/bin/su"), "user.x", b"\n", rustix::fs::XattrFlags::empty())
            .unwrap();
        std::fs::hard_link(root.join("usr/bin/su"), root.join("zz")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        let sparse = File::create(root.join("sparse")).unwrap();
        sparse.set_len(32 << 20).unwrap();
        sparse.write_all_at(b"x", 16 << 20).unwrap();
        directory
    }

    fn open(directory: &tempfile::TempDir, name: &str) -> Dir {
        let path = directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Dir::open(&path).unwrap()
    }

    fn exported(root: &Dir, form: Form<'_>, compression: Compression) -> (Vec<u8>, Exported) {
        let mut bytes = Vec::new();
        let exported = export(root, form, compression, &mut bytes, &Limits::default(), &mut |_| ()).unwrap();
        (bytes, exported)
    }

    #[test]
    fn what_is_exported_comes_back_the_same() {
        let directory = scene();
        let root = open(&directory, "root");
        let plain = identity(&root, &Limits::default(), &mut |_| ()).unwrap();
        for (place, compression) in
            [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd].into_iter().enumerate()
        {
            let (bytes, exported) = exported(&root, Form::Plain, compression);
            assert_eq!(exported.size, bytes.len() as u64);
            assert_eq!(exported.sha256, Sha256::of_reader(&bytes[..], None, &mut |_| ()).unwrap());
            assert!(bytes.len() < 1 << 20, "holes are left out");
            let again = open(&directory, &format!("again{place}"));
            let unpacked = unpack(&bytes[..], None, &again, &Limits::default(), &mut |_| ()).unwrap();
            assert_eq!((unpacked.compression, unpacked.omissions.count), (compression, 0));
            assert_eq!(identity(&again, &Limits::default(), &mut |_| ()).unwrap(), plain, "{compression:?}");
        }
    }

    #[test]
    fn everything_is_part_of_the_identity() {
        let directory = scene();
        let root = open(&directory, "root");
        let path = directory.path().join("root");
        let mut seen = vec![identity(&root, &Limits::default(), &mut |_| ()).unwrap()];
        type Change<'a> = &'a dyn Fn();
        let changes: [Change<'_>; 5] = [
            &|| std::fs::write(path.join("usr/bin/su"), "us").unwrap(),
            &|| std::os::unix::fs::chown(path.join("usr"), Some(1), None).unwrap(),
            &|| rustix::fs::chmod(path.join("usr"), rustix::fs::Mode::RWXU).unwrap(),
            &|| rustix::fs::removexattr(path.join("usr/bin/su"), "user.x").unwrap(),
            &|| std::fs::remove_file(path.join("zz")).unwrap(),
        ];
        for change in changes {
            let before = std::fs::metadata(path.join("usr/bin/su")).unwrap().mtime();
            change();
            assert!(before > 0);
            let now = identity(&root, &Limits::default(), &mut |_| ()).unwrap();
            assert!(!seen.contains(&now));
            seen.push(now);
        }
    }

    #[test]
    fn holes_are_no_part_of_the_identity() {
        let made = |make: &dyn Fn(&File)| {
            let directory = tempfile::tempdir().unwrap();
            let dir = open(&directory, "root");
            let file = File::create(directory.path().join("root/f")).unwrap();
            make(&file);
            file.set_len(300_000).unwrap();
            let blocks = file.metadata().unwrap().blocks();
            crate::attributes::set_modified(&file, Time::default()).unwrap();
            crate::attributes::set_modified(&dir, Time::default()).unwrap();
            (identity(&dir, &Limits::default(), &mut |_| ()).unwrap(), blocks)
        };
        let (holes, few) = made(&|file| {
            file.write_all_at(b"x", 5000).unwrap();
            file.write_all_at(b"y", 40_000).unwrap();
            file.write_all_at(b"z", 299_999).unwrap();
        });
        let (full, many) = made(&|file| {
            let mut data = vec![0; 300_000];
            (data[5000], data[40_000], data[299_999]) = (b'x', b'y', b'z');
            file.write_all_at(&data, 0).unwrap();
        });
        assert!(few < many);
        assert_eq!(holes, full);
        assert_ne!(made(&|file| file.write_all_at(b"x", 5001).unwrap()).0, holes);
        assert_ne!(made(&|_| ()).0, made(&|file| file.write_all_at(b"x", 131_072).unwrap()).0);
        let moved = |offset| made(&|file: &File| file.write_all_at(&[7; PIECE], offset).unwrap()).0;
        assert_ne!(moved(0), moved(PIECE as u64));
    }

    #[test]
    fn a_unified_image_has_its_description_first() {
        let directory = scene();
        let (bytes, _) =
            exported(&open(&directory, "root"), Form::Unified("architecture: x86_64\n"), Compression::Zstd);
        let unpacked = open(&directory, "unpacked");
        unpack(&bytes[..], None, &unpacked, &Limits::default(), &mut |_| ()).unwrap();
        assert_eq!(unpacked.read("metadata.yaml", 100).unwrap(), "architecture: x86_64\n");
        let plain = identity(&open(&directory, "root"), &Limits::default(), &mut |_| ()).unwrap();
        let rootfs = unpacked.open_dir("rootfs").unwrap();
        assert_eq!(identity(&rootfs, &Limits::default(), &mut |_| ()).unwrap(), plain);
    }

    #[test]
    fn a_full_pipe_is_no_unreadable_tree() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let directory = scene();
        let root = open(&directory, "root");
        let result = export(&root, Form::Plain, Compression::None, Full, &Limits::default(), &mut |_| ());
        assert!(matches!(result, Err(ExportError::Write(_))));
        let result = export(&root, Form::Plain, Compression::Zip, Full, &Limits::default(), &mut |_| ());
        assert!(matches!(result, Err(ExportError::Compression)));
    }
}
