//! The Debian package on a host of its own: installed, upgraded while containers run, removed, purged; and what a service manager
//! does to itself and to its units meanwhile. A virtual machine was given the package by dpkg, and a later version to upgrade to.

use std::{
    collections::BTreeMap,
    fs,
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
use crate::people::Person;

/// What the machine was installed from; see tests/vm/guest.
const FIRST: &str = "/test/packages";
/// The same with a higher version number.
const SECOND: &str = "/test/upgrade";
/// What a command says whose connection ended before the answer.
const CUT_OFF: &str = "failed to read from socket";
const PACKAGES: [&str; 3] = ["libpam-cgrant", "cgrant-cgmanager", "cgrant"];
const IDS: &str = "/var/lib/cgrant/ids";
/// Files of cgroups that limit, of both kinds.
const LIMITS: [&str; 15] = [
    "cgroup.freeze",
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
    "io.weight",
];

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

/// A container, what it is limited to, and who it is.
struct Running<'a> {
    lab: &'a Lab,
    shell: Shell<'a>,
    uid: u32,
    limits: BTreeMap<PathBuf, String>,
    init: serde_json::Value,
}

impl<'a> Running<'a> {
    fn launch(lab: &'a Lab, person: &'a Person) -> Self {
        let shell = Shell::packaged(lab, &person.user);
        shell.import(lab, &busybox(lab), "box");
        // From a session of the person's own, as it would be typed.
        person.logged_in("cgrant launch box web --memory 64M --pids 50 --limit cpu.max='50000 100000'");
        wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
        let init = shell.json(&["info", "web"])["init"].clone();
        let limits = limits(lab, person.user.uid);
        assert!(limits.values().any(|value| value == "50\n"), "{limits:?}");
        Self { lab, shell, uid: person.user.uid, limits, init }
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
    let mut left = person.session("sleep 1000");
    wait_until("there is a session", || person.has_session());
    done(Command::new("loginctl").args(["terminate-user", &person.name]));
    wait_until("the session's process is gone", || left.try_wait().unwrap().is_some());
    wait_until("the session is gone", || !person.has_session());
    running.assert_unharmed("terminate-user");
    fs::remove_file(setting).unwrap();
    systemctl(&["restart", "systemd-logind.service"]);
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
    ends_with_everything_of(lab, &person, broker);
    dpkg(&["--remove", "cgrant", "cgrant-cgmanager", "libpam-cgrant"]);
    install(FIRST);
    if lab.host.systemd {
        systemctl_stop();
    }
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
    ends_with_everything_of(lab, &person, broker);
}

crate::tests![
    what_systemd_does_to_itself_harms_no_container,
    an_end_of_the_session_is_none_of_the_containers,
    where_nobody_may_make_namespaces_it_is_said,
    an_upgrade_under_load_ends_no_container_and_loses_no_call,
    what_is_removed_ends_in_order_and_leaves_the_record_of_ids,
];
