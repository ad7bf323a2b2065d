//! Asking polkit: what an operation is parked for until somebody has agreed to it, or has not.
//!
//! An operation that policy says "ask" to ends before it has any effect, and leaves here what it needs to be carried out from
//! its beginning when there is a yes: everything is checked and judged anew, with the consent. Nobody waits meanwhile: neither
//! the account's queue nor a thread. Only the bus front speaks with polkit; what any other says of a question is
//! a breach of the protocol.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cgrant_policy::{Action, HostPort, HostUid, NewLink, Request, Verb, Verdict};
use cgrant_wire::{Consent, FromEngine, Question, QuestionId, Refusal, Subject, boot::FrontKind};

use crate::{
    connection::Caller,
    engine::{Engine, owner, verb},
    watch::Target,
};

/// Most questions at once for one account: a person answers one after the other.
const MAX_PER_ACCOUNT: usize = 4;
/// Most questions at once.
const MAX_QUESTIONS: usize = 256;
/// Most questions for one request.
pub const MAX_PER_REQUEST: usize = 4;
/// How long a person may take.
const PERSONS_PATIENCE: Duration = Duration::from_secs(300);
/// How long polkit may take if nobody is asked. Rules of the administrator's may run programs, for 10 seconds each.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest value of a detail, in bytes. Nothing is cut: who agrees has seen all of it.
const MAX_DETAIL: usize = 4096;

/// What a consent is to: it counts for this and for no other thing, also if the request is looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matter {
    /// The right.
    pub action: Action,
    /// What is to be done, as the details say it: who agrees to a look has not agreed to a change.
    request: &'static str,
    /// Whose grant or usage.
    owner: HostUid,
    /// Which file, where it is about one.
    key: Option<String>,
}

impl Matter {
    fn new(action: Action, caller: &Caller, request: &Request<'_>) -> Self {
        let key = match request {
            Request::ReadRaw { key, .. } | Request::WriteRaw { key, .. } => Some(key.as_str().to_owned()),
            _ => None,
        };
        Self { action, request: verb(request), owner: owner(caller, request), key }
    }

    /// May the request, which is `self` but for the action, be carried out with these?
    fn of(action: Action, caller: &Caller, request: &Request<'_>, agreed: &[Self]) -> bool {
        agreed.contains(&Self::new(action, caller, request))
    }
}

/// What an operation needs somebody's consent for.
#[derive(Debug)]
pub struct Needed {
    /// To what.
    pub matter: Matter,
    /// What rules can decide by.
    details: Vec<(String, String)>,
}

#[derive(Default)]
struct Turn {
    agreed: Vec<Matter>,
    needed: Option<Needed>,
}

