//! The listening sockets: bound by us, or taken over from the service manager.
//!
//! What an attacker could want: to have a client speak with a socket of his, or to keep the broker from
//! coming back. The directory belongs to root and nobody else writes in it (checked by [`crate::dirs`]);
//! what lies at the path is removed only if it is a socket that nobody listens on.

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
};

use crate::dirs::{self, Access, DirectoryError};

/// How many clients may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// What fits in `sockaddr_un` with its final zero (unix(7)).
const MAX_PATH: usize = 107;

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The directory of the socket cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The path is too long, or has no directory or file name.
    #[error("{0}: a socket is named by an absolute path of at most {MAX_PATH} bytes")]
    BadPath(PathBuf),
    /// Somebody answers there.
    #[error("{0}: another process listens there; end it, or choose another --socket")]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("{0} exists and is not a socket; remove it, or choose another --socket")]
    NotSocket(PathBuf),
    /// The service manager passed something else.
    #[error("descriptor {0} from the service manager is not a listening unix stream socket")]
    NotListening(i32),
    /// The service manager's variables make no sense, or its descriptors cannot be taken.
    #[error("sockets of the service manager: {0}")]
    Activation(io::Error),
    /// The kernel said no.
    #[error("{path}: {source}")]
    System {
        /// Which socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SocketError {
    /// Is it only that nothing can be written there?
    pub fn is_read_only(&self) -> bool {
        let (Self::System { source, .. } | Self::Directory(DirectoryError::System { source, .. })) = self
        else {
            return false;
        };
        source.kind() == io::ErrorKind::ReadOnlyFilesystem
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// The socket; it does not block.
    pub socket: OwnedFd,
    /// The file to remove at the end; none if the service manager owns it.
    file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    directory: OwnedFd,
    name: std::ffi::OsString,
    inode: u64,
}

impl Listener {
    /// Removes the socket's file if it is still this socket's. What the service manager owns stays.
    pub fn remove(self) {
        let Some(file) = self.file else { return };
        let Ok(stat) = rustix::fs::statat(&file.directory, &file.name, AtFlags::SYMLINK_NOFOLLOW) else {
            return;
        };
        if stat.st_ino == file.inode {
            let _ = rustix::fs::unlinkat(&file.directory, &file.name, AtFlags::empty());
        }
    }
}

/// Binds the socket at `path` with mode 0666 and listens. With `make_directory` its directory is made.
///
/// # Errors
/// Any [`SocketError`] but those about the service manager.
pub fn bind(path: &Path, make_directory: bool) -> Result<Listener, SocketError> {
    let bad = || SocketError::BadPath(path.to_owned());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(bad()) };
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Err(bad());
    }
    let directory =
        if make_directory { dirs::open_or_create(parent, Access::Public)? } else { dirs::open(parent)? };
    let address = SocketAddrUnix::new(path).map_err(|_| bad())?;
    clear_stale(&directory, name, path, &address)?;
    let failed = |errno: Errno| SocketError::System { path: path.to_owned(), source: errno.into() };
    let socket = stream_socket().map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(failed)?;
    rustix::fs::chmodat(&directory, name, Mode::from_raw_mode(0o666), AtFlags::empty()).map_err(failed)?;
    let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    let file = SocketFile { directory, name: name.to_owned(), inode: stat.st_ino };
    Ok(Listener { socket, file: Some(file) })
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes the socket that a killed broker left behind.
fn clear_stale(
    directory: &OwnedFd,
    name: &std::ffi::OsStr,
    path: &Path,
    address: &SocketAddrUnix,
) -> Result<(), SocketError> {
    let failed = |errno: Errno| SocketError::System { path: path.to_owned(), source: errno.into() };
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(SocketError::NotSocket(path.to_owned()));
    }
    let probe = stream_socket().map_err(failed)?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(failed),
        // EAGAIN: its queue is full; EPROTOTYPE: it is a socket of another type. Either way somebody owns it.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::InUse(path.to_owned())),
        Err(errno) => Err(failed(errno)),
    }
}

/// Takes over the listening sockets that the service manager passed (sd_listen_fds(3)); none if it passed none.
///
/// # Errors
/// [`SocketError::Activation`], [`SocketError::NotListening`].
pub fn inherited() -> Result<Vec<Listener>, SocketError> {
    let numbers = sd_notify::listen_fds().map_err(SocketError::Activation)?;
    if numbers.len() == 0 {
        return Ok(Vec::new());
    }
    let me = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|e| SocketError::Activation(e.into()))?;
    numbers.map(|number| take_over(&me, number)).collect()
}

/// An owned copy of our own descriptor `number`, which is closed.
fn take_over(me: &OwnedFd, number: i32) -> Result<Listener, SocketError> {
    let activation = |e: io::Error| SocketError::Activation(e);
    let socket = rustix::process::pidfd_getfd(me, number, rustix::process::PidfdGetfdFlags::empty())
        .map_err(|e| activation(e.into()))?;
    nix::unistd::close(number).map_err(|e| activation(e.into()))?;
    if !is_listening_stream(&socket) {
        return Err(SocketError::NotListening(number));
    }
    rustix::io::ioctl_fionbio(&socket, true).map_err(|e| activation(e.into()))?;
    Ok(Listener { socket, file: None })
}

fn is_listening_stream(socket: &OwnedFd) -> bool {
    sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    };

    #[test]
    fn a_bound_socket_is_open_to_everybody_and_removed_at_the_end() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("public/bus");
        let listener = bind(&path, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        UnixStream::connect(&path).unwrap();
        listener.remove();
        assert!(!path.exists());
        assert!(scratch.path().join("public").exists(), "containers have the directory mounted");
    }

    #[test]
    fn the_socket_of_a_killed_broker_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("bus");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = bind(&path, false).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_listens_on_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("bus");
        let _other = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, false), Err(SocketError::InUse(_))));
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("bus");
        fs::write(&path, "keep").unwrap();
        assert!(matches!(bind(&path, false), Err(SocketError::NotSocket(_))));
        assert_eq!(fs::read_to_string(path).unwrap(), "keep");
    }

    #[test]
    fn a_file_put_in_place_of_the_socket_is_not_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("bus");
        let listener = bind(&path, false).unwrap();
        fs::rename(&path, scratch.path().join("moved")).unwrap();
        fs::write(&path, "keep").unwrap();
        listener.remove();
        assert!(path.exists());
    }

    #[test]
    fn paths_that_no_socket_can_have_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let long = scratch.path().join("x".repeat(MAX_PATH));
        assert!(matches!(bind(&long, false), Err(SocketError::BadPath(_))));
        assert!(matches!(bind(Path::new("/"), false), Err(SocketError::BadPath(_))));
    }

    #[test]
    fn only_listening_unix_streams_are_taken_from_a_service_manager() {
        let scratch = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(scratch.path().join("s")).unwrap();
        assert!(is_listening_stream(&listener.into()));
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(!is_listening_stream(&one.into()));
        let file = fs::File::open("/dev/null").unwrap();
        assert!(!is_listening_stream(&file.into()));
    }
}
