//! The monitor's control socket: what can be asked, and the client's end of it.
//!
//! A `SEQPACKET` socket in the container's run directory, which only the account can enter; the monitor looks at the kernel's word on who
//! connects all the same. One connection is for one thing at a time: a question, a watch, a console, or a process.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::PathBuf,
    time::Duration,
};

use cgrant_sys::{Channel, ChannelError, Dir};
use rustix::{
    fs::FileType,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use serde::{Deserialize, Serialize};

use super::state::{Ended, State};
use crate::{
    failure::{LaunchError, StepFailure},
    inner::Kept,
    message::{receive, send, send_all},
};

/// Its name in the run directory.
pub(crate) const SOCKET: &str = "control";

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The state, once.
    State,
    /// The state, now and at each change, until the end.
    Watch,
    /// End in order; after so many seconds by force.
    Stop {
        /// How long init has.
        seconds: u32,
    },
    /// End in order, or by force, and start again.
    Restart {
        /// How long init has.
        seconds: u32,
    },
    /// Send init a signal.
    Kill {
        /// Its number.
        signal: i32,
    },
    /// A stream to and from the console. It ends with the connection.
    Console {
        /// First what was printed last?
        replay: bool,
    },
    /// The size of the console's, or of the process's, terminal.
    Resize(Terminal),
    /// Run a process.
    Exec(Process),
    /// Keep the descriptors beside this open until it is told to forget them, or the container has ended.
    Keep {
        /// What they are known by.
        name: String,
    },
    /// Close what is kept under this name.
    Forget {
        /// The name.
        name: String,
    },
    /// Send a signal to the process that this connection runs.
    Signal {
        /// Its number.
        signal: i32,
    },
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// In characters.
    pub columns: u16,
    /// In lines.
    pub rows: u16,
}

/// A process to run, as it goes over the socket: texts are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) directory: Option<Vec<u8>>,
    pub(crate) user: Option<String>,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) detached: bool,
}

/// What the monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The state.
    State(State),
    /// It is done, or under way.
    Done,
    /// The console's stream is beside it.
    Console,
    /// The process is about to be executed; with a terminal its master is beside it.
    Executing,
    /// A step on the way to the process failed.
    Failed(StepFailure),
    /// The process has ended.
    Finished(Ended),
    /// It can't be done now.
    Refused(Refused),
}

/// Why something can't be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The request is none that this monitor knows, or has not the descriptors that belong to it.
    #[error(
        "the container's monitor does not understand the request; it may be of another version of cgrant"
    )]
    Malformed,
    /// As many clients or processes as a monitor serves.
    #[error("too many commands are at work in the container already")]
    TooMany,
    /// The container is ending.
    #[error("the container is ending")]
    Stopping,
    /// Everything in the container is frozen. What is started in it would be, too, before it could say so.
    #[error("the container is paused")]
    Paused,
    /// It keeps nothing of that name.
    #[error("it is not there")]
    NotKept,
    /// There is no such signal, or no process to send it to.
    #[error("no such signal, or no process that would get it")]
    Signal,
    /// The monitor could not make what is needed.
    #[error("the container's monitor is out of descriptors, memory or processes")]
    Resources,
}

