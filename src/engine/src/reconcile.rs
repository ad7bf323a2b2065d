//! At start: record and kernel are compared in both directions, and every difference is finished or undone.
//!
//! | record says | kernel has | what is done |
//! |---|---|---|
//! | creating | nothing running in it | undone: cgroups removed, range given back |
//! | creating | a process in it (attaching is the last effect but the map) | undone too: the caller had no answer; its processes are put aside, never killed |
//! | active | its payload | taken over; a dead holder ends it |
//! | active, of a user who was deleted or is another one now | nothing (a reboot) | ended, if policy says so, or its ids were retired |
//! | active, persistent | nothing (a reboot) | made again, without links: their namespaces are gone |
//! | active | nothing, or another cgroup | ended: lost |
//! | any, inside a grant that is not there (any more) | anything | ended: lost |
//! | releasing | anything | the release goes on |
//! | link active | its device | the network helper is told to expect it, and mends or tells |
//! | link being made or removed | anything | the network helper is not told of it, and removes it |
//! | nothing | cgroups of this instance | removed if empty, else left and told |
//! | nothing | a range in use by this instance | given back |
//!
//! A record that can't be read may be that of anything found: the last two lines then wait for a start without one.

use std::{collections::HashSet, sync::Arc};

use cgrant_policy::{GrantName, GrantPath, HostUid, NsUid, Step};
use cgrant_sys::pidfd::Pidfd;
use cgrant_wire::{EndReason, GrantId, Lifetime, Range, Refusal, RefusalCode};

use crate::{
    cgroup::Patience,
    connection::Ended,
    devices::DeviceList,
    engine::Engine,
    events, leaving,
    ops::{account, check, create::delegation, device, link, manage, release},
    record::{GrantRecord, HolderRecord, Phase},
    registry::Grant,
};

/// Brings record and kernel together. Runs before anybody is served.
///
/// # Errors
/// If the journal or the tree can't be read at all.
pub fn reconcile(engine: &Engine) -> Result<(), Refusal> {
    let (records, damaged) = engine.journal.load().map_err(|error| crate::engine::unwritable(&error))?;
    let mut complete = damaged.is_empty();
    for error in damaged {
        tracing::error!(%error, "left alone, as is what may belong to it; remove the file by hand once its cgroup is gone");
    }
    let mut known: HashSet<GrantPath> = HashSet::new();
    let mut unsettled: HashSet<GrantId> = HashSet::new();
    let mut records = records;
    // Each after those around it.
    records.sort_by_key(|record| record.nested.as_ref().map_or(0, |nested| nested.around.len()));
    for record in records {
        let Some((id, path)) = identity(&record) else {
            tracing::error!(record = record.id, "the journal has a record of no valid grant; left alone");
            complete = false;
            continue;
        };
        known.insert(path);
        if let Err(refusal) = settle(engine, id, &record) {
            tracing::error!(grant = %id, %refusal, "a grant could not be brought in order; tried again at the next start");
            unsettled.insert(id);
        }
    }
    let accounts: Vec<HostUid> = engine.registry().accounts().collect();
    // Policy may be another one than the broker before had.
    accounts.into_iter().for_each(|account| account::govern_again(engine, account));
    if !complete {
        return Ok(());
    }
    remove_unknown(engine, &known)?;
    give_back_unknown(engine, &unsettled)
}

fn identity(record: &GrantRecord) -> Option<(GrantId, GrantPath)> {
    let id = record.id.parse().ok()?;
    path_of(record).map(|path| (id, path))
}

fn path_of(record: &GrantRecord) -> Option<GrantPath> {
    let around = record.nested.iter().flat_map(|nested| &nested.around);
    let steps = around.map(|step| Step::new(step).ok()).collect::<Option<_>>()?;
    let user = record.nested.as_ref().map_or(NsUid::ROOT, |nested| NsUid(nested.user));
    let own = Step { user, name: GrantName::new(&record.name).ok()? };
    Some(GrantPath { account: HostUid(record.account), steps }.inner(own))
}

