//! What may wait on the socket of an Scm call, and who may pass a call on for whom: with real sockets and processes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    io::{IoSlice, Read},
    mem::MaybeUninit,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cgrant_policy::HostUid;
use cgrant_sys::{Pidfd, credentials, process::clock_ticks};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair, sockopt,
};

use super::{
    actor::Actor,
    exchange::{ExchangeSocket, Named, numbered},
    fault::Fault,
    tests::{ALICE, BOB, Place, Sleeper},
};
use crate::show::ShowError;

/// The account of a front.
const FRONT: u32 = BOB + 1;
/// Nothing happens that long after it should have.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client's end, and the one that it gave away, on which the front has said that it wants to know who sends.
fn pair(kind: SocketType) -> (OwnedFd, ExchangeSocket) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_passcred(&theirs, true).unwrap();
    (ours, ExchangeSocket::new(theirs).unwrap())
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

/// A process of this uid that writes a byte on the socket, and lives on if `lives`.
fn sender(socket: &OwnedFd, uid: u32, lives: bool) -> Sleeper {
    let mut command = Command::new("sh");
    command.args(["-c", if lives { "printf p; exec sleep 600" } else { "printf p" }]).uid(uid).gid(uid);
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(socket.try_clone().unwrap());
    Sleeper(command.spawn().unwrap())
}

/// Waits until so many bytes can be read (of datagrams, those of the first).
fn wait_for(socket: &ExchangeSocket, bytes: u64) {
    wait_until(|| rustix::io::ioctl_fionread(socket.socket().unwrap()).unwrap() >= bytes);
}

fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn take(socket: &ExchangeSocket, count: usize) -> Result<Vec<Named>, Fault> {
    socket.take(count, &[HostUid(FRONT)], |socket, count| {
        credentials::set_pass_pidfd(socket, true).map_err(ShowError::Refused)?;
        Ok((0..count).map_while(|_| credentials::receive(socket).ok()).collect())
    })
}

fn pid_of(named: &Named) -> Option<u32> {
    named.process.as_ref().map(|process| process.pid().unwrap())
}

fn is_empty(socket: &ExchangeSocket) -> bool {
    matches!(take(socket, 1), Err(Fault::Exchange("a credential is missing")))
}

#[test]
fn senders_are_who_the_kernel_says() {
    for kind in [SocketType::DGRAM, SocketType::STREAM] {
        let (ours, socket) = pair(kind);
        let alice = sender(&ours, ALICE, true);
        wait_for(&socket, 1);
        let bob = sender(&ours, BOB, true);
        if kind == SocketType::STREAM {
            wait_for(&socket, 2);
        } else {
            // FIONREAD tells of the first datagram alone.
            wait_until(|| fs::read_to_string(format!("/proc/{}/comm", bob.0.id())).unwrap() == "sleep\n");
        }
        let named = take(&socket, 2).unwrap();
        let found: Vec<_> =
            named.iter().map(|named| (pid_of(named).unwrap(), named.uid, named.gid)).collect();
        assert_eq!(found, [(alice.0.id(), ALICE, ALICE), (bob.0.id(), BOB, BOB)]);
        assert!(is_empty(&socket));
    }
}

#[test]
fn what_is_no_socket_of_a_pair_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let listening = UnixListener::bind(directory.path().join("socket")).unwrap();
    let socket = ExchangeSocket::new(listening.into()).unwrap();
    assert!(take(&socket, 1).is_err(), "nothing comes from a socket that listens");
    let (seqpacket, _other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    let pidfd = Pidfd::own().unwrap();
    for fd in [seqpacket, tcp.into(), null.into(), pidfd.into()] {
        assert!(matches!(ExchangeSocket::new(fd), Err(Fault::Exchange(_))));
    }
}

#[test]
fn a_message_is_one_byte_and_all_are_taken_off() {
    let (ours, socket) = pair(SocketType::DGRAM);
    assert!(is_empty(&socket), "nothing is waited for");
    for bad in [&b""[..], b"pp"] {
        send(&ours, bad, &[]);
        send(&ours, b"p", &[]);
        assert!(matches!(
            take(&socket, 2),
            Err(Fault::Exchange("a message is not one byte and credentials"))
        ));
        assert!(is_empty(&socket), "the good one is taken off, too");
    }
    // One too many stays where it is, the client's.
    send(&ours, b"p", &[]);
    send(&ours, b"p", &[]);
    assert_eq!(take(&socket, 1).unwrap().len(), 1);
    assert_eq!(take(&socket, 1).unwrap().len(), 1);
    // The end of a stream.
    let (ours, socket) = pair(SocketType::STREAM);
    drop(ours);
    assert!(take(&socket, 1).is_err());
}

