//! What can go wrong while a container is launched, in words that say at which step, why, and what to do.

use std::{fmt, io};

use cgrant_sys::seqpacket::ChannelError;
use serde::{Deserialize, Serialize};

use crate::{container::Ending, spec::SpecError};

/// A step of the launch, done by the launch stage or by the container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// unshare(CLONE_NEWUSER) by the stage.
    UserNamespace,
    /// Opening that namespace, to show it to the broker.
    ShowUserNamespace,
    /// Opening the network namespace, to show it to the broker.
    ShowNetworkNamespace,
    /// Opening the mount namespace, to show it to the broker.
    ShowMountNamespace,
    /// The stage's answer from its parent.
    Proceed,
    /// unshare of the other namespaces by the stage.
    Namespaces,
    /// Forking the process that builds the container's tree.
    Builder,
    /// clone3 into the payload, with a pid namespace.
    Clone,
    /// Signal dispositions and mask, session, keyring, umask.
    Process,
    /// Opening the root directory, as the account.
    OpenRoot,
    /// setgroups, setresgid, setresuid to the namespace's root.
    Credentials,
    /// unshare(CLONE_NEWCGROUP).
    CgroupNamespace,
    /// sethostname.
    Hostname,
    /// Taking up the loopback interface.
    Loopback,
    /// Opening the image's files, and laying the container's own over them.
    Layers,
    /// Showing a directory of the account's own inside.
    Bind,
    /// Making the root read-only, or without devices.
    RestrictRoot,
    /// Mounting the root, and pivot_root to it.
    EnterRoot,
    /// Mounting a file system.
    Mount,
    /// Showing one of the host's device nodes.
    Device,
    /// Making a link in `/dev`.
    DeviceLink,
    /// Showing who answers for names, and the container's own name.
    Names,
    /// Opening the console's terminal, or showing it.
    Console,
    /// Showing the broker's sockets.
    Broker,
    /// Making what `/run/host` tells.
    HostView,
    /// Writing what is the container's own into its root, at its first start.
    Personal,
    /// Giving up capabilities and system calls.
    Confine,
    /// Removing what an earlier start left in the payload.
    Clean,
    /// Entering the namespaces of a running container.
    Join,
    /// Looking up a user in the container.
    User,
    /// Changing to the working directory.
    WorkingDirectory,
    /// Forking the command, under the reaper.
    Fork,
    /// execve of the command.
    Execute,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Which.
    pub step: Step,
    /// What it was done to: a path, a program; may be empty.
    pub subject: String,
    /// The error number.
    pub errno: i32,
}

impl StepFailure {
    /// The exit status that shells and env(1) give for it: 127 for a command that is not there, 126 for one
    /// that cannot be executed; `None` if the failure is not the command's.
    pub fn command_status(&self) -> Option<u8> {
        match (self.step, self.errno()) {
            (Step::Execute, Some(rustix::io::Errno::NOENT)) => Some(127),
            (Step::Execute, _) => Some(126),
            _ => None,
        }
    }

