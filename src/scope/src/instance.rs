//! The cgroups of an instance, as the engine makes them, seen from the cgroup2 hierarchy: accounts, their grants, and who is in those.
//!
//! Everything down to a grant's parts is root's; what is below a payload is its holder's choice and may be any bytes. The kernel
//! bounds how many cgroups an account has and how deep they lie (`cgroup.max.descendants`, `cgroup.max.depth`), so looking at them
//! all is bounded too. Looks, and thaws and kills where it is told to; sends no signal.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use cgrant_sys::{
    Dir, EntryKind,
    hierarchy::{self, CGROUP2},
    mount::mount_cgroup2_detached,
};
use rustix::fs::OFlags;

/// Most processes of an account that are looked at in one go. More are found when these have ended.
const MOST: usize = 4096;
/// Longest list of processes of one cgroup that is read, in bytes; those of a longer one are not found.
const MAX_PROCS: usize = 1 << 20;
/// Longest file of the other ones, in bytes.
const MAX_FILE: usize = 4096;
/// How deep cgroups in a payload are looked into, and grants in grants.
const MAX_DEPTH: u32 = 32;
/// Parts of a grant's cgroup.
const MONITOR: &str = "monitor";
const PAYLOAD: &str = "payload";
const CHILDREN: &str = "children";
/// Another one, there while processes are being attached, which stand still in it.
const ENTRY: &str = "entry";
/// Of a cgroup: its processes, whether there are any in it and below it, whether it stands still, and what kills everything in it.
const PROCS: &str = "cgroup.procs";
const EVENTS: &str = "cgroup.events";
const FREEZE: &str = "cgroup.freeze";
const KILL: &str = "cgroup.kill";

/// Root of the cgroup2 hierarchy, as it is mounted, or of a mount of our own that nobody else sees.
///
/// # Errors
/// What the kernel says to opening or mounting it.
pub fn cgroup2() -> io::Result<Dir> {
    match hierarchy::mounted()?.into_iter().find(|(name, _)| name == CGROUP2) {
        Some((_, path)) => Dir::open(&path),
        None => Dir::from_fd(mount_cgroup2_detached()?),
    }
}

/// The cgroup of an instance.
pub struct Instance {
    dir: Dir,
    /// From the hierarchy's root.
    path: String,
}

