//! Containers in containers on every kind of host: small systems with the command in them, each launched from inside the one
//! above by its root. What whole Debian systems do is for the integration tests.

use serde_json::Value;

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox_with_command, inside, states, text},
    network::{Network, OUTSIDE4, OUTSIDE6},
    wait_until,
};

const LEVELS: [&str; 3] = ["one", "two", "three"];

// The lists at the first levels: each shows what was launched there, and nothing else.
#[track_caller]
fn the_lists_are_right(shell: &Shell<'_>) {
    for (depth, name) in LEVELS.iter().enumerate() {
        let words = inside(&LEVELS[..depth], &["cgrant", "--format", "json", "list"]);
        assert_eq!(states(&shell.done(&words)), [format!("{name} running")]);
    }
}

// What somebody who is executed at a level sees of processes, cgroups and ids: their own alone.
#[track_caller]
fn what_is_seen_is_right(shell: &Shell<'_>, depth: usize) {
    let within = |script: &str| shell.done(&inside(&LEVELS[..depth], &["sh", "-c", script]));
    assert_eq!(within("hostname; id -u; cat /proc/1/comm"), format!("{}\n0\ninit\n", LEVELS[depth - 1]));
    let extents = within("cat /proc/self/uid_map");
    let extents: Vec<&str> = extents.split_ascii_whitespace().collect();
    assert_eq!((extents.len(), extents[0]), (3, "0"), "{extents:?}");
    if depth == LEVELS.len() {
        assert_eq!(extents[2], "65536");
    }
    for line in within("cat /proc/self/cgroup; cat /proc/1/cgroup").lines() {
        let path = line.rsplit(':').next().unwrap();
        assert!(["/", "/.cgrant", "/init"].contains(&path), "level {depth}: {line}");
    }
    // Nobody there can put another socket in the place of the broker's.
    if depth < LEVELS.len() {
        let mounts = within("cat /proc/self/mounts");
        let sockets = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/run/cgrant")).unwrap();
        let options: Vec<&str> = sockets.split(' ').nth(3).unwrap().split(',').collect();
        assert!(
            ["ro", "nosuid", "nodev", "noexec"].iter().all(|option| options.contains(option)),
            "{sockets}"
        );
    }
    // Nobody of the levels above is among the processes; those of the levels below are.
    let inits = within("ps").lines().filter(|line| line.trim_end().ends_with("init")).count();
    assert_eq!(inits, LEVELS.len() + 1 - depth);
}

fn three_levels_of_small_systems(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    let archive = busybox_with_command(lab);
    for depth in 0..LEVELS.len() {
        shell.import_inside(&LEVELS[..depth], &archive, "small");
        let options: &[&str] = match depth {
            0 => &["--nesting", "--link", "--memory", "400M"],
            1 => &["--nesting", "--link"],
            _ => &["--link"],
        };
        let words = [&["cgrant", "launch", "small", LEVELS[depth]], options].concat();
        shell.done(&inside(&LEVELS[..depth], &words));
    }
    checker::assert_in_order(lab);
    the_lists_are_right(&shell);
    for depth in 1..=LEVELS.len() {
        what_is_seen_is_right(&shell, depth);
    }
    let out = || {
        for to in [OUTSIDE4, OUTSIDE6] {
            let ping = inside(&LEVELS, &["ping", "-c", "1", "-W", "1", to]);
            wait_until(&format!("{to} answers"), || shell.output(&ping).status.success());
        }
    };
    out();
    // What those inside take is nobody's to measure from outside, and is not told as nothing.
    let disk = shell.json(&["usage", "--disk"]);
    let one = disk["rows"].as_array().unwrap().iter().find(|row| row["name"] == "one").unwrap();
    assert!(one["unknown"].is_string() && one["bytes"].is_null(), "{one}");
    // The first one's limit is what kills in the innermost one, and only whoever takes too much.
    let killed = shell.output(&inside(&LEVELS, &["tail", "/dev/zero"]));
    assert_eq!(killed.status.code(), Some(137), "{}", text(&killed.stderr));
    the_lists_are_right(&shell);
    // What runs goes on without the broker, and the next one finds all of it.
    broker.kill_everything();
    assert_eq!(shell.done(&inside(&LEVELS, &["echo", "there"])), "there\n");
    out();
    broker.start_again();
    wait_until("the broker is back", || shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    the_lists_are_right(&shell);
    // The innermost one starts again, by itself.
    shell.output(&inside(&LEVELS, &["reboot"]));
    let info = ["cgrant", "--format", "json", "info", "three"];
    wait_until("it has rebooted", || {
        let said = shell.output(&inside(&LEVELS[..2], &info)).stdout;
        serde_json::from_slice::<Value>(&said).is_ok_and(|info| info["reboots"] == 1)
    });
    wait_until("it runs", || shell.output(&inside(&LEVELS, &["true"])).status.success());
    what_is_seen_is_right(&shell, LEVELS.len());
    out();
    // With the first one all end, each in order though its init knows of nothing, and are as they were when it starts again.
    shell.done(&["stop", "one", "--timeout", "60"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["start", "one"]);
    let list = inside(&LEVELS[..1], &["cgrant", "--format", "json", "list"]);
    assert_eq!(states(&shell.done(&list)), ["two stopped"]);
    let ended = |depth: usize| -> String {
        let info = ["cgrant", "--format", "json", "info", LEVELS[depth]];
        let info: Value = serde_json::from_str(&shell.done(&inside(&LEVELS[..depth], &info))).unwrap();
        info["ended"].to_string()
    };
    assert_eq!(ended(1), "\"power off\"");
    shell.done(&inside(&LEVELS[..1], &["cgrant", "start", "two"]));
    assert_eq!(states(&shell.done(&list)), ["two running"]);
    assert_eq!(ended(2), "\"power off\"");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![three_levels_of_small_systems];
