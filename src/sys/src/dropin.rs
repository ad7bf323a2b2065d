//! Configuration files of an administrator's: read whole, all of one moment, and only what nobody else could have written.
//!
//! May touch: the directory that it is given, for reading.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{FileType, OFlags, Stat, fstat};

use crate::dir::{Dir, read_bounded};

/// Longest file, in bytes.
pub const MAX_FILE: usize = 256 * 1024;
/// Most files of one directory.
pub const MAX_FILES: usize = 256;
/// How often a directory is read again that changes meanwhile.
const MAX_TRIES: usize = 8;
/// May be written by the group, by others.
const WRITABLE: u32 = 0o022;
/// What errors call the directory of the configuration.
const ITSELF: &str = "the directory of the configuration";

/// Why configuration was not read.
#[derive(Debug, thiserror::Error)]
pub enum DropInError {
    /// A file or directory can't be read.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It is a link, a pipe, a device …
    #[error("{0}: not a regular file; links are not followed")]
    NotAFile(String),
    /// Somebody else could have written it.
    #[error("{file}: {why}; only root may be able to write it (chown root, chmod go-w)")]
    Untrusted {
        /// Which.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// It is no text.
    #[error("{0}: not UTF-8")]
    NotText(String),
    /// It is longer than anybody writes.
    #[error("{0}: longer than 256 KiB")]
    TooLong(String),
    /// There are more files than anybody writes.
    #[error("{0}: more than 256 files")]
    TooMany(String),
    /// It changed each time that it was read.
    #[error("{0}: changes while it is read")]
    Changing(String),
}

/// Reads a configuration file; `None` if it is not there.
///
/// An attacker wants to be the one who writes policy: by a file that he owns or may write, or a name that leads to one. He also
/// wants the reader to wait (a pipe) or to run out of memory. Nothing is followed, nothing is waited for, sizes are bounded, and
/// what is checked is the file that is read.
///
/// # Errors
/// [`DropInError`].
pub fn read_file(directory: &Dir, file: &str) -> Result<Option<String>, DropInError> {
    must_be_roots(ITSELF, &stat(ITSELF, directory.as_fd())?)?;
    read(directory, file, file)
}

/// Reads all files of a directory below `config` that end with `suffix` and don't begin with a dot, in the order of their names. A
/// directory that is not there has none.
///
/// All are of one moment: everything is read until it is the same twice.
///
/// # Errors
/// [`DropInError`]; what one file is refused for, all are.
pub fn read_all(config: &Dir, name: &str, suffix: &str) -> Result<Vec<(String, String)>, DropInError> {
    // Who may write it could take the files away, and with them what they say.
    must_be_roots(ITSELF, &stat(ITSELF, config.as_fd())?)?;
    let directory = match config.open_dir(name) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(name, source)),
    };
    must_be_roots(name, &stat(name, directory.as_fd())?)?;
    let mut before = read_once(&directory, name, suffix)?;
    for _ in 0..MAX_TRIES {
        let now = read_once(&directory, name, suffix)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    Err(DropInError::Changing(name.to_owned()))
}

fn read_once(directory: &Dir, shown: &str, suffix: &str) -> Result<Vec<(String, String)>, DropInError> {
    let mut files = Vec::new();
    for name in names(directory, shown, suffix)? {
        if let Some(text) = read(directory, &name, &format!("{shown}/{name}"))? {
            files.push((name, text));
        }
    }
    Ok(files)
}

fn names(directory: &Dir, shown: &str, suffix: &str) -> Result<Vec<String>, DropInError> {
    let entries = directory.entries().map_err(|source| failed(shown, source))?;
    let wanted = |name: &String| name.ends_with(suffix) && !name.starts_with('.');
    // A name that is no text ends with no suffix that anybody wrote.
    let mut names: Vec<String> =
        entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).filter(wanted).collect();
    if names.len() > MAX_FILES {
        return Err(DropInError::TooMany(shown.to_owned()));
    }
    names.sort_unstable();
    Ok(names)
}

fn read(directory: &Dir, file: &str, path: &str) -> Result<Option<String>, DropInError> {
    let opened = match open(directory, file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(DropInError::NotAFile(path.to_owned()));
        }
        Err(source) => return Err(failed(path, source)),
    };
    let found = stat(path, opened.as_fd())?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(DropInError::NotAFile(path.to_owned()));
    }
    must_be_roots(path, &found)?;
    let bytes = read_bounded(&opened, MAX_FILE).map_err(|source| match source.raw_os_error() {
        Some(libc::EFBIG) => DropInError::TooLong(path.to_owned()),
        _ => failed(path, source),
    })?;
    let text = String::from_utf8(bytes).map_err(|_| DropInError::NotText(path.to_owned()))?;
    Ok(Some(text))
}

/// Not waiting, so that a pipe can't hold us up.
fn open(directory: &Dir, file: &str) -> io::Result<OwnedFd> {
    directory.open_file(file, OFlags::RDONLY | OFlags::NONBLOCK)
}

fn stat(file: &str, fd: impl AsFd) -> Result<Stat, DropInError> {
    fstat(fd).map_err(|error| failed(file, error.into()))
}

