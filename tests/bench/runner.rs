//! A process that runs commands and times them from start to gone: one for each view of the machine that the peers
//! need, so that samples of all can be taken in turns.
//!
//! A view is a mount namespace of its own, and perhaps an unprivileged user. The machine's mounts stay as they are.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use rustix::{
    process::set_child_subreaper,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    common::{
        User,
        host::{Host, Kind},
    },
    sample::time,
};

const SEPARATOR: char = '\x1f';
const CGROUPS: &str = "/sys/fs/cgroup";

/// How the machine looks to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// As it is.
    Machine,
    /// Only cgroup v1: a hybrid host's cgroup2 mount is out of sight.
    V1,
    /// Only cgroup2, at the usual place.
    V2,
}

/// The process.
pub struct Runner {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Runner {
    /// Starts one that sees `view`. As `user` if there is one; with subordinate ids and cgroups of its own if `files` says where
    /// its /etc files are.
    pub fn start(view: View, user: Option<&User>, files: Option<&Path>) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--runner").arg(format!("{view:?}"));
        command.arg(user.map_or_else(String::new, |user| user.uid.to_string()));
        command.arg(files.map_or_else(PathBuf::new, Path::to_owned));
        if let Some(user) = user {
            command.env("HOME", &user.home).env("XDG_RUNTIME_DIR", &user.home).current_dir(&user.home);
        }
        Self::spawn(command)
    }

    /// Starts one by a command that ends in where this program is, with what is on the machine to be seen as it is.
    pub fn of(mut command: Command) -> Self {
        command.args(["--runner", "Machine", "", ""]);
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Runs a command once.
    ///
    /// # Errors
    /// What the command said last, if it fails.
    pub fn run(&mut self, command: &[String]) -> Result<Duration, String> {
        let mut line = command.join(&SEPARATOR.to_string());
        line.push('\n');
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let (nanoseconds, failure) =
            answer.trim_end_matches('\n').split_once(' ').ok_or("the runner has ended")?;
        match failure {
            "" => Ok(Duration::from_nanos(nanoseconds.parse().unwrap())),
            failure => Err(failure.to_owned()),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Is this process to be a runner? Then the words that say which.
pub fn requested() -> Option<Vec<String>> {
    let mut words = std::env::args().skip(1);
    (words.next().as_deref() == Some("--runner")).then(|| words.collect())
}

/// The runner's main function.
pub fn main(words: &[String]) -> ExitCode {
    let [view, user, files] = words else { return ExitCode::from(2) };
    let host = Host::look();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    match view.as_str() {
        "V1" => hide_cgroup2(&host),
        "V2" => show_only_cgroup2(&host),
        _ => {}
    }
    if !files.is_empty() {
        show_files(Path::new(files));
    }
    // What a launcher leaves behind is this process's to reap, and counts as not gone.
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    if let Ok(uid) = user.parse() {
        become_user(uid);
    }
    serve();
    ExitCode::SUCCESS
}

fn hide_cgroup2(host: &Host) {
    if host.kind == Kind::Hybrid {
        umount2(&host.cgroup2().root, MntFlags::MNT_DETACH).unwrap();
    }
}

// By a bind mount: mounting cgroup2 anew would change the options of the machine's.
fn show_only_cgroup2(host: &Host) {
    if host.kind == Kind::Hybrid {
        let spare = Path::new("/tmp");
        bind(&host.cgroup2().root, spare);
        umount2(CGROUPS, MntFlags::MNT_DETACH).unwrap();
        bind(spare, Path::new(CGROUPS));
        umount2(spare, MntFlags::MNT_DETACH).unwrap();
    }
}

fn show_files(files: &Path) {
    for entry in fs::read_dir(files).unwrap().flatten() {
        let place = Path::new("/etc").join(entry.file_name());
        if place.exists() {
            bind(&entry.path(), &place);
        }
    }
}

fn bind(what: &Path, place: &Path) {
    mount(Some(what), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn become_user(uid: u32) {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[]).unwrap();
    set_thread_res_gid(gid, gid, gid).unwrap();
    set_thread_res_uid(uid, uid, uid).unwrap();
}

fn serve() {
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(SEPARATOR).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let answer = match timed(&mut command) {
            Ok(time) => format!("{} ", time.as_nanos()),
            Err(failure) => format!("0 {failure}"),
        };
        writeln!(output, "{answer}").unwrap();
        output.flush().unwrap();
    }
}

fn timed(command: &mut Command) -> Result<Duration, String> {
    let errors = tempfile()?;
    command.stderr(errors.try_clone().map_err(|error| error.to_string())?);
    let (time, status) = time(|| command.status());
    let status = status.map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(time);
    }
    let text = fs::read_to_string(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&errors)));
    let text = text.unwrap_or_default();
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no word");
    let how = status
        .code()
        .map_or_else(|| format!("signal {:?}", status.signal()), |code| format!("status {code}"));
    Err(format!("{how}: {last}"))
}

// A file without a name.
fn tempfile() -> Result<fs::File, String> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("errors", flags).map(fs::File::from).map_err(|error| error.to_string())
}
