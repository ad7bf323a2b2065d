//! An Scm call over the outer socket, from the caller's side: credentials go out over a socket pair of one's own, and the result
//! comes back over it.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use cgrant_sys::credentials;
use cgrant_wire::{LegacyAnswer, LegacyCall, legacy::MAX_DATAGRAM};
use rustix::{
    io::ioctl_fionread,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, UCred, recv, sendmsg, socketpair, sockopt,
    },
    process::{Gid, Pid, Uid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};
use zbus::Fd;

use crate::{
    front::watch,
    peer::{Named, Vouched},
    translate::{self, Shape, Words},
    upper::{Upper, UpperError},
};

/// How long each message of the other side may take. What it does may wait for the kernel.
const PATIENCE: Duration = Duration::from_secs(60);
/// What asks for a credential.
const KICK: &[u8] = b"1";
/// What a credential comes with.
const BYTE: &[u8] = b"p";
/// Most processes that are listed.
const MOST_TASKS: usize = 1_000_000;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The call itself was refused, or there is nobody.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The socket of it, or one of its messages.
    #[error("an exchange with the outer socket: {0}")]
    Io(#[from] io::Error),
    /// The other side says so, or nothing that can be understood.
    #[error("it was refused")]
    Refused,
}

impl From<zbus::Error> for ExchangeError {
    fn from(error: zbus::Error) -> Self {
        Self::Upper(error.into())
    }
}

/// Calls the twin of a method in the name of somebody, with whom it is about as the second one if it is about anybody.
///
/// An attacker wants its number to be another's by the time that it is named: it was looked at long before, and calls wait for each
/// other. So it is looked whether the process is there once more, right before.
///
/// # Errors
/// [`ExchangeError`]; [`ExchangeError::Refused`] also if one of them has ended.
pub async fn run(upper: &Upper, call: &LegacyCall, named: &[Vouched]) -> Result<LegacyAnswer, ExchangeError> {
    let words = Words::of(call).ok_or(ExchangeError::Refused)?;
    let (socket, theirs) = Socket::pair()?;
    let body = words.body(Fd::from(theirs)).build()?;
    upper.call(words.method, &body).await?;
    // The other side's end is now its own alone: should it end, so does the exchange.
    drop(body);
    for who in named {
        if socket.datagram().await? != KICK || !who.is_there() {
            return Err(ExchangeError::Refused);
        }
        socket.name(who.named)?;
    }
    socket.result(words.shape).await
}

/// Our end of the pair.
struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&ours, true)?;
        sockopt::set_socket_passcred(&theirs, true)?;
        Ok((Self(watch(ours)?), theirs))
    }

    fn name(&self, who: Named) -> io::Result<()> {
        send_named(self.0.as_fd(), who)
    }

    async fn datagram(&self) -> io::Result<Vec<u8>> {
        self.wait(|socket| receive(socket.as_fd())).await
    }

    /// The next message of a list of processes: which it names, if it can be seen from here.
    async fn task(&self) -> io::Result<Option<u32>> {
        let message = self.wait(|socket| credentials::receive(socket)).await?;
        Ok(message.credentials.map(|named| named.pid).filter(|pid| *pid != 0))
    }

    async fn wait<T>(&self, take: impl Fn(&OwnedFd) -> io::Result<T>) -> io::Result<T> {
        let taken = self.0.async_io(Interest::READABLE, take);
        timeout(PATIENCE, taken).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn result(&self, shape: Shape) -> Result<LegacyAnswer, ExchangeError> {
        let first = self.datagram().await?;
        if matches!(shape, Shape::Done | Shape::Existed | Shape::Text) {
            return translate::whole(shape, &first).ok_or(ExchangeError::Refused);
        }
        let count = translate::number(&first).ok_or(ExchangeError::Refused)?;
        if shape == Shape::Tasks {
            return self.tasks(count).await;
        }
        if count == 0 {
            let nothing = if shape == Shape::Names {
                LegacyAnswer::Names(Vec::new())
            } else {
                LegacyAnswer::Keys(Vec::new())
            };
            return Ok(nothing);
        }
        // How long the list is, which its datagram says as well.
        self.datagram().await?;
        let list = self.datagram().await?;
        translate::listed(shape, count, &list).ok_or(ExchangeError::Refused)
    }

    async fn tasks(&self, count: usize) -> Result<LegacyAnswer, ExchangeError> {
        if count > MOST_TASKS {
            return Err(ExchangeError::Refused);
        }
        let mut tasks = Vec::new();
        for _ in 0..count {
            // One that cannot be seen from here has no number, and is none of ours.
            tasks.extend(self.task().await?);
        }
        tasks.sort_unstable();
        tasks.dedup();
        Ok(LegacyAnswer::Tasks(tasks))
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let waiting = ioctl_fionread(socket)?.min(MAX_DATAGRAM.into());
    let mut bytes = vec![0; usize::try_from(waiting).unwrap_or_default().max(1)];
    let (received, _) = recv(socket, &mut bytes, RecvFlags::DONTWAIT)?;
    bytes.truncate(received);
    Ok(bytes)
}

/// Sends a byte that names somebody; at once, or not at all.
///
/// # Errors
/// Those of `sendmsg(2)`: `EPERM` for whom this process may not name, `ESRCH` for a process that has ended.
pub fn send_named(socket: BorrowedFd<'_>, who: Named) -> io::Result<()> {
    let pid = i32::try_from(who.pid).ok().and_then(Pid::from_raw);
    let named = UCred {
        pid: pid.ok_or(io::ErrorKind::InvalidInput)?,
        uid: Uid::from_raw(who.uid),
        gid: Gid::from_raw(who.gid),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmCredentials(named));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(BYTE)], &mut control, flags)?;
    Ok(())
}
