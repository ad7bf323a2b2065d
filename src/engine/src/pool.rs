//! A small pool of threads that runs operations: those of one account in order, those of different accounts side by side.
//!
//! It knows nothing of what a job does but whether it may run beside its neighbours: jobs that only look are taken together with
//! those next to them in the queue, up to [`MAX_BESIDE`], so that everybody sees what was done before and nothing that was
//! asked for later. A kernel call that is slow holds up its own account only, as long as
//! fewer than [`MAX_THREADS`] accounts are stuck at once. Waiting threads make no system calls.
//!
//! Some of an account's jobs are guests': of ordinary users of its containers, whom nobody of the account is to wait for. Between two
//! of them one of the account's own comes, if one waits, and guests take turns among themselves: whatever guests ask for, what the account
//! asks for waits for one job of theirs at most.
//!
//! Two threads wait for what happens. Which of them sees something queues what is to be done about it, one at a time so that the
//! order stays, and runs the first of it itself, without a wakeup between: the other one looks on meanwhile. One that would be
//! the last to look leaves that to another thread, or goes on looking if there is none: there always is one that looks, and
//! it is never in a job.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

/// Threads that wait for what happens.
const LOOKERS: usize = 2;
/// Threads that stay when there is nothing to do.
const KEPT_THREADS: usize = LOOKERS;
/// Most threads at once, with those that look.
const MAX_THREADS: usize = 33;
/// Most jobs that wait for one account.
const MAX_WAITING: usize = 256;
/// How long a thread beyond [`KEPT_THREADS`] waits for work before it ends.
const LINGER: Duration = Duration::from_secs(5);

/// Most jobs of one lane that run beside each other.
const MAX_BESIDE: usize = 4;

/// Most jobs at once that clients can hold up: half of the threads are left whatever they do.
const MAX_HELD: usize = 16;

/// What has an order of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The operations of an account.
    Account(u32),
    /// What an account's clients can hold up for as long as they like: kept off its operations.
    Held(u32),
    /// What an account's guests wait for, without having a part in its operations meanwhile. Counts with those that are held up.
    Aside(u32),
}

impl Lane {
    /// Can clients hold up what is in it?
    const fn is_held(self) -> bool {
        matches!(self, Self::Held(_) | Self::Aside(_))
    }
}

/// Whose a job is, among those of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whose {
    /// The account's own.
    Own,
    /// A guest's, by a number that tells guests apart.
    Guest(u32),
}

impl From<u32> for Lane {
    fn from(account: u32) -> Self {
        Self::Account(account)
    }
}

/// How a job gets on with the others of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Alone.
    Alone,
    /// Beside others that may be, which come just before it or just behind it.
    Beside,
}

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

/// How it is looked for what happens.
pub trait Look: Send + Sync {
    /// Waits until something happens. Several threads wait at once, and what happens once should wake one of them.
    fn wait(&self) -> Found;

    /// From now on nobody waits any more.
    fn wake(&self);
}

/// Queues what is to be done about what happened; one at a time is called. False when that was the last time.
pub type Found = Box<dyn FnOnce() -> bool>;

/// The account's queue is full.
#[derive(Debug, thiserror::Error)]
#[error("too many requests of this account are waiting")]
pub struct Full;

/// Looking for what happens ended in a panic.
#[derive(Debug, thiserror::Error)]
#[error("a fault in the main loop")]
pub struct Panicked;

/// The jobs of a lane.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Mode, Job)>,
    /// Those of guests, each of which runs alone: the guest whose turn it is first.
    guests: VecDeque<(u32, VecDeque<Job>)>,
    /// Is it a guest's turn, also if one of the lane's own waits?
    guests_turn: bool,
    /// How many of the first ones may be taken, each of which has its entry in [`State::ready`].
    offered: usize,
    /// How many run.
    running: usize,
    /// Does one run that is to be alone?
    alone: bool,
}

impl Queue {
    /// Is a guest's job the next one?
    fn is_guest_next(&self) -> bool {
        !self.guests.is_empty() && (self.guests_turn || self.jobs.is_empty())
    }

