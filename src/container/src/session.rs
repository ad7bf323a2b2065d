//! A connection to a broker, for code that is not asynchronous.
//!
//! It has a runtime of one thread, made with the connection, which runs only while a call is waited for. A
//! [`crate::Launch`] must be begun before: it forks, and is refused once the runtime has made a thread.

use std::{collections::HashMap, future::Future, io, pin::pin, sync::Arc, time::Duration};

use cgrant_proto::{
    AccountProxy, Agent, Asked, Asking, CgroupProxy, Endpoint, Error, GrantProxy, LinksProxy, ManagerProxy,
    MountsProxy,
};
use zbus::{
    Connection, OwnedObjectPath, OwnedVariant, Proxy,
    fdo::{ObjectManagerProxy, PropertiesProxy},
    proxy::{Builder, CacheProperties, Defaults, ProxyImpl},
};

/// How long a call may take before the broker is given up. The broker bounds what it does itself by less than a minute, and
/// asks polkit four questions about a request at most, for 20 seconds each where no person is asked.
const DEADLINE: Duration = Duration::from_secs(60 + 4 * 20);
/// How much longer if a person is asked: four questions, of five minutes each.
const PERSONS_PATIENCE: Duration = Duration::from_secs(4 * 300);

/// Why a session has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker refused, or cannot be reached.
    #[error(transparent)]
    Broker(#[from] Error),
    /// The broker did not answer.
    #[error("the broker did not answer in time")]
    Silent,
    /// The runtime could not be made.
    #[error("cannot prepare to talk to the broker: {0}")]
    Runtime(#[source] io::Error),
}

/// The properties of an object, by interface.
pub type Interfaces = HashMap<String, HashMap<String, OwnedVariant>>;

/// A connection to a broker.
#[derive(Debug)]
pub struct Session {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
    asking: Arc<Asking>,
}

impl Session {
    /// Connects to the broker at `endpoint`.
    ///
    /// # Errors
    /// [`SessionError::Runtime`], [`SessionError::Silent`], or what [`cgrant_proto::connect()`] says.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, SessionError> {
        Self::connect_asking(endpoint, None)
    }

    /// The same, where a person may be asked to agree to what policy does not simply allow, by this agent or another one.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub fn connect_asking(endpoint: &Endpoint, agent: Option<Box<dyn Agent>>) -> Result<Self, SessionError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SessionError::Runtime)?;
        let asking = Asking::new(agent);
        let connection = within(&runtime, DEADLINE, &asking, cgrant_proto::connect(endpoint))?;
        Ok(Self { runtime, connection, asking })
    }

    /// Waits for the answer to a call.
    ///
    /// # Errors
    /// What the call says; [`SessionError::Silent`] if it takes longer than the broker lets anything take.
    pub fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, SessionError> {
        self.call_within(DEADLINE, call)
    }

    /// As [`Session::call`], for at most this long if no person is asked.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn call_within<T>(
        &self,
        time: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, SessionError> {
        within(&self.runtime, time, &self.asking, call)
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
    pub fn manager(&self) -> Result<Asked<ManagerProxy<'static>>, SessionError> {
        self.asked(ManagerProxy::builder(&self.connection))
    }

    /// A grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn grant(&self, path: &OwnedObjectPath) -> Result<Asked<GrantProxy<'static>>, SessionError> {
        self.asked(GrantProxy::builder(&self.connection).path(path.clone()))
    }

    /// An account, by its uid.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn account(&self, uid: u32) -> Result<Asked<AccountProxy<'static>>, SessionError> {
        let path = format!("{}/account/{uid}", cgrant_proto::names::MANAGER_PATH);
        self.asked(AccountProxy::builder(&self.connection).path(path))
    }

    /// The cgroup of a grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn cgroup(&self, path: &OwnedObjectPath) -> Result<Asked<CgroupProxy<'static>>, SessionError> {
        self.asked(CgroupProxy::builder(&self.connection).path(path.clone()))
    }

    /// The links of a grant.
    ///
    /// # Errors
    /// As [`Session::manager`].
    pub fn links(&self, path: &OwnedObjectPath) -> Result<Asked<LinksProxy<'static>>, SessionError> {
        self.asked(LinksProxy::builder(&self.connection).path(path.clone()))
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
        let links = self.all_grants()?.into_iter().filter_map(|(path, mut interfaces)| {
            Some((path, interfaces.remove(cgrant_proto::names::LINKS)?.remove("Links")?))
        });
        Ok(links.collect())
    }

    /// The properties of every grant that the caller may see, those inside of others included, by interface, in one call.
    ///
    /// # Errors
    /// What the broker says.
    pub fn all_grants(&self) -> Result<HashMap<OwnedObjectPath, Interfaces>, SessionError> {
        let manager = ObjectManagerProxy::builder(&self.connection)
            .destination(cgrant_proto::names::BUS_NAME)
            .path(cgrant_proto::names::MANAGER_PATH);
        let proxy = self.proxy(manager)?;
        let objects = self.call(async move { Ok(proxy.get_managed_objects().await?) })?;
        let grants = objects.into_iter().filter_map(|(path, interfaces)| {
            let interfaces: Interfaces =
                interfaces.into_iter().map(|(name, properties)| (name.to_string(), properties)).collect();
            interfaces.contains_key(cgrant_proto::names::GRANT).then_some((path, interfaces))
        });
        Ok(grants.collect())
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
        self.call(self.asked(properties)?.get_all(interface))
    }

    fn asked<T: Defaults + From<Proxy<'static>> + ProxyImpl<'static>>(
        &self,
        builder: Builder<'static, T>,
    ) -> Result<Asked<T>, SessionError> {
        Ok(Asked::new(self.proxy(builder)?, &self.asking))
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
    asking: &Asking,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, SessionError> {
    let answer = runtime.block_on(async move {
        let mut call = pin!(call);
        match tokio::time::timeout(time, call.as_mut()).await {
            Err(_) if asking.is_open() => tokio::time::timeout(PERSONS_PATIENCE, call).await,
            answer => answer,
        }
    });
    Ok(answer.map_err(|_| SessionError::Silent)??)
}
