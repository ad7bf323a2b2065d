//! The engine's main loop: accepts, hands sockets to the socket front, takes requests, gives them to the pool.
//!
//! It never runs an operation itself and never waits for anything but epoll. Threads of the pool wait for what happens, two at
//! once, and take it one at a time.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cgrant_policy::{Application, GrantPath, HostUid, Request};
use cgrant_sys::{
    pidfd::Pidfd,
    seqpacket::{Channel, ChannelError},
    socket,
};
use cgrant_wire::{
    Answer, BusClient, ConnectionId, Consent, FdIndex, FromEngine, Op, Refusal, RefusalCode, RequestId,
    Surface, ToEngine,
    boot::{FromChild, FrontKind, ToChild},
};
use nix::sys::epoll::EpollFlags;
use rustix::event::{EventfdFlags, eventfd};

use crate::{
    asking::{self, Ending, Matter, Needed},
    cgroup::Patience,
    connection::{Caller, Ended, Peer},
    engine::{Engine, Linked, Outcome},
    events, leaving, legacy,
    link::{Incoming, Link},
    metrics::Part,
    net::News,
    ops::{self, check::Descriptors},
    pace::Admission,
    pool::{Found, Full, Job, Lane, Look, Mode, Whose},
    refused::Refused,
    reload,
    share::Shared,
    watch::{Target, Timer},
};

/// Messages taken from one front before others get their turn.
const TURN: usize = 32;

/// How long after a connection that could not be accepted it is tried again.
const BEFORE_AGAIN: Duration = Duration::from_millis(100);

/// What epoll is to tell of listeners and of the timer for them: each time that something happens, once, so that one alone of the threads
/// that wait is woken for it.
const ONCE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET);

/// A socket on which clients connect.
struct Listener {
    socket: OwnedFd,
    surface: Surface,
    watch: u64,
}

/// The loop's own state.
pub struct Server {
    engine: Arc<Engine>,
    control: Channel,
    listeners: Vec<Listener>,
    /// Set when a connection could not be accepted. There from the start, as there may be no descriptors left then.
    again: Timer,
    refused: Refused,
    /// What happened to grants and waits in the pool's queues.
    events: Arc<Mutex<HashSet<Target>>>,
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The supervisor said so, or is gone.
    Stopped,
    /// A helper has died; the supervisor starts all anew.
    HelperDied,
}

impl Server {
    /// A server on these descriptors, which it owns.
    ///
    /// # Errors
    /// If one can't be watched.
    pub fn new(
        engine: Arc<Engine>,
        control: Channel,
        listeners: Vec<(OwnedFd, Surface)>,
    ) -> std::io::Result<Self> {
        control.set_nonblocking(true)?;
        engine.watches.borrow(control.as_fd(), EpollFlags::EPOLLIN, Target::Control)?;
        let watched = |(number, (socket, surface)): (usize, (OwnedFd, Surface))| {
            rustix::io::ioctl_fionbio(&socket, true)?;
            let watch = engine.watches.borrow(socket.as_fd(), ONCE, Target::Listener(number))?;
            Ok(Listener { socket, surface, watch })
        };
        let listeners: Vec<Listener> =
            listeners.into_iter().enumerate().map(watched).collect::<std::io::Result<_>>()?;
        let again = Timer::new()?;
        // Each time that it is over, once; nobody reads how often.
        engine.watches.borrow(again.as_fd(), ONCE, Target::Accept)?;
        let others = [engine.mounter.process(), engine.shower.process(), engine.devices.process()];
        for helper in engine.mapper.processes().chain(others) {
            engine.watches.borrow(helper, EpollFlags::EPOLLIN, Target::Helper)?;
        }
        engine.watches.borrow(engine.wishes.descriptor(), EpollFlags::EPOLLIN, Target::Wishes)?;
        let refused = Refused::new(listeners.iter().map(|listener| &listener.socket))?;
        Ok(Self { engine, control, listeners, again, refused, events: Arc::default() })
    }

