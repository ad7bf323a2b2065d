//! A place of its own for one test: scratch directories, an instance name, users, and the check at the end
//! that nothing is left.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use super::{Broker, Host, User, broker::Setup, checker, harness};

/// Where uids of test users start; above every account that Debian makes, below systemd's dynamic users.
const FIRST_UID: u32 = 23_000;
/// The pool of id ranges in tests: clear of systemd's container range below it and of the broker's default pool above.
pub const POOL: (u32, u32) = (0x7000_0000, 0x70ff_ffff);
/// The same of what stands for another host ([`Lab::elsewhere`]).
const OTHER_POOL: (u32, u32) = (0x7100_0000, 0x71ff_ffff);

static LABS: AtomicU32 = AtomicU32::new(0);

// Gives what is on its way out some seconds.
fn await_absence(seconds: u64, is_there: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while is_there() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The place.
pub struct Lab {
    /// Name of the test's broker instance, found in everything that it makes.
    pub instance: String,
    /// Directory of everything; root's, readable by all.
    pub scratch: PathBuf,
    /// Where the programs are that users run.
    pub programs: PathBuf,
    /// The host.
    pub host: Host,
    /// Where the record of ids is; shared by labs that stand for instances of one host.
    pub ids: PathBuf,
    users: Cell<u32>,
    mounts: Vec<String>,
    links: Vec<String>,
}

impl Lab {
    pub fn new(programs: &Path) -> Self {
        Self::with_ids(programs, None)
    }

    /// Another instance on the same host: everything of its own but the record of ids.
    pub fn beside(lab: &Self) -> Self {
        Self::with_ids(&lab.programs, Some(lab.ids.clone()))
    }

    /// What stands for another host: an instance with a record of ids of its own, and other ids in it.
    pub fn elsewhere(lab: &Self) -> Self {
        let other = Self::new(&lab.programs);
        other.write_config_of(OTHER_POOL, "");
        other
    }

    fn with_ids(programs: &Path, ids: Option<PathBuf>) -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let scratch = PathBuf::from(format!("/tmp/cgrant-test-{pid}-{number}"));
        fs::create_dir(&scratch).unwrap();
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).unwrap();
        let lab = Self {
            instance: format!("t{pid}x{number}"),
            ids: ids.unwrap_or_else(|| scratch.clone()),
            scratch,
            programs: programs.to_owned(),
            host: Host::look(),
            users: Cell::new(FIRST_UID + number * 16 % 30_000),
            mounts: checker::mounts(),
            links: checker::links(),
        };
        lab.write_config("");
        lab
    }

    /// The next user, in no group but its own.
    pub fn user(&self) -> User {
        self.user_in(&[])
    }

    /// The next user, with supplementary groups.
    pub fn user_in(&self, groups: &[u32]) -> User {
        let uid = self.users.get();
        self.users.set(uid + 1);
        User::new(uid, groups, &self.scratch, &self.programs)
    }

    /// Root as a "user": the same commands without dropping anything.
    pub fn root(&self) -> User {
        User::new(0, &[], &self.scratch, &self.programs)
    }

    /// Starts a broker without a bus.
    pub fn broker(&self) -> Broker {
        self.setup().start()
    }

    /// A broker to be started with other options.
    pub fn setup(&self) -> Setup {
        Setup::new(self)
    }

    pub fn config_dir(&self) -> PathBuf {
        self.scratch.join("etc")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.scratch.join("lib")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.scratch.join("run")
    }

    /// Writes cgrantd.toml: the test's own record of ids, and `more`.
    pub fn write_config(&self, more: &str) {
        self.write_config_of(POOL, more);
    }

    fn write_config_of(&self, (first, last): (u32, u32), more: &str) {
        let config = self.config_dir();
        fs::create_dir_all(config.join("policy.d")).unwrap();
        let ids = self.ids.join("ids");
        let live = self.ids.join("ids-live");
        let text = format!(
            "[ids]\nrecord = \"{}\"\nlive = \"{}\"\npool = \"{first}-{last}\"\n{more}",
            ids.display(),
            live.display()
        );
        fs::write(config.join("cgrantd.toml"), text).unwrap();
    }

    /// Writes a policy file that decides before the built-in ones.
    pub fn write_policy(&self, text: &str) {
        fs::write(self.config_dir().join("policy.d/50-test.toml"), text).unwrap();
    }

    /// Has what a broker that is not running wrote down be of another boot; says how many grants that were.
    pub fn pretend_reboot(&self) -> usize {
        const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";
        let mut records = 0;
        for directory in [self.state_dir().join("grants"), self.runtime_dir().join("state/grants")] {
            for file in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
                let mut record: serde_json::Value =
                    serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
                record["boot"] = OTHER_BOOT.into();
                fs::write(&file, record.to_string()).unwrap();
                records += 1;
            }
        }
        for mark in checker::live_ranges(self) {
            let file = format!("{}.{}", mark.replace(' ', "."), self.instance);
            fs::write(self.ids.join("ids-live").join(file), OTHER_BOOT).unwrap();
        }
        records
    }

    /// What is left behind; empty if nothing is. Call with every broker ended.
    pub fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        // What is on its way out (a helper that reads the end of its socket) may take a moment.
        await_absence(2, || !harness::descendants().is_empty());
        for pid in harness::descendants() {
            let command =
                fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            leaks.push(format!("process {pid}: {command}"));
        }
        leaks.extend(self.leaks_of_instance());
        // Others work on the machine too; what is the broker's or the test's has its name in it.
        let scratch = self.scratch.to_str().unwrap();
        let ours = |mount: &String| {
            (mount.contains(scratch) || mount.contains(&self.instance)) && !self.mounts.contains(mount)
        };
        leaks.extend(checker::mounts().into_iter().filter(ours).map(|m| format!("mount {m}")));
        leaks.extend(
            checker::links()
                .into_iter()
                .filter(|l| !self.links.contains(l))
                .map(|l| format!("interface {l}")),
        );
        leaks
    }

    /// What the instance left in cgroups and records.
    pub fn leaks_of_instance(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        // A scope without processes is removed by systemd, on v1 when its agent has told it.
        let cgroups = || !checker::cgroups_of_instance(&self.host, &self.instance).is_empty();
        await_absence(if self.host.systemd { 15 } else { 0 }, cgroups);
        leaks.extend(
            checker::cgroups_of_instance(&self.host, &self.instance)
                .into_iter()
                .map(|p| format!("cgroup {}", p.display())),
        );
        leaks.extend(
            checker::records(self).iter().map(|r| format!("record of grant {} {}", r["name"], r["id"])),
        );
        leaks.extend(checker::live_ranges(self).into_iter().map(|r| format!("range in use: {r}")));
        leaks
    }

    /// Removes all that may be left, whatever the test did.
    pub fn clean(&self) {
        harness::kill_descendants();
        if self.host.systemd {
            let scope = format!("cgrant-{}.scope", self.instance);
            let _ = std::process::Command::new("systemctl").args(["stop", &scope]).output();
        }
        checker::remove_cgroups(&self.host, &self.instance);
        for mount in checker::mounts().into_iter().filter(|m| !self.mounts.contains(m)) {
            if let Some(place) = mount.split(' ').nth(4).filter(|p| Path::new(p).starts_with(&self.scratch)) {
                let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let _ = fs::remove_dir_all(&self.scratch);
    }
}
