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

use zbus::OwnedObjectPath;

use crate::common::{Client, Lab, Options, Process, User, bus::Watch, checker, raw::Raw, wait_until};

// A user namespace of the user's in which root, as newuidmap(1) does, has mapped the user's own id and `count` others.
pub fn mapped(user: &User, first: u32, count: u32) -> Process {
    let (process, _) = user.userns();
    for file in ["uid_map", "gid_map"] {
        let map = format!("0 {} 1\n1 {first} {count}\n", user.uid);
        fs::write(format!("/proc/{}/{file}", process.pid), map).unwrap();
    }
    process
}

// A connection of the id `id` in the namespace.
pub fn connect_in(user: &User, namespace: &Process, id: u32, socket: &Path) -> (Process, UnixStream) {
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
    other.create("other", Options::new()).unwrap_err().is("NotAuthorized", "acts for nobody");
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

// A process of root's, or of another account's, that has entered a user's namespace can be traced by that namespace's root.
fn who_has_entered_a_users_namespace_is_nobody(lab: &Lab) {
    let broker = lab.broker();
    let (user, victim) = (lab.user(), lab.user());
    let client = victim.client(broker.socket());
    let grant = client.create("victim", Options::new()).unwrap();
    for (number, uid) in [0, victim.uid].into_iter().enumerate() {
        let namespace = mapped(&user, uid, 1);
        let (process, stream) = connect_in(&user, &namespace, 1, broker.socket());
        let entered = Client::new(stream, uid, process);
        entered.release(&grant.path, true).unwrap_err().is("NotAuthorized", "acts for nobody");
        // It is not even told what its uid is told elsewhere.
        let (mut watch, mut own) = (entered.watch(), client.watch());
        client.create(&format!("made-{number}"), Options::new()).unwrap();
        let added = |client: &Client, watch: &mut Watch, time: Duration| {
            client.signal::<(OwnedObjectPath, String, u32)>(watch, "GrantAdded", time)
        };
        assert!(added(&client, &mut own, Duration::from_secs(20)).is_some());
        // What was sent to it before the answer is here with it.
        assert!(entered.answers());
        assert!(added(&entered, &mut watch, Duration::ZERO).is_none(), "uid {uid} hears of others' grants");
    }
    assert_eq!(client.names(), ["made-0", "made-1", "victim"]);
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

// What the holder can set in the cgroups that it makes is all that the kernel has there: partitions of CPUs, protected memory,
// threads apart, no limits. None of it may reach above the payload or into a neighbour's, or keep the broker from its work.
fn what_a_holder_sets_below_its_payload_stays_there(lab: &Lab) {
    let broker = lab.broker();
    let (user, neighbour) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let limits = Options::new().limits(&[("memory.max", "64M"), ("pids.max", "30")]);
    let grant = client.create("wild", limits).unwrap();
    let beside = neighbour.client(broker.socket());
    beside.create("beside", Options::new()).unwrap();
    let payload = checker::places(lab, user.uid, "wild")["cgroup2"].join("payload");
    if payload.starts_with("/proc") {
        // No path leads a holder there on this host.
        client.release(&grant.path, true).unwrap();
        return;
    }
    let root = User::new(grant.uid, &[], &lab.scratch, &lab.programs);
    let (inside, _, _) = root.agent(&["files"]);
    for (_, place) in checker::places(lab, user.uid, "wild") {
        fs::write(place.join("payload/cgroup.procs"), inside.pid.to_string()).unwrap();
    }
    let outside_before = files(lab, &user, &neighbour);

    // Controllers are handed down, by a payload that holds no process itself.
    for name in ["init", "a", "a/b", "t"] {
        assert_eq!(inside.try_file("mkdir", &payload.join(name), ""), "ok ", "{name}");
    }
    assert_eq!(inside.try_file("write", &payload.join("init/cgroup.procs"), "0"), "ok ");
    let controllers = fs::read_to_string(payload.join("cgroup.controllers")).unwrap();
    for controller in controllers.split_whitespace() {
        for part in ["", "a"] {
            let answer = inside.try_file(
                "write",
                &payload.join(part).join("cgroup.subtree_control"),
                &format!("+{controller}"),
            );
            assert_eq!(answer, "ok ", "{controller} in {part:?}");
        }
    }
    // The last value of a partition that the kernel takes is "root".
    let values = ["0", "max", "isolated", "root", "10000", "threaded"];
    // Not where it sits itself: it would run out of memory.
    for part in ["a", "a/b", "t"] {
        for file in
            fs::read_dir(payload.join(part)).unwrap().flatten().filter(|f| f.file_type().unwrap().is_file())
        {
            let name = file.file_name().into_string().unwrap();
            // Its own death, and where it is, are tried by others.
            if matches!(name.as_str(), "cgroup.kill" | "cgroup.procs" | "cgroup.threads" | "cgroup.freeze") {
                continue;
            }
            for value in values {
                inside.try_file("write", &file.path(), value);
            }
        }
    }
    inside.try_file("write", &payload.join("t/cgroup.type"), "threaded");
    assert_eq!(inside.try_file("write", &payload.join("a/cgroup.freeze"), "1"), "ok ");
    assert_eq!(files(lab, &user, &neighbour), outside_before);

    // The broker does its work all the same.
    assert_eq!(client.value(&grant.path, "memory.max"), "67108864");
    assert_eq!(client.value(&grant.path, "pids.max"), "30");
    assert_eq!(client.processes(&grant.path), [inside.pid]);
    client.set_limits(&grant.path, &[("pids.max", "20"), ("memory.max", "48M")]).unwrap();
    client.stat(&grant.path);
    client.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap();
    client.cgroup::<_, ()>(&grant.path, "Thaw", &()).unwrap();
    client.cgroup::<_, ()>(&grant.path, "Kill", &()).unwrap();
    assert!(client.processes(&grant.path).is_empty());
    checker::assert_in_order(lab);
    client.release(&grant.path, false).unwrap();
}

// What the cgroups above the payload and beside it say that a holder could want to change.
fn files(lab: &Lab, user: &User, neighbour: &User) -> Vec<(String, String)> {
    let (own, other) =
        (checker::places(lab, user.uid, "wild"), checker::places(lab, neighbour.uid, "beside"));
    let mut found = Vec::new();
    for (tree, place) in &own {
        let beside = &other[tree];
        for directory in
            [place.parent().unwrap(), place, &place.join("payload"), beside, &beside.join("payload")]
        {
            for file in
                fs::read_dir(directory).unwrap().flatten().filter(|f| f.file_type().unwrap().is_file())
            {
                let name = file.file_name().into_string().unwrap();
                // Settings, not figures; what a payload's own file says of its cgroups is the holder's.
                let setting = [
                    ".max",
                    ".min",
                    ".low",
                    ".high",
                    ".weight",
                    ".cpus",
                    ".mems",
                    ".partition",
                    ".effective",
                    ".freeze",
                ];
                let is_setting = setting.iter().any(|end| name.ends_with(end)) && name != "cgroup.freeze";
                if let (true, Ok(text)) = (is_setting, fs::read_to_string(file.path())) {
                    found.push((file.path().display().to_string(), text));
                }
            }
        }
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

// Who is refused thousands of times would fill the journal, and have it drop what others did.
fn who_is_refused_all_the_time_fills_no_log(lab: &Lab) {
    const CALLS: usize = 600;
    lab.write_policy("[[rule]]\nname = \"fast\"\n[rule.quota]\nrequests-per-second = 100000\n");
    let broker = lab.broker();
    let (attacker, user) = (lab.user(), lab.user());
    let client = attacker.client(broker.socket());
    let other = user.client(broker.socket());
    for n in 0..CALLS {
        // Other words each time, and other kinds of refusals.
        match n % 2 {
            0 => assert!(client.find(&format!("no{n}")).is_err()),
            _ => {
                assert!(client.create(&format!("g{n}"), Options::new().limits(&[("pids.max", "x")])).is_err())
            }
        }
    }
    // Others' are told, and so is what the attacker is let do.
    other.find("none").unwrap_err();
    client.create("made", Options::new().no_range().lifetime("persistent")).unwrap();
    let lines = |of: &str| -> Vec<String> {
        broker.log().lines().filter(|line| line.contains(of)).map(str::to_owned).collect()
    };
    let refused = |user: &User| lines(&format!("uid {} may not ", user.uid)).len();
    assert_eq!(refused(&user), 1);
    assert_eq!(lines(&format!("uid {} may create grant made", attacker.uid)).len(), 1);
    // How many were left out is said though nothing more happens, and none is missing.
    let words = format!("uid {} was refused more: ", attacker.uid);
    let left_out = || -> usize {
        let number = |line: &String| line.split_once(&words)?.1.split(' ').next()?.parse::<usize>().ok();
        lines(&words).iter().filter_map(number).sum()
    };
    wait_until("all are told or counted", || refused(&attacker) + left_out() == CALLS);
    let told = refused(&attacker) + lines(&words).len();
    assert!(told < CALLS / 2, "{told} lines about {CALLS} refusals");
    client.release(&client.find("made").unwrap(), true).unwrap();
    drop((client, other, broker));
}

crate::tests![
    who_is_refused_all_the_time_fills_no_log,
    descriptors_that_nobody_reads_hold_up_nobody,
    a_shared_group_moves_nobody,
    what_a_holder_sets_below_its_payload_stays_there,
    the_ids_in_a_users_namespace_are_no_accounts,
    who_has_entered_a_users_namespace_is_nobody,
];