    /// Tells the supervisor.
    pub fn tell_supervisor(&self, message: &FromChild) {
        match cgrant_wire::encode(message) {
            Ok(bytes) => {
                if let Err(error) = self.control.send(&bytes, &[]) {
                    tracing::error!(%error, "the supervisor can't be told");
                }
            }
            Err(error) => tracing::error!(%error, "a message to the supervisor could not be encoded"),
        }
    }

    /// Serves until the supervisor ends it.
    ///
    /// # Errors
    /// If epoll fails.
    pub fn run(self: &Arc<Self>) -> std::io::Result<End> {
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        self.engine.watches.borrow(over.as_fd(), EpollFlags::EPOLLIN, Target::Over)?;
        let turns = Turns { server: Arc::clone(self), over, end: Arc::default() };
        self.engine.pool.serve(Arc::new(turns.clone())).map_err(std::io::Error::other)?;
        let ended = turns.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended.unwrap_or(Ok(End::Stopped))
    }

    /// Takes all that has happened.
    fn turn(&self, happened: Vec<(Target, EpollFlags)>) -> std::io::Result<Option<End>> {
        for (target, flags) in happened {
            match target {
                Target::Control => {
                    if let Some(end) = self.control()? {
                        self.engine.pool.stop();
                        self.engine.tree.close();
                        return Ok(Some(end));
                    }
                }
                Target::Listener(number) => self.accept(number),
                Target::Accept => (0..self.listeners.len()).for_each(|number| self.accept(number)),
                Target::Link(front) => self.link(front, flags),
                Target::Net => self.net(),
                Target::Accounts => self.accounts_changed(),
                Target::AccountsDue(watch) => {
                    self.engine.watches.remove(&[watch]);
                    self.look_for(leaving::look_for_departed);
                }
                Target::Logins => leaving::logins_changed(&self.engine),
                Target::LoginsDue(watch) => {
                    self.engine.watches.remove(&[watch]);
                    self.look_for(leaving::look_for_logouts);
                }
                Target::Helper => {
                    self.engine.pool.stop();
                    return Ok(Some(End::HelperDied));
                }
                Target::Policy => reload::noticed(&self.engine),
                Target::PolicyDue => reload::due(&self.engine),
                Target::Files | Target::Over => (),
                Target::Wishes => self.engine.wishes.told().into_iter().for_each(|wish| self.wish(wish)),
                Target::Wish(wish) => self.wish(wish),
                Target::Pace(account, watch) => {
                    self.engine.watches.remove(&[watch]);
                    self.pace(account);
                }
                Target::Refusals(whose, watch) => self.engine.say_what_was_left_out(whose, watch),
                Target::Usage(account, watch) => {
                    self.engine.watches.remove(&[watch]);
                    let engine = Arc::clone(&self.engine);
                    self.submit_or_warn(account, Box::new(move || engine.look_at_usage(account)));
                }
                Target::Question(question, watch) => self.engine.question_over(question, watch),
                Target::Vacant(account) => {
                    let engine = Arc::clone(&self.engine);
                    self.submit_or_warn(account, Box::new(move || engine.vacate(account)));
                }
                Target::Holder(id, _)
                | Target::Populated(id)
                | Target::Vanished(id)
                | Target::Oom(id)
                | Target::Pressure(id, _)
                | Target::Deadline(id, _)
                | Target::Leaving(id, _) => self.grant_event(id, target),
            }
        }
        Ok(None)
    }

