//! The helper that writes id maps: a process of one thread, forked from the engine before the engine gives up the
//! rights that it takes. It does nothing else, and ends with the engine.
//!
//! **How a map is written.** `/proc/PID/uid_map` needs a process in the namespace. The helper makes one, the *member*,
//! which joins the shown namespace and ends at once. Then the helper opens the maps in the zombie's `/proc` directory, which
//! it opened before the member joined, writes them when the numbers have come, too, and reaps it last. The pid can't come to
//! name another process before that, and the directory never does. While nothing else is to do the next member is made: a
//! fork takes longer than all the rest.
//!
//! The kernel takes the map of a namespace only from who opened it in that one or in its parent. Where the parent is not the host's
//! another process, the *opener*, joins the parent when the member has ended, opens the two maps in the member's directory, hands
//! them back and ends. The helper writes them, as ever.
//!
//! The engine shows the namespace first, and sends the numbers when the ids are the account's and all that can be undone is
//! done. If it drops the pipe that they come by, or dies, nothing is written.
//!
//! **What an attacker could want, and why it can't have it.** The attacker made the namespace and has every
//! capability in it, over the member too from the moment when it joins.
//!
//! * *Take the member over* (ptrace, its memory, its descriptors): member and helper are not dumpable, and their memory
//!   belongs to the initial user namespace, where the attacker has no capability (`__ptrace_may_access`). Where
//!   `fs.suid_dumpable` is 1 joining makes the member dumpable again; so it has by then a uid that nobody else
//!   has, no capability outside the shown namespace, and no descriptor but that of the namespace.
//! * *Take the opener over*, which has the host's uid 0, for only that opens the maps: it is not dumpable either, and stays so, for
//!   where `fs.suid_dumpable` is 1 none is made. It has no capability outside of the attacker's namespace, and ends with what it
//!   was made for. Killed or stopped it holds up the attacker's own request, as the member does.
//! * *Kill, stop or slow it*: before it joins nobody has a right to it; afterwards it has one system call to go, its last.
//!   Until then it holds up the attacker's own request only: the helper waits for all members at once,
//!   and each has a time limit, at which it is killed, so that stopped ones don't pile up. A zombie can't be stopped, traced or ended, however long the numbers take.
//! * *Have another process mistaken for it*: nothing is looked up by pid after the fork.
//! * *Have a map written into a namespace of another's, of the host's, or of a parent of its own*: owner, parent
//!   and identity are asked of the very descriptor that the member joins by; a namespace's never change.
//! * *Write a map of its own in between*: the kernel takes each map once, whole. If the attacker is first, ours is refused, and the grant is undone.
//! * *Show something that is no namespace, or whose file system blocks*: what a descriptor is is asked of the kernel's own name
//!   of it before anything else ([`UsernsFd::from_fd`]).

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use cgrant_sys::{
    Child, Clone3, Dir, NsId, Pidfd, Received, UsernsFd, pidfd::Exit, privilege, seqpacket::Channel,
};
use nix::sys::signal::{SigSet, Signal};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::OFlags,
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities},
};

use super::{
    error::{MapRefusal, Step},
    message::{MapAnswer, MapNumbers, MapRequest, answer, read, timespec},
};

/// How long a member may take to join.
const MEMBER_LIMIT: Duration = Duration::from_secs(2);
/// Most members at one time.
const MAX_MEMBERS: usize = 128;

/// The status of a member that could not prepare itself.
const UNPREPARED: i32 = 255;

/// The id that members have. Nobody else may.
#[derive(Debug, Clone, Copy)]
pub struct Spare(pub u32);

/// Starts the helper.
///
/// # Errors
/// As [`Clone3::spawn`].
pub fn start(channel: &Channel, spare: Spare) -> std::io::Result<Child> {
    Clone3::new().spawn(|| match Helper::new(channel, spare) {
        Ok(helper) => helper.run(),
        Err(_) => 1,
    })
}

/// A member that was sent, and what it is for.
struct Pending {
    member: Pidfd,
    directory: Dir,
    /// Where the answer goes.
    pipe: OwnedFd,
    /// Where the numbers come from.
    orders: OwnedFd,
    numbers: Option<MapNumbers>,
    /// What is to be written, once the member has ended; or why it can't be.
    maps: Option<Result<Maps, MapRefusal>>,
    /// Until when it has to have joined.
    deadline: Instant,
    stage: Stage,
    /// The parent of its namespace, where that is not the host's.
    parent: Option<UsernsFd>,
    opener: Option<Opener>,
}

