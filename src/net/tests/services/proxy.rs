//! The proxy that serves published ports on `[::1]`.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use cgrant_net::ports::{Holders, Target};
use cgrant_sys::{Exit, Pidfd, netlink::Route, pidfd::Signal};
use cgrant_wire::{PublishedPort, Transport};

use crate::{
    Test,
    support::{SERVICE, children_of_own, eventually, holders, key, published, start, status},
};

pub const TESTS: &[Test] = &[
    ("proxy::bytes_go_both_ways_and_ends_too", bytes_go_both_ways_and_ends_too),
    ("proxy::the_other_address_is_tried", the_other_address_is_tried),
    ("proxy::a_slow_reader_is_waited_for", a_slow_reader_is_waited_for),
    ("proxy::one_account_does_not_take_all", one_account_does_not_take_all),
    ("proxy::datagrams_find_their_way_back", datagrams_find_their_way_back),
    ("proxy::it_has_no_rights", it_has_no_rights),
    ("proxy::one_that_dies_is_replaced", one_that_dies_is_replaced),
    ("proxy::a_helper_that_dies_leaves_its_connections", a_helper_that_dies_leaves_its_connections),
    ("proxy::what_is_no_longer_published_is_cut", what_is_no_longer_published_is_cut),
    ("proxy::a_port_can_be_taken_up_at_once", a_port_can_be_taken_up_at_once),
    ("proxy::it_ends_with_the_last_port", it_ends_with_the_last_port),
];

const CONTAINER4: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 16);
const CONTAINER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 3, 0, 0, 0, 16);

/// The container's addresses, here on this namespace's own loopback device.
fn container() -> Target {
    let route = Route::open().unwrap();
    for (address, prefix) in [(IpAddr::from(CONTAINER4), 32), (CONTAINER6.into(), 128)] {
        // A test may ask twice.
        let _ = route.add_address(1, address, prefix, true);
    }
    Target { account: 1000, address4: Some(CONTAINER4), address6: Some(CONTAINER6) }
}

fn publish(holders: &mut Holders, transport: Transport) {
    holders.hold(&key(1), &container(), &[published(8080, transport)]).unwrap();
}

fn visit() -> TcpStream {
    let stream = TcpStream::connect((Ipv6Addr::LOCALHOST, 8080)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Answers with what it gets, in another process, until it is killed.
struct Echo(Pidfd);

impl Echo {
    fn tcp(address: impl Into<IpAddr>) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(address.into(), 80)).unwrap();
        Self(start(|| echo(&listener)).pidfd)
    }

    fn udp(address: impl Into<IpAddr>) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(address.into(), 80)).unwrap();
        Self(
            start(|| {
                let mut bytes = [0; 70_000];
                loop {
                    let (length, from) = socket.recv_from(&mut bytes).unwrap();
                    socket.send_to(&bytes[..length], from).unwrap();
                }
            })
            .pidfd,
        )
    }
}

