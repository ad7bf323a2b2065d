//! Allow-lists of system calls for our own processes.
//!
//! A filter stays for the rest of the process's life and is inherited by its children. Source: `seccomp(2)`.

use std::{collections::BTreeMap, io};

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::privilege::require_one_thread;

/// What happens to a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// It fails with `EPERM`.
    #[default]
    Refuse,
    /// The kernel kills the process with `SIGSYS` and writes it into its log.
    Kill,
    /// It is carried out, and the kernel writes it into its log.
    Log,
}

/// Why no filter was set.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The process has more than one thread, or their number is not known.
    #[error("a filter is set before threads are started")]
    Threads(#[source] io::Error),
    /// The list can't be made into a filter on this architecture.
    #[error("cannot make the filter")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("cannot set the filter")]
    Install(#[from] seccompiler::Error),
}

/// The calls that the Rust runtime and libc make by themselves: memory, threads, signals, time, random bytes, reading
/// and writing what is open, and ending. None of them opens, connects to, or changes anything.
pub const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// From now on this process and its children may make the calls in `allowed` only. Sets no_new_privs.
///
/// # Errors
/// [`SeccompError`].
pub fn apply(allowed: &[i64], otherwise: Action) -> Result<(), SeccompError> {
    apply_narrowed(allowed, &[], otherwise)
}

/// As [`apply`], and in addition calls whose first argument, a number of 32 bits, is one of those named with them.
///
/// # Errors
/// [`SeccompError`].
pub fn apply_narrowed(
    allowed: &[i64],
    narrowed: &[(i64, &[u32])],
    otherwise: Action,
) -> Result<(), SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed.iter().map(|number| (*number, Vec::new())).collect();
    for (number, first) in narrowed {
        let is = |value: &u32| {
            let same = SeccompCmpOp::Eq;
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, same, (*value).into())?;
            SeccompRule::new(vec![condition])
        };
        rules.insert(*number, first.iter().map(is).collect::<Result<_, _>>()?);
    }
    install(SeccompFilter::new(rules, otherwise.into(), SeccompAction::Allow, architecture()?)?)
}

/// From now on this process and its children can't make the calls in `refused`, nor netlink sockets but those for
/// devices, addresses and routes, in addition to whatever else is filtered. For programs of others, whose
/// calls are not known exactly. Sets no_new_privs.
///
/// # Errors
/// [`SeccompError`].
pub fn refuse(refused: &[i64]) -> Result<(), SeccompError> {
    let netlink = |argument, operator, value: libc::c_int| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value.cast_unsigned()))
    };
    let other_netlink = SeccompRule::new(vec![
        netlink(0, SeccompCmpOp::Eq, libc::AF_NETLINK)?,
        netlink(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE)?,
    ])?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.iter().map(|number| (*number, Vec::new())).collect();
    rules.insert(libc::SYS_socket, vec![other_netlink]);
    install(SeccompFilter::new(rules, SeccompAction::Allow, errno(Errno::PERM), architecture()?)?)
}

fn install(filter: SeccompFilter) -> Result<(), SeccompError> {
    require_one_thread().map_err(SeccompError::Threads)?;
    let program = BpfProgram::try_from(filter)?;
    Ok(seccompiler::apply_filter_all_threads(&program)?)
}

fn architecture() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

impl From<Action> for SeccompAction {
    fn from(action: Action) -> Self {
        match action {
            Action::Refuse => errno(Errno::PERM),
            Action::Kill => Self::KillProcess,
            Action::Log => Self::Log,
        }
    }
}

fn errno(errno: Errno) -> SeccompAction {
    SeccompAction::Errno(errno.raw_os_error().unsigned_abs())
}
