//! What ends grants beside their holders: their account's user logs out, or is deleted. Whether it does, policy says when a grant is
//! made, and the grant's record keeps it.
//!
//! Who is logged in is read where systemd-logind and elogind keep it, and root alone can write: no message of anybody's is believed.
//! Who is deleted is read from `/etc` ([`crate::ids`]); a service such as LDAP is never asked, so one that does not answer looks like
//! nothing. What is to end is told so first, as at a shutdown of the host, and ended when it has, or after [`PATIENCE`].
//!
//! An attacker wants containers of somebody else's to end, or its own to stay. Files in both places are root's. Users of the same
//! name and uid are the same; a uid with another name is another user, whose predecessor's grants end whatever policy says, because
//! their ids and files would be in his hands. Whoever does not end when told is killed; what is started meanwhile in the grant ends with
//! it. May touch: nothing but the grants; reads `/run/systemd/users`.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cgrant_policy::{Departed, HostUid, LifetimeRules, Logout};
use cgrant_sys::dir::Dir;
use cgrant_wire::{EndReason, GrantId, Lifetime};
use nix::sys::inotify::AddWatchFlags;

use crate::{
    engine::Engine, events, ids::Presence, ops::release, record::GrantRecord, registry::Grant, watch::Target,
};

/// Where logind keeps who is logged in, a file a uid. libsystemd reads the same (sd_uid_get_state(3)).
const USERS: &str = "/run/systemd/users";
/// Longest of these files that is read, in bytes.
const MAX_FILE: usize = 64 * 1024;
/// How long after a change it is looked who is logged in: logind writes several times at each login.
const SETTLE: Duration = Duration::from_millis(250);
/// How long what runs in a grant has to end by itself; as long as at a shutdown of the host.
const PATIENCE: Duration = Duration::from_secs(75);
/// How long what was killed has to end.
const KILLED_PATIENCE: Duration = Duration::from_secs(10);
/// Soon after the start, when everything else is there.
const SOON: Duration = Duration::from_millis(1);

/// Is a user there, by logind's word?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    /// With a session.
    In,
    /// Without a session; lingering, or on the way out.
    Left,
    /// Not at all.
    Gone,
}

impl Login {
    /// What a file of logind's says; `None` if that is neither yes nor no.
    fn parse(text: &str) -> Option<Self> {
        match text.lines().find_map(|line| line.strip_prefix("STATE="))? {
            "active" | "online" => Some(Self::In),
            "closing" | "lingering" => Some(Self::Left),
            // Before the first session, or the lingering, has begun.
            _ => None,
        }
    }

    /// Who is logged in how; `None` if that can't be told.
    fn of(users: &Dir, account: HostUid) -> Option<Self> {
        match users.read(account.0.to_string(), MAX_FILE) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Self::Gone),
            Err(_) => None,
        }
    }
}

/// Does such a change end a grant?
fn ends(logout: Logout, before: Login, now: Login) -> bool {
    match logout {
        Logout::Keep => false,
        Logout::Linger => before != Login::Gone && now == Login::Gone,
        Logout::End => {
            now == Login::Gone && before != Login::Gone || before == Login::In && now == Login::Left
        }
    }
}

/// What is known of logins, and when it is looked again.
#[derive(Debug, Default)]
pub struct Leavings(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The watch of [`USERS`].
    watch: Option<u64>,
    /// Will it be looked who is logged in?
    logins_due: bool,
    /// Will it be looked who was deleted?
    accounts_due: bool,
    /// How the users of grants that end with a login were seen last.
    seen: HashMap<HostUid, Login>,
    /// Grants of which it was said that they stay although their users are missing.
    told: HashSet<GrantId>,
}

