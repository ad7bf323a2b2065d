//! How the broker's processes begin: the programs that the supervisor starts; and of the privileged ones, the engine and the
//! network helper, the boot message, the log, and the rights that are given up. What each of them is for is its own.

pub mod boot;
pub mod log;
pub mod program;
pub mod sandbox;
