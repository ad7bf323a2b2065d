//! Who has which ids by `/etc`: users, groups and subordinate ranges, and where else users are looked for. Reads five files
//! and nothing else.
//!
//! They are read again when `stat(2)` says that they changed. Lines that make no sense are passed over, as
//! getpwent(3) does; they are root's files, and other programs have to live with them too.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use cgrant_policy::{HostUid, IdSpan, groups, ids::LAST_ID};

use super::error::IdError;

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// How old `passwd` must be before a user who is missing in it is believed to be gone: an editor that writes it
/// in place shows half a file for a moment.
const SETTLED: Duration = Duration::from_secs(10);
/// The files.
const FILES: [&str; 5] = ["passwd", "group", "subuid", "subgid", "nsswitch.conf"];
/// Sources of nsswitch.conf(5) that know no users but those of `passwd` and the machine's own.
const LOCAL: [&str; 2] = ["files", "systemd"];

/// What is in the files.
#[derive(Debug)]
pub struct Accounts {
    etc: PathBuf,
    stamps: [Option<Stamp>; 5],
    users: HashMap<HostUid, String>,
    taken: Vec<IdSpan>,
    lent: Arc<Lent>,
    has_root: bool,
    /// Are all users in `passwd`?
    is_complete: bool,
    /// How often the files were read.
    reads: u64,
    /// Added to the age of files, by tests.
    age: Duration,
}

/// Subordinate uids, and whose they are by `subuid`.
#[derive(Debug, Default)]
pub struct Lent {
    spans: Vec<(IdSpan, HostUid)>,
    /// Uids in them that are users' own all the same: somebody was lent them by mistake.
    users: HashSet<HostUid>,
}

impl Lent {
    fn new(subuid: &[u8], users: &HashMap<HostUid, String>) -> Self {
        let by_name: HashMap<&str, HostUid> = users.iter().map(|(uid, name)| (name.as_str(), *uid)).collect();
        let owner = |fields: &[&[u8]]| {
            let name = name(fields);
            let known = by_name.get(name.as_str()).copied().or_else(|| name.parse().ok().map(HostUid));
            // The name may be that of a user whom only the name service knows; then the first of the ids stands for it.
            known.or_else(|| id(fields, 1).map(HostUid))
        };
        let lines = lines(subuid).filter_map(|fields| Some((subordinate_of(&fields)?, owner(&fields)?)));
        let spans: Vec<_> = lines.collect();
        let is_lent = |uid: &HostUid| spans.iter().any(|(span, _)| span.contains(uid.0));
        let users = users.keys().copied().filter(is_lent).collect();
        Self { spans, users }
    }

    /// Whose uid this is, if it is a subordinate one.
    pub fn owner_of(&self, uid: HostUid) -> Option<HostUid> {
        let (_, owner) = self.spans.iter().find(|(span, _)| span.contains(uid.0))?;
        (!self.users.contains(&uid)).then_some(*owner)
    }
}

/// What tells a file from the same file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Is the user of an account still the one that it was?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Yes, or nobody can tell.
    Same,
    /// The uid has no user any more that `passwd` would know.
    Missing,
    /// The uid is another user's.
    Another,
}

impl Accounts {
    /// The files of this directory.
    ///
    /// # Errors
    /// [`IdError::Io`] if one is there and can't be read.
    pub fn open(etc: &Path) -> Result<Self, IdError> {
        let stamps = [None; 5];
        let mut accounts = Self {
            etc: etc.to_owned(),
            stamps,
            users: HashMap::new(),
            taken: Vec::new(),
            lent: Arc::default(),
            has_root: false,
            is_complete: false,
            reads: 0,
            age: Duration::ZERO,
        };
        accounts.read()?;
        Ok(accounts)
    }

    /// Reads the files again if one changed; says whether that was so. Costs five `stat(2)` otherwise.
    ///
    /// # Errors
    /// [`IdError::Io`]; what was known before is still known then.
    pub fn refresh(&mut self) -> Result<bool, IdError> {
        if self.stamps_now()? == self.stamps {
            return Ok(false);
        }
        self.read()?;
        Ok(true)
    }

    /// The user's name.
    pub fn user(&self, account: HostUid) -> Option<&str> {
        self.users.get(&account).map(String::as_str)
    }

