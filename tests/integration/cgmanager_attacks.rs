//! What was wrong with CGManager, tried on the broker: one test for each weakness that was found in it, and one that tries to
//! get past a limit of root's through every file that a user was given.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::PathBuf,
    process::Command,
};

use rustix::process::{Pid, Signal, kill_process};
use zbus::Message;

use crate::{
    arguments,
    attacks::{connect_in, mapped},
    cgmanager_table::furnish,
    common::{
        Kind, Lab, Options, Process, User,
        cgmanager::{Argument, Credential, Failure, INTERFACE, INVALID_ARGS, Jail, Manager, PATH, Peer},
        level::{Level, connected, nesting, release},
        program::{Ready, build},
        raw::Raw,
        wait_until,
    },
};

/// A client of a user's in a cgroup that root gave to it, as root does it over the interface: its limits are root's.
pub fn confined(manager: &Manager, user: &User, jail: &Jail) -> Peer {
    let root = manager.own_client();
    furnish(jail.dir.parent().unwrap(), &jail.dir);
    if user.uid != 0 {
        jail.give_to(user);
    }
    let peer = manager.client(user);
    root.does("MovePidAbs", arguments!["memory", &jail.path, peer.pid()]);
    peer
}

#[track_caller]
fn refused(peer: &Peer, method: &str, arguments: &[Argument<'_>]) {
    let failure = peer.fails(method, arguments);
    assert_eq!(failure.name, INVALID_ARGS, "{method} {arguments:?}");
    assert!(failure.text.starts_with("invalid request"), "{method} {arguments:?}: {failure:?}");
}

/// 1: the name of a file led anywhere.
fn keys_lead_out_of_no_cgroup(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let secret = lab.scratch.join("secret");
    fs::create_dir(&secret).unwrap();
    for (name, mode) in [("readable", 0o644), ("writable", 0o666)] {
        fs::write(secret.join(name), "before").unwrap();
        fs::set_permissions(secret.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    // Also root, who is confined to a cgroup in a container.
    for who in [lab.root(), user] {
        let peer = confined(&manager, &who, &jail);
        assert_eq!(peer.get::<i32>("Create", arguments!["memory", &format!("own-{}", who.uid)]), -1);
        let up = "../".repeat(32);
        for name in ["readable", "writable"] {
            let file = secret.join(name).display().to_string();
            let listed = format!("memory.limit_in_bytes/../{up}{}", &file[1..]);
            for key in [format!("{up}{}", &file[1..]), file.clone(), format!("./{file}"), listed] {
                refused(&peer, "GetValue", arguments!["memory", "", &key]);
                refused(&peer, "SetValue", arguments!["memory", "", &key, "after"]);
                refused(&peer, "Chmod", arguments!["memory", "", &key, 0o666]);
                let credential = [Credential::of(peer.pid(), who.uid)];
                let scm = peer.scm("SetValueScm", arguments!["memory", "", &key, "after"], &credential);
                assert_eq!(scm.datagram(), b"0", "{key}");
                let scm = peer.scm("GetValueScm", arguments!["memory", "", &key], &credential);
                assert_eq!(scm.datagram(), b"", "{key}");
            }
        }
        // A cgroup that is a link would be another way.
        refused(&peer, "GetValue", arguments!["memory", "/proc/self/root/etc", "passwd"]);
    }
    for name in ["readable", "writable"] {
        assert_eq!(fs::read_to_string(secret.join(name)).unwrap(), "before", "{name}");
    }
    assert_eq!(fs::metadata(secret.join("readable")).unwrap().mode() & 0o777, 0o644);
}

/// 2: about a thousand connections, and the daemon was gone.
fn ten_thousand_connections_leave_others_served(lab: &Lab) {
    let manager = Manager::start(lab);
    let (bob, alice) = (lab.user(), lab.user());
    let before = manager.client(&bob);
    let (flood, mut line, _) = alice.agent(&["flood", manager.socket.to_str().unwrap(), "10000"]);
    // More of what it says may come with it.
    assert!(line.starts_with("ok"), "{line}");
    while !line.ends_with("flooded") {
        line = flood.hear().expect("the agent ended").0;
    }
    // While what there is of them is open, for who was there and for who comes.
    for peer in [&before, &manager.client(&bob)] {
        peer.does("Ping", arguments![1]);
        assert!(!peer.get::<Vec<String>>("ListControllers", arguments![]).is_empty());
    }
    let (_, stream) = alice.connect(&manager.socket);
    assert!(Peer::try_over(stream, None).is_err(), "alice has as many as she may");
    drop(flood);
    wait_until("alice may connect again", || {
        let (process, stream) = alice.connect(&manager.socket);
        Peer::try_over(stream, Some(process)).is_ok_and(|peer| peer.call("Ping", arguments![1]).is_ok())
    });
}

fn descriptors(manager: &Manager) -> usize {
    let all = manager.broker.fronts().into_iter().chain([manager.broker.engine()]);
    all.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()).sum()
}

/// 3: descriptors of calls that never went on, and of those that brought no socket, stayed.
fn descriptors_of_bad_exchanges_are_closed(lab: &Lab) {
    let manager = Manager::start(lab);
    let (alice, bob) = (lab.user(), lab.user());
    let other = manager.client(&bob);
    other.does("Ping", arguments![1]);
    let before = descriptors(&manager);
    let peer = manager.client(&alice);
    let file = fs::File::open("/dev/null").unwrap();
    let (pipe, _end) = std::io::pipe().unwrap();
    let own: OwnedFd = UnixStream::connect(&manager.socket).unwrap().into();
    for nth in 0..300 {
        let fd = [file.as_fd(), pipe.as_fd(), own.as_fd()][nth % 3];
        let call = [arguments!["memory", "x"], &[Argument::Socket(fd)]].concat();
        refused(&peer, "CreateScm", &call);
    }
    drop(own);
    // So many may wait, and no more; others have their own.
    let mut waiting = Vec::new();
    let told = loop {
        match peer.begin("CreateScm", arguments!["memory", "x"]) {
            Ok(scm) => waiting.push(scm),
            Err(told) => break told,
        }
        assert!(waiting.len() <= 1000, "there is no end to it");
    };
    assert!(told.text.starts_with("invalid request: "), "{told:?}");
    let second = manager.client(&alice);
    assert_eq!(second.begin("CreateScm", arguments!["memory", "x"]).err(), Some(told), "they are alice's");
    let jail = Jail::new(lab, "memory", "a");
    jail.give_to(&bob);
    manager.own_client().does("MovePidAbs", arguments!["memory", &jail.path, other.pid()]);
    let scm = other.scm("CreateScm", arguments!["memory", "x"], &[Credential::of(other.pid(), bob.uid)]);
    assert_eq!(scm.datagram(), b"1");
    // A datagram socket whose other end is kept gives no sign of its client's end.
    drop((peer, second, other, scm));
    wait_until("what was left open is closed", || descriptors(&manager) <= before);
    assert_eq!(waiting[0].datagram(), b"0", "it was told that nobody waits for it any more");
}

/// Messages on the socket of an exchange that are none: too many, too long, with descriptors, by nobody, by somebody else.
fn abused_exchanges_make_nobody_somebody_else(lab: &Lab) {
    let (manager, alice, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = manager.client(&alice);
    manager.own_client().does("MovePidAbs", arguments!["memory", &jail.path, peer.pid()]);
    // The cgroup is root's: only who is taken for root may make something in it. This program is root, and its word on the
    // socket is not alice's.
    let scm = peer.scm("CreateScm", arguments!["memory", "x"], &[Credential::own()]);
    assert_eq!(scm.datagram(), b"0");
    let scm = peer.scm("CreateScm", arguments!["memory", "x"], &[Credential::of(peer.pid(), 0)]);
    assert_eq!(scm.datagram(), b"0");
    let scm = peer.scm("CreateScm", arguments!["memory", "x"], &[Credential::of(1, alice.uid)]);
    assert_eq!(scm.datagram(), b"0");
    // Two bytes, no bytes.
    for bytes in [&b"pp"[..], b""] {
        let scm = peer.begin("CreateScm", arguments!["memory", "x"]).unwrap();
        let of = Credential::of(peer.pid(), alice.uid);
        crate::common::cgmanager::send_credential(scm.0.as_fd(), bytes, of).unwrap();
        assert_eq!(scm.datagram(), b"0", "{bytes:?}");
    }
    // One who has ended.
    let mut gone = alice.sleeper();
    jail.put(gone.pid);
    let scm = peer.begin("CreateScm", arguments!["memory", "x"]).unwrap();
    scm.identify(Credential::of(gone.pid, alice.uid));
    gone.kill();
    assert_eq!(scm.datagram(), b"0");
    assert!(!jail.has("x"));
    peer.does("Ping", arguments![1]);
}

/// 4: a path that was too long by one byte, and the daemon was gone.
fn no_path_is_too_long(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"deep\"\n[rule.quota]\ncgroup-depth = 32\n");
    let (manager, alice, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &alice, &jail);
    let component = "x".repeat(255);
    for length in (4080..4110).chain([255, 256, 8192, 65_536]) {
        let path: String = format!("{component}/").repeat(length / 256 + 1);
        let _ = peer.call("Create", arguments!["memory", &path[..length]]);
        let _ = peer.call("GetValue", arguments!["memory", &path[..length], &path[..length]]);
        let _ = peer.call("Chmod", arguments!["memory", "", &path[..length], 0o600]);
    }
    assert_eq!(peer.get::<i32>("Remove", arguments!["memory", &component, 1]), 1, "some were short enough");
    peer.does("Ping", arguments![1]);
    // Others are served as before.
    let (bob, his) = (lab.user(), Jail::new(lab, "memory", "b"));
    let other = confined(&manager, &bob, &his);
    assert_eq!(other.get::<String>("GetPidCgroup", arguments!["memory", other.pid()]), "/");
}

/// 5: `/foo` was taken to be above `/foobar`.
fn a_name_that_begins_alike_is_somewhere_else(lab: &Lab) {
    let (manager, alice) = (Manager::start(lab), lab.user());
    let (own, longer) = (Jail::new(lab, "memory", "foo"), Jail::new(lab, "memory", "foobar"));
    longer.give_to(&alice);
    let peer = confined(&manager, &alice, &own);
    let task = alice.sleeper();
    manager.own_client().does("MovePidAbs", arguments!["memory", &longer.path, task.pid]);
    let asks = Credential::of(peer.pid(), alice.uid);
    let victim = Credential::of(task.pid, alice.uid);
    assert_eq!(peer.get::<String>("GetPidCgroup", arguments!["memory", peer.pid()]), "/");
    refused(&peer, "GetPidCgroup", arguments!["memory", task.pid]);
    refused(&peer, "MovePid", arguments!["memory", "", task.pid]);
    refused(&peer, "GetValue", arguments!["memory", &longer.path, "memory.usage_in_bytes"]);
    refused(&peer, "ListKeys", arguments!["memory", &longer.path]);
    assert_eq!(peer.scm("GetPidCgroupScm", arguments!["memory"], &[asks, victim]).datagram(), b"");
    assert_eq!(peer.scm("MovePidScm", arguments!["memory", ""], &[asks, victim]).datagram(), b"0");
    assert!(!own.processes("").contains(&task.pid));
}

/// 6: there were no quotas.
fn cgroups_have_an_end(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\n[rule.quota]\ncgroups = 20\ncgroup-depth = 6\n");
    let (manager, alice, bob) = (Manager::start(lab), lab.user(), lab.user());
    let (jail, his) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    let (peer, other) = (confined(&manager, &alice, &jail), confined(&manager, &bob, &his));
    let deep = "d/".repeat(30);
    let told = peer.fails("Create", arguments!["memory", &deep]).text;
    assert!(told.starts_with("invalid request: ") && told.contains("cgroup-depth"), "{told}");
    let mut made = 0;
    let told = loop {
        match peer.call("Create", arguments!["memory", &format!("n{made}")]) {
            Ok(_) => made += 1,
            Err(Failure { text, .. }) => break text,
        }
        assert!(made <= 20, "there is no end to it");
    };
    assert!(told.starts_with("invalid request: ") && told.contains("at most 20 cgroups"), "{told}");
    assert!((10..=20).contains(&made), "{made}");
    // By Scm it is the same, and for the same account.
    let scm = peer.scm("CreateScm", arguments!["memory", "more"], &[Credential::of(peer.pid(), alice.uid)]);
    assert_eq!(scm.datagram(), b"0");
    assert_eq!(other.get::<i32>("Create", arguments!["memory", "x"]), -1, "bob has his own");
    // What is gone counts no more, by whomever it was removed.
    assert_eq!(peer.get::<i32>("Remove", arguments!["memory", "n0", 1]), 1);
    fs::remove_dir(jail.dir.join("n1")).unwrap();
    for name in ["again", "and-again"] {
        assert_eq!(peer.get::<i32>("Create", arguments!["memory", name]), -1);
    }
    assert!(peer.call("Create", arguments!["memory", "too-many"]).is_err());
}

/// 8: one client that asked a lot made all others wait.
fn who_asks_much_makes_nobody_wait(lab: &Lab) {
    let (manager, alice, bob) = (Manager::start(lab), lab.user(), lab.user());
    let (jail, his) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    jail.give_to(&alice);
    let other = confined(&manager, &bob, &his);
    let root = manager.own_client();
    let mut floods = Vec::new();
    for _ in 0..4 {
        let (process, stream) = alice.connect(&manager.socket);
        root.does("MovePidAbs", arguments!["memory", &jail.path, process.pid]);
        let mut raw = Raw::new(stream);
        raw.authenticate(alice.uid);
        let call = Message::method_call(PATH, "ListKeys").interface(INTERFACE);
        let call = call.build(&("memory", "")).unwrap();
        // More than is answered to somebody who reads nothing: the rest waits with her.
        raw.0.set_nonblocking(true).unwrap();
        let sent = (0..20_000).take_while(|_| raw.0.write(call.data()).is_ok_and(|n| n == call.data().len()));
        assert!(sent.count() > 100);
        floods.push((process, raw));
    }
    for nth in 0..200 {
        other.does("Ping", arguments![nth]);
        let _: String = other.get("GetValue", arguments!["memory", "", "memory.usage_in_bytes"]);
    }
    let scm = other.scm("CreateScm", arguments!["memory", "x"], &[Credential::of(other.pid(), bob.uid)]);
    assert_eq!(scm.datagram(), b"1");
}

/// 9: of more tasks than fit into a socket at once 313 came, and then nothing. Here of a cgroup2 cgroup, wherever there is one.
fn ten_thousand_processes_are_told(lab: &Lab) {
    const MANY: usize = 10_000;
    let program = build(lab, "tests/common/crowd.c");
    let (manager, on_v1) = (Manager::start(lab), lab.host.kind == Kind::V1);
    let tree = if on_v1 { lab.host.with("memory").unwrap() } else { lab.host.cgroup2() };
    let controllers = match on_v1 {
        true => "memory".to_owned(),
        false => fs::read_to_string(tree.root.join("cgroup.controllers")).unwrap(),
    };
    let controller = controllers.split_whitespace().next().unwrap();
    let path = format!("/cgm-{}-many", lab.instance);
    let jail = Jail { dir: tree.root.join(&path[1..]), path };
    fs::create_dir(&jail.dir).unwrap();
    let mut command = Command::new(program);
    command.args([&MANY.to_string(), "processes"]);
    let crowd = Ready::of(jail.command(&command).stdin(std::process::Stdio::piped()));
    let root = manager.client(&lab.root());
    jail.put(root.pid());
    let mut all = jail.processes("");
    all.sort_unstable();
    assert_eq!(all.len(), MANY + 1);
    let place = arguments![controller, ""];
    let own = [Credential::of(root.pid(), 0)];
    for method in ["GetTasks", "GetTasksRecursive"] {
        let told: Vec<i32> = root.get(method, place);
        assert!(told.into_iter().eq(all.iter().map(|pid| pid.cast_signed())), "{method}");
        let shown = root.scm(&format!("{method}Scm"), place, &own).tasks().unwrap();
        assert!(shown == all, "{method}Scm: {} of {}", shown.len(), all.len());
    }
    drop(crowd);
}

/// 10: on v1 it moved one thread.
fn a_process_is_moved_with_all_of_its_threads(lab: &Lab) {
    let (manager, jail) = (Manager::start(lab), Jail::new(lab, "memory", "a"));
    let (stop, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ = wait.recv();
    });
    let own = std::process::id();
    let tree = lab.host.with("memory").unwrap();
    let before = crate::common::user::cgroups_of(own);
    let before = &before.iter().find(|(name, _)| *name == tree.name).unwrap().1;
    let root = manager.own_client();
    root.does("MovePidAbs", arguments!["memory", &jail.path, own]);
    let places: Vec<String> = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|task| fs::read_to_string(task.path().join("cgroup")).unwrap())
        .collect();
    root.does("MovePidAbs", arguments!["memory", before, own]);
    drop(stop);
    thread.join().unwrap();
    assert!(places.len() > 1);
    assert!(places.iter().all(|place| place.contains(&jail.path)), "{places:?}");
}

