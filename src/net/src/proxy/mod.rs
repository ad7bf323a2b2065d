//! The unprivileged proxy that serves published ports on `[::1]`.
//!
//! The kernel routes `::1` nowhere, whatever nftables makes of the packet, so somebody has to accept there. One
//! process for all ports of an instance, with an account of no rights, no capability and few system calls. It binds nothing:
//! the helper binds and hands it the sockets ([`message`]). It ends when nobody holds the other end of its channel
//! and the connections that it has are over; new ones it no longer takes then, so that the ports are free for the next helper.
//!
//! [`child`] is the helper's side; [`run`] is the process.

pub mod child;
mod confine;
pub mod message;
mod serve;
mod tcp;
mod udp;

pub use serve::run;

/// The argument that makes the program `cgrant-net` a proxy.
pub const ROLE: &str = "--loopback-proxy";
