//! What a grant is: made whole, found, shown to its account only, ended by what its lifetime says.

use std::{collections::HashMap, fs, os::fd::AsFd, os::unix::fs::MetadataExt, time::Duration};

use zbus::{Message, OwnedObjectPath, OwnedVariant};

use crate::common::{
    Broker, Client, Lab, Options, Process, User,
    bus::{CGROUP, GRANT, IDS, MANAGER, MANAGER_PATH},
    checker,
    host::Tree,
    lab::POOL,
    raw::Raw,
    wait_until,
};

const METHOD_RETURN: u8 = 2;

type Ranges = Vec<(u32, u32, u32, String, String)>;

fn created_has_cgroups_and_ids_and_is_gone_after_release(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user_in(&[31_000, 31_001]);
    let client = user.client(broker.socket());
    let grant = client.create("web", Options::new()).unwrap();
    assert!(grant.new);
    assert_eq!(grant.count, 65_536);
    assert!(grant.uid >= POOL.0 && grant.uid + grant.count - 1 <= POOL.1, "{} lies in the pool", grant.uid);
    assert_eq!(grant.uid % 65_536, 0);
    assert_eq!(grant.path, format!("/org/cgrant/Broker1/grant/{}", grant.id));
    checker::assert_in_order(lab);

    // Ownership: the limits are root's; the payload is the range's root's; the account may enter.
    let cgroup2 = checker::places(lab, user.uid, "web")["cgroup2"].clone();
    let owner = |name: &str| {
        let meta = fs::metadata(cgroup2.join(name)).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o777)
    };
    assert_eq!(owner("").0, 0);
    assert_eq!((owner("cgroup.procs").0, owner("cgroup.procs").2), (user.uid, 0o644));
    assert_eq!((owner("payload").0, owner("payload").1), (grant.uid, grant.gid));
    assert_eq!(owner("payload/cgroup.procs"), (user.uid, grant.gid, 0o664));
    assert_eq!((owner("monitor").0, owner("monitor/cgroup.procs").0), (0, user.uid));
    assert_eq!(owner("children").0, 0);
    assert_eq!(
        rustix::fs::fstat(&grant.payload).unwrap().st_ino,
        fs::metadata(cgroup2.join("payload")).unwrap().ino()
    );
    // In v1 hierarchies everything stays root's: delegation is not safe there.
    for (tree, place) in checker::places(lab, user.uid, "web").iter().filter(|(tree, _)| *tree != "cgroup2") {
        for directory in [place.clone(), place.join("payload"), place.join("monitor"), place.join("children")]
        {
            assert_eq!(fs::metadata(&directory).unwrap().uid(), 0, "{tree}: {}", directory.display());
            assert_eq!(fs::metadata(directory.join("tasks")).unwrap().uid(), 0, "{tree}");
        }
    }

    assert_eq!(client.names(), ["web"]);
    assert_eq!(client.find("web").unwrap(), grant.path);
    assert_eq!(client.property::<String>(&grant.path, GRANT, "Name"), "web");
    assert_eq!(client.property::<u32>(&grant.path, GRANT, "Account"), user.uid);
    assert_eq!(client.property::<u32>(&grant.path, IDS, "Count"), 65_536);
    assert_eq!(client.property::<u32>(&grant.path, IDS, "Uid"), grant.uid);
    assert!(!client.property::<bool>(&grant.path, CGROUP, "Populated"));

    client.release(&grant.path, false).unwrap();
    checker::assert_empty(lab);
    assert!(client.names().is_empty());
    client.release(&grant.path, false).unwrap_err().is("NoSuchGrant", "");
}

