//! What becomes of what runs in grants when the machine is switched off: it ends in order, by the command that an init script
//! calls, and on hosts of systemd's with the scope.

use std::{fs, path::Path, process::Command};

use crate::common::{
    Lab, Options, checker,
    containers::{Shell, busybox},
    systemd::{is_active, systemctl},
    wait_until,
};

/// Where a virtual machine has the root of a Debian container; see tests/vm/images.
const DEBIAN: &str = "/opt/debian.tar";
/// In a container: a process that init does not know, in a cgroup below another.
const IN_A_CGROUP_OF_ITS_OWN: &str = "busybox mkdir -p /sys/fs/cgroup/a/b; sleep 1000 >/dev/null 2>&1 & \
    echo $! >/sys/fs/cgroup/a/b/cgroup.procs";

fn everything_in_grants_ends_in_order(lab: &Lab) {
    let mut broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let tree = busybox(lab);
    let shells = [Shell::new(lab, &user, &broker), Shell::new(lab, &other, &broker)];
    shells.iter().for_each(|shell| shell.import(lab, &tree, "box"));
    let containers = [(&shells[0], "one"), (&shells[0], "two"), (&shells[1], "one")];
    for (shell, name) in containers {
        shell.done(&["launch", "box", name]);
        wait_until("it is up", || shell.done(&["logs", "--console", name]).contains("ready"));
    }
    shells[0].done(&["pause", "two"]);
    shells[1].done(&["exec", "one", "--", "sh", "-c", IN_A_CGROUP_OF_ITS_OWN]);
    let client = user.client(broker.socket());
    let grant = client.create("bare", Options::new().lifetime("persistent")).unwrap();
    let (inside, outside) = (user.sleeper(), user.sleeper());
    client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
    drop(client);
    // Its holder has cgroups in it, and calls them what it likes.
    let place = inside.cgroups().into_iter().find(|(hierarchy, _)| hierarchy == "cgroup2").unwrap().1;
    let below = lab.host.cgroup2().root.join(place.trim_start_matches('/')).join("deep/monitor");
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("cgroup.procs"), inside.pid.to_string()).unwrap();
    let shutdown = |instance: &str| {
        Command::new(lab.programs.join("cgrantd"))
            .args(["--shutdown", "--instance", instance])
            .output()
            .unwrap()
    };
    // Of another instance it touches nothing.
    let nobodys = shutdown("nobody");
    assert!(nobodys.status.success() && nobodys.stderr.is_empty(), "{nobodys:?}");
    assert!(inside.is_alive() && shells[0].state("one") != "stopped");
    // No broker is needed.
    broker.kill_everything();
    let output = shutdown(&lab.instance);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    wait_until("what is in a grant without a monitor has ended", || !inside.is_alive());
    assert!(outside.is_alive(), "a process outside of grants was ended");
    broker.start_again();
    for (shell, name) in containers {
        assert_eq!(shell.json(&["info", name])["ended"], "power off", "{name}");
    }
    user.client(broker.socket()).release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
    for (shell, name) in containers {
        shell.done(&["delete", name]);
    }
}

/// What systemd does with it when the machine is switched off, it does when it is told to stop it. Only where the package's files are
/// installed: the virtual machines.
fn a_scope_that_is_stopped_lets_containers_end(lab: &Lab) {
    if !lab.host.systemd || std::env::var_os("CGRANT_TEST_INSTALLED").is_none() {
        assert!(!Path::new("/usr/lib/systemd/system/cgrant-shutdown.service").exists() || !lab.host.systemd);
        return;
    }
    systemctl(&["start", "cgrantd.service"]);
    let user = lab.user();
    let shell = Shell::packaged(lab, &user);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "web"]);
    let mut containers = vec!["web"];
    if fs::exists(DEBIAN).unwrap() {
        shell.done(&["image", "import", DEBIAN, "--alias", "debian", "--quiet"]);
        shell.done(&["launch", "debian", "deb", "--wait"]);
        containers.push("deb");
    }
    wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
    wait_until("the unit that ends them waits", || is_active("cgrant-shutdown.service"));
    // Nobody ends all containers by mistake, nor an upgrade that restarts units.
    assert!(!Command::new("systemctl").args(["stop", "cgrant-shutdown.service"]).status().unwrap().success());
    systemctl(&["daemon-reload"]);
    systemctl(&["restart", "cgrantd.service"]);
    containers.iter().for_each(|name| assert_ne!(shell.json(&["info", name])["state"], "stopped", "{name}"));

    systemctl(&["stop", "cgrant.scope"]);
    for name in &containers {
        let info = shell.json(&["info", name]);
        assert_eq!(info["ended"], "power off", "{info}");
    }
    // The broker goes on with a new one.
    wait_until("there is a new scope", || is_active("cgrant.scope") && is_active("cgrant-shutdown.service"));
    wait_until("the broker serves", || shell.output(&["grant", "list"]).status.success());
    shell.done(&["start", "web"]);
    // When the machine is switched off, containers end first, then the broker, then the scope.
    let before = |unit: &str| systemctl(&["show", "-p", "Before", "--value", unit]);
    let is_before = |unit: &str, other: &str| before(unit).split_whitespace().any(|found| found == other);
    assert!(is_before("cgrant.scope", "cgrantd.service"), "{}", before("cgrant.scope"));
    assert!(is_before("cgrantd.service", "cgrant-shutdown.service"), "{}", before("cgrantd.service"));
    assert!(is_before("cgrant-shutdown.service", "systemd-user-sessions.service"));

    for name in containers {
        shell.done(&["delete", "--force", name]);
    }
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

crate::tests![everything_in_grants_ends_in_order, a_scope_that_is_stopped_lets_containers_end];
