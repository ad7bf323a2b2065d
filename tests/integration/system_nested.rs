//! Containers in containers, as their roots make them: with the command alone, whole Debian systems, three levels of them.

use std::{fs, os::unix::fs::MetadataExt, process::Stdio};

use serde_json::Value;

use crate::common::{
    Broker, Lab, checker,
    containers::{
        Shell, busybox, busybox_with_command, by, debian_with_command, import_by, inside, states, text, tree,
    },
    network::{HOST4, HOST6, Network, OUTSIDE4, OUTSIDE6},
    node::Tcp,
    wait_until,
};

const LEVELS: [&str; 3] = ["one", "two", "three"];
/// Where the outside says who calls.
const PORT: &str = "7070";

// From each level all below is seen, and nothing else.
#[track_caller]
fn the_trees_are_right(lab: &Lab, shell: &Shell<'_>, broker: &Broker) {
    const TREE: [&str; 5] = ["cgrant", "--format", "json", "list", "--tree"];
    let seen = |depth: usize| tree(&shell.done(&inside(&LEVELS[..depth], &TREE)));
    assert_eq!(seen(0), "one running [two running [three running []]]");
    assert_eq!(seen(1), "two running [three running []]");
    assert_eq!(seen(2), "three running []");
    assert_eq!(seen(3), "");
    let stranger = lab.user();
    assert_eq!(tree(&Shell::new(lab, &stranger, broker).done(&TREE[1..])), "");
    let table = shell.done(&["list", "--tree"]);
    let cells: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_ascii_whitespace().take(2).collect()).collect();
    assert_eq!(cells, [["NAME", "STATE"], ["one", "running"], ["two", "running"], ["three", "running"]]);
    let indented = |name: &str| table.lines().any(|line| line.starts_with(name));
    assert!(indented("one") && indented("  two") && indented("    three"), "{table}");
    assert_eq!(states(&shell.done(&TREE[1..])).len(), 1);
    // Those whose container stands still stand still.
    shell.done(&inside(&LEVELS[..1], &["cgrant", "pause", "two"]));
    assert_eq!(seen(0), "one running [two paused [three paused []]]");
    shell.done(&inside(&LEVELS[..1], &["cgrant", "resume", "two"]));
    assert_eq!(seen(0), "one running [two running [three running []]]");
}

