//! CGManager's interface by its own command and by the house's, and switched off: on every kind of host.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Output},
};

use crate::{
    arguments,
    common::{
        Lab, User,
        cgmanager::{Jail, Manager, Peer},
    },
};

/// Runs a command of a user's in a cgroup; what it says on both outputs, and its exit code.
pub fn run_in(jail: &Jail, command: &Command) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = jail.command(command).output().unwrap();
    (String::from_utf8_lossy(&[stdout, stderr].concat()).trim().to_owned(), status.code())
}

/// Mode and owner.
pub fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.uid())
}

/// A verb of a command in the name of a user in a cgroup: what it says, and its exit code.
fn command(manager: &Manager, lab: &Lab, user: &User, jail: &Jail, words: &[&str]) -> (String, Option<i32>) {
    let mut command = user.command(lab.programs.join(words[0]));
    command.args(&words[1..]).env("CGRANT_CGMANAGER_SOCKET", &manager.socket);
    run_in(jail, &command)
}

fn the_command_cgm_says_what_cgmanagers_said(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let sleeper = user.sleeper();
    jail.put(sleeper.pid);
    let pid = sleeper.pid.to_string();
    let cgm = |line: &str| {
        let line = line.replace("PID", &pid);
        let words: Vec<&str> =
            std::iter::once("cgm").chain(line.split(' ')).map(|w| w.trim_matches('"')).collect();
        command(&manager, lab, &user, &jail, &words)
    };
    let said = |text: &str| (text.to_owned(), Some(0));
    let failed =
        |function: &str, text: &str| (format!("call to cgmanager_{function}_sync failed: {text}"), Some(1));
    let invalid = |function: &str| failed(function, "invalid request");
    assert_eq!(cgm("ping"), said(""));
    assert_eq!(cgm("apiversion"), said("10"));
    assert_eq!(cgm("--version"), said("0.42"));
    assert_eq!(cgm("create memory x"), said(""));
    assert_eq!(cgm("create memory x"), said("Path existed"));
    assert_eq!(cgm("create memory .."), invalid("create"));
    assert_eq!(cgm("chmod memory x 0700"), said(""));
    assert_eq!(cgm("chmodfile memory x tasks 0600"), said(""));
    let tasks = if lab.host.is_v1("memory") { "x/tasks" } else { "x/cgroup.procs" };
    assert_eq!(owner(&jail.dir.join(tasks)).0, 0o600);
    assert_eq!(cgm("setvalue memory x memory.limit_in_bytes 409600"), said(""));
    assert_eq!(cgm("getvalue memory x memory.limit_in_bytes"), said("409600"));
    assert_eq!(cgm("getvalue memory x none"), invalid("get_value"));
    assert_eq!(cgm("setvalue memory x tasks 1").1, Some(1));
    assert_eq!(cgm("movepid memory x PID"), said(""));
    assert_eq!(cgm("gettasks memory x"), said(&pid));
    assert_eq!(cgm("gettasksrecursive memory x"), said(&pid));
    assert_eq!(cgm("getpidcgroup memory PID"), said("x"));
    assert_eq!(cgm("getpidcgroupabs memory PID"), said(&format!("{}/x", jail.path)));
    assert_eq!(cgm("movepid memory /x PID"), invalid("move_pid_main"));
    assert_eq!(cgm("remove memory x"), invalid("remove"));
    assert_eq!(cgm(&format!("movepidabs memory {} PID", jail.path)), said(""));
    assert_eq!(cgm("listchildren memory"), said("x"));
    let keys = cgm("listkeys memory x").0;
    assert!(keys.contains(&format!("tasks {0} {0} 100600", user.uid)), "{keys}");
    assert!(cgm("listcontrollers").0.split([',', '\n']).any(|name| name == "memory"));
    assert_eq!(cgm("chown memory x 0 0"), invalid("chown"));
    assert_eq!(cgm("chown memory x -1 0"), ("Bad uid or gid".to_owned(), Some(1)));
    assert_eq!(cgm("remove memory x 0"), said(""));
    assert_eq!(cgm("remove memory x"), said("Path did not exist"));
    let (usage, code) = cgm("nothing");
    assert!(usage.starts_with("Usage:") && code == Some(1), "{usage}");
    assert_eq!((cgm("--help").0, cgm("--help").1), (usage, Some(0)));
    drop(manager.broker);
    let mut gone = user.command(lab.programs.join("cgm"));
    let (said, code) = run_in(&jail, gone.arg("ping").env("CGRANT_CGMANAGER_SOCKET", &manager.socket));
    let path = manager.socket.display();
    let told = "Failed opening dbus connection: org.freedesktop.DBus.Error.FileNotFound: Failed to connect to socket";
    assert_eq!((said, code), (format!("{told} {path}: No such file or directory"), Some(1)));
}

