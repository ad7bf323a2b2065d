//! A running container, as its launcher sees it: a child process, and the cgroup that holds the rest.
//!
//! The end of a container is that its cgroup has no process left, never the end of its first process alone:
//! whoever launched one releases its grant, with `kill`, after [`Container::wait`].

use std::{fmt, io, os::fd::AsFd, os::fd::BorrowedFd};

use cgrant_sys::{
    Pidfd,
    pidfd::{Exit, Signal},
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending(pub Exit);

impl Ending {
    /// The status that a shell gives for it: its own, or 128 + the number of the signal.
    pub fn status(self) -> u8 {
        let status = match self.0 {
            Exit::Code(code) => code & 0xff,
            Exit::Signal(signal) => 128_i32.saturating_add(signal),
        };
        u8::try_from(status).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Exit::Code(code) => write!(f, "status {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What a process does with a signal that is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It has a handler, waits for it, or has it blocked to fetch it.
    Takes,
    /// It ignores it.
    Ignores,
    /// The kernel's default, which for the first process of a pid namespace is: nothing at all.
    Default,
}

/// What a process did with each signal when it was looked at.
#[derive(Debug)]
pub(crate) struct Dispositions(String);

impl Dispositions {
    /// Looks at another process, whose end meanwhile the caller rules out.
    ///
    /// # Errors
    /// That `/proc/PID/status` cannot be read.
    pub(crate) fn of_process(pid: u32) -> io::Result<Self> {
        std::fs::read_to_string(format!("/proc/{pid}/status")).map(Self)
    }

    /// As [`Dispositions::of`], for signals without a name too.
    pub(crate) fn of_number(&self, signal: i32) -> io::Result<Disposition> {
        disposition(&self.0, signal).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// What it did with this one.
    ///
    /// # Errors
    /// That there were not the lines that proc(5) promises.
    pub(crate) fn of(&self, signal: Signal) -> io::Result<Disposition> {
        disposition(&self.0, signal.as_raw()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// A container whose command has been executed.
#[derive(Debug)]
pub struct Container {
    init: Pidfd,
    pid: u32,
}

impl Container {
    pub(crate) fn new(init: Pidfd) -> io::Result<Self> {
        let pid = init.pid()?;
        Ok(Self { init, pid })
    }

    /// Number of its first process, as the launcher counts processes.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to its first process.
    ///
    /// # Errors
    /// `ESRCH` if it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.init.send_signal(signal)
    }

    /// What its first process does with a signal. A signal of which it takes no notice is lost, even
    /// SIGTERM: pid 1 of a namespace has no default actions (pid_namespaces(7)).
    ///
    /// # Errors
    /// That `/proc/PID/status` cannot be read or has not the lines that proc(5) promises.
    pub fn disposition(&self, signal: Signal) -> io::Result<Disposition> {
        Dispositions::of_process(self.pid)?.of(signal)
    }

    /// Waits for the end of its first process.
    ///
    /// # Errors
    /// `ECHILD` if somebody else reaped it.
    pub fn wait(&self) -> io::Result<Ending> {
        self.init.wait().map(Ending)
    }

    /// How its first process ended, if it has.
    ///
    /// # Errors
    /// As [`Container::wait`].
    pub fn try_wait(&self) -> io::Result<Option<Ending>> {
        Ok(self.init.try_wait()?.map(Ending))
    }
}

impl AsFd for Container {
    /// The first process's pidfd, readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }
}

fn disposition(status: &str, signal: i32) -> Option<Disposition> {
    let bit = 1_u64.checked_shl(u32::try_from(signal.checked_sub(1)?).ok()?)?;
    let has = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(u64::from_str_radix(mask.trim(), 16).ok()? & bit != 0)
    };
    let (caught, blocked, ignored) = (has("SigCgt:")?, has("SigBlk:")?, has("SigIgn:")?);
    Some(match (caught || blocked, ignored) {
        (true, _) => Disposition::Takes,
        (false, true) => Disposition::Ignores,
        (false, false) => Disposition::Default,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_shells() {
        assert_eq!(Ending(Exit::Code(0)).status(), 0);
        assert_eq!(Ending(Exit::Code(255)).status(), 255);
        assert_eq!(Ending(Exit::Signal(9)).status(), 137);
        assert_eq!(Ending(Exit::Signal(64)).status(), 192);
    }

    #[test]
    fn dispositions_are_read_from_proc() {
        // 15 is SIGTERM: bit 14.
        let status = |blocked, ignored, caught| {
            format!("Name:\tx\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n")
        };
        let none = "0000000000000000";
        let term = "0000000000004000";
        assert_eq!(disposition(&status(none, none, none), 15), Some(Disposition::Default));
        assert_eq!(disposition(&status(none, none, term), 15), Some(Disposition::Takes));
        assert_eq!(disposition(&status(term, none, none), 15), Some(Disposition::Takes));
        assert_eq!(disposition(&status(none, term, none), 15), Some(Disposition::Ignores));
        assert_eq!(disposition(&status(none, term, none), 14), Some(Disposition::Default));
        assert_eq!(disposition("SigBlk:\tx\n", 15), None);
        assert_eq!(disposition("", 0), None);
    }
}
