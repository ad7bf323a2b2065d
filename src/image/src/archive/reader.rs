//! Members of an archive, one after the other.

use std::io::{self, Read};

use super::pax::Extended;
use super::{ArchiveError, BLOCK, Kind, Member, Segment, Time, sparse};
use crate::limits::Limits;

/// Most headers before a member that say more of it.
const MAX_EXTENSIONS: usize = 16;

/// Most bytes of headers that hold for all members: each member pays for them.
const MAX_GLOBAL: usize = 1 << 16;

/// An archive that is being read.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    limits: Limits,
    members: u64,
    /// Data of the member that were not read yet.
    data: u64,
    /// What follows them up to a block.
    padding: u64,
    /// What pax said of all members to come.
    global: Extended,
    /// How many bytes that took.
    global_size: usize,
}

/// What a member's headers said beside the last one.
struct Extensions {
    pax: Extended,
    has_pax: bool,
}

impl<R: Read> Reader<R> {
    /// Reads an archive that is decompressed already.
    pub fn new(input: R, limits: Limits) -> Self {
        Self { input, limits, members: 0, data: 0, padding: 0, global: Extended::default(), global_size: 0 }
    }

    /// The next member; `None` at the end. Skips what was not read of the last one's data.
    ///
    /// # Errors
    /// [`ArchiveError`]. Nothing more can be read after one.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        self.skip(self.data.saturating_add(self.padding))?;
        (self.data, self.padding) = (0, 0);
        let mut extensions = Extensions { pax: self.global.clone(), has_pax: false };
        for _ in 0..MAX_EXTENSIONS {
            let Some(block) = self.header()? else { return Ok(None) };
            let header = tar::Header::from_byte_slice(&block);
            match block.get(156) {
                Some(b'L') => extensions.pax.path = Some(self.long_name(header)?),
                Some(b'K') => extensions.pax.link = Some(self.long_name(header)?),
                Some(b'x' | b'X') => {
                    extensions.pax.add(&self.extension(header)?)?;
                    extensions.has_pax = true;
                }
                Some(b'g') => {
                    let bytes = self.extension(header)?;
                    self.global_size = self.global_size.saturating_add(bytes.len());
                    if self.global_size > MAX_GLOBAL {
                        return Err(ArchiveError::HeaderTooLarge);
                    }
                    self.global.add(&bytes)?;
                    extensions.pax.add(&bytes)?;
                }
                // A label of the whole archive.
                Some(b'V') => {
                    self.extension(header)?;
                }
                _ => return self.member(&block, extensions).map(Some),
            }
        }
        Err(ArchiveError::HeaderTooLarge)
    }

    /// After the last member: reads on to the end of the input, so that it is seen whether what it was compressed with ends there
    /// too, and with the checksums that it should. What follows the archive's mark is of no account, and bounded as all of it is.
    ///
    /// # Errors
    /// [`ArchiveError`]; what was read may then be other than what was written.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.input, &mut io::sink())?;
        Ok(())
    }

    /// Some of the member's data; nothing at their end.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..most).filter(|part| !part.is_empty()) else { return Ok(0) };
        let count = self.input.read(part)?;
        if count == 0 {
            return Err(ArchiveError::CutOff);
        }
        self.data = self.data.saturating_sub(count as u64);
        Ok(count)
    }

    /// The next header; `None` for the end's mark.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        // An archive that ends without its mark was cut off, or its writer failed.
        self.input.read_exact(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block);
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(ArchiveError::Malformed("a header's checksum"));
        }
        Ok(Some(block))
    }

    fn extension(&mut self, header: &tar::Header) -> Result<Vec<u8>, ArchiveError> {
        let size = field(header.entry_size())?;
        if size > Limits::EXTENSION {
            return Err(ArchiveError::HeaderTooLarge);
        }
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(ArchiveError::CutOff);
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    /// GNU's names end with a NUL.
    fn long_name(&mut self, header: &tar::Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn member(&mut self, block: &[u8; BLOCK], extensions: Extensions) -> Result<Member, ArchiveError> {
        self.members = self.members.saturating_add(1);
        if self.members > self.limits.entries {
            return Err(ArchiveError::TooManyMembers(self.limits.entries));
        }
        let header = tar::Header::from_byte_slice(block);
        let Extensions { pax, has_pax } = extensions;
        let sized = pax.size;
        let stored = match sized {
            Some(size) => size,
            None => field(header.entry_size())?,
        };
        let name = pax.sparse.name.clone().or_else(|| pax.path.clone());
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            let named =
                pax.link.clone().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            named.filter(|link| !link.is_empty()).ok_or(ArchiveError::Malformed("a link without a target"))
        };
        let kind = match block.get(156).copied().unwrap_or_default() {
            0 | b'0' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File(None),
            b'1' => Kind::HardLink(link()?),
            b'2' => Kind::SymbolicLink(link()?),
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(ArchiveError::UnknownType(char::from(other))),
        };
        let is_file = matches!(kind, Kind::File(_));
        // Of what is no file, older headers say a size without there being data; pax means what it says.
        let has_data = is_file || (has_pax && sized.is_some()) || block.get(156) == Some(&b'D');
        self.data = if has_data { stored } else { 0 };
        self.padding = padding(self.data);
        let mut member = Member {
            name,
            kind,
            mode: field(header.mode())? & 0o7777,
            uid: pax.uid.map_or_else(|| field(header.uid()), Ok)?,
            gid: pax.gid.map_or_else(|| field(header.gid()), Ok)?,
            modified: pax.modified.map_or_else(|| modified(header), Ok)?,
            size: if is_file { stored } else { 0 },
            xattrs: pax.xattrs,
            acl_access: pax.acl_access,
            acl_default: pax.acl_default,
        };
        if is_file {
            self.holes(&mut member, header, &pax.sparse)?;
        }
        if member.size > self.limits.file_size {
            return Err(ArchiveError::FileTooLarge(member.size));
        }
        Ok(member)
    }

    /// Where the file has holes, reads the map of what is between them.
    fn holes(
        &mut self,
        member: &mut Member,
        header: &tar::Header,
        pax: &super::pax::Sparse,
    ) -> Result<(), ArchiveError> {
        let segments = if header.entry_type() == tar::EntryType::GNUSparse {
            let gnu = header.as_gnu().ok_or(ArchiveError::Malformed("the header of a sparse file"))?;
            member.size = field(gnu.real_size())?;
            self.gnu_map(gnu)?
        } else if pax.is_some() {
            member.size = pax.real_size.ok_or(ArchiveError::Malformed("a sparse file without its size"))?;
            if pax.major == Some(1) {
                let (segments, taken) = sparse::read_map(&mut self.input, self.data)?;
                self.data = self.data.saturating_sub(taken);
                segments
            } else {
                pax.segments()?
            }
        } else {
            return Ok(());
        };
        member.kind = Kind::File(Some(sparse::checked(segments, member.size, self.data)?));
        Ok(())
    }

    /// The map of GNU's own format, which goes on in blocks of its own after the header.
    fn gnu_map(&mut self, header: &tar::GnuHeader) -> Result<Vec<Segment>, ArchiveError> {
        let mut segments = sparse::of_header(&header.sparse)?;
        let mut goes_on = header.is_extended();
        while goes_on {
            let mut more = tar::GnuExtSparseHeader::new();
            self.input.read_exact(more.as_mut_bytes())?;
            segments.extend(sparse::of_header(more.sparse())?);
            if segments.len() > Limits::SEGMENTS {
                return Err(ArchiveError::HeaderTooLarge);
            }
            goes_on = more.is_extended();
        }
        Ok(segments)
    }

    fn skip(&mut self, count: u64) -> Result<(), ArchiveError> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(ArchiveError::CutOff) }
    }
}

