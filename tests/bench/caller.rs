//! A caller that costs next to nothing itself: messages are laid out before the clock starts, answers are read and not
//! taken apart. What a real client costs shows in the times of `cgrant run`.

use std::{
    io::{IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use zbus::Message;

use crate::{
    common::{
        Options, Process, User,
        bus::{GRANT, MANAGER, MANAGER_PATH},
        level::connected,
        raw::Raw,
    },
    sample::time,
};

const GRANTS: &str = "/org/cgrant/Broker1/grant/";
const ID: usize = 16;

/// An open connection of a user's to the broker.
pub struct Caller {
    stream: UnixStream,
    _process: Process,
}

struct Answer {
    bytes: Vec<u8>,
    _fds: Vec<OwnedFd>,
}

impl Caller {
    /// Connects as `user`.
    pub fn new(user: &User, socket: &Path) -> Self {
        let (process, stream) = user.connect(socket);
        let mut raw = Raw::new(stream);
        raw.authenticate(user.uid);
        Self { stream: raw.0, _process: process }
    }

    /// One inside a grant, that connects when it is told to; it says that it is uid 0, as it is there.
    pub fn inside(process: Process) -> Self {
        let mut raw = Raw::new(connected(&process));
        raw.authenticate(0);
        Self { stream: raw.0, _process: process }
    }

    /// Makes a grant that lives with the connection; how long that took, and the grant's path.
    pub fn create(&self, options: Options) -> (Duration, String) {
        let message = method(MANAGER_PATH, MANAGER, "CreateGrant", &("", options.0));
        let (time, answer) = time(|| self.call(&message));
        let path = find(&answer.bytes, GRANTS.as_bytes()).expect("the answer names no grant");
        let path = &answer.bytes[path..path + GRANTS.len() + ID];
        (time, String::from_utf8(path.to_vec()).unwrap())
    }

    /// Releases a grant; how long that took.
    pub fn release(&self, grant: &str) -> Duration {
        let message = method(grant, GRANT, "Release", &Options::new().0);
        time(|| self.call(&message)).0
    }

    fn call(&self, message: &Message) -> Answer {
        let data = message.data();
        let fds: Vec<_> = data.fds().iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let bytes = data.bytes();
        let sent =
            rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
                .unwrap();
        assert_eq!(sent, bytes.len(), "the socket takes a small message whole");
        loop {
            let answer = self.receive();
            match answer.bytes[1] {
                // Return.
                2 => return answer,
                // Error.
                3 => panic!("refused: {}", String::from_utf8_lossy(&answer.bytes)),
                // A signal.
                _ => {}
            }
        }
    }

    fn receive(&self) -> Answer {
        let mut bytes = vec![0; 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
        );
        assert_eq!(received.unwrap().bytes, 16, "the broker closed the connection");
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let number =
            |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let rest = number(12).next_multiple_of(8) + number(4);
        let head = bytes.len();
        bytes.resize(head + rest, 0);
        (&self.stream).read_exact(&mut bytes[head..]).unwrap();
        Answer { bytes, _fds: fds }
    }
}

fn method<B>(path: &str, interface: &str, member: &str, body: &B) -> Message
where
    B: serde::Serialize + zbus::DynamicType,
{
    Message::method_call(path, member).interface(interface).build(body).unwrap()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
