//! Processes named by pidfd.
//!
//! A pid is recycled, a pidfd never names another process. What is read about a process by its pid is
//! therefore only believed if its pidfd says *afterwards* that the process is still there.
//! Sources: `pidfd_open(2)`, `include/uapi/linux/pidfd.h`, `fs/pidfs.c`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

pub use rustix::process::Signal;

use crate::descriptor::kind_of;
use crate::namespace::UsernsFd;

/// `statfs` magic of the file system that pidfds live in from kernel 6.9 on.
const PID_FS_MAGIC: u64 = 0x5049_4446;

/// How much of a `/proc` file is read, in bytes. What is looked for stands at the beginning; the groups at the end of
/// `status` may be longer.
const MAX_PROC_FILE: usize = 64 * 1024;

/// A process, named by a descriptor that never comes to name another one.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

/// Why a descriptor is not the pidfd of a process.
#[derive(Debug, thiserror::Error)]
pub enum NotAPidfd {
    /// It is something else.
    #[error("descriptor is not a pidfd")]
    OtherKind,
    /// It names a thread (`PIDFD_THREAD`), and a process is asked for.
    #[error("pidfd names a thread, not a process")]
    Thread,
    /// The kernel did not say what it is.
    #[error("cannot find out what the descriptor is")]
    Unknown(#[source] io::Error),
}

/// Who a process is, as this process's namespaces see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidfdInfo {
    /// Its pid.
    pub pid: u32,
    /// Real uid.
    pub ruid: u32,
    /// Effective uid.
    pub euid: u32,
    /// Saved uid.
    pub suid: u32,
    /// Real gid.
    pub rgid: u32,
    /// Effective gid.
    pub egid: u32,
    /// Saved gid.
    pub sgid: u32,
    /// Kernel id of its cgroup2 cgroup; `None` before kernel 6.13.
    pub cgroup_id: Option<u64>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It ended by itself, with this status.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
}

impl Pidfd {
    /// A pidfd of the process that has the number `pid` now.
    ///
    /// # Errors
    /// `ESRCH` if there is none; `EINVAL` for 0 or the number of a thread that is no process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// A pidfd of this process.
    ///
    /// # Errors
    /// Those of `pidfd_open(2)`.
    pub fn own() -> io::Result<Self> {
        Ok(Self(pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?))
    }