    /// Are any of these ids somebody's?
    pub fn overlap(&self, span: IdSpan) -> Option<IdSpan> {
        let after = self.taken.partition_point(|taken| taken.last() < span.first());
        self.taken.get(after).copied().filter(|taken| taken.overlaps(span))
    }

    /// The subordinate uids.
    pub fn lent(&self) -> Arc<Lent> {
        Arc::clone(&self.lent)
    }

    /// Is the account's user still the one that was recorded? An account that had no entry (LDAP) is not compared.
    pub fn presence(&self, account: HostUid, recorded: Option<&str>) -> Presence {
        match (recorded, self.user(account)) {
            (Some(before), Some(now)) if before != now => Presence::Another,
            (Some(_), None) if self.has_root && self.is_settled() => Presence::Missing,
            _ => Presence::Same,
        }
    }

    /// Does the host look for users nowhere but in `passwd`? Elsewhere one who is missing there may have moved to LDAP, say, and
    /// a service that does not answer says the same of all of its users as of one who was deleted.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Has `passwd` been left alone for a while?
    pub fn is_settled(&self) -> bool {
        self.quiet_for().is_some_and(|age| age > SETTLED)
    }

    /// How long until it will have been; `None` if it has, or nobody can tell (it is not there, or from the future).
    pub fn until_settled(&self) -> Option<Duration> {
        let age = self.quiet_for()?;
        // A second more, because that is as exact as the age is.
        (age <= SETTLED).then(|| SETTLED.saturating_sub(age) + Duration::from_secs(1))
    }

    fn quiet_for(&self) -> Option<Duration> {
        let [Some(passwd), ..] = &self.stamps else { return None };
        let seconds = u64::try_from(passwd.modified.0.max(passwd.changed.0)).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        SystemTime::now().duration_since(changed).ok().map(|age| age + self.age)
    }

    /// A number for all that [`Accounts::presence`] goes by: another one when the files were read again, and when users who are
    /// missing in them are believed to be gone.
    pub fn edition(&self) -> u64 {
        2 * self.reads + u64::from(self.is_settled())
    }

    fn stamps_now(&self) -> Result<[Option<Stamp>; 5], IdError> {
        let mut stamps = [None; 5];
        for (stamp, file) in stamps.iter_mut().zip(FILES) {
            let path = self.etc.join(file);
            *stamp = match std::fs::metadata(&path) {
                Ok(metadata) => Some(metadata.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(IdError::io(path.to_string_lossy())(error)),
            };
        }
        Ok(stamps)
    }

    fn read(&mut self) -> Result<(), IdError> {
        self.reads += 1;
        // The stamps first: a change while the files are read is then seen the next time.
        let stamps = self.stamps_now()?;
        let [passwd, group, subuid, subgid, switch] = FILES.map(|file| read(&self.etc.join(file)));
        let (passwd, group, subuid, subgid, switch) = (passwd?, group?, subuid?, subgid?, switch?);
        let users = users(&passwd);
        self.lent = Arc::new(Lent::new(&subuid, &users));
        let mut taken: Vec<IdSpan> = ids_of(&passwd, &[2, 3]).chain(ids_of(&group, &[2])).collect();
        taken.extend(subordinate(&subuid).chain(subordinate(&subgid)));
        self.taken = merged(taken);
        self.has_root = users.contains_key(&HostUid::ROOT);
        self.is_complete = is_local(&switch);
        (self.users, self.stamps) = (users, stamps);
        Ok(())
    }
}

/// The groups of `/etc/group` by name. None if the file can't be read, which the log says.
pub fn local_groups() -> HashMap<String, u32> {
    let group = read(Path::new("/etc/group")).unwrap_or_else(|error| {
        tracing::error!(%error, "rules of policy for groups by name are for nobody");
        Vec::new()
    });
    groups(&group)
}

/// Are users looked for nowhere but in `passwd`, by nsswitch.conf(5)? What it does not say is the C library's default, `files`.
fn is_local(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let sources =
        lines.filter_map(|line| line.trim_start().strip_prefix("passwd")?.trim_start().strip_prefix(':'));
    // An action such as [NOTFOUND=return] is no source.
    sources.flat_map(str::split_whitespace).all(|word| word.starts_with('[') || LOCAL.contains(&word))
}

fn users(text: &[u8]) -> HashMap<HostUid, String> {
    let mut users = HashMap::new();
    for fields in lines(text) {
        if let Some(uid) = id(&fields, 2) {
            users.entry(HostUid(uid)).or_insert_with(|| name(&fields));
        }
    }
    users
}

fn read(path: &Path) -> Result<Vec<u8>, IdError> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(IdError::io(path.to_string_lossy())(error)),
        Ok(_) if bytes.len() as u64 > MAX_FILE => {
            Err(IdError::io(path.to_string_lossy())(io::ErrorKind::FileTooLarge.into()))
        }
        Ok(_) => Ok(bytes),
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.is_empty() && line.first() != Some(&b'#'))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn name(fields: &[&[u8]]) -> String {
    String::from_utf8_lossy(fields.first().copied().unwrap_or_default()).into_owned()
}

