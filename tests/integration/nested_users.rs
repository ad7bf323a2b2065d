//! Ordinary users of a container, where policy lets them in: told apart from root and from each other; and what they try.

use std::{
    fs,
    os::fd::OwnedFd,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{
    common::{
        Broker, Client, Lab, Options, User,
        bus::{CGROUP, GRANT, IDS, Refused, Watch},
        checker,
        level::{BLOCK, Level, all_names, connected, nesting, put, release, scene},
        place::MOUNTS,
        silent::Silent,
        wait_until,
    },
    explain::{allowed, explain, same},
};

/// Two ordinary users of the container.
const ANN: u32 = 7;
const BOB: u32 = 70;

type Row = (zbus::OwnedObjectPath, String, u32);

// With so many blocks for each user.
fn let_in(lab: &Lab, blocks: u32) -> (Broker, User, Client) {
    lab.write_policy(&policy(blocks));
    scene(lab)
}

fn policy(blocks: u32) -> String {
    format!("[[rule]]\nname = \"users\"\nquota = {{ nesting-user-blocks = {blocks} }}\n")
}

// All that root in there can see: names, and whose they are.
fn everybodys(client: &Client) -> Result<Vec<(String, u32)>, Refused> {
    let rows: Vec<Row> = client.manager("ListGrants", &Options::new().with("all", true).0)?;
    Ok(rows.into_iter().map(|(_, name, account)| (name, account)).collect())
}

/// First uid and gid, their number, the name, the grant.
type RangeRow = (u32, u32, u32, String, String);

fn ranges(client: &Client) -> Vec<(u32, String)> {
    let ranges: Vec<RangeRow> = client.manager("ListRanges", &()).unwrap();
    let mut ranges: Vec<(u32, String)> = ranges.into_iter().map(|range| (range.0, range.3)).collect();
    ranges.sort();
    ranges
}

fn find_of(client: &Client, name: &str, user: u32) -> Result<String, Refused> {
    let path: zbus::OwnedObjectPath =
        client.manager("GetGrant", &(name, Options::new().with("account", user).0))?;
    Ok(path.to_string())
}

#[track_caller]
fn is_hidden(client: &Client, path: &str) {
    release(client, path, Options::new().with("force", true)).unwrap_err().is("NoSuchGrant", "");
    client.set_limits(path, &[("pids.max", "max")]).unwrap_err().is("NoSuchGrant", "");
    client.values(path, &["pids.max"]).unwrap_err().is("NoSuchGrant", "");
    for method in ["Freeze", "Thaw", "Kill"] {
        client.cgroup::<_, ()>(path, method, &()).unwrap_err().is("NoSuchGrant", "");
    }
    client.cgroup::<_, ()>(path, "CreateCgroup", &"x").unwrap_err().is("NoSuchGrant", "");
    client.call::<_, ()>(path, GRANT, "Adopt", &Options::new().0).unwrap_err().is("NoSuchGrant", "");
    let question = explain(client, "Release", Options::new().with("grant", path.to_owned())).unwrap();
    assert!(!allowed(&question));
}

// Each has the same name for a grant of its own, and neither sees, finds or does anything to another's. Root sees all.
fn each_has_grants_of_its_own(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(4).limits(&[("pids.max", "100")]));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    let wait = Duration::from_secs(30);
    let (mut at_root, mut at_ann, mut at_bob) = (root.watch(), ann.watch(), bob.watch());
    let roots = one.inner(&user, &root, "web", Options::new());
    let anns = one.inner_of(&user, ANN, &ann, "web", Options::new().limits(&[("pids.max", "50")]));
    let bobs = one.inner_of(&user, BOB, &bob, "web", Options::new());
    assert_eq!([&roots, &anns, &bobs].map(|level| level.grant.uid), [BLOCK, 2 * BLOCK, 3 * BLOCK]);
    assert_eq!(anns.map(), format!("0 {} {BLOCK}", one.grant.uid + 2 * BLOCK));
    checker::assert_in_order(lab);

    // Each is told of its own, by its own id.
    for (client, id, level) in [(&root, 0, &roots), (&ann, ANN, &anns), (&bob, BOB, &bobs)] {
        assert_eq!((client.names(), all_names(client)), (vec!["web".to_owned()], vec!["web".to_owned()]));
        assert_eq!(client.find("web").unwrap(), level.grant.path);
        assert_eq!(client.property::<u32>(&level.grant.path, GRANT, "Account"), id);
        assert_eq!(ranges(client), [(level.grant.uid, "web".to_owned())]);
        let (account, ..): (u32, String, Vec<(String, u64, u64)>) =
            client.manager("GetUsage", &Options::new().0).unwrap();
        assert_eq!(account, id);
    }
    type Added = (zbus::OwnedObjectPath, String, u32);
    let added =
        |client: &Client, watch: &mut Watch| client.signal::<Added>(watch, "GrantAdded", wait).unwrap().1.2;
    assert_eq!([0; 3].map(|_| added(&root, &mut at_root)), [0, ANN, BOB]);
    // The first that each hears of is its own.
    assert_eq!((added(&ann, &mut at_ann), added(&bob, &mut at_bob)), (ANN, BOB));

    for (client, others) in [(&ann, [&roots, &bobs, &one]), (&bob, [&roots, &anns, &one])] {
        for other in others {
            is_hidden(client, &other.grant.path);
        }
        everybodys(client).unwrap_err().is("Unsupported", "");
        for id in [0, ANN, BOB, user.uid] {
            let found = find_of(client, "web", id);
            let own = client.property::<u32>(&client.find("web").unwrap(), GRANT, "Account");
            assert_eq!(found.is_ok(), id == own, "{id}");
        }
        client.find("one").unwrap_err().is("NoSuchGrant", "");
    }
    // A process of its own does not get into another's.
    let own = one.process(lab, &user, ANN, &["files"]);
    for other in [&roots, &bobs] {
        ann.attach(&other.grant.path, &own.pidfd, Options::new()).unwrap_err().is("NoSuchGrant", "");
    }
    ann.attach(&anns.grant.path, &own.pidfd, Options::new()).unwrap();

    // Root sees all of them and may do with them what it likes; the host sees them where they are.
    let mut all = everybodys(&root).unwrap();
    all.sort_by_key(|row| row.1);
    assert_eq!(all, [("web".to_owned(), 0), ("web".to_owned(), ANN), ("web".to_owned(), BOB)]);
    assert_eq!(find_of(&root, "web", BOB).unwrap(), bobs.grant.path);
    assert_eq!(root.property::<u32>(&anns.grant.path, GRANT, "Account"), ANN);
    assert_eq!(root.property::<u32>(&anns.grant.path, IDS, "Uid"), 2 * BLOCK);
    assert_eq!(client.property::<u32>(&anns.grant.path, GRANT, "Account"), user.uid);
    assert_eq!(root.value(&anns.grant.path, "pids.max"), "50");
    root.cgroup::<_, ()>(&anns.grant.path, "Kill", &()).unwrap();
    release(&root, &bobs.grant.path, Options::new()).unwrap();
    assert!(bob.names().is_empty());
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

// What the kernel lets whom do with a user's cgroups, with ids and without.
fn cgroups_belong_to_the_user(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(2));
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let web = one.inner_of(&user, ANN, &ann, "web", Options::new());
    ann.create("bare", Options::new().no_range()).unwrap();
    let own = one.grant.uid + ANN;
    let owner = |name: &str, file: &str| {
        fs::metadata(checker::places(lab, user.uid, name)["cgroup2"].join(file)).unwrap().uid()
    };
    for (name, holder) in [(web.name.as_str(), one.grant.uid + BLOCK), ("one/@7.bare", own)] {
        for (file, expected) in [
            ("", 0),
            ("cgroup.subtree_control", 0),
            ("children", 0),
            ("cgroup.procs", own),
            ("monitor/cgroup.procs", own),
            ("payload", holder),
            ("payload/cgroup.procs", own),
            ("payload/cgroup.subtree_control", holder),
        ] {
            assert_eq!(owner(name, file), expected, "{name}/{file}");
        }
    }
    checker::assert_in_order(lab);
}

