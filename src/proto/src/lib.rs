//! The D-Bus contract of the broker, for clients: names, errors, options, proxies, and how to reach it.
//!
//! Held against `dbus/*.xml` by a test. It speaks D-Bus and nothing else: no kernel objects beyond the
//! descriptors that it passes on, no privilege, no state.

pub mod asking;
pub mod connect;
pub mod description;
pub mod error;
pub mod names;
pub mod options;
pub mod port;
pub mod proxy;

pub use asking::{Agent, Asked, Asking};
pub use connect::{Endpoint, connect};
pub use description::Description;
pub use error::{Code, Error, Refusal};
pub use names::grant_path;
pub use options::{
    Account, AddLink, AdoptGrant, AttachTo, CreateGrant, ExplainRequest, ForgetDeparted, Lifetime,
    ListGrants, MapDirectory, ReleaseGrant, ReportDisk, Target,
};
pub use port::{BadPort, Port, Transport};
pub use proxy::{
    AccountProxy, CgroupProxy, CreateResult, Departed, GrantProxy, IdsProxy, LinksProxy, ManagerProxy,
    MountsProxy,
};
