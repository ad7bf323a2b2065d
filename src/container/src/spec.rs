//! What a container shall be: its root, its command, its surroundings. Pure data; nothing here acts.
//!
//! Everything that may be non-UTF-8 on Linux (paths, arguments, environment) is `OsString`.

use std::{
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// The `PATH` of a command whose environment has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest hostname, in bytes (`HOST_NAME_MAX`, gethostname(2)).
const HOST_NAME_MAX: usize = 64;

/// What the container sees as `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The host's own tree with everything mounted in it, read-only, without devices and setuid.
    ///
    /// The mounts are read-only for everybody who has no capabilities; the container's own root may
    /// remount them, and then writes with the rights of the container's ids, which own nothing there.
    Host,
    /// A directory. Files in it that belong to the account itself appear as `nobody` inside, because the
    /// account's own id is not one of the container's ids.
    Directory {
        /// Its path, resolved as the account, from the current directory.
        path: PathBuf,
        /// Mounted read-only?
        read_only: bool,
    },
}

/// A process to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments. A program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory, seen from inside.
    pub directory: PathBuf,
}

/// A container to be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchSpec {
    /// What it sees as `/`.
    pub root: Root,
    /// Its hostname; without one, that of the [`crate::Placement`].
    pub hostname: Option<String>,
    /// What runs as its first process.
    pub command: Command,
    /// Shall a tiny reaper be pid 1, with the command as its child?
    pub reaper: bool,
    /// May its namespace call setgroups? Must be what the broker was asked for.
    pub setgroups: bool,
    /// Shall its network namespace be there before the broker is asked, so that it can be given links?
    pub links: bool,
}

/// Why a [`LaunchSpec`] cannot be launched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// No program is given.
    #[error("no command is given")]
    NoCommand,
    /// A string for the kernel has a NUL byte.
    #[error("{what} has a NUL byte in it")]
    Nul {
        /// Which string.
        what: &'static str,
    },
    /// A variable without a name, or with `=` in its name.
    #[error("{name:?} is no name for an environment variable")]
    Variable {
        /// The name.
        name: OsString,
    },
    /// The hostname is empty, too long or has bytes that no hostname has.
    #[error("{name:?} is no hostname: 1 to 64 letters, digits, '-' and '.' are")]
    Hostname {
        /// The name.
        name: String,
    },
    /// The working directory is relative.
    #[error("the working directory {path:?} is not absolute")]
    Directory {
        /// The path.
        path: PathBuf,
    },
}

/// The same in the form that the kernel takes, made before anything is forked.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) root: Root,
    pub(crate) hostname: Option<String>,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// The files to try, in order.
    pub(crate) programs: Vec<CString>,
    pub(crate) directory: CString,
    pub(crate) reaper: bool,
    pub(crate) setgroups: bool,
    pub(crate) links: bool,
}

impl LaunchSpec {
    /// Checks everything that can be known beforehand.
    pub(crate) fn prepare(&self) -> Result<Prepared, SpecError> {
        let program = self.command.argv.first().filter(|p| !p.is_empty()).ok_or(SpecError::NoCommand)?;
        if let Some(name) = &self.hostname {
            check_hostname(name)?;
        }
        if !self.command.directory.is_absolute() {
            return Err(SpecError::Directory { path: self.command.directory.clone() });
        }
        if let Root::Directory { path, .. } = &self.root {
            c_string("the root", path.as_os_str())?;
        }
        Ok(Prepared {
            root: self.root.clone(),
            hostname: self.hostname.clone(),
            argv: self.command.argv.iter().map(|a| c_string("an argument", a)).collect::<Result<_, _>>()?,
            env: self.command.env.iter().map(variable).collect::<Result<_, _>>()?,
            programs: candidates(program, &self.command.env)?,
            directory: c_string("the working directory", self.command.directory.as_os_str())?,
            reaper: self.reaper,
            setgroups: self.setgroups,
            links: self.links,
        })
    }
}

/// Is `name` a hostname that every program can live with?
///
/// # Errors
/// [`SpecError::Hostname`] if not.
pub fn check_hostname(name: &str) -> Result<(), SpecError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let edges = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if bytes.len() <= HOST_NAME_MAX
        && bytes.iter().all(|b| good(*b))
        && edges(bytes.first())
        && edges(bytes.last())
    {
        return Ok(());
    }
    Err(SpecError::Hostname { name: name.to_owned() })
}