/// Is the grant that this one was made in there? Of one that was made from the host nothing is asked.
fn parent_is_there(engine: &Engine, path: &GrantPath, record: &GrantRecord) -> bool {
    record.nested.as_ref().is_none_or(|nested| {
        let parent = engine.registry().at(&path.around());
        parent.is_some_and(|parent| parent.is_active() && parent.id.to_string() == nested.parent)
    })
}

fn settle(engine: &Engine, id: GrantId, record: &GrantRecord) -> Result<(), Refusal> {
    let Ok(name) = GrantName::new(&record.name) else { return Ok(()) };
    let Some(path) = path_of(record) else { return Ok(()) };
    let rebooted = record.boot != engine.boot_id;
    let orphan = !parent_is_there(engine, &path, record);
    let grant = Arc::new(Grant::new(id, path, name, record.clone()));
    match record.phase {
        Phase::Creating | Phase::Active if orphan => go_on_releasing(engine, &grant, EndReason::Lost),
        Phase::Creating => undo(engine, &grant),
        Phase::Releasing => go_on_releasing(engine, &grant, EndReason::Released),
        Phase::Active if rebooted => come_back(engine, &grant, record),
        Phase::Active => match engine.tree.payload_id(&grant.path)? {
            Some(there) if there == record.cgroup_id => take_over(engine, &grant),
            Some(_) => go_on_releasing(engine, &grant, EndReason::Lost),
            None => come_back(engine, &grant, record),
        },
    }
}

/// A grant whose cgroup is gone, with the boot that it was of or without: one that is to stay is made again.
fn come_back(engine: &Engine, grant: &Arc<Grant>, record: &GrantRecord) -> Result<(), Refusal> {
    // Its range is not given to anybody any more, also where policy lets what a user had stay; and it is to have no other.
    if leaving::is_departed(engine, record) || has_lost_ids(engine, record)? {
        return go_on_releasing(engine, grant, EndReason::UserGone);
    }
    if record.lifetime == Lifetime::Persistent && !grant.path.is_nested() {
        return make_again(engine, grant);
    }
    go_on_releasing(engine, grant, EndReason::Lost)
}

/// Were the ids of a grant retired?
fn has_lost_ids(engine: &Engine, record: &GrantRecord) -> Result<bool, Refusal> {
    match record.range {
        Some(range) => Ok(engine.ids.is_retired(range.uid)?),
        None => Ok(false),
    }
}

/// A grant that its caller was never told of. Whoever is in it is put back outside, not killed: it did nothing but ask.
fn undo(engine: &Engine, grant: &Arc<Grant>) -> Result<(), Refusal> {
    tracing::info!(grant = %grant.id, name = %grant.name, "half made when the broker ended: undone");
    engine.tree.evict(&grant.path)?;
    engine.tree.remove(&grant.path, false)?;
    engine.ids.release(grant.id)?;
    engine.journal.remove(&grant.id.to_string()).map_err(|error| crate::engine::unwritable(&error))
}

fn go_on_releasing(engine: &Engine, grant: &Arc<Grant>, reason: EndReason) -> Result<(), Refusal> {
    engine.registry().add(grant);
    grant.live().record.phase = Phase::Active;
    release::remove(engine, grant, reason, Patience::Full)
}

fn take_over(engine: &Engine, grant: &Arc<Grant>) -> Result<(), Refusal> {
    engine.registry().add(grant);
    grant.live().hierarchies = engine.tree.hierarchies(&grant.path);
    take_over_links(engine, grant);
    let record = grant.live().record.clone();
    manage::reapply(engine, grant, &record.limits);
    // Whatever the broker before came to say of it, and by what program.
    if let Err(refusal) = device::limit_again(engine, grant) {
        tracing::error!(grant = %grant.id, %refusal, "its devices are limited as they were before");
    }
    let holder = record.holder.as_ref().and_then(find_holder);
    events::watch(engine, grant, holder.as_ref())?;
    match record.lifetime {
        Lifetime::Process if holder.is_none() => {
            release::end(engine, grant, EndReason::HolderDied);
        }
        Lifetime::Connection => manage::connection_ended(engine, grant, Ended::Broken),
        Lifetime::Populated => manage::orphaned(engine, grant),
        Lifetime::Process | Lifetime::Persistent => (),
    }
    Ok(())
}

