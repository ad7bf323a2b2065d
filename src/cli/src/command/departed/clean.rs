//! `cgrant departed clean`: what `remove` does, for all users of whom policy says so, in the directories that the configuration names.
//!
//! Nobody looks on, so nothing may keep it for good: directories are looked through one after the other, each on a thread of its own
//! that is left to itself when nothing goes on there. Which ids are nobody's is asked anew before each, over a connection of its own: one on
//! which nobody reads signals for the hours that a search may take is closed. May touch: files of those ids below the directories; reads
//! `cgrantd.toml`.
//!
//! An attacker in the part of the broker that speaks D-Bus wants root to remove other files. It is believed about ids of the pool alone, whole
//! blocks of them, which belong to no user of the host's.

use std::{
    collections::HashSet,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    thread::sleep,
    time::{Duration, Instant},
};

use cgrant_container::Session;
use cgrant_image::{Act, Leftovers, leftovers};
use cgrant_policy::{BLOCK, IdSpan, Pool};
use cgrant_proto::{Account, Departed, ForgetDeparted};
use cgrant_sys::Dir;

use super::{OFTEN, Outcome, RETIRED, TAKEN, tell};
use crate::{
    Client,
    command::{
        hostconfig::{self, FILE},
        watched::{STALL, watched},
    },
    error::{Doing, Failure},
};

const CLEAN: &str = "remove files of users who are gone";
/// How long all of it may take: less than systemd waits (`TimeoutStartSec=` of the unit), so that a try that takes too long is counted.
const WHOLE: Duration = Duration::from_secs(19 * 60 * 60);
/// As many as the broker takes at once.
const FIRSTS: usize = 1024;

pub(super) fn run(client: &Client, config: &Path, timeout: Duration) -> Result<u8, Failure> {
    let end = Instant::now().checked_add(WHOLE);
    let (directories, pool) = configured(config)?;
    let due = wait(&client.connect(CLEAN)?, timeout)?;
    if let Some((account, _, first, ..)) =
        due.iter().find(|(_, _, first, count, ..)| !is_pools(&pool, *first, *count))
    {
        return Err(Failure::Refused(format!(
            "cannot {CLEAN}: ids from {first} on, which are said to have been the account {account}'s, are no blocks of the pool in {}",
            config.join(FILE).display()
        )));
    }
    let mut outcome = Outcome::default();
    if due.is_empty() {
        return outcome.say(client, CLEAN);
    }
    if directories.is_empty() {
        return Err(Failure::Refused(format!(
            "cannot {CLEAN}: no directories are named in [departed] of {}",
            config.join(FILE).display()
        )));
    }
    let firsts: Vec<u32> = due.iter().map(|(_, _, first, ..)| *first).collect();
    // Of those that became somebody's meanwhile nothing is removed, and nothing said.
    let mut still = firsts.clone();
    for path in &directories {
        let ready = ready(list(&client.connect(CLEAN)?)?);
        let is_known =
            |(_, _, first, count, ..): &&Departed| firsts.contains(first) && is_pools(&pool, *first, *count);
        let ids: Vec<_> = ready.iter().filter(is_known).collect();
        still.retain(|first| ids.iter().any(|(_, _, known, ..)| known == first));
        let ids = ids
            .iter()
            .filter_map(|(_, _, first, count, ..)| Some((*first, first.checked_add(count.checked_sub(1)?)?)));
        let ids: Vec<_> = ids.collect();
        if ids.is_empty() {
            break;
        }
        match search(path.clone(), ids, end) {
            Ok(found) => outcome.add(path, &found),
            Err(error) => {
                tell(path, &error.to_string());
                outcome.failed = outcome.failed.saturating_add(1);
            }
        }
    }
    let options = ForgetDeparted::new();
    let options = if outcome.failed == 0 { options } else { options.incomplete() };
    let session = client.connect(CLEAN)?;
    for firsts in still.chunks(FIRSTS) {
        let forget = || session.call(session.manager()?.forget_departed(firsts, &options));
        forget().doing(|| CLEAN.to_owned())?;
    }
    outcome.say(client, CLEAN)
}

/// The directories that the administrator named, and the ids that the broker gives out.
fn configured(config: &Path) -> Result<(Vec<PathBuf>, Pool), Failure> {
    let config = hostconfig::read(config)?;
    let directories = config.departed.directories.iter().map(|path| path.as_path().to_owned());
    Ok((directories.collect(), config.ids.pool))
}

/// Are they whole blocks of the pool?
fn is_pools(pool: &Pool, first: u32, count: u32) -> bool {
    let is_whole = first.is_multiple_of(BLOCK) && count.is_multiple_of(BLOCK);
    is_whole && IdSpan::new(first, count).is_ok_and(|ids| pool.spans().iter().any(|span| span.covers(ids)))
}

