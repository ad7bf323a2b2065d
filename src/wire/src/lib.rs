//! The protocol between front, engine and supervisor: typed messages, their encoding and their size limits.
//!
//! Pure data: no I/O, no kernel objects. File descriptors travel beside a message; the message names
//! them by position ([`FdIndex`]). The engine treats every message of a front as hostile: decoding is
//! bounded by [`MAX_MESSAGE`] and [`MAX_FDS`], and nothing in a message proves who the caller is.

pub mod boot;
pub mod engine;
pub mod frame;
pub mod grant;
pub mod legacy;
pub mod link;
pub mod metrics;
pub mod net;
pub mod op;
pub mod patience;
pub mod question;
pub mod refusal;

pub use engine::{Audience, BusClient, ConnectionId, Event, FromEngine, GrantChange, RequestId, ToEngine};
pub use frame::{FrameError, MAX_FDS, MAX_INLINE, MAX_MESSAGE, decode, encode};
pub use grant::{EndReason, GrantId, GrantInfo, Hierarchy, Lifetime, Range, Stat};
pub use legacy::{Legacy, LegacyAnswer, LegacyCall, LegacyKey, Place, Surface};
pub use link::{
    Address, BridgeInfo, LinkEnd, LinkInfo, LinkKind, LinkRequest, Mac, PublishedPort, Transport,
};
pub use metrics::{Family, MetricKind, Sample};
pub use op::{
    Act, Answer, Attach, AttachTarget, BlockUse, BrokerInfo, CreateGrant, Created, DepartedInfo, DiskReport,
    Explain, Explanation, Fate, FdIndex, Holder, Inquiry, MapDirectory, MapSource, Op, RangeInfo,
    RangeRequest, RuleInfo, Usage, UsageRow,
};
pub use question::{Consent, Question, QuestionId, Subject};
pub use refusal::{Met, Refusal, RefusalCode};