/// Links that are there are expected; of those in the making nobody was told, and those on their way out go.
fn take_over_links(engine: &Engine, grant: &Arc<Grant>) {
    let mut record = grant.live().record.clone();
    let before = record.links.len();
    record.links.retain(|link| link.phase == Phase::Active);
    for known in &record.links {
        link::take_over(engine, grant, known);
    }
    if record.links.len() != before {
        if let Err(refusal) = engine.write_record(&record) {
            tracing::error!(%refusal, grant = %grant.id, "links that are not there stay in the record");
        }
        engine.registry().set_record(grant, record);
    }
}

/// The holder, if it is still the same process: by the inode of its pidfd, which pidfs never gives twice, or else by pid
/// and start time.
fn find_holder(record: &HolderRecord) -> Option<Pidfd> {
    let pidfd = Pidfd::open(record.pid).ok()?;
    let same = match (record.inode, pidfd.inode()) {
        (Some(before), Some(now)) => before == now,
        _ => pidfd.start_time().ok()? == record.start_time,
    };
    (same && pidfd.is_alive().ok()?).then_some(pidfd)
}

fn make_again(engine: &Engine, grant: &Arc<Grant>) -> Result<(), Refusal> {
    let mut record = grant.live().record.clone();
    let subject = record.subject();
    // On a host that can't keep a ceiling of its account it is not made, and takes no ids.
    account::ceilings(engine, &subject)?;
    if record.count > 0 {
        let name = match &record.range_name {
            Some(text) => Some(GrantName::new(text).map_err(|error| check::bad_name(&error))?),
            None => record.range_named.then(|| grant.name.clone()),
        };
        let range = engine.ids.acquire(grant.account, name.as_ref(), record.count, grant.id, u64::MAX)?;
        let range = Range { uid: range.uid().0, gid: range.gid().0, count: range.count() };
        if record.range.is_some_and(|before| before != range) && record.range_named {
            return Err(Refusal::new(
                RefusalCode::Internal,
                "the record of ranges gives a persistent grant another range than it had",
            ));
        }
        record.range = Some(range);
    }
    engine.tree.remove(&grant.path, true)?;
    account::prepare_as(engine, grant.account, &subject)?;
    record.cgroup_id = engine.tree.make(&grant.path, &delegation(&record))?;
    record.boot.clone_from(&engine.boot_id);
    // Another kernel may have been booted.
    let can = engine.devices.lacks().is_none();
    record.devices = record.devices.as_ref().filter(|_| can).map(DeviceList::again);
    if !record.links.is_empty() {
        tracing::info!(grant = %grant.id, name = %grant.name, links = record.links.len(), "its links went with their namespaces");
        record.links.clear();
    }
    engine.write_record(&record)?;
    let limits = record.limits.clone();
    grant.live().record = record;
    device::limit_again(engine, grant)?;
    grant.live().hierarchies = engine.tree.hierarchies(&grant.path);
    manage::reapply(engine, grant, &limits);
    engine.registry().add(grant);
    events::watch(engine, grant, None)
}

fn remove_unknown(engine: &Engine, known: &HashSet<GrantPath>) -> Result<(), Refusal> {
    for path in engine.tree.scan()? {
        if !known.contains(&path) {
            tracing::warn!(%path, "a cgroup without a record is removed");
            if let Err(error) = engine.tree.evict(&path).and_then(|()| engine.tree.remove(&path, false)) {
                tracing::error!(%path, %error, "a cgroup without a record can't be removed");
            }
        }
    }
    Ok(())
}

/// A grant that could not be settled may have processes still: its range stays in use.
fn give_back_unknown(engine: &Engine, unsettled: &HashSet<GrantId>) -> Result<(), Refusal> {
    for (id, _range) in engine.ids.live()? {
        if engine.registry().get(id).is_none() && !unsettled.contains(&id) {
            tracing::warn!(grant = %id, "a range was marked as used by a grant that there is no record of; given back");
            engine.ids.release(id)?;
        }
    }
    Ok(())
}
