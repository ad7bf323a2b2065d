//! Takes up the loopback interface of the network namespace that the caller is in.
//!
//! One RTM_NEWLINK request (rtnetlink(7)); the kernel then adds 127.0.0.1 and ::1 by itself.

use std::io;

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

/// Index of the loopback interface in every network namespace.
const LOOPBACK: i32 = 1;
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
/// NLM_F_REQUEST | NLM_F_ACK.
const REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
/// Length of struct nlmsghdr.
const HEADER: usize = 16;
/// Length of header and struct ifinfomsg.
const REQUEST: usize = 32;

/// Takes it up.
///
/// # Errors
/// The kernel's; `EPROTO` for an answer that is none.
pub(crate) fn up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    match errno(answer).ok_or(Errno::PROTO)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// nlmsghdr { len, type, flags, seq, pid }, ifinfomsg { family, pad, type, index, flags, change }.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    bytes.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&LOOPBACK.to_ne_bytes());
    bytes.extend_from_slice(&IFF_UP.to_ne_bytes());
    bytes.extend_from_slice(&IFF_UP.to_ne_bytes());
    bytes
}

/// The error number, positive, of an answer of type NLMSG_ERROR; 0 is an acknowledgement.
fn errno(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let code = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| code.checked_neg()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_length_that_it_claims() {
        let bytes = request();
        assert_eq!(bytes.len(), REQUEST);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()), 32);
    }

    #[test]
    fn answers_are_read_or_refused() {
        let mut answer = request();
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(errno(&answer), Some(1));
        answer[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(errno(&answer), None);
        assert_eq!(errno(&answer[..18]), None);
        assert_eq!(errno(&request()), None);
        assert_eq!(errno(&[]), None);
    }
}