// Who is in there in the right way, and nobody else.
fn who_only_looks_like_a_user_is_nobody(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(2));
    let two = Level::new(&user, &client, "two", nesting(1));
    let plain = Level::new(&user, &client, "plain", Options::new());
    let socket = broker.socket();
    let served = one.client_of(lab, &user, ANN, socket);
    served.create("there", Options::new().no_range()).unwrap();
    let role = ["connect-when-told", socket.to_str().unwrap()];
    let inner = ["connect-from-inner-userns", socket.to_str().unwrap()];
    let stray = one.caller(lab, &user, ANN, socket);
    put(lab, &user, "two", stray.pid);
    for (what, process, id) in [
        ("an id of a block for others", one.caller(lab, &user, BLOCK + ANN, socket), BLOCK + ANN),
        (
            "such an id with a group of the container's own",
            one.process(lab, &user, 0, &["connect-as", "65543", "65543", socket.to_str().unwrap()]),
            BLOCK + ANN,
        ),
        (
            "whom programs are that have nothing to do with each other",
            one.caller(lab, &user, 65_534, socket),
            65_534,
        ),
        ("without nesting", plain.caller(lab, &user, ANN, socket), ANN),
        ("outside of the payload", user.agent_in(&one.namespace, ANN, &role).0, ANN),
        ("in a namespace of its own", one.process(lab, &user, ANN, &inner), 0),
        ("in another's payload", stray, ANN),
    ] {
        let nobody = Client::new(connected(&process), id, process);
        let refusal = nobody.create("x", Options::new().no_range()).unwrap_err();
        refusal.is("NotAuthorized", "acts for nobody");
        assert!(nobody.names_or_refused().is_err(), "{what}");
        explain(&nobody, "CreateGrant", Options::new()).unwrap_err();
    }
    // One can't say that it is another.
    for id in [0, BOB, user.uid] {
        let process = one.caller(lab, &user, ANN, socket);
        assert!(Client::try_new(connected(&process), id, process).is_err(), "{id}");
    }
    // A connection is its process's, where that was.
    let process = one.caller(lab, &user, ANN, socket);
    let pid = process.pid;
    let ann = Client::new(connected(&process), ANN, process);
    put(lab, &user, "two", pid);
    ann.create("x", Options::new().no_range()).unwrap_err().is("NotAuthorized", "ended or left");
    assert_eq!(all_names(&client), ["one", "there", "plain", "two"]);
    drop((served, two));
}

