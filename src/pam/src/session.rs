//! A login session's cgroups: made and entered when it is opened, left and removed when it is closed.
//!
//! In each hierarchy `PATTERN/NUMBER`: those on the way stay root's, the last one is given to the user, whose limits in it stay
//! root's too. The devices hierarchy is given to nobody.

use cgrant_sys::pam::Priority;

use crate::{
    manager::{Manager, ManagerError},
    options::{Options, Setting},
    pattern::{Person, Way},
};

/// The hierarchy that stays root's.
const DEVICES: &str = "devices";
/// Every hierarchy.
const ALL: &str = "all";
/// How often a cgroup that was removed before it was entered is made again: whoever left it last removes it.
const TRIES: usize = 4;

/// Why a session has no cgroups.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A controller is not there.
    #[error("the host has no hierarchy of the controller {0}")]
    NoController(String),
    /// There is no hierarchy to work in.
    #[error("no hierarchy is left in which this process can be moved to the root")]
    NoHierarchy,
    /// All numbers are taken.
    #[error("cgroups with all numbers to {0} are there already; --max-idx says how many there may be")]
    NoNumber(u32),
    /// A value is for a controller that the session has not.
    #[error("{0} can't be set: the session has no cgroup of its controller")]
    NoPlace(String),
    /// The broker.
    #[error(transparent)]
    Manager(#[from] ManagerError),
}

/// What is written to the log beside the outcome.
pub type Note<'a> = dyn FnMut(Priority, String) + 'a;

/// The cgroups of a session that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The names on the way from the root, the last one the session's own.
    pub path: Vec<String>,
    /// In which hierarchies.
    pub hierarchies: Vec<String>,
}

impl Session {
    /// As a word to be kept until the session is closed.
    pub fn to_word(&self) -> String {
        [self.path.join("/")].iter().chain(&self.hierarchies).map(|line| format!("{line}\n")).collect()
    }

    /// From such a word.
    pub fn from_word(word: &str) -> Option<Self> {
        let mut lines = word.lines();
        let path = lines.next()?.split('/').map(str::to_owned).collect();
        Some(Self { path, hierarchies: lines.map(str::to_owned).collect() })
    }
}

/// Opens a session: this process is in its cgroups afterwards. What was made is removed again if that fails, as far as the
/// broker answers.
///
/// # Errors
/// [`SessionError`].
pub fn open(
    manager: &mut Manager,
    options: &Options,
    person: &Person,
    way: &Way,
    note: &mut Note<'_>,
) -> Result<Session, SessionError> {
    let all = manager.hierarchies()?;
    let mut hierarchies = Vec::new();
    for hierarchy in chosen(&all, &options.controllers, note)? {
        match manager.leave(&hierarchy) {
            Ok(()) => hierarchies.push(hierarchy),
            Err(error) if error.is_refusal() => {
                note(Priority::Debug, format!("without {hierarchy}: {error}"))
            }
            Err(error) => return Err(error.into()),
        }
    }
    if hierarchies.is_empty() {
        return Err(SessionError::NoHierarchy);
    }
    let mut opening = Opening {
        manager,
        options,
        person,
        hierarchies,
        path: Vec::new(),
        name: None,
        made: Vec::new(),
        note,
    };
    match opening.run(way) {
        Ok(()) => Ok(Session { path: opening.path, hierarchies: opening.hierarchies }),
        Err(error) => {
            opening.undo();
            Err(error)
        }
    }
}

/// The hierarchies that a list of controllers stands for, each once: by those names that were asked for, since on cgroup2 no
/// other controllers have to be enabled.
fn chosen(all: &[String], wanted: &[String], note: &mut Note<'_>) -> Result<Vec<String>, SessionError> {
    let mut chosen: Vec<(&String, Vec<&str>)> = Vec::new();
    for name in wanted {
        let found: Vec<&String> =
            all.iter().filter(|hierarchy| name == ALL || has(hierarchy, name)).collect();
        if found.is_empty() {
            return Err(SessionError::NoController(name.clone()));
        }
        for hierarchy in found {
            if has(hierarchy, DEVICES) {
                if name != ALL {
                    note(
                        Priority::Warning,
                        "the devices hierarchy is given to nobody and left out".to_owned(),
                    );
                }
                continue;
            }
            let asked = if name == ALL { hierarchy } else { name };
            match chosen.iter_mut().find(|(known, _)| *known == hierarchy) {
                Some((_, names)) => names.push(asked),
                None => chosen.push((hierarchy, vec![asked])),
            }
        }
    }
    Ok(chosen.into_iter().map(|(_, names)| names.join(",")).collect())
}

