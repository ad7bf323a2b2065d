//! Which cgroups were made over CGManager's interface, by account: what its quota of cgroups is counted by on v1, where
//! the kernel counts for nobody.
//!
//! A cgroup that its owner, or the kernel's release agent, has removed meanwhile is noticed when the quota is met, or twice as many
//! are noted as were left the last time: only then is the host asked which of them are left.
//!
//! It survives a restart of the broker: each account has a file in the run directory, with a line for each cgroup, which is
//! written before the cgroup is made. A line of a cgroup that was not made then costs nothing but a look.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::HostUid;
use cgrant_sys::Dir;
use rustix::{
    fs::OFlags,
    io::{retry_on_intr, write},
};

use super::path::components;

/// The directory of the files, in the run directory.
const DIRECTORY: &str = "legacy-made";
/// Longest file, in bytes: a million cgroups, more than any account has that has a quota.
const MAX_FILE: usize = 128 * 1024 * 1024;
/// So many are always noted before the host is asked.
const FEW: usize = 1024;

/// A cgroup: name of its hierarchy, and the names on the way to it.
type Made = (String, Vec<String>);

/// What an account has made.
#[derive(Debug)]
struct Account {
    made: BTreeSet<Made>,
    /// With how many it is looked which of them are left.
    due: usize,
}

impl Default for Account {
    fn default() -> Self {
        Self { made: BTreeSet::new(), due: FEW }
    }
}

/// The cgroups that were made, by account.
#[derive(Debug)]
pub struct Ledger {
    directory: Dir,
    accounts: Mutex<HashMap<HostUid, Account>>,
    /// The file of the account that has made one last: who makes one often makes many.
    last: Mutex<Option<(HostUid, Arc<OwnedFd>)>>,
}

