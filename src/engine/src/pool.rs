//! A small pool of threads that runs operations: those of one account in order, those of different accounts side by side.
//!
//! It knows nothing of what a job does. A kernel call that is slow holds up its own account only, as long as
//! fewer than [`MAX_THREADS`] accounts are stuck at once. Waiting threads make no system calls.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Threads that stay when there is nothing to do.
const KEPT_THREADS: usize = 1;
/// Most threads at once.
const MAX_THREADS: usize = 32;
/// Most jobs that wait for one account.
const MAX_WAITING: usize = 256;
/// How long a thread beyond [`KEPT_THREADS`] waits for work before it ends.
const LINGER: Duration = Duration::from_secs(5);

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

/// The account's queue is full.
#[derive(Debug, thiserror::Error)]
#[error("too many requests of this account are waiting")]
pub struct Full;

#[derive(Default)]
struct State {
    /// An account is in here while it has jobs waiting or one running.
    waiting: HashMap<u32, VecDeque<Job>>,
    /// Accounts whose next job may be taken.
    ready: VecDeque<u32>,
    idle: usize,
    threads: usize,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    quiet: Condvar,
}

impl Shared {
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
    /// Queues `job` behind the other jobs of `account`.
    ///
    /// # Errors
    /// [`Full`] when [`MAX_WAITING`] jobs of the account wait already, or when the pool is being stopped.
    pub fn submit(&self, account: u32, job: Job) -> Result<(), Full> {
        self.queue(account, job, MAX_WAITING)
    }

    /// Queues what must not get lost: an event of the kernel's, of which there are no more than grants and watches.
    ///
    /// # Errors
    /// [`Full`] when the pool is being stopped.
    pub fn submit_event(&self, account: u32, job: Job) -> Result<(), Full> {
        self.queue(account, job, usize::MAX)
    }

    fn queue(&self, account: u32, job: Job, most: usize) -> Result<(), Full> {
        let mut state = self.shared.lock();
        if state.stopping {
            return Err(Full);
        }
        match state.waiting.get_mut(&account) {
            Some(queue) if queue.len() >= most => return Err(Full),
            Some(queue) => {
                queue.push_back(job);
                return Ok(());
            }
            None => {
                state.waiting.insert(account, VecDeque::from([job]));
                state.ready.push_back(account);
            }
        }
        if state.idle >= state.ready.len() {
            self.shared.work.notify_one();
        } else if state.threads < MAX_THREADS {
            self.start_thread(&mut state);
        }
        Ok(())
    }

    /// Takes no more jobs and waits until those that were taken are done.
    pub fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        while !state.waiting.is_empty() {
            state = self.shared.quiet.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.shared.work.notify_all();
    }

    fn start_thread(&self, state: &mut State) {
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new()
            .name("operation".into())
            .stack_size(512 * 1024)
            .spawn(move || work(&shared));
        match started {
            Ok(_) => state.threads += 1,
            Err(error) => tracing::warn!(%error, "no further thread for operations; those there are go on"),
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(account) = state.ready.pop_front() {
            let job = state.waiting.get_mut(&account).and_then(VecDeque::pop_front);
            drop(state);
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(job)).is_err()
            {
                tracing::error!(account, "an operation panicked; its caller gets no answer from it");
            }
            state = shared.lock();
            if state.waiting.get(&account).is_some_and(|queue| !queue.is_empty()) {
                state.ready.push_back(account);
            } else {
                state.waiting.remove(&account);
            }
            if state.waiting.is_empty() {
                shared.quiet.notify_all();
            }
            continue;
        }
        if state.stopping {
            state.threads -= 1;
            return;
        }
        state.idle += 1;
        if state.threads > KEPT_THREADS {
            let (next, timeout) =
                shared.work.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.ready.is_empty() && state.threads > KEPT_THREADS {
                state.threads -= 1;
                return;
            }
        } else {
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_account_keeps_its_order() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        for n in 0..100 {
            let send = send.clone();
            pool.submit(7, Box::new(move || send.send(n).unwrap())).unwrap();
        }
        pool.stop();
        drop(send);
        assert_eq!(receive.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_stuck_account_holds_up_no_other() {
        let (pool, (send, receive)) = (Pool::default(), mpsc::channel());
        let (release, held) = mpsc::channel::<()>();
        pool.submit(1, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        for account in 2..20 {
            let send = send.clone();
            pool.submit(account, Box::new(move || send.send(account).unwrap())).unwrap();
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
        pool.submit(1, Box::new(move || held.recv().unwrap_or(()))).unwrap();
        let mut refused = 0;
        for _ in 0..MAX_WAITING + 10 {
            refused +=
                usize::from(pool.submit(1, Box::new(|| std::panic::resume_unwind(Box::new("job")))).is_err());
        }
        assert!((10..=11).contains(&refused), "{refused}");
        drop(release);
        pool.stop();
        assert!(pool.submit(2, Box::new(|| ())).is_err());
    }
}