    fn control(&self) -> std::io::Result<Option<End>> {
        loop {
            let received = match self.control.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return Ok(Some(End::Stopped)),
                Err(ChannelError::WouldBlock) => return Ok(None),
                Err(error) => {
                    tracing::error!(%error, "the supervisor can't be understood");
                    return Ok(Some(End::Stopped));
                }
            };
            match cgrant_wire::decode::<ToChild>(&received.bytes) {
                Ok(ToChild::FrontStarted(kind)) => {
                    if let Some(fd) = received.fds.into_iter().next() {
                        self.front_started(kind, Channel::from_fd(fd)?)?;
                    }
                }
                Ok(ToChild::Reload) => self.reload(),
                Ok(ToChild::Stop) => return Ok(Some(End::Stopped)),
                Ok(ToChild::NetStarted(number)) => {
                    if let Some(fd) = received.fds.into_iter().next() {
                        self.net_started(Channel::from_fd(fd)?, number)?;
                    }
                }
                Ok(ToChild::NetStuck) => self.engine.network.helper.stuck(),
                Ok(ToChild::AreYouAlive) => self.tell_supervisor(&FromChild::Alive),
                Ok(ToChild::Engine(_) | ToChild::Front(_) | ToChild::Net(_)) | Err(_) => {
                    tracing::error!("the supervisor sent a message that has no place here");
                }
            }
        }
    }

    fn front_started(&self, kind: FrontKind, channel: Channel) -> std::io::Result<()> {
        self.front_ended(kind);
        self.engine.counters.started(kind.into(), 0);
        let link = Link::new(kind, channel)?;
        let watch = self.engine.watches.borrow(link.descriptor(), Link::AWAITED, Target::Link(kind))?;
        let mut links = self.engine.links.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(kind, Arc::new(Linked { link, watch }));
        Ok(())
    }

    fn net_started(&self, channel: Channel, number: u64) -> std::io::Result<()> {
        self.net_ended();
        self.engine.counters.started(Part::Net, 0);
        channel.set_nonblocking(true)?;
        let watch = self.engine.watches.borrow(channel.as_fd(), EpollFlags::EPOLLIN, Target::Net)?;
        self.engine.network.helper.started(channel, watch, number);
        Ok(())
    }

    /// The network helper is gone, or is given up. What it made stays; the supervisor starts another one.
    fn net_ended(&self) {
        if let Some((line, hangs)) = self.engine.network.helper.ended() {
            self.engine.watches.forget(line.descriptor(), line.watch);
            tracing::warn!(
                "the network helper {}",
                if hangs { "gives no sign and is killed" } else { "has ended" }
            );
            if hangs {
                self.tell_supervisor(&FromChild::NetHangs(line.number));
            }
        }
    }

    fn net(&self) {
        for _ in 0..TURN {
            match self.engine.network.helper.receive() {
                News::Drained => return,
                News::Ended => return self.net_ended(),
                News::PortsLost { key, edition, ports } => {
                    let Some(account) = ops::link::account(&self.engine, &key) else { continue };
                    let engine = Arc::clone(&self.engine);
                    let job = Box::new(move || ops::link::ports_lost(&engine, &key, edition, &ports));
                    self.submit_or_warn(account, job);
                }
                News::Gone { key, edition, far_end } => {
                    let Some(account) = ops::link::account(&self.engine, &key) else { continue };
                    let engine = Arc::clone(&self.engine);
                    let job = Box::new(move || ops::link::gone(&engine, &key, edition, far_end));
                    self.submit_or_warn(account, job);
                }
            }
        }
    }

    /// A front is gone, and with it its connections. It was not their callers' wish.
    fn front_ended(&self, kind: FrontKind) {
        let linked = self.engine.links.write().unwrap_or_else(PoisonError::into_inner).remove(&kind);
        let Some(linked) = linked else { return };
        self.engine.watches.forget(linked.link.descriptor(), linked.watch);
        let gone = self.engine.connections().remove_all(kind);
        tracing::warn!(front = ?kind, connections = gone.len(), "a front has ended");
        if kind == FrontKind::Bus {
            self.engine.nobody_asks();
        }
        for caller in gone {
            self.connection_ended(&caller, Ended::Broken);
        }
    }

    fn link(&self, kind: FrontKind, flags: EpollFlags) {
        let linked = self.engine.links.read().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned();
        let Some(linked) = linked else { return };
        if flags.contains(EpollFlags::EPOLLOUT) {
            linked.link.flush();
            self.engine.watch_link(&linked);
        }
        for _ in 0..TURN {
            match linked.link.receive() {
                Incoming::Message(message, fds) => {
                    if !self.message(kind, *message, fds) {
                        return self.front_ended(kind);
                    }
                }
                Incoming::Drained => return,
                Incoming::Gone => return self.front_ended(kind),
            }
        }
        // What is left is told of again.
        self.engine.watch_link(&linked);
    }

    /// Takes a front's message. False if no front of ours sends it.
    fn message(&self, front: FrontKind, message: ToEngine, fds: Vec<OwnedFd>) -> bool {
        let takes_socket =
            matches!(&message, ToEngine::Request { op: Op::Legacy(legacy), .. } if legacy.exchange.is_some());
        let fds = Descriptors::of_caller(fds, takes_socket);
        match message {
            ToEngine::Request { id, connection, interactive, op } => {
                self.request(front, id, connection, interactive, op, fds);
            }
            ToEngine::Closed { connection } => {
                let caller = self.engine.connections().remove(front, connection);
                if let Some(caller) = caller {
                    self.connection_ended(&caller, Ended::Closed);
                }
            }
            ToEngine::BusClient { id, client } => self.bus_client(front, id, &client, fds),
            ToEngine::Consent { question, consent } => return self.engine.consent(front, question, consent),
            ToEngine::Polkit { there } => return self.engine.polkit_is(front, there),
        }
        true
    }

    /// An attacker who has taken a front over wants to speak for other callers. A front can use only the numbers that
    /// were given to it, each bound to what the kernel said at accept; on the bus the bus front's word has to be taken,
    /// and no peer of the socket can reach it.
    fn request(
        &self,
        front: FrontKind,
        id: RequestId,
        connection: ConnectionId,
        interactive: bool,
        op: Op,
        fds: Descriptors,
    ) {
        let caller = self.engine.connections().get(front, connection);
        let Some(caller) = caller else {
            tracing::error!(
                ?front,
                connection = connection.0,
                "a front speaks for a connection that it does not have"
            );
            let refusal = Refusal::new(RefusalCode::NotAuthorized, "the connection is not known")
                .rule("built-in connections");
            return self.engine.answer(front, id, Err(refusal));
        };
        let account = caller.charged();
        let may = self.engine.judge(&caller, &Request::Call);
        if let Err(refusal) = may
            .inspect_err(|refusal| self.engine.log_refusal(&caller, "call", "", refusal))
            .and_then(|()| self.engine.leave_room(&caller, Shared::Requests))
        {
            let outcome = Err(refusal);
            self.engine.counters.answered(&outcome);
            return self.engine.answer(front, id, outcome);
        }
        let rate = self.engine.policy().quotas(&caller.subject()).requests_per_second;
        let asked = Asked::new(&self.engine, front, id, caller);
        let turn = Box::new(move || asked.dispatch(interactive, op, fds));
        match self.engine.paces.admit(account, rate, Instant::now(), turn) {
            Admission::Now(turn) => turn(),
            Admission::Waits => (),
            Admission::WaitsFor(wait) => self.look_at_pace(account, wait),
        }
    }

    /// Requests of the account's that waited begin.
    fn pace(&self, account: HostUid) {
        let (turns, again) = self.engine.paces.due(account, Instant::now());
        turns.into_iter().for_each(|turn| turn());
        if let Some(wait) = again {
            self.look_at_pace(account, wait);
        }
    }

    fn look_at_pace(&self, account: HostUid, wait: Duration) {
        if let Err(error) = self.engine.watches.after(wait, |watch| Target::Pace(account, watch)) {
            tracing::warn!(%error, "no timer for requests that come too fast; they begin at once");
            self.engine.paces.give_up(account).into_iter().for_each(|turn| turn());
        }
    }

    fn bus_client(&self, front: FrontKind, id: RequestId, client: &BusClient, mut fds: Descriptors) {
        let outcome = if front == FrontKind::Bus {
            let process = fds.take(FdIndex(0), "the process").ok().and_then(|fd| Pidfd::from_fd(fd).ok());
            self.introduce(FrontKind::Bus, Surface::Native, Peer::of_bus_client(client, process)).map(
                |caller| {
                    let (connection, audience) = (caller.connection, caller.audience());
                    (Answer::Connection { connection, audience }, Vec::new())
                },
            )
        } else {
            tracing::error!("the socket front claims to be on the bus");
            Err(Refusal::new(RefusalCode::NotAuthorized, "only the bus front introduces clients of the bus")
                .rule("built-in connections"))
        };
        self.engine.answer(front, id, outcome);
    }

    /// Gives a peer a number, if it may have another connection.
    fn introduce(&self, front: FrontKind, surface: Surface, peer: Peer) -> Result<Arc<Caller>, Refusal> {
        let uid = peer.uid();
        // A peer that ends at this very moment is refused: where it was, and whose, could not be told any more.
        let around = peer.process().map(|process| ops::inside::look_around(&self.engine, process, uid));
        let mut around = around.transpose().map_err(|error| ops::check::gone(&error))?.unwrap_or_default();
        // A process that is known by its number alone may be another one of the account's by now.
        if !peer.is_certain() {
            around.application = around.application.map(Application::doubted);
        }
        let inside = self.engine.ids.owner_of(uid).or(around.maker);
        let native = front == FrontKind::Socket && surface == Surface::Native;
        around.bound =
            inside.and_then(|account| ops::inside::bound(&self.engine, account, around.grant.as_ref()));
        let nested = (native && inside.is_some())
            .then(|| ops::nested::standing(&self.engine, &peer, around.grant.as_ref()))
            .flatten();
        let caller = self.engine.connections().number(front, surface, peer, inside, around, nested);
        self.engine.authorize_silently(&caller, &Request::Connect)?;
        self.engine.leave_room(&caller, Shared::Connections)?;
        match surface {
            Surface::Native => (),
            Surface::Legacy => self.engine.authorize_silently(&caller, &Request::Legacy)?,
            Surface::Metrics => crate::metrics::may_read(&self.engine, &caller)?,
        }
        self.engine.connections().open(&caller);
        self.engine.touch(caller.charged());
        Ok(caller)
    }

    /// Accepts who waits first.
    ///
    /// An attacker could want the host's descriptors used up, and the engine to ask for one without end, and say so: it asks again after a
    /// while, and says so now and then.
    fn accept(&self, number: usize) {
        let Some(listener) = self.listeners.get(number) else { return };
        match socket::accept(listener.socket.as_fd()) {
            Ok(connection) => self.accepted(connection, listener.surface),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => {
                if self.engine.may_tell(None) {
                    tracing::warn!(%error, "a connection could not be accepted; it is tried again");
                }
                if self.again.set(BEFORE_AGAIN).is_ok() {
                    return;
                }
            }
        }
        // Who else waits to be accepted is told of. To ask that way costs the kernel less than a socket which it makes in vain.
        if let Err(error) = self.engine.watches.modify(listener.socket.as_fd(), ONCE, listener.watch) {
            tracing::error!(%error, "a listener can't be watched");
        }
    }

    fn accepted(&self, connection: OwnedFd, surface: Surface) {
        match self.announcement(connection.as_fd(), surface) {
            Some(message) => self.engine.send(FrontKind::Socket, &message, vec![connection]),
            None => self.refused.put_away(connection),
        }
    }

    /// What the socket front is told of a connection; `None` if it is not served.
    fn announcement(&self, connection: BorrowedFd<'_>, surface: Surface) -> Option<FromEngine> {
        let peer = match Peer::of(connection) {
            Ok(peer) => peer,
            Err(error) => {
                if self.engine.may_tell(None) {
                    tracing::info!(%error, "a connection is not served");
                }
                return None;
            }
        };
        if self.engine.front_uids.contains(&peer.uid()) {
            tracing::error!(uid = peer.uid().0, "a front's account connects to the broker; refused");
            return None;
        }
        let (uid, pid) = (peer.uid().0, peer.pid());
        let caller = self.introduce(FrontKind::Socket, surface, peer).ok()?;
        let (connection, account) = (caller.connection, caller.charged().0);
        let (claim, audience) = (ops::nested::claim(&self.engine, &caller), caller.audience());
        Some(FromEngine::Connected { connection, surface, uid, account, claim, audience, pid })
    }

    fn connection_ended(&self, caller: &Caller, how: Ended) {
        caller.set_ended(how);
        self.engine.touch(caller.charged());
        self.engine.withdraw(caller);
        let held = self.engine.registry().take_held(caller.connection);
        for grant in held {
            let (engine, account, connection) = (Arc::clone(&self.engine), grant.account, caller.connection);
            let job = Box::new(move || ops::manage::holder_ended(&engine, &grant, connection, how));
            self.submit_of(caller.whose(), account, job);
        }
    }

    /// Queues what happened to a grant, unless the same waits in the queue already: a holder can make things happen thousands
    /// of times while its account's operations are slow, and each only means "look".
    fn grant_event(&self, id: cgrant_wire::GrantId, target: Target) {
        let Some(grant) = self.engine.registry().get(id) else { return };
        let user = ops::inside::user_of(&self.engine, &grant.path);
        if !lock(&self.events).insert(target.clone()) {
            return;
        }
        let (engine, events) = (Arc::clone(&self.engine), Arc::clone(&self.events));
        let job = Box::new(move || {
            // First, so that what happens from now on is looked at again.
            lock(&events).remove(&target);
            events::happened(&engine, id, &target);
        });
        let whose = user.map_or(Whose::Own, |user| Whose::Guest(user.0));
        self.submit_of(whose, grant.account, job);
    }

    /// Queues a look at a cgroup that is to be removed when it is empty, unless one waits already.
    fn wish(&self, wish: u64) {
        let Some(record) = self.engine.wishes.record(wish) else { return };
        if !lock(&self.events).insert(Target::Wish(wish)) {
            return;
        }
        let (engine, events) = (Arc::clone(&self.engine), Arc::clone(&self.events));
        let job = Box::new(move || {
            // First, so that what happens from now on is looked at again.
            lock(&events).remove(&Target::Wish(wish));
            legacy::look(&engine, wish);
        });
        self.submit_or_warn(HostUid(record.account), job);
    }

    fn submit_or_warn(&self, account: HostUid, job: Job) {
        self.submit_of(Whose::Own, account, job);
    }

    fn submit_of(&self, whose: Whose, account: HostUid, job: Job) {
        if let Err(error) = self.engine.pool.submit_event_of(whose, account.0, job) {
            tracing::error!(%error, account = account.0, "an event of a grant could not be queued");
        }
    }

    fn accounts_changed(&self) {
        // Groups that policy names may have other members' gids now.
        if !self.engine.policy().group_names().is_empty() {
            reload::noticed(&self.engine);
        }
        self.look_for(leaving::look_for_departed);
    }

    /// Has it looked for users who left, in nobody's order but that of such looks and of root's operations.
    fn look_for(&self, look: fn(&Arc<Engine>)) {
        let engine = Arc::clone(&self.engine);
        self.submit_or_warn(HostUid::ROOT, Box::new(move || look(&engine)));
    }

    fn reload(&self) {
        self.tell_supervisor(&FromChild::Reloaded(reload::now(&self.engine)));
    }
}

