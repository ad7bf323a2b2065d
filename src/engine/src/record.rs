//! The journal: one file a grant, written before the effect, so that a crash at any point leaves enough to finish or undo.
//!
//! A persistent grant's file lies in the state directory and is flushed to disk; every other one lies in the
//! run directory, which the next boot finds empty. That a grant is being released is said by the name of its file: giving
//! another name is one step, and needs no room on the disk. Only this module reads and writes these files.

use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::{Application, Caller as Subject, Controllers, Departed, HostGid, HostUid, Logout};
use cgrant_sys::dir::Dir;
use cgrant_wire::{
    GrantId, Lifetime, Range,
    net::{Bridge, Link},
};
use serde::{Deserialize, Serialize};

use crate::devices::DeviceList;

/// Format of the files. A file of another format is refused, never guessed at.
const FORMAT: u32 = 1;
/// Longest file that is read, in bytes.
const MAX_RECORD: usize = 1024 * 1024;
/// The directory of the files, in the state directory and in the run directory.
const DIRECTORY: &str = "grants";

/// How far a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its resources are being made; the caller has no answer yet.
    Creating,
    /// It is there.
    Active,
    /// Its resources are being removed.
    Releasing,
}

/// The process that holds a grant, so that it is known again after a restart of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRecord {
    /// Its pid. Proves nothing alone.
    pub pid: u32,
    /// Inode of its pidfd, where the kernel never gives one twice (pidfs, Linux 6.9).
    pub inode: Option<u64>,
    /// When it started, clock ticks since boot (`man 5 proc_pid_stat`, field 22).
    pub start_time: u64,
}

/// A link of a grant as the journal keeps it: all that the network helper has to be told to make or mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// How far it is.
    pub phase: Phase,
    /// Its host number in the bridge's networks; `None` on a bridge whose addresses are not the broker's.
    pub number: Option<u32>,
    /// Does the address stay the container's when the grant ends?
    pub kept: bool,
    /// Its bridge.
    pub bridge: Bridge,
    /// The link.
    pub link: Link,
}

/// A grant as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// Format of the file.
    pub format: u32,
    /// The grant's id, 16 hex digits; also the file's name.
    pub id: String,
    /// The uid that is charged.
    pub account: u32,
    /// The gid that shares the payload's `cgroup.procs`.
    pub gid: u32,
    /// Its name.
    pub name: String,
    /// The caller's idempotency key, or empty.
    pub key: String,
    /// Digest of the request that the key stands for.
    pub digest: u64,
    /// How far it is.
    pub phase: Phase,
    /// The boot that its kernel objects belong to.
    pub boot: String,
    /// When it was made, microseconds since 1970.
    pub created: u64,
    /// What ends it.
    pub lifetime: Lifetime,
    /// The process that holds it.
    pub holder: Option<HolderRecord>,
    /// How many ids it has; 0 for none.
    pub count: u32,
    /// Is the range tied to a name?
    pub range_named: bool,
    /// Which, if not the grant's. Records from before there was a choice have none.
    #[serde(default)]
    pub range_name: Option<String>,
    /// Its ids, once they are known.
    pub range: Option<Range>,
    /// Limits set through the broker, canonical.
    pub limits: Vec<(String, String)>,
    /// Controllers that policy let it have. Records from before policy had a say have all.
    #[serde(default)]
    pub controllers: Controllers,
    /// Resources whose pressure is signalled.
    pub pressure: Vec<String>,
    /// Kernel id of the payload's cgroup2 cgroup; 0 until it is made.
    pub cgroup_id: u64,
    /// Its links. Records from before there were any have none.
    #[serde(default)]
    pub links: Vec<LinkRecord>,
    /// The account's user when it was made; `None` if `/etc/passwd` knew none. Records from before it was noted have none.
    #[serde(default)]
    pub user: Option<String>,
    /// What becomes of it when that one logs out.
    #[serde(default)]
    pub logout: Logout,
    /// What becomes of it when that one is deleted.
    #[serde(default)]
    pub departed: Departed,
    /// Was the account's user logged in when it was made?
    #[serde(default)]
    pub in_session: bool,
    /// Its devices; `None` if they are not limited. Records from before they were have none.
    #[serde(default)]
    pub devices: Option<DeviceList>,
    /// How many blocks of 65536 ids at the end of its range are for grants made from inside; 0 if nobody inside is served.
    #[serde(default)]
    pub nesting: u32,
    /// The account's groups when it was made: what callers from inside are judged by, whose own groups are the container's.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The application that made it, likewise.
    #[serde(default)]
    pub application: Option<Application>,
    /// For a grant that was made from inside another.
    #[serde(default)]
    pub nested: Option<NestedRecord>,
    /// Is it for nothing but removing and counting files?
    #[serde(default)]
    pub tidies: bool,
}

