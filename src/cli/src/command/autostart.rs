//! `cgrant autostart …`, and how the machine comes to call it when it boots.
//!
//! Where systemd runs the machine, a user unit calls it (`systemd/cgrant-autostart.service`), and the account's own service
//! manager runs from boot on if the account lingers. Both are the account's own to ask for: no privilege of the broker's is
//! in it, and what starts is what the account could start by itself. Where systemd does not, cron does it.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cgrant_proto::{Endpoint, names::DEFAULT_SOCKET};

use crate::{Client, args::AutostartCommand, command::container::autostart, error::Failure, output};

/// The user unit.
const UNIT: &str = "cgrant-autostart.service";
/// There if systemd runs the machine: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// How often it is looked whether a broker is there. Its directory may not be there either, so that nothing could be watched.
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn run(client: &Client, command: &AutostartCommand) -> Result<u8, Failure> {
    match command {
        AutostartCommand::Start { wait_for_broker } => start(client, *wait_for_broker),
        AutostartCommand::Stop { timeout } => autostart::stop(client, timeout.timeout),
    }
}

fn start(client: &Client, seconds: u16) -> Result<u8, Failure> {
    if seconds == 0 || !autostart::is_wanted()? {
        return autostart::start(client);
    }
    let endpoint = waited_for(&client.endpoint, Duration::from_secs(seconds.into()));
    autostart::start(&Client { endpoint, format: client.format, asks: client.asks })
}

/// Waits until something listens at the broker's socket, but no longer than this. On a bus there is nothing to wait for; but the
/// bus may have been chosen for want of a socket, which appears now.
fn waited_for(endpoint: &Endpoint, patience: Duration) -> Endpoint {
    let socket = match endpoint {
        Endpoint::Socket(path) => path.as_path(),
        Endpoint::SystemBus => Path::new(DEFAULT_SOCKET),
        Endpoint::Bus(_) => return endpoint.clone(),
    };
    let end = Instant::now() + patience;
    while Instant::now() < end {
        if UnixStream::connect(socket).is_ok() {
            return Endpoint::Socket(socket.to_owned());
        }
        thread::sleep(PAUSE);
    }
    endpoint.clone()
}

/// What lacks for containers to start when the machine does.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Missing {
    #[error(
        "systemd does not run this machine, so nothing starts it at boot yet; add the line \
         '@reboot cgrant autostart start --wait-for-broker 60' with 'crontab -e'"
    )]
    Systemd,
    #[error("it does not start at boot yet: {0}; do 'systemctl --user enable {UNIT}' when that is mended")]
    Unit(String),
    #[error("it starts when you log in, and not at boot: {reason}; as root: loginctl enable-linger {user}")]
    Linger { reason: String, user: u32 },
}

/// Has the machine start the account's containers at boot.
pub(crate) fn arrange() -> Result<(), Missing> {
    let user = rustix::process::getuid().as_raw();
    arrange_on(Path::new(BOOTED).is_dir(), user, &call)
}

/// Has it no longer do that. What the account lingers for besides is not known, so it goes on lingering.
pub(crate) fn withdraw() {
    if Path::new(BOOTED).is_dir() {
        // Without containers that want it, the unit does nothing.
        let _ = call(&["systemctl", "--user", "disable", UNIT]);
    }
}

fn arrange_on(booted: bool, user: u32, call: &dyn Fn(&[&str]) -> Result<(), String>) -> Result<(), Missing> {
    if !booted {
        return Err(Missing::Systemd);
    }
    call(&["systemctl", "--user", "enable", UNIT]).map_err(Missing::Unit)?;
    // With the uid: without one it is that of a session, which cron and su have not.
    let linger = call(&["loginctl", "--no-ask-password", "enable-linger", &user.to_string()]);
    linger.map_err(|reason| Missing::Linger { reason, user })
}

/// Runs a program of systemd's; if it fails, what it said last is why.
fn call(words: &[&str]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if *program == "systemctl" {
        // It writes the link itself then: the account may have no service manager yet.
        command.env("SYSTEMD_OFFLINE", "1");
    }
    let output = command.output().map_err(|error| format!("{program} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(format!("{program} says {:?}", output::printable(last.trim_end_matches('.'))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{cell::RefCell, os::unix::net::UnixListener};

    use super::*;

    /// What is called, where the programs named in `failing` fail.
    fn arranged(booted: bool, failing: &[&str]) -> (Result<(), Missing>, Vec<String>) {
        let called = RefCell::new(Vec::new());
        let call = |words: &[&str]| {
            called.borrow_mut().push(words.join(" "));
            if failing.contains(&words[0]) { Err(format!("{} says \"no\"", words[0])) } else { Ok(()) }
        };
        let result = arrange_on(booted, 1000, &call);
        (result, called.into_inner())
    }

    #[test]
    fn the_unit_is_enabled_and_the_account_lingers() {
        let (result, called) = arranged(true, &[]);
        assert_eq!(result, Ok(()));
        let enable = "systemctl --user enable cgrant-autostart.service";
        assert_eq!(called, [enable, "loginctl --no-ask-password enable-linger 1000"]);
    }

    #[test]
    fn what_lacks_is_said_in_one_sentence() {
        let (result, called) = arranged(false, &[]);
        assert!(called.is_empty());
        assert!(result.unwrap_err().to_string().contains("crontab -e"));
        let text = arranged(true, &["systemctl"]).0.unwrap_err().to_string();
        assert!(text.contains("systemctl says \"no\"") && text.contains("at boot"), "{text}");
        let text = arranged(true, &["loginctl"]).0.unwrap_err().to_string();
        assert!(text.ends_with("as root: loginctl enable-linger 1000"), "{text}");
    }

    #[test]
    fn a_program_that_fails_says_why_and_one_that_is_not_there_is_named() {
        assert_eq!(call(&["true"]), Ok(()));
        let said = call(&["sh", "-c", "echo first >&2; echo 'the last.' >&2; exit 1"]).unwrap_err();
        assert_eq!(said, "sh says \"the last\"");
        assert!(call(&["/nonexistent/systemctl"]).unwrap_err().contains("/nonexistent/systemctl"));
    }

    #[test]
    fn a_broker_that_comes_late_is_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("bus");
        let endpoint = Endpoint::Socket(path.clone());
        // It does not come: the end of patience.
        assert_eq!(waited_for(&endpoint, Duration::from_millis(1)), endpoint);
        let late = thread::spawn(move || {
            thread::sleep(PAUSE);
            UnixListener::bind(path).unwrap().accept().unwrap();
        });
        assert_eq!(waited_for(&endpoint, Duration::from_secs(600)), endpoint);
        late.join().unwrap();
        let bus = Endpoint::Bus("unix:path=/b".to_owned());
        assert_eq!(waited_for(&bus, Duration::from_secs(600)), bus);
    }
}
