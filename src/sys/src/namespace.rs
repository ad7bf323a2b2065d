//! User, network and mount namespaces named by descriptor.
//!
//! Sources: `ioctl_nsfs(2)`, `include/uapi/linux/nsfs.h`, `user_namespaces(7)`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::descriptor::kind_of;

/// `NS_GET_ID`, `_IOR(0xb7, 13, __u64)`: in the kernel from 6.18 on, not yet in the libc crate.
const NS_GET_ID: libc::Ioctl = libc::_IOR::<u64>(0xb7, 13);

/// `NS_GET_PID_FROM_PIDNS`, `_IOR(0xb7, 6, int)`: in the kernel from 6.11 on, not yet in the libc crate.
const NS_GET_PID_FROM_PIDNS: libc::Ioctl = libc::_IOR::<libc::c_int>(0xb7, 6);

/// `NS_GET_PID_IN_PIDNS`, `_IOR(0xb7, 8, int)`: in the kernel from 6.11 on, not yet in the libc crate.
const NS_GET_PID_IN_PIDNS: libc::Ioctl = libc::_IOR::<libc::c_int>(0xb7, 8);

/// The kinds of namespaces, as the kernel names them.
pub(crate) const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// A descriptor that names a user namespace.
#[derive(Debug)]
pub struct UsernsFd(OwnedFd);

/// A descriptor that names a network namespace.
#[derive(Debug)]
pub struct NetnsFd(OwnedFd);

/// A descriptor that names a mount namespace.
///
/// Closing the last one of a namespace without processes takes all its mounts apart, of which there may be 100,000.
#[derive(Debug)]
pub struct MntnsFd(OwnedFd);

/// A descriptor that names a pid namespace.
#[derive(Debug)]
pub struct PidnsFd(OwnedFd);

/// Why a descriptor does not name a namespace of the kind that is asked for.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// It names no namespace at all.
    #[error("descriptor does not name a namespace")]
    NotANamespace,
    /// It names a namespace of another kind.
    #[error("descriptor names a namespace of another kind")]
    OtherKind,
    /// The kernel did not say what it is.
    #[error("cannot find out what the descriptor is")]
    Unknown(#[source] io::Error),
}

/// Which namespace it is. Two of one value, taken while a descriptor of the namespace was open, are the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NsId {
    /// The kernel's number, never used again while the host runs (kernel 6.18).
    Unique(u64),
    /// Device and inode: only unique among the namespaces that exist at one time.
    Inode {
        /// Device number of nsfs.
        device: u64,
        /// Inode in it.
        inode: u64,
    },
}

impl fmt::Display for NsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unique(id) => write!(f, "id:{id}"),
            Self::Inode { device, inode } => write!(f, "inode:{device}:{inode}"),
        }
    }
}

/// The text is not what [`NsId`] displays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed namespace id")]
pub struct MalformedNsId;

impl std::str::FromStr for NsId {
    type Err = MalformedNsId;

    fn from_str(text: &str) -> Result<Self, MalformedNsId> {
        let number = |text: &str| text.parse().map_err(|_| MalformedNsId);
        if let Some(id) = text.strip_prefix("id:") {
            return Ok(Self::Unique(number(id)?));
        }
        let (device, inode) =
            text.strip_prefix("inode:").and_then(|rest| rest.split_once(':')).ok_or(MalformedNsId)?;
        Ok(Self::Inode { device: number(device)?, inode: number(inode)? })
    }
}

