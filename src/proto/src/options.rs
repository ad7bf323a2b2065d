//! The options of the methods, typed: a builder each, which becomes the `a{sv}` of the contract.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::BorrowedFd,
};

use serde::{Serialize, Serializer};
use zbus::{Fd, Signature, Type, Variant};

type Entries<'a> = BTreeMap<&'static str, Variant<'a>>;

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name<'a>(Entries<'a>);

        impl Type for $name<'_> {
            const SIGNATURE: &'static Signature = <HashMap<&'static str, Variant<'static>>>::SIGNATURE;
        }

        impl Serialize for $name<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        impl<'a> $name<'a> {
            /// No options: everything as the contract has it by default.
            pub fn new() -> Self {
                Self::default()
            }

            /// The options as they go over the wire.
            pub fn entries(&self) -> &BTreeMap<&'static str, Variant<'a>> {
                &self.0
            }

            fn with(mut self, key: &'static str, value: impl Into<Variant<'a>>) -> Self {
                self.0.insert(key, value.into());
                self
            }
        }
    )*};
}

options! {
    /// Options of `Manager.CreateGrant`.
    CreateGrant
    /// Options of `Manager.ListGrants`.
    ListGrants
    /// Options of `Manager.GetGrant` and `Manager.GetUsage`.
    Account
    /// Options of `Grant.Release`.
    ReleaseGrant
    /// Options of `Grant.Adopt`.
    AdoptGrant
    /// Options of `Cgroup.Attach`.
    AttachTo
}

/// What ends a grant.
#[derive(Debug, Clone, Copy)]
pub enum Lifetime<'a> {
    /// The death of the process of this pidfd, which is the caller's own.
    Process(BorrowedFd<'a>),
    /// The end of the connection that asks.
    Connection,
    /// Only a release.
    Persistent,
}

impl<'a> Lifetime<'a> {
    fn parts(self) -> (&'static str, Option<BorrowedFd<'a>>) {
        match self {
            Self::Process(holder) => ("process", Some(holder)),
            Self::Connection => ("connection", None),
            Self::Persistent => ("persistent", None),
        }
    }
}

/// Where attached processes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The process that will start the payload and clone into it.
    Stage,
    /// The payload.
    Payload,
}

impl<'a> CreateGrant<'a> {
    /// The caller's own mark of the request: a second one with the same mark gets the same grant.
    #[must_use]
    pub fn key(self, key: &'a str) -> Self {
        self.with("key", key)
    }

    /// What ends the grant; the connection by default.
    #[must_use]
    pub fn lifetime(self, lifetime: Lifetime<'a>) -> Self {
        let (name, holder) = lifetime.parts();
        let options = self.with("lifetime", name);
        match holder {
            Some(holder) => options.with("holder", Fd::from(holder)),
            None => options,
        }
    }

    /// A cgroup alone, without ids.
    #[must_use]
    pub fn no_range(self) -> Self {
        self.with("no-range", true)
    }

    /// How many ids; 0 for what policy has as default.
    #[must_use]
    pub fn range_count(self, count: u32) -> Self {
        self.with("range-count", count)
    }

    /// Does the range belong to the grant's name and come back with it? It does by default.
    #[must_use]
    pub fn range_named(self, named: bool) -> Self {
        self.with("range-named", named)
    }

    /// A new, unmapped user namespace of the caller's to write the range into.
    #[must_use]
    pub fn userns(self, namespace: BorrowedFd<'a>) -> Self {
        self.with("userns", Fd::from(namespace))
    }

    /// May that namespace call setgroups? It may by default.
    #[must_use]
    pub fn setgroups(self, allowed: bool) -> Self {
        self.with("setgroups", allowed)
    }

    /// The process that will start the payload, by pidfd.
    #[must_use]
    pub fn stage(self, pidfd: BorrowedFd<'a>) -> Self {
        self.with("stage", Fd::from(pidfd))
    }

    /// Limits, portable or raw key and value.
    #[must_use]
    pub fn limits(self, limits: &'a [(String, String)]) -> Self {
        let limits: HashMap<&str, &str> =
            limits.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        self.with("limits", limits)
    }

    /// Resources (`cpu`, `memory`, `io`) whose pressure shall be signalled.
    #[must_use]
    pub fn pressure(self, resources: &[&'a str]) -> Self {
        self.with("pressure", resources.to_vec())
    }
}

impl ListGrants<'_> {
    /// Everybody's grants; only for root.
    #[must_use]
    pub fn all(self) -> Self {
        self.with("all", true)
    }
}

impl Account<'_> {
    /// Another account than the caller's; only for root.
    #[must_use]
    pub fn account(self, uid: u32) -> Self {
        self.with("account", uid)
    }
}

impl ReleaseGrant<'_> {
    /// Kill what is left in the grant.
    #[must_use]
    pub fn kill(self) -> Self {
        self.with("kill", true)
    }
}

impl<'a> AdoptGrant<'a> {
    /// What ends the grant from now on.
    #[must_use]
    pub fn lifetime(self, lifetime: Lifetime<'a>) -> Self {
        let (name, holder) = lifetime.parts();
        let options = self.with("lifetime", name);
        match holder {
            Some(holder) => options.with("holder", Fd::from(holder)),
            None => options,
        }
    }
}

impl AttachTo<'_> {
    /// Where to; the payload by default.
    #[must_use]
    pub fn target(self, target: Target) -> Self {
        self.with(
            "target",
            match target {
                Target::Stage => "stage",
                Target::Payload => "payload",
            },
        )
    }

    /// The descendants too, all or none.
    #[must_use]
    pub fn tree(self) -> Self {
        self.with("tree", true)
    }
}
