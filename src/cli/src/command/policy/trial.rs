//! A request as the command line describes it, put before the decision: the broker's own code, for an account that uses nothing
//! yet.

use std::fmt::Display;

use cgrant_policy::{
    BLOCK, Caller, CgroupPath, DEFAULT_IDS, Denial, DenialCode, HostPort, HostUid, Key, LimitKey, LimitValue,
    NewGrant, NewLink, Policy, RawKey, RawValue, Request, Setting, UsageNow, Verb, Verdict,
};
use cgrant_proto::{Code, Port};
use serde_json::{Map, Value, json};

use crate::{
    args::{ExplainArgs, Inside},
    command::explain::method_of,
    error::Failure,
};

/// Where in containers of the account's somebody asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Who.
    pub(super) who: Inside,
    /// In how many containers, one in the other.
    pub(super) depth: usize,
}

/// The answer, in the fields that `cgrant explain` has for it, less what only a running broker knows.
///
/// # Errors
/// If the arguments are none of such a request, or files alone do not say.
pub(super) fn judge(
    policy: &Policy,
    caller: &Caller,
    place: Option<Place>,
    args: &ExplainArgs,
) -> Result<Map<String, Value>, Failure> {
    if place.is_some() && method_of(&args.request) != "CreateGrant" {
        return Err(Failure::Usage(format!("--inside is for create-grant, not for {}", args.request)));
    }
    if place.is_some() && (args.link || args.bridge.is_some() || !args.publish.is_empty()) {
        return Err(Failure::Usage(
            "--link is for what an account asks for itself, not with --inside".to_owned(),
        ));
    }
    let mut said = Said { policy, caller, place, rule: policy.ruling(caller).label.clone(), action: None };
    let denial = ask(&mut said, args)?.err();
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| fields.insert(key.to_owned(), value);
    put("allowed", denial.is_none().into());
    put("rule", denial.as_ref().map_or(said.rule, |denial| denial.rule.clone()).into());
    if let Some(application) = &caller.application {
        put("application", application.to_string().into());
    }
    if let Some(action) = said.action {
        put("action", action.into());
    }
    if let Some(place) = place {
        put("rows", rows(policy, caller, place));
    }
    if let Some(denial) = denial {
        put("error", code(denial.code).error_name().into());
        put("message", denial.message.into());
        let texts = [("resource", denial.resource), ("limit", denial.limit), ("hint", denial.hint)];
        texts.into_iter().filter_map(|(key, text)| Some((key, text?))).for_each(|(key, text)| {
            put(key, text.into());
        });
        let figures = [("quota", denial.quota), ("usage", denial.usage)];
        figures.into_iter().filter_map(|(key, number)| Some((key, number?))).for_each(|(key, number)| {
            put(key, number.into());
        });
    }
    Ok(fields)
}

/// The quotas that are those of callers inside, none of which is used yet.
fn rows(policy: &Policy, caller: &Caller, place: Place) -> Value {
    let quotas = policy.quotas(caller);
    let all = [
        ("nesting-depth", quotas.nesting_depth),
        ("nesting-blocks", quotas.nesting_blocks),
        ("nesting-user-blocks", quotas.nesting_user_blocks),
    ];
    // The last one bounds users.
    let shown = if place.who == Inside::User { all.len() } else { all.len() - 1 };
    all.into_iter().take(shown).map(|(name, quota)| json!([name, 0, quota])).collect()
}

/// What the broker calls it.
fn code(denied: DenialCode) -> Code {
    match denied {
        DenialCode::NotAuthorized => Code::NotAuthorized,
        DenialCode::QuotaExceeded => Code::QuotaExceeded,
        DenialCode::NotVisible => Code::NoSuchGrant,
        DenialCode::NoSuchBridge => Code::NoSuchBridge,
    }
}

/// What was said so far to the parts of a request.
struct Said<'a> {
    policy: &'a Policy,
    caller: &'a Caller,
    place: Option<Place>,
    rule: String,
    action: Option<&'static str>,
}

/// A denial is boxed because it is large and rare.
type Outcome = Result<(), Box<Denial>>;

