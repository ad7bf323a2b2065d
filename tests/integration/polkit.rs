//! Where policy says "ask": a real polkit on a real bus, agents who say yes, no and nothing, and attempts to be agreed with
//! without anybody's agreement.

use std::{os::fd::AsFd, path::Path, time::Duration};

use cgrant_wire::{
    Answer, Consent, CreateGrant, FromEngine, Holder, Op, Question, QuestionId, RequestId, Subject, ToEngine,
    boot::FrontKind,
};

use crate::common::{
    Broker, Client, Lab, Options, PATIENCE, User,
    bus::{CGROUP, GRANT, MANAGER, MANAGER_PATH, Refused},
    checker,
    front::LoneEngine,
    polkit::Desk,
    wait_until,
};

const EXCEED: &str = "org.cgrant.broker1.exceed-quota";
/// Long enough to see that nothing comes.
const MOMENT: Duration = Duration::from_millis(300);
const ONE_GRANT: &str = "[[rule]]\nname = \"one\"\nquota.grants = 1\n";

fn bare() -> Options {
    Options::new().no_range().lifetime("persistent")
}

fn start(lab: &Lab, desk: &Desk) -> Broker {
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    broker
}

pub fn sees_polkit(broker: &Broker, user: &User, there: bool) {
    let client = user.client(broker.socket());
    wait_until("the broker knows of polkit", || feature(&client) == there);
}

fn feature(client: &Client) -> bool {
    type Features = Vec<(String, bool, String)>;
    let value: zbus::OwnedVariant =
        client.call(MANAGER_PATH, "org.freedesktop.DBus.Properties", "Get", &(MANAGER, "Features")).unwrap();
    let rows = Features::try_from(value).unwrap();
    rows.iter().find(|(name, ..)| name == "polkit").expect("a row for polkit").1
}

fn create(client: &Client, name: &str) -> Result<(), Refused> {
    client.ask(MANAGER_PATH, MANAGER, "CreateGrant", &(name, bare().0))
}

fn process(client: &Client) -> &crate::common::Process {
    client.process.as_ref().unwrap()
}

fn hint(refused: &Refused) -> String {
    refused.details.get("hint").and_then(|hint| <&str>::try_from(hint).ok()).unwrap_or_default().to_owned()
}

fn release_all(clients: &[&Client]) {
    for client in clients {
        for name in client.names() {
            client.release(&client.find(&name).unwrap(), true).unwrap();
        }
    }
}

fn a_yes_is_kept_by_polkit_and_nowhere_else(lab: &Lab) {
    lab.write_policy(ONE_GRANT);
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    let broker = start(lab, &desk);
    let client = user.client(broker.socket());
    create(&client, "first").unwrap();
    let mut agent = desk.agent(lab, process(&client), "yes");
    assert!(agent.is_left_alone(), "within the quota nobody is asked");
    create(&client, "second").unwrap();
    let asked = agent.hear();
    assert!(asked.starts_with(&format!("asked {EXCEED} ")), "{asked}");
    let words = "text=Authentication is required to give containers more than policy allows: the account has 1 of at most 1 grants";
    assert!(asked.contains(words), "{asked}");
    assert!(asked.contains(&format!("polkit.subject-pid={};", process(&client).pid)), "{asked}");
    // The same process is not asked again, also where it lets nobody be asked.
    create(&client, "third").unwrap();
    client.create("fourth", bare()).unwrap();
    assert!(agent.is_left_alone(), "the authorization was not kept");
    // Another process of the same user has none.
    let other = user.client(broker.socket());
    assert_eq!(other.create("fifth", bare()).unwrap_err().name, "QuotaExceeded");
    // Polkit keeps it, and nobody else does: with what polkit keeps it is gone.
    desk.stop_polkit();
    desk.start_polkit();
    sees_polkit(&broker, &lab.root(), true);
    assert_eq!(client.create("fifth", bare()).unwrap_err().name, "QuotaExceeded");
    let mut agent = desk.agent(lab, process(&client), "yes");
    create(&client, "fifth").unwrap();
    assert!(agent.hear().starts_with("asked"), "when it was gone nobody was asked");
    checker::assert_in_order(lab);
    let log = broker.log();
    assert!(log.contains(&format!("and polkit's yes to {EXCEED}")), "the log does not say who agreed");
    release_all(&[&client]);
    drop((client, other, agent, broker));
}