/// 11: what the kernel starts when a cgroup is empty could be set.
fn nobody_sets_what_the_kernel_starts(lab: &Lab) {
    let (manager, alice, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &alice, &jail);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "own"]), -1);
    // Root in a cgroup of its own, and in the root of the hierarchy.
    let (root, top) = (confined(&manager, &lab.root(), &jail), manager.client(&lab.root()));
    manager.own_client().does("MovePidAbs", arguments!["memory", "/", top.pid()]);
    // Values that the kernel would take, and that do no harm should it be asked.
    let own = peer.pid().to_string();
    for (key, value) in [
        ("release_agent", "/none"),
        ("notify_on_release", "1"),
        ("release-agent", "1"),
        ("cgroup.event_control", "1"),
        ("cgroup.procs", own.as_str()),
    ] {
        refused(&peer, "SetValue", arguments!["memory", "own", key, value]);
        refused(&root, "SetValue", arguments!["memory", "", key, value]);
        refused(&root, "SetValue", arguments!["memory", &jail.path, key, value]);
        refused(&top, "SetValue", arguments!["memory", "/", key, ""]);
    }
    assert_eq!(top.get::<String>("GetPidCgroup", arguments!["memory", root.pid()]), jail.path[1..]);
    let (files, _, _) = alice.agent(&["files"]);
    for key in ["notify_on_release", "release_agent"].map(|key| jail.dir.join("own").join(key)) {
        if key.exists() {
            assert_eq!(files.try_file("write", &key, "1"), "EACCES");
            let name = key.file_name().unwrap().to_str().unwrap();
            refused(&peer, "Chmod", arguments!["memory", "own", name, 0o666]);
        }
    }
}

