//! What becomes of what runs in grants when the machine is switched off: it ends in order, by the command that an init script
//! calls, and on hosts of systemd's with the scope.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::common::{
    Lab, Options, User, checker,
    containers::{Shell, busybox, text},
    wait_until,
};

/// Where a virtual machine has the root of a Debian container; see tests/vm/images.
const DEBIAN: &str = "/opt/debian.tar";
const SOCKET: &str = "/run/cgrant/public/bus";

#[track_caller]
fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

fn everything_in_grants_ends_in_order(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    for name in ["one", "two"] {
        shell.done(&["launch", "box", name]);
        wait_until("it is up", || shell.done(&["logs", "--console", name]).contains("ready"));
    }
    shell.done(&["pause", "two"]);
    let client = user.client(broker.socket());
    let grant = client.create("bare", Options::new().lifetime("persistent")).unwrap();
    let (inside, outside) = (user.sleeper(), user.sleeper());
    client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
    drop(client);
    let shutdown = |instance: &str| {
        Command::new(lab.programs.join("cgrantd"))
            .args(["--shutdown", "--instance", instance])
            .output()
            .unwrap()
    };
    // Of another instance it touches nothing.
    let other = shutdown("nobody");
    assert!(other.status.success() && other.stderr.is_empty(), "{other:?}");
    assert!(inside.is_alive() && shell.state("one") != "stopped");
    // No broker is needed.
    broker.kill_everything();
    let output = shutdown(&lab.instance);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    wait_until("what is in a grant without a monitor has ended", || !inside.is_alive());
    assert!(outside.is_alive(), "a process outside of grants was ended");
    broker.start_again();
    for name in ["one", "two"] {
        assert_eq!(shell.json(&["info", name])["ended"], "power off", "{name}");
    }
    user.client(broker.socket()).release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
    for name in ["one", "two"] {
        shell.done(&["delete", name]);
    }
}

/// A user of the packaged broker.
struct Packaged {
    user: User,
}

impl Packaged {
    fn output(&self, words: &[&str]) -> Output {
        self.user.cgrant(Path::new(SOCKET), words)
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "cgrant {words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn info(&self, name: &str) -> Value {
        serde_json::from_str(&self.done(&["--format", "json", "info", name])).unwrap()
    }

    fn import(&self, archive: &Path, alias: &str) {
        self.done(&["image", "import", archive.to_str().unwrap(), "--alias", alias, "--quiet"]);
    }
}

/// What systemd does with it when the machine is switched off, it does when it is told to stop it. Only where the package's files are
/// installed: the virtual machines.
fn a_scope_that_is_stopped_lets_containers_end(lab: &Lab) {
    if !lab.host.systemd || std::env::var_os("CGRANT_TEST_INSTALLED").is_none() {
        assert!(!Path::new("/usr/lib/systemd/system/cgrant-shutdown.service").exists() || !lab.host.systemd);
        return;
    }
    let systemctl = |words: &[&str]| done(Command::new("systemctl").args(words));
    let active = |unit: &str| {
        Command::new("systemctl").args(["is-active", "--quiet", unit]).status().unwrap().success()
    };
    systemctl(&["start", "cgrantd.service"]);
    let user = Packaged { user: lab.user() };
    let archive = lab.scratch.join("box.tar");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(busybox(lab)).args(["--numeric-owner", "-cf"]).arg(&archive).arg(".");
    done(&mut tar);
    user.import(&archive, "box");
    user.done(&["launch", "box", "web"]);
    let mut containers = vec!["web"];
    if fs::exists(DEBIAN).unwrap() {
        user.import(Path::new(DEBIAN), "debian");
        user.done(&["launch", "debian", "deb", "--wait"]);
        containers.push("deb");
    }
    wait_until("it is up", || user.done(&["logs", "--console", "web"]).contains("ready"));
    wait_until("the unit that ends them waits", || active("cgrant-shutdown.service"));
    // Nobody ends all containers by mistake, nor an upgrade that restarts units.
    assert!(!Command::new("systemctl").args(["stop", "cgrant-shutdown.service"]).status().unwrap().success());
    systemctl(&["daemon-reload"]);
    systemctl(&["restart", "cgrantd.service"]);
    containers.iter().for_each(|name| assert_ne!(user.info(name)["state"], "stopped", "{name}"));

    systemctl(&["stop", "cgrant.scope"]);
    for name in &containers {
        let info = user.info(name);
        assert_eq!(info["ended"], "power off", "{info}");
    }
    // The broker goes on with a new one.
    wait_until("there is a new scope", || active("cgrant.scope") && active("cgrant-shutdown.service"));
    wait_until("the broker serves", || user.output(&["grant", "list"]).status.success());
    user.done(&["start", "web"]);
    // When the machine is switched off, containers end first, then the broker, then the scope.
    let before = |unit: &str| systemctl(&["show", "-p", "Before", "--value", unit]);
    let is_before = |unit: &str, other: &str| before(unit).split_whitespace().any(|found| found == other);
    assert!(is_before("cgrant.scope", "cgrantd.service"), "{}", before("cgrant.scope"));
    assert!(is_before("cgrantd.service", "cgrant-shutdown.service"), "{}", before("cgrantd.service"));
    assert!(is_before("cgrant-shutdown.service", "systemd-user-sessions.service"));

    for name in containers {
        user.done(&["delete", "--force", name]);
    }
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

crate::tests![everything_in_grants_ends_in_order, a_scope_that_is_stopped_lets_containers_end];
