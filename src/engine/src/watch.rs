//! What the engine waits for: one epoll, one inotify, one timer. An idle engine makes no system call. Several threads may wait
//! at once; what is level-triggered may then be told to more than one of them.
//!
//! Descriptors of grants (holders' pidfds, pressure triggers, the v1 out-of-memory eventfd) are owned here, so
//! that whoever removes a watch closes it. Files are watched by inotify, one watch descriptor each.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cgrant_policy::HostUid;
use cgrant_wire::{GrantId, QuestionId, boot::FrontKind};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Events taken from the kernel at once.
const BATCH: usize = 64;

/// What a descriptor or file that became ready means.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The supervisor spoke.
    Control,
    /// Somebody connects to the listener of this number.
    Listener(usize),
    /// A front spoke, or can be spoken to again.
    Link(FrontKind),
    /// Files changed.
    Files,
    /// The engine ends.
    Over,
    /// The process that this watch is for, a holder of the grant's now or once, has ended.
    Holder(GrantId, u64),
    /// The grant's `cgroup.events` changed.
    Populated(GrantId),
    /// Processes of the grant were killed for want of memory, maybe.
    Oom(GrantId),
    /// The grant waits for the resource.
    Pressure(GrantId, String),
    /// The network helper spoke.
    Net,
    /// A helper has died.
    Helper,
    /// `/etc` changed.
    Accounts,
    /// Users who are missing in it may be gone by now; the watch has said its one word.
    AccountsDue(u64),
    /// Somebody logged in or out.
    Logins,
    /// Who has logged out is to be looked for; the watch has said its one word.
    LoginsDue(u64),
    /// The time is over that the grant had to end by itself; the watch says which.
    Leaving(GrantId, u64),
    /// A policy file, or the directory of them, may have changed.
    Policy,
    /// The policy is to be read again.
    PolicyDue,
    /// A cgroup that is watched has been removed.
    Vanished(GrantId),
    /// The time that the grant had without a holder, once or now, is over; the watch says which.
    Deadline(GrantId, u64),
    /// The account's node may have been empty for a while.
    Vacant(HostUid),
    /// Requests of the account's that waited for its pace may begin; the watch has said its one word.
    Pace(HostUid, u64),
    /// It is time to accept again what could not be accepted.
    Accept,
    /// It is time to say how much was left out of the log about refusals; the watch has said its one word.
    Refusals(Option<HostUid>, u64),
    /// It is time to look at what the account uses; the watch has said its one word.
    Usage(HostUid, u64),
    /// The kernel told something of cgroups that are to be removed when they are empty.
    Wishes,
    /// The cgroup of this wish is to be looked at.
    Wish(u64),
    /// The time for the answer to a question to polkit is over; the watch has said its one word.
    Question(QuestionId, u64),
}

