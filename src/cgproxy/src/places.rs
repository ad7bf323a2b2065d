//! The two sockets: the outer one, and the one that programs in the container find.
//!
//! Where the host's directory is mounted at the very place at which the proxy is to be, it is moved aside first: the mount, or,
//! if it is none, the directory.

use std::{
    fs, io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::mount::mount_move;

use crate::args::Args;

/// Why there is no place for the proxy.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Both answer.
    #[error("somebody answers at {socket} and at {upper}: a proxy runs already")]
    Running {
        /// The inner socket.
        socket: PathBuf,
        /// The outer one.
        upper: PathBuf,
    },
    /// Neither answers.
    #[error("nobody answers at {socket} or {upper}: mount the directory of the host's socket there")]
    Nobody {
        /// The inner socket.
        socket: PathBuf,
        /// The outer one.
        upper: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What to do.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PlaceError {
    fn system<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, path: path.to_owned(), source: source.into() }
    }
}

/// Does anybody answer at either?
pub fn is_served(args: &Args) -> bool {
    answers(&args.upper) || answers(&args.socket)
}

/// The outer socket's path, and the inner one, which listens.
///
/// # Errors
/// [`PlaceError`].
pub fn take(args: &Args) -> Result<(PathBuf, UnixListener), PlaceError> {
    let (socket, upper) = (&args.socket, &args.upper);
    match (answers(socket), answers(upper)) {
        (true, true) => return Err(PlaceError::Running { socket: socket.clone(), upper: upper.clone() }),
        (false, false) => return Err(PlaceError::Nobody { socket: socket.clone(), upper: upper.clone() }),
        (true, false) => move_aside(directory(socket), directory(upper))?,
        // Of a proxy that has ended.
        (false, true) => {}
    }
    Ok((upper.clone(), listen(socket)?))
}

fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn directory(socket: &Path) -> &Path {
    socket.parent().unwrap_or(Path::new("/"))
}

fn move_aside(from: &Path, to: &Path) -> Result<(), PlaceError> {
    fs::create_dir_all(to).map_err(PlaceError::system("make", to))?;
    match mount_move(from, to) {
        Ok(()) => Ok(()),
        // It is no mount.
        Err(rustix::io::Errno::INVAL) => fs::rename(from, to).map_err(PlaceError::system("move", from)),
        Err(errno) => Err(PlaceError::system("move", from)(errno)),
    }
}

fn listen(socket: &Path) -> Result<UnixListener, PlaceError> {
    let parent = directory(socket);
    fs::create_dir_all(parent).map_err(PlaceError::system("make", parent))?;
    match fs::remove_file(socket) {
        // Nobody answers there, as was seen.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(PlaceError::system("remove", socket)(error)),
    }
    let listener = UnixListener::bind(socket).map_err(PlaceError::system("listen at", socket))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o777))
        .map_err(PlaceError::system("open to all", socket))?;
    listener.set_nonblocking(true).map_err(PlaceError::system("listen at", socket))?;
    Ok(listener)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    fn args(scratch: &Path) -> Args {
        let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
        Args::try_parse_from(["cgproxy", "--socket", &path("in/sock"), "--upper", &path("out/sock")]).unwrap()
    }

    #[test]
    fn a_directory_that_answers_is_moved_aside_once() {
        let scratch = tempfile::tempdir().unwrap();
        let args = args(scratch.path());
        assert!(matches!(take(&args), Err(PlaceError::Nobody { .. })));
        fs::create_dir(scratch.path().join("in")).unwrap();
        let _outer = UnixListener::bind(&args.socket).unwrap();
        assert!(is_served(&args));
        let (upper, inner) = take(&args).unwrap();
        assert!(answers(&upper) && answers(&args.socket));
        assert!(matches!(take(&args), Err(PlaceError::Running { .. })));
        drop(inner);
        take(&args).unwrap();
    }
}