    /// How many of the first jobs may run now.
    fn startable(&self) -> usize {
        if self.alone {
            return 0;
        }
        if self.is_guest_next() {
            return usize::from(self.running == 0);
        }
        match self.jobs.front() {
            Some((Mode::Alone, _)) => usize::from(self.running == 0),
            Some((Mode::Beside, _)) => {
                let room = MAX_BESIDE.saturating_sub(self.running);
                self.jobs.iter().take(room).take_while(|(mode, _)| *mode == Mode::Beside).count()
            }
            None => 0,
        }
    }

    /// Takes the next job, unless another one has come before those that were offered, which has to be alone.
    fn begin(&mut self) -> Option<Job> {
        self.offered = self.offered.saturating_sub(1);
        if self.startable() == 0 {
            return None;
        }
        let is_guests = self.is_guest_next();
        let (mode, job) =
            if is_guests { (Mode::Alone, self.take_guests()?) } else { self.jobs.pop_front()? };
        self.guests_turn = !is_guests;
        self.running += 1;
        self.alone = mode == Mode::Alone;
        Some(job)
    }

    /// Takes the job of the guest whose turn it is, who comes behind the others then.
    fn take_guests(&mut self) -> Option<Job> {
        let (guest, mut jobs) = self.guests.pop_front()?;
        let job = jobs.pop_front();
        if !jobs.is_empty() {
            self.guests.push_back((guest, jobs));
        }
        job
    }

    /// Puts a job behind the others of whose it is.
    fn push(&mut self, whose: Whose, mode: Mode, job: Job) {
        let Whose::Guest(guest) = whose else { return self.jobs.push_back((mode, job)) };
        match self.guests.iter_mut().find(|(known, _)| *known == guest) {
            Some((_, jobs)) => jobs.push_back(job),
            None => self.guests.push_back((guest, VecDeque::from([job]))),
        }
    }

    /// How many wait, of the lane's own or of all guests together.
    fn waiting(&self, whose: Whose) -> usize {
        match whose {
            Whose::Own => self.jobs.len(),
            Whose::Guest(_) => self.guests.iter().map(|(_, jobs)| jobs.len()).sum(),
        }
    }

    /// Does none wait or run?
    fn is_done(&self) -> bool {
        self.jobs.is_empty() && self.guests.is_empty() && self.running == 0
    }

    /// One has ended.
    fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
        self.alone = false;
    }
}

#[derive(Default)]
struct State {
    /// A lane is in here while it has jobs waiting or running.
    waiting: HashMap<Lane, Queue>,
    /// Lanes whose next job may be taken; once for each such job.
    ready: VecDeque<Lane>,
    /// How many of lanes that clients can hold up are ready or running.
    held: usize,
    idle: usize,
    threads: usize,
    stopping: bool,
    /// How it is looked for what happens, while the pool serves.
    look: Option<Arc<dyn Look>>,
    /// How many look, or queue what they found.
    lookers: usize,
    /// Which of them queues.
    taker: Option<ThreadId>,
    over: bool,
    panicked: bool,
}

impl State {
    /// Is one more to look for what happens? Work that is there comes first, as long as anybody looks.
    fn wants_looker(&self) -> bool {
        self.look.is_some() && (self.lookers == 0 || (self.lookers < LOOKERS && self.ready.is_empty()))
    }

    /// A job of a lane has ended: what waited for that is ready now. How many jobs?
    fn go_on(&mut self, lane: Lane) -> usize {
        if !lane.is_held() {
            return self.offer(lane);
        }
        self.held = self.held.saturating_sub(1);
        let waiting: Vec<Lane> = self.waiting.keys().filter(|lane| lane.is_held()).copied().collect();
        waiting.into_iter().map(|lane| self.offer(lane)).sum()
    }

    /// Puts a lane among those that are ready, for each job of it that may be taken and is not there yet. How often?
    fn offer(&mut self, lane: Lane) -> usize {
        let Some(queue) = self.waiting.get_mut(&lane) else { return 0 };
        let mut more = queue.startable().saturating_sub(queue.offered);
        if lane.is_held() {
            more = more.min(MAX_HELD.saturating_sub(self.held));
            self.held += more;
        }
        queue.offered += more;
        self.ready.extend(std::iter::repeat_n(lane, more));
        more
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Held by who queues what was found; taken before the state's.
    taking: Mutex<()>,
    work: Condvar,
    quiet: Condvar,
}

impl Shared {
    /// Sees to it that somebody comes for each of these places in the queue, the first of which is 0: starts threads, and says how
    /// many to wake.
    fn provide(self: &Arc<Self>, state: &mut State, places: Range<usize>) -> usize {
        let mut sleepers = 0;
        for place in places {
            if state.idle > place {
                sleepers += 1;
            } else if state.threads < MAX_THREADS {
                self.start_thread(state);
            }
        }
        sleepers
    }

