//! CGManager's interface: its calls, carried out under the rules of `docs/cgmanager.md`.
//!
//! May touch: cgroupfs below the cgroup of whoever asks, as far as the bits there let him, and processes that he may move.

use std::sync::Arc;

use cgrant_wire::{Legacy, LegacyCall, Refusal, RefusalCode, Surface};

use crate::{
    connection::Caller,
    engine::{Engine, Outcome},
    ops::check::Descriptors,
};

/// What a call asks for, in the words of the log.
pub fn word(call: &LegacyCall) -> &'static str {
    match call {
        LegacyCall::PidCgroup { .. } => "legacy pid cgroup",
        LegacyCall::Create(_) => "legacy create",
        LegacyCall::Chown { .. } => "legacy chown",
        LegacyCall::Chmod { .. } => "legacy chmod",
        LegacyCall::MovePid { .. } => "legacy move pid",
        LegacyCall::GetValue { .. } => "legacy get value",
        LegacyCall::SetValue { .. } => "legacy set value",
        LegacyCall::Remove { .. } => "legacy remove",
        LegacyCall::Tasks { .. } => "legacy tasks",
        LegacyCall::Children(_) => "legacy children",
        LegacyCall::RemoveOnEmpty(_) => "legacy remove on empty",
        LegacyCall::Prune(_) => "legacy prune",
        LegacyCall::Controllers => "legacy controllers",
        LegacyCall::Keys(_) => "legacy keys",
        LegacyCall::ShowTasks { .. } => "legacy show tasks",
        LegacyCall::SendRoom { .. } => "legacy send room",
    }
}

/// What a call is about, in the words of the log.
pub fn about(call: &LegacyCall) -> String {
    match call {
        LegacyCall::Create(place)
        | LegacyCall::Children(place)
        | LegacyCall::RemoveOnEmpty(place)
        | LegacyCall::Prune(place)
        | LegacyCall::Keys(place)
        | LegacyCall::Chown { place, .. }
        | LegacyCall::Chmod { place, .. }
        | LegacyCall::MovePid { place, .. }
        | LegacyCall::GetValue { place, .. }
        | LegacyCall::SetValue { place, .. }
        | LegacyCall::Remove { place, .. }
        | LegacyCall::Tasks { place, .. } => format!("{}:{}", place.controllers, place.path),
        LegacyCall::PidCgroup { controllers, .. } => controllers.clone(),
        LegacyCall::Controllers | LegacyCall::ShowTasks { .. } | LegacyCall::SendRoom { .. } => String::new(),
    }
}

/// Carries out a call.
///
/// # Errors
/// The refusal. It names a rule if it is one that CGManager does not have.
pub fn perform(_engine: &Engine, caller: &Arc<Caller>, legacy: &Legacy, fds: Descriptors) -> Outcome {
    fds.finish()?;
    let reason = if caller.surface == Surface::Legacy {
        format!("the call {} is not served yet", word(&legacy.call))
    } else {
        "calls of CGManager's interface come by its own socket".to_owned()
    };
    Err(Refusal::new(RefusalCode::Unsupported, reason).rule("built-in legacy"))
}
