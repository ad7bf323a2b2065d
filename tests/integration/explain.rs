//! Explain: it says what the request itself would be told, does nothing, and tells nobody of others.

use std::collections::HashMap;

use zbus::{OwnedVariant, Variant};

use crate::common::{
    Client, Lab, Options,
    bus::{MANAGER, MANAGER_PATH, Refused},
    checker,
};

const POLICY: &str = "\
[[rule]]
name = \"site\"
access.raw-write = \"deny\"
access.devices = [\"/dev/null\"]
quota = { grants = 3, persistent-grants = 1, ids = 131072, ids-per-grant = 65536, cgroup-depth = 2, pressure-watches = 2 }
grant-ceiling = { \"memory.max\" = \"64M\", \"pids.max\" = \"50\" }
network.ports = [\"2000-3000\"]
";

pub type Answer = HashMap<String, OwnedVariant>;

pub fn explain(client: &Client, request: &str, options: Options) -> Result<Answer, Refused> {
    client.manager("Explain", &(request, options.0))
}

pub fn text(answer: &Answer, key: &str) -> Option<String> {
    match answer.get(key).map(|value| &**value) {
        Some(Variant::Str(text)) => Some(text.to_string()),
        _ => None,
    }
}

fn number(answer: &Answer, key: &str) -> Option<u64> {
    match answer.get(key).map(|value| &**value) {
        Some(Variant::U64(number)) => Some(*number),
        _ => None,
    }
}

/// The rows of a list of figures or of lacks.
fn rows<T>(answer: &Answer, key: &str) -> Vec<T>
where
    Vec<T>: TryFrom<OwnedVariant>,
{
    let value = answer.get(key).unwrap_or_else(|| panic!("no {key}: {answer:?}")).try_clone().unwrap();
    value.try_into().unwrap_or_else(|_| panic!("{key} is none of these: {answer:?}"))
}

pub fn allowed(answer: &Answer) -> bool {
    matches!(answer.get("allowed").map(|value| &**value), Some(Variant::Bool(true)))
}

/// The answer to the question, and what the request itself came to.
#[track_caller]
pub fn same<T>(what: &str, answer: &Answer, real: &Result<T, Refused>) {
    match real {
        Ok(_) => assert!(allowed(answer), "{what} is done, and was to be refused: {answer:?}"),
        Err(refused) => {
            assert!(!allowed(answer), "{what} was allowed: {refused:?}");
            let name = text(answer, "error").unwrap();
            assert_eq!(name.trim_start_matches("org.cgrant.Error."), refused.name, "{what}");
            assert_eq!(text(answer, "message").unwrap(), refused.message, "{what}");
            for key in ["rule", "resource", "limit", "hint"] {
                let real = refused.details.get(key).and_then(|value| match &**value {
                    Variant::Str(text) => Some(text.to_string()),
                    _ => None,
                });
                // What polkit says to it is known only when it is asked.
                let own = text(answer, key);
                if key == "hint" && text(answer, "action").is_some() {
                    assert!(real.unwrap().starts_with(&own.unwrap_or_default()), "{what}");
                } else if key != "rule" || real.is_some() {
                    assert_eq!(own, real, "{what}: {key}");
                }
            }
            assert_eq!(number(answer, "quota"), refused.number("quota"), "{what}");
            assert_eq!(number(answer, "usage"), refused.number("usage"), "{what}");
        }
    }
}

/// Every kind of grant, in every state of the quotas: first the question, then the request.
fn it_says_what_the_request_is_told(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    type Make = fn() -> Options;
    let wishes: [(&str, Make); 13] = [
        ("plain", || Options::new().no_range()),
        ("ids", Options::new),
        ("many ids", || Options::new().count(65_537)),
        ("some ids", || Options::new().count(1000)),
        ("lasting", || Options::new().no_range().lifetime("persistent")),
        ("memory", || Options::new().no_range().limits(&[("memory.max", "32M")])),
        ("too much memory", || Options::new().no_range().limits(&[("memory.max", "65M")])),
        ("no limit", || Options::new().no_range().limits(&[("pids.max", "max")])),
        ("no such limit", || Options::new().no_range().limits(&[("memory.mx", "1")])),
        ("no such value", || Options::new().no_range().limits(&[("pids.max", "many")])),
        ("a raw file", || Options::new().no_range().limits(&[("cpu.idle", "1")])),
        ("a forbidden file", || Options::new().no_range().limits(&[("cgroup.procs", "1")])),
        ("a bad name", || Options::new().no_range()),
    ];
    let mut refusals = 0;
    for round in 0..3 {
        for (what, options) in &wishes {
            let name = if *what == "a bad name" {
                "../x".to_owned()
            } else {
                format!("{}-{round}", what.replace(' ', "-"))
            };
            let question = explain(&client, "CreateGrant", options().with("name", name.clone())).unwrap();
            let before = client.names();
            let real = client.create(&name, options());
            same(&format!("{what} ({round})"), &question, &real);
            refusals += usize::from(real.is_err());
            assert!(text(&question, "rule").is_some());
            if let Ok(grant) = real {
                assert_eq!(client.names().len(), before.len() + 1);
                // In the last round they stay, and the quotas fill up.
                if round < 2 && client.names().len() > 1 {
                    client.release(&grant.path, false).unwrap();
                }
            }
        }
    }
    assert!(refusals > 15, "{refusals} refusals prove nothing");
    // A name that is taken.
    let name = client.names().remove(0);
    let question =
        explain(&client, "CreateGrant", Options::new().no_range().with("name", name.clone())).unwrap();
    same("a name that is taken", &question, &client.create(&name, Options::new().no_range()));
    checker::assert_in_order(lab);
}

fn what_is_done_with_a_grant_is_explained(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let (client, stranger) = (user.client(broker.socket()), other.client(broker.socket()));
    let grant = client.create("mine", Options::new().no_range()).unwrap();
    let path = || grant.path.as_str().to_owned();
    for client in [&client, &stranger] {
        for (key, value) in
            [("memory.max", "32M"), ("memory.max", "1G"), ("pids.max", "max"), ("cpu.idle", "1")]
        {
            let limits = HashMap::from([(key.to_owned(), value.to_owned())]);
            let options = Options::new().with("grant", path()).with("limits", limits);
            let question = explain(client, "SetLimits", options).unwrap();
            same(&format!("{key}={value}"), &question, &client.set_limits(&grant.path, &[(key, value)]));
        }
        for place in ["a", "a/b", "a/b/c", "..", "a//b"] {
            let options = Options::new().with("grant", path()).with("path", place);
            let question = explain(client, "CreateCgroup", options).unwrap();
            same(place, &question, &client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &place));
        }
        for method in ["Freeze", "Thaw", "Kill"] {
            let question = explain(client, method, Options::new().with("grant", path())).unwrap();
            same(method, &question, &client.cgroup::<_, ()>(&grant.path, method, &()));
        }
        for keys in [vec!["memory.max"], vec!["cgroup.procs"], vec!["memory.stat"]] {
            let options = Options::new().with("grant", path()).with("keys", keys.clone());
            let question = explain(client, "GetValues", options).unwrap();
            let real = client.cgroup::<_, HashMap<String, String>>(&grant.path, "GetValues", &keys);
            if real.as_ref().is_err_and(|refused| refused.name == "Unsupported") {
                continue;
            }
            same(keys[0], &question, &real);
        }
        let question = explain(client, "ListGrants", Options::new().with("all", true)).unwrap();
        let real = client.manager::<_, Vec<(zbus::OwnedObjectPath, String, u32)>>(
            "ListGrants",
            &Options::new().with("all", true).0,
        );
        same("everybody's grants", &question, &real);
    }
    let question = explain(&client, "Release", Options::new().with("grant", path())).unwrap();
    assert!(allowed(&question));
    assert_eq!(client.names(), ["mine"], "asking does nothing");
}

/// An attacker asks about others.
fn nobody_learns_of_others(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let (client, root) = (user.client(broker.socket()), lab.root().client(broker.socket()));
    let theirs = other.client(broker.socket()).create("theirs", Options::new().no_range()).unwrap();
    for options in [
        Options::new().with("account", other.uid),
        Options::new().with("account", user.uid),
        Options::new().with("groups", vec!["0"]),
        Options::new().with("application", "unit:x.service"),
    ] {
        explain(&client, "CreateGrant", options).unwrap_err().is("NotAuthorized", "");
    }
    // A grant of somebody else's and one that is not there answer alike.
    let say = |path: &str| explain(&client, "Kill", Options::new().with("grant", path.to_owned())).unwrap();
    let nowhere = "/org/cgrant/Broker1/grant/00000000000000aa";
    let (there, not_there) = (say(&theirs.path), say(nowhere));
    let id = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    assert_eq!(
        text(&there, "message").unwrap().replace(&id(&theirs.path), "ID"),
        text(&not_there, "message").unwrap().replace(&id(nowhere), "ID")
    );
    assert_eq!(text(&there, "error"), text(&not_there, "error"));
    // Root asks for anybody, and is told what they would be told.
    let for_other =
        |options: Options| explain(&root, "CreateGrant", options.with("account", other.uid)).unwrap();
    assert!(allowed(&for_other(Options::new().no_range())));
    let refused = for_other(Options::new().no_range().limits(&[("memory.max", "1G")]));
    assert_eq!(text(&refused, "error").as_deref(), Some("org.cgrant.Error.QuotaExceeded"));
    assert_eq!(
        (text(&refused, "resource").as_deref(), text(&refused, "limit").as_deref()),
        (Some("memory.max"), Some("67108864"))
    );
    // What is no question.
    for (request, key) in [("Nonsense", "name"), ("Kill", "grant"), ("CreateGrant", "nonsense")] {
        explain(&client, request, Options::new().with(key, "x")).unwrap_err().is("InvalidArgument", "");
    }
}

type Usage = Vec<(String, u64, u64)>;
type Lacks = Vec<(String, String)>;

/// Without what is used of the requests of this second, which counts the question itself.
fn comparable(mut usage: Usage) -> Usage {
    let requests = usage.iter_mut().find(|(resource, ..)| resource == "requests-per-second").unwrap();
    requests.1 = 0;
    usage
}

/// What the property says is not there. Polkit is none of the kernel's features.
fn lacking(client: &Client) -> Lacks {
    let features: Vec<(String, bool, String)> = client.property(MANAGER_PATH, MANAGER, "Features");
    assert!(features.iter().any(|(name, ..)| name == "polkit"), "{features:?}");
    let lacking = features.into_iter().filter(|(name, there, _)| !there && name != "polkit");
    lacking.map(|(name, _, without)| (name, without)).collect()
}

fn figures_and_lacks_are_those_that_are_told_elsewhere(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let (user, idle) = (lab.user(), lab.user());
    let (client, root) = (user.client(broker.socket()), lab.root().client(broker.socket()));
    let grant = client.create("one", Options::new().count(1000)).unwrap();
    client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &"a").unwrap();
    let used = comparable(client.usage_of(user.uid));
    assert!(used.contains(&("grants".to_owned(), 1, 3)), "{used:?}");
    let lacks = lacking(&client);

    // Whatever is asked about and whatever comes of it.
    let refused = || Options::new().no_range().limits(&[("memory.max", "1G")]);
    for (options, may) in [(Options::new().no_range(), true), (refused(), false)] {
        let answer = explain(&client, "CreateGrant", options).unwrap();
        assert_eq!(allowed(&answer), may);
        assert_eq!(comparable(rows(&answer, "rows")), used);
        assert_eq!(rows::<(String, String)>(&answer, "lacks"), lacks);
    }
    // Of whom it is asked about, not of who asks.
    for account in [user.uid, idle.uid] {
        let answer =
            explain(&root, "CreateGrant", Options::new().no_range().with("account", account)).unwrap();
        let used = comparable(root.usage_of(account));
        assert_eq!(comparable(rows(&answer, "rows")), used);
        assert_eq!(used.contains(&("grants".to_owned(), 1, 3)), account == user.uid, "{used:?}");
    }

    let output = user.cgrant(broker.socket(), &["explain", "create-grant", "--no-ids", "--format", "json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |row: &serde_json::Value| {
        let number = |key: &str| row[key].as_u64().unwrap();
        // Where there is no limit there is no number.
        let quota = row["quota"].as_u64().unwrap_or(u64::MAX);
        (row["resource"].as_str().unwrap().to_owned(), number("used"), quota)
    };
    let printed = said["rows"].as_array().unwrap().iter().map(row).collect();
    // Whoever runs the command has one more connection.
    let others = |usage: Usage| -> Usage {
        comparable(usage).into_iter().filter(|(resource, ..)| resource != "connections").collect()
    };
    assert_eq!(others(printed), others(used));
    let lack = |row: &serde_json::Value| {
        let word = |key: &str| row[key].as_str().unwrap().to_owned();
        (word("feature"), word("without"))
    };
    let printed: Lacks = said["lacks"].as_array().unwrap().iter().map(lack).collect();
    assert_eq!(printed, lacks);
    client.release(&grant.path, false).unwrap();
}

fn the_command_says_it_too(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let user = lab.user();
    let run = |arguments: &[&str]| {
        let output = user.cgrant(broker.socket(), arguments);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (code, said) = run(&["explain", "create-grant", "--no-ids"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("50-test.toml:1 site") && said.contains("pressure-watches"), "{said}");
    let (code, said) = run(&["explain", "create-grant", "--limit", "memory.max=1G", "--format", "json"]);
    assert_ne!(code, Some(0));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((said["allowed"].as_bool(), said["limit"].as_str()), (Some(false), Some("67108864")));
    assert_eq!(said["error"].as_str(), Some("org.cgrant.Error.QuotaExceeded"));
    // The real one has the same details in its message.
    let (_, said) = run(&["grant", "create", "x", "--limit", "memory.max=1G", "--no-ids"]);
    assert!(said.contains("above the ceiling of 67108864") && said.contains("50-test.toml:1 site"), "{said}");
}

crate::tests![
    it_says_what_the_request_is_told,
    what_is_done_with_a_grant_is_explained,
    nobody_learns_of_others,
    figures_and_lacks_are_those_that_are_told_elsewhere,
    the_command_says_it_too,
];
