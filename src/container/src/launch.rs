//! The launcher's side of a launch, as states: a caller can't do the steps in a wrong order.
//!
//! ```text
//! Launch::begin(spec)      the launch stage is forked and makes its namespaces meanwhile
//!   .user_namespace()      that namespace, unmapped: to be shown to the broker
//!   .mapped(placement)     ids are mapped: the container's tree is built, while the broker attaches the stage
//!   .start(payload)        the stage is attached and may clone into the payload: the container runs
//! ```
//!
//! A launch that is dropped at any point ends its processes: the stage and the first process end when the
//! channel does, until the command's execve.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cgrant_sys::{
    Channel, Clone3, Pidfd,
    pidfd::Signal,
    seqpacket::{self, ChannelError},
};
use rustix::net::Shutdown;
use serde::{Deserialize, Serialize};

use crate::{
    container::{Container, Ending},
    failure::{LaunchError, Step, StepFailure},
    message::{FromLauncher, FromStage, receive, send},
    network::Network,
    spec::LaunchSpec,
    stage,
};

/// What the launch learns only from the grant that it is started in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The hostname, if the specification has none.
    pub hostname: String,
    /// How many ids are mapped, from 0.
    pub ids: u32,
    /// What it was given with its links, if it has any.
    pub network: Option<Network>,
}

/// A launch whose stage has been forked.
#[derive(Debug)]
pub struct Launch {
    channel: Channel,
    stage: OwnChild,
    links: bool,
}

/// A launch whose stage is in its own user namespace and waits.
#[derive(Debug)]
pub struct Staged {
    launch: Launch,
    namespace: OwnedFd,
    network: Option<OwnedFd>,
    stage: Pidfd,
}

/// A launch whose stage has its ids and prepares the container up to its first process.
#[derive(Debug)]
pub struct Mapped {
    launch: Launch,
    stage: Pidfd,
}

/// A child of this process, killed and reaped if it is given up.
#[derive(Debug)]
struct OwnChild(Option<Pidfd>);

impl Launch {
    /// Forks the launch stage, which at once makes its user namespace. Returns without waiting for it, so
    /// that the caller can connect to the broker meanwhile.
    ///
    /// The calling process must have one thread: the stage goes on with what it finds in memory.
    ///
    /// # Errors
    /// [`LaunchError::Spec`] for a specification that cannot be carried out; [`LaunchError::Stage`] if the
    /// stage cannot be forked, or the process has more than one thread.
    pub fn begin(spec: &LaunchSpec) -> Result<Self, LaunchError> {
        let prepared = spec.prepare()?;
        let (channel, far) = seqpacket::pair().map_err(LaunchError::Stage)?;
        let child = Clone3::new().spawn(|| stage::run(&far, &prepared)).map_err(LaunchError::Stage)?;
        Ok(Self { channel, stage: OwnChild(Some(child.pidfd)), links: spec.links })
    }

    /// Waits for the stage's user namespace, and its network namespace if links are wanted.
    ///
    /// # Errors
    /// [`LaunchError::Step`] if the kernel refused it; [`LaunchError::Died`] if the stage did not live.
    pub fn user_namespace(mut self) -> Result<Staged, LaunchError> {
        let (FromStage::UserNamespace, Some(namespace)) = self.next()? else {
            return Err(LaunchError::OutOfTurn);
        };
        let network = match self.links {
            true => match self.next()? {
                (FromStage::NetworkNamespace, Some(network)) => Some(network),
                _ => return Err(LaunchError::OutOfTurn),
            },
            false => None,
        };
        let Some(stage) = &self.stage.0 else { return Err(LaunchError::OutOfTurn) };
        let stage = stage.try_clone().map_err(LaunchError::Stage)?;
        Ok(Staged { launch: self, namespace, network, stage })
    }

    /// The next message, if it is no failure.
    fn next(&mut self) -> Result<(FromStage, Option<OwnedFd>), LaunchError> {
        match receive(&self.channel)? {
            Some((FromStage::Failed(failure), _)) => Err(LaunchError::Step(failure)),
            Some(message) => Ok(message),
            None => Err(self.stage.died()),
        }
    }
}

impl Staged {
    /// The new, unmapped user namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// The network namespace, owned by that user namespace, if links are wanted.
    pub fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(AsFd::as_fd)
    }

    /// The pidfd of the stage, for whoever attaches it before its ids are mapped, or names it meanwhile.
    pub fn stage(&self) -> BorrowedFd<'_> {
        self.stage.as_fd()
    }

    /// Tells the stage that the ids of the namespace are mapped. It goes on by itself as far as it can without a
    /// cgroup; this returns at once, so that the caller can have it attached meanwhile.
    ///
    /// # Errors
    /// [`LaunchError::Channel`]. That a stage has failed by now is said by what follows.
    pub fn mapped(self, placement: &Placement) -> Result<Mapped, LaunchError> {
        let Self { launch, stage, .. } = self;
        heard_or_gone(send(&launch.channel, &FromLauncher::Mapped(placement.clone()), None))?;
        Ok(Mapped { launch, stage })
    }
}

