//! Tests of the record of ranges, with directories and a name service of their own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cgrant_policy::NsUid;
use cgrant_wire::{Refusal, RefusalCode};

use super::*;

const QUOTA: u64 = 4 * BLOCK as u64;
const FIRST: u32 = 3 * BLOCK;

/// A name service that knows every id of some blocks, and counts how often it is asked.
#[derive(Clone, Default)]
struct Names {
    known: Vec<u32>,
    asked: Arc<AtomicUsize>,
    fails: bool,
}

impl NameService for Names {
    fn knows(&self, span: IdSpan) -> Result<bool, NamesError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.fails {
            return Err(NamesError::TimedOut);
        }
        Ok(self.known.iter().any(|block| span.contains(*block)))
    }
}

/// A host of one's own: the record's directories and an `/etc`.
struct Host {
    base: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for directory in ["record", "live", "etc"] {
            std::fs::create_dir(base.path().join(directory)).unwrap();
        }
        let host = Self { base };
        host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:\nbob:x:1001:1001::/:\n");
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.base.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).unwrap();
    }

    fn files(&self, directory: &str) -> Vec<String> {
        let names = std::fs::read_dir(self.path(directory)).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "lock" && name != "changes").collect();
        names.sort();
        names
    }

    fn try_open(&self, instance: &str, names: Names) -> Result<IdRecord, IdError> {
        let dir = |name: &str| Dir::open(&self.path(name)).unwrap();
        let pool = Pool::new(vec![IdSpan::new(FIRST - BLOCK, 5 * BLOCK).unwrap()]).unwrap();
        let etc = self.path("etc");
        IdRecord::open_with(dir("record"), dir("live"), &pool, instance, Box::new(names), &etc)
    }

    fn open(&self, instance: &str) -> IdRecord {
        self.try_open(instance, Names::default()).unwrap()
    }
}

fn name(text: &str) -> GrantName {
    GrantName::new(text).unwrap()
}

const ALICE: HostUid = HostUid(1000);
const BOB: HostUid = HostUid(1001);
/// No entry in passwd.
const CAROL: HostUid = HostUid(5000);

fn first_of(record: &IdRecord, account: HostUid, label: &str, grant: u64) -> u32 {
    record.acquire(account, Some(&name(label)), 0, GrantId(grant), QUOTA).unwrap().uid().0
}

#[test]
fn a_name_has_the_same_range_after_everything_is_opened_anew() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    let db = first_of(&record, ALICE, "db", 2);
    assert_eq!((web, db), (FIRST, FIRST + BLOCK));
    assert_eq!(first_of(&record, ALICE, "web", 1), web, "the same grant asks again");
    record.release(GrantId(1)).unwrap();
    record.release(GrantId(2)).unwrap();
    drop(record);
    let record = host.open("a");
    assert_eq!(first_of(&record, ALICE, "db", 3), db);
    assert_eq!(first_of(&record, ALICE, "web", 4), web);
    assert_eq!(record.used(ALICE), 2 * u64::from(BLOCK));
    assert_eq!(first_of(&record, BOB, "web", 5), FIRST + 2 * BLOCK);
}

#[test]
fn what_is_in_use_stays_so_when_the_engine_starts_anew() {
    let host = Host::new();
    let record = host.open("a");
    let loose = record.acquire(ALICE, None, 10, GrantId(1), QUOTA).unwrap();
    let web = record.acquire(ALICE, Some(&name("web")), 20, GrantId(2), QUOTA).unwrap();
    drop(record);
    let record = host.open("a");
    let mut live = record.live().unwrap();
    live.sort_by_key(|(grant, _)| *grant);
    assert_eq!(live, [(GrantId(1), loose), (GrantId(2), web)]);
    assert!(host.open("b").live().unwrap().is_empty(), "another instance's");
    let refused = record.acquire(ALICE, Some(&name("web")), 20, GrantId(3), QUOTA);
    assert!(matches!(refused, Err(IdError::InUse { grant: GrantId(2), .. })));
    assert!(!record.acquire(ALICE, None, 10, GrantId(4), QUOTA).unwrap().overlaps(loose));
    record.release(GrantId(1)).unwrap();
    record.release(GrantId(1)).unwrap();
    record.release(GrantId(77)).unwrap();
    assert_eq!(record.acquire(ALICE, None, 10, GrantId(5), QUOTA).unwrap(), loose);
}