/// The account's own cgroups are kept for the next grant, for a moment, in every hierarchy; then they go, too.
fn an_accounts_cgroups_go_soon_after_its_last_grant(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let nodes = || {
        let bases = checker::bases(&lab.host, &lab.instance).into_values();
        bases.filter(|base| base.join(format!("u{}", user.uid)).is_dir()).count()
    };
    let first = client.create("first", Options::new()).unwrap();
    let all = nodes();
    assert!(all > 0);
    client.release(&first.path, false).unwrap();
    wait_until("the account's cgroups go", || nodes() == 0);
    // One that is made before that keeps them.
    let second = client.create("second", Options::new()).unwrap();
    client.release(&second.path, false).unwrap();
    let third = client.create("third", Options::new()).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(nodes(), all);
    checker::assert_in_order(lab);
    // Nor does the broker leave them when it stops.
    client.release(&third.path, false).unwrap();
    broker.stop();
    assert_eq!(nodes(), 0);
}

fn another_users_grant_is_as_if_it_were_not_there(lab: &Lab) {
    let broker = lab.broker();
    let (owner, other) = (lab.user(), lab.user_in(&[0, 31_000]));
    let (client, stranger) = (owner.client(broker.socket()), other.client(broker.socket()));
    let grant = client.create("mine", Options::new()).unwrap();
    assert!(stranger.names().is_empty());
    stranger.find("mine").unwrap_err().is("NoSuchGrant", "");
    let sleeper = other.sleeper();
    stranger.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap_err().is("NoSuchGrant", "");
    stranger.set_limits(&grant.path, &[("pids.max", "5")]).unwrap_err().is("NoSuchGrant", "");
    stranger.values(&grant.path, &[]).unwrap_err().is("NoSuchGrant", "");
    stranger.cgroup::<_, ()>(&grant.path, "Freeze", &()).unwrap_err().is("NoSuchGrant", "");
    stranger.cgroup::<_, ()>(&grant.path, "Kill", &()).unwrap_err().is("NoSuchGrant", "");
    stranger.release(&grant.path, true).unwrap_err().is("NoSuchGrant", "");
    // The same name is free for another account, and gets other ids.
    let theirs = stranger.create("mine", Options::new()).unwrap();
    assert_ne!(theirs.uid, grant.uid);
    // Root sees both.
    let root = lab.root().client(broker.socket());
    let rows: Vec<(OwnedObjectPath, String, u32)> =
        root.manager("ListGrants", &Options::new().with("all", true).0).unwrap();
    assert_eq!(rows.len(), 2);
    let all = Options::new().with("all", true).0;
    stranger
        .manager::<_, Vec<(OwnedObjectPath, String, u32)>>("ListGrants", &all)
        .unwrap_err()
        .is("NotAuthorized", "");
    checker::assert_in_order(lab);
}

fn a_grant_of_a_connection_ends_with_it(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("short", Options::new()).unwrap();
    let mut sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    assert_eq!(client.property::<String>(&grant.path, GRANT, "Lifetime"), "connection");
    drop(client);
    assert_eq!(sleeper.wait_signal(), Some(9), "what runs in it is killed");
    broker.settle();
    checker::assert_empty(lab);
}

fn a_grant_of_a_process_ends_with_it(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let mut holder = user.sleeper();
    let options = Options::new().lifetime("process").fd("holder", &holder.pidfd);
    let grant = client.create("held", options).unwrap();
    let mut inside = user.sleeper();
    client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
    let watcher = user.client(broker.socket());
    watcher.names();
    let mut watch = watcher.watch();
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    assert!(inside.is_alive(), "the connection's end is not the holder's");
    holder.kill();
    let ended = watcher.signal::<(OwnedObjectPath, String, u32, String)>(
        &mut watch,
        "GrantRemoved",
        Duration::from_secs(20),
    );
    let (_, (path, name, account, reason)) = ended.expect("no GrantRemoved");
    assert_eq!(
        (path.as_str(), name.as_str(), account, reason.as_str()),
        (grant.path.as_str(), "held", user.uid, "holder-died")
    );
    assert_eq!(inside.wait_signal(), Some(9));
    checker::assert_empty(lab);
}