fn a_no_is_a_no(lab: &Lab) {
    lab.write_policy(ONE_GRANT);
    let user = lab.user();
    let desk = Desk::start(lab, &[&user]);
    let broker = start(lab, &desk);
    let client = user.client(broker.socket());
    create(&client, "first").unwrap();
    // Nobody can be asked: no agent is there.
    let refused = create(&client, "second").unwrap_err();
    assert!(hint(&refused).contains("agent"), "{refused:?}");
    let mut agent = desk.agent(lab, process(&client), "no");
    // Nobody may be asked.
    let refused = client.create("second", bare()).unwrap_err();
    assert!(hint(&refused).contains("ALLOW_INTERACTIVE_AUTHORIZATION"), "{refused:?}");
    assert_eq!(refused.text("action").as_deref(), Some(EXCEED), "what a program asks again for");
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(1), Some(1)));
    assert!(agent.is_left_alone(), "asked though the caller did not let it");
    let refused = create(&client, "second").unwrap_err();
    refused.is("QuotaExceeded", "1 of at most 1 grants");
    assert!(agent.hear().starts_with("asked"));
    assert_eq!(client.names(), ["first"]);
    checker::assert_in_order(lab);
    // One who puts the dialog away was asked: that a person may be asked is no advice to whoever asks again by itself.
    drop(agent);
    let mut agent = desk.agent(lab, process(&client), "dismiss");
    let refused = create(&client, "second").unwrap_err();
    assert!(agent.hear().starts_with("asked"));
    assert!(hint(&refused).contains("put the question away"), "{refused:?}");
    assert_eq!(refused.text("action"), None, "{refused:?}");
    // One who dies while it is asked has not said yes.
    drop(agent);
    let mut agent = desk.agent(lab, process(&client), "nothing");
    let mut pending = client.begin(MANAGER_PATH, MANAGER, "CreateGrant", &("second", bare().0));
    assert!(agent.hear().starts_with("asked"));
    assert!(client.end(&mut pending, MOMENT).is_none(), "answered before the agent");
    drop(agent);
    let refused = client.end(&mut pending, PATIENCE).expect("an answer").unwrap_err();
    assert_eq!(refused.name, "QuotaExceeded");
    release_all(&[&client]);
    drop((client, broker));
}

fn silence_blocks_nobody_and_ends_with_the_caller(lab: &Lab) {
    lab.write_policy(ONE_GRANT);
    let (user, other) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&user, &other]);
    let broker = start(lab, &desk);
    let (client, second) = (user.client(broker.socket()), other.client(broker.socket()));
    create(&client, "first").unwrap();
    create(&second, "first").unwrap();
    let mut silent = desk.agent(lab, process(&client), "nothing");
    let mut waiting: Vec<_> = (0..12)
        .map(|n| client.begin(MANAGER_PATH, MANAGER, "CreateGrant", &(format!("flood{n}"), bare().0)))
        .collect();
    assert!(silent.hear().starts_with("asked"));
    // Four wait, the others are told so.
    let refused: Vec<Refused> = waiting
        .drain(4..)
        .map(|mut one| client.end(&mut one, PATIENCE).expect("an answer").unwrap_err())
        .collect();
    assert!(refused.iter().all(|refused| hint(refused).contains("other requests of yours")), "{refused:?}");
    assert!(waiting.iter_mut().all(|one| client.end(one, MOMENT).is_none()), "one that waits was answered");
    // The same connection goes on, and so does everybody else, with questions of their own.
    let path = client.find("first").unwrap();
    client.set_limits(&path, &[("pids.max", "9")]).unwrap();
    let mut agent = desk.agent(lab, process(&second), "yes");
    create(&second, "second").unwrap();
    assert!(agent.hear().starts_with("asked"));
    assert_eq!(second.names(), ["first", "second"]);
    // Whoever goes is asked for no more.
    drop((waiting, client));
    let mut heard = silent.hear();
    while heard.starts_with("asked") {
        heard = silent.hear();
    }
    assert_eq!(heard, "cancelled");
    let client = user.client(broker.socket());
    assert_eq!(client.names(), ["first"]);
    // It has its questions back.
    let mut agent = desk.agent(lab, process(&client), "yes");
    create(&client, "second").unwrap();
    assert!(agent.hear().starts_with("asked"));
    release_all(&[&client, &second]);
    drop((client, second, silent, broker));
}

