//! Links: network devices of a grant on a bridge that policy allows, with addresses and published ports.
//!
//! The engine checks, decides, records, and chooses every name and address; the helper (`net::Helper`) makes and removes.

mod make;
mod site;
pub mod wish;

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use cgrant_policy::{HostPort, HostUid, NewLink, Request, Verb};
use cgrant_wire::{
    Answer, BridgeInfo, Event, FdIndex, GrantChange, GrantId, LinkEnd, LinkInfo, LinkRequest, PublishedPort,
    Refusal, RefusalCode,
    net::{Finding, LinkKey, Order, Reply},
};

pub use self::{
    make::{Prepared, Tap, Terms, foresee, take_over},
    wish::{Wish, exists as is_bridge, wishes},
};
use super::{check, inside, query::usable};
use crate::{
    connection::{Caller, Inside},
    engine::{Engine, Outcome},
    record::{GrantRecord, LinkRecord, Phase},
    registry::Grant,
};

/// A link as its account is told of it.
pub fn told(record: &LinkRecord) -> LinkInfo {
    let info = record.link.info.clone();
    LinkInfo { bridge: site::told(&info.bridge).to_owned(), ..info }
}

/// The links of a grant that are there, in the order of their names.
pub fn all_told(record: &GrantRecord) -> Vec<LinkInfo> {
    let there = record.links.iter().filter(|link| link.phase == Phase::Active);
    let mut links: Vec<_> = there.map(told).collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

/// Links as policy looks at them.
pub fn judged(wishes: &[Wish]) -> Vec<NewLink<'_>> {
    wishes.iter().map(Wish::judged).collect()
}

/// Tells that the links of a grant, or what they have, changed.
fn tell_links(engine: &Engine, grant: &Grant) {
    let links = all_told(&grant.live().record);
    let change = GrantChange::Links(links);
    engine.tell(Event::Changed { grant: grant.id, account: grant.account.0, change });
}

/// Writes a record and makes it the grant's.
fn note(engine: &Engine, grant: &Grant, record: GrantRecord) -> Result<(), Refusal> {
    engine.write_record(&record)?;
    engine.registry().set_record(grant, record);
    Ok(())
}

/// As [`note`], where things were given back: a full disk must not keep anybody from that.
fn note_less(engine: &Engine, grant: &Grant, record: GrantRecord) {
    if let Err(refusal) = engine.write_record(&record) {
        tracing::warn!(%refusal, grant = %grant.id, "a link that is gone stays in the record; the next start puts that in order");
    }
    engine.registry().set_record(grant, record);
}

fn position(record: &GrantRecord, name: &str) -> Result<usize, Refusal> {
    wish::check_name(name)?;
    let there = |link: &LinkRecord| link.phase == Phase::Active && link.link.info.name == name;
    record.links.iter().position(there).ok_or_else(|| {
        Refusal::new(RefusalCode::NoSuchLink, format!("the grant has no link named {name:?}"))
            .hint("`cgrant link list` shows your links")
    })
}

/// Adds a link to a grant that is there.
///
/// An attacker wants into a network that is not its own, an address or a port of somebody else's, or more links than the host
/// bears. The namespace is judged by the descriptor that is acted on ([`wish::own_netns`]); addresses and names come from
/// the engine, a chosen one only where policy lets it; the account's quotas count; and a caller inside the grant is refused.
///
/// # Errors
/// What policy or the helper refuses; nothing remains then.
pub fn add(
    engine: &Engine,
    caller: &Arc<Caller>,
    id: GrantId,
    request: &LinkRequest,
    mut fds: check::Descriptors,
) -> Outcome {
    let grant = engine.grant_for(caller, id)?;
    inside::must_be_outside(engine, caller, "add a link")?;
    super::manage::must_not_tidy(&grant, "have links")?;
    let mut record = grant.live().record.clone();
    let requests = std::slice::from_ref(request);
    let wishes = wishes(
        engine,
        &caller.subject(),
        (grant.account, caller.nested.as_ref()),
        requests,
        &record.links,
        Some((caller, &mut fds)),
        None,
    )?;
    fds.finish()?;
    for link in judged(&wishes) {
        let asked = Request::AddLink { owner: grant.account, link };
        engine.authorize(caller, &*grant, &asked)?;
    }
    let mut prepared = Prepared::new(engine, &grant, Terms::of(engine, &caller.subject()), wishes)?;
    let before = record.clone();
    record.links.extend(prepared.records());
    note(engine, &grant, record.clone())?;
    let made = engine.fault.step("link: intent recorded").and_then(|()| prepared.make(&mut record)).and_then(
        |taps| {
            note(engine, &grant, record.clone())?;
            Ok(taps)
        },
    );
    let taps = match made {
        Ok(taps) => taps,
        Err(refusal) => {
            undo_new(engine, &before, &record);
            note_less(engine, &grant, before);
            return Err(refusal);
        }
    };
    prepared.keep();
    // Made and recorded: nothing that goes wrong from here on can take it back.
    let _ = engine.fault.step("link: before the answer");
    let Some(info) = record.links.last().map(told) else {
        return Err(check::internal("the link that was made is not in the record"));
    };
    engine.tell(Event::LinkAdded { grant: grant.id, account: grant.account.0, link: info.clone() });
    tell_links(engine, &grant);
    let (taps, fds) = named(taps);
    Ok((Answer::Link(info, taps.into_iter().next().map(|(_, index)| index)), fds))
}

