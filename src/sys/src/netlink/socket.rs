//! One `NETLINK_ROUTE` socket: a request, its answers, its acknowledgement.
//!
//! The kernel has done its work when `send(2)` returns, so nothing here ever waits: an answer that is not there then
//! will never come. The socket is connected to the kernel: the root of a container whose namespace it was opened in can't
//! send to it, neither lies nor a flood that would push out the kernel's answer.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_NOOP, NetlinkBuffer, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};

use super::{
    NetlinkError, Result,
    attribute::{find, text},
};

/// Larger than any datagram of the kernel's: dumps come in pieces of at most 32 KiB, and we ask for no list of virtual functions.
pub(super) const LARGEST: usize = 1 << 16;

/// Most things that are kept of one list.
const MOST: usize = 1 << 18;

/// How often a list that changed meanwhile is asked for again.
const TRIES: usize = 16;

/// `NLMSGERR_ATTR_MSG`: what the kernel says about an error.
const REASON: u16 = 1;

/// The original request's header, behind the number in an acknowledgement.
const ECHOED_HEADER: usize = 16;

#[derive(Debug)]
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

/// One message of an answer.
pub(super) struct Answer<'a> {
    /// `RTM_*`.
    pub kind: u16,
    /// Its header's struct and attributes.
    pub payload: &'a [u8],
}

/// How a request's answers ended.
enum End {
    Complete,
    /// Something changed while the list was made.
    Interrupted,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        inner.set_ext_ack(true)?;
        // Without the request echoed in an error its reason is always at the same place.
        inner.set_cap_ack(true)?;
        inner.set_netlink_get_strict_chk(true)?;
        inner.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { inner, sequence: Cell::new(0), buffer: RefCell::new(Vec::new()) })
    }

    /// Has something done.
    pub(super) fn act(&self, action: &'static str, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.exchange(action, message, flags | NLM_F_ACK, &mut |_| Ok(())).map(|_| ())
    }

    /// Asks for one thing; `None` if there is no such.
    pub(super) fn get<T>(
        &self,
        action: &'static str,
        message: RouteNetlinkMessage,
        mut read: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut found = None;
        let result = self.exchange(action, message, NLM_F_ACK, &mut |answer| {
            found = Some(read(&answer).ok_or(NetlinkError::Malformed { action })?);
            Ok(())
        });
        match result {
            Ok(_) => Ok(found),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for a list; what `read` gives `None` for is left out.
    pub(super) fn list<T>(
        &self,
        action: &'static str,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..TRIES {
            let mut list = Vec::new();
            let mut full = false;
            let end = self.exchange(action, message.clone(), NLM_F_DUMP, &mut |answer| {
                // Read to the end in any case: the kernel makes one list at a time on a socket.
                full = full || list.len() == MOST;
                if !full {
                    list.extend(read(&answer));
                }
                Ok(())
            })?;
            match end {
                End::Complete if full => return Err(NetlinkError::TooMany { action }),
                End::Complete => return Ok(list),
                End::Interrupted => (),
            }
        }
        Err(NetlinkError::Unsteady { action })
    }

    /// Sends a request and reads up to its acknowledgement. An error of `each` is given when all is read.
    fn exchange(
        &self,
        action: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
        each: &mut dyn FnMut(Answer<'_>) -> Result<()>,
    ) -> Result<End> {
        let socket_error = |source| NetlinkError::Socket { action, source };
        let sequence = self.send(message, flags).map_err(socket_error)?;
        let mut buffer = self.buffer.borrow_mut();
        buffer.resize(LARGEST, 0);
        let (mut outcome, mut interrupted) = (Ok(()), false);
        loop {
            let length = receive(&self.inner, &mut buffer).map_err(socket_error)?;
            let mut rest = buffer.get(..length).ok_or(NetlinkError::Malformed { action })?;
            while !rest.is_empty() {
                let message =
                    NetlinkBuffer::new_checked(rest).map_err(|_| NetlinkError::Malformed { action })?;
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                // What is left of an earlier request that failed halfway is not for us.
                if message.sequence_number() != sequence {
                    continue;
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_NOOP => (),
                    kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                        // In an acknowledgement the words stand behind the request's header.
                        let words = if kind == NLMSG_ERROR { ECHOED_HEADER } else { 0 };
                        verdict(action, message.flags(), message.payload(), words)?;
                        return outcome.map(|()| if interrupted { End::Interrupted } else { End::Complete });
                    }
                    kind => {
                        if outcome.is_ok() {
                            outcome = each(Answer { kind, payload: message.payload() });
                        }
                    }
                }
            }
        }
    }

    fn send(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        if self.inner.send(&bytes, libc::MSG_DONTWAIT)? == bytes.len() {
            Ok(sequence)
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.inner)
    }
}

/// The library's socket as a descriptor.
pub(super) fn borrow(socket: &netlink_sys::Socket) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `socket` lives, and the result borrows from it.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Reads one datagram of the kernel's, without waiting.
///
/// # Errors
/// `WouldBlock` if there is none; `ENOBUFS` if some were lost; `InvalidData` if it is larger than `buffer`.
pub(super) fn receive(socket: &netlink_sys::Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let (length, sender) = match socket.recv_from(&mut &mut *buffer, flags) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if sender.port_number() != 0 {
            // Not the kernel's. On a socket that listens, somebody with CAP_NET_ADMIN here may do that.
            continue;
        }
        return if length <= buffer.len() { Ok(length) } else { Err(io::ErrorKind::InvalidData.into()) };
    }
}

/// What an acknowledgement or the end of a list says; the kernel's words stand `words` bytes behind the number.
pub(super) fn verdict(action: &'static str, flags: u16, payload: &[u8], words: usize) -> Result<()> {
    let acknowledgement =
        ErrorBuffer::new_checked(payload).map_err(|_| NetlinkError::Malformed { action })?;
    let Some(code) = acknowledgement.code() else {
        return Ok(());
    };
    let words = acknowledgement.payload().get(words..).filter(|_| flags & NLM_F_ACK_TLVS != 0);
    let reason = words.and_then(|words| find(words, REASON)).map(text).unwrap_or_default();
    Err(NetlinkError::Refused { action, errno: code.get().saturating_neg(), reason })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_found_in_both_places() {
        let attribute = super::super::attribute::concat(&[(REASON, b"no such thing\0")]);
        let code = (-libc::ENODEV).to_ne_bytes();
        for words in [ECHOED_HEADER, 0] {
            let payload = [&code[..], &[7; ECHOED_HEADER][..words], &attribute].concat();
            let error = verdict("try", NLM_F_ACK_TLVS, &payload, words).unwrap_err();
            assert_eq!(error.to_string(), "cannot try: No such device (os error 19) (no such thing)");
            assert!(error.is(libc::ENODEV) && error.is_absent());
            assert!(!verdict("try", 0, &payload, words).unwrap_err().to_string().contains("thing"));
        }
        verdict("try", 0, &[0; 4], 0).unwrap();
        assert!(matches!(verdict("try", 0, &[0; 3], 0), Err(NetlinkError::Malformed { .. })));
    }
}