/// How the pool's threads look for what happens.
#[derive(Clone)]
struct Turns {
    server: Arc<Server>,
    /// Readable when it is over.
    over: Arc<OwnedFd>,
    /// How it ended.
    end: Arc<Mutex<Option<std::io::Result<End>>>>,
}

impl Look for Turns {
    fn wait(&self) -> Found {
        let (turns, happened) = (self.clone(), self.server.engine.watches.wait());
        Box::new(move || {
            let ended = happened.and_then(|happened| turns.server.turn(happened)).transpose();
            let goes_on = ended.is_none();
            *turns.end.lock().unwrap_or_else(PoisonError::into_inner) = ended;
            goes_on
        })
    }

    fn wake(&self) {
        if let Err(error) = rustix::io::write(&self.over, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "the engine's threads can't be told that it ends");
        }
    }
}

/// A request that counts until it is answered. One that is dropped is answered with that: its queue was full, or its operation
/// panicked.
struct Asked {
    engine: Arc<Engine>,
    front: FrontKind,
    id: RequestId,
    caller: Arc<Caller>,
    answered: bool,
}

impl Asked {
    fn new(engine: &Arc<Engine>, front: FrontKind, id: RequestId, caller: Arc<Caller>) -> Self {
        engine.connections().request_begins(&caller);
        Self { engine: Arc::clone(engine), front, id, caller, answered: false }
    }

