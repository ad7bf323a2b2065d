//! Killed at every step and started again: the checker finds nothing lost, nothing orphaned, and what runs in grants
//! runs on.

use std::time::Duration;

use crate::common::{
    Broker, Client, Grant, Lab, Options, Process, User,
    bus::GRANT,
    bus::Refused,
    checker,
    harness::{descendants, descendants_of},
    level::{Level, all_names, nesting, release},
    wait_until,
};

fn ask(client: &Client, stage: &Process, namespace: &std::os::fd::OwnedFd) -> Result<Grant, Refused> {
    let options = Options::new()
        .lifetime("persistent")
        .key("the-key")
        .limits(&[("pids.max", "60")])
        .fd("stage", &stage.pidfd)
        .fd("userns", namespace);
    client.create("crash", options)
}

// A grant of somebody else's that runs all the while and must not notice.
struct Bystander {
    user: User,
    running: Process,
    path: String,
}

impl Bystander {
    fn new(lab: &Lab, broker: &Broker) -> Self {
        let user = lab.user();
        let client = user.client(broker.socket());
        let grant = client
            .create("stays", Options::new().lifetime("persistent").limits(&[("pids.max", "33")]))
            .unwrap();
        let running = user.sleeper();
        client.attach(&grant.path, &running.pidfd, Options::new()).unwrap();
        Self { user, running, path: grant.path }
    }

    fn check(&self, lab: &Lab, when: &str) {
        assert!(self.running.is_alive(), "{when}: what ran in a grant was killed");
        let places = checker::places(lab, self.user.uid, "stays");
        for (tree, place) in &places {
            assert!(
                checker::members(place).contains(&self.running.pid),
                "{when}: it is not in its grant in {tree}"
            );
        }
    }

    fn release(self, broker: &Broker) {
        self.user.client_again(broker.socket()).release(&self.path, true).unwrap();
    }
}

fn killed_at_every_step_of_creating(lab: &Lab) {
    let broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    let client = user.client(broker.socket());
    let (stage, (_ns, namespace)) = (user.sleeper(), user.userns());
    broker.order_fault("count");
    let grant = ask(&client, &stage, &namespace).unwrap();
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("create")).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    client.release(&grant.path, true).unwrap();
    for (number, step) in steps.iter().enumerate() {
        let engine = broker.engine();
        let client = user.client_again(broker.socket());
        let (stage, (_ns, namespace)) = (user.sleeper(), user.userns());
        broker.order_fault(&format!("die:{}", number + 1));
        ask(&client, &stage, &namespace).expect_err("the engine died before the answer");
        assert!(broker.fault_done(), "{step} was not reached");
        drop(client);
        let client = user.client_again(broker.socket());
        broker.fault_steps();
        assert_ne!(broker.engine(), engine, "{step}");
        checker::assert_in_order(lab);
        bystander.check(lab, step);
        assert!(stage.is_alive(), "{step}: the caller's process was killed");
        if client.names().is_empty() {
            let inside = stage.cgroups().into_iter().find(|(_, path)| format!("{path}/").contains("/crash/"));
            assert_eq!(inside, None, "{step}: it is still in a grant that there is no more");
        }
        // Either the grant was never made or it is there; the same request with the same key gives it, once.
        let survived = client.names();
        let (_fresh, fresh) = user.userns();
        let again = ask(&client, &stage, &fresh).unwrap_or_else(|r| panic!("{step}: {r:?}"));
        assert_eq!(again.new, survived.is_empty(), "{step}: {survived:?}");
        assert_eq!(client.names(), ["crash"], "{step}");
        checker::assert_in_order(lab);
        client.release(&again.path, true).unwrap();
        bystander.check(lab, step);
    }
    bystander.release(&broker);
    checker::assert_empty(lab);
}

