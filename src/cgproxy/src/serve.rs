//! Connections and requests: the engine's part towards the front, with the outer socket behind it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::PathBuf,
    rc::Rc,
};

use cgrant_sys::{
    Pidfd, ProcFs, Received, close_aside,
    credentials::{self, Credentials, Message, SentProcess},
    socket,
};
use cgrant_wire::{
    Answer, Audience, ConnectionId, FromEngine, Legacy, LegacyAnswer, LegacyCall, Op, Refusal, RefusalCode,
    RequestId, Surface, ToEngine,
    legacy::{MAX_DATAGRAM, MAX_SHOWN, OnSocket},
};
use rustix::{io::Errno, net::sockopt};
use tokio::{
    sync::Semaphore,
    task::{spawn_local, yield_now},
};

use crate::{
    aside::Aside,
    chain::{self, Passed, Places},
    exchange::{self, ExchangeError, send_named},
    front::{Link, Served, watch},
    peer::{Named, Peer, Vouched},
    upper::{Upper, UpperError},
};

/// Connections at a time, all together and of one uid. Root's own are not counted among those of one uid.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_PER_UID: usize = 128;
/// Calls at a time that the outer socket is asked. Each has a socket of its own, and the broker lets an account have 64.
const CALLS: usize = 48;

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    front_uid: u32,
    upper: Upper,
    proc: ProcFs,
    peers: RefCell<HashMap<ConnectionId, Rc<Peer>>>,
    next: Cell<u64>,
    calls: Semaphore,
    aside: Aside,
}

/// Why a call has no answer. Clients are told the same of all.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    Upper(#[from] UpperError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    NotHere(&'static str),
}

impl From<zbus::Error> for Failed {
    fn from(error: zbus::Error) -> Self {
        Self::Upper(error.into())
    }
}

