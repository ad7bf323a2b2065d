//! The twin of a method, whose name ends with Scm: credentials come over a socket of the client's, and the result goes back over
//! it.
//!
//! ```text
//! front    '1'                       before the reply to the call
//! client   a byte and credentials    the requestor's
//! front    '1'                       if there is somebody else, or an owner, to be named
//! client   a byte and credentials    whose
//! front    the result                at once, or as much as there is room for
//! ```
//!
//! The credentials stay in the socket until the engine takes them: this process, which parses what users send, can say nothing
//! about who somebody is. An exchange that makes no progress ends; CGManager waited for ever, and had soon no descriptors left.

use std::{cell::Cell, os::fd::OwnedFd, rc::Rc, time::Duration};

use cgrant_wire::{
    Answer, ConnectionId, FdIndex, Legacy, LegacyAnswer, LegacyCall, Op, Refusal,
    legacy::{MAX_DATAGRAM, MAX_SHOWN, OnSocket},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    answer::{Outcome, View},
    socket::{ExchangeSocket, SocketError},
};
use crate::{castoff::Pins, link::Engine};

/// How long a credential may be awaited.
const CREDENTIAL: Duration = Duration::from_secs(10);
/// How long the result may wait for somebody to read some of it.
const RESULT: Duration = Duration::from_secs(30);
/// How long it may take in all, while it is read bit by bit: there is room for a few processes at a time, and a busy machine.
const WHOLE: Duration = Duration::from_secs(300);
/// How long between two looks where there seemed to be room for a process, and was none.
const PAUSE: Duration = Duration::from_millis(20);

/// Why an exchange has no result.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The client.
    #[error("no credentials within {} s", CREDENTIAL.as_secs())]
    Silent,
    /// The client, at the end.
    #[error("nothing of the result was read within {} s", RESULT.as_secs())]
    Unread,
    /// The engine is gone.
    #[error("the broker is ending")]
    Ending,
    /// The engine refused.
    #[error("{0}")]
    Refused(Refusal),
}

/// An exchange that was begun.
#[derive(Debug)]
pub struct Exchange {
    engine: Rc<Engine>,
    connection: ConnectionId,
    socket: ExchangeSocket,
    /// How much room the socket had before it was given more.
    room: Cell<Option<u32>>,
    _place: OwnedSemaphorePermit,
}

