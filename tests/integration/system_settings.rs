//! What a container is set to, and when that holds; ranges of ids that no two containers share; and a machine that lacks what they need.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

use nix::libc;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::common::{
    Lab, Network, checker,
    containers::{Shell, busybox, text},
};

const STORE: &str = ".local/share/cgrant";

fn what_is_set_holds_after_a_restart(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one", "--link", "--dns", "none"]);
    let inside = |script: &str| shell.done(&["exec", "one", "--", "sh", "-euc", script]);
    // Its own file is its own, if there is none, too, and can be renamed over.
    assert_eq!(inside("ls /etc"), "group\nhostname\nhosts\ninittab\nmachine-id\npasswd\n");
    inside("echo '# mine' >/etc/new; mv /etc/new /etc/resolv.conf");
    for (set, resolvers) in [
        ("hostname=two", "# mine\n"),
        ("dns=10.9.9.9,fd00::9", "nameserver 10.9.9.9\nnameserver fd00::9\n"),
        ("dns=none", "# mine\n"),
    ] {
        let init = shell.json(&["info", "one"])["init"].clone();
        shell.done(&["set", "one", set]);
        shell.done(&["restart", "one"]);
        assert_ne!(shell.json(&["info", "one"])["init"], init);
        assert_eq!(inside("hostname; cat /etc/resolv.conf"), format!("two\n{resolvers}"), "{set}");
    }
    shell.done(&["set", "one", "dns=link"]);
    shell.done(&["restart", "one"]);
    assert!(inside("cat /etc/resolv.conf").starts_with("nameserver "), "the link's own");
    assert_eq!(shell.done(&["get", "one", "dns"]).split_whitespace().last(), Some("link"));
    shell.fails(&["set", "one", "dns=dns.example"], 2, "addresses of servers with commas between them");
    shell.done(&["stop", "one"]);
    shell.fails(&["restart", "one"], 1, "not running; 'cgrant start' starts it");
    shell.done(&["delete", "one"]);
    checker::assert_empty(lab);
}

fn what_runs_is_shown_without_a_broker(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "still"]);
    shell.done(&["launch", "box", "one"]);
    assert_eq!(broker.stop(), 0);
    let asked = |words: &[&str]| {
        let output = shell.output(&[&["--format", "json"], words].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
        assert!(
            said.contains("start cgrantd") && said.contains("what only the broker knows is left out"),
            "{said}"
        );
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let list = asked(&["list"]);
    let found: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (&item["name"], &item["state"], &item["address"]))
        .collect();
    let (one, still) = (("one", "running"), ("still", "stopped"));
    assert_eq!(
        (found[0].0, found[0].1, found[1].0, found[1].1),
        (&one.0.into(), &one.1.into(), &still.0.into(), &still.1.into())
    );
    assert!(found[0].2.is_null(), "not known: {list}");
    assert_eq!(found[1].2.as_array().map(Vec::len), Some(0), "what does not run has none: {list}");
    let info = asked(&["info", "one"]);
    assert_eq!((&info["state"], &info["hostname"]), (&"running".into(), &"one".into()));
    assert!(info.get("memory-current").is_none());
    assert!(shell.done(&["list"]).contains('?'));
    shell.fails(&["list", "--state", "paused"], 1, "which of them are paused is not known");
    broker.start_again();
    assert!(shell.json(&["info", "one"])["memory-current"].is_u64());
    shell.done(&["delete", "--force", "one", "still"]);
    checker::assert_empty(lab);
}

fn no_two_containers_get_one_range(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "web"]);
    shell.done(&["rename", "web", "old"]);
    let range = |name: &str| shell.json(&["info", name])["range"].as_str().unwrap().to_owned();
    assert_eq!(range("old"), "web");
    // One that has chosen a range waits, and another one that chooses the same is quicker.
    let store = File::open(user.home.join(STORE)).unwrap();
    flock(&store, FlockOperation::LockExclusive).unwrap();
    let mut slow = shell.command(&["create", "--copy", "box", "web-2"]);
    let mut slow = slow.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(slow.stderr.take().unwrap()).lines();
    let waits = said.next().unwrap().unwrap();
    assert!(waits.contains("waits until another cgrant"), "{waits}");
    shell.done(&["create", "box", "web"]);
    assert_eq!(range("web"), "web-2");
    flock(&store, FlockOperation::Unlock).unwrap();
    assert_eq!(slow.wait().unwrap().code(), Some(1));
    let said: Vec<String> = said.map(Result::unwrap).collect();
    assert!(said.last().unwrap().contains("has the range of ids; try again"), "{said:?}");
    assert_eq!(shell.state("web-2"), "none");
    shell.done(&["create", "--copy", "box", "web-2"]);
    assert_eq!(range("web-2"), "web-2-2");
    shell.done(&["delete", "old", "web", "web-2"]);
}

