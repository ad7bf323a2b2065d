//! The calls on the machine's own kernel, as root: real v1 cgroups, real processes, uids that nobody has.
//!
//! Every test works below cgroups `cgrant-test-legacy-PID-N` of its own, one in each v1 hierarchy; a process of the test's
//! that sits in them is the requestor. They are emptied and removed at the end, also of a test that fails.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use cgrant_sys::{Pidfd, ProcFs};
use cgrant_wire::boot::Placement;

use super::{actor::Actor, call::Call, fault::Fault, path::Wanted};
use crate::cgroup::{Hierarchy, Tree};

/// Uids of the tests. Nobody's on any machine.
pub(super) const ALICE: u32 = 2_147_300_000;
pub(super) const BOB: u32 = 2_147_300_001;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The v1 hierarchies and cgroup2, and where they are mounted.
fn machine() -> BTreeMap<String, PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut machine = BTreeMap::new();
    for line in own.lines() {
        let name = line.split(':').nth(1).unwrap();
        let shows = |line: &&str| {
            let (before, after) = line.split_once(" - ").unwrap();
            let kind = after.split(' ').next().unwrap();
            let options = after.rsplit(' ').next().unwrap();
            before.split(' ').nth(3) == Some("/")
                && match name {
                    "" => kind == "cgroup2",
                    name => {
                        kind == "cgroup" && name.split(',').all(|part| options.split(',').any(|o| o == part))
                    }
                }
        };
        if let Some(line) = mountinfo.lines().find(shows) {
            let name = if name.is_empty() { "cgroup2" } else { name };
            machine.insert(name.to_owned(), line.split(' ').nth(4).unwrap().into());
        }
    }
    machine
}

/// Cgroups of the test's own, and the engine's view of the host.
pub(super) struct Place {
    pub(super) name: String,
    machine: BTreeMap<String, PathBuf>,
    pub(super) tree: Tree,
}

impl Place {
    pub(super) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests have to run as root");
        let name =
            format!("cgrant-test-legacy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let machine = machine();
        assert!(
            machine.contains_key("memory"),
            "these tests are for a host with v1 controllers: {machine:?}"
        );
        let cleaner = Cleaner { name: &name, machine: &machine };
        for point in machine.values() {
            fs::create_dir(point.join(&name)).unwrap();
            fs::create_dir(point.join(&name).join("broker")).unwrap();
        }
        let placements: Vec<Placement> = machine
            .keys()
            .map(|hierarchy| Placement { hierarchy: hierarchy.clone(), path: format!("/{name}/broker") })
            .collect();
        let tree = Tree::open("test", &placements).unwrap();
        std::mem::forget(cleaner);
        Self { name, machine, tree }
    }

    pub(super) fn dir(&self, hierarchy: &str) -> PathBuf {
        self.machine[hierarchy].join(&self.name)
    }

    pub(super) fn hierarchy(&self, name: &str) -> &Hierarchy {
        self.tree.host().all().find(|hierarchy| hierarchy.name == name).unwrap()
    }

    /// A process of this uid, in the test's cgroups of the hierarchies that the tests look at, or below them.
    pub(super) fn process(&self, uid: u32, below: &str) -> Sleeper {
        let mut command = Command::new("sleep");
        command.arg("600").uid(uid).gid(uid);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let sleeper = Sleeper(command.spawn().unwrap());
        for hierarchy in ["memory", "devices", "freezer"] {
            let dir = self.dir(hierarchy);
            let dir = if dir.join(below).exists() { dir.join(below) } else { dir };
            fs::write(dir.join("cgroup.procs"), sleeper.0.id().to_string()).unwrap();
        }
        sleeper
    }

    pub(super) fn actor(&self, process: &Sleeper, uid: u32) -> Actor<'_> {
        Actor::new(self.tree.proc(), Pidfd::open(process.0.id()).unwrap(), uid, uid, Vec::new()).unwrap()
    }

    pub(super) fn call<'a>(&'a self, requestor: &'a Actor<'a>) -> Call<'a> {
        Call {
            hierarchies: self.tree.host(),
            requestor,
            proxy: requestor,
            plain: true,
            may_have: &|_| Ok(()),
        }
    }

    /// What an administrator does for a user: a cgroup of its own to work in.
    pub(super) fn give(&self, hierarchy: &str, name: &str, uid: u32) -> PathBuf {
        let dir = self.dir(hierarchy).join(name);
        fs::create_dir_all(&dir).unwrap();
        for path in [dir.clone(), dir.join("tasks"), dir.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        dir
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        Cleaner { name: &self.name, machine: &self.machine };
    }
}

struct Cleaner<'a> {
    name: &'a str,
    machine: &'a BTreeMap<String, PathBuf>,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        for point in self.machine.values() {
            remove_tree(point, &point.join(self.name));
        }
    }
}

