//! What policy, polkit and Explain say to callers inside a grant.

use crate::{
    common::{
        Broker, Client, Lab, Options, User,
        bus::{GRANT, MANAGER, MANAGER_PATH, Refused},
        checker,
        level::{BLOCK, Level, all_names, connected, nesting, release, scene},
        place::MOUNTS,
        polkit::Desk,
    },
    explain::{Answer, allowed, explain, same, text},
    polkit::sees_polkit,
};

// A real polkit whose administrator says yes to everything that the broker asks it about.
fn with_yes(lab: &Lab, users: &[&User]) -> (Desk, Broker) {
    let mut desk = Desk::start(lab, users);
    desk.rules(
        "polkit.addRule(function(action) {
    if (action.id.indexOf('org.cgrant.broker1.') == 0) return polkit.Result.YES;
});",
    );
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    (desk, broker)
}

// Also where the caller lets a person be asked.
fn ask_create(client: &Client, name: &str) -> Refused {
    let options = Options::new().no_range();
    client.ask(MANAGER_PATH, MANAGER, "CreateGrant", &(name, options.0)).unwrap_err()
}

fn is_asked_about(broker: &Broker, one: &Level) -> bool {
    let log = broker.log();
    assert!(log.contains("polkit is asked for uid"), "nobody was asked at all: this proves nothing");
    log.contains(&format!("polkit is asked for uid {}", one.grant.uid))
}

// What policy leaves to polkit is refused inside, also where polkit would say yes.
fn polkit_agrees_to_nothing_from_inside(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"ask\"\naccess.grant = \"ask\"\naccess.over-quota = \"ask\"\naccess.others = \"ask\"\n",
    );
    let user = lab.user();
    let (desk, broker) = with_yes(lab, &[&user]);
    let client = user.client(broker.socket());
    let one = Level::new(&user, &client, "one", nesting(1));
    let first = one.client(lab, &user, broker.socket());
    let question = explain(&first, "CreateGrant", Options::new().no_range().with("name", "inner")).unwrap();
    assert_eq!(text(&question, "action"), None, "nobody would be asked");
    let real = first.create("inner", Options::new().no_range());
    same("what policy leaves to polkit", &question, &real);
    real.unwrap_err().is("NotAuthorized", "not asked about callers inside");
    ask_create(&first, "inner").is("NotAuthorized", "not asked about callers inside");
    assert!(all_names(&first).is_empty());
    // On the host it is agreed to, and asked there.
    client.create("beside", Options::new().no_range()).unwrap();
    assert!(!is_asked_about(&broker, &one));
    checker::assert_in_order(lab);
    drop((first, one, client, broker, desk));
}

// Neither more than the quota, nor what is beside its grant or another account's, which the account could have with polkit's yes.
fn polkit_opens_no_way_out_of_a_grant(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"few\"\nquota.grants = 3\naccess.over-quota = \"ask\"\naccess.others = \"ask\"\n",
    );
    let (user, stranger) = (lab.user(), lab.user());
    let (desk, broker) = with_yes(lab, &[&user, &stranger]);
    let (client, theirs) = (user.client(broker.socket()), stranger.client(broker.socket()));
    let foreign = theirs.create("foreign", Options::new().no_range()).unwrap();
    // The account itself is let by polkit, from outside. First, while the log has room to say so.
    let agreed = theirs.create("agreed", Options::new().no_range()).unwrap();
    release(&client, &agreed.path, Options::new()).unwrap();
    assert_eq!(theirs.names(), ["foreign"]);
    let one = Level::new(&user, &client, "one", nesting(1));
    let sibling = client.create("sibling", Options::new().no_range()).unwrap();
    let first = one.client(lab, &user, broker.socket());
    let inner = first.create("inner", Options::new().no_range()).unwrap();
    ask_create(&first, "more").is("QuotaExceeded", "3 of at most 3 grants");
    for path in [&sibling.path, &foreign.path, &one.grant.path] {
        let kill = || Options::new().with("kill", true).with("force", true).0;
        release(&first, path, Options::new().with("force", true)).unwrap_err().is("NoSuchGrant", "");
        first.ask(path, GRANT, "Release", &kill()).unwrap_err().is("NoSuchGrant", "");
        first.values(path, &["pids.max"]).unwrap_err().is("NoSuchGrant", "");
        first.set_limits(path, &[("pids.max", "9")]).unwrap_err().is("NoSuchGrant", "");
        for method in ["Freeze", "Thaw", "Kill"] {
            first.ask(path, crate::common::bus::CGROUP, method, &()).unwrap_err().is("NoSuchGrant", "");
        }
        let question = explain(&first, "Release", Options::new().with("grant", path.clone())).unwrap();
        assert_eq!(text(&question, "error").as_deref(), Some("org.cgrant.Error.NoSuchGrant"));
        assert_eq!(text(&question, "action"), None);
    }
    let all: Vec<(zbus::OwnedObjectPath, String, u32)> =
        first.manager("ListGrants", &Options::new().with("all", true).0).unwrap();
    assert_eq!(all.iter().map(|row| row.1.as_str()).collect::<Vec<_>>(), ["inner"]);
    assert_eq!((client.names().len(), theirs.names().len()), (2, 1));
    assert_eq!(all_names(&first), ["inner"]);
    release(&first, &inner.path, Options::new()).unwrap();
    assert!(!is_asked_about(&broker, &one));
    drop((first, one, client, theirs, broker, desk));
}

