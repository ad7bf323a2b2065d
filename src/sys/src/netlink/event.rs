//! What changes in a network namespace, told by the kernel as it happens.
//!
//! Nothing here waits: `next` gives `None` when there is nothing more for now. The kernel keeps only so much for
//! a reader that is slow; what it had to drop is told as an overrun, and then all has to be looked at anew.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::{
    AddressState, LinkState, RouteState,
    attribute::{attributes, find, text, u32_of},
    socket::{LARGEST, borrow, receive},
};

/// `NFTA_TABLE_NAME`, which is also the number of the table's name in what is about chains, rules, sets and objects.
const TABLE: u16 = 1;

/// `NFTA_GEN_*`.
mod generation {
    pub const ID: u16 = 1;
    pub const PROCESS_ID: u16 = 2;
    pub const PROCESS_NAME: u16 = 3;
}

/// `struct nfgenmsg`: family, version, resource id.
const NETFILTER_HEADER: usize = 4;

/// Something happened in the network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A device was made or changed; this is how it is now. Of one that is down not everything is told: not its alias.
    Link(LinkState),
    /// A device is gone; this is how it was.
    LinkGone(LinkState),
    /// A device has a new address, or an address changed.
    Address(AddressState),
    /// An address is gone.
    AddressGone(AddressState),
    /// There is a new route.
    Route(RouteState),
    /// A route is gone. Those that went with their device are not told.
    RouteGone(RouteState),
    /// Some events were lost.
    Overrun,
}

/// Something changed in nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftEvent {
    /// Something in a table was added, changed or deleted.
    Changed {
        /// `NFPROTO_*`: which family's table.
        family: u8,
        /// The table's name.
        table: String,
        /// Which `NFT_MSG_*` this is.
        message: u16,
        /// The netlink port of who did it.
        port: u32,
    },
    /// A transaction is complete; what it changed was told before.
    Generation {
        /// Number of the state that holds now.
        id: u32,
        /// The process that did it, as the initial pid namespace numbers it. It may be gone.
        pid: u32,
        /// That process's name.
        process: String,
    },
    /// Some events were lost.
    Overrun,
}

/// A socket that hears of devices, addresses and routes.
#[derive(Debug)]
pub struct RouteEvents(Listener<Event>);

/// A socket that hears of changes to nftables.
#[derive(Debug)]
pub struct NftEvents(Listener<NftEvent>);

#[derive(Debug)]
struct Listener<E> {
    socket: netlink_sys::Socket,
    buffer: Vec<u8>,
    queue: VecDeque<E>,
}

impl RouteEvents {
    /// Opens it in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of `socket(2)`, `bind(2)`, `setsockopt(2)`.
    pub fn open() -> io::Result<Self> {
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
        ];
        Ok(Self(Listener::open(NETLINK_ROUTE, &groups)?))
    }

    /// What happened next; `None` if nothing more did yet.
    ///
    /// # Errors
    /// Those of `recv(2)` but `EAGAIN` and `ENOBUFS`.
    #[expect(clippy::should_implement_trait, reason = "an iterator that has ended has no more to come")]
    pub fn next(&mut self) -> io::Result<Option<Event>> {
        self.0.next(route_event, Event::Overrun)
    }
}

impl NftEvents {
    /// Opens it in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of `socket(2)`, `bind(2)`, `setsockopt(2)`: `EPROTONOSUPPORT` without nftables in the kernel.
    pub fn open() -> io::Result<Self> {
        let group = u32::try_from(libc::NFNLGRP_NFTABLES).unwrap_or_default();
        Ok(Self(Listener::open(NETLINK_NETFILTER, &[group])?))
    }

    /// What changed next; `None` if nothing more did yet.
    ///
    /// # Errors
    /// Those of `recv(2)` but `EAGAIN` and `ENOBUFS`.
    #[expect(clippy::should_implement_trait, reason = "an iterator that has ended has no more to come")]
    pub fn next(&mut self) -> io::Result<Option<NftEvent>> {
        self.0.next(nft_event, NftEvent::Overrun)
    }
}

impl AsFd for RouteEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0.socket)
    }
}

impl AsFd for NftEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.0.socket)
    }
}

impl<E> Listener<E> {
    fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { socket, buffer: vec![0; LARGEST], queue: VecDeque::new() })
    }

    fn next(
        &mut self,
        read: impl Fn(&NetlinkBuffer<&[u8]>) -> Option<E>,
        overrun: E,
    ) -> io::Result<Option<E>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            let length = match receive(&self.socket, &mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // Lost, or too large for us: either way there is something that we do not know.
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOBUFS)
                        || error.kind() == io::ErrorKind::InvalidData =>
                {
                    return Ok(Some(overrun));
                }
                Err(error) => return Err(error),
            };
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Ok(message) = NetlinkBuffer::new_checked(rest) {
                self.queue.extend(read(&message));
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn route_event(message: &NetlinkBuffer<&[u8]>) -> Option<Event> {
    let payload = message.payload();
    match message.message_type() {
        libc::RTM_NEWLINK => LinkState::parse(payload).map(Event::Link),
        libc::RTM_DELLINK => LinkState::parse(payload).map(Event::LinkGone),
        libc::RTM_NEWADDR => AddressState::parse(payload).map(Event::Address),
        libc::RTM_DELADDR => AddressState::parse(payload).map(Event::AddressGone),
        libc::RTM_NEWROUTE => RouteState::parse(payload).map(Event::Route),
        libc::RTM_DELROUTE => RouteState::parse(payload).map(Event::RouteGone),
        _ => None,
    }
}

fn nft_event(message: &NetlinkBuffer<&[u8]>) -> Option<NftEvent> {
    let [message_kind, subsystem] = message.message_type().to_le_bytes();
    if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES {
        return None;
    }
    let payload = message.payload();
    let family = *payload.first()?;
    let list = payload.get(NETFILTER_HEADER..)?;
    if i32::from(message_kind) == libc::NFT_MSG_NEWGEN {
        let number = |kind| find(list, kind).and_then(u32_of).map(u32::from_be).unwrap_or_default();
        return Some(NftEvent::Generation {
            id: number(generation::ID),
            pid: number(generation::PROCESS_ID),
            process: find(list, generation::PROCESS_NAME).map(text).unwrap_or_default(),
        });
    }
    let (_, table) = attributes(list).find(|(kind, _)| *kind == TABLE)?;
    Some(NftEvent::Changed {
        family,
        table: text(table),
        message: u16::from(message_kind),
        port: message.port_number(),
    })
}
