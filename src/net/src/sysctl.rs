//! Kernel settings that links need, with the old values remembered for the whole host.
//!
//! Touches `/proc/sys/net` and the record of its network namespace in a directory that all instances of the host share. A
//! setting belongs to every instance that needs it: the first writes down what it was, the last one that goes puts it
//! back. The record is written before a value is changed, so that a crash in between loses no old value. A value is put
//! back only if it is still the one that was set here, and only on the very interface it was set on.
//!
//! What an instance that crashed for good would need counts no more once it has no link left in the namespace; while it
//! has, its links work without it, and need what they needed.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use cgrant_sys::{NsId, dir::Dir};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// The file that is locked while a record is read or changed.
const LOCK: &str = "lock";
/// Longest record that is read, in bytes.
const LONGEST: usize = 4 << 20;
/// How long another instance may have the lock: it writes a few files meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    /// Another instance has the record and does not let go.
    #[error("another instance keeps the record of kernel settings locked")]
    Locked,
}

/// A setting that was changed by an instance of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    setting: String,
    /// The interface that it belongs to; 0 for those of the whole namespace.
    ifindex: u32,
    old: String,
    ours: String,
    /// The instances that need it so.
    users: BTreeSet<String>,
}

impl Changed {
    fn is(&self, setting: &str, ifindex: u32) -> bool {
        self.setting == setting && self.ifindex == ifindex
    }
}

/// A setting as it ought to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Path below `/proc/sys/net`.
    pub setting: String,
    /// The interface that it belongs to; 0 for those of the whole namespace.
    pub ifindex: u32,
    /// What is to be done about it.
    pub how: How,
}

/// What is to be done about a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is to have this value.
    Set(&'static str),
    /// It is left as it is. At the end it is to become `old` if it is `ours` then.
    Remember {
        /// What it is to become.
        old: &'static str,
        /// What it is by then, if nobody else has changed it.
        ours: &'static str,
    },
}

/// The settings that instances of this host changed in this network namespace.
#[derive(Debug)]
pub struct Sysctls {
    directory: Dir,
    record: String,
    instance: String,
}

/// The record as it was at one moment.
#[derive(Debug)]
pub struct Snapshot(Vec<Changed>);

impl Snapshot {
    /// Was this setting changed by an instance?
    #[must_use]
    pub fn has_changed(&self, setting: &str, ifindex: u32) -> bool {
        self.set_to(setting, ifindex).is_some()
    }

    /// What it is because of an instance, or will be; `None` if none has to do with it.
    #[must_use]
    pub fn set_to(&self, setting: &str, ifindex: u32) -> Option<&str> {
        self.0.iter().find(|changed| changed.is(setting, ifindex)).map(|changed| changed.ours.as_str())
    }
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
    /// Those of the network namespace `netns`, needed by `instance`, with the record in `directory`. Touches nothing.
    #[must_use]
    pub fn new(directory: Dir, netns: NsId, instance: &str) -> Self {
        // A colon is in the text of some.
        let record = format!("settings-{}", netns.to_string().replace(':', "-"));
        Self { directory, record, instance: instance.to_owned() }
    }

    /// What is in the record now.
    ///
    /// # Errors
    /// [`SysctlError::Record`].
    pub fn look(&self) -> Result<Snapshot, SysctlError> {
        // It is replaced in one step, so whoever only reads needs no lock.
        Ok(Snapshot(self.load()?))
    }

    /// Makes all settings as they are wished, for this instance too from now on. Those that it wished before stay its own.
    ///
    /// # Errors
    /// [`SysctlError`]; what was changed already is remembered.
    pub fn wish(&self, wishes: &[Wish]) -> Result<(), SysctlError> {
        if wishes.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut all = self.load()?;
        let before = all.clone();
        for wish in wishes {
            self.note(wish, &mut all)?;
        }
        if all != before {
            self.save(&all)?;
        }
        for wish in wishes {
            if let How::Set(value) = wish.how
                && read(&wish.setting).as_deref() != Some(value)
            {
                write(&wish.setting, value)?;
            }
        }
        Ok(())
    }

    /// Makes this instance a user of the setting, if it is to be changed or was. The host may have it so by itself.
    fn note(&self, wish: &Wish, all: &mut Vec<Changed>) -> Result<(), SysctlError> {
        if let Some(known) = all.iter_mut().find(|changed| changed.is(&wish.setting, wish.ifindex)) {
            known.users.insert(self.instance.clone());
            return Ok(());
        }
        let (old, ours) = match wish.how {
            How::Remember { old, ours } => (old.to_owned(), ours),
            How::Set(value) => {
                let Some(old) = read(&wish.setting) else {
                    let (setting, source) = (wish.setting.clone(), io::ErrorKind::NotFound.into());
                    return Err(SysctlError::Setting { setting, value: value.into(), source });
                };
                if old == value {
                    return Ok(());
                }
                (old, value)
            }
        };
        // Another interface that had this name is gone, and its settings with it.
        all.retain(|changed| changed.setting != wish.setting);
        all.push(Changed {
            setting: wish.setting.clone(),
            ifindex: wish.ifindex,
            old,
            ours: ours.to_owned(),
            users: BTreeSet::from([self.instance.clone()]),
        });
        Ok(())
    }

    /// Is there nothing that was changed?
    ///
    /// # Errors
    /// [`SysctlError::Record`].
    pub fn is_empty(&self) -> Result<bool, SysctlError> {
        Ok(!self.directory.exists(&self.record).map_err(SysctlError::Record)?)
    }

