//! The operations that a front may ask of the engine, and their answers.

use serde::{Deserialize, Serialize};

use crate::{
    grant::{GrantId, GrantInfo, Range, Stat},
    legacy::{Legacy, LegacyAnswer},
    link::{BridgeInfo, LinkInfo, LinkRequest, PublishedPort},
    metrics::Family,
    net::Finding,
    refusal::Refusal,
};

/// Position of a descriptor among those that came beside the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(pub u8);

/// Who holds the new grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holder {
    /// The process of this pidfd; it must be the caller's own.
    Process(FdIndex),
    /// The connection that the request came over.
    Connection,
    /// Nobody.
    Persistent,
}

/// The ids that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeRequest {
    /// How many; 0 for policy's default (65536).
    pub count: u32,
    /// The range is the one that belongs to a name and stays with it ([`CreateGrant::range_name`]); otherwise any of the
    /// account's.
    pub named: bool,
    /// May the namespace call setgroups? Decided before its gid_map is written.
    pub setgroups: bool,
    /// The caller's own uid and gid too, as the id behind the range's last inside. Needs a user namespace.
    pub own_ids: bool,
}

/// Which ids files have on disk that are to be shown as ids of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapSource {
    /// Those of the account's range of this name, each as the one at the same place in the grant's.
    Range(String),
    /// The account's own uid and gid, as these ids inside the grant's range.
    Own {
        /// The uid, counted from the range's first.
        uid: u32,
        /// The gid, counted from the range's first.
        gid: u32,
    },
}

/// A directory to be had as a mount whose files belong to ids of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDirectory {
    /// The grant whose range it is for.
    pub grant: GrantId,
    /// The directory, opened for reading in the mount namespace beside it.
    pub directory: FdIndex,
    /// That mount namespace, which is the caller's own.
    pub mount_namespace: FdIndex,
    /// Which ids are shown.
    pub from: MapSource,
    /// Can nothing be written through it?
    pub read_only: bool,
}

/// Where attached processes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachTarget {
    /// A launch stage: on cgroup2 into `monitor`, from where it may clone into the payload; on v1 into
    /// the payload, because a clone inherits its parent's v1 cgroups.
    Stage,
    /// A monitor: into `monitor` in every hierarchy. What it clones stays out of the payload on v1.
    Monitor,
    /// The payload itself (on cgroup2 its leaf `.cgrant`, once the payload has children).
    Payload,
}

/// A grant to be made. All of it comes to be, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateGrant {
    /// Its name; empty for one that the engine makes up.
    pub name: String,
    /// The caller's idempotency key; empty for none. A second request of the account with the same key gets the same grant.
    pub key: String,
    /// What ends it.
    pub holder: Holder,
    /// Ids, if wanted.
    pub range: Option<RangeRequest>,
    /// The name that a named range belongs to; empty for the grant's own.
    pub range_name: String,
    /// A new, unmapped user namespace of the caller's to write the range into. Needs `range`.
    pub userns: Option<FdIndex>,
    /// A process of the caller's to attach as [`AttachTarget::Stage`].
    pub stage: Option<FdIndex>,
    /// Limits, key and value as the caller wrote them.
    pub limits: Vec<(String, String)>,
    /// Resources (`cpu`, `memory`, `io`) whose pressure shall be signalled.
    pub pressure: Vec<String>,
    /// Links.
    pub links: Vec<LinkRequest>,
    /// How many blocks of 65536 ids it has beside its own, for grants that are made from inside it; 0 if nobody inside is
    /// served. Needs `range`.
    pub nesting: u32,
    /// It is for removing and counting files of its ids: made also where the account has more than its quota of disk. Such a grant ends with
    /// its holder, and has no links and no others inside.
    pub tidies: bool,
}

/// Processes to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// To which grant.
    pub grant: GrantId,
    /// The process.
    pub pidfd: FdIndex,
    /// Where to.
    pub target: AttachTarget,
    /// Its descendants too, all or none, however fast they fork.
    pub tree: bool,
}

/// What a question is about that is done with a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Description, values, figures, processes.
    Read,
    /// Processes moved into it.
    Attach,
    /// Another holder.
    Adopt,
    /// No holder any more.
    Persist,
    /// Freezing.
    Freeze,
    /// Thawing.
    Thaw,
    /// Killing.
    Kill,
    /// A cgroup removed.
    RemoveCgroup,
    /// A descriptor of one.
    OpenCgroup,
    /// Its end.
    Release,
    /// A link removed.
    RemoveLink,
    /// Published ports taken back.
    Unpublish,
}