impl Proxy {
    /// A proxy of what is at a socket, with a front of this uid.
    ///
    /// # Errors
    /// If `/proc` is not there.
    pub fn new(front_uid: u32, upper: PathBuf) -> io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            front_uid,
            upper: Upper::new(upper),
            proc: ProcFs::open()?,
            peers: RefCell::default(),
            next: Cell::new(1),
            calls: Semaphore::new(CALLS),
            aside: Aside::default(),
        }))
    }

    /// Serves to the end of the front, which is a failure.
    ///
    /// # Errors
    /// Why it can't go on.
    pub async fn run(self: Rc<Self>, front: Served, listener: UnixListener) -> io::Result<()> {
        let link = Rc::clone(&front.link);
        let accepting = Rc::clone(&self).accept(Rc::clone(&link), listener);
        let serving = Rc::clone(&self).serve(link);
        tokio::select! {
            ended = accepting => ended,
            ended = serving => ended,
        }
    }

    async fn accept(self: Rc<Self>, link: Rc<Link>, listener: UnixListener) -> io::Result<()> {
        let listener = watch(listener.into())?;
        loop {
            let mut guard = listener.readable().await?;
            let connection = match socket::accept(listener.get_ref()) {
                Ok(connection) => connection,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    guard.clear_ready();
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    // No descriptors left, most likely: those who have some will give them back.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            if let Err(error) = self.introduce(&link, connection).await {
                tracing::info!(%error, "a connection is not served");
            }
            yield_now().await;
        }
    }

    async fn introduce(&self, link: &Link, connection: OwnedFd) -> io::Result<()> {
        let peer = Peer::of(&connection)?;
        let uid = peer.named.uid;
        let full = {
            let peers = self.peers.borrow();
            let own = peers.values().filter(|other| other.named.uid == uid).count();
            peers.len() >= CONNECTIONS || (uid != 0 && own >= CONNECTIONS_PER_UID)
        };
        if full || uid == self.front_uid {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let number = ConnectionId(self.next.get());
        self.next.set(number.0.wrapping_add(1));
        let pid = Some(peer.named.pid);
        let known = FromEngine::Connected {
            connection: number,
            surface: Surface::Legacy,
            uid,
            account: uid,
            claim: None,
            audience: Some(Audience::Account(uid)),
            pid,
        };
        self.peers.borrow_mut().insert(number, Rc::new(peer));
        send(link, &known, Some(connection)).await
    }

    async fn serve(self: Rc<Self>, link: Rc<Link>) -> io::Result<()> {
        while let Some(Received { bytes, fds }) = link.receive().await? {
            match cgrant_wire::decode(&bytes) {
                Ok(ToEngine::Request { id, connection, op, interactive: _ }) => {
                    let (proxy, link) = (Rc::clone(&self), Rc::clone(&link));
                    spawn_local(async move { proxy.request(&link, id, connection, op, fds).await });
                }
                Ok(ToEngine::Closed { connection }) => {
                    self.peers.borrow_mut().remove(&connection);
                }
                Ok(ToEngine::BusClient { .. } | ToEngine::Consent { .. } | ToEngine::Polkit { .. })
                | Err(_) => {
                    tracing::error!("what parses calls makes no sense")
                }
            }
        }
        Err(io::Error::other("what parses calls has ended"))
    }

    async fn request(&self, link: &Link, id: RequestId, connection: ConnectionId, op: Op, fds: Vec<OwnedFd>) {
        // Closed where nobody waits: it is a client's.
        let exchange = fds.into_iter().next();
        let peer = self.peers.borrow().get(&connection).cloned();
        let done = match (peer, op) {
            (Some(peer), Op::Legacy(Legacy { call, .. })) => {
                self.perform(&peer, call, exchange.as_ref()).await
            }
            _ => Err(Failed::NotHere("there is no such connection, or no such call")),
        };
        drop(close_aside(exchange.into_iter().collect()));
        let result = done.map(Answer::Legacy).map_err(|error| {
            tracing::debug!(connection = connection.0, %error, "a call failed");
            Refusal::new(RefusalCode::InvalidArgument, error.to_string())
        });
        if let Err(error) = send(link, &FromEngine::Answer { id, result }, None).await {
            tracing::error!(%error, "what parses calls can't be answered");
        }
    }

    async fn perform(
        &self,
        peer: &Peer,
        call: LegacyCall,
        exchange: Option<&OwnedFd>,
    ) -> Result<LegacyAnswer, Failed> {
        match (call, exchange) {
            (LegacyCall::Controllers, _) => Ok(LegacyAnswer::Names(self.controllers().await?)),
            (LegacyCall::Socket(wanted), Some(socket)) => self.act_on(peer, socket, wanted).await,
            (LegacyCall::Socket(_), None) => Err(Failed::NotHere("there is no socket")),
            (call, socket) => {
                let _turn = peer.turn.lock().await;
                match socket {
                    None => self.plain(peer, call).await,
                    Some(socket) => self.passed_on(peer, call, socket).await,
                }
            }
        }
    }

    async fn controllers(&self) -> Result<Vec<String>, UpperError> {
        Ok(self.upper.call("ListControllers", &()).await?.body().deserialize()?)
    }

    async fn ask(&self, call: &LegacyCall, named: &[Vouched]) -> Result<LegacyAnswer, Failed> {
        let _place = self.calls.acquire().await.map_err(|_| Failed::NotHere("the proxy is ending"))?;
        Ok(exchange::run(&self.upper, call, named).await?)
    }

    /// A call of somebody in the container: in its name, and if it is about somebody, whoever that is as it numbers them.
    ///
    /// An attacker further in wants out of its cgroup: an absolute path would begin at this process's, above its own.
    async fn plain(&self, peer: &Peer, call: LegacyCall) -> Result<LegacyAnswer, Failed> {
        let own = Named::own();
        let is_absolute = matches!(
            call,
            LegacyCall::PidCgroup { absolute: true, .. } | LegacyCall::MovePid { absolute: true, .. }
        );
        if is_absolute && !peer.shares_pid_namespace(&self.proc) {
            return Ok(LegacyAnswer::OtherNamespace);
        }
        let about = match call {
            LegacyCall::PidCgroup { pid, .. } | LegacyCall::MovePid { pid, .. } => {
                let number = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
                let process =
                    number.map(|number| peer.process_that_it_calls(&self.proc, number)).transpose()?;
                let process = match process.flatten() {
                    Some(process) => process,
                    None if peer.shares_pid_namespace(&self.proc) => {
                        return Err(Failed::NotHere("there is no such process"));
                    }
                    None => return Ok(LegacyAnswer::OtherNamespace),
                };
                Some(Vouched::new(Named { pid: process.pid()?, ..own }, Some(process)))
            }
            LegacyCall::Chown { ids: Some((uid, gid)), .. } => {
                let ids = u32::try_from(uid).ok().zip(u32::try_from(gid).ok());
                let ids = if peer.shares_user_namespace() {
                    ids.ok_or(Failed::NotHere("there are no such ids"))?
                } else {
                    let here = ids.map(|(uid, gid)| peer.ids_here(&self.proc, uid, gid)).transpose()?;
                    let Some(ids) = here.flatten() else { return Ok(LegacyAnswer::OtherNamespace) };
                    ids
                };
                let (uid, gid) = ids;
                Some(Vouched::new(Named { uid, gid, ..own }, None))
            }
            _ => None,
        };
        let named: Vec<Vouched> = [peer.vouched()?].into_iter().chain(about).collect();
        match self.ask(&call, &named).await? {
            LegacyAnswer::Tasks(pids) => Ok(peer.numbers(&self.proc, pids)?),
            answer => Ok(answer),
        }
    }

    /// A call that another proxy, or a client of Scm calls, makes in somebody's name.
    async fn passed_on(
        &self,
        peer: &Peer,
        call: LegacyCall,
        socket: &OwnedFd,
    ) -> Result<LegacyAnswer, Failed> {
        let count = call.credentials();
        let taken = self.aside.run(peer.named.uid, socket, move |socket| take(socket, count)).await?;
        let named = taken.into_iter().map(|message| self.vouched(message)).collect::<Result<Vec<_>, _>>()?;
        let requestor = named.first().ok_or(Failed::NotHere("it names nobody"))?.named;
        if !peer.answers_for(&self.proc, requestor) {
            return Err(Failed::NotHere("the caller does not answer for whom it names"));
        }
        // Who asks for itself is no proxy.
        let passed = if requestor == peer.named {
            Passed::unchanged(call)
        } else {
            let all = self.controllers().await?;
            let places = |controller: &str| Places::of(&self.proc, peer, controller);
            let is_below = |controller: &str| chain::is_below(&self.proc, peer, requestor.pid, controller);
            chain::pass(call, places, is_below, &all)
                .ok_or(Failed::NotHere("it is not below the inner proxy"))?
        };
        let (mut answer, mut failed) = (None, None);
        for call in &passed.calls {
            match self.ask(call, &named).await {
                Ok(told) => answer = Some(told),
                Err(error) if passed.is_passed_over(call) => tracing::debug!(%error, "passed over"),
                Err(error) => failed = Some(error),
            }
        }
        match (failed, answer) {
            (Some(error), _) => Err(error),
            (None, Some(answer)) => {
                passed.answer(answer).ok_or(Failed::NotHere("it is not below the inner proxy"))
            }
            (None, None) => Err(Failed::NotHere("there are no controllers")),
        }
    }

    /// Whom a message on a client's socket names. What the front writes there names nobody.
    fn vouched(&self, message: io::Result<Message>) -> Result<Vouched, Failed> {
        let message = message?;
        let has_more = message.truncated || !message.fds.is_empty();
        drop(close_aside(message.fds));
        let named = message.credentials.filter(|named| named.pid != 0 && named.uid != self.front_uid);
        let nobody = Failed::NotHere("a message names nobody who can be seen from here");
        let Some(Credentials { pid, uid, gid, process }) = named else { return Err(nobody) };
        let process = match process {
            SentProcess::Some(process) => process,
            // A kernel that is too old to say: whoever has the number now, or nobody.
            SentProcess::Unsaid => Pidfd::open(pid)?,
            SentProcess::Gone => return Err(nobody),
        };
        if has_more || message.length != 1 {
            return Err(nobody);
        }
        Ok(Vouched::new(Named { pid, uid, gid }, Some(process)))
    }

    async fn act_on(&self, peer: &Peer, socket: &OwnedFd, wanted: OnSocket) -> Result<LegacyAnswer, Failed> {
        if let OnSocket::ShowTasks { pids, known } = wanted {
            return Ok(self.show(socket, &pids, known)?);
        }
        Ok(self.aside.run(peer.named.uid, socket, move |socket| set_up(socket, &wanted)).await??)
    }

    /// Names processes to a client, as many as there is room for; by the ids of the front, which mean nothing.
    fn show(&self, socket: &OwnedFd, pids: &[u32], mut known: Option<u32>) -> io::Result<LegacyAnswer> {
        let mut count = 0;
        for pid in pids.iter().take(MAX_SHOWN) {
            match self.show_one(socket, *pid) {
                Ok(()) => known = Some(*pid),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It has ended; another one stands for it, as many were announced.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {
                    match self.show_one(socket, known.unwrap_or_else(std::process::id)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        shown => shown?,
                    }
                }
                Err(error) => return Err(error),
            }
            count += 1;
        }
        Ok(LegacyAnswer::Shown { count, known })
    }

    fn show_one(&self, socket: &OwnedFd, pid: u32) -> io::Result<()> {
        send_named(socket.as_fd(), Named { pid, uid: self.front_uid, gid: self.front_uid })
    }
}

