//! The command `cgrant` as an ordinary user: every verb, exit codes, formats, and a command that runs in a grant.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Output,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::common::{Broker, Lab, Network, Process, User, checker, harness::descendants_of, wait_until};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn done(user: &User, lab: &Lab, arguments: &[&str]) -> String {
    let output = user.cgrant(&lab.runtime_dir().join("public/bus"), arguments);
    assert_eq!(output.status.code(), Some(0), "cgrant {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(user: &User, lab: &Lab, arguments: &[&str]) -> Value {
    let words = [&["--format", "json"], arguments].concat();
    let printed = done(user, lab, &words);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

#[track_caller]
fn fails(user: &User, lab: &Lab, arguments: &[&str], code: i32) -> String {
    let output = user.cgrant(&lab.runtime_dir().join("public/bus"), arguments);
    assert_eq!(output.status.code(), Some(code), "cgrant {arguments:?}: {}", text(&output));
    assert!(output.stdout.is_empty(), "what failed printed a result: {}", text(&output));
    String::from_utf8(output.stderr).unwrap()
}

fn every_verb_on_a_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user_in(&[31_000, 31_001]);
    done(
        &user,
        lab,
        &["grant", "create", "job", "--memory", "64M", "--pids", "40", "--limit", "cpu.max=50%"],
    );
    checker::assert_in_order(lab);
    let list = json(&user, lab, &["grant", "list"]);
    assert!(list.to_string().contains("\"job\""), "{list}");
    assert!(done(&user, lab, &["grant", "list"]).contains("job"));
    let shown = json(&user, lab, &["grant", "show", "job"]);
    let made = shown["created"].as_u64().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    assert!((now - 600_000_000..=now).contains(&u128::from(made)), "{made} are no microseconds since 1970");
    let show = shown.to_string();
    assert!(show.contains("persistent") && show.contains("67108864"), "{show}");
    let show = done(&user, lab, &["grant", "show", "job"]);
    assert!(show.lines().any(|line| line.starts_with("created ") && line.ends_with(" UTC")), "{show}");
    done(&user, lab, &["grant", "set", "job", "memory.max=96M", "pids.max=30"]);
    let pids = checker::place(lab, user.uid, "job", "pids");
    assert_eq!(fs::read_to_string(pids.join("pids.max")).unwrap().trim(), "30");
    let values = json(&user, lab, &["grant", "get", "job", "pids.max", "memory.max"]).to_string();
    assert!(values.contains("30") && values.contains("100663296"), "{values}");
    let mut sleeper = user.sleeper();
    done(&user, lab, &["grant", "attach", "job", &sleeper.pid.to_string()]);
    assert_eq!(checker::members(&pids), [sleeper.pid].into());
    assert!(json(&user, lab, &["grant", "ps", "job"]).to_string().contains(&sleeper.pid.to_string()));
    assert!(json(&user, lab, &["grant", "stat", "job"]).to_string().contains("pids"));
    done(&user, lab, &["grant", "freeze", "job"]);
    let cgroup2 = checker::places(lab, user.uid, "job")["cgroup2"].clone();
    let frozen = || fs::read_to_string(cgroup2.join("payload/cgroup.events")).unwrap().contains("frozen 1");
    assert!(frozen());
    done(&user, lab, &["grant", "thaw", "job"]);
    assert!(!frozen());
    done(&user, lab, &["grant", "cgroup", "create", "job", "a"]);
    done(&user, lab, &["grant", "cgroup", "create", "job", "a/b"]);
    assert!(done(&user, lab, &["grant", "cgroup", "list", "job"]).contains("a/b"));
    done(&user, lab, &["grant", "cgroup", "remove", "job", "a/b"]);
    let said = fails(&user, lab, &["grant", "release", "job"], 1);
    assert!(said.contains("processes"), "{said}");
    done(&user, lab, &["grant", "kill", "job"]);
    assert_eq!(sleeper.wait_signal(), Some(9));
    done(&user, lab, &["grant", "release", "job"]);
    checker::assert_empty(lab);
    assert!(json(&user, lab, &["range", "list"]).to_string().contains("job"));
    done(&user, lab, &["range", "forget", "job"]);
    assert!(json(&user, lab, &["usage"]).to_string().contains("ids"));
    drop(broker);
}

fn a_grant_held_by_a_process(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let mut holder = user.sleeper();
    done(&user, lab, &["grant", "create", "held", "--holder", &holder.pid.to_string(), "--no-ids"]);
    assert!(done(&user, lab, &["grant", "list"]).contains("held"));
    holder.kill();
    broker.settle();
    checker::assert_empty(lab);
}

