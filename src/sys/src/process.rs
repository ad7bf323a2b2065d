//! What `/proc` says about processes, and a few facts about the host.
//!
//! Everything here goes by pid and is only worth something under a [`crate::Pidfd`] that is checked to be alive afterwards.
//! Source: `proc(5)`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::{Errno, pread, retry_on_intr};

use crate::dir::{Dir, read_bounded};
use crate::mount::{PROC_MAGIC, statfs_magic};
use crate::namespace::PidnsFd;

/// Longest file of `/proc` that is read, in bytes: room for the children of a process with 100,000 of them.
const MAX_FILE: usize = 1024 * 1024;

/// Flag of a thread that is ending (include/linux/sched.h), in field 9 of `/proc/PID/stat`.
const PF_EXITING: u64 = 0x4;

/// As much of a process's list of cgroups is read at once, in bytes.
const CGROUPS_AT_ONCE: usize = 16 * 1024;

/// A mounted proc.
#[derive(Debug)]
pub struct ProcFs(Dir);

/// The list of a process's cgroups, kept open. It never becomes another process's, whose number is the same later
/// (`get_proc_task` of `fs/proc/base.c`).
#[derive(Debug)]
pub struct CgroupList(OwnedFd);

impl CgroupList {
    /// As [`ProcFs::cgroups`], at the moment of this call.
    ///
    /// # Errors
    /// `ESRCH` if the process was reaped; `EFBIG` for a list of more than 16 KiB, which [`ProcFs::cgroups`] reads.
    pub fn read(&self) -> io::Result<Vec<(String, String)>> {
        let mut bytes = [0; CGROUPS_AT_ONCE];
        // The kernel makes the whole list for one call.
        let count = retry_on_intr(|| pread(&self.0, &mut bytes, 0))?;
        let text = bytes.get(..count).filter(|_| count < CGROUPS_AT_ONCE).ok_or(Errno::FBIG)?;
        parse_cgroups(&String::from_utf8_lossy(text))
    }
}

/// Part of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `D`, `Z`, `T`, `t`, `X`, `I`.
    pub state: char,
    /// Pid of its parent; 0 if that is not visible from here.
    pub ppid: u32,
    /// Its session.
    pub session: u32,
    /// Is its first thread ending or gone? Then `/proc/PID/cgroup` has `/` for every v1 hierarchy (kernel/cgroup/cgroup.c,
    /// `proc_cgroup_show`), though other threads may live on.
    pub exiting: bool,
    /// Its number of threads.
    pub threads: u32,
    /// When it started, in clock ticks after boot.
    pub start_time: u64,
    /// Where its arguments begin and end in its memory; 0 of a process that this one may not trace.
    pub arguments: (u64, u64),
}

/// A line of an id map: so many ids of a user namespace, and which they are outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdExtent {
    /// The first one inside.
    pub inside: u32,
    /// The first one, as this process's user namespace counts.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdExtent {
    /// What the id is called inside, if it is one of these.
    #[must_use]
    pub fn inside(&self, outside: u32) -> Option<u32> {
        let offset = outside.checked_sub(self.outside).filter(|offset| *offset < self.count)?;
        self.inside.checked_add(offset)
    }

    /// What the id is called outside, if it is one of these and is one there.
    #[must_use]
    pub fn outside(&self, inside: u32) -> Option<u32> {
        let offset = inside.checked_sub(self.inside).filter(|offset| *offset < self.count)?;
        self.outside.checked_add(offset).filter(|id| *id != u32::MAX)
    }
}

/// Which ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// Those of users.
    Uid,
    /// Those of groups.
    Gid,
}

impl ProcFs {
    /// The proc at `/proc`.
    ///
    /// # Errors
    /// `ENODEV` if something else is mounted there; those of opening it.
    pub fn open() -> io::Result<Self> {
        let dir = Dir::open(Path::new("/proc"))?;
        if statfs_magic(&dir)? != PROC_MAGIC {
            return Err(Errno::NODEV.into());
        }
        Ok(Self(dir))
    }