/// 12: what others have was listed.
fn nothing_of_others_is_listed(lab: &Lab) {
    let (manager, alice) = (Manager::start(lab), lab.user());
    let (jail, others) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    let peer = confined(&manager, &alice, &jail);
    let own = [Credential::of(peer.pid(), alice.uid)];
    peer.get::<Vec<(String, u32, u32, u32)>>("ListKeys", arguments!["memory", &jail.path]);
    for path in ["/", others.path.as_str(), "/.", "//", &format!("{}/../", jail.path)] {
        for method in ["ListKeys", "ListChildren", "GetTasks", "GetTasksRecursive"] {
            refused(&peer, method, arguments!["memory", path]);
            let scm = peer.scm(&format!("{method}Scm"), arguments!["memory", path], &own);
            assert_eq!(scm.number(), -1, "{method} {path}");
        }
    }
}

/// A connection whose process has ended is nobody's, whoever holds it now and whoever has the number now.
fn a_connection_ends_with_its_process(lab: &Lab) {
    let (manager, alice, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let mut peer = confined(&manager, &alice, &jail);
    peer.get::<i32>("Create", arguments!["memory", "x"]);
    peer.process.as_mut().unwrap().kill();
    refused(&peer, "Create", arguments!["memory", "y"]);
    refused(&peer, "GetValue", arguments!["memory", "", "memory.usage_in_bytes"]);
    let sleeper = alice.sleeper();
    let scm = peer.scm("CreateScm", arguments!["memory", "y"], &[Credential::of(sleeper.pid, alice.uid)]);
    assert_eq!(scm.datagram(), b"0", "there is nobody to answer for the requestor");
    assert!(!jail.has("y"));
    // A process that has ended is moved nowhere, whoever has its number.
    let other = confined(&manager, &alice, &jail);
    let mut ended = alice.sleeper();
    let pid = ended.pid;
    ended.kill();
    refused(&other, "MovePid", arguments!["memory", "x", pid]);
    refused(&other, "GetPidCgroup", arguments!["memory", pid]);
}

/// The number of a process that has ended is another one's now, in a cgroup where its owner may do everything: that one is not taken
/// for the first, neither behind a connection nor as whom a message on an exchange's socket names.
fn who_has_a_number_now_is_not_who_had_it(lab: &Lab) {
    let program = build(lab, "tests/common/namesake.c");
    let (manager, alice) = (Manager::start(lab), lab.user());
    let (jail, other) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    other.give_to(&alice);
    let namesake = |pid: u32| {
        let ids = [pid, alice.uid].map(|id| id.to_string());
        let namesake = Ready::of(Command::new(&program).args(ids));
        other.put(pid);
        namesake
    };
    let mut peer = confined(&manager, &alice, &jail);
    let pid = peer.pid();
    peer.process.as_mut().unwrap().kill();
    let second = namesake(pid);
    // The number leads there, and whoever is there may.
    let root = manager.own_client();
    let found: String = root.get("GetPidCgroupAbs", arguments!["memory", pid]);
    assert_eq!(found, other.path);
    let there = manager.client(&alice);
    other.put(there.pid());
    assert_eq!(there.get::<i32>("Create", arguments!["memory", "own"]), -1);
    refused(&peer, "Create", arguments!["memory", "y"]);
    refused(&peer, "GetValue", arguments!["memory", "own", "memory.usage_in_bytes"]);
    refused(&peer, "MovePid", arguments!["memory", "own", pid]);
    let scm = peer.scm("CreateScm", arguments!["memory", "y"], &[Credential::of(pid, alice.uid)]);
    assert_eq!(scm.datagram(), b"0", "there is nobody to answer for the requestor");
    drop(second);

    // A message that waits to be read while its sender ends and another process gets the number.
    let mut sender = alice.sleeper();
    jail.put(sender.pid);
    let fronts = manager.broker.fronts();
    let signal = |which| {
        for pid in &fronts {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), which).unwrap();
        }
    };
    let scm = there.begin("CreateScm", arguments!["memory", "z"]).unwrap();
    signal(Signal::STOP);
    scm.identify(Credential::of(sender.pid, alice.uid));
    sender.kill();
    let third = namesake(sender.pid);
    signal(Signal::CONT);
    assert_eq!(scm.datagram(), b"0", "it has ended");
    let scm = there.scm("CreateScm", arguments!["memory", "w"], &[Credential::of(sender.pid, alice.uid)]);
    assert_eq!(scm.datagram(), b"1", "said anew it is who has the number now");
    drop(third);
    for name in ["y", "z"] {
        assert!(!jail.has(name) && !other.has(name) && !other.has(&format!("own/{name}")), "{name}");
    }
}

