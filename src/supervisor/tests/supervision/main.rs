//! cgrantd with children that are played by this very program: what they see, how they are restarted, what
//! READY means, what is left. Needs root, because cgrantd does.
//!
//! Copies of this program lie in a scratch directory under the names of the real ones; each finds out by its
//! name whom it plays and by files named `ROLE.mode` beside it how, and notes what happens to it in `events`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod harness;
mod players;

use std::{
    fs,
    os::unix::{
        fs::MetadataExt,
        net::{UnixDatagram, UnixListener, UnixStream},
        process::CommandExt,
    },
    process::Command,
    time::{Duration, Instant},
};

use harness::{Broker, Scene, eventually, kill};
use nix::sys::signal::Signal;

fn main() -> std::process::ExitCode {
    if let Some(status) = players::play() {
        return status;
    }
    assert!(rustix::process::geteuid().is_root(), "these tests start cgrantd and must be run as root");
    harness::run(&[
        ("ready_is_said_and_sigterm_ends_in_order", ready_is_said_and_sigterm_ends_in_order),
        ("children_get_nothing_but_their_channel", children_get_nothing_but_their_channel),
        ("a_bus_address_starts_a_bus_front_too", a_bus_address_starts_a_bus_front_too),
        (
            "an_engine_that_gives_up_ends_the_start_with_its_reason",
            an_engine_that_gives_up_ends_the_start_with_its_reason,
        ),
        ("a_program_that_is_missing_is_named", a_program_that_is_missing_is_named),
        (
            "the_death_of_the_engine_restarts_all_and_keeps_the_socket",
            the_death_of_the_engine_restarts_all_and_keeps_the_socket,
        ),
        ("the_death_of_a_front_restarts_that_front_only", the_death_of_a_front_restarts_that_front_only),
        (
            "the_death_of_the_network_helper_restarts_that_helper_only",
            the_death_of_the_network_helper_restarts_that_helper_only,
        ),
        (
            "a_network_helper_that_hangs_is_killed_and_replaced",
            a_network_helper_that_hangs_is_killed_and_replaced,
        ),
        (
            "a_network_helper_that_can_not_be_killed_holds_nothing_up",
            a_network_helper_that_can_not_be_killed_holds_nothing_up,
        ),
        ("without_a_network_helper_the_rest_is_served", without_a_network_helper_the_rest_is_served),
        ("restarts_come_slower_and_slower", restarts_come_slower_and_slower),
        ("a_front_that_floods_is_killed", a_front_that_floods_is_killed),
        (
            "a_killed_supervisor_takes_its_children_along_and_can_come_back",
            a_killed_supervisor_takes_its_children_along_and_can_come_back,
        ),
        ("a_successor_waits_for_the_old_engine", a_successor_waits_for_the_old_engine),
        ("a_second_supervisor_of_the_instance_is_refused", a_second_supervisor_of_the_instance_is_refused),
        (
            "a_second_instance_of_a_name_is_refused_whatever_its_directories",
            a_second_instance_of_a_name_is_refused_whatever_its_directories,
        ),
        ("a_signal_to_the_whole_group_is_one_order_to_end", a_signal_to_the_whole_group_is_one_order_to_end),
        ("instances_run_side_by_side", instances_run_side_by_side),
        ("sighup_reaches_the_engine", sighup_reaches_the_engine),
        (
            "a_child_that_does_not_end_is_killed_at_the_second_sigterm",
            a_child_that_does_not_end_is_killed_at_the_second_sigterm,
        ),
        (
            "in_the_background_the_command_returns_when_ready",
            in_the_background_the_command_returns_when_ready,
        ),
        ("in_the_background_a_failed_start_is_told", in_the_background_a_failed_start_is_told),
        ("the_service_manager_is_notified", the_service_manager_is_notified),
        ("the_watchdog_hears_of_children_that_answer", the_watchdog_hears_of_children_that_answer),
        ("a_child_that_hangs_is_replaced_for_the_watchdog", a_child_that_hangs_is_replaced_for_the_watchdog),
        ("signs_of_life_that_nobody_asked_for_are_a_fault", signs_of_life_that_nobody_asked_for_are_a_fault),
        (
            "a_socket_of_the_service_manager_is_used_and_left",
            a_socket_of_the_service_manager_is_used_and_left,
        ),
        ("without_root_there_is_one_clear_sentence", without_root_there_is_one_clear_sentence),
        ("a_bad_configuration_is_told_with_its_place", a_bad_configuration_is_told_with_its_place),
        ("the_keeper_of_the_scope_is_replaced", the_keeper_of_the_scope_is_replaced),
        ("a_scope_that_was_stopped_restarts_the_engine", a_scope_that_was_stopped_restarts_the_engine),
        ("without_a_scope_from_systemd_there_is_no_start", without_a_scope_from_systemd_there_is_no_start),
        ("an_idle_supervisor_makes_no_system_call", an_idle_supervisor_makes_no_system_call),
    ])
}

