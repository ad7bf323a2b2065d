//! Attach: whose processes, where they go, and that nobody is left outside however fast it forks.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    process::Command,
    time::Duration,
};

use crate::common::{Kind, Lab, Options, Process, User, checker, user::cgroups_of, wait_until};

// Is the process in the grant in every hierarchy? The scope or the instance's directory, then the grant's.
fn is_inside(pid: u32, user: &User, name: &str) -> bool {
    let part = format!("/u{}/{name}/", user.uid);
    let cgroups = cgroups_of(pid);
    !cgroups.is_empty() && cgroups.iter().all(|(_, path)| format!("{path}/").contains(&part))
}

// Is it in the grant in any?
fn is_touched(pid: u32, user: &User, name: &str) -> bool {
    let part = format!("/u{}/{name}/", user.uid);
    cgroups_of(pid).iter().any(|(_, path)| format!("{path}/").contains(&part))
}

fn a_process_is_in_every_hierarchy_after_attach(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user_in(&[31_000]);
    let client = user.client(broker.socket());
    let grant = client.create("into", Options::new()).unwrap();
    let sleeper = user.sleeper();
    assert!(!is_touched(sleeper.pid, &user, "into"));
    assert_eq!(client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap(), 1);
    assert!(is_inside(sleeper.pid, &user, "into"), "{:?}", sleeper.cgroups());
    assert_eq!(client.processes(&grant.path), [sleeper.pid]);
    // Again is no error, and nothing changes.
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    assert!(is_inside(sleeper.pid, &user, "into"));
    // With cgroups below the payload its own node may hold no process: they go to the broker's leaf.
    client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &"below").unwrap();
    let second = user.sleeper();
    client.attach(&grant.path, &second.pidfd, Options::new()).unwrap();
    assert!(is_inside(second.pid, &user, "into"), "{:?}", second.cgroups());
    checker::assert_in_order(lab);
}

fn the_launch_stage_waits_where_it_can_enter_the_payload(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (stage, _, _) = user.agent(&["files"]);
    let grant = client.create("stage", Options::new().no_range().fd("stage", &stage.pidfd)).unwrap();
    assert!(is_inside(stage.pid, &user, "stage"), "{:?}", stage.cgroups());
    let cgroup2 = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
    assert!(cgroup2.ends_with("/stage/monitor"), "{cgroup2}");
    for (tree, path) in stage.cgroups().iter().filter(|(tree, _)| tree != "cgroup2") {
        assert!(path.contains("/stage/payload"), "a clone inherits {tree}: {path}");
    }
    // From there it may enter the payload by itself.
    let procs = checker::places(lab, user.uid, "stage")["cgroup2"].join("payload/cgroup.procs");
    if !procs.starts_with("/proc") {
        assert_eq!(stage.try_file("write", &procs, "0"), "ok ");
        let now = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
        assert!(now.contains("/stage/payload"), "{now}");
    }
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
}

fn only_the_callers_own_processes(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let grant = client.create("own", Options::new()).unwrap();
    let refuse = |process: &Process| {
        let before = process.cgroups();
        client
            .attach(&grant.path, &process.pidfd, Options::new())
            .unwrap_err()
            .is("NotAuthorized", "not yours");
        assert_eq!(process.cgroups(), before);
    };
    refuse(&other.sleeper());
    refuse(&lab.root().sleeper());
    // A setuid program in the middle of its work: one of its uids is root's.
    let mixed = |arguments: &[&str]| {
        let process =
            Process::of(Command::new("setpriv").args(arguments).args(["--clear-groups", "sleep", "1000"]));
        wait_until("sleep runs", || process.command_name() == "sleep");
        process
    };
    refuse(&mixed(&[&format!("--ruid={}", user.uid)]));
    refuse(&mixed(&[&format!("--euid={}", user.uid)]));
    // A member of a tree that is somebody else's keeps the whole tree outside.
    assert!(client.processes(&grant.path).is_empty());
    checker::assert_in_order(lab);
}

