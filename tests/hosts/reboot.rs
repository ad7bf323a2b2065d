//! A real reboot of a virtual machine that the package was installed on: what runs in grants ends in order before it, and what starts
//! with the machine runs after it, with its limits, its data and its ids.
//!
//! The kernel ends, and this program with it. So the test has two halves, and the second, which is started by tests/vm/guest,
//! compares with what the first wrote down.

use std::{fs, mem::ManuallyDrop, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox, text},
    harness,
    systemd::{done, is_active, systemctl},
    wait_until,
};
use crate::{package::is_installed, people::Person};

/// What the first half wrote down.
const BEFORE: &str = "/var/lib/cgrant-test/before";
/// Where a virtual machine has the root of a Debian container; see tests/vm/images.
const DEBIAN: &str = "/opt/debian.tar";
const NAME: &str = "rita";
const UID: u32 = 23_918;
/// What inits of containers are told by, in the words of the one inside.
const ORDER: &str = "Received SIGRTMIN+3";

fn what_is_to_start_with_the_machine_runs_after_a_reboot(lab: &Lab) {
    if !is_installed(lab) || !lab.host.systemd {
        return;
    }
    match fs::read(BEFORE) {
        Ok(before) => after(lab, &serde_json::from_slice(&before).unwrap()),
        Err(_) => before(lab),
    }
}

/// Which ids the container has, what limits it, of its own side and of the host's.
fn known(lab: &Lab, shell: &Shell<'_>) -> Value {
    let info = shell.json(&["info", "web"]);
    let grant =
        checker::bases(&lab.host, "default").into_values().map(|base| base.join(format!("u{UID}/web")));
    let limits: Vec<_> = grant
        .flat_map(|grant| ["memory.max", "memory.limit_in_bytes", "pids.max"].map(|file| grant.join(file)))
        .filter_map(|file| Some(json!([file, fs::read_to_string(&file).ok()?])))
        .collect();
    assert!(!limits.is_empty());
    json!({ "uid": info["uid"], "limits": limits, "boot": boot() })
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap()
}

fn before(lab: &Lab) {
    systemctl(&["start", "cgrantd.socket", "cgrantd.service"]);
    // There after the reboot too.
    let person = ManuallyDrop::new(Person::new(lab, NAME, UID));
    let shell = Shell::packaged(lab, &person.user);
    shell.done(&["image", "import", DEBIAN, "--alias", "debian", "--quiet"]);
    shell.import(lab, &busybox(lab), "box");
    person.logged_in("cgrant launch debian web --wait --memory 300M --pids 150");
    shell.done(&["exec", "web", "--", "sh", "-c", "echo kept >/root/data; mkdir -p /var/log/journal"]);
    shell.done(&["exec", "web", "--", "systemctl", "restart", "systemd-journald.service"]);
    // This is the container's owner's own to say, and needs nobody's password.
    let said = text(&shell.output(&["set", "web", "autostart=true"]).stderr);
    assert!(said.is_empty() && Path::new("/var/lib/systemd/linger").join(NAME).exists(), "{said}");
    person.logged_in("cgrant launch box other");
    wait_until("it is up", || shell.done(&["logs", "--console", "other"]).contains("ready"));
    for unit in ["cgrantd.service", "cgrantd.socket"] {
        assert_eq!(systemctl(&["is-enabled", unit]), "enabled\n");
    }
    fs::write(BEFORE, known(lab, &shell).to_string()).unwrap();
    systemctl(&["reboot"]);
    std::thread::sleep(Duration::from_secs(1000));
    panic!("the machine goes on");
}

fn after(lab: &Lab, before: &Value) {
    let person = Person::known(lab, NAME, UID);
    let shell = Shell::packaged(lab, &person.user);
    assert_ne!(before["boot"], boot(), "the machine was not rebooted");
    wait_until("the container starts with the machine", || {
        shell.output(&["exec", "web", "--", "systemctl", "is-active", "multi-user.target"]).status.success()
    });
    assert!(is_active("cgrantd.service") && is_active(&format!("user@{UID}.service")));
    let now = known(lab, &shell);
    assert_eq!((&now["uid"], &now["limits"]), (&before["uid"], &before["limits"]));
    let data = shell.done(&["exec", "web", "--", "sh", "-c", "stat -c %u /root/data; cat /root/data"]);
    assert_eq!(data, "0\nkept\n", "its data are somebody else's or gone");
    // It was told to end, and did so to the last: its journal is the last of its services that ends.
    let journal = ["exec", "web", "--", "journalctl", "--no-pager", "--output=cat", "--boot=-1"];
    let journal = shell.done(&journal);
    let last: Vec<&str> = journal.lines().skip_while(|line| !line.contains(ORDER)).collect();
    assert!(last.last().is_some_and(|line| line.contains("Journal stopped")), "{journal}");
    // So was one that does not start with the machine.
    let other = shell.json(&["info", "other"]);
    assert_eq!((&other["state"], &other["ended"]), (&"stopped".into(), &"power off".into()), "{other}");
    shell.done(&["start", "other"]);

    for name in ["web", "other"] {
        shell.done(&["delete", "--force", name]);
    }
    done(Command::new("loginctl").args(["disable-linger", NAME]));
    systemctl(&["stop", &format!("user@{UID}.service")]);
    drop(harness::descendants());
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

crate::tests![what_is_to_start_with_the_machine_runs_after_a_reboot];