/// The process that connected has ended before the broker looks, and its number is another one's: nobody is served by it who has
/// another uid. Of the same uid the kernel says since 6.5 that it is another one; before, that one is taken for it, with
/// what it may do anyhow, and nothing of the first one's.
fn a_connection_is_not_that_of_who_has_the_number(lab: &Lab) {
    let program = build(lab, "tests/common/namesake.c");
    let (manager, alice, bob) = (Manager::start(lab), lab.user(), lab.user());
    let (jail, other) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    jail.give_to(&alice);
    let engine = Pid::from_raw(manager.broker.engine().cast_signed()).unwrap();
    let connected = |uid: u32| {
        kill_process(engine, Signal::STOP).unwrap();
        let (mut process, stream) = alice.connect(&manager.socket);
        jail.put(process.pid);
        process.kill();
        let ids = [process.pid, uid].map(|id| id.to_string());
        let namesake = Ready::of(Command::new(&program).args(ids));
        other.put(process.pid);
        kill_process(engine, Signal::CONT).unwrap();
        (namesake, Peer::try_over(stream, None))
    };
    for uid in [bob.uid, 0] {
        let (_namesake, peer) = connected(uid);
        assert!(peer.is_err(), "{uid}");
    }
    let (_namesake, peer) = connected(alice.uid);
    let Ok(peer) = peer else { return };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<u32> = release.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
    assert!(version < vec![6, 5], "the kernel says which process it was");
    // It is where the namesake is, which is root's; not where the first one was.
    refused(&peer, "Create", arguments!["memory", "x"]);
    refused(&peer, "GetPidCgroup", arguments!["memory", 1]);
    assert!(!jail.has("x") && !other.has("x"));
}