fn a_persistent_grant_stays_until_it_is_released(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant =
        client.create("stays", Options::new().lifetime("persistent").limits(&[("pids.max", "77")])).unwrap();
    drop(client);
    assert_eq!(broker.stop(), 0);
    checker::assert_in_order(lab);
    broker.start_again();
    let client = user.client(broker.socket());
    assert_eq!(client.find("stays").unwrap(), grant.path);
    assert_eq!(client.value(&grant.path, "pids.max"), "77");
    assert_eq!(client.property::<u32>(&grant.path, IDS, "Uid"), grant.uid);
    client.release(&grant.path, false).unwrap();
    checker::assert_empty(lab);
}

/// The boot id can't be changed; what was written down of it can.
fn a_reboot_ends_all_but_persistent_grants(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"all\"\nquota.cgroups = 40\naccount-ceiling = { \"pids.max\" = 300 }\n",
    );
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let limits = [("pids.max", "77")];
    let wanted =
        || Options::new().lifetime("persistent").key("k").limits(&limits).with("range-name", "files");
    let kept = client.create("kept", wanted()).unwrap();
    let holder = user.sleeper();
    client.create("lost", Options::new().lifetime("process").fd("holder", &holder.pidfd)).unwrap();
    // What all grants have together, for itself and those that were there.
    let together = |tree: &Tree, file: &str| -> u64 {
        let account = checker::places(lab, user.uid, "kept")[&tree.name].parent().unwrap().join(file);
        fs::read_to_string(account).unwrap().trim().parse().unwrap()
    };
    let processes = || together(lab.host.with("pids").unwrap(), "pids.max");
    let depth = || together(lab.host.cgroup2(), "cgroup.max.depth");
    let cgroups = || together(lab.host.cgroup2(), "cgroup.max.descendants");
    let (deep, many) = (depth(), cgroups());
    assert_eq!(processes(), 300);
    broker.kill_everything();
    drop(client);
    assert_eq!(lab.pretend_reboot(), 2);
    // A limit of a disk that is gone takes no other one with it.
    for file in fs::read_dir(lab.state_dir().join("grants")).unwrap().map(|entry| entry.unwrap().path()) {
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let limits = record["limits"].as_array_mut().unwrap();
        limits.insert(0, serde_json::json!(["io.max", "4095:1 rbps=1 wbps=max riops=max wiops=max"]));
        fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    }
    broker.start_again();
    let client = user.client(broker.socket());
    assert_eq!(client.names(), ["kept"]);
    assert_eq!(client.value(&kept.path, "pids.max"), "77");
    assert_eq!((processes(), depth()), (300, deep));
    assert!(cgroups() <= many);
    assert_eq!(client.property::<u32>(&kept.path, IDS, "Uid"), kept.uid);
    checker::assert_in_order(lab);
    let ranges: Ranges = client.manager("ListRanges", &()).unwrap();
    assert!(ranges.contains(&(kept.uid, kept.gid, 65_536, "files".into(), kept.id.clone())), "{ranges:?}");
    let again = client.create("kept", wanted()).unwrap();
    assert_eq!(again.path, kept.path, "the key survives too");
    client.release(&kept.path, false).unwrap();
    checker::assert_empty(lab);
}

fn adopt_changes_what_ends_a_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("adopted", Options::new()).unwrap();
    let mut holder = user.sleeper();
    let adopt = |options: Options| client.call::<_, ()>(&grant.path, GRANT, "Adopt", &options.0);
    adopt(Options::new().lifetime("process").fd("holder", &holder.pidfd)).unwrap();
    let second = user.client(broker.socket());
    assert_eq!(second.property::<String>(&grant.path, GRANT, "Lifetime"), "process");
    checker::assert_in_order(lab);
    drop(client);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(second.names(), ["adopted"], "the connection that made it holds it no more");
    second.call::<_, ()>(&grant.path, GRANT, "Adopt", &Options::new().lifetime("connection").0).unwrap();
    holder.kill();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(second.names(), ["adopted"], "nor does the process");
    let foreign = lab.user().sleeper();
    let foreign = Options::new().lifetime("process").fd("holder", &foreign.pidfd);
    second
        .call::<_, ()>(&grant.path, GRANT, "Adopt", &foreign.0)
        .unwrap_err()
        .is("NotAuthorized", "not yours");
    drop(second);
    broker.settle();
    checker::assert_empty(lab);
}

