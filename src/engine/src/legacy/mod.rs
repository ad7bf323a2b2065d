//! CGManager's interface: its calls, carried out under the rules of `docs/cgmanager.md`.
//!
//! May touch: cgroupfs below the cgroup of whoever asks, as far as the bits there let him, and processes that he may move.
//! One set of rules for all calls; what is here only translates.
//!
//! | module | idea |
//! |---|---|
//! | [`controllers`], [`path`], [`key`] | what the words of a call mean; pure |
//! | [`actor`] | who asks and who it is about, and what the kernel's bits let them |
//! | [`exchange`] | whom the messages of an Scm call name |
//! | [`call`] | hierarchies and cgroups of one call |
//! | [`make`], [`own`], [`procs`], [`values`] | the methods |
//! | [`maker`] | making something as whoever it is for |
//! | [`translate`], [`v2`] | files of v1's on cgroup2; what else is otherwise there |
//! | [`ledger`] | what an account has made |
//! | [`empty`] | cgroups that are removed when they are empty |

mod actor;
mod call;
mod controllers;
mod empty;
mod exchange;
#[cfg(test)]
mod exchange_tests;
mod fault;
mod key;
mod ledger;
mod make;
mod maker;
mod own;
mod path;
mod procs;
#[cfg(test)]
mod tests;
mod translate;
mod v2;
#[cfg(test)]
mod v2_tests;
mod values;

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::AsFd,
    sync::Arc,
};

use cgrant_policy::Request;
use cgrant_sys::Pidfd;
use cgrant_wire::legacy::{MAX_DATAGRAM, MAX_SHOWN, OnSocket};
use cgrant_wire::{Answer, Legacy, LegacyAnswer, LegacyCall, Place, Refusal, RefusalCode, Surface};

use self::{
    actor::Actor,
    call::Call,
    empty::Keeper,
    exchange::{ExchangeSocket, Named},
    fault::Fault,
    path::Wanted,
};
use crate::{
    cgroup::Hierarchies,
    connection::Caller,
    engine::{Engine, Outcome, unwritable},
    ops::check::Descriptors,
    pool::Mode,
    record::JournalError,
    show::Shown,
};

pub use actor::Known;
pub use empty::Wishes;
pub use ledger::Ledger;

/// The rule that refusals name which CGManager does not have.
const RULE: &str = "built-in legacy";

/// What the socket of an Scm call is called when it is missing.
const EXCHANGE: &str = "the exchange";

/// What a call asks for, in the words of the log.
pub fn word(call: &LegacyCall) -> &'static str {
    match call {
        LegacyCall::PidCgroup { .. } => "legacy pid cgroup",
        LegacyCall::Create(_) => "legacy create",
        LegacyCall::Chown { .. } => "legacy chown",
        LegacyCall::Chmod { .. } => "legacy chmod",
        LegacyCall::MovePid { .. } => "legacy move pid",
        LegacyCall::GetValue { .. } => "legacy get value",
        LegacyCall::SetValue { .. } => "legacy set value",
        LegacyCall::Remove { .. } => "legacy remove",
        LegacyCall::Tasks { .. } => "legacy tasks",
        LegacyCall::Children(_) => "legacy children",
        LegacyCall::RemoveOnEmpty(_) => "legacy remove on empty",
        LegacyCall::Prune(_) => "legacy prune",
        LegacyCall::Controllers => "legacy controllers",
        LegacyCall::Keys(_) => "legacy keys",
        LegacyCall::Socket(OnSocket::PassCredentials) => "legacy pass credentials",
        LegacyCall::Socket(OnSocket::Look { .. }) => "legacy look",
        LegacyCall::Socket(OnSocket::ShowTasks { .. }) => "legacy show tasks",
        LegacyCall::Socket(OnSocket::SendRoom { .. } | OnSocket::NoMoreRoom { .. }) => "legacy send room",
    }
}

