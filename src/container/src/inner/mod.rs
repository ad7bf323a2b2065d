//! The network of containers that are started in a container: a bridge beside them, and a link of each to it.
//!
//! All of it is made in the network namespace of whoever starts them, with the rights that they have there, as root of the
//! container; no other program has a part in it. What is asked for elsewhere the kernel refuses. So there is nothing that
//! the broker would have to count, and nothing left when the container ends.
//!
//! The kernel keeps the record: a device's alias says whose it is and which addresses go with it. A link ends with the network
//! namespace of its container, what is [`Kept`] for it with the last descriptor. The bridge stays for the next one.

mod bridge;
mod link;
mod ports;
mod rules;
mod subnet;

use std::{
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use cgrant_proto::Port;
use cgrant_sys::{
    NetnsFd,
    netlink::{NetlinkError, Route},
};
use ipnet::{Ipv4Net, Ipv6Net};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

pub use bridge::BRIDGE;
pub use ports::{PortError, check_ports};

/// Only root of the container can open it: others must not keep it locked.
const LOCK: &str = "/run/.cgrant-inner.lock";

/// A link that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct InnerWish<'a> {
    /// The container that it is for; nothing for one that has no name.
    pub container: &'a str,
    /// Largest packet, in bytes; what the bridge has is the most, and what it is if nothing is said.
    pub mtu: Option<u32>,
    /// Length of the transmit queue, in packets; the kernel's own if nothing is said.
    pub queue_length: Option<u32>,
    /// A fixed address, in the bridge's network.
    pub address4: Option<Ipv4Addr>,
    /// Most that it may send, in bits a second.
    pub upload: Option<u64>,
    /// Most that is sent to it, in bits a second.
    pub download: Option<u64>,
    /// Ports of the container around that lead to it.
    pub ports: &'a [Port],
}

/// What is there for a link as long as these descriptors are open: a published port, the rules of the link. They go with whoever has them
/// last, the monitor of the container.
#[derive(Debug)]
pub struct Kept {
    /// A port as it is written, or `wall`: the rules of the link itself.
    pub name: String,
    /// The descriptors, a few.
    pub descriptors: Vec<OwnedFd>,
}

/// A link of a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InnerLink {
    /// The container.
    pub container: String,
    /// Name of the device in it.
    pub name: &'static str,
    /// Its address, in the bridge's network.
    pub address4: Ipv4Net,
    /// Its IPv6 address, if the container around has IPv6.
    pub address6: Option<Ipv6Net>,
}

impl InnerLink {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let six = self.address6.map(|network| IpAddr::from(network.addr()));
        std::iter::once(IpAddr::from(self.address4.addr())).chain(six)
    }
}

/// Why a container in a container got no link.
#[derive(Debug, thiserror::Error)]
pub enum InnerError {
    /// The kernel refused a device, an address, a route or a rule.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something else that did not work.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried, and did not work.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is something else of the bridge's name.
    #[error("there is a device named {BRIDGE} already, which is no bridge of cgrant's")]
    ForeignDevice,
    /// No network is free.
    #[error("every network in {} is in use here", subnet::POOL)]
    NoNetwork,
    /// Ports can't be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A fixed address is none of the bridge's network that a container may have.
    #[error(
        "{address} is no address of containers in here: those are {first} to {last}, on the bridge {BRIDGE}"
    )]
    AddressElsewhere {
        /// The address.
        address: Ipv4Addr,
        /// The first that there is.
        first: Ipv4Addr,
        /// The last.
        last: Ipv4Addr,
    },
    /// Another one has it.
    #[error("the address is that of {}, which runs", link::whose(.by))]
    AddressTaken {
        /// Its name, if it has one.
        by: String,
    },
    /// There is none of the name.
    #[error("the container has no link to the bridge {BRIDGE}")]
    NoLink,
    /// No address is free.
    #[error("all addresses of the bridge {BRIDGE} are in use")]
    Full,
}

fn kernel(what: &'static str) -> impl FnOnce(io::Error) -> InnerError {
    move |source| InnerError::Kernel { what, source }
}

impl InnerError {
    /// Is it about what was asked for, and not about the kernel?
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Port(error) => !matches!(error, PortError::Kernel { .. }),
            Self::AddressElsewhere { .. } | Self::AddressTaken { .. } | Self::NoLink => true,
            _ => false,
        }
    }
}

/// Gives the container whose network namespace is shown a link to the bridge of this one, which is made if it is not there.
/// What is kept for it has to be by somebody who ends with the container.
///
/// The process must have one thread: it is in the container's namespace while a socket is opened there.
///
/// # Errors
/// [`InnerError`]; then there is no link.
pub fn connect(netns: BorrowedFd<'_>, wish: &InnerWish<'_>) -> Result<(InnerLink, Vec<Kept>), InnerError> {
    let shown = netns.try_clone_to_owned().map_err(kernel("the container's network namespace is lost"))?;
    let netns = NetnsFd::from_fd(shown).map_err(|error| InnerError::Kernel {
        what: "the container's network namespace is not one",
        source: io::Error::other(error),
    })?;
    let _alone = lock().map_err(kernel("its network can't be locked"))?;
    let route = Route::open().map_err(kernel("no netlink socket can be opened"))?;
    let bridge = bridge::ensure(&route)?;
    rules::set(&bridge)?;
    link::make(&route, &bridge, &netns, wish)
}

/// The links of all containers that were started here.
///
/// # Errors
/// [`InnerError`].
pub fn links() -> Result<Vec<InnerLink>, InnerError> {
    let route = Route::open().map_err(kernel("no netlink socket can be opened"))?;
    Ok(route.links()?.iter().filter_map(link::of_device).collect())
}

/// Publishes more ports for a container that runs, all or none, as long as they are kept.
///
/// # Errors
/// [`InnerError`].
pub fn publish(container: &str, wanted: &[Port]) -> Result<Vec<Kept>, InnerError> {
    let _alone = lock().map_err(kernel("its network can't be locked"))?;
    let link = links()?.into_iter().find(|link| link.container == container).ok_or(InnerError::NoLink)?;
    let route = Route::open().map_err(kernel("no netlink socket can be opened"))?;
    let bridge = bridge::ensure(&route)?;
    rules::set(&bridge)?;
    ports::publish(&bridge, &link, wanted)
}

/// The published ports of all containers that were started here, with the containers' names.
///
/// # Errors
/// [`InnerError`].
pub fn published() -> Result<Vec<(String, Port)>, InnerError> {
    ports::published()
}

/// Waits until nobody else changes the network.
fn lock() -> io::Result<File> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(LOCK)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            locked => return locked.map(|()| file).map_err(io::Error::from),
        }
    }
}