thread_local! {
    /// What was agreed to for the operation of this thread, and what it lacks; `None` outside of those that can be parked.
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// Ends the turn, however the operation ended.
struct InTurn;

impl Drop for InTurn {
    fn drop(&mut self) {
        TURN.set(None);
    }
}

/// Runs an operation that can be parked, with what was agreed to for it. If it was refused for want of a consent, which.
pub fn turn<T>(agreed: &[Matter], operation: impl FnOnce() -> T) -> (T, Option<Needed>) {
    TURN.set(Some(Turn { agreed: agreed.to_vec(), needed: None }));
    let in_turn = InTurn;
    let outcome = operation();
    let needed = TURN.with_borrow_mut(|turn| turn.as_mut().and_then(|turn| turn.needed.take()));
    drop(in_turn);
    (outcome, needed)
}

/// What policy says: to a caller inside a grant, about whom nobody is asked, yes or no ([`Verdict::unasked`]).
pub fn settled(caller: &Caller, verdict: Verdict) -> Verdict {
    if caller.nested.is_some() { verdict.unasked() } else { verdict }
}

/// The actions that were agreed to, as far as they are for this request of the operation under way. None for a caller inside
/// a grant.
pub fn consents(caller: &Caller, request: &Request<'_>) -> Vec<Action> {
    if caller.nested.is_some() {
        return Vec::new();
    }
    TURN.with_borrow(|turn| {
        let agreed = turn.as_ref().map_or(&[][..], |turn| &turn.agreed);
        Action::ALL.into_iter().filter(|action| Matter::of(*action, caller, request, agreed)).collect()
    })
}

/// The operation under way lacks a consent. Nobody is asked about more than can be shown: that is refused as without polkit.
pub fn needs(action: Action, caller: &Caller, about: &str, request: &Request<'_>, reason: &str) {
    TURN.with_borrow_mut(|turn| {
        if let Some(turn) = turn {
            let matter = Matter::new(action, caller, request);
            turn.needed =
                details(action, caller, about, request, reason).map(|details| Needed { matter, details });
        }
    });
}

/// Has the operation under way been refused for want of a consent?
pub fn is_needed() -> bool {
    TURN.with_borrow(|turn| turn.as_ref().is_some_and(|turn| turn.needed.is_some()))
}

/// What rules of the administrator's can decide by, and dialogs show; `None` if one of them is too long for that.
///
/// An attacker wants words of its own in a dialog that asks for a password, or a yes to more than the dialog said. Names, keys
/// and values here have passed the constructors of their types, which let through no control characters; they are
/// said whole or not at all.
fn details(
    action: Action,
    caller: &Caller,
    about: &str,
    request: &Request<'_>,
    reason: &str,
) -> Option<Vec<(String, String)>> {
    let account = match request {
        Request::ListAll | Request::ListAccounts => "all".to_owned(),
        _ => owner(caller, request).0.to_string(),
    };
    let mut rows = asked_for(request);
    let all = rows.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join("; ");
    let asks = if all.is_empty() { verb(request).to_owned() } else { format!("{}: {all}", verb(request)) };
    rows.extend([
        ("request", verb(request).to_owned()),
        ("caller", caller.uid.0.to_string()),
        ("account", account),
        ("reason", reason.to_owned()),
        ("asks", asks),
    ]);
    // The caller's own agent shows these: what others call their grants is not to be learned from it.
    if action != Action::ManageOthers && !about.is_empty() {
        rows.push(("name", about.to_owned()));
    }
    rows.into_iter().map(|(key, value)| Some((key.to_owned(), plain(&value)?))).collect()
}

/// All that a request would have, within the quotas or beyond.
fn asked_for(request: &Request<'_>) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let mut row = |key, value: String| {
        if !value.is_empty() {
            rows.push((key, value));
        }
    };
    let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(" ");
    match request {
        Request::ReadRaw { key, .. } => row("key", key.as_str().to_owned()),
        Request::WriteRaw { key, value, .. } => {
            row("key", key.as_str().to_owned());
            row("value", (*value).to_owned());
        }
        _ => (),
    }
    let (limits, links) = match request {
        Request::CreateGrant(grant) => {
            row("persistent", grant.persistent.to_string());
            row("ids", grant.ids.unwrap_or(0).to_string());
            (grant.limits, grant.links)
        }
        Request::SetLimits { limits, .. } => (*limits, &[][..]),
        Request::AddLink { link, .. } => (&[][..], std::slice::from_ref(link)),
        Request::Publish { ports, .. } => {
            row("ports", list(&mut ports.iter().map(place)));
            (&[][..], &[][..])
        }
        Request::UseGrant { verb: Verb::Persist, .. } => {
            row("persistent", true.to_string());
            (&[][..], &[][..])
        }
        _ => (&[][..], &[][..]),
    };
    row("limits", list(&mut limits.iter().map(|(key, value)| format!("{key}={value}"))));
    row("bridges", list(&mut links.iter().map(|link| link.bridge.to_owned())));
    let addresses = links.iter().flat_map(|link| {
        let four = link.address4.map(|address| address.to_string());
        four.into_iter().chain(link.address6.map(|address| address.to_string()))
    });
    row("addresses", list(&mut { addresses }));
    row("vlans", list(&mut links.iter().filter(|link| link.vlan != 0).map(|link| link.vlan.to_string())));
    let rates = |rate: fn(&NewLink<'_>) -> u64| {
        list(&mut links.iter().map(rate).filter(|rate| *rate != 0).map(|rate| rate.to_string()))
    };
    row("upload", rates(|link| link.upload));
    row("download", rates(|link| link.download));
    row("ports", list(&mut links.iter().flat_map(|link| link.ports).map(place)));
    rows
}

