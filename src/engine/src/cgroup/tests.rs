//! The tree on the machine's own kernel, as root: real cgroups, real processes, real users' uids.
//!
//! Every test works below cgroups `cgrant-test-PID-N` of its own, one in each hierarchy, which stand for what systemd
//! would delegate; they are emptied and removed at the end, also of a test that fails.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cgrant_policy::{CgroupPath, Controllers, GrantName, GrantPath, HostGid, HostUid, Key, Setting};
use cgrant_sys::{Pidfd, PidfdInfo};
use cgrant_wire::{AttachTarget, Refusal, RefusalCode, boot::Placement};

use super::{
    CgroupError, Delegation, HostKind, Nested, OomWatch, Patience, Tree,
    attach_tree::Catch,
    mounts::{Kind, Mount, mounts},
};

/// The account of the tests. Nobody's on any machine: above all pools and below the 31-bit edge.
const ACCOUNT: u32 = 2_147_400_000;
/// Root of the range of the tests.
const RANGE: u32 = 2_147_410_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The hierarchies of this machine by name, and where they are mounted.
fn machine() -> BTreeMap<String, PathBuf> {
    let found = mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mut machine = BTreeMap::new();
    for line in own.lines() {
        let name = line.split(':').nth(1).unwrap();
        let shows = |mount: &&Mount| match name {
            "" => mount.kind == Kind::V2,
            name => mount.shows(name),
        };
        if let Some(mount) = found.iter().find(|mount| shows(mount) && mount.is_inside()) {
            machine.insert(
                if name.is_empty() { "cgroup2" } else { name }.to_owned(),
                mount.point.clone().into(),
            );
        }
    }
    machine
}

/// Cgroups of the test's own, with a tree in them.
struct Place {
    name: String,
    machine: BTreeMap<String, PathBuf>,
    tree: Tree,
}

impl Place {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests have to run as root");
        let name = format!("cgrant-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let machine = machine();
        assert!(
            machine.contains_key("cgroup2") && machine.len() > 1,
            "these tests are for a hybrid host: {machine:?}"
        );
        let cleaner = Cleaner { name: &name, machine: &machine };
        for point in machine.values() {
            fs::create_dir(point.join(&name)).unwrap();
        }
        let placements: Vec<Placement> = machine
            .keys()
            .map(|hierarchy| Placement { hierarchy: hierarchy.clone(), path: format!("/{name}") })
            .collect();
        let tree = Tree::open("test", &placements).unwrap();
        std::mem::forget(cleaner);
        Self { name, machine, tree }
    }

    fn dir(&self, hierarchy: &str) -> PathBuf {
        self.machine[hierarchy].join(&self.name)
    }

    /// A grant's directory in a hierarchy.
    fn grant(&self, hierarchy: &str, grant: &GrantPath) -> PathBuf {
        super::tree::below_base(grant).iter().fold(self.dir(hierarchy), |path, name| path.join(name))
    }

    fn make(&self, name: &str) -> GrantPath {
        let grant = path(name);
        self.tree.make(&grant, &with_range()).unwrap();
        grant
    }