impl Instance {
    /// The instance's cgroup below the hierarchy's root, if there is one. systemd calls the scope `unit`.
    ///
    /// # Errors
    /// What the kernel says to opening it.
    pub fn find(root: &Dir, name: &str, unit: &str) -> io::Result<Option<Self>> {
        for place in places(name, unit) {
            let names: Vec<OsString> =
                place.iter().filter(|name| *name != "/").map(ToOwned::to_owned).collect();
            match root.open_below(&names) {
                Ok(dir) => {
                    let path = names.iter().map(|name| format!("/{}", name.to_string_lossy())).collect();
                    return Ok(Some(Self { dir, path }));
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The accounts in whose grants something runs.
    ///
    /// # Errors
    /// What the kernel says to looking; not that something went away meanwhile.
    pub fn populated(&self) -> io::Result<Vec<Account>> {
        let entries = match self.dir.entries() {
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            other => other?,
        };
        let mut accounts = Vec::new();
        for entry in entries {
            let Some(name) = account_name(&entry.name, entry.kind) else { continue };
            match Account::open(&self.dir, &self.path, name) {
                Ok(account) if says_populated(&account.events) => accounts.push(account),
                Ok(_) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(accounts)
    }
}

/// Where an instance has its cgroups: as the broker makes them itself, and where systemd has the scope.
fn places(name: &str, unit: &str) -> [PathBuf; 2] {
    let first = hierarchy::places(1).unwrap_or_default().into_iter().find(|place| place.hierarchy == CGROUP2);
    let above = first.and_then(|place| place.path.strip_suffix("/init.scope").map(str::to_owned));
    let scope = PathBuf::from(above.unwrap_or_default()).join("system.slice").join(unit);
    [PathBuf::from(format!("cgrant-{name}")), scope]
}

/// An account's cgroup.
pub struct Account {
    name: String,
    /// From the hierarchy's root, with a slash at the end: the beginning of the path of everything that is in it.
    above: String,
    dir: Dir,
    /// Has something new to say when the last process in it ends.
    events: OwnedFd,
}

impl Account {
    fn open(instance: &Dir, path: &str, name: String) -> io::Result<Self> {
        let dir = instance.open_dir(&name)?;
        let events = dir.open_file(EVENTS, OFlags::RDONLY)?;
        Ok(Self { above: format!("{path}/{name}/"), name, dir, events })
    }

    /// Its name: `u` and the uid.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does a cgroup lie in it? The path is one from the hierarchy's root.
    pub fn contains(&self, path: &str) -> bool {
        path.starts_with(&self.above)
    }

    /// Becomes ready with `POLLPRI` when the last process in it has ended, after it was found populated.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Whom to tell that it is to end: of a grant the monitor alone, which knows how its container is ended, and what is in that must
    /// not be ended beside it; of one without a monitor everybody. At most [`MOST`].
    pub fn to_be_told(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        each_grant(&self.dir, MAX_DEPTH, false, &mut |grant| {
            if !grant.in_container {
                grant.collect(&mut pids);
            }
        });
        pids.truncate(MOST);
        pids
    }

    /// Lets everything go on that the broker has stand still: it can't end in order otherwise. The files are root's own.
    pub fn thaw(&self) {
        each_grant(&self.dir, MAX_DEPTH, false, &mut |grant| {
            for part in grant.parts(&[PAYLOAD, CHILDREN, ENTRY]) {
                if part.read(FREEZE, MAX_FILE).is_ok_and(|text| text.trim_end() == "1") {
                    let _ = part.write(FREEZE, "0");
                }
            }
        });
    }

    /// Kills everything but living monitors, which write down then how it ended.
    pub fn kill_payloads(&self) {
        each_grant(&self.dir, 1, false, &mut |grant| {
            if grant.monitors.is_empty() {
                return kill(grant.dir);
            }
            grant.parts(&[PAYLOAD, CHILDREN]).iter().for_each(kill);
        });
    }

    /// Kills everything.
    pub fn kill(&self) {
        kill(&self.dir);
    }

    /// For people: whose grants these are, and what they are called. Names of grants are the broker's, and can be printed.
    pub fn populated_grants(&self) -> Vec<String> {
        let uid = self.name.trim_start_matches('u');
        let mut names = Vec::new();
        each_grant(&self.dir, 1, false, &mut |grant| {
            if grant.dir.open_file(EVENTS, OFlags::RDONLY).is_ok_and(|events| says_populated(&events)) {
                names.push(format!("grant {} of uid {uid}", grant.name));
            }
        });
        names
    }
}

/// A grant's cgroup.
struct Grant<'a> {
    name: &'a str,
    dir: &'a Dir,
    /// The processes in its monitor's cgroup.
    monitors: Vec<u32>,
    /// Does it lie in a grant that has a monitor? Then that ends it with its container.
    in_container: bool,
}

impl Grant<'_> {
    /// Those of these parts of it that are there.
    fn parts(&self, names: &[&str]) -> Vec<Dir> {
        names.iter().filter_map(|name| self.dir.open_dir(name).ok()).collect()
    }

    fn collect(&self, pids: &mut Vec<u32>) {
        if !self.monitors.is_empty() {
            return pids.extend(&self.monitors);
        }
        // Where no controller is handed down the account may put processes beside the parts.
        pids.extend(processes(self.dir));
        for part in self.dir.dirs().unwrap_or_default().iter().filter(|part| *part != CHILDREN) {
            if let Ok(part) = self.dir.open_dir(part) {
                collect(&part, MAX_DEPTH, pids);
            }
        }
    }
}

/// Visits the grants in a cgroup, and as deep as that grants in grants. No more descriptors are open at a time than levels are deep.
fn each_grant(around: &Dir, depth: u32, in_container: bool, visit: &mut impl FnMut(&Grant<'_>)) {
    let Some(below) = depth.checked_sub(1) else { return };
    for name in around.dirs().unwrap_or_default() {
        let Ok(dir) = around.open_dir(&name) else { continue };
        let monitors = dir.open_dir(MONITOR).map(|monitor| processes(&monitor)).unwrap_or_default();
        let has_monitor = !monitors.is_empty();
        visit(&Grant { name: &name, dir: &dir, monitors, in_container });
        if below > 0
            && let Ok(children) = dir.open_dir(CHILDREN)
        {
            each_grant(&children, below, in_container || has_monitor, visit);
        }
    }
}

/// All processes in a cgroup and those below it, whose names are the holder's choice.
fn collect(dir: &Dir, depth: u32, pids: &mut Vec<u32>) {
    pids.extend(processes(dir));
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in dir.entries().unwrap_or_default() {
        if pids.len() >= MOST {
            return;
        }
        if let (EntryKind::Directory, Ok(below)) = (entry.kind, dir.open_dir(&entry.name)) {
            collect(&below, depth, pids);
        }
    }
}

/// Kills everything in a cgroup. It is gone, if that fails.
fn kill(dir: &Dir) {
    let _ = dir.write(KILL, "1");
}

fn processes(dir: &Dir) -> Vec<u32> {
    let listed = dir.read(PROCS, MAX_PROCS).unwrap_or_default();
    listed.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The name, if it is that of an account's cgroup.
fn account_name(name: &OsString, kind: EntryKind) -> Option<String> {
    let name = name.to_str()?;
    let uid = name.strip_prefix('u')?;
    let is_number = !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit());
    (kind == EntryKind::Directory && is_number).then(|| name.to_owned())
}

/// What a poll waits for is what comes after the last read of this same descriptor (kernfs_generic_poll).
fn says_populated(events: &OwnedFd) -> bool {
    let mut text = [0; MAX_FILE];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(events, &mut text)).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    text.lines().any(|line| line == "populated 1")
}

/// It was not there, or went away while it was looked at (ENODEV).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NODEV)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn accounts_are_known_by_their_names() {
        let account = |name: &str, kind| account_name(&OsString::from(name), kind);
        assert_eq!(account("u1000", EntryKind::Directory).unwrap(), "u1000");
        assert_eq!(account("u1000", EntryKind::File), None);
        for name in ["keeper", "u", "u1x", "1000", "_evicted"] {
            assert_eq!(account(name, EntryKind::Directory), None, "{name}");
        }
    }

    #[test]
    fn an_instance_has_its_cgroups_in_one_of_two_places() {
        let [own, scope] = places("t1", "cgrant-t1.scope");
        assert_eq!(own, PathBuf::from("cgrant-t1"));
        assert!(scope.ends_with("system.slice/cgrant-t1.scope"));
    }

    /// Looks like a cgroup, as far as it is read.
    fn cgroup(directory: &Path, pids: &str) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(PROCS), pids).unwrap();
        fs::write(directory.join(EVENTS), format!("populated {}\n", u8::from(!pids.is_empty()))).unwrap();
        fs::write(directory.join(FREEZE), "1\n").unwrap();
        fs::write(directory.join(KILL), "").unwrap();
    }

