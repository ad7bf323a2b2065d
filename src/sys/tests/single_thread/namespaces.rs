//! User and network namespaces, seen from outside and from inside.

use std::os::fd::AsFd;

use cgrant_sys::{
    Clone3, Exit, NetnsFd, UsernsFd,
    privilege::{become_account, set_dumpable},
};
use nix::sched::CloneFlags;

use crate::{Test, children::Waiting, errno, in_child};

pub const TESTS: &[Test] = &[
    ("namespaces::a_child_is_born_in_its_namespaces", a_child_is_born_in_its_namespaces),
    ("namespaces::owner_and_parent_are_the_makers", owner_and_parent_are_the_makers),
    ("namespaces::a_namespace_can_be_entered", a_namespace_can_be_entered),
    ("namespaces::a_dead_process_shows_no_namespace", a_dead_process_shows_no_namespace),
];

fn a_child_is_born_in_its_namespaces() {
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    let outer = names();
    let child = Clone3::new().flags(all).spawn(|| i32::from(std::process::id() != 1)).unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
    let waiting = Waiting::start(Clone3::new().flags(all), || ());
    let child = &waiting.0;
    let inner = ["user", "net", "pid", "mnt", "ipc", "uts", "cgroup"]
        .map(|kind| std::fs::read_link(format!("/proc/{}/ns/{kind}", child.pid)).unwrap());
    drop(waiting);
    for (inner, outer) in inner.iter().zip(&outer) {
        assert_ne!(inner, outer);
    }
}

fn names() -> [std::path::PathBuf; 7] {
    ["user", "net", "pid", "mnt", "ipc", "uts", "cgroup"]
        .map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap())
}

fn owner_and_parent_are_the_makers() {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    let maker = Clone3::new()
        .spawn(|| {
            become_account(12345, 12346).unwrap();
            // What changes its uid hides its namespaces from others of the same uid.
            set_dumpable(true).unwrap();
            let waiting = Waiting::start(Clone3::new().flags(flags), || ());
            let child = &waiting.0;
            let namespace = child.pidfd.user_namespace().unwrap();
            assert_eq!(namespace.owner_uid().unwrap(), 12345);
            assert_eq!(namespace.parent().unwrap().id().unwrap(), UsernsFd::own().unwrap().id().unwrap());
            assert_ne!(namespace.id().unwrap(), UsernsFd::own().unwrap().id().unwrap());
            let network = std::fs::File::open(format!("/proc/{}/ns/net", child.pid)).unwrap();
            let network = NetnsFd::from_fd(network.into()).unwrap();
            assert_ne!(network.id().unwrap(), NetnsFd::own().unwrap().id().unwrap());
            assert_eq!(network.owner_userns().unwrap().id().unwrap(), namespace.id().unwrap());
            0
        })
        .unwrap();
    assert_eq!(maker.pidfd.wait().unwrap(), Exit::Code(0));
}

fn a_namespace_can_be_entered() {
    let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    let waiting = Waiting::start(Clone3::new().flags(flags), || ());
    let child = &waiting.0;
    let user = child.pidfd.user_namespace().unwrap();
    let network = std::fs::File::open(format!("/proc/{}/ns/net", child.pid)).unwrap();
    let network = NetnsFd::from_fd(network.into()).unwrap();
    let visitor = in_child(|| {
        user.enter().unwrap();
        network.enter().unwrap();
        assert_eq!(UsernsFd::own().unwrap().id().unwrap(), user.id().unwrap());
        assert_eq!(NetnsFd::own().unwrap().id().unwrap(), network.id().unwrap());
        // Twice is once too often, and from inside the parent is out of sight.
        assert_eq!(errno(user.enter()), libc::EINVAL);
        assert_eq!(errno(user.parent()), libc::EPERM);
        0
    });
    drop(waiting);
    assert_eq!(visitor, Exit::Code(0));
    assert!(user.as_fd().try_clone_to_owned().is_ok());
}

fn a_dead_process_shows_no_namespace() {
    assert_eq!(errno(crate::children::ended().user_namespace()), libc::ESRCH);
}