/// Why a container's monitor can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No monitor: the container does not run.
    #[error("the container is not running")]
    NotRunning,
    /// The socket could not be used.
    #[error("cannot reach the container's monitor: {0}")]
    Unreachable(#[source] io::Error),
    /// The connection failed.
    #[error("cannot talk to the container's monitor: {0}")]
    Channel(#[from] ChannelError),
    /// The monitor ended before it answered.
    #[error("the container's monitor ended before it answered")]
    Ended,
    /// It refused.
    #[error("{0}")]
    Refused(Refused),
    /// A step failed.
    #[error("{0}")]
    Step(StepFailure),
    /// What it said is not what was due.
    #[error("the container's monitor answered out of turn; it may be of another version of cgrant")]
    OutOfTurn,
    /// The process could not be described.
    #[error("a program is needed")]
    NoProgram,
    /// One of its streams would be a directory: from there a program finds the way to the root that the directory is in.
    #[error("a directory can't be a stream of a container's program: it could leave the container by it")]
    Directory,
}

impl From<LaunchError> for ControlError {
    fn from(error: LaunchError) -> Self {
        match error {
            // The monitor had ended when it was asked.
            LaunchError::Channel(ChannelError::Closed) => Self::Ended,
            LaunchError::Channel(error) => Self::Channel(error),
            _ => Self::OutOfTurn,
        }
    }
}

impl ControlError {
    /// Was it told to close what it does not keep?
    pub fn is_not_kept(&self) -> bool {
        matches!(self, Self::Refused(Refused::NotKept))
    }
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Control(Channel);

/// A process to be run in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Program and arguments. A program without `/` is looked up in the `PATH` of its environment.
    pub argv: Vec<OsString>,
    /// More variables than `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL` and `container`, or others.
    pub environment: Vec<(OsString, OsString)>,
    /// Where it starts; without one, the user's home.
    pub directory: Option<PathBuf>,
    /// As whom: a name in the container's `/etc/passwd`, or a uid; without one, as root.
    pub user: Option<String>,
    /// A terminal of its own of this size, instead of the streams of the caller.
    pub terminal: Option<Terminal>,
    /// Does it go on when the connection ends? Otherwise it gets SIGHUP then.
    pub detached: bool,
}

/// A process that was executed in a container.
#[derive(Debug)]
pub struct Executed {
    channel: Channel,
    /// The master of its terminal, if it was to have one.
    pub terminal: Option<OwnedFd>,
}

/// How it went on with an [`Executed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished(pub Ended);

impl Control {
    /// Connects to the monitor of the container with this run directory.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], [`ControlError::Unreachable`].
    pub fn connect(run: &Dir) -> Result<Self, ControlError> {
        let flags = SocketFlags::CLOEXEC;
        let unreachable = |errno: Errno| ControlError::Unreachable(errno.into());
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(unreachable)?;
        let address = address(run).map_err(unreachable)?;
        match connect(&socket, &address) {
            Ok(()) => Ok(Self(Channel::from_fd(socket).map_err(ControlError::Unreachable)?)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Err(ControlError::NotRunning),
            Err(errno) => Err(unreachable(errno)),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn ask(&self, request: &Request) -> Result<Answer, ControlError> {
        send(&self.0, request, None)?;
        self.next().map(|(answer, _)| answer)
    }

    /// The next answer, of a watch.
    ///
    /// # Errors
    /// [`ControlError::Ended`] after the last one.
    pub fn next(&self) -> Result<(Answer, Option<OwnedFd>), ControlError> {
        next(&self.0)
    }

    /// The state now.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn state(&self) -> Result<State, ControlError> {
        match self.ask(&Request::State)? {
            Answer::State(state) => Ok(state),
            _ => Err(ControlError::OutOfTurn),
        }
    }

    /// Waits until the state is one that `until` is true of; the last one if the container ends before, with
    /// [`State::phase`] `Stopped`.
    ///
    /// # Errors
    /// [`ControlError::Ended`] if the monitor was killed.
    pub fn wait_for(self, until: impl Fn(&State) -> bool) -> Result<State, ControlError> {
        let mut answer = self.ask(&Request::Watch)?;
        loop {
            match answer {
                Answer::State(state) if until(&state) || state.ended.is_some() => return Ok(state),
                Answer::State(_) => {}
                _ => return Err(ControlError::OutOfTurn),
            }
            answer = self.next()?.0;
        }
    }

    /// Asks for something that is only done.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn tell(&self, request: &Request) -> Result<(), ControlError> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            _ => Err(ControlError::OutOfTurn),
        }
    }

    /// Has it keep descriptors open as long as the container runs.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn keep(&self, kept: &Kept) -> Result<(), ControlError> {
        let fds: Vec<_> = kept.descriptors.iter().map(AsFd::as_fd).collect();
        send_all(&self.0, &Request::Keep { name: kept.name.clone() }, &fds)?;
        match self.next()? {
            (Answer::Done, None) => Ok(()),
            _ => Err(ControlError::OutOfTurn),
        }
    }

    /// A stream to and from the console, which ends when this connection does.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn console(&self, replay: bool) -> Result<OwnedFd, ControlError> {
        send(&self.0, &Request::Console { replay }, None)?;
        match self.next()? {
            (Answer::Console, Some(stream)) => Ok(stream),
            _ => Err(ControlError::OutOfTurn),
        }
    }

    /// Runs a process, with these standard streams unless it gets a terminal. Returns when everything is ready for its execve; whether
    /// that succeeded is told by [`Executed::wait`].
    ///
    /// # Errors
    /// [`ControlError::Step`] with the step that failed; [`ControlError::Directory`].
    pub fn exec(self, spec: &ExecSpec, streams: [BorrowedFd<'_>; 3]) -> Result<Executed, ControlError> {
        if spec.argv.first().is_none_or(|program| program.is_empty()) {
            return Err(ControlError::NoProgram);
        }
        if spec.terminal.is_none() && streams.iter().any(is_directory) {
            return Err(ControlError::Directory);
        }
        let request = serde_json::to_vec(&Request::Exec(Process::new(spec)));
        let request = request.map_err(|_| ControlError::OutOfTurn)?;
        let streams = if spec.terminal.is_some() { &[][..] } else { &streams[..] };
        self.0.send(&request, streams)?;
        match self.next()? {
            (Answer::Executing, terminal) if terminal.is_some() == spec.terminal.is_some() => {
                Ok(Executed { channel: self.0, terminal })
            }
            _ => Err(ControlError::OutOfTurn),
        }
    }
}