/// In one thread, as the child of a fork has it.
fn echo(listener: &TcpListener) -> i32 {
    use rustix::event::{PollFd, PollFlags, poll};

    let mut streams: Vec<TcpStream> = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::new(listener, PollFlags::IN)];
        polled.extend(streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        poll(&mut polled, None).unwrap();
        let ready: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let mut number = 0;
        streams.retain_mut(|stream| {
            number += 1;
            !ready[number]
                || matches!(stream.read(&mut bytes), Ok(length @ 1..) if stream.write_all(&bytes[..length]).is_ok())
        });
        if ready[0] {
            streams.push(listener.accept().unwrap().0);
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.send_signal(Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}

fn says(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(answer, text.as_bytes());
    Ok(())
}

fn bytes_go_both_ways_and_ends_too() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    let server = TcpListener::bind((CONTAINER6, 80)).unwrap();
    let mut client = visit();
    let (mut inside, _) = server.accept().unwrap();
    client.write_all(b"question").unwrap();
    let mut bytes = [0; 8];
    inside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"question");
    // The client has nothing more to say, and still gets its answer.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(inside.read(&mut bytes).unwrap(), 0);
    std::thread::sleep(Duration::from_millis(50));
    let answer: Vec<u8> = (0..200_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    let writer = start(|| {
        inside.write_all(&answer).unwrap();
        inside.shutdown(Shutdown::Write).unwrap();
        0
    });
    drop(inside.try_clone());
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == answer, "{} of {} bytes", got.len(), answer.len());
    assert_eq!(writer.pidfd.wait().unwrap(), Exit::Code(0));

    // The other way round: the server ends first, and still hears.
    let mut client = visit();
    let (mut inside, _) = server.accept().unwrap();
    inside.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    client.write_all(b"last").unwrap();
    drop(client);
    let mut got = Vec::new();
    inside.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last");

    // One that is cut off is cut off on the other side.
    let client = visit();
    let (mut inside, _) = server.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    inside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(inside.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn the_other_address_is_tried() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    // Nobody is there: the client is told.
    let mut client = visit();
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let echo = Echo::tcp(CONTAINER4);
    says(&mut visit(), "by IPv4").unwrap();
    drop(echo);
    let _echo = Echo::tcp(CONTAINER6);
    says(&mut visit(), "by IPv6").unwrap();
    // Another port of the container's, for connections from now on.
    let elsewhere = PublishedPort { container: 81, ..published(8080, Transport::Tcp) };
    let mut old = visit();
    says(&mut old, "before").unwrap();
    holders.hold(&key(1), &container(), &[elsewhere]).unwrap();
    eventually("the new port", || visit().read(&mut [0; 8]).is_err());
    says(&mut old, "after").unwrap();
}

fn a_slow_reader_is_waited_for() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    let server = TcpListener::bind((CONTAINER6, 80)).unwrap();
    let mut client = visit();
    let (mut inside, _) = server.accept().unwrap();
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Nobody reads: sooner or later nothing more is taken.
    let mut written: usize = 0;
    let piece = [7; 64 * 1024];
    while let Ok(length @ 1..) = client.write(&piece) {
        written += length;
        assert!(written < 256 * 1024 * 1024);
    }
    let proxy = children_of_own()[0];
    let resident: u64 = status(proxy, "VmRSS").split(' ').next().unwrap().parse().unwrap();
    assert!(resident < 32 * 1024, "{resident} KiB for {written} bytes");
    client.shutdown(Shutdown::Write).unwrap();
    let mut read: usize = 0;
    let mut bytes = vec![0; 1024 * 1024];
    while let length @ 1.. = inside.read(&mut bytes).unwrap() {
        assert!(bytes[..length].iter().all(|byte| *byte == 7));
        read += length;
    }
    assert_eq!(read, written);
    // While it waited it used no processor time to speak of.
    let stat = std::fs::read_to_string(format!("/proc/{proxy}/stat")).unwrap();
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    assert!(ticks < 100, "{ticks} ticks");
}

fn one_account_does_not_take_all() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    let other = Target { account: 1001, ..container() };
    holders.hold(&key(2), &other, &[published(8081, Transport::Tcp)]).unwrap();
    let _echo = Echo::tcp(CONTAINER6);
    let mut clients: Vec<TcpStream> = (0..520).map(|_| visit()).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.set_nonblocking(true).unwrap();
    }
    let is_served = |client: &TcpStream| client.peek(&mut [0]).is_ok_and(|length| length == 1);
    let served = || clients.iter().filter(|client| is_served(client)).count();
    eventually("512 that are served", || served() >= 512);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(served(), 512);
    // The other account's port works.
    let mut stranger = TcpStream::connect((Ipv6Addr::LOCALHOST, 8081)).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    says(&mut stranger, "mine").unwrap();
    // Who waited gets his turn when another leaves.
    clients.drain(..8);
    eventually("those who waited", || clients.iter().all(is_served));
}

