//! CGManager's sockets: where programs that were written for it look for it, as far as this host has room there.
//!
//! What an attacker could want is what he wants of any socket (see [`crate::socket`]): both places are root's, and what is found
//! there is treated alike.

use std::path::Path;

use rustix::{
    fs::{StatVfsMountFlags, statfs, statvfs},
    mount::{MountFlags, mount_remount},
};

use crate::{
    args::LegacySocket,
    error::SupervisorError,
    socket::{self, Listener, SocketError},
};

/// Where v1 hierarchies are mounted: on a tmpfs, which has room for a socket; cgroup2 in its place has none.
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// CGManager's own place, there.
const OWN: &str = "/sys/fs/cgroup/cgmanager/sock";
/// The place on every host.
const ELSEWHERE: &str = "/run/cgmanager/sock";
/// What statfs(2) says of a tmpfs (linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Listens where it is wanted. Of the usual places one that cannot be had is gone without, which the log tells.
///
/// # Errors
/// [`SupervisorError`] if a place that was named cannot be had.
pub fn listen(wanted: &LegacySocket) -> Result<Vec<Listener>, SupervisorError> {
    match wanted {
        LegacySocket::Off => Ok(Vec::new()),
        LegacySocket::Path(path) => Ok(vec![socket::bind(path, true)?]),
        LegacySocket::Auto => Ok(usual()),
    }
}

fn usual() -> Vec<Listener> {
    let own = is_tmpfs(Path::new(HIERARCHIES)).then(listen_at_own);
    let elsewhere = socket::bind(Path::new(ELSEWHERE), true);
    let bound = own.into_iter().chain([elsewhere]);
    bound
        .filter_map(|bound| {
            let bound = bound.inspect_err(|error| tracing::warn!("CGManager's interface: {error}"));
            bound.ok()
        })
        .collect()
}

/// systemd mounts the tmpfs read-only when its directories are made. It is so again as soon as the socket is there.
fn listen_at_own() -> Result<Listener, SocketError> {
    let bind = || socket::bind(Path::new(OWN), true);
    match bind() {
        Err(error) if error.is_read_only() => writable(Path::new(HIERARCHIES), bind),
        bound => bound,
    }
}

/// Does something while a file system can be written on.
fn writable<T>(place: &Path, work: impl FnOnce() -> Result<T, SocketError>) -> Result<T, SocketError> {
    let failed =
        |errno: rustix::io::Errno| SocketError::System { path: place.to_owned(), source: errno.into() };
    let flags = kept(statvfs(place).map_err(failed)?.f_flag);
    mount_remount(place, flags, c"").map_err(failed)?;
    let done = work();
    if let Err(errno) = mount_remount(place, flags | MountFlags::RDONLY, c"") {
        tracing::warn!("{} stays writable: {errno}", place.display());
    }
    done
}

/// The flags of a mount that a change of another one must repeat.
fn kept(flags: StatVfsMountFlags) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let set = pairs.into_iter().filter(|(seen, _)| flags.contains(*seen));
    set.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == TMPFS_MAGIC)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn it_listens_where_it_is_told_to_and_nowhere_else() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("cgmanager/sock");
        assert_eq!(listen(&LegacySocket::Path(path.clone())).unwrap().len(), 1);
        assert!(path.exists());
        assert!(listen(&LegacySocket::Off).unwrap().is_empty());
        assert!(listen(&LegacySocket::Path(PathBuf::from("/"))).is_err());
    }

    #[test]
    fn a_remount_repeats_what_is_to_stay() {
        let seen = StatVfsMountFlags::NOSUID | StatVfsMountFlags::RDONLY | StatVfsMountFlags::RELATIME;
        assert_eq!(kept(seen), MountFlags::NOSUID | MountFlags::RELATIME);
        assert!(is_tmpfs(Path::new("/dev/shm")) && !is_tmpfs(Path::new("/proc")));
    }
}
