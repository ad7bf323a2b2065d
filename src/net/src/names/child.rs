//! A name server's process: dnsmasq in namespaces of its own, as an account that has no rights on the host.
//!
//! What an attacker could want: to make dnsmasq, which reads what containers send, do something on the host. It runs as
//! an account that nothing belongs to; its three capabilities are over a network namespace with one device on the bridge,
//! whose packets are filtered like a container's; it sees `/run` as a read-only directory of its own files; it can't
//! mount, trace, make or enter namespaces, or load anything into the kernel; and its memory, files and processes
//! are bounded. It is the first process of its process namespace, so what it forks ends with it.
//!
//! The child waits at a gate until its device is there, recorded and filtered. If the helper ends before, so does it.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io::{self, Read, Seek},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use cgrant_sys::{
    Channel, Clone3, NetnsFd, Pidfd,
    pidfd::Signal,
    privilege::{self, Capability, close_fds_from},
    seccomp, seqpacket, signals,
};
use cgrant_wire::patience;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::CloneFlags,
};
use rustix::{
    fs::{CWD, MemfdFlags, Mode, OFlags, memfd_create},
    net::sockopt::{Timeout, set_socket_timeout},
    process::{Resource, Rlimit, setrlimit},
};

/// Where it sees its files.
pub const PLACE: &CStr = c"/run";
/// Status of a child that could not execute the program.
const NOT_STARTED: i32 = 127;
/// How much of what it complains about is kept, in bytes.
const COMPLAINT: u64 = 2048;

/// Everything is in a namespace of its own.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// What it needs in its own network namespace: ports below 1024, ICMP and ARP entries for DHCP.
const CAPABILITIES: &[Capability] =
    &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE, Capability::CAP_NET_RAW];

/// Bounds; a TCP question makes it fork, twenty times at most.
const LIMITS: &[(Resource, u64)] = &[
    (Resource::As, 512 * 1024 * 1024),
    (Resource::Core, 0),
    (Resource::Fsize, 64 * 1024),
    (Resource::Nofile, 1024),
    (Resource::Nproc, 64),
];

/// What dnsmasq never calls and what has been the way out of programs like it.
const REFUSED: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clone3,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Who it becomes, and where its files are.
#[derive(Debug, Clone, Copy)]
pub struct Confinement<'a> {
    /// The program.
    pub program: &'a Path,
    /// Directory of its files, on the host.
    pub files: &'a Path,
    /// Its account, on the host and in its namespace.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// A child at the gate. It ends with it.
#[derive(Debug)]
pub struct Waiting {
    /// Its pid.
    pub pid: u32,
    /// Its pidfd.
    pub pidfd: Pidfd,
    /// Its network namespace.
    pub netns: NetnsFd,
    gate: Channel,
    complaints: OwnedFd,
}

impl Waiting {
    /// Makes the child and its namespaces.
    ///
    /// # Errors
    /// Those of `clone3(2)`, of writing id maps, of opening files in `/proc`.
    pub fn start(confinement: &Confinement<'_>) -> io::Result<Self> {
        let (gate, theirs) = seqpacket::pair()?;
        set_socket_timeout(&gate, Timeout::Recv, Some(patience::NAME_SERVER))?;
        let complaints = memfd_create("complaints", MemfdFlags::CLOEXEC)?;
        let child = Clone3::new().flags(NAMESPACES).spawn(|| confinement.become_it(&theirs, &complaints))?;
        let made = Self::map(child.pid, confinement).and_then(|()| {
            let netns = std::fs::File::open(format!("/proc/{}/ns/net", child.pid))?;
            NetnsFd::from_fd(netns.into()).map_err(io::Error::other)
        });
        match made {
            Ok(netns) => Ok(Self { pid: child.pid, pidfd: child.pidfd, netns, gate, complaints }),
            Err(error) => {
                let _ = child.pidfd.send_signal(Signal::KILL);
                let _ = child.pidfd.wait();
                Err(error)
            }
        }
    }

