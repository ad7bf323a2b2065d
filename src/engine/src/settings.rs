//! Reading what the administrator wrote: `cgrantd.toml` and `policy.d/*.toml` in the configuration directory.

use std::{collections::HashMap, io};

use cgrant_policy::{Config, FileError, HostGid, Policy, Source};
use cgrant_sys::dir::Dir;

/// Longest configuration file, in bytes.
const MAX_FILE: usize = 256 * 1024;
/// Most drop-ins.
const MAX_FILES: usize = 256;

/// Why the configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file or directory can't be read.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// More drop-ins than anybody writes.
    #[error("policy.d has more than {MAX_FILES} files")]
    TooMany,
    /// A file has an error.
    #[error(transparent)]
    File(#[from] FileError),
}

fn read(directory: &Dir, file: &str) -> Result<Option<String>, SettingsError> {
    match directory.read(file, MAX_FILE) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SettingsError::Io { file: file.to_owned(), source }),
    }
}

/// The settings of `cgrantd.toml`, or the defaults.
///
/// # Errors
/// [`SettingsError`] naming file, line and column.
pub fn settings(config: &Dir) -> Result<Config, SettingsError> {
    match read(config, "cgrantd.toml")? {
        Some(text) => Ok(Config::parse("cgrantd.toml", &text)?),
        None => Ok(Config::default()),
    }
}

/// The policy: the built-in default under the drop-ins, in the order of their names.
///
/// # Errors
/// [`SettingsError`] naming file, line and column; a bad file is refused whole, and with it the whole policy.
pub fn policy(config: &Dir, groups: &HashMap<String, u32>) -> Result<Policy, SettingsError> {
    let io = |source| SettingsError::Io { file: "policy.d".into(), source };
    let mut files = Vec::new();
    match config.open_dir("policy.d") {
        Ok(directory) => {
            let names: Vec<String> =
                directory.names().map_err(io)?.into_iter().filter(|name| name.ends_with(".toml")).collect();
            if names.len() > MAX_FILES {
                return Err(SettingsError::TooMany);
            }
            for name in names {
                if let Some(text) = read(&directory, &name)? {
                    files.push((name, text));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(io(error)),
    }
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    Ok(Policy::parse(&sources)?.with_groups(|name| groups.get(name).copied().map(HostGid)))
}
