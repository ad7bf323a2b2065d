//! Operations that only read.

use std::{os::fd::OwnedFd, sync::Arc};

use cgrant_policy::{
    Caller as Subject, CgroupPath, GrantName, GrantPath, HostUid, Key, NsUid, Quotas, RawKey, Request,
    Ruling, SettingError, Step, Verb, judge::usage_rows,
};
use cgrant_wire::{Answer, BrokerInfo, FdIndex, GrantId, Refusal, RefusalCode, RuleInfo, Usage, UsageRow};

use super::{check, create, nested};
use crate::{
    connection::Caller,
    engine::{Engine, Outcome, no_such_grant},
    registry::Grant,
};

/// Most bytes of rules in an answer, which has to fit into a message.
const MOST_OF_RULES: usize = 512 * 1024;
/// Most keys in one GetValues.
const MAX_KEYS: usize = 128;

fn plain(answer: Answer) -> Outcome {
    Ok((answer, Vec::new()))
}

/// A grant that the caller may use for `verb`.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`], or the decision's refusal.
pub fn usable(engine: &Engine, caller: &Caller, id: GrantId, verb: Verb) -> Result<Arc<Grant>, Refusal> {
    let grant = active(engine, id)?;
    may(engine, caller, &grant, &Request::UseGrant { owner: grant.account, verb })?;
    Ok(grant)
}

/// A grant that is there. Whether the caller may know of it is [`may`]'s to say, before anything else is told.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`].
pub fn active(engine: &Engine, id: GrantId) -> Result<Arc<Grant>, Refusal> {
    let there = engine.registry().get(id).filter(|grant| grant.is_active());
    there.ok_or_else(|| no_such_grant(id))
}

