//! Grants inside grants, asked for by the root of a container's range from inside, down to the third level; and what everybody
//! else in there tries.

use std::{fs, os::fd::OwnedFd, time::Duration};

use crate::common::{
    Broker, Client, Lab, Options, Process,
    bus::{GRANT, IDS, Refused},
    checker,
    level::{BLOCK, Level, all_names, connected, nesting, put, release, scene},
    wait_until,
};

// One inside is told by which number it knows the process, if the kernel says that (since Linux 6.11); or that it does not.
#[track_caller]
fn is_told_of(client: &Client, grant: &str, process: &Process) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let told: Result<Vec<u32>, Refused> = client.cgroup(grant, "ListProcesses", &());
    if version >= (6, 11) {
        assert_eq!(told.unwrap(), [process.pid]);
    } else {
        told.unwrap_err().is("Unsupported", "does not tell");
    }
}

// The innermost has its ids out of its parent's, its cgroup below its parent's limits, and is charged to the same account.
fn grants_in_grants_to_the_third_level(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one =
        Level::new(&user, &client, "one", nesting(2).limits(&[("memory.max", "64M"), ("pids.max", "40")]));
    assert_eq!((one.grant.count, one.map()), (3 * BLOCK, format!("0 {} {}", one.grant.uid, 3 * BLOCK)));
    assert_eq!(client.property::<u32>(&one.grant.path, IDS, "Nesting"), 2);

    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(1).limits(&[("pids.max", "30")]));
    assert_eq!(
        (two.grant.uid, two.grant.gid, two.grant.count),
        (BLOCK, BLOCK, 2 * BLOCK),
        "as its maker counts"
    );
    assert_eq!(two.map(), format!("0 {} {}", one.grant.uid + BLOCK, 2 * BLOCK), "as the host does");

    let second = two.client(lab, &user, broker.socket());
    let three = two.inner(&user, &second, "three", Options::new());
    assert_eq!((three.grant.uid, three.grant.count), (BLOCK, BLOCK));
    assert_eq!(three.map(), format!("0 {} {BLOCK}", one.grant.uid + 2 * BLOCK));
    checker::assert_in_order(lab);

    // Below the limits of the first, in every hierarchy.
    let outer = checker::places(lab, user.uid, "one");
    for (tree, place) in checker::places(lab, user.uid, "one/two/three") {
        assert!(place.starts_with(outer[&tree].join("children/two/children")), "{}", place.display());
    }
    // Each sees its own and nothing else.
    assert_eq!(
        (client.names(), all_names(&client)),
        (vec!["one".into()], vec!["one".into(), "two".into(), "three".into()])
    );
    assert_eq!((first.names(), all_names(&first)), (vec!["two".into()], vec!["two".into(), "three".into()]));
    assert_eq!((second.names(), all_names(&second)), (vec!["three".to_owned()], vec!["three".to_owned()]));
    let parent = |client: &Client| client.property::<String>(&three.grant.path, GRANT, "Parent");
    assert_eq!(
        (parent(&client), parent(&first), parent(&second)),
        (two.grant.id.clone(), two.grant.id.clone(), String::new())
    );
    let account = |client: &Client| client.property::<u32>(&three.grant.path, GRANT, "Account");
    assert_eq!((account(&client), account(&first)), (user.uid, 0));
    let uid = |client: &Client| client.property::<u32>(&three.grant.path, IDS, "Uid");
    assert_eq!((uid(&client), uid(&first), uid(&second)), (one.grant.uid + 2 * BLOCK, 2 * BLOCK, BLOCK));
    // Its processes by their numbers there, which is the host's pid namespace here.
    let sleeper = three.process(lab, &user, 0, &["files"]);
    assert_eq!(client.processes(&three.grant.path), [sleeper.pid]);
    for client in [&first, &second] {
        is_told_of(client, &three.grant.path, &sleeper);
    }
    // All three count.
    let (_, _, rows): (u32, String, Vec<(String, u64, u64)>) =
        client.manager("GetUsage", &Options::new().0).unwrap();
    let used = |name: &str| rows.iter().find(|row| row.0 == name).unwrap().1;
    assert_eq!((used("grants"), used("ids")), (3, u64::from(3 * BLOCK)), "ids inside are counted once");
    drop(sleeper);
    release(&first, &two.grant.path, Options::new()).unwrap_err().is("Busy", "1 grants were made inside");
    release(&first, &two.grant.path, Options::new().with("force", true)).unwrap();
    assert_eq!(all_names(&client), ["one"]);
    checker::assert_in_order(lab);
    release(&client, &one.grant.path, Options::new()).unwrap();
    checker::assert_empty(lab);
}