// An ordinary user of a container asks, who may have one block there: what is counted twice refuses it the next time.
fn killed_at_every_step_of_a_users_creating_inside(lab: &Lab) {
    const ANN: u32 = 7;
    const BOB: u32 = 70;
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 1 }\n");
    let broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    let outer = user.client(broker.socket());
    let one = Level::new(&user, &outer, "one", nesting(2).lifetime("persistent"));
    let client_of = |id| one.client_of(lab, &user, id, broker.socket());
    let bob = client_of(BOB);
    let theirs = bob.create("crash", Options::new().lifetime("persistent")).unwrap();
    let request = || (one.process(lab, &user, ANN, &["files"]), one.userns_of(&user, ANN));
    let ann = client_of(ANN);
    let (stage, (_ns, namespace)) = request();
    broker.order_fault("count");
    let grant = ask(&ann, &stage, &namespace).unwrap();
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("create")).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    ann.release(&grant.path, true).unwrap();
    drop((ann, bob));
    for (number, step) in steps.iter().enumerate() {
        let ann = client_of(ANN);
        let (stage, (_ns, namespace)) = request();
        broker.order_fault(&format!("die:{}", number + 1));
        ask(&ann, &stage, &namespace).expect_err("the engine died before the answer");
        assert!(broker.fault_done(), "{step} was not reached");
        drop(ann);
        let outer = user.client_again(broker.socket());
        broker.fault_steps();
        checker::assert_in_order(lab);
        bystander.check(lab, step);
        assert!(stage.is_alive(), "{step}: the caller's process was killed");
        let ann = client_of(ANN);
        let survived = ann.names();
        let place = stage.cgroups().into_iter().find(|(tree, _)| tree == "cgroup2").unwrap().1;
        assert!(place.contains("/one/"), "{step}: it has got out: {place}");
        assert_eq!(place.contains("/@7.crash/"), !survived.is_empty(), "{step}: {place}");
        // Whoever has it, the other has its own and no more.
        let bob = client_of(BOB);
        assert_eq!(
            (bob.names(), bob.find("crash").unwrap()),
            (vec!["crash".to_owned()], theirs.path.clone())
        );
        let (_fresh, fresh) = one.userns_of(&user, ANN);
        let again = ask(&ann, &stage, &fresh).unwrap_or_else(|r| panic!("{step}: {r:?}"));
        assert_eq!((again.new, ann.names()), (survived.is_empty(), vec!["crash".to_owned()]), "{step}");
        ann.create("more", Options::new().no_range()).unwrap_err().is("QuotaExceeded", "nesting-user-blocks");
        assert_eq!(all_names(&outer), ["one", "crash", "crash"], "{step}");
        checker::assert_in_order(lab);
        ann.release(&again.path, true).unwrap();
        bystander.check(lab, step);
    }
    let outer = user.client_again(broker.socket());
    release(&outer, &one.grant.path, Options::new().with("force", true)).unwrap();
    bystander.release(&broker);
    checker::assert_empty(lab);
}

fn killed_at_every_step_of_releasing(lab: &Lab) {
    let broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("crash", Options::new().lifetime("persistent")).unwrap();
    broker.order_fault("count");
    client.release(&grant.path, true).unwrap();
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("release")).collect();
    assert!(steps.len() >= 4, "{steps:?}");
    for (number, step) in steps.iter().enumerate() {
        let client = user.client_again(broker.socket());
        let grant = client.create("crash", Options::new().lifetime("persistent")).unwrap();
        let inside = user.sleeper();
        client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
        broker.order_fault(&format!("die:{}", number + 1));
        client.release(&grant.path, true).expect_err("the engine died before the answer");
        assert!(broker.fault_done(), "{step} was not reached");
        let client = user.client_again(broker.socket());
        broker.fault_steps();
        checker::assert_in_order(lab);
        assert!(client.names().is_empty(), "{step}: a release that was begun was not finished");
        assert!(!inside.is_alive(), "{step}");
        bystander.check(lab, step);
    }
    bystander.release(&broker);
    checker::assert_empty(lab);
}

