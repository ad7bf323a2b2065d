//! The launcher's side of a system container's start, as states, and the first steps of the monitor.
//!
//! A start that is dropped at any point ends its processes: the monitor ends when the channel does, until it has said that
//! the container runs.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cgrant_sys::{Channel, Clone3, Dir, Pidfd, pidfd::Signal, privilege, seqpacket};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{
    init::take_streams,
    layers,
    message::FromMonitor,
    serve::{Ears, Server},
    spec::{Prepared, SystemError, SystemSpec},
    stage::{self, BootError, Ground, Site},
    state::{Ended, Phase, read_state},
};
use crate::{
    failure::{At, LaunchError, Step, StepFailure},
    launch::Placement,
    message::{receive, receive_all, send, send_all},
};

/// Held by the monitor until its container has ended.
const LOCK: &str = "lock";
/// What it is called in lists of processes.
const NAME: &std::ffi::CStr = c"cgrant-monitor";

/// Why a system container was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The specification cannot be carried out.
    #[error(transparent)]
    Spec(#[from] SystemError),
    /// The run directory cannot be used.
    #[error("cannot use the container's run directory: {0}")]
    Run(#[source] io::Error),
    /// It has a monitor.
    #[error("the container is running already")]
    Running,
    /// The monitor could not be started.
    #[error("cannot start the container's monitor: {0}")]
    Monitor(#[source] io::Error),
    /// A step failed; nothing is left running.
    #[error("{0}")]
    Step(StepFailure),
    /// The first process died before init was executed.
    #[error("the container's first process died while it was set up ({0})")]
    Died(Ended),
    /// The monitor died.
    #[error("the container's monitor died while the container was started")]
    MonitorDied,
    /// The monitor said something that was not due.
    #[error("the container's monitor answered out of turn")]
    OutOfTurn,
}

/// Starts system containers.
#[derive(Debug)]
pub struct Monitor;

/// A start whose monitor has been forked.
#[derive(Debug)]
pub struct Begun {
    channel: Channel,
    monitor: Owned,
    layers: bool,
}

/// A start whose namespaces are there and unmapped.
#[derive(Debug)]
pub struct Namespaces {
    channel: Channel,
    monitor: Owned,
    user: OwnedFd,
    network: OwnedFd,
    image: Option<Image>,
}

/// The files of the image below a root in layers, to be shown to the broker.
#[derive(Debug)]
pub struct Image {
    directory: OwnedFd,
    mounts: OwnedFd,
}

impl Image {
    /// Their directory, opened for reading in the mount namespace.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The mount namespace, owned by the new user namespace.
    pub fn mount_namespace(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }
}

/// What the broker granted to a container.
#[derive(Debug)]
pub struct Granted<'a> {
    /// The payload, an `O_PATH` descriptor of a cgroup2 directory.
    pub payload: BorrowedFd<'a>,
    /// For a root in layers, a mount of the image's files that shows them with the container's ids, attached nowhere.
    pub image: Option<BorrowedFd<'a>>,
    /// The rest.
    pub placement: &'a Placement,
}

/// The monitor, killed and reaped if the start is given up.
#[derive(Debug)]
struct Owned(Option<Pidfd>);

impl Monitor {
    /// Forks the monitor, which at once makes the namespaces. Returns without waiting for it.
    ///
    /// The calling process must have one thread: the monitor goes on with what it finds in memory, so that a caller who forks it first of
    /// all has a small one.
    ///
    /// # Errors
    /// [`StartError::Spec`], [`StartError::Run`], [`StartError::Monitor`].
    pub fn begin(spec: &SystemSpec) -> Result<Begun, StartError> {
        let mut prepared = spec.prepare()?;
        prepared.root = std::path::absolute(&prepared.root).map_err(StartError::Run)?;
        prepared.image = prepared.image.map(std::path::absolute).transpose().map_err(StartError::Run)?;
        let layers = prepared.image.is_some();
        let run = Dir::open(&spec.run).map_err(StartError::Run)?;
        let (channel, far) = seqpacket::pair().map_err(StartError::Monitor)?;
        let child = Clone3::new().spawn(|| live(&far, &prepared, &run)).map_err(StartError::Monitor)?;
        Ok(Begun { channel, monitor: Owned(Some(child.pidfd)), layers })
    }
}

impl Begun {
    /// Waits for the namespaces.
    ///
    /// # Errors
    /// [`StartError::Running`] if the container has a monitor; [`StartError::Step`]; [`StartError::MonitorDied`].
    pub fn namespaces(self) -> Result<Namespaces, StartError> {
        let Self { channel, monitor, layers } = self;
        let (FromMonitor::UserNamespace, Some(user)) = next(&channel)? else {
            return Err(StartError::OutOfTurn);
        };
        let (FromMonitor::NetworkNamespace, Some(network)) = next(&channel)? else {
            return Err(StartError::OutOfTurn);
        };
        let image = if layers { Some(image(&channel)?) } else { None };
        Ok(Namespaces { channel, monitor, user, network, image })
    }
}

impl Namespaces {
    /// The new, unmapped user namespace.
    pub fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// The network namespace, owned by it.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// The image's files, if the root is one in layers.
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// The pidfd of the monitor, which is to be the grant's holder and its stage. A start that was given up has none.
    ///
    /// # Errors
    /// `ESRCH` if it was given up.
    pub fn monitor(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.monitor.0.as_ref().ok_or(Errno::SRCH)?.as_fd())
    }

    /// Lets the monitor start the container in what was granted, and waits until its init is executed. The ids of the
    /// namespace must be mapped, and the monitor be in the grant. Its pidfd; it is a child of this process, which may
    /// wait for it or leave that to its own end.
    ///
    /// # Errors
    /// [`StartError::Step`] with the step that failed; [`StartError::Died`], [`StartError::MonitorDied`].
    pub fn start(self, granted: &Granted<'_>) -> Result<Pidfd, StartError> {
        let Self { channel, mut monitor, user, network, image } = self;
        drop((user, network, image));
        let fds: Vec<BorrowedFd<'_>> = [Some(granted.payload), granted.image].into_iter().flatten().collect();
        send_all(&channel, granted.placement, &fds).map_err(|_| StartError::MonitorDied)?;
        match next(&channel)? {
            (FromMonitor::Started, None) => monitor.0.take().ok_or(StartError::OutOfTurn),
            _ => Err(StartError::OutOfTurn),
        }
    }
}

