//! CGManager's interface inside containers: by its own command through `cgproxy`, chained too, as scripts there have it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::{
    Lab, Process, User,
    cgmanager::{Jail, Manager},
    harness,
    program::{Ready, build},
    wait_until,
};

/// Where the first container's ids begin on the host.
const BASE: u32 = 0x7050_0000;

/// A container by hand: user, pid and mount namespaces with 65,536 ids, and CGManager's directory of whoever is around it.
struct Container {
    init: u32,
    _holder: Process,
    programs: PathBuf,
}

impl Container {
    /// On the host, with ids from `base`.
    fn new(lab: &Lab, base: u32, directory: &str) -> Self {
        Self::inside(lab, None, base, 65_536, directory)
    }

    /// In another one, or on the host; `first` is as that counts.
    fn inside(lab: &Lab, around: Option<&Self>, first: u32, count: u32, directory: &str) -> Self {
        let mut command = Self::enter(around, &["--user", "--pid", "--mount"]);
        command.args(["unshare", "--user", "--pid", "--mount", "--fork", "sleep", "1000"]);
        let holder = Process::of(command.stdin(Stdio::null()).stderr(Stdio::null()));
        let mut init = None;
        wait_until("a container's first process runs", || {
            let children = harness::descendants_of(holder.pid).into_iter();
            init = children.rev().find(|pid| comm(*pid) == "sleep");
            init.is_some()
        });
        let container = Self { init: init.unwrap(), _holder: holder, programs: lab.programs.clone() };
        for map in ["uid_map", "gid_map"] {
            let mut write = Self::enter(around, &["--user"]);
            let text = format!("echo 0 {first} {count} >/proc/{}/{map}", container.init);
            assert!(write.args(["sh", "-c", &text]).status().unwrap().success(), "{map}");
        }
        let place = "cd \"$0\" && mount -t proc proc /proc && mount -t tmpfs t /sys/fs/cgroup && \
                     mkdir /sys/fs/cgroup/cgmanager && mount -c --bind . /sys/fs/cgroup/cgmanager";
        let output = container.command(&["sh", "-c", place, directory]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        container
    }

    /// A command in the namespaces of a container, as its root; on the host if there is none.
    fn enter(around: Option<&Self>, namespaces: &[&str]) -> Command {
        let Some(around) = around else {
            let mut command = Command::new("setsid");
            command.arg("--wait");
            return command;
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", around.init)).args(namespaces);
        command.args(["--setuid=0", "--setgid=0", "--"]);
        command
    }

    /// A command of its root.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Self::enter(Some(self), &["--user", "--pid", "--mount"]);
        command.args(words).env_clear().stdin(Stdio::null());
        command.env("PATH", format!("{}:/usr/bin:/bin:/usr/sbin:/sbin", self.programs.display()));
        command
    }

    /// Starts a proxy in it, in a cgroup; returns when that answers.
    fn start_proxy(&self, lab: &Lab, jail: &Jail, more: &[&str]) {
        let proxy = self.programs.join("cgproxy");
        let words = [&[proxy.to_str().unwrap(), "--daemon"], more].concat();
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.scratch.join("log")).unwrap();
        let mut command = jail.command(&self.command(&words));
        let started = command.stdout(Stdio::null()).stderr(log).status().unwrap();
        assert!(started.success(), "{}", fs::read_to_string(lab.scratch.join("log")).unwrap());
    }