/// May the caller do this with the grant?
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`], or the decision's refusal.
pub fn may(engine: &Engine, caller: &Caller, grant: &Grant, request: &Request<'_>) -> Result<(), Refusal> {
    // What lies outside of a caller's own grant is nobody's to allow it, not polkit's nor that of a rule for its account.
    if caller.nested.is_some() && !caller.may_see(&grant.path) {
        return Err(no_such_grant(grant.id));
    }
    engine.authorize(caller, grant, request).map_err(|refusal| match refusal.code {
        // In the very words as if there were none.
        RefusalCode::NoSuchGrant => no_such_grant(grant.id),
        _ => refusal,
    })
}

/// What this broker is. Anybody may know.
pub fn broker_info(engine: &Engine, caller: &Caller) -> Outcome {
    plain(Answer::BrokerInfo(BrokerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: engine.instance.clone(),
        hierarchy: engine.tree.kind().to_string(),
        systemd: engine.tree.is_in_scope(),
        controllers: engine.tree.controllers(),
        features: features(engine),
        account: caller.uid.0,
    }))
}

/// What the host's kernel has, beside what the broker can do without it.
pub fn kernel_features(engine: &Engine) -> Vec<(String, bool, String)> {
    let mut features = engine.tree.features();
    features.push(engine.devices.feature());
    features
}

/// What the host has, beside what the broker can do without it.
fn features(engine: &Engine) -> Vec<(String, bool, String)> {
    let polkit = ("polkit", engine.questions.is_polkit_there(), "where policy says \"ask\" the answer is no");
    let mut features = kernel_features(engine);
    features.push((polkit.0.to_owned(), polkit.1, polkit.2.to_owned()));
    features
}

/// Usage beside quota.
///
/// # Errors
/// If the caller asks for somebody else's and may not.
pub fn usage(engine: &Engine, caller: &Caller, account: Option<u32>) -> Outcome {
    // From inside there is no other than the caller's own.
    let asked = account.filter(|_| caller.nested.is_none());
    let account = asked.map_or_else(|| caller.account(), HostUid);
    engine.authorize(caller, account.to_string().as_str(), &Request::UsageOf { account })?;
    let policy = engine.policy();
    // Groups of another account are known only from its connections, so its quotas are those by uid.
    let subject = if account == caller.account() { caller.subject() } else { Subject::by_uid(account) };
    let ruling = policy.ruling(&subject);
    let rows = rows(engine, caller, &ruling.quotas, account)?;
    let disk_measured = if caller.user().is_root() { engine.disk.measured() } else { 0 };
    plain(Answer::Usage(Usage { account: account.0, rule: ruling.label.clone(), rows, disk_measured }))
}

/// What the account has beside its quotas; an ordinary user in a container has a figure of its own, and is told no other.
///
/// # Errors
/// If the record of ranges can't be read.
pub fn rows(
    engine: &Engine,
    caller: &Caller,
    quotas: &Quotas,
    account: HostUid,
) -> Result<Vec<UsageRow>, Refusal> {
    if caller.user().is_root() {
        return Ok(usage_rows(quotas, &engine.usage(account)).into_iter().map(row).collect());
    }
    let used = create::user_blocks(engine, caller, None)?.unwrap_or(0);
    Ok(vec![row(("nesting-user-blocks", used, quotas.nesting_user_blocks))])
}

/// A row of usage, for the answer.
pub fn row((resource, used, quota): (&str, u64, u64)) -> UsageRow {
    UsageRow { resource: resource.to_owned(), used, quota }
}

/// The caller's account, or all that have something for root.
///
/// # Errors
/// If the caller asks for all and may not.
pub fn list_accounts(engine: &Engine, caller: &Caller, all: bool) -> Outcome {
    if !all {
        return plain(Answer::Accounts(vec![caller.account().0]));
    }
    engine.authorize(caller, "", &Request::ListAccounts)?;
    plain(Answer::Accounts(engine.accounts().into_iter().map(|account| account.0).collect()))
}

/// The rules that are for the caller, or all for root.
///
/// An attacker wants to learn what others may have, and who is in which group or runs which application. Who is not root sees the
/// rules that decide about itself, whose names and places refusals tell it anyway, and not for whom else they are.
///
/// # Errors
/// If the caller asks for all and may not; [`RefusalCode::Unsupported`] if there is more than a message can hold.
pub fn list_rules(engine: &Engine, caller: &Caller, all: bool) -> Outcome {
    let policy = engine.policy();
    let info = |ruling: &Ruling, whom| RuleInfo {
        label: ruling.label.clone(),
        whom,
        settings: policy.differences(ruling),
    };
    let rules: Vec<RuleInfo> = if all {
        engine.authorize(caller, "", &Request::ListRules)?;
        policy.rules().map(|(ruling, whom)| info(ruling, whom)).collect()
    } else {
        policy.rules_for(&caller.subject()).iter().map(|ruling| info(ruling, String::new())).collect()
    };
    let row = |(key, value): &(String, String)| key.len() + value.len() + 16;
    let size = |rule: &RuleInfo| {
        rule.label.len() + rule.whom.len() + 32 + rule.settings.iter().map(row).sum::<usize>()
    };
    if rules.iter().map(size).sum::<usize>() > MOST_OF_RULES {
        return Err(Refusal::new(
            RefusalCode::Unsupported,
            "the policy has more rules than fit into an answer",
        )
        .hint("`cgrant policy show --config-dir DIR` reads the files themselves"));
    }
    plain(Answer::Rules(rules))
}

/// The caller's grants, or everybody's for root, the host's or a container's; with `nested` those inside of them too.
///
/// # Errors
/// If the caller asks for everybody's and may not.
pub fn list_grants(engine: &Engine, caller: &Caller, all: bool, nested: bool) -> Outcome {
    let everywhere = all && caller.nested.is_none();
    if everywhere {
        engine.authorize(caller, "", &Request::ListAll)?;
    }
    let grants = engine.registry().list((!everywhere).then_some(caller.account()));
    let place = caller.place();
    let asked = |grant: &&Arc<Grant>| {
        let level = if everywhere { !grant.path.is_nested() } else { grant.path.around() == place };
        // That it may have everybody's is decided above; from inside they are those of all users in there, which root alone sees.
        let may_be = everywhere || if all { caller.may_see(&grant.path) } else { caller.owns(&grant.path) };
        grant.is_active() && may_be && (nested || level)
    };
    plain(Answer::Grants(grants.iter().filter(asked).map(|grant| grant.info()).collect()))
}

/// A grant by name.
///
/// An attacker wants to learn from polkit's question, or from its absence, which grants another account has: it is put before
/// anybody looks.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`].
pub fn find_grant(engine: &Engine, caller: &Caller, name: &str, account: Option<u32>) -> Outcome {
    let missing = || {
        Refusal::new(RefusalCode::NoSuchGrant, format!("you have no grant named {name:?}"))
            .hint("`cgrant grant list` shows your grants")
    };
    // From inside it is a user in there.
    let asked = account.filter(|_| caller.nested.is_none()).map(HostUid);
    let user = account.filter(|_| caller.nested.is_some()).map_or_else(|| caller.user(), NsUid);
    let parsed = GrantName::new(name).map_err(|error| check::bad_name(&error))?;
    if let Some(account) = asked.filter(|account| *account != caller.uid) {
        let request = Request::UseGrant { owner: account, verb: Verb::Read };
        engine.authorize(caller, name, &request).map_err(|_| missing())?;
    }
    let place = asked.map_or_else(|| caller.place(), GrantPath::of_account);
    let place = place.inner(Step { user, name: parsed });
    let is_there =
        |grant: &Arc<Grant>| grant.is_active() && (caller.nested.is_none() || caller.may_see(&grant.path));
    let there = engine.registry().at(&place).filter(is_there);
    let grant = there.ok_or_else(missing)?;
    plain(Answer::Grant(grant.info()))
}