/// A request that is to be explained. No descriptors come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inquiry {
    /// [`Op::CreateGrant`].
    CreateGrant(CreateGrant),
    /// What has no arguments that policy looks at.
    Use {
        /// With which grant.
        grant: GrantId,
        /// What.
        act: Act,
        /// The path of the cgroup, or the name of the link, that it is about, if that is said.
        about: Option<String>,
    },
    /// [`Op::SetLimits`].
    SetLimits {
        /// Of which grant.
        grant: GrantId,
        /// Key and value as the caller wrote them.
        limits: Vec<(String, String)>,
    },
    /// [`Op::GetValues`].
    GetValues {
        /// Of which grant.
        grant: GrantId,
        /// Which.
        keys: Vec<String>,
    },
    /// [`Op::CreateCgroup`].
    CreateCgroup {
        /// Of which grant.
        grant: GrantId,
        /// Path below the payload.
        path: String,
    },
    /// [`Op::AddLink`].
    AddLink {
        /// To which grant.
        grant: GrantId,
        /// The link.
        link: LinkRequest,
    },
    /// [`Op::PublishPorts`].
    PublishPorts {
        /// Of which grant.
        grant: GrantId,
        /// To which of its links, if that is said.
        name: Option<String>,
        /// The ports.
        ports: Vec<PublishedPort>,
    },
    /// [`Op::MapDirectory`].
    MapDirectory {
        /// For which grant.
        grant: GrantId,
        /// Which ids the files have on disk.
        from: MapSource,
    },
    /// [`Op::MakeDevice`].
    MakeDevice {
        /// The grant whose range it is for.
        grant: GrantId,
        /// The host's node, as its name below `/dev`.
        name: String,
    },
    /// [`Op::AllowDevice`].
    AllowDevice {
        /// The grant.
        grant: GrantId,
        /// The host's node, as its name below `/dev`.
        name: String,
    },
    /// [`Op::ForgetRange`].
    ForgetRange {
        /// The name.
        name: String,
    },
    /// [`Op::ListGrants`].
    ListGrants {
        /// Everybody's?
        all: bool,
    },
    /// [`Op::ListAccounts`].
    ListAccounts {
        /// Everybody's?
        all: bool,
    },
    /// [`Op::ListRules`].
    ListRules {
        /// Everybody's?
        all: bool,
    },
    /// [`Op::ListDeparted`].
    ListDeparted,
    /// [`Op::Usage`].
    UsageOf {
        /// Whose; the caller's own if `None`.
        account: Option<u32>,
    },
    /// Another connection.
    Connect,
    /// CGManager's interface.
    Legacy,
}

/// What is to be explained, to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// The request.
    pub question: Inquiry,
    /// Whose; the caller's own if `None`. This and what follows for root only.
    pub account: Option<u32>,
    /// Groups that it would be made with, the primary one first.
    pub groups: Vec<u32>,
    /// The application that it would be made by; empty for none.
    pub application: String,
}

