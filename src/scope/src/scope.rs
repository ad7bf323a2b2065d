//! Finds or makes the scope and sees to it that a keeper lives in its leaf.
//!
//! Nothing here trusts a name of an unprivileged user: the paths come from systemd and from
//! `/proc/self/mountinfo`, and everything from the slice down to the scope belongs to root.

use std::{io, path::PathBuf, time::Duration};

use cgrant_sys::{
    Dir, Pidfd,
    hierarchy::{self, Place},
    pidfd::Signal,
};
use cgrant_wire::boot::{Placement, ScopeReport};

use crate::{
    keeper,
    systemd::{ScopeState, Systemd, SystemdError},
};

/// The leaf that the keeper sits in.
const LEAF: &str = "keeper";
/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often a scope that comes or goes is looked at again, and how long it is waited for between.
const ATTEMPTS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(200);
/// Longest list of processes in the leaf that is read, in bytes.
const MAX_PROCS: usize = 4096;

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// systemd did not do it.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// It took too long.
    #[error("systemd did not make {unit} within {} s", PATIENCE.as_secs())]
    TimedOut {
        /// The unit.
        unit: String,
    },
    /// It kept coming and going.
    #[error("{0} does not settle: systemd starts or stops it again and again")]
    Unsettled(String),
    /// systemd put the keeper elsewhere.
    #[error("{0} is in no cgroup hierarchy that is mounted here")]
    NotPlaced(String),
    /// The kernel said no.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ScopeError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Did the scope go away while it was being entered?
    fn is_vanished(&self) -> bool {
        matches!(self, Self::System { source, .. } if matches!(source.raw_os_error(), Some(2 | 3 | 19)))
    }
}

/// A scope with its keeper.
#[derive(Debug)]
pub struct Obtained {
    /// For the supervisor.
    pub report: ScopeReport,
    /// The keeper.
    pub keeper: Pidfd,
}

/// Finds or makes the scope `unit`.
///
/// # Errors
/// Any [`ScopeError`].
pub fn obtain(unit: &str) -> Result<Obtained, ScopeError> {
    let runtime = crate::systemd::runtime().map_err(ScopeError::system("runtime"))?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, obtain_from_systemd(unit))
            .await
            .unwrap_or_else(|_| Err(ScopeError::TimedOut { unit: unit.to_owned() }))
    })
}

