//! A tap device for a virtual machine, where its owner can do no harm with it.
//!
//! Who has the descriptor of a tap may change the device itself: its MAC address, say, with which it would take a
//! neighbour's address out of the table of the bridge that it is a port of. So no tap is a port of a bridge that others
//! have ports on: it lives in a network namespace of its own, beside the far end of a veth pair, and a bridge
//! with these two ports joins them. Only the descriptor keeps that namespace: when it is closed all of it is gone.

use std::os::fd::OwnedFd;

use cgrant_sys::{NetnsFd, netlink::Route, tap::open_tap};
use nix::sched::{CloneFlags, unshare};

use crate::{
    failure::{Failure, kernel},
    fault::Fault,
    sysctl,
};

/// Names inside the namespace, where nobody else is.
const TAP: &str = "tap";
const BRIDGE: &str = "bridge";
/// The far end of the veth pair.
pub const PORT: &str = "port";
/// The alias of what is inside.
const ALIAS: &str = "cgrant tap";

/// A tap that is not joined to anything yet.
pub struct Tap {
    /// Its descriptor: frames, each with a `virtio_net_hdr` before it.
    pub descriptor: OwnedFd,
    /// Where it lives.
    pub netns: NetnsFd,
}

/// The address of a device that only helps another one with this address.
pub fn helper_mac(mac: [u8; 6], number: u8) -> [u8; 6] {
    let [first, rest @ ..] = mac;
    let [a, b, c, d, e] = rest;
    // Neither the bit for groups nor that for local administration.
    [first ^ (number << 2), a, b, c, d, e]
}

/// Leads back into the namespace that it names when it is dropped, on a panic as well.
struct WayBack(NetnsFd);

impl Drop for WayBack {
    fn drop(&mut self) {
        if self.0.enter().is_err() {
            // Everything else would be done in the wrong place.
            std::process::abort();
        }
    }
}

impl Tap {
    /// Makes a network namespace with a tap in it.
    ///
    /// # Errors
    /// [`Failure::NoTaps`], [`Failure::Kernel`].
    pub fn make() -> Result<Self, Failure> {
        let back = WayBack(NetnsFd::own().map_err(kernel("cannot find the network namespace"))?);
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| kernel("cannot make a network namespace")(errno.into()))?;
        // Nobody in there has anything to say himself. A kernel without IPv6 says nothing anyway.
        let _ = sysctl::write("ipv6/conf/default/disable_ipv6", "1");
        let made = NetnsFd::own()
            .map_err(kernel("cannot find the network namespace"))
            .and_then(|netns| Ok(Self { descriptor: open_tap(TAP, true).map_err(Failure::NoTaps)?, netns }));
        drop(back);
        made
    }

    /// Joins it to the far end of a pair, which was born in its namespace under the name [`PORT`].
    ///
    /// # Errors
    /// Those of netlink.
    pub fn join(&self, mac: [u8; 6], mtu: u32, queue_length: u32, fault: &Fault) -> Result<(), Failure> {
        let inside = Route::open_in(&self.netns).map_err(kernel("cannot open a socket beside a tap"))?;
        fault.step("bridge beside the tap")?;
        let bridge = inside.add_bridge(BRIDGE, ALIAS, helper_mac(mac, 2), mtu, false)?;
        for name in [TAP, PORT] {
            let device = inside.link_by_name(name)?.ok_or(Failure::FarEndLost)?;
            fault.step("port beside the tap")?;
            inside.set_mtu(device.index, mtu)?;
            if name == TAP && queue_length != 0 {
                inside.set_queue_length(device.index, queue_length)?;
            }
            inside.set_master(device.index, Some(bridge))?;
            inside.set_up(device.index, true)?;
        }
        fault.step("bridge beside the tap up")?;
        Ok(inside.set_up(bridge, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_have_addresses_of_their_own() {
        let mac = [0x02, 1, 2, 3, 4, 5];
        let (one, two) = (helper_mac(mac, 1), helper_mac(mac, 2));
        assert_eq!((one, two), ([0x06, 1, 2, 3, 4, 5], [0x0a, 1, 2, 3, 4, 5]));
    }
}
