//! Debian with systemd in Debian with systemd, three levels of it: each launched from inside the one above by its root. In a virtual
//! machine all are of the machine's own suite.

use std::fs;

use crate::common::{
    Broker, Lab, checker,
    containers::{Shell, debian_with_command, inside, states, text, tree},
    network::{HOST4, HOST6, Network, OUTSIDE4, OUTSIDE6},
    node::Tcp,
    wait_until,
};

const LEVELS: [&str; 3] = ["one", "two", "three"];
/// Where the outside says who calls.
const PORT: &str = "7070";

struct Levels<'a> {
    lab: &'a Lab,
    uid: u32,
    shell: Shell<'a>,
}

impl Levels<'_> {
    // By the root of this level; 0 is the user on the host, who has the command alone.
    #[track_caller]
    fn at(&self, level: usize, words: &[&str]) -> String {
        self.shell.done(&inside(&LEVELS[..level], words))
    }

    #[track_caller]
    fn innermost(&self, script: &str) -> String {
        self.at(LEVELS.len(), &["sh", "-c", script])
    }

    fn says_that_it_runs(&self, level: usize) -> bool {
        let words = inside(&LEVELS[..level], &["systemctl", "is-system-running"]);
        text(&self.shell.output(&words).stdout).trim() == "running"
    }

    // What is not needed any more goes at once: a virtual machine's disk is small.
    fn launch_all(&self) {
        let archive = debian_with_command(self.lab);
        for (level, name) in LEVELS.iter().enumerate() {
            self.shell.import_inside(&LEVELS[..level], &archive, "debian");
            let (options, more): (&[&str], _) = match level {
                0 => (&["--nesting", "--memory", "400M"], true),
                1 => (&["--nesting"], true),
                _ => (&[], false),
            };
            if !more {
                fs::remove_file(&archive).unwrap();
            }
            self.at(level, &[&["cgrant", "launch", "debian", name, "--link", "--wait"], options].concat());
            if level > 0 {
                self.at(level, &["cgrant", "image", "remove", "debian", "--quiet"]);
            }
        }
    }

    // From each level its own containers are seen, with all below of them, and nothing else.
    #[track_caller]
    fn lists_are_right(&self, broker: &Broker) {
        const TREE: [&str; 5] = ["cgrant", "--format", "json", "list", "--tree"];
        let trees = ["one running [two running [three running []]]", "two running [three running []]"];
        for (level, name) in LEVELS.iter().enumerate() {
            let list = self.at(level, &["cgrant", "--format", "json", "list"]);
            assert_eq!(states(&list), [format!("{name} running")]);
            let all = trees.get(level).copied().unwrap_or("three running []");
            assert_eq!(tree(&self.at(level, &TREE)), all);
        }
        assert_eq!(tree(&self.at(LEVELS.len(), &TREE)), "");
        let stranger = self.lab.user();
        assert_eq!(tree(&Shell::new(self.lab, &stranger, broker).done(&TREE[1..])), "");
    }

    // What each sees of processes, cgroups and ids: its own, and of processes those of the levels below.
    #[track_caller]
    fn views_are_right(&self) {
        for level in 1..=LEVELS.len() {
            wait_until("it has booted", || self.says_that_it_runs(level));
            assert_eq!(self.at(level, &["systemctl", "--failed", "--no-legend"]), "", "level {level}");
            let own = self.at(level, &["sh", "-c", "hostname; id -u; ps -o comm= 1"]);
            assert_eq!(own, format!("{}\n0\nsystemd\n", LEVELS[level - 1]));
            let names = self.at(level, &["ps", "-e", "-o", "comm="]);
            let inits = names.lines().filter(|name| *name == "systemd").count();
            assert_eq!(inits, LEVELS.len() + 1 - level, "{names}");
            let cgroup = |of: &str| {
                let all = self.at(level, &["cat", &format!("/proc/{of}/cgroup")]);
                all.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
            };
            assert_eq!(cgroup("self").as_deref(), Some("/.cgrant"), "level {level}");
            assert_eq!(cgroup("1").as_deref(), Some("/init.scope"), "level {level}");
        }
        assert_eq!(self.innermost("awk '{print $1, $3}' /proc/self/uid_map"), "0 65536\n");
    }

    // Out through all of them: for who is outside it is the host that calls.
    #[track_caller]
    fn the_innermost_reaches_the_outside(&self) {
        for (to, host) in [(OUTSIDE4, HOST4), (OUTSIDE6, HOST6)] {
            let call = format!("exec 3<>/dev/tcp/{to}/{PORT}; cat <&3");
            let said = self.at(LEVELS.len(), &["bash", "-c", &call]);
            assert!(said.contains(host), "{to}: {said}");
        }
    }

    // The first one's limit is what kills in the innermost, and only whoever takes too much.
    #[track_caller]
    fn the_first_limit_holds_for_the_innermost(&self) {
        let first = checker::place(self.lab, self.uid, LEVELS[0], "memory");
        // How often something met the limit of this very cgroup.
        let met = || {
            let failures = fs::read_to_string(first.join("memory.failcnt")).ok();
            let failures = failures.or_else(|| {
                let events = fs::read_to_string(first.join("memory.events.local")).unwrap();
                events.lines().find_map(|line| line.strip_prefix("oom ")).map(str::to_owned)
            });
            failures.unwrap().trim().parse::<u64>().unwrap()
        };
        let before = met();
        let killed = self.shell.output(&inside(&LEVELS, &["tail", "/dev/zero"]));
        assert_eq!(killed.status.code(), Some(137), "{}", text(&killed.stderr));
        assert!(met() > before);
    }
}

fn three_levels_of_debian(lab: &Lab) {
    let network = Network::new(lab);
    network.outside.serve(Tcp, &format!("[::]:{PORT}"));
    let mut broker = network.broker();
    let user = lab.user();
    let levels = Levels { lab, uid: user.uid, shell: Shell::beside(lab, &user, &broker, &network) };
    levels.launch_all();
    checker::assert_in_order(lab);
    levels.views_are_right();
    levels.lists_are_right(&broker);
    levels.the_innermost_reaches_the_outside();
    levels.the_first_limit_holds_for_the_innermost();
    // What runs goes on without the broker, and the next one finds all of it.
    broker.kill_everything();
    assert_eq!(levels.innermost("echo there"), "there\n");
    levels.the_innermost_reaches_the_outside();
    broker.start_again();
    wait_until("the broker is back", || levels.shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    levels.lists_are_right(&broker);
    // Each is stopped in order by the one around it, before that ends itself.
    levels.shell.done(&["stop", LEVELS[0], "--timeout", "80"]);
    assert_eq!(levels.shell.json(&["info", LEVELS[0]])["ended"], "power off");
    checker::assert_empty(lab);
    levels.shell.done(&["delete", LEVELS[0]]);
}

crate::tests![three_levels_of_debian];