    fn pids(&self, hierarchy: &str, grant: &GrantPath, part: &str) -> Vec<u32> {
        let text = fs::read_to_string(self.grant(hierarchy, grant).join(part).join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// What is below the test's own cgroups now.
    fn left(&self) -> Vec<PathBuf> {
        let dirs = |path: PathBuf| {
            fs::read_dir(path).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir())
        };
        self.machine.keys().flat_map(|name| dirs(self.dir(name))).map(|entry| entry.path()).collect()
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
        let _ = fs::write(self.machine["cgroup2"].join(self.name).join("cgroup.kill"), "1");
        for point in self.machine.values() {
            let top = point.join(self.name);
            for _ in 0..200 {
                remove_tree(&top);
                if !top.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if top.exists() && !std::thread::panicking() {
                panic!("{} is left", top.display());
            }
        }
    }
}

fn remove_tree(top: &Path) {
    let mut dirs = vec![top.to_owned()];
    let mut at = 0;
    while at < dirs.len() {
        let inner = fs::read_dir(&dirs[at]).into_iter().flatten().flatten();
        dirs.extend(inner.map(|entry| entry.path()).filter(|path| path.is_dir()));
        at += 1;
    }
    for dir in dirs.iter().rev() {
        let _ = fs::remove_dir(dir);
    }
}

fn path(name: &str) -> GrantPath {
    GrantPath::new(HostUid(ACCOUNT), GrantName::new(name).unwrap())
}

fn with_range() -> Delegation {
    Delegation {
        account: (HostUid(ACCOUNT), HostGid(ACCOUNT)),
        root: Some((HostUid(RANGE), HostGid(RANGE))),
        controllers: Controllers::All,
        most: None,
    }
}

fn bare() -> Delegation {
    Delegation { root: None, ..with_range() }
}

fn anybody(_: &PidfdInfo) -> bool {
    true
}

/// A child that is killed with the test.
struct Running(Child);

impl Running {
    fn new(uid: u32, script: &str) -> Self {
        // Bounded whatever becomes of the test.
        let mut command = Command::new("/usr/bin/prlimit");
        command.args(["--nproc=100:100", "/bin/sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.uid(uid).gid(uid).spawn().unwrap())
    }

    fn pidfd(&self) -> Pidfd {
        Pidfd::open(self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a script as a user; did it succeed?
fn succeeds(uid: u32, script: &str) -> bool {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.uid(uid).gid(uid).status().unwrap().success()
}

fn setting(key: &str, value: &str) -> Setting {
    Setting::parse(key, value).unwrap()
}

fn set(place: &Place, grant: &GrantPath, limits: &[(&str, &str)]) -> Result<(), CgroupError> {
    let settings: Vec<Setting> = limits.iter().map(|(key, value)| setting(key, value)).collect();
    place.tree.set_limits(grant, &settings)
}

fn get(place: &Place, grant: &GrantPath, key: &str) -> String {
    place.tree.get_values(grant, &[key.parse::<Key>().unwrap()]).unwrap().remove(0).1
}

fn code(error: CgroupError) -> RefusalCode {
    Refusal::from(error).code
}

/// Waits until something holds; events would be better, but a test may poll.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processes of a uid, anywhere.
fn processes_of(uid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (entry.metadata().ok()?.uid() == uid).then_some(pid)
    });
    // One that is ending is no matter, and says of its v1 cgroups that they are the root.
    let proc = cgrant_sys::ProcFs::open().unwrap();
    let alive = |pid: &u32| proc.stat(*pid).is_ok_and(|stat| !stat.exiting);
    pids.filter(alive).collect()
}

#[test]
fn a_grant_is_made_in_every_hierarchy_and_leaves_nothing() {
    let place = Place::new();
    assert_eq!(place.tree.kind(), HostKind::Hybrid);
    assert!(place.tree.is_in_scope());
    let grant = path("web");
    let id = place.tree.make(&grant, &with_range()).unwrap();
    for name in place.machine.keys() {
        for part in ["payload", "monitor", "children"] {
            let dir = place.grant(name, &grant).join(part);
            let owner = fs::metadata(&dir).unwrap().uid();
            let holder = if name == "cgroup2" && part == "payload" { RANGE } else { 0 };
            assert_eq!(owner, holder, "{}", dir.display());
        }
    }
    let v2 = place.grant("cgroup2", &grant);
    let stat = |file: &str| {
        let found = fs::metadata(v2.join(file)).unwrap();
        (found.uid(), found.gid(), found.permissions().mode() & 0o777)
    };
    assert_eq!(stat("cgroup.procs"), (ACCOUNT, 0, 0o644));
    assert_eq!(stat("cgroup.subtree_control").0, 0);
    assert_eq!(stat("monitor/cgroup.procs"), (ACCOUNT, 0, 0o644));
    assert_eq!(stat("payload/cgroup.procs"), (ACCOUNT, RANGE, 0o664));
    assert_eq!(stat("payload/cgroup.subtree_control").0, RANGE);
    assert_eq!(stat("payload/cgroup.freeze").0, 0);
    assert_eq!(stat("children/cgroup.procs").0, 0);
    assert_eq!(id, fs::metadata(v2.join("payload")).unwrap().ino());
    assert_eq!(place.tree.payload_id(&grant).unwrap(), Some(id));
    for hierarchy in place.tree.hierarchies(&grant) {
        let point = &place.machine[&hierarchy.name];
        assert!(point.join(hierarchy.path.trim_start_matches('/')).is_dir(), "{hierarchy:?}");
    }
    let cpuset = place.grant("cpuset", &grant).join("payload");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        assert!(!fs::read_to_string(cpuset.join(file)).unwrap().trim().is_empty());
    }
    assert_eq!(place.tree.scan().unwrap(), std::slice::from_ref(&grant));
    assert!(matches!(place.tree.make(&grant, &bare()), Err(CgroupError::GrantExists(_))));
    place.tree.remove(&grant, false).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    // Once more: nothing is missing that has to be there.
    place.tree.remove(&grant, false).unwrap();
    assert_eq!(place.tree.payload_id(&grant).unwrap(), None);
}

#[test]
fn a_grant_that_cannot_be_made_whole_is_not_made() {
    let place = Place::new();
    let grant = path("web");
    // cgroup2 comes last, when all others are there already.
    let foreign = place.grant("cgroup2", &grant);
    fs::create_dir_all(&foreign).unwrap();
    assert!(matches!(place.tree.make(&grant, &with_range()), Err(CgroupError::GrantExists(_))));
    let account = foreign.parent().unwrap().to_owned();
    assert_eq!(place.left(), std::slice::from_ref(&account));
    assert!(foreign.is_dir(), "what was there before is not ours to remove");
}

#[test]
fn a_grant_inside_a_grant() {
    let place = Place::new();
    let outer = place.make("outer");
    let mut inner = outer.clone();
    inner.steps.push(GrantName::new("inner").unwrap().into());
    place.tree.make(&inner, &with_range()).unwrap();
    assert_eq!(place.tree.scan().unwrap(), [outer.clone(), inner.clone()]);
    assert!(place.grant("memory", &inner).join("payload").is_dir());
    let hierarchies = place.tree.hierarchies(&inner);
    let v2 = hierarchies.iter().find(|hierarchy| hierarchy.name == "cgroup2").unwrap();
    assert_eq!(place.tree.payload_around("cgroup2", &format!("{}/x", v2.path)), Some(inner.clone()));
    assert_eq!(
        place.tree.payload_around("cgroup2", &v2.path.replace("payload", "monitor")),
        Some(outer.clone()),
        "a monitor is outside of its own grant alone"
    );
    let own = place.tree.hierarchies(&outer);
    let own = own.iter().find(|hierarchy| hierarchy.name == "cgroup2").unwrap();
    assert_eq!(place.tree.payload_around("cgroup2", &own.path.replace("payload", "monitor")), None);
    let left = own.path.replace("payload", "children/_evicted");
    assert_eq!(place.tree.payload_around("cgroup2", &left), Some(outer.clone()));
    assert_eq!(place.tree.payload_around("memory", &v2.path), None);
    let process = Running::new(RANGE, "exec sleep 1000");
    let _ = place.tree.attach(&inner, AttachTarget::Payload, &process.pidfd(), false, &anybody).unwrap();
    assert!(place.tree.is_populated(&outer).unwrap());
    assert_eq!(place.tree.processes(&outer).unwrap(), [process.0.id()]);
    assert_eq!(code(place.tree.remove(&outer, false).unwrap_err()), RefusalCode::Busy);
    place.tree.remove(&outer, true).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

/// cgroup2 has one controller at least here, `hugetlb`, which stands for all.
#[test]
fn a_controller_that_is_kept_back_is_not_had_from_inside() {
    let place = Place::new();
    let v2 = fs::read_to_string(place.dir("cgroup2").join("cgroup.controllers")).unwrap();
    assert!(v2.contains("hugetlb"), "this test needs hugetlb on cgroup2, and there is {v2:?}");
    let some: Controllers = serde_json::from_str(r#"["cpu", "memory"]"#).unwrap();
    let kept = |delegation: Delegation| Delegation { controllers: some.clone(), ..delegation };
    let (outer, own) = (path("outer"), path("own"));
    place.tree.make(&outer, &kept(with_range())).unwrap();
    place.tree.make(&own, &kept(bare())).unwrap();
    let all = place.make("all");
    let mut inner = outer.clone();
    inner.steps.push(GrantName::new("inner").unwrap().into());
    place.tree.make(&inner, &with_range()).unwrap();
    let has = |grant: &GrantPath, file: &str| {
        fs::read_to_string(place.grant("cgroup2", grant).join(file)).unwrap().contains("hugetlb")
    };
    for (grant, is_had) in [(&outer, false), (&own, false), (&inner, false), (&all, true)] {
        for file in ["cgroup.subtree_control", "payload/cgroup.controllers", "children/cgroup.controllers"] {
            assert_eq!(has(grant, file), is_had, "{file} of {grant}");
        }
    }
    // Whoever has the payload asks for it there, below it, above it, and with all others in one order.
    for (grant, uid, is_had) in [(&outer, RANGE, false), (&own, ACCOUNT, false), (&all, RANGE, true)] {
        let dir = place.grant("cgroup2", grant).display().to_string();
        for (script, may) in [
            ("echo +hugetlb >payload/cgroup.subtree_control", is_had),
            ("echo '+cpu +hugetlb' >payload/cgroup.subtree_control", false),
            ("mkdir payload/x && echo +hugetlb >payload/x/cgroup.subtree_control", is_had),
            ("echo +hugetlb >cgroup.subtree_control", false),
            ("echo +hugetlb >monitor/cgroup.subtree_control", false),
            ("test -e payload/x/hugetlb.2MB.max", is_had),
        ] {
            assert_eq!(succeeds(uid, &format!("cd {dir} && {script}")), may, "{script} in {grant}");
        }
        // A limit of policy's holds on what is root's, and is mirrored where there is a file.
        set(&place, grant, &[("hugetlb.2MB.max", "4M")]).unwrap();
        assert_eq!(get(&place, grant, "hugetlb.2MB.max"), "4194304");
        assert_eq!(place.grant("cgroup2", grant).join("payload/hugetlb.2MB.max").exists(), is_had);
        set(&place, grant, &[("memory.max", "64M"), ("hugetlb.2MB.max", "max")]).unwrap();
    }
    for grant in [&all, &own, &outer] {
        place.tree.remove(grant, true).unwrap();
    }
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn limits_read_back_as_they_were_set() {
    let place = Place::new();
    let grant = place.make("web");
    for (key, value, expect) in [
        ("memory.max", "64M", "67108864"),
        ("memory.swap.max", "16M", "16777216"),
        ("memory.max", "128M", "134217728"),
        ("memory.max", "32M", "33554432"),
        ("memory.swap.max", "0", "0"),
        ("memory.swap.max", "max", "max"),
        ("memory.max", "max", "max"),
        ("cpu.max", "150%", "150000 100000"),
        ("cpu.max", "10000 50000", "10000 50000"),
        ("cpu.max", "2000000 1000000", "2000000 1000000"),
        ("cpu.max", "max", "max"),
        ("cpu.weight", "1", "1"),
        ("cpu.weight", "7777", "7777"),
        ("cpuset.cpus", "0", "0"),
        ("cpuset.cpus", "1", "1"),
        ("cpuset.cpus", "0-1", "0-1"),
        ("cpuset.cpus", "1", "1"),
        ("cpuset.cpus", "max", "0-1"),
        ("pids.max", "17", "17"),
        ("pids.max", "max", "max"),
    ] {
        set(&place, &grant, &[(key, value)])
            .unwrap_or_else(|error| panic!("{key}={value}: {}", Refusal::from(error)));
        assert_eq!(get(&place, &grant, key), expect, "{key}={value}");
    }
    let read = |file: &str| {
        fs::read_to_string(place.grant(file.split('.').next().unwrap(), &grant).join("payload").join(file))
            .unwrap()
    };
    set(&place, &grant, &[("pids.max", "9"), ("memory.max", "8M"), ("memory.swap.max", "4M")]).unwrap();
    assert_eq!((read("pids.max").trim(), read("memory.limit_in_bytes").trim()), ("9", "8388608"));
    assert_eq!(read("memory.memsw.limit_in_bytes").trim(), "12582912");
    for (key, value) in [("memory.high", "1M"), ("io.max", "8:0 rbps=1M"), ("io.max", "max")] {
        let refusal = Refusal::from(set(&place, &grant, &[("pids.max", "17"), (key, value)]).unwrap_err());
        assert_eq!(refusal.code, RefusalCode::Unsupported);
        assert!(refusal.message.contains(key) && refusal.message.contains("v1"), "{refusal}");
        assert_eq!(get(&place, &grant, "pids.max"), "9", "nothing is set");
    }
    let all = place.tree.get_values(&grant, &[]).unwrap();
    assert!(
        all.contains(&("memory.max".into(), "8388608".into()))
            && all.iter().all(|(key, _)| !["memory.high", "io.max"].contains(&key.as_str()))
    );
    set(&place, &grant, &[("memory.swappiness", "10")]).unwrap();
    assert_eq!(get(&place, &grant, "memory.swappiness"), "10");
    for key in ["memory.nonsense", "devices.allow"] {
        assert_eq!(code(set(&place, &grant, &[(key, "a")]).unwrap_err()), RefusalCode::Unsupported, "{key}");
    }
}

#[test]
fn huge_pages_are_limited_where_the_host_hands_the_controller_down() {
    let place = Place::new();
    let grant = place.make("web");
    let here =
        fs::read_to_string(place.dir("cgroup2").join("cgroup.controllers")).unwrap().contains("hugetlb");
    assert_eq!(place.tree.controllers().iter().any(|name| name == "hugetlb"), here);
    let result = set(&place, &grant, &[("hugetlb.2MB.max", "4M")]);
    if here {
        result.unwrap();
        assert_eq!(get(&place, &grant, "hugetlb.2MB.max"), "4194304");
        set(&place, &grant, &[("hugetlb.2MB.max", "max")]).unwrap();
        assert_eq!(get(&place, &grant, "hugetlb.2MB.max"), "max");
    } else {
        assert_eq!(code(result.unwrap_err()), RefusalCode::Unsupported);
    }
    assert_eq!(
        code(set(&place, &grant, &[("hugetlb.64KB.max", "4M")]).unwrap_err()),
        RefusalCode::Unsupported
    );
}

#[test]
fn cpu_time_goes_from_any_limit_to_any_other() {
    let place = Place::new();
    let grant = place.make("web");
    let ceiling = setting("cpu.max", "4000000 1000000");
    place.tree.govern_account(HostUid(ACCOUNT), 100, 8, Nested::default(), &[ceiling]).unwrap();
    let values =
        ["max", "1000 1000", "4000 1000", "1000 1000000", "400000 100000", "50000 200000", "3999999 1000000"];
    for from in values {
        for to in values {
            set(&place, &grant, &[("cpu.max", from)]).unwrap();
            set(&place, &grant, &[("cpu.max", to)]).unwrap_or_else(|error| panic!("{from} -> {to}: {error}"));
            assert_eq!(get(&place, &grant, "cpu.max"), to);
            let payload =
                fs::read_to_string(place.grant("cpu", &grant).join("payload/cpu.cfs_quota_us")).unwrap();
            assert_eq!(payload.trim(), to.split(' ').next().unwrap().replace("max", "-1"));
        }
    }
    // Above the account's ceiling: refused, and as before.
    let error = set(&place, &grant, &[("cpu.weight", "50"), ("cpu.max", "500%")]).unwrap_err();
    assert!(matches!(&error, CgroupError::Limit { key, .. } if key == "cpu.max"), "{error}");
    assert_eq!(
        (get(&place, &grant, "cpu.max"), get(&place, &grant, "cpu.weight")),
        ("3999999 1000000".into(), "100".into())
    );
}

#[test]
fn cpus_change_although_cgroups_below_have_them() {
    let place = Place::new();
    let grant = place.make("web");
    place.tree.create_cgroup(&grant, &CgroupPath::new("a/b").unwrap()).unwrap_err();
    place.tree.create_cgroup(&grant, &CgroupPath::new("a").unwrap()).unwrap();
    place.tree.create_cgroup(&grant, &CgroupPath::new("a/b").unwrap()).unwrap();
    let cpus = || {
        fs::read_to_string(place.grant("cpuset", &grant).join("payload/a/b/cpuset.cpus"))
            .unwrap()
            .trim()
            .to_owned()
    };
    for (wanted, expect) in [("0", "0"), ("1", "1"), ("0-1", "0-1"), ("1", "1"), ("max", "0-1")] {
        set(&place, &grant, &[("cpuset.cpus", wanted)]).unwrap();
        assert_eq!(cpus(), expect);
    }
    set(&place, &grant, &[("cpuset.cpus", "1")]).unwrap();
    let error = set(&place, &grant, &[("cpuset.cpus", "0"), ("pids.max", "5"), ("cpuset.cpus", "0-4000")])
        .unwrap_err();
    assert_eq!(code(error), RefusalCode::KernelRefused);
    assert_eq!(
        (cpus(), get(&place, &grant, "cpuset.cpus"), get(&place, &grant, "pids.max")),
        ("1".into(), "1".into(), "max".into())
    );
}

#[test]
fn all_limits_or_none() {
    let place = Place::new();
    let grant = place.make("web");
    set(
        &place,
        &grant,
        &[("memory.max", "64M"), ("memory.swap.max", "8M"), ("pids.max", "50"), ("cpu.max", "50%")],
    )
    .unwrap();
    let before = place.tree.get_values(&grant, &[]).unwrap();
    let mirrored =
        || fs::read_to_string(place.grant("memory", &grant).join("payload/memory.limit_in_bytes")).unwrap();
    for bad in [("cpuset.cpus", "4000"), ("cpuset.cpus", "0-4000")] {
        let limits = [
            ("memory.max", "128M"),
            ("memory.swap.max", "0"),
            ("pids.max", "7"),
            ("cpu.max", "70%"),
            ("cpu.weight", "5"),
            bad,
        ];
        let refusal = Refusal::from(set(&place, &grant, &limits).unwrap_err());
        assert_eq!(refusal.code, RefusalCode::KernelRefused, "{refusal}");
        assert!(refusal.message.contains(bad.0) && refusal.message.contains("os error"), "{refusal}");
        assert_eq!(place.tree.get_values(&grant, &[]).unwrap(), before);
        assert_eq!(mirrored().trim(), "67108864");
    }
    // v1 can't limit swap alone; that is found before anything is set.
    let error = set(&place, &grant, &[("pids.max", "7"), ("memory.max", "max")]).unwrap_err();
    assert_eq!(code(error), RefusalCode::Unsupported);
    assert_eq!(place.tree.get_values(&grant, &[]).unwrap(), before);
}

#[test]
fn memory_is_limited_and_running_out_of_it_is_told() {
    let place = Place::new();
    let grant = place.make("web");
    set(&place, &grant, &[("memory.max", "32M"), ("memory.swap.max", "0")]).unwrap();
    let OomWatch::Eventfd(event) = place.tree.oom_watch(&grant).unwrap() else { panic!("no eventfd on v1") };
    let eat = "read go; exec perl -e '$x = \"x\" x (1 << 27); sleep 1'";
    let run = |inside: bool| {
        let mut command = Command::new("/bin/sh");
        let mut child =
            command.args(["-c", eat]).stdin(Stdio::piped()).uid(RANGE).gid(RANGE).spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        if inside {
            let _ = place.tree.attach(&grant, AttachTarget::Payload, &pidfd, false, &anybody).unwrap();
        }
        drop(child.stdin.take());
        child.wait().unwrap()
    };
    assert!(run(false).success(), "128 MB are no matter outside");
    assert_eq!(place.tree.oom_kills(&grant).unwrap(), 0);
    assert_eq!(run(true).signal(), Some(9));
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&event, &mut count).unwrap(), 8);
    assert_eq!(place.tree.oom_kills(&grant).unwrap(), 1);
    // Changed live.
    set(&place, &grant, &[("memory.max", "512M")]).unwrap();
    assert!(run(true).success());
    let stat = place.tree.stat(&grant).unwrap();
    assert!(stat.memory_peak.unwrap() > 100 << 20 && stat.oom_kills == Some(1), "{stat:?}");
}

#[test]
fn tasks_are_limited_and_counted() {
    let place = Place::new();
    let grant = place.make("web");
    set(&place, &grant, &[("pids.max", "5")]).unwrap();
    let go = place.dir("cgroup2").join("go");
    let script = format!("until [ -e {} ]; do sleep 0.01; done; while :; do sleep 1000 & done", go.display());
    let process = Running::new(RANGE, &script);
    let attached = place.tree.attach(&grant, AttachTarget::Stage, &process.pidfd(), false, &anybody).unwrap();
    fs::create_dir(&go).unwrap();
    assert_eq!(attached.count(), 1);
    until("the fork bomb meets its limit", || place.tree.stat(&grant).unwrap().pids_current >= Some(5));
    for _ in 0..50 {
        assert!(place.tree.stat(&grant).unwrap().pids_current <= Some(5));
    }
    place.tree.remove(&grant, true).unwrap();
    assert_eq!(place.left(), [go]);
}

#[test]
fn figures() {
    let place = Place::new();
    let grant = place.make("web");
    let process = Running::new(RANGE, "while :; do :; done");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &process.pidfd(), false, &anybody).unwrap();
    set(&place, &grant, &[("cpu.max", "10%")]).unwrap();
    until("it is throttled", || place.tree.stat(&grant).unwrap().cpu_throttled_usec > Some(10_000));
    let stat = place.tree.stat(&grant).unwrap();
    assert!(stat.cpu_usage_usec > Some(0) && stat.cpu_user_usec <= stat.cpu_usage_usec, "{stat:?}");
    assert_eq!(stat.pids_current, Some(1));
    assert!(stat.memory_current.is_some() && stat.swap_current.is_some());
    assert!(stat.pressure.iter().any(|(resource, kind, _, _)| resource == "cpu" && kind == "some"));
    let trigger = place.tree.pressure_trigger(&grant, "cpu").unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(trigger.as_fd(), rustix::event::PollFlags::PRI)];
    let ten = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let busy = Running::new(RANGE, "while :; do :; done");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &busy.pidfd(), false, &anybody).unwrap();
    assert_eq!(rustix::event::poll(&mut fds, Some(&ten)).unwrap(), 1, "pressure is told");
    assert!(matches!(place.tree.pressure_trigger(&grant, "../x"), Err(CgroupError::Unsupported { .. })));
}

#[test]
fn frozen_thawed_and_killed() {
    let place = Place::new();
    let grant = place.make("web");
    let monitor = Running::new(ACCOUNT, "exec sleep 1000");
    let _ = place.tree.attach(&grant, AttachTarget::Stage, &monitor.pidfd(), false, &anybody).unwrap();
    // A holder that forks all the time.
    let payload = Running::new(RANGE, "while :; do /bin/true; done");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &payload.pidfd(), false, &anybody).unwrap();
    assert!(place.tree.is_populated(&grant).unwrap() && !place.tree.is_frozen(&grant).unwrap());
    place.tree.freeze(&grant, Patience::Full).unwrap();
    assert!(place.tree.is_frozen(&grant).unwrap());
    let time = || place.tree.stat(&grant).unwrap().cpu_usage_usec.unwrap();
    let before = time();
    std::thread::sleep(Duration::from_millis(200));
    // The last tick before may be counted late.
    assert!(time() - before < 10_000, "nothing runs");
    place.tree.thaw(&grant).unwrap();
    until("it goes on", || time() > before);
    place.tree.freeze(&grant, Patience::Full).unwrap();
    place.tree.kill(&grant, Patience::Full).unwrap();
    assert!(!place.tree.is_populated(&grant).unwrap());
    assert!(monitor.pidfd().is_alive().unwrap(), "the monitor lives");
    place.tree.thaw(&grant).unwrap();
    // Freezing nobody is done at once.
    place.tree.freeze(&grant, Patience::Full).unwrap();
}

#[test]
fn where_attached_processes_go() {
    let place = Place::new();
    let grant = place.make("web");
    let stage = Running::new(ACCOUNT, "exec sleep 1000");
    let id = stage.0.id();
    let before = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    let attached = place.tree.attach(&grant, AttachTarget::Stage, &stage.pidfd(), false, &anybody).unwrap();
    assert_eq!(place.pids("cgroup2", &grant, "monitor"), [id]);
    for name in place.machine.keys().filter(|name| *name != "cgroup2") {
        assert_eq!(place.pids(name, &grant, "payload"), [id], "{name}");
    }
    attached.put_back();
    assert_eq!(fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap(), before);
    // From a cgroup of its own that it has removed meanwhile: not past whatever was above, but to the account's own.
    for name in place.machine.keys() {
        let own = place.dir(name).join("own");
        fs::create_dir(&own).unwrap();
        if name == "cpuset" {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(own.join(file), fs::read_to_string(place.dir(name).join(file)).unwrap()).unwrap();
            }
        }
        fs::write(own.join("cgroup.procs"), id.to_string()).unwrap();
    }
    let attached = place.tree.attach(&grant, AttachTarget::Stage, &stage.pidfd(), false, &anybody).unwrap();
    for name in place.machine.keys() {
        fs::remove_dir(place.dir(name).join("own")).unwrap();
    }
    attached.put_back();
    let now = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    let evicted = format!(":/{}/u{ACCOUNT}/_evicted", place.name);
    assert!(now.lines().all(|line| line.ends_with(&evicted)), "{now}");
    for name in place.machine.keys() {
        fs::write(place.machine[name].join("cgroup.procs"), id.to_string()).unwrap();
    }
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &stage.pidfd(), false, &anybody).unwrap();
    assert_eq!(place.pids("cgroup2", &grant, "payload"), [id]);
    // Out of the payload into the monitor, or into another grant: nobody.
    for target in [AttachTarget::Stage, AttachTarget::Monitor] {
        let refused = place.tree.attach(&grant, target, &stage.pidfd(), false, &anybody).unwrap_err();
        assert!(matches!(refused, CgroupError::NotMovable { pid } if pid == id));
    }
    // A monitor is beside the payload everywhere.
    let monitor = Running::new(ACCOUNT, "exec sleep 1000");
    let _ = place.tree.attach(&grant, AttachTarget::Monitor, &monitor.pidfd(), false, &anybody).unwrap();
    for name in place.machine.keys() {
        assert_eq!(place.pids(name, &grant, "monitor"), [monitor.0.id()], "{name}");
    }
    let other = place.make("other");
    let refused =
        place.tree.attach(&other, AttachTarget::Payload, &stage.pidfd(), false, &anybody).unwrap_err();
    assert_eq!(code(refused), RefusalCode::NotAuthorized);
    // A payload with cgroups of its own is entered by its leaf, which is the holder's.
    fs::create_dir(place.grant("cgroup2", &grant).join("payload/init")).unwrap();
    let exec = Running::new(ACCOUNT, "exec sleep 1000");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &exec.pidfd(), false, &anybody).unwrap();
    assert_eq!(place.pids("cgroup2", &grant, "payload/.cgrant"), [exec.0.id()]);
    assert_eq!(place.pids("memory", &grant, "payload"), [id, exec.0.id()]);
    let leaf = fs::metadata(place.grant("cgroup2", &grant).join("payload/.cgrant/cgroup.procs")).unwrap();
    assert_eq!((leaf.uid(), leaf.gid(), leaf.permissions().mode() & 0o777), (ACCOUNT, RANGE, 0o664));
    // Not allowed, dead, and this very process.
    let alien = Running::new(RANGE, "exec sleep 1000");
    let own = |info: &PidfdInfo| info.ruid == ACCOUNT;
    let refused = place.tree.attach(&grant, AttachTarget::Payload, &alien.pidfd(), false, &own).unwrap_err();
    assert_eq!(code(refused), RefusalCode::NotAuthorized);
    let refused =
        place.tree.attach(&grant, AttachTarget::Payload, &Pidfd::own().unwrap(), true, &anybody).unwrap_err();
    assert_eq!(code(refused), RefusalCode::NotAuthorized);
    let dead = Running::new(RANGE, "exit");
    let pidfd = dead.pidfd();
    until("it ends", || !pidfd.is_alive().unwrap());
    let refused = place.tree.attach(&grant, AttachTarget::Payload, &pidfd, false, &anybody).unwrap_err();
    assert_eq!(code(refused), RefusalCode::NoSuchProcess);
}

