//! The verbs of containers beyond a plain life: other names, copies, logs, events; and what is said when something can't be done.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use rustix::process::{WaitOptions, wait};
use serde_json::Value;

use crate::common::{
    Broker, Lab, Network, User, checker,
    containers::{Shell, busybox, debian, text},
    wait_until,
};

// Containers with busybox, which do not run.
fn made<'a>(lab: &Lab, user: &'a User, broker: &Broker, names: &[&str]) -> Shell<'a> {
    let shell = Shell::new(lab, user, broker);
    shell.import(lab, &busybox(lab), "box");
    for name in names {
        shell.done(&["create", "box", name]);
    }
    shell
}

// Words that make an init which never says that it is ready, and ends by SIGTERM.
const NEVER_READY: [&str; 3] =
    ["--init=/bin/sh", "--init=-c", "--init=trap 'exit 0' TERM; while :; do sleep 0.1; done"];

fn upper(user: &User, name: &str) -> PathBuf {
    user.home.join(".local/share/cgrant/containers").join(name).join("upper")
}

fn ranges(shell: &Shell<'_>) -> Vec<(String, u64)> {
    let ranges = shell.json(&["range", "list"]);
    let range = |range: &Value| (range["name"].as_str().unwrap().to_owned(), range["uid"].as_u64().unwrap());
    let mut all: Vec<_> = ranges.as_array().unwrap().iter().map(range).collect();
    all.retain(|(name, _)| name != "cgrant-images");
    all
}

fn a_container_gets_another_name_and_keeps_its_files(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["old", "other"]);
    shell.done(&["start", "old"]);
    shell.done(&["exec", "old", "--", "touch", "/kept"]);
    shell.fails(&["rename", "old", "new"], 1, "it is running; stop it first");
    shell.done(&["stop", "old"]);
    shell.fails(&["rename", "none", "new"], 1, "there is no container `none`");
    shell.fails(&["rename", "old", "other"], 1, "there is a container `other` already");
    shell.fails(&["rename", "old", "Other"], 1, "a letter a-z or a digit");
    shell.fails(&["rename", "old", "cgrant-x"], 2, "cgrant's own");
    let owner = fs::metadata(upper(&user, "old").join("kept")).unwrap().uid();
    shell.done(&["rename", "old", "new"]);
    assert_eq!([shell.state("old"), shell.state("new")], ["none", "stopped"]);
    shell.done(&["start", "new"]);
    checker::assert_in_order(lab);
    assert_eq!(shell.done(&["exec", "new", "--", "stat", "-c", "%u", "/kept"]), "0\n");
    assert_eq!(fs::metadata(upper(&user, "new").join("kept")).unwrap().uid(), owner);
    assert_eq!(
        shell.done(&["exec", "new", "--", "cat", "/etc/hostname", "/proc/sys/kernel/hostname"]),
        "new\nnew\n"
    );
    // The old name is free, and what has it now has other ids. Both run at the same time.
    shell.done(&["launch", "box", "old"]);
    assert_ne!(shell.json(&["info", "old"])["uid"], shell.json(&["info", "new"])["uid"]);
    let mut names: Vec<String> = ranges(&shell).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["old", "old-2", "other"]);
    shell.done(&["delete", "--force", "old", "new", "other"]);
    assert!(ranges(&shell).is_empty(), "{:?}", ranges(&shell));
    checker::assert_empty(lab);
}