fn id(fields: &[&[u8]], at: usize) -> Option<u32> {
    std::str::from_utf8(fields.get(at)?).ok()?.parse().ok()
}

fn ids_of<'a>(text: &'a [u8], columns: &'a [usize]) -> impl Iterator<Item = IdSpan> + 'a {
    lines(text).flat_map(move |fields| {
        let spans = columns.iter().filter_map(|at| IdSpan::new(id(&fields, *at)?, 1).ok());
        spans.collect::<Vec<_>>()
    })
}

/// `USER:FIRST:COUNT` of subuid(5). A count that reaches beyond all ids is taken as far as there are ids.
fn subordinate(text: &[u8]) -> impl Iterator<Item = IdSpan> {
    lines(text).filter_map(|fields| subordinate_of(&fields))
}

fn subordinate_of(fields: &[&[u8]]) -> Option<IdSpan> {
    let (first, count) = (id(fields, 1)?, id(fields, 2)?.checked_sub(1)?);
    IdSpan::between(first, first.saturating_add(count).min(LAST_ID)).ok()
}

fn merged(mut spans: Vec<IdSpan>) -> Vec<IdSpan> {
    spans.sort_unstable();
    let mut merged: Vec<IdSpan> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first() <= last.last().saturating_add(1) => {
                if let Ok(joined) = IdSpan::between(last.first(), last.last().max(span.last())) {
                    *last = joined;
                }
            }
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
impl Accounts {
    /// As if the files had been read a minute after they changed.
    pub fn pretend_settled(&mut self) {
        self.age = Duration::from_secs(60);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0::/root:/bin/sh\nalice:x:1000:70000::/:\n# no:x:5:5\nbroken\nbad:x:-1:9:\n";

    #[test]
    fn users_are_all_known_where_only_files_are_asked() {
        for (text, local) in [
            ("", true),
            ("group: files ldap\n", true),
            ("passwd: files systemd\nshadow: files sss\n", true),
            ("  passwd : files [NOTFOUND=return] systemd # ldap\n", true),
            ("#passwd: sss\npasswd:\tfiles sss\n", false),
            ("passwd: files\npasswd: ldap\n", false),
            ("passwd:         compat\n", false),
            ("passwd: files winbind systemd", false),
        ] {
            assert_eq!(is_local(text.as_bytes()), local, "{text}");
        }
        let etc = etc(&[("passwd", PASSWD), ("nsswitch.conf", "passwd: files\n")]);
        let mut accounts = Accounts::open(etc.path()).unwrap();
        assert!(accounts.is_complete());
        std::fs::write(etc.path().join("nsswitch.conf"), "passwd: files sss\n").unwrap();
        assert!(accounts.refresh().unwrap() && !accounts.is_complete());
    }

    fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        for (file, text) in files {
            std::fs::write(etc.path().join(file), text).unwrap();
        }
        etc
    }

    #[test]
    fn all_four_files_take_ids() {
        let etc = etc(&[
            ("passwd", PASSWD),
            ("group", "root:x:0:\nbig:x:80000:a,b\n"),
            ("subuid", "alice:100000:65536\n1001:165536:65536\nzero:900000:0\nend:4294967290:4294967295\n"),
            ("subgid", "alice:300000:10\nno:x:1\n"),
        ]);
        let accounts = Accounts::open(etc.path()).unwrap();
        assert_eq!(accounts.user(HostUid(1000)), Some("alice"));
        for taken in [0, 70000, 80000, 100_000, 231_071, 300_009, LAST_ID] {
            assert!(accounts.overlap(IdSpan::new(taken, 1).unwrap()).is_some(), "{taken}");
        }
        for free in [2, 5, 70001, 231_072, 299_999, 300_010, 900_000] {
            assert!(accounts.overlap(IdSpan::new(free, 1).unwrap()).is_none(), "{free}");
        }
        assert!(accounts.overlap(IdSpan::between(231_072, 310_000).unwrap()).is_some());
        assert!(accounts.overlap(IdSpan::between(231_072, 299_999).unwrap()).is_none());
    }

    #[test]
    fn subordinate_uids_are_their_users() {
        let etc = etc(&[
            ("passwd", PASSWD),
            ("subuid", "alice:100000:10\n1001:200000:10\nldap:300000:10\nalice:995:10\nbad:1\n"),
            ("subgid", "alice:500000:10\n"),
        ]);
        let accounts = Accounts::open(etc.path()).unwrap();
        let owner = |uid| accounts.lent().owner_of(HostUid(uid));
        let found = [99_999, 100_000, 100_009, 100_010, 200_003, 300_009, 500_000, 999, 1000].map(owner);
        let (alice, other, unknown) = (Some(HostUid(1000)), Some(HostUid(1001)), Some(HostUid(300_000)));
        assert_eq!(found, [None, alice, alice, None, other, unknown, None, alice, None]);
    }

    #[test]
    fn a_change_is_seen_by_stat() {
        let etc = etc(&[("passwd", PASSWD)]);
        let mut accounts = Accounts::open(etc.path()).unwrap();
        assert!(!accounts.refresh().unwrap());
        std::fs::write(etc.path().join("subuid"), "alice:100000:65536\n").unwrap();
        assert!(accounts.refresh().unwrap());
        assert_eq!(accounts.taken.last().copied(), IdSpan::new(100_000, 65536).ok());
        std::fs::remove_file(etc.path().join("subuid")).unwrap();
        assert!(accounts.refresh().unwrap());
        assert!(accounts.overlap(IdSpan::new(100_000, 1).unwrap()).is_none());
    }

    #[test]
    fn a_user_departs_by_another_name_at_once_and_by_absence_when_the_file_is_old() {
        let etc = etc(&[("passwd", PASSWD)]);
        let mut accounts = Accounts::open(etc.path()).unwrap();
        let alice = HostUid(1000);
        assert_eq!(accounts.presence(alice, Some("alice")), Presence::Same);
        assert_eq!(accounts.presence(alice, Some("bob")), Presence::Another);
        assert_eq!(accounts.presence(alice, None), Presence::Same);
        assert_eq!(accounts.presence(HostUid(7), None), Presence::Same);
        assert_eq!(accounts.presence(HostUid(7), Some("carol")), Presence::Same);
        let before = accounts.edition();
        assert_eq!(accounts.edition(), before);
        accounts.pretend_settled();
        assert_ne!(accounts.edition(), before);
        assert_eq!(accounts.presence(HostUid(7), Some("carol")), Presence::Missing);
        let before = accounts.edition();
        std::fs::write(etc.path().join("passwd"), format!("{PASSWD}carol:x:7:7::/:/bin/sh\n")).unwrap();
        assert!(accounts.refresh().unwrap());
        assert_ne!(accounts.edition(), before);
        assert_eq!(accounts.presence(HostUid(7), Some("carol")), Presence::Same);
        assert_eq!(accounts.presence(HostUid(8), Some("carol")), Presence::Missing);
        accounts.has_root = false;
        assert_eq!(accounts.presence(HostUid(8), Some("carol")), Presence::Same);
    }

    #[test]
    fn a_file_that_is_missing_says_nothing_and_one_that_is_a_directory_is_an_error() {
        let etc = etc(&[]);
        let mut accounts = Accounts::open(etc.path()).unwrap();
        assert!(accounts.taken.is_empty());
        std::fs::create_dir(etc.path().join("subgid")).unwrap();
        assert!(matches!(accounts.refresh(), Err(IdError::Io { .. })));
    }
}
