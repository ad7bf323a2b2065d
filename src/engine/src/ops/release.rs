//! The end of a grant, whoever wants it: its holder's death, a request, reconcile.

use std::sync::Arc;

use cgrant_policy::Verb;
use cgrant_wire::{Answer, EndReason, GrantId, Refusal, RefusalCode};

use super::{inside, query::usable};
use crate::{
    cgroup::{CgroupError, Patience},
    connection::Caller,
    engine::{Engine, Outcome, unwritable},
    events, leaving,
    record::Phase,
    registry::Grant,
};

/// Ends a grant at its account's wish.
///
/// An attacker inside the grant wants to be rid of its limits: refused there.
///
/// # Errors
/// [`RefusalCode::Busy`] if processes are in it and `kill` is not set, or other grants and `force` is not set.
pub fn release(engine: &Engine, caller: &Arc<Caller>, id: GrantId, kill: bool, force: bool) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Release)?;
    inside::must_be_outside(engine, caller, "release a grant")?;
    let inner = engine.registry().inside(&grant.path).len();
    if !force && inner > 0 {
        return Err(Refusal::new(
            RefusalCode::Busy,
            format!("{inner} grants were made inside grant {} and are there still", grant.name),
        )
        .hint("stop what runs inside first, or release with force, which ends them too"));
    }
    // A release that failed half way may have removed the cgroup already: nothing runs in it then.
    let populated = match engine.tree.is_populated(&grant.path) {
        Err(CgroupError::NoSuchGrant(_)) => false,
        other => other?,
    };
    if !kill && populated {
        return Err(Refusal::new(RefusalCode::Busy, format!("grant {} still has processes", grant.name))
            .hint("end them first, or release with kill"));
    }
    remove(engine, &grant, EndReason::Released, caller.patience())?;
    Ok((Answer::Done, Vec::new()))
}

/// Ends a grant without anybody asking. What can't be done now is done at the next start.
///
/// An ordinary user in a container wants the account's operations to wait for processes of its own that don't end: it is not waited for them
/// here, but looked again when they have ended.
pub fn end(engine: &Engine, grant: &Arc<Grant>, reason: EndReason) {
    // It may have ended with the one around it since somebody wanted that.
    if !grant.is_active() || engine.registry().get(grant.id).is_none() {
        return;
    }
    let whose = inside::user_of(engine, &grant.path);
    let patience = if whose.is_some() { Patience::Brief } else { Patience::Full };
    if let Err(refusal) = remove(engine, grant, reason, patience) {
        if whose.is_some()
            && refusal.code == RefusalCode::TimedOut
            && leaving::end_later(engine, grant, reason)
        {
            return;
        }
        tracing::error!(%refusal, grant = %grant.id, "a grant can't be ended; it is tried again at the next start");
    }
}

/// The grants inside of it first, the innermost before the others: each ends as it would alone. Links first; then kills, removes, gives back, forgets: in this order, recorded before it begins.
///
/// # Errors
/// The refusal of the step that failed; the record then says that the grant is being released, and another release goes on.
pub fn remove(
    engine: &Engine,
    grant: &Arc<Grant>,
    reason: EndReason,
    patience: Patience,
) -> Result<(), Refusal> {
    // Nobody inside makes another meanwhile: an account's operations come one after the other.
    let inner =
        if grant.live().record.nesting > 0 { engine.registry().inside(&grant.path) } else { Vec::new() };
    inner.iter().rev().try_for_each(|inner| remove_one(engine, inner, EndReason::ParentEnded, patience))?;
    remove_one(engine, grant, reason, patience)
}

fn remove_one(
    engine: &Engine,
    grant: &Arc<Grant>,
    reason: EndReason,
    patience: Patience,
) -> Result<(), Refusal> {
    let mut record = grant.live().record.clone();
    record.phase = Phase::Releasing;
    // A disk that can't be written must not keep anybody from giving things back: the record as it is leads to the same end
    // at the next start.
    if let Err(error) = engine.journal.release(&record) {
        tracing::warn!(%error, grant = %grant.id, "released without a record of the intent");
    }
    engine.fault.step("release: intent recorded")?;
    super::link::remove_all(engine, grant, &mut record)?;
    engine.fault.step("release: links removed")?;
    events::unwatch(engine, grant);
    engine.tree.remove_grant(&grant.path, true, patience)?;
    engine.linger(grant.account);
    engine.fault.step("release: cgroups removed")?;
    engine.ids.release(grant.id)?;
    engine.fault.step("release: ids given back")?;
    engine.journal.remove(&record.id).map_err(|error| unwritable(&error))?;
    engine.registry().remove(grant);
    engine.fault.step("release: forgotten")?;
    engine.tell_ended(grant, reason);
    Ok(())
}
