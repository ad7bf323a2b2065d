//! A supervisor and an engine for tests: they start the real program and speak `cgrant-wire` with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code)]

pub mod legacy;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use cgrant_sys::{Channel, seqpacket};
use cgrant_wire::{
    Address, Answer, Audience, BridgeInfo, BrokerInfo, BusClient, ConnectionId, Created, DepartedInfo, Event,
    Explanation, Fate, FdIndex, FromEngine, GrantId, GrantInfo, Hierarchy, Lifetime, LinkInfo, LinkKind, Mac,
    Op, Range, RangeInfo, Refusal, RefusalCode, RequestId, RuleInfo, Stat, Surface, ToEngine, Usage,
    UsageRow,
    boot::{FromChild, FrontBoot, FrontKind, LogTarget, ToChild},
    net::Finding,
};

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The grant that the fake engine has.
pub const GRANT: GrantId = GrantId(0x00c0_ffee_00c0_ffee);
/// Its path.
pub const GRANT_PATH: &str = "/org/cgrant/Broker1/grant/00c0ffee00c0ffee";
/// The account that the socket front becomes; nobody has it.
pub const FRONT_UID: u32 = 2_013_265_921;
/// The account that the bus front becomes (nobody): a bus daemon lets nobody in whom NSS does not know.
pub const BUS_FRONT_UID: u32 = 65534;

/// What came over the link.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub connection: ConnectionId,
    pub op: Op,
    pub fds: usize,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    closed: Vec<ConnectionId>,
    clients: Vec<(ConnectionId, BusClient, bool)>,
    withheld: Vec<(RequestId, Op)>,
    withhold: bool,
    refuse: HashMap<String, Refusal>,
    ended: bool,
    legacy: legacy::Played,
}

/// A front with its supervisor and engine.
pub struct Front {
    child: Child,
    control: Channel,
    engine: Arc<Channel>,
    state: Arc<(Mutex<State>, Condvar)>,
    next: AtomicU64,
    log: File,
}

impl Front {
    pub fn socket() -> Self {
        Self::start(FrontKind::Socket, "")
    }

    pub fn start(kind: FrontKind, bus_address: &str) -> Self {
        Self::start_instance(kind, bus_address, "default")
    }

