//! CreateGrant: cgroup, limits, ids, attached stage and written map as one transaction.
//!
//! Order: everything that can be checked is checked before anything changes; the intent is in the journal before
//! the first effect; effects push their undo; the id map, which can't be undone, comes last.

use std::{os::fd::AsFd, sync::Arc};

use cgrant_policy::{
    BLOCK, Caller as Subject, DEFAULT_IDS, Departed, GrantName, GrantPath, HostGid, HostUid, IdRange, IdSpan,
    NewGrant, NsUid, Request,
};
use cgrant_sys::{namespace::UsernsFd, pidfd::Pidfd, process};
use cgrant_wire::{
    Answer, AttachTarget, CreateGrant, Created, Event, FdIndex, GrantId, Holder, Lifetime, LinkRequest,
    Range, RangeRequest, Refusal, RefusalCode,
};

use super::{
    check::{self, Settings},
    link, portion,
};
use crate::{
    cgroup::Delegation,
    connection::{Caller, Inside},
    engine::{About, Engine, Outcome},
    ids::Around,
    record::{GrantRecord, HolderRecord, NestedRecord, Phase},
    registry::Grant,
};

/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 128;

/// A request whose every part has been checked.
struct Plan {
    record: GrantRecord,
    id: GrantId,
    name: GrantName,
    path: GrantPath,
    settings: Settings,
    userns: Option<UsernsFd>,
    stage: Option<Pidfd>,
    holder: Option<Pidfd>,
    /// How many ids are asked for, 0 for as many as the name's range has or the default; `None` for no ids.
    ids: Option<u32>,
    /// The name that the range belongs to; `None` for any range of the account's.
    label: Option<GrantName>,
    setgroups: bool,
    /// The account's own ids, if they are to be mapped too.
    own: Option<(HostUid, HostGid)>,
    links: Vec<link::Wish>,
}

/// Makes a grant.
///
/// An attacker wants ids of another account, a cgroup outside its own limits, a map written into a namespace that is not
/// its own, or somebody else's process moved. The account is the kernel's word on the connection; names become path
/// components only as [`GrantName`]; the name of a range is looked up among the account's own; the namespace must be owned by the caller's uid, be a child of the engine's own and
/// unmapped, judged by the descriptor that is acted on; processes must have the caller's uid throughout.
///
/// # Errors
/// The refusal of whatever step refused, when nothing of the others remains.
pub fn create(
    engine: &Engine,
    caller: &Arc<Caller>,
    request: &CreateGrant,
    fds: check::Descriptors,
) -> Outcome {
    let digest = digest(request);
    if let Some(grant) = repeated(engine, caller, request, digest)? {
        return created(engine, &grant, false, Vec::new());
    }
    let mut plan = plan(engine, caller, request, digest, fds)?;
    let about = About { grant: Some(plan.id), words: plan.name.as_str() };
    engine.authorize(
        caller,
        about,
        &Request::CreateGrant(NewGrant {
            ids: plan.ids.map(counted),
            limits: &plan.settings.limits,
            asked: plan.settings.asked(),
            setgroups: plan.setgroups,
            persistent: plan.record.lifetime == Lifetime::Persistent,
            pressure: plan.record.pressure.len(),
            links: &link::judged(&plan.links),
            nesting: plan.record.nesting,
            depth: plan.path.depth(),
            user_blocks: blocks_with(engine, caller, More { label: plan.label.as_ref(), ids: plan.ids })?,
            tidies: plan.record.tidies,
        }),
    )?;
    plan.settings.authorize_raw(engine, caller, caller.account(), about)?;
    let portion = portion::of_new(engine, caller)?;
    if let Some(nested) = &mut plan.record.nested {
        nested.cgroups = portion;
    }
    super::account::must_be_had(engine, &caller.subject(), &plan.settings)?;
    // What is made inside has the limit of the grant around it, whose cgroup it is in.
    if !plan.path.is_nested() {
        plan.record.devices = super::device::limit_of(engine, &caller.subject(), plan.ids.is_some())?;
    }
    let grant = Arc::new(Grant::new(plan.id, plan.path.clone(), plan.name.clone(), plan.record.clone()));
    if engine.registry().at(&plan.path).is_some() {
        return Err(exists(&plan.name));
    }
    let wishes = std::mem::take(&mut plan.links);
    let mut links = link::Prepared::new(engine, &grant, link::Terms::of(engine, &caller.subject()), wishes)?;
    plan.record.links = links.records();
    grant.live().record.links.clone_from(&plan.record.links);
    engine.write_record(&plan.record)?;
    engine.registry().add(&grant);
    let mut taps = Vec::new();
    if let Err(refusal) = carry_out(engine, caller, &grant, &plan, &mut links, &mut taps) {
        engine.registry().remove(&grant);
        if let Err(error) = engine.journal.remove(&plan.record.id) {
            tracing::error!(%error, "the record of a grant that was undone stays until the next start");
        }
        return Err(refusal);
    }
    links.keep();
    // Made and recorded: nothing that goes wrong from here on can take it back.
    let _ = engine.fault.step("create: before the answer");
    engine.tell(Event::Added { grant: grant.info() });
    let answer = created(engine, &grant, true, taps);
    super::manage::ended_meanwhile(engine, caller, &grant);
    answer
}

