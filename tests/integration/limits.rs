//! Limits: held by the kernel, changed while things run, the same meaning on v1 and v2, all or nothing.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::Command,
    time::{Duration, Instant},
};

use zbus::OwnedVariant;

use crate::{
    common::{Kind, Lab, Options, Process, User, bus::CGROUP, checker, wait_until},
    explain,
};

fn memory_is_limited_and_the_limit_can_be_changed_live(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client
        .create("mem", Options::new().limits(&[("memory.max", "48M"), ("memory.swap.max", "0")]))
        .unwrap();
    assert_eq!(client.value(&grant.path, "memory.max"), "50331648");
    let eat = |megabytes: &str| -> (Process, Option<String>) {
        let (eater, _, _) = user.agent(&["eat", megabytes]);
        client.attach(&grant.path, &eater.pidfd, Options::new()).unwrap();
        let said = eater.go();
        (eater, said)
    };
    let (mut eater, said) = eat("96");
    assert_eq!(said, None, "96 MB fit into 48");
    assert_eq!(eater.wait_signal(), Some(9));
    client.set_limits(&grant.path, &[("memory.max", "256M")]).unwrap();
    let (eater, said) = eat("96");
    assert_eq!(said.as_deref(), Some("ate 24576"), "the raised limit holds at once");
    drop(eater);
    client.set_limits(&grant.path, &[("memory.max", "48M")]).unwrap();
    assert_eq!(eat("96").1, None, "the lowered one too");
    checker::assert_in_order(lab);
    let kills = client.stat(&grant.path).get("oom-kills").and_then(|v| u64::try_from(v).ok());
    assert!(kills.is_some_and(|n| n >= 2), "{kills:?}");
}

fn a_child_obeys_the_limits_of_its_parents_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("forks", Options::new().limits(&[("pids.max", "20")])).unwrap();
    let (forker, _, _) = user.agent(&["fork", "40"]);
    client.attach(&grant.path, &forker.pidfd, Options::new()).unwrap();
    assert_eq!(forker.go().as_deref(), Some("forked 19"), "itself and 19 children");
    assert_eq!(client.processes(&grant.path).len(), 20);
    // Every child is in the grant in every hierarchy, not only where limits are.
    let places = checker::places(lab, user.uid, "forks");
    for (tree, place) in &places {
        assert_eq!(checker::members(place).len(), 20, "in {tree}");
    }
    client.set_limits(&grant.path, &[("pids.max", "100")]).unwrap();
    let (second, _, _) = user.agent(&["fork", "40"]);
    client.attach(&grant.path, &second.pidfd, Options::new()).unwrap();
    assert_eq!(second.go().as_deref(), Some("forked 40"));
    let pids = client.stat(&grant.path).get("pids-current").and_then(|v| u64::try_from(v).ok());
    assert_eq!(pids, Some(61));
}

fn values_mean_the_same_on_every_host(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("all", Options::new()).unwrap();
    let cases = [
        ("memory.max", "64M", "67108864"),
        ("memory.max", "1G", "1073741824"),
        ("memory.max", "67108864", "67108864"),
        ("memory.max", "max", "max"),
        ("cpu.max", "50000 100000", "50000 100000"),
        ("cpu.max", "150%", "150000 100000"),
        ("cpu.max", "1.5cpu", "150000 100000"),
        ("cpu.max", "max", "max"),
        ("cpu.weight", "1", "1"),
        ("cpu.weight", "100", "100"),
        ("cpu.weight", "500", "500"),
        ("cpu.weight", "10000", "10000"),
        ("pids.max", "12", "12"),
        ("pids.max", "max", "max"),
        ("cpuset.cpus", "0", "0"),
        ("cpuset.cpus", "0-1", "0-1"),
    ];
    for (key, value, expected) in cases {
        client.set_limits(&grant.path, &[(key, value)]).unwrap_or_else(|r| panic!("{key}={value}: {r:?}"));
        let now = client.value(&grant.path, key);
        let now = if key == "cpu.max" { now.trim_end_matches(" 100000").to_owned() } else { now };
        let expected = if key == "cpu.max" { expected.trim_end_matches(" 100000") } else { expected };
        assert_eq!(now, expected, "{key}={value}");
    }
    // The upper cgroup carries the limit, and so do the payload's own files, where programs inside look.
    let pids = checker::place(lab, user.uid, "all", "pids");
    client.set_limits(&grant.path, &[("pids.max", "33")]).unwrap();
    for file in ["pids.max", "payload/pids.max"] {
        assert_eq!(fs::read_to_string(pids.join(file)).unwrap().trim(), "33", "{file}");
    }
    let all = client.values(&grant.path, &[]).unwrap();
    for key in ["memory.max", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max"] {
        assert!(all.contains_key(key), "{key} is missing in {all:?}");
    }
}