/// Removes what `record` has beyond `before`.
fn undo_new(engine: &Engine, before: &GrantRecord, record: &GrantRecord) {
    let known = |link: &&LinkRecord| !before.links.iter().any(|old| old.link.key == link.link.key);
    for link in record.links.iter().filter(known) {
        if let Err(error) = engine.network.helper.remove(&link.link.key) {
            tracing::error!(%error, link = link.link.info.host_name, "a link could not be removed while undoing");
        }
    }
}

/// Taps by name and position, and their descriptors.
pub fn named(taps: Vec<Tap>) -> (Vec<(String, FdIndex)>, Vec<OwnedFd>) {
    let (names, fds): (Vec<_>, Vec<_>) = taps.into_iter().unzip();
    // There are at most as many as a grant has links.
    let index = |at: usize| FdIndex(u8::try_from(at).unwrap_or(u8::MAX));
    (names.into_iter().enumerate().map(|(at, name)| (name, index(at))).collect(), fds)
}

/// Removes a link, and those that grants inside have by it. Without a helper it is removed as soon as there is one.
///
/// # Errors
/// [`RefusalCode::NoSuchLink`], or that of the kernel's.
pub fn remove(engine: &Engine, caller: &Arc<Caller>, id: GrantId, name: &str) -> Outcome {
    let grant = usable(engine, caller, id, Verb::RemoveLink)?;
    inside::must_be_outside(engine, caller, "remove a link")?;
    let gone = remove_one(engine, &grant, name)?;
    remove_inside(engine, &grant, &gone);
    Ok((Answer::Done, Vec::new()))
}

/// Removes the links that grants inside have by this one, unless the grant has another one there.
///
/// An attacker wants to stay on a network that the container around has been taken off: by its launcher, or because it removed its own end.
fn remove_inside(engine: &Engine, grant: &Grant, gone: &LinkInfo) {
    let is_there = |link: &LinkInfo| (&link.bridge, link.vlan) == (&gone.bridge, gone.vlan);
    if all_told(&grant.live().record).iter().any(is_there) {
        return;
    }
    // Not in the loop's head, which would hold the registry meanwhile.
    let inside = engine.registry().inside(&grant.path);
    for inner in inside {
        let links = all_told(&inner.live().record);
        for link in links.iter().filter(|link| is_there(link)) {
            if let Err(refusal) = remove_one(engine, &inner, &link.name) {
                tracing::error!(%refusal, grant = %inner.id, link = link.name, "a link that goes with that of the grant around stays");
            }
        }
    }
}

/// Removes a link, and says what it was.
fn remove_one(engine: &Engine, grant: &Grant, name: &str) -> Result<LinkInfo, Refusal> {
    let mut record = grant.live().record.clone();
    let at = position(&record, name)?;
    let Some(link) = record.links.get_mut(at) else { return Err(check::internal("a link went astray")) };
    link.phase = Phase::Releasing;
    let told = told(link);
    let key = link.link.key.clone();
    if let Err(refusal) = engine.write_record(&record) {
        tracing::warn!(%refusal, grant = %grant.id, "a link is removed without a record of the intent");
    }
    let removed = engine
        .fault
        .step("unlink: intent recorded")
        .and_then(|()| engine.network.helper.remove(&key).map_err(Refusal::from));
    if let Err(refusal) = removed {
        let before = grant.live().record.clone();
        engine.write_record(&before)?;
        return Err(refusal);
    }
    let _ = engine.fault.step("unlink: removed");
    take_out(engine, grant, name, LinkEnd::Removed);
    Ok(told)
}