/// The grant that an earlier request with the same key made.
fn repeated(
    engine: &Engine,
    caller: &Arc<Caller>,
    request: &CreateGrant,
    digest: u64,
) -> Result<Option<Arc<Grant>>, Refusal> {
    if request.key.is_empty() {
        return Ok(None);
    }
    if request.key.len() > MAX_KEY || !request.key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("a key is 1 to {MAX_KEY} printable ASCII characters without spaces"),
        ));
    }
    let Some(grant) = engine.registry().keyed(caller.place(), caller.user(), &request.key) else {
        return Ok(None);
    };
    if grant.live().record.digest != digest {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("the key {} stands for another request of yours", request.key),
        )
        .hint("use a new key for a new grant"));
    }
    if request.holder == Holder::Connection {
        let mut record = grant.live().record.clone();
        record.lifetime = Lifetime::Connection;
        engine.write_record(&record)?;
        engine.registry().set_record(&grant, record);
        engine.registry().hold(&grant, Some(caller.connection));
        super::manage::ended_meanwhile(engine, caller, &grant);
    }
    Ok(Some(grant))
}

/// What a key stands for: all of a request but the positions of its descriptors, which differ from call to call. The
/// digest is FNV-1a, which stays the same in every build: a persistent grant's record may be read by a later one.
fn digest(request: &CreateGrant) -> u64 {
    let shape = CreateGrant {
        key: String::new(),
        holder: match request.holder {
            Holder::Process(_) => Holder::Process(FdIndex(0)),
            other => other,
        },
        userns: request.userns.map(|_| FdIndex(0)),
        stage: request.stage.map(|_| FdIndex(0)),
        links: request.links.iter().map(shape).collect(),
        ..request.clone()
    };
    let mut bytes = cgrant_wire::encode(&shape).unwrap_or_default();
    // Came to be behind the rest: where it is not said, requests have the digest that they had before.
    if !request.tidies {
        bytes.pop();
    }
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A link that is asked for, without the position of its descriptor.
fn shape(request: &LinkRequest) -> LinkRequest {
    LinkRequest { netns: request.netns.map(|_| FdIndex(0)), ..request.clone() }
}

fn plan(
    engine: &Engine,
    caller: &Arc<Caller>,
    request: &CreateGrant,
    digest: u64,
    mut fds: check::Descriptors,
) -> Result<Plan, Refusal> {
    let id = GrantId(process::random_u64().map_err(check::internal)?);
    let name = name_of(request, id)?;
    may_tidy(request)?;
    let settings = settings_of(engine, &caller.subject(), request)?;
    super::nested::must_share(caller, &settings)?;
    let mut record = fresh_record(engine, caller, id, &name);
    record.key.clone_from(&request.key);
    record.digest = digest;
    record.created = super::manage::now();
    crate::leaving::note(engine, &engine.policy().ruling(&caller.subject()).lifetime, &mut record);
    record.limits = settings.texts();
    record.controllers = engine.policy().controllers_of_new(&caller.subject());
    record.pressure = check::pressure(&request.pressure)?;
    let holder = match request.holder {
        Holder::Process(index) => {
            let process = check::own_process(caller, fds.take(index, "the holder")?)?;
            record.holder = Some(HolderRecord {
                pid: process.pid().map_err(|error| check::gone(&error))?,
                inode: process.inode(),
                start_time: process.start_time().map_err(|error| check::gone(&error))?,
            });
            record.lifetime = Lifetime::Process;
            Some(process)
        }
        Holder::Connection => {
            record.lifetime = Lifetime::Connection;
            None
        }
        Holder::Persistent => {
            record.lifetime = Lifetime::Persistent;
            None
        }
    };
    if let Some(range) = request.range {
        record.range_named = is_named(request, range);
    }
    let label = label_of(request, &name)?;
    record.range_name = label.as_ref().filter(|label| **label != name).map(GrantName::to_string);
    let userns = request
        .userns
        .map(|index| check::unmapped_userns(engine, caller, fds.take(index, "the user namespace")?))
        .transpose()?;
    if userns.is_some() && request.range.is_none() {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "a user namespace was shown but no ids were asked for",
        ));
    }
    let own = own_ids(caller, request)?;
    let stage =
        request.stage.map(|index| check::own_process(caller, fds.take(index, "the stage")?)).transpose()?;
    super::nested::may_have_links(caller, request)?;
    let links = link::wishes(
        engine,
        &caller.subject(),
        (caller.account(), caller.nested.as_ref()),
        &request.links,
        &[],
        Some((caller, &mut fds)),
        userns.as_ref(),
    )?;
    fds.finish()?;
    record.nesting = request.nesting;
    record.tidies = request.tidies;
    let ids = ids_of(engine, &caller.subject(), request)?;
    Ok(Plan {
        record,
        id,
        path: caller.path_of(name.clone()),
        name,
        settings,
        userns,
        stage,
        holder,
        ids,
        label,
        setgroups: request.range.is_some_and(|range| range.setgroups),
        own,
        links,
    })
}