fn killed_at_every_step_of_setting_limits(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant =
        client.create("limits", Options::new().lifetime("persistent").limits(&[("pids.max", "60")])).unwrap();
    for number in 1..=2 {
        let client = user.client_again(broker.socket());
        broker.order_fault(&format!("die:{number}"));
        client
            .set_limits(&grant.path, &[("pids.max", "10"), ("memory.max", "32M")])
            .expect_err("the engine died");
        let client = user.client_again(broker.socket());
        broker.fault_steps();
        // The old ones or the new ones, both in record and kernel: the audit compares.
        checker::assert_in_order(lab);
        let now = (client.value(&grant.path, "pids.max"), client.value(&grant.path, "memory.max"));
        let old = ("60".to_owned(), "max".to_owned());
        let new = ("10".to_owned(), "33554432".to_owned());
        assert!(now == old || now == new, "{now:?}");
        client.set_limits(&grant.path, &[("pids.max", "60"), ("memory.max", "max")]).unwrap();
    }
    user.client_again(broker.socket()).release(&grant.path, false).unwrap();
    checker::assert_empty(lab);
}

fn every_process_of_the_broker_may_be_killed(lab: &Lab) {
    let broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    let mut killed = Vec::new();
    // One after the other, each by its own place in the tree; the supervisor is for the next test.
    for round in 0..broker.processes().len() {
        // A child that is not itself yet has its parent's name.
        let mut children = broker.processes().into_iter().filter(|(_, name)| name != "cgrantd");
        let Some((pid, name)) = children.nth(round % 4) else { continue };
        // Without the network helper the rest goes on being ready.
        let sign =
            if name.starts_with("cgrant-net") { "the network is as it ought to be" } else { " ready " };
        let times = || broker.log().matches(sign).count();
        let before = times();
        broker.kill(pid);
        killed.push(name.clone());
        wait_until(&format!("the broker is itself again after {name} was killed"), || times() > before);
        let client = user.client_again(broker.socket());
        let grant = client.create("again", Options::new()).unwrap_or_else(|r| panic!("after {name}: {r:?}"));
        client.release(&grant.path, false).unwrap();
        checker::assert_in_order(lab);
        bystander.check(lab, &name);
    }
    assert!(
        killed.iter().any(|n| n.starts_with("cgrant-engine"))
            && killed.iter().any(|n| n.starts_with("cgrant-front")),
        "{killed:?}"
    );
    bystander.release(&broker);
    checker::assert_empty(lab);
}

fn all_processes_killed_at_once_and_started_again(lab: &Lab) {
    let mut broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    for round in 0..3 {
        let client = user.client_again(broker.socket());
        // One of each lifetime.
        let mut holder = user.sleeper();
        let kept =
            client.create("kept", Options::new().lifetime("process").fd("holder", &holder.pidfd)).unwrap();
        let running = client.create("running", Options::new()).unwrap();
        let inside = user.sleeper();
        client.attach(&running.path, &inside.pidfd, Options::new()).unwrap();
        broker.kill_everything();
        assert!(inside.is_alive(), "what ran in a grant died with the broker");
        if round == 1 {
            holder.kill();
        }
        broker.start_again();
        checker::assert_in_order(lab);
        bystander.check(lab, "all killed");
        assert!(inside.is_alive(), "what ran in a grant died at the next start");
        drop(client);
        let client = user.client_again(broker.socket());
        if round == 1 {
            assert!(!client.names().contains(&"kept".to_owned()), "its holder died meanwhile");
        } else {
            assert!(client.names().contains(&"kept".to_owned()));
            client.release(&kept.path, false).unwrap();
        }
        // The connection did not end by the caller's wish: the grant lives until its last process ends.
        assert_eq!(client.property::<String>(&running.path, GRANT, "Lifetime"), "populated");
        drop(inside);
        wait_until("a grant without holder ends with its last process", || {
            !client.names().contains(&"running".to_owned())
        });
    }
    bystander.release(&broker);
    checker::assert_empty(lab);
}