fn ready_is_said_and_sigterm_ends_in_order() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    assert!(scene.socket().exists());
    broker.signal(Signal::SIGTERM);
    let end = broker.end();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(end.stdout, "READY\n");
    let mut order: Vec<_> = scene.events().into_iter().filter(|event| event.ends_with(" stop")).collect();
    order[1..].sort();
    assert_eq!(order, ["engine stop", "front stop", "net stop"]);
    assert!(!scene.socket().exists());
    assert!(scene.path("run/public").is_dir(), "it may be mounted in containers");
}

fn children_get_nothing_but_their_channel() {
    let scene = Scene::new();
    let broker = scene.command(&[]).env("CGRANT_TEST_SECRET", "1").spawn_ready();
    for role in ["engine", "front", "net"] {
        let fds = scene.event(&format!("{role} fds "));
        // 0, 1, 2, the channel, and the one that reads the list.
        assert_eq!(fds, "0 1 2 3", "{role}");
        assert_eq!(scene.event(&format!("{role} environment ")), "empty");
        // SIGHUP, SIGINT, SIGTERM: they are the supervisor's to act on.
        assert_eq!(scene.event(&format!("{role} blocked ")), "0000000000004003");
        // Chown, dac_override, fowner, kill, setgid, setuid, setpcap, net_bind_service, net_admin, net_raw, sys_ptrace,
        // sys_admin, sys_chroot, sys_nice, mknod.
        assert_eq!(scene.event(&format!("{role} bounded ")), "0000000008ac35eb");
        assert_eq!(scene.event(&format!("{role} no-new-privs ")), "1");
        assert_eq!(scene.event(&format!("{role} stdin ")), "/dev/null");
    }
    broker.stop();
}

fn a_bus_address_starts_a_bus_front_too() {
    let scene = Scene::new();
    let broker = scene.start(&["--bus", "unix:path=/nowhere"]);
    let kinds: Vec<_> = scene.events().into_iter().filter(|event| event.starts_with("front boot ")).collect();
    assert_eq!(kinds.len(), 2, "{kinds:?}");
    assert!(kinds.iter().any(|kind| kind == "front boot Bus unix:path=/nowhere default"), "{kinds:?}");
    assert!(kinds.iter().any(|kind| kind == "front boot Socket  default"), "{kinds:?}");
    broker.stop();
}

fn an_engine_that_gives_up_ends_the_start_with_its_reason() {
    let scene = Scene::new();
    scene.mode("engine", "fail");
    let end = scene.command(&[]).spawn().end();
    assert_eq!(end.code, Some(1));
    assert_eq!(end.stdout, "", "READY must not be said");
    assert!(end.stderr.contains("cgrantd: engine: the record is unreadable"), "{}", end.stderr);
    assert!(!scene.socket().exists());
    scene.nobody_is_left();
}

fn a_program_that_is_missing_is_named() {
    let scene = Scene::new();
    fs::remove_file(scene.path("bin/cgrant-front")).unwrap();
    let end = scene.command(&[]).spawn().end();
    assert_eq!(end.code, Some(1));
    assert!(
        end.stderr.contains("cgrant-front is neither in") && end.stderr.contains("libexec/cgrant"),
        "{}",
        end.stderr
    );
}

fn the_death_of_the_engine_restarts_all_and_keeps_the_socket() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let inode = fs::metadata(scene.socket()).unwrap().ino();
    eventually("the front reached the engine", || scene.count("engine front-started Socket") == 1);
    let (engine, front) = (scene.pid("engine"), scene.pid("front"));
    kill(engine, Signal::SIGKILL);
    // A client that comes meanwhile waits in the queue; it is not refused.
    UnixStream::connect(scene.socket()).unwrap();
    eventually("both are new", || scene.pid("engine") != engine && scene.pid("front") != front);
    eventually("the front reached the new engine", || scene.count("engine front-started Socket") == 2);
    assert_eq!(fs::metadata(scene.socket()).unwrap().ino(), inode);
    broker.stop();
}

