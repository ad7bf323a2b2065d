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

/// Is the unit active?
pub fn is_active(unit: &str) -> bool {
    run("systemctl", &["is-active", "--quiet", unit]).status.success()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}
