//! Reading the configuration: `cgrantd.toml` for this process, and all of it once for `--check-config`.

use std::{
    io,
    path::{Path, PathBuf},
};

use cgrant_policy::{Config, Departed, FileError, LimitKey, Most, Policy, Ruling, Source};
use cgrant_sys::{
    ProcFs,
    dir::Dir,
    dropin::{DropInError, read_all, read_file},
};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A mistake in a file.
    #[error("{0}")]
    Mistake(FileError),
    /// A file can't be read, or must not be.
    #[error("{}/{source}", directory.display())]
    Unreadable {
        /// The directory of the configuration.
        directory: PathBuf,
        /// Which file, and why.
        source: DropInError,
    },
    /// The directory can't be opened.
    #[error("{}: {source}", directory.display())]
    Unopened {
        /// Which.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A directory was named that is not there.
    #[error("--config-dir {0}: there is no such directory")]
    Missing(PathBuf),
}

/// Reads `cgrantd.toml` in `directory`; without it the defaults hold.
///
/// # Errors
/// [`ConfigError`].
pub fn host_config(directory: &Path) -> Result<Config, ConfigError> {
    let Some(open) = open(directory)? else { return Ok(Config::default()) };
    match read_file(&open, "cgrantd.toml").map_err(|source| unreadable(directory, source))? {
        Some(text) => {
            let path = directory.join("cgrantd.toml");
            Config::parse(&path.to_string_lossy(), &text).map_err(ConfigError::Mistake)
        }
        None => Ok(Config::default()),
    }
}

/// The policy files in `directory`, in the order in which they are read.
///
/// # Errors
/// [`ConfigError`].
pub fn policy_files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    Ok(policy_texts(directory)?.into_iter().map(|(file, _)| file).collect())
}

/// Reads everything that the broker would read, as the broker does, and says what is wrong with it. What comes back is what its ceilings
/// ask for that a host can't keep which has these controllers on cgroup v1, and what can't be done for want of a setting.
///
/// # Errors
/// [`ConfigError`].
pub fn check(directory: &Path, on_v1: &[String]) -> Result<Vec<String>, ConfigError> {
    let config = host_config(directory)?;
    let files = policy_texts(directory)?;
    let names: Vec<_> = files.iter().map(|(file, _)| file.to_string_lossy()).collect();
    let texts = names.iter().zip(&files);
    let sources: Vec<_> = texts.map(|(name, (_, text))| Source { name, text }).collect();
    let policy = Policy::parse(&sources).map_err(ConfigError::Mistake)?;
    let is_on_v1 = |key: &LimitKey| on_v1.iter().any(|name| name == key.controller_on_v1());
    let lacks = |key: LimitKey| key.lacks_on_v1().filter(|_| is_on_v1(&key)).map(str::to_owned);
    let mut told = policy.unkept(lacks);
    if config.departed.directories.is_empty() {
        let removing = policy.rules().filter(|(ruling, _)| ruling.lifetime.departed == Departed::Remove);
        told.extend(removing.map(|(ruling, _)| {
            format!(
                "{}: lifetime.departed is \"remove\", and no files will be removed: name directories in [departed] of cgrantd.toml",
                ruling.label
            )
        }));
    }
    if config.disk.directories.is_empty() {
        let limits = |ruling: &Ruling| {
            [ruling.quotas.disk, ruling.quotas.disk_files].iter().any(|most| *most != Most::UNLIMITED)
        };
        let limiting = policy.rules().filter(|(ruling, _)| limits(ruling));
        told.extend(limiting.map(|(ruling, _)| {
            format!(
                "{}: quota.disk or quota.disk-files is set, and nothing is measured: name directories in [disk] of cgrantd.toml",
                ruling.label
            )
        }));
    }
    Ok(told)
}

/// The controllers that this host has on cgroup v1.
///
/// # Errors
/// What the kernel refuses.
pub fn controllers_on_v1() -> io::Result<Vec<String>> {
    let own = ProcFs::open()?.cgroups(std::process::id())?;
    let v1 = own.iter().filter(|(hierarchy, _)| hierarchy != "cgroup2");
    Ok(v1.flat_map(|(hierarchy, _)| hierarchy.split(',').map(str::to_owned)).collect())
}

fn policy_texts(directory: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let Some(open) = open(directory)? else { return Ok(Vec::new()) };
    let files = read_all(&open, "policy.d", ".toml").map_err(|source| unreadable(directory, source))?;
    Ok(files.into_iter().map(|(name, text)| (directory.join("policy.d").join(name), text)).collect())
}