#[test]
fn a_recycled_pid_is_put_right() {
    let place = Place::new();
    let grant = place.make("web");
    // A process that is there by our hand alone, as if its number had been somebody else's a moment ago.
    let victim = Running::new(ACCOUNT, "exec sleep 1000");
    let id = victim.0.id();
    let before = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    let inside = Running::new(RANGE, "sleep 1001 & wait");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &inside.pidfd(), true, &anybody).unwrap();
    for name in place.machine.keys() {
        fs::write(place.grant(name, &grant).join("payload/cgroup.procs"), id.to_string()).unwrap();
    }
    for hierarchy in place.tree.hierarchies.all() {
        place.tree.put_right(&grant, hierarchy, id);
        // One that was forked inside stays there.
        for pid in place.tree.processes(&grant).unwrap() {
            if pid != inside.0.id() {
                place.tree.put_right(&grant, hierarchy, pid);
            }
        }
    }
    assert_eq!(fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap(), before);
    until("parent and child are left", || place.tree.processes(&grant).unwrap().len() == 2);
    // So does one whose forker has ended, though its parent is the machine's first process then, which nothing limits.
    let go = place.dir("cgroup2").join("go");
    let script = format!("until [ -e {} ]; do sleep 0.01; done; sleep 1002 & exit", go.display());
    let mut forker = Running::new(RANGE, &script);
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &forker.pidfd(), false, &anybody).unwrap();
    fs::create_dir(&go).unwrap();
    forker.0.wait().unwrap();
    fs::remove_dir(&go).unwrap();
    let proc = cgrant_sys::ProcFs::open().unwrap();
    let mut orphan = 0;
    until("it is taken in", || {
        let all = place.tree.processes(&grant).unwrap();
        orphan = all.into_iter().find(|pid| proc.stat(*pid).is_ok_and(|stat| stat.ppid == 1)).unwrap_or(0);
        orphan != 0
    });
    for hierarchy in place.tree.hierarchies.all() {
        place.tree.put_right(&grant, hierarchy, orphan);
    }
    assert!(place.tree.processes(&grant).unwrap().contains(&orphan), "it got out of its limits");
}

