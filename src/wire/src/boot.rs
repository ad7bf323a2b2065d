//! The messages between the supervisor and the processes that it starts.
//!
//! Every child gets one end of a SEQPACKET pair as descriptor 3 ([`CONTROL_FD`]). The first message to it
//! is its boot message with the descriptors it needs; it answers [`FromChild::Ready`] when it serves.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::op::FdIndex;

/// The descriptor number of a child's end of the pair with the supervisor.
pub const CONTROL_FD: i32 = 3;

/// What a front is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FrontKind {
    /// Serves the connections that the engine accepts.
    Socket,
    /// Speaks with the bus daemon.
    Bus,
}

/// How a process shall log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// To standard error, for people.
    Terminal,
    /// To the journal.
    Journal,
}

/// A cgroup that systemd delegated to the broker, in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// `cgroup2` or the v1 controllers as in `/proc/self/cgroup`.
    pub hierarchy: String,
    /// Path of the scope from the hierarchy's root.
    pub path: String,
}

/// What the engine needs to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineBoot {
    /// Name of the instance.
    pub instance: String,
    /// Directory of the policy (`policy.d` and `cgrantd.toml` in it).
    pub config_dir: FdIndex,
    /// What survives a reboot.
    pub state_dir: FdIndex,
    /// What describes this boot; mode 0700.
    pub run_dir: FdIndex,
    /// The host's record of ranges, what survives a reboot of it.
    pub ids_dir: FdIndex,
    /// The host's record of ranges in use now.
    pub ids_run_dir: FdIndex,
    /// Listening sockets of the native API.
    pub listeners: Vec<FdIndex>,
    /// Those of CGManager's interface.
    pub legacy_listeners: Vec<FdIndex>,
    /// Those of metrics.
    pub metrics_listeners: Vec<FdIndex>,
    /// How many engines there were before this one.
    pub engines_before: u64,
    /// How many network helpers and fronts there were before, those in the order socket, bus.
    pub others_before: [u64; 3],
    /// The scope that systemd gave, one entry a hierarchy; empty without systemd.
    pub placements: Vec<Placement>,
    /// Uids of the two fronts; connections from them are refused.
    pub front_uids: Vec<u32>,
    /// Uid and gid of the socket front: what is written on clients' sockets has these, whoever writes it.
    pub socket_front: (u32, u32),
    /// Where the log goes.
    pub log: LogTarget,
}

/// What a front needs to start. It has already been given its account and has no privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontBoot {
    /// Which it is.
    pub kind: FrontKind,
    /// Name of the instance: the bus name follows from it.
    pub instance: String,
    /// Its end of the pair with the engine.
    pub engine: FdIndex,
    /// Its account: uid and gid to become before it reads anything else.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// For the bus front: address of the bus, empty for the system bus.
    pub bus_address: String,
    /// Where the log goes.
    pub log: LogTarget,
}

/// What the network helper needs to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetBoot {
    /// Name of the instance.
    pub instance: String,
    /// Its end of the pair with the engine.
    pub engine: FdIndex,
    /// A directory of its own in the run directory, for what it remembers and for its name servers; mode 0700.
    pub directory: FdIndex,
    /// A directory that the helpers of all instances of the host share, for what kernel settings were; mode 0700.
    pub host: FdIndex,
    /// The path of its own directory, which name servers are told.
    pub path: String,
    /// Uid and gid of its processes that need no privilege: name servers, the proxy for `[::1]`.
    pub uid: u32,
    /// Their gid.
    pub gid: u32,
    /// The domain of containers' names, without a dot at either end.
    pub domain: String,
    /// Servers that are asked for all other names; the host's own if empty.
    pub dns: Vec<IpAddr>,
    /// Where the log goes.
    pub log: LogTarget,
}

/// From the supervisor to a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToChild {
    /// First message to the engine.
    Engine(EngineBoot),
    /// First message to a front.
    Front(FrontBoot),
    /// First message to the network helper.
    Net(NetBoot),
    /// To the engine: the network helper of this number was started; the engine's end of the pair comes beside it.
    NetStarted(u64),
    /// To the engine: the network helper was killed and does not end, because it hangs in the kernel. There is none until it
    /// does.
    NetStuck,
    /// To the engine: a front was started; the engine's end of the pair comes beside it.
    FrontStarted(FrontKind),
    /// To the engine: read the configuration again.
    Reload,
    /// End in order: finish what is under way, make no more.
    Stop,
    /// To engine and fronts: do you still do what you are there for? They answer with [`FromChild::Alive`] from the loop in which
    /// they serve.
    AreYouAlive,
}

/// From a child to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromChild {
    /// It serves.
    Ready,
    /// It can't start or go on; one sentence for the administrator.
    Failed(String),
    /// From the engine: the network helper of this number does not answer, and is to be killed.
    NetHangs(u64),
    /// The configuration was read again, or why not.
    Reloaded(Result<(), String>),
    /// The answer to [`ToChild::AreYouAlive`].
    Alive,
}

/// What the scope helper found or made; it sends `Result<ScopeReport, String>` and, if it is good, the keeper's pidfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeReport {
    /// Where the scope lies.
    pub placements: Vec<Placement>,
    /// Was it made now? Otherwise it lived already.
    pub made: bool,
}