fn a_copy_has_the_files_and_not_the_identity(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let root = busybox(lab);
    fs::write(root.join("etc/removed"), "").unwrap();
    shell.import(lab, &root, "box");
    shell.done(&["launch", "box", "one", "--pids", "40", "-e", "A=b"]);
    let script = "echo changed > /etc/mine; chmod 4751 /etc/mine; ln -s mine /etc/link; rm /etc/removed; \
        mkdir /etc/own; touch /etc/own/x; chown 7:8 /etc/own/x";
    let script = script.replace("ln -s", "busybox ln -s").replace("mkdir", "busybox mkdir");
    shell.done(&["exec", "one", "--", "sh", "-c", &script.replace("chown", "busybox chown")]);
    shell.fails(&["copy", "one", "two"], 1, "it is running; stop it first");
    shell.done(&["stop", "one"]);
    shell.fails(&["copy", "none", "two"], 1, "there is no container `none`");
    shell.fails(&["copy", "one", "one"], 1, "there is a container `one` already");
    shell.fails(&["copy", "one", "two", "--hostname", "a b"], 2, "a b");
    shell.done(&["copy", "one", "two"]);
    shell.done(&["copy", "two", "three", "--hostname", "third"]);
    shell.done(&["start", "one", "two", "three"]);
    for name in ["one", "two", "three"] {
        assert_eq!(
            shell.done(&[
                "exec",
                name,
                "--",
                "stat",
                "-c",
                "%a %u:%g %n",
                "/etc/mine",
                "/etc/own/x",
                "/etc/link"
            ]),
            "4751 0:0 /etc/mine\n644 7:8 /etc/own/x\n777 0:0 /etc/link\n"
        );
        shell.fails(&["exec", name, "--", "ls", "/etc/removed"], 1, "No such file");
        assert_eq!(shell.json(&["get", name, "pids.max"])["pids.max"], "40");
    }
    let inside = |name: &str, file: &str| shell.done(&["exec", name, "--", "cat", file]);
    assert_eq!(inside("two", "/etc/hostname"), "two\n");
    assert_eq!(inside("three", "/etc/hostname"), "third\n");
    let machines = ["one", "two", "three"].map(|name| inside(name, "/etc/machine-id"));
    assert!(machines[0] != machines[1] && machines[1] != machines[2] && machines[0] != machines[2]);
    let uid = |name: &str| fs::metadata(upper(&user, name).join("etc/mine")).unwrap().uid();
    assert!(uid("one") != uid("two") && uid("two") != uid("three"));
    // What one changes the others do not see.
    shell.done(&["exec", "two", "--", "rm", "/etc/mine"]);
    shell.done(&["exec", "one", "--", "ls", "/etc/mine"]);
    shell.done(&["delete", "--force", "one", "two", "three"]);
    checker::assert_empty(lab);
}

