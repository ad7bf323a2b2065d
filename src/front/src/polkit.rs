//! Asking polkit over the bus that is served: what the engine wants to know, and polkit's answer, with nothing decided here.
//!
//! Each question is a task of its own. It ends with polkit's answer, with the end of the bus, or when the engine
//! withdraws it; how long it may take is the engine's to say.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

use cgrant_wire::{Consent, Question, QuestionId, Subject};
use tokio::{sync::oneshot, task::spawn_local};
use zbus::{Fd, Variant};

use crate::{
    bus::{Bus, BusError, Target},
    link::Engine,
};

/// Polkit's name on the bus.
pub const POLKIT: &str = "org.freedesktop.PolicyKit1";
/// Its object.
const AUTHORITY_PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
/// Its interface.
const AUTHORITY: &str = "org.freedesktop.PolicyKit1.Authority";
/// Flag of `CheckAuthorization`: a person may be asked.
const ALLOW_USER_INTERACTION: u32 = 1;
/// What polkit says beside a no if a dialog was put away (polkit_authorization_result_get_dismissed).
const DISMISSED: &str = "polkit.dismissed";
/// Errors of the bus for a polkit that ended before it answered.
const ENDED: [&str; 3] = [
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
];

/// What goes with the subject of a question, as polkit wants it: kind and a{sv}.
type WireSubject<'a> = (&'static str, HashMap<&'static str, Variant<'a>>);

/// Polkit on a bus.
#[derive(Debug)]
pub struct Polkit {
    bus: Rc<Bus>,
    engine: Rc<Engine>,
    /// Dropped to withdraw a question.
    open: RefCell<HashMap<QuestionId, oneshot::Sender<()>>>,
}

impl Polkit {
    /// On a bus that has let us in.
    pub fn new(bus: Rc<Bus>, engine: Rc<Engine>) -> Rc<Self> {
        Rc::new(Self { bus, engine, open: RefCell::default() })
    }

    /// Looks whether polkit is there, or is started when it is asked; tells the engine, and hears of changes from now on.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn look_out(&self) -> Result<bool, BusError> {
        self.bus.call("AddMatch", &match_rule()).await?;
        self.look().await
    }

    /// Looks again whether polkit is there, and tells the engine.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn look(&self) -> Result<bool, BusError> {
        let there = self.bus.call("NameHasOwner", &POLKIT).await?.body().deserialize::<bool>()?
            || self.is_activatable().await?;
        self.engine.polkit(there).await;
        Ok(there)
    }

    async fn is_activatable(&self) -> Result<bool, BusError> {
        let names = self.bus.call("ListActivatableNames", &()).await?;
        let names: Vec<String> = names.body().deserialize()?;
        Ok(names.iter().any(|name| name == POLKIT))
    }

    /// Asks, and tells the engine what came of it.
    pub fn ask(self: &Rc<Self>, question: Question, process: Option<OwnedFd>) {
        let (withdrawing, withdrawn) = oneshot::channel();
        self.open.borrow_mut().insert(question.id, withdrawing);
        let this = Rc::clone(self);
        spawn_local(async move {
            tokio::select! {
                // Nobody sends anything: it is dropped.
                _ = withdrawn => this.cancel(question.id).await,
                consent = this.check(&question, process.as_ref()) => {
                    this.open.borrow_mut().remove(&question.id);
                    this.engine.consent(question.id, consent).await;
                }
            }
        });
    }

    /// Nobody wants the answer any more.
    pub fn withdraw(&self, question: QuestionId) {
        self.open.borrow_mut().remove(&question);
    }

    /// Has polkit take its dialog away.
    async fn cancel(&self, question: QuestionId) {
        let Ok(owner) = self.owner().await else { return };
        let target = Target { name: &owner, path: AUTHORITY_PATH, interface: AUTHORITY };
        self.bus.tell_to(target, "CancelCheckAuthorization", &cancellation(question));
    }

    async fn check(&self, question: &Question, process: Option<&OwnedFd>) -> Consent {
        let answered = match self.check_once(question, process).await {
            // It was ended or started anew just now. Nobody has been asked in vain: its dialogs ended with it.
            Err(BusError::Refused { name, .. }) if ENDED.contains(&name.as_str()) => {
                self.check_once(question, process).await
            }
            answered => answered,
        };
        answered.unwrap_or_else(|error| {
            tracing::warn!(%error, action = question.action, "polkit can't be asked");
            Consent::Unavailable(error.to_string())
        })
    }

    async fn check_once(&self, question: &Question, process: Option<&OwnedFd>) -> Result<Consent, BusError> {
        let owner = self.owner().await?;
        let details: HashMap<&str, &str> =
            question.details.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let flags = if question.interactive { ALLOW_USER_INTERACTION } else { 0 };
        let body = (
            subject(&question.subject, process),
            question.action.as_str(),
            details,
            flags,
            cancellation(question.id),
        );
        let target = Target { name: &owner, path: AUTHORITY_PATH, interface: AUTHORITY };
        let answer = self.bus.call_to(target, "CheckAuthorization", &body).await?;
        let (authorized, challenge, details) = answer.body().deserialize()?;
        Ok(meaning(authorized, challenge, &details))
    }

    /// The connection that has polkit's name now; it is started if it is not there. Calls go to it by its own name, so that
    /// nobody else can answer them.
    async fn owner(&self) -> Result<String, BusError> {
        let owner = match self.bus.call("GetNameOwner", &POLKIT).await {
            Err(BusError::Refused { .. }) => {
                self.bus.call("StartServiceByName", &(POLKIT, 0_u32)).await?;
                self.bus.call("GetNameOwner", &POLKIT).await?
            }
            owner => owner?,
        };
        Ok(owner.body().deserialize::<String>()?)
    }
}