/// What a call is about, in the words of the log.
pub fn about(call: &LegacyCall) -> String {
    match call {
        LegacyCall::Create(place)
        | LegacyCall::Children(place)
        | LegacyCall::RemoveOnEmpty(place)
        | LegacyCall::Prune(place)
        | LegacyCall::Keys(place)
        | LegacyCall::Chown { place, .. }
        | LegacyCall::Chmod { place, .. }
        | LegacyCall::MovePid { place, .. }
        | LegacyCall::GetValue { place, .. }
        | LegacyCall::SetValue { place, .. }
        | LegacyCall::Remove { place, .. }
        | LegacyCall::Tasks { place, .. } => format!("{}:{}", place.controllers, place.path),
        LegacyCall::PidCgroup { controllers, .. } => controllers.clone(),
        LegacyCall::Controllers | LegacyCall::Socket(_) => String::new(),
    }
}

/// Does a call only look?
pub fn mode(call: &LegacyCall) -> Mode {
    match call {
        LegacyCall::PidCgroup { .. }
        | LegacyCall::GetValue { .. }
        | LegacyCall::Tasks { .. }
        | LegacyCall::Children(_)
        | LegacyCall::Controllers
        | LegacyCall::Keys(_)
        | LegacyCall::Socket(_) => Mode::Beside,
        LegacyCall::Create(_)
        | LegacyCall::Chown { .. }
        | LegacyCall::Chmod { .. }
        | LegacyCall::MovePid { .. }
        | LegacyCall::SetValue { .. }
        | LegacyCall::Remove { .. }
        | LegacyCall::RemoveOnEmpty(_)
        | LegacyCall::Prune(_) => Mode::Alone,
    }
}

/// Carries out a plain call, or something with the socket of an Scm call.
///
/// # Errors
/// The refusal. It names a rule if it is one that CGManager does not have.
pub fn perform(engine: &Engine, caller: &Arc<Caller>, legacy: &Legacy, mut fds: Descriptors) -> Outcome {
    may_call(engine, caller)?;
    let exchange = legacy.exchange.map(|index| fds.take(index, EXCHANGE)).transpose()?;
    fds.finish()?;
    let answer = match (&legacy.call, exchange) {
        (LegacyCall::Socket(wanted), Some(socket)) => {
            act_on(engine, caller, &ExchangeSocket::new(socket)?, wanted)
        }
        (call, None) => plain(engine, caller, call),
        (_, Some(_)) => Err(Fault::Exchange("it is not asked like this").into()),
    };
    answer.map(|answer| (Answer::Legacy(answer), Vec::new()))
}

/// What was taken off the socket of an Scm call.
#[derive(Debug)]
pub struct Received(Result<Vec<Named>, Refusal>);

/// Takes the messages of an Scm call off its socket, however the call will end. Whoever has the same socket may make this wait a
/// while.
pub fn receive(engine: &Engine, caller: &Caller, legacy: &Legacy, mut fds: Descriptors) -> Received {
    let taken = legacy.exchange.ok_or(Refusal::from(Fault::Exchange("it has no socket"))).and_then(|index| {
        let socket = ExchangeSocket::new(fds.take(index, EXCHANGE)?)?;
        fds.finish()?;
        let (shower, count) = (&engine.shower, legacy.call.credentials());
        Ok(socket
            .take(count, &engine.front_uids, |socket, count| shower.take(caller.charged(), socket, count))?)
    });
    Received(taken)
}

/// Carries out an Scm call, whose requestor, and whom or what else it is about, was named by messages on its socket.
///
/// # Errors
/// The refusal.
pub fn perform_exchange(engine: &Engine, caller: &Caller, call: &LegacyCall, received: Received) -> Outcome {
    may_call(engine, caller)?;
    let mut named = received.0?.into_iter();
    let Named { process, uid, gid } = named.next().ok_or(Fault::Gone)?;
    let proxy = peer(engine, caller)?;
    let process = process.ok_or(Fault::Gone)?;
    let requestor = Actor::new(engine.tree.proc(), process, uid, gid, Vec::new())?;
    if !proxy.answers_for(&requestor)? {
        return Err(Fault::Unanswered { proxy: proxy.uid, requestor: requestor.uid }.into());
    }
    let hierarchies = engine.tree.host();
    let may_have = |name: &str| may_have(engine, caller, name);
    let actors =
        Call { hierarchies, requestor: &requestor, proxy: &proxy, plain: false, may_have: &may_have };
    let answer = carry_out(engine, caller, &actors, call, named.next())?;
    Ok((Answer::Legacy(answer), Vec::new()))
}

