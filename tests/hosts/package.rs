//! The Debian package on a host of its own: installed, upgraded while containers run, removed, purged; and what a service manager
//! does to itself and to its units meanwhile. A virtual machine was given the package by dpkg, and a later version to upgrade to.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::common::{
    Lab, checker,
    containers::{PACKAGED, Shell, busybox, text},
    systemd::{done, is_active, kill_keeper, systemctl},
    wait_until,
};
use crate::people::{self, Person};

/// What the machine was installed from; see tests/vm/guest.
const FIRST: &str = "/test/packages";
/// The same with a higher version number.
const SECOND: &str = "/test/upgrade";
/// What a command says whose connection ended before the answer.
const CUT_OFF: &str = "failed to read from socket";
const PACKAGES: [&str; 3] = ["libpam-cgrant", "cgrant-cgmanager", "cgrant"];
const IDS: &str = "/var/lib/cgrant/ids";
/// Files of cgroups that limit, of both kinds.
const LIMITS: [&str; 17] = [
    "cgroup.freeze",
    "cgroup.max.depth",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.cfs_quota_us",
    "cpu.max",
    "cpu.shares",
    "cpu.weight",
    "cpuset.cpus",
    "devices.list",
    "memory.high",
    "memory.limit_in_bytes",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "io.max",
    "io.weight",
];
/// What policy says of the people of these tests, uids 23910 to 23919.
const CEILINGS: &str = "/etc/cgrant/policy.d/40-ceilings.toml";

/// Is this machine one that the package was installed on?
pub fn is_installed(lab: &Lab) -> bool {
    let installed = std::env::var_os("CGRANT_TEST_INSTALLED").is_some();
    assert!(
        installed || !lab.host.systemd || !Path::new("/usr/lib/systemd/system/cgrantd.service").exists(),
        "an installed broker is in the way of the tests"
    );
    installed
}

fn dpkg(arguments: &[&str]) -> String {
    done(Command::new("dpkg").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn install(directory: &str) {
    dpkg(&["--install", "--recursive", directory]);
}

/// State (`ii` is installed) and version of the package `cgrant`.
fn version() -> String {
    let query = ["-W", "-f", "${db:Status-Abbrev}${Version}", "cgrant"];
    let output = Command::new("dpkg-query").args(query).output().unwrap();
    text(&output.stdout)
}

/// The broker of a machine without a service manager, which somebody has to start.
struct ByHand(Option<Child>);

impl ByHand {
    fn start(lab: &Lab) -> Self {
        if lab.host.systemd {
            systemctl(&["start", "cgrantd.socket", "cgrantd.service"]);
            return Self(None);
        }
        let broker =
            Command::new("cgrantd").args(["--foreground", "--cgmanager-socket", "off"]).spawn().unwrap();
        wait_until("the broker listens", || Path::new(PACKAGED).exists());
        Self(Some(broker))
    }

    fn stop(&mut self) {
        let Some(broker) = &mut self.0 else { return systemctl_stop() };
        let pid = rustix::process::Pid::from_child(broker);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(broker.wait().unwrap().success());
    }

    /// As an administrator does it.
    fn restart(&mut self, lab: &Lab) {
        match self.0 {
            None => drop(systemctl(&["restart", "cgrantd.service"])),
            Some(_) => {
                self.stop();
                *self = Self::start(lab);
            }
        }
    }
}

fn systemctl_stop() {
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
}

/// Every limit of the account's cgroups, down to what its containers see as their root.
fn limits(lab: &Lab, uid: u32) -> BTreeMap<PathBuf, String> {
    let account = format!("u{uid}");
    let of_account = |path: &PathBuf| {
        path.iter().any(|part| part == account.as_str()) && !path.iter().any(|part| part == ".cgrant")
    };
    let places = checker::cgroups_of_instance(&lab.host, "default").into_iter().filter(of_account);
    let files = places.flat_map(|place| LIMITS.map(|name| place.join(name)));
    files.filter_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?))).collect()
}

