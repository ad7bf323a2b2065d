//! Reading what the administrator wrote: `cgrantd.toml` and `policy.d/*.toml` in the configuration directory.

use std::{collections::HashMap, io};

use cgrant_policy::{config::{ConfigError, Settings}, policy::Policy};
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
    Config(#[from] ConfigError),
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
pub fn settings(config: &Dir) -> Result<Settings, SettingsError> {
    match read(config, "cgrantd.toml")? {
        Some(text) => Ok(Settings::parse("cgrantd.toml", &text)?),
        None => Ok(Settings::default()),
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
            let mut names: Vec<String> = directory.names().map_err(io)?.into_iter().filter(|name| name.ends_with(".toml")).collect();
            if names.len() > MAX_FILES {
                return Err(SettingsError::TooMany);
            }
            names.sort();
            for name in names {
                if let Some(text) = read(&directory, &name)? {
                    files.push((name, text));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(io(error)),
    }
    Ok(Policy::assemble(&files, groups)?)
}