fn cgroups_for_people(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let sleeper = user.sleeper();
    jail.put(sleeper.pid);
    let pid = sleeper.pid.to_string();
    let verb = |line: &str| {
        let line = line.replace("PID", &pid);
        let words: Vec<&str> = ["cgrant", "cgroup"].into_iter().chain(line.split(' ')).collect();
        command(&manager, lab, &user, &jail, &words)
    };
    let said = |text: &str| (text.to_owned(), Some(0));
    assert_eq!(verb("create x/y -c memory"), said(""));
    let is_v1 = lab.host.is_v1("memory");
    let (key, value) = if is_v1 { ("memory.swappiness", "7") } else { ("memory.high", "8388608") };
    assert_eq!(verb(&format!("set x memory.limit_in_bytes=16M {key}={value}")), said(""));
    let (values, _) = verb(&format!("get x memory.limit_in_bytes memory:{key} --format json"));
    let expected = format!(
        r#"[{{"key":"memory.limit_in_bytes","value":"16777216"}},{{"key":"{key}","value":"{value}"}}]"#
    );
    assert_eq!(values, expected);
    assert_eq!(verb("list -c memory"), said("CGROUP  CONTROLLERS\nx       memory"));
    let (all, _) = verb("list --format json");
    let expected = if is_v1 { r#"{"cgroup":"x","controllers":["memory"]}"# } else { r#"{"cgroup":"x","# };
    assert!(all.contains(expected), "{all}");
    assert_eq!(verb("attach x/y PID -c memory"), said(""));
    assert_eq!(verb("ps x -r -c memory"), said(&format!("PID\n{pid}")));
    let (shown, _) = verb("show PID -c memory --format json");
    assert_eq!(shown, format!(r#"[{{"cgroup":"{}/x/y","controllers":"memory"}}]"#, jail.path));
    assert_eq!(verb("chmod x/y 700 -c memory"), said(""));
    let (files, _) = verb("files x/y -c memory");
    assert!(files.lines().any(|line| line.starts_with("tasks ") && line.ends_with("644")), "{files}");
    let (told, code) = verb("remove x --recursive -c memory");
    assert!(
        told.starts_with("cgrant: cannot remove the cgroup \"x\": invalid request; ") && code == Some(1),
        "{told}"
    );
    assert_eq!(verb("attach / PID -c memory").1, Some(1));
    assert_eq!(verb(&format!("attach {} PID -c memory --absolute", jail.path)), said(""));
    assert_eq!(verb("remove x --recursive -c memory"), said(""));
    let (told, code) = verb("remove x -c memory");
    assert_eq!(
        (told.as_str(), code),
        ("cgrant: cannot remove the cgroup \"x\": there is no such cgroup", Some(1))
    );
    assert!(verb("controllers").0.split([',', '\n']).any(|name| name == "memory"));
    assert_eq!(verb("get x tasks").1, Some(2), "of which controller?");
    let mut gone = user.command(lab.programs.join("cgrant"));
    gone.args(["cgroup", "list"]).env("CGRANT_CGMANAGER_SOCKET", lab.scratch.join("none"));
    let (told, code) = run_in(&jail, &gone);
    assert!(told.contains("start cgrantd with --cgmanager-socket") && code == Some(3), "{told}");
}

fn the_strict_policy_switches_it_off(lab: &Lab) {
    lab.write_policy(include_str!("../../policy/strict.toml"));
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let (process, stream) = user.connect(&manager.socket);
    jail.put(process.pid);
    assert!(Peer::try_over(stream, Some(process)).is_err());
    assert!(manager.broker.log().contains("policy does not let this account use CGManager's interface"));
    let root = manager.client(&lab.root());
    jail.put(root.pid());
    assert_eq!(root.get::<i32>("Create", arguments!["memory", "x"]), -1, "root is not meant");
}

crate::tests![
    cgroups_for_people,
    the_command_cgm_says_what_cgmanagers_said,
    the_strict_policy_switches_it_off
];
