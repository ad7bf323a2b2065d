//! What files of ids take on disks, as it was measured last: by block of the pool, kept over restarts.
//!
//! No kernel charges files to a range of ids, and the broker looks at nobody's files. Root of the host has them counted
//! (`cgrant disk measure`) and says what was found; whose ids they are the record of ranges knows, and nobody says. May touch: `disk.json`
//! in the state directory.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::{BLOCK, IdSpan, Pool};
use cgrant_sys::Dir;
use cgrant_wire::{BlockUse, DiskReport, Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

const FILE: &str = "disk.json";
const FORMAT: u32 = 1;
/// Longest file, in bytes: of all blocks that there can be, each at its longest.
const MAX_FILE: usize = 8 << 20;
/// Most blocks in one report.
pub const MAX_BLOCKS: usize = 8192;

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Bytes of their blocks.
    pub bytes: u64,
    /// How many there are.
    pub files: u64,
}

impl Figures {
    fn is_nothing(self) -> bool {
        self == Self::default()
    }

    fn or_more(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// Microseconds since 1970; 0 for never.
    measured: u64,
    /// Blocks by their first ids, those without files left out.
    blocks: BTreeMap<u32, Figures>,
}

/// The figures.
#[derive(Debug)]
pub struct Disk {
    directory: Dir,
    pool: Pool,
    record: Mutex<Record>,
    /// Held by who writes, so that nobody who reads waits for the disk.
    writing: Mutex<()>,
}

impl Disk {
    /// Opens them in the instance's state directory. A file that can't be made sense of is said in the log, and counts as none: the next
    /// measurement puts it right.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(directory: Dir, pool: &Pool) -> io::Result<Self> {
        let none = Record { format: FORMAT, measured: 0, blocks: BTreeMap::new() };
        let record = match directory.read_bytes(FILE, MAX_FILE) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| error.to_string())
                .and_then(|record: Record| match record.format {
                    FORMAT => Ok(record),
                    other => Err(format!("format {other}")),
                })
                .unwrap_or_else(|error| {
                    tracing::error!(
                        error,
                        file = FILE,
                        "what files of ids take is not known until it is measured again"
                    );
                    none
                }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => none,
            Err(error) => return Err(error),
        };
        Ok(Self { directory, pool: pool.clone(), record: Mutex::new(record), writing: Mutex::new(()) })
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it was measured last, microseconds since 1970; 0 for never. Of an incomplete measurement that is the one before.
    pub fn measured(&self) -> u64 {
        self.record().measured
    }

    /// What files of these ids take.
    pub fn of(&self, spans: &[IdSpan]) -> Figures {
        let record = self.record();
        let blocks = spans.iter().flat_map(|span| record.blocks.range(span.first()..=span.last()));
        blocks.fold(Figures::default(), |sum, (_, figures)| Figures {
            bytes: sum.bytes.saturating_add(figures.bytes),
            files: sum.files.saturating_add(figures.files),
        })
    }

    /// The first ids of the blocks that have files.
    pub fn blocks(&self) -> Vec<u32> {
        self.record().blocks.keys().copied().collect()
    }

    /// Notes what was found `now`, microseconds since 1970: on the disk when this returns. What an incomplete report does not name, or
    /// has less of, stays as it is.
    ///
    /// # Errors
    /// [`RefusalCode::InvalidArgument`] for what nobody can have counted, [`RefusalCode::RecordUnwritable`]; nothing has changed then.
    pub fn note(&self, report: &DiskReport, now: u64) -> Result<(), Refusal> {
        let span = self.checked(report)?;
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.record().clone();
        if !report.incomplete {
            next.blocks.retain(|first, _| !span.contains(*first));
        }
        for BlockUse { first, bytes, files } in &report.blocks {
            let figures = Figures { bytes: *bytes, files: *files };
            let before = next.blocks.get(first).copied().unwrap_or_default();
            next.blocks.insert(*first, figures.or_more(before));
        }
        next.blocks.retain(|_, figures| !figures.is_nothing());
        if !report.incomplete || next.measured == 0 && !next.blocks.is_empty() {
            next.measured = now;
        }
        let text = serde_json::to_vec(&next).map_err(io::Error::other);
        text.and_then(|text| self.directory.write_atomic(FILE, &text, true)).map_err(|error| {
            Refusal::new(RefusalCode::RecordUnwritable, format!("{FILE} can't be written: {error}"))
        })?;
        *self.record() = next;
        Ok(())
    }

