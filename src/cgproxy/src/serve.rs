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

use cgrant_sys::{ProcFs, Received, close_aside, credentials, socket};
use cgrant_wire::{
    Answer, ConnectionId, FromEngine, Legacy, LegacyAnswer, LegacyCall, Op, Refusal, RefusalCode, RequestId,
    Surface, ToEngine,
    legacy::{MAX_DATAGRAM, MAX_SHOWN},
};
use rustix::{io::Errno, net::sockopt};
use tokio::{
    sync::Semaphore,
    task::{spawn_local, yield_now},
};

use crate::{
    chain::{self, Passed, Places},
    exchange::{self, ExchangeError, send_named},
    front::{Link, Served, watch},
    peer::{Named, Peer},
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
        let known =
            FromEngine::Connected { connection: number, surface: Surface::Legacy, uid, account: uid, pid };
        self.peers.borrow_mut().insert(number, Rc::new(peer));
        send(link, &known, Some(connection)).await
    }

    async fn serve(self: Rc<Self>, link: Rc<Link>) -> io::Result<()> {
        while let Some(Received { bytes, fds }) = link.receive().await? {
            match cgrant_wire::decode(&bytes) {
                Ok(ToEngine::Request { id, connection, op }) => {
                    let (proxy, link) = (Rc::clone(&self), Rc::clone(&link));
                    spawn_local(async move { proxy.request(&link, id, connection, op, fds).await });
                }
                Ok(ToEngine::Closed { connection }) => {
                    self.peers.borrow_mut().remove(&connection);
                }
                Ok(ToEngine::BusClient { .. }) | Err(_) => {
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
            (LegacyCall::ShowTasks { pids, known }, Some(socket)) => Ok(self.show(socket, &pids, known)?),
            (LegacyCall::SendRoom { bytes }, Some(socket)) => {
                make_room(socket, bytes)?;
                Ok(LegacyAnswer::Done)
            }
            (LegacyCall::ShowTasks { .. } | LegacyCall::SendRoom { .. }, None) => {
                Err(Failed::NotHere("there is no socket"))
            }
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

    async fn ask(&self, call: &LegacyCall, named: &[Named]) -> Result<LegacyAnswer, Failed> {
        let _place = self.calls.acquire().await.map_err(|_| Failed::NotHere("the proxy is ending"))?;
        Ok(exchange::run(&self.upper, call, named).await?)
    }

    /// A call of somebody in the container: in its name, and if it is about somebody, whom it numbers as we do.
    async fn plain(&self, peer: &Peer, call: LegacyCall) -> Result<LegacyAnswer, Failed> {
        let own = Named::own();
        let about = match call {
            LegacyCall::PidCgroup { pid, .. } | LegacyCall::MovePid { pid, .. } => {
                if !peer.shares_pid_namespace(&self.proc) {
                    return Ok(LegacyAnswer::OtherNamespace);
                }
                let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
                Some(Named { pid: pid.ok_or(Failed::NotHere("there is no such process"))?, ..own })
            }
            LegacyCall::Chown { ids: Some((uid, gid)), .. } => {
                if !peer.shares_user_namespace() {
                    return Ok(LegacyAnswer::OtherNamespace);
                }
                let (Ok(uid), Ok(gid)) = (u32::try_from(uid), u32::try_from(gid)) else {
                    return Err(Failed::NotHere("there are no such ids"));
                };
                Some(Named { uid, gid, ..own })
            }
            _ => None,
        };
        // Not somebody else who has its number by now.
        if !peer.is_alive() {
            return Err(Failed::NotHere("the caller has ended"));
        }
        let named: Vec<Named> = [peer.named].into_iter().chain(about).collect();
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
        let named = (0..call.credentials()).map(|_| self.take(socket)).collect::<Result<Vec<_>, _>>()?;
        let requestor = *named.first().ok_or(Failed::NotHere("it names nobody"))?;
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
        let mut answer = Err(Failed::NotHere("there are no controllers"));
        let mut failed = None;
        for call in &passed.calls {
            answer = self.ask(call, &named).await;
            if let Err(error) = &answer {
                tracing::debug!(%error, "a part of a call failed");
                failed = Some(());
            }
        }
        match failed {
            Some(()) if passed.calls.len() > 1 => Err(Failed::NotHere("a part of it failed")),
            _ => passed.answer(answer?).ok_or(Failed::NotHere("it is not below the inner proxy")),
        }
    }

    /// Whom the next message on a client's socket names. What the front writes there names nobody.
    fn take(&self, socket: &OwnedFd) -> Result<Named, Failed> {
        let message = credentials::receive(socket)?;
        let has_more = message.truncated || !message.fds.is_empty();
        drop(close_aside(message.fds));
        let named = message.credentials.filter(|named| named.pid != 0 && named.uid != self.front_uid);
        match named {
            Some(named) if !has_more && message.length == 1 => {
                Ok(Named { pid: named.pid, uid: named.uid, gid: named.gid })
            }
            _ => Err(Failed::NotHere("a message names nobody who can be seen from here")),
        }
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

/// As far as the container's root may; else as far as anybody may.
fn make_room(socket: &OwnedFd, bytes: u32) -> io::Result<()> {
    let bytes = usize::try_from(bytes.min(MAX_DATAGRAM)).unwrap_or_default();
    sockopt::set_socket_send_buffer_size_force(socket, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes))?;
    Ok(())
}

async fn send(link: &Link, message: &FromEngine, fd: Option<OwnedFd>) -> io::Result<()> {
    let bytes = cgrant_wire::encode(message).map_err(io::Error::other)?;
    link.send(&bytes, fd).await
}