#[test]
fn descriptors_in_a_message_are_closed() {
    for kind in [SocketType::DGRAM, SocketType::STREAM] {
        let (ours, socket) = pair(kind);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let (lingers, _other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        send(&ours, b"p", &[writer.as_fd(), lingers.as_fd()]);
        drop(writer);
        assert!(matches!(
            take(&socket, 1),
            Err(Fault::Exchange("a message is not one byte and credentials"))
        ));
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "the writing end is closed");
        assert!(is_empty(&socket));
    }
}

#[test]
fn who_was_not_asked_for_is_nobody() {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    send(&ours, b"p", &[]);
    // The kernel notes nobody, and now says uid 65534 of nobody.
    sockopt::set_socket_passcred(&theirs, true).unwrap();
    let named = take(&ExchangeSocket::new(theirs).unwrap(), 1);
    assert!(
        matches!(named, Err(Fault::Exchange("a message names nobody who can be seen from here"))),
        "{named:?}"
    );
}

#[test]
fn what_a_front_writes_names_nobody() {
    // Both ends of a pair are given to two calls: what the front writes for one arrives as who asks for the other.
    let (ours, socket) = pair(SocketType::DGRAM);
    let _front = sender(&ours, FRONT, true);
    wait_for(&socket, 1);
    let named = take(&socket, 1);
    assert!(matches!(named, Err(Fault::Exchange("a message names the broker itself"))), "{named:?}");
}

#[test]
fn who_has_ended_since_is_nobody() {
    let place = Place::new();
    let (ours, socket) = pair(SocketType::DGRAM);
    let mut alice = sender(&ours, ALICE, false);
    alice.0.wait().unwrap();
    match take(&socket, 1) {
        Ok(mut named) => {
            let Named { process, uid, gid } = named.remove(0);
            assert!(matches!(
                Actor::new(place.tree.proc(), process.unwrap(), uid, gid, Vec::new()).map(|_| ()),
                Err(Fault::Gone)
            ));
        }
        Err(fault) => assert!(matches!(fault, Fault::Gone | Fault::Exchange(_)), "{fault:?}"),
    }
}

#[test]
fn of_a_second_message_the_ids_count_without_a_process() {
    let (ours, socket) = pair(SocketType::DGRAM);
    send(&ours, b"p", &[]);
    let mut alice = sender(&ours, ALICE, false);
    alice.0.wait().unwrap();
    let named = take(&socket, 2).unwrap();
    assert_eq!((named[1].uid, named[1].gid), (ALICE, ALICE));
    assert!(named[0].process.is_some());
}

#[test]
fn a_number_is_another_process_if_it_began_later_or_has_other_ids() {
    let place = Place::new();
    let alice = place.process(ALICE, "");
    let pid = alice.0.id();
    let started = Pidfd::open(pid).unwrap().start_time().unwrap();
    assert!(started <= clock_ticks().unwrap());
    for ids in [Some((ALICE, ALICE)), None] {
        assert_eq!(numbered(pid, ids, started).unwrap().pid().unwrap(), pid);
    }
    assert!(matches!(numbered(pid, None, started - 1), Err(Fault::Gone)), "whatever its ids");
    for (ids, before) in [((ALICE, ALICE), started - 1), ((BOB, ALICE), started), ((ALICE, BOB), started)] {
        assert!(matches!(numbered(pid, Some(ids), before), Err(Fault::Gone)), "{ids:?} {before} {started}");
    }
    drop(alice);
    assert!(matches!(numbered(pid, Some((ALICE, ALICE)), u64::MAX), Err(Fault::Gone)));
}

