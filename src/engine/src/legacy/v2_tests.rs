//! The calls on cgroup2 of the machine's own kernel, as root. As in `tests.rs`; the one controller is hugetlb, which is
//! cgroup2's on hosts with v1 controllers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cgrant_sys::Pidfd;

use super::{
    actor::Actor,
    call::Call,
    fault::Fault,
    path::{LEAF, components},
    tests::{ALICE, BOB, Place, Sleeper, enough, owner, wanted},
};
use crate::cgroup::Hierarchy;

/// The one controller.
const HUGETLB: &str = "hugetlb";
const LIMIT: &str = "hugetlb.2MB.limit_in_bytes";
/// Longest wait for what the kernel does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// Cgroups of the test's own that have the controller.
struct V2(Place);

impl V2 {
    fn new() -> Self {
        let place = V2(Place::new());
        // As the broker does at start.
        fs::write(place.dir().parent().unwrap().join("cgroup.subtree_control"), "+hugetlb").unwrap();
        assert!(
            place.dir().join("hugetlb.2MB.max").exists(),
            "these tests are for a host with hugetlb on cgroup2"
        );
        place
    }

    fn dir(&self) -> PathBuf {
        self.0.dir("cgroup2")
    }

    fn hierarchy(&self) -> &Hierarchy {
        self.0.hierarchy("cgroup2")
    }

    /// A process of this uid in a cgroup below the test's own.
    fn process(&self, uid: u32, below: &str) -> Sleeper {
        let sleeper = self.0.process(uid, "");
        enter(&self.dir().join(below), sleeper.0.id());
        sleeper
    }

    fn actor(&self, process: &Sleeper, uid: u32) -> Actor<'_> {
        self.0.actor(process, uid)
    }

    fn call<'a>(&'a self, requestor: &'a Actor<'a>) -> Call<'a> {
        self.0.call(requestor)
    }

    /// A cgroup of root's in the test's own.
    fn make(&self, below: &str) -> PathBuf {
        let dir = self.dir().join(below);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// One that is delegated to a user by the kernel's own list.
    fn delegate(&self, below: &str, uid: u32) -> PathBuf {
        let dir = self.make(below);
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            chown(dir.join(file), Some(uid), Some(uid)).unwrap();
        }
        dir
    }

    /// Where the kernel says that a process is, from the test's own cgroup.
    fn place_of(&self, process: &Sleeper) -> String {
        let path = process.cgroup("cgroup2");
        path.strip_prefix(&format!("/{}", self.0.name)).unwrap_or(&path).trim_start_matches('/').to_owned()
    }
}

fn enter(dir: &Path, pid: u32) {
    fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_cgroup_has_processes_and_cgroups() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let (asks, other) = (place.process(0, ""), place.process(0, ""));
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    assert!(!call.create(v2, &wanted("a/b"), HUGETLB, &enough).unwrap());
    assert!(call.create(v2, &wanted("a/b"), HUGETLB, &enough).unwrap());
    assert_eq!(read(place.dir().join("a/b/hugetlb.2MB.current")), "0", "it has the controller");
    // Whoever was in the cgroup itself made room, and seems not to have.
    assert_eq!(place.place_of(&asks), LEAF);
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    assert_eq!(root.cgroup(v2).unwrap(), [place.0.name.as_str()]);
    assert_eq!(call.pid_cgroup(v2, &place.actor(&other, 0), false).unwrap(), "/");
    call.move_process(v2, &wanted("a"), &place.actor(&other, 0), false).unwrap();
    assert_eq!(place.place_of(&other), format!("a/{LEAF}"));
    let other_actor = place.actor(&other, 0);
    assert_eq!(call.pid_cgroup(v2, &other_actor, false).unwrap(), "a");
    assert_eq!(call.pid_cgroup(v2, &other_actor, true).unwrap(), format!("/{}/a", place.0.name));
    call.create(v2, &wanted("a/c"), HUGETLB, &enough).unwrap();
    let mut children = call.children(v2, "a").unwrap();
    children.sort_unstable();
    assert_eq!(children, ["b", "c"]);
    assert_eq!(call.tasks(v2, "a", false).unwrap(), [other.0.id()]);
    assert!(call.tasks(v2, "a/b", true).unwrap().is_empty());
    let mut both = [asks.0.id(), other.0.id()];
    both.sort_unstable();
    assert_eq!(call.tasks(v2, "", true).unwrap(), both);
    for key in ["tasks", "cgroup.procs", "cgroup.threads"] {
        assert_eq!(call.value(v2, "a", key).unwrap(), other.0.id().to_string(), "{key}");
    }
    // It comes back to where it was, as far as it sees.
    call.move_process(v2, &wanted(""), &other_actor, false).unwrap();
    assert_eq!(place.place_of(&other), LEAF);
}