/// What a request would come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What it would be refused with; `None` if it would not be.
    pub refusal: Option<Refusal>,
    /// The rule that decides.
    pub rule: String,
    /// The application that the caller is taken for; empty for none.
    pub application: String,
    /// The right that polkit would be asked about; empty for none.
    pub action: String,
    /// Usage beside quota.
    pub rows: Vec<UsageRow>,
    /// Features of the kernel that are not there, and what is done without them.
    pub lacks: Vec<(String, String)>,
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// What this broker is and can do. Anybody may ask.
    BrokerInfo,
    /// The account's usage beside its quotas; root may ask for another account.
    Usage {
        /// Whose; the caller's own if `None`.
        account: Option<u32>,
    },
    /// The caller's account; every account that has something for root with `all`.
    ListAccounts {
        /// Everybody's?
        all: bool,
    },
    /// The rules of the policy in force that are for the caller; all of them for root with `all`.
    ListRules {
        /// All?
        all: bool,
    },
    /// Makes a grant.
    CreateGrant(CreateGrant),
    /// The caller's grants; all accounts' for root with `all`.
    ListGrants {
        /// Everybody's?
        all: bool,
        /// Those inside others too, each after the one that it is in?
        nested: bool,
    },
    /// The caller's grant of this name.
    FindGrant {
        /// Its name.
        name: String,
        /// Whose; the caller's own if `None`.
        account: Option<u32>,
    },
    /// All about a grant.
    Describe {
        /// Which.
        grant: GrantId,
    },
    /// Attaches processes.
    Attach(Attach),
    /// Makes the caller's connection, or the process of a pidfd, the holder.
    Adopt {
        /// Which grant.
        grant: GrantId,
        /// The new holder.
        holder: Holder,
    },
    /// Sets limits: all of them, or none.
    SetLimits {
        /// Of which grant.
        grant: GrantId,
        /// Key and value as the caller wrote them.
        limits: Vec<(String, String)>,
    },
    /// Reads values: limits by portable name, raw keys from the allow-list.
    GetValues {
        /// Of which grant.
        grant: GrantId,
        /// Which; all portable limits if empty.
        keys: Vec<String>,
    },
    /// What the grant uses.
    Stat {
        /// Which.
        grant: GrantId,
    },
    /// The pids in payload and children.
    ListProcesses {
        /// Of which grant.
        grant: GrantId,
    },
    /// Freezes payload and children; answers when they are frozen.
    Freeze {
        /// Which.
        grant: GrantId,
    },
    /// Thaws them.
    Thaw {
        /// Which.
        grant: GrantId,
    },
    /// Kills everything in payload and children.
    Kill {
        /// Of which grant.
        grant: GrantId,
    },
    /// Makes a cgroup below the payload.
    CreateCgroup {
        /// Of which grant.
        grant: GrantId,
        /// Path below the payload.
        path: String,
    },
    /// Removes an empty cgroup below the payload.
    RemoveCgroup {
        /// Of which grant.
        grant: GrantId,
        /// Path below the payload.
        path: String,
    },
    /// The cgroups below the payload, depth first, parents before children.
    ListCgroups {
        /// Of which grant.
        grant: GrantId,
    },
    /// An `O_PATH` descriptor of the payload's cgroup2 directory, or of one below it.
    OpenCgroup {
        /// Of which grant.
        grant: GrantId,
        /// Path below the payload; empty for the payload itself.
        path: String,
    },
    /// Ends the grant.
    Release {
        /// Which.
        grant: GrantId,
        /// Kill what is left in it? Otherwise a populated grant is [`crate::RefusalCode::Busy`].
        kill: bool,
        /// End the grants inside of it too? Otherwise a grant with others in it is [`crate::RefusalCode::Busy`].
        force: bool,
    },
    /// Adds a link to a grant.
    AddLink {
        /// To which grant.
        grant: GrantId,
        /// The link.
        link: LinkRequest,
    },
    /// Removes a link of a grant.
    RemoveLink {
        /// Of which grant.
        grant: GrantId,
        /// The link's name in it.
        name: String,
    },
    /// Gives a link more published ports: all of them, or none.
    PublishPorts {
        /// Of which grant.
        grant: GrantId,
        /// The link's name in it.
        name: String,
        /// The ports.
        ports: Vec<PublishedPort>,
    },
    /// Takes published ports back. One that is not published is no error.
    UnpublishPorts {
        /// Of which grant.
        grant: GrantId,
        /// The link's name in it.
        name: String,
        /// The ports.
        ports: Vec<PublishedPort>,
    },
    /// A mount of a directory whose files belong to ids of a grant, attached nowhere.
    MapDirectory(MapDirectory),
    /// A node of one of the host's devices that belongs to the root of a grant's range, as a mount attached nowhere.
    MakeDevice {
        /// The grant whose range it is for.
        grant: GrantId,
        /// The host's node, as its name below `/dev`.
        name: String,
    },
    /// That programs in a grant may open one of the host's devices, as far as its nodes let them.
    AllowDevice {
        /// The grant.
        grant: GrantId,
        /// The host's node, as its name below `/dev`.
        name: String,
    },
    /// What a request would come to, without it.
    Explain(Box<Explain>),
    /// The bridges that the caller may have links on.
    ListBridges,
    /// What stands in the way of links on this host.
    ExamineNetwork,
    /// The ranges that belong to the account.
    ListRanges,
    /// The ids of accounts whose users are gone.
    ListDeparted {
        /// Of this account alone.
        account: Option<u32>,
        /// Only those whose files are to be removed, as policy said.
        to_remove: bool,
    },
    /// Says that files of such ids were removed, and need not be looked for any more.
    ForgetDeparted {
        /// The first of the ids of each piece.
        firsts: Vec<u32>,
        /// Some files could not be removed, and are looked for a few times more.
        incomplete: bool,
    },
    /// Says what files of ids take on disks.
    ReportDisk(DiskReport),
    /// Unties a range from its name, so that unnamed grants of the account may use it.
    ForgetRange {
        /// The name.
        name: String,
    },
    /// Figures about the broker. Only over connections that came by their listener.
    Metrics,
    /// A call of CGManager's interface. Only over connections that came by its listener.
    Legacy(Legacy),
}

/// What a made grant comes with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// The grant.
    pub grant: GrantInfo,
    /// Was it made now, or before, by a request with the same key?
    pub new: bool,
    /// An `O_PATH` descriptor of the payload's cgroup2 directory.
    pub payload: FdIndex,
    /// The descriptors of taps, by the names of their links.
    pub taps: Vec<(String, FdIndex)>,
}

