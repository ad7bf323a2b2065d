//! The link to the engine: requests out, answers, connections and events in, over the SEQPACKET pair.
//!
//! The engine's answers are matched to requests by number. The end of the link is the end of this process: a
//! front has no state, and the supervisor starts a new one.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use cgrant_sys::{Channel, ChannelError, Received, close_aside};
use cgrant_wire::{
    Answer, Audience, BusClient, ConnectionId, Consent, FromEngine, Op, Question, QuestionId, Refusal,
    RefusalCode, RequestId, Surface, ToEngine,
};
use tokio::sync::{mpsc, oneshot};

use crate::watched::Watched;

/// Messages that wait to be sent; whoever wants to send more waits.
const QUEUE: usize = 64;

/// Why the link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end is closed.
    #[error("the engine has closed the link")]
    Closed,
    /// A message can't be decoded; both ends are of one build, so this is a fault.
    #[error("the engine sent a malformed message")]
    Malformed(#[from] cgrant_wire::FrameError),
    /// The channel failed.
    #[error("the link to the engine failed")]
    Channel(#[source] ChannelError),
    /// The descriptor can't be watched.
    #[error("cannot watch the link to the engine")]
    Io(#[from] io::Error),
}

/// A channel in the runtime, which watches a second descriptor of the same socket.
#[derive(Debug)]
pub struct AsyncChannel {
    channel: Channel,
    watched: Watched,
}

impl AsyncChannel {
    /// Registers a channel with the runtime, and makes it non-blocking.
    ///
    /// # Errors
    /// Those of `fcntl(2)` and `epoll_ctl(2)`.
    pub fn new(channel: Channel) -> io::Result<Self> {
        channel.set_nonblocking(true)?;
        let watched = Watched::new(channel.try_clone()?)?;
        Ok(Self { channel, watched })
    }

    /// Waits for a message; `None` at the end.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn receive(&self) -> Result<Option<Received>, LinkError> {
        loop {
            match self.watched.read(|| ready(self.channel.receive())).await? {
                Err(ChannelError::Closed) => return Ok(None),
                // No room for one more: what came is closed already. Ending would close everybody's connections.
                Err(ChannelError::TooManyFds) => tracing::error!("this process has no descriptors left"),
                result => return result.map_err(LinkError::Channel),
            }
        }
    }

    /// Sends a message if there is room for it now; says whether there was.
    fn try_send(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<bool, ChannelError> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.channel.send(bytes, &fds) {
            Ok(()) => Ok(true),
            Err(ChannelError::WouldBlock) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a message, waiting for room.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), LinkError> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.watched.write(|| ready(self.channel.send(bytes, &fds))).await? {
            Err(ChannelError::Closed) => Err(LinkError::Closed),
            result => result.map_err(LinkError::Channel),
        }
    }
}

/// Tells the runtime from anything else that the channel is to be waited for.
fn ready<T>(result: Result<T, ChannelError>) -> io::Result<Result<T, ChannelError>> {
    match result {
        Err(ChannelError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        result => Ok(result),
    }
}

/// The engine's word on a request, and the descriptors that came with it.
#[derive(Debug)]
pub struct Reply {
    /// The answer or the refusal.
    pub result: Result<Answer, Refusal>,
    /// What the answer names by position.
    pub fds: Vec<OwnedFd>,
}

/// A request that was sent.
pub type Pending = oneshot::Receiver<Reply>;

/// The sending side, and the requests that wait for an answer.
#[derive(Debug)]
pub struct Engine {
    channel: Rc<AsyncChannel>,
    queue: mpsc::Sender<(Vec<u8>, Vec<OwnedFd>)>,
    /// How many messages are in the queue, or taken from it and not sent yet.
    queued: Rc<Cell<usize>>,
    pending: RefCell<HashMap<RequestId, oneshot::Sender<Reply>>>,
    next: Cell<u64>,
}

/// What comes from the engine by itself.
#[derive(Debug)]
pub enum Incoming {
    /// A connection was accepted.
    Connected {
        /// Its number.
        connection: ConnectionId,
        /// The listener that it came by.
        surface: Surface,
        /// The peer's uid.
        uid: u32,
        /// The account that it is counted to.
        account: u32,
        /// The uid that the peer has in its own user namespace, if that is another one and known.
        claim: Option<u32>,
        /// What it is told of, if it is of anything.
        audience: Option<Audience>,
        /// The socket.
        socket: OwnedFd,
    },
    /// Something happened.
    Event(Box<cgrant_wire::Event>, Audience),
    /// Polkit is to be asked, about this process if the subject is one.
    Ask(Box<Question>, Option<OwnedFd>),
    /// An answer is not wanted any more.
    Withdraw(QuestionId),
}

impl Engine {
    /// The sending side, and the task that sends.
    pub fn new(channel: Rc<AsyncChannel>) -> (Rc<Self>, impl Future<Output = LinkError>) {
        let (queue, mut messages) = mpsc::channel::<(Vec<u8>, Vec<OwnedFd>)>(QUEUE);
        let queued = Rc::new(Cell::new(0_usize));
        let engine = Rc::new(Self {
            channel: Rc::clone(&channel),
            queue,
            queued: Rc::clone(&queued),
            pending: RefCell::default(),
            next: Cell::new(1),
        });
        let sending = async move {
            while let Some((bytes, fds)) = messages.recv().await {
                if let Err(error) = channel.send(&bytes, &fds).await {
                    return error;
                }
                queued.set(queued.get().saturating_sub(1));
                // The engine may have closed its own by now, and these must not be the last: see `castoff`.
                drop(close_aside(fds));
            }
            LinkError::Closed
        };
        (engine, sending)
    }

    /// Asks for an operation. Requests of one task reach the engine in its order.
    ///
    /// # Errors
    /// A refusal if it can't be sent at all.
    pub async fn ask(
        &self,
        connection: ConnectionId,
        interactive: bool,
        op: Op,
        fds: Vec<OwnedFd>,
    ) -> Result<Pending, Refusal> {
        self.send_numbered(|id| ToEngine::Request { id, connection, interactive, op }, fds).await
    }

    /// Introduces a client of the bus; the answer is its connection's number.
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn introduce(&self, client: BusClient, pidfd: Option<OwnedFd>) -> Result<Pending, Refusal> {
        self.send_numbered(|id| ToEngine::BusClient { id, client }, pidfd.into_iter().collect()).await
    }

    /// Tells that a connection has ended.
    pub async fn closed(&self, connection: ConnectionId) {
        self.tell(&ToEngine::Closed { connection }).await;
    }

    /// Tells what polkit says to a question.
    pub async fn consent(&self, question: QuestionId, consent: Consent) {
        self.tell(&ToEngine::Consent { question, consent }).await;
    }

    /// Tells whether polkit can be asked.
    pub async fn polkit(&self, there: bool) {
        self.tell(&ToEngine::Polkit { there }).await;
    }

    async fn tell(&self, message: &ToEngine) {
        match cgrant_wire::encode(message) {
            // A queue without receiver is a link that has ended, and this process with it.
            Ok(bytes) => drop(self.send(bytes, Vec::new()).await),
            Err(error) => tracing::error!(%error, "cannot encode a message to the engine"),
        }
    }

    /// How many requests wait for their answer.
    pub fn waiting(&self) -> usize {
        self.pending.borrow().len()
    }

    /// Sends a message behind those that wait, at once if none does. `false` if the link has ended.
    async fn send(&self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> bool {
        // Where it can't be sent at once, for whatever reason, the task that sends meets the same, and waits or ends the link.
        if self.queued.get() == 0 && matches!(self.channel.try_send(&bytes, &fds), Ok(true)) {
            return true;
        }
        let Ok(place) = self.queue.reserve().await else { return false };
        self.queued.set(self.queued.get() + 1);
        place.send((bytes, fds));
        true
    }

    async fn send_numbered(
        &self,
        message: impl FnOnce(RequestId) -> ToEngine,
        fds: Vec<OwnedFd>,
    ) -> Result<Pending, Refusal> {
        let id = RequestId(self.next.get());
        self.next.set(id.0.wrapping_add(1));
        let bytes = cgrant_wire::encode(&message(id))
            .map_err(|error| Refusal::new(RefusalCode::InvalidArgument, error.to_string()))?;
        let (answer, pending) = oneshot::channel();
        self.pending.borrow_mut().insert(id, answer);
        if !self.send(bytes, fds).await {
            self.pending.borrow_mut().remove(&id);
            return Err(Refusal::new(RefusalCode::Internal, "the broker is ending"));
        }
        Ok(pending)
    }

    /// Takes one message of the engine's: an answer goes to whoever waits, the rest is given back.
    ///
    /// # Errors
    /// [`LinkError::Malformed`].
    pub fn take(&self, received: Received) -> Result<Option<Incoming>, LinkError> {
        match cgrant_wire::decode(&received.bytes)? {
            FromEngine::Answer { id, result } => {
                if let Some(answer) = self.pending.borrow_mut().remove(&id) {
                    // Who asked may be gone; the descriptors are then closed here.
                    let _ = answer.send(Reply { result, fds: received.fds });
                }
                Ok(None)
            }
            FromEngine::Connected { connection, surface, uid, account, claim, audience, pid: _ } => {
                match received.fds.into_iter().next() {
                    Some(socket) => Ok(Some(Incoming::Connected {
                        connection,
                        surface,
                        uid,
                        account,
                        claim,
                        audience,
                        socket,
                    })),
                    None => {
                        tracing::error!(connection = connection.0, "a connection came without its socket");
                        Ok(None)
                    }
                }
            }
            FromEngine::Event { event, audience } => Ok(Some(Incoming::Event(Box::new(event), audience))),
            FromEngine::Ask(question) => {
                Ok(Some(Incoming::Ask(Box::new(question), received.fds.into_iter().next())))
            }
            FromEngine::Withdraw(question) => Ok(Some(Incoming::Withdraw(question))),
        }
    }
}
