//! Callers and processes that lie in a grant: what they may not do (design invariant 9).
//!
//! A grant with ids is left by nobody: its processes have other uids than the account. A bare grant without ids has
//! the account's own uid inside; these checks keep its processes from lifting their own limits through the broker.

use std::{io, sync::Arc};

use cgrant_policy::{Application, Caller as Subject, GrantPath, HostUid};
use cgrant_sys::pidfd::Pidfd;
use cgrant_wire::{Range, Refusal, RefusalCode};

use super::check;
use crate::{
    connection::{Caller, own_ids},
    engine::Engine,
    registry::Grant,
};

/// The grant whose payload the process lies in.
///
/// # Errors
/// `ESRCH` if the process has ended: what it lay in is not known then. Those of reading `/proc`.
pub fn grant_around(engine: &Engine, process: &Pidfd) -> io::Result<Option<GrantPath>> {
    let pid = process.pid()?;
    let cgroups = engine.tree.proc().cgroups(pid)?;
    must_be_alive(engine, process, pid)?;
    Ok(payload_around(engine, &cgroups))
}

fn payload_around(engine: &Engine, cgroups: &[(String, String)]) -> Option<GrantPath> {
    cgroups.iter().find_map(|(hierarchy, path)| engine.tree.payload_around(hierarchy, path))
}

/// What was read of the process with this pid counts only if the pid meant it, and it was not ending.
fn must_be_alive(engine: &Engine, process: &Pidfd, pid: u32) -> io::Result<()> {
    // A process that is ending is in no cgroup by the kernel's word, wherever it was.
    if engine.tree.proc().stat(pid)?.exiting || !process.is_alive()? {
        return Err(rustix::io::Errno::SRCH.into());
    }
    Ok(())
}

/// As [`grant_around`] of a caller's process, with less work while it stays where it was found outside of all payloads: cgroup2
/// moves no cgroup and gives no id twice (`cgroup_kf_syscall_ops` has no `rename`; fs/kernfs/dir.c), so what is outside
/// stays outside.
fn grant_around_caller(engine: &Engine, caller: &Caller, process: &Pidfd) -> io::Result<Option<GrantPath>> {
    let info = process.info()?;
    if info.cgroup_id.is_some_and(|cgroup| caller.is_known_outside(cgroup)) {
        must_be_alive(engine, process, info.pid)?;
        return Ok(None);
    }
    let cgroups = engine.tree.proc().cgroups(info.pid)?;
    must_be_alive(engine, process, info.pid)?;
    let around = payload_around(engine, &cgroups);
    if around.is_none() {
        // The id belongs to the place that was looked at, wherever the process has gone since.
        let place = cgroups.iter().find_map(|(hierarchy, path)| engine.tree.id_of(hierarchy, path));
        caller.know_outside(place);
    }
    Ok(around)
}

/// Where a process is that connects.
#[derive(Debug, Default)]
pub struct Around {
    /// The grant around it.
    pub grant: Option<GrantPath>,
    /// The ordinary user of a container that it is, or that the container around is of.
    pub ordinary: Option<HostUid>,
    /// Who made the user namespace around it, if that matters ([`maker_around`]).
    pub maker: Option<HostUid>,
    /// The application that it is of; none in a grant, and none of a process that has another uid by now.
    pub application: Option<Application>,
    /// Whose rules bind it ([`bound`]), which is known once it is known whose its uid is.
    pub bound: Option<Subject>,
}

/// Where a process of `uid` is that connects.
///
/// # Errors
/// `ESRCH` if the process has ended; those of reading `/proc` and of asking for namespaces.
pub fn look_around(engine: &Engine, process: &Pidfd, uid: HostUid) -> io::Result<Around> {
    let info = process.info()?;
    let cgroups = engine.tree.proc().cgroups(info.pid)?;
    must_be_alive(engine, process, info.pid)?;
    let grant = payload_around(engine, &cgroups);
    let maker = maker_around(engine, process, uid)?;
    let tells = grant.is_none() && maker.is_none() && [info.ruid, info.euid, info.suid].contains(&uid.0);
    // Looked for whatever policy says now: it may say something else when the caller asks.
    let application = tells.then(|| crate::application::of(&engine.tree, &cgroups, uid)).flatten();
    let ordinary = grant.as_ref().and_then(|grant| ordinary(engine, grant, uid));
    Ok(Around { grant, ordinary, maker, application, bound: None })
}

/// Whose rules bind a caller inside a container of the account's: the account's, as policy saw it when the grant around was made; in none
/// of its grants, as far as its uid tells. `None` for root's, which rules do not bind: those inside are not root by that.
pub fn bound(engine: &Engine, account: HostUid, grant: Option<&GrantPath>) -> Option<Subject> {
    if account.is_root() {
        return None;
    }
    let around = grant.filter(|path| path.account == account).and_then(|path| engine.registry().at(path));
    Some(around.map_or_else(|| Subject::by_uid(account), |grant| grant.live().record.subject()))
}