/// What happened to a member, and to what belongs to it.
#[derive(Debug, Clone, Copy, Default)]
struct News {
    /// It has ended.
    ended: bool,
    /// Its opener has.
    opened: bool,
    /// There are numbers, or their end.
    ordered: bool,
}

/// The maps of the namespace that a member has joined, both empty. They stay that namespace's whatever becomes of the member.
struct Maps {
    gid: OwnedFd,
    uid: OwnedFd,
}

/// How far a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// On its way into the namespace.
    Joining,
    /// It has ended, there or before. Its directory stays until it is reaped.
    Ended,
    /// Answered; to be reaped when it dies.
    GivenUp,
}

/// A process that opens the maps of a namespace from inside of its parent.
struct Opener {
    process: Pidfd,
    gate: Channel,
}

/// A member that waits to be told where to go.
struct Ready {
    member: Pidfd,
    directory: Dir,
    gate: Channel,
}

struct Helper<'a> {
    channel: &'a Channel,
    spare: Spare,
    host: NsId,
    pending: Vec<Pending>,
    ready: Option<Ready>,
}

/// What makes a helper, of either kind, one that nobody can reach: not dumpable, only the descriptor that it serves,
/// deaf to the terminal (it ends when the engine's end of the channel closes).
///
/// # Errors
/// Those of the calls.
pub fn seclude(channel: &Channel, keep: &[privilege::Capability]) -> std::io::Result<()> {
    privilege::set_dumpable(false)?;
    privilege::close_fds_from(3, &[channel.as_fd().as_raw_fd()])?;
    let mut deaf = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        deaf.add(signal);
    }
    deaf.thread_block()?;
    privilege::set_no_new_privs()?;
    privilege::drop_capabilities(keep)
}

impl<'a> Helper<'a> {
    fn new(channel: &'a Channel, spare: Spare) -> std::io::Result<Self> {
        use privilege::Capability as C;
        // SYS_ADMIN: to join, and for the member's setgroups file. SETUID and SETGID: the kernel asks for them to write
        // maps of ids other than one's own, and the member becomes its account with them. SYS_PTRACE: to see the member's
        // /proc directory where proc is mounted with hidepid. KILL: to end a member, which has another uid, that somebody
        // stopped on its way. SETFCAP is only asked for where uid 0 is mapped.
        seclude(channel, &[C::CAP_SYS_ADMIN, C::CAP_SETUID, C::CAP_SETGID, C::CAP_SYS_PTRACE, C::CAP_KILL])?;
        Ok(Self { channel, spare, host: UsernsFd::own()?.id()?, pending: Vec::new(), ready: None })
    }

    /// Serves until the engine is gone. Members that are left die with the kernel's help: nobody writes for them.
    fn run(mut self) -> i32 {
        loop {
            if self.ready.is_none() && self.pending.iter().all(|pending| pending.stage != Stage::Joining) {
                // If it can't be had now, the request that needs it will say so.
                self.ready = Ready::new(self.spare).ok();
            }
            let (has_request, news) = match self.wait() {
                Ok(ready) => ready,
                Err(_) => return 1,
            };
            self.settle(&news);
            if has_request {
                match self.channel.receive() {
                    Ok(Some(received)) => self.begin(received),
                    Ok(None) => {
                        if let Some(Ready { member, gate, .. }) = self.ready.take() {
                            dismiss(gate, &member);
                        }
                        return 0;
                    }
                    Err(_) => (),
                }
            }
        }
    }

    /// Waits for a request, for members and for numbers; says whether there is a request, and what is new of each that is pending.
    fn wait(&self) -> Result<(bool, Vec<News>), Errno> {
        let mut fds = vec![PollFd::new(self.channel, PollFlags::IN)];
        for pending in &self.pending {
            // With no event asked for, poll(2) would still say that a pipe has ended, again and again.
            if pending.awaits_end() {
                fds.push(PollFd::new(&pending.member, PollFlags::IN));
            }
            if let Some(opener) = &pending.opener {
                fds.push(PollFd::new(&opener.process, PollFlags::IN));
            }
            if pending.awaits_numbers() {
                fds.push(PollFd::new(&pending.orders, PollFlags::IN));
            }
        }
        let bounded = self.pending.iter().filter(|pending| pending.is_bounded());
        let next = bounded.map(|pending| pending.deadline).min();
        let limit = next.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => (),
            Err(errno) => return Err(errno),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let has_request = ready.next().unwrap_or(false);
        let mut next = |asked: bool| asked && ready.next().unwrap_or(false);
        let news = self.pending.iter().map(|each| News {
            ended: next(each.awaits_end()),
            opened: next(each.opener.is_some()),
            ordered: next(each.awaits_numbers()),
        });
        Ok((has_request, news.collect()))
    }