impl Said<'_> {
    /// Puts one request before the decision.
    fn judge(&mut self, request: &Request<'_>) -> Outcome {
        let verdict = cgrant_policy::judge(self.policy, self.caller, request, &UsageNow::default());
        match if self.place.is_some() { verdict.unasked() } else { verdict } {
            Verdict::Allow { rule } => self.rule = rule,
            Verdict::Ask { action, rule, otherwise } => {
                self.rule = rule;
                self.action = self.action.or(Some(action.id()));
                if let Some(denial) = otherwise {
                    return Err(denial);
                }
            }
            Verdict::Deny(denial) => return Err(Box::new(denial)),
        }
        Ok(())
    }
}

/// Limits, and files of the kernel's.
type Settings = (Vec<(LimitKey, LimitValue)>, Vec<(RawKey, RawValue)>);

fn ask(said: &mut Said<'_>, args: &ExplainArgs) -> Result<Outcome, Failure> {
    let owner = said.caller.uid;
    let verb = |said: &mut Said<'_>, verb| said.judge(&Request::UseGrant { owner, verb });
    Ok(match method_of(&args.request).as_str() {
        "CreateGrant" => create_grant(said, args)?,
        "SetLimits" => {
            let (limits, raw) = settings(args)?;
            let outcome = said.judge(&Request::SetLimits { owner, limits: &limits });
            outcome.and_then(|()| write(said, owner, &raw))
        }
        "GetValues" => {
            let keys =
                args.keys.iter().map(|key| key.parse().map_err(wrong)).collect::<Result<Vec<Key>, _>>()?;
            keys.iter().try_for_each(|key| match key {
                Key::Raw(key) => said.judge(&Request::ReadRaw { owner, key }),
                Key::Limit(_) => verb(said, Verb::Read),
            })
        }
        "CreateCgroup" => {
            let path = CgroupPath::new(args.path.as_deref().unwrap_or_default()).map_err(wrong)?;
            said.judge(&Request::CreateCgroup { owner, depth: path.depth() })
        }
        "AddLink" => with_link(said, args, |said, link| said.judge(&Request::AddLink { owner, link })),
        "PublishPorts" => said.judge(&Request::Publish { owner, ports: &ports(&args.publish) }),
        "Adopt" => verb(said, if args.persistent { Verb::Persist } else { Verb::Adopt }),
        "ListGrants" if args.all => said.judge(&Request::ListAll),
        "ListAccounts" if args.all => said.judge(&Request::ListAccounts),
        "ListRules" if args.all => said.judge(&Request::ListRules),
        "ListGrants" | "ListAccounts" | "ListRules" => Ok(()),
        "ListDeparted" => said.judge(&Request::ListAccounts),
        "GetUsage" => said.judge(&Request::UsageOf { account: owner }),
        "Connect" => said.judge(&Request::Connect),
        "CGManager" => said.judge(&Request::Legacy),
        "Stat" | "ListProcesses" | "ListCgroups" => verb(said, Verb::Read),
        "RemoveCgroup" | "OpenCgroup" => verb(said, Verb::Cgroup),
        "Attach" => verb(said, Verb::Attach),
        "Freeze" => verb(said, Verb::Freeze),
        "Thaw" => verb(said, Verb::Thaw),
        "Kill" => verb(said, Verb::Kill),
        "Release" => verb(said, Verb::Release),
        "RemoveLink" => verb(said, Verb::RemoveLink),
        "UnpublishPorts" => verb(said, Verb::Unpublish),
        "MapDirectory" => verb(said, Verb::MapDirectory),
        "ForgetRange" => verb(said, Verb::ForgetRange),
        _ => {
            return Err(Failure::Usage(format!(
                "files alone do not say what becomes of {}; ask the broker, without --config-dir",
                args.request
            )));
        }
    })
}

fn create_grant(said: &mut Said<'_>, args: &ExplainArgs) -> Result<Outcome, Failure> {
    let (asked, raw) = settings(args)?;
    let limits = said.policy.limits_of_new(said.caller, &asked);
    let ids = (!args.no_ids).then(|| ids(said, args)).transpose()?;
    // A grant without ids counts as one.
    let of_user = said.place.filter(|place| place.who == Inside::User);
    let user_blocks = of_user.map(|_| ids.map_or(1, |ids| u64::from(ids.div_ceil(BLOCK))));
    let grant = NewGrant {
        ids,
        limits: &limits,
        asked: &asked,
        setgroups: !args.no_ids,
        persistent: args.persistent,
        pressure: args.pressure.len(),
        links: &[],
        depth: said.place.map_or(0, |place| place.depth),
        nesting: args.nesting.unwrap_or(0),
        user_blocks,
        tidies: false,
    };
    let outcome = if args.link || args.bridge.is_some() {
        with_link(said, args, |said, link| {
            said.judge(&Request::CreateGrant(NewGrant { links: &[link], ..grant }))
        })
    } else {
        said.judge(&Request::CreateGrant(grant))
    };
    let owner = said.caller.uid;
    Ok(outcome.and_then(|()| write(said, owner, &raw)))
}

