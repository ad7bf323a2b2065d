//! systemd of a host whose machine is a test's alone. Touches units, as it is told to.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, checker, containers::text, wait_until};

/// `systemctl`, which has to succeed; otherwise it is told with the broker's last words.
#[track_caller]
pub fn systemctl(arguments: &[&str]) -> String {
    let output = run("systemctl", arguments);
    if output.status.success() {
        return text(&output.stdout) + &text(&output.stderr);
    }
    let log = run(
        "journalctl",
        &["--no-pager", "-n", "40", "-u", "cgrantd.service", "-u", "cgrant-shutdown.service"],
    );
    panic!("systemctl {arguments:?}: {}{}", text(&output.stderr), text(&log.stdout));
}

/// A command that has to succeed; what it says.
#[track_caller]
pub fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// Is the unit active?
pub fn is_active(unit: &str) -> bool {
    run("systemctl", &["is-active", "--quiet", unit]).status.success()
}

/// Kills the keeper of an instance's scope and waits for its end. Only where systemd runs the machine there is one.
pub fn kill_keeper(lab: &Lab, instance: &str) {
    let keepers = || -> BTreeSet<u32> {
        let bases = checker::bases(&lab.host, instance).into_values();
        bases.flat_map(|base| checker::members(&base.join("keeper"))).collect()
    };
    let killed = keepers();
    assert_eq!(killed.is_empty(), !lab.host.systemd, "keepers: {killed:?}");
    for pid in &killed {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
    // There may be another one by then.
    wait_until("the keeper is gone", || keepers().is_disjoint(&killed));
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
