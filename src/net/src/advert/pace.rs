//! When advertisements are sent: three soon after the start, then now and then, and early when somebody asks, at a limited rate.

use std::time::{Duration, Instant};

/// How many are sent soon one after the other at the start (`MAX_INITIAL_RTR_ADVERTISEMENTS`).
const INITIAL: u32 = 3;
/// Time between those.
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
/// Least and most time between two that nobody asked for.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(200), Duration::from_secs(600));
/// One answer to everybody in this time, on the average (`MIN_DELAY_BETWEEN_RAS`) …
const REFILL: Duration = Duration::from_secs(3);
/// … but so many at once, that containers which start one after the other need not wait.
const BURST: u32 = 8;

/// When the next one is due.
#[derive(Debug, Clone)]
pub struct Pace {
    initial: u32,
    periodic: Instant,
    answer: Option<Instant>,
    tokens: u32,
    /// When the last token was put in, or the bucket was full.
    refilled: Instant,
}

impl Pace {
    /// Due at once.
    pub fn new(now: Instant) -> Self {
        Self { initial: INITIAL, periodic: now, answer: None, tokens: BURST, refilled: now }
    }

    /// Somebody asks.
    pub fn solicited(&mut self, now: Instant) {
        if self.answer.is_some() {
            return;
        }
        self.refill(now);
        self.answer = Some(if self.tokens > 0 { now } else { self.refilled + REFILL });
    }

    /// Is somebody waiting for an answer?
    pub fn is_answer_due(&self) -> bool {
        self.answer.is_some()
    }

    /// When the next one is to be sent.
    pub fn due(&self) -> Instant {
        self.answer.map_or(self.periodic, |answer| answer.min(self.periodic))
    }

    /// Is it time?
    pub fn is_due(&self, now: Instant) -> bool {
        self.due() <= now
    }

    /// One was sent, which answers everybody. `random` is any number: who sends in step with others disturbs them.
    pub fn sent(&mut self, now: Instant, random: u64) {
        self.refill(now);
        self.tokens = self.tokens.saturating_sub(1);
        self.answer = None;
        self.initial = self.initial.saturating_sub(1);
        let (least, most) = INTERVALS;
        let spread = u64::try_from((most - least).as_millis()).unwrap_or(0).max(1);
        let wait =
            if self.initial > 0 { INITIAL_INTERVAL } else { least + Duration::from_millis(random % spread) };
        self.periodic = now + wait;
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_ones_come_soon_and_the_others_now_and_then() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut waits = Vec::new();
        for random in [0, 0, 0, u64::MAX, 399_999, 400_000] {
            assert!(pace.is_due(now) && !pace.is_due(now - SECOND));
            pace.sent(now, random);
            waits.push((pace.due() - now).as_millis());
            now = pace.due();
        }
        assert_eq!(waits[..3], [16_000, 16_000, 200_000]);
        assert!(waits[3..].iter().all(|wait| (200_000..=600_000).contains(wait)), "{waits:?}");
        assert_eq!(waits[4..], [599_999, 200_000]);
    }

    #[test]
    fn who_asks_is_answered_at_once_and_who_floods_is_not() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.sent(start, 0);
        let (mut now, mut answers) = (start, 0);
        // A question every millisecond, for a minute.
        for _ in 0..60_000 {
            now += Duration::from_millis(1);
            if !pace.is_answer_due() {
                pace.solicited(now);
            }
            if pace.is_due(now) {
                pace.sent(now, 0);
                answers += 1;
            }
        }
        assert!((20..=29).contains(&answers), "{answers}");
        // After a while of quiet it is at once again.
        now += 60 * SECOND;
        pace.sent(now, 0);
        pace.solicited(now);
        assert!(pace.is_due(now));
    }

    #[test]
    fn one_answer_serves_all() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..=BURST {
            pace.sent(now, 0);
        }
        pace.solicited(now);
        let due = pace.due();
        assert_eq!(due, now + REFILL);
        pace.solicited(now + SECOND);
        assert_eq!(pace.due(), due);
        pace.sent(due, 0);
        assert!(!pace.is_answer_due());
    }
}
