//! What may be granted to whom: names, limits, configuration, quotas and the one decision, [`judge()`].
//!
//! Pure: no I/O, no clock, no kernel objects. Everything here can be tested by calling it.

mod application;
pub mod config;
mod consent;
mod controller;
mod device;
mod diagnostic;
mod group;
pub mod ids;
pub mod judge;
pub mod limit;
mod most;
pub mod name;
pub mod network;
mod policy;
pub mod raw;
mod rule;

pub use application::{Application, Maker, Place};
pub use config::{BLOCK, Config, DepartedConfig, DiskConfig, Pool, PoolError};
pub use controller::{Controller, Controllers};
pub use device::{NodeName, NodeNameError, NodePattern};
pub use diagnostic::FileError;
pub use group::groups;
pub use ids::{HostGid, HostUid, IdRange, IdSpan, NsGid, NsUid, SpanError};
pub use judge::{
    Action, Denial, DenialCode, HostPort, NewGrant, NewLink, PACE_PATIENCE, Request, Resource, UsageNow,
    Verb, Verdict, judge, judge_consented, usage_rows,
};
pub use limit::{Bytes, CpuList, CpuQuota, HugePageSize, IoLimit, LimitError, LimitKey, LimitValue};
pub use most::Most;
pub use name::{CgroupName, CgroupPath, GrantName, GrantPath, NameError, Step};
pub use network::{
    ACCOUNT_BRIDGE, BridgeConfig, BridgeName, DEFAULT_BRIDGE, FIRST_HOST, MAX_MTU, MIN_MTU, Net,
    NetworkConfig, Range4,
};
pub use policy::{BUILT_IN, Caller, DEFAULT_IDS, Policy, Ruling, Source};
pub use raw::{Key, RawKey, RawValue, Setting, SettingError};
pub use rule::{
    Access, AccessRules, Ceilings, Departed, DeviceLimit, Door, Exception, LifetimeRules, Logout,
    NetworkRules, PortSpan, Quotas, RawRules, Span, VlanSpan,
};
