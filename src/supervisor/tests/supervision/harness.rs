//! Scenes for the tests: a scratch directory, a cgrantd in it, what it said, and what its children noted.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    panic::catch_unwind,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};

/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the tests one by one and prints what cargo's own harness would.
pub fn run(tests: &[(&str, fn())]) -> ExitCode {
    let filter: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let chosen: Vec<_> = tests
        .iter()
        .filter(|(name, _)| filter.is_empty() || filter.iter().any(|word| name.contains(word.as_str())))
        .collect();
    println!("\nrunning {} tests", chosen.len());
    let failed = chosen
        .iter()
        .filter(|(name, test)| {
            let good = catch_unwind(test).is_ok();
            println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
            !good
        })
        .count();
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let (passed, out) = (chosen.len() - failed, tests.len() - chosen.len());
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal to a process that this test started, directly or not.
pub fn kill(pid: u32, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// How often the process has been put to sleep or woken so far.
pub fn context_switches(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
    counts.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum()
}

/// A scratch directory with the programs in it.
pub struct Scene {
    scratch: tempfile::TempDir,
    /// How many have been started.
    started: AtomicU32,
}

impl Scene {
    pub fn new() -> Self {
        let scratch = tempfile::Builder::new().prefix("cgrant-supervision-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["bin", "etc"] {
            fs::create_dir(scratch.path().join(directory)).unwrap();
        }
        let me = std::env::current_exe().unwrap();
        let first = scratch.path().join("bin/cgrantd");
        fs::copy(me, &first).unwrap();
        for name in ["cgrant-engine", "cgrant-front", "cgrant-net", "cgrant-scope"] {
            fs::hard_link(&first, scratch.path().join("bin").join(name)).unwrap();
        }
        let config =
            format!("[ids]\nrecord = \"{0}/ids\"\nlive = \"{0}/ids-live\"\n", scratch.path().display());
        fs::write(scratch.path().join("etc/cgrantd.toml"), config).unwrap();
        Self { scratch, started: AtomicU32::new(0) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/public/bus")
    }

    /// How the player of `role` shall behave from its next start or message on.
    pub fn mode(&self, role: &str, mode: &str) {
        fs::write(self.path(&format!("bin/{role}.mode")), mode).unwrap();
    }

    /// A cgrantd in the foreground with `args` over those of the scene.
    pub fn command(&self, args: &[&str]) -> Invocation<'_> {
        let mut invocation = self.background(args);
        invocation.args.push("--foreground".to_owned());
        invocation
    }

    /// The same without `--foreground`.
    pub fn background(&self, args: &[&str]) -> Invocation<'_> {
        let mut all: Vec<(String, String)> = Vec::new();
        for (option, directory) in [("--config-dir", "etc"), ("--state-dir", "lib"), ("--runtime-dir", "run")]
        {
            all.push((option.to_owned(), self.path(directory).display().to_string()));
        }
        // Nothing of the machine's own places.
        for (option, value) in [("--bus", "none"), ("--cgmanager-socket", "off")] {
            all.push((option.to_owned(), value.to_owned()));
        }
        // Options given by the test replace those of the scene.
        all.retain(|(option, _)| !args.contains(&option.as_str()));
        let mut line: Vec<String> = all.into_iter().flat_map(|(option, value)| [option, value]).collect();
        line.extend(args.iter().map(|arg| (*arg).to_owned()));
        Invocation { scene: self, args: line, environment: Vec::new(), listener: None, systemd: false }
    }

    /// Starts it and waits for READY.
    pub fn start(&self, args: &[&str]) -> Broker {
        self.command(args).spawn_ready()
    }

    fn lines(&self) -> Vec<(u128, String)> {
        let text = fs::read_to_string(self.path("bin/events")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let (time, event) = line.split_once(' ').unwrap();
                (time.parse().unwrap(), event.to_owned())
            })
            .collect()
    }

    /// What happened so far, in order.
    pub fn events(&self) -> Vec<String> {
        self.lines().into_iter().map(|(_, event)| event).collect()
    }

    /// When, in milliseconds, events with this beginning happened.
    pub fn times(&self, prefix: &str) -> Vec<u128> {
        self.lines()
            .into_iter()
            .filter(|(_, event)| event.starts_with(prefix))
            .map(|(time, _)| time)
            .collect()
    }

    pub fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|line| *line == event).count()
    }

    pub fn count_prefix(&self, prefix: &str) -> usize {
        self.times(prefix).len()
    }

    /// What the last event with this beginning says.
    pub fn event(&self, prefix: &str) -> String {
        let found =
            self.events().into_iter().rev().find_map(|event| event.strip_prefix(prefix).map(str::to_owned));
        found.unwrap_or_else(|| panic!("no event {prefix:?} in {:?}", self.events()))
    }

    /// The pid of the last player of `role`.
    pub fn pid(&self, role: &str) -> u32 {
        self.event(&format!("{role} pid ")).parse().unwrap()
    }

    /// Every player that ever was has ended.
    pub fn nobody_is_left(&self) {
        for event in self.events() {
            if let Some((_, pid)) = event.split_once(" pid ") {
                eventually("all children are gone", || {
                    !std::path::Path::new(&format!("/proc/{pid}")).exists()
                });
            }
        }
    }
}

/// A cgrantd that is about to be started.
pub struct Invocation<'a> {
    scene: &'a Scene,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    listener: Option<UnixListener>,
    systemd: bool,
}

impl Invocation<'_> {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started the way a service manager hands over a socket.
    pub fn activated(mut self, listener: UnixListener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// In a mount namespace of its own where /run looks as it does under systemd.
    pub fn under_a_seeming_systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    pub fn spawn(self) -> Broker {
        let program = self.scene.path("bin/cgrantd");
        let number = self.scene.started.fetch_add(1, Ordering::Relaxed);
        let stderr = self.scene.path(&format!("stderr.{number}"));
        let mut command = if self.systemd {
            let mut command = Command::new("unshare");
            let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        command.args(&self.args).envs(self.environment.iter().cloned());
        if let Some(listener) = self.listener {
            command.arg0("activate").stdin(std::os::fd::OwnedFd::from(listener));
        } else {
            command.stdin(Stdio::null());
        }
        command
            .env_remove("JOURNAL_STREAM")
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&stderr).unwrap());
        Broker::new(command.spawn().unwrap(), stderr)
    }

    pub fn spawn_ready(self) -> Broker {
        let mut broker = self.spawn();
        broker.wait_ready();
        broker
    }
}

/// A cgrantd that was started. It is killed if the test does not see it end.
pub struct Broker {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    /// A file, because a process in the background would keep a pipe open.
    stderr: PathBuf,
    said: String,
    ended: bool,
}

/// How a cgrantd ended.
pub struct End {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Broker {
    fn new(mut child: Child, stderr: PathBuf) -> Self {
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, stderr, said: String::new(), ended: false }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&mut self) {
        self.stdout.read_line(&mut self.said).unwrap();
        if self.said != "READY\n" {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!("it said {:?} instead of READY; {}", self.said, fs::read_to_string(&self.stderr).unwrap());
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for its end.
    pub fn end(mut self) -> End {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "cgrantd does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        self.ended = true;
        let mut stdout = std::mem::take(&mut self.said);
        self.stdout.read_to_string(&mut stdout).unwrap();
        End { code: status.code(), stdout, stderr: fs::read_to_string(&self.stderr).unwrap() }
    }

    /// Tells it to end and sees that it did in order.
    pub fn stop(self) -> End {
        self.signal(Signal::SIGTERM);
        let end = self.end();
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        end
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
