//! The socket of a router that speaks neighbour discovery on one device: hears solicitations, sends advertisements.
//!
//! Sources: `RFC 4861`, `RFC 3542`, `ipv6(7)`, `raw(7)`, `include/uapi/linux/icmpv6.h`.

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with, sockopt,
};

/// All routers of a link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What a host asks with.
const ROUTER_SOLICITATION: u8 = 133;

/// `ICMPV6_FILTER`: which types a raw socket hears.
const FILTER: libc::c_int = 1;

/// Bytes that wait in the kernel for us; what comes when they are used up is dropped.
const WAITING: usize = 16 << 10;

/// Room for the hop limit beside a datagram.
const CONTROL: usize = 64;

/// A raw ICMPv6 socket of one device and one link-local address. It hears router solicitations only.
#[derive(Debug)]
pub struct RouterSocket {
    socket: OwnedFd,
    ifindex: u32,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// Bytes of it that were put into the buffer; the rest of a longer one is lost.
    pub length: usize,
    /// Did all of it fit?
    pub is_whole: bool,
    /// Who sent it; unspecified for who has no address yet.
    pub source: Ipv6Addr,
    /// The hop limit that it came with. 255 proves that no router passed it on.
    pub hop_limit: Option<u8>,
}

impl RouterSocket {
    /// Opens one that sends from `source`, a link-local address that the device has.
    ///
    /// # Errors
    /// Those of `socket(2)` (`EAFNOSUPPORT` without IPv6, `EPERM` without `CAP_NET_RAW`), `bind(2)` (`EADDRNOTAVAIL` if the device
    /// does not have the address, `ENODEV`), `setsockopt(2)`.
    pub fn open(ifindex: u32, source: Ipv6Addr) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET6, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
        let router = Self { socket, ifindex };
        // Deaf until it is bound, or it would hear what comes in elsewhere.
        router.hear(None)?;
        sockopt::set_socket_recv_buffer_size(&router.socket, WAITING)?;
        sockopt::set_ipv6_multicast_hops(&router.socket, 255)?;
        sockopt::set_ipv6_unicast_hops(&router.socket, Some(255))?;
        sockopt::set_ipv6_multicast_loop(&router.socket, false)?;
        router.set(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &[1])?;
        bind(&router.socket, &SocketAddrV6::new(source, 0, 0, ifindex))?;
        sockopt::set_ipv6_add_membership(&router.socket, &ALL_ROUTERS, ifindex)?;
        router.hear(Some(ROUTER_SOLICITATION))?;
        Ok(router)
    }

    /// Reads one datagram, without waiting: the ICMPv6 message without the header before it. `None` if there is none.
    ///
    /// # Errors
    /// Those of `recvmsg(2)` but `EAGAIN`.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Solicitation>> {
        let mut control = [0; CONTROL];
        // SAFETY: all zeros is a value of each of these plain structs.
        let (mut sender, mut message): (libc::sockaddr_in6, libc::msghdr) = unsafe { std::mem::zeroed() };
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_name = (&raw mut sender).cast();
        message.msg_namelen = libc::socklen_t::try_from(size_of_val(&sender)).unwrap_or(0);
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = CONTROL;
        // SAFETY: the kernel writes no more than the lengths given with each of the four buffers, which outlive the call.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if length < 0 {
            let error = io::Error::last_os_error();
            let nothing = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            return if nothing { Ok(None) } else { Err(error) };
        }
        Ok(Some(Solicitation {
            length: usize::try_from(length).unwrap_or(0),
            is_whole: message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0,
            source: Ipv6Addr::from(sender.sin6_addr.s6_addr),
            hop_limit: control.get(..message.msg_controllen).and_then(hop_limit),
        }))
    }

    /// Sends an ICMPv6 message to all nodes; the kernel puts the checksum in.
    ///
    /// # Errors
    /// Those of `sendto(2)`: `ENODEV`, `ENETDOWN` …
    pub fn send_to_all(&self, message: &[u8]) -> io::Result<()> {
        let everybody = SocketAddrV6::new(ALL_NODES, 0, 0, self.ifindex);
        let sent = sendto(&self.socket, message, SendFlags::DONTWAIT, &everybody)?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Hears messages of this type only, or none.
    fn hear(&self, kind: Option<u8>) -> io::Result<()> {
        // A bit that is set blocks its type.
        let mut blocked = [u32::MAX; 8];
        if let Some(kind) = kind {
            let word = blocked.get_mut(usize::from(kind / 32)).ok_or(io::ErrorKind::InvalidInput)?;
            *word &= !(1 << (kind % 32));
        }
        self.set(libc::SOL_ICMPV6, FILTER, &blocked.map(u32::cast_signed))
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: &[libc::c_int]) -> io::Result<()> {
        let length =
            libc::socklen_t::try_from(size_of_val(value)).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel reads `length` bytes of a value that lives until the call returns.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for RouterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The hop limit in what came beside a datagram: the only thing that was asked for (`struct cmsghdr`, `cmsg(3)`).
fn hop_limit(control: &[u8]) -> Option<u8> {
    let (_, rest) = control.split_first_chunk::<{ size_of::<libc::size_t>() }>()?;
    let (level, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    let value = libc::c_int::from_ne_bytes(*rest.first_chunk()?);
    let is_it = libc::c_int::from_ne_bytes(*level) == libc::IPPROTO_IPV6
        && libc::c_int::from_ne_bytes(*kind) == libc::IPV6_HOPLIMIT;
    u8::try_from(value).ok().filter(|_| is_it)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hop_limit_is_one() {
        let beside = |level: libc::c_int, kind: libc::c_int, value: libc::c_int| {
            [&20_usize.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), &value.to_ne_bytes()]
                .concat()
        };
        let good = beside(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, 255);
        assert_eq!(hop_limit(&good), Some(255));
        assert_eq!(hop_limit(&beside(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, 256)), None);
        assert_eq!(hop_limit(&beside(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 255)), None);
        assert_eq!(hop_limit(&beside(libc::SOL_SOCKET, libc::IPV6_HOPLIMIT, 255)), None);
        for length in 0..good.len() {
            assert_eq!(hop_limit(&good[..length]), None);
        }
    }
}
