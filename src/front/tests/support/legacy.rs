//! What the played engine does about CGManager's interface, and a client that speaks it byte by byte.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixDatagram, UnixStream},
    },
};

use cgrant_wire::{
    Answer, ConnectionId, Legacy, LegacyAnswer, LegacyCall, LegacyKey, Refusal, RefusalCode, Surface,
    legacy::OnSocket,
};
use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, UCred, recvmsg, sendmsg, sockopt,
    },
    process::{Gid, Pid, Uid},
};
use zbus::Message;

use super::{Front, PATIENCE};

/// The object.
pub const PATH: &str = "/org/linuxcontainers/cgmanager";
/// The interface.
pub const INTERFACE: &str = "org.linuxcontainers.cgmanager0_0";
/// What the engine answers, and what it saw.
#[derive(Default)]
pub struct Played {
    /// The text of each value.
    pub value: String,
    /// The processes of each cgroup.
    pub tasks: Vec<u32>,
    /// Are numbers of processes meaningless?
    pub elsewhere: bool,
    /// Is nothing done with sockets, as if clients made it wait?
    pub held: bool,
    /// The credentials that were taken off sockets.
    pub credentials: Vec<UCred>,
}

impl Played {
    pub fn answer(&mut self, request: &Legacy, fds: &[OwnedFd]) -> Result<Answer, Refusal> {
        let refused = || Refusal::new(RefusalCode::InvalidDescriptor, "no credentials");
        if self.held && matches!(request.call, LegacyCall::Socket(_)) {
            return Err(refused());
        }
        if request.exchange.is_some() {
            for _ in 0..request.call.credentials() {
                self.credentials.push(take_credential(fds[0].as_fd()).ok_or_else(refused)?);
            }
        } else if self.elsewhere {
            return Ok(Answer::Legacy(LegacyAnswer::OtherNamespace));
        }
        let key = |name: &str, uid| LegacyKey { name: name.to_owned(), uid, gid: 3, mode: 0o100_644 };
        Ok(Answer::Legacy(match &request.call {
            LegacyCall::PidCgroup { absolute, .. } => {
                LegacyAnswer::Text(if *absolute { "/a/b" } else { "a/b" }.to_owned())
            }
            LegacyCall::Create(place) => LegacyAnswer::Existed(place.path == "old"),
            LegacyCall::Remove { place, .. } => LegacyAnswer::Existed(place.path == "old"),
            LegacyCall::GetValue { .. } => LegacyAnswer::Text(self.value.clone()),
            LegacyCall::Tasks { .. } => LegacyAnswer::Tasks(self.tasks.clone()),
            LegacyCall::Children(_) => LegacyAnswer::Names(vec!["x".to_owned(), "yy".to_owned()]),
            LegacyCall::Controllers => {
                LegacyAnswer::Names(vec!["cpu,cpuacct".to_owned(), "memory".to_owned()])
            }
            LegacyCall::Keys(_) => LegacyAnswer::Keys(vec![key("tasks", 2), key("k", u32::MAX)]),
            LegacyCall::Socket(wanted) => act_on(&fds[0], wanted),
            _ => LegacyAnswer::Done,
        }))
    }
}

/// What the engine has done with a client's socket.
fn act_on(socket: &OwnedFd, wanted: &OnSocket) -> LegacyAnswer {
    match wanted {
        OnSocket::PassCredentials => sockopt::set_socket_passcred(socket, true).unwrap(),
        OnSocket::Look { behind } => {
            cgrant_sys::socket::set_peek_offset(socket, Some((*behind).into())).unwrap();
            let there = cgrant_sys::credentials::look(socket).is_ok();
            cgrant_sys::socket::set_peek_offset(socket, None).unwrap();
            return LegacyAnswer::Existed(there);
        }
        OnSocket::ShowTasks { pids, .. } => {
            return LegacyAnswer::Shown { count: show(socket.as_fd(), pids), known: None };
        }
        OnSocket::SendRoom { bytes } => {
            sockopt::set_socket_send_buffer_size_force(socket, *bytes as usize).unwrap();
        }
        OnSocket::NoMoreRoom { bytes } => {
            sockopt::set_socket_send_buffer_size(socket, *bytes as usize / 2).unwrap();
        }
    }
    LegacyAnswer::Done
}

