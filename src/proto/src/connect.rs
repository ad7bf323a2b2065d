//! How a client reaches a broker: its own socket, peer to peer, or a message bus.

use std::{
    env,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use zbus::{Connection, connection::Builder};

use crate::{
    error::Error,
    names::{DEFAULT_SOCKET, INNER_SOCKET, SOCKET_VARIABLE},
};

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The broker's own socket.
    Socket(PathBuf),
    /// The system bus.
    SystemBus,
    /// Another message bus, by its D-Bus address.
    Bus(String),
}

impl Endpoint {
    /// Reads what a user writes: the path of the broker's socket (also as `unix:path=PATH`), `system` for the
    /// system bus, or `bus:ADDRESS` for another bus.
    ///
    /// # Errors
    /// [`Error::BadEndpoint`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == "system" {
            return Ok(Self::SystemBus);
        }
        if let Some(address) = text.strip_prefix("bus:") {
            return Ok(Self::Bus(address.to_owned()));
        }
        let path = text.strip_prefix("unix:path=").unwrap_or(text);
        if !path.contains('/') || path.contains('\0') {
            return Err(Error::BadEndpoint { text: text.to_owned() });
        }
        Ok(Self::Socket(PathBuf::from(path)))
    }

    /// Where the broker is when nobody says: `$CGRANT_SOCKET`, else `/run/cgrant/public/bus` if it is there, else
    /// `/run/cgrant/bus`, which a container has in which others can be made, else the system bus.
    ///
    /// # Errors
    /// [`Error::BadEndpoint`] if the variable names no endpoint.
    pub fn find() -> Result<Self, Error> {
        match env::var(SOCKET_VARIABLE) {
            Ok(text) if !text.is_empty() => Self::parse(&text),
            _ => {
                let there = [DEFAULT_SOCKET, INNER_SOCKET].into_iter().find(|path| Path::new(path).exists());
                Ok(there.map_or(Self::SystemBus, |path| Self::Socket(PathBuf::from(path))))
            }
        }
    }
}

/// Connects to a broker. The proxies work on the connection whichever way it was made; on another instance's bus
/// name they must be built with that name (see [`crate::names::bus_name`]).
///
/// # Errors
/// [`Error::Unreachable`] if nothing listens at the socket; [`Error::Dbus`] if the handshake or the bus fails.
pub async fn connect(endpoint: &Endpoint) -> Result<Connection, Error> {
    match endpoint {
        Endpoint::Socket(path) => {
            let stream = UnixStream::connect(path)
                .map_err(|source| Error::Unreachable { path: path.display().to_string(), source })?;
            Ok(Builder::unix_stream(stream).p2p().build().await?)
        }
        Endpoint::SystemBus => Ok(Builder::system().build().await?),
        Endpoint::Bus(address) => Ok(Builder::address(address.as_str()).build().await?),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_writes() {
        let socket = Endpoint::Socket(PathBuf::from("/run/x/bus"));
        assert_eq!(Endpoint::parse("/run/x/bus").unwrap(), socket);
        assert_eq!(Endpoint::parse("unix:path=/run/x/bus").unwrap(), socket);
        assert_eq!(Endpoint::parse("./bus").unwrap(), Endpoint::Socket(PathBuf::from("./bus")));
        assert_eq!(Endpoint::parse("system").unwrap(), Endpoint::SystemBus);
        assert_eq!(Endpoint::parse("bus:unix:path=/b").unwrap(), Endpoint::Bus("unix:path=/b".to_owned()));
        for wrong in ["", "session", "bus"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
