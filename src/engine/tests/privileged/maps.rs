//! Maps of real namespaces of real users, and users who want more than that.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use cgrant_engine::idmap::{MapError, MapRefusal, Mapper};
use cgrant_policy::{BLOCK, HostGid, HostUid, IdRange, IdSpan, Pool};
use cgrant_sys::{Pidfd, ProcFs, UsernsFd, pidfd::Signal, privilege};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::process::{Pid, kill_process};

use super::{
    Test,
    support::{Inside, Order, ended_well, in_child, readable, status},
};

/// The tests.
pub const TESTS: &[Test] = &[
    (
        "maps::a_map_makes_the_user_root_inside_and_nobody_outside",
        a_map_makes_the_user_root_inside_and_nobody_outside,
    ),
    ("maps::setgroups_is_denied_when_asked", setgroups_is_denied_when_asked),
    ("maps::the_accounts_own_ids_come_behind_the_range", the_accounts_own_ids_come_behind_the_range),
    ("maps::a_namespace_without_processes_can_be_mapped", a_namespace_without_processes_can_be_mapped),
    ("maps::a_map_is_written_once", a_map_is_written_once),
    ("maps::a_mapping_that_is_dropped_writes_nothing", a_mapping_that_is_dropped_writes_nothing),
    ("maps::a_map_made_before_the_numbers_come_stays", a_map_made_before_the_numbers_come_stays),
    ("maps::a_namespace_of_another_user_is_refused", a_namespace_of_another_user_is_refused),
    ("maps::a_nested_namespace_is_refused", a_nested_namespace_is_refused),
    ("maps::the_hosts_own_namespace_is_refused", the_hosts_own_namespace_is_refused),
    ("maps::ids_that_are_none_are_refused_by_the_kernel", ids_that_are_none_are_refused_by_the_kernel),
    ("maps::the_helpers_have_what_they_need_and_no_more", the_helpers_have_what_they_need_and_no_more),
    (
        "maps::the_member_that_waits_has_one_right_and_one_descriptor",
        the_member_that_waits_has_one_right_and_one_descriptor,
    ),
    ("maps::a_member_that_is_stopped_is_ended", a_member_that_is_stopped_is_ended),
    ("maps::the_helpers_end_with_the_engine", the_helpers_end_with_the_engine),
    ("maps::a_helper_that_died_is_told", a_helper_that_died_is_told),
    ("maps::the_name_service_knows_the_hosts_ids", the_name_service_knows_the_hosts_ids),
    ("maps::a_name_service_that_hangs_is_ended", a_name_service_that_hangs_is_ended),
    (
        "maps::the_owner_of_a_namespace_can_disturb_nobody_but_itself",
        the_owner_of_a_namespace_can_disturb_nobody_but_itself,
    ),
];

const USER: u32 = 3_000_000_001;
const OTHER: u32 = 3_000_000_002;

/// Begins and finishes.
fn write(
    mapper: &Mapper,
    namespace: &UsernsFd,
    owner: HostUid,
    range: IdRange,
    setgroups: bool,
) -> Result<(), MapError> {
    mapper.begin(namespace, None, owner)?.write(range, None, setgroups).finish()
}

fn mapper() -> Mapper {
    Mapper::start(&Pool::default()).unwrap()
}

fn range(number: u32) -> IdRange {
    IdRange::same(IdSpan::new(0x7900_0000 + number * BLOCK, BLOCK).unwrap())
}

