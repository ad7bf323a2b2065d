//! A real polkitd on a real bus, in a place of its own: its actions are ours, its rules the test's, and people who are asked
//! are agents that the test starts.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
};

use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use zbus::{Message, MessageStream, OwnedVariant, Variant, connection::Builder};

use super::{Lab, Process, User, agent::tell, daemon::Daemon, wait_until};

const POLKITD: &str = "/usr/lib/polkit-1/polkitd";
const POLKIT: &str = "org.freedesktop.PolicyKit1";
const AUTHORITY_PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const AUTHORITY: &str = "org.freedesktop.PolicyKit1.Authority";
const ACTIONS: &str = include_str!("../../policy/org.cgrant.broker1.policy");
/// The uid of the bus front, where the host has no account for it: the third of the pool.
const FRONT_UID: u32 = super::lab::POOL.0 + 2;

/// What is put over the host's, in a mount namespace of each program's own.
const STAGE: &str = "set -e; d=$1; shift
mount --bind $d/passwd /etc/passwd; mount --bind $d/group /etc/group
mount --bind $d/etc /etc/polkit-1; mount --bind $d/share /usr/share/polkit-1
mount -t tmpfs tmpfs /run; exec \"$@\"";

/// The same for somebody at a terminal, whom polkit's helper for passwords serves: it knows the system's bus only, and PAM. The
/// shell there stays until a line is typed if the command is killed.
const TERMINAL: &str = "set -e; d=$1; bus=$2; shift 2
mount --bind $d/passwd /etc/passwd; mount --bind $d/group /etc/group; mount --bind $d/shadow /etc/shadow
mount -t tmpfs -o mode=755 tmpfs /run; mkdir /run/dbus; ln -s $bus /run/dbus/system_bus_socket
exec setsid --ctty sh -c '\"$@\"; c=$?; [ $c != 137 ] || read -r _; exit $c' sh \"$@\"";

/// Root's password at such a terminal.
pub const PASSWORD: &str = "secret";
/// The same as PAM has it (crypt(5), SHA-512).
const SHADOW: &str = "root:$6$cgranttest$1vAIuX27vusWshHf16nBf9YjFOosHBru75WeEeAS2ci67T9IKd0qgW5n/5HsdgUxQ.HpxMfQaRltiTmpx5V1o.:20000:0:99999:7:::\n";

/// A bus with polkit on it.
pub struct Desk {
    directory: PathBuf,
    bus: Option<Daemon>,
    pub address: String,
    polkitd: Option<Child>,
    root: super::Client,
}

fn command(directory: &PathBuf, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", STAGE, "stage"]).arg(directory).arg(program);
    command
}

impl Desk {
    /// A bus that lets `users` in, without polkit.
    pub fn without_polkit(lab: &Lab, users: &[&User]) -> Self {
        let directory = lab.scratch.join("desk");
        for (name, mode) in [("etc/rules.d", 0o755), ("share/actions", 0o755), ("share/rules.d", 0o755)] {
            fs::create_dir_all(directory.join(name)).unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut passwd = fs::read_to_string("/etc/passwd").unwrap();
        if !passwd.contains("\ncgrant-bus:") {
            passwd += &format!("cgrant-bus:x:{FRONT_UID}:{FRONT_UID}::/:/usr/sbin/nologin\n");
        }
        for User { uid, gid, .. } in users {
            passwd += &format!("u{uid}:x:{uid}:{gid}::/:/bin/sh\n");
        }
        fs::write(directory.join("passwd"), passwd).unwrap();
        fs::copy("/etc/group", directory.join("group")).unwrap();
        fs::write(directory.join("share/actions/org.cgrant.broker1.policy"), ACTIONS).unwrap();
        let bus = Daemon::start_by(lab, command(&directory, "dbus-daemon"));
        let address = bus.address.clone();
        let root = super::Client::on_bus(&address, POLKIT);
        Self { directory, bus: Some(bus), address, polkitd: None, root }
    }

    pub fn start(lab: &Lab, users: &[&User]) -> Self {
        let mut desk = Self::without_polkit(lab, users);
        desk.start_polkit();
        desk
    }

    pub fn start_polkit(&mut self) {
        let mut command = command(&self.directory, POLKITD);
        command.arg("--no-debug").env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.polkitd = Some(command.spawn().unwrap());
        wait_until("polkit is on the bus", || self.knows_actions());
    }

    fn knows_actions(&self) -> bool {
        type Row = (String, String, String, String, String, String, u32, u32, u32, HashMap<String, String>);
        let rows: Result<Vec<Row>, _> = self.root.call(AUTHORITY_PATH, AUTHORITY, "EnumerateActions", &"");
        rows.is_ok_and(|rows| rows.iter().any(|row| row.0 == "org.cgrant.broker1.exceed-quota"))
    }

    pub fn stop_polkit(&mut self) {
        if let Some(mut polkitd) = self.polkitd.take() {
            let _ = polkitd.kill();
            let _ = polkitd.wait();
        }
    }

    /// Has polkitd do nothing at all, or go on.
    pub fn hold_polkit(&self, held: bool) {
        let pid = Pid::from_child(self.polkitd.as_ref().unwrap());
        kill_process(pid, if held { Signal::STOP } else { Signal::CONT }).unwrap();
    }

    /// Ends the bus and starts another one at its address.
    pub fn start_bus_again(&mut self, lab: &Lab) {
        self.stop_polkit();
        self.bus = None;
        let _ = fs::remove_file(lab.scratch.join("bus.socket"));
        self.bus = Some(Daemon::start_by(lab, command(&self.directory, "dbus-daemon")));
        self.root = super::Client::on_bus(&self.address, POLKIT);
        self.start_polkit();
    }

    /// Puts rules of the administrator's in force; polkitd is started anew.
    pub fn rules(&mut self, text: &str) {
        fs::write(self.directory.join("etc/rules.d/10-test.rules"), text).unwrap();
        self.stop_polkit();
        self.start_polkit();
    }

    /// An agent for the process, who says `yes`, `no`, or `nothing`.
    pub fn agent(&self, lab: &Lab, process: &Process, says: &str) -> Agent {
        self.agent_of(lab, process.pid, says)
    }

    /// The same for a process that the test knows by its number.
    pub fn agent_of(&self, lab: &Lab, pid: u32, says: &str) -> Agent {
        let role = ["polkit-agent", &self.address, &pid.to_string(), says];
        let (process, line, _) = lab.root().agent(&role);
        assert_eq!(line, "ok");
        Agent { process, lines: VecDeque::new() }
    }

    /// A command of a user's at a terminal that is its own, which its standard input has to be.
    pub fn at_terminal(&self, command: &Command) -> Command {
        let shadow = self.directory.join("shadow");
        fs::write(&shadow, SHADOW).unwrap();
        fs::set_permissions(&shadow, fs::Permissions::from_mode(0o600)).unwrap();
        let bus = self.address.strip_prefix("unix:path=").unwrap();
        let mut staged = Command::new("unshare");
        staged.args(["--mount", "sh", "-c", TERMINAL, "stage"]).arg(&self.directory).arg(bus);
        staged.arg(command.get_program()).args(command.get_args()).env_clear();
        staged.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        staged
    }

    /// What polkitd said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("polkitd said:\n{}", self.log());
        }
        self.stop_polkit();
    }
}

