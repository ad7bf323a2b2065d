//! The broker's double: a grant's cgroups, its ids, and the monitor in it, done by the test as root.

use std::{
    fs::{self, Permissions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, fs::chown, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use cgrant_container::{Pidfd, system::Namespaces};
use cgrant_sys::{Channel, Clone3, UsernsFd, seqpacket};

/// Ids that no broker and no account has.
pub const BASE: u32 = 0x6f10_0000;
pub const IDS: u32 = 65536;
/// How long anything may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One grant's worth of cgroup and ids.
pub struct Double {
    cgroup: PathBuf,
    uid: u32,
}

impl Double {
    /// Makes the cgroups of a grant, laid out and owned as the broker does it.
    pub fn new(uid: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroup2().join(format!("cgrant-system-{}-{number}", std::process::id()));
        let (monitor, payload) = (cgroup.join("monitor"), cgroup.join("payload"));
        for directory in [&cgroup, &monitor, &payload] {
            fs::create_dir(directory).unwrap();
        }
        chown(cgroup.join("cgroup.procs"), Some(uid), None).unwrap();
        chown(&payload, Some(BASE), Some(BASE)).unwrap();
        for file in ["cgroup.threads", "cgroup.subtree_control"] {
            chown(payload.join(file), Some(BASE), Some(BASE)).unwrap();
        }
        chown(payload.join("cgroup.procs"), Some(uid), Some(BASE)).unwrap();
        fs::set_permissions(payload.join("cgroup.procs"), Permissions::from_mode(0o664)).unwrap();
        Self { cgroup, uid }
    }

    /// Starts the launcher as the account, with nothing but what such a process has without any session, and grants what it asks for
    /// until it ends.
    pub fn serve(&self, program: &Path, case: &str, directory: &Path) -> ExitStatus {
        let (near, far) = seqpacket::pair().unwrap();
        let mut command = Command::new(program);
        command.args(["--case", case]).arg(directory).current_dir("/").env_clear();
        command.stdin(Stdio::from(far.as_fd().try_clone_to_owned().unwrap())).uid(self.uid).gid(self.uid);
        let mut launcher = command.spawn().unwrap();
        drop((far, command));
        let end = Instant::now() + PATIENCE;
        near.set_nonblocking(true).unwrap();
        loop {
            match near.receive() {
                Ok(Some(asked)) => self.grant(&near, asked.fds),
                // Closed: the launcher is about to end.
                Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            if let Some(status) = launcher.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > end {
                launcher.kill().unwrap();
                return launcher.wait().unwrap();
            }
        }
    }

    fn grant(&self, link: &Channel, fds: Vec<OwnedFd>) {
        let [namespace, stage, monitor] = <[OwnedFd; 3]>::try_from(fds).unwrap();
        map(&UsernsFd::from_fd(namespace).unwrap());
        for process in [stage, monitor] {
            let pid = Pidfd::from_fd(process).unwrap().pid().unwrap();
            fs::write(self.cgroup.join("monitor/cgroup.procs"), pid.to_string()).unwrap();
        }
        let payload = cgrant_sys::mount::open_place(&self.cgroup.join("payload")).unwrap();
        link.send(b"granted", &[payload.as_fd()]).unwrap();
    }

    /// Nothing may be left of an orderly end but the cgroups, which are removed.
    pub fn clean_up(&self, orderly: bool) {
        let populated =
            || fs::read_to_string(self.cgroup.join("cgroup.events")).unwrap().contains("populated 1");
        if orderly {
            let end = Instant::now() + PATIENCE;
            while populated() {
                if Instant::now() > end {
                    let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
                    panic!("processes were left in {}", self.cgroup.display());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let end = Instant::now() + PATIENCE;
        while let Err(error) = remove(&self.cgroup) {
            assert!(Instant::now() < end, "cannot remove {}: {error}", self.cgroup.display());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Removes a cgroup with those below it.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// The maps of a namespace that nobody is in are written by way of one who enters it.
fn map(namespace: &UsernsFd) {
    let (near, far) = seqpacket::pair().unwrap();
    let child = Clone3::new()
        .spawn(|| {
            namespace.enter().unwrap();
            far.send(b"inside", &[]).unwrap();
            // Until the other end is closed.
            let _ = far.receive();
            0
        })
        .unwrap();
    near.receive().unwrap().unwrap();
    for file in ["gid_map", "uid_map"] {
        fs::write(format!("/proc/{}/{file}", child.pid), format!("0 {BASE} {IDS}")).unwrap();
    }
    near.send(b"mapped", &[]).unwrap();
    child.pidfd.wait().unwrap();
}

/// Where cgroup2 is mounted on this host.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("no cgroup2 is mounted here");
    PathBuf::from(mount.split(' ').nth(4).unwrap())
}

/// The launcher's end.
pub struct Link(Channel);

impl Link {
    /// It was given as standard input, which then is /dev/null.
    pub fn inherited() -> Self {
        let link = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        nix::unistd::dup2_stdin(fs::File::open("/dev/null").unwrap()).unwrap();
        Self(Channel::from_fd(link).unwrap())
    }

    /// Asks for the grant; its payload.
    pub fn ask(&self, namespaces: &Namespaces) -> OwnedFd {
        let (stage, monitor) = (namespaces.stage().unwrap(), namespaces.monitor().unwrap());
        self.0.send(b"grant", &[namespaces.user(), stage, monitor]).unwrap();
        self.0.receive().unwrap().expect("no grant").fds.pop().unwrap()
    }
}