/// Takes so many messages off a client's socket.
fn take(socket: &OwnedFd, count: usize) -> Vec<io::Result<Message>> {
    // The kernel then gives the process itself with its number.
    let _ = credentials::set_pass_pidfd(socket, true);
    (0..count).map(|_| credentials::receive(socket)).collect()
}

/// What is asked for of a client's socket that may wait for who has it too.
fn set_up(socket: &OwnedFd, wanted: &OnSocket) -> io::Result<LegacyAnswer> {
    let size = |bytes: u32| usize::try_from(bytes).unwrap_or_default();
    match wanted {
        OnSocket::PassCredentials => sockopt::set_socket_passcred(socket, true)?,
        OnSocket::Look { behind } => return look(socket, *behind).map(LegacyAnswer::Existed),
        // As far as the container's root may; else as far as anybody may.
        OnSocket::SendRoom { bytes } => {
            let bytes = size(*bytes.min(&MAX_DATAGRAM));
            sockopt::set_socket_send_buffer_size_force(socket, bytes)
                .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes))?;
        }
        // The kernel doubles what it is told.
        OnSocket::NoMoreRoom { bytes } => sockopt::set_socket_send_buffer_size(socket, size(bytes / 2))?,
        OnSocket::ShowTasks { .. } => return Err(io::ErrorKind::Unsupported.into()),
    }
    Ok(LegacyAnswer::Done)
}

