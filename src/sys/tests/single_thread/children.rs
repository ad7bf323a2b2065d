//! Children and their cgroup.

use std::os::fd::AsFd;

use cgrant_sys::{
    Child, Clone3, Dir, Exit, Pidfd, ProcFs, clone::PANICKED, mount::mount_cgroup2_detached, pidfd::Signal,
    process::random_u64,
};
use nix::sched::CloneFlags;

use crate::{Test, errno, in_child};

pub const TESTS: &[Test] = &[
    ("children::status_is_what_the_function_returns", status_is_what_the_function_returns),
    ("children::a_panic_stays_in_the_child", a_panic_stays_in_the_child),
    ("children::a_signal_is_told_apart", a_signal_is_told_apart),
    ("children::only_namespaces_may_be_asked_for", only_namespaces_may_be_asked_for),
    ("children::a_second_thread_forbids_it", a_second_thread_forbids_it),
    ("children::a_child_is_born_in_its_cgroup", a_child_is_born_in_its_cgroup),
    ("children::a_child_has_its_own_memory", a_child_has_its_own_memory),
];

fn status_is_what_the_function_returns() {
    assert_eq!(in_child(|| 0), Exit::Code(0));
    assert_eq!(in_child(|| 77), Exit::Code(77));
    let child = Clone3::new().spawn(|| i32::try_from(std::process::id() % 100).unwrap()).unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(i32::try_from(child.pid % 100).unwrap()));
}

fn a_panic_stays_in_the_child() {
    std::panic::set_hook(Box::new(|_| ()));
    assert_eq!(in_child(|| panic!("on purpose")), Exit::Code(PANICKED));
}

fn a_signal_is_told_apart() {
    let waiting = Waiting::start(Clone3::new(), || ());
    let child = &waiting.0;
    assert_eq!(child.pidfd.pid().unwrap(), child.pid);
    assert!(child.pidfd.is_alive().unwrap());
    child.pidfd.send_signal(Signal::TERM).unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Signal(15));
}

fn only_namespaces_may_be_asked_for() {
    for flags in [CloneFlags::CLONE_VM, CloneFlags::CLONE_FILES, CloneFlags::CLONE_PARENT, CloneFlags::all()]
    {
        assert_eq!(errno(Clone3::new().flags(flags).spawn(|| 0)), libc::EINVAL, "{flags:?}");
    }
}

fn a_second_thread_forbids_it() {
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    assert_eq!(errno(Clone3::new().spawn(|| 0)), libc::EBUSY);
    drop(end);
    assert!(thread.join().unwrap().is_err());
}

fn a_child_has_its_own_memory() {
    let mut value = 1;
    assert_eq!(
        in_child(|| {
            value = 2;
            value
        }),
        Exit::Code(2)
    );
    assert_eq!(value, 1);
}

fn a_child_is_born_in_its_cgroup() {
    let scratch = ScratchCgroup::make();
    let cgroup = scratch.parent.open_dir(&scratch.name).unwrap();
    let waiting = Waiting::start(Clone3::new().cgroup(cgroup.as_fd()), || ());
    let child = &waiting.0;
    let cgroups = ProcFs::open().unwrap().cgroups(child.pid).unwrap();
    let id = child.pidfd.info().unwrap().cgroup_id;
    drop(waiting);
    let path = &cgroups.iter().find(|(hierarchy, _)| hierarchy == "cgroup2").unwrap().1;
    assert_eq!(path, &format!("/{}", scratch.name));
    // Before kernel 6.13 a pidfd does not tell.
    assert!(id.is_none() || id == Some(cgroup.inode().unwrap()));
    assert_eq!(
        errno(Clone3::new().cgroup(Dir::open("/".as_ref()).unwrap().as_fd()).spawn(|| 0)),
        libc::EBADF
    );
}

/// A child that waits, until this is dropped: at the end of the test, or when it fails.
pub struct Waiting(pub Child);

impl Waiting {
    /// The child does `first`, and then nothing.
    pub fn start(clone: Clone3<'_>, first: impl FnOnce()) -> Self {
        let child = clone.spawn(|| {
            first();
            loop {
                rustix::event::pause();
            }
        });
        Self(child.unwrap())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have been killed and reaped by the test.
        let _ = self.0.pidfd.send_signal(Signal::KILL);
        let _ = self.0.pidfd.wait();
    }
}

/// A new cgroup below the one that this process is in; gone with this.
struct ScratchCgroup {
    parent: Dir,
    name: String,
}

impl ScratchCgroup {
    /// In a new cgroup namespace, whose root is the cgroup of this process, wherever the host has its mounts.
    fn make() -> Self {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).unwrap();
        let parent = Dir::from_fd(mount_cgroup2_detached().unwrap()).unwrap();
        let name = format!("cgrant-sys-test-{:016x}", random_u64().unwrap());
        parent.create_dir(&name, 0o755).unwrap();
        Self { parent, name }
    }
}

impl Drop for ScratchCgroup {
    fn drop(&mut self) {
        // Panics only if the test has not panicked already.
        let removed = self.parent.remove_dir(&self.name);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

/// A pidfd of a child that has ended and was reaped.
pub fn ended() -> Pidfd {
    let child = Clone3::new().spawn(|| 0).unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
    child.pidfd
}
