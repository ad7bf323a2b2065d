//! The container engine and the session with a broker.
//!
//! Two entities: a [`Session`] is a connection to a broker; a [`Container`] is a command in namespaces and a
//! cgroup of its own, made by a [`Launch`] from a [`LaunchSpec`].
//!
//! The engine is synchronous and starts no thread. It forks in the caller's process, and a container's first
//! process is a waitable child of its caller. It needs no privilege: what the kernel reserves for root (ids,
//! a delegated cgroup) comes from the broker, and the engine takes it as it would take it from anybody.
//! Everything after a fork runs in a process with one thread, and tells the launcher by name the step at
//! which it failed.

mod builder;
mod container;
mod failure;
mod init;
pub mod inner;
mod launch;
mod loopback;
mod message;
mod network;
mod reaper;
mod root;
mod session;
mod spec;
mod stage;
pub mod system;

pub use cgrant_sys::{
    Pidfd,
    pidfd::{Exit, Signal},
};
pub use container::{Container, Disposition, Ending};
pub use failure::{LaunchError, Step, StepFailure};
pub use launch::{Launch, Mapped, Placement, Staged};
pub use network::Network;
pub use session::{Interfaces, Session, SessionError};
pub use spec::{Command, DEFAULT_PATH, LaunchSpec, Root, SpecError, check_hostname};
pub use stage::try_namespaces;
