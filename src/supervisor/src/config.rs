//! Reading the configuration: `cgrantd.toml` for this process, and all of it once for `--check-config`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use cgrant_policy::{Config, FileError, Policy, Source};

/// Longest configuration file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Most policy files.
const MAX_FILES: usize = 1000;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A mistake in a file.
    #[error("{0}")]
    Mistake(FileError),
    /// A file or directory cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is too long, or there are too many.
    #[error("{0}: more than the broker reads (files of 1 MiB, 1000 policy files)")]
    TooMuch(PathBuf),
    /// A directory was named that is not there.
    #[error("--config-dir {0}: there is no such directory")]
    Missing(PathBuf),
}

/// Reads `cgrantd.toml` in `directory`; without it the defaults hold.
///
/// # Errors
/// [`ConfigError`].
pub fn host_config(directory: &Path) -> Result<Config, ConfigError> {
    let path = directory.join("cgrantd.toml");
    match read(&path)? {
        Some(text) => Config::parse(&path.to_string_lossy(), &text).map_err(ConfigError::Mistake),
        None => Ok(Config::default()),
    }
}

/// The policy files in `directory`, in the order in which they are read.
///
/// # Errors
/// [`ConfigError::Unreadable`], [`ConfigError::TooMuch`].
pub fn policy_files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let directory = directory.join("policy.d");
    let unreadable = |source| ConfigError::Unreadable { path: directory.clone(), source };
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(ConfigError::TooMuch(directory));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads everything that the broker would read, and says what is wrong with it.
///
/// # Errors
/// [`ConfigError`].
pub fn check(directory: &Path) -> Result<(), ConfigError> {
    host_config(directory)?;
    let mut texts = Vec::new();
    for path in policy_files(directory)? {
        if let Some(text) = read(&path)? {
            texts.push((path.to_string_lossy().into_owned(), text));
        }
    }
    let sources: Vec<_> = texts.iter().map(|(file, text)| Source { name: file, text }).collect();
    Policy::parse(&sources).map(|_| ()).map_err(ConfigError::Mistake)
}

/// The text of a file; nothing if it is not there.
fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooMuch(path.to_owned()));
    }
    Ok(Some(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_missing_directory_is_the_default() {
        let scratch = tempfile::tempdir().unwrap();
        check(scratch.path()).unwrap();
        assert_eq!(host_config(&scratch.path().join("none")).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("cgrantd.toml"), "[ids]\npol = 1\n").unwrap();
        let text = check(scratch.path()).unwrap_err().to_string();
        assert!(text.contains("cgrantd.toml:2:1: "), "{text}");
    }

    #[test]
    fn policy_files_are_read_in_order_and_others_are_not() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("policy.d");
        std::fs::create_dir(&directory).unwrap();
        for name in ["20-b.toml", "10-a.toml", "notes.txt", ".hidden.toml", "30-c.toml~"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let files = policy_files(scratch.path()).unwrap();
        assert_eq!(files, [directory.join("10-a.toml"), directory.join("20-b.toml")]);
        std::fs::write(directory.join("20-b.toml"), "nonsense here").unwrap();
        let text = check(scratch.path()).unwrap_err().to_string();
        assert!(text.contains("20-b.toml:1:"), "{text}");
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("cgrantd.toml"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(check(scratch.path()), Err(ConfigError::TooMuch(_))));
    }

    #[test]
    fn the_examples_are_good_and_say_the_defaults() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        check(&examples).unwrap();
        assert_eq!(policy_files(&examples).unwrap().len(), 3);
        assert_eq!(host_config(&examples).unwrap(), Config::default());
    }
}
