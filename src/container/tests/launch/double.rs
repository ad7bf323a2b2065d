//! The broker's double: what the engine needs of a broker, done by the test as root.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, fs::chown, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use cgrant_container::{Mapped, Pidfd, Staged};
use cgrant_sys::{
    Channel,
    seqpacket::{self, Received},
};

/// Ids that no broker and no account has.
pub const BASE: u32 = 0x6f00_0000;
const PATIENCE: Duration = Duration::from_secs(30);

/// One grant's worth of cgroup and ids.
pub struct Double {
    cgroup: PathBuf,
    uid: u32,
    ids: u32,
    setgroups: bool,
}

impl Double {
    /// Makes the cgroups of a grant, laid out and owned as the broker does it.
    pub fn new(uid: u32, ids: u32, setgroups: bool) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = cgroup2().join(format!("cgrant-launch-{}-{number}", std::process::id()));
        let (monitor, payload) = (cgroup.join("monitor"), cgroup.join("payload"));
        for directory in [&cgroup, &monitor, &payload] {
            fs::create_dir(directory).unwrap();
        }
        chown(cgroup.join("cgroup.procs"), Some(uid), None).unwrap();
        chown(&payload, Some(BASE), Some(BASE)).unwrap();
        chown(payload.join("cgroup.procs"), Some(uid), Some(BASE)).unwrap();
        fs::set_permissions(payload.join("cgroup.procs"), Permissions::from_mode(0o664)).unwrap();
        Self { cgroup, uid, ids, setgroups }
    }

    /// Starts the launcher as the account and grants what it asks for, until it ends.
    pub fn serve(&self, program: &Path, arguments: [&Path; 2], directory: &Path) -> ExitStatus {
        let (near, far) = seqpacket::pair().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(directory).current_dir("/");
        command.stdin(Stdio::from(far.as_fd().try_clone_to_owned().unwrap())).uid(self.uid).gid(self.uid);
        let mut launcher = command.spawn().unwrap();
        drop((far, command));
        let end = Instant::now() + PATIENCE;
        near.set_nonblocking(true).unwrap();
        loop {
            match near.receive() {
                Ok(Some(asked)) => self.answer(&near, asked),
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

    fn answer(&self, link: &Channel, asked: Received) {
        match asked.bytes.as_slice() {
            b"map" => {
                let [_namespace, stage] = <[OwnedFd; 2]>::try_from(asked.fds).unwrap();
                self.map(Pidfd::from_fd(stage).unwrap().pid().unwrap());
                link.send(b"mapped", &[]).unwrap();
            }
            _ => {
                let [stage] = <[OwnedFd; 1]>::try_from(asked.fds).unwrap();
                match self.attach(&Pidfd::from_fd(stage).unwrap()) {
                    Ok(payload) => link.send(b"attached", &[payload.as_fd()]).unwrap(),
                    Err(_) => link.send(b"refused", &[]).unwrap(),
                }
            }
        }
    }

    fn map(&self, pid: u32) {
        let map = format!("0 {BASE} {}", self.ids);
        if !self.setgroups {
            fs::write(format!("/proc/{pid}/setgroups"), "deny").unwrap();
        }
        fs::write(format!("/proc/{pid}/gid_map"), &map).unwrap();
        fs::write(format!("/proc/{pid}/uid_map"), &map).unwrap();
    }

    fn attach(&self, stage: &Pidfd) -> io::Result<OwnedFd> {
        fs::write(self.cgroup.join("monitor/cgroup.procs"), stage.pid()?.to_string())?;
        cgrant_sys::mount::open_place(&self.cgroup.join("payload"))
    }

    /// Kills what is left and removes the cgroups; anything that was left is a failure of the case, except what
    /// the case left on purpose and the kernel is still burying.
    pub fn clean_up(&self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        for name in ["monitor", "payload", ""] {
            let end = Instant::now() + PATIENCE;
            while let Err(error) = fs::remove_dir(self.cgroup.join(name)) {
                assert!(Instant::now() < end, "cannot remove {}/{name}: {error}", self.cgroup.display());
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
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
        let link = io::stdin().as_fd().try_clone_to_owned().unwrap();
        nix::unistd::dup2_stdin(fs::File::open("/dev/null").unwrap()).unwrap();
        Self(Channel::from_fd(link).unwrap())
    }

    /// Asks for ids.
    pub fn map(&self, staged: &Staged) {
        self.0.send(b"map", &[staged.namespace(), staged.stage()]).unwrap();
        self.0.receive().unwrap().expect("no ids");
    }

    /// Asks for the stage to be attached; the payload, unless the stage has ended.
    pub fn attach(&self, mapped: &Mapped) -> Option<OwnedFd> {
        self.0.send(b"attach", &[mapped.stage()]).unwrap();
        self.0.receive().unwrap().expect("no answer").fds.pop()
    }
}
