//! How long to wait before a process that ended by itself is started again.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// After the first end.
const SHORTEST: Duration = Duration::from_millis(100);
/// At most.
const LONGEST: Duration = Duration::from_secs(30);
/// A process that ran so long was well; the next end is a first one again.
const WELL: Duration = Duration::from_secs(60);

/// The waiting times of one process: twice as long after each end, up to a limit.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    started: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

impl Backoff {
    /// It has not ended yet.
    #[must_use]
    pub fn new() -> Self {
        Self { next: SHORTEST, started: None }
    }

    /// It was started.
    pub fn started(&mut self) {
        self.started = Some(Instant::now());
    }

    /// It ended, or could not be started: how long to wait now.
    pub fn ended(&mut self) -> Duration {
        if self.started.take().is_some_and(|at| at.elapsed() >= WELL) {
            self.next = SHORTEST;
        }
        let now = self.next;
        self.next = now.saturating_mul(2).min(LONGEST);
        now
    }
}

/// A descriptor that is readable once after this time, and from then on until it is closed.
///
/// # Errors
/// If there are no descriptors left.
pub fn timer(after: Duration) -> io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    // A time of 0 would mean never.
    let it_value = Timespec::try_from(after.max(Duration::from_nanos(1))).map_err(io::Error::other)?;
    let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
    Ok(timer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_each_time_up_to_a_limit() {
        let mut backoff = Backoff::new();
        let waits: Vec<u64> =
            (0..11).map(|_| u64::try_from(backoff.ended().as_millis()).unwrap_or(0)).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
        // Started and ended at once: no better.
        backoff.started();
        assert_eq!(backoff.ended(), LONGEST);
    }
}
