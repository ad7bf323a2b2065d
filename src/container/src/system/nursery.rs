//! Where the monitor's children are born on a host that has hierarchies of cgroup v1, and in a container.
//!
//! On v1 a process is born in the cgroups of the one that clones it, and nobody but the broker moves it later: v1 is never delegated.
//! What is to be in the payload has to be cloned by a process in the payload, and the monitor is none: what the payload's limits
//! do to those inside must not be done to it. So a second process lies in v1's payload, the nursery, which is the grant's
//! stage, and clones the monitor's children in its name (`CLONE_PARENT`). It has the specification from the monitor's memory
//! and gets everything else with each order. It ends with the monitor.
//!
//! In a container the payload of one inside it is outside of its own cgroup tree, and nothing is cloned into a cgroup there, or put
//! there by anybody but the broker (`cgroup_attach_permissions()`). So there the nursery lies in the payload on cgroup2, too. It goes to
//! the payload's leaf before init is executed: from a cgroup that has processes no controller is handed down.
//!
//! On a host with cgroup2 alone there is none.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cgrant_sys::{
    Channel, Clone3, MntnsFd, NetnsFd, Pidfd, ProcFs, UsernsFd, heap, privilege, process::IdKind, seqpacket,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{
    control::Process,
    exec::{self, Task},
    payload::enter,
    spec::Prepared,
    stage::{self, Ground, Inside, Payload, Site},
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

/// What is to be done. Beside what a new process is to do come the channel that it tells by, and what there is of the payload.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// Start the container; user, network and perhaps mount namespace come too.
    Boot { placement: Placement, again: bool, payload: Beside },
    /// Execute in it; the client's channel, init, the terminals' directory and the streams come too.
    Execute { process: Process, payload: Beside },
    /// Go to the payload's leaf; what puts a process there comes too.
    MakeRoom,
}

/// What of the payload comes beside an order.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Beside {
    /// Its directory.
    Directory,
    /// Nothing: the nursery is in it.
    Nothing,
    /// Its directory from inside, and what puts a process into it.
    Inside,
}

/// What becomes of an order.
#[derive(Debug, Serialize, Deserialize)]
enum Born {
    /// The process, whose pidfd is beside it.
    Child,
    /// None, by this error number.
    None(i32),
    /// The nursery is in the leaf.
    RoomMade,
}

impl Nursery {
    /// Forks it, if this host wants one.
    pub(crate) fn make(spec: &Prepared) -> io::Result<Option<Self>> {
        let proc = ProcFs::open()?;
        let cgroups = proc.cgroups(std::process::id())?;
        if cgroups.iter().all(|(hierarchy, _)| hierarchy == CGROUP2) && is_on_host(&proc)? {
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
        let mut fds = vec![channel.as_fd()];
        let payload = match payload {
            Payload::Directory(directory) => {
                fds.push(directory.as_fd());
                Beside::Directory
            }
            Payload::Here(None) => Beside::Nothing,
            Payload::Here(Some(Inside { directory, procs })) => {
                fds.extend([directory.as_fd(), procs.as_fd()]);
                Beside::Inside
            }
        };
        fds.extend([ground.user.as_fd(), ground.network.as_fd()]);
        fds.extend(ground.mounts.as_ref().map(AsFd::as_fd));
        self.order(&Order::Boot { placement: placement.clone(), again, payload }, &fds)
    }

    /// Has it go to the payload's leaf, so that init is alone in the payload.
    pub(crate) fn make_room(&self, leaf: &OwnedFd) -> io::Result<()> {
        match self.ask(&Order::MakeRoom, &[leaf.as_fd()])? {
            (Born::RoomMade, _) => Ok(()),
            (Born::None(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            (Born::Child, _) => Err(Errno::OWNERDEAD.into()),
        }
    }

    /// A child of this process's that executes in the container ([`exec::run`]).
    pub(crate) fn execute(&self, task: &Task<'_>, channel: &Channel) -> io::Result<Pidfd> {
        let Task { process, streams, client, payload, init, terminals } = task;
        let mut fds = vec![channel.as_fd()];
        fds.extend(payload.map(AsFd::as_fd));
        fds.extend([client.as_fd(), init.as_fd(), terminals.as_fd()]);
        fds.extend(streams.iter().map(AsFd::as_fd));
        let payload = if payload.is_some() { Beside::Directory } else { Beside::Nothing };
        self.order(&Order::Execute { process: (*process).clone(), payload }, &fds)
    }

    fn order(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<Pidfd> {
        match self.ask(order, fds)? {
            (Born::Child, Some(pidfd)) => Pidfd::from_fd(pidfd).map_err(|_| Errno::BADF.into()),
            (Born::None(errno), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(Errno::OWNERDEAD.into()),
        }
    }

    fn ask(&self, order: &Order, fds: &[BorrowedFd<'_>]) -> io::Result<(Born, Option<OwnedFd>)> {
        // It was killed, for want of memory in the payload perhaps.
        let gone = |_| io::Error::from(Errno::OWNERDEAD);
        send_all(&self.channel, order, fds).map_err(gone)?;
        receive(&self.channel).map_err(gone)?.ok_or_else(|| Errno::OWNERDEAD.into())
    }
}

/// Is this process outside of every container?
fn is_on_host(proc: &ProcFs) -> io::Result<bool> {
    let map = proc.id_map(std::process::id(), IdKind::Uid)?;
    Ok(matches!(map.as_slice(), [all] if (all.inside, all.outside, all.count) == (0, 0, u32::MAX)))
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
        if let Order::MakeRoom = order {
            if send(channel, &make_room(&fds), None).is_err() {
                break;
            }
            continue;
        }
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

/// Puts this process where the descriptor leads.
fn make_room(fds: &[OwnedFd]) -> Born {
    let [leaf] = fds else { return Born::None(Errno::BADF.raw_os_error()) };
    match enter(leaf) {
        Ok(()) => Born::RoomMade,
        Err(errno) => Born::None(errno.raw_os_error()),
    }
}

/// In the new process, to its exit status. `None` if the descriptors are not those that belong to the order.
fn carry_out(order: Order, fds: Vec<OwnedFd>, spec: &Prepared) -> Option<i32> {
    let mut fds = fds.into_iter();
    let channel = Channel::from_fd(fds.next()?).ok()?;
    Some(match order {
        Order::Boot { placement, again, payload } => {
            let payload = match payload {
                Beside::Directory => Payload::Directory(fds.next()?),
                Beside::Nothing => Payload::Here(None),
                Beside::Inside => Payload::Here(Some(Inside { directory: fds.next()?, procs: fds.next()? })),
            };
            let ground = Ground {
                user: UsernsFd::from_fd(fds.next()?).ok()?,
                network: NetnsFd::from_fd(fds.next()?).ok()?,
                mounts: fds.next().map(MntnsFd::from_fd).transpose().ok()?,
            };
            stage::run(&channel, spec, &Site { ground, payload, placement, nursery: None }, again)
        }
        Order::Execute { process, payload } => {
            let payload = match payload {
                Beside::Directory => Some(fds.next()?),
                Beside::Nothing | Beside::Inside => None,
            };
            let client = Channel::from_fd(fds.next()?).ok()?;
            let init = Pidfd::from_fd(fds.next()?).ok()?;
            let terminals = fds.next()?;
            let streams: Vec<OwnedFd> = fds.collect();
            let task = Task {
                process: &process,
                streams: &streams,
                client: &client,
                payload: payload.as_ref(),
                init: &init,
                terminals: &terminals,
            };
            exec::run(&task, &channel)
        }
        Order::MakeRoom => return None,
    })
}
