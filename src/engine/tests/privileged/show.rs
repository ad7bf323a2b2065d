//! Processes that are shown to clients in pid namespaces of their own, over sockets of the clients' choice.

use std::{
    fs,
    io::ErrorKind,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use cgrant_engine::show::{LIMIT, ShowError, Shower};
use cgrant_policy::{HostUid, Pool};
use cgrant_sys::{
    Child, Clone3, Pidfd,
    credentials::{Credentials, SentProcess, receive},
    pidfd::Signal,
    privilege,
};
use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, recv, send, socketpair, sockopt},
};

use super::Test;

/// The tests.
pub const TESTS: &[Test] = &[
    (
        "show::ten_thousand_processes_are_shown_as_there_is_room",
        ten_thousand_processes_are_shown_as_there_is_room,
    ),
    ("show::a_reader_gets_the_numbers_of_its_own_namespace", a_reader_gets_the_numbers_of_its_own_namespace),
    (
        "show::one_that_has_ended_is_replaced_by_one_that_lives",
        one_that_has_ended_is_replaced_by_one_that_lives,
    ),
    ("show::a_long_datagram_finds_room", a_long_datagram_finds_room),
    ("show::sockets_with_names_are_refused", sockets_with_names_are_refused),
    ("show::a_reader_that_does_not_read_holds_up_nobody", a_reader_that_does_not_read_holds_up_nobody),
    ("show::messages_are_taken_and_looked_for", messages_are_taken_and_looked_for),
    ("show::who_keeps_a_socket_holds_up_its_own_calls", who_keeps_a_socket_holds_up_its_own_calls),
    ("show::the_helper_has_what_it_needs_and_no_more", the_helper_has_what_it_needs_and_no_more),
];

/// Uid and gid of the front.
const FRONT: (u32, u32) = (3_000_000_011, 3_000_000_012);
/// Whose sockets these are.
const ALICE: HostUid = HostUid(1000);
const BOB: HostUid = HostUid(1001);
/// Long enough for anything here.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

fn shower() -> Shower {
    Shower::start(&Pool::default(), FRONT, LIMIT).unwrap()
}

/// The client's end, on which it sees who sends, and the one that it gave away.
fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_passcred(&ours, true).unwrap();
    (ours, theirs)
}

/// All that is there to be read: the pid of each credential.
fn read(ours: &OwnedFd) -> Vec<u32> {
    let mut pids = Vec::new();
    loop {
        match receive(ours) {
            Ok(message) => {
                assert_eq!((message.length, message.truncated), (1, false));
                let Credentials { pid, uid, gid, .. } = message.credentials.unwrap();
                assert_eq!((uid, gid), FRONT);
                pids.push(pid);
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return pids;
            }
        }
    }
}

/// Processes that wait to be killed.
struct Crowd(Vec<Child>);

impl Crowd {
    fn of(count: usize) -> Self {
        Self((0..count).map(|_| Clone3::new().spawn(wait_for_ever).unwrap()).collect())
    }

    fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|child| child.pid).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &self.0 {
            child.pidfd.send_signal(Signal::KILL).unwrap();
            child.pidfd.wait().unwrap();
        }
    }
}

fn wait_for_ever() -> i32 {
    loop {
        nix::unistd::pause();
    }
}

/// The number of a process that has been.
fn dead() -> u32 {
    let child = Clone3::new().spawn(|| 0).unwrap();
    child.pidfd.wait().unwrap();
    child.pid
}

fn ten_thousand_processes_are_shown_as_there_is_room() {
    let (shower, crowd) = (shower(), Crowd::of(100));
    let all: Vec<u32> = crowd.pids().into_iter().cycle().take(10_000).collect();
    for kind in [SocketType::DGRAM, SocketType::STREAM] {
        let (ours, theirs) = pair(kind);
        let (mut seen, mut known, mut rounds) = (Vec::new(), None, 0);
        while seen.len() < all.len() {
            let rest: Vec<u32> = all[seen.len()..].iter().copied().take(256).collect();
            let shown = shower.show(ALICE, theirs.as_fd(), &rest, known).unwrap();
            assert_eq!(shown.known, Some(rest[shown.count as usize - 1]));
            let found = read(&ours);
            assert_eq!(found, rest[..shown.count as usize]);
            seen.extend(found);
            (known, rounds) = (shown.known, rounds + 1);
        }
        assert_eq!(seen, all);
        assert!(rounds < 1000, "{rounds} rounds");
    }
}