fn rules_of_the_administrator_decide_by_details(lab: &Lab) {
    lab.write_policy(&format!("{ONE_GRANT}grant-ceiling = {{ \"pids.max\" = 10 }}\n"));
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    desk.rules(
        "polkit.addRule(function(action, subject) {
    if (action.id.indexOf('org.cgrant.broker1.') != 0) return;
    if (action.lookup('name') == 'good') return polkit.Result.YES;
    if (action.lookup('limits').indexOf('pids.max=20') >= 0) return polkit.Result.YES;
    return polkit.Result.NO;
});",
    );
    let broker = start(lab, &desk);
    let client = user.client(broker.socket());
    let grant = client.create("first", bare()).unwrap();
    client.create("good", bare()).unwrap();
    let refused = client.create("bad", bare()).unwrap_err();
    assert!(hint(&refused).contains("said no"), "{refused:?}");
    client.set_limits(&grant.path, &[("pids.max", "20")]).unwrap();
    assert_eq!(client.set_limits(&grant.path, &[("pids.max", "21")]).unwrap_err().name, "QuotaExceeded");
    assert_eq!(client.value(&grant.path, "pids.max"), "20");
    release_all(&[&client]);
    drop((client, broker));
}

fn who_agrees_to_a_look_has_not_agreed_to_a_change(lab: &Lab) {
    let (admin, user) = (lab.user(), lab.user());
    let mut desk = Desk::start(lab, &[&admin, &user]);
    desk.rules(
        "polkit.addRule(function(action, subject) {
    if (action.id.indexOf('org.cgrant.broker1.') != 0) return;
    return action.lookup('request') == 'read' ? polkit.Result.YES : polkit.Result.NO;
});",
    );
    let broker = start(lab, &desk);
    let (client, owner) = (admin.client(broker.socket()), user.client(broker.socket()));
    let grant = owner.create("theirs", bare()).unwrap();
    owner.set_limits(&grant.path, &[("pids.max", "9")]).unwrap();
    client.ask(&grant.path, CGROUP, "Stat", &()).unwrap();
    assert_eq!(client.value(&grant.path, "pids.max"), "9");
    let refused = client.set_limits(&grant.path, &[("pids.max", "7")]).unwrap_err();
    assert_eq!(refused.name, "NoSuchGrant", "{refused:?}");
    // A file of the kernel's is a request of its own.
    let values = client.ask(&grant.path, CGROUP, "GetValues", &vec!["cpu.stat"]);
    assert!(values.is_err(), "the yes to the grant was taken for one to the file");
    assert_eq!(client.ask(&grant.path, CGROUP, "Kill", &()).unwrap_err().name, "NoSuchGrant");
    assert_eq!(owner.value(&grant.path, "pids.max"), "9");
    release_all(&[&owner]);
    drop((client, owner, broker));
}

fn nobody_agrees_to_what_is_not_shown(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"low\"\ngrant-ceiling = { \"pids.max\" = 10 }\n");
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    desk.rules(
        "polkit.addRule(function(action, subject) {
    if (action.id.indexOf('org.cgrant.broker1.') != 0) return;
    return action.lookup('limits').indexOf('8:9 ') < 0 ? polkit.Result.NO : polkit.Result.YES;
});",
    );
    let broker = start(lab, &desk);
    let client = user.client(broker.socket());
    let grant = client.create("first", bare()).unwrap();
    let set = |devices: u32| {
        let device = |minor| format!("8:{minor} rbps=1000000T wbps=1000000T");
        let list = (0..devices).map(device).collect::<Vec<_>>().join(",");
        client.set_limits(&grant.path, &[("pids.max", "20"), ("io.max", &list)]).unwrap_err()
    };
    // All of it is shown, and agreed to; there are no such devices.
    assert_ne!(set(10).name, "QuotaExceeded");
    // What is too long to be shown is what policy alone says.
    let refused = set(64);
    assert_eq!(refused.name, "QuotaExceeded", "{refused:?}");
    assert!(!hint(&refused).contains("polkit"), "{refused:?}");
    assert_ne!(client.value(&grant.path, "pids.max"), "20");
    release_all(&[&client]);
    drop((client, broker));
}

