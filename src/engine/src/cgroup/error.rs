//! Why something about cgroups was not done, and which refusal that is to a caller.

use std::io;

use cgrant_policy::GrantPath;
use cgrant_wire::{Refusal, RefusalCode};

/// Why something about cgroups was not done. Each variant says which [`RefusalCode`] it is to a caller.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// This host shows no cgroup file system and none can be mounted. [`RefusalCode::Unsupported`].
    #[error("no cgroup hierarchy can be reached")]
    NoHierarchy,
    /// The instance's name can't be part of a cgroup's name. [`RefusalCode::InvalidArgument`].
    #[error("the instance name `{0}` has other characters than letters, digits, `_` and `-`, or is too long")]
    BadInstance(String),
    /// The instance's own cgroup is not there: systemd is said to have delegated it and has not, or somebody removed it.
    /// [`RefusalCode::Internal`].
    #[error("the broker's own cgroup {path} is not there in the hierarchy {hierarchy}")]
    NoPlacement {
        /// Name of the hierarchy.
        hierarchy: String,
        /// Path that was given.
        path: String,
    },
    /// A controller can't be handed down because processes sit in a cgroup that is not a leaf
    /// (Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"). [`RefusalCode::Busy`].
    #[error("processes sit in the cgroup {cgroup} itself, so that it can't hand controllers down")]
    ProcessesInside {
        /// Which cgroup.
        cgroup: String,
    },
    /// There is no cgroup of this grant. [`RefusalCode::NoSuchGrant`].
    #[error("the grant {0} has no cgroup")]
    NoSuchGrant(GrantPath),
    /// There is a cgroup of this grant already. [`RefusalCode::GrantExists`].
    #[error("the grant {0} has a cgroup already")]
    GrantExists(GrantPath),
    /// There is no such cgroup below the payload. [`RefusalCode::NoSuchCgroup`].
    #[error("there is no cgroup {0} below the payload")]
    NoSuchCgroup(String),
    /// There is such a cgroup below the payload already. [`RefusalCode::CgroupExists`].
    #[error("there is a cgroup {0} below the payload already")]
    CgroupExists(String),
    /// The name is kept for the broker. [`RefusalCode::InvalidName`].
    #[error("the name {0} below a payload is kept for the broker")]
    ReservedName(String),
    /// Processes are in it. [`RefusalCode::Busy`].
    #[error("processes are in {cgroup}")]
    Populated {
        /// Which cgroup.
        cgroup: String,
    },
    /// Other cgroups are in it. [`RefusalCode::Busy`].
    #[error("other cgroups are in {cgroup}")]
    HasChildren {
        /// Which cgroup.
        cgroup: String,
    },
    /// This host's kernel or hierarchy can't do it. [`RefusalCode::Unsupported`].
    #[error("{what} can't be had on this host: {reason}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// The kernel refused the value of a limit; everything is as before. [`RefusalCode::KernelRefused`].
    #[error("the kernel refused the value `{value}` for {key}")]
    Limit {
        /// The limit, portable or raw.
        key: String,
        /// What was to be set.
        value: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a value, and then refused the old one again: limits are in between.
    /// [`RefusalCode::Internal`].
    #[error("{file} could not be put back to `{value}` after a refused change")]
    NotPutBack {
        /// The file.
        file: String,
        /// The value that it had.
        value: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The process has ended. [`RefusalCode::NoSuchProcess`].
    #[error("the process has ended")]
    NoSuchProcess,
    /// The process, or one of its tree, is not the caller's to move; nobody was moved. [`RefusalCode::NotAuthorized`].
    #[error("the process, or one of its tree, is not the caller's to move")]
    NotMovable {
        /// Its pid.
        pid: u32,
    },
    /// The kernel refused to move a process; nobody was moved. [`RefusalCode::KernelRefused`].
    #[error("the kernel refused to move a process into {cgroup}")]
    Move {
        /// Its pid.
        pid: u32,
        /// Where to.
        cgroup: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// It took longer than anything may. [`RefusalCode::TimedOut`].
    #[error("{0} took too long")]
    TimedOut(&'static str),
    /// There are more than are listed. [`RefusalCode::QuotaExceeded`].
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are listed.
        limit: usize,
    },
    /// The kernel refused an operation on a cgroup. [`RefusalCode::KernelRefused`].
    #[error("the kernel refused {doing} {cgroup}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// To which cgroup or file.
        cgroup: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Something outside cgroupfs failed. [`RefusalCode::Internal`].
    #[error("{doing} failed")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    /// A failed operation on a cgroup.
    pub(super) fn kernel(doing: &'static str, cgroup: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let cgroup = cgroup.into();
        move |source| Self::Kernel { doing, cgroup, source }
    }

    /// A failed operation outside cgroupfs.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }

    /// Its kind to a caller.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::NoHierarchy | Self::Unsupported { .. } => RefusalCode::Unsupported,
            Self::BadInstance(_) => RefusalCode::InvalidArgument,
            Self::NoPlacement { .. } | Self::NotPutBack { .. } | Self::System { .. } => RefusalCode::Internal,
            Self::ProcessesInside { .. } | Self::Populated { .. } | Self::HasChildren { .. } => {
                RefusalCode::Busy
            }
            Self::NoSuchGrant(_) => RefusalCode::NoSuchGrant,
            Self::GrantExists(_) => RefusalCode::GrantExists,
            Self::NoSuchCgroup(_) => RefusalCode::NoSuchCgroup,
            Self::CgroupExists(_) => RefusalCode::CgroupExists,
            Self::ReservedName(_) => RefusalCode::InvalidName,
            Self::Limit { .. } | Self::Move { .. } | Self::Kernel { .. } => RefusalCode::KernelRefused,
            Self::NoSuchProcess => RefusalCode::NoSuchProcess,
            Self::NotMovable { .. } => RefusalCode::NotAuthorized,
            Self::TimedOut(_) => RefusalCode::TimedOut,
            Self::TooMany { .. } => RefusalCode::QuotaExceeded,
        }
    }

    /// What the caller can do about it.
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NoHierarchy => "mount cgroup2 on /sys/fs/cgroup; `cgrant doctor` says what else is missing",
            Self::NoPlacement { .. } => "restart the broker, which has it made again",
            Self::ProcessesInside { .. } => {
                "move them into a cgroup below it, or start the broker where the cgroup is empty"
            }
            Self::GrantExists(_) => "choose another name, or release the grant that has it",
            Self::Populated { .. } => "end the processes first, or ask for them to be killed",
            Self::HasChildren { .. } => "remove those first, the deepest before the others",
            Self::Limit { source, .. } => return limit_hint(source),
            Self::Move { source, .. } => return move_hint(source),
            Self::NotMovable { .. } => "attach only trees in which every process runs under your own uid",
            Self::TimedOut(_) => {
                "a process in uninterruptible sleep can hold it up; try again when its I/O is done"
            }
            Self::NotPutBack { .. } | Self::System { .. } => "the broker's log has the details",
            _ => return None,
        })
    }
}

