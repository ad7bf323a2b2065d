//! Starting programs with exactly the descriptors that they shall have.
//!
//! Source: `execve(2)`, `dup(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// Makes `command` start with the given descriptors under the given numbers (3 or higher, each once).
/// Beside them the child has the standard streams that `command` says, and whatever else in this process lacks close-on-exec.
///
/// The command keeps the descriptors until it is dropped.
///
/// # Errors
/// `EINVAL` for a number below 3 or one that is there twice; `EMFILE`.
pub fn with_fds<'a>(
    command: &'a mut Command,
    fds: &[(BorrowedFd<'_>, RawFd)],
) -> io::Result<&'a mut Command> {
    let mut targets: Vec<RawFd> = fds.iter().map(|(_, target)| *target).collect();
    targets.sort_unstable();
    targets.dedup();
    let Some(highest) = targets.last().copied() else { return Ok(command) };
    if targets.len() != fds.len() || targets.first().is_none_or(|lowest| *lowest <= libc::STDERR_FILENO) {
        return Err(Errno::INVAL.into());
    }
    // Copies above all targets, so that no step overwrites what a later one needs.
    let above = highest.checked_add(1).ok_or(Errno::INVAL)?;
    let moves = fds
        .iter()
        .map(|(fd, target)| Ok((fcntl_dupfd_cloexec(fd, above)?, *target)))
        .collect::<io::Result<Vec<(OwnedFd, RawFd)>>>()?;
    let apply = move || moves.iter().try_for_each(|(source, target)| place(source.as_raw_fd(), *target));
    // SAFETY: between fork and exec `apply` calls dup2 only, which is async-signal-safe; it neither allocates nor locks.
    // The numbers that it overwrites are the child's own copies, which nothing uses before exec.
    Ok(unsafe { command.pre_exec(apply) })
}

/// `dup2` leaves the copy without close-on-exec, which is what is wanted.
fn place(source: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers only; runs in the forked child, where overwriting `target` harms nobody.
    if unsafe { libc::dup2(source, target) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
