//! The monitor's life while the container runs: one thread, one wait for everything.
//!
//! Nothing here waits for the container or for a client. What a client does not take is dropped with it; what the container prints is
//! read in bounded portions, so that a flood of it holds up nobody else.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use cgrant_sys::{
    Channel, ChannelError, Dir,
    code::forget_code,
    seqpacket,
    socket::{accept, peer_credentials},
};
use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::AtFlags,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, listen, recv, send, socket_with,
        socketpair,
    },
    pty::{OpenptFlags, ioctl_tiocgptpeer},
};

use super::{
    children::Children,
    control::{Answer, PATIENCE, Process, Refused, Request, SOCKET, address},
    exec,
    halt::{self, Told},
    log::{Log, read_log},
    notify::Ear,
    payload,
    spec::Prepared,
    stage::{BootError, Booted, Site, boot},
    state::{Ended, Phase, State, now},
};
use crate::{inner::Kept, message};

/// Most connections at one time, and most processes that are run for them.
const MAX_CLIENTS: usize = 64;
const MAX_PROCESSES: usize = 128;
/// Most things that are kept, and the longest name of one, in bytes.
const MAX_KEPT: usize = 260;
const MAX_NAME: usize = 128;
/// For whom the monitor runs something of its own accord: clients count from 1.
const NOBODY: u64 = 0;
/// How much is read of one source before the others have their turn, in bytes.
const PORTION: usize = 16 * 1024;
/// Messages of init's in one turn.
const MESSAGES: usize = 16;
/// How often the console is read when the container has ended: more than a terminal holds. Whoever has it still may go on writing.
const LAST_READS: usize = 64;
/// What a new console client is shown of what was printed before, in bytes.
const REPLAY: usize = 8 * 1024;
/// So long after its start an init listens to what it ever will.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(50);
/// How often it is looked whether one that was told has executed itself again since.
const LOOK: Duration = Duration::from_millis(200);
/// A monitor that has had nothing to do for so long takes little memory from then on.
const REST: Duration = Duration::from_secs(1);
/// A container that reboots so soon, so many times in a row, does nothing but that.
const SHORT: Duration = Duration::from_secs(2);
const MAX_SHORT: u32 = 10;

/// What the monitor hears by, made before the container is: who knows that it runs can ask.
#[derive(Debug)]
pub(super) struct Ears {
    signals: SignalFd,
    listener: OwnedFd,
    log: Log,
    /// Keeps other monitors out of the run directory.
    lock: Option<OwnedFd>,
}

