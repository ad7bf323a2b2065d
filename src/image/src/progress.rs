//! How far something that takes long has come.

use serde::{Deserialize, Serialize};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Bytes come from a server.
    Download,
    /// Bytes come from a program.
    Receive,
    /// A file is hashed; bytes.
    Verify,
    /// An archive becomes files; bytes of the archive as it lies on the disk.
    Unpack,
    /// Files become an archive, or other files; bytes.
    Copy,
    /// A distribution is put together; steps of its builder.
    Build,
}

/// How far a step has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub step: Step,
    /// How much of it was done.
    pub done: u64,
    /// How much there is, where it is known.
    pub total: Option<u64>,
}

/// Told of progress, often. Must return soon.
pub type Watch<'a> = dyn FnMut(Progress) + 'a;
