//! What the engine gives up before it listens to anybody: capabilities it has no use for, and system calls.

use cgrant_process::sandbox::{self, SandboxError};
use cgrant_sys::privilege::Capability as C;
use nix::libc;

/// What the engine calls beside what every program does ([`seccomp::RUNTIME`]). It can open no network socket,
/// execute nothing, mount nothing, enter no namespace and trace nobody. Of its ids it can change those for file systems, a
/// thread's own, and no others.
const CALLS: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_capget,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getpriority,
    libc::SYS_getsockopt,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setpriority,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Channels for the answers of helpers.
    libc::SYS_socketpair,
    libc::SYS_statx,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_unlinkat,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Drops capabilities to those below, sets `no_new_privs` and the filter. Before any thread is started.
///
/// | capability | for |
/// |---|---|
/// | `CHOWN`, `FOWNER` | delegating a payload, and taking it back |
/// | `DAC_OVERRIDE` | writing in cgroups that were delegated |
/// | `KILL` | killing and stopping processes of a grant |
/// | `SETGID`, `SETUID` | making a cgroup as whoever it is for (ids for file systems; the filter refuses all other ids) |
/// | `SYS_NICE` | moving a process of another account into a v1 cpuset, whose CPUs it gets; going before a fork bomb while it is attached |
/// | `SYS_PTRACE` | reading `/proc/PID/ns` and `fd` of callers |
///
/// # Errors
/// [`SandboxError`].
pub fn confine() -> Result<(), SandboxError> {
    let kept = [
        C::CAP_CHOWN,
        C::CAP_FOWNER,
        C::CAP_DAC_OVERRIDE,
        C::CAP_KILL,
        C::CAP_SETGID,
        C::CAP_SETUID,
        C::CAP_SYS_NICE,
        C::CAP_SYS_PTRACE,
    ];
    sandbox::confine(&kept, CALLS)
}