/// A port of the host's: `80` on all addresses, `192.0.2.1:80` on one.
fn place(port: &HostPort) -> String {
    let on = |address| SocketAddr::new(address, port.port).to_string();
    port.address.map_or_else(|| port.port.to_string(), on)
}

/// A text of characters that show as themselves wherever they are shown, if it is not too long.
fn plain(text: &str) -> Option<String> {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    // `$(` begins a reference to another detail in polkit's messages.
    (text.len() <= MAX_DETAIL).then(|| text.chars().map(shown).collect::<String>().replace('$', "?"))
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Polkit, or why it did not, said.
    Said(Consent),
    /// Nobody said anything for as long as that is waited for.
    TimedOut,
    /// Whoever asked is gone.
    Gone,
    /// Too many questions of the account, or at all, wait already.
    TooMany,
}

/// Goes on with what was parked. Called once, by whoever may not wait.
pub type Resume = Box<dyn FnOnce(Ending) + Send>;

struct Open {
    account: HostUid,
    caller: std::sync::Arc<Caller>,
    watch: Option<u64>,
    resume: Resume,
}

#[derive(Default)]
struct Table {
    last: u64,
    open: HashMap<QuestionId, Open>,
}

/// The questions that wait for an answer.
#[derive(Default)]
pub struct Questions {
    table: Mutex<Table>,
    polkit: AtomicBool,
}

impl Questions {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Can polkit be asked?
    pub fn is_polkit_there(&self) -> bool {
        self.polkit.load(Ordering::Relaxed)
    }

    /// A number for a question of the account's, if it may have another one.
    fn enter(&self, open: Open) -> Result<QuestionId, Open> {
        let mut table = self.table();
        let of_account = table.open.values().filter(|other| other.account == open.account).count();
        if of_account >= MAX_PER_ACCOUNT || table.open.len() >= MAX_QUESTIONS {
            return Err(open);
        }
        table.last += 1;
        let id = QuestionId(table.last);
        table.open.insert(id, open);
        Ok(id)
    }

    fn take(&self, id: QuestionId) -> Option<Open> {
        self.table().open.remove(&id)
    }
}

impl Engine {
    /// Puts a question; `resume` is called with what came of it, now or later.
    ///
    /// An attacker wants a consent that was given to another process, or to keep others from getting theirs. The
    /// subject is the process that connected, seen alive under the pidfd that the kernel gave at accept, or the
    /// bus's own name for it. Few questions of an account wait at once; each has its time.
    pub fn ask(&self, caller: &std::sync::Arc<Caller>, needed: Needed, interactive: bool, resume: Resume) {
        let unavailable = |why: &str| Ending::Said(Consent::Unavailable(why.to_owned()));
        if !self.questions.is_polkit_there() {
            return resume(unavailable("polkit is not there"));
        }
        let (subject, process) = match subject(caller) {
            Ok(subject) => subject,
            Err(why) => return resume(unavailable(why)),
        };
        let open =
            Open { account: caller.charged(), caller: std::sync::Arc::clone(caller), watch: None, resume };
        let id = match self.questions.enter(open) {
            Ok(id) => id,
            Err(open) => return (open.resume)(Ending::TooMany),
        };
        let patience = if interactive { PERSONS_PATIENCE } else { PATIENCE };
        match self.watches.after(patience, |watch| Target::Question(id, watch)) {
            Ok(watch) => {
                // Answered already it can't be: it has not been sent. But whoever asks or would be asked may be gone.
                let is_open = match self.questions.table().open.get_mut(&id) {
                    Some(open) => {
                        open.watch = Some(watch);
                        true
                    }
                    None => false,
                };
                if !is_open {
                    return self.watches.remove(&[watch]);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "no timer for a question to polkit");
                return self.end(id, unavailable("the broker has no timer for it"));
            }
        }
        if self.may_tell(Some(caller.charged())) {
            tracing::info!(
                target: "decision", uid = caller.uid.0, action = needed.matter.action.id(), interactive,
                "polkit is asked for uid {}", caller.uid.0
            );
        }
        let action = needed.matter.action.id().to_owned();
        let question = Question { id, action, details: needed.details, subject, interactive };
        self.send(FrontKind::Bus, &FromEngine::Ask(question), process.into_iter().collect());
        // Looked at last, so that what happens at this moment is noticed by one side or the other.
        if caller.ended().is_some() {
            self.withdraw(caller);
        } else if !self.questions.is_polkit_there() {
            self.end(id, unavailable("polkit is not there"));
        }
    }

