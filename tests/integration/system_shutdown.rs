//! What an account can do to the end of everything that `cgrantd --shutdown` brings: to delay it until its time is over, and no more; and
//! nothing to the end of what others run. That it is an end in order is tried on every kind of host (tests/hosts/shutdown.rs).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    Broker, Client, Grant, Lab, Options, Process, User, checker,
    containers::{Shell, busybox, text},
    harness, wait_until,
};

/// Few descriptors, as systemd gives few to a service: the number of processes must not depend on them.
const DESCRIPTORS: &str = "--nofile=128";
/// More processes than that.
const MANY: usize = 200;
/// An init that knows no end.
const DEAF: &str = "#!/bin/sh\ntrap 'echo no' TERM PWR USR1 USR2\necho ready\nwhile :; do sleep 1; done\n";

fn shutdown(lab: &Lab, more: &[&str]) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(DESCRIPTORS).arg(lab.programs.join("cgrantd"));
    command.args(["--shutdown", "--instance", &lab.instance]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn ends(mut child: Child) -> Output {
    wait_until("everything has ended", || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

/// A shell of the user's in a grant of its own, that does this once it is there.
fn in_a_grant(user: &User, broker: &Broker, name: &str, script: &str) -> (Client, Grant, Process) {
    let go = user.home.join(format!("go-{name}"));
    let waits = format!("until [ -e {} ]; do sleep 0.1; done; {script}", go.display());
    let client = user.client(broker.socket());
    let grant = client.create(name, Options::new().lifetime("persistent")).unwrap();
    let process = user.spawn("sh", &["-c", &waits]);
    client.attach(&grant.path, &process.pidfd, Options::new()).unwrap();
    fs::write(go, "").unwrap();
    (client, grant, process)
}

fn what_does_not_end_in_time_is_killed_and_named(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let tree = busybox(lab);
    let init = tree.join("sbin/init");
    fs::remove_file(&init).unwrap();
    fs::write(&init, DEAF).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    shell.import(lab, &tree, "box");
    shell.done(&["launch", "box", "deaf"]);
    wait_until("it is up", || shell.done(&["logs", "--console", "deaf"]).contains("ready"));
    // Each process of this one has ended before it is told, and another one is there.
    let chain = lab.scratch.join("chain");
    fs::write(&chain, "#!/bin/sh\ntrap '' TERM\n: >chain\n\"$0\" &\n").unwrap();
    fs::set_permissions(&chain, fs::Permissions::from_mode(0o755)).unwrap();
    let (client, grant, _first) = in_a_grant(&user, &broker, "chain", &format!("exec {}", chain.display()));
    wait_until("it has begun", || user.home.join("chain").exists());
    let output = ends(shutdown(lab, &["--timeout", "2"]).spawn().unwrap());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("cgrantd: killed what had not ended after 2 s: grant "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for name in ["chain", "deaf"] {
        assert!(said.contains(&format!("grant {name} of uid {}", user.uid)), "{said}");
    }
    assert_eq!(shell.json(&["info", "deaf"])["ended"], "signal 9");
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
    shell.done(&["delete", "deaf"]);
}

fn who_runs_much_keeps_nobody_from_being_told(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    // None of them takes notice of SIGTERM but one.
    let many = format!(
        "sleep 1000 & echo $! >witness.new; mv witness.new witness; trap '' TERM; \
         for i in $(seq {MANY}); do sleep 1000 & done; echo >all; wait; wait; sleep 1000"
    );
    let (client, grant, _shell) = in_a_grant(&other, &broker, "many", &many);
    wait_until("all are there", || other.home.join("all").exists());
    let witness: u32 = fs::read_to_string(other.home.join("witness")).unwrap().trim().parse().unwrap();
    let running = || harness::descendants().contains(&witness);
    assert!(running());
    let ending = shutdown(lab, &["--timeout", "600"]).spawn().unwrap();
    wait_until("they are told", || !running());
    // What is started meanwhile is told too.
    shell.done(&["create", "box", "web"]);
    shell.done(&["start", "web"]);
    wait_until("the container of somebody else ends", || {
        shell.json(&["info", "web"])["ended"] == "power off"
    });
    client.release(&grant.path, true).unwrap();
    let output = ends(ending);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    checker::assert_empty(lab);
    shell.done(&["delete", "web"]);
}

fn who_stands_still_ends_in_order_too(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "web"]);
    wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
    let account = checker::bases(&lab.host, &lab.instance)["cgroup2"].join(format!("u{}", user.uid));
    let monitors = fs::read_to_string(account.join("web/monitor/cgroup.procs")).unwrap();
    shell.done(&["pause", "web"]);
    for pid in monitors.lines() {
        kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::STOP).unwrap();
    }
    let output = ends(shutdown(lab, &[]).spawn().unwrap());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(shell.json(&["info", "web"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["delete", "web"]);
}

crate::tests![
    what_does_not_end_in_time_is_killed_and_named,
    who_runs_much_keeps_nobody_from_being_told,
    who_stands_still_ends_in_order_too,
];
