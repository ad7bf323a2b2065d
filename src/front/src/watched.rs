//! Descriptors in the runtime, watched for what there is to read.
//!
//! The runtime's own socket types watch both directions, so that this process wakes up for nothing each time the other side
//! takes something out of the socket. Sending seldom has to wait; the room is watched for only then, by a second descriptor.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::SendFlags;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

/// How long between two tries to send while this process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(20);

/// A descriptor that is watched.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Registers a non-blocking descriptor with the runtime.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        register(fd.into(), Interest::READABLE).map(Self)
    }

    /// Tries `attempt` whenever there is something to read, until it says something else than `WouldBlock`.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub async fn read<R>(&self, mut attempt: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        self.0.async_io(Interest::READABLE, |_| attempt()).await
    }

    /// As [`read`](Self::read), for an attempt that tells by what it found whether that `is_all` there is: the next one then waits
    /// for more, without a try.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub async fn look<R>(
        &self,
        mut attempt: impl FnMut() -> io::Result<R>,
        is_all: impl Fn(&R) -> bool,
    ) -> io::Result<R> {
        loop {
            let mut ready = self.0.readable().await?;
            let Ok(found) = ready.try_io(|_| attempt()) else { continue };
            if found.as_ref().is_ok_and(&is_all) {
                // What has come since the attempt counts as news.
                ready.clear_ready();
            }
            return found;
        }
    }

    /// Waits until there is something to read that has come since this was waited for last.
    ///
    /// # Errors
    /// If the runtime is ending.
    pub async fn news(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }

    /// Tries `attempt` at once and whenever there is room, until it says something else than `WouldBlock`.
    ///
    /// # Errors
    /// Those of `attempt`.
    pub async fn write<R>(&self, mut attempt: impl FnMut() -> io::Result<R>) -> io::Result<R> {
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let again = self.0.get_ref().try_clone().and_then(|fd| register(fd, Interest::WRITABLE));
            match again {
                Ok(room) => return room.async_io(Interest::WRITABLE, |_| attempt()).await,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

impl Watched {
    /// Sends all of `bytes` over a stream socket, without descriptors.
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = self.write(|| Ok(rustix::net::send(self, bytes, flags)?)).await?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[expect(
    deprecated,
    reason = "only for types that may give another descriptor than they own, which OwnedFd can't"
)]
fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{io::Read, os::unix::net::UnixStream};

    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_sends_when_there_is_some() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let watched = Watched::new(ours).unwrap();
        let mut sent = 0;
        let send = || Ok(rustix::net::send(&watched, &[7; 4096], SendFlags::DONTWAIT)?);
        while let Ok(count) = send() {
            sent += count;
        }
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all.len())
        });
        sent += tokio::time::timeout(Duration::from_secs(20), watched.write(send)).await.unwrap().unwrap();
        drop(watched);
        assert_eq!(reading.join().unwrap().unwrap(), sent);
    }

    #[tokio::test]
    async fn the_others_reading_is_nothing_to_wake_up_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let watched = Watched::new(ours).unwrap();
        let mut looks = 0;
        let mut look = || {
            looks += 1;
            Ok(rustix::net::recv(&watched, &mut [0; 8], rustix::net::RecvFlags::DONTWAIT)?.1)
        };
        let other_side = async {
            for _ in 0..10 {
                rustix::net::send(&watched, b"x", SendFlags::DONTWAIT).unwrap();
                rustix::net::recv(&theirs, &mut [0; 8], rustix::net::RecvFlags::DONTWAIT).unwrap();
                sleep(Duration::from_millis(2)).await;
            }
            rustix::net::send(&theirs, b"y", SendFlags::DONTWAIT).unwrap();
        };
        let (read, ()) = tokio::join!(watched.read(&mut look), other_side);
        assert_eq!(read.unwrap(), 1);
        assert_eq!(looks, 1, "it looked before there was something");
    }
}