fn clients_of_the_bus_are_asked_about_too(lab: &Lab) {
    lab.write_policy(ONE_GRANT);
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    let broker = start(lab, &desk);
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    let connect = |desk: &Desk| {
        let (process, stream) = user.connect(Path::new(desk.address.strip_prefix("unix:path=").unwrap()));
        Client::of_bus(stream, user.uid, process, &name)
    };
    let client = connect(&desk);
    create(&client, "first").unwrap();
    assert_eq!(client.create("second", bare()).unwrap_err().name, "QuotaExceeded");
    let mut agent = desk.agent(lab, process(&client), "yes");
    create(&client, "second").unwrap();
    assert!(agent.hear().starts_with(&format!("asked {EXCEED} ")));
    // A bus that goes takes questions with it; another one is asked.
    drop((agent, client));
    let peer = user.client(broker.socket());
    let mut silent = desk.agent(lab, process(&peer), "nothing");
    let mut pending = peer.begin(MANAGER_PATH, MANAGER, "CreateGrant", &("third", bare().0));
    assert!(silent.hear().starts_with("asked"));
    desk.start_bus_again(lab);
    let refused = peer.end(&mut pending, PATIENCE).expect("an answer").unwrap_err();
    assert!(hint(&refused).contains("can't be asked"), "{refused:?}");
    sees_polkit(&broker, &lab.root(), true);
    let client = connect(&desk);
    wait_until("the broker has its name again", || client.answers());
    let mut agent = desk.agent(lab, process(&client), "yes");
    create(&client, "third").unwrap();
    assert!(agent.hear().starts_with("asked"));
    release_all(&[&peer]);
    drop((client, peer, silent, broker));
}

fn without_polkit_policy_alone_decides(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"asks\"\naccess.limits = \"ask\"\nquota.grants = 1\n");
    let user = lab.user();
    let mut desk = Desk::without_polkit(lab, &[&user]);
    let broker = lab.setup().bus(&desk.address).start();
    let client = user.client(broker.socket());
    wait_until("the log says it", || broker.log().contains("polkit is not on the bus"));
    assert!(!feature(&client));
    let grant = client.create("first", bare()).unwrap();
    let set = |client: &Client| {
        let limits = std::collections::HashMap::from([("pids.max", "9")]);
        client.ask(&grant.path, CGROUP, "SetLimits", &limits)
    };
    for refused in [create(&client, "second").unwrap_err(), set(&client).unwrap_err()] {
        assert!(hint(&refused).contains("polkit is not there"), "{refused:?}");
    }
    let doctor = user.cgrant(broker.socket(), &["doctor"]);
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.lines().any(|line| line.contains("polkit") && line.contains("the answer is no")), "{text}");
    // It is asked as soon as it is there; what is an account's own needs no password.
    desk.start_polkit();
    sees_polkit(&broker, &user, true);
    set(&client).unwrap();
    assert_eq!(client.value(&grant.path, "pids.max"), "9");
    // It goes, and comes again.
    desk.stop_polkit();
    sees_polkit(&broker, &user, false);
    assert_eq!(set(&client).unwrap_err().name, "NotAuthorized");
    desk.start_polkit();
    sees_polkit(&broker, &user, true);
    set(&client).unwrap();
    release_all(&[&client]);
    drop((client, broker));
}

fn without_a_bus_the_policy_alone_decides_and_says_so_at_start(lab: &Lab) {
    lab.write_policy(&format!("{ONE_GRANT}access.limits = \"ask\"\n"));
    let broker = lab.broker();
    let said = "no bus, so polkit can't be asked: where policy says \"ask\" the answer is no";
    // Nobody has asked for anything yet.
    wait_until("the log says it", || broker.log().replace('\\', "").contains(said));
    let client = lab.user().client(broker.socket());
    assert!(!feature(&client));
    let grant = client.create("first", bare()).unwrap();
    let limits = std::collections::HashMap::from([("pids.max", "9")]);
    let refusals = [
        ("QuotaExceeded", create(&client, "second")),
        ("NotAuthorized", client.ask(&grant.path, CGROUP, "SetLimits", &limits)),
    ];
    for (name, refused) in refusals {
        let refused = refused.unwrap_err();
        assert_eq!(refused.name, name, "{refused:?}");
        assert!(hint(&refused).contains("polkit is not there"), "{refused:?}");
    }
    release_all(&[&client]);
    drop((client, broker));
}