/// Is it a controller of this hierarchy? Named ones go by their bare name too.
fn has(hierarchy: &str, controller: &str) -> bool {
    hierarchy.split(',').any(|one| one == controller || one.strip_prefix("name=") == Some(controller))
}

/// A session that is being opened.
struct Opening<'a, 'n> {
    manager: &'a mut Manager,
    options: &'a Options,
    person: &'a Person,
    hierarchies: Vec<String>,
    /// Where this process is in all of them.
    path: Vec<String>,
    /// What its own is called there, once that is clear.
    name: Option<String>,
    /// In which of them its own is new.
    made: Vec<String>,
    note: &'a mut Note<'n>,
}

impl Opening<'_, '_> {
    fn run(&mut self, way: &Way) -> Result<(), SessionError> {
        for name in &way.above {
            for hierarchy in self.hierarchies.clone() {
                self.pass(&hierarchy, name)?;
            }
            self.path.push(name.clone());
        }
        let name = self.make(&way.last)?;
        self.name = Some(name.clone());
        for hierarchy in self.made.clone() {
            self.manager.chown(&hierarchy, &name, self.person.uid, self.person.gid)?;
        }
        for setting in &self.options.settings {
            self.set(&name, setting)?;
        }
        for hierarchy in self.hierarchies.clone() {
            self.manager.enter(&hierarchy, &name)?;
            self.remove_on_empty(&hierarchy)?;
        }
        self.path.push(name);
        Ok(())
    }

    /// Makes a cgroup on the way if it is not there, and enters it.
    fn pass(&mut self, hierarchy: &str, name: &str) -> Result<(), SessionError> {
        let mut tries = TRIES;
        loop {
            self.manager.create(hierarchy, name)?;
            tries -= 1;
            match self.manager.enter(hierarchy, name) {
                Err(error) if error.is_refusal() && tries > 0 => (),
                entered => break entered?,
            }
        }
        self.remove_on_empty(hierarchy)
    }

    /// The cgroup that this process is in is removed when nothing is left in it. If the broker refuses that, closing the
    /// session still does it.
    fn remove_on_empty(&mut self, hierarchy: &str) -> Result<(), SessionError> {
        match self.manager.remove_on_empty(hierarchy, "") {
            Err(error) if error.is_refusal() => (self.note)(Priority::Debug, error.to_string()),
            done => done?,
        }
        Ok(())
    }

    /// Makes the session's own cgroups; their name.
    fn make(&mut self, last: &str) -> Result<String, SessionError> {
        let Some(max) = self.options.max_idx else {
            for hierarchy in self.hierarchies.clone() {
                if self.manager.create(&hierarchy, last)? {
                    self.made.push(hierarchy);
                }
            }
            return Ok(last.to_owned());
        };
        for number in 0..=max {
            let name = format!("{last}{number}");
            if self.claim(&name)? {
                return Ok(name);
            }
        }
        Err(SessionError::NoNumber(max))
    }

    /// Makes them with one name if it is free in all hierarchies. All sessions begin with the same one, where the kernel lets
    /// only one of them make it.
    fn claim(&mut self, name: &str) -> Result<bool, SessionError> {
        for hierarchy in self.hierarchies.clone() {
            let outcome = self.manager.create(&hierarchy, name);
            if matches!(outcome, Ok(true)) {
                self.made.push(hierarchy);
                continue;
            }
            for made in std::mem::take(&mut self.made) {
                self.manager.remove(&made, name, false)?;
            }
            return Ok(outcome.map(|_| false)?);
        }
        Ok(true)
    }

