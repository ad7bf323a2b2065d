//! Callers inside a grant that was made for grants inside it: who they are, what they may ask, and what they are told
//! (design invariants 2 and 9).
//!
//! Such a caller is the root of the grant's range; or, where policy lets them in, an ordinary user in there, whose grants are its own: neither
//! another user may know of them, nor has it any part in root's. What it does is in the grant around it: the account is
//! charged, and the grant's limits hold for it. It is told of nothing outside, and every number that it is told is
//! one of its own namespaces.

use std::sync::Arc;

use cgrant_policy::{GrantPath, IdSpan, LimitKey, LimitValue, NsUid};
use cgrant_sys::{
    namespace::UsernsFd,
    pidfd::Pidfd,
    process::{IdExtent, IdKind},
};
use cgrant_wire::{
    Act, Answer, BridgeInfo, CreateGrant, Event, Explain, GrantChange, GrantId, GrantInfo, Inquiry, LinkInfo,
    Op, Range, Refusal, RefusalCode,
};

use super::check::{self, Settings};
use crate::{
    cgroup::{USUAL_WEIGHT, below_base},
    connection::{Caller, Inside, Peer, own_ids},
    engine::Engine,
    registry::Grant,
};

/// What an id is called where it has no number (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// What a caller acts in, and as whom, if it may do so in something.
///
/// An attacker wants to be taken for somebody of a grant that it is not in, or for another user than it is in there: another container's
/// root, a process that looks like one from a namespace of its own making. The kernel's words have to agree: the
/// uid is one of the grant's own ids (another's range has others, and so have grants inside), the process lies in the grant's payload, where
/// only the account and those inside can put it, and its user namespace is the grant's, by its map. A process that ends
/// meanwhile is nobody: what its number says could be another's. Which of the users it is, is that uid, as the kernel had it when the
/// process connected; a program with somebody else's set-user-ID bit connects as that one, here as anywhere.
pub fn standing(engine: &Engine, peer: &Peer, born_in: Option<&GrantPath>) -> Option<Inside> {
    let uid = peer.uid();
    let grant = engine.registry().at(born_in?)?;
    let (range, own, subject) = {
        let live = grant.live();
        let record = &live.record;
        let range = record.range.filter(|_| record.nesting > 0)?;
        (range, own_ids(range, record.nesting), record.subject())
    };
    let user = NsUid(uid.0.checked_sub(range.uid)?);
    let gid = peer.gid().0.checked_sub(range.gid);
    // Programs that have nothing to do with each other run as nobody.
    let is_somebody = user.0 < own && user.0 != NOBODY && gid.is_some_and(|gid| gid < own);
    let may = || engine.policy().quotas(&subject).nesting_user_blocks > 0;
    let is_let_in = user.is_root() || (is_somebody && may());
    // Those inside have the account's ids no more than anybody else.
    let is_its = engine.ids.owner_of(uid) == Some(grant.account) && grant.is_active();
    let depth = grant.path.steps.len();
    let is_there = |process| {
        Ok::<_, std::io::Error>(has_ids_of(engine, process, range)? && is_at_depth(engine, process, depth)?)
    };
    (is_let_in && is_its && is_there(peer.process()?).unwrap_or(false)).then_some(Inside {
        grant,
        range,
        user,
        subject,
    })
}

/// Is the process's user namespace so many below the host's? Root of the grant's own can make one inside with the very same map,
/// never one of the same depth: a grant's own is a child of the one that its maker is in ([`check::unmapped_userns`]).
fn is_at_depth(engine: &Engine, process: &Pidfd, depth: usize) -> std::io::Result<bool> {
    let mut namespace = process.user_namespace()?;
    for _ in 0..depth {
        if namespace.id()? == engine.own_userns {
            return Ok(false);
        }
        namespace = namespace.parent()?;
    }
    Ok(namespace.id()? == engine.own_userns && process.is_alive()?)
}

/// The uid that a caller in a container has in its own user namespace: what its D-Bus library says it is.
pub fn claim(engine: &Engine, caller: &Caller) -> Option<u32> {
    caller.inside?;
    let process = caller.process.as_ref()?;
    let extents = engine.tree.proc().id_map(process.pid().ok()?, IdKind::Uid).ok()?;
    let claim = extents.iter().find_map(|extent| extent.inside(caller.uid.0))?;
    process.is_alive().ok()?.then_some(claim)
}

