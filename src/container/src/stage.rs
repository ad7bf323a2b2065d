//! The launch stage: a fork of the launcher that makes all namespaces but two and, once its ids are mapped, has the
//! container's tree built; once it is attached to the grant as well, it makes the container's first process as a child
//! of the launcher.
//!
//! It is a process of its own because the user namespace must exist, unmapped, before the broker is asked,
//! and because it, not the launcher, is what the broker attaches to cgroups: what enters a grant's limits
//! is this process and its descendants, never the launcher. It keeps the account's uid to its end, which is
//! what the kernel looks at when a process is cloned into the payload. The tree has to be the namespace's root's,
//! so a child builds it (see [`crate::builder`]), which has ended before the first process is made.
//!
//! The attach takes as long as all the rest together on a machine that has nothing else to do (the kernel waits for
//! a grace period), so the two go on at once. What must not is the first process: a pid namespace and a cgroup
//! namespace are made for a process that is in its cgroup from birth.
//!
//! It is forked and not executed again from a copy of the program, which would cost more than everything
//! else here. What such a copy protects from (a container that writes to the program that started it,
//! CVE-2019-5736) can't happen: the container's ids own nothing on the host, and until execve its first
//! process is not dumpable, so that nobody inside can look through it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cgrant_sys::{Channel, Child, Clone3};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};

use crate::{
    builder,
    failure::{At, LaunchError, Step, StepFailure},
    init,
    launch::Placement,
    loopback,
    message::{FromLauncher, FromStage, receive, send},
    root::NewRoot,
    spec::Prepared,
};

/// The namespaces that the stage makes for the container, besides the user namespace that owns them.
const OWN: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// The stage, from its fork to its exit status. Failures go to the launcher.
pub(crate) fn run(channel: &Channel, spec: &Prepared) -> i32 {
    launch(channel, spec).unwrap_or_else(|failure| init::report(channel, failure))
}

fn launch(channel: &Channel, spec: &Prepared) -> Result<i32, StepFailure> {
    // Whatever the launcher was started with beside its standard streams stays out of the container.
    cgrant_sys::privilege::close_fds_from(3, &[channel.as_fd().as_raw_fd()])
        .at(Step::Process, "descriptors")?;
    make_namespaces(channel, spec.links)?;
    let root = NewRoot::open(&spec.root)?;
    loopback::up().at(Step::Loopback, "")?;
    let placement = wait_for_ids(channel)?;
    let built = builder::run(channel, spec, &root, &placement)?;
    if built.status() != 0 {
        // The builder has said why, or died, which its status says.
        return Ok(built.status().into());
    }
    let payload = wait_for_cgroup(channel)?;
    let init = clone_into(payload.as_ref(), || init::run(channel, spec, &root, &placement))?;
    told(send(channel, &FromStage::Init, Some(init.pidfd.as_fd())))?;
    Ok(0)
}

/// The user namespace first, which is shown at once: the broker can be asked while the others are made.
fn make_namespaces(channel: &Channel, links: bool) -> Result<(), StepFailure> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).at(Step::UserNamespace, "")?;
    let namespace = own_namespace("user").at(Step::ShowUserNamespace, "")?;
    told(send(channel, &FromStage::UserNamespace, Some(namespace.as_fd())))?;
    nix::sched::unshare(OWN).at(Step::Namespaces, "")?;
    if !links {
        return Ok(());
    }
    let namespace = own_namespace("net").at(Step::ShowNetworkNamespace, "")?;
    told(send(channel, &FromStage::NetworkNamespace, Some(namespace.as_fd())))
}

fn own_namespace(kind: &str) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/ns/{kind}");
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// While this blocks, the broker makes the grant and maps the ids.
fn wait_for_ids(channel: &Channel) -> Result<Placement, StepFailure> {
    match receive(channel) {
        Ok(Some((FromLauncher::Mapped(placement), None))) => Ok(placement),
        _ => Err(untold()),
    }
}

/// While this blocks, the broker attaches this process: what it makes from now on is under the grant's limits. The payload, unless
/// this process is in it.
fn wait_for_cgroup(channel: &Channel) -> Result<Option<OwnedFd>, StepFailure> {
    match receive(channel) {
        Ok(Some((FromLauncher::Attached, payload))) => Ok(payload),
        _ => Err(untold()),
    }
}

/// CLONE_PARENT: the new process is the launcher's child, which can wait for it after this process is gone.
fn clone_into(payload: Option<&OwnedFd>, main: impl FnOnce() -> i32) -> Result<Child, StepFailure> {
    let clone = Clone3::new().flags(CloneFlags::CLONE_NEWPID).sibling();
    let clone = match payload {
        Some(payload) => clone.cgroup(payload.as_fd()),
        None => clone,
    };
    clone.spawn(main).at(Step::Clone, "")
}

/// A message that did not get through: the launcher is gone, and with it the reason to go on.
fn told(sent: Result<(), LaunchError>) -> Result<(), StepFailure> {
    sent.map_err(|_| untold())
}

fn untold() -> StepFailure {
    StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 }
}

/// Tries to make a process in new namespaces of every kind that a container has, as the caller; it ends at once.
///
/// # Errors
/// The step at which a launch would fail here.
pub fn try_namespaces() -> Result<(), StepFailure> {
    let trial = Clone3::new()
        .flags(OWN | CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)
        .spawn(|| 0)
        .at(Step::UserNamespace, "")?;
    trial.pidfd.wait().at(Step::UserNamespace, "").map(drop)
}
