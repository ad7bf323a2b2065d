//! cgrant-scope: on a host that systemd runs, gets the broker's part of the cgroup tree from it; and on every host, ends what
//! runs in that part when the machine is switched off.
//!
//! Four roles, chosen by the first argument:
//!
//! * `make UNIT` asks systemd for the scope UNIT with delegation, or finds the one that lives, tells the
//!   supervisor over descriptor 3 where it lies in each hierarchy, and ends. It runs as root before any
//!   socket listens and reads nothing that an unprivileged user can write.
//! * `leave` is asked when the broker ends in order: it ends the keeper if no grant is left, and systemd then
//!   removes the scope.
//! * `keep` is the keeper: a process that sleeps in the scope's leaf `keeper/`, because systemd removes a
//!   scope without processes.
//! * `end INSTANCE UNIT SECONDS` ends everything that runs in grants of the instance.
//!
//! What it writes: `keeper/` and `keeper/cgroup.procs` below the delegated scope; to end what runs in grants, `cgroup.freeze` and
//! `cgroup.kill` of grants' parts, grants and accounts; nothing else.

mod end;
mod instance;
mod keeper;
mod scope;
mod systemd;

use std::{os::fd::AsFd, process::ExitCode, time::Duration};

use cgrant_sys::{Channel, Pidfd, inherited};
use cgrant_wire::boot::{CONTROL_FD, ScopeReport};

/// Entry point of the program.
pub fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next(), args.next(), args.next()) {
        (Some("make"), Some(unit), None, None) => make(&unit),
        (Some("leave"), None, None, None) => leave(),
        (Some("keep"), None, None, None) => keeper::keep(),
        (Some("end"), Some(instance), Some(unit), Some(seconds)) => match seconds.parse() {
            Ok(seconds) => end(&instance, &unit, Duration::from_secs(seconds)),
            Err(_) => no_use(),
        },
        _ => no_use(),
    }
}

fn no_use() -> ExitCode {
    eprintln!("cgrant-scope is started by cgrantd; it has no use of its own");
    ExitCode::from(2)
}

/// Our end of the pair with the supervisor.
fn control() -> Option<Channel> {
    inherited::take(CONTROL_FD)
        .and_then(Channel::from_fd)
        .inspect_err(|error| {
            eprintln!("cgrant-scope: descriptor {CONTROL_FD} is not the supervisor's channel: {error}");
        })
        .ok()
}

fn leave() -> ExitCode {
    let Some(control) = control() else { return ExitCode::from(2) };
    let Ok(Some(received)) = control.receive() else { return ExitCode::FAILURE };
    let report = cgrant_wire::decode::<ScopeReport>(&received.bytes);
    let keeper = received.fds.into_iter().next().and_then(|fd| Pidfd::from_fd(fd).ok());
    let (Ok(report), Some(keeper)) = (report, keeper) else { return ExitCode::FAILURE };
    match scope::leave(&report.placements, &keeper) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgrant-scope: {error}");
            ExitCode::FAILURE
        }
    }
}

fn end(instance: &str, unit: &str, patience: Duration) -> ExitCode {
    match end::end(instance, unit, patience) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgrantd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn make(unit: &str) -> ExitCode {
    let Some(control) = control() else { return ExitCode::from(2) };
    let (report, pidfd) = match scope::obtain(unit) {
        Ok(found) => (Ok(found.report), Some(found.keeper)),
        Err(error) => (Err(error.to_string()), None),
    };
    tell(&control, &report, pidfd.as_ref())
}

fn tell(control: &Channel, report: &Result<ScopeReport, String>, keeper: Option<&Pidfd>) -> ExitCode {
    let fds: Vec<_> = keeper.iter().map(|pidfd| pidfd.as_fd()).collect();
    let sent = cgrant_wire::encode(report).ok().and_then(|bytes| control.send(&bytes, &fds).ok());
    match (sent, report) {
        (Some(()), Ok(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
