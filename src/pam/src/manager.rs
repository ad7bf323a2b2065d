//! A connection to the broker's socket for CGManager's interface, and the calls that a session needs.
//!
//! One call after the other, until a moment that is fixed beforehand: whatever the broker does, a login waits no longer. The
//! socket is the only descriptor, closed with the connection and by exec.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    io::retry_on_intr,
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
        sockopt,
    },
};

use crate::message::{FIXED, Malformed, Reply, Value, call, rest_of};

/// Where the socket is, on hosts with v1 hierarchies and on others.
const PLACES: [&str; 2] = ["/sys/fs/cgroup/cgmanager/sock", "/run/cgmanager/sock"];
/// Longest line while it is agreed on who speaks, in bytes.
const MAX_LINE: usize = 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// There is no socket, or nobody listens.
    #[error("the broker can't be reached by {}: {source}; does cgrantd run, with CGManager's interface?", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },
    /// The time is over.
    #[error("the broker does not answer in time")]
    Late,
    /// The connection broke.
    #[error("the connection to the broker broke: {0}")]
    Broken(io::Error),
    /// What came is no reply.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The broker refuses.
    #[error("{method}({arguments}) is refused: {text}")]
    Refused {
        /// What was called.
        method: &'static str,
        /// With what.
        arguments: String,
        /// The broker's words.
        text: String,
    },
}

impl ManagerError {
    /// Can the connection be used further?
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

impl From<io::Error> for ManagerError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Broken(error),
        }
    }
}

/// The connection.
#[derive(Debug)]
pub struct Manager {
    stream: UnixStream,
    end: Instant,
    serial: u32,
}

impl Manager {
    /// Connects to the socket, or to the first of the usual ones where somebody listens. All is over after `time`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn connect(path: Option<&Path>, time: Duration) -> Result<Self, ManagerError> {
        let end = Instant::now() + time;
        let stream = match path {
            Some(path) => reach(path, end)?,
            None => reach_one(&PLACES.map(Path::new), end)?,
        };
        let mut manager = Self { stream, end, serial: 0 };
        manager.introduce()?;
        Ok(manager)
    }

    fn left(&self) -> Result<Duration, ManagerError> {
        left_until(self.end)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ManagerError> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            // The program may be one that a signal of a broken connection ends.
            match retry_on_intr(|| send(&self.stream, bytes, SendFlags::NOSIGNAL)) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn read(&mut self, mut room: &mut [u8]) -> Result<(), ManagerError> {
        while !room.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match self.stream.read(room) {
                Ok(0) => return Err(ManagerError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => room = room.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Says who we are; the broker knows better, from the kernel.
    fn introduce(&mut self) -> Result<(), ManagerError> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.write(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.extend(byte);
            if line.len() > MAX_LINE {
                return Err(Malformed.into());
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(Malformed.into());
        }
        self.write(b"BEGIN\r\n")
    }

    /// Calls a method.
    ///
    /// # Errors
    /// [`ManagerError`].
    fn call(&mut self, method: &'static str, values: &[Value<'_>]) -> Result<Reply, ManagerError> {
        self.serial = self.serial.wrapping_add(1).max(1);
        self.write(&call(self.serial, method, values))?;
        loop {
            let mut message = vec![0; FIXED];
            self.read(&mut message)?;
            let fixed = message.first_chunk().ok_or(Malformed)?;
            let whole = FIXED.saturating_add(rest_of(fixed)?);
            message.resize(whole, 0);
            self.read(message.get_mut(FIXED..).unwrap_or_default())?;
            let Some(reply) = Reply::parse(&message, self.serial)? else { continue };
            return match reply.failure() {
                Some(text) => Err(ManagerError::Refused { method, arguments: shown(values), text }),
                None => Ok(reply),
            };
        }
    }

    /// `ListControllers`: a string for each hierarchy.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn hierarchies(&mut self) -> Result<Vec<String>, ManagerError> {
        Ok(self.call("ListControllers", &[])?.texts()?)
    }

    /// `Create`: is it new?
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn create(&mut self, hierarchy: &str, path: &str) -> Result<bool, ManagerError> {
        let existed = self.call("Create", &[Value::Text(hierarchy), Value::Text(path)])?.number()?;
        Ok(existed != 1)
    }

    /// `Chown`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn chown(&mut self, hierarchy: &str, path: &str, uid: u32, gid: u32) -> Result<(), ManagerError> {
        let ids = [uid, gid].map(|id| Value::Number(id.cast_signed()));
        let [uid, gid] = ids;
        self.call("Chown", &[Value::Text(hierarchy), Value::Text(path), uid, gid]).map(drop)
    }

    /// `SetValue`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn set_value(
        &mut self,
        hierarchy: &str,
        path: &str,
        key: &str,
        value: &str,
    ) -> Result<(), ManagerError> {
        let values = [hierarchy, path, key, value].map(Value::Text);
        self.call("SetValue", &values).map(drop)
    }

    /// `MovePid` of this process.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn enter(&mut self, hierarchy: &str, path: &str) -> Result<(), ManagerError> {
        self.move_self("MovePid", hierarchy, path)
    }

    /// `MovePidAbs` of this process to the root.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn leave(&mut self, hierarchy: &str) -> Result<(), ManagerError> {
        self.move_self("MovePidAbs", hierarchy, "/")
    }

    fn move_self(&mut self, method: &'static str, hierarchy: &str, path: &str) -> Result<(), ManagerError> {
        let pid = Value::Number(std::process::id().cast_signed());
        self.call(method, &[Value::Text(hierarchy), Value::Text(path), pid]).map(drop)
    }

    /// `RemoveOnEmpty`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn remove_on_empty(&mut self, hierarchy: &str, path: &str) -> Result<(), ManagerError> {
        self.call("RemoveOnEmpty", &[hierarchy, path].map(Value::Text)).map(drop)
    }

    /// `GetTasksRecursive`: how many there are.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn tasks(&mut self, hierarchy: &str, path: &str) -> Result<usize, ManagerError> {
        Ok(self.call("GetTasksRecursive", &[hierarchy, path].map(Value::Text))?.count()?)
    }

    /// `Remove`.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub fn remove(&mut self, hierarchy: &str, path: &str, recursive: bool) -> Result<(), ManagerError> {
        let recursive = Value::Number(recursive.into());
        self.call("Remove", &[Value::Text(hierarchy), Value::Text(path), recursive]).map(drop)
    }
}

