//! The helper that acts on the sockets of Scm calls, and its workers: processes of one thread, forked from the engine before
//! the engine gives up the rights that it takes. They do nothing else, and end with the engine. The helper makes workers when it
//! is told to and never sees a socket; a worker does one thing at a time with the one that it is given.
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
//! * *To reach somebody else's service through a worker*: a socket that is written on has to be one end of a pair; neither end has
//!   a name.
//! * *To hold others up*. The kernel keeps a lock of a socket while it copies into the memory of whoever receives from it (`iolock`,
//!   `unix_dgram_recvmsg` of `net/unix/af_unix.c`), and another one while it copies a socket filter out of the memory of whoever sets
//!   one (`lock_sock`, `sk_setsockopt` of `net/core/sock.c`). That memory can be a file of a FUSE file system of the client's, which never
//!   answers; and nothing ends whoever waits for such a lock, not even SIGKILL. Then the worker is left alone, counted to the account, and
//!   another one is made for others. It has no descriptor but its line and what it was given, so that nobody waits for it: not the
//!   engine to end, nor a new broker to start.
//! * *The same with descriptors in messages*: closing one may wait for its server. The worker closes them before it answers.
//! * *Their rights*: a worker calls nothing but what sends, receives, asks and sets of sockets (seccomp), and the helper what it
//!   takes to make one; neither is dumpable. Their real and saved ids are nobody's, so that the front can't end them.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use cgrant_sys::{
    Channel, Child, Clone3, Pidfd, Received,
    credentials::{self, SentProcess},
    privilege, seccomp,
    socket::{is_end_of_pair, set_peek_offset},
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::SndBufForce},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::{
    io::Errno,
    net::{
        SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg,
        sockopt::{set_socket_passcred, set_socket_send_buffer_size, socket_send_buffer_size},
    },
    process::{Pid, getpid},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities},
};

use super::message::{Answer, Done, Named, NamedProcess, Request, Shown, Taken};
use crate::idmap::seclude;

/// The datagram that comes with a credential.
const BYTE: &[u8] = b"p";
/// What the kernel adds to a datagram's length when it looks whether there is room (`unix_dgram_sendmsg` of
/// `net/unix/af_unix.c`), and more.
const OVERHEAD: usize = 256;
/// What a worker calls beside what every program does.
const CALLS: [i64; 6] = [
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
];
/// What the helper calls beside that: to make workers, see their ends, and have them give up these calls and all descriptors.
const CALLS_OF_HELPER: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_close_range,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_newfstatat,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_statx,
    libc::SYS_waitid,
];

/// Uid and gid.
pub type Ids = (u32, u32);

/// Starts the helper, whose workers name processes with the ids of the `front`. Its other ids are `spare`, which nobody else has.
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
    let allowed: Vec<i64> = seccomp::RUNTIME.iter().chain(&CALLS).chain(CALLS_OF_HELPER).copied().collect();
    seccomp::apply(&allowed, seccomp::Action::Refuse).map_err(io::Error::other)
}

/// Makes workers until the engine is gone.
fn serve(channel: &Channel, front: Ids) -> i32 {
    let mut workers: Vec<Pidfd> = Vec::new();
    loop {
        match channel.receive() {
            Ok(Some(received)) => {
                workers.retain(|worker| worker.try_wait().is_ok_and(|exit| exit.is_none()));
                let line = received.fds.into_iter().next().map(Channel::from_fd);
                // Without one, the engine sees its end of the line closed.
                if let Some(Ok(line)) = line
                    && let Ok(child) = Clone3::new().spawn(|| work(&line, front))
                {
                    workers.push(child.pidfd);
                }
            }
            Ok(None) => return 0,
            Err(_) => (),
        }
    }
}

/// The whole life of a worker.
fn work(line: &Channel, front: Ids) -> i32 {
    let allowed: Vec<i64> = seccomp::RUNTIME.iter().chain(&CALLS).copied().collect();
    let is_alone = privilege::close_fds_from(0, &[line.as_fd().as_raw_fd()]).is_ok();
    if !is_alone || seccomp::apply(&allowed, seccomp::Action::Refuse).is_err() {
        return 1;
    }
    loop {
        match line.receive() {
            Ok(Some(received)) => carry_out(line, received, front),
            Ok(None) => return 0,
            Err(_) => (),
        }
    }
}

fn carry_out(line: &Channel, received: Received, front: Ids) {
    let mut fds = received.fds.into_iter();
    let (Some(socket), Ok(request)) = (fds.next(), cgrant_wire::decode::<Request>(&received.bytes)) else {
        return;
    };
    let mut processes = Vec::new();
    let done = perform(&socket, &request, front, &mut processes);
    // While the engine, which waits for the answer, has it still.
    drop(socket);
    let done: Answer = done.map_err(Errno::raw_os_error);
    if let Ok(bytes) = cgrant_wire::encode(&done) {
        let processes: Vec<_> = processes.iter().map(AsFd::as_fd).collect();
        // An asker who has given up is no fault of ours.
        let _ = line.send(&bytes, &processes);
    }
}

/// Does it; `processes` are those that were taken off the socket with messages.
fn perform(
    socket: &OwnedFd,
    request: &Request,
    front: Ids,
    processes: &mut Vec<OwnedFd>,
) -> Result<Done, Errno> {
    match request {
        Request::PassCredentials => set_socket_passcred(socket, true).map(|()| Done::All),
        Request::Look(behind) => look(socket, *behind).map(Done::There),
        Request::Take(count) => take(socket, *count, processes).map(Done::Taken),
        Request::NoMoreRoom(bytes) => {
            // The kernel doubles what it is told.
            let half = usize::try_from(*bytes / 2).unwrap_or(usize::MAX);
            set_socket_send_buffer_size(socket, half).map(|()| Done::All)
        }
        Request::Processes { .. } | Request::Room(_) if !is_end_of_pair(socket).unwrap_or(false) => {
            Err(Errno::INVAL)
        }
        Request::Processes { pids, known } => show(socket, pids, *known, front).map(Done::Shown),
        Request::Room(bytes) => make_room(socket, *bytes).map(|()| Done::All),
    }
}

/// Is there a message behind so many bytes?
fn look(socket: &OwnedFd, behind: u32) -> Result<bool, Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    set_peek_offset(socket, Some(behind.into())).map_err(errno)?;
    let found = credentials::look(socket);
    // Nothing else is looked at here, but the client may look.
    set_peek_offset(socket, None).map_err(errno)?;
    match found.map_err(errno) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Takes so many messages off the socket, or as many as there are, and closes what comes with them but the processes that they name.
fn take(socket: &OwnedFd, count: u8, processes: &mut Vec<OwnedFd>) -> Result<Vec<Taken>, Errno> {
    // The front has said so to the kernel as well, before it asked for credentials.
    let _ = credentials::set_pass_pidfd(socket, true);
    let mut all = Vec::new();
    for _ in 0..count {
        let message = match credentials::receive(socket) {
            Ok(message) => message,
            Err(_) => break,
        };
        let is_proper = message.length == 1 && !message.truncated && message.fds.is_empty();
        let named = message.credentials.map(|credentials| {
            let process = match credentials.process {
                SentProcess::Some(process) => {
                    processes.push(process.into());
                    NamedProcess::Beside
                }
                SentProcess::Gone => NamedProcess::Gone,
                SentProcess::Unsaid => NamedProcess::Unsaid,
            };
            Named { pid: credentials.pid, uid: credentials.uid, gid: credentials.gid, process }
        });
        all.push(Taken { is_proper, named });
    }
    Ok(all)
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
