//! The privileged engine of the broker: identity, ownership, journal, cgroups, ids.
//!
//! It accepts connections and reads who the peers are, takes typed operations from the unprivileged fronts, and
//! decides everything that matters. It parses no D-Bus, has no runtime, and starts no program.

#[cfg(feature = "core")]
mod boot;
pub mod cgroup;
#[cfg(feature = "core")]
mod connection;
#[cfg(feature = "core")]
mod engine;
#[cfg(feature = "core")]
mod events;
#[cfg(feature = "core")]
mod fault;
pub mod idmap;
pub mod ids;
#[cfg(feature = "core")]
mod link;
#[cfg(feature = "core")]
mod ops;
#[cfg(feature = "core")]
mod pool;
#[cfg(feature = "core")]
mod reconcile;
#[cfg(feature = "core")]
mod record;
#[cfg(feature = "core")]
mod registry;
#[cfg(feature = "core")]
mod sandbox;
#[cfg(feature = "core")]
mod server;
#[cfg(feature = "core")]
mod settings;
#[cfg(feature = "core")]
mod watch;

use std::process::ExitCode;

/// The program `cgrant-engine`. Started by `cgrantd` only, with its end of the pair as descriptor 3.
#[cfg(feature = "core")]
pub fn main() -> ExitCode {
    boot::run()
}

/// Until the core compiles.
#[cfg(not(feature = "core"))]
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
