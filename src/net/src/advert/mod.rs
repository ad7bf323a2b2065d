//! Router advertisements on the broker's own bridges.
//!
//! They name the bridge as the router and say that addresses come from DHCP only (M and O set, no prefix with the A flag): an
//! address that a container invents can't be filtered. May touch one raw ICMPv6 socket and one timer for each
//! bridge, and the link-local address [`ROUTER`] of it.
//!
//! What a container sends is hostile: it is read into a buffer of fixed size, only looked at, and makes the
//! sender do no more than send to everybody a little earlier, at a rate that has a limit ([`pace`]). While an answer is due nothing more is read.

mod message;
mod pace;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use cgrant_sys::{
    ndisc::RouterSocket,
    netlink::{NetlinkError, Route},
    process::random_u64,
};
use cgrant_wire::link::Address;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use message::{Contents, LONGEST_SOLICITATION, advertisement, is_solicitation};
use pace::Pace;

/// The link-local address of every own bridge, which is what advertisements come from. One that is known beforehand, so that rules
/// can keep containers from claiming it.
pub const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Solicitations read at a time.
const TURN: usize = 64;

/// So many that are none may come between two answers. More are a flood, in which honest ones get lost: everybody is answered.
const MOST_RUBBISH: u32 = 16;

/// Why nothing is advertised.
#[derive(Debug, thiserror::Error)]
pub enum AdvertError {
    /// The bridge's link-local address can't be set.
    #[error("cannot prepare the bridge for router advertisements")]
    Address(#[from] NetlinkError),
    /// There is no such bridge.
    #[error("there is no bridge to send router advertisements on")]
    NoBridge,
    /// The socket or the timer can't be had.
    #[error("cannot open what sends router advertisements")]
    Socket(#[from] io::Error),
    /// The domain is no name.
    #[error("the domain {0:?} is no name that can be advertised")]
    Domain(String),
}

/// What is to be advertised on a bridge.
#[derive(Debug, Clone, Copy)]
pub struct Advert<'a> {
    /// Index of the bridge's device, which is up.
    pub ifindex: u32,
    /// The host's address in the bridge's IPv6 network.
    pub network: Address<Ipv6Addr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Servers that know names, IPv6 only.
    pub dns: &'a [Ipv6Addr],
    /// Domain of names.
    pub domain: &'a str,
}

/// Sends router advertisements on own bridges.
#[derive(Debug, Default)]
pub struct Sender {
    bridges: BTreeMap<u32, Bridge>,
}

/// One bridge that is advertised.
#[derive(Debug)]
struct Bridge {
    ifindex: u32,
    socket: RouterSocket,
    timer: OwnedFd,
    pace: Pace,
    /// How many came since the last answer that are no solicitations.
    rubbish: u32,
    advertisement: Vec<u8>,
    farewell: Vec<u8>,
}

impl Sender {
    /// Sends nothing yet, and has nothing open.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Advertises a bridge from now on, or something else on it than before. Gives it the address [`ROUTER`].
    ///
    /// # Errors
    /// [`AdvertError`]; a bridge that was advertised before then still is, as before.
    pub fn start(&mut self, route: &Route, advert: &Advert<'_>) -> Result<(), AdvertError> {
        let device = route.link(advert.ifindex)?.ok_or(AdvertError::NoBridge)?;
        let contents = Contents {
            mac: device.mac,
            mtu: advert.mtu,
            network: advert.network.address,
            prefix: advert.network.prefix,
            dns: advert.dns,
            domain: advert.domain,
        };
        let whole = |ends| {
            advertisement(&contents, ends).ok_or_else(|| AdvertError::Domain(advert.domain.to_owned()))
        };
        let (advertisement, farewell) = (whole(false)?, whole(true)?);
        match route.add_address(advert.ifindex, IpAddr::V6(ROUTER), 64, true) {
            Err(error) if error.is(nix::libc::EEXIST) => (),
            other => other?,
        }
        let socket = RouterSocket::open(advert.ifindex, ROUTER)?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(io::Error::from)?;
        let now = Instant::now();
        let pace = Pace::new(now);
        let mut bridge =
            Bridge { ifindex: advert.ifindex, socket, timer, pace, rubbish: 0, advertisement, farewell };
        bridge.advertise(now)?;
        self.bridges.insert(advert.ifindex, bridge);
        Ok(())
    }

