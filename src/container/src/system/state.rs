//! What is known of a container: `state.json` in its run directory, and what the monitor answers.
//!
//! The file is replaced as a whole, so that whoever reads it finds one state or the next. It stays after the end. That a
//! monitor lives is never to be read from it: the monitor may have been killed. Only its socket says so.

use std::{
    fmt, io,
    time::{SystemTime, UNIX_EPOCH},
};

use cgrant_sys::{Dir, pidfd::Exit};
use serde::{Deserialize, Serialize};

use super::kind;

/// Its name in the run directory.
const FILE: &str = "state.json";
/// The longest that is read, in bytes.
const MAX: usize = 64 * 1024;
/// The longest line that is kept of what init says about itself, in bytes.
const STATUS_MAX: usize = 512;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Init runs and has not said that it is ready. One that never says so stays here.
    Starting,
    /// Init said that it is ready, or is of a kind that says nothing: System V's, busybox's, OpenRC's …
    Running,
    /// It was told to end.
    Stopping,
    /// It has ended.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// How a container, or a process in it, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Signal(i32),
    /// It was powered off or halted from inside, or as it was told to.
    PowerOff,
    /// It was rebooted from inside, and could not be started again.
    Reboot,
}

impl Ended {
    /// How a process ended.
    pub(crate) fn of_process(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => Self::Status(code),
            Exit::Signal(signal) => Self::Signal(signal),
        }
    }

    /// How a container's first process ended. The kernel ends it with SIGHUP for `reboot` and with SIGINT for `poweroff` and `halt`
    /// (reboot(2), "Behavior inside PID namespaces").
    pub(crate) fn of_init(exit: Exit) -> Self {
        match exit {
            Exit::Signal(1) => Self::Reboot,
            Exit::Signal(2) => Self::PowerOff,
            exit => Self::of_process(exit),
        }
    }

    /// The status that a shell gives for it: its own, or 128 + the number of the signal; 0 for an end in order.
    pub fn status(self) -> u8 {
        match self {
            Self::Status(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
            Self::Signal(signal) => u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX),
            Self::PowerOff | Self::Reboot => 0,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::PowerOff => f.write_str("power off"),
            Self::Reboot => f.write_str("reboot"),
        }
    }
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Where it is in its life.
    pub phase: Phase,
    /// Pid of its monitor, as the host counts.
    pub monitor: u32,
    /// Pid of its init, as the host counts; `None` when it has ended.
    pub init: Option<u32>,
    /// When init was executed, microseconds since 1970.
    pub started: u64,
    /// When it was running.
    pub ready: Option<u64>,
    /// When it ended.
    pub stopped: Option<u64>,
    /// How.
    pub ended: Option<Ended>,
    /// How many times it rebooted.
    pub reboots: u32,
    /// What init says about itself (`STATUS=` of sd_notify(3)).
    pub status: String,
}

impl State {
    /// That of one whose init has just been executed.
    pub(crate) fn new(monitor: u32, init: u32) -> Self {
        let started = now();
        let (phase, ready) = match kind::notifies(init) {
            true => (Phase::Starting, None),
            false => (Phase::Running, Some(started)),
        };
        Self {
            phase,
            monitor,
            init: Some(init),
            started,
            ready,
            stopped: None,
            ended: None,
            reboots: 0,
            status: String::new(),
        }
    }

    /// Takes a message of init's, as sd_notify(3) has them: lines of `KEY=value`. Did it change anything?
    ///
    /// The container may say what it likes: it is cut, and what is no text is left out.
    pub(crate) fn hear(&mut self, message: &[u8]) -> bool {
        let before = (self.phase, self.status.clone());
        for line in String::from_utf8_lossy(message).lines() {
            match line.split_once('=') {
                Some(("READY", "1")) if self.phase == Phase::Starting => {
                    self.phase = Phase::Running;
                    self.ready = Some(now());
                }
                Some(("STOPPING", "1")) if self.phase != Phase::Stopped => self.phase = Phase::Stopping,
                Some(("STATUS", text)) => self.status = printable(text),
                _ => {}
            }
        }
        before != (self.phase, self.status.clone())
    }

    pub(crate) fn write(&self, run: &Dir) -> io::Result<()> {
        run.write_atomic(FILE, &serde_json::to_vec(self)?, false)
    }
}

/// The state that was written last.
///
/// # Errors
/// `NotFound` if the container was never started; `InvalidData` if the file is not one of ours; those of reading it.
pub fn read_state(run: &Dir) -> io::Result<State> {
    Ok(serde_json::from_slice(&run.read_bytes(FILE, MAX)?)?)
}

/// Without bytes that would change a terminal that it is shown on.
fn printable(text: &str) -> String {
    let mut kept: String = text.chars().filter(|c| !c.is_control()).collect();
    while kept.len() > STATUS_MAX {
        kept.pop();
    }
    kept
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn init_is_heard_and_not_believed() {
        let mut state = State::new(1, 2);
        assert!(!state.hear(b"X_SYSTEMD_UNIT_ACTIVE=basic.target\nREADY=0\n\xff\xfe"));
        assert!(state.hear(b"STATUS=Starting \x1b[31mred\n"));
        assert_eq!((state.status.as_str(), state.phase), ("Starting [31mred", Phase::Starting));
        assert!(state.hear(format!("STATUS={}\n", "\u{e9}".repeat(10_000)).as_bytes()));
        assert!(state.status.len() <= STATUS_MAX);
        assert!(state.hear(b"READY=1\nSTATUS=Ready."));
        assert_eq!((state.phase, state.ready.is_some()), (Phase::Running, true));
        assert!(!state.hear(b"READY=1"));
        assert!(state.hear(b"STOPPING=1"));
        assert!(!state.hear(b"READY=1"));
        assert_eq!(state.phase, Phase::Stopping);
    }

    #[test]
    fn the_end_is_told_from_the_signal() {
        assert_eq!(Ended::of_init(Exit::Signal(1)), Ended::Reboot);
        assert_eq!(Ended::of_init(Exit::Signal(2)), Ended::PowerOff);
        assert_eq!(Ended::of_init(Exit::Signal(9)), Ended::Signal(9));
        assert_eq!(Ended::of_process(Exit::Signal(1)), Ended::Signal(1));
        assert_eq!([Ended::Status(7), Ended::Signal(9), Ended::PowerOff].map(Ended::status), [7, 137, 0]);
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let run = Dir::open(directory.path()).unwrap();
        assert_eq!(read_state(&run).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut state = State::new(1, 2);
        state.ended = Some(Ended::Signal(9));
        state.write(&run).unwrap();
        assert_eq!(read_state(&run).unwrap(), state);
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(read_state(&run).is_err());
    }
}
