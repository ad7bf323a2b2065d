//! The broker's own directories: walked from the root, component by component, and made where missing.
//!
//! What an attacker could want: to have the broker put its record, its lock or its socket where somebody
//! else decides. So no component may be a symbolic link, each must belong to root (or to the user that
//! runs this, who is root in its user namespace), and nobody else may be able to rename things in it.
//! A sticky directory such as `/tmp` may lie on the way: what is root's in it only root can rename.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, Stat},
    io::Errno,
};

/// Who may look into a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only its owner: mode 0700. An existing directory is narrowed to that.
    Private,
    /// Everybody may read: mode 0755.
    Public,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Relative paths depend on where cgrantd was started.
    #[error("{0}: name it by an absolute path without . and ..")]
    NotPlain(PathBuf),
    /// A component is a symbolic link.
    #[error("{0} is a symbolic link; name the directory that it leads to")]
    Symlink(PathBuf),
    /// A component is something else.
    #[error("{0} is not a directory")]
    NotDirectory(PathBuf),
    /// A component belongs to somebody else.
    #[error("{path} belongs to uid {owner}; cgrantd uses only directories of its own user")]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others could rename things in it.
    #[error("{path} can be written to by others (mode {mode:04o}); take that right away first")]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// The kernel said no.
    #[error("{path}: {source}")]
    System {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Opens the directory at `path`, making it and what is missing above it.
///
/// # Errors
/// Any [`DirectoryError`] but [`DirectoryError::Missing`].
pub fn open_or_create(path: &Path, access: Access) -> Result<OwnedFd, DirectoryError> {
    let directory = walk(path, Some(access))?;
    settle_mode(&directory, path, access)?;
    Ok(directory)
}

/// Opens the directory at `path`, which must be there.
///
/// # Errors
/// Any [`DirectoryError`].
pub fn open(path: &Path) -> Result<OwnedFd, DirectoryError> {
    walk(path, None)
}

fn walk(path: &Path, create: Option<Access>) -> Result<OwnedFd, DirectoryError> {
    let names = plain_components(path)?;
    let mut seen = PathBuf::from("/");
    let mut here = rustix::fs::openat(CWD, "/", flags(), Mode::empty()).map_err(|e| system(&seen, e))?;
    check(&here, &seen, names.is_empty())?;
    let last = names.len().saturating_sub(1);
    for (position, name) in names.iter().enumerate() {
        seen.push(name);
        here = step(&here, name, &seen, create.map(|access| mode_of(position == last, access)))?;
        check(&here, &seen, position == last)?;
    }
    Ok(here)
}

/// The names of an absolute path in which nothing is left to interpretation.
fn plain_components(path: &Path) -> Result<Vec<&std::ffi::OsStr>, DirectoryError> {
    let not_plain = || DirectoryError::NotPlain(path.to_owned());
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(not_plain());
    }
    components
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(not_plain()),
        })
        .collect()
}

fn flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn mode_of(is_last: bool, access: Access) -> Mode {
    match access {
        Access::Private if is_last => Mode::RWXU,
        _ => Mode::from_raw_mode(0o755),
    }
}

fn step(
    parent: &OwnedFd,
    name: &std::ffi::OsStr,
    seen: &Path,
    create: Option<Mode>,
) -> Result<OwnedFd, DirectoryError> {
    match (rustix::fs::openat(parent, name, flags(), Mode::empty()), create) {
        (Err(Errno::NOENT), None) => Err(DirectoryError::Missing(seen.to_owned())),
        (Err(Errno::NOENT), Some(mode)) => {
            match rustix::fs::mkdirat(parent, name, mode) {
                // Another instance that starts at this moment may have made it.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(system(seen, errno)),
            }
            rustix::fs::openat(parent, name, flags(), Mode::empty())
                .map_err(|e| refusal(parent, name, seen, e))
        }
        (result, _) => result.map_err(|errno| refusal(parent, name, seen, errno)),
    }
}