// Processes, namespaces and devices of root's and of the other user's.
fn nothing_of_others_is_taken(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(4));
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let web = ann.create("web", Options::new()).unwrap();
    for id in [0, BOB] {
        let other = one.process(lab, &user, id, &["files"]);
        ann.attach(&web.path, &other.pidfd, Options::new()).unwrap_err().is("NotAuthorized", "not yours");
        let held = Options::new().lifetime("process").fd("holder", &other.pidfd).no_range();
        ann.create("x", held).unwrap_err().is("NotAuthorized", "not yours");
        let staged = Options::new().no_range().fd("stage", &other.pidfd);
        ann.create("x", staged).unwrap_err().is("NotAuthorized", "not yours");
        let (_namespace, fd) = one.userns_of(&user, id);
        ann.create("x", Options::new().fd("userns", &fd))
            .unwrap_err()
            .is("NotAuthorized", "another uid than yours");
    }
    // One of both is who the kernel says that connected, and nobody's to move.
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    let bobs = bob.create("web", Options::new()).unwrap();
    let role = ["connect-as", "7", "70", broker.socket().to_str().unwrap()];
    let both = one.process(lab, &user, 0, &role);
    for (client, path) in [(&ann, &web.path), (&bob, &bobs.path)] {
        client.attach(path, &both.pidfd, Options::new()).unwrap_err().is("NotAuthorized", "not yours");
    }
    let both = Client::new(connected(&both), BOB, both);
    assert_eq!((both.find("web").unwrap(), ann.find("web").unwrap()), (bobs.path.clone(), web.path.clone()));
    is_hidden(&both, &web.path);
    let (_keeper, mut grandchild) = {
        let (process, line, fds) = user.agent_in(&one.namespace, ANN, &["inner-userns"]);
        assert_eq!(line, "ok");
        (process, fds)
    };
    let grandchild = grandchild.remove(1);
    let (_namespace, accounts) = user.userns();
    let own = OwnedFd::from(fs::File::open(format!("/proc/{}/ns/user", one.namespace.pid)).unwrap());
    for (what, namespace) in [("account's", accounts), ("the container's", own), ("grandchild", grandchild)] {
        let refused = ann.create("x", Options::new().fd("userns", &namespace)).unwrap_err();
        assert_eq!(refused.name, "NotAuthorized", "{what}: {}", refused.message);
    }
    // What the container has for its root, or a group in there.
    let device: Result<zbus::OwnedFd, Refused> = ann.call(&web.path, MOUNTS, "MakeDevice", &"zero");
    let question =
        explain(&ann, "MakeDevice", Options::new().with("grant", web.path.clone()).with("name", "zero"))
            .unwrap();
    same("a device", &question, &device);
    device.unwrap_err().is("NotAuthorized", "only the container's root");
    ann.cgroup::<_, zbus::OwnedFd>(&web.path, "OpenCgroup", &"").unwrap_err().is("Unsupported", "");
    // Time that the others beside it would have.
    let weight = |weight| Options::new().no_range().limits(&[("cpu.weight", weight)]);
    for (request, name, real) in [
        ("CreateGrant", "name", ann.create("x", weight("101")).map(drop)),
        ("SetLimits", "grant", ann.set_limits(&web.path, &[("cpu.weight", "10000")])),
    ] {
        let (options, about) = match name {
            "name" => (weight("101"), "x"),
            _ => (Options::new().limits(&[("cpu.weight", "10000")]), web.path.as_str()),
        };
        let question = explain(&ann, request, options.with(name, about.to_owned())).unwrap();
        same(request, &question, &real);
        real.unwrap_err().is("NotAuthorized", "cpu.weight");
    }
    ann.create("x", weight("100")).unwrap();
    ann.set_limits(&web.path, &[("cpu.weight", "50")]).unwrap();
    checker::assert_in_order(lab);
}

