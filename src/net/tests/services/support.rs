//! What the tests share.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use cgrant_net::{
    ports::{Holders, Target},
    proxy::child::ProxySettings,
};
use cgrant_sys::{Child, Clone3, Exit, privilege::become_account};
use cgrant_wire::{GrantId, PublishedPort, Transport, net::LinkKey};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};

/// The account of processes that need no rights, and another one.
pub const SERVICE: u32 = 4041;
pub const STRANGER: u32 = 4242;

pub fn holders() -> Holders {
    Holders::new(ProxySettings { uid: SERVICE, gid: SERVICE })
}

pub fn key(number: u64) -> LinkKey {
    LinkKey { grant: GrantId(number), name: "eth0".into() }
}

pub fn published(host: u16, transport: Transport) -> PublishedPort {
    PublishedPort { address: None, host, container: 80, transport }
}

pub fn target() -> Target {
    Target { account: 1000, address4: None, address6: None }
}

/// What a child says with its status.
pub fn in_child(child: impl FnOnce() -> i32) -> Exit {
    start(child).pidfd.wait().unwrap()
}

pub fn start(child: impl FnOnce() -> i32) -> Child {
    Clone3::new().spawn(child).unwrap()
}

pub fn as_stranger(child: impl FnOnce() -> i32) -> Exit {
    in_child(|| {
        become_account(STRANGER, STRANGER).unwrap();
        child()
    })
}

/// Every way in which a program could get a port, in words if one led to it.
pub fn ways_to(port: u16, addresses: &[&str]) -> Vec<String> {
    let mut ways = Vec::new();
    for address in addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()) {
        for (what, kind) in [("tcp", SocketType::STREAM), ("udp", SocketType::DGRAM)] {
            for options in 0..8 {
                let [only, reuse_address, reuse_port] = [1, 2, 4].map(|bit| options & bit != 0);
                if try_way(SocketAddr::new(address, port), kind, only, reuse_address, reuse_port).is_ok() {
                    ways.push(format!("{what} {address} {only} {reuse_address} {reuse_port}"));
                }
            }
        }
    }
    ways
}

fn try_way(
    place: SocketAddr,
    kind: SocketType,
    only: bool,
    reuse_address: bool,
    reuse_port: bool,
) -> Result<(), Errno> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if place.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, only)?;
    }
    sockopt::set_socket_reuseaddr(&socket, reuse_address)?;
    sockopt::set_socket_reuseport(&socket, reuse_port)?;
    bind(&socket, &place)?;
    if kind == SocketType::STREAM { listen(&socket, 1) } else { Ok(()) }
}

/// Tries until it is so, or fails.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A line of `/proc/PID/status`.
pub fn status(pid: u32, line: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {line}")).trim().to_owned()
}

/// The processes with this uid whose parent is this process.
pub fn children_of_own() -> Vec<u32> {
    cgrant_sys::ProcFs::open().unwrap().children(std::process::id()).unwrap()
}