fn a_polkit_that_hangs_or_ends_keeps_nobody(lab: &Lab) {
    lab.write_policy(ONE_GRANT);
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    let broker = start(lab, &desk);
    let client = user.client(broker.socket());
    create(&client, "first").unwrap();
    desk.hold_polkit(true);
    let refused = client.create("second", bare()).unwrap_err();
    assert!(hint(&refused).contains("nobody answered in time"), "{refused:?}");
    let mut pending = client.begin(MANAGER_PATH, MANAGER, "CreateGrant", &("second", bare().0));
    assert_eq!(client.names(), ["first"]);
    assert!(client.end(&mut pending, MOMENT).is_none());
    desk.stop_polkit();
    let refused = client.end(&mut pending, PATIENCE).expect("an answer").unwrap_err();
    assert_eq!(refused.name, "QuotaExceeded");
    desk.start_polkit();
    sees_polkit(&broker, &user, true);
    let mut agent = desk.agent(lab, process(&client), "yes");
    create(&client, "second").unwrap();
    assert!(agent.hear().starts_with("asked"));
    release_all(&[&client]);
    drop((client, broker));
}

fn others_are_managed_with_consent_and_not_known_of_without(lab: &Lab) {
    let (admin, user) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&admin, &user]);
    let broker = start(lab, &desk);
    let (client, owner) = (admin.client(broker.socket()), user.client(broker.socket()));
    let grant = owner.create("theirs", bare()).unwrap();
    let nobodys = "/org/cgrant/Broker1/grant/0123456789abcdef";
    let kill = |path: &str| client.ask(path, CGROUP, "Kill", &());
    let (theirs, none) = (kill(&grant.path).unwrap_err(), kill(nobodys).unwrap_err());
    let same = |refused: &Refused| refused.message.replace(&grant.id, "ID").replace("0123456789abcdef", "ID");
    assert_eq!((&theirs.name, same(&theirs), hint(&theirs)), (&none.name, same(&none), hint(&none)));
    assert_eq!(theirs.details.len(), none.details.len(), "{theirs:?} {none:?}");
    let all = Options::new().with("all", true);
    assert_eq!(client.ask(MANAGER_PATH, MANAGER, "ListGrants", &all.0).unwrap_err().name, "NotAuthorized");
    let mut agent = desk.agent(lab, process(&client), "yes");
    client.ask(MANAGER_PATH, MANAGER, "ListGrants", &all.0).unwrap();
    assert!(agent.hear().starts_with("asked org.cgrant.broker1.manage-others "));
    kill(&grant.path).unwrap();
    client.set_limits(&grant.path, &[("pids.max", "7")]).unwrap();
    assert_eq!(owner.value(&grant.path, "pids.max"), "7");
    // What moves processes or gives out descriptors nobody agrees to.
    let sleeper = admin.sleeper();
    assert_eq!(client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap_err().name, "NoSuchGrant");
    let open: Result<zbus::OwnedFd, _> = client.cgroup(&grant.path, "OpenCgroup", &"");
    assert_eq!(open.unwrap_err().name, "NoSuchGrant");
    client.ask(&grant.path, GRANT, "Release", &Options::new().with("kill", true).0).unwrap();
    assert!(owner.names().is_empty());
    checker::assert_empty(lab);
    drop((client, owner, agent, sleeper, broker));
}

fn request(name: &str) -> Op {
    Op::CreateGrant(CreateGrant {
        name: name.into(),
        key: String::new(),
        holder: Holder::Persistent,
        range: None,
        range_name: String::new(),
        userns: None,
        stage: None,
        limits: Vec::new(),
        pressure: Vec::new(),
        links: Vec::new(),
        nesting: 0,
        tidies: false,
    })
}

// The next question that the engine puts to the bus front, and whether the process came with it.
fn question(engine: &LoneEngine) -> (Question, bool) {
    loop {
        match engine.bus_front.receive::<FromEngine>().expect("no question comes") {
            (FromEngine::Ask(question), fds) => return (question, fds.len() == 1),
            (FromEngine::Event { .. }, _) => (),
            (other, _) => panic!("{other:?}"),
        }
    }
}

