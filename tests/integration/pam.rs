//! The PAM module, loaded by Debian's own su: sessions get cgroups and lose them, and nobody is kept out by a broker that is
//! not there, does not answer, or refuses.
//!
//! su finds its service, its users and its log in a mount namespace of the test's own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::MetadataExt,
        net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{
    Lab, User,
    cgmanager::{Manager, processes_of},
    wait_until,
};

/// What su runs: it says where it is, and stays until it is told to go on.
const SCRIPT: &str = "cat /proc/self/cgroup; id -u; echo there; read line";
/// In the place of arguments: without the module.
const WITHOUT: &str = "without";
/// Whom the sessions are for.
const NAME: &str = "cgmjoe";

/// su, with the module among its own.
struct Su<'a> {
    lab: &'a Lab,
    user: User,
    /// Where the module's log lines come.
    log: UnixDatagram,
}

/// A session.
struct Login {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What the session said of its cgroups.
    cgroups: Vec<String>,
}

impl<'a> Su<'a> {
    fn new(lab: &'a Lab) -> Self {
        let user = lab.user();
        let dev = lab.scratch.join("dev");
        fs::create_dir(&dev).unwrap();
        fs::create_dir(lab.scratch.join("pam.d")).unwrap();
        for node in ["null", "tty"] {
            fs::write(dev.join(node), "").unwrap();
        }
        let log = UnixDatagram::bind(dev.join("log")).unwrap();
        log.set_nonblocking(true).unwrap();
        for (file, line) in [
            ("passwd", format!("{NAME}:x:{0}:{0}::/:/bin/sh\n", user.uid)),
            ("group", format!("{NAME}s:x:{}:\n", user.uid)),
        ] {
            let text = fs::read_to_string(Path::new("/etc").join(file)).unwrap();
            fs::write(lab.scratch.join(file), text + &line).unwrap();
        }
        Self { lab, user, log }
    }

    /// The top of the sessions' cgroups: the first name in the pattern.
    fn top(&self) -> String {
        format!("cgm-{}-pam", self.lab.instance)
    }

    /// Where a session's cgroup is, from the root.
    fn path(&self, number: &str) -> String {
        format!("/{}/{NAME}/{number}", self.top())
    }

    fn dir(&self, controller: &str, below: &str) -> PathBuf {
        self.lab.host.with(controller).unwrap().root.join(self.top()).join(below)
    }

    /// What is left in any hierarchy.
    fn left(&self) -> Vec<PathBuf> {
        let tops = self.lab.host.trees.iter().map(|tree| tree.root.join(self.top()));
        tops.filter(|top| top.exists()).collect()
    }

    /// A session with these arguments of the module, of which `{}` is the beginning of the pattern. Opening it may fail.
    fn starts(&self, socket: &Path, arguments: &str, script: &str) -> Child {
        let module = self.lab.programs.join("libpam_cgrant.so");
        let module =
            format!("session required {} --socket={} {arguments}\n", module.display(), socket.display());
        let module = if arguments == WITHOUT { "" } else { &module };
        let service = format!(
            "auth required pam_rootok.so\naccount required pam_permit.so\n{module}session required pam_permit.so\n"
        )
        .replace("{}", &self.top());
        fs::write(self.lab.scratch.join("pam.d/su"), service).unwrap();
        let mounts = "cd $0 && mount --bind /dev/null dev/null && mount --rbind dev /dev && \
            for file in pam.d passwd group; do mount --bind $file /etc/$file || exit 99; done && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", mounts]).arg(&self.lab.scratch);
        command.args(["su", NAME, "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.spawn().unwrap()
    }

    fn login(&self, socket: &Path, arguments: &str) -> Login {
        self.login_with(socket, arguments, SCRIPT)
    }

    fn login_with(&self, socket: &Path, arguments: &str, script: &str) -> Login {
        let mut child = self.starts(socket, arguments, script);
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut login = Login { child, input, output, cgroups: Vec::new() };
        loop {
            let mut line = String::new();
            assert_ne!(
                login.output.read_line(&mut line).unwrap(),
                0,
                "the session ended: {:?}",
                self.logged()
            );
            match line.trim_end() {
                "there" => break,
                line => login.cgroups.push(line.to_owned()),
            }
        }
        assert_eq!(login.cgroups.pop(), Some(self.user.uid.to_string()));
        login
    }

    /// What the module logged.
    fn logged(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut bytes = [0; 8192];
        while let Ok(count) = self.log.recv(&mut bytes) {
            let line = String::from_utf8_lossy(&bytes[..count]).into_owned();
            lines.extend(line.contains("pam_cgrant(su:session)").then_some(line));
        }
        lines
    }

    /// On a host that systemd runs a session is left where it is, and nothing is said.
    fn is_left_alone(&self) {
        let login = self.login(&self.lab.scratch.join("none"), "-p {}/%u/ --required");
        assert!(login.cgroups.iter().all(|line| !line.contains(&self.top())), "{:?}", login.cgroups);
        assert!(login.ends().success());
        let logged = self.logged();
        assert!(logged.iter().all(|line| line.contains("systemd runs this host")), "{logged:?}");
    }

    /// A session that has no cgroup, and why by the log; or that is not let in.
    #[track_caller]
    fn has_none(&self, socket: &Path, arguments: &str, saying: &str) {
        let login = self.login(socket, arguments);
        let inside = login.cgroups.iter().filter(|line| line.contains(&self.top())).count();
        assert_eq!(inside, 0, "{arguments}: {:?}", login.cgroups);
        assert!(login.ends().success());
        let logged = self.logged();
        assert!(logged.iter().any(|line| line.contains(saying)), "{arguments}: {logged:?}");
        let arguments = format!("{arguments} --required");
        let mut child = self.starts(socket, &arguments, SCRIPT);
        assert!(!child.wait().unwrap().success(), "{arguments}: let in");
        let logged = self.logged();
        assert!(logged.iter().any(|line| line.contains(saying)), "{arguments}: {logged:?}");
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{arguments}");
    }
}

