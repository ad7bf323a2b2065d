//! Why the tables could not be changed.

use std::io;

/// Why the tables could not be changed; they are then as they were.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// No `nft` in the places where distributions put it.
    #[error("the program nft (package nftables) is not installed")]
    NoProgram,
    /// `nft` could not be run.
    #[error("nft could not be run")]
    Run(#[source] io::Error),
    /// `nft` or the kernel refused the transaction; what it said.
    #[error("nft refused the rules: {0}")]
    Refused(String),
    /// `nft` said that all went well, and there is nothing.
    #[error("nft accepted the rules, and there are none")]
    NoEffect,
    /// `nft` did not end in time and was killed.
    #[error("nft did not end within the {0} s that it had")]
    Late(u64),
    /// What `nft` listed is not what it lists.
    #[error("the listing of nft makes no sense")]
    Listing(#[source] serde_json::Error),
    /// The transaction could not be written down.
    #[error("the rules could not be written down")]
    Render(#[source] serde_json::Error),
    /// A device is not there.
    #[error("there is no network device {0}")]
    NoDevice(String),
    /// A link that was never added.
    #[error("the link {0} has no rules")]
    Unknown(String),
    /// More accounts with links at one time than marks can tell apart.
    #[error("no more than {0} accounts can have links at one time")]
    Accounts(u32),
    /// A port of the host's would lead to two containers.
    #[error("the port {0} is published already")]
    PortTaken(String),
}
