//! Plain calls of CGManager's interface from other pid and user namespaces, without a proxy: the numbers in them are the
//! caller's, and lead nobody to what it does not see itself.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, chown},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    arguments,
    common::{
        Lab, Process, User,
        cgmanager::{Argument, Failure, Jail, LEAF, Manager, Peer},
        harness, wait_until,
    },
};

/// Where a container's ids begin on the host.
const BASE: u32 = 0x7060_0000;

const PID_CGROUP: &str = "GetPidCgroup called from non-init namespace";
const PID_CGROUP_ABS: &str = "GetPidCgroupAbs called from non-init namespace";
const MOVE: &str = "Escape request from different namespace requires a proxy";
const CHOWN: &str = "chown called from different user namespace";
const INVALID: &str = "invalid request";

/// A client in namespaces of its own: process 1 there made the connection, and those from 2 on sleep.
struct Inside {
    peer: Peer,
    /// Which pid of the host's has which number there.
    numbers: BTreeMap<u32, u32>,
}

impl Inside {
    /// By `unshare` with these words, as a user, in a cgroup.
    fn new(manager: &Manager, jail: &Jail, user: &User, words: &[&str], sleepers: usize) -> Self {
        let mut command = user.command("unshare");
        command.args(words).args(["--pid", "--fork", "--kill-child"]);
        Self::start(manager, jail, user, command, sleepers)
    }

    /// Root of its own user namespace.
    fn of(manager: &Manager, jail: &Jail, user: &User, sleepers: usize) -> Self {
        Self::new(manager, jail, user, &["--user", "--map-root-user"], sleepers)
    }

    fn start(manager: &Manager, jail: &Jail, user: &User, mut command: Command, sleepers: usize) -> Self {
        let script =
            format!("{}exec \"$0\" --role connect \"$1\"", "sleep 1000 </dev/null & ".repeat(sleepers));
        command.args(["sh", "-c", &script]).arg(user.programs.join("tests")).arg(&manager.socket);
        let (process, line, mut fds) = Process::agent(jail.command(&command));
        assert_eq!(line, "ok");
        let outer = process.pid;
        let peer = Peer::over(fds.remove(0).into(), Some(process));
        let mut numbers = BTreeMap::new();
        wait_until("the namespace is full", || {
            let all = harness::descendants_of(outer).into_iter().filter_map(|pid| Some((number(pid)?, pid)));
            numbers = all.collect();
            numbers.len() == sleepers + 1 && numbers.values().skip(1).all(|pid| comm(*pid) == "sleep")
        });
        Self { peer, numbers }
    }

    /// The pid of a process that has this number there.
    fn pid(&self, number: u32) -> u32 {
        self.numbers[&number]
    }

