//! How a container's init is told to end.
//!
//! There is no one signal for it. Which ones an init takes tells what it is: only systemd takes `SIGRTMIN+3`. A signal that the first
//! process of a pid namespace has no handler for is lost (pid_namespaces(7)), so that asking the wrong way does nothing.
//!
//! Nor is a signal that was sent always one that arrived. systemd that executes itself again, as it does for SIGTERM and at an upgrade,
//! throws away what it has not read yet, and listens to nothing for a moment. So who tells it looks whether it has executed anything since.
//!
//! An init that sleeps in sigtimedwait(2), as busybox does, shows none of the signals that it waits for: the kernel unblocks them
//! meanwhile (`do_sigtimedwait()`), and proc(5) tells of no others.

use std::io;

use cgrant_sys::{Pidfd, pidfd::Signal};

use super::kind::{self, Kind};
use crate::container::{Disposition, Dispositions};

/// `SIGRTMIN+3` of the C libraries, which is 34 + 3.
const HALT: i32 = 37;

/// Whether an init knows that it is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It took the signal.
    Surely,
    /// It took SIGPWR, for which it may have nothing to do: of the power a System V init only knows that it fails.
    OfPower,
    /// It may have come before init listened, which is not to be seen: to be said again.
    Perhaps,
    /// It listens to nothing just now, because it executes itself again or is about to end: to be tried again.
    Later,
    /// It takes no signal that would end it, yet or at all.
    Not,
}

/// Which execution of its program init is at, if that is one that throws away signals when it executes itself again.
pub(crate) fn execution(pid: u32) -> Option<u64> {
    if kind::of(pid) == Kind::Systemd { kind::execution(pid) } else { None }
}

/// Tells it.
pub(crate) fn tell(init: &Pidfd, pid: u32) -> io::Result<Told> {
    let dispositions = Dispositions::of_process(pid)?;
    let takes = |signal| dispositions.of_number(signal).is_ok_and(|taken| taken == Disposition::Takes);
    let (signal, told) = choose(takes, kind::of(pid));
    signal.map_or(Ok(()), |signal| init.send_number(signal))?;
    Ok(told)
}

/// Busybox takes SIGPWR as nothing, SIGTERM as reboot, and SIGUSR2 as power off; of the others SIGPWR is that of System V init and
/// OpenRC's, SIGTERM that of everything that is no system's init.
fn choose(takes: impl Fn(i32) -> bool, kind: Kind) -> (Option<i32>, Told) {
    let (power, terminate, user2) = (Signal::POWER.as_raw(), Signal::TERM.as_raw(), Signal::USR2.as_raw());
    let taken = |order: &[i32]| order.iter().copied().find(|signal| takes(*signal));
    if kind == Kind::Systemd {
        return taken(&[HALT]).map_or((None, Told::Later), |signal| (Some(signal), Told::Surely));
    }
    let (taken, otherwise) = match kind {
        Kind::Busybox => (taken(&[user2]), Some(user2)),
        Kind::Waiting => (taken(&[HALT, power, terminate]), Some(terminate)),
        Kind::Systemd | Kind::Other => (taken(&[HALT, power, terminate]), None),
    };
    match (taken, otherwise) {
        (Some(signal), _) if signal == power => (taken, Told::OfPower),
        (Some(signal), _) => (Some(signal), Told::Surely),
        (None, Some(signal)) => (Some(signal), Told::Perhaps),
        (None, None) => (None, Told::Not),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_asked_in_its_own_way() {
        let among = |signals: &'static [i32]| move |signal: i32| signals.contains(&signal);
        let surely = |signal| (Some(signal), Told::Surely);
        let perhaps = |signal| (Some(signal), Told::Perhaps);
        // systemd takes all of these, and SIGTERM as "execute yourself again".
        assert_eq!(choose(among(&[HALT, 30, 15, 12]), Kind::Systemd), surely(HALT));
        assert_eq!(choose(among(&[15]), Kind::Systemd), (None, Told::Later));
        assert_eq!(choose(among(&[HALT, 30, 15, 12]), Kind::Other), surely(HALT));
        let of_power = (Some(30), Told::OfPower);
        assert_eq!(choose(among(&[30, 15]), Kind::Other), of_power);
        assert_eq!(choose(among(&[15]), Kind::Other), surely(15));
        assert_eq!(choose(among(&[15, 10, 12]), Kind::Busybox), surely(12));
        assert_eq!(choose(among(&[]), Kind::Other), (None, Told::Not));
        // It does not say what it waits for.
        assert_eq!(choose(among(&[15]), Kind::Busybox), perhaps(12));
        assert_eq!(choose(among(&[]), Kind::Waiting), perhaps(15));
        assert_eq!(choose(among(&[30]), Kind::Waiting), of_power);
    }
}
