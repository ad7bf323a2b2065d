//! What tests of CGManager's interface share: a broker with its socket, cgroups of the test's own for callers to be in, and a
//! client of plain and Scm calls. The client knows the contract only; it shares no code with the project.

use std::{
    fmt::Debug,
    fs,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{PermissionsExt, chown},
            net::{UnixDatagram, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, UCred, recvmsg, sendmsg, sockopt,
    },
    process::{Gid, Pid, Signal, Uid, kill_process},
};
use serde::de::DeserializeOwned;
use zbus::{
    Connection, Fd, Message, Type, Variant,
    connection::{AuthMechanism, Builder},
    wire::StructureBuilder,
};

use super::{Broker, Lab, PATIENCE, Process, User, broker::Setup, wait_until};

/// The object.
pub const PATH: &str = "/org/linuxcontainers/cgmanager";
/// The interface.
pub const INTERFACE: &str = "org.linuxcontainers.cgmanager0_0";
/// The name of most failures.
pub const INVALID_ARGS: &str = "org.freedesktop.DBus.Error.InvalidArgs";
/// Where a cgroup2 cgroup that has cgroups in it has its processes; clients don't see it.
pub const LEAF: &str = ".cgm_leaf";
/// Longest datagram that a test reads.
const MOST: usize = 4 * 1024 * 1024;

/// A broker that serves CGManager's socket in the lab's directory `cgmanager`.
pub struct Manager {
    /// The broker.
    pub broker: Broker,
    /// CGManager's socket.
    pub socket: PathBuf,
}

impl Manager {
    /// Where its socket is.
    pub fn socket_of(lab: &Lab) -> PathBuf {
        lab.scratch.join("cgmanager/sock")
    }

    /// A broker with that socket, to be started with more options.
    pub fn setup(lab: &Lab) -> Setup {
        lab.setup().arguments(&["--cgmanager-socket", Self::socket_of(lab).to_str().unwrap()])
    }

    /// Starts one.
    pub fn start(lab: &Lab) -> Self {
        Self { broker: Self::setup(lab).start(), socket: Self::socket_of(lab) }
    }

    /// Its address, for clients that take one.
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// A client whose peer is a process of this user's, in the cgroups of this program until it is moved.
    pub fn client(&self, user: &User) -> Peer {
        Peer::of(user, &self.socket)
    }

    /// A client whose peer is this program itself.
    pub fn own_client(&self) -> Peer {
        Peer::over(UnixStream::connect(&self.socket).unwrap(), None)
    }
}

/// A cgroup of the test's, right below the root of a controller's hierarchy. What is in it is killed and removed in the end.
pub struct Jail {
    /// Its directory.
    pub dir: PathBuf,
    /// Its path from the hierarchy's root.
    pub path: String,
}

