//! `cgrant launch`, `start`, `exec` …: system containers.
//!
//! What a container is lies in the account's store; whether it runs, its monitor says. A verb is a look-up of the container
//! and one thing that is asked of the store, of the monitor, or of the broker about the grant, which has the container's name.

mod archive;
mod ask;
pub(crate) mod autostart;
mod config;
mod copy;
mod create;
mod credentials;
mod device;
mod disk;
mod exec;
mod info;
mod layered;
mod list;
mod logs;
mod merged;
pub(crate) mod nesting;
pub(crate) mod ports;
mod remove;
mod rename;
mod restart;
mod settings;
mod start;
mod streams;
mod terminal;
mod top;
mod transfer;
pub(crate) mod watch;

use std::{
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use cgrant_container::system::{Control, ControlError, Phase, State, read_state};
use cgrant_image::store::{Store, StoreError};
use cgrant_sys::Dir;

use crate::{Client, args::ContainerCommand, error::Failure, exit, storage};
use config::Config;
pub(crate) use disk::disk;

/// Name of the directory of a container's monitor.
const RUN: &str = "run";

pub(crate) fn run(client: &Client, command: ContainerCommand) -> Result<u8, Failure> {
    use ContainerCommand as C;
    match command {
        C::Launch(args) => start::launch(client, &args),
        C::Create(args) => create::create(client, &args),
        C::Start { containers, wait } => return Ok(start::start(client, &containers.names, wait.wait)),
        C::Stop { containers, timeout } => {
            return Ok(ask::stop(client, &containers.names, timeout.timeout));
        }
        C::Restart { containers, timeout, wait } => {
            return restart::restart(client, &containers.names, timeout.timeout, wait.wait);
        }
        C::Kill { containers, signal } => {
            return Ok(each(&containers.names, |name| ask::kill(name, signal)));
        }
        C::Pause(containers) => return Ok(each(&containers.names, |name| ask::freeze(client, name, true))),
        C::Resume(containers) => return Ok(each(&containers.names, |name| ask::freeze(client, name, false))),
        C::Delete { containers, force } => {
            return Ok(each(&containers.names, |name| remove::delete(client, name, force)));
        }
        C::Copy { from, new, hostname } => copy::copy(client, &from, &new, hostname),
        C::Export(args) => archive::export(client, args),
        C::Import(args) => archive::import(client, args),
        C::Rename { old, new } => rename::rename(client, &old, &new),
        C::List(args) => list::list(client, &args),
        C::Info(args) => info::info(client, &args.container.name, args.disk),
        C::Exec(args) => return exec::exec(*args),
        C::Shell { container, user } => return exec::shell(&container.name, user),
        C::Console(container) => return exec::console(&container.name),
        C::Logs(args) => return logs::logs(client, &args),
        C::Wait { containers, stopped, timeout } => {
            let patience = ask::Patience::new(timeout);
            return Ok(each(&containers.names, |name| ask::wait(client, name, stopped, patience)));
        }
        C::Push(args) => transfer::push(&args),
        C::Pull(args) => transfer::pull(&args),
        C::Set { container, settings } => settings::set(client, &container.name, &settings),
        C::Get { container, keys } => settings::get(client, &container.name, &keys),
        C::Top(args) => top::top(client, &args),
    }?;
    Ok(exit::DONE)
}

/// Does it for all of them. What fails is told and keeps none of the others back; the exit code is that of the first failure.
fn each<T>(items: impl IntoIterator<Item = T>, mut act: impl FnMut(T) -> Result<(), Failure>) -> u8 {
    let mut codes = Codes::default();
    for item in items {
        codes.note(act(item));
    }
    codes.first
}

/// The exit code of a verb that goes on after failures: that of the first.
#[derive(Debug, Default)]
struct Codes {
    first: u8,
}

impl Codes {
    /// What was done, or `None` where it was told why not.
    fn note<T>(&mut self, result: Result<T, Failure>) -> Option<T> {
        let failure = match result {
            Ok(value) => return Some(value),
            Err(failure) => failure,
        };
        // Standard error may be closed; the exit code still says it.
        let _ = writeln!(io::stderr(), "{}", failure.line());
        if self.first == exit::DONE {
            self.first = failure.code();
        }
        None
    }

    /// The exit code where something else was done after this.
    fn then(&self, code: u8) -> u8 {
        if self.first == exit::DONE { code } else { self.first }
    }
}

/// A container that was looked up by name, for one verb.
struct Found {
    store: Store,
    name: String,
    /// Completes "cannot …".
    doing: String,
    config: Config,
}

impl Found {
    /// `verb` completes "cannot … the container NAME".
    fn new(name: &str, verb: &str) -> Result<Self, Failure> {
        let doing = format!("{verb} the container {name:?}");
        let store = storage::store()?;
        match Config::read(&store, name) {
            Ok(config) => Ok(Self { store, name: name.to_owned(), doing, config }),
            Err(error) => Err(Failure::work(doing, error.into())),
        }
    }

    fn failed(&self, error: StoreError) -> Failure {
        Failure::work(&self.doing, error.into())
    }

    /// The name of the range that its files belong to.
    fn range(&self) -> &str {
        &self.config.range
    }

    /// The monitor's directory, which is there once it was started.
    fn run(&self) -> Result<Dir, ControlError> {
        run_of(&self.store, &self.name)
    }

    fn control(&self) -> Result<Control, Failure> {
        self.asked(self.run().and_then(|run| Control::connect(&run)))
    }

    fn asked<T>(&self, answer: Result<T, ControlError>) -> Result<T, Failure> {
        answer.map_err(|source| Failure::Control { doing: self.doing.clone(), source })
    }
}

fn run_of(store: &Store, name: &str) -> Result<Dir, ControlError> {
    let directory = store.container(name).map_err(io::Error::other).map_err(ControlError::Unreachable)?;
    match directory.open_dir(RUN) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ControlError::NotRunning),
        run => run.map_err(ControlError::Unreachable),
    }
}

fn phase(state: Option<&State>) -> Phase {
    state.map_or(Phase::Stopped, |state| state.phase)
}

/// What is known of a container: from its monitor while it runs, else what that wrote down last.
fn state(store: &Store, name: &str) -> Option<State> {
    let run = run_of(store, name).ok()?;
    match Control::connect(&run).and_then(|control| control.state()) {
        Ok(state) => Some(state),
        // A monitor that was killed has not written down that its container ended.
        Err(_) => read_state(&run).ok().map(|state| State { phase: Phase::Stopped, init: None, ..state }),
    }
}

/// What the broker says; `None`, with a warning, while none answers: the rest is known without it.
fn reachable<T>(said: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match said {
        Err(failure) if failure.code() == exit::NO_BROKER => {
            // Standard error may be closed, which is no reason to fail.
            let _ =
                writeln!(io::stderr(), "{}\ncgrant: what only the broker knows is left out", failure.line());
            Ok(None)
        }
        said => said.map(Some),
    }
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