#[test]
fn controllers_come_from_the_own_cgroup_and_not_from_above() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let inner = place.make("inner");
    let process = place.process(0, "inner");
    let root = place.actor(&process, 0);
    let call = place.call(&root);
    let single = call.create(v2, &wanted("x"), HUGETLB, &enough);
    assert!(
        matches!(&single, Err(Fault::NotToBeHad { controller, .. }) if controller == HUGETLB),
        "{single:?}"
    );
    assert!(!inner.join("x").exists() && place.place_of(&process) == "inner", "nothing has happened");
    // In a list, and where none is needed, it is what can be had.
    call.create(v2, &wanted("x"), "all", &enough).unwrap();
    call.create(v2, &wanted("y"), "freezer", &enough).unwrap();
    assert!(!inner.join("x/hugetlb.2MB.max").exists() && place.place_of(&process) == "inner");
    assert!(
        matches!(call.value(v2, "x", LIMIT), Err(Fault::NotEnabled(controller)) if controller == HUGETLB)
    );
    assert!(matches!(call.set_value(v2, "x", LIMIT, "0"), Err(Fault::NotEnabled(_) | Fault::NoEqual { .. })));
    assert_eq!(read(place.dir().join("cgroup.subtree_control")), "");
}

#[test]
fn who_may_not_enable_controllers_moves_nobody() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let process = place.process(ALICE, "");
    fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let alice = place.actor(&process, ALICE);
    let call = place.call(&alice);
    assert!(matches!(call.create(v2, &wanted("x"), HUGETLB, &enough), Err(Fault::Denied)));
    assert!(!place.dir().join("x").exists() && place.place_of(&process).is_empty());
    call.create(v2, &wanted("x"), "freezer", &enough).unwrap();
    assert_eq!(owner(&place.dir().join("x/cgroup.freeze")), (ALICE, ALICE));
    // With one of the two files that it takes she gets no further.
    chown(place.dir().join("cgroup.subtree_control"), Some(ALICE), None).unwrap();
    assert!(matches!(call.create(v2, &wanted("x"), HUGETLB, &enough), Err(Fault::Denied)));
    assert_eq!(
        (place.place_of(&process).as_str(), read(place.dir().join("cgroup.subtree_control")).as_str()),
        ("", "")
    );
    chown(place.dir().join("cgroup.procs"), Some(ALICE), None).unwrap();
    call.create(v2, &wanted("x"), HUGETLB, &enough).unwrap();
    assert_eq!(
        (place.place_of(&process).as_str(), owner(&place.dir().join("x/hugetlb.2MB.max"))),
        (LEAF, (ALICE, ALICE))
    );
}