/// One message's credentials, as the engine takes them.
fn take_credential(socket: BorrowedFd<'_>) -> Option<UCred> {
    receive(socket, &mut [0; 1], RecvFlags::DONTWAIT)?.1
}

/// One message: how many bytes, and whose.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Option<(usize, Option<UCred>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags).ok()?;
    // All of them: rustix does not find the rest again by itself, behind one whose length is no multiple of 8.
    let all: Vec<_> = control.drain().collect();
    let credentials = all.into_iter().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials),
        _ => None,
    });
    Some((received.bytes, credentials))
}

/// Shows processes to whoever reads, as many as there is room for.
fn show(socket: BorrowedFd<'_>, pids: &[u32]) -> u32 {
    let shown = pids.iter().take_while(|pid| {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send_credential(socket, b"p", **pid, super::FRONT_UID, flags)
    });
    u32::try_from(shown.count()).unwrap()
}

/// Sends bytes with the credentials of a process.
pub fn send_credential(socket: BorrowedFd<'_>, bytes: &[u8], pid: u32, uid: u32, flags: SendFlags) -> bool {
    let credentials = UCred {
        pid: Pid::from_raw(pid.cast_signed()).unwrap(),
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(uid),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).is_ok()
}

/// A client on a connection of CGManager's socket.
pub struct Client {
    pub bus: zbus::Connection,
    pub connection: ConnectionId,
}

impl Client {
    /// Of a uid that is its own account.
    pub async fn new(front: &Front, uid: u32) -> Self {
        Self::of_account(front, uid, uid).await
    }

    pub async fn of_account(front: &Front, uid: u32, account: u32) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let connection = front.introduce_at(Surface::Legacy, theirs.into(), uid, account);
        let builder = zbus::connection::Builder::unix_stream(stream).p2p();
        let bus = builder.auth_mechanism(zbus::connection::AuthMechanism::Anonymous).build().await.unwrap();
        Self { bus, connection }
    }

    /// Calls a method of the interface.
    pub async fn call<B: serde::Serialize + zbus::DynamicType>(
        &self,
        member: &str,
        body: &B,
    ) -> zbus::Result<Message> {
        self.bus.call_method(None::<&str>, PATH, Some(INTERFACE), member, body).await
    }

    /// Calls one that fails: the name of the error, and its text.
    pub async fn fails<B: serde::Serialize + zbus::DynamicType>(
        &self,
        member: &str,
        body: &B,
    ) -> (String, String) {
        match self.call(member, body).await.unwrap_err() {
            zbus::Error::MethodError(name, text, _) => (name.to_string(), text.unwrap_or_default()),
            zbus::Error::FDO(error) => {
                let error: &dyn zbus::DBusError = &*error;
                (error.name().to_string(), error.description().unwrap_or_default().to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Begins an exchange: the byte that asks for credentials is there before the reply is.
    pub async fn begin<B: serde::Serialize + zbus::DynamicType>(
        &self,
        member: &str,
        body: &B,
        ours: &impl AsFd,
    ) {
        assert!(self.call(member, body).await.unwrap().body().is_empty(), "{member}");
        let mut byte = [0; 2];
        let kick = receive(ours.as_fd(), &mut byte, RecvFlags::DONTWAIT);
        assert_eq!((kick.map(|(count, _)| count), byte[0]), (Some(1), b'1'), "{member}");
    }
}

/// The ends of an exchange: ours, and the one that is sent.
pub fn pair() -> (UnixDatagram, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    sockopt::set_socket_passcred(&ours, true).unwrap();
    sockopt::set_socket_passcred(&theirs, true).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs)
}

/// Says who we are, as clients do.
pub fn identify(ours: &impl AsFd, pid: u32, uid: u32) {
    assert!(send_credential(ours.as_fd(), b"p", pid, uid, SendFlags::NOSIGNAL));
}

/// The next datagram.
pub fn datagram(ours: &UnixDatagram) -> Vec<u8> {
    let mut bytes = vec![0; 2 * 1024 * 1024];
    let count = ours.recv(&mut bytes).unwrap();
    bytes.truncate(count);
    bytes
}
