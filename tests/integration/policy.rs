//! Policy: quotas with their figures, rules by uid and group, files with mistakes.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    process::Command,
    time::{Duration, Instant},
};

use zbus::OwnedVariant;

use crate::common::{
    Client, Lab, Options, PATIENCE, User,
    bus::{Changed, PROPERTIES, Watch},
    checker, wait_until,
};

const ACCOUNT: &str = "org.cgrant.Broker1.Account";
const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";

fn account_path(uid: u32) -> String {
    format!("/org/cgrant/Broker1/account/{uid}")
}

fn quotas_are_met_with_figures(lab: &Lab) {
    let broker = {
        lab.write_policy("[[rule]]\nname = \"few\"\n[rule.quota]\ngrants = 2\npersistent-grants = 1\nids = 131072\nids-per-grant = 65536\ncgroups = 40\ncgroup-depth = 2\n");
        lab.broker()
    };
    let client = lab.user().client(broker.socket());
    let one = client.create("one", Options::new().lifetime("persistent")).unwrap();
    let refused = client.create("two", Options::new().lifetime("persistent")).unwrap_err();
    refused.is("QuotaExceeded", "");
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(1), Some(1)), "{refused:?}");
    assert!(refused.details.get("rule").is_some_and(|r| format!("{r:?}").contains("few")), "{refused:?}");
    let two = client.create("two", Options::new()).unwrap();
    let refused = client.create("three", Options::new().no_range()).unwrap_err();
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(2), Some(2)), "{refused:?}");
    client.release(&two.path, false).unwrap();
    // Ids: the ranges of one and two are the account's, in use or not, and that is all it may have.
    client.create("three", Options::new()).unwrap_err().is("QuotaExceeded", "ids");
    client.create("big", Options::new().count(65_537)).unwrap_err().is("QuotaExceeded", "");
    // Depth and number of cgroups, whoever makes them.
    let make = |path: &str| client.cgroup::<_, ()>(&one.path, "CreateCgroup", &path);
    make("a").unwrap();
    make("a/b").unwrap();
    make("a/b/c").unwrap_err().is("QuotaExceeded", "");
    let stopped = (0..60).find_map(|n| make(&format!("n{n}")).err());
    stopped.expect("60 cgroups with a quota of 40").is("QuotaExceeded", "");
    checker::assert_in_order(lab);
    let (_, rule, rows): (u32, String, Vec<(String, u64, u64)>) =
        client.manager("GetUsage", &Options::new().0).unwrap();
    assert!(rule.contains("few"), "{rule}");
    assert!(rows.contains(&("grants".into(), 1, 2)), "{rows:?}");
    assert!(rows.contains(&("ids".into(), 131_072, 131_072)), "{rows:?}");
    client.release(&one.path, false).unwrap();
    checker::assert_empty(lab);
}

fn requests_that_come_too_fast_wait_and_hold_up_nobody_else(lab: &Lab) {
    let (busy, quiet, barred, slow) = (lab.user(), lab.user(), lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"busy\"\nuids = [{}]\nquota.requests-per-second = 20\n\
         [[rule]]\nname = \"barred\"\nuids = [{}]\nquota.requests-per-second = 0\n\
         [[rule]]\nname = \"slow\"\nuids = [{}]\nquota.requests-per-second = 1\n",
        busy.uid, barred.uid, slow.uid
    ));
    let broker = lab.broker();
    let refused = barred.client(broker.socket()).names_or_refused().unwrap_err();
    refused.is("QuotaExceeded", "requests-per-second");
    // Eight connections that ask without a pause, 20 at once and 80 at the rate: three seconds at least, however fast the host is.
    let begun = Instant::now();
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let client = busy.client(broker.socket());
            std::thread::spawn(move || (0..15).for_each(|_| assert!(client.names().is_empty())))
        })
        .collect();
    let client = quiet.client(broker.socket());
    wait_until("some wait", || {
        let root = lab.root().client(broker.socket());
        let usage = root.usage_of(busy.uid);
        usage.iter().any(|(name, used, quota)| name == "requests-per-second" && used > quota)
    });
    for _ in 0..20 {
        client.names();
    }
    assert!(flood.iter().any(|thread| !thread.is_finished()), "the quiet one was answered among the last");
    flood.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(
        begun.elapsed() >= Duration::from_secs(4),
        "120 requests at 20 a second took {:?}",
        begun.elapsed()
    );
    // Who would have to wait for longer than five seconds is told so instead.
    let crowd: Vec<_> = (0..12)
        .map(|_| {
            let client = slow.client(broker.socket());
            std::thread::spawn(move || client.names_or_refused().err())
        })
        .collect();
    let refused: Vec<_> = crowd.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
    let refused = refused.first().expect("12 requests at once at 1 a second");
    refused.is("QuotaExceeded", "requests-per-second");
    assert_eq!(refused.number("quota"), Some(1), "{refused:?}");
    assert!(refused.details.contains_key("hint") && refused.details.contains_key("rule"), "{refused:?}");
    assert!(refused.number("usage").is_some_and(|usage| usage >= 6), "{refused:?}");
}

