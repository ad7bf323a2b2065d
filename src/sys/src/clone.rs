//! `clone3(2)`: a child that is born in its namespaces and its cgroup, with its pidfd.
//!
//! Rules for the child's function, which the caller keeps:
//! * It runs in a copy of this process. Nothing of the parent's frames is dropped there, and `Child` ends with
//!   `_exit`, whatever the function does: a panic is caught and becomes status [`PANICKED`].
//! * It should finish or exec. libc was not told about the new process: do not start threads in it.
//! * Buffers of standard streams are not flushed at `_exit`.
//! * Every descriptor of the parent is open in it, until it execs.
//!
//! Source: `clone(2)`, section "The clone3 system call"; `CLONE_INTO_CGROUP` needs kernel 5.7 and cgroup2.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sched::CloneFlags;
use rustix::io::Errno;

use crate::pidfd::Pidfd;
use crate::privilege::thread_count;

/// Status of a child whose function panicked.
pub const PANICKED: i32 = 101;

/// `CLONE_INTO_CGROUP` and `CLONE_PIDFD` as the kernel's header has them; the first does not fit libc's type.
const INTO_CGROUP: u64 = 0x2_0000_0000;
const PIDFD: u64 = 0x1000;

/// Flags that only decide what namespaces the child is in. All others would make it share memory, descriptors
/// or identity with this process, for which the code here is not sound.
const ALLOWED: CloneFlags = CloneFlags::CLONE_NEWCGROUP
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUSER)
    .union(CloneFlags::CLONE_NEWUTS);

/// A child to be made.
#[derive(Debug, Clone, Copy)]
pub struct Clone3<'fd> {
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'fd>>,
    sibling: bool,
}

/// A child that was made. It is to be waited for ([`Pidfd::wait`]), by its parent.
#[derive(Debug)]
pub struct Child {
    /// Its pid as this process sees it.
    pub pid: u32,
    /// Its pidfd, close-on-exec.
    pub pidfd: Pidfd,
}

impl Default for Clone3<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'fd> Clone3<'fd> {
    /// A child in the namespaces and the cgroup of this process.
    #[must_use]
    pub fn new() -> Self {
        Self { namespaces: CloneFlags::empty(), cgroup: None, sibling: false }
    }

    /// In new namespaces: `CLONE_NEW*` flags, others make [`Clone3::spawn`] refuse.
    #[must_use]
    pub fn flags(mut self, flags: CloneFlags) -> Self {
        self.namespaces = flags;
        self
    }

    /// In this cgroup2 cgroup.
    #[must_use]
    pub fn cgroup(mut self, directory: BorrowedFd<'fd>) -> Self {
        self.cgroup = Some(directory);
        self
    }

    /// As a child of this process's parent instead (`CLONE_PARENT`), which then is who can wait for it, and gets
    /// the signal that it gets for this process.
    #[must_use]
    pub fn sibling(mut self) -> Self {
        self.sibling = true;
        self
    }

    /// Makes the child, which runs `child` and ends with the status that it returns.
    ///
    /// # Errors
    /// `EBUSY` if this process has more than one thread: the child would have one, and locks that the others held
    /// for ever. `EINVAL` for flags other than namespaces. Those of `clone3(2)`: `EPERM`, `EAGAIN`, `ENOSYS`;
    /// with a cgroup `EACCES`, `EBUSY` (domain with controllers enabled), `EOPNOTSUPP`, `ENODEV`.
    pub fn spawn(self, child: impl FnOnce() -> i32) -> io::Result<Child> {
        if !ALLOWED.contains(self.namespaces) {
            return Err(Errno::INVAL.into());
        }
        if thread_count()? != 1 {
            return Err(Errno::BUSY.into());
        }
        let mut pidfd: RawFd = -1;
        // SAFETY: the structure is plain integers, for which zero bytes are a valid value.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = u64::from(self.namespaces.bits().cast_unsigned()) | PIDFD;
        arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
        if self.sibling {
            // The exit signal is then that of this process, and the field must be 0.
            arguments.flags |= u64::from(libc::CLONE_PARENT.cast_unsigned());
        } else {
            arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        }
        if let Some(directory) = self.cgroup {
            arguments.flags |= INTO_CGROUP;
            arguments.cgroup = u64::from(directory.as_raw_fd().cast_unsigned());
        }
        // SAFETY: without CLONE_VM the child has its own copy of all memory, as after fork(2), so `stack` may be null.
        // The process has one thread, so no lock is held by anybody who does not exist in the child.
        // `arguments` and `pidfd` outlive the call.
        let result =
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
        match result {
            0 => run(child),
            pid if pid > 0 => {
                // SAFETY: the kernel has just made this descriptor for us (CLONE_PIDFD), and nobody else knows its number.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let pid = u32::try_from(pid).map_err(|_| Errno::RANGE)?;
                Ok(Child { pid, pidfd: Pidfd::from_kernel(pidfd) })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The whole life of the child.
fn run(child: impl FnOnce() -> i32) -> ! {
    // Unwinding further would run the parent's code in the child.
    let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
    // SAFETY: ends the process at once; no destructor or exit handler of the parent's runs.
    unsafe { libc::_exit(status) }
}
