//! Children and their cgroup.

use std::os::fd::AsFd;

use cgrant_sys::{Clone3, Dir, Exit, Pidfd, ProcFs, clone::PANICKED, pidfd::Signal, process::random_u64};
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
    let child = Clone3::new().spawn(wait_for_ever).unwrap();
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
    let child = Clone3::new().cgroup(cgroup.as_fd()).spawn(wait_for_ever).unwrap();
    let cgroups = ProcFs::open().unwrap().cgroups(child.pid).unwrap();
    let id = child.pidfd.info().unwrap().cgroup_id;
    child.pidfd.send_signal(Signal::KILL).unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Signal(9));
    let path = &cgroups.iter().find(|(hierarchy, _)| hierarchy == "cgroup2").unwrap().1;
    assert!(path.ends_with(&format!("/{}", scratch.name)), "{path}");
    // Before kernel 6.13 a pidfd does not tell.
    assert!(id.is_none() || id == Some(cgroup.inode().unwrap()));
    assert_eq!(
        errno(Clone3::new().cgroup(Dir::open("/".as_ref()).unwrap().as_fd()).spawn(|| 0)),
        libc::EBADF
    );
}

/// Is ended by a signal, or by the end of the test.
pub fn wait_for_ever() -> i32 {
    cgrant_sys::privilege::set_parent_death_signal(Some(Signal::KILL)).unwrap();
    loop {
        rustix::event::pause();
    }
}

/// A new cgroup below the one that this process is in; gone with this.
struct ScratchCgroup {
    parent: Dir,
    name: String,
}

impl ScratchCgroup {
    fn make() -> Self {
        let own = ProcFs::open().unwrap().cgroups(std::process::id()).unwrap();
        let path = &own.iter().find(|(hierarchy, _)| hierarchy == "cgroup2").expect("no cgroup2 tree").1;
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mountinfo.lines().find(|line| line.contains(" - cgroup2 ")).expect("no cgroup2 mount");
        let place = mount.split(' ').nth(4).unwrap();
        let parent = Dir::open(format!("{place}{path}").as_ref()).unwrap();
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