    /// The cgroups of a process: the hierarchy's name (`cgroup2`, or a v1 hierarchy's controllers as they stand in
    /// the file: `cpu,cpuacct`, `name=systemd`) and the path from the root of this process's cgroup namespace, which begins with
    /// `/..` if it lies outside of that and ends with ` (deleted)` if the cgroup is gone. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process.
    pub fn cgroups(&self, pid: u32) -> io::Result<Vec<(String, String)>> {
        parse_cgroups(&self.read(&format!("{pid}/cgroup"))?)
    }

    /// The list of a process's cgroups, to be read often.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process.
    pub fn open_cgroups(&self, pid: u32) -> io::Result<CgroupList> {
        self.step(&format!("{pid}/cgroup"), OFlags::RDONLY).map(CgroupList)
    }

    /// The ids that the user namespace of a process has, in no more than 340 lines; in the initial one all of them, as
    /// themselves. To whoever is in the namespace itself the kernel tells how its parent counts.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process.
    pub fn id_map(&self, pid: u32, kind: IdKind) -> io::Result<Vec<IdExtent>> {
        let file = match kind {
            IdKind::Uid => "uid_map",
            IdKind::Gid => "gid_map",
        };
        let text = self.read(&format!("{pid}/{file}"))?;
        text.lines().map(|line| parse_extent(line).ok_or_else(malformed)).collect()
    }

    /// Identity of the pid namespace that a process is in: its inode, as long as anything is in it.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process; `EACCES` if this process may not look.
    pub fn pid_namespace(&self, pid: u32) -> io::Result<u64> {
        // The last step is a magic link on purpose: what it leads to is what is asked for.
        Ok(statat(&self.0, format!("{pid}/ns/pid"), AtFlags::empty())?.st_ino)
    }

    /// The pid namespace that a process is in.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process; `EACCES` if this process may not look.
    pub fn open_pid_namespace(&self, pid: u32) -> io::Result<PidnsFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = openat(&self.0, format!("{pid}/ns/pid"), flags, Mode::empty())?;
        PidnsFd::from_fd(namespace).map_err(io::Error::other)
    }

    /// Identity of the cgroup namespace that a process is in: its inode, as long as anything is in it.
    ///
    /// # Errors
    /// As [`ProcFs::pid_namespace`].
    pub fn cgroup_namespace(&self, pid: u32) -> io::Result<u64> {
        Ok(statat(&self.0, format!("{pid}/ns/cgroup"), AtFlags::empty())?.st_ino)
    }

    /// The children of all threads of a process, as they were one after the other: it may fork meanwhile.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process, or the kernel has no `children` files.
    pub fn children(&self, pid: u32) -> io::Result<Vec<u32>> {
        let tasks = Dir::from_fd(self.step(&format!("{pid}/task"), OFlags::RDONLY | OFlags::DIRECTORY)?)?;
        let mut children = Vec::new();
        for task in tasks.names()? {
            match tasks.open_dir(&task).and_then(|task| task.read("children", MAX_FILE)) {
                Ok(text) => {
                    for child in text.split_ascii_whitespace() {
                        children.push(child.parse().map_err(|_| malformed())?);
                    }
                }
                // A thread that ended meanwhile; but the process's first one is there as long as the process.
                Err(error) if is_gone(&error) && task != pid.to_string() => (),
                Err(error) => return Err(error),
            }
        }
        Ok(children)
    }

    /// Parent, session, start time, state and more.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` if there is no such process.
    pub fn stat(&self, pid: u32) -> io::Result<Stat> {
        parse_stat(&self.read(&format!("{pid}/stat"))?).ok_or_else(malformed)
    }

    /// The pids of all processes that are visible.
    ///
    /// # Errors
    /// Those of listing `/proc`.
    pub fn pids(&self) -> io::Result<Vec<u32>> {
        Ok(self.0.names()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let bytes = read_bounded(&self.step(path, OFlags::RDONLY)?, MAX_FILE)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn step(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
    }
}

/// Does the error say that the process is no more?
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

/// A number that differs from boot to boot, as text: 32 hexadecimal digits and four hyphens.
///
/// # Errors
/// Those of reading `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> io::Result<String> {
    // By path: service managers and container engines mount /proc/sys once more to make it read-only.
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim_end().to_owned())
}

