//! How long to wait before a child is started again.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(30);
/// A child that served this long is started again as if it had never failed.
const GOOD: Duration = Duration::from_secs(60);

/// Waits that double from 100 ms to a bound.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Notes the death of a child that lived for `lived` and says how long to wait, at most `longest`.
    pub fn died_after(&mut self, lived: Duration, longest: Duration) -> Duration {
        if lived >= GOOD {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(longest);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.died_after(Duration::ZERO, LONGEST)).collect();
        assert_eq!(waits[0], Duration::from_millis(100));
        assert_eq!(waits[1], Duration::from_millis(200));
        assert_eq!(waits[8], Duration::from_millis(25_600));
        assert!(waits[9..].iter().all(|wait| *wait == LONGEST));
        assert_eq!(backoff.died_after(Duration::ZERO, FIRST), FIRST);
    }

    #[test]
    fn a_child_that_served_long_starts_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.died_after(Duration::ZERO, LONGEST);
        }
        assert_eq!(backoff.died_after(GOOD, LONGEST), FIRST);
    }
}