impl Executed {
    /// Waits for its end. A program that could not be executed ends with 126 or 127.
    ///
    /// # Errors
    /// [`ControlError::Step`] if it could not be executed; [`ControlError::Ended`] if the monitor was killed.
    pub fn wait(&self) -> Result<Finished, ControlError> {
        loop {
            match next(&self.channel)?.0 {
                Answer::Finished(ended) => return Ok(Finished(ended)),
                Answer::Done => {}
                _ => return Err(ControlError::OutOfTurn),
            }
        }
    }

    /// Sends it a signal. What comes of it is not told: it may have ended.
    ///
    /// # Errors
    /// [`ControlError::Channel`].
    pub fn signal(&self, signal: i32) -> Result<(), ControlError> {
        Ok(send(&self.channel, &Request::Signal { signal }, None)?)
    }

    /// Changes the size of its terminal.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`] with what the kernel says.
    pub fn resize(&self, size: Terminal) -> Result<(), ControlError> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        size.set(terminal).map_err(|errno| ControlError::Unreachable(errno.into()))
    }
}

impl AsFd for Executed {
    /// Readable when [`Executed::wait`] would not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl AsFd for Control {
    /// Readable when there is an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Terminal {
    pub(crate) fn set(self, terminal: impl AsFd) -> Result<(), Errno> {
        let Self { columns, rows } = self;
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size)
    }
}

impl Process {
    fn new(spec: &ExecSpec) -> Self {
        let ExecSpec { argv, environment, directory, user, terminal, detached } = spec.clone();
        Self {
            argv: argv.into_iter().map(OsString::into_vec).collect(),
            environment: environment
                .into_iter()
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .collect(),
            directory: directory.map(|path| path.into_os_string().into_vec()),
            user,
            terminal,
            detached,
        }
    }
}

fn is_directory(fd: &BorrowedFd<'_>) -> bool {
    let mode = rustix::fs::fstat(fd).map_or(0, |found| found.st_mode);
    FileType::from_raw_mode(mode) == FileType::Directory
}

fn next(channel: &Channel) -> Result<(Answer, Option<OwnedFd>), ControlError> {
    match receive(channel)? {
        Some((Answer::Refused(refused), _)) => Err(ControlError::Refused(refused)),
        Some((Answer::Failed(failure), _)) => Err(ControlError::Step(failure)),
        Some(answer) => Ok(answer),
        None => Err(ControlError::Ended),
    }
}

/// The socket's address, however long the path of the directory is.
pub(crate) fn address(run: &Dir) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", run.as_fd().as_raw_fd()))
}

/// How long a monitor waits for init when nobody says otherwise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