async fn obtain_from_systemd(unit: &str) -> Result<Obtained, ScopeError> {
    let systemd = Systemd::connect().await?;
    for _ in 0..ATTEMPTS {
        match attempt(&systemd, unit).await {
            Ok(Some(obtained)) => return Ok(obtained),
            Ok(None) => {}
            Err(error) if error.is_vanished() => {}
            Err(ScopeError::Systemd(error)) if error.is_unit_exists() => systemd.forget_failure(unit).await,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(ScopeError::Unsettled(unit.to_owned()))
}

/// One try; nothing if the scope is just coming or going.
async fn attempt(systemd: &Systemd, unit: &str) -> Result<Option<Obtained>, ScopeError> {
    match systemd.state(unit).await? {
        ScopeState::Changing => Ok(None),
        ScopeState::Active(path) => adopt(unit, &path).map(Some),
        ScopeState::Absent => make(systemd, unit).await.map(Some),
    }
}

/// Starts a keeper and the scope around it.
async fn make(systemd: &Systemd, unit: &str) -> Result<Obtained, ScopeError> {
    let keeper = systemd.start_scope(unit).await?;
    let pid = keeper.pid().unwrap_or_default();
    let ScopeState::Active(path) = systemd.state(unit).await? else {
        return Err(ScopeError::Unsettled(unit.to_owned()));
    };
    let placements = settle(pid, unit, &path)?;
    let keeper = keeper.settled().map_err(ScopeError::system("the keeper ended"))?;
    Ok(Obtained { report: ScopeReport { placements, made: true }, keeper })
}

/// Takes over the scope that lives at `path`, with its keeper or a new one.
fn adopt(unit: &str, path: &str) -> Result<Obtained, ScopeError> {
    if let Some((pid, keeper)) = living_keeper(path)? {
        let placements = settle(pid, unit, path)?;
        return Ok(Obtained { report: ScopeReport { placements, made: false }, keeper });
    }
    let keeper = keeper::start().map_err(ScopeError::system("cannot start the keeper"))?;
    let placements = settle(keeper.pid().unwrap_or_default(), unit, path)?;
    let keeper = keeper.settled().map_err(ScopeError::system("the keeper ended"))?;
    Ok(Obtained { report: ScopeReport { placements, made: false }, keeper })
}

/// The directories of the scope, one for each hierarchy that systemd made it in.
fn scope_directories(path: &str) -> Result<Vec<(String, PathBuf)>, ScopeError> {
    let mounted = hierarchy::mounted().map_err(ScopeError::system("cannot read the mounted hierarchies"))?;
    let below = path.trim_start_matches('/');
    Ok(mounted
        .into_iter()
        .map(|(name, mount)| (name, mount.join(below)))
        .filter(|(_, directory)| !below.is_empty() && directory.is_dir())
        .collect())
}

/// The process in the leaf, if one lives there.
fn living_keeper(path: &str) -> Result<Option<(u32, Pidfd)>, ScopeError> {
    for (hierarchy, directory) in scope_directories(path)? {
        let leaf = match Dir::open(&directory).and_then(|scope| scope.open_dir(LEAF)) {
            Ok(leaf) => leaf,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(ScopeError::system("cannot open the keeper's cgroup")(error)),
        };
        let listed = leaf
            .read("cgroup.procs", MAX_PROCS)
            .map_err(ScopeError::system("cannot read the keeper's cgroup"))?;
        let Some(pid) = listed.lines().next().and_then(|line| line.parse().ok()) else { continue };
        let Ok(pidfd) = Pidfd::open(pid) else { continue };
        // The pid was read before the pidfd was opened: only one that still sits in the leaf is the keeper.
        let wanted = Place { hierarchy, path: format!("{path}/{LEAF}") };
        if hierarchy::places(pid).is_ok_and(|places| places.contains(&wanted))
            && pidfd.is_alive().unwrap_or(false)
        {
            return Ok(Some((pid, pidfd)));
        }
    }
    Ok(None)
}

/// Puts the keeper `pid` into the leaf in every hierarchy that the scope is in, and says which these are.
fn settle(pid: u32, unit: &str, path: &str) -> Result<Vec<Placement>, ScopeError> {
    for (_, directory) in scope_directories(path)? {
        enter_leaf(pid, &directory).map_err(ScopeError::system("cannot put the keeper into its cgroup"))?;
    }
    let leaf = format!("{path}/{LEAF}");
    let places = hierarchy::places(pid).map_err(ScopeError::system("the keeper ended"))?;
    let placements: Vec<_> = places
        .into_iter()
        .filter(|place| place.path == leaf)
        .map(|place| Placement { hierarchy: place.hierarchy, path: path.to_owned() })
        .collect();
    if placements.is_empty() {
        return Err(ScopeError::NotPlaced(unit.to_owned()));
    }
    Ok(placements)
}

/// Ends the keeper if nothing but its leaf is left in the scope; systemd then removes the scope, which is empty.
///
/// # Errors
/// [`ScopeError::System`].
pub fn leave(placements: &[Placement], keeper: &Pidfd) -> Result<(), ScopeError> {
    let mounted = hierarchy::mounted().map_err(ScopeError::system("cannot read the mounted hierarchies"))?;
    for placement in placements {
        let Some((_, mount)) = mounted.iter().find(|(name, _)| *name == placement.hierarchy) else {
            continue;
        };
        let scope = Dir::open(&mount.join(placement.path.trim_start_matches('/')))
            .map_err(ScopeError::system("cannot open the scope"))?;
        let inside = scope.dirs().map_err(ScopeError::system("cannot read the scope"))?;
        if inside.iter().any(|name| name != LEAF) {
            return Ok(());
        }
    }
    keeper.send_signal(Signal::TERM).map_err(ScopeError::system("cannot end the keeper"))
}

fn enter_leaf(pid: u32, directory: &std::path::Path) -> io::Result<()> {
    let scope = Dir::open(directory)?;
    let leaf = match scope.open_dir(LEAF) {
        Ok(leaf) => leaf,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            scope.create_dir(LEAF, 0o755)?;
            scope.open_dir(LEAF)?
        }
        Err(error) => return Err(error),
    };
    leaf.write("cgroup.procs", &pid.to_string())
}
