//! Network devices, addresses, routes and what happens to them, by netlink, without a thread and without waiting.
//!
//! Requests are written with the types of `netlink-packet-route`. Answers are read attribute by attribute, only what is
//! needed: a name that is no text, or an attribute that a newer kernel made longer, must not keep us from
//! seeing the rest. May touch nothing but the sockets that it opens.
//!
//! Sources: `netlink(7)`, `rtnetlink(7)`, `include/uapi/linux/{netlink,rtnetlink,if_link,if_bridge,neighbour,pkt_sched}.h`.

mod address;
mod attribute;
mod error;
mod event;
mod link;
pub mod nftables;
mod port;
pub mod qdisc;
mod route;
mod socket;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

pub use address::AddressState;
pub use error::NetlinkError;
pub use event::{Event, NftEvent, NftEvents, RouteEvents};
pub use link::{LinkState, NewVeth};
pub use port::{PortFlags, PortState, VlanState};
pub use qdisc::QdiscState;
pub use route::RouteState;

use crate::{NetnsFd, privilege::thread_count};

/// What the functions here give.
pub type Result<T> = std::result::Result<T, NetlinkError>;

/// A `NETLINK_ROUTE` socket: acts in the network namespace that it was opened in, wherever its process goes.
#[derive(Debug)]
pub struct Route {
    socket: socket::Socket,
}

impl Route {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of `socket(2)`, `bind(2)`, `setsockopt(2)`: `EMFILE` …
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: socket::Socket::open()? })
    }

    /// Opens a socket in another network namespace, and is back before it returns. Aborts the process if the way
    /// back fails: whatever it did next, it would do in a namespace that a caller showed.
    ///
    /// # Errors
    /// `EBUSY` in a process with threads, as others may rely on where they are; `EPERM` without `CAP_SYS_ADMIN` here
    /// and in the owner of the namespace; those of [`Route::open`].
    pub fn open_in(netns: &NetnsFd) -> io::Result<Self> {
        in_netns(netns, Self::open)
    }
}

/// Does `act` in another network namespace, and is back before it returns: to open sockets and devices there.
/// Aborts the process if the way back fails.
///
/// # Errors
/// As [`Route::open_in`], and those of `act`.
pub fn in_netns<T>(netns: &NetnsFd, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if thread_count()? != 1 {
        return Err(rustix::io::Errno::BUSY.into());
    }
    let own = NetnsFd::own()?;
    netns.enter()?;
    let way_back = WayBack(own);
    let result = act();
    drop(way_back);
    result
}

/// Leads back when it is dropped, on a panic as well.
struct WayBack(NetnsFd);

impl Drop for WayBack {
    fn drop(&mut self) {
        if self.0.enter().is_err() {
            std::process::abort();
        }
    }
}

impl AsFd for Route {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
