//! The sockets of one published port: bound so that nobody else can have it, and not listening ([`cgrant_sys::port`]).
//!
//! The proxy's own socket at `[::1]` overlaps with the IPv6 holder, so both have `SO_REUSEADDR` for the moment in which it
//! is bound and begins to listen. Listening also makes the kernel forget that the port could be shared, so that from then
//! on it compares with each socket again. Who used that moment to listen is found afterwards; who only bound can't listen any more.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::port::{self, Occupant, Refused, View};
use cgrant_wire::Transport;
use rustix::{
    io::Errno,
    net::{bind, listen, sockopt},
};

/// Connections to `[::1]` that wait to be accepted.
const BACKLOG: i32 = 128;

/// A port of the host's that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Binding {
    /// The host's address; all, of both families, if `None`.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// What it carries.
    pub transport: Transport,
}

/// The sockets of a port. They end with it.
#[derive(Debug)]
pub struct Holder {
    holding: Vec<OwnedFd>,
    /// What the proxy serves: a listening TCP socket or a UDP socket at `[::1]`.
    loopback: Option<OwnedFd>,
}

impl Holder {
    /// Binds the sockets of a port, all or none. They hold it for certain only when [`intruder`] has found nobody.
    pub fn bind(binding: &Binding, view: &mut View) -> Result<Self, Refused> {
        Self::try_bind(binding, view).map_err(|refused| match refused {
            Refused::Taken(None) => {
                Refused::Taken(port::who_has(carried(binding.transport), binding.address, binding.port, view))
            }
            other => other,
        })
    }

    fn try_bind(binding: &Binding, view: &mut View) -> Result<Self, Refused> {
        let mut holding = Vec::new();
        if let Some(address) = ipv4_of(binding) {
            holding.push(hold(binding, address.into(), view)?);
        }
        let Some(address) = ipv6_of(binding) else { return Ok(Self { holding, loopback: None }) };
        if address.is_loopback() {
            let loopback = serve(binding)?;
            return Ok(Self { holding, loopback: Some(loopback) });
        }
        let holder = match hold(binding, address.into(), view) {
            Ok(holder) => holder,
            // A host that was started without IPv6.
            Err(refused) if refused.is_without_ipv6() && binding.address.is_none() => {
                return Ok(Self { holding, loopback: None });
            }
            Err(refused) => return Err(refused),
        };
        let loopback = if address.is_unspecified() { beside(&holder, binding)? } else { None };
        holding.push(holder);
        Ok(Self { holding, loopback })
    }

    /// What the proxy serves at `[::1]`, if the port is published there.
    pub fn loopback(&self) -> Option<&OwnedFd> {
        self.loopback.as_ref()
    }

    /// Could somebody have come to the port while it was bound? Where one socket was bound beside another.
    fn was_shared(&self) -> bool {
        self.loopback.is_some() && !self.holding.is_empty()
    }

    fn inodes(&self) -> impl Iterator<Item = u64> {
        let sockets = self.holding.iter().chain(&self.loopback);
        sockets.filter_map(|socket| Some(rustix::fs::fstat(socket.as_fd()).ok()?.st_ino))
    }
}

/// Somebody else's socket with an IPv6 address and one of these ports, that came while sharing was possible: which of them, and who.
pub fn intruder<'a>(
    holders: impl Iterator<Item = (&'a Binding, &'a Holder)> + Clone,
) -> Option<(&'a Binding, Occupant)> {
    let shared = holders.filter(|(_, holder)| holder.was_shared());
    let of = |transport| shared.clone().filter(move |(binding, _)| binding.transport == transport);
    [Transport::Tcp, Transport::Udp].into_iter().find_map(|transport| {
        let ports: BTreeSet<u16> = of(transport).map(|(binding, _)| binding.port).collect();
        let ours: BTreeSet<u64> = of(transport).flat_map(|(_, holder)| holder.inodes()).collect();
        let is_other = |socket: &Occupant| socket.address.is_ipv6() && !ours.contains(&socket.inode);
        let other = port::takers(carried(transport), &ports).into_iter().find(is_other)?;
        let (binding, _) = of(transport).find(|(binding, _)| binding.port == other.address.port())?;
        Some((binding, other))
    })
}

fn ipv4_of(binding: &Binding) -> Option<Ipv4Addr> {
    match binding.address {
        None => Some(Ipv4Addr::UNSPECIFIED),
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) => None,
    }
}

fn ipv6_of(binding: &Binding) -> Option<Ipv6Addr> {
    match binding.address {
        None => Some(Ipv6Addr::UNSPECIFIED),
        Some(IpAddr::V6(address)) => Some(address),
        Some(IpAddr::V4(_)) => None,
    }
}

/// A socket for addresses of one family only.
fn open(binding: &Binding, address: IpAddr) -> Result<OwnedFd, Errno> {
    port::open(carried(binding.transport), address)
}

/// A socket that holds the port at an address and does nothing else.
fn hold(binding: &Binding, address: IpAddr, view: &mut View) -> Result<OwnedFd, Refused> {
    port::hold(carried(binding.transport), SocketAddr::new(address, binding.port), view)
}

fn carried(transport: Transport) -> port::Transport {
    match transport {
        Transport::Tcp => port::Transport::Tcp,
        Transport::Udp => port::Transport::Udp,
    }
}

/// The proxy's socket at `[::1]`, beside nothing of ours.
fn serve(binding: &Binding) -> Result<OwnedFd, Refused> {
    let socket = open(binding, Ipv6Addr::LOCALHOST.into())?;
    let place = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), binding.port);
    if binding.transport == Transport::Tcp {
        // As every server: what is left of its connections must not hinder it. A UDP socket that had it could be shared.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &place)?;
        listen(&socket, BACKLOG)?;
    } else {
        bind(&socket, &place)?;
    }
    Ok(socket)
}

/// The proxy's socket at `[::1]` beside our own holder of `[::]`; `None` where the host has no `::1`.
fn beside(holder: &OwnedFd, binding: &Binding) -> Result<Option<OwnedFd>, Refused> {
    let socket = open(binding, Ipv6Addr::LOCALHOST.into())?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseaddr(holder, true)?;
    let bound = bind(&socket, &SocketAddr::new(Ipv6Addr::LOCALHOST.into(), binding.port))
        .and_then(|()| if binding.transport == Transport::Tcp { listen(&socket, BACKLOG) } else { Ok(()) });
    sockopt::set_socket_reuseaddr(holder, false)?;
    match bound {
        Err(Errno::ADDRNOTAVAIL) => return Ok(None),
        result => result?,
    }
    if binding.transport == Transport::Udp {
        sockopt::set_socket_reuseaddr(&socket, false)?;
    }
    Ok(Some(socket))
}
