//! Ports of a network namespace that are held: bound, so that nobody else can have them, and not listening.
//!
//! A socket that is bound without `SO_REUSEADDR` keeps every other one from the port at an address that overlaps,
//! whatever that one sets (net/ipv4/inet_connection_sock.c, `inet_csk_get_port`; net/ipv4/udp.c, `udp_lib_get_port`).

mod occupant;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

pub use occupant::{Occupant, View, takers};
use rustix::{
    io::Errno,
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, bind, listen, shutdown, socket_with, sockopt},
};

/// Room for datagrams that nobody will read, in bytes; the kernel makes its least of it.
const LEAST: usize = 1;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Why a port is not held.
#[derive(Debug)]
pub enum Refused {
    /// Somebody else has it, if it can be seen who.
    Taken(Option<Occupant>),
    /// There is no such address here.
    NoSuchAddress,
    /// The kernel refused for another reason.
    Kernel(io::Error),
}

impl Refused {
    /// Is there no IPv6 at all, as on a host that was started without?
    #[must_use]
    pub fn is_without_ipv6(&self) -> bool {
        matches!(self, Self::Kernel(error) if error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()))
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ADDRINUSE => Self::Taken(None),
            Errno::ADDRNOTAVAIL => Self::NoSuchAddress,
            other => Self::Kernel(other.into()),
        }
    }
}

/// A socket for addresses of one family only.
///
/// # Errors
/// Those of `socket(2)`.
pub fn open(transport: Transport, address: IpAddr) -> Result<OwnedFd, Errno> {
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// A socket that holds the port at an address and does nothing else.
///
/// # Errors
/// [`Refused`], without who has it.
pub fn hold(transport: Transport, place: SocketAddr, view: &mut View) -> Result<OwnedFd, Refused> {
    let socket = open(transport, place.ip())?;
    if transport == Transport::Udp {
        sockopt::set_socket_recv_buffer_size(&socket, LEAST)?;
    }
    match bind(&socket, &place) {
        Err(Errno::ADDRINUSE)
            if transport == Transport::Tcp && occupant::is_only_left_over(place.port(), view) =>
        {
            bind_over_rest(&socket, &place)?;
        }
        result => result?,
    }
    Ok(socket)
}

/// Binds as servers do, which what is left of a server's connections does not hinder. Having listened for
/// an instant makes the kernel forget that the port may be shared; a connection that came in it is reset.
fn bind_over_rest(socket: &OwnedFd, place: &SocketAddr) -> Result<(), Errno> {
    sockopt::set_socket_reuseaddr(socket, true)?;
    bind(socket, place)?;
    listen(socket, 0)?;
    shutdown(socket, Shutdown::Read)?;
    sockopt::set_socket_reuseaddr(socket, false)
}

/// Whoever has the port at this address, or at all if `None`, as far as it can be seen.
#[must_use]
pub fn who_has(
    transport: Transport,
    address: Option<IpAddr>,
    port: u16,
    view: &mut View,
) -> Option<Occupant> {
    // An IPv6 socket for all addresses may have the IPv4 ones too.
    let overlaps = |theirs: IpAddr| {
        address.is_none_or(|ours| ours == theirs || ours.is_unspecified() || theirs.is_unspecified())
    };
    view.occupants(transport, port).into_iter().find(|occupant| overlaps(occupant.address.ip()))
}
