//! Whole systems: how long from the command to `running`, how much of that is systemd's own, and how long a command in one
//! that runs takes, beside other people's launchers. All boot the same Debian 12.
//!
//! systemd says when it began and when it had finished by the clock that is read here too: nothing is guessed from outside, and being asked
//! costs nobody time. The peers are given an overlay over the same files, mounted before the clock starts; cgrant mounts its own. A
//! peer that can't boot it here is named with what it said.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::{
    Bench,
    common::{
        Host,
        containers::{Shell, debian},
    },
    peers::remove_cgroups,
    runner::{Runner, View},
    sample::{self, Case, Parts, Row},
};

/// Boots take seconds.
const MAX_RUNS: usize = 10;
/// A peer that has not booted by then never will.
const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "bookworm";
/// What a system container is left by LXC and by us.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_CHROOT SYS_PTRACE SYS_ADMIN SYS_BOOT SYS_NICE \
    SYS_TTY_CONFIG MKNOD LEASE SETFCAP";

/// A launcher of whole systems. Its commands are run with `sh -c` in the view that it needs.
struct Launcher {
    name: &'static str,
    /// Returns when the system has been started, or later.
    start: String,
    /// Prints the pid of its init.
    init: String,
    /// Runs a command in it, if it can.
    exec: Option<String>,
    end: String,
    ours: bool,
}

/// What is needed to run them.
struct Stage<'b> {
    shell: Shell<'b>,
    programs: PathBuf,
    socket: PathBuf,
    /// What peers leave behind by design, and was not there before.
    leftovers: Vec<PathBuf>,
    ours: RefCell<Runner>,
    peers: RefCell<Runner>,
    place: PathBuf,
    root: PathBuf,
}

/// One boot.
struct Boot {
    init: u32,
    parts: Parts,
}

/// The part `systems`.
pub fn measure(bench: &Bench) {
    let broker = bench.lab.broker();
    let stage = Stage {
        shell: Shell::new(&bench.lab, &bench.user, &broker),
        programs: bench.lab.programs.clone(),
        socket: broker.socket().to_owned(),
        leftovers: leftovers(&bench.lab.host),
        ours: RefCell::new(Runner::start(View::Machine, Some(&bench.user), None)),
        peers: RefCell::new(Runner::start(View::V2, None, None)),
        place: bench.lab.scratch.join("systems"),
        root: debian(IMAGE),
    };
    fs::create_dir(&stage.place).unwrap();
    stage.shell.import(&bench.lab, &stage.root, IMAGE);
    let mut absent =
        vec!["systemd-nspawn, exec: machinectl needs machined, and that a host with systemd".to_owned()];
    let mut launchers = stage.launchers();
    boots(bench, &stage, &mut launchers, &mut absent);
    commands(bench, &stage, &launchers, &mut absent);
    copies(bench, &stage);
    for line in absent {
        println!("absent: {line}");
    }
}

fn boots(bench: &Bench, stage: &Stage<'_>, launchers: &mut Vec<Launcher>, absent: &mut Vec<String>) {
    let mut rows: Vec<Row> = Vec::new();
    let mut first = None;
    launchers.retain(|launcher| match stage.once(launcher) {
        Ok(parts) => {
            first.get_or_insert(parts);
            true
        }
        Err(failure) => {
            absent.push(format!("{}: fails here: {failure}", launcher.name));
            false
        }
    });
    for _ in 0..bench.runs.min(MAX_RUNS) {
        for launcher in launchers.iter() {
            match stage.once(launcher) {
                Ok(parts) => parts.into_iter().for_each(|(part, time)| {
                    let name = format!("{}: {part}", launcher.name);
                    let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                        rows.push(Row { name, ..Row::default() });
                        rows.len() - 1
                    });
                    rows[at].idle.push(time);
                }),
                Err(failure) => absent.push(format!("{}: failed at times: {failure}", launcher.name)),
            }
        }
    }
    let runs = bench.runs.min(MAX_RUNS);
    sample::print(
        &format!("From the command to `running`: Debian 12, systemd as first process; {runs} boots of each"),
        &rows,
    );
    if let Some(parts) = first {
        let parts: Vec<String> =
            parts.iter().map(|(part, time)| format!("{part} {:.1}", sample::milliseconds(*time))).collect();
        println!("the very first container of the image: {}", parts.join(", "));
    }
}

