//! The operations: each one checks, asks the decision, acts, and answers. There is no second door to an effect.

pub mod account;
pub mod check;
pub mod create;
pub mod device;
mod explain;
pub mod inside;
pub mod link;
pub mod manage;
pub mod mount;
pub mod nested;
pub mod portion;
pub mod query;
pub mod release;

use std::sync::Arc;

use cgrant_policy::{Action, HostUid};
use cgrant_wire::{GrantId, Legacy, Op, Refusal, RefusalCode};

use crate::{
    asking::{self, Matter},
    connection::Caller,
    engine::{About, Engine, Outcome},
    legacy::Received,
    pool::Mode,
};

/// The account whose operations `op` has to keep the order of: the grant's, or the caller's own.
pub fn account_of(engine: &Engine, caller: &Caller, op: &Op, agreed: &[Matter]) -> HostUid {
    let grant = grant_of(op).and_then(|id| engine.registry().get(id));
    // Whoever has no business with it neither waits for its account's operations nor makes them wait.
    let may = caller.nested.is_none() && agreed.iter().any(|matter| matter.action == Action::ManageOthers);
    let own = grant.filter(|grant| may || caller.may_see(&grant.path));
    own.map_or(caller.charged(), |grant| grant.account)
}

fn grant_of(op: &Op) -> Option<GrantId> {
    match op {
        Op::Attach(attach) => Some(attach.grant),
        Op::MapDirectory(request) => Some(request.grant),
        Op::Describe { grant }
        | Op::Adopt { grant, .. }
        | Op::SetLimits { grant, .. }
        | Op::GetValues { grant, .. }
        | Op::Stat { grant }
        | Op::ListProcesses { grant }
        | Op::Freeze { grant }
        | Op::Thaw { grant }
        | Op::Kill { grant }
        | Op::CreateCgroup { grant, .. }
        | Op::RemoveCgroup { grant, .. }
        | Op::ListCgroups { grant }
        | Op::OpenCgroup { grant, .. }
        | Op::MakeDevice { grant, .. }
        | Op::AllowDevice { grant, .. }
        | Op::AddLink { grant, .. }
        | Op::RemoveLink { grant, .. }
        | Op::PublishPorts { grant, .. }
        | Op::UnpublishPorts { grant, .. }
        | Op::Release { grant, .. } => Some(*grant),
        Op::BrokerInfo
        | Op::Usage { .. }
        | Op::ListAccounts { .. }
        | Op::ListRules { .. }
        | Op::Metrics
        | Op::CreateGrant(_)
        | Op::ListGrants { .. }
        | Op::FindGrant { .. }
        | Op::Explain(_)
        | Op::ListBridges
        | Op::ExamineNetwork
        | Op::ListRanges
        | Op::ListDeparted { .. }
        | Op::ForgetDeparted { .. }
        | Op::ReportDisk(_)
        | Op::ForgetRange { .. }
        | Op::Legacy(_) => None,
    }
}

/// May somebody be asked to agree to `op`? Then it can be carried out from its beginning a second time.
pub fn can_be_asked(op: &Op) -> bool {
    match op {
        Op::CreateGrant(_)
        | Op::AddLink { .. }
        | Op::PublishPorts { .. }
        | Op::SetLimits { .. }
        | Op::Adopt { .. }
        | Op::CreateCgroup { .. }
        | Op::Usage { .. }
        | Op::ListGrants { .. }
        | Op::ListAccounts { .. }
        | Op::FindGrant { .. }
        | Op::Describe { .. }
        | Op::GetValues { .. }
        | Op::Stat { .. }
        | Op::ListProcesses { .. }
        | Op::ListCgroups { .. }
        | Op::Freeze { .. }
        | Op::Thaw { .. }
        | Op::Kill { .. }
        | Op::Release { .. }
        | Op::RemoveLink { .. }
        | Op::UnpublishPorts { .. } => true,
        Op::BrokerInfo
        | Op::Metrics
        | Op::ListRules { .. }
        | Op::Attach(_)
        | Op::RemoveCgroup { .. }
        | Op::OpenCgroup { .. }
        | Op::MapDirectory(_)
        | Op::MakeDevice { .. }
        | Op::AllowDevice { .. }
        | Op::Explain(_)
        | Op::ListBridges
        | Op::ExamineNetwork
        | Op::ListRanges
        | Op::ListDeparted { .. }
        | Op::ForgetDeparted { .. }
        | Op::ReportDisk(_)
        | Op::ForgetRange { .. }
        | Op::Legacy(_) => false,
    }
}