fn image(channel: &Channel) -> Result<Image, StartError> {
    let (FromMonitor::MountNamespace, Some(mounts)) = next(channel)? else {
        return Err(StartError::OutOfTurn);
    };
    let (FromMonitor::Image, Some(directory)) = next(channel)? else { return Err(StartError::OutOfTurn) };
    Ok(Image { directory, mounts })
}

fn next(channel: &Channel) -> Result<(FromMonitor, Option<OwnedFd>), StartError> {
    match receive(channel) {
        Ok(Some((FromMonitor::Failed(failure), _))) => Err(match failure {
            StepFailure { step: Step::Proceed, errno, .. } if errno == Errno::WOULDBLOCK.raw_os_error() => {
                StartError::Running
            }
            failure => StartError::Step(failure),
        }),
        Ok(Some((FromMonitor::Died(ended), _))) => Err(StartError::Died(ended)),
        Ok(Some(message)) => Ok(message),
        Ok(None) | Err(LaunchError::Channel(_)) => Err(StartError::MonitorDied),
        Err(_) => Err(StartError::OutOfTurn),
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else { return };
        // ESRCH and ECHILD: it has ended, and was reaped, before.
        let _ = pidfd.send_signal(Signal::KILL);
        let _ = pidfd.wait();
    }
}

/// The monitor, from its fork to its exit status.
fn live(channel: &Channel, spec: &Prepared, run: &Dir) -> i32 {
    let failure = match start(channel, spec, run) {
        Ok(Some(mut server)) => return server.serve(),
        Ok(None) => return 1,
        Err(BootError::Step(failure)) => FromMonitor::Failed(failure),
        Err(BootError::Died(ended)) => FromMonitor::Died(ended),
    };
    let _ = send(channel, &failure, None);
    1
}

/// `None` if the launcher has given up.
fn start<'s>(channel: &Channel, spec: &'s Prepared, run: &'s Dir) -> Result<Option<Server<'s>>, BootError> {
    become_monitor(channel, run)?;
    let lock = lock(run).at(Step::Proceed, "")?;
    let ears = Ears::open(run, lock).at(Step::Process, "socket")?;
    let Some(site) = prepare(channel, spec)? else { return Ok(None) };
    let booted = stage::boot(spec, &site, false)?;
    let server = Server::new(run, spec, site, ears, booted).at(Step::Process, "state")?;
    if send(channel, &FromMonitor::Started, None).is_err() {
        server.give_up();
        return Ok(None);
    }
    Ok(Some(server))
}

/// Makes what outlasts reboots: the namespaces, and in them the root, as far as it is layers. `None` if the launcher has given up.
fn prepare(channel: &Channel, spec: &Prepared) -> Result<Option<Site>, StepFailure> {
    let (ground, files) = Ground::make(spec.image.as_deref())?;
    let shown = [
        (FromMonitor::UserNamespace, Some(ground.user.as_fd())),
        (FromMonitor::NetworkNamespace, Some(ground.network.as_fd())),
        (FromMonitor::MountNamespace, ground.mounts.as_ref().map(AsFd::as_fd)),
        (FromMonitor::Image, files.as_ref().map(AsFd::as_fd)),
    ];
    for (message, fd) in shown.into_iter().filter(|(_, fd)| fd.is_some()) {
        if send(channel, &message, fd).is_err() {
            return Ok(None);
        }
    }
    drop(files);
    let Ok(Some((placement, fds))) = receive_all::<Placement>(channel) else { return Ok(None) };
    let mut fds = fds.into_iter();
    let Some(payload) = fds.next() else { return Ok(None) };
    if let Some(mounts) = &ground.mounts {
        let Some(image) = fds.next() else { return Ok(None) };
        layers::mount(&ground.user, mounts, &spec.root, &image)?;
    }
    Ok(Some(Site { ground, payload, placement }))
}

/// Nothing of the launcher's surroundings stays: streams, descriptors, terminal, signals, working directory.
fn become_monitor(channel: &Channel, run: &Dir) -> Result<(), StepFailure> {
    let keep = [channel.as_fd().as_raw_fd(), run.as_fd().as_raw_fd()];
    privilege::close_fds_from(3, &keep).at(Step::Process, "descriptors")?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let nothing = rustix::fs::openat(CWD, "/dev/null", flags, Mode::empty()).at(Step::Process, "streams")?;
    take_streams([nothing.as_fd(); 3]).at(Step::Process, "streams")?;
    cgrant_sys::signals::reset().at(Step::Process, "signals")?;
    rustix::process::setsid().at(Step::Process, "session")?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::process::chdir("/").at(Step::Process, "directory")?;
    rustix::thread::set_name(NAME).at(Step::Process, "name")
}

fn lock(run: &Dir) -> io::Result<OwnedFd> {
    let file = run.open_file(LOCK, OFlags::RDWR | OFlags::CREATE)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        // One whose container has ended is about to end itself.
        Err(Errno::WOULDBLOCK) if read_state(run).is_ok_and(|state| state.phase == Phase::Stopped) => {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        }
        locked => locked?,
    }
    Ok(file)
}