/// Is it for nothing but removing files, if it says that it is?
///
/// An attacker has more files than it may have, and wants to go on as before by saying that it removes some. It gets one such grant at a time, which
/// ends with its holder and has nothing that a container of some use would have: no links, no grants inside.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`].
pub fn may_tidy(request: &CreateGrant) -> Result<(), Refusal> {
    let is_plain = request.range.is_some()
        && request.holder != Holder::Persistent
        && request.links.is_empty()
        && request.nesting == 0;
    if !request.tidies || is_plain {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::InvalidArgument,
        "a grant that tidies has ids and a holder, and neither links nor nesting",
    ))
}

/// The name of a new grant.
///
/// # Errors
/// [`RefusalCode::InvalidName`].
pub fn name_of(request: &CreateGrant, id: GrantId) -> Result<GrantName, Refusal> {
    let made_up = || format!("g{id}");
    let text = if request.name.is_empty() { made_up() } else { request.name.clone() };
    GrantName::new(&text).map_err(|error| check::bad_name(&error))
}

/// Its limits: those that are asked for, and policy's, as far as those limit anything.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`].
pub fn settings_of(engine: &Engine, subject: &Subject, request: &CreateGrant) -> Result<Settings, Refusal> {
    let mut settings = check::settings(&request.limits)?;
    let asked = settings.limits.len();
    settings.limits = engine.policy().limits_of_new(subject, &settings.limits);
    let mut at = 0;
    settings.limits.retain(|(key, value)| {
        at += 1;
        at <= asked || !value.is_unlimited(*key) || engine.tree.can_limit(*key).is_ok()
    });
    Ok(settings)
}