fn refusal(result: Result<(), MapError>) -> MapRefusal {
    match result {
        Err(MapError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Pids of the helpers, in the order of `Mapper::processes`.
fn helpers(mapper: &Mapper) -> Vec<u32> {
    let pidfds = mapper.processes().map(|fd| Pidfd::from_fd(fd.try_clone_to_owned().unwrap()).unwrap());
    pidfds.map(|pidfd| pidfd.pid().unwrap()).collect()
}

fn a_map_makes_the_user_root_inside_and_nobody_outside() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    assert!(!inside.order(Order::BecomeRoot));
    let range = IdRange::new(HostUid(0x7900_0000), HostGid(0x7a00_0000), 1000).unwrap();
    write(&mapper, &inside.namespace(), HostUid(USER), range, true).unwrap();
    assert_eq!(inside.proc("uid_map"), format!("0 {} 1000", 0x7900_0000));
    assert_eq!(inside.proc("gid_map"), format!("0 {} 1000", 0x7a00_0000));
    assert_eq!(inside.proc("setgroups"), "allow");
    assert!(inside.order(Order::BecomeRoot) && inside.order(Order::Setgroups));
    assert_eq!(inside.status("Uid"), [0x7900_0000u32; 4].map(|id| id.to_string()).join(" "));
    assert_eq!(inside.status("Gid"), [0x7a00_0000u32; 4].map(|id| id.to_string()).join(" "));
    inside.end();
}

fn setgroups_is_denied_when_asked() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), false).unwrap();
    assert_eq!(inside.proc("setgroups"), "deny");
    assert!(inside.order(Order::BecomeRoot) && !inside.order(Order::Setgroups));
    inside.end();
}

fn the_accounts_own_ids_come_behind_the_range() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    let own = Some((HostUid(USER), HostGid(OTHER)));
    let range = IdRange::new(HostUid(0x7900_0000), HostGid(0x7a00_0000), 1000).unwrap();
    mapper
        .begin(&inside.namespace(), None, HostUid(USER))
        .unwrap()
        .write(range, own, false)
        .finish()
        .unwrap();
    assert_eq!(inside.proc("uid_map"), format!("0 {} 1000 1000 {USER} 1", 0x7900_0000));
    assert_eq!(inside.proc("gid_map"), format!("0 {} 1000 1000 {OTHER} 1", 0x7a00_0000));
    assert_eq!(inside.proc("setgroups"), "deny");
    assert!(inside.order(Order::BecomeRoot) && !inside.order(Order::Setgroups));
    inside.end();
}

fn a_namespace_without_processes_can_be_mapped() {
    let mapper = mapper();
    let inside = Inside::of(USER);
    let namespace = inside.namespace();
    inside.end();
    write(&mapper, &namespace, HostUid(USER), range(0), true).unwrap();
    assert_eq!(refusal(write(&mapper, &namespace, HostUid(USER), range(1), true)), MapRefusal::AlreadyMapped);
}

fn a_map_is_written_once() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    assert!(inside.order(Order::MapItself));
    let again = refusal(write(&mapper, &inside.namespace(), HostUid(USER), range(0), true));
    assert_eq!(again, MapRefusal::AlreadyMapped);
    assert_eq!((inside.proc("uid_map"), inside.proc("gid_map")), (format!("0 {USER} 1"), String::new()));
    inside.end();
}

fn a_mapping_that_is_dropped_writes_nothing() {
    let mapper = mapper();
    let [helper, _] = helpers(&mapper)[..] else { panic!("two helpers") };
    let inside = Inside::of(USER);
    let begun: Vec<_> =
        (0..20).map(|_| mapper.begin(&inside.namespace(), None, HostUid(USER)).unwrap()).collect();
    // One that waits for its numbers holds up no other.
    let other = Inside::of(OTHER);
    write(&mapper, &other.namespace(), HostUid(OTHER), range(1), true).unwrap();
    other.end();
    drop(begun);
    let deadline = Instant::now() + Duration::from_secs(5);
    let zombies = || {
        let children = std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
        let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
        let state = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        pids.filter(|pid: &u32| state(*pid).contains(") Z ")).count()
    };
    while zombies() > 0 {
        assert!(Instant::now() < deadline, "{} members were not reaped", zombies());
        std::thread::yield_now();
    }
    assert_eq!((inside.proc("uid_map"), inside.proc("gid_map")), (String::new(), String::new()));
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), true).unwrap();
    inside.end();
}