impl Leavings {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has it looked soon for who left while no broker ran.
pub fn begin(engine: &Engine) {
    watch(engine);
    due(engine, SOON, |state| &mut state.logins_due, Target::LoginsDue);
    due(engine, SOON, |state| &mut state.accounts_due, Target::AccountsDue);
}

/// Notes in a new grant's record what `rules` say, and how its account's user is.
pub fn note(engine: &Engine, rules: &LifetimeRules, record: &mut GrantRecord) {
    let account = HostUid(record.account);
    record.user = engine.ids.user_of(account);
    (record.logout, record.departed) = (rules.logout, rules.departed);
    if record.logout == Logout::Keep {
        return;
    }
    watch(engine);
    record.in_session = users().is_some_and(|users| Login::of(&users, account) == Some(Login::In));
    if record.in_session {
        engine.leavings.state().seen.insert(account, Login::In);
    }
}

fn users() -> Option<Dir> {
    Dir::open(Path::new(USERS)).ok()
}

/// Watches who logs in and out. Where there is no logind nobody does.
fn watch(engine: &Engine) {
    let mut state = engine.leavings.state();
    if state.watch.is_some() {
        return;
    }
    let Some(users) = users() else { return };
    let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE;
    match engine.watches.file(users.as_fd(), flags, Target::Logins) {
        Ok(watch) => state.watch = Some(watch),
        Err(error) => tracing::error!(%error, "{USERS} can't be watched; nothing ends at a logout"),
    }
}

/// Orders a look after a while, unless one is ordered.
fn due(
    engine: &Engine,
    delay: Duration,
    which: impl Fn(&mut State) -> &mut bool,
    target: impl FnOnce(u64) -> Target,
) {
    let mut state = engine.leavings.state();
    if std::mem::replace(which(&mut state), true) {
        return;
    }
    if let Err(error) = engine.watches.after(delay, target) {
        tracing::warn!(%error, "no timer for users who leave; they are noticed with the next one");
        *which(&mut state) = false;
    }
}

/// Somebody logged in or out.
pub fn logins_changed(engine: &Engine) {
    due(engine, SETTLE, |state| &mut state.logins_due, Target::LoginsDue);
}

/// Has all end whose user has logged out since the last look, and is not to stay.
pub fn look_for_logouts(engine: &Arc<Engine>) {
    engine.leavings.state().logins_due = false;
    let Some(users) = users() else { return };
    let mut bound: HashMap<HostUid, Vec<(Arc<Grant>, Logout)>> = HashMap::new();
    let mut were_in = HashSet::new();
    for grant in engine.registry().list(None) {
        let (logout, lifetime, in_session) = {
            let live = grant.live();
            (live.record.logout, live.record.lifetime, live.record.in_session)
        };
        if logout == Logout::Keep || lifetime == Lifetime::Persistent {
            continue;
        }
        if in_session {
            were_in.insert(grant.account);
        }
        bound.entry(grant.account).or_default().push((grant, logout));
    }
    let mut over = Vec::new();
    let mut state = engine.leavings.state();
    state.seen.retain(|account, _| bound.contains_key(account));
    for (account, grants) in bound {
        let Some(now) = Login::of(&users, account) else { continue };
        let before = state.seen.insert(account, now).or(were_in.contains(&account).then_some(Login::In));
        let Some(before) = before else { continue };
        over.extend(
            grants.into_iter().filter(|(_, logout)| ends(*logout, before, now)).map(|(grant, _)| grant),
        );
    }
    drop(state);
    for grant in over {
        order_end(engine, &grant, EndReason::LoggedOut);
    }
}

/// The user database may have changed: ranges of users who left are retired, addresses freed, grants ended.
pub fn look_for_departed(engine: &Arc<Engine>) {
    engine.leavings.state().accounts_due = false;
    engine.accounts_changed();
    crate::ops::link::forget_departed(engine);
    if let Some(wait) = engine.ids.until_settled() {
        due(engine, wait, |state| &mut state.accounts_due, Target::AccountsDue);
    }
    let grants = engine.registry().list(None);
    engine.leavings.state().told.retain(|told| grants.iter().any(|grant| grant.id == *told));
    for grant in grants {
        let record = grant.live().record.clone();
        if is_departed(engine, &record) {
            order_end(engine, &grant, EndReason::UserGone);
        } else if may_be_departed(engine, &record) && engine.leavings.state().told.insert(grant.id) {
            tracing::warn!(
                target: "grant", grant = %grant.id, name = %grant.name, account = record.account, user = record.user,
                "the user is not in /etc/passwd any more, and may be known elsewhere by nsswitch.conf: the grant stays until root releases it"
            );
        }
    }
    give_notice(engine);
}

/// The file in the state directory that is there as long as files of users who are gone are to be removed: a service manager has what
/// removes them started by it. The broker itself has no right to anybody's files, and knows no path.
#[derive(Debug)]
pub struct Notice(Dir);

impl Notice {
    const FILE: &str = "departed";

    /// In this directory.
    pub fn new(state: Dir) -> Self {
        Self(state)
    }

