//! The launcher's side of a system container's start, as states, and the first steps of the monitor.
//!
//! A start that is dropped at any point ends its processes: the monitor ends when the channel does, until it has said that
//! the container runs.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use cgrant_sys::{Channel, Clone3, Dir, Pidfd, code::forget_code, heap, pidfd::Signal, privilege, seqpacket};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, fcntl_lock},
    io::Errno,
};

use super::{
    arguments,
    init::take_streams,
    layers::{self, Layers},
    message::FromMonitor,
    nursery::Nursery,
    serve::{Ears, Server},
    spec::{Prepared, SystemError, SystemSpec},
    stage::{self, BootError, Ground, Payload, Site},
    state::{Ended, Phase, read_state},
};
use crate::{
    failure::{At, LaunchError, Step, StepFailure},
    inner::Kept,
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
    /// How many directories it shows.
    shows: Option<usize>,
    devices: Vec<String>,
}

/// A start whose namespaces are there and unmapped.
#[derive(Debug)]
pub struct Namespaces {
    channel: Channel,
    monitor: Owned,
    /// The grant's stage, if that is not the monitor.
    stage: Option<OwnedFd>,
    user: OwnedFd,
    network: OwnedFd,
    shown: Option<Shown>,
    devices: Vec<String>,
}

/// Directories that are to be shown to the broker, for a root in layers.
#[derive(Debug)]
struct Shown {
    directories: Vec<OwnedFd>,
    mounts: OwnedFd,
}

/// What the broker granted to a container.
#[derive(Debug)]
pub struct Granted<'a> {
    /// The payload, an `O_PATH` descriptor of a cgroup2 directory. Without one [`Namespaces::stage`] must be attached to the payload: in
    /// a container nobody can clone into a cgroup outside of the container's own tree.
    pub payload: Option<BorrowedFd<'a>>,
    /// For each of [`Namespaces::directories`] a mount that shows it with the container's ids, attached nowhere.
    pub mounts: &'a [BorrowedFd<'a>],
    /// For each of [`Namespaces::devices`] a mount that is a node of it, attached nowhere; without one the host's own node is seen.
    pub devices: &'a [Option<BorrowedFd<'a>>],
    /// What is there for it as long as its monitor has it open.
    pub kept: &'a [Kept],
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
        for path in prepared.shown.iter_mut().chain(&mut prepared.broker) {
            *path = std::path::absolute(&*path).map_err(StartError::Run)?;
        }
        let shows = prepared.has_mounts().then_some(prepared.shown.len());
        let run = Dir::open(&spec.run).map_err(StartError::Run)?;
        let (channel, far) = seqpacket::pair().map_err(StartError::Monitor)?;
        let child = Clone3::new().spawn(|| live(&far, &prepared, &run)).map_err(StartError::Monitor)?;
        Ok(Begun { channel, monitor: Owned(Some(child.pidfd)), shows, devices: spec.granted_devices.clone() })
    }
}

impl Begun {
    /// Waits for the namespaces.
    ///
    /// # Errors
    /// [`StartError::Running`] if the container has a monitor; [`StartError::Step`]; [`StartError::MonitorDied`].
    pub fn namespaces(self) -> Result<Namespaces, StartError> {
        let Self { channel, monitor, shows, devices } = self;
        let (FromMonitor::Stage, stage) = next(&channel)? else {
            return Err(StartError::OutOfTurn);
        };
        let (FromMonitor::UserNamespace, Some(user)) = next(&channel)? else {
            return Err(StartError::OutOfTurn);
        };
        let (FromMonitor::NetworkNamespace, Some(network)) = next(&channel)? else {
            return Err(StartError::OutOfTurn);
        };
        let shown = shows.map(|count| shown(&channel, count)).transpose()?;
        Ok(Namespaces { channel, monitor, stage, user, network, shown, devices })
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

    /// Of a root in layers: the image's files, and then the directories of the account's own, each opened for reading in
    /// [`Namespaces::mounts`].
    pub fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.shown.iter().flat_map(|shown| &shown.directories).map(AsFd::as_fd)
    }

    /// Those of which the broker is to be asked for a node.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Where there is anything of the broker's to be attached: the mount namespace, owned by the new user namespace.
    pub fn mounts(&self) -> Option<BorrowedFd<'_>> {
        self.shown.as_ref().map(|shown| shown.mounts.as_fd())
    }

    /// The pidfd of the process that is to be the grant's stage; the monitor, unless [`Namespaces::is_apart`].
    ///
    /// # Errors
    /// `ESRCH` if the start was given up.
    pub fn stage(&self) -> io::Result<BorrowedFd<'_>> {
        self.stage.as_ref().map_or_else(|| self.monitor(), |stage| Ok(stage.as_fd()))
    }

    /// Is the monitor to be attached to the grant by itself, as one? So it is where cgroup v1 keeps it from cloning what is to be in the
    /// payload.
    pub fn is_apart(&self) -> bool {
        self.stage.is_some()
    }

    /// The pidfd of the monitor, which is to be the grant's holder. A start that was given up has none.
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
        let Self { channel, mut monitor, stage, user, network, shown, devices: _ } = self;
        drop((stage, user, network, shown));
        let devices: Vec<bool> = granted.devices.iter().map(Option::is_some).collect();
        let fds: Vec<_> = granted
            .payload
            .iter()
            .chain(granted.mounts)
            .chain(granted.devices.iter().flatten())
            .copied()
            .collect();
        let rest = (granted.placement, devices, granted.payload.is_some(), granted.kept.len());
        send_all(&channel, &rest, &fds).map_err(|_| StartError::MonitorDied)?;
        for kept in granted.kept {
            let fds: Vec<_> = kept.descriptors.iter().map(AsFd::as_fd).collect();
            send_all(&channel, &kept.name, &fds).map_err(|_| StartError::MonitorDied)?;
        }
        match next(&channel)? {
            (FromMonitor::Started, None) => monitor.0.take().ok_or(StartError::OutOfTurn),
            _ => Err(StartError::OutOfTurn),
        }
    }
}

