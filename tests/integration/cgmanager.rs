//! CGManager's interface, by the real broker: every plain method with its answers and errors, who a caller is, and other people's
//! clients, from the host and from inside namespaces.

use std::{
    fs,
    io::{BufRead, BufReader, IoSlice},
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Signal, kill_process},
};
use zbus::{Fd, Message, OwnedVariant};

use crate::{
    arguments,
    cgmanager_commands::{owner, run_in},
    common::{
        Lab, User,
        cgmanager::{Argument, Failure, INTERFACE, INVALID_ARGS, Jail, Manager, PATH, Peer, Scm},
        raw::Raw,
        wait_until,
    },
};

const UNKNOWN_METHOD: &str = "org.freedesktop.DBus.Error.UnknownMethod";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A client of a user's in a cgroup that was given to the user.
fn confined(manager: &Manager, user: &User, jail: &Jail) -> Peer {
    jail.give_to(user);
    let peer = manager.client(user);
    jail.put(peer.pid());
    peer
}

fn cgroups_are_made_read_and_removed(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &user, &jail);
    peer.does("Ping", arguments![7]);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "x/y"]), -1);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "x/y"]), 1);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", ""]), -1, "one's own is nothing to make");
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "/abs"]), -1);
    assert!(jail.has("abs"), "a / at the beginning means nothing to those that change something");
    for file in ["x", "x/tasks", "x/y/cgroup.procs", "x/y/memory.limit_in_bytes"] {
        assert_eq!(owner(&jail.dir.join(file)).1, user.uid, "{file}");
    }
    let limit = |path| peer.get::<String>("GetValue", arguments!["memory", path, "memory.limit_in_bytes"]);
    peer.does("SetValue", arguments!["memory", "x", "memory.limit_in_bytes", "16777216"]);
    assert_eq!(limit("x"), "16777216");
    assert_eq!(limit(&format!("{}/x", jail.path)), "16777216", "from the root, and below one's own");
    let limits = arguments!["memory", "", "memory.limit_in_bytes", "16777216"];
    assert_eq!(peer.fails("SetValue", limits), Failure::invalid("invalid request"), "root's limits stay");
    assert_eq!(peer.get::<String>("GetValue", arguments!["memory", "x/y", "tasks"]), "", "an empty file");
    let mut children: Vec<String> = peer.get("ListChildren", arguments!["memory", ""]);
    children.sort();
    assert_eq!(children, ["abs", "x"]);
    let keys: Vec<(String, u32, u32, u32)> = peer.get("ListKeys", arguments!["memory", "x"]);
    let tasks = keys.iter().find(|key| key.0 == "tasks").unwrap();
    assert_eq!((tasks.1, tasks.2, tasks.3), (user.uid, user.gid, 0o100_644));
    peer.does("Chmod", arguments!["memory", "x", "tasks", 0o600]);
    peer.does("Chmod", arguments!["memory", "x", "", 0o700]);
    assert_eq!(owner(&jail.dir.join("x/tasks")).0, 0o600);
    assert_eq!(owner(&jail.dir.join("x")).0, 0o700);
    let remove = |path, recursive| peer.call("Remove", arguments!["memory", path, recursive]);
    assert_eq!(remove("x", 0).unwrap_err(), Failure::invalid("invalid request"), "not what has children");
    assert_eq!(remove("x", 1).unwrap().body().deserialize::<i32>().unwrap(), 1);
    assert_eq!(remove("x", 1).unwrap().body().deserialize::<i32>().unwrap(), -1);
    assert!(!jail.has("x"));
}