/// Says something when its time is over.
pub struct Timer(OwnedFd);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// If the kernel has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?))
    }

    /// Its time is over after `delay`; what it was set to before counts no more.
    ///
    /// # Errors
    /// Those of `timerfd_settime(2)`.
    pub fn set(&self, delay: Duration) -> io::Result<()> {
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

enum Watch {
    Borrowed { target: Target },
    Owned { target: Target, fd: OwnedFd },
    File { target: Target, watch: WatchDescriptor },
}

#[derive(Default)]
struct Table {
    last: u64,
    watches: HashMap<u64, Watch>,
    files: HashMap<WatchDescriptor, u64>,
}

impl Table {
    fn token(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// Everything that is waited for.
pub struct Watches {
    epoll: Epoll,
    inotify: Inotify,
    table: Mutex<Table>,
}

impl Watches {
    /// Nothing is watched yet.
    ///
    /// # Errors
    /// If the kernel has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let watches = Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            table: Mutex::default(),
        };
        watches.borrow(watches.inotify.as_fd(), EpollFlags::EPOLLIN, Target::Files)?;
        Ok(watches)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a descriptor that somebody else owns and that stays open until the watch is removed.
    ///
    /// # Errors
    /// If epoll refuses it.
    pub fn borrow(&self, fd: BorrowedFd<'_>, flags: EpollFlags, target: Target) -> io::Result<u64> {
        let mut table = self.table();
        let token = table.token();
        self.epoll.add(fd, EpollEvent::new(flags, token))?;
        table.watches.insert(token, Watch::Borrowed { target });
        Ok(token)
    }

    /// Watches a descriptor and owns it.
    ///
    /// # Errors
    /// If epoll refuses it; it is closed then.
    pub fn own(&self, fd: OwnedFd, flags: EpollFlags, target: Target) -> io::Result<u64> {
        self.own_numbered(fd, flags, |_| target)
    }

    /// As [`own`](Self::own), for an event that says which watch it comes from.
    ///
    /// # Errors
    /// As [`own`](Self::own).
    pub fn own_numbered(
        &self,
        fd: OwnedFd,
        flags: EpollFlags,
        target: impl FnOnce(u64) -> Target,
    ) -> io::Result<u64> {
        let mut table = self.table();
        let token = table.token();
        self.epoll.add(&fd, EpollEvent::new(flags, token))?;
        table.watches.insert(token, Watch::Owned { target: target(token), fd });
        Ok(token)
    }

    /// Changes what a borrowed descriptor is watched for.
    ///
    /// # Errors
    /// If epoll does not know it.
    pub fn modify(&self, fd: BorrowedFd<'_>, flags: EpollFlags, token: u64) -> io::Result<()> {
        self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?;
        Ok(())
    }

    /// Stops watching a borrowed descriptor.
    pub fn forget(&self, fd: BorrowedFd<'_>, token: u64) {
        let _ = self.epoll.delete(fd);
        self.table().watches.remove(&token);
    }

    /// Watches an open file for the kernel's notices that its content changed, and its directory's end.
    ///
    /// # Errors
    /// If inotify refuses it (the user's limit of watches, say).
    pub fn file(&self, file: BorrowedFd<'_>, flags: AddWatchFlags, target: Target) -> io::Result<u64> {
        // inotify takes paths only; this one leads to the very file that is open, whatever its name means by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut table = self.table();
        let watch = self.inotify.add_watch(path.as_str(), flags)?;
        let token = table.token();
        table.files.insert(watch, token);
        table.watches.insert(token, Watch::File { target, watch });
        Ok(token)
    }

    /// Says `target` once, after `delay`; it is told which watch it is of.
    ///
    /// # Errors
    /// If the kernel has no descriptors left.
    pub fn after(&self, delay: Duration, target: impl FnOnce(u64) -> Target) -> io::Result<u64> {
        let timer = Timer::new()?;
        timer.set(delay)?;
        self.own_numbered(timer.0, EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, target)
    }

    /// Ends watches and closes what they own. They may have ended before.
    pub fn remove(&self, tokens: &[u64]) {
        let mut table = self.table();
        let mut removed = Vec::with_capacity(tokens.len());
        for token in tokens {
            let Some(watch) = table.watches.remove(token) else { continue };
            if let Watch::File { watch, .. } = &watch {
                table.files.remove(watch);
            }
            removed.push(watch);
        }
        // Without the table, which the main loop wants at once: the kernel tells it of every file that is watched no more.
        // What it tells of these means nothing by now, and no number is given anew for a long time.
        drop(table);
        for watch in removed {
            match watch {
                Watch::Owned { fd, .. } => {
                    let _ = self.epoll.delete(&fd);
                }
                Watch::File { watch, .. } => {
                    // The kernel has dropped it already if the file is gone.
                    let _ = self.inotify.rm_watch(watch);
                }
                Watch::Borrowed { .. } => (),
            }
        }
    }

    /// Waits until something happened, and says what, with what epoll reported.
    ///
    /// # Errors
    /// If epoll fails for another reason than a signal.
    pub fn wait(&self) -> io::Result<Vec<(Target, EpollFlags)>> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut seen = Vec::with_capacity(count);
        for event in events.iter().take(count) {
            let target = match self.table().watches.get(&event.data()) {
                Some(Watch::Borrowed { target } | Watch::Owned { target, .. }) => target.clone(),
                _ => continue,
            };
            if target == Target::Files {
                seen.extend(self.changed_files().into_iter().map(|target| (target, EpollFlags::EPOLLIN)));
            } else {
                seen.push((target, event.events()));
            }
        }
        Ok(seen)
    }

    fn changed_files(&self) -> Vec<Target> {
        let events = self.inotify.read_events().unwrap_or_default();
        let table = self.table();
        let mut targets: Vec<Target> = Vec::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                // Notices were lost: everything may have changed.
                return table
                    .watches
                    .values()
                    .filter_map(|watch| match watch {
                        Watch::File { target, .. } => Some(target.clone()),
                        _ => None,
                    })
                    .collect();
            }
            let Some(Watch::File { target, .. }) =
                table.files.get(&event.wd).and_then(|token| table.watches.get(token))
            else {
                continue;
            };
            let gone = event.mask.intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF);
            let target = match target {
                Target::Populated(grant) if gone => Target::Vanished(*grant),
                target => target.clone(),
            };
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets
    }
}
