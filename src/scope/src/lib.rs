//! cgrant-scope: on a host that systemd runs, gets the broker's part of the cgroup tree from it.
//!
//! Two roles, chosen by the first argument:
//!
//! * `make UNIT` asks systemd for the scope UNIT with delegation, or finds the one that lives, tells the
//!   supervisor over descriptor 3 where it lies in each hierarchy, and ends. It runs as root before any
//!   socket listens and reads nothing that an unprivileged user can write.
//! * `keep` is the keeper: a process that sleeps in the scope's leaf `keeper/`, because systemd removes a
//!   scope without processes.
//!
//! What it writes: `keeper/` and `keeper/cgroup.procs` below the delegated scope, nothing else.

mod hierarchy;
mod keeper;
mod scope;
mod systemd;

use std::{os::fd::AsFd, process::ExitCode};

use cgrant_sys::{Channel, inherited};
use cgrant_wire::boot::{CONTROL_FD, ScopeReport};

/// Entry point of the program.
pub fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next(), args.next()) {
        (Some("make"), Some(unit), None) => make(&unit),
        (Some("keep"), None, None) => keeper::keep(),
        _ => {
            eprintln!("cgrant-scope is started by cgrantd; it has no use of its own");
            ExitCode::from(2)
        }
    }
}

fn make(unit: &str) -> ExitCode {
    let control = match inherited::take(CONTROL_FD).and_then(Channel::from_fd) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("cgrant-scope: descriptor {CONTROL_FD} is not the supervisor's channel: {error}");
            return ExitCode::from(2);
        }
    };
    let (report, pidfd) = match scope::obtain(unit) {
        Ok(found) => (Ok(found.report), Some(found.keeper)),
        Err(error) => (Err(error.to_string()), None),
    };
    tell(&control, &report, pidfd.as_ref())
}

fn tell(
    control: &Channel,
    report: &Result<ScopeReport, String>,
    keeper: Option<&cgrant_sys::Pidfd>,
) -> ExitCode {
    let fds: Vec<_> = keeper.iter().map(|pidfd| pidfd.as_fd()).collect();
    let sent = cgrant_wire::encode(report).ok().and_then(|bytes| control.send(&bytes, &fds).ok());
    match (sent, report) {
        (Some(()), Ok(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