impl Ears {
    /// Makes them. The run directory is this monitor's alone.
    pub(super) fn open(run: &Dir, lock: OwnedFd) -> io::Result<Self> {
        Ok(Self { signals: signals()?, listener: listener(run)?, log: Log::open(run)?, lock: Some(lock) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Notify,
    Console,
    Client(u64),
    Stream(u64),
}

/// A connection.
#[derive(Debug)]
struct Client {
    id: u64,
    channel: Channel,
    watches: bool,
    /// The console, as this client sees it.
    stream: Option<Stream>,
}

/// The monitor's end of a console stream.
#[derive(Debug)]
struct Stream {
    socket: OwnedFd,
    /// What the console has not taken yet.
    pending: Vec<u8>,
}

/// A process that is run for a client.
#[derive(Debug)]
struct Task {
    client: u64,
    process: cgrant_sys::Pidfd,
    detached: bool,
    /// The other end of what it reports to, if that is the monitor's own, which is not interested.
    _hears: Option<Channel>,
}

/// An end that was asked for.
#[derive(Debug, Clone, Copy)]
struct Halt {
    deadline: Instant,
    told: bool,
    /// The execution of init that was told, if another one would not know.
    execution: Option<u64>,
    restart: bool,
    /// Until then containers in this one may end before it is told.
    children_until: Instant,
}

/// A monitor that has a container.
pub(super) struct Server<'s> {
    run: &'s Dir,
    spec: &'s Prepared,
    site: Site,
    booted: Booted,
    /// Kept open, so that the console has a slave whoever closes it.
    slave: Option<OwnedFd>,
    since: Instant,
    short: u32,
    ears: Ears,
    ear: Ear,
    state: State,
    clients: Vec<Client>,
    tasks: Vec<Task>,
    numbers: u64,
    halt: Option<Halt>,
    /// The containers in this one, while they are ended before it.
    children: Option<Children>,
    /// What is there for the container as long as this has it open.
    kept: Vec<Kept>,
}

impl<'s> Server<'s> {
    /// Begins to monitor, and writes the first state.
    ///
    /// # Errors
    /// Those of writing it; the container has been killed then.
    pub(super) fn new(
        run: &'s Dir,
        spec: &'s Prepared,
        site: Site,
        ears: Ears,
        booted: Booted,
        kept: Vec<Kept>,
    ) -> io::Result<Self> {
        let state = State::new(std::process::id(), booted.pid);
        if let Err(error) = state.write(run) {
            booted.give_up();
            return Err(error);
        }
        let slave = slave(&booted);
        let (since, clients, tasks) = (Instant::now(), Vec::new(), Vec::new());
        let (short, numbers, halt) = (0, 0, None);
        let ear = Ear::default();
        Ok(Self {
            run,
            spec,
            site,
            booted,
            slave,
            since,
            short,
            ears,
            ear,
            state,
            clients,
            tasks,
            numbers,
            halt,
            children: None,
            kept,
        })
    }

    /// Ends the container, for want of somebody who knows of it.
    pub(super) fn give_up(self) {
        self.booted.give_up();
        let _ = rustix::fs::unlinkat(self.run, SOCKET, AtFlags::empty());
    }

    /// Serves until the container has ended for good; the monitor's exit status.
    pub(super) fn serve(&mut self) -> i32 {
        loop {
            for (source, events) in self.wait() {
                match source {
                    Source::Signals => {
                        if let Some(status) = self.take_signals() {
                            return status;
                        }
                    }
                    Source::Listener => self.accept(),
                    Source::Notify => self.hear(),
                    Source::Console => self.print(),
                    Source::Client(id) => self.answer(id),
                    Source::Stream(id) => self.type_in(id, events),
                }
            }
            self.go_on_halting();
        }
    }

    /// Everything that is ready; nothing if only time has passed.
    fn wait(&self) -> Vec<(Source, PollFlags)> {
        let watched = self.watched();
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events)).collect();
        let timeout = self.timeout();
        let mut polled = poll(&mut fds, Some(&timespec(timeout.unwrap_or(REST))));
        if polled == Ok(0) && timeout.is_none() {
            // What it needs again comes back when it does. If this fails it is only larger.
            let _ = forget_code();
            polled = poll(&mut fds, None);
        }
        if polled.is_err() {
            return Vec::new();
        }
        let ready = fds.iter().zip(&watched).filter(|(fd, _)| !fd.revents().is_empty());
        ready.map(|(fd, (source, ..))| (*source, fd.revents())).collect()
    }

    fn watched(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let input = PollFlags::IN;
        let kept = &self.booted.kept;
        let mut watched = vec![(Source::Signals, self.ears.signals.as_fd(), input)];
        if self.ear.is_open() {
            watched.push((Source::Notify, kept.notify.as_fd(), input));
        }
        if self.clients.len() < MAX_CLIENTS {
            watched.push((Source::Listener, self.ears.listener.as_fd(), input));
        }
        // Without a slave the console would be ready for ever.
        if self.slave.is_some() {
            watched.push((Source::Console, kept.console.as_fd(), input));
        }
        for client in &self.clients {
            watched.push((Source::Client(client.id), client.channel.as_fd(), input));
            match &client.stream {
                Some(stream) if stream.pending.is_empty() => {
                    watched.push((Source::Stream(client.id), stream.socket.as_fd(), input));
                }
                // What waits is tried again when the console takes something.
                Some(_) if self.slave.is_some() => {
                    watched.push((Source::Stream(client.id), kept.console.as_fd(), PollFlags::OUT));
                }
                _ => {}
            }
        }
        watched
    }

    fn timeout(&self) -> Option<Duration> {
        let halt = self.halt?;
        let left = halt.deadline.saturating_duration_since(Instant::now());
        Some(match (halt.told, halt.execution) {
            (true, None) => left,
            (true, Some(_)) => left.min(LOOK),
            (false, _) => left.min(AGAIN),
        })
    }

    /// The monitor's exit status, if there is nothing left to monitor.
    fn take_signals(&mut self) -> Option<i32> {
        while let Ok(Some(signal)) = self.ears.signals.read_signal() {
            if let Ok(Signal::SIGTERM | Signal::SIGINT) = Signal::try_from(signal.ssi_signo.cast_signed()) {
                self.begin_halt(PATIENCE, false);
            }
        }
        self.reap()
    }

    fn reap(&mut self) -> Option<i32> {
        self.ear.reap();
        let mut tasks = std::mem::take(&mut self.tasks);
        tasks.retain(|task| match task.process.try_wait() {
            Ok(None) => true,
            Ok(Some(exit)) => {
                self.tell(task.client, &Answer::Finished(Ended::of_process(exit)));
                false
            }
            Err(_) => false,
        });
        self.tasks = tasks;
        match self.booted.init.try_wait() {
            Ok(None) => None,
            Ok(Some(exit)) => self.after(Ended::of_init(exit)),
            Err(_) => self.after(Ended::Signal(Signal::SIGKILL as i32)),
        }
    }