fn the_death_of_a_front_restarts_that_front_only() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let (engine, front) = (scene.pid("engine"), scene.pid("front"));
    kill(front, Signal::SIGABRT);
    eventually("the front is new", || scene.pid("front") != front);
    eventually("the engine was told", || scene.count("engine front-started Socket") == 2);
    assert_eq!(scene.pid("engine"), engine);
    broker.stop();
}

fn the_death_of_the_network_helper_restarts_that_helper_only() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let boot = scene.event("net boot ");
    assert!(boot.starts_with("default cgrant ") && boot.ends_with(" true"), "{boot}");
    let (engine, front) = (scene.pid("engine"), scene.pid("front"));
    eventually("the engine was told", || scene.count("engine net-started 1") == 1);
    kill(scene.pid("net"), Signal::SIGKILL);
    eventually("the engine was told again", || scene.count("engine net-started 1") == 2);
    assert_eq!((scene.pid("engine"), scene.pid("front")), (engine, front));
    // The other way round it goes with the engine, and comes back with it.
    kill(engine, Signal::SIGKILL);
    eventually("the new engine was told", || scene.count("engine net-started 1") == 3);
    broker.stop();
}

fn a_network_helper_that_hangs_is_killed_and_replaced() {
    let scene = Scene::new();
    scene.mode("engine", "hangs-1");
    let broker = scene.start(&[]);
    eventually("there is another one", || scene.count("engine net-started 1") == 2);
    eventually("it has booted", || scene.events().iter().rev().any(|event| event.starts_with("net boot ")));
    assert_eq!(scene.count_prefix("engine pid "), 1);
    assert_eq!(scene.count("net eof"), 0, "it was not asked to end");
    let end = broker.stop();
    assert!(end.stderr.contains("it gave no sign and was killed"), "{}", end.stderr);
}

/// A cgroup of the v1 freezer, thawed and removed at the end.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn new(scene: &Scene) -> Self {
        let hierarchy = scene.path("freezer");
        fs::create_dir(&hierarchy).unwrap();
        let options = ["-t", "cgroup", "-o", "freezer", "cgroup"];
        let mounted = Command::new("mount").args(options).arg(&hierarchy).status().unwrap();
        assert!(mounted.success(), "this host has no freezer of cgroup v1");
        let cgroup = hierarchy.join(format!("supervision-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        fs::write(scene.path("bin/freezer"), cgroup.to_str().unwrap()).unwrap();
        Self(cgroup)
    }

    fn set(&self, state: &str) {
        let file = self.0.join("freezer.state");
        fs::write(&file, state).unwrap();
        eventually("the cgroup is as told", || fs::read_to_string(&file).unwrap().trim() == state);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = Command::new("umount").arg(self.0.parent().unwrap()).status();
    }
}

fn a_network_helper_that_can_not_be_killed_holds_nothing_up() {
    let scene = Scene::new();
    let freezer = Freezer::new(&scene);
    scene.mode("net", "freeze");
    let broker = scene.start(&[]);
    freezer.set("FROZEN");
    kill(scene.pid("engine"), Signal::SIGKILL);
    eventually("the engine comes without the end of the one that hangs", || {
        scene.count_prefix("engine pid ") == 2
    });
    eventually("the engine is told", || scene.count("engine net-stuck") == 1);
    assert_eq!(scene.count_prefix("net pid "), 1, "there is no second one beside it");
    eventually("there is a front again", || scene.count_prefix("front boot ") == 2);
    scene.mode("net", "");
    freezer.set("THAWED");
    eventually("there is another one", || scene.count_prefix("net pid ") == 2);
    // At the end it is not waited for either.
    let last = scene.pid("net");
    fs::write(freezer.0.join("tasks"), last.to_string()).unwrap();
    freezer.set("FROZEN");
    broker.signal(Signal::SIGTERM);
    let end = broker.end();
    assert!(end.stderr.contains("hangs in the kernel"), "{}", end.stderr);
    drop(freezer);
    scene.nobody_is_left();
}

