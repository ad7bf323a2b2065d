//! Short-lived children of the monitor: one that makes the namespaces which outlast a reboot, and one that enters them and clones
//! the container's first process, as the monitor's own child, straight into the payload.
//!
//! They are processes of their own because the monitor itself stays outside of every namespace of the container's: as
//! the account, which owns the user namespace, it has all rights over it (user_namespaces(7)), and nobody inside has any
//! over it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cgrant_sys::{Channel, Clone3, MntnsFd, NetnsFd, Pidfd, UsernsFd, pidfd::Signal, privilege, seqpacket};
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, Mode, OFlags},
    net::Shutdown,
};
use serde::{Deserialize, Serialize};

use super::{
    init, layers,
    message::{FromInit, ToInit},
    nursery::Nursery,
    payload,
    spec::Prepared,
    state::Ended,
    tree::Kept,
};
use crate::{
    failure::{At, Step, StepFailure},
    launch::Placement,
    message::{receive, send},
};

/// The namespaces that are new at each start, besides the cgroup namespace, which is made from inside the payload.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// How much more than the monitor's what is inside counts when the kernel wants memory, in thousandths of what there is: as
/// much as systemd gives a user's applications.
const OOM_SCORE: i32 = 200;

/// The namespaces that the broker's grants lie in.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) user: UsernsFd,
    pub(crate) network: NetnsFd,
    /// Where the layers of the root become one, if it has layers.
    pub(crate) mounts: Option<MntnsFd>,
}

/// Where each start happens.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) ground: Ground,
    pub(crate) payload: Payload,
    pub(crate) placement: Placement,
    /// Who clones what is to be in the payload, if it is not the monitor.
    pub(crate) nursery: Option<Nursery>,
}

/// The payload, as who starts the container has it.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Its cgroup2 directory, into which processes are cloned.
    Directory(OwnedFd),
    /// In a container: where the nursery is, and what the init before had of it.
    Here(Option<Inside>),
}

/// A payload as its own processes see it.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) directory: OwnedFd,
    /// Its `cgroup.procs`, opened by the container's root.
    pub(crate) procs: OwnedFd,
}

impl Payload {
    /// Its directory, as far as there is one.
    pub(crate) fn directory(&self) -> Option<&OwnedFd> {
        match self {
            Self::Directory(directory) | Self::Here(Some(Inside { directory, .. })) => Some(directory),
            Self::Here(None) => None,
        }
    }

    /// Where what is born elsewhere has to be cloned into.
    pub(crate) fn directory_to_enter(&self) -> Option<&OwnedFd> {
        match self {
            Self::Directory(directory) => Some(directory),
            Self::Here(_) => None,
        }
    }
}

/// A container whose init was executed.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) init: Pidfd,
    pub(crate) pid: u32,
    pub(crate) kept: Kept,
    /// What it has of the payload, for the next start, if that is where the nursery is.
    pub(crate) inside: Option<Inside>,
}

impl Site {
    /// Takes over what the next start needs of this one.
    pub(crate) fn keep(&mut self, booted: &mut Booted) {
        if let Some(inside) = booted.inside.take() {
            self.payload = Payload::Here(Some(inside));
        }
    }
}

impl Booted {
    /// Ends it.
    pub(crate) fn give_up(&self) {
        let _ = self.init.send_signal(Signal::KILL);
        let _ = self.init.wait();
    }
}

/// Why it was not.
#[derive(Debug)]
pub(crate) enum BootError {
    Step(StepFailure),
    Died(Ended),
}

impl From<StepFailure> for BootError {
    fn from(failure: StepFailure) -> Self {
        Self::Step(failure)
    }
}