/// The ceilings of an account, until the test ends.
struct Ceilings {
    /// The disk that I/O is bounded on, where the kernel can bound all of an account's together.
    disk: Option<String>,
}

impl Ceilings {
    fn new(lab: &Lab) -> Self {
        let number = || fs::read_to_string("/sys/block/nvme0n1/dev").unwrap().trim().to_owned();
        let disk = (!lab.host.is_v1("blkio")).then(number);
        let io = |disk: &String| format!(", \"io.max\" = \"{disk} rbps=20971520\"");
        fs::create_dir_all(Path::new(CEILINGS).parent().unwrap()).unwrap();
        let rule = format!(
            "[[rule]]\nname = \"ceilings\"\nuids = [\"23910-23919\"]\n\
             account-ceiling = {{ \"pids.max\" = \"777\", \"memory.max\" = \"700M\"{} }}\n",
            disk.as_ref().map(io).unwrap_or_default()
        );
        fs::write(CEILINGS, rule).unwrap();
        Self { disk }
    }

    /// The options of a container that is bounded by each kind.
    fn options(&self) -> String {
        let io = |disk: &String| format!(" --limit io.max='{disk} rbps=10485760'");
        "--memory 64M --pids 50 --limit cpu.max='50000 100000'".to_owned()
            + &self.disk.as_ref().map(io).unwrap_or_default()
    }

    /// Are the account's own among these?
    fn are_in(&self, uid: u32, limits: &BTreeMap<PathBuf, String>) -> bool {
        let account = format!("u{uid}");
        let has = |names: &[&str], value: &str| {
            limits.iter().any(|(file, found)| {
                file.parent().unwrap().ends_with(&account)
                    && names.iter().any(|name| file.ends_with(name))
                    && found.starts_with(value)
            })
        };
        has(&["pids.max"], "777\n")
            && has(&["memory.max", "memory.limit_in_bytes"], "734003200\n")
            && self.disk.as_ref().is_none_or(|disk| has(&["io.max"], &format!("{disk} rbps=20971520 ")))
    }
}

impl Drop for Ceilings {
    fn drop(&mut self) {
        let _ = fs::remove_file(CEILINGS);
    }
}

/// A container, what it is limited to, and who it is.
struct Running<'a> {
    lab: &'a Lab,
    shell: Shell<'a>,
    uid: u32,
    limits: BTreeMap<PathBuf, String>,
    init: serde_json::Value,
    _ceilings: Ceilings,
}

impl<'a> Running<'a> {
    fn launch(lab: &'a Lab, person: &'a Person) -> Self {
        let shell = Shell::packaged(lab, &person.user);
        shell.import(lab, &busybox(lab), "box");
        let (ceilings, uid) = (Ceilings::new(lab), person.user.uid);
        // From a session of the person's own, as it would be typed.
        person.logged_in(&format!("cgrant launch box web {}", ceilings.options()));
        wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
        wait_until("the account is bounded", || ceilings.are_in(uid, &limits(lab, uid)));
        let init = shell.json(&["info", "web"])["init"].clone();
        let limits = limits(lab, uid);
        assert!(limits.values().any(|value| value == "50\n"), "{limits:?}");
        let bounds_io = limits.values().any(|value| value.contains("rbps=10485760 "));
        assert_eq!(bounds_io, ceilings.disk.is_some(), "{limits:?}");
        Self { lab, shell, uid, limits, init, _ceilings: ceilings }
    }

    /// The same container with the same limits, and the broker finds it.
    #[track_caller]
    fn assert_unharmed(&self, after: &str) {
        wait_until("the broker serves", || self.shell.output(&["grant", "list"]).status.success());
        let info = self.shell.json(&["info", "web"]);
        assert_eq!((&info["init"], &info["reboots"]), (&self.init, &0.into()), "after {after}: {info}");
        assert_eq!(limits(self.lab, self.uid), self.limits, "after {after}");
        let lives = self.shell.output(&["exec", "web", "--", "echo", "lives"]);
        assert_eq!(text(&lives.stdout), "lives\n", "after {after}: {}", text(&lives.stderr));
    }
}

