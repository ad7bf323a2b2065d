//! `cgrant disk measure`: counts files of the broker's ids in the directories that the administrator named, and tells the broker. Root only.
//!
//! The broker has no right to anybody's files, and looks at none; whose ids they have it knows, and this does not. May touch: reads
//! `cgrantd.toml`, and looks at all files below those directories, of which none is opened but directories.
//!
//! An attacker wants to have fewer files than he has, or somebody else to have more, or that nobody is measured any more. What he can do to
//! directories is in [`cgrant_image::Census`]; what can't be looked at for whatever other reason makes the measurement an incomplete one, by
//! which nobody's figures become less.

use std::{
    collections::HashSet,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use cgrant_container::Session;
use cgrant_image::{Census, DiskUsage};
use cgrant_policy::{BLOCK, Pool};
use cgrant_proto::ReportDisk;
use cgrant_sys::Dir;
use serde_json::{Value, json};

use super::{
    hostconfig,
    watched::{STALL, watched},
};
use crate::{
    Client,
    args::{DiskCommand, Format},
    error::{Doing, Failure},
    exit,
    output::{self, List, bytes},
};

const MEASURE: &str = "measure what files of containers take";
/// As many as the broker takes at once.
const BLOCKS: usize = 8192;

/// A block of ids with files: first id, bytes, files.
type Row = (u32, u64, u64);

pub(crate) fn run(client: &Client, command: DiskCommand) -> Result<u8, Failure> {
    let DiskCommand::Measure { config_dir, timeout } = command;
    let config = hostconfig::read(&config_dir)?;
    let paths: Vec<PathBuf> = config.disk.directories.iter().map(|path| path.as_path().to_owned()).collect();
    if paths.is_empty() {
        say(&format!(
            "no directories are named in [disk] of {}",
            config_dir.join(hostconfig::FILE).display()
        ));
        return Ok(exit::DONE);
    }
    let pool = &config.ids.pool;
    // Who may not say it need not look for hours first.
    report(&client.connect(MEASURE)?, pool, &[], true)?;
    let end = Instant::now().checked_add(Duration::from_secs(timeout));
    let (usage, failed) = measure(pool, paths, end);
    // Another connection: one on which nobody reads signals for so long is closed.
    report(&client.connect(MEASURE)?, pool, &usage, failed > 0)?;
    print(client, &usage, failed)?;
    match failed {
        0 => Ok(exit::DONE),
        _ => Err(Failure::Machine {
            doing: MEASURE,
            source: io::Error::other(format!("{failed} files or directories could not be looked at")),
        }),
    }
}

/// Closed standard error is no reason to fail.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "cgrant: {what}");
}

fn tell(path: &Path, error: &io::Error) {
    say(&format!("in {}: {error}", output::printable(&path.to_string_lossy())));
}

/// What files of ids of the pool take, and how much could not be looked at.
fn measure(pool: &Pool, paths: Vec<PathBuf>, end: Option<Instant>) -> (Vec<Row>, u64) {
    let census = Arc::new(Census::new(pool.blocks().collect()));
    let mut failed = 0_u64;
    let mut open = Vec::new();
    for path in paths {
        match opened(&path, end) {
            Ok((dir, is)) => open.push((path, dir, is)),
            Err(error) => {
                tell(&path, &error);
                failed = failed.saturating_add(1);
            }
        }
    }
    let all: Arc<HashSet<_>> = Arc::new(open.iter().map(|(.., is)| *is).collect());
    let mut seen = HashSet::new();
    for (path, dir, is) in open {
        if !seen.insert(is) {
            continue;
        }
        let looked = Arc::new(AtomicU64::new(0));
        let (census, roots, progress) = (Arc::clone(&census), Arc::clone(&all), Arc::clone(&looked));
        let look = move || Ok(census.look(&dir, &roots, &progress));
        match watched(look, &looked, STALL, end) {
            Ok(unseen) => {
                failed = failed.saturating_add(unseen.failed);
                unseen.failures.iter().for_each(|(path, error)| tell(path, error));
            }
            Err(error) => {
                tell(&path, &error);
                failed = failed.saturating_add(1);
            }
        }
    }
    let row = |(first, DiskUsage { bytes, files })| (first, bytes, files);
    (census.usage().into_iter().map(row).collect(), failed)
}

