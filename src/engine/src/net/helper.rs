//! The line to the network helper: orders with their answers, what ought to be there, and what the helper tells.
//!
//! Orders are given by the pool's threads, which wait for the answer; the main thread reads and never waits. What ought to
//! be there changes in the moment that an answer is read, so that a helper that starts anew is told neither more nor less.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cgrant_sys::seqpacket::{Channel, ChannelError};
use cgrant_wire::{
    Address, GrantId, PublishedPort, Refusal, RefusalCode,
    net::{Bridge, FromNet, Link, LinkKey, NetEvent, NetFailure, Order, OrderId, Reply, ToNet},
    patience,
};

/// Times that a removal is tried with helpers that end while they are at it.
const REMOVALS: usize = 3;

/// A link that ought to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its bridge.
    pub bridge: Bridge,
    /// The link.
    pub link: Link,
}

struct Entry {
    wanted: Wanted,
    /// Which link of this name it is: one that was made later has another number.
    edition: u64,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// There is no helper, or it ended meanwhile.
    #[error("the broker's network helper is being started again")]
    Away,
    /// It did not answer in time.
    #[error("the broker's network helper gave no sign for {} s and is started again", patience::ORDER.as_secs())]
    TimedOut,
    /// It was killed, and the kernel does not let it end.
    #[error(
        "the broker's network helper hangs in the kernel and can't be ended: no link can be made or changed until it is"
    )]
    Stuck,
    /// It refused, and nothing of the order remains.
    #[error("{}", .0.message)]
    Refused(NetFailure),
    /// Its answer fits another order.
    #[error("the broker's network helper gave an answer that does not fit")]
    Nonsense,
}

impl From<HelperError> for Refusal {
    fn from(error: HelperError) -> Self {
        let message = error.to_string();
        match error {
            HelperError::Away => Self::new(RefusalCode::Busy, message)
                .hint("try again in a moment; the broker's log says why if it stays so"),
            HelperError::TimedOut => Self::new(RefusalCode::TimedOut, message)
                .hint("nothing of the request remains; the broker's log may say why"),
            HelperError::Stuck => Self::new(RefusalCode::Busy, message)
                .hint("links that are there work; the administrator finds in the broker's log which process it is, and in /proc/PID/stack where it hangs"),
            HelperError::Refused(failure) => {
                let refusal = Self::new(failure.code, message);
                if failure.hint.is_empty() { refusal } else { refusal.hint(failure.hint) }
            }
            HelperError::Nonsense => Self::new(RefusalCode::Internal, message),
        }
    }
}

/// What changes about that which ought to be there when the order has been carried out.
enum Then {
    Nothing,
    Add(Box<Wanted>),
    Ports(LinkKey, Vec<PublishedPort>),
    Remove(LinkKey),
    RemoveAll(GrantId),
}

type Answer = (Result<Reply, NetFailure>, Vec<OwnedFd>);

struct Pending {
    then: Then,
    answer: Option<Answer>,
}

/// A helper that runs.
pub struct Line {
    channel: Channel,
    /// Its entry among the watches.
    pub watch: u64,
    /// Its number, by which the supervisor knows it.
    pub number: u64,
    /// When it was started.
    started: Instant,
}

impl Line {
    /// The descriptor that is watched.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[derive(Default)]
struct State {
    line: Option<Arc<Line>>,
    /// Which helper it is.
    generation: u64,
    last: u64,
    pending: HashMap<OrderId, Pending>,
    wanted: BTreeMap<LinkKey, Entry>,
    editions: u64,
    clashes: BTreeMap<String, Address<IpAddr>>,
    /// Has the helper brought about all that it was told at first? Before that no order but a removal is given.
    restored: bool,
    /// When it last gave a sign.
    heard: Option<Instant>,
    /// Did it hang, and is to be killed?
    hangs: bool,
    /// Was it killed in vain?
    stuck: bool,
}

impl State {
    /// How long a helper still has that was given an order at `sent`; nothing if it hangs. Orders are carried out one after the
    /// other, so who waits for his own looks whether anything goes on.
    fn left(&self, sent: Instant, now: Instant) -> Duration {
        let Some(line) = &self.line else { return Duration::ZERO };
        let (since, patience) = if self.restored {
            (self.heard.map_or(sent, |heard| heard.max(sent)), patience::ORDER)
        } else {
            (line.started, patience::RESTORE)
        };
        patience.saturating_sub(now.saturating_duration_since(since))
    }