// The limit of the first level is what kills in the third.
fn the_limit_of_the_first_level_holds_for_the_third(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2).limits(&[("pids.max", "8")]));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(1).limits(&[("pids.max", "1000")]));
    let second = two.client(lab, &user, broker.socket());
    let three = two.inner(&user, &second, "three", Options::new().limits(&[("pids.max", "max")]));
    let forker = three.process(lab, &user, 0, &["fork", "20"]);
    let line = forker.go().unwrap();
    let forked: u32 = line.strip_prefix("forked ").unwrap().parse().unwrap();
    assert!((1..8).contains(&forked), "{forked} in a grant of 8, two of which are callers");
}

// What is put there by Attach is where it belongs, and does not come out again.
fn a_process_is_attached_to_a_grant_inside(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", Options::new());
    let sibling = one.inner(&user, &first, "sibling", Options::new());
    let stage = one.process(lab, &user, 0, &["files"]);
    assert_eq!(
        first.attach(&two.grant.path, &stage.pidfd, Options::new().with("target", "stage")).unwrap(),
        1
    );
    let path = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
    assert!(path.ends_with("/one/children/two/monitor"), "{path}");
    assert_eq!(
        first.attach(&two.grant.path, &stage.pidfd, Options::new().with("target", "payload")).unwrap(),
        1
    );
    let path = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
    assert!(path.ends_with("/one/children/two/payload"), "{path}");
    first
        .attach(&sibling.grant.path, &stage.pidfd, Options::new())
        .unwrap_err()
        .is("NotAuthorized", "leaves");
    is_told_of(&first, &two.grant.path, &stage);
    first
        .attach(&two.grant.path, &stage.pidfd, Options::new().with("tree", true))
        .unwrap_err()
        .is("Unsupported", "");
    // One of another id, and one that is the account's.
    let other = one.process(lab, &user, 7, &["files"]);
    for process in [&other, &user.sleeper()] {
        let refused = first.attach(&two.grant.path, &process.pidfd, Options::new()).unwrap_err();
        refused.is("NotAuthorized", "not yours");
        assert!(!refused.message.contains(&process.pid.to_string()), "{}", refused.message);
    }
}

// An ordinary user in there, root from outside of the payload, root of a grant without nesting, and root of a namespace of its own.
fn only_the_root_of_a_grant_with_nesting_is_served(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(1));
    let plain = Level::new(&user, &client, "plain", Options::new());
    let refused = |process: Process, id: u32, what: &str| {
        let client = Client::new(connected(&process), id, process);
        let refusal = client.create("x", Options::new().no_range()).unwrap_err();
        assert!(!refusal.message.contains(&user.uid.to_string()), "{what}: {}", refusal.message);
        refusal.is("NotAuthorized", "acts for nobody");
        client
            .manager::<_, Vec<(zbus::OwnedObjectPath, String, u32)>>("ListGrants", &Options::new().0)
            .unwrap_err();
    };
    refused(one.caller(lab, &user, 5, broker.socket()), 5, "another id");
    refused(one.caller(lab, &user, BLOCK, broker.socket()), BLOCK, "the first id of a block for others");
    refused(plain.caller(lab, &user, 0, broker.socket()), 0, "without nesting");
    let role = ["connect-when-told", broker.socket().to_str().unwrap()];
    refused(user.agent_in(&one.namespace, 0, &role).0, 0, "outside of the payload");
    let role = ["connect-from-inner-userns", broker.socket().to_str().unwrap()];
    refused(one.process(lab, &user, 0, &role), 0, "in a namespace of its own");
    // Root of the one in the payload of the other, where only the machine's root could put it.
    let two = Level::new(&user, &client, "two", nesting(1));
    let stray = one.caller(lab, &user, 0, broker.socket());
    put(lab, &user, "two", stray.pid);
    refused(stray, 0, "in another's payload");
    // Who claims to be the account itself is not let in.
    let process = one.caller(lab, &user, 5, broker.socket());
    assert!(Client::try_new(connected(&process), user.uid, process).is_err());
    assert_eq!(client.names(), ["one", "plain", "two"]);
    drop(two);
}