fn verbs_go_on_after_one_failure(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["a", "b"]);
    let said = |words: &[&str], code: i32| {
        let output = shell.output(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    let lines = said(&["start", "none", "a", "../x", "b"], 1);
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.contains("there is no container `none`: `cgrant list` shows"), "{lines}");
    assert!(lines.contains("is no name of a container"), "{lines}");
    assert_ne!([shell.state("a"), shell.state("b")], ["stopped", "stopped"]);
    // One sentence each, with what to do.
    let line = said(&["start", "a"], 1);
    assert!(line.contains("running already; 'cgrant shell' opens"), "{line}");
    assert!(said(&["pause", "none", "a"], 1).contains("`none`"));
    assert_eq!(shell.state("a"), "paused");
    // What is frozen can be stopped, and at once: it is thawed for that.
    said(&["stop", "a", "none", "--timeout", "600"], 1);
    assert_eq!(shell.state("a"), "stopped");
    let line = said(&["stop", "a", "b"], 1);
    assert!(line.contains("it is not running; 'cgrant info a' says how it ended"), "{line}");
    assert_eq!(shell.state("b"), "stopped", "the one behind was stopped");
    for verb in ["kill", "restart", "pause", "resume", "wait", "console"] {
        let line = said(&[verb, "a"], 1);
        assert!(line.contains("not running; 'cgrant start' starts it"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
    assert!(said(&["delete", "none", "a", "b"], 1).contains("`none`"));
    assert!(shell.json(&["list"]).as_array().unwrap().is_empty());
}

fn lists_can_be_narrowed(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["web-1", "db", "web-2"]);
    shell.done(&["image", "alias", "add", "box", "same"]);
    shell.done(&["start", "web-2"]);
    let list = |words: &[&str]| shell.done(&[&["list", "--quiet"], words].concat());
    assert_eq!(list(&[]), "db\nweb-1\nweb-2\n");
    assert_eq!(list(&["web-*"]), "web-1\nweb-2\n");
    assert_eq!(list(&["--state", "stopped", "*-*"]), "web-1\n");
    assert_eq!(list(&["--state", "running"]), "web-2\n");
    assert_eq!(list(&["--image", "same", "db"]), "db\n");
    shell.fails(&["list", "--image", "none"], 1, "there is no image `none`");
    assert_eq!(shell.json(&["list", "-q", "db"]), serde_json::json!(["db"]));
    shell.done(&["pause", "web-2"]);
    assert_eq!(list(&["--state", "paused"]), "web-2\n");
    assert!(
        shell.done(&["list"]).starts_with("NAME   STATE    ADDRESS  IMAGE\ndb     stopped           box\n")
    );
    // All of what people ask for, of one that runs and of one that has ended.
    shell.done(&["resume", "web-2"]);
    shell.done(&["set", "web-2", "pids.max=60", "memory.max=64M"]);
    let info = shell.done(&["info", "web-2"]);
    for (name, says) in [
        ("name", "web-2"),
        ("state", "running"),
        ("image", "box ("),
        ("uptime", " s"),
        ("hostname", "web-2"),
        ("memory", "of 64.0M"),
        ("tasks", "of 60"),
        ("limits", "pids.max=60"),
        ("ids", "65536 from"),
    ] {
        let line = info.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.contains(says)), "{name}: {info}");
    }
    shell.done(&["kill", "web-2"]);
    shell.done(&["wait", "web-2", "--stopped"]);
    let info = shell.done(&["info", "web-2"]);
    assert!(info.contains("ended by") && info.contains("signal 9") && !info.contains("uptime"), "{info}");
    assert_eq!(shell.json(&["info", "web-2"])["ended"], "signal 9");
    shell.done(&["delete", "web-1", "web-2", "db"]);
}

fn what_is_used_is_shown_until_a_key_is_pressed(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one", "two"]);
    shell.done(&["start", "one", "two"]);
    shell.done(&["set", "one", "memory.max=64M"]);
    let used = shell.json(&["top", "one"]);
    assert_eq!((used.as_array().unwrap().len(), &used[0]["memory-max"]), (1, &(64 << 20).into()));
    shell.fails(&["top", "none"], 1, "there is no container `none`");
    // On a terminal.
    let mut command = user.command("script");
    let words = format!("{} top --delay 1", lab.programs.join("cgrant").display());
    command.args(["-qfec", &words, "/dev/null"]).env("CGRANT_SOCKET", broker.socket());
    let mut top = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = top.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while seen.matches("NAME  CPU").count() < 3 || !seen.contains('%') {
        let length = out.read(&mut buffer).unwrap();
        assert!(length > 0, "it ended: {seen:?}");
        seen.push_str(&text(&buffer[..length]));
    }
    assert!(seen.contains("64.0M") && seen.contains("two"), "{seen:?}");
    top.stdin.take().unwrap().write_all(b"q").unwrap();
    assert!(top.wait().unwrap().success());
    shell.done(&["delete", "--force", "one", "two"]);
}

fn a_wait_has_an_end(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &[]);
    shell.done(&[&["launch", "box", "one"][..], &NEVER_READY].concat());
    shell.fails(&["wait", "one", "--timeout", "1"], 1, "it has not booted within 1 seconds");
    shell.fails(&["wait", "one", "--stopped", "--timeout", "1"], 1, "it has not stopped within 1 seconds");
    let mut waiting = shell.command(&["wait", "one", "--stopped", "--timeout", "600"]).spawn().unwrap();
    // It may be ended by what it asks for.
    shell.output(&["exec", "one", "--", "kill", "1"]);
    assert!(waiting.wait().unwrap().success());
    assert_eq!(shell.state("one"), "stopped");
    shell.done(&["wait", "one", "--stopped"]);
    shell.done(&["delete", "one"]);
}