    /// One uid and one gid, the same inside and outside. The child is ours, and waits.
    fn map(pid: u32, confinement: &Confinement<'_>) -> io::Result<()> {
        let Confinement { uid, gid, .. } = confinement;
        std::fs::write(format!("/proc/{pid}/uid_map"), format!("{uid} {uid} 1\n"))?;
        std::fs::write(format!("/proc/{pid}/gid_map"), format!("{gid} {gid} 1\n"))
    }

    /// Lets it go, and waits until it executes the program.
    ///
    /// # Errors
    /// What kept it from that; it has ended then.
    pub fn go(self) -> io::Result<Started> {
        let result = self.gate.send(b"go", &[]).map_err(io::Error::other).and_then(|()| {
            // The gate closes when the program is executed. A child that can't says why.
            match self.gate.receive() {
                Ok(None) => Ok(()),
                Ok(Some(reason)) => {
                    Err(io::Error::other(String::from_utf8_lossy(&reason.bytes).into_owned()))
                }
                Err(error) => Err(io::Error::other(error)),
            }
        });
        match result {
            Ok(()) => Ok(Started { pidfd: self.pidfd, complaints: self.complaints }),
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Ends it.
    pub fn end(self) {
        let _ = self.pidfd.send_signal(Signal::KILL);
        let _ = self.pidfd.wait();
    }
}

/// A child that executes the program.
#[derive(Debug)]
pub struct Started {
    /// Its pidfd.
    pub pidfd: Pidfd,
    complaints: OwnedFd,
}

impl Started {
    /// What it said before it ended: why it could not start.
    pub fn complaint(self) -> String {
        let mut file = std::fs::File::from(self.complaints);
        let mut bytes = Vec::new();
        let _ = file.rewind().and_then(|()| file.take(COMPLAINT).read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        text.split(|sign: char| sign.is_control())
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}

impl Confinement<'_> {
    /// The child's part; returns only when it failed.
    fn become_it(&self, gate: &Channel, complaints: &OwnedFd) -> i32 {
        let Err(error) = self.prepare(gate, complaints);
        let _ = gate.send(error.to_string().as_bytes(), &[]);
        NOT_STARTED
    }

    fn prepare(&self, gate: &Channel, complaints: &OwnedFd) -> io::Result<Infallible> {
        let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        nix::unistd::dup2_stderr(complaints)?;
        // Its copy of the gate's other end is among them, without which the helper's end would not be noticed.
        close_fds_from(3, &[gate.as_fd().as_raw_fd()])?;
        if gate.receive().ok().flatten().is_none() {
            // The helper has ended, or thought better of it.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.see_own_files()?;
        // From root, which has no number here, to an account that has one: capabilities stay, over what is ours.
        privilege::become_account(self.uid, self.gid)?;
        privilege::drop_capabilities(CAPABILITIES)?;
        privilege::keep_through_exec(CAPABILITIES)?;
        for (resource, limit) in LIMITS {
            setrlimit(*resource, Rlimit { current: Some(*limit), maximum: Some(*limit) })?;
        }
        signals::reset()?;
        // It is told of changes by this signal, which would end it before it has an action for it. It reads its
        // files after that.
        signals::ignore(nix::sys::signal::Signal::SIGHUP)?;
        nix::unistd::setsid()?;
        nix::unistd::chdir("/")?;
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let file = format!("--conf-file={}/{}", PLACE.to_string_lossy(), super::CONFIGURATION);
        let arguments = [c"dnsmasq".to_owned(), c"--keep-in-foreground".to_owned(), CString::new(file)?];
        let environment: [&CStr; 0] = [];
        privilege::set_no_new_privs()?;
        seccomp::refuse(REFUSED).map_err(io::Error::other)?;
        Ok(nix::unistd::execve(&program, &arguments, &environment)?)
    }

    /// In a mount namespace of its own, `/run` is the directory of its files and nothing else: sockets and files of
    /// the host's services are out of sight.
    fn see_own_files(&self) -> io::Result<()> {
        let none = None::<&CStr>;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some(self.files), PLACE, none, MsFlags::MS_BIND, none)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        Ok(mount(none, PLACE, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, none)?)
    }
}