    /// Goes on with what has news, and gives up members whose time is over.
    fn settle(&mut self, news: &[News]) {
        let now = Instant::now();
        let mut news = news.iter();
        self.pending.retain_mut(|pending| pending.go_on(news.next().copied().unwrap_or_default(), now));
    }

    /// Takes a request up: checks the namespace and sends a member into it.
    fn begin(&mut self, received: Received) {
        let mut fds = received.fds.into_iter();
        let (Some(pipe), Some(orders), Some(namespace)) = (fds.next(), fds.next(), fds.next()) else {
            return;
        };
        let Ok(request) = cgrant_wire::decode::<MapRequest>(&received.bytes) else { return };
        let parent = fds.next().map(UsernsFd::from_fd).transpose();
        let sent = parent
            .map_err(|_| MapRefusal::NotAUserNamespace)
            .and_then(|parent| Ok((self.send_member(request, namespace, parent.as_ref())?, parent)));
        match sent {
            Ok(((member, directory), parent)) => self.pending.push(Pending {
                member,
                directory,
                pipe,
                orders,
                numbers: None,
                maps: None,
                deadline: Instant::now() + MEMBER_LIMIT,
                stage: Stage::Joining,
                parent,
                opener: None,
            }),
            Err(refusal) => answer(&pipe, &MapAnswer::Err(refusal)),
        }
    }

    fn send_member(
        &mut self,
        request: MapRequest,
        namespace: OwnedFd,
        parent: Option<&UsernsFd>,
    ) -> Result<(Pidfd, Dir), MapRefusal> {
        if self.pending.len() >= MAX_MEMBERS {
            return Err(MapRefusal::TooMany);
        }
        let namespace = UsernsFd::from_fd(namespace).map_err(|_| MapRefusal::NotAUserNamespace)?;
        self.check(&namespace, parent, request.owner)?;
        if let Some(sent) = self.ready.take().and_then(|ready| ready.send(&namespace)) {
            return Ok(sent);
        }
        // None was there, or somebody (root, by hand) has ended it.
        let fresh = Ready::new(self.spare).map_err(|error| MapRefusal::io(Step::Fork, &error))?;
        fresh.send(&namespace).ok_or(MapRefusal::Interfered)
    }

    /// Is this a namespace that the owner may have a map in?
    fn check(&self, namespace: &UsernsFd, above: Option<&UsernsFd>, owner: u32) -> Result<(), MapRefusal> {
        let look = |error: std::io::Error| MapRefusal::io(Step::Look, &error);
        if namespace.id().map_err(look)? == self.host {
            return Err(MapRefusal::HostNamespace);
        }
        // EPERM: its parent is outside the host's namespace; one that is not ours to see is not ours to map either.
        let parent = namespace.parent().map_err(|_| MapRefusal::Nested)?.id().map_err(look)?;
        match above.map(UsernsFd::id).transpose().map_err(look)? {
            Some(above) if above != parent => return Err(MapRefusal::OthersChild),
            None if parent != self.host => return Err(MapRefusal::Nested),
            _ => (),
        }
        if above.is_some() && keeps_dumpable() {
            return Err(MapRefusal::Dumpable);
        }
        match namespace.owner_uid().map_err(look)? {
            uid if uid == owner => Ok(()),
            uid => Err(MapRefusal::OthersNamespace(uid)),
        }
    }
}

impl Ready {
    fn new(spare: Spare) -> std::io::Result<Self> {
        let (gate, far) = cgrant_sys::seqpacket::pair()?;
        let child = Clone3::new().spawn(|| member(far, spare))?;
        // While the member waits at the gate it is ours alone; its directory stays its own for good.
        match Dir::open(Path::new(&format!("/proc/{}", child.pid))) {
            Ok(directory) => Ok(Self { member: child.pidfd, directory, gate }),
            Err(error) => {
                dismiss(gate, &child.pidfd);
                Err(error)
            }
        }
    }

