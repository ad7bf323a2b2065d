//! How much a source may ask for. A source is hostile until proven otherwise; these numbers are what it costs at most.

/// Bounds on what is read from a source, and on what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive when it is decompressed, headers included.
    pub bytes: u64,
    /// Members of an archive, or entries of a directory tree.
    pub entries: u64,
    /// Apparent size of one file, holes included.
    pub file_size: u64,
    /// Decompressed bytes for each compressed one, past the first [`Limits::RATIO_FREE`].
    pub ratio: u64,
    /// Bytes that stay free on the file system.
    pub keep_free: u64,
    /// Owners are below this: the size of the container's range. The storage namespace maps the caller's own account above it.
    pub ids: u32,
}

impl Limits {
    /// What may be decompressed before the ratio is looked at: small archives of text compress well.
    pub const RATIO_FREE: u64 = 256 << 20;
    /// Longest path of a member, in bytes.
    pub const PATH: usize = 4096;
    /// Most directories above a member.
    pub const DEPTH: usize = 256;
    /// Longest header of a member that is a file of its own: a long name, extended attributes.
    pub const EXTENSION: u64 = 1 << 20;
    /// Most pieces of a file with holes.
    pub const SEGMENTS: usize = 1 << 18;
    /// Most memory of a decompressor, in bytes.
    pub const DECODER: u64 = 256 << 20;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
            file_size: 1 << 40,
            ratio: 400,
            keep_free: 256 << 20,
            ids: 65_536,
        }
    }
}