#[test]
fn a_reboot_ends_use_but_not_names() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    record.acquire(ALICE, None, 10, GrantId(2), QUOTA).unwrap();
    drop(record);
    for file in host.files("live") {
        host.write(&format!("live/{file}"), "00000000-0000-0000-0000-000000000000");
    }
    let record = host.open("a");
    assert!(record.live().unwrap().is_empty());
    assert!(host.files("live").is_empty());
    assert_eq!(first_of(&record, ALICE, "web", 3), web);
}

#[test]
fn a_mark_that_was_cut_short_still_counts() {
    let host = Host::new();
    let record = host.open("a");
    first_of(&record, ALICE, "web", 1);
    drop(record);
    let file = host.files("live").remove(0);
    host.write(&format!("live/{file}"), "");
    assert!(matches!(
        host.open("a").acquire(ALICE, Some(&name("web")), 0, GrantId(2), QUOTA),
        Err(IdError::InUse { .. })
    ));
}

#[test]
fn a_name_that_is_forgotten_gives_its_ids_back_to_the_account() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    record.forget(ALICE, &name("web")).unwrap();
    let list = record.list(ALICE).unwrap();
    assert_eq!((list.len(), list[0].name.as_str(), list[0].grant), (1, "", Some(GrantId(1))));
    assert_eq!(first_of(&record, ALICE, "web", 2), web + BLOCK, "the first is in use");
    record.release(GrantId(1)).unwrap();
    assert_eq!(first_of(&record, ALICE, "other", 3), web);
    assert!(matches!(record.forget(ALICE, &name("none")), Err(IdError::NoSuchRange(_))));
    assert!(matches!(record.forget(BOB, &name("other")), Err(IdError::NoSuchRange(_))));
    drop(record);
    assert_eq!(host.open("a").list(ALICE).unwrap().len(), 2);
}

#[test]
fn a_name_with_another_size_is_refused_and_size_zero_means_its_own() {
    let host = Host::new();
    let record = host.open("a");
    let range = record.acquire(ALICE, Some(&name("big")), BLOCK + 1, GrantId(1), QUOTA).unwrap();
    record.release(GrantId(1)).unwrap();
    let refused = record.acquire(ALICE, Some(&name("big")), BLOCK, GrantId(2), QUOTA).unwrap_err();
    assert!(matches!(refused, IdError::SizeDiffers { has, .. } if has == BLOCK + 1));
    assert_eq!(record.acquire(ALICE, Some(&name("big")), 0, GrantId(3), QUOTA).unwrap(), range);
}

#[test]
fn quota_and_pool_end() {
    let host = Host::new();
    let record = host.open("a");
    let quota = 2 * u64::from(BLOCK);
    for n in 0..2 {
        record.acquire(ALICE, None, BLOCK, GrantId(n), quota).unwrap();
    }
    let refusal = Refusal::from(record.acquire(ALICE, None, 1, GrantId(9), quota).unwrap_err());
    assert_eq!(
        (refusal.code, refusal.quota, refusal.usage),
        (RefusalCode::QuotaExceeded, Some(quota), Some(quota))
    );
    for n in 2..4 {
        record.acquire(BOB, None, BLOCK, GrantId(n), quota).unwrap();
    }
    let refused = record.acquire(CAROL, None, 1, GrantId(9), quota).unwrap_err();
    assert!(matches!(refused, IdError::NoFreeBlock { blocks: 5, free: 0, .. }));
    assert_eq!(Refusal::from(refused).code, RefusalCode::NoFreeRange);
    // What Alice gives back is Alice's only.
    record.release(GrantId(0)).unwrap();
    assert!(matches!(record.acquire(CAROL, None, 1, GrantId(9), quota), Err(IdError::NoFreeBlock { .. })));
    assert!(record.acquire(ALICE, None, 1, GrantId(10), quota).is_ok());
}

