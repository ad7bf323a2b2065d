//! What the helper tells the proxy. It answers only that a port has ended, with the port's number.

use std::net::{SocketAddrV4, SocketAddrV6};

use cgrant_wire::Transport;
use serde::{Deserialize, Serialize};

/// Number of a port, chosen by the helper and never used again for the same proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortId(pub u64);

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// What it carries.
    pub transport: Transport,
    /// The account that is charged.
    pub account: u32,
    /// Each client asks once and is answered at once (UDP): it need not be remembered for long.
    pub is_brief: bool,
    /// Tried first.
    pub target6: Option<SocketAddrV6>,
    /// Tried if there is no other or it refuses.
    pub target4: Option<SocketAddrV4>,
}

/// A message to the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToProxy {
    /// First message: what to become.
    Become {
        /// Its uid, not 0.
        uid: u32,
        /// Its gid, not 0.
        gid: u32,
    },
    /// Serves a port; its socket is beside the message.
    Serve(PortId, Lead),
    /// A port leads elsewhere from now on. Connections that are there stay.
    Change(PortId, Lead),
    /// A port is no longer published: its socket is closed and its connections are cut. -> the [`PortId`]
    End(PortId),
}
