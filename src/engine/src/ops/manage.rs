//! Operations on a grant that is there: attaching, limits, freezing, killing, cgroups below the payload.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cgrant_policy::{CgroupPath, GrantName, HostUid, Request, Verb};
use cgrant_wire::{
    Answer, Attach, ConnectionId, DiskReport, EndReason, Event, GrantChange, GrantId, Holder, Lifetime,
    Refusal, RefusalCode,
};

use super::{
    check, inside, portion,
    query::{active, may, usable},
};
use crate::{
    connection::{Caller, Ended},
    engine::{About, Engine, Outcome},
    events, leaving,
    record::HolderRecord,
    registry::Grant,
    watch::Target,
};

/// How long a grant lives without processes and without the connection that the broker broke.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(30);

/// Microseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// A grant that removes files of an account's that has too many becomes none of another kind.
///
/// # Errors
/// [`RefusalCode::Unsupported`].
pub fn must_not_tidy(grant: &Grant, what: &str) -> Result<(), Refusal> {
    if !grant.live().record.tidies {
        return Ok(());
    }
    let message = format!("a grant that was made with tidies can't {what}");
    Err(Refusal::new(RefusalCode::Unsupported, message).hint("make a grant without tidies"))
}

fn done() -> Outcome {
    Ok((Answer::Done, Vec::new()))
}

/// Attaches a process, and its descendants if asked.
///
/// An attacker wants to pull another user's process into a cgroup that it can freeze and kill, or to take a process out
/// of the limits of another grant. Every process moved has all its uids equal to the caller's, checked by pidfd; none may
/// lie in a grant's payload already.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`], [`RefusalCode::NoSuchProcess`], [`RefusalCode::Busy`] when a tree forks faster than it can be moved.
pub fn attach(
    engine: &Engine,
    caller: &Arc<Caller>,
    request: &Attach,
    mut fds: check::Descriptors,
) -> Outcome {
    let process = fds.take(request.pidfd, "the process")?;
    fds.finish()?;
    let grant = usable(engine, caller, request.grant, Verb::Attach)?;
    inside::must_be_outside(engine, caller, "attach processes")?;
    let process = check::own_process(caller, process)?;
    inside::must_not_leave(engine, caller, &process, &grant)?;
    engine.fault.step("attach: allowed")?;
    let account = caller.uid;
    let attached = engine
        .tree
        .attach(&grant.path, request.target, &process, request.tree, &|info| check::is_own(account, info))?;
    Ok((Answer::Attached(attached.count()), Vec::new()))
}

/// Makes the connection, or a process of the caller's, the holder; or nobody.
///
/// # Errors
/// [`RefusalCode::InvalidDescriptor`], [`RefusalCode::NotAuthorized`], [`RefusalCode::RecordUnwritable`].
pub fn adopt(
    engine: &Engine,
    caller: &Arc<Caller>,
    id: GrantId,
    holder: Holder,
    mut fds: check::Descriptors,
) -> Outcome {
    let process = match holder {
        Holder::Process(index) => Some(check::own_process(caller, fds.take(index, "the holder")?)?),
        Holder::Connection | Holder::Persistent => None,
    };
    fds.finish()?;
    let grant =
        usable(engine, caller, id, if holder == Holder::Persistent { Verb::Persist } else { Verb::Adopt })?;
    inside::must_be_outside(engine, caller, "adopt a grant")?;
    if holder == Holder::Persistent {
        must_not_tidy(&grant, "outlive its holder")?;
    }
    let mut record = grant.live().record.clone();
    record.holder = match &process {
        Some(process) => Some(HolderRecord {
            pid: process.pid().map_err(|error| check::gone(&error))?,
            inode: process.inode(),
            start_time: process.start_time().map_err(|error| check::gone(&error))?,
        }),
        None => None,
    };
    record.lifetime = match holder {
        Holder::Process(_) => Lifetime::Process,
        Holder::Connection => Lifetime::Connection,
        Holder::Persistent => Lifetime::Persistent,
    };
    let lifetime = record.lifetime;
    // The new holder is watched first: where there is no room for that, everything stays as it is.
    let watch = process.as_ref().map(|process| events::watch_holder(engine, &grant, process)).transpose()?;
    if let Err(refusal) = engine.write_record(&record) {
        engine.watches.remove(watch.as_slice());
        return Err(refusal);
    }
    let (before, deadline) = {
        let mut live = grant.live();
        (std::mem::replace(&mut live.holder_watch, watch), live.deadline.take())
    };
    engine.watches.remove(&[before, deadline].into_iter().flatten().collect::<Vec<_>>());
    engine.registry().set_record(&grant, record);
    engine.registry().hold(&grant, (lifetime == Lifetime::Connection).then_some(caller.connection));
    ended_meanwhile(engine, caller, &grant);
    engine.tell(Event::Changed {
        grant: grant.id,
        account: grant.account.0,
        change: GrantChange::Lifetime(lifetime),
    });
    done()
}