fn a_map_made_before_the_numbers_come_stays() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    let mapping = mapper.begin(&inside.namespace(), None, HostUid(USER)).unwrap();
    assert!(inside.order(Order::MapItself));
    assert_eq!(refusal(mapping.write(range(0), None, true).finish()), MapRefusal::AlreadyMapped);
    assert_eq!((inside.proc("uid_map"), inside.proc("gid_map")), (format!("0 {USER} 1"), String::new()));
    inside.end();
}

fn a_namespace_of_another_user_is_refused() {
    let mapper = mapper();
    let inside = Inside::of(USER);
    let refused = refusal(write(&mapper, &inside.namespace(), HostUid(OTHER), range(0), true));
    assert_eq!(refused, MapRefusal::OthersNamespace(USER));
    // Root's word is no better: the namespace must be the account's.
    let refused = refusal(write(&mapper, &inside.namespace(), HostUid::ROOT, range(0), true));
    assert_eq!(refused, MapRefusal::OthersNamespace(USER));
    assert_eq!(inside.proc("uid_map"), "");
    inside.end();
}

fn a_nested_namespace_is_refused() {
    let mapper = mapper();
    let mut inside = Inside::of(USER);
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), true).unwrap();
    assert!(inside.order(Order::BecomeRoot) && inside.order(Order::Nest));
    for owner in [USER, range(0).uid().0] {
        let refused = refusal(write(&mapper, &inside.namespace(), HostUid(owner), range(1), true));
        assert_eq!(refused, MapRefusal::Nested);
    }
    assert_eq!(inside.proc("uid_map"), "");
    inside.end();
}

fn the_hosts_own_namespace_is_refused() {
    let refused = write(&mapper(), &UsernsFd::own().unwrap(), HostUid::ROOT, range(0), true);
    assert_eq!(refusal(refused), MapRefusal::HostNamespace);
}

fn ids_that_are_none_are_refused_by_the_kernel() {
    let mapper = mapper();
    let inside = Inside::of(USER);
    // Nothing above can stand for an id that overflows; the kernel's own check is the last one.
    let largest = IdRange::new(HostUid(u32::MAX - 1), HostGid(u32::MAX - 1), 1).unwrap();
    write(&mapper, &inside.namespace(), HostUid(USER), largest, true).unwrap();
    assert_eq!(inside.proc("uid_map"), format!("0 {} 1", u32::MAX - 1));
    inside.end();
}

fn the_helpers_have_what_they_need_and_no_more() {
    let mapper = mapper();
    let bits =
        |numbers: &[u32]| format!("{:016x}", numbers.iter().fold(0u64, |set, number| set | 1 << number));
    // CAP_KILL 5, CAP_SETGID 6, CAP_SETUID 7, CAP_SYS_PTRACE 19, CAP_SYS_ADMIN 21.
    // Standard streams and the channel; and what the first has of the member that waits: its pidfd, directory and gate.
    let wanted = [(bits(&[5, 6, 7, 19, 21]), 7), (bits(&[6, 7]), 4)];
    for (pid, (expected, most)) in helpers(&mapper).into_iter().zip(wanted) {
        // The helper confines itself as its first act, but it is a process of its own.
        let deadline = Instant::now() + Duration::from_secs(5);
        while status(pid, "CapEff") != expected && Instant::now() < deadline {
            std::thread::yield_now();
        }
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status(pid, set), expected, "{set}");
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert_eq!(status(pid, "Threads"), "1");
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        assert!(fds <= most, "{fds} descriptors");
    }
}

/// The member that waits, once it has given up its rights and is not `before`.
fn waiting_member(helper: u32, before: Option<u32>) -> u32 {
    let members = || std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        // CAP_SYS_ADMIN 21.
        if let Ok(member) = members().trim().parse()
            && Some(member) != before
            && status(member, "CapEff") == format!("{:016x}", 1 << 21)
        {
            return member;
        }
        assert!(Instant::now() < deadline, "no member waits: {:?}", members());
        std::thread::yield_now();
    }
}