// A connection whose calls are sent without waiting for their answers.
struct Hasty {
    raw: Raw,
    _process: Process,
}

impl Hasty {
    fn new(user: &User, broker: &Broker) -> Self {
        let (process, stream) = user.connect(broker.socket());
        let mut raw = Raw::new(stream);
        raw.authenticate(user.uid);
        Self { raw, _process: process }
    }

    fn send<B: serde::Serialize + zbus::DynamicType>(
        &mut self,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
    ) {
        let call = Message::method_call(path, method).interface(interface).build(body).unwrap();
        assert!(self.raw.send(call.data()));
    }

    fn create(&mut self, name: &str) {
        self.send(MANAGER_PATH, MANAGER, "CreateGrant", &(name, Options::new().0));
    }

    // The next answer, behind whatever signals come.
    fn answer(&mut self) {
        while self.raw.message().expect("an answer")[1] != METHOD_RETURN {}
    }

    // The engine has everything that was sent when this is answered: it comes last, and the front itself answers it. To be
    // called while no other answer can come.
    fn sent(&mut self) {
        self.send("/", "org.freedesktop.DBus.Peer", "Ping", &());
        self.answer();
    }
}

fn a_holder_that_ends_while_another_adopts_ends_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let (client, first) = (user.client(broker.socket()), user.client(broker.socket()));
    let mut holder = user.sleeper();
    let options = Options::new().lifetime("process").fd("holder", &holder.pidfd);
    let grants = [
        client.create("a-process-held", options).unwrap(),
        first.create("b-connection-held", Options::new()).unwrap(),
    ];
    let mut hasty = Hasty::new(&user, &broker);
    // Everything of the account's that follows waits behind this.
    broker.order_fault("wait:1");
    hasty.create("c-slow");
    for grant in &grants {
        hasty.send(&grant.path, GRANT, "Adopt", &Options::new().lifetime("connection").0);
    }
    hasty.sent();
    broker.fault_waits();
    holder.kill();
    drop(first);
    std::thread::sleep(Duration::from_millis(100));
    broker.fault_steps();
    assert_eq!(client.names(), ["a-process-held", "b-connection-held", "c-slow"]);
    checker::assert_in_order(lab);
    drop(hasty);
    broker.settle();
    checker::assert_empty(lab);
}

fn the_end_of_a_released_grants_connection_leaves_the_next_of_its_name_alone(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (mut first, mut second) = (Hasty::new(&user, &broker), Hasty::new(&user, &broker));
    first.create("web");
    first.answer();
    let path = client.find("web").unwrap();
    broker.order_fault("wait:1");
    second.create("slow");
    second.sent();
    broker.fault_waits();
    first.send(&path, GRANT, "Release", &Options::new().0);
    first.sent();
    second.create("web");
    second.sent();
    // The connection ends, and not who made it: the release is still its own.
    let Hasty { raw, _process } = first;
    drop(raw);
    std::thread::sleep(Duration::from_millis(100));
    broker.fault_steps();
    assert_eq!(client.names(), ["slow", "web"]);
    checker::assert_in_order(lab);
    drop(second);
    broker.settle();
    checker::assert_empty(lab);
}

