//! Why a call of CGManager's interface was not carried out.

use std::io;

use cgrant_wire::{Refusal, RefusalCode};
use rustix::io::Errno;

use super::RULE;
use crate::show::ShowError;

/// Why a call, or its part in one hierarchy, was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Not the name of a hierarchy, or names of several where one is wanted.
    #[error("{0} is no controller of this host, or stands for several hierarchies where one is wanted")]
    Controllers(String),
    /// The path has a form that is not allowed.
    #[error("the path of a cgroup is relative, has no `..` in it, and no part longer than 255 bytes")]
    Path,
    /// The name of a file has a form that is not allowed, or is no file.
    #[error("{0} is not the name of a file of the cgroup")]
    File(String),
    /// There is no such cgroup.
    #[error("there is no such cgroup")]
    NoCgroup,
    /// The permission bits do not let the requestor. In a list of controllers the others go on.
    #[error("permission denied")]
    Denied,
    /// An actor has ended, or its cgroup can't be told.
    #[error("the process has ended")]
    Gone,
    /// The process lies outside of the cgroup that the requestor may speak of.
    #[error("the process lies outside of the requestor's cgroup")]
    Outside,
    /// The file is not written by this interface, whoever asks.
    #[error("the file {0} is not written over this interface")]
    Key(String),
    /// A file of v1's that cgroup2 has nothing for.
    #[error("{key} has no equal on cgroup2: {why}")]
    NoEqual {
        /// Its name.
        key: String,
        /// What is different there.
        why: &'static str,
    },
    /// The cgroup has no files of this controller (cgroup2).
    #[error(
        "the controller {0} is not enabled for this cgroup, which has no such file therefore: create the cgroup with this controller named, which needs it in the cgroup above"
    )]
    NotEnabled(String),
    /// The controller can't be enabled for what is below a cgroup (cgroup2).
    #[error("the controller {controller} can't be enabled here: {why}")]
    NotToBeHad {
        /// Its name.
        controller: String,
        /// Why.
        why: &'static str,
    },
    /// The value has a form that the file does not take.
    #[error("{0} does not take this value")]
    Value(String),
    /// A grant's cgroup, or the broker's own.
    #[error("cgroups of grants are changed over the broker's own interface only")]
    Granted,
    /// The hierarchy is never handed over.
    #[error("cgroups of the devices hierarchy are never handed to anybody but root")]
    Devices,
    /// Policy does not let the account have the controller. In a list of controllers the others go on.
    #[error("{0}")]
    Barred(Box<Refusal>),
    /// The account may have no more cgroups, or none so deep.
    #[error("a quota of the account is used up")]
    Quota,
    /// The messages of an Scm call are not what they have to be.
    #[error("the exchange of the call is not as it should be: {0}")]
    Exchange(&'static str),
    /// Whoever passes a call on is nobody who could speak for its requestor.
    #[error("uid {proxy} does not answer for a requestor of uid {requestor}")]
    Unanswered {
        /// The connection's peer.
        proxy: u32,
        /// Whom the first credential names.
        requestor: u32,
    },
    /// The account has as many as it may.
    #[error("too many cgroups of the account are to be removed when they are empty")]
    Wishes,
    /// The wish for a cgroup's end can't be kept.
    #[error("the broker can't note that the cgroup is to be removed: {0}")]
    Unwished(#[source] io::Error),
    /// Nothing was written on the client's socket.
    #[error(transparent)]
    Unshown(ShowError),
    /// The kernel refused.
    #[error("the kernel refuses {doing}: {source}")]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// Its words.
        source: io::Error,
    },
}

impl Fault {
    /// For `map_err`: what the kernel refuses while `doing`. What is not there, and who is gone, is said as such.
    pub fn kernel(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match Errno::from_io_error(&source) {
            Some(Errno::NOENT | Errno::NODEV) => Self::NoCgroup,
            Some(Errno::SRCH) => Self::Gone,
            _ => Self::Kernel { doing, source },
        }
    }

    /// Is it one that lists of controllers pass over?
    pub fn is_passed_over(&self) -> bool {
        matches!(self, Self::Denied | Self::Devices | Self::Barred(_))
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let code = match &fault {
            Fault::Barred(refusal) => return (**refusal).clone(),
            Fault::Denied | Fault::Outside | Fault::Key(_) | Fault::Devices | Fault::Unanswered { .. } => {
                RefusalCode::NotAuthorized
            }
            Fault::Exchange(_) => RefusalCode::InvalidDescriptor,
            Fault::Controllers(_) | Fault::File(_) | Fault::Value(_) => RefusalCode::InvalidArgument,
            Fault::NoEqual { .. } | Fault::NotEnabled(_) | Fault::NotToBeHad { .. } => {
                RefusalCode::Unsupported
            }
            Fault::Granted => RefusalCode::NotAuthorized,
            Fault::Path => RefusalCode::InvalidName,
            Fault::NoCgroup => RefusalCode::NoSuchCgroup,
            Fault::Gone => RefusalCode::NoSuchProcess,
            Fault::Quota => RefusalCode::QuotaExceeded,
            Fault::Wishes => RefusalCode::QuotaExceeded,
            Fault::Unwished(_) => RefusalCode::RecordUnwritable,
            Fault::Unshown(ShowError::Unasked(_)) => RefusalCode::Internal,
            Fault::Unshown(_) | Fault::Kernel { .. } => RefusalCode::KernelRefused,
        };
        let refusal = Self::new(code, fault.to_string());
        match fault {
            Fault::Key(_)
            | Fault::Devices
            | Fault::Quota
            | Fault::Granted
            | Fault::Wishes
            | Fault::NoEqual { .. }
            | Fault::NotEnabled(_)
            | Fault::NotToBeHad { .. } => refusal.rule(RULE),
            _ => refusal,
        }
    }
}