/// Is there a message behind so many bytes?
fn look(socket: &OwnedFd, behind: u32) -> io::Result<bool> {
    socket::set_peek_offset(socket, Some(behind.into()))?;
    let found = credentials::look(socket);
    socket::set_peek_offset(socket, None)?;
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

async fn send(link: &Link, message: &FromEngine, fd: Option<OwnedFd>) -> io::Result<()> {
    let bytes = cgrant_wire::encode(message).map_err(io::Error::other)?;
    link.send(&bytes, fd).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixDatagram,
        process::{Child, Command, Stdio},
        sync::mpsc,
        time::Duration,
    };

    use super::*;

    /// Longest wait for what happens by itself.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, future)
    }

    fn pair() -> (UnixDatagram, OwnedFd) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        sockopt::set_socket_passcred(&theirs, true).unwrap();
        (ours, theirs.into())
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    fn named(pid: u32) -> Named {
        Named { pid, ..Named::own() }
    }

    /// A process that keeps the lock which everybody takes who receives from a socket. It ends when the second part is dropped.
    fn slow_reader(of: &OwnedFd) -> (Child, mpsc::Sender<()>) {
        let scratch = tempfile::tempdir().unwrap();
        let program = scratch.path().join("slow_reader");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../front/tests/support/slow_reader.c");
        assert!(
            Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(source).status().unwrap().success(),
            "the program can't be built"
        );
        let mut command = Command::new(&program);
        command.stdin(of.try_clone().unwrap()).stdout(Stdio::piped());
        let mut reader = command.spawn().unwrap();
        let mut told = String::new();
        BufReader::new(reader.stdout.take().unwrap()).read_line(&mut told).unwrap();
        assert_eq!(told, "ready\n");
        let pid = rustix::process::Pid::from_child(&reader);
        let (keep, gone) = mpsc::channel::<()>();
        // Also if whoever waits for it never comes to drop it.
        std::thread::spawn(move || {
            let _ = gone.recv_timeout(PATIENCE);
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)
        });
        (reader, keep)
    }

    #[test]
    fn who_keeps_the_lock_of_its_socket_holds_up_nobody_else() {
        let (ours, theirs) = pair();
        let (mut reader, keep) = slow_reader(&theirs);
        // The first is received, and never is.
        send_named(ours.as_fd(), Named::own()).unwrap();
        while rustix::io::ioctl_fionread(&theirs).unwrap() > 0 {
            std::thread::yield_now();
        }
        send_named(ours.as_fd(), Named::own()).unwrap();
        block_on(async {
            let taking = spawn_local(async move {
                Aside::default().run(0, &theirs, |socket| take(socket, 1)).await.unwrap()
            });
            for _ in 0..100 {
                yield_now().await;
            }
            assert!(!taking.is_finished());
            assert!(reader.try_wait().unwrap().is_none(), "nobody could go on until it ended");
            drop(keep);
            let message = taking.await.unwrap().pop().unwrap().unwrap();
            assert_eq!(message.credentials.unwrap().pid, std::process::id());
        });
        reader.wait().unwrap();
    }

    #[test]
    fn a_process_is_held_from_when_it_is_named() {
        let proxy = Proxy::new(7, PathBuf::from("/none")).unwrap();
        let (mut first, mut second) = (sleeper(), sleeper());
        let (ours, theirs) = pair();
        for process in [&first, &second] {
            send_named(ours.as_fd(), named(process.id())).unwrap();
        }
        second.kill().unwrap();
        second.wait().unwrap();
        block_on(async {
            let mut taken = take(&theirs, 2).into_iter();
            let vouched = proxy.vouched(taken.next().unwrap()).unwrap();
            assert_eq!(vouched.named, named(first.id()));
            let ended = proxy.vouched(taken.next().unwrap());
            assert!(!ended.is_ok_and(|who| who.is_there()), "whoever has the number now is another one");
            assert!(vouched.is_there());
            first.kill().unwrap();
            first.wait().unwrap();
            assert!(!vouched.is_there());
        });
    }
}
