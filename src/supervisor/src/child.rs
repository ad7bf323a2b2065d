//! A place in the broker that a child process fills, and what is known of the one that does.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use cgrant_sys::{ChannelError, Exit};
use cgrant_wire::{
    boot::{FromChild, FrontKind, ToChild},
    patience,
};

use crate::{
    backoff::{Backoff, LONGEST},
    process::Process,
};

/// More messages than this no child has reason to send; one that does is out of its mind or in foreign hands.
const MAX_FRONT_MESSAGES: u32 = 8;
/// How long at most to wait for a network helper that did serve: what it died of was one caller's request maybe, and the
/// others wait for theirs.
const LONGEST_OF_NET: Duration = Duration::from_secs(2);
/// Longest sentence of a child that is kept, in characters.
const MAX_REASON: usize = 1000;

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The engine.
    Engine,
    /// A front.
    Front(FrontKind),
    /// The network helper.
    Net,
}

impl Role {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Front(FrontKind::Socket) => "socket front",
            Self::Front(FrontKind::Bus) => "bus front",
            Self::Net => "network helper",
        }
    }
}

/// Is there a process, and how is it?
#[derive(Debug)]
pub enum State {
    /// None; one shall be started at this moment.
    Due(Instant),
    /// One runs.
    Running(Running),
    /// None, and none shall be.
    Gone,
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    /// The process.
    pub process: Process,
    started: Instant,
    ready: bool,
    messages: u32,
    control_open: bool,
    /// Killed by us: its end is no failure.
    dismissed: bool,
    /// When it was killed, for whatever reason.
    killed: Option<Instant>,
    /// It was killed long ago: it hangs in the kernel, and that was told.
    stuck: bool,
    /// Which process in this place it is.
    number: u64,
    reason: Option<String>,
    /// Since when it owes a sign of life.
    asked: Option<Instant>,
}

impl Running {
    fn kill(&mut self) {
        self.process.kill();
        self.killed.get_or_insert_with(Instant::now);
    }

    /// When it must have ended, if it was killed; until it is told that it has not.
    fn must_end(&self) -> Option<Instant> {
        self.killed.filter(|_| !self.stuck).map(|killed| killed + patience::KILLED)
    }
}

/// What a child said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// That it serves.
    Ready,
    /// What came of reading the configuration.
    Reloaded(Result<(), String>),
    /// The engine: that the network helper of this number gives no sign.
    NetHangs(u64),
    /// Nothing that asks for an answer.
    Nothing,
}

/// How a child's life ended.
#[derive(Debug)]
pub struct Death {
    /// In words: its own reason, or how it ended.
    pub reason: String,
    /// How long to wait before the next.
    pub wait: Duration,
    /// Was it our doing?
    pub dismissed: bool,
}

/// A place for a child.
#[derive(Debug)]
pub struct Slot {
    /// What it is for.
    pub role: Role,
    /// Its process.
    pub state: State,
    backoff: Backoff,
    has_failed: bool,
    /// How many processes were in this place.
    count: u64,
}

impl Slot {
    /// A place that is to be filled at once.
    pub fn new(role: Role) -> Self {
        let state = State::Due(Instant::now());
        Self { role, state, backoff: Backoff::default(), has_failed: false, count: 0 }
    }

    /// How many processes it had.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Fills it.
    pub fn fill(&mut self, process: Process) {
        self.count += 1;
        tracing::debug!(child = self.role.name(), pid = process.pid, "started");
        self.state = State::Running(Running {
            process,
            started: Instant::now(),
            ready: false,
            messages: 0,
            control_open: true,
            dismissed: false,
            killed: None,
            stuck: false,
            number: self.count,
            reason: None,
            asked: None,
        });
    }