    /// Puts it where its operation waits for its turn.
    fn dispatch(self, interactive: bool, op: Op, fds: Descriptors) {
        let account = ops::account_of(&self.engine, &self.caller, &op, &[]);
        match op {
            // What a client can hold up waits by itself, and only then is the operation in the account's order.
            Op::Legacy(legacy) if legacy.call.credentials() > 0 && legacy.exchange.is_some() => {
                self.queue(Lane::Held(account.0), Mode::Alone, move |asked| {
                    let received = legacy::receive(&asked.engine, &asked.caller, &legacy, fds);
                    asked.queue(account.0, legacy::mode(&legacy.call), move |asked| {
                        asked.run(|engine, caller| ops::perform_exchange(engine, caller, &legacy, received));
                    });
                });
            }
            op if ops::can_be_asked(&op) => {
                Attempt { asked: self, op, fds, interactive, agreed: Vec::new(), has_waited: false }.queue();
            }
            op => {
                let mode = ops::mode(&op);
                let is_held = matches!(&op, Op::Legacy(legacy) if legacy.exchange.is_some());
                let lane = if is_held { Lane::Held(account.0) } else { Lane::Account(account.0) };
                self.queue(lane, mode, move |asked| {
                    asked.run(|engine, caller| ops::perform(engine, caller, op, fds));
                });
            }
        }
    }