/// How many ids are asked for, those for grants inside included.
fn ids(said: &Said<'_>, args: &ExplainArgs) -> Result<u32, Failure> {
    let asked = args.ids.unwrap_or(0);
    let Some(blocks) = args.nesting.filter(|blocks| *blocks > 0) else {
        let ids = said.policy.ids_of_new(said.caller, asked);
        return Ok(if ids == 0 { DEFAULT_IDS } else { ids });
    };
    let own = if asked == 0 { DEFAULT_IDS } else { asked };
    let all = blocks.checked_mul(BLOCK).and_then(|more| own.checked_add(more));
    all.ok_or_else(|| Failure::Usage(format!("{blocks} blocks of ids are more than there are")))
}

/// Does something with the link that is described, on the rule's first bridge unless another is named.
fn with_link(
    said: &mut Said<'_>,
    args: &ExplainArgs,
    act: impl FnOnce(&mut Said<'_>, NewLink<'_>) -> Outcome,
) -> Outcome {
    let ruling = said.policy.ruling(said.caller);
    let usual = ruling.network.bridges.first().map(|bridge| bridge.as_str()).unwrap_or_default();
    let ports = ports(&args.publish);
    let link = NewLink {
        nested: false,
        bridge: args.bridge.as_deref().unwrap_or(usual),
        address4: None,
        address6: None,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: &ports,
    };
    act(said, link)
}

fn ports(ports: &[Port]) -> Vec<HostPort> {
    ports.iter().map(|port| HostPort { address: port.address, port: port.host }).collect()
}

fn settings(args: &ExplainArgs) -> Result<Settings, Failure> {
    let (mut limits, mut raw) = Settings::default();
    for (key, value) in &args.limits {
        match Setting::parse(key, value).map_err(wrong)? {
            Setting::Limit(key, value) => limits.push((key, value)),
            Setting::Raw(key, value) => raw.push((key, value)),
        }
    }
    Ok((limits, raw))
}

fn write(said: &mut Said<'_>, owner: HostUid, raw: &[(RawKey, RawValue)]) -> Outcome {
    raw.iter()
        .try_for_each(|(key, value)| said.judge(&Request::WriteRaw { owner, key, value: value.as_str() }))
}