/// All about a grant.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`].
pub fn describe(engine: &Engine, caller: &Caller, id: GrantId) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Read)?;
    plain(Answer::Grant(grant.info()))
}

/// Values of limits and raw keys, as the kernel has them.
///
/// # Errors
/// Unknown keys, raw keys that policy does not list, what the kernel refuses.
pub fn get_values(engine: &Engine, caller: &Caller, id: GrantId, keys: &[String]) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Read)?;
    let owner = grant.account;
    let may_read = |key: &RawKey| may(engine, caller, &grant, &Request::ReadRaw { owner, key });
    plain(Answer::Values(values(engine, &grant, keys, may_read)?))
}

/// Values of a grant, of raw keys as far as they `may_read` them.
///
/// # Errors
/// As [`get_values`].
pub fn values(
    engine: &Engine,
    grant: &Grant,
    keys: &[String],
    mut may_read: impl FnMut(&RawKey) -> Result<(), Refusal>,
) -> Result<Vec<(String, String)>, Refusal> {
    if keys.len() > MAX_KEYS {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("more than {MAX_KEYS} keys in one request"),
        ));
    }
    let mut parsed = Vec::with_capacity(keys.len());
    for key in keys {
        let key: Key = key
            .parse()
            .map_err(|error: SettingError| Refusal::new(RefusalCode::InvalidArgument, error.to_string()))?;
        if let Key::Raw(raw) = &key {
            may_read(raw)?;
        }
        parsed.push(key);
    }
    Ok(engine.tree.get_values(&grant.path, &parsed)?)
}

/// What a grant uses.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`], or what the kernel refuses.
pub fn stat(engine: &Engine, caller: &Caller, id: GrantId) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Read)?;
    plain(Answer::Stat(engine.tree.stat(&grant.path)?))
}

/// The pids in a grant.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`], or what the kernel refuses.
pub fn list_processes(engine: &Engine, caller: &Caller, id: GrantId) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Read)?;
    plain(Answer::Processes(engine.tree.processes(&grant.path)?))
}

/// The cgroups below a payload.
///
/// # Errors
/// [`RefusalCode::NoSuchGrant`], or what the kernel refuses.
pub fn list_cgroups(engine: &Engine, caller: &Caller, id: GrantId) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Read)?;
    plain(Answer::Cgroups(engine.tree.list_cgroups(&grant.path)?))
}

/// A descriptor of a payload's directory.
///
/// An attacker wants a descriptor with the broker's rights. `O_PATH` carries none: whatever is opened through it is
/// opened with the opener's own.
///
/// # Errors
/// [`RefusalCode::NoSuchCgroup`], [`RefusalCode::InvalidName`].
pub fn open_cgroup(engine: &Engine, caller: &Caller, id: GrantId, path: &str) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Cgroup)?;
    let fd: OwnedFd = if path.is_empty() {
        engine.tree.open_payload(&grant.path)?
    } else {
        engine
            .tree
            .open_cgroup(&grant.path, &CgroupPath::new(path).map_err(|error| check::bad_name(&error))?)?
    };
    Ok((Answer::Cgroup(FdIndex(0)), vec![fd]))
}

/// The ranges that belong to the caller's account.
///
/// # Errors
/// If the record of ranges can't be read.
pub fn list_ranges(engine: &Engine, caller: &Caller) -> Outcome {
    let ranges = match &caller.nested {
        Some(inside) => {
            engine.ids.list_inner(inside.range, inside.user, |ids| nested::user_of(engine, inside, ids))?
        }
        None => engine.ids.list(caller.uid)?,
    };
    plain(Answer::Ranges(ranges))
}

/// The ids of accounts whose users are gone, or of one of these accounts.
///
/// An attacker wants to know who was here and which ids nobody watches any more, or to have root remove files of somebody who is still
/// there. It is root's to know. What is said to be retired was so in the record, on the disk, before; no order of requests and no
/// other user of the same uid gets such ids again.
///
/// # Errors
/// If the caller may not; [`RefusalCode::Unsupported`] if there are more than a message can hold.
pub fn list_departed(engine: &Engine, caller: &Caller, account: Option<u32>, to_remove: bool) -> Outcome {
    engine.authorize(caller, "", &Request::ListAccounts)?;
    let departed = engine.ids.departed(account.map(HostUid), to_remove)?;
    if departed.iter().map(|info| info.user.len() + 32).sum::<usize>() > MOST_OF_RULES {
        return Err(Refusal::new(RefusalCode::Unsupported, "more users have left than fit into an answer")
            .hint("ask about one account"));
    }
    plain(Answer::Departed(departed))
}
