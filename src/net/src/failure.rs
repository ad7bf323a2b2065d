//! Why an order was not carried out, in words for the caller.

use std::io;

use cgrant_sys::netlink::NetlinkError;
use cgrant_wire::{RefusalCode, net::NetFailure};
use nix::libc;

use crate::{
    advert::AdvertError, fault::Injected, firewall::FirewallError, names::NamesError, ports::PortsError,
    sysctl::SysctlError,
};

/// Most ports that the kernel lets a bridge have.
pub const MAX_BRIDGE_PORTS: u32 = 1023;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused a change of devices, addresses or routes.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The rules could not be changed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A port could not be held.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The name server could not be started or told.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// Router advertisements can't be sent.
    #[error(transparent)]
    Advert(#[from] AdvertError),
    /// A kernel setting could not be changed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A test wants it so.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// Something else that the kernel did not do.
    #[error("{what}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The order is malformed: a fault of the engine's.
    #[error("the order makes no sense: {0}")]
    Malformed(&'static str),
    /// Nothing makes the host a router while the rules are not there that keep it to links.
    #[error("the broker's nftables rules can't be set, and without them the host routes for no link")]
    NoRules,
    /// The link is not there.
    #[error("there is no such link")]
    NoSuchLink,
    /// What was shown as network namespace is none, or not one that a link may lead into.
    #[error("{0}")]
    Namespace(&'static str),
    /// The far end vanished while it was being set up.
    #[error("the far end of the link was removed or moved while it was being set up")]
    FarEndLost,
    /// The namespace has a device of this name.
    #[error("the network namespace has a device named {0} already")]
    NameTaken(String),
    /// The administrator's bridge is not there.
    #[error("the bridge device {0} does not exist")]
    NoBridge(String),
    /// There is a device of the bridge's name which is none, or not ours.
    #[error("{0}")]
    ForeignDevice(String),
    /// VLANs are not to be had on that bridge.
    #[error("the bridge {0} does not tell VLANs apart")]
    NoVlans(String),
    /// All ports of the bridge are in use.
    #[error("the bridge {0} is full: the kernel gives a bridge {MAX_BRIDGE_PORTS} ports, and all are in use")]
    Full(String),
    /// There is no `/dev/net/tun`, or it does not work.
    #[error("the host gives no tap devices")]
    NoTaps(#[source] io::Error),
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Names what was tried when the kernel says no.
pub fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Kernel { what, source }
}

impl Failure {
    /// In words for the caller. What is not the caller's doing goes to the log too.
    #[must_use]
    pub fn told(self) -> NetFailure {
        let (code, hint) = self.code_and_hint();
        if matches!(code, RefusalCode::Internal | RefusalCode::KernelRefused) {
            tracing::error!(error = chain(&self), "an order was not carried out");
        }
        NetFailure { code, message: chain(&self), hint: hint.into() }
    }

    fn code_and_hint(&self) -> (RefusalCode, &'static str) {
        match self {
            Self::Malformed(_) => (RefusalCode::Internal, ""),
            Self::NoSuchLink => (RefusalCode::NoSuchLink, ""),
            Self::Namespace(_) => (RefusalCode::InvalidDescriptor, "show a network namespace of your own"),
            Self::FarEndLost => (RefusalCode::Busy, "leave the new device alone until the answer is there"),
            Self::NameTaken(_) => (RefusalCode::LinkExists, "give the link another name"),
            Self::NoBridge(_) => (RefusalCode::NoSuchBridge, "the administrator has to make it"),
            Self::ForeignDevice(_) => (
                RefusalCode::KernelRefused,
                "the administrator has to remove or rename the device, or name another bridge in cgrantd.toml",
            ),
            Self::NoVlans(_) => {
                (RefusalCode::Unsupported, "the administrator can switch vlan_filtering on for the bridge")
            }
            Self::Full(_) => (RefusalCode::QuotaExceeded, "remove links, or use another bridge"),
            Self::NoTaps(_) => (RefusalCode::Unsupported, "the administrator can load the module tun"),
            Self::Ports(PortsError::Published { .. } | PortsError::Taken { .. })
            | Self::Firewall(FirewallError::PortTaken(_)) => {
                (RefusalCode::AddressInUse, "publish another port of the host's")
            }
            Self::Ports(PortsError::NoSuchAddress { .. } | PortsError::Invalid { .. }) => {
                (RefusalCode::InvalidArgument, "name an address of the host's, or none for all of them")
            }
            Self::Firewall(FirewallError::Accounts(_)) => (RefusalCode::QuotaExceeded, ""),
            Self::Firewall(FirewallError::NoProgram) => {
                (RefusalCode::Unsupported, "the administrator can install the package nftables")
            }
            Self::Firewall(FirewallError::NoDevice(_)) => {
                (RefusalCode::Busy, "leave the new device alone until the answer is there")
            }
            Self::Firewall(FirewallError::Late(_)) => (RefusalCode::TimedOut, "try again"),
            Self::Names(NamesError::NotInstalled) => {
                (RefusalCode::Unsupported, "the administrator can install the package dnsmasq-base")
            }
            Self::Netlink(error) if error.is(libc::EOPNOTSUPP) => {
                (RefusalCode::Unsupported, "`cgrant doctor` says what the kernel lacks")
            }
            _ => (RefusalCode::KernelRefused, "`cgrant doctor` says what stands in the way of links"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_full_bridge_is_a_quota_and_says_so() {
        let told = Failure::Full("cgrant0".into()).told();
        assert_eq!(told.code, RefusalCode::QuotaExceeded);
        assert!(told.message.contains("1023 ports") && told.message.contains("cgrant0"), "{}", told.message);
    }

    #[test]
    fn the_kernels_reason_is_in_the_sentence() {
        let source = io::Error::from_raw_os_error(libc::EROFS);
        let failure =
            Failure::from(SysctlError::Setting { setting: "ipv4/x".into(), value: "1".into(), source });
        let told = failure.told().message;
        assert!(told.contains("net/ipv4/x to 1: Read-only"), "{told}");
    }
}
