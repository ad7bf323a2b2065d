//! Attacks that a reviewer thought of, each tried on a running broker. What held at once is here too.

use std::{fs, os::unix::net::UnixStream, path::Path};

use crate::common::{Client, Lab, Options, Process, User, checker, raw::Raw};

// A user namespace of the user's in which root, as newuidmap(1) does, has mapped the user's own id and `count` others.
fn mapped(user: &User, first: u32, count: u32) -> Process {
    let (process, _) = user.userns();
    for file in ["uid_map", "gid_map"] {
        let map = format!("0 {} 1\n1 {first} {count}\n", user.uid);
        fs::write(format!("/proc/{}/{file}", process.pid), map).unwrap();
    }
    process
}

// A connection of the id `id` in the namespace.
fn connect_in(user: &User, namespace: &Process, id: u32, socket: &Path) -> (Process, UnixStream) {
    let (process, line, mut fds) = user.agent_in(namespace, id, &["connect", socket.to_str().unwrap()]);
    assert_eq!(line, "ok");
    (process, UnixStream::from(fds.remove(0)))
}

// One user would be thousands of accounts, and have all ids and connections that there are.
fn the_ids_in_a_users_namespace_are_no_accounts(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\n[rule.quota]\nconnections = 3\n");
    let broker = lab.broker();
    let user = lab.user();
    let (first, count) = (1_900_000_000, 100);
    let namespace = mapped(&user, first, count);
    // Its own id in its own namespace is the user.
    let (process, stream) = connect_in(&user, &namespace, 0, broker.socket());
    let own = Client::new(stream, user.uid, process);
    own.create("own", Options::new()).unwrap();
    let (process, stream) = connect_in(&user, &namespace, 7, broker.socket());
    let other = Client::new(stream, first + 6, process);
    other.create("other", Options::new()).unwrap_err().is("Unsupported", &format!("account {}", user.uid));
    // Their connections are the user's.
    let (_third, stream) = connect_in(&user, &namespace, 8, broker.socket());
    let mut third = Raw::new(stream);
    third.authenticate(first + 7);
    for id in [0, 9] {
        let (_process, stream) = connect_in(&user, &namespace, id, broker.socket());
        assert!(Raw::new(stream).is_closed(), "id {id} is served beyond the quota");
    }
    let bystander = lab.user().client(broker.socket());
    bystander.create("mine", Options::new()).unwrap();
}

// A process of root's that has entered a user's namespace can be traced by that namespace's root.
fn root_in_a_users_namespace_is_not_root(lab: &Lab) {
    let broker = lab.broker();
    let (user, victim) = (lab.user(), lab.user());
    let client = victim.client(broker.socket());
    let grant = client.create("victim", Options::new()).unwrap();
    let namespace = mapped(&user, 0, 1);
    let (process, stream) = connect_in(&user, &namespace, 1, broker.socket());
    let root = Client::new(stream, 0, process);
    root.release(&grant.path, true).unwrap_err().is("Unsupported", &format!("account {}", user.uid));
    assert_eq!(client.names(), ["victim"]);
}

// Who has the account's group (`users` on some hosts) has nothing to do in its payloads.
fn a_shared_group_moves_nobody(lab: &Lab) {
    let broker = lab.broker();
    let (user, mut other) = (lab.user(), lab.user());
    other.gid = user.gid;
    let client = user.client(broker.socket());
    for (name, options) in [("ids", Options::new()), ("bare", Options::new().no_range())] {
        let grant = client.create(name, options).unwrap();
        client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &"below").unwrap();
        let inside = user.sleeper();
        client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
        let payload = checker::places(lab, user.uid, name)["cgroup2"].join("payload");
        if payload.starts_with("/proc") {
            continue;
        }
        let (thief, _, _) = other.agent(&["files"]);
        for part in ["", "below", ".cgrant"] {
            let procs = payload.join(part).join("cgroup.procs");
            let answer = thief.try_file("write", &procs, &inside.pid.to_string());
            assert_eq!(answer, "EACCES", "{}", procs.display());
        }
        client.release(&grant.path, true).unwrap();
    }
}

crate::tests![
    a_shared_group_moves_nobody,    the_ids_in_a_users_namespace_are_no_accounts,
    root_in_a_users_namespace_is_not_root,
];
