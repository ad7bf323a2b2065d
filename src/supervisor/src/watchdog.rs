//! The service manager's watchdog: who has one is told at regular times that the broker does what it is there for. Touches nothing; the
//! supervisor's loop asks it when that is due.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// How often in the service manager's time the children are asked. One that has not answered twice is replaced, and the word that this is
/// being done still comes in time.
const ROUNDS: u32 = 5;

/// The watchdog, where there is one.
#[derive(Debug)]
pub struct Watchdog {
    every: Duration,
    next: Instant,
}

impl Watchdog {
    /// What the service manager wants of this process (sd_watchdog_enabled(3)); `None` if nothing.
    pub fn wanted() -> Option<Self> {
        sd_notify::watchdog_enabled().and_then(Self::new)
    }

    fn new(time: Duration) -> Option<Self> {
        let every = time.checked_div(ROUNDS).filter(|every| !every.is_zero())?;
        Some(Self { every, next: Instant::now().checked_add(every)? })
    }

    /// When the children are to be asked next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Is it time? Then the next time is set.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            // Not from the time that was meant: who was kept from running has nothing to catch up on.
            self.next = now.checked_add(self.every).unwrap_or(self.next);
        }
        due
    }

    /// How long an answer may take.
    pub fn patience(&self) -> Duration {
        self.every.saturating_mul(2)
    }

    /// Tells the service manager that all is well.
    pub fn tell() {
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_is_not_made_up_for() {
        let mut watchdog = Watchdog::new(Duration::from_secs(50)).unwrap();
        let (first, late) = (watchdog.next(), watchdog.next() + Duration::from_secs(45));
        assert!(!watchdog.is_due(first - Duration::from_nanos(1)));
        assert!(watchdog.is_due(late) && !watchdog.is_due(late));
        assert_eq!(watchdog.next(), late + Duration::from_secs(10));
        assert_eq!(watchdog.patience(), Duration::from_secs(20));
        assert!(Watchdog::new(Duration::ZERO).is_none());
    }
}