fn a_repeated_request_with_its_key_gives_the_same_grant(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let ask = |client: &Client| client.create("once", Options::new().key("k-1").lifetime("persistent"));
    let first = ask(&client).unwrap();
    let again = ask(&client).unwrap();
    assert!(first.new && !again.new);
    assert_eq!((first.id, first.uid), (again.id.clone(), again.uid));
    let other_connection = user.client(broker.socket());
    assert_eq!(ask(&other_connection).unwrap().id, again.id);
    // The key is the account's own: for somebody else it is another grant.
    let stranger = lab.user().client(broker.socket());
    let theirs = stranger.create("once", Options::new().key("k-1").lifetime("persistent")).unwrap();
    assert_ne!(theirs.id, again.id);
    // The same key for another request is a mistake of the caller's.
    client
        .create("twice", Options::new().key("k-1").lifetime("persistent"))
        .unwrap_err()
        .is("InvalidArgument", "k-1");
    // Without the key the name is taken.
    client.create("once", Options::new()).unwrap_err().is("GrantExists", "once");
    checker::assert_in_order(lab);
    client.release(&again.path, false).unwrap();
    stranger.release(&theirs.path, false).unwrap();
    checker::assert_empty(lab);
}

fn a_populated_grant_is_released_only_with_kill(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("busy", Options::new()).unwrap();
    let mut sleeper = user.sleeper();
    assert_eq!(client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap(), 1);
    wait_until("it is populated", || client.property::<bool>(&grant.path, CGROUP, "Populated"));
    client.release(&grant.path, false).unwrap_err().is("Busy", "processes");
    assert!(sleeper.is_alive());
    client.release(&grant.path, true).unwrap();
    assert_eq!(sleeper.wait_signal(), Some(9));
    checker::assert_empty(lab);
}

fn a_range_belongs_to_account_and_name_and_to_nobody_else(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let stranger = other.client(broker.socket());
    let first = client.create("db", Options::new()).unwrap();
    let second = client.create("cache", Options::new()).unwrap();
    assert_ne!(first.uid, second.uid);
    client.release(&first.path, false).unwrap();
    // Freed, but still the account's: neither another name of it nor another account gets it.
    let third = client.create("third", Options::new()).unwrap();
    assert_ne!(third.uid, first.uid);
    let theirs = stranger.create("db", Options::new()).unwrap();
    assert_ne!(theirs.uid, first.uid);
    let again = client.create("db", Options::new()).unwrap();
    assert_eq!((again.uid, again.gid), (first.uid, first.gid));
    let ranges: Ranges = client.manager("ListRanges", &()).unwrap();
    assert_eq!(ranges.len(), 3);
    assert!(ranges.contains(&(first.uid, first.gid, 65_536, "db".into(), again.id.clone())), "{ranges:?}");
    client.manager::<_, ()>("ForgetRange", &"none").unwrap_err().is("InvalidArgument", "none");
    // Untied while it is in use, it stays with the grant as long as that lives.
    client.manager::<_, ()>("ForgetRange", &"db").unwrap();
    let another = client.create("fourth", Options::new()).unwrap();
    assert_ne!(another.uid, again.uid);
    client.release(&again.path, false).unwrap();
    // Untied, it may serve a grant of the account without a name of its own.
    let unnamed = client.create("", Options::new()).unwrap();
    assert_eq!(unnamed.uid, first.uid);
    checker::assert_in_order(lab);
}

fn a_grant_may_have_the_range_of_another_name(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let first = client.create("db", Options::new()).unwrap();
    let of_db = || Options::new().with("range-name", "db");
    // One grant at a time.
    client.create("new", of_db()).unwrap_err().is("Busy", "db");
    client.release(&first.path, false).unwrap();
    let renamed = client.create("new", of_db()).unwrap();
    assert_eq!((renamed.uid, renamed.gid), (first.uid, first.gid));
    client.create("db", Options::new()).unwrap_err().is("Busy", "db");
    let ranges: Ranges = client.manager("ListRanges", &()).unwrap();
    assert_eq!(ranges, [(first.uid, first.gid, 65_536, "db".into(), renamed.id.clone())]);
    // Names are the account's own.
    let stranger = other.client(broker.socket());
    let theirs = stranger.create("new", of_db()).unwrap();
    assert_ne!(theirs.uid, first.uid);
    client.create("odd", Options::new().with("range-name", "../db")).unwrap_err().is("InvalidName", "");
    let unnamed = of_db().with("range-named", false);
    client.create("odd", unnamed).unwrap_err().is("InvalidArgument", "range-name");
    client.create("odd", of_db().no_range()).unwrap_err().is("InvalidArgument", "range-name");
    checker::assert_in_order(lab);
}