/// The size of a page of memory, in bytes. Known to the C library from the start: nothing is asked or opened, so it is there in
/// a process that may open nothing. 4096 if not.
pub fn page_size() -> u64 {
    known_size(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096)
}

/// Ticks of `/proc` and of v1's `cpuacct.stat` in a second; known as [`page_size`] is. 100 if not.
pub fn ticks_per_second() -> u64 {
    known_size(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100)
}

fn known_size(of: nix::unistd::SysconfVar) -> Option<u64> {
    nix::unistd::sysconf(of)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value != 0)
}

/// Now, in clock ticks after boot, as [`Stat::start_time`] counts: what starts later has no smaller number.
///
/// # Errors
/// `EINVAL` if the C library does not know how long a tick is.
pub fn clock_ticks() -> io::Result<u64> {
    use rustix::time::{ClockId, clock_gettime};
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let hertz =
        hertz.and_then(|hertz| u64::try_from(hertz).ok()).filter(|hertz| *hertz > 0).ok_or(Errno::INVAL)?;
    let now = clock_gettime(ClockId::Boottime);
    let [seconds, nanoseconds] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    Ok(seconds.saturating_mul(hertz).saturating_add(nanoseconds.saturating_mul(hertz) / 1_000_000_000))
}

/// Eight unguessable bytes.
///
/// # Errors
/// Those of `getrandom(2)`.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let count = rustix::io::retry_on_intr(|| {
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
    })?;
    // The kernel gives up to 256 bytes whole.
    if count == bytes.len() { Ok(u64::from_ne_bytes(bytes)) } else { Err(Errno::IO.into()) }
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

fn parse_cgroups(text: &str) -> io::Result<Vec<(String, String)>> {
    text.lines().map(|line| parse_cgroup(line).ok_or_else(malformed)).collect()
}

/// `ID:CONTROLLERS:PATH`; the path may have colons.
fn parse_cgroup(line: &str) -> Option<(String, String)> {
    let mut fields = line.splitn(3, ':');
    let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let hierarchy = if id == "0" && controllers.is_empty() { "cgroup2" } else { controllers };
    Some((hierarchy.to_owned(), path.to_owned()))
}

/// Three numbers: inside, outside, count.
fn parse_extent(line: &str) -> Option<IdExtent> {
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    let extent = IdExtent {
        inside: numbers.next()?.ok()?,
        outside: numbers.next()?.ok()?,
        count: numbers.next()?.ok()?,
    };
    numbers.next().is_none().then_some(extent)
}

