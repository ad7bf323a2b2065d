//! The calls of CGManager's D-Bus interface `org.linuxcontainers.cgmanager0_0`, as the socket front asks the engine for them.
//!
//! Nothing here is evidence of who asks. A plain call is its connection's peer's, as the engine read it at accept. An Scm
//! call comes with the socket on which the client's credentials wait; the engine takes them off that socket itself and the
//! kernel vouches for them, so that a front which was broken into can make up no requestor. The engine writes nothing on
//! such a socket: whatever root writes on a socket of a caller's choice is root's word to whoever reads it. Why it is so:
//! `docs/cgmanager.md`.

use serde::{Deserialize, Serialize};

use crate::op::FdIndex;

/// Longest list of controllers, path, name of a file, in bytes.
pub const MAX_TEXT: usize = 4096;
/// Longest value to be written, in bytes. The kernel takes less than a page.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most processes of one [`OnSocket::ShowTasks`].
pub const MAX_SHOWN: usize = 256;
/// Longest result datagram, in bytes.
pub const MAX_DATAGRAM: u32 = 2 * 1024 * 1024;

/// The listener that a connection came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Surface {
    /// The broker's own interface.
    Native,
    /// CGManager's.
    Legacy,
    /// That of whoever watches the host.
    Metrics,
}

/// A call. Paths, keys and controllers are as the caller wrote them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// The socket of an Scm call, with as many messages waiting in it as the call has credentials
    /// ([`LegacyCall::credentials`]); they are taken off it, however the call ends. `None` for a plain call, whose requestor
    /// is the caller.
    pub exchange: Option<FdIndex>,
    /// What is asked.
    pub call: LegacyCall,
}

/// Where a cgroup is: one controller or several, and a path by the rules of the method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// One name, a comma list, or `all`.
    pub controllers: String,
    /// The path.
    pub path: String,
}

/// A method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegacyCall {
    /// `GetPidCgroup`, `GetPidCgroupAbs`.
    PidCgroup {
        /// One controller.
        controllers: String,
        /// From the proxy's cgroup and not the requestor's?
        absolute: bool,
        /// The process, as the caller numbers it; `None` if a second credential names it.
        pid: Option<i32>,
    },
    /// `Create`.
    Create(Place),
    /// `Chown`.
    Chown {
        /// Where.
        place: Place,
        /// uid and gid as the caller numbers them; `None` if a second credential names them.
        ids: Option<(i32, i32)>,
    },
    /// `Chmod`.
    Chmod {
        /// Where.
        place: Place,
        /// A file in it; empty for the cgroup itself.
        file: String,
        /// The mode.
        mode: i32,
    },
    /// `MovePid`, `MovePidAbs`.
    MovePid {
        /// Where to.
        place: Place,
        /// From the proxy's cgroup and not the requestor's?
        absolute: bool,
        /// The process, as the caller numbers it; `None` if a second credential names it.
        pid: Option<i32>,
    },
    /// `GetValue`.
    GetValue {
        /// Where.
        place: Place,
        /// Which file.
        key: String,
    },
    /// `SetValue`.
    SetValue {
        /// Where.
        place: Place,
        /// Which file.
        key: String,
        /// What is written.
        value: String,
    },
    /// `Remove`.
    Remove {
        /// What.
        place: Place,
        /// With all that is below?
        recursive: bool,
    },
    /// `GetTasks`, `GetTasksRecursive`.
    Tasks {
        /// Of what.
        place: Place,
        /// And of all that is below?
        recursive: bool,
    },
    /// `ListChildren`.
    Children(Place),
    /// `RemoveOnEmpty`.
    RemoveOnEmpty(Place),
    /// `Prune`.
    Prune(Place),
    /// `ListControllers`. Plain only.
    Controllers,
    /// `ListKeys`.
    Keys(Place),
    /// Something is to be done with the exchange's socket that the client could make wait, or that takes a right.
    Socket(OnSocket),
}

/// What the engine is asked to do with the socket of an exchange.
///
/// Whoever has the same socket can make everybody wait, for as long as it likes, who receives from it, looks at what is in it, or
/// sets anything about it: so none of this is the front's to do, and the engine has it done by a process that it can do without.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnSocket {
    /// Who sends over it shows who it is from now on (`SO_PASSCRED`).
    PassCredentials,
    /// Is there a message behind the first one, which has so many bytes?
    Look {
        /// How many.
        behind: u32,
    },
    /// A part of the result of `GetTasksScm`: a datagram `p` with a credential for each process, so that the kernel
    /// translates its number for the reader. As many as there is room for. Uid and gid in them are the front's.
    ShowTasks {
        /// The next ones, as the engine numbers them; at most [`MAX_SHOWN`].
        pids: Vec<u32>,
        /// One that was shown before, to be shown in the place of one that has ended.
        known: Option<u32>,
    },
    /// Room for a datagram of so many bytes, at most [`MAX_DATAGRAM`].
    SendRoom {
        /// How many.
        bytes: u32,
    },
    /// No more room than it had: `SO_SNDBUF`, as getsockopt(2) said it.
    NoMoreRoom {
        /// How much that was.
        bytes: u32,
    },
}

/// A file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyKey {
    /// Its name.
    pub name: String,
    /// Its owner, as the requestor's user namespace numbers it; `u32::MAX` if it has no number there.
    pub uid: u32,
    /// Its group, likewise.
    pub gid: u32,
    /// Its mode with the bits of its type.
    pub mode: u32,
}

/// The answer to [`Legacy`]. Everything else is a refusal, which callers read as `invalid request`; and what follows it, if
/// the refusal names a rule (a quota, a key that is not written here), is a colon and the refusal's sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LegacyAnswer {
    /// Done, with nothing to say.
    Done,
    /// To `Create` and `Remove`: was it there before? To [`OnSocket::Look`]: is it there?
    Existed(bool),
    /// To `GetPidCgroup` and `GetValue`, without newlines at the end.
    Text(String),
    /// To `GetTasks`: plain calls get the numbers of the caller's pid namespace (0 is left out); Scm calls the engine's own.
    Tasks(Vec<u32>),
    /// To `ListChildren`, `ListControllers`.
    Names(Vec<String>),
    /// To `ListKeys`.
    Keys(Vec<LegacyKey>),
    /// To [`OnSocket::ShowTasks`].
    Shown {
        /// How many of them.
        count: u32,
        /// The last one that was alive.
        known: Option<u32>,
    },
    /// Nothing was done: the numbers of a plain call mean something else in the caller's pid or user namespace, and the
    /// kernel does not translate them. The front has the method's text for it.
    OtherNamespace,
}

impl LegacyCall {
    /// How many credentials an Scm call of this kind has: the requestor's, and the process or the ids that it is about. None
    /// for what is only done with its socket.
    #[must_use]
    pub const fn credentials(&self) -> usize {
        match self {
            Self::PidCgroup { .. } | Self::MovePid { .. } | Self::Chown { .. } => 2,
            Self::Socket(_) => 0,
            _ => 1,
        }
    }
}
