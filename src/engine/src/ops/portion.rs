//! Ordinary users of containers have so many of the account's cgroups, and no more ([`crate::portion`]).
//!
//! An attacker wants nobody else in the account to make a cgroup, in the container or outside: by grants, by `CreateCgroup`, or by hand in a
//! cgroup that was handed to it. The kernel keeps each grant's portion, on a cgroup that is root's; portions of all such users together are half
//! of the account's quota at most. That a portion is used up is said here before the kernel says it, for the sake of the words.

use std::sync::Arc;

use cgrant_policy::{GrantPath, HostUid};
use cgrant_wire::{Refusal, RefusalCode};

use super::account;
use crate::{
    cgroup::Below,
    connection::Caller,
    engine::Engine,
    portion::{PARTS, Portions, UsedUp},
    registry::Grant,
};

/// The portions of an account's grants.
fn portions(engine: &Engine, account: HostUid, quota: u64) -> Portions {
    let mut grants: Vec<Arc<Grant>> = engine.registry().list(Some(account));
    grants.retain(|grant| !grant.user().is_root());
    grants.sort_by_key(|grant| (grant.path.depth(), grant.live().record.created));
    let given = |grant: &Arc<Grant>| grant.live().record.nested.as_ref().and_then(|nested| nested.cgroups);
    Portions::new(quota, grants.iter().map(|grant| (grant.path.clone(), given(grant))))
}

/// The portion of a grant that the caller is about to make; `None` unless it is an ordinary user in there.
///
/// An account's operations come one after the other, so nobody takes some meanwhile.
///
/// # Errors
/// [`RefusalCode::QuotaExceeded`]; also for who makes one in what an ordinary user has, and there is no room for it.
pub fn of_new(engine: &Engine, caller: &Caller) -> Result<Option<u64>, Refusal> {
    let place = caller.place();
    must_have_room(engine, &place, PARTS)?;
    if caller.user().is_root() {
        return Ok(None);
    }
    let quota = engine.policy().quotas(&account::subject(engine, caller)).cgroups;
    let portion = portions(engine, caller.account(), quota).of_new(quota, &place, caller.user());
    portion.map(Some).map_err(|used_up| {
        refused(used_up, "ordinary users of containers have")
            .hint("release grants that are not needed, or have the container's root or another user do so")
    })
}

/// Refuses so many cgroups more in a grant that an ordinary user has, or that is in such a one, beyond its portion; also beyond that of
/// another such user's which it is in.
///
/// # Errors
/// [`RefusalCode::QuotaExceeded`]; what the kernel refuses.
pub fn must_have_room(engine: &Engine, place: &GrantPath, more: u64) -> Result<(), Refusal> {
    place.ordinary().try_for_each(|(around, _)| {
        let steps = place.steps.iter().take(around.steps.len().saturating_add(1)).cloned().collect();
        let Below { used, most } = engine.tree.below_grant(&GrantPath { account: place.account, steps })?;
        if used.saturating_add(more) <= most {
            return Ok(());
        }
        let used_up = UsedUp { quota: most, usage: used };
        Err(refused(used_up, "the grant and those in it have")
            .hint("remove cgroups in it that are not needed"))
    })
}

fn refused(UsedUp { quota, usage }: UsedUp, who: &str) -> Refusal {
    let message = format!("{who} {usage} of the {quota} cgroups that there are for ordinary users there");
    Refusal::new(RefusalCode::QuotaExceeded, message)
        .rule("built-in nesting")
        .figures(quota, usage)
        .resource("cgroups")
}

/// Bounds an account's grants again, by a quota that may be another one than when they were made.
pub fn bound_again(engine: &Engine, account: HostUid, quota: u64) {
    for (path, portion) in portions(engine, account, quota).iter() {
        if let Err(error) = engine.tree.bound_grant(path, *portion) {
            tracing::error!(%path, %error, "an ordinary user's cgroups are bounded as before");
        }
    }
}
