//! Containers in containers: ids for them, the way to the broker, and an end in order.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cgrant_container::{Session, SessionError};
use cgrant_proto::{
    Account, Endpoint, ExplainRequest,
    names::{DEFAULT_SOCKET, INNER_SOCKET, SOCKET_VARIABLE},
};
use cgrant_sys::{ProcFs, process::IdKind};
use rustix::fs::{FileType, fstat};

use crate::{
    Client,
    args::Blocks,
    error::{Doing, Failure},
    storage::IDS,
};

/// How many blocks a container gets for those inside it, if nobody says.
const USUAL: u32 = 16;
/// How often a smaller number is tried.
const TRIES: usize = 4;
/// systemd's own programs, where systemd is.
const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";
const SYSTEMCTL: &str = "/usr/bin/systemctl";
/// Is there where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long a container that ends with the one around it may take, in seconds, before it is killed.
const PATIENCE: u32 = 60;
/// What the command goes by, which systemd does not give its services.
const ENVIRONMENT: [&str; 3] = ["HOME", "XDG_DATA_HOME", SOCKET_VARIABLE];

/// How many blocks a new container is to have. Who does not say gets the usual number, but no more than policy gives, nor than half
/// of what there is: another one has room beside it.
pub(super) fn blocks(client: &Client, asked: Option<Blocks>, doing: &str) -> Result<u32, Failure> {
    match asked {
        None => Ok(0),
        Some(Blocks::Number(blocks)) => Ok(blocks),
        Some(Blocks::Auto) => {
            let session = client.connect(doing)?;
            usual(&session).doing(|| doing.to_owned())
        }
    }
}

fn usual(session: &Session) -> Result<u32, SessionError> {
    let manager = session.manager()?;
    let (_, _, rows) = session.call(manager.get_usage(&Account::new()))?;
    let left = match ids_inside() {
        // What is mapped here is all that there is; the account's other ids are not to be had.
        Some(all) => {
            let ranges = session.call(manager.list_ranges())?;
            ranges.iter().fold(all, |left, range| left.saturating_sub(range.2.next_multiple_of(IDS)))
        }
        None => rows.iter().find(|row| row.0 == "ids").map_or(u32::MAX, |(_, used, quota)| {
            u32::try_from(quota.saturating_sub(*used)).unwrap_or(u32::MAX)
        }),
    };
    let mut blocks = USUAL.min(left / IDS / 2).max(1);
    for _ in 0..TRIES {
        let question = ExplainRequest::new().option("nesting", blocks);
        let answer = session.call(manager.explain("CreateGrant", &question))?;
        let number = |key| answer.number(key).and_then(|number| u32::try_from(number).ok());
        let quota = number("quota");
        let fewer = match (answer.text("resource"), quota) {
            (Some("nesting-blocks"), Some(quota)) => quota,
            // What it would come to with what the user has besides.
            (Some("nesting-user-blocks"), Some(quota)) => {
                blocks.saturating_sub(number("usage").unwrap_or(u32::MAX).saturating_sub(quota))
            }
            (Some("ids-per-grant"), Some(quota)) => (quota / IDS).saturating_sub(1),
            // Why it is refused otherwise, the request itself is told.
            _ => break,
        };
        if fewer == 0 || fewer >= blocks {
            break;
        }
        blocks = fewer;
    }
    Ok(blocks)
}

/// How many ids this container has for others in it; `None` on a host.
fn ids_inside() -> Option<u32> {
    let map = ProcFs::open().and_then(|proc| proc.id_map(std::process::id(), IdKind::Uid)).ok()?;
    match map.as_slice() {
        [all] if all.count < u32::MAX => Some(all.count.saturating_sub(IDS)),
        _ => None,
    }
}

/// The directory of the broker's sockets, for a container to see.
pub(super) fn sockets(endpoint: &Endpoint) -> Option<PathBuf> {
    match endpoint {
        Endpoint::Socket(path) => std::path::absolute(path).ok()?.parent().map(Path::to_owned),
        // Over a bus nobody in a container asks.
        _ => Path::new(DEFAULT_SOCKET).parent().filter(|path| path.is_dir()).map(Path::to_owned),
    }
}

/// Is what came as payload a directory, that processes can be cloned into? In a container it is not.
pub(crate) fn is_within_reach(payload: &impl AsFd) -> bool {
    fstat(payload).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// A service manager of the container that this one is in: systemd, or for an ordinary user the one that runs for it.
struct Manager(Option<PathBuf>);

impl Manager {
    /// The one that runs, if one does.
    fn running() -> Option<Self> {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Path::new(BOOTED).is_dir().then_some(Self(None));
        }
        // pam_systemd(8); where its own manager is there, that is.
        let directory = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
        directory.join("systemd/private").exists().then_some(Self(Some(directory)))
    }

    /// One of systemd's programs, that is to speak with this one.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        if let Self(Some(directory)) = self {
            command.arg("--user").env("XDG_RUNTIME_DIR", directory).env_remove("DBUS_SESSION_BUS_ADDRESS");
        }
        command.stdin(Stdio::null());
        command
    }

    /// Has it been told of this container before? The unit stays when the container ends by itself, for the next time that it is started.
    fn knows(&self, name: &str) -> bool {
        let mut command = self.command(SYSTEMCTL);
        command.args(["--quiet", "is-active", &unit(name)]);
        command.status().is_ok_and(|status| status.success())
    }
}

/// Has systemd of the container that this one is in stop this one before it ends itself; for an ordinary user its own, which ends
/// with the user's last session unless that lingers (loginctl(1)).
///
/// On a host that is the broker's unit. In a container there is none, and what a system that shuts down sends to all that is left
/// would come to every process of this one at once: its systemd would execute itself again, for a bus that is dead already.
/// Where systemd does not run, whoever ends the container around has to stop those in it.
pub(super) fn end_in_order(name: &str) -> io::Result<()> {
    let Some(manager) = Manager::running().filter(|manager| !manager.knows(name)) else { return Ok(()) };
    let sockets = Path::new(INNER_SOCKET).parent().unwrap_or_else(|| Path::new("/")).display();
    let program = std::env::current_exe()?;
    let mut command = manager.command(SYSTEMD_RUN);
    command.args(["--quiet", "--collect", "--remain-after-exit", "--no-ask-password"]);
    command.arg(format!("--unit={}", unit(name)));
    command.arg(format!("--description=The container {name}"));
    command.arg(format!("--property=RequiresMountsFor={sockets}"));
    command.arg(format!("--property=TimeoutStopSec={}", PATIENCE + 30));
    // One that was stopped before is no failure. The name has nothing in it that means something to systemd.
    let stop = format!("--property=ExecStop=-\"{}\" stop --timeout {PATIENCE} {name}", program.display());
    command.arg(stop);
    for variable in ENVIRONMENT {
        if let Ok(value) = std::env::var(variable) {
            command.arg(format!("--setenv={variable}={value}"));
        }
    }
    // What it stands for runs already.
    let done = command.args(["--", "/bin/true"]).stdout(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

fn unit(name: &str) -> String {
    format!("cgrant-container-{name}.service")
}
