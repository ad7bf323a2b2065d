//! `restart`: stops containers in order and starts them as they are set by then.

use cgrant_container::system::Phase;
use cgrant_sys::{Clone3, Exit};

use super::{Codes, Found, ask, phase, start, state};
use crate::{Client, error::Failure, exit, storage};

/// The exit code. One that does not run is left as it is.
pub(super) fn restart(client: &Client, names: &[String], seconds: u32, wait: bool) -> Result<u8, Failure> {
    let mut codes = Codes::default();
    let mut running: Vec<String> = Vec::new();
    for name in names {
        let runs = Found::new(name, "restart").and_then(|found| found.control());
        if codes.note(runs).is_some() && !running.contains(name) {
            running.push(name.clone());
        }
    }
    // In a process of its own: the new monitors are to be forked before a session is connected.
    let failed = |source| Failure::Machine { doing: "wait until they have stopped", source };
    let stop = || i32::from(ask::stop(client, &running, seconds));
    let stopped = Clone3::new().spawn(stop).and_then(|child| child.pidfd.wait()).map_err(failed)?;
    let code = match stopped {
        Exit::Code(code) => u8::try_from(code).unwrap_or(exit::MACHINE),
        _ => exit::MACHINE,
    };
    let store = storage::store()?;
    // Why one has not, the other process said.
    running.retain(|name| phase(state(&store, name).as_ref()) == Phase::Stopped);
    let started = start::start(client, &running, wait);
    Ok([codes.first, code].into_iter().find(|code| *code != exit::DONE).unwrap_or(started))
}
