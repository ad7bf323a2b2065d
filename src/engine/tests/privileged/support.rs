//! Processes to test with.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::{Child, Clone3, Exit, UsernsFd, privilege};
use nix::sched::{CloneFlags, unshare};
use rustix::pipe::{PipeFlags, pipe_with};

/// A process in a user namespace of its own, that does what it is told, byte by byte.
pub struct Inside {
    /// The process.
    pub child: Child,
    orders: File,
    answers: File,
}

/// What it can be told to do.
#[derive(Clone, Copy)]
pub enum Order {
    /// Become uid and gid 0 and say whether that went well.
    BecomeRoot = 1,
    /// Call setgroups and say whether that went well.
    Setgroups = 2,
    /// Write a map of its own: its uid as 0.
    MapItself = 3,
    /// Make another user namespace in this one, after it has been mapped.
    Nest = 4,
}

impl Inside {
    /// A process of this user, in a new user namespace that it made itself.
    pub fn of(uid: u32) -> Self {
        let (order_end, orders) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (answers, answer_end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let child = Clone3::new().spawn(|| live(uid, &order_end, &answer_end, &orders)).unwrap();
        drop((order_end, answer_end));
        let mut inside = Self { child, orders: orders.into(), answers: answers.into() };
        assert!(inside.answer(), "the user could not make a user namespace");
        inside
    }

    /// Gives an order; says whether it could be carried out.
    pub fn order(&mut self, order: Order) -> bool {
        self.orders.write_all(&[order as u8]).unwrap();
        self.answer()
    }

    fn answer(&mut self) -> bool {
        let mut answer = [0];
        self.answers.read_exact(&mut answer).is_ok_and(|()| answer == [1])
    }

    /// Its user namespace.
    pub fn namespace(&self) -> UsernsFd {
        let file = File::open(format!("/proc/{}/ns/user", self.child.pid)).unwrap();
        UsernsFd::from_fd(file.into()).unwrap()
    }

    /// A file of its directory in `/proc`, in one line.
    pub fn proc(&self, file: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.child.pid)).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A field of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        status(self.child.pid, field)
    }

    /// Ends it.
    pub fn end(self) {
        drop(self.orders);
        self.child.pidfd.wait().unwrap();
    }
}

/// A field of a process's `/proc/PID/status`.
pub fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn live(uid: u32, orders: &OwnedFd, answers: &OwnedFd, other_end: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    // Without this the end of the orders would never come.
    privilege::close_fds_from(3, &[orders.as_raw_fd(), answers.as_raw_fd()]).unwrap();
    let _ = other_end;
    let made = privilege::become_account(uid, uid).is_ok() && unshare(CloneFlags::CLONE_NEWUSER).is_ok();
    // So that it can write its own map.
    privilege::set_dumpable(true).unwrap();
    say(answers, made);
    loop {
        let mut order = [0];
        match rustix::io::read(orders, &mut order) {
            Ok(1) => say(answers, obey(order[0], uid)),
            _ => return 0,
        }
    }
}

fn obey(order: u8, uid: u32) -> bool {
    match order {
        1 => {
            nix::unistd::setresgid(0.into(), 0.into(), 0.into()).is_ok()
                && nix::unistd::setresuid(0.into(), 0.into(), 0.into()).is_ok()
        }
        2 => nix::unistd::setgroups(&[]).is_ok(),
        3 => std::fs::write("/proc/self/uid_map", format!("0 {uid} 1\n")).is_ok(),
        _ => unshare(CloneFlags::CLONE_NEWUSER).is_ok(),
    }
}

fn say(answers: &OwnedFd, well: bool) {
    rustix::io::write(answers, &[u8::from(well)]).unwrap();
}

/// Runs `work` in a child; it must end well.
pub fn in_child(work: impl FnOnce()) -> Child {
    Clone3::new()
        .spawn(|| {
            work();
            0
        })
        .unwrap()
}

/// The child ended well.
pub fn ended_well(child: &Child) {
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
}

/// Waits until a descriptor is readable; `false` if that takes longer than 10 s.
pub fn readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}
