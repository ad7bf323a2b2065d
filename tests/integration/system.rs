//! System containers as an ordinary user runs them, with the command alone: a small one with busybox as init, and whole Debian systems.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;

use crate::common::{
    Lab, Network, checker,
    containers::{Shell, busybox, debian, text},
    wait_until,
};

fn a_container_lives_from_create_to_delete(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "one", "--memory", "64M", "--pids", "50"]);
    assert_eq!(shell.state("one"), "stopped");
    shell.fails(&["create", "box", "one"], 1, "there is a container `one` already");
    shell.fails(&["create", "bix", "two"], 1, "there is no image `bix`");
    shell.fails(&["exec", "one", "--", "true"], 1, "not running; 'cgrant start' starts it");
    shell.done(&["start", "one"]);
    assert_eq!(shell.state("one"), "running");
    checker::assert_in_order(lab);
    shell.fails(&["start", "one"], 1, "running already");
    shell.fails(&["delete", "one"], 1, "it is running");
    wait_until("it says that it is ready", || shell.done(&["logs", "one"]).contains("ready"));
    assert_eq!(
        shell.done(&["exec", "one", "--", "cat", "/etc/hostname", "/proc/sys/kernel/hostname"]),
        "one\none\n"
    );
    let pids = checker::place(lab, user.uid, "one", "pids");
    assert_eq!(fs::read_to_string(pids.join("pids.max")).unwrap().trim(), "50");
    shell.done(&["exec", "one", "--", "touch", "/kept"]);
    shell.done(&["stop", "one", "--timeout", "30"]);
    assert_eq!(shell.state("one"), "stopped");
    checker::assert_empty(lab);
    // What it wrote is there at the next start, and in the image is not.
    shell.done(&["start", "one"]);
    shell.done(&["launch", "box", "two"]);
    shell.done(&["exec", "one", "--", "ls", "/kept"]);
    shell.fails(&["exec", "two", "--", "ls", "/kept"], 1, "No such file");
    shell.done(&["delete", "two", "one", "--force"]);
    assert_eq!(shell.json(&["list"]), Value::Array(Vec::new()));
    let data = user.home.join(".local/share/cgrant");
    assert_eq!(fs::read_dir(data.join("containers")).unwrap().count(), 0);
    checker::assert_empty(lab);
    let ranges = shell.json(&["range", "list"]).to_string();
    assert!(!ranges.contains("\"one\"") && !ranges.contains("\"two\""), "{ranges}");
}

fn a_second_container_copies_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    for name in ["one", "two"] {
        shell.done(&["launch", "box", name]);
        assert_eq!(shell.done(&["exec", name, "--", "stat", "-c", "%u:%g %a", "/bin/busybox"]), "0:0 755\n");
    }
    shell.done(&["exec", "one", "--", "sh", "-c", "echo changed > /etc/inittab"]);
    assert!(shell.done(&["exec", "two", "--", "cat", "/etc/inittab"]).contains("respawn"));
    let upper = user.home.join(".local/share/cgrant/containers/two/upper");
    let size: u64 = files(&upper).iter().map(|path| fs::symlink_metadata(path).unwrap().size()).sum();
    assert!(size < 100_000, "{size} bytes: {:?}", files(&upper));
    let machine = |name: &str| shell.done(&["exec", name, "--", "cat", "/etc/machine-id"]);
    assert_ne!(machine("one"), machine("two"));
    shell.done(&["delete", "--force", "one", "two"]);
}

// All that is no directory below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

fn a_command_inside_is_as_if_it_were_here(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one"]);
    // Status, a signal's too, and what can't be executed.
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)] {
        assert_eq!(shell.output(&["exec", "one", "--", "sh", "-c", script]).status.code(), Some(code));
    }
    shell.fails(&["exec", "one", "--", "/nothing"], 127, "/nothing");
    shell.fails(&["exec", "one", "--", "/etc/hosts"], 126, "/etc/hosts");
    shell.fails(&["exec", "none", "--", "true"], 1, "there is no container `none`");
    // Streams stay apart, and end.
    let output = shell.output(&["exec", "one", "--", "sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    let mut wc = shell.command(&["exec", "one", "--", "wc", "-c"]);
    let mut wc = wc.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wc.stdin.take().unwrap().write_all(&vec![b'x'; 300_000]).unwrap();
    assert_eq!(text(&wc.wait_with_output().unwrap().stdout), "300000\n");
    // As whom, where, with what.
    let words = [
        "exec",
        "one",
        "--user",
        "ann",
        "--workdir",
        "/etc",
        "--env",
        "A=b=c",
        "--",
        "sh",
        "-c",
        "id -u; pwd; echo $A",
    ];
    assert_eq!(shell.done(&words), "1000\n/etc\nb=c\n");
    // A signal to the command here is one to the command there.
    let mut words = shell.command(&[
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "trap 'echo told; exit 3' TERM; echo up; while :; do sleep 0.1; done",
    ]);
    let mut child = words.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 3];
    out.read_exact(&mut first).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("told\n", Some(3)));
    shell.done(&["delete", "--force", "one"]);
}