fn what_v1_cannot_express_is_unsupported_with_the_reason(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let grant = client.create("high", Options::new()).unwrap();
    let result = client.set_limits(&grant.path, &[("memory.high", "64M")]);
    if lab.host.is_v1("memory") {
        result.unwrap_err().is("Unsupported", "memory.high");
        client
            .create("high2", Options::new().limits(&[("memory.high", "64M")]))
            .unwrap_err()
            .is("Unsupported", "memory.high");
        assert_eq!(client.names(), ["high"], "nothing is left of what was refused");
    } else {
        result.unwrap();
        assert_eq!(client.value(&grant.path, "memory.high"), "67108864");
    }
    checker::assert_in_order(lab);
}

fn wrong_values_are_refused_and_change_nothing(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let grant = client.create("wrong", Options::new().limits(&[("pids.max", "50")])).unwrap();
    let wrong = [
        ("memory.max", ""),
        ("memory.max", "-1"),
        ("memory.max", "64X"),
        ("memory.max", "64MB of it"),
        ("memory.max", "1e9"),
        ("memory.max", "99999999999999999999999"),
        ("cpu.max", "50000 100000 3"),
        ("cpu.max", "-5%"),
        ("cpu.max", "0 0"),
        ("cpu.weight", "0"),
        ("cpu.weight", "10001"),
        ("cpuset.cpus", "3-1"),
        ("cpuset.cpus", "a"),
        ("pids.max", "1.5"),
        ("pids.max", "-3"),
        ("io.max", "nonsense"),
        ("io.max", "8:0 rbps"),
        ("io.max", "8:0 tbps=1"),
        ("no.such.key\n", "1"),
        ("../memory.max", "1"),
        ("", "1"),
    ];
    for (key, value) in wrong {
        let result = client.set_limits(&grant.path, &[("pids.max", "7"), (key, value)]);
        let refused = result.err().unwrap_or_else(|| panic!("{key:?}={value:?} was taken"));
        assert!(
            ["InvalidArgument", "InvalidName"].contains(&refused.name.as_str()),
            "{key:?}={value:?}: {refused:?}"
        );
        assert_eq!(client.value(&grant.path, "pids.max"), "50", "after {key:?}={value:?}");
    }
    // Well-formed, but no such CPU here: the kernel's word.
    let refused = client.set_limits(&grant.path, &[("pids.max", "7"), ("cpuset.cpus", "4000")]).unwrap_err();
    assert!(["KernelRefused", "InvalidArgument"].contains(&refused.name.as_str()), "{refused:?}");
    assert_eq!(client.value(&grant.path, "pids.max"), "50");
    checker::assert_in_order(lab);
    // A raw file that no rule lists.
    client.set_limits(&grant.path, &[("memory.min", "1M")]).unwrap_err().is("NotAuthorized", "memory.min");
    client
        .set_limits(&grant.path, &[("hugetlb.3MB.max", "1M")])
        .unwrap_err()
        .is("NotAuthorized", "hugetlb.3MB.max");
    client.set_limits(&grant.path, &[("cgroup.procs", "1")]).unwrap_err();
    client.set_limits(&grant.path, &[("devices.allow", "a")]).unwrap_err();
}

