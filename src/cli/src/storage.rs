//! Work on files of images and containers: in a user namespace that has a range of the account's and the account itself.
//!
//! ```text
//! Storage::begin(doing, job)    forks, before the runtime of a session has made a thread
//!   .start(session, range)      the broker makes a grant and writes the ids; the job runs as root of the namespace
//!   .wait(told)                 its progress, then its result
//! ```
//! Processes: this one (P), a keeper (S), the job (J). S makes the namespace, and J in it, which the broker attaches to the
//! grant's payload before it does anything: what it makes is under the limits of policy. When J is ended, by a signal to
//! this program or because P died, S removes what was half made. Neither is in the terminal's session: its signals reach P
//! alone.
//!
//! The work is the account's own, on its own files: nothing here is a boundary between it and anybody.

mod failure;
mod message;
mod worker;

use std::{
    cell::Cell,
    env,
    io::{self, Write},
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use cgrant_container::{Pidfd, Session, SessionError};
use cgrant_image::store::{Store, StoreError};
use cgrant_proto::{AttachTo, Code, CreateGrant, CreateResult, Error, Lifetime, ReleaseGrant, Target};
use cgrant_sys::{Channel, Clone3, Dir, seqpacket};
use futures_util::StreamExt;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};
use zbus::{Fd, MessageStream, OwnedObjectPath};

use crate::error::{Doing, Failure};
use message::{FromOwner, FromWorker, receive, send};
pub(crate) use message::{JobFailure, Told, room};
pub(crate) use worker::{Job, Worker, end_with};

/// Name of the range that files of images belong to.
pub(crate) const IMAGES: &str = "cgrant-images";
/// How many ids a range of files has.
pub(crate) const IDS: u32 = 65_536;
/// How long the grant of work on images that was killed may take to end.
const SUCCESSION: Duration = Duration::from_secs(60);
/// What ends a job before its time.
const ENDS: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// A job that has its processes, but no ids yet.
#[derive(Debug)]
pub(crate) struct Storage<R> {
    doing: String,
    base: Dir,
    channel: Channel,
    keeper: Pidfd,
    namespace: OwnedFd,
    job: Pidfd,
    result: PhantomData<fn() -> R>,
}

/// A job that runs.
#[derive(Debug)]
pub(crate) struct Running<'a, R> {
    doing: String,
    session: &'a Session,
    grant: OwnedObjectPath,
    channel: Channel,
    keeper: Pidfd,
    signals: SignalFd,
    /// Held while it works on images.
    _lock: Option<Dir>,
    result: PhantomData<fn() -> R>,
}

/// The account's store, as the account itself sees it.
pub(crate) fn store() -> Result<Store, Failure> {
    Store::open(&path()?).map_err(unopened)
}

/// The store's directory, made if it was not there.
fn base() -> Result<Dir, Failure> {
    store()?;
    Dir::open(&path()?).map_err(machine("open the data directory"))
}

/// Where the store is.
pub(crate) fn path() -> Result<PathBuf, Failure> {
    Store::path(|name| env::var_os(name)).map_err(unopened)
}

fn unopened(error: StoreError) -> Failure {
    Failure::work("open the data directory", error.into())
}

fn machine<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Machine { doing, source: error.into() }
}

impl<R: Serialize + DeserializeOwned> Storage<R> {
    /// Makes the processes of a job; `doing` completes "cannot …". The job has what it captured, descriptors included.
    ///
    /// Must be called while this process has one thread: before a session is connected.
    pub(crate) fn begin(doing: impl Into<String>, job: impl Job<R>) -> Result<Self, Failure> {
        const BEGIN: &str = "make the process that works on files";
        let doing = doing.into();
        let base = base()?;
        let (near, far) = seqpacket::pair().map_err(machine(BEGIN))?;
        // The keeper must not hold the end whose closing tells it that this process has died.
        let near = Cell::new(Some(near));
        let keep = || {
            drop(near.take());
            worker::keep(&far, &base, job)
        };
        let keeper = Clone3::new().spawn(keep).map_err(machine(BEGIN))?.pidfd;
        drop(far);
        let Some(channel) = near.take() else { return Err(died(&doing)) };
        let namespace = shown(&channel, &doing, |message| matches!(message, FromWorker::Namespace))?;
        let job = shown(&channel, &doing, |message| matches!(message, FromWorker::Job))?;
        let job = Pidfd::from_fd(job).map_err(|_| died(&doing))?;
        Ok(Self { doing, base, channel, keeper, namespace, job, result: PhantomData })
    }

