//! Proxies of the interfaces, as `dbus/*.xml` describes them. The documentation of each method is there.

use std::collections::HashMap;

use zbus::{DeserializeDict, Fd, OwnedFd, OwnedObjectPath, OwnedVariant, Type, proxy};

use crate::{
    description::Description,
    error::Error,
    options::{
        Account, AddLink, AdoptGrant, AttachTo, CreateGrant, ExplainRequest, ForgetDeparted, ListGrants,
        MapDirectory, ReleaseGrant, ReportDisk,
    },
};

/// What `CreateGrant` tells beside the object and the descriptor. Keys that a later broker adds are ignored.
#[derive(Debug, Default, PartialEq, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct CreateResult {
    /// Was it made now, or before, by a request with the same key?
    pub new: Option<bool>,
    /// Its identity, 16 hexadecimal digits.
    pub id: Option<String>,
    /// First uid on the host, if it has a range.
    pub uid: Option<u32>,
    /// First gid on the host, if it has a range.
    pub gid: Option<u32>,
    /// How many ids, if it has a range.
    pub count: Option<u32>,
    /// Its links, if there are any.
    pub links: Option<Vec<Description>>,
    /// Descriptors of taps, by the names of their links.
    pub taps: Option<HashMap<String, OwnedFd>>,
}

/// Ids of a user who is gone: account, user, first id, count, what became of them, live grants that have some.
pub type Departed = (u32, String, u32, u32, String, u32);

/// A rule of the policy: where it stands, whom it is for, key and value of what it says.
pub type Rule = (String, String, Vec<(String, String)>);

/// The broker.
#[proxy(
    interface = "org.cgrant.Broker1.Manager",
    default_service = "org.cgrant.Broker1",
    default_path = "/org/cgrant/Broker1"
)]
pub trait Manager {
    /// Makes a grant; the last part of the result is an `O_PATH` descriptor of the payload's cgroup2 directory.
    fn create_grant(
        &self,
        name: &str,
        options: &CreateGrant<'_>,
    ) -> Result<(OwnedObjectPath, CreateResult, OwnedFd), Error>;