    /// This instance needs nothing any more. What no other one needs is put back if it is still as it was set, the last
    /// change first. `is_there` tells of another instance whether it has links, `index_of` gives the index of the
    /// interface of a name, and settings that are `for_good` stay as they are now.
    ///
    /// # Errors
    /// [`SysctlError::Record`], [`SysctlError::Locked`].
    pub fn release(
        &self,
        is_there: impl Fn(&str) -> bool,
        index_of: impl Fn(&str) -> Option<u32>,
        for_good: impl Fn(&str) -> bool,
    ) -> Result<(), SysctlError> {
        // On a host that never had a link nothing is written.
        if self.is_empty()? {
            return Ok(());
        }
        let _lock = self.lock()?;
        let (mut kept, mut over) = (Vec::new(), Vec::new());
        for mut changed in self.load()? {
            changed.users.retain(|user| *user != self.instance && is_there(user));
            if for_good(&changed.setting) {
                continue;
            }
            if changed.users.is_empty() { over.push(changed) } else { kept.push(changed) }
        }
        for changed in over.into_iter().rev() {
            let is_same = changed.ifindex == 0
                || interface(&changed.setting).and_then(&index_of) == Some(changed.ifindex);
            if !is_same || read(&changed.setting).as_deref() != Some(&changed.ours) {
                continue;
            }
            if let Err(error) = write(&changed.setting, &changed.old) {
                tracing::warn!(%error, "a kernel setting can't be put back");
            }
        }
        self.save(&kept)
    }

    /// An attacker could want to keep every instance of the host from working: the directory is root's alone, and who has the
    /// lock of it and does not end keeps the others waiting for so long only.
    fn lock(&self) -> Result<std::os::fd::OwnedFd, SysctlError> {
        let file = self.directory.open_file(LOCK, OFlags::RDWR | OFlags::CREATE);
        let file = file.map_err(SysctlError::Record)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOOK_AGAIN),
                Err(Errno::WOULDBLOCK) => return Err(SysctlError::Locked),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SysctlError::Record(errno.into())),
            }
        }
    }

    /// A record that is not one is as good as none: it is told, and forgotten.
    fn load(&self) -> Result<Vec<Changed>, SysctlError> {
        match self.directory.read(&self.record, LONGEST) {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::error!(%error, "the record of changed kernel settings can't be read; they stay as they are");
                Vec::new()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(SysctlError::Record(error)),
        }
    }

    fn save(&self, all: &[Changed]) -> Result<(), SysctlError> {
        if all.is_empty() {
            return match self.directory.remove_file(&self.record) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SysctlError::Record(error)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec(all).map_err(|error| SysctlError::Record(error.into()))?;
        self.directory.write_atomic(&self.record, &text, false).map_err(SysctlError::Record)
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

    const NETNS: NsId = NsId::Unique(7);

    fn settings(directory: &std::path::Path, instance: &str) -> Sysctls {
        Sysctls::new(Dir::open(directory).unwrap(), NETNS, instance)
    }

    /// One that every network namespace has, and that nothing here changes.
    fn there() -> Wish {
        let (setting, ifindex) = ("ipv4/ip_forward".to_owned(), 0);
        Wish { setting, ifindex, how: How::Remember { old: "was", ours: "is" } }
    }

    #[test]
    fn the_interface_is_found_in_a_setting() {
        assert_eq!(interface("ipv4/conf/eth0/forwarding"), Some("eth0"));
        assert_eq!(interface("ipv6/conf/eth0.5/accept_ra"), Some("eth0.5"));
        assert_eq!(interface("ipv4/ip_forward"), None);
    }

    #[test]
    fn a_record_is_everybodys_until_the_last_one_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (settings(directory.path(), "one"), settings(directory.path(), "two"));
        let release = |which: &Sysctls| which.release(|_| true, |_| None, |_| false).unwrap();
        let has = || one.look().unwrap().has_changed("ipv4/ip_forward", 0);
        release(&one);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0, "nothing was to be released");
        one.wish(&[there()]).unwrap();
        two.wish(&[there()]).unwrap();
        release(&one);
        assert!(has());
        release(&two);
        assert!(!has() && !directory.path().join("settings-id-7").exists());
    }

    #[test]
    fn who_has_no_device_left_needs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (settings(directory.path(), "one"), settings(directory.path(), "two"));
        one.wish(&[there()]).unwrap();
        two.wish(&[there()]).unwrap();
        two.release(|name| name != "one", |_| None, |_| false).unwrap();
        assert!(!one.look().unwrap().has_changed("ipv4/ip_forward", 0));
    }

    #[test]
    fn a_broken_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let one = settings(directory.path(), "one");
        one.wish(&[there()]).unwrap();
        std::fs::write(directory.path().join("settings-id-7"), "[{").unwrap();
        assert!(!one.look().unwrap().has_changed("ipv4/ip_forward", 0));
    }

    #[test]
    fn who_keeps_the_lock_holds_others_up_for_a_while_only() {
        let directory = tempfile::tempdir().unwrap();
        let one = settings(directory.path(), "one");
        let kept = one.lock().unwrap();
        let two = settings(directory.path(), "two");
        assert!(matches!(two.wish(&[there()]), Err(SysctlError::Locked)));
        assert!(!two.look().unwrap().has_changed("ipv4/ip_forward", 0));
        drop(kept);
        two.wish(&[there()]).unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let one = settings(directory.path(), "one");
        let setting = "ipv4/conf/no-such-device/forwarding".to_owned();
        let error = one.wish(&[Wish { setting, ifindex: 9, how: How::Set("1") }]).unwrap_err();
        assert!(matches!(error, SysctlError::Setting { .. }), "{error}");
        assert!(!directory.path().join("settings-id-7").exists());
    }
}
