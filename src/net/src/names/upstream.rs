//! The host's own name servers, which the name servers of bridges ask for everything else.
//!
//! They are read from `/etc/resolv.conf`. Where that names systemd-resolved's stub, which answers on the host's loopback
//! only, the servers behind it stand in `/run/systemd/resolve/resolv.conf`. A name server has a network
//! namespace of its own: what it can't reach from there (loopback, link-local) is left out. Source: `resolv.conf(5)`,
//! `systemd-resolved.service(8)`.

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Where every program looks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved says whom it asks.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// The directories in which those two are replaced; changes of others in them are looked at too, and change nothing.
const DIRECTORIES: [&str; 2] = ["/etc", "/run/systemd/resolve"];
/// Longest file that is read, in bytes.
const LONGEST: u64 = 64 * 1024;
/// Most servers that are asked.
const MOST: usize = 8;

/// The servers that the host asks and that can be reached from elsewhere.
pub fn servers() -> Vec<IpAddr> {
    let own = read(RESOLV_CONF).unwrap_or_default();
    let servers = if own.iter().any(IpAddr::is_loopback) { read(BEHIND_STUB).unwrap_or(own) } else { own };
    reachable(servers)
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

/// Those that a namespace of its own can reach, each once.
pub fn reachable(servers: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut reachable = Vec::new();
    for server in servers {
        let server = server.to_canonical();
        let is_local = match server {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if !server.is_loopback() && !server.is_unspecified() && !is_local && !reachable.contains(&server) {
            reachable.push(server);
        }
    }
    reachable.truncate(MOST);
    reachable
}

/// As the name server reads it.
pub fn render(servers: &[IpAddr]) -> String {
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
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
        assert_eq!(render(&reachable(twice)), "nameserver 192.0.2.1\n");
    }
}