// Beside nsenter, which enters the same container's namespaces and does nothing else: no cgroup, no user, no confinement, no root's
// rights given up.
fn commands(bench: &Bench, stage: &Stage<'_>, launchers: &[Launcher], absent: &mut Vec<String>) {
    let mut running = Vec::new();
    for launcher in launchers.iter().filter(|launcher| launcher.exec.is_some()) {
        match stage.boot(launcher) {
            Ok(boot) => running.push((launcher, boot.init)),
            Err(failure) => absent.push(format!("{}, exec: {failure}", launcher.name)),
        }
        // One at a time has the overlay's place.
        if !launcher.ours {
            stage.measure_commands(bench, &mut running, absent);
        }
    }
    stage.measure_commands(bench, &mut running, absent);
}

// What a second container of the image has of its own when it has booted.
fn copies(bench: &Bench, stage: &Stage<'_>) {
    for name in ["first", "second"] {
        stage.shell.done(&["launch", IMAGE, name, "--wait"]);
    }
    let upper = bench.user.home.join(".local/share/cgrant/containers/second/upper");
    let (mut own, mut copied) = (0, Vec::new());
    for file in files(&upper) {
        let meta = fs::symlink_metadata(&file).unwrap();
        let inside = file.strip_prefix(&upper).unwrap();
        match stage.root.join(inside).symlink_metadata() {
            Ok(_) if meta.is_file() => copied.push(format!("/{} ({} bytes)", inside.display(), meta.size())),
            _ => own += meta.size(),
        }
    }
    println!(
        "a second container of the image, booted: {} kB of new files (journal, caches); of the image's files written anew: {}",
        own / 1024,
        if copied.is_empty() { "none".to_owned() } else { copied.join(", ") }
    );
    stage.shell.done(&["delete", "--force", "first", "second"]);
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() && !path.is_symlink() { files(&path) } else { vec![path] })
        .collect()
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.leftovers.iter().for_each(|cgroup| remove_cgroups(cgroup));
    }
}

fn leftovers(host: &Host) -> Vec<PathBuf> {
    let names = ["payload", "supervisor", "libpod_parent", "lxc.pivot"];
    let all = host.trees.iter().flat_map(|tree| names.map(|name| tree.root.join(name)));
    all.filter(|cgroup| !cgroup.exists()).collect()
}