    /// Has the broker give the job the `ids` ids of `range`, in a grant of the name `name`, and lets it run. 0: as many as the range
    /// has, or a new one gets usually.
    ///
    /// Jobs on images follow each other: this waits until no other process of the account's has one. A container's name that
    /// is in use is refused by the broker.
    pub(crate) fn start<'a>(
        self,
        session: &'a Session,
        name: &str,
        range: &str,
        ids: u32,
    ) -> Result<Running<'a, R>, Failure> {
        self.started(session, name, range, |options| options.range_count(ids))
    }

    /// As [`start`](Self::start), for a job that makes no files: it starts also where the account has more than it may.
    pub(crate) fn start_tidying<'a>(
        self,
        session: &'a Session,
        name: &str,
        range: &str,
        ids: u32,
    ) -> Result<Running<'a, R>, Failure> {
        self.started(session, name, range, |options| options.range_count(ids).tidies())
    }

    fn started<'a>(
        self,
        session: &'a Session,
        name: &str,
        range: &str,
        more: impl for<'o> FnOnce(CreateGrant<'o>) -> CreateGrant<'o>,
    ) -> Result<Running<'a, R>, Failure> {
        let Self { doing, base, channel, keeper, namespace, job, result } = self;
        let lock = (range == IMAGES).then(|| lock(base)).transpose()?;
        let own = Pidfd::own().map_err(machine("name this process"))?;
        let options = CreateGrant::new()
            .lifetime(Lifetime::Process(own.as_fd()))
            .userns(namespace.as_fd())
            .own_ids()
            .range_name(range);
        let options = more(options);
        // Who has the lock is alone.
        let patience = lock.is_some().then_some(SUCCESSION);
        let (grant, ..) = make_grant(session, name, &options, patience).doing(|| doing.clone())?;
        let signals = hold_signals()?;
        let running = Running { doing, session, grant, channel, keeper, signals, _lock: lock, result };
        running.attach(&job)?;
        // Whether it got this shows in what follows.
        let _ = send(&running.channel, &FromOwner::Go, None);
        Ok(running)
    }

    /// Starts the job, with all ids of a range that is there or is like any other, and waits for its result.
    pub(crate) fn run(
        self,
        session: &Session,
        name: &str,
        range: &str,
        told: &mut dyn FnMut(Told),
    ) -> Result<R, Failure> {
        self.start(session, name, range, 0)?.wait(told)
    }

    /// As [`run`](Self::run), for a job that makes no files.
    pub(crate) fn tidy(
        self,
        session: &Session,
        name: &str,
        range: &str,
        told: &mut dyn FnMut(Told),
    ) -> Result<R, Failure> {
        self.start_tidying(session, name, range, 0)?.wait(told)
    }
}

/// Makes a grant. With `patience` one of this name that there is already is that of somebody who has just died, or is taken
/// for that: its end is waited for, so long at most.
///
/// # Errors
/// Those of the call.
pub(crate) fn make_grant(
    session: &Session,
    name: &str,
    options: &CreateGrant<'_>,
    patience: Option<Duration>,
) -> Result<(OwnedObjectPath, CreateResult, zbus::OwnedFd), SessionError> {
    let make = || match session.call(session.manager()?.create_grant(name, options)) {
        Err(SessionError::Broker(error)) if error.code() == Some(Code::GrantExists) => Ok(Err(error)),
        made => made.map(Ok),
    };
    let refused = match make()? {
        Ok(made) => return Ok(made),
        Err(refused) => refused,
    };
    let Some(patience) = patience else { return Err(refused.into()) };
    // Before the next attempt, so that no end is missed; not before the first, which seldom fails: signals that nobody reads
    // would hold up its answer.
    let signals = MessageStream::from(session.connection());
    if let Ok(made) = make()? {
        return Ok(made);
    }
    session.call_within(patience, removed(signals, name)).map_err(|_| refused)?;
    make()?.map_err(SessionError::from)
}

/// The end of a grant of this name.
async fn removed(mut signals: MessageStream, name: &str) -> Result<(), Error> {
    while let Some(message) = signals.next().await {
        let message = message?;
        if message.header().member().is_none_or(|member| member.as_str() != "GrantRemoved") {
            continue;
        }
        let body = message.body().deserialize::<(OwnedObjectPath, String, u32, String)>();
        if body.is_ok_and(|(_, removed, _, _)| removed == name) {
            return Ok(());
        }
    }
    Err(Error::Dbus(zbus::Error::InvalidReply))
}

/// The descriptor beside the message that comes next.
fn shown(
    channel: &Channel,
    doing: &str,
    expected: impl FnOnce(&FromWorker) -> bool,
) -> Result<OwnedFd, Failure> {
    match receive(channel) {
        Some((message, Some(fd))) if expected(&message) => Ok(fd),
        Some((FromWorker::Failed(failure), _)) => Err(Failure::work(doing, failure)),
        _ => Err(died(doing)),
    }
}