// The command, with this answer of the kernel to a call. Not every kernel has a file system with quotas; what one answers is this.
fn where_the_kernel_says(shell: &Shell<'_>, call: libc::c_long, errno: Errno, words: &[&str]) -> Output {
    let plain = shell.command(words);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--agent", "refused", &call.to_string(), &errno.raw_os_error().to_string()]);
    command.arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.output().unwrap()
}

fn a_disk_quota_that_is_reached_is_told(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let root = busybox(lab);
    shell.import(lab, &root, "box");
    let left = || {
        let count = |place: &str| fs::read_dir(user.home.join(STORE).join(place)).unwrap().count();
        (count("images"), count("containers"))
    };
    let before = left();
    let archive = lab.scratch.join("other.tar");
    let tar =
        Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).args(["--mtime=@1", "."]).status();
    assert!(tar.unwrap().success());
    let archive = archive.to_str().unwrap();
    for (call, errno, words, kept) in [
        (
            libc::SYS_symlinkat,
            Errno::DQUOT,
            &["image", "import", archive, "--alias", "other"][..],
            "disk quota of your account",
        ),
        (
            libc::SYS_mkdirat,
            Errno::DQUOT,
            &["image", "import", archive, "--alias", "other"],
            "disk quota of your account",
        ),
        (libc::SYS_mkdirat, Errno::DQUOT, &["create", "box", "one"], "disk quota of your account"),
        (libc::SYS_mkdirat, Errno::DQUOT, &["create", "--copy", "box", "one"], "disk quota of your account"),
        (libc::SYS_mkdirat, Errno::DQUOT, &["launch", "box", "one"], "disk quota of your account"),
        (libc::SYS_mkdirat, Errno::NOSPC, &["create", "box", "one"], "the disk is full"),
    ] {
        let output = where_the_kernel_says(&shell, call, errno, words);
        let said = text(&output.stderr);
        let sentences = said.lines().filter(|line| line.starts_with("cgrant: ")).count();
        assert_eq!((output.status.code(), sentences), (Some(4), 1), "{words:?}: {said}");
        assert!(said.contains(kept) && said.contains("make room"), "{words:?}: {said}");
        assert_eq!(left(), before, "{words:?} left something");
    }
    checker::assert_empty(lab);
}

fn where_no_user_namespaces_are_had_that_is_told(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "box", "one"]);
    let archive = lab.scratch.join("empty.tar");
    assert!(
        Command::new("tar")
            .args(["-cf", archive.to_str().unwrap(), "-T", "/dev/null"])
            .status()
            .unwrap()
            .success()
    );
    // The limit of a user namespace's own, which nobody else is in.
    let closed = "echo 0 >/proc/sys/user/max_user_namespaces; exec \"$@\"";
    for words in [
        &["start", "one"][..],
        &["launch", "box", "two"],
        &["create", "box", "two"],
        &["copy", "one", "two"],
        &["run", "--", "true"],
        &["image", "import", archive.to_str().unwrap()],
        &["image", "build", "debian:trixie"],
        &["delete", "one"],
    ] {
        let plain = shell.command(words);
        let mut command = user.command("unshare");
        command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-euc", closed, "sh"]);
        command.arg(lab.programs.join("cgrant")).args(words);
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = command.output().unwrap();
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(4), 1), "{words:?}: {said}");
        assert!(said.contains("max_user_namespaces"), "{words:?}: {said}");
    }
    assert_eq!([shell.state("one"), shell.state("two")], ["stopped", "none"]);
    shell.done(&["delete", "one"]);
    checker::assert_empty(lab);
}

crate::tests![
    what_is_set_holds_after_a_restart,
    what_runs_is_shown_without_a_broker,
    no_two_containers_get_one_range,
    a_disk_quota_that_is_reached_is_told,
    where_no_user_namespaces_are_had_that_is_told,
];