// `cgrant events` of a user's, line by line.
struct Events {
    child: Child,
    lines: Receiver<Value>,
}

impl Events {
    fn of(shell: &Shell<'_>, words: &[&str]) -> Self {
        let mut command = shell.command(&[&["--format", "json", "events"], words].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines() {
                if send.send(serde_json::from_str(&line.unwrap()).unwrap()).is_err() {
                    return;
                }
            }
        });
        let pid = child.id();
        wait_until("it watches", || {
            let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
            let all: Vec<String> = infos.filter_map(|info| fs::read_to_string(info.path()).ok()).collect();
            all.iter().any(|info| info.contains("inotify wd:"))
        });
        Self { child, lines }
    }

    // The events of containers until one of this kind; with its fields.
    fn until(&self, kind: &str) -> (Vec<String>, Value) {
        let mut kinds = Vec::new();
        loop {
            let event = self.lines.recv_timeout(Duration::from_secs(120)).expect("no event came");
            let this = event["event"].as_str().unwrap().to_owned();
            assert!(event["time"].as_u64().unwrap() > 0);
            if this.starts_with("container-") {
                kinds.push(this.replace("container-", ""));
            }
            if this == kind {
                return (kinds, event);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// What its monitor says and what the broker says are asked one after the other.
fn a_container_that_ends_while_it_is_shown_has_ended(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "one"]);
    for _ in 0..5 {
        shell.done(&["start", "one"]);
        let mut kill = shell.command(&["kill", "one"]).spawn().unwrap();
        while shell.json(&["info", "one"])["state"] != "stopped" {}
        assert!(kill.wait().unwrap().success());
    }
    shell.done(&["delete", "one"]);
}

fn what_happens_to_containers_is_told(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    let events = Events::of(&shell, &[]);
    let of_one = Events::of(&shell, &["one"]);
    shell.done(&["create", "box", "one"]);
    shell.done(&["create", "box", "two"]);
    shell.done(&["start", "one"]);
    let (kinds, started) = events.until("container-started");
    assert_eq!(kinds, ["created", "created", "started"]);
    assert_eq!(started["name"], "one");
    assert_eq!(started["monitor"], shell.json(&["info", "one"])["monitor"]);
    // It may be ended by what it asks for.
    shell.output(&["exec", "one", "--", "reboot"]);
    let (kinds, rebooted) = events.until("container-rebooted");
    assert_eq!((kinds.last().unwrap().as_str(), &rebooted["reboots"]), ("rebooted", &1.into()));
    shell.done(&["kill", "one"]);
    let (_, stopped) = events.until("container-stopped");
    assert_eq!((&stopped["ended"], &stopped["status"]), (&"signal 9".into(), &137.into()));
    let (_, removed) = events.until("grant-removed");
    assert_eq!((&removed["name"], &removed["container"]), (&"one".into(), &true.into()));
    // A monitor that is killed says nothing; the broker does.
    shell.done(&["start", "one"]);
    let (_, started) = events.until("container-started");
    let monitor = started["monitor"].as_u64().unwrap();
    assert!(Command::new("kill").args(["-9", &monitor.to_string()]).status().unwrap().success());
    let (_, stopped) = events.until("container-stopped");
    assert_eq!((&stopped["name"], &stopped["ended"]), (&"one".into(), &"its monitor was killed".into()));
    // Out of memory.
    shell.done(&["start", "one"]);
    shell.done(&["set", "one", "memory.max=16M", "memory.swap.max=0"]);
    let eater = "x=a; while :; do x=$x$x; done";
    assert_ne!(shell.output(&["exec", "one", "--", "sh", "-c", eater]).status.code(), Some(0));
    let (_, oom) = events.until("oom");
    assert_eq!((&oom["name"], &oom["container"]), (&"one".into(), &true.into()));
    shell.done(&["stop", "one"]);
    let (kinds, _) = events.until("container-stopped");
    assert_eq!(kinds.last().unwrap(), "stopped");
    shell.done(&["rename", "one", "three"]);
    let (_, renamed) = events.until("container-renamed");
    assert_eq!((&renamed["before"], &renamed["name"]), (&"one".into(), &"three".into()));
    shell.done(&["delete", "two", "three"]);
    let (_, deleted) = events.until("container-deleted");
    assert_eq!(deleted["name"], "two");
    // Those that follow one container hear of no other.
    let (_, renamed) = of_one.until("container-renamed");
    assert_eq!(renamed["before"], "one");
    drop((events, of_one));
    // As lines, for people.
    let mut lines = shell.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(lines.stdout.take().unwrap());
    let pid = lines.id();
    wait_until("it listens", || fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() > 1);
    shell.done(&["grant", "create", "x", "--no-ids"]);
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.contains(" UTC  grant-added         name=x account="), "{line}");
    lines.kill().unwrap();
    lines.wait().unwrap();
    shell.done(&["grant", "release", "x"]);
}