    fn set(&self, due: bool) -> io::Result<()> {
        let (result, is_so) = match due {
            true => (
                self.0.write_first(Self::FILE, b"See `cgrant departed list`.\n"),
                io::ErrorKind::AlreadyExists,
            ),
            false => (self.0.remove_file(Self::FILE), io::ErrorKind::NotFound),
        };
        match result {
            Err(error) if error.kind() == is_so => Ok(()),
            other => other,
        }
    }
}

/// Says to whom it may concern whether files of users who are gone are to be removed.
pub fn give_notice(engine: &Engine) {
    if let Err(error) = engine.notice.set(engine.ids.is_removal_due()) {
        tracing::error!(%error, "it can't be said that files of users who are gone are to be removed, or need not be any more");
    }
}

/// Is the grant to end because the user whom it was made for is no more?
pub fn is_departed(engine: &Engine, record: &GrantRecord) -> bool {
    match engine.ids.presence(HostUid(record.account), record.user.as_deref()) {
        Presence::Same => false,
        // Its ids and files must not be in the hands of whoever has the uid now.
        Presence::Another => true,
        Presence::Missing => record.departed >= Departed::End && engine.ids.knows_all_users(),
    }
}

fn may_be_departed(engine: &Engine, record: &GrantRecord) -> bool {
    let presence = engine.ids.presence(HostUid(record.account), record.user.as_deref());
    presence == Presence::Missing && record.departed >= Departed::End
}

/// Has a grant end, in its account's order.
fn order_end(engine: &Arc<Engine>, grant: &Arc<Grant>, reason: EndReason) {
    let (engine_, grant_) = (Arc::clone(engine), Arc::clone(grant));
    let job = Box::new(move || leave(&engine_, &grant_, reason));
    if let Err(error) = engine.pool.submit_event(grant.account.0, job) {
        tracing::error!(%error, grant = %grant.id, "the end of a grant could not be queued");
    }
}

/// Tells what runs in a grant to end, and has it ended when its time is over.
fn leave(engine: &Engine, grant: &Arc<Grant>, reason: EndReason) {
    if !grant.is_active() || grant.live().leaving.is_some() {
        return;
    }
    tracing::info!(target: "grant", grant = %grant.id, name = %grant.name, account = grant.account.0, ?reason, "is to end");
    // What stands still can't end.
    let told = engine.tree.thaw(&grant.path).and_then(|()| engine.tree.tell_to_end(&grant.path));
    let watch = match told {
        Ok(true) => engine.watches.after(PATIENCE, |watch| Target::Leaving(grant.id, watch)).ok(),
        Ok(false) => None,
        Err(error) => {
            tracing::warn!(%error, grant = %grant.id, "what runs in it could not be told that it ends");
            None
        }
    };
    match watch {
        Some(watch) => grant.live().leaving = Some((watch, reason)),
        None => release::end(engine, grant, reason),
    }
}

/// Has a grant ended when nothing runs in it any more, or when some time is over: what was killed has not ended yet. False if that can't be
/// waited for.
pub fn end_later(engine: &Engine, grant: &Arc<Grant>, reason: EndReason) -> bool {
    // What it was watched by went with the first try.
    events::unwatch(engine, grant);
    if events::watch(engine, grant, None).is_err() {
        return false;
    }
    match engine.watches.after(KILLED_PATIENCE, |watch| Target::Leaving(grant.id, watch)) {
        Ok(watch) => {
            grant.live().leaving = Some((watch, reason));
            true
        }
        Err(_) => false,
    }
}

/// The time of a grant to end by itself is over.
pub fn overdue(engine: &Engine, grant: &Arc<Grant>, watch: u64) {
    let leaving = grant.live().leaving;
    if let Some((_, reason)) = leaving.filter(|(known, _)| *known == watch) {
        release::end(engine, grant, reason);
    }
}

/// Nothing runs in a grant any more: ends it if it is to end.
pub fn emptied(engine: &Engine, grant: &Arc<Grant>) {
    let leaving = grant.live().leaving;
    if let Some((_, reason)) = leaving {
        release::end(engine, grant, reason);
    }
}

/// Why a grant ends that something else ends meanwhile.
pub fn reason(grant: &Grant, otherwise: EndReason) -> EndReason {
    grant.live().leaving.map_or(otherwise, |(_, reason)| reason)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_users_state_is_what_logind_says() {
        let (users, uid) = (tempfile::tempdir().unwrap(), HostUid(1000));
        let dir = Dir::open(users.path()).unwrap();
        assert_eq!(Login::of(&dir, uid), Some(Login::Gone));
        for (text, state) in [
            ("# private\nNAME=a\nSTATE=active\nSTOPPING=no\n", Some(Login::In)),
            ("STATE=online\n", Some(Login::In)),
            ("NAME=STATE=active\nSTATE=lingering\n", Some(Login::Left)),
            ("STATE=closing", Some(Login::Left)),
            ("STATE=opening\n", None),
            ("NAME=a\n", None),
            ("", None),
        ] {
            std::fs::write(users.path().join("1000"), text).unwrap();
            assert_eq!(Login::of(&dir, uid), state, "{text}");
        }
        std::fs::write(users.path().join("1000"), "STATE=active\n".repeat(MAX_FILE)).unwrap();
        assert_eq!(Login::of(&dir, uid), None);
    }

    #[test]
    fn notice_is_given_once_and_taken_back() {
        let state = tempfile::tempdir().unwrap();
        let (notice, file) = (Notice::new(Dir::open(state.path()).unwrap()), state.path().join("departed"));
        notice.set(false).unwrap();
        assert!(!file.exists());
        notice.set(true).unwrap();
        let inode = file.metadata().unwrap().ino();
        // Whoever watches it is not told again.
        notice.set(true).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), inode);
        notice.set(false).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn only_leaving_ends_and_lingering_is_told_apart() {
        use Login::{Gone, In, Left};
        for (before, now, with_linger, with_end) in [
            (In, In, false, false),
            (In, Left, false, true),
            (In, Gone, true, true),
            (Left, Left, false, false),
            (Left, Gone, true, true),
            (Left, In, false, false),
            (Gone, Gone, false, false),
            (Gone, In, false, false),
            (Gone, Left, false, false),
        ] {
            assert_eq!(ends(Logout::Linger, before, now), with_linger, "{before:?} {now:?}");
            assert_eq!(ends(Logout::End, before, now), with_end, "{before:?} {now:?}");
            assert!(!ends(Logout::Keep, before, now));
        }
    }
}
