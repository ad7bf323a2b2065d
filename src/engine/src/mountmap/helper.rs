//! The helper that makes id-mapped mounts and nodes of devices (`node`): a process of one thread, forked from the engine before the engine gives up the
//! rights that it takes. It does nothing else, and ends with the engine.
//!
//! **How a mount is made.** A directory can be cloned only in the mount namespace that it was opened in. For each request
//! the helper makes a process, the *worker*, which makes a user namespace with the map, joins the shown mount namespace, looks on
//! which mount the directory is and whose it is, clones that mount, sets map and attributes while it is attached nowhere, locks
//! these, and answers with it. Nothing is left behind: what is not passed on is gone with the worker.
//!
//! **How attributes are locked.** The kernel locks them when it copies a mount namespace for another user namespace than the one
//! that rules it (`lock_mnt_tree` of `fs/namespace.c`); from then on nobody there can take them away. So the user namespace with
//! the map gets a mount namespace, too, a copy of the helper's; the worker attaches the mount there, makes a copy of that one for
//! the host's user namespace, and clones the mount out of the copy. Nobody else ever sees either.
//!
//! **What an attacker could want, and why it can't have it.** The attacker has every right in the mount namespace.
//!
//! * *Files shown as owned by ids that are not its own*, the host's root above all: what is shown are ids of the account's
//!   ranges, whatever the directory holds; so a set-user-ID file there makes nobody else of anybody. Files of other owners than
//!   those on the map are shown as nobody's: no right comes from owning them, and nothing can be written to them.
//! * *Another's directory*, to be its owner inside: it must belong to the account or to the range on the map, by the word of a
//!   file system that the kernel alone answers for ([`KINDS`]) and that the host has mounted. A descriptor without the right to
//!   read (`O_PATH`) is refused before it gets here.
//! * *Owners made up*: a mount that has a map already is refused (the kernel refuses a second one, too), and so is every
//!   file system that its mounter speaks for (FUSE, and what was mounted in a user namespace).
//! * *What lies hidden under other mounts*: one mount is cloned without those below it, which the kernel refuses where they
//!   were put there by somebody with more rights (`has_locked_children` of `fs/namespace.c`). The host's own mount namespace,
//!   where it would not, is none of the account's.
//! * *The worker*: it stays in the host's user namespace, so nobody has rights over it; it opens no path after it has joined,
//!   but its own list of mounts, by a directory of `/proc` that it had opened before.
//! * *To hold the helper up*: a file system whose server is the attacker is never asked: its type is read from the list of mounts.
//!   A worker that takes too long is killed; those that can't die are counted to the account, and to all.
//! * *To use up what the host's root needs*: each mount that somebody keeps has a user namespace and a nameless mount namespace,
//!   of which every uid may have so many (`user.max_user_namespaces`, `user.max_mnt_namespaces`). They are made in the account's
//!   name, and counted to it ([`counted_to`]). That makes the namespace with the map the account's own; it has no ids but those of the
//!   account, nobody is in it when it is done, and by its mount namespace nothing can be reached: nobody gets its descriptor.
//! * *To write through a mount that is read-only*, as root of the container that has it: attributes are locked.
//! * *Renaming, unmounting, dying meanwhile*: directory and namespace are pinned by their descriptors; the worker acts on these
//!   and on nothing that is found by name.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cgrant_sys::{
    Channel, Child, Clone3, Dir, MntnsFd, Pidfd, Received, UsernsFd,
    mount::{MountAttrFlags, MountChange, mount_setattr, move_mount, open_place, open_tree_clone},
    mount_table::{find, mount_of},
    pidfd::Signal,
    privilege, seqpacket,
};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, fstat},
    io::Errno,
    process::{Uid, getuid},
    thread::{capabilities, set_capabilities, set_thread_res_uid},
};

use super::{
    error::{MountRefusal, Step},
    message::{MountAnswer, MountRequest, Shift, ToHelper},
    node,
};
use crate::idmap::{seclude, timespec};