    fn end(&self, id: QuestionId, ending: Ending) {
        let Some(open) = self.questions.take(id) else { return };
        self.watches.remove(open.watch.as_slice());
        (open.resume)(ending);
    }

    /// Takes an answer. False from whoever was not asked: that front is not ours any more.
    pub fn consent(&self, front: FrontKind, id: QuestionId, consent: Consent) -> bool {
        if front != FrontKind::Bus {
            tracing::error!(?front, "a front that was not asked answers for polkit; it is cut off");
            return false;
        }
        let given_out = (1..=self.questions.table().last).contains(&id.0);
        if !given_out {
            tracing::error!(
                question = id.0,
                "the bus front answers a question that was not put; it is cut off"
            );
            return false;
        }
        // One that was withdrawn may have been answered at that moment.
        let caller = self.questions.table().open.get(&id).map(|open| std::sync::Arc::clone(&open.caller));
        let Some(caller) = caller else { return true };
        // Polkit looked at the process by its number, too. If it lives now, the number was its own all the time.
        let ending = match subject(&caller) {
            Err(why) if consent == Consent::Yes => Ending::Said(Consent::Unavailable(why.to_owned())),
            _ => Ending::Said(consent),
        };
        self.end(id, ending);
        true
    }

    /// The time of a question is over.
    pub fn question_over(&self, id: QuestionId, watch: u64) {
        self.watches.remove(&[watch]);
        if self.questions.table().open.contains_key(&id) {
            self.send(FrontKind::Bus, &FromEngine::Withdraw(id), Vec::new());
        }
        self.end(id, Ending::TimedOut);
    }

    /// The caller's connection has ended: nobody wants its answers any more.
    pub fn withdraw(&self, caller: &Caller) {
        let of_caller: Vec<QuestionId> = {
            let table = self.questions.table();
            let its = table.open.iter().filter(|(_, open)| open.caller.connection == caller.connection);
            its.map(|(id, _)| *id).collect()
        };
        for id in of_caller {
            self.send(FrontKind::Bus, &FromEngine::Withdraw(id), Vec::new());
            self.end(id, Ending::Gone);
        }
    }

    /// Polkit can be asked, or can't any more. False from whoever can't know.
    pub fn polkit_is(&self, front: FrontKind, there: bool) -> bool {
        if front != FrontKind::Bus {
            tracing::error!(?front, "a front that has no bus tells of polkit; it is cut off");
            return false;
        }
        if self.questions.polkit.swap(there, Ordering::Relaxed) != there {
            match there {
                true => tracing::info!("polkit is there: it is asked where policy says \"ask\""),
                false => tracing::warn!("polkit is gone: where policy says \"ask\" the answer is no"),
            }
        }
        true
    }

    /// The bus front has ended, and its questions with it.
    pub fn nobody_asks(&self) {
        self.questions.polkit.store(false, Ordering::Relaxed);
        let open = std::mem::take(&mut self.questions.table().open);
        for open in open.into_values() {
            self.watches.remove(open.watch.as_slice());
            (open.resume)(Ending::Said(Consent::Unavailable(
                "the connection to the bus was lost".to_owned(),
            )));
        }
    }
}

/// Whom polkit is asked about, and the process if it is one; it lives.
fn subject(caller: &Caller) -> Result<(Subject, Option<OwnedFd>), &'static str> {
    if let Some(name) = &caller.bus_name {
        return Ok((Subject::BusName(name.clone()), None));
    }
    known_to_polkit(caller.uid)?;
    let gone = "the process that made the connection has ended";
    let process =
        caller.process.as_ref().ok_or("the kernel does not say which process made the connection")?;
    let pid = process.pid().map_err(|_| gone)?;
    // Says so of the process only that lives.
    let start_time = process.start_time().map_err(|_| gone)?;
    let copy = process.try_clone().map_err(|_| "the broker has no descriptors left")?;
    Ok((Subject::Process { pid, start_time, uid: caller.uid.0 }, Some(copy.into())))
}