/// Runs a bomb of at least `size` processes, attaches its tree, and looks whether anybody of its uid is left outside.
fn bomb(uid: u32, size: usize, script: &str) {
    // One at a time: two share the CPUs with each other and with the test's own thread.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new();
    let grant = place.make("bomb");
    // Outside of the grant, but where the end of the test reaches whatever is left of it.
    let origin = place.dir("cgroup2").join("outside");
    fs::create_dir(&origin).unwrap();
    let go = origin.join("go");
    // Takes orphans in (PR_SET_CHILD_SUBREAPER is 36), so that all are its descendants from the start.
    let root = Running::new(
        uid,
        &format!(
            "exec perl -e '$SIG{{CHLD}} = \"IGNORE\"; syscall({}, 36, 1, 0, 0, 0) == 0 or die; \
             select undef, undef, undef, 0.01 until -e $ARGV[0]; {script}' {}",
            nix::libc::SYS_prctl,
            go.display()
        ),
    );
    fs::write(origin.join("cgroup.procs"), root.0.id().to_string()).unwrap();
    fs::create_dir(&go).unwrap();
    until("it has exploded", || processes_of(uid).len() >= size);
    let own = |info: &PidfdInfo| info.ruid == uid;
    let entry = place.grant("cgroup2", &grant).join("entry");
    // On a machine that is busy otherwise too, the deadline may come first: then nobody may have been moved.
    let mut attempts = (0..20).map(|_| {
        let attached = place.tree.attach(&grant, AttachTarget::Payload, &root.pidfd(), true, &own);
        let refused = attached.map(|attached| attached.count()).map_err(Refusal::from);
        if let Err(refusal) = &refused {
            assert_eq!(refusal.code, RefusalCode::TimedOut, "{refusal}");
            assert!(!place.tree.is_populated(&grant).unwrap() && !entry.exists());
        }
        refused
    });
    let count = attempts.find_map(Result::ok).expect("it is caught in one of twenty attempts");
    // Of a spark each that was moved may have ended when they are counted.
    assert!(count >= 1, "{count}");
    let payload = format!("/{}/", place.name);
    let inside = |line: &str| line.contains(&payload) && line.ends_with("/payload");
    let proc = cgrant_sys::ProcFs::open().unwrap();
    for _ in 0..100 {
        for pid in processes_of(uid) {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            // Of one that is ending, the v1 cgroups are not told.
            let ending = || proc.stat(pid).map_or(true, |stat| stat.exiting);
            assert!(cgroups.lines().all(inside) || ending(), "{pid} is outside:\n{cgroups}");
        }
    }
    assert!(!entry.exists());
    until("it goes on inside", || processes_of(uid).len() >= size);
    place.tree.remove(&grant, true).unwrap();
    assert_eq!(processes_of(uid), Vec::<u32>::new(), "all were inside, so all are dead");
    assert_eq!(place.left(), [origin]);
}