fn the_console_is_the_log_of_a_container_without_a_journal(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    assert_eq!(shell.done(&["logs", "one"]), "", "it was never started");
    shell.fails(&["logs", "none"], 1, "there is no container `none`");
    shell.done(&["start", "one"]);
    wait_until("it is ready", || shell.done(&["logs", "one"]).contains("ready"));
    shell.done(&["exec", "one", "--", "sh", "-c", "for i in 1 2 3; do echo line $i > /dev/console; done"]);
    wait_until("all is there", || shell.done(&["logs", "one", "--console"]).contains("line 3"));
    assert_eq!(shell.done(&["logs", "one", "-n", "2"]).replace('\r', ""), "line 2\nline 3\n");
    // What comes is shown, until the container ends.
    let mut following = shell.command(&["logs", "one", "-f", "-n", "1"]);
    let mut following = following.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(following.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "line 3");
    shell.done(&["exec", "one", "--", "sh", "-c", "echo more > /dev/console"]);
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "more");
    shell.done(&["stop", "one"]);
    assert!(following.wait().unwrap().success());
    assert!(shell.done(&["logs", "one"]).contains("line 1"), "it stays after the end");
    shell.done(&["delete", "one"]);
}

fn what_is_paused_executes_nothing_and_says_so(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    shell.done(&["start", "one"]);
    wait_until("it is ready", || shell.done(&["logs", "one", "--console"]).contains("ready"));
    shell.done(&["pause", "one"]);
    for words in [
        &["exec", "one", "--", "true"] as &[&str],
        &["exec", "-t", "one", "--", "true"],
        &["shell", "one"],
        &["push", "one", "/etc/hostname", "/tmp/x"],
        &["pull", "one", "/etc/hostname", "x"],
    ] {
        shell.fails(words, 1, "the container is paused; 'cgrant resume' lets it go on");
    }
    shell.fails(&["logs", "one"], 1, "is paused; 'cgrant logs --console' shows what it printed");
    assert!(shell.done(&["logs", "one", "--console"]).contains("ready"));
    shell.done(&["resume", "one"]);
    assert_eq!(shell.done(&["exec", "one", "--", "echo", "again"]), "again\n");
    // What is to begin anew does, paused or not.
    let init = || shell.json(&["info", "one"])["init"].as_u64();
    let before = init();
    shell.done(&["pause", "one"]);
    shell.done(&["restart", "one"]);
    wait_until("it runs again", || shell.state("one") == "running" && init() != before);
    assert_eq!(shell.done(&["exec", "one", "--", "echo", "anew"]), "anew\n");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

fn a_journal_is_shown_whether_it_runs_or_not(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &debian("trixie"), "debian");
    shell.done(&["launch", "debian", "one", "--wait"]);
    shell.done(&["exec", "one", "--", "mkdir", "-p", "/var/log/journal"]);
    shell.done(&["exec", "one", "--", "journalctl", "--flush"]);
    shell.done(&["exec", "one", "--", "sh", "-c", "echo a word from inside | systemd-cat -t letter"]);
    wait_until("it is in the journal", || shell.done(&["logs", "one", "-n", "5"]).contains("a word from"));
    assert!(!shell.done(&["logs", "one", "--console"]).contains("a word from inside"));
    shell.done(&["exec", "one", "--", "journalctl", "--sync"]);
    shell.done(&["stop", "one"]);
    let all = shell.done(&["logs", "one", "--since", "1 hour ago"]);
    assert!(all.contains("letter[") && all.contains("a word from inside"), "{all}");
    assert_eq!(shell.done(&["logs", "one", "-n", "3"]).lines().count(), 3);
    shell.fails(&["logs", "one", "--since", "the day of days"], 1, "");
    // The journal of another machine is not there under this name.
    shell.done(&["copy", "one", "two"]);
    shell.done(&["start", "two", "--wait"]);
    let machine = |name: &str| shell.json(&["info", name])["machine"].as_str().unwrap().to_owned();
    assert_eq!(shell.done(&["exec", "two", "--", "cat", "/etc/machine-id"]).trim(), machine("two"));
    assert_ne!(machine("one"), machine("two"));
    assert_eq!(shell.done(&["exec", "two", "--", "hostname"]), "two\n");
    shell.done(&["delete", "--force", "one", "two"]);
}