fn a_reader_gets_the_numbers_of_its_own_namespace() {
    let (shower, crowd) = (shower(), Crowd::of(1));
    let (ours, theirs) = pair(SocketType::DGRAM);
    // It is 1 there, and does not see the others.
    let inside = Clone3::new().flags(CloneFlags::CLONE_NEWPID).spawn(|| {
        let mut numbers = Vec::new();
        while numbers.len() < 2 {
            if poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&PATIENCE)) != Ok(1) {
                return 2;
            }
            let Ok(message) = receive(&ours) else { return 3 };
            numbers.extend(message.credentials.map(|credentials| credentials.pid));
        }
        i32::from(numbers != [1, 0])
    });
    let inside = inside.unwrap();
    let shown = shower.show(ALICE, theirs.as_fd(), &[inside.pid, crowd.pids()[0]], None).unwrap();
    assert_eq!(shown.count, 2);
    assert_eq!(inside.pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
}

fn one_that_has_ended_is_replaced_by_one_that_lives() {
    let (shower, crowd) = (shower(), Crowd::of(2));
    let (pids, gone) = (crowd.pids(), dead());
    let (ours, theirs) = pair(SocketType::DGRAM);
    for (shown, known, expected) in [
        (vec![pids[0], gone, pids[1]], None, vec![pids[0], pids[0], pids[1]]),
        (vec![gone, gone, pids[1]], None, vec![pids[1]; 3]),
        (vec![gone, pids[1]], Some(pids[0]), vec![pids[0], pids[1]]),
        (vec![gone, pids[1]], Some(gone), vec![pids[1]; 2]),
        (vec![0, u32::MAX, pids[1]], None, vec![pids[1]; 3]),
    ] {
        let answer = shower.show(ALICE, theirs.as_fd(), &shown, known).unwrap();
        assert_eq!((answer.count as usize, answer.known), (shown.len(), expected.last().copied()));
        assert_eq!(read(&ours), expected);
    }
    // Nobody is left: as many as were announced come all the same, and nobody is taken to live.
    let answer = shower.show(ALICE, theirs.as_fd(), &[gone, gone], None).unwrap();
    assert_eq!((answer.count, answer.known), (2, None));
    let shown = read(&ours);
    assert!(shown.len() == 2 && shown[0] == shown[1] && !pids.contains(&shown[0]), "{shown:?}");
}

fn a_long_datagram_finds_room() {
    let shower = shower();
    let (ours, theirs) = pair(SocketType::DGRAM);
    let long = vec![b'x'; 1024 * 1024];
    let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
    assert_eq!(send(&theirs, &long, flags), Err(rustix::io::Errno::MSGSIZE), "there is room already");
    shower.make_room(ALICE, theirs.as_fd(), u32::try_from(long.len()).unwrap()).unwrap();
    let room = sockopt::socket_send_buffer_size(&theirs).unwrap();
    assert!(room < 2 * long.len(), "{room} is more than is needed");
    assert_eq!(send(&theirs, &long, flags), Ok(long.len()));
    let mut found = vec![0; long.len()];
    assert_eq!(recv(&ours, &mut found, rustix::net::RecvFlags::empty()).unwrap().0, long.len());
    assert!(found == long);
    // Enough is enough.
    shower.make_room(ALICE, theirs.as_fd(), 1).unwrap();
    assert_eq!(sockopt::socket_send_buffer_size(&theirs).unwrap(), room);
}