/// Is the process in a user namespace that has this range and nothing else, as its own first ids?
fn has_ids_of(engine: &Engine, process: &Pidfd, range: Range) -> std::io::Result<bool> {
    let pid = process.pid()?;
    let uids = engine.tree.proc().id_map(pid, IdKind::Uid)?;
    let gids = engine.tree.proc().id_map(pid, IdKind::Gid)?;
    let is = |extents: &[IdExtent], first: u32| matches!(extents, [only] if (only.inside, only.outside, only.count) == (0, first, range.count));
    Ok(is(&uids, range.uid) && is(&gids, range.gid) && process.is_alive()?)
}

/// Refuses what callers inside a container are not served with; nothing for callers on the host.
///
/// # Errors
/// [`RefusalCode::Unsupported`] for who is no root of a grant that others can be made in, and for operations that there are
/// none of inside.
pub fn must_be_served(caller: &Caller, op: &Op) -> Result<(), Refusal> {
    if caller.nested.is_none() {
        if caller.inside.is_none() || *op == Op::BrokerInfo {
            return Ok(());
        }
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            "your uid is one of a container's or of a user namespace's, and acts for nobody there",
        )
        .rule("built-in nesting")
        .hint(
            "inside a container only its root may ask, by the container's own socket and from its own user namespace, and \
             only in one that was made with nesting; its users may where policy has nesting-user-blocks for the account outside",
        ));
    }
    let user = caller.user();
    match op {
        // Root may do with what users have in there what it likes.
        Op::ListGrants { all: true, .. } | Op::FindGrant { .. } if user.is_root() => Ok(()),
        Op::MakeDevice { .. } if !caller.is_root_throughout() => Err(for_root("devices")),
        Op::AddLink { .. } | Op::ListBridges if !caller.is_root_throughout() => Err(for_root("links")),
        Op::Usage { account } | Op::FindGrant { account, .. } if is_own(user, *account) => Ok(()),
        Op::BrokerInfo
        | Op::ListAccounts { all: false }
        | Op::CreateGrant(_)
        | Op::ListGrants { all: false, .. }
        | Op::Describe { .. }
        | Op::Adopt { .. }
        | Op::SetLimits { .. }
        | Op::GetValues { .. }
        | Op::Stat { .. }
        | Op::ListProcesses { .. }
        | Op::Freeze { .. }
        | Op::Thaw { .. }
        | Op::Kill { .. }
        | Op::CreateCgroup { .. }
        | Op::RemoveCgroup { .. }
        | Op::ListCgroups { .. }
        | Op::ListRanges
        | Op::ForgetRange { .. }
        | Op::MakeDevice { .. }
        | Op::AddLink { .. }
        | Op::RemoveLink { .. }
        | Op::ListBridges
        | Op::Release { .. } => Ok(()),
        Op::Attach(attach) if !attach.tree => Ok(()),
        // Its own requests; what each of them comes to is looked at there ([`must_be_there`]).
        Op::Explain(ask) if is_of_the_caller(ask) => Ok(()),
        _ => Err(not_there()),
    }
}

/// Is it about a request of the caller's own, as it is?
fn is_of_the_caller(ask: &Explain) -> bool {
    ask.account.is_none() && ask.groups.is_empty() && ask.application.is_empty()
}

/// Is that the caller itself, as it is called in there?
fn is_own(user: NsUid, account: Option<u32>) -> bool {
    account.is_none_or(|account| NsUid(account) == user)
}

/// The refusal of what a container's root alone may do.
///
/// An attacker wants a device that the container has for its root, or for a group in there: the broker can't tell who in there may open it.
/// Or it wants to be on a network of the host's, or to use up what the account may have there, which is for root to share out.
/// Root of a container that an ordinary user has made is that user.
fn for_root(what: &str) -> Refusal {
    Refusal::new(
        RefusalCode::NotAuthorized,
        format!("only the container's root may have {what} made, not an ordinary user's container"),
    )
    .rule("built-in nesting")
    .hint("do without, or ask as the container's root")
}

fn not_there() -> Refusal {
    Refusal::new(RefusalCode::Unsupported, "this is not there for callers inside a grant")
        .rule("built-in nesting")
        .hint("ask from outside of the container")
}