fn shown(channel: &Channel, count: usize) -> Result<Shown, StartError> {
    let (FromMonitor::MountNamespace, Some(mounts)) = next(channel)? else {
        return Err(StartError::OutOfTurn);
    };
    let directory = |_| match next(channel)? {
        (FromMonitor::Directory, Some(directory)) => Ok(directory),
        _ => Err(StartError::OutOfTurn),
    };
    Ok(Shown { directories: (0..count).map(directory).collect::<Result<_, _>>()?, mounts })
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
        Ok(Some(mut server)) => {
            forget_beginning();
            return server.serve();
        }
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
    let nursery = Nursery::make(spec).at(Step::Builder, "")?;
    let Some((mut site, kept)) = prepare(channel, spec, nursery)? else { return Ok(None) };
    let mut booted = stage::boot(spec, &site, false)?;
    site.keep(&mut booted);
    let server = Server::new(run, spec, site, ears, booted, kept).at(Step::Process, "state")?;
    if send(channel, &FromMonitor::Started, None).is_err() {
        server.give_up();
        return Ok(None);
    }
    Ok(Some(server))
}

/// Takes as little memory from here on as a container's monitor needs: most of what there is of the program was run once, and is the
/// launcher's. If this fails it is only larger.
fn forget_beginning() {
    let _ = forget_code();
    heap::give_back();
}

/// Makes what outlasts reboots: the namespaces, and in them the root, as far as it is mounted. `None` if the launcher has given up.
fn prepare(
    channel: &Channel,
    spec: &Prepared,
    nursery: Option<Nursery>,
) -> Result<Option<(Site, Vec<Kept>)>, StepFailure> {
    if send(channel, &FromMonitor::Stage, nursery.as_ref().map(Nursery::process)).is_err() {
        return Ok(None);
    }
    let (ground, directories) = Ground::make(spec)?;
    let namespaces = [
        (FromMonitor::UserNamespace, ground.user.as_fd()),
        (FromMonitor::NetworkNamespace, ground.network.as_fd()),
    ];
    let mounts = ground.mounts.iter().map(|mounts| (FromMonitor::MountNamespace, mounts.as_fd()));
    let shown = directories.iter().map(|directory| (FromMonitor::Directory, directory.as_fd()));
    for (message, fd) in namespaces.into_iter().chain(mounts).chain(shown) {
        if send(channel, &message, Some(fd)).is_err() {
            return Ok(None);
        }
    }
    drop(directories);
    forget_beginning();
    let Ok(Some(((placement, devices, shows_payload, count), fds))) =
        receive_all::<(Placement, Vec<bool>, bool, usize)>(channel)
    else {
        return Ok(None);
    };
    let mut kept = Vec::new();
    for _ in 0..count {
        let Ok(Some((name, descriptors))) = receive_all(channel) else { return Ok(None) };
        kept.push(Kept { name, descriptors });
    }
    let mut fds = fds.into_iter();
    let payload = match shows_payload {
        true => fds.next().map(Payload::Directory),
        // Nobody but a nursery is in the payload.
        false => nursery.is_some().then_some(Payload::Here(None)),
    };
    let Some(payload) = payload else { return Ok(None) };
    if let Some(mounts) = &ground.mounts {
        let image = if spec.layers { fds.next() } else { None };
        let binds: Vec<_> = fds.by_ref().zip(spec.targets.iter().map(PathBuf::as_path)).collect();
        let names = spec.granted_devices.iter().map(PathBuf::as_path).zip(devices);
        let devices: Vec<_> = fds.zip(names.filter(|(_, is_made)| *is_made).map(|(name, _)| name)).collect();
        if image.is_some() != spec.layers || binds.len() != spec.targets.len() {
            return Ok(None);
        }
        layers::mount(&ground.user, mounts, &Layers { place: &spec.root, image, binds, devices })?;
    }
    Ok(Some((Site { ground, payload, placement, nursery }, kept)))
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
    // Where /proc/self/mem can't be written, they are told as those of any command are.
    let _ = arguments::forget(NAME.to_bytes());
    rustix::thread::set_name(NAME).at(Step::Process, "name")
}

/// Of the process alone, not of the file's description: children of a monitor that is killed have that for a moment longer.
fn lock(run: &Dir) -> io::Result<OwnedFd> {
    let file = run.open_file(LOCK, OFlags::RDWR | OFlags::CREATE)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        // One whose container has ended is about to end itself.
        Err(Errno::WOULDBLOCK) if read_state(run).is_ok_and(|state| state.phase == Phase::Stopped) => {
            fcntl_lock(&file, FlockOperation::LockExclusive)?;
        }
        locked => locked?,
    }
    Ok(file)
}
