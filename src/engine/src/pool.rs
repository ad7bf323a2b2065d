//! A small pool of threads that runs operations: those of one account in order, those of different accounts side by side.
//!
//! It knows nothing of what a job does but whether it may run beside its neighbours: jobs that only look are taken together with
//! those next to them in the queue, up to [`MAX_BESIDE`], so that everybody sees what was done before and nothing that was
//! asked for later. A kernel call that is slow holds up its own account only, as long as
//! fewer than [`MAX_THREADS`] accounts are stuck at once. Waiting threads make no system calls.
//!
//! One thread at a time, the leader, looks for what happens and queues it. If another thread waits for work that one becomes
//! the leader, and the one that took a request runs it, without a wakeup between. If none waits, it goes on looking: there
//! always is a leader, and it never runs a job.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};

/// Threads that stay when there is nothing to do: the leader and the next one.
const KEPT_THREADS: usize = 2;
/// Most threads at once, with the leader.
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

/// Waits until something happens, and queues what is to be done about it. False when that was the last time.
pub type Look = Arc<dyn Fn() -> bool + Send + Sync>;

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
    /// How many of the first ones may be taken, each of which has its entry in [`State::ready`].
    offered: usize,
    /// How many run.
    running: usize,
    /// Does one run that is to be alone?
    alone: bool,
}

impl Queue {
    /// How many of the first jobs may run now.
    fn startable(&self) -> usize {
        match self.jobs.front() {
            Some(_) if self.alone => 0,
            Some((Mode::Alone, _)) => usize::from(self.running == 0),
            Some((Mode::Beside, _)) => {
                let room = MAX_BESIDE.saturating_sub(self.running);
                self.jobs.iter().take(room).take_while(|(mode, _)| *mode == Mode::Beside).count()
            }
            None => 0,
        }
    }

    /// Takes the first job.
    fn begin(&mut self) -> Option<(Mode, Job)> {
        self.offered = self.offered.saturating_sub(1);
        let (mode, job) = self.jobs.pop_front()?;
        self.running += 1;
        self.alone = mode == Mode::Alone;
        Some((mode, job))
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
    /// How many of [`Lane::Held`] are ready or running.
    held: usize,
    idle: usize,
    threads: usize,
    stopping: bool,
    /// How it is looked for what happens, while the pool serves.
    look: Option<Look>,
    leader: Option<ThreadId>,
    over: bool,
    panicked: bool,
}

impl State {
    /// A job of a lane has ended: what waited for that is ready now. How many jobs?
    fn go_on(&mut self, lane: Lane) -> usize {
        if !matches!(lane, Lane::Held(_)) {
            return self.offer(lane);
        }
        self.held = self.held.saturating_sub(1);
        let waiting: Vec<Lane> =
            self.waiting.keys().filter(|lane| matches!(lane, Lane::Held(_))).copied().collect();
        waiting.into_iter().map(|lane| self.offer(lane)).sum()
    }

