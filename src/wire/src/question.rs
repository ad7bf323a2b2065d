//! Questions to polkit: the engine puts them, the bus front asks, and the engine takes the answer from nobody else.

use serde::{Deserialize, Serialize};

/// Number of a question, given out by the engine, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct QuestionId(pub u64);

/// Whose right is in question, as polkit names subjects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// A process that the engine saw alive under a pidfd, which comes beside the message.
    Process {
        /// Its pid.
        pid: u32,
        /// When it started, in clock ticks after boot: with the pid, no other process.
        start_time: u64,
        /// The uid that it had when it connected.
        uid: u32,
    },
    /// A client of the bus, by its unique name.
    BusName(String),
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its number.
    pub id: QuestionId,
    /// The polkit action.
    pub action: String,
    /// What a rule of the administrator's can decide by, key and value: short, printable.
    pub details: Vec<(String, String)>,
    /// Whose right.
    pub subject: Subject,
    /// May a person be asked, and waited for?
    pub interactive: bool,
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consent {
    /// Yes.
    Yes,
    /// No.
    No,
    /// No: whoever was asked put the dialog away.
    Dismissed,
    /// Only a person could agree, and none may be asked, or none can: no agent of the caller's session is there.
    NeedsPerson,
    /// Polkit can't be asked; why.
    Unavailable(String),
}
