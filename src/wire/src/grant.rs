//! What is said about a grant: its identity, its description, its figures.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::link::LinkInfo;

/// The identity of a grant on this host: a random number that is never used again. Written as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GrantId(pub u64);

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text is not 16 lower-case hex digits.
#[derive(Debug, thiserror::Error)]
#[error("a grant id is 16 lower-case hexadecimal digits")]
pub struct BadGrantId;

impl FromStr for GrantId {
    type Err = BadGrantId;
    fn from_str(text: &str) -> Result<Self, BadGrantId> {
        if text.len() != 16 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BadGrantId);
        }
        u64::from_str_radix(text, 16).map(Self).map_err(|_| BadGrantId)
    }
}

/// What ends a grant by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// The death of the process that holds it.
    Process,
    /// The end of the connection that asked for it.
    Connection,
    /// Nothing: it lives until it is released, across reboots too.
    Persistent,
    /// Its last process. What a connection's grant becomes when the broker, not the caller, broke the connection.
    Populated,
}

/// Why a grant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndReason {
    /// Somebody with authority released it.
    Released,
    /// The process that held it died.
    HolderDied,
    /// The connection that held it ended.
    ConnectionClosed,
    /// Its last process ended.
    Empty,
    /// The host was restarted, or its cgroup was removed behind the broker's back.
    Lost,
    /// Its account's user logged out, and policy does not let it stay.
    LoggedOut,
    /// Its account's user was deleted, or the uid is another's now.
    UserGone,
    /// The grant that it was made in has ended.
    ParentEnded,
}

/// A range of ids: `count` uids from `uid` and as many gids from `gid`, as the initial user namespace counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First uid on the host.
    pub uid: u32,
    /// First gid on the host.
    pub gid: u32,
    /// How many of each.
    pub count: u32,
}

/// One hierarchy that a grant has a cgroup in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// `cgroup2`, or the v1 controllers as `/proc/self/cgroup` writes them (`cpu,cpuacct`, `name=systemd`).
    pub name: String,
    /// The payload's path from the hierarchy's root, as the engine's cgroup namespace sees it.
    pub path: String,
}

/// Everything about a grant that its account may know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantInfo {
    /// Its identity.
    pub id: GrantId,
    /// The name the caller chose, unique among the live grants of the account.
    pub name: String,
    /// The uid that is charged.
    pub account: u32,
    /// What ends it.
    pub lifetime: Lifetime,
    /// Its ids, if it has any.
    pub range: Option<Range>,
    /// The limits that were set through the broker, portable or raw key and canonical value.
    pub limits: Vec<(String, String)>,
    /// Is it frozen?
    pub frozen: bool,
    /// Are there processes in payload or children?
    pub populated: bool,
    /// When it was made, microseconds since 1970.
    pub created: u64,
    /// Kernel id of the payload's cgroup2 cgroup, never recycled while the host runs.
    pub cgroup_id: u64,
    /// Where its payload is.
    pub hierarchies: Vec<Hierarchy>,
    /// Its links.
    pub links: Vec<LinkInfo>,
    /// How many blocks of 65536 ids at the end of its range are for grants made from inside it; 0 if nobody inside is served.
    pub nesting: u32,
    /// The grant that it was made in, as far as the caller may know.
    pub parent: Option<GrantId>,
}

/// What a grant uses now. A figure the host's kernel does not give is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Memory in use, bytes.
    pub memory_current: Option<u64>,
    /// Highest memory use so far, bytes.
    pub memory_peak: Option<u64>,
    /// Swap in use, bytes.
    pub swap_current: Option<u64>,
    /// Processes killed because the grant was out of memory.
    pub oom_kills: Option<u64>,
    /// CPU time used, microseconds.
    pub cpu_usage_usec: Option<u64>,
    /// Part of it in user mode, microseconds.
    pub cpu_user_usec: Option<u64>,
    /// Part of it in the kernel, microseconds.
    pub cpu_system_usec: Option<u64>,
    /// Time spent throttled by `cpu.max`, microseconds.
    pub cpu_throttled_usec: Option<u64>,
    /// Tasks now.
    pub pids_current: Option<u64>,
    /// Per device: (major, minor, bytes read, bytes written, reads, writes).
    pub io: Vec<(u32, u32, u64, u64, u64, u64)>,
    /// Per resource (`cpu`, `memory`, `io`) and kind (`some`, `full`): the averages over 10, 60, 300 s in
    /// hundredths of a percent, and the total stall in microseconds.
    pub pressure: Vec<(String, String, [u32; 3], u64)>,
}