fn bad_limits_are_refused_before_a_container_has_them(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    for (limit, says) in
        [("memory.max=5Q", "memory.max"), ("cpu.max=fast", "cpu.max"), ("pids.max=-1", "pids.max")]
    {
        shell.fails(&["create", "box", "two", "--limit", limit], 1, says);
        shell.fails(&["launch", "box", "two", "--limit", limit], 1, says);
        shell.fails(&["set", "one", limit], 1, says);
    }
    shell.fails(&["create", "box", "two", "--memory", "much"], 1, "memory.max");
    assert_eq!([shell.state("one"), shell.state("two")], ["stopped", "none"]);
    let limit = &shell.json(&["get", "one", "memory.max"])["memory.max"];
    assert!(limit.is_null(), "what was refused was not written down: {limit}");
    shell.done(&["delete", "one"]);
    checker::assert_empty(lab);
}

fn a_quota_that_is_reached_leaves_nothing(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\n[rule.quota]\ngrants = 1\n");
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    shell.done(&["start", "one"]);
    for words in [&["launch", "box", "two"][..], &["create", "box", "two"]] {
        let output = shell.output(words);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("grants") && said.contains("few"), "{said}");
    }
    assert_eq!(shell.state("two"), "none");
    let data = user.home.join(".local/share/cgrant/containers");
    assert_eq!(fs::read_dir(data).unwrap().count(), 1);
    shell.done(&["exec", "one", "--", "true"]);
    shell.done(&["delete", "--force", "one"]);
}

fn without_a_broker_one_sentence_says_so(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    assert_eq!(broker.stop(), 0);
    for words in [
        &["launch", "box", "two"][..],
        &["create", "box", "two"],
        &["start", "one"],
        &["delete", "one"],
        &["rename", "one", "two"],
        &["copy", "one", "two"],
        &["events"],
    ] {
        let output = shell.output(words);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(3), 1), "{words:?}: {said}");
        assert!(said.contains("start cgrantd"), "{words:?}: {said}");
    }
    // What needs none goes on.
    assert_eq!([shell.state("one"), shell.state("two")], ["stopped", "none"]);
    assert_eq!(shell.json(&["get", "one"])["hostname"], "one");
    let data = user.home.join(".local/share/cgrant/containers");
    assert_eq!(fs::read_dir(data).unwrap().count(), 1, "nothing half made is left");
    broker.start_again();
    shell.done(&["delete", "one"]);
}