/// What a broker is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerInfo {
    /// Version of the program.
    pub version: String,
    /// Name of the instance.
    pub instance: String,
    /// `v1`, `hybrid` or `v2`.
    pub hierarchy: String,
    /// Does systemd own the tree?
    pub systemd: bool,
    /// Controllers that a grant gets.
    pub controllers: Vec<String>,
    /// Kernel features: name, is it there, what is done without it.
    pub features: Vec<(String, bool, String)>,
    /// The caller's own account.
    pub account: u32,
}

/// One line of usage beside quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// What is counted: `grants`, `cgroups`, `ids`, `connections` …
    pub resource: String,
    /// How much of it the account uses.
    pub used: u64,
    /// How much it may.
    pub quota: u64,
}

/// What files of ids take on disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The first of the ids that were looked for.
    pub first: u32,
    /// How many those are: whole blocks of 65536.
    pub count: u32,
    /// The blocks of the pool among them that have files, ascending. The others have none.
    pub blocks: Vec<BlockUse>,
    /// Not all could be looked at: of what is known from before nothing becomes less.
    pub incomplete: bool,
}

/// What files of a block of ids take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockUse {
    /// The first of its ids.
    pub first: u32,
    /// Bytes of their blocks on the disk.
    pub bytes: u64,
    /// How many there are.
    pub files: u64,
}

/// An account's usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Whose.
    pub account: u32,
    /// The rule that gives the quotas.
    pub rule: String,
    /// The rows.
    pub rows: Vec<UsageRow>,
    /// When its files were measured last, microseconds since 1970; 0 for never.
    pub disk_measured: u64,
}

/// A rule of the policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInfo {
    /// Where it stands: `FILE:LINE NAME`, or `built-in NAME`.
    pub label: String,
    /// Whom it is for, in the words of its file; empty for who asks.
    pub whom: String,
    /// Key and value of what it says, as they would stand in a file.
    pub settings: Vec<(String, String)>,
}

/// A range that belongs to an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeInfo {
    /// The ids.
    pub range: Range,
    /// The name it is tied to; empty for none.
    pub name: String,
    /// The live grant that it is mapped by.
    pub grant: Option<GrantId>,
}

/// Ids in one piece that belong to an account whose user is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartedInfo {
    /// The account.
    pub account: u32,
    /// Its user when it got them; empty if none was known.
    pub user: String,
    /// The first id, of users as of groups.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// What became of them.
    pub fate: Fate,
    /// How many live grants have some of them.
    pub grants: u32,
}

/// What became of the ids of a user who is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// They are nobody's for good.
    Retired,
    /// They will be, if the user does not come back at once.
    Leaving,
    /// They were retired, and the host's user database gives some of them to somebody all the same.
    Taken,
}

/// The answer to an operation that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To operations with nothing to say.
    Done,
    /// To [`Op::BrokerInfo`].
    BrokerInfo(BrokerInfo),
    /// To [`Op::Usage`].
    Usage(Usage),
    /// To [`Op::CreateGrant`].
    Created(Created),
    /// To [`Op::ListGrants`].
    Grants(Vec<GrantInfo>),
    /// To [`Op::FindGrant`] and [`Op::Describe`].
    Grant(GrantInfo),
    /// To [`Op::GetValues`].
    Values(Vec<(String, String)>),
    /// To [`Op::ListAccounts`].
    Accounts(Vec<u32>),
    /// To [`Op::Stat`].
    Stat(Stat),
    /// To [`Op::ListProcesses`].
    Processes(Vec<u32>),
    /// To [`Op::ListCgroups`].
    Cgroups(Vec<String>),
    /// To [`Op::OpenCgroup`].
    Cgroup(FdIndex),
    /// To [`Op::Attach`]: how many processes were attached.
    Attached(u32),
    /// To [`Op::AddLink`]: the link, and a tap's descriptor.
    Link(LinkInfo, Option<FdIndex>),
    /// To [`Op::MapDirectory`] and [`Op::MakeDevice`].
    Mount(FdIndex),
    /// To [`Op::ListBridges`].
    Bridges(Vec<BridgeInfo>),
    /// To [`Op::ExamineNetwork`].
    Findings(Vec<Finding>),
    /// To [`Op::Explain`].
    Explained(Explanation),
    /// To [`Op::ListRules`].
    Rules(Vec<RuleInfo>),
    /// To [`Op::ListRanges`].
    Ranges(Vec<RangeInfo>),
    /// To [`Op::ListDeparted`].
    Departed(Vec<DepartedInfo>),
    /// To [`Op::Metrics`].
    Metrics(Vec<Family>),
    /// To [`Op::Legacy`].
    Legacy(LegacyAnswer),
    /// To [`crate::ToEngine::BusClient`].
    Connection {
        /// Its number.
        connection: crate::ConnectionId,
        /// What it is told of, if it is of anything.
        audience: Option<crate::Audience>,
    },
}
