//! The broker's processes as the host sees them: who goes before whom on a processor, and what they do when there is no room.

use std::{fs, path::PathBuf, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, getpriority_process, prlimit};

use crate::common::{Lab, raw::Raw};

fn pid_of(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// The threads of a process; none if it has ended.
fn threads(pid: u32) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|thread| thread.path())
}

/// The nice values of a process's threads, but of those that have just ended.
fn nice(pid: u32) -> Vec<i32> {
    let of = |thread: PathBuf| {
        let number = thread.file_name().unwrap().to_str().unwrap().parse().unwrap();
        getpriority_process(pid_of(number)).ok()
    };
    threads(pid).filter_map(of).collect()
}

fn engine_and_fronts_have_their_places(lab: &Lab) {
    let broker = lab.broker();
    let own = getpriority_process(None).unwrap();
    let (engine, fronts) = (broker.engine(), broker.fronts());
    assert!(!fronts.is_empty() && !nice(engine).is_empty());
    let mut others = 0;
    for (pid, name) in broker.processes() {
        let place = if pid == engine {
            -10
        } else if fronts.contains(&pid) {
            3
        } else {
            others += 1;
            0
        };
        let all = nice(pid);
        let expected = (own + place).clamp(-20, 19);
        assert!(all.iter().all(|value| *value == expected), "{name} {pid}: {all:?}");
    }
    // Supervisor, network helper and the engine's helpers, one of which runs programs of the host's.
    assert!(others >= 5, "{others}");
}

/// The processor time of a process.
fn processor_time(pid: u32) -> Duration {
    let of = |thread: PathBuf| {
        let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(threads(pid).map(of).sum())
}

// An attacker wants an engine that asks for a descriptor without end, says so without end, or lets those down who came meanwhile.
fn an_engine_without_descriptors_tries_again(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = other.client(broker.socket());
    let engine = pid_of(broker.engine());
    // As many as it may have, which nobody can give back to it.
    let limits = fs::read_to_string(format!("/proc/{}/limits", broker.engine())).unwrap();
    let limits = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let maximum = limits.split_whitespace().nth(4).unwrap().parse().ok();
    let limit = |current| prlimit(engine, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    limit(Some(3));
    let began = processor_time(broker.engine());
    let waiting: Vec<_> = (0..40).map(|_| user.connect(broker.socket())).collect();
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(broker.engine()) - began;
    assert!(used < Duration::from_millis(500), "{used:?}");
    let said = broker.log().matches("a connection could not be accepted").count();
    assert!((1..=20).contains(&said), "{said} times");
    // Who was connected before goes on.
    assert!(client.answers());
    limit(maximum);
    for (process, stream) in waiting {
        Raw::new(stream).authenticate(user.uid);
        drop(process);
    }
    drop((client, broker));
}

crate::tests![engine_and_fronts_have_their_places, an_engine_without_descriptors_tries_again];
