//! The broker's configuration, as far as commands of root's read it.

use std::{io, path::Path};

use cgrant_policy::Config;
use cgrant_sys::{Dir, dropin};

use crate::error::Failure;

/// The file, in the directory of the broker's configuration.
pub(super) const FILE: &str = "cgrantd.toml";

/// What it says; where it is not there, what holds without it.
///
/// # Errors
/// It can't be read, is wrong, or others than root may write it.
pub(super) fn read(directory: &Path) -> Result<Config, Failure> {
    let failed =
        |source| Failure::File { doing: "read the configuration in", path: directory.into(), source };
    let text = match std::path::absolute(directory).and_then(|path| Dir::open(&path)) {
        Ok(open) => dropin::read_file(&open, FILE)
            .map_err(|source| Failure::PolicyUnread { directory: directory.into(), source })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    Ok(Config::parse(&directory.join(FILE).to_string_lossy(), &text.unwrap_or_default())?)
}
