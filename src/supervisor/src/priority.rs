//! How the broker's processes stand to each other where they want the same processor. Touches the nice values of children only.

use rustix::process::{Pid, getpriority_process, setpriority_process};

use crate::child::Role;

impl Role {
    /// What is added to the nice value that a child begins with (sched(7), "The nice value"), which is the administrator's to set.
    ///
    /// A call goes from client to front to engine and back. Who is woken may be put in the place of who woke it before that one has
    /// gone to sleep; whoever is woken next is then sent to another processor, for there are two that want this one, and to wake an
    /// idle processor takes longer than the work of a call. So no front takes the engine's place, nor soon a client's; and no more
    /// than a few processes that never sleep come between the engine and the kernel's locks for all cgroups, which everybody waits for.
    ///
    /// What an attacker could want: the engine's work before that of everybody else on the host. It gets that for the requests that
    /// its account has a quota of, each passed on by a front that itself comes after them.
    fn nice(self) -> i32 {
        match self {
            Self::Engine => -10,
            Self::Front(_) => 3,
            Self::Net => 0,
        }
    }
}

/// Gives a child its place, which all its threads and processes inherit: it has one thread as yet, for it waits for its boot message.
///
/// Where we lack the right (no CAP_SYS_NICE, in a container maybe) it stays as it began; then calls take longer, no more.
pub fn place(role: Role, pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let placed =
        getpriority_process(Some(pid)).and_then(|began| setpriority_process(Some(pid), began + role.nice()));
    if let Err(error) = placed {
        tracing::debug!(child = role.name(), %error, "its nice value stays");
    }
}
