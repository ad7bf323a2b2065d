//! Where the broker's tree is on this kind of host, and that the host's own manager and the broker leave each other
//! alone. In a virtual machine the packaged units are there too and are started as a package would start them.

use std::{fs, path::Path, process::Command};

use crate::common::{
    Kind, Lab, Options, User,
    bus::MANAGER_PATH,
    checker,
    containers::PACKAGED,
    harness,
    systemd::{is_active, kill_keeper, systemctl},
    wait_until,
};

fn the_tree_is_where_this_kind_of_host_wants_it(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("here", Options::new()).unwrap();
    let bases = checker::bases(&lab.host, &lab.instance);
    for tree in &lab.host.trees {
        let base =
            bases.get(&tree.name).unwrap_or_else(|| panic!("the instance has no tree in {}", tree.name));
        let below = base.strip_prefix(&tree.root).unwrap();
        let depth = below.components().count();
        // systemd has cgroup2 (hybrid: without controllers) and name=systemd in its hand, and these of v1; the others are free.
        let is_systemds = |name: &str| {
            ["name=systemd", "cpu", "cpuacct", "blkio", "memory", "devices", "pids"].contains(&name)
                || name == "cgroup2" && lab.host.kind != Kind::V1
        };
        if lab.host.systemd && tree.name.split(',').any(is_systemds) {
            assert!(
                below.ends_with(format!("cgrant-{}.scope", lab.instance)),
                "{}: {}",
                tree.name,
                below.display()
            );
        } else {
            assert_eq!(
                (depth, below.to_str().unwrap()),
                (1, format!("cgrant-{}", lab.instance).as_str()),
                "{}",
                tree.name
            );
        }
    }
    checker::assert_in_order(lab);
    // Every controller that is there at the top of the tree is handed down to the payload. (A scope gets from systemd those
    // that systemd knows; hugetlb is not one of them, and no file of systemd's cgroups is written to change that.)
    let cgroup2 = checker::places(lab, user.uid, "here")["cgroup2"].clone();
    let there = fs::read_to_string(cgroup2.join("payload/cgroup.controllers")).unwrap();
    let top = fs::read_to_string(bases["cgroup2"].join("cgroup.controllers")).unwrap();
    for controller in top.split_whitespace() {
        assert!(
            there.split_whitespace().any(|c| c == controller),
            "{controller} does not reach the payload: {there}"
        );
    }
    if lab.host.kind == Kind::V2 {
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            assert!(there.split_whitespace().any(|c| c == controller), "{controller} is not there: {there}");
        }
    }
    client.release(&grant.path, false).unwrap();
}

/// In hierarchies of v1 that no unit of its own needs, systemd removes whatever is empty when it reads its units again.
fn what_is_empty_is_ours_alone_to_remove(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let reload = || {
        if lab.host.systemd {
            systemctl(&["daemon-reload"]);
        }
        checker::cgroups_of_instance(&lab.host, &lab.instance)
    };
    let none = checker::cgroups_of_instance(&lab.host, &lab.instance);
    assert_eq!(reload(), none);
    let grant = client.create("idle", Options::new().limits(&[("pids.max", "44")])).unwrap();
    let idle = checker::cgroups_of_instance(&lab.host, &lab.instance);
    assert!(idle.len() > none.len());
    assert_eq!(reload(), idle);
    checker::assert_in_order(lab);
    client.release(&grant.path, false).unwrap();
}

fn the_scope_outlives_the_broker_and_ends_with_the_last_grant(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant =
        client.create("scoped", Options::new().lifetime("persistent").limits(&[("pids.max", "44")])).unwrap();
    let sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    let before = sleeper.cgroups();
    if lab.host.systemd {
        let scope = format!("cgrant-{}.scope", lab.instance);
        let shown = systemctl(&["show", "-p", "ActiveState,Delegate,TasksMax", &scope]);
        assert!(
            shown.contains("ActiveState=active")
                && shown.contains("Delegate=yes")
                && shown.contains("TasksMax=infinity"),
            "{shown}"
        );
        // What systemd does to its units must not reach into the scope.
        systemctl(&["daemon-reload"]);
        systemctl(&["set-property", "--runtime", &scope, "CPUWeight=200"]);
        systemctl(&["daemon-reexec"]);
        checker::assert_in_order(lab);
    }
    broker.kill_everything();
    assert!(sleeper.is_alive());
    broker.start_again();
    assert_eq!(sleeper.cgroups(), before);
    checker::assert_in_order(lab);
    let client = user.client(broker.socket());
    assert_eq!(client.value(&grant.path, "pids.max"), "44");
    client.release(&grant.path, true).unwrap();
    drop(client);
    assert_eq!(broker.stop(), 0);
    wait_until("the tree is gone", || checker::cgroups_of_instance(&lab.host, &lab.instance).is_empty());
    let is_brokers = |pid: &u32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        program.file_name().is_some_and(|name| name.to_str().unwrap().starts_with("cgrant"))
    };
    wait_until("the broker's processes are gone, a keeper too", || {
        !harness::descendants().iter().any(is_brokers)
    });
}

