//! The wishes that are open, and what the kernel is asked to tell of their cgroups. No polling: nothing is called while nothing
//! happens.
//!
//! On cgroup2 the kernel tells when a cgroup gets empty. On v1 it tells when something is put into one (a write to `tasks` or
//! `cgroup.procs`) and when a cgroup in it is removed; and of one of its processes at a time, when that ends. A process that
//! somebody else moves out of a v1 cgroup is noticed when it ends.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cgrant_policy::HostUid;
use cgrant_sys::{Dir, Pidfd};
use nix::sys::{
    epoll::EpollFlags,
    inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use rustix::fs::OFlags;

use super::record::{WishFiles, WishRecord};
use crate::{
    cgroup::Kind,
    watch::{Target, Watches},
};

/// The first wait before a cgroup is looked at again that could not be made out.
const SOON: Duration = Duration::from_millis(50);
/// The longest.
const LATE: Duration = Duration::from_secs(10);

/// What an inotify watch is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// The directory.
    Directory,
    /// A file by which processes are put into a v1 cgroup.
    Entrance,
    /// `cgroup.events`.
    Events,
}

/// A wish that is open.
#[derive(Debug)]
struct Wish {
    record: WishRecord,
    files: Vec<WatchDescriptor>,
    /// The watch for the end of one of its processes, or for a time.
    next: Option<u64>,
    /// How often it was not to be made out.
    failures: u32,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    wishes: HashMap<u64, Wish>,
    places: HashMap<(String, Vec<String>), u64>,
    files: HashMap<WatchDescriptor, (u64, Watched)>,
}

/// The wishes that are open.
pub struct Wishes {
    inotify: Inotify,
    files: WishFiles,
    table: Mutex<Table>,
}