fn processes_are_moved_found_and_listed(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &user, &jail);
    peer.get::<i32>("Create", arguments!["memory", "x/y"]);
    let sleeper = user.sleeper();
    let moved = arguments!["memory", "x/y", sleeper.pid];
    assert_eq!(peer.fails("MovePid", moved), Failure::invalid("invalid request"), "it is not below");
    jail.put(sleeper.pid);
    peer.does("MovePid", moved);
    assert_eq!(jail.processes("x/y"), [sleeper.pid]);
    assert_eq!(peer.get::<Vec<i32>>("GetTasks", arguments!["memory", "x/y"]), [sleeper.pid.cast_signed()]);
    let mut below: Vec<i32> = peer.get("GetTasksRecursive", arguments!["memory", ""]);
    below.retain(|pid| *pid != peer.pid().cast_signed());
    assert_eq!(below, [sleeper.pid.cast_signed()]);
    let of = |method, pid: u32| peer.get::<String>(method, arguments!["memory", pid]);
    assert_eq!(of("GetPidCgroup", sleeper.pid), "x/y");
    assert_eq!(of("GetPidCgroup", peer.pid()), "/");
    assert_eq!(of("GetPidCgroupAbs", sleeper.pid), format!("{}/x/y", jail.path));
    assert_eq!(peer.fails("GetPidCgroup", arguments!["memory", 1]).text, "invalid request");
    let slash = arguments!["memory", "/x", sleeper.pid];
    assert_eq!(peer.fails("MovePid", slash).text, "invalid request");
    // From the root, and the bits let it.
    peer.does("MovePidAbs", arguments!["memory", &format!("{}/x", jail.path), sleeper.pid]);
    assert_eq!(jail.processes("x"), [sleeper.pid]);
    let others = lab.user().sleeper();
    jail.put(others.pid);
    let moved = arguments!["memory", "x", others.pid];
    assert_eq!(peer.fails("MovePid", moved), Failure::invalid("invalid request"), "another user's");
    assert_eq!(
        peer.fails("Remove", arguments!["memory", "x", 1]).text,
        "invalid request",
        "somebody is in it"
    );
    peer.does("MovePid", arguments!["memory", "", sleeper.pid]);
    assert_eq!(peer.get::<i32>("Remove", arguments!["memory", "x", 1]), 1);
}

fn cgroups_go_when_nobody_is_in_them(lab: &Lab) {
    let (mut manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &user, &jail);
    let mut sleeper = user.sleeper();
    jail.put(sleeper.pid);
    peer.get::<i32>("Create", arguments!["memory", "x/y"]);
    peer.does("MovePid", arguments!["memory", "x/y", sleeper.pid]);
    peer.does("RemoveOnEmpty", arguments!["memory", "x/y"]);
    peer.does("Prune", arguments!["memory", "x"]);
    assert!(jail.has("x/y"), "somebody is in it");
    sleeper.kill();
    wait_until("both cgroups are gone", || !jail.has("x"));
    for path in ["z/one/two", "z/three"] {
        peer.get::<i32>("Create", arguments!["memory", path]);
    }
    peer.does("Prune", arguments!["memory", "z"]);
    wait_until("all of them are gone", || !jail.has("z"));
    assert_eq!(peer.fails("RemoveOnEmpty", arguments!["memory", "none"]).text, "invalid request");
    // What was wished is done by the next broker too.
    let mut sleeper = user.sleeper();
    jail.put(sleeper.pid);
    peer.get::<i32>("Create", arguments!["memory", "w"]);
    peer.does("MovePid", arguments!["memory", "w", sleeper.pid]);
    peer.does("RemoveOnEmpty", arguments!["memory", "w"]);
    manager.broker.stop();
    manager.broker.start_again();
    assert!(jail.has("w"), "somebody is in it");
    sleeper.kill();
    wait_until("it is gone", || !jail.has("w"));
}

fn a_cgroup_is_given_away_by_root_and_not_its_limits(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let root = manager.client(&lab.root());
    jail.put(root.pid());
    let place = arguments!["memory", "x"];
    assert_eq!(root.get::<i32>("Create", place), -1);
    root.does("Chown", arguments!["memory", "x", user.uid, user.gid]);
    for (file, uid) in
        [("", user.uid), ("tasks", user.uid), ("cgroup.procs", user.uid), ("memory.limit_in_bytes", 0)]
    {
        assert_eq!(owner(&jail.dir.join("x").join(file)).1, uid, "{file}");
    }
    // -1 is what it is for chown(2).
    root.does("Chown", arguments!["memory", "x", -1, -1]);
    assert_eq!(owner(&jail.dir.join("x")).1, user.uid);
    // Who got it may give it to nobody.
    let peer = manager.client(&user);
    jail.put(peer.pid());
    let given = arguments!["memory", "x", 0, 0];
    assert_eq!(peer.fails("Chown", given), Failure::invalid("invalid request"));
    assert_eq!(peer.get::<i32>("Create", arguments!["memory", "x/own"]), -1);
    assert_eq!(peer.fails("Create", arguments!["memory", "y"]).text, "invalid request", "root's");
}