/// Does `op` only look, so that it may be carried out beside others of the account's that do?
pub fn mode(op: &Op) -> Mode {
    match op {
        Op::Legacy(legacy) => crate::legacy::mode(&legacy.call),
        _ => Mode::Alone,
    }
}

/// What `op` asks for, and about what, in the words of the log.
fn words(engine: &Engine, op: &Op) -> (&'static str, String) {
    let asked = match op {
        Op::BrokerInfo => "broker info",
        Op::Usage { .. } => "usage",
        Op::ListAccounts { .. } => "list accounts",
        Op::ListRules { .. } => "list rules",
        Op::Metrics => "metrics",
        Op::CreateGrant(_) => "create grant",
        Op::ListGrants { .. } => "list grants",
        Op::FindGrant { .. } => "find grant",
        Op::Describe { .. } => "describe",
        Op::Attach(_) => "attach",
        Op::Adopt { .. } => "adopt",
        Op::SetLimits { .. } => "set limits",
        Op::GetValues { .. } => "get values",
        Op::Stat { .. } => "stat",
        Op::ListProcesses { .. } => "list processes",
        Op::Freeze { .. } => "freeze",
        Op::Thaw { .. } => "thaw",
        Op::Kill { .. } => "kill",
        Op::CreateCgroup { .. } => "create cgroup",
        Op::RemoveCgroup { .. } => "remove cgroup",
        Op::ListCgroups { .. } => "list cgroups",
        Op::OpenCgroup { .. } => "open cgroup",
        Op::Release { .. } => "release",
        Op::AddLink { .. } => "add link",
        Op::RemoveLink { .. } => "remove link",
        Op::PublishPorts { .. } => "publish ports",
        Op::UnpublishPorts { .. } => "unpublish ports",
        Op::MapDirectory(_) => "map directory",
        Op::MakeDevice { .. } => "make device",
        Op::AllowDevice { .. } => "allow device",
        Op::Explain(_) => "explain",
        Op::ListBridges => "list bridges",
        Op::ExamineNetwork => "examine network",
        Op::ListRanges => "list ranges",
        Op::ListDeparted { .. } => "list departed",
        Op::ForgetDeparted { .. } => "forget departed",
        Op::ReportDisk(_) => "report disk use",
        Op::ForgetRange { .. } => "forget range",
        Op::Legacy(legacy) => crate::legacy::word(&legacy.call),
    };
    let about = match op {
        Op::CreateGrant(request) => request.name.clone(),
        Op::FindGrant { name, .. } | Op::ForgetRange { name } => name.clone(),
        Op::Legacy(legacy) => crate::legacy::about(&legacy.call),
        _ => grant_of(op).map(|id| id.to_string()).unwrap_or_default(),
    };
    let known = grant_of(op).and_then(|id| engine.registry().get(id));
    (asked, known.map_or(about, |grant| format!("{} of {}", grant.name, grant.account)))
}

/// Carries out `op` for `caller`. Every refusal comes past here, and is said in the log; one that polkit may turn into a yes,
/// when that has been asked.
///
/// # Errors
/// The refusal for the caller.
pub fn perform(engine: &Engine, caller: &Arc<Caller>, op: Op, fds: check::Descriptors) -> Outcome {
    let (words, grant) = (words(engine, &op), grant_of(&op));
    carry_out(engine, caller, op, fds).inspect_err(|refusal| {
        if !asking::is_needed() {
            engine.log_refusal(caller, words.0, About { grant, words: &words.1 }, refusal);
        }
    })
}

/// Says in the log that `op` was refused by those who were asked.
pub fn log_refusal(engine: &Engine, caller: &Caller, op: &Op, refusal: &Refusal) {
    let (asked, about) = words(engine, op);
    engine.log_refusal(caller, asked, About { grant: grant_of(op), words: &about }, refusal);
}

/// Carries out an Scm call, as [`perform`] does what needs nothing that was received.
///
/// # Errors
/// The refusal for the caller.
pub fn perform_exchange(
    engine: &Engine,
    caller: &Arc<Caller>,
    legacy: &Legacy,
    received: Received,
) -> Outcome {
    crate::legacy::perform_exchange(engine, caller, &legacy.call, received).inspect_err(|refusal| {
        let (asked, about) = (crate::legacy::word(&legacy.call), crate::legacy::about(&legacy.call));
        engine.log_refusal(caller, asked, about.as_str(), refusal);
    })
}

