//! Descriptors that callers send and that no operation takes: put away without touching them, closed where nobody waits.
//!
//! An attacker wants the front to wait. Closing a file of a FUSE file system waits for its server, which may be the sender,
//! for as long as it likes; not even SIGKILL ends that. So of what arrives only pidfds, user, network and mount namespaces, and
//! directories that were opened as such are kept, and over CGManager's socket only UNIX sockets. Anything else is handed to a thread that closes it, and an empty event descriptor takes its place, which the engine then refuses
//! by name. The threads that have not finished are counted to the uid; past a few it is served no more until they have.
//!
//! Closing a directory or a mount namespace waits for nobody, but the last who does may have to take apart what the sender has
//! mounted; who closes a UNIX socket last closes the descriptors in messages that nobody has received. So these are [`Pins`] too,
//! which outlive their message and are closed where nobody waits.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use cgrant_sys::{close_aside, is_open_directory, kind_of};
use rustix::net::{AddressFamily, RecvFlags, SocketType, sockopt};

/// Closings of one uid that may be under way.
const MAX_UNFINISHED: usize = 4;
/// Closings of what came over a bus, whoever sent it: the bus daemon does not say. Far fewer than the tasks that the broker may
/// have altogether (systemd's `TasksMax`), so that clients of a bus can't keep the engine from starting a thread.
const MAX_UNFINISHED_OF_BUS: usize = 32;

/// Closings of what one account sent over CGManager's socket: each of its Scm calls has one, and two sockets that were closed
/// in order take a moment. More than it can have such calls, so that nobody who does nothing wrong ever has no room.
const MAX_UNFINISHED_OF_LEGACY: usize = 128;

/// How much is read at once of what is thrown away.
const SCRATCH: usize = 4096;

/// What is being closed, by the uid that sent it.
#[derive(Debug, Clone, Default)]
pub struct Castoffs(Arc<Mutex<HashMap<u32, Vec<JoinHandle<()>>>>>);

/// Other descriptors of what came with a message and must not be closed here. To be dropped after the message.
#[derive(Debug)]
pub struct Pins {
    bin: Bin,
    fds: Vec<OwnedFd>,
}

/// A descriptor that came and is not put away.
#[derive(Debug)]
pub struct Kept {
    /// The descriptor, or the empty event descriptor in its place.
    pub fd: OwnedFd,
    /// May its last closing take a while?
    is_slow: bool,
}

/// What is being closed for one uid.
#[derive(Debug, Clone)]
pub struct Bin {
    castoffs: Castoffs,
    uid: u32,
    most: usize,
    wanted: Wanted,
}

/// What operations take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those of the broker's own interface.
    Native,
    /// CGManager's Scm calls.
    Sockets,
}

impl Castoffs {
    /// The part of `uid`.
    pub fn of(&self, uid: u32) -> Bin {
        Bin { castoffs: self.clone(), uid, most: MAX_UNFINISHED, wanted: Wanted::Native }
    }

    /// The part of an account that has come by CGManager's socket.
    pub fn of_legacy(&self, account: u32) -> Bin {
        let (uid, most) = (account, MAX_UNFINISHED_OF_LEGACY);
        Bin { castoffs: self.clone(), uid, most, wanted: Wanted::Sockets }
    }

    /// The part of a bus. Its clients share one connection: whoever makes all of these wait stops the others' calls over the bus,
    /// though nobody's over the broker's own socket.
    pub fn of_bus() -> Bin {
        let (uid, most) = (u32::MAX, MAX_UNFINISHED_OF_BUS);
        Bin { castoffs: Self::default(), uid, most, wanted: Wanted::Native }
    }
}

impl Pins {
    /// None yet; closed by `bin`.
    pub const fn new(bin: Bin) -> Self {
        Self { bin, fds: Vec::new() }
    }