    /// What follows the end of init, and with it of its pid namespace.
    fn after(&mut self, ended: Ended) -> Option<i32> {
        // What it said and printed last.
        self.hear();
        for _ in 0..LAST_READS {
            if !self.print_some() {
                break;
            }
        }
        let restart = match self.halt.take() {
            Some(halt) => halt.restart,
            None => ended == Ended::Reboot && self.may_reboot(),
        };
        let ended = if restart { self.start_again()? } else { ended };
        self.state.phase = Phase::Stopped;
        self.state.init = None;
        self.state.ended = Some(ended);
        self.state.stopped = Some(now());
        // What is told last is that it can be started again.
        let _ = rustix::fs::unlinkat(self.run, SOCKET, AtFlags::empty());
        let _ = self.state.write(self.run);
        self.ears.lock = None;
        self.tell_watchers();
        Some(0)
    }

    /// `None` if it runs again.
    fn start_again(&mut self) -> Option<Ended> {
        self.state.reboots = self.state.reboots.saturating_add(1);
        match boot(self.spec, &self.site, true) {
            Ok(mut booted) => {
                self.site.keep(&mut booted);
                self.slave = slave(&booted);
                let reboots = self.state.reboots;
                self.state = State { reboots, ..State::new(self.state.monitor, booted.pid) };
                self.booted = booted;
                self.since = Instant::now();
                self.changed();
                None
            }
            Err(BootError::Step(failure)) => {
                self.state.status = failure.to_string();
                Some(Ended::Reboot)
            }
            Err(BootError::Died(ended)) => Some(ended),
        }
    }

    fn may_reboot(&mut self) -> bool {
        self.short = if self.since.elapsed() < SHORT { self.short.saturating_add(1) } else { 0 };
        self.short < MAX_SHORT
    }

    fn begin_halt(&mut self, patience: Duration, restart: bool) {
        let now = Instant::now();
        let deadline = now.checked_add(patience).unwrap_or(now);
        let (told, execution) = self.halt.map_or((false, None), |halt| (halt.told, halt.execution));
        if self.halt.is_none() {
            self.children = Children::of_this_monitor();
        }
        let children_until = now.checked_add(patience / 2).unwrap_or(now);
        self.halt = Some(Halt { deadline, told, execution, restart, children_until });
        self.state.phase = Phase::Stopping;
        self.changed();
    }

    fn go_on_halting(&mut self) {
        let Some(mut halt) = self.halt else { return };
        let out_of_time = Instant::now() >= halt.deadline;
        if let Some(children) = &mut self.children {
            if Instant::now() < halt.children_until && children.go_on(halt.children_until) {
                return;
            }
            self.children = None;
        }
        let mut deaf = false;
        if let (true, Some(told)) = (halt.told, halt.execution) {
            // One that can't be looked at is about to end.
            halt.told = halt::execution(self.booted.pid).is_none_or(|now| now == told);
        }
        if !out_of_time && !halt.told {
            // Before it is told: an execution that comes after that is not the one that was.
            halt.execution = halt::execution(self.booted.pid);
            let told = halt::tell(&self.booted.init, self.booted.pid).unwrap_or(Told::Not);
            let listens = self.since.elapsed() >= GRACE;
            if told == Told::OfPower {
                self.change_runlevel();
            }
            halt.told = matches!(told, Told::Surely | Told::OfPower) || (told == Told::Perhaps && listens);
            deaf = told == Told::Not && listens;
            self.halt = Some(halt);
        }
        if out_of_time || deaf {
            let _ = self.booted.init.send_number(Signal::SIGKILL as i32);
            // It was told the last thing that there is to tell.
            let deadline = halt.deadline.max(Instant::now()).checked_add(PATIENCE);
            self.halt = Some(Halt {
                told: true,
                execution: None,
                deadline: deadline.unwrap_or(halt.deadline),
                ..halt
            });
        }
    }