    pub fn start_instance(kind: FrontKind, bus_address: &str, instance: &str) -> Self {
        let (control, theirs) = seqpacket::pair().unwrap();
        let (engine, engine_theirs) = seqpacket::pair().unwrap();
        let log = tempfile::tempfile().unwrap();
        // The shell puts the end that it gets as standard input where the front looks for it.
        let child = Command::new("sh")
            .args(["-c", "exec \"$0\" 3<&0 0</dev/null", env!("CARGO_BIN_EXE_cgrant-front-alone")])
            .env("CGRANT_LOG", "debug")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log.try_clone().unwrap()))
            .spawn()
            .unwrap();
        let uid = if kind == FrontKind::Bus { BUS_FRONT_UID } else { FRONT_UID };
        let boot = FrontBoot {
            kind,
            instance: instance.to_owned(),
            engine: FdIndex(0),
            uid,
            gid: uid,
            bus_address: bus_address.to_owned(),
            log: LogTarget::Terminal,
        };
        let bytes = cgrant_wire::encode(&ToChild::Front(boot)).unwrap();
        control.send(&bytes, &[engine_theirs.as_fd()]).unwrap();
        drop(engine_theirs);
        let mut front = Self {
            child,
            control,
            engine: Arc::new(engine),
            state: Arc::default(),
            next: AtomicU64::new(1),
            log,
        };
        front.await_ready();
        front.run_engine();
        front
    }

    fn await_ready(&mut self) {
        let received = self.control.receive().unwrap();
        let said = received.map(|received| cgrant_wire::decode::<FromChild>(&received.bytes).unwrap());
        assert_eq!(said, Some(FromChild::Ready), "{}", self.log());
    }

    fn run_engine(&self) {
        let (engine, state) = (Arc::clone(&self.engine), Arc::clone(&self.state));
        thread::spawn(move || {
            while let Ok(Some(received)) = engine.receive() {
                let message = cgrant_wire::decode(&received.bytes).unwrap();
                let reply = note(&state, message, &received.fds);
                state.1.notify_all();
                if let Some((id, result)) = reply {
                    send_answer(&engine, id, result);
                }
            }
            state.0.lock().unwrap().ended = true;
            state.1.notify_all();
        });
    }

    /// A connection of `uid`, as if the engine had accepted it; the client's end, and its number.
    pub fn connect(&self, uid: u32) -> (UnixStream, ConnectionId) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, self.introduce(theirs.into(), uid))
    }

    /// Gives a socket that was accepted to the front, and keeps none of it.
    #[allow(clippy::needless_pass_by_value)]
    pub fn introduce(&self, socket: OwnedFd, uid: u32) -> ConnectionId {
        self.introduce_at(Surface::Native, socket, uid, uid)
    }

    /// The same of a connection by this listener, whose uid is counted to this account.
    #[allow(clippy::needless_pass_by_value)]
    pub fn introduce_at(&self, surface: Surface, socket: OwnedFd, uid: u32, account: u32) -> ConnectionId {
        let connection = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let message = FromEngine::Connected {
            connection,
            surface,
            uid,
            account,
            claim: None,
            audience: Some(Audience::Account(uid)),
            pid: Some(1),
        };
        self.engine.send(&cgrant_wire::encode(&message).unwrap(), &[socket.as_fd()]).unwrap();
        connection
    }

    pub fn event(&self, event: Event) {
        let audience = event.account().map_or(Audience::Everybody, Audience::Account);
        let message = FromEngine::Event { event, audience };
        self.engine.send(&cgrant_wire::encode(&message).unwrap(), &[]).unwrap();
    }

    pub fn stop(&self) {
        self.control.send(&cgrant_wire::encode(&ToChild::Stop).unwrap(), &[]).unwrap();
    }

    pub fn close_engine(&self) {
        rustix::net::shutdown(self.engine.as_fd(), rustix::net::Shutdown::Both).unwrap();
    }

    /// Answers nothing until [`Front::release`].
    pub fn withhold(&self) {
        self.state.0.lock().unwrap().withhold = true;
    }

    /// Answers everything that was withheld, and all from now on.
    pub fn release(&self) {
        let withheld = {
            let mut state = self.state.0.lock().unwrap();
            state.withhold = false;
            std::mem::take(&mut state.withheld)
        };
        for (id, op) in withheld {
            send_answer(&self.engine, id, Ok(answer(&op, ConnectionId(0))));
        }
    }

    /// Refuses operations of this kind (the name of the variant).
    pub fn refuse(&self, op: &str, refusal: Refusal) {
        self.state.0.lock().unwrap().refuse.insert(op.to_owned(), refusal);
    }

    /// Answers calls of CGManager's interface so.
    pub fn play(&self, change: impl FnOnce(&mut legacy::Played)) {
        change(&mut self.state.0.lock().unwrap().legacy);
    }

    /// The operations that came since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.0.lock().unwrap().seen)
    }

    pub fn seen_count(&self) -> usize {
        self.state.0.lock().unwrap().seen.len()
    }

    pub fn clients(&self) -> Vec<(ConnectionId, BusClient, bool)> {
        self.state.0.lock().unwrap().clients.clone()
    }

    pub fn await_closed(&self, connection: ConnectionId) {
        self.until("the end of a connection", |state| state.closed.contains(&connection));
    }

    pub fn has_closed(&self, connection: ConnectionId) -> bool {
        self.state.0.lock().unwrap().closed.contains(&connection)
    }

    pub fn await_seen(&self, count: usize) {
        self.until("operations", |state| state.seen.len() >= count);
    }

    fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let state = self.state.0.lock().unwrap();
        let (_state, timeout) =
            self.state.1.wait_timeout_while(state, PATIENCE, |state| !condition(state)).unwrap();
        assert!(!timeout.timed_out(), "no {what}; log:\n{}", self.log());
    }

    /// Waits for the end of the process; `true` if it ended well.
    pub fn ended_well(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.signal(), None, "{}", self.log());
                return status.success();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the front does not end; log:\n{}", self.log());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A line of `/proc/PID/status`.
    pub fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }

    /// Resident memory in kB.
    pub fn resident(&self) -> u64 {
        self.status("VmRSS").trim_end_matches(" kB").trim().parse().unwrap()
    }

    /// How often it was woken up.
    pub fn wakeups(&self) -> u64 {
        self.status("voluntary_ctxt_switches").parse().unwrap()
    }

    /// The same, when nothing is left to do: it was not woken up for a while.
    pub fn settled_wakeups(&self) -> u64 {
        let start = Instant::now();
        loop {
            let before = self.wakeups();
            thread::sleep(Duration::from_millis(300));
            if self.wakeups() == before {
                return before;
            }
            assert!(start.elapsed() < PATIENCE, "it does not come to rest");
        }
    }

    pub fn log(&self) -> String {
        use std::os::unix::fs::FileExt;
        let mut text = vec![0; 65536];
        let count = self.log.read_at(&mut text, 0).unwrap_or(0);
        String::from_utf8_lossy(&text[..count]).into_owned()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of the front:\n{}", self.log());
        }
    }
}