#[test]
fn two_instances_see_each_others_changes() {
    let host = Host::new();
    let (a, b) = (host.open("a"), host.open("b"));
    let mut seen = Vec::new();
    for n in 0..2 {
        seen.push(first_of(&a, ALICE, &format!("a{n}"), 10 + n));
        seen.push(first_of(&b, BOB, &format!("b{n}"), 20 + n));
    }
    assert_eq!(seen, [FIRST, FIRST + BLOCK, FIRST + 2 * BLOCK, FIRST + 3 * BLOCK]);
    let refused = b.acquire(ALICE, Some(&name("a0")), 0, GrantId(30), QUOTA);
    assert!(matches!(refused, Err(IdError::InUse { .. })));
    a.release(GrantId(10)).unwrap();
    assert_eq!(first_of(&b, ALICE, "a0", 31), FIRST);
    a.forget(BOB, &name("b0")).unwrap();
    assert_eq!(b.list(BOB).unwrap().iter().filter(|range| range.name == "b0").count(), 0);
    assert_eq!(b.owner_of(HostUid(FIRST + 5)), Some(ALICE));
    assert_eq!(a.owner_of(HostUid(FIRST + BLOCK)), Some(BOB));
}

#[test]
fn a_list_of_changes_that_was_lost_or_cut_short_is_begun_anew() {
    let host = Host::new();
    let (a, b) = (host.open("a"), host.open("b"));
    let web = first_of(&a, ALICE, "web", 1);
    std::fs::remove_file(host.path("live/changes")).unwrap();
    let refused = b.acquire(ALICE, Some(&name("web")), 0, GrantId(2), QUOTA);
    assert!(matches!(refused, Err(IdError::InUse { .. })));
    host.write("live/changes", "garbage");
    b.release(GrantId(1)).unwrap();
    assert_eq!(first_of(&a, ALICE, "web", 3), web);
    let text = std::fs::read_to_string(host.path("live/changes")).unwrap();
    host.write("live/changes", &format!("{text}m torn"));
    let refused = b.acquire(ALICE, Some(&name("web")), 0, GrantId(4), QUOTA);
    assert!(matches!(refused, Err(IdError::InUse { .. })));
}

#[test]
fn the_list_of_changes_does_not_grow_without_end() {
    let host = Host::new();
    let (a, b) = (host.open("a"), host.open("b"));
    for n in 0..5000 {
        a.acquire(ALICE, None, 10, GrantId(n), QUOTA).unwrap();
        a.release(GrantId(n)).unwrap();
    }
    assert!(std::fs::metadata(host.path("live/changes")).unwrap().len() < 300 * 1024);
    let last = a.acquire(ALICE, None, 10, GrantId(9000), QUOTA).unwrap();
    assert!(!b.acquire(ALICE, None, 10, GrantId(9001), QUOTA).unwrap().overlaps(last));
}

#[test]
fn a_damaged_file_keeps_its_ids_and_says_its_name() {
    let host = Host::new();
    let record = host.open("a");
    first_of(&record, ALICE, "web", 1);
    record.release(GrantId(1)).unwrap();
    drop(record);
    let file = host.files("record").remove(0);
    for text in ["", "{", "[]", "{\"format\":1}", "\u{0}"] {
        host.write(&format!("record/{file}"), text);
        let record = host.open("a");
        let refused = record.acquire(ALICE, Some(&name("web")), 0, GrantId(2), QUOTA).unwrap_err();
        assert!(matches!(&refused, IdError::Damaged { file: named, .. } if *named == file), "{refused}");
        assert!(Refusal::from(refused).message.contains(&file));
        let other = record.acquire(BOB, None, BLOCK, GrantId(3), QUOTA).unwrap();
        assert_eq!(other.uid().0, FIRST + BLOCK, "the damaged block is not given to another");
        assert_eq!(record.owner_of(HostUid(FIRST)), Some(ALICE));
        record.release(GrantId(3)).unwrap();
    }
    std::fs::write(host.path(&format!("record/{file}")), b"\xff\xfe").unwrap();
    assert!(host.open("a").acquire(ALICE, None, 1, GrantId(2), QUOTA).is_err());
    host.write("record/what.json", "{}");
    let refused = host.try_open("a", Names::default());
    assert!(matches!(refused, Err(IdError::Damaged { file, .. }) if file == "what.json"));
}

