//! The proxy's process: one thread, one loop, everything bounded by account and in total.
//!
//! What an attacker could want: that others' ports are not served because his own take all there is. What one account's
//! ports may have at once is bounded ([`MOST_OF_ACCOUNT`]); who connects to them beyond that waits.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use cgrant_sys::{Channel, Received, inherited, seqpacket::ChannelError};
use cgrant_wire::{Transport, boot::CONTROL_FD};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};

use super::{
    confine::{self, ConfineError},
    message::{Lead, PortId, ToProxy},
    tcp::{Connection, PIECE},
    udp::{self, Flow, Moved},
};

/// Most connections and clients that one account's ports have at once.
const MOST_OF_ACCOUNT: usize = 512;
/// Most of all accounts together, if the process may open as many descriptors.
const MOST: u64 = 16_384;
/// Descriptors that are not connections: the channel, epoll, ports.
const SPARE: u64 = 2048;
/// How often connections that nothing happens on are looked at, while there are any.
const SWEEP: Duration = Duration::from_secs(5);
/// Connections that are taken before others have their turn.
const TURN: usize = 16;
/// Events that are fetched at once.
const EVENTS: usize = 64;

/// Why the proxy ends.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("it is started by cgrant-net, not by hand: {0}")]
    NotStarted(String),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<nix::Error> for ProxyError {
    fn from(errno: nix::Error) -> Self {
        Self::System(errno.into())
    }
}

/// What an event is about; in its two lowest bits, the number above them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Port,
    Client,
    Server,
    Flow,
}

/// The token of the channel.
const CHANNEL: u64 = u64::MAX;

fn token(number: u64, about: About) -> u64 {
    let kind = match about {
        About::Port => 0,
        About::Client => 1,
        About::Server => 2,
        About::Flow => 3,
    };
    number.wrapping_shl(2) | kind
}

fn about(token: u64) -> (u64, About) {
    let about = match token & 3 {
        0 => About::Port,
        1 => About::Client,
        2 => About::Server,
        _ => About::Flow,
    };
    (token.wrapping_shr(2), about)
}

/// A port that is served.
#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    lead: Lead,
    /// Not watched, as there is no room for more.
    paused: bool,
    /// Clients of a UDP port.
    clients: HashMap<SocketAddr, u64>,
}

