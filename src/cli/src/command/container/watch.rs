//! What happens to the account's containers, for `events`: what their monitors write down, and what becomes of their directories.
//!
//! A monitor replaces its `state.json` at each change; nobody has to be asked, so that a container that hangs holds nothing up.
//! One that was killed writes nothing: that the broker's word is needed for.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use cgrant_container::system::{Phase, State, read_state};
use cgrant_image::store::Store;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use serde_json::{Map, Value, json};

use super::{RUN, info::seconds, run_of};
use crate::{error::Failure, storage};

/// What a monitor writes.
const STATE: &str = "state.json";

/// One thing that happened.
pub(crate) type Event = Map<String, Value>;

/// Follows all containers of the account's.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    store: Store,
    directory: PathBuf,
    containers: BTreeMap<String, Known>,
    /// The directory of all of them.
    all: WatchDescriptor,
}

/// What is known of a container.
#[derive(Debug)]
struct Known {
    directory: Option<WatchDescriptor>,
    run: Option<WatchDescriptor>,
    state: Option<State>,
}

impl Watch {
    /// Begins with how things are.
    pub(crate) fn new() -> Result<Self, Failure> {
        let failed = |errno: Errno| Failure::Machine { doing: "watch the containers", source: errno.into() };
        let store = storage::store()?;
        let directory = storage::path()?.join("containers");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        // Before they are listed: none comes between.
        let all = add(&inotify, &directory, AddWatchFlags::IN_MOVE).map_err(failed)?;
        let mut watch = Self { inotify, store, directory, containers: BTreeMap::new(), all };
        let names = watch.store.containers();
        for name in names.map_err(|error| Failure::work("watch the containers", error.into()))? {
            watch.know(&name);
        }
        Ok(watch)
    }

    /// Is there a container of this name, or was there just now?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.containers.contains_key(name)
    }

    /// What has happened since the last time.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(read) = self.inotify.read_events() {
            if read.is_empty() {
                break;
            }
            self.take(&read, &mut events);
        }
        events
    }

    /// A container's grant has ended, as the broker says: if its monitor has not written down how, it was killed.
    pub(crate) fn lost(&mut self, name: &str) -> Option<Event> {
        let known = self.containers.get_mut(name)?;
        let state = known.state.as_mut().filter(|state| state.phase != Phase::Stopped)?;
        state.phase = Phase::Stopped;
        event("container-stopped", name, json!({ "ended": "its monitor was killed" }))
    }

    fn take(&mut self, read: &[InotifyEvent], events: &mut Vec<Event>) {
        let (from, to) = (AddWatchFlags::IN_MOVED_FROM, AddWatchFlags::IN_MOVED_TO);
        for (at, happened) in read.iter().enumerate() {
            let name = happened.name.as_deref();
            if happened.wd == self.all && happened.mask.contains(from) {
                let follows = |other: &&InotifyEvent| {
                    other.wd == self.all && other.mask.contains(to) && other.cookie == happened.cookie
                };
                let target = read.iter().skip(at).find(follows).and_then(|other| other.name.as_deref());
                events.extend(self.gone(shown(name), shown(target)));
            } else if happened.wd == self.all && happened.mask.contains(to) {
                events.extend(self.came(shown(name)));
            } else {
                self.looked(happened, events);
            }
        }
    }

    /// One that was renamed, or put aside to be deleted.
    fn gone(&mut self, old: Option<&str>, new: Option<&str>) -> Option<Event> {
        let old = old?;
        let known = self.containers.remove(old)?;
        match new {
            Some(new) => {
                self.containers.insert(new.to_owned(), known);
                event("container-renamed", new, json!({ "before": old }))
            }
            None => {
                for watch in [known.directory, known.run].into_iter().flatten() {
                    // It ends with the directory anyhow.
                    let _ = self.inotify.rm_watch(watch);
                }
                event("container-deleted", old, json!({}))
            }
        }
    }

    /// One that was made. What was renamed is known.
    fn came(&mut self, name: Option<&str>) -> Option<Event> {
        let name = name.filter(|name| !self.has(name))?;
        self.know(name);
        event("container-created", name, json!({}))
    }

    /// Something in a container's directory, or in that of its monitor.
    fn looked(&mut self, happened: &InotifyEvent, events: &mut Vec<Event>) {
        let is = |known: &Known| [known.directory, known.run].contains(&Some(happened.wd));
        let Some(name) = self.containers.iter().find(|(_, known)| is(known)).map(|(name, _)| name.clone())
        else {
            return;
        };
        let file = happened.name.as_deref();
        let made = file == Some(OsStr::new(RUN)) && happened.mask.contains(AddWatchFlags::IN_CREATE);
        let written = file == Some(OsStr::new(STATE)) && happened.mask.contains(AddWatchFlags::IN_MOVED_TO);
        if made {
            let run = add_run(&self.inotify, &self.directory.join(&name));
            if let Some(known) = self.containers.get_mut(&name) {
                known.run = run;
            }
        }
        if !made && !written {
            return;
        }
        let now = run_of(&self.store, &name).ok().and_then(|run| read_state(&run).ok());
        let Some(known) = self.containers.get_mut(&name) else { return };
        if let Some(now) = now {
            events.extend(between(&name, known.state.as_ref(), &now));
            known.state = Some(now);
        }
    }

    /// A container that can't be watched is one that nothing is told of; the others are.
    fn know(&mut self, name: &str) {
        let place = self.directory.join(name);
        let directory = add(&self.inotify, &place, AddWatchFlags::IN_CREATE).ok();
        let run = add_run(&self.inotify, &place);
        let state = run_of(&self.store, name).ok().and_then(|run| read_state(&run).ok());
        self.containers.insert(name.to_owned(), Known { directory, run, state });
    }
}

