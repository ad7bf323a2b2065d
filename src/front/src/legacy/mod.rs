//! CGManager's interface, `org.linuxcontainers.cgmanager0_0`, over its own socket, for programs that were written for it.
//!
//! Only translation: what a path means, whose a cgroup is, and who may do what to it is the engine's, and the same as
//! everywhere else. Names, signatures, texts and bytes are those that CGManager 0.42 has been seen to answer with; the
//! contract is `dbus/org.linuxcontainers.cgmanager0_0.xml`.
//!
//! A peer of this socket is whoever the kernel said to the engine; what it claims at authentication is worth nothing
//! (see [`crate::sasl`]). There is no bus here: no Hello, no names, no signals.

mod answer;
mod call;
mod exchange;
mod peers;
mod socket;

pub use peers::LegacyPeers;