fn without_a_network_helper_the_rest_is_served() {
    let scene = Scene::new();
    scene.mode("net", "die");
    let broker = scene.start(&[]);
    eventually("it is tried again", || scene.count_prefix("net pid ") > 2);
    assert_eq!(scene.count_prefix("engine pid "), 1);
    scene.mode("net", "");
    let end = broker.stop();
    // Its channel may be seen to end before it has ended itself; it is made sure of then.
    let told = ["network helper: it ended with status 4", "network helper: it was killed by SIGKILL"];
    assert!(told.iter().any(|words| end.stderr.contains(words)), "{}", end.stderr);
}

fn restarts_come_slower_and_slower() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    scene.mode("front", "die");
    kill(scene.pid("front"), Signal::SIGKILL);
    eventually("it was tried a few times", || scene.count_prefix("front pid ") >= 5);
    let starts = scene.times("front pid ");
    let gaps: Vec<_> = starts.windows(2).skip(1).map(|pair| pair[1] - pair[0]).collect();
    for (position, gap) in gaps.iter().enumerate() {
        let least = 200_u128 << position;
        assert!(*gap >= least, "restart {position} came after {gap} ms, before {least} ms");
    }
    scene.mode("front", "");
    let before = scene.count_prefix("front pid ");
    eventually("it serves again", || scene.count_prefix("front pid ") > before);
    broker.stop();
}

fn a_front_that_floods_is_killed() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let front = scene.pid("front");
    scene.mode("front", "flood");
    kill(front, Signal::SIGKILL);
    eventually("the flooding front was replaced", || scene.count_prefix("front pid ") >= 3);
    scene.mode("front", "");
    let end = broker.stop();
    assert!(end.stderr.contains("it sends too many messages"), "{}", end.stderr);
}

fn a_killed_supervisor_takes_its_children_along_and_can_come_back() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    broker.signal(Signal::SIGKILL);
    broker.end();
    assert!(scene.socket().exists(), "it was killed");
    eventually("the children saw the end", || {
        scene.count("engine eof") == 1 && scene.count("front eof") == 1
    });
    let again = scene.start(&[]);
    UnixStream::connect(scene.socket()).unwrap();
    again.stop();
}

fn a_successor_waits_for_the_old_engine() {
    let scene = Scene::new();
    fs::write(scene.path("bin/engine.lingers"), "").unwrap();
    let broker = scene.start(&[]);
    broker.signal(Signal::SIGKILL);
    broker.end();
    scene.start(&[]).stop();
    // The old one took its time at its end; the new one was started after it.
    let events = scene.events();
    let at = |wanted: &str| events.iter().rposition(|event| event.starts_with(wanted)).unwrap();
    assert!(at("engine lingered") < at("engine pid "), "{events:?}");
}

fn a_second_supervisor_of_the_instance_is_refused() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let end = scene.command(&[]).spawn().end();
    assert_eq!(end.code, Some(1));
    assert!(
        end.stderr.contains(&format!("another cgrantd (process {}) runs", broker.pid())),
        "{}",
        end.stderr
    );
    assert_eq!(end.stderr.lines().count(), 1, "{}", end.stderr);
    UnixStream::connect(scene.socket()).unwrap();
    broker.stop();
}

/// Cgroups go by the instance's name: a second one of the name would take the first one's for left over.
fn a_second_instance_of_a_name_is_refused_whatever_its_directories() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    let (run, lib) = (scene.path("run2"), scene.path("lib2"));
    let dirs = ["--runtime-dir", run.to_str().unwrap(), "--state-dir", lib.to_str().unwrap()];
    let end = scene.command(&dirs).spawn().end();
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains(&format!("another cgrantd (process {})", broker.pid())), "{}", end.stderr);
    assert_eq!(scene.count_prefix("engine pid "), 1);
    broker.stop();
    scene.start(&dirs).stop();
}

/// As a terminal's interrupt and timeout(1) do it: everybody is told, and cgrantd twice.
fn a_signal_to_the_whole_group_is_one_order_to_end() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    for role in ["engine", "front"] {
        kill(scene.pid(role), Signal::SIGINT);
        kill(scene.pid(role), Signal::SIGTERM);
    }
    broker.signal(Signal::SIGTERM);
    eventually("it heard the first", || scene.count("engine stop") == 1);
    broker.signal(Signal::SIGINT);
    let end = broker.end();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    assert_eq!(scene.count("front stop"), 1);
}

