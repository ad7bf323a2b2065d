//! Linux-PAM's interface to modules (pam(3), libpam's ABI `LIBPAM_MODULES_1.0`): what a session module is called by and
//! what it calls.
//!
//! Few declarations, so they are here: the crates that have them either are under another licence, let a panic end the program
//! that loads the module, or ask for libpam's development files. The library is named by its file, so that those need not be
//! there.

use std::{
    ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_void},
    fmt,
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::{self, NonNull},
    slice,
};

/// `PAM_SUCCESS`.
const SUCCESS: c_int = 0;
/// `PAM_SESSION_ERR`.
const SESSION_ERR: c_int = 14;
/// `PAM_USER`.
const USER: c_int = 2;
/// Most arguments of a module that are looked at.
const MAX_ARGUMENTS: usize = 256;
/// Under which name a module's word to itself is kept.
const KEPT: &CStr = c"cgrant_session";

/// `pam_handle_t`.
#[repr(C)]
#[derive(Debug)]
pub struct RawHandle {
    _private: [u8; 0],
}

type Cleanup = unsafe extern "C" fn(*mut RawHandle, *mut c_void, c_int);

#[link(name = "libpam.so.0", kind = "dylib", modifiers = "+verbatim")]
unsafe extern "C" {
    fn pam_get_item(handle: *const RawHandle, kind: c_int, item: *mut *const c_void) -> c_int;
    fn pam_set_data(
        handle: *mut RawHandle,
        name: *const c_char,
        data: *mut c_void,
        cleanup: Option<Cleanup>,
    ) -> c_int;
    fn pam_get_data(handle: *const RawHandle, name: *const c_char, data: *mut *const c_void) -> c_int;
    fn pam_syslog(handle: *const RawHandle, priority: c_int, format: *const c_char, ...);
}

/// How much a line of the log matters; those of syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// `LOG_ERR`.
    Error = libc::LOG_ERR as isize,
    /// `LOG_WARNING`.
    Warning = libc::LOG_WARNING as isize,
    /// `LOG_DEBUG`.
    Debug = libc::LOG_DEBUG as isize,
}

/// What a module says to the program that opens or closes a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `PAM_SUCCESS`.
    Success,
    /// `PAM_SESSION_ERR`.
    SessionError,
}

/// The program's conversation with PAM, while a module is called.
#[derive(Debug)]
pub struct Handle(NonNull<RawHandle>);

/// A module for the management group `session`.
pub trait SessionModule {
    /// `pam_sm_open_session(3)`.
    fn open_session(handle: &mut Handle, arguments: &[OsString]) -> Verdict;
    /// `pam_sm_close_session(3)`.
    fn close_session(handle: &mut Handle, arguments: &[OsString]) -> Verdict;
}

impl Handle {
    /// Whose session it is, if that is known and text. Nobody is asked.
    #[must_use]
    pub fn user(&self) -> Option<String> {
        let mut item: *const c_void = ptr::null();
        // SAFETY: the handle is libpam's and valid during the call of the module that it was given to; `item` may be written.
        let status = unsafe { pam_get_item(self.0.as_ptr(), USER, &raw mut item) };
        if status != SUCCESS || item.is_null() {
            return None;
        }
        // SAFETY: `PAM_USER` is a string of libpam's, valid until it is set again, which nobody does before the copy is made.
        let name = unsafe { CStr::from_ptr(item.cast()) };
        name.to_str().ok().map(str::to_owned)
    }

    /// Writes a line to the log, with the names of program and module before it. Zero bytes and line ends in it are left out.
    pub fn log(&self, priority: Priority, line: &impl fmt::Display) {
        let line: String = line.to_string().chars().filter(|letter| !letter.is_control()).collect();
        let Ok(line) = CString::new(line) else { return };
        // SAFETY: the format takes one string, which is one, and lives until the call returns.
        unsafe { pam_syslog(self.0.as_ptr(), priority as c_int, c"%s".as_ptr(), line.as_ptr()) }
    }

    /// Keeps a word for [`Handle::kept`] until the program ends its conversation with PAM, instead of what was kept before.
    /// Was there memory for it?
    #[must_use]
    pub fn keep(&mut self, word: &str) -> bool {
        let Ok(word) = CString::new(word) else { return false };
        let data = word.into_raw();
        // SAFETY: the name is a string that libpam copies; `data` is a string that `forget` knows how to free.
        let status = unsafe { pam_set_data(self.0.as_ptr(), KEPT.as_ptr(), data.cast(), Some(forget)) };
        if status != SUCCESS {
            // SAFETY: libpam has not taken it, and it is the string that was made above.
            drop(unsafe { CString::from_raw(data) });
        }
        status == SUCCESS
    }