fn a_grant_that_cannot_have_its_limits_is_not_made(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    for limits in [[("cpuset.cpus", "4000")], [("memory.max", "much")], [("io.max", "999:999 rbps=1")]] {
        client.create("none", Options::new().limits(&limits)).unwrap_err();
        checker::assert_empty(lab);
    }
}

fn freeze_stops_and_thaw_lets_go_on(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("ice", Options::new()).unwrap();
    let busy = user.spawn("sh", &["-c", "while :; do :; done"]);
    client.attach(&grant.path, &busy.pidfd, Options::new()).unwrap();
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", busy.pid)).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(11).unwrap().parse().unwrap()
    };
    let start = ticks();
    wait_until("it runs", || ticks() > start);
    client.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap();
    assert!(client.property::<bool>(&grant.path, CGROUP, "Frozen"));
    let frozen = ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ticks(), frozen, "it does not run");
    client.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap();
    client.cgroup::<_, ()>(&grant.path, "Thaw", &()).unwrap();
    assert!(!client.property::<bool>(&grant.path, CGROUP, "Frozen"));
    wait_until("it runs again", || ticks() > frozen);
    // A frozen grant can be released.
    client.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap();
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
    assert!(!busy.is_alive());
}

fn kill_ends_everything_in_it_and_keeps_the_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("kill", Options::new()).unwrap();
    let mut tree =
        user.spawn("sh", &["-c", "trap '' TERM INT HUP; (sleep 1000; :) & (sleep 1000; :) & wait; wait"]);
    wait_until("its children run", || crate::common::harness::descendants_of(tree.pid).len() >= 4);
    assert!(client.attach(&grant.path, &tree.pidfd, Options::new().with("tree", true)).unwrap() >= 5);
    let mut stage = user.sleeper();
    client.attach(&grant.path, &stage.pidfd, Options::new().with("target", "stage")).unwrap();
    client.cgroup::<_, ()>(&grant.path, "Kill", &()).unwrap();
    assert_eq!(tree.wait_signal(), Some(9));
    assert!(client.processes(&grant.path).is_empty());
    assert_eq!(client.names(), ["kill"]);
    // On cgroup2 the launch stage sits outside payload, in `monitor`, and outlives a kill.
    if lab.host.kind == Kind::V2 {
        assert!(stage.is_alive());
        client.release(&grant.path, true).unwrap();
        assert_eq!(stage.wait_signal(), Some(9));
    }
    checker::assert_in_order(lab);
}

fn figures_are_there(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("figures", Options::new()).unwrap();
    let busy = user.spawn("sh", &["-c", "while :; do :; done"]);
    client.attach(&grant.path, &busy.pidfd, Options::new()).unwrap();
    let number =
        |key: &str| client.stat(&grant.path).get(key).and_then(|v: &OwnedVariant| u64::try_from(v).ok());
    wait_until("CPU time is counted", || number("cpu-usage-usec").is_some_and(|n| n > 10_000));
    assert_eq!(number("pids-current"), Some(1));
    assert!(number("memory-current").is_some());
    assert_eq!(number("oom-kills"), Some(0));
    let (used, kernel) = (number("cpu-usage-usec").unwrap(), lab.host.with("cpu").is_some());
    assert!(kernel && used > 0);
}

