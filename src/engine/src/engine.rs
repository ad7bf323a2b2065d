//! The engine's parts together, and what every operation needs: looking a grant up, deciding, recording, telling.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use cgrant_policy::{
    Action, Caller as Subject, Denial, DenialCode, GrantPath, HostUid, Policy, Request, UsageNow, Verb,
    Verdict, judge_consented,
};
use cgrant_sys::{dir::Dir, namespace::NsId};
use cgrant_wire::{
    Answer, Audience, EndReason, Event, FromEngine, GrantChange, GrantId, Met, Refusal, RefusalCode,
    RequestId, boot::FrontKind,
};
use nix::sys::inotify::AddWatchFlags;

use crate::{
    asking::{self, Questions},
    cgroup::Tree,
    connection::{Caller, Connections},
    devices::Devices,
    disk::Disk,
    fault::Fault,
    idmap::Mapper,
    ids::IdRecord,
    leaving::{Leavings, Notice},
    legacy::{Ledger, Wishes},
    link::Link,
    metrics::Counters,
    mountmap::Mounter,
    net::Network,
    ops::nested::{self, Hearers},
    pace::Paces,
    pool::Pool,
    record::{GrantRecord, Journal, JournalError},
    refusal_log::RefusalLog,
    registry::{Grant, Registry},
    reload::Reload,
    share::{Shared, UsedUp},
    show::Shower,
    usage::Usages,
    watch::{Target, Watches},
};

/// How long an account's own node stays when its last grant has ended: who makes grants one after the other does not have
/// ten directories made and removed for each.
const ACCOUNT_STAYS: Duration = Duration::from_secs(1);
/// Most characters of a caller's words in a line of the log.
const MAX_WORDS: usize = 256;

/// A front that is linked, with its entry among the watches.
pub struct Linked {
    /// The link.
    pub link: Link,
    /// Its watch.
    pub watch: u64,
}

/// The engine.
pub struct Engine {
    /// Name of the instance.
    pub instance: String,
    /// Identity of this boot.
    pub boot_id: String,
    /// The cgroups.
    pub tree: Tree,
    /// The ids.
    pub ids: IdRecord,
    /// What their files take on disks.
    pub disk: Disk,
    /// Writes id maps.
    pub mapper: Mapper,
    /// Makes id-mapped mounts.
    pub mounter: Mounter,
    /// Shows processes to clients of CGManager's interface.
    pub shower: Shower,
    /// Limits which devices grants' programs open.
    pub devices: Devices,
    /// Links.
    pub network: Network,
    /// The grants on disk.
    pub journal: Journal,
    /// Test builds only.
    pub fault: Fault,
    /// What is waited for.
    pub watches: Watches,
    /// What was made over CGManager's interface.
    pub ledger: Ledger,
    /// Cgroups that are to be removed when they are empty, for clients of that interface.
    pub wishes: Wishes,
    /// Runs operations.
    pub pool: Pool,
    /// What is counted for whoever watches the host.
    pub counters: Counters,
    /// How fast requests begin.
    pub paces: Paces,
    /// What the log was told of refusals.
    pub refusals: RefusalLog,
    /// What was told of what accounts use.
    pub usages: Usages,
    /// The directory of policy and settings.
    pub config: Dir,
    /// The user namespace that the engine itself is in.
    pub own_userns: NsId,
    /// The network namespace that the engine itself is in.
    pub own_netns: NsId,
    /// Uids that are never served.
    pub front_uids: Vec<HostUid>,
    pub(crate) policy: RwLock<Arc<Policy>>,
    pub(crate) reload: Reload,
    /// Accounts whose node is looked at soon, and the watch that says when.
    pub(crate) lingering: Mutex<HashMap<HostUid, u64>>,
    pub(crate) registry: Mutex<Registry>,
    pub(crate) connections: Mutex<Connections>,
    pub(crate) links: RwLock<HashMap<FrontKind, Arc<Linked>>>,
    /// Users who log out or are deleted.
    pub(crate) leavings: Leavings,
    /// That files of users who are gone are to be removed, for whoever starts what does.
    pub(crate) notice: Notice,
    /// What polkit is being asked.
    pub(crate) questions: Questions,
}