fn datagrams_find_their_way_back() {
    let mut holders = holders();
    publish(&mut holders, Transport::Udp);
    let ask = |socket: &UdpSocket, text: &[u8]| {
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut bytes = vec![0; 70_000];
        socket.send_to(text, (Ipv6Addr::LOCALHOST, 8080)).unwrap();
        let (length, from) = socket.recv_from(&mut bytes).ok()?;
        assert_eq!(from, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 8080));
        Some(bytes[..length].to_vec())
    };
    // Only IPv4 is served inside: found out by the first datagram, which is lost.
    let echo = Echo::udp(CONTAINER4);
    let client = UdpSocket::bind("[::1]:0").unwrap();
    eventually("an answer by IPv4", || ask(&client, b"four").is_some_and(|answer| answer == b"four"));
    drop(echo);
    let _echo = Echo::udp(CONTAINER6);
    let clients: HashMap<usize, UdpSocket> =
        (0..20).map(|number| (number, UdpSocket::bind("[::1]:0").unwrap())).collect();
    for (number, client) in &clients {
        let text = format!("client {number}");
        assert_eq!(ask(client, text.as_bytes()).unwrap(), text.as_bytes());
    }
    // Nothing and a lot are datagrams too.
    assert_eq!(ask(&clients[&0], b"").unwrap(), b"");
    let long = vec![9; 60_000];
    assert_eq!(ask(&clients[&1], &long).unwrap(), long);
}

fn it_has_no_rights() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    let _echo = Echo::tcp(CONTAINER6);
    says(&mut visit(), "there").unwrap();
    let proxy = children_of_own().into_iter().find(|pid| status(*pid, "Uid").starts_with("4041")).unwrap();
    let ids = [SERVICE.to_string().as_str(); 4].join("\t");
    assert_eq!((status(proxy, "Uid"), status(proxy, "Gid")), (ids.clone(), ids));
    assert_eq!(status(proxy, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(proxy, set), 16).unwrap(), 0);
    }
    assert_eq!((status(proxy, "NoNewPrivs").as_str(), status(proxy, "Seccomp").as_str()), ("1", "2"));
    // Its sockets, epoll, and the standard streams: nothing of the helper's.
    for entry in std::fs::read_dir(format!("/proc/{proxy}/fd")).unwrap() {
        let entry = entry.unwrap();
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let leads = std::fs::read_link(entry.path()).unwrap();
        let leads = leads.to_str().unwrap();
        assert!(
            number < 3 || leads.starts_with("socket:") || leads == "anon_inode:[eventpoll]",
            "{number}: {leads}"
        );
    }
}

/// As the helper's loop does.
fn let_happen(holders: &mut Holders) {
    let mut polled: Vec<_> = holders
        .descriptors()
        .into_iter()
        .map(|fd| (fd.as_raw_fd(), rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)))
        .collect();
    let (numbers, mut polled): (Vec<_>, Vec<_>) = polled.drain(..).unzip();
    let timeout = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
    assert!(rustix::event::poll(&mut polled, Some(&timeout)).unwrap() > 0, "nothing happens");
    let ready = polled.iter().position(|polled| !polled.revents().is_empty()).unwrap();
    drop(polled);
    holders.ready(numbers[ready]);
}

fn one_that_dies_is_replaced() {
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    let _echo = Echo::tcp(CONTAINER6);
    says(&mut visit(), "one").unwrap();
    for _ in 0..2 {
        let fds: Vec<_> = holders.descriptors().iter().map(AsRawFd::as_raw_fd).collect();
        let proxy =
            children_of_own().into_iter().find(|pid| status(*pid, "Uid").starts_with("4041")).unwrap();
        Pidfd::open(proxy).unwrap().send_signal(Signal::KILL).unwrap();
        let_happen(&mut holders);
        // A client waits meanwhile, the port is not free for an instant.
        let mut waiting = visit();
        let next: Vec<_> = holders.descriptors().iter().map(AsRawFd::as_raw_fd).collect();
        assert_eq!((fds.len(), next.len()), (1, 1));
        let_happen(&mut holders);
        says(&mut waiting, "waited").unwrap();
        says(&mut visit(), "another").unwrap();
    }
}