/// Polkit has uids signed. One that it can't say would be shown, and looked at, as another.
fn known_to_polkit(uid: HostUid) -> Result<(), &'static str> {
    i32::try_from(uid.0).map(drop).map_err(|_| "polkit knows no uids of this size")
}

/// What the caller is told whose request polkit did not agree to. `refusal` is what policy alone would have said; `hidden` says
/// that it hides whether there is anything to agree to.
pub fn refused(refusal: Refusal, ending: &Ending, action: Action, hidden: bool) -> Refusal {
    let hint = match ending {
        Ending::Said(Consent::Unavailable(why)) => {
            format!("an administrator could agree to it, but polkit can't be asked: {why}")
        }
        Ending::Said(Consent::NeedsPerson) => {
            "an administrator can agree to it: ask again and let a person be asked (with `cgrant` from a terminal, on \
             D-Bus with the flag ALLOW_INTERACTIVE_AUTHORIZATION), where a polkit agent runs"
                .to_owned()
        }
        Ending::Said(Consent::Dismissed) => {
            "polkit asked somebody, who put the question away: it is open still, and can be asked again".to_owned()
        }
        Ending::Said(_) => "polkit was asked, and said no".to_owned(),
        Ending::TimedOut => "polkit was asked, and nobody answered in time".to_owned(),
        Ending::Gone => "the connection has ended".to_owned(),
        Ending::TooMany => {
            "polkit is being asked about other requests of yours; try again when those are answered"
                .to_owned()
        }
    };
    // What is not to be known of is not known of by its hint, either.
    if hidden {
        return refusal;
    }
    let refusal = match ending {
        Ending::Said(Consent::NeedsPerson) => refusal.action(action.id()),
        _ => refusal,
    };
    let hint = match &refusal.hint {
        Some(own) => format!("{own}; {hint}"),
        None => hint,
    };
    refusal.hint(hint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cgrant_wire::RefusalCode;

    use super::*;

    #[test]
    fn details_show_nothing_but_what_they_are() {
        assert_eq!(plain("a b\n\u{202e}c$(d)").unwrap(), "a b??c?(d)");
        assert_eq!(plain(&"x".repeat(MAX_DETAIL)).unwrap().len(), MAX_DETAIL);
        assert_eq!(plain(&"x".repeat(MAX_DETAIL + 1)), None, "what is not shown is not agreed to");
    }

    #[test]
    fn polkit_is_not_asked_about_uids_that_it_can_not_say() {
        assert!(known_to_polkit(HostUid(0x7fff_ffff)).is_ok());
        assert!(known_to_polkit(HostUid(0x8000_0000)).is_err());
    }

    #[test]
    fn ports_are_said_with_their_addresses() {
        let text = |address: Option<&str>| {
            place(&HostPort { address: address.map(|address| address.parse().unwrap()), port: 80 })
        };
        assert_eq!(text(None), "80");
        assert_eq!(text(Some("192.0.2.1")), "192.0.2.1:80");
        assert_eq!(text(Some("::1")), "[::1]:80");
    }

    #[test]
    fn a_refusal_that_hides_hides_that_somebody_was_asked() {
        let hidden = Refusal::new(RefusalCode::NoSuchGrant, "there is no grant 7 of yours");
        let needs_person = || Ending::Said(Consent::NeedsPerson);
        for ending in [Ending::Said(Consent::No), Ending::TimedOut, Ending::TooMany, needs_person()] {
            assert_eq!(refused(hidden.clone(), &ending, Action::ManageOthers, true), hidden);
        }
        let quota = || Refusal::new(RefusalCode::QuotaExceeded, "too many").hint("release some");
        let told = refused(quota(), &Ending::Said(Consent::No), Action::ExceedQuota, false);
        assert_eq!(told.hint.unwrap(), "release some; polkit was asked, and said no");
        assert_eq!(told.met, None, "a person was asked");
        let told = refused(quota(), &Ending::Said(Consent::Dismissed), Action::ExceedQuota, false);
        assert!(told.hint.unwrap().contains("put the question away"));
        assert_eq!(told.met, None, "a person was asked");
        let told = refused(quota(), &needs_person(), Action::ExceedQuota, false);
        assert_eq!(told.met.unwrap().action.as_deref(), Some("org.cgrant.broker1.exceed-quota"));
    }
}