    fn set(&mut self, name: &str, setting: &Setting) -> Result<(), SessionError> {
        let Setting { controller, key, value } = setting;
        let hierarchy = self.hierarchies.iter().find(|hierarchy| has(hierarchy, controller));
        let hierarchy = hierarchy.ok_or_else(|| SessionError::NoPlace(key.clone()))?;
        if self.made.contains(hierarchy) {
            self.manager.set_value(hierarchy, name, key, value)?;
        }
        Ok(())
    }

    /// Leaves everything and removes what is new or empty. What is refused is left; any other error ends it, since the
    /// connection is no good then.
    fn undo(&mut self) {
        for hierarchy in &self.hierarchies {
            let new = self.name.iter().filter(|_| self.made.contains(hierarchy));
            let path: Vec<String> = self.path.iter().chain(new).cloned().collect();
            let left = self.manager.leave(hierarchy);
            let left = left.and_then(|()| prune(self.manager, hierarchy, &path, path.len()));
            if left.is_err_and(|error| !error.is_refusal()) {
                return;
            }
        }
    }
}

/// Closes a session: this process is in the root afterwards. Cgroups with processes in them stay, for these.
///
/// # Errors
/// [`ManagerError`]: the last refusal, or why the broker can't be asked further.
pub fn close(manager: &mut Manager, session: &Session, prune_depth: usize) -> Result<(), ManagerError> {
    let mut refused = Ok(());
    for hierarchy in &session.hierarchies {
        match end(manager, hierarchy, &session.path, prune_depth) {
            Err(error) if error.is_refusal() => refused = Err(error),
            done => done?,
        }
    }
    refused
}

fn end(
    manager: &mut Manager,
    hierarchy: &str,
    path: &[String],
    prune_depth: usize,
) -> Result<(), ManagerError> {
    manager.leave(hierarchy)?;
    let joined = path.join("/");
    match manager.tasks(hierarchy, &joined) {
        // What the user made in it goes with it.
        Ok(0) => manager.remove(hierarchy, &joined, true)?,
        Ok(_) => return Ok(()),
        // The broker was quicker: it is to be removed when it is empty.
        Err(error) if error.is_refusal() => (),
        Err(error) => return Err(error),
    }
    let above = path.split_last().map(|(_, above)| above).unwrap_or_default();
    prune(manager, hierarchy, above, prune_depth)
}

/// Removes a cgroup and those above it, so many at most, until one is in use.
fn prune(manager: &mut Manager, hierarchy: &str, path: &[String], most: usize) -> Result<(), ManagerError> {
    for depth in (1..=path.len()).rev().take(most) {
        let names = path.get(..depth).unwrap_or_default();
        match manager.remove(hierarchy, &names.join("/"), false) {
            Err(error) if error.is_refusal() => break,
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn texts(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn chosen_of(all: &str, wanted: &str) -> (Result<Vec<String>, SessionError>, usize) {
        let mut notes = 0;
        let chosen = chosen(&texts(all), &texts(wanted), &mut |_, _| notes += 1);
        (chosen, notes)
    }

    #[test]
    fn hierarchies_are_chosen_once_and_devices_never() {
        let v1 = "cpu,cpuacct devices memory name=systemd";
        for (all, wanted, expected, notes) in [
            (v1, "all", "cpu,cpuacct memory name=systemd", 0),
            (v1, "memory cpu cpuacct", "memory cpu,cpuacct", 0),
            (v1, "systemd", "systemd", 0),
            (v1, "devices memory", "memory", 1),
            (v1, "devices", "", 1),
            ("cpu,freezer,memory", "memory freezer", "memory,freezer", 0),
        ] {
            let (chosen, noted) = chosen_of(all, wanted);
            assert_eq!((chosen.unwrap(), noted), (texts(expected), notes), "{wanted}");
        }
        assert!(matches!(chosen_of(v1, "memory pids").0, Err(SessionError::NoController(_))));
    }

    #[test]
    fn a_session_is_noted_in_a_word() {
        let session = Session { path: texts("user joe 0"), hierarchies: texts("cpu,cpuacct memory") };
        assert_eq!(Session::from_word(&session.to_word()), Some(session));
        assert_eq!(Session::from_word(""), None);
    }
}