fn what_is_asked_for_is_said_in_full(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"low\"\ngrant-ceiling = { \"pids.max\" = 10 }\n");
    let mut engine = LoneEngine::start(lab);
    engine.bus_front.send(&ToEngine::Polkit { there: true }, &[]);
    let user = lab.user();
    let (process, _stream) = user.connect(&engine.socket);
    let (connection, _, _socket) = engine.connected();
    engine.ask(FrontKind::Bus, connection, request("x"), &[]).unwrap_err();
    let with = |name: &str, limits: &[(&str, &str)]| {
        let Op::CreateGrant(mut grant) = request(name) else { panic!() };
        grant.limits = limits.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Op::CreateGrant(grant)
    };
    let find = Op::FindGrant { name: "secret".into(), account: Some(user.uid + 1) };
    let stranger = (user.uid + 1).to_string();
    let cases = [
        (
            with("many", &[("pids.max", "20"), ("memory.max", "1G")]),
            vec![
                ("name", "many"),
                ("asks", "create grant: persistent true; ids 0; limits pids.max=20 memory.max=1073741824"),
            ],
        ),
        (
            with("raw", &[("memory.min", "7")]),
            vec![("name", "raw"), ("key", "memory.min"), ("value", "7"), ("request", "write raw")],
        ),
        (Op::ListGrants { all: true, nested: false }, vec![("account", "all"), ("name", "")]),
        // There is none of that name, and it is asked about all the same.
        (find, vec![("account", &stranger), ("name", ""), ("asks", "read")]),
    ];
    for (id, (op, expected)) in (700..).zip(cases) {
        engine
            .socket_front
            .send(&ToEngine::Request { id: RequestId(id), connection, interactive: true, op }, &[]);
        let (asked, _) = question(&engine);
        for (key, value) in expected {
            let said = asked.details.iter().find(|(known, _)| known == key);
            assert_eq!(said.map_or("", |(_, said)| said.as_str()), value, "{key} in {asked:?}");
        }
        say(&engine, FrontKind::Bus, asked.id, Consent::No);
        engine.answer(FrontKind::Socket, RequestId(id)).unwrap_err();
    }
    drop((process, engine));
}

fn say(engine: &LoneEngine, front: FrontKind, question: QuestionId, consent: Consent) {
    engine.link(front).send(&ToEngine::Consent { question, consent }, &[]);
}

fn answers_are_taken_from_who_was_asked_and_once(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.grants = 0\n");
    let mut engine = LoneEngine::start(lab);
    let user = lab.user();
    let (process, _stream) = user.connect(&engine.socket);
    let (connection, _, _socket) = engine.connected();
    let ask = |engine: &LoneEngine, id, name: &str| {
        let message =
            ToEngine::Request { id: RequestId(id), connection, interactive: true, op: request(name) };
        engine.socket_front.send(&message, &[]);
    };
    // Nobody has said that polkit is there.
    ask(&engine, 900, "x");
    engine.answer(FrontKind::Socket, RequestId(900)).unwrap_err();
    engine.bus_front.send(&ToEngine::Polkit { there: true }, &[]);
    // Links are taken by turns; what this front is answered comes after what it said before.
    engine.ask(FrontKind::Bus, connection, request("x"), &[]).unwrap_err();
    ask(&engine, 901, "first");
    let (asked, with_process) = question(&engine);
    assert!(with_process && asked.interactive && asked.action == EXCEED, "{asked:?}");
    for (key, value) in [
        ("name", "first"),
        ("request", "create grant"),
        ("persistent", "true"),
        ("ids", "0"),
        ("account", &user.uid.to_string()),
        ("caller", &user.uid.to_string()),
        ("reason", "the account has 0 of at most 0 grants and asks for 1 more"),
    ] {
        let detail = (key.to_owned(), value.to_owned());
        assert!(asked.details.contains(&detail), "{detail:?} is not in {asked:?}");
    }
    let Subject::Process { pid, uid, .. } = asked.subject else { panic!("{asked:?}") };
    assert_eq!((pid, uid), (process.pid, user.uid));
    say(&engine, FrontKind::Bus, asked.id, Consent::Yes);
    // Said twice, it counts once.
    say(&engine, FrontKind::Bus, asked.id, Consent::Yes);
    let (answer, _) = engine.answer(FrontKind::Socket, RequestId(901)).unwrap();
    let Answer::Created(first) = answer else { panic!("{answer:?}") };
    // A yes counts for its own request only.
    ask(&engine, 902, "second");
    let (second, _) = question(&engine);
    say(&engine, FrontKind::Bus, QuestionId(second.id.0 - 1), Consent::Yes);
    ask(&engine, 903, "third");
    let (third, _) = question(&engine);
    say(&engine, FrontKind::Bus, third.id, Consent::No);
    engine.answer(FrontKind::Socket, RequestId(903)).unwrap_err();
    assert_eq!(checker::records(lab).len(), 1);
    // Judged anew: policy has changed its mind meanwhile.
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.grants = 0\naccess.over-quota = \"deny\"\n");
    engine.reload();
    say(&engine, FrontKind::Bus, second.id, Consent::Yes);
    engine.answer(FrontKind::Socket, RequestId(902)).unwrap_err();
    assert_eq!(checker::records(lab).len(), 1, "policy was not looked at again");
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.grants = 0\n");
    engine.reload();
    // A front that was not asked, and answers of nobody's questions.
    ask(&engine, 904, "fourth");
    let (fourth, _) = question(&engine);
    let release = Op::Release { grant: first.grant.id, kill: true, force: false };
    engine.ask(FrontKind::Socket, connection, release, &[]).unwrap();
    say(&engine, FrontKind::Socket, fourth.id, Consent::Yes);
    assert!(engine.socket_front.is_closed(), "a forged answer was put up with");
    assert!(checker::records(lab).is_empty(), "a forged answer was believed");
    engine.relink(FrontKind::Socket);
    engine.socket_front.send(&ToEngine::Polkit { there: true }, &[]);
    assert!(engine.socket_front.is_closed());
    say(&engine, FrontKind::Bus, QuestionId(1 << 40), Consent::Yes);
    assert!(engine.bus_front.is_closed(), "an answer without a question was put up with");
    assert!(engine.is_alive());
    drop((process, engine));
}