thread_local! {
    /// What the operation of this thread has told and is not sent yet; `None` outside of operations.
    static HELD: RefCell<Option<Vec<Told>>> = const { RefCell::new(None) };
}

/// An event, and who hears of it in the grants around the one that it is about.
type Told = (Event, Vec<Hearers>);

/// Sends what was held when the operation is over, however it ended.
struct Held<'a>(&'a Engine);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for (event, around) in HELD.take().into_iter().flatten() {
            self.0.tell_now(event, &around);
        }
    }
}

/// What a decision is about, in the log.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The grant, if it is one that there is, or is to be: all about one is found by its id.
    pub grant: Option<GrantId>,
    /// The grant's name, or what else it is.
    pub words: &'a str,
}

impl<'a> From<&'a str> for About<'a> {
    fn from(words: &'a str) -> Self {
        Self { grant: None, words }
    }
}

impl<'a> From<&'a Grant> for About<'a> {
    fn from(grant: &'a Grant) -> Self {
        Self { grant: Some(grant.id), words: grant.name.as_str() }
    }
}

/// What an operation comes to: an answer and the descriptors that it names.
pub type Outcome = Result<(Answer, Vec<OwnedFd>), Refusal>;

impl Engine {
    /// The grants.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections.
    pub fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another policy in force.
    pub fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// Watches `/etc` for users that come and go: a range must not pass to the next holder of a uid.
    pub fn watch_accounts(&self) {
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
        let watched = Dir::open(Path::new("/etc"))
            .and_then(|etc| self.watches.file(etc.as_fd(), flags, Target::Accounts));
        if let Err(error) = watched {
            tracing::warn!(%error, "/etc can't be watched; departed users are noticed when their uid asks next");
        }
    }

    /// The user database may have changed.
    pub fn accounts_changed(&self) {
        if let Err(error) = self.ids.accounts_changed() {
            tracing::error!(%error, "ranges of departed users could not be retired");
        }
    }

    /// What the account uses now.
    pub fn usage(&self, account: HostUid) -> UsageNow {
        let nested = self.registry().counts(account).nested;
        let cgroups = self.tree.count_cgroups(account, nested) + self.ledger.count(account);
        let addresses = self.network.addresses.used(account.0);
        let disk = self.disk.of(&self.ids.blocks_of(account));
        UsageNow {
            cgroups,
            ids: self.ids.used(account),
            disk: disk.bytes,
            disk_files: disk.files,
            disk_age: crate::ops::manage::now().saturating_sub(self.disk.measured()) / 1_000_000,
            addresses,
            ..self.quick_usage(account)
        }
    }

    /// What the account uses of that which the engine itself counts; the kernel is not asked.
    fn quick_usage(&self, account: HostUid) -> UsageNow {
        let counts = self.registry().counts(account);
        let (connections, requests) = self.connections().counts(account);
        UsageNow {
            connections,
            requests,
            requests_per_second: self.paces.used(account, Instant::now()),
            grants: counts.grants,
            persistent_grants: counts.persistent,
            pressure_watches: counts.pressure,
            links: counts.links,
            published_ports: counts.ports,
            tidying: counts.tidying,
            tidying_inside: counts.tidying_inside,
            ..UsageNow::default()
        }
    }

    /// Would policy let the caller? Says nothing in the log.
    ///
    /// # Errors
    /// The refusal, with the rule that decided.
    pub fn judge(&self, caller: &Caller, request: &Request<'_>) -> Result<(), Refusal> {
        self.decide(caller, "", request).map(|_| ())
    }

    /// What policy says to a request that is made by `subject` and counted to the account, with what polkit agreed to. The one call
    /// of [`judge_consented`].
    pub fn verdict(
        &self,
        subject: &Subject,
        account: HostUid,
        request: &Request<'_>,
        consents: &[Action],
    ) -> Verdict {
        let usage = match request {
            Request::CreateGrant(_) | Request::CreateCgroup { .. } | Request::LegacyCgroup { .. } => {
                self.usage(account)
            }
            _ => self.quick_usage(account),
        };
        judge_consented(&self.policy(), subject, request, &usage, consents)
    }