/// What errors on limit files usually mean (kernel: mm/memcontrol-v1.c, kernel/cgroup/cpuset.c, kernel/sched/core.c).
fn limit_hint(error: &io::Error) -> Option<&'static str> {
    Some(match error.raw_os_error() {
        Some(nix::libc::EBUSY) => {
            "the grant uses more than that now, or a cgroup below it has more: free some of it, or lower those first"
        }
        Some(nix::libc::EINVAL) => {
            "it is outside of what this kernel takes, or beyond what the cgroup above has"
        }
        Some(nix::libc::ENODEV) => "there is no such block device",
        Some(nix::libc::EACCES) => "the CPUs or nodes named are not the account's to use",
        _ => return None,
    })
}

/// What errors on `cgroup.procs` usually mean.
fn move_hint(error: &io::Error) -> Option<&'static str> {
    Some(match error.raw_os_error() {
        Some(nix::libc::EBUSY) => {
            "controllers are enabled below that cgroup, so that it can't hold processes itself"
        }
        Some(nix::libc::EINVAL) => "a real-time process, or a thread of the kernel, can't be moved there",
        Some(nix::libc::EOPNOTSUPP) => "that cgroup was made threaded by the payload",
        Some(nix::libc::EAGAIN) => "the number of tasks there is at its limit",
        _ => return None,
    })
}

impl From<CgroupError> for Refusal {
    fn from(error: CgroupError) -> Self {
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message = format!("{message}: {source}");
        }
        let refusal = Self::new(error.code(), message);
        let refusal = match error.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        };
        match error {
            CgroupError::TooMany { limit, .. } => {
                let limit = u64::try_from(limit).unwrap_or(u64::MAX);
                refusal.figures(limit, limit.saturating_add(1))
            }
            _ => refusal,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_limit_names_key_value_and_errno() {
        let source = io::Error::from_raw_os_error(nix::libc::EBUSY);
        let refusal =
            Refusal::from(CgroupError::Limit { key: "memory.max".into(), value: "1".into(), source });
        assert_eq!(refusal.code, RefusalCode::KernelRefused);
        for part in ["memory.max", "`1`", "os error 16"] {
            assert!(refusal.message.contains(part), "{refusal}");
        }
        assert!(refusal.hint.unwrap().contains("uses more"));
    }

    #[test]
    fn a_list_that_is_too_long_has_figures() {
        let refusal = Refusal::from(CgroupError::TooMany { what: "cgroups", limit: 7 });
        assert_eq!((refusal.quota, refusal.usage), (Some(7), Some(8)));
    }
}