fn ends_with_everything_of(lab: &Lab, person: &Person, mut broker: ByHand) {
    let shell = Shell::packaged(lab, &person.user);
    shell.done(&["delete", "--force", "web"]);
    shell.done(&["image", "remove", "box"]);
    broker.stop();
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

fn what_systemd_does_to_itself_harms_no_container(lab: &Lab) {
    if !is_installed(lab) {
        return;
    }
    let mut broker = ByHand::start(lab);
    let person = Person::new(lab, "paula", 23_910);
    let running = Running::launch(lab, &person);
    running.assert_unharmed("the start");
    broker.restart(lab);
    running.assert_unharmed("a restart of the broker");
    if lab.host.systemd {
        // What was decided can be asked of the journal.
        let of_paula = format!("CGRANT_ACCOUNT={}", person.user.uid);
        let asked = ["--quiet", "--no-pager", "--output=cat", "--unit=cgrantd.service", &of_paula];
        let decisions = done(Command::new("journalctl").args(asked).arg("CGRANT_REQUEST=create grant"));
        assert!(decisions.contains("may create grant web"), "{decisions}");
        // Also what became of one grant.
        let grants = running.shell.json(&["grant", "list"]);
        let id = grants[0]["id"].as_str().unwrap_or_else(|| panic!("{grants}"));
        let about = |id: &str| {
            let mut ask = Command::new("journalctl");
            done(ask.args(&asked[..4]).arg(format!("CGRANT_GRANT={id}")))
        };
        assert!(about(id).contains("may create grant web"), "{}", about(id));
        assert_eq!(about("0000000000000000"), "");
        systemctl(&["reload", "cgrantd.service"]);
        running.assert_unharmed("a reload");
        let bad = Path::new("/etc/cgrant/policy.d/bad.toml");
        fs::write(bad, "nonsense").unwrap();
        let reload = Command::new("systemctl").args(["reload", "cgrantd.service"]).output().unwrap();
        fs::remove_file(bad).unwrap();
        assert!(!reload.status.success() && is_active("cgrantd.service"), "{reload:?}");
        running.assert_unharmed("a reload of a bad configuration");
        for unit in ["cgrant.scope", "system.slice"] {
            systemctl(&[
                "set-property",
                "--runtime",
                unit,
                "CPUWeight=200",
                "MemoryMax=900M",
                "TasksMax=4000",
            ]);
        }
        running.assert_unharmed("set-property");
        systemctl(&["daemon-reload"]);
        running.assert_unharmed("daemon-reload");
        systemctl(&["daemon-reexec"]);
        running.assert_unharmed("daemon-reexec");
        kill_keeper(lab, "default");
        running.assert_unharmed("the keeper's death");
        systemctl(&["isolate", "multi-user.target"]);
        running.assert_unharmed("isolate");
        // Containers stay without the broker, whoever calls it next starts it: here by the system bus, in a login session.
        systemctl_stop();
        let call = "busctl --system call org.cgrant.Broker1 /org/cgrant/Broker1 org.cgrant.Broker1.Manager ListRanges";
        person.logged_in(call);
        assert!(is_active("cgrantd.service"));
        running.assert_unharmed("activation by the system bus");
        systemctl_stop();
        person.logged_in("CGRANT_SOCKET=system cgrant launch box bus");
        assert!(is_active("cgrantd.service"));
        assert_eq!(running.shell.state("bus"), "running");
        running.shell.done(&["delete", "--force", "bus"]);
        running.assert_unharmed("a container that started the broker by the system bus");
        systemctl_stop();
        systemctl(&["start", "cgrantd.socket"]);
        person.logged_in("cgrant grant list");
        assert!(is_active("cgrantd.service"));
        running.assert_unharmed("activation by the socket");
    }
    ends_with_everything_of(lab, &person, broker);
}

fn an_end_of_the_session_is_none_of_the_containers(lab: &Lab) {
    if !is_installed(lab) || !lab.host.systemd {
        return;
    }
    // What a session left behind is killed with it.
    fs::create_dir_all("/run/systemd/logind.conf.d").unwrap();
    let setting = Path::new("/run/systemd/logind.conf.d/cgrant-test.conf");
    fs::write(setting, "[Login]\nKillUserProcesses=yes\n").unwrap();
    systemctl(&["restart", "systemd-logind.service"]);
    let broker = ByHand::start(lab);
    let person = Person::new(lab, "lena", 23_911);
    let running = Running::launch(lab, &person);
    running.assert_unharmed("a logout");
    // What else was begun in a session goes with it, also out of its terminal's reach.
    person.logged_in("setsid --fork sleep 4242 >/dev/null 2>&1; sleep 0.5");
    wait_until("what a session left is killed", || !runs(&person, "sleep 4242"));
    running.assert_unharmed("a logout that killed others");
    // Policy may have it that containers do not stay either.
    fs::remove_dir_all(lab.scratch.join("busybox")).unwrap();
    let rule = "[[rule]]\nname = \"ends\"\nuids = [23921]\nlifetime.logout = \"end\"\n";
    let policy = Path::new("/etc/cgrant/policy.d/45-ends.toml");
    fs::write(policy, rule).unwrap();
    systemctl(&["reload", "cgrantd.service"]);
    let other = Person::new(lab, "elsa", 23_921);
    let people = [&person, &other];
    let mut left = people.map(|person| person.session("setsid --fork sleep 4242; exec sleep 1000"));
    for person in people {
        wait_until("there is a session", || person.has_session() && runs(person, "sleep 4242"));
    }
    let elsas = people::launch(lab, &other);
    for person in people {
        done(Command::new("loginctl").args(["terminate-user", &person.name]));
    }
    for (person, left) in people.iter().zip(&mut left) {
        wait_until("the session's process is gone", || left.try_wait().unwrap().is_some());
        wait_until("the session is gone", || !person.has_session() && !runs(person, "sleep 4242"));
    }
    running.assert_unharmed("terminate-user");
    wait_until("what ends with the session ends", || elsas.state("web") == "stopped");
    assert_eq!(elsas.json(&["info", "web"])["ended"], "power off");
    fs::remove_file(setting).unwrap();
    fs::remove_file(policy).unwrap();
    systemctl(&["restart", "systemd-logind.service"]);
    // Without that setting, what was killed stays.
    person.logged_in("setsid --fork sleep 4242 >/dev/null 2>&1; sleep 0.5");
    wait_until("the session is over", || !is_logged_in(&person));
    assert!(runs(&person, "sleep 4242"), "something else than the setting killed it");
    done(Command::new("pkill").args(["-U", &person.name, "-f", "^sleep 4242$"]));
    ends_with_everything_of(lab, &person, broker);
}

/// Does the person run such a command?
fn runs(person: &Person, command: &str) -> bool {
    let line = format!("^{command}$");
    Command::new("pgrep").args(["-U", &person.name, "-f", &line]).output().unwrap().status.success()
}

/// Has the person a session that is not closing?
fn is_logged_in(person: &Person) -> bool {
    let show = ["show-user", "--property=State", "--value", &person.name];
    let output = Command::new("loginctl").args(show).output().unwrap();
    matches!(text(&output.stdout).trim(), "active" | "online")
}

/// What hangs is replaced: one of cgrantd's processes by cgrantd, and that by systemd's watchdog.
fn a_broker_that_hangs_is_replaced_and_ends_no_container(lab: &Lab) {
    if !is_installed(lab) || !lab.host.systemd {
        return;
    }
    let directory = Path::new("/run/systemd/system/cgrantd.service.d");
    fs::create_dir_all(directory).unwrap();
    // The unit's own would take minutes.
    fs::write(directory.join("soon.conf"), "[Service]\nWatchdogSec=20\n").unwrap();
    systemctl(&["daemon-reload"]);
    let broker = ByHand::start(lab);
    let person = Person::new(lab, "wanda", 23_919);
    let running = Running::launch(lab, &person);
    let property =
        |name: &str| systemctl(&["show", "--property", name, "--value", "cgrantd.service"]).trim().to_owned();
    let engine = || {
        let pgrep = ["--parent", &property("MainPID"), "--exact", "cgrant-engine"];
        text(&Command::new("pgrep").args(pgrep).output().unwrap().stdout).trim().to_owned()
    };
    let stop = |pid: &str| {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    };
    let (main, old) = (property("MainPID"), engine());
    stop(&old);
    wait_until("there is another engine", || !["", old.as_str()].contains(&engine().as_str()));
    running.assert_unharmed("an engine that hung");
    assert_eq!((property("MainPID"), property("NRestarts")), (main.clone(), "0".to_owned()));
    stop(&main);
    wait_until("systemd has started another one", || {
        property("MainPID") != main && is_active("cgrantd.service")
    });
    assert_eq!(property("NRestarts"), "1");
    running.assert_unharmed("a broker that hung");
    fs::remove_dir_all(directory).unwrap();
    systemctl(&["daemon-reload"]);
    ends_with_everything_of(lab, &person, broker);
}

/// Calls, one after the other, until `end`: how many there were, and what those said that failed.
fn load(person: &Person, end: &AtomicBool) -> (usize, Vec<String>) {
    let (mut calls, mut failures) = (0, Vec::new());
    let ask = |words: &[&str]| {
        let mut call = person.user.command("/usr/bin/cgrant");
        let output = call.args(words).env("CGRANT_SOCKET", PACKAGED).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    };
    while !end.load(Ordering::Relaxed) {
        let key = calls.to_string();
        for words in [["grant", "create", "load", "--key", &key].as_slice(), &["grant", "release", "load"]] {
            let outcome = match ask(words) {
                // The broker ended with this call under way. Whoever asks again is told what came of it.
                Err(said) if said.contains(CUT_OFF) => match ask(words) {
                    Err(said) if words.contains(&"release") && said.contains("no grant") => Ok(()),
                    outcome => outcome,
                },
                outcome => outcome,
            };
            failures.extend(outcome.err().map(|said| format!("{words:?}: {said}")));
        }
        calls += 1;
    }
    (calls, failures)
}

fn an_upgrade_under_load_ends_no_container_and_loses_no_call(lab: &Lab) {
    if !is_installed(lab) {
        return;
    }
    let mut broker = ByHand::start(lab);
    let (person, other) = (Person::new(lab, "uwe", 23_912), Person::new(lab, "lotte", 23_913));
    let running = Running::launch(lab, &person);
    let before = version();
    let main = || systemctl(&["show", "-p", "MainPID", "--value", "cgrantd.service"]);
    let old = lab.host.systemd.then(main);
    let end = AtomicBool::new(false);
    let (calls, failures) = std::thread::scope(|scope| {
        let caller = scope.spawn(|| load(&other, &end));
        install(SECOND);
        std::thread::sleep(Duration::from_secs(1));
        end.store(true, Ordering::Relaxed);
        caller.join().unwrap()
    });
    assert!(calls > 0 && failures.is_empty(), "{calls} calls: {failures:?}");
    assert!(version().starts_with("ii ") && version() != before, "{before}, {}", version());
    if let Some(old) = old {
        assert_ne!(old, main(), "the broker is the old one");
    }
    // Where nobody looks after the broker, the old one goes on until somebody does.
    running.assert_unharmed("an upgrade");
    if !lab.host.systemd {
        broker.restart(lab);
        running.assert_unharmed("an upgrade and a restart");
    }
    // The later version is as good to the tests that follow.
    ends_with_everything_of(lab, &person, broker);
}

fn what_is_removed_ends_in_order_and_leaves_the_record_of_ids(lab: &Lab) {
    if !is_installed(lab) {
        return;
    }
    let mut broker = ByHand::start(lab);
    let person = Person::new(lab, "rosa", 23_914);
    let running = Running::launch(lab, &person);
    let record =
        || fs::read_dir(IDS).map_or(0, |files| files.flatten().filter(|file| !is_lock(&file.path())).count());
    assert!(record() > 0);
    dpkg(&[["--remove"].as_slice(), &PACKAGES].concat());
    let info = running.shell.json(&["info", "web"]);
    assert_eq!(info["ended"], "power off", "{info}");
    if lab.host.systemd {
        assert!(!is_active("cgrantd.service") && !is_active("cgrantd.socket") && !is_active("cgrant.scope"));
    } else {
        broker.stop();
    }
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
    // An administrator's own file would keep its directory.
    fs::remove_file(CEILINGS).unwrap();
    dpkg(&[["--purge"].as_slice(), &PACKAGES].concat());
    assert_eq!(version(), "");
    let left: Vec<_> =
        fs::read_dir("/var/lib/cgrant").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ids"]);
    assert!(record() > 0, "whose the ids of users' files are is forgotten");
    for place in ["/run/cgrant", "/etc/cgrant", "/usr/libexec/cgrant", "/usr/bin/cgrant"] {
        assert!(!Path::new(place).exists(), "{place} is left");
    }
    // The ids are the account's again, and with them its files.
    install(FIRST);
    let broker = match lab.host.systemd {
        true => ByHand(None),
        false => ByHand::start(lab),
    };
    wait_until("the broker serves", || running.shell.output(&["grant", "list"]).status.success());
    running.shell.done(&["start", "web"]);
    let mine = running.shell.done(&["exec", "web", "--", "stat", "-c", "%u", "/bin/busybox"]);
    assert_eq!(mine, "0\n", "its files are somebody else's");
    ends_with_everything_of(lab, &person, broker);
}

/// The broker's own directories as the package left them, until the test ends; what is in them otherwise comes back then.
struct Fresh;

impl Fresh {
    const STATE: &str = "/var/lib/cgrant";
    const ASIDE: &str = "/var/lib/aside";

    fn begin() -> Self {
        // Where no broker has run yet they are not there.
        let is_there = |result: std::io::Result<()>| match result {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            other => other.unwrap(),
        };
        is_there(fs::rename(Self::STATE, Self::ASIDE));
        is_there(fs::remove_dir_all("/run/cgrant"));
        Self
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Self::STATE);
        let _ = fs::rename(Self::ASIDE, Self::STATE);
    }
}