    /// What a script of its root says, in a cgroup.
    fn says(&self, jail: &Jail, script: &str) -> Vec<String> {
        let output = jail.command(&self.command(&["sh", "-c", script])).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8(said).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // All that is in it ends with its first process.
        let _ = Command::new("kill").args(["-KILL", &self.init.to_string()]).status();
    }
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// A cgroup that root of a container owns.
fn jail(lab: &Lab, name: &str, root: u32) -> Jail {
    let jail = Jail::new(lab, "memory", name);
    jail.give_to(&User::new(root, &[], &lab.scratch, &lab.programs));
    jail
}

/// What a script sees: numbers and ids of the container's own, whatever they are outside.
const SCRIPT: &str = "
    cgm ping && echo answers
    cgm create memory x; cgm create memory x
    sleep 1000 & p=$!
    cgm movepid memory x $p && cgm getpidcgroup memory $p && cgm getpidcgroupabs memory $p
    [ \"$(cgm gettasks memory x)\" = $p ] && [ \"$(cgm gettasksrecursive memory x)\" = $p ] && echo counted
    cgm chown memory x 1000 1001 && cgm listkeys memory x | grep '^tasks '
    cgm listchildren memory
    cgm setvalue memory x memory.limit_in_bytes 40960000; cgm getvalue memory x memory.limit_in_bytes
    cgm chmod memory x 0750; cgm chmodfile memory x tasks 0640; cgm listkeys memory x | grep '^tasks '
    setpriv --reuid 1002 --regid 1002 --clear-groups cgm create memory y
    setpriv --reuid 1000 --regid 1001 --clear-groups cgm create memory x/y && cgm listchildren memory x
    setpriv --reuid 1000 --regid 1001 --clear-groups cgm movepid memory x/y $p
    cgm movepid memory x 4000000
    cgm listcontrollers | grep -c memory
    cgm movepidabs memory / $p && cgm getpidcgroup memory $p
    kill $p; { wait $p; } 2>/dev/null
    cgm remove memory x && cgm remove memory x && echo removed";

const SEEN: [&str; 15] = [
    "answers",
    "Path existed",
    "x",
    "/x",
    "counted",
    "tasks 1000 1001 100644",
    "x",
    "40960000",
    "tasks 1000 1001 100640",
    "y",
    "1",
    "/",
    "Path did not exist",
    "removed",
    "",
];

fn check(said: &[String]) {
    // Errors have an order of their own.
    let (failed, seen): (Vec<&String>, Vec<&String>) =
        said.iter().partition(|line| line.starts_with("call to "));
    let expected: Vec<&str> = SEEN.into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(seen, expected, "{said:#?}");
    let refused = |function: &str| format!("call to cgmanager_{function}_sync failed: invalid request");
    // Not in root's cgroup; not root's process; not one that is not there.
    assert_eq!(failed, [&refused("create"), &refused("move_pid_main"), &refused("move_pid_main")]);
}

fn a_container_has_cgmanager_through_its_proxy(lab: &Lab) {
    let manager = Manager::start(lab);
    let jail = jail(lab, "c", BASE);
    let container = Container::new(lab, BASE, manager.socket.parent().unwrap().to_str().unwrap());
    // Without one it is served all the same, but that nothing begins at the proxy's cgroup.
    let script = SCRIPT.replace("cgm movepidabs memory / $p && cgm getpidcgroup memory $p", "echo /");
    let script = script.replace("cgm movepid memory x 4000000", "cgm movepid memory nowhere $p");
    check(&container.says(&jail, &script));
    let nobody = container.says(&jail, "cgm movepid memory '' 4000000");
    let told = "call to cgmanager_move_pid_main_sync failed: Escape request from different namespace requires a proxy";
    assert_eq!(nobody, [told]);
    assert_eq!(container.says(&jail, "cgproxy --check-master && echo there"), ["there"]);
    container.start_proxy(lab, &jail, &[]);
    check(&container.says(&jail, SCRIPT));
    // Whoever counts processes in yet another way names them by its own numbers, and is told those.
    let nested = "unshare --pid --fork sh -c 'cgm create memory n; sleep 9 & cgm movepid memory n $!; \
                  cgm getpidcgroup memory $!; cgm getpidcgroup memory 77; kill $!; wait'; cgm remove memory n";
    let elsewhere =
        "call to cgmanager_get_pid_cgroup_sync failed: GetPidCgroup called from non-init namespace";
    assert_eq!(container.says(&jail, nested), ["n", elsewhere]);
    // But nobody there begins at the proxy's cgroup, which may be above its own.
    let said = container.says(&jail, "unshare --pid --fork sh -c 'cgm movepidabs memory / 1'");
    assert!(
        matches!(said.as_slice(), [only] if only.ends_with(": Escape request from different namespace requires a proxy")),
        "{said:?}"
    );
    // And users likewise.
    let nested = r"cgm create memory u
        unshare --user sleep 60 & n=$!
        while [ $(readlink /proc/$n/ns/user) = $(readlink /proc/self/ns/user) ]; do sleep 0.05; done
        printf '0 0 1\n5 1000 10\n' >/proc/$n/uid_map; printf '0 0 10\n' >/proc/$n/gid_map
        nsenter --user=/proc/$n/ns/user sh -c 'cgm chown memory u 6 7; cgm chown memory u 1000 0'
        cgm listkeys memory u | grep '^tasks '; cgm remove memory u; kill $n";
    let elsewhere = "call to cgmanager_chown_sync failed: chown called from different user namespace";
    let mut said = container.says(&jail, nested);
    said.sort();
    assert_eq!(said, [elsewhere, "tasks 1001 7 100644"]);
    let nested = "unshare --pid --fork sh -c 'echo $$; cgm gettasks memory'";
    let said = container.says(&jail, nested);
    assert!(said[0] == "1" && said[1..].contains(&"1".to_owned()), "its own first process: {said:?}");
    let again = container.says(&jail, "cgproxy");
    assert!(again[0].contains("a proxy runs already"), "{again:?}");
    assert!(jail.has("cgroup.procs") && !jail.has("x"));
}

fn proxies_may_be_chained(lab: &Lab) {
    let manager = Manager::start(lab);
    let outer_jail = jail(lab, "c", BASE);
    let outer = Container::new(lab, BASE, manager.socket.parent().unwrap().to_str().unwrap());
    outer.start_proxy(lab, &outer_jail, &[]);
    // A container in the container, with a cgroup that its root has from there.
    let inner_root = 20_000;
    outer.says(
        &outer_jail,
        &format!("cgm create memory inner; cgm chown memory inner {inner_root} {inner_root}"),
    );
    let inner_jail = Jail { dir: outer_jail.dir.join("inner"), path: format!("{}/inner", outer_jail.path) };
    assert!(inner_jail.has("cgroup.procs"));
    let inner = Container::inside(lab, Some(&outer), inner_root, 5000, "/sys/fs/cgroup/cgmanager");
    inner.start_proxy(lab, &inner_jail, &["--account", "4000"]);
    check(&inner.says(&inner_jail, SCRIPT));
    // It reads and moves to nothing above its own cgroup.
    let above = format!(
        "cgm getvalue memory {0} memory.limit_in_bytes; cgm gettasks memory {0}; cgm listchildren memory {0}; \
         cgm listkeys memory {0}; cgm getvalue memory {1} memory.usage_in_bytes >/dev/null && echo own",
        outer_jail.path, inner_jail.path
    );
    let said = inner.says(&inner_jail, &above);
    assert_eq!(said.iter().filter(|line| line.ends_with("failed: invalid request")).count(), 4, "{said:?}");
    assert_eq!(said.iter().filter(|line| *line == "own").count(), 1, "{said:?}");
    // And once more.
    let root = 1000;
    inner.says(&inner_jail, &format!("cgm create memory in; cgm chown memory in {root} {root}"));
    let innermost_jail = Jail { dir: inner_jail.dir.join("in"), path: format!("{}/in", inner_jail.path) };
    let innermost = Container::inside(lab, Some(&inner), root, 3000, "/sys/fs/cgroup/cgmanager");
    innermost.start_proxy(lab, &innermost_jail, &["--account", "2000"]);
    check(&innermost.says(&innermost_jail, SCRIPT));
    drop((innermost, inner));
}

/// What its options say: CGManager's own, for inits that wait for a proxy by one of them.
fn a_proxy_starts_as_its_options_say(lab: &Lab) {
    let manager = Manager::start(lab);
    let jail = jail(lab, "c", BASE);
    let container = Container::new(lab, BASE, manager.socket.parent().unwrap().to_str().unwrap());
    let says = |script: &str| container.says(&jail, script);
    // The host's is not the container's to write.
    assert_eq!(says("mount -t tmpfs tmpfs /run"), Vec::<String>::new());
    // Somebody answers at one of the two sockets, or nobody does.
    assert_eq!(says("cgproxy --check-master; echo $?"), ["0"]);
    assert_eq!(says("cgproxy --check-master --socket /run/none --upper /run/none2; echo $?"), ["1"]);
    assert_eq!(says("cgproxy --wrong 2>/dev/null; echo $?"), ["2"]);
    let nobody = says("cgproxy --socket /run/none/sock --upper /run/none2/sock; echo $?");
    assert!(nobody[0] == "1" && nobody.last().unwrap().starts_with("cgproxy: nobody answers"), "{nobody:?}");
    let user = says("setpriv --reuid 1000 --regid 1000 --clear-groups cgproxy; echo $?");
    assert_eq!(user, ["1", "cgproxy: only root of a container can answer for those who are in it"]);
    // In the foreground, without a pid file, and stopped once it answers.
    let state = r#"state() { sed 's/.*) \(.\).*/\1/' /proc/$1/stat; }; "#;
    let stopped = r#"until [ "$(state $p)" = T ]; do sleep 0.05; done; echo stopped; "#;
    let foreground = format!(
        "{state} cgproxy --sigstop 2>/run/log & p=$!; {stopped} ls /run/cgproxy.pid 2>/dev/null; kill -CONT $p; \
         cgm ping && cgm create memory x && cgm movepid memory x $$ && cgm movepidabs memory / $$ && \
         cgm remove memory x && echo answers; kill $p; {{ wait $p; }} 2>/dev/null; cgm ping 2>/dev/null || echo gone; \
         cgproxy --check-master; echo $?"
    );
    assert_eq!(says(&foreground), ["stopped", "answers", "gone", "0"]);
    // In the background: it returns when calls are answered, by a session's leader whose number is in the file. The outer
    // socket's directory is where the first one put it.
    let running = "p=$(cat /run/cgproxy.pid); cat /proc/$p/comm; \
                   cut -d' ' -f6 /proc/$p/stat | grep -qx $p && echo leads";
    let background = format!("cgproxy --daemon 2>/run/log; echo $?; cgm ping && echo answers; {running}");
    assert_eq!(says(&background), ["0", "answers", "cgproxy", "leads"]);
    for again in ["cgproxy", "cgproxy --daemon", "cgproxy --sigstop"] {
        let said = says(&format!("{again}; echo $?"));
        assert!(said[0] == "1" && said[1].contains("a proxy runs already"), "{again}: {said:?}");
    }
    let ends = "cgproxy --check-master && kill $(cat /run/cgproxy.pid) && echo there; \
                while cgm ping 2>/dev/null; do sleep 0.05; done";
    assert_eq!(says(ends), ["there"]);
    // Both at once.
    let both = format!(
        "{state} cgproxy --daemon --sigstop 2>/run/log; echo $?; p=$(cat /run/cgproxy.pid); {stopped} kill -CONT $p; \
         cgm ping && echo answers; kill $p; while cgm ping 2>/dev/null; do sleep 0.05; done"
    );
    assert_eq!(says(&both), ["0", "stopped", "answers"]);
    // Sockets elsewhere, and an account for what parses.
    let elsewhere = "cgproxy --daemon --socket /run/own/sock --upper /sys/fs/cgroup/cgmanager.lower/sock --account 777 \
                     2>/run/log; echo $?; export CGRANT_CGMANAGER_SOCKET=/run/own/sock; cgm ping && echo answers; \
                     cat /proc/[0-9]*/status | grep -c '^Uid:.777.777.777.777$'; kill $(cat /run/cgproxy.pid)";
    assert_eq!(says(elsewhere), ["0", "answers", "1"]);
}

/// More tasks than fit into a socket at once, and than the original's proxy had room for in a value.
const MANY: usize = 2000;

/// CGManager's own proxy passed on 313 tasks of more, and 4,096 bytes of a longer value.
fn a_proxy_passes_on_all_of_a_long_answer(lab: &Lab) {
    let manager = Manager::start(lab);
    let jail = jail(lab, "c", BASE);
    let container = Container::new(lab, BASE, manager.socket.parent().unwrap().to_str().unwrap());
    container.start_proxy(lab, &jail, &[]);
    assert_eq!(container.says(&jail, "cgm create memory x"), Vec::<String>::new());
    let below = Jail { dir: jail.dir.join("x"), path: format!("{}/x", jail.path) };
    let program = build(lab, "tests/common/crowd.c");
    let mut command = below.command(&container.command(&[program.to_str().unwrap(), &MANY.to_string()]));
    let crowd = Ready::of(command.stdin(Stdio::piped()));
    let inside = harness::descendants_of(crowd.pid()).into_iter().chain([crowd.pid()]);
    let first = inside.into_iter().find(|pid| comm(*pid) == "crowd").unwrap();
    // Who entered the container's pid namespace from outside waits there for the program, and is in the cgroup too; it has no
    // number inside.
    let tasks: Vec<u32> = fs::read_dir(format!("/proc/{first}/task"))
        .unwrap()
        .map(|task| number_inside(&task.unwrap().path()))
        .collect();
    assert_eq!(tasks.len(), MANY);
    for verb in ["gettasks", "gettasksrecursive"] {
        let said = container.says(&jail, &format!("cgm {verb} memory x"));
        let said: Vec<u32> = said.iter().map(|line| line.parse().unwrap()).collect();
        let missing = tasks.iter().filter(|task| !said.contains(task)).count();
        assert_eq!(missing, 0, "{verb}: {} of {MANY}", said.len());
    }
    let expected = fs::read_to_string(below.dir.join("tasks")).unwrap();
    assert!(expected.len() > 8192);
    assert_eq!(container.says(&jail, "cgm getvalue memory x tasks").join("\n"), expected.trim_end());
    drop(crowd);
}

/// The number of a task in its own pid namespace.
fn number_inside(task: &Path) -> u32 {
    let status = fs::read_to_string(task.join("status")).unwrap();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    numbers.split_whitespace().next_back().unwrap().parse().unwrap()
}

crate::tests![
    a_proxy_passes_on_all_of_a_long_answer,
    a_container_has_cgmanager_through_its_proxy,
    a_proxy_starts_as_its_options_say,
    proxies_may_be_chained
];
