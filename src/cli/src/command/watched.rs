//! Work on file systems that may not answer: done on a thread that is left to itself when nothing goes on there.

use std::{
    io,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// How long nothing may go on in a directory. A file of many gigabytes takes seconds.
pub(super) const STALL: Duration = Duration::from_secs(300);
/// For directories in directories, as many as may be.
const STACK: usize = 16 << 20;

/// Has it done on a thread of its own, as long as something goes on, and not beyond `end`. A file system that does not answer keeps that
/// thread alone.
pub(super) fn watched<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
    progress: &AtomicU64,
    stall: Duration,
    end: Option<Instant>,
) -> io::Result<T> {
    let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
    if left().is_some_and(|left| left.is_zero()) {
        return Err(late());
    }
    let (done, is_done) = mpsc::channel();
    // Nobody waits any more if it can't be told.
    thread::Builder::new().stack_size(STACK).spawn(move || drop(done.send(work())))?;
    let mut before = progress.load(Ordering::Relaxed);
    loop {
        let left = left().unwrap_or(stall);
        match is_done.recv_timeout(stall.min(left)) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the search broke off")),
            Err(RecvTimeoutError::Timeout) if left < stall => return Err(late()),
            Err(RecvTimeoutError::Timeout) => (),
        }
        let now = progress.load(Ordering::Relaxed);
        if std::mem::replace(&mut before, now) == now {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "nothing goes on there; it is left alone"));
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the time for all directories together is over")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::{sync::Arc, thread::sleep};

    use super::*;

    #[test]
    fn what_hangs_is_left_and_what_goes_on_is_waited_for() {
        let stall = Duration::from_millis(50);
        let (never, waits) = mpsc::channel::<()>();
        let hangs = move || waits.recv().map_err(io::Error::other);
        let error = watched(hangs, &AtomicU64::new(0), stall, None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(never);
        let progress = Arc::new(AtomicU64::new(0));
        let works = || {
            let looked = Arc::clone(&progress);
            move || {
                for _ in 0..50 {
                    looked.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(5));
                }
                Ok(7)
            }
        };
        assert_eq!(watched(works(), &progress, stall, None).unwrap(), 7);
        let end = Some(Instant::now() + Duration::from_millis(60));
        let error = watched(works(), &progress, stall, end).unwrap_err();
        assert_eq!(error.to_string(), late().to_string());
        let never = || -> io::Result<()> { panic!("begun too late") };
        let error = watched(never, &progress, stall, Some(Instant::now())).unwrap_err();
        assert_eq!(error.to_string(), late().to_string());
        let fails = || Err::<(), _>(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(
            watched(fails, &AtomicU64::new(0), stall, None).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