fn sockets_with_names_are_refused() {
    let (shower, own) = (shower(), std::process::id());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service");
    let service = UnixDatagram::bind(&path).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.connect(&path).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    for refused in [client.as_fd(), service.as_fd(), tcp.as_fd(), null.as_fd()] {
        assert!(matches!(shower.show(ALICE, refused, &[own], None), Err(ShowError::Refused(_))));
        assert!(matches!(shower.make_room(ALICE, refused, 1), Err(ShowError::Refused(_))));
    }
    service.set_nonblocking(true).unwrap();
    assert_eq!(service.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    // Its other end is gone.
    let (ours, theirs) = pair(SocketType::DGRAM);
    drop(ours);
    assert!(shower.show(ALICE, theirs.as_fd(), &[own], None).is_err());
    // And it serves on.
    let (ours, theirs) = pair(SocketType::DGRAM);
    shower.show(ALICE, theirs.as_fd(), &[own], None).unwrap();
    assert_eq!(read(&ours), [own]);
}

fn a_reader_that_does_not_read_holds_up_nobody() {
    let (shower, own) = (shower(), std::process::id());
    let (full_ours, full) = pair(SocketType::DGRAM);
    let mut sent = 0;
    loop {
        let shown = shower.show(ALICE, full.as_fd(), &[own; 256], None).unwrap();
        sent += shown.count;
        if shown.count == 0 {
            break;
        }
    }
    let (ours, theirs) = pair(SocketType::DGRAM);
    assert_eq!(shower.show(ALICE, theirs.as_fd(), &[own], None).unwrap().count, 1);
    assert_eq!(read(&ours), [own]);
    assert_eq!(read(&full_ours).len(), sent as usize);
}

fn messages_are_taken_and_looked_for() {
    let (shower, own) = (shower(), std::process::id());
    let flags = rustix::net::SendFlags::NOSIGNAL;
    for kind in [SocketType::DGRAM, SocketType::STREAM] {
        let (ours, theirs) = pair(kind);
        assert_eq!(sockopt::socket_passcred(&theirs), Ok(false));
        shower.pass_credentials(ALICE, theirs.as_fd()).unwrap();
        assert_eq!(sockopt::socket_passcred(&theirs), Ok(true));
        assert!(shower.take(ALICE, theirs.as_fd(), 2).unwrap().is_empty(), "nothing is waited for");
        send(&ours, b"p", flags).unwrap();
        assert!(!shower.look(ALICE, theirs.as_fd(), 1).unwrap());
        send(&ours, if kind == SocketType::DGRAM { b"pp" } else { b"p" }, flags).unwrap();
        assert!(shower.look(ALICE, theirs.as_fd(), 1).unwrap());
        let taken = shower.take(ALICE, theirs.as_fd(), 2).unwrap();
        assert_eq!(
            taken.iter().map(|message| message.truncated).collect::<Vec<_>>(),
            [false, kind == SocketType::DGRAM]
        );
        for message in taken {
            let named = message.credentials.unwrap();
            assert_eq!((named.pid, named.uid, named.gid), (own, 0, 0));
            if let SentProcess::Some(process) = named.process {
                assert_eq!(process.pid().unwrap(), own);
            }
        }
        assert!(shower.take(ALICE, theirs.as_fd(), 1).unwrap().is_empty());
    }
}

/// A process that keeps a lock of a socket, which whoever receives from it, or sets anything about it, waits for.
struct Keeper(std::process::Child);

impl Keeper {
    fn of(socket: &OwnedFd, program: &std::path::Path, lock: &str) -> Self {
        let mut command = std::process::Command::new(program);
        let command = command.arg(lock).stdin(socket.try_clone().unwrap());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut told = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut told).unwrap();
        assert_eq!(&told, b"ready\n");
        Self(child)
    }

    /// Until it waits in the kernel for its memory.
    fn await_lock(&self) {
        let stack = format!("/proc/{}/wchan", self.0.id());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !fs::read_to_string(&stack).unwrap().contains("userfault") {
            assert!(std::time::Instant::now() < end, "{:?}", fs::read_to_string(&stack));
            std::thread::yield_now();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn who_keeps_a_socket_holds_up_its_own_calls() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("keeper");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../front/tests/support/slow_reader.c");
    let built =
        std::process::Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(built.success(), "the program can't be built");
    let shower = Shower::start(&Pool::default(), FRONT, std::time::Duration::from_millis(500)).unwrap();
    let flags = rustix::net::SendFlags::NOSIGNAL;
    let (ours, theirs) = pair(SocketType::DGRAM);
    let (_other_ours, others) = pair(SocketType::DGRAM);
    let (receives, sets) = (Keeper::of(&theirs, &program, "receive"), Keeper::of(&others, &program, "set"));
    send(&ours, b"p", flags).unwrap();
    receives.await_lock();
    sets.await_lock();
    let held = |done: Result<(), ShowError>| assert!(matches!(done, Err(ShowError::Held)), "{done:?}");
    held(shower.take(ALICE, theirs.as_fd(), 1).map(drop));
    held(shower.pass_credentials(ALICE, others.as_fd()));
    held(shower.make_room(ALICE, others.as_fd(), 1 << 20));
    let refused = shower.take(ALICE, theirs.as_fd(), 1);
    assert!(matches!(refused, Err(ShowError::TooManyHeld(ALICE))), "{refused:?}");
    let (ours, theirs) = pair(SocketType::DGRAM);
    shower.pass_credentials(BOB, theirs.as_fd()).unwrap();
    for _ in 0..20 {
        send(&ours, b"p", flags).unwrap();
        assert_eq!(shower.take(BOB, theirs.as_fd(), 1).unwrap().len(), 1);
    }
    shower.make_room(BOB, theirs.as_fd(), 1 << 20).unwrap();
    // Nobody waits for those that are kept.
    let watched = shower.process().try_clone_to_owned().unwrap();
    drop(shower);
    assert_eq!(poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&PATIENCE)), Ok(1));
}