/// Says of a question what [`must_be_served`] says of the request that it is about.
///
/// # Errors
/// [`RefusalCode::Unsupported`] for a caller inside a grant, where there is no such request.
pub fn must_be_there(caller: &Caller, question: &Inquiry) -> Result<(), Refusal> {
    if caller.nested.is_none() {
        return Ok(());
    }
    let user = caller.user();
    match question {
        Inquiry::ListGrants { all: true } if user.is_root() => Ok(()),
        Inquiry::MakeDevice { .. } if !caller.is_root_throughout() => Err(for_root("devices")),
        Inquiry::AddLink { .. } if !caller.is_root_throughout() => Err(for_root("links")),
        Inquiry::UsageOf { account } if is_own(user, *account) => Ok(()),
        Inquiry::CreateGrant(_)
        | Inquiry::Use {
            act:
                Act::Read
                | Act::Attach
                | Act::Adopt
                | Act::Persist
                | Act::Freeze
                | Act::Thaw
                | Act::Kill
                | Act::RemoveCgroup
                | Act::RemoveLink
                | Act::Release,
            ..
        }
        | Inquiry::SetLimits { .. }
        | Inquiry::GetValues { .. }
        | Inquiry::CreateCgroup { .. }
        | Inquiry::ForgetRange { .. }
        | Inquiry::MakeDevice { .. }
        | Inquiry::AddLink { .. }
        | Inquiry::ListGrants { all: false }
        | Inquiry::ListAccounts { all: false }
        | Inquiry::Connect => Ok(()),
        Inquiry::Use { act: Act::OpenCgroup | Act::Unpublish, .. }
        | Inquiry::MapDirectory { .. }
        | Inquiry::ListAccounts { all: true }
        | Inquiry::ListRules { .. }
        | Inquiry::ListDeparted
        | Inquiry::PublishPorts { .. }
        | Inquiry::AllowDevice { .. }
        | Inquiry::ListGrants { all: true }
        | Inquiry::UsageOf { .. }
        | Inquiry::Legacy => Err(not_there()),
    }
}

/// Refuses links of a grant that an ordinary user of a container makes, or root of such a one's container.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn may_have_links(caller: &Caller, request: &CreateGrant) -> Result<(), Refusal> {
    match caller.nested.is_some() && !request.links.is_empty() && !caller.is_root_throughout() {
        true => Err(for_root("links")),
        false => Ok(()),
    }
}

/// Refuses an ordinary user inside a grant a larger share than what lies beside its own grants has.
///
/// An attacker wants root's and other users' grants to get no time, no memory or no disk. They are siblings of its own, between which the
/// kernel divides by weight and by what is protected; of the grant around that is the account's to say, in there its root's. What a file of the
/// kernel's does that policy lists by its name, `io.weight` or `memory.min` say, only who listed it knows, who had the account in mind.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_share(caller: &Caller, settings: &Settings) -> Result<(), Refusal> {
    if caller.user().is_root() {
        return Ok(());
    }
    let refused = |what: &str, hint: String| {
        let message = format!("only the container's root may {what}");
        Err(Refusal::new(RefusalCode::NotAuthorized, message).rule("built-in nesting").hint(hint))
    };
    let is_more = |(_, value): &(LimitKey, LimitValue)| matches!(value, LimitValue::Weight(weight) if *weight > USUAL_WEIGHT);
    if settings.asked().iter().any(is_more) {
        return refused(
            &format!("have a cpu.weight above {USUAL_WEIGHT}, which takes from others in there"),
            format!("ask for {USUAL_WEIGHT} or less, or have the container's root set it"),
        );
    }
    match settings.raw.iter().find(|(key, _)| !key.takes_from_nobody()) {
        Some((key, _)) => refused(
            &format!("write {}, which may take from others in there", key.as_str()),
            "have the container's root set it, or use the limits that every grant has".to_owned(),
        ),
        None => Ok(()),
    }
}

/// Refuses a caller inside a grant that is not there any more.
///
/// An attacker wants to act on ids by their numbers, of which others have come to have some: over a connection that it handed on before the
/// grant that it is of ended.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_still_be(engine: &Engine, caller: &Caller) -> Result<(), Refusal> {
    caller.nested.as_ref().map_or(Ok(()), |inside| must_be_in_place(engine, caller, inside))
}

/// Refuses a caller that is not, by now, in the payload of the grant that it acts in.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_be_in_place(engine: &Engine, caller: &Caller, inside: &Inside) -> Result<(), Refusal> {
    let still = engine.registry().get(inside.grant.id).is_some_and(|grant| grant.is_active());
    let around = caller.process.as_ref().map(|process| super::inside::grant_around(engine, process));
    match around {
        Some(Ok(Some(around))) if still && around == inside.grant.path => Ok(()),
        _ => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            "the process that connected has ended or left, or its grant has; nobody else may use its connection",
        )
        .rule("built-in nesting")
        .hint("connect anew")),
    }
}