    /// Asks a System V init for runlevel 0 in its own way. It is asked beside the signal: a root without that command does what it does.
    fn change_runlevel(&mut self) {
        let words = ["/sbin/telinit", "0"].map(|word| word.as_bytes().to_vec());
        let process = Process {
            argv: words.into(),
            environment: Vec::new(),
            directory: Some(b"/".to_vec()),
            user: None,
            terminal: None,
            detached: true,
        };
        let nothing = || std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let streams: io::Result<Vec<OwnedFd>> = (0..3).map(|_| nothing()).collect();
        let (Ok(streams), Ok((near, far))) = (streams, seqpacket::pair()) else { return };
        if let Ok(process) = exec::start(&process, &streams, &far, &self.site, &self.booted) {
            self.tasks.push(Task { client: NOBODY, process, detached: true, _hears: Some(near) });
        }
    }

    /// Writes the state, and tells whoever watches. A disk that is full does not stop the container.
    fn changed(&mut self) {
        let _ = self.state.write(self.run);
        self.tell_watchers();
    }

    fn tell_watchers(&mut self) {
        let answer = Answer::State(self.state.clone());
        let watching: Vec<u64> = self.clients.iter().filter(|c| c.watches).map(|c| c.id).collect();
        watching.into_iter().for_each(|id| self.tell(id, &answer));
    }

    /// A client that does not take its answers is dropped.
    fn tell(&mut self, id: u64, answer: &Answer) {
        let Some(client) = self.clients.iter().find(|client| client.id == id) else { return };
        if message::send(&client.channel, answer, None).is_err() {
            self.forget(id);
        }
    }

