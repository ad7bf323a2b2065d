//! Queueing disciplines: how fast a device may send.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use super::{
    NetlinkError, Result, Route,
    attribute::{attributes, text, u32_at},
};

/// Least that is received at once, bytes: the kernel hands on up to 64 KiB as one packet, which would never pass a smaller limit.
const LEAST_BURST: u32 = 256 << 10;

/// Least and most bits a second that a limit can be.
pub const RATES: std::ops::RangeInclusive<u64> = 8_000..=1_000_000_000_000;

/// `struct tcmsg`: family, padding, index, handle, parent, info.
const HEADER: usize = 20;
const INDEX: usize = 4;
const HANDLE: usize = 8;
const PARENT: usize = 12;

/// `TCA_TBF_*`, `include/uapi/linux/pkt_sched.h`.
mod kind {
    pub const PARMS: u16 = 1;
    pub const RATE64: u16 = 4;
    pub const BURST: u16 = 6;
}

/// `TC_LINKLAYER_ETHERNET`: lengths count as they are, and no table of them is needed.
const ETHERNET: u8 = 1;

/// A queueing discipline of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QdiscState {
    /// Index of the device.
    pub ifindex: u32,
    /// Its kind: `tbf`, `noqueue` …
    pub kind: String,
    /// Its number on the device.
    pub handle: u32,
    /// That of its parent; `0xffff_ffff` for the root.
    pub parent: u32,
    /// Of a `tbf`, its rate in bytes a second.
    pub rate: Option<u64>,
}

impl Route {
    /// Lets a device send at most `rate` bytes a second: `burst` bytes at once after a pause, and keeping `limit` bytes
    /// that have to wait. Replaces the limit that was there.
    ///
    /// A packet longer than `burst` is never sent, so it is to be larger than the device's MTU and its header. (Longer
    /// ones that the kernel is to cut are cut before.)
    ///
    /// # Errors
    /// [`NetlinkError`]; `ENOENT` if the kernel has no `tbf`.
    pub fn add_tbf(&self, ifindex: u32, rate: u64, burst: u32, limit: u32) -> Result<()> {
        let action = "limit what a network device sends";
        if rate == 0 {
            return Err(NetlinkError::Unacceptable { action, what: "a rate of 0" });
        }
        let parameters = tbf_parameters(rate, limit);
        let mut options = vec![(kind::PARMS, parameters), (kind::BURST, burst.to_ne_bytes().to_vec())];
        if rate > u64::from(u32::MAX) {
            options.push((kind::RATE64, rate.to_ne_bytes().to_vec()));
        }
        let options =
            options.into_iter().map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value))).collect();
        let mut message = TcMessage::with_index(signed(action, ifindex)?);
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        self.socket.act(action, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes the limit, or whatever else was put at the root. -> was there anything?
    ///
    /// # Errors
    /// [`NetlinkError`] but that there is nothing.
    pub fn remove_qdisc(&self, ifindex: u32) -> Result<bool> {
        let action = "lift the limit on what a network device sends";
        let mut message = TcMessage::with_index(signed(action, ifindex)?);
        message.header.parent = TcHandle::ROOT;
        match self.socket.act(action, RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All queueing disciplines that are not built in at devices.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn qdiscs(&self) -> Result<Vec<QdiscState>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        self.socket
            .list("list the queueing disciplines", &message, |answer| QdiscState::parse(answer.payload))
    }
}

/// Rate in bytes a second, burst and queue in bytes, for a limit in bits a second.
#[must_use]
pub fn shaping(bits: u64, mtu: u32) -> (u64, u32, u32) {
    let rate = (bits / 8).max(1);
    // What comes in ten milliseconds at once, and at least two full frames.
    let least = mtu.saturating_add(64).saturating_mul(2).max(16 * 1024);
    let burst = u32::try_from(rate / 100).unwrap_or(u32::MAX).max(least);
    // A twentieth of a second may wait.
    let limit = u32::try_from(rate / 20).unwrap_or(u32::MAX).max(64 * 1024).saturating_add(burst);
    (rate, burst, limit)
}

/// Rate in bytes a second and burst in bytes, for a limit in bits a second of what a device may receive: what is more is dropped.
#[must_use]
pub fn policing(bits: u64) -> (u64, u32) {
    let rate = (bits / 8).max(1);
    (rate, u32::try_from(rate / 10).unwrap_or(u32::MAX).max(LEAST_BURST))
}

fn signed(action: &'static str, ifindex: u32) -> Result<i32> {
    i32::try_from(ifindex).map_err(|_| NetlinkError::Unacceptable { action, what: "the device's index" })
}

/// `struct tc_tbf_qopt`: the rate, no peak rate, the limit, and two times that the kernel works out itself.
fn tbf_parameters(rate: u64, limit: u32) -> Vec<u8> {
    // struct tc_ratespec: log2 of the table's cells, link layer, overhead, alignment, least length, rate.
    let mut ratespec = [0; 12];
    ratespec[1] = ETHERNET;
    let rate = u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes();
    ratespec[8..].copy_from_slice(&rate);
    [&ratespec[..], &[0; 12], &limit.to_ne_bytes(), &[0; 8]].concat()
}

impl QdiscState {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut qdisc = Self {
            ifindex: u32_at(payload, INDEX)?,
            kind: String::new(),
            handle: u32_at(payload, HANDLE)?,
            parent: u32_at(payload, PARENT)?,
            rate: None,
        };
        let mut options: &[u8] = &[];
        for (kind, value) in attributes(payload.get(HEADER..)?) {
            match kind {
                libc::TCA_KIND => qdisc.kind = text(value),
                libc::TCA_OPTIONS => options = value,
                _ => (),
            }
        }
        if qdisc.kind == "tbf" {
            qdisc.rate = tbf_rate(options);
        }
        Some(qdisc)
    }
}

fn tbf_rate(options: &[u8]) -> Option<u64> {
    let mut rate = None;
    for (kind, value) in attributes(options) {
        match kind {
            kind::PARMS => rate = rate.or(u32_at(value, 8).map(u64::from)),
            kind::RATE64 => rate = value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)),
            _ => (),
        }
    }
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_never_smaller_than_a_frame() {
        for (bits, mtu) in [(8, 1500), (1_000_000, 9000), (1_000_000, 65_535), (u64::MAX, 1500)] {
            let (rate, burst, limit) = shaping(bits, mtu);
            assert!(rate > 0 && burst > mtu + 18 && limit >= burst, "{bits} {mtu}: {rate} {burst} {limit}");
        }
        assert_eq!(shaping(8_000_000_000, 1500), (1_000_000_000, 10_000_000, 60_000_000));
    }
}