    /// What was kept.
    #[must_use]
    pub fn kept(&self) -> Option<String> {
        let mut data: *const c_void = ptr::null();
        // SAFETY: the handle is valid, the name a string, and `data` may be written.
        let status = unsafe { pam_get_data(self.0.as_ptr(), KEPT.as_ptr(), &raw mut data) };
        if status != SUCCESS || data.is_null() {
            return None;
        }
        // SAFETY: nobody but this module, in whatever build, puts something under the name, and that is a string, which is freed
        // when it is replaced or the conversation ends: not before the copy is made.
        let word = unsafe { CStr::from_ptr(data.cast()) };
        word.to_str().ok().map(str::to_owned)
    }
}

/// Frees what [`Handle::keep`] made.
unsafe extern "C" fn forget(_handle: *mut RawHandle, data: *mut c_void, _status: c_int) {
    // SAFETY: libpam calls it once, with what `keep` gave.
    drop(unsafe { CString::from_raw(data.cast()) });
}

/// What the functions that [`pam_session_module`](crate::pam_session_module) makes do. A panic does not get past it: it would
/// end the program that loads the module.
///
/// # Safety
/// As libpam calls a module: a valid handle, and `argc` strings at `argv`.
pub unsafe fn enter(
    handle: *mut RawHandle,
    argc: c_int,
    argv: *const *const c_char,
    act: fn(&mut Handle, &[OsString]) -> Verdict,
) -> c_int {
    let Some(handle) = NonNull::new(handle) else { return SESSION_ERR };
    // SAFETY: the caller's word.
    let arguments = unsafe { arguments(argc, argv) };
    match catch_unwind(AssertUnwindSafe(|| act(&mut Handle(handle), &arguments))) {
        Ok(Verdict::Success) => SUCCESS,
        Ok(Verdict::SessionError) | Err(_) => SESSION_ERR,
    }
}

/// A module's arguments.
///
/// # Safety
/// There are `argc` strings at `argv`.
unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    let count = usize::try_from(argc).unwrap_or(0).min(MAX_ARGUMENTS);
    if argv.is_null() || count == 0 {
        return Vec::new();
    }
    // SAFETY: the caller's word; it is not null, and there are `count` at least.
    let strings = unsafe { slice::from_raw_parts(argv, count) };
    // SAFETY: each is a string, by the caller's word.
    let bytes =
        strings.iter().filter(|string| !string.is_null()).map(|string| unsafe { CStr::from_ptr(*string) });
    bytes.map(|string| OsStr::from_bytes(string.to_bytes()).to_owned()).collect()
}

/// Makes the functions that libpam looks for in a module, for a type that is a [`SessionModule`].
#[macro_export]
macro_rules! pam_session_module {
    ($module:ty) => {
        /// What libpam calls when a session begins.
        ///
        /// # Safety
        /// For libpam alone.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pam_sm_open_session(
            handle: *mut $crate::pam::RawHandle,
            _flags: ::std::ffi::c_int,
            argc: ::std::ffi::c_int,
            argv: *const *const ::std::ffi::c_char,
        ) -> ::std::ffi::c_int {
            // SAFETY: libpam calls it as it calls every module.
            unsafe {
                $crate::pam::enter(handle, argc, argv, <$module as $crate::pam::SessionModule>::open_session)
            }
        }

        /// What libpam calls when a session has ended.
        ///
        /// # Safety
        /// For libpam alone.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pam_sm_close_session(
            handle: *mut $crate::pam::RawHandle,
            _flags: ::std::ffi::c_int,
            argc: ::std::ffi::c_int,
            argv: *const *const ::std::ffi::c_char,
        ) -> ::std::ffi::c_int {
            // SAFETY: libpam calls it as it calls every module.
            unsafe {
                $crate::pam::enter(handle, argc, argv, <$module as $crate::pam::SessionModule>::close_session)
            }
        }
    };
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn entered(act: fn(&mut Handle, &[OsString]) -> Verdict, argv: &[*const c_char]) -> c_int {
        let mut raw = RawHandle { _private: [] };
        // SAFETY: nothing is done with the handle, and the arguments are as many as is said.
        unsafe { enter(&raw mut raw, c_int::try_from(argv.len()).unwrap(), argv.as_ptr(), act) }
    }

    #[test]
    fn arguments_come_and_verdicts_go() {
        let argv = [c"-c".as_ptr(), c"memory".as_ptr(), ptr::null()];
        let act: fn(&mut Handle, &[OsString]) -> Verdict = |_, arguments| {
            assert_eq!(arguments, ["-c", "memory"]);
            Verdict::Success
        };
        assert_eq!(entered(act, &argv), SUCCESS);
        assert_eq!(entered(|_, _| Verdict::SessionError, &[]), SESSION_ERR);
    }

    #[test]
    fn a_panic_goes_no_further() {
        assert_eq!(entered(|_, _| panic!("on purpose"), &[]), SESSION_ERR);
    }

    #[test]
    fn without_a_handle_nothing_is_done() {
        // SAFETY: nothing is valid, and nothing is looked at.
        let status = unsafe { enter(ptr::null_mut(), 1, ptr::null(), |_, _| Verdict::Success) };
        assert_eq!(status, SESSION_ERR);
    }
}