    /// Wakes so many idle threads. Without the lock, which is the first thing that they want.
    fn wake(&self, state: MutexGuard<'_, State>, sleepers: usize) {
        drop(state);
        for _ in 0..sleepers {
            self.work.notify_one();
        }
    }

    /// Starts a thread, which counts as idle until it looks for work.
    fn start_thread(self: &Arc<Self>, state: &mut State) {
        let shared = Arc::clone(self);
        let started =
            thread::Builder::new().name("operation".into()).stack_size(512 * 1024).spawn(move || {
                let mut state = shared.lock();
                state.idle -= 1;
                work(&shared, state, Role::Member);
            });
        match started {
            Ok(_) => {
                state.threads += 1;
                state.idle += 1;
            }
            Err(error) => tracing::warn!(%error, "no further thread for operations; those there are go on"),
        }
    }

    /// Looks for what happens until there is a job, and somebody else who looks. Gives the lane of that job, if it is not over.
    fn look_on<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        look: &dyn Look,
    ) -> (MutexGuard<'s, State>, Option<Lane>) {
        state.lookers += 1;
        let lane = loop {
            drop(state);
            let found = catch_unwind(AssertUnwindSafe(|| look.wait()));
            let taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
            state = self.lock();
            if state.over {
                break None;
            }
            state.taker = Some(thread::current().id());
            drop(state);
            let taken = found.and_then(|found| catch_unwind(AssertUnwindSafe(found)));
            state = self.lock();
            state.taker = None;
            drop(taking);
            if !matches!(taken, Ok(true)) {
                state.panicked = taken.is_err();
                state.look = None;
                (state.stopping, state.over) = (true, true);
                look.wake();
                self.work.notify_all();
                break None;
            }
            if self.may_leave(&mut state)
                && let Some(lane) = state.ready.pop_front()
            {
                break Some(lane);
            }
            let jobs = state.ready.len();
            let sleepers = self.provide(&mut state, 0..jobs);
            self.wake(state, sleepers);
            state = self.lock();
        };
        state.lookers -= 1;
        let wanted = state.ready.len() + usize::from(lane.is_some() && state.lookers == 0);
        let sleepers = self.provide(&mut state, 0..wanted);
        if sleepers > 0 {
            self.wake(state, sleepers);
            state = self.lock();
        }
        (state, lane)
    }

    /// May one that looks stop looking? Does another one, or is there one that will?
    fn may_leave(self: &Arc<Self>, state: &mut State) -> bool {
        if state.lookers == 1 && state.idle == 0 && !state.ready.is_empty() && state.threads < MAX_THREADS {
            self.start_thread(state);
        }
        state.lookers > 1 || state.idle > 0
    }