impl Exchange {
    /// Begins one over the socket that came with a call: the client is asked for the requestor's credentials. From now on it is
    /// told of failures over the socket alone.
    ///
    /// # Errors
    /// [`Broken`], with what came.
    pub async fn begin(
        engine: Rc<Engine>,
        connection: ConnectionId,
        pins: Pins,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, (Broken, Pins)> {
        let socket = ExchangeSocket::take(pins).map_err(|(error, pins)| (error.into(), pins))?;
        let exchange = Self { engine, connection, socket, room: Cell::new(None), _place: place };
        match exchange.invite().await {
            Ok(()) => Ok(exchange),
            Err(error) => Err((error, exchange.socket.into_pins())),
        }
    }

    async fn invite(&self) -> Result<(), Broken> {
        if !self.socket.passes_credentials()? {
            self.have_done(OnSocket::PassCredentials).await?;
        }
        Ok(self.socket.kick()?)
    }

    /// Carries it out, to its end.
    pub async fn run(self, call: LegacyCall) {
        let view = View::of(&call);
        let answer = self.requested(call).await.inspect_err(
            |error| tracing::debug!(connection = self.connection.0, %error, "an exchange failed"),
        );
        match timeout(WHOLE, self.deliver(view.outcome(answer.ok()), view)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(connection = self.connection.0, %error, "a result is not sent"),
            Err(_) => tracing::debug!(connection = self.connection.0, "a result is not read"),
        }
        self.take_room_back().await;
    }

    async fn requested(&self, call: LegacyCall) -> Result<LegacyAnswer, Broken> {
        within(self.socket.await_first()).await?;
        if call.credentials() > 1 {
            self.socket.kick()?;
            within(self.await_second()).await?;
        }
        self.ask(call).await
    }

    async fn await_second(&self) -> Result<(), Broken> {
        while let Some(behind) = self.socket.await_second().await? {
            if self.have_done(OnSocket::Look { behind }).await? == LegacyAnswer::Existed(true) {
                break;
            }
        }
        Ok(())
    }

    /// Has the engine do something with the socket.
    async fn have_done(&self, wanted: OnSocket) -> Result<LegacyAnswer, Broken> {
        self.ask(LegacyCall::Socket(wanted)).await
    }

    async fn ask(&self, call: LegacyCall) -> Result<LegacyAnswer, Broken> {
        let socket: OwnedFd = self.socket.duplicate().map_err(SocketError::from)?;
        let op = Op::Legacy(Legacy { exchange: Some(FdIndex(0)), call });
        let pending =
            self.engine.ask(self.connection, false, op, vec![socket]).await.map_err(Broken::Refused)?;
        match pending.await.map_err(|_| Broken::Ending)?.result.map_err(Broken::Refused)? {
            Answer::Legacy(answer) => Ok(answer),
            answer => {
                tracing::error!(?answer, "the engine answers another question");
                Err(Broken::Ending)
            }
        }
    }

    async fn deliver(&self, outcome: Outcome, view: View) -> Result<(), Broken> {
        timeout(RESULT, self.send(&outcome, view)).await.map_err(|_| Broken::Unread)??;
        self.show(&outcome.tasks).await
    }

    async fn send(&self, outcome: &Outcome, view: View) -> Result<(), Broken> {
        for datagram in &outcome.datagrams {
            match self.socket.send(datagram).await {
                Err(error) if error.is_too_long() => {
                    if self.send_long(datagram).await.is_err() {
                        // A text that does not come is a failure; behind a count nothing can be said any more.
                        return self.fail(outcome, view).await;
                    }
                }
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Sends a datagram that the socket takes only if the engine lets it.
    async fn send_long(&self, datagram: &[u8]) -> Result<(), Broken> {
        self.room.set(Some(self.socket.room()?));
        let bytes = u32::try_from(datagram.len()).unwrap_or(u32::MAX).min(MAX_DATAGRAM);
        self.have_done(OnSocket::SendRoom { bytes }).await?;
        self.socket.send(datagram).await?;
        self.take_room_back().await;
        Ok(())
    }

    /// The socket has no more room than before, whatever it was given: whoever has it too could fill it with what nobody reads, and
    /// pass on to the next.
    async fn take_room_back(&self) {
        let Some(bytes) = self.room.take() else { return };
        if let Err(error) = self.have_done(OnSocket::NoMoreRoom { bytes }).await {
            tracing::debug!(connection = self.connection.0, %error, "a socket keeps its room");
        }
    }

    async fn fail(&self, outcome: &Outcome, view: View) -> Result<(), Broken> {
        if let [_] = outcome.datagrams.as_slice() {
            for datagram in view.outcome(None).datagrams {
                self.socket.send(&datagram).await?;
            }
        }
        Ok(())
    }

    /// Has the engine show processes to the client, as there is room for them.
    async fn show(&self, tasks: &[u32]) -> Result<(), Broken> {
        let (mut rest, mut known, mut end) = (tasks, None, Instant::now() + RESULT);
        while !rest.is_empty() {
            let some = timeout_at(end, self.show_some(rest, known)).await.map_err(|_| Broken::Unread)??;
            let LegacyAnswer::Shown { count, known: last } = some else { return Ok(()) };
            if count == 0 {
                sleep(PAUSE).await;
            } else {
                end = Instant::now() + RESULT;
            }
            known = last.or(known);
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        Ok(())
    }

    async fn show_some(&self, tasks: &[u32], known: Option<u32>) -> Result<LegacyAnswer, Broken> {
        self.socket.await_room().await?;
        let pids = tasks.iter().copied().take(MAX_SHOWN).collect();
        self.have_done(OnSocket::ShowTasks { pids, known }).await
    }
}

/// The client has this long to name somebody.
async fn within<E: Into<Broken>>(awaited: impl Future<Output = Result<(), E>>) -> Result<(), Broken> {
    timeout(CREDENTIAL, awaited).await.map_err(|_| Broken::Silent)?.map_err(Into::into)
}