    /// What to do about it, if that is known.
    pub fn hint(&self) -> Option<&'static str> {
        use rustix::io::Errno as E;
        let errno = self.errno()?;
        Some(match (self.step, errno) {
            (Step::UserNamespace, E::NOSPC) => "raise /proc/sys/user/max_user_namespaces",
            (Step::UserNamespace, E::PERM) => {
                "user namespaces are not allowed here (kernel.unprivileged_userns_clone, an LSM, or a chroot): see 'cgrant doctor'"
            }
            (Step::UserNamespace, E::ACCESS) => {
                "a security module forbids this program to make them: if it is AppArmor, the profile of cgrant lets it"
            }
            (Step::UserNamespace, E::NOSYS | E::INVAL) => "the kernel was built without user namespaces",
            (Step::Clone, E::AGAIN) => "pids.max leaves no room for the container's first process: raise it",
            (Step::Namespaces | Step::Clone, E::NOSPC) => {
                "a limit in /proc/sys/user/max_*_namespaces is used up: see 'cgrant doctor'"
            }
            (Step::Namespaces | Step::Clone, E::PERM) => {
                "the kernel gave the user namespace no capabilities (kernel.apparmor_restrict_unprivileged_userns?): see 'cgrant doctor'"
            }
            (Step::Clone, E::BUSY) => {
                "the grant's cgroup has cgroups of its own: processes can't enter it any more"
            }
            (Step::Fork, E::OWNERDEAD) => {
                "what starts processes in the container has been killed (memory.max?): stop the container and start it again"
            }
            (Step::Device, E::ACCESS) => {
                "on the host only its owner and group may open it, and in a container nobody is those: a udev rule with MODE=\"0666\" opens it"
            }
            (Step::OpenRoot, E::ACCESS) => "the directory and those above it must be open to you",
            (Step::OpenRoot, E::NOENT | E::NOTDIR) => "--root wants a directory",
            (Step::Mount, E::NOENT) => "make that directory in the root: it is a place to mount on",
            (Step::Mount, E::PERM) => {
                "the kernel mounts it only where the host's own is whole: something hides parts of the host's /proc or /sys"
            }
            (Step::Mount | Step::WorkingDirectory | Step::EnterRoot, E::ACCESS) => {
                "the container's ids are not yours: what it uses must be open to others (chmod o+rx)"
            }
            (Step::WorkingDirectory, E::NOENT) => "--workdir is a path inside the container",
            (Step::Execute, E::ACCESS) => {
                "it must be executable by others: the container's ids are not yours, and no mount on the way may be noexec"
            }
            (Step::Execute, E::NOENT) => {
                "the path is looked up inside the container; a script's interpreter must be there too"
            }
            (Step::Execute, E::NOEXEC) => {
                "it is no program for this machine, and no script that names its interpreter"
            }
            (Step::Execute, E::TOOBIG) => "arguments and environment are too long",
            _ => return None,
        })
    }

    fn errno(&self) -> Option<rustix::io::Errno> {
        (self.errno != 0).then(|| rustix::io::Errno::from_raw_os_error(self.errno))
    }
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, subject, .. } = self;
        match step {
            Step::UserNamespace => write!(f, "cannot make a user namespace"),
            Step::ShowUserNamespace => write!(f, "cannot open the new user namespace"),
            Step::ShowNetworkNamespace => write!(f, "cannot open the new network namespace"),
            Step::ShowMountNamespace => write!(f, "cannot open the new mount namespace"),
            Step::Proceed => write!(f, "the launch stage was not told to go on"),
            Step::Namespaces => write!(f, "cannot make the container's namespaces"),
            Step::Builder => write!(f, "cannot start the process that builds the container's tree"),
            Step::Clone => write!(f, "cannot make the container's first process"),
            Step::Process => write!(f, "cannot set {subject} of the container's first process"),
            Step::OpenRoot => write!(f, "cannot open the root {subject:?}"),
            Step::Credentials => write!(f, "cannot become the root of the user namespace"),
            Step::CgroupNamespace => write!(f, "cannot make a cgroup namespace"),
            Step::Hostname => write!(f, "cannot set the hostname {subject:?}"),
            Step::Loopback => write!(f, "cannot take up the loopback interface"),
            Step::Layers => write!(f, "cannot lay the container's own files over its image in {subject:?}"),
            Step::Bind => write!(f, "cannot show a directory of yours at {subject:?}"),
            Step::RestrictRoot => write!(f, "cannot restrict the mounts of the root {subject:?}"),
            Step::EnterRoot => write!(f, "cannot make {subject:?} the root"),
            Step::Mount => write!(f, "cannot mount {subject}"),
            Step::Device => write!(f, "cannot show the device {subject}"),
            Step::DeviceLink => write!(f, "cannot make the link {subject}"),
            Step::Names => write!(f, "cannot show a {subject} of its own"),
            Step::Console => write!(f, "cannot set up the terminal {subject}"),
            Step::Broker => write!(f, "cannot show the broker's sockets ({subject}) at /run/cgrant"),
            Step::HostView => write!(f, "cannot make /run/host/{subject}"),
            Step::Personal => write!(f, "cannot write /{subject}"),
            Step::Confine => write!(f, "cannot give up {subject}"),
            Step::Clean => write!(f, "cannot clean the cgroup {subject:?} of an earlier start"),
            Step::Join => write!(f, "cannot enter the container"),
            Step::User => write!(f, "cannot find the user {subject:?} in the container"),
            Step::WorkingDirectory => write!(f, "cannot enter the working directory {subject:?}"),
            Step::Fork => write!(f, "cannot start the command under the reaper"),
            Step::Execute => write!(f, "cannot execute {subject:?}"),
        }?;
        if self.errno == 0 {
            return Ok(());
        }
        write!(f, ": {}", rustix::io::Errno::from_raw_os_error(self.errno))
    }
}

