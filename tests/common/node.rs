//! A process in a network namespace that does what the test says there: runs programs, serves and calls ports, sends
//! and hears bare frames, reads every setting of the network.
//!
//! The one side is the test's ([`Node`]), the other the test program as an agent ([`play`]). They speak in JSON with a length before it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType},
};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};

use super::{Process, agent, user::User};

/// What a conversation is carried by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carrier {
    Tcp,
    Udp,
}

pub use Carrier::{Tcp, Udp};

#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Run { words: Vec<String>, input: String },
    Background { words: Vec<String> },
    Settings,
    Serve { carrier: Carrier, at: SocketAddr },
    Bind { carrier: Carrier, at: SocketAddr, reuse: bool },
    Close { what: u32 },
    Talk { carrier: Carrier, from: Option<SocketAddr>, to: SocketAddr, milliseconds: u64 },
    Flood { to: SocketAddr, packets: u32, size: u32 },
    Echo { at: SocketAddr },
    PingPong { to: SocketAddr, rounds: u32 },
    Listen { interface: String },
    Heard { what: u32 },
    Send { interface: String, frames: Vec<Vec<u8>> },
}

#[derive(Debug, Serialize, Deserialize)]
enum Tell {
    Done,
    Thing(u32),
    Ran { status: i32, text: String },
    Text(String),
    Settings(BTreeMap<String, String>),
    Frames(Vec<Vec<u8>>),
    Nanoseconds(Vec<u64>),
    Failed(String),
}

/// A process in a network namespace. Ended, with all that it started, when dropped.
pub struct Node {
    pub process: Process,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Its user namespace.
    pub userns: OwnedFd,
    stream: RefCell<UnixStream>,
}