// Each launched from inside the one above, by its root.
fn three_levels_of_debian(lab: &Lab) {
    let network = Network::new(lab);
    network.outside.serve(Tcp, &format!("[::]:{PORT}"));
    let mut broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    let archive = debian_with_command(lab);
    shell.import_inside(&[], &archive, "debian");
    shell.done(&["launch", "debian", "one", "--nesting", "--link", "--memory", "800M", "--wait"]);
    shell.import_inside(&["one"], &archive, "debian");
    let wishes = ["--nesting", "--link", "--device", "full", "--wait"];
    shell.done(&inside(&["one"], &[&["cgrant", "launch", "debian", "two"], &wishes[..]].concat()));
    shell.import_inside(&["one", "two"], &archive, "debian");
    shell.done(&inside(&LEVELS[..2], &["cgrant", "launch", "debian", "three", "--link", "--wait"]));
    checker::assert_in_order(lab);
    let lists = || {
        for depth in 0..3 {
            let words = inside(&LEVELS[..depth], &["cgrant", "--format", "json", "list"]);
            assert_eq!(states(&shell.done(&words)), [format!("{} running", LEVELS[depth])]);
        }
    };
    lists();
    let within = |script: &str| shell.done(&inside(&LEVELS, &["sh", "-c", script]));
    assert_eq!(within("hostname; id -u; ps -o comm= 1"), "three\n0\nsystemd\n");
    the_trees_are_right(lab, &shell, &broker);
    for depth in 1..=LEVELS.len() {
        let at = |words: &[&str]| shell.done(&inside(&LEVELS[..depth], words));
        assert_eq!(at(&["systemctl", "is-system-running"]).trim(), "running", "level {depth}");
        assert_eq!(at(&["systemctl", "--failed", "--no-legend"]), "", "level {depth}");
        // Its own init, and those of the levels below.
        let names = at(&["ps", "-e", "-o", "comm="]);
        assert_eq!(names.lines().filter(|name| *name == "systemd").count(), LEVELS.len() + 1 - depth);
    }
    // It sees its own cgroups, processes and ids alone.
    assert!(within("cat /proc/self/cgroup").lines().any(|line| line == "0::/.cgrant"));
    assert_eq!(within("cat /proc/1/cgroup | grep ^0:"), "0::/init.scope\n");
    assert_eq!(within("awk '{print $1, $3}' /proc/self/uid_map"), "0 65536\n");
    // Out through all of them: for who is outside it is the host that calls.
    let out = || {
        for (to, host) in [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)] {
            let call = format!("exec 3<>/dev/tcp/{to}/{PORT}; cat <&3");
            let said = shell.done(&inside(&LEVELS, &["bash", "-c", &call]));
            assert!(said.contains(host), "{to}: {said}");
        }
    };
    out();
    // The first one's limit is what kills here, and nobody else.
    let killed = shell.output(&inside(&LEVELS, &["sh", "-c", "tail /dev/zero"]));
    assert_eq!(killed.status.code(), Some(137), "{}", text(&killed.stderr));
    lists();
    // What runs goes on without the broker, and the next one finds all of it.
    broker.kill_everything();
    assert_eq!(within("echo there"), "there\n");
    out();
    broker.start_again();
    wait_until("the broker is back", || shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    lists();
    // The innermost starts again, by itself and by its maker.
    let boot = || within("cat /proc/sys/kernel/random/boot_id");
    let before = boot();
    shell.output(&inside(&LEVELS, &["systemctl", "reboot"]));
    wait_until("it boots again", || {
        let output = shell
            .command(&inside(&LEVELS, &["cat", "/proc/sys/kernel/random/boot_id"]))
            .stderr(Stdio::null())
            .output();
        output.is_ok_and(|output| output.status.success() && text(&output.stdout) != before)
    });
    wait_until("it has booted", || {
        let words = inside(&LEVELS, &["systemctl", "is-system-running"]);
        text(&shell.output(&words).stdout).trim() == "running"
    });
    assert_eq!(within("cat /proc/1/cgroup | grep ^0:"), "0::/init.scope\n");
    out();
    shell.done(&["stop", "one", "--timeout", "60"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    // Those inside are as they were.
    shell.done(&["start", "one", "--wait"]);
    let list = || states(&shell.done(&inside(&["one"], &["cgrant", "--format", "json", "list"])));
    assert_eq!(list(), ["two stopped"]);
    // Each was stopped in order by the one around it, before that ended itself.
    let ended = |levels: &[&str], name: &str| {
        let words = inside(levels, &["cgrant", "--format", "json", "info", name]);
        let info: Value = serde_json::from_str(&shell.done(&words)).unwrap();
        info["ended"].clone()
    };
    assert_eq!(ended(&["one"], "two"), "power off");
    shell.done(&inside(&["one"], &["cgrant", "start", "two", "--wait"]));
    assert_eq!(list(), ["two running"]);
    assert_eq!(ended(&["one", "two"], "three"), "power off");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// The root of the second level wants to be asked in the broker's place, or nobody to reach the broker.
fn nobody_takes_the_brokers_place(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let archive = busybox_with_command(lab);
    for depth in 0..2 {
        shell.import_inside(&LEVELS[..depth], &archive, "small");
        shell.done(&inside(&LEVELS[..depth], &["cgrant", "launch", "small", LEVELS[depth], "--nesting"]));
    }
    let socket =
        || fs::metadata(broker.socket()).map(|found| (found.ino(), found.mode(), found.uid())).unwrap();
    let before = socket();
    let within = |script: &str| shell.output(&inside(&LEVELS[..2], &["sh", "-c", script]));
    for remounted in [false, true] {
        if remounted {
            // Whether the kernel lets it or not.
            within("busybox mount -o remount,bind,rw /run/cgrant");
        }
        for attempt in [
            "rm -f /run/cgrant/bus",
            "mv /run/cgrant/bus /run/cgrant/b",
            "touch /run/cgrant/x",
            "busybox mkdir /run/cgrant/d",
            "busybox ln -s /tmp/x /run/cgrant/y",
            "chmod 777 /run/cgrant",
            "chmod 600 /run/cgrant/bus",
        ] {
            let output = within(attempt);
            let said = text(&output.stderr);
            let reasons = ["Read-only file system", "Permission denied", "Operation not permitted"];
            let is_reason = reasons.iter().any(|reason| said.contains(reason));
            assert!(!output.status.success() && is_reason, "{attempt} ({remounted}): {said}");
        }
        assert_eq!(socket(), before);
    }
    // What it mounts over the directory it alone sees.
    assert!(within("busybox mount -t tmpfs none /run/cgrant").status.success());
    for depth in 0..2 {
        let list = inside(&LEVELS[..depth], &["cgrant", "--format", "json", "list"]);
        assert_eq!(states(&shell.done(&list)), [format!("{} running", LEVELS[depth])]);
    }
    assert_eq!(socket(), before);
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// Ann's service manager runs as long as the container around, Bob's from his login to his logout. What they have started ends in order
// before it does.
fn containers_of_users_end_with_their_service_managers(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 2 }\n");
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let archive = debian_with_command(lab);
    shell.import_inside(&[], &archive, "debian");
    shell.done(&["launch", "debian", "one", "--nesting=4", "--memory", "800M", "--wait"]);
    let said = |who: &str, script: &str| shell.done(&by(&[who], &["one"], &["sh", "-c", script]));
    said("root", "useradd --create-home ann; useradd --create-home bob; loginctl enable-linger ann");
    let manager = "export XDG_RUNTIME_DIR=/run/user/$(id -u); systemctl --user is-active";
    let runs = |who: &str, unit: &str| {
        let words = format!("{manager} {unit}");
        let output = shell.output(&by(&[who], &["one"], &["sh", "-c", &words]));
        text(&output.stdout) == "active\n"
    };
    let unit = "cgrant-container-two.service";
    let info = |who: &str| {
        let words = by(&[who], &["one"], &["cgrant", "--format", "json", "info", "two"]);
        serde_json::from_str::<Value>(&shell.done(&words)).unwrap()
    };
    wait_until("Ann's service manager runs", || runs("ann", "default.target"));
    import_by(&shell, &archive, &["ann"], &["one"]);
    let words = by(&["ann"], &["one"], &["cgrant", "launch", "debian", "two", "--wait"]);
    shell.done(&words);
    assert!(runs("ann", unit));
    // Bob logs in, launches and logs out.
    let session = "cgrant image import - --alias small --quiet && cgrant launch small two && \
                   loginctl show-session $XDG_SESSION_ID --property Name --value && systemctl --user is-active cgrant-container-two.service";
    let login = by(&["root"], &["one"], &["su", "--login", "bob", "--command", session]);
    let small = fs::File::open(busybox_with_command(lab)).unwrap();
    let output = shell.command(&login).stdin(small).output().unwrap();
    let printed = text(&output.stdout);
    assert!(printed.ends_with("bob\nactive\n"), "{printed}{}", text(&output.stderr));
    wait_until("Bob's ends after his logout", || info("bob")["state"] == "stopped");
    assert_eq!(info("bob")["ended"], "power off");
    assert_eq!(info("ann")["state"], "running");
    checker::assert_in_order(lab);
    // The one around ends. What is stopped after the service managers of users finds that Ann's has ended in order before.
    let at_the_end = "systemd-run --quiet --property=Type=oneshot --property=RemainAfterExit=yes --property=User=ann \
                      --property=Before=systemd-user-sessions.service \
                      --property=ExecStop='/bin/sh -c \"cgrant --format json list >/home/ann/left\"' /bin/true";
    said("root", at_the_end);
    // From inside, so that nobody out here tells those in it first.
    shell.output(&by(&["root"], &["one"], &["systemctl", "poweroff"]));
    wait_until("it has ended, and its grant with it", || {
        shell.state("one") == "stopped" && checker::records(lab).is_empty()
    });
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["start", "one", "--wait"]);
    let two = info("ann");
    assert!(two["state"] == "stopped" && two["ended"] == "power off", "{two}");
    assert_eq!(states(&said("ann", "cat /home/ann/left")), ["two stopped"]);
    wait_until("Ann's service manager runs again", || runs("ann", "default.target"));
    shell.done(&by(&["ann"], &["one"], &["cgrant", "start", "two", "--wait"]));
    assert!(runs("ann", unit));
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// As a service manager in a container stops what it has started there: it tells the monitor of one.
fn a_monitor_inside_stops_its_own_container_in_order(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let archive = busybox_with_command(lab);
    shell.import_inside(&[], &archive, "small");
    shell.done(&["launch", "small", "one", "--nesting", "--wait"]);
    shell.import_inside(&["one"], &archive, "small");
    let info = |name: &str| -> Value {
        let words = inside(&["one"], &["cgrant", "--format", "json", "info", name]);
        serde_json::from_str(&shell.done(&words)).unwrap()
    };
    for name in ["two", "beside"] {
        shell.done(&inside(&["one"], &["cgrant", "launch", "small", name, "--wait"]));
    }
    let (one, beside) = (shell.json(&["info", "one"]), info("beside"));
    let monitor = info("two")["monitor"].as_u64().unwrap();
    shell.done(&inside(&["one"], &["sh", "-c", &format!("kill -TERM {monitor}")]));
    shell.done(&inside(&["one"], &["cgrant", "wait", "two", "--stopped"]));
    assert_eq!(info("two")["ended"], "power off");
    // The one beside it and the one around run on, with the processes that they had.
    let after = (shell.json(&["info", "one"]), info("beside"));
    for (before, after) in [(&one, &after.0), (&beside, &after.1)] {
        assert_eq!(after["state"], "running");
        for key in ["init", "monitor"] {
            assert!(before[key].is_u64(), "{before}");
            assert_eq!(before[key], after[key], "{key}");
        }
    }
    shell.done(&inside(&["one"], &["cgrant", "start", "two", "--wait"]));
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// How many blocks of ids a container with this option has.
fn blocks(shell: &Shell<'_>, name: &str, option: &str) -> u32 {
    shell.done(&["launch", "box", name, option]);
    let map = shell.done(&["exec", name, "--", "cat", "/proc/self/uid_map"]);
    map.split_ascii_whitespace().last().unwrap().parse::<u32>().unwrap() / 65_536
}

fn a_container_has_sixteen_blocks_for_others(lab: &Lab) {
    let (broker, user) = (lab.broker(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    assert_eq!((blocks(&shell, "usual", "--nesting"), blocks(&shell, "three", "--nesting=3")), (17, 4));
    shell.done(&["delete", "--force", "usual", "three"]);
    checker::assert_empty(lab);
}

fn a_container_has_no_more_blocks_than_policy_gives(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\nquota.nesting-blocks = 5\n");
    let (broker, user) = (lab.broker(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    assert_eq!(blocks(&shell, "few", "--nesting"), 6);
    let output = shell.output(&["launch", "box", "wide", "--nesting=6"]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("nesting-blocks"), "{said}");
    shell.done(&["delete", "--force", "few"]);
    checker::assert_empty(lab);
}

crate::tests![
    three_levels_of_debian,
    nobody_takes_the_brokers_place,
    containers_of_users_end_with_their_service_managers,
    a_monitor_inside_stops_its_own_container_in_order,
    a_container_has_sixteen_blocks_for_others,
    a_container_has_no_more_blocks_than_policy_gives,
];