    /// Sends it into a namespace; `None` if it is gone.
    fn send(self, namespace: &UsernsFd) -> Option<(Pidfd, Dir)> {
        let Self { member, directory, gate } = self;
        match gate.send(&[1], &[namespace.as_fd()]) {
            Ok(()) => Some((member, directory)),
            Err(_) => {
                dismiss(gate, &member);
                None
            }
        }
    }
}

/// Ends a member that has not been sent anywhere, and reaps it. It would end by itself when its gate is gone, unless
/// somebody has stopped it.
fn dismiss(gate: Channel, member: &Pidfd) {
    drop(gate);
    let _ = member.send_signal(cgrant_sys::pidfd::Signal::KILL);
    let _ = member.wait();
}

impl Pending {
    /// Has it a time limit now?
    fn is_bounded(&self) -> bool {
        self.stage == Stage::Joining || (self.stage == Stage::Ended && self.opener.is_some())
    }

    fn awaits_end(&self) -> bool {
        self.stage != Stage::Ended
    }

    fn awaits_numbers(&self) -> bool {
        self.stage != Stage::GivenUp && self.numbers.is_none()
    }

    /// Goes on as far as it can; `false` when there is nothing more to do.
    fn go_on(&mut self, news: News, now: Instant) -> bool {
        if self.stage == Stage::GivenUp {
            return !(news.ended || news.opened) || self.is_left();
        }
        if news.ended {
            self.stage = Stage::Ended;
            match self.parent.take() {
                None => self.maps = Some(self.open_maps()),
                Some(parent) => match self.joined().and_then(|()| Opener::send(&parent, &self.directory)) {
                    Ok(opener) => {
                        self.opener = Some(opener);
                        self.deadline = now + MEMBER_LIMIT;
                    }
                    Err(refusal) => self.maps = Some(Err(refusal)),
                },
            }
        }
        if news.opened
            && let Some(opener) = self.opener.take()
        {
            self.maps = Some(opener.finish());
        }
        if news.ordered {
            match read(&self.orders) {
                Ok(Some(numbers)) => self.numbers = Some(numbers),
                // The engine does not want it any more.
                Ok(None) | Err(_) => return self.give_up(),
            }
        }
        if self.is_bounded() && self.deadline <= now {
            answer(&self.pipe, &MapAnswer::Err(MapRefusal::Interfered));
            return self.give_up();
        }
        let Some(numbers) = self.numbers else { return true };
        let Some(maps) = self.maps.take() else { return true };
        answer(&self.pipe, &maps.and_then(|maps| self.finish(&maps, numbers)));
        self.give_up()
    }

    /// Has nothing more to do with the member; `false` if it is reaped. One that lives on is killed, which may take effect
    /// late if it is frozen.
    fn give_up(&mut self) -> bool {
        if self.stage == Stage::Joining {
            let _ = self.member.send_signal(cgrant_sys::pidfd::Signal::KILL);
        }
        if let Some(opener) = &self.opener {
            let _ = opener.process.send_signal(cgrant_sys::pidfd::Signal::KILL);
        }
        self.stage = Stage::GivenUp;
        self.is_left()
    }

    /// Is the member or its opener still to be reaped?
    fn is_left(&mut self) -> bool {
        let lives = |process: &Pidfd| process.try_wait().is_ok_and(|exit| exit.is_none());
        self.opener = self.opener.take().filter(|opener| lives(&opener.process));
        lives(&self.member) || self.opener.is_some()
    }

    /// Opens the maps, through a member that has ended.
    fn open_maps(&self) -> Result<Maps, MapRefusal> {
        self.joined()?;
        Ok(Maps {
            gid: self.open_map("gid_map", Step::GidMap)?,
            uid: self.open_map("uid_map", Step::UidMap)?,
        })
    }

    fn open_map(&self, file: &str, step: Step) -> Result<OwnedFd, MapRefusal> {
        let map =
            self.directory.open_file(file, OFlags::RDWR).map_err(|error| MapRefusal::io(step, &error))?;
        match is_unmapped(&map).map_err(|errno| MapRefusal::kernel(step, errno))? {
            true => Ok(map),
            false => Err(MapRefusal::AlreadyMapped),
        }
    }

    /// Writes the maps.
    fn finish(&self, maps: &Maps, numbers: MapNumbers) -> MapAnswer {
        if !numbers.setgroups {
            let denied = self.directory.write("setgroups", "deny");
            denied.map_err(|error| MapRefusal::io(Step::Setgroups, &error))?;
        }
        let [uids, gids] = numbers.maps();
        write_map(&maps.gid, &gids, Step::GidMap)?;
        write_map(&maps.uid, &uids, Step::UidMap)
    }