fn carry_out(engine: &Engine, caller: &Arc<Caller>, op: Op, fds: check::Descriptors) -> Outcome {
    if let Op::Legacy(legacy) = op {
        return crate::legacy::perform(engine, caller, &legacy, fds);
    }
    nested::must_be_served(caller, &op)?;
    if op != Op::BrokerInfo {
        nested::must_still_be(engine, caller)?;
    }
    let (answer, fds) =
        by_kind(engine, caller, op, fds).map_err(|refusal| nested::refused_inside(caller, refusal))?;
    Ok((nested::translated(engine, caller, answer)?, fds))
}

fn by_kind(engine: &Engine, caller: &Arc<Caller>, op: Op, fds: check::Descriptors) -> Outcome {
    if !takes_descriptors(&op) {
        fds.finish()?;
        return without_descriptors(engine, caller, op);
    }
    match op {
        Op::CreateGrant(request) => {
            inside::must_be_outside(engine, caller, "make a grant")?;
            create::create(engine, caller, &request, fds)
        }
        Op::Attach(request) => manage::attach(engine, caller, &request, fds),
        Op::Adopt { grant, holder } => manage::adopt(engine, caller, grant, holder, fds),
        Op::AddLink { grant, link } => link::add(engine, caller, grant, &link, fds),
        Op::MapDirectory(request) => mount::map_directory(engine, caller, &request, fds),
        other => without_descriptors(engine, caller, other),
    }
}

fn takes_descriptors(op: &Op) -> bool {
    matches!(
        op,
        Op::CreateGrant(_) | Op::Attach(_) | Op::Adopt { .. } | Op::AddLink { .. } | Op::MapDirectory(_)
    )
}

fn without_descriptors(engine: &Engine, caller: &Arc<Caller>, op: Op) -> Outcome {
    match op {
        Op::BrokerInfo => query::broker_info(engine, caller),
        Op::Usage { account } => query::usage(engine, caller, account),
        Op::Metrics => crate::metrics::read(engine, caller),
        Op::ListAccounts { all } => query::list_accounts(engine, caller, all),
        Op::ListRules { all } => query::list_rules(engine, caller, all),
        Op::ListGrants { all, nested } => query::list_grants(engine, caller, all, nested),
        Op::FindGrant { name, account } => query::find_grant(engine, caller, &name, account),
        Op::Describe { grant } => query::describe(engine, caller, grant),
        Op::ListRanges => query::list_ranges(engine, caller),
        Op::ListDeparted { account, to_remove } => query::list_departed(engine, caller, account, to_remove),
        Op::ForgetDeparted { firsts, incomplete } => {
            manage::forget_departed(engine, caller, &firsts, incomplete)
        }
        Op::ReportDisk(report) => manage::report_disk(engine, caller, &report),
        Op::ForgetRange { name } => manage::forget_range(engine, caller, &name),
        Op::SetLimits { grant, limits } => manage::set_limits(engine, caller, grant, &limits),
        Op::GetValues { grant, keys } => query::get_values(engine, caller, grant, &keys),
        Op::Stat { grant } => query::stat(engine, caller, grant),
        Op::ListProcesses { grant } => query::list_processes(engine, caller, grant),
        Op::Freeze { grant } => manage::freeze(engine, caller, grant, true),
        Op::Thaw { grant } => manage::freeze(engine, caller, grant, false),
        Op::Kill { grant } => manage::kill(engine, caller, grant),
        Op::CreateCgroup { grant, path } => manage::create_cgroup(engine, caller, grant, &path),
        Op::RemoveCgroup { grant, path } => manage::remove_cgroup(engine, caller, grant, &path),
        Op::ListCgroups { grant } => query::list_cgroups(engine, caller, grant),
        Op::OpenCgroup { grant, path } => query::open_cgroup(engine, caller, grant, &path),
        Op::MakeDevice { grant, name } => device::make_device(engine, caller, grant, &name),
        Op::Release { grant, kill, force } => release::release(engine, caller, grant, kill, force),
        Op::AllowDevice { grant, name } => device::allow_device(engine, caller, grant, &name),
        Op::RemoveLink { grant, name } => link::remove(engine, caller, grant, &name),
        Op::PublishPorts { grant, name, ports } => link::publish(engine, caller, grant, &name, &ports),
        Op::UnpublishPorts { grant, name, ports } => link::unpublish(engine, caller, grant, &name, &ports),
        Op::Explain(ask) => explain::explain(engine, caller, &ask),
        Op::ListBridges => link::list_bridges(engine, caller),
        Op::ExamineNetwork => link::examine(engine, caller),
        Op::CreateGrant(_)
        | Op::Attach(_)
        | Op::Adopt { .. }
        | Op::AddLink { .. }
        | Op::MapDirectory(_)
        | Op::Legacy(_) => {
            Err(Refusal::new(RefusalCode::InvalidDescriptor, "this operation needs a descriptor"))
        }
    }
}
