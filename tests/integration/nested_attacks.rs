//! What the root of a container in a container tries against what is around it and beside it.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::Command,
};

use zbus::{OwnedObjectPath, OwnedVariant};

use crate::common::{
    Broker, Client, Grant, Lab, Options, User,
    bus::{GRANT, PROPERTIES, Refused},
    checker,
    level::{BLOCK, Level, all_names, connected, nesting, put, release, scene},
    place::MOUNTS,
    program::{Ready, build},
    raw::Raw,
    wait_until,
};

// Two levels, and what there is beside each. Fields end in this order.
struct Scene {
    second: Client,
    sibling: Level,
    two: Level,
    first: Client,
    one: Level,
    outside: Grant,
    foreign: Grant,
    theirs: Client,
    client: Client,
    user: User,
    broker: Broker,
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let (broker, user, client) = scene(lab);
        let theirs = lab.user().client(broker.socket());
        let foreign = theirs.create("foreign", Options::new()).unwrap();
        let outside = client.create("outside", Options::new()).unwrap();
        let one = Level::new(&user, &client, "one", nesting(6).limits(&[("pids.max", "100")]));
        let first = one.client(lab, &user, broker.socket());
        let two = one.inner(&user, &first, "two", nesting(2).limits(&[("pids.max", "50")]));
        let sibling = one.inner(&user, &first, "sibling", nesting(1));
        let second = two.client(lab, &user, broker.socket());
        Self { second, sibling, two, first, one, outside, foreign, theirs, client, user, broker }
    }

    fn around(&self) -> [&Grant; 5] {
        [&self.one.grant, &self.two.grant, &self.sibling.grant, &self.outside, &self.foreign]
    }

    #[track_caller]
    fn is_unharmed(&self, lab: &Lab) {
        assert_eq!(self.client.names(), ["one", "outside"]);
        assert_eq!(self.theirs.names(), ["foreign"]);
        assert_eq!(self.first.names(), ["sibling", "two"]);
        assert_eq!(self.client.value(&self.one.grant.path, "pids.max"), "100");
        assert_eq!(self.first.value(&self.two.grant.path, "pids.max"), "50");
        checker::assert_in_order(lab);
    }
}

