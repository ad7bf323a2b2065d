//! What can be seen of the host without any broker: namespaces, the kernel's settings, cgroup files.

use std::path::PathBuf;

use super::Finding;

/// The tree that is looked at: `/`, or a made-up one.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
    /// Could a process be made in new namespaces of every kind?
    trial: Result<(), cgrant_container::StepFailure>,
}

/// The kinds of namespace that a container has, as /proc/sys/user names their limits.
const NAMESPACES: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

impl Host {
    /// The host that this process runs on.
    pub(super) fn own() -> Self {
        Self { root: PathBuf::from("/"), trial: cgrant_container::try_namespaces() }
    }

    /// What only the caller's own process can find out, and how cgroup2 is mounted.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.namespaces()];
        findings.extend(NAMESPACES.iter().filter_map(|kind| self.namespace_limit(kind)));
        findings.extend(self.apparmor());
        findings.push(self.cgroup2());
        findings
    }

    /// What the kernel's cgroups can do, as far as it can be seen from here. A broker knows better.
    pub(super) fn cgroup_features(&self) -> Vec<Finding> {
        self.kill().into_iter().chain([self.pressure()]).chain(self.swap()).collect()
    }

    fn namespaces(&self) -> Finding {
        const CHECK: &str = "user namespaces";
        let Err(failure) = &self.trial else {
            return Finding::ok(CHECK, "you may make them, and all others in them");
        };
        let mend = match self.number("proc/sys/kernel/unprivileged_userns_clone") {
            Some(0) => "sysctl kernel.unprivileged_userns_clone=1",
            _ => failure
                .hint()
                .unwrap_or("something between you and the kernel forbids it: a sandbox, an LSM, seccomp"),
        };
        Finding::fail(CHECK, format!("{failure}: no container can be made"), mend)
    }

    /// Only a limit that is used up from the start is worth a line.
    fn namespace_limit(&self, kind: &str) -> Option<Finding> {
        let key = format!("user.max_{kind}_namespaces");
        let limit = self.number(&format!("proc/sys/user/max_{kind}_namespaces"))?;
        (limit == 0).then(|| {
            Finding::fail(key.clone(), "no namespace of this kind may be made", format!("sysctl {key}=10000"))
        })
    }

    fn apparmor(&self) -> Option<Finding> {
        const KEY: &str = "kernel.apparmor_restrict_unprivileged_userns";
        match self.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns")? {
            0 => None,
            _ if self.trial.is_ok() => {
                Some(Finding::ok(KEY, "set, and a profile lets this program make namespaces"))
            }
            _ => Some(Finding::fail(
                KEY,
                "AppArmor gives user namespaces no rights",
                format!("sysctl {KEY}=0, or install the AppArmor profile of cgrant"),
            )),
        }
    }

    fn cgroup2(&self) -> Finding {
        match self.cgroup2_mount() {
            Some(mount) => nsdelegate(&mount),
            None => Finding::ok("cgroup2", "not mounted: the broker mounts one of its own"),
        }
    }

    /// `None` if no cgroup can be seen from here to look for the file in.
    fn kill(&self) -> Option<Finding> {
        const CHECK: &str = "cgroup.kill";
        Some(match self.in_some_cgroup(&self.cgroup2_mount()?, CHECK)? {
            true => Finding::ok(CHECK, "there: a grant is killed at one stroke"),
            false => Finding::warn(
                CHECK,
                "not there: a grant is frozen and killed process by process",
                "Linux 5.14 has it",
            ),
        })
    }

    fn pressure(&self) -> Finding {
        const CHECK: &str = "pressure stall information";
        // With psi=0 the file is there and cannot be read.
        match std::fs::read(self.root.join("proc/pressure/memory")).is_ok() {
            true => Finding::ok(CHECK, "there: pressure is measured and signalled"),
            false => Finding::warn(CHECK, "not there: no figures, no signals", "boot with psi=1"),
        }
    }

    /// `None` if no cgroup can be seen from here to look for the file in.
    fn swap(&self) -> Option<Finding> {
        const CHECK: &str = "swap accounting";
        let v1 = self.mount_of("cgroup", |options| options.split(',').any(|option| option == "memory"));
        let on = match v1 {
            Some(mount) => self.in_mount(&mount, "memory.memsw.limit_in_bytes"),
            None => self.in_some_cgroup(&self.cgroup2_mount()?, "memory.swap.max")?,
        };
        Some(match on {
            true => Finding::ok(CHECK, "on: memory.swap.max works"),
            false => Finding::warn(CHECK, "off: memory.swap.max can't be set", "boot with swapaccount=1"),
        })
    }

    /// Is the file in the directory of one of the cgroups just below the root? (The root itself has few files.)
    fn in_some_cgroup(&self, mount: &Mount, file: &str) -> Option<bool> {
        let directories = std::fs::read_dir(self.under_root(mount)).ok()?;
        let mut cgroups = directories
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .peekable();
        cgroups.peek()?;
        Some(cgroups.any(|entry| entry.path().join(file).exists()))
    }

    fn in_mount(&self, mount: &Mount, file: &str) -> bool {
        self.under_root(mount).join(file).exists()
    }

    fn under_root(&self, mount: &Mount) -> PathBuf {
        self.root.join(mount.point.trim_start_matches('/'))
    }

    fn cgroup2_mount(&self) -> Option<Mount> {
        self.mount_of("cgroup2", |_| true)
    }

    fn mount_of(&self, kind: &str, wanted: impl Fn(&str) -> bool) -> Option<Mount> {
        let mounts = std::fs::read_to_string(self.root.join("proc/self/mountinfo")).ok()?;
        mounts.lines().filter_map(Mount::parse).find(|mount| mount.kind == kind && wanted(&mount.options))
    }

    fn number(&self, file: &str) -> Option<u64> {
        std::fs::read_to_string(self.root.join(file)).ok()?.trim().parse().ok()
    }
}