    /// Did the member join? Leaves it to be reaped.
    fn joined(&self) -> Result<(), MapRefusal> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.member.as_fd()), options))
            .map_err(|errno| MapRefusal::kernel(Step::Join, errno))?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            Some(errno) if errno < UNPREPARED && errno != cgrant_sys::clone::PANICKED => {
                Err(MapRefusal::Kernel { step: Step::Join, errno })
            }
            Some(_) => Err(MapRefusal::Kernel { step: Step::Fork, errno: Errno::PERM.raw_os_error() }),
            None => Err(MapRefusal::Interfered),
        }
    }
}

impl Opener {
    /// Makes one, and sends it into the parent of the namespace that the member has joined whose directory this is.
    fn send(parent: &UsernsFd, directory: &Dir) -> Result<Self, MapRefusal> {
        let fork = |error: std::io::Error| MapRefusal::io(Step::Fork, &error);
        let (gate, far) = cgrant_sys::seqpacket::pair().map_err(fork)?;
        let child = Clone3::new().spawn(|| open_from_parent(&far)).map_err(fork)?;
        drop(far);
        match gate.send(&[1], &[parent.as_fd(), directory.as_fd()]) {
            Ok(()) => Ok(Self { process: child.pidfd, gate }),
            Err(_) => {
                dismiss(gate, &child.pidfd);
                Err(MapRefusal::Interfered)
            }
        }
    }

    /// The maps that it opened. It has ended.
    fn finish(self) -> Result<Maps, MapRefusal> {
        match self.process.try_wait() {
            Ok(Some(Exit::Code(0))) => (),
            Ok(Some(Exit::Code(errno)))
                if errno > 0 && errno < UNPREPARED && errno != cgrant_sys::clone::PANICKED =>
            {
                return Err(MapRefusal::Kernel { step: Step::JoinParent, errno });
            }
            _ => return Err(MapRefusal::Interfered),
        }
        let received = self.gate.receive().ok().flatten().ok_or(MapRefusal::Interfered)?;
        let [gid, uid] = <[OwnedFd; 2]>::try_from(received.fds).map_err(|_| MapRefusal::Interfered)?;
        for (map, step) in [(&gid, Step::GidMap), (&uid, Step::UidMap)] {
            if !is_unmapped(map).map_err(|errno| MapRefusal::kernel(step, errno))? {
                return Err(MapRefusal::AlreadyMapped);
            }
        }
        Ok(Maps { gid, uid })
    }
}

/// Does a process that enters another user namespace become one that whoever has rights there may trace?
fn keeps_dumpable() -> bool {
    // Unreadable: not known to be safe.
    std::fs::read_to_string("/proc/sys/fs/suid_dumpable").map_or(true, |text| text.trim() == "1")
}

/// The whole life of an opener. It runs in a copy of the helper.
fn open_from_parent(gate: &Channel) -> i32 {
    let only = CapabilitySets {
        effective: CapabilitySet::SYS_ADMIN,
        permitted: CapabilitySet::SYS_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    let prepared = privilege::close_fds_from(0, &[gate.as_fd().as_raw_fd()])
        .and_then(|()| Ok(set_capabilities(None, only)?))
        .and_then(|()| privilege::set_dumpable(false));
    if prepared.is_err() {
        return UNPREPARED;
    }
    let Ok(Some(Received { fds, .. })) = gate.receive() else { return UNPREPARED };
    let mut fds = fds.into_iter();
    let (Some(Ok(parent)), Some(directory)) = (fds.next().map(UsernsFd::from_fd), fds.next()) else {
        return UNPREPARED;
    };
    let opened = parent.enter().and_then(|()| {
        let open = |file: &str| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&directory, file, flags, rustix::fs::Mode::empty())
        };
        Ok((open("gid_map")?, open("uid_map")?))
    });
    match opened {
        Ok((gid, uid)) => match gate.send(&[1], &[gid.as_fd(), uid.as_fd()]) {
            Ok(()) => 0,
            Err(_) => UNPREPARED,
        },
        Err(error) => error.raw_os_error().unwrap_or(UNPREPARED),
    }
}

fn is_unmapped(map: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::read(map, &mut [0; 1]))? == 0)
}

