//! How fast an account's requests begin: the quota `requests-per-second`, a bucket of one second's worth for each account.
//!
//! A request that comes too soon is not refused but begins later, in its order. So a client that is merely quick notices
//! nothing but the pace, and one that floods is slowed down with all that it costs on the way: what waits here keeps its place among the
//! few calls of its uid that a front reads at a time, so that the front reads no more of that uid, and of nobody else less. A refusal would
//! be answered at once, and invite the next one. Only where the wait would be longer than clients have patience for
//! does policy refuse ([`cgrant_policy::PACE_PATIENCE`]), which needs a quota below a dozen a second.
//!
//! What waits is bounded by the account's quota `requests`, and holds nothing of anybody else's: no thread, no lane.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cgrant_policy::HostUid;

/// What an account's bucket holds.
const BUCKET: Duration = Duration::from_secs(1);
/// What waits is looked at no more often, several requests at a time.
const TICK: Duration = Duration::from_millis(10);

/// What is done when a request's time has come.
pub type Turn = Box<dyn FnOnce() + Send>;

/// An account's requests of late.
struct Pace {
    /// How long it takes, from `at` on, until all its requests have been worked off at its rate.
    debt: Duration,
    at: Instant,
    /// Its quota, when it was last looked at.
    rate: u64,
    /// In their order, each with what it costs.
    waiting: VecDeque<(Duration, Turn)>,
    /// Does a timer run?
    timed: bool,
}

impl Pace {
    fn drain(&mut self, now: Instant) {
        self.debt = self.debt.saturating_sub(now.saturating_duration_since(self.at));
        self.at = now;
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        let is_paid = self.debt <= now.saturating_duration_since(self.at);
        is_paid && self.waiting.is_empty() && !self.timed
    }

    /// How long the first of those that wait has to; `None` if none waits.
    fn wait(&self) -> Option<Duration> {
        let behind: Duration = self.waiting.iter().skip(1).map(|(cost, _)| *cost).sum();
        self.waiting.front().map(|_| self.debt.saturating_sub(behind).saturating_sub(BUCKET))
    }
}

/// The pace of every account that asked for something of late.
#[derive(Default)]
pub struct Paces {
    accounts: Mutex<HashMap<HostUid, Pace>>,
}

/// What becomes of a request.
pub enum Admission {
    /// It begins.
    Now(Turn),
    /// It waits, and a timer runs already.
    Waits,
    /// It waits; [`Paces::due`] is to be called after this time.
    WaitsFor(Duration),
}

impl Paces {
    fn accounts(&self) -> MutexGuard<'_, HashMap<HostUid, Pace>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests of the account's are not worked off at its rate, those that wait included.
    pub fn used(&self, account: HostUid, now: Instant) -> u64 {
        self.accounts().get_mut(&account).map_or(0, |pace| {
            pace.drain(now);
            let used = pace.debt.as_nanos().saturating_mul(u128::from(pace.rate)).div_ceil(BUCKET.as_nanos());
            u64::try_from(used).unwrap_or(u64::MAX)
        })
    }

    /// Takes a request of the account's, which may begin `rate` a second.
    ///
    /// An attacker wants others' requests to wait for its own. They share nothing here: each account has a bucket and a
    /// queue of its own, and what is done in turn is only to put the request where it would have gone at once.
    pub fn admit(&self, account: HostUid, rate: u64, now: Instant, turn: Turn) -> Admission {
        let cost = Duration::from_nanos(1_000_000_000 / rate.max(1));
        let mut accounts = self.accounts();
        if !accounts.contains_key(&account) {
            accounts.retain(|_, pace| !pace.is_at_rest(now));
        }
        let pace = accounts.entry(account).or_insert_with(|| Pace {
            debt: Duration::ZERO,
            at: now,
            rate,
            waiting: VecDeque::new(),
            timed: false,
        });
        pace.drain(now);
        pace.rate = rate;
        pace.debt += cost;
        if pace.waiting.is_empty() && pace.debt <= BUCKET {
            return Admission::Now(turn);
        }
        pace.waiting.push_back((cost, turn));
        if std::mem::replace(&mut pace.timed, true) {
            return Admission::Waits;
        }
        Admission::WaitsFor(pace.wait().unwrap_or_default().max(TICK))
    }