fn controllers_lists_and_what_is_told_of_the_interface(lab: &Lab) {
    let (manager, user) = (Manager::start(lab), lab.user());
    let (memory, freezer) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "freezer", "a"));
    let peer = confined(&manager, &user, &memory);
    freezer.give_to(&user);
    freezer.put(peer.pid());
    let listed: Vec<String> = peer.get("ListControllers", arguments![]);
    let mut known: Vec<String> =
        lab.host.trees.iter().filter(|tree| tree.name != "cgroup2").map(|tree| tree.name.clone()).collect();
    known.sort();
    assert_eq!(listed, known);
    assert_eq!(peer.get::<i32>("Create", arguments!["memory,freezer,memory", "x"]), -1);
    assert!(memory.has("x") && freezer.has("x"));
    // What it may not touch is passed over in a list, and an error if that is all.
    assert_eq!(peer.get::<i32>("Create", arguments!["pids,memory", "y"]), -1);
    assert!(memory.has("y"));
    assert_eq!(peer.fails("Create", arguments!["pids", "y"]).text, "invalid request");
    assert_eq!(peer.fails("Create", arguments!["pids,blkio", "y"]).text, "invalid request");
    for wrong in ["", "nothing", "memory,nothing", ","] {
        assert_eq!(peer.fails("Create", arguments![wrong, "z"]).text, "invalid request", "{wrong:?}");
    }
    let value = arguments!["memory,freezer", "x", "tasks"];
    assert_eq!(peer.fails("GetValue", value).text, "invalid request", "one hierarchy only");
    let get = |interface, name| peer.call_at(PATH, PROPERTIES, "Get", arguments![interface, name]);
    let version: OwnedVariant = get(INTERFACE, "api_version").unwrap().body().deserialize().unwrap();
    assert_eq!(i32::try_from(version).unwrap(), 10);
    let seen: Message = peer.call_at(PATH, "org.freedesktop.DBus.Introspectable", "Introspect", &[]).unwrap();
    let seen: String = seen.body().deserialize().unwrap();
    assert!(seen.contains("GetTasksRecursiveScm"), "{seen}");
    let hello = peer.call_at("/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", &[]);
    assert_eq!(hello.unwrap_err().name, UNKNOWN_METHOD);
    assert_eq!(peer.fails("CreateGrant", arguments!["a", "b"]).name, UNKNOWN_METHOD);
    let native = peer.call_at("/org/cgrant/Broker1", "org.cgrant.Broker1.Manager", "ListRanges", &[]);
    assert_eq!(native.unwrap_err().name, UNKNOWN_METHOD, "each interface has its own socket");
}

fn failures_are_told_in_cgmanagers_words(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    let peer = confined(&manager, &user, &jail);
    let said = |method: &str| Failure::invalid(&format!("Invalid arguments to {method} method"));
    assert_eq!(peer.fails("Ping", arguments![]), said("Ping"));
    assert_eq!(peer.fails("Create", arguments!["memory"]), said("Create"));
    assert_eq!(peer.fails("MovePid", arguments!["memory", "a", "7"]), said("MovePid"));
    assert_eq!(peer.fails("CreateScm", arguments!["memory", "a"]), said("CreateScm"));
    for path in ["..", "x/../y", "x..y", "a/./b/..", &"x/".repeat(3000)] {
        assert_eq!(peer.fails("Create", arguments!["memory", path]).name, INVALID_ARGS, "{path:.40}");
    }
    for (method, rest) in [
        ("GetValue", arguments!["memory", "none", "tasks"]),
        ("GetValue", arguments!["memory", "", "none"]),
        ("GetValue", arguments!["memory", "", "../tasks"]),
        ("SetValue", arguments!["memory", "", "tasks", "1"]),
        ("SetValue", arguments!["memory", "", "notify_on_release", "1"]),
        ("GetTasks", arguments!["memory", "none"]),
        ("ListChildren", arguments!["memory", "/"]),
        ("ListKeys", arguments!["memory", "/"]),
        ("Chmod", arguments!["memory", "none", "tasks", 0o600]),
    ] {
        let failure = peer.fails(method, rest);
        assert_eq!(failure.name, INVALID_ARGS, "{method} {rest:?}");
        assert!(failure.text.starts_with("invalid request"), "{method} {rest:?}: {failure:?}");
    }
    // A socket for an Scm call that is none.
    let file = fs::File::open("/dev/null").unwrap();
    let call = [arguments!["memory", "x"], &[Argument::Socket(file.as_fd())]].concat();
    assert_eq!(peer.fails("CreateScm", &call).name, INVALID_ARGS);
    assert!(!jail.has("x"));
}