/// The directory, if it is there.
fn open(directory: &Path) -> Result<Option<Dir>, ConfigError> {
    match std::path::absolute(directory).and_then(|path| Dir::open(&path)) {
        Ok(open) => Ok(Some(open)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Unopened { directory: directory.to_owned(), source }),
    }
}

fn unreadable(directory: &Path, source: DropInError) -> ConfigError {
    ConfigError::Unreadable { directory: directory.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_or_missing_directory_is_the_default() {
        let scratch = tempfile::tempdir().unwrap();
        check(scratch.path(), &[]).unwrap();
        assert_eq!(host_config(&scratch.path().join("none")).unwrap(), Config::default());
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("cgrantd.toml"), "[ids]\npol = 1\n").unwrap();
        let text = check(scratch.path(), &[]).unwrap_err().to_string();
        assert!(text.contains("cgrantd.toml:2:1: "), "{text}");
    }

    #[test]
    fn policy_files_are_read_as_the_broker_reads_them() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("policy.d");
        std::fs::create_dir(&directory).unwrap();
        for name in ["notes.txt", ".hidden.toml", "30-c.toml~"] {
            std::fs::write(directory.join(name), "nonsense here").unwrap();
        }
        check(scratch.path(), &[]).unwrap();
        std::fs::write(directory.join("20-b.toml"), "nonsense here").unwrap();
        let text = check(scratch.path(), &[]).unwrap_err().to_string();
        assert!(text.contains("policy.d/20-b.toml:1:") && text.contains('^'), "{text}");
        std::fs::remove_file(directory.join("20-b.toml")).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.join("20-b.toml")).unwrap();
        let text = check(scratch.path(), &[]).unwrap_err().to_string();
        assert!(text.contains("policy.d/20-b.toml: not a regular file"), "{text}");
    }

    #[test]
    fn ceilings_that_the_host_can_not_keep_are_told() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("policy.d")).unwrap();
        let rule = "[[rule]]\nname = \"disk\"\naccount-ceiling = { \"io.max\" = \"8:0 rbps=1M\" }\n";
        std::fs::write(scratch.path().join("policy.d/20-disk.toml"), rule).unwrap();
        let on_v1 = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            check(scratch.path(), &names).unwrap()
        };
        assert!(on_v1(&["memory", "io"]).is_empty(), "I/O is called blkio there");
        let told = on_v1(&["memory", "blkio"]);
        assert!(
            matches!(&told[..], [one] if one.contains("20-disk.toml:1 disk: io.max of account-ceiling")),
            "{told:?}"
        );
    }

    #[test]
    fn that_nothing_can_be_removed_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("policy.d")).unwrap();
        let rule = "[[rule]]\nname = \"pupils\"\nlifetime.departed = \"remove\"\n";
        std::fs::write(scratch.path().join("policy.d/20-pupils.toml"), rule).unwrap();
        let told = check(scratch.path(), &[]).unwrap();
        assert!(
            matches!(&told[..], [one] if one.contains("20-pupils.toml:1 pupils: lifetime.departed")),
            "{told:?}"
        );
        let directories = "[departed]\ndirectories = [\"/home\"]\n";
        std::fs::write(scratch.path().join("cgrantd.toml"), directories).unwrap();
        assert!(check(scratch.path(), &[]).unwrap().is_empty());
    }

    #[test]
    fn that_nothing_is_measured_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("policy.d")).unwrap();
        let rule = "[[rule]]\nname = \"pupils\"\nquota.disk-files = 1000\n";
        std::fs::write(scratch.path().join("policy.d/20-pupils.toml"), rule).unwrap();
        let told = check(scratch.path(), &[]).unwrap();
        assert!(
            matches!(&told[..], [one] if one.contains("20-pupils.toml:1 pupils: quota.disk")),
            "{told:?}"
        );
        std::fs::write(scratch.path().join("cgrantd.toml"), "[disk]\ndirectories = [\"/home\"]\n").unwrap();
        assert!(check(scratch.path(), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("cgrantd.toml"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(
            check(scratch.path(), &[]),
            Err(ConfigError::Unreadable { source: DropInError::TooLong(_), .. })
        ));
    }

    #[test]
    fn the_examples_are_good_and_say_the_defaults() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        assert!(check(&examples, &[]).unwrap().is_empty());
        assert_eq!(host_config(&examples).unwrap(), Config::default());
    }
}