    fn grant(directory: &Path, [own, monitor, payload]: [&str; 3]) {
        cgroup(directory, own);
        cgroup(&directory.join(MONITOR), monitor);
        cgroup(&directory.join(PAYLOAD), payload);
        cgroup(&directory.join(CHILDREN), "");
    }

    fn account(directory: &Path) -> Account {
        cgroup(&directory.join("u1000"), "1\n");
        let instance = Dir::open(directory).unwrap();
        Account::open(&instance, "/cgrant-t1", "u1000".to_owned()).unwrap()
    }

    fn told(account: &Account) -> Vec<u32> {
        let mut pids = account.to_be_told();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn of_a_container_the_monitor_is_told_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let account = account(scratch.path());
        let at = |path: &str| scratch.path().join("u1000").join(path);
        grant(&at("web"), ["", "10\n", "11\n12\n"]);
        cgroup(&at("web/payload/system.slice"), "13\n");
        // One that a container in it has.
        grant(&at("web/children/inner"), ["", "14\n", "15\n"]);
        // What has no monitor, whatever the holder calls its cgroups.
        grant(&at("bare"), ["20\n", "", "21\n"]);
        cgroup(&at("bare/payload/monitor"), "22\n");
        cgroup(&at("bare/payload/monitor/deeper"), "23\n");
        grant(&at("bare/children/inner"), ["", "24\n", "25\n"]);
        // Of an attaching that never ended, and of a grant that was never finished.
        cgroup(&at("bare/entry"), "26\n");
        cgroup(&at("_evicted"), "30\n");
        cgroup(&at("_evicted/left"), "31\n");
        assert_eq!(told(&account), [10, 20, 21, 22, 23, 24, 26, 30, 31]);
    }

    #[test]
    fn what_is_paused_goes_on_wherever_it_lies() {
        let scratch = tempfile::tempdir().unwrap();
        let account = account(scratch.path());
        let at = |path: &str| scratch.path().join("u1000").join(path);
        grant(&at("web"), ["", "10\n", "11\n"]);
        grant(&at("web/children/inner"), ["", "14\n", "15\n"]);
        cgroup(&at("web/entry"), "17\n");
        // The holder's own, for which its own monitor is there.
        cgroup(&at("web/payload/own"), "16\n");
        account.thaw();
        let frozen = |path: &str| fs::read_to_string(at(path).join(FREEZE)).unwrap().starts_with('1');
        for part in ["payload", "children", "entry", "children/inner/payload", "children/inner/children"] {
            assert!(!frozen(&format!("web/{part}")), "{part}");
        }
        assert!(frozen("web/monitor") && frozen("web/payload/own"));
    }

    #[test]
    fn monitors_live_to_tell() {
        let scratch = tempfile::tempdir().unwrap();
        let account = account(scratch.path());
        let at = |path: &str| scratch.path().join("u1000").join(path);
        grant(&at("web"), ["", "10\n", "11\n"]);
        grant(&at("bare"), ["", "", "21\n"]);
        let killed = |path: &str| !fs::read_to_string(at(path).join(KILL)).unwrap().is_empty();
        account.kill_payloads();
        assert!(killed("web/payload") && killed("web/children") && killed("bare"));
        assert!(!killed("web") && !killed("web/monitor") && !killed(""));
        account.kill();
        assert!(killed(""));
    }

    #[test]
    fn no_more_are_looked_at_than_may_be() {
        let scratch = tempfile::tempdir().unwrap();
        let account = account(scratch.path());
        let many: String = (100..10_000).map(|pid| format!("{pid}\n")).collect();
        grant(&scratch.path().join("u1000/bare"), ["", "", &many]);
        assert_eq!(account.to_be_told().len(), MOST);
    }
}
