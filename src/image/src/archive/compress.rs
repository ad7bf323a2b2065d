//! What an archive is compressed with, told from its first bytes, and decoders that have bounds.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

use super::{BLOCK, LimitHit};
use crate::limits::Limits;

/// Bytes that are looked at to know what something is: a header of tar.
const PEEK: usize = BLOCK;

/// What a file is, told from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// bzip2, which is not read.
    Bzip2,
    /// A file system of squashfs, no archive.
    Squashfs,
    /// A disk image of qcow2, no archive.
    Qcow2,
    /// A zip archive, which is not read.
    Zip,
    /// None of these.
    Unknown,
}

impl Compression {
    /// Tells what begins with `bytes`: at least 512 of them where there are as many.
    pub fn of(bytes: &[u8]) -> Self {
        const MAGIC: [(&[u8], Compression); 7] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (b"BZh", Compression::Bzip2),
            (b"hsqs", Compression::Squashfs),
            (b"QFI\xfb", Compression::Qcow2),
            (b"PK\x03\x04", Compression::Zip),
        ];
        if let Some((_, compression)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
            return *compression;
        }
        if is_tar_header(bytes) { Self::None } else { Self::Unknown }
    }
}

/// A header's checksum is right, or this is the end of an empty archive.
fn is_tar_header(bytes: &[u8]) -> bool {
    let Some(block) = bytes.first_chunk::<BLOCK>() else { return false };
    let header = tar::Header::from_byte_slice(block);
    block.iter().all(|byte| *byte == 0)
        || header.cksum().is_ok_and(|sum| sum == super::reader::checksum(block))
}

/// A source counted as it is read. An error of it is marked, so that it isn't taken for damage.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Ok(count) => {
                    // Wider than any file: it can't wrap.
                    self.count.set(self.count.get().saturating_add(count as u64));
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(io::Error::other(LimitHit::Source(error.kind()))),
            }
        }
    }
}

/// Decompressed bytes of a source, with bounds on their number, on its ratio to what was read, and on memory.
pub struct Decoder<'a> {
    inner: Box<dyn Read + 'a>,
    compression: Compression,
    read: Rc<Cell<u64>>,
    produced: u64,
    limits: Limits,
}

impl<'a> Decoder<'a> {
    /// Looks at the beginning of `source`. `None` with what it is where that is nothing that can be decoded.
    ///
    /// # Errors
    /// Those of `source`; memory.
    pub fn new(source: impl Read + 'a, limits: Limits) -> io::Result<Result<Self, Compression>> {
        let read = Rc::new(Cell::new(0));
        let mut source = BufReader::with_capacity(1 << 17, Counted { inner: source, count: read.clone() });
        let beginning = peek(&mut source)?;
        let compression = Compression::of(&beginning);
        let source = io::Cursor::new(beginning).chain(source);
        let inner: Box<dyn Read + 'a> = match compression {
            Compression::None => Box::new(source),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Compression::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let stream = liblzma::stream::Stream::new_stream_decoder(Limits::DECODER, flags)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(Limits::DECODER.ilog2())?;
                Box::new(decoder)
            }
            other => return Ok(Err(other)),
        };
        Ok(Ok(Self { inner, compression, read, produced: 0, limits }))
    }

    /// What the source is compressed with.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// How many bytes of the source were read; shared, so that it can be asked while this is read.
    pub(crate) fn consumed(&self) -> Rc<Cell<u64>> {
        self.read.clone()
    }
}

