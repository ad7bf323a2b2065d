//! Giving up rights, and making sure that they are gone.
//!
//! Capabilities, no_new_privs and the parent-death signal belong to a thread: what sets them here refuses in a
//! process with more than one. Sources: `capabilities(7)`, `credentials(7)`, `prctl(2)`.

use std::io;
use std::os::fd::RawFd;

use caps::CapSet;
use nix::unistd::{Gid, Uid, getgroups, getresgid, getresuid, setgroups, setresgid, setresuid};
use rustix::fs::stat;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};

pub use caps::Capability;

/// Capability numbers are tried up to this one, whatever this program's libraries know of.
const MAX_CAPABILITY: u32 = 63;

/// How many threads this process has.
///
/// Source: `proc_task_getattr` of `fs/proc/base.c`: the links of the directory of threads are two, and one for each.
///
/// # Errors
/// Those of looking at `/proc/self/task`; `ENOTSUP` if it does not count.
pub fn thread_count() -> io::Result<usize> {
    let links = stat("/proc/self/task")?.st_nlink;
    let threads = usize::try_from(links).ok().and_then(|links| links.checked_sub(2));
    Ok(threads.filter(|threads| *threads > 0).ok_or(Errno::NOTSUP)?)
}

/// `EBUSY` unless this process has exactly one thread.
pub(crate) fn require_one_thread() -> io::Result<()> {
    if thread_count()? == 1 { Ok(()) } else { Err(Errno::BUSY.into()) }
}

/// Becomes an account for good: no supplementary groups, real, effective and saved gid and uid. Verified afterwards;
/// from root to another uid all effective and permitted capabilities go with it.
///
/// # Errors
/// `EPERM` without the rights to; `EBUSY` if it did not take, after which the process should end at once.
pub fn become_account(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    let is_account = [uids.real, uids.effective, uids.saved] == [uid; 3]
        && [gids.real, gids.effective, gids.saved] == [gid; 3]
        && getgroups()?.is_empty();
    // A process that can take root's uid again has given up nothing.
    let is_final = uid.is_root() || setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err();
    if is_account && is_final { Ok(()) } else { Err(Errno::BUSY.into()) }
}

/// Keeps those of `keep` that the process has, as permitted, effective and bounding; inheritable and ambient are emptied.
/// Not even root gets another one back by `execve(2)`.
///
/// # Errors
/// `EBUSY` with more than one thread; `EPERM` without `CAP_SETPCAP` while capabilities are to leave the bounding set.
pub fn drop_capabilities(keep: &[Capability]) -> io::Result<()> {
    require_one_thread()?;
    let kept = keep
        .iter()
        .fold(CapabilitySet::empty(), |kept, capability| kept | as_set(u32::from(capability.index())));
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    bound_to(kept)?;
    let had = rustix::thread::capabilities(None)?.permitted;
    let left =
        CapabilitySets { effective: had & kept, permitted: had & kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, left)?;
    if rustix::thread::capabilities(None)? == left { Ok(()) } else { Err(Errno::BUSY.into()) }
}

/// Empties the bounding set: no program that this process executes gets a capability from its file or by being root's.
/// What the process has it keeps, to use up on the way to its account.
///
/// # Errors
/// `EBUSY` with more than one thread; `EPERM` without `CAP_SETPCAP`.
pub fn empty_bounding_set() -> io::Result<()> {
    require_one_thread()?;
    bound_to(CapabilitySet::empty())
}