    /// Runs the lane's next job.
    fn run_next<'s>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        lane: Lane,
    ) -> MutexGuard<'s, State> {
        let begun = state.waiting.get_mut(&lane).and_then(Queue::begin);
        drop(state);
        let ran = begun.is_some();
        if let Some(job) = begun
            && catch_unwind(AssertUnwindSafe(job)).is_err()
        {
            tracing::error!(?lane, "an operation panicked; its caller gets no answer from it");
        }
        state = self.lock();
        if let Some(queue) = state.waiting.get_mut(&lane) {
            if ran {
                queue.end();
            }
            if queue.is_done() {
                state.waiting.remove(&lane);
            }
        }
        // The first is for this thread itself.
        let others = state.go_on(lane).saturating_sub(1);
        if state.stopping && state.waiting.is_empty() {
            self.quiet.notify_all();
        }
        if others > 0 {
            let places = state.ready.len().saturating_sub(others)..state.ready.len();
            let sleepers = self.provide(&mut state, places);
            self.wake(state, sleepers);
            state = self.lock();
        }
        state
    }

    /// Waits for work; true if there was none for [`LINGER`] and the thread may end.
    fn wait<'s>(&'s self, mut state: MutexGuard<'s, State>, role: Role) -> (MutexGuard<'s, State>, bool) {
        state.idle += 1;
        let mut timed_out = false;
        if role == Role::Member && state.threads > KEPT_THREADS {
            let (next, timeout) =
                self.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
            (state, timed_out) = (next, timeout.timed_out());
        } else {
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle -= 1;
        (state, timed_out)
    }

    /// A job that panicked left nothing half done in here: the lock is never held while a job runs.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool.
#[derive(Default, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Queues `job` behind the other jobs of `lane` that are of the same. A guest's runs alone.
    ///
    /// # Errors
    /// [`Full`] when [`MAX_WAITING`] of the lane's own, or of its guests', wait already, or when the pool is being stopped.
    pub fn submit_of(&self, whose: Whose, lane: impl Into<Lane>, mode: Mode, job: Job) -> Result<(), Full> {
        self.queue(lane.into(), whose, mode, job, MAX_WAITING)
    }

    /// Queues what must not get lost: an event of the kernel's, of which there are no more than grants and watches.
    ///
    /// # Errors
    /// [`Full`] when the pool is being stopped.
    pub fn submit_event(&self, lane: impl Into<Lane>, job: Job) -> Result<(), Full> {
        self.submit_event_of(Whose::Own, lane, job)
    }

    /// The same, of what is a guest's.
    ///
    /// # Errors
    /// [`Full`] when the pool is being stopped.
    pub fn submit_event_of(&self, whose: Whose, lane: impl Into<Lane>, job: Job) -> Result<(), Full> {
        self.queue(lane.into(), whose, Mode::Alone, job, usize::MAX)
    }

    fn queue(&self, lane: Lane, whose: Whose, mode: Mode, job: Job, most: usize) -> Result<(), Full> {
        let mut state = self.shared.lock();
        if state.stopping {
            return Err(Full);
        }
        let queue = state.waiting.entry(lane).or_default();
        if queue.waiting(whose) >= most {
            return Err(Full);
        }
        queue.push(whose, mode, job);
        // Who looks sees to it that somebody comes when it has queued all, and comes for the first itself.
        if state.offer(lane) > 0 && state.taker != Some(thread::current().id()) {
            let last = state.ready.len();
            let sleepers = self.shared.provide(&mut state, last - 1..last);
            self.shared.wake(state, sleepers);
        }
        Ok(())
    }

    /// Serves: looks for what happens until that says that it is over, and runs what it queues. The thread that calls
    /// this is one of the pool's meanwhile.
    ///
    /// # Errors
    /// [`Panicked`].
    pub fn serve(&self, look: Arc<dyn Look>) -> Result<(), Panicked> {
        let mut state = self.shared.lock();
        state.look = Some(look);
        state.threads += 1;
        // Who looks on when the first request comes.
        self.shared.start_thread(&mut state);
        work(&self.shared, state, Role::Owner);
        if self.shared.lock().panicked { Err(Panicked) } else { Ok(()) }
    }

    /// How many jobs wait, of all lanes.
    pub fn waiting(&self) -> usize {
        let of = |queue: &Queue| queue.waiting(Whose::Own) + queue.waiting(Whose::Guest(0));
        self.shared.lock().waiting.values().map(of).sum()
    }

    /// Takes no more jobs and waits until those that were taken are done. Those that nobody has begun it runs itself, so that it
    /// needs no other thread.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        let ready = state.ready.len();
        let sleepers = self.shared.provide(&mut state, 0..ready);
        self.shared.wake(state, sleepers);
        let mut state = self.shared.lock();
        while !state.waiting.is_empty() {
            state = match state.ready.pop_front() {
                Some(lane) => self.shared.run_next(state, lane),
                None => self.shared.quiet.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        self.shared.work.notify_all();
    }
}

/// Whose thread it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The one that [`Pool::serve`] was called by; it stays to the end.
    Owner,
    /// One of the pool's own.
    Member,
}