/// A link is not there any more: its address and ports are free, and it is told.
fn take_out(engine: &Engine, grant: &Grant, name: &str, reason: LinkEnd) {
    let mut record = grant.live().record.clone();
    let Some(at) = record.links.iter().position(|link| link.link.info.name == name) else { return };
    let link = record.links.remove(at);
    note_less(engine, grant, record);
    make::let_go(engine, grant, &link);
    tracing::info!(
        target: "grant", grant = %grant.id, name = %grant.name, account = grant.account.0, link = name, ?reason,
        "link {name} of {} is gone", grant.name
    );
    engine.tell(Event::LinkRemoved {
        grant: grant.id,
        account: grant.account.0,
        name: name.to_owned(),
        reason,
    });
    tell_links(engine, grant);
}

/// The helper says that a link is gone. Runs on the pool, in the account's order.
pub fn gone(engine: &Engine, key: &LinkKey, edition: u64, far_end: bool) {
    if !engine.network.helper.forget(key, edition) {
        return;
    }
    let grant = engine.registry().get(key.grant);
    if let Some(grant) = grant {
        let gone = grant.live().record.links.iter().find(|link| link.link.key == *key).map(told);
        take_out(engine, &grant, &key.name, if far_end { LinkEnd::FarEndGone } else { LinkEnd::Lost });
        if let Some(gone) = gone {
            remove_inside(engine, &grant, &gone);
        }
    }
}

/// The helper says that ports could not be held again. Runs on the pool, in the account's order.
///
/// They are not asked for again by themselves: whoever has them now was not to be shadowed, nor is who comes after him.
pub fn ports_lost(engine: &Engine, key: &LinkKey, edition: u64, ports: &[PublishedPort]) {
    let Some(grant) = engine.registry().get(key.grant) else { return };
    let lost = engine.network.helper.still_lost(key, edition, ports);
    let mut record = grant.live().record.clone();
    let Some(link) = record.links.iter_mut().find(|link| link.link.key == *key) else { return };
    if lost.is_empty() {
        return;
    }
    link.link.info.ports.retain(|port| !lost.contains(port));
    note_less(engine, &grant, record);
    engine.network.claims.release(key, &lost);
    let names: Vec<String> = lost.iter().map(|port| port.host.to_string()).collect();
    tracing::warn!(
        target: "grant", grant = %grant.id, name = %grant.name, account = grant.account.0, link = key.name,
        "published no more, because somebody else has it: port {}", names.join(", ")
    );
    tell_links(engine, &grant);
}

/// Removes all links of a grant that is being released, or that could not be made.
///
/// # Errors
/// What the helper refuses.
pub fn remove_all(engine: &Engine, grant: &Grant, record: &mut GrantRecord) -> Result<(), Refusal> {
    if record.links.is_empty() {
        return Ok(());
    }
    engine.network.helper.remove_all(grant.id)?;
    for link in record.links.drain(..) {
        make::let_go(engine, grant, &link);
    }
    Ok(())
}

/// Addresses that are kept for users who left the system, or whose uid is another's now, are free. Looks at the users only if
/// something about them may be new.
pub fn forget_departed(engine: &Engine) {
    let (edition, forgotten) = (engine.ids.users_edition(), &engine.network.forgotten);
    if forgotten.load(Ordering::Relaxed) == edition {
        return;
    }
    let departed = |account: u32, name: Option<&str>| engine.ids.has_departed(HostUid(account), name);
    if engine.network.addresses.forget_departed(&departed) {
        forgotten.store(edition, Ordering::Relaxed);
    }
}

/// The account whose account-wide order of a link's events is kept.
pub fn account(engine: &Engine, key: &LinkKey) -> Option<HostUid> {
    engine.registry().get(key.grant).map(|grant| grant.account)
}

/// Publishes more ports of the host's to a link: all of them, or none. One that is published already is no error.
///
/// An attacker wants a port on which others expect a service of somebody else's. Policy names the ports; one that another link,
/// a program or the host has is refused and not shadowed.
///
/// # Errors
/// [`RefusalCode::NoSuchLink`], [`RefusalCode::AddressInUse`], what policy refuses.
pub fn publish(
    engine: &Engine,
    caller: &Arc<Caller>,
    id: GrantId,
    name: &str,
    ports: &[PublishedPort],
) -> Outcome {
    let grant = engine.grant_for(caller, id)?;
    inside::must_be_outside(engine, caller, "publish ports")?;
    let record = grant.live().record.clone();
    let at = position(&record, name)?;
    let Some(link) = record.links.get(at) else { return Err(check::internal("a link went astray")) };
    let new = new_ports(&record, link, ports)?;
    let host_ports = wish::host_ports(&new);
    let asked = Request::Publish { owner: grant.account, ports: &host_ports };
    engine.authorize(caller, &*grant, &asked)?;
    must_carry(link, &new)?;
    let key = link.link.key.clone();
    engine
        .network
        .claims
        .claim(&key, grant.account.0, &new)
        .map_err(|conflict| make::in_use(&conflict, grant.account))?;
    let all: Vec<_> = link.link.info.ports.iter().chain(&new).copied().collect();
    if let Err(refusal) = set_ports(engine, &grant, &record, at, &all) {
        engine.network.claims.release(&key, &new);
        return Err(refusal);
    }
    Ok((Answer::Done, Vec::new()))
}