/// The user namespace that a caller from inside is in: the parent of those that it may show.
///
/// # Errors
/// [`RefusalCode::NoSuchProcess`].
pub fn own_userns(caller: &Caller) -> Result<Option<UsernsFd>, Refusal> {
    if caller.nested.is_none() {
        return Ok(None);
    }
    let process = caller.process.as_ref().ok_or_else(|| check::gone(&std::io::ErrorKind::NotFound.into()))?;
    process.user_namespace().map(Some).map_err(|error| check::gone(&error))
}

/// A refusal in the caller's own words: where its grant lies on the host is left out of the paths in it.
pub fn refused_inside(caller: &Caller, mut refusal: Refusal) -> Refusal {
    if let Some(inside) = &caller.nested {
        refusal.message = from_below(refusal.message, &below_base(&inside.grant.path).join("/"));
    }
    refusal
}

/// The text with each path in it that leads through `above` from there on.
fn from_below(mut text: String, above: &str) -> String {
    while let Some(found) = text.find(above).filter(|_| !above.is_empty()) {
        let begin = text.get(..found).and_then(|before| before.rfind(' ')).map_or(0, |blank| blank + 1);
        text.replace_range(begin..found + above.len(), "");
    }
    text
}

/// An answer in the caller's own words.
///
/// # Errors
/// [`RefusalCode::Unsupported`] where the kernel does not tell what pids are called there.
pub fn translated(engine: &Engine, caller: &Caller, answer: Answer) -> Result<Answer, Refusal> {
    let Some(inside) = &caller.nested else {
        return Ok(match answer {
            // Which uid of the host's it has is not its to know.
            Answer::BrokerInfo(mut info) if caller.inside.is_some() => {
                info.account = NOBODY;
                Answer::BrokerInfo(info)
            }
            other => other,
        });
    };
    let seen = |info: GrantInfo| {
        let grant = engine.registry().get(info.id);
        let step = grant.as_ref().and_then(|grant| grant.path.step_in(&inside.grant.path));
        // One that has ended meanwhile was found as the caller's own.
        seen_from(&inside.grant, inside.range, step.map_or(inside.user, |step| step.user), info)
    };
    Ok(match answer {
        Answer::BrokerInfo(mut info) => {
            info.account = inside.user.0;
            Answer::BrokerInfo(info)
        }
        Answer::Accounts(_) => Answer::Accounts(vec![inside.user.0]),
        Answer::Usage(mut usage) => {
            usage.account = inside.user.0;
            Answer::Usage(usage)
        }
        Answer::Created(mut created) => {
            created.grant = seen(created.grant);
            Answer::Created(created)
        }
        Answer::Grant(info) => Answer::Grant(seen(info)),
        Answer::Grants(all) => Answer::Grants(all.into_iter().map(seen).collect()),
        // Which application of the host's its account was when the outermost grant was made.
        Answer::Explained(mut explanation) => {
            explanation.application.clear();
            explanation.refusal = explanation.refusal.take().map(|refusal| refused_inside(caller, refusal));
            Answer::Explained(explanation)
        }
        Answer::Link(link, tap) => Answer::Link(seen_inside(link), tap),
        Answer::Bridges(bridges) => {
            // What the account has on it, and what the host has, is not for those inside to know.
            let name =
                |bridge: BridgeInfo| BridgeInfo { device: String::new(), links: 0, clash: None, ..bridge };
            Answer::Bridges(bridges.into_iter().map(name).collect())
        }
        Answer::Processes(pids) => Answer::Processes(pids_seen_by(engine, caller, &pids)?),
        other => other,
    })
}

/// Who inside a grant hears of one that is inside of it.
#[derive(Debug)]
pub struct Hearers {
    /// The grant around.
    pub around: Arc<Grant>,
    /// Whose the other one is there, or the one that it is in.
    whose: NsUid,
}

impl Hearers {
    /// Root, and whose it is.
    pub fn users(&self) -> impl Iterator<Item = NsUid> + use<> {
        let whose = self.whose;
        std::iter::once(NsUid::ROOT).chain((!whose.is_root()).then_some(whose))
    }
}