fn left_until(end: Instant) -> Result<Duration, ManagerError> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ManagerError::Late) } else { Ok(left) }
}

/// Connects to the first of the sockets where somebody listens: a broker that has ended leaves its socket behind. Of those where
/// nobody does, the error is that of the last one that is there.
fn reach_one(places: &[&Path; 2], end: Instant) -> Result<UnixStream, ManagerError> {
    let [first, second] = *places;
    match reach(first, end) {
        Err(ManagerError::Connect { path, source }) => match reach(second, end) {
            Err(ManagerError::Connect { source: missing, .. })
                if missing.kind() == io::ErrorKind::NotFound =>
            {
                Err(ManagerError::Connect { path, source })
            }
            other => other,
        },
        other => other,
    }
}

/// Connects. A socket whose queue is full keeps whoever connects waiting, so that has an end too.
fn reach(path: &Path, end: Instant) -> Result<UnixStream, ManagerError> {
    let time = left_until(end)?;
    let connected = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(time))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket.into())
    };
    connected().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::WouldBlock => ManagerError::Late,
        _ => ManagerError::Connect { path: path.to_owned(), source },
    })
}

fn shown(values: &[Value<'_>]) -> String {
    let values = values.iter().map(|value| match value {
        Value::Text(text) => (*text).to_owned(),
        Value::Number(number) => number.to_string(),
    });
    values.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

    use std::os::unix::net::UnixListener;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_socket_where_nobody_listens_is_passed_over() {
        let scratch = tempfile::tempdir().unwrap();
        let (left, served) = (scratch.path().join("left"), scratch.path().join("served"));
        drop(UnixListener::bind(&left).unwrap());
        let _listener = UnixListener::bind(&served).unwrap();
        reach_one(&[&left, &served], soon()).unwrap();
        reach_one(&[&served, &left], soon()).unwrap();
        let missing = scratch.path().join("missing");
        reach_one(&[&missing, &served], soon()).unwrap();
        for places in [[&*missing, &*left], [&*left, &*missing]] {
            let Err(ManagerError::Connect { path, .. }) = reach_one(&places, soon()) else { panic!() };
            assert_eq!(path, left, "what is there is named");
        }
    }
}
