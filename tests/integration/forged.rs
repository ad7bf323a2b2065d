//! A front that has been taken over: a test front on the engine's links sends, in raw bytes, every operation with
//! forged connection numbers, accounts, grants and descriptors. All of it is refused, and nothing of it happens.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use cgrant_wire::{
    Answer, Attach, AttachTarget, BusClient, ConnectionId, CreateGrant, FdIndex, GrantId, Holder, LinkKind,
    LinkRequest, Op, RangeRequest, RefusalCode, RequestId, ToEngine, boot::FrontKind,
};

use crate::common::{Lab, Process, User, checker, front::LoneEngine};

const SOCKET: FrontKind = FrontKind::Socket;
const BUS: FrontKind = FrontKind::Bus;

fn create(name: &str, holder: Holder) -> CreateGrant {
    CreateGrant {
        name: name.into(),
        key: String::new(),
        holder,
        range: Some(RangeRequest { count: 0, named: true, setgroups: true, own_ids: false }),
        range_name: String::new(),
        nesting: 0,
        tidies: false,
        userns: None,
        stage: None,
        limits: Vec::new(),
        pressure: Vec::new(),
        links: Vec::new(),
    }
}

fn link() -> LinkRequest {
    LinkRequest {
        kind: LinkKind::Veth,
        netns: Some(FdIndex(0)),
        name: String::new(),
        bridge: String::new(),
        address4: None,
        address6: None,
        configure: true,
        mtu: 0,
        queue_length: 0,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: Vec::new(),
    }
}

// Every operation that is about a grant or an account; the descriptors that it needs lie at index 0.
fn every_operation(grant: GrantId, account: u32) -> Vec<(Op, bool)> {
    let attach = |target, tree| Op::Attach(Attach { grant, pidfd: FdIndex(0), target, tree });
    vec![
        (Op::Usage { account: Some(account) }, false),
        (Op::ListGrants { all: true, nested: true }, false),
        (Op::FindGrant { name: "victim".into(), account: Some(account) }, false),
        (Op::FindGrant { name: "victim".into(), account: None }, false),
        (Op::Describe { grant }, false),
        (attach(AttachTarget::Payload, false), true),
        (attach(AttachTarget::Stage, true), true),
        (Op::Adopt { grant, holder: Holder::Process(FdIndex(0)) }, true),
        (Op::Adopt { grant, holder: Holder::Connection }, false),
        (Op::Adopt { grant, holder: Holder::Persistent }, false),
        (Op::SetLimits { grant, limits: vec![("pids.max".into(), "max".into())] }, false),
        (Op::GetValues { grant, keys: vec!["pids.max".into()] }, false),
        (Op::Stat { grant }, false),
        (Op::ListProcesses { grant }, false),
        (Op::Freeze { grant }, false),
        (Op::Thaw { grant }, false),
        (Op::Kill { grant }, false),
        (Op::CreateCgroup { grant, path: "x".into() }, false),
        (Op::RemoveCgroup { grant, path: "x".into() }, false),
        (Op::ListCgroups { grant }, false),
        (Op::OpenCgroup { grant, path: String::new() }, false),
        (Op::AddLink { grant, link: link() }, true),
        (Op::RemoveLink { grant, name: "eth0".into() }, false),
        (Op::PublishPorts { grant, name: "eth0".into(), ports: Vec::new() }, false),
        (Op::UnpublishPorts { grant, name: "eth0".into(), ports: Vec::new() }, false),
        (Op::Release { grant, kill: true, force: false }, false),
    ]
}

struct Victim {
    connection: ConnectionId,
    grant: GrantId,
    uid: u32,
    process: Process,
    _client: (Process, UnixStream, OwnedFd),
}

fn victim(lab: &Lab, engine: &mut LoneEngine) -> Victim {
    let user = lab.user();
    let (process, stream) = user.connect(&engine.socket);
    let (connection, uid, socket) = engine.connected();
    assert_eq!(uid, user.uid);
    let mut wish = create("victim", Holder::Persistent);
    wish.limits = vec![("pids.max".into(), "25".into())];
    let (answer, _) = engine.ask(SOCKET, connection, Op::CreateGrant(wish), &[]).unwrap();
    let Answer::Created(created) = answer else { panic!("{answer:?}") };
    let sleeper = user.sleeper();
    let attach =
        Attach { grant: created.grant.id, pidfd: FdIndex(0), target: AttachTarget::Payload, tree: false };
    engine.ask(SOCKET, connection, Op::Attach(attach), &[sleeper.pidfd.as_fd()]).unwrap();
    Victim { connection, grant: created.grant.id, uid, process: sleeper, _client: (process, stream, socket) }
}

