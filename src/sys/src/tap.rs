//! Tap devices: Ethernet frames in and out of a descriptor.
//!
//! Source: `Documentation/networking/tuntap.rst`.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
};

/// Longest name of a device, with its NUL.
const NAME: usize = libc::IFNAMSIZ;

/// Makes a tap device of this name, down, in the network namespace of this thread, and gives the descriptor that it lives
/// in: when the last copy of it is closed, the device is gone. With `vnet_hdr` every frame has a `virtio_net_hdr` before it.
///
/// **Who has the descriptor may change the device**: make it persist (`TUNSETPERSIST`) or change its MAC address
/// (`SIOCSIFHWADDR`), which needs no right at all. As a port of a bridge it could thus take a neighbour's
/// address out of the bridge's table, so a device whose descriptor goes to a caller is to be no port of a bridge that others have
/// ports on.
///
/// # Errors
/// `ENOENT`, `ENXIO`, `ENODEV` without `/dev/net/tun`; `EBUSY` if the name is taken; `EINVAL` for a bad name or a kernel without
/// `IFF_VNET_HDR`; `EPERM` without `CAP_NET_ADMIN`.
pub fn open_tap(name: &str, vnet_hdr: bool) -> io::Result<OwnedFd> {
    if name.is_empty() || name.len() >= NAME || name.contains(['%', '/', '\0']) {
        return Err(Errno::INVAL.into());
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = openat(CWD, "/dev/net/tun", flags, Mode::empty())?;
    let mut kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    if vnet_hdr {
        kind |= libc::IFF_VNET_HDR;
    }
    let mut ifr_name = [0; NAME];
    for (place, byte) in ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    // The kernel reads sixteen bits of them, IFF_TUN_EXCL being the highest.
    let ifru_flags = libc::c_short::from_ne_bytes(u16::try_from(kind).unwrap_or_default().to_ne_bytes());
    let request = libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: the request reads a struct ifreq at the address of one that outlives the call, and writes its name there at most.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}