fn is_named(request: &CreateGrant, range: RangeRequest) -> bool {
    range.named && !(request.name.is_empty() && request.range_name.is_empty())
}

/// The name that its range belongs to.
///
/// # Errors
/// [`RefusalCode::InvalidName`].
pub fn label_of(request: &CreateGrant, name: &GrantName) -> Result<Option<GrantName>, Refusal> {
    match (request.range.is_some_and(|range| is_named(request, range)), request.range_name.as_str()) {
        (false, _) => Ok(None),
        (true, "") => Ok(Some(name.clone())),
        (true, text) => GrantName::new(text).map(Some).map_err(|error| check::bad_name(&error)),
    }
}

/// How many ids are asked for, those for grants inside included.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`] if that is more than there are.
pub fn ids_of(engine: &Engine, subject: &Subject, request: &CreateGrant) -> Result<Option<u32>, Refusal> {
    let count = |range: RangeRequest| match request.nesting {
        0 => Ok(engine.policy().ids_of_new(subject, range.count)),
        blocks => with_blocks(counted(range.count), blocks),
    };
    request.range.map(count).transpose()
}

/// How many ids that is, as policy looks at it.
pub fn counted(count: u32) -> u32 {
    if count == 0 { DEFAULT_IDS } else { count }
}

/// The refusal of a name that the account has a grant of.
pub fn exists(name: &GrantName) -> Refusal {
    Refusal::new(RefusalCode::GrantExists, format!("you have a grant named {name} already"))
        .hint("choose another name, or release the other grant first")
}

/// So many ids, and the blocks for grants inside beside them.
fn with_blocks(own: u32, nesting: u32) -> Result<u32, Refusal> {
    nesting.checked_mul(BLOCK).and_then(|more| own.checked_add(more)).ok_or_else(|| {
        Refusal::new(RefusalCode::InvalidArgument, format!("{nesting} blocks of ids are more than there are"))
    })
}

/// A record of who asks, with nothing decided.
fn fresh_record(engine: &Engine, caller: &Caller, id: GrantId, name: &GrantName) -> GrantRecord {
    let subject = caller.subject();
    let mut record = GrantRecord::new(id, subject.uid.0, subject.gid.0, name.as_str(), &engine.boot_id);
    record.application.clone_from(&subject.application);
    record.groups = subject.groups.iter().map(|group| group.0).collect();
    record.nested = caller.nested.as_ref().map(|inside| NestedRecord {
        around: inside.grant.path.steps.iter().map(ToString::to_string).collect(),
        parent: inside.grant.id.to_string(),
        uid: caller.uid.0,
        // A process of root's may have another gid.
        gid: if inside.user.is_root() { inside.range.gid } else { caller.gid.0 },
        user: inside.user.0,
        cgroups: None,
    });
    record
}

/// Ids for the grant: of the account's own, or out of those of the grant that it is made in.
fn acquire(engine: &Engine, caller: &Caller, plan: &Plan, count: u32) -> Result<IdRange, Refusal> {
    let Some(inside) = &caller.nested else {
        let policy = engine.policy();
        let ruling = policy.ruling(&caller.subject());
        let quota = ruling.quotas.ids;
        let range = engine.ids.acquire(caller.uid, plan.label.as_ref(), count, plan.id, quota);
        let range = range.map_err(|error| Refusal::from(error).rule(ruling.label.clone()))?;
        engine.ids.note_removal(plan.id, plan.record.departed == Departed::Remove)?;
        return Ok(range);
    };
    let (around, live) = ids_inside(engine, inside, plan.id);
    Ok(engine.ids.acquire_inner(around, plan.label.as_ref(), count, &live)?)
}