impl UsernsFd {
    /// Takes a descriptor that came from elsewhere, if it names a user namespace.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NamespaceError> {
        check_kind(&fd, "user", libc::CLONE_NEWUSER)?;
        Ok(Self(fd))
    }

    /// One that the kernel has just given as a process's user namespace: nothing to check.
    pub(crate) fn from_kernel(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The user namespace of this process.
    ///
    /// # Errors
    /// Those of opening `/proc/self/ns/user`.
    pub fn own() -> io::Result<Self> {
        Ok(Self(std::fs::File::open("/proc/self/ns/user")?.into()))
    }

    /// Which one it is.
    ///
    /// # Errors
    /// Those of `ioctl(2)` and `fstat(2)`.
    pub fn id(&self) -> io::Result<NsId> {
        id_of(&self.0)
    }

    /// The uid of its owner (who made it), as this process's user namespace sees it; the overflow uid if it does not.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    pub fn owner_uid(&self) -> io::Result<u32> {
        let mut uid: libc::uid_t = 0;
        // SAFETY: the request writes one uid_t to the address of a uid_t that outlives the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
    }

    /// The user namespace in which it was made.
    ///
    /// # Errors
    /// `EPERM` if that lies outside this process's user namespace, or if this one has no parent.
    pub fn parent(&self) -> io::Result<Self> {
        Ok(Self(related(&self.0, libc::NS_GET_PARENT)?))
    }

    /// Makes this thread a member. The process must have one thread, and `CAP_SYS_ADMIN` in the namespace.
    ///
    /// # Errors
    /// `EINVAL` if the process has threads or is a member already; `EPERM`.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::User))?)
    }

    /// Another descriptor of the same namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl NetnsFd {
    /// Takes a descriptor that came from elsewhere, if it names a network namespace.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NamespaceError> {
        check_kind(&fd, "net", libc::CLONE_NEWNET)?;
        Ok(Self(fd))
    }

    /// The network namespace of this process.
    ///
    /// # Errors
    /// Those of opening `/proc/self/ns/net`.
    pub fn own() -> io::Result<Self> {
        Ok(Self(std::fs::File::open("/proc/self/ns/net")?.into()))
    }

    /// Which one it is.
    ///
    /// # Errors
    /// Those of `ioctl(2)` and `fstat(2)`.
    pub fn id(&self) -> io::Result<NsId> {
        id_of(&self.0)
    }

    /// The user namespace whose root rules it.
    ///
    /// # Errors
    /// `EPERM` if that lies outside this process's user namespace.
    pub fn owner_userns(&self) -> io::Result<UsernsFd> {
        Ok(UsernsFd(related(&self.0, libc::NS_GET_USERNS)?))
    }

    /// Makes this thread a member.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` here and in the namespace's owner.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Another descriptor of the same namespace.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

impl PidnsFd {
    /// Takes a descriptor that came from elsewhere, if it names a pid namespace.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NamespaceError> {
        check_kind(&fd, "pid", libc::CLONE_NEWPID)?;
        Ok(Self(fd))
    }

    /// What a process or thread of this number here has as its number there; `None` if it is not there, or has ended.
    ///
    /// # Errors
    /// `ENOTTY` on kernels that don't tell (before 6.11).
    pub fn number_of(&self, pid: u32) -> io::Result<Option<u32>> {
        self.translated(NS_GET_PID_IN_PIDNS, pid)
    }

    /// What a process or thread of this number there has as its number here; `None` if there is none, or it is not seen here.
    ///
    /// # Errors
    /// `ENOTTY` on kernels that don't tell (before 6.11).
    pub fn process_of(&self, number: u32) -> io::Result<Option<u32>> {
        self.translated(NS_GET_PID_FROM_PIDNS, number)
    }

    fn translated(&self, request: libc::Ioctl, number: u32) -> io::Result<Option<u32>> {
        // No process has a greater one.
        let Ok(number) = libc::c_int::try_from(number) else { return Ok(None) };
        // SAFETY: these requests take a number and touch no memory of ours; the descriptor is open.
        let number = unsafe { libc::ioctl(self.0.as_raw_fd(), request, number) };
        match u32::try_from(number) {
            Ok(number) => Ok(Some(number).filter(|number| *number != 0)),
            Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::SRCH) => Ok(None),
                Some(errno) => Err(errno.into()),
                None => Err(Errno::IO.into()),
            },
        }
    }

    /// The pid namespace in which it was made.
    ///
    /// # Errors
    /// `EPERM` if that lies outside this process's pid namespace, or if this one has no parent.
    pub fn parent(&self) -> io::Result<Self> {
        Ok(Self(related(&self.0, libc::NS_GET_PARENT)?))
    }

    /// Its inode, which is no other namespace's as long as this is open.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(fstat(&self.0)?.st_ino)
    }
}

impl MntnsFd {
    /// Takes a descriptor that came from elsewhere, if it names a mount namespace.
    ///
    /// # Errors
    /// [`NamespaceError`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NamespaceError> {
        check_kind(&fd, "mnt", libc::CLONE_NEWNS)?;
        Ok(Self(fd))
    }

    /// The user namespace whose root rules it.
    ///
    /// # Errors
    /// `EPERM` if that lies outside this process's user namespace.
    pub fn owner_userns(&self) -> io::Result<UsernsFd> {
        Ok(UsernsFd(related(&self.0, libc::NS_GET_USERNS)?))
    }

    /// Makes this process a member; its root and working directory are the namespace's root from then on.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT` here, and `CAP_SYS_ADMIN` in the namespace's owner; `EINVAL`
    /// if the process has threads.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Mount))?)
    }
}

impl AsFd for MntnsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for UsernsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for NetnsFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<UsernsFd> for OwnedFd {
    fn from(namespace: UsernsFd) -> Self {
        namespace.0
    }
}