#[test]
fn leftovers_of_a_crash_are_removed_and_what_is_no_record_is_left() {
    let host = Host::new();
    host.write("record/.262144.1.1000.json.0123456789abcdef.new", "{");
    host.write("live/.x.0123456789abcdef.new", "");
    host.write("record/README", "hands off");
    let record = host.open("a");
    assert_eq!(host.files("record"), ["README"]);
    assert!(host.files("live").is_empty());
    assert_eq!(first_of(&record, ALICE, "web", 1), FIRST);
}

#[test]
fn a_block_in_use_whose_file_was_removed_is_not_given_out() {
    let host = Host::new();
    let record = host.open("a");
    first_of(&record, ALICE, "web", 1);
    drop(record);
    let file = host.files("record").remove(0);
    std::fs::remove_file(host.path(&format!("record/{file}"))).unwrap();
    let record = host.open("a");
    assert_eq!(first_of(&record, BOB, "web", 2), FIRST + BLOCK);
}

#[test]
fn ids_of_others_are_kept_clear_also_when_they_come_later() {
    let host = Host::new();
    host.write("etc/subuid", &format!("bob:{}:10\n", FIRST + 100));
    host.write("etc/group", &format!("odd:x:{}:\n", FIRST + BLOCK + 7));
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    assert_eq!(web, FIRST + 2 * BLOCK);
    record.release(GrantId(1)).unwrap();
    host.write("etc/subgid", &format!("bob:{web}:1\nbob:{}:1\n", web + BLOCK));
    let refused = record.acquire(ALICE, Some(&name("web")), 0, GrantId(2), QUOTA).unwrap_err();
    assert!(matches!(refused, IdError::Taken(span) if span.first() == web));
    assert!(matches!(record.acquire(BOB, None, 1, GrantId(3), QUOTA), Err(IdError::NoFreeBlock { .. })));
    host.write("etc/subgid", "");
    assert_eq!(first_of(&record, ALICE, "web", 4), web);
}

#[test]
fn a_pool_within_what_systemd_uses_has_nothing_to_give() {
    let host = Host::new();
    let dir = |name: &str| Dir::open(&host.path(name)).unwrap();
    let pool = Pool::new(vec![IdSpan::between(0x1000_0000, 0x100f_ffff).unwrap()]).unwrap();
    let names = Box::new(Names::default());
    let record =
        IdRecord::open_with(dir("record"), dir("live"), &pool, "a", names, &host.path("etc")).unwrap();
    let refused = record.acquire(ALICE, None, 1, GrantId(1), QUOTA);
    assert!(matches!(refused, Err(IdError::NoFreeBlock { blocks: 16, free: 0, .. })));
}

#[test]
fn the_name_service_is_asked_once_a_block_and_believed() {
    let host = Host::new();
    let names = Names { known: vec![FIRST, FIRST + BLOCK], ..Names::default() };
    let record = host.try_open("a", names.clone()).unwrap();
    assert_eq!(first_of(&record, ALICE, "web", 1), FIRST + 2 * BLOCK);
    assert_eq!(names.asked.load(Ordering::SeqCst), 3);
    record.release(GrantId(1)).unwrap();
    first_of(&record, ALICE, "web", 2);
    assert_eq!(names.asked.load(Ordering::SeqCst), 3, "a range that the account has needs no question");
    assert_eq!(first_of(&record, BOB, "web", 3), FIRST + 3 * BLOCK);
    assert_eq!(names.asked.load(Ordering::SeqCst), 4);
    assert!(record.acquire(CAROL, None, 1, GrantId(4), QUOTA).is_err());
}

#[test]
fn without_an_answer_nothing_is_given_and_nothing_is_lost() {
    let host = Host::new();
    let record = host.try_open("a", Names { fails: true, ..Names::default() }).unwrap();
    let refused = record.acquire(ALICE, None, 1, GrantId(1), QUOTA).unwrap_err();
    assert_eq!(Refusal::from(refused).code, RefusalCode::TimedOut);
    assert!(host.files("record").is_empty() && host.files("live").is_empty());
    drop(record);
    assert_eq!(first_of(&host.open("a"), ALICE, "web", 1), FIRST);
}