/// Writes a map that was empty when it was opened: the file is at its beginning still, as the kernel wants it.
fn write_map(map: &OwnedFd, text: &str, step: Step) -> Result<(), MapRefusal> {
    match rustix::io::retry_on_intr(|| rustix::io::write(map, text.as_bytes())) {
        Ok(_) => Ok(()),
        // Somebody inside was quicker.
        Err(_) if is_unmapped(map) == Ok(false) => Err(MapRefusal::AlreadyMapped),
        Err(errno) => Err(MapRefusal::kernel(step, errno)),
    }
}

impl MapRefusal {
    fn kernel(step: Step, errno: Errno) -> Self {
        Self::Kernel { step, errno: errno.raw_os_error() }
    }

    fn io(step: Step, error: &std::io::Error) -> Self {
        Self::Kernel { step, errno: error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()) }
    }
}

/// The whole life of a member. It runs in a copy of the helper.
fn member(gate: Channel, spare: Spare) -> i32 {
    if prepare(&gate, spare).is_err() {
        return UNPREPARED;
    }
    // The end of the channel is the end of the helper.
    let Ok(Some(Received { mut fds, .. })) = gate.receive() else { return UNPREPARED };
    drop(gate);
    let Some(Ok(namespace)) = fds.pop().map(UsernsFd::from_fd) else { return UNPREPARED };
    match namespace.enter() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(UNPREPARED),
    }
}

/// Gives up all but the one capability that joining asks for, and every descriptor but the gate.
fn prepare(gate: &Channel, spare: Spare) -> std::io::Result<()> {
    privilege::close_fds_from(0, &[gate.as_fd().as_raw_fd()])?;
    set_keep_capabilities(true)?;
    privilege::become_account(spare.0, spare.0)?;
    let join = CapabilitySets {
        effective: CapabilitySet::SYS_ADMIN,
        permitted: CapabilitySet::SYS_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, join)?;
    // Changing the uid made it what fs.suid_dumpable says.
    privilege::set_dumpable(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_sys::seqpacket;
    use rustix::{
        fs::{CWD, Mode, OFlags, openat},
        pipe::{PipeFlags, pipe_with},
    };

    use super::*;

    /// What a helper answers to a request with these descriptors after the pipes; `None` if nothing. The test process has
    /// threads, so a request that is taken up fails where the member would be made, and not before.
    fn answered(bytes: &[u8], fds: Vec<OwnedFd>) -> Option<MapAnswer> {
        let (channel, _other) = seqpacket::pair().unwrap();
        let host = UsernsFd::own().unwrap().id().unwrap();
        let mut helper =
            Helper { channel: &channel, spare: Spare(1), host, pending: Vec::new(), ready: None };
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (orders, _numbers) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        helper.begin(Received {
            bytes: bytes.to_vec(),
            fds: [writer, orders].into_iter().chain(fds).collect(),
        });
        let mut answer = [0; 512];
        let length = rustix::io::read(&reader, &mut answer).unwrap();
        (length > 0).then(|| cgrant_wire::decode(&answer[..length]).unwrap())
    }

    fn request() -> Vec<u8> {
        cgrant_wire::encode(&MapRequest { owner: 0 }).unwrap()
    }

    #[test]
    fn what_is_no_user_namespace_is_refused() {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = |path: &str, flags| openat(CWD, path, flags, Mode::empty()).unwrap();
        let pidfd = Pidfd::own().unwrap().try_clone().unwrap();
        let pidfd = rustix::io::fcntl_dupfd_cloexec(pidfd.as_fd(), 0).unwrap();
        for fd in [
            open("/dev/null", flags),
            open("/proc/self/ns/net", flags),
            open("/proc/self/ns/mnt", flags),
            open("/proc/self/ns", flags),
            open("/proc/self/ns/user", flags | OFlags::PATH),
            pidfd,
            pipe_with(PipeFlags::CLOEXEC).unwrap().0,
        ] {
            let name = cgrant_sys::kind_of(&fd).unwrap();
            let answer = answered(&request(), vec![fd]);
            assert_eq!(answer, Some(Err(MapRefusal::NotAUserNamespace)), "{name}");
        }
    }

    #[test]
    fn a_malformed_request_gets_no_answer_and_does_no_harm() {
        let own = || OwnedFd::from(UsernsFd::own().unwrap());
        assert_eq!(answered(&request(), vec![own()]), Some(Err(MapRefusal::HostNamespace)));
        assert_eq!(answered(&request(), vec![]), None);
        assert_eq!(answered(&[0xff; 3], vec![own()]), None);
        assert_eq!(answered(&[], vec![own()]), None);
    }
}