    /// Has it wait for its turn, or refuses it if too many wait.
    fn queue(self, lane: impl Into<Lane>, mode: Mode, turn: impl FnOnce(Self) + Send + 'static) {
        let pool = self.engine.pool.clone();
        let whose = self.caller.whose();
        // What is dropped in here is answered.
        let _ = pool.submit_of(whose, lane, mode, Box::new(move || turn(self)));
    }

    /// Carries it out.
    fn run(mut self, operation: impl FnOnce(&Engine, &Arc<Caller>) -> Outcome) {
        let engine = Arc::clone(&self.engine);
        engine.answer_first(|| {
            let outcome = operation(&engine, &self.caller);
            self.answer(outcome);
            drop(self);
        });
    }

    fn answer(&mut self, outcome: Outcome) {
        self.answered = true;
        self.engine.counters.answered(&outcome);
        self.engine.connections().request_ends(&self.caller);
        self.engine.answer(self.front, self.id, outcome);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let refusal = if std::thread::panicking() {
            ops::check::internal("a fault in an operation")
        } else {
            Refusal::new(RefusalCode::Busy, Full.to_string())
                .hint("try again when earlier requests are answered")
        };
        self.answer(Err(refusal));
    }
}

/// A request that somebody may be asked to agree to, and what was agreed to so far.
struct Attempt {
    asked: Asked,
    op: Op,
    fds: Descriptors,
    interactive: bool,
    agreed: Vec<Matter>,
    /// Has it been waited for what was killed?
    has_waited: bool,
}