fn a_helper_that_dies_leaves_its_connections() {
    container();
    let _echo = Echo::tcp(CONTAINER6);
    let helper = start(|| {
        let mut holders = holders();
        publish(&mut holders, Transport::Tcp);
        std::thread::sleep(Duration::from_secs(60));
        drop(holders);
        0
    });
    eventually("a proxy", || TcpStream::connect((Ipv6Addr::LOCALHOST, 8080)).is_ok());
    let mut old = visit();
    says(&mut old, "before").unwrap();
    helper.pidfd.send_signal(Signal::KILL).unwrap();
    helper.pidfd.wait().unwrap();
    let mut holders = holders();
    publish(&mut holders, Transport::Tcp);
    says(&mut visit(), "with the next one").unwrap();
    says(&mut old, "still").unwrap();
    // The old proxy ends with its last connection.
    let proxies = || {
        let all = cgrant_sys::ProcFs::open().unwrap().pids().unwrap();
        let is_proxy = |pid: &u32| {
            let own = std::fs::read_link("/proc/self/ns/net").unwrap();
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.ends_with(b"--loopback-proxy\0")
                && std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespace == own)
        };
        all.into_iter().filter(is_proxy).count()
    };
    assert_eq!(proxies(), 2);
    drop(old);
    eventually("the old proxy's end", || proxies() == 1);
    assert!(holders.descriptors().iter().all(|fd| fd.as_fd().as_raw_fd() > 2));
}

fn what_is_no_longer_published_is_cut() {
    let mut holders = holders();
    let target = container();
    // Before: a child has copies of all sockets.
    let _echo = Echo::tcp(CONTAINER6);
    publish(&mut holders, Transport::Tcp);
    holders.hold(&key(2), &target, &[published(8081, Transport::Tcp)]).unwrap();
    let (mut ended, mut other) = (visit(), TcpStream::connect((Ipv6Addr::LOCALHOST, 8081)).unwrap());
    says(&mut ended, "one").unwrap();
    says(&mut other, "two").unwrap();
    holders.release(&key(1));
    assert_eq!(ended.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    eventually("refusal", || TcpStream::connect((Ipv6Addr::LOCALHOST, 8080)).is_err());
    says(&mut other, "two still").unwrap();
}

fn a_port_can_be_taken_up_at_once() {
    let mut holders = holders();
    holders.hold(&key(9), &container(), &[published(8081, Transport::Tcp)]).unwrap();
    // Longer than a predecessor is waited for.
    std::thread::sleep(Duration::from_millis(1100));
    for number in 0..100 {
        for transport in [Transport::Tcp, Transport::Udp] {
            holders.hold(&key(number % 2), &container(), &[published(8080, transport)]).unwrap();
            drop(TcpStream::connect((Ipv6Addr::LOCALHOST, 8080)));
            holders.release(&key(number % 2));
        }
    }
}

fn it_ends_with_the_last_port() {
    let mut holders = holders();
    assert_eq!((holders.descriptors().len(), children_of_own().len()), (0, 0));
    // What ::1 has no part in needs none.
    let here = PublishedPort { address: Some(Ipv4Addr::LOCALHOST.into()), ..published(8080, Transport::Tcp) };
    holders.hold(&key(1), &container(), &[here]).unwrap();
    assert_eq!(children_of_own().len(), 0);
    holders.release(&key(1));
    publish(&mut holders, Transport::Tcp);
    assert_eq!((holders.descriptors().len(), children_of_own().len()), (1, 1));
    holders.release(&key(1));
    assert_eq!((holders.descriptors().len(), children_of_own().len()), (0, 0));
}
