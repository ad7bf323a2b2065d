//! What the engine gives up before it listens to anybody: capabilities it has no use for, and system calls.

use cgrant_sys::{privilege, seccomp};

/// Why the engine runs with more rights than it should; it does not start then.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Capabilities could not be dropped.
    #[error("capabilities: {0}")]
    Capabilities(std::io::Error),
    /// The filter of system calls could not be set.
    #[error("system call filter: {0}")]
    Filter(String),
}

/// Drops capabilities to those below, sets `no_new_privs` and the filter. Before any thread is started.
///
/// | capability | for |
/// |---|---|
/// | `CHOWN`, `FOWNER` | delegating a payload, and taking it back |
/// | `DAC_OVERRIDE` | writing in cgroups that were delegated |
/// | `KILL` | killing and stopping processes of a grant |
/// | `SYS_PTRACE` | reading `/proc/PID/ns` and `cgroup` of callers |
/// | `SYS_RESOURCE` | descriptors beyond the soft limit, where the host gives it |
/// | `SYS_ADMIN` | `NS_GET_*` on foreign namespaces; freezing v1 device keys |
///
/// # Errors
/// [`SandboxError`].
pub fn confine() -> Result<(), SandboxError> {
    use privilege::Capability as C;
    privilege::raise_descriptor_limit().map_err(SandboxError::Capabilities)?;
    privilege::set_no_new_privs().map_err(SandboxError::Capabilities)?;
    privilege::drop_capabilities(&[C::CAP_CHOWN, C::CAP_FOWNER, C::CAP_DAC_OVERRIDE, C::CAP_KILL, C::CAP_SYS_PTRACE])
        .map_err(SandboxError::Capabilities)?;
    Ok(())
}
