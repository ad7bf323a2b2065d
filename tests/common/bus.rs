//! A D-Bus client for tests: calls by name with plain bodies, refusals taken apart, a time limit on everything.
//! It uses zbus only; the project's own client library is not trusted to test itself.

use std::{
    collections::HashMap,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use serde::{Serialize, de::DeserializeOwned};
use zbus::{
    Connection, DynamicType, Fd, MessageStream, OwnedFd as BusFd, OwnedObjectPath, OwnedVariant, Type,
    Variant, connection::Builder,
};

use super::{PATIENCE, Process};

pub const MANAGER_PATH: &str = "/org/cgrant/Broker1";
pub const MANAGER: &str = "org.cgrant.Broker1.Manager";
pub const GRANT: &str = "org.cgrant.Broker1.Grant";
pub const CGROUP: &str = "org.cgrant.Broker1.Cgroup";
pub const IDS: &str = "org.cgrant.Broker1.Ids";
pub const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// An error that was answered.
#[derive(Debug)]
pub struct Refused {
    /// The D-Bus error name without `org.cgrant.Error.`, or whole if it is another.
    pub name: String,
    pub message: String,
    pub details: HashMap<String, OwnedVariant>,
}

/// The body of a `PropertiesChanged`: interface, properties with their values, and names alone.
pub type Changed = (String, HashMap<String, OwnedVariant>, Vec<String>);

impl Refused {
    /// Is it this error, and does its sentence contain `words`?
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn is(&self, name: &str, words: &str) -> &Self {
        assert_eq!(self.name, name, "{self:?}");
        assert!(self.message.contains(words), "the sentence does not say {words:?}: {:?}", self.message);
        assert!(
            !self.message.ends_with('.') && !self.message.contains('\n'),
            "not one sentence: {:?}",
            self.message
        );
        self
    }

    /// A number in the details.
    pub fn number(&self, key: &str) -> Option<u64> {
        u64::try_from(self.details.get(key)?).ok()
    }

    /// A text in the details.
    pub fn text(&self, key: &str) -> Option<String> {
        match &**self.details.get(key)? {
            Variant::Str(text) => Some(text.to_string()),
            _ => None,
        }
    }
}

/// Options of a request, a{sv}.
#[derive(Default)]
pub struct Options(pub HashMap<String, Variant<'static>>);

impl Options {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any option.
    pub fn with(mut self, key: &str, value: impl Into<Variant<'static>>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    pub fn lifetime(self, lifetime: &str) -> Self {
        self.with("lifetime", lifetime.to_owned())
    }

    pub fn key(self, key: &str) -> Self {
        self.with("key", key.to_owned())
    }

    pub fn no_range(self) -> Self {
        self.with("no-range", true)
    }

    pub fn count(self, count: u32) -> Self {
        self.with("range-count", count)
    }

    /// A descriptor, duplicated.
    pub fn fd(self, key: &str, fd: impl AsFd) -> Self {
        let fd = fd.as_fd().try_clone_to_owned().unwrap();
        self.with(key, Fd::from(fd))
    }

    pub fn limits(self, limits: &[(&str, &str)]) -> Self {
        let limits: HashMap<String, String> =
            limits.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.with("limits", limits)
    }
}

/// A grant as it was answered.
#[derive(Debug)]
pub struct Grant {
    pub path: String,
    pub id: String,
    pub new: bool,
    pub uid: u32,
    pub gid: u32,
    pub count: u32,
    pub payload: OwnedFd,
}

/// A connection of a user's to the broker.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    destination: Option<String>,
    /// The process that made the connection: the caller, as the broker sees it.
    pub process: Option<Process>,
}

/// A call whose answer is still to come.
pub struct Pending {
    stream: MessageStream,
    serial: std::num::NonZeroU32,
}

/// Messages that came in since it was made.
pub struct Watch(MessageStream);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Client {
    /// Speaks over `stream`, which `process` of user `uid` connected; it lives as long as the client, where it is given.
    pub fn new(stream: UnixStream, uid: u32, process: impl Into<Option<Process>>) -> Self {
        Self::try_new(stream, uid, process).unwrap_or_else(|error| panic!("no D-Bus connection: {error}"))
    }

    /// The same where it may be refused.
    pub fn try_new(
        stream: UnixStream,
        uid: u32,
        process: impl Into<Option<Process>>,
    ) -> Result<Self, String> {
        let runtime = runtime();
        let connection = runtime.block_on(async {
            let builder = Builder::unix_stream(stream).user_id(uid).p2p();
            tokio::time::timeout(PATIENCE, builder.build()).await
        });
        match connection {
            Ok(Ok(connection)) => {
                Ok(Self { runtime, connection, destination: None, process: process.into() })
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it took too long".into()),
        }
    }

    /// A client of a bus at `address`, as root, that calls `destination`.
    pub fn on_bus(address: &str, destination: &str) -> Self {
        let runtime = runtime();
        let connection = runtime.block_on(async { Builder::address(address).build().await }).unwrap();
        Self { runtime, connection, destination: Some(destination.to_owned()), process: None }
    }

    /// Calls a method.
    pub fn call<B, R>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<R, Refused>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        let call =
            self.connection.call_method(self.destination.as_deref(), path, Some(interface), method, body);
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await });
        match answer.unwrap_or_else(|_| panic!("{method} was not answered in time")) {
            Ok(message) => {
                Ok(message.body().deserialize().unwrap_or_else(|error| panic!("answer of {method}: {error}")))
            }
            Err(zbus::Error::MethodError(name, _, message)) => {
                let name = name.as_str();
                let name = name.strip_prefix("org.cgrant.Error.").unwrap_or(name).to_owned();
                let body = message.body();
                let (message, details) = body
                    .deserialize::<(String, HashMap<String, OwnedVariant>)>()
                    .or_else(|_| body.deserialize::<String>().map(|message| (message, HashMap::new())))
                    .unwrap_or_default();
                Err(Refused { name, message, details })
            }
            // zbus takes the errors of the D-Bus specification apart by itself.
            Err(zbus::Error::FDO(error)) => {
                let message = zbus::DBusError::description(&*error).unwrap_or_default().to_owned();
                Err(Refused {
                    name: zbus::DBusError::name(&*error).to_string(),
                    message,
                    details: HashMap::new(),
                })
            }
            Err(error) => Err(Refused {
                name: "disconnected".into(),
                message: error.to_string(),
                details: HashMap::new(),
            }),
        }
    }

    /// Calls a method and lets somebody be asked; the answer is for [`end`](Self::end).
    pub fn begin<B>(&self, path: &str, interface: &str, method: &str, body: &B) -> Pending
    where
        B: Serialize + DynamicType,
    {
        let mut call = zbus::Message::method_call(path, method)
            .interface(interface)
            .with_flags(zbus::message::Flags::ALLOW_INTERACTIVE_AUTH);
        if let Some(destination) = self.destination.as_deref() {
            call = call.destination(destination);
        }
        let call = call.build(body).unwrap();
        let serial = call.primary_header().serial_num();
        let Watch(stream) = self.watch();
        self.runtime.block_on(async { self.connection.send(&call).await }).unwrap();
        Pending { stream, serial }
    }

    /// What came of a call; `None` if that does not come in `time`.
    pub fn end(&self, pending: &mut Pending, time: Duration) -> Option<Result<(), Refused>> {
        let Pending { stream, serial } = pending;
        let wait = async {
            while let Some(Ok(message)) = stream.next().await {
                if message.header().reply_serial() == Some(*serial) {
                    return Some(message);
                }
            }
            None
        };
        let message = self.runtime.block_on(async { tokio::time::timeout(time, wait).await }).ok()??;
        let name = message.header().error_name().map(ToString::to_string);
        Some(match name {
            None => Ok(()),
            Some(name) => {
                let name = name.strip_prefix("org.cgrant.Error.").unwrap_or(&name).to_owned();
                let (message, details) = message
                    .body()
                    .deserialize::<(String, HashMap<String, OwnedVariant>)>()
                    .or_else(|_| {
                        message.body().deserialize::<String>().map(|message| (message, HashMap::new()))
                    })
                    .unwrap_or_default();
                Err(Refused { name, message, details })
            }
        })
    }

    /// The same in one.
    pub fn ask<B>(&self, path: &str, interface: &str, method: &str, body: &B) -> Result<(), Refused>
    where
        B: Serialize + DynamicType,
    {
        let mut pending = self.begin(path, interface, method, body);
        self.end(&mut pending, PATIENCE).unwrap_or_else(|| panic!("{method} was not answered in time"))
    }

    /// A client of a bus at `stream`, which `process` of user `uid` connected, that calls `destination`.
    pub fn of_bus(stream: UnixStream, uid: u32, process: Process, destination: &str) -> Self {
        let runtime = runtime();
        let connection =
            runtime.block_on(async { Builder::unix_stream(stream).user_id(uid).build().await }).unwrap();
        Self { runtime, connection, destination: Some(destination.to_owned()), process: Some(process) }
    }

    /// A method of the manager.
    pub fn manager<B, R>(&self, method: &str, body: &B) -> Result<R, Refused>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call(MANAGER_PATH, MANAGER, method, body)
    }

    /// Makes a grant.
    pub fn create(&self, name: &str, options: Options) -> Result<Grant, Refused> {
        let (path, result, payload): (OwnedObjectPath, HashMap<String, OwnedVariant>, BusFd) =
            self.manager("CreateGrant", &(name, options.0))?;
        let number = |key: &str| result.get(key).and_then(|v| u32::try_from(v).ok()).unwrap_or(0);
        Ok(Grant {
            path: path.to_string(),
            id: result.get("id").and_then(|v| <&str>::try_from(v).ok()).unwrap().to_owned(),
            new: result.get("new").and_then(|v| bool::try_from(v).ok()).unwrap(),
            uid: number("uid"),
            gid: number("gid"),
            count: number("count"),
            payload: payload.into(),
        })
    }

    /// The object of the caller's grant of this name.
    pub fn find(&self, name: &str) -> Result<String, Refused> {
        let none: HashMap<String, Variant<'_>> = HashMap::new();
        self.manager::<_, OwnedObjectPath>("GetGrant", &(name, none)).map(|path| path.to_string())
    }

    /// The names of the caller's grants.
    pub fn names(&self) -> Vec<String> {
        self.names_or_refused().unwrap()
    }

    /// The same where it may be refused.
    pub fn names_or_refused(&self) -> Result<Vec<String>, Refused> {
        let none: HashMap<String, Variant<'_>> = HashMap::new();
        let rows: Vec<(OwnedObjectPath, String, u32)> = self.manager("ListGrants", &none)?;
        let mut names: Vec<String> = rows.into_iter().map(|(_, name, _)| name).collect();
        names.sort();
        Ok(names)
    }

    /// What an account uses beside its quotas: resource, used, quota.
    pub fn usage_of(&self, account: u32) -> Vec<(String, u64, u64)> {
        let (_, _, rows): (u32, String, Vec<(String, u64, u64)>) =
            self.manager("GetUsage", &Options::new().with("account", account).0).unwrap();
        rows
    }

    /// A method of a grant's cgroup interface.
    pub fn cgroup<B, R>(&self, grant: &str, method: &str, body: &B) -> Result<R, Refused>
    where
        B: Serialize + DynamicType,
        R: DeserializeOwned + Type,
    {
        self.call(grant, CGROUP, method, body)
    }

    /// Attaches a process; how many were attached.
    pub fn attach(&self, grant: &str, pidfd: impl AsFd, options: Options) -> Result<u32, Refused> {
        let pidfd = Fd::from(pidfd.as_fd().try_clone_to_owned().unwrap());
        self.cgroup(grant, "Attach", &(pidfd, options.0))
    }

    pub fn set_limits(&self, grant: &str, limits: &[(&str, &str)]) -> Result<(), Refused> {
        let limits: HashMap<&str, &str> = limits.iter().copied().collect();
        self.cgroup(grant, "SetLimits", &limits)
    }

    pub fn values(&self, grant: &str, keys: &[&str]) -> Result<HashMap<String, String>, Refused> {
        self.cgroup(grant, "GetValues", &keys)
    }

    pub fn value(&self, grant: &str, key: &str) -> String {
        self.values(grant, &[key]).unwrap().remove(key).unwrap_or_else(|| panic!("no value for {key}"))
    }

    pub fn stat(&self, grant: &str) -> HashMap<String, OwnedVariant> {
        self.cgroup(grant, "Stat", &()).unwrap()
    }

    pub fn processes(&self, grant: &str) -> Vec<u32> {
        self.cgroup(grant, "ListProcesses", &()).unwrap()
    }

    pub fn release(&self, grant: &str, kill: bool) -> Result<(), Refused> {
        self.call(grant, GRANT, "Release", &Options::new().with("kill", kill).0)
    }

    /// A property.
    pub fn property<T>(&self, path: &str, interface: &str, name: &str) -> T
    where
        T: TryFrom<OwnedVariant>,
        T::Error: std::fmt::Debug,
    {
        let value: OwnedVariant = self.call(path, PROPERTIES, "Get", &(interface, name)).unwrap();
        T::try_from(value).unwrap()
    }

    /// The introspection of an object.
    pub fn introspect(&self, path: &str) -> String {
        self.call(path, "org.freedesktop.DBus.Introspectable", "Introspect", &()).unwrap()
    }

    /// From now on, notes what comes in.
    pub fn watch(&self) -> Watch {
        Watch(self.runtime.block_on(async { MessageStream::from(&self.connection) }))
    }

    /// Waits for a signal called `member`; its path and body. `None` if it does not come in `time`.
    pub fn signal<R>(&self, watch: &mut Watch, member: &str, time: Duration) -> Option<(String, R)>
    where
        R: DeserializeOwned + Type,
    {
        let wait = async {
            while let Some(Ok(message)) = watch.0.next().await {
                let header = message.header();
                let is_it = message.message_type() == zbus::message::Type::Signal
                    && header.member().is_some_and(|m| m.as_str() == member);
                if is_it {
                    let path = header.path().map(ToString::to_string).unwrap_or_default();
                    return Some((path, message.body().deserialize().unwrap()));
                }
            }
            None
        };
        self.runtime.block_on(async { tokio::time::timeout(time, wait).await }).ok().flatten()
    }

    /// Every signal up to the one that a grant of this name is added: what it is called, and the object that it is about. `None` if that one
    /// does not come.
    pub fn signals_until_added(&self, watch: &mut Watch, name: &str) -> Option<Vec<(String, String)>> {
        type Interfaces = HashMap<String, HashMap<String, OwnedVariant>>;
        let wait = async {
            let mut heard = Vec::new();
            while let Some(Ok(message)) = watch.0.next().await {
                if message.message_type() != zbus::message::Type::Signal {
                    continue;
                }
                let (header, body) = (message.header(), message.body());
                let member = header.member().map(ToString::to_string).unwrap_or_default();
                let (about, added) = match member.as_str() {
                    "GrantAdded" => {
                        let (path, name, _): (OwnedObjectPath, String, u32) = body.deserialize().unwrap();
                        (path.to_string(), Some(name))
                    }
                    "GrantRemoved" => {
                        let removed: (OwnedObjectPath, String, u32, String) = body.deserialize().unwrap();
                        (removed.0.to_string(), None)
                    }
                    "InterfacesAdded" => {
                        let added: (OwnedObjectPath, Interfaces) = body.deserialize().unwrap();
                        (added.0.to_string(), None)
                    }
                    "InterfacesRemoved" => {
                        let removed: (OwnedObjectPath, Vec<String>) = body.deserialize().unwrap();
                        (removed.0.to_string(), None)
                    }
                    _ => (header.path().map(ToString::to_string).unwrap_or_default(), None),
                };
                heard.push((member, about));
                if added.as_deref() == Some(name) {
                    return Some(heard);
                }
            }
            None
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, wait).await }).ok().flatten()
    }

    /// Hears from now on what goes over the bus and fits `rule`, and can say nothing any more (`BecomeMonitor` of the D-Bus
    /// specification); the connection has to be root's.
    pub fn monitor(&self, rule: &str) -> Watch {
        let watch = self.watch();
        let interface = "org.freedesktop.DBus.Monitoring";
        self.call::<_, ()>("/org/freedesktop/DBus", interface, "BecomeMonitor", &(vec![rule], 0_u32))
            .unwrap();
        watch
    }

    /// Waits until somebody on the bus calls a method; false if nobody does in time.
    pub fn hears_call(&self, watch: &mut Watch, member: &str) -> bool {
        let wait = async {
            while let Some(Ok(message)) = watch.0.next().await {
                let is_call = message.message_type() == zbus::message::Type::MethodCall;
                if is_call && message.header().member().is_some_and(|name| name.as_str() == member) {
                    return true;
                }
            }
            false
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, wait).await }).unwrap_or(false)
    }

    /// A grant, and what changed of it. What is told of the account's usage meanwhile is passed over.
    pub fn change_of_grant(&self, watch: &mut Watch, time: Duration) -> Option<(String, Changed)> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (path, changed) = self.signal::<Changed>(watch, "PropertiesChanged", left)?;
            if changed.0 != "org.cgrant.Broker1.Account" {
                return Some((path, changed));
            }
        }
    }

    /// Is the connection still served?
    pub fn answers(&self) -> bool {
        self.call::<_, ()>("/", "org.freedesktop.DBus.Peer", "Ping", &()).is_ok()
    }
}
