//! Why a map was not written, and what the caller is told.

use std::io;

use cgrant_wire::{Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

/// Why a map was not written.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The helper looked at the namespace and refused, or the kernel did.
    #[error(transparent)]
    Refused(#[from] MapRefusal),
    /// It took longer than anything may take.
    #[error("the id map was not written in time")]
    TimedOut,
    /// The helper is not there any more, so no map can be written until the engine is started again.
    #[error("the helper that writes id maps has ended")]
    HelperGone,
    /// The helper could not be asked.
    #[error("the helper that writes id maps could not be asked: {0}")]
    Io(#[from] io::Error),
}

/// What the helper found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MapRefusal {
    /// The descriptor names something else.
    #[error("the descriptor does not name a user namespace")]
    NotAUserNamespace,
    /// It names the host's own.
    #[error("the user namespace is the host's own")]
    HostNamespace,
    /// Its parent is not the host's user namespace.
    #[error("the user namespace is nested: its parent is not the host's own")]
    Nested,
    /// Its parent is not the one that it has to be.
    #[error("the user namespace is not a child of your own")]
    OthersChild,
    /// A process inside another user namespace could be taken over from there.
    #[error("no map is written into nested user namespaces while fs.suid_dumpable is 1")]
    Dumpable,
    /// Another uid made it.
    #[error("the user namespace belongs to uid {0}")]
    OthersNamespace(u32),
    /// It has a map, and a map is written once.
    #[error("the user namespace has an id map already")]
    AlreadyMapped,
    /// The process that was to join the namespace was killed or held up from inside it.
    #[error("a process that joined the user namespace was interfered with")]
    Interfered,
    /// The helper has more requests under way than it can.
    #[error("too many id maps are being written")]
    TooMany,
    /// The kernel refused a step.
    #[error("the kernel refused {step}: {}", io::Error::from_raw_os_error(*errno))]
    Kernel {
        /// Which step.
        step: Step,
        /// Its error number.
        errno: i32,
    },
}

/// The steps that the kernel may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Asking what the namespace is.
    Look,
    /// Making a process that joins it.
    Fork,
    /// Joining it.
    Join,
    /// Joining its parent and opening its maps there.
    JoinParent,
    /// Writing `setgroups`.
    Setgroups,
    /// Writing `gid_map`.
    GidMap,
    /// Writing `uid_map`.
    UidMap,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Look => "to describe the user namespace",
            Self::Fork => "a process to join the user namespace",
            Self::Join => "to join the user namespace",
            Self::JoinParent => "to open the maps from the parent of the user namespace",
            Self::Setgroups => "to deny setgroups",
            Self::GidMap => "the gid map",
            Self::UidMap => "the uid map",
        })
    }
}

impl From<MapError> for Refusal {
    fn from(error: MapError) -> Self {
        let message = error.to_string();
        let of = |code| Self::new(code, message.clone());
        match error {
            MapError::Refused(refusal) => refusal.into(),
            MapError::TimedOut => of(RefusalCode::TimedOut).hint("try again"),
            MapError::HelperGone | MapError::Io(_) => {
                of(RefusalCode::Internal).hint("the broker's log has the details")
            }
        }
    }
}

impl From<MapRefusal> for Refusal {
    fn from(refusal: MapRefusal) -> Self {
        let of = |code| Self::new(code, refusal.to_string());
        match refusal {
            MapRefusal::NotAUserNamespace | MapRefusal::HostNamespace => of(RefusalCode::InvalidDescriptor)
                .hint("open /proc/PID/ns/user of a process that made a new user namespace"),
            MapRefusal::AlreadyMapped => {
                of(RefusalCode::InvalidDescriptor).hint("make a new user namespace and write no map into it")
            }
            MapRefusal::Nested => of(RefusalCode::Unsupported)
                .hint("make the namespace from a process that is in the host's user namespace"),
            MapRefusal::OthersChild => of(RefusalCode::NotAuthorized)
                .hint("make the namespace from a process that is in the container's own user namespace"),
            MapRefusal::Dumpable => of(RefusalCode::Unsupported)
                .hint("the administrator should set fs.suid_dumpable to 0 or 2 (man 5 proc_sys_fs)"),
            MapRefusal::OthersNamespace(_) => {
                of(RefusalCode::NotAuthorized).hint("show a user namespace that your own uid made")
            }
            MapRefusal::Interfered | MapRefusal::TooMany => of(RefusalCode::Busy).hint("try again"),
            MapRefusal::Kernel { .. } => of(RefusalCode::KernelRefused),
        }
    }
}
