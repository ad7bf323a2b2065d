//! The container's first process, from its clone to its execve.
//!
//! It begins with the account's uid and capabilities of the user namespace, in the host's tree, beside which its own
//! stands ready, and ends as the namespace's root in that one. What is mounted here shows the namespaces that begin with
//! this process: that of pids and that of cgroups.
//!
//! no_new_privs is not set: setuid programs work inside, between ids of the namespace. Capabilities stay
//! those of the namespace's root. From the change of uid to execve the process is not dumpable.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use cgrant_sys::{Channel, privilege};
use nix::sched::CloneFlags;
use rustix::{
    fs::Mode,
    process::{Gid, Uid},
};

use crate::{
    failure::{At, Step, StepFailure},
    launch::Placement,
    message::{FromStage, send},
    reaper,
    root::NewRoot,
    spec::Prepared,
};

/// Of whatever is made for a container, and of its command to begin with.
pub(crate) const UMASK: u32 = 0o022;

/// Runs to the command's execve, or to the exit status of a failure, which the launcher is told.
pub(crate) fn run(channel: &Channel, spec: &Prepared, root: &NewRoot, placement: &Placement) -> i32 {
    let prepared = set_up(spec, root, placement).and_then(|()| forget_host(&[channel.as_fd()]));
    let failure = match prepared {
        Ok(()) if spec.reaper => match reaper::run(channel, || execute(channel, spec)) {
            Ok(status) => return status,
            Err(failure) => failure,
        },
        Ok(()) => execute(channel, spec),
        Err(failure) => failure,
    };
    report(channel, failure)
}

/// Tells the launcher and gives the exit status.
pub(crate) fn report(channel: &Channel, failure: StepFailure) -> i32 {
    let status = failure.command_status().unwrap_or(1);
    // Without a launcher nobody is left to tell; the status says it too.
    let _ = send(channel, &FromStage::Failed(failure), None);
    i32::from(status)
}

fn set_up(spec: &Prepared, root: &NewRoot, placement: &Placement) -> Result<(), StepFailure> {
    clean_process()?;
    become_root(spec.setgroups)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).at(Step::CgroupNamespace, "")?;
    root.enter(placement)
}

/// Nothing of the launcher's surroundings stays: signal mask and dispositions, controlling terminal (with
/// which a process could type into the caller's shell), session keyring, umask.
pub(crate) fn clean_process() -> Result<(), StepFailure> {
    cgrant_sys::signals::reset().at(Step::Process, "signals")?;
    rustix::process::setsid().at(Step::Process, "session")?;
    cgrant_sys::keyring::new_session().at(Step::Process, "keyring")?;
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    Ok(())
}

/// Closes all descriptors but the standard streams and `keep`, and has nobody look through this process: what the last step before
/// anything that a container has made is followed or executed.
///
/// A link there, a home in its passwd, the path of a program may be `/proc/self/fd/N`. If that were a directory of the
/// host's (a cgroup's, the place of the root), the way up from it would be the way out (CVE-2024-21626): the kernel keeps
/// mounts that were left behind together. And where `fs.suid_dumpable` is 1, the change of uid has made this process one that
/// others of the container's root may look through.
pub(crate) fn forget_host(keep: &[BorrowedFd<'_>]) -> Result<(), StepFailure> {
    privilege::set_dumpable(false).at(Step::Process, "memory")?;
    let keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    privilege::close_fds_from(3, &keep).at(Step::Process, "descriptors")
}

/// Uid and gid 0 of the namespace, whose map the broker has written; no supplementary groups, unless the
/// namespace may not call setgroups, where the account's groups stay (they appear as `nogroup`).
pub(crate) fn become_root(setgroups: bool) -> Result<(), StepFailure> {
    if setgroups {
        rustix::thread::set_thread_groups(&[]).at(Step::Credentials, "")?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).at(Step::Credentials, "")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).at(Step::Credentials, "")
}

/// Becomes the command. Returns only the reason why not.
fn execute(channel: &Channel, spec: &Prepared) -> StepFailure {
    if let Err(error) = rustix::process::chdir(spec.directory.as_c_str()) {
        return failure(Step::WorkingDirectory, &spec.directory, error.raw_os_error());
    }
    if send(channel, &FromStage::Executing, None).is_err() {
        return StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 };
    }
    let Err((program, errno)) = execute_first(&spec.programs, &spec.argv, &spec.env);
    failure(Step::Execute, program, errno as i32)
}

/// Tries the program's candidates in order, as a shell does: one that is there and may not be executed is
/// remembered, because it says more than that the last one was not there.
pub(crate) fn execute_first<'p>(
    programs: &'p [CString],
    argv: &'p [CString],
    env: &[CString],
) -> Result<Infallible, (&'p CStr, nix::errno::Errno)> {
    let mut worst = None;
    for program in programs {
        let Err(errno) = nix::unistd::execve(program, argv, env);
        match errno {
            nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR => {}
            nix::errno::Errno::EACCES => worst = worst.or(Some((program.as_c_str(), errno))),
            _ => return Err((program, errno)),
        }
    }
    let named = argv.first().map_or(c"", CString::as_c_str);
    Err(worst.unwrap_or((named, nix::errno::Errno::ENOENT)))
}

pub(crate) fn failure(step: Step, subject: &CStr, errno: i32) -> StepFailure {
    StepFailure { step, subject: subject.to_string_lossy().into_owned(), errno }
}