fn refusals_say_why_and_what_to_do(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"one-only\"\n[rule.quota]\ngrants = 1\n");
    let broker = lab.broker();
    let user = lab.user();
    done(&user, lab, &["grant", "create", "first"]);
    let said = fails(&user, lab, &["grant", "create", "second"], 1);
    assert!(said.contains("one-only") && said.contains('1'), "{said}");
    let said = fails(&user, lab, &["grant", "create", "Bad.Name"], 1);
    assert!(said.contains("name"), "{said}");
    fails(&user, lab, &["grant", "set", "first", "memory.max=much"], 1);
    fails(&user, lab, &["grant", "show", "none"], 1);
    // A process that is not there can't even be named to the broker.
    let said = fails(&user, lab, &["grant", "attach", "first", "2147483632"], 4);
    assert!(said.contains("2147483632"), "{said}");
    fails(&user, lab, &["grant", "set", "first", "nonsense"], 2);
    fails(&user, lab, &["grant", "nonsense"], 2);
    fails(&user, lab, &["--socket", "/nonexistent/socket", "grant", "list"], 3);
    done(&user, lab, &["grant", "release", "first"]);
    drop(broker);
    fails(&user, lab, &["grant", "list"], 3);
}

fn run(lab: &Lab, user: &User, arguments: &[&str]) -> Output {
    user.cgrant(&lab.runtime_dir().join("public/bus"), &[&["run"], arguments].concat())
}

fn run_puts_a_command_into_namespaces_of_its_own(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user_in(&[31_000]);
    let output = run(
        lab,
        &user,
        &[
            "--hostname",
            "box",
            "--pids",
            "50",
            "--",
            "sh",
            "-c",
            "id -u; id -g; echo $$; hostname; cat /proc/self/uid_map /proc/self/setgroups",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..4], ["0", "0", "1", "box"], "{printed}");
    let map: Vec<&str> = lines[4].split_whitespace().collect();
    assert_eq!((map[0], map[2]), ("0", "65536"), "{printed}");
    assert_eq!(lines[5], "allow");
    // Every kind of namespace is another one than the caller's.
    let output = run(
        lab,
        &user,
        &["--", "sh", "-c", "for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done"],
    );
    let inside = String::from_utf8(output.stdout).unwrap();
    assert_eq!(inside.lines().count(), 7, "{inside}");
    for (kind, line) in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"].iter().zip(inside.lines()) {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(ours.to_str().unwrap(), line, "{kind}");
    }
    broker.settle();
    checker::assert_empty(lab);
}

fn run_passes_status_streams_and_environment(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    for (arguments, code) in [
        (vec!["--", "true"], 0),
        (vec!["--", "sh", "-c", "exit 7"], 7),
        (vec!["--", "sh", "-c", "kill -9 $$; exit 3"], 3),
        (vec!["--init", "--", "sh", "-c", "kill -9 $$"], 137),
        (vec!["--", "no-such-command"], 127),
        (vec!["--", "/proc"], 126),
        (vec!["--pids", "nonsense", "--", "true"], 1),
    ] {
        let output = run(lab, &user, &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
    }
    let output =
        run(lab, &user, &["--env", "COLOUR=green", "--", "sh", "-c", "echo out; echo err >&2; echo $COLOUR"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\ngreen\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("err"));
    broker.settle();
    checker::assert_empty(lab);
}

fn run_holds_its_command_to_limits(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    // tail keeps all of its input's last line in memory.
    let eat = "head -c 100m /dev/zero | tail | wc -c";
    let output = run(lab, &user, &["--memory", "32M", "-l", "memory.swap.max=0", "--", "sh", "-c", eat]);
    assert_ne!(String::from_utf8_lossy(&output.stdout).trim(), "104857600", "100 MB in 32");
    let output = run(lab, &user, &["--memory", "512M", "--", "sh", "-c", eat]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "104857600", "{}", text(&output));
    let bomb = "n=0; while [ $n -lt 40 ]; do sleep 20 & n=$((n+1)); done 2>/dev/null; echo all";
    let output = run(lab, &user, &["--pids", "15", "--", "sh", "-c", bomb]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("all"), "40 processes where 15 may be");
    broker.settle();
    checker::assert_empty(lab);
}

fn run_in_a_root_directory_of_the_users_own(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    // The root belongs to the user; its home is closed to everybody else, the root's place is not.
    let root = lab.scratch.join("root");
    for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "id", "ls", "cat", "hostname", "sleep"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let path = root.to_str().unwrap();
    let output = run(lab, &user, &["--root", path, "--", "/bin/sh", "-c", "ls /; id -u"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("bin\n") && !printed.contains("home") && printed.ends_with("0\n"), "{printed}");
    broker.settle();
    checker::assert_empty(lab);
}

fn a_running_container_survives_the_brokers_death_and_ends_with_its_command(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let mut command = user.command(lab.programs.join("cgrant"));
    command.args(["run", "--name", "long", "--", "sleep", "1000"]);
    command.env("CGRANT_SOCKET", broker.socket()).stdout(std::process::Stdio::null());
    let mut client = Process::of(&mut command);
    let cgroup2 = || {
        checker::grants_in_kernel(lab)
            .get(&(user.uid, "long".to_owned()))
            .and_then(|p| Some(p.get("cgroup2")?.join("payload")))
    };
    let sleeps = || {
        cgroup2().is_some_and(|payload| {
            checker::members(&payload).iter().any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
            })
        })
    };
    wait_until("the command runs", sleeps);
    broker.kill_everything();
    assert!(sleeps(), "the command died with the broker");
    broker.start_again();
    assert!(sleeps());
    checker::assert_in_order(lab);
    done(&user, lab, &["grant", "kill", "long"]);
    assert_eq!(client.wait_signal(), None, "cgrant run ends by itself");
    broker.settle();
    checker::assert_empty(lab);
}

fn run_killed_hard_leaves_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let mut command = user.command(lab.programs.join("cgrant"));
    command.args(["run", "--name", "victim", "--", "sleep", "1000"]).env("CGRANT_SOCKET", broker.socket());
    command.stdout(std::process::Stdio::null());
    let mut client = Process::of(&mut command);
    wait_until("the command runs", || {
        checker::grants_in_kernel(lab)
            .get(&(user.uid, "victim".to_owned()))
            .and_then(|places| places.get("cgroup2"))
            .is_some_and(|place| !checker::members(&place.join("payload")).is_empty())
    });
    client.kill();
    broker.settle();
    checker::assert_empty(lab);
}

