//! The options of the methods, typed: a builder each, which becomes the `a{sv}` of the contract.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use serde::{Serialize, Serializer};
use zbus::{Fd, Signature, Type, Variant};

use crate::port::Port;

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
    /// Options of `Manager.ListGrants`, `Manager.ListAccounts` and `Manager.ListRules`.
    ListGrants
    /// Options of `Manager.GetGrant`, `Manager.GetUsage` and `Manager.ListDeparted`.
    Account
    /// Options of `Manager.ForgetDeparted`.
    ForgetDeparted
    /// Options of `Manager.ReportDisk`.
    ReportDisk
    /// Options of `Manager.Explain`.
    ExplainRequest
    /// Options of `Grant.Release`.
    ReleaseGrant
    /// Options of `Grant.Adopt`.
    AdoptGrant
    /// Options of `Cgroup.Attach`.
    AttachTo
    /// Options of `Mounts.MapDirectory`.
    MapDirectory
    /// Options of `Links.AddLink`, and of each link of `Manager.CreateGrant`.
    AddLink
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
    /// One that watches over the payload and that its limits don't reach.
    Monitor,
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

    /// How many blocks of 65536 ids the grant has beside its own for grants made from inside it.
    #[must_use]
    pub fn nesting(self, blocks: u32) -> Self {
        self.with("nesting", blocks)
    }

    /// It is for nothing but removing and counting files: made also where the account has more of them than it may.
    #[must_use]
    pub fn tidies(self) -> Self {
        self.with("tidies", true)
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

    /// The range is that of this name instead of the grant's.
    #[must_use]
    pub fn range_name(self, name: &'a str) -> Self {
        self.with("range-name", name)
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

    /// The caller's own uid and gid too, as the id behind the range's last; they are not by default.
    #[must_use]
    pub fn own_ids(self) -> Self {
        self.with("own-ids", true)
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

    /// Links, which come to be with the grant.
    #[must_use]
    pub fn links(self, links: Vec<AddLink<'a>>) -> Self {
        let links: Vec<Entries<'a>> = links.into_iter().map(|link| link.0).collect();
        self.with("links", links)
    }
}

impl<'a> ExplainRequest<'a> {
    /// An option of the request's own method, by its name, or one of whose request it is.
    #[must_use]
    pub fn option(self, key: &'static str, value: impl Into<Variant<'a>>) -> Self {
        self.with(key, value)
    }

    /// Links, without their network namespaces.
    #[must_use]
    pub fn links(self, links: Vec<AddLink<'a>>) -> Self {
        let links: Vec<Entries<'a>> = links.into_iter().map(|link| link.0).collect();
        self.with("links", links)
    }
}

impl<'a> MapDirectory<'a> {
    /// The files belong to the account's range of this name.
    #[must_use]
    pub fn from_range(self, name: &'a str) -> Self {
        self.with("from", name)
    }

    /// The files belong to the caller, whose uid and gid these are inside; 0 and 0 by default.
    #[must_use]
    pub fn from_own(self, uid: u32, gid: u32) -> Self {
        self.with("from", "own").with("as-uid", uid).with("as-gid", gid)
    }

    /// Nothing can be written through the mount.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.with("read-only", true)
    }
}

impl<'a> AddLink<'a> {
    /// The network namespace that the far end is born in.
    #[must_use]
    pub fn netns(self, namespace: BorrowedFd<'a>) -> Self {
        self.with("netns", Fd::from(namespace))
    }

    /// A tap, whose descriptor the caller gets, instead of a veth pair.
    #[must_use]
    pub fn tap(self) -> Self {
        self.with("kind", "tap")
    }

    /// Its name; the first free of `eth0`, `eth1` … by default.
    #[must_use]
    pub fn name(self, name: &'a str) -> Self {
        self.with("name", name)
    }

    /// The bridge that it is on; policy's first by default.
    #[must_use]
    pub fn bridge(self, bridge: &'a str) -> Self {
        self.with("bridge", bridge)
    }

    /// A fixed IPv4 address.
    #[must_use]
    pub fn address4(self, address: Ipv4Addr) -> Self {
        self.with("address4", address.to_string())
    }

    /// A fixed IPv6 address.
    #[must_use]
    pub fn address6(self, address: Ipv6Addr) -> Self {
        self.with("address6", address.to_string())
    }

    /// Are addresses and routes set? They are by default; otherwise the payload asks by DHCP.
    #[must_use]
    pub fn configure(self, configure: bool) -> Self {
        self.with("configure", configure)
    }

    /// Largest packet, in bytes.
    #[must_use]
    pub fn mtu(self, bytes: u32) -> Self {
        self.with("mtu", bytes)
    }

    /// Length of the transmit queue, in packets.
    #[must_use]
    pub fn queue_length(self, packets: u32) -> Self {
        self.with("queue-length", packets)
    }

    /// Most that the container may send, in bits a second.
    #[must_use]
    pub fn upload(self, bits: u64) -> Self {
        self.with("upload", bits)
    }

    /// Most that is sent to the container, in bits a second.
    #[must_use]
    pub fn download(self, bits: u64) -> Self {
        self.with("download", bits)
    }

    /// VLAN id on a bridge that knows VLANs.
    #[must_use]
    pub fn vlan(self, id: u16) -> Self {
        self.with("vlan", id)
    }

    /// Ports to publish.
    #[must_use]
    pub fn ports(self, ports: &[Port]) -> Self {
        self.with("ports", ports.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

impl ListGrants<'_> {
    /// Everybody's grants; only for root.
    #[must_use]
    pub fn all(self) -> Self {
        self.with("all", true)
    }

    /// Those inside others too, each after the one that it is in.
    #[must_use]
    pub fn nested(self) -> Self {
        self.with("nested", true)
    }
}

impl Account<'_> {
    /// Another account than the caller's; only for root.
    #[must_use]
    pub fn account(self, uid: u32) -> Self {
        self.with("account", uid)
    }

    /// Of `ListDeparted`: only ids of which files are to be removed.
    #[must_use]
    pub fn to_remove(self) -> Self {
        self.with("to-remove", true)
    }
}

impl ForgetDeparted<'_> {
    /// Some files could not be removed.
    #[must_use]
    pub fn incomplete(self) -> Self {
        self.with("incomplete", true)
    }
}

impl ReportDisk<'_> {
    /// Not all files could be looked at.
    #[must_use]
    pub fn incomplete(self) -> Self {
        self.with("incomplete", true)
    }
}

impl ReleaseGrant<'_> {
    /// Kill what is left in the grant.
    #[must_use]
    pub fn kill(self) -> Self {
        self.with("kill", true)
    }

    /// End the grants inside of it too.
    #[must_use]
    pub fn force(self) -> Self {
        self.with("force", true)
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
                Target::Monitor => "monitor",
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
