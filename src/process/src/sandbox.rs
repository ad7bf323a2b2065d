//! What a process gives up before it listens to anybody. Which rights it keeps is its own to say.

use std::io;

use cgrant_sys::{
    privilege::{self, Capability},
    seccomp,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Why the process runs with more rights than it should; it does not start then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Capabilities could not be dropped.
    #[error("capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// The limit of descriptors could not be raised.
    #[error("limit of descriptors: {0}")]
    Descriptors(#[source] io::Error),
    /// The filter of system calls could not be set.
    #[error("system call filter: {0}")]
    Filter(#[from] seccomp::SeccompError),
}

/// Drops all capabilities but these, sets `no_new_privs`, and refuses every system call but these and those of
/// [`seccomp::RUNTIME`]. Before any thread is started.
///
/// # Errors
/// [`SandboxError`].
pub fn confine(capabilities: &[Capability], calls: &[i64]) -> Result<(), SandboxError> {
    raise_descriptor_limit().map_err(SandboxError::Descriptors)?;
    privilege::drop_capabilities(capabilities).map_err(SandboxError::Capabilities)?;
    let allowed: Vec<i64> = seccomp::RUNTIME.iter().chain(calls).copied().collect();
    Ok(seccomp::apply(&allowed, seccomp::Action::Refuse)?)
}

/// As far as it goes: the soft limit of most hosts is 1,024.
fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}