    fn decide(&self, caller: &Caller, about: &str, request: &Request<'_>) -> Result<String, Refusal> {
        let consents = asking::consents(caller, request);
        let verdict = self.verdict(&caller.subject(), caller.charged(), request, &consents);
        match asking::settled(caller, verdict) {
            Verdict::Allow { rule } => {
                let agreed = consents.iter().map(|action| format!(" and polkit's yes to {}", action.id()));
                Ok(rule + &agreed.collect::<String>())
            }
            Verdict::Ask { action, rule, otherwise } => {
                let alone = || {
                    let message = format!("policy lets polkit decide about {}", action.id());
                    Refusal::new(RefusalCode::NotAuthorized, message).rule(rule)
                };
                let refusal = otherwise.map_or_else(alone, |denial| refused(*denial));
                // A bridge that is not there can't be agreed to.
                if !has_strange_bridge(self, request) {
                    asking::needs(action, caller, about, request, &refusal.message);
                }
                Err(refusal)
            }
            Verdict::Deny(denial) => Err(refused(denial)),
        }
    }

    /// The one place where it is decided whether a request is carried out (design section 10). Says in the log what is
    /// allowed, with the grant or whatever else it is `about`; a refusal is logged where all of them pass
    /// ([`log_refusal`](Self::log_refusal)).
    ///
    /// # Errors
    /// The refusal, with the rule that decided.
    pub fn authorize<'a>(
        &self,
        caller: &Caller,
        about: impl Into<About<'a>>,
        request: &Request<'_>,
    ) -> Result<(), Refusal> {
        let About { grant, words } = about.into();
        let rule = self.decide(caller, words, request)?;
        let about = match request {
            Request::ReadRaw { key, .. } | Request::WriteRaw { key, .. } => format!("{key} of {words}"),
            _ => words.to_owned(),
        };
        let grant = grant.map(tracing::field::display);
        let (uid, pid, request, account) =
            (caller.uid.0, caller.pid.unwrap_or(0), verb(request), owner(caller, request).0);
        tracing::info!(
            target: "decision", uid, pid, request, account, about, rule, allowed = true, grant,
            "uid {uid} may {request} {about}"
        );
        Ok(())
    }

    /// Says in the log what was refused to whom, and why. Whatever is the caller's own words in it is quoted and short.
    ///
    /// An attacker wants the log full of these: of an account there are few at a time ([`may_tell`](Self::may_tell)).
    pub fn log_refusal<'a>(
        &self,
        caller: &Caller,
        request: &str,
        about: impl Into<About<'a>>,
        refusal: &Refusal,
    ) {
        if !self.may_tell(Some(caller.charged())) {
            return;
        }
        let (uid, pid) = (caller.uid.0, caller.pid.unwrap_or(0));
        let About { grant, words } = about.into();
        let known = grant.and_then(|id| self.registry().get(id));
        let account = known.map_or(caller.charged(), |grant| grant.account).0;
        let grant = grant.map(tracing::field::display);
        let (about, reason) = (shortened(words), shortened(&refusal.message));
        let (rule, error) = (refusal.rule.as_deref().unwrap_or("built-in"), refusal.code);
        tracing::info!(
            target: "decision", uid, pid, request, account, about, rule, allowed = false, ?error, reason, grant,
            "uid {uid} may not {request} {about}: {reason}"
        );
    }

    /// Refuses an ordinary user of a container what others of its account must have left ([`Shares`](crate::share::Shares)), and says so in the log.
    ///
    /// # Errors
    /// [`RefusalCode::QuotaExceeded`].
    pub fn leave_room(&self, caller: &Caller, what: Shared) -> Result<(), Refusal> {
        let quota = {
            let policy = self.policy();
            let quotas = policy.quotas(&caller.subject());
            match what {
                Shared::Connections => quotas.connections,
                Shared::Requests => quotas.requests,
            }
        };
        let room = self.connections().room(what, caller, quota);
        room.map_err(|UsedUp { quota, usage }| {
            let message = format!("ordinary users of containers have {usage} of the {quota} {} left for them", what.name());
            let refusal = Refusal::new(RefusalCode::QuotaExceeded, message)
                .rule("built-in nesting")
                .figures(quota, usage)
                .resource(what.name())
                .hint("one user has at most a quarter of the quota of the account outside, all of them together half");
            self.log_refusal(caller, what.name(), "", &refusal);
            refusal
        })
    }

    /// As [`authorize`](Self::authorize), silent when the answer is yes: for what happens with every call.
    ///
    /// # Errors
    /// The refusal, with the rule that decided.
    pub fn authorize_silently(&self, caller: &Caller, request: &Request<'_>) -> Result<(), Refusal> {
        let decided = self.decide(caller, "", request).map(|_| ());
        decided.inspect_err(|refusal| self.log_refusal(caller, verb(request), "", refusal))
    }

    /// The grant, if there is one and the caller may know of it ([`Caller::may_see`]).
    ///
    /// An attacker wants to learn which grants others have. Theirs and those that don't exist answer alike.
    ///
    /// # Errors
    /// [`RefusalCode::NoSuchGrant`].
    pub fn grant_for(&self, caller: &Caller, id: GrantId) -> Result<Arc<Grant>, Refusal> {
        self.registry()
            .get(id)
            .filter(|grant| grant.is_active() && caller.may_see(&grant.path))
            .ok_or_else(|| no_such_grant(id))
    }

    /// Writes the record of a grant.
    ///
    /// # Errors
    /// [`RefusalCode::RecordUnwritable`]; nothing has changed then.
    pub fn write_record(&self, record: &GrantRecord) -> Result<(), Refusal> {
        self.journal.write(record).map_err(|error| unwritable(&error))
    }

    /// A grant of the account has ended. Its node is removed after a while if nothing is in it then.
    pub fn linger(&self, account: HostUid) {
        let mut lingering = self.lingering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = lingering.entry(account) {
            match self.watches.after(ACCOUNT_STAYS, |_| Target::Vacant(account)) {
                Ok(watch) => drop(place.insert(watch)),
                Err(error) => {
                    tracing::warn!(%error, "no timer for an account's cgroups");
                    self.tree.remove_empty_account(account);
                }
            }
        }
    }

    /// Removes the account's node if nothing is in it. Runs on the pool, in the account's order.
    pub fn vacate(&self, account: HostUid) {
        let watch = self.lingering.lock().unwrap_or_else(PoisonError::into_inner).remove(&account);
        self.watches.remove(watch.as_slice());
        self.tree.remove_empty_account(account);
    }

    /// Sends an answer to the front that asked.
    pub fn answer(&self, front: FrontKind, id: RequestId, outcome: Outcome) {
        let (result, fds) = match outcome {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(refusal) => (Err(refusal), Vec::new()),
        };
        self.send(front, &FromEngine::Answer { id, result }, fds);
    }

    /// Sends a message to a front, if it is there.
    pub fn send(&self, front: FrontKind, message: &FromEngine, fds: Vec<OwnedFd>) {
        let linked = self.links.read().unwrap_or_else(PoisonError::into_inner).get(&front).cloned();
        let Some(linked) = linked else { return };
        if linked.link.send(message, fds) {
            self.watch_link(&linked);
        }
    }

    /// Has epoll tell of a front's link anew: of what is there to be read now, too, and of room if messages wait for that.
    pub fn watch_link(&self, linked: &Linked) {
        let watched = linked
            .link
            .while_waiting(|awaited| self.watches.modify(linked.link.descriptor(), awaited, linked.watch));
        if let Err(error) = watched {
            tracing::error!(%error, "a front's link can't be watched");
        }
    }

    /// Runs an operation and its answer. What it tells goes to the fronts after the answer: nobody waits for the signals of
    /// others, of whom there may be many.
    pub fn answer_first(&self, operation: impl FnOnce()) {
        HELD.set(Some(Vec::new()));
        let held = Held(self);
        operation();
        drop(held);
    }

    /// Tells both fronts what happened to a grant that is there; after the answer, in an operation.
    pub fn tell(&self, event: Event) {
        let grant = subject_of(&event).and_then(|grant| self.registry().get(grant));
        let path = grant.map(|grant| grant.path.clone());
        self.tell_of(path.as_ref(), event);
    }

    /// As [`tell`](Self::tell), of a grant that lies there or did.
    fn tell_of(&self, path: Option<&GrantPath>, event: Event) {
        let around = path.map(|path| nested::hearers(self, path)).unwrap_or_default();
        let told = HELD.with_borrow_mut(|held| match held {
            Some(events) => {
                events.push((event, around));
                None
            }
            None => Some((event, around)),
        });
        if let Some((event, around)) = told {
            self.tell_now(event, &around);
        }
    }

    /// Tells the account, and whoever is inside the grants around the one that it is about, each in its own words.
    fn tell_now(&self, event: Event, around: &[Hearers]) {
        log(&event);
        if let Some(account) = whose_usage(&event) {
            self.touch(account);
        }
        for hearers in around {
            let Some(event) = nested::retold(hearers, &event) else { continue };
            for user in hearers.users() {
                // Only the socket front has callers from inside.
                let audience = Audience::Inside(hearers.around.id, user.0);
                self.send(
                    FrontKind::Socket,
                    &FromEngine::Event { event: event.clone(), audience },
                    Vec::new(),
                );
            }
        }
        let message = FromEngine::Event { audience: audience_of(&event), event };
        for front in [FrontKind::Socket, FrontKind::Bus] {
            self.send(front, &message, Vec::new());
        }
    }

    /// Tells that a grant has ended. Those around it are there still.
    pub fn tell_ended(&self, grant: &Grant, reason: EndReason) {
        let (name, account) = (grant.name.to_string(), grant.account.0);
        self.tell_of(Some(&grant.path), Event::Ended { grant: grant.id, name, account, reason });
    }
}

