//! The parts of engine, front, scope helper and keeper, played by the name that the program is started under.

use std::{
    fs,
    io::Write,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cgrant_sys::{Channel, Pidfd, inherited};
use cgrant_wire::boot::{CONTROL_FD, FromChild, Placement, ScopeReport, ToChild};
use nix::fcntl::{FcntlArg, fcntl};

/// Plays the part that the program's name asks for; nothing if it is the test itself.
pub fn play() -> Option<ExitCode> {
    let first = std::env::args().next().unwrap_or_default();
    let name = Path::new(&first).file_name()?.to_str()?.to_owned();
    match name.as_str() {
        "cgrantd" => Some(cgrant_supervisor::main()),
        "activate" => Some(activate()),
        "cgrant-engine" => Some(Player::new("engine").engine()),
        "cgrant-front" => Some(Player::new("front").front()),
        "cgrant-net" => Some(Player::new("net").net()),
        "cgrant-scope" => Some(scope()),
        "keeper" => {
            std::thread::sleep(Duration::from_secs(120));
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}

/// sd_listen_fds(3): the socket, which came as standard input, is descriptor 3, and the variable names this
/// process, which becomes cgrantd.
fn activate() -> ExitCode {
    let number = fcntl(std::io::stdin(), FcntlArg::F_DUPFD(CONTROL_FD)).unwrap();
    assert_eq!(number, CONTROL_FD);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg0("cgrantd").args(std::env::args().skip(1)).stdin(Stdio::null());
    command.env("LISTEN_PID", std::process::id().to_string()).env("LISTEN_FDS", "1");
    panic!("{}", command.exec());
}

fn stage() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn note(event: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(stage().join("events")).unwrap();
    file.write_all(format!("{now} {event}\n").as_bytes()).unwrap();
}

fn mode(role: &str) -> String {
    fs::read_to_string(stage().join(format!("{role}.mode"))).unwrap_or_default()
}

/// The helper that speaks with systemd. The keeper outlives it, as the real one does.
#[allow(clippy::zombie_processes)]
fn scope() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    note(&format!("scope asked {}", args.join(" ")));
    let control = Channel::from_fd(inherited::take(CONTROL_FD).unwrap()).unwrap();
    if args == ["leave"] {
        let received = control.receive().unwrap().unwrap();
        let report: ScopeReport = cgrant_wire::decode(&received.bytes).unwrap();
        note(&format!("scope left {}", report.placements[0].path));
        let keeper = Pidfd::from_fd(received.fds.into_iter().next().unwrap()).unwrap();
        keeper.send_signal(cgrant_sys::pidfd::Signal::TERM).unwrap();
        return ExitCode::SUCCESS;
    }
    let mode = mode("scope");
    if mode == "refuse" {
        let answer: Result<ScopeReport, String> = Err("it is asleep".to_owned());
        control.send(&cgrant_wire::encode(&answer).unwrap(), &[]).unwrap();
        return ExitCode::FAILURE;
    }
    let keeper = Command::new(std::env::current_exe().unwrap())
        .arg0("keeper")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    note(&format!("keeper pid {}", keeper.id()));
    let pidfd = Pidfd::open(keeper.id()).unwrap();
    let placements =
        vec![Placement { hierarchy: "cgroup2".to_owned(), path: "/system.slice/cgrant.scope".to_owned() }];
    let answer: Result<ScopeReport, String> = Ok(ScopeReport { placements, made: mode == "made" });
    control.send(&cgrant_wire::encode(&answer).unwrap(), &[pidfd.as_fd()]).unwrap();
    ExitCode::SUCCESS
}

struct Player {
    role: &'static str,
    control: Channel,
}

impl Player {
    fn new(role: &'static str) -> Self {
        note_surroundings(role);
        let control = Channel::from_fd(inherited::take(CONTROL_FD).unwrap()).unwrap();
        Self { role, control }
    }

    fn say(&self, message: &FromChild) {
        let _ = self.control.send(&cgrant_wire::encode(message).unwrap(), &[]);
    }

    fn next(&self) -> Option<(ToChild, Vec<std::os::fd::OwnedFd>)> {
        let received = self.control.receive().unwrap()?;
        Some((cgrant_wire::decode(&received.bytes).unwrap(), received.fds))
    }

    fn engine(self) -> ExitCode {
        if mode(self.role) == "fail" {
            self.say(&FromChild::Failed("the record is unreadable".to_owned()));
            return ExitCode::from(3);
        }
        // Everything that came with the boot message is kept, as the real engine does.
        let Some((ToChild::Engine(boot), kept)) = self.next() else { panic!("no boot message") };
        for placement in &boot.placements {
            note(&format!("engine placement {} {}", placement.hierarchy, placement.path));
        }
        let listener = &kept[usize::from(boot.listeners[0].0)];
        let address = rustix::net::getsockname(listener).unwrap();
        let address = rustix::net::SocketAddrUnix::try_from(address).unwrap();
        note(&format!("engine listener {}", address.path().unwrap().to_string_lossy()));
        self.say(&FromChild::Ready);
        self.listen()
    }

    fn front(self) -> ExitCode {
        match mode(self.role).as_str() {
            "die" => return ExitCode::from(4),
            "alive" => loop {
                if self.control.send(&cgrant_wire::encode(&FromChild::Alive).unwrap(), &[]).is_err() {
                    return ExitCode::FAILURE;
                }
            },
            "flood" => loop {
                if self.control.send(&cgrant_wire::encode(&FromChild::Ready).unwrap(), &[]).is_err() {
                    return ExitCode::FAILURE;
                }
            },
            _ => {}
        }
        let Some((ToChild::Front(boot), _kept)) = self.next() else { panic!("no boot message") };
        note(&format!("front boot {:?} {} {}", boot.kind, boot.bus_address, boot.instance));
        self.say(&FromChild::Ready);
        self.listen()
    }

    fn net(self) -> ExitCode {
        if mode(self.role) == "die" {
            return ExitCode::from(4);
        }
        if mode(self.role) == "freeze" {
            freeze();
        }
        let Some((ToChild::Net(boot), kept)) = self.next() else { panic!("no boot message") };
        let directory = rustix::fs::fstat(&kept[usize::from(boot.directory.0)]).unwrap();
        let same =
            directory.st_ino == std::os::unix::fs::MetadataExt::ino(&fs::metadata(&boot.path).unwrap());
        note(&format!("net boot {} {} {} {same}", boot.instance, boot.domain, boot.uid));
        self.say(&FromChild::Ready);
        self.listen()
    }

    fn listen(self) -> ExitCode {
        loop {
            match self.next() {
                None => {
                    note(&format!("{} eof", self.role));
                    if self.lingers() {
                        std::thread::sleep(Duration::from_secs(1));
                        note(&format!("{} lingered", self.role));
                    }
                    return ExitCode::SUCCESS;
                }
                Some((ToChild::Stop, _)) => {
                    note(&format!("{} stop", self.role));
                    if mode(self.role) != "deaf" {
                        return ExitCode::SUCCESS;
                    }
                }
                Some((ToChild::Reload, _)) => {
                    note(&format!("{} reload", self.role));
                    let bad = mode(self.role) == "bad-reload";
                    self.say(&FromChild::Reloaded(if bad {
                        Err("line 3 is wrong".to_owned())
                    } else {
                        Ok(())
                    }));
                }
                Some((ToChild::NetStarted(number), fds)) => {
                    note(&format!("{} net-started {}", self.role, fds.len()));
                    if mode(self.role) == format!("hangs-{number}") {
                        self.say(&FromChild::NetHangs(number));
                    }
                }
                Some((ToChild::AreYouAlive, _)) => {
                    note(&format!("{} asked", self.role));
                    if mode(self.role) != "hang" {
                        self.say(&FromChild::Alive);
                    }
                }
                Some((ToChild::NetStuck, _)) => note(&format!("{} net-stuck", self.role)),
                Some((ToChild::FrontStarted(kind), _)) => {
                    note(&format!("{} front-started {kind:?}", self.role))
                }
                Some((ToChild::Engine(_) | ToChild::Front(_) | ToChild::Net(_), _)) => {
                    panic!("booted twice")
                }
            }
        }
    }

    /// Does it take its time to end when the supervisor is gone?
    fn lingers(&self) -> bool {
        stage().join(format!("{}.lingers", self.role)).exists()
    }
}

/// Joins a cgroup that the test freezes: of cgroup v1, whose frozen processes can't even be killed.
fn freeze() {
    let cgroup = fs::read_to_string(stage().join("freezer")).unwrap();
    fs::write(Path::new(&cgroup).join("tasks"), "0").unwrap();
}

/// What a child can see of the process that started it.
fn note_surroundings(role: &str) {
    let mut fds: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    fds.sort_unstable();
    // The last is the one that this very list was read through.
    fds.pop();
    let fds: Vec<_> = fds.iter().map(ToString::to_string).collect();
    note(&format!("{role} fds {}", fds.join(" ")));
    let environment = if std::env::vars_os().next().is_none() { "empty" } else { "something" };
    note(&format!("{role} environment {environment}"));
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for (key, word) in [("SigBlk:", "blocked"), ("CapBnd:", "bounded"), ("NoNewPrivs:", "no-new-privs")] {
        let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
        note(&format!("{role} {word} {value}"));
    }
    note(&format!("{role} stdin {}", fs::read_link("/proc/self/fd/0").unwrap().display()));
    note(&format!("{role} pid {}", std::process::id()));
}
