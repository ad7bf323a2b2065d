//! The helper's loop: takes orders one after the other, and looks at what happens in between.
//!
//! It waits with `poll(2)` for a list that it makes anew each time: there are a dozen descriptors, name servers and
//! sockets come and go, and none that is closed can be left in the list. Without links it waits for its two channels
//! only, without a timeout.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use cgrant_sys::seqpacket::{Channel, ChannelError};
use cgrant_wire::{
    boot::{FromChild, ToChild},
    net::{FromNet, NetFailure, OrderId, Reply, ToNet},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::state::Net;

/// Messages taken from the engine before others get their turn.
const TURN: usize = 8;
/// Most messages that wait for the engine to read.
const MAX_OUTBOX: usize = 65_536;

/// The loop's own state.
pub struct Server {
    net: Net,
    control: Channel,
    engine: Channel,
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// The engine does not read what it is sent.
    is_stuck: bool,
}

/// What is to be done next.
enum Next {
    GoOn,
    End,
}

impl Server {
    /// A server of these channels.
    ///
    /// # Errors
    /// If a channel can't be made non-blocking.
    pub fn new(net: Net, control: Channel, engine: Channel) -> io::Result<Self> {
        control.set_nonblocking(true)?;
        engine.set_nonblocking(true)?;
        Ok(Self { net, control, engine, outbox: VecDeque::new(), is_stuck: false })
    }

    /// Tells the supervisor.
    pub fn tell_supervisor(&self, message: &FromChild) {
        let sent = cgrant_wire::encode(message).map_err(|error| error.to_string());
        let sent = sent.and_then(|bytes| self.control.send(&bytes, &[]).map_err(|error| error.to_string()));
        if let Err(error) = sent {
            tracing::error!(error, "the supervisor can't be told");
        }
    }

    /// Serves until the supervisor says that it is over, or one of the channels is closed.
    ///
    /// # Errors
    /// If waiting fails.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            for fd in self.wait()? {
                let next = if fd == self.control.as_fd().as_raw_fd() {
                    self.control()
                } else if fd == self.engine.as_fd().as_raw_fd() {
                    self.engine()
                } else {
                    if self.is_ready(fd) {
                        self.net.ready(fd);
                    }
                    Next::GoOn
                };
                if matches!(next, Next::End) {
                    return Ok(());
                }
            }
            self.net.tend(Instant::now());
            for event in self.net.take_events() {
                self.send(&FromNet::Event(event), Vec::new());
            }
            self.flush();
            if self.is_stuck {
                return Err(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "the engine does not read what it is told",
                ));
            }
        }
    }

    /// Waits, and gives the descriptors that something happened to.
    fn wait(&self) -> io::Result<Vec<RawFd>> {
        let engine = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.engine, engine)];
        let others = self.net.descriptors();
        fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let timeout =
            self.net.deadline().map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().filter(|fd| !fd.revents().is_empty());
        Ok(ready.map(|fd| fd.as_fd().as_raw_fd()).collect())
    }

    /// Is it still so? What came before it may have closed the descriptor, and opened another one with its number.
    ///
    /// An attacker wants the helper to wait for ever: he asks a bridge's router, whose socket is closed by somebody's order, and a
    /// name server that has just been started has its number; the helper would wait for that one's end.
    fn is_ready(&self, fd: RawFd) -> bool {
        let descriptors = self.net.descriptors();
        let Some(fd) = descriptors.iter().find(|own| own.as_raw_fd() == fd) else { return false };
        let mut fds = [PollFd::from_borrowed_fd(*fd, PollFlags::IN)];
        poll(&mut fds, Some(&timespec(Duration::ZERO))).is_ok_and(|count| count > 0)
    }

    fn control(&self) -> Next {
        loop {
            match self.control.receive() {
                Ok(Some(received)) => match cgrant_wire::decode::<ToChild>(&received.bytes) {
                    Ok(ToChild::Stop) => return Next::End,
                    _ => tracing::error!("the supervisor sent a message that has no place here"),
                },
                Ok(None) => return Next::End,
                Err(ChannelError::WouldBlock) => return Next::GoOn,
                Err(error) => {
                    tracing::error!(%error, "the supervisor can't be understood");
                    return Next::End;
                }
            }
        }
    }

    fn engine(&mut self) -> Next {
        for _ in 0..TURN {
            let received = match self.engine.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return Next::End,
                Err(ChannelError::WouldBlock) => return Next::GoOn,
                Err(error) => {
                    tracing::error!(%error, "the engine can't be understood");
                    return Next::End;
                }
            };
            match cgrant_wire::decode::<ToNet>(&received.bytes) {
                Ok(ToNet::Restore { bridges, links }) => {
                    self.net.restore(&bridges, links);
                    for event in self.net.take_events() {
                        self.send(&FromNet::Event(event), Vec::new());
                    }
                    self.send(&FromNet::Restored, Vec::new());
                }
                Ok(ToNet::Order { id, order }) => {
                    let outcome = self.net.carry_out(order, received.fds);
                    self.answer(id, outcome);
                }
                Err(error) => {
                    tracing::error!(%error, "the engine sent what no engine of ours sends");
                    return Next::End;
                }
            }
        }
        Next::GoOn
    }

    fn answer(&mut self, id: OrderId, outcome: Result<(Reply, Vec<OwnedFd>), NetFailure>) {
        let (result, fds) = match outcome {
            Ok((reply, fds)) => (Ok(reply), fds),
            Err(failure) => (Err(failure), Vec::new()),
        };
        // What the order brought about is told before its answer: an engine that removes a link knows that it is gone.
        for event in self.net.take_events() {
            self.send(&FromNet::Event(event), Vec::new());
        }
        self.send(&FromNet::Answer { id, result }, fds);
    }

    /// Sends `message`, now or when the engine reads again.
    fn send(&mut self, message: &FromNet, fds: Vec<OwnedFd>) {
        match cgrant_wire::encode(message) {
            Ok(bytes) if self.outbox.len() < MAX_OUTBOX => self.outbox.push_back((bytes, fds)),
            Ok(_) => self.is_stuck = true,
            Err(error) => tracing::error!(%error, "a message to the engine could not be encoded"),
        }
        self.flush();
    }

    fn flush(&mut self) {
        while let Some((bytes, fds)) = self.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match self.engine.send(bytes, &borrowed) {
                Err(ChannelError::WouldBlock) => return,
                // If the engine is gone, the next look at its channel says so.
                Ok(()) | Err(_) => drop(self.outbox.pop_front()),
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
