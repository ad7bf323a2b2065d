//! What launcher, monitor, stage and first process of a system container say to each other while it starts.
//!
//! The launcher says one thing only, once the ids are mapped: a [`crate::Placement`], and for each device whose node the broker is asked for
//! whether it made one. Beside it are the payload, for a root in layers the mounts, and these nodes.

use serde::{Deserialize, Serialize};

use super::state::Ended;
use crate::failure::StepFailure;

/// From the stage and the first process to the monitor. Where a descriptor is named, it comes beside the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// The first process's pidfd.
    Init,
    /// The console's master.
    Console,
    /// The directory of the container's terminals.
    Terminals,
    /// The socket that init notifies.
    Notify,
    /// In a container that is in another one: the payload's directory, as it is seen from inside.
    Payload,
    /// What puts a process into the payload itself: its `cgroup.procs`, opened for writing.
    Procs,
    /// What puts one into the payload's leaf. Nobody may be in the payload itself beside init, so the sender waits for
    /// [`ToInit::Alone`].
    Leaf,
    /// Everything is set up; next comes execve. If it succeeds, the channel ends.
    Executing,
    /// A step failed; the sender ends.
    Failed(StepFailure),
}

/// From the monitor to the first process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// Who cloned it is in the leaf by now.
    Alone,
}

/// From the monitor to its launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromMonitor {
    /// Comes first. If somebody other than the monitor is to be the grant's stage, its pidfd is beside it.
    Stage,
    /// The user namespace's descriptor is beside it.
    UserNamespace,
    /// The network namespace's.
    NetworkNamespace,
    /// The mount namespace's, for a root in layers.
    MountNamespace,
    /// Follow that: the directory with the image's files, opened there, and those of the account's own.
    Directory,
    /// Init was executed. The last word: the monitor stays.
    Started,
    /// A step failed; the monitor ends.
    Failed(StepFailure),
    /// The first process died while it was set up; the monitor ends.
    Died(Ended),
}