// Files of the kernel's that policy lists for the account: what takes from others beside it is for root in there.
fn no_file_takes_from_others(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 2 }\nraw.write = [\"io.weight\", \"memory.min\", \"memory.low\", \"memory.oom.group\"]\n",
    );
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let web = ann.create("web", Options::new().no_range()).unwrap();
    let roots = root.create("web", Options::new().no_range()).unwrap();
    // Where the host has the file.
    let passes_policy = |set: Result<(), Refused>| {
        if let Err(refused) = set {
            assert!(["KernelRefused", "Unsupported"].contains(&refused.name.as_str()), "{}", refused.message);
        }
    };
    for limits in [[("io.weight", "default 10000")], [("memory.min", "max")], [("memory.low", "max")]] {
        for (request, name, about, real) in [
            (
                "CreateGrant",
                "name",
                "x",
                ann.create("x", Options::new().no_range().limits(&limits)).map(drop),
            ),
            ("SetLimits", "grant", web.path.as_str(), ann.set_limits(&web.path, &limits)),
        ] {
            let options = Options::new().limits(&limits).with(name, about.to_owned());
            same(request, &explain(&ann, request, options).unwrap(), &real);
            real.unwrap_err().is("NotAuthorized", limits[0].0);
        }
        passes_policy(root.set_limits(&roots.path, &limits));
    }
    passes_policy(ann.set_limits(&web.path, &[("memory.oom.group", "1")]));
    checker::assert_in_order(lab);
}

// Who makes all cgroups that it can, by hand and through the broker, leaves half of the account's to others.
fn cgroups_of_users_are_bounded(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 6, cgroups = 64 }\n");
    let (mut broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(6).lifetime("persistent"));
    let used = |client: &Client| {
        let (_, _, rows): (u32, String, Vec<(String, u64, u64)>) =
            client.manager("GetUsage", &Options::new().0).unwrap();
        rows.into_iter().find(|row| row.0 == "cgroups").unwrap().1
    };
    let root = one.client(lab, &user, broker.socket());
    let bare = || Options::new().no_range().lifetime("persistent");
    // As whoever has the cgroup can, by hand; the kernel asks nobody who it is.
    let fill = |name: &str| {
        let payload = checker::places(lab, user.uid, name)["cgroup2"].join("payload");
        (0..200)
            .take_while(|number| fs::create_dir(payload.join(format!("by-hand-{number}"))).is_ok())
            .count()
    };
    let refused = |client: &Client, path: &str| {
        let real: Result<(), Refused> = client.cgroup(path, "CreateCgroup", &"more");
        let question = Options::new().with("grant", path.to_owned()).with("path", "more");
        same("a cgroup", &explain(client, "CreateCgroup", question).unwrap(), &real);
        real.unwrap_err().is("QuotaExceeded", "cgroups");
    };
    let mut all = 0;
    for id in [ANN, BOB, 71] {
        let somebody = one.client_of(lab, &user, id, broker.socket());
        let mut own = 0;
        for number in 0.. {
            let name = format!("g{number}");
            let question = explain(&somebody, "CreateGrant", bare().with("name", name.clone())).unwrap();
            let real = somebody.create(&name, bare());
            same("another grant", &question, &real);
            let grant = match real {
                Ok(grant) => grant,
                Err(refusal) => {
                    refusal.is("QuotaExceeded", "");
                    break;
                }
            };
            // One by the broker, while there is room.
            somebody.cgroup::<_, ()>(&grant.path, "CreateCgroup", &"own").unwrap();
            own += 1 + fill(&format!("one/@{id}.{name}"));
            refused(&somebody, &grant.path);
            // Who else may use it gets no more of it.
            refused(&root, &grant.path);
            refused(&client, &grant.path);
        }
        assert!((1..=16).contains(&own), "{id}: {own}");
        all += own;
    }
    assert!((16..=32).contains(&all), "{all}");
    assert_eq!(used(&client), all as u64);
    let roots = root.create("roots", bare()).unwrap();
    for number in 0..8 {
        root.cgroup::<_, ()>(&roots.path, "CreateCgroup", &format!("c{number}")).unwrap();
        client.cgroup::<_, ()>(&one.grant.path, "CreateCgroup", &format!("c{number}")).unwrap();
    }
    let accounts = client.create("accounts", bare()).unwrap();
    client.cgroup::<_, ()>(&accounts.path, "CreateCgroup", &"c").unwrap();
    // The bound is there after the broker's end, and follows policy.
    drop(root);
    broker.kill_everything();
    broker.start_again();
    let client = user.client_again(broker.socket());
    let bound = || {
        let grant = checker::places(lab, user.uid, "one/@7.g0")["cgroup2"].clone();
        fs::read_to_string(grant.join("cgroup.max.descendants")).unwrap().trim().to_owned()
    };
    let before = bound();
    assert_ne!(before, "max");
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    refused(&ann, &ann.find("g0").unwrap());
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 6, cgroups = 4 }\n");
    broker.reload();
    wait_until("the smaller quota is in force", || bound() != before);
    checker::assert_in_order(lab);
    drop(ann);
    for path in [&one.grant.path, &accounts.path] {
        release(&client, path, Options::new().with("force", true)).unwrap();
    }
}

