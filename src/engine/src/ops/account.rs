//! The account's own node: what all grants of an account have together is bounded there, on cgroups that root owns.

use cgrant_policy::Setting;
use cgrant_wire::Refusal;

use crate::{cgroup::Nested, connection::Caller, engine::Engine};

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
    let ceilings =
        policy.account_ceilings(&subject).into_iter().map(|(key, value)| Setting::Limit(key, value));
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
