//! systemd of a host whose machine is a test's alone. Touches units, as it is told to.

use std::process::{Command, Output};

use super::containers::text;

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

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