/// What the roots of the hierarchies have that is nobody's but the machine's, and which hierarchies are mounted where.
fn settings_of_roots(lab: &Lab) -> BTreeMap<PathBuf, String> {
    const SETTINGS: [&str; 7] = [
        "cgroup.subtree_control",
        "cgroup.clone_children",
        "cgroup.max.descendants",
        "notify_on_release",
        "release_agent",
        "memory.use_hierarchy",
        "memory.move_charge_at_immigrate",
    ];
    let files = lab.host.trees.iter().flat_map(|tree| SETTINGS.map(|name| tree.root.join(name)));
    let mut all: BTreeMap<_, _> =
        files.filter_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?))).collect();
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let cgroups: Vec<&str> = mounted.lines().filter(|line| line.contains(" - cgroup")).collect();
    all.insert("/proc/self/mountinfo".into(), cgroups.join("\n"));
    all
}

/// 13: from its start on it had every controller enabled at the root of cgroup2 and a cgroup of its own there, cpusets cloned, and
/// hierarchies mounted that the machine had not.
fn what_is_the_machines_stays_as_it_was(lab: &Lab) {
    let before = settings_of_roots(lab);
    let of_v2 = before.keys().any(|file| file.ends_with("cgroup.subtree_control"));
    assert!(of_v2 || lab.host.kind == Kind::V1);
    let of_v1 = before.keys().any(|file| file.ends_with("cgroup.clone_children"));
    assert!(of_v1 || lab.host.kind == Kind::V2);
    let mut manager = Manager::start(lab);
    assert_eq!(settings_of_roots(lab), before, "by its start");
    let (alice, jail) = (lab.user(), Jail::new(lab, "memory", "a"));
    let root = confined(&manager, &lab.root(), &jail);
    let victim = alice.sleeper();
    jail.put(victim.pid);
    // In each hierarchy, below the cgroup that root's process is in there.
    let (own, inner) = (format!("cgm-{}-own", lab.instance), format!("cgm-{}-own/y", lab.instance));
    assert!(!root.get::<Vec<String>>("ListControllers", arguments![]).is_empty());
    for cgroup in [&own, &inner] {
        assert_eq!(root.get::<i32>("Create", arguments!["all", cgroup]), -1);
    }
    root.does("Chown", arguments!["all", &own, alice.uid, alice.gid]);
    root.does("Chmod", arguments!["all", &own, "", 0o755]);
    root.does("MovePid", arguments!["memory", &own, victim.pid]);
    assert_eq!(root.get::<String>("GetPidCgroup", arguments!["memory", victim.pid]), own);
    root.does("SetValue", arguments!["memory", &own, "memory.limit_in_bytes", "409600000"]);
    let value: String = root.get("GetValue", arguments!["memory", &own, "memory.limit_in_bytes"]);
    assert_eq!(value, "409600000");
    assert_eq!(root.get::<Vec<i32>>("GetTasks", arguments!["memory", &own]), [victim.pid.cast_signed()]);
    let below: Vec<i32> = root.get("GetTasksRecursive", arguments!["all", &own]);
    assert!(below.contains(&victim.pid.cast_signed()));
    assert_eq!(root.get::<Vec<String>>("ListChildren", arguments!["memory", &own]), ["y"]);
    let keys = root.call("ListKeys", arguments!["memory", &own]).unwrap();
    assert!(!keys.body().is_empty());
    // As whoever was given one, too.
    let hers = manager.client(&alice);
    jail.put(hers.pid());
    root.does("MovePid", arguments!["memory", &own, hers.pid()]);
    assert_eq!(hers.get::<i32>("Create", arguments!["memory", "z"]), -1);
    hers.does("SetValue", arguments!["memory", "z", "memory.limit_in_bytes", "204800000"]);
    hers.does("MovePid", arguments!["memory", "z", hers.pid()]);
    drop(hers);
    root.does("RemoveOnEmpty", arguments!["all", &inner]);
    root.does("Prune", arguments!["all", &own]);
    root.does("MovePidAbs", arguments!["memory", &jail.path, victim.pid]);
    assert_eq!(settings_of_roots(lab), before, "by what it was asked for");
    wait_until("all is removed", || root.call("Remove", arguments!["all", &own, 1]).is_ok());
    assert_eq!(manager.broker.stop(), 0);
    assert_eq!(settings_of_roots(lab), before, "by its end");
    let pin = lab.host.trees.iter().find(|tree| tree.root.join(".cgpin").exists());
    assert_eq!(pin.map(|tree| &tree.root), None);
}