// Explain says inside what the request itself would be told there, and nothing of what is outside.
fn explain_says_inside_what_the_request_is_told(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"few\"\nquota = { grants = 5, nesting-depth = 1, nesting-blocks = 6 }\ngrant-ceiling = { \"pids.max\" = 50 }\n",
    );
    let (broker, user, client) = scene(lab);
    client.create("beside", Options::new().no_range()).unwrap();
    let one = Level::new(&user, &client, "one", nesting(6));
    let first = one.client(lab, &user, broker.socket());
    type Make = fn() -> Options;
    let wishes: [(&str, Make); 11] = [
        ("plain", || Options::new().no_range()),
        ("beside", || Options::new().no_range()),
        ("ids", Options::new),
        ("two-blocks", || Options::new().count(2 * BLOCK)),
        ("with-nesting", || nesting(1)),
        ("three-blocks", || Options::new().count(3 * BLOCK)),
        ("much", || Options::new().count(u32::MAX)),
        ("wide", || nesting(7)),
        ("endless", || nesting(u32::MAX)),
        ("limits", || Options::new().no_range().limits(&[("pids.max", "51")])),
        ("lasting", || Options::new().count(1000).lifetime("persistent")),
    ];
    let (mut done, mut refusals) = (0, 0);
    for round in 0..2 {
        for (name, options) in &wishes {
            let question = explain(&first, "CreateGrant", options().with("name", *name)).unwrap();
            let real = first.create(name, options());
            same(&format!("{name} ({round})"), &question, &real);
            *if real.is_ok() { &mut done } else { &mut refusals } += 1;
            // In the last round they stay: names are taken, quotas and ids used up.
            if let Ok(grant) = real
                && round == 0
            {
                release(&first, &grant.path, Options::new()).unwrap();
            }
        }
    }
    assert!(done >= 6 && refusals >= 10, "{done} and {refusals} prove little");
    // What is done with a grant of its own, and with one beside it of the same name.
    let (inner, beside) = (first.find("beside").unwrap(), client.find("beside").unwrap());
    for path in [&inner, &beside, &one.grant.path] {
        let ask = |request: &str, options: Options| {
            explain(&first, request, options.with("grant", path.clone())).unwrap()
        };
        for value in ["50", "51"] {
            let question = ask("SetLimits", Options::new().limits(&[("pids.max", value)]));
            same(value, &question, &first.set_limits(path, &[("pids.max", value)]));
        }
        for method in ["Freeze", "Thaw", "Kill"] {
            let question = ask(method, Options::new());
            same(method, &question, &first.cgroup::<_, ()>(path, method, &()));
        }
        let question = ask("GetValues", Options::new().with("keys", vec!["pids.max"]));
        same("GetValues", &question, &first.values(path, &["pids.max"]));
        let question = ask("OpenCgroup", Options::new());
        same("OpenCgroup", &question, &first.cgroup::<_, zbus::OwnedFd>(path, "OpenCgroup", &""));
        let question = ask("RemoveLink", Options::new());
        assert_eq!(allowed(&question), *path == inner, "{question:?}");
        for request in ["UnpublishPorts", "MapDirectory", "PublishPorts"] {
            is_not_there(&ask(request, Options::new()), request);
        }
        is_not_there(&ask("AllowDevice", Options::new().with("name", "null")), "AllowDevice");
        let question = ask("MakeDevice", Options::new().with("name", "zero"));
        let real: Result<zbus::OwnedFd, Refused> = first.call(path, MOUNTS, "MakeDevice", &"zero");
        same("MakeDevice", &question, &real);
    }
    assert!(allowed(&explain(&first, "Release", Options::new().with("grant", inner.clone())).unwrap()));
    is_not_there(&explain(&first, "CGManager", Options::new()).unwrap(), "CGManager");
    assert!(allowed(&explain(&first, "ListGrants", Options::new().with("all", true)).unwrap()));
    is_not_there(&explain(&first, "GetUsage", Options::new().with("of", user.uid)).unwrap(), "of the host");
    for own in [Options::new(), Options::new().with("of", 0_u32)] {
        assert!(allowed(&explain(&first, "GetUsage", own).unwrap()));
    }
    for other in [
        Options::new().with("account", 0_u32),
        Options::new().with("account", user.uid),
        Options::new().with("groups", vec!["0"]),
        Options::new().with("application", "unit:x.service"),
    ] {
        explain(&first, "CreateGrant", other).unwrap_err().is("Unsupported", "");
    }
    // At the last level that there may be.
    for name in first.names() {
        release(&first, &first.find(&name).unwrap(), Options::new()).unwrap();
    }
    let two = one.inner(&user, &first, "with-nesting", nesting(1));
    let second = two.client(lab, &user, broker.socket());
    let question = explain(&second, "CreateGrant", Options::new().no_range().with("name", "x")).unwrap();
    let real = second.create("x", Options::new().no_range());
    same("too deep", &question, &real);
    real.unwrap_err().is("QuotaExceeded", "nesting-depth");
    // Who is nobody inside is told nothing.
    let process = one.caller(lab, &user, 5, broker.socket());
    let nobody = Client::new(connected(&process), 5, process);
    explain(&nobody, "CreateGrant", Options::new()).unwrap_err().is("NotAuthorized", "acts for nobody");
}

#[track_caller]
fn is_not_there(answer: &Answer, what: &str) {
    assert!(!allowed(answer), "{what}: {answer:?}");
    assert_eq!(text(answer, "error").as_deref(), Some("org.cgrant.Error.Unsupported"), "{what}");
}

crate::tests![
    polkit_agrees_to_nothing_from_inside,
    polkit_opens_no_way_out_of_a_grant,
    explain_says_inside_what_the_request_is_told,
];