/// Names the step that an error belongs to.
pub(crate) trait At<T> {
    /// The same, as the failure of `step` on `subject`.
    fn at(self, step: Step, subject: &str) -> Result<T, StepFailure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step, subject: &str) -> Result<T, StepFailure> {
        self.map_err(|error| StepFailure {
            step,
            subject: subject.to_owned(),
            errno: error.into().raw_os_error().unwrap_or(0),
        })
    }
}

/// Why a container was not launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The specification cannot be carried out.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The launch stage could not be started.
    #[error("cannot start the launch stage: {0}")]
    Stage(#[source] io::Error),
    /// A step failed; nothing is left running.
    #[error("{0}")]
    Step(StepFailure),
    /// The channel to the launch stage failed.
    #[error("the channel to the launch stage failed: {0}")]
    Channel(#[from] ChannelError),
    /// What came over the channel is not what was due.
    #[error("the launch stage answered out of turn")]
    OutOfTurn,
    /// The stage or the first process died before the command ran.
    #[error("the container's first process died while it was set up ({0})")]
    Died(Ending),
    /// A process could not be waited for.
    #[error("cannot wait for a process: {0}")]
    Wait(#[source] io::Error),
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn failure(step: Step, subject: &str, errno: rustix::io::Errno) -> StepFailure {
        Err::<(), _>(io::Error::from_raw_os_error(errno.raw_os_error())).at(step, subject).unwrap_err()
    }

    #[test]
    fn says_what_and_why_in_one_line() {
        let text = failure(Step::Mount, "proc on /proc", rustix::io::Errno::NOENT).to_string();
        assert_eq!(text, "cannot mount proc on /proc: No such file or directory (os error 2)");
    }

    #[test]
    fn command_statuses_are_those_of_shells() {
        use rustix::io::Errno;
        assert_eq!(failure(Step::Execute, "x", Errno::NOENT).command_status(), Some(127));
        assert_eq!(failure(Step::Execute, "x", Errno::ACCESS).command_status(), Some(126));
        assert_eq!(failure(Step::Execute, "x", Errno::NOEXEC).command_status(), Some(126));
        assert_eq!(failure(Step::Mount, "x", Errno::NOENT).command_status(), None);
    }

    #[test]
    fn hints_are_for_the_step_and_not_for_the_number_alone() {
        use rustix::io::Errno;
        assert!(
            failure(Step::UserNamespace, "", Errno::NOSPC).hint().unwrap().contains("max_user_namespaces")
        );
        assert!(failure(Step::UserNamespace, "", Errno::ACCESS).hint().unwrap().contains("AppArmor"));
        assert!(failure(Step::Mount, "", Errno::NOENT).hint().unwrap().contains("directory"));
        assert_eq!(failure(Step::Hostname, "", Errno::NOENT).hint(), None);
    }

    #[test]
    fn an_error_without_number_still_names_its_step() {
        let failure = Err::<(), _>(io::Error::other("x")).at(Step::Clone, "").unwrap_err();
        assert_eq!(failure.to_string(), "cannot make the container's first process");
        assert_eq!(failure.hint(), None);
    }
}
