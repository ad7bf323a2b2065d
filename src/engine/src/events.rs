//! What the kernel says of grants: the holder's death, populated and frozen, out of memory, pressure. No polling.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use cgrant_sys::pidfd::Pidfd;
use cgrant_wire::{EndReason, Event, GrantChange, GrantId, Lifetime, Refusal};
use nix::sys::{epoll::EpollFlags, inotify::AddWatchFlags};

use crate::{
    cgroup::OomWatch,
    engine::Engine,
    leaving,
    ops::{check, release},
    registry::Grant,
    watch::Target,
};

/// Begins to watch a grant, and looks how it is. `holder` is the process whose death ends it.
///
/// # Errors
/// If the kernel has no descriptors or watches left.
pub fn watch(engine: &Engine, grant: &Arc<Grant>, holder: Option<&Pidfd>) -> Result<(), Refusal> {
    watch_new(engine, grant, holder)?;
    let mut live = grant.live();
    live.populated = engine.tree.is_populated(&grant.path).unwrap_or(false);
    live.frozen = engine.tree.is_frozen(&grant.path).unwrap_or(false);
    live.oom_kills = engine.tree.oom_kills(&grant.path).unwrap_or(0);
    Ok(())
}

/// As [`watch`], for a grant that has been made just now: its payload is empty, and nothing has happened to it.
///
/// # Errors
/// As [`watch`].
pub fn watch_new(engine: &Engine, grant: &Arc<Grant>, holder: Option<&Pidfd>) -> Result<(), Refusal> {
    let (id, watches) = (grant.id, &engine.watches);
    let add = |token: std::io::Result<u64>| -> Result<(), Refusal> {
        grant.live().watches.push(token.map_err(check::internal)?);
        Ok(())
    };
    if let Some(holder) = holder {
        let watch = watch_holder(engine, grant, holder)?;
        grant.live().holder_watch = Some(watch);
    }
    let file = engine.tree.events_file(&grant.path)?;
    add(watches.file(file.as_fd(), AddWatchFlags::IN_MODIFY, Target::Populated(id)))?;
    let directory = engine.tree.directory(&grant.path)?;
    add(watches.file(directory.as_fd(), AddWatchFlags::IN_DELETE, Target::Vanished(id)))?;
    match engine.tree.oom_watch(&grant.path)? {
        OomWatch::File(file) => add(watches.file(file.as_fd(), AddWatchFlags::IN_MODIFY, Target::Oom(id)))?,
        OomWatch::Eventfd(fd) => {
            add(watches.own(fd, EpollFlags::EPOLLIN | EpollFlags::EPOLLET, Target::Oom(id)))?
        }
        OomWatch::None => (),
    }
    let resources = grant.live().record.pressure.clone();
    for resource in resources {
        let trigger: OwnedFd = engine.tree.pressure_trigger(&grant.path, &resource)?;
        add(watches.own(
            trigger,
            EpollFlags::EPOLLPRI | EpollFlags::EPOLLET,
            Target::Pressure(id, resource),
        ))?;
    }
    Ok(())
}

/// Watches for the end of a grant's holder; the watch is the caller's to keep ([`crate::registry::Live::holder_watch`]).
///
/// # Errors
/// As [`watch`].
pub fn watch_holder(engine: &Engine, grant: &Grant, holder: &Pidfd) -> Result<u64, Refusal> {
    let fd = holder.as_fd().try_clone_to_owned().map_err(check::internal)?;
    // Readable for ever once it has ended: told once.
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
    let target = |watch| Target::Holder(grant.id, watch);
    engine.watches.own_numbered(fd, flags, target).map_err(check::internal)
}

/// Watches a grant no more.
pub fn unwatch(engine: &Engine, grant: &Grant) {
    let tokens: Vec<u64> = {
        let mut live = grant.live();
        let (holder, deadline) = (live.holder_watch.take(), live.deadline.take());
        let leaving = live.leaving.take().map(|(watch, _)| watch);
        live.watches.drain(..).chain(holder).chain(deadline).chain(leaving).collect()
    };
    engine.watches.remove(&tokens);
}

/// Something happened to a grant. Runs on the pool, in the account's order.
pub fn happened(engine: &Engine, id: GrantId, target: &Target) {
    let Some(grant) = engine.registry().get(id).filter(|grant| grant.is_active()) else { return };
    match target {
        // Another may have become the holder since this one's death was noted.
        Target::Holder(_, watch) => {
            let holds = grant.live().holder_watch == Some(*watch);
            if holds {
                release::end(engine, &grant, leaving::reason(&grant, EndReason::HolderDied));
            }
        }
        Target::Populated(_) => refresh(engine, &grant),
        Target::Vanished(_) => vanished(engine, &grant),
        Target::Oom(_) => oom(engine, &grant),
        Target::Pressure(_, resource) => {
            engine.tell(Event::Pressure { grant: id, account: grant.account.0, resource: resource.clone() });
        }
        Target::Deadline(_, watch) => {
            let is_overdue = grant.live().is_overdue(*watch);
            if is_overdue && !engine.tree.is_populated(&grant.path).unwrap_or(true) {
                release::end(engine, &grant, EndReason::Empty);
            }
        }
        Target::Leaving(_, watch) => leaving::overdue(engine, &grant, *watch),
        Target::Control
        | Target::Listener(_)
        | Target::Accept
        | Target::Link(_)
        | Target::Files
        | Target::Wishes
        | Target::Wish(_)
        | Target::Question(..)
        | Target::Net
        | Target::Helper
        | Target::Vacant(_)
        | Target::Pace(..)
        | Target::Refusals(..)
        | Target::Usage(..)
        | Target::Accounts
        | Target::AccountsDue(_)
        | Target::Logins
        | Target::LoginsDue(_)
        | Target::Policy
        | Target::PolicyDue
        | Target::Over => (),
    }
}

/// Compares populated and frozen with what was told last, and tells what changed.
pub fn refresh(engine: &Engine, grant: &Arc<Grant>) {
    let (Ok(populated), Ok(frozen)) =
        (engine.tree.is_populated(&grant.path), engine.tree.is_frozen(&grant.path))
    else {
        return;
    };
    let (was_populated, was_frozen, lifetime) = {
        let mut live = grant.live();
        let before = (live.populated, live.frozen, live.record.lifetime);
        (live.populated, live.frozen) = (populated, frozen);
        before
    };
    let changed = |change| engine.tell(Event::Changed { grant: grant.id, account: grant.account.0, change });
    if populated != was_populated {
        changed(GrantChange::Populated(populated));
    }
    if frozen != was_frozen {
        changed(GrantChange::Frozen(frozen));
    }
    if was_populated && !populated {
        leaving::emptied(engine, grant);
        if lifetime == Lifetime::Populated && grant.is_active() {
            release::end(engine, grant, EndReason::Empty);
        }
    }
}

/// Somebody (root, by hand) removed the payload behind the broker's back.
fn vanished(engine: &Engine, grant: &Arc<Grant>) {
    if engine.tree.payload_id(&grant.path).ok().flatten() != Some(grant.live().record.cgroup_id) {
        release::end(engine, grant, EndReason::Lost);
    }
}

fn oom(engine: &Engine, grant: &Grant) {
    let before = grant.live().oom_kills;
    let Ok(kills) = engine.tree.oom_kills_past(&grant.path, before) else { return };
    grant.live().oom_kills = kills;
    if kills > before {
        tracing::info!(target: "grant", grant = %grant.id, name = %grant.name, account = grant.account.0, kills, "out of memory");
        engine.tell(Event::Oom { grant: grant.id, account: grant.account.0, kills });
    }
}
