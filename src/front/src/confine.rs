//! A front's own rights: it starts as root, becomes its account before it reads anything that a user sent, and
//! keeps a handful of system calls.

use cgrant_sys::{
    privilege,
    seccomp::{self, Action, RUNTIME, SeccompError},
};
use cgrant_wire::boot::{FrontBoot, FrontKind};

/// Why a front would have more rights than it may.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// It can't become its account.
    #[error("cannot become uid {uid}")]
    Account {
        /// The account.
        uid: u32,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another right could not be given up.
    #[error("cannot give up rights")]
    Rights(#[source] std::io::Error),
    /// The account of a front is not root.
    #[error("a front can't be root")]
    Root,
    /// The filter can't be set.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What both fronts do beside [`RUNTIME`]: their descriptors, and threads that close those of callers. Nothing here opens
/// a file, connects anywhere or executes anything.
const BOTH: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_ioctl,
    libc::SYS_memfd_create,
    libc::SYS_prctl,
    libc::SYS_readlinkat,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// What the socket front does besides: it looks whose socket it is that came with an Scm call of CGManager's.
const SOCKET: &[i64] = &[libc::SYS_getpeername, libc::SYS_getsockname];

/// What the bus front does besides: it connects to the bus, waits for it to appear, names clients' processes.
const BUS: &[i64] = &[
    libc::SYS_connect,
    libc::SYS_geteuid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_pidfd_open,
    libc::SYS_socket,
];

/// Becomes the front's account for good, with no capability and no way to one.
///
/// # Errors
/// [`ConfineError`]; the process must then end.
pub fn drop_rights(boot: &FrontBoot) -> Result<(), ConfineError> {
    if boot.uid == 0 || boot.gid == 0 {
        return Err(ConfineError::Root);
    }
    let account = |source| ConfineError::Account { uid: boot.uid, source };
    if rustix::process::geteuid().is_root() {
        // Before what that takes is dropped, too.
        privilege::empty_bounding_set().map_err(ConfineError::Rights)?;
        privilege::drop_capabilities(&[privilege::Capability::CAP_SETUID, privilege::Capability::CAP_SETGID])
            .map_err(ConfineError::Rights)?;
        privilege::become_account(boot.uid, boot.gid).map_err(account)?;
    } else if rustix::process::geteuid().as_raw() != boot.uid {
        return Err(account(std::io::ErrorKind::PermissionDenied.into()));
    }
    privilege::set_no_new_privs().map_err(ConfineError::Rights)?;
    privilege::set_dumpable(false).map_err(ConfineError::Rights)
}

/// Keeps the system calls that a front of this kind makes; every other one fails with `EPERM` from now on.
///
/// # Errors
/// [`ConfineError::Seccomp`].
pub fn filter(kind: FrontKind) -> Result<(), ConfineError> {
    let mut allowed = [RUNTIME, BOTH].concat();
    allowed.extend(match kind {
        FrontKind::Socket => SOCKET,
        FrontKind::Bus => BUS,
    });
    Ok(seccomp::apply(&allowed, Action::Refuse)?)
}