fn the_keeper_may_die(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("kept", Options::new().lifetime("persistent")).unwrap();
    let sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    kill_keeper(lab, &lab.instance);
    assert!(sleeper.is_alive());
    let second = client.create("second", Options::new()).unwrap();
    client.release(&second.path, false).unwrap();
    broker.kill_everything();
    broker.start_again();
    checker::assert_in_order(lab);
    assert!(sleeper.is_alive());
    user.client(broker.socket()).release(&grant.path, true).unwrap();
}

fn the_packaged_broker_serves_the_system_bus(lab: &Lab) {
    // Only where the image is ours: the virtual machines, into which the package's files were installed.
    if std::env::var_os("CGRANT_TEST_INSTALLED").is_none() {
        assert!(
            !Path::new("/usr/lib/systemd/system/cgrantd.service").exists() || !lab.host.systemd,
            "an installed broker is in the way of the tests"
        );
        return;
    }
    let options = ["--foreground", "--cgmanager-socket", "auto"];
    let by_hand = (!lab.host.systemd).then(|| Command::new("cgrantd").args(options).spawn().unwrap());
    if lab.host.systemd {
        systemctl(&["start", "cgrantd.service"]);
    } else {
        wait_until("the packaged broker listens", || Path::new(PACKAGED).exists());
    }
    // Programs of CGManager's find it where they look: in the tmpfs of v1 hierarchies, too.
    let own = (lab.host.kind != Kind::V2).then_some("/sys/fs/cgroup/cgmanager/sock");
    for place in own.into_iter().chain(["/run/cgmanager/sock"]) {
        let answer = Command::new("cgm").arg("ping").env("CGRANT_CGMANAGER_SOCKET", place).output().unwrap();
        assert!(answer.status.success(), "{place}: {answer:?}");
    }
    // The system bus lets nobody in whom /etc/passwd does not know.
    let user = User::new(5, &[], &lab.scratch, &lab.programs);
    let call = |words: &[&str]| {
        let mut command = user.command("busctl");
        command
            .args(["--system", "call", "org.cgrant.Broker1", MANAGER_PATH, "org.cgrant.Broker1.Manager"])
            .args(words);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    wait_until("the name is on the system bus", || call(&["ListRanges"]).0);
    let (done, said) = call(&["CreateGrant", "sa{sv}", "pkg", "1", "lifetime", "s", "persistent"]);
    assert!(done && said.contains("/org/cgrant/Broker1/grant/"), "{said}");
    let output = user.cgrant(Path::new(PACKAGED), &["grant", "list"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("pkg"), "{output:?}");
    let sleeper = user.sleeper();
    let attach = user.cgrant(Path::new(PACKAGED), &["grant", "attach", "pkg", &sleeper.pid.to_string()]);
    assert!(attach.status.success(), "{attach:?}");
    if lab.host.systemd {
        // Its fronts have the accounts that sysusers made; the service's cgroup holds nothing but the broker.
        let control = systemctl(&["show", "-p", "ControlGroup", "--value", "cgrantd.service"]);
        assert!(
            !sleeper.cgroups().iter().any(|(_, path)| path.contains(control.trim())),
            "{:?}",
            sleeper.cgroups()
        );
        systemctl(&["restart", "cgrantd.service"]);
        assert!(sleeper.is_alive(), "a restart of the service killed what ran in a grant");
        systemctl(&["stop", "cgrantd.service"]);
        assert!(sleeper.is_alive(), "a stop of the service killed what ran in a grant");
        // Called on the bus, it is started.
        wait_until("activation", || call(&["GetGrant", "sa{sv}", "pkg", "0"]).0);
        assert!(sleeper.is_alive());
    }
    let release = user.cgrant(Path::new(PACKAGED), &["grant", "release", "pkg", "--kill"]);
    assert!(release.status.success(), "{release:?}");
    if lab.host.systemd {
        systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
        // The scope ends by itself; the unit that waits for that must not keep systemd from making another.
        wait_until("nothing waits for the scope", || !is_active("cgrant-shutdown.service"));
        systemctl(&["start", "cgrantd.service"]);
        systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    }
    if let Some(mut broker) = by_hand {
        let pid = rustix::process::Pid::from_child(&broker);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(broker.wait().unwrap().success());
    }
    wait_until("the packaged broker's tree is gone", || {
        checker::cgroups_of_instance(&lab.host, "default").is_empty()
    });
}

crate::tests![
    the_tree_is_where_this_kind_of_host_wants_it,
    what_is_empty_is_ours_alone_to_remove,
    the_scope_outlives_the_broker_and_ends_with_the_last_grant,
    the_keeper_may_die,
    the_packaged_broker_serves_the_system_bus,
];