/// Every file of every cgroup from the root to here, but those whose value changes by itself, or says what is used.
fn limits(dirs: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap().flatten());
    for file in files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file())) {
        let meta = file.metadata().unwrap();
        let name = file.file_name().into_string().unwrap();
        let is_limit = meta.mode() & 0o200 != 0 && meta.uid() == 0;
        let changes = [
            "usage", "peak", "stat", "events", "pressure", "procs", "tasks", "threads", "failcnt", "time",
            "current",
        ];
        if is_limit && !changes.iter().any(|part| name.contains(part)) {
            all.insert(file.path(), fs::read_to_string(file.path()).unwrap_or_default());
        }
    }
    all
}

/// Root gives a cgroup with limits in it, by the interface, and its owner tries each file of it and of its own ones.
fn nobody_gets_past_what_root_owns(lab: &Lab) {
    let (manager, alice) = (Manager::start(lab), lab.user());
    let root = manager.own_client();
    let mut jails = Vec::new();
    for tree in lab.host.trees.iter().filter(|tree| lab.host.kind != Kind::V1 || tree.name != "cgroup2") {
        let path = format!("/cgm-{}-a", lab.instance);
        let dir = tree.root.join(&path[1..]);
        fs::create_dir(&dir).unwrap();
        furnish(&tree.root, &dir);
        jails.push((tree.root.clone(), Jail { dir, path }));
    }
    let listed: Vec<String> = root.get("ListControllers", arguments![]);
    let top = jails[0].1.path.clone();
    let task = lab.root().sleeper();
    root.does("MovePidAbs", arguments!["all", &top, task.pid]);
    // Root makes the cgroup and sets its limits, in the place where a process of root's is.
    let keeper = manager.client(&lab.root());
    root.does("MovePidAbs", arguments!["all", &top, keeper.pid()]);
    keeper.get::<i32>("Create", arguments!["all", "home"]);
    for (controller, key, value) in [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("pids", "pids.max", "8"),
        ("cpu", "cpu.shares", "512"),
    ] {
        keeper.does("SetValue", arguments![controller, "home", key, value]);
    }
    let dirs: Vec<PathBuf> = jails
        .iter()
        .flat_map(|(root, jail)| [root.clone(), jail.dir.clone(), jail.dir.join("home")])
        .filter(|dir| dir.exists())
        .collect();
    let roots = limits(&dirs);
    for controllers in listed.iter().filter(|names| !names.split(',').any(|name| name == "devices")) {
        keeper.does("Chown", arguments![controllers, "home", alice.uid, alice.gid]);
    }
    // No limit is given away with the cgroup.
    for path in roots.keys().filter(|path| fs::metadata(path).unwrap().uid() != 0) {
        assert!(path.ends_with("home/cgroup.subtree_control"), "{path:?}");
    }
    let peer = manager.client(&alice);
    root.does("MovePidAbs", arguments!["all", &format!("{top}/home"), peer.pid()]);
    let before = limits(&dirs);
    assert!(before.keys().any(|path| path.ends_with("home/pids.max")), "{before:?}");
    let (files, _, _) = alice.agent(&["files"]);
    root.does("MovePidAbs", arguments!["all", &format!("{top}/home"), files.pid]);
    let values = ["-1", "max", "99999999999", "0-63"];
    for controller in &listed {
        let one = controller.split(',').next().unwrap();
        let root_of = &lab.host.with(one).unwrap_or_else(|| lab.host.cgroup2()).root;
        let jail = &jails.iter().find(|(root, _)| root == root_of).unwrap().1;
        let made = peer.call("Create", arguments![controller, "own"]);
        assert_eq!(made.is_ok(), controller != "devices", "{controller}: {made:?}");
        let Ok(keys) = peer.call("ListKeys", arguments![controller, ""]) else { continue };
        let keys: Vec<(String, u32, u32, u32)> = keys.body().deserialize().unwrap();
        for (key, ..) in keys {
            let file = jail.dir.join("home").join(&key);
            for value in values {
                let _ = peer.call("SetValue", arguments![controller, "", &key, value]);
                let _ = peer.call("SetValue", arguments![controller, "own", &key, value]);
                // Nor with what she owns by hand; but she is not to end or lose herself.
                if !["cgroup.kill", "cgroup.procs", "tasks", "cgroup.threads"].contains(&key.as_str()) {
                    let _ = files.try_file("write", &file, value);
                    let _ = files.try_file("write", &jail.dir.join("home/own").join(&key), value);
                }
            }
            let _ = peer.call("Chmod", arguments![controller, "", &key, 0o666]);
            let _ = peer.call("Chown", arguments![controller, "", alice.uid, alice.gid]);
        }
        let _ = peer.call("Chmod", arguments![controller, "", "", 0o777]);
        for up in ["/", "..", &top] {
            refused(&peer, "MovePid", arguments![controller, up, peer.pid()]);
            refused(&peer, "MovePidAbs", arguments![controller, up, peer.pid()]);
        }
        assert_ne!(files.try_file("write", &jail.dir.join("cgroup.procs"), &files.pid.to_string()), "ok ");
    }
    assert_eq!(limits(&dirs), before);
    // What bounds her still does: with all the limits that she owns lifted.
    for (controller, key, value) in [
        ("memory", "memory.limit_in_bytes", "-1"),
        ("pids", "pids.max", "max"),
        ("freezer", "freezer.state", "THAWED"),
    ] {
        let _ = peer.call("SetValue", arguments![controller, "own", key, value]);
    }
    let (forks, _, _) = alice.agent(&["fork", "50"]);
    root.does("MovePidAbs", arguments!["all", &format!("{top}/home"), forks.pid]);
    peer.does("MovePid", arguments!["pids", "own", forks.pid]);
    let forked = forks.go().unwrap();
    let count: usize = forked.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count < 8, "{forked}");
}