/// Sets limits: all or none.
///
/// An attacker wants more than policy gives. Limits sit on cgroups that root owns, and below the account's own node whose
/// ceilings policy sets; a caller inside the grant is refused.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`], [`RefusalCode::Unsupported`], [`RefusalCode::KernelRefused`]; nothing has changed then.
pub fn set_limits(
    engine: &Engine,
    caller: &Arc<Caller>,
    id: GrantId,
    limits: &[(String, String)],
) -> Outcome {
    let settings = check::settings(limits)?;
    super::nested::must_share(caller, &settings)?;
    // First, as it tells nothing of the grant, and nobody is to be asked in vain.
    inside::must_be_outside(engine, caller, "set limits")?;
    let grant = active(engine, id)?;
    // The one question there is, so that whoever is asked sees the limits.
    may(engine, caller, &grant, &Request::SetLimits { owner: grant.account, limits: &settings.limits })?;
    settings.authorize_raw(engine, caller, grant.account, About::from(&*grant))?;
    let before = grant.live().record.clone();
    let mut record = before.clone();
    for setting in settings.texts() {
        remember(&mut record.limits, setting);
    }
    engine.write_record(&record)?;
    let result =
        engine.fault.step("set limits: intent recorded").and_then(|()| settings.apply(engine, &grant.path));
    if let Err(refusal) = result {
        engine.write_record(&before)?;
        reapply(engine, &grant, &before.limits);
        return Err(refusal);
    }
    // Set and recorded: nothing that goes wrong from here on can take it back.
    let _ = engine.fault.step("set limits: set");
    let now = record.limits.clone();
    engine.registry().set_record(&grant, record);
    engine.tell(Event::Changed {
        grant: grant.id,
        account: grant.account.0,
        change: GrantChange::Limits(now),
    });
    done()
}

fn remember(limits: &mut Vec<(String, String)>, (key, value): (String, String)) {
    match limits.iter_mut().find(|(known, _)| *known == key) {
        Some(known) => known.1 = value,
        None => limits.push((key, value)),
    }
}

/// Sets what the record says. For undoing and for reconcile, where a refusal can only be noted.
///
/// An attacker wants to be rid of what policy bounds it with, by a limit beside it that can't be had any more: of a disk that is
/// not there after a reboot, say. So what is refused takes nothing else with it.
pub fn reapply(engine: &Engine, grant: &Grant, limits: &[(String, String)]) {
    let set = |limits: &[(String, String)]| check::settings(limits)?.apply(engine, &grant.path);
    if set(limits).is_ok() {
        return;
    }
    for limit in limits {
        if let Err(error) = set(std::slice::from_ref(limit)) {
            tracing::error!(%error, grant = %grant.id, key = limit.0, "a limit of the record can't be set again");
        }
    }
}

/// Freezes or thaws payload and children.
///
/// # Errors
/// [`RefusalCode::TimedOut`] if the kernel does not finish; a caller inside is refused.
pub fn freeze(engine: &Engine, caller: &Arc<Caller>, id: GrantId, frozen: bool) -> Outcome {
    let grant = usable(engine, caller, id, if frozen { Verb::Freeze } else { Verb::Thaw })?;
    inside::must_be_outside(engine, caller, "freeze or thaw")?;
    if frozen {
        engine.tree.freeze(&grant.path, caller.patience())?;
    } else {
        engine.tree.thaw(&grant.path)?;
    }
    events::refresh(engine, &grant);
    done()
}

/// Kills everything in payload and children. The grant stays.
///
/// # Errors
/// [`RefusalCode::TimedOut`] if processes can't be killed; a caller inside is refused.
pub fn kill(engine: &Engine, caller: &Arc<Caller>, id: GrantId) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Kill)?;
    inside::must_be_outside(engine, caller, "kill a grant")?;
    engine.tree.kill(&grant.path, caller.patience())?;
    events::refresh(engine, &grant);
    done()
}

/// Makes a cgroup below the payload.
///
/// # Errors
/// [`RefusalCode::InvalidName`], [`RefusalCode::CgroupExists`], [`RefusalCode::QuotaExceeded`].
pub fn create_cgroup(engine: &Engine, caller: &Arc<Caller>, id: GrantId, path: &str) -> Outcome {
    let path = CgroupPath::new(path).map_err(|error| check::bad_name(&error))?;
    let grant = usable(engine, caller, id, Verb::Cgroup)?;
    engine.authorize(
        caller,
        &*grant,
        &Request::CreateCgroup { owner: grant.account, depth: path.depth() },
    )?;
    portion::must_have_room(engine, &grant.path, 1)?;
    engine.tree.create_cgroup(&grant.path, &path)?;
    done()
}

