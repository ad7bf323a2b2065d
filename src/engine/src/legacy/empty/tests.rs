//! Real cgroups and real processes: removed is what is to be, when it is empty, and nothing else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;
use crate::{
    legacy::{
        path::Wanted,
        tests::{ALICE, BOB, Place, Sleeper, enough, wanted},
    },
    watch::Target,
};

const ACCOUNT: HostUid = HostUid(ALICE);
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Long enough for something that should not happen.
const WHILE: Duration = Duration::from_millis(200);

/// The test's cgroups and an engine's run directory.
struct Stage {
    place: Place,
    run: tempfile::TempDir,
}

/// What lives as long as an engine.
struct Life<'s> {
    stage: &'s Stage,
    wishes: Wishes,
    watches: Watches,
}

impl Stage {
    fn new() -> Self {
        Self { place: Place::new(), run: tempfile::tempdir().unwrap() }
    }

    fn life(&self) -> Life<'_> {
        let life = Life {
            stage: self,
            wishes: Wishes::open(&Dir::open(self.run.path()).unwrap()).unwrap(),
            watches: Watches::new().unwrap(),
        };
        life.watches
            .borrow(life.wishes.descriptor(), nix::sys::epoll::EpollFlags::EPOLLIN, Target::Wishes)
            .unwrap();
        life
    }

    /// The wishes on disk.
    fn records(&self) -> usize {
        fs::read_dir(self.run.path().join("legacy-empty")).unwrap().count()
    }

    fn hierarchy(&self, name: &str) -> &Hierarchy {
        self.place.tree.host().all().find(|hierarchy| hierarchy.name == name).unwrap()
    }

    fn dir(&self, hierarchy: &str, name: &str) -> PathBuf {
        self.place.dir(hierarchy).join(name)
    }

    fn make(&self, hierarchy: &str, name: &str) -> PathBuf {
        let dir = self.dir(hierarchy, name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A process of root's in a cgroup.
    fn process(&self, dir: &Path) -> Sleeper {
        let process = self.place.process(0, "");
        put(&process, dir);
        process
    }
}

fn put(process: &Sleeper, dir: &Path) {
    fs::write(dir.join("cgroup.procs"), process.0.id().to_string()).unwrap();
}

impl Life<'_> {
    fn keeper(&self) -> Keeper<'_> {
        let hierarchies = self.stage.place.tree.host();
        Keeper { wishes: &self.wishes, watches: &self.watches, hierarchies, boot_id: "boot" }
    }

    /// Has a cgroup of the test's removed when it is empty, at the wish of root.
    fn wish(&self, hierarchy: &str, name: &str) -> Result<(), Fault> {
        let hierarchy = self.stage.hierarchy(hierarchy);
        let path = format!("/{}/{name}", self.stage.place.name);
        let names = components(&path);
        self.keeper().wish(ACCOUNT, hierarchy, &names, &open(hierarchy, &names)?)
    }

    /// Serves as the engine does, until a condition holds.
    fn until(&self, condition: impl Fn() -> bool) {
        let deadline = self.watches.after(PATIENCE, |_| Target::Control).unwrap();
        while !condition() {
            assert!(self.turn(), "it does not happen");
        }
        self.watches.remove(&[deadline]);
    }

    /// Serves for a while. How often was there something to do?
    fn a_while(&self) -> usize {
        self.watches.after(WHILE, |_| Target::Control).unwrap();
        std::iter::repeat_with(|| self.turn()).take_while(|goes_on| *goes_on).count()
    }

    /// False when the time is over.
    fn turn(&self) -> bool {
        let mut goes_on = true;
        for (target, _) in self.watches.wait().unwrap() {
            match target {
                Target::Wishes => self.wishes.told().into_iter().for_each(|id| self.keeper().look(id)),
                Target::Wish(id) => self.keeper().look(id),
                _ => goes_on = false,
            }
        }
        goes_on
    }
}