/// A process in a user namespace that ALICE made: uid 0 there is she, 1 is BOB.
fn contained() -> Sleeper {
    let mut command = Command::new("unshare");
    command.args(["-U", "sleep", "600"]).uid(ALICE).gid(ALICE);
    let inside =
        Sleeper(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let link = format!("/proc/{}/ns/user", inside.0.id());
    wait_until(|| fs::read_link(&link).unwrap() != own);
    fs::write(format!("/proc/{}/uid_map", inside.0.id()), format!("0 {ALICE} 1\n1 {BOB} 1\n")).unwrap();
    inside
}

#[test]
fn nobody_speaks_for_those_whom_it_could_not_name() {
    let place = Place::new();
    let processes = [(ALICE, ""), (BOB, ""), (0, "")].map(|(uid, below)| place.process(uid, below));
    let [alice, bob, root] = [(0, ALICE), (1, BOB), (2, 0)].map(|(at, uid)| place.actor(&processes[at], uid));
    let answers = |proxy: &Actor<'_>, requestor: &Actor<'_>| proxy.answers_for(requestor).unwrap();
    assert!(answers(&alice, &alice) && answers(&root, &alice) && answers(&root, &bob));
    assert!(!answers(&alice, &bob) && !answers(&alice, &root) && !answers(&bob, &alice));

    let (hers, other) = (contained(), contained());
    let root_inside = place.actor(&hers, ALICE);
    assert!(answers(&root_inside, &bob), "root of a namespace that has his uid");
    assert!(!answers(&root_inside, &root) && !answers(&place.actor(&hers, BOB), &root_inside));
    // Whoever is in a namespace that she made, with whatever uid.
    let carol_inside = place.actor(&hers, BOB + 7);
    assert!(answers(&alice, &carol_inside));
    assert!(!answers(&bob, &carol_inside));
    // Not from within another one that she made, though her uid is the same.
    assert!(!answers(&place.actor(&other, ALICE), &carol_inside));
}

#[test]
fn a_call_that_is_passed_on_is_counted_from_both() {
    let place = Place::new();
    for name in ["proxy", "proxy/home", "other"] {
        place.give("memory", name, ALICE);
    }
    let (asks, passes, outside) =
        (place.process(ALICE, "proxy/home"), place.process(0, "proxy"), place.process(ALICE, "other"));
    let (alice, root, stranger) =
        (place.actor(&asks, ALICE), place.actor(&passes, 0), place.actor(&outside, ALICE));
    let call = super::call::Call { proxy: &root, plain: false, ..place.call(&alice) };
    let memory = place.hierarchy("memory");
    assert_eq!(call.pid_cgroup(memory, &alice, false).unwrap(), "/");
    assert_eq!(call.pid_cgroup(memory, &alice, true).unwrap(), "/home");
    assert!(matches!(call.pid_cgroup(memory, &stranger, true), Err(Fault::Outside)));
    let absolute = |name: &str| format!("/{}/{name}", place.name);
    assert!(call.value(memory, &absolute("proxy"), "memory.usage_in_bytes").is_ok());
    assert!(matches!(call.value(memory, &absolute("other"), "memory.usage_in_bytes"), Err(Fault::Denied)));
    // From the proxy's cgroup, and only who is below it.
    call.move_process(memory, &super::tests::wanted("home"), &alice, true).unwrap();
    assert!(matches!(
        call.move_process(memory, &super::tests::wanted("home"), &stranger, true),
        Err(Fault::Outside)
    ));
    // A proxy that is not above its requestor gives it nothing to read.
    let apart = super::call::Call { proxy: &stranger, plain: false, ..place.call(&alice) };
    assert!(matches!(apart.value(memory, "", "memory.usage_in_bytes"), Err(Fault::Denied)));
}

#[test]
fn who_asks_gets_numbers_of_its_own() {
    let place = Place::new();
    let mut command = Command::new("unshare");
    command.args(["-p", "-f", "--kill-child", "sleep", "600"]);
    let outside =
        Sleeper(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let proc = place.tree.proc();
    let children = || proc.children(outside.0.id()).unwrap_or_default();
    wait_until(|| children().len() == 1);
    let inside = children()[0];
    let other = place.process(0, "");
    let actor = |pid: u32| Actor::new(proc, Pidfd::open(pid).unwrap(), 0, 0, Vec::new()).unwrap();
    let pids = vec![inside, other.0.id()];
    assert_eq!(actor(other.0.id()).as_it_numbers(pids.clone()).unwrap(), Some(pids.clone()));
    // It is 1 there, and does not see the other; or the kernel does not tell.
    assert!(matches!(actor(inside).as_it_numbers(pids).unwrap().as_deref(), None | Some([1])));
}