/// How long a worker may take: milliseconds, but on a machine that has much else to do. Nobody but its own account waits for it.
const WORKER_LIMIT: Duration = Duration::from_secs(10);
/// Most workers at one time.
const MAX_WORKERS: usize = 64;
/// Most workers of one account. Its requests come one after the other; the workers of those before may still be ending, which takes
/// the kernel a moment, or did not end in time.
const MAX_WORKERS_OF_ACCOUNT: usize = 4;
/// How long a request waits for the end of a worker of its account's. The engine waits for longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// File systems that can be mapped and for which the kernel alone answers.
const KINDS: [&str; 9] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "tmpfs"];

/// Starts the helper.
///
/// # Errors
/// As [`Clone3::spawn`].
pub fn start(channel: &Channel) -> io::Result<Child> {
    Clone3::new().spawn(|| {
        use privilege::Capability as C;
        // SYS_ADMIN and SYS_CHROOT: to join a mount namespace; SYS_ADMIN: to clone and to map, too. SETUID and SETGID: to write
        // maps. SYS_PTRACE: to name the user namespace of a process that is not dumpable, and to read of the first process.
        // MKNOD, and CHOWN to give the node away: for devices.
        let kept = [
            C::CAP_SYS_ADMIN,
            C::CAP_SYS_CHROOT,
            C::CAP_SETUID,
            C::CAP_SETGID,
            C::CAP_SYS_PTRACE,
            C::CAP_MKNOD,
            C::CAP_CHOWN,
        ];
        match seclude(channel, &kept) {
            Ok(()) => Helper { channel, workers: Vec::new(), waiting: Vec::new() }.run(),
            Err(_) => 1,
        }
    })
}

/// A process that makes one mount.
struct Worker {
    process: Pidfd,
    account: u32,
    /// When it is killed; `None` when it has been.
    deadline: Option<Instant>,
}

/// A request, and what came with it.
struct Asked {
    request: ToHelper,
    answer: Channel,
    shown: Vec<OwnedFd>,
}

struct Helper<'a> {
    channel: &'a Channel,
    workers: Vec<Worker>,
    /// Requests of accounts that have as many workers as they may, one of each at most, and until when they wait.
    waiting: Vec<(Asked, Instant)>,
}

impl Helper<'_> {
    /// Serves until the engine is gone. Workers that are left end by themselves.
    fn run(mut self) -> i32 {
        loop {
            let Ok(has_request) = self.wait() else { return 1 };
            self.settle();
            if has_request {
                match self.channel.receive() {
                    Ok(Some(received)) => self.begin(received),
                    Ok(None) => return 0,
                    Err(_) => (),
                }
            }
        }
    }

    /// Waits for a request, the end of a worker, or the end of one's time; says whether there is a request.
    fn wait(&self) -> Result<bool, Errno> {
        let mut fds = vec![PollFd::new(self.channel, PollFlags::IN)];
        fds.extend(self.workers.iter().map(|worker| PollFd::new(&worker.process, PollFlags::IN)));
        let ends = self.workers.iter().filter_map(|worker| worker.deadline);
        let next = ends.chain(self.waiting.iter().map(|(_, until)| *until)).min();
        let limit = next.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(fds.first().is_some_and(|channel| !channel.revents().is_empty())),
            Err(errno) => Err(errno),
        }
    }

    /// Reaps workers that have ended, kills those whose time is over, and goes on with what waited for one.
    fn settle(&mut self) {
        let now = Instant::now();
        self.workers.retain_mut(|worker| {
            if worker.deadline.is_some_and(|deadline| deadline <= now) {
                let _ = worker.process.send_signal(Signal::KILL);
                worker.deadline = None;
            }
            worker.process.try_wait().is_ok_and(|exit| exit.is_none())
        });
        for (asked, until) in std::mem::take(&mut self.waiting) {
            if self.has_room(asked.request.account()) {
                self.start(asked);
            } else if until <= now {
                refuse(&asked.answer, MountRefusal::TooMany);
            } else {
                self.waiting.push((asked, until));
            }
        }
    }

    fn has_room(&self, account: u32) -> bool {
        let of_account = self.workers.iter().filter(|worker| worker.account == account).count();
        self.workers.len() < MAX_WORKERS && of_account < MAX_WORKERS_OF_ACCOUNT
    }

    /// Has a request carried out, now or when an earlier one of its account has ended.
    fn begin(&mut self, received: Received) {
        let mut fds = received.fds.into_iter();
        let Some(Ok(answer)) = fds.next().map(Channel::from_fd) else { return };
        let Ok(request) = cgrant_wire::decode::<ToHelper>(&received.bytes) else { return };
        let account = request.account();
        let asked = Asked { request, answer, shown: fds.collect() };
        if self.has_room(account) {
            self.start(asked);
        } else if self.waiting.len() >= MAX_WORKERS
            || self.waiting.iter().any(|(waiting, _)| waiting.request.account() == account)
        {
            refuse(&asked.answer, MountRefusal::TooMany);
        } else {
            self.waiting.push((asked, Instant::now() + PATIENCE));
        }
    }

    /// Makes a worker for a request.
    fn start(&mut self, Asked { request, answer, shown }: Asked) {
        match Clone3::new().spawn(|| work(&answer, &shown, &request)) {
            Ok(child) => self.workers.push(Worker {
                process: child.pidfd,
                account: request.account(),
                deadline: Some(Instant::now() + WORKER_LIMIT),
            }),
            Err(error) => refuse(&answer, MountRefusal::at(Step::Fork)(error)),
        }
    }
}

