//! System containers on every kind of host, from import to delete: a small one, and a whole Debian, which in a virtual
//! machine is of the machine's own suite.

use std::{fs, path::Path};

use serde_json::Value;

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox, debian, text},
    user::cgroups_of,
    wait_until,
};

/// Where a virtual machine has the root of a Debian container; see tests/vm/images.
const DEBIAN: &str = "/opt/debian.tar";

// The value of a limit of the container's grant, of the cgroup that limits and of the payload that shows it inside.
fn limits(lab: &Lab, uid: u32, name: &str) -> [String; 2] {
    let grant = checker::place(lab, uid, name, "pids");
    ["pids.max", "payload/pids.max"]
        .map(|file| fs::read_to_string(grant.join(file)).unwrap().trim().to_owned())
}

// The parts of the container's grant that a process is in, one a hierarchy.
fn parts(pid: &Value, name: &str) -> Vec<String> {
    let grant = format!("/{name}/");
    let part = |path: String| path.split_once(&grant).map_or(path.clone(), |(_, part)| part.to_owned());
    let pid = u32::try_from(pid.as_u64().unwrap()).unwrap();
    cgroups_of(pid).into_iter().map(|(_, path)| part(path)).collect()
}

// In every hierarchy, or limits of the one would not hold for the other's, or would.
#[track_caller]
fn the_monitor_is_beside_what_it_watches(shell: &Shell<'_>, name: &str) {
    let info = shell.json(&["info", name]);
    for (pid, part) in [(&info["monitor"], "monitor"), (&info["init"], "payload")] {
        let parts = parts(pid, name);
        assert!(!parts.is_empty() && parts.iter().all(|found| found == part), "{part}: {parts:?}");
    }
}

fn a_small_system_lives_from_create_to_delete(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "one", "--pids", "50"]);
    shell.done(&["start", "one"]);
    checker::assert_in_order(lab);
    wait_until("it says that it is ready", || shell.done(&["logs", "--console", "one"]).contains("ready"));
    the_monitor_is_beside_what_it_watches(&shell, "one");
    // What is executed is inside, though the monitor is its parent.
    let script = "stat -c %u:%g /bin/busybox; cat /proc/self/cgroup";
    let inside = shell.done(&["exec", "one", "--", "sh", "-c", script]);
    assert!(inside.starts_with("0:0\n") && inside.contains(":/") && !inside.contains("monitor"), "{inside}");
    shell.done(&["set", "one", "pids.max=40"]);
    assert_eq!(limits(lab, user.uid, "one"), ["40", "40"]);
    // It stands still, and can be asked all the same.
    shell.done(&["pause", "one"]);
    assert_eq!(shell.json(&["info", "one"])["frozen"], true);
    assert_eq!(shell.state("one"), "paused");
    shell.done(&["resume", "one"]);
    // So it is after a reboot. Init may end the command that asked for it first.
    let ended = shell.output(&["exec", "one", "--", "reboot"]).status.code();
    assert!(matches!(ended, Some(0 | 143)), "{ended:?}");
    wait_until("it has rebooted", || shell.json(&["info", "one"])["reboots"] == 1);
    wait_until("it runs", || shell.output(&["exec", "one", "--", "true"]).status.success());
    the_monitor_is_beside_what_it_watches(&shell, "one");
    shell.done(&["stop", "one", "--timeout", "60"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["delete", "one"]);
    assert_eq!(shell.state("one"), "none");
}

fn a_full_memory_ends_what_is_inside_and_not_the_monitor(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one", "--memory", "48M"]);
    // Nobody inside is large: files are what fills it, and whoever writes on is killed.
    let _ = shell.output(&["exec", "one", "--", "sh", "-c", "while :; do cat /dev/zero > /run/full; done"]);
    // That may be init, of whose end the monitor tells then.
    let info = shell.json(&["info", "one"]);
    assert!(info["state"] != "stopped" || info["ended"] == "signal 9", "{info}");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

fn a_whole_debian_boots(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    match Path::new(DEBIAN).exists() {
        true => drop(shell.done(&["image", "import", DEBIAN, "--alias", "debian", "--quiet"])),
        false => shell.import(lab, &debian("bookworm"), "debian"),
    }
    shell.done(&["launch", "debian", "one", "--wait", "--memory", "512M", "--pids", "200"]);
    assert_eq!(shell.state("one"), "running");
    let said = shell.output(&["exec", "one", "--", "systemctl", "is-system-running", "--wait"]);
    let failed = shell.done(&["exec", "one", "--", "systemctl", "--failed", "--no-legend", "--no-pager"]);
    let printed = shell.done(&["logs", "--console", "one"]);
    assert_eq!((text(&said.stdout).as_str(), failed.as_str()), ("running\n", ""), "{printed}");
    shell.done(&["set", "one", "pids.max=150"]);
    assert_eq!(limits(lab, user.uid, "one"), ["150", "150"]);
    shell.done(&["stop", "one", "--timeout", "120"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["delete", "one"]);
}

crate::tests![
    a_small_system_lives_from_create_to_delete,
    a_full_memory_ends_what_is_inside_and_not_the_monitor,
    a_whole_debian_boots,
];
