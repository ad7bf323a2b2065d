//! How a container's init is told to end.
//!
//! There is no one signal for it. Which ones an init takes tells what it is: only systemd takes `SIGRTMIN+3`. A signal that the first
//! process of a pid namespace has no handler for is lost (pid_namespaces(7)), so that asking the wrong way does nothing.

use std::{fs, io, os::unix::ffi::OsStrExt};

use cgrant_sys::{Pidfd, pidfd::Signal};

use crate::container::{Disposition, Dispositions};

/// `SIGRTMIN+3` of the C libraries, which is 34 + 3.
const HALT: i32 = 37;

/// Tells it. `false` if it takes no signal that would end it, yet or at all.
pub(crate) fn tell(init: &Pidfd, pid: u32) -> io::Result<bool> {
    let dispositions = Dispositions::of_process(pid)?;
    let takes = |signal| dispositions.of_number(signal).is_ok_and(|taken| taken == Disposition::Takes);
    match choose(takes, is_busybox(pid)) {
        Some(signal) => init.send_number(signal).map(|()| true),
        None => Ok(false),
    }
}

/// Busybox takes SIGPWR as nothing, SIGTERM as reboot, and SIGUSR2 as power off; of the others SIGPWR is that of System V init and
/// OpenRC's, SIGTERM that of everything that is no system's init.
fn choose(takes: impl Fn(i32) -> bool, busybox: bool) -> Option<i32> {
    let (power, terminate, user2) = (Signal::POWER.as_raw(), Signal::TERM.as_raw(), Signal::USR2.as_raw());
    let order = match busybox {
        true => [user2, user2, user2],
        false => [HALT, power, terminate],
    };
    order.into_iter().find(|signal| takes(*signal))
}

/// Busybox as init, and not as a shell.
fn is_busybox(pid: u32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    program.file_name().is_some_and(|name| name.as_bytes().starts_with(b"busybox"))
        && matches!(name.trim_end(), "init" | "linuxrc")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_asked_in_its_own_way() {
        let among = |signals: &'static [i32]| move |signal: i32| signals.contains(&signal);
        // systemd takes all of these, and SIGTERM as "execute yourself again".
        assert_eq!(choose(among(&[HALT, 30, 15, 12]), false), Some(HALT));
        assert_eq!(choose(among(&[30, 15]), false), Some(30));
        assert_eq!(choose(among(&[15]), false), Some(15));
        assert_eq!(choose(among(&[15, 10, 12]), true), Some(12));
        assert_eq!(choose(among(&[]), false), None);
    }
}