/// Refuses callers that came by another listener, and those that policy does not let.
fn may_call(engine: &Engine, caller: &Caller) -> Result<(), Refusal> {
    if caller.surface != Surface::Legacy {
        return Err(Refusal::new(
            RefusalCode::Unsupported,
            "calls of CGManager's interface come by its own socket",
        )
        .rule(RULE));
    }
    engine.authorize_silently(caller, &Request::Legacy)
}

/// Something with the socket of an Scm call.
fn act_on(
    engine: &Engine,
    caller: &Caller,
    socket: &ExchangeSocket,
    wanted: &OnSocket,
) -> Result<LegacyAnswer, Refusal> {
    let (shower, account, socket) = (&engine.shower, caller.charged(), socket.socket()?.as_fd());
    let done = |()| LegacyAnswer::Done;
    let answer = match wanted {
        OnSocket::PassCredentials => shower.pass_credentials(account, socket).map(done),
        OnSocket::Look { behind } => shower.look(account, socket, *behind).map(LegacyAnswer::Existed),
        OnSocket::ShowTasks { pids, known } if pids.len() <= MAX_SHOWN => {
            let shown = shower.show(account, socket, pids, *known);
            shown.map(|Shown { count, known }| LegacyAnswer::Shown { count, known })
        }
        OnSocket::SendRoom { bytes } if *bytes <= MAX_DATAGRAM => {
            shower.make_room(account, socket, *bytes).map(done)
        }
        OnSocket::NoMoreRoom { bytes } => shower.no_more_room(account, socket, *bytes).map(done),
        OnSocket::ShowTasks { .. } | OnSocket::SendRoom { .. } => {
            return Err(Fault::Exchange("it is more than a part of a result").into());
        }
    };
    Ok(answer.map_err(Fault::Unshown)?)
}

/// A call whose requestor is the connection's peer.
fn plain(engine: &Engine, caller: &Caller, call: &LegacyCall) -> Result<LegacyAnswer, Refusal> {
    let hierarchies = engine.tree.host();
    if matches!(call, LegacyCall::Controllers) {
        return Ok(LegacyAnswer::Names(controllers(hierarchies)));
    }
    let requestor = peer(engine, caller)?;
    let may_have = |name: &str| may_have(engine, caller, name);
    let actors =
        Call { hierarchies, requestor: &requestor, proxy: &requestor, plain: true, may_have: &may_have };
    carry_out(engine, caller, &actors, call, None)
}

/// The connection's peer.
fn peer<'e>(engine: &'e Engine, caller: &'e Caller) -> Result<Actor<'e>, Fault> {
    let process = caller.process.as_ref().ok_or(Fault::Gone)?;
    let (ids, groups) = ((caller.uid.0, caller.gid.0), &caller.groups);
    Actor::of_peer(engine.tree.proc(), process, &caller.known, ids, groups)
}

/// What the host's hierarchies are called, sorted.
fn controllers(hierarchies: &Hierarchies) -> Vec<String> {
    let mut names: Vec<String> =
        controllers::known(hierarchies).iter().filter_map(|(names, _)| names.listed()).collect();
    names.sort_unstable();
    names
}

