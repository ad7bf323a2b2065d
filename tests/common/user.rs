//! Real unprivileged users: a uid and gid without any entry in /etc/passwd, supplementary groups, a HOME of
//! mode 0700, umask 077, no capability, no session. And processes of theirs.

use std::{
    ffi::OsStr,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Client, agent, harness, wait_until};

/// A user.
#[derive(Debug, Clone)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: PathBuf,
    /// Where the programs are that it runs.
    pub programs: PathBuf,
}

/// A running process of a user's. Killed and reaped when dropped.
pub struct Process {
    child: Child,
    pub pid: u32,
    pub pidfd: OwnedFd,
    socket: Option<UnixStream>,
}

impl User {
    /// The user `uid` with a home below `scratch`; `programs` is a directory that everybody can reach.
    pub fn new(uid: u32, groups: &[u32], scratch: &Path, programs: &Path) -> Self {
        let home = scratch.join(format!("home-{uid}"));
        std::fs::create_dir_all(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { uid, gid: uid, groups: groups.to_vec(), home, programs: programs.to_owned() }
    }

    /// A command that runs as this user. The test program drops to the user by itself and executes it: one program, where
    /// setpriv and a shell would be two, because emulated machines are slow.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.dropped();
        command.arg("exec").arg(program);
        command
    }

    /// A command to which the words of `agent::main` are added that say what is to be done as this user.
    pub fn dropped(&self) -> Command {
        self.dropped_to(&self.gid.to_string())
    }

    fn dropped_to(&self, gid: &str) -> Command {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        let mut command = Command::new(self.programs.join("tests"));
        command.args(["--agent", "as", &self.uid.to_string(), gid, &groups.join(",")]);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", &self.home)
            .current_dir(&self.home)
            .stdin(Stdio::null());
        command
    }

    /// Starts `program` in the background, without output.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        let mut command = self.command(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let process = Process::start(&mut command, None);
        // From now on it has the user's ids and nothing else.
        let ids = format!("Uid:\t{0}\t{0}\t{0}\t{0}", self.uid);
        wait_until("it runs as the user", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
            status.lines().any(|line| line == ids) && process.command_name() != "tests"
        });
        process
    }

    /// A process that only waits.
    pub fn sleeper(&self) -> Process {
        self.spawn("sleep", &["1000"])
    }

    /// Starts an agent and hears its first line.
    pub fn agent(&self, role: &[&str]) -> (Process, String, Vec<OwnedFd>) {
        self.agent_as(&self.gid.to_string(), role)
    }

    fn agent_as(&self, gid: &str, role: &[&str]) -> (Process, String, Vec<OwnedFd>) {
        let mut command = self.dropped_to(gid);
        command.arg("role").args(role);
        Process::agent(command)
    }

    /// An agent as uid and gid `id` of a user namespace that this user made and root has mapped.
    pub fn agent_in(&self, namespace: &Process, id: u32, role: &[&str]) -> (Process, String, Vec<OwnedFd>) {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--user=/proc/{}/ns/user", namespace.pid))
            .args([format!("-S{id}"), format!("-G{id}")]);
        command.arg(self.programs.join("tests")).arg("--role").args(role);
        Process::agent(command)
    }

    /// A user namespace of this user's, and the process that lives in it.
    pub fn userns(&self) -> (Process, OwnedFd) {
        let (process, line, mut fds) = self.agent(&["userns"]);
        assert_eq!(line, "ok");
        (process, fds.remove(0))
    }

    /// A bare connection to a socket, made by a process of this user's.
    pub fn connect(&self, socket: &Path) -> (Process, UnixStream) {
        let (process, line, mut fds) = self.agent(&["connect", socket.to_str().unwrap()]);
        assert_eq!(line, "ok", "connecting to {}", socket.display());
        (process, UnixStream::from(fds.remove(0)))
    }

    /// A D-Bus client of this user's on the broker's own socket.
    pub fn client(&self, socket: &Path) -> Client {
        let (process, stream) = self.connect(socket);
        Client::new(stream, self.uid, process)
    }

    /// The same, connected by a set-group-ID program of another group.
    pub fn client_of_group(&self, socket: &Path, effective: u32) -> Client {
        let role = ["connect", socket.to_str().unwrap()];
        let (process, line, mut fds) = self.agent_as(&format!("{}+{effective}", self.gid), &role);
        assert_eq!(line, "ok");
        Client::new(UnixStream::from(fds.remove(0)), self.uid, process)
    }

    /// The same, of a broker that is being started again: waits until it serves.
    pub fn client_again(&self, socket: &Path) -> Client {
        let mut client = None;
        wait_until("the broker serves again", || {
            let (process, line, mut fds) = self.agent(&["connect", socket.to_str().unwrap()]);
            if line != "ok" {
                return false;
            }
            let stream = UnixStream::from(fds.remove(0));
            client = Client::try_new(stream, self.uid, process).ok().filter(Client::answers);
            client.is_some()
        });
        client.unwrap()
    }

    /// Runs the command-line client as this user, in this cgroup from before it connects.
    pub fn cgrant_in(&self, place: &Path, socket: &Path, arguments: &[&str]) -> Output {
        let mut command = self.command("sh");
        command
            .args(["-c", "read -r _; exec \"$0\" \"$@\""])
            .arg(self.programs.join("cgrant"))
            .args(arguments);
        command.env("CGRANT_SOCKET", socket).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::fs::write(place.join("cgroup.procs"), child.id().to_string()).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs the command-line client as this user.
    pub fn cgrant(&self, socket: &Path, arguments: &[&str]) -> Output {
        let mut command = self.command(self.programs.join("cgrant"));
        command.args(arguments).env("CGRANT_SOCKET", socket);
        command.output().unwrap()
    }
}

