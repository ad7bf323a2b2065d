//! CGManager's interface from its clients' side: where it is, and one call with its answer.
//!
//! Two commands use it: `cgm`, for scripts that were written for CGManager's ([`cgm`]), and `cgrant cgroup`, for people.

pub(crate) mod cgm;

use std::{env, io, path::PathBuf};

use cgrant_container::{Session, SessionError};
use cgrant_proto::{Endpoint, Error as BrokerError};
use zbus::{Message, OwnedVariant, Type, Variant, wire::StructureBuilder};

/// Environment variable that names the socket.
pub(crate) const SOCKET_VARIABLE: &str = "CGRANT_CGMANAGER_SOCKET";
/// Where it is otherwise: CGManager's own place, and the one on hosts whose `/sys/fs/cgroup` has no room for a socket.
const SOCKETS: [&str; 2] = ["/sys/fs/cgroup/cgmanager/sock", "/run/cgmanager/sock"];
const PATH: &str = "/org/linuxcontainers/cgmanager";
const INTERFACE: &str = "org.linuxcontainers.cgmanager0_0";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LegacyError {
    /// Nothing listens.
    #[error("{path}: {source}")]
    Unreachable {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else listens, or has ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The call failed; in the words of the other side.
    #[error("{0}")]
    Refused(String),
    /// The other side broke off, or said something that is no answer to this call.
    #[error("no proper answer: {0}")]
    Unanswered(#[source] zbus::Error),
}

/// An argument of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Argument {
    /// `s`
    Text(String),
    /// `i`
    Number(i32),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Self {
        Self::Number(number)
    }
}

/// A call of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The method.
    pub(crate) method: &'static str,
    /// What it is given.
    pub(crate) arguments: Vec<Argument>,
}

impl Request {
    /// Of a method.
    pub(crate) fn new(method: &'static str) -> Self {
        Self { method, arguments: Vec::new() }
    }

    /// With one argument more.
    pub(crate) fn with(mut self, argument: impl Into<Argument>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// For the version of the interface, a property.
    pub(crate) fn version() -> Self {
        Self::new("Get").with(INTERFACE).with("api_version")
    }
}

/// A connection to whoever serves the interface: the broker, or a proxy.
#[derive(Debug)]
pub(crate) struct Manager(Session);

/// Where the interface is: by the variable, else the first place where there is a socket, else CGManager's own.
pub(crate) fn socket() -> PathBuf {
    if let Some(path) = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()) {
        return PathBuf::from(path);
    }
    let [own, _] = SOCKETS.map(PathBuf::from);
    SOCKETS.map(PathBuf::from).into_iter().find(|path| path.exists()).unwrap_or(own)
}

impl Manager {
    /// Connects.
    ///
    /// # Errors
    /// [`LegacyError::Unreachable`], [`LegacyError::Session`].
    pub(crate) fn connect() -> Result<Self, LegacyError> {
        Session::connect(&Endpoint::Socket(socket())).map(Self).map_err(|error| match error {
            SessionError::Broker(BrokerError::Unreachable { path, source }) => {
                LegacyError::Unreachable { path, source }
            }
            error => error.into(),
        })
    }

    /// Calls a method.
    ///
    /// # Errors
    /// [`LegacyError::Refused`], [`LegacyError::Unanswered`].
    pub(crate) fn call(&self, request: &Request) -> Result<Message, LegacyError> {
        let interface = if request.method == "Get" { PROPERTIES } else { INTERFACE };
        let connection = self.0.connection();
        let called = self.0.wait(async {
            let method = request.method;
            if request.arguments.is_empty() {
                return connection.call_method(None::<&str>, PATH, Some(interface), method, &()).await;
            }
            let body =
                request.arguments.iter().fold(StructureBuilder::new(), |body, argument| match argument {
                    Argument::Text(text) => body.append_field(Variant::from(text.as_str())),
                    Argument::Number(number) => body.append_field(Variant::from(*number)),
                });
            let body = body.build()?;
            connection.call_method(None::<&str>, PATH, Some(interface), method, &body).await
        });
        called.map_err(told)
    }

    /// Calls a method, and takes its answer apart.
    ///
    /// # Errors
    /// As [`Manager::call`].
    pub(crate) fn get<R>(&self, request: &Request) -> Result<R, LegacyError>
    where
        R: serde::de::DeserializeOwned + Type,
    {
        self.call(request)?.body().deserialize().map_err(LegacyError::Unanswered)
    }

    /// The version of the interface.
    ///
    /// # Errors
    /// As [`Manager::call`].
    pub(crate) fn version(&self) -> Result<i32, LegacyError> {
        let version: OwnedVariant = self.get(&Request::version())?;
        i32::try_from(version).map_err(LegacyError::Unanswered)
    }
}

/// What the other side said, without the name of the error.
fn told(error: zbus::Error) -> LegacyError {
    match error {
        zbus::Error::MethodError(name, text, _) => {
            LegacyError::Refused(text.unwrap_or_else(|| name.to_string()))
        }
        zbus::Error::FDO(error) => {
            let error: &dyn zbus::DBusError = &*error;
            LegacyError::Refused(error.description().unwrap_or_default().to_owned())
        }
        error => LegacyError::Unanswered(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_the_other_sides_words() {
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        let name = "org.freedesktop.DBus.Error.InvalidArgs";
        let error = Message::error(&call.header(), name).build(&"invalid request").unwrap();
        assert_eq!(told(zbus::Error::from(error)).to_string(), "invalid request");
    }
}