fn a_holder_that_died_is_no_riddle(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    shell.done(&["start", "one"]);
    let waiting = shell.command(&["wait", "one", "--stopped"]).spawn();
    let running = shell.command(&["exec", "one", "--", "sleep", "1000"]).stderr(Stdio::piped()).spawn();
    wait_until("a command runs in it", || {
        shell.output(&["exec", "one", "--", "sh", "-c", "busybox pidof sleep | grep ' '"]).status.success()
    });
    let info = shell.json(&["info", "one"]);
    let monitor = info["monitor"].as_u64().unwrap();
    assert!(Command::new("kill").args(["-9", &monitor.to_string()]).status().unwrap().success());
    assert!(waiting.unwrap().wait().unwrap().success());
    let running = running.unwrap().wait_with_output().unwrap();
    let said = text(&running.stderr);
    assert!(!running.status.success() && said.contains("the container's monitor ended"), "{said}");
    assert_eq!(shell.state("one"), "stopped");
    shell.fails(&["exec", "one", "--", "true"], 1, "not running; 'cgrant start' starts it");
    shell.fails(&["stop", "one"], 1, "it is not running");
    // What a monitor that died leaves is reaped by the host's init; here it falls to the test program.
    let init = PathBuf::from(format!("/proc/{}", info["init"]));
    wait_until("all of it has ended", || {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        !init.exists()
    });
    checker::assert_empty(lab);
    shell.done(&["start", "one"]);
    shell.done(&["exec", "one", "--", "true"]);
    shell.done(&["delete", "--force", "one"]);
}

fn odd_names_lead_nowhere(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = made(lab, &user, &broker, &["one"]);
    let long = "x".repeat(300);
    let secret = user.home.join("secret");
    fs::write(&secret, "").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    for name in ["", ".", "..", "../one", "a/b", "a b", "A", "-", "a\nb", "a\u{1b}[31m", "\u{e4}", &long] {
        for words in [
            &["create", "box", "--", name][..],
            &["launch", "box", "--", name],
            &["rename", "one", "--", name],
            &["copy", "one", "--", name],
            &["delete", "--", name],
            &["start", "--", name],
            &["info", "--", name],
        ] {
            let output = shell.output(words);
            let said = text(&output.stderr);
            assert!(matches!(output.status.code(), Some(1 | 2)), "{words:?}: {said}");
            assert_eq!(said.lines().count(), 1, "{words:?}: {said}");
            assert!(!said.contains('\u{1b}'), "{words:?}: {said}");
        }
    }
    // Bytes that are no text.
    for verb in ["create", "start", "delete"] {
        let mut command = shell.command(&[verb]);
        command.args((verb == "create").then_some("box")).arg(OsStr::from_bytes(b"x\xff"));
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains("UTF-8"), "{said}");
    }
    assert_eq!(shell.done(&["list", "-q"]), "one\n");
    let data = user.home.join(".local/share/cgrant/containers");
    assert_eq!(fs::read_dir(data).unwrap().count(), 1);
    assert!(secret.exists());
    shell.done(&["delete", "one"]);
}

fn ports_and_addresses_stay_with_the_first(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "one", "--link", "-p", "8080:80"]);
    shell.done(&["copy", "one", "two"]);
    shell.done(&["start", "one", "two"]);
    let info = shell.done(&["info", "one"]);
    assert!(info.contains("8080:80") && info.contains("addresses"), "{info}");
    let info = shell.done(&["info", "two"]);
    assert!(!info.contains("8080:80") && info.contains("addresses"), "{info}");
    shell.done(&["delete", "--force", "one", "two"]);
}