    /// The caller's live grants: object, name, account.
    fn list_grants(&self, options: &ListGrants<'_>) -> Result<Vec<(OwnedObjectPath, String, u32)>, Error>;

    /// The caller's grant of this name.
    fn get_grant(&self, name: &str, options: &Account<'_>) -> Result<OwnedObjectPath, Error>;

    /// Account, rule, and rows of resource, used, quota.
    fn get_usage(&self, options: &Account<'_>) -> Result<(u32, String, Vec<(String, u64, u64)>), Error>;

    /// The caller's account, or all that have something.
    fn list_accounts(&self, options: &ListGrants<'_>) -> Result<Vec<u32>, Error>;

    /// The rules for the caller, or all.
    fn list_rules(&self, options: &ListGrants<'_>) -> Result<Vec<Rule>, Error>;

    /// What a request would come to, without it: the request by the name of its method.
    fn explain(&self, request: &str, options: &ExplainRequest<'_>) -> Result<Description, Error>;

    /// The bridges that the caller may have links on.
    fn list_bridges(&self) -> Result<Vec<Description>, Error>;

    /// What may stand in the way of links: subject, is it good, what was found, what to do.
    fn examine_network(&self) -> Result<Vec<(String, bool, String, String)>, Error>;

    /// The account's ranges: first uid, first gid, count, name or "", id of the grant or "".
    fn list_ranges(&self) -> Result<Vec<(u32, u32, u32, String, String)>, Error>;

    /// Ids of users who are gone: account, user, first id, count, what became of them, live grants that have some.
    fn list_departed(&self, options: &Account<'_>) -> Result<Vec<Departed>, Error>;

    /// Files of these ids, each piece by its first, were removed as far as that could be.
    fn forget_departed(&self, firsts: &[u32], options: &ForgetDeparted<'_>) -> Result<(), Error>;

    /// Files of ids of these blocks (first id, bytes, files) were counted, and none of the others among `count` ids from `first` on.
    fn report_disk(
        &self,
        first: u32,
        count: u32,
        blocks: &[(u32, u64, u64)],
        options: &ReportDisk<'_>,
    ) -> Result<(), Error>;

    /// Unties the range from the name.
    fn forget_range(&self, name: &str) -> Result<(), Error>;

    /// A grant was made.
    #[zbus(signal)]
    fn grant_added(&self, grant: OwnedObjectPath, name: String, account: u32) -> zbus::Result<()>;

    /// A grant has ended.
    #[zbus(signal)]
    fn grant_removed(
        &self,
        grant: OwnedObjectPath,
        name: String,
        account: u32,
        reason: String,
    ) -> zbus::Result<()>;

    /// Version of the broker.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> Result<String, Error>;

    /// Name of the instance.
    #[zbus(property(emits_changed_signal = "const"))]
    fn instance(&self) -> Result<String, Error>;

    /// `v1`, `hybrid` or `v2`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn hierarchy(&self) -> Result<String, Error>;

    /// Does systemd own the cgroup tree?
    #[zbus(property(emits_changed_signal = "const"))]
    fn systemd(&self) -> Result<bool, Error>;

    /// The controllers that a grant gets.
    #[zbus(property(emits_changed_signal = "const"))]
    fn controllers(&self) -> Result<Vec<String>, Error>;

    /// Kernel features: name, is it there, what is done without it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Result<Vec<(String, bool, String)>, Error>;
}

/// A grant.
#[proxy(
    interface = "org.cgrant.Broker1.Grant",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Grant {
    /// Ends the grant.
    fn release(&self, options: &ReleaseGrant<'_>) -> Result<(), Error>;

    /// Changes what ends it.
    fn adopt(&self, options: &AdoptGrant<'_>) -> Result<(), Error>;

    /// It has ended.
    #[zbus(signal)]
    fn ended(&self, reason: String) -> zbus::Result<()>;

    /// Its identity.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> Result<String, Error>;

    /// Its name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> Result<String, Error>;

    /// The uid that is charged.
    #[zbus(property(emits_changed_signal = "const"))]
    fn account(&self) -> Result<u32, Error>;

    /// What ends it.
    #[zbus(property)]
    fn lifetime(&self) -> Result<String, Error>;

    /// When it was made, microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created(&self) -> Result<u64, Error>;

    /// The id of the grant that it was made in, if the caller may know of that one; else "".
    #[zbus(property(emits_changed_signal = "const"))]
    fn parent(&self) -> Result<String, Error>;
}

/// The cgroup of a grant.
#[proxy(
    interface = "org.cgrant.Broker1.Cgroup",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Cgroup {
    /// Moves a process into the grant; how many were moved.
    fn attach(&self, pidfd: Fd<'_>, options: &AttachTo<'_>) -> Result<u32, Error>;

    /// Sets limits: all of them, or none.
    fn set_limits(&self, limits: &HashMap<String, String>) -> Result<(), Error>;

    /// Reads values; every portable limit if no key is named.
    fn get_values(&self, keys: &[&str]) -> Result<HashMap<String, String>, Error>;

    /// What the grant uses now.
    fn stat(&self) -> Result<HashMap<String, OwnedVariant>, Error>;

    /// The processes in the grant.
    fn list_processes(&self) -> Result<Vec<u32>, Error>;

    /// Freezes every process of the grant.
    fn freeze(&self) -> Result<(), Error>;

    /// Lets them go on.
    fn thaw(&self) -> Result<(), Error>;

    /// Kills every process of the grant.
    fn kill(&self) -> Result<(), Error>;

    /// Makes a cgroup below the payload.
    fn create_cgroup(&self, path: &str) -> Result<(), Error>;

    /// Removes an empty cgroup below the payload.
    fn remove_cgroup(&self, path: &str) -> Result<(), Error>;

    /// The cgroups below the payload.
    fn list_cgroups(&self) -> Result<Vec<String>, Error>;

    /// An `O_PATH` descriptor of a cgroup's cgroup2 directory.
    fn open_cgroup(&self, path: &str) -> Result<OwnedFd, Error>;

    /// The kernel killed processes of the grant for want of memory.
    #[zbus(signal)]
    fn oom(&self, kills: u64) -> zbus::Result<()>;

    /// The grant waits for a resource.
    #[zbus(signal)]
    fn pressure(&self, resource: String) -> zbus::Result<()>;

    /// The limits that were set through the broker.
    #[zbus(property)]
    fn limits(&self) -> Result<HashMap<String, String>, Error>;

    /// Is it frozen?
    #[zbus(property)]
    fn frozen(&self) -> Result<bool, Error>;

    /// Has it a process?
    #[zbus(property)]
    fn populated(&self) -> Result<bool, Error>;

    /// Kernel id of the payload's cgroup2 cgroup.
    #[zbus(property(emits_changed_signal = "const"))]
    fn cgroup_id(&self) -> Result<u64, Error>;

    /// Hierarchy and path, one entry a hierarchy.
    #[zbus(property(emits_changed_signal = "const"))]
    fn hierarchies(&self) -> Result<Vec<(String, String)>, Error>;
}

/// The links of a grant.
#[proxy(
    interface = "org.cgrant.Broker1.Links",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Links {
    /// Adds a link.
    fn add_link(&self, options: &AddLink<'_>) -> Result<Description, Error>;

    /// Removes a link.
    fn remove_link(&self, name: &str) -> Result<(), Error>;

    /// Publishes more ports: all of them, or none.
    fn publish_ports(&self, name: &str, ports: &[String]) -> Result<(), Error>;

    /// Takes published ports back.
    fn unpublish_ports(&self, name: &str, ports: &[String]) -> Result<(), Error>;

    /// A link was added after the grant was made.
    #[zbus(signal)]
    fn link_added(&self, name: String, link: Description) -> zbus::Result<()>;

    /// A link is gone and the grant lives on.
    #[zbus(signal)]
    fn link_removed(&self, name: String, reason: String) -> zbus::Result<()>;

    /// The links, in the order of their names.
    #[zbus(property)]
    fn links(&self) -> Result<Vec<HashMap<String, OwnedVariant>>, Error>;
}

/// The ids of a grant.
#[proxy(
    interface = "org.cgrant.Broker1.Ids",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Ids {
    /// First uid.
    #[zbus(property(emits_changed_signal = "const"))]
    fn uid(&self) -> Result<u32, Error>;

    /// First gid.
    #[zbus(property(emits_changed_signal = "const"))]
    fn gid(&self) -> Result<u32, Error>;

    /// How many of each.
    #[zbus(property(emits_changed_signal = "const"))]
    fn count(&self) -> Result<u32, Error>;

    /// How many blocks of 65536 at their end are for grants made from inside; 0 if nobody inside is served.
    #[zbus(property(emits_changed_signal = "const"))]
    fn nesting(&self) -> Result<u32, Error>;
}

/// Mounts for the ids of a grant.
#[proxy(
    interface = "org.cgrant.Broker1.Mounts",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Mounts {
    /// A mount of a directory, attached nowhere, whose files belong to ids of the grant.
    fn map_directory(
        &self,
        directory: Fd<'_>,
        mount_namespace: Fd<'_>,
        options: &MapDirectory<'_>,
    ) -> Result<OwnedFd, Error>;

    /// A node of one of the host's devices that belongs to the grant's root, as a mount attached nowhere.
    fn make_device(&self, name: &str) -> Result<OwnedFd, Error>;

    /// Programs in the grant may open one of the host's devices, as far as its nodes let them.
    fn allow_device(&self, name: &str) -> Result<(), Error>;
}

/// An account.
#[proxy(
    interface = "org.cgrant.Broker1.Account",
    default_service = "org.cgrant.Broker1",
    assume_defaults = false
)]
pub trait Account {
    /// Its uid on the host.
    #[zbus(property(emits_changed_signal = "const"))]
    fn uid(&self) -> Result<u32, Error>;

    /// What it has now, by resource.
    #[zbus(property)]
    fn usage(&self) -> Result<HashMap<String, u64>, Error>;

    /// What it may have, by resource, as policy says to this caller.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn quotas(&self) -> Result<HashMap<String, u64>, Error>;

    /// The rule that says so.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn rule(&self) -> Result<String, Error>;

    /// When its files were measured last, microseconds since 1970; 0 for never.
    #[zbus(property(emits_changed_signal = "false"))]
    fn disk_measured(&self) -> Result<u64, Error>;
}