fn the_member_that_waits_has_one_right_and_one_descriptor() {
    let mapper = mapper();
    let helper = helpers(&mapper)[0];
    let member = waiting_member(helper, None);
    let spare = Pool::default().own_block().unwrap().first() + 3;
    assert_eq!(status(member, "Uid"), [spare; 4].map(|id| id.to_string()).join(" "));
    assert_eq!(status(member, "CapPrm"), status(member, "CapEff"));
    assert_eq!(std::fs::read_dir(format!("/proc/{member}/fd")).unwrap().count(), 1);
    // It is the one that is sent, and another takes its place.
    let inside = Inside::of(USER);
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), true).unwrap();
    inside.end();
    // One that is gone is no harm.
    let next = Pidfd::open(waiting_member(helper, Some(member))).unwrap();
    next.send_signal(Signal::KILL).unwrap();
    assert!(readable(&next));
    let inside = Inside::of(USER);
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), true).unwrap();
    inside.end();
}

/// Who made the namespace can stop a member between its joining and its end; stopped ones must not pile up, or a few
/// of them would leave no room for anybody's.
fn a_member_that_is_stopped_is_ended() {
    let mapper = mapper();
    let helper = helpers(&mapper)[0];
    let member = Pidfd::open(waiting_member(helper, None)).unwrap();
    member.send_signal(Signal::STOP).unwrap();
    let inside = Inside::of(USER);
    let refused = refusal(write(&mapper, &inside.namespace(), HostUid(USER), range(0), true));
    assert_eq!(refused, MapRefusal::Interfered);
    assert!(readable(&member), "a stopped member lives on");
    write(&mapper, &inside.namespace(), HostUid(USER), range(0), true).unwrap();
    inside.end();
}

fn the_helpers_end_with_the_engine() {
    let (found, tell) = std::io::pipe().unwrap();
    let engine = in_child(|| {
        use std::io::Write;
        let mapper = mapper();
        let pids: Vec<String> = helpers(&mapper).iter().map(u32::to_string).collect();
        (&tell).write_all(pids.join(" ").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    });
    drop(tell);
    let mut text = [0; 64];
    let length = rustix::io::read(&found, &mut text).unwrap();
    let pids = std::str::from_utf8(&text[..length]).unwrap().split(' ').map(|pid| pid.parse().unwrap());
    let helpers: Vec<Pidfd> = pids.map(|pid| Pidfd::open(pid).unwrap()).collect();
    assert_eq!(helpers.len(), 2);
    assert!(helpers.iter().all(|helper| helper.is_alive().unwrap()));
    engine.pidfd.send_signal(Signal::KILL).unwrap();
    engine.pidfd.wait().unwrap();
    assert!(helpers.iter().all(readable), "a helper outlived the engine");
}

fn a_helper_that_died_is_told() {
    let mapper = mapper();
    let inside = Inside::of(USER);
    for pid in helpers(&mapper) {
        Pidfd::open(pid).unwrap().send_signal(Signal::KILL).unwrap();
    }
    assert!(mapper.processes().all(readable));
    let refused = write(&mapper, &inside.namespace(), HostUid(USER), range(0), true);
    assert!(matches!(refused, Err(MapError::HelperGone)), "{refused:?}");
    let span = IdSpan::new(0x7900_0000, BLOCK).unwrap();
    assert!(mapper.name_service().knows(span).is_err());
    inside.end();
}

fn the_name_service_knows_the_hosts_ids() {
    let mapper = mapper();
    let names = mapper.name_service();
    assert!(names.knows(IdSpan::new(0, BLOCK).unwrap()).unwrap(), "root");
    assert!(!names.knows(IdSpan::new(0x7900_0000, BLOCK).unwrap()).unwrap());
    assert!(!names.knows(IdSpan::new(0x7900_0000, 3 * BLOCK).unwrap()).unwrap());
    // Nothing is left of the asking, although nobody asks again.
    let [_, helper] = helpers(&mapper)[..] else { panic!("two helpers") };
    let children = || std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !children().is_empty() {
        assert!(Instant::now() < deadline, "children that are not reaped: {}", children());
        std::thread::yield_now();
    }
}

fn a_name_service_that_hangs_is_ended() {
    let script = std::env::temp_dir().join(format!("cgrant-getent-{}", std::process::id()));
    std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let asker = in_child(|| {
        // In place of getent, in a mount namespace of its own.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(Some(&script), "/usr/bin/getent", nothing, MsFlags::MS_BIND, nothing).unwrap();
        let mapper = mapper();
        let refused = mapper.name_service().knows(IdSpan::new(0x7900_0000, BLOCK).unwrap());
        assert!(refused.unwrap_err().to_string().contains("timed out"));
    });
    ended_well(&asker);
    std::fs::remove_file(&script).unwrap();
    let spare = Pool::default().own_block().unwrap().first() + 4;
    let uids = [spare; 4].map(|id| id.to_string()).join(" ");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let pids = ProcFs::open().unwrap().pids().unwrap();
        let left: Vec<u32> = pids.into_iter().filter(|pid| has_uids(*pid, &uids)).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "what was asked goes on: {left:?}");
        std::thread::yield_now();
    }
}