fn sizes_of_ranges(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    for count in [1, 1000, 65_536, 131_072] {
        let grant = client.create(&format!("n{count}"), Options::new().count(count)).unwrap();
        assert_eq!(grant.count, count);
    }
    checker::assert_in_order(lab);
    let without = client.create("bare", Options::new().no_range()).unwrap();
    assert_eq!((without.uid, without.gid, without.count), (0, 0, 0));
    let cgroup2 = checker::places(lab, client_uid(&client), "bare")["cgroup2"].clone();
    assert_eq!(fs::metadata(cgroup2.join("payload")).unwrap().uid(), client_uid(&client));
    client.create("huge", Options::new().count(u32::MAX)).unwrap_err().is("QuotaExceeded", "");
    checker::assert_in_order(lab);
}

fn client_uid(client: &Client) -> u32 {
    let (account, _, _): (u32, String, Vec<(String, u64, u64)>) =
        client.manager("GetUsage", &HashMap::<String, OwnedVariant>::new()).unwrap();
    account
}

fn the_range_is_written_into_the_callers_user_namespace(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (process, namespace) = user.userns();
    let grant = client.create("ns", Options::new().fd("userns", &namespace)).unwrap();
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.pid)).unwrap();
    let fields = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(fields(read("uid_map")), ["0", &grant.uid.to_string(), "65536"]);
    assert_eq!(fields(read("gid_map")), ["0", &grant.gid.to_string(), "65536"]);
    assert_eq!(read("setgroups").trim(), "allow");
    // Once only, into whatever namespace.
    client.create("ns2", Options::new().fd("userns", &namespace)).unwrap_err();
    checker::assert_in_order(lab);
    assert_eq!(client.names(), ["ns"], "what was refused left nothing");
    let (denied, namespace) = user.userns();
    client.create("ns3", Options::new().fd("userns", &namespace).with("setgroups", false)).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{}/setgroups", denied.pid)).unwrap().trim(), "deny");
}

fn names_of_every_byte_are_taken_or_refused(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    for byte in 1..=127_u8 {
        let text = format!("a{}", char::from(byte));
        let allowed = byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        match client.create(&text, Options::new().no_range()) {
            Ok(grant) => {
                assert!(allowed, "{text:?} was taken");
                client.release(&grant.path, false).unwrap();
            }
            Err(refused) => {
                assert!(!allowed, "{text:?}: {refused:?}");
                refused.is("InvalidName", "");
            }
        }
    }
    let long = "a".repeat(64);
    for name in [
        "A",
        "-a",
        "_a",
        ".",
        "..",
        "a/b",
        "../../x",
        "é",
        "tasks",
        "notify_on_release",
        "release_agent",
        &long,
    ] {
        client.create(name, Options::new().no_range()).unwrap_err().is("InvalidName", "");
    }
    let longest = "a".repeat(63);
    let grant = client.create(&longest, Options::new().no_range()).unwrap();
    client.release(&grant.path, false).unwrap();
    // Without a name the broker makes one up, each time another.
    let (one, two) = (
        client.create("", Options::new().no_range()).unwrap(),
        client.create("", Options::new().no_range()).unwrap(),
    );
    assert_ne!(one.path, two.path);
    assert_eq!(client.names().len(), 2);
    checker::assert_in_order(lab);
}