fn refuse(answer: &Channel, refusal: MountRefusal) {
    if let Ok(bytes) = cgrant_wire::encode(&MountAnswer::Err(refusal)) {
        // An asker who has given up is no fault of ours.
        let _ = answer.send(&bytes, &[]);
    }
}

/// The whole life of a worker.
fn work(answer: &Channel, shown: &[OwnedFd], request: &ToHelper) -> i32 {
    let keep: Vec<_> =
        [answer.as_fd()].into_iter().chain(shown.iter().map(AsFd::as_fd)).map(|fd| fd.as_raw_fd()).collect();
    if privilege::close_fds_from(0, &keep).is_err() {
        return 1;
    }
    let made = match (request, shown) {
        (ToHelper::Directory(request), [directory, namespace]) => mount(directory, namespace, request),
        (ToHelper::Node(request), [host]) => node::make(host, request),
        _ => return 1,
    };
    let sent = made.and_then(|mount| {
        let failed = |error: String| MountRefusal::at(Step::Answer)(io::Error::other(error));
        let bytes = cgrant_wire::encode(&MountAnswer::Ok(())).map_err(|error| failed(error.to_string()))?;
        answer.send(&bytes, &[mount.as_fd()]).map_err(|error| failed(error.to_string()))
    });
    match sent {
        Ok(()) => 0,
        Err(refusal) => {
            refuse(answer, refusal);
            1
        }
    }
}

fn mount(directory: &OwnedFd, namespace: &OwnedFd, request: &MountRequest) -> Result<OwnedFd, MountRefusal> {
    let look = MountRefusal::at(Step::Look);
    // All that is opened by path, before the namespace is joined.
    let own = Dir::open(Path::new("/proc/self")).map_err(&look)?;
    let hosts = ["/proc/self/mountinfo", "/proc/1/mountinfo"].map(File::open);
    let mount = mount_of(directory).map_err(&look)?;
    let map = Map::new(request).map_err(MountRefusal::at(Step::Ids))?;
    let namespace = namespace.try_clone().map_err(MountRefusal::at(Step::Join))?;
    let namespace =
        MntnsFd::from_fd(namespace).map_err(|error| MountRefusal::at(Step::Join)(io::Error::other(error)))?;
    namespace.enter().map_err(MountRefusal::at(Step::Join))?;
    check_mount(&own, hosts, mount)?;
    check_owner(directory, request)?;
    let clone = open_tree_clone(directory, Path::new(""), false).map_err(MountRefusal::at(Step::Clone))?;
    let mut set = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    set.set(MountAttrFlags::MOUNT_ATTR_RDONLY, request.read_only);
    let change = MountChange { set, id_map: Some(map.ids.as_fd()), ..MountChange::default() };
    mount_setattr(&clone, &change).map_err(MountRefusal::at(Step::Attributes))?;
    locked(&clone, &map.mounts, request.account).map_err(MountRefusal::at(Step::Lock))
}