    /// Closes a connection; its process gets SIGHUP, as from a terminal that is closed.
    fn forget(&mut self, id: u64) {
        self.clients.retain(|client| client.id != id);
        for task in self.tasks.iter().filter(|task| task.client == id && !task.detached) {
            let _ = task.process.send_number(Signal::SIGHUP as i32);
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = accept(&self.ears.listener) else { return };
        let own = rustix::process::geteuid().as_raw();
        let allowed = peer_credentials(&socket).is_ok_and(|peer| peer.uid == own || peer.uid == 0);
        if let (true, Ok(channel)) = (allowed, Channel::from_fd(socket)) {
            self.numbers = self.numbers.wrapping_add(1);
            self.clients.push(Client { id: self.numbers, channel, watches: false, stream: None });
        }
    }

    fn answer(&mut self, id: u64) {
        let Some(client) = self.clients.iter().find(|client| client.id == id) else { return };
        let received = match client.channel.receive() {
            Ok(Some(received)) => received,
            Err(ChannelError::WouldBlock) => return,
            Ok(None) | Err(_) => return self.forget(id),
        };
        let answer = match serde_json::from_slice(&received.bytes) {
            Ok(request) => self.carry_out(id, request, received.fds),
            Err(_) => Some(Answer::Refused(Refused::Malformed)),
        };
        if let Some(answer) = answer {
            self.tell(id, &answer);
        }
    }

    /// `None` if it was answered already, or will be.
    fn carry_out(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> Option<Answer> {
        match request {
            Request::State => Some(Answer::State(self.state.clone())),
            Request::Watch => {
                let client = self.clients.iter_mut().find(|client| client.id == id)?;
                client.watches = true;
                Some(Answer::State(self.state.clone()))
            }
            Request::Stop { seconds } | Request::Restart { seconds } => {
                let restart = matches!(request, Request::Restart { .. });
                self.begin_halt(Duration::from_secs(seconds.into()), restart);
                Some(Answer::Done)
            }
            Request::Kill { signal } => Some(done(self.booted.init.send_number(signal), Refused::Signal)),
            Request::Console { replay } => self.open_console(id, replay).err(),
            Request::Resize(size) => {
                Some(done(size.set(&self.booted.kept.console).map_err(Into::into), Refused::Malformed))
            }
            Request::Exec(process) => self.exec(id, &process, &fds).err(),
            Request::Keep { name } => Some(self.keep(Kept { name, descriptors: fds })),
            Request::Forget { name } => {
                let before = self.kept.len();
                self.kept.retain(|kept| kept.name != name);
                Some(if self.kept.len() < before { Answer::Done } else { Answer::Refused(Refused::NotKept) })
            }
            Request::Signal { signal } => {
                let task = self.tasks.iter().find(|task| task.client == id);
                let sent = task.map(|task| task.process.send_number(signal));
                Some(done(sent.unwrap_or(Err(Errno::SRCH.into())), Refused::Signal))
            }
        }
    }

    fn keep(&mut self, kept: Kept) -> Answer {
        if kept.descriptors.is_empty() || kept.name.len() > MAX_NAME {
            return Answer::Refused(Refused::Malformed);
        }
        // Under a name that is kept already there is another thing now.
        self.kept.retain(|other| other.name != kept.name);
        if self.kept.len() >= MAX_KEPT {
            return Answer::Refused(Refused::TooMany);
        }
        self.kept.push(kept);
        Answer::Done
    }

    fn exec(&mut self, id: u64, process: &Process, streams: &[OwnedFd]) -> Result<(), Answer> {
        let wanted = if process.terminal.is_some() { 0 } else { 3 };
        if streams.len() != wanted {
            return Err(Answer::Refused(Refused::Malformed));
        }
        if self.state.phase == Phase::Stopping && self.halt.is_some() {
            return Err(Answer::Refused(Refused::Stopping));
        }
        if self.site.payload.directory().is_some_and(payload::is_frozen) {
            return Err(Answer::Refused(Refused::Paused));
        }
        if self.tasks.len() >= MAX_PROCESSES || self.tasks.iter().any(|task| task.client == id) {
            return Err(Answer::Refused(Refused::TooMany));
        }
        let client = self.clients.iter().find(|client| client.id == id);
        let client = client.ok_or(Answer::Refused(Refused::Malformed))?;
        let started = exec::start(process, streams, &client.channel, &self.site, &self.booted);
        let pidfd = started.map_err(Answer::Failed)?;
        self.tasks.push(Task { client: id, process: pidfd, detached: process.detached, _hears: None });
        Ok(())
    }

    fn open_console(&mut self, id: u64, replay: bool) -> Result<(), Answer> {
        let lacking = |_| Answer::Refused(Refused::Resources);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(lacking)?;
        if replay {
            let before = read_log(self.run, REPLAY).unwrap_or_default();
            let _ = send(&near, &before, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        rustix::io::ioctl_fionbio(&far, false).map_err(lacking)?;
        let client = self.clients.iter_mut().find(|client| client.id == id);
        let client = client.ok_or(Answer::Refused(Refused::Malformed))?;
        client.stream = Some(Stream { socket: near, pending: Vec::new() });
        message::send(&client.channel, &Answer::Console, Some(far.as_fd()))
            .map_err(|_| Answer::Refused(Refused::Resources))
    }

    /// From a console client to the console.
    fn type_in(&mut self, id: u64, events: PollFlags) {
        let console = self.booted.kept.console.as_fd();
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        let Some(stream) = &mut client.stream else { return };
        if stream.pending.is_empty() && !events.contains(PollFlags::OUT) {
            let mut buffer = [0; 1024];
            match recv(&stream.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) if length > 0 => {
                    stream.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
                }
                Err(Errno::AGAIN | Errno::INTR) => return,
                // Closed.
                _ => {
                    client.stream = None;
                    return;
                }
            }
        }
        match rustix::io::write(console, &stream.pending) {
            Ok(taken) => drop(stream.pending.drain(..taken)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => stream.pending.clear(),
        }
    }

    /// From the console to the log and all console clients.
    fn print(&mut self) {
        for _ in 0..PORTION / 4096 {
            if !self.print_some() {
                return;
            }
        }
    }

    /// `false` if there is nothing more for now.
    fn print_some(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let length = match rustix::io::read(&self.booted.kept.console, &mut buffer) {
            Ok(length) if length > 0 => length,
            Err(Errno::INTR) => return true,
            Err(Errno::AGAIN) => return false,
            // Hung up; there is nothing to be heard from it any more, unless it can be opened anew.
            _ => {
                self.slave = slave(&self.booted);
                return false;
            }
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        self.ears.log.append(bytes);
        for stream in self.clients.iter().filter_map(|client| client.stream.as_ref()) {
            // A client that does not read misses it.
            let _ = send(&stream.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        true
    }

    /// What init says about itself. The kernel says who wrote: others of the container's root are not heard.
    fn hear(&mut self) {
        let mut changed = false;
        for _ in 0..MESSAGES {
            let Some(said) = self.ear.hear(&self.booted.kept.notify) else { break };
            if said.sender == Some(self.booted.pid.cast_signed()) {
                changed |= self.state.hear(&said.text);
            }
        }
        // What was asked for from outside stays so until the end.
        if self.halt.is_some() {
            self.state.phase = Phase::Stopping;
        }
        if changed {
            self.changed();
        }
    }
}

fn done(result: io::Result<()>, refused: Refused) -> Answer {
    result.map_or(Answer::Refused(refused), |()| Answer::Done)
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        set.add(signal);
    }
    set.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// A socket of this name is one of a monitor that is gone: this one has the lock.
fn listener(run: &Dir) -> io::Result<OwnedFd> {
    match rustix::fs::unlinkat(run, SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &address(run)?)?;
    listen(&socket, 16)?;
    Ok(socket)
}

fn slave(booted: &Booted) -> Option<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    ioctl_tiocgptpeer(&booted.kept.console, flags).ok()
}