/// The program. Ends when the channel is closed and the last connection is over.
#[must_use]
pub fn run() -> ExitCode {
    match begin().and_then(|mut server| server.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgrant-net: the loopback proxy ends: {error}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> Result<Server, ProxyError> {
    let not_started = |error: String| ProxyError::NotStarted(error);
    let channel = inherited::take(CONTROL_FD)
        .and_then(Channel::from_fd)
        .map_err(|error| not_started(error.to_string()))?;
    let first = channel.receive().map_err(|error| not_started(error.to_string()))?;
    let first = first.and_then(|received| cgrant_wire::decode(&received.bytes).ok());
    let Some(ToProxy::Become { uid, gid }) = first else {
        return Err(not_started("no account".into()));
    };
    let descriptors = confine::drop_rights(uid, gid)?;
    let most = descriptors.saturating_sub(SPARE).wrapping_div(2).clamp(64, MOST);
    let server = Server::new(channel, usize::try_from(most).unwrap_or(usize::MAX))?;
    confine::filter()?;
    Ok(server)
}

struct Server {
    epoll: Epoll,
    channel: Option<Channel>,
    ports: BTreeMap<PortId, Port>,
    connections: HashMap<u64, Connection>,
    flows: HashMap<u64, Flow>,
    used: HashMap<u32, usize>,
    most: usize,
    last: u64,
    swept: Instant,
    piece: Vec<u8>,
}

impl Server {
    fn new(channel: Channel, most: usize) -> Result<Self, ProxyError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        channel.set_nonblocking(true)?;
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        Ok(Self {
            epoll,
            channel: Some(channel),
            ports: BTreeMap::new(),
            connections: HashMap::new(),
            flows: HashMap::new(),
            used: HashMap::new(),
            most,
            last: 0,
            swept: Instant::now(),
            piece: vec![0; PIECE],
        })
    }

    fn run(&mut self) -> Result<(), ProxyError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while self.channel.is_some() || !self.connections.is_empty() {
            let timeout = if self.connections.is_empty() && self.flows.is_empty() {
                EpollTimeout::NONE
            } else {
                EpollTimeout::try_from(SWEEP).unwrap_or(EpollTimeout::NONE)
            };
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::Error::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(count) {
                self.ready(event.data());
            }
            if self.swept.elapsed() >= SWEEP {
                self.sweep();
            }
        }
        Ok(())
    }

    /// An event that is about something that has gone meanwhile finds nothing: numbers are not used again.
    fn ready(&mut self, data: u64) {
        if data == CHANNEL {
            return self.listen();
        }
        match about(data) {
            (number, About::Port) => self.arrive(PortId(number)),
            (number, About::Client | About::Server) => self.move_bytes(number),
            (number, About::Flow) => self.bring_back(number),
        }
    }

    /// Everything that the helper has to say.
    fn listen(&mut self) {
        while let Some(channel) = &self.channel {
            match channel.receive() {
                Ok(Some(received)) => self.obey(received),
                Err(ChannelError::WouldBlock) => return,
                // Nobody wants new connections any more; those that are there go on to their end.
                Ok(None) | Err(_) => {
                    self.channel = None;
                    self.ports.clear();
                    self.forget_flows(|_| true);
                }
            }
        }
    }

    fn obey(&mut self, received: Received) {
        match cgrant_wire::decode(&received.bytes) {
            Ok(ToProxy::Serve(id, lead)) => {
                let Some(socket) = received.fds.into_iter().next() else { return };
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token(id.0, About::Port));
                if self.epoll.add(&socket, event).is_ok() {
                    self.ports.insert(id, Port { socket, lead, paused: false, clients: HashMap::new() });
                }
            }
            Ok(ToProxy::Change(id, lead)) => {
                if let Some(port) = self.ports.get_mut(&id) {
                    port.lead = lead;
                }
                self.forget_flows(|flow| flow.port == id);
            }
            Ok(ToProxy::End(id)) => {
                self.ports.remove(&id);
                self.answer(id);
                self.forget_flows(|flow| flow.port == id);
                let ended: Vec<u64> = self.connections_where(|connection| connection.port == id);
                for number in ended {
                    self.cut(number);
                }
                self.resume();
            }
            Ok(ToProxy::Become { .. }) | Err(_) => (),
        }
    }

    fn answer(&self, ended: PortId) {
        let Some(channel) = &self.channel else { return };
        // Where it can't be sent, the helper waits in vain and starts another proxy.
        if let Ok(bytes) = cgrant_wire::encode(&ended) {
            let _ = channel.send(&bytes, &[]);
        }
    }

    /// Somebody came to a port.
    fn arrive(&mut self, id: PortId) {
        match self.ports.get(&id).map(|port| port.lead.transport) {
            Some(Transport::Tcp) => self.accept(id),
            Some(Transport::Udp) => self.receive(id),
            None => (),
        }
    }

    fn accept(&mut self, id: PortId) {
        for _ in 0..TURN {
            let Some(port) = self.ports.get(&id) else { return };
            if !self.has_room(port.lead.account) {
                return self.pause(id);
            }
            match accept_with(&port.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(client) => self.connect(id, client),
                // Nothing left to take them with: later.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => return self.pause(id),
                // The client may have gone meanwhile.
                Err(Errno::CONNABORTED | Errno::INTR) => (),
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, id: PortId, client: OwnedFd) {
        let Some(port) = self.ports.get(&id) else { return };
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let tokens = (token(number, About::Client), token(number, About::Server));
        if let Ok(connection) = Connection::begin(id, &port.lead, client, tokens, &self.epoll) {
            *self.used.entry(connection.account).or_default() += 1;
            self.connections.insert(number, connection);
        }
    }

    fn move_bytes(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if !connection.ready(&self.epoll, &mut self.piece) {
            self.remove(number);
            self.resume();
        }
    }

    fn receive(&mut self, id: PortId) {
        for _ in 0..udp::TURN {
            let Some(port) = self.ports.get(&id) else { return };
            let Some((length, from)) = udp::receive(port.socket.as_fd(), &mut self.piece) else { return };
            let number = port.clients.get(&from).copied().or_else(|| self.begin_flow(id, from));
            let Some(flow) = number.and_then(|number| self.flows.get_mut(&number)) else { continue };
            let moved = flow.send(self.piece.get(..length).unwrap_or_default());
            self.after(number.unwrap_or_default(), moved);
        }
    }

    fn begin_flow(&mut self, id: PortId, from: SocketAddr) -> Option<u64> {
        let lead = self.ports.get(&id)?.lead.clone();
        if !self.has_room(lead.account) && !self.make_room(lead.account) {
            return None;
        }
        self.last = self.last.wrapping_add(1);
        let number = self.last;
        let flow = Flow::begin(id, &lead, from).ok()?;
        self.epoll.add(&flow, EpollEvent::new(EpollFlags::EPOLLIN, token(number, About::Flow))).ok()?;
        *self.used.entry(lead.account).or_default() += 1;
        self.flows.insert(number, flow);
        self.ports.get_mut(&id)?.clients.insert(from, number);
        Some(number)
    }

    fn bring_back(&mut self, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        let Some(port) = self.ports.get(&flow.port) else { return };
        let moved = flow.bring_back(port.socket.as_fd(), &mut self.piece);
        self.after(number, moved);
    }

    fn after(&self, number: u64, moved: Moved) {
        let Some(flow) = self.flows.get(&number).filter(|_| moved == Moved::ToAnotherSocket) else { return };
        // What can't be watched brings nothing back, and is forgotten after a while.
        let _ = self.epoll.add(flow, EpollEvent::new(EpollFlags::EPOLLIN, token(number, About::Flow)));
    }

    fn has_room(&self, account: u32) -> bool {
        let all = self.connections.len().saturating_add(self.flows.len());
        all < self.most && self.used.get(&account).is_none_or(|used| *used < MOST_OF_ACCOUNT)
    }

    /// Forgets the client of the account's that was quiet longest.
    fn make_room(&mut self, account: u32) -> bool {
        let of_account = self.flows.iter().filter(|(_, flow)| flow.account == account);
        let quietest = of_account.filter_map(|(number, flow)| Some((flow.quiet()?, *number))).max();
        quietest.map(|(_, number)| self.forget(number)).is_some() && self.has_room(account)
    }

    /// Takes no more connections at a port for now; they wait in its queue.
    fn pause(&mut self, id: PortId) {
        if let Some(port) = self.ports.get_mut(&id).filter(|port| !port.paused) {
            port.paused = self.epoll.delete(&port.socket).is_ok();
        }
    }

    /// Takes connections again where there is room.
    fn resume(&mut self) {
        let paused = self.ports.iter().filter(|(_, port)| port.paused);
        let roomy: Vec<PortId> =
            paused.filter(|(_, port)| self.has_room(port.lead.account)).map(|(id, _)| *id).collect();
        for id in roomy {
            let Some(port) = self.ports.get_mut(&id) else { continue };
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token(id.0, About::Port));
            port.paused = self.epoll.add(&port.socket, event).is_err();
        }
    }

    fn sweep(&mut self) {
        self.swept = Instant::now();
        self.forget_flows(Flow::is_overdue);
        for number in self.connections_where(Connection::is_overdue) {
            self.cut(number);
        }
        self.resume();
    }

    fn connections_where(&self, is_wanted: impl Fn(&Connection) -> bool) -> Vec<u64> {
        self.connections
            .iter()
            .filter(|(_, connection)| is_wanted(connection))
            .map(|(number, _)| *number)
            .collect()
    }

    fn cut(&mut self, number: u64) {
        if let Some(connection) = self.connections.get(&number) {
            connection.cut();
        }
        self.remove(number);
    }

    fn remove(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            self.give_back(connection.account);
        }
    }

    fn forget_flows(&mut self, is_over: impl Fn(&Flow) -> bool) {
        let over: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| is_over(flow)).map(|(number, _)| *number).collect();
        for number in over {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(flow) = self.flows.remove(&number) else { return };
        if let Some(port) = self.ports.get_mut(&flow.port) {
            port.clients.remove(&flow.client);
        }
        self.give_back(flow.account);
    }

    fn give_back(&mut self, account: u32) {
        if let Some(used) = self.used.get_mut(&account) {
            *used = used.saturating_sub(1);
            if *used == 0 {
                self.used.remove(&account);
            }
        }
    }
}