/// What a grant that was made from inside another has beside the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NestedRecord {
    /// The steps of the grants around it, the outermost first.
    pub around: Vec<String>,
    /// The id of the innermost of them.
    pub parent: String,
    /// Who made it, as the initial user namespace counts: the root of that grant's range, or an ordinary user in there.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
    /// Who that is in there. Records from before others than root were let in have root.
    #[serde(default)]
    pub user: u32,
    /// Of an ordinary user's grant: most cgroups below it. Records from before there was such a bound have none.
    #[serde(default)]
    pub cgroups: Option<u64>,
}

impl GrantRecord {
    /// A record of the current format with nothing decided.
    pub fn new(id: GrantId, account: u32, gid: u32, name: &str, boot: &str) -> Self {
        Self {
            format: FORMAT,
            id: id.to_string(),
            account,
            gid,
            name: name.to_owned(),
            key: String::new(),
            digest: 0,
            phase: Phase::Creating,
            boot: boot.to_owned(),
            created: 0,
            lifetime: Lifetime::Connection,
            holder: None,
            count: 0,
            range_named: false,
            range_name: None,
            range: None,
            limits: Vec::new(),
            controllers: Controllers::All,
            pressure: Vec::new(),
            cgroup_id: 0,
            links: Vec::new(),
            user: None,
            logout: Logout::Keep,
            departed: Departed::Keep,
            in_session: false,
            devices: None,
            nesting: 0,
            groups: Vec::new(),
            application: None,
            nested: None,
            tidies: false,
        }
    }

    /// The account, as policy saw it when the grant was made.
    pub fn subject(&self) -> Subject {
        Subject {
            uid: HostUid(self.account),
            gid: HostGid(self.gid),
            groups: self.groups.iter().copied().map(HostGid).collect(),
            application: self.application.clone(),
        }
    }
}

/// A file of the journal that is not what this program wrote.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("journal file {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The content is damaged or of another format.
    #[error("journal file {file} is damaged or of another format: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// In what way.
        reason: String,
    },
}

/// The two directories of grant records.
pub struct Journal {
    durable: Dir,
    volatile: Dir,
    /// Where the only record of a grant is, if that is known.
    places: Mutex<HashMap<String, Place>>,
}

/// Where the only record of a grant is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    /// In the durable directory?
    durable: bool,
    /// Under the name of one that is being released?
    releasing: bool,
}

fn subdirectory(parent: &Dir) -> io::Result<Dir> {
    match parent.create_dir(DIRECTORY, 0o700) {
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        Err(error) => return Err(error),
    }
    parent.open_dir(DIRECTORY)
}

fn file_name(id: &str, releasing: bool) -> String {
    if releasing { format!("{id}.releasing.json") } else { format!("{id}.json") }
}

impl Journal {
    /// Opens the journal in the instance's state and run directories.
    ///
    /// # Errors
    /// If a directory can't be made or opened.
    pub fn open(state: &Dir, run: &Dir) -> io::Result<Self> {
        Ok(Self { durable: subdirectory(state)?, volatile: subdirectory(run)?, places: Mutex::default() })
    }

    /// Writes `record` in place of what was there.
    ///
    /// # Errors
    /// [`JournalError::Io`], when nothing has changed.
    pub fn write(&self, record: &GrantRecord) -> Result<(), JournalError> {
        let before = self.places().get(&record.id).copied();
        let releasing = before.is_some_and(|before| before.releasing);
        let file = file_name(&record.id, releasing);
        let bytes = serde_json::to_vec_pretty(record)
            .map_err(|error| JournalError::Damaged { file: file.clone(), reason: error.to_string() })?;
        let persistent = record.lifetime == Lifetime::Persistent;
        let (home, other) =
            if persistent { (&self.durable, &self.volatile) } else { (&self.volatile, &self.durable) };
        home.write_atomic(&file, &bytes, persistent)
            .map_err(|source| JournalError::Io { file: file.clone(), source })?;
        // A change of lifetime moves the record; the new file is there before the old one goes. That of a grant which is being
        // made is its first one.
        let is_only = before.map_or(record.phase == Phase::Creating, |before| before.durable == persistent);
        if !is_only {
            self.remove_from(other, &file)?;
        }
        self.places().insert(record.id.clone(), Place { durable: persistent, releasing });
        Ok(())
    }