// What the engine does for `cgrant run` up to and including the attach of its stage.
fn steps_to_the_attach(lab: &Lab, broker: &Broker, user: &User) -> usize {
    broker.order_fault("count");
    assert_eq!(run(lab, user, &["--", "true"]).status.code(), Some(0));
    let steps = broker.fault_steps();
    1 + steps.iter().position(|step| step == "attach: allowed").expect("no stage was attached")
}

// A client whose stage is about to be attached, for as long as the order of the fault stands.
struct Held {
    client: Process,
    output: PathBuf,
}

impl Held {
    fn new(lab: &Lab, broker: &Broker, user: &User) -> Self {
        let steps = steps_to_the_attach(lab, broker, user);
        broker.order_fault(&format!("wait:{steps}"));
        let output = lab.scratch.join("output");
        let mut command = user.command(lab.programs.join("cgrant"));
        command.args(["run", "--name", "held", "--pids", "50", "--", "echo", "ran"]);
        command.env("CGRANT_SOCKET", broker.socket()).stdout(fs::File::create(&output).unwrap());
        let client = Process::of(&mut command);
        broker.fault_waits();
        Self { client, output }
    }

    // The launch stage, once it is the only process of the client's and has the container's tree ready.
    fn ready_stage(&self) -> u32 {
        let mut stage = None;
        wait_until("the stage has prepared the container", || {
            let ready = |pid: u32| {
                let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
                // The last that is mounted; it belongs to the range's root.
                mounts.lines().any(|line| line.contains(" /tmp ") && line.contains(",uid="))
            };
            let processes = descendants_of(self.client.pid);
            stage = processes.first().copied().filter(|pid| processes.len() == 1 && ready(*pid));
            stage.is_some()
        });
        stage.unwrap()
    }
}

fn run_starts_nothing_before_it_is_in_its_cgroup(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let mut held = Held::new(lab, &broker, &user);
    let stage = held.ready_stage();
    // All that can be done without the cgroup is done. What is left is the first process, and it is not made.
    let namespace = |pid: u32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let own = std::process::id();
    assert_ne!(namespace(stage, "mnt"), namespace(own, "mnt"));
    assert_eq!(namespace(stage, "pid_for_children"), namespace(own, "pid"));
    assert_eq!(namespace(stage, "cgroup"), namespace(own, "cgroup"));
    for (hierarchy, place) in checker::places(lab, user.uid, "held") {
        assert!(checker::members(&place).is_empty(), "something is in {hierarchy} already");
    }
    assert_eq!(fs::read_to_string(&held.output).unwrap(), "");
    assert!(held.client.is_alive());
    broker.fault_steps();
    assert_eq!(held.client.wait_signal(), None);
    assert_eq!(fs::read_to_string(&held.output).unwrap(), "ran\n");
    broker.settle();
    checker::assert_empty(lab);
}

fn run_killed_before_it_is_in_its_cgroup_leaves_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let mut held = Held::new(lab, &broker, &user);
    held.client.kill();
    broker.fault_steps();
    broker.settle();
    checker::assert_empty(lab);
    assert_eq!(fs::read_to_string(&held.output).unwrap(), "");
}