    /// Adds what of these may be slow to close.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn add(&mut self, kept: &[Kept]) -> io::Result<()> {
        for Kept { fd, .. } in kept.iter().filter(|kept| kept.is_slow) {
            self.fds.push(fd.try_clone()?);
        }
        Ok(())
    }

    /// The one that there is; `None` if there are more or fewer.
    pub fn only(&self) -> Option<&OwnedFd> {
        match self.fds.as_slice() {
            [fd] => Some(fd),
            _ => None,
        }
    }

    /// All so far; none are left.
    pub fn take(&mut self) -> Self {
        Self { bin: self.bin.clone(), fds: std::mem::take(&mut self.fds) }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.bin.throw(std::mem::take(&mut self.fds));
    }
}

impl Bin {
    /// May the uid send more?
    pub fn has_room(&self) -> bool {
        let mut unfinished = self.castoffs.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(threads) = unfinished.get_mut(&self.uid) else { return true };
        threads.retain(|thread| !thread.is_finished());
        if threads.is_empty() {
            unfinished.remove(&self.uid);
            return true;
        }
        threads.len() < self.most
    }

    /// Closes all of these.
    pub fn throw(&self, fds: Vec<OwnedFd>) {
        if let Some(thread) = close_aside(fds) {
            let mut unfinished = self.castoffs.0.lock().unwrap_or_else(PoisonError::into_inner);
            unfinished.entry(self.uid).or_default().push(thread);
        }
    }

    /// Takes what is unread out of a connection that was shut down. Descriptors in unread messages are closed with the socket,
    /// by whoever drops it last, and that waits like any other closing.
    ///
    /// # Errors
    /// If no thread can be made; the socket is as it was.
    pub fn empty(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        // Without room for descriptors: they never come to be ours, and the kernel closes them in this thread.
        let discard = move || {
            let mut scratch = [0; SCRATCH];
            while rustix::net::recv(&socket, &mut scratch, RecvFlags::DONTWAIT)
                .is_ok_and(|(_, count)| count > 0)
            {}
        };
        let thread = std::thread::Builder::new().name("close".to_owned()).spawn(discard)?;
        let mut unfinished = self.castoffs.0.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.entry(self.uid).or_default().push(thread);
        Ok(())
    }

    /// Keeps what an operation may take, and puts an empty event descriptor in the place of everything else.
    ///
    /// # Errors
    /// If no event descriptor can be made; everything is being closed then.
    pub fn sift(&self, fds: Vec<OwnedFd>) -> io::Result<Vec<Kept>> {
        let (mut kept, mut thrown) = (Vec::with_capacity(fds.len()), Vec::new());
        let mut failure = None;
        for fd in fds {
            if let Some(is_slow) = self.wanted.slowness(&fd) {
                kept.push(Kept { fd, is_slow });
                continue;
            }
            thrown.push(fd);
            match rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC) {
                Ok(fd) => kept.push(Kept { fd, is_slow: false }),
                Err(error) => failure = Some(error),
            }
        }
        self.throw(thrown);
        match failure {
            None => Ok(kept),
            Some(error) => Err(error.into()),
        }
    }
}

impl Wanted {
    /// May its last closing take a while? `None` of what no operation takes.
    fn slowness(self, fd: &OwnedFd) -> Option<bool> {
        let name = kind_of(fd).unwrap_or_default();
        if self == Self::Sockets {
            return (name.starts_with("socket:[") && is_exchange(fd)).then_some(true);
        }
        match name.split_once(":[") {
            _ if name == "anon_inode:[pidfd]" => Some(false),
            Some(("user" | "net", _)) => Some(false),
            Some(("mnt", _)) => Some(true),
            _ => is_open_directory(fd).unwrap_or(false).then_some(true),
        }
    }
}

