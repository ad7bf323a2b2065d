//! One proxied TCP connection: bytes both ways, half-closed either way, and no more in memory than the slower side leaves.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, recv, send,
        shutdown, socket_with, sockopt,
    },
};

use super::message::{Lead, PortId};

/// How long a connection to the container may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long nothing may move while both directions are open. Keep-alive probes find out earlier that an end is gone.
const IDLE: Duration = Duration::from_secs(3600);
/// How long nothing may move after one direction was closed.
const HALF_CLOSED: Duration = Duration::from_secs(300);
/// How long both ends may be silent before they are probed.
const PROBE: Duration = Duration::from_secs(60);
/// Most that one connection moves in one direction before others have their turn, in pieces.
const TURN: usize = 4;
/// Length of a piece, in bytes: what a slow receiver makes us keep, at most.
pub const PIECE: usize = 64 * 1024;

/// A socket that is watched while something is expected of it.
#[derive(Debug)]
struct Side {
    socket: OwnedFd,
    token: u64,
    watched: EpollFlags,
}

impl Side {
    fn new(socket: OwnedFd, token: u64) -> Self {
        Self { socket, token, watched: EpollFlags::empty() }
    }

    /// Watches for exactly these. A socket of which nothing is expected is not watched at all: its end would
    /// be told again and again.
    fn watch(&mut self, epoll: &Epoll, flags: EpollFlags) -> io::Result<()> {
        let mut event = EpollEvent::new(flags, self.token);
        match (self.watched.is_empty(), flags.is_empty()) {
            _ if self.watched == flags => (),
            (true, _) => epoll.add(&self.socket, event)?,
            (false, true) => epoll.delete(&self.socket)?,
            (false, false) => epoll.modify(&self.socket, &mut event)?,
        }
        self.watched = flags;
        Ok(())
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Pipe {
    /// What was read and not yet written. Nothing more is read while there is some.
    left: Vec<u8>,
    /// The reading end is at its end.
    ended: bool,
    /// That was passed on.
    closed: bool,
}

impl Pipe {
    fn wants_more(&self) -> bool {
        !self.ended && self.left.is_empty()
    }

    /// Moves what can be moved now. Says whether anything did.
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, piece: &mut [u8]) -> io::Result<bool> {
        let mut moved = self.flush(to)?;
        for _ in 0..TURN {
            if !self.wants_more() {
                break;
            }
            let length = match recv(from, &mut *piece, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.ended = true;
                    break;
                }
                Ok((length, _)) => length,
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(errno) => return Err(errno.into()),
            };
            moved = true;
            let bytes = piece.get(..length).unwrap_or_default();
            let written = write(to, bytes)?;
            self.left.extend_from_slice(bytes.get(written..).unwrap_or_default());
        }
        if self.ended && self.left.is_empty() && !self.closed {
            shutdown(to, Shutdown::Write)?;
            self.closed = true;
            moved = true;
        }
        Ok(moved)
    }

    fn flush(&mut self, to: &OwnedFd) -> io::Result<bool> {
        if self.left.is_empty() {
            return Ok(false);
        }
        let written = write(to, &self.left)?;
        self.left.drain(..written);
        if self.left.is_empty() {
            self.left = Vec::new();
        }
        Ok(written > 0)
    }
}