/// Leaves only these in the bounding set.
fn bound_to(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..=MAX_CAPABILITY {
        let capability = as_set(number);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => (),
            // The kernel's last capability was the one before.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Keeps these of its permitted capabilities through `execve(2)` of a program that has none of its own, as an
/// account that is not root (ambient capabilities, from kernel 4.3 on).
///
/// # Errors
/// `EBUSY` with more than one thread; `EPERM` for one that the process does not have.
pub fn keep_through_exec(keep: &[Capability]) -> io::Result<()> {
    require_one_thread()?;
    let had = rustix::thread::capabilities(None)?;
    let kept = keep
        .iter()
        .fold(CapabilitySet::empty(), |kept, capability| kept | as_set(u32::from(capability.index())));
    set_capabilities(None, CapabilitySets { inheritable: kept, ..had })?;
    for capability in kept.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

fn as_set(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

/// No program that this process executes gets more rights than it has, whatever its set-uid bits and file capabilities.
///
/// # Errors
/// `EBUSY` with more than one thread.
pub fn set_no_new_privs() -> io::Result<()> {
    require_one_thread()?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// May processes of the same uid read this one's memory, and open what is in its `/proc` directory?
///
/// # Errors
/// Those of `prctl(2)`.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    let behavior = if dumpable { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    Ok(set_dumpable_behavior(behavior)?)
}

/// Closes every descriptor from `first` on but those in `keep`, in a child that has just been forked.
///
/// For the child's function of [`crate::Clone3::spawn`] alone: what the parent's variables own there is never dropped,
/// so nobody closes a number twice. What the function itself uses must be in `keep`.
///
/// # Errors
/// `EINVAL` for a negative number.
pub fn close_fds_from(first: RawFd, keep: &[RawFd]) -> io::Result<()> {
    each_gap(first, keep, close_range)
}

/// Calls `action` on each range of numbers from `first` on that has none of `keep` in it, both ends included.
fn each_gap(
    first: RawFd,
    keep: &[RawFd],
    mut action: impl FnMut(u32, u32) -> io::Result<()>,
) -> io::Result<()> {
    let mut from = u32::try_from(first).map_err(|_| Errno::INVAL)?;
    let mut keep =
        keep.iter().map(|fd| u32::try_from(*fd)).collect::<Result<Vec<_>, _>>().map_err(|_| Errno::INVAL)?;
    keep.sort_unstable();
    for kept in keep.into_iter().filter(|kept| *kept >= from).collect::<Vec<_>>() {
        if kept > from {
            action(from, kept.saturating_sub(1))?;
        }
        from = from.max(kept.saturating_add(1));
    }
    action(from, u32::MAX)
}

fn close_range(from: u32, to: u32) -> io::Result<()> {
    // SAFETY: takes and touches no memory. Who owns the numbers is the business of the caller, which says so.
    let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn gaps(first: RawFd, keep: &[RawFd]) -> Vec<(u32, u32)> {
        let mut gaps = Vec::new();
        each_gap(first, keep, |from, to| {
            gaps.push((from, to));
            Ok(())
        })
        .unwrap();
        gaps
    }

    #[test]
    fn kept_descriptors_lie_in_no_gap() {
        let max = u32::MAX;
        assert_eq!(gaps(3, &[]), [(3, max)]);
        assert_eq!(gaps(3, &[3]), [(4, max)]);
        assert_eq!(gaps(3, &[9, 5, 5, 4, 1]), [(3, 3), (6, 8), (10, max)]);
        assert_eq!(gaps(0, &[0, 1, 2]), [(3, max)]);
        assert!(each_gap(-1, &[], |_, _| Ok(())).is_err());
        assert!(each_gap(3, &[-1], |_, _| Ok(())).is_err());
    }

    #[test]
    fn what_belongs_to_one_thread_is_not_set_among_several() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || receiver.recv());
        assert!(thread_count().unwrap() > 1);
        let busy = Some(libc::EBUSY);
        assert_eq!(drop_capabilities(&[]).unwrap_err().raw_os_error(), busy);
        assert_eq!(empty_bounding_set().unwrap_err().raw_os_error(), busy);
        assert_eq!(set_no_new_privs().unwrap_err().raw_os_error(), busy);
        let filtered = crate::seccomp::apply(&[], crate::seccomp::Action::Refuse);
        assert!(matches!(filtered, Err(crate::seccomp::SeccompError::Threads(_))));
        let spawned = crate::Clone3::new().spawn(|| 0);
        assert_eq!(spawned.unwrap_err().raw_os_error(), busy);
        drop(sender);
        assert!(thread.join().unwrap().is_err());
    }
}