/// A process of a job's is not there any more, and nobody ended it.
pub(crate) fn died(doing: &str) -> Failure {
    let text = "a process of this command was killed (a memory.max or pids.max that is too low does this)";
    Failure::work(doing, JobFailure::machine(text))
}

/// Waits for other jobs on images.
fn lock(base: Dir) -> Result<Dir, Failure> {
    const LOCK: &str = "wait for other work on images";
    if flock(&base, FlockOperation::NonBlockingLockExclusive).is_err() {
        // Closed standard error is no reason to fail.
        let _ = writeln!(io::stderr(), "cgrant: waits until another cgrant has done its work on images");
        rustix::io::retry_on_intr(|| flock(&base, FlockOperation::LockExclusive)).map_err(machine(LOCK))?;
    }
    Ok(base)
}

/// From here on a signal does not end this process, so that what is half made is removed.
fn hold_signals() -> Result<SignalFd, Failure> {
    let set: SigSet = ENDS.into_iter().collect();
    set.thread_block().map_err(machine("hold signals"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&set, flags).map_err(machine("receive signals"))
}

impl<R: DeserializeOwned> Running<'_, R> {
    /// The grant that it runs in.
    pub(crate) fn grant(&self) -> &OwnedObjectPath {
        &self.grant
    }

    /// Ends the job, whose result nobody needs any more.
    pub(crate) fn cancel(self) {
        self.stop();
        // That it was ended is no news.
        let _ = self.wait(&mut |_| ());
    }

    fn attach(&self, job: &Pidfd) -> Result<(), Failure> {
        let options = AttachTo::new().target(Target::Payload);
        let attach = || {
            let cgroup = self.session.cgroup(&self.grant)?;
            self.session.call(cgroup.attach(Fd::from(job.as_fd()), &options))
        };
        attach().doing(|| self.doing.clone()).map(drop)
    }

    /// Waits for the result, and gives the ids back. A signal ends the job, and is told by the exit code.
    pub(crate) fn wait(self, told: &mut dyn FnMut(Told)) -> Result<R, Failure> {
        let (result, signal) = self.listen(told)?;
        // The keeper removes what is half made before it ends.
        let _ = self.keeper.wait();
        let released = self.release();
        match (result, signal) {
            (Some(Ok(value)), _) => {
                released?;
                serde_json::from_value(value).map_err(|_| died(&self.doing))
            }
            (_, Some(signal)) => Err(Failure::Interrupted { doing: self.doing, signal: signal as u8 }),
            (Some(Err(failure)), None) => Err(Failure::work(&self.doing, failure)),
            (None, None) => Err(died(&self.doing)),
        }
    }

    /// Everything until both processes have ended: the result, and the signal that came meanwhile.
    #[allow(clippy::type_complexity)]
    fn listen(
        &self,
        told: &mut dyn FnMut(Told),
    ) -> Result<(Option<Result<serde_json::Value, JobFailure>>, Option<Signal>), Failure> {
        let mut result = None;
        let mut ended_by = None;
        loop {
            let mut fds = [
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(machine("wait for a process")(errno)),
            }
            let [message, signal] = fds.map(|fd| fd.any().unwrap_or(false));
            if signal && let Ok(Some(info)) = self.signals.read_signal() {
                ended_by = ended_by.or(Signal::try_from(info.ssi_signo.cast_signed()).ok());
                self.stop();
            }
            if !message {
                continue;
            }
            match receive(&self.channel) {
                Some((FromWorker::Told(what), _)) => told(what),
                Some((FromWorker::Done(value), _)) => result = Some(Ok(value)),
                Some((FromWorker::Failed(failure), _)) => result = Some(Err(failure)),
                Some(_) => {}
                None => return Ok((result, ended_by)),
            }
        }
    }

    /// Ends the job and all that it started. Without a broker the keeper does what it can.
    fn stop(&self) {
        let kill = || self.session.call(self.session.cgroup(&self.grant)?.kill());
        if kill().is_err() {
            let _ = send(&self.channel, &FromOwner::Stop, None);
        }
    }

    fn release(&self) -> Result<(), Failure> {
        let options = ReleaseGrant::new().kill();
        let release = || self.session.call(self.session.grant(&self.grant)?.release(&options));
        match release() {
            // It has ended, or the broker has, which will see that this process has and end it then.
            Err(SessionError::Broker(error))
                if error.code() == Some(Code::NoSuchGrant) || matches!(error, Error::Dbus(_)) =>
            {
                Ok(())
            }
            result => result.doing(|| "give the ids back".to_owned()),
        }
    }
}