/// The ids that grants inside a grant are made from, and which of them others than `except` have.
pub fn ids_inside(engine: &Engine, inside: &Inside, except: GrantId) -> (Around, Vec<(IdSpan, GrantId)>) {
    let used = |grant: &Arc<Grant>| {
        let range = grant.live().record.range?;
        let here = grant.path.around() == inside.grant.path && grant.id != except;
        let span = IdSpan::new(range.uid, range.count).ok()?;
        here.then_some((span, grant.id))
    };
    let live = engine.registry().inside(&inside.grant.path).iter().filter_map(used).collect();
    (inside.ids(), live)
}

/// A grant that is asked for, as far as ids of the one around go.
#[derive(Debug, Clone, Copy)]
pub struct More<'a> {
    /// The name that its range belongs to.
    pub label: Option<&'a GrantName>,
    /// How many ids, 0 for as many as the name's range has or the default; `None` for none.
    pub ids: Option<u32>,
}

/// How many blocks of the grant around ordinary users have with one grant more of the caller's: the caller itself, if it is one, and each that it
/// is in a container of, the one that comes to most. `None` where there is none.
///
/// An attacker wants the account's quota of grants for itself, by some without ids in a container of its own, in which it is root: all that
/// are in there count as one each.
///
/// An account's operations come one after the other, so nobody takes some meanwhile.
///
/// # Errors
/// If the record of ranges can't be read.
pub fn blocks_with(engine: &Engine, caller: &Caller, more: More<'_>) -> Result<Option<u64>, Refusal> {
    let place = caller.place();
    let own = (!caller.user().is_root()).then(|| (place.clone(), caller.user()));
    let users: Vec<_> = place.ordinary().chain(own).collect();
    if users.is_empty() {
        return Ok(None);
    }
    let own = user_blocks(engine, caller, Some(more))?;
    let grants = engine.registry().list(Some(caller.account()));
    let inside = |(around, user): (GrantPath, NsUid)| {
        let of = |grant: &&Arc<Grant>| grant.path.step_in(&around).is_some_and(|step| step.user == user);
        grants.iter().filter(of).count() as u64 + 1
    };
    Ok(users.into_iter().map(inside).chain(own).max())
}

/// How many blocks of the grant around an ordinary user in there has, or would have with one grant more. A grant counts as one at least, so
/// that this bounds their number too; so do ids that are kept for a name. `None` for everybody else.
///
/// # Errors
/// If the record of ranges can't be read.
pub fn user_blocks(engine: &Engine, caller: &Caller, more: Option<More<'_>>) -> Result<Option<u64>, Refusal> {
    let Some(inside) = caller.nested.as_ref().filter(|inside| !inside.user.is_root()) else {
        return Ok(None);
    };
    let span = |range: Range| IdSpan::new(range.uid, range.count).ok();
    let mut grants = engine.registry().inside(&inside.grant.path);
    grants.retain(|grant| grant.path.around() == inside.grant.path && grant.user() == inside.user);
    let spans: Vec<IdSpan> =
        grants.iter().filter_map(|grant| grant.live().record.range.and_then(span)).collect();
    let without =
        grants.len().saturating_sub(spans.len()) + usize::from(more.is_some_and(|more| more.ids.is_none()));
    let part = more.and_then(|More { label, ids }| Some((label, ids?)));
    let (around, live) = ids_inside(engine, inside, GrantId(0));
    Ok(Some(engine.ids.blocks_inside(around, &spans, &live, part)?.with(without)))
}

