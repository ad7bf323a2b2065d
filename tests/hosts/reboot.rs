//! A real reboot of a virtual machine that the package was installed on: what runs in grants ends in order before it, and what starts
//! with the machine runs after it, with its limits, its data and its ids. What does not end in time is killed, and does not keep the machine;
//! grants of users who were deleted meanwhile come back as policy says.
//!
//! The kernel ends, and this program with it. So the test has two halves, and the second, which is started by tests/vm/guest,
//! compares with what the first wrote down.

use std::{
    fs,
    mem::ManuallyDrop,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::common::{
    Lab, Options, User, checker,
    containers::{PACKAGED, Shell, busybox, text},
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
/// Users who are deleted before the reboot, and one who is not: name and uid.
const PEOPLE: [(&str, u32); 4] = [("gone", 23_941), ("kept", 23_942), ("next", 23_943), ("here", 23_944)];
const POLICY: &str = "/etc/cgrant/policy.d/50-reboot.toml";
const STAYS: &str = "[[rule]]\nname = \"stays\"\nuids = [23942, 23943]\nlifetime.departed = \"keep\"\n";
/// An init that knows no end.
const DEAF: &str = "#!/bin/sh\ntrap 'echo no' TERM PWR USR1 USR2\necho ready\nwhile :; do sleep 1; done\n";
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

fn user(lab: &Lab, uid: u32) -> User {
    User::new(uid, &[], &lab.scratch, &lab.programs)
}

/// What each of them has that stays over a reboot.
fn names(lab: &Lab, uid: u32) -> Vec<String> {
    let mut names = user(lab, uid).client(Path::new(PACKAGED)).names();
    names.sort();
    names
}

/// Each has two grants that stay; then some are deleted, and nobody is told until the machine is up again.
fn make_what_stays(lab: &Lab) {
    for (name, uid) in PEOPLE {
        done(Command::new("useradd").args(["--no-create-home", "--uid", &uid.to_string(), name]));
        let client = user(lab, uid).client(Path::new(PACKAGED));
        let persistent = || Options::new().lifetime("persistent");
        client.create("with-ids", persistent()).unwrap();
        client.create("bare", persistent().no_range().limits(&[("pids.max", "77")])).unwrap();
    }
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    for (name, _) in &PEOPLE[..3] {
        done(Command::new("userdel").arg(name));
    }
    done(Command::new("useradd").args(["--no-create-home", "--uid", &PEOPLE[2].1.to_string(), "other"]));
}

fn what_stays_is_as_policy_says(lab: &Lab) {
    // Of who is gone for good nothing, of who is policy's to keep what has no ids; nothing of the one whose uid is another's now.
    let expected: [&[&str]; 4] = [&[], &["bare"], &[], &["bare", "with-ids"]];
    for ((name, uid), expected) in PEOPLE.into_iter().zip(expected) {
        wait_until(&format!("what {name} had is as it ought to be"), || names(lab, uid) == expected);
    }
    let root = lab.root().client(Path::new(PACKAGED));
    for (_, uid) in PEOPLE {
        let all: Vec<(zbus::OwnedObjectPath, String, u32)> =
            root.manager("ListGrants", &Options::new().with("all", true).0).unwrap();
        for (grant, _, _) in all.into_iter().filter(|(.., account)| *account == uid) {
            root.release(grant.as_str(), true).unwrap();
        }
    }
    done(Command::new("userdel").arg("here"));
    done(Command::new("userdel").arg("other"));
    fs::remove_file(POLICY).unwrap();
}

/// A root whose init does not end when it is told to.
fn deaf(lab: &Lab) -> PathBuf {
    let root = lab.scratch.join("busybox");
    let init = root.join("sbin/init");
    fs::remove_file(&init).unwrap();
    fs::write(&init, DEAF).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    root
}

fn before(lab: &Lab) {
    fs::create_dir_all("/etc/cgrant/policy.d").unwrap();
    fs::write(POLICY, STAYS).unwrap();
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
    shell.import(lab, &deaf(lab), "deaf");
    person.logged_in("cgrant launch deaf deaf");
    wait_until("it is up", || shell.done(&["logs", "--console", "deaf"]).contains("ready"));
    for unit in ["cgrantd.service", "cgrantd.socket"] {
        assert_eq!(systemctl(&["is-enabled", unit]), "enabled\n");
    }
    fs::write(BEFORE, known(lab, &shell).to_string()).unwrap();
    make_what_stays(lab);
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
    // One that does not listen was killed when its time was over, and did not take the others with it.
    let deaf = shell.json(&["info", "deaf"]);
    assert_eq!((&deaf["state"], &deaf["ended"]), (&"stopped".into(), &"signal 9".into()), "{deaf}");
    shell.done(&["start", "other"]);
    what_stays_is_as_policy_says(lab);

    for name in ["web", "other", "deaf"] {
        shell.done(&["delete", "--force", name]);
    }
    done(Command::new("loginctl").args(["disable-linger", NAME]));
    systemctl(&["stop", &format!("user@{UID}.service")]);
    drop(harness::descendants());
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

crate::tests![what_is_to_start_with_the_machine_runs_after_a_reboot];