/// The sum of a header's bytes, with spaces for the sum itself.
pub(super) fn checksum(block: &[u8; BLOCK]) -> u32 {
    let places = block.iter().enumerate();
    places.map(|(place, byte)| if (148..156).contains(&place) { 32 } else { u32::from(*byte) }).sum()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn field<T>(value: io::Result<T>) -> Result<T, ArchiveError> {
    value.map_err(|_| ArchiveError::Malformed("a number in a header"))
}

fn modified(header: &tar::Header) -> Result<Time, ArchiveError> {
    // Times before 1970 are not told apart from the largest numbers here; pax says them right.
    let seconds = i64::try_from(field(header.mtime())?).unwrap_or_default();
    Ok(Time { seconds, nanoseconds: 0 })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::archive::{Writer, pax};

    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    pub fn member(name: &str, kind: Kind, size: u64) -> Member {
        Member {
            name: name.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: Time::default(),
            size,
            xattrs: Vec::new(),
            acl_access: None,
            acl_default: None,
        }
    }

    type Content = Vec<(Member, Vec<u8>)>;

    fn read(bytes: &[u8], limits: Limits) -> Result<Content, ArchiveError> {
        let mut reader = Reader::new(bytes, limits);
        let mut members = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut data = Vec::new();
            let mut buffer = [0; 1000];
            loop {
                let count = reader.read_data(&mut buffer)?;
                if count == 0 {
                    break;
                }
                data.extend(&buffer[..count]);
            }
            members.push((member, data));
        }
        Ok(members)
    }

    fn written(members: &Content) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (member, data) in members {
            writer.start(member).unwrap();
            writer.data(data).unwrap();
            writer.finish_member().unwrap();
        }
        writer.finish().unwrap()
    }

    /// What GNU tar makes of a directory, with these options.
    fn gnu_tar(directory: &std::path::Path, options: &[&str]) -> Vec<u8> {
        let output = Command::new("tar")
            .args(["--create", "--sort=name", "--numeric-owner", "--directory"])
            .arg(directory)
            .args(options)
            .arg(".")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn what_gnu_tar_writes_is_read_in_all_its_formats() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let long = "n".repeat(200);
        std::fs::create_dir_all(path.join("d").join(&long)).unwrap();
        std::fs::write(path.join("d").join(&long).join("f"), "text").unwrap();
        std::os::unix::fs::symlink("t".repeat(150), path.join("l")).unwrap();
        std::fs::hard_link(path.join("d").join(&long).join("f"), path.join("z")).unwrap();
        let sparse = std::fs::File::create(path.join("s")).unwrap();
        sparse.set_len(100 << 20).unwrap();
        for place in 0..40_u64 {
            sparse.write_all_at(&[place as u8 + 1; 4096], (place * 2) << 20).unwrap();
        }
        if sparse.metadata().unwrap().blocks() > 4096 {
            panic!("the file system for temporary files makes no holes");
        }
        for options in [
            &["--format=gnu", "--sparse"][..],
            &["--format=pax", "--sparse", "--sparse-version=0.0"],
            &["--format=pax", "--sparse", "--sparse-version=0.1"],
            &["--format=pax", "--sparse", "--sparse-version=1.0"],
        ] {
            let bytes = gnu_tar(path, options);
            let members = read(&bytes, Limits::default()).unwrap();
            let find = |name: &str| {
                members
                    .iter()
                    .find(|(member, _)| member.name == name.as_bytes())
                    .unwrap_or_else(|| panic!("{name}"))
            };
            assert_eq!(find(&format!("./d/{long}/f")).1, b"text", "{options:?}");
            assert_eq!(find("./l").0.kind, Kind::SymbolicLink("t".repeat(150).into()));
            assert_eq!(find("./z").0.kind, Kind::HardLink(format!("./d/{long}/f").into()));
            let (file, data) = find("./s");
            assert_eq!(file.size, 100 << 20, "{options:?}");
            let Kind::File(Some(segments)) = &file.kind else { panic!("{options:?}") };
            assert!(segments.len() >= 40, "{options:?}");
            let at = |offset: u64| {
                let mut start = 0;
                for segment in segments {
                    if (segment.offset..segment.offset + segment.length).contains(&offset) {
                        return data[start + (offset - segment.offset) as usize];
                    }
                    start += segment.length as usize;
                }
                0
            };
            for place in 0..40_u64 {
                assert_eq!(at((place * 2) << 20), place as u8 + 1, "{options:?}");
            }
        }
        let members =
            read(&gnu_tar(path, &["--format=v7", "--exclude=n*", "--exclude=[lsz]"]), Limits::default());
        let members = members.unwrap();
        assert_eq!(members.len(), 2);
        assert!(members.iter().all(|(member, _)| member.kind == Kind::Directory));
    }

    #[test]
    fn gnu_tar_reads_what_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let long = "x".repeat(120);
        let mut file = member(&long, Kind::File(None), 5);
        file.modified = Time { seconds: 1_700_000_000, nanoseconds: 5 };
        let map = vec![Segment { offset: 1 << 20, length: 3 }];
        let bytes = written(&vec![
            (file, b"hello".to_vec()),
            (member("sparse", Kind::File(Some(map)), 2 << 20), b"abc".to_vec()),
        ]);
        std::fs::write(directory.path().join("a.tar"), bytes).unwrap();
        let status =
            Command::new("tar").args(["-xf", "a.tar"]).current_dir(directory.path()).status().unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read(directory.path().join(long)).unwrap(), b"hello");
        let sparse = std::fs::read(directory.path().join("sparse")).unwrap();
        assert_eq!((sparse.len(), &sparse[1 << 20..(1 << 20) + 4]), (2 << 20, &b"abc\0"[..]));
    }

    #[test]
    fn every_place_to_cut_it_off_is_seen() {
        let mut file = member("f", Kind::File(None), 700);
        file.xattrs.push((b"user.x".to_vec(), vec![1; 600]));
        let bytes = written(&vec![(file, vec![7; 700]), (member("d", Kind::Directory, 0), Vec::new())]);
        let end = bytes.len() - 1024;
        for cut in 0..end {
            let result = read(&bytes[..cut], Limits::default());
            assert!(matches!(result, Err(ArchiveError::CutOff)), "{cut}: {result:?}");
        }
        assert_eq!(read(&bytes, Limits::default()).unwrap().len(), 2);
    }

    #[test]
    fn headers_are_bounded() {
        let block = |kind: u8, size: u64| {
            let mut header = tar::Header::new_ustar();
            header.set_size(size);
            header.as_mut_bytes()[156] = kind;
            header.set_mode(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            header.as_bytes().to_vec()
        };
        for kind in [b'L', b'K', b'x', b'g', b'V'] {
            let huge = [block(kind, u64::MAX / 2), vec![0; 10_000]].concat();
            assert!(matches!(read(&huge, Limits::default()), Err(ArchiveError::HeaderTooLarge)), "{kind}");
            let many = block(kind, 0).repeat(MAX_EXTENSIONS + 1);
            assert!(matches!(read(&many, Limits::default()), Err(ArchiveError::HeaderTooLarge)), "{kind}");
        }
        let members = written(&vec![(member("a", Kind::Directory, 0), Vec::new()); 11]);
        let limits = Limits { entries: 10, ..Limits::default() };
        assert!(matches!(read(&members, limits), Err(ArchiveError::TooManyMembers(10))));
        let limits = Limits { file_size: 4, ..Limits::default() };
        let large = written(&vec![(member("a", Kind::File(None), 5), b"12345".to_vec())]);
        assert!(matches!(read(&large, limits), Err(ArchiveError::FileTooLarge(5))));
        let sparse = member("a", Kind::File(Some(Vec::new())), u64::MAX);
        let bytes = written(&vec![(sparse, Vec::new())]);
        assert!(matches!(read(&bytes, Limits::default()), Err(ArchiveError::FileTooLarge(u64::MAX))));
    }

    #[test]
    fn odd_members_are_refused() {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..1].copy_from_slice(b"a");
        header.set_size(0);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        for kind in [b'M', b'A', b'?', 0xff] {
            header.as_mut_bytes()[156] = kind;
            header.set_cksum();
            let result = read(&[header.as_bytes().as_slice(), &[0; 1024]].concat(), Limits::default());
            assert!(matches!(result, Err(ArchiveError::UnknownType(_))), "{kind}");
        }
        header.as_mut_bytes()[156] = b'2';
        header.set_cksum();
        let result = read(&[header.as_bytes().as_slice(), &[0; 1024]].concat(), Limits::default());
        assert!(matches!(result, Err(ArchiveError::Malformed(_))));
        header.as_mut_bytes()[100] ^= 1;
        let result = read(&[header.as_bytes().as_slice(), &[0; 1024]].concat(), Limits::default());
        assert!(matches!(result, Err(ArchiveError::Malformed("a header's checksum"))));
    }

    #[test]
    fn what_is_global_holds_for_all() {
        let records = pax::encode("uid", b"7");
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[156] = b'g';
        header.set_size(records.len() as u64);
        header.set_cksum();
        let mut bytes = [header.as_bytes().as_slice(), &records].concat();
        bytes.resize(1024, 0);
        bytes.extend(written(&vec![(member("a", Kind::Directory, 0), Vec::new()); 2]));
        let members = read(&bytes, Limits::default()).unwrap();
        assert_eq!(members.iter().map(|(member, _)| member.uid).collect::<Vec<_>>(), [7, 7]);
    }

    #[test]
    fn what_is_global_is_bounded() {
        let mut bytes = Vec::new();
        for place in 0..70 {
            let records = pax::encode(&format!("SCHILY.xattr.user.{place}"), &[b'x'; 1000]);
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[156] = b'g';
            header.set_size(records.len() as u64);
            header.set_cksum();
            bytes.extend([header.as_bytes().as_slice(), &records].concat());
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let member = written(&vec![(member("a", Kind::Directory, 0), Vec::new())]);
            bytes.extend(&member[..BLOCK]);
        }
        assert!(matches!(read(&bytes, Limits::default()), Err(ArchiveError::HeaderTooLarge)));
    }

    fn kinds() -> impl Strategy<Value = (Kind, Vec<u8>, u64)> {
        let text = proptest::collection::vec(1..=255_u8, 1..300);
        let data = proptest::collection::vec(any::<u8>(), 0..2000);
        let pieces = proptest::collection::vec((0..5000_u64, 1..100_u64), 0..60);
        prop_oneof![
            Just((Kind::Directory, Vec::new(), 0)),
            Just((Kind::Fifo, Vec::new(), 0)),
            text.clone().prop_map(|link| (Kind::HardLink(link), Vec::new(), 0)),
            text.prop_map(|link| (Kind::SymbolicLink(link), Vec::new(), 0)),
            data.prop_map(|data| {
                let size = data.len() as u64;
                (Kind::File(None), data, size)
            }),
            (pieces, 0..10_000_u64).prop_map(|(pieces, tail)| {
                let mut end = 0;
                let mut segments = Vec::new();
                for (gap, length) in pieces {
                    segments.push(Segment { offset: end + gap, length });
                    end += gap + length;
                }
                let stored = segments.iter().map(|segment| segment.length).sum::<u64>();
                (Kind::File(Some(segments)), vec![3; stored as usize], end + tail)
            }),
        ]
    }

    prop_compose! {
        fn members()(
            name in proptest::collection::vec(1..=255_u8, 1..300),
            (kind, data, size) in kinds(),
            mode in 0..0o10000_u32,
            uid in any::<u64>(),
            gid in 0..70_000_u64,
            seconds in any::<i32>(),
            nanoseconds in prop_oneof![Just(0), 0..1_000_000_000_u32],
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..600)),
            acl in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
        ) -> (Member, Vec<u8>) {
            // A file of this name would be a directory of old archives.
            let mut name = name;
            if name.ends_with(b"/") {
                name.push(b'x');
            }
            let xattrs = value.map(|value| (b"user.any".to_vec(), value)).into_iter().collect();
            let modified = Time { seconds: seconds.into(), nanoseconds };
            (Member { name, kind, mode, uid, gid, modified, size, xattrs, acl_access: acl.clone(), acl_default: acl }, data)
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(content in proptest::collection::vec(members(), 0..6)) {
            let limits = Limits { file_size: u64::MAX, ..Limits::default() };
            prop_assert_eq!(read(&written(&content), limits).unwrap(), content);
        }

        #[test]
        fn no_bytes_make_it_panic(
            content in proptest::collection::vec(members(), 1..4),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut bytes = written(&content);
            for (place, byte) in changes {
                // Right checksums let it come further.
                let place = place.index(bytes.len());
                let start = place / BLOCK * BLOCK;
                bytes[place] = byte;
                if let Some(block) = bytes.get_mut(start..start + BLOCK) {
                    let mut header = tar::Header::from_byte_slice(block).clone();
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
            let limits = Limits { bytes: 1 << 20, entries: 100, ..Limits::default() };
            let _ = read(&bytes, limits);
        }
    }
}
