//! Containers that start with the machine, called as this kind of host does it: by the service manager of their user, or by
//! cron.

use std::{fs, path::PathBuf, process::Command};

use crate::common::{
    Lab, User, checker,
    containers::{Shell, busybox, text},
    harness,
    systemd::{done, is_active, systemctl},
    wait_until,
};

/// Somebody whom /etc/passwd knows: a service manager is for such alone.
const NAME: &str = "ann";
const UID: u32 = 23_900;

fn start_with_the_machine(lab: &Lab) {
    match (lab.host.systemd, std::env::var_os("CGRANT_TEST_INSTALLED").is_some()) {
        (true, true) => by_the_service_manager_of_the_user(lab),
        (systemd, _) => by_hand(lab, systemd),
    }
}

/// Where nobody does it, the command says what lacks; what it says to do works without a session and with no more of an
/// environment than cron gives.
fn by_hand(lab: &Lab, systemd: bool) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "web"]);
    let said = text(&shell.output(&["set", "web", "autostart=true"]).stderr);
    let lacks = if systemd { "systemctl --user enable cgrant-autostart.service" } else { "crontab -e" };
    assert!(said.contains(lacks), "{said}");
    let mut cron = user.command(lab.programs.join("cgrant"));
    cron.args(["autostart", "start", "--wait-for-broker", "60"]).env_clear();
    done(cron.env("HOME", &user.home).env("CGRANT_SOCKET", broker.socket()));
    assert_ne!(shell.state("web"), "stopped");
    shell.done(&["autostart", "stop"]);
    assert_eq!(shell.state("web"), "stopped");
    shell.done(&["delete", "web"]);
}

fn ann(lab: &Lab) -> User {
    done(Command::new("useradd").args(["--create-home", "--uid", &UID.to_string(), NAME]));
    let mut user = User::new(UID, &[], &lab.scratch, &lab.programs);
    user.home = PathBuf::from("/home").join(NAME);
    fs::set_permissions(&user.home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    user
}

/// Stops everything that is stopped when the machine is switched off, in that order, and starts what is started at boot. The tests
/// themselves go on (tests/vm/boot/cgrant-test.service). `units` run before, and must have ended in between.
fn off_and_on(units: &[&str]) {
    assert!(units.iter().all(|unit| is_active(unit)));
    // systemd refuses to have shutdown.target started alone, and so does not go on to the end of itself.
    let off = "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\n";
    fs::write("/run/systemd/system/cgrant-test-off.target", off).unwrap();
    // At boot this one empties /tmp, where the tests are.
    systemctl(&["mask", "--runtime", "--quiet", "systemd-tmpfiles-setup.service"]);
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "cgrant-test-off.target"]);
    let left: Vec<_> = units.iter().filter(|unit| is_active(unit)).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(systemctl(&["show", "-p", "Result", "--value", "cgrant-shutdown.service"]), "success\n");
    systemctl(&["start", "cgrantd.service", "multi-user.target"]);
}

fn by_the_service_manager_of_the_user(lab: &Lab) {
    let manager = format!("user@{UID}.service");
    systemctl(&["start", "cgrantd.service"]);
    let user = ann(lab);
    let link = user.home.join(".config/systemd/user/default.target.wants/cgrant-autostart.service");
    let ann = Shell::packaged(lab, &user);
    let info = |name| ann.json(&["info", name]);
    let runs = || info("web")["state"] != "stopped";
    ann.import(lab, &busybox(lab), "box");
    ann.done(&["create", "box", "web"]);
    // Without a session, so that there is no service manager to ask yet. Where polkit is not there, root has to say that Ann's
    // may run from boot on, and she is told so.
    let output = ann.output(&["set", "web", "autostart=true"]);
    let said = text(&output.stderr);
    let linger = format!("loginctl enable-linger {UID}");
    assert!(output.status.success() && (said.is_empty() || said.contains(&linger)), "{said}");
    assert!(fs::symlink_metadata(&link).is_ok(), "the unit is not enabled: {said}");
    done(Command::new("loginctl").args(["enable-linger", NAME]));
    wait_until("the container starts with the user's service manager", runs);
    // What the machine does when it is switched off.
    systemctl(&["stop", &manager]);
    assert_eq!(info("web")["ended"], "power off", "{}", info("web"));
    // The broker and its tree end after the service managers of users, and so after the containers.
    for unit in ["cgrantd.service", "cgrant.scope"] {
        let before = systemctl(&["show", "-p", "Before", "--value", unit]);
        assert!(
            before.split_whitespace().any(|unit| unit == "systemd-user-sessions.service"),
            "{unit}: {before}"
        );
    }
    let after = systemctl(&["show", "-p", "After", "--value", &manager]);
    assert!(after.split_whitespace().any(|unit| unit == "systemd-user-sessions.service"), "{after}");
    // And at the next boot.
    systemctl(&["start", &manager]);
    wait_until("the container starts again", runs);
    ann.done(&["launch", "box", "other"]);
    wait_until("it is up", || ann.done(&["logs", "--console", "other"]).contains("ready"));
    ann.done(&["pause", "other"]);
    off_and_on(&[&manager, "cgrant-shutdown.service", "cgrantd.service", "cgrant.scope"]);
    let other = info("other");
    assert!(other["state"] == "stopped" && other["ended"] == "power off", "{other}");
    // logind does this at a real boot.
    systemctl(&["start", &manager]);
    wait_until("the container starts with the machine", runs);
    ann.done(&["delete", "other"]);
    // One that no longer wants to goes on when the service manager ends, and is not started by the next one.
    ann.done(&["set", "web", "autostart=false"]);
    assert!(fs::symlink_metadata(&link).is_err(), "the unit is still enabled");
    done(Command::new("loginctl").args(["disable-linger", NAME]));
    systemctl(&["stop", &manager]);
    assert!(runs());
    ann.done(&["delete", "--force", "web"]);
    wait_until("Ann has no process", || {
        // The monitor of the one that the test itself had started waits for the test to take notice of its end.
        drop(harness::descendants());
        !Command::new("pgrep").args(["-U", NAME]).status().unwrap().success()
    });
    ann.done(&["image", "remove", "box"]);
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
    done(Command::new("userdel").args(["--remove", NAME]));
}

crate::tests![start_with_the_machine];