#[test]
fn a_fork_bomb_is_attached_whole() {
    let script = "while (1) { unless (fork // 1) { fork; sleep 1000 } select undef, undef, undef, 0.001 }";
    bomb(ACCOUNT + 1, 60, script);
}

#[test]
fn a_fork_bomb_whose_parents_end_at_once_is_attached_whole() {
    let script = "while (1) { unless (fork // 1) { while (1) { fork; exit if fork // 0 } } \
                  select undef, undef, undef, 0.01 }";
    bomb(ACCOUNT + 2, 30, script);
}

#[test]
fn a_spark_is_caught() {
    // Each forks the next and ends at once: there is never more than one or two of them.
    bomb(ACCOUNT + 3, 2, "unless (fork) { while (1) { exit if fork } } sleep 1 while 1");
}

#[test]
fn a_new_process_is_a_members_by_a_line_of_new_parents() {
    let place = Place::new();
    let grant = place.make("web");
    let entry = place.tree.need(place.tree.v2(), &grant).unwrap();
    let root = Running::new(ACCOUNT, "sh -c 'sh -c \"sleep 1000 & wait\" & wait' & wait");
    let proc = cgrant_sys::ProcFs::open().unwrap();
    let child = |pid: u32| {
        let mut child = None;
        until("it forks", || {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            child = text.split_ascii_whitespace().next().map(|pid| pid.parse::<u32>().unwrap());
            child.is_some()
        });
        child.unwrap()
    };
    let first = child(root.0.id());
    let last = child(child(first));
    let mut catch = Catch::new(&place.tree, &grant, AttachTarget::Payload, &anybody, &entry);
    catch.sessions.insert(proc.stat(last).unwrap().session);
    assert!(!catch.may_be_member(last), "nobody is caught yet");
    catch.origins.insert(root.0.id(), "/".to_owned());
    assert!(catch.may_be_member(last));
    // A line over somebody who was there before and is no member leads nowhere.
    catch.before.insert((first, proc.stat(first).unwrap().start_time));
    assert!(!catch.may_be_member(last));
    catch.before.clear();
    // Nor does one from another session.
    catch.sessions.clear();
    assert!(!catch.may_be_member(last));
    // Nobody has attached them, so they end with no grant.
    let kill = ["-KILL".to_owned(), last.to_string(), first.to_string()];
    assert!(Command::new("kill").args(kill).status().unwrap().success());
}

