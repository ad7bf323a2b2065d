//! The launch stage: a fork of the launcher that makes the user namespace and, once its ids are mapped,
//! the container's first process as a child of the launcher.
//!
//! It is a process of its own because the user namespace must exist, unmapped, before the broker is asked,
//! and because it, not the launcher, is what the broker attaches to cgroups: what enters a grant's limits
//! is this process and its descendants, never the launcher. It keeps the account's uid to its end, which is
//! what the kernel looks at when a process is cloned into the payload.
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
    failure::{At, LaunchError, Step, StepFailure},
    init,
    launch::Placement,
    message::{FromStage, receive, send},
    spec::Prepared,
};

/// The namespaces of a container, besides those of the stage itself, that is, the user namespace that the stage is already in, and the cgroup
/// namespace, which must be made from inside the payload.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// The stage, from its fork to its exit status. Failures go to the launcher.
pub(crate) fn run(channel: &Channel, spec: &Prepared) -> i32 {
    let Err(failure) = launch(channel, spec) else { return 0 };
    // Nobody is left to tell if this fails too: the launcher sees the channel end and the status.
    let _ = send(channel, &FromStage::Failed(failure), None);
    1
}

fn launch(channel: &Channel, spec: &Prepared) -> Result<(), StepFailure> {
    // Whatever the launcher was started with beside its standard streams stays out of the container.
    cgrant_sys::privilege::close_fds_from(3, &[channel.as_fd().as_raw_fd()])
        .at(Step::Process, "descriptors")?;
    show_namespaces(channel, spec.links)?;
    let (placement, payload) = wait_for_placement(channel)?;
    let made = if spec.links { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    let init = clone_into(&payload, NAMESPACES - made, || init::run(channel, spec, &placement))?;
    told(send(channel, &FromStage::Init, Some(init.pidfd.as_fd())))
}

/// In one call the user namespace comes first, and owns the network namespace (user_namespaces(7)).
fn show_namespaces(channel: &Channel, network: bool) -> Result<(), StepFailure> {
    let network_too = if network { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | network_too).at(Step::UserNamespace, "")?;
    let namespace = own_namespace("user").at(Step::ShowUserNamespace, "")?;
    told(send(channel, &FromStage::UserNamespace, Some(namespace.as_fd())))?;
    if !network {
        return Ok(());
    }
    let namespace = own_namespace("net").at(Step::ShowNetworkNamespace, "")?;
    told(send(channel, &FromStage::NetworkNamespace, Some(namespace.as_fd())))
}

fn own_namespace(kind: &str) -> rustix::io::Result<OwnedFd> {
    let path = format!("/proc/self/ns/{kind}");
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Waits for the launcher; while this blocks, the broker maps the ids and attaches this process.
fn wait_for_placement(channel: &Channel) -> Result<(Placement, OwnedFd), StepFailure> {
    match receive(channel) {
        Ok(Some((placement, Some(payload)))) => Ok((placement, payload)),
        _ => Err(StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 }),
    }
}

/// CLONE_PARENT: the new process is the launcher's child, which can wait for it after this process is gone.
fn clone_into(
    payload: &OwnedFd,
    namespaces: CloneFlags,
    main: impl FnOnce() -> i32,
) -> Result<Child, StepFailure> {
    Clone3::new().flags(namespaces).sibling().cgroup(payload.as_fd()).spawn(main).at(Step::Clone, "")
}

/// A message that did not get through: the launcher is gone, and with it the reason to go on.
fn told(sent: Result<(), LaunchError>) -> Result<(), StepFailure> {
    sent.map_err(|_| StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 })
}

/// Tries to make a process in new namespaces of every kind that a container has, as the caller; it ends at once.
///
/// # Errors
/// The step at which a launch would fail here.
pub fn try_namespaces() -> Result<(), StepFailure> {
    let trial = Clone3::new()
        .flags(NAMESPACES | CloneFlags::CLONE_NEWUSER)
        .spawn(|| 0)
        .at(Step::UserNamespace, "")?;
    trial.pidfd.wait().at(Step::UserNamespace, "").map(drop)
}
