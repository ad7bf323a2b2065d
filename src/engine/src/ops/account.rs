//! The account's own node: what all grants of an account have together is bounded there, on cgroups that root owns.

use cgrant_policy::{Caller as Subject, LimitKey, LimitValue, Policy, Setting};
use cgrant_wire::Refusal;

use super::check::Settings;
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
    let policy = engine.policy();
    let subject = caller.subject();
    let quotas = policy.quotas(&subject);
    let ceilings = ceilings(engine, &subject)?.into_iter().map(|(key, value)| Setting::Limit(key, value));
    let grants = engine.registry().counts(caller.account()).nested;
    engine.tree.govern_account(
        caller.account(),
        quotas.cgroups,
        quotas.cgroup_depth,
        Nested { grants, depth: quotas.nesting_depth },
        &ceilings.collect::<Vec<_>>(),
    )?;
    Ok(())
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
