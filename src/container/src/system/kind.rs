//! What a container's init is, as far as it can be told from outside: inits differ in how they are told to end, and in whether they
//! say that they have booted.

use std::{ffi::OsString, fs, os::unix::ffi::OsStrExt};

/// What is known of an init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// systemd, or what it has become to end the container.
    Systemd,
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
    let program = program(pid);
    if program.as_bytes().starts_with(b"systemd") {
        return Kind::Systemd;
    }
    if program.as_bytes().starts_with(b"busybox") && matches!(name(pid).as_str(), "init" | "linuxrc") {
        return Kind::Busybox;
    }
    // The kernel's function that it sleeps in, where the kernel has names for that.
    match read(pid, "wchan").starts_with("do_sigtimedwait") {
        true => Kind::Waiting,
        false => Kind::Other,
    }
}

/// Which execution of a program a process is at, as a number that another one has not: where its stack begins, which the kernel
/// chooses at random (proc_pid_stat(5), `startstack`). `None` if it ended, or can't be looked at.
pub(crate) fn execution(pid: u32) -> Option<u64> {
    parse_execution(&read(pid, "stat"))
}

/// The second field, the program's name, may hold anything; the last `)` ends it.
fn parse_execution(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    // Field 28, where the third is the first here.
    rest.split_ascii_whitespace().nth(25)?.parse().ok().filter(|place| *place != 0)
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_told_apart() {
        let own = execution(std::process::id()).unwrap();
        assert_eq!(execution(std::process::id()), Some(own));
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        // The kernel lets who spawned it go on before the new stack is there.
        let theirs = std::iter::repeat_with(|| execution(other.id())).take(1_000_000).find_map(|found| found);
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(theirs.is_some_and(|theirs| theirs != own), "{theirs:?} {own}");
        assert_eq!(execution(other.id()), None);
        let fields: Vec<String> = (3..=52).map(|field: u32| field.to_string()).collect();
        assert_eq!(parse_execution(&format!("1 (a) b) {}", fields.join(" "))), Some(28));
        assert_eq!(parse_execution("1 (a) S 0"), None);
    }
}