/// Somebody who can be asked.
pub struct Agent {
    pub process: Process,
    lines: VecDeque<String>,
}

impl Agent {
    /// What it was asked next: `asked ACTION KEY=VALUE;…`, or `cancelled`.
    pub fn hear(&mut self) -> String {
        while self.lines.is_empty() {
            let text = self.process.hear().expect("the agent hears nothing").0;
            self.lines.extend(text.lines().map(str::to_owned));
        }
        self.lines.pop_front().unwrap()
    }

    /// Has it been asked nothing more by now?
    pub fn is_left_alone(&mut self) -> bool {
        self.process.say("quiet?", &[]);
        let line = self.hear();
        assert!(line == "quiet" || line.starts_with("asked") || line == "cancelled", "{line}");
        line == "quiet"
    }
}

fn subject(pid: u32) -> (&'static str, HashMap<&'static str, Variant<'static>>) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    ("unix-process", HashMap::from([("pid", Variant::from(pid)), ("start-time", Variant::from(start))]))
}

type Identity = (String, HashMap<String, OwnedVariant>);
type Begin = (String, String, String, HashMap<String, String>, String, Vec<Identity>);

/// The role `polkit-agent ADDRESS PID SAYS`: polkit's agent and, as root, its helper that has seen a password.
pub fn play(words: [&str; 3], socket: UnixStream) -> ExitCode {
    let [address, pid, says] = words;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = Builder::address(address).build().await.unwrap();
        let mut messages = MessageStream::from(&connection);
        let body = (subject(pid.parse().unwrap()), "C", "/agent");
        let method = "RegisterAuthenticationAgent";
        connection.call_method(Some(POLKIT), AUTHORITY_PATH, Some(AUTHORITY), method, &body).await.unwrap();
        tell(&socket, "ok", &[]);
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixStream::from_std(socket).unwrap();
        let say = |line: &str| {
            let _ = socket.try_write(format!("{line}\n").as_bytes());
        };
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                Ok(()) = socket.readable() => {
                    match socket.try_read(&mut [0; 64]) {
                        Ok(0) => return ExitCode::SUCCESS,
                        Ok(_) => say("quiet"),
                        Err(_) => (),
                    }
                    continue;
                }
            };
            let Some(Ok(message)) = message else { return ExitCode::FAILURE };
            let header = message.header();
            match header.member().map_or("", |member| member.as_str()) {
                "BeginAuthentication" => {
                    let (action, text, _, details, cookie, identities): Begin =
                        message.body().deserialize().unwrap();
                    let mut details: Vec<String> =
                        details.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    details.sort();
                    say(&format!("asked {action} {};text={text}", details.join(";")));
                    match says {
                        "yes" => {
                            let body = (0_u32, cookie, identities.first().unwrap());
                            let method = "AuthenticationAgentResponse2";
                            let answered = connection
                                .call_method(Some(POLKIT), AUTHORITY_PATH, Some(AUTHORITY), method, &body)
                                .await;
                            if let Err(error) = answered {
                                say(&format!("not heard: {error}"));
                            }
                            connection
                                .send(&Message::method_return(&header).build(&()).unwrap())
                                .await
                                .unwrap();
                        }
                        "no" => {
                            connection
                                .send(&Message::method_return(&header).build(&()).unwrap())
                                .await
                                .unwrap();
                        }
                        _ => (),
                    }
                }
                "CancelAuthentication" => {
                    say("cancelled");
                    connection.send(&Message::method_return(&header).build(&()).unwrap()).await.unwrap();
                }
                _ => (),
            }
        }
    })
}