fn cgroups_below_the_payload(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("tree", Options::new()).unwrap();
    let make = |path: &str| client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &path);
    make("a").unwrap();
    make("a/b").unwrap();
    make("a").unwrap_err().is("CgroupExists", "a");
    make("x/y").unwrap_err().is("NoSuchCgroup", "x");
    for path in [
        "",
        "/",
        "a//b",
        "/a",
        "a/",
        "..",
        "a/../../..",
        "cgroup.procs",
        "tasks",
        "memory.max",
        "a\nb",
        ".cgrant",
    ] {
        make(path).unwrap_err().is("InvalidName", "");
    }
    let list: Vec<String> = client.cgroup(&grant.path, "ListCgroups", &()).unwrap();
    assert_eq!(list, ["a", "a/b"]);
    for (tree, place) in checker::places(lab, user.uid, "tree") {
        assert!(place.join("payload/a/b").is_dir(), "in {tree}");
    }
    let opened: zbus::OwnedFd = client.cgroup(&grant.path, "OpenCgroup", &"a/b").unwrap();
    let flags = rustix::fs::fcntl_getfl(opened.as_fd()).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::PATH), "a descriptor without rights of its own");
    client
        .cgroup::<_, zbus::OwnedFd>(&grant.path, "OpenCgroup", &"none")
        .unwrap_err()
        .is("NoSuchCgroup", "none");
    client.cgroup::<_, ()>(&grant.path, "RemoveCgroup", &"a").unwrap_err().is("Busy", "");
    client.cgroup::<_, ()>(&grant.path, "RemoveCgroup", &"a/b").unwrap();
    client.cgroup::<_, ()>(&grant.path, "RemoveCgroup", &"a/b").unwrap_err().is("NoSuchCgroup", "");
    client.cgroup::<_, ()>(&grant.path, "RemoveCgroup", &"a").unwrap();
    client.release(&grant.path, false).unwrap();
    checker::assert_empty(lab);
}

fn instances_run_side_by_side_and_share_the_record_of_ids(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    // The second instance: its own directories, the same record of ids, because that is the host's.
    let other = Lab::beside(lab);
    let second = other.broker();
    let (one, two) = (user.client(broker.socket()), user.client(second.socket()));
    let mut taken = Vec::new();
    for number in 0..4 {
        for (client, which) in [(&one, "one"), (&two, "two")] {
            let grant = client.create(&format!("{which}-{number}"), Options::new()).unwrap();
            assert!(!taken.contains(&grant.uid), "range {} was given twice", grant.uid);
            taken.push(grant.uid);
        }
    }
    assert_eq!(one.names().len(), 4);
    assert_eq!(two.names().len(), 4);
    // A name's range is the account's on the whole host, and is mapped by one grant at a time.
    two.create("one-0", Options::new()).unwrap_err().is("Busy", "one-0");
    drop((one, two));
    broker.settle();
    second.settle();
    drop((broker, second));
    let leaks = other.leaks_of_instance();
    assert!(leaks.is_empty(), "{leaks:?}");
    // Cleaning ends everything that this program started, so it comes last.
    other.clean();
}

crate::tests![
    created_has_cgroups_and_ids_and_is_gone_after_release,
    an_accounts_cgroups_go_soon_after_its_last_grant,
    another_users_grant_is_as_if_it_were_not_there,
    a_grant_of_a_connection_ends_with_it,
    a_grant_of_a_process_ends_with_it,
    a_persistent_grant_stays_until_it_is_released,
    a_reboot_ends_all_but_persistent_grants,
    adopt_changes_what_ends_a_grant,
    a_holder_that_ends_while_another_adopts_ends_nothing,
    the_end_of_a_released_grants_connection_leaves_the_next_of_its_name_alone,
    a_repeated_request_with_its_key_gives_the_same_grant,
    a_populated_grant_is_released_only_with_kill,
    a_range_belongs_to_account_and_name_and_to_nobody_else,
    a_grant_may_have_the_range_of_another_name,
    sizes_of_ranges,
    the_range_is_written_into_the_callers_user_namespace,
    names_of_every_byte_are_taken_or_refused,
    cgroups_below_the_payload,
    instances_run_side_by_side_and_share_the_record_of_ids,
];
