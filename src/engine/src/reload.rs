//! Reading the policy again: when root says so, and when a file of it changes.
//!
//! Whole or not at all: all files are read as of one moment and parsed before anything is put in force, by one assignment. A
//! mistake leaves the policy before it in force. May touch: the directory of the configuration, for reading.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cgrant_sys::dir::Dir;
use cgrant_wire::Event;
use nix::sys::inotify::AddWatchFlags;

use crate::{
    engine::Engine,
    ops::account,
    settings::{self, SettingsError},
    watch::Target,
};

/// How long after a change the files are read: who writes several does so within this, and a flood of changes costs no more than
/// so many readings.
const SETTLE: Duration = Duration::from_millis(250);

/// What is watched, and what is the matter with the files.
#[derive(Debug, Default)]
pub struct Reload(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Watches of the configuration's directory, and of that of the policy.
    watches: Vec<u64>,
    /// The timer after a change.
    due: Option<u64>,
    /// Why the files are not what is in force.
    mistake: Option<String>,
}

impl Reload {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the policy with the groups of `/etc/group`.
///
/// # Errors
/// See [`settings::policy`].
pub fn read(config: &Dir) -> Result<cgrant_policy::Policy, SettingsError> {
    settings::policy(config, &crate::ids::local_groups())
}

/// Watches the policy's files, from now on.
pub fn watch(engine: &Engine) {
    let mut state = engine.reload.state();
    // Before others are added: the kernel has one watch of a directory at most.
    engine.watches.remove(&std::mem::take(&mut state.watches));
    let names = AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB;
    let content = names | AddWatchFlags::IN_CLOSE_WRITE;
    let mut add = |directory: &Dir, flags| match engine.watches.file(directory.as_fd(), flags, Target::Policy)
    {
        Ok(watch) => state.watches.push(watch),
        Err(error) => tracing::warn!(%error, "policy files can't be watched; SIGHUP has them read"),
    };
    add(&engine.config, names);
    // Where it is not there it is noticed when it comes.
    if let Ok(directory) = engine.config.open_dir(settings::POLICY) {
        add(&directory, content);
    }
}

/// Something changed in the files. They are read in a moment.
pub fn noticed(engine: &Engine) {
    let mut state = engine.reload.state();
    if state.due.is_none() {
        match engine.watches.after(SETTLE, |_| Target::PolicyDue) {
            Ok(watch) => state.due = Some(watch),
            Err(error) => tracing::warn!(%error, "no timer for the policy; SIGHUP has it read"),
        }
    }
}

/// It is time to read the files that changed.
pub fn due(engine: &Arc<Engine>) {
    let due = engine.reload.state().due.take();
    engine.watches.remove(due.as_slice());
    // The watches first, so that nothing changes unseen; the directory may be another one by now.
    watch(engine);
    let _ = now(engine);
}

/// Reads the files, and puts what they say in force if there is no mistake in them.
///
/// # Errors
/// What is wrong, with file, line and column. The policy before stays.
pub fn now(engine: &Arc<Engine>) -> Result<(), String> {
    match read(&engine.config) {
        Ok(policy) => {
            let was_wrong = engine.reload.state().mistake.take().is_some();
            if was_wrong || policy != *engine.policy() {
                account::tell_unkept(&engine.tree, &policy);
                engine.set_policy(policy);
                account::govern_all_again(engine);
                engine.tell(Event::Policy);
                tracing::info!("the policy was read again");
            }
            Ok(())
        }
        Err(error) => {
            let text = error.to_string();
            tracing::error!(%error, "the policy has errors; the previous one stays");
            engine.reload.state().mistake = Some(text.clone());
            Err(text)
        }
    }
}