fn work<'s>(shared: &'s Arc<Shared>, mut state: MutexGuard<'s, State>, role: Role) {
    loop {
        let mut next = None;
        if state.wants_looker()
            && let Some(look) = state.look.clone()
        {
            (state, next) = shared.look_on(state, look.as_ref());
        }
        if role == Role::Owner && state.over {
            return;
        }
        if let Some(lane) = next.or_else(|| state.ready.pop_front()) {
            state = shared.run_next(state, lane);
        } else if role == Role::Member && state.stopping {
            state.threads -= 1;
            return;
        } else if !state.wants_looker() {
            let was_idle;
            (state, was_idle) = shared.wait(state, role);
            let spare = state.threads > KEPT_THREADS && !state.wants_looker();
            if was_idle && state.ready.is_empty() && spare {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_account_keeps_its_order() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        for n in 0..100 {
            let send = send.clone();
            pool.submit_of(Whose::Own, 7, Mode::Alone, Box::new(move || send.send(n).unwrap())).unwrap();
        }
        pool.stop();
        drop(send);
        assert_eq!(receive.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_only_looks_runs_side_by_side_between_what_does_not() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let patience = Duration::from_secs(10);
        let begun = Arc::new(Mutex::new(Vec::new()));
        let mut gates = Vec::new();
        let mut submit = |name: &'static str, mode| {
            let (release, held) = mpsc::channel::<()>();
            let (send, begun) = (send.clone(), Arc::clone(&begun));
            let job = move || {
                begun.lock().unwrap().push(name);
                send.send(()).unwrap();
                held.recv().unwrap_or(());
            };
            pool.submit_of(Whose::Own, 7, mode, Box::new(job)).unwrap();
            gates.push(release);
        };
        let names = ["b0", "b1", "b2", "b3", "b4"];
        submit("first", Mode::Alone);
        names.iter().for_each(|name| submit(name, Mode::Beside));
        submit("alone", Mode::Alone);
        submit("last", Mode::Beside);
        let mut gates = gates.into_iter();
        let mut release = || drop(gates.next().unwrap());
        // One after the other, as many as may be beside each other at once, and nothing past what is to be alone.
        receive.recv_timeout(patience).unwrap();
        assert!(receive.recv_timeout(Duration::from_millis(50)).is_err(), "{begun:?}");
        release();
        for _ in 0..MAX_BESIDE {
            receive.recv_timeout(patience).unwrap();
        }
        assert!(receive.recv_timeout(Duration::from_millis(50)).is_err(), "{begun:?}");
        release();
        receive.recv_timeout(patience).unwrap();
        for _ in 1..names.len() {
            assert!(!begun.lock().unwrap().contains(&"alone"));
            release();
        }
        for name in ["alone", "last"] {
            receive.recv_timeout(patience).unwrap();
            assert_eq!(begun.lock().unwrap().last().unwrap(), &name);
            release();
        }
        drop(gates);
        pool.stop();
    }

    #[test]
    fn what_clients_hold_up_holds_up_no_operation_of_theirs() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let (release, held) = mpsc::channel::<()>();
        pool.submit_of(Whose::Own, Lane::Held(7), Mode::Alone, Box::new(move || held.recv().unwrap_or(())))
            .unwrap();
        pool.submit_of(Whose::Own, 7, Mode::Alone, Box::new(move || send.send(()).unwrap())).unwrap();
        receive.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(release);
        pool.stop();
    }

    #[test]
    fn however_many_hold_something_up_others_go_on() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let accounts = u32::try_from(MAX_HELD).unwrap() + 1;
        let mut gates = HashMap::new();
        for account in 0..accounts {
            let (release, held) = mpsc::channel::<()>();
            gates.insert(account, release);
            let send = send.clone();
            let job = move || {
                send.send(account).unwrap();
                held.recv().unwrap_or(());
            };
            pool.submit_of(Whose::Own, Lane::Held(account), Mode::Alone, Box::new(job)).unwrap();
        }
        let patience = Duration::from_secs(10);
        let mut begun: Vec<u32> = (1..accounts).map(|_| receive.recv_timeout(patience).unwrap()).collect();
        for account in 0..accounts {
            let send = send.clone();
            pool.submit_of(
                Whose::Own,
                account,
                Mode::Alone,
                Box::new(move || send.send(1000 + account).unwrap()),
            )
            .unwrap();
        }
        for _ in 0..accounts {
            assert!(receive.recv_timeout(patience).unwrap() >= 1000, "one too many is held up");
        }
        // One that ends makes room for the one that waited.
        gates.remove(&begun[0]);
        begun.push(receive.recv_timeout(patience).unwrap());
        begun.sort_unstable();
        assert!(begun.into_iter().eq(0..accounts));
        drop(gates);
        pool.stop();
    }

    #[test]
    fn an_account_waits_for_one_job_of_its_guests() {
        let pool = Pool::default();
        let done = Arc::new(Mutex::new(Vec::new()));
        let (release, held) = mpsc::channel::<()>();
        let (send, begun) = mpsc::channel();
        let first = move || {
            send.send(()).unwrap();
            held.recv().unwrap_or(());
        };
        pool.submit_of(Whose::Guest(1), 7, Mode::Alone, Box::new(first)).unwrap();
        begun.recv_timeout(Duration::from_secs(10)).unwrap();
        let note = |name: &'static str| -> Job {
            let done = Arc::clone(&done);
            Box::new(move || done.lock().unwrap().push(name))
        };
        let guest = |number, name| pool.submit_of(Whose::Guest(number), 7, Mode::Beside, note(name)).unwrap();
        // One guest asks for much before anybody else asks for anything.
        ["a1", "a2", "a3"].iter().for_each(|name| guest(1, name));
        ["b1", "b2"].iter().for_each(|name| guest(2, name));
        let own = |mode, name| pool.submit_of(Whose::Own, 7, mode, note(name)).unwrap();
        own(Mode::Alone, "own1");
        ["own2", "own3"].iter().for_each(|name| own(Mode::Beside, name));
        drop(release);
        pool.stop();
        let order = ["own1", "a1", "own2", "b1", "own3", "a2", "b2", "a3"];
        assert_eq!(*done.lock().unwrap(), order);
    }

    #[test]
    fn guests_that_wait_leave_the_accounts_own_room_in_its_queue() {
        let (pool, (release, held)) = (Pool::default(), mpsc::channel::<()>());
        pool.submit_of(Whose::Own, 7, Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        let guest = |number| pool.submit_of(Whose::Guest(number), 7, Mode::Alone, Box::new(|| ()));
        let refused = (0..300).filter(|number| guest(number % 3).is_err()).count();
        assert_eq!(refused, 300 - MAX_WAITING);
        pool.submit_of(Whose::Own, 7, Mode::Alone, Box::new(|| ())).unwrap();
        pool.submit_event_of(Whose::Guest(1), 7, Box::new(|| ())).unwrap();
        drop(release);
        pool.stop();
    }

    #[test]
    fn a_stuck_account_holds_up_no_other() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let (release, held) = mpsc::channel::<()>();
        pool.submit_of(Whose::Own, 1, Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        for account in 2..20 {
            let send = send.clone();
            pool.submit_of(Whose::Own, account, Mode::Alone, Box::new(move || send.send(account).unwrap()))
                .unwrap();
        }
        for _ in 2..20 {
            receive.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        drop(release);
        pool.stop();
    }

    #[test]
    fn a_full_queue_is_refused_and_a_panic_hurts_nobody() {
        let (pool, (release, held)) = (Pool::default(), mpsc::channel::<()>());
        pool.submit_of(Whose::Own, 1, Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        let mut refused = 0;
        for _ in 0..MAX_WAITING + 10 {
            refused += usize::from(
                pool.submit_of(
                    Whose::Own,
                    1,
                    Mode::Alone,
                    Box::new(|| std::panic::resume_unwind(Box::new("job"))),
                )
                .is_err(),
            );
        }
        assert!((10..=11).contains(&refused), "{refused}");
        drop(release);
        pool.stop();
        assert!(pool.submit_of(Whose::Own, 2, Mode::Alone, Box::new(|| ())).is_err());
    }

    /// Hands on what comes over a channel, until that is closed.
    struct Looking {
        pool: Pool,
        jobs: Mutex<mpsc::Receiver<(u32, Job)>>,
        taking: Arc<Mutex<()>>,
    }

    impl Look for Looking {
        fn wait(&self) -> Found {
            let (pool, taking) = (self.pool.clone(), Arc::clone(&self.taking));
            let job = self.jobs.lock().unwrap().recv();
            Box::new(move || {
                let _alone = taking.try_lock().expect("two take at once");
                match job {
                    Ok((account, job)) => pool.submit_of(Whose::Own, account, Mode::Alone, job).unwrap(),
                    Err(_) => {
                        pool.stop();
                        return false;
                    }
                }
                true
            })
        }

        fn wake(&self) {}
    }

    fn looking(pool: &Pool, jobs: mpsc::Receiver<(u32, Job)>) -> Arc<Looking> {
        Arc::new(Looking { pool: pool.clone(), jobs: Mutex::new(jobs), taking: Arc::default() })
    }

    #[test]
    fn while_operations_are_stuck_somebody_looks() {
        let (pool, (queue, jobs), (send, receive)) = (Pool::default(), mpsc::channel(), mpsc::channel());
        let look = looking(&pool, jobs);
        let serving = thread::spawn(move || pool.serve(look));
        let mut stuck = Vec::new();
        for account in 0..20 {
            let (release, held) = mpsc::channel::<()>();
            stuck.push(release);
            queue.send((account, Box::new(move || held.recv().unwrap_or(())) as Job)).unwrap();
            for other in [100, 101, 100] {
                let send = send.clone();
                queue.send((other, Box::new(move || send.send(other).unwrap()))).unwrap();
            }
            for _ in 0..3 {
                receive.recv_timeout(Duration::from_secs(10)).unwrap();
            }
        }
        drop((stuck, queue));
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn with_every_thread_stuck_it_is_still_looked_for_what_happens() {
        let (pool, (queue, jobs)) = (Pool::default(), mpsc::channel());
        let look = looking(&pool, jobs);
        let counting = pool.clone();
        let serving = thread::spawn(move || pool.serve(look));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let done = Arc::new(Mutex::new(0));
        let accounts = 2 * u32::try_from(MAX_THREADS).unwrap();
        for account in 0..accounts {
            let (held, done) = (Arc::clone(&held), Arc::clone(&done));
            let job = move || {
                // All wait here, one of them for the end and the others for that one.
                let _ = held.lock().unwrap_or_else(PoisonError::into_inner).recv();
                *done.lock().unwrap() += 1;
            };
            queue.send((account, Box::new(job))).unwrap();
        }
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while counting.shared.lock().waiting.len() < accounts as usize {
            assert!(std::time::Instant::now() < end, "nobody looks any more");
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(counting.shared.lock().threads, MAX_THREADS);
        drop((release, queue));
        serving.join().unwrap().unwrap();
        assert_eq!(*done.lock().unwrap(), accounts);
    }

    struct Faulty;

    impl Look for Faulty {
        fn wait(&self) -> Found {
            Box::new(|| std::panic::resume_unwind(Box::new("look")))
        }

        fn wake(&self) {}
    }

    #[test]
    fn a_panic_of_who_looks_is_an_end_that_is_told() {
        assert!(Pool::default().serve(Arc::new(Faulty)).is_err());
    }

    #[test]
    fn what_comes_one_after_the_other_needs_no_third_thread() {
        let (pool, (queue, jobs), (send, receive)) = (Pool::default(), mpsc::channel(), mpsc::channel());
        let (look, counting) = (looking(&pool, jobs), pool.clone());
        let serving = thread::spawn(move || pool.serve(look));
        for _ in 0..100 {
            let send = send.clone();
            queue.send((7, Box::new(move || send.send(()).unwrap()) as Job)).unwrap();
            receive.recv_timeout(Duration::from_secs(10)).unwrap();
            // Who ran it looks again before the next one comes.
            while counting.shared.lock().lookers < LOOKERS {
                thread::yield_now();
            }
        }
        assert_eq!(counting.shared.lock().threads, KEPT_THREADS);
        drop(queue);
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn what_nobody_began_is_done_by_who_stops() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        // As many threads as there may be, none of which comes.
        pool.shared.lock().threads = MAX_THREADS;
        for n in 0..3 {
            let send = send.clone();
            pool.submit_of(Whose::Own, 7, Mode::Alone, Box::new(move || send.send(n).unwrap())).unwrap();
        }
        pool.stop();
        assert_eq!(receive.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
