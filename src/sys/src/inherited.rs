//! Descriptors that a process was started with.
//!
//! Only the number of an inherited descriptor is known, and whoever owns the number may close it. So each
//! may be taken once, and only one that has no close-on-exec flag: everything that this program opens has it,
//! so a descriptor without it was there before the program began.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};

static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes the inherited descriptor `number` (3 or higher) and sets its close-on-exec flag.
///
/// # Errors
/// `EBADF` if there is no such descriptor, it is a standard stream, this program opened it itself, or it was taken before.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(Errno::BADF.into());
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the number is only looked at here; if nothing is open there the kernel says EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    if fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) || !taken.insert(number) {
        return Err(Errno::BADF.into());
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, was inherited (no close-on-exec flag), and `TAKEN` gives it to one owner only.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
