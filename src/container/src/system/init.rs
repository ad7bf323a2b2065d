//! A system container's first process, from its clone to the execve of its init.
//!
//! As in every container it begins with the account's uid and all capabilities of the user namespace, opens the root as
//! the account, and ends as the namespace's root in a tree of its own, here with fewer capabilities and system calls.

use std::os::fd::{AsFd, BorrowedFd};

use cgrant_sys::Channel;
use nix::{sched::CloneFlags, unistd};
use rustix::fs::{CWD, Mode, OFlags};

use super::{
    confine, environment, host_keys,
    message::{FromInit, ToInit},
    payload,
    spec::Prepared,
    tree,
};
use crate::{
    failure::{At, Step, StepFailure},
    init::{become_root, clean_process, execute_first, failure, forget_host},
    launch::Placement,
    loopback,
    message::{receive, send},
};

/// Runs to init's execve, or to the exit status of a failure, which the monitor is told. `shares_cgroup`: is who cloned it in the
/// payload, too?
pub(crate) fn run(channel: &Channel, spec: &Prepared, placement: &Placement, shares_cgroup: bool) -> i32 {
    let failure = match set_up(channel, spec, placement, shares_cgroup) {
        Ok(os_release) => execute(channel, spec, &os_release),
        Err(failure) => failure,
    };
    let status = failure.command_status().unwrap_or(1);
    let _ = send(channel, &FromInit::Failed(failure), None);
    i32::from(status)
}

fn set_up(
    channel: &Channel,
    spec: &Prepared,
    placement: &Placement,
    shares_cgroup: bool,
) -> Result<String, StepFailure> {
    clean_process()?;
    let opened = tree::open(spec)?;
    let os_release = environment::os_release();
    become_root(true)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).at(Step::CgroupNamespace, "")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).at(Step::Hostname, &spec.hostname)?;
    loopback::up().at(Step::Loopback, "")?;
    let kept = tree::enter(&opened, spec, placement, &os_release)?;
    show(channel, &FromInit::Console, kept.console.as_fd())?;
    show(channel, &FromInit::Terminals, kept.terminals.as_fd())?;
    show(channel, &FromInit::Notify, kept.notify.as_fd())?;
    if shares_cgroup {
        be_alone(channel)?;
    }
    use_console().at(Step::Console, "/dev/console")?;
    confine::bound_capabilities().at(Step::Confine, "capabilities")?;
    confine::refuse_calls().at(Step::Confine, "system calls")?;
    drop((opened, kept));
    forget_host(&[channel.as_fd()])?;
    if spec.personal.as_ref().is_some_and(|personal| personal.new) {
        // Its SSH server fails then, and says so itself.
        let _ = host_keys::make();
    }
    Ok(os_release)
}

/// Has who cloned this process leave the payload, where init is to be alone.
fn be_alone(channel: &Channel) -> Result<(), StepFailure> {
    let [directory, procs, leaf] = payload::open_inside().at(Step::Clone, "the payload's leaf")?;
    show(channel, &FromInit::Payload, directory.as_fd())?;
    show(channel, &FromInit::Procs, procs.as_fd())?;
    show(channel, &FromInit::Leaf, leaf.as_fd())?;
    match receive(channel) {
        Ok(Some((ToInit::Alone, None))) => Ok(()),
        _ => Err(gone()),
    }
}

fn show(channel: &Channel, message: &FromInit, fd: BorrowedFd<'_>) -> Result<(), StepFailure> {
    send(channel, message, Some(fd)).map_err(|_| gone())
}

/// Without a monitor there is no reason to go on.
fn gone() -> StepFailure {
    StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 }
}

/// Standard streams are the console, which is nobody's controlling terminal yet: a getty takes it.
fn use_console() -> rustix::io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let console = rustix::fs::openat(CWD, "/dev/console", flags, Mode::empty())?;
    take_streams([console.as_fd(); 3])
}

/// Makes these the standard streams.
pub(crate) fn take_streams([input, output, error]: [BorrowedFd<'_>; 3]) -> rustix::io::Result<()> {
    let errno = |errno: nix::errno::Errno| rustix::io::Errno::from_raw_os_error(errno as i32);
    unistd::dup2_stdin(input).map_err(errno)?;
    unistd::dup2_stdout(output).map_err(errno)?;
    unistd::dup2_stderr(error).map_err(errno)
}

/// Becomes init. Returns only the reason why not.
fn execute(channel: &Channel, spec: &Prepared, os_release: &str) -> StepFailure {
    let environment = environment::of_init(spec, os_release);
    if send(channel, &FromInit::Executing, None).is_err() {
        return gone();
    }
    let Err((program, errno)) = execute_first(&spec.programs, &spec.argv, &environment);
    failure(Step::Execute, program, errno as i32)
}