impl Mapped {
    /// The pidfd of the stage, which the broker attaches to the grant.
    pub fn stage(&self) -> BorrowedFd<'_> {
        self.stage.as_fd()
    }

    /// Lets the stage clone the container's first process into `payload` (an `O_PATH` descriptor of a
    /// cgroup2 directory) and waits until the command is executed. The stage must be attached to the grant: what
    /// it makes is where it is itself, in every v1 hierarchy. Without a `payload` it must be attached to that: in a container
    /// nobody can clone into a cgroup outside of the container's own tree.
    ///
    /// # Errors
    /// [`LaunchError::Step`] with the step that failed, among them that the command cannot be executed;
    /// [`LaunchError::Died`] if a process was killed meanwhile, for instance for want of memory.
    pub fn start<'p>(self, payload: impl Into<Option<BorrowedFd<'p>>>) -> Result<Container, LaunchError> {
        let Self { mut launch, .. } = self;
        heard_or_gone(send(&launch.channel, &FromLauncher::Attached, payload.into()))?;
        let Heard { init, executing, failure } = Heard::until_end(&launch.channel)?;
        let stage = launch.stage.wait()?;
        let Some(mut init) = init else {
            return Err(failure.map_or(LaunchError::Died(stage), LaunchError::Step));
        };
        match failure {
            Some(failure) => Err(LaunchError::Step(failure)),
            None if executing => Ok(init.become_container()?),
            None => Err(LaunchError::Died(init.wait()?)),
        }
    }

    /// Gives the launch up because the stage was not attached, and waits for its end; what had gone wrong in the
    /// stage itself, if something had: then the rest follows from that.
    pub fn failure(self) -> Option<LaunchError> {
        let Self { mut launch, .. } = self;
        // It waits for a message, or will soon: with none to come it ends.
        rustix::net::shutdown(&launch.channel, Shutdown::Write).ok()?;
        match Heard::until_end(&launch.channel).ok()?.failure {
            Some(StepFailure { step: Step::Proceed, .. }) => None,
            Some(failure) => Some(LaunchError::Step(failure)),
            None => Some(launch.stage.died()),
        }
    }
}

/// A stage that has ended says why in what can still be received.
fn heard_or_gone(sent: Result<(), LaunchError>) -> Result<(), LaunchError> {
    match sent {
        Err(LaunchError::Channel(ChannelError::Closed)) => Ok(()),
        sent => sent,
    }
}

/// Everything that stage and first process said until the channel's end, which is the command's execve or
/// the end of both. They speak independently: the first process may be faster than the stage.
#[derive(Debug, Default)]
struct Heard {
    init: Option<OwnChild>,
    executing: bool,
    failure: Option<StepFailure>,
}

impl Heard {
    fn until_end(channel: &Channel) -> Result<Self, LaunchError> {
        let mut heard = Self::default();
        while let Some((message, fd)) = receive(channel)? {
            match (message, fd) {
                (FromStage::Init, Some(fd)) => {
                    heard.init =
                        Some(OwnChild(Some(Pidfd::from_fd(fd).map_err(|_| LaunchError::OutOfTurn)?)));
                }
                (FromStage::Executing, None) => heard.executing = true,
                (FromStage::Failed(failure), None) => heard.failure = Some(failure),
                _ => return Err(LaunchError::OutOfTurn),
            }
        }
        Ok(heard)
    }
}

impl OwnChild {
    fn wait(&mut self) -> Result<Ending, LaunchError> {
        let Some(pidfd) = self.0.take() else { return Err(LaunchError::OutOfTurn) };
        pidfd.wait().map(Ending).map_err(LaunchError::Wait)
    }

    fn died(&mut self) -> LaunchError {
        self.wait().map_or_else(|error| error, LaunchError::Died)
    }

    fn become_container(&mut self) -> Result<Container, LaunchError> {
        let Some(pidfd) = self.0.take() else { return Err(LaunchError::OutOfTurn) };
        Container::new(pidfd).map_err(LaunchError::Wait)
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        let Some(pidfd) = self.0.take() else { return };
        // ESRCH and ECHILD: it has ended, and was reaped, before.
        let _ = pidfd.send_signal(Signal::KILL);
        let _ = pidfd.wait();
    }
}
