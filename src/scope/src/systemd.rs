//! What is asked of systemd: one transient scope with delegation.
//!
//! Over the system bus. Where no bus is up, through `systemctl` and `systemd-run`, which root's systemd answers on a
//! socket of its own: its messages there have sender names that the bus would never give, and our D-Bus library rightly
//! refuses them.

use std::{
    io,
    process::{Command, Stdio},
    time::Duration,
};

use cgrant_sys::hierarchy::{CGROUP2, mounted};
use futures_util::StreamExt;
use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant, connection::Builder};

use crate::keeper::{self, Starting};

/// systemd's own programs, for hosts without a bus. They are where systemd is.
const SYSTEMCTL: &str = "/usr/bin/systemctl";
const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";
/// What the service managers of users start after, and so stop before, when the machine is switched off: they stop
/// containers in order, which must not have been killed with the scope until then.
const USER_SESSIONS: &str = "systemd-user-sessions.service";
/// What the packaged broker is called, whose scope is the default one.
const BROKER: &str = "cgrantd.service";
const DEFAULT_SCOPE: &str = "cgrant.scope";
/// What is delegated where controllers are on cgroup v1: all that systemd handles there, by its names (systemd.resource-control(5),
/// `Delegate=`).
///
/// `yes` leaves out those that cgroup v2 has not. But whatever hierarchy systemd handles and no unit of its own needs it clears of
/// empty cgroups, everywhere in it and at each `daemon-reload`: what is ours there has to be in the scope.
const OF_V1: [&str; 8] = ["cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids"];
/// How long one call may take.
const CALL: Duration = Duration::from_secs(15);
/// How often it is looked whether `systemd-run` has become the keeper.
const LOOK: Duration = Duration::from_millis(10);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        aux: &[(&str, &[(&str, Variant<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: ObjectPath<'_>, unit: &str, result: &str) -> zbus::Result<()>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Scope", default_service = "org.freedesktop.systemd1")]
trait Scope {
    #[zbus(property(emits_changed_signal = "false"))]
    fn control_group(&self) -> zbus::Result<String>;
}

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Neither way to it works.
    #[error("systemd runs this host but cannot be reached: {bus}; {SYSTEMCTL}: {tool}")]
    Unreachable {
        /// What came of the bus.
        bus: Box<zbus::Error>,
        /// What came of the program.
        tool: io::Error,
    },
    /// A program of systemd's failed.
    #[error("{program} failed: {source}")]
    Tool {
        /// Which.
        program: &'static str,
        /// How.
        source: io::Error,
    },
    /// `systemd-run` ended before it became the keeper.
    #[error("systemd refused to start {0}")]
    Refused(String),
    /// A call failed.
    #[error("systemd refused: {0}")]
    Call(#[from] zbus::Error),
    /// The job of the scope failed.
    #[error("systemd could not start {unit}: {result}")]
    Job {
        /// The unit.
        unit: String,
        /// systemd's word for what came of it.
        result: String,
    },
    /// The connection ended in the middle.
    #[error("systemd closed the connection")]
    Gone,
}

impl SystemdError {
    /// Does a unit of this name exist already?
    pub fn is_unit_exists(&self) -> bool {
        matches!(self, Self::Call(error) if has_name(error, "org.freedesktop.systemd1.UnitExists"))
    }
}

fn has_name(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(got, _, _) if got.as_str() == name)
}

/// What systemd says about the scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeState {
    /// It is not there, or ended.
    Absent,
    /// It comes or goes.
    Changing,
    /// It lives; its cgroup's path.
    Active(String),
}

/// The systemd that runs this host.
pub enum Systemd {
    /// Over the system bus.
    Bus(Box<Bus>),
    /// Through its programs.
    Programs,
}

impl Systemd {
    /// Connects over the system bus, or finds that its programs answer.
    ///
    /// # Errors
    /// [`SystemdError::Unreachable`], [`SystemdError::Call`].
    pub async fn connect() -> Result<Self, SystemdError> {
        match Builder::system().method_timeout(CALL).build().await {
            Ok(connection) => {
                let manager = ManagerProxy::new(&connection).await?;
                // Once: systemd refuses a second time. Without it there are no signals of jobs.
                manager.subscribe().await?;
                Ok(Self::Bus(Box::new(Bus { connection, manager })))
            }
            Err(bus) => match show("-.slice") {
                Ok(_) => Ok(Self::Programs),
                Err(tool) => Err(SystemdError::Unreachable { bus: Box::new(bus), tool }),
            },
        }
    }

    /// The state of the scope `unit`.
    ///
    /// # Errors
    /// [`SystemdError::Call`], [`SystemdError::Tool`].
    pub async fn state(&self, unit: &str) -> Result<ScopeState, SystemdError> {
        match self {
            Self::Bus(bus) => bus.state(unit).await,
            Self::Programs => show(unit).map_err(|source| SystemdError::Tool { program: SYSTEMCTL, source }),
        }
    }

    /// Forgets that the scope failed, so that a new one of its name can be started.
    pub async fn forget_failure(&self, unit: &str) {
        // Not loaded or not failed is just as good.
        match self {
            Self::Bus(bus) => drop(bus.manager.reset_failed_unit(unit).await),
            Self::Programs => drop(tool(&["reset-failed", "--", unit]).status()),
        }
    }

    /// Starts the scope `unit` with a new keeper in it and waits until systemd has done it.
    ///
    /// # Errors
    /// Any [`SystemdError`] but [`SystemdError::Unreachable`].
    pub async fn start_scope(&self, unit: &str) -> Result<Starting, SystemdError> {
        match self {
            Self::Bus(bus) => {
                let keeper =
                    keeper::start().map_err(|source| SystemdError::Tool { program: keeper::NAME, source })?;
                bus.start_scope(unit, keeper.pid().unwrap_or_default()).await?;
                Ok(keeper)
            }
            Self::Programs => start_through_program(unit).await,
        }
    }
}

/// What the scope wants, and what it starts before and stops after. Where these units are not installed, systemd goes on without.
///
/// It wants the unit that ends everything in order before the scope is stopped (`systemd/cgrant-shutdown.service`), which is before systemd
/// sends SIGTERM to every process in it at once. Between the two the packaged broker ends, so that it makes no new scope meanwhile.
fn relations(unit: &str) -> (Vec<String>, Vec<String>) {
    let shutdown = format!("{}-shutdown.service", unit.trim_end_matches(".scope"));
    let mut before = vec![USER_SESSIONS.to_owned(), shutdown.clone()];
    if unit == DEFAULT_SCOPE {
        before.push(BROKER.to_owned());
    }
    (vec![shutdown], before)
}

/// Are there controllers on cgroup v1?
fn on_v1() -> bool {
    let is_v1 = |name: &str| name != CGROUP2 && !name.starts_with("name=");
    mounted().is_ok_and(|mounted| mounted.iter().any(|(name, _)| is_v1(name)))
}

/// `systemd-run --scope` puts itself into the new scope and then becomes the keeper.
async fn start_through_program(unit: &str) -> Result<Starting, SystemdError> {
    let unit_option = format!("--unit={unit}");
    let (wants, before) = relations(unit);
    let before = before.iter().map(|other| format!("--property=Before={other}"));
    let wants = wants.iter().map(|other| format!("--property=Wants={other}"));
    let delegate = if on_v1() { OF_V1.join(" ") } else { "yes".to_owned() };
    let delegate = format!("--property=Delegate={delegate}");
    let relations: Vec<String> = wants.chain(before).collect();
    let mut options = vec![
        "--scope",
        "--quiet",
        "--collect",
        &unit_option,
        "--description=Grants of cgrant",
        &delegate,
        "--property=TasksMax=infinity",
    ];
    options.extend(relations.iter().map(String::as_str));
    options.push("--");
    let mut keeper = keeper::start_through(SYSTEMD_RUN, &options)
        .map_err(|source| SystemdError::Tool { program: SYSTEMD_RUN, source })?;
    let comm = format!("/proc/{}/comm", keeper.pid().unwrap_or_default());
    while std::fs::read_to_string(&comm).unwrap_or_default().trim_end() != keeper::NAME {
        if keeper.has_ended() {
            return Err(SystemdError::Refused(unit.to_owned()));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(keeper)
}

/// What `systemctl show` says about the unit.
fn show(unit: &str) -> io::Result<ScopeState> {
    let output = tool(&["show", "--property=ActiveState,ControlGroup", "--", unit]).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(parse_show(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_show(text: &str) -> ScopeState {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    match value("ActiveState") {
        Some("active") => match value("ControlGroup") {
            Some(path) if !path.is_empty() => ScopeState::Active(path.to_owned()),
            _ => ScopeState::Changing,
        },
        Some("inactive" | "failed") => ScopeState::Absent,
        _ => ScopeState::Changing,
    }
}

fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(SYSTEMCTL);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A connection to systemd over the system bus.
pub struct Bus {
    connection: Connection,
    manager: ManagerProxy<'static>,
}

impl Bus {
    async fn state(&self, unit: &str) -> Result<ScopeState, SystemdError> {
        let path = match self.manager.get_unit(unit).await {
            Ok(path) => path,
            Err(error) if has_name(&error, "org.freedesktop.systemd1.NoSuchUnit") => {
                return Ok(ScopeState::Absent);
            }
            Err(error) => return Err(error.into()),
        };
        let proxy = UnitProxy::builder(&self.connection).path(path.clone()).build().await?;
        match proxy.active_state().await?.as_str() {
            "active" => {}
            "inactive" | "failed" => return Ok(ScopeState::Absent),
            _ => return Ok(ScopeState::Changing),
        }
        let scope = ScopeProxy::builder(&self.connection).path(path).build().await?;
        Ok(ScopeState::Active(scope.control_group().await?))
    }

    /// Starts the scope `unit` with the process `pid` in it.
    async fn start_scope(&self, unit: &str, pid: u32) -> Result<(), SystemdError> {
        let mut removed = self.manager.receive_job_removed().await?;
        let (wants, before) = relations(unit);
        let delegate = match on_v1() {
            true => ("DelegateControllers", Variant::from(OF_V1.to_vec())),
            false => ("Delegate", Variant::from(true)),
        };
        let properties = [
            ("Description", Variant::from("Grants of cgrant")),
            ("PIDs", Variant::from(vec![pid])),
            delegate,
            ("TasksMax", Variant::from(u64::MAX)),
            ("Wants", Variant::from(wants)),
            ("Before", Variant::from(before)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        let job = self.manager.start_transient_unit(unit, "fail", &properties, &[]).await?;
        while let Some(signal) = removed.next().await {
            let args = signal.args()?;
            if args.job().as_str() != job.as_str() {
                continue;
            }
            return match *args.result() {
                "done" => Ok(()),
                result => Err(SystemdError::Job { unit: unit.to_owned(), result: result.to_owned() }),
            };
        }
        Err(SystemdError::Gone)
    }
}

/// A runtime for one conversation.
///
/// # Errors
/// What the kernel says to making its epoll descriptor.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_packaged_unit_is_that_of_the_default_scope() {
        let unit = include_str!("../../../systemd/cgrant-shutdown.service");
        for line in [format!("BindsTo={DEFAULT_SCOPE}"), format!("After={DEFAULT_SCOPE} {BROKER}")] {
            assert!(unit.lines().any(|found| found.starts_with(&line)), "{line}");
        }
        let shutdown = "cgrant-shutdown.service";
        let (wants, before) = relations(DEFAULT_SCOPE);
        assert_eq!((wants, before), (words(&[shutdown]), words(&[USER_SESSIONS, shutdown, BROKER])));
        // Of another instance, which may have one too.
        let shutdown = "cgrant-t1-shutdown.service";
        let (wants, before) = relations("cgrant-t1.scope");
        assert_eq!((wants, before), (words(&[shutdown]), words(&[USER_SESSIONS, shutdown])));
    }

    #[test]
    fn what_systemctl_says_is_understood() {
        let active = "ControlGroup=/system.slice/cgrant.scope\nActiveState=active\n";
        assert_eq!(parse_show(active), ScopeState::Active("/system.slice/cgrant.scope".to_owned()));
        assert_eq!(parse_show("ActiveState=inactive\nControlGroup=\n"), ScopeState::Absent);
        assert_eq!(parse_show("ActiveState=failed\n"), ScopeState::Absent);
        assert_eq!(parse_show("ActiveState=deactivating\n"), ScopeState::Changing);
        assert_eq!(parse_show("ActiveState=active\nControlGroup=\n"), ScopeState::Changing);
        assert_eq!(parse_show(""), ScopeState::Changing);
    }
}