    /// Takes a descriptor that came from elsewhere, if it is the pidfd of a process, alive or not.
    ///
    /// # Errors
    /// [`NotAPidfd`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NotAPidfd> {
        if kind_of(&fd).map_err(NotAPidfd::Unknown)? != "anon_inode:[pidfd]" {
            return Err(NotAPidfd::OtherKind);
        }
        // PIDFD_THREAD is O_EXCL and stays among the file's flags (fs/pidfs.c).
        let flags = fcntl_getfl(&fd).map_err(|errno| NotAPidfd::Unknown(errno.into()))?;
        if flags.contains(OFlags::EXCL) {
            return Err(NotAPidfd::Thread);
        }
        Ok(Self(fd))
    }

    /// One that the kernel has just given as the pidfd of a process: nothing to check.
    pub(crate) fn from_kernel(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Has the process not ended? A zombie has ended. Costs one `poll(2)`.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub fn is_alive(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ended = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&zero)))?;
        Ok(ended == 0)
    }

    /// `ESRCH` unless the process is alive.
    fn ensure_alive(&self) -> io::Result<()> {
        if self.is_alive()? { Ok(()) } else { Err(Errno::SRCH.into()) }
    }

    /// Its pid, as this process's pid namespace sees it. Of use only while the pidfd says that it is alive.
    ///
    /// # Errors
    /// `ESRCH` if the process was reaped or is not visible from here.
    pub fn pid(&self) -> io::Result<u32> {
        match self.kernel_info()? {
            Some(info) => Ok(info.pid),
            None => self.pid_from_fdinfo(),
        }
    }

    /// Who it is. Kernel 6.13 says so by the pidfd alone; before, it is read from `/proc`.
    /// In both cases the process was alive after the answer was there.
    ///
    /// # Errors
    /// `ESRCH` if it has ended or is not visible from here; those of reading `/proc`.
    pub fn info(&self) -> io::Result<PidfdInfo> {
        let info = self.told()?;
        self.ensure_alive()?;
        Ok(info)
    }

    /// As [`Pidfd::info`], for who looks itself whether it is alive when the answer is there; without that it may be another one's.
    ///
    /// # Errors
    /// As [`Pidfd::info`].
    pub fn told(&self) -> io::Result<PidfdInfo> {
        match self.kernel_info()? {
            Some(info) => Ok(info),
            None => self.info_from_proc(),
        }
    }

    /// A number of this process that is never used again while the host runs; `None` where pidfds share
    /// one inode (before kernel 6.9, or a 32-bit kernel).
    pub fn inode(&self) -> Option<u64> {
        let magic = fstatfs(&self.0).ok()?.f_type;
        if cfg!(target_pointer_width = "64") && u64::try_from(magic).ok()? == PID_FS_MAGIC {
            return Some(fstat(&self.0).ok()?.st_ino);
        }
        None
    }

    /// When it started, in clock ticks after boot (field 22 of `/proc/PID/stat`).
    ///
    /// # Errors
    /// `ESRCH` if it has ended or is not visible; those of reading `/proc`.
    pub fn start_time(&self) -> io::Result<u64> {
        let pid = self.pid()?;
        let stat = crate::process::ProcFs::open()?.stat(pid).map_err(gone_if_missing)?;
        self.ensure_alive()?;
        Ok(stat.start_time)
    }

    /// Sends it a signal, with this process's rights.
    ///
    /// # Errors
    /// `ESRCH` if it has ended, `EPERM` if this process may not.
    pub fn send_signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, signal)?)
    }

    /// Sends it a signal by its number, real-time signals included, with this process's rights.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal's; `ESRCH` if it has ended, `EPERM` if this process may not.
    pub fn send_number(&self, signal: i32) -> io::Result<()> {
        if signal == 0 {
            return Err(Errno::INVAL.into());
        }
        let nothing = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: takes numbers and a null pointer, which stands for what kill(2) tells the receiver.
        let result =
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, nothing, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The user namespace it is in. Kernel 6.11 gives it by the pidfd; before, `/proc/PID/ns/user` does.
    ///
    /// # Errors
    /// `ESRCH` if it has ended, `EPERM` or `EACCES` if this process may not look.
    pub fn user_namespace(&self) -> io::Result<UsernsFd> {
        // SAFETY: this request takes no argument and touches no memory of ours; the descriptor is open.
        let raw = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::PIDFD_GET_USER_NAMESPACE, 0) };
        if raw >= 0 {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
            let namespace = UsernsFd::from_kernel(unsafe { OwnedFd::from_raw_fd(raw) });
            // A zombie has its credentials still, and with them the namespace.
            self.ensure_alive()?;
            return Ok(namespace);
        }
        match Errno::from_io_error(&io::Error::last_os_error()) {
            Some(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP) => self.user_namespace_from_proc(),
            Some(errno) => Err(errno.into()),
            None => Err(Errno::IO.into()),
        }
    }

    /// Waits for the end of a child of this process and reaps it.
    ///
    /// # Errors
    /// `ECHILD` if it is no child of this process, or was reaped before.
    pub fn wait(&self) -> io::Result<Exit> {
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED))?;
        status.as_ref().and_then(exit_of).ok_or_else(|| Errno::CHILD.into())
    }

    /// Reaps a child of this process if it has ended; `None` if it has not.
    ///
    /// # Errors
    /// As [`Pidfd::wait`].
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.0.as_fd()), options))?;
        Ok(status.as_ref().and_then(exit_of))
    }

    /// Another descriptor of the same process.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// `PIDFD_GET_INFO`; `None` where the kernel does not have it.
    fn kernel_info(&self) -> io::Result<Option<PidfdInfo>> {
        // SAFETY: the structure is plain integers, for which zero bytes are a valid value.
        let mut raw: libc::pidfd_info = unsafe { std::mem::zeroed() };
        raw.mask = u64::from(libc::PIDFD_INFO_PID | libc::PIDFD_INFO_CREDS | libc::PIDFD_INFO_CGROUPID);
        // SAFETY: the request's number holds the size of `raw`, which the kernel fills and nothing beyond.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut raw) } < 0 {
            return match Errno::from_io_error(&io::Error::last_os_error()) {
                // Kernels 6.11 and 6.12 have ioctls on pidfds and answer an unknown one with EINVAL.
                Some(Errno::NOTTY | Errno::INVAL) => Ok(None),
                Some(errno) => Err(errno.into()),
                None => Err(Errno::IO.into()),
            };
        }
        let has = |bit: u32| raw.mask & u64::from(bit) != 0;
        if !has(libc::PIDFD_INFO_PID) || !has(libc::PIDFD_INFO_CREDS) {
            return Err(Errno::SRCH.into());
        }
        Ok(Some(PidfdInfo {
            pid: raw.tgid,
            ruid: raw.ruid,
            euid: raw.euid,
            suid: raw.suid,
            rgid: raw.rgid,
            egid: raw.egid,
            sgid: raw.sgid,
            cgroup_id: has(libc::PIDFD_INFO_CGROUPID).then_some(raw.cgroupid),
        }))
    }

    /// Its pids in this process's pid namespace and in each one further in, down to that which it is in itself.
    /// Of use only while the pidfd says that it is alive.
    ///
    /// # Errors
    /// `ESRCH` if the process was reaped or is not visible from here.
    pub fn numbers(&self) -> io::Result<Vec<u32>> {
        let text = self.fdinfo()?;
        let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:")).ok_or(Errno::SRCH)?;
        let numbers: Vec<u32> =
            numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
        // 0 if not visible from here, -1 if reaped.
        if numbers.first().is_some_and(|own| *own > 0) { Ok(numbers) } else { Err(Errno::SRCH.into()) }
    }

    fn fdinfo(&self) -> io::Result<String> {
        read_proc(&format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))
    }

    /// The `Pid:` line of `/proc/self/fdinfo/N`: 0 if not visible from here, -1 if reaped.
    fn pid_from_fdinfo(&self) -> io::Result<u32> {
        let text = self.fdinfo()?;
        let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        match pid.and_then(|pid| pid.parse::<u32>().ok()) {
            Some(pid) if pid > 0 => Ok(pid),
            _ => Err(Errno::SRCH.into()),
        }
    }

    /// What kernels before 6.13 tell: `/proc/PID/status`.
    fn info_from_proc(&self) -> io::Result<PidfdInfo> {
        let pid = self.pid_from_fdinfo()?;
        let text = read_proc(&format!("/proc/{pid}/status")).map_err(gone_if_missing)?;
        let [ruid, euid, suid] = status_ids(&text, "Uid:").ok_or(Errno::IO)?;
        let [rgid, egid, sgid] = status_ids(&text, "Gid:").ok_or(Errno::IO)?;
        Ok(PidfdInfo { pid, ruid, euid, suid, rgid, egid, sgid, cgroup_id: None })
    }

    /// What kernels before 6.11 give: `/proc/PID/ns/user`.
    fn user_namespace_from_proc(&self) -> io::Result<UsernsFd> {
        let pid = self.pid_from_fdinfo()?;
        let file = std::fs::File::open(format!("/proc/{pid}/ns/user")).map_err(gone_if_missing)?;
        self.ensure_alive()?;
        Ok(UsernsFd::from_kernel(file.into()))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.0
    }
}