impl Jail {
    /// A new one, root's, in the hierarchy of a controller.
    pub fn new(lab: &Lab, controller: &str, name: &str) -> Self {
        let tree = lab.host.with(controller).unwrap_or_else(|| panic!("no controller {controller}"));
        let path = format!("/cgm-{}-{name}", lab.instance);
        let dir = tree.root.join(&path[1..]);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, path }
    }

    /// Gives it away as an administrator does: the directory and what processes are moved by, not its limits.
    pub fn give_to(&self, user: &User) {
        self.give_to_ids(user.uid, user.gid);
    }

    /// The same, to ids.
    pub fn give_to_ids(&self, uid: u32, gid: u32) {
        let files = ["", "tasks", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
        for file in files.map(|file| self.dir.join(file)).iter().filter(|file| file.exists()) {
            chown(file, Some(uid), Some(gid)).unwrap();
        }
    }

    /// Moves a process into it, with all of its threads; on cgroup2 into its leaf, if it has one by now.
    pub fn put(&self, pid: u32) {
        let leaf = self.dir.join(LEAF);
        let place = if leaf.exists() { &leaf } else { &self.dir };
        fs::write(place.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// A command as a process that enters it before it becomes what it is to be.
    pub fn command(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        let enter = format!(r#"d=$0/{LEAF}; [ -d "$d" ] || d=$0; echo $$ >"$d/cgroup.procs" && exec "$@""#);
        inside.args(["-c", &enter]).arg(&self.dir);
        inside.arg(command.get_program()).args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        inside
    }

    /// The processes of a cgroup below it, or of itself by an empty path.
    pub fn processes(&self, below: &str) -> Vec<u32> {
        processes_of(&self.dir.join(below))
    }

    /// Is there such a cgroup or file below it?
    pub fn has(&self, below: &str) -> bool {
        self.dir.join(below).exists()
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let own = std::process::id();
        let is_left = || {
            for dir in below(&self.dir) {
                for pid in processes_of(&dir).into_iter().filter(|pid| *pid != own) {
                    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
                }
                let _ = fs::remove_dir(&dir);
            }
            self.dir.exists()
        };
        if std::thread::panicking() {
            for _ in 0..200 {
                if !is_left() {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            return;
        }
        wait_until("a test's cgroup is gone", || !is_left());
    }
}

/// A cgroup and all below it, deepest first.
fn below(top: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    let children = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<PathBuf> = children.flat_map(|child| below(&child.path())).collect();
    all.push(top.to_owned());
    all
}

/// The processes of a cgroup.
pub fn processes_of(dir: &Path) -> Vec<u32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub enum Argument<'a> {
    /// `s`
    Text(&'a str),
    /// `i`
    Number(i32),
    /// `h`
    Socket(BorrowedFd<'a>),
}

impl<'a> From<&'a str> for Argument<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Argument<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<i32> for Argument<'_> {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Argument<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.cast_signed())
    }
}

/// The arguments of a call: `arguments!["memory", "a", 1]`.
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$($crate::common::cgmanager::Argument::from($argument)),*] as &[$crate::common::cgmanager::Argument<'_>] };
}

/// An error that was answered: its name and its text; `disconnected` and why, if there was no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Failure {
    /// The failure that most are told as, with this text.
    pub fn invalid(text: &str) -> Self {
        Self { name: INVALID_ARGS.to_owned(), text: text.to_owned() }
    }

    fn of(error: &zbus::Error) -> Self {
        let (name, text) = match error {
            zbus::Error::MethodError(name, text, _) => (name.to_string(), text.clone().unwrap_or_default()),
            zbus::Error::FDO(error) => {
                let error: &dyn zbus::DBusError = &**error;
                (error.name().to_string(), error.description().unwrap_or_default().to_owned())
            }
            error => ("disconnected".to_owned(), error.to_string()),
        };
        Self { name, text }
    }
}

/// A client on CGManager's socket.
pub struct Peer {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    /// The process that made the connection: the requestor of its plain calls, and the proxy of its Scm calls. `None` if that is
    /// this program.
    pub process: Option<Process>,
}

impl Peer {
    /// A connection that a process of a user's has made.
    pub fn of(user: &User, socket: &Path) -> Self {
        let (process, stream) = user.connect(socket);
        Self::over(stream, Some(process))
    }

    /// Speaks over a connection, which a process has made.
    pub fn over(stream: UnixStream, process: Option<Process>) -> Self {
        Self::try_over(stream, process).unwrap_or_else(|error| panic!("no connection: {error}"))
    }

    /// The same where it may be refused.
    pub fn try_over(stream: UnixStream, process: Option<Process>) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(async {
            let builder = Builder::unix_stream(stream).p2p().auth_mechanism(AuthMechanism::Anonymous);
            tokio::time::timeout(PATIENCE, builder.build()).await
        });
        match connection {
            Ok(Ok(connection)) => Ok(Self { runtime, connection, process }),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it took too long".to_owned()),
        }
    }

    /// The pid of the process behind it.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or_else(std::process::id, |process| process.pid)
    }

    /// Calls a method of any interface at any path.
    pub fn call_at(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        arguments: &[Argument<'_>],
    ) -> Result<Message, Failure> {
        let called = self.runtime.block_on(async {
            let call = async {
                let connection = &self.connection;
                if arguments.is_empty() {
                    return connection.call_method(None::<&str>, path, Some(interface), method, &()).await;
                }
                let body = arguments.iter().fold(StructureBuilder::new(), |body, argument| match argument {
                    Argument::Text(text) => body.append_field(Variant::from(*text)),
                    Argument::Number(number) => body.append_field(Variant::from(*number)),
                    Argument::Socket(fd) => {
                        body.append_field(Variant::from(Fd::from(fd.try_clone_to_owned().unwrap())))
                    }
                });
                let body = body.build().unwrap();
                connection.call_method(None::<&str>, path, Some(interface), method, &body).await
            };
            tokio::time::timeout(PATIENCE, call).await
        });
        called.unwrap_or_else(|_| panic!("no answer to {method}")).map_err(|error| Failure::of(&error))
    }

    /// Calls a method of CGManager's interface.
    pub fn call(&self, method: &str, arguments: &[Argument<'_>]) -> Result<Message, Failure> {
        self.call_at(PATH, INTERFACE, method, arguments)
    }

    /// Calls one that goes well; what it answers.
    #[track_caller]
    pub fn get<R: DeserializeOwned + Type>(&self, method: &str, arguments: &[Argument<'_>]) -> R {
        let reply = self.call(method, arguments).unwrap_or_else(|failure| panic!("{method}: {failure:?}"));
        reply.body().deserialize().unwrap()
    }

    /// Calls one that goes well and answers nothing.
    #[track_caller]
    pub fn does(&self, method: &str, arguments: &[Argument<'_>]) {
        self.get::<()>(method, arguments);
    }

    /// Calls one that fails.
    #[track_caller]
    pub fn fails(&self, method: &str, arguments: &[Argument<'_>]) -> Failure {
        match self.call(method, arguments) {
            Ok(reply) => panic!("{method} went well: {reply:?}"),
            Err(failure) => failure,
        }
    }

    /// Begins an Scm call, with the socket as its last argument. The daemon's first byte is in it before the reply comes.
    pub fn begin(&self, method: &str, arguments: &[Argument<'_>]) -> Result<Scm, Failure> {
        let (scm, theirs) = Scm::pair();
        let all = [arguments, &[Argument::Socket(theirs.as_fd())]].concat();
        let reply = self.call(method, &all)?;
        assert!(reply.body().is_empty(), "{method}: {reply:?}");
        assert_eq!(scm.receive_now().map(|(bytes, _)| bytes), Some(b"1".to_vec()), "{method}");
        Ok(scm)
    }

    /// An Scm call up to its result: sends these credentials, one or two, when each is asked for.
    #[track_caller]
    pub fn scm(&self, method: &str, arguments: &[Argument<'_>], credentials: &[Credential]) -> Scm {
        let scm = self.begin(method, arguments).unwrap_or_else(|failure| panic!("{method}: {failure:?}"));
        for (nth, credential) in credentials.iter().enumerate() {
            if nth > 0 {
                assert_eq!(scm.datagram(), b"1", "{method} asks for more");
            }
            scm.identify(*credential);
        }
        scm
    }
}

/// What an SCM_CREDENTIALS message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Credential {
    /// This program's own.
    pub fn own() -> Self {
        Self::of(std::process::id(), 0)
    }

    /// Of a process with this uid, and a gid of the same number.
    pub const fn of(pid: u32, uid: u32) -> Self {
        Self { pid, uid, gid: uid }
    }
}

/// The client's end of the socket of an Scm call.
pub struct Scm(pub UnixDatagram);

impl Scm {
    /// It and the end that is sent.
    pub fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        for end in [&ours, &theirs] {
            sockopt::set_socket_passcred(end, true).unwrap();
        }
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        (Self(ours), theirs.into())
    }

    /// Says who somebody is, as clients do: a byte with credentials. This program is root, whom the kernel believes.
    pub fn identify(&self, credential: Credential) {
        send_credential(self.0.as_fd(), b"p", credential).unwrap();
    }

    /// The next datagram.
    pub fn datagram(&self) -> Vec<u8> {
        self.receive(RecvFlags::empty()).expect("no datagram").0
    }

    /// The next datagram, if one is there, with its credentials.
    pub fn receive_now(&self) -> Option<(Vec<u8>, Option<Credential>)> {
        self.receive(RecvFlags::DONTWAIT)
    }

    /// The next datagram with its credentials; `None` if none comes.
    pub fn receive(&self, flags: RecvFlags) -> Option<(Vec<u8>, Option<Credential>)> {
        let mut bytes = vec![0; MOST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1), ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).ok()?;
        bytes.truncate(received.bytes);
        // All of them: rustix does not find the rest again by itself, behind one whose length is no multiple of 8.
        let all: Vec<_> = control.drain().collect();
        let credential = all.into_iter().find_map(|message| match message {
            RecvAncillaryMessage::ScmCredentials(said) => Some(Credential {
                pid: said.pid.as_raw_pid().cast_unsigned(),
                uid: said.uid.as_raw(),
                gid: said.gid.as_raw(),
            }),
            _ => None,
        });
        Some((bytes, credential))
    }

    /// A number of four bytes.
    pub fn number(&self) -> i32 {
        i32::from_ne_bytes(self.datagram().try_into().unwrap())
    }

    /// The result of `GetTasks…Scm`; `None` if it failed.
    pub fn tasks(&self) -> Option<Vec<u32>> {
        let count = usize::try_from(self.number()).ok()?;
        let task = |_| {
            let (bytes, credential) = self.receive(RecvFlags::empty()).expect("a task is missing");
            assert_eq!(bytes, b"p");
            credential.expect("a task without credentials").pid
        };
        Some((0..count).map(task).collect())
    }

    /// The result of `ListChildrenScm`: names; `None` if it failed.
    pub fn names(&self) -> Option<Vec<String>> {
        let count = usize::try_from(self.number()).ok()?;
        if count == 0 {
            return Some(Vec::new());
        }
        let length = usize::try_from(self.number().cast_unsigned()).unwrap();
        let list = self.datagram();
        assert_eq!((list.len(), list.last()), (length, Some(&0)));
        let names: Vec<String> = list[..length - 1]
            .split(|byte| *byte == 0)
            .map(|n| String::from_utf8(n.to_vec()).unwrap())
            .collect();
        assert_eq!(names.len(), count);
        Some(names)
    }
}

/// Sends bytes with credentials.
pub fn send_credential(socket: BorrowedFd<'_>, bytes: &[u8], of: Credential) -> rustix::io::Result<usize> {
    let said = UCred {
        pid: Pid::from_raw(of.pid.cast_signed()).unwrap(),
        uid: Uid::from_raw(of.uid),
        gid: Gid::from_raw(of.gid),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(said)));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}