fn carry_out(
    engine: &Engine,
    caller: &Caller,
    actors: &Call<'_>,
    call: &LegacyCall,
    second: Option<Named>,
) -> Result<LegacyAnswer, Refusal> {
    let done = |_| LegacyAnswer::Done;
    let answer = match call {
        LegacyCall::GetValue { place, key } => {
            LegacyAnswer::Text(actors.value(actors.one(&place.controllers)?, &place.path, key)?)
        }
        LegacyCall::SetValue { place, key, value } => {
            actors.set_value(actors.one(&place.controllers)?, &place.path, key, value).map(done)?
        }
        LegacyCall::Children(place) => {
            LegacyAnswer::Names(actors.children(actors.one(&place.controllers)?, &place.path)?)
        }
        LegacyCall::Keys(place) => {
            LegacyAnswer::Keys(actors.keys(actors.one(&place.controllers)?, &place.path)?)
        }
        LegacyCall::Tasks { place, recursive } => {
            let tasks = tasks(actors, place, *recursive)?;
            // What an Scm call has found is shown by the kernel, which translates it.
            let told = if actors.plain { actors.requestor.as_it_numbers(tasks)? } else { Some(tasks) };
            told.map_or(LegacyAnswer::OtherNamespace, LegacyAnswer::Tasks)
        }
        LegacyCall::Create(place) => LegacyAnswer::Existed(create(engine, caller, actors, place)?),
        LegacyCall::Remove { place, recursive } => {
            let wanted = Wanted::parse(&place.path)?;
            let removed =
                actors.each(&place.controllers, |hierarchy| actors.remove(hierarchy, &wanted, *recursive))?;
            LegacyAnswer::Existed(removed.contains(&true))
        }
        LegacyCall::Chmod { place, file, mode } => {
            let wanted = Wanted::parse(&place.path)?;
            actors
                .each(&place.controllers, |hierarchy| actors.chmod(hierarchy, &wanted, file, *mode))
                .map(|_| LegacyAnswer::Done)?
        }
        LegacyCall::Chown { place, ids } => return chown(engine, actors, place, *ids, second),
        LegacyCall::PidCgroup { controllers, absolute, pid } => {
            let hierarchy = actors.one(controllers)?;
            let Some(victim) = victim(engine, actors, controllers, *pid, second)? else {
                return Ok(LegacyAnswer::OtherNamespace);
            };
            LegacyAnswer::Text(actors.pid_cgroup(hierarchy, &victim, *absolute)?)
        }
        LegacyCall::MovePid { place, absolute, pid } => {
            let Some(victim) = victim(engine, actors, &place.controllers, *pid, second)? else {
                return Ok(LegacyAnswer::OtherNamespace);
            };
            move_process(actors, place, &victim, *absolute).map(done)?
        }
        LegacyCall::RemoveOnEmpty(place) => {
            let (keeper, account) = (keeper(engine), caller.charged());
            let wanted = Wanted::parse(&place.path)?;
            let wish = |hierarchy| actors.remove_on_empty(&keeper, account, hierarchy, &wanted);
            let controllers = actors.without_unknown(&place.controllers);
            actors.each(&controllers, wish).map(|_| LegacyAnswer::Done)?
        }
        LegacyCall::Prune(place) => prune(engine, caller, actors, place).map(done)?,
        LegacyCall::Controllers | LegacyCall::Socket(_) => {
            return Err(Fault::Exchange("it is not asked like this").into());
        }
    };
    Ok(answer)
}

/// `GetTasks` has one hierarchy; `GetTasksRecursive` several, of which it gives all tasks together. Where a list has no such
/// cgroup, or no such controller, it has no tasks.
fn tasks(actors: &Call<'_>, place: &Place, recursive: bool) -> Result<Vec<u32>, Fault> {
    if !recursive {
        return actors.tasks(actors.one(&place.controllers)?, &place.path, false);
    }
    let is_list = !controllers::is_one(&place.controllers);
    let found = actors.each(&actors.without_unknown(&place.controllers), |hierarchy| {
        match actors.tasks(hierarchy, &place.path, true) {
            Err(Fault::NoCgroup) if is_list => Ok(Vec::new()),
            other => other,
        }
    })?;
    let mut tasks = found.concat();
    tasks.sort_unstable();
    tasks.dedup();
    Ok(tasks)
}

