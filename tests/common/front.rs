//! A test front: starts cgrant-engine directly and plays supervisor and both fronts on raw SEQPACKET sockets, so
//! that it can send the engine what no front of ours would.

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use cgrant_wire::{
    Answer, ConnectionId, FdIndex, FromEngine, Op, Refusal, RequestId, ToEngine,
    boot::{EngineBoot, FromChild, FrontKind, LogTarget, ToChild},
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::Lab;

/// One end of a SEQPACKET pair.
pub struct Pair(pub OwnedFd);

/// An engine with a supervisor and fronts made of this test.
pub struct LoneEngine {
    child: Option<Child>,
    control: Pair,
    pub socket_front: Pair,
    pub bus_front: Pair,
    pub socket: PathBuf,
    requests: u64,
}

fn pair() -> (Pair, OwnedFd) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(Duration::from_secs(20))).unwrap();
    (Pair(ours), theirs)
}

impl Pair {
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    pub fn send<T: serde::Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&cgrant_wire::encode(message).unwrap(), fds).unwrap();
    }

    /// The next message; `None` when the other end is closed or says nothing.
    pub fn receive<T: serde::de::DeserializeOwned>(&self) -> Option<(T, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 64 * 1024];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(17))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .ok()?;
        if received.bytes == 0 {
            return None;
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        bytes.truncate(received.bytes);
        Some((cgrant_wire::decode(&bytes).expect("the engine sends proper messages"), fds))
    }
}

impl Pair {
    /// Waits for the other end to close; false if it does not in time. What comes before is thrown away.
    pub fn is_closed(&self) -> bool {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            match rustix::net::recv(&self.0, &mut bytes, rustix::net::RecvFlags::empty()) {
                Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

impl LoneEngine {
    /// Starts it in the lab's directories, with both fronts linked.
    pub fn start(lab: &Lab) -> Self {
        let directory = |path: PathBuf, mode: u32| {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            OwnedFd::from(fs::File::open(path).unwrap())
        };
        let run = lab.runtime_dir();
        let fds = [
            directory(lab.config_dir(), 0o755),
            directory(lab.state_dir(), 0o700),
            directory(run.join("state"), 0o700),
            directory(lab.ids.join("ids"), 0o700),
            directory(lab.ids.join("ids-live"), 0o700),
        ];
        directory(run.join("public"), 0o755);
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        let socket = run.join("public/bus");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        let (control, theirs) = pair();
        // The shell puts the pair's end where the engine looks for it: descriptor 3.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" 3<&0 0</dev/null"]).arg(lab.programs.join("cgrant-engine"));
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.scratch.join("log")).unwrap();
        let child = command.stdin(theirs).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        drop(command);
        let boot = EngineBoot {
            instance: lab.instance.clone(),
            config_dir: FdIndex(0),
            state_dir: FdIndex(1),
            run_dir: FdIndex(2),
            ids_dir: FdIndex(3),
            ids_run_dir: FdIndex(4),
            listeners: vec![FdIndex(5)],
            legacy_listeners: Vec::new(),
            metrics_listeners: Vec::new(),
            engines_before: 0,
            others_before: [0; 3],
            placements: Vec::new(),
            front_uids: vec![0x7000_0001, 0x7000_0002],
            socket_front: (0x7000_0001, 0x7000_0001),
            log: LogTarget::Terminal,
        };
        let mut all: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        all.push(listener.as_fd());
        control.send(&ToChild::Engine(boot), &all);
        let ready = control.receive::<FromChild>().expect("the engine did not start").0;
        assert_eq!(ready, FromChild::Ready);
        let (socket_front, socket_end) = pair();
        let (bus_front, bus_end) = pair();
        control.send(&ToChild::FrontStarted(FrontKind::Socket), &[socket_end.as_fd()]);
        control.send(&ToChild::FrontStarted(FrontKind::Bus), &[bus_end.as_fd()]);
        Self { child: Some(child), control, socket_front, bus_front, socket, requests: 0 }
    }

    /// The number that the engine gave to the next connection, its uid, and its socket.
    pub fn connected(&self) -> (ConnectionId, u32, OwnedFd) {
        loop {
            match self.socket_front.receive::<FromEngine>() {
                Some((FromEngine::Connected { connection, uid, .. }, mut fds)) => {
                    return (connection, uid, fds.remove(0));
                }
                Some(_) => {}
                None => panic!("no connection was announced"),
            }
        }
    }

    /// Sends an operation over a front's link and waits for its answer.
    pub fn ask(
        &mut self,
        front: FrontKind,
        connection: ConnectionId,
        op: Op,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), Refusal> {
        self.requests += 1;
        let id = RequestId(self.requests);
        let link = self.link(front);
        link.send(&ToEngine::Request { id, connection, interactive: false, op }, fds);
        self.answer(front, id)
    }

    /// Sends any message and waits for the answer to request `id`.
    pub fn answer(&self, front: FrontKind, id: RequestId) -> Result<(Answer, Vec<OwnedFd>), Refusal> {
        loop {
            match self.link(front).receive::<FromEngine>() {
                Some((FromEngine::Answer { id: answered, result }, fds)) if answered == id => {
                    return result.map(|answer| (answer, fds));
                }
                Some(_) => {}
                None => panic!("the engine closed the link or says nothing"),
            }
        }
    }

    /// The test's end of a link.
    pub fn link(&self, front: FrontKind) -> &Pair {
        match front {
            FrontKind::Socket => &self.socket_front,
            FrontKind::Bus => &self.bus_front,
        }
    }

    /// Is the engine alive and does its supervisor's link answer? Gives it a new socket front.
    pub fn relink(&mut self, front: FrontKind) {
        let (ours, theirs) = pair();
        self.control.send(&ToChild::FrontStarted(front), &[theirs.as_fd()]);
        match front {
            FrontKind::Socket => self.socket_front = ours,
            FrontKind::Bus => self.bus_front = ours,
        }
    }

    /// Has it read its policy anew.
    pub fn reload(&self) {
        self.control.send(&ToChild::Reload, &[]);
        loop {
            let said = self.control.receive::<FromChild>().expect("the engine is gone").0;
            if let FromChild::Reloaded(result) = said {
                return result.unwrap();
            }
        }
    }

    /// Does it run?
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }
}

impl Drop for LoneEngine {
    fn drop(&mut self) {
        self.control.send(&ToChild::Stop, &[]);
        let mut child = self.child.take().unwrap();
        for _ in 0..1000 {
            if child.try_wait().unwrap().is_some() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        if !std::thread::panicking() {
            panic!("the engine does not stop");
        }
    }
}