    /// Puts a lane among those that are ready, for each job of it that may be taken and is not there yet. How often?
    fn offer(&mut self, lane: Lane) -> usize {
        let Some(queue) = self.waiting.get_mut(&lane) else { return 0 };
        let mut more = queue.startable().saturating_sub(queue.offered);
        if matches!(lane, Lane::Held(_)) {
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
    work: Condvar,
    quiet: Condvar,
}

impl Shared {
    /// Sees to it that somebody comes for each of the `jobs` last in the queue: starts threads, and says how many to wake.
    fn provide(self: &Arc<Self>, state: &mut State, jobs: usize) -> usize {
        let mut sleepers = 0;
        for place in state.ready.len().saturating_sub(jobs)..state.ready.len() {
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

    /// Looks for what happens until there is a job and somebody who looks on.
    fn lead<'s>(self: &'s Arc<Self>, mut state: MutexGuard<'s, State>, look: &Look) -> MutexGuard<'s, State> {
        state.leader = Some(thread::current().id());
        loop {
            drop(state);
            let looked = catch_unwind(AssertUnwindSafe(|| look()));
            state = self.lock();
            if !matches!(looked, Ok(true)) {
                state.panicked = looked.is_err();
                (state.look, state.leader) = (None, None);
                (state.stopping, state.over) = (true, true);
                self.work.notify_all();
                return state;
            }
            let jobs = state.ready.len();
            let sleepers = self.provide(&mut state, jobs);
            // Whoever is idle sees first of all that nobody leads.
            if jobs > 0 && state.idle > 0 {
                state.leader = None;
                self.wake(state, sleepers);
                return self.lock();
            }
        }
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
        if let Some((_, job)) = begun
            && catch_unwind(AssertUnwindSafe(job)).is_err()
        {
            tracing::error!(?lane, "an operation panicked; its caller gets no answer from it");
        }
        state = self.lock();
        if let Some(queue) = state.waiting.get_mut(&lane) {
            if ran {
                queue.end();
            }
            if queue.jobs.is_empty() && queue.running == 0 {
                state.waiting.remove(&lane);
            }
        }
        // The first is for this thread itself.
        let others = state.go_on(lane).saturating_sub(1);
        if state.stopping && state.waiting.is_empty() {
            self.quiet.notify_all();
        }
        if others > 0 {
            let sleepers = self.provide(&mut state, others);
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
    /// Queues `job` behind the other jobs of `lane`.
    ///
    /// # Errors
    /// [`Full`] when [`MAX_WAITING`] jobs of the lane wait already, or when the pool is being stopped.
    pub fn submit(&self, lane: impl Into<Lane>, mode: Mode, job: Job) -> Result<(), Full> {
        self.queue(lane.into(), mode, job, MAX_WAITING)
    }

    /// Queues what must not get lost: an event of the kernel's, of which there are no more than grants and watches.
    ///
    /// # Errors
    /// [`Full`] when the pool is being stopped.
    pub fn submit_event(&self, lane: impl Into<Lane>, job: Job) -> Result<(), Full> {
        self.queue(lane.into(), Mode::Alone, job, usize::MAX)
    }

    fn queue(&self, lane: Lane, mode: Mode, job: Job, most: usize) -> Result<(), Full> {
        let mut state = self.shared.lock();
        if state.stopping {
            return Err(Full);
        }
        let queue = state.waiting.entry(lane).or_default();
        if queue.jobs.len() >= most {
            return Err(Full);
        }
        queue.jobs.push_back((mode, job));
        // The first of those that a leader queues is for itself, when it has queued all.
        if state.offer(lane) > 0 && (state.ready.len() > 1 || state.leader != Some(thread::current().id())) {
            let sleepers = self.shared.provide(&mut state, 1);
            self.shared.wake(state, sleepers);
        }
        Ok(())
    }

    /// Serves: looks for what happens until `look` says that it is over, and runs what it queues. The thread that calls
    /// this is one of the pool's meanwhile.
    ///
    /// # Errors
    /// [`Panicked`].
    pub fn serve(&self, look: Look) -> Result<(), Panicked> {
        let mut state = self.shared.lock();
        state.look = Some(look);
        state.threads += 1;
        // Who leads when the first request comes.
        self.shared.start_thread(&mut state);
        work(&self.shared, state, Role::Owner);
        if self.shared.lock().panicked { Err(Panicked) } else { Ok(()) }
    }

    /// Takes no more jobs and waits until those that were taken are done.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        let ready = state.ready.len();
        let sleepers = self.shared.provide(&mut state, ready);
        self.shared.wake(state, sleepers);
        let mut state = self.shared.lock();
        while !state.waiting.is_empty() {
            state = self.shared.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
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
        if state.leader.is_none()
            && let Some(look) = state.look.clone()
        {
            state = shared.lead(state, &look);
        }
        if role == Role::Owner && state.over {
            return;
        }
        if let Some(lane) = state.ready.pop_front() {
            state = shared.run_next(state, lane);
        } else if role == Role::Member && state.stopping {
            state.threads -= 1;
            return;
        } else {
            let was_idle;
            (state, was_idle) = shared.wait(state, role);
            let leads = state.leader.is_some() || state.look.is_none();
            if was_idle && state.ready.is_empty() && leads && state.threads > KEPT_THREADS {
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
            pool.submit(7, Mode::Alone, Box::new(move || send.send(n).unwrap())).unwrap();
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
            pool.submit(7, mode, Box::new(job)).unwrap();
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
        pool.submit(Lane::Held(7), Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        pool.submit(7, Mode::Alone, Box::new(move || send.send(()).unwrap())).unwrap();
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
            pool.submit(Lane::Held(account), Mode::Alone, Box::new(job)).unwrap();
        }
        let patience = Duration::from_secs(10);
        let mut begun: Vec<u32> = (1..accounts).map(|_| receive.recv_timeout(patience).unwrap()).collect();
        for account in 0..accounts {
            let send = send.clone();
            pool.submit(account, Mode::Alone, Box::new(move || send.send(1000 + account).unwrap())).unwrap();
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
    fn a_stuck_account_holds_up_no_other() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let (release, held) = mpsc::channel::<()>();
        pool.submit(1, Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        for account in 2..20 {
            let send = send.clone();
            pool.submit(account, Mode::Alone, Box::new(move || send.send(account).unwrap())).unwrap();
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
        pool.submit(1, Mode::Alone, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        let mut refused = 0;
        for _ in 0..MAX_WAITING + 10 {
            refused += usize::from(
                pool.submit(1, Mode::Alone, Box::new(|| std::panic::resume_unwind(Box::new("job")))).is_err(),
            );
        }
        assert!((10..=11).contains(&refused), "{refused}");
        drop(release);
        pool.stop();
        assert!(pool.submit(2, Mode::Alone, Box::new(|| ())).is_err());
    }

    /// A look that hands on what comes over a channel, until that is closed.
    fn looking(pool: &Pool, jobs: mpsc::Receiver<(u32, Job)>) -> Look {
        let (pool, jobs) = (pool.clone(), Mutex::new(jobs));
        Arc::new(move || match jobs.try_lock().expect("two leaders").recv() {
            Ok((account, job)) => {
                pool.submit(account, Mode::Alone, job).unwrap();
                true
            }
            Err(_) => {
                pool.stop();
                false
            }
        })
    }

    #[test]
    fn while_operations_are_stuck_somebody_leads() {
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

    #[test]
    fn a_panic_of_the_leaders_is_an_end_that_is_told() {
        let pool = Pool::default();
        let look: Look = Arc::new(|| std::panic::resume_unwind(Box::new("look")));
        assert!(pool.serve(look).is_err());
    }
}
