//! The nftables tables of an instance.
