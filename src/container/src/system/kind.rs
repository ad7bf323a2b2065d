//! What a container's init is, as far as it can be told from outside: inits differ in how they are told to end, and in whether they
//! say that they have booted.

use std::{ffi::OsString, fs, os::unix::ffi::OsStrExt};

/// What is known of an init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Busybox as init, and not as a shell.
    Busybox,
    /// Something that sleeps until a signal comes.
    Waiting,
    Other,
}

/// Names that inits go by which do not know sd_notify(3): System V's, busybox's, OpenRC's, runit's, s6's.
const SILENT: [&str; 6] = ["init", "linuxrc", "openrc-init", "runit", "runit-init", "s6-svscan"];

/// That of a process.
pub(crate) fn of(pid: u32) -> Kind {
    if program(pid).as_bytes().starts_with(b"busybox") && matches!(name(pid).as_str(), "init" | "linuxrc") {
        return Kind::Busybox;
    }
    // The kernel's function that it sleeps in, where the kernel has names for that.
    match read(pid, "wchan").starts_with("do_sigtimedwait") {
        true => Kind::Waiting,
        false => Kind::Other,
    }
}

/// Will it say when it is ready? systemd does, under whichever name it is executed; of what is no known init nothing is known.
pub(crate) fn notifies(pid: u32) -> bool {
    program(pid).as_bytes().starts_with(b"systemd") || !SILENT.contains(&name(pid).as_str())
}

/// The file that it executes, without the way there.
fn program(pid: u32) -> OsString {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    program.file_name().unwrap_or_default().to_owned()
}

fn name(pid: u32) -> String {
    read(pid, "comm").trim_end().to_owned()
}

fn read(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}
