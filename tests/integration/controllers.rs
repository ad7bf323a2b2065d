//! Controllers that policy keeps from an account: had by no way, from outside or inside, of the broker's own interface or CGManager's.

use std::{
    collections::HashMap,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::{
    arguments,
    cgmanager_attacks::confined,
    cgmanager_table::furnish,
    common::{
        Client, Grant, Kind, Lab, Options, User,
        cgmanager::{Jail, Manager, Peer},
        checker, wait_until,
    },
    explain::{explain, same},
};

const POLICY: &str = "\
[[rule]]
name = \"site\"
access.controllers = [\"cpu\", \"pids\"]
raw.write = [\"memory.swappiness\", \"cpu.idle\"]
grant-ceiling = { \"memory.max\" = \"64M\" }
";

/// A grant's directory on cgroup2; `None` where that is mounted nowhere that others could see.
fn v2(lab: &Lab, user: &User, name: &str) -> Option<PathBuf> {
    let place = checker::places(lab, user.uid, name).remove("cgroup2").unwrap();
    (!place.starts_with("/proc")).then_some(place)
}

fn words(place: &Path, file: &str) -> Vec<String> {
    let text = fs::read_to_string(place.join(file)).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

/// What is refused because of a controller, with all that a program can show.
#[track_caller]
fn barred<T: std::fmt::Debug>(outcome: Result<T, crate::common::bus::Refused>) {
    let refused = outcome.unwrap_err();
    refused.is("NotAuthorized", "the controller memory");
    let text = |key: &str| format!("{:?}", refused.details.get(key));
    assert!(text("rule").contains("50-test.toml:1 site"), "{refused:?}");
    assert!(text("hint").contains("access.controllers"), "{refused:?}");
}

fn what_is_not_allowed_is_neither_set_nor_delegated(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let (user, root) = (lab.user(), lab.root());
    let client = user.client(broker.socket());
    let limits = |limits: &[(&str, &str)]| Options::new().no_range().limits(limits);
    for asked in [
        &[("memory.max", "1M")][..],
        &[("pids.max", "9"), ("memory.high", "1M")],
        &[("memory.swappiness", "1")],
    ] {
        let question = explain(&client, "CreateGrant", limits(asked).with("name", "no")).unwrap();
        let real = client.create("no", limits(asked));
        same(&format!("{asked:?}"), &question, &real);
        barred(real);
    }
    assert!(client.names().is_empty());
    let grant = client.create("own", limits(&[("pids.max", "50"), ("cpu.weight", "50")])).unwrap();
    assert_eq!(client.value(&grant.path, "memory.max"), "67108864", "the ceiling holds all the same");
    for asked in [[("memory.max", "1M")], [("memory.max", "max")], [("memory.swappiness", "1")]] {
        let wish: HashMap<_, _> =
            asked.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let question = Options::new().with("grant", grant.path.clone()).with("limits", wish);
        let question = explain(&client, "SetLimits", question).unwrap();
        let real = client.set_limits(&grant.path, &asked);
        same(&format!("{asked:?}"), &question, &real);
        barred(real);
    }
    client.set_limits(&grant.path, &[("pids.max", "40")]).unwrap();
    assert!(client.stat(&grant.path).contains_key("memory-current"), "figures can be read");
    // Root sets what it likes on any grant.
    root.client(broker.socket()).set_limits(&grant.path, &[("memory.max", "32M")]).unwrap();
    assert_eq!(client.value(&grant.path, "memory.max"), "33554432");
    from_inside(lab, &user, &client, &grant);
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
}

/// The payload is the account's own, and a process of its sits in it.
fn from_inside(lab: &Lab, user: &User, client: &Client, grant: &Grant) {
    let (inside, _, _) = user.agent(&["files"]);
    client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
    let write = |file: PathBuf, text: &str| inside.try_file("write", &file, text);
    if let Some(place) = v2(lab, user, "own") {
        let (there, delegated) =
            (words(&place, "cgroup.controllers"), words(&place, "cgroup.subtree_control"));
        let kept = |name: &&String| !["cpu", "pids"].contains(&name.as_str());
        assert!(!delegated.iter().any(|name| kept(&name)), "{delegated:?}");
        assert_eq!(words(&place.join("payload"), "cgroup.controllers"), delegated);
        // systemd of a hybrid host hands nothing down on cgroup2.
        if lab.host.kind == Kind::V2 || lab.host.kind == Kind::Hybrid && !lab.host.systemd {
            assert!(there.iter().any(|name| kept(&name)), "nothing on cgroup2 to try this with: {there:?}");
        }
        for name in there.iter().filter(kept) {
            let order = format!("+{name}");
            assert_eq!(write(place.join("payload/cgroup.subtree_control"), &order), "ENOENT", "{name}");
            assert_eq!(write(place.join("cgroup.subtree_control"), &order), "EACCES", "{name}");
            assert_eq!(
                write(place.parent().unwrap().join("cgroup.subtree_control"), &order),
                "EACCES",
                "{name}"
            );
        }
    }
    // On v1 a grant has cgroups in every hierarchy, so that ceilings hold; nothing there is the holder's.
    for (tree, place) in checker::places(lab, user.uid, "own").iter().filter(|(tree, _)| *tree != "cgroup2") {
        for entry in
            fs::read_dir(place.join("payload")).unwrap().flatten().filter(|entry| entry.path().is_file())
        {
            // The kernel lets everybody write there, and takes descriptors of the writer's own.
            if entry.file_name() == "cgroup.event_control" {
                continue;
            }
            let answer = write(entry.path(), "1");
            assert!(
                ["EACCES", "EPERM"].contains(&answer.as_str()),
                "{tree}: {}: {answer}",
                entry.path().display()
            );
        }
    }
}

fn another_policy_is_for_new_grants_and_for_what_is_set(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let lasting = || Options::new().no_range().lifetime("persistent");
    let old = client.create("old", lasting().limits(&[("memory.max", "48M")])).unwrap();
    let controllers = |name: &str| v2(lab, &user, name).map(|place| words(&place, "cgroup.subtree_control"));
    let before = controllers("old");
    lab.write_policy(POLICY);
    broker.reload();
    wait_until("the new policy is in force", || {
        client.set_limits(&old.path, &[("memory.max", "48M")]).is_err()
    });
    barred(client.set_limits(&old.path, &[("memory.max", "32M")]));
    let new = client.create("new", lasting()).unwrap();
    for round in 0..2 {
        let client = user.client(broker.socket());
        assert_eq!(client.value(&old.path, "memory.max"), "50331648");
        assert_eq!(controllers("old"), before);
        let new = controllers("new").unwrap_or_default();
        assert!(new.iter().all(|name| ["cpu", "pids"].contains(&name.as_str())), "{new:?}");
        // And the same when another broker has found them.
        if round == 0 {
            broker.kill_everything();
            broker.start_again();
        }
    }
    let client = user.client(broker.socket());
    for grant in [old, new] {
        client.release(&grant.path, true).unwrap();
    }
    checker::assert_empty(lab);
}

/// By CGManager's interface, in cgroups outside of grants that root gave to the user.
fn nor_over_cgmanagers_interface(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"site\"\naccess.controllers = [\"cpu\", \"pids\"]\n");
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "kept"));
    let peer = confined(&manager, &user, &jail);
    let kept = "policy does not let this account have the controller memory";
    let said = || manager.broker.log().matches(kept).count();
    let barred = |method: &str, arguments: &[_]| {
        let before = said();
        let failure = peer.fails(method, arguments);
        assert!(said() > before, "{method}: {failure:?}");
    };
    barred("Create", arguments!["memory", "a"]);
    assert!(!jail.has("a"));
    // Among all and in lists it is passed over, and what is not kept back is made.
    let other = (lab.host.kind != Kind::V2).then(|| Jail::new(lab, "freezer", "free"));
    if let Some(other) = &other {
        other.give_to(&user);
        other.put(peer.pid());
    }
    for (list, name) in [("all", "b"), ("memory,freezer", "c")] {
        // It was not there before.
        assert_eq!(peer.get::<i32>("Create", arguments![list, name]), -1, "{list}");
        match &other {
            Some(other) => assert!(other.has(name) && !jail.has(name), "{list}"),
            None => {
                let there = fs::read_to_string(jail.dir.join(name).join("cgroup.controllers")).unwrap();
                assert!(!there.contains("memory"), "{list}: {there}");
            }
        }
    }
    // A cgroup that root made, whose limits are the user's own.
    let own = jail.dir.join("own");
    fs::create_dir(&own).unwrap();
    let limit = if lab.host.kind == Kind::V2 { "cgroup.max.descendants" } else { "memory.limit_in_bytes" };
    for file in ["", limit, "cgroup.procs"] {
        std::os::unix::fs::chown(own.join(file), Some(user.uid), Some(user.gid)).unwrap();
    }
    barred("SetValue", arguments!["memory", "own", "memory.limit_in_bytes", "1048576"]);
    if lab.host.kind != Kind::V2 {
        assert_ne!(fs::read_to_string(own.join(limit)).unwrap().trim(), "1048576");
    }
    // Root is not bound, and sets it for the user.
    if lab.host.kind != Kind::V2 {
        let root = confined(&manager, &lab.root(), &jail);
        root.does("SetValue", arguments!["memory", "own", "memory.limit_in_bytes", "2097152"]);
        assert_eq!(fs::read_to_string(own.join(limit)).unwrap().trim(), "2097152");
    }
}

/// As one of the ids of a user namespace of the user's, for which policy has no rule.
fn nor_from_inside_of_a_namespace(lab: &Lab) {
    let user = lab.user();
    lab.write_policy(&format!(
        "[[rule]]\nname = \"site\"\nuids = [{}]\naccess.controllers = [\"cpu\", \"pids\"]\n",
        user.uid
    ));
    let (manager, jail) = (Manager::start(lab), Jail::new(lab, "memory", "kept"));
    let (namespace, _) = user.userns();
    let first = 1_900_000_000;
    for file in ["uid_map", "gid_map"] {
        let map = format!("0 {} 1\n1 {first} 9\n", user.uid);
        fs::write(format!("/proc/{}/{file}", namespace.pid), map).unwrap();
    }
    let peer_of = |id: u32| {
        let socket = manager.socket.to_str().unwrap();
        let (process, line, mut fds) = user.agent_in(&namespace, id, &["connect", socket]);
        assert_eq!(line, "ok");
        Peer::over(UnixStream::from(fds.remove(0)), Some(process))
    };
    furnish(jail.dir.parent().unwrap(), &jail.dir);
    for id in [0, 1] {
        let uid = if id == 0 { user.uid } else { first };
        jail.give_to_ids(uid, uid);
        let peer = peer_of(id);
        jail.put(peer.pid());
        let name = format!("as-{id}");
        peer.fails("Create", arguments!["memory", &name]);
        assert!(!jail.has(&name), "made as id {id}");
        let refused = format!("uid {uid} may not legacy create memory:{name}: policy does not let");
        assert!(manager.broker.log().contains(&refused), "as id {id}");
    }
}

crate::tests![
    what_is_not_allowed_is_neither_set_nor_delegated,
    another_policy_is_for_new_grants_and_for_what_is_set,
    nor_over_cgmanagers_interface,
    nor_from_inside_of_a_namespace,
];
