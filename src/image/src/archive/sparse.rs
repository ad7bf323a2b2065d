//! Files with holes: the pieces of them that an archive holds.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::{ArchiveError, BLOCK, pax};
use crate::limits::Limits;

/// A piece of a file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

const MALFORMED: ArchiveError = ArchiveError::Malformed("the map of a sparse file");

/// The pieces, if they are in order, apart, within the file's `size` and together as long as the `stored` data.
pub(super) fn checked(segments: Vec<Segment>, size: u64, stored: u64) -> Result<Vec<Segment>, ArchiveError> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(MALFORMED);
        }
        end = segment.offset.checked_add(segment.length).filter(|end| *end <= size).ok_or(MALFORMED)?;
        total = total.checked_add(segment.length).ok_or(MALFORMED)?;
    }
    // Empty pieces say where a hole at the end ends, which the size says too.
    let segments = segments.into_iter().filter(|segment| segment.length > 0).collect();
    if total == stored { Ok(segments) } else { Err(MALFORMED) }
}

/// The pieces that four or twenty-one places of a GNU header name.
pub(super) fn of_header(places: &[tar::GnuSparseHeader]) -> Result<Vec<Segment>, ArchiveError> {
    let used = places.iter().filter(|place| !place.is_empty());
    used.map(|place| {
        let field = |value: std::io::Result<u64>| value.map_err(|_| MALFORMED);
        Ok(Segment { offset: field(place.offset())?, length: field(place.length())? })
    })
    .collect()
}

/// Reads the map that precedes the data in version 1.0 of the pax format: the number of pieces and then two numbers for
/// each, a line each, filled up to a block. Gives the map and how many bytes it took.
pub(super) fn read_map(input: &mut impl Read, stored: u64) -> Result<(Vec<Segment>, u64), ArchiveError> {
    let mut lines = Lines { input, block: Vec::new(), taken: 0, stored };
    let count = lines.number()?;
    if count > Limits::SEGMENTS as u64 {
        return Err(ArchiveError::HeaderTooLarge);
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment { offset: lines.number()?, length: lines.number()? });
    }
    Ok((segments, lines.taken))
}

/// Lines from whole blocks.
struct Lines<'a, R> {
    input: &'a mut R,
    /// What is left of the last block, backwards.
    block: Vec<u8>,
    taken: u64,
    stored: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, ArchiveError> {
        let mut line = Vec::new();
        // No number has more digits.
        while line.len() <= 20 {
            match self.byte()? {
                b'\n' => return pax::number(&line),
                byte => line.push(byte),
            }
        }
        Err(MALFORMED)
    }

    fn byte(&mut self) -> Result<u8, ArchiveError> {
        if self.block.is_empty() {
            let taken = self.taken.saturating_add(BLOCK as u64);
            if taken > self.stored {
                return Err(MALFORMED);
            }
            self.block = vec![0; BLOCK];
            self.input.read_exact(&mut self.block)?;
            self.block.reverse();
            self.taken = taken;
        }
        self.block.pop().ok_or(MALFORMED)
    }
}

/// The map of version 1.0 of a file of this size as bytes, filled up to a block.
pub(super) fn encode_map(segments: &[Segment], size: u64) -> Vec<u8> {
    let end = segments.last().map_or(0, |last| last.offset.saturating_add(last.length));
    // GNU tar makes files as long as their last piece, so a hole at the end needs an empty one.
    let last = (end < size).then_some(Segment { offset: size, length: 0 });
    let mut map = format!("{}\n", segments.len().saturating_add(last.iter().len()));
    for segment in segments.iter().chain(&last) {
        map.push_str(&format!("{}\n{}\n", segment.offset, segment.length));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs.iter().map(|&(offset, length)| Segment { offset, length }).collect()
    }

    #[test]
    fn maps_are_checked() {
        for (pairs, size, stored, good) in [
            (&[(0, 10), (20, 10)][..], 30, 20, true),
            (&[(0, 10), (30, 0)], 30, 10, true),
            (&[], 1 << 40, 0, true),
            (&[(0, 10), (9, 10)], 30, 20, false),
            (&[(20, 10), (0, 10)], 30, 20, false),
            (&[(20, 11)], 30, 11, false),
            (&[(u64::MAX, 2)], 30, 2, false),
            (&[(0, 10)], 30, 11, false),
        ] {
            assert_eq!(checked(segments(pairs), size, stored).is_ok(), good, "{pairs:?}");
        }
    }

    #[test]
    fn a_map_before_the_data_is_read_back() {
        for count in [0, 1, 2, 50, 1000] {
            let map: Vec<Segment> =
                (0..count).map(|n| Segment { offset: n * 1_000_000_007, length: n }).collect();
            let bytes = encode_map(&map, 0);
            assert_eq!(bytes.len() % BLOCK, 0);
            let (read, taken) = read_map(&mut &bytes[..], bytes.len() as u64).unwrap();
            assert_eq!((read, taken), (map, bytes.len() as u64));
        }
    }

    #[test]
    fn a_map_can_not_be_endless() {
        let full = |text: &[u8]| {
            let mut block = text.to_vec();
            block.resize(BLOCK, 0);
            block
        };
        for text in [&b"1\n5\n"[..], b"x\n", b"111111111111111111111111111111\n", b"-1\n", b"\n"] {
            assert!(read_map(&mut &full(text)[..], BLOCK as u64).is_err(), "{text:?}");
        }
        let many = read_map(&mut &full(b"999999999\n")[..], BLOCK as u64);
        assert!(matches!(many, Err(ArchiveError::HeaderTooLarge)));
    }
}