#[test]
fn limits_belong_to_whoever_made_the_cgroup_and_not_to_whom_it_was_given() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let roots = place.process(0, "");
    let root = place.actor(&roots, 0);
    let call = place.call(&root);
    call.create(v2, &wanted("home"), HUGETLB, &enough).unwrap();
    call.create(v2, &wanted("home/given"), "freezer", &enough).unwrap();
    for name in ["home", "home/given"] {
        call.chown(v2, &wanted(name), (ALICE, ALICE)).unwrap();
    }
    let home = place.dir().join("home");
    for (file, uid) in [
        ("", ALICE),
        ("cgroup.procs", ALICE),
        ("cgroup.threads", ALICE),
        ("cgroup.subtree_control", ALICE),
        ("hugetlb.2MB.max", 0),
        ("cgroup.freeze", 0),
        ("cgroup.max.descendants", 0),
    ] {
        assert_eq!(owner(&home.join(file)), (uid, uid), "{file}");
    }
    let process = place.process(ALICE, "home");
    let alice = place.actor(&process, ALICE);
    let call = place.call(&alice);
    // Made before the controller is enabled above them: one of hers, and the one that she was given.
    call.create(v2, &wanted("mine"), "freezer", &enough).unwrap();
    assert!(!home.join("mine/hugetlb.2MB.max").exists());
    call.create(v2, &wanted("mine/x"), HUGETLB, &enough).unwrap();
    for (file, uid) in [("mine", ALICE), ("mine/x", ALICE), ("given", 0)] {
        assert_eq!(owner(&home.join(file).join("hugetlb.2MB.max")), (uid, uid), "{file}");
    }
    call.set_value(v2, "mine/x", LIMIT, "2M").unwrap();
    assert_eq!(call.value(v2, "mine/x", LIMIT).unwrap(), "2097152");
    for (path, key) in [
        ("", LIMIT),
        ("", "hugetlb.2MB.max"),
        ("given", LIMIT),
        ("", "freezer.state"),
        ("", "cgroup.max.depth"),
    ] {
        assert!(
            matches!(call.set_value(v2, path, key, "1"), Err(Fault::Denied | Fault::Value(_))),
            "{path} {key}"
        );
        assert!(matches!(call.chmod(v2, &wanted(path), key, 0o666), Err(Fault::Denied)), "{path} {key}");
    }
    assert!(matches!(call.chown(v2, &wanted("mine"), (BOB, BOB)), Err(Fault::Denied)), "only root gives");
}

#[test]
fn nobody_leaves_what_bounds_it() {
    let place = V2::new();
    let v2 = place.hierarchy();
    place.make("session");
    for name in ["elsewhere", "session/below", "session/beside"] {
        place.delegate(name, ALICE);
    }
    let process = place.process(ALICE, "session");
    let absolute = |path: &str| wanted(&format!("/{}/{path}", place.0.name));
    let go = |path: &str| {
        let alice = place.actor(&process, ALICE);
        place.call(&alice).move_process(v2, &absolute(path), &alice, true)
    };
    // What systemd gave her in another place is no way out, though all of its bits are hers.
    assert!(matches!(go("elsewhere"), Err(Fault::Denied)));
    assert!(matches!(go(""), Err(Fault::Denied)));
    assert_eq!(place.place_of(&process), "session");
    go("session/below").unwrap();
    assert_eq!(place.place_of(&process), format!("session/below/{LEAF}"));
    assert!(matches!(go("session/beside"), Err(Fault::Denied)), "not to hers either, past what is not");
    assert!(matches!(go("session"), Err(Fault::Denied)));
    // Within what is hers she goes where she likes.
    for name in ["session/below/x", "session/below/y"] {
        place.delegate(name, ALICE);
        go(name).unwrap();
    }
    go("session/below").unwrap();
    // Others are not hers to move, not even deeper.
    let his = place.process(BOB, &format!("session/below/{LEAF}"));
    let (alice, bob) = (place.actor(&process, ALICE), place.actor(&his, BOB));
    assert!(matches!(place.call(&alice).move_process(v2, &wanted("x"), &bob, false), Err(Fault::Denied)));
}

/// A process of this uid that has made the cgroup that it is in the root of its cgroup namespace.
fn in_namespace(place: &V2, uid: u32, below: &str) -> Sleeper {
    let script =
        format!("read go; exec unshare -C setpriv --reuid {uid} --regid {uid} --clear-groups sleep 600");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut sleeper = Sleeper(command.spawn().unwrap());
    enter(&place.dir().join(below), sleeper.0.id());
    sleeper.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let comm = PathBuf::from(format!("/proc/{}/comm", sleeper.0.id()));
    wait_for("it sleeps in its namespace", || read(comm.clone()) == "sleep");
    sleeper
}

