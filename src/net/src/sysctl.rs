//! Kernel settings that links need, with the old values remembered.
//!
//! Touches `/proc/sys/net` and its record, the file `settings` in the helper's directory. The record is written
//! before a value is changed, so that a crash in between loses no old value. A value is put back only if it is still
//! the one that was set here, and only on the very interface it was set on.

use std::{io, path::PathBuf};

use cgrant_sys::dir::Dir;
use serde::{Deserialize, Serialize};

/// The record.
const RECORD: &str = "settings";
/// Longest record that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// Why a setting was not changed.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The kernel does not have or does not take it.
    #[error("cannot set net/{setting} to {value}")]
    Setting {
        /// Path below `/proc/sys/net`.
        setting: String,
        /// The value.
        value: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The old value can't be remembered.
    #[error("cannot remember a kernel setting")]
    Record(#[source] io::Error),
}

/// A setting that was changed here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    setting: String,
    /// The interface that it belongs to; 0 for those of the whole namespace.
    ifindex: u32,
    old: String,
    ours: String,
}

/// The settings that were changed.
#[derive(Debug)]
pub struct Sysctls {
    directory: Dir,
    changed: Vec<Changed>,
}

/// Where a setting lies. An interface's name has no slash in it, and is none of `.` and `..`: the kernel sees to that.
fn path(setting: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(setting)
}

/// The value of a setting; `None` if there is none, or it can't be read.
pub fn read(setting: &str) -> Option<String> {
    std::fs::read_to_string(path(setting)).ok().map(|value| value.trim().to_owned())
}

/// Sets a value that nobody will want to have back, because what it belongs to is ours.
///
/// # Errors
/// [`SysctlError::Setting`].
pub fn write(setting: &str, value: &str) -> Result<(), SysctlError> {
    use std::io::Write;
    let result = std::fs::OpenOptions::new()
        .write(true)
        .open(path(setting))
        .and_then(|mut file| file.write_all(value.as_bytes()));
    result.map_err(|source| SysctlError::Setting { setting: setting.into(), value: value.into(), source })
}

impl Sysctls {
    /// What is remembered in `directory` from an earlier run.
    ///
    /// # Errors
    /// Those of reading. A record that is not one is as good as none: it is told, and forgotten.
    pub fn open(directory: &Dir) -> io::Result<Self> {
        let changed = match directory.read(RECORD, LONGEST) {
            Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::error!(%error, "the record of changed kernel settings can't be read; they stay as they are");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { directory: directory.try_clone()?, changed })
    }

    /// Sets `setting`, of the interface `ifindex` or of the namespace (0), and remembers what it was. True if it was changed
    /// here, now or before.
    ///
    /// # Errors
    /// [`SysctlError`]; nothing is changed then.
    pub fn set(&mut self, setting: &str, ifindex: u32, value: &str) -> Result<bool, SysctlError> {
        let known = |changed: &Changed| changed.setting == setting && changed.ifindex == ifindex;
        let Some(old) = read(setting) else {
            let source = io::ErrorKind::NotFound.into();
            return Err(SysctlError::Setting { setting: setting.into(), value: value.into(), source });
        };
        if old == value {
            return Ok(self.changed.iter().any(known));
        }
        if !self.changed.iter().any(known) {
            self.remember(setting, ifindex, &old, value)?;
        }
        write(setting, value)?;
        Ok(true)
    }

    /// Notes that a setting is to become `old` again if it is `ours` then, without changing it now.
    ///
    /// # Errors
    /// [`SysctlError::Record`].
    pub fn remember(
        &mut self,
        setting: &str,
        ifindex: u32,
        old: &str,
        ours: &str,
    ) -> Result<(), SysctlError> {
        // Another interface that had this name is gone, and its settings with it.
        self.changed.retain(|changed| changed.setting != setting);
        let (setting, old, ours) = (setting.to_owned(), old.to_owned(), ours.to_owned());
        self.changed.push(Changed { setting, ifindex, old, ours });
        self.save()
    }

    /// Leaves settings as they are now, for good. It is written down with the next change.
    pub fn forget(&mut self, which: impl Fn(&str) -> bool) {
        self.changed.retain(|changed| !which(&changed.setting));
    }

    /// Is there nothing to put back?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Was this setting changed here?
    #[must_use]
    pub fn has_changed(&self, setting: &str, ifindex: u32) -> bool {
        self.changed.iter().any(|changed| changed.setting == setting && changed.ifindex == ifindex)
    }

    /// Was it changed here to what it is now?
    #[must_use]
    pub fn has_set(&self, setting: &str, ifindex: u32) -> bool {
        let is_it = |changed: &&Changed| changed.setting == setting && changed.ifindex == ifindex;
        self.changed.iter().find(is_it).is_some_and(|changed| read(setting).as_deref() == Some(&changed.ours))
    }

    /// Puts everything back that is still as it was set here, the last change first. `index_of` gives the index of the interface
    /// of a name.
    ///
    /// # Errors
    /// [`SysctlError::Record`]; the values have been put back.
    pub fn put_back(&mut self, index_of: impl Fn(&str) -> Option<u32>) -> Result<(), SysctlError> {
        for changed in std::mem::take(&mut self.changed).into_iter().rev() {
            let is_same = changed.ifindex == 0
                || interface(&changed.setting).and_then(&index_of) == Some(changed.ifindex);
            if !is_same || read(&changed.setting).as_deref() != Some(&changed.ours) {
                continue;
            }
            if let Err(error) = write(&changed.setting, &changed.old) {
                tracing::warn!(%error, "a kernel setting can't be put back");
            }
        }
        match self.directory.remove_file(RECORD) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SysctlError::Record(error)),
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<(), SysctlError> {
        let text = serde_json::to_vec(&self.changed).map_err(|error| SysctlError::Record(error.into()))?;
        self.directory.write_atomic(RECORD, &text, false).map_err(SysctlError::Record)
    }
}

/// The interface of a setting `FAMILY/conf/INTERFACE/NAME`.
fn interface(setting: &str) -> Option<&str> {
    setting.split_once("/conf/")?.1.rsplit_once('/').map(|(interface, _)| interface)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_found_in_a_setting() {
        assert_eq!(interface("ipv4/conf/eth0/forwarding"), Some("eth0"));
        assert_eq!(interface("ipv6/conf/eth0.5/accept_ra"), Some("eth0.5"));
        assert_eq!(interface("ipv4/ip_forward"), None);
    }

    #[test]
    fn a_record_is_found_again_and_a_broken_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let mut settings = Sysctls::open(&dir).unwrap();
        assert!(settings.is_empty());
        let changed = Changed {
            setting: "ipv4/conf/x/forwarding".into(),
            ifindex: 7,
            old: "0".into(),
            ours: "1".into(),
        };
        settings.changed.push(changed.clone());
        settings.save().unwrap();
        let again = Sysctls::open(&dir).unwrap();
        assert_eq!(again.changed, [changed]);
        assert!(
            again.has_changed("ipv4/conf/x/forwarding", 7) && !again.has_changed("ipv4/conf/x/forwarding", 8)
        );
        dir.write_atomic(RECORD, b"[{", false).unwrap();
        assert!(Sysctls::open(&dir).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_there_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let mut settings = Sysctls::open(&dir).unwrap();
        let error = settings.set("ipv4/conf/no-such-device/forwarding", 9, "1").unwrap_err();
        assert!(matches!(error, SysctlError::Setting { .. }), "{error}");
        assert!(settings.is_empty() && !dir.exists(RECORD).unwrap());
    }
}