    /// Takes back what was advertised, and says no more. Nothing is done about a bridge that is not advertised.
    pub fn stop(&mut self, ifindex: u32) {
        if let Some(bridge) = self.bridges.remove(&ifindex)
            && let Err(error) = bridge.socket.send_to_all(&bridge.farewell)
        {
            // The device may be gone already.
            tracing::debug!(%error, ifindex, "the end of router advertisements was not told");
        }
    }

    /// Is this bridge advertised?
    #[must_use]
    pub fn advertises(&self, ifindex: u32) -> bool {
        self.bridges.contains_key(&ifindex)
    }

    /// What is to be watched for being readable. It changes with every [`Sender::ready`].
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = Vec::new();
        for bridge in self.bridges.values() {
            all.push(bridge.timer.as_fd());
            if !bridge.pace.is_answer_due() {
                all.push(bridge.socket.as_fd());
            }
        }
        all
    }

    /// One of [`Sender::descriptors`] is readable; of others nothing is done.
    pub fn ready(&mut self, fd: RawFd) {
        let now = Instant::now();
        let is_its = |bridge: &&mut Bridge| {
            [bridge.timer.as_fd(), bridge.socket.as_fd()].iter().any(|own| own.as_raw_fd() == fd)
        };
        let Some(bridge) = self.bridges.values_mut().find(is_its) else { return };
        let result = if bridge.timer.as_raw_fd() == fd { bridge.tick(now) } else { bridge.listen(now) };
        if let Err(error) = result {
            // A timer that can't be set is the only thing that can go wrong here, and does not.
            tracing::warn!(%error, ifindex = bridge.ifindex, "router advertisements come to an end");
        }
    }
}

impl Bridge {
    fn tick(&mut self, now: Instant) -> io::Result<()> {
        let mut expirations = [0; 8];
        // Nothing to read is an answer too: it was set anew meanwhile.
        let _ = rustix::io::read(&self.timer, &mut expirations);
        if self.pace.is_due(now) { self.advertise(now) } else { self.set_timer(now) }
    }

    /// What an attacker could want: to keep the helper busy, or to push out what others ask. Good or bad, no more is read than a few
    /// until the next answer, and answers have a rate; and the answer goes to everybody, also to those whose question was lost.
    fn listen(&mut self, now: Instant) -> io::Result<()> {
        if !self.read_all() {
            return Ok(());
        }
        self.pace.solicited(now);
        if self.pace.is_due(now) { self.advertise(now) } else { self.set_timer(now) }
    }

    /// Reads what is there, up to a limit. -> is an answer needed?
    fn read_all(&mut self) -> bool {
        let mut buffer = [0; LONGEST_SOLICITATION];
        let mut is_asked = false;
        for _ in 0..TURN {
            match self.socket.receive(&mut buffer) {
                Ok(Some(received)) => {
                    let message = buffer.get(..received.length).unwrap_or_default();
                    let is_good = received.is_whole
                        && received.hop_limit == Some(255)
                        && is_solicitation(message, received.source);
                    is_asked |= is_good;
                    self.rubbish = self.rubbish.saturating_add(u32::from(!is_good));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, ifindex = self.ifindex, "a router solicitation was not read");
                    break;
                }
            }
        }
        is_asked || self.rubbish > MOST_RUBBISH
    }

    /// A device that is down or gone is no failure: whoever watches devices will see to it.
    fn advertise(&mut self, now: Instant) -> io::Result<()> {
        // Those who asked up to now are answered by this one.
        self.read_all();
        if let Err(error) = self.socket.send_to_all(&self.advertisement) {
            tracing::debug!(%error, ifindex = self.ifindex, "a router advertisement was not sent");
        }
        self.rubbish = 0;
        self.pace.sent(now, random_u64()?);
        self.set_timer(now)
    }

    fn set_timer(&self, now: Instant) -> io::Result<()> {
        // A time of zero would stop it.
        let wait = self.pace.due().saturating_duration_since(now).max(Duration::from_millis(1));
        let value = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).map_err(|_| io::ErrorKind::InvalidInput)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }
}
