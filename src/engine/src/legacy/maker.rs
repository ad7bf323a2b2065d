//! Making a cgroup as whoever it is for, so that the kernel gives it to that one with all its files.
//!
//! Giving each file away by its name takes the kernel longer than making the cgroup: it has to look every one of them up. What a
//! thread makes belongs to the ids that it has for file systems (`cgroup_kn_set_ugid` of `kernel/cgroup/cgroup.c`, since 3.16).
//!
//! An attacker wants to be taken for somebody else, or for root. While a thread has a caller's ids for file systems it has none
//! of root's rights over files, and the kernel looks itself whether that caller may make something there; nothing but that one
//! call is made with them. No thread goes on with ids that are not its own: the process ends then.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// No id: the kernel only tells what there is.
const NONE: u32 = u32::MAX;

/// A thread that has the ids of somebody else for file systems, until this is dropped.
struct Borrowed;

impl Borrowed {
    fn new((uid, gid): (u32, u32)) -> Self {
        setfsgid(Gid::from_raw(gid));
        // Last, since the rights over files go with it.
        setfsuid(Uid::from_raw(uid));
        Self
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives this thread root's ids for file systems again; says which it had.
fn give_back() -> (u32, u32) {
    let had = set(0);
    let (uid, gid) = set(NONE);
    // Where the calls are refused there was nothing to give back.
    if [uid, gid].iter().any(|id| ![0, NONE].contains(id)) {
        tracing::error!(uid, gid, "a thread can't get its ids back");
        std::process::abort();
    }
    had
}

/// Sets both ids of this thread for file systems; says which it had.
fn set(id: u32) -> (u32, u32) {
    (setfsuid(Uid::from_raw(id)).as_raw(), setfsgid(Gid::from_raw(id)).as_raw())
}

/// Does `make` with these ids for file systems. Did it have them? If not, because this process may not, it had root's.
pub fn as_owner<T>(ids: (u32, u32), make: impl FnOnce() -> T) -> (T, bool) {
    let borrowed = Borrowed::new(ids);
    let made = make();
    std::mem::forget(borrowed);
    (made, give_back() == ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    const IDS: (u32, u32) = (2_147_300_000, 2_147_300_001);

    #[test]
    fn what_is_made_is_the_owners_and_nobody_goes_on_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let (closed, open) = (dir.path().join("closed"), dir.path().join("open"));
        for place in [&closed, &open] {
            fs::create_dir(place).unwrap();
        }
        std::os::unix::fs::chown(&open, Some(IDS.0), Some(IDS.1)).unwrap();
        std::os::unix::fs::chown(dir.path(), Some(IDS.0), Some(IDS.1)).unwrap();
        let (made, as_them) = as_owner(IDS, || fs::create_dir(open.join("a")));
        assert!(made.is_ok() && as_them);
        let made = fs::metadata(open.join("a")).unwrap();
        assert_eq!((made.uid(), made.gid()), IDS);
        let (refused, _) = as_owner(IDS, || fs::create_dir(closed.join("a")));
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied,
            "root's rights are gone meanwhile"
        );
        let fault = || as_owner(IDS, || -> () { std::panic::resume_unwind(Box::new("a fault")) });
        assert!(std::panic::catch_unwind(fault).is_err());
        assert_eq!(set(NONE), (0, 0));
        // Nobody may be this one; what is done is said to be root's.
        assert_eq!(as_owner((NONE, NONE), || ()), ((), false));
        fs::create_dir(closed.join("a")).unwrap();
        assert_eq!(fs::metadata(closed.join("a")).unwrap().uid(), 0);
    }
}