/// Could nobody but root, or whoever reads it, have written it?
fn must_be_roots(file: &str, stat: &Stat) -> Result<(), DropInError> {
    let untrusted = |why: String| Err(DropInError::Untrusted { file: file.to_owned(), why });
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return untrusted(format!("belongs to uid {}", stat.st_uid));
    }
    // Whatever the group: the bits of root's are also what the kernel shows of an access control list for others.
    if stat.st_mode & WRITABLE != 0 {
        return untrusted(format!("has mode {:04o}", stat.st_mode & 0o7777));
    }
    Ok(())
}

fn failed(file: &str, source: io::Error) -> DropInError {
    DropInError::Io { file: file.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, chown, symlink},
    };

    use super::*;

    fn place() -> (tempfile::TempDir, Dir) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("policy.d")).unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        (directory, dir)
    }

    fn all(dir: &Dir) -> Result<Vec<(String, String)>, DropInError> {
        read_all(dir, "policy.d", ".toml")
    }

    #[test]
    fn files_come_in_order_and_others_not_at_all() {
        let (directory, dir) = place();
        for name in ["20-b.toml", "10-a.toml", "notes.txt", ".hidden.toml", "30-c.toml~"] {
            fs::write(directory.path().join("policy.d").join(name), name).unwrap();
        }
        let expected = ["10-a.toml", "20-b.toml"].map(|name| (name.to_owned(), name.to_owned()));
        assert_eq!(all(&dir).unwrap(), expected);
        assert_eq!(read_all(&dir, "none.d", ".toml").unwrap(), []);
        assert_eq!(read_file(&dir, "none").unwrap(), None);
    }

    #[test]
    fn what_is_no_file_of_roots_refuses_all() {
        type Attack = (&'static str, fn(&std::path::Path));
        let attacks: [Attack; 9] = [
            ("not a regular file", |path| symlink("/etc/passwd", path).unwrap()),
            ("not a regular file", |path| symlink("10-good.toml", path).unwrap()),
            ("not a regular file", |path| fs::create_dir(path).unwrap()),
            ("not a regular file", |path| {
                nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
            ("not a regular file", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
            ("longer than", |path| fs::write(path, vec![b'#'; MAX_FILE + 1]).unwrap()),
            ("belongs to uid 65534", |path| {
                fs::write(path, "").unwrap();
                chown(path, Some(65534), None).unwrap();
            }),
            ("mode 0666", |path| {
                fs::write(path, "").unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
            }),
            ("mode 0664", |path| {
                // As with an access control list that lets another user write.
                fs::write(path, "").unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o664)).unwrap();
            }),
        ];
        for (words, attack) in attacks {
            let (directory, dir) = place();
            let policy = directory.path().join("policy.d");
            fs::write(policy.join("10-good.toml"), "").unwrap();
            assert_eq!(all(&dir).unwrap().len(), 1);
            attack(&policy.join("20-bad.toml"));
            let error = all(&dir).unwrap_err().to_string();
            assert!(error.contains("policy.d/20-bad.toml") && error.contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_refuses_all() {
        let (directory, dir) = place();
        let policy = directory.path().join("policy.d");
        fs::set_permissions(&policy, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(all(&dir), Err(DropInError::Untrusted { .. })));
        fs::set_permissions(&policy, Permissions::from_mode(0o755)).unwrap();
        chown(&policy, Some(65534), None).unwrap();
        assert!(matches!(all(&dir), Err(DropInError::Untrusted { .. })));
        fs::remove_dir(&policy).unwrap();
        symlink(directory.path(), &policy).unwrap();
        assert!(matches!(all(&dir), Err(DropInError::Io { .. })));
        // The one around it: its files could be taken away.
        fs::remove_file(&policy).unwrap();
        assert_eq!(all(&dir).unwrap(), []);
        fs::set_permissions(directory.path(), Permissions::from_mode(0o775)).unwrap();
        assert!(matches!(all(&dir), Err(DropInError::Untrusted { .. })));
        assert!(matches!(read_file(&dir, "none"), Err(DropInError::Untrusted { .. })));
    }

    /// Two files that are always replaced in the order a, b, a, b…: whoever reads b's number before a's has mixed two moments.
    #[test]
    fn files_are_of_one_moment() {
        let (directory, dir) = place();
        let policy = directory.path().join("policy.d");
        let write = |name: &str, number: u32| {
            fs::write(policy.join("new"), number.to_string()).unwrap();
            fs::rename(policy.join("new"), policy.join(name)).unwrap();
        };
        write("a.toml", 0);
        write("b.toml", 0);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..300 {
                    write("a.toml", number);
                    write("b.toml", number);
                    if number % 16 == 0 {
                        std::thread::yield_now();
                    }
                }
                done.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            loop {
                let over = done.load(std::sync::atomic::Ordering::SeqCst);
                if let Ok(files) = all(&dir) {
                    let [a, b] = [0, 1].map(|index: usize| files[index].1.parse::<u32>().unwrap());
                    assert!(a == b || a == b + 1, "{a} {b}");
                }
                if over {
                    return;
                }
            }
        });
    }
}
