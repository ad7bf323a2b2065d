//! A DHCPv6 client of the simplest kind: asks for one address, takes the first offer, prints nothing. Busybox has none in Debian.

use std::{
    net::{Ipv6Addr, SocketAddrV6},
    time::{Duration, Instant},
};

use super::{
    frames::{IPV6, Mac, ethernet, link_local, udp6},
    node::Node,
};

const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const SERVERS_MAC: Mac = [0x33, 0x33, 0, 1, 0, 2];
const TRANSACTION: [u8; 3] = [0x63, 0x67, 0x72];
// Kinds of messages.
const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REQUEST: u8 = 3;
const REPLY: u8 = 7;
// Options.
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;

/// The address that a server gives to the owner of `mac`, asked by bare frames from its link-local address; `None` if none does
/// within three seconds.
pub fn ask(node: &Node, interface: &str, mac: Mac) -> Option<Ipv6Addr> {
    let heard = node.listen(interface);
    let solicit = message(SOLICIT, mac, &[]);
    let advertised = exchange(node, interface, mac, heard, &solicit, ADVERTISE)?;
    let server = option(&advertised, SERVER_ID)?.to_vec();
    let identity = option(&advertised, IA_NA)?.to_vec();
    let request = message(REQUEST, mac, &[(SERVER_ID, server), (IA_NA, identity)]);
    let reply = exchange(node, interface, mac, heard, &request, REPLY)?;
    node.close(heard);
    let identity = option(&reply, IA_NA)?;
    let address = option(&identity[12..], IA_ADDRESS)?;
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(&address[..16]).unwrap()))
}

fn exchange(node: &Node, interface: &str, mac: Mac, heard: u32, message: &[u8], kind: u8) -> Option<Vec<u8>> {
    let own = SocketAddrV6::new(link_local(mac), 546, 0, 0);
    let packet = udp6((*own.ip(), own.port()), (SERVERS, 547), message);
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        node.send(interface, &[ethernet(SERVERS_MAC, mac, IPV6, &packet)]);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(25));
            let frames = node.heard(heard);
            // Ethernet, IPv6, UDP from port 547 to 546; then the message.
            let answer = frames.into_iter().find(|f| {
                f.len() > 66
                    && f[12..14] == [0x86, 0xdd]
                    && f[54..58] == [2, 35, 2, 34]
                    && f[62] == kind
                    && f[63..66] == TRANSACTION
            });
            if let Some(frame) = answer {
                return Some(frame[66..].to_vec());
            }
        }
    }
    None
}

fn message(kind: u8, mac: Mac, more: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(TRANSACTION);
    let identity = [&[0, 3, 0, 1], mac.as_slice()].concat();
    let mut put = |code: u16, data: &[u8]| {
        message.extend(code.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    };
    put(CLIENT_ID, &identity);
    // Elapsed time.
    put(8, &[0, 0]);
    if more.is_empty() {
        put(IA_NA, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    for (code, data) in more {
        put(*code, data);
    }
    message
}

fn option(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    while options.len() >= 4 {
        let code = u16::from_be_bytes([options[0], options[1]]);
        let length = usize::from(u16::from_be_bytes([options[2], options[3]]));
        let data = options.get(4..4 + length)?;
        if code == wanted {
            return Some(data);
        }
        options = &options[4 + length..];
    }
    None
}