fn a_process_that_is_gone_is_agreed_to_by_nobody(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.grants = 0\n");
    let mut engine = LoneEngine::start(lab);
    engine.bus_front.send(&ToEngine::Polkit { there: true }, &[]);
    let user = lab.user();
    let (process, stream) = user.connect(&engine.socket);
    let (connection, _, socket) = engine.connected();
    // What is taken from the bus front comes before what it is asked next.
    let refusal = engine.ask(FrontKind::Bus, connection, request("x"), &[]).unwrap_err();
    assert_eq!(refusal.rule.as_deref(), Some("built-in connections"));
    let message =
        ToEngine::Request { id: RequestId(800), connection, interactive: true, op: request("first") };
    engine.socket_front.send(&message, &[]);
    let (asked, with_process) = question(&engine);
    assert!(with_process);
    // The connection lives on in other hands; its process ends, and its pid may be anybody's.
    drop(process);
    say(&engine, FrontKind::Bus, asked.id, Consent::Yes);
    let refusal = engine.answer(FrontKind::Socket, RequestId(800)).unwrap_err();
    assert!(refusal.hint.as_deref().is_some_and(|hint| hint.contains("has ended")), "{refusal:?}");
    assert!(checker::records(lab).is_empty(), "a dead process was agreed with");
    // Polkit is not asked about the dead at all.
    let op = Op::ListGrants { all: true, nested: false };
    let message = ToEngine::Request { id: RequestId(801), connection, interactive: true, op };
    engine.socket_front.send(&message, &[]);
    let refusal = engine.answer(FrontKind::Socket, RequestId(801)).unwrap_err();
    assert!(refusal.hint.as_deref().is_some_and(|hint| hint.contains("has ended")), "{refusal:?}");
    let _ = (stream.as_fd(), socket.as_fd());
    drop(engine);
}

crate::tests![
    a_yes_is_kept_by_polkit_and_nowhere_else,
    a_no_is_a_no,
    silence_blocks_nobody_and_ends_with_the_caller,
    rules_of_the_administrator_decide_by_details,
    who_agrees_to_a_look_has_not_agreed_to_a_change,
    nobody_agrees_to_what_is_not_shown,
    what_is_asked_for_is_said_in_full,
    clients_of_the_bus_are_asked_about_too,
    without_polkit_policy_alone_decides,
    without_a_bus_the_policy_alone_decides_and_says_so_at_start,
    a_polkit_that_hangs_or_ends_keeps_nobody,
    others_are_managed_with_consent_and_not_known_of_without,
    answers_are_taken_from_who_was_asked_and_once,
    a_process_that_is_gone_is_agreed_to_by_nobody,
];