fn an_empty_grant_whose_connection_broke_ends_after_its_grace(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    client.create("orphan", Options::new()).unwrap();
    broker.kill_everything();
    broker.start_again();
    drop(client);
    let client = user.client_again(broker.socket());
    // Long enough for its maker to come back and take it again.
    assert!(client.names().contains(&"orphan".to_owned()), "it had no grace");
    wait_until("an empty grant without holder ends", || !client.names().contains(&"orphan".to_owned()));
    checker::assert_empty(lab);
}

fn a_front_that_dies_takes_no_grant_with_it(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (busy, empty) =
        (client.create("busy", Options::new()).unwrap(), client.create("empty", Options::new()).unwrap());
    let inside = user.sleeper();
    client.attach(&busy.path, &inside.pidfd, Options::new()).unwrap();
    broker.kill(broker.fronts()[0]);
    let second = user.client_again(broker.socket());
    assert!(!client.answers());
    assert!(inside.is_alive());
    assert_eq!(second.names(), ["busy", "empty"]);
    checker::assert_in_order(lab);
    // Their caller can take them over; what nobody takes over ends with its last process.
    second.call::<_, ()>(&empty.path, GRANT, "Adopt", &Options::new().lifetime("connection").0).unwrap();
    drop(inside);
    wait_until("the other one ends with its last process", || second.names() == ["empty"]);
    drop(second);
    broker.settle();
    checker::assert_empty(lab);
}

fn killed_under_load_at_any_time(lab: &Lab) {
    let mut broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let user = lab.user();
    for round in 0..8_u64 {
        let client = user.client_again(broker.socket());
        let killer = {
            let all: Vec<u32> = broker.processes().into_iter().map(|(pid, _)| pid).collect();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(7 + round * 11));
                for pid in all {
                    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            })
        };
        for number in 0.. {
            let result = client.create(
                &format!("l{number}"),
                Options::new().lifetime("persistent").key(&format!("{round}-{number}")),
            );
            let Ok(grant) = result else { break };
            if number % 2 == 0 && client.release(&grant.path, false).is_err() {
                break;
            }
        }
        killer.join().unwrap();
        broker.kill_everything();
        broker.start_again();
        checker::assert_in_order(lab);
        bystander.check(lab, "killed under load");
        let client = user.client_again(broker.socket());
        for name in client.names() {
            let path = client.find(&name).unwrap();
            client.release(&path, true).unwrap();
        }
    }
    bystander.release(&broker);
    checker::assert_empty(lab);
}

fn the_children_end_when_the_supervisor_is_killed(lab: &Lab) {
    let mut broker = lab.broker();
    let bystander = Bystander::new(lab, &broker);
    let children = descendants_of(broker.pid);
    broker.kill(broker.pid);
    // They see the end of their control socket; nobody kills them.
    wait_until("engine and fronts end by themselves", || {
        !descendants().iter().any(|pid| children.contains(pid))
    });
    bystander.check(lab, "supervisor killed");
    broker.kill_everything();
    broker.start_again();
    checker::assert_in_order(lab);
    bystander.release(&broker);
    checker::assert_empty(lab);
}

crate::tests![
    killed_at_every_step_of_creating,
    killed_at_every_step_of_a_users_creating_inside,
    killed_at_every_step_of_releasing,
    killed_at_every_step_of_setting_limits,
    every_process_of_the_broker_may_be_killed,
    all_processes_killed_at_once_and_started_again,
    an_empty_grant_whose_connection_broke_ends_after_its_grace,
    a_front_that_dies_takes_no_grant_with_it,
    killed_under_load_at_any_time,
    the_children_end_when_the_supervisor_is_killed,
];