impl Wishes {
    /// None yet; those on disk are for [`take_over`](super::take_over).
    ///
    /// # Errors
    /// If the directory of the files, or inotify, can't be had.
    pub fn open(run: &Dir) -> io::Result<Self> {
        Ok(Self {
            // One of its own: two watches of an instance on the same file are one.
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            files: WishFiles::open(run)?,
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes readable when the kernel has told something.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// The wishes on disk.
    ///
    /// # Errors
    /// If they can't be listed.
    pub fn load(&self, boot: &str) -> io::Result<Vec<(u64, WishRecord)>> {
        let wishes = self.files.load(boot)?;
        self.table().last = wishes.iter().map(|(id, _)| *id).max().unwrap_or(0);
        Ok(wishes)
    }

    /// The wishes of an account, or all.
    pub fn of(&self, account: Option<HostUid>) -> Vec<u64> {
        let table = self.table();
        let wishes = table.wishes.iter();
        wishes
            .filter(|(_, wish)| account.is_none_or(|account| wish.record.account == account.0))
            .map(|(id, _)| *id)
            .collect()
    }

    /// The wish for a cgroup.
    pub fn at(&self, hierarchy: &str, names: &[String]) -> Option<u64> {
        self.table().places.get(&(hierarchy.to_owned(), names.to_vec())).copied()
    }

    /// What was wished.
    pub fn record(&self, id: u64) -> Option<WishRecord> {
        self.table().wishes.get(&id).map(|wish| wish.record.clone())
    }

    /// Opens a wish that is on disk under this number; or under a new one, when it is written there first. Its cgroup is to be
    /// looked at afterwards.
    ///
    /// # Errors
    /// If it can't be written, or the kernel watches no more files; then it is not open.
    pub fn add(&self, known: Option<u64>, record: WishRecord, kind: Kind, dir: &Dir) -> io::Result<u64> {
        let id = match known {
            Some(id) => id,
            None => {
                let id = {
                    let mut table = self.table();
                    table.last += 1;
                    table.last
                };
                self.files.write(id, &record)?;
                id
            }
        };
        let place = (record.hierarchy.clone(), record.names.clone());
        let wish = Wish { record, files: Vec::new(), next: None, failures: 0 };
        {
            let mut table = self.table();
            table.wishes.insert(id, wish);
            table.places.insert(place, id);
        }
        match self.watch_files(id, kind, dir) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.forget(id, None);
                Err(error)
            }
        }
    }

    fn watch_files(&self, id: u64, kind: Kind, dir: &Dir) -> io::Result<()> {
        let changed = AddWatchFlags::IN_MODIFY;
        let files: &[(&str, Watched)] = match kind {
            Kind::V1 => &[("tasks", Watched::Entrance), ("cgroup.procs", Watched::Entrance)],
            Kind::V2 => &[("cgroup.events", Watched::Events)],
        };
        for (file, watched) in files {
            let file = dir.open_file(file, OFlags::PATH)?;
            self.watch(id, file.as_fd(), changed, *watched)?;
        }
        let removed = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ONLYDIR;
        self.watch(id, dir.as_fd(), removed, Watched::Directory)
    }

    fn watch(&self, id: u64, file: BorrowedFd<'_>, flags: AddWatchFlags, watched: Watched) -> io::Result<()> {
        // inotify takes paths only; this one leads to the very file that is open, whatever its name means by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut table = self.table();
        let number = self.inotify.add_watch(path.as_str(), flags)?;
        table.files.insert(number, (id, watched));
        if let Some(wish) = table.wishes.get_mut(&id) {
            wish.files.push(number);
        }
        Ok(())
    }

    /// Closes a wish, which was fulfilled or can't be any more.
    pub fn forget(&self, id: u64, watches: Option<&Watches>) {
        self.files.remove(id);
        let (numbers, next) = {
            let mut table = self.table();
            let Some(wish) = table.wishes.remove(&id) else { return };
            let place = (wish.record.hierarchy, wish.record.names);
            if table.places.get(&place) == Some(&id) {
                table.places.remove(&place);
            }
            for number in &wish.files {
                table.files.remove(number);
            }
            (wish.files, wish.next)
        };
        for number in numbers {
            // The kernel has dropped it already if the file is gone.
            let _ = self.inotify.rm_watch(number);
        }
        if let Some(watches) = watches {
            watches.remove(next.as_slice());
        }
    }

    /// What the kernel has told: which wishes are to be looked at.
    pub fn told(&self) -> Vec<u64> {
        let events = self.inotify.read_events().unwrap_or_default();
        let mut table = self.table();
        let mut ids: Vec<u64> = Vec::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                // Notices were lost: everything may have changed.
                return table.wishes.keys().copied().collect();
            }
            let Some((id, watched)) = table.files.get(&event.wd).copied() else { continue };
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                table.files.remove(&event.wd);
            }
            // Something was put in, which may be gone by the time that anybody looks; or was in there.
            let had = watched == Watched::Entrance && event.mask.contains(AddWatchFlags::IN_MODIFY)
                || watched == Watched::Directory && event.mask.contains(AddWatchFlags::IN_DELETE);
            if let Some(wish) = table.wishes.get_mut(&id) {
                wish.record.had |= had;
            }
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    /// Something is in the cgroup. Says so on disk if it did not before.
    pub fn has_been_used(&self, id: u64) {
        let record = {
            let mut table = self.table();
            let Some(wish) = table.wishes.get_mut(&id).filter(|wish| !wish.record.had) else { return };
            wish.record.had = true;
            wish.record.clone()
        };
        if let Err(error) = self.files.write(id, &record) {
            tracing::warn!(%error, "after a restart a cgroup that is to be removed when it is empty may stay");
        }
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// If the kernel has no descriptors left.
    pub fn await_process(&self, id: u64, process: Pidfd, watches: &Watches) -> io::Result<()> {
        // Readable for ever once it has ended: told once.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        self.set_next(id, Some(watches.own(process.into(), flags, Target::Wish(id))?), watches);
        self.clear(id);
        Ok(())
    }

    /// Looks again after a while, which gets longer from time to time.
    pub fn await_time(&self, id: u64, watches: &Watches) {
        let failures = {
            let mut table = self.table();
            let Some(wish) = table.wishes.get_mut(&id) else { return };
            wish.failures = wish.failures.saturating_add(1);
            wish.failures - 1
        };
        let delay = SOON.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LATE);
        match watches.after(delay, |_| Target::Wish(id)) {
            Ok(watch) => self.set_next(id, Some(watch), watches),
            Err(error) => {
                tracing::warn!(%error, "no timer for a cgroup that is to be removed when it is empty")
            }
        }
    }

    /// Waits for what the kernel tells of the files alone.
    pub fn await_files(&self, id: u64, watches: &Watches) {
        self.set_next(id, None, watches);
        self.clear(id);
    }

    fn clear(&self, id: u64) {
        if let Some(wish) = self.table().wishes.get_mut(&id) {
            wish.failures = 0;
        }
    }

    fn set_next(&self, id: u64, next: Option<u64>, watches: &Watches) {
        let old = match self.table().wishes.get_mut(&id) {
            Some(wish) => std::mem::replace(&mut wish.next, next),
            // It was closed meanwhile.
            None => next,
        };
        watches.remove(old.as_slice());
    }
}