fn wrong(error: impl Display) -> Failure {
    Failure::Usage(error.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cgrant_policy::Source;
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, PolicyCommand};

    const RULES: &str = r#"
[[rule]]
name = "small"
uids = [1000]
access.controllers = ["pids"]
access.persistent = "ask"
raw.write = ["memory.oom.group"]
quota = { ids-per-grant = 1000, published-ports = 1 }
network.ports = [8080]
grant-ceiling = { "pids.max" = 10, "memory.max" = "1G" }
"#;

    fn said(words: &str) -> Map<String, Value> {
        let policy = Policy::parse(&[Source { name: "a.toml", text: RULES }]).unwrap();
        let line = ["cgrant", "policy", "test"].into_iter().chain(words.split(' '));
        let Command::Policy(PolicyCommand::Test(args)) = Cli::try_parse_from(line).unwrap().command else {
            panic!("{words}")
        };
        let place = args.inside.map(|who| Place { who, depth: args.depth.unwrap_or(1).into() });
        judge(&policy, &Caller::by_uid(HostUid(1000)), place, &args.request).unwrap()
    }

    #[test]
    fn requests_are_judged_as_the_broker_would() {
        for (words, error) in [
            ("create-grant", None),
            ("create-grant --ids 1000 --limit pids.max=9", None),
            ("create-grant --ids 1001", Some("QuotaExceeded")),
            ("create-grant --no-ids --limit pids.max=11", Some("QuotaExceeded")),
            ("create-grant --no-ids --limit memory.max=1M", Some("NotAuthorized")),
            ("create-grant --no-ids --limit memory.oom.group=1", Some("NotAuthorized")),
            ("create-grant --link --publish 8080:80", None),
            ("create-grant --link --publish 8081:80", Some("NotAuthorized")),
            ("create-grant --bridge lan", Some("NoSuchBridge")),
            ("set-limits --limit pids.max=10", None),
            ("set-limits --limit pids.max=max", Some("QuotaExceeded")),
            ("publish-ports --publish 8080:1 --publish 8080:2", Some("QuotaExceeded")),
            ("get-values --key memory.max --key memory.stat", None),
            ("get-values --key cgroup.procs", Some("NotAuthorized")),
            ("create-cgroup --path a/b", None),
            ("list-grants --all", Some("NotAuthorized")),
            ("kill", None),
            ("cgmanager", None),
            ("connect", None),
        ] {
            let fields = said(words);
            assert_eq!(fields["allowed"], error.is_none(), "{words}: {fields:?}");
            let found = fields.get("error").and_then(Value::as_str);
            assert_eq!(found, error.map(|error| format!("org.cgrant.Error.{error}")).as_deref(), "{words}");
            assert_eq!(fields["rule"], "a.toml:2 small", "{words}");
            assert_eq!(fields.contains_key("message"), error.is_some());
        }
        let lasting = said("create-grant --persistent");
        assert_eq!(lasting["action"], "org.cgrant.broker1.create-persistent-grant");
        assert_eq!(lasting["allowed"], true);
    }

    #[test]
    fn whoever_is_inside_has_quotas_of_its_own() {
        let rules = |more: &str| {
            let text = format!(
                "{RULES}\n[[rule]]\nname = \"nest\"\nuids = [1001]\naccess.persistent = \"ask\"\n{more}"
            );
            Policy::parse(&[Source { name: "a.toml", text: &text }]).unwrap()
        };
        let shut = rules("");
        let open = rules("quota = { nesting-user-blocks = 3, nesting-blocks = 2, nesting-depth = 2 }");
        let ask = |policy: &Policy, words: &str| {
            let line = format!("cgrant policy test --config-dir . create-grant {words}");
            let Command::Policy(PolicyCommand::Test(args)) =
                Cli::try_parse_from(line.split_ascii_whitespace()).unwrap().command
            else {
                panic!("{words}")
            };
            let place = args.inside.map(|who| Place { who, depth: args.depth.unwrap_or(1).into() });
            judge(policy, &Caller::by_uid(HostUid(1001)), place, &args.request)
        };
        for (policy, words, refused_by) in [
            (&shut, "--inside root --nesting 3", None),
            (&shut, "--inside user", Some("nesting-user-blocks")),
            (&open, "--nesting 2", None),
            (&open, "--nesting 3", Some("nesting-blocks")),
            (&open, "--inside user --nesting 2", None),
            (&open, "--inside user --ids 65537 --nesting 2", Some("nesting-user-blocks")),
            (&open, "--inside user --no-ids", None),
            (&open, "--inside user --depth 2", None),
            (&open, "--inside user --depth 3", Some("nesting-depth")),
            (&open, "--inside root --depth 3", Some("nesting-depth")),
        ] {
            let fields = ask(policy, words).unwrap();
            assert_eq!(fields["allowed"], refused_by.is_none(), "{words}: {fields:?}");
            assert_eq!(fields.get("resource").and_then(Value::as_str), refused_by, "{words}");
            assert_eq!(fields["rule"], "a.toml:12 nest", "{words}");
        }
        let rows = |words: &str| ask(&open, words).unwrap().remove("rows");
        let of_root = json!([["nesting-depth", 0, 2], ["nesting-blocks", 0, 2]]);
        assert_eq!((rows("--inside root"), rows("")), (Some(of_root), None));
        assert_eq!(rows("--inside user").unwrap()[2], json!(["nesting-user-blocks", 0, 3]));
        // Nobody is asked there.
        let lasting = ask(&open, "--persistent").unwrap();
        assert!(lasting["allowed"] == true && lasting.contains_key("action"));
        let lasting = ask(&open, "--persistent --inside root").unwrap();
        assert!(lasting["allowed"] == false && !lasting.contains_key("action"), "{lasting:?}");
        assert!(ask(&open, "--link --inside root").is_err());
    }
}