/// Does something with the account as effective uid, to whom the kernel counts the namespaces that come of it. Rights stay as
/// they are, and so do real and saved uid, by which the kernel decides who may send signals.
pub(super) fn counted_to<T>(account: u32, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (own, rights) = (getuid(), capabilities(None)?);
    let become_effective = |uid| {
        set_thread_res_uid(own, uid, own)?;
        // The change took effective rights, and made this process what fs.suid_dumpable says.
        set_capabilities(None, rights)?;
        privilege::set_dumpable(false)
    };
    become_effective(Uid::from_raw(account))?;
    let done = action();
    become_effective(own)?;
    done
}

/// The mount with its attributes locked. `mounts` is a mount namespace of nobody's that is not ruled by the host's user
/// namespace. Afterwards this process is in a copy of it, which is.
fn locked(mount: &OwnedFd, mounts: &MntnsFd, account: u32) -> io::Result<OwnedFd> {
    mounts.enter()?;
    let place = || open_place(Path::new("/proc"));
    move_mount(mount, place()?, Path::new(""))?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // The last that was attached there.
    let place = place()?;
    counted_to(account, || open_tree_clone(place, Path::new(""), false))
}

/// Is the mount of this number one that may be mapped? `own` is this process's directory in `/proc`, whose list of mounts is
/// that of the namespace by now; `hosts` are lists that were opened before.
fn check_mount(own: &Dir, hosts: [io::Result<File>; 2], id: u64) -> Result<(), MountRefusal> {
    let look = MountRefusal::at(Step::Look);
    let list = own.open_file("mountinfo", OFlags::RDONLY).map(File::from).map_err(&look)?;
    let found = find(list, |mount| mount.id == id).map_err(&look)?.ok_or(MountRefusal::Elsewhere)?;
    if found.id_mapped {
        return Err(MountRefusal::Mapped);
    }
    if !KINDS.contains(&found.kind.as_str()) {
        return Err(MountRefusal::FileSystem(found.kind));
    }
    for list in hosts {
        if find(list.map_err(&look)?, |mount| mount.device == found.device).map_err(&look)?.is_some() {
            return Ok(());
        }
    }
    Err(MountRefusal::NotTheHosts)
}

/// Does the directory belong to the account, or to what is to be shown?
fn check_owner(directory: &OwnedFd, request: &MountRequest) -> Result<(), MountRefusal> {
    let owner = fstat(directory).map_err(|errno| MountRefusal::at(Step::Owner)(errno.into()))?.st_uid;
    if owner == request.account || request.uids.has_on_disk(owner) {
        return Ok(());
    }
    Err(MountRefusal::Others(owner))
}

/// The map that is asked for, as the kernel takes it.
struct Map {
    /// A user namespace with these ids. Nobody is in it.
    ids: UsernsFd,
    /// A mount namespace that it rules.
    mounts: MntnsFd,
}

impl Map {
    fn new(request: &MountRequest) -> io::Result<Self> {
        let (gate, far_end) = seqpacket::pair()?;
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
        let life = || {
            let kept = [far_end.as_fd().as_raw_fd()];
            match privilege::close_fds_from(0, &kept) {
                // Until the other end is closed, or its process has died.
                Ok(()) => i32::from(!matches!(far_end.receive(), Ok(None))),
                Err(_) => 1,
            }
        };
        // It can be killed by the account, whose request ends then.
        let child = counted_to(request.account, || Clone3::new().flags(flags).spawn(life))?;
        let made = Self::of(&child, request);
        drop(gate);
        let _ = child.pidfd.send_signal(Signal::KILL);
        child.pidfd.wait()?;
        made
    }

    fn of(child: &Child, request: &MountRequest) -> io::Result<Self> {
        let path = PathBuf::from(format!("/proc/{}", child.pid));
        let directory = Dir::open(&path)?;
        let write = |file: &str, shift: Shift| directory.write(file, &shift.line());
        write("gid_map", request.gids)?;
        write("uid_map", request.uids)?;
        let mounts = File::open(path.join("ns/mnt"))?.into();
        Ok(Self {
            ids: child.pidfd.user_namespace()?,
            mounts: MntnsFd::from_fd(mounts).map_err(io::Error::other)?,
        })
    }
}