#[test]
fn the_next_holder_of_a_uid_gets_none_of_its_ids() {
    let host = Host::new();
    let record = host.open("a");
    let alices = first_of(&record, ALICE, "web", 1);
    let carols = first_of(&record, CAROL, "web", 2);
    record.release(GrantId(1)).unwrap();
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\neve:x:1000:1000::/:\n");
    record.accounts_changed().unwrap();
    assert_eq!(record.used(ALICE), 0);
    let eves = first_of(&record, ALICE, "web", 3);
    assert!(eves != alices && eves != carols);
    assert_eq!(record.owner_of(HostUid(alices)), Some(ALICE), "still nobody else's");
    record.release(GrantId(2)).unwrap();
    assert_eq!(first_of(&record, CAROL, "web", 4), carols, "a uid that never had an entry keeps its ranges");
    drop(record);
    let record = host.open("a");
    record.release(GrantId(3)).unwrap();
    assert_eq!(first_of(&record, ALICE, "web", 5), eves);
    assert!(record.list(ALICE).unwrap().iter().all(|range| range.range.uid != alices));
}

#[test]
fn half_a_passwd_file_retires_nobody() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    record.release(GrantId(1)).unwrap();
    for text in ["", "root:x:0:0::/root:/bin/sh\n"] {
        host.write("etc/passwd", text);
        record.accounts_changed().unwrap();
        assert_eq!(first_of(&record, ALICE, "web", 2), web);
        record.release(GrantId(2)).unwrap();
    }
}

#[test]
fn a_user_who_is_missing_for_long_is_gone() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    record.release(GrantId(1)).unwrap();
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    record.accounts_changed().unwrap();
    // As if that was a minute ago: the time of change can't be set, so the check is told.
    record.lock_inner().accounts.pretend_settled();
    record.accounts_changed().unwrap();
    assert_ne!(first_of(&record, ALICE, "web", 2), web);
}

#[test]
fn what_is_said_of_departed_users_is_what_the_record_says() {
    let host = Host::new();
    let record = host.open("a");
    let (alices, bobs) = (first_of(&record, ALICE, "web", 1), first_of(&record, BOB, "web", 2));
    first_of(&record, CAROL, "web", 3);
    let said = |account| {
        let all = record.departed(account, false).unwrap().into_iter();
        all.map(|info| (info.account, info.user, info.first, info.fate, info.grants)).collect::<Vec<_>>()
    };
    assert_eq!(said(None), []);
    // Not before it is certain, and said of nobody else.
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1001:1001::/:\n");
    assert_eq!(said(None), [(1000, "alice".to_owned(), alices, Fate::Leaving, 1)]);
    record.lock_inner().accounts.pretend_settled();
    record.accounts_changed().unwrap();
    assert_eq!(said(None), [(1000, "alice".to_owned(), alices, Fate::Retired, 1)]);
    assert_eq!([alices, bobs, FIRST - 1].map(|id| record.is_retired(id).unwrap()), [true, false, false]);
    record.release(GrantId(1)).unwrap();
    // Another user of the uid has ids of its own, of which nothing is said.
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\neve:x:1000:1000::/:\nbob:x:1001:1001::/:\n");
    let eves = first_of(&record, ALICE, "web", 4);
    assert_eq!(said(Some(ALICE)), [(1000, "alice".to_owned(), alices, Fate::Retired, 0)]);
    assert!(![alices, bobs].contains(&eves) && said(Some(BOB)).is_empty() && said(Some(CAROL)).is_empty());
    // What is somebody's by hand is no more nobody's.
    host.write("etc/subuid", &format!("bob:{}:1\n", alices + 7));
    assert_eq!(said(Some(ALICE)), [(1000, "alice".to_owned(), alices, Fate::Taken, 0)]);
}

/// Which areas' files are to be removed, by their first ids.
fn to_remove(record: &IdRecord) -> Vec<(u32, Fate)> {
    record.departed(None, true).unwrap().into_iter().map(|info| (info.first, info.fate)).collect()
}

const NOBODY: &str = "root:x:0:0::/root:/bin/sh\n";