    /// The ids that a report is about: whole blocks, and what is in it are blocks of the pool among them, each once.
    fn checked(&self, report: &DiskReport) -> Result<IdSpan, Refusal> {
        let wrong = |why: String| Refusal::new(RefusalCode::InvalidArgument, why);
        let is_whole = report.first.is_multiple_of(BLOCK) && report.count.is_multiple_of(BLOCK);
        let span = IdSpan::new(report.first, report.count).ok().filter(|_| is_whole);
        let span =
            span.ok_or_else(|| wrong(format!("first and count are no whole blocks of {BLOCK} ids")))?;
        if report.blocks.len() > MAX_BLOCKS {
            return Err(wrong(format!("more than {MAX_BLOCKS} blocks in one report")));
        }
        let mut before = None;
        let mut sums = (0_u64, 0_u64);
        for BlockUse { first, bytes, files } in &report.blocks {
            let block = IdSpan::new(*first, BLOCK).ok().filter(|_| first.is_multiple_of(BLOCK));
            let in_pool = |block: &IdSpan| self.pool.spans().iter().any(|pool| pool.covers(*block));
            if !block.filter(in_pool).is_some_and(|block| span.covers(block)) {
                return Err(wrong(format!(
                    "the ids from {first} on are no block of the pool that the report is about"
                )));
            }
            if before.replace(*first).is_some_and(|before| before >= *first) {
                return Err(wrong(format!("the block {first} is there twice, or not in its order")));
            }
            let sum = sums.0.checked_add(*bytes).zip(sums.1.checked_add(*files));
            sums = sum.ok_or_else(|| wrong("no disk has so many bytes or files".to_owned()))?;
        }
        Ok(span)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(vec![IdSpan::new(10 * BLOCK, 10 * BLOCK).unwrap()]).unwrap()
    }

    fn disk(place: &std::path::Path) -> Disk {
        Disk::open(Dir::open(place).unwrap(), &pool()).unwrap()
    }

    fn span(first: u32, count: u32) -> IdSpan {
        IdSpan::new(first * BLOCK, count * BLOCK).unwrap()
    }

    fn report(blocks: &[(u32, u64, u64)]) -> DiskReport {
        let block = |(first, bytes, files): &(u32, u64, u64)| BlockUse {
            first: first * BLOCK,
            bytes: *bytes,
            files: *files,
        };
        DiskReport {
            first: 0,
            count: 30 * BLOCK,
            blocks: blocks.iter().map(block).collect(),
            incomplete: false,
        }
    }

    fn figures(bytes: u64, files: u64) -> Figures {
        Figures { bytes, files }
    }

    #[test]
    fn a_report_is_kept_until_the_next_one_about_the_same_ids() {
        let place = tempfile::tempdir().unwrap();
        let before = disk(place.path());
        assert_eq!((before.measured(), before.of(&[span(11, 2)])), (0, figures(0, 0)));
        before.note(&report(&[(11, 100, 2), (12, 7, 1), (14, 5, 5)]), 1000).unwrap();
        let kept = disk(place.path());
        for disk in [&before, &kept] {
            assert_eq!((disk.measured(), disk.of(&[span(11, 2)])), (1000, figures(107, 3)));
            assert_eq!(disk.of(&[span(11, 1), span(14, 1)]), figures(105, 7));
        }
        // What is not in it any more has no files, among the ids that it is about.
        kept.note(&DiskReport { first: 11 * BLOCK, count: 2 * BLOCK, ..report(&[(12, 8, 1)]) }, 2000)
            .unwrap();
        assert_eq!((kept.of(&[span(11, 2)]), kept.of(&[span(14, 1)])), (figures(8, 1), figures(5, 5)));
        assert_eq!((kept.measured(), kept.blocks()), (2000, vec![12 * BLOCK, 14 * BLOCK]));
    }

