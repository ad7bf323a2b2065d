//! Ethernet frames laid out by hand, for attackers: nothing in them is checked, everything can be a lie.

use std::net::{Ipv4Addr, Ipv6Addr};

pub type Mac = [u8; 6];

pub const EVERYBODY: Mac = [0xff; 6];
pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;

/// A frame.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to.as_slice(), &from, &kind.to_be_bytes(), payload].concat();
    // Shorter ones do not exist.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The same in a VLAN.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00], &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// ARP: 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.extend(sender.0);
    packet.extend(sender.1.octets());
    packet.extend(target.0);
    packet.extend(target.1.octets());
    packet
}

/// UDP over IPv4.
pub fn udp4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> Vec<u8> {
    let udp = with_sum(UDP, &from.0.octets(), &to.0.octets(), udp(from.1, to.1, data), 6);
    ipv4(from.0, to.0, UDP, &udp)
}

/// UDP over IPv6.
pub fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), data: &[u8]) -> Vec<u8> {
    let udp = with_sum(UDP, &from.0.octets(), &to.0.octets(), udp(from.1, to.1, data), 6);
    ipv6(from.0, to.0, UDP, &udp)
}

/// The first packet of a TCP connection over IPv4.
pub fn syn4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Vec<u8> {
    let mut tcp = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    ipv4(from.0, to.0, TCP, &with_sum(TCP, &from.0.octets(), &to.0.octets(), tcp, 16))
}

/// A packet of IPv4.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A packet of IPv6; 255 hops, as neighbour discovery wants it.
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([protocol, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A message of ICMPv6: type, and what comes after the checksum.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0], rest].concat();
    ipv6(from, to, ICMP6, &with_sum(ICMP6, &from.octets(), &to.octets(), message, 2))
}

/// A neighbour solicitation: who has `target`?
pub fn solicitation(from: (Mac, Ipv6Addr), to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let option = [&[1, 1], from.0.as_slice()].concat();
    icmp6(from.1, to, 135, &[&[0; 4], target.octets().as_slice(), &option].concat())
}

/// A neighbour advertisement: `target` is at `mac`, whatever was known before.
pub fn advertisement(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let option = [&[2, 1], mac.as_slice()].concat();
    icmp6(from, to, 136, &[&[0x20, 0, 0, 0], target.octets().as_slice(), &option].concat())
}

/// A router advertisement: be my client for half an hour, and make yourself an address in 2001:db8:bad::/64.
pub fn router_advertisement(from: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut rest = vec![64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    rest.extend([1, 1]);
    rest.extend(mac);
    rest.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    rest.extend("2001:db8:bad::".parse::<Ipv6Addr>().unwrap().octets());
    icmp6(from, ALL_NODES, 134, &rest)
}

/// A redirect: what goes to `destination` shall go to `target`.
pub fn redirect6(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    icmp6(from, to, 137, &[&[0; 4], target.octets().as_slice(), &destination.octets()].concat())
}

/// An ICMP redirect of IPv4.
pub fn redirect4(from: Ipv4Addr, to: Ipv4Addr, gateway: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![5, 1, 0, 0];
    message.extend(gateway.octets());
    message.extend(udp4((to, 9999), (destination, 9999), b"12345678"));
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, 1, &message)
}

pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Where all multicast to an IPv6 address of all nodes goes.
pub const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// The link-local address that a MAC gives.
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// Is `needle` somewhere in one of the frames?
pub fn any_contains(frames: &[Vec<u8>], needle: &[u8]) -> bool {
    frames.iter().any(|frame| frame.windows(needle.len()).any(|window| window == needle))
}

fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let mut packet = [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    packet.extend(data);
    packet
}

// Puts the checksum over the addresses and the message into the message.
fn with_sum(protocol: u8, from: &[u8], to: &[u8], mut message: Vec<u8>, at: usize) -> Vec<u8> {
    let mut pseudo = [from, to].concat();
    pseudo.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(&message);
    let sum = checksum(&pseudo);
    message[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    message
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