#[test]
fn files_of_users_who_are_gone_are_removed_if_policy_said_so_last() {
    let host = Host::new();
    let record = host.open("a");
    let (alices, bobs) = (first_of(&record, ALICE, "web", 1), first_of(&record, BOB, "web", 2));
    record.note_removal(GrantId(1), true).unwrap();
    // Of these policy thought better.
    record.note_removal(GrantId(2), true).unwrap();
    record.note_removal(GrantId(2), false).unwrap();
    // Without ids there is nothing to note.
    record.note_removal(GrantId(9), true).unwrap();
    for grant in [1, 2] {
        record.release(GrantId(grant)).unwrap();
    }
    assert!(to_remove(&record).is_empty() && !record.is_removal_due());
    host.write("etc/passwd", NOBODY);
    record.accounts_changed().unwrap();
    assert!(to_remove(&record).is_empty(), "before it is certain");
    record.lock_inner().accounts.pretend_settled();
    record.accounts_changed().unwrap();
    assert_eq!(to_remove(&record), [(alices, Fate::Retired)]);
    // Another instance, and after a restart.
    let other = host.open("b");
    assert!(other.is_removal_due() && to_remove(&other) == [(alices, Fate::Retired)]);
    // Who has the uid now has other ids, and says nothing about these.
    host.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:\n");
    let new = first_of(&other, ALICE, "web", 3);
    other.note_removal(GrantId(3), false).unwrap();
    assert_ne!(new, alices);
    assert_eq!(to_remove(&other), [(alices, Fate::Retired)]);
    // Others' ids are not spoken of by naming them.
    for first in [alices + 1, bobs, new, 7] {
        other.forget_departed(first, false).unwrap();
    }
    host.write("etc/subgid", &format!("bob:{}:1\n", alices + 7));
    assert_eq!(to_remove(&other), [(alices, Fate::Taken)]);
    host.write("etc/subgid", "");
    other.forget_departed(alices, false).unwrap();
    assert!(
        to_remove(&other).is_empty() && to_remove(&record).is_empty() && !host.open("c").is_removal_due()
    );
}

#[test]
fn files_are_looked_for_a_few_times_where_some_stay() {
    let host = Host::new();
    let record = host.open("a");
    let alices = first_of(&record, ALICE, "web", 1);
    record.note_removal(GrantId(1), true).unwrap();
    host.write("etc/passwd", NOBODY);
    record.accounts_changed().unwrap();
    record.lock_inner().accounts.pretend_settled();
    record.accounts_changed().unwrap();
    for _ in 1..TRIES {
        record.forget_departed(alices, true).unwrap();
        assert_eq!(to_remove(&host.open("b")), [(alices, Fate::Retired)]);
    }
    record.forget_departed(alices, true).unwrap();
    assert!(to_remove(&record).is_empty());
}

/// `usermod --login` looks like that, and is nobody's end.
#[test]
fn nothing_is_removed_of_who_may_have_another_name_or_place() {
    for (switch, passwd) in [
        ("passwd: files\n", "root:x:0:0::/root:/bin/sh\nalicia:x:1000:1000::/:\n"),
        ("passwd: files sss\n", NOBODY),
    ] {
        let host = Host::new();
        host.write("etc/nsswitch.conf", switch);
        let record = host.open("a");
        let alices = first_of(&record, ALICE, "web", 1);
        record.note_removal(GrantId(1), true).unwrap();
        host.write("etc/passwd", passwd);
        record.accounts_changed().unwrap();
        record.lock_inner().accounts.pretend_settled();
        record.accounts_changed().unwrap();
        assert!(record.is_retired(alices).unwrap(), "{switch}");
        assert!(to_remove(&record).is_empty() && !record.is_removal_due(), "{switch}");
    }
}

#[test]
fn ids_outside_the_pool_and_the_brokers_own_are_nobodys() {
    let host = Host::new();
    let record = host.open("a");
    let web = first_of(&record, ALICE, "web", 1);
    assert_eq!(record.owner_of(HostUid(web)), Some(ALICE));
    assert_eq!(record.owner_of(HostUid(web + BLOCK - 1)), Some(ALICE));
    for id in [0, 1000, FIRST - BLOCK, FIRST - 1, web + BLOCK, u32::MAX] {
        assert_eq!(record.owner_of(HostUid(id)), None, "{id}");
    }
}

#[test]
fn a_record_that_cannot_be_written_gives_nothing() {
    let host = Host::new();
    let record = host.open("a");
    // A directory in the file's place: even root can't rename over it.
    let file = host.path(&format!("record/{FIRST}.1.1000.json"));
    std::fs::create_dir(&file).unwrap();
    let refused = record.acquire(ALICE, Some(&name("web")), 0, GrantId(1), QUOTA).unwrap_err();
    assert_eq!(Refusal::from(refused).code, RefusalCode::RecordUnwritable);
    std::fs::remove_dir(&file).unwrap();
    assert!(host.files("record").is_empty() && host.files("live").is_empty());
    assert_eq!(first_of(&record, ALICE, "web", 2), FIRST);
}