fn descriptors_that_are_no_living_process(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("fds", Options::new()).unwrap();
    let attach = |fd: &OwnedFd| client.attach(&grant.path, fd, Options::new());
    let mut dead = user.sleeper();
    dead.kill();
    attach(&dead.pidfd).unwrap_err().is("NoSuchProcess", "ended");
    let wrong: Vec<OwnedFd> = vec![
        fs::File::open("/dev/null").unwrap().into(),
        fs::File::open("/proc/self").unwrap().into(),
        fs::File::open("/proc/self/ns/user").unwrap().into(),
        std::os::unix::net::UnixStream::pair().unwrap().0.into(),
        rustix::pipe::pipe().unwrap().0,
        rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap(),
    ];
    for fd in &wrong {
        attach(fd).unwrap_err().is("InvalidDescriptor", "pidfd");
        let holder = Options::new().lifetime("process").fd("holder", fd);
        client.create("h", holder).unwrap_err().is("InvalidDescriptor", "pidfd");
        client.create("s", Options::new().fd("stage", fd)).unwrap_err().is("InvalidDescriptor", "pidfd");
    }
    client.create("h", Options::new().lifetime("process")).unwrap_err();
    client
        .create("h", Options::new().lifetime("process").fd("holder", &dead.pidfd))
        .unwrap_err()
        .is("NoSuchProcess", "");
    assert_eq!(client.names(), ["fds"]);
    checker::assert_in_order(lab);
}

fn namespaces_that_are_not_the_callers_or_not_fresh(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let ask = |fd: &dyn AsFd| client.create("n", Options::new().fd("userns", fd.as_fd()));
    let own = fs::File::open("/proc/self/ns/user").unwrap();
    ask(&own).unwrap_err().is("InvalidDescriptor", "host's own");
    ask(&fs::File::open("/proc/self/ns/net").unwrap()).unwrap_err().is("InvalidDescriptor", "");
    ask(&fs::File::open("/dev/null").unwrap()).unwrap_err().is("InvalidDescriptor", "");
    let (_foreign, namespace) = other.userns();
    ask(&namespace).unwrap_err().is("NotAuthorized", "not to you");
    let (_nested, line, fds) = user.agent(&["inner-userns"]);
    assert_eq!(line, "ok");
    ask(&fds[1]).unwrap_err().is("Unsupported", "direct child");
    // Mapped already, by its owner.
    let (mapped, namespace) = user.userns();
    fs::write(format!("/proc/{}/uid_map", mapped.pid), format!("0 {} 1", user.uid)).unwrap();
    let refused = ask(&namespace).unwrap_err();
    assert!(!refused.name.is_empty() && refused.name != "Internal", "{refused:?}");
    checker::assert_empty(lab);
}

fn a_tree_is_attached_whole(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("trees", Options::new()).unwrap();
    let tree = user.spawn("sh", &["-c", "(sleep 1000; :) & (sleep 1000; :) & wait; wait"]);
    wait_until("its children run", || crate::common::harness::descendants_of(tree.pid).len() == 4);
    assert_eq!(client.attach(&grant.path, &tree.pidfd, Options::new().with("tree", true)).unwrap(), 5);
    for pid in crate::common::harness::descendants_of(tree.pid) {
        assert!(is_inside(pid, &user, "trees"), "{pid}");
    }
    // A tree with a process of somebody else's in it: all or none.
    let second = client.create("second", Options::new()).unwrap();
    let mixed = Process::of(Command::new("setpriv").arg(format!("--reuid={}", user.uid)).args([
        "--clear-groups",
        "--inh-caps=-all",
        "sleep",
        "1000",
    ]));
    let root = Process::of(Command::new("sh").args([
        "-c",
        &format!("setpriv --reuid={0} --regid={0} --clear-groups sh -c 'sleep 1000 & wait' & wait", user.uid),
    ]));
    wait_until("the tree is there", || crate::common::harness::descendants_of(root.pid).len() == 2);
    client
        .attach(&second.path, &root.pidfd, Options::new().with("tree", true))
        .unwrap_err()
        .is("NotAuthorized", "");
    assert!(client.processes(&second.path).is_empty());
    drop(mixed);
    checker::assert_in_order(lab);
}

