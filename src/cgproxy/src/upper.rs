//! The outer socket: one connection for all calls, made anew when it is lost.

use std::{os::unix::net::UnixStream, path::PathBuf, time::Duration};

use tokio::{sync::Mutex, time::timeout};
use zbus::{
    Connection, DynamicType, Message,
    connection::{AuthMechanism, Builder},
};

const PATH: &str = "/org/linuxcontainers/cgmanager";
const INTERFACE: &str = "org.linuxcontainers.cgmanager0_0";
/// How long a reply may take. That to an Scm call comes before the work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum UpperError {
    /// It can't be connected to, or refused.
    #[error("the outer socket: {0}")]
    Dbus(#[from] zbus::Error),
    /// It is not there.
    #[error("the outer socket: {0}")]
    Io(#[from] std::io::Error),
    /// It takes too long.
    #[error("the outer socket does not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Whoever serves the interface outside.
#[derive(Debug)]
pub struct Upper {
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Upper {
    /// At a socket.
    pub fn new(path: PathBuf) -> Self {
        Self { path, connection: Mutex::new(None) }
    }

    /// Calls a method. A connection that was lost is made anew, once.
    ///
    /// # Errors
    /// [`UpperError`].
    pub async fn call<B>(&self, method: &str, body: &B) -> Result<Message, UpperError>
    where
        B: serde::Serialize + DynamicType,
    {
        match self.call_once(method, body).await {
            Err(UpperError::Dbus(zbus::Error::InputOutput(_))) => self.call_once(method, body).await,
            called => called,
        }
    }

    async fn call_once<B>(&self, method: &str, body: &B) -> Result<Message, UpperError>
    where
        B: serde::Serialize + DynamicType,
    {
        let connection = self.connection().await?;
        let call = connection.call_method(None::<&str>, PATH, Some(INTERFACE), method, body);
        let called = timeout(PATIENCE, call).await.map_err(|_| UpperError::Silent)?;
        if let Err(zbus::Error::InputOutput(_)) = called {
            *self.connection.lock().await = None;
        }
        Ok(called?)
    }

    async fn connection(&self) -> Result<Connection, UpperError> {
        let mut known = self.connection.lock().await;
        if let Some(connection) = &*known {
            return Ok(connection.clone());
        }
        let connection = timeout(PATIENCE, self.connect()).await.map_err(|_| UpperError::Silent)??;
        *known = Some(connection.clone());
        Ok(connection)
    }

    /// CGManager lets in nobody from another user namespace but by ANONYMOUS, and loses descriptors that come right behind the
    /// handshake: so the first call is one without.
    async fn connect(&self) -> Result<Connection, UpperError> {
        let stream = UnixStream::connect(&self.path)?;
        let builder = Builder::unix_stream(stream).p2p().auth_mechanism(AuthMechanism::Anonymous);
        let connection = builder.build().await?;
        connection.call_method(None::<&str>, PATH, Some(INTERFACE), "Ping", &0).await?;
        Ok(connection)
    }
}