#[test]
fn threads_never_get_the_same_ids() {
    let host = Host::new();
    let record = Arc::new(host.open("a"));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let record = Arc::clone(&record);
            std::thread::spawn(move || {
                let account = HostUid(1000 + thread % 2);
                (0..20)
                    .map(|n| {
                        let grant = GrantId(u64::from(thread) * 100 + n);
                        (account, record.acquire(account, None, 1000, grant, QUOTA).unwrap())
                    })
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let ranges: Vec<(HostUid, IdRange)> =
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    for (at, (account, range)) in ranges.iter().enumerate() {
        for (other_account, other) in &ranges[at + 1..] {
            assert!(!range.overlaps(*other));
            assert!(account == other_account || range.uid().0 / BLOCK != other.uid().0 / BLOCK);
        }
    }
}

#[test]
fn users_inside_have_names_and_blocks_each_for_themselves() {
    let host = Host::new();
    let record = host.open("a");
    let all = record.acquire(ALICE, Some(&name("one")), 4 * BLOCK, GrantId(1), QUOTA).unwrap();
    let first = all.uid().0;
    let range = Range { uid: first, gid: first, count: 4 * BLOCK };
    let around = |user: u32| Around { range, own: BLOCK, user: NsUid(user) };
    let take = |record: &IdRecord, user: u32, label: &str| {
        record
            .acquire_inner(around(user), Some(&name(label)), 0, &[])
            .map(|range| (range.uid().0 - first) / BLOCK)
    };
    assert_eq!((take(&record, 0, "web").unwrap(), take(&record, 7, "web").unwrap()), (1, 2));
    assert_eq!(take(&record, 7, "web").unwrap(), 2);
    let file = || {
        let text = std::fs::read_to_string(host.path("record").join(&host.files("record")[0])).unwrap();
        text.split_whitespace().collect::<String>()
    };
    assert_eq!(file().matches("\"user\":7").count(), 1, "root's are written as ever: {}", file());
    drop(record);
    let record = host.open("a");
    assert_eq!((take(&record, 7, "web").unwrap(), take(&record, 70, "web").unwrap()), (2, 3));
    assert!(matches!(take(&record, 71, "web"), Err(IdError::NoRoomInside { .. })));
    // What is kept counts, what is used too, and what is both only once.
    let blocks = |user: u32, live: &[u32], more| {
        let live: Vec<IdSpan> =
            live.iter().map(|block| IdSpan::new(first + block * BLOCK, BLOCK).unwrap()).collect();
        let all: Vec<_> = live.iter().map(|span| (*span, GrantId(9))).collect();
        record.blocks_inside(around(user), &live, &all, more).unwrap().with(0)
    };
    let (web, db) = (name("web"), name("db"));
    assert_eq!((blocks(7, &[], None), blocks(71, &[], None), blocks(7, &[2], None)), (1, 0, 1));
    assert_eq!((blocks(7, &[], Some((Some(&web), 0))), blocks(7, &[], Some((Some(&db), 0)))), (1, 2));
    assert_eq!((blocks(7, &[], Some((None, 1))), blocks(71, &[], Some((None, BLOCK + 1)))), (2, 2));
    // Nobody's but the user's own.
    let kept = |user: u32| record.list_inner(range, NsUid(user), |_| None).unwrap().len();
    assert_eq!((kept(0), kept(7), kept(70), kept(71)), (1, 1, 1, 0));
    assert!(matches!(record.forget_inner(range, NsUid(71), &web), Err(IdError::NoSuchRange(_))));
    record.forget_inner(range, NsUid(7), &web).unwrap();
    assert_eq!((kept(0), kept(7), kept(70)), (1, 0, 1));
    // What was a user's is that user's, without a name too, and nobody else's; root's is root's to give back.
    assert_eq!(blocks(7, &[], None), 1);
    record.forget_inner(range, NsUid(0), &web).unwrap();
    let unnamed = |record: &IdRecord, user: u32, live: &[(IdSpan, GrantId)]| {
        record.acquire_inner(around(user), None, 0, live).map(|range| (range.uid().0 - first) / BLOCK)
    };
    assert_eq!((unnamed(&record, 7, &[]).unwrap(), unnamed(&record, 71, &[]).unwrap()), (2, 1));
    assert!(matches!(unnamed(&record, 0, &[]), Err(IdError::NoRoomInside { .. })));
    drop(record);
    let record = host.open("a");
    assert!(matches!(unnamed(&record, 72, &[]), Err(IdError::NoRoomInside { .. })));
    assert_eq!((take(&record, 7, "db").unwrap(), unnamed(&record, 71, &[]).unwrap()), (2, 1));
    let busy = [(IdSpan::new(first + BLOCK, BLOCK).unwrap(), GrantId(9))];
    assert!(matches!(unnamed(&record, 71, &busy), Err(IdError::NoRoomInside { .. })));
}

#[test]
fn who_has_a_range_next_finds_nothing_kept_in_it() {
    let host = Host::new();
    let record = host.open("a");
    let first = record.acquire(ALICE, Some(&name("one")), 4 * BLOCK, GrantId(1), QUOTA).unwrap().uid().0;
    let range =
        |block: u32, count: u32| Range { uid: first + block * BLOCK, gid: first, count: count * BLOCK };
    let around = |block, count| Around { range: range(block, count), own: BLOCK, user: NsUid::ROOT };
    let take = |at: (u32, u32), label: Option<&str>, count: u32| {
        let label = label.map(name);
        let found = record.acquire_inner(around(at.0, at.1), label.as_ref(), count * BLOCK, &[]);
        (found.unwrap().uid().0 - first) / BLOCK
    };
    assert_eq!(take((0, 4), None, 3), 1);
    assert_eq!((take((1, 3), Some("web"), 2), take((2, 2), Some("deep"), 1)), (2, 3));
    let kept = |block, count| record.list_inner(range(block, count), NsUid::ROOT, |_| None).unwrap().len();
    assert_eq!((kept(1, 3), kept(2, 2)), (1, 1));
    assert_eq!(take((0, 4), None, 3), 1, "the same ids, for another one");
    assert_eq!((kept(1, 3), kept(2, 2)), (0, 0));
}

#[test]
fn users_are_given_no_ids_that_nothing_is_kept_of() {
    let host = Host::new();
    let record = host.open("a");
    let first = record.acquire(ALICE, None, 4 * BLOCK, GrantId(1), QUOTA).unwrap().uid().0;
    let range = Range { uid: first, gid: first, count: 4 * BLOCK };
    let around = |user: u32| Around { range, own: BLOCK, user: NsUid(user) };
    assert!(matches!(record.acquire_inner(around(7), None, 0, &[]), Err(IdError::NothingKept)));
    assert!(record.acquire_inner(around(0), None, 0, &[]).is_ok());
}

#[test]
fn one_user_fills_the_record_with_nothing() {
    let host = Host::new();
    let record = host.open("a");
    let first = record.acquire(ALICE, Some(&name("one")), 4 * BLOCK, GrantId(1), QUOTA).unwrap().uid().0;
    let range = Range { uid: first, gid: first, count: 4 * BLOCK };
    let around = |user: u32| Around { range, own: BLOCK, user: NsUid(user) };
    let take = |label: Option<&str>, count: u32| {
        let label = label.map(name);
        record.acquire_inner(around(7), label.as_ref(), count, &[]).map(|range| range.uid().0 - first)
    };
    assert_eq!(take(None, BLOCK).unwrap(), BLOCK);
    // A name's ids are no other name's, whatever was had there before.
    assert_eq!((take(Some("n0"), 1000).unwrap(), take(Some("n1"), 1000).unwrap()), (BLOCK, 2 * BLOCK));
    let forget = |label: &str| record.forget_inner(range, NsUid(7), &name(label)).unwrap();
    forget("n0");
    forget("n1");
    for count in (1..100).rev() {
        let label = format!("n{count}");
        take(Some(&label), count * 100).unwrap();
        forget(&label);
    }
    let text = std::fs::read_to_string(host.path("record").join(&host.files("record")[0])).unwrap();
    let kept = text.matches("\"around\"").count();
    assert!(kept <= 3, "{kept}: {text}");
}
