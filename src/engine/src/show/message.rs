//! What the engine says to the helper that writes on clients' sockets, and what is said back.

use serde::{Deserialize, Serialize};

/// What is wanted of a client's socket. Beside it: the pipe for the answer, the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShowRequest {
    /// A datagram with a credential for each of these processes, as many as there is room for.
    Processes {
        /// The processes.
        pids: Vec<u32>,
        /// One that is shown in the place of one that has ended.
        known: Option<u32>,
    },
    /// Room for a datagram of so many bytes.
    Room(u32),
}

/// What came of showing processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// How many of them, those that have ended included.
    pub count: u32,
    /// The last one that lived.
    pub known: Option<u32>,
}

/// What came of it, or the kernel's error number. Of room, nothing is shown.
pub type ShowAnswer = Result<Shown, i32>;
