//! Connections that are not served: closed without waiting for their peer.
//!
//! A peer can send descriptors over a connection before anybody has looked at it. In messages that nobody reads they are closed
//! with the connection, by whoever closes that, and some of them take as long as the peer likes (a TCP socket with
//! `SO_LINGER`, say). From Linux 6.16 on a listener says that its connections take no descriptors until the front wants them;
//! before, what is refused is closed by threads. A peer that keeps those busy only keeps its own refusals waiting.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    thread::JoinHandle,
};

use cgrant_sys::socket::set_pass_rights;

/// Most threads that close.
const MAX_THREADS: usize = 16;

/// The threads that close, and what none has taken yet.
#[derive(Default)]
struct Closing {
    threads: Vec<JoinHandle<()>>,
    parked: Vec<OwnedFd>,
}

/// What becomes of connections that are not served.
pub struct Refused {
    /// Can closing one wait for its peer?
    waits: bool,
    closing: Mutex<Closing>,
}

impl Refused {
    /// For the connections of these listeners.
    ///
    /// # Errors
    /// Those of `setsockopt(2)`.
    pub fn new<'fd>(listeners: impl IntoIterator<Item = &'fd OwnedFd>) -> io::Result<Self> {
        let mut waits = false;
        for listener in listeners {
            waits |= !set_pass_rights(listener, false)?;
        }
        Ok(Self { waits, closing: Mutex::default() })
    }

    /// Closes a connection.
    pub fn put_away(&self, connection: OwnedFd) {
        // The peer is told at once, and can send nothing any more.
        let _ = rustix::net::shutdown(&connection, rustix::net::Shutdown::Both);
        if !self.waits {
            return;
        }
        let mut closing = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        closing.parked.push(connection);
        closing.threads.retain(|thread| !thread.is_finished());
        if closing.threads.len() >= MAX_THREADS {
            return;
        }
        let all = std::mem::take(&mut closing.parked);
        // Without a thread the closure and what it owns are dropped here.
        if let Ok(thread) = std::thread::Builder::new().name("close".into()).spawn(move || drop(all)) {
            closing.threads.push(thread);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::{
        io::{IoSlice, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
        os::unix::net::UnixStream,
        time::{Duration, Instant},
    };

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};

    use super::*;

    /// A connection with a socket in it whose closing waits until the other one is closed.
    fn laden() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingering = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        lingering.set_nonblocking(true).unwrap();
        while lingering.write(&[0; 65536]).is_ok() {}
        lingering.set_nonblocking(false).unwrap();
        sockopt::set_socket_linger(&lingering, Some(Duration::from_secs(600))).unwrap();
        let (connection, peer) = UnixStream::pair().unwrap();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [lingering.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&peer, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        (connection.into(), other)
    }

    #[test]
    fn nobody_waits_for_a_peer_that_is_refused() {
        let refused = Refused { waits: true, closing: Mutex::default() };
        let mut others = Vec::new();
        let begin = Instant::now();
        for _ in 0..MAX_THREADS + 5 {
            let (connection, other) = laden();
            others.push(other);
            refused.put_away(connection);
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "closing waited");
        assert_eq!(refused.closing.lock().unwrap().threads.len(), MAX_THREADS);
        assert_eq!(refused.closing.lock().unwrap().parked.len(), 5);
        let waiting =
            refused.closing.lock().unwrap().threads.iter().filter(|thread| !thread.is_finished()).count();
        assert_eq!(waiting, MAX_THREADS, "closing did not wait, so this shows nothing");
        drop(others);
        let threads = std::mem::take(&mut refused.closing.lock().unwrap().threads);
        for thread in threads {
            thread.join().unwrap();
        }
        refused.put_away(UnixStream::pair().unwrap().0.into());
        assert!(refused.closing.lock().unwrap().parked.is_empty(), "what was parked is never closed");
    }
}