fn an_account_has_its_usage_as_properties_that_change(lab: &Lab) {
    let (user, other) = (lab.user(), lab.user());
    lab.write_policy("[[rule]]\nname = \"few\"\n[rule.quota]\ngrants = 7\n");
    let broker = lab.broker();
    let client = user.client(broker.socket());
    let (stranger, root) = (other.client(broker.socket()), lab.root().client(broker.socket()));
    client.names();
    let path = account_path(user.uid);
    let figure = |client: &Client, property: &str, resource: &str| {
        let all: HashMap<String, u64> = client.property(&path, ACCOUNT, property);
        all.get(resource).copied()
    };
    assert_eq!((figure(&client, "Usage", "grants"), figure(&client, "Quotas", "grants")), (Some(0), Some(7)));
    assert_eq!(client.property::<u32>(&path, ACCOUNT, "Uid"), user.uid);
    assert!(client.property::<String>(&path, ACCOUNT, "Rule").contains("few"));
    assert!(client.introspect(&path).contains(ACCOUNT));
    let children = |client: &Client| client.introspect("/org/cgrant/Broker1/account");
    let node = |uid: u32| format!("<node name=\"{uid}\"/>");
    assert!(children(&client).contains(&node(user.uid)) && !children(&client).contains(&node(other.uid)));
    assert!(children(&root).contains(&node(user.uid)) && children(&root).contains(&node(other.uid)));
    // Nobody learns of another's, and not whether there is such an account.
    for uid in [user.uid, 4_000_000_000, 0] {
        let path = account_path(uid);
        let get = (ACCOUNT, "Usage");
        let refused = stranger.call::<_, OwnedVariant>(&path, PROPERTIES, "Get", &get).unwrap_err();
        refused.is("NotAuthorized", "usage of other accounts");
        let refused = stranger.call::<_, String>(&path, INTROSPECTABLE, "Introspect", &()).unwrap_err();
        refused.is("NotAuthorized", "usage of other accounts");
    }
    let all = Options::new().with("all", true);
    stranger.manager::<_, Vec<u32>>("ListAccounts", &all.0).unwrap_err().is("NotAuthorized", "");
    assert_eq!(stranger.manager::<_, Vec<u32>>("ListAccounts", &Options::new().0).unwrap(), [other.uid]);
    let (mut own, mut roots, mut strangers) = (client.watch(), root.watch(), stranger.watch());
    let grants: Vec<_> = (0..5).map(|n| client.create(&format!("g{n}"), Options::new()).unwrap()).collect();
    // What is told of the account: its grants, and what is to be asked for again.
    let told = |client: &Client, watch: &mut Watch| {
        // Those of the grants themselves come too.
        loop {
            let (path, (_, mut changed, again)) =
                client.signal::<Changed>(watch, "PropertiesChanged", PATIENCE)?;
            if path == account_path(user.uid) {
                let usage =
                    changed.remove("Usage").map(|usage| HashMap::<String, u64>::try_from(usage).unwrap());
                return Some((usage.and_then(|usage| usage.get("grants").copied()), again));
            }
        }
    };
    let mut news = 0;
    loop {
        let (grants, _) = told(&client, &mut own).expect("no signal of five grants");
        news += 1;
        if grants == Some(5) {
            break;
        }
    }
    assert!(news <= 5, "as many signals as grants");
    assert!(told(&root, &mut roots).is_some());
    drop(grants);
    client.release(&client.find("g0").unwrap(), false).unwrap();
    while told(&client, &mut own).expect("no signal of a release").0 != Some(4) {}
    // Another policy: what may be had can be another, and everybody is told for his own account.
    lab.write_policy("[[rule]]\nname = \"more\"\n[rule.quota]\ngrants = 9\n");
    broker.reload();
    while told(&client, &mut own).expect("no signal of a policy").1 != ["Quotas", "Rule"] {}
    wait_until("the quota is another", || figure(&client, "Quotas", "grants") == Some(9));
    // The stranger has heard of its own account only, for which the policy was changed as well.
    loop {
        let (path, _) = stranger.signal::<Changed>(&mut strangers, "PropertiesChanged", PATIENCE).unwrap();
        assert_eq!(path, account_path(other.uid));
        if stranger.property::<HashMap<String, u64>>(&path, ACCOUNT, "Quotas").get("grants") == Some(&9) {
            break;
        }
    }
}

