//! The helper that writes on the sockets of Scm calls what needs a right: a process of one thread, forked from the engine before
//! the engine gives up the rights that it takes. It does nothing else, and ends with the engine.
//!
//! A pid means something in its pid namespace only. So `GetTasksScm` sends each process as a credential, which the kernel
//! translates for whoever reads it; and naming another process in a credential takes `CAP_SYS_ADMIN` over one's own pid
//! namespace (`scm_check_creds` of `net/core/scm.c`). A datagram longer than `net.core.wmem_max` takes `CAP_NET_ADMIN`
//! (`SO_SNDBUFFORCE`).
//!
//! **What an attacker could want, and why it can't have it.**
//!
//! * *A word of root's*: the socket is of its choice, so what is written there carries the writer's ids to whoever has the other
//!   end. They are those of the socket front, whom nobody believes anything: it is refused as a requestor, too.
//! * *To reach somebody else's service through the helper*: the socket has to be one end of a pair; neither end has a name.
//! * *To hold it up*: it waits for nobody. Sending to a UNIX socket without waiting takes no lock that a receiver holds while its
//!   memory is written to; how many processes are shown at once is bounded; and the engine has the socket open until it is answered,
//!   so that closing it here closes nothing that was sent with it.
//! * *Its rights*: it calls nothing but what sends, receives and asks of sockets (seccomp), has no other descriptor, and is not
//!   dumpable. Its real and saved ids are nobody's, so that the front can't end it.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{Channel, Child, Clone3, Received, privilege, seccomp, socket::is_end_of_pair};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::SndBufForce},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::{
    io::Errno,
    net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg,
        sockopt::socket_send_buffer_size,
    },
    process::{Pid, getpid},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities},
};

use super::message::{ShowAnswer, ShowRequest, Shown};
use crate::idmap::{answer, seclude};

/// The datagram that comes with a credential.
const BYTE: &[u8] = b"p";
/// What the kernel adds to a datagram's length when it looks whether there is room (`unix_dgram_sendmsg` of
/// `net/unix/af_unix.c`), and more.
const OVERHEAD: usize = 256;
/// What the helper calls beside what every program does.
const CALLS: [i64; 6] = [
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
];

/// Uid and gid.
pub type Ids = (u32, u32);

/// Starts the helper, which names processes with the ids of the `front`. Its other ids are `spare`, which nobody else has.
///
/// # Errors
/// As [`Clone3::spawn`].
pub fn start(channel: &Channel, front: Ids, spare: Ids) -> io::Result<Child> {
    Clone3::new().spawn(|| match confine(channel, front, spare) {
        Ok(()) => serve(channel, front),
        Err(_) => 1,
    })
}

fn confine(channel: &Channel, front: Ids, spare: Ids) -> io::Result<()> {
    use privilege::Capability as C;
    seclude(channel, &[C::CAP_SYS_ADMIN, C::CAP_NET_ADMIN, C::CAP_SETUID, C::CAP_SETGID])?;
    set_keep_capabilities(true)?;
    setgroups(&[])?;
    let [group, spare_group] = [front.1, spare.1].map(Gid::from_raw);
    setresgid(spare_group, group, spare_group)?;
    let [user, spare_user] = [front.0, spare.0].map(Uid::from_raw);
    setresuid(spare_user, user, spare_user)?;
    let kept = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    // Changing the uid made it what fs.suid_dumpable says.
    privilege::set_dumpable(false)?;
    let allowed: Vec<i64> = seccomp::RUNTIME.iter().chain(&CALLS).copied().collect();
    seccomp::apply(&allowed, seccomp::Action::Refuse).map_err(io::Error::other)
}

/// Serves until the engine is gone.
fn serve(channel: &Channel, front: Ids) -> i32 {
    loop {
        match channel.receive() {
            Ok(Some(received)) => carry_out(received, front),
            Ok(None) => return 0,
            Err(_) => (),
        }
    }
}

fn carry_out(received: Received, front: Ids) {
    let mut fds = received.fds.into_iter();
    let (Some(pipe), Some(socket)) = (fds.next(), fds.next()) else { return };
    let Ok(request) = cgrant_wire::decode::<ShowRequest>(&received.bytes) else { return };
    let done = perform(&socket, &request, front);
    // While the engine, which waits for the answer, has it still.
    drop(socket);
    let done: ShowAnswer = done.map_err(Errno::raw_os_error);
    answer(&pipe, &done);
}

fn perform(socket: &OwnedFd, request: &ShowRequest, front: Ids) -> Result<Shown, Errno> {
    if !is_end_of_pair(socket).unwrap_or(false) {
        return Err(Errno::INVAL);
    }
    match request {
        ShowRequest::Processes { pids, known } => show(socket, pids, *known, front),
        ShowRequest::Room(bytes) => make_room(socket, *bytes).map(|()| Shown { count: 0, known: None }),
    }
}

/// Shows processes until there is no more room.
fn show(socket: &OwnedFd, pids: &[u32], known: Option<u32>, front: Ids) -> Result<Shown, Errno> {
    let mut shown = Shown { count: 0, known };
    let mut rest = pids;
    while let Some((pid, later)) = rest.split_first() {
        let sent = match send(socket, *pid, front) {
            Err(Errno::SRCH) => in_its_place(socket, shown.known, later, front),
            sent => sent.map(|()| Some(*pid)),
        };
        match sent {
            Ok(pid) => shown.known = pid.or(shown.known),
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
        shown.count += 1;
        rest = later;
    }
    Ok(shown)
}

/// Shows, for one that has ended, one that was shown before, or one of those that come later: the reader was told how many there
/// are. If all have ended, this process, which a reader in a pid namespace of its own does not see. Which one of those that
/// live?
fn in_its_place(
    socket: &OwnedFd,
    known: Option<u32>,
    later: &[u32],
    front: Ids,
) -> Result<Option<u32>, Errno> {
    for pid in known.iter().chain(later) {
        match send(socket, *pid, front) {
            Err(Errno::SRCH) => (),
            sent => return sent.map(|()| Some(*pid)),
        }
    }
    send(socket, getpid().as_raw_nonzero().get().unsigned_abs(), front).map(|()| None)
}

fn send(socket: &OwnedFd, pid: u32, front: Ids) -> Result<(), Errno> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let named = UCred {
        pid,
        uid: rustix::process::Uid::from_raw(front.0),
        gid: rustix::process::Gid::from_raw(front.1),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmCredentials(named)) {
        return Err(Errno::NOBUFS);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(BYTE)], &mut control, flags))
        .map(drop)
}

/// Sees to it that a datagram of so many bytes is taken. What is enough already stays as it is.
fn make_room(socket: &OwnedFd, bytes: u32) -> Result<(), Errno> {
    let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(OVERHEAD);
    if socket_send_buffer_size(socket)? >= wanted {
        return Ok(());
    }
    // The kernel doubles what it is told, for what it needs itself.
    setsockopt(socket, SndBufForce, &wanted.div_ceil(2))
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
}
