//! What may be granted to whom: names, limits, configuration, quotas and the one decision, `judge()`.
//!
//! Pure: no I/O, no clock, no kernel objects. Everything here can be tested by calling it.

pub mod ids;
pub mod limit;
pub mod name;
pub mod raw;

pub use ids::{HostGid, HostUid, IdRange, IdSpan, NsGid, NsUid, SpanError};
pub use limit::{Bytes, CpuList, CpuQuota, HugePageSize, IoLimit, LimitError, LimitKey, LimitValue};
pub use name::{CgroupName, CgroupPath, GrantName, GrantPath, NameError};
pub use raw::{Key, RawKey, RawValue, Setting, SettingError};