/// The ordinary user of a container that has this grant, or one around it; `None` if nobody but roots has.
pub fn user_of(engine: &Engine, path: &GrantPath) -> Option<HostUid> {
    // The outermost, of whose step nothing but its grant says which uid it is outside.
    let depth = path.ordinary().next()?.0.steps.len();
    let steps = path.steps.iter().take(depth.saturating_add(1)).cloned().collect();
    let grant = engine.registry().at(&GrantPath { account: path.account, steps })?;
    grant.live().record.nested.as_ref().map(|nested| HostUid(nested.uid))
}

/// The ordinary user of a container that a process of `uid` in this grant is, or whose container it is in: root of what such a one has
/// made is in its hands.
fn ordinary(engine: &Engine, path: &GrantPath, uid: HostUid) -> Option<HostUid> {
    if path.ordinary().next().is_some() {
        return user_of(engine, path);
    }
    let grant = engine.registry().at(path)?;
    let (range, nesting) = {
        let live = grant.live();
        (live.record.range, live.record.nesting)
    };
    let Some(range) = range else { return Some(uid) };
    match uid.0.checked_sub(range.uid) {
        Some(0) => None,
        Some(id) if (own_ids(range, nesting)..range.count).contains(&id) => {
            of_block(engine, &grant, range, nesting, uid)
        }
        _ => Some(uid),
    }
}

/// Whose a uid of the blocks for grants inside is: that of the one whose grant has it; of those that no grant has all are one.
///
/// An attacker wants to be many: it has all ids of its container's, and nothing keeps its processes from being beside that.
fn of_block(engine: &Engine, around: &Grant, range: Range, nesting: u32, uid: HostUid) -> Option<HostUid> {
    let has = |grant: &Arc<Grant>| {
        let range = grant.live().record.range;
        grant.path.around() == around.path
            && range.is_some_and(|range| uid.0.checked_sub(range.uid).is_some_and(|id| id < range.count))
    };
    match engine.registry().inside(&around.path).into_iter().find(has) {
        Some(grant) if grant.user().is_root() => None,
        Some(grant) => grant.live().record.nested.as_ref().map(|nested| HostUid(nested.uid)),
        None => Some(HostUid(range.uid.saturating_add(own_ids(range, nesting)))),
    }
}

/// Who made the outermost user namespace around the process, if that is neither its own uid nor root: the account
/// that has this uid in a container.
///
/// An attacker wants to be many: its uids in a user namespace of its own (subordinate ones of any origin) would each be an
/// account. Or it wants to be root: a process of root's that has entered a namespace of the attacker's is in its hands.
///
/// # Errors
/// `ESRCH` if the process has ended; those of asking for namespaces.
fn maker_around(engine: &Engine, process: &Pidfd, uid: HostUid) -> io::Result<Option<HostUid>> {
    let mut found = None;
    let mut namespace = process.user_namespace()?;
    while namespace.id()? != engine.own_userns {
        let maker = HostUid(namespace.owner_uid()?);
        if maker != uid && !maker.is_root() {
            found = Some(maker);
        }
        namespace = match namespace.parent() {
            Ok(parent) => parent,
            // Outside of the engine's own: it is not ours to see.
            Err(_) => break,
        };
    }
    Ok(found)
}

/// Refuses a caller whose process lies in a payload, or has ended: its connection may be in the hands of one that does. One that
/// is served inside a grant, and so sees only what is inside of that, has to lie in that one's.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_be_outside(engine: &Engine, caller: &Caller, what: &str) -> Result<(), Refusal> {
    if let Some(inside) = &caller.nested {
        return super::nested::must_be_in_place(engine, caller, inside);
    }
    let around = caller.process.as_ref().map(|process| grant_around_caller(engine, caller, process));
    let now = match around {
        Some(Ok(around)) => around,
        // Without a process: it had ended when a bus was asked about it, or the bus does not tell.
        Some(Err(_)) | None => {
            return Err(Refusal::new(
                RefusalCode::NotAuthorized,
                format!(
                    "the process that connected has ended, and nobody else may {what} over its connection"
                ),
            )
            .rule("built-in inside-a-grant")
            .hint("connect anew"));
        }
    };
    // Where it connected from counts too: a process inside could hand its connection on and end.
    match now.or_else(|| caller.born_in.clone()) {
        None => Ok(()),
        Some(around) => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("a process inside grant {around} may not {what}"),
        )
        .rule("built-in inside-a-grant")
        .hint("ask from a process outside the grant")),
    }
}

/// Refuses to move a process out of a grant that it lies in, unless it stays in the same one or goes into one inside of it.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`]; [`RefusalCode::NoSuchProcess`] if it has ended.
pub fn must_not_leave(
    engine: &Engine,
    caller: &Caller,
    process: &Pidfd,
    into: &Grant,
) -> Result<(), Refusal> {
    match grant_around(engine, process).map_err(|error| check::gone(&error))? {
        Some(around) if around != into.path && !into.path.is_inside(&around) => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            // Where that lies outside is not for those inside to know.
            match caller.may_see(&around) {
                true if caller.nested.is_none() => {
                    format!("the process lies in grant {around}, which nothing leaves")
                }
                _ => "the process lies in another grant, which nothing leaves".to_owned(),
            },
        )
        .rule("built-in inside-a-grant")),
        _ => Ok(()),
    }
}
