//! Where the monitor's children are born on a host that has hierarchies of cgroup v1.
//!
//! There a process is born in the cgroups of the one that clones it, and nobody but the broker moves it later: v1 is never delegated.
//! What is to be in the payload has to be cloned by a process in the payload, and the monitor is none: what the payload's limits
//! do to those inside must not be done to it. So a second process lies in v1's payload, the nursery, which is the grant's
//! stage, and clones the monitor's children in its name (`CLONE_PARENT`). It has the specification from the monitor's memory
//! and gets everything else with each order. It ends with the monitor. Where there is cgroup2 alone there is none.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cgrant_sys::{Channel, Clone3, MntnsFd, NetnsFd, Pidfd, ProcFs, UsernsFd, heap, privilege, seqpacket};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{
    control::Process,
    exec::{self, Task},
    spec::Prepared,
    stage::{self, Ground, Site},
};
use crate::{
    launch::Placement,
    message::{receive, receive_all, send, send_all},
};

/// What it is called in lists of processes.
const NAME: &std::ffi::CStr = c"cgrant-nursery";
/// How the one hierarchy of cgroup v2 is called.
const CGROUP2: &str = "cgroup2";

/// The nursery, a child of the monitor.
#[derive(Debug)]
pub(crate) struct Nursery {
    channel: Channel,
    process: Pidfd,
}

/// What a new process is to do. Beside each come the channel that it tells by, and the payload.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Start the container; user, network and perhaps mount namespace come too.
    Boot { placement: Placement, again: bool },
    /// Execute in it; the client's channel, init, the terminals' directory and the streams come too.
    Execute(Process),
}

/// What becomes of an order.
#[derive(Debug, Serialize, Deserialize)]
enum Born {
    /// The process, whose pidfd is beside it.
    Child,
    /// None, by this error number.
    None(i32),
}

impl Nursery {
    /// Forks it, if this host wants one.
    pub(crate) fn make(spec: &Prepared) -> io::Result<Option<Self>> {
        let cgroups = ProcFs::open()?.cgroups(std::process::id())?;
        if cgroups.iter().all(|(hierarchy, _)| hierarchy == CGROUP2) {
            return Ok(None);
        }
        let (channel, far) = seqpacket::pair()?;
        let child = Clone3::new().spawn(|| live(&far, spec))?;
        Ok(Some(Self { channel, process: child.pidfd }))
    }

    /// Its pidfd.
    pub(crate) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// A child of this process's that starts the container ([`stage::run`]).
    pub(crate) fn boot(&self, site: &Site, again: bool, channel: &Channel) -> io::Result<Pidfd> {
        let Site { ground, payload, placement, .. } = site;
        let mut fds = vec![channel.as_fd(), payload.as_fd(), ground.user.as_fd(), ground.network.as_fd()];
        fds.extend(ground.mounts.as_ref().map(AsFd::as_fd));
        self.order(&Order::Boot { placement: placement.clone(), again }, &fds)
    }

    /// A child of this process's that executes in the container ([`exec::run`]).
    pub(crate) fn execute(&self, task: &Task<'_>, channel: &Channel) -> io::Result<Pidfd> {
        let Task { process, streams, client, payload, init, terminals } = task;
        let mut fds = vec![channel.as_fd(), payload.as_fd(), client.as_fd(), init.as_fd(), terminals.as_fd()];
        fds.extend(streams.iter().map(AsFd::as_fd));
        self.order(&Order::Execute((*process).clone()), &fds)
    }

    fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<Pidfd> {
        // It was killed, for want of memory in the payload perhaps.
        let gone = |_| io::Error::from(Errno::OWNERDEAD);
        send_all(&self.channel, order, fds).map_err(gone)?;
        match receive(&self.channel).map_err(gone)? {
            Some((Born::Child, Some(pidfd))) => Pidfd::from_fd(pidfd).map_err(|_| Errno::BADF.into()),
            Some((Born::None(errno), _)) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(Errno::OWNERDEAD.into()),
        }
    }
}

/// The nursery, from its fork to its exit status.
fn live(channel: &Channel, spec: &Prepared) -> i32 {
    let keep = [channel.as_fd().as_raw_fd()];
    if privilege::close_fds_from(3, &keep).is_err() || rustix::thread::set_name(NAME).is_err() {
        return 1;
    }
    // Each process that is cloned here has a copy of what there is.
    heap::give_back();
    while let Ok(Some((order, fds))) = receive_all::<Order>(channel) {
        let born = Clone3::new().sibling().spawn(|| carry_out(order, fds, spec).unwrap_or(1));
        let told = match born {
            Ok(child) => send(channel, &Born::Child, Some(child.pidfd.as_fd())),
            Err(error) => send(channel, &Born::None(error.raw_os_error().unwrap_or(0)), None),
        };
        if told.is_err() {
            break;
        }
    }
    0
}

/// In the new process, to its exit status. `None` if the descriptors are not those that belong to the order.
fn carry_out(order: Order, fds: Vec<OwnedFd>, spec: &Prepared) -> Option<i32> {
    let mut fds = fds.into_iter();
    let channel = Channel::from_fd(fds.next()?).ok()?;
    let payload = fds.next()?;
    Some(match order {
        Order::Boot { placement, again } => {
            let ground = Ground {
                user: UsernsFd::from_fd(fds.next()?).ok()?,
                network: NetnsFd::from_fd(fds.next()?).ok()?,
                mounts: fds.next().map(MntnsFd::from_fd).transpose().ok()?,
            };
            stage::run(&channel, spec, &Site { ground, payload, placement, nursery: None }, again)
        }
        Order::Execute(process) => {
            let client = Channel::from_fd(fds.next()?).ok()?;
            let init = Pidfd::from_fd(fds.next()?).ok()?;
            let terminals = fds.next()?;
            let streams: Vec<OwnedFd> = fds.collect();
            let task = Task {
                process: &process,
                streams: &streams,
                client: &client,
                payload: &payload,
                init: &init,
                terminals: &terminals,
            };
            exec::run(&task, &channel)
        }
    })
}
