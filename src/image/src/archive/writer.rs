//! Archives as they are written: ustar with pax records for whatever does not fit.

use std::io::{self, Write};

use super::{ACL_ACCESS_RECORD, ACL_DEFAULT_RECORD, BLOCK, Kind, Member, Segment, XATTR_RECORD, pax, sparse};

/// Largest number in twelve places.
const MAX_SIZE: u64 = 0o777_7777_7777;
/// Largest number in eight places.
const MAX_ID: u64 = 0o777_7777;
/// Bytes of a name in a header.
const NAME: usize = 100;

/// An archive that is being written.
#[derive(Debug)]
pub(crate) struct Writer<W> {
    output: W,
    /// Data that the member still must be given.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    pub fn new(output: W) -> Self {
        Self { output, left: 0, padding: 0 }
    }

    /// Begins a member; its stored data follow.
    pub fn start(&mut self, member: &Member) -> io::Result<()> {
        let map = match &member.kind {
            Kind::File(Some(segments)) => sparse::encode_map(segments, member.size),
            _ => Vec::new(),
        };
        let data = stored(member);
        let size = data.checked_add(map.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let records = records(member, size);
        if !records.is_empty() {
            let mut header = header(b"pax", b'x', records.len() as u64);
            header.set_mode(0o644);
            self.block(&mut header, &records)?;
        }
        let mut header = header(&member.name, flag(&member.kind), size.min(MAX_SIZE));
        if let Kind::HardLink(link) | Kind::SymbolicLink(link) = &member.kind {
            put(&mut header.as_old_mut().linkname, link);
        }
        header.set_mode(member.mode & 0o7777);
        header.set_uid(member.uid.min(MAX_ID));
        header.set_gid(member.gid.min(MAX_ID));
        header.set_mtime(u64::try_from(member.modified.seconds).unwrap_or_default().min(MAX_SIZE));
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(&map)?;
        self.left = data;
        self.padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or_default();
        Ok(())
    }

    /// Some of the member's data, at most what its header said.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.output.write_all(bytes)
    }

    /// Ends the member, which must have been given all its data.
    pub fn finish_member(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let zeros = [0; BLOCK];
        self.output.write_all(zeros.get(..self.padding).unwrap_or_default())
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }

    fn block(&mut self, header: &mut tar::Header, bytes: &[u8]) -> io::Result<()> {
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(bytes)?;
        let zeros = [0; BLOCK];
        self.output.write_all(zeros.get(..bytes.len().wrapping_neg() % BLOCK).unwrap_or_default())
    }
}

/// How many bytes of data the archive holds of a member.
fn stored(member: &Member) -> u64 {
    match &member.kind {
        Kind::File(None) => member.size,
        Kind::File(Some(segments)) => {
            segments.iter().fold(0, |sum, Segment { length, .. }| sum.saturating_add(*length))
        }
        _ => 0,
    }
}

/// What the header can't say.
fn records(member: &Member, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &str, value: &[u8]| records.extend(pax::encode(key, value));
    if !fits(&member.name) {
        add("path", &member.name);
    }
    if let Kind::HardLink(link) | Kind::SymbolicLink(link) = &member.kind
        && !fits(link)
    {
        add("linkpath", link);
    }
    if let Kind::File(Some(_)) = member.kind {
        add("GNU.sparse.major", b"1");
        add("GNU.sparse.minor", b"0");
        add("GNU.sparse.name", &member.name);
        add("GNU.sparse.realsize", member.size.to_string().as_bytes());
    }
    if size > MAX_SIZE {
        add("size", size.to_string().as_bytes());
    }
    for (key, id) in [("uid", member.uid), ("gid", member.gid)] {
        if id > MAX_ID {
            add(key, id.to_string().as_bytes());
        }
    }
    if let Some(time) = odd_time(member.modified) {
        add("mtime", time.as_bytes());
    }
    for (name, value) in &member.xattrs {
        if let Ok(name) = std::str::from_utf8(name) {
            add(&format!("{XATTR_RECORD}{name}"), value);
        }
    }
    for (key, acl) in [(ACL_ACCESS_RECORD, &member.acl_access), (ACL_DEFAULT_RECORD, &member.acl_default)] {
        if let Some(acl) = acl {
            add(key, acl);
        }
    }
    records
}

/// Times with fractions, or before 1970.
fn odd_time(time: super::Time) -> Option<String> {
    match (time.seconds, time.nanoseconds) {
        (0.., 0) => None,
        (seconds, 0) => Some(seconds.to_string()),
        (seconds @ 0.., nanoseconds) => Some(format!("{seconds}.{nanoseconds:09}")),
        // -2 s and 0.75 s are written -1.25.
        (seconds, nanoseconds) => {
            let whole = seconds.saturating_add(1).unsigned_abs();
            Some(format!("-{whole}.{:09}", 1_000_000_000_u32.saturating_sub(nanoseconds)))
        }
    }
}

fn fits(name: &[u8]) -> bool {
    name.len() <= NAME && name.is_ascii()
}

fn header(name: &[u8], flag: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    put(&mut header.as_old_mut().name, name);
    header.as_old_mut().linkflag = [flag];
    header.set_size(size);
    for set in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime] {
        set(&mut header, 0);
    }
    header
}

/// As much of a name as there is room for.
fn put(place: &mut [u8; NAME], name: &[u8]) {
    for (to, from) in place.iter_mut().zip(name) {
        *to = *from;
    }
}

fn flag(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => b'0',
        Kind::HardLink(_) => b'1',
        Kind::SymbolicLink(_) => b'2',
        Kind::Device | Kind::Whiteout => b'3',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}