/// Is there a process of this number that has these four uids?
fn has_uids(pid: u32, uids: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.is_some_and(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == uids)
}

/// A hostile owner watches the helper's children and does to them all that it can as soon as it may, while its own and
/// another user's namespaces are mapped.
fn the_owner_of_a_namespace_can_disturb_nobody_but_itself() {
    let mapper = mapper();
    let helper = helpers(&mapper)[0];
    let attackers: Vec<_> = (0..2).map(|_| in_child(|| attack(helper))).collect();
    let hostile = in_child(|| {
        for _ in 0..60 {
            let inside = Inside::of(USER);
            match write(&mapper, &inside.namespace(), HostUid(USER), range(0), true) {
                Ok(()) => assert_eq!(inside.proc("uid_map"), format!("0 {} 65536", range(0).uid())),
                Err(MapError::Refused(MapRefusal::Interfered)) => (),
                Err(other) => panic!("{other}"),
            }
            inside.end();
        }
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..60 {
        let inside = Inside::of(OTHER);
        let start = Instant::now();
        write(&mapper, &inside.namespace(), HostUid(OTHER), range(1), true).unwrap();
        slowest = slowest.max(start.elapsed());
        inside.end();
    }
    ended_well(&hostile);
    for attacker in attackers {
        attacker.pidfd.send_signal(Signal::TERM).unwrap();
        let exit = attacker.pidfd.wait().unwrap();
        assert_eq!(exit, cgrant_sys::Exit::Signal(15), "the attacker got at a process that is not its own");
    }
    // Less than the time limit of one hostile request: nobody waited for it.
    assert!(slowest < Duration::from_millis(1900), "another user waited {slowest:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    let left = || ProcFs::open().unwrap().children(helper).unwrap();
    // One waits for the next request.
    while left().len() > 1 && Instant::now() < deadline {
        // A request makes the helper look at what is left.
        let inside = Inside::of(OTHER);
        write(&mapper, &inside.namespace(), HostUid(OTHER), range(1), true).unwrap();
        inside.end();
    }
    assert!(left().len() <= 1, "processes of the helper are left: {:?}", left());
}

/// For ever: stop, kill, read the memory of, and look at the descriptors of the helper's children.
fn attack(helper: u32) {
    privilege::become_account(USER, USER).unwrap();
    let children = format!("/proc/{helper}/task/{helper}/children");
    loop {
        let Ok(list) = std::fs::read_to_string(&children) else { return };
        for pid in list.split_whitespace() {
            let number = Pid::from_raw(pid.parse().unwrap()).unwrap();
            let signal = if number.as_raw_nonzero().get() % 2 == 0 { Signal::STOP } else { Signal::KILL };
            let _ = kill_process(number, signal);
            let reached = std::fs::File::open(format!("/proc/{pid}/mem")).is_ok()
                || std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok()
                || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
            if reached {
                return;
            }
        }
        let own = kill_process(Pid::from_raw(i32::try_from(helper).unwrap()).unwrap(), Signal::STOP);
        assert!(own.is_err(), "a user can stop the helper");
    }
}
