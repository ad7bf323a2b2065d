//! Several instances on one record, in processes of their own, one of them killed at any moment.

use std::{collections::HashMap, path::Path, time::Duration};

use cgrant_engine::ids::{IdRecord, NameService, NamesError};
use cgrant_policy::{BLOCK, GrantName, HostUid, IdRange, IdSpan, Pool};
use cgrant_sys::{Dir, pidfd::Signal, process::random_u64};
use cgrant_wire::GrantId;

use super::{
    Test,
    support::{ended_well, in_child},
};

/// The tests.
pub const TESTS: &[Test] = &[
    ("race::two_instances_never_give_out_the_same_ids", two_instances_never_give_out_the_same_ids),
    (
        "race::an_instance_that_is_killed_leaves_a_whole_record",
        an_instance_that_is_killed_leaves_a_whole_record,
    ),
];

const ACCOUNTS: [u32; 3] = [3_000_000_001, 3_000_000_002, 3_000_000_003];
const QUOTA: u64 = 8 * BLOCK as u64;

struct Nobody;

impl NameService for Nobody {
    fn knows(&self, _: IdSpan) -> Result<bool, NamesError> {
        Ok(false)
    }
}

fn open(base: &Path, instance: &str) -> IdRecord {
    let dir = |name: &str| Dir::open(&base.join(name)).unwrap();
    let pool = Pool::new(vec![IdSpan::new(0x7800_0000, 64 * BLOCK).unwrap()]).unwrap();
    IdRecord::open(dir("record"), dir("live"), &pool, instance, Box::new(Nobody)).unwrap()
}

fn scratch() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    for name in ["record", "live"] {
        std::fs::create_dir(base.path().join(name)).unwrap();
    }
    base
}

/// Acquires and releases at random; after each range looks by itself, at the files, whether anybody else has any of it.
fn work(base: &Path, instance: &str, steps: usize) {
    let record = open(base, instance);
    let mut held: Vec<GrantId> = Vec::new();
    for _ in 0..steps {
        let random = random_u64().unwrap();
        let account = HostUid(ACCOUNTS[random as usize % ACCOUNTS.len()]);
        if random & 0x100 != 0 && !held.is_empty() {
            record.release(held.swap_remove((random >> 16) as usize % held.len())).unwrap();
            continue;
        }
        let name =
            (random & 0x200 != 0).then(|| GrantName::new(&format!("n{}", (random >> 10) & 7)).unwrap());
        let count = if random & 0x400 == 0 { BLOCK } else { 1 + (random >> 20) as u32 % 3000 };
        let grant = GrantId(random_u64().unwrap());
        // Refused where quotas, sizes and uses meet; never for a fault of the record.
        match record.acquire(account, name.as_ref(), count, grant, QUOTA) {
            Ok(range) => {
                alone(base, grant, range);
                held.push(grant);
            }
            Err(error) => {
                let code = cgrant_wire::Refusal::from(error).code;
                use cgrant_wire::RefusalCode::{Busy, InvalidArgument, QuotaExceeded};
                assert!(matches!(code, Busy | InvalidArgument | QuotaExceeded), "{code:?}");
            }
        }
    }
}

/// Every mark: grant, ids, account.
fn marks(base: &Path) -> Vec<(u64, IdSpan, u32)> {
    let names = std::fs::read_dir(base.join("live")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.filter_map(|name| {
        let name = name.into_string().unwrap();
        let mut parts = name.split('.');
        let grant = u64::from_str_radix(parts.next()?, 16).ok()?;
        let span = IdSpan::new(parts.next()?.parse().unwrap(), parts.next()?.parse().unwrap()).unwrap();
        Some((grant, span, parts.next()?.parse().unwrap()))
    });
    names.collect()
}

fn alone(base: &Path, grant: GrantId, range: IdRange) {
    for (other, span, _) in marks(base) {
        assert!(other == grant.0 || !span.overlaps(range.uids()), "{span} and {range}");
    }
}

/// Reads the files without the broker's code: each block has one account, and what is in use lies in its account's.
fn check(base: &Path) {
    let mut owners: HashMap<u32, u32> = HashMap::new();
    for entry in std::fs::read_dir(base.join("record")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".json") {
            continue;
        }
        let text = std::fs::read_to_string(base.join("record").join(&name)).unwrap();
        let area: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |key: &str| u32::try_from(area[key].as_u64().unwrap()).unwrap();
        for block in 0..number("blocks") {
            let first = number("first") + block * BLOCK;
            assert_eq!(owners.insert(first, number("account")), None, "two records of block {first}");
        }
        let mut ranges: Vec<(u64, u64)> = area["ranges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|range| (range["offset"].as_u64().unwrap(), range["count"].as_u64().unwrap()))
            .collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{name}");
    }
    let marks = marks(base);
    for (at, (_, span, account)) in marks.iter().enumerate() {
        for block in span.first() / BLOCK..=span.last() / BLOCK {
            assert_eq!(owners.get(&(block * BLOCK)), Some(account), "{span}");
        }
        assert!(marks[at + 1..].iter().all(|(_, other, _)| !other.overlaps(*span)), "{span} is in use twice");
    }
}

fn two_instances_never_give_out_the_same_ids() {
    let base = scratch();
    let children: Vec<_> = ["a", "b"].map(|instance| in_child(|| work(base.path(), instance, 400))).into();
    children.iter().for_each(ended_well);
    check(base.path());
    // What the two worked at may end with nothing in use.
    open(base.path(), "d").acquire(HostUid(1), None, 1, GrantId(u64::MAX), QUOTA).unwrap();
    let record = open(base.path(), "c");
    let in_use = marks(base.path());
    for (grant, span, _) in &in_use {
        let range = record.acquire(HostUid(1), None, 1, GrantId(*grant), QUOTA).unwrap();
        assert_eq!(range.uids(), *span, "each instance knows what the others use");
    }
    assert!(!in_use.is_empty());
}

fn an_instance_that_is_killed_leaves_a_whole_record() {
    let base = scratch();
    let survivor = in_child(|| work(base.path(), "survivor", 400));
    for round in 0..25 {
        let victim = in_child(|| work(base.path(), "victim", 100_000));
        std::thread::sleep(Duration::from_micros(1500 + 700 * round));
        victim.pidfd.send_signal(Signal::KILL).unwrap();
        victim.pidfd.wait().unwrap();
        // It starts again, and gives back what its grants had.
        let restarted = in_child(|| {
            let record = open(base.path(), "victim");
            for (grant, range) in record.live().unwrap() {
                alone(base.path(), grant, range);
                record.release(grant).unwrap();
            }
        });
        ended_well(&restarted);
    }
    ended_well(&survivor);
    check(base.path());
    assert!(marks(base.path()).len() < 400);
    let leftovers = std::fs::read_dir(base.path().join("record")).unwrap();
    drop(open(base.path(), "last"));
    drop(leftovers);
    for directory in ["record", "live"] {
        let mut names = std::fs::read_dir(base.path().join(directory)).unwrap();
        assert!(
            names.all(|entry| !entry.unwrap().file_name().to_string_lossy().starts_with('.')),
            "{directory}"
        );
    }
}