fn instances_run_side_by_side() {
    let scene = Scene::new();
    let one = scene.start(&[]);
    let (run, lib) = (scene.path("run2"), scene.path("lib2"));
    let dirs = ["--runtime-dir", run.to_str().unwrap(), "--state-dir", lib.to_str().unwrap()];
    let two = scene.start(&[&["--instance", "two"], &dirs[..]].concat());
    assert!(run.join("public/bus").exists());
    assert_eq!(scene.count("front boot Socket  two"), 1);
    two.stop();
    UnixStream::connect(scene.socket()).unwrap();
    one.stop();
}

fn sighup_reaches_the_engine() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    broker.signal(Signal::SIGHUP);
    eventually("the engine reloads", || scene.count("engine reload") == 1);
    scene.mode("engine", "bad-reload");
    broker.signal(Signal::SIGHUP);
    eventually("the engine refuses", || scene.count("engine reload") == 2);
    let end = broker.stop();
    assert!(end.stderr.contains("configuration read again"), "{}", end.stderr);
    assert!(end.stderr.contains("line 3 is wrong"), "{}", end.stderr);
    assert_eq!(scene.count_prefix("engine pid "), 1);
}

fn a_child_that_does_not_end_is_killed_at_the_second_sigterm() {
    let scene = Scene::new();
    scene.mode("engine", "deaf");
    let broker = scene.start(&[]);
    broker.signal(Signal::SIGTERM);
    eventually("it heard the first", || scene.count("engine stop") == 1);
    // A second one at once would be the same order.
    std::thread::sleep(Duration::from_millis(1100));
    broker.signal(Signal::SIGTERM);
    let end = broker.end();
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("did not end in order"), "{}", end.stderr);
    assert!(!scene.socket().exists());
}

fn in_the_background_the_command_returns_when_ready() {
    let scene = Scene::new();
    let end = scene.background(&[]).spawn().end();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    UnixStream::connect(scene.socket()).unwrap();
    let holder = fs::read_to_string(scene.path("run/lock")).unwrap();
    let pid: u32 = holder.strip_prefix("process ").unwrap().parse().unwrap();
    kill(pid, Signal::SIGTERM);
    eventually("it ends", || !scene.socket().exists());
    scene.nobody_is_left();
}

fn in_the_background_a_failed_start_is_told() {
    let scene = Scene::new();
    scene.mode("engine", "fail");
    let end = scene.background(&[]).spawn().end();
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("the record is unreadable"), "{}", end.stderr);
    scene.nobody_is_left();
}

fn the_service_manager_is_notified() {
    let scene = Scene::new();
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let next = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let broker = scene.command(&[]).env("NOTIFY_SOCKET", path.to_str().unwrap()).spawn_ready();
    assert!(next().starts_with("READY=1\n"));
    broker.signal(Signal::SIGHUP);
    let reloading = next();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert!(next().starts_with("READY=1\n"));
    broker.signal(Signal::SIGTERM);
    assert!(next().starts_with("STOPPING=1\n"));
    assert_eq!(broker.end().code, Some(0));
}

/// What the service manager hears, for a broker whose watchdog has `microseconds`.
fn watched(scene: &Scene, microseconds: &str) -> (Broker, UnixDatagram) {
    let path = scene.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let command = scene.command(&[]).env("NOTIFY_SOCKET", path.to_str().unwrap());
    (command.env("WATCHDOG_USEC", microseconds).spawn_ready(), socket)
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn the_watchdog_hears_of_children_that_answer() {
    let scene = Scene::new();
    let (broker, socket) = watched(&scene, "500000");
    assert!(heard(&socket).starts_with("READY=1\n"));
    for _ in 0..20 {
        assert_eq!(heard(&socket).trim_end(), "WATCHDOG=1");
    }
    // More often than a front may say anything else.
    assert!(scene.count("front asked") > 9 && scene.count("engine asked") > 9);
    assert_eq!(scene.count("net asked"), 0);
    assert_eq!(scene.count_prefix("front pid "), 1);
    broker.stop();
}

fn a_child_that_hangs_is_replaced_for_the_watchdog() {
    for role in ["front", "engine"] {
        let scene = Scene::new();
        let (broker, socket) = watched(&scene, "1000000");
        let hanging = scene.pid(role);
        kill(hanging, Signal::SIGSTOP);
        eventually("there is another", || scene.pid(role) != hanging);
        // It is well again; before that the service manager heard that something was amiss.
        while !heard(&socket).contains("STATUS=A process of the broker failed") {}
        while heard(&socket).trim_end() != "WATCHDOG=1" {}
        let end = broker.stop();
        assert!(end.stderr.contains("it gave no sign of life and was killed"), "{}", end.stderr);
    }
}

fn signs_of_life_that_nobody_asked_for_are_a_fault() {
    let scene = Scene::new();
    let broker = scene.start(&[]);
    scene.mode("front", "alive");
    kill(scene.pid("front"), Signal::SIGKILL);
    eventually("the front that talks was replaced", || scene.count_prefix("front pid ") >= 3);
    scene.mode("front", "");
    let end = broker.stop();
    assert!(end.stderr.contains("it sends messages that are not its own to send"), "{}", end.stderr);
}

fn a_socket_of_the_service_manager_is_used_and_left() {
    let scene = Scene::new();
    fs::create_dir(scene.path("elsewhere")).unwrap();
    let path = scene.path("elsewhere/bus");
    let listener = UnixListener::bind(&path).unwrap();
    let broker = scene.command(&[]).activated(listener).spawn_ready();
    assert!(!scene.socket().exists());
    assert_eq!(scene.event("engine listener "), path.to_str().unwrap());
    broker.stop();
    assert!(path.exists(), "it is the service manager's");
}

fn without_root_there_is_one_clear_sentence() {
    let scene = Scene::new();
    let output =
        Command::new(scene.path("bin/cgrantd")).arg("--foreground").uid(65534).gid(65534).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("must be started as root"), "{stderr}");
}