#[test]
fn a_cgroup_namespace_keeps_its_limits_and_its_processes() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let dir = place.delegate("box", ALICE);
    chown(dir.join("cgroup.freeze"), Some(ALICE), None).unwrap();
    place.delegate("", ALICE);
    place.delegate("beside", ALICE);
    let outside = place.process(ALICE, "box");
    let inside = in_namespace(&place, ALICE, "box");
    let [free, bound] = [&outside, &inside].map(|process| place.actor(process, ALICE));
    place.call(&free).set_value(v2, "", "freezer.state", "THAWED").unwrap();
    let call = place.call(&bound);
    assert!(matches!(call.set_value(v2, "", "freezer.state", "THAWED"), Err(Fault::Denied)));
    let absolute = wanted(&format!("/{}/beside", place.0.name));
    assert!(matches!(call.move_process(v2, &absolute, &bound, true), Err(Fault::Outside)));
    place.call(&free).move_process(v2, &absolute, &free, true).unwrap();
    // In it, it does as it likes.
    call.create(v2, &wanted("x"), "freezer", &enough).unwrap();
    call.set_value(v2, "x", "freezer.state", "THAWED").unwrap();
    call.move_process(v2, &wanted("x"), &bound, false).unwrap();
    assert_eq!(place.place_of(&inside), format!("box/x/{LEAF}"));
}

#[test]
fn files_of_v1_are_there() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let (asks, other) = (place.process(0, ""), place.process(0, ""));
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    call.create(v2, &wanted("a"), HUGETLB, &enough).unwrap();
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    let get = |key: &str| call.value(v2, "a", key);
    assert_eq!(get(LIMIT).unwrap(), "9223372036852678656");
    call.set_value(v2, "a", LIMIT, "4M").unwrap();
    assert_eq!((get(LIMIT).unwrap(), get("hugetlb.2MB.max").unwrap()), ("4194304".into(), "4194304".into()));
    call.set_value(v2, "a", "hugetlb.2MB.max", "2097152").unwrap();
    assert_eq!(get(LIMIT).unwrap(), "2097152");
    call.set_value(v2, "a", LIMIT, "-1").unwrap();
    assert_eq!(get(LIMIT).unwrap(), "9223372036852678656");
    assert_eq!(
        (get("hugetlb.2MB.usage_in_bytes").unwrap(), get("hugetlb.2MB.failcnt").unwrap()),
        ("0".into(), "0".into())
    );
    assert!(get("cpuacct.usage").unwrap().parse::<u64>().is_ok());
    assert!(get("cpuacct.stat").unwrap().starts_with("user "));
    call.move_process(v2, &wanted("a"), &place.actor(&other, 0), false).unwrap();
    assert_eq!(get("freezer.state").unwrap(), "THAWED");
    call.set_value(v2, "a", "freezer.state", "FROZEN").unwrap();
    wait_for("it freezes", || get("freezer.state").unwrap() == "FROZEN");
    call.set_value(v2, "a", "freezer.state", "THAWED").unwrap();
    wait_for("it thaws", || get("freezer.state").unwrap() == "THAWED");
    for key in ["memory.soft_limit_in_bytes", "devices.list", "notify_on_release", "memory.limit_in_bytes"] {
        assert!(matches!(get(key), Err(Fault::NoEqual { .. })), "{key}: {:?}", get(key));
        assert!(
            matches!(call.set_value(v2, "a", key, "1"), Err(Fault::NoEqual { .. } | Fault::Key(_))),
            "{key}"
        );
    }
    for key in
        ["tasks", "cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.subtree_control", "cgroup.type"]
    {
        assert!(matches!(call.set_value(v2, "a", key, "1"), Err(Fault::Key(_))), "{key}");
    }
    for path in [LEAF.to_owned(), format!("a/{LEAF}"), format!("/{}/a/{LEAF}", place.0.name)] {
        assert!(matches!(call.value(v2, &path, "tasks"), Err(Fault::Path)), "{path}");
    }
    assert!(matches!(call.set_value(v2, "a", LIMIT, "lots"), Err(Fault::Value(_))));
}