fn usage_on_the_command_line(lab: &Lab) {
    let (user, other) = (lab.user(), lab.user());
    let broker = lab.broker();
    let client = user.client(broker.socket());
    client.create("one", Options::new()).unwrap();
    let run = |user: &User, arguments: &[&str]| {
        let output = user.cgrant(broker.socket(), arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, said, _) = run(&user, &["usage"]);
    assert!(code == Some(0) && said.contains("requests-per-second"), "{said}");
    let (code, said, _) = run(&lab.root(), &["usage", "--all"]);
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.starts_with(&[user.uid.to_string().as_str(), "grants", "1"])
    };
    assert!(code == Some(0) && said.lines().any(row), "{said}");
    let (code, said, _) = run(&lab.root(), &["usage", "--all", "--format", "json"]);
    assert!(code == Some(0) && said.contains(&format!("\"account\":{}", user.uid)), "{said}");
    let (code, said, why) = run(&other, &["usage", "--all"]);
    assert!(code != Some(0) && said.is_empty() && why.contains("other accounts"), "{said} {why}");
}

/// What is in force, and what would be.
fn rules_are_shown_and_tried(lab: &Lab) {
    let (user, other) = (lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"secret\"\nuids = [{0}]\nquota.grants = 7\n\n[[rule]]\nname = \"mine\"\nuids = [{1}, {0}]\n[rule.quota]\ngrants = 3\n",
        other.uid, user.uid
    ));
    let broker = lab.broker();
    let run = |user: &User, line: &str| {
        let output = user.cgrant(broker.socket(), &line.split(' ').collect::<Vec<_>>());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // Its own rule with its place, what is otherwise in it, and nobody else in it.
    let (code, said, why) = run(&user, "policy show");
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "50-test.toml:6 mine: for you\n    quota.grants = 3\n"),
        "{why}"
    );
    for line in ["policy show --all", &format!("policy test connect --account {}", other.uid)] {
        let (code, said, why) = run(&user, line);
        assert!(
            code == Some(1) && !said.contains("secret") && !why.contains("secret"),
            "{line}: {said} {why}"
        );
    }
    let all = Options::new().with("all", true);
    type Rules = Vec<(String, String, Vec<(String, String)>)>;
    let client = user.client(broker.socket());
    client.manager::<_, Rules>("ListRules", &all.0).unwrap_err().is("NotAuthorized", "rules for others");
    let (code, said, why) = run(&lab.root(), "policy show --all");
    let heads: Vec<&str> = said.lines().filter(|line| !line.starts_with(' ') && !line.is_empty()).collect();
    assert_eq!(code, Some(0), "{why}");
    assert_eq!(
        heads,
        [
            &format!("50-test.toml:1 secret: for uids {}", other.uid),
            &format!("50-test.toml:6 mine: for uids {}, {}", user.uid, other.uid),
            "built-in root: for uids 0",
            "built-in everybody: for everybody but root",
        ]
    );
    // Root tries what others would be told, with what they use; a file that is not in force is tried by anybody.
    client.create("one", Options::new().no_range()).unwrap();
    let (code, said, _) =
        run(&lab.root(), &format!("policy test create-grant --no-ids --account {}", user.uid));
    assert!(code == Some(0) && said.contains("50-test.toml:6 mine"), "{said}");
    let draft = lab.scratch.join("draft");
    fs::create_dir_all(draft.join("policy.d")).unwrap();
    let file = draft.join("policy.d/10-new.toml");
    let put = |text: &str| fs::write(&file, text).unwrap();
    put(&format!("[[rule]]\nname = \"new\"\nuids = [{}]\nquota.grants = 0\n", user.uid));
    let (place, unreachable) = (draft.display(), lab.scratch.join("nowhere"));
    let without_broker = |line: String| {
        let output = user.cgrant(&unreachable, &line.split(' ').collect::<Vec<_>>());
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = without_broker(format!("policy test create-grant --config-dir {place}"));
    assert!(
        code == Some(1) && said.contains("10-new.toml:1 new") && said.contains("QuotaExceeded"),
        "{said}"
    );
    let (code, said) =
        without_broker(format!("policy test create-grant --account {} --config-dir {place}", other.uid));
    assert!(code == Some(0) && said.contains("built-in everybody"), "{said}");
    let (code, said) = without_broker(format!("policy show --config-dir {place}"));
    assert!(code == Some(0) && said.starts_with("10-new.toml:1 new: for uids"), "{said}");
    put("[[rule]]\nname = \"new\"\nquota.grantz = 0\n");
    let (code, said) = without_broker(format!("policy test connect --config-dir {place}"));
    assert!(
        code == Some(4) && said.contains("10-new.toml:3:7: unknown field") && said.contains("^^^^^^"),
        "{said}"
    );
}

