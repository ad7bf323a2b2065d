//! The kernel's keyrings of a process.
//!
//! Source: `keyctl(2)`.

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
const JOIN_SESSION: libc::c_ulong = 1;

/// Gives this process a new, empty session keyring without name, so that it and its descendants do not hold
/// the keys of the session that it was started in. A kernel without keyrings has none to give away: no error.
///
/// # Errors
/// `EDQUOT` and `ENOMEM`: the quota of keys of the account is used up.
pub fn new_session() -> io::Result<()> {
    // SAFETY: takes numbers only; a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION, std::ptr::null::<libc::c_char>()) };
    let error = io::Error::last_os_error();
    if result >= 0 || error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) }
}