/// A process's `/proc` entry that is missing means that the process is gone.
fn gone_if_missing(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound { Errno::SRCH.into() } else { error }
}

/// Real, effective and saved id of a line of `/proc/PID/status`.
fn status_ids(text: &str, label: &str) -> Option<[u32; 3]> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    let mut ids = line.split_ascii_whitespace().map(str::parse);
    Some([ids.next()?.ok()?, ids.next()?.ok()?, ids.next()?.ok()?])
}

/// The beginning of a `/proc` file.
fn read_proc(path: &str) -> io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_PROC_FILE as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn exit_of(status: &rustix::process::WaitIdStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::process::{Child, Command, Stdio};

    /// A program that runs until it is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("300").stdin(Stdio::null()).spawn().unwrap())
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn lives_ends_and_is_reaped() {
        let sleeper = Sleeper::start();
        let pidfd = Pidfd::open(sleeper.0.id()).unwrap();
        assert!(pidfd.is_alive().unwrap());
        assert_eq!(pidfd.pid().unwrap(), sleeper.0.id());
        assert_eq!(pidfd.try_wait().unwrap(), None);
        assert_eq!(pidfd.info().unwrap().pid, sleeper.0.id());
        pidfd.send_signal(Signal::KILL).unwrap();
        assert_eq!(pidfd.wait().unwrap(), Exit::Signal(9));
        assert!(!pidfd.is_alive().unwrap());
        let gone = Some(libc::ESRCH);
        assert_eq!(pidfd.pid().unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.info().unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.pid_from_fdinfo().unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.start_time().unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.user_namespace().unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.send_signal(Signal::TERM).unwrap_err().raw_os_error(), gone);
        assert_eq!(pidfd.wait().unwrap_err().raw_os_error(), Some(libc::ECHILD));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert!(!pidfd.is_alive().unwrap());
        assert_eq!(pidfd.info().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(pidfd.user_namespace().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(pidfd.start_time().unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn the_way_of_old_kernels_gives_the_same() {
        let own = Pidfd::own().unwrap();
        let by_proc = own.info_from_proc().unwrap();
        assert_eq!(by_proc.cgroup_id, None);
        assert_eq!(own.pid_from_fdinfo().unwrap(), std::process::id());
        assert_eq!(PidfdInfo { cgroup_id: None, ..own.info().unwrap() }, by_proc);
        let namespace = |fd: UsernsFd| fd.id().unwrap();
        assert_eq!(
            namespace(own.user_namespace_from_proc().unwrap()),
            namespace(own.user_namespace().unwrap())
        );
    }

    #[test]
    fn ids_are_read_from_the_right_columns() {
        let text = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(status_ids(text, "Uid:"), Some([1, 2, 3]));
        assert_eq!(status_ids(text, "Gid:"), Some([5, 6, 7]));
        assert_eq!(status_ids("Uid:\t1\t2\n", "Uid:"), None);
        assert_eq!(status_ids("Uid:\t1\t-2\t3\n", "Uid:"), None);
    }

    #[test]
    fn only_pidfds_of_processes_are_taken() {
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(Pidfd::from_fd(file), Err(NotAPidfd::OtherKind)));
        let namespace: OwnedFd = std::fs::File::open("/proc/self/ns/pid").unwrap().into();
        assert!(matches!(Pidfd::from_fd(namespace), Err(NotAPidfd::OtherKind)));
        let process = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        assert_eq!(Pidfd::from_fd(process).unwrap().pid().unwrap(), std::process::id());
    }

    #[test]
    fn pidfds_of_threads_are_refused() {
        // PIDFD_THREAD came with kernel 6.9; before that no such descriptor can exist.
        let flags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
        match pidfd_open(rustix::process::getpid(), flags) {
            Ok(thread) => assert!(matches!(Pidfd::from_fd(thread), Err(NotAPidfd::Thread))),
            Err(errno) => assert_eq!(errno, Errno::INVAL),
        }
    }

    #[test]
    fn inodes_tell_processes_apart() {
        let (one, other) = (Sleeper::start(), Sleeper::start());
        let inode = |sleeper: &Sleeper| Pidfd::open(sleeper.0.id()).unwrap().inode();
        assert_eq!(inode(&one), inode(&one));
        // Without pidfs both are `None`: an inode that all pidfds share must never be taken for an identity.
        assert!(inode(&one).is_none() || inode(&one) != inode(&other));
    }

    #[test]
    fn start_times_are_in_order() {
        let sleeper = Sleeper::start();
        let start = Pidfd::open(sleeper.0.id()).unwrap().start_time().unwrap();
        assert!(start >= Pidfd::own().unwrap().start_time().unwrap());
    }

    #[test]
    fn there_is_no_process_zero() {
        assert_eq!(Pidfd::open(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(Pidfd::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