/// What [`publish`] would come to, where `judge` is the decision: in its order, with nothing claimed.
///
/// # Errors
/// As [`publish`]; but that a program has a port shows only when it is done.
pub fn foresee_ports(
    engine: &Engine,
    grant: &Grant,
    name: &str,
    ports: &[PublishedPort],
    judge: impl FnOnce(&[HostPort]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let record = grant.live().record.clone();
    let at = position(&record, name)?;
    let Some(link) = record.links.get(at) else { return Err(check::internal("a link went astray")) };
    let new = new_ports(&record, link, ports)?;
    judge(&wish::host_ports(&new))?;
    must_carry(link, &new)?;
    let free = engine.network.claims.are_free(&link.link.key, &new);
    free.map_err(|conflict| make::in_use(&conflict, grant.account))
}

/// Has the grant such a link?
///
/// # Errors
/// [`RefusalCode::NoSuchLink`], [`RefusalCode::InvalidName`].
pub fn must_have(grant: &Grant, name: &str) -> Result<(), Refusal> {
    position(&grant.live().record, name).map(drop)
}

/// Those of the ports that the link has not yet, checked beside all that the grant has.
fn new_ports(
    record: &GrantRecord,
    link: &LinkRecord,
    ports: &[PublishedPort],
) -> Result<Vec<PublishedPort>, Refusal> {
    // Before they are compared with each other, which takes the square of their number.
    if ports.len() > wish::MAX_PORTS {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("a request publishes at most {} ports", wish::MAX_PORTS),
        ));
    }
    let mut new: Vec<PublishedPort> = Vec::new();
    for port in ports {
        if !link.link.info.ports.contains(port) && !new.contains(port) {
            new.push(*port);
        }
    }
    let others: Vec<PublishedPort> =
        record.links.iter().flat_map(|link| link.link.info.ports.iter().copied()).collect();
    wish::check_ports(&new, &others)?;
    if new.len() + link.link.info.ports.len() > wish::MAX_PORTS {
        return Err(Refusal::new(
            RefusalCode::QuotaExceeded,
            format!("a link has at most {} published ports", wish::MAX_PORTS),
        )
        .rule("built-in ports-per-link")
        .figures(wish::MAX_PORTS as u64, link.link.info.ports.len() as u64));
    }
    Ok(new)
}

/// Can the link have published ports?
fn must_carry(link: &LinkRecord, ports: &[PublishedPort]) -> Result<(), Refusal> {
    if matches!(link.bridge.kind, cgrant_wire::net::BridgeKind::Foreign) && !ports.is_empty() {
        return Err(Refusal::new(
            RefusalCode::Unsupported,
            "ports are published on the broker's own bridges only; here the container is reached by its own address",
        ));
    }
    Ok(())
}

/// Takes published ports back. One that is not published is no error.
///
/// # Errors
/// [`RefusalCode::NoSuchLink`], or what the helper refuses.
pub fn unpublish(
    engine: &Engine,
    caller: &Arc<Caller>,
    id: GrantId,
    name: &str,
    ports: &[PublishedPort],
) -> Outcome {
    let grant = usable(engine, caller, id, Verb::Unpublish)?;
    inside::must_be_outside(engine, caller, "take published ports back")?;
    let record = grant.live().record.clone();
    let at = position(&record, name)?;
    let Some(link) = record.links.get(at) else { return Err(check::internal("a link went astray")) };
    let (gone, left): (Vec<_>, Vec<_>) = link.link.info.ports.iter().partition(|port| ports.contains(port));
    if !gone.is_empty() {
        let key = link.link.key.clone();
        set_ports(engine, &grant, &record, at, &left)?;
        engine.network.claims.release(&key, &gone);
    }
    Ok((Answer::Done, Vec::new()))
}

