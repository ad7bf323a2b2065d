//! One client of a proxied UDP port: a socket that leads its datagrams to the container and brings back the answers.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, recvfrom, send, sendto,
        socket_with,
    },
};

use super::message::{Lead, PortId};

/// How long a client is remembered after its last datagram, either way.
const IDLE: Duration = Duration::from_secs(60);
/// How long it is at least, whoever else wants its place.
const AT_LEAST: Duration = Duration::from_secs(5);
/// The same two where each asks once.
const BRIEF_IDLE: Duration = Duration::from_secs(10);
const BRIEF_AT_LEAST: Duration = Duration::from_secs(1);
/// Most datagrams that are moved before others have their turn.
pub const TURN: usize = 16;

/// A client of a port.
#[derive(Debug)]
pub struct Flow {
    /// Of which port.
    pub port: PortId,
    /// Who is charged.
    pub account: u32,
    /// Where it sends from.
    pub client: SocketAddr,
    socket: OwnedFd,
    second: Option<SocketAddr>,
    is_brief: bool,
    moved: Instant,
}

impl Flow {
    /// A socket that leads to the container.
    ///
    /// # Errors
    /// If there is nowhere to lead to, or no socket.
    pub fn begin(port: PortId, lead: &Lead, client: SocketAddr) -> io::Result<Self> {
        let mut targets = lead.target6.map(SocketAddr::from).into_iter().chain(lead.target4.map(Into::into));
        let first = targets.next().ok_or(Errno::ADDRNOTAVAIL)?;
        let family = if first.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = open(family)?;
        connect(&socket, &first)?;
        let (account, second, moved) = (lead.account, targets.next(), Instant::now());
        Ok(Self { port, account, client, socket, second, is_brief: lead.is_brief, moved })
    }

    /// Leads a datagram to the container. One that can't be sent is lost, as datagrams are; where nobody takes them
    /// at the first address, the other is tried from then on.
    pub fn send(&mut self, datagram: &[u8]) -> Moved {
        self.moved = Instant::now();
        match send(&self.socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::CONNREFUSED) => self.turn(),
            _ => Moved::On,
        }
    }

    /// Brings back answers that have come.
    pub fn bring_back(&mut self, listener: BorrowedFd<'_>, piece: &mut [u8]) -> Moved {
        for _ in 0..TURN {
            match recv(&self.socket, &mut *piece, RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    self.moved = Instant::now();
                    let datagram = piece.get(..length).unwrap_or_default();
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    let _ = sendto(listener, datagram, flags, &self.client);
                }
                Err(Errno::CONNREFUSED) => return self.turn(),
                Err(_) => break,
            }
        }
        Moved::On
    }

    /// Has nothing come either way for so long that it is forgotten?
    pub fn is_overdue(&self) -> bool {
        self.moved.elapsed() > if self.is_brief { BRIEF_IDLE } else { IDLE }
    }

    /// How long nothing has come, if that is long enough to make room for another.
    pub fn quiet(&self) -> Option<Duration> {
        let at_least = if self.is_brief { BRIEF_AT_LEAST } else { AT_LEAST };
        Some(self.moved.elapsed()).filter(|quiet| *quiet > at_least)
    }

    /// Nobody takes datagrams there: the other address from now on, on another socket.
    fn turn(&mut self) -> Moved {
        let Some(second) = self.second.take() else { return Moved::On };
        let family = if second.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = open(family).and_then(|socket| connect(&socket, &second).map(|()| socket));
        let Ok(socket) = socket else { return Moved::On };
        self.socket = socket;
        Moved::ToAnotherSocket
    }
}

/// What came of moving datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Nothing to be done.
    On,
    /// The flow has a new socket, which is to be watched.
    ToAnotherSocket,
}

impl AsFd for Flow {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// The next datagram at a port, and where it is from.
pub fn receive(listener: BorrowedFd<'_>, piece: &mut [u8]) -> Option<(usize, SocketAddr)> {
    let (length, _, from) = recvfrom(listener, piece, RecvFlags::DONTWAIT).ok()?;
    Some((length, from.and_then(|from| SocketAddr::try_from(from).ok())?))
}
