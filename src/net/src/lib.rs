//! The network helper of the broker: devices, addresses, nftables, ports, name servers and router advertisements.
//!
//! It carries out the engine's typed orders ([`cgrant_wire::net`]), all or nothing each, and decides nothing about who
//! may have what. It has one thread, parses nothing that an account sends, and makes no system call while nothing happens.

pub mod advert;
mod backoff;
mod boot;
mod bridge;
mod examine;
pub mod failure;
mod fault;
pub mod firewall;
mod forwarding;
mod link;
pub mod names;
pub mod ports;
pub mod proxy;
mod restore;
mod sandbox;
mod serve;
pub mod server;
pub mod state;
mod subnet;
mod sysctl;
mod tap;
mod watch;

use std::process::ExitCode;

/// The program `cgrant-net`. Started by `cgrantd` only, with its end of the pair as descriptor 3.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == proxy::ROLE) {
        return proxy::run();
    }
    boot::run()
}