    /// The time that somebody of the account's waited for is over: what may begin now, and when to look again.
    pub fn due(&self, account: HostUid, now: Instant) -> (Vec<Turn>, Option<Duration>) {
        let mut begins = Vec::new();
        let mut accounts = self.accounts();
        let Some(pace) = accounts.get_mut(&account) else { return (begins, None) };
        pace.drain(now);
        while pace.wait().is_some_and(|wait| wait.is_zero()) {
            begins.extend(pace.waiting.pop_front().map(|(_, turn)| turn));
        }
        let again = pace.wait().map(|wait| wait.max(TICK));
        pace.timed = again.is_some();
        (begins, again)
    }

    /// All that waits, of the account: there is no timer to be had.
    pub fn give_up(&self, account: HostUid) -> Vec<Turn> {
        let mut accounts = self.accounts();
        let Some(pace) = accounts.get_mut(&account) else { return Vec::new() };
        pace.timed = false;
        pace.waiting.drain(..).map(|(_, turn)| turn).collect()
    }

    /// How many requests wait, of all accounts.
    pub fn waiting(&self) -> usize {
        self.accounts().values().map(|pace| pace.waiting.len()).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const BUSY: HostUid = HostUid(1000);
    const QUIET: HostUid = HostUid(1001);

    struct Scene {
        paces: Paces,
        begun: Arc<Mutex<Vec<u32>>>,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { paces: Paces::default(), begun: Arc::default(), start: Instant::now() }
        }

        fn ask(&self, account: HostUid, rate: u64, millis: u64, number: u32) -> Option<Duration> {
            let begun = Arc::clone(&self.begun);
            let turn = Box::new(move || begun.lock().unwrap().push(number));
            match self.paces.admit(account, rate, self.at(millis), turn) {
                Admission::Now(turn) => turn(),
                Admission::Waits => (),
                Admission::WaitsFor(wait) => return Some(wait),
            }
            None
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn due(&self, millis: u64) -> Option<Duration> {
            let (turns, again) = self.paces.due(BUSY, self.at(millis));
            turns.into_iter().for_each(|turn| turn());
            again
        }

        fn begun(&self) -> Vec<u32> {
            std::mem::take(&mut self.begun.lock().unwrap())
        }
    }

    #[test]
    fn a_burst_of_one_second_begins_at_once_and_the_rest_in_order_at_the_rate() {
        let scene = Scene::new();
        let timers: Vec<Duration> = (0..14).filter_map(|number| scene.ask(BUSY, 10, 0, number)).collect();
        assert_eq!(scene.begun(), (0..10).collect::<Vec<_>>());
        assert_eq!(timers, [Duration::from_millis(100)], "one timer for all that wait");
        assert_eq!((scene.paces.used(BUSY, scene.at(0)), scene.paces.waiting()), (14, 4));
        assert_eq!(scene.due(99), Some(TICK));
        assert_eq!(scene.begun(), Vec::<u32>::new(), "too early");
        assert_eq!(scene.due(200), Some(Duration::from_millis(100)));
        assert_eq!(scene.begun(), [10, 11]);
        // One that comes now is behind those that wait, though a timer's lateness would leave room for it.
        assert_eq!(scene.ask(BUSY, 10, 350, 14), None);
        assert_eq!(scene.begun(), Vec::<u32>::new());
        assert_eq!(scene.due(500), None);
        assert_eq!(scene.begun(), [12, 13, 14]);
        assert_eq!(scene.due(600), None);
        assert_eq!(scene.ask(BUSY, 10, 600, 15), None);
        assert_eq!(scene.begun(), [15]);
    }

    #[test]
    fn another_account_does_not_wait() {
        let scene = Scene::new();
        for number in 0..100 {
            scene.ask(BUSY, 10, 0, number);
        }
        scene.begun();
        assert_eq!(scene.ask(QUIET, 10, 0, 1000), None);
        assert_eq!(scene.begun(), [1000]);
        assert_eq!(scene.paces.used(QUIET, scene.at(0)), 1);
    }

    #[test]
    fn accounts_that_are_at_rest_are_forgotten() {
        let scene = Scene::new();
        for uid in 0..50 {
            scene.ask(HostUid(uid), 10, u64::from(uid) * 1000, 0);
        }
        assert!(scene.paces.accounts().len() <= 2);
    }

    #[test]
    fn without_a_timer_nothing_waits_for_ever() {
        let scene = Scene::new();
        for number in 0..12 {
            scene.ask(BUSY, 10, 0, number);
        }
        assert_eq!(scene.paces.give_up(BUSY).len(), 2);
        assert_eq!(scene.paces.waiting(), 0);
    }
}
