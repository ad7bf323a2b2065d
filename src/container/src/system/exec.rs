//! A process that is executed in a running container: a child of the monitor, which reaps it whatever becomes of its client.
//!
//! Two forks: the first one enters the namespaces (a process can't change its own pid namespace) and clones the second one into the
//! payload, as the monitor's child. From there on only the client is talked to: what the container has made of its files may make
//! a step wait for ever, and the monitor must not.
//!
//! The monitor's memory is in both, so they are not dumpable until execve.

use std::{
    ffi::{CString, OsStr, OsString},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
};

use cgrant_sys::{Channel, Clone3, Pidfd, privilege, seqpacket};
use nix::sched::{CloneFlags, setns};
use rustix::{
    fs::{Mode, OFlags, openat},
    process::{Gid, Uid},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
};

use super::{
    confine,
    control::{Answer, Process},
    environment::MANAGER,
    init::take_streams,
    message::FromInit,
    payload,
    stage::{Booted, Site, yield_memory},
    users::User,
};
use crate::{
    failure::{At, Step, StepFailure},
    init::{clean_process, execute_first, failure, forget_host},
    message::{receive, send},
    spec::{DEFAULT_PATH, candidates},
};

/// What the first process joins.
const FIRST: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// What only the second one can: in the container's proc the first one has no entry, and no process can be cloned across the
/// root of its own cgroup namespace.
const SECOND: CloneFlags = CloneFlags::CLONE_NEWNS.union(CloneFlags::CLONE_NEWCGROUP);

/// Starts it; its pidfd. What goes wrong later the client is told.
pub(crate) fn start(
    process: &Process,
    streams: &[OwnedFd],
    client: &Channel,
    site: &Site,
    booted: &Booted,
) -> Result<Pidfd, StepFailure> {
    let (near, far) = seqpacket::pair().at(Step::Fork, "")?;
    let (payload, init, terminals) =
        (site.payload.directory_to_enter(), &booted.init, &booted.kept.terminals);
    let task = Task { process, streams, client, payload, init, terminals };
    let child = match &site.nursery {
        None => Clone3::new().spawn(|| run(&task, &far)).map(|child| child.pidfd),
        Some(nursery) => nursery.execute(&task, &far),
    };
    let child = child.at(Step::Fork, "")?;
    drop(far);
    let heard = receive(&near);
    let _ = child.wait();
    match heard {
        Ok(Some((FromInit::Init, Some(fd)))) => {
            Pidfd::from_fd(fd).map_err(|_| StepFailure { step: Step::Fork, subject: String::new(), errno: 0 })
        }
        Ok(Some((FromInit::Failed(failure), _))) => Err(failure),
        _ => Err(StepFailure { step: Step::Join, subject: String::new(), errno: 0 }),
    }
}

/// The first process, from its fork to its exit status.
pub(crate) fn run(task: &Task<'_>, monitor: &Channel) -> i32 {
    match task.enter(monitor) {
        Ok(()) => 0,
        Err(failure) => i32::from(send(monitor, &FromInit::Failed(failure), None).is_err()),
    }
}

/// What is to be executed, and where.
#[derive(Debug)]
pub(crate) struct Task<'t> {
    pub(crate) process: &'t Process,
    pub(crate) streams: &'t [OwnedFd],
    pub(crate) client: &'t Channel,
    /// Where it is cloned into. Without one it is born where it belongs.
    pub(crate) payload: Option<&'t OwnedFd>,
    /// The container's first process.
    pub(crate) init: &'t Pidfd,
    /// The directory of its terminals.
    pub(crate) terminals: &'t OwnedFd,
}