#[test]
fn a_tree_with_a_stranger_is_left_alone() {
    let place = Place::new();
    let grant = place.make("web");
    let root = Running::new(ACCOUNT, "sleep 1000 & sleep 1000 & sleep 1000 & wait");
    until("it runs", || {
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", root.0.id())).unwrap().split(' ').count()
            > 3
    });
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", root.0.id())).unwrap();
    let stranger: u32 = children.split_ascii_whitespace().next_back().unwrap().parse().unwrap();
    let cgroups = || {
        let all = children.split_ascii_whitespace().map(str::to_owned).chain([root.0.id().to_string()]);
        all.map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()).collect::<Vec<_>>()
    };
    let before = cgroups();
    let may = |info: &PidfdInfo| info.pid != stranger;
    let refused = place.tree.attach(&grant, AttachTarget::Payload, &root.pidfd(), true, &may).unwrap_err();
    assert!(matches!(refused, CgroupError::NotMovable { pid } if pid == stranger));
    assert_eq!(cgroups(), before);
    assert!(!place.grant("cgroup2", &grant).join("entry").exists());
    assert_eq!(
        place.tree.attach(&grant, AttachTarget::Payload, &root.pidfd(), true, &anybody).unwrap().count(),
        4
    );
    place.tree.kill(&grant, Patience::Full).unwrap();
}

#[test]
fn an_attachment_that_was_cut_short_is_taken_back() {
    let place = Place::new();
    let grant = place.make("web");
    let process = Running::new(0, "exec sleep 1000");
    let id = process.0.id();
    let before = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap();
    let entry = place.grant("cgroup2", &grant).join("entry");
    fs::create_dir(&entry).unwrap();
    fs::write(entry.join("cgroup.freeze"), "1").unwrap();
    fs::write(entry.join("cgroup.procs"), id.to_string()).unwrap();
    let placements: Vec<Placement> = place
        .machine
        .keys()
        .map(|hierarchy| Placement { hierarchy: hierarchy.clone(), path: format!("/{}", place.name) })
        .collect();
    let _again = Tree::open("test", &placements).unwrap();
    assert!(!entry.exists());
    assert_eq!(fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap(), before);
    // In a grant that was never finished: put outside by its parent's place, an orphan to the account's own.
    let _ = place.tree.attach(&grant, AttachTarget::Stage, &process.pidfd(), false, &anybody).unwrap();
    let alien = Running::new(ACCOUNT, "exec sleep 1000");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &alien.pidfd(), false, &anybody).unwrap();
    place.tree.evict(&grant).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap(), before);
    let evicted = fs::read_to_string(format!("/proc/{}/cgroup", alien.0.id())).unwrap();
    assert!(evicted.lines().all(|line| line.ends_with(&format!("/u{ACCOUNT}/_evicted"))), "{evicted}");
    place.tree.remove(&grant, false).unwrap();
    drop(alien);
    place.tree.remove(&grant, false).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_holder_does_not_get_around_its_limits() {
    let place = Place::new();
    let grant = place.tree.make(&path("bare"), &bare()).map(|_| path("bare")).unwrap();
    set(&place, &grant, &[("memory.max", "64M"), ("pids.max", "50")]).unwrap();
    let v2 = place.grant("cgroup2", &grant).display().to_string();
    let memory = place.grant("memory", &grant).display().to_string();
    let pids = place.grant("pids", &grant).display().to_string();
    // The account owns this payload, so it may:
    assert!(succeeds(ACCOUNT, &format!("mkdir {v2}/payload/x && rmdir {v2}/payload/x")));
    let inside = Running::new(ACCOUNT, "exec sleep 1000");
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &inside.pidfd(), false, &anybody).unwrap();
    let id = inside.0.id();
    let (above, top) =
        (place.dir("cgroup2").display().to_string(), place.machine["cgroup2"].display().to_string());
    for attempt in [
        format!("echo max > {pids}/pids.max"),
        format!("echo max > {pids}/payload/pids.max"),
        format!("echo -1 > {memory}/memory.limit_in_bytes"),
        format!("echo -1 > {memory}/payload/memory.limit_in_bytes"),
        format!("echo {id} > {pids}/cgroup.procs"),
        format!("echo {id} > {memory}/../cgroup.procs"),
        format!("echo {id} > {memory}/payload/tasks"),
        format!("mkdir {memory}/payload/x"),
        format!("mv {memory}/payload {memory}/other"),
        format!("rmdir {v2}/monitor"),
        format!("rmdir {v2}/children"),
        format!("mkdir {v2}/x"),
        format!("mv {v2}/payload {v2}/other"),
        format!("echo {id} > {above}/cgroup.procs"),
        format!("echo {id} > {top}/cgroup.procs"),
        format!("echo 1 > {v2}/payload/cgroup.freeze"),
        format!("echo 0 > {v2}/payload/cgroup.max.descendants"),
        format!("echo 1 > {v2}/cgroup.kill"),
        format!("echo 1 > {v2}/monitor/cgroup.freeze"),
        format!("echo threaded > {v2}/payload/cgroup.type"),
        format!("chmod 777 {v2}"),
        format!("chown {ACCOUNT} {v2}"),
    ] {
        assert!(!succeeds(ACCOUNT, &attempt), "{attempt}");
    }
    // A stranger may nothing at all.
    for attempt in [
        format!("mkdir {v2}/payload/x"),
        format!("echo $$ > {v2}/payload/cgroup.procs"),
        format!("echo {id} > {v2}/monitor/cgroup.procs"),
    ] {
        assert!(!succeeds(ACCOUNT + 9, &attempt), "{attempt}");
    }
    assert_eq!(
        (get(&place, &grant, "memory.max"), get(&place, &grant, "pids.max")),
        ("67108864".into(), "50".into())
    );
    assert_eq!(place.pids("pids", &grant, "payload"), [id]);
}