impl Stage<'_> {
    fn launchers(&self) -> Vec<Launcher> {
        let place = self.place.display();
        let root = format!("{place}/merged");
        let cgrant = format!("cgrant --socket {}", self.socket.display());
        let ours = |name, start: &str, end: &str, exec: bool| Launcher {
            name,
            start: format!("exec {cgrant} {start}"),
            init: String::new(),
            exec: exec.then(|| format!("cgrant exec --socket {} bench -- /bin/true", self.socket.display())),
            end: format!("exec {cgrant} {end}"),
            ours: true,
        };
        let peer = |name, start: String, init: String, exec: Option<String>, end: String| Launcher {
            name,
            start,
            init,
            exec,
            end,
            ours: false,
        };
        let lxc = format!("-P {place}/lxc -n cgb");
        let podman = format!(
            "podman --root {place}/podman --runroot {place}/podman-run --log-level error --cgroup-manager cgroupfs --runtime crun"
        );
        let crun = format!("crun --root {place}/crun");
        self.write_lxc(&root);
        self.write_bundle(&root);
        vec![
            ours(
                "cgrant launch, user",
                &format!("launch {IMAGE} bench --wait"),
                "delete --force bench",
                true,
            ),
            ours("cgrant start, user", "start again --wait", "stop again --timeout 0", false),
            peer(
                "lxc-start, root",
                format!("exec lxc-start {lxc} -f {place}/lxc.conf -d"),
                format!("exec lxc-info {lxc} -pH"),
                Some(format!("lxc-attach {lxc} -- /bin/true")),
                format!("exec lxc-stop {lxc} -k"),
            ),
            peer(
                "systemd-nspawn, root",
                format!(
                    "systemd-nspawn -q --register=no --keep-unit --private-network -b -D {root} -M cgb-{} \
                     </dev/null >{place}/nspawn.log 2>&1 & echo $! >{place}/nspawn",
                    std::process::id()
                ),
                // Its other children come and go: one that has gone has no name.
                format!(
                    "for pid in $(cat /proc/$(cat {place}/nspawn)/task/*/children); do \
                     [ \"$(cat /proc/$pid/comm)\" != systemd ] || echo $pid; done"
                ),
                None,
                format!(
                    "kill -9 $(cat /proc/$(cat {place}/nspawn)/task/*/children); while kill -0 $(cat {place}/nspawn) 2>/dev/null && ! grep -q ^State:.Z /proc/$(cat {place}/nspawn)/status; do sleep 0.01; done"
                ),
            ),
            peer(
                "crun run, root",
                format!("exec {crun} run -d -b {place}/bundle cgb </dev/null"),
                format!("{crun} state cgb | sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'"),
                Some(format!("{crun} exec cgb /bin/true")),
                format!("exec {crun} delete -f cgb"),
            ),
            // Privileged, and without a limit: else it asks for controllers and for BPF programs that not every host lets it have.
            peer(
                "podman run, root",
                format!(
                    "exec {podman} run -d --name cgb --systemd=always --privileged --pids-limit 0 --network none \
                     --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --rootfs {root} /sbin/init"
                ),
                format!("exec {podman} inspect -f '{{{{.State.Pid}}}}' cgb"),
                Some(format!("{podman} exec cgb /bin/true")),
                format!("exec {podman} rm -f -t 0 cgb"),
            ),
        ]
    }

    fn runner(&self, launcher: &Launcher) -> &RefCell<Runner> {
        if launcher.ours { &self.ours } else { &self.peers }
    }

    fn sh(&self, launcher: &Launcher, script: &str) -> Result<Duration, String> {
        let path = self.programs.display();
        let command = ["/bin/sh", "-c", &format!("PATH={path}:$PATH; {script}")].map(str::to_owned);
        self.runner(launcher).borrow_mut().run(&command)
    }

    /// Boots, and ends.
    fn once(&self, launcher: &Launcher) -> Result<Parts, String> {
        let boot = self.boot(launcher)?;
        self.end(launcher)?;
        Ok(boot.parts)
    }

    fn boot(&self, launcher: &Launcher) -> Result<Boot, String> {
        self.prepare(launcher)?;
        let booted = self.begin(launcher);
        if booted.is_err() {
            let _ = self.end(launcher);
        }
        booted
    }

    fn begin(&self, launcher: &Launcher) -> Result<Boot, String> {
        let began = now();
        self.sh(launcher, &launcher.start)?;
        let returned = now();
        let init = self.init(launcher)?;
        let state = until_booted(init)?;
        let (userspace, finished) = times(init)?;
        if state != "running" {
            return Err(format!(
                "it is {state}: {}",
                inside(init, &["systemctl", "--failed", "--no-legend", "--plain"])
            ));
        }
        let mut parts = vec![
            ("before systemd", userspace.saturating_sub(began)),
            ("systemd's own", finished.saturating_sub(userspace)),
            ("to running", finished.saturating_sub(began)),
        ];
        if launcher.ours {
            parts.push(("until --wait has returned", returned.saturating_sub(finished)));
        }
        Ok(Boot { init, parts })
    }

    fn init(&self, launcher: &Launcher) -> Result<u32, String> {
        if launcher.ours {
            let name = if launcher.start.contains(" again ") { "again" } else { "bench" };
            return self.shell.json(&["info", name])["init"]
                .as_u64()
                .map(|pid| pid as u32)
                .ok_or("no init".into());
        }
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let output = self.in_peers_view(&launcher.init);
            if let Ok(pid) = output.trim().parse() {
                return Ok(pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("no init is there{}", self.said()))
    }

    fn said(&self) -> String {
        let text = fs::read_to_string(self.place.join("nspawn.log")).unwrap_or_default();
        text.lines().last().map_or_else(String::new, |line| format!("; nspawn: {line}"))
    }

    fn in_peers_view(&self, script: &str) -> String {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.peers.borrow().pid());
        let output = Command::new("nsenter").args([&namespace, "/bin/sh", "-c", script]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is there before the clock starts.
    fn prepare(&self, launcher: &Launcher) -> Result<(), String> {
        if !launcher.ours {
            let (place, root) = (self.place.display(), self.root.display());
            let script = format!(
                "cd {place} && mkdir -p lxc upper work merged && \
                 mount -t overlay overlay -o lowerdir={root},upperdir={place}/upper,workdir={place}/work merged"
            );
            return self.sh(launcher, &script).map(drop);
        }
        if launcher.start.contains(" again ") && self.shell.state("again") == "none" {
            self.shell.done(&["create", IMAGE, "again"]);
        }
        Ok(())
    }

    fn end(&self, launcher: &Launcher) -> Result<(), String> {
        let ended = self.sh(launcher, &launcher.end).map(drop);
        if !launcher.ours {
            let script = format!("cd {} && umount -l merged && rm -rf upper work", self.place.display());
            self.sh(launcher, &script)?;
        }
        ended
    }

    fn measure_commands(&self, bench: &Bench, running: &mut Vec<(&Launcher, u32)>, absent: &mut Vec<String>) {
        let failed = RefCell::new(Vec::new());
        let mut cases: Vec<Case<'_>> = Vec::new();
        for (launcher, init) in running.iter() {
            let runs = |runner: &'_ RefCell<Runner>, command: &str| {
                let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
                match runner.borrow_mut().run(&words) {
                    Ok(time) => vec![("", time)],
                    Err(failure) => {
                        failed.borrow_mut().push(format!("{}, exec: {failure}", launcher.name));
                        Vec::new()
                    }
                }
            };
            let exec = launcher.exec.clone().unwrap_or_default();
            let exec = match exec.strip_prefix("cgrant ") {
                Some(rest) => format!("{}/cgrant {rest}", self.programs.display()),
                None => exec,
            };
            let nsenter = format!("nsenter -t {init} -a /bin/true");
            let runner = self.runner(launcher);
            let what = launcher.name.split([' ', ',']).next().unwrap_or_default();
            cases.push(Case::new(format!("{what}: nsenter into it, root"), move || {
                runs(&self.peers, &nsenter)
            }));
            cases.push(Case::new(format!("{what}: exec"), move || runs(runner, &exec)));
        }
        if !cases.is_empty() {
            let rows = sample::take(&mut cases, bench.runs, || ());
            sample::print("/bin/true in a system that runs, from start to gone", &rows);
        }
        drop(cases);
        absent.extend(failed.into_inner());
        for (launcher, _) in running.drain(..) {
            self.end(launcher).unwrap();
        }
    }

    fn write_lxc(&self, root: &str) {
        let config = format!(
            "lxc.rootfs.path = dir:{root}\nlxc.uts.name = bench\nlxc.net.0.type = empty\n\
             lxc.mount.auto = proc:mixed sys:mixed cgroup:rw\nlxc.autodev = 1\nlxc.apparmor.profile = unconfined\n\
             lxc.cap.drop = sys_rawio\n"
        );
        fs::write(self.place.join("lxc.conf"), config).unwrap();
    }

    // As `crun spec` gives it, but for what an init needs.
    fn write_bundle(&self, root: &str) {
        let bundle = self.place.join("bundle");
        fs::create_dir(&bundle).unwrap();
        if !Command::new("crun")
            .arg("spec")
            .current_dir(&bundle)
            .status()
            .is_ok_and(|status| status.success())
        {
            return;
        }
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let process = &mut config["process"];
        process["terminal"] = json!(false);
        process["args"] = json!(["/sbin/init"]);
        process["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=crun"]);
        process["rlimits"] = json!([]);
        process["noNewPrivileges"] = json!(false);
        let kept: Vec<String> = CAPABILITIES.split_whitespace().map(|name| format!("CAP_{name}")).collect();
        for (_, set) in process["capabilities"].as_object_mut().unwrap() {
            *set = json!(kept);
        }
        config["root"] = json!({ "path": root, "readonly": false });
        let options = json!(["rw", "nosuid", "noexec", "nodev"]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "cgroup");
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options }));
        mounts.push(json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"] }));
        let linux = &mut config["linux"];
        linux["resources"] = json!({});
        linux["maskedPaths"] = json!([]);
        linux["readonlyPaths"] = json!([]);
        let namespaces = linux["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({ "type": "cgroup" }));
        fs::write(path, config.to_string()).unwrap();
    }
}

/// Since the machine started, as systemd counts.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// What a command in a container prints.
fn inside(init: u32, words: &[&str]) -> String {
    let output = Command::new("nsenter").args(["-t", &init.to_string(), "-a"]).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn until_booted(init: u32) -> Result<String, String> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let state = inside(init, &["systemctl", "is-system-running", "--wait"]);
        if ["running", "degraded", "maintenance"].contains(&state.as_str()) {
            return Ok(state);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err("systemd in it did not finish in a minute".to_owned())
}

/// When systemd began and when it had finished.
fn times(init: u32) -> Result<(Duration, Duration), String> {
    let text = inside(
        init,
        &["systemctl", "show", "-p", "UserspaceTimestampMonotonic", "-p", "FinishTimestampMonotonic"],
    );
    let time = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value
            .and_then(|value| value.parse().ok())
            .map(Duration::from_micros)
            .ok_or_else(|| format!("no {key}"))
    };
    Ok((time("UserspaceTimestampMonotonic")?, time("FinishTimestampMonotonic")?))
}