/// Removes a cgroup with all below it; processes that are left go to the root.
fn remove_tree(root: &Path, top: &Path) {
    let Ok(entries) = fs::read_dir(top) else { return };
    for entry in entries.map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        remove_tree(root, &entry.path());
    }
    for pid in fs::read_to_string(top.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = fs::write(root.join("cgroup.procs"), pid);
    }
    let _ = fs::remove_dir(top);
}

pub(super) struct Sleeper(pub(super) Child);

impl Sleeper {
    pub(super) fn cgroup(&self, hierarchy: &str) -> String {
        let all = ProcFs::open().unwrap().cgroups(self.0.id()).unwrap();
        all.into_iter().find(|(name, _)| name == hierarchy).unwrap().1
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub(super) fn wanted(path: &str) -> Wanted {
    Wanted::parse(path).unwrap()
}

pub(super) fn enough(_: usize) -> Result<(), Fault> {
    Ok(())
}

pub(super) fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

/// Are a cgroup and all its files one's own, but for the one that stays root's?
fn is_whole(cgroup: &Path, uid: u32) -> bool {
    let files = fs::read_dir(cgroup).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    let mut owners = files.map(|file| (file.file_name() == "notify_on_release", owner(&file.path())));
    owner(cgroup) == (uid, uid) && owners.all(|(kept, ids)| ids == if kept { (0, 0) } else { (uid, uid) })
}

#[test]
fn a_new_cgroup_is_its_makers_also_where_the_kernel_would_not_let_it() {
    let place = Place::new();
    let dir = place.give("memory", "home", ALICE);
    let process = place.process(ALICE, "home");
    // Hers by a group that the kernel does not know of, as what is a user namespace's is its root's.
    std::os::unix::fs::chown(&dir, Some(0), Some(BOB)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o770)).unwrap();
    let hers = Pidfd::open(process.0.id()).unwrap();
    let alice = Actor::new(place.tree.proc(), hers, ALICE, ALICE, vec![BOB]).unwrap();
    let (call, memory) = (place.call(&alice), place.hierarchy("memory"));
    assert!(!call.create(memory, &wanted("a/b"), "all", &enough).unwrap());
    assert!(is_whole(&dir.join("a"), ALICE) && is_whole(&dir.join("a/b"), ALICE));
    assert!(call.create(memory, &wanted("a/b"), "all", &enough).unwrap());
}

#[test]
fn a_new_cgroup_is_the_requestors_with_all_its_limits() {
    let place = Place::new();
    let dir = place.give("memory", "home", ALICE);
    let process = place.process(ALICE, "");
    fs::write(dir.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    let alice = place.actor(&process, ALICE);
    let (call, memory) = (place.call(&alice), place.hierarchy("memory"));
    assert!(!call.create(memory, &wanted("/a/b"), "all", &enough).unwrap());
    assert!(call.create(memory, &wanted("a/b"), "all", &enough).unwrap(), "the second time it is there");
    assert!(is_whole(&dir.join("a"), ALICE) && is_whole(&dir.join("a/b"), ALICE));
    assert_eq!(owner(&dir.join("memory.limit_in_bytes")), (0, 0), "the limit that it was given stays root's");
    call.set_value(memory, "a/b", "memory.limit_in_bytes", "1048576").unwrap();
    assert_eq!(call.value(memory, "a/b", "memory.limit_in_bytes").unwrap(), "1048576");
    assert_eq!(call.children(memory, "a").unwrap(), ["b"]);
    assert!(matches!(call.set_value(memory, "", "memory.limit_in_bytes", "1048576"), Err(Fault::Denied)));
}

#[test]
fn nothing_is_made_where_the_bits_do_not_let() {
    let place = Place::new();
    let dir = place.give("memory", "home", BOB);
    let process = place.process(ALICE, "home");
    let alice = place.actor(&process, ALICE);
    let (call, memory) = (place.call(&alice), place.hierarchy("memory"));
    assert!(matches!(call.create(memory, &wanted("a"), "all", &enough), Err(Fault::Denied)));
    assert!(!dir.join("a").exists());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    call.create(memory, &wanted("a"), "all", &enough).unwrap();
    assert_eq!(owner(&dir.join("a")), (ALICE, ALICE));
    // Through one that she may not pass, not even to what is hers.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(matches!(call.value(memory, "a", "tasks"), Err(Fault::Denied)));
}

#[test]
fn only_what_is_gone_does_not_count() {
    let place = Place::new();
    let names = |last: &[&str]| -> Vec<String> {
        [&place.name].into_iter().cloned().chain(last.iter().map(|name| (*name).to_owned())).collect()
    };
    fs::create_dir(place.dir("memory").join("made")).unwrap();
    assert!(super::is_there(place.tree.host(), "memory", &names(&["made"])));
    assert!(!super::is_there(place.tree.host(), "memory", &names(&["gone"])));
    assert!(!super::is_there(place.tree.host(), "none", &names(&["made"])));
    // A name that no cgroup has stands for all that may keep the kernel from saying whether it is there.
    assert!(super::is_there(place.tree.host(), "memory", &names(&["a\0b"])));
}

#[test]
fn a_quota_is_asked_for_each_new_cgroup() {
    let place = Place::new();
    let process = place.process(0, "");
    let root = place.actor(&process, 0);
    let (call, memory) = (place.call(&root), place.hierarchy("memory"));
    let depths = Cell::new(Vec::new());
    let more = |depth: usize| {
        let mut seen = depths.take();
        seen.push(depth);
        let last = seen.len() == 3;
        depths.set(seen);
        if last { Err(Fault::Quota) } else { Ok(()) }
    };
    assert!(matches!(call.create(memory, &wanted("a/b/c/d"), "all", &more), Err(Fault::Quota)));
    assert_eq!(depths.take(), [2, 3, 4]);
    assert!(place.dir("memory").join("a/b").exists() && !place.dir("memory").join("a/b/c").exists());
}

#[test]
fn a_cgroup_that_is_given_away_keeps_its_limits() {
    let place = Place::new();
    let process = place.process(0, "");
    let root = place.actor(&process, 0);
    let (call, memory) = (place.call(&root), place.hierarchy("memory"));
    call.create(memory, &wanted("zzz"), "all", &enough).unwrap();
    call.chown(memory, &wanted("zzz"), (ALICE, ALICE)).unwrap();
    let dir = place.dir("memory").join("zzz");
    for (file, uid) in [("", ALICE), ("tasks", ALICE), ("cgroup.procs", ALICE), ("memory.limit_in_bytes", 0)]
    {
        assert_eq!(owner(&dir.join(file)), (uid, uid), "{file}");
    }
    let hers = place.process(ALICE, "");
    let alice = place.actor(&hers, ALICE);
    let call = place.call(&alice);
    assert!(matches!(call.chown(memory, &wanted("zzz"), (BOB, BOB)), Err(Fault::Denied)), "only root gives");
    assert!(matches!(call.set_value(memory, "zzz", "memory.limit_in_bytes", "1048576"), Err(Fault::Denied)));
    call.chmod(memory, &wanted("zzz"), "tasks", 0o660).unwrap();
    assert_eq!(fs::metadata(dir.join("tasks")).unwrap().mode() & 0o7777, 0o660);
    assert!(matches!(call.chmod(memory, &wanted("zzz"), "memory.limit_in_bytes", 0o666), Err(Fault::Denied)));
    assert!(matches!(call.chmod(memory, &wanted("zzz"), "../zzz/tasks", 0o666), Err(Fault::File(_))));
}

#[test]
fn own_processes_are_moved_and_nobody_elses() {
    let place = Place::new();
    place.give("memory", "zzz", ALICE);
    let (hers, his) = (place.process(ALICE, ""), place.process(BOB, ""));
    let (alice, victim) = (place.actor(&hers, ALICE), place.actor(&his, BOB));
    let (call, memory) = (place.call(&alice), place.hierarchy("memory"));
    assert!(matches!(call.move_process(memory, &wanted("zzz"), &victim, false), Err(Fault::Denied)));
    assert!(matches!(call.move_process(memory, &wanted("/zzz"), &alice, false), Err(Fault::Path)));
    assert_eq!(call.pid_cgroup(memory, &victim, false).unwrap(), "/");
    call.move_process(memory, &wanted("zzz"), &alice, false).unwrap();
    assert_eq!(hers.cgroup("memory"), format!("/{}/zzz", place.name));
    let there = place.actor(&hers, ALICE);
    let call = place.call(&there);
    assert_eq!(call.tasks(memory, "", false).unwrap(), [hers.0.id()]);
    // Out again: what it is in now is where it is counted from.
    assert!(matches!(call.pid_cgroup(memory, &victim, false), Err(Fault::Outside)));
    assert_eq!(call.pid_cgroup(memory, &there, true).unwrap(), format!("/{}/zzz", place.name));
    let absolute = wanted(&format!("/{}", place.name));
    assert!(matches!(call.move_process(memory, &absolute, &there, true), Err(Fault::Denied)));
}

#[test]
fn a_name_that_begins_alike_is_another_cgroup() {
    let place = Place::new();
    for name in ["foo", "foobar"] {
        place.give("memory", name, ALICE);
    }
    let (asks, other) = (place.process(ALICE, "foo"), place.process(ALICE, "foobar"));
    let (alice, victim) = (place.actor(&asks, ALICE), place.actor(&other, ALICE));
    let (call, memory) = (place.call(&alice), place.hierarchy("memory"));
    assert!(matches!(call.pid_cgroup(memory, &victim, false), Err(Fault::Outside)));
    assert!(matches!(call.move_process(memory, &wanted(""), &victim, false), Err(Fault::Outside)));
    let absolute = |name: &str| format!("/{}/{name}", place.name);
    assert!(call.value(memory, &absolute("foo"), "memory.usage_in_bytes").is_ok());
    for path in [absolute("foobar"), "/".to_owned()] {
        assert!(matches!(call.value(memory, &path, "memory.usage_in_bytes"), Err(Fault::Denied)), "{path}");
        assert!(matches!(call.keys(memory, &path), Err(Fault::Denied)), "{path}");
    }
}

#[test]
fn keys_lead_nowhere_and_what_root_means_more_by_is_not_written() {
    let place = Place::new();
    let process = place.process(0, "");
    let root = place.actor(&process, 0);
    let (call, memory) = (place.call(&root), place.hierarchy("memory"));
    call.create(memory, &wanted("a"), "all", &enough).unwrap();
    for key in ["../tasks", "a/tasks", "/etc/passwd", "..", ".", "a"] {
        let read = call.value(memory, "", key);
        assert!(matches!(read, Err(Fault::File(_) | Fault::Kernel { .. })), "{key}: {read:?}");
        assert!(call.set_value(memory, "", key, "1").is_err(), "{key}");
    }
    for key in ["notify_on_release", "release_agent", "cgroup.event_control", "tasks", "cgroup.procs"] {
        assert!(matches!(call.set_value(memory, "a", key, "1"), Err(Fault::Key(_))), "{key}");
    }
    assert_eq!(call.value(memory, "a", "notify_on_release").unwrap(), "0");
}

#[test]
fn devices_are_handed_to_nobody() {
    let place = Place::new();
    place.give("devices", "home", ALICE);
    let process = place.process(ALICE, "");
    fs::write(place.dir("devices").join("home/cgroup.procs"), process.0.id().to_string()).unwrap();
    let alice = place.actor(&process, ALICE);
    let (call, devices) = (place.call(&alice), place.hierarchy("devices"));
    assert!(matches!(call.create(devices, &wanted("a"), "all", &enough), Err(Fault::Devices)));
    assert!(matches!(call.move_process(devices, &wanted(""), &alice, false), Err(Fault::Devices)));
    // In a list it is passed over; alone it is the answer.
    place.give("memory", "home", ALICE);
    fs::write(place.dir("memory").join("home/cgroup.procs"), process.0.id().to_string()).unwrap();
    let alice = place.actor(&process, ALICE);
    let call = place.call(&alice);
    let make = |hierarchy| call.create(hierarchy, &wanted("a"), "all", &enough);
    assert_eq!(call.each("memory,devices", make).unwrap(), [false]);
    assert!(matches!(call.each("devices", make), Err(Fault::Devices)));
    assert!(matches!(call.each("freezer,devices", make), Err(Fault::Denied | Fault::Devices)));
}

#[test]
fn removed_is_what_is_empty() {
    let place = Place::new();
    let process = place.process(0, "");
    let root = place.actor(&process, 0);
    let (call, memory) = (place.call(&root), place.hierarchy("memory"));
    assert!(!call.remove(memory, &wanted("x/y"), true).unwrap(), "what is not there is no error");
    call.create(memory, &wanted("a/b/c"), "all", &enough).unwrap();
    call.create(memory, &wanted("a/d"), "all", &enough).unwrap();
    assert!(matches!(call.remove(memory, &wanted("a"), false), Err(Fault::Kernel { .. })));
    let busy = place.process(0, "");
    fs::write(place.dir("memory").join("a/b/cgroup.procs"), busy.0.id().to_string()).unwrap();
    assert!(matches!(call.remove(memory, &wanted("a"), true), Err(Fault::Kernel { .. })));
    let left: Vec<String> = call.children(memory, "a").unwrap();
    assert_eq!(left, ["b"], "the rest is gone");
    assert_eq!(call.tasks(memory, "a", true).unwrap(), [busy.0.id()]);
    drop(busy);
    assert!(call.remove(memory, &wanted("a"), true).unwrap());
    assert!(!place.dir("memory").join("a").exists());
}

#[test]
fn who_has_ended_is_nobody() {
    let place = Place::new();
    let process = place.process(ALICE, "");
    let alice = place.actor(&process, ALICE);
    let memory = place.hierarchy("memory");
    assert_eq!(alice.cgroup(memory).unwrap(), [place.name.as_str()]);
    let gone = Pidfd::open(process.0.id()).unwrap();
    drop(process);
    assert!(matches!(
        Actor::new(place.tree.proc(), gone, ALICE, ALICE, Vec::new()).map(|_| ()),
        Err(Fault::Gone)
    ));
}
