//! The keeper and the job: what runs in the storage namespace.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cgrant_container::{Signal, Step, StepFailure};
use cgrant_image::{Progress, store::Store};
use cgrant_sys::{Channel, Clone3, Dir, Pidfd, ProcFs, pidfd::Exit, process::IdKind};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    unistd::{setgroups, setresgid, setresuid, setsid},
};
use rustix::{
    fs::Mode,
    process::{Pid, getpid, getppid, set_parent_process_death_signal, umask},
};
use serde::Serialize;
use serde_json::Value;

use super::message::{FromOwner, FromWorker, JobFailure, Told, receive, send};

/// Progress is told so often.
const OFTEN: Duration = Duration::from_millis(100);

/// What is to be done as root of the storage namespace, in a process of its own with one thread.
pub(crate) trait Job<R>: FnOnce(&Worker) -> Result<R, JobFailure>
where
    R: Serialize,
{
}

impl<R: Serialize, F: FnOnce(&Worker) -> Result<R, JobFailure>> Job<R> for F {}

/// What a job has.
#[derive(Debug)]
pub(crate) struct Worker {
    /// The account's images and containers.
    pub(crate) store: Store,
    /// The account's own uid and gid in the storage namespace.
    pub(crate) account: (u32, u32),
    channel: Channel,
}

impl Worker {
    /// Tells how far the job has come: each step's beginning, and what follows not too often.
    pub(crate) fn watch(&self) -> impl FnMut(Progress) + '_ {
        let mut last: Option<(cgrant_image::Step, Instant)> = None;
        move |progress| {
            let due = last.is_none_or(|(step, at)| {
                step != progress.step || at.elapsed() >= OFTEN || Some(progress.done) == progress.total
            });
            if due {
                last = Some((progress.step, Instant::now()));
                self.tell(Told::Progress(progress));
            }
        }
    }

    /// Tells a line.
    pub(crate) fn line(&self, line: &str) {
        self.tell(Told::Line(line.to_owned()));
    }

    /// Tells that something was said on a channel of the job's own, and an answer is waited for there.
    pub(crate) fn asks(&self) {
        self.tell(Told::Asks);
    }

    fn tell(&self, what: Told) {
        // When nobody listens any more, the keeper ends this process.
        let _ = send(&self.channel, &FromWorker::Told(what), None);
    }
}

/// The keeper, from its fork to its exit status.
pub(super) fn keep<R: Serialize>(channel: &Channel, base: &Dir, job: impl Job<R>) -> i32 {
    let (job, go) = match prepare(channel, base, job) {
        Ok(prepared) => prepared,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or_default();
            let failure = StepFailure { step: Step::UserNamespace, subject: String::new(), errno };
            let advice = failure.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            let text = format!("the user namespace for work on files could not be made: {error}{advice}");
            let _ = send(channel, &FromWorker::Failed(JobFailure::machine(text)), None);
            return 1;
        }
    };
    attend(channel, &job, go);
    if !matches!(job.wait(), Ok(Exit::Code(0))) {
        // What can't be removed now, the next job removes.
        let _ = become_root().is_ok_and(|()| inside(base).is_ok_and(|(store, _)| store.sweep().is_ok()));
    }
    0
}

/// Makes the namespace and the job, which waits until the other result is written to.
fn prepare<R: Serialize>(
    channel: &Channel,
    base: &Dir,
    job: impl Job<R>,
) -> io::Result<(Pidfd, io::PipeWriter)> {
    setsid()?;
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let namespace = File::open("/proc/self/ns/user")?;
    send(channel, &FromWorker::Namespace, Some(namespace.as_fd())).map_err(io::Error::other)?;
    let (mut told, go) = io::pipe()?;
    // The job must not hold the end whose closing tells it that the keeper has died.
    let go = Cell::new(Some(go));
    let keeper = getpid();
    let main = || {
        drop(go.take());
        let ended = end_with(keeper).and_then(|()| told.read_exact(&mut [0]));
        if ended.is_err() {
            return 1;
        }
        let message = match work(channel, base, job) {
            Ok(value) => FromWorker::Done(value),
            Err(failure) => FromWorker::Failed(failure),
        };
        i32::from(send(channel, &message, None).is_err())
    };
    let child = Clone3::new().spawn(main)?;
    send(channel, &FromWorker::Job, Some(child.pidfd.as_fd())).map_err(io::Error::other)?;
    let go = go.take().ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((child.pidfd, go))
}

fn work<R: Serialize>(channel: &Channel, base: &Dir, job: impl Job<R>) -> Result<Value, JobFailure> {
    let failed = |what: &str, error: &dyn std::error::Error| JobFailure::machine(format!("{what}: {error}"));
    become_root().map_err(|error| failed("cannot become root of the storage namespace", &error))?;
    let channel = channel.try_clone().map_err(|error| failed("no descriptor is left", &error))?;
    let (store, account) = inside(base)?;
    let result = job(&Worker { store, account, channel })?;
    serde_json::to_value(result).map_err(|error| failed("the result can't be told", &error))
}

/// Lets the job go when it may, ends it when it shall, and returns when it has ended or will at once.
fn attend(channel: &Channel, job: &Pidfd, go: io::PipeWriter) {
    let mut go = Some(go);
    loop {
        let mut fds =
            [PollFd::new(channel.as_fd(), PollFlags::POLLIN), PollFd::new(job.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut fds, PollTimeout::NONE);
        let [message, ended] = fds.map(|fd| fd.any().unwrap_or(false));
        match polled {
            Ok(_) if ended => return,
            Ok(_) if !message => continue,
            Err(Errno::EINTR) => continue,
            _ => {}
        }
        match (receive(channel), go.take()) {
            (Some((FromOwner::Go, _)), Some(mut go)) => {
                // One that died meanwhile is seen above.
                let _ = go.write_all(b"x");
            }
            // Told to, or the owner is gone.
            _ => {
                let _ = job.send_signal(Signal::KILL);
                return;
            }
        }
    }
}

fn inside(base: &Dir) -> Result<(Store, (u32, u32)), JobFailure> {
    let own = |kind| own_id(kind).map_err(|error| JobFailure::kernel("its ids can't be read", &error));
    let account = (own(IdKind::Uid)?, own(IdKind::Gid)?);
    Ok((Store::open_inside(base, account)?, account))
}

/// What the account's own id is called in this process's namespace: the one behind the range.
fn own_id(kind: IdKind) -> io::Result<u32> {
    let extents = ProcFs::open()?.id_map(std::process::id(), kind)?;
    let last = extents.iter().map(|extent| extent.inside).max();
    last.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn become_root() -> io::Result<()> {
    setgroups(&[])?;
    setresgid(0.into(), 0.into(), 0.into())?;
    setresuid(0.into(), 0.into(), 0.into())?;
    // What images and containers are made with has its own modes.
    umask(Mode::WGRP | Mode::WOTH);
    Ok(())
}

/// From here on this process ends when its parent does.
pub(crate) fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}
