//! The helper that loads and attaches programs: a process of one thread, forked from the engine before the engine gives up the
//! rights that it takes. It does nothing else, and ends with the engine.
//!
//! **Its rights.** Of capabilities it keeps `SYS_ADMIN` and `NET_ADMIN`. `BPF` and `NET_ADMIN` together would load programs, but one
//! that was attached before a restart can only be replaced with a descriptor of it, and the kernel makes one by number for
//! `SYS_ADMIN` only. That contains `BPF`; and `NET_ADMIN` from Linux 6.9 on, before which asking what is attached takes that itself.
//! The broker's bounding set grows by none. It calls nothing but what takes messages and answers them, and five
//! commands of `bpf(2)` (seccomp): of what the two open, programs and their attachment to cgroups by descriptor are
//! left; it opens no file and no socket, and no program of others gets a place to run at.
//!
//! **What an attacker could want, and why it can't have it.**
//!
//! * *Another program*: instructions are made here, from numbers. There is no other message, and no caller's byte in it but
//!   numbers of nodes that the host has.
//! * *Another cgroup*: the engine opens the grant's own, root's, by names that it checked; the kernel refuses what is no
//!   directory of cgroup2.
//! * *To be rid of it*. It is attached to a cgroup whose directory nobody but root can write to, and so that the kernel wants a
//!   descriptor of the program from whoever detaches or replaces it: nobody has one, and who would ask for it by its number
//!   needs `SYS_ADMIN` on the host. It is asked about every cgroup below too, whatever is attached there.
//! * *To hold others up*: a request is some calls that wait for nobody. The kernel attaches one program at a time anyway.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{
    Channel, Child, Clone3, Received,
    bpf::{self, Device, DeviceAccess, DeviceProgram},
    privilege::Capability,
    seccomp,
};
use nix::libc;
use rustix::io::Errno;

use super::{
    list::Number,
    message::{Done, Request},
};
use crate::idmap::{answer, seclude};

/// What it calls beside what every program does.
const CALLS: [i64; 2] = [libc::SYS_recvmsg, libc::SYS_sendmsg];
/// Programs that stay loaded for the next grant with the same devices: most have none but the standard ones.
const KEPT: usize = 16;

/// What every container has (null, zero, full, random, urandom; tty, console, ptmx) and all pseudoterminals
/// (Documentation/admin-guide/devices.txt of the kernel).
const STANDARD: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Starts the helper.
///
/// # Errors
/// As [`Clone3::spawn`].
pub fn start(channel: &Channel) -> io::Result<Child> {
    Clone3::new().spawn(|| match confine(channel) {
        Ok(()) => Helper { loaded: Vec::new() }.serve(channel),
        Err(_) => 1,
    })
}

fn confine(channel: &Channel) -> io::Result<()> {
    seclude(channel, &[Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN])?;
    let allowed: Vec<i64> = seccomp::RUNTIME.iter().chain(&CALLS).copied().collect();
    let narrowed: [(i64, &[u32]); 1] = [(libc::SYS_bpf, &bpf::COMMANDS)];
    seccomp::apply_narrowed(&allowed, &narrowed, seccomp::Action::Refuse).map_err(io::Error::other)
}

struct Helper {
    /// What was loaded last, and for which devices; the newest last.
    loaded: Vec<(Vec<Number>, DeviceProgram)>,
}

impl Helper {
    /// Serves until the engine is gone. What is attached stays.
    fn serve(mut self, channel: &Channel) -> i32 {
        loop {
            match channel.receive() {
                Ok(Some(received)) => self.carry_out(received),
                Ok(None) => return 0,
                Err(_) => (),
            }
        }
    }

    fn carry_out(&mut self, received: Received) {
        let mut fds = received.fds.into_iter();
        let (Some(pipe), Ok(request)) = (fds.next(), cgrant_wire::decode::<Request>(&received.bytes)) else {
            return;
        };
        let done: Done = self
            .perform(request, fds.next())
            .map_err(|error| error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
        answer(&pipe, &done);
    }

    fn perform(&mut self, request: Request, cgroup: Option<OwnedFd>) -> io::Result<()> {
        match (request, cgroup) {
            (Request::Try, _) => self.program(Vec::new()).map(drop),
            (Request::New(numbers), Some(cgroup)) => self.program(numbers)?.attach(cgroup.as_fd()),
            (Request::Set(numbers), Some(cgroup)) => {
                let before = DeviceProgram::attached(cgroup.as_fd())?;
                let program = self.program(numbers)?;
                match before {
                    Some(before) => program.replace(cgroup.as_fd(), &before),
                    None => program.attach(cgroup.as_fd()),
                }
            }
            (_, None) => Err(Errno::BADF.into()),
        }
    }

    /// The program for the standard devices and these.
    fn program(&mut self, numbers: Vec<Number>) -> io::Result<&DeviceProgram> {
        if let Some(at) = self.loaded.iter().position(|(known, _)| *known == numbers) {
            let known = self.loaded.remove(at);
            self.loaded.push(known);
        } else {
            let standard = STANDARD.map(|(major, minor)| Device { major, minor, access: DeviceAccess::ALL });
            let all: Vec<Device> =
                standard.into_iter().chain(numbers.iter().map(|number| number.device())).collect();
            let program = DeviceProgram::load(&all)?;
            if self.loaded.len() >= KEPT {
                self.loaded.remove(0);
            }
            self.loaded.push((numbers, program));
        }
        self.loaded.last().map(|(_, program)| program).ok_or_else(|| Errno::IO.into())
    }
}