    #[test]
    fn where_not_all_was_seen_nothing_becomes_less() {
        let place = tempfile::tempdir().unwrap();
        let disk = disk(place.path());
        disk.note(&report(&[(11, 100, 2), (12, 7, 1)]), 1000).unwrap();
        disk.note(&DiskReport { incomplete: true, ..report(&[(11, 50, 3), (13, 9, 9)]) }, 2000).unwrap();
        assert_eq!(disk.of(&[span(11, 1)]), figures(100, 3));
        assert_eq!((disk.of(&[span(12, 2)]), disk.measured()), (figures(16, 10), 1000));
    }

    #[test]
    fn what_nobody_can_have_counted_is_refused_whole() {
        let place = tempfile::tempdir().unwrap();
        let disk = disk(place.path());
        disk.note(&report(&[(11, 100, 2)]), 1000).unwrap();
        let block = |first, bytes| BlockUse { first, bytes, files: 1 };
        let with = |blocks| DiskReport { blocks, ..report(&[]) };
        for forged in [
            report(&[(12, 1, 1), (9, 1, 1)]),
            report(&[(9, 1, 1)]),
            report(&[(20, 1, 1)]),
            report(&[(12, 1, 1), (12, 1, 1)]),
            report(&[(13, 1, 1), (12, 1, 1)]),
            report(&[(12, u64::MAX, 1), (13, 1, 1)]),
            report(&[(12, 1, u64::MAX), (13, 1, 1)]),
            with(vec![block(12 * BLOCK + 1, 1)]),
            with(vec![block(u32::MAX, 1)]),
            with(vec![block(0, 1)]),
            with(vec![block(12 * BLOCK, 1); MAX_BLOCKS + 1]),
            DiskReport { first: 12 * BLOCK, count: BLOCK, ..report(&[(13, 1, 1)]) },
            DiskReport { first: 1, ..report(&[]) },
            DiskReport { count: 1, ..report(&[]) },
            DiskReport { count: 0, ..report(&[]) },
            DiskReport { first: 65535 * BLOCK, count: 2 * BLOCK, ..report(&[]) },
        ] {
            assert_eq!(
                disk.note(&forged, 2000).unwrap_err().code,
                RefusalCode::InvalidArgument,
                "{forged:?}"
            );
            assert_eq!((disk.of(&[span(0, 30)]), disk.measured()), (figures(100, 2), 1000), "{forged:?}");
        }
        // Sums of several reports stay what can be counted.
        for first in [12, 13] {
            let much =
                DiskReport { first: first * BLOCK, count: BLOCK, ..report(&[(first, u64::MAX, u64::MAX)]) };
            disk.note(&much, 2000).unwrap();
        }
        assert_eq!(disk.of(&[span(12, 2)]), figures(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_damaged_file_counts_as_none() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join(FILE), [0xff]).unwrap();
        assert_eq!(disk(place.path()).measured(), 0);
        for text in ["", "{}", "{\"format\":2,\"measured\":1,\"blocks\":{}}"] {
            std::fs::write(place.path().join(FILE), text).unwrap();
            let disk = disk(place.path());
            assert_eq!(disk.measured(), 0, "{text}");
            disk.note(&report(&[(11, 1, 1)]), 5).unwrap();
        }
        assert_eq!(disk(place.path()).measured(), 5);
    }
}