fn list(session: &Session) -> Result<Vec<Departed>, Failure> {
    let ask = || session.call(session.manager()?.list_departed(&Account::new().to_remove()));
    ask().doing(|| CLEAN.to_owned())
}

/// Those of accounts whose ids are all nobody's, and in no grant. From then on none ever will be.
fn ready(due: Vec<Departed>) -> Vec<Departed> {
    let waits = |(.., state, grants): &&Departed| state != RETIRED || *grants > 0;
    let waiting: HashSet<u32> = due.iter().filter(waits).map(|(account, ..)| *account).collect();
    due.into_iter().filter(|(account, ..)| !waiting.contains(account)).collect()
}

/// Waits until no grant has any of the ids of which files are to be removed; what then still has some has to wait for the next call.
fn wait(session: &Session, timeout: Duration) -> Result<Vec<Departed>, Failure> {
    let begin = Instant::now();
    loop {
        let due = list(session)?;
        let runs = |(.., state, grants): &&Departed| state != TAKEN && *grants > 0;
        if due.iter().any(|departed| runs(&departed)) && begin.elapsed() < timeout {
            sleep(OFTEN.min(timeout));
            continue;
        }
        for (account, user, _, _, state, grants) in &due {
            let why = match state.as_str() {
                TAKEN => "are in /etc/passwd, group, subuid or subgid",
                _ if *grants > 0 => "are in use by grants",
                _ => continue,
            };
            let _ = writeln!(
                io::stderr(),
                "cgrant: ids of the account {account} ({user}) {why}: nothing of them is removed"
            );
        }
        return Ok(ready(due));
    }
}

fn search(path: PathBuf, ids: Vec<(u32, u32)>, end: Option<Instant>) -> io::Result<Leftovers> {
    let looked = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&looked);
    let work = move || Ok(leftovers(&Dir::open(&path)?, &ids, Act::Remove, &looked));
    watched(work, &progress, STALL, end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Somebody makes files faster than they go: the try is counted before systemd ends it.
    #[test]
    fn the_unit_waits_longer_than_it_takes() {
        let unit = include_str!("../../../../../systemd/cgrant-departed.service");
        let hours =
            unit.lines().find_map(|line| line.strip_prefix("TimeoutStartSec=")?.strip_suffix('h')).unwrap();
        assert!(WHOLE + STALL < Duration::from_secs(hours.parse::<u64>().unwrap() * 60 * 60));
    }

    #[test]
    fn directories_are_the_administrators() {
        let scratch = tempfile::tempdir().unwrap();
        let directories = |path: &Path| configured(path).map(|(directories, _)| directories);
        assert!(directories(&scratch.path().join("none")).unwrap().is_empty());
        assert!(directories(scratch.path()).unwrap().is_empty());
        let file = scratch.path().join(FILE);
        std::fs::write(&file, "[departed]\ndirectories = [\"/home\", \"/srv/a\"]\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(directories(scratch.path()).unwrap(), [Path::new("/home"), Path::new("/srv/a")]);
        // Whoever else may write it says nothing about what root removes.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(directories(scratch.path()).is_err());
    }

    #[test]
    fn ids_of_nobodys_but_the_brokers_are_removed() {
        let pool = Pool::default();
        let first = pool.blocks().nth(3).unwrap();
        assert!(is_pools(&pool, first, BLOCK) && is_pools(&pool, first, 2 * BLOCK));
        for (first, count) in [
            (0, u32::MAX),
            (0, BLOCK),
            (1000, 1),
            (first, 1),
            (first + 1, BLOCK),
            (first, 0),
            (first, u32::MAX / BLOCK * BLOCK),
            (pool.blocks().next().unwrap() - BLOCK, 2 * BLOCK),
        ] {
            assert!(!is_pools(&pool, first, count), "{first} {count}");
        }
    }

    #[test]
    fn only_ids_that_are_nobodys_and_in_no_grant_are_looked_for() {
        let one = |account: u32, first, state: &str, grants| {
            (account, "alice".to_owned(), first, 65536, state.to_owned(), grants)
        };
        let due = vec![
            one(1, 10, "retired", 0),
            one(1, 11, "retired", 0),
            one(2, 20, "retired", 1),
            one(3, 30, "retired", 0),
            // Which of the files are leftovers is not clear: none of hers.
            one(3, 31, "taken", 0),
            one(4, 40, "leaving", 0),
        ];
        assert_eq!(ready(due), [one(1, 10, "retired", 0), one(1, 11, "retired", 0)]);
    }
}