// A connection is its process's, where that was.
fn a_caller_that_has_left_or_ended_is_nobody(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(1));
    let other = Level::new(&user, &client, "other", nesting(1));
    let process = one.caller(lab, &user, 0, broker.socket());
    let pid = process.pid;
    let mut first = Client::new(connected(&process), 0, process);
    let inner = first.create("inner", Options::new().no_range()).unwrap();
    put(lab, &user, "other", pid);
    for refused in [
        first.create("more", Options::new().no_range()).err(),
        first.set_limits(&inner.path, &[("pids.max", "9")]).err(),
        release(&first, &inner.path, Options::new()).err(),
    ] {
        refused.unwrap().is("NotAuthorized", "ended or left");
    }
    put(lab, &user, "one", pid);
    first.set_limits(&inner.path, &[("pids.max", "9")]).unwrap();
    first.process.as_mut().unwrap().kill();
    first.set_limits(&inner.path, &[("pids.max", "10")]).unwrap_err().is("NotAuthorized", "ended or left");
    drop(other);
}

// Names and objects outside, and sizes beyond what there is.
fn a_nested_caller_reaches_nothing_outside(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let stranger = lab.user();
    let theirs = stranger.client(broker.socket());
    let foreign = theirs.create("foreign", Options::new()).unwrap();
    let one = Level::new(&user, &client, "one", nesting(2).limits(&[("pids.max", "100")]));
    let sibling = Level::new(&user, &client, "sibling", nesting(1));
    let first = one.client(lab, &user, broker.socket());
    for path in [&one.grant.path, &sibling.grant.path, &foreign.path] {
        release(&first, path, Options::new().with("force", true)).unwrap_err().is("NoSuchGrant", "");
        first.set_limits(path, &[("pids.max", "max")]).unwrap_err().is("NoSuchGrant", "");
        first.values(path, &["pids.max"]).unwrap_err().is("NoSuchGrant", "");
        let own = one.process(lab, &user, 0, &["files"]);
        first.attach(path, &own.pidfd, Options::new()).unwrap_err().is("NoSuchGrant", "");
    }
    for name in ["one", "sibling", "foreign"] {
        first.find(name).unwrap_err().is("NoSuchGrant", "");
    }
    let list = |key: &str, value: bool| {
        first.manager::<_, Vec<(zbus::OwnedObjectPath, String, u32)>>(
            "ListGrants",
            &Options::new().with(key, value).0,
        )
    };
    // All that there is in there, which is nothing yet.
    assert!(list("all", true).unwrap().is_empty() && list("nested", true).unwrap().is_empty());
    let account = Options::new().with("account", user.uid);
    first
        .manager::<_, (u32, String, Vec<(String, u64, u64)>)>("GetUsage", &account.0)
        .unwrap_err()
        .is("Unsupported", "");
    let inner = first.create("inner", Options::new().no_range()).unwrap();
    first.cgroup::<_, zbus::OwnedFd>(&inner.path, "OpenCgroup", &"").unwrap_err().is("Unsupported", "");
    let hierarchies: Vec<(String, String)> =
        first.property(&inner.path, "org.cgrant.Broker1.Cgroup", "Hierarchies");
    assert!(hierarchies.is_empty(), "{hierarchies:?}");
    // What comes as payload is no door to the host's cgroups.
    let payload =
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inner.payload))).unwrap();
    assert_eq!(payload.to_str().unwrap(), "/memfd:payload (deleted)");
    // Namespaces: the account's, a sibling's, its own grandchild, its own again.
    let grandchild = || {
        let (line, fds) = {
            let (p, l, f) = user.agent_in(&one.namespace, 0, &["inner-userns"]);
            let _keep = p;
            (l, f)
        };
        assert_eq!(line, "ok");
        fds.into_iter().nth(1).unwrap()
    };
    let (_account, accounts) = user.userns();
    let (_other, siblings) = sibling.userns(&user);
    let own = OwnedFd::from(fs::File::open(format!("/proc/{}/ns/user", one.namespace.pid)).unwrap());
    for (what, namespace) in
        [("account's", accounts), ("sibling's", siblings), ("grandchild", grandchild()), ("own", own)]
    {
        let refused = first.create("x", Options::new().fd("userns", &namespace)).unwrap_err();
        assert_eq!(refused.name, "NotAuthorized", "{what}: {}", refused.message);
    }
    // Out of its own blocks, and of nothing else.
    first.create("two-blocks", Options::new().count(2 * BLOCK).lifetime("persistent")).unwrap();
    first.create("more", Options::new()).unwrap_err().is("NoFreeRange", "65536");
    first.create("much", Options::new().count(u32::MAX)).unwrap_err();
    first.create("many", nesting(u32::MAX)).unwrap_err();
    checker::assert_in_order(lab);
    assert_eq!((client.names().len(), theirs.names().len()), (2, 1));
    assert_eq!(client.value(&one.grant.path, "pids.max"), "100");
}