/// Speaks up to BEGIN by hand, and claims an identity.
fn raw(user: &User, socket: &Path, claim: &str) -> (crate::common::Process, Raw) {
    let (process, stream) = user.connect(socket);
    let mut raw = Raw::new(stream);
    assert!(raw.send(format!("\0AUTH {claim}\r\n").as_bytes()));
    assert!(raw.line().starts_with("OK "), "{claim}");
    (process, raw)
}

fn a_claimed_identity_is_worth_nothing(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    // Root's uid, another one's, nobody's, no identity, none at all.
    for claim in ["EXTERNAL 30", "EXTERNAL 31303030", "EXTERNAL", "ANONYMOUS 6c6962646275732031", "ANONYMOUS"]
    {
        let (process, mut raw) = match claim {
            "EXTERNAL" => {
                let (process, stream) = user.connect(&manager.socket);
                let mut raw = Raw::new(stream);
                raw.send(b"\0AUTH EXTERNAL\r\n");
                assert_eq!(raw.line(), "DATA");
                raw.send(b"DATA\r\n");
                assert!(raw.line().starts_with("OK "));
                (process, raw)
            }
            claim => raw(&user, &manager.socket, claim),
        };
        jail.put(process.pid);
        raw.send(b"NEGOTIATE_UNIX_FD\r\n");
        assert_eq!(raw.line(), "AGREE_UNIX_FD", "{claim}");
        raw.send(b"BEGIN\r\n");
        let call = Message::method_call(PATH, "Create").interface(INTERFACE);
        raw.send(call.build(&("memory", "x")).unwrap().data());
        let answer = raw.message().unwrap();
        assert_eq!(answer[1], 3, "{claim}: an error");
        assert!(answer.windows(15).any(|text| text == b"invalid request"), "{claim}");
        assert!(!jail.has("x"), "{claim}");
    }
    // Whoever is root needs no claim.
    let root = manager.client(&lab.root());
    jail.put(root.pid());
    assert_eq!(root.get::<i32>("Create", arguments!["memory", "x"]), -1);
    // CGManager's other mechanism is not offered: it would write in root's home.
    let (_process, stream) = user.connect(&manager.socket);
    let mut raw = Raw::new(stream);
    raw.send(b"\0AUTH DBUS_COOKIE_SHA1 30\r\n");
    assert_eq!(raw.line(), "REJECTED EXTERNAL ANONYMOUS");
}

/// What comes with BEGIN, descriptors included, is a call like any other: libdbus's server lost them.
fn a_descriptor_right_behind_begin_is_not_lost(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let fronts = manager.broker.fronts();
    let signal = |which| {
        for pid in &fronts {
            kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), which).unwrap();
        }
    };
    for _ in 0..3 {
        let (process, stream) = user.connect(&manager.socket);
        jail.put(process.pid);
        let mut raw = Raw::new(stream.try_clone().unwrap());
        raw.send(b"\0AUTH ANONYMOUS\r\nNEGOTIATE_UNIX_FD\r\n");
        assert!(raw.line().starts_with("OK "));
        assert_eq!(raw.line(), "AGREE_UNIX_FD");
        // It finds everything at once when it goes on.
        signal(Signal::STOP);
        raw.send(b"BEGIN\r\n");
        let (scm, theirs) = Scm::pair();
        let call = Message::method_call(PATH, "CreateScm").interface(INTERFACE);
        let call =
            call.build(&("memory", "x", Fd::from(theirs.as_fd().try_clone_to_owned().unwrap()))).unwrap();
        send_with(&stream, call.data(), &theirs);
        signal(Signal::CONT);
        let answer = raw.message().unwrap();
        assert_eq!(answer[1], 2, "a reply: {}", String::from_utf8_lossy(&answer));
        assert_eq!(scm.datagram(), b"1");
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], fd: &impl AsFd) {
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    assert_eq!(sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL), Ok(bytes.len()));
}

/// The same command inside a user namespace, where the user is root, and a pid namespace.
fn inside(user: &User, words: &[&str]) -> Command {
    let mut command = user.command("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--"]).args(words);
    command
}

fn outside(user: &User, words: &[&str]) -> Command {
    let mut command = user.command(words[0]);
    command.args(&words[1..]);
    command
}

