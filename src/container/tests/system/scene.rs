//! What the cases have: a container's root and run directory in a home of mode 0700, and ways to start and watch it.

use std::{
    fs::{self, Permissions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{PermissionsExt, chown, lchown, symlink},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cgrant_container::{
    Pidfd, Placement,
    system::{
        Control, Granted, MachineId, Monitor, Namespaces, Phase, StartError, State, SystemSpec, read_log,
        read_state,
    },
};
use cgrant_sys::Dir;

use crate::{
    debian,
    double::{BASE, IDS, Link, PATIENCE},
};

/// What a container's root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    Busybox,
    Debian(&'static str),
}

pub struct Case {
    pub name: &'static str,
    pub launch: fn(&Scene),
    pub root: Root,
    /// Must everything have ended when the launcher has?
    pub orderly: bool,
}

pub const fn case(name: &'static str, launch: fn(&Scene)) -> Case {
    Case { name, launch, root: Root::Busybox, orderly: true }
}

/// What a launcher has.
pub struct Scene {
    pub link: Link,
    pub root: PathBuf,
    pub run: PathBuf,
}

/// Makes root and run directory for the account.
pub fn make(directory: &Path, uid: u32, root: Root) {
    let home = directory.join("home");
    for path in [&home, &home.join("run")] {
        fs::create_dir(path).unwrap();
        chown(path, Some(uid), Some(uid)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    }
    let place = home.join("root");
    match root {
        Root::Busybox => make_busybox(&place),
        Root::Debian(suite) => debian::copy(suite, &place),
    }
    shift(&place);
}

fn make_busybox(root: &Path) {
    for name in ["", "bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "lib64"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static is not installed"), root.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "echo", "env", "grep", "hostname", "id", "kill", "ls", "mount", "poweroff", "ps", "readlink",
        "reboot", "seq", "sh", "sleep", "stat", "stty", "touch", "true", "tty", "unshare", "yes",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\nusers:x:100:ann\n").unwrap();
    fs::write(root.join("etc/hosts"), "").unwrap();
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::sysinit:/bin/echo up\n::respawn:/bin/sleep 1000\n").unwrap();
    // This program, and the libraries that it has in memory.
    fs::copy("/proc/self/exe", root.join("bin/actor")).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    for path in
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"))
    {
        let name = Path::new(path).file_name().unwrap();
        let inside = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(path, &inside).unwrap();
        if name.to_str().unwrap().starts_with("ld-") {
            fs::copy(path, root.join("lib64").join(name)).unwrap();
        }
    }
}

/// Gives a tree from root's ids to the container's.
fn shift(path: &Path) {
    let data = fs::symlink_metadata(path).unwrap();
    let (uid, gid) = {
        use std::os::unix::fs::MetadataExt;
        (data.uid() + BASE, data.gid() + BASE)
    };
    lchown(path, Some(uid), Some(gid)).unwrap();
    if !data.is_symlink() {
        // chown took the set-uid bits.
        fs::set_permissions(path, data.permissions()).unwrap();
    }
    if data.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| shift(&entry.unwrap().path()));
    }
}

/// Waits for something that a notification exists for nowhere, such as a process's own doing.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Scene {
    pub fn new(directory: &Path) -> Self {
        let home = directory.join("home");
        Self { link: Link::inherited(), root: home.join("root"), run: home.join("run") }
    }

    /// A shell script as init.
    pub fn script(&self, script: &str) -> SystemSpec {
        self.words(&["/bin/sh", "-c", script])
    }

    pub fn words(&self, words: &[&str]) -> SystemSpec {
        SystemSpec {
            root: self.root.clone().into(),
            run: self.run.clone(),
            hostname: "web".into(),
            machine: MachineId::from_random([7; 16]),
            init: words.iter().map(Into::into).collect(),
            environment: Vec::new(),
            credentials: Vec::new(),
            devices: Vec::new(),
            granted_devices: Vec::new(),
            nesting: false,
            broker: None,
            personal: None,
        }
    }

    pub fn try_start(&self, spec: &SystemSpec) -> Result<Pidfd, StartError> {
        let namespaces = Monitor::begin(spec)?.namespaces()?;
        self.start_in(namespaces)
    }

    pub fn start_in(&self, namespaces: Namespaces) -> Result<Pidfd, StartError> {
        let payload = self.link.ask(&namespaces);
        let placement = Placement { hostname: String::new(), ids: IDS, network: None };
        namespaces.start(&Granted {
            kept: &[],
            payload: Some(payload.as_fd()),
            mounts: &[],
            devices: &[],
            placement: &placement,
        })
    }

    pub fn start(&self, spec: &SystemSpec) -> Pidfd {
        self.try_start(spec).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts it, and waits for its end.
    pub fn play(&self, spec: &SystemSpec) -> State {
        let monitor = self.start(spec);
        monitor.wait().unwrap();
        self.last_state()
    }

    pub fn last_state(&self) -> State {
        read_state(&self.run_dir()).unwrap()
    }

    pub fn run_dir(&self) -> Dir {
        Dir::open(&self.run).unwrap()
    }

    pub fn control(&self) -> Control {
        Control::connect(&self.run_dir()).unwrap()
    }

    /// What was printed, without what a terminal adds to the ends of lines.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&read_log(&self.run_dir(), usize::MAX).unwrap()).replace('\r', "")
    }

    pub fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} is printed"), || self.log().contains(text));
    }

    pub fn running(&self) -> State {
        let state = self.control().wait_for(|state| state.phase == Phase::Running).unwrap();
        assert_eq!(state.phase, Phase::Running, "{state:?}\n{}", self.log());
        state
    }

    pub fn console(&self, control: &Control, replay: bool) -> UnixStream {
        let stream: OwnedFd = control.console(replay).unwrap();
        let stream = UnixStream::from(stream);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Reads until the text was there.
pub fn read_until(stream: &mut impl std::io::Read, text: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(text) {
        let length = stream.read(&mut buffer).unwrap_or_else(|error| panic!("{error}; until then: {seen:?}"));
        assert!(length > 0, "it ended before {text:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    seen
}