/// Who hears of a grant in those around it, the innermost first.
pub fn hearers(engine: &Engine, path: &GrantPath) -> Vec<Hearers> {
    let of = |around: Arc<Grant>| {
        let whose = path.step_in(&around.path)?.user;
        Some(Hearers { around, whose })
    };
    around(engine, path).into_iter().filter_map(of).collect()
}

/// An event in the words of those inside a grant around the one that it is about.
pub fn retold(hearers: &Hearers, event: &Event) -> Option<Event> {
    let (around, user) = (&hearers.around, hearers.whose);
    let range = around.live().record.range?;
    let mut event = event.clone();
    match &mut event {
        Event::Added { grant } => *grant = seen_from(around, range, user, grant.clone()),
        Event::LinkAdded { account, link, .. } => {
            (*account, *link) = (user.0, seen_inside(link.clone()));
        }
        Event::Changed { account, change, .. } => {
            *account = user.0;
            if let GrantChange::Links(links) = change {
                links.iter_mut().for_each(|link| *link = seen_inside(link.clone()));
            }
        }
        Event::Ended { account, .. }
        | Event::LinkRemoved { account, .. }
        | Event::Oom { account, .. }
        | Event::Usage { account, .. }
        | Event::Pressure { account, .. } => *account = user.0,
        Event::Policy => (),
    }
    Some(event)
}

/// What is said of a grant to those inside a grant around it: by their ids, and nothing of what they can't see.
fn seen_from(around: &Grant, range: Range, user: NsUid, mut info: GrantInfo) -> GrantInfo {
    info.account = user.0;
    info.range = info.range.map(|inner| Range {
        uid: inner.uid.saturating_sub(range.uid),
        gid: inner.gid.saturating_sub(range.gid),
        count: inner.count,
    });
    // They lie above what is the root of every hierarchy there.
    info.hierarchies.clear();
    info.parent = info.parent.filter(|parent| *parent != around.id);
    info.links = info.links.into_iter().map(seen_inside).collect();
    info
}

/// A link as those inside are told of it: without the device on the host.
fn seen_inside(link: LinkInfo) -> LinkInfo {
    LinkInfo { host_name: String::new(), ifindex: 0, ..link }
}

/// The pids by which the caller's pid namespace knows the processes; those that it does not know are left out.
fn pids_seen_by(engine: &Engine, caller: &Caller, pids: &[u32]) -> Result<Vec<u32>, Refusal> {
    let own = caller.process.as_ref().and_then(|process| {
        let namespace = engine.tree.proc().open_pid_namespace(process.pid().ok()?).ok()?;
        process.is_alive().ok()?.then_some(namespace)
    });
    let own = own.ok_or_else(|| check::gone(&std::io::ErrorKind::NotFound.into()))?;
    let mut seen = Vec::with_capacity(pids.len());
    for pid in pids {
        let number = own.number_of(*pid).map_err(|error| {
            Refusal::new(
                RefusalCode::Unsupported,
                format!("the kernel does not tell what processes are called in a container: {error}"),
            )
            .hint("Linux 6.11 does; `ps` in the container shows them on any")
        })?;
        seen.extend(number);
    }
    seen.sort_unstable();
    Ok(seen)
}

/// The grant of this caller's that uses the ids, if one does.
pub fn user_of(engine: &Engine, inside: &Inside, ids: IdSpan) -> Option<GrantId> {
    let registry = engine.registry();
    let uses = |grant: &Arc<Grant>| {
        let range = grant.live().record.range;
        grant.path.around() == inside.grant.path && range.is_some_and(|range| range.uid == ids.first())
    };
    registry.inside(&inside.grant.path).into_iter().find(uses).map(|grant| grant.id)
}

/// The grants around one, the innermost first.
pub fn around(engine: &Engine, path: &GrantPath) -> Vec<Arc<Grant>> {
    let registry = engine.registry();
    let above = std::iter::successors(Some(path.around()), |path| Some(path.around()));
    above.take_while(|path| !path.steps.is_empty()).filter_map(|path| registry.at(&path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_where_the_caller_is() {
        let told = |text: &str| from_below(text.to_owned(), "u1000/one");
        let said = "the kernel refused to make /sys/fs/cgroup/memory/cgrant-main/u1000/one/children/two/payload/a: No space";
        assert_eq!(told(said), "the kernel refused to make /children/two/payload/a: No space");
        assert_eq!(told("/a/u1000/one/x and /b/u1000/one"), "/x and ");
        assert_eq!(told("u1000/two"), "u1000/two");
    }
}