/// A ceiling has to hold below any number of cgroups; where the kernel can't see to that, nobody is told that it does.
fn io_that_can_not_be_bounded_is_not_promised(lab: &Lab) {
    let user = lab.user();
    for table in ["account-ceiling", "grant-ceiling"] {
        let policy = |limit: &str| {
            let ceiling = format!("{table} = {{ \"io.max\" = \"{limit}\" }}");
            lab.write_policy(&format!("[[rule]]\nname = \"disk\"\nuids = [{}]\n{ceiling}\n", user.uid));
        };
        policy("8:0 rbps=1M");
        let broker = lab.broker();
        let client = user.client(broker.socket());
        if lab.host.is_v1("blkio") {
            let question =
                explain::explain(&client, "CreateGrant", Options::new().with("name", "bound")).unwrap();
            let made = client.create("bound", Options::new());
            explain::same(table, &question, &made);
            let refused = made.err().unwrap();
            refused.is("Unsupported", "cgroup_no_v1=blkio");
            assert_eq!(refused.text("resource").as_deref(), Some("io.max"));
            assert!(refused.text("rule").is_some_and(|rule| rule.ends_with("disk")), "{refused:?}");
            assert!(refused.text("hint").is_some_and(|hint| hint.contains(table)), "{refused:?}");
            assert!(broker.log().contains(&format!("io.max of {table} can't be kept")), "{}", broker.log());
            checker::assert_empty(lab);
            // Nobody else is concerned.
            let other = lab.user().client(broker.socket());
            let grant = other.create("free", Options::new()).unwrap();
            let limited = other.set_limits(&grant.path, &[("io.max", "8:0 rbps=1M")]);
            limited.unwrap_err().is("Unsupported", "io.max");
            assert!(!other.values(&grant.path, &[]).unwrap().contains_key("io.max"));
            other.release(&grant.path, true).unwrap();
        } else {
            assert!(!broker.log().contains("can't be kept"), "{}", broker.log());
        }
        // What was lifted needs nothing of the host.
        policy("max");
        broker.reload();
        wait_until("the ceiling is lifted", || client.create("bound", Options::new()).is_ok());
        drop(client);
        broker.settle();
        checker::assert_empty(lab);
    }
}

/// A block device of the test's own, for as long as this lives.
struct Disk {
    path: String,
    number: String,
}

impl Disk {
    fn new(lab: &Lab) -> Self {
        let file = lab.scratch.join("disk");
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let path = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let number = fs::metadata(&path).unwrap().rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        Self { path, number: format!("{major}:{minor}") }
    }

