//! Events come from the kernel: out of memory, pressure, populated, the end. And reach their account only.

use std::time::Duration;

use zbus::OwnedObjectPath;

use crate::common::{
    Lab, Options,
    bus::{CGROUP, Changed},
    checker,
};

const SOON: Duration = Duration::from_secs(20);

fn out_of_memory_is_signalled(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let stranger = lab.user().client(broker.socket());
    stranger.names();
    let grant = client
        .create("oom", Options::new().limits(&[("memory.max", "32M"), ("memory.swap.max", "0")]))
        .unwrap();
    let (mut watch, mut others) = (client.watch(), stranger.watch());
    let (mut eater, _, _) = user.agent(&["eat", "96"]);
    client.attach(&grant.path, &eater.pidfd, Options::new()).unwrap();
    assert_eq!(eater.go(), None);
    assert_eq!(eater.wait_signal(), Some(9));
    let (path, kills) = client.signal::<u64>(&mut watch, "Oom", SOON).expect("no Oom signal");
    assert_eq!(path, grant.path);
    assert!(kills >= 1);
    assert!(
        stranger.signal::<u64>(&mut others, "Oom", Duration::from_millis(300)).is_none(),
        "another account was told"
    );
}

fn pressure_is_signalled_to_who_asked(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let wanted = Options::new().with("pressure", vec!["cpu".to_owned()]);
    let grant = client.create("psi", wanted).unwrap();
    let mut watch = client.watch();
    // Four that want a CPU where there are at most as many: some of them wait all the time.
    let count = std::thread::available_parallelism().unwrap().get() * 2 + 2;
    let busy: Vec<_> = (0..count).map(|_| user.spawn("sh", &["-c", "while :; do :; done"])).collect();
    for process in &busy {
        client.attach(&grant.path, &process.pidfd, Options::new()).unwrap();
    }
    let (path, resource) = client.signal::<String>(&mut watch, "Pressure", SOON).expect("no Pressure signal");
    assert_eq!((path.as_str(), resource.as_str()), (grant.path.as_str(), "cpu"));
    client
        .create("bad", Options::new().with("pressure", vec!["heat".to_owned()]))
        .unwrap_err()
        .is("InvalidArgument", "pressure");
}

fn properties_say_when_they_change(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("props", Options::new()).unwrap();
    let mut watch = client.watch();
    let mut next = |what: &str| -> Changed {
        client.change_of_grant(&mut watch, SOON).unwrap_or_else(|| panic!("no change of {what}")).1
    };
    client.set_limits(&grant.path, &[("pids.max", "15")]).unwrap();
    let (interface, changed, _) = next("limits");
    assert_eq!(interface, CGROUP);
    assert!(changed.contains_key("Limits"), "{changed:?}");
    let mut sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    let (_, changed, _) = next("populated");
    assert_eq!(changed.get("Populated").map(|v| bool::try_from(v).unwrap()), Some(true));
    client.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap();
    let (_, changed, _) = next("frozen");
    assert_eq!(changed.get("Frozen").map(|v| bool::try_from(v).unwrap()), Some(true));
    client.cgroup::<_, ()>(&grant.path, "Thaw", &()).unwrap();
    next("thawed");
    sleeper.kill();
    let (_, changed, _) = next("empty");
    assert_eq!(changed.get("Populated").map(|v| bool::try_from(v).unwrap()), Some(false));
}

fn grants_are_announced_to_their_account_and_to_root(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let (client, second) = (user.client(broker.socket()), user.client(broker.socket()));
    let root = lab.root().client(broker.socket());
    let stranger = lab.user().client(broker.socket());
    for listener in [&second, &root, &stranger] {
        listener.names();
    }
    let (mut own, mut all, mut none) = (second.watch(), root.watch(), stranger.watch());
    let grant = client.create("news", Options::new()).unwrap();
    for (listener, watch) in [(&second, &mut own), (&root, &mut all)] {
        let (_, (path, name, account)) = listener
            .signal::<(OwnedObjectPath, String, u32)>(watch, "GrantAdded", SOON)
            .expect("no GrantAdded");
        assert_eq!((path.as_str(), name.as_str(), account), (grant.path.as_str(), "news", user.uid));
    }
    client.release(&grant.path, false).unwrap();
    for (listener, watch) in [(&second, &mut own), (&root, &mut all)] {
        let (_, (_, name, _, reason)) = listener
            .signal::<(OwnedObjectPath, String, u32, String)>(watch, "GrantRemoved", SOON)
            .expect("no GrantRemoved");
        assert_eq!((name.as_str(), reason.as_str()), ("news", "released"));
    }
    let told = stranger.signal::<(OwnedObjectPath, String, u32)>(
        &mut none,
        "GrantAdded",
        Duration::from_millis(300),
    );
    assert!(told.is_none(), "another account was told");
    checker::assert_empty(lab);
}

fn a_cgroup_removed_behind_the_brokers_back_ends_its_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("lost", Options::new().lifetime("persistent")).unwrap();
    let mut watch = client.watch();
    let place = checker::places(lab, user.uid, "lost")["cgroup2"].clone();
    std::fs::remove_dir(place.join("payload")).unwrap();
    for directory in ["monitor", "children", ""] {
        // The broker hears of the payload's end, and may be quicker with the rest.
        if let Err(error) = std::fs::remove_dir(place.join(directory)) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{directory:?}");
        }
    }
    let ended = client.signal::<(OwnedObjectPath, String, u32, String)>(&mut watch, "GrantRemoved", SOON);
    let (_, (path, _, _, reason)) = ended.expect("no GrantRemoved");
    assert_eq!((path.as_str(), reason.as_str()), (grant.path.as_str(), "lost"));
    checker::assert_empty(lab);
}

crate::tests![
    out_of_memory_is_signalled,
    pressure_is_signalled_to_who_asked,
    properties_say_when_they_change,
    grants_are_announced_to_their_account_and_to_root,
    a_cgroup_removed_behind_the_brokers_back_ends_its_grant,
];