// A name inside keeps its ids, also when the whole container is made anew.
fn a_name_inside_keeps_its_ids(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let ids = |names: &[&str]| {
        let one = Level::new(&user, &client, "one", nesting(3));
        let first = one.client(lab, &user, broker.socket());
        let uids: Vec<u32> =
            names.iter().map(|name| first.create(name, Options::new()).unwrap().uid).collect();
        let mut ranges: Vec<(u32, u32, u32, String, String)> = first.manager("ListRanges", &()).unwrap();
        ranges.sort();
        assert!(ranges.iter().all(|range| range.0 % BLOCK == 0 && range.0 <= 3 * BLOCK && range.2 == BLOCK));
        if names.is_empty() {
            assert_eq!(ranges.iter().map(|range| range.3.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            first.manager::<_, ()>("ForgetRange", &"b").unwrap();
            first.manager::<_, ()>("ForgetRange", &"b").unwrap_err().is("InvalidArgument", "no range");
        }
        release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
        uids
    };
    let before = ids(&["a", "b"]);
    assert_eq!(before, [BLOCK, 2 * BLOCK]);
    assert_eq!(ids(&["b", "c", "a"]), [2 * BLOCK, 3 * BLOCK, BLOCK]);
    checker::assert_empty(lab);
}

// Policy says how deep and how wide, and the account's quota of grants counts all of them.
fn policy_bounds_depth_and_number(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"few\"\nquota = { grants = 3, nesting-depth = 1, nesting-blocks = 2 }\n",
    );
    let (broker, user, client) = scene(lab);
    client.create("wide", nesting(3)).unwrap_err().is("QuotaExceeded", "nesting-blocks");
    let one = Level::new(&user, &client, "one", nesting(2));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(1));
    let second = two.client(lab, &user, broker.socket());
    second.create("three", Options::new().no_range()).unwrap_err().is("QuotaExceeded", "nesting-depth");
    first.create("b", Options::new().no_range()).unwrap();
    first.create("c", Options::new().no_range()).unwrap_err().is("QuotaExceeded", "3 of at most 3 grants");
    // Another's is its own.
    lab.user().client(broker.socket()).create("mine", Options::new()).unwrap();
}