/// Where nobody was ever given ids there is nothing to remember.
fn what_nobody_has_ids_of_is_purged_whole(lab: &Lab) {
    if !is_installed(lab) {
        return;
    }
    let fresh = Fresh::begin();
    let mut broker = ByHand::start(lab);
    let person = Person::new(lab, "olga", 23_922);
    let shell = Shell::packaged(lab, &person.user);
    shell.done(&["grant", "create", "job", "--no-ids"]);
    shell.done(&["grant", "release", "job"]);
    dpkg(&[["--remove"].as_slice(), &PACKAGES].concat());
    if !lab.host.systemd {
        broker.stop();
    }
    let said = dpkg(&[["--purge"].as_slice(), &PACKAGES].concat());
    assert!(!said.contains("stays"), "{said}");
    let find = ["/etc", "/usr", "/var", "/run", "-name", "*cgrant*", "-not", "-path", "*cgrant-test*"];
    let left = done(Command::new("find").args(find));
    // Accounts stay, as those of all packages do: somebody may have files of theirs.
    assert_eq!(left, "", "purged, and there still");
    drop(fresh);
    install(FIRST);
    if lab.host.systemd {
        systemctl_stop();
    }
}

/// By those who know nothing of the package's scripts: an image that is built, a machine whose /var and /run are empty at each boot.
fn accounts_and_directories_come_of_their_files_alone(lab: &Lab) {
    if !is_installed(lab) || !lab.host.systemd {
        return;
    }
    systemctl_stop();
    let fresh = Fresh::begin();
    let create = || done(Command::new("systemd-tmpfiles").args(["--create", "cgrant.conf"]));
    let as_declared = || {
        for (path, mode) in [
            ("/run/cgrant", 0o755),
            ("/run/cgrant/public", 0o755),
            ("/run/cgrant/state", 0o700),
            ("/var/lib/cgrant", 0o700),
        ] {
            let found = fs::symlink_metadata(path).unwrap();
            assert!(found.is_dir(), "{path}");
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 0, mode), "{path}");
        }
    };
    create();
    as_declared();
    // Somebody was careless.
    fs::set_permissions("/run/cgrant/state", fs::Permissions::from_mode(0o777)).unwrap();
    chown("/var/lib/cgrant", Some(1), Some(1)).unwrap();
    create();
    as_declared();

    let names = ["cgrant-socket", "cgrant-bus", "cgrant-net"];
    let entry = |name: &str| {
        let output = Command::new("getent").args(["passwd", name]).output().unwrap();
        text(&output.stdout).trim().to_owned()
    };
    let sysusers = |words: &[&str]| done(Command::new("systemd-sysusers").args(words).arg("cgrant.conf"));
    for name in names {
        done(Command::new("userdel").arg(name));
    }
    let said = sysusers(&["--dry-run"]);
    for name in names {
        assert!(entry(name).is_empty() && said.contains(name), "{said}");
    }
    sysusers(&[]);
    for name in names {
        let entry = entry(name);
        let fields: Vec<&str> = entry.split(':').collect();
        let [_, _, uid, gid, _, home, shell] = fields[..] else { panic!("{entry}") };
        assert!((1..1000).contains(&uid.parse::<u32>().unwrap()) && uid == gid, "{entry}");
        assert!(home == "/" && shell.ends_with("/nologin"), "{entry}");
        let secret = done(Command::new("getent").args(["shadow", name]));
        assert!(secret.split(':').nth(1).unwrap().starts_with('!'), "{secret}");
    }
    // They are enough to serve.
    let mut broker = ByHand::start(lab);
    let root = lab.root();
    Shell::packaged(lab, &root).done(&["grant", "list"]);
    let main = systemctl(&["show", "--property", "MainPID", "--value", "cgrantd.service"]);
    for name in ["cgrant-socket", "cgrant-bus"] {
        let pgrep = ["--parent", main.trim(), "--uid", name];
        assert!(Command::new("pgrep").args(pgrep).output().unwrap().status.success(), "no process of {name}");
    }
    broker.stop();
    drop(fresh);
}

fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "lock")
}

fn where_nobody_may_make_namespaces_it_is_said(lab: &Lab) {
    const MOST: &str = "/proc/sys/user/max_user_namespaces";
    if !is_installed(lab) {
        return;
    }
    let broker = ByHand::start(lab);
    let person = Person::new(lab, "nora", 23_915);
    let shell = Shell::packaged(lab, &person.user);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "web"]);
    let most = fs::read_to_string(MOST).unwrap();
    fs::write(MOST, "0").unwrap();
    let output = shell.output(&["start", "web"]);
    let doctor = text(&shell.output(&["doctor"]).stdout);
    fs::write(MOST, most).unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains(MOST), "{said}");
    assert!(doctor.contains("user.max_user_namespaces"), "{doctor}");
    shell.done(&["start", "web"]);
    shell.done(&["stop", "web"]);
    // Older kernels ask AppArmor about everything but namespaces.
    let asked = fs::read_to_string("/sys/kernel/security/apparmor/features/namespaces/mask");
    let release = fs::read_to_string("/etc/os-release").unwrap();
    assert_eq!(asked.is_ok_and(|asked| asked.contains("userns_create")), release.contains("trixie"));
    if release.contains("trixie") {
        apparmor_lets_no_other_program_make_them(&person, &shell);
    }
    ends_with_everything_of(lab, &person, broker);
}

