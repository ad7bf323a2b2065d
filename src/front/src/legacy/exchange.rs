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

use std::{os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};

use cgrant_wire::{
    Answer, ConnectionId, FdIndex, Legacy, LegacyAnswer, LegacyCall, Op, Refusal,
    legacy::{MAX_DATAGRAM, MAX_SHOWN},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    answer::{Outcome, View},
    socket::{ExchangeSocket, SocketError},
};
use crate::{castoff::Pins, link::Engine};

/// How long a credential may be awaited.
const CREDENTIAL: Duration = Duration::from_secs(10);
/// How long the result may wait to be read to its end.
const RESULT: Duration = Duration::from_secs(30);
/// How long between two looks where there seemed to be room for a process, and was none.
const PAUSE: Duration = Duration::from_millis(20);

/// Why an exchange has no result.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("no credentials within {} s", CREDENTIAL.as_secs())]
    Silent,
    #[error("the broker is ending")]
    Ending,
    #[error("{0}")]
    Refused(Refusal),
}

/// An exchange that was begun.
#[derive(Debug)]
pub struct Exchange {
    engine: Rc<Engine>,
    connection: ConnectionId,
    socket: ExchangeSocket,
    place: Arc<OwnedSemaphorePermit>,
}

impl Exchange {
    /// Begins one over the socket that came with a call: the client is asked for the requestor's credentials. From now on it is
    /// told of failures over the socket alone.
    ///
    /// # Errors
    /// [`SocketError`], with what came.
    pub fn begin(
        engine: Rc<Engine>,
        connection: ConnectionId,
        pins: Pins,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, (SocketError, Pins)> {
        let socket = ExchangeSocket::take(pins)?;
        match socket.kick() {
            Ok(()) => Ok(Self { engine, connection, socket, place: Arc::new(place) }),
            Err(error) => Err((error, socket.into_pins())),
        }
    }

    /// Carries it out, to its end.
    pub async fn run(self, call: LegacyCall) {
        let view = View::of(&call);
        let answer = self.requested(call).await.inspect_err(
            |error| tracing::debug!(connection = self.connection.0, %error, "an exchange failed"),
        );
        match timeout(RESULT, self.deliver(view.outcome(answer.ok()), view)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(connection = self.connection.0, %error, "a result is not sent"),
            Err(_) => tracing::debug!(connection = self.connection.0, "a result is not read"),
        }
    }

    async fn requested(&self, call: LegacyCall) -> Result<LegacyAnswer, Broken> {
        for nth in 1..=call.credentials() {
            if nth > 1 {
                self.socket.kick()?;
            }
            timeout(CREDENTIAL, self.socket.await_messages(nth, &self.place))
                .await
                .map_err(|_| Broken::Silent)??;
        }
        self.ask(call).await
    }

    async fn ask(&self, call: LegacyCall) -> Result<LegacyAnswer, Broken> {
        let socket: OwnedFd = self.socket.duplicate().map_err(SocketError::from)?;
        let op = Op::Legacy(Legacy { exchange: Some(FdIndex(0)), call });
        let pending = self.engine.ask(self.connection, op, vec![socket]).await.map_err(Broken::Refused)?;
        match pending.await.map_err(|_| Broken::Ending)?.result.map_err(Broken::Refused)? {
            Answer::Legacy(answer) => Ok(answer),
            answer => {
                tracing::error!(?answer, "the engine answers another question");
                Err(Broken::Ending)
            }
        }
    }

    async fn deliver(&self, outcome: Outcome, view: View) -> Result<(), Broken> {
        for datagram in &outcome.datagrams {
            match self.socket.send(datagram).await {
                Err(error) if error.is_too_long() => {
                    if self.send_long(datagram).await.is_err() {
                        // A text that does not come is a failure; behind a count nothing can be said any more.
                        return self.fail(&outcome, view).await;
                    }
                }
                sent => sent?,
            }
        }
        self.show(&outcome.tasks).await
    }

    /// Sends a datagram that the socket takes only if the engine lets it.
    async fn send_long(&self, datagram: &[u8]) -> Result<(), Broken> {
        let _room = self.socket.room()?;
        let bytes = u32::try_from(datagram.len()).unwrap_or(u32::MAX).min(MAX_DATAGRAM);
        self.ask(LegacyCall::SendRoom { bytes }).await?;
        Ok(self.socket.send(datagram).await?)
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
        let (mut rest, mut known) = (tasks, None);
        while !rest.is_empty() {
            self.socket.await_room().await?;
            let pids = rest.iter().copied().take(MAX_SHOWN).collect();
            let LegacyAnswer::Shown { count, known: last } =
                self.ask(LegacyCall::ShowTasks { pids, known }).await?
            else {
                return Ok(());
            };
            if count == 0 {
                sleep(PAUSE).await;
            }
            known = last.or(known);
            rest = rest.get(count as usize..).unwrap_or_default();
        }
        Ok(())
    }
}
