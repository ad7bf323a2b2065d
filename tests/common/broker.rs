//! A real broker: cgrantd in the foreground with directories, socket, instance name and id record of the test's own.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Lab, PATIENCE, checker, harness, network, wait_until};

/// How a broker is to be started.
#[derive(Clone)]
pub struct Setup {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Its socket.
    pub socket: PathBuf,
    run_dir: PathBuf,
    log: PathBuf,
    bus: String,
    // The process whose network and mount namespaces it is to have.
    pub(super) inside: Option<u32>,
}

impl Setup {
    pub fn new(lab: &Lab) -> Self {
        let dir = |path: PathBuf| path.to_str().unwrap().to_owned();
        let arguments = vec![
            "--foreground".into(),
            "--instance".into(),
            lab.instance.clone(),
            "--config-dir".into(),
            dir(lab.config_dir()),
            "--state-dir".into(),
            dir(lab.state_dir()),
            "--runtime-dir".into(),
            dir(lab.runtime_dir()),
        ];
        Self {
            program: lab.programs.join("cgrantd"),
            arguments,
            environment: Vec::new(),
            socket: lab.runtime_dir().join("public/bus"),
            run_dir: lab.runtime_dir().join("state"),
            log: lab.scratch.join("log"),
            bus: "none".into(),
            inside: None,
        }
    }

    /// On which bus it serves too.
    pub fn bus(mut self, bus: &str) -> Self {
        self.bus = bus.to_owned();
        self
    }

    /// A variable of its environment.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// More arguments.
    pub fn arguments(mut self, more: &[&str]) -> Self {
        self.arguments.extend(more.iter().map(|a| (*a).to_owned()));
        self
    }

    /// The command, for tests that expect it to fail.
    pub fn command(&self) -> Command {
        let mut command = match self.inside {
            Some(pid) => network::enter(pid, self.program.as_os_str()),
            None => Command::new(&self.program),
        };
        command.args(&self.arguments).args(["--bus", &self.bus]).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts it and waits for READY.
    pub fn start(&self) -> Broker {
        self.try_start().unwrap_or_else(|message| panic!("the broker did not start: {message}"))
    }

    /// Starts it; if it ends before READY, what it said.
    pub fn try_start(&self) -> Result<Broker, String> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let before = fs::metadata(&self.log).unwrap().len();
        let mut child = self.command().stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let end = Instant::now() + PATIENCE;
        loop {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(line) if line == "READY" => break,
                Ok(_) => {}
                Err(_) => {
                    if child.try_wait().unwrap().is_some() || Instant::now() > end {
                        let _ = child.kill();
                        let _ = child.wait();
                        let text = fs::read(&self.log).unwrap();
                        return Err(
                            String::from_utf8_lossy(&text[usize::try_from(before).unwrap()..]).into_owned()
                        );
                    }
                }
            }
        }
        Ok(Broker { setup: self.clone(), pid: child.id(), child: Some(child) })
    }
}

/// A running broker. Ended in order when dropped.
pub struct Broker {
    pub setup: Setup,
    pub pid: u32,
    child: Option<Child>,
}