// In a container of an ordinary user's its root has no more than that user, nor has anybody in there.
fn cgroups_of_a_users_container_are_that_users(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 20, cgroups = 128 }\n");
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(4));
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    // A quarter of a quarter of 128: two grants in it, of four cgroups each.
    let two = one.inner_of(&user, ANN, &ann, "two", nesting(1));
    let within = two.client(lab, &user, broker.socket());
    let bob = two.client_of(lab, &user, BOB, broker.socket());
    for name in ["a", "b", "c"] {
        let question = explain(&within, "CreateGrant", Options::new().no_range().with("name", name)).unwrap();
        let real = within.create(name, Options::new().no_range());
        same(name, &question, &real);
        assert_eq!(real.is_ok(), name != "c", "{name}");
        if let Err(refusal) = real {
            refusal.is("QuotaExceeded", "cgroups");
        }
    }
    bob.create("x", Options::new().no_range()).unwrap_err().is("QuotaExceeded", "cgroups");
    let root = one.client(lab, &user, broker.socket());
    root.create("roots", Options::new().no_range()).unwrap();
    checker::assert_in_order(lab);
}

// Names, and what is kept for them, are each user's.
fn keys_and_names_are_each_users(lab: &Lab) {
    let (mut broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(4));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    let keyed = || Options::new().no_range().key("same").lifetime("persistent");
    let paths: Vec<String> =
        [&root, &ann, &bob].map(|client| client.create("a", keyed()).unwrap().path).to_vec();
    assert!(paths[0] != paths[1] && paths[1] != paths[2] && paths[0] != paths[2]);
    for (client, path) in [&root, &ann, &bob].into_iter().zip(&paths) {
        let again = client.create("a", keyed()).unwrap();
        assert_eq!((&again.path, again.new), (path, false));
        client.create("a", Options::new().no_range()).unwrap_err().is("GrantExists", "");
        release(client, path, Options::new()).unwrap();
    }
    // The ids of a name are another's by no means, also when nobody uses them.
    let uid = |client: &Client| {
        let grant = client.create("kept", Options::new()).unwrap();
        release(client, &grant.path, Options::new()).unwrap();
        grant.uid
    };
    let before = [&root, &ann, &bob].map(uid);
    assert_eq!(before, [BLOCK, 2 * BLOCK, 3 * BLOCK]);
    assert_eq!([&bob, &root, &ann].map(uid), [3 * BLOCK, BLOCK, 2 * BLOCK]);
    ann.manager::<_, ()>("ForgetRange", &"kept").unwrap();
    ann.manager::<_, ()>("ForgetRange", &"kept").unwrap_err().is("InvalidArgument", "no range");
    let kept = |client: &Client| ranges(client);
    assert_eq!((kept(&root).len(), kept(&ann).len(), kept(&bob).len()), (1, 0, 1));
    // What was a user's never is another's, for what had the ids may be there still: a namespace beside the grant, a program with a
    // set-user-ID bit. It is that user's again, and counts.
    let next = |client: &Client| {
        let grant = client.create("next", Options::new()).unwrap();
        release(client, &grant.path, Options::new()).unwrap();
        client.manager::<_, ()>("ForgetRange", &"next").unwrap();
        grant.uid
    };
    assert_eq!([&bob, &ann].map(next), [4 * BLOCK, 2 * BLOCK]);
    root.create("next", Options::new()).unwrap_err().is("NoFreeRange", "");
    broker.kill_everything();
    broker.start_again();
    let client = user.client_again(broker.socket());
    release(&client, &client.find("one").unwrap(), Options::new().with("force", true)).unwrap();
    let one = Level::new(&user, &client, "one", nesting(4));
    let [root, ann, bob] = [0, ANN, BOB].map(|id| one.client_of(lab, &user, id, broker.socket()));
    assert_eq!([&bob, &ann].map(next), [4 * BLOCK, 2 * BLOCK]);
    root.create("next", Options::new()).unwrap_err().is("NoFreeRange", "");
    // Also when the whole container is made anew.
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    let one = Level::new(&user, &client, "one", nesting(4));
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    assert_eq!(uid(&bob), 3 * BLOCK);
}