impl Ledger {
    /// What was noted before, in the instance's run directory.
    ///
    /// # Errors
    /// If the directory can't be made, or a file not be read.
    pub fn open(run: &Dir) -> io::Result<Self> {
        match run.make_dir(DIRECTORY, 0o700) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
        let directory = run.open_dir(DIRECTORY)?;
        directory.sweep()?;
        let mut accounts = HashMap::new();
        for file in directory.names()? {
            let Ok(uid) = file.parse() else { continue };
            let text = directory.read(&file, MAX_FILE)?;
            let made = text.lines().filter_map(parse).collect();
            accounts.insert(HostUid(uid), Account { made, due: 0 });
        }
        Ok(Self { directory, accounts: Mutex::new(accounts), last: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<HostUid, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many the account has, at most.
    pub fn count(&self, account: HostUid) -> u64 {
        self.lock().get(&account).map_or(0, |account| u64::try_from(account.made.len()).unwrap_or(u64::MAX))
    }

    /// The accounts that have some.
    pub fn accounts(&self) -> Vec<HostUid> {
        self.lock().keys().copied().collect()
    }

    /// Is it time to look which of the account's are left?
    pub fn is_due(&self, account: HostUid) -> bool {
        self.lock().get(&account).is_some_and(|account| account.made.len() >= account.due)
    }

    /// One is about to be made.
    ///
    /// # Errors
    /// If that can't be written; then it must not be made.
    pub fn note(&self, account: HostUid, hierarchy: &str, names: Vec<String>) -> io::Result<()> {
        let made = (hierarchy.to_owned(), names);
        let is_known = self.lock().get(&account).is_some_and(|account| account.made.contains(&made));
        if is_known {
            return Ok(());
        }
        let file = self.file(account)?;
        let line = line(&made);
        if retry_on_intr(|| write(&*file, line.as_bytes()))? != line.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.lock().entry(account).or_default().made.insert(made);
        Ok(())
    }

    /// The account's file, to append to. Only the account's own operations put another one in its place, which come one after the
    /// other.
    fn file(&self, account: HostUid) -> io::Result<Arc<OwnedFd>> {
        if let Some((of, file)) = &*self.lock_last()
            && *of == account
        {
            return Ok(Arc::clone(file));
        }
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
        let file = Arc::new(self.directory.open_file(account.to_string(), flags)?);
        *self.lock_last() = Some((account, Arc::clone(&file)));
        Ok(file)
    }

    fn lock_last(&self) -> MutexGuard<'_, Option<(HostUid, Arc<OwnedFd>)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets those that are gone. The account's operations come one after the other, so that none is made meanwhile.
    ///
    /// # Errors
    /// If what is left can't be written; nothing is forgotten then.
    pub fn sweep(&self, account: HostUid, is_there: impl Fn(&str, &[String]) -> bool) -> io::Result<()> {
        // What is written from here on is in another file.
        self.lock_last().take_if(|(of, _)| *of == account);
        let made = self.lock().get(&account).map(|account| account.made.clone()).unwrap_or_default();
        let left: BTreeSet<Made> =
            made.into_iter().filter(|(hierarchy, names)| is_there(hierarchy, names)).collect();
        if left.is_empty() {
            self.lock().remove(&account);
            return match self.directory.remove_file(account.to_string()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let text: String = left.iter().map(line).collect();
        self.directory.write_atomic(account.to_string(), text.as_bytes(), false)?;
        let due = left.len().saturating_mul(2).max(FEW);
        self.lock().insert(account, Account { made: left, due });
        Ok(())
    }
}

/// A line of a file. Neither part has a newline, nor the first a tab: the kernel refuses such names.
fn line((hierarchy, names): &Made) -> String {
    format!("{hierarchy}\t/{}\n", names.join("/"))
}

/// What a line says. One that a crash cut short may name another cgroup, or none.
fn parse(line: &str) -> Option<Made> {
    let (hierarchy, path) = line.split_once('\t')?;
    Some((hierarchy.to_owned(), components(path)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const ACCOUNT: HostUid = HostUid(7);

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let run = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&Dir::open(run.path()).unwrap()).unwrap();
        (run, ledger)
    }

    fn again(run: &tempfile::TempDir) -> Ledger {
        Ledger::open(&Dir::open(run.path()).unwrap()).unwrap()
    }

    fn names(name: &str) -> Vec<String> {
        vec!["top".to_owned(), name.to_owned()]
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let (run, ledger) = ledger();
        for name in ["a", "b", "b"] {
            ledger.note(ACCOUNT, "memory", names(name)).unwrap();
        }
        assert_eq!((ledger.count(ACCOUNT), ledger.count(HostUid(8))), (2, 0));
        let is_b =
            |hierarchy: &str, path: &[String]| hierarchy == "memory" && path.ends_with(&["b".to_owned()]);
        ledger.sweep(ACCOUNT, is_b).unwrap();
        assert_eq!((ledger.count(ACCOUNT), again(&run).count(ACCOUNT)), (1, 1));
        ledger.note(HostUid(8), "memory", names("d")).unwrap();
        ledger.note(ACCOUNT, "memory", names("c")).unwrap();
        assert_eq!(
            (ledger.count(ACCOUNT), again(&run).count(ACCOUNT)),
            (2, 2),
            "noted in the file that is there now"
        );
        ledger.sweep(HostUid(8), |_, _| false).unwrap();
        ledger.sweep(ACCOUNT, |_, _| false).unwrap();
        assert_eq!((ledger.count(ACCOUNT), again(&run).count(ACCOUNT)), (0, 0));
        assert_eq!(run.path().join(DIRECTORY).read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_was_made_counts_after_a_restart() {
        let (run, ledger) = ledger();
        ledger.note(ACCOUNT, "cpu,cpuacct", names("a b\tc")).unwrap();
        ledger.note(HostUid(8), "memory", names("a")).unwrap();
        let file = run.path().join(DIRECTORY).join("7");
        let whole = std::fs::read_to_string(&file).unwrap();
        // The engine was killed while it wrote the next line.
        std::fs::write(&file, format!("{whole}memory")).unwrap();
        let next = again(&run);
        assert_eq!((next.count(ACCOUNT), next.count(HostUid(8))), (1, 1));
        let found = Mutex::new(Vec::new());
        next.sweep(ACCOUNT, |hierarchy, path| {
            found.lock().unwrap().push((hierarchy.to_owned(), path.to_vec()));
            true
        })
        .unwrap();
        assert_eq!(found.into_inner().unwrap(), [("cpu,cpuacct".to_owned(), names("a b\tc"))]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), whole);
    }

    #[test]
    fn without_a_quota_what_is_gone_is_forgotten_too() {
        let (run, ledger) = ledger();
        for number in 0..FEW {
            assert!(!ledger.is_due(ACCOUNT), "{number}");
            ledger.note(ACCOUNT, "memory", names(&number.to_string())).unwrap();
        }
        assert!(ledger.is_due(ACCOUNT));
        ledger.sweep(ACCOUNT, |_, path| path[1].ends_with('7')).unwrap();
        assert!(!ledger.is_due(ACCOUNT));
        // After a restart it is looked at once: much may have gone.
        assert!(again(&run).is_due(ACCOUNT));
    }

    #[test]
    fn what_can_not_be_written_is_not_noted() {
        let (run, ledger) = ledger();
        std::fs::create_dir(run.path().join(DIRECTORY).join("7")).unwrap();
        assert!(ledger.note(ACCOUNT, "memory", names("a")).is_err());
        assert_eq!(ledger.count(ACCOUNT), 0);
    }
}
