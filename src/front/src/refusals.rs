//! The decision log's lines about calls that never reach the engine, because an argument is wrong or there is no such
//! method: one line for each, with the fields that the engine's lines have.
//!
//! A caller could want to fill the disk with them, or to make the journal drop the lines of others. So each uid has a few
//! lines a minute, and all of them together have no more than some uids have.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, Instant},
};

use zbus::Message;

use crate::{call::Caller, fault::Fault, options::printable};

/// How long the lines of a uid are counted.
const PERIOD: Duration = Duration::from_secs(60);
/// Lines of one uid within that time.
const LINES: u32 = 20;
/// Uids that are counted at one time; what is refused to further ones is not told.
const MAX_UIDS: usize = 128;
/// Most of a reason that is told, in characters.
const MAX_REASON: usize = 300;

/// Which refusals were told.
#[derive(Debug, Default)]
pub struct Refusals {
    uids: RefCell<HashMap<u32, Told>>,
}

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
}

impl Told {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= PERIOD
    }
}

/// What may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Line,
    LastLine,
    Nothing,
}

impl Refusals {
    /// Says that a call was refused, unless enough was said of the uid.
    pub fn log(&self, caller: Caller, call: &Message, fault: &Fault) {
        let uid = caller.uid;
        let now = Instant::now();
        self.tell_what_was_left_out(now);
        let leave = self.count(uid, now);
        if leave == Leave::Nothing {
            return;
        }
        let header = call.header();
        let request = printable(header.member().map_or("", |member| member.as_str()));
        let error = fault.name();
        let reason: String = fault.message().chars().take(MAX_REASON).flat_map(char::escape_debug).collect();
        tracing::info!(
            target: "decision", uid, request, rule = "built-in", allowed = false, error, reason,
            connection = caller.connection.0, "uid {uid} may not {request}: {reason}"
        );
        if leave == Leave::LastLine {
            tracing::info!(
                target: "decision", uid, seconds = PERIOD.as_secs(),
                "uid {uid} has many wrong calls: no more of them are told for a while"
            );
        }
    }

    fn tell_what_was_left_out(&self, now: Instant) {
        for (uid, left_out) in self.over(now) {
            tracing::info!(
                target: "decision", uid, left_out, allowed = false,
                "uid {uid} had more wrong calls: {left_out} lines were left out"
            );
        }
    }

    /// Of whom lines were left out in a time that is over, and how many; from now on they are counted anew.
    fn over(&self, now: Instant) -> Vec<(u32, u32)> {
        let mut uids = self.uids.borrow_mut();
        let over = uids.iter().filter(|(_, told)| told.is_over(now) && told.lines > LINES);
        let over: Vec<(u32, u32)> = over.map(|(uid, told)| (*uid, told.lines - LINES)).collect();
        for (uid, _) in &over {
            uids.remove(uid);
        }
        over
    }

    fn count(&self, uid: u32, now: Instant) -> Leave {
        let mut uids = self.uids.borrow_mut();
        if !uids.contains_key(&uid) && uids.len() >= MAX_UIDS {
            uids.retain(|_, told| !told.is_over(now));
            if uids.len() >= MAX_UIDS {
                return Leave::Nothing;
            }
        }
        let told = uids.entry(uid).or_insert(Told { since: now, lines: 0 });
        if told.is_over(now) {
            *told = Told { since: now, lines: 0 };
        }
        told.lines = told.lines.saturating_add(1);
        match told.lines {
            0..LINES => Leave::Line,
            LINES => Leave::LastLine,
            _ => Leave::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_has_a_few_lines_at_a_time() {
        let refusals = Refusals::default();
        let start = Instant::now();
        for _ in 1..LINES {
            assert_eq!(refusals.count(1000, start), Leave::Line);
        }
        assert_eq!(refusals.count(1000, start), Leave::LastLine);
        for _ in 0..1000 {
            assert_eq!(refusals.count(1000, start), Leave::Nothing);
        }
        assert_eq!(refusals.count(1001, start), Leave::Line, "of others nothing is kept back");
        assert!(refusals.over(start).is_empty(), "before its time");
        assert_eq!(refusals.over(start + PERIOD), [(1000, 1000)]);
        assert!(refusals.over(start + PERIOD).is_empty(), "told twice");
        assert_eq!(refusals.count(1000, start + PERIOD), Leave::Line);
    }

    #[test]
    fn many_uids_have_no_more_together() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let told = (0..100_000).filter(|uid| refusals.count(*uid, start) != Leave::Nothing).count();
        assert_eq!(told, MAX_UIDS);
        assert_eq!(refusals.uids.borrow().len(), MAX_UIDS);
        assert_eq!(refusals.count(200_000, start + PERIOD), Leave::Line);
        assert_eq!(refusals.uids.borrow().len(), 1);
    }
}