/// Removes an empty cgroup below the payload.
///
/// # Errors
/// [`RefusalCode::InvalidName`], [`RefusalCode::NoSuchCgroup`], [`RefusalCode::Busy`].
pub fn remove_cgroup(engine: &Engine, caller: &Arc<Caller>, id: GrantId, path: &str) -> Outcome {
    let path = CgroupPath::new(path).map_err(|error| check::bad_name(&error))?;
    let grant = usable(engine, caller, id, Verb::Cgroup)?;
    engine.tree.remove_cgroup(&grant.path, &path)?;
    done()
}

/// Unties a range from its name.
///
/// # Errors
/// [`RefusalCode::InvalidName`], or that the account has no such range. A grant that uses it keeps it until it ends.
pub fn forget_range(engine: &Engine, caller: &Arc<Caller>, name: &str) -> Outcome {
    let name = GrantName::new(name).map_err(|error| check::bad_name(&error))?;
    engine.authorize(
        caller,
        name.as_str(),
        &Request::UseGrant { owner: caller.account(), verb: Verb::ForgetRange },
    )?;
    match &caller.nested {
        Some(inside) => engine.ids.forget_inner(inside.range, inside.user, &name)?,
        None => engine.ids.forget(caller.uid, &name)?,
    }
    done()
}

/// Files of ids of users who are gone were looked for.
///
/// An attacker wants them to stay, or root to look for them for ever. Only root says so, and about ids whose users are gone and policy
/// wanted them removed; of others nothing changes. Who keeps files from being removed does so [`ids::TRIES`](crate::ids::TRIES) times.
///
/// # Errors
/// If the caller may not; if the record can't be written.
pub fn forget_departed(engine: &Engine, caller: &Caller, firsts: &[u32], incomplete: bool) -> Outcome {
    engine.authorize(caller, "", &Request::ForgetDeparted)?;
    for first in firsts {
        engine.ids.forget_departed(*first, incomplete)?;
    }
    leaving::give_notice(engine);
    done()
}

/// Files of ids were counted.
///
/// An attacker wants to have none itself, or to have somebody else refused for files that nobody has. Only root of the host says what was
/// counted, of blocks of ids; whose they are is in the record of ranges. So who counts may be wrong by what is on disks, and not by whom
/// it charges.
///
/// # Errors
/// If the caller may not; [`RefusalCode::InvalidArgument`] for what nobody can have counted; if the record can't be written.
pub fn report_disk(engine: &Engine, caller: &Caller, report: &DiskReport) -> Outcome {
    engine.authorize(caller, "", &Request::ReportDisk)?;
    let had_files = engine.disk.blocks();
    engine.disk.note(report, now())?;
    let blocks = had_files.into_iter().chain(report.blocks.iter().map(|block| block.first));
    let accounts: BTreeSet<HostUid> = engine.ids.holders_of(blocks).into_iter().collect();
    accounts.into_iter().for_each(|account| engine.touch(account));
    done()
}

/// The connection that has just been made the holder may have ended before that was noted.
pub fn ended_meanwhile(engine: &Engine, caller: &Caller, grant: &Arc<Grant>) {
    if let Some(how) = caller.ended() {
        holder_ended(engine, grant, caller.connection, how);
    }
}

/// The connection has ended. Nothing happens to the grant if it has another holder by now.
pub fn holder_ended(engine: &Engine, grant: &Arc<Grant>, connection: ConnectionId, how: Ended) {
    // Released meanwhile, its name may be another grant's.
    let is_there = engine.registry().get(grant.id).is_some();
    let holds = grant.live().connection == Some(connection);
    if is_there && holds {
        engine.registry().hold(grant, None);
        connection_ended(engine, grant, how);
    }
}

/// The connection of a grant has ended: the grant ends, or, when the front died and not the caller, lives until it is empty.
pub fn connection_ended(engine: &Engine, grant: &Arc<Grant>, how: Ended) {
    if how == Ended::Closed {
        super::release::end(engine, grant, EndReason::ConnectionClosed);
        return;
    }
    let mut record = grant.live().record.clone();
    record.lifetime = Lifetime::Populated;
    if let Err(error) = engine.write_record(&record) {
        tracing::error!(%error, grant = %grant.id, "a grant whose connection broke keeps its old record");
    }
    engine.registry().set_record(grant, record);
    orphaned(engine, grant);
}

/// Watches a grant without holder: it ends when its last process does, or after [`ORPHAN_GRACE`] if there is none.
pub fn orphaned(engine: &Engine, grant: &Arc<Grant>) {
    match engine.watches.after(ORPHAN_GRACE, |watch| Target::Deadline(grant.id, watch)) {
        Ok(watch) => {
            let before = grant.live().deadline.replace(watch);
            engine.watches.remove(before.as_slice());
        }
        Err(error) => {
            tracing::error!(%error, grant = %grant.id, "no timer for a grant without holder; it ends with its last process")
        }
    }
}