/// The caller's own ids, if its namespace is to have them.
///
/// An attacker wants rights over files of others, or to be rid of groups. In the namespace it gets all rights over what
/// belongs to its own uid and gid, or to the range's, and to nobody else (`capable_wrt_inode_uidgid`): files it can do
/// anything with anyway. Leaving groups takes setgroups(2), which is asked for and judged as ever; leaving its primary gid for one
/// of the range's it can with any range, and gains by it no more than there.
fn own_ids(caller: &Caller, request: &CreateGrant) -> Result<Option<(HostUid, HostGid)>, Refusal> {
    if !request.range.is_some_and(|range| range.own_ids) {
        return Ok(None);
    }
    if request.userns.is_none() {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "own ids are mapped, but no user namespace was shown to map them in",
        ));
    }
    let (uid, gid) = super::mount::own_ids(caller)?;
    let Some(inside) = &caller.nested else { return Ok(Some((uid, gid))) };
    // As the parent of the namespace counts.
    let seen = (uid.0.checked_sub(inside.range.uid), gid.0.checked_sub(inside.range.gid));
    match seen {
        (Some(uid), Some(gid)) if uid < inside.range.count && gid < inside.range.count => {
            Ok(Some((HostUid(uid), HostGid(gid))))
        }
        _ => Err(Refusal::new(
            RefusalCode::InvalidArgument,
            "own ids are not among those of the container, so they can't be mapped in one inside it",
        )),
    }
}

/// The effects, each with its undo. Ends with the grant active, recorded and watched.
fn carry_out(
    engine: &Engine,
    caller: &Arc<Caller>,
    grant: &Arc<Grant>,
    plan: &Plan,
    links: &mut link::Prepared<'_>,
    taps: &mut Vec<link::Tap>,
) -> Result<(), Refusal> {
    let mut undo = Undo { engine, grant, ids: false, cgroup: false, returned: None, links: false };
    let result = effects(engine, caller, grant, plan, &mut undo, (links, taps));
    if result.is_err() {
        undo.run();
    }
    result
}