/// What images and containers take: of those that run too, and of what nobody but a container's root may look into.
fn what_is_on_the_disk_is_shown(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let nothing = Shell::new(lab, &other, &broker).json(&["usage", "--disk"]);
    assert_eq!((&nothing["bytes"], &nothing["files"]), (&0.into(), &0.into()));
    assert!(Shell::new(lab, &other, &broker).json(&["range", "list"]).as_array().unwrap().is_empty());
    let shell = made(lab, &user, &broker, &["idle"]);
    shell.done(&["launch", "box", "web"]);
    wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
    let measured = || {
        let all = shell.json(&["usage", "--disk"]);
        let rows = all["rows"].as_array().unwrap().clone();
        let of = move |kind: &str, name: &str| {
            let row = rows.iter().find(|row| row["kind"] == kind && row["name"] == name).unwrap().clone();
            (row["bytes"].as_u64().unwrap_or_else(|| panic!("{row}")), row["files"].as_u64().unwrap())
        };
        (of("image", "box"), of("container", "idle"), of("container", "web"), all["bytes"].as_u64().unwrap())
    };
    let (image, idle, web, total) = measured();
    let program = fs::metadata("/bin/busybox").or_else(|_| fs::metadata("/usr/bin/busybox")).unwrap().len();
    assert!(image.0 > program && image.1 > 30, "{image:?}");
    assert_eq!(total, image.0 + idle.0 + web.0);
    // A directory that only root inside may enter, a file with two names, one of holes.
    let fill = "b=/bin/busybox; $b mkdir -m 700 /root/closed; $b dd if=/dev/zero of=/root/closed/a bs=64k count=16; \
                $b ln /root/closed/a /root/b; $b truncate -s 1G /root/holes; $b chown -R 1000 /root/closed; $b sync";
    shell.done(&["exec", "web", "--", "sh", "-c", fill]);
    let (_, same, more, _) = measured();
    let grown = more.0 - web.0;
    assert!((1 << 20..2 << 20).contains(&grown), "{grown} bytes");
    // /root is new in the layer too.
    assert!((3..=4).contains(&(more.1 - web.1)), "{web:?} {more:?}");
    assert_eq!(same, idle);
    // Of one of them it is shown with all else, if that is asked for.
    for (name, known) in [("web", more), ("idle", idle)] {
        let info = shell.json(&["info", "--disk", name]);
        let shown = (info["disk-bytes"].as_u64().unwrap(), info["disk-files"].as_u64().unwrap());
        assert_eq!((shown, &info["name"]), (known, &name.into()));
        assert!(shell.json(&["info", name]).get("disk-bytes").is_none());
    }
    assert!(shell.done(&["info", "--disk", "web"]).lines().any(|line| line.starts_with("disk ")));
    // It does not make a container that runs any other, and leaves nothing.
    assert_eq!(shell.state("web"), "running");
    let table = shell.done(&["usage", "--disk"]);
    assert!(table.contains("container") && table.lines().last().unwrap().contains("total"), "{table}");
    shell.fails(&["usage", "--disk", "--all"], 2, "cannot be used with");
    shell.done(&["delete", "--force", "web"]);
    shell.done(&["delete", "idle"]);
    checker::assert_empty(lab);
}

crate::tests![
    what_is_on_the_disk_is_shown,
    a_container_gets_another_name_and_keeps_its_files,
    a_copy_has_the_files_and_not_the_identity,
    verbs_go_on_after_one_failure,
    lists_can_be_narrowed,
    what_is_used_is_shown_until_a_key_is_pressed,
    a_wait_has_an_end,
    a_container_that_ends_while_it_is_shown_has_ended,
    what_happens_to_containers_is_told,
    the_console_is_the_log_of_a_container_without_a_journal,
    what_is_paused_executes_nothing_and_says_so,
    a_journal_is_shown_whether_it_runs_or_not,
    bad_limits_are_refused_before_a_container_has_them,
    a_quota_that_is_reached_leaves_nothing,
    without_a_broker_one_sentence_says_so,
    a_holder_that_died_is_no_riddle,
    odd_names_lead_nowhere,
    ports_and_addresses_stay_with_the_first,
];
