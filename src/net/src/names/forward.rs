//! The way from a name server to a resolver that the host runs on its loopback alone.
//!
//! A name server can't reach the host's loopback, and must not. On a host whose programs ask a resolver there, the
//! unprivileged proxy ([`crate::proxy`]) takes questions at port 53 of the host's address on the bridge and leads
//! them to it. The sockets take packets from the bridge's device only, and the rules let nobody but the name
//! server there. What an attacker could want: to ask that resolver things that it answers to its own host only. He
//! would have to be the name server, which passes on plain questions.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    thread,
    time::{Duration, Instant},
};

use cgrant_wire::Transport;
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};

use crate::proxy::{
    child::{Proxy, ProxySettings},
    message::{Lead, PortId},
};

/// Where names are asked for.
const PORT: u16 = 53;
/// Connections that wait to be taken.
const BACKLOG: i32 = 32;
/// The account that is charged with it: nobody's.
const NOBODY: u32 = u32::MAX;
/// How long at the beginning the address is waited for, which a proxy of a helper before us gives up in a moment.
const PREDECESSOR: Duration = Duration::from_secs(1);
/// How often that is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What is served on one bridge for one transport.
#[derive(Debug)]
struct Served {
    socket: OwnedFd,
    id: Option<PortId>,
    lead: Lead,
}

/// The ways to the host's own resolver, by bridge.
#[derive(Debug)]
pub struct Forwarder {
    proxy: Proxy,
    bridges: BTreeMap<String, [Served; 2]>,
    begun: Instant,
}

impl Forwarder {
    /// Leads nowhere yet.
    pub fn new(settings: ProxySettings) -> Self {
        Self { proxy: Proxy::new(settings), bridges: BTreeMap::new(), begun: Instant::now() }
    }

    /// Leads from the host's address on a bridge to the resolvers, of which the first of each family counts.
    ///
    /// # Errors
    /// Those of binding. That somebody has the port at that address is none: then a resolver of the host's is there itself.
    pub fn serve(&mut self, device: &str, gateway: IpAddr, resolvers: &[IpAddr]) -> io::Result<()> {
        let lead = |transport| lead_to(resolvers, transport);
        if let Some(served) = self.bridges.get_mut(device) {
            for one in served {
                let lead = lead(one.lead.transport);
                if let Some(id) = one.id.filter(|_| one.lead != lead) {
                    self.proxy.change(id, &lead);
                }
                one.lead = lead;
            }
            return Ok(());
        }
        let sockets = self.bind(device, SocketAddr::new(gateway, PORT))?;
        let Some([tcp, udp]) = sockets else { return Ok(()) };
        let mut served = |socket: OwnedFd, transport| {
            let lead = lead(transport);
            let id = self.proxy.serve(socket.as_fd(), &lead);
            Served { socket, id, lead }
        };
        let both = [served(tcp, Transport::Tcp), served(udp, Transport::Udp)];
        self.bridges.insert(device.to_owned(), both);
        Ok(())
    }

    /// Leads nowhere from this bridge any more.
    pub fn end(&mut self, device: &str) {
        for id in self.bridges.remove(device).into_iter().flatten().filter_map(|served| served.id) {
            self.proxy.end(id);
        }
    }

    /// What is to be watched for being readable.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.proxy.descriptors()
    }

    /// One of the descriptors is readable; others are ignored.
    pub fn ready(&mut self, fd: RawFd) {
        if self.proxy.ready(fd) {
            let served = self.bridges.values().flatten();
            self.proxy
                .restart(served.filter_map(|served| Some((served.id?, served.socket.as_fd(), &served.lead))));
        }
    }

    /// Both sockets, or none if somebody is there.
    fn bind(&self, device: &str, place: SocketAddr) -> io::Result<Option<[OwnedFd; 2]>> {
        loop {
            let sockets = open(device, place, SocketType::STREAM)
                .and_then(|tcp| Ok([tcp, open(device, place, SocketType::DGRAM)?]));
            match sockets {
                Ok(sockets) => return Ok(Some(sockets)),
                Err(Errno::ADDRINUSE) if self.begun.elapsed() < PREDECESSOR => thread::sleep(LOOK_AGAIN),
                Err(Errno::ADDRINUSE) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn open(device: &str, place: SocketAddr, kind: SocketType) -> Result<OwnedFd, Errno> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    setsockopt(&socket, BindToDevice, &OsString::from(device))
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &place)?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn lead_to(resolvers: &[IpAddr], transport: Transport) -> Lead {
    let four = |address: &IpAddr| match address {
        IpAddr::V4(address) => Some(SocketAddrV4::new(*address, PORT)),
        IpAddr::V6(_) => None,
    };
    let six = |address: &IpAddr| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(SocketAddrV6::new(*address, PORT, 0, 0)),
    };
    Lead {
        transport,
        account: NOBODY,
        is_brief: true,
        target6: resolvers.iter().find_map(six),
        target4: resolvers.iter().find_map(four),
    }
}