fn effects(
    engine: &Engine,
    caller: &Arc<Caller>,
    grant: &Arc<Grant>,
    plan: &Plan,
    undo: &mut Undo<'_>,
    (links, taps): (&mut link::Prepared<'_>, &mut Vec<link::Tap>),
) -> Result<(), Refusal> {
    let fault = &engine.fault;
    fault.step("create: intent recorded")?;
    // Joining takes a while and has no effect that anybody sees: it goes on beside what follows. Dropped on the way out,
    // nothing is written.
    let parent = plan.userns.as_ref().map(|_| super::nested::own_userns(caller)).transpose()?.flatten();
    let begin = |userns| engine.mapper.begin(userns, parent.as_ref(), caller.uid);
    let mapping = plan.userns.as_ref().map(begin).transpose()?;
    let mut record = plan.record.clone();
    if let Some(count) = plan.ids {
        undo.ids = true;
        let range = acquire(engine, caller, plan, count)?;
        record.count = range.count();
        record.range = Some(Range { uid: range.uid().0, gid: range.gid().0, count: range.count() });
        fault.step("create: ids taken")?;
    }
    undo.cgroup = true;
    super::account::prepare(engine, caller)?;
    record.cgroup_id = engine.tree.make(&grant.path, &delegation(&record))?;
    fault.step("create: cgroups made")?;
    let limiting = record.devices.as_ref().map(|devices| {
        let cgroup = engine.tree.open_grant(&grant.path)?;
        Ok::<_, Refusal>(engine.devices.begin(cgroup.as_fd(), devices)?)
    });
    let limiting = limiting.transpose()?;
    plan.settings.apply(engine, &grant.path)?;
    fault.step("create: limits set")?;
    // Before anything of the account's is in there.
    if let Some(limiting) = limiting {
        limiting.finish()?;
        fault.step("create: devices limited")?;
    }
    if let Some(stage) = &plan.stage {
        let account = caller.uid;
        let attached = engine
            .tree
            .attach(&grant.path, AttachTarget::Stage, stage, false, &|info| check::is_own(account, info))?;
        undo.returned = Some(attached);
        fault.step("create: stage attached")?;
    }
    if !record.links.is_empty() {
        undo.links = true;
        *taps = links.make(&mut record)?;
        fault.step("create: links made")?;
    }
    let writing = mapping.zip(range_of(caller, &record));
    let writing = writing.map(|(mapping, range)| mapping.write(range, plan.own, plan.setgroups));
    // While the map is written. What happens from now on is noted and looked at after this operation, the account's operations
    // being in order.
    let watched = crate::events::watch_new(engine, grant, plan.holder.as_ref());
    grant.live().hierarchies = engine.tree.hierarchies(&grant.path);
    if let Some(writing) = writing {
        writing.finish()?;
        fault.step("create: ids mapped")?;
    }
    watched?;
    record.phase = Phase::Active;
    engine.write_record(&record)?;
    engine.registry().set_record(grant, record);
    if plan.record.lifetime == Lifetime::Connection {
        engine.registry().hold(grant, Some(caller.connection));
    }
    Ok(())
}

/// The ids as the parent of the namespace that they are written into counts them: the caller's own.
fn range_of(caller: &Caller, record: &GrantRecord) -> Option<IdRange> {
    let Range { uid, gid, count } = record.range?;
    let (uid, gid) = match &caller.nested {
        Some(inside) => (uid.checked_sub(inside.range.uid)?, gid.checked_sub(inside.range.gid)?),
        None => (uid, gid),
    };
    IdRange::new(HostUid(uid), HostGid(gid), count).ok()
}

/// Who owns what in the grant's cgroups: the range's root, or in a grant without ids whoever made it: the account itself, or the
/// root or user of the grant around it; and which controllers it has there.
pub fn delegation(record: &GrantRecord) -> Delegation {
    let account = (HostUid(record.account), HostGid(record.gid));
    let maker = record.nested.as_ref().map(|nested| (HostUid(nested.uid), HostGid(nested.gid)));
    Delegation {
        account: maker.unwrap_or(account),
        root: record.range.map(|range| (HostUid(range.uid), HostGid(range.gid))),
        controllers: record.controllers.clone(),
        most: record.nested.as_ref().and_then(|nested| nested.cgroups),
    }
}

/// What has to be undone, newest first.
struct Undo<'a> {
    engine: &'a Engine,
    grant: &'a Arc<Grant>,
    ids: bool,
    cgroup: bool,
    returned: Option<crate::cgroup::Attached>,
    links: bool,
}

impl Undo<'_> {
    fn run(self) {
        crate::events::unwatch(self.engine, self.grant);
        if self.links
            && let Err(error) = self.engine.network.helper.remove_all(self.grant.id)
        {
            tracing::error!(%error, grant = %self.grant.id, "links could not be removed while undoing");
        }
        if let Some(attached) = self.returned {
            attached.put_back();
        }
        if self.cgroup
            && let Err(error) = self.engine.tree.remove(&self.grant.path, true)
        {
            tracing::error!(%error, grant = %self.grant.id, "a cgroup could not be removed while undoing; reconcile will");
        }
        if self.ids
            && let Err(error) = self.engine.ids.release(self.grant.id)
        {
            tracing::error!(%error, grant = %self.grant.id, "a range could not be given back while undoing; reconcile will");
        }
    }
}

fn created(engine: &Engine, grant: &Arc<Grant>, new: bool, taps: Vec<link::Tap>) -> Outcome {
    let payload = match grant.path.is_nested() {
        // A directory of the host's cgroupfs, whose parents could be opened from it, is nothing for a container.
        true => cgrant_sys::memfd::sealed("payload", &[]).map_err(check::internal)?,
        false => engine.tree.open_payload(&grant.path)?,
    };
    let (taps, mut fds) = link::named(taps);
    // The payload's descriptor comes after those of taps.
    let at = FdIndex(u8::try_from(fds.len()).unwrap_or(u8::MAX));
    fds.push(payload);
    Ok((Answer::Created(Created { grant: grant.info(), new, payload: at, taps }), fds))
}
