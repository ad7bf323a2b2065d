//! Attacks that a reviewer thought of, each tried on a running broker. What held at once is here too.

use std::{
    fs,
    io::{IoSlice, Write},
    net::{TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt},
    process::{Signal, kill_process},
};

use crate::common::{Client, Lab, Options, Process, User, checker, raw::Raw, wait_until};

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

// A socket whose closing waits for ten minutes, unless the other end, returned too, is closed.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 65536]).is_ok() {}
    sender.set_nonblocking(false).unwrap();
    sockopt::set_socket_linger(&sender, Some(Duration::from_secs(600))).unwrap();
    (sender, receiver)
}

// Sends a byte with a socket that nobody else has any more.
fn send_lingering(raw: &Raw, others: &mut Vec<TcpStream>) {
    let (socket, other) = lingering();
    others.push(other);
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [socket.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(&raw.0, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::NOSIGNAL);
    if sent.is_err() {
        // Ours is the last one then.
        sockopt::set_socket_linger(&socket, None).unwrap();
    }
    sent.unwrap();
}

// Descriptors in messages that nobody reads are closed with the connection, and that may wait for their sender.
fn descriptors_that_nobody_reads_hold_up_nobody(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let mut others = Vec::new();
    let served = |what: &str| {
        let begin = Instant::now();
        lab.user().client(broker.socket()).names();
        assert!(begin.elapsed() < Duration::from_secs(10), "{what} held somebody else up");
    };
    // More of them than may wait at one time.
    let mut connections: Vec<(Process, Raw)> = (0..8)
        .map(|_| {
            let (process, stream) = user.connect(broker.socket());
            let mut raw = Raw::new(stream);
            raw.authenticate(user.uid);
            (process, raw)
        })
        .collect();
    // The front ends a connection after bytes that are no message, but not before the descriptor is there too.
    let front = rustix::process::Pid::from_raw(broker.fronts()[0].cast_signed()).unwrap();
    kill_process(front, Signal::STOP).unwrap();
    for (_, raw) in &mut connections {
        raw.send(&[b'x'; 64]);
        send_lingering(raw, &mut others);
    }
    kill_process(front, Signal::CONT).unwrap();
    assert!(connections.iter_mut().all(|(_, raw)| raw.is_closed()));
    served("what is behind garbage");
    drop(others);
    // Whoever lets go is served again.
    wait_until("the sender is served again", || {
        let (process, stream) = user.connect(broker.socket());
        Client::try_new(stream, user.uid, process).is_ok()
    });
}

crate::tests![
    descriptors_that_nobody_reads_hold_up_nobody,
    a_shared_group_moves_nobody,
    the_ids_in_a_users_namespace_are_no_accounts,
    root_in_a_users_namespace_is_not_root,
];
