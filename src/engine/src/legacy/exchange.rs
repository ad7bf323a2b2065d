//! Whom the client of an Scm call names, by what waits on its socket.
//!
//! An attacker wants to be taken for somebody else. What counts is what the kernel says of each message; the front's word for
//! it does not, nor does what the messages contain. And whoever passes a call on has to answer for its requestor
//! ([`Actor::answers_for`]): a byte that a program with more rights wrote on the socket, thinking of nothing, names that
//! program too.
//!
//! Nothing is ever written on that socket from here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cgrant_policy::HostUid;
use cgrant_sys::{
    Pidfd, close_aside,
    credentials::{Credentials, Message, SentProcess},
    process::clock_ticks,
};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::fault::Fault;
use crate::show::ShowError;

/// The socket of an exchange. Closed where nobody waits: the last who closes it closes what its messages carry, which may wait
/// for their sender.
#[derive(Debug)]
pub struct ExchangeSocket(Option<OwnedFd>);

/// Whom a message names.
#[derive(Debug)]
pub struct Named {
    /// The process. Seen by the kernel when the message was sent; whether it lives is another question. `None` if it has ended,
    /// or can't be told; of the first message's it is there.
    pub process: Option<Pidfd>,
    /// The uid that it was named with.
    pub uid: u32,
    /// The gid.
    pub gid: u32,
}

impl ExchangeSocket {
    /// What came with a call, if it is a socket of the kind that exchanges are made over.
    ///
    /// # Errors
    /// [`Fault::Exchange`].
    pub fn new(fd: OwnedFd) -> Result<Self, Fault> {
        let kept = Self(Some(fd));
        let socket = kept.socket()?;
        // Asked of the socket layer alone, which answers at once whatever socket it is.
        let unix = sockopt::socket_domain(socket).is_ok_and(|domain| domain == AddressFamily::UNIX);
        let known = sockopt::socket_type(socket)
            .is_ok_and(|kind| matches!(kind, SocketType::DGRAM | SocketType::STREAM));
        if unix && known { Ok(kept) } else { Err(Fault::Exchange("it is not over a socket of a pair")) }
    }

    /// The socket.
    ///
    /// # Errors
    /// None while it is there, which it is until this is dropped.
    pub fn socket(&self) -> Result<&OwnedFd, Fault> {
        self.0.as_ref().ok_or(Fault::Exchange("its socket is closed"))
    }

    /// Takes so many messages off the socket, or as many as there are; all of them, whatever is wrong with one. `take` does, which
    /// who has the same socket can make wait: [`crate::show::Shower::take`].
    ///
    /// # Errors
    /// [`Fault::Exchange`] for the first message that is none of one byte with credentials of somebody who can be seen from
    /// here; [`Fault::Gone`] if the first one's has ended; [`Fault::Unshown`]. `fronts` are never anybody whom a message may name:
    /// what they write on sockets of clients' choice is no word of theirs.
    pub fn take(
        &self,
        count: usize,
        fronts: &[HostUid],
        take: impl FnOnce(BorrowedFd<'_>, usize) -> Result<Vec<Message>, ShowError>,
    ) -> Result<Vec<Named>, Fault> {
        // 0, before which nothing has started, if that is not to be had.
        let before = clock_ticks().unwrap_or(0);
        let taken = take(self.socket()?.as_fd(), count).map_err(Fault::Unshown)?;
        let are_all = taken.len() == count;
        let named =
            taken.into_iter().enumerate().map(|(nth, message)| named(message, fronts, before, nth == 0));
        let named = named.collect::<Result<Vec<_>, _>>()?;
        if are_all { Ok(named) } else { Err(Fault::Exchange("a credential is missing")) }
    }
}

impl Drop for ExchangeSocket {
    fn drop(&mut self) {
        drop(close_aside(self.0.take().into_iter().collect()));
    }
}

/// Whom a message names. `before` is when it was taken, in ticks after boot. Of the first one the process counts with its ids;
/// of the second, the process or the ids, and clients fill in what they like for the other.
fn named(message: Message, fronts: &[HostUid], before: u64, first: bool) -> Result<Named, Fault> {
    let Message { length, truncated, credentials, fds } = message;
    if truncated || !fds.is_empty() || length != 1 {
        return Err(Fault::Exchange("a message is not one byte and credentials"));
    }
    let credentials = credentials.filter(|credentials| credentials.pid != 0);
    let Credentials { pid, uid, gid, process } =
        credentials.ok_or(Fault::Exchange("a message names nobody who can be seen from here"))?;
    if fronts.contains(&HostUid(uid)) {
        return Err(Fault::Exchange("a message names the broker itself"));
    }
    let process = match process {
        SentProcess::Some(process) => Ok(process),
        SentProcess::Gone => Err(Fault::Gone),
        SentProcess::Unsaid => numbered(pid, first.then_some((uid, gid)), before),
    };
    match process {
        Err(fault) if first => Err(fault),
        process => Ok(Named { process: process.ok(), uid, gid }),
    }
}

/// The process of a number, on kernels that give none with the message (before 6.5).
///
/// An attacker wants its number to be another's by now: one that has other ids than it was named with, if these count, or has
/// started since the message was taken, is not the one.
pub(super) fn numbered(pid: u32, ids: Option<(u32, u32)>, before: u64) -> Result<Pidfd, Fault> {
    let process = Pidfd::open(pid).map_err(|_| Fault::Gone)?;
    let started = process.start_time().map_err(|_| Fault::Gone)?;
    let info = process.info().map_err(|_| Fault::Gone)?;
    let (uids, gids) = ([info.ruid, info.euid, info.suid], [info.rgid, info.egid, info.sgid]);
    let is_it = ids.is_none_or(|(uid, gid)| uids.contains(&uid) && gids.contains(&gid));
    if started <= before && is_it { Ok(process) } else { Err(Fault::Gone) }
}