fn nsdelegate(mount: &Mount) -> Finding {
    const CHECK: &str = "nsdelegate";
    if mount.options.split(',').any(|option| option == "nsdelegate") {
        return Finding::ok(CHECK, "set: the kernel keeps containers out of each other's cgroups as well");
    }
    let mend = format!("mount -o remount,nsdelegate {}", mount.point);
    Finding::warn(CHECK, "not set: file permissions alone keep a container from its own limits", mend)
}

/// One line of /proc/self/mountinfo (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: String,
    kind: String,
    /// Of the superblock.
    options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, superblock) = line.split_once(" - ")?;
        let mut superblock = superblock.split(' ');
        Some(Self {
            point: mount.split(' ').nth(4)?.to_owned(),
            kind: superblock.next()?.to_owned(),
            options: superblock.nth(1)?.to_owned(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_container::{Step, StepFailure};

    use super::{super::Verdict, *};

    struct Fixture {
        directory: tempfile::TempDir,
        host: Host,
    }

    fn fixture(files: &[(&str, &str)]) -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = directory.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = Host { root: directory.path().to_owned(), trial: Ok(()) };
        Fixture { directory, host }
    }

    fn verdict(host: &Host, check: &str) -> Option<Verdict> {
        let all = [host.findings(), host.cgroup_features()].concat();
        all.iter().find(|finding| finding.check == check).map(|finding| finding.verdict)
    }

    const V2: &str = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const HYBRID: &str = "31 1 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        32 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn a_host_as_it_should_be() {
        let fixture = fixture(&[
            ("proc/self/mountinfo", V2),
            ("proc/pressure/memory", ""),
            ("proc/sys/user/max_user_namespaces", "1000\n"),
            ("sys/fs/cgroup/a/cgroup.kill", ""),
            ("sys/fs/cgroup/a/memory.swap.max", ""),
        ]);
        let findings = [fixture.host.findings(), fixture.host.cgroup_features()].concat();
        assert!(
            findings.len() > 4 && findings.iter().all(|finding| finding.verdict == Verdict::Ok),
            "{findings:?}"
        );
        assert_eq!(verdict(&fixture.host, "nsdelegate"), Some(Verdict::Ok));
        assert!(fixture.directory.path().exists());
    }

    #[test]
    fn a_hybrid_host_has_its_warnings() {
        let fixture =
            fixture(&[("proc/self/mountinfo", HYBRID), ("sys/fs/cgroup/unified/a/cgroup.procs", "")]);
        for check in ["nsdelegate", "cgroup.kill", "pressure stall information", "swap accounting"] {
            assert_eq!(verdict(&fixture.host, check), Some(Verdict::Warn), "{check}");
        }
        let mend =
            fixture.host.findings().into_iter().find(|finding| finding.check == "nsdelegate").unwrap().mend;
        assert_eq!(mend, "mount -o remount,nsdelegate /sys/fs/cgroup/unified");
    }

    #[test]
    fn what_forbids_namespaces_is_named() {
        let mut fixture = fixture(&[
            ("proc/sys/user/max_net_namespaces", "0\n"),
            ("proc/sys/kernel/unprivileged_userns_clone", "0\n"),
            ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n"),
        ]);
        fixture.host.trial = Err(StepFailure { step: Step::UserNamespace, subject: String::new(), errno: 1 });
        for check in
            ["user.max_net_namespaces", "user namespaces", "kernel.apparmor_restrict_unprivileged_userns"]
        {
            assert_eq!(verdict(&fixture.host, check), Some(Verdict::Fail), "{check}");
        }
        let finding =
            fixture.host.findings().into_iter().find(|finding| finding.check == "user namespaces").unwrap();
        assert_eq!(finding.mend, "sysctl kernel.unprivileged_userns_clone=1");
        assert_eq!(verdict(&fixture.host, "cgroup2"), Some(Verdict::Ok));
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        for line in ["", "x", "1 2 3 4 5 - cgroup2", "1 - cgroup2 cgroup2 rw"] {
            assert_eq!(Mount::parse(line), None, "{line:?}");
        }
    }
}
