//! How the privileged processes that the supervisor starts begin, the engine and the network helper: the boot message,
//! the log, and the rights that are given up. What each of them is for is its own.

pub mod boot;
pub mod log;
pub mod sandbox;