fn the_helper_has_what_it_needs_and_no_more() {
    let shower = shower();
    // It has confined itself when it answers.
    let (ours, theirs) = pair(SocketType::DGRAM);
    shower.show(ALICE, theirs.as_fd(), &[std::process::id()], None).unwrap();
    read(&ours);
    let process = Pidfd::from_fd(shower.process().try_clone_to_owned().unwrap()).unwrap();
    let pid = process.pid().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let kept = format!("{:016x}", (1_u64 << 21) | (1 << 12));
    assert_eq!(
        (line("CapEff:"), line("CapPrm:")),
        (vec![kept.clone()], vec![kept]),
        "SYS_ADMIN and NET_ADMIN"
    );
    assert_eq!((line("CapInh:"), line("CapAmb:")), (vec!["0".repeat(16)], vec!["0".repeat(16)]));
    assert_eq!((line("Seccomp:"), line("NoNewPrivs:")), (vec!["2".to_owned()], vec!["1".to_owned()]));
    assert!(line("Groups:").is_empty());
    let spare = (Pool::default().own_block().unwrap().first() + 5).to_string();
    let front = FRONT.0.to_string();
    assert_eq!(line("Uid:")[..3], [spare.clone(), front, spare]);
    // Its worker has nothing open but its line.
    let workers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let worker = workers.trim();
    assert_eq!(fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count(), 1, "{workers}");
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("Seccomp_filters:\t2\n"), "{status}");
    // What becomes the front can't end it.
    let attacker = Clone3::new().spawn(|| {
        if privilege::become_account(FRONT.0, FRONT.1).is_err() {
            return 2;
        }
        i32::from(process.send_signal(Signal::KILL).is_ok())
    });
    assert_eq!(attacker.unwrap().pidfd.wait().unwrap(), cgrant_sys::Exit::Code(0));
    // It ends with the engine.
    let watched = shower.process().try_clone_to_owned().unwrap();
    drop(shower);
    assert_eq!(poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&PATIENCE)), Ok(1));
}