type Replied = Option<(RequestId, Result<Answer, Refusal>)>;

fn note(state: &(Mutex<State>, Condvar), message: ToEngine, fds: &[OwnedFd]) -> Replied {
    let mut state = state.0.lock().unwrap();
    match message {
        ToEngine::Request { id, connection, op, interactive: _ } => {
            let refusal = op_name(&op).and_then(|name| state.refuse.get(name)).cloned();
            let result = match (refusal, &op) {
                (Some(refusal), _) => Err(refusal),
                (None, Op::Legacy(request)) => state.legacy.answer(request, fds),
                (None, op) => Ok(answer(op, connection)),
            };
            state.seen.push(Seen { connection, op: op.clone(), fds: fds.len() });
            if state.withhold {
                state.withheld.push((id, op));
                return None;
            }
            Some((id, result))
        }
        ToEngine::Closed { connection } => {
            state.closed.push(connection);
            None
        }
        ToEngine::BusClient { id, client } => {
            let connection = ConnectionId(1000 + state.clients.len() as u64);
            let audience = Some(Audience::Account(client.uid));
            state.clients.push((connection, client, fds.len() == 1));
            Some((id, Ok(Answer::Connection { connection, audience })))
        }
        ToEngine::Consent { .. } | ToEngine::Polkit { .. } => None,
    }
}

fn op_name(op: &Op) -> Option<&'static str> {
    match op {
        Op::CreateGrant(_) => Some("CreateGrant"),
        Op::Describe { .. } => Some("Describe"),
        Op::SetLimits { .. } => Some("SetLimits"),
        Op::Legacy(_) => Some("Legacy"),
        _ => None,
    }
}

fn send_answer(engine: &Channel, id: RequestId, result: Result<Answer, Refusal>) {
    let file = File::open("/").unwrap();
    let fds = match &result {
        Ok(Answer::Created(_) | Answer::Cgroup(_) | Answer::Mount(_) | Answer::Link(_, Some(_))) => {
            vec![file.as_fd()]
        }
        _ => Vec::new(),
    };
    // The front may have ended already.
    let _ = engine.send(&cgrant_wire::encode(&FromEngine::Answer { id, result }).unwrap(), &fds);
}

/// The grant that there is.
pub fn grant() -> GrantInfo {
    GrantInfo {
        id: GRANT,
        name: "web".to_owned(),
        account: 1000,
        lifetime: Lifetime::Connection,
        range: Some(Range { uid: 200_000, gid: 300_000, count: 65536 }),
        limits: vec![("pids.max".to_owned(), "100".to_owned())],
        frozen: false,
        populated: true,
        created: 1_700_000_000_000_000,
        cgroup_id: 4711,
        hierarchies: vec![Hierarchy {
            name: "cgroup2".to_owned(),
            path: "/cgrant/u1000/web/payload".to_owned(),
        }],
        links: vec![link("eth0")],
        nesting: 0,
        parent: None,
    }
}

/// A link of it.
pub fn link(name: &str) -> LinkInfo {
    LinkInfo {
        name: name.to_owned(),
        kind: LinkKind::Veth,
        bridge: "default".to_owned(),
        host_name: "cgv0123456789".to_owned(),
        ifindex: 7,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address4: Some(Address { address: [10, 1, 2, 16].into(), prefix: 22 }),
        address6: None,
        gateway4: Some([10, 1, 2, 1].into()),
        gateway6: None,
        dns: vec![[10, 1, 2, 2].into()],
        mtu: 1500,
        queue_length: 0,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: Vec::new(),
    }
}