fn unharmed(lab: &Lab, victim: &Victim) {
    assert!(victim.process.is_alive());
    let place = checker::place(lab, victim.uid, "victim", "pids");
    assert_eq!(fs::read_to_string(place.join("pids.max")).unwrap().trim(), "25");
    assert_eq!(checker::members(&place), [victim.process.pid].into());
    checker::assert_in_order(lab);
    assert_eq!(checker::records(lab).len(), 1, "a grant was made");
}

fn release(engine: &mut LoneEngine, victim: &Victim) {
    engine
        .ask(SOCKET, victim.connection, Op::Release { grant: victim.grant, kill: true, force: false }, &[])
        .unwrap();
}

fn numbers_that_were_not_given_to_this_front(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    let sleeper = lab.user().sleeper();
    let mut numbers: Vec<u64> = (0..64).collect();
    numbers.extend([u64::MAX, u64::MAX - 1, 1 << 32, 1 << 63]);
    for (op, with_fd) in every_operation(victim.grant, victim.uid) {
        let fds: Vec<BorrowedFd<'_>> = if with_fd { vec![sleeper.pidfd.as_fd()] } else { Vec::new() };
        // The victim's own number, spoken by the other front.
        let refusal = engine.ask(BUS, victim.connection, op.clone(), &fds).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotAuthorized, "{op:?}: {refusal:?}");
        for number in numbers.iter().copied().filter(|n| *n != victim.connection.0) {
            for front in [SOCKET, BUS] {
                let refusal = engine.ask(front, ConnectionId(number), op.clone(), &fds).unwrap_err();
                assert_eq!(refusal.code, RefusalCode::NotAuthorized, "{op:?} as {number}: {refusal:?}");
            }
        }
    }
    for front in [SOCKET, BUS] {
        let refusal = engine
            .ask(front, ConnectionId(999), Op::CreateGrant(create("x", Holder::Persistent)), &[])
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    }
    unharmed(lab, &victim);
    release(&mut engine, &victim);
    checker::assert_empty(lab);
}

fn a_real_connection_of_another_account(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    let attacker = lab.user();
    let _open = attacker.connect(&engine.socket);
    let (connection, _, _socket) = engine.connected();
    let sleeper = attacker.sleeper();
    for (number, (op, with_fd)) in every_operation(victim.grant, victim.uid).into_iter().enumerate() {
        let fds: Vec<BorrowedFd<'_>> = if with_fd { vec![sleeper.pidfd.as_fd()] } else { Vec::new() };
        let refusal = engine.ask(SOCKET, connection, op.clone(), &fds).unwrap_err();
        let codes = [RefusalCode::NotAuthorized, RefusalCode::NoSuchGrant];
        assert!(codes.contains(&refusal.code), "{op:?}: {refusal:?}");
        // Nothing says whether the grant exists.
        let guess = GrantId(victim.grant.0 ^ 1);
        let missing = engine
            .ask(SOCKET, connection, every_operation(guess, victim.uid)[number].0.clone(), &fds)
            .unwrap_err();
        assert_eq!(missing.code, refusal.code, "{op:?} tells a grant that is there from one that is not");
    }
    unharmed(lab, &victim);
    release(&mut engine, &victim);
}

