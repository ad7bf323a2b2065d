//! The messages between a front and the engine.
//!
//! A front names callers by [`ConnectionId`] only. The engine gave that number out: for the socket front
//! when it accepted the connection itself and read who its peer is; for the bus front when that front
//! introduced a client of the bus. A number that the engine did not give to this very front is refused.

use serde::{Deserialize, Serialize};

use crate::{
    grant::{EndReason, GrantId, GrantInfo, Lifetime},
    legacy::Surface,
    link::{LinkEnd, LinkInfo},
    op::{Answer, Op},
    question::{Consent, Question, QuestionId},
    refusal::Refusal,
};

/// Number of a connection, given out by the engine, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectionId(pub u64);

/// Number of a request, chosen by the front; the answer carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// A client of the bus as the bus daemon describes it. Only the bus front may send it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusClient {
    /// Its unique name.
    pub name: String,
    /// Its uid.
    pub uid: u32,
    /// Its groups, if the bus daemon told.
    pub groups: Vec<u32>,
    /// Its pid, if the bus daemon told. A pidfd may come beside the message.
    pub pid: Option<u32>,
    /// Is the pidfd the bus daemon's own, which had it from the kernel when the client connected?
    pub is_certain: bool,
}

/// From a front to the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEngine {
    /// A caller asks for an operation.
    Request {
        /// Number for the answer.
        id: RequestId,
        /// The caller.
        connection: ConnectionId,
        /// Does the caller let somebody be asked about it?
        interactive: bool,
        /// What is asked.
        op: Op,
    },
    /// The connection has ended.
    Closed {
        /// Which.
        connection: ConnectionId,
    },
    /// A client of the bus called for the first time; the answer is [`Answer::Connection`].
    BusClient {
        /// Number for the answer.
        id: RequestId,
        /// The client.
        client: BusClient,
    },
    /// The answer to a question. Only the bus front may send it, and once.
    Consent {
        /// Which.
        question: QuestionId,
        /// What polkit says.
        consent: Consent,
    },
    /// Polkit can be asked, or can't any more. Only the bus front may send it.
    Polkit {
        /// Can it?
        there: bool,
    },
}

/// What changed about a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantChange {
    /// Limits, all of them as they are now.
    Limits(Vec<(String, String)>),
    /// Frozen or thawed.
    Frozen(bool),
    /// Got its first process or lost its last.
    Populated(bool),
    /// What ends it.
    Lifetime(Lifetime),
    /// Links, all of them as they are now.
    Links(Vec<LinkInfo>),
}

/// Who is told of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Audience {
    /// Callers of the account on the host, and root.
    Account(u32),
    /// Callers inside of the grant that may act there as this user, and nobody else.
    Inside(GrantId, u32),
    /// All callers.
    Everybody,
}

/// Something happened. Sent to both fronts; a front passes it on to its audience only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A grant was made.
    Added {
        /// The grant.
        grant: GrantInfo,
    },
    /// A grant has ended.
    Ended {
        /// Which.
        grant: GrantId,
        /// Its name.
        name: String,
        /// Whose.
        account: u32,
        /// Why.
        reason: EndReason,
    },
    /// A property of a grant changed.
    Changed {
        /// Which.
        grant: GrantId,
        /// Whose.
        account: u32,
        /// How.
        change: GrantChange,
    },
    /// A grant got a link after it was made.
    LinkAdded {
        /// The grant.
        grant: GrantId,
        /// Whose.
        account: u32,
        /// The link.
        link: LinkInfo,
    },
    /// A grant that lives on has lost a link.
    LinkRemoved {
        /// The grant.
        grant: GrantId,
        /// Whose.
        account: u32,
        /// The link's name in it.
        name: String,
        /// Why.
        reason: LinkEnd,
    },
    /// The kernel killed processes of a grant for want of memory.
    Oom {
        /// Which.
        grant: GrantId,
        /// Whose.
        account: u32,
        /// How many so far.
        kills: u64,
    },
    /// An account uses something else than what was told last.
    Usage {
        /// Which.
        account: u32,
        /// What it uses, by resource.
        usage: Vec<(String, u64)>,
    },
    /// Another policy is in force. Concerns everybody.
    Policy,
    /// A grant waits for a resource more than the threshold allows.
    Pressure {
        /// Which.
        grant: GrantId,
        /// Whose.
        account: u32,
        /// `cpu`, `memory` or `io`.
        resource: String,
    },
}

impl Event {
    /// The account whose grant, link or usage it is about; `None` for what is about all.
    pub const fn account(&self) -> Option<u32> {
        match self {
            Self::Added { grant } => Some(grant.account),
            Self::Ended { account, .. }
            | Self::Changed { account, .. }
            | Self::LinkAdded { account, .. }
            | Self::LinkRemoved { account, .. }
            | Self::Oom { account, .. }
            | Self::Usage { account, .. }
            | Self::Pressure { account, .. } => Some(*account),
            Self::Policy => None,
        }
    }
}

/// From the engine to a front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromEngine {
    /// A connection was accepted; its socket comes beside the message. Only to the socket front.
    Connected {
        /// Its number.
        connection: ConnectionId,
        /// The listener that it came by.
        surface: Surface,
        /// The peer's uid.
        uid: u32,
        /// The account that it is counted to.
        account: u32,
        /// The uid that the peer has in its own user namespace, if that is another one and known.
        claim: Option<u32>,
        /// What it is told of, if it is of anything.
        audience: Option<Audience>,
        /// The peer's pid, if it can be seen from here.
        pid: Option<u32>,
    },
    /// The answer to a request.
    Answer {
        /// Which.
        id: RequestId,
        /// What came of it.
        result: Result<Answer, Refusal>,
    },
    /// Something happened.
    Event {
        /// What.
        event: Event,
        /// Who is told.
        audience: Audience,
    },
    /// Ask polkit. The process comes beside the message if the subject is one. Only to the bus front.
    Ask(Question),
    /// The answer to a question is not wanted any more. Only to the bus front.
    Withdraw(QuestionId),
}