/// Makes a cgroup in each hierarchy of a list; was it there in any? No path at all is nothing to make, wherever that be.
///
/// An attacker wants to fill the kernel's memory with cgroups: each one is judged by the account's quotas before it is made.
fn create(engine: &Engine, caller: &Caller, actors: &Call<'_>, place: &Place) -> Result<bool, Refusal> {
    if place.path.is_empty() {
        return Ok(false);
    }
    let wanted = Wanted::parse(&place.path)?;
    let account = caller.charged();
    let (refused, made) = (Cell::new(None), RefCell::new(Vec::new()));
    let existed = actors.each(&place.controllers, |hierarchy| {
        let above = actors.requestor.cgroup(hierarchy)?;
        let more = |depth: usize| {
            let names = above.iter().chain(&wanted.names).take(depth).cloned().collect();
            let noted = || {
                judge_cgroup(engine, caller, depth)?;
                engine.ledger.note(account, &hierarchy.name, names).map_err(unnoted)?;
                made.borrow_mut().push(depth);
                Ok(())
            };
            noted().map_err(|refusal| {
                refused.set(Some(refusal));
                Fault::Quota
            })
        };
        let existed = actors.create(hierarchy, &wanted, &place.controllers, &more);
        for depth in made.take() {
            let names: Vec<String> = above.iter().chain(&wanted.names).take(depth).cloned().collect();
            keeper(engine).inherit(account, hierarchy, &names);
        }
        existed
    });
    match (existed, refused.take()) {
        (Err(Fault::Quota), Some(refusal)) => Err(refusal),
        (existed, _) => Ok(existed?.contains(&true)),
    }
}

/// Prunes in every hierarchy of a list. What fails in one of several is no error, unless it was refused in all.
fn prune(engine: &Engine, caller: &Caller, actors: &Call<'_>, place: &Place) -> Result<(), Fault> {
    let (keeper, account) = (keeper(engine), caller.charged());
    let wanted = Wanted::parse(&place.path)?;
    let is_single = actors.one(&place.controllers).is_ok();
    let prune = |hierarchy| match actors.prune(&keeper, account, hierarchy, &wanted) {
        Err(fault) if is_single || fault.is_passed_over() => Err(fault),
        _ => Ok(()),
    };
    actors.each(&actors.without_unknown(&place.controllers), prune).map(|_| ())
}

/// What cgroups that are to be removed when they are empty are looked after with.
fn keeper(engine: &Engine) -> Keeper<'_> {
    let (hierarchies, boot_id) = (engine.tree.host(), engine.boot_id.as_str());
    Keeper { wishes: &engine.wishes, watches: &engine.watches, hierarchies, boot_id }
}

/// Goes on with cgroups that were to be removed when they are empty before the broker was started. Before anybody is served.
///
/// # Errors
/// If the record of them can't be listed.
pub fn take_over(engine: &Engine) -> io::Result<()> {
    keeper(engine).take_over()
}

/// Something has happened to a cgroup that is to be removed when it is empty. Runs on the pool, in the account's order.
pub fn look(engine: &Engine, wish: u64) {
    keeper(engine).look(wish);
}

/// Asks policy whether the caller may have something of a controller.
fn may_have(engine: &Engine, caller: &Caller, name: &str) -> Result<(), Fault> {
    engine
        .judge(caller, &Request::LegacyController { name })
        .map_err(|refusal| Fault::Barred(Box::new(refusal)))
}

/// Asks policy for one cgroup more. What is gone of those that were made before does not count.
fn judge_cgroup(engine: &Engine, caller: &Caller, depth: usize) -> Result<(), Refusal> {
    let (request, account) = (Request::LegacyCgroup { depth }, caller.charged());
    if !engine.ledger.is_due(account) && engine.judge(caller, &request).is_ok() {
        return Ok(());
    }
    let is_there = |name: &str, names: &[String]| is_there(engine.tree.host(), name, names);
    engine.ledger.sweep(account, is_there).map_err(unnoted)?;
    engine.judge(caller, &request)
}

