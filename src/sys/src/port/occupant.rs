//! Who has a port that we want: what `/proc/net/{tcp,tcp6,udp,udp6}` says, read in bounded pieces.
//!
//! The files show listening sockets, connections and every bound UDP socket, but no TCP socket that is bound only.
//! Source: `proc(5)`, net/ipv4/tcp_ipv4.c (`tcp4_seq_show`: listening sockets come before all others).

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::Transport;

/// How much of one file is read, in bytes: some hundred thousand sockets.
const MOST: u64 = 64 * 1024 * 1024;
/// `TCP_LISTEN` and `TCP_TIME_WAIT` (include/net/tcp_states.h).
const LISTEN: u8 = 0x0a;

/// A socket that has a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupant {
    /// What it carries.
    pub transport: Transport,
    /// Its own address.
    pub address: SocketAddr,
    /// Whose it is; 0 also for what a closed connection left behind.
    pub uid: u32,
    /// Is it a TCP socket that takes connections?
    pub listens: bool,
    /// Number of the socket; 0 for what a closed connection left behind.
    pub inode: u64,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.transport, self.listens) {
            (Transport::Tcp, true) => "a listening TCP socket",
            (Transport::Tcp, false) => "a TCP connection",
            (Transport::Udp, _) => "a UDP socket",
        };
        write!(f, "{what} at {} of uid {}", self.address, self.uid)
    }
}

/// What was seen of sockets that have one of some ports: each file is read once for all of them, when it is first asked about.
///
/// An attacker wants to keep the helper reading: he may have some hundred thousand sockets, and ask for 256 ports in one
/// request.
#[derive(Debug)]
pub struct View {
    ports: BTreeSet<u16>,
    tcp: Option<Vec<Occupant>>,
    udp: Option<Vec<Occupant>>,
}

impl View {
    /// Of these ports. Nothing is read yet.
    #[must_use]
    pub fn of(ports: BTreeSet<u16>) -> Self {
        Self { ports, tcp: None, udp: None }
    }

    /// What was read is old: the next question reads again.
    pub fn look_again(&mut self) {
        (self.tcp, self.udp) = (None, None);
    }

    /// The sockets with this port, those that listen first. Unreadable files have none: it is for the words of a refusal,
    /// which the kernel has decided by itself.
    pub fn occupants(&mut self, transport: Transport, port: u16) -> Vec<Occupant> {
        let Self { ports, tcp, udp } = self;
        let seen = match transport {
            Transport::Tcp => tcp.get_or_insert_with(|| rows(transport, ports, false)),
            Transport::Udp => udp.get_or_insert_with(|| rows(transport, ports, false)),
        };
        seen.iter().filter(|occupant| occupant.address.port() == port).copied().collect()
    }
}

/// The sockets that have one of these ports and could take what comes to it: listening TCP sockets, which costs nothing for
/// connections, however many there are, and UDP sockets.
#[must_use]
pub fn takers(transport: Transport, ports: &BTreeSet<u16>) -> Vec<Occupant> {
    if ports.is_empty() { Vec::new() } else { rows(transport, ports, transport == Transport::Tcp) }
}

/// Is the port taken only by what ended connections of a server that has ended left behind? A bound socket that does not
/// listen can't be seen and keeps its port nevertheless, or can't listen any more.
///
/// An attacker wants the connections of a server that listens no more: where the kernel did not follow them so far, the rules
/// would lead their next packet to him. So no process may have one any more. At `::1` no rule leads anywhere, and
/// connections there may be those of a proxy of ours before this one.
pub(super) fn is_only_left_over(port: u16, view: &mut View) -> bool {
    let occupants = view.occupants(Transport::Tcp, port);
    let is_rest = |occupant: &Occupant| {
        let is_led_nowhere = occupant.address.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST);
        !occupant.listens && (occupant.inode == 0 || is_led_nowhere)
    };
    !occupants.is_empty() && occupants.iter().all(is_rest)
}

fn rows(transport: Transport, ports: &BTreeSet<u16>, only_listening: bool) -> Vec<Occupant> {
    let files = match transport {
        Transport::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Transport::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let mut found = Vec::new();
    for file in files {
        if let Ok(file) = File::open(file) {
            let _ = read_rows(file, transport, ports, only_listening, &mut found);
        }
    }
    found.sort_by_key(|occupant| !occupant.listens);
    found
}

fn read_rows(
    file: impl Read,
    transport: Transport,
    ports: &BTreeSet<u16>,
    only_listening: bool,
    found: &mut Vec<Occupant>,
) -> io::Result<()> {
    let mut lines = BufReader::with_capacity(64 * 1024, file.take(MOST));
    let mut line = String::new();
    // The first line has the names of the columns.
    lines.read_line(&mut line)?;
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some(row) = parse(&line, transport) else { continue };
        if only_listening && !row.listens {
            return Ok(());
        }
        if ports.contains(&row.address.port()) {
            found.push(row);
        }
    }
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn parse(line: &str, transport: Transport) -> Option<Occupant> {
    let mut columns = line.split_ascii_whitespace();
    let (address, port) = columns.nth(1)?.split_once(':')?;
    let state = u8::from_str_radix(columns.nth(1)?, 16).ok()?;
    let uid = columns.nth(3)?.parse().ok()?;
    let inode = columns.nth(1)?.parse().ok()?;
    Some(Occupant {
        transport,
        address: SocketAddr::new(parse_address(address)?, u16::from_str_radix(port, 16).ok()?),
        uid,
        listens: transport == Transport::Tcp && state == LISTEN,
        inode,
    })
}

/// Words of 32 bits in the byte order of the host, each as a hexadecimal number.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = text.get(at.checked_mul(8)?..at.checked_add(1)?.checked_mul(8)?)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9A5C 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0
   2: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     5        0 78 1 0000000000000000 100 0 0 10 0
";

    fn read(text: &str, transport: Transport, only_listening: bool) -> Vec<Occupant> {
        let mut found = Vec::new();
        read_rows(text.as_bytes(), transport, &[8080].into(), only_listening, &mut found).unwrap();
        found
    }

    #[test]
    fn rows_are_read() {
        let all = read(TCP, Transport::Tcp, false);
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].to_string(), "a listening TCP socket at 127.0.0.1:8080 of uid 1000");
        assert_eq!((all[0].inode, all[1].listens, all[2].uid), (4242, false, 5));
        assert_eq!(all[1].to_string(), "a TCP connection at 127.0.0.1:8080 of uid 0");
        // Nothing behind the first connection is looked at, as no listening socket is there.
        assert_eq!(read(TCP, Transport::Tcp, true).len(), 1);
    }

    #[test]
    fn ipv6_and_udp_rows_are_read() {
        let text = "header\n 12: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000    42        0 9 2 0 0\n";
        let all = read(text, Transport::Udp, false);
        assert_eq!(all[0].to_string(), "a UDP socket at [::1]:8080 of uid 42");
    }

    #[test]
    fn strange_rows_are_passed_over() {
        for text in
            ["", "header", "header\nrubbish\n", "h\n 0: zz:1F90 x 0A a b c 1 0 5\n", "h\n 0: 0100007F:1F90\n"]
        {
            assert_eq!(read(text, Transport::Tcp, false), []);
        }
    }
}