fn rules_by_uid_and_by_the_groups_of_the_connection(lab: &Lab) {
    let (plain, grouped) = (lab.user(), lab.user_in(&[31_007]));
    let banned = lab.user();
    lab.write_policy(&format!(
        "[[rule]]\nname = \"banned\"\nuids = [{}]\n[rule.access]\ngrant = \"deny\"\n\
         [[rule]]\nname = \"club\"\ngids = [31007]\n[rule.quota]\ngrants = 3\n\
         [[rule]]\nname = \"rest\"\n[rule.quota]\ngrants = 1\n",
        banned.uid
    ));
    let broker = lab.broker();
    banned.client(broker.socket()).create("x", Options::new()).unwrap_err().is("NotAuthorized", "");
    let client = plain.client(broker.socket());
    client.create("x", Options::new()).unwrap();
    client.create("y", Options::new()).unwrap_err().is("QuotaExceeded", "");
    let client = grouped.client(broker.socket());
    for name in ["x", "y", "z"] {
        client.create(name, Options::new()).unwrap();
    }
    client.create("w", Options::new()).unwrap_err().is("QuotaExceeded", "");
}

fn who_may_not_connect_is_not_served(lab: &Lab) {
    let (friend, banned) = (lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"out\"\nuids = [{}]\n[rule.access]\nconnect = \"deny\"\n",
        banned.uid
    ));
    let broker = lab.broker();
    let (_process, stream) = banned.connect(broker.socket());
    assert!(crate::common::raw::Raw::new(stream).is_closed(), "the connection stays open");
    friend.client(broker.socket()).names();
}

fn ceilings_hold_for_every_grant(lab: &Lab) {
    lab.write_policy(
        "[[rule]]\nname = \"small\"\n[rule.grant-ceiling]\n\"memory.max\" = \"64M\"\n\"pids.max\" = \"50\"\n\"cpu.max\" = \"150%\"\n",
    );
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("low", Options::new()).unwrap();
    assert_eq!(
        client.value(&grant.path, "memory.max"),
        "67108864",
        "without a limit of its own it gets the ceiling"
    );
    // The kernel holds it to all of them, on the cgroup that is root's.
    let memory = if lab.host.is_v1("memory") { "memory.limit_in_bytes" } else { "memory.max" };
    let cpu =
        if lab.host.is_v1("cpu") { ("cpu.cfs_quota_us", "150000") } else { ("cpu.max", "150000 100000") };
    for (controller, file, value) in
        [("memory", memory, "67108864"), ("pids", "pids.max", "50"), ("cpu", cpu.0, cpu.1)]
    {
        let file = checker::place(lab, user.uid, "low", controller).join(file);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), value, "{}", file.display());
        assert_eq!(fs::metadata(&file).unwrap().uid(), 0, "{}", file.display());
    }
    client.set_limits(&grant.path, &[("pids.max", "20"), ("cpu.max", "100%")]).unwrap();
    for (key, value) in [
        ("memory.max", "65M"),
        ("memory.max", "max"),
        ("pids.max", "51"),
        ("pids.max", "max"),
        ("cpu.max", "151%"),
        ("cpu.max", "max"),
    ] {
        let refused = client.set_limits(&grant.path, &[(key, value)]).unwrap_err();
        assert!(["QuotaExceeded", "NotAuthorized"].contains(&refused.name.as_str()), "{refused:?}");
    }
    client.create("high", Options::new().limits(&[("memory.max", "1G")])).unwrap_err();
    assert_eq!(client.names(), ["low"]);
    checker::assert_in_order(lab);
}

