//! Programs that are executed: this very test program, asked for a probe of what it was started with.

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use cgrant_sys::{Exit, inherited, signals::is_ignored};
use nix::sys::signal::Signal;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

use crate::{Test, errno, in_child};

pub const TESTS: &[Test] = &[
    ("programs::an_inherited_descriptor_is_taken_once", an_inherited_descriptor_is_taken_once),
    ("programs::signals_are_as_a_program_expects_them", signals_are_as_a_program_expects_them),
    ("programs::the_session_keyring_is_new", the_session_keyring_is_new),
];

/// What this program does when it is started as a probe: it looks, and says by its status whether it saw what it should.
pub fn probe(name: &str) -> ExitCode {
    let seen = match name {
        "inherited" => inherits_seven(),
        "signals" => resets_signals(),
        _ => false,
    };
    ExitCode::from(if seen { 42 } else { 1 })
}

fn inherits_seven() -> bool {
    let opened_here = std::fs::File::open("/dev/null").unwrap();
    let taken = inherited::take(7).unwrap();
    assert!(fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
    assert_eq!(rustix::fs::fstat(&taken).unwrap().st_rdev, rustix::fs::stat("/dev/zero").unwrap().st_rdev);
    for number in [-1, 0, 1, 2, 7, 8, opened_here.as_raw_fd(), i32::MAX] {
        assert_eq!(errno(inherited::take(number)), libc::EBADF, "{number}");
    }
    // Not even after somebody removed the flag that tells.
    fcntl_setfd(&taken, FdFlags::empty()).unwrap();
    errno(inherited::take(7)) == libc::EBADF
}

fn execute(program: impl std::os::fd::AsFd, probe: &str) -> i32 {
    let argument = CString::new(format!("--probe={probe}")).unwrap();
    let arguments: [&CStr; 2] = [c"test", &argument];
    let never = nix::unistd::fexecve(program, &arguments, &[] as &[&CStr]);
    panic!("{never:?}");
}

fn an_inherited_descriptor_is_taken_once() {
    let exit = in_child(|| {
        let zero = std::fs::File::open("/dev/zero").unwrap();
        cgrant_sys::privilege::close_fds_from(3, &[zero.as_raw_fd()]).unwrap();
        let (program, seven) = (std::fs::File::open("/proc/self/exe").unwrap(), 7);
        let copy = nix::fcntl::fcntl(&zero, nix::fcntl::FcntlArg::F_DUPFD(seven)).unwrap();
        assert_eq!(copy, seven);
        execute(&program, "inherited")
    });
    assert_eq!(exit, Exit::Code(42));
}

fn signals_are_as_a_program_expects_them() {
    let me = std::env::current_exe().unwrap();
    // The shell makes its own program ignore signals, a real-time one among them.
    let script = "trap '' HUP INT TERM USR1 40; exec \"$0\" --probe=signals";
    let exit = std::process::Command::new("sh").args(["-c", script]).arg(me).status().unwrap();
    assert_eq!(exit.code(), Some(42));
}

fn resets_signals() -> bool {
    let ignored = 1 << 39 | 0b100_0000_0000_0011;
    nix::sys::signal::SigSet::all().thread_block().unwrap();
    assert_eq!(signal_set("SigIgn") & ignored, ignored);
    assert_ne!(signal_set("SigBlk"), 0);
    let of_these = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGUSR2];
    assert_eq!(of_these.map(|signal| is_ignored(signal).unwrap()), [true, true, true, true, false]);
    cgrant_sys::signals::reset().unwrap();
    assert_eq!(of_these.map(|signal| is_ignored(signal).unwrap()), [false; 5]);
    for label in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(signal_set(label), 0, "{label}");
    }
    true
}

fn signal_set(label: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(":\t")).unwrap();
    // Signals 32 and 33 are libc's own: it sets them when it needs them, whatever was inherited.
    u64::from_str_radix(line, 16).unwrap() & !(0b11 << 31)
}

fn the_session_keyring_is_new() {
    let keys = || std::fs::read_to_string("/proc/keys").unwrap_or_default();
    let before = keys();
    cgrant_sys::keyring::new_session().unwrap();
    // A kernel without keyrings has no such file.
    assert!(!std::path::Path::new("/proc/keys").exists() || keys() != before);
}