/// Is it a socket that credentials can come over?
fn is_exchange(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && matches!(sockopt::socket_type(socket), Ok(SocketType::DGRAM | SocketType::STREAM))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A socket whose closing waits for a minute unless the other end, returned too, is closed.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[0; 65536]).is_ok() {}
        let minute = Some(std::time::Duration::from_secs(60));
        sockopt::set_socket_linger(&sender, minute).unwrap();
        sender.set_nonblocking(false).unwrap();
        (sender.into(), receiver)
    }

    #[test]
    fn what_no_operation_takes_is_replaced() {
        let bin = Castoffs::default().of(7);
        let pidfd =
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty());
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let [user, net, mnt] = ["user", "net", "mnt"]
            .map(|kind| std::fs::File::open(format!("/proc/self/ns/{kind}")).unwrap().into());
        let sifted = bin.sift(vec![pidfd.unwrap(), file.into(), user, net, mnt]).unwrap();
        let names: Vec<String> = sifted.iter().map(|kept| kind_of(&kept.fd).unwrap()).collect();
        assert_eq!(names[0], "anon_inode:[pidfd]");
        assert_eq!(names[1], "anon_inode:[eventfd]");
        assert!(names[2].starts_with("user:["));
        assert!(names[3].starts_with("net:["));
        assert!(names[4].starts_with("mnt:["));
    }

    #[test]
    fn only_a_directory_that_was_opened_as_one_is_kept() {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let bin = Castoffs::default().of(7);
        let open = |flags| openat(CWD, "/proc/self", flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let flags = [OFlags::DIRECTORY, OFlags::RDONLY, OFlags::DIRECTORY | OFlags::PATH];
        let sifted = bin.sift(flags.map(open).into()).unwrap();
        let names: Vec<String> = sifted.iter().map(|kept| kind_of(&kept.fd).unwrap()).collect();
        assert!(names[0].starts_with("/proc/"), "{names:?}");
        assert_eq!(names[1..], ["anon_inode:[eventfd]"; 2]);
    }

    #[test]
    fn over_cgmanagers_socket_nothing_but_unix_sockets_is_kept() {
        use std::os::unix::net::{UnixDatagram, UnixStream};
        let bin = Castoffs::default().of_legacy(7);
        let fds = vec![
            UnixDatagram::unbound().unwrap().into(),
            UnixStream::pair().unwrap().0.into(),
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            std::fs::File::open("/proc/self/ns/user").unwrap().into(),
        ];
        let sifted = bin.sift(fds).unwrap();
        let are_sockets: Vec<_> =
            sifted.iter().map(|kept| kind_of(&kept.fd).unwrap().starts_with("socket:[")).collect();
        assert_eq!(are_sockets, [true, true, false, false]);
        let mut pins = Pins::new(bin);
        pins.add(&sifted).unwrap();
        assert!(pins.only().is_none());
        pins.take();
        pins.add(&sifted[..1]).unwrap();
        assert!(pins.only().is_some());
    }

    #[test]
    fn what_is_slow_to_close_is_closed_by_a_thread_that_is_counted() {
        let bin = Castoffs::default().of(7);
        let mut pins = Pins::new(bin.clone());
        let threads = || bin.castoffs.0.lock().unwrap().values().map(Vec::len).sum::<usize>();
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        let sifted = |fds: Vec<OwnedFd>| bin.sift(fds).unwrap();
        pins.add(&sifted(vec![open("/proc/self/ns/net"), open("/proc/self/ns/user")])).unwrap();
        drop(pins.take());
        assert_eq!(threads(), 0);
        pins.add(&sifted(vec![open("/proc/self/ns/mnt")])).unwrap();
        let taken = pins.take();
        drop(pins);
        assert_eq!(threads(), 0, "it is closed before its message");
        drop(taken);
        assert_eq!(threads(), 1);
    }

    #[test]
    fn a_uid_that_makes_us_wait_has_no_room_until_it_lets_go() {
        let (castoffs, mut others) = (Castoffs::default(), Vec::new());
        let (bin, neighbour) = (castoffs.of(7), castoffs.of(8));
        for _ in 0..MAX_UNFINISHED {
            assert!(bin.has_room());
            let (socket, other) = lingering();
            others.push(other);
            bin.sift(vec![socket]).unwrap();
        }
        assert!(!bin.has_room());
        assert!(neighbour.has_room());
        drop(others);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !bin.has_room() {
            assert!(std::time::Instant::now() < end, "the closings never end");
            std::thread::yield_now();
        }
    }
}
