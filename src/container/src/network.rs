//! What a container with links sees of its network beside the devices: who answers for names, its own name, and
//! that its processes may ping.
//!
//! The two files are bound over what the root has at their place, a link as well as a file. Where it has nothing
//! there is nothing to bind over, and the root is left as it is: it may be read-only, or somebody's.

use std::{
    fmt::Write,
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use cgrant_sys::mount::{move_mount, open_tree_clone};
use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::failure::{At, Step, StepFailure};

/// What the broker gave to the container's links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Servers that know names.
    pub dns: Vec<IpAddr>,
    /// The container's own addresses.
    pub addresses: Vec<IpAddr>,
}

/// Servers that the C library looks at (MAXNS, resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// Groups whose members may make ICMP sockets (icmp(7)); by default none.
const PING_GROUPS: &str = "proc/sys/net/ipv4/ping_group_range";

/// Shows it in the tree of a container, whose `/run` is mounted.
pub(crate) fn show(tree: &OwnedFd, network: &Network, hostname: &str) -> Result<(), StepFailure> {
    show_servers(tree, network)?;
    cover(tree, "etc/hosts", &hosts(&network.addresses, hostname)).at(Step::Names, "/etc/hosts")
}

/// Shows only who answers for names.
pub(crate) fn show_servers(tree: &OwnedFd, network: &Network) -> Result<(), StepFailure> {
    match network.dns.as_slice() {
        [] => Ok(()),
        servers => cover(tree, "etc/resolv.conf", &resolvers(servers)).at(Step::Names, "/etc/resolv.conf"),
    }
}

/// Lets every group of a container of `ids` ids ping; its `/proc` is mounted in the tree. Where it can't be, root still can: it has CAP_NET_RAW there.
pub(crate) fn open_ping(tree: &OwnedFd, ids: u32) {
    let range = format!("0 {}", ids.saturating_sub(1));
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(tree, PING_GROUPS, flags, Mode::empty()) {
        let _ = rustix::io::write(file, range.as_bytes());
    }
}

/// Binds a file with this text over `path`, if it is there, whose directory is looked up with the tree as root: links in it lead
/// nowhere else. The file lies in the container's `/run`, without a name.
pub(crate) fn cover(tree: &OwnedFd, path: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = match rustix::fs::openat2(tree, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place?,
    };
    const NAME: &str = "run/.cgrant";
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(tree, NAME, create, Mode::from_raw_mode(0o644))?;
    rustix::io::write(file, text.as_bytes())?;
    let mount = open_tree_clone(tree.as_fd(), Path::new(NAME), false)?;
    move_mount(mount, place, Path::new(""))?;
    Ok(rustix::fs::unlinkat(tree, NAME, AtFlags::empty())?)
}

fn resolvers(servers: &[IpAddr]) -> String {
    let mut text = String::new();
    for server in servers.iter().take(MAX_SERVERS) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

fn hosts(addresses: &[IpAddr], hostname: &str) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn files_are_as_the_c_library_reads_them() {
        let addresses: Vec<IpAddr> =
            ["10.0.0.2", "fd00::2", "10.0.0.3", "10.0.0.4"].map(|text| text.parse().unwrap()).into();
        assert_eq!(resolvers(&addresses), "nameserver 10.0.0.2\nnameserver fd00::2\nnameserver 10.0.0.3\n");
        let text = hosts(&["10.0.0.16".parse().unwrap(), "fd00::10".parse().unwrap()], "web");
        assert!(text.ends_with("10.0.0.16\tweb\nfd00::10\tweb\n"), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost"), "{text}");
    }
}