impl Ground {
    /// Makes them, unmapped; no process is in them. With directories to be shown to the broker, these too, opened in them.
    pub(crate) fn make(spec: &Prepared) -> Result<(Self, Vec<OwnedFd>), StepFailure> {
        let (shown, has_mounts) = (&spec.shown, spec.has_mounts());
        let (near, far) = seqpacket::pair().at(Step::UserNamespace, "")?;
        let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
        flags.set(CloneFlags::CLONE_NEWNS, has_mounts);
        let child = Clone3::new().flags(flags).spawn(|| show_own(&far, spec)).at(Step::UserNamespace, "")?;
        drop(far);
        let next = |step| match receive::<Shown>(&near) {
            Ok(Some((Shown::Descriptor, Some(fd)))) => Ok(fd),
            Ok(Some((Shown::Failed(failure), _))) => Err(failure),
            _ => Err(nothing(step)),
        };
        let all = || {
            let user = UsernsFd::from_fd(next(Step::ShowUserNamespace)?);
            let network = NetnsFd::from_fd(next(Step::ShowNetworkNamespace)?);
            let mounts = match has_mounts {
                true => Some(MntnsFd::from_fd(next(Step::ShowMountNamespace)?)),
                false => None,
            };
            let directories = shown.iter().map(|_| next(Step::OpenRoot)).collect::<Result<_, _>>()?;
            let user = user.map_err(|_| nothing(Step::ShowUserNamespace))?;
            let network = network.map_err(|_| nothing(Step::ShowNetworkNamespace))?;
            let mounts = mounts.transpose().map_err(|_| nothing(Step::ShowMountNamespace))?;
            Ok((Self { user, network, mounts }, directories))
        };
        let made = all();
        drop(near);
        child.pidfd.wait().at(Step::UserNamespace, "")?;
        made
    }
}

/// What the process in the new namespaces says.
#[derive(Debug, Serialize, Deserialize)]
enum Shown {
    /// A descriptor is beside it.
    Descriptor,
    Failed(StepFailure),
}