#[test]
fn modes_and_owners_are_those_of_what_stands_behind() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let (asks, other) = (place.process(0, ""), place.process(0, ""));
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    call.create(v2, &wanted("a"), HUGETLB, &enough).unwrap();
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    call.move_process(v2, &wanted("a"), &place.actor(&other, 0), false).unwrap();
    call.chown(v2, &wanted("a"), (ALICE, BOB)).unwrap();
    call.chmod(v2, &wanted("a"), "tasks", 0o664).unwrap();
    call.chmod(v2, &wanted("a"), "", 0o711).unwrap();
    call.chmod(v2, &wanted("a"), LIMIT, 0o640).unwrap();
    let a = place.dir().join("a");
    for dir in [a.clone(), a.join(LEAF)] {
        for (file, mode) in [("", 0o711), ("cgroup.procs", 0o664), ("cgroup.threads", 0o644)] {
            let meta = fs::metadata(dir.join(file)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, ALICE, BOB), "{dir:?} {file}");
        }
    }
    let keys = call.keys(v2, "a").unwrap();
    let key = |name: &str| {
        let found: Vec<_> = keys.iter().filter(|key| key.name == name).collect();
        assert_eq!(found.len(), 1, "{name} once");
        (found[0].uid, found[0].gid, found[0].mode & 0o7777)
    };
    assert_eq!((key("tasks"), key("cgroup.procs")), ((ALICE, BOB, 0o664), (ALICE, BOB, 0o664)));
    assert_eq!((key(LIMIT), key("hugetlb.2MB.max")), ((0, 0, 0o640), (0, 0, 0o640)));
    for name in ["freezer.state", "cpuacct.usage", "cpu.stat", "cgroup.freeze"] {
        assert_eq!((key(name).0, key(name).1), (0, 0), "{name}");
    }
    assert!(!keys.iter().any(|key| key.name.starts_with("memory.limit") || key.name == LEAF));
}

#[test]
fn a_leaf_goes_with_its_cgroup() {
    let place = V2::new();
    let v2 = place.hierarchy();
    let asks = place.process(0, "");
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    let busy = place.process(0, "");
    call.create(v2, &wanted("a/b"), "all", &enough).unwrap();
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    for name in ["a", "a/b"] {
        call.move_process(v2, &wanted(name), &place.actor(&busy, 0), false).unwrap();
    }
    let is_busy = |result: Result<bool, Fault>| matches!(result, Err(Fault::Kernel { .. }));
    assert!(is_busy(call.remove(v2, &wanted("a"), false)), "it has a cgroup");
    assert!(place.dir().join("a").join(LEAF).exists(), "nothing was touched");
    assert!(is_busy(call.remove(v2, &wanted("a/b"), false)), "it has a process");
    assert!(is_busy(call.remove(v2, &wanted("a"), true)));
    drop(busy);
    wait_for("the kernel sees that it is empty", || {
        read(place.dir().join("a/cgroup.events")).contains("populated 0")
    });
    assert!(call.remove(v2, &wanted("a/b"), false).unwrap());
    assert!(call.remove(v2, &wanted("a"), true).unwrap());
    assert!(!place.dir().join("a").exists() && !call.remove(v2, &wanted("a"), true).unwrap());
    // One that nobody was ever in, which the original could not remove.
    call.create(v2, &wanted("c"), "all", &enough).unwrap();
    assert!(call.remove(v2, &wanted("c"), false).unwrap());
}

