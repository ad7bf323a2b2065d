//! Reading what the administrator wrote: `cgrantd.toml` and `policy.d/*.toml` in the configuration directory.

use std::collections::HashMap;

use cgrant_policy::{Config, FileError, HostGid, Policy, Source};
use cgrant_sys::{
    dir::Dir,
    dropin::{DropInError, read_all, read_file},
};

/// The directory of policy files.
pub const POLICY: &str = "policy.d";
/// How their names end.
const SUFFIX: &str = ".toml";

/// Why the configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file or directory can't be read, or must not be.
    #[error(transparent)]
    Unreadable(#[from] DropInError),
    /// A file has an error.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The settings of `cgrantd.toml`, or the defaults.
///
/// # Errors
/// [`SettingsError`] naming file, line and column.
pub fn settings(config: &Dir) -> Result<Config, SettingsError> {
    match read_file(config, "cgrantd.toml")? {
        Some(text) => Ok(Config::parse("cgrantd.toml", &text)?),
        None => Ok(Config::default()),
    }
}

/// The policy: the built-in default under the drop-ins, in the order of their names.
///
/// # Errors
/// [`SettingsError`] naming file, line and column; a bad file is refused whole, and with it the whole policy.
pub fn policy(config: &Dir, groups: &HashMap<String, u32>) -> Result<Policy, SettingsError> {
    let files = read_all(config, POLICY, SUFFIX)?;
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    Ok(Policy::parse(&sources)?.with_groups(|name| groups.get(name).copied().map(HostGid)))
}