pub(crate) fn c_string(what: &'static str, text: &OsStr) -> Result<CString, SpecError> {
    CString::new(text.as_bytes()).map_err(|_| SpecError::Nul { what })
}

pub(crate) fn variable((name, value): &(OsString, OsString)) -> Result<CString, SpecError> {
    if name.is_empty() || name.as_bytes().contains(&b'=') {
        return Err(SpecError::Variable { name: name.clone() });
    }
    let mut text = name.clone().into_vec();
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).map_err(|_| SpecError::Nul { what: "the environment" })
}

/// The files that a program's name stands for: itself if it has a slash, otherwise one in each directory
/// of the command's own `PATH` (not of the launcher's).
pub(crate) fn candidates(program: &OsStr, env: &[(OsString, OsString)]) -> Result<Vec<CString>, SpecError> {
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![c_string("the program", program)?]);
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value.as_os_str());
    path.as_bytes()
        .split(|b| *b == b':')
        .map(
            |directory| {
                if directory.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(directory)) }
            },
        )
        .map(|directory| c_string("the program", directory.join(program).as_os_str()))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn spec() -> LaunchSpec {
        LaunchSpec {
            root: Root::Directory {
                path: PathBuf::from(OsString::from_vec(vec![b'/', 0xff])),
                read_only: true,
            },
            hostname: Some("box".into()),
            command: Command {
                argv: vec!["sh".into(), OsString::from_vec(vec![0xfe, b'x'])],
                env: vec![("PATH".into(), "/a::/b".into()), ("X".into(), OsString::from_vec(vec![0xff]))],
                directory: "/".into(),
            },
            reaper: true,
            setgroups: false,
            links: false,
        }
    }

    #[test]
    fn bytes_that_are_no_text_reach_the_kernel() {
        let prepared = spec().prepare().unwrap();
        assert_eq!(prepared.argv[1].as_bytes(), [0xfe, b'x']);
        assert_eq!(prepared.env[1].as_bytes(), b"X=\xff");
        assert_eq!(prepared.root, spec().root);
    }

    #[test]
    fn a_program_without_slash_is_looked_up_in_the_commands_own_path() {
        let programs = spec().prepare().unwrap().programs;
        assert_eq!(programs, [c"/a/sh".to_owned(), c"./sh".to_owned(), c"/b/sh".to_owned()]);
    }

    #[test]
    fn a_program_with_slash_is_taken_as_it_is() {
        let mut spec = spec();
        spec.command.argv[0] = "./x".into();
        assert_eq!(spec.prepare().unwrap().programs, [c"./x".to_owned()]);
    }

    #[test]
    fn without_path_the_usual_directories_are_searched() {
        let mut spec = spec();
        spec.command.env.clear();
        assert_eq!(spec.prepare().unwrap().programs.len(), 6);
    }

    #[test]
    fn what_the_kernel_cannot_take_is_refused() {
        let refused = |change: fn(&mut LaunchSpec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.prepare().unwrap_err()
        };
        assert_eq!(refused(|s| s.command.argv.clear()), SpecError::NoCommand);
        assert_eq!(refused(|s| s.command.argv[0] = "".into()), SpecError::NoCommand);
        assert_eq!(refused(|s| s.command.argv[1] = "a\0b".into()), SpecError::Nul { what: "an argument" });
        assert_eq!(
            refused(|s| s.command.env[1].1 = "a\0b".into()),
            SpecError::Nul { what: "the environment" }
        );
        assert!(matches!(refused(|s| s.command.env[0].0 = "A=B".into()), SpecError::Variable { .. }));
        assert!(matches!(refused(|s| s.command.env[0].0 = "".into()), SpecError::Variable { .. }));
        assert!(matches!(refused(|s| s.command.directory = "x".into()), SpecError::Directory { .. }));
        assert!(matches!(refused(|s| s.hostname = Some("a b".into())), SpecError::Hostname { .. }));
        assert!(matches!(refused(|s| s.hostname = Some(String::new())), SpecError::Hostname { .. }));
        assert!(matches!(refused(|s| s.hostname = Some("x".repeat(65))), SpecError::Hostname { .. }));
        assert!(matches!(refused(|s| s.hostname = Some("-x".into())), SpecError::Hostname { .. }));
    }
}