impl Process {
    fn start(command: &mut Command, socket: Option<UnixStream>) -> Self {
        let child = command.spawn().unwrap();
        let pid = child.id();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        Self { child, pid, pidfd, socket }
    }

    /// Starts any command as a process that is killed with the test.
    pub fn of(command: &mut Command) -> Self {
        Self::start(command, None)
    }

    /// A command that becomes an agent, and the agent's first line.
    pub fn agent(mut command: Command) -> (Self, String, Vec<OwnedFd>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let process = Self::start(&mut command, Some(ours));
        // Its end of the pair is the agent's alone.
        drop(command);
        let (line, fds) = process.hear().expect("the agent ended without a word");
        (process, line, fds)
    }

    /// The next line of an agent, with descriptors; `None` when it has ended.
    pub fn hear(&self) -> Option<(String, Vec<OwnedFd>)> {
        agent::hear(self.socket.as_ref().unwrap())
    }

    /// Says `go` to an agent that waits for it and returns its next line; `None` when it died of it.
    pub fn go(&self) -> Option<String> {
        self.socket.as_ref().unwrap().write_all(b"go").unwrap();
        self.hear().map(|(line, _)| line)
    }

    /// Says `go` to an agent; its answer is for [`hear`](Self::hear).
    pub fn say_go(&self) {
        self.socket.as_ref().unwrap().write_all(b"go").unwrap();
    }

    /// Says a line to an agent.
    pub fn say(&self, line: &str, fds: &[std::os::fd::BorrowedFd<'_>]) {
        agent::tell(self.socket.as_ref().unwrap(), line, fds);
    }

    /// Gives a `through-fd` agent a descriptor; what opening each name relative to it came to.
    pub fn give(&self, fd: &OwnedFd, names: &[&'static str]) -> Vec<(&'static str, String)> {
        agent::tell(self.socket.as_ref().unwrap(), &names.join(" "), &[fd.as_fd()]);
        let answers = self.hear().expect("the agent ended").0;
        names.iter().copied().zip(answers.split(' ').map(str::to_owned)).collect()
    }

    /// Lets a `files` agent do something; its answer is `ok TEXT` or the error's name.
    pub fn try_file(&self, verb: &str, path: &Path, argument: &str) -> String {
        let line = format!("{verb}\t{}\t{argument}", path.display());
        self.socket.as_ref().unwrap().write_all(line.as_bytes()).unwrap();
        self.hear().expect("the agent ended").0
    }

    /// The name of the program that it is now.
    pub fn command_name(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default().trim().to_owned()
    }

    /// The state letter of /proc/PID/stat; `None` when it is gone.
    pub fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// Is it running (not dead and waiting to be reaped)?
    pub fn is_alive(&self) -> bool {
        !matches!(self.state(), None | Some('Z' | 'X'))
    }

    /// Its lines of /proc/PID/cgroup: hierarchy and path.
    pub fn cgroups(&self) -> Vec<(String, String)> {
        cgroups_of(self.pid)
    }

    /// Kills and reaps it.
    pub fn kill(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits for its end; the signal that ended it, if any.
    pub fn wait_signal(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("a process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().signal()
    }

    /// Waits for its end; its exit status, if no signal ended it.
    pub fn wait_code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("a process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

/// The lines of /proc/PID/cgroup: hierarchy and path.
pub fn cgroups_of(pid: u32) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, name, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((if name.is_empty() { "cgroup2".to_owned() } else { name.to_owned() }, path.to_owned()))
        })
        .collect()
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.socket.take());
        let children = harness::descendants_of(self.pid);
        self.kill();
        for pid in children {
            let _ = rustix::process::kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
    }
}
