//! The socket that a container's init tells of itself by, and who may not be held up by what comes there.
//!
//! A message may have descriptors beside it, and who receives it is who closes them: a connection whose data nobody takes can
//! make that last as long as its sender likes (`SO_LINGER`, socket(7)). So each message is looked at first, and one that has
//! any is taken by a process that does nothing else and ends with them: the kernel waits for nothing at the end of a process.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use cgrant_sys::{Clone3, Pidfd, privilege};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg};

/// The longest message that is taken, in bytes.
const MAX: usize = 4096;
/// Most descriptors beside one (SCM_MAX_FD of include/net/scm.h).
const MAX_FDS: usize = 253;

/// How it is listened.
#[derive(Debug, Default)]
pub(crate) enum Ear {
    /// To each message.
    #[default]
    Open,
    /// When this process has put one away.
    Waiting(Pidfd),
    /// No more: nobody was there to put one away.
    Shut,
}

/// A message, as far as it was kept.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) text: Vec<u8>,
    /// Who sent it. The container's root may say of itself that it is init.
    pub(crate) sender: Option<i32>,
}

impl Ear {
    /// Is there a reason to wait for messages?
    pub(crate) fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// The next message, if there is one that can be taken.
    pub(crate) fn hear(&mut self, socket: &OwnedFd) -> Option<Notification> {
        if !self.is_open() {
            return None;
        }
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut text = [0; MAX];
        let (_, _, alone) = receive(socket, &mut text, flags | MsgFlags::MSG_PEEK)?;
        if !alone {
            *self = put_away(socket.as_fd()).map_or(Self::Shut, Self::Waiting);
            return None;
        }
        let (length, sender, _) = receive(socket, &mut text, flags)?;
        Some(Notification { text: text.get(..length).unwrap_or_default().to_owned(), sender })
    }

    /// A child has ended, this one perhaps.
    pub(crate) fn reap(&mut self) {
        if let Self::Waiting(process) = self
            && !matches!(process.try_wait(), Ok(None))
        {
            *self = Self::Open;
        }
    }
}

/// Length and sender of the next message, and whether it comes without descriptors.
fn receive(socket: &OwnedFd, text: &mut [u8], flags: MsgFlags) -> Option<(usize, Option<i32>, bool)> {
    let mut parts = [IoSliceMut::new(text)];
    let mut room = nix::cmsg_space!(UnixCredentials);
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags).ok()?;
    // There is room for nothing else: what else there is shows by this.
    let alone = !message.flags.contains(MsgFlags::MSG_CTRUNC);
    let sender = message.cmsgs().ok().into_iter().flatten().find_map(|part| match part {
        ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
        _ => None,
    });
    Some((message.bytes, sender, alone))
}

/// A process that takes the next message and ends.
fn put_away(socket: BorrowedFd<'_>) -> io::Result<Pidfd> {
    let child = Clone3::new().spawn(|| {
        if privilege::close_fds_from(0, &[socket.as_raw_fd()]).is_err() {
            return 1;
        }
        let mut room = nix::cmsg_space!(UnixCredentials, [std::os::fd::RawFd; MAX_FDS]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let taken = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut [], Some(&mut room), flags);
        i32::from(taken.is_err())
    })?;
    Ok(child.pidfd)
}