/// The grant that an event is about.
const fn subject_of(event: &Event) -> Option<GrantId> {
    match event {
        Event::Added { grant } => Some(grant.id),
        Event::Ended { grant, .. }
        | Event::Changed { grant, .. }
        | Event::LinkAdded { grant, .. }
        | Event::LinkRemoved { grant, .. }
        | Event::Oom { grant, .. }
        | Event::Pressure { grant, .. } => Some(*grant),
        Event::Usage { .. } | Event::Policy => None,
    }
}

/// Who is told of an event on the host.
fn audience_of(event: &Event) -> Audience {
    event.account().map_or(Audience::Everybody, Audience::Account)
}

/// The account whose usage is another one after what the event is about.
fn whose_usage(event: &Event) -> Option<HostUid> {
    match event {
        Event::Added { grant } => Some(HostUid(grant.account)),
        Event::Ended { account, .. }
        | Event::LinkAdded { account, .. }
        | Event::LinkRemoved { account, .. }
        | Event::Changed { account, change: GrantChange::Links(_) | GrantChange::Lifetime(_), .. } => {
            Some(HostUid(*account))
        }
        _ => None,
    }
}

/// Says in the log that a grant was made or has ended.
fn log(event: &Event) {
    match event {
        Event::Added { grant } => tracing::info!(
            target: "grant", grant = %grant.id, name = grant.name, account = grant.account,
            "granted {} to uid {}", grant.name, grant.account
        ),
        Event::Ended { grant, name, account, reason } => tracing::info!(
            target: "grant", %grant, name, account, ?reason, "ended {name} of uid {account}"
        ),
        _ => (),
    }
}