fn run_ends_if_it_is_not_let_into_its_cgroup(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let steps = steps_to_the_attach(lab, &broker, &user);
    broker.order_fault(&format!("fail:{steps}"));
    let output = run(lab, &user, &["--", "echo", "ran"]);
    assert!(broker.fault_done());
    broker.fault_steps();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{}", text(&output));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("cgrant: cannot make a grant for the command: injected failure"), "{said}");
    broker.settle();
    checker::assert_empty(lab);
    // What went wrong in the stage comes before what the broker says of a stage that has ended.
    let root = lab.scratch.join("bare");
    fs::create_dir(&root).unwrap();
    for (root, why) in [("/no/such/root", "cannot open the root"), (root.to_str().unwrap(), "cannot mount")] {
        let output = run(lab, &user, &["--root", root, "--", "echo", "ran"]);
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(4), &b""[..]),
            "{}",
            text(&output)
        );
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with(&format!("cgrant: cannot run the command: {why}")), "{said}");
        broker.settle();
        checker::assert_empty(lab);
    }
}

fn a_command_gets_a_tap(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let cgrant = |arguments: &[&str]| network.cgrant(&user, &broker, arguments);
    assert_eq!(cgrant(&["grant", "create", "vm", "--no-ids"]).status.code(), Some(0));
    let tap = |command: &[&str]| {
        let output = cgrant(&[&["link", "tap", "vm", "--as", "lan0", "--"], command].concat());
        // The command's end is the descriptor's, and that is the link's.
        wait_until("the link is gone", || {
            let links = cgrant(&["link", "list", "vm", "--format", "json"]);
            assert_eq!(links.status.code(), Some(0), "{}", text(&links));
            links.stdout == b"[]\n"
        });
        output
    };
    let script = "readlink /proc/self/fd/{fd}; grep ^iff: /proc/self/fdinfo/$CGRANT_TAP_FD
        echo {fd} $CGRANT_TAP_FD; echo {mac} $CGRANT_TAP_MAC; readlink /proc/self/fd/* | grep -c tun; exit 9";
    let output = tap(&["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(9), "{}", text(&output));
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "/dev/net/tun");
    assert!(lines[1].starts_with("iff:\t"), "no device is behind it: {printed}");
    for line in &lines[2..4] {
        let (argument, variable) = line.split_once(' ').unwrap();
        assert!(!argument.is_empty() && argument == variable, "{printed}");
    }
    assert_eq!(lines[3].split(':').count(), 11, "two MAC addresses: {printed}");
    assert_eq!(lines[4], "1", "one descriptor of it: {printed}");
    for (program, code) in [("no-such-command", 127), ("/proc", 126)] {
        let output = tap(&[program]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains("cannot execute"), "{}", text(&output));
    }
    assert_eq!(cgrant(&["grant", "release", "vm"]).status.code(), Some(0));
    network.assert_as_before();
}

fn doctor_says_what_this_machine_can_do(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let output = user.cgrant(broker.socket(), &["doctor", "--format", "json"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = findings.as_array().unwrap();
    assert!(findings.len() > 5, "{findings:?}");
    let failing = findings.iter().filter(|f| f["verdict"] == "fail").count();
    assert_eq!(output.status.code(), Some(i32::from(failing > 0)), "{findings:?}");
    assert!(done_or_one(&user.cgrant(broker.socket(), &["doctor"])));
}

fn done_or_one(output: &Output) -> bool {
    matches!(output.status.code(), Some(0 | 1)) && !output.stdout.is_empty()
}

fn help_has_an_example_for_every_verb(lab: &Lab) {
    let user = lab.user();
    let nowhere = PathBuf::from("/nonexistent");
    for verb in ["create", "list", "show", "set", "attach", "freeze", "thaw", "kill", "release"] {
        let output = user.cgrant(&nowhere, &["grant", verb, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output).contains(&format!("cgrant grant {verb}")), "{verb}: {}", text(&output));
    }
    for verb in [&["run", "--help"] as &[&str], &["doctor", "--help"], &["--help"]] {
        assert!(text(&user.cgrant(&nowhere, verb)).contains("Example"), "{verb:?}");
    }
}

crate::tests![
    every_verb_on_a_grant,
    a_grant_held_by_a_process,
    refusals_say_why_and_what_to_do,
    run_puts_a_command_into_namespaces_of_its_own,
    run_passes_status_streams_and_environment,
    run_holds_its_command_to_limits,
    run_in_a_root_directory_of_the_users_own,
    a_running_container_survives_the_brokers_death_and_ends_with_its_command,
    run_killed_hard_leaves_nothing,
    run_starts_nothing_before_it_is_in_its_cgroup,
    run_killed_before_it_is_in_its_cgroup_leaves_nothing,
    run_ends_if_it_is_not_let_into_its_cgroup,
    a_command_gets_a_tap,
    doctor_says_what_this_machine_can_do,
    help_has_an_example_for_every_verb,
];