impl Node {
    /// Starts the test program by `command`, which ends where the role's words are to come.
    pub fn start(mut command: Command, kind: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(super::PATIENCE)).unwrap();
        command.args(["node", kind]).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let process = Process::of(&mut command);
        drop(command);
        let (line, mut fds) = agent::hear(&ours).expect("the node ended without a word");
        assert_eq!(line, "ok");
        let userns = fds.remove(1);
        Self { process, netns: fds.remove(0), userns, stream: RefCell::new(ours) }
    }

    /// A network namespace of root's: `kind` is `host` (with a /sys of its own) or `plain`.
    pub fn of_root(programs: &Path, kind: &str) -> Self {
        let mut command = Command::new(programs.join("tests"));
        command.args(["--role"]);
        Self::start(command, kind)
    }

    /// A container of a user's: a user namespace in which it is root, and a network namespace.
    pub fn container(user: &User) -> Self {
        let mut command = user.dropped();
        command.arg("role");
        Self::start(command, "container")
    }

    fn ask(&self, ask: &Ask) -> Tell {
        let mut stream = self.stream.borrow_mut();
        write_message(&mut stream, ask);
        read_message(&mut stream).unwrap_or_else(|| panic!("the node ended at {ask:?}"))
    }

    /// Runs a program; its exit status and all that it said.
    pub fn try_run(&self, words: &[&str]) -> (i32, String) {
        self.run_with(words, "")
    }

    fn run_with(&self, words: &[&str], input: &str) -> (i32, String) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        match self.ask(&Ask::Run { words, input: input.to_owned() }) {
            Tell::Ran { status, text } => (status, text),
            other => panic!("{other:?}"),
        }
    }

    /// Runs a program that has to succeed; what it said.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let (status, text) = self.try_run(words);
        assert_eq!(status, 0, "{words:?}: {text}");
        text
    }

    /// Runs a script of the shell's that has to succeed; what it said.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let (status, text) = self.run_with(&["sh", "-eu"], script);
        assert_eq!(status, 0, "{script}: {text}");
        text
    }

    /// Starts a program that runs until the node ends.
    pub fn background(&self, words: &[&str]) -> u32 {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.thing(&Ask::Background { words }).unwrap()
    }

    /// Every readable file below /proc/sys/net.
    pub fn settings(&self) -> BTreeMap<String, String> {
        match self.ask(&Ask::Settings) {
            Tell::Settings(all) => all,
            other => panic!("{other:?}"),
        }
    }

    fn thing(&self, ask: &Ask) -> Result<u32, String> {
        match self.ask(ask) {
            Tell::Thing(number) => Ok(number),
            Tell::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Serves a port from now on: who calls is told what address its call came from.
    #[track_caller]
    pub fn serve(&self, carrier: Carrier, at: &str) -> u32 {
        let at = at.parse().unwrap();
        self.thing(&Ask::Serve { carrier, at }).unwrap_or_else(|why| panic!("serving {at}: {why}"))
    }

    /// Serves TCP and UDP on a port of all addresses.
    pub fn serve_all(&self, port: u16) {
        self.serve(Tcp, &format!("[::]:{port}"));
        self.serve(Udp, &format!("[::]:{port}"));
    }

    /// Tries to take a port without serving it; the error's name if it can't be had.
    pub fn bind(&self, carrier: Carrier, at: &str, reuse: bool) -> Result<u32, String> {
        self.thing(&Ask::Bind { carrier, at: at.parse().unwrap(), reuse })
    }

    /// Gives up what was served, bound or listened to, or ends what runs in the background.
    pub fn close(&self, what: u32) {
        self.ask(&Ask::Close { what });
    }

    /// Calls a port: the address that the server says the call came from, or the error's name.
    pub fn talk(&self, carrier: Carrier, to: &str) -> Result<IpAddr, String> {
        self.talk_from(carrier, None, to, 3000).map(|address| plain(address.ip()))
    }

    /// Calls a port that must not be reached: nobody answers, however.
    #[track_caller]
    pub fn is_cut_off(&self, carrier: Carrier, to: &str) {
        let answer = self.talk_from(carrier, None, to, 150);
        assert!(answer.is_err(), "{carrier:?} to {to} was answered: {answer:?}");
    }

    /// Calls a port from an address and port of its own choice, with patience of its own.
    pub fn talk_from(
        &self,
        carrier: Carrier,
        from: Option<&str>,
        to: &str,
        milliseconds: u64,
    ) -> Result<SocketAddr, String> {
        let from = from.map(|from| from.parse().unwrap());
        match self.ask(&Ask::Talk { carrier, from, to: to.parse().unwrap(), milliseconds }) {
            Tell::Text(text) => Ok(text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))),
            Tell::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Is there an answer to one of three pings? Beside other tests one of them may come too late.
    pub fn pings(&self, to: &str) -> bool {
        (0..3).any(|_| self.try_run(&["busybox", "ping", "-c", "1", "-W", "1", to]).0 == 0)
    }

    /// Sends UDP packets as fast as it can.
    pub fn flood(&self, to: &str, packets: u32, size: u32) {
        self.ask(&Ask::Flood { to: to.parse().unwrap(), packets, size });
    }

    /// Sends back what comes by TCP, for one caller after another.
    pub fn echo(&self, at: &str) -> u32 {
        self.thing(&Ask::Echo { at: at.parse().unwrap() }).unwrap()
    }

    /// How long each of so many words took to an echo and back, in nanoseconds; the error's name if it can't be reached.
    pub fn ping_pong(&self, to: &str, rounds: u32) -> Result<Vec<u64>, String> {
        match self.ask(&Ask::PingPong { to: to.parse().unwrap(), rounds }) {
            Tell::Nanoseconds(all) => Ok(all),
            Tell::Failed(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    /// Hears from now on what comes in by an interface.
    #[track_caller]
    pub fn listen(&self, interface: &str) -> u32 {
        self.thing(&Ask::Listen { interface: interface.to_owned() }).unwrap()
    }

    /// The frames, of a bound port the packets, that were heard since it was last asked.
    pub fn heard(&self, what: u32) -> Vec<Vec<u8>> {
        match self.ask(&Ask::Heard { what }) {
            Tell::Frames(frames) => frames,
            other => panic!("{other:?}"),
        }
    }

    /// Sends frames, as they are.
    #[track_caller]
    pub fn send(&self, interface: &str, frames: &[Vec<u8>]) {
        let ask = Ask::Send { interface: interface.to_owned(), frames: frames.to_vec() };
        match self.ask(&ask) {
            Tell::Done => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The IPv4 address in an IPv6 one that stands for it.
pub fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn write_message<T: Serialize>(stream: &mut UnixStream, message: &T) {
    let bytes = serde_json::to_vec(message).unwrap();
    let mut all = u32::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
    all.extend(bytes);
    let _ = stream.write_all(&all);
}

fn read_message<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> Option<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut bytes).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap())
}

/// The agent's side.
pub fn play(kind: &str, socket: UnixStream) -> ExitCode {
    match kind {
        "host" => become_host(),
        "plain" => unshare(CloneFlags::CLONE_NEWNET).unwrap(),
        "container" => become_container(),
        // In the namespace that it was started in.
        _ => {}
    }
    let netns = fs::File::open("/proc/self/ns/net").unwrap();
    let userns = fs::File::open("/proc/self/ns/user").unwrap();
    agent::tell(&socket, "ok", &[netns.as_fd(), userns.as_fd()]);
    let mut stream = socket;
    let mut things = Things::default();
    while let Some(ask) = read_message(&mut stream) {
        let answer = things.answer(ask).unwrap_or_else(|error| Tell::Failed(error_name(&error)));
        write_message(&mut stream, &answer);
    }
    ExitCode::SUCCESS
}

// A network of its own, and a /sys that shows it and still has the cgroups.
fn become_host() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let aside = format!("/tmp/cgrant-test-cgroups-{}", std::process::id());
    fs::create_dir(&aside).unwrap();
    mount(Some("/sys/fs/cgroup"), aside.as_str(), none, MsFlags::MS_BIND | MsFlags::MS_REC, none).unwrap();
    umount2("/sys", MntFlags::MNT_DETACH).unwrap();
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
    mount(Some(aside.as_str()), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none).unwrap();
    fs::remove_dir(&aside).unwrap();
}

fn become_container() {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
}

// The symbol of an error of the kernel's, its kind otherwise.
fn error_name(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        None => format!("{:?}", error.kind()),
    }
}

enum Thing {
    Child(std::process::Child),
    // A thread that looks at the flag now and then has the socket.
    Served(Arc<Mutex<bool>>),
    Bound(OwnedFd),
    Listening(OwnedFd),
}

#[derive(Default)]
struct Things {
    next: u32,
    all: BTreeMap<u32, Thing>,
}

impl Things {
    fn keep(&mut self, thing: Thing) -> Tell {
        self.next += 1;
        self.all.insert(self.next, thing);
        Tell::Thing(self.next)
    }

    fn answer(&mut self, ask: Ask) -> std::io::Result<Tell> {
        Ok(match ask {
            Ask::Run { words, input } => run(&words, &input)?,
            Ask::Background { words } => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                self.keep(Thing::Child(command.spawn()?))
            }
            Ask::Settings => {
                let mut all = BTreeMap::new();
                read_settings(Path::new("/proc/sys/net"), &mut all);
                Tell::Settings(all)
            }
            Ask::Serve { carrier, at } => {
                let closed = Arc::new(Mutex::new(false));
                match carrier {
                    Tcp => serve_tcp(TcpListener::bind(at)?, Arc::clone(&closed)),
                    Udp => serve_udp(UdpSocket::bind(at)?, Arc::clone(&closed)),
                }
                self.keep(Thing::Served(closed))
            }
            Ask::Bind { carrier, at, reuse } => {
                let socket = socket_for(carrier, at)?;
                if reuse {
                    sockopt::set_socket_reuseaddr(&socket, true)?;
                    sockopt::set_socket_reuseport(&socket, true)?;
                }
                if at.is_ipv6() && at.ip().is_unspecified() {
                    sockopt::set_ipv6_v6only(&socket, true)?;
                }
                rustix::net::bind(&socket, &at)?;
                if carrier == Tcp {
                    rustix::net::listen(&socket, 5)?;
                }
                self.keep(Thing::Bound(socket))
            }
            Ask::Close { what } => {
                match self.all.remove(&what) {
                    Some(Thing::Child(mut child)) => {
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    Some(Thing::Served(closed)) => {
                        *closed.lock().unwrap() = true;
                        // Longer than its thread waits.
                        std::thread::sleep(Duration::from_millis(25));
                    }
                    _ => {}
                }
                Tell::Done
            }
            Ask::Talk { carrier, from, to, milliseconds } => {
                Tell::Text(talk(carrier, from, to, Duration::from_millis(milliseconds))?)
            }
            Ask::Flood { to, packets, size } => {
                let any: SocketAddr =
                    if to.is_ipv4() { "0.0.0.0:0".parse().unwrap() } else { "[::]:0".parse().unwrap() };
                let socket = UdpSocket::bind(any)?;
                for _ in 0..packets {
                    let _ = socket.send_to(&vec![b'x'; size as usize], to);
                }
                Tell::Done
            }
            Ask::Echo { at } => {
                let closed = Arc::new(Mutex::new(false));
                serve_echo(TcpListener::bind(at)?, Arc::clone(&closed));
                self.keep(Thing::Served(closed))
            }
            Ask::PingPong { to, rounds } => Tell::Nanoseconds(ping_pong(to, rounds)?),
            Ask::Listen { interface } => {
                let (socket, address) = packet_socket(&interface)?;
                nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
                sockopt::set_socket_recv_buffer_size(&socket, 4 << 20)?;
                self.keep(Thing::Listening(socket))
            }
            Ask::Heard { what } => match self.all.get(&what) {
                Some(Thing::Listening(socket)) => Tell::Frames(receive_frames(socket)),
                Some(Thing::Bound(socket)) => Tell::Frames(receive_data(socket)),
                _ => Tell::Failed("not listening".into()),
            },
            Ask::Send { interface, frames } => {
                let (socket, address) = packet_socket(&interface)?;
                for frame in frames {
                    nix::sys::socket::sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())?;
                }
                Tell::Done
            }
        })
    }
}

impl Drop for Things {
    fn drop(&mut self) {
        for thing in self.all.values_mut() {
            if let Thing::Child(child) = thing {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn run(words: &[String], input: &str) -> std::io::Result<Tell> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().unwrap().write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok(Tell::Ran { status: output.status.code().unwrap_or(-1), text: text.into_owned() })
}

fn read_settings(directory: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            read_settings(&path, all);
        } else if let Ok(text) = fs::read_to_string(&path) {
            all.insert(path.to_str().unwrap().to_owned(), text);
        }
    }
}

fn serve_tcp(listener: TcpListener, closed: Arc<Mutex<bool>>) {
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        while !*closed.lock().unwrap() {
            await_input(&listener);
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = stream.write_all(format!("{peer}\n").as_bytes());
            }
        }
    });
}