/// The refusal for a grant that is not there, or not for the caller.
pub fn no_such_grant(id: GrantId) -> Refusal {
    Refusal::new(RefusalCode::NoSuchGrant, format!("there is no grant {id} of yours"))
        .hint("`cgrant grant list` shows your grants")
}

/// Is a link asked for on a bridge that nobody has configured?
fn has_strange_bridge(engine: &Engine, request: &Request<'_>) -> bool {
    let links = match request {
        Request::CreateGrant(grant) => grant.links,
        Request::AddLink { link, .. } => std::slice::from_ref(link),
        _ => &[],
    };
    links.iter().any(|link| !crate::ops::link::is_bridge(engine, link.bridge))
}

/// The refusal for a journal that can't be written.
pub fn unwritable(error: &JournalError) -> Refusal {
    tracing::error!(%error, "the journal can't be written");
    Refusal::new(RefusalCode::RecordUnwritable, format!("the broker can't write its record: {error}"))
        .hint("the administrator should look whether the disk of the state directory is full or read-only")
}

/// A request in the words of the log.
pub fn verb(request: &Request<'_>) -> &'static str {
    match request {
        Request::Connect => "connect",
        Request::Call => "call",
        Request::CreateGrant(_) => "create grant",
        Request::UseGrant { verb, .. } => match verb {
            Verb::Read => "read",
            Verb::Attach => "attach",
            Verb::Adopt => "adopt",
            Verb::Persist => "persist",
            Verb::Freeze => "freeze",
            Verb::Thaw => "thaw",
            Verb::Kill => "kill",
            Verb::Cgroup => "cgroup",
            Verb::Release => "release",
            Verb::RemoveLink => "remove link",
            Verb::Unpublish => "unpublish ports",
            Verb::ForgetRange => "forget range",
            Verb::MapDirectory => "map directory",
        },
        Request::UseDevice { .. } => "make device",
        Request::AddLink { .. } => "add link",
        Request::Publish { .. } => "publish ports",
        Request::ListBridges => "list bridges",
        Request::ExamineNetwork => "examine network",
        Request::CreateCgroup { .. } => "create cgroup",
        Request::SetLimits { .. } => "set limits",
        Request::ReadRaw { .. } => "read raw",
        Request::WriteRaw { .. } => "write raw",
        Request::ListAll => "list all",
        Request::ListAccounts => "list accounts",
        Request::ListRules => "list rules",
        Request::ForgetDeparted => "forget departed",
        Request::ReportDisk => "report disk use",
        Request::Metrics => "metrics",
        Request::Legacy => "legacy",
        Request::LegacyCgroup { .. } => "legacy cgroup",
        Request::LegacyController { .. } => "legacy controller",
        Request::UsageOf { .. } => "usage",
    }
}

/// Whose grant or usage a request is about.
pub fn owner(caller: &Caller, request: &Request<'_>) -> HostUid {
    match request {
        Request::UseGrant { owner, .. }
        | Request::CreateCgroup { owner, .. }
        | Request::SetLimits { owner, .. }
        | Request::ReadRaw { owner, .. }
        | Request::WriteRaw { owner, .. }
        | Request::UseDevice { owner, .. }
        | Request::AddLink { owner, .. }
        | Request::Publish { owner, .. } => *owner,
        Request::UsageOf { account } => *account,
        Request::Connect
        | Request::Call
        | Request::CreateGrant(_)
        | Request::ListBridges
        | Request::ExamineNetwork
        | Request::ListAll
        | Request::ListAccounts
        | Request::ListRules
        | Request::ForgetDeparted
        | Request::ReportDisk
        | Request::Metrics
        | Request::Legacy
        | Request::LegacyCgroup { .. }
        | Request::LegacyController { .. } => caller.charged(),
    }
}

/// No more of a text than a line of the log has room for.
fn shortened(text: &str) -> &str {
    text.char_indices().nth(MAX_WORDS).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// A denial as the answer to the caller.
pub fn refused(denial: Denial) -> Refusal {
    let code = match denial.code {
        DenialCode::NotAuthorized => RefusalCode::NotAuthorized,
        DenialCode::QuotaExceeded => RefusalCode::QuotaExceeded,
        DenialCode::NotVisible => RefusalCode::NoSuchGrant,
        DenialCode::NoSuchBridge => RefusalCode::NoSuchBridge,
    };
    Refusal {
        code,
        message: denial.message,
        rule: Some(denial.rule),
        quota: denial.quota,
        usage: denial.usage,
        met: denial
            .resource
            .map(|resource| Box::new(Met { resource: Some(resource), limit: denial.limit, action: None })),
        hint: denial.hint,
    }
}