/// Says why a component could not be opened as a directory.
fn refusal(parent: &OwnedFd, name: &std::ffi::OsStr, seen: &Path, errno: Errno) -> DirectoryError {
    if !matches!(errno, Errno::NOTDIR | Errno::LOOP) {
        return system(seen, errno);
    }
    match rustix::fs::statat(parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            DirectoryError::Symlink(seen.to_owned())
        }
        _ => DirectoryError::NotDirectory(seen.to_owned()),
    }
}

fn check(directory: &OwnedFd, path: &Path, is_last: bool) -> Result<(), DirectoryError> {
    let stat = rustix::fs::fstat(directory).map_err(|e| system(path, e))?;
    judge(&stat, path, is_last, rustix::process::geteuid().as_raw())
}

fn judge(stat: &Stat, path: &Path, is_last: bool, me: u32) -> Result<(), DirectoryError> {
    if stat.st_uid != 0 && stat.st_uid != me {
        return Err(DirectoryError::Foreign { path: path.to_owned(), owner: stat.st_uid });
    }
    let mode = stat.st_mode & 0o7777;
    let sticky_on_the_way = mode & 0o1000 != 0 && !is_last;
    if mode & 0o022 != 0 && !sticky_on_the_way {
        return Err(DirectoryError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Narrows a private directory that exists with more rights, for example one made by an older package.
fn settle_mode(directory: &OwnedFd, path: &Path, access: Access) -> Result<(), DirectoryError> {
    let stat = rustix::fs::fstat(directory).map_err(|e| system(path, e))?;
    if access == Access::Private && stat.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(directory.as_fd(), Mode::RWXU).map_err(|e| system(path, e))?;
    }
    Ok(())
}

fn system(path: &Path, errno: Errno) -> DirectoryError {
    DirectoryError::System { path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn missing_directories_are_made_with_their_modes() {
        let scratch = tempfile::tempdir().unwrap();
        let private = scratch.path().join("a/b/private");
        open_or_create(&private, Access::Private).unwrap();
        assert_eq!(mode(&private), 0o700);
        assert_eq!(mode(&scratch.path().join("a")), 0o755);
        let public = scratch.path().join("public");
        open_or_create(&public, Access::Public).unwrap();
        assert_eq!(mode(&public), 0o755);
    }

    #[test]
    fn a_private_directory_that_others_can_read_is_narrowed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        open_or_create(&path, Access::Private).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_symbolic_link_is_refused_wherever_it_lies() {
        let scratch = tempfile::tempdir().unwrap();
        let real = scratch.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = scratch.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(
            matches!(open_or_create(&link, Access::Public), Err(DirectoryError::Symlink(p)) if p == link)
        );
        let below = open_or_create(&link.join("below"), Access::Public);
        assert!(matches!(below, Err(DirectoryError::Symlink(p)) if p == link));
        assert!(!real.join("below").exists());
        let dangling = scratch.path().join("dangling");
        symlink(scratch.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(open_or_create(&dangling, Access::Public), Err(DirectoryError::Symlink(_))));
    }

    #[test]
    fn a_file_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(open_or_create(&file, Access::Public), Err(DirectoryError::NotDirectory(_))));
    }

    #[test]
    fn paths_that_leave_something_to_interpretation_are_refused() {
        for path in ["relative/path", "", "/tmp/../etc"] {
            assert!(matches!(open(Path::new(path)), Err(DirectoryError::NotPlain(_))), "{path}");
        }
    }

    #[test]
    fn a_missing_directory_is_named_when_it_must_be_there() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("none");
        assert!(matches!(open(&path), Err(DirectoryError::Missing(p)) if p == path));
    }

    #[test]
    fn others_directories_and_writable_ones_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let mut stat = rustix::fs::stat(scratch.path()).unwrap();
        let path = Path::new("/x");
        stat.st_uid = 1234;
        assert!(matches!(judge(&stat, path, true, 0), Err(DirectoryError::Foreign { owner: 1234, .. })));
        stat.st_uid = 0;
        stat.st_mode = 0o040_777;
        assert!(matches!(judge(&stat, path, true, 0), Err(DirectoryError::Writable { mode: 0o777, .. })));
        stat.st_mode = 0o041_777;
        assert!(judge(&stat, path, false, 0).is_ok());
        assert!(matches!(judge(&stat, path, true, 0), Err(DirectoryError::Writable { .. })));
    }
}