    fn fails(&self, method: &str, arguments: &[Argument<'_>], text: &str) {
        assert_eq!(self.peer.fails(method, arguments), Failure::invalid(text), "{method} {arguments:?}");
    }
}

/// What a process is called in its own pid namespace, which is not ours.
fn number(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Is a process in this cgroup, or in the leaf of it?
fn is_in(pid: u32, path: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|is| is.strip_suffix(LEAF).and_then(|is| is.strip_suffix('/')).unwrap_or(is) == path)
}

fn owner(jail: &Jail, below: &str) -> (u32, u32) {
    let metadata = fs::metadata(jail.dir.join(below)).unwrap();
    (metadata.uid(), metadata.gid())
}

fn numbers_mean_what_they_mean_to_the_caller(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let inside = Inside::of(&manager, &jail, &user, 2);
    let peer = &inside.peer;
    let x = format!("{}/x", jail.path);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "x"]), -1);
    for number in 1..=3 {
        assert_eq!(peer.get::<String>("GetPidCgroup", arguments!["memory", number]), "/");
    }
    peer.does("MovePid", arguments!["memory", "x", 2]);
    let places = |inside: &Inside| [1, 2, 3].map(|number| is_in(inside.pid(number), &x));
    assert_eq!(places(&inside), [false, true, false]);
    assert_eq!(peer.get::<String>("GetPidCgroup", arguments!["memory", 2]), "x");
    assert_eq!(peer.get::<Vec<i32>>("GetTasks", arguments!["memory", "x"]), [2]);
    // From its own cgroup, as the twins of these calls count: nobody in a container begins at the host's root.
    assert_eq!(peer.get::<String>("GetPidCgroupAbs", arguments!["memory", 2]), "/x");
    assert_eq!(peer.get::<String>("GetPidCgroupAbs", arguments!["memory", 1]), "/");
    peer.does("MovePidAbs", arguments!["memory", "/x", 3]);
    peer.does("MovePidAbs", arguments!["memory", "/", 2]);
    assert_eq!(places(&inside), [false, false, true]);
    assert!(is_in(inside.pid(2), &jail.path));
    // By a list of controllers too, all of which have to be there.
    peer.does("MovePid", arguments!["memory,memory", "x", 1]);
    assert_eq!(places(&inside), [true, false, true]);
    assert_eq!(peer.get::<String>("GetPidCgroup", arguments!["memory", 3]), "/", "from where it is now");
    peer.fails("GetPidCgroup", arguments!["memory", 2]);
    // What nobody has is refused in CGManager's words.
    for nobody in [0, -1, 9, 4_000_000, i32::MAX, std::process::id().cast_signed()] {
        inside.fails("GetPidCgroup", arguments!["memory", nobody], PID_CGROUP);
        inside.fails("GetPidCgroupAbs", arguments!["memory", nobody], PID_CGROUP_ABS);
        inside.fails("MovePid", arguments!["memory", "", nobody], MOVE);
        inside.fails("MovePidAbs", arguments!["memory", "/", nobody], MOVE);
    }
    // A number whose process has ended, though nobody has reaped it.
    let ended = inside.pid(3);
    kill_process(Pid::from_raw(ended.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("it has ended", || {
        fs::read_to_string(format!("/proc/{ended}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    inside.fails("GetPidCgroup", arguments!["memory", 3], PID_CGROUP);
    inside.fails("MovePid", arguments!["memory", "", 3], MOVE);
}

fn ids_are_those_of_the_callers_maps(lab: &Lab) {
    let (manager, jail) = (Manager::start(lab), Jail::new(lab, "memory", "a"));
    let root = User::new(BASE, &[], &lab.scratch, &lab.programs);
    jail.give_to(&root);
    // The namespace of a container, as root makes it.
    let mut holder = Command::new("unshare");
    let holder = Process::of(holder.args(["--user", "sleep", "1000"]).stdin(Stdio::null()));
    wait_until("there is a namespace", || comm(holder.pid) == "sleep");
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.pid), format!("0 {BASE} 5000")).unwrap();
    }
    let entered = |uid: u32| in_namespace(holder.pid, uid);
    let user = lab.root();
    let inside = Inside::start(&manager, &jail, &user, entered(0), 0);
    assert_eq!(inside.peer.get::<i32>("Create", arguments!["memory", "x"]), -1);
    assert_eq!(owner(&jail, "x"), (BASE, BASE));
    inside.peer.does("Chown", arguments!["memory", "x", 1000, 1001]);
    assert_eq!(
        (owner(&jail, "x"), owner(&jail, "x/cgroup.procs")),
        ((BASE + 1000, BASE + 1001), (BASE + 1000, BASE + 1001))
    );
    let bounds = if lab.host.is_v1("memory") { "x/memory.limit_in_bytes" } else { "x/memory.max" };
    assert_eq!(owner(&jail, bounds), (BASE, BASE), "limits stay whose they are");
    // What it has not been mapped: the host's own numbers, whatever stands for -1, and the first one behind the map.
    for (uid, gid) in
        [(5000, 0), (0, 5000), (BASE, BASE), (u32::MAX, 0), (0, u32::MAX), (1 << 31, 0), (20_000, 20_000)]
    {
        inside.fails("Chown", arguments!["memory", "x", uid, gid], CHOWN);
    }
    assert_eq!(owner(&jail, "x"), (BASE + 1000, BASE + 1001));
    // Another user of the container is root of nothing, and root not of what is around it.
    let other = Inside::start(&manager, &jail, &user, entered(1000), 0);
    other.fails("Chown", arguments!["memory", "x", 1000, 1000], INVALID);
    let above = Jail::new(lab, "memory", "above");
    let outer = Inside::start(&manager, &above, &user, entered(0), 0);
    outer.fails("Chown", arguments!["memory", "", 0, 0], INVALID);
    assert_eq!((owner(&above, ""), owner(&jail, "x")), ((0, 0), (BASE + 1000, BASE + 1001)));
    drop((inside, other, outer));
}

fn no_number_leads_out_of_the_callers_namespace(lab: &Lab) {
    let (manager, alice, bob) = (Manager::start(lab), lab.user(), lab.user());
    let jail = Jail::new(lab, "memory", "a");
    jail.give_to(&alice);
    let inside = Inside::of(&manager, &jail, &alice, 1);
    assert_eq!(inside.peer.get::<i32>("Create", arguments!["memory", "x"]), -1);
    let x = format!("{}/x", jail.path);
    // In the same cgroup and as deep: another namespace of hers, one of bob's, and her process on the host.
    let sibling = Inside::of(&manager, &jail, &alice, 4);
    let his = Inside::of(&manager, &jail, &bob, 6);
    let hers = alice.sleeper();
    jail.put(hers.pid);
    for number in [3, 4, 5, 6, 7, hers.pid, sibling.pid(2), his.pid(1), sibling.peer.pid(), inside.pid(2)] {
        inside.fails("MovePid", arguments!["memory", "x", number], MOVE);
        inside.fails("GetPidCgroup", arguments!["memory", number], PID_CGROUP);
    }
    inside.peer.does("MovePid", arguments!["memory", "x", 2]);
    assert!(is_in(inside.pid(2), &x));
    let others = sibling.numbers.values().chain(his.numbers.values()).chain([&hers.pid]);
    for pid in others {
        assert!(is_in(*pid, &jail.path), "{pid} was moved");
    }
    // Who is in a namespace inside sees nobody around it, and is seen.
    let namespaces = format!("--target={}", inside.pid(1));
    let mut command = alice.command("nsenter");
    command.args([
        &namespaces,
        "--user",
        "--pid",
        "--preserve-credentials",
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    let (process, line, mut fds) = {
        command.args(["sh", "-c", "exec \"$0\" --role connect \"$1\""]);
        command.arg(alice.programs.join("tests")).arg(&manager.socket);
        Process::agent(jail.command(&command))
    };
    assert_eq!(line, "ok");
    let outer = process.pid;
    let deep = Peer::over(fds.remove(0).into(), Some(process));
    assert_eq!(deep.get::<String>("GetPidCgroup", arguments!["memory", 1]), "/");
    assert_eq!(deep.fails("MovePid", arguments!["memory", "x", 2]), Failure::invalid(MOVE));
    let innermost = *harness::descendants_of(outer).iter().max_by_key(|pid| depth(**pid)).unwrap();
    let seen_as = number(innermost).unwrap();
    inside.peer.does("MovePid", arguments!["memory", "x", seen_as]);
    assert!(is_in(innermost, &x));
}

/// How many pid namespaces a process is seen in.
fn depth(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("NSpid:")).map_or(0, |line| line.split_whitespace().count())
}

fn whom_one_names_is_not_yet_ones_own(lab: &Lab) {
    let (manager, alice) = (Manager::start(lab), lab.user());
    let jail = Jail::new(lab, "memory", "a");
    jail.give_to(&alice);
    let inside = Inside::of(&manager, &jail, &alice, 0);
    assert_eq!(inside.peer.get::<i32>("Create", arguments!["memory", "x"]), -1);
    // Root of the host's has entered the container, in whose cgroup it is: it has a number there, and no more.
    let mut command = Command::new("nsenter");
    command.arg(format!("--pid=/proc/{}/ns/pid", inside.pid(1))).args(["sleep", "1000"]);
    let entered = Process::of(&mut jail.command(&command));
    let mut sleeper = None;
    wait_until("it is inside", || {
        let all = harness::descendants_of(entered.pid);
        sleeper = all.into_iter().find(|pid| comm(*pid) == "sleep" && number(*pid).is_some());
        sleeper.is_some()
    });
    let sleeper = sleeper.unwrap();
    let seen_as = number(sleeper).unwrap();
    assert_eq!(inside.peer.get::<String>("GetPidCgroup", arguments!["memory", seen_as]), "/");
    inside.fails("MovePid", arguments!["memory", "x", seen_as], INVALID);
    inside.fails("MovePidAbs", arguments!["memory", "/x", seen_as], INVALID);
    assert!(is_in(sleeper, &jail.path));
    // One that is elsewhere may not be named either.
    let elsewhere = Jail::new(lab, "memory", "b");
    elsewhere.put(sleeper);
    for method in ["GetPidCgroup", "GetPidCgroupAbs"] {
        let failure = inside.peer.fails(method, arguments!["memory", seen_as]);
        assert!([INVALID, PID_CGROUP, PID_CGROUP_ABS].contains(&failure.text.as_str()), "{failure:?}");
    }
}

/// Where a container is confined though its root is the host's.
fn nobody_escapes_by_what_is_called_absolute(lab: &Lab) {
    let (manager, root) = (Manager::start(lab), lab.root());
    let (jail, other) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    let inside = Inside::new(&manager, &jail, &root, &[], 1);
    for number in [1, 2] {
        inside.peer.does("MovePidAbs", arguments!["memory", "/", number]);
        for out in [other.path.as_str(), jail.path.as_str(), "/..", "../x"] {
            inside.fails("MovePidAbs", arguments!["memory", out, number], INVALID);
        }
        assert!(is_in(inside.pid(number), &jail.path));
        assert_eq!(inside.peer.get::<String>("GetPidCgroupAbs", arguments!["memory", number]), "/");
    }
    // On the host it is the root that this is counted from.
    let own = manager.client(&root);
    own.does("MovePidAbs", arguments!["memory", &jail.path, own.pid()]);
    assert_eq!(own.get::<String>("GetPidCgroupAbs", arguments!["memory", own.pid()]), jail.path);
}

fn nobody_makes_up_a_map(lab: &Lab) {
    let (manager, alice, bob) = (Manager::start(lab), lab.user(), lab.user());
    let jail = Jail::new(lab, "memory", "a");
    jail.give_to(&alice);
    let outside = manager.client(&alice);
    jail.put(outside.pid());
    assert_eq!(outside.get::<i32>("Create", arguments!["memory", "x"]), -1);
    let hers = (alice.uid, alice.gid);
    // Without a map all ids are nobody's.
    let unmapped = Inside::new(&manager, &jail, &alice, &["--user"], 0);
    unmapped.fails("Chown", arguments!["memory", "x", 0, 0], CHOWN);
    unmapped.fails("Chown", arguments!["memory", "x", alice.uid, alice.gid], CHOWN);
    unmapped.fails("Chown", arguments!["memory", "x", 65534, 65534], CHOWN);
    // The kernel lets her write no other map than one with herself.
    let (namespace, _) = alice.userns();
    for map in [format!("0 {} 1", bob.uid), "0 0 1".to_owned(), format!("0 {} 2", alice.uid)] {
        let script = format!("echo '{map}' >/proc/{}/uid_map", namespace.pid);
        let written = alice.command("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
        assert!(!written.success(), "{map}");
    }
    // In one whose root is bob she is nobody.
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{file}", namespace.pid), format!("0 {} 1\n1 {} 1\n", bob.uid, alice.uid))
            .unwrap();
    }
    let second = Inside::start(&manager, &jail, &lab.root(), in_namespace(namespace.pid, 1), 0);
    for ids in [(0, 0), (1, 0), (0, 1)] {
        second.fails("Chown", arguments!["memory", "x", ids.0, ids.1], INVALID);
    }
    assert_eq!(owner(&jail, "x"), hers);
    // And bob is root over what is hers there, as by the twin of the call: no further.
    let first = Inside::start(&manager, &jail, &lab.root(), in_namespace(namespace.pid, 0), 0);
    first.fails("Chown", arguments!["memory", "x", 2, 2], CHOWN);
    first.peer.does("Chown", arguments!["memory", "x", 1, 1]);
    assert_eq!(owner(&jail, "x"), hers);
    chown(jail.dir.join("x"), Some(0), Some(0)).unwrap();
    first.fails("Chown", arguments!["memory", "x", 1, 1], INVALID);
    assert_eq!(owner(&jail, "x"), (0, 0));
}

/// As this id of the user namespace of a process, in a pid namespace that its root makes.
fn in_namespace(of: u32, id: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--user=/proc/{of}/ns/user")).args(["-S0", "-G0"]);
    command.args(["unshare", "--pid", "--fork", "--kill-child", "setpriv", "--clear-groups"]);
    command.args([format!("--reuid={id}"), format!("--regid={id}")]);
    command
}

/// A number that was one's own process is another's: the rules are asked about whoever has it now.
fn who_has_the_number_now_is_asked_about(lab: &Lab) {
    let (manager, alice) = (Manager::start(lab), lab.user());
    let jail = Jail::new(lab, "memory", "a");
    jail.give_to(&alice);
    let inside = Inside::of(&manager, &jail, &alice, 0);
    assert_eq!(inside.peer.get::<i32>("Create", arguments!["memory", "x"]), -1);
    let own = format!("--pid=/proc/{}/ns/pid", inside.pid(1));
    // Both have the number 50, one after the other.
    let fiftieth = |user: &str| {
        let mut command = Command::new("nsenter");
        command.args([&own, "sh", "-c"]).arg(format!(
            "echo 49 >/proc/sys/kernel/ns_last_pid; setpriv --reuid {user} --clear-groups sleep 1000 & wait"
        ));
        let process = Process::of(&mut jail.command(&command));
        let mut found = None;
        wait_until("it has the number", || {
            let all = harness::descendants_of(process.pid);
            found = all.into_iter().find(|pid| comm(*pid) == "sleep");
            found.is_some()
        });
        (process, found.unwrap())
    };
    let (process, pid) = fiftieth(&alice.uid.to_string());
    let seen_as = number(pid).unwrap();
    inside.peer.does("MovePid", arguments!["memory", "x", seen_as]);
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    wait_until("it is gone", || !fs::exists(format!("/proc/{pid}")).unwrap());
    drop(process);
    inside.fails("MovePid", arguments!["memory", "x", seen_as], MOVE);
    let (_process, other) = fiftieth("0");
    assert_eq!(number(other), Some(seen_as), "the number is not used again");
    inside.fails("MovePid", arguments!["memory", "x", seen_as], INVALID);
    assert!(is_in(other, &jail.path));
}

crate::tests![
    ids_are_those_of_the_callers_maps,
    no_number_leads_out_of_the_callers_namespace,
    nobody_escapes_by_what_is_called_absolute,
    nobody_makes_up_a_map,
    numbers_mean_what_they_mean_to_the_caller,
    who_has_the_number_now_is_asked_about,
    whom_one_names_is_not_yet_ones_own,
];