/// Gives a link exactly these ports: in the record first, then in the kernel.
fn set_ports(
    engine: &Engine,
    grant: &Grant,
    before: &GrantRecord,
    at: usize,
    ports: &[PublishedPort],
) -> Result<(), Refusal> {
    let mut record = before.clone();
    let Some(link) = record.links.get_mut(at) else { return Err(check::internal("a link went astray")) };
    link.link.info.ports = ports.to_vec();
    let key = link.link.key.clone();
    engine.write_record(&record)?;
    let set = engine
        .fault
        .step("ports: intent recorded")
        .and_then(|()| engine.network.helper.set_ports(&key, ports).map_err(Refusal::from));
    if let Err(refusal) = set {
        engine.write_record(before)?;
        return Err(refusal);
    }
    let _ = engine.fault.step("ports: set");
    engine.registry().set_record(grant, record);
    tell_links(engine, grant);
    Ok(())
}

/// The bridges that the caller may have links on, policy's first one first. From inside a grant: those that it has a link on itself.
///
/// # Errors
/// What policy refuses.
pub fn list_bridges(engine: &Engine, caller: &Caller) -> Outcome {
    engine.authorize_silently(caller, &Request::ListBridges)?;
    let policy = engine.policy();
    let network = &policy.ruling(&caller.subject()).network;
    let allowed = if caller.nested.is_some() { &network.nesting_bridges } else { &network.bridges };
    let mut bridges = Vec::new();
    for name in allowed {
        let is_around = |inside: &Inside| !wish::links_on(&inside.grant, name.as_str()).is_empty();
        if !caller.nested.as_ref().is_none_or(is_around) {
            continue;
        }
        if let Some(bridge) = bridge_info(engine, caller.account(), name.as_str()) {
            bridges.push(bridge);
        }
    }
    Ok((Answer::Bridges(bridges), Vec::new()))
}

fn bridge_info(engine: &Engine, account: HostUid, name: &str) -> Option<BridgeInfo> {
    let (network, key) = (&engine.network, site::key(name, account));
    let config = network.config.bridges.named(name);
    let own = [cgrant_policy::DEFAULT_BRIDGE, cgrant_policy::ACCOUNT_BRIDGE].contains(&name);
    let (device, managed, subnet4, subnet6) = match config {
        Some(config) if !config.managed => {
            let device = config.device.as_ref().map_or("", |device| device.as_str()).to_owned();
            (device, false, config.subnet4.map(|net| net.0), config.subnet6.map(|net| net.0))
        }
        None if !own => return None,
        _ => {
            // Before the first link the network may become another one.
            let known = network.addresses.in_use(&key) > 0;
            let networks = if known { network.addresses.networks(&key) } else { Default::default() };
            (site::device(engine, name, account), true, networks.subnet4, networks.subnet6)
        }
    };
    let on_it = |grant: &Arc<Grant>| {
        let live = grant.live();
        live.record.links.iter().filter(|link| link.bridge.name == key).count()
    };
    let links: usize = engine.registry().list(Some(account)).iter().map(on_it).sum();
    let clash = network.helper.clashes().get(&key).copied().filter(|_| network.addresses.in_use(&key) > 0);
    Some(BridgeInfo {
        name: name.to_owned(),
        device,
        managed,
        subnet4: subnet4.map(site::network4),
        subnet6: subnet6.map(site::network6),
        links: u32::try_from(links).unwrap_or(u32::MAX),
        clash,
    })
}

/// What stands in the way of links on this host.
///
/// # Errors
/// What policy refuses. A helper that can't say is a finding itself.
pub fn examine(engine: &Engine, caller: &Caller) -> Outcome {
    engine.authorize_silently(caller, &Request::ExamineNetwork)?;
    let network = &engine.network;
    let mut findings = match network.helper.ask(Order::Examine) {
        Ok(Reply::Findings(findings)) => findings,
        Ok(_) => return Err(check::internal("the network helper did not say what it found")),
        Err(error) => vec![Finding {
            subject: "network helper".to_owned(),
            good: false,
            found: error.to_string(),
            remedy: "look into the broker's log for why it ends".to_owned(),
        }],
    };
    for (bridge, with) in network.helper.clashes() {
        if network.addresses.in_use(&bridge) > 0 {
            findings.push(Finding {
                subject: format!("network of bridge {}", site::told(&bridge)),
                good: false,
                found: format!("this machine has {}/{} too, which is in it", with.address, with.prefix),
                remedy: "end the containers on the bridge, or name other pools4 in [network] of cgrantd.toml: its next first link gets another network".to_owned(),
            });
        }
    }
    Ok((Answer::Findings(findings), Vec::new()))
}
