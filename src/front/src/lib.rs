//! The unprivileged front: transports and D-Bus objects.
//!
//! Everything that parses what callers send is here, in processes of accounts of their own, without capabilities
//! and with a short list of system calls. A front decides nothing that matters: it turns calls into operations of
//! `cgrant-wire`, names the caller by the number that the engine gave, and turns answers into replies. It holds no state
//! that matters: when it dies the supervisor starts another.
//!
//! One binary, two kinds: the socket front serves the connections that the engine accepts, the bus front the
//! clients of a message bus.

mod boot;
mod bus;
mod call;
mod castoff;
mod clients;
mod confine;
mod contract;
mod core;
mod describe;
mod explain;
mod fault;
mod framing;
mod handshake;
mod legacy;
mod link;
mod log;
mod metrics;
mod mounts;
mod network;
mod object;
mod options;
mod outbox;
mod peers;
mod polkit;
mod refusals;
mod sasl;
mod session;
mod signal;
mod stream;
mod view;
mod wait;
mod watched;

pub use boot::main;