/// Forbids user namespaces to whoever is started in it, and to what that starts and has no profile of its own: what Ubuntu's kernel does
/// to all programs of users, and Debian's to none.
const FORBIDS: &str = "abi <abi/4.0>,
profile cgrant-test flags=(attach_disconnected, mediate_deleted) {
  capability, network, unix, signal, ptrace, mount, umount, pivot_root, dbus, mqueue, io_uring, change_profile, file,
  /usr/bin/cgrant pix,
}
";
const FORBIDDING: &str = "/etc/apparmor.d/cgrant-test";
/// Where a host has the profile, which a package for Debian 12 can't bring.
const PROFILE: &str = "/etc/apparmor.d/cgrant";

fn apparmor_lets_no_other_program_make_them(person: &Person, shell: &Shell) {
    let parser = |words: &[&str]| done(Command::new("apparmor_parser").arg("--skip-cache").args(words));
    fs::write(FORBIDDING, FORBIDS).unwrap();
    parser(&["--replace", FORBIDDING]);
    let confined = |words: &[&str]| {
        // Not the first program, which would be in this profile whatever another one says.
        let mut command = person.user.command("aa-exec");
        command.args(["--profile", "cgrant-test", "--", "env"]).args(words).env("CGRANT_SOCKET", PACKAGED);
        command.output().unwrap()
    };
    let other = ["unshare", "--user", "true"];
    done(person.user.command(other[0]).args(&other[1..]));
    assert!(!confined(&other).status.success(), "it forbids nothing");
    let refused = |words: &[&str]| {
        let output = confined(words);
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(!output.status.success() && said.contains("AppArmor"), "{words:?}: {said}");
    };
    refused(&["/usr/bin/cgrant", "start", "web"]);
    refused(&["/usr/bin/cgrant", "doctor"]);
    refused(&["/usr/bin/cgrant", "image", "remove", "box"]);

    fs::write(PROFILE, include_str!("../../policy/apparmor/cgrant")).unwrap();
    parser(&["--replace", PROFILE]);
    for words in [["start", "web"].as_slice(), &["doctor"]] {
        let output = confined(&[["/usr/bin/cgrant"].as_slice(), words].concat());
        assert!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
    }
    assert!(!confined(&other).status.success(), "it lets others");
    // What runs in a container may make containers.
    let inside = shell.done(&["exec", "web", "--", "cat", "/proc/1/attr/current", "/proc/self/attr/current"]);
    assert_eq!(inside, "cgrant (unconfined)\n".repeat(2));
    shell.done(&["exec", "web", "--", "/bin/busybox", "unshare", "-U", "true"]);
    shell.done(&["stop", "web"]);
    for file in [PROFILE, FORBIDDING] {
        parser(&["--remove", file]);
        fs::remove_file(file).unwrap();
    }
}

crate::tests![
    what_systemd_does_to_itself_harms_no_container,
    a_broker_that_hangs_is_replaced_and_ends_no_container,
    an_end_of_the_session_is_none_of_the_containers,
    where_nobody_may_make_namespaces_it_is_said,
    an_upgrade_under_load_ends_no_container_and_loses_no_call,
    what_is_removed_ends_in_order_and_leaves_the_record_of_ids,
    what_nobody_has_ids_of_is_purged_whole,
    accounts_and_directories_come_of_their_files_alone,
];