/// What the fake engine answers.
pub fn answer(op: &Op, connection: ConnectionId) -> Answer {
    match op {
        Op::BrokerInfo => Answer::BrokerInfo(BrokerInfo {
            version: "1.2.3".to_owned(),
            instance: "default".to_owned(),
            hierarchy: "hybrid".to_owned(),
            systemd: false,
            controllers: vec!["cpu".to_owned(), "memory".to_owned()],
            features: vec![("pidfd-info".to_owned(), true, "reads /proc".to_owned())],
            account: 1000,
        }),
        Op::Usage { account } => Answer::Usage(Usage {
            account: account.unwrap_or(1000),
            rule: "built-in any-user".to_owned(),
            rows: vec![UsageRow { resource: "grants".to_owned(), used: 1, quota: 16 }],
            disk_measured: 77,
        }),
        Op::ListAccounts { .. } => Answer::Accounts(vec![1000]),
        Op::ListRules { .. } => Answer::Rules(vec![RuleInfo {
            label: "a.toml:1 x".to_owned(),
            whom: "uids 7".to_owned(),
            settings: vec![("quota.grants".to_owned(), "3".to_owned())],
        }]),
        Op::Metrics => Answer::Metrics(Vec::new()),
        Op::Explain(_) => Answer::Explained(Explanation {
            refusal: Some(refusal()),
            rule: "built-in any-user".to_owned(),
            application: String::new(),
            action: String::new(),
            rows: vec![UsageRow { resource: "grants".to_owned(), used: 16, quota: 16 }],
            lacks: Vec::new(),
        }),
        Op::CreateGrant(_) => Answer::Created(Created {
            grant: grant(),
            new: true,
            payload: FdIndex(0),
            taps: vec![("tap0".to_owned(), FdIndex(0))],
        }),
        Op::AddLink { link: request, .. } => match request.kind {
            LinkKind::Veth => Answer::Link(link("eth0"), None),
            LinkKind::Tap => Answer::Link(link("tap0"), Some(FdIndex(0))),
        },
        Op::ListBridges => Answer::Bridges(vec![BridgeInfo {
            name: "default".to_owned(),
            device: "cgrant0".to_owned(),
            managed: true,
            subnet4: Some(Address { address: [10, 1, 0, 0].into(), prefix: 22 }),
            subnet6: None,
            links: 1,
            clash: None,
        }]),
        Op::ExamineNetwork => Answer::Findings(vec![Finding {
            subject: "nft".to_owned(),
            good: false,
            found: "not there".to_owned(),
            remedy: "install nftables".to_owned(),
        }]),
        Op::ListGrants { .. } => Answer::Grants(vec![grant()]),
        Op::FindGrant { .. } | Op::Describe { .. } => Answer::Grant(grant()),
        Op::GetValues { keys, .. } => {
            Answer::Values(keys.iter().map(|key| (key.clone(), format!("value of {key}"))).collect())
        }
        Op::Stat { .. } => Answer::Stat(Stat { memory_current: Some(4096), ..Stat::default() }),
        Op::ListProcesses { .. } => Answer::Processes((1..=20_000).collect()),
        Op::ListCgroups { .. } => Answer::Cgroups(vec!["a".to_owned(), "a/b".to_owned()]),
        Op::OpenCgroup { .. } => Answer::Cgroup(FdIndex(0)),
        Op::MapDirectory(_) | Op::MakeDevice { .. } => Answer::Mount(FdIndex(0)),
        Op::Attach(_) => Answer::Attached(3),
        Op::ListRanges => Answer::Ranges(vec![RangeInfo {
            range: Range { uid: 1, gid: 2, count: 3 },
            name: "web".to_owned(),
            grant: Some(GRANT),
        }]),
        Op::ListDeparted { .. } => Answer::Departed(vec![DepartedInfo {
            account: 1,
            user: "alice".to_owned(),
            first: 2,
            count: 3,
            fate: Fate::Retired,
            grants: 4,
        }]),
        Op::Legacy(_)
        | Op::AllowDevice { .. }
        | Op::ForgetDeparted { .. }
        | Op::ReportDisk(_)
        | Op::ForgetRange { .. }
        | Op::Adopt { .. }
        | Op::SetLimits { .. }
        | Op::Freeze { .. }
        | Op::Thaw { .. }
        | Op::Kill { .. }
        | Op::CreateCgroup { .. }
        | Op::RemoveCgroup { .. }
        | Op::RemoveLink { .. }
        | Op::PublishPorts { .. }
        | Op::UnpublishPorts { .. }
        | Op::Release { .. } => {
            let _ = connection;
            Answer::Done
        }
    }
}

/// A refusal with everything in it.
pub fn refusal() -> Refusal {
    Refusal::new(RefusalCode::QuotaExceeded, "no more grants")
        .rule("built-in any-user")
        .figures(16, 16)
        .resource("grants")
        .hint("release one")
}

/// Everything that comes until the peer closes; `false` if nothing more comes and it has not.
pub fn read_to_end(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return (all, true),
            Ok(count) => all.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (all, true),
            Err(_) => return (all, false),
        }
    }
}

/// Reads until this came.
pub fn read_until(stream: &mut UnixStream, wanted: &str) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&all).contains(wanted) {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "closed after {}", all.escape_ascii());
        all.extend_from_slice(&piece[..count]);
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A runtime for a client's side.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("the test hangs") })
}

/// A zbus client on a connection of this uid.
pub async fn client(front: &Front, uid: u32) -> (zbus::Connection, ConnectionId) {
    let (stream, connection) = front.connect(uid);
    let client = zbus::connection::Builder::unix_stream(stream).p2p().user_id(uid).build().await.unwrap();
    (client, connection)
}