/// Is a cgroup that was made still there?
///
/// One that can't be opened for another reason is: an attacker wants its cgroups not counted, and has descriptors run out just then.
fn is_there(hierarchies: &Hierarchies, name: &str, names: &[String]) -> bool {
    let hierarchy = hierarchies.all().find(|hierarchy| hierarchy.name == name);
    hierarchy.is_some_and(|hierarchy| !matches!(call::open(hierarchy, names), Err(Fault::NoCgroup)))
}

/// The refusal for a note of a cgroup that can't be written.
fn unnoted(source: io::Error) -> Refusal {
    unwritable(&JournalError::Io { file: "of cgroups that were made".to_owned(), source })
}

/// Gives a cgroup away: to the ids of the second credential, or those of a plain call, which are the host's, or those of the
/// caller's user namespace as its maps have them.
fn chown(
    engine: &Engine,
    actors: &Call<'_>,
    place: &Place,
    ids: Option<(i32, i32)>,
    second: Option<Named>,
) -> Result<LegacyAnswer, Refusal> {
    let wanted = Wanted::parse(&place.path)?;
    let ids = match (second, ids) {
        (Some(Named { uid, gid, .. }), _) if !actors.plain => (uid, gid),
        (None, Some((uid, gid))) if actors.plain => {
            let ids = (uid.cast_unsigned(), gid.cast_unsigned());
            let namespace = actors.requestor.user_namespace()?.id().map_err(|_| Fault::Gone)?;
            let meant = if namespace == engine.own_userns {
                Some(ids)
            } else {
                actors.requestor.ids_outside(ids.0, ids.1)?
            };
            let Some(ids) = meant else { return Ok(LegacyAnswer::OtherNamespace) };
            ids
        }
        _ => return Err(Fault::Denied.into()),
    };
    actors.each(&place.controllers, |hierarchy| actors.chown(hierarchy, &wanted, ids))?;
    Ok(LegacyAnswer::Done)
}

/// Moves a process in every hierarchy of a list; what fails in one is the answer when all were tried. The hierarchy that
/// is never handed over does not count, if there are others.
fn move_process(actors: &Call<'_>, place: &Place, victim: &Actor<'_>, absolute: bool) -> Result<(), Fault> {
    let wanted = Wanted::parse(&place.path)?;
    let mut failed = None;
    let tried = actors.each(&place.controllers, |hierarchy| {
        match actors.move_process(hierarchy, &wanted, victim, absolute) {
            Err(fault @ Fault::Devices) => Err(fault),
            Err(fault) => {
                failed = Some(fault);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    });
    match failed {
        Some(fault) => Err(fault),
        None => tried.map(|_| ()),
    }
}

/// The process that a call is about: that of the second credential, whose other ids mean nothing; or that of a number in a plain
/// call, as the caller numbers processes. `None` if the caller's pid namespace is not ours, and the number leads to nobody there.
///
/// An attacker wants a number to mean another process than it named: there is no way to tell with numbers, so everything
/// that counts is asked of the process that the number has now, under its pidfd. What it may do with that one is asked as of everybody.
fn victim<'e>(
    engine: &'e Engine,
    actors: &Call<'_>,
    controllers: &str,
    pid: Option<i32>,
    second: Option<Named>,
) -> Result<Option<Actor<'e>>, Refusal> {
    let process = match second {
        Some(named) if !actors.plain => named.process.ok_or(Fault::Gone)?,
        None if actors.plain => {
            let number = pid.and_then(|pid| u32::try_from(pid).ok());
            if actors.requestor.shares_pid_namespace()? {
                Pidfd::open(number.ok_or(Fault::Gone)?).map_err(|_| Fault::Gone)?
            } else {
                let among = actors.own_processes(controllers);
                let find = |number| actors.requestor.process_that_it_calls(number, among);
                let Some(process) = number.map(find).transpose()?.flatten() else { return Ok(None) };
                process
            }
        }
        _ => return Err(Fault::Gone.into()),
    };
    Ok(Some(Actor::of_process(engine.tree.proc(), process)?))
}