fn a_closed_connection_stays_closed(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    engine.link(BUS).send(&ToEngine::Closed { connection: victim.connection }, &[]);
    let ask = Op::Describe { grant: victim.grant };
    engine.ask(SOCKET, victim.connection, ask.clone(), &[]).expect("the other front closed it");
    engine.link(SOCKET).send(&ToEngine::Closed { connection: victim.connection }, &[]);
    let refusal = engine.ask(SOCKET, victim.connection, ask, &[]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    // A number is never given out again.
    let user = lab.user();
    let _open = user.connect(&engine.socket);
    let (next, _, _socket) = engine.connected();
    assert!(next.0 > victim.connection.0);
    let root = lab.root().connect(&engine.socket);
    let (root_connection, uid, _root_socket) = engine.connected();
    assert_eq!(uid, 0);
    engine
        .ask(SOCKET, root_connection, Op::Release { grant: victim.grant, kill: true, force: false }, &[])
        .unwrap();
    drop(root);
    checker::assert_empty(lab);
}

fn descriptors_prove_nothing_about_the_caller(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    let attacker = lab.user();
    let _open = attacker.connect(&engine.socket);
    let (connection, _, _socket) = engine.connected();
    // A connection to a socket that root listens on: asked who its peer is, the kernel says uid 0.
    let listener = std::os::unix::net::UnixListener::bind(lab.scratch.join("roots")).unwrap();
    fs::set_permissions(lab.scratch.join("roots"), std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .unwrap();
    let (_process, to_root) = attacker.connect(&lab.scratch.join("roots"));
    let _accepted = listener.accept().unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&to_root).unwrap();
    assert_eq!(peer.uid.as_raw(), 0);
    let userns = attacker.userns();
    let sleeper = attacker.sleeper();
    let root_process = lab.root().sleeper();
    let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty()).unwrap();
    let all: Vec<(&str, BorrowedFd<'_>)> = vec![
        ("a socket of root's", to_root.as_fd()),
        ("a file", memory.as_fd()),
        ("a process of root's", root_process.pidfd.as_fd()),
        ("a process of the victim's", victim.process.pidfd.as_fd()),
        ("a namespace", userns.1.as_fd()),
        ("a process of its own", sleeper.pidfd.as_fd()),
    ];
    for (what, fd) in &all {
        // Beside an operation that takes none, before its own and behind it.
        for (op, _) in every_operation(victim.grant, victim.uid) {
            let refusal = engine.ask(SOCKET, connection, op.clone(), &[*fd]).unwrap_err();
            assert_ne!(refusal.code, RefusalCode::Internal, "{what} beside {op:?}: {refusal:?}");
        }
        let refusal = engine.ask(SOCKET, connection, Op::BrokerInfo, &[*fd]).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidDescriptor, "{what} beside BrokerInfo");
        let refusal = engine
            .ask(SOCKET, connection, Op::CreateGrant(create("x", Holder::Persistent)), &[*fd])
            .unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidDescriptor, "{what} that the request does not name");
        if *what != "a process of its own" {
            let refusal = engine
                .ask(SOCKET, connection, Op::CreateGrant(create("x", Holder::Process(FdIndex(0)))), &[*fd])
                .unwrap_err();
            assert!(
                [RefusalCode::InvalidDescriptor, RefusalCode::NotAuthorized].contains(&refusal.code),
                "{what} as holder: {refusal:?}"
            );
            let mut wish = create("x", Holder::Persistent);
            wish.stage = Some(FdIndex(0));
            let refusal = engine.ask(SOCKET, connection, Op::CreateGrant(wish), &[*fd]).unwrap_err();
            assert!(
                [RefusalCode::InvalidDescriptor, RefusalCode::NotAuthorized].contains(&refusal.code),
                "{what} as stage: {refusal:?}"
            );
        }
        if *what != "a namespace" {
            let mut wish = create("x", Holder::Persistent);
            wish.userns = Some(FdIndex(0));
            let refusal = engine.ask(SOCKET, connection, Op::CreateGrant(wish), &[*fd]).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::InvalidDescriptor, "{what} as namespace: {refusal:?}");
        }
    }
    // Indexes: past the end, the same twice.
    let mut wish = create("x", Holder::Process(FdIndex(0)));
    wish.stage = Some(FdIndex(0));
    let refusal =
        engine.ask(SOCKET, connection, Op::CreateGrant(wish), &[sleeper.pidfd.as_fd()]).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::InvalidDescriptor);
    for index in [1, 15, 16, 255] {
        let wish = create("x", Holder::Process(FdIndex(index)));
        let refusal =
            engine.ask(SOCKET, connection, Op::CreateGrant(wish), &[sleeper.pidfd.as_fd()]).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InvalidDescriptor, "index {index}");
    }
    unharmed(lab, &victim);
    release(&mut engine, &victim);
    checker::assert_empty(lab);
}