fn a_file_with_a_mistake_is_refused_whole_with_its_place(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"good\"\n[rule.quota]\ngrants = 1\n");
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    client.create("one", Options::new()).unwrap();
    client.create("two", Options::new()).unwrap_err().is("QuotaExceeded", "");
    // The mistake is in line 4, at the word that is no key; the rest of the file would be more generous.
    lab.write_policy("[[rule]]\nname = \"bad\"\n[rule.quota]\ngrantz = 9\ngrants = 9\n");
    broker.reload();
    wait_until("the mistake is told", || broker.log().contains("50-test.toml:4:"));
    client.create("two", Options::new()).unwrap_err().is("QuotaExceeded", "");
    let check = |lab: &Lab| {
        let mut command = Command::new(lab.programs.join("cgrantd"));
        command.args(["--check-config", "--config-dir"]).arg(lab.config_dir());
        command.output().unwrap()
    };
    let output = check(lab);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("50-test.toml:4:1") && said.contains("grantz"), "{said}");
    // Mended, it is in force from the next reload, and what lives keeps living.
    lab.write_policy("[[rule]]\nname = \"good\"\n[rule.quota]\ngrants = 2\n");
    assert_eq!(check(lab).status.code(), Some(0));
    broker.reload();
    wait_until("the new policy is in force", || client.create("two", Options::new()).is_ok());
    assert_eq!(client.names(), ["one", "two"]);
}

fn a_broker_does_not_start_on_a_broken_policy(lab: &Lab) {
    for (text, place) in [
        ("[[rule]]\nname = 5\n", "50-test.toml:2:"),
        ("[[rule]\n", "50-test.toml:1:"),
        ("[[rule]]\nname = \"x\"\n[rule.access]\ngrant = \"perhaps\"\n", "50-test.toml:4:"),
        ("[[rule]]\nname = \"x\"\n[rule.grant-ceiling]\n\"memory.max\" = \"lots\"\n", "50-test.toml:4:"),
        ("\u{0}", "50-test.toml:1:"),
    ] {
        lab.write_policy(text);
        let said = lab.setup().try_start().err().unwrap_or_else(|| panic!("it started on {text:?}"));
        assert!(said.contains(place), "{text:?}: {said}");
    }
    fs::write(lab.config_dir().join("policy.d/50-test.toml"), [0xff, 0xfe]).unwrap();
    assert!(lab.setup().try_start().is_err());
    fs::remove_file(lab.config_dir().join("policy.d/50-test.toml")).unwrap();
    lab.write_config("[nonsense]\n");
    let said = lab.setup().try_start().err().expect("it started with an unknown table");
    assert!(said.contains("cgrantd.toml:"), "{said}");
    lab.write_config("");
    drop(lab.broker());
}

/// All that was decided about a grant is found by its id, whoever asked, and whatever it is called.
fn decisions_name_their_grant(lab: &Lab) {
    let broker = lab.broker();
    let (user, stranger) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let grant = client.create("told", Options::new().no_range()).unwrap();
    client.set_limits(&grant.path, &[("pids.max", "9")]).unwrap();
    client.set_limits(&grant.path, &[("memory.min", "1M")]).unwrap_err();
    let other = stranger.client(broker.socket());
    other.set_limits(&grant.path, &[("pids.max", "1")]).unwrap_err();
    client.release(&grant.path, false).unwrap();
    let id = grant.path.rsplit_once('/').unwrap().1;
    let log = broker.log();
    let about =
        log.lines().filter(|line| line.contains(" decision: ") && line.contains(&format!(" grant={id}")));
    let about: Vec<&str> = about.collect();
    let has = |uid: u32, words: &[&str]| {
        let words = || {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .chain([format!(" uid={uid} "), format!(" account={} ", user.uid)])
        };
        assert!(
            about.iter().any(|line| words().all(|word| line.contains(&word))),
            "{words:?} in {log}",
            words = words().collect::<Vec<_>>()
        );
    };
    has(user.uid, &["request=\"create grant\"", "allowed=true", " rule="]);
    has(user.uid, &["request=\"set limits\"", "allowed=true", " rule="]);
    has(user.uid, &["request=\"set limits\"", "allowed=false", "error=NotAuthorized", " rule="]);
    has(stranger.uid, &["request=\"set limits\"", "allowed=false", "error=NoSuchGrant", " rule="]);
    has(user.uid, &["request=\"release\"", "allowed=true", " rule="]);
}

crate::tests![
    quotas_are_met_with_figures,
    requests_that_come_too_fast_wait_and_hold_up_nobody_else,
    an_account_has_its_usage_as_properties_that_change,
    usage_on_the_command_line,
    rules_are_shown_and_tried,
    rules_by_uid_and_by_the_groups_of_the_connection,
    who_may_not_connect_is_not_served,
    ceilings_hold_for_every_grant,
    a_file_with_a_mistake_is_refused_whole_with_its_place,
    a_broker_does_not_start_on_a_broken_policy,
    decisions_name_their_grant,
];