/// As much as there is room for.
fn write(to: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    match send(to, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(written) => Ok(written),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// A connection of a client's, and the one that it leads to.
#[derive(Debug)]
pub struct Connection {
    /// Of which port.
    pub port: PortId,
    /// Who is charged.
    pub account: u32,
    client: Side,
    server: Side,
    /// Tried if the server refuses.
    second: Option<SocketAddr>,
    connecting: bool,
    up: Pipe,
    down: Pipe,
    moved: Instant,
}

impl Connection {
    /// A client's connection was taken; begins to connect to the container. The tokens are those of the client's and the server's side.
    ///
    /// # Errors
    /// If no target can be tried; the client is cut off.
    pub fn begin(
        port: PortId,
        lead: &Lead,
        client: OwnedFd,
        tokens: (u64, u64),
        epoll: &Epoll,
    ) -> io::Result<Self> {
        let mut targets = lead.target6.map(SocketAddr::from).into_iter().chain(lead.target4.map(Into::into));
        let socket = match (targets.next(), targets.clone().next()) {
            (Some(first), Some(second)) => begin_connect(first).or_else(|_| begin_connect(second)),
            (Some(only), None) => begin_connect(only),
            (None, _) => Err(Errno::ADDRNOTAVAIL.into()),
        };
        let socket = match socket.and_then(|socket| watch_over(&client).map(|()| socket)) {
            Ok(socket) => socket,
            Err(error) => {
                reset(&client);
                return Err(error);
            }
        };
        let mut connection = Self {
            port,
            account: lead.account,
            client: Side::new(client, tokens.0),
            server: Side::new(socket, tokens.1),
            second: targets.next(),
            connecting: true,
            up: Pipe::default(),
            down: Pipe::default(),
            moved: Instant::now(),
        };
        connection.watch(epoll)?;
        Ok(connection)
    }

    /// Something is possible on one of its sockets. Says whether the connection goes on.
    pub fn ready(&mut self, epoll: &Epoll, piece: &mut [u8]) -> bool {
        match self.step(epoll, piece) {
            Ok(()) if self.up.closed && self.down.closed => false,
            Ok(()) => true,
            // Either side may have gone; the other is told in the same way.
            Err(_) => {
                self.cut();
                false
            }
        }
    }

    /// Ends it at once, as seen from both sides.
    pub fn cut(&self) {
        reset(&self.client.socket);
        reset(&self.server.socket);
    }

    /// Has nothing happened for longer than may be?
    pub fn is_overdue(&self) -> bool {
        let limit = match (self.connecting, self.up.ended || self.down.ended) {
            (true, _) => CONNECT,
            (false, true) => HALF_CLOSED,
            (false, false) => IDLE,
        };
        self.moved.elapsed() > limit
    }

    fn step(&mut self, epoll: &Epoll, piece: &mut [u8]) -> io::Result<()> {
        if self.connecting {
            self.go_on_connecting()?;
        }
        if !self.connecting {
            let up = self.up.pump(&self.client.socket, &self.server.socket, piece)?;
            let down = self.down.pump(&self.server.socket, &self.client.socket, piece)?;
            if up || down {
                self.moved = Instant::now();
            }
        }
        self.watch(epoll)
    }

    /// The first attempt has come to an end, one way or the other.
    fn go_on_connecting(&mut self) -> io::Result<()> {
        match sockopt::socket_error(&self.server.socket)? {
            Ok(()) if rustix::net::getpeername(&self.server.socket).is_ok() => self.connecting = false,
            // Not decided yet.
            Ok(()) => (),
            Err(errno) => {
                let second = self.second.take().ok_or(errno)?;
                // Closing takes the old socket out of the watched ones.
                self.server = Side::new(begin_connect(second)?, self.server.token);
            }
        }
        Ok(())
    }

    fn watch(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.connecting {
            return self.server.watch(epoll, EpollFlags::EPOLLOUT);
        }
        let flags = |reads: &Pipe, writes: &Pipe| {
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, reads.wants_more());
            flags.set(EpollFlags::EPOLLOUT, !writes.left.is_empty());
            flags
        };
        let (client, server) = (flags(&self.up, &self.down), flags(&self.down, &self.up));
        self.client.watch(epoll, client)?;
        self.server.watch(epoll, server)
    }
}

fn begin_connect(target: SocketAddr) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    watch_over(&socket)?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno.into()),
    }
}

/// Small pieces are passed on at once, as they came, and an end that is gone is noticed.
fn watch_over(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(sockopt::set_tcp_keepidle(socket, PROBE)?)
}

/// Makes closing the socket a reset instead of an orderly end.
fn reset(socket: impl AsFd) {
    // What can't be reset ends in order.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}