/// What an answer of polkit's comes to. Whoever put a dialog away was asked, whatever polkit says of a challenge beside that.
fn meaning(authorized: bool, challenge: bool, details: &HashMap<String, String>) -> Consent {
    match (authorized, challenge) {
        (true, _) => Consent::Yes,
        _ if details.contains_key(DISMISSED) => Consent::Dismissed,
        (false, true) => Consent::NeedsPerson,
        (false, false) => Consent::No,
    }
}

/// The subject as polkit takes it. From polkit 124 on the pidfd says which process it is; before, pid and start time together do.
fn subject<'a>(subject: &'a Subject, process: Option<&'a OwnedFd>) -> WireSubject<'a> {
    match subject {
        Subject::BusName(name) => {
            ("system-bus-name", HashMap::from([("name", Variant::from(name.as_str()))]))
        }
        Subject::Process { pid, start_time, uid } => {
            let mut details = HashMap::from([
                ("pid", Variant::from(*pid)),
                ("start-time", Variant::from(*start_time)),
                // Polkit has it signed; the engine asks about none that is larger.
                ("uid", Variant::from(i32::try_from(*uid).unwrap_or(i32::MAX))),
            ]);
            if let Some(process) = process {
                details.insert("pidfd", Variant::from(Fd::from(process.as_fd())));
            }
            ("unix-process", details)
        }
    }
}

/// What a question is cancelled by; polkit keeps ours apart from those of others.
fn cancellation(question: QuestionId) -> String {
    format!("cgrant-{}", question.0)
}

fn match_rule() -> String {
    let driver = crate::contract::DRIVER;
    format!("type='signal',sender='{driver}',interface='{driver}',member='NameOwnerChanged',arg0='{POLKIT}'")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::fd::AsRawFd};

    use super::*;

    #[test]
    fn who_put_a_dialog_away_was_asked() {
        let none = HashMap::new();
        let dismissed = HashMap::from([(DISMISSED.to_owned(), "true".to_owned())]);
        assert_eq!(meaning(false, true, &none), Consent::NeedsPerson);
        assert_eq!(meaning(false, false, &none), Consent::No);
        for challenge in [true, false] {
            assert_eq!(meaning(false, challenge, &dismissed), Consent::Dismissed);
            assert_eq!(meaning(true, challenge, &dismissed), Consent::Yes);
        }
    }

    /// What polkit is told of a subject, without the descriptor, and whether one is there.
    fn told(subject: &WireSubject<'_>) -> (&'static str, BTreeMap<&'static str, Variant<'static>>, bool) {
        let (kind, details) = subject;
        let is_fd = |value: &Variant<'_>| matches!(value, Variant::Fd(_));
        let plain = details.iter().filter(|(_, value)| !is_fd(value));
        let plain = plain.map(|(key, value)| (*key, value.try_to_owned().unwrap().into())).collect();
        (kind, plain, details.get("pidfd").is_some_and(is_fd))
    }

    #[test]
    fn a_client_of_the_bus_is_its_unique_name() {
        let name = Subject::BusName(":1.7".to_owned());
        let expected = ("system-bus-name", BTreeMap::from([("name", Variant::from(":1.7"))]), false);
        assert_eq!(told(&subject(&name, None)), expected);
    }

    // A pid alone is whoever has it next: polkit would agree for a caller that ended meanwhile to another process.
    #[test]
    fn a_process_is_never_its_pid_alone() {
        let pidfd = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        for (uid, signed) in [(1000, 1000), (u32::MAX, i32::MAX)] {
            let process = Subject::Process { pid: 41, start_time: 1 << 40, uid };
            let details = BTreeMap::from([
                ("pid", Variant::from(41_u32)),
                ("start-time", Variant::from(1_u64 << 40)),
                ("uid", Variant::from(signed)),
            ]);
            assert_eq!(told(&subject(&process, None)), ("unix-process", details.clone(), false));
            let with_fd = subject(&process, Some(&pidfd));
            assert_eq!(told(&with_fd), ("unix-process", details, true));
            let is_it = |fd: &Fd<'_>| fd.as_fd().as_raw_fd() == pidfd.as_raw_fd();
            assert!(matches!(with_fd.1.get("pidfd"), Some(Variant::Fd(fd)) if is_it(fd)));
        }
    }
}