/// The second field, the program's name, is in parentheses and may hold anything, `)` and spaces included: the last `)` ends it.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Field 3, the state, is the first one here.
    let number = |field: usize| fields.get(field.checked_sub(3)?).and_then(|text| text.parse::<u64>().ok());
    let narrow = |field| number(field).and_then(|value| u32::try_from(value).ok());
    Some(Stat {
        state: fields.first()?.chars().next()?,
        ppid: narrow(4)?,
        session: narrow(6)?,
        exiting: number(9)? & PF_EXITING != 0,
        threads: narrow(20)?,
        start_time: number(22)?,
        arguments: (number(48).unwrap_or(0), number(49).unwrap_or(0)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn processes_have_the_numbers_of_their_namespace() {
        let proc = ProcFs::open().unwrap();
        let own = std::process::id();
        let here = proc.open_pid_namespace(own).unwrap();
        match here.number_of(own) {
            Ok(number) => assert_eq!(number, Some(own)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }
        assert!(!matches!(here.number_of(0x7fff_fff0), Ok(Some(_))));
    }

    #[test]
    fn nothing_started_later_than_now() {
        let before = clock_ticks().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = ProcFs::open().unwrap().stat(child.id()).unwrap().start_time;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!((before..=clock_ticks().unwrap()).contains(&started), "{before} {started}");
    }

    #[test]
    fn cgroup_lines_are_read() {
        let pair = |one: &str, other: &str| Some((one.to_owned(), other.to_owned()));
        assert_eq!(parse_cgroup("0::/a:b"), pair("cgroup2", "/a:b"));
        assert_eq!(parse_cgroup("4:cpu,cpuacct:/x"), pair("cpu,cpuacct", "/x"));
        assert_eq!(parse_cgroup("1:name=systemd:/"), pair("name=systemd", "/"));
        assert_eq!(parse_cgroup("1:cpu"), None);
    }

    #[test]
    fn ids_outside_have_numbers_inside() {
        let extent = parse_extent("         5     100000      65536").unwrap();
        assert_eq!(extent, IdExtent { inside: 5, outside: 100_000, count: 65536 });
        let inside = [99_999, 100_000, 165_535, 165_536].map(|id| extent.inside(id));
        assert_eq!(inside, [None, Some(5), Some(65540), None]);
        let outside = [4, 5, 65540, 65541, u32::MAX].map(|id| extent.outside(id));
        assert_eq!(outside, [None, Some(100_000), Some(165_535), None, None]);
        // What the kernel says of ids that this process's namespace has not.
        let nowhere = parse_extent("0 4294967295 1").unwrap();
        assert_eq!((nowhere.outside(0), nowhere.inside(0)), (None, None));
        assert_eq!(parse_extent("0 0"), None);
        assert_eq!(parse_extent("0 0 1 1"), None);
        let proc = ProcFs::open().unwrap();
        for kind in [IdKind::Uid, IdKind::Gid] {
            assert!(!proc.id_map(std::process::id(), kind).unwrap().is_empty());
        }
    }

    #[test]
    fn the_name_of_a_program_cannot_forge_fields() {
        let tail = "S 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4242 0 0";
        for name in ["sh", "a b", "x) R 1 1", ") Z (", "\u{fffd}"] {
            let stat = parse_stat(&format!("12 ({name}) {tail}")).unwrap();
            assert_eq!(
                stat,
                Stat {
                    state: 'S',
                    ppid: 7,
                    session: 9,
                    exiting: false,
                    threads: 3,
                    start_time: 4242,
                    arguments: (0, 0)
                },
                "{name}"
            );
        }
        assert_eq!(parse_stat("12 (sh) S 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_is_found() {
        let proc = ProcFs::open().unwrap();
        let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
        assert!(proc.pids().unwrap().contains(&own));
        assert_eq!(proc.stat(own).unwrap().ppid, parent);
        assert!(proc.children(parent).unwrap().contains(&own));
        assert!(proc.cgroups(own).unwrap().iter().all(|(_, path)| path.starts_with('/')));
        assert!(!proc.cgroups(own).unwrap().is_empty());
    }

    #[test]
    fn a_list_of_cgroups_is_its_process_s_to_the_end() {
        let proc = ProcFs::open().unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let list = proc.open_cgroups(child.id()).unwrap();
        for _ in 0..2 {
            assert_eq!(list.read().unwrap(), proc.cgroups(child.id()).unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(list.read().unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn children_of_every_thread_are_found() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut child = std::process::Command::new("sleep").arg("300").spawn().unwrap();
            sender.send(child.id()).unwrap();
            let _ = wait.recv();
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let child = receiver.recv().unwrap();
        let found = ProcFs::open().unwrap().children(std::process::id());
        drop(end);
        thread.join().unwrap();
        assert!(found.unwrap().contains(&child));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        let proc = ProcFs::open().unwrap();
        let gone = u32::MAX;
        assert!(is_gone(&proc.stat(gone).unwrap_err()));
        assert!(is_gone(&proc.cgroups(gone).unwrap_err()));
        assert!(is_gone(&proc.children(gone).unwrap_err()));
    }

    #[test]
    fn the_boot_has_an_id() {
        let id = boot_id().unwrap();
        assert_eq!(id.len(), 36);
        assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'));
        assert_eq!(id, boot_id().unwrap());
    }

    #[test]
    fn random_numbers_differ() {
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
    }
}
