//! What is asked of a container that runs: to stop, to start again, to wait.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cgrant_container::{
    Session,
    system::{Answer, Control, ControlError, Phase, Request, State},
};
use cgrant_proto::{Account, Code, names};
use futures_util::StreamExt;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use zbus::{Message, MessageStream, OwnedObjectPath, message::Type};

use super::{Codes, Found};
use crate::{
    Client,
    error::{Doing, Failure},
};

/// Asks all of them first, so that they end at the same time. The exit code.
pub(super) fn stop(client: &Client, names: &[String], seconds: u32) -> u8 {
    let mut codes = Codes::default();
    let asked: Vec<(Found, Control)> =
        names.iter().filter_map(|name| codes.note(ask_to_stop(client, name, seconds))).collect();
    for (found, control) in asked {
        codes.note(until_stopped(client, &found, &control));
    }
    codes.first
}

/// Stops one of them.
pub(super) fn stop_one(client: &Client, name: &str, seconds: u32) -> Result<(), Failure> {
    let (found, control) = ask_to_stop(client, name, seconds)?;
    until_stopped(client, &found, &control)
}

/// The container, and a connection that was made before it could end, to see its end by.
fn ask_to_stop(client: &Client, name: &str, seconds: u32) -> Result<(Found, Control), Failure> {
    let found = Found::new(name, "stop")?;
    let control = match found.run().and_then(|run| Control::connect(&run)) {
        Err(ControlError::NotRunning) => {
            return Err(Failure::Refused(format!(
                "cannot {}: it is not running; 'cgrant info {name}' says how it ended",
                found.doing
            )));
        }
        control => found.asked(control)?,
    };
    let watch = found.control()?;
    found.asked(control.tell(&Request::Stop { seconds }))?;
    // What is frozen can't end in order. Where nobody can thaw it, it is killed when its time is over.
    if found.asked(control.state()).is_ok_and(|state| state.phase != Phase::Stopped) {
        let _ = set_frozen(client, &found, false);
    }
    Ok((found, watch))
}

/// Waits until a container has ended, by itself or not, and its grant with it, so that its name is free.
pub(super) fn until_stopped(client: &Client, found: &Found, control: &Control) -> Result<(), Failure> {
    until_stopped_within(client, found, control, Patience::default())
}

fn until_stopped_within(
    client: &Client,
    found: &Found,
    control: &Control,
    patience: Patience,
) -> Result<(), Failure> {
    match wait_for(control, patience, |state| state.phase == Phase::Stopped) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(patience.over(found, "it has not stopped")),
        // The monitor was killed, and the container with it.
        Err(ControlError::Ended) => {}
        Err(error) => return found.asked(Err(error)),
    }
    until_released(client, found)
}

/// How long something is waited for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Patience {
    seconds: u32,
    /// `None`: for ever.
    until: Option<Instant>,
}

impl Patience {
    /// So many seconds from now.
    pub(super) fn new(seconds: Option<u32>) -> Self {
        let after = |seconds: u32| Instant::now().checked_add(Duration::from_secs(seconds.into()));
        Self { seconds: seconds.unwrap_or_default(), until: seconds.and_then(after) }
    }

    fn left(self) -> PollTimeout {
        let Some(until) = self.until else { return PollTimeout::NONE };
        // Rounded up, so that it does not end before its time.
        let left = until.saturating_duration_since(Instant::now()).saturating_add(Duration::from_millis(1));
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn is_over(self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }

    fn over(self, found: &Found, what: &str) -> Failure {
        Failure::Refused(format!("cannot {}: {what} within {} seconds", found.doing, self.seconds))
    }
}

/// As [`Control::wait_for`]; `None` when the time is over.
fn wait_for(
    control: &Control,
    patience: Patience,
    until: impl Fn(&State) -> bool,
) -> Result<Option<State>, ControlError> {
    let mut answer = control.ask(&Request::Watch)?;
    loop {
        match answer {
            Answer::State(state) if until(&state) || state.ended.is_some() => return Ok(Some(state)),
            Answer::State(_) => {}
            _ => return Err(ControlError::OutOfTurn),
        }
        if !is_readable(control, patience)? {
            return Ok(None);
        }
        answer = control.next()?.0;
    }
}

/// `false` when the time is over.
fn is_readable(control: &Control, patience: Patience) -> Result<bool, ControlError> {
    loop {
        let mut fds = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, patience.left()) {
            Ok(0) if patience.is_over() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(ControlError::Unreachable(errno.into())),
        }
    }
}