impl Drop for Su<'_> {
    fn drop(&mut self) {
        // Whatever the test did.
        for top in self.left() {
            for _ in 0..200 {
                remove(&top);
                if !top.exists() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

/// Removes a cgroup with all below it; what runs in it is killed.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
    }
    let _ = fs::remove_dir(dir);
}

impl Login {
    /// The session's cgroup in the hierarchy of a controller.
    fn cgroup(&self, controller: &str) -> &str {
        let lines = || self.cgroups.iter().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let v1 = lines().find(|line| line[1].split(',').any(|one| one == controller));
        let found = v1.or_else(|| lines().find(|line| line[1].is_empty()));
        let path = found.unwrap_or_else(|| panic!("no {controller} in {:?}", self.cgroups))[2];
        path.strip_suffix("/.cgm_leaf").unwrap_or(path)
    }

    /// Lets it go on, to its end.
    fn ends(mut self) -> ExitStatus {
        self.input.take().unwrap().write_all(b"\n").unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn a_session_has_cgroups_of_its_own_and_takes_them_with_it(lab: &Lab) {
    let (manager, su) = (Manager::start(lab), Su::new(lab));
    if lab.host.systemd {
        return su.is_left_alone();
    }
    // All controllers, without a word about which.
    let limit = "-p {}/%u/ -s memory,memory.limit_in_bytes,67108864";
    let first = su.login(&manager.socket, limit);
    let hierarchies = lab.host.trees.iter().filter(|tree| tree.name != "cgroup2");
    let names: Vec<&str> = hierarchies.filter_map(|tree| tree.name.split(',').next()).collect();
    for name in names {
        let expected = if name == "devices" { "/".to_owned() } else { su.path("0") };
        assert_eq!(first.cgroup(name), expected, "{name}");
    }
    let (uid, own) = (su.user.uid, su.dir("memory", &format!("{NAME}/0")));
    let limit_file = own.join(if lab.host.is_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" });
    for (path, uid) in [
        (own.clone(), uid),
        (own.join("cgroup.procs"), uid),
        (limit_file.clone(), 0),
        (su.dir("memory", ""), 0),
        (su.dir("memory", NAME), 0),
    ] {
        assert_eq!(owner(&path), (uid, uid), "{}", path.display());
    }
    assert_eq!(fs::read_to_string(limit_file).unwrap().trim(), "67108864");
    // The user may work in it.
    let made = su.user.command("mkdir").arg(own.join("own")).status().unwrap();
    assert!(made.success());
    let second = su.login(&manager.socket, limit);
    assert_eq!((second.cgroup("memory"), second.cgroup("pids")), (&*su.path("1"), &*su.path("1")));
    assert!(first.ends().success());
    assert!(!own.exists(), "what the user made went with it");
    assert!(second.ends().success());
    assert_eq!(su.left(), Vec::<PathBuf>::new(), "{:?}", su.logged());
}

fn who_stays_keeps_the_cgroup(lab: &Lab) {
    let (manager, su) = (Manager::start(lab), Su::new(lab));
    if lab.host.systemd {
        return su.is_left_alone();
    }
    let script = format!("sleep 1000 </dev/null >/dev/null 2>&1 & {SCRIPT}");
    let login = su.login_with(&manager.socket, "-c memory -p {}/%u/", &script);
    assert_eq!(login.cgroup("memory"), su.path("0"));
    let own = su.dir("memory", &format!("{NAME}/0"));
    assert!(login.ends().success());
    let processes = ["", ".cgm_leaf"].map(|leaf| processes_of(&own.join(leaf))).concat();
    let left: Vec<i32> = processes.into_iter().map(u32::cast_signed).collect();
    assert_eq!(left.len(), 1, "the sleeper is where it was, and su is not");
    // The number is taken as long as somebody is in it.
    let next = su.login(&manager.socket, "-c memory -p {}/%u/");
    assert_eq!(next.cgroup("memory"), su.path("1"));
    assert!(next.ends().success());
    assert!(own.exists());
    kill_process(Pid::from_raw(left[0]).unwrap(), Signal::KILL).unwrap();
    wait_until("the last one's end is the cgroup's", || su.left().is_empty());
}

fn numbers_end_and_cgroups_may_be_shared(lab: &Lab) {
    let (manager, su) = (Manager::start(lab), Su::new(lab));
    if lab.host.systemd {
        return su.is_left_alone();
    }
    let numbered = "-c memory,freezer -p {}/%u/s -m 0";
    let first = su.login(&manager.socket, numbered);
    assert_eq!(first.cgroup("freezer"), su.path("s0"));
    // Who has all of them could open another one for no other reason than to be without limits.
    let mut second = su.starts(&manager.socket, numbered, SCRIPT);
    assert!(!second.wait().unwrap().success(), "let in");
    assert!(su.logged().iter().any(|line| line.contains("--max-idx")));
    assert!(su.dir("memory", &format!("{NAME}/s0")).exists(), "the first one's stays");
    assert!(first.ends().success());
    let shared = "-c memory -p {}/%U --pattern-no-idx-suffix --prune-depth 0";
    let (first, second) = (su.login(&manager.socket, shared), su.login(&manager.socket, shared));
    let path = format!("/{}/{}", su.top(), su.user.uid);
    assert_eq!((first.cgroup("memory"), second.cgroup("memory")), (&*path, &*path));
    assert!(first.ends().success());
    assert!(su.dir("memory", &su.user.uid.to_string()).exists(), "the second one is in it");
    assert!(second.ends().success());
    wait_until("the last one's end is the cgroup's", || su.left().is_empty());
}

fn nobody_is_kept_out_by_a_broker(lab: &Lab) {
    let su = Su::new(lab);
    if lab.host.systemd {
        return su.is_left_alone();
    }
    let socket = lab.scratch.join("sock");
    su.has_none(&socket, "-p {}/%u/", "the broker can't be reached");
    su.has_none(&socket, "--nothing", "there is no option --nothing");
    // One that lets everybody wait: first when it is spoken to, then already at its door.
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    su.has_none(&socket, "-p {}/%u/ --timeout=1", "the broker does not answer in time");
    fs::remove_file(&socket).unwrap();
    drop(listener);
    let (manager, v1) = (Manager::start(lab), lab.host.is_v1("memory"));
    for (arguments, saying) in [
        ("-p {}/%u/ -s memory,memory.limit_in_bytes,nonsense", "memory.limit_in_bytes, nonsense) is refused"),
        ("-p {}/%u/ -c nosuch", "no hierarchy of the controller nosuch"),
        ("-p {}/%u/ -c freezer -s memory,memory.limit_in_bytes,1", "memory.limit_in_bytes can't be set"),
        ("-p {}/../x/%u/", "can't be a part of a path"),
        ("-p {}/%x/", "%x stands for nothing"),
        // cgroup2 has no such controller.
        (
            "-p {}/%u/ -c devices",
            if v1 { "the devices hierarchy is given to nobody" } else { "no hierarchy of" },
        ),
    ] {
        su.has_none(&manager.socket, arguments, saying);
    }
}

/// Descriptors of su while a session is open: those that it has with the module and without.
fn descriptors_are_closed(lab: &Lab) {
    let (manager, su) = (Manager::start(lab), Su::new(lab));
    if lab.host.systemd {
        return su.is_left_alone();
    }
    let descriptors = |arguments: &str| {
        let login = su.login(&manager.socket, arguments);
        let children = crate::common::harness::descendants_of(login.child.id());
        let all: Vec<u32> = [login.child.id()].into_iter().chain(children).collect();
        let count: usize =
            all.iter().map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()).sum();
        assert!(login.ends().success());
        (all.len(), count)
    };
    let without = descriptors(WITHOUT);
    assert_eq!(descriptors("-c memory -p {}/%u/"), without);
}

crate::tests!(
    a_session_has_cgroups_of_its_own_and_takes_them_with_it,
    who_stays_keeps_the_cgroup,
    numbers_end_and_cgroups_may_be_shared,
    nobody_is_kept_out_by_a_broker,
    descriptors_are_closed,
);