    /// Gives the helper up: who comes after it puts in order what it may still do.
    fn cut(&mut self) {
        if let Some(line) = &self.line {
            self.hangs = true;
            let _ = rustix::net::shutdown(line.descriptor(), rustix::net::Shutdown::Both);
        }
    }

    /// Its ports that somebody else has by now. -> which of its name the link is.
    fn lose_ports(&mut self, key: &LinkKey, lost: &[PublishedPort]) -> Option<u64> {
        let entry = self.wanted.get_mut(key)?;
        entry.wanted.link.info.ports.retain(|port| !lost.contains(port));
        Some(entry.edition)
    }

    fn want(&mut self, wanted: Wanted) {
        self.editions += 1;
        self.wanted.insert(wanted.link.key.clone(), Entry { wanted, edition: self.editions });
    }

    fn forget(&mut self, which: &Then) {
        match which {
            Then::Remove(key) => {
                self.wanted.remove(key);
            }
            Then::RemoveAll(grant) => self.wanted.retain(|key, _| key.grant != *grant),
            Then::Nothing | Then::Add(_) | Then::Ports(..) => (),
        }
    }

    fn carried_out(&mut self, then: Then, reply: &Reply) {
        match (then, reply) {
            (Then::Add(mut wanted), Reply::Link { ifindex, mtu, .. }) => {
                (wanted.link.info.ifindex, wanted.link.info.mtu) = (*ifindex, *mtu);
                self.want(*wanted);
            }
            (Then::Ports(key, ports), _) => {
                if let Some(entry) = self.wanted.get_mut(&key) {
                    entry.wanted.link.info.ports = ports;
                }
            }
            (then, _) => self.forget(&then),
        }
    }

    /// Everything that ought to be there.
    fn restore(&self) -> ToNet {
        let mut bridges: Vec<Bridge> = Vec::new();
        for entry in self.wanted.values() {
            if !bridges.iter().any(|bridge| bridge.name == entry.wanted.bridge.name) {
                bridges.push(entry.wanted.bridge.clone());
            }
        }
        let links = self.wanted.values().map(|entry| entry.wanted.link.clone()).collect();
        ToNet::Restore { bridges, links }
    }

    /// Sends an order. The answer is waited for without the lock.
    fn send(
        &mut self,
        order: Order,
        fds: &[BorrowedFd<'_>],
        then: Then,
    ) -> Result<(OrderId, u64), HelperError> {
        let line = self.line.clone().ok_or(HelperError::Away)?;
        self.last += 1;
        let id = OrderId(self.last);
        let bytes = cgrant_wire::encode(&ToNet::Order { id, order }).map_err(|_| HelperError::Nonsense)?;
        line.channel.send(&bytes, fds).map_err(|error| {
            tracing::warn!(%error, "an order can't be given to the network helper");
            HelperError::Away
        })?;
        self.pending.insert(id, Pending { then, answer: None });
        Ok((id, self.generation))
    }
}

/// What the helper said that is the main thread's to deal with.
#[derive(Debug)]
pub enum News {
    /// A link is gone.
    Gone {
        /// Which.
        key: LinkKey,
        /// Which of this name.
        edition: u64,
        /// By its far end?
        far_end: bool,
    },
    /// Published ports of a link are somebody else's now.
    PortsLost {
        /// Which link.
        key: LinkKey,
        /// Which of this name.
        edition: u64,
        /// Its ports that are lost.
        ports: Vec<PublishedPort>,
    },
    /// Nothing more for now.
    Drained,
    /// The helper is gone or has to go.
    Ended,
}

/// The helper, whether there is one at the moment or not.
#[derive(Default)]
pub struct Helper {
    state: Mutex<State>,
    changed: Condvar,
}

impl Helper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper was started: it is told what ought to be there, before any order. `watch` is the entry of the channel's
    /// descriptor among the watches, `number` the supervisor's of it.
    pub fn started(&self, channel: Channel, watch: u64, number: u64) {
        let mut state = self.state();
        state.generation += 1;
        state.pending.clear();
        (state.restored, state.hangs, state.stuck) = (false, false, false);
        let started = Instant::now();
        state.heard = Some(started);
        let sent = cgrant_wire::encode(&state.restore())
            .map_err(|error| error.to_string())
            .and_then(|bytes| channel.send(&bytes, &[]).map_err(|error| error.to_string()));
        if let Err(error) = sent {
            tracing::error!(error, "the network helper can't be told what ought to be there");
            let _ = rustix::net::shutdown(channel.as_fd(), rustix::net::Shutdown::Both);
        }
        tracing::info!(links = state.wanted.len(), "the network helper was started");
        state.line = Some(Arc::new(Line { channel, watch, number, started }));
        self.changed.notify_all();
    }