// Can a connection that somebody in there made be used?
fn is_served((process, stream): (Process, UnixStream)) -> bool {
    Peer::try_over(stream, Some(process)).is_ok_and(|peer| peer.call("Ping", arguments![1]).is_ok())
}

/// What an account may not have it asks for as somebody in its container, or in a user namespace of its own: as an id that no rule names.
fn rules_for_an_account_bind_who_is_in_its_containers(lab: &Lab) {
    let (kept, grouped, free, small) = (lab.user(), lab.user_in(&[31_000]), lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"kept\"\nuids = [{}]\naccess.legacy = \"deny\"\n\
         [[rule]]\nname = \"group\"\ngids = [31000]\naccess.legacy = \"deny\"\n\
         [[rule]]\nname = \"small\"\nuids = [{}]\nquota.cgroup-depth = 1\n",
        kept.uid, small.uid
    ));
    let manager = Manager::start(lab);
    let first = 1_900_000_000;
    for (user, may) in [(&kept, false), (&grouped, false), (&free, true)] {
        let client = user.client(manager.broker.socket());
        assert_eq!(is_served(user.connect(&manager.socket)), may, "uid {} itself", user.uid);
        for (name, options) in [("plain", Options::new()), ("around", nesting(1))] {
            let one = Level::new(user, &client, name, options);
            for id in [0, 5] {
                let caller = one.caller(lab, user, id, &manager.socket);
                let stream = connected(&caller);
                assert_eq!(is_served((caller, stream)), may, "{id} in a container of {}", user.uid);
            }
            release(&client, &one.grant.path, Options::new()).unwrap();
        }
    }
    // Beside its grants, where its groups are not known.
    for (user, may) in [(&kept, false), (&free, true)] {
        let namespace = mapped(user, first, 1);
        assert_eq!(is_served(connect_in(user, &namespace, 1, &manager.socket)), may, "uid {}", user.uid);
    }
    // Quotas are the account's as well.
    for (user, may) in [(&small, false), (&free, true)] {
        let jail = Jail::new(lab, "memory", &format!("quota-{}", user.uid));
        furnish(jail.dir.parent().unwrap(), &jail.dir);
        jail.give_to_ids(first, first);
        let namespace = mapped(user, first, 1);
        let (process, stream) = connect_in(user, &namespace, 1, &manager.socket);
        let peer = Peer::over(stream, Some(process));
        jail.put(peer.pid());
        assert_eq!(peer.call("Create", arguments!["memory", "x"]).is_ok(), may, "uid {}", user.uid);
        assert_eq!(jail.has("x"), may, "uid {}", user.uid);
    }
}

crate::tests![
    rules_for_an_account_bind_who_is_in_its_containers,
    keys_lead_out_of_no_cgroup,
    ten_thousand_connections_leave_others_served,
    descriptors_of_bad_exchanges_are_closed,
    abused_exchanges_make_nobody_somebody_else,
    no_path_is_too_long,
    a_name_that_begins_alike_is_somewhere_else,
    cgroups_have_an_end,
    who_asks_much_makes_nobody_wait,
    ten_thousand_processes_are_told,
    a_process_is_moved_with_all_of_its_threads,
    nobody_sets_what_the_kernel_starts,
    nothing_of_others_is_listed,
    a_connection_ends_with_its_process,
    who_has_a_number_now_is_not_who_had_it,
    a_connection_is_not_that_of_who_has_the_number,
    what_is_the_machines_stays_as_it_was,
    nobody_gets_past_what_root_owns,
];