fn show_own(channel: &Channel, spec: &Prepared) -> i32 {
    let kinds = if spec.has_mounts() { &["user", "net", "mnt"][..] } else { &["user", "net"] };
    let namespaces = kinds.iter().map(|kind| {
        let path = format!("/proc/self/ns/{kind}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, &path, flags, Mode::empty()).at(Step::ShowUserNamespace, &path)
    });
    let directories = spec
        .shown
        .iter()
        .map(|path| layers::open_directory(path).at(Step::OpenRoot, &path.display().to_string()));
    for opened in namespaces.chain(directories) {
        let failed = opened.is_err();
        let said = match opened {
            Ok(fd) => send(channel, &Shown::Descriptor, Some(fd.as_fd())),
            Err(failure) => send(channel, &Shown::Failed(failure), None),
        };
        if failed || said.is_err() {
            return 1;
        }
    }
    0
}

fn nothing(step: Step) -> StepFailure {
    StepFailure { step, subject: String::new(), errno: 0 }
}

/// Starts the container. Waits until its init is executed, which takes as long as mounting its tree.
pub(crate) fn boot(spec: &Prepared, site: &Site, again: bool) -> Result<Booted, BootError> {
    let (near, far) = seqpacket::pair().at(Step::Fork, "")?;
    let child = match &site.nursery {
        None => Clone3::new().spawn(|| run(&far, spec, site, again)).map(|child| child.pidfd),
        Some(nursery) => nursery.boot(site, again, &far),
    };
    let child = child.at(Step::Fork, "")?;
    drop(far);
    let heard = Heard::until_end(&near, site.nursery.as_ref());
    let _ = child.wait();
    heard.booted()
}

/// What the stage and the first process said until both had closed the channel.
#[derive(Debug, Default)]
struct Heard {
    init: Option<Pidfd>,
    console: Option<OwnedFd>,
    terminals: Option<OwnedFd>,
    notify: Option<OwnedFd>,
    payload: Option<OwnedFd>,
    procs: Option<OwnedFd>,
    executing: bool,
    failure: Option<StepFailure>,
}

impl Heard {
    fn until_end(channel: &Channel, nursery: Option<&Nursery>) -> Self {
        let mut heard = Self::default();
        while let Ok(Some((message, fd))) = receive(channel) {
            match message {
                FromInit::Init => heard.init = fd.and_then(|fd| Pidfd::from_fd(fd).ok()),
                FromInit::Console => heard.console = fd,
                FromInit::Terminals => heard.terminals = fd,
                FromInit::Notify => heard.notify = fd,
                FromInit::Payload => heard.payload = fd,
                FromInit::Procs => heard.procs = fd,
                FromInit::Leaf => {
                    if let Err(failure) = make_room(channel, nursery, fd) {
                        heard.failure = Some(failure);
                        // It waits for a word, and ends without one.
                        let _ = rustix::net::shutdown(channel, Shutdown::Write);
                    }
                }
                FromInit::Executing => heard.executing = true,
                // What was first is why the rest failed.
                FromInit::Failed(failure) => heard.failure = heard.failure.or(Some(failure)),
            }
        }
        heard
    }

    fn booted(self) -> Result<Booted, BootError> {
        let Self { init, console, terminals, notify, payload, procs, executing, failure } = self;
        let Some(init) = init else {
            return Err(failure.unwrap_or_else(|| nothing(Step::Clone)).into());
        };
        let kept = match (console, terminals, notify) {
            (Some(console), Some(terminals), Some(notify)) => Some(Kept { console, terminals, notify }),
            _ => None,
        };
        match (kept, failure, executing, init.pid()) {
            (Some(kept), None, true, Ok(pid)) => {
                let inside = payload.zip(procs).map(|(directory, procs)| Inside { directory, procs });
                Ok(Booted { init, pid, kept, inside })
            }
            (_, failure, ..) => {
                let _ = init.send_signal(Signal::KILL);
                let ended = init.wait().map(Ended::of_process);
                match (failure, ended) {
                    (Some(failure), _) => Err(failure.into()),
                    (None, Ok(ended)) => Err(BootError::Died(ended)),
                    (None, Err(_)) => Err(nothing(Step::Clone).into()),
                }
            }
        }
    }
}

/// Has the nursery leave the payload to init.
fn make_room(channel: &Channel, nursery: Option<&Nursery>, leaf: Option<OwnedFd>) -> Result<(), StepFailure> {
    let (Some(nursery), Some(leaf)) = (nursery, leaf) else { return Err(nothing(Step::Proceed)) };
    nursery.make_room(&leaf).at(Step::Clone, "the payload's leaf")?;
    send(channel, &ToInit::Alone, None).map_err(|_| nothing(Step::Proceed))
}

/// The stage, from its fork to its exit status.
pub(crate) fn run(channel: &Channel, spec: &Prepared, site: &Site, again: bool) -> i32 {
    let Err(failure) = start(channel, spec, site, again) else { return 0 };
    let _ = send(channel, &FromInit::Failed(failure), None);
    1
}

fn start(channel: &Channel, spec: &Prepared, site: &Site, again: bool) -> Result<(), StepFailure> {
    let Site { ground, payload, placement, .. } = site;
    yield_memory();
    // Nothing inside may look through it at what the monitor has in memory.
    privilege::set_dumpable(false).at(Step::Process, "memory")?;
    let mut keep = vec![channel.as_fd(), ground.user.as_fd(), ground.network.as_fd()];
    keep.extend(ground.mounts.as_ref().map(AsFd::as_fd));
    keep.extend(payload.directory().map(AsFd::as_fd));
    if let Payload::Here(Some(Inside { procs, .. })) = payload {
        keep.push(procs.as_fd());
    }
    let keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    privilege::close_fds_from(3, &keep).at(Step::Process, "descriptors")?;
    ground.user.enter().at(Step::Join, "")?;
    ground.network.enter().at(Step::Join, "")?;
    if let Some(mounts) = &ground.mounts {
        mounts.enter().at(Step::Join, "")?;
    }
    if again && let Some(directory) = payload.directory() {
        payload::clean(directory)?;
    }
    let clone = Clone3::new().flags(NAMESPACES).sibling();
    let clone = match payload {
        Payload::Directory(directory) => clone.cgroup(directory.as_fd()),
        Payload::Here(inside) => {
            // Born in the leaf, where the nursery is since the first start.
            inside.iter().try_for_each(|inside| payload::enter(&inside.procs)).at(Step::Clone, "")?;
            clone
        }
    };
    let is_here = matches!(payload, Payload::Here(_));
    let child = clone.spawn(|| init::run(channel, spec, placement, is_here)).at(Step::Clone, "")?;
    send(channel, &FromInit::Init, Some(child.pidfd.as_fd())).map_err(|_| nothing(Step::Proceed))
}

/// What this process clones is killed for want of memory before the monitor is, which is under the grant's limit too: a container that
/// is full of files has nobody in it who is larger. To be called before the process stops being dumpable: its files in
/// `/proc` are root's then.
pub(crate) fn yield_memory() {
    const FILE: &str = "/proc/self/oom_score_adj";
    // Raising needs no right. Without it the container runs all the same.
    let Ok(file) = rustix::fs::openat(CWD, FILE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    let mut text = [0; 16];
    let length = rustix::io::read(&file, &mut text).unwrap_or(0);
    let own = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
    if own.trim().parse::<i32>().is_ok_and(|own| own < OOM_SCORE) {
        let _ = rustix::io::pwrite(&file, OOM_SCORE.to_string().as_bytes(), 0);
    }
}