    /// A process of the user's that has read nothing yet and will read `blocks` of 64 KB past every cache.
    fn reader(&self, user: &User, blocks: u32) -> Process {
        let open = fs::File::open(&self.path).unwrap();
        let mut command = user.command("sh");
        let read =
            format!("kill -STOP $$; exec dd of=/dev/null bs=65536 count={blocks} iflag=direct status=none");
        let reader = Process::of(command.args(["-c", &read]).stdin(open));
        wait_until("the reader waits", || reader.state() == Some('T'));
        reader
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

/// Two grants of one account share what policy lets it read, however much each of them asks for.
fn io_of_all_grants_together_is_bounded(lab: &Lab) {
    let user = lab.user();
    if lab.host.is_v1("blkio") {
        let broker = lab.broker();
        let limited =
            user.client(broker.socket()).create("one", Options::new().limits(&[("io.max", "8:0 rbps=1M")]));
        limited.err().unwrap().is("Unsupported", "io.max");
        return checker::assert_empty(lab);
    }
    let disk = Disk::new(lab);
    let ceiling = format!("{} rbps=1048576", disk.number);
    lab.write_policy(&format!(
        "[[rule]]\nname = \"disk\"\naccount-ceiling = {{ \"io.max\" = \"{ceiling}\" }}\n"
    ));
    let broker = lab.broker();
    let client = user.client(broker.socket());
    let mut readers = Vec::new();
    for name in ["one", "two"] {
        let grant = client.create(name, Options::new().no_range()).unwrap();
        // A grant's own limit is one more; this one is no matter.
        client.set_limits(&grant.path, &[("io.max", &format!("{} rbps=100M", disk.number))]).unwrap();
        let reader = disk.reader(&user, 48);
        client.attach(&grant.path, &reader.pidfd, Options::new()).unwrap();
        readers.push(reader);
    }
    let begun = Instant::now();
    for reader in &readers {
        rustix::process::pidfd_send_signal(&reader.pidfd, rustix::process::Signal::CONT).unwrap();
    }
    for reader in &mut readers {
        assert_eq!(reader.wait_code(), Some(0));
    }
    // 6 MB at 1 MB/s together. Each for itself they would have taken 3 s; a slow machine only makes it more.
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    checker::assert_in_order(lab);
}

/// A file of the cgroup that all grants of an account lie in, by where one of them does.
fn of_account(lab: &Lab, user: &User, grant: &str, controller: &str, file: &str) -> String {
    let place = checker::place(lab, user.uid, grant, controller);
    fs::read_to_string(place.parent().unwrap().join(file)).unwrap().trim().to_owned()
}

fn memory_of(lab: &Lab, user: &User, grant: &str) -> Option<u64> {
    let file = if lab.host.is_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    // Without a limit v1 has the largest number of whole pages.
    let value = of_account(lab, user, grant, "memory", file).parse().ok();
    value.filter(|bytes| *bytes < u64::MAX / 4)
}

fn all_grants_together_are_bounded(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"small\"\n[rule.account-ceiling]\n\"pids.max\" = 30\n\"memory.max\" = \"64M\"\n\
         \"memory.swap.max\" = 0\n\"cpu.max\" = \"50%\"\n",
    );
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grants = ["one", "two"].map(|name| client.create(name, Options::new().no_range()).unwrap());
    let forkers = grants.each_ref().map(|grant| {
        let (forker, _, _) = user.agent(&["fork", "40"]);
        client.attach(&grant.path, &forker.pidfd, Options::new()).unwrap();
        forker
    });
    let said = forkers.each_ref().map(|forker| forker.go().unwrap());
    assert_eq!(said, ["forked 28", "forked 0"], "with the two themselves");
    drop(forkers);
    for grant in &grants {
        wait_until("they are gone", || client.processes(&grant.path).is_empty());
    }
    // Each would fit for itself.
    let mut eaters = grants.each_ref().map(|grant| {
        let (eater, _, _) = user.agent(&["eat", "40"]);
        client.attach(&grant.path, &eater.pidfd, Options::new()).unwrap();
        eater
    });
    assert!(eaters[0].go().is_some());
    let second = eaters[1].go();
    // The kernel chooses which of them ends.
    let ended = eaters.iter_mut().position(|eater| !eater.is_alive());
    assert!(ended.is_some(), "80 MB fit into 64: {second:?}");
    if lab.host.is_v1("cpu") {
        let quota = of_account(lab, &user, "one", "cpu", "cpu.cfs_quota_us").parse::<u64>().unwrap();
        let period = of_account(lab, &user, "one", "cpu", "cpu.cfs_period_us").parse::<u64>().unwrap();
        assert_eq!(quota * 2, period);
    } else {
        assert_eq!(of_account(lab, &user, "one", "cpu", "cpu.max"), "50000 100000");
    }
    checker::assert_in_order(lab);
}

/// Who has grants already is bounded by a new policy too, and by no older one any more.
fn another_policy_bounds_what_is_there(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let sleeper = user.sleeper();
    let held = Options::new().no_range().lifetime("process").fd("holder", &sleeper.pidfd);
    let grant = client.create("one", held).unwrap();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    let node = checker::places(lab, user.uid, "one")[&lab.host.cgroup2().name].parent().unwrap().to_owned();
    let cgroups = || -> u64 {
        fs::read_to_string(node.join("cgroup.max.descendants")).unwrap().trim().parse().unwrap()
    };
    let seen = || (of_account(lab, &user, "one", "pids", "pids.max"), memory_of(lab, &user, "one"));
    assert_eq!(seen(), ("max".to_owned(), None));
    let before = cgroups();
    let rule = |more: &str| lab.write_policy(&format!("[[rule]]\nname = \"new\"\n{more}"));
    let becomes = |pids: &str, memory: Option<u64>| {
        wait_until(&format!("{pids} {memory:?}"), || seen() == (pids.to_owned(), memory));
    };
    rule("quota.cgroups = 7\naccount-ceiling = { \"pids.max\" = 20, \"memory.max\" = \"64M\" }\n");
    becomes("20", Some(64 << 20));
    wait_until("fewer cgroups", || cgroups() < before);
    let few = cgroups();
    rule("account-ceiling = { \"pids.max\" = 30 }\n");
    becomes("30", None);
    wait_until("as many cgroups as before", || cgroups() >= before);
    // Also one that was put in force by nobody while it ran.
    broker.kill_everything();
    rule("quota.cgroups = 7\naccount-ceiling = { \"memory.max\" = \"64M\" }\n");
    broker.start_again();
    assert_eq!((seen(), cgroups()), (("max".to_owned(), Some(64 << 20)), few));
    checker::assert_in_order(lab);
}

/// Huge pages are bounded on the cgroup that is root's, of the account or of the grant, or whom policy bounds so gets no grants.
fn huge_pages_are_bounded_or_refused(lab: &Lab) {
    let broker = lab.broker();
    let tree = lab.host.with("hugetlb").map(|tree| tree.name.clone());
    let base = tree.and_then(|tree| checker::bases(&lab.host, &lab.instance).remove(&tree));
    let file = if lab.host.is_v1("hugetlb") { "hugetlb.2MB.limit_in_bytes" } else { "hugetlb.2MB.max" };
    let can = base.is_some_and(|base| base.join(file).exists());
    for table in ["account-ceiling", "grant-ceiling"] {
        lab.write_policy(&format!(
            "[[rule]]\nname = \"{table}\"\n{table} = {{ \"hugetlb.2MB.max\" = \"4M\" }}\n"
        ));
        broker.reload();
        let client = lab.user().client(broker.socket());
        wait_until("the policy is in force", || {
            let usage =
                client.manager::<_, (u32, String, Vec<(String, u64, u64)>)>("GetUsage", &Options::new().0);
            usage.unwrap().1.ends_with(table)
        });
        let user = lab.user();
        let client = user.client(broker.socket());
        let question =
            explain::explain(&client, "CreateGrant", Options::new().with("name", "pages")).unwrap();
        let made = client.create("pages", Options::new());
        explain::same("pages", &question, &made);
        if !can {
            let refused = made.err().unwrap();
            refused.is("Unsupported", "hugetlb.2MB.max");
            assert!(refused.text("hint").is_some_and(|hint| hint.contains(table)), "{refused:?}");
            checker::assert_empty(lab);
            continue;
        }
        let grant = checker::place(lab, user.uid, "pages", "hugetlb");
        let (of_account, of_grant) = (grant.parent().unwrap().join(file), grant.join(file));
        let bounded = if table == "account-ceiling" { of_account } else { of_grant };
        assert_eq!(fs::read_to_string(bounded).unwrap().trim(), "4194304", "{table}");
        let raised = client.set_limits(&made.unwrap().path, &[("hugetlb.2MB.max", "6M")]);
        assert_eq!(raised.is_err(), table == "grant-ceiling", "{raised:?}");
    }
}

crate::tests![
    memory_is_limited_and_the_limit_can_be_changed_live,
    a_child_obeys_the_limits_of_its_parents_grant,
    values_mean_the_same_on_every_host,
    what_v1_cannot_express_is_unsupported_with_the_reason,
    wrong_values_are_refused_and_change_nothing,
    a_grant_that_cannot_have_its_limits_is_not_made,
    freeze_stops_and_thaw_lets_go_on,
    kill_ends_everything_in_it_and_keeps_the_grant,
    figures_are_there,
    io_that_can_not_be_bounded_is_not_promised,
    io_of_all_grants_together_is_bounded,
    all_grants_together_are_bounded,
    another_policy_bounds_what_is_there,
    huge_pages_are_bounded_or_refused,
];
