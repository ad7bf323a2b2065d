//! The network as the engine knows it: addresses, published ports, and the helper that alone touches devices and rules.

mod claims;
mod helper;

use std::sync::{Mutex, atomic::AtomicU64};

use cgrant_policy::NetworkConfig;

pub use self::{
    claims::{Claims, Conflict, overlap as ports_overlap},
    helper::{Helper, HelperError, News, Wanted},
};
use crate::addresses::Addresses;

/// Everything that links need.
pub struct Network {
    /// `[network]` of `cgrantd.toml`.
    pub config: NetworkConfig,
    /// Who has which address.
    pub addresses: Addresses,
    /// Which link has which port of the host's.
    pub claims: Claims,
    /// The helper.
    pub helper: Helper,
    /// Held from looking for a bridge's networks until its first address is given, so that two links that come first at one
    /// moment get addresses of one network.
    pub finding: Mutex<()>,
    /// The edition of the users whose departed were all forgotten last; `u64::MAX`, which none has, before.
    pub forgotten: AtomicU64,
}

impl Network {
    /// Nothing is linked yet.
    pub fn new(config: NetworkConfig, addresses: Addresses) -> Self {
        Self {
            config,
            addresses,
            claims: Claims::default(),
            helper: Helper::default(),
            finding: Mutex::new(()),
            forgotten: AtomicU64::new(u64::MAX),
        }
    }
}
