//! The sockets of Scm calls: as much as fits over them, and what somebody can do who has one too.

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::Path,
    process::{Command, Stdio},
    thread,
};

use crate::{
    arguments,
    cgmanager_attacks::confined,
    common::{
        Kind, Lab,
        cgmanager::{Argument, Credential, Jail, Manager, Peer, Scm},
        program::{Ready, build},
        wait_until,
    },
};

/// Tasks of the cgroup with many.
const MANY: usize = 10_000;
/// Rules of the cgroup with a long value, each of which is a line of this form: more than a megabyte.
const RULES: u32 = 40_000;
/// As many where an emulated processor sets them: the kernel compares each with all that are there.
const FEWER_RULES: u32 = 12_000;
const RULE: &str = "c 4294967294:";

/// Ten thousand tasks, and a value of a megabyte, longer than a socket takes at once without asking anybody
/// (`net.core.wmem_max`).
fn as_much_arrives_as_there_is(lab: &Lab) {
    let (manager, jail) = (Manager::start(lab), Jail::new(lab, "memory", "a"));
    let program = build(lab, "tests/common/crowd.c");
    let crowd = Ready::of(Command::new(program).arg(MANY.to_string()).stdin(Stdio::piped()));
    jail.put(crowd.pid());
    let root = confined(&manager, &lab.root(), &jail);
    let mut all: Vec<u32> = fs::read_dir(format!("/proc/{}/task", crowd.pid()))
        .unwrap()
        .map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(all.len(), MANY);
    // On v1 tasks are threads, and on cgroup2 the interface tells of processes.
    if lab.host.with("memory").unwrap().name == "cgroup2" {
        all = vec![crowd.pid()];
    }
    all.push(root.pid());
    all.sort_unstable();
    let place = arguments!["memory", ""];
    let own = [Credential::of(root.pid(), 0)];
    let shown = root.scm("GetTasksScm", place, &own).tasks().unwrap();
    assert!(shown == all, "{} of {}", shown.len(), all.len());
    let told: Vec<i32> = root.get("GetTasks", place);
    assert!(told.into_iter().eq(all.iter().map(|task| task.cast_signed())));
    let text = all.iter().map(u32::to_string).collect::<Vec<_>>().join("\n");
    value_is(&root, arguments!["memory", "", "tasks"], &text);
    drop(crowd);

    if lab.host.kind == Kind::V2 {
        return;
    }
    let jail = Jail::new(lab, "devices", "b");
    jail.put(root.pid());
    fs::write(jail.dir.join("devices.deny"), "a").unwrap();
    let mut allow = fs::OpenOptions::new().write(true).open(jail.dir.join("devices.allow")).unwrap();
    let rule = |nth| format!("{RULE}{} rwm", 4_000_000_000_u32 + nth);
    let rules = if lab.host.kind == Kind::Hybrid { RULES } else { FEWER_RULES };
    (0..rules).for_each(|nth| allow.write_all(rule(nth).as_bytes()).unwrap());
    let expected: Vec<String> = (0..rules).map(rule).collect();
    value_is(&root, arguments!["devices", "", "devices.list"], &expected.join("\n"));
}

fn value_is(root: &Peer, arguments: &[Argument<'_>], expected: &str) {
    let said: String = root.get("GetValue", arguments);
    assert!(said == expected, "{} bytes, not {}", said.len(), expected.len());
    let said = root.scm("GetValueScm", arguments, &[Credential::of(root.pid(), 0)]).datagram();
    assert!(said.strip_suffix(b"\0") == Some(expected.as_bytes()), "{} bytes", said.len());
}

/// A process that keeps a lock of a socket, which whoever receives from it ("receive"), or sets anything about it ("set"), waits
/// for, and not even SIGKILL ends that.
fn keeper(program: &Path, socket: &impl AsFd, lock: &str) -> Ready {
    let socket: OwnedFd = socket.as_fd().try_clone_to_owned().unwrap();
    Ready::of(Command::new(program).arg(lock).stdin(socket))
}

/// Waits until it has the lock: it waits for its memory then.
fn await_lock(keeper: &Ready) {
    let place = format!("/proc/{}/wchan", keeper.pid());
    wait_until("the lock is kept", || fs::read_to_string(&place).unwrap().contains("userfault"));
}

fn who_keeps_a_socket_holds_up_neither_others_nor_the_brokers_end(lab: &Lab) {
    let program = build(lab, "src/front/tests/support/slow_reader.c");
    let (mut manager, alice, bob, carol) = (Manager::start(lab), lab.user(), lab.user(), lab.user());
    let (jail, his) = (Jail::new(lab, "memory", "a"), Jail::new(lab, "memory", "b"));
    let (first, second) = (confined(&manager, &alice, &jail), manager.client(&carol));
    let other = confined(&manager, &bob, &his);
    let asks = Credential::of(first.pid(), alice.uid);

    // What alice sends is received by her own process, and never is; what she sends then is the broker's to take.
    let (ours, theirs) = Scm::pair();
    let receives = keeper(&program, &theirs, "receive");
    ours.identify(asks);
    await_lock(&receives);
    first.does("CreateScm", arguments!["memory", "x", Argument::Socket(theirs.as_fd())]);
    ours.identify(asks);
    // Carol's does not pass credentials yet: the broker has to see to that first.
    let (_her_end, unset) = UnixDatagram::pair().unwrap();
    let sets = keeper(&program, &unset, "set");
    await_lock(&sets);
    let asking = thread::spawn(move || {
        second.call("CreateScm", arguments!["memory", "x", Argument::Socket(unset.as_fd())])
    });

    // Nobody else notices.
    let of = Credential::of(other.pid(), bob.uid);
    for nth in 0..10 {
        other.does("Ping", arguments![nth]);
        let _: String = other.get("GetValue", arguments!["memory", "", "memory.usage_in_bytes"]);
        let path = format!("x{nth}");
        assert_eq!(other.scm("CreateScm", arguments!["memory", &path], &[of]).datagram(), b"1");
        assert_eq!(other.scm("MovePidScm", arguments!["memory", ""], &[of, of]).datagram(), b"1");
        let tasks = other.scm("GetTasksScm", arguments!["memory", ""], &[of]);
        assert_eq!(tasks.tasks().unwrap(), [other.pid()]);
    }
    // Both are still kept. A process of the broker's that dies is replaced nevertheless.
    for name in ["engine", "front"] {
        let times = || manager.broker.log().matches(" ready ").count();
        let before = times();
        manager.broker.kill(if name == "engine" {
            manager.broker.engine()
        } else {
            manager.broker.fronts()[0]
        });
        wait_until(&format!("the broker is itself again without its {name}"), || times() > before);
        manager.client(&bob).does("Ping", arguments![1]);
    }
    assert!(asking.join().unwrap().is_err(), "nobody can have done that");
    assert!(!jail.has("x"));
    // And it ends in order, and another one starts.
    assert_eq!(manager.broker.stop(), 0);
    assert!(!manager.broker.log().contains("did not end in order"), "{}", manager.broker.log());
    manager.broker.start_again();
    manager.client(&bob).does("Ping", arguments![1]);
    drop((receives, sets));
}

crate::tests![as_much_arrives_as_there_is, who_keeps_a_socket_holds_up_neither_others_nor_the_brokers_end,];
