//! Archives of tar, read from the first byte to the last by somebody who trusts none of them.
//!
//! Formats: v7, ustar, pax and GNU with long names and both kinds of sparse files. The `tar` crate decodes header
//! fields; the framing around them is here, because that crate's own reads extensions without bound.
//! Sources: `tar(5)`, `pax(1)` of POSIX.1-2001, "Storing Sparse Files" in GNU tar's manual.

mod compress;
mod pax;
mod reader;
mod sparse;
mod writer;

use std::io;

use serde::{Deserialize, Serialize};

pub use compress::{Compression, Decoder};
pub use reader::Reader;
pub use sparse::Segment;
pub(crate) use writer::Writer;

use crate::limits::Limits;

/// Size of headers; what everything in an archive is a multiple of.
pub(crate) const BLOCK: usize = 512;

/// Prefix of pax records that hold an extended attribute.
pub(crate) const XATTR_RECORD: &str = "SCHILY.xattr.";
/// pax record with an access control list, as text.
pub(crate) const ACL_ACCESS_RECORD: &str = "SCHILY.acl.access";
/// pax record with the list that a directory's entries inherit, as text.
pub(crate) const ACL_DEFAULT_RECORD: &str = "SCHILY.acl.default";

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file, with the pieces of it that the archive holds if it has holes.
    File(Option<Vec<Segment>>),
    /// Another name of the member that is named.
    HardLink(Vec<u8>),
    /// A symbolic link with its text.
    SymbolicLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A device node.
    Device,
    /// What an overlay's upper layer says "removed" with: a node of device 0:0. Never what an archive holds.
    Whiteout,
}

/// A time in seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Time {
    /// Seconds; before 1970 negative.
    pub seconds: i64,
    /// Nanoseconds, below 1 000 000 000.
    pub nanoseconds: u32,
}

/// One member of an archive, without its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, unchecked.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky: `07777` at most.
    pub mode: u32,
    /// Its owner inside the container, unchecked.
    pub uid: u64,
    /// Its group inside the container, unchecked.
    pub gid: u64,
    /// When it was changed.
    pub modified: Time,
    /// Its apparent size, holes included.
    pub size: u64,
    /// Extended attributes with their values, unchecked.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control list as text, unchecked.
    pub acl_access: Option<Vec<u8>>,
    /// Access control list that entries inherit, as text, unchecked.
    pub acl_default: Option<Vec<u8>>,
}

/// Why an archive can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading the source failed.
    #[error("the archive could not be read")]
    Read(#[source] io::Error),
    /// The compressed data are damaged.
    #[error("the archive's compressed data are damaged, or need more than {} MiB of memory", Limits::DECODER >> 20)]
    Damaged(#[source] io::Error),
    /// It ends before its end.
    #[error("the archive is cut off: get it again, and compare its checksum")]
    CutOff,
    /// Not a tar archive, or one that is damaged.
    #[error("this is no tar archive, or a damaged one ({0})")]
    Malformed(&'static str),
    /// A kind of member that is not for file trees.
    #[error("the archive has a member of the type {0:?}, which has no place in an image")]
    UnknownType(char),
    /// More members than [`Limits::entries`].
    #[error("the archive has more than {0} members")]
    TooManyMembers(u64),
    /// More bytes than [`Limits::bytes`].
    #[error("the archive is larger than {0} bytes when it is decompressed")]
    TooLarge(u64),
    /// More bytes for each compressed one than [`Limits::ratio`].
    #[error(
        "the archive decompresses to more than {0} times its size, as those do that are made to fill disks"
    )]
    Ratio(u64),
    /// A header larger than [`Limits::EXTENSION`], or too many of them for one member.
    #[error("a member of the archive has headers of unreasonable size")]
    HeaderTooLarge,
    /// A file with more pieces than [`Limits::SEGMENTS`], or that is larger than [`Limits::file_size`].
    #[error("a file in the archive claims {0} bytes")]
    FileTooLarge(u64),
}

/// What a reader reports through `std::io::Read`, whose errors are of the one type.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum LimitHit {
    #[error("too large")]
    Bytes(u64),
    #[error("too compressible")]
    Ratio(u64),
    #[error("the source could not be read: {0}")]
    Source(io::ErrorKind),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<LimitHit>()) {
            Some(LimitHit::Bytes(limit)) => Self::TooLarge(*limit),
            Some(LimitHit::Ratio(limit)) => Self::Ratio(*limit),
            Some(LimitHit::Source(_)) => Self::Read(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::CutOff,
            None => Self::Damaged(error),
        }
    }
}
