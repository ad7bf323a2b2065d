//! Why no mount was made, and what the caller is told.

use std::io;

use cgrant_wire::{Refusal, RefusalCode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What a client does where the host can't map a directory.
const COPY: &str = "copy the directory instead";

/// Why no mount was made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The helper looked and refused, or the kernel did.
    #[error(transparent)]
    Refused(#[from] MountRefusal),
    /// It took longer than anything may take.
    #[error("the mount was not made in time")]
    TimedOut,
    /// The helper is not there any more.
    #[error("the helper that makes mounts has ended")]
    HelperGone,
    /// The helper could not be asked.
    #[error("the helper that makes mounts could not be asked: {0}")]
    Io(#[from] io::Error),
}

/// What the helper found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MountRefusal {
    /// The directory is on no mount of the namespace that was shown with it.
    #[error("the directory is not in the mount namespace that was shown with it")]
    Elsewhere,
    /// The owners that it shows are mapped ones.
    #[error("the directory is on a mount whose ids are mapped already")]
    Mapped,
    /// Its file system is none that the kernel alone answers for and can map.
    #[error("directories of the file system {0} can't be mapped")]
    FileSystem(String),
    /// The account has mounted the file system by itself.
    #[error("the directory is on a file system that the host has not mounted")]
    NotTheHosts,
    /// It is neither the account's own nor of the range that is to be shown.
    #[error("the directory belongs to uid {0}, which is neither yours nor of the range that is to be mapped")]
    Others(u32),
    /// What is to be had as a node is none of a character device.
    #[error("this is no node of a character device")]
    NoDevice,
    /// Its group may not read and write it.
    #[error("the group {0} may not read and write the device")]
    NotForGroup(u32),
    /// The process that was to make the mount did not end by itself in time, or was ended.
    #[error("a process that makes mounts did not come to its end")]
    Interfered,
    /// Too many requests of the account, or of all, are under way.
    #[error("too many mounts are being made")]
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
    /// Making a process for the request.
    Fork,
    /// Making the user namespace that holds the map.
    Ids,
    /// Asking on which mount the directory is.
    Look,
    /// Joining the mount namespace.
    Join,
    /// Asking whose directory it is.
    Owner,
    /// Cloning the mount.
    Clone,
    /// Setting map and attributes of the clone.
    Attributes,
    /// Locking the attributes.
    Lock,
    /// Asking the kernel what a group may do.
    Group,
    /// Making a node.
    Node,
    /// Passing it on.
    Answer,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fork => "a process for the request",
            Self::Ids => "a user namespace with the map",
            Self::Look => "to say on which mount the directory is",
            Self::Join => "to join the mount namespace",
            Self::Owner => "to say whose the directory is",
            Self::Clone => "to clone the directory's mount",
            Self::Attributes => "to map the ids of the directory's mount",
            Self::Lock => "to lock the attributes of the mount",
            Self::Group => "to say what the device's group may do",
            Self::Node => "to make a node of the device",
            Self::Answer => "to pass the mount on",
        })
    }
}

impl MountRefusal {
    /// Of a step that failed.
    pub fn at(step: Step) -> impl Fn(io::Error) -> Self {
        move |error| Self::Kernel { step, errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()) }
    }
}

impl From<MountError> for Refusal {
    fn from(error: MountError) -> Self {
        let of = |code| Self::new(code, error.to_string());
        match &error {
            MountError::Refused(refusal) => refusal.into(),
            MountError::TimedOut => of(RefusalCode::TimedOut).hint("try again"),
            MountError::HelperGone | MountError::Io(_) => {
                of(RefusalCode::Internal).hint("the broker's log has the details")
            }
        }
    }
}

impl From<&MountRefusal> for Refusal {
    fn from(refusal: &MountRefusal) -> Self {
        let of = |code| Self::new(code, refusal.to_string());
        match refusal {
            MountRefusal::Elsewhere => of(RefusalCode::InvalidDescriptor)
                .hint("open the directory from within the mount namespace that is shown with it"),
            MountRefusal::Mapped => of(RefusalCode::InvalidDescriptor).hint("show the directory itself"),
            MountRefusal::FileSystem(_) => of(RefusalCode::Unsupported).hint(COPY),
            MountRefusal::NotTheHosts => of(RefusalCode::Unsupported).hint(
                "who mounted it in a user namespace can map it there, where its file system allows that",
            ),
            MountRefusal::Others(_) => of(RefusalCode::NotAuthorized)
                .rule("built-in own-directories")
                .hint("show a directory of yours"),
            MountRefusal::NoDevice => of(RefusalCode::InvalidArgument),
            MountRefusal::NotForGroup(_) => of(RefusalCode::NotAuthorized)
                .rule("built-in own-devices")
                .hint("an administrator can add the device to access.devices of a rule of policy"),
            MountRefusal::Interfered | MountRefusal::TooMany => of(RefusalCode::Busy).hint("try again"),
            MountRefusal::Kernel { step: Step::Ids | Step::Lock | Step::Node, errno } if *errno == Errno::NOSPC.raw_os_error() => {
                of(RefusalCode::KernelRefused).hint(
                    "let go of mounts that you keep: each counts as a user and a mount namespace of yours (/proc/sys/user)",
                )
            }
            // Mounts below that may not be uncovered; a file system without maps; a kernel without user namespaces.
            MountRefusal::Kernel { step: Step::Ids | Step::Clone | Step::Attributes, errno }
                if [Errno::INVAL, Errno::NOSYS, Errno::PERM]
                    .iter()
                    .any(|known| known.raw_os_error() == *errno) =>
            {
                of(RefusalCode::Unsupported).hint(COPY)
            }
            MountRefusal::Kernel { .. } => of(RefusalCode::KernelRefused),
        }
    }
}
