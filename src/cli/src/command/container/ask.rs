//! What is asked of a container that runs: to stop, to start again, to wait.

use cgrant_container::{
    Session,
    system::{Control, ControlError, Phase, Request},
};
use cgrant_proto::{Account, Code, names};
use futures_util::StreamExt;
use zbus::{Message, MessageStream, OwnedObjectPath, message::Type};

use super::Found;
use crate::{
    Client,
    error::{Doing, Failure},
};

/// Asks all of them first, so that they end at the same time.
pub(super) fn stop(client: &Client, names: &[String], seconds: u32) -> Result<(), Failure> {
    let found = names.iter().map(|name| Found::new(name, "stop"));
    let found: Vec<Found> = found.collect::<Result<_, _>>()?;
    let controls: Vec<(&Found, Control)> =
        found.iter().map(|found| Ok((found, found.control()?))).collect::<Result<_, Failure>>()?;
    let stopping = controls.iter().map(|(found, control)| {
        let watch = found.control()?;
        found.asked(control.tell(&Request::Stop { seconds }))?;
        Ok((*found, watch))
    });
    let stopping: Vec<(&Found, Control)> = stopping.collect::<Result<_, Failure>>()?;
    stopping.into_iter().try_for_each(|(found, control)| until_stopped(client, found, control))
}

/// Waits until a container has ended, by itself or not, and its grant with it, so that its name is free.
fn until_stopped(client: &Client, found: &Found, control: Control) -> Result<(), Failure> {
    match control.wait_for(|state| state.phase == Phase::Stopped) {
        // The monitor was killed, and the container with it.
        Ok(_) | Err(ControlError::Ended) => {}
        Err(error) => return found.asked(Err(error)),
    }
    until_released(client, found)
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

pub(super) fn restart(name: &str, seconds: u32) -> Result<(), Failure> {
    let found = Found::new(name, "restart")?;
    let control = found.control()?;
    found.asked(control.tell(&Request::Restart { seconds }))
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
    let doing = || found.doing.clone();
    let session = client.connect(&found.doing)?;
    let change = || {
        let grant = session.call(session.manager()?.get_grant(name, &Account::new()))?;
        let cgroup = session.cgroup(&grant)?;
        if frozen { session.call(cgroup.freeze()) } else { session.call(cgroup.thaw()) }
    };
    change().doing(doing)
}

/// Until it has booted, or has stopped.
pub(super) fn wait(client: &Client, name: &str, stopped: bool) -> Result<(), Failure> {
    let found = Found::new(name, "wait for")?;
    match (found.control(), stopped) {
        (Ok(control), true) => until_stopped(client, &found, control),
        (Ok(_), false) => until_running(&found),
        (Err(Failure::Control { source: ControlError::NotRunning, .. }), true) => Ok(()),
        (Err(failure), _) => Err(failure),
    }
}

/// Until the init of a container that was started has said that it is ready. If it ends before, what it printed last says why.
pub(super) fn until_running(found: &Found) -> Result<(), Failure> {
    let control = found.run().and_then(|run| Control::connect(&run));
    let ended = match control.and_then(|control| control.wait_for(|state| state.phase == Phase::Running)) {
        Ok(state) if state.phase == Phase::Running => return Ok(()),
        Ok(state) => state.ended,
        Err(ControlError::NotRunning | ControlError::Ended) => {
            super::state(&found.store, &found.name).and_then(|state| state.ended)
        }
        Err(error) => return found.asked(Err(error)),
    };
    let ended = ended.map_or_else(String::new, |ended| format!(" ({ended})"));
    let printed = super::show::last_lines(found);
    let text = match printed.is_empty() {
        true => format!("it ended before it had booted{ended}, and printed nothing"),
        false => format!("it ended before it had booted{ended}; it printed last:\n{printed}"),
    };
    Err(Failure::NotBooted { name: found.name.clone(), text })
}