    /// Says that the grant is being released. It may have been said already.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn release(&self, record: &GrantRecord) -> Result<(), JournalError> {
        let (file, releasing) = (file_name(&record.id, false), file_name(&record.id, true));
        let place = self.places().get(&record.id).copied();
        let failed = |source| JournalError::Io { file: file.clone(), source };
        for (directory, durable) in [(&self.volatile, false), (&self.durable, true)] {
            if place.is_some_and(|place| place.durable != durable) {
                continue;
            }
            match directory.rename(&file, &releasing) {
                Ok(()) if durable => directory.sync().map_err(failed)?,
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
                _ => (),
            }
        }
        let durable = place.map_or(record.lifetime == Lifetime::Persistent, |place| place.durable);
        self.places().insert(record.id.clone(), Place { durable, releasing: true });
        Ok(())
    }

    /// Forgets the grant. It may be forgotten already.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove(&self, id: &str) -> Result<(), JournalError> {
        let place = self.places().get(id).copied();
        for (directory, durable) in [(&self.volatile, false), (&self.durable, true)] {
            for releasing in [false, true] {
                if place.is_none_or(|place| place == Place { durable, releasing }) {
                    self.remove_from(directory, &file_name(id, releasing))?;
                }
            }
        }
        self.places().remove(id);
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, HashMap<String, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_from(&self, directory: &Dir, file: &str) -> Result<(), JournalError> {
        match directory.remove_file(file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(JournalError::Io { file: file.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Every record there is, and the files that are none. Leftovers of interrupted writes are removed.
    ///
    /// # Errors
    /// [`JournalError::Io`] if a directory can't be listed.
    pub fn load(&self) -> Result<(Vec<GrantRecord>, Vec<JournalError>), JournalError> {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for directory in [&self.volatile, &self.durable] {
            let names =
                directory.names().map_err(|source| JournalError::Io { file: DIRECTORY.into(), source })?;
            for file in names {
                if !file.ends_with(".json") {
                    self.remove_from(directory, &file)?;
                    continue;
                }
                match read_record(directory, &file) {
                    Ok(record) => records.push(record),
                    Err(error) => damaged.push(error),
                }
            }
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        // The same grant in both directories: a change of lifetime was interrupted; the first written (new) one decides nothing
        // that the old one doesn't, so either may stay. Keep the durable one: it is never the one that a reboot loses.
        records.dedup_by(|later, earlier| {
            let same = later.id == earlier.id;
            if same && later.lifetime == Lifetime::Persistent {
                std::mem::swap(later, earlier);
            }
            same
        });
        Ok((records, damaged))
    }
}

fn read_record(directory: &Dir, file: &str) -> Result<GrantRecord, JournalError> {
    let text = directory
        .read(file, MAX_RECORD)
        .map_err(|source| JournalError::Io { file: file.to_owned(), source })?;
    let damaged = |reason: String| JournalError::Damaged { file: file.to_owned(), reason };
    let mut record: GrantRecord = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if record.format != FORMAT {
        return Err(damaged(format!("format {}", record.format)));
    }
    let releasing = file == file_name(&record.id, true);
    if !(releasing || file == file_name(&record.id, false)) || record.id.parse::<GrantId>().is_err() {
        return Err(damaged("its id is not its name".into()));
    }
    if releasing {
        record.phase = Phase::Releasing;
    }
    Ok(record)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let base = tempfile::tempdir().unwrap();
        for name in ["state", "run"] {
            std::fs::create_dir(base.path().join(name)).unwrap();
        }
        let (state, run) =
            (Dir::open(&base.path().join("state")).unwrap(), Dir::open(&base.path().join("run")).unwrap());
        let journal = Journal::open(&state, &run).unwrap();
        (base, journal)
    }

    fn record(lifetime: Lifetime) -> GrantRecord {
        GrantRecord { lifetime, ..GrantRecord::new(GrantId(7), 1000, 1000, "web", "boot") }
    }

    #[test]
    fn what_is_written_is_read() {
        let (_base, journal) = journal();
        journal.write(&record(Lifetime::Process)).unwrap();
        assert_eq!(journal.load().unwrap().0, [record(Lifetime::Process)]);
        journal.remove(&record(Lifetime::Process).id).unwrap();
        journal.remove(&record(Lifetime::Process).id).unwrap();
        assert!(journal.load().unwrap().0.is_empty());
    }

    #[test]
    fn a_record_from_before_there_were_links_has_none() {
        let (base, journal) = journal();
        let old = record(Lifetime::Process);
        let mut text = serde_json::to_value(&old).unwrap();
        text.as_object_mut().unwrap().remove("links").unwrap();
        let file = base.path().join("run/grants").join(file_name(&old.id, false));
        std::fs::write(file, text.to_string()).unwrap();
        assert_eq!(journal.load().unwrap().0, [old]);
    }

    #[test]
    fn a_change_of_lifetime_leaves_one_record() {
        let (base, journal) = journal();
        journal.write(&record(Lifetime::Process)).unwrap();
        journal.write(&record(Lifetime::Persistent)).unwrap();
        assert_eq!(std::fs::read_dir(base.path().join("run/grants")).unwrap().count(), 0);
        assert_eq!(journal.load().unwrap().0.len(), 1);
    }

    #[test]
    fn a_grant_that_is_being_released_has_one_record_that_says_so() {
        for lifetime in [Lifetime::Process, Lifetime::Persistent] {
            let (base, journal) = journal();
            let record = GrantRecord { phase: Phase::Active, ..record(lifetime) };
            let said = GrantRecord { phase: Phase::Releasing, ..record.clone() };
            let files = || {
                let names =
                    ["state", "run"].map(|name| base.path().join(name).join("grants").read_dir().unwrap());
                names.into_iter().flatten().count()
            };
            let again = || {
                let open = |name: &str| Dir::open(&base.path().join(name)).unwrap();
                Journal::open(&open("state"), &open("run")).unwrap()
            };
            journal.write(&record).unwrap();
            journal.release(&record).unwrap();
            assert_eq!(journal.load().unwrap().0, std::slice::from_ref(&said));
            // Its links are removed one by one.
            journal.write(&GrantRecord { gid: 7, ..record.clone() }).unwrap();
            assert_eq!(again().load().unwrap().0, [GrantRecord { gid: 7, ..said.clone() }]);
            // After a start it is said again.
            let later = again();
            later.release(&said).unwrap();
            later.write(&said).unwrap();
            assert_eq!((files(), later.load().unwrap().0), (1, vec![said]));
            again().remove(&record.id).unwrap();
            assert_eq!(files(), 0);
            journal.write(&record).unwrap();
            journal.release(&record).unwrap();
            journal.remove(&record.id).unwrap();
            assert_eq!(files(), 0);
        }
    }

    #[test]
    fn both_files_after_an_interrupted_change_are_one_grant() {
        let (base, journal) = journal();
        let file = file_name(&record(Lifetime::Process).id, false);
        journal.write(&record(Lifetime::Persistent)).unwrap();
        let text = serde_json::to_vec(&record(Lifetime::Process)).unwrap();
        std::fs::write(
            base.path().join("run/grants").join(file_name(&record(Lifetime::Process).id, false)),
            text,
        )
        .unwrap();
        assert_eq!(journal.load().unwrap().0, [record(Lifetime::Persistent)]);
        // After a start nobody knows of which grants there are two: what is written or removed next leaves one or none.
        let again = || {
            let open = |name: &str| Dir::open(&base.path().join(name)).unwrap();
            Journal::open(&open("state"), &open("run")).unwrap()
        };
        let both = || {
            std::fs::copy(
                base.path().join("state/grants").join(&file),
                base.path().join("run/grants").join(&file),
            )
        };
        again().write(&GrantRecord { phase: Phase::Active, ..record(Lifetime::Persistent) }).unwrap();
        assert_eq!(std::fs::read_dir(base.path().join("run/grants")).unwrap().count(), 0);
        both().unwrap();
        again().remove(&record(Lifetime::Persistent).id).unwrap();
        assert!(journal.load().unwrap().0.is_empty());
    }

    #[test]
    fn damaged_files_are_told_and_leftovers_removed() {
        let (base, journal) = journal();
        let grants = base.path().join("run/grants");
        std::fs::write(grants.join("0000000000000001.json"), "{").unwrap();
        std::fs::write(
            grants.join("0000000000000002.json"),
            serde_json::to_vec(&record(Lifetime::Process)).unwrap(),
        )
        .unwrap();
        std::fs::write(grants.join(".leftover"), "x").unwrap();
        let (records, damaged) = journal.load().unwrap();
        assert!(records.is_empty());
        assert_eq!(damaged.len(), 2);
        assert!(!grants.join(".leftover").exists());
    }
}