impl From<NetnsFd> for OwnedFd {
    fn from(namespace: NetnsFd) -> Self {
        namespace.0
    }
}

/// The kernel's name first, which cannot be imitated and never blocks; only then the `ioctl`.
fn check_kind(fd: &OwnedFd, expected: &str, kind: i32) -> Result<(), NamespaceError> {
    let name = kind_of(fd).map_err(NamespaceError::Unknown)?;
    let Some((found, _)) = name.split_once(":[").filter(|(found, _)| KINDS.contains(found)) else {
        return Err(NamespaceError::NotANamespace);
    };
    if found != expected {
        return Err(NamespaceError::OtherKind);
    }
    // SAFETY: this request takes no argument and touches no memory of ours; the descriptor is open.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE, 0) } {
        found if found == kind => Ok(()),
        found if found >= 0 => Err(NamespaceError::OtherKind),
        // An O_PATH descriptor has the right name but is good for nothing.
        _ => Err(NamespaceError::Unknown(io::Error::last_os_error())),
    }
}

fn id_of(fd: &OwnedFd) -> io::Result<NsId> {
    let mut id: u64 = 0;
    // SAFETY: the request writes one u64 to the address of a u64 that outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_ID, &raw mut id) } == 0 {
        return Ok(NsId::Unique(id));
    }
    match Errno::from_io_error(&io::Error::last_os_error()) {
        Some(Errno::NOTTY) => inode_id(fd),
        Some(errno) => Err(errno.into()),
        None => Err(Errno::IO.into()),
    }
}

/// What kernels before 6.18 have.
fn inode_id(fd: &OwnedFd) -> io::Result<NsId> {
    let stat = fstat(fd)?;
    Ok(NsId::Inode { device: stat.st_dev, inode: stat.st_ino })
}

/// A namespace that the kernel gives for another one.
fn related(fd: &OwnedFd, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: these requests take no argument and touch no memory of ours; the descriptor is open.
    let raw = unsafe { libc::ioctl(fd.as_raw_fd(), request, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn file(path: &str) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn kinds_are_told_apart() {
        assert!(UsernsFd::from_fd(file("/proc/self/ns/user")).is_ok());
        assert!(NetnsFd::from_fd(file("/proc/self/ns/net")).is_ok());
        assert!(matches!(UsernsFd::from_fd(file("/proc/self/ns/net")), Err(NamespaceError::OtherKind)));
        assert!(MntnsFd::from_fd(file("/proc/self/ns/mnt")).is_ok());
        assert!(matches!(NetnsFd::from_fd(file("/proc/self/ns/mnt")), Err(NamespaceError::OtherKind)));
        assert!(matches!(MntnsFd::from_fd(file("/proc/self/ns/net")), Err(NamespaceError::OtherKind)));
        for path in ["/dev/null", "/proc/self/ns", "/proc/self/status"] {
            assert!(matches!(UsernsFd::from_fd(file(path)), Err(NamespaceError::NotANamespace)), "{path}");
        }
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(UsernsFd::from_fd(socket.into()), Err(NamespaceError::NotANamespace)));
        let pidfd = crate::Pidfd::own().unwrap();
        assert!(matches!(UsernsFd::from_fd(pidfd.into()), Err(NamespaceError::NotANamespace)));
    }

    #[test]
    fn descriptors_that_are_good_for_nothing_are_refused() {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = openat(CWD, "/proc/self/ns/user", flags, Mode::empty()).unwrap();
        assert!(matches!(UsernsFd::from_fd(path), Err(NamespaceError::Unknown(_))));
    }

    #[test]
    fn ids_name_the_namespace_not_the_descriptor() {
        let (one, other) = (UsernsFd::own().unwrap(), UsernsFd::own().unwrap());
        assert_eq!(one.id().unwrap(), other.id().unwrap());
        assert_ne!(one.id().unwrap(), NetnsFd::own().unwrap().id().unwrap());
        assert_eq!(inode_id(&one.0).unwrap(), inode_id(&other.0).unwrap());
        assert_ne!(inode_id(&one.0).unwrap(), inode_id(&NetnsFd::own().unwrap().0).unwrap());
    }

    #[test]
    fn nothing_outside_is_shown() {
        assert_eq!(UsernsFd::own().unwrap().parent().unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn ids_survive_being_written_down() {
        for id in [NsId::Unique(u64::MAX), NsId::Inode { device: 4, inode: 4_026_531_837 }] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for bad in ["", "id:", "id:-1", "inode:4", "inode:4:", "inode:4:5:6", "4:5", "id:1 "] {
            assert_eq!(bad.parse::<NsId>(), Err(MalformedNsId), "{bad}");
        }
    }
}
