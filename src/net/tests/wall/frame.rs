//! Frames, byte by byte: those that are as they ought to be, and those that nobody ought to send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cgrant_wire::link::Mac;

/// To all.
pub const ALL: Mac = Mac([0xff; 6]);
/// To all IPv6 hosts.
pub const ALL6: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
/// All IPv6 hosts.
pub const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// IPv6 headers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const OPTIONS: u8 = 60;
/// Transports.
pub const UDP: u8 = 17;
pub const ICMP6: u8 = 58;

/// An Ethernet frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Are these the same but for what fills them up? bridge-nf-call cuts that off.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    let end = |frame: &[u8]| frame.iter().rposition(|byte| *byte != 0);
    end(one) == end(other) && one.iter().zip(other).all(|(one, other)| one == other)
}

/// An ARP packet.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(sender.0.0);
    packet.extend(sender.1.octets());
    packet.extend(target.0.0);
    packet.extend(target.1.octets());
    packet
}

/// An IPv4 packet with options; `fragment` is the offset with its flags.
pub fn ip4_with(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let words = 5 + options.len() / 4;
    let mut packet = vec![0x40 | u8::try_from(words).unwrap(), 0];
    packet.extend(u16::try_from(words * 4 + payload.len()).unwrap().to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv4 packet.
pub fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip4_with(from, to, protocol, 0, &[], payload)
}

/// An IPv6 packet; `next` is the first header after its own.
pub fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A datagram with a mark that is found again.
pub fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), [0, 24], [0, 0]].concat();
    packet.extend(b"the wall's tests");
    let sum = transport_checksum(from, to, UDP, &packet);
    packet[6..8].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// An ICMPv6 message with its checksum.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(rest);
    let sum = transport_checksum(from.into(), to.into(), ICMP6, &packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What follows the checksum of a solicitation or advertisement of a neighbour: flags, target, options.
pub fn neighbour(flags: u8, target: Ipv6Addr, options: &[&[u8]]) -> Vec<u8> {
    let mut rest = vec![flags, 0, 0, 0];
    rest.extend(target.octets());
    rest.extend(options.concat());
    rest
}

/// A link-layer address option, source (1) or target (2).
pub fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac.0].concat()
}

/// An IPv6 extension header of eight bytes before `next`.
pub fn header(kind: u8, next: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = match kind {
        HOP_BY_HOP => vec![next, 0, 5, 2, 0, 0, 1, 0],
        OPTIONS => vec![next, 0, 1, 4, 0, 0, 0, 0],
        ROUTING => vec![next, 0, 4, 0, 0, 0, 0, 0],
        FRAGMENT => vec![next, 0, 0, 0, 0, 0, 0, 7],
        AUTHENTICATION => vec![next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
        _ => panic!("no such header"),
    };
    header.extend(rest);
    header
}

/// A fragment header at `offset` bytes, with more to come.
pub fn fragment(next: u8, offset: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset | 1).to_be_bytes());
    header.extend([0, 0, 0, 9]);
    header.extend(rest);
    header
}

/// The link-local address that a MAC makes.
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let Mac([a, b, c, d, e, f]) = mac;
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    octets[2..8].fill(0);
    octets.into()
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, packet: &[u8]) -> u16 {
    let mut pseudo = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(u32::try_from(packet.len()).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(packet);
    checksum(&pseudo)
}
