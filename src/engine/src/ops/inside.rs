//! Callers and processes that lie in a grant: what they may not do (design invariant 9).
//!
//! A grant with ids is left by nobody: its processes have other uids than the account. A bare grant without ids has
//! the account's own uid inside; these checks keep its processes from lifting their own limits through the broker.

use cgrant_policy::GrantPath;
use cgrant_sys::{pidfd::Pidfd, process::ProcFs};
use cgrant_wire::{Refusal, RefusalCode};

use crate::{connection::Caller, engine::Engine, registry::Grant};

/// The grant whose payload the process lies in.
pub fn grant_around(engine: &Engine, process: &Pidfd) -> Option<GrantPath> {
    let pid = process.pid().ok()?;
    let cgroups = ProcFs::open().ok()?.cgroups(pid).ok()?;
    // The answer counts only if the pid meant this process when it was read.
    if !process.is_alive().ok()? {
        return None;
    }
    cgroups.iter().find_map(|(hierarchy, path)| engine.tree.payload_around(hierarchy, path))
}

/// Refuses a caller whose process lies in a payload.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_be_outside(engine: &Engine, caller: &Caller, what: &str) -> Result<(), Refusal> {
    let now = caller.process.as_ref().and_then(|process| grant_around(engine, process));
    // Where it connected from counts too: a process inside could hand its connection on and end.
    match now.or_else(|| caller.born_in.clone()) {
        None => Ok(()),
        Some(around) => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("a process inside grant {around} may not {what}"),
        )
        .rule("built-in inside-a-grant")
        .hint("ask from a process outside the grant")),
    }
}

/// Refuses to move a process out of a grant that it lies in, unless it stays in the same one.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_not_leave(engine: &Engine, process: &Pidfd, into: &Grant) -> Result<(), Refusal> {
    match grant_around(engine, process) {
        Some(around) if around != into.path => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("the process lies in grant {around}, which nothing leaves"),
        )
        .rule("built-in inside-a-grant")),
        _ => Ok(()),
    }
}