/// A directory, and which one it is on all file systems.
fn opened(path: &Path, end: Option<Instant>) -> io::Result<(Dir, (u64, u64))> {
    let path = path.to_owned();
    let open = move || {
        let dir = Dir::open(&path)?;
        let stat = rustix::fs::fstat(dir.as_fd())?;
        Ok((dir, (stat.st_dev, stat.st_ino)))
    };
    watched(open, &AtomicU64::new(0), STALL, end)
}

/// Tells the broker, in as many parts as it takes: each is about the ids up to the next one's.
fn report(session: &Session, pool: &Pool, usage: &[Row], incomplete: bool) -> Result<(), Failure> {
    for (first, count, blocks) in parts(pool, usage, BLOCKS) {
        let options = if incomplete { ReportDisk::new().incomplete() } else { ReportDisk::new() };
        let tell = || session.call(session.manager()?.report_disk(first, count, blocks, &options));
        tell().doing(|| MEASURE.to_owned())?;
    }
    Ok(())
}

fn parts<'a>(pool: &Pool, usage: &'a [Row], most: usize) -> Vec<(u32, u32, &'a [Row])> {
    let (Some(begin), Some(last)) = (pool.blocks().next(), pool.blocks().last()) else { return Vec::new() };
    let mut parts: Vec<&[Row]> = usage.chunks(most).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let begins = |at: usize| match at {
        0 => u64::from(begin),
        _ => parts
            .get(at)
            .and_then(|part| part.first())
            .map_or(u64::from(last) + u64::from(BLOCK), |row| row.0.into()),
    };
    let part = |(at, part): (usize, &&'a [Row])| {
        let (first, next) = (begins(at), begins(at + 1));
        Some((u32::try_from(first).ok()?, u32::try_from(next.checked_sub(first)?).ok()?, *part))
    };
    parts.iter().enumerate().filter_map(part).collect()
}

fn print(client: &Client, usage: &[Row], failed: u64) -> Result<(), Failure> {
    match client.format {
        Format::Json => {
            let row = |(first, bytes, files): &Row| json!({ "first": first, "count": BLOCK, "bytes": bytes, "files": files });
            let rows: Vec<Value> = usage.iter().map(row).collect();
            output::write(output::json(&json!({ "rows": rows, "failed": failed }))?.as_bytes())
        }
        Format::Table => {
            let row = |(first, size, files): &Row| json!({ "first": first, "count": BLOCK, "size": bytes(*size), "files": files });
            output::print(
                client.format,
                &List::new(&["FIRST", "COUNT", "SIZE", "FILES"], usage.iter().map(row)),
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_the_pool_is_in_one_part() {
        let pool = Pool::default();
        let blocks: Vec<u32> = pool.blocks().collect();
        let (begin, end) = (blocks[0], blocks[blocks.len() - 1] + BLOCK);
        let rows: Vec<Row> = blocks.iter().skip(3).step_by(7).map(|first| (*first, 1, 1)).collect();
        for (usage, most) in [(&rows[..], 10), (&rows[..], 1 << 20), (&rows[..1], 10), (&[], 10)] {
            let parts = parts(&pool, usage, most);
            let mut next = begin;
            for (first, count, part) in &parts {
                assert_eq!(*first, next);
                assert!(
                    part.len() <= most && part.iter().all(|row| (*first..first + count).contains(&row.0))
                );
                next = first + count;
            }
            assert_eq!(next, end);
            assert_eq!(parts.iter().flat_map(|part| part.2).count(), usage.len());
        }
    }

    #[test]
    fn what_is_not_there_makes_it_incomplete() {
        let scratch = tempfile::tempdir().unwrap();
        let paths = |names: &[&str]| names.iter().map(|name| scratch.path().join(name)).collect();
        assert_eq!(measure(&Pool::default(), paths(&[".", "."]), None), (Vec::new(), 0));
        assert_eq!(measure(&Pool::default(), paths(&[".", "gone"]), None), (Vec::new(), 1));
        let (_, failed) = measure(&Pool::default(), paths(&["."]), Some(Instant::now()));
        assert_eq!(failed, 1, "no time is no measurement");
    }
}