/// Every process of the machine that needs memory of its own wants one of the kernel's 65,535 cgroups with it.
#[test]
fn nobody_fills_cgroup_v1_by_removing_on_cgroup2() {
    let place = Place::new();
    let grant = place.make("web");
    let tree = &place.tree;
    let of = |text: &str| CgroupPath::new(text).unwrap();
    let on_v2 = place.grant("cgroup2", &grant).join("payload");
    let on_v1 = place.grant("memory", &grant).join("payload");
    let below = |dir: &Path| -> usize {
        let done = Command::new("find").arg(dir).args(["-mindepth", "1", "-type", "d"]).output().unwrap();
        done.stdout.iter().filter(|b| **b == b'\n').count()
    };
    tree.create_cgroup(&grant, &of("kept")).unwrap();
    for n in 0..300 {
        let (above, name) = (format!("n{n}"), format!("n{n}/below"));
        tree.create_cgroup(&grant, &of(&above)).unwrap();
        tree.create_cgroup(&grant, &of(&name)).unwrap();
        for gone in [&name, &above] {
            fs::remove_dir(on_v2.join(gone)).unwrap();
        }
        assert!(below(&on_v1) <= below(&on_v2) + 70, "{n}: {} for {}", below(&on_v1), below(&on_v2));
    }
    assert!(on_v1.join("kept").is_dir());
    // Nor by what looks like less: one that the holder made itself has no other side.
    for n in 0..200 {
        tree.create_cgroup(&grant, &of(&format!("m{n}"))).unwrap();
        fs::remove_dir(on_v2.join(format!("m{n}"))).unwrap();
        fs::create_dir(on_v2.join("own")).unwrap();
        tree.remove_cgroup(&grant, &of("own")).unwrap();
        assert!(below(&on_v1) <= below(&on_v2) + 70, "{n}: {} for {}", below(&on_v1), below(&on_v2));
    }
    // Nor by names of the broker's own, nor by processes, which go where there is something that answers.
    let mut held = Vec::new();
    for n in 0..100 {
        for name in [format!("o{n}"), format!("o{n}/payload")] {
            tree.create_cgroup(&grant, &of(&name)).unwrap();
        }
        let child = Command::new("sleep").arg("100").spawn().unwrap();
        fs::write(on_v1.join(format!("o{n}/payload/cgroup.procs")), child.id().to_string()).unwrap();
        held.push(child);
        for name in [format!("o{n}/payload"), format!("o{n}")] {
            fs::remove_dir(on_v2.join(name)).unwrap();
        }
        assert!(below(&on_v1) <= below(&on_v2) + 70, "{n}: {} for {}", below(&on_v1), below(&on_v2));
    }
    assert!(on_v1.join("kept").is_dir());
    let there = place.pids("memory", &grant, "payload");
    assert!(there.contains(&held[0].id()), "{there:?}");
    for child in &mut held {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn cgroups_below_a_payload() {
    let place = Place::new();
    let grant = place.make("web");
    let tree = &place.tree;
    let of = |text: &str| CgroupPath::new(text).unwrap();
    tree.create_cgroup(&grant, &of("a.service")).unwrap();
    tree.create_cgroup(&grant, &of("a.service/b")).unwrap();
    for name in place.machine.keys() {
        let dir = place.grant(name, &grant).join("payload/a.service/b");
        let holder = if name == "cgroup2" { RANGE } else { 0 };
        assert_eq!(fs::metadata(&dir).unwrap().uid(), holder, "{name}");
    }
    assert_eq!(tree.list_cgroups(&grant).unwrap(), ["a.service", "a.service/b"]);
    assert_eq!(tree.count_cgroups(HostUid(ACCOUNT), 0), 2);
    assert_eq!(code(tree.create_cgroup(&grant, &of("a.service")).unwrap_err()), RefusalCode::CgroupExists);
    assert_eq!(code(tree.create_cgroup(&grant, &of("x/y")).unwrap_err()), RefusalCode::NoSuchCgroup);
    assert_eq!(code(tree.create_cgroup(&grant, &of(".cgrant")).unwrap_err()), RefusalCode::InvalidName);
    assert_eq!(code(tree.remove_cgroup(&grant, &of("a.service")).unwrap_err()), RefusalCode::Busy);
    assert_eq!(code(tree.remove_cgroup(&grant, &of("x")).unwrap_err()), RefusalCode::NoSuchCgroup);
    assert_eq!(code(tree.create_cgroup(&path("none"), &of("x")).unwrap_err()), RefusalCode::NoSuchGrant);
    let fd = tree.open_cgroup(&grant, &of("a.service/b")).unwrap();
    let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::PATH));
    assert_eq!(
        rustix::fs::fstat(&fd).unwrap().st_ino,
        fs::metadata(place.grant("cgroup2", &grant).join("payload/a.service/b")).unwrap().ino()
    );
    assert!(tree.open_cgroup(&grant, &of("a.service/c")).is_err());
    assert_eq!(
        rustix::fs::fstat(tree.open_payload(&grant).unwrap()).unwrap().st_ino,
        tree.payload_id(&grant).unwrap().unwrap()
    );
    // One that the holder made itself has no v1 side, until one below it is made.
    fs::create_dir(place.grant("cgroup2", &grant).join("payload/own")).unwrap();
    tree.create_cgroup(&grant, &of("own/c")).unwrap();
    assert!(place.grant("pids", &grant).join("payload/own/c").is_dir());
    tree.remove_cgroup(&grant, &of("a.service/b")).unwrap();
    tree.remove_cgroup(&grant, &of("a.service")).unwrap();
    assert!(!place.grant("memory", &grant).join("payload/a.service").exists());
    // The account's number of cgroups is kept by the kernel.
    tree.govern_account(HostUid(ACCOUNT), 3, 2, Nested::default(), &[]).unwrap();
    let made = (0..40).filter(|n| tree.create_cgroup(&grant, &of(&format!("n{n}"))).is_ok()).count();
    assert!((1..20).contains(&made), "{made}");
    assert!(
        place
            .grant("pids", &grant)
            .join("payload")
            .read_dir()
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .count()
            <= made + 1
    );
    let deep = tree.create_cgroup(&grant, &of("own/c/d")).unwrap_err();
    assert_eq!(code(deep), RefusalCode::KernelRefused);
    let bounds = || {
        let account = place.grant("cgroup2", &grant).parent().unwrap().to_owned();
        ["cgroup.max.descendants", "cgroup.max.depth"]
            .map(|file| fs::read_to_string(account.join(file)).unwrap())
    };
    let before = bounds();
    tree.remove(&grant, false).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
    // Made anew, the account's node is bounded anew, and so it is when policy has changed.
    place.make("web");
    assert_ne!(bounds(), before);
    tree.govern_account(HostUid(ACCOUNT), 3, 2, Nested::default(), &[]).unwrap();
    assert_eq!(bounds(), before);
    tree.govern_account(HostUid(ACCOUNT), 4, 2, Nested::default(), &[]).unwrap();
    assert_ne!(bounds(), before);
    tree.remove(&grant, false).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_hostile_payload_is_listed_and_removed() {
    let place = Place::new();
    let grant = place.make("web");
    let payload = place.grant("cgroup2", &grant).join("payload");
    use std::os::unix::ffi::OsStrExt;
    for name in [&b"\xff\xfe"[..], b"-rf", b" ", b"$(id)", b"\x1b[2J", &[b'x'; 255]] {
        fs::create_dir(payload.join(std::ffi::OsStr::from_bytes(name))).unwrap();
    }
    // Deeper than a path could name, by relative steps.
    let script = format!(
        "perl -e 'chdir shift or die; $d = \"d\" x 100; for (1..200) {{ mkdir $d or die; chdir $d or die }}' {}",
        payload.display()
    );
    assert!(succeeds(RANGE, &script));
    assert_eq!(place.tree.count_cgroups(HostUid(ACCOUNT), 0), 206);
    assert!(matches!(place.tree.list_cgroups(&grant), Err(CgroupError::TooMany { .. })));
    place.tree.remove(&grant, false).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_holder_that_keeps_making_and_forking_does_not_keep_its_grant() {
    let place = Place::new();
    let uid = ACCOUNT + 4;
    let grant = GrantPath::new(HostUid(uid), GrantName::new("busy").unwrap());
    let delegation = Delegation {
        account: (HostUid(uid), HostGid(uid)),
        root: None,
        controllers: Controllers::All,
        most: None,
    };
    place.tree.make(&grant, &delegation).unwrap();
    let payload = place.grant("cgroup2", &grant).join("payload").display().to_string();
    // Both go on forking, with few that stay: a shell that may not fork ends.
    let forks = format!(
        "n=0; while :; do n=$((n+1)); mkdir {payload}/i$n; if [ $n -lt 40 ]; then sleep 1000 & fi; done"
    );
    let inside = Running::new(uid, &forks);
    let _ = place.tree.attach(&grant, AttachTarget::Payload, &inside.pidfd(), false, &anybody).unwrap();
    // The account itself, outside, makes cgroups in its bare payload as fast as it can.
    let outside =
        Running::new(uid, &format!("n=0; while :; do n=$((n+1)); mkdir -p {payload}/o$n/p/q; done"));
    until("they are at it", || place.tree.count_cgroups(HostUid(uid), 0) > 100);
    assert_eq!(code(place.tree.remove(&grant, false).unwrap_err()), RefusalCode::Busy);
    place.tree.remove(&grant, true).unwrap();
    assert!(outside.pidfd().is_alive().unwrap() && !inside.pidfd().is_alive().unwrap());
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn processes_in_v1_cgroups_alone_are_coped_with() {
    let place = Place::new();
    let grant = place.make("web");
    let process = Running::new(0, "exec sleep 1000");
    fs::write(place.grant("pids", &grant).join("payload/cgroup.procs"), process.0.id().to_string()).unwrap();
    assert_eq!(code(place.tree.remove(&grant, false).unwrap_err()), RefusalCode::Busy);
    assert!(process.pidfd().is_alive().unwrap());
    place.tree.remove(&grant, true).unwrap();
    assert!(!process.pidfd().is_alive().unwrap());
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

#[test]
fn instances_have_plain_names_and_placements_have_to_be_there() {
    for bad in ["", "a/b", "..", "a.b", "ä", &"x".repeat(33)] {
        assert_eq!(code(Tree::open(bad, &[]).unwrap_err()), RefusalCode::InvalidArgument, "{bad:?}");
    }
    let absent: Vec<Placement> = machine()
        .into_keys()
        .map(|hierarchy| Placement { hierarchy, path: "/cgrant-test-absent".to_owned() })
        .collect();
    assert!(matches!(Tree::open("test", &absent), Err(CgroupError::NoPlacement { .. })));
}

#[test]
fn a_tree_that_somebody_removed_is_told_from_a_grant_that_is_not_there() {
    let place = Place::new();
    let grant = path("web");
    let v1: Vec<&str> = place.tree.host().v1.iter().map(|hierarchy| hierarchy.name.as_str()).collect();
    fs::remove_dir(place.dir(v1[1])).unwrap();
    let error = place.tree.make(&grant, &with_range()).unwrap_err();
    assert!(matches!(error, CgroupError::NoPlacement { .. }), "{error}");
    fs::create_dir(place.dir(v1[1])).unwrap();
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}

/// What the test below runs in namespaces of its own.
const INSIDE: &str = "CGRANT_TEST_INSIDE";

#[test]
fn a_tree_opens_in_mount_and_cgroup_namespaces_of_its_own() {
    if std::env::var_os(INSIDE).is_some() {
        let tree = Tree::open("test", &[]).unwrap();
        assert!(!tree.is_in_scope());
        let grant = path("web");
        tree.make(&grant, &with_range()).unwrap();
        for hierarchy in tree.hierarchies(&grant) {
            assert_eq!(hierarchy.path, format!("/cgrant-test/u{ACCOUNT}/web/payload"));
        }
        let process = Running::new(RANGE, "exec sleep 1000");
        let _ = tree.attach(&grant, AttachTarget::Payload, &process.pidfd(), false, &anybody).unwrap();
        tree.set_limits(&grant, &[setting("pids.max", "10")]).unwrap();
        tree.remove(&grant, true).unwrap();
        tree.close();
        return;
    }
    let place = Place::new();
    // Enters cgroups of the test's own, then mounts only some hierarchies anew: cgroup2 is found by a detached mount.
    let mut script = String::new();
    for (name, point) in &place.machine {
        script.push_str(&format!("echo $$ > {}/{}/cgroup.procs; ", point.display(), place.name));
        fs::write(place.dir(name).join("cgroup.procs"), "").ok();
    }
    script.push_str(
        "exec unshare -m -C sh -ec 'mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/pids; \
         mount -t cgroup -o pids none /sys/fs/cgroup/pids; exec \"$0\" --exact \"$1\" --nocapture'",
    );
    let name = std::thread::current().name().unwrap().to_owned();
    let output = Command::new("/bin/sh")
        .args(["-c", &format!("{script} \"$0\" \"$1\"")])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert_eq!(place.left(), Vec::<PathBuf>::new());
}