// Each is told of what is in its own, and the end of a grant is the end of what is inside.
fn the_end_of_a_grant_ends_those_inside_and_no_others(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let holder = user.sleeper();
    let held = Options::new().lifetime("process").fd("holder", &holder.pidfd).with("nesting", 2_u32);
    let one = Level::new(&user, &client, "one", held);
    let first = one.client(lab, &user, broker.socket());
    let other = client.create("other", Options::new()).unwrap();
    let mut before = client.watch();
    client.create("told", Options::new().no_range()).unwrap();
    // A signal comes after the answer that it is about.
    let wait = Duration::from_secs(30);
    while client
        .signal::<(zbus::OwnedObjectPath, String, u32)>(&mut before, "GrantAdded", wait)
        .is_some_and(|(_, added)| added.1 != "told")
    {}
    let (mut outside, mut inside) = (client.watch(), first.watch());
    let two = one.inner(&user, &first, "two", nesting(1).lifetime("persistent"));
    let (_, added) =
        first.signal::<(zbus::OwnedObjectPath, String, u32)>(&mut inside, "GrantAdded", wait).unwrap();
    assert_eq!((added.1.as_str(), added.2), ("two", 0));
    let (_, added) =
        client.signal::<(zbus::OwnedObjectPath, String, u32)>(&mut outside, "GrantAdded", wait).unwrap();
    assert_eq!((added.1.as_str(), added.2), ("two", user.uid));
    // A nested holder's death ends its own.
    let second = two.client(lab, &user, broker.socket());
    let nested = two.process(lab, &user, 0, &["files"]);
    let held = Options::new().lifetime("process").fd("holder", &nested.pidfd).no_range();
    second.create("deep", held).unwrap();
    drop(nested);
    wait_until("the innermost ends", || {
        all_names(&client) == ["one", "two", "other", "told"]
            || all_names(&client) == ["one", "two", "other", "told"]
    });
    drop(holder);
    type Removed = (zbus::OwnedObjectPath, String, u32, String);
    let ends: Vec<(String, String)> = (0..3)
        .map(|_| client.signal::<Removed>(&mut outside, "GrantRemoved", wait).unwrap().1)
        .map(|(_, name, _, reason)| (name, reason))
        .collect();
    let end = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
    assert_eq!(ends, [end("deep", "holder-died"), end("two", "parent-ended"), end("one", "holder-died")]);
    assert_eq!(client.names(), ["other", "told"]);
    release(&client, &other.path, Options::new()).unwrap();
    checker::assert_in_order(lab);
}

// Whoever listens inside hears of nothing that is around its own, nor beside it: not that grants come, change, run out of memory or end.
fn those_inside_hear_of_nothing_around_them(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(1));
    let second = two.client(lab, &user, broker.socket());
    let mut outside = client.watch();
    let (mut heard, mut within) = (first.watch(), second.watch());
    // The account's, beside and around.
    let memory = [("memory.max", "32M"), ("memory.swap.max", "0")];
    let sibling = client.create("sibling", Options::new().limits(&memory)).unwrap();
    client.set_limits(&sibling.path, &[("pids.max", "40")]).unwrap();
    client.set_limits(&one.grant.path, &[("pids.max", "400")]).unwrap();
    let (mut eater, _, _) = user.agent(&["eat", "96"]);
    client.attach(&sibling.path, &eater.pidfd, Options::new()).unwrap();
    assert_eq!(eater.go(), None);
    assert_eq!(eater.wait_signal(), Some(9));
    let wait = Duration::from_secs(30);
    client.signal::<u64>(&mut outside, "Oom", wait).expect("no Oom signal: this proves nothing");
    release(&client, &sibling.path, Options::new()).unwrap();
    client
        .signal::<(zbus::OwnedObjectPath, String, u32, String)>(&mut outside, "GrantRemoved", wait)
        .unwrap();
    // And for who is in the second one, what root of the first does beside it.
    let beside = first.create("beside", Options::new().no_range()).unwrap();
    first.set_limits(&beside.path, &[("pids.max", "30")]).unwrap();
    release(&first, &beside.path, Options::new()).unwrap();
    // Signals come in the order of what they are about.
    let last = second.create("last", Options::new().no_range()).unwrap();
    let is_of = |heard: &[(String, String)], own: &[&str], before: &str| {
        let strange: Vec<_> =
            heard.iter().filter(|(_, about)| !own.contains(&about.as_str()) && about != before).collect();
        assert!(strange.is_empty(), "{strange:?}");
        for path in own {
            assert!(heard.iter().any(|(member, about)| member == "GrantAdded" && about == path), "{heard:?}");
        }
    };
    is_of(&second.signals_until_added(&mut within, "last").unwrap(), &[&last.path], "");
    // What became of the second one, which is its own too, may still be told after the answer.
    is_of(
        &first.signals_until_added(&mut heard, "last").unwrap(),
        &[&beside.path, &last.path],
        &two.grant.path,
    );
}

