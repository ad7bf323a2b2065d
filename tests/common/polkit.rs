//! A real polkitd on a real bus, in a place of its own: its actions are ours, its rules the test's, and people who are asked
//! are agents that the test starts.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
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
/// What asks for a password and, root by its file, tells polkit that it was the right one.
const HELPER: &str = "/usr/lib/polkit-1/polkit-agent-helper-1";
/// Where the host's own bus is.
pub const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";
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
        self.try_defaults().is_ok_and(|actions| actions.contains_key("org.cgrant.broker1.exceed-quota"))
    }

    /// What polkit says of the broker's actions without rules: for whoever it is, in a session that is not in front, and in one that is.
    pub fn defaults(&self) -> BTreeMap<String, [u32; 3]> {
        self.try_defaults().unwrap()
    }

    fn try_defaults(&self) -> Result<BTreeMap<String, [u32; 3]>, super::bus::Refused> {
        type Row = (String, String, String, String, String, String, u32, u32, u32, HashMap<String, String>);
        let rows: Vec<Row> = self.root.call(AUTHORITY_PATH, AUTHORITY, "EnumerateActions", &"")?;
        let ours = rows.into_iter().filter(|row| row.0.starts_with("org.cgrant."));
        Ok(ours.map(|row| (row.0, [row.6, row.7, row.8])).collect())
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

    /// An agent for the process, who says `yes`, `no`, or `nothing`, or does `dismiss` what asks.
    pub fn agent(&self, lab: &Lab, process: &Process, says: &str) -> Agent {
        self.agent_of(lab, process.pid, says)
    }

    /// The same for a process that the test knows by its number.
    pub fn agent_of(&self, lab: &Lab, pid: u32, says: &str) -> Agent {
        let role = ["polkit-agent", &self.address, &pid.to_string(), says];
        Agent::new(lab.root().agent(&role))
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
    /// What was started with the role [`play`], and its first line.
    pub fn new((process, line, _): (Process, String, Vec<OwnedFd>)) -> Self {
        assert_eq!(line, "ok");
        Self { process, lines: VecDeque::new() }
    }

    /// A connection of its own to a socket.
    pub fn connect(&self, path: &str) -> UnixStream {
        self.process.say(&format!("connect {path}"), &[]);
        let (line, mut fds) = self.process.hear().expect("the agent has ended");
        assert_eq!(line, "connected");
        UnixStream::from(fds.remove(0))
    }

    /// Takes back, as its user, what polkit keeps for its session.
    pub fn revoke(&mut self) {
        self.process.say("revoke", &[]);
        assert_eq!(self.hear(), "revoked");
    }

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

type Subject = (&'static str, HashMap<&'static str, Variant<'static>>);

fn subject(pid: u32) -> Subject {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    ("unix-process", HashMap::from([("pid", Variant::from(pid)), ("start-time", Variant::from(start))]))
}

fn session() -> Subject {
    let id = std::env::var("XDG_SESSION_ID").expect("this is no session of logind's");
    ("unix-session", HashMap::from([("session-id", Variant::from(id))]))
}

type Identity = (String, HashMap<String, OwnedVariant>);
type Begin = (String, String, String, HashMap<String, String>, String, Vec<Identity>);

async fn ask(
    connection: &zbus::Connection,
    method: &str,
    body: &(impl serde::Serialize + zbus::DynamicType),
) -> zbus::Result<()> {
    connection.call_method(Some(POLKIT), AUTHORITY_PATH, Some(AUTHORITY), method, body).await.map(drop)
}

/// Has the first of those who may agree type a password, as agents do (polkit-agent-helper-1.c); what came of it.
fn type_password(cookie: &str, identities: &[Identity], password: &str) -> String {
    let uid = identities.first().and_then(|(_, details)| u32::try_from(details.get("uid")?).ok());
    let user = nix::unistd::User::from_uid(uid.unwrap().into()).unwrap().unwrap();
    let mut helper = Command::new(HELPER)
        .arg(user.name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    helper.stdin.take().unwrap().write_all(format!("{cookie}\n{password}\n").as_bytes()).unwrap();
    String::from_utf8(helper.wait_with_output().unwrap().stdout).unwrap()
}

/// The role `polkit-agent ADDRESS FOR SAYS`: polkit's agent.
///
/// FOR is a pid, or `session` for the session that this runs in. SAYS is `no`, `nothing`, `dismiss`, `yes`, where this is root and polkit's own
/// helper too, which has seen a password; or a password.
pub fn play(words: [&str; 3], socket: UnixStream) -> ExitCode {
    let [address, whose, says] = words;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = Builder::address(address).build().await.unwrap();
        let mut messages = MessageStream::from(&connection);
        let subject = if whose == "session" { session() } else { subject(whose.parse().unwrap()) };
        ask(&connection, "RegisterAuthenticationAgent", &(subject, "C", "/agent")).await.unwrap();
        tell(&socket, "ok", &[]);
        socket.set_nonblocking(true).unwrap();
        let reading = tokio::net::UnixStream::from_std(socket.try_clone().unwrap()).unwrap();
        let say = |line: &str| {
            let _ = (&socket).write_all(format!("{line}\n").as_bytes());
        };
        loop {
            let message = tokio::select! {
                message = messages.next() => message,
                Ok(()) = reading.readable() => {
                    let mut buffer = [0; 256];
                    let length = match reading.try_read(&mut buffer) {
                        Ok(0) => return ExitCode::SUCCESS,
                        Ok(length) => length,
                        Err(_) => continue,
                    };
                    let words: Vec<&str> =
                        std::str::from_utf8(&buffer[..length]).unwrap().split_whitespace().collect();
                    match words.as_slice() {
                        ["connect", path] => {
                            let stream = UnixStream::connect(path).unwrap();
                            tell(&socket, "connected", &[stream.as_fd()]);
                        }
                        ["revoke"] => {
                            ask(&connection, "RevokeTemporaryAuthorizations", &(session(),)).await.unwrap();
                            say("revoked");
                        }
                        _ => say("quiet"),
                    }
                    continue;
                }
            };
            let Some(Ok(message)) = message else { return ExitCode::FAILURE };
            let header = message.header();
            let member = header.member().map_or("", |member| member.as_str());
            match member {
                "BeginAuthentication" => {
                    let (action, text, _, details, cookie, identities): Begin =
                        message.body().deserialize().unwrap();
                    let mut details: Vec<String> =
                        details.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    details.sort();
                    say(&format!("asked {action} {};text={text}", details.join(";")));
                    match says {
                        "nothing" => continue,
                        "no" => (),
                        "dismiss" => {
                            // What agents answer when somebody presses "Cancel".
                            let cancelled =
                                Message::error(&header, "org.freedesktop.PolicyKit1.Error.Cancelled");
                            let cancelled = cancelled.build(&"cancelled").unwrap();
                            connection.send(&cancelled).await.unwrap();
                            continue;
                        }
                        "yes" => {
                            let body = (0_u32, cookie, identities.first().unwrap());
                            if let Err(error) = ask(&connection, "AuthenticationAgentResponse2", &body).await
                            {
                                say(&format!("not heard: {error}"));
                            }
                        }
                        password => {
                            let said = type_password(&cookie, &identities, password);
                            if !said.ends_with("SUCCESS\n") {
                                say(&format!("not believed: {said}"));
                            }
                        }
                    }
                }
                "CancelAuthentication" => say("cancelled"),
                _ => continue,
            }
            connection.send(&Message::method_return(&header).build(&()).unwrap()).await.unwrap();
        }
    })
}
