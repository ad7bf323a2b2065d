//! How many lines the decision log has room for of those that say no.
//!
//! What is allowed is always told: it is what happened. What is refused happens as often as somebody likes, who could want to fill
//! the disk, or to have the journal drop the lines of others. So an account has a few lines at a time, and a last one that says how
//! many were left out; what is refused to others is told as ever. The metrics count all of them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cgrant_policy::HostUid;

use crate::{engine::Engine, watch::Target};

/// How long the lines of an account are counted.
const PERIOD: Duration = Duration::from_secs(10);
/// Lines of one account within that time.
const LINES: u64 = 20;
/// Accounts that are counted by themselves; further ones share what one has.
const MAX_ACCOUNTS: usize = 1024;

/// Whose lines are counted together: an account's, or those of all for whom there is no place, or whose account is not known.
type Whose = Option<HostUid>;

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u64,
}

impl Told {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PERIOD
    }

    fn left_out(&self) -> u64 {
        self.lines.saturating_sub(LINES)
    }
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
struct Leave {
    /// Whose room it takes.
    whose: Whose,
    is_told: bool,
    /// How many were left out before, and nobody was told.
    left_out: u64,
    /// It is the first to be left out: when to say of how many that is so.
    due: Option<Duration>,
}

/// The lines of late.
#[derive(Debug, Default)]
pub struct RefusalLog(Mutex<HashMap<Whose, Told>>);

impl RefusalLog {
    fn lock(&self) -> MutexGuard<'_, HashMap<Whose, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, whose: Whose, now: Instant) -> Leave {
        let mut all = self.lock();
        if !all.contains_key(&whose) && all.len() >= MAX_ACCOUNTS {
            all.retain(|_, told| !told.is_over(now) || told.left_out() > 0);
        }
        let is_full = !all.contains_key(&whose) && all.len() >= MAX_ACCOUNTS;
        let whose = if is_full { None } else { whose };
        let told = all.entry(whose).or_insert(Told { since: now, lines: 0 });
        let mut left_out = 0;
        if told.is_over(now) {
            left_out = told.left_out();
            *told = Told { since: now, lines: 0 };
        }
        told.lines = told.lines.saturating_add(1);
        let end = told.since + PERIOD;
        let due = (told.left_out() == 1).then(|| end.saturating_duration_since(now));
        Leave { whose, is_told: told.left_out() == 0, left_out, due }
    }

    /// How many were left out, if that time is over; from now on they are counted anew.
    fn over(&self, whose: Whose, now: Instant) -> u64 {
        let mut all = self.lock();
        if all.get(&whose).is_none_or(|told| !told.is_over(now)) {
            return 0;
        }
        all.remove(&whose).map_or(0, |told| told.left_out())
    }
}

impl Engine {
    /// May the log have one more line about what somebody wanted and did not get, or not yet? Says how many had no room.
    pub fn may_tell(&self, whose: Whose) -> bool {
        let leave = self.refusals.count(whose, Instant::now());
        say(leave.whose, leave.left_out);
        if let Some(due) = leave.due
            && let Err(error) = self.watches.after(due, |watch| Target::Refusals(leave.whose, watch))
        {
            tracing::warn!(%error, "no timer for what is left out of the log; it is said with the next line");
        }
        leave.is_told
    }

    /// Lines were left out, and the time is over in which they were.
    pub fn say_what_was_left_out(&self, whose: Whose, watch: u64) {
        self.watches.remove(&[watch]);
        say(whose, self.refusals.over(whose, Instant::now()));
    }
}

fn say(whose: Whose, left_out: u64) {
    if left_out == 0 {
        return;
    }
    match whose {
        Some(HostUid(uid)) => tracing::info!(
            target: "decision", uid, left_out, allowed = false,
            "uid {uid} was refused more: {left_out} lines were left out"
        ),
        None => tracing::info!(
            target: "decision", left_out, allowed = false,
            "others were refused more: {left_out} lines were left out"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Whose = Some(HostUid(1000));
    const OTHER: Whose = Some(HostUid(1001));

    #[test]
    fn an_account_has_a_few_lines_at_a_time_and_the_rest_is_counted() {
        let refusals = RefusalLog::default();
        let start = Instant::now();
        for _ in 0..LINES {
            assert!(refusals.count(BUSY, start).is_told);
        }
        let first = refusals.count(BUSY, start + PERIOD / 2);
        assert_eq!(first, Leave { whose: BUSY, is_told: false, left_out: 0, due: Some(PERIOD / 2) });
        for _ in 0..1000 {
            let leave = refusals.count(BUSY, start);
            assert!(!leave.is_told && leave.due.is_none(), "a timer for each");
        }
        assert!(refusals.count(OTHER, start).is_told, "of others nothing is kept back");
        assert_eq!(refusals.over(BUSY, start + PERIOD / 2), 0, "before its time");
        assert_eq!(refusals.over(BUSY, start + PERIOD), 1001);
        assert_eq!(refusals.over(BUSY, start + PERIOD), 0, "said twice");
        assert!(refusals.count(BUSY, start + PERIOD).is_told);
    }

    #[test]
    fn what_no_timer_says_the_next_line_says() {
        let refusals = RefusalLog::default();
        let start = Instant::now();
        for _ in 0..LINES + 7 {
            refusals.count(BUSY, start);
        }
        let leave = refusals.count(BUSY, start + PERIOD);
        assert_eq!(leave, Leave { whose: BUSY, is_told: true, left_out: 7, due: None });
        assert_eq!(refusals.over(BUSY, start + PERIOD * 2), 0);
    }

    #[test]
    fn many_accounts_have_no_more_together() {
        let refusals = RefusalLog::default();
        let start = Instant::now();
        let told = (0..100_000).filter(|uid| refusals.count(Some(HostUid(*uid)), start).is_told).count();
        assert_eq!(told as u64, MAX_ACCOUNTS as u64 + LINES);
        assert_eq!(refusals.lock().len(), MAX_ACCOUNTS + 1);
        // Those who have their place keep it.
        assert!(refusals.count(BUSY, start).is_told);
        // The others have room again, and hear what they did not.
        let leave = refusals.count(Some(HostUid(200_000)), start + PERIOD);
        assert!(leave.is_told && leave.whose == Some(HostUid(200_000)));
        assert_eq!(refusals.over(None, start + PERIOD), 100_000 - told as u64);
    }
}