#[test]
fn a_cgroup_goes_with_its_last_process() {
    let stage = Stage::new();
    let life = stage.life();
    for hierarchy in ["memory", "cgroup2"] {
        let (dir, other) = (stage.make(hierarchy, "a"), stage.make(hierarchy, "b"));
        let (first, second) = (stage.process(&dir), stage.process(&dir));
        life.wish(hierarchy, "a").unwrap();
        life.wish(hierarchy, "a").unwrap();
        assert_eq!((life.wishes.of(None).len(), stage.records()), (1, 1), "one wish, on disk");
        drop(first);
        life.a_while();
        assert!(dir.exists(), "{hierarchy}: there is another process in it");
        drop(second);
        life.until(|| !dir.exists());
        assert!(other.exists() && life.wishes.of(None).is_empty());
        assert_eq!(stage.records(), 0);
    }
    // What the kernel says of watches that are gone.
    life.a_while();
    assert_eq!(life.a_while(), 0, "nothing is looked at for nothing");
}

#[test]
fn a_v1_cgroup_stays_until_something_was_in_it() {
    let stage = Stage::new();
    let life = stage.life();
    let dir = stage.make("memory", "a");
    life.wish("memory", "a").unwrap();
    // A limit is no process.
    fs::write(dir.join("memory.limit_in_bytes"), "1048576").unwrap();
    assert_eq!(life.a_while(), 0);
    assert!(dir.exists());
    // By itself, and gone before anybody looks.
    drop(stage.process(&dir));
    life.until(|| !dir.exists());
    // As a cgroup that was in it.
    let dir = stage.make("memory", "b");
    life.wish("memory", "b").unwrap();
    fs::create_dir(dir.join("inner")).unwrap();
    life.a_while();
    assert!(dir.exists());
    fs::remove_dir(dir.join("inner")).unwrap();
    life.until(|| !dir.exists());
}

#[test]
fn a_cgroup2_cgroup_that_is_empty_goes_at_once_and_with_its_leaf() {
    let stage = Stage::new();
    let life = stage.life();
    let dir = stage.make("cgroup2", "a");
    life.wish("cgroup2", "a").unwrap();
    assert!(!dir.exists() && life.wishes.of(None).is_empty());
    let (dir, leaf) = (stage.make("cgroup2", "b"), stage.make("cgroup2", "b/.cgm_leaf"));
    let process = stage.process(&leaf);
    life.wish("cgroup2", "b").unwrap();
    assert!(dir.exists());
    drop(process);
    life.until(|| !dir.exists());
    // Not while there are others in it.
    let (dir, inner) = (stage.make("cgroup2", "c"), stage.make("cgroup2", "c/inner"));
    life.wish("cgroup2", "c").unwrap();
    life.a_while();
    assert!(inner.exists());
    fs::remove_dir(&inner).unwrap();
    life.until(|| !dir.exists());
}

#[test]
fn a_cgroup_goes_and_not_the_one_around_it() {
    let stage = Stage::new();
    let life = stage.life();
    for hierarchy in ["memory", "cgroup2"] {
        let (outer, inner) = (stage.make(hierarchy, "outer"), stage.make(hierarchy, "outer/inner"));
        let process = stage.process(&inner);
        life.wish(hierarchy, "outer/inner").unwrap();
        drop(process);
        life.until(|| !inner.exists());
        life.a_while();
        assert!(outer.exists(), "{hierarchy}");
        // Unless that is wished, too: first the inner, then the outer one.
        fs::create_dir(&inner).unwrap();
        let process = stage.process(&inner);
        life.wish(hierarchy, "outer").unwrap();
        life.wish(hierarchy, "outer/inner").unwrap();
        drop(process);
        life.until(|| !outer.exists());
        assert!(life.wishes.of(None).is_empty());
    }
}

#[test]
fn a_process_that_was_moved_away_is_waited_for_no_longer_than_it_lives() {
    let stage = Stage::new();
    let life = stage.life();
    let (dir, other) = (stage.make("memory", "a"), stage.make("memory", "b"));
    let process = stage.process(&dir);
    life.wish("memory", "a").unwrap();
    put(&process, &other);
    life.a_while();
    drop(process);
    life.until(|| !dir.exists());
    assert!(other.exists());
}

