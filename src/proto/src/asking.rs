//! Calls that a person may be asked to agree to.
//!
//! A call is made without that first, which costs nothing more where policy, polkit's rules, or a yes that polkit remembers
//! decide. Only if the broker says that a person could agree to it, it is made once more with
//! `ALLOW_INTERACTIVE_AUTHORIZATION`; from then on every call of the connection is, because the broker may not say so of what the
//! caller is not to know of. zbus has this flag for a method of a proxy, not for a connection.

use std::{
    collections::HashMap,
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Serialize;
use zbus::{
    DynamicTuple, DynamicType, OwnedObjectPath, OwnedVariant,
    fdo::PropertiesProxy,
    proxy::{MethodFlags, ProxyImpl},
    wire::DynamicDeserialize,
};

use crate::{
    description::Description,
    error::Error,
    options::{Account, AddLink, AdoptGrant, CreateGrant, ListGrants, ReleaseGrant},
    proxy::{CgroupProxy, CreateResult, GrantProxy, LinksProxy, ManagerProxy},
};

/// Sees to it that polkit finds somebody whom it can ask.
pub trait Agent: fmt::Debug + Send + Sync {
    /// A call begins that somebody may be asked about. Does not wait for long.
    fn begin(&self);
    /// It has ended, in whatever way.
    fn end(&self);
}

/// May a person be asked about the calls of a connection, and is one?
#[derive(Debug)]
pub struct Asking {
    agent: Option<Box<dyn Agent>>,
    needed: AtomicBool,
    open: AtomicBool,
}

impl Asking {
    /// Nobody is asked without an agent.
    pub fn new(agent: Option<Box<dyn Agent>>) -> Arc<Self> {
        Arc::new(Self { agent, needed: AtomicBool::new(false), open: AtomicBool::new(false) })
    }

    /// Is somebody being asked now, for all that is known here?
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Lets somebody be asked until what is returned is dropped.
    fn open<'a>(&'a self, agent: &'a dyn Agent) -> Open<'a> {
        self.needed.store(true, Ordering::Relaxed);
        agent.begin();
        self.open.store(true, Ordering::Relaxed);
        Open { asking: self, agent }
    }
}

struct Open<'a> {
    asking: &'a Asking,
    agent: &'a dyn Agent,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.asking.open.store(false, Ordering::Relaxed);
        self.agent.end();
    }
}

/// A proxy whose calls may be asked about. Methods that nobody is ever asked about are the proxy's own.
#[derive(Debug, Clone)]
pub struct Asked<P> {
    proxy: P,
    asking: Arc<Asking>,
}

impl<P> Deref for Asked<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.proxy
    }
}

impl<P: ProxyImpl<'static>> Asked<P> {
    /// The proxy, with what is known of its connection.
    pub fn new(proxy: P, asking: &Arc<Asking>) -> Self {
        Self { proxy, asking: Arc::clone(asking) }
    }

    async fn call<B, R>(&self, method: &'static str, body: &B) -> Result<R, Error>
    where
        B: Serialize + DynamicType,
        R: for<'d> DynamicDeserialize<'d>,
    {
        let proxy = self.proxy.inner();
        let agent = self.asking.agent.as_deref();
        if agent.is_none() || !self.asking.needed.load(Ordering::Relaxed) {
            match proxy.call(method, body).await.map_err(Error::from) {
                Err(Error::Refused(refusal)) if agent.is_some() && refusal.action.is_some() => (),
                answer => return answer,
            }
        }
        let _open = agent.map(|agent| self.asking.open(agent));
        let answer = proxy.call_with_flags(method, MethodFlags::ALLOW_INTERACTIVE_AUTH, body).await?;
        // There is one: none was asked for without an answer.
        answer.ok_or_else(|| Error::Dbus(zbus::Error::InvalidReply))
    }
}

macro_rules! asked {
    ($($proxy:ident { $($method:ident $name:literal ($($argument:ident: $kind:ty),*) -> $answer:ty;)* })*) => {
        $(impl Asked<$proxy<'static>> {
            $(
                #[doc = concat!("[`", stringify!($proxy), "::", stringify!($method), "`]")]
                ///
                /// # Errors
                /// As there.
                pub async fn $method(&self, $($argument: $kind),*) -> Result<$answer, Error> {
                    self.call($name, &DynamicTuple(($($argument,)*))).await
                }
            )*
        })*
    };
}

asked! {
    ManagerProxy {
        create_grant "CreateGrant" (name: &str, options: &CreateGrant<'_>)
            -> (OwnedObjectPath, CreateResult, zbus::OwnedFd);
        list_grants "ListGrants" (options: &ListGrants<'_>) -> Vec<(OwnedObjectPath, String, u32)>;
        get_grant "GetGrant" (name: &str, options: &Account<'_>) -> OwnedObjectPath;
        get_usage "GetUsage" (options: &Account<'_>) -> (u32, String, Vec<(String, u64, u64)>);
        list_accounts "ListAccounts" (options: &ListGrants<'_>) -> Vec<u32>;
    }
    GrantProxy {
        release "Release" (options: &ReleaseGrant<'_>) -> ();
        adopt "Adopt" (options: &AdoptGrant<'_>) -> ();
    }
    CgroupProxy {
        set_limits "SetLimits" (limits: &HashMap<String, String>) -> ();
        get_values "GetValues" (keys: &[&str]) -> HashMap<String, String>;
        stat "Stat" () -> HashMap<String, OwnedVariant>;
        list_processes "ListProcesses" () -> Vec<u32>;
        freeze "Freeze" () -> ();
        thaw "Thaw" () -> ();
        kill "Kill" () -> ();
        create_cgroup "CreateCgroup" (path: &str) -> ();
        list_cgroups "ListCgroups" () -> Vec<String>;
    }
    LinksProxy {
        add_link "AddLink" (options: &AddLink<'_>) -> Description;
        remove_link "RemoveLink" (name: &str) -> ();
        publish_ports "PublishPorts" (name: &str, ports: &[String]) -> ();
        unpublish_ports "UnpublishPorts" (name: &str, ports: &[String]) -> ();
    }
    PropertiesProxy {
        get_all "GetAll" (interface: &str) -> HashMap<String, OwnedVariant>;
    }
}