impl AsFd for Watch {
    /// Readable when something has happened.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn add(inotify: &Inotify, directory: &Path, what: AddWatchFlags) -> Result<WatchDescriptor, Errno> {
    inotify.add_watch(directory, what | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW)
}

fn add_run(inotify: &Inotify, container: &Path) -> Option<WatchDescriptor> {
    add(inotify, &container.join(RUN), AddWatchFlags::IN_MOVED_TO).ok()
}

/// The name of a container, and of nothing that is being made or removed.
fn shown(name: Option<&OsStr>) -> Option<&str> {
    name?.to_str().filter(|name| !name.starts_with('.'))
}

fn event(kind: &str, name: &str, more: Value) -> Option<Event> {
    let mut event = Map::new();
    event.insert("event".to_owned(), kind.into());
    event.insert("name".to_owned(), name.into());
    match more {
        Value::Object(more) => event.extend(more),
        _ => return None,
    }
    Some(event)
}

/// What happened between two states of a container, of which those in between may have been missed.
fn between(name: &str, before: Option<&State>, now: &State) -> Vec<Event> {
    // At each boot the time is another one.
    let before = before.filter(|before| before.monitor == now.monitor);
    let same = before.filter(|before| before.started == now.started);
    let mut events = Vec::new();
    let mut tell = |kind: &str, more: Value| events.extend(event(kind, name, more));
    if same.is_none() {
        match before {
            Some(_) => tell("container-rebooted", json!({ "init": now.init, "reboots": now.reboots })),
            None => tell("container-started", json!({ "init": now.init, "monitor": now.monitor })),
        }
    }
    if let Some(ready) = now.ready
        && same.is_none_or(|before| before.ready.is_none())
    {
        let within = seconds(ready.saturating_sub(now.started));
        tell("container-ready", json!({ "boot-seconds": within }));
    }
    if now.phase == Phase::Stopping && same.is_none_or(|before| before.phase != Phase::Stopping) {
        tell("container-stopping", json!({}));
    }
    if let Some(ended) = now.ended
        && same.is_none_or(|before| before.ended.is_none())
    {
        tell("container-stopped", json!({ "ended": ended.to_string(), "status": ended.status() }));
    }
    events
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_container::system::Ended;

    use super::*;

    fn state(phase: Phase) -> State {
        State {
            phase,
            monitor: 7,
            init: Some(8),
            started: 1_000_000,
            ready: None,
            stopped: None,
            ended: None,
            reboots: 0,
            status: String::new(),
        }
    }

    fn kinds(before: Option<&State>, now: &State) -> Vec<String> {
        let events = between("web", before, now);
        events.iter().map(|event| event["event"].as_str().unwrap().replace("container-", "")).collect()
    }

    #[test]
    fn a_life_is_told_step_by_step() {
        let starting = state(Phase::Starting);
        assert_eq!(kinds(None, &starting), ["started"]);
        assert!(kinds(Some(&starting), &starting).is_empty());
        let running = State { phase: Phase::Running, ready: Some(2_500_000), ..starting.clone() };
        assert_eq!(kinds(Some(&starting), &running), ["ready"]);
        assert_eq!(between("web", Some(&starting), &running)[0]["boot-seconds"], "1.500");
        let stopping = State { phase: Phase::Stopping, ..running.clone() };
        assert_eq!(kinds(Some(&running), &stopping), ["stopping"]);
        let stopped = State { phase: Phase::Stopped, ended: Some(Ended::Signal(9)), ..stopping.clone() };
        let end = between("web", Some(&stopping), &stopped);
        assert_eq!((&end[0]["ended"], &end[0]["status"]), (&json!("signal 9"), &json!(137)));
        // What was missed is told all the same.
        assert_eq!(kinds(None, &stopped), ["started", "ready", "stopped"]);
        assert_eq!(kinds(Some(&starting), &stopped), ["ready", "stopped"]);
    }

    #[test]
    fn a_reboot_is_no_start() {
        let before = state(Phase::Running);
        let again = State { started: 9_000_000, reboots: 1, ..state(Phase::Starting) };
        assert_eq!(kinds(Some(&before), &again), ["rebooted"]);
        let another = State { monitor: 70, started: 9_000_000, ..state(Phase::Starting) };
        assert_eq!(kinds(Some(&before), &another), ["started"]);
    }
}