    /// The helper is gone, or given up. Its line, to be watched no more, and whether it hangs and is to be killed.
    pub fn ended(&self) -> Option<(Arc<Line>, bool)> {
        let mut state = self.state();
        state.generation += 1;
        state.pending.clear();
        state.restored = false;
        self.changed.notify_all();
        let hangs = std::mem::take(&mut state.hangs);
        state.line.take().map(|line| (line, hangs))
    }

    /// The helper was killed and does not end: there will be none for a while, and nobody has to wait for one.
    pub fn stuck(&self) {
        self.state().stuck = true;
        self.changed.notify_all();
    }

    /// Reads what the helper said, up to something that is to be dealt with.
    pub fn receive(&self) -> News {
        let Some(line) = self.state().line.clone() else { return News::Drained };
        loop {
            let received = match line.channel.receive() {
                Ok(Some(received)) => received,
                Ok(None) => return News::Ended,
                Err(ChannelError::WouldBlock) => return News::Drained,
                Err(error) => {
                    tracing::error!(%error, "the line to the network helper is broken");
                    return News::Ended;
                }
            };
            self.state().heard = Some(Instant::now());
            match cgrant_wire::decode::<FromNet>(&received.bytes) {
                Ok(FromNet::Answer { id, result }) => self.answered(id, result, received.fds),
                Ok(FromNet::Restored) => {
                    tracing::info!("the network is as it ought to be");
                    self.state().restored = true;
                    self.changed.notify_all();
                }
                Ok(FromNet::Event(event)) => {
                    if let Some(news) = self.event(event) {
                        return news;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the network helper sent what none of ours sends");
                    return News::Ended;
                }
            }
        }
    }

    fn answered(&self, id: OrderId, result: Result<Reply, NetFailure>, fds: Vec<OwnedFd>) {
        let mut state = self.state();
        // Nobody waits any more: the helper was given up, and the next one is told what ought to be there.
        let Some(mut pending) = state.pending.remove(&id) else { return };
        if let Ok(reply) = &result {
            let then = std::mem::replace(&mut pending.then, Then::Nothing);
            state.carried_out(then, reply);
        }
        pending.answer = Some((result, fds));
        state.pending.insert(id, pending);
        self.changed.notify_all();
    }

    fn event(&self, event: NetEvent) -> Option<News> {
        match event {
            NetEvent::LinkGone { key, far_end } => {
                let edition = self.state().wanted.get(&key).map(|entry| entry.edition)?;
                Some(News::Gone { key, edition, far_end })
            }
            NetEvent::Clash { bridge, with } => {
                tracing::warn!(
                    bridge,
                    "the host now has the network {}/{}, which is in that of the bridge; containers on it and that network can't reach each other",
                    with.address,
                    with.prefix
                );
                self.state().clashes.insert(bridge, with);
                None
            }
            NetEvent::PortsLost { key, ports } => {
                let edition = self.state().lose_ports(&key, &ports)?;
                Some(News::PortsLost { key, edition, ports })
            }
            NetEvent::Mended(what) => {
                tracing::warn!("mended: {what}");
                None
            }
        }
    }

    fn wait(
        &self,
        mut state: MutexGuard<'_, State>,
        id: OrderId,
        generation: u64,
    ) -> Result<Answer, HelperError> {
        let sent = Instant::now();
        loop {
            if let Some(answer) = state.pending.get_mut(&id).and_then(|pending| pending.answer.take()) {
                state.pending.remove(&id);
                return Ok(answer);
            }
            if state.generation != generation {
                return Err(HelperError::Away);
            }
            let now = Instant::now();
            let mut left = state.left(sent, now);
            if left.is_zero() {
                state.pending.remove(&id);
                state.cut();
                return Err(HelperError::TimedOut);
            }
            if !state.restored {
                // Only a removal is given before: it is carried out in its turn, whoever waits for it.
                left = left.min(patience::ORDER.saturating_sub(now.saturating_duration_since(sent)));
                if left.is_zero() {
                    state.pending.remove(&id);
                    return Err(HelperError::TimedOut);
                }
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn order_then(
        &self,
        order: Order,
        fds: &[BorrowedFd<'_>],
        then: Then,
    ) -> Result<(Reply, Vec<OwnedFd>), HelperError> {
        let mut state = self.state();
        let until = Instant::now() + patience::STARTING;
        while !state.restored {
            if state.stuck {
                return Err(HelperError::Stuck);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if state.line.is_some() && state.left(until, Instant::now()).is_zero() {
                    state.cut();
                }
                return Err(HelperError::Away);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (id, generation) = state.send(order, fds, then)?;
        let (result, fds) = self.wait(state, id, generation)?;
        result.map(|reply| (reply, fds)).map_err(HelperError::Refused)
    }

    /// Gives an order that changes nothing.
    ///
    /// # Errors
    /// [`HelperError`].
    pub fn ask(&self, order: Order) -> Result<Reply, HelperError> {
        Ok(self.order_then(order, &[], Then::Nothing)?.0)
    }

    /// Has a link made. Its index, the largest packet, and a tap's descriptor.
    ///
    /// # Errors
    /// [`HelperError`]; nothing remains then.
    pub fn add(
        &self,
        wanted: Wanted,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<(u32, u32, Option<OwnedFd>), HelperError> {
        let order = Order::AddLink {
            bridge: wanted.bridge.clone(),
            link: wanted.link.clone(),
            netns: netns.map(|_| cgrant_wire::FdIndex(0)),
        };
        let fds: Vec<_> = netns.into_iter().collect();
        match self.order_then(order, &fds, Then::Add(Box::new(wanted)))? {
            (Reply::Link { ifindex, mtu, tap }, mut fds) => {
                let tap = tap.map(|index| usize::from(index.0)).filter(|index| *index < fds.len());
                Ok((ifindex, mtu, tap.map(|index| fds.swap_remove(index))))
            }
            _ => Err(HelperError::Nonsense),
        }
    }

    /// Has a link given exactly these published ports.
    ///
    /// # Errors
    /// [`HelperError`]; it has those from before then.
    pub fn set_ports(&self, key: &LinkKey, ports: &[PublishedPort]) -> Result<(), HelperError> {
        let order = Order::SetPorts { key: key.clone(), ports: ports.to_vec() };
        self.order_then(order, &[], Then::Ports(key.clone(), ports.to_vec()))?;
        Ok(())
    }

    /// Has a link removed. Without a helper that is done as soon as there is one.
    ///
    /// # Errors
    /// [`HelperError::Refused`]; the link is as it was.
    pub fn remove(&self, key: &LinkKey) -> Result<(), HelperError> {
        self.remove_then(&|| (Order::RemoveLink(key.clone()), Then::Remove(key.clone())))
    }

    /// Has all links of a grant removed; as [`remove`](Self::remove).
    ///
    /// # Errors
    /// [`HelperError::Refused`].
    pub fn remove_all(&self, grant: GrantId) -> Result<(), HelperError> {
        self.remove_then(&|| (Order::RemoveLinks(grant), Then::RemoveAll(grant)))
    }

    fn remove_then(&self, what: &dyn Fn() -> (Order, Then)) -> Result<(), HelperError> {
        for _ in 0..REMOVALS {
            let mut state = self.state();
            let (order, then) = what();
            let Ok((id, generation)) = state.send(order, &[], then) else {
                // Under the same lock: the next helper is not told of it.
                state.forget(&what().1);
                return Ok(());
            };
            match self.wait(state, id, generation) {
                Ok((result, _)) => return result.map(|_| ()).map_err(HelperError::Refused),
                // The next one may have been told of the link before this order was given up.
                Err(HelperError::Away) => (),
                Err(_) => break,
            }
        }
        self.state().forget(&what().1);
        Ok(())
    }

    /// A link that was there before the engine started.
    pub fn expect(&self, wanted: Wanted) {
        self.state().want(wanted);
    }

    /// Those of the ports that the link was not given again since, if it is still the one that was meant.
    pub fn still_lost(&self, key: &LinkKey, edition: u64, lost: &[PublishedPort]) -> Vec<PublishedPort> {
        let state = self.state();
        let entry = state.wanted.get(key).filter(|entry| entry.edition == edition);
        let has =
            |port: &PublishedPort| entry.is_none_or(|entry| entry.wanted.link.info.ports.contains(port));
        lost.iter().copied().filter(|port| !has(port)).collect()
    }

    /// Forgets a link that is gone, if it is still the one that was meant.
    pub fn forget(&self, key: &LinkKey, edition: u64) -> bool {
        let mut state = self.state();
        let same = state.wanted.get(key).is_some_and(|entry| entry.edition == edition);
        if same {
            state.wanted.remove(key);
        }
        same
    }

    /// Has a link on this bridge the address on the data link layer?
    pub fn has_mac(&self, bridge: &str, mac: cgrant_wire::Mac) -> bool {
        let state = self.state();
        state
            .wanted
            .values()
            .any(|entry| entry.wanted.bridge.name == bridge && entry.wanted.link.info.mac == mac)
    }

    /// Networks of the host's that clash with those of bridges.
    pub fn clashes(&self) -> BTreeMap<String, Address<IpAddr>> {
        self.state().clashes.clone()
    }

    /// The bridge has a network now that clashes with none.
    pub fn clash_is_over(&self, bridge: &str) {
        self.state().clashes.remove(bridge);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_sys::seqpacket;
    use cgrant_wire::{LinkInfo, LinkKind, Mac, net::BridgeKind};

    use super::*;

    fn wanted(grant: u64) -> Wanted {
        let bridge =
            Bridge { name: "default".into(), device: "cgrant0".into(), kind: BridgeKind::Foreign, mtu: 1500 };
        let info = LinkInfo {
            name: "eth0".into(),
            kind: LinkKind::Veth,
            bridge: "default".into(),
            host_name: "cgv1".into(),
            ifindex: 0,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address4: None,
            address6: None,
            gateway4: None,
            gateway6: None,
            dns: Vec::new(),
            mtu: 1500,
            queue_length: 0,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: Vec::new(),
        };
        let link = Link {
            key: LinkKey { grant: GrantId(grant), name: "eth0".into() },
            account: 1000,
            host_name: "web".into(),
            names: Vec::new(),
            info,
            configure: true,
            open: false,
            any_address: false,
        };
        Wanted { bridge, link }
    }

    /// The other end of a line: answers every order with what `play` says, until it says nothing.
    fn start(helper: &Helper) -> Channel {
        let (ours, theirs) = seqpacket::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        helper.started(ours, 0, 1);
        say(&theirs, &FromNet::Restored);
        assert!(matches!(helper.receive(), News::Drained));
        theirs
    }

    fn next(theirs: &Channel) -> ToNet {
        cgrant_wire::decode(&theirs.receive().unwrap().unwrap().bytes).unwrap()
    }

    fn say(theirs: &Channel, message: &FromNet) {
        theirs.send(&cgrant_wire::encode(message).unwrap(), &[]).unwrap();
    }

    fn answer(theirs: &Channel, result: Result<Reply, NetFailure>) -> Order {
        let ToNet::Order { id, order } = next(theirs) else { panic!("no order") };
        say(theirs, &FromNet::Answer { id, result });
        order
    }

    fn restored(theirs: &Channel) -> usize {
        let ToNet::Restore { links, bridges } = next(theirs) else { panic!("no state") };
        assert_eq!(bridges.len(), usize::from(!links.is_empty()));
        links.len()
    }

    /// Reads what the helper said while another thread waits for it.
    fn pump(helper: &Helper) -> News {
        for _ in 0..2000 {
            match helper.receive() {
                News::Drained => std::thread::sleep(Duration::from_millis(5)),
                news => return news,
            }
        }
        panic!("nothing came");
    }

    const LINK: Reply = Reply::Link { ifindex: 7, mtu: 1400, tap: None };

    #[test]
    fn what_was_made_is_told_to_the_next_helper() {
        let helper = Arc::new(Helper::default());
        let first = start(&helper);
        assert_eq!(restored(&first), 0);
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.add(wanted(1), None).unwrap());
        let order = answer(&first, Ok(LINK));
        assert!(matches!(order, Order::AddLink { netns: None, .. }));
        let gone = NetEvent::LinkGone { key: wanted(1).link.key, far_end: true };
        say(&first, &FromNet::Event(gone.clone()));
        // Made and gone before the thread that waits has looked: the event is not lost.
        let News::Gone { edition, far_end: true, .. } = pump(&helper) else { panic!() };
        let (ifindex, mtu, tap) = thread.join().unwrap();
        assert_eq!((ifindex, mtu, tap.is_none()), (7, 1400, true));
        drop(first);
        assert!(matches!(pump(&helper), News::Ended));
        helper.ended();
        assert!(helper.ended().is_none());
        let second = start(&helper);
        let ToNet::Restore { links, .. } = next(&second) else { panic!() };
        assert_eq!((links[0].info.ifindex, links[0].info.mtu), (7, 1400));
        assert!(!helper.forget(&wanted(1).link.key, edition + 1), "another link of the same name");
        assert!(helper.forget(&wanted(1).link.key, edition));
        helper.ended();
        assert_eq!(restored(&start(&helper)), 0);
    }

    #[test]
    fn a_helper_that_ends_or_refuses_leaves_nothing_wanted() {
        let helper = Arc::new(Helper::default());
        let first = start(&helper);
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.add(wanted(1), None).unwrap_err());
        restored(&first);
        next(&first);
        helper.ended();
        assert!(matches!(thread.join().unwrap(), HelperError::Away));
        let second = start(&helper);
        assert_eq!(restored(&second), 0);
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.add(wanted(1), None).unwrap_err());
        let failure =
            NetFailure { code: RefusalCode::AddressInUse, message: "in use".into(), hint: "x".into() };
        answer(&second, Err(failure.clone()));
        say(&second, &FromNet::Event(NetEvent::LinkGone { key: wanted(1).link.key, far_end: true }));
        drop(second);
        assert!(matches!(pump(&helper), News::Ended), "a link that is not known can't be gone");
        let refusal = Refusal::from(thread.join().unwrap());
        assert_eq!((refusal.code, refusal.hint.as_deref()), (RefusalCode::AddressInUse, Some("x")));
    }

    #[test]
    fn a_helper_hangs_that_gives_no_sign_and_not_one_that_is_busy() {
        let helper = Helper::default();
        let _line = start(&helper);
        let now = Instant::now();
        let late = now + patience::ORDER;
        let mut state = helper.state();
        assert!(state.left(now, now) > Duration::ZERO);
        assert!(state.left(now, late).is_zero(), "no sign since the order was given");
        state.heard = Some(now + patience::ORDER / 2);
        assert!(!state.left(now, late).is_zero(), "it has answered others meanwhile");
        state.restored = false;
        assert!(!state.left(now, late).is_zero(), "it has much to do at first");
        assert!(state.left(now, now + patience::RESTORE).is_zero());
        state.cut();
        drop(state);
        assert!(matches!(helper.receive(), News::Ended));
        let (line, hangs) = helper.ended().unwrap();
        assert_eq!((line.number, hangs), (1, true));
        assert!(helper.ended().is_none());
    }

    #[test]
    fn nobody_waits_for_a_helper_that_can_not_be_ended() {
        let helper = Arc::new(Helper::default());
        helper.stuck();
        let refused = helper.ask(Order::Examine).unwrap_err();
        assert!(matches!(refused, HelperError::Stuck), "{refused}");
        helper.expect(wanted(1));
        helper.remove(&wanted(1).link.key).unwrap();
        let line = start(&helper);
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.ask(Order::Examine));
        assert_eq!(restored(&line), 0);
        answer(&line, Ok(Reply::Done));
        drop(line);
        pump(&helper);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn ports_that_were_lost_are_wanted_no_more_unless_they_were_given_again() {
        let helper = Arc::new(Helper::default());
        let tcp = cgrant_wire::Transport::Tcp;
        let port = move |host| PublishedPort { address: None, host, container: 80, transport: tcp };
        let mut with_ports = wanted(1);
        with_ports.link.info.ports = vec![port(1), port(2), port(3)];
        let key = with_ports.link.key.clone();
        helper.expect(with_ports);
        let line = start(&helper);
        restored(&line);
        let lost = vec![port(1), port(2)];
        say(&line, &FromNet::Event(NetEvent::PortsLost { key: key.clone(), ports: lost.clone() }));
        let News::PortsLost { edition, ports, .. } = helper.receive() else { panic!() };
        assert_eq!(helper.still_lost(&key, edition, &ports), lost);
        assert_eq!(helper.still_lost(&key, edition + 1, &ports), [], "another link of the name");
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.set_ports(&key, &[port(2), port(3)]));
        answer(&line, Ok(Reply::Done));
        drop(line);
        pump(&helper);
        thread.join().unwrap().unwrap();
        assert_eq!(helper.still_lost(&wanted(1).link.key, edition, &ports), [port(1)]);
    }

    #[test]
    fn links_are_removed_also_without_a_helper_and_by_one_that_ends() {
        let helper = Arc::new(Helper::default());
        for grant in 1..=3 {
            helper.expect(wanted(grant));
        }
        helper.remove(&wanted(1).link.key).unwrap();
        let first = start(&helper);
        assert_eq!(restored(&first), 2);
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.remove_all(GrantId(2)));
        next(&first);
        helper.ended();
        let second = start(&helper);
        // Whoever removes may be faster than the next helper, which is then not told of the link; one that was told of it
        // is told to remove it too.
        if restored(&second) == 2 {
            let pumping = Arc::clone(&helper);
            let pump = std::thread::spawn(move || pump(&pumping));
            assert_eq!(answer(&second, Ok(Reply::Done)), Order::RemoveLinks(GrantId(2)));
            thread.join().unwrap().unwrap();
            drop(second);
            pump.join().unwrap();
        } else {
            thread.join().unwrap().unwrap();
        }
        helper.ended();
        assert_eq!(restored(&start(&helper)), 1);
    }

    #[test]
    fn ports_are_wanted_once_they_are_set() {
        let helper = Arc::new(Helper::default());
        helper.expect(wanted(1));
        let line = start(&helper);
        restored(&line);
        let port = PublishedPort {
            address: None,
            host: 8080,
            container: 80,
            transport: cgrant_wire::Transport::Tcp,
        };
        let waiting = Arc::clone(&helper);
        let thread = std::thread::spawn(move || waiting.set_ports(&wanted(1).link.key, &[port]));
        answer(&line, Ok(Reply::Done));
        drop(line);
        pump(&helper);
        thread.join().unwrap().unwrap();
        let line = start(&helper);
        let ToNet::Restore { links, .. } = next(&line) else { panic!() };
        assert_eq!(links[0].info.ports, [port]);
    }
}