impl Broker {
    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.setup.socket
    }

    /// Its processes: cgrantd first, then all that it started, by program name. The keeper of a scope is none.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let mut all = vec![self.pid];
        all.extend(harness::descendants_of(self.pid));
        all.into_iter()
            .map(|pid| {
                (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned())
            })
            .collect()
    }

    /// The pid of the engine's main process.
    pub fn engine(&self) -> u32 {
        let children = harness::descendants_of(self.pid);
        let is_engine = |pid: &u32| {
            let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            executable.file_name().is_some_and(|name| name == "cgrant-engine")
                && parent(*pid) == Some(self.pid)
        };
        children.into_iter().find(is_engine).expect("no engine runs")
    }

    /// The pids of the fronts.
    pub fn fronts(&self) -> Vec<u32> {
        let is_front = |pid: &u32| {
            let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            executable.file_name().is_some_and(|name| name == "cgrant-front")
        };
        harness::descendants_of(self.pid).into_iter().filter(is_front).collect()
    }

    /// The pid of the network helper's main process.
    pub fn net(&self) -> u32 {
        let is_net = |pid: &u32| {
            let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            executable.file_name().is_some_and(|name| name == "cgrant-net") && parent(*pid) == Some(self.pid)
        };
        let mut found = None;
        // One that died is started again soon.
        wait_until("a network helper runs", || {
            found = harness::descendants_of(self.pid).into_iter().find(is_net);
            found.is_some()
        });
        found.unwrap()
    }

    /// Kills one of its processes as hard as can be.
    pub fn kill(&self, pid: u32) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }

    /// Kills all of its processes at once, but for those that serve links without it: name servers and the proxy for `[::1]`.
    pub fn kill_but_servants(&mut self) {
        let net = self.net();
        let servants = harness::descendants_of(net);
        let all = self.processes().into_iter().map(|(pid, _)| pid).filter(|pid| !servants.contains(pid));
        let all: Vec<u32> = all.collect();
        self.kill_all(&all, &servants);
    }

    /// Kills all of its processes at once.
    pub fn kill_everything(&mut self) {
        let mut all: Vec<u32> = self.processes().into_iter().map(|(pid, _)| pid).collect();
        // Those of a broker before this one, too.
        all.extend(harness::descendants().into_iter().filter(|pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            program == self.setup.program.with_file_name("cgrant-net")
        }));
        self.kill_all(&all, &[]);
    }

    fn kill_all(&mut self, all: &[u32], spared: &[u32]) {
        // The supervisor first, so that it starts nothing again.
        for pid in all {
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
        let _ = self.child.take().unwrap().wait();
        // All that were ever its: one that was killed before may still be on its way out, and holds the socket so long.
        let is_brokers = |pid: &u32| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            program.parent() == self.setup.program.parent()
                && ["cgrant-engine", "cgrant-front", "cgrant-net"]
                    .iter()
                    .any(|name| program.file_name().is_some_and(|file| file == *name))
        };
        wait_until("the broker's processes are gone", || {
            let left = harness::descendants();
            !left.iter().any(|pid| !spared.contains(pid) && (all.contains(pid) || is_brokers(pid)))
        });
    }

    /// Ends it in order; its exit status.
    pub fn stop(&mut self) -> i32 {
        let mut child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let mut status = None;
        wait_until("the broker ends after SIGTERM", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Tells it to read its policy again.
    pub fn reload(&self) {
        kill_process(Pid::from_raw(self.pid.cast_signed()).unwrap(), Signal::HUP).unwrap();
    }

    /// Starts it again after it ended, or was killed.
    pub fn start_again(&mut self) {
        let mut new = self.setup.start();
        self.pid = new.pid;
        self.child = new.child.take();
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.setup.log).unwrap_or_default()
    }

    /// Orders the test build of the engine to act at a step: `die:N`, `fail:N`, `wait:N` or `count`.
    pub fn order_fault(&self, order: &str) {
        let _ = fs::remove_file(self.setup.run_dir.join("fault.log"));
        fs::write(self.setup.run_dir.join("fault"), order).unwrap();
    }

    /// Takes the order back; the steps passed since, by name.
    pub fn fault_steps(&self) -> Vec<String> {
        let _ = fs::remove_file(self.setup.run_dir.join("fault"));
        let text = fs::read_to_string(self.setup.run_dir.join("fault.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a step takes its time as ordered; it goes on with [`fault_steps`](Self::fault_steps).
    pub fn fault_waits(&self) {
        super::wait_until("the step is reached", || {
            fs::read_to_string(self.setup.run_dir.join("fault")).is_ok_and(|text| text == "waiting")
        });
    }

    /// Did the ordered fault happen?
    pub fn fault_done(&self) -> bool {
        fs::read_to_string(self.setup.run_dir.join("fault")).is_ok_and(|text| text == "done")
    }

    /// The same for the network helper; its steps are its own.
    pub fn order_net_fault(&self, order: &str) {
        let _ = fs::remove_file(self.setup.run_dir.join("net/fault.log"));
        fs::write(self.setup.run_dir.join("net/fault"), order).unwrap();
    }

    pub fn net_fault_steps(&self) -> Vec<String> {
        let _ = fs::remove_file(self.setup.run_dir.join("net/fault"));
        let text = fs::read_to_string(self.setup.run_dir.join("net/fault.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn net_fault_done(&self) -> bool {
        fs::read_to_string(self.setup.run_dir.join("net/fault")).is_ok_and(|text| text == "done")
    }

    /// Waits until no grant is on record; for grants whose end is on its way.
    pub fn settle(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        let grants = self.setup.run_dir.join("grants");
        while checker::json_files(&grants).next().is_some() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

impl Drop for Broker {
    fn drop(&mut self) {
        if self.child.is_none() {
            return;
        }
        if std::thread::panicking() {
            self.kill_everything();
            return;
        }
        self.settle();
        let status = self.stop();
        assert_eq!(status, 0, "the broker ends with status 0 after SIGTERM");
    }
}