fn a_bad_configuration_is_told_with_its_place() {
    let scene = Scene::new();
    let check = |scene: &Scene| {
        Command::new(scene.path("bin/cgrantd"))
            .args(["--check-config", "--config-dir"])
            .arg(scene.path("etc"))
            .uid(65534)
            .output()
            .unwrap()
    };
    assert_eq!(check(&scene).status.code(), Some(0));
    fs::write(scene.path("etc/cgrantd.toml"), "[ids]\nlive = 5\n").unwrap();
    let output = check(&scene);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("cgrantd.toml:2:8:"), "{stderr}");
    let start = scene.command(&[]).spawn().end();
    assert_eq!(start.code, Some(1));
    assert!(start.stderr.contains("cgrantd.toml:2:8:"), "{}", start.stderr);
}

fn the_keeper_of_the_scope_is_replaced() {
    let scene = Scene::new();
    let broker = scene.command(&[]).under_a_seeming_systemd().spawn_ready();
    assert_eq!(scene.event("engine placement "), "cgroup2 /system.slice/cgrant.scope");
    assert_eq!(scene.event("scope asked "), "make cgrant.scope");
    let (engine, keeper) = (scene.pid("engine"), scene.pid("keeper"));
    kill(keeper, Signal::SIGKILL);
    eventually("there is a new keeper", || scene.pid("keeper") != keeper);
    assert_eq!(scene.pid("engine"), engine);
    broker.stop();
    assert_eq!(scene.event("scope left "), "/system.slice/cgrant.scope");
    scene.nobody_is_left();
}

fn a_scope_that_was_stopped_restarts_the_engine() {
    let scene = Scene::new();
    let broker = scene.command(&[]).under_a_seeming_systemd().spawn_ready();
    let (engine, keeper) = (scene.pid("engine"), scene.pid("keeper"));
    scene.mode("scope", "made");
    kill(keeper, Signal::SIGKILL);
    eventually("the engine is new", || scene.pid("engine") != engine);
    eventually("the front reached it", || scene.count("engine front-started Socket") == 2);
    broker.stop();
    scene.nobody_is_left();
}

fn without_a_scope_from_systemd_there_is_no_start() {
    let scene = Scene::new();
    scene.mode("scope", "refuse");
    let end = scene.command(&[]).under_a_seeming_systemd().spawn().end();
    assert_eq!(end.code, Some(1));
    assert!(end.stderr.contains("no cgroup from systemd: it is asleep"), "{}", end.stderr);
    assert!(!scene.socket().exists());
    assert_eq!(scene.count_prefix("engine pid "), 0);
}

fn an_idle_supervisor_makes_no_system_call() {
    let scene = Scene::new();
    let broker: Broker = scene.start(&[]);
    // Until it sleeps in poll; then its count of switches must stand still.
    let switches = || harness::context_switches(broker.pid());
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = switches();
    loop {
        std::thread::sleep(Duration::from_secs(3));
        let now = switches();
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "it keeps waking: {before} then {now}");
        before = now;
    }
    broker.stop();
}