// One has no more than policy says, counted whole, and leaves the rest to others.
fn a_user_has_so_many_blocks(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 2);
    let one = Level::new(&user, &client, "one", nesting(5));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    let refused = |client: &Client, name: &'static str, options: fn() -> Options| {
        let question = explain(client, "CreateGrant", options().with("name", name)).unwrap();
        let real = client.create(name, options());
        same(name, &question, &real);
        real.unwrap_err().is("QuotaExceeded", "nesting-user-blocks");
    };
    let usage = |client: &Client| {
        let (_, _, rows): (u32, String, Vec<(String, u64, u64)>) =
            client.manager("GetUsage", &Options::new().0).unwrap();
        rows
    };
    let row = |used| vec![("nesting-user-blocks".to_owned(), used, 2)];
    assert_eq!(usage(&ann), row(0));
    refused(&ann, "large", || Options::new().count(2 * BLOCK + 1));
    refused(&ann, "with-blocks", || nesting(2));
    let named = ann.create("a", Options::new()).unwrap();
    refused(&ann, "two", || Options::new().count(BLOCK + 1));
    let bare = ann.create("b", Options::new().no_range()).unwrap();
    assert_eq!(usage(&ann), row(2));
    refused(&ann, "c", || Options::new().no_range());
    refused(&ann, "c", || Options::new().count(1));
    // Ids that are kept for a name are not given up with the grant.
    release(&ann, &named.path, Options::new()).unwrap();
    assert_eq!(usage(&ann), row(2));
    refused(&ann, "c", || Options::new().no_range());
    let again = ann.create("a", Options::new()).unwrap();
    assert_eq!(again.uid, named.uid);
    release(&ann, &again.path, Options::new()).unwrap();
    ann.manager::<_, ()>("ForgetRange", &"a").unwrap();
    release(&ann, &bare.path, Options::new()).unwrap();
    assert_eq!(usage(&ann), row(1));
    ann.create("a", Options::new().count(2 * BLOCK)).unwrap();
    refused(&ann, "c", || Options::new().no_range());
    // Neither the other user's nor root's is less by it.
    bob.create("a", Options::new()).unwrap();
    bob.create("b", Options::new()).unwrap();
    root.create("a", Options::new()).unwrap();
    assert!(usage(&root).iter().any(|row| row.0 == "grants"));
    checker::assert_in_order(lab);
}

// In a container of its own, where it is root, it has no more either.
fn root_of_a_users_container_is_that_user(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 4);
    let one = Level::new(&user, &client, "one", nesting(5));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let two = one.inner_of(&user, ANN, &ann, "two", nesting(1));
    let within = two.client(lab, &user, broker.socket());
    let inner = within.create("a", Options::new()).unwrap();
    for name in ["b", "c"] {
        within.create(name, Options::new().no_range()).unwrap();
    }
    for client in [&within, &ann] {
        let options = || Options::new().no_range();
        let question = explain(client, "CreateGrant", options().with("name", "d")).unwrap();
        let real = client.create("d", options());
        same("a fifth", &question, &real);
        real.unwrap_err().is("QuotaExceeded", "nesting-user-blocks");
    }
    root.create("d", Options::new().no_range()).unwrap();
    let device: Result<zbus::OwnedFd, Refused> = within.call(&inner.path, MOUNTS, "MakeDevice", &"zero");
    device.unwrap_err().is("NotAuthorized", "an ordinary user's container");
    release(&within, &within.find("c").unwrap(), Options::new()).unwrap();
    within.create("d", Options::new().no_range()).unwrap();
    checker::assert_in_order(lab);
    // Nobody acts on ids by their number over a connection of who had them before.
    release(&ann, &two.grant.path, Options::new().with("force", true)).unwrap();
    within.manager::<_, ()>("ForgetRange", &"a").unwrap_err().is("NotAuthorized", "ended or left");
    let ranges: Result<Vec<RangeRow>, Refused> = within.manager("ListRanges", &());
    ranges.unwrap_err().is("NotAuthorized", "ended or left");
}

