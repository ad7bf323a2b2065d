//! The privileged engine of the broker: identity, ownership, journal, cgroups, ids, links.
//!
//! It accepts connections and reads who the peers are, takes typed operations from the unprivileged fronts, and
//! decides everything that matters. It parses no D-Bus, has no runtime, and starts no program; what has to be asked of the
//! name service, a helper without rights asks (`idmap`); devices, addresses and firewall are the network helper's, which gets orders (`net`).

mod addresses;
mod application;
mod asking;
mod boot;
pub mod cgroup;
mod connection;
pub mod devices;
pub mod disk;
mod engine;
mod events;
mod fault;
pub mod idmap;
pub mod ids;
mod leaving;
mod legacy;
mod link;
mod metrics;
pub mod mountmap;
mod net;
mod ops;
mod pace;
mod pool;
mod portion;
mod reconcile;
mod record;
mod refusal_log;
mod refused;
mod registry;
mod reload;
mod sandbox;
mod server;
mod settings;
mod share;
pub mod show;
mod usage;
mod watch;

use std::process::ExitCode;

/// The program `cgrant-engine`. Started by `cgrantd` only, with its end of the pair as descriptor 3.
pub fn main() -> ExitCode {
    boot::run()
}