fn dbus_send_gdbus_and_busctl_work_on_both_sides_of_a_namespace(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let address = manager.address();
    let (peer, on) = (format!("--peer={address}"), format!("--address={address}"));
    let dbus_send = |method: &str, words: &[&str]| {
        let method = format!("{INTERFACE}.{method}");
        let first = ["dbus-send", peer.as_str(), "--print-reply=literal", PATH].map(str::to_owned);
        [&first[..], &[method], &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()].concat()
    };
    let gdbus = |method: &str, words: &[&str]| {
        let method = format!("{INTERFACE}.{method}");
        let first = ["gdbus", "call", &on, "--dest", "x.y", "--object-path", PATH, "--method", &method];
        [&first[..], words].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let busctl = |method: &str, words: &[&str]| {
        let first = ["busctl", &on, "call", "x.y", PATH, INTERFACE, method];
        [&first[..], words].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (nth, place) in [outside as fn(&User, &[&str]) -> Command, inside].into_iter().enumerate() {
        let says = |words: Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            run_in(&jail, &place(&user, &words))
        };
        let well = |words: Vec<String>| {
            let (said, code) = says(words.clone());
            assert_eq!(code, Some(0), "{words:?}: {said}");
            said
        };
        let path = |client: &str| format!("{client}{nth}");
        assert_eq!(well(dbus_send("Ping", &["int32:0"])), "");
        let string = format!("string:{}", path("s"));
        assert_eq!(well(dbus_send("Create", &["string:memory", &string])), "int32 -1");
        assert_eq!(well(dbus_send("Create", &["string:memory", &string])), "int32 1");
        let (said, code) = says(dbus_send("Create", &["string:memory", "string:.."]));
        assert_eq!(
            (said.as_str(), code),
            ("Error org.freedesktop.DBus.Error.InvalidArgs: invalid request", Some(1))
        );
        assert_eq!(well(gdbus("Create", &["memory", &path("g")])), "(-1,)");
        let (said, code) = says(gdbus("GetValue", &["memory", "", "none"]));
        assert!(said.contains("InvalidArgs: invalid request") && code == Some(1), "{said}");
        let quoted = format!("({:?},)", "0").replace('"', "'");
        let value = gdbus("GetValue", &["memory", &path("g"), "memory.usage_in_bytes"]);
        assert_eq!(well(value), quoted);
        assert_eq!(well(busctl("Create", &["ss", "memory", &path("b")])), "i -1");
        let limit = ["sss", "memory", &path("b"), "notify_on_release"];
        assert_eq!(well(busctl("GetValue", &limit)), "s \"0\"");
        let (said, code) = says(busctl("Create", &["ss", "memory", "none/../x"]));
        assert!(said.contains("invalid request") && code == Some(1), "{said}");
        for client in ["s", "g", "b"] {
            assert_eq!(owner(&jail.dir.join(path(client))).1, user.uid);
        }
        // Numbers of processes are the caller's, which is the first one in there.
        let (said, _) = says(dbus_send("GetPidCgroup", &["string:memory", "int32:1"]));
        let invalid = "Error org.freedesktop.DBus.Error.InvalidArgs: invalid request";
        assert_eq!(said, [invalid, "/"][nth]);
        let (said, _) = says(dbus_send("GetPidCgroup", &["string:memory", "int32:77"]));
        let elsewhere =
            "Error org.freedesktop.DBus.Error.InvalidArgs: GetPidCgroup called from non-init namespace";
        assert_eq!(said, [invalid, elsewhere][nth]);
        let keys = well(busctl("ListKeys", &["ss", "memory", ""]));
        let (hers, roots) = [(user.uid, 0), (0, u32::MAX)][nth];
        assert!(keys.contains(&format!("\"cgroup.procs\" {hers} ")), "{keys}");
        assert!(keys.contains(&format!("\"memory.limit_in_bytes\" {roots} {roots} ")), "{keys}");
        // And so are ids: 0 is she herself in there.
        let chown = |id: &str| says(dbus_send("Chown", &["string:memory", &string, id, id])).0;
        assert_eq!(chown("int32:0"), [invalid, ""][nth]);
        assert_eq!(owner(&jail.dir.join(path("s"))).1, user.uid);
        let elsewhere =
            "Error org.freedesktop.DBus.Error.InvalidArgs: chown called from different user namespace";
        assert_eq!(chown("int32:1"), [invalid, elsewhere][nth]);
    }
}

/// A C program on libdbus, as those that were written for CGManager are.
fn libdbus_client(lab: &Lab) -> PathBuf {
    let (source, program) = (lab.scratch.join("client.c"), lab.scratch.join("client"));
    fs::write(&source, include_str!("../common/cgmanager.c")).unwrap();
    let flags = Command::new("pkg-config").args(["--cflags", "--libs", "dbus-1"]).output().unwrap();
    assert!(flags.status.success(), "libdbus-1-dev is not installed: see DEPS_CHECK in the Makefile");
    let flags = String::from_utf8(flags.stdout).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Wextra", "-Werror", "-o"]).args([&program, &source]);
    let built = compiler.args(flags.split_whitespace()).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn libdbus_works_on_both_sides_of_a_namespace(lab: &Lab) {
    let (manager, user, jail) = (Manager::start(lab), lab.user(), Jail::new(lab, "memory", "a"));
    jail.give_to(&user);
    let program = libdbus_client(lab);
    let (program, address) = (program.to_str().unwrap(), manager.address());
    for (place, name) in [(outside as fn(&User, &[&str]) -> Command, "o"), (inside, "i")] {
        let (said, code) = run_in(&jail, &place(&user, &[program, &address, name]));
        let expected = format!(
            "Create -1\nCreate 1\nGetValue 0\nSetValue\nGetValue 1\nListChildren {name}\nerror \
             org.freedesktop.DBus.Error.InvalidArgs: invalid request\nCreateScm 1\nCreateScm 2\nGetValueScm 1\n\
             MovePidScm 1\nGetPidCgroupScm {name}/scm\nGetTasksScm itself\nGetTasks 1\nMovePidScm 1\nRemoveScm 2"
        );
        assert_eq!((said.as_str(), code), (expected.as_str(), Some(0)));
        assert!(!jail.has(&format!("{name}/scm")));
    }
}

/// A host as systemd leaves it: the hierarchies on a tmpfs that is read-only. In mount namespaces of the broker's own.
const READ_ONLY: &str = r#"
    set -e
    mkdir "$0/cg" && mount -t tmpfs -o mode=755,size=1M,nosuid,nodev,noexec cg "$0/cg"
    for hierarchy in /sys/fs/cgroup/*/; do
        mountpoint -q "$hierarchy" || continue
        place=$0/cg/$(basename "$hierarchy") && mkdir "$place" && mount --bind "$hierarchy" "$place"
    done
    mount --move "$0/cg" /sys/fs/cgroup
    mount -o remount,ro,mode=755,nosuid,nodev,noexec /sys/fs/cgroup
    mount -t tmpfs -o mode=755 run /run
    exec "$@""#;

fn its_sockets_are_where_clients_look(lab: &Lab) {
    let broker = lab.setup().arguments(&["--cgmanager-socket", "auto"]).command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", READ_ONLY]).arg(&lab.scratch);
    command.arg(broker.get_program()).args(broker.get_args());
    let log = fs::OpenOptions::new().create(true).append(true).open(lab.scratch.join("log")).unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "READY"), "the broker did not start");
    let root = PathBuf::from(format!("/proc/{}/root", child.id()));
    let sockets = ["sys/fs/cgroup/cgmanager/sock", "run/cgmanager/sock"].map(|path| root.join(path));
    for socket in &sockets {
        let peer = Peer::over(UnixStream::connect(socket).unwrap(), None);
        peer.does("Ping", arguments![0]);
        assert_eq!(owner(socket.parent().unwrap()).0, 0o755);
    }
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.id())).unwrap();
    let place = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/sys/fs/cgroup")).unwrap();
    let options = place.split(' ').nth(5).unwrap();
    assert!(options.starts_with("ro,nosuid,nodev,noexec"), "it is as it was: {place}");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

crate::tests![
    cgroups_are_made_read_and_removed,
    processes_are_moved_found_and_listed,
    cgroups_go_when_nobody_is_in_them,
    a_cgroup_is_given_away_by_root_and_not_its_limits,
    controllers_lists_and_what_is_told_of_the_interface,
    failures_are_told_in_cgmanagers_words,
    a_claimed_identity_is_worth_nothing,
    a_descriptor_right_behind_begin_is_not_lost,
    dbus_send_gdbus_and_busctl_work_on_both_sides_of_a_namespace,
    libdbus_works_on_both_sides_of_a_namespace,
    its_sockets_are_where_clients_look,
];