// Three levels, the second and third made by ordinary users of the one above.
fn three_levels_by_users(lab: &Lab) {
    let (mut broker, user, client) = let_in(lab, 3);
    let one =
        Level::new(&user, &client, "one", nesting(3).limits(&[("pids.max", "8")]).lifetime("persistent"));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let lasting = |options: Options| options.lifetime("persistent").limits(&[("pids.max", "1000")]);
    let two = one.inner_of(&user, ANN, &ann, "two", lasting(nesting(2)));
    let second = two.client_of(lab, &user, BOB, broker.socket());
    let three = two.inner_of(&user, BOB, &second, "three", lasting(Options::new()));
    assert_eq!((two.grant.uid, three.grant.uid), (BLOCK, BLOCK));
    assert_eq!(three.map(), format!("0 {} {BLOCK}", one.grant.uid + 2 * BLOCK));
    checker::assert_in_order(lab);
    let account = |client: &Client| client.property::<u32>(&three.grant.path, GRANT, "Account");
    let within = two.client(lab, &user, broker.socket());
    assert_eq!([&client, &root, &ann, &within, &second].map(account), [user.uid, ANN, ANN, BOB, BOB]);
    let names = || [&client, &ann, &second].map(all_names);
    let expected = [vec!["one", "two", "three"], vec!["two", "three"], vec!["three"]];
    assert_eq!(names(), expected.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    assert!(all_names(&root).is_empty(), "what others have is not its own");
    assert_eq!(everybodys(&root).unwrap(), [("two".to_owned(), ANN)]);
    drop((root, ann, second, within));
    // The first one's limit is what holds for the third.
    let forker = three.process(lab, &user, 0, &["fork", "20"]);
    let line = forker.go().unwrap();
    let forked: u32 = line.strip_prefix("forked ").unwrap().parse().unwrap();
    assert!((1..8).contains(&forked), "{forked} in a grant of 8");
    drop(forker);
    let running = three.process(lab, &user, 0, &["files"]);
    // Who has what is known after the broker's end too.
    broker.kill_everything();
    broker.start_again();
    let client = user.client_again(broker.socket());
    assert!(running.is_alive());
    checker::assert_in_order(lab);
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let bob = one.client_of(lab, &user, BOB, broker.socket());
    assert_eq!((all_names(&ann).len(), all_names(&bob).len()), (2, 0));
    is_hidden(&bob, &two.grant.path);
    ann.create("more", Options::new().no_range()).unwrap_err().is("QuotaExceeded", "nesting-user-blocks");
    drop(running);
    release(&ann, &two.grant.path, Options::new()).unwrap_err().is("Busy", "1 grants were made inside");
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

// A flood by one of them leaves others room, on the host and in there.
fn a_flood_leaves_others_room(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\nquota = { nesting-user-blocks = 1, connections = 16 }\n");
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(2));
    let connect = |id: u32| {
        let process = one.caller(lab, &user, id, broker.socket());
        Client::try_new(connected(&process), id, process)
    };
    // Four are a quarter, eight half.
    let anns: Vec<Client> = (0..4).map(|_| connect(ANN).unwrap()).collect();
    let web = one.inner_of(&user, ANN, &anns[0], "web", Options::new().lifetime("persistent"));
    assert!(connect(ANN).is_err(), "a fifth");
    // Nor by other ids of its container's, from beside that.
    let connect_when_told = ["connect-when-told", broker.socket().to_str().unwrap()];
    for id in [0, 5, 6] {
        let (process, line, _) = user.agent_in(&web.namespace, id, &connect_when_told);
        assert_eq!(line, "ok");
        put(lab, &user, "one", process.pid);
        assert!(Client::try_new(connected(&process), id, process).is_err(), "{id}");
    }
    let others: Vec<Client> = [BOB, BOB, BOB, 71].into_iter().map(|id| connect(id).unwrap()).collect();
    assert!(connect(72).is_err(), "all users together");
    connect(0).unwrap().create("roots", Options::new().no_range()).unwrap();
    user.client(broker.socket()).create("accounts", Options::new().no_range()).unwrap();
    // As root of what it has made it gets through no more than as itself, nor as nobody.
    let within = web.caller(lab, &user, 0, broker.socket());
    assert!(Client::try_new(connected(&within), 0, within).is_err());
    let inner = ["connect-from-inner-userns", broker.socket().to_str().unwrap()];
    let nobody = one.process(lab, &user, ANN, &inner);
    assert!(Client::try_new(connected(&nobody), 0, nobody).is_err());
    drop(others);
    wait_until("room for another", || connect(BOB).is_ok());
    drop(anns);
}

// What a user kills and does not end holds up nobody else's operations; it ends when it can.
fn what_does_not_end_holds_nobody_up(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 4);
    let one = Level::new(&user, &client, "one", nesting(2).lifetime("persistent"));
    let root = one.client(lab, &user, broker.socket());
    let connect = || one.client_of(lab, &user, ANN, broker.socket());
    let mut silent = Silent::new();
    let (ann, leaving) = (connect(), connect());
    let lasting = || Options::new().no_range().lifetime("persistent");
    let [web, db] = ["web", "db"].map(|name| ann.create(name, lasting()).unwrap().path);
    leaving.create("brief", Options::new().no_range()).unwrap();
    let mut stuck: Vec<_> = ["web", "db", "brief"]
        .map(|name| {
            let waits = silent.who_waits();
            put(lab, &user, &format!("one/@{ANN}.{name}"), waits.id());
            waits
        })
        .into();
    // A kill, and the end of a grant that nobody holds any more, by its user, by root in there, and once more behind those.
    drop(leaving);
    let killers = [connect(), connect(), connect()];
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (killer, path) in killers.iter().zip([&web, &db, &web]) {
            let answered = &answered;
            scope.spawn(move || {
                killer.cgroup::<_, ()>(path, "Kill", &()).unwrap();
                answered.fetch_add(1, Ordering::SeqCst);
            });
        }
        wait_until("all are under way", || {
            let (_, _, rows): (u32, String, Vec<(String, u64, u64)>) =
                client.manager("GetUsage", &Options::new().0).unwrap();
            rows.iter().any(|row| row.0 == "requests" && row.1 >= 4)
        });
        for name in ["a", "b", "c"] {
            client.create(name, Options::new().no_range()).unwrap();
            let inner = root.create(name, Options::new().no_range()).unwrap();
            release(&root, &inner.path, Options::new()).unwrap();
        }
        assert_eq!(answered.load(Ordering::SeqCst), 0, "those that were killed have ended");
        assert!(all_names(&client).contains(&"brief".to_owned()));
        drop(silent);
    });
    for child in &mut stuck {
        child.wait().unwrap();
    }
    wait_until("the grant that nobody holds has ended", || !all_names(&client).contains(&"brief".to_owned()));
    checker::assert_in_order(lab);
    drop((ann, killers));
    release(&client, &one.grant.path, Options::new().with("force", true)).unwrap();
}

