//! Published ports as they are written: `[ADDRESS:]HOST:CONTAINER[/tcp|/udp]`. One reader for both sides of the
//! contract; what may be published is not said here.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Longest text that is a port: the longest IPv6 address in brackets, two numbers, a transport.
const MAX_TEXT: usize = 64;

/// What a published port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host's that leads to a port of a container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// The host's address; all of them, IPv4 and IPv6, if `None`. Never the unspecified one.
    pub address: Option<IpAddr>,
    /// The host's port, not 0.
    pub host: u16,
    /// The container's port, not 0.
    pub container: u16,
    /// What is carried.
    pub transport: Transport,
}

/// The text is no published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPort {
    /// It has another form.
    #[error(
        "a published port is written [ADDRESS:]HOST:CONTAINER[/tcp|/udp], as in 8080:80 or 127.0.0.1:5353:53/udp"
    )]
    Form,
    /// One of the two numbers is none that a port has.
    #[error("a port is a number from 1 to 65535")]
    Number,
    /// What follows the slash is neither of the two.
    #[error("a published port is /tcp or /udp")]
    Transport,
    /// What stands before the ports is no address.
    #[error("the address of a published port is an IPv4 address, or an IPv6 address in brackets")]
    Address,
    /// The unspecified address.
    #[error("leave the address out to publish on all addresses of the host")]
    Unspecified,
}

impl FromStr for Port {
    type Err = BadPort;

    fn from_str(text: &str) -> Result<Self, BadPort> {
        if text.len() > MAX_TEXT {
            return Err(BadPort::Form);
        }
        let (text, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((text, "tcp")) => (text, Transport::Tcp),
            Some((text, "udp")) => (text, Transport::Udp),
            Some(_) => return Err(BadPort::Transport),
        };
        let (rest, container) = text.rsplit_once(':').ok_or(BadPort::Form)?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(read_address(address)?), host),
            None => (None, rest),
        };
        Ok(Self { address, host: number(host)?, container: number(container)?, transport })
    }
}

fn read_address(text: &str) -> Result<IpAddr, BadPort> {
    let address = match text.strip_prefix('[') {
        Some(text) => {
            let text = text.strip_suffix(']').ok_or(BadPort::Address)?;
            text.parse::<Ipv6Addr>().map(IpAddr::V6)
        }
        None => text.parse::<Ipv4Addr>().map(IpAddr::V4),
    };
    let address = address.map_err(|_| BadPort::Address)?;
    if address.is_unspecified() { Err(BadPort::Unspecified) } else { Ok(address) }
}

/// Digits only: the standard library would take a sign.
fn number(text: &str) -> Result<u16, BadPort> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadPort::Number);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(BadPort::Number)
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host, self.container, self.transport)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let port = |address: Option<&str>, host, container, transport| Port {
            address: address.map(|address| address.parse().unwrap()),
            host,
            container,
            transport,
        };
        for (text, meant) in [
            ("8080:80", port(None, 8080, 80, Transport::Tcp)),
            ("8080:80/tcp", port(None, 8080, 80, Transport::Tcp)),
            ("127.0.0.1:5353:53/udp", port(Some("127.0.0.1"), 5353, 53, Transport::Udp)),
            ("[::1]:65535:1", port(Some("::1"), 65535, 1, Transport::Tcp)),
            ("[fd00::1]:1:65535/udp", port(Some("fd00::1"), 1, 65535, Transport::Udp)),
        ] {
            assert_eq!(text.parse(), Ok(meant), "{text}");
            assert_eq!(meant.to_string().parse(), Ok(meant), "{meant}");
        }
        assert_eq!("80:80".parse::<Port>().unwrap().to_string(), "80:80/tcp");
    }

    #[test]
    fn what_is_not_a_port_is_refused_with_the_reason() {
        for (text, why) in [
            ("", BadPort::Form),
            ("80", BadPort::Form),
            ("80/udp", BadPort::Form),
            (&"1".repeat(100), BadPort::Form),
            ("80:", BadPort::Number),
            (":80", BadPort::Number),
            ("0:80", BadPort::Number),
            ("80:0", BadPort::Number),
            ("+80:80", BadPort::Number),
            ("80:65536", BadPort::Number),
            ("80 :80", BadPort::Number),
            ("80:80/sctp", BadPort::Transport),
            ("80:80/", BadPort::Transport),
            ("80:80/tcp/tcp", BadPort::Number),
            ("localhost:80:80", BadPort::Address),
            ("::1:80:80", BadPort::Address),
            ("[::1:80:80", BadPort::Address),
            ("[127.0.0.1]:80:80", BadPort::Address),
            ("[fe80::1%eth0]:80:80", BadPort::Address),
            (":80:80", BadPort::Address),
            ("1.2.3.4:5:80:80", BadPort::Address),
            ("0.0.0.0:80:80", BadPort::Unspecified),
            ("[::]:80:80", BadPort::Unspecified),
        ] {
            assert_eq!(text.parse::<Port>(), Err(why), "{text}");
        }
    }
}