// Killed whole and started again: what is inside is known again by whoever it belongs to.
fn grants_inside_survive_the_broker(lab: &Lab) {
    let (mut broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2).lifetime("persistent"));
    let first = one.client(lab, &user, broker.socket());
    let two =
        one.inner(&user, &first, "two", nesting(1).lifetime("persistent").limits(&[("pids.max", "50")]));
    let second = two.client(lab, &user, broker.socket());
    let three = two.inner(&user, &second, "three", Options::new().lifetime("persistent"));
    let running = three.process(lab, &user, 0, &["files"]);
    broker.kill_everything();
    broker.start_again();
    let client = user.client_again(broker.socket());
    assert_eq!(all_names(&client), ["one", "two", "three"]);
    let first = one.client(lab, &user, broker.socket());
    assert_eq!(all_names(&first), ["two", "three"]);
    assert_eq!(first.value(&two.grant.path, "pids.max"), "50");
    is_told_of(&first, &three.grant.path, &running);
    assert!(running.is_alive());
    checker::assert_in_order(lab);
    // No second grant gets ids that are in use.
    let more = first.create("more", Options::new()).err();
    more.unwrap().is("NoFreeRange", "");
    drop(running);
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

// At whatever step of making one inside, or of ending its parent, the broker dies: it is whole or gone, and nothing is left over.
fn killed_at_every_step_nothing_inside_is_left_over(lab: &Lab) {
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(1).lifetime("persistent"));
    let run = |broker: &Broker| {
        let first = one.client(lab, &user, broker.socket());
        let (_namespace, fd) = one.userns(&user);
        let stage = one.process(lab, &user, 0, &["files"]);
        let before = stage.cgroups();
        let options = Options::new().lifetime("persistent").fd("userns", &fd).fd("stage", &stage.pidfd);
        let outcome = first.create("inner", options).map(|grant| grant.path);
        (outcome, stage, before)
    };
    broker.order_fault("count");
    let (path, stage, _) = run(&broker);
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("create")).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    drop(stage);
    release(&client, &path.unwrap(), Options::new()).unwrap();
    drop(client);
    for (nth, step) in steps.iter().enumerate() {
        drop(user.client_again(broker.socket()));
        broker.order_fault(&format!("die:{}", nth + 1));
        let (outcome, stage, before) = run(&broker);
        outcome.expect_err("the engine died before the answer");
        assert!(broker.fault_done(), "{step} was not reached");
        let client = user.client_again(broker.socket());
        broker.fault_steps();
        checker::assert_in_order(lab);
        assert!(stage.is_alive(), "{step}: the caller's process was killed");
        if all_names(&client) == ["one"] {
            let path = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
            let own = before.iter().find(|(tree, _)| tree == "cgroup2").unwrap().1.clone();
            let left = own.replace("payload", "children/_evicted");
            assert!(path == own || path == left, "{step}: out of the grant around, in {path}");
        } else {
            drop(stage);
            let inner = all_names(&client);
            assert_eq!(inner, ["one", "inner"], "{step}");
            let first = one.client(lab, &user, broker.socket());
            let path = first.find("inner").unwrap();
            release(&first, &path, Options::new()).unwrap();
        }
    }
    let client = user.client_again(broker.socket());
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

crate::tests![
    grants_in_grants_to_the_third_level,
    the_limit_of_the_first_level_holds_for_the_third,
    a_process_is_attached_to_a_grant_inside,
    only_the_root_of_a_grant_with_nesting_is_served,
    a_caller_that_has_left_or_ended_is_nobody,
    a_nested_caller_reaches_nothing_outside,
    a_name_inside_keeps_its_ids,
    policy_bounds_depth_and_number,
    the_end_of_a_grant_ends_those_inside_and_no_others,
    those_inside_hear_of_nothing_around_them,
    grants_inside_survive_the_broker,
    killed_at_every_step_nothing_inside_is_left_over,
];