// Who is let in no more makes nothing more; what there is stays, and is root's to end.
fn policy_lets_them_out_again(lab: &Lab) {
    let (broker, user, client) = let_in(lab, 1);
    let one = Level::new(&user, &client, "one", nesting(2));
    let root = one.client(lab, &user, broker.socket());
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let web = ann.create("web", Options::new().no_range().lifetime("persistent")).unwrap();
    lab.write_policy(&policy(0));
    broker.reload();
    wait_until("the policy is in force", || {
        ann.create("more", Options::new().no_range())
            .is_err_and(|refusal| refusal.message.contains("more than the 0"))
    });
    let process = one.caller(lab, &user, ANN, broker.socket());
    let nobody = Client::new(connected(&process), ANN, process);
    nobody.create("x", Options::new().no_range()).unwrap_err().is("NotAuthorized", "acts for nobody");
    is_nothing_to(&nobody, &web.path);
    assert_eq!(everybodys(&root).unwrap(), [("web".to_owned(), ANN)]);
    release(&root, &web.path, Options::new()).unwrap();
    checker::assert_in_order(lab);
    drop((ann, client));
}

#[track_caller]
fn is_nothing_to(nobody: &Client, path: &str) {
    nobody.values(path, &["pids.max"]).unwrap_err().is("NotAuthorized", "");
    nobody.cgroup::<_, ()>(path, "Kill", &()).unwrap_err().is("NotAuthorized", "");
    nobody.call::<_, ()>(path, CGROUP, "Freeze", &()).unwrap_err().is("NotAuthorized", "");
}

crate::tests![
    each_has_grants_of_its_own,
    cgroups_belong_to_the_user,
    who_only_looks_like_a_user_is_nobody,
    nothing_of_others_is_taken,
    no_file_takes_from_others,
    cgroups_of_users_are_bounded,
    cgroups_of_a_users_container_are_that_users,
    keys_and_names_are_each_users,
    a_user_has_so_many_blocks,
    root_of_a_users_container_is_that_user,
    three_levels_by_users,
    a_flood_leaves_others_room,
    what_does_not_end_holds_nobody_up,
    policy_lets_them_out_again,
];