/// The first [`PEEK`] bytes, or all.
fn peek(source: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut beginning = Vec::with_capacity(PEEK);
    source.by_ref().take(PEEK as u64).read_to_end(&mut beginning)?;
    Ok(beginning)
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.produced = self.produced.saturating_add(count as u64);
        if self.produced > self.limits.bytes {
            return Err(io::Error::other(LimitHit::Bytes(self.limits.bytes)));
        }
        if self.produced > Limits::RATIO_FREE
            && self.produced / self.limits.ratio.max(1) > self.read.get().max(1)
        {
            return Err(io::Error::other(LimitHit::Ratio(self.limits.ratio)));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::archive::{ArchiveError, Reader};

    use std::io::Write;

    /// An archive without members.
    const EMPTY: [u8; 1024] = [0; 1024];

    fn dressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
                encoder.include_checksum(true).unwrap();
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            _ => bytes.to_vec(),
        }
    }

    fn read(bytes: &[u8], limits: Limits) -> Result<Vec<u8>, ArchiveError> {
        let mut decoder = Decoder::new(bytes, limits)?.unwrap_or_else(|kind| panic!("{kind:?}"));
        let mut all = Vec::new();
        decoder.read_to_end(&mut all)?;
        Ok(all)
    }

    const DRESSES: [Compression; 4] =
        [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd];

    #[test]
    fn every_dress_is_known_by_its_first_bytes() {
        for compression in DRESSES {
            let bytes = dressed(compression, &EMPTY);
            assert_eq!(Compression::of(&bytes), compression);
            assert_eq!(read(&bytes, Limits::default()).unwrap(), EMPTY);
        }
        for (bytes, kind) in [
            (&b"hsqs\0\0"[..], Compression::Squashfs),
            (b"PK\x03\x04", Compression::Zip),
            (b"BZh9", Compression::Bzip2),
            (b"QFI\xfb", Compression::Qcow2),
            (b"<html>", Compression::Unknown),
            (b"", Compression::Unknown),
        ] {
            assert_eq!(Decoder::new(bytes, Limits::default()).unwrap().err(), Some(kind));
        }
    }

    #[test]
    fn several_streams_are_one() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let bytes = [dressed(compression, &EMPTY), dressed(compression, b"more")].concat();
            assert_eq!(read(&bytes, Limits::default()).unwrap().len(), EMPTY.len() + 4, "{compression:?}");
        }
    }

    #[test]
    fn damage_is_told_from_the_end() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let text: Vec<u8> =
                (0..100_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
            let bytes = dressed(compression, &[&EMPTY[..], &text].concat());
            let cut = read(&bytes[..bytes.len() / 2], Limits::default()).map(|bytes| bytes.len());
            assert!(matches!(cut, Err(ArchiveError::CutOff)), "{compression:?}: {cut:?}");
            let mut damaged = bytes.clone();
            let middle = damaged.len() / 2;
            damaged[middle..middle + 64].fill(0x55);
            let result = read(&damaged, Limits::default()).map(|bytes| bytes.len());
            assert!(matches!(result, Err(ArchiveError::Damaged(_))), "{compression:?}: {result:?}");
        }
    }

    /// All members are there, but not what says that they are those that were written.
    #[test]
    fn what_is_cut_off_behind_the_archives_end_is_seen() {
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let bytes = dressed(compression, &EMPTY);
            let finished = |bytes: &[u8]| {
                let decoder = Decoder::new(bytes, Limits::default()).unwrap().unwrap();
                let mut reader = Reader::new(decoder, Limits::default());
                assert!(reader.next_member().unwrap().is_none(), "{compression:?}");
                reader.finish()
            };
            finished(&bytes).unwrap();
            let cut = finished(&bytes[..bytes.len() - 1]);
            assert!(matches!(cut, Err(ArchiveError::CutOff)), "{compression:?}: {cut:?}");
        }
    }

    #[test]
    fn bombs_go_off_outside() {
        let bomb = vec![0; (Limits::RATIO_FREE + (1 << 20)) as usize];
        for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let result = read(&dressed(compression, &bomb), Limits::default());
            assert!(matches!(result, Err(ArchiveError::Ratio(400))), "{compression:?}");
            let limits = Limits { bytes: 1 << 20, ..Limits::default() };
            let result = read(&dressed(compression, &bomb[..2 << 20]), limits);
            assert!(matches!(result, Err(ArchiveError::TooLarge(_))), "{compression:?}");
        }
    }

    #[test]
    fn a_source_that_fails_is_no_damage() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::PermissionDenied.into())
            }
        }
        for compression in DRESSES {
            let bytes = dressed(compression, &[&EMPTY[..], &[1; 4096]].concat());
            let source = bytes[..bytes.len() / 2].chain(Fails);
            let error = match Decoder::new(source, Limits::default()) {
                Ok(decoder) => decoder.unwrap_or_else(|_| panic!()).read_to_end(&mut Vec::new()).unwrap_err(),
                Err(error) => error,
            };
            assert!(matches!(ArchiveError::from(error), ArchiveError::Read(_)), "{compression:?}");
        }
    }
}