#[test]
fn grants_are_let_alone_by_everybody() {
    let place = V2::new();
    let v2 = place.hierarchy();
    for uid in [0, ALICE] {
        let process = place.process(uid, "");
        let actor = place.actor(&process, uid);
        let call = place.call(&actor);
        place.delegate("broker", uid);
        let granted = |result: Result<(), Fault>| matches!(result, Err(Fault::Granted | Fault::Denied));
        assert!(granted(call.create(v2, &wanted("broker/x"), "all", &enough).map(drop)));
        assert!(granted(call.create(v2, &wanted("broker"), "freezer", &enough).map(drop)));
        assert!(granted(call.remove(v2, &wanted("broker"), true).map(drop)));
        assert!(granted(call.chown(v2, &wanted("broker"), (uid, uid))));
        assert!(granted(call.chmod(v2, &wanted("broker"), "", 0o777)));
        assert!(granted(call.set_value(v2, "broker", "freezer.state", "FROZEN")));
        assert!(granted(call.move_process(v2, &wanted("broker"), &actor, false)));
        assert_eq!((place.place_of(&process).as_str(), place.dir().join("broker/x").exists()), ("", false));
    }
    // Nor from inside.
    let process = place.process(ALICE, "broker");
    let alice = place.actor(&process, ALICE);
    assert!(matches!(place.call(&alice).create(v2, &wanted("x"), "freezer", &enough), Err(Fault::Granted)));
    assert!(matches!(
        place.call(&alice).move_process(v2, &wanted(""), &alice, false),
        Err(Fault::Outside | Fault::Granted)
    ));
    assert!(place.call(&alice).value(v2, "", "cgroup.procs").is_ok(), "it may look");
}

#[test]
fn a_number_that_was_given_away_is_put_right() {
    let place = V2::new();
    let v2 = place.hierarchy();
    place.make("home");
    let asks = place.process(0, "");
    let root = place.actor(&asks, 0);
    let call = place.call(&root);
    // It is in a cgroup that its parent, this test, is not in.
    let strayed = place.process(BOB, "home");
    let names = components(&format!("/{}/home", place.0.name));
    let own = place.0.tree.proc().cgroups(std::process::id()).unwrap();
    let own = own.into_iter().find(|(name, _)| name == "cgroup2").unwrap().1;
    call.put_right(v2, &names, strayed.0.id());
    assert_eq!(strayed.cgroup("cgroup2"), own);
    // One that was forked in there stays; also if the one that forked it has ended, and init's cgroup is its parent's.
    for end in ["wait", ""] {
        let (_parent, child) = forked_in(&place, end);
        call.put_right(v2, &names, child);
        assert_eq!(place_of_number(&place, child), "home", "{end}");
        Pidfd::open(child).unwrap().send_number(9).unwrap();
    }
    // So does one of the requestor's own, which it could have moved there.
    let (strayed, asks) = (place.process(ALICE, "home"), place.process(ALICE, ""));
    let alice = place.actor(&asks, ALICE);
    place.call(&alice).put_right(v2, &names, strayed.0.id());
    assert_eq!(place.place_of(&strayed), "home");
}

/// A process of a user's that was forked in the cgroup `home` by another one, which then does this.
fn forked_in(place: &V2, end: &str) -> (Sleeper, u32) {
    let mut parent = Command::new("sh");
    parent.args(["-c", &format!("read go; sleep 600 >/dev/null & echo $!; {end}")]).uid(BOB).gid(BOB);
    let mut parent = Sleeper(parent.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    enter(&place.dir().join("home"), parent.0.id());
    parent.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut line = String::new();
    let mut told = std::io::BufReader::new(parent.0.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut told, &mut line).unwrap();
    let child = line.trim().parse().unwrap();
    if end.is_empty() {
        parent.0.wait().unwrap();
        let proc = place.0.tree.proc();
        wait_for("nobody took it in", || proc.stat(child).unwrap().ppid == 1);
    }
    (parent, child)
}

fn place_of_number(place: &V2, pid: u32) -> String {
    let all = place.0.tree.proc().cgroups(pid).unwrap();
    let path = all.into_iter().find(|(name, _)| name == "cgroup2").unwrap().1;
    path.strip_prefix(&format!("/{}/", place.0.name)).unwrap_or(&path).to_owned()
}