#[track_caller]
fn all_are(error: &str, refusals: impl IntoIterator<Item = (&'static str, Option<Refused>)>) {
    for (what, refused) in refusals {
        let refused = refused.unwrap_or_else(|| panic!("{what} was done"));
        assert_eq!(refused.name, error, "{what}: {refused:?}");
    }
}

fn no_operation_reaches_what_is_around(lab: &Lab) {
    let scene = Scene::new(lab);
    let second = &scene.second;
    let own = second.create("own", Options::new().no_range()).unwrap();
    let process = scene.two.process(lab, &scene.user, 0, &["files"]);
    let of_this = |kind: &str| OwnedFd::from(File::open(format!("/proc/self/ns/{kind}")).unwrap());
    let [netns, mntns] = ["net", "mnt"].map(of_this);
    let on_default = || Options::new().netns(&netns).with("bridge", "default".to_owned());
    for grant in scene.around() {
        let path = grant.path.as_str();
        let say = |method: &str| second.cgroup::<_, ()>(path, method, &()).err();
        let adopt = Options::new().lifetime("persistent").0;
        all_are(
            "NoSuchGrant",
            [
                ("Release", release(second, path, Options::new().with("force", true)).err()),
                ("Adopt", second.call::<_, ()>(path, GRANT, "Adopt", &adopt).err()),
                ("Attach", second.attach(path, &process.pidfd, Options::new()).err()),
                ("SetLimits", second.set_limits(path, &[("pids.max", "max")]).err()),
                ("GetValues", second.values(path, &["pids.max"]).err()),
                ("Stat", second.cgroup::<_, HashMap<String, OwnedVariant>>(path, "Stat", &()).err()),
                ("ListProcesses", second.cgroup::<_, Vec<u32>>(path, "ListProcesses", &()).err()),
                ("ListCgroups", second.cgroup::<_, Vec<String>>(path, "ListCgroups", &()).err()),
                ("CreateCgroup", second.cgroup::<_, ()>(path, "CreateCgroup", &"x").err()),
                ("RemoveCgroup", second.cgroup::<_, ()>(path, "RemoveCgroup", &"x").err()),
                ("Freeze", say("Freeze")),
                ("Thaw", say("Thaw")),
                ("Kill", say("Kill")),
                ("MakeDevice", second.call::<_, zbus::OwnedFd>(path, MOUNTS, "MakeDevice", &"null").err()),
                ("AddLink", second.add_link(path, on_default()).err()),
                ("RemoveLink", second.remove_link(path, "eth0").err()),
            ],
        );
        // An object that is not there for it.
        let get = second.call::<_, OwnedVariant>(path, PROPERTIES, "Get", &(GRANT, "Name")).err();
        assert!(get.is_some(), "{path}");
    }
    let directory = OwnedFd::from(File::open(&lab.scratch).unwrap());
    for grant in [&own, &scene.one.grant] {
        let path = grant.path.as_str();
        let mapped = Options::new().with("from", "own");
        all_are(
            "Unsupported",
            [
                ("OpenCgroup", second.cgroup::<_, zbus::OwnedFd>(path, "OpenCgroup", &"").err()),
                ("PublishPorts", second.publish(path, "eth0", &["8080:80"]).err()),
                ("UnpublishPorts", second.unpublish(path, "eth0", &["8080:80"]).err()),
                ("MapDirectory", second.map(grant, &directory, &mntns, mapped).err()),
                ("AllowDevice", second.call::<_, ()>(path, MOUNTS, "AllowDevice", &"null").err()),
                (
                    "Attach of a tree",
                    second.attach(path, &process.pidfd, Options::new().with("tree", true)).err(),
                ),
            ],
        );
    }
    let account = || Options::new().with("account", scene.user.uid).0;
    let all = || Options::new().with("all", true).0;
    let links = Options::new().no_range().links(vec![Options::new().netns(&netns)]);
    type Grants = Vec<(OwnedObjectPath, String, u32)>;
    type Usage = (u32, String, Vec<(String, u64, u64)>);
    all_are(
        "Unsupported",
        [
            ("links", second.create("x", links).err()),
            ("ListAccounts", second.manager::<_, Vec<u32>>("ListAccounts", &all()).err()),
            ("GetUsage", second.manager::<_, Usage>("GetUsage", &account()).err()),
        ],
    );
    // It is asked about who is in there, and nobody else.
    let everybodys: Grants = second.manager("ListGrants", &all()).unwrap();
    assert_eq!(everybodys.iter().map(|row| row.1.as_str()).collect::<Vec<_>>(), ["own"]);
    let found = second.manager::<_, OwnedObjectPath>("GetGrant", &("one", account()));
    found.unwrap_err().is("NoSuchGrant", "");
    for name in ["one", "two", "sibling", "outside", "foreign"] {
        second.find(name).unwrap_err().is("NoSuchGrant", "");
    }
    assert_eq!(all_names(second), ["own"]);
    scene.is_unharmed(lab);
}

fn no_ids_namespaces_or_processes_of_others_are_had(lab: &Lab) {
    let scene = Scene::new(lab);
    let Scene { second, sibling, two, one, user, .. } = &scene;
    // A name that is another's outside is one of its own here.
    let named = second.create("named", Options::new().with("range-name", "sibling")).unwrap();
    assert_eq!((named.uid, named.count), (BLOCK, BLOCK));
    second.manager::<_, ()>("ForgetRange", &"two").unwrap_err().is("InvalidArgument", "no range");
    second.create("more", Options::new().count(2 * BLOCK)).unwrap_err().is("NoFreeRange", "");
    let (_accounts, accounts) = user.userns();
    let (_parents, parents) = one.userns(user);
    let (_siblings, siblings) = sibling.userns(user);
    let of = |pid: u32| OwnedFd::from(File::open(format!("/proc/{pid}/ns/user")).unwrap());
    let others = "belongs to another uid";
    for (what, namespace, error, words) in [
        ("the host's", of(std::process::id()), "InvalidDescriptor", "host's own"),
        ("one of the account's", accounts, "NotAuthorized", others),
        ("one that the parent's root made", parents, "NotAuthorized", others),
        ("one that the sibling's root made", siblings, "NotAuthorized", others),
        ("the parent's", of(one.namespace.pid), "NotAuthorized", others),
        ("its own", of(two.namespace.pid), "NotAuthorized", others),
    ] {
        let refused = second.create("n", Options::new().fd("userns", &namespace)).unwrap_err();
        assert!(refused.name == error && refused.message.contains(words), "{what}: {refused:?}");
    }
    let (beside, above) = (sibling.process(lab, user, 0, &["files"]), one.process(lab, user, 0, &["files"]));
    let below = two.process(lab, user, 7, &["files"]);
    let (account, root) = (user.sleeper(), lab.root().sleeper());
    for process in [&beside, &above, &below, &account, &root] {
        let before = process.cgroups();
        let held = || Options::new().lifetime("process").fd("holder", &process.pidfd);
        for refused in [
            second.attach(&named.path, &process.pidfd, Options::new()).err(),
            second.create("p", held().no_range()).err(),
            second.create("p", Options::new().no_range().fd("stage", &process.pidfd)).err(),
            second.call::<_, ()>(&named.path, GRANT, "Adopt", &held().0).err(),
        ] {
            let refused = refused.unwrap();
            refused.is("NotAuthorized", "not yours");
            assert!(!refused.message.contains(&process.pid.to_string()), "{}", refused.message);
        }
        assert_eq!(process.cgroups(), before);
    }
    // One of its own, which only the account could have put there.
    let strayed = two.process(lab, user, 0, &["files"]);
    put(lab, user, &sibling.name, strayed.pid);
    let refused = second.attach(&named.path, &strayed.pidfd, Options::new()).unwrap_err();
    refused.is("NotAuthorized", "another grant");
    let stage = Options::new().no_range().fd("stage", &strayed.pidfd);
    second.create("p", stage).unwrap_err().is("NotAuthorized", "");
    drop(strayed);
    scene.is_unharmed(lab);
}

fn nothing_around_is_reached_by_hand(lab: &Lab) {
    const REFUSALS: [&str; 4] = ["EACCES", "EPERM", "ENOENT", "EROFS"];
    let scene = Scene::new(lab);
    let Scene { sibling, two, one, user, broker, first, .. } = &scene;
    let attacker = two.process(lab, user, 0, &["files"]);
    let beside = sibling.process(lab, user, 0, &["files"]);
    let refused = |verb: &str, path: &Path, argument: &str| {
        let answer = attacker.try_file(verb, path, argument);
        assert!(REFUSALS.contains(&answer.as_str()), "{verb} {} {argument:?}: {answer}", path.display());
    };
    let before = attacker.cgroups();
    for (_, place) in checker::places(lab, user.uid, &two.name) {
        // Where no cgroup2 is mounted there is no path to it.
        if place.starts_with("/proc") {
            continue;
        }
        let children = place.parent().unwrap();
        let outer = children.parent().unwrap();
        for directory in [
            outer.parent().unwrap().to_owned(),
            outer.to_owned(),
            outer.join("payload"),
            outer.join("monitor"),
            children.to_owned(),
            children.join("sibling"),
            children.join("sibling/payload"),
            place.clone(),
            place.join("monitor"),
            place.join("children"),
        ] {
            for (file, text) in [
                ("cgroup.procs", "0"),
                ("tasks", "0"),
                ("cgroup.threads", "0"),
                ("pids.max", "max"),
                ("memory.max", "max"),
                ("memory.limit_in_bytes", "-1"),
                ("cgroup.subtree_control", "-pids"),
                ("cgroup.freeze", "1"),
                ("cgroup.kill", "1"),
            ] {
                refused("write", &directory.join(file), text);
                refused("chmod", &directory.join(file), "666");
            }
            refused("mkdir", &directory.join("mine"), "");
            refused("rmdir", &directory.join("payload"), "");
        }
    }
    // By the descriptor that its account got outside, and passes in.
    let thief = two.process(lab, user, 0, &["through-fd"]);
    let files = [
        "cgroup.procs",
        "pids.max",
        "cgroup.kill",
        "../cgroup.procs",
        "../pids.max",
        "../children/two/pids.max",
        "../children/sibling/payload/cgroup.procs",
        "../../cgroup.procs",
    ];
    for (file, answer) in thief.give(&one.grant.payload, &files) {
        assert!(REFUSALS.contains(&answer.as_str()), "{file}: {answer}");
    }
    // By /proc.
    let account = user.sleeper();
    let caller = first.process.as_ref().unwrap().pid;
    for pid in [one.namespace.pid, caller, beside.pid, account.pid, broker.pid, std::process::id()] {
        let of = |file: &str| Path::new("/proc").join(pid.to_string()).join(file);
        for file in
            ["environ", "maps", "mem", "auxv", "root/etc/passwd", "cwd/x", "fd/0", "ns/user", "ns/net"]
        {
            refused("read", &of(file), "");
        }
        for (file, text) in
            [("uid_map", "0 0 1"), ("gid_map", "0 0 1"), ("setgroups", "deny"), ("oom_score_adj", "-1000")]
        {
            refused("write", &of(file), text);
        }
    }
    // By namespaces whose descriptors it was sent.
    let of = |pid: u32, kind: &str| OwnedFd::from(File::open(format!("/proc/{pid}/ns/{kind}")).unwrap());
    let host = std::process::id();
    let namespaces = [
        of(host, "user"),
        of(one.namespace.pid, "user"),
        of(sibling.namespace.pid, "user"),
        of(host, "mnt"),
        of(host, "net"),
        of(host, "pid"),
        of(host, "cgroup"),
        of(host, "uts"),
    ];
    let enters = two.process(lab, user, 0, &["enter"]);
    enters.say("enter", &namespaces.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    let (said, _) = enters.hear().unwrap();
    assert_eq!(said.split(' ').collect::<Vec<_>>(), ["EPERM"; 8]);
    assert_eq!(attacker.cgroups(), before);
    scene.is_unharmed(lab);
}

// Root of a namespace inside that has the very map of the grant's own, as only that one's root can make it.
fn a_namespace_that_looks_right_is_told_apart(lab: &Lab) {
    let scene = Scene::new(lab);
    let Scene { two, one, user, broker, .. } = &scene;
    let role = ["connect-when-told", broker.socket().to_str().unwrap()];
    for level in [one, two] {
        let (copy, _fd) = level.userns(user);
        let root = level.process(lab, user, 0, &["files"]);
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{file}", copy.pid);
            let map = format!("0 0 {}", level.grant.count);
            assert_eq!(root.try_file("write", Path::new(&path), &map).trim(), "ok");
        }
        let (process, line, _) = user.agent_in(&copy, 0, &role);
        assert_eq!(line, "ok");
        put(lab, user, &level.name, process.pid);
        let client = Client::new(connected(&process), 0, process);
        let made = client.create("x", Options::new().no_range()).map(|grant| grant.path);
        made.expect_err("it is served").is("NotAuthorized", "acts for nobody");
        assert!(client.names_or_refused().is_err());
    }
    // Each in another's payload, where only the machine's root could put it.
    for (level, place) in [(one, "one/two"), (two, "one"), (two, "one/sibling")] {
        let (process, line, _) = user.agent_in(&level.namespace, 0, &role);
        assert_eq!(line, "ok");
        put(lab, user, place, process.pid);
        let client = Client::new(connected(&process), 0, process);
        assert!(client.create("x", Options::new().no_range()).is_err(), "{place}");
    }
    scene.is_unharmed(lab);
}

// The number of a caller, or of a holder, that has ended is that of another process of the same id in the same cgroup now.
fn who_has_a_number_now_is_not_who_had_it(lab: &Lab) {
    let program = build(lab, "tests/common/namesake.c");
    let (mut broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2).lifetime("persistent"));
    let namesake = |pid: u32| {
        let ready = Ready::of(Command::new(&program).args([pid, one.grant.uid].map(|id| id.to_string())));
        put(lab, &user, "one", pid);
        ready
    };
    let mut first = one.client(lab, &user, broker.socket());
    let lasting = || Options::new().no_range().lifetime("persistent");
    let inner = first.create("inner", lasting()).unwrap();
    let mut holder = one.process(lab, &user, 0, &["files"]);
    let held = Options::new().no_range().lifetime("process").fd("holder", &holder.pidfd);
    first.create("held", held).unwrap();
    let pid = first.process.as_ref().unwrap().pid;
    first.process.as_mut().unwrap().kill();
    let second = namesake(pid);
    for refused in [
        first.create("more", Options::new().no_range()).err(),
        first.set_limits(&inner.path, &[("pids.max", "9")]).err(),
        first.cgroup::<_, ()>(&inner.path, "Kill", &()).err(),
        release(&first, &inner.path, Options::new()).err(),
    ] {
        refused.unwrap().is("NotAuthorized", "ended or left");
    }
    drop(second);
    // A holder that ends while there is no broker, and whose number another has when there is one again.
    broker.kill_everything();
    holder.kill();
    let third = namesake(holder.pid);
    broker.start_again();
    let client = user.client_again(broker.socket());
    wait_until("the dead holder's grant ends", || all_names(&client) == ["one", "inner"]);
    drop(third);
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

fn who_uses_everything_up_uses_up_its_own(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"few\"\nquota = { connections = 6, grants = 4, persistent-grants = 1 }\n",
    );
    let (broker, user, client) = scene(lab);
    let other = lab.user();
    let bystander = other.client(broker.socket());
    let one = Level::new(&user, &client, "one", nesting(3));
    let first = one.client(lab, &user, broker.socket());
    let two = one.inner(&user, &first, "two", nesting(1));
    let second = two.client(lab, &user, broker.socket());
    let lasting = || Options::new().no_range().lifetime("persistent");
    second.create("kept", lasting()).unwrap();
    let refused = second.create("lasting", lasting()).unwrap_err();
    refused.is("QuotaExceeded", "");
    assert_eq!(refused.text("resource").as_deref(), Some("persistent-grants"));
    second.create("last", Options::new().no_range()).unwrap();
    second
        .create("more", Options::new().no_range())
        .unwrap_err()
        .is("QuotaExceeded", "4 of at most 4 grants");
    // Connections of whatever id: three are open already.
    let mut open = Vec::new();
    for id in [0, 5, 7] {
        let process = two.caller(lab, &user, id, broker.socket());
        let mut raw = Raw::new(connected(&process));
        raw.authenticate(id);
        open.push((process, raw));
    }
    for id in [0, 9] {
        let process = two.caller(lab, &user, id, broker.socket());
        assert!(Raw::new(connected(&process)).is_closed(), "id {id} is served beyond the quota");
    }
    let (_process, stream) = user.connect(broker.socket());
    assert!(Raw::new(stream).is_closed(), "it is the account's own quota");
    bystander.create("mine", Options::new()).unwrap();
    let lasts = other.client(broker.socket()).create("too", lasting()).unwrap();
    release(&bystander, &lasts.path, Options::new()).unwrap();
    drop(open);
}

fn a_refusal_tells_no_number_of_the_hosts(lab: &Lab) {
    let scene = Scene::new(lab);
    let Scene { second, two, user, .. } = &scene;
    let own = second.create("own", Options::new().no_range()).unwrap();
    let process = two.process(lab, user, 0, &["files"]);
    second.attach(&own.path, &process.pidfd, Options::new().with("target", "payload")).unwrap();
    let monitor = Options::new().with("target", "monitor");
    let refused = second.attach(&own.path, &process.pidfd, monitor).unwrap_err();
    refused.is("NotAuthorized", "");
    assert!(!refused.message.contains(&process.pid.to_string()), "{}", refused.message);
    scene.is_unharmed(lab);
}

crate::tests![
    no_operation_reaches_what_is_around,
    no_ids_namespaces_or_processes_of_others_are_had,
    nothing_around_is_reached_by_hand,
    a_namespace_that_looks_right_is_told_apart,
    who_has_a_number_now_is_not_who_had_it,
    who_uses_everything_up_uses_up_its_own,
    a_refusal_tells_no_number_of_the_hosts,
];
