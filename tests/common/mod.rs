//! What the integration tests share: a broker with everything of its own, real unprivileged users, a D-Bus
//! client, and a checker that looks at the kernel and the records without any of the broker's code.
//!
//! Tests run one after another. After each one the harness looks for what it left behind (processes,
//! cgroups, mounts, interfaces, files): a leak fails the test that made it. A test program is also the
//! program of the users in it: started as `--agent` it is a small unprivileged process ([`agent`]).

pub mod agent;
pub mod broker;
pub mod bus;
pub mod cgmanager;
pub mod checker;
pub mod containers;
pub mod daemon;
pub mod dhcp6;
pub mod frames;
pub mod front;
pub mod harness;
pub mod host;
pub mod lab;
pub mod level;
pub mod network;
pub mod node;
pub mod original;
pub mod place;
pub mod polkit;
pub mod program;
pub mod raw;
pub mod silent;
pub mod systemd;
pub mod user;

pub use broker::Broker;
pub use bus::{Client, Grant, Options};
pub use harness::Test;
pub use host::{Host, Kind};
pub use lab::Lab;
pub use network::{Container, Network};
pub use node::Node;
pub use place::Place;
pub use user::{Process, User};

use std::time::{Duration, Instant};

/// How long anything may take before it counts as never. Emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`PATIENCE`]; `what` says what was awaited.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(2);
    while !condition() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
