//! What can go wrong before and while the broker is supervised. Every message is one sentence for the administrator.

use std::io;

/// Why cgrantd cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Not started by root.
    #[error(
        "cgrantd must be started as root, because it grants what only root may give (for example: sudo cgrantd --foreground)"
    )]
    NotRoot,
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] crate::dirs::DirectoryError),
    /// Another broker of this instance runs.
    #[error(transparent)]
    Lock(#[from] crate::lock::LockError),
    /// The listening socket cannot be made.
    #[error(transparent)]
    Socket(#[from] crate::socket::SocketError),
    /// The fronts have no account.
    #[error(transparent)]
    Account(#[from] crate::accounts::AccountError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Configuration(#[from] crate::config::ConfigError),
    /// systemd gave no scope.
    #[error(transparent)]
    Scope(#[from] crate::scope::ScopeError),
    /// A process cannot be started.
    #[error(transparent)]
    Process(#[from] crate::process::ProcessError),
    /// A child gave up before the broker was ready; its own sentence.
    #[error("{role}: {reason}")]
    ChildFailed {
        /// Which child.
        role: &'static str,
        /// Its reason.
        reason: String,
    },
    /// The children had to be killed because they did not end when told.
    #[error("the broker did not end in order and was killed; the next start puts its record in order")]
    Killed,
    /// The process in the background ended before it was ready; it has said why itself.
    #[error("cgrantd in the background ended before it was ready")]
    BackgroundFailed,
    /// Not everything that ran in grants ended in order; the helper has said what.
    #[error("not everything in grants ended in order")]
    NotInOrder,
    /// A system call of the supervisor's own failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SupervisorError {
    /// For `map_err`: a failed system call with what was being done.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