    /// The process, if there is one.
    pub fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            State::Due(_) | State::Gone => None,
        }
    }

    /// Does it serve?
    pub fn is_ready(&self) -> bool {
        self.running().is_some_and(|running| running.ready && running.killed.is_none())
    }

    /// Can the broker be called ready as far as this is concerned? Without a network helper, on a host where it can't run, it
    /// gives everything but links.
    pub fn is_settled(&self) -> bool {
        self.is_ready() || self.may_lack() && self.has_failed
    }

    /// Does the broker go on without it?
    pub fn may_lack(&self) -> bool {
        self.role == Role::Net
    }

    /// When a process shall be started, if none runs.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(when) => Some(when),
            State::Running(_) | State::Gone => None,
        }
    }

    /// Notes that starting it failed and when to try again.
    pub fn start_failed(&mut self) {
        self.has_failed = true;
        let wait = self.backoff.died_after(Duration::ZERO, LONGEST);
        self.state = State::Due(Instant::now() + wait);
    }

    /// Kills the process because it is of no use any more.
    pub fn dismiss(&mut self) {
        if let State::Running(running) = &mut self.state {
            running.dismissed = true;
            running.kill();
        }
    }

    /// Kills the process because of what it did.
    fn condemn(&mut self, reason: &str) {
        if let State::Running(running) = &mut self.state {
            running.reason = Some(reason.to_owned());
            running.control_open = false;
            running.kill();
        }
    }

    /// Kills the process of this number, if it is the one that runs, because somebody says that it hangs.
    pub fn end_hung(&mut self, number: u64) {
        if self.running().is_some_and(|running| running.number == number && running.killed.is_none()) {
            self.condemn("it gave no sign and was killed");
        }
    }

    /// Asks engine or front for a sign of life, if it serves and owes none. Who owes one for longer than `patience` hangs, and is killed.
    pub fn ask(&mut self, now: Instant, patience: Duration) {
        if self.role == Role::Net || !self.is_ready() {
            return;
        }
        match self.running().and_then(|running| running.asked) {
            Some(asked) if now.saturating_duration_since(asked) >= patience => {
                self.condemn("it gave no sign of life and was killed");
            }
            Some(_) => {}
            None => {
                // A channel that takes nothing more is one that nobody reads: it counts as asked.
                let _ = self.send(&ToChild::AreYouAlive, &[]);
                if let State::Running(running) = &mut self.state {
                    running.asked = Some(now);
                }
            }
        }
    }

    /// Does it owe a sign of life? One that does not run owes none: it is started again.
    pub fn is_silent(&self) -> bool {
        self.running().is_some_and(|running| running.asked.is_some())
    }

    /// Which process in this place it is.
    pub fn number(&self) -> u64 {
        self.count
    }

    /// When to look whether it has ended, having been killed.
    pub fn must_end(&self) -> Option<Instant> {
        self.running().and_then(Running::must_end)
    }

    /// Was it killed, and hangs in the kernel?
    pub fn is_stuck(&self) -> bool {
        self.running().is_some_and(|running| running.stuck)
    }

    /// Notes that it hangs in the kernel, if it was killed long ago. -> its pid, the first time.
    pub fn notice_stuck(&mut self, now: Instant) -> Option<u32> {
        let State::Running(running) = &mut self.state else { return None };
        running.must_end().filter(|moment| *moment <= now)?;
        running.stuck = true;
        self.has_failed = true;
        Some(running.process.pid)
    }

    /// Reads one message. Whatever a child sends, the supervisor only notes it or kills that child.
    pub fn read(&mut self) -> Said {
        let State::Running(running) = &mut self.state else { return Said::Nothing };
        let control = &running.process.control;
        // A child that ended with unread messages resets its channel; the kernel says that first, and only
        // then gives what the child had sent.
        let received = match control.receive() {
            Err(ChannelError::Closed) => control.receive(),
            received => received,
        };
        let bytes = match received {
            Ok(Some(received)) => received.bytes,
            Err(ChannelError::WouldBlock) => return Said::Nothing,
            Ok(None) | Err(ChannelError::Closed) => {
                // A child without its channel can't be told to stop. Mostly it is just about to end.
                running.control_open = false;
                running.kill();
                return Said::Nothing;
            }
            Err(error) => {
                self.condemn(&error.to_string());
                return Said::Nothing;
            }
        };
        let message = cgrant_wire::decode(&bytes);
        // As many as it was asked for; they count for nothing.
        if matches!(message, Ok(FromChild::Alive)) && running.asked.take().is_some() {
            return Said::Nothing;
        }
        running.messages = running.messages.saturating_add(1);
        if self.role != Role::Engine && running.messages > MAX_FRONT_MESSAGES {
            self.condemn("it sends too many messages");
            return Said::Nothing;
        }
        match message {
            Ok(FromChild::Ready) => {
                running.ready = true;
                Said::Ready
            }
            Ok(FromChild::Failed(reason)) => {
                running.reason = Some(printable(&reason));
                Said::Nothing
            }
            Ok(FromChild::Reloaded(result)) if self.role == Role::Engine => Said::Reloaded(result),
            Ok(FromChild::NetHangs(number)) if self.role == Role::Engine => Said::NetHangs(number),
            Ok(FromChild::Reloaded(_) | FromChild::NetHangs(_) | FromChild::Alive) | Err(_) => {
                self.condemn("it sends messages that are not its own to send");
                Said::Nothing
            }
        }
    }

    /// Is there still a channel to be watched?
    pub fn control_open(&self) -> bool {
        self.running().is_some_and(|running| running.control_open)
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// [`ChannelError`]; [`ChannelError::Closed`] if no process runs.
    pub fn send(&self, message: &ToChild, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let running = self.running().ok_or(ChannelError::Closed)?;
        let bytes = cgrant_wire::encode(message).map_err(|_| ChannelError::TooLong)?;
        running.process.control.send(&bytes, fds)
    }

    /// Takes note of the end of the process, whose last words are read first. A new one is due after a while.
    pub fn bury(&mut self) -> Option<Death> {
        while self.control_open() {
            let before = self.running()?.messages;
            self.read();
            if self.running()?.messages == before {
                break;
            }
        }
        let State::Running(running) = std::mem::replace(&mut self.state, State::Gone) else { return None };
        let exit = running.process.pidfd.wait();
        let how = exit.as_ref().map_or_else(|error| error.to_string(), crate::process::describe);
        let wait = if running.dismissed {
            Duration::ZERO
        } else {
            let served = running.ready && self.role == Role::Net;
            let longest = if served { LONGEST_OF_NET } else { LONGEST };
            self.backoff.died_after(running.started.elapsed(), longest)
        };
        self.state = State::Due(Instant::now() + wait);
        self.has_failed |= !running.dismissed;
        let in_order = matches!(exit, Ok(Exit::Code(0)));
        let reason = running.reason.unwrap_or(if in_order {
            "it ended without being told to".to_owned()
        } else {
            how
        });
        Some(Death { reason, wait, dismissed: running.dismissed })
    }
}

/// A child's sentence as it may be shown: bounded, one line.
fn printable(text: &str) -> String {
    text.chars().take(MAX_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_childs_sentence_cannot_harm_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(printable(&"x".repeat(5000)).len(), MAX_REASON);
    }
}
