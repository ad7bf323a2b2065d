//! The host's own name servers, which the name servers of bridges ask for everything else.
//!
//! They are read from `/etc/resolv.conf`. Where that names systemd-resolved's stub, which answers on the host's loopback
//! only, the servers behind it stand in `/run/systemd/resolve/resolv.conf`. A name server has a network
//! namespace of its own: another resolver on the host's loopback is reached by way of [`super::forward`], link-local
//! addresses not at all. Source: `resolv.conf(5)`,
//! `systemd-resolved.service(8)`.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Where every program looks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// systemd-resolved's stub.
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
/// The directories in which those two are replaced; changes of others in them are looked at too, and change nothing.
const DIRECTORIES: [&str; 2] = ["/etc", "/run/systemd/resolve"];
/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 * 1024;
/// Most servers that are asked.
const MOST: usize = 8;

/// Whom a name server asks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// Those that a namespace of its own can reach, each once.
    pub reachable: Vec<IpAddr>,
    /// Those on the host's loopback.
    pub local: Vec<IpAddr>,
}

/// The servers that the host asks.
pub fn servers() -> Servers {
    let own = read(RESOLV_CONF).unwrap_or_default();
    let is_stub = |server: &IpAddr| STUBS.contains(server);
    Servers::of(if own.iter().any(is_stub) { read(BEHIND_STUB).unwrap_or(own) } else { own })
}

fn read(path: &str) -> Option<Vec<IpAddr>> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(parse(&text))
}

/// Addresses with a zone (`fe80::1%eth0`) are link-local and not taken.
fn parse(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(str::split_ascii_whitespace);
    words
        .filter_map(
            |mut words| if words.next() == Some("nameserver") { words.next()?.parse().ok() } else { None },
        )
        .collect()
}

impl Servers {
    /// Sorts them. What is neither reachable nor on the loopback is left out.
    pub fn of(servers: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut sorted = Self::default();
        for server in servers {
            let server = server.to_canonical();
            let is_link_local = match server {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            let list = if server.is_loopback() { &mut sorted.local } else { &mut sorted.reachable };
            if !server.is_unspecified() && !is_link_local && !list.contains(&server) && list.len() < MOST {
                list.push(server);
            }
        }
        sorted
    }
}

/// As the name server reads it.
pub fn render<'a>(servers: impl IntoIterator<Item = &'a IpAddr>) -> String {
    servers.into_iter().map(|server| format!("nameserver {server}\n")).collect()
}

/// Readable when the host's servers may have changed.
#[derive(Debug)]
pub struct Watch(Inotify);

impl Watch {
    /// Watches from now on.
    ///
    /// # Errors
    /// Those of inotify: too many watches of this user's.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        for directory in DIRECTORIES {
            match inotify.add_watch(directory, flags) {
                // A host without systemd-resolved.
                Ok(_) | Err(nix::Error::ENOENT) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Self(inotify))
    }

    /// Takes all that is told; says whether one of the files may have changed.
    pub fn drain(&self) -> bool {
        let mut changed = false;
        while let Ok(events) = self.0.read_events() {
            changed |= events.iter().any(|event| {
                // Without a name it is about the watch itself, or something was lost.
                event.name.as_ref().is_none_or(|name| name == "resolv.conf")
            });
        }
        changed
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_servers_are_found() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 \nnameserver\n\
                    nameserver fe80::1%eth0\nnameserver 1.2.3\nnameserver 127.0.0.53\n";
        let expected: Vec<IpAddr> =
            ["192.0.2.1", "2001:db8::1", "127.0.0.53"].map(|address| address.parse().unwrap()).into();
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn what_can_not_be_reached_is_left_out() {
        let servers =
            ["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "0.0.0.0", "::ffff:127.0.0.1", "192.0.2.1"]
                .map(|address| address.parse().unwrap());
        let twice = servers.into_iter().chain(["::ffff:192.0.2.1".parse().unwrap()]);
        let servers = Servers::of(twice);
        assert_eq!(render(&servers.reachable), "nameserver 192.0.2.1\n");
        let local: Vec<IpAddr> = ["127.0.0.1", "::1"].map(|address| address.parse().unwrap()).into();
        assert_eq!(servers.local, local);
    }
}