fn a_terminal_of_its_own(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one"]);
    assert_eq!(
        shell.done(&["exec", "--terminal", "one", "--", "sh", "-c", "tty; stty size"]),
        "/dev/pts/1\r\n24 80\r\n"
    );
    assert_eq!(shell.output(&["exec", "-t", "one", "--", "sh", "-c", "exit 9"]).status.code(), Some(9));
    // The console shows what was printed, and what is typed arrives there.
    let mut console = shell.command(&["console", "one"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = console.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains("ready") {
        let length = out.read(&mut buffer).unwrap();
        assert!(length > 0, "the console ended: {seen:?}");
        seen.push_str(&text(&buffer[..length]));
    }
    console.stdin.take().unwrap().write_all(b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    shell.done(&["delete", "--force", "one"]);
}

fn limits_hold_at_once_and_stay(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one", "--pids", "50"]);
    shell.done(&["set", "one", "pids.max=40", "hostname=other"]);
    let max = || {
        let pids = checker::place(lab, user.uid, "one", "pids");
        fs::read_to_string(pids.join("pids.max")).unwrap().trim().to_owned()
    };
    assert_eq!(max(), "40");
    shell.fails(&["set", "one", "pids.max=lots"], 1, "pids.max");
    shell.fails(&["set", "one", "color=red"], 2, "is no setting");
    shell.fails(&["set", "one", "nesting=maybe"], 2, "true or false");
    assert_eq!(
        shell.json(&["get", "one", "pids.max"])["pids.max"],
        "40",
        "what was refused was not written down"
    );
    assert_eq!(shell.json(&["get", "one"])["hostname"], "other");
    shell.done(&["pause", "one"]);
    let frozen = || {
        let grant = &checker::places(lab, user.uid, "one")["cgroup2"];
        fs::read_to_string(grant.join("payload/cgroup.events")).unwrap().contains("frozen 1")
    };
    assert!(frozen());
    assert_eq!(shell.json(&["info", "one"])["frozen"], true);
    shell.done(&["resume", "one"]);
    assert!(!frozen());
    assert!(shell.json(&["top"])[0]["memory"].as_u64().unwrap() > 0);
    shell.done(&["stop", "one"]);
    shell.done(&["start", "one"]);
    assert_eq!(max(), "40");
    assert_eq!(shell.done(&["exec", "one", "--", "hostname"]), "other\n");
    shell.done(&["delete", "--force", "one"]);
}

fn what_never_boots_says_why(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    let words = ["launch", "box", "one", "--wait", "--init=/bin/sh", "--init=-c", "--init=echo alas; exit 5"];
    shell.fails(&words, 1, "did not boot: it ended before it had booted (status 5); it printed last:\nalas");
    assert_eq!(shell.state("one"), "stopped");
    // What can't even be executed leaves nothing.
    shell.fails(&["launch", "box", "two", "--init", "/nothing"], 4, "/nothing");
    shell.fails(&["launch", "box", "two", "--limit", "memory.max=much"], 1, "memory.max");
    shell.fails(&["create", "box", "two", "--hostname", "a b"], 2, "a b");
    shell.fails(&["create", "box", "Two"], 1, "name");
    shell.fails(&["create", "box", "cgrant-images"], 2, "cgrant's own");
    assert_eq!(shell.state("two"), "none");
    let data = user.home.join(".local/share/cgrant/containers");
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    shell.done(&["delete", "one"]);
    checker::assert_empty(lab);
}

fn files_go_in_and_out(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one"]);
    let letter = user.home.join("a letter");
    fs::write(&letter, vec![7; 200_000]).unwrap();
    std::os::unix::fs::chown(&letter, Some(user.uid), Some(user.gid)).unwrap();
    fs::set_permissions(&letter, fs::Permissions::from_mode(0o640)).unwrap();
    shell.done(&["push", "one", "a letter", "/root/$(x) y"]);
    shell.done(&["push", "one", "a letter", "/tmp"]);
    assert_eq!(
        shell.done(&["exec", "one", "--", "stat", "-c", "%s %a %u", "/root/$(x) y", "/tmp/a letter"]),
        "200000 640 0\n200000 640 0\n"
    );
    shell.done(&["pull", "one", "/root/$(x) y", "back"]);
    shell.done(&["pull", "one", "/etc/inittab", "."]);
    let back = user.home.join("back");
    assert_eq!(fs::read(&back).unwrap(), vec![7; 200_000]);
    assert_eq!(fs::metadata(&back).unwrap().uid(), user.uid);
    assert!(user.home.join("inittab").exists());
    // What fails leaves nothing, on neither side.
    shell.fails(&["pull", "one", "/nothing", "none"], 1, "/nothing");
    shell.fails(&["push", "one", "none", "/tmp"], 4, "none");
    shell.fails(&["push", "one", "a letter", "/nothing/x"], 1, "/nothing/x");
    shell.fails(&["push", "one", "a letter", "/etc/hostname", "--user", "ann"], 1, "denied");
    let left = fs::read_dir(&user.home).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_str().unwrap().contains("none")).collect();
    assert!(left.is_empty(), "{left:?}");
    shell.done(&["delete", "--force", "one"]);
}

fn containers_reach_each_other(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one", "--link", "-p", "8080:80"]);
    shell.done(&["launch", "box", "two", "--link"]);
    let list = shell.json(&["list"]);
    let address = |name: &str| {
        let found = list.as_array().unwrap().iter().find(|item| item["name"] == name).unwrap();
        found["address"][0].as_str().unwrap().to_owned()
    };
    for (from, to) in [("one", "two"), ("two", "one")] {
        shell.done(&["exec", from, "--", "ping", "-c", "1", "-w", "30", &address(to)]);
    }
    // The image has no such file.
    assert!(shell.done(&["exec", "one", "--", "cat", "/etc/resolv.conf"]).starts_with("nameserver "));
    assert!(shell.json(&["info", "one"])["links"].to_string().contains("8080:80"));
    // The same network at the next start.
    shell.done(&["stop", "one"]);
    shell.done(&["start", "one"]);
    assert!(shell.json(&["info", "one"])["links"].to_string().contains("8080:80"));
    shell.done(&["delete", "--force", "one", "two"]);
}

fn a_directory_of_the_users(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    let (shared, letters) = (user.home.join("shared"), user.home.join("letters"));
    for path in [&shared, &letters] {
        fs::create_dir(path).unwrap();
        std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Relative to where the user is; the place inside is made.
    shell.done(&[
        "launch",
        "box",
        "one",
        "--mount",
        "shared:/srv/a/b",
        "--mount",
        "letters:/home/l,ro,as=1000",
    ]);
    shell.done(&["exec", "one", "--", "touch", "/srv/a/b/by-root"]);
    let made = fs::symlink_metadata(shared.join("by-root")).unwrap();
    assert_eq!((made.uid(), made.gid()), (user.uid, user.gid));
    assert_eq!(shell.done(&["exec", "one", "--", "stat", "-c", "%u %a", "/home/l"]), "1000 700\n");
    let words = ["exec", "one", "--user", "ann", "--", "touch", "/home/l/x"];
    shell.fails(&words, 1, "Read-only file system");
    // Each time, and not what is not the user's.
    shell.done(&["stop", "one"]);
    shell.done(&["start", "one"]);
    shell.done(&["exec", "one", "--", "ls", "/srv/a/b/by-root"]);
    shell.fails(&["launch", "box", "two", "--mount", "/etc:/srv"], 1, "neither yours");
    shell.fails(&["create", "box", "two", "--mount", "shared:/proc/x"], 2, "no place to show a directory");
    shell.fails(&["create", "box", "two", "--mount", "none:/srv"], 2, "no directory");
    assert_eq!(shell.state("two"), "none");
    shell.done(&["delete", "--force", "one"]);
}

fn boots(lab: &Lab, suite: &str) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &debian(suite), suite);
    let is_whole = |name: &str| {
        assert_eq!(shell.state(name), "running");
        let said = shell.output(&["exec", name, "--", "systemctl", "is-system-running", "--wait"]);
        let failed = shell.done(&["exec", name, "--", "systemctl", "--failed", "--no-legend", "--no-pager"]);
        assert_eq!(
            (text(&said.stdout).as_str(), failed.as_str()),
            ("running\n", ""),
            "{}",
            shell.done(&["logs", name])
        );
    };
    shell.done(&["launch", suite, "one", "--wait", "--memory", "512M"]);
    is_whole("one");
    assert_eq!(shell.done(&["exec", "one", "--", "hostname"]), "one\n");
    // A reboot from inside has the same root, mounted once.
    shell.done(&["exec", "one", "--", "touch", "/kept"]);
    shell.done(&["exec", "one", "--", "systemctl", "reboot"]);
    wait_until("it has rebooted", || shell.json(&["info", "one"])["reboots"] == 1);
    shell.done(&["wait", "one"]);
    is_whole("one");
    shell.done(&["exec", "one", "--", "ls", "/kept"]);
    // A second one beside it, from the same files.
    shell.done(&["launch", suite, "two", "--wait"]);
    is_whole("two");
    let monitor = shell.json(&["info", "one"])["monitor"].as_u64().unwrap();
    let status = fs::read_to_string(format!("/proc/{monitor}/status")).unwrap();
    let of_its_own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().trim();
    let kilobytes: u64 = of_its_own.trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 3072, "the monitor has {kilobytes} kB of its own");
    shell.done(&["stop", "one", "two"]);
    assert_eq!([shell.state("one"), shell.state("two")], ["stopped", "stopped"]);
    checker::assert_empty(lab);
    shell.done(&["delete", "one", "two"]);
}

fn debian_12_boots(lab: &Lab) {
    boots(lab, "bookworm");
}

fn debian_13_boots(lab: &Lab) {
    boots(lab, "trixie");
}

crate::tests![
    a_container_lives_from_create_to_delete,
    a_second_container_copies_nothing,
    a_command_inside_is_as_if_it_were_here,
    a_terminal_of_its_own,
    limits_hold_at_once_and_stay,
    what_never_boots_says_why,
    files_go_in_and_out,
    containers_reach_each_other,
    a_directory_of_the_users,
    debian_12_boots,
    debian_13_boots,
];
