//! A connection to a broker, for code that is not asynchronous.
//!
//! It has a runtime of one thread, made with the connection, which runs only while a call is waited for. A
//! [`crate::Launch`] must be begun before: it forks, and is refused once the runtime has made a thread.

use std::{collections::HashMap, future::Future, io, time::Duration};

use cgrant_proto::{CgroupProxy, Endpoint, Error, GrantProxy, LinksProxy, ManagerProxy, MountsProxy};
use zbus::{
    Connection, OwnedObjectPath, OwnedVariant, Proxy,
    fdo::{ObjectManagerProxy, PropertiesProxy},
    names::InterfaceName,
    proxy::{Builder, CacheProperties, Defaults},
};

/// How long a call may take before the broker is given up. The broker bounds what it does itself by less.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why a session has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker refused, or cannot be reached.
    #[error(transparent)]
    Broker(#[from] Error),
    /// The broker did not answer.
    #[error("the broker did not answer within {} seconds", DEADLINE.as_secs())]
    Silent,
    /// The runtime could not be made.
    #[error("cannot prepare to talk to the broker: {0}")]
    Runtime(#[source] io::Error),
}

/// A connection to a broker.
#[derive(Debug)]
pub struct Session {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
}

impl Session {
    /// Connects to the broker at `endpoint`.
    ///
    /// # Errors
    /// [`SessionError::Runtime`], [`SessionError::Silent`], or what [`cgrant_proto::connect()`] says.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SessionError::Runtime)?;
        let connection = within(&runtime, DEADLINE, cgrant_proto::connect(endpoint))?;
        Ok(Self { runtime, connection })
    }

    /// Waits for the answer to a call.
    ///
    /// # Errors
    /// What the call says; [`SessionError::Silent`] if it takes longer than a minute.
    pub fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, SessionError> {
        self.call_within(DEADLINE, call)
    }

    /// As [`Session::call`], for at most this long.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn call_within<T>(
        &self,
        time: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SessionError> {
        within(&self.runtime, time, call)
    }

    /// Waits for something that may take any time, such as signals.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The connection, for proxies of other interfaces.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The broker's own object.
    ///
    /// # Errors
    /// What zbus says about making the proxy, which does not talk to the broker.
    pub fn manager(&self) -> Result<ManagerProxy<'static>, SessionError> {
        self.proxy(ManagerProxy::builder(&self.connection))
    }

    /// A grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn grant(&self, path: &OwnedObjectPath) -> Result<GrantProxy<'static>, SessionError> {
        self.proxy(GrantProxy::builder(&self.connection).path(path.clone()))
    }

    /// The cgroup of a grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn cgroup(&self, path: &OwnedObjectPath) -> Result<CgroupProxy<'static>, SessionError> {
        self.proxy(CgroupProxy::builder(&self.connection).path(path.clone()))
    }

    /// The links of a grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn links(&self, path: &OwnedObjectPath) -> Result<LinksProxy<'static>, SessionError> {
        self.proxy(LinksProxy::builder(&self.connection).path(path.clone()))
    }

    /// What makes mounts for a grant's ids.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn mounts(&self, path: &OwnedObjectPath) -> Result<MountsProxy<'static>, SessionError> {
        self.proxy(MountsProxy::builder(&self.connection).path(path.clone()))
    }

    /// The links of every grant that the caller may see (`aa{sv}`), in one call.
    ///
    /// # Errors
    /// What the broker says.
    pub fn all_links(&self) -> Result<HashMap<OwnedObjectPath, OwnedVariant>, SessionError> {
        let manager = ObjectManagerProxy::builder(&self.connection)
            .destination(cgrant_proto::names::BUS_NAME)
            .path(cgrant_proto::names::MANAGER_PATH);
        let proxy = self.proxy(manager)?;
        let objects = self.call(async move { Ok(proxy.get_managed_objects().await?) })?;
        let links = objects.into_iter().filter_map(|(path, interfaces)| {
            let (_, mut properties) =
                interfaces.into_iter().find(|(name, _)| name.as_str() == cgrant_proto::names::LINKS)?;
            Some((path, properties.remove("Links")?))
        });
        Ok(links.collect())
    }

    /// All properties of one interface of an object, in one call.
    ///
    /// # Errors
    /// What the broker says.
    pub fn properties(
        &self,
        path: &OwnedObjectPath,
        interface: &'static str,
    ) -> Result<HashMap<String, OwnedVariant>, SessionError> {
        let properties = PropertiesProxy::builder(&self.connection)
            .destination(cgrant_proto::names::BUS_NAME)
            .path(path.clone());
        let proxy = self.proxy(properties)?;
        self.call(async move {
            let name = InterfaceName::try_from(interface)?;
            Ok(proxy.get_all(name).await?)
        })
    }

    /// Properties are not cached: a command asks once, and a cache would begin with a call of its own.
    fn proxy<T: Defaults + From<Proxy<'static>>>(
        &self,
        builder: Builder<'static, T>,
    ) -> Result<T, SessionError> {
        self.call(async move { Ok(builder.cache_properties(CacheProperties::No).build().await?) })
    }
}

fn within<T>(
    runtime: &tokio::runtime::Runtime,
    time: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, SessionError> {
    let answer = runtime.block_on(async move { tokio::time::timeout(time, call).await });
    Ok(answer.map_err(|_| SessionError::Silent)??)
}