impl Attempt {
    /// Has it wait for its turn among the operations of the account that it is about.
    fn queue(self) {
        let pool = self.asked.engine.pool.clone();
        let account = ops::account_of(&self.asked.engine, &self.asked.caller, &self.op, &self.agreed);
        let (mode, whose) = (ops::mode(&self.op), self.asked.caller.whose());
        // What is dropped in here is answered.
        let _ = pool.submit_of(whose, account.0, mode, Box::new(move || self.run()));
    }

    /// Waits beside the account's operations for what was killed to end, and has the rest carried out then; once.
    ///
    /// An ordinary user in a container wants those operations to wait: its processes may not end for long, in the hands of a file system that
    /// it serves itself.
    fn wait_aside(mut self, grant: GrantPath) {
        self.has_waited = true;
        let (pool, account) = (self.asked.engine.pool.clone(), grant.account.0);
        let whose = self.asked.caller.whose();
        let job = move || {
            if let Err(error) = self.asked.engine.tree.wait_until_empty(&grant) {
                tracing::debug!(%error, "the end of what was killed is not waited for");
            }
            self.queue();
        };
        // What is dropped in here is answered.
        let _ = pool.submit_of(whose, Lane::Aside(account), Mode::Alone, Box::new(job));
    }

    /// The grant whose processes it killed, if they have not ended in the time that the account's operations may wait for this caller.
    fn is_waited_for(&self, outcome: &Outcome) -> Option<GrantPath> {
        let is_late = outcome.as_ref().is_err_and(|refusal| refusal.code == RefusalCode::TimedOut);
        let may_wait = self.asked.caller.patience() == Patience::Brief && !self.has_waited;
        let id = match self.op {
            Op::Kill { grant } | Op::Release { grant, .. } if is_late && may_wait => grant,
            _ => return None,
        };
        self.asked.engine.registry().get(id).map(|grant| grant.path.clone())
    }