/// Waits until the broker has seen that the monitor is gone.
fn until_released(client: &Client, found: &Found) -> Result<(), Failure> {
    let session = match Session::connect(&client.endpoint) {
        Ok(session) => session,
        // It will see that when it comes back, before it answers anybody.
        Err(_) => return Ok(()),
    };
    let mut signals = MessageStream::from(session.connection());
    let manager = session.manager().doing(|| found.doing.clone())?;
    let gone = async {
        // The broker tells those who have called it.
        match manager.get_grant(&found.name, &Account::new()).await {
            Err(error) if error.code() == Some(Code::NoSuchGrant) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        while let Some(message) = signals.next().await {
            if removed(&message?).is_some_and(|name| name == found.name) {
                return Ok(());
            }
        }
        Ok(())
    };
    session.call(gone).doing(|| found.doing.clone())
}

/// The name of the grant that has ended, if that is what the message says.
fn removed(message: &Message) -> Option<String> {
    let header = message.header();
    let is = header.interface()?.as_str() == names::MANAGER && header.member()?.as_str() == "GrantRemoved";
    if !is || message.message_type() != Type::Signal {
        return None;
    }
    let (_, name, ..): (OwnedObjectPath, String, u32, String) = message.body().deserialize().ok()?;
    Some(name)
}

pub(super) fn kill(name: &str, signal: i32) -> Result<(), Failure> {
    let found = Found::new(name, "send a signal to")?;
    let control = found.control()?;
    found.asked(control.tell(&Request::Kill { signal }))
}

/// Freezes or thaws everything in the container; its monitor is outside of that.
pub(super) fn freeze(client: &Client, name: &str, frozen: bool) -> Result<(), Failure> {
    let found = Found::new(name, if frozen { "pause" } else { "resume" })?;
    found.control()?;
    set_frozen(client, &found, frozen)
}

fn set_frozen(client: &Client, found: &Found, frozen: bool) -> Result<(), Failure> {
    let session = client.connect(&found.doing)?;
    let change = || {
        let grant = session.call(session.manager()?.get_grant(&found.name, &Account::new()))?;
        let cgroup = session.cgroup(&grant)?;
        if frozen { session.call(cgroup.freeze()) } else { session.call(cgroup.thaw()) }
    };
    change().doing(|| found.doing.clone())
}

/// Until it has booted, or has stopped.
pub(super) fn wait(client: &Client, name: &str, stopped: bool, patience: Patience) -> Result<(), Failure> {
    let found = Found::new(name, "wait for")?;
    match (found.control(), stopped) {
        (Ok(control), true) => until_stopped_within(client, &found, &control, patience),
        (Ok(_), false) => until_running(&found, patience),
        (Err(Failure::Control { source: ControlError::NotRunning, .. }), true) => Ok(()),
        (Err(failure), _) => Err(failure),
    }
}

/// Until the init of a container that was started has said that it is ready. If it ends before, what it printed last says why.
pub(super) fn until_running(found: &Found, patience: Patience) -> Result<(), Failure> {
    let control = found.run().and_then(|run| Control::connect(&run));
    let waited =
        control.and_then(|control| wait_for(&control, patience, |state| state.phase == Phase::Running));
    let ended = match waited {
        Ok(Some(state)) if state.phase == Phase::Running => return Ok(()),
        Ok(Some(state)) => state.ended,
        Ok(None) => return Err(patience.over(found, "it has not booted")),
        Err(ControlError::NotRunning | ControlError::Ended) => {
            super::state(&found.store, &found.name).and_then(|state| state.ended)
        }
        Err(error) => return found.asked(Err(error)),
    };
    let ended = ended.map_or_else(String::new, |ended| format!(" ({ended})"));
    let printed = super::logs::last_lines(found);
    let text = match printed.is_empty() {
        true => format!("it ended before it had booted{ended}, and printed nothing"),
        false => format!("it ended before it had booted{ended}; it printed last:\n{printed}"),
    };
    Err(Failure::NotBooted { name: found.name.clone(), text })
}
