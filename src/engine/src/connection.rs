//! Who calls: the engine's table of connections and what the kernel said of each peer when it was accepted.
//!
//! A front names callers by the numbers given out here and by nothing else. Numbers are never used twice while
//! the engine runs, and each belongs to one front: the other one can't speak for it.

use std::{
    collections::HashMap,
    os::fd::BorrowedFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use cgrant_policy::{
    Application, BLOCK, Caller as Subject, GrantName, GrantPath, HostGid, HostUid, NsUid, Step,
};
use cgrant_sys::{
    pidfd::Pidfd,
    socket::{self, PeerPidfd},
};
use cgrant_wire::{Audience, BusClient, ConnectionId, Range, Surface, boot::FrontKind};

use crate::{
    cgroup::Patience,
    ids,
    legacy::Known,
    ops::inside::Around,
    pool::Whose,
    registry::Grant,
    share::{Shared, Shares, UsedUp},
};

/// The grant that a caller acts in, from inside: all that it does is inside of that one.
#[derive(Debug)]
pub struct Inside {
    /// The grant. It may have ended since.
    pub grant: Arc<Grant>,
    /// The grant's range.
    pub range: Range,
    /// Who it is in there: root, or an ordinary user that policy lets in.
    pub user: NsUid,
    /// The account, as policy saw it when the grant was made. The caller's own groups are the container's.
    pub subject: Subject,
}

/// A caller, as the kernel or the bus daemon describes it.
#[derive(Debug)]
pub struct Caller {
    /// Its connection.
    pub connection: ConnectionId,
    /// The front that speaks for it.
    pub front: FrontKind,
    /// The listener that it came by; that of the native interface for clients of the bus.
    pub surface: Surface,
    /// Its uid in the initial user namespace.
    pub uid: HostUid,
    /// Its gid.
    pub gid: HostGid,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its pid when it connected, if it can be seen from here. For the log; proves nothing.
    pub pid: Option<u32>,
    /// Its process, when the kernel told.
    pub process: Option<Pidfd>,
    /// Its unique name, if it is a client of the bus.
    pub bus_name: Option<String>,
    /// The account that its uid was handed to, as one of a range or a subordinate one: the caller is inside a container of
    /// that account's.
    pub inside: Option<HostUid>,
    /// The grant whose payload its process lay in when it connected.
    pub born_in: Option<GrantPath>,
    /// The application that its process was of when it connected.
    pub application: Option<Application>,
    /// The ordinary user of a container that it is, or that the container around is of: whose share it has.
    pub ordinary: Option<HostUid>,
    /// What it acts in, if it is served as one inside.
    pub nested: Option<Inside>,
    /// Whose rules bind it, if those are another's than its own uid's ([`ops::inside::bound`](crate::ops::inside::bound)).
    pub bound: Option<Subject>,
    /// What its process is known by for calls of CGManager's interface, from the first one on.
    pub known: OnceLock<Known>,
    ended: AtomicU8,
    /// Id of a cgroup2 cgroup outside of all payloads in which its process was seen; 0, which none has, before.
    outside: AtomicU64,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By its caller's wish or death.
    Closed,
    /// With the front that served it.
    Broken,
}

impl Inside {
    /// The ids that grants inside are made from, and whose grants these are.
    pub fn ids(&self) -> ids::Around {
        let nesting = self.grant.live().record.nesting;
        let own = own_ids(self.range, nesting);
        ids::Around { range: self.range, own, user: self.user }
    }
}

/// How many ids at the beginning of a range are its grant's own, behind which come so many blocks for grants inside.
pub fn own_ids(range: Range, nesting: u32) -> u32 {
    range.count.saturating_sub(nesting.saturating_mul(BLOCK))
}

impl Caller {
    /// Has the connection ended, and how? Says so before its grants are looked for, so that a grant which is made at this
    /// moment is noticed by one side or the other.
    pub fn ended(&self) -> Option<Ended> {
        match self.ended.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Ended::Closed),
            _ => Some(Ended::Broken),
        }
    }

    /// The connection has ended.
    pub fn set_ended(&self, how: Ended) {
        self.ended.store(if how == Ended::Closed { 1 } else { 2 }, Ordering::SeqCst);
    }

    /// Is this the cgroup, by its kernel id, that was said to lie outside of all payloads?
    pub fn is_known_outside(&self, cgroup: u64) -> bool {
        cgroup != 0 && self.outside.load(Ordering::Relaxed) == cgroup
    }

    /// The cgroup2 cgroup with this kernel id lies outside of all payloads.
    pub fn know_outside(&self, cgroup: Option<u64>) {
        self.outside.store(cgroup.unwrap_or(0), Ordering::Relaxed);
    }

    /// The account that its connections and requests are counted to. An account may have thousands of uids in its
    /// containers, which together have no more than it.
    pub fn charged(&self) -> HostUid {
        self.inside.unwrap_or(self.uid)
    }

    /// The account that it acts for.
    pub fn account(&self) -> HostUid {
        self.nested.as_ref().map_or(self.uid, |nested| nested.grant.account)
    }

    /// Whose its requests are, among those of the account that they count to.
    pub fn whose(&self) -> Whose {
        self.ordinary.map_or(Whose::Own, |user| Whose::Guest(user.0))
    }

    /// How long the account's other operations may wait for what it asks for.
    pub fn patience(&self) -> Patience {
        if self.ordinary.is_some() { Patience::Brief } else { Patience::Full }
    }

    /// Where its own grants are made: in the account's node, or in the grant around it.
    pub fn place(&self) -> GrantPath {
        match &self.nested {
            Some(nested) => nested.grant.path.clone(),
            None => GrantPath::of_account(self.uid),
        }
    }

    /// Who it is there: root, but for an ordinary user of a container.
    pub fn user(&self) -> NsUid {
        self.nested.as_ref().map_or(NsUid::ROOT, |nested| nested.user)
    }

    /// Is it the root of its container, and of no ordinary user's in another one?
    pub fn is_root_throughout(&self) -> bool {
        self.user().is_root() && self.place().ordinary().next().is_none()
    }

    /// Where its own grant of this name is.
    pub fn path_of(&self, name: GrantName) -> GrantPath {
        self.place().inner(Step { user: self.user(), name })
    }

    /// Was what lies there made by it, or inside of that?
    pub fn owns(&self, path: &GrantPath) -> bool {
        path.step_in(&self.place()).is_some_and(|step| step.user == self.user())
    }

    /// May it know of what lies there? On the host its account's, and everything if it is root; from inside what is in its own
    /// grant, and not that one itself; if it is not root there, only what it made itself and what is in that.
    pub fn may_see(&self, path: &GrantPath) -> bool {
        match &self.nested {
            Some(nested) if nested.user.is_root() => path.is_inside(&nested.grant.path),
            Some(_) => self.owns(path),
            None => path.account == self.uid || self.uid.is_root(),
        }
    }

    /// What it is told of.
    ///
    /// An attacker wants to hear what others run, by a process of theirs, or of root's, that has entered a user namespace of its
    /// own: such a one acts for nobody there, and is told of nothing.
    pub fn audience(&self) -> Option<Audience> {
        match (&self.nested, self.inside) {
            (Some(nested), _) => Some(Audience::Inside(nested.grant.id, nested.user.0)),
            (None, None) => Some(Audience::Account(self.uid.0)),
            (None, Some(_)) => None,
        }
    }

    /// The caller as policy sees it.
    ///
    /// An attacker wants what its account may not have, and asks as one of the ids that the account has in its containers, for
    /// which no rule was written: such a one is the account.
    pub fn subject(&self) -> Subject {
        if let Some(subject) = self.nested.as_ref().map(|nested| &nested.subject).or(self.bound.as_ref()) {
            return subject.clone();
        }
        Subject {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.iter().copied().map(HostGid).collect(),
            application: self.application.clone().filter(|_| self.inside.is_none()),
        }
    }
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub enum NotServed {
    /// The kernel did not tell who the peer is.
    #[error("the kernel does not say who connected: {0}")]
    Unknown(#[from] std::io::Error),
    /// The peer was gone before it was accepted.
    #[error("the peer has ended already")]
    Gone,
}

/// What the kernel says of a socket's peer. The socket must be one that the engine itself accepted.
#[derive(Debug)]
pub struct Peer {
    uid: HostUid,
    gid: HostGid,
    groups: Vec<u32>,
    pid: Option<u32>,
    process: Option<Pidfd>,
    is_certain: bool,
    bus_name: Option<String>,
}

impl Peer {
    /// Reads the peer of `socket`, before any byte is read from it.
    ///
    /// An attacker wants to be taken for somebody else. The kernel noted these credentials when the peer called
    /// connect(2); neither what it sends nor what it becomes later changes them. A peer that has ended since
    /// is refused, so that its pid can't come to mean another process.
    ///
    /// # Errors
    /// [`NotServed`].
    pub fn of(socket: BorrowedFd<'_>) -> Result<Self, NotServed> {
        let credentials = socket::peer_credentials(socket)?;
        let told = socket::peer_pidfd(socket)?;
        let is_certain = matches!(told, PeerPidfd::Some(_));
        let process = match told {
            PeerPidfd::Some(pidfd) => Some(pidfd),
            PeerPidfd::Gone => return Err(NotServed::Gone),
            // Linux before 6.5: a pidfd by number. That of a peer which has ended may be another process's by now.
            PeerPidfd::Unsupported => {
                credentials.pid.map(|pid| process_of(pid, credentials.uid)).transpose()?
            }
        };
        Ok(Self {
            uid: HostUid(credentials.uid),
            gid: HostGid(credentials.gid),
            groups: socket::peer_groups(socket)?,
            pid: credentials.pid,
            process,
            is_certain,
            bus_name: None,
        })
    }

    /// Is its process the one that connected, by the kernel's word, and not just one that has its number?
    pub fn is_certain(&self) -> bool {
        self.is_certain
    }

    /// Its uid.
    pub fn uid(&self) -> HostUid {
        self.uid
    }

    /// Its gid.
    pub fn gid(&self) -> HostGid {
        self.gid
    }

    /// Its process, when the kernel told.
    pub fn process(&self) -> Option<&Pidfd> {
        self.process.as_ref()
    }

    /// Its pid, for the log.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The peer that a client of the bus is, in the words of the bus front. `process` comes from that front too.
    pub fn of_bus_client(client: &BusClient, process: Option<Pidfd>) -> Self {
        Self {
            uid: HostUid(client.uid),
            gid: HostGid(client.groups.first().copied().unwrap_or(u32::MAX)),
            groups: client.groups.clone(),
            pid: client.pid,
            is_certain: client.is_certain && process.is_some(),
            process,
            bus_name: Some(client.name.clone()),
        }
    }
}

/// The process of this pid, if it is one of the uid's.
fn process_of(pid: u32, uid: u32) -> Result<Pidfd, NotServed> {
    let process = Pidfd::open(pid).map_err(|_| NotServed::Gone)?;
    let info = process.info().map_err(|_| NotServed::Gone)?;
    let is_its = [info.ruid, info.euid, info.suid].contains(&uid);
    if is_its { Ok(process) } else { Err(NotServed::Gone) }
}

/// The connections that are open.
#[derive(Debug, Default)]
pub struct Connections {
    last: u64,
    open: HashMap<ConnectionId, Arc<Caller>>,
    connections: HashMap<HostUid, u64>,
    requests: HashMap<HostUid, u64>,
    shares: Shares,
}

impl Connections {
    /// How many connections the account has, and how many requests of it are under way.
    pub fn counts(&self, account: HostUid) -> (u64, u64) {
        let count = |map: &HashMap<HostUid, u64>| map.get(&account).copied().unwrap_or(0);
        (count(&self.connections), count(&self.requests))
    }

    /// The accounts that have connections.
    pub fn accounts(&self) -> impl Iterator<Item = HostUid> {
        self.connections.keys().copied()
    }

    /// A request of the caller's begins.
    pub fn request_begins(&mut self, caller: &Caller) {
        *self.requests.entry(caller.charged()).or_default() += 1;
        if let Some(user) = caller.ordinary {
            self.shares.take(Shared::Requests, caller.charged(), user);
        }
    }

    /// A request of the caller's has been answered.
    pub fn request_ends(&mut self, caller: &Caller) {
        decrement(&mut self.requests, caller.charged());
        if let Some(user) = caller.ordinary {
            self.shares.give_back(Shared::Requests, caller.charged(), user);
        }
    }

    /// Has the caller's share of this quota room for one more?
    ///
    /// # Errors
    /// [`UsedUp`], of an ordinary user of a container.
    pub fn room(&self, what: Shared, caller: &Caller, quota: u64) -> Result<(), UsedUp> {
        caller.ordinary.map_or(Ok(()), |user| self.shares.room(what, caller.charged(), user, quota))
    }

    /// Gives `peer` a number. It counts and may be used once it is [`open`](Self::open).
    pub fn number(
        &mut self,
        front: FrontKind,
        surface: Surface,
        peer: Peer,
        inside: Option<HostUid>,
        around: Around,
        nested: Option<Inside>,
    ) -> Arc<Caller> {
        self.last += 1;
        Arc::new(Caller {
            connection: ConnectionId(self.last),
            front,
            surface,
            uid: peer.uid,
            gid: peer.gid,
            groups: peer.groups,
            pid: peer.pid,
            process: peer.process,
            bus_name: peer.bus_name,
            ordinary: around.ordinary.filter(|_| inside.is_some()),
            inside,
            born_in: around.grant,
            application: around.application,
            nested,
            bound: around.bound,
            known: OnceLock::new(),
            ended: AtomicU8::new(0),
            outside: AtomicU64::new(0),
        })
    }

    /// Opens a numbered connection.
    pub fn open(&mut self, caller: &Arc<Caller>) {
        *self.connections.entry(caller.charged()).or_default() += 1;
        if let Some(user) = caller.ordinary {
            self.shares.take(Shared::Connections, caller.charged(), user);
        }
        self.open.insert(caller.connection, Arc::clone(caller));
    }

    /// The caller of this number, if it was given to this front.
    pub fn get(&self, front: FrontKind, connection: ConnectionId) -> Option<Arc<Caller>> {
        self.open.get(&connection).filter(|caller| caller.front == front).cloned()
    }

    /// Forgets a connection of this front.
    pub fn remove(&mut self, front: FrontKind, connection: ConnectionId) -> Option<Arc<Caller>> {
        let caller = self.get(front, connection)?;
        self.open.remove(&connection);
        decrement(&mut self.connections, caller.charged());
        if let Some(user) = caller.ordinary {
            self.shares.give_back(Shared::Connections, caller.charged(), user);
        }
        Some(caller)
    }

    /// Forgets all connections of a front that has ended.
    pub fn remove_all(&mut self, front: FrontKind) -> Vec<Arc<Caller>> {
        let gone: Vec<_> = self
            .open
            .values()
            .filter(|caller| caller.front == front)
            .map(|caller| caller.connection)
            .collect();
        gone.into_iter().filter_map(|connection| self.remove(front, connection)).collect()
    }
}

fn decrement(counts: &mut HashMap<HostUid, u64>, uid: HostUid) {
    if let Some(count) = counts.get_mut(&uid) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&uid);
        }
    }
}
