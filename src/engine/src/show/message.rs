//! What the engine says to the helper that acts on clients' sockets and to its workers, and what is said back.

use serde::{Deserialize, Serialize};

/// What the helper is told: that there shall be a worker at the channel beside it.
pub const WORKER: u8 = 1;

/// What is wanted of a client's socket, which is beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// That it passes credentials.
    PassCredentials,
    /// Whether there is a message behind so many bytes.
    Look(u32),
    /// So many messages, taken off it, or as many as there are.
    Take(u8),
    /// A datagram with a credential for each of these processes, as many as there is room for.
    Processes {
        /// The processes.
        pids: Vec<u32>,
        /// One that is shown in the place of one that has ended.
        known: Option<u32>,
    },
    /// Room for a datagram of so many bytes.
    Room(u32),
    /// No more room than this, as getsockopt(2) says it.
    NoMoreRoom(u32),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// All that was wanted.
    All,
    /// Is there a message?
    There(bool),
    /// The messages, and beside them in their order the processes that came with them. Fewer than were wanted if no more were
    /// there.
    Taken(Vec<Taken>),
    /// So many processes were shown.
    Shown(Shown),
}

/// A message that was taken off a socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Is it one byte, with nothing beside it but credentials?
    pub is_proper: bool,
    /// Whom it names.
    pub named: Option<Named>,
}

/// Whom a message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The pid; 0 if it has none here, or nobody was named.
    pub pid: u32,
    /// The uid.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
    /// The process.
    pub process: NamedProcess,
}

/// The process that a message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamedProcess {
    /// The next one beside the answer.
    Beside,
    /// It has ended.
    Gone,
    /// The kernel does not say.
    Unsaid,
}

/// What came of showing processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// How many of them, those that have ended included.
    pub count: u32,
    /// The last one that lived.
    pub known: Option<u32>,
}

/// What came of it, or the kernel's error number.
pub type Answer = Result<Done, i32>;