fn a_fork_bomb_leaves_nobody_outside(lab: &Lab) {
    let broker = lab.broker();
    let (user, bomber) = (lab.user(), lab.user());
    drop(user);
    let client = bomber.client(broker.socket());
    let mine = client.process.as_ref().unwrap().pid;
    let mut whole = 0;
    for size in ["300", "100", "40", "20"] {
        let name = format!("bomb{size}");
        let grant = client.create(&name, Options::new()).unwrap();
        let (bomb, _, _) = bomber.agent(&["bomb", "1500", size]);
        std::thread::sleep(Duration::from_millis(100));
        let result = client.attach(&grant.path, &bomb.pidfd, Options::new().with("tree", true));
        let theirs = || processes_of(bomber.uid).into_iter().filter(|pid| *pid != mine);
        match result {
            Ok(count) => {
                whole += 1;
                assert!(count >= 1);
                // One that is ending shows the root of every v1 hierarchy; it is gone in a moment.
                for pid in theirs() {
                    let gone = || !processes_of(bomber.uid).contains(&pid);
                    wait_until("everybody is inside or gone", || is_inside(pid, &bomber, &name) || gone());
                }
            }
            Err(refused) => {
                // On a slow machine the bomb is over before everybody in it was found.
                let names = ["Busy", "TimedOut", "NoSuchProcess"];
                assert!(names.contains(&refused.name.as_str()), "{refused:?}");
                for pid in theirs() {
                    assert!(!is_touched(pid, &bomber, &name), "inside: {:?}", cgroups_of(pid));
                }
            }
        }
        client.release(&grant.path, true).unwrap();
        drop(bomb);
        wait_until("the bomb is over", || processes_of(bomber.uid).iter().all(|pid| *pid == mine));
    }
    assert!(whole > 0, "no bomb was caught in 4 tries");
    checker::assert_empty(lab);
}

fn processes_of(uid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let is_dead =
            status.lines().any(|line| line.starts_with("State:\tZ") || line.starts_with("State:\tX"));
        if !is_dead && status.lines().any(|line| line.starts_with(&format!("Uid:\t{uid}\t"))) {
            found.push(pid);
        }
    }
    found
}

fn nothing_leaves_a_grant_through_another(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let tight = client.create("tight", Options::new().no_range().limits(&[("pids.max", "10")])).unwrap();
    let loose = client.create("loose", Options::new().no_range()).unwrap();
    let inside = user.sleeper();
    client.attach(&tight.path, &inside.pidfd, Options::new()).unwrap();
    client.attach(&loose.path, &inside.pidfd, Options::new()).unwrap_err().is("NotAuthorized", "leaves");
    client
        .create("third", Options::new().no_range().fd("stage", &inside.pidfd))
        .unwrap_err()
        .is("NotAuthorized", "");
    assert!(is_inside(inside.pid, &user, "tight"));
    // Nor as a member of a tree whose root is outside.
    let tree = user.spawn("sh", &["-c", "(sleep 1000; :) & wait"]);
    wait_until("its child runs", || crate::common::harness::descendants_of(tree.pid).len() == 2);
    let child = crate::common::harness::descendants_of(tree.pid)[0];
    let child_fd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(child.cast_signed()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    client.attach(&tight.path, &child_fd, Options::new()).unwrap();
    client
        .attach(&loose.path, &tree.pidfd, Options::new().with("tree", true))
        .unwrap_err()
        .is("NotAuthorized", "");
    assert!(is_inside(child, &user, "tight"), "{:?}", cgroups_of(child));
    assert!(!is_touched(tree.pid, &user, "loose"));
    let _ = Kind::V1;
    checker::assert_in_order(lab);
}

crate::tests![
    a_process_is_in_every_hierarchy_after_attach,
    the_launch_stage_waits_where_it_can_enter_the_payload,
    only_the_callers_own_processes,
    descriptors_that_are_no_living_process,
    namespaces_that_are_not_the_callers_or_not_fresh,
    a_tree_is_attached_whole,
    a_fork_bomb_leaves_nobody_outside,
    nothing_leaves_a_grant_through_another,
];
