//! What is asked of systemd: one transient scope with delegation.

use std::{io, time::Duration};

use futures_util::StreamExt;
use zbus::{Connection, ObjectPath, OwnedObjectPath, Variant, connection::Builder};

/// systemd's own socket, for the time when no bus is up.
const PRIVATE: &str = "unix:path=/run/systemd/private";
/// How long one call may take.
const CALL: Duration = Duration::from_secs(15);

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
    #[error(
        "systemd runs this host but can be reached neither over the system bus ({bus}) nor over its own socket ({private})"
    )]
    Unreachable {
        /// Error on the bus.
        bus: Box<zbus::Error>,
        /// Error on the socket.
        private: Box<zbus::Error>,
    },
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

/// A connection to the systemd that runs this host.
pub struct Systemd {
    connection: Connection,
    manager: ManagerProxy<'static>,
}

impl Systemd {
    /// Connects over the system bus, or over systemd's own socket where no bus is up.
    ///
    /// # Errors
    /// [`SystemdError::Unreachable`], [`SystemdError::Call`].
    pub async fn connect() -> Result<Self, SystemdError> {
        let connection = match Builder::system().method_timeout(CALL).build().await {
            Ok(connection) => connection,
            Err(bus) => {
                Builder::address(PRIVATE).p2p().method_timeout(CALL).build().await.map_err(|private| {
                    SystemdError::Unreachable { bus: Box::new(bus), private: Box::new(private) }
                })?
            }
        };
        let manager = ManagerProxy::new(&connection).await?;
        Ok(Self { connection, manager })
    }

    /// The state of the scope `unit`.
    ///
    /// # Errors
    /// [`SystemdError::Call`].
    pub async fn state(&self, unit: &str) -> Result<ScopeState, SystemdError> {
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

    /// Forgets that the scope failed, so that a new one of its name can be started.
    pub async fn forget_failure(&self, unit: &str) {
        // Not loaded or not failed is just as good.
        let _ = self.manager.reset_failed_unit(unit).await;
    }

    /// Starts the scope `unit` with the process `pid` in it and waits until systemd has done it.
    ///
    /// # Errors
    /// Any [`SystemdError`] but [`SystemdError::Unreachable`].
    pub async fn start_scope(&self, unit: &str, pid: u32) -> Result<(), SystemdError> {
        let mut removed = self.manager.receive_job_removed().await?;
        self.manager.subscribe().await?;
        let properties = [
            ("Description", Variant::from("Grants of cgrant")),
            ("PIDs", Variant::from(vec![pid])),
            ("Delegate", Variant::from(true)),
            ("TasksMax", Variant::from(u64::MAX)),
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
