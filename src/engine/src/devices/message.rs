//! What the engine says to the helper that limits devices, and what is said back.

use serde::{Deserialize, Serialize};

use super::list::Number;

/// Beside each: the pipe for the answer; beside all but [`Request::Try`] the grant's directory of cgroup2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Nothing but to find out whether it can be done.
    Try,
    /// That a cgroup with no program of the broker's gets one, for the standard devices and these.
    New(Vec<Number>),
    /// That these are it from now on, whether there is a program of the broker's or not.
    Set(Vec<Number>),
}

/// What came of it: an error number of the kernel's.
pub type Done = Result<(), i32>;