#[test]
fn what_was_wished_holds_after_a_restart() {
    let stage = Stage::new();
    for hierarchy in ["memory", "cgroup2"] {
        let [lives, ends, made_anew] = ["lives", "ends", "anew"].map(|name| stage.make(hierarchy, name));
        let (living, ending, third) =
            (stage.process(&lives), stage.process(&ends), stage.process(&made_anew));
        let life = stage.life();
        for name in ["lives", "ends", "anew"] {
            life.wish(hierarchy, name).unwrap();
        }
        drop(life);
        // While there is no broker one process ends, and a cgroup is replaced by another one of its name.
        drop((ending, third));
        let end = std::time::Instant::now() + PATIENCE;
        while fs::remove_dir(&made_anew).is_err() {
            assert!(std::time::Instant::now() < end);
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::create_dir(&made_anew).unwrap();
        let life = stage.life();
        life.keeper().take_over().unwrap();
        life.until(|| !ends.exists());
        assert!(lives.exists() && made_anew.exists());
        assert_eq!(life.wishes.of(None).len(), 1);
        drop(living);
        life.until(|| !lives.exists());
        assert_eq!(stage.records(), 0);
        assert!(made_anew.exists());
    }
}

#[test]
fn wishes_of_an_earlier_boot_mean_nothing() {
    let stage = Stage::new();
    let dir = stage.make("memory", "a");
    let process = stage.process(&dir);
    stage.life().wish("memory", "a").unwrap();
    let life = stage.life();
    Keeper { boot_id: "another", ..life.keeper() }.take_over().unwrap();
    drop(process);
    life.a_while();
    assert!(dir.exists());
    assert_eq!((life.wishes.of(None).len(), stage.records()), (0, 0));
}

#[test]
fn what_others_remove_is_forgotten() {
    let stage = Stage::new();
    let life = stage.life();
    for hierarchy in ["memory", "cgroup2"] {
        let dir = stage.make(hierarchy, "a");
        let inner = stage.make(hierarchy, "a/b");
        life.wish(hierarchy, "a").unwrap();
        assert_eq!(life.wishes.of(None).len(), 1);
        fs::remove_dir(&inner).unwrap();
        fs::remove_dir(&dir).unwrap();
        life.until(|| life.wishes.of(None).is_empty());
        assert_eq!(stage.records(), 0);
    }
}

#[test]
fn a_new_v1_cgroup_has_the_wish_of_the_one_around_it() {
    let stage = Stage::new();
    let life = stage.life();
    let outer = stage.make("memory", "outer");
    let holder = stage.process(&outer);
    let inner = stage.make("memory", "outer/inner");
    let memory = stage.hierarchy("memory");
    let names = |name: &str| components(&format!("/{}/{name}", stage.place.name));
    life.keeper().inherit(ACCOUNT, memory, &names("outer/inner"));
    assert!(life.wishes.of(None).is_empty(), "nothing is wished of the one around it");
    life.wish("memory", "outer").unwrap();
    life.keeper().inherit(ACCOUNT, memory, &names("outer/inner"));
    assert_eq!(life.wishes.of(None).len(), 2);
    let process = stage.process(&inner);
    drop(process);
    life.until(|| !inner.exists());
    assert!(outer.exists());
    drop(holder);
    life.until(|| !outer.exists());
}

#[test]
fn only_so_many_wishes_of_an_account_are_open() {
    let stage = Stage::new();
    let life = stage.life();
    for number in 0..=MAX_OF_ACCOUNT {
        stage.make("freezer", &format!("w{number}"));
    }
    for number in 0..MAX_OF_ACCOUNT {
        life.wish("freezer", &format!("w{number}")).unwrap();
    }
    let one_more = || life.wish("freezer", &format!("w{MAX_OF_ACCOUNT}"));
    assert!(matches!(one_more(), Err(Fault::Wishes)));
    // Somebody else is not concerned; and what is not there any more does not count.
    let freezer = stage.hierarchy("freezer");
    let names = components(&format!("/{}/w{MAX_OF_ACCOUNT}", stage.place.name));
    life.keeper().wish(HostUid(BOB), freezer, &names, &open(freezer, &names).unwrap()).unwrap();
    life.keeper().wishes.forget(life.wishes.at("freezer", &names).unwrap(), Some(&life.watches));
    fs::remove_dir(stage.dir("freezer", "w7")).unwrap();
    one_more().unwrap();
}

/// The calls as a uid makes them, from the test's own cgroup.
fn calls(stage: &Stage, uid: u32, act: impl FnOnce(&Call<'_>)) {
    let process = stage.place.process(uid, "");
    put(&process, &stage.place.dir("cgroup2"));
    let actor = stage.place.actor(&process, uid);
    act(&stage.place.call(&actor));
}

#[test]
fn only_who_may_write_in_a_cgroup_has_it_removed() {
    let stage = Stage::new();
    let life = stage.life();
    let memory = stage.hierarchy("memory");
    stage.place.give("memory", "hers", ALICE);
    let wish =
        |call: &Call<'_>, path: &str| call.remove_on_empty(&life.keeper(), ACCOUNT, memory, &wanted(path));
    calls(&stage, BOB, |call| {
        assert!(matches!(wish(call, "hers"), Err(Fault::Denied)));
        assert!(matches!(wish(call, ""), Err(Fault::Denied)));
        assert!(matches!(call.prune(&life.keeper(), ACCOUNT, memory, &wanted("hers")), Err(Fault::Denied)));
    });
    calls(&stage, ALICE, |call| {
        wish(call, "/hers").unwrap();
        assert!(matches!(wish(call, "nothing"), Err(Fault::NoCgroup)));
    });
    // Not even root has the broker's own removed.
    calls(&stage, 0, |call| {
        assert!(matches!(wish(call, "broker"), Err(Fault::Granted)));
        wish(call, "").unwrap();
    });
    assert_eq!(life.wishes.of(None).len(), 2);
}

#[test]
fn what_is_pruned_goes_now_or_when_it_is_empty() {
    let stage = Stage::new();
    let life = stage.life();
    for hierarchy in ["memory", "cgroup2"] {
        let [empty, busy] = ["a/empty/deep", "a/way/busy"].map(|name| stage.make(hierarchy, name));
        let process = stage.process(&busy);
        let of = stage.hierarchy(hierarchy);
        calls(&stage, 0, |call| call.prune(&life.keeper(), HostUid(0), of, &wanted("a")).unwrap());
        assert!(!empty.exists() && !stage.dir(hierarchy, "a/empty").exists() && busy.exists());
        assert_eq!(life.wishes.of(None).len(), 3, "busy, way and a");
        drop(process);
        life.until(|| !stage.dir(hierarchy, "a").exists());
        calls(&stage, 0, |call| {
            let gone = call.prune(&life.keeper(), HostUid(0), of, &wanted("a"));
            assert!(matches!(gone, Err(Fault::NoCgroup)));
        });
    }
}

#[test]
fn the_brokers_own_are_not_pruned() {
    let stage = Stage::new();
    let life = stage.life();
    let (mine, inner) = (stage.dir("memory", "broker"), stage.make("memory", "broker/account"));
    calls(&stage, 0, |call| {
        call.prune(&life.keeper(), HostUid(0), stage.hierarchy("memory"), &Wanted::parse("").unwrap())
            .unwrap();
        assert!(call.create(stage.hierarchy("memory"), &wanted("x"), "memory", &enough).is_ok());
    });
    assert!(mine.exists() && inner.exists());
    let names = life.wishes.of(None).into_iter().map(|id| life.wishes.record(id).unwrap().names.join("/"));
    assert!(names.eq([stage.place.name.as_str()]), "the one around them");
}