impl Task<'_> {
    /// The first process.
    fn enter(&self, monitor: &Channel) -> Result<(), StepFailure> {
        yield_memory();
        privilege::set_dumpable(false).at(Step::Process, "memory")?;
        let Self { streams, client, payload, init, terminals, .. } = self;
        let mut keep: Vec<i32> = streams.iter().map(AsRawFd::as_raw_fd).collect();
        let others = [monitor.as_fd(), client.as_fd(), init.as_fd(), terminals.as_fd()];
        keep.extend(others.map(|fd| fd.as_raw_fd()));
        keep.extend(payload.map(AsRawFd::as_raw_fd));
        privilege::close_fds_from(3, &keep).at(Step::Process, "descriptors")?;
        setns(init, FIRST).at(Step::Join, "")?;
        let entrance = payload.map(payload::entrance).transpose().at(Step::Join, "")?;
        let clone = Clone3::new().sibling();
        let clone = match &entrance {
            Some(entrance) => clone.cgroup(entrance.as_fd()),
            None => clone,
        };
        let child = clone.spawn(|| self.run()).at(Step::Join, "")?;
        send(monitor, &FromInit::Init, Some(child.pidfd.as_fd())).map_err(|_| StepFailure {
            step: Step::Proceed,
            subject: String::new(),
            errno: 0,
        })
    }

    /// The second process, to its execve or its exit status.
    fn run(&self) -> i32 {
        let failure = match self.set_up() {
            Ok(prepared) => prepared.execute(),
            Err(failure) => failure,
        };
        let status = failure.command_status().unwrap_or(1);
        let _ = send(self.client, &Answer::Failed(failure), None);
        i32::from(status)
    }

    fn set_up(&self) -> Result<Prepared, StepFailure> {
        setns(self.init, SECOND).at(Step::Join, "")?;
        clean_process()?;
        // Root at first, so that a terminal belongs to the container's root.
        become_user(0, 0, &[])?;
        // From here on nothing is open but what is the client's or the container's own.
        let streams = self.streams.iter().map(AsFd::as_fd);
        let keep: Vec<_> = streams.chain([self.client.as_fd(), self.terminals.as_fd()]).collect();
        forget_host(&keep)?;
        let wanted = self.process.user.as_deref();
        let user = User::find(wanted).at(Step::User, wanted.unwrap_or("root"))?;
        let prepared = Prepared::new(self.process, &user)?;
        let terminal = self.open_streams(&user).at(Step::Console, "of the command")?;
        confine::bound_capabilities().at(Step::Confine, "capabilities")?;
        confine::refuse_calls().at(Step::Confine, "system calls")?;
        become_user(user.uid, user.gid, &user.groups)?;
        privilege::set_dumpable(false).at(Step::Process, "memory")?;
        enter_directory(&prepared, self.process.directory.is_some())?;
        let told = send(self.client, &Answer::Executing, terminal.as_ref().map(AsFd::as_fd));
        told.map_err(|_| StepFailure { step: Step::Proceed, subject: String::new(), errno: 0 })?;
        Ok(prepared)
    }

    /// Its standard streams; the master of its terminal, if it has one of its own: of the container's devpts, opened by what the monitor kept
    /// of it and not by what lies at `/dev/ptmx` now.
    fn open_streams(&self, user: &User) -> rustix::io::Result<Option<OwnedFd>> {
        let Some(size) = self.process.terminal else {
            let [input, output, error] = self.streams else { return Err(rustix::io::Errno::BADF) };
            take_streams([input.as_fd(), output.as_fd(), error.as_fd()])?;
            return Ok(None);
        };
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let master = openat(self.terminals, "ptmx", flags, Mode::empty())?;
        unlockpt(&master)?;
        size.set(&master)?;
        let terminal =
            ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::fs::fchown(&terminal, Some(Uid::from_raw(user.uid)), None)?;
        rustix::process::ioctl_tiocsctty(&terminal)?;
        let terminal: BorrowedFd<'_> = terminal.as_fd();
        take_streams([terminal; 3])?;
        Ok(Some(master))
    }
}

fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), StepFailure> {
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups).at(Step::Credentials, "")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::Credentials, "")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::Credentials, "")
}

/// A home that is not there is no reason not to start, a directory that was asked for is.
fn enter_directory(prepared: &Prepared, asked: bool) -> Result<(), StepFailure> {
    let entered = rustix::process::chdir(prepared.directory.as_c_str());
    match (entered, asked) {
        (Err(errno), true) => Err(failure(Step::WorkingDirectory, &prepared.directory, errno.raw_os_error())),
        (Err(_), false) => rustix::process::chdir("/").at(Step::WorkingDirectory, "/"),
        (Ok(()), _) => Ok(()),
    }
}

/// What execve takes.
struct Prepared {
    programs: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
}

impl Prepared {
    fn new(process: &Process, user: &User) -> Result<Self, StepFailure> {
        let unfit = |_| StepFailure {
            step: Step::Execute,
            subject: String::from_utf8_lossy(process.argv.first().map_or(b"", Vec::as_slice)).into_owned(),
            errno: rustix::io::Errno::INVAL.raw_os_error(),
        };
        let variables = environment(process, user);
        let program = process.argv.first().map_or(b"".as_slice(), Vec::as_slice);
        let programs = candidates(OsStr::from_bytes(program), &variables).map_err(|_| unfit(()))?;
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| unfit(()));
        let argv = process.argv.iter().map(|word| text(word)).collect::<Result<_, _>>()?;
        let assignment =
            |(name, value): &(OsString, OsString)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat());
        let environment = variables.iter().map(assignment).collect::<Result<_, _>>()?;
        let directory = text(process.directory.as_deref().unwrap_or(user.home.as_bytes()))?;
        Ok(Self { programs, argv, environment, directory })
    }

    /// Becomes it. Returns only the reason why not.
    fn execute(&self) -> StepFailure {
        let Err((program, errno)) = execute_first(&self.programs, &self.argv, &self.environment);
        failure(Step::Execute, program, errno as i32)
    }
}

/// What a login would give, and what was asked for.
fn environment(process: &Process, user: &User) -> Vec<(OsString, OsString)> {
    let usual = [
        ("PATH", DEFAULT_PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("container", MANAGER),
    ];
    let mut variables: Vec<(OsString, OsString)> =
        usual.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    for (name, value) in &process.environment {
        let (name, value) = (OsString::from_vec(name.clone()), OsString::from_vec(value.clone()));
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
    }
    variables
}
