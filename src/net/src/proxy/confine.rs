//! The proxy's own rights: none.

use std::io;

use cgrant_sys::{
    privilege,
    seccomp::{self, Action, SeccompError},
};
use nix::libc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most descriptors that it opens; fewer where the helper's own limit is lower.
const MOST_DESCRIPTORS: u64 = 65_536;

/// Why the proxy would have more rights than it may.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Its account must not be root.
    #[error("the proxy can't be root")]
    Root,
    /// A right could not be given up.
    #[error("cannot give up rights: {0}")]
    Rights(#[from] io::Error),
    /// The filter can't be set.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What it does beside [`seccomp::RUNTIME`]: it waits, takes connections, makes others, and moves bytes. It opens no file,
/// binds nothing and executes nothing.
const CALLS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socket,
];

/// Becomes the account for good, with no capability and no way to one. Gives the number of descriptors it may open.
pub fn drop_rights(uid: u32, gid: u32) -> Result<u64, ConfineError> {
    if uid == 0 || gid == 0 {
        return Err(ConfineError::Root);
    }
    let hard = getrlimit(Resource::Nofile).maximum;
    let descriptors = hard.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS);
    let limit = Rlimit { current: Some(descriptors), maximum: Some(descriptors) };
    setrlimit(Resource::Nofile, limit).map_err(io::Error::from)?;
    // With the last of the uids that are root go all capabilities; new ones can't come, whatever is executed.
    privilege::become_account(uid, gid)?;
    privilege::set_no_new_privs()?;
    if !rustix::thread::capabilities(None).map_err(io::Error::from)?.permitted.is_empty() {
        return Err(ConfineError::Root);
    }
    privilege::set_dumpable(false)?;
    Ok(descriptors)
}

/// Every other system call fails from now on.
pub fn filter() -> Result<(), ConfineError> {
    Ok(seccomp::apply(&[seccomp::RUNTIME, CALLS].concat(), Action::Refuse)?)
}