fn serve_udp(socket: UdpSocket, closed: Arc<Mutex<bool>>) {
    socket.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while !*closed.lock().unwrap() {
            await_input(&socket);
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(format!("{peer}\n").as_bytes(), peer);
            }
        }
    });
}

fn serve_echo(listener: TcpListener, closed: Arc<Mutex<bool>>) {
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        while !*closed.lock().unwrap() {
            await_input(&listener);
            while let Ok((mut stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                stream.set_nodelay(true).unwrap();
                let mut word = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut word) {
                    let _ = stream.write_all(&word[..length]);
                }
            }
        }
    });
}

fn ping_pong(to: SocketAddr, rounds: u32) -> std::io::Result<Vec<u64>> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    stream.set_nodelay(true)?;
    let mut word = [7];
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            stream.write_all(&word)?;
            stream.read_exact(&mut word)?;
            Ok(u64::try_from(start.elapsed().as_nanos()).unwrap())
        })
        .collect()
}

fn await_input(socket: impl AsFd) {
    let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    let mut poll = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
    let _ = rustix::event::poll(&mut poll, Some(&pause));
}

fn socket_for(carrier: Carrier, at: SocketAddr) -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if carrier == Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    Ok(rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?)
}

fn talk(
    carrier: Carrier,
    from: Option<SocketAddr>,
    to: SocketAddr,
    patience: Duration,
) -> std::io::Result<String> {
    use std::io::{Error, ErrorKind};
    let socket = socket_for(carrier, to)?;
    if let Some(from) = from {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &from)?;
    }
    let end = Instant::now() + patience;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    rustix::net::connect(&socket, &to)?;
    if carrier == Udp {
        rustix::net::send(&socket, b"hello", rustix::net::SendFlags::empty())?;
    }
    let mut text = Vec::new();
    let mut buffer = [0; 256];
    while !text.ends_with(b"\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left))?;
        let (length, _) = rustix::net::recv(&socket, &mut buffer[..], rustix::net::RecvFlags::empty())?;
        if length == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        text.extend(&buffer[..length]);
    }
    String::from_utf8(text).map_err(|_| Error::from(ErrorKind::InvalidData))
}

// A socket for bare frames, and the address that names the interface.
fn packet_socket(interface: &str) -> std::io::Result<(OwnedFd, LinkAddr)> {
    let socket = nix::sys::socket::socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|known| known.interface_name == interface)
        .find_map(|known| known.address.and_then(|address| address.as_link_addr().copied()));
    Ok((socket, address.ok_or(std::io::ErrorKind::NotFound)?))
}

// What came in; what the node itself sent is left out.
fn receive_frames(socket: &OwnedFd) -> Vec<Vec<u8>> {
    const OUTGOING: u8 = 4;
    let mut frames = Vec::new();
    let mut buffer = vec![0; 65536];
    while let Ok((length, from)) = nix::sys::socket::recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
        if from.is_none_or(|from| from.pkttype() != OUTGOING) {
            frames.push(buffer[..length].to_vec());
        }
    }
    frames
}

fn receive_data(socket: &OwnedFd) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 2048];
    while let Ok((length, _)) = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
        packets.push(buffer[..length].to_vec());
    }
    packets
}