fn only_the_bus_front_introduces_clients_of_the_bus(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    let client =
        |uid: u32| BusClient { name: ":1.7".into(), uid, groups: vec![0], pid: Some(1), is_certain: false };
    engine.link(SOCKET).send(&ToEngine::BusClient { id: RequestId(900), client: client(0) }, &[]);
    let refusal = engine.answer(SOCKET, RequestId(900)).unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    // What the bus front introduces is bound to it.
    let process = User::new(victim.uid, &[], &lab.scratch, &lab.programs).sleeper();
    let introduce = ToEngine::BusClient { id: RequestId(901), client: client(victim.uid) };
    engine.link(BUS).send(&introduce, &[process.pidfd.as_fd()]);
    let Ok((Answer::Connection { connection: number, .. }, _)) = engine.answer(BUS, RequestId(901)) else {
        panic!("not introduced")
    };
    let refusal = engine
        .ask(SOCKET, number, Op::Release { grant: victim.grant, kill: true, force: false }, &[])
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    // Of a process that nobody can name it is not known whether it lies in the grant.
    engine.link(BUS).send(&ToEngine::BusClient { id: RequestId(902), client: client(victim.uid) }, &[]);
    let Ok((Answer::Connection { connection: unknown, .. }, _)) = engine.answer(BUS, RequestId(902)) else {
        panic!("not introduced")
    };
    let refusal = engine
        .ask(BUS, unknown, Op::Release { grant: victim.grant, kill: true, force: false }, &[])
        .unwrap_err();
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    unharmed(lab, &victim);
    engine.ask(BUS, number, Op::Release { grant: victim.grant, kill: true, force: false }, &[]).unwrap();
    checker::assert_empty(lab);
}

fn bytes_that_are_no_message_cut_the_front_off_and_harm_nobody(lab: &Lab) {
    let mut engine = LoneEngine::start(lab);
    let victim = victim(lab, &mut engine);
    let file = fs::File::open("/dev/null").unwrap();
    let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&memory, &vec![0_u8; 100_000]).unwrap();
    let good = cgrant_wire::encode(&ToEngine::Closed { connection: ConnectionId(5) }).unwrap();
    let cases: Vec<(&str, Vec<u8>, Vec<BorrowedFd<'_>>)> = vec![
        ("noise", (0..2000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(), Vec::new()),
        ("a cut message", good[..good.len() - 1].to_vec(), Vec::new()),
        ("a message and a byte", [good.clone(), vec![0]].concat(), Vec::new()),
        ("an unknown variant", vec![200, 1, 2, 3], Vec::new()),
        ("a length of 2^60", vec![0, 1, 1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10], Vec::new()),
        ("a message beside which nothing is", vec![0xff], Vec::new()),
        ("a message in a file", vec![0xff], vec![file.as_fd()]),
        ("a message in memory that is not sealed", vec![0xff], vec![memory.as_fd()]),
        ("too many descriptors", good.clone(), vec![file.as_fd(); 60]),
        ("a long datagram", vec![1; 60_000], Vec::new()),
    ];
    for (what, bytes, fds) in cases {
        // A datagram that is too long for the socket is refused by our own kernel already.
        if engine.link(BUS).send_bytes(&bytes, &fds).is_err() {
            continue;
        }
        assert!(engine.link(BUS).is_closed(), "{what}: the link stays open");
        engine.relink(BUS);
        assert!(engine.is_alive(), "{what} ended the engine");
        engine.ask(SOCKET, victim.connection, Op::BrokerInfo, &[]).unwrap();
    }
    unharmed(lab, &victim);
    release(&mut engine, &victim);
    checker::assert_empty(lab);
}

fn the_fronts_own_accounts_are_not_served(lab: &Lab) {
    let engine = LoneEngine::start(lab);
    for uid in [0x7000_0001, 0x7000_0002] {
        let front = crate::common::User::new(uid, &[], &lab.scratch, &lab.programs);
        let (_process, stream) = front.connect(&engine.socket);
        assert!(crate::common::raw::Raw::new(stream).is_closed(), "uid {uid} is served");
    }
    let user = lab.user();
    let _open = user.connect(&engine.socket);
    assert_eq!(engine.connected().1, user.uid, "the fronts' connections were announced");
}

crate::tests![
    numbers_that_were_not_given_to_this_front,
    a_real_connection_of_another_account,
    a_closed_connection_stays_closed,
    descriptors_prove_nothing_about_the_caller,
    only_the_bus_front_introduces_clients_of_the_bus,
    bytes_that_are_no_message_cut_the_front_off_and_harm_nobody,
    the_fronts_own_accounts_are_not_served,
];
