//! The account's own node: what all grants of an account have together is bounded there, on cgroups that root owns.

use std::sync::Arc;

use cgrant_policy::{Caller as Subject, HostUid, LimitKey, LimitValue, Policy, Setting};
use cgrant_wire::Refusal;

use super::{check::Settings, portion};
use crate::{
    cgroup::{Nested, Tree},
    connection::Caller,
    engine::Engine,
};

/// Makes the account's node ready for another grant: its ceilings, and how many cgroups may be below it and how deep.
///
/// The kernel keeps the count (`cgroup.max.descendants`, `cgroup.max.depth`), so what a holder makes by itself counts too.
///
/// # Errors
/// What the kernel refuses.
pub fn prepare(engine: &Engine, caller: &Caller) -> Result<(), Refusal> {
    let subject = subject(engine, caller);
    prepare_as(engine, caller.account(), &subject)?;
    if caller.nested.is_none() {
        portion::bound_again(engine, caller.account(), engine.policy().quotas(&subject).cgroups);
    }
    Ok(())
}

/// The same for a grant that nobody asks for just now.
///
/// # Errors
/// What the kernel refuses.
pub fn prepare_as(engine: &Engine, account: HostUid, subject: &Subject) -> Result<(), Refusal> {
    govern(engine, account, subject, &ceilings(engine, subject)?)
}

/// As whom policy judges what an account has together: as it was when it made the newest of those grants that it made from the host, the one
/// that is being made included. Not as one of its containers was made: who is inside neither widens nor narrows what the others have.
pub fn subject(engine: &Engine, caller: &Caller) -> Subject {
    let outside = caller.nested.as_ref().and_then(|_| newest(engine, caller.account()));
    outside.unwrap_or_else(|| caller.subject())
}

fn newest(engine: &Engine, account: HostUid) -> Option<Subject> {
    let grants = engine.registry().list(Some(account));
    let own = grants.iter().filter(|grant| !grant.path.is_nested());
    own.max_by_key(|grant| grant.live().record.created).map(|grant| grant.live().record.subject())
}

fn govern(
    engine: &Engine,
    account: HostUid,
    subject: &Subject,
    ceilings: &[(LimitKey, LimitValue)],
) -> Result<(), Refusal> {
    let policy = engine.policy();
    let quotas = policy.quotas(subject);
    let settings: Vec<Setting> =
        ceilings.iter().map(|(key, value)| Setting::Limit(*key, value.clone())).collect();
    let grants = engine.registry().counts(account).nested;
    let nested = Nested { grants, depth: quotas.nesting_depth };
    Ok(engine.tree.govern_account(account, quotas.cgroups, quotas.cgroup_depth, nested, &settings)?)
}

/// Bounds an account that has grants by the policy that is in force now, which judges it as it was when it made the newest of those
/// that it made from the host. What is no ceiling any more is lifted.
///
/// An attacker wants to keep what an older policy gave: it need not ask for anything to be bounded by the new one. What the kernel
/// refuses (memory that can't be taken back on v1, for instance) leaves all as it was, and the log says so.
pub fn govern_again(engine: &Engine, account: HostUid) {
    let Some(subject) = newest(engine, account) else { return };
    let governed = ceilings(engine, &subject).and_then(|mut ceilings| {
        let kept: Vec<LimitKey> = ceilings.iter().map(|(key, _)| *key).collect();
        ceilings.extend(engine.tree.other_limits_lifted(account, &kept)?);
        govern(engine, account, &subject, &ceilings)
    });
    if let Err(refusal) = governed {
        tracing::error!(account = account.0, %refusal, "what the account has together is bounded as before");
    }
    portion::bound_again(engine, account, engine.policy().quotas(&subject).cgroups);
}

/// Bounds all accounts that have grants by another policy, each among its other operations.
pub fn govern_all_again(engine: &Arc<Engine>) {
    let accounts: Vec<HostUid> = engine.registry().accounts().collect();
    for account in accounts {
        let again = Arc::clone(engine);
        let job = Box::new(move || govern_again(&again, account));
        if let Err(error) = engine.pool.submit_event(account.0, job) {
            tracing::error!(%error, account = account.0, "what the account has together is bounded as before");
        }
    }
}

/// The ceilings of an account.
///
/// A ceiling that this host can't keep is not passed over: somebody relies on it. No ceiling needs nothing of the host.
///
/// # Errors
/// [`cgrant_wire::RefusalCode::Unsupported`], with the rule that says it.
pub fn ceilings(engine: &Engine, subject: &Subject) -> Result<Vec<(LimitKey, LimitValue)>, Refusal> {
    let policy = engine.policy();
    let mut ceilings = policy.account_ceilings(subject);
    ceilings.retain(|(key, value)| !value.is_unlimited(*key) || engine.tree.can_limit(*key).is_ok());
    let rule = || policy.account_ruling(subject).label.clone();
    ceilings.iter().try_for_each(|(key, _)| must_be_kept(&engine.tree, *key, "account-ceiling", &rule))?;
    Ok(ceilings)
}

/// Has this host what the limits of a new grant are carried out with, those that policy bounds it and its account with included?
/// Asked before anything is made.
///
/// # Errors
/// [`cgrant_wire::RefusalCode::Unsupported`], of policy's own with the rule that says it.
pub fn must_be_had(engine: &Engine, subject: &Subject, settings: &Settings) -> Result<(), Refusal> {
    settings.asked().iter().try_for_each(|(key, _)| engine.tree.can_limit(*key))?;
    let rule = || engine.policy().ruling(subject).label.clone();
    let mut of_policy = settings.limits.iter().skip(settings.asked().len());
    of_policy.try_for_each(|(key, _)| must_be_kept(&engine.tree, *key, "grant-ceiling", &rule))?;
    ceilings(engine, subject).map(drop)
}

fn must_be_kept(tree: &Tree, key: LimitKey, table: &str, rule: &dyn Fn() -> String) -> Result<(), Refusal> {
    tree.can_limit(key).map_err(|error| {
        Refusal::from(error).rule(rule()).resource(key.to_string()).hint(format!(
            "the administrator's policy bounds you with {key} ({table} of that rule), which this host can't do: it has to be taken out of the \
             rule, or the host be started so that it can"
        ))
    })
}

/// Tells the log what policy says that this host can't keep.
pub fn tell_unkept(tree: &Tree, policy: &Policy) {
    let lacks = |key| tree.can_limit(key).err().map(|error| error.to_string());
    for ceiling in policy.unkept(lacks) {
        tracing::warn!(ceiling, "a ceiling can't be kept");
    }
}