    /// Carries it out; or, if somebody else has to agree, ends without an effect and asks.
    fn run(mut self) {
        let engine = Arc::clone(&self.asked.engine);
        engine.answer_first(|| {
            let copies = match self.fds.try_clone() {
                Ok(copies) => copies,
                Err(error) => return self.asked.answer(Err(ops::check::internal(error))),
            };
            let operation = || ops::perform(&engine, &self.asked.caller, self.op.clone(), copies);
            let (outcome, needed) = asking::turn(&self.agreed, operation);
            match (outcome, needed) {
                (Err(refusal), Some(needed)) => self.park(refusal, needed),
                (outcome, _) => match self.is_waited_for(&outcome) {
                    Some(grant) => self.wait_aside(grant),
                    None => self.asked.answer(outcome),
                },
            }
        });
    }

    /// Waits for polkit's answer, as nothing but an entry in a table.
    fn park(mut self, refusal: Refusal, needed: Needed) {
        if self.agreed.len() >= asking::MAX_PER_REQUEST || self.agreed.contains(&needed.matter) {
            return self.refuse(&refusal);
        }
        let (engine, caller) = (Arc::clone(&self.asked.engine), Arc::clone(&self.asked.caller));
        let (interactive, matter) = (self.interactive, needed.matter.clone());
        let resume = move |ending: Ending| {
            if ending == Ending::Said(Consent::Yes) {
                self.agreed.push(matter);
                self.queue();
            } else {
                // A grant that is named is asked about before anybody looks whether it is there.
                let hidden =
                    refusal.code == RefusalCode::NoSuchGrant && !matches!(self.op, Op::FindGrant { .. });
                self.refuse(&asking::refused(refusal, &ending, matter.action, hidden));
            }
        };
        engine.ask(&caller, needed, interactive, Box::new(resume));
    }

    fn refuse(mut self, refusal: &Refusal) {
        ops::log_refusal(&self.asked.engine, &self.asked.caller, &self.op, refusal);
        self.asked.answer(Err(refusal.clone()));
    }
}

fn lock(events: &Mutex<HashSet<Target>>) -> MutexGuard<'_, HashSet<Target>> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}
