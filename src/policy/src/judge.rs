//! The decision. Every request of every caller passes [`judge`], and nothing else decides about rights.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    consent,
    device::NodeName,
    ids::HostUid,
    limit::{LimitKey, LimitValue},
    policy::{Caller, Policy, Ruling},
    raw::RawKey,
    rule::{Access, Door, Exception, Quotas},
};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Request<'a> {
    /// Another connection.
    Connect,
    /// Another request on the caller's connections; asked before anything is looked at.
    Call,
    /// A grant.
    CreateGrant(NewGrant<'a>),
    /// Anything that is done with an existing grant.
    UseGrant {
        /// Its account.
        owner: HostUid,
        /// What is done.
        verb: Verb,
    },
    /// A cgroup below a payload.
    CreateCgroup {
        /// The grant's account.
        owner: HostUid,
        /// How many levels below the payload.
        depth: usize,
    },
    /// Other limits.
    SetLimits {
        /// The grant's account.
        owner: HostUid,
        /// Which.
        limits: &'a [(LimitKey, LimitValue)],
    },
    /// The content of a file of the kernel's.
    ReadRaw {
        /// The grant's account.
        owner: HostUid,
        /// Which file.
        key: &'a RawKey,
    },
    /// Something written into a file of the kernel's.
    WriteRaw {
        /// The grant's account.
        owner: HostUid,
        /// Which file.
        key: &'a RawKey,
        /// What. Rules say nothing of it; whoever is asked sees it.
        value: &'a str,
    },
    /// A node of one of the host's devices for a container.
    UseDevice {
        /// The grant's account.
        owner: HostUid,
        /// Which.
        node: &'a NodeName,
        /// Is the caller in the group that may open it?
        by_group: bool,
    },
    /// A link more in a grant that is there.
    AddLink {
        /// The grant's account.
        owner: HostUid,
        /// The link.
        link: NewLink<'a>,
    },
    /// Ports of the host's that lead to a link.
    Publish {
        /// The grant's account.
        owner: HostUid,
        /// Those that are not published yet.
        ports: &'a [HostPort],
    },
    /// The bridges that the caller may have links on.
    ListBridges,
    /// What stands in the way of links on this host.
    ExamineNetwork,
    /// To use CGManager's interface at all.
    Legacy,
    /// A cgroup made over it.
    LegacyCgroup {
        /// How many levels below the hierarchy's root.
        depth: usize,
    },
    /// Something of a controller made, set or given away over it.
    LegacyController {
        /// Which, by the kernel's name.
        name: &'a str,
    },
    /// The list of everybody's grants.
    ListAll,
    /// The list of the accounts that have something.
    ListAccounts,
    /// The rules for everybody.
    ListRules,
    /// To say that files of users who are gone need not be looked for any more.
    ForgetDeparted,
    /// To say what files of ids take.
    ReportDisk,
    /// Figures about the broker and all accounts.
    Metrics,
    /// An account's usage, quotas and ranges.
    UsageOf {
        /// Whose.
        account: HostUid,
    },
}

/// A grant that is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewGrant<'a> {
    /// How many ids; `None` for a grant without.
    pub ids: Option<u32>,
    /// Its limits.
    pub limits: &'a [(LimitKey, LimitValue)],
    /// Those of them that are asked for; the others are policy's own.
    pub asked: &'a [(LimitKey, LimitValue)],
    /// May its user namespace call setgroups(2)? Of no meaning without ids.
    pub setgroups: bool,
    /// Does it outlive its maker?
    pub persistent: bool,
    /// For how many resources pressure is to be watched.
    pub pressure: usize,
    /// Its links.
    pub links: &'a [NewLink<'a>],
    /// How many blocks of 65536 ids it is to have for grants made from inside.
    pub nesting: u32,
    /// In how many other grants it is to be, one in the other.
    pub depth: usize,
    /// How many blocks of the grant around its maker has with it, if that is an ordinary user in there.
    pub user_blocks: Option<u64>,
    /// Is it for nothing but removing and counting files?
    pub tidies: bool,
}

/// A link that is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewLink<'a> {
    /// The bridge's name.
    pub bridge: &'a str,
    /// Is it asked for from inside a grant?
    pub nested: bool,
    /// The IPv4 address that it must have.
    pub address4: Option<Ipv4Addr>,
    /// The IPv6 address that it must have.
    pub address6: Option<Ipv6Addr>,
    /// Most that it may send, in bits a second; no limit if 0.
    pub upload: u64,
    /// Most that is sent to it, in bits a second; no limit if 0.
    pub download: u64,
    /// Its VLAN; none if 0.
    pub vlan: u16,
    /// The host's ports that lead to it.
    pub ports: &'a [HostPort],
}

/// A port of the host's that is to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// On which of the host's addresses; on all if `None`.
    pub address: Option<IpAddr>,
    /// Which port.
    pub port: u16,
}

/// What is done with a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Tells about it: description, values, figures, processes, cgroups.
    Read,
    /// Moves processes into it.
    Attach,
    /// Changes what holds it.
    Adopt,
    /// Makes it one that nothing but a release ends.
    Persist,
    /// Freezes it.
    Freeze,
    /// Lets it go on.
    Thaw,
    /// Kills what is in it.
    Kill,
    /// Removes a cgroup, or hands out a descriptor of one.
    Cgroup,
    /// Ends it.
    Release,
    /// Removes a link.
    RemoveLink,
    /// Takes published ports back.
    Unpublish,
    /// Unties a range from its name.
    ForgetRange,
    /// Has a directory as a mount whose files belong to its ids.
    MapDirectory,
}

/// What an account has at the moment, the request not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageNow {
    /// Connections.
    pub connections: u64,
    /// Requests under way.
    pub requests: u64,
    /// Requests that are not worked off at the account's rate.
    pub requests_per_second: u64,
    /// Grants.
    pub grants: u64,
    /// Grants among them that outlive their maker.
    pub persistent_grants: u64,
    /// Cgroups in all grants.
    pub cgroups: u64,
    /// Ids.
    pub ids: u64,
    /// Bytes that files of its ids took when that was measured.
    pub disk: u64,
    /// How many such files there were.
    pub disk_files: u64,
    /// How many seconds ago that was.
    pub disk_age: u64,
    /// Grants that are for nothing but removing and counting files, made from the host.
    pub tidying: u64,
    /// Such grants that were made from inside others: whoever is in there does not keep the account from its own.
    pub tidying_inside: u64,
    /// Notices about pressure.
    pub pressure_watches: u64,
    /// Links.
    pub links: u64,
    /// Ports of the host's that lead to them.
    pub published_ports: u64,
    /// Addresses that are kept for them.
    pub addresses: u64,
}

/// A right that polkit may be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A grant.
    CreateGrant,
    /// A grant that outlives its maker.
    CreatePersistentGrant,
    /// Other limits.
    SetLimits,
    /// A value written into a file of the kernel's.
    WriteRaw,
    /// A link.
    AddLink,
    /// More than the quotas and ceilings.
    ExceedQuota,
    /// What is other accounts'.
    ManageOthers,
    /// Links on bridges, with addresses, VLANs or ports that policy does not list.
    HostNetwork,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::CreateGrant,
        Self::CreatePersistentGrant,
        Self::SetLimits,
        Self::WriteRaw,
        Self::AddLink,
        Self::ExceedQuota,
        Self::ManageOthers,
        Self::HostNetwork,
    ];

    /// Its name as a polkit action.
    pub fn id(self) -> &'static str {
        match self {
            Self::CreateGrant => "org.cgrant.broker1.create-grant",
            Self::CreatePersistentGrant => "org.cgrant.broker1.create-persistent-grant",
            Self::SetLimits => "org.cgrant.broker1.set-limits",
            Self::WriteRaw => "org.cgrant.broker1.write-raw",
            Self::AddLink => "org.cgrant.broker1.add-link",
            Self::ExceedQuota => "org.cgrant.broker1.exceed-quota",
            Self::ManageOthers => "org.cgrant.broker1.manage-others",
            Self::HostNetwork => "org.cgrant.broker1.host-network",
        }
    }
}

/// How many seconds a request may have to wait for its account's `requests-per-second`. Clients of D-Bus wait 25.
pub const PACE_PATIENCE: u64 = 5;

/// What policy says to a request. `rule` is the label of the rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow {
        /// The rule.
        rule: String,
    },
    /// Yes, if polkit agrees. Everything else about the request is in order.
    Ask {
        /// What to ask about.
        action: Action,
        /// The rule.
        rule: String,
        /// What the caller is told if nobody agrees; `None` where there is no more to say than that.
        otherwise: Option<Box<Denial>>,
    },
    /// No.
    Deny(Denial),
}

impl Verdict {
    /// What it comes to inside a grant, where nobody is asked.
    ///
    /// An attacker inside a container wants somebody's yes to what its account may not have, or to what lies outside of its grant: polkit's
    /// subject would be a process of the container's, for which an agent in there could answer. So it is not asked
    /// about those inside a grant: what policy leaves to it is refused.
    #[must_use]
    pub fn unasked(self) -> Self {
        let Self::Ask { action, rule, otherwise } = self else { return self };
        let alone = || Denial {
            code: DenialCode::NotAuthorized,
            message: format!(
                "policy lets polkit decide about {}, which is not asked about callers inside a grant",
                action.id()
            ),
            rule,
            quota: None,
            usage: None,
            resource: None,
            limit: None,
            hint: Some("ask from outside of the container".to_owned()),
        };
        Self::Deny(otherwise.map_or_else(alone, |denial| *denial))
    }
}

/// The kind of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenialCode {
    /// The caller may not do this.
    NotAuthorized,
    /// There would be more than the account may have, or a value above a ceiling.
    QuotaExceeded,
    /// The object is another account's; the caller is told what it would be told if there were no such object.
    NotVisible,
    /// The bridge is none of those that the caller may use, or there is none of this name.
    NoSuchBridge,
}

/// Why a request was denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Its kind.
    pub code: DenialCode,
    /// One sentence.
    pub message: String,
    /// The label of the rule that decided: `FILE:LINE NAME`, or `built-in NAME`.
    pub rule: String,
    /// The quota that was met.
    pub quota: Option<u64>,
    /// What the account uses of it.
    pub usage: Option<u64>,
    /// What is counted by that quota, or the limit whose ceiling was met.
    pub resource: Option<String>,
    /// The ceiling, as a value of that limit.
    pub limit: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Decides a request.
///
/// An attacker wants a request that is judged as another, or by figures that another made. Neither can be:
/// this is given what the engine itself knows about the caller and the object, and the quotas are counted
/// per account, so that nobody uses up anybody else's.
pub fn judge(policy: &Policy, caller: &Caller, request: &Request<'_>, usage: &UsageNow) -> Verdict {
    judge_consented(policy, caller, request, usage, &[])
}

/// Decides a request that polkit has agreed to as far as these actions go.
///
/// An attacker wants a consent to count for more than was asked. The rules are looked at anew, each action opens what it
/// stands for and nothing else, and whoever calls this passes those only that were agreed to for this very request.
pub fn judge_consented(
    policy: &Policy,
    caller: &Caller,
    request: &Request<'_>,
    usage: &UsageNow,
    consents: &[Action],
) -> Verdict {
    let known = policy.ruling(caller);
    let opened = |rules: &Ruling| consent::opened(rules, request, consents);
    let rules = if consents.is_empty() { known } else { Cow::Owned(opened(&known)) };
    // The caller's application is a name that its account could have made: what it gives, the account has to have anyway.
    let doubted = policy.doubted(caller).map(opened);
    let rule = rules.label.clone();
    let by = |rules: &Ruling| {
        outcome(rules, caller, request, usage, consents).map_err(|denial| {
            let remedy = consent::remedy(rules, request, &denial, consents);
            (denial, remedy)
        })
    };
    let again = |ask: Option<Action>| Ok(ask.or(doubted.as_ref().map(by).transpose()?.flatten()));
    match by(&rules).and_then(again) {
        Ok(None) => Verdict::Allow { rule },
        Ok(Some(action)) => Verdict::Ask { action, rule, otherwise: None },
        Err((denial, None)) => Verdict::Deny(*denial),
        Err((denial, Some(action))) => {
            // Nobody is asked for what could not be had then either.
            let with: Vec<Action> = consents.iter().copied().chain([action]).collect();
            match judge_consented(policy, caller, request, usage, &with) {
                Verdict::Deny(_) => Verdict::Deny(*denial),
                _ => Verdict::Ask { action, rule, otherwise: Some(denial) },
            }
        }
    }
}

fn outcome(
    rules: &Ruling,
    caller: &Caller,
    request: &Request<'_>,
    usage: &UsageNow,
    consents: &[Action],
) -> Outcome {
    let others = consents.contains(&Action::ManageOthers)
        && rules.access.others == Exception::Ask
        && consent::is_manageable(request);
    let on_behalf = |owner: HostUid| Caller { uid: owner, ..caller.clone() };
    match request {
        // The owner's grant as if it were the asker's own: by the asker's rules and ceilings, as it is the asker that is let.
        Request::UseGrant { owner, verb } if others => {
            use_grant(rules, &on_behalf(*owner), *owner, *verb, usage)
        }
        Request::SetLimits { owner, limits } if others => {
            set_limits(rules, &on_behalf(*owner), *owner, limits)
        }
        Request::ReadRaw { owner, key } if others => read_raw(rules, &on_behalf(*owner), *owner, key),
        Request::ListAll | Request::ListAccounts | Request::UsageOf { .. } if others => Ok(None),
        Request::Connect => connect(rules, usage),
        Request::Call => within(rules, Resource::Requests, 1, usage).and_then(|_| pace(rules, usage)),
        Request::CreateGrant(grant) => create_grant(rules, caller, grant, usage),
        Request::UseGrant { owner, verb } => use_grant(rules, caller, *owner, *verb, usage),
        Request::CreateCgroup { owner, depth } => create_cgroup(rules, caller, *owner, *depth, usage),
        Request::SetLimits { owner, limits } => set_limits(rules, caller, *owner, limits),
        Request::ReadRaw { owner, key } => read_raw(rules, caller, *owner, key),
        Request::WriteRaw { owner, key, .. } => write_raw(rules, caller, *owner, key),
        Request::UseDevice { owner, node, by_group } => use_device(rules, caller, *owner, node, *by_group),
        Request::AddLink { owner, link } => add_link(rules, caller, *owner, link, usage),
        Request::Publish { owner, ports } => publish(rules, caller, *owner, ports, usage),
        Request::ListBridges | Request::ExamineNetwork => Ok(None),
        Request::Legacy => legacy(rules),
        Request::LegacyCgroup { depth } => legacy(rules).and_then(|_| cgroup(rules, *depth, usage)),
        Request::LegacyController { name } => {
            legacy(rules).and_then(|_| controller(rules, caller, name).map(|()| None))
        }
        Request::ListAll => root_only(rules, caller, "list the grants of other accounts"),
        Request::Metrics => metrics(rules, caller),
        Request::ListAccounts => root_only(rules, caller, "list other accounts"),
        Request::ListRules => root_only(rules, caller, "read the rules for others"),
        Request::ForgetDeparted => root_only(rules, caller, "say what became of files of users who are gone"),
        Request::ReportDisk => root_only(rules, caller, "say what files of ids take"),
        Request::UsageOf { account } if *account == caller.uid => Ok(None),
        Request::UsageOf { .. } => root_only(rules, caller, "see the usage of other accounts"),
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Connections.
    Connections,
    /// Requests under way.
    Requests,
    /// Requests in a second.
    RequestsPerSecond,
    /// Grants.
    Grants,
    /// Grants that outlive their maker.
    PersistentGrants,
    /// Cgroups in all grants.
    Cgroups,
    /// Ids.
    Ids,
    /// Bytes that files of its ids take.
    Disk,
    /// Such files.
    DiskFiles,
    /// Notices about pressure.
    PressureWatches,
    /// Links.
    Links,
    /// Ports of the host's that lead to them.
    PublishedPorts,
    /// Addresses that are kept for them.
    Addresses,
}

impl Resource {
    /// All of them, in the order in which usage is shown.
    pub const ALL: [Self; 13] = [
        Self::Grants,
        Self::PersistentGrants,
        Self::Cgroups,
        Self::Ids,
        Self::Disk,
        Self::DiskFiles,
        Self::PressureWatches,
        Self::Links,
        Self::PublishedPorts,
        Self::Addresses,
        Self::Connections,
        Self::Requests,
        Self::RequestsPerSecond,
    ];

    /// Its name in policy files and in lists of usage.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::RequestsPerSecond => "requests-per-second",
            Self::Grants => "grants",
            Self::PersistentGrants => "persistent-grants",
            Self::Cgroups => "cgroups",
            Self::Ids => "ids",
            Self::Disk => "disk",
            Self::DiskFiles => "disk-files",
            Self::PressureWatches => "pressure-watches",
            Self::Links => "links",
            Self::PublishedPorts => "published-ports",
            Self::Addresses => "addresses",
        }
    }

    /// The quota of it and the use of it.
    pub fn figures(self, quotas: &Quotas, usage: &UsageNow) -> (u64, u64) {
        let quota = match self {
            Self::Connections => quotas.connections,
            Self::Requests => quotas.requests,
            Self::RequestsPerSecond => quotas.requests_per_second,
            Self::Grants => quotas.grants,
            Self::PersistentGrants => quotas.persistent_grants,
            Self::Cgroups => quotas.cgroups,
            Self::Ids => quotas.ids,
            Self::Disk => quotas.disk.get(),
            Self::DiskFiles => quotas.disk_files.get(),
            Self::PressureWatches => quotas.pressure_watches,
            Self::Links => quotas.links,
            Self::PublishedPorts => quotas.published_ports,
            Self::Addresses => quotas.addresses,
        };
        (quota, self.used(usage))
    }

    /// The use of it.
    pub fn used(self, usage: &UsageNow) -> u64 {
        match self {
            Self::Connections => usage.connections,
            Self::Requests => usage.requests,
            Self::RequestsPerSecond => usage.requests_per_second,
            Self::Grants => usage.grants,
            Self::PersistentGrants => usage.persistent_grants,
            Self::Cgroups => usage.cgroups,
            Self::Ids => usage.ids,
            Self::Disk => usage.disk,
            Self::DiskFiles => usage.disk_files,
            Self::PressureWatches => usage.pressure_watches,
            Self::Links => usage.links,
            Self::PublishedPorts => usage.published_ports,
            Self::Addresses => usage.addresses,
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Self::Connections => "close connections that are not used any more",
            Self::Requests => "wait for the answers to earlier requests",
            Self::RequestsPerSecond => "ask less often",
            Self::Grants => "release grants that are not needed; `cgrant grant list` shows them",
            Self::PersistentGrants => {
                "release persistent grants that are not needed, or make one that ends with its process"
            }
            Self::Cgroups => "remove cgroups or release grants that are not needed",
            Self::Ids => "ask for fewer ids, or untie the range of a name that is not needed any more",
            Self::Disk | Self::DiskFiles => {
                "remove images and containers that are not needed (`cgrant usage --disk` shows them); what is left counts from the next \
                 measurement on"
            }
            Self::PressureWatches => "make grants without pressure notices, or release some that have them",
            Self::Links => "remove links that are not needed; `cgrant link list` shows them",
            Self::PublishedPorts => {
                "take back published ports that are not needed; `cgrant link list` shows them"
            }
            Self::Addresses => "remove links that are not needed; their addresses are used again then",
        }
    }
}

/// Usage beside quota, by name, for showing to the account: name, used, quota.
pub fn usage_rows(quotas: &Quotas, usage: &UsageNow) -> Vec<(&'static str, u64, u64)> {
    let row = |resource: Resource| {
        let (quota, used) = resource.figures(quotas, usage);
        (resource.name(), used, quota)
    };
    Resource::ALL.into_iter().map(row).collect()
}

/// `Some` is something to ask about. A denial is boxed because it is large and rare.
type Outcome = Result<Option<Action>, Box<Denial>>;

fn connect(rules: &Ruling, usage: &UsageNow) -> Outcome {
    door(rules, rules.access.connect, "speak with the broker")?;
    within(rules, Resource::Connections, 1, usage)
}

fn create_grant(rules: &Ruling, caller: &Caller, grant: &NewGrant<'_>, usage: &UsageNow) -> Outcome {
    let mut ask = access(rules, rules.access.grant, Action::CreateGrant, "make grants")?;
    within(rules, Resource::Grants, 1, usage)?;
    within(rules, Resource::Cgroups, 1, usage)?;
    if grant.persistent {
        // The right to a lasting grant holds the right to a grant, so there is one question at most.
        ask = persist(rules, usage)?.or(ask);
    }
    if let Some(count) = grant.ids {
        let count = u64::from(count);
        at_most(rules, "ids-per-grant", rules.quotas.ids_per_grant, count)?;
        // Whether new ids are needed at all only the record knows, which holds this quota itself under its lock.
        at_most(rules, Resource::Ids.name(), rules.quotas.ids, count)?;
        room_on_disk(rules, grant, usage)?;
        if grant.setgroups {
            door(rules, rules.access.setgroups, "have setgroups in a user namespace")
                .map_err(|denial| denial.hinted("ask for ids without setgroups"))?;
        }
    }
    at_most(rules, "nesting-blocks", rules.quotas.nesting_blocks, grant.nesting.into())?;
    at_most(
        rules,
        "nesting-depth",
        rules.quotas.nesting_depth,
        u64::try_from(grant.depth).unwrap_or(u64::MAX),
    )?;
    if let Some(blocks) = grant.user_blocks {
        at_most(rules, "nesting-user-blocks", rules.quotas.nesting_user_blocks, blocks)?;
    }
    let watches = u64::try_from(grant.pressure).unwrap_or(u64::MAX);
    within(rules, Resource::PressureWatches, watches, usage)?;
    of_controllers(rules, caller, grant.asked)?;
    ceilings(rules, caller, grant.limits)?;
    // The right to a grant with links holds the right to a grant; a lasting one asks for more than links do.
    let link = links(rules, grant.links, usage)?;
    Ok(if grant.persistent { ask.or(link) } else { link.or(ask) })
}

fn add_link(
    rules: &Ruling,
    caller: &Caller,
    owner: HostUid,
    link: &NewLink<'_>,
    usage: &UsageNow,
) -> Outcome {
    authority(rules, caller, owner)?;
    links(rules, std::slice::from_ref(link), usage)
}

/// Links that all come to be, or none.
fn links(rules: &Ruling, links: &[NewLink<'_>], usage: &UsageNow) -> Outcome {
    if links.is_empty() {
        return Ok(None);
    }
    let ask = access(rules, rules.access.link, Action::AddLink, "have links")?;
    let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
    within(rules, Resource::Links, count(links.len()), usage)?;
    within(rules, Resource::PublishedPorts, count(links.iter().map(|link| link.ports.len()).sum()), usage)?;
    // Whether new addresses are needed only the record of them knows, which holds that quota itself.
    at_most(rules, Resource::Addresses.name(), rules.quotas.addresses, count(links.len()))?;
    links.iter().try_for_each(|link| one_link(rules, link))?;
    Ok(ask)
}

fn one_link(rules: &Ruling, link: &NewLink<'_>) -> Result<(), Box<Denial>> {
    let network = &rules.network;
    let bridges = if link.nested { &network.nesting_bridges } else { &network.bridges };
    if !bridges.iter().any(|bridge| bridge.as_str() == link.bridge) {
        let mut denial =
            denied(rules, format!("there is no bridge {:?} that this account may use", link.bridge));
        denial.code = DenialCode::NoSuchBridge;
        return Err(denial.hinted("Manager.ListBridges tells which there are"));
    }
    let fixed = link.address4.map(IpAddr::V4).into_iter().chain(link.address6.map(IpAddr::V6));
    for address in fixed {
        if !network.fixed_addresses.iter().any(|net| net.0.contains(&address)) {
            return Err(denied(
                rules,
                format!("policy does not let this account choose the address {address}"),
            )
            .hinted(
                "ask without an address; an administrator can add it to network.fixed-addresses of the rule",
            ));
        }
    }
    if link.vlan != 0 && !network.vlans.iter().any(|span| span.contains(link.vlan)) {
        return Err(denied(rules, format!("policy does not let this account into VLAN {}", link.vlan))
            .hinted("an administrator can add it to network.vlans of the rule"));
    }
    rate(rules, "max-upload", network.max_upload, link.upload)?;
    rate(rules, "max-download", network.max_download, link.download)?;
    host_ports(rules, link.ports)
}

/// A link without a limit gets policy's.
fn rate(rules: &Ruling, name: &str, most: u64, asked: u64) -> Result<(), Box<Denial>> {
    if most != 0 && asked > most {
        at_most(rules, name, most, asked)?;
    }
    Ok(())
}

fn publish(rules: &Ruling, caller: &Caller, owner: HostUid, ports: &[HostPort], usage: &UsageNow) -> Outcome {
    authority(rules, caller, owner)?;
    let ask = access(rules, rules.access.link, Action::AddLink, "have links")?;
    within(rules, Resource::PublishedPorts, u64::try_from(ports.len()).unwrap_or(u64::MAX), usage)?;
    host_ports(rules, ports)?;
    Ok(ask)
}

fn host_ports(rules: &Ruling, ports: &[HostPort]) -> Result<(), Box<Denial>> {
    for HostPort { address, port } in ports {
        if !rules.network.may_publish(*address, *port) {
            let place = address.map_or_else(String::new, |address| format!(" on {address}"));
            let all = if address.is_none() && !rules.network.port_addresses.is_empty() {
                " on all addresses"
            } else {
                ""
            };
            return Err(denied(rules, format!("policy does not let this account publish port {port}{place}{all}"))
                .hinted("choose another port; an administrator can add it to network.ports and network.port-addresses of the rule"));
        }
    }
    Ok(())
}

fn persist(rules: &Ruling, usage: &UsageNow) -> Outcome {
    within(rules, Resource::PersistentGrants, 1, usage)?;
    let action = Action::CreatePersistentGrant;
    access(rules, rules.access.persistent, action, "make grants that outlive their maker")
}

fn use_grant(rules: &Ruling, caller: &Caller, owner: HostUid, verb: Verb, usage: &UsageNow) -> Outcome {
    authority(rules, caller, owner)?;
    match verb {
        Verb::Persist if !caller.uid.is_root() => persist(rules, usage),
        Verb::MapDirectory => door(rules, rules.access.mounts, "have directories mapped for containers")
            .map_err(|denial| denial.hinted("copy the directory instead")),
        _ => Ok(None),
    }
}

/// Who can open a device anyhow needs no rule's word for it.
fn use_device(rules: &Ruling, caller: &Caller, owner: HostUid, node: &NodeName, by_group: bool) -> Outcome {
    authority(rules, caller, owner)?;
    if by_group || rules.access.may_have(node) {
        return Ok(None);
    }
    let node = node.as_str();
    Err(denied(rules, format!("policy does not let this account have /dev/{node} in containers"))
        .hinted("join the group that may read and write it; an administrator can add it to access.devices of the rule"))
}

fn create_cgroup(rules: &Ruling, caller: &Caller, owner: HostUid, depth: usize, usage: &UsageNow) -> Outcome {
    authority(rules, caller, owner)?;
    cgroup(rules, depth, usage)
}

/// Root sees all that they are about anyway; a rule that is for root, and says nothing of metrics, takes them from nobody.
fn metrics(rules: &Ruling, caller: &Caller) -> Outcome {
    if caller.uid.is_root() {
        return Ok(None);
    }
    door(rules, rules.access.metrics, "read the metrics of all accounts")
}

fn legacy(rules: &Ruling) -> Outcome {
    door(rules, rules.access.legacy, "use CGManager's interface")
        .map_err(|denial| denial.hinted("use the broker's own interface"))?;
    Ok(None)
}

fn cgroup(rules: &Ruling, depth: usize, usage: &UsageNow) -> Outcome {
    let depth = u64::try_from(depth).unwrap_or(u64::MAX);
    at_most(rules, "cgroup-depth", rules.quotas.cgroup_depth, depth)?;
    within(rules, Resource::Cgroups, 1, usage)
}

fn set_limits(rules: &Ruling, caller: &Caller, owner: HostUid, limits: &[(LimitKey, LimitValue)]) -> Outcome {
    authority(rules, caller, owner)?;
    of_controllers(rules, caller, limits)?;
    ceilings(rules, caller, limits)?;
    access(rules, rules.access.limits, Action::SetLimits, "change the limits of grants")
}

fn read_raw(rules: &Ruling, caller: &Caller, owner: HostUid, key: &RawKey) -> Outcome {
    authority(rules, caller, owner)?;
    if rules.raw.read.contains(key) || rules.raw.write.contains(key) {
        return Ok(None);
    }
    Err(denied(rules, format!("policy does not let the file {key} be read"))
        .hinted("an administrator can add it to raw.read of the rule"))
}

fn write_raw(rules: &Ruling, caller: &Caller, owner: HostUid, key: &RawKey) -> Outcome {
    authority(rules, caller, owner)?;
    of_controller(rules, caller, key.controller(), key)?;
    if !rules.raw.write.contains(key) {
        return Err(denied(rules, format!("policy does not let the file {key} be written"))
            .hinted("an administrator can add it to raw.write of the rule"));
    }
    access(rules, rules.access.raw_write, Action::WriteRaw, "write files of cgroups")
}

/// The caller's own account, or root. Anybody else learns nothing, not even that the object is there.
fn authority(rules: &Ruling, caller: &Caller, owner: HostUid) -> Result<(), Box<Denial>> {
    if caller.uid == owner || caller.uid.is_root() {
        return Ok(());
    }
    let mut denial = denied(rules, "there is no such grant of this account".to_owned());
    denial.code = DenialCode::NotVisible;
    Err(denial)
}

fn root_only(rules: &Ruling, caller: &Caller, what: &str) -> Outcome {
    if caller.uid.is_root() {
        return Ok(None);
    }
    Err(denied(rules, format!("only root may {what}")))
}

fn access(rules: &Ruling, said: Access, action: Action, what: &str) -> Outcome {
    match said {
        Access::Allow => Ok(None),
        Access::Ask => Ok(Some(action)),
        Access::Deny => Err(denied(rules, format!("policy does not let this account {what}"))),
    }
}

fn door(rules: &Ruling, said: Door, what: &str) -> Outcome {
    match said {
        Door::Allow => Ok(None),
        Door::Deny => Err(denied(rules, format!("policy does not let this account {what}"))),
    }
}

/// Is there room for so many more?
fn within(rules: &Ruling, resource: Resource, more: u64, usage: &UsageNow) -> Outcome {
    let (quota, used) = resource.figures(&rules.quotas, usage);
    if more == 0 || used.checked_add(more).is_some_and(|total| total <= quota) {
        return Ok(None);
    }
    let name = resource.name();
    let message = format!("the account has {used} of at most {quota} {name} and asks for {more} more");
    Err(exceeded(rules, message, name, quota, used).hinted(resource.hint()))
}

/// A request that comes too soon waits, unless that would take too long.
fn pace(rules: &Ruling, usage: &UsageNow) -> Outcome {
    let (quota, used) = Resource::RequestsPerSecond.figures(&rules.quotas, usage);
    if used < quota.saturating_mul(PACE_PATIENCE + 1) {
        return Ok(None);
    }
    let name = Resource::RequestsPerSecond.name();
    let message =
        format!("the account may make {quota} {name}, and would have to wait too long with this one");
    Err(exceeded(rules, message, Resource::RequestsPerSecond.name(), quota, used)
        .hinted(Resource::RequestsPerSecond.hint()))
}

/// Files are written by programs in containers, whom the kernel alone could refuse that; who has too many gets no ids for more of them. One
/// grant at a time is there all the same, to remove some with.
fn room_on_disk(rules: &Ruling, grant: &NewGrant<'_>, usage: &UsageNow) -> Outcome {
    let tidying = if grant.depth == 0 { usage.tidying } else { usage.tidying_inside };
    for resource in [Resource::Disk, Resource::DiskFiles] {
        let (quota, used) = resource.figures(&rules.quotas, usage);
        if used <= quota || grant.tidies && tidying == 0 {
            continue;
        }
        let name = resource.name();
        let shown = |amount: u64| match resource {
            Resource::Disk => size(amount),
            _ => amount.to_string(),
        };
        let also = if grant.tidies { ", and has a grant to remove some with already" } else { "" };
        let message = format!(
            "files of the account's ids take {} of {name}, more than the {} that policy allows, as measured {} ago{also}",
            shown(used),
            shown(quota),
            time(usage.disk_age)
        );
        return Err(exceeded(rules, message, name, quota, used).hinted(resource.hint()));
    }
    Ok(None)
}

/// Bytes as people say it.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, power)| bytes >> power > 0) {
        // Tenths, rounded down.
        Some((unit, power)) => {
            let tenths = (u128::from(bytes) * 10) >> power;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

/// Seconds as people say it.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => "less than a minute".to_owned(),
        60..7200 => format!("{} minutes", seconds / 60),
        7200..172_800 => format!("{} hours", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Is one thing small enough?
fn at_most(rules: &Ruling, name: &str, quota: u64, asked: u64) -> Outcome {
    if asked <= quota {
        return Ok(None);
    }
    let message = format!("{asked} is more than the {quota} that policy allows for {name}");
    Err(exceeded(rules, message, name, quota, asked).hinted("ask for less"))
}

/// A ceiling of policy's own needs no controller in the account's hands: it is set on what is root's.
fn of_controllers(
    rules: &Ruling,
    caller: &Caller,
    asked: &[(LimitKey, LimitValue)],
) -> Result<(), Box<Denial>> {
    asked.iter().try_for_each(|(key, _)| of_controller(rules, caller, key.controller(), key))
}

/// May a key of this controller be set?
fn of_controller(
    rules: &Ruling,
    caller: &Caller,
    name: &str,
    key: &impl fmt::Display,
) -> Result<(), Box<Denial>> {
    controller(rules, caller, name).map_err(|mut denial| {
        denial.message = format!("{}, and with it {key}", denial.message);
        denial
    })
}

/// May something of this controller be set, made or given away? Root may on any grant, as with ceilings.
fn controller(rules: &Ruling, caller: &Caller, name: &str) -> Result<(), Box<Denial>> {
    if caller.uid.is_root() || rules.access.controllers.allow(name) {
        return Ok(());
    }
    Err(denied(rules, format!("policy does not let this account have the controller {name}"))
        .hinted("ask without it; an administrator can add it to access.controllers of the rule"))
}

/// Root may set what it likes on any grant: ceilings are there to be kept by others.
fn ceilings(rules: &Ruling, caller: &Caller, limits: &[(LimitKey, LimitValue)]) -> Result<(), Box<Denial>> {
    if caller.uid.is_root() {
        return Ok(());
    }
    for (key, value) in limits {
        let Some(most) = rules.grant_ceilings.of(*key) else { continue };
        if value.exceeds(most) {
            let message = format!("{key} = {value} is above the ceiling of {most} that policy sets");
            let mut denial = denied(rules, message);
            denial.code = DenialCode::QuotaExceeded;
            (denial.resource, denial.limit) = (Some(key.to_string()), Some(most.to_string()));
            return Err(denial.hinted(&format!("ask for {most} or less")));
        }
    }
    Ok(())
}

fn denied(rules: &Ruling, message: String) -> Box<Denial> {
    let rule = rules.label.clone();
    Box::new(Denial {
        code: DenialCode::NotAuthorized,
        message,
        rule,
        quota: None,
        usage: None,
        resource: None,
        limit: None,
        hint: None,
    })
}

fn exceeded(rules: &Ruling, message: String, name: &str, quota: u64, usage: u64) -> Box<Denial> {
    let mut denial = denied(rules, message);
    (denial.code, denial.quota, denial.usage) = (DenialCode::QuotaExceeded, Some(quota), Some(usage));
    denial.resource = Some(name.to_owned());
    denial
}

impl Denial {
    fn hinted(mut self: Box<Self>, hint: &str) -> Box<Self> {
        self.hint = Some(hint.to_owned());
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{application::Application, ids::HostGid, policy::Source};

    const ROOT: u32 = 0;
    const PERSON: u32 = 1000;

    fn caller(uid: u32) -> Caller {
        Caller { uid: HostUid(uid), gid: HostGid(uid), groups: vec![], application: None }
    }

    fn with(text: &str) -> Policy {
        let text = format!("[[rule]]\nname = \"site\"\n{text}");
        Policy::parse(&[Source { name: "s.toml", text: &text }]).unwrap()
    }

    fn plain() -> NewGrant<'static> {
        NewGrant {
            ids: Some(65536),
            limits: &[],
            asked: &[],
            setgroups: true,
            persistent: false,
            pressure: 0,
            links: &[],
            nesting: 0,
            depth: 0,
            user_blocks: None,
            tidies: false,
        }
    }

    fn denial(policy: &Policy, uid: u32, request: &Request<'_>, usage: &UsageNow) -> Denial {
        match judge(policy, &caller(uid), request, usage) {
            Verdict::Deny(denial) => denial,
            // What is said where nobody agrees, or nobody can be asked.
            Verdict::Ask { otherwise: Some(denial), .. } => *denial,
            other => panic!("expected a denial of {request:?}, got {other:?}"),
        }
    }

    fn allowed(policy: &Policy, uid: u32, request: &Request<'_>) -> bool {
        matches!(judge(policy, &caller(uid), request, &UsageNow::default()), Verdict::Allow { .. })
    }

    #[test]
    fn the_built_in_policy_lets_people_run_containers() {
        let policy = Policy::built_in().unwrap();
        let owner = HostUid(PERSON);
        let key = "memory.swappiness".to_owned().try_into().unwrap();
        let limits = [(LimitKey::MemoryMax, LimitValue::Bytes(None))];
        for request in [
            Request::Connect,
            Request::Call,
            Request::CreateGrant(NewGrant { persistent: true, pressure: 3, ..plain() }),
            Request::UseGrant { owner, verb: Verb::Release },
            Request::CreateCgroup { owner, depth: 16 },
            Request::SetLimits { owner, limits: &limits },
            Request::ReadRaw { owner, key: &key },
            Request::WriteRaw { owner, key: &key, value: "1" },
            Request::UsageOf { account: owner },
        ] {
            assert!(allowed(&policy, PERSON, &request), "{request:?}");
            assert!(allowed(&policy, ROOT, &request), "{request:?}");
        }
    }

    const LINK: NewLink<'static> = NewLink {
        nested: false,
        bridge: "default",
        address4: None,
        address6: None,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: &[],
    };

    fn on_others(owner: HostUid, key: &RawKey) -> [Request<'_>; 13] {
        let verb = |verb| Request::UseGrant { owner, verb };
        [
            verb(Verb::Read),
            verb(Verb::Attach),
            verb(Verb::Persist),
            verb(Verb::Kill),
            verb(Verb::Release),
            Request::CreateCgroup { owner, depth: 1 },
            Request::SetLimits { owner, limits: &[] },
            Request::ReadRaw { owner, key },
            Request::WriteRaw { owner, key, value: "1" },
            verb(Verb::RemoveLink),
            verb(Verb::Unpublish),
            Request::AddLink { owner, link: LINK },
            Request::Publish { owner, ports: &[] },
        ]
    }

    #[test]
    fn links_are_as_policy_says() {
        let policy = with(
            r#"
[rule.network]
bridges = ["default", "lan"]
nesting-bridges = ["lan"]
fixed-addresses = ["10.0.0.0/8", "fd00::/8"]
ports = [443, "1024-65535"]
max-upload = "10M"
vlans = ["100-199"]
"#,
        );
        let link = |link: NewLink<'_>| {
            let owner = HostUid(PERSON);
            let add =
                judge(&policy, &caller(PERSON), &Request::AddLink { owner, link }, &UsageNow::default());
            let links = [link];
            let create = Request::CreateGrant(NewGrant { links: &links, ..plain() });
            let create = judge(&policy, &caller(PERSON), &create, &UsageNow::default());
            assert_eq!(add, create, "one way for both");
            match add {
                Verdict::Allow { .. } => None,
                Verdict::Deny(denial) => Some(denial.code),
                Verdict::Ask { otherwise, .. } => Some(otherwise.expect("a reason").code),
            }
        };
        let port = |port| [HostPort { address: None, port }];
        let refused = Some(DenialCode::NotAuthorized);
        assert_eq!(link(LINK), None);
        assert_eq!(link(NewLink { bridge: "lan", vlan: 150, ..LINK }), None);
        // Those inside have what is named for them, and nothing else.
        assert_eq!(link(NewLink { bridge: "lan", nested: true, ..LINK }), None);
        assert_eq!(link(NewLink { nested: true, ..LINK }), Some(DenialCode::NoSuchBridge));
        assert_eq!(link(NewLink { bridge: "account", ..LINK }), Some(DenialCode::NoSuchBridge));
        assert_eq!(link(NewLink { vlan: 200, ..LINK }), refused);
        assert_eq!(link(NewLink { address4: Some(Ipv4Addr::new(10, 1, 2, 3)), ..LINK }), None);
        assert_eq!(link(NewLink { address4: Some(Ipv4Addr::new(11, 1, 2, 3)), ..LINK }), refused);
        assert_eq!(link(NewLink { address6: Some(Ipv6Addr::LOCALHOST), ..LINK }), refused);
        assert_eq!(link(NewLink { upload: 10_000_000, download: u64::MAX, ..LINK }), None);
        assert_eq!(link(NewLink { upload: 10_000_001, ..LINK }), Some(DenialCode::QuotaExceeded));
        assert_eq!(link(NewLink { ports: &port(443), ..LINK }), None);
        assert_eq!(link(NewLink { ports: &port(80), ..LINK }), refused);
        let rules = &policy.ruling(&caller(PERSON)).network;
        assert_eq!((rules.upload(0), rules.upload(5), rules.download(0)), (10_000_000, 5, 0));
    }

    #[test]
    fn people_publish_ports_above_1023_and_only_where_policy_says() {
        let owner = HostUid(PERSON);
        let allowed = |policy: &Policy, address: Option<&str>, port| {
            let address = address.map(|address| address.parse().unwrap());
            allowed(policy, PERSON, &Request::Publish { owner, ports: &[HostPort { address, port }] })
        };
        let built_in = Policy::built_in().unwrap();
        assert!(allowed(&built_in, None, 1024) && allowed(&built_in, Some("::1"), 65535));
        assert!(!allowed(&built_in, None, 1023) && !allowed(&built_in, Some("127.0.0.1"), 1));
        let local = with("network.port-addresses = [\"127.0.0.0/8\", \"::1/128\"]\n");
        assert!(allowed(&local, Some("127.0.0.5"), 8080) && allowed(&local, Some("::1"), 8080));
        assert!(!allowed(&local, None, 8080) && !allowed(&local, Some("192.0.2.1"), 8080));
    }

    #[test]
    fn by_a_name_that_the_account_can_make_nothing_more_is_had() {
        let text = r#"
[[rule]]
name = "app"
applications = ["desktop:org.example.Ci", "unit:ci.service"]
network = { bridges = ["default", "lan"], ports = ["1-65535"] }
raw.write = ["memory.swap.high", "cpu.idle"]
access.devices = ["/dev/kvm"]
access.mounts = "deny"

[[rule]]
name = "account"
access.persistent = "ask"
raw.write = ["memory.swap.high"]
"#;
        let policy = Policy::parse(&[Source { name: "s.toml", text }]).unwrap();
        let owner = HostUid(PERSON);
        let at = |path: &str| Caller {
            application: Application::at(path, owner).map(|place| place.application),
            ..caller(PERSON)
        };
        let manager = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.example.Ci-1.scope";
        let (unit, user_unit, none) = (at("/system.slice/ci.service"), at(manager), caller(PERSON));
        let (kvm, idle) = (NodeName::new("kvm").unwrap(), "cpu.idle".to_owned().try_into().unwrap());
        let ports = [HostPort { address: None, port: 80 }];
        let only_by_unit = [
            Request::AddLink { owner, link: NewLink { bridge: "lan", ..LINK } },
            Request::Publish { owner, ports: &ports },
            Request::WriteRaw { owner, key: &idle, value: "1" },
            Request::UseDevice { owner, node: &kvm, by_group: false },
        ];
        for request in only_by_unit {
            let says = |caller| judge(&policy, caller, &request, &UsageNow::default());
            assert!(matches!(says(&unit), Verdict::Allow { .. }), "{request:?}");
            for caller in [&user_unit, &none] {
                let denial = match says(caller) {
                    Verdict::Deny(denial) => denial,
                    Verdict::Ask { otherwise: Some(denial), .. } => *denial,
                    other => panic!("{request:?}: {other:?}"),
                };
                assert_eq!(denial.rule, "s.toml:10 account", "{request:?}");
            }
        }
        // It takes away where it says so, and what the account is asked about it is asked about too.
        let map = Request::UseGrant { owner, verb: Verb::MapDirectory };
        assert!(matches!(judge(&policy, &user_unit, &map, &UsageNow::default()), Verdict::Deny(_)));
        assert!(matches!(judge(&policy, &none, &map, &UsageNow::default()), Verdict::Allow { .. }));
        let lasting = Request::CreateGrant(NewGrant { persistent: true, ..plain() });
        assert!(matches!(judge(&policy, &user_unit, &lasting, &UsageNow::default()), Verdict::Ask { .. }));
        assert!(matches!(judge(&policy, &unit, &lasting, &UsageNow::default()), Verdict::Allow { .. }));
    }

    #[test]
    fn another_accounts_grant_is_not_there() {
        let policy = Policy::built_in().unwrap();
        let key = "memory.swappiness".to_owned().try_into().unwrap();
        for request in on_others(HostUid(1001), &key) {
            let denial = denial(&policy, PERSON, &request, &UsageNow::default());
            assert_eq!(denial.code, DenialCode::NotVisible, "{request:?}");
            assert!(!denial.message.contains("1001"));
            assert!(allowed(&policy, ROOT, &request), "{request:?}");
        }
        for request in [Request::ListAll, Request::ListAccounts, Request::UsageOf { account: HostUid(1001) }]
        {
            let denial = denial(&policy, PERSON, &request, &UsageNow::default());
            assert_eq!(denial.code, DenialCode::NotAuthorized);
            assert!(allowed(&policy, ROOT, &request));
        }
    }

    #[test]
    fn a_quota_that_is_met_is_named_with_its_figures() {
        let policy = with("quota.grants = 3\n");
        let usage = UsageNow { grants: 3, ..UsageNow::default() };
        let denial = denial(&policy, PERSON, &Request::CreateGrant(plain()), &usage);
        assert_eq!((denial.code, denial.quota, denial.usage), (DenialCode::QuotaExceeded, Some(3), Some(3)));
        assert_eq!(denial.rule, "s.toml:1 site");
        assert_eq!(denial.message, "the account has 3 of at most 3 grants and asks for 1 more");
        assert!(denial.hint.unwrap().contains("cgrant grant list"));
    }

    #[test]
    fn ordinary_users_inside_have_nothing_unless_policy_says_so() {
        let asks = |blocks| Request::CreateGrant(NewGrant { user_blocks: Some(blocks), depth: 1, ..plain() });
        let (shipped, open) = (with(""), with("quota.nesting-user-blocks = 2\n"));
        assert!(!allowed(&shipped, PERSON, &asks(1)));
        assert!(allowed(&open, PERSON, &asks(2)) && !allowed(&open, PERSON, &asks(3)));
        // Everybody else has other quotas.
        assert!(allowed(&shipped, PERSON, &Request::CreateGrant(NewGrant { depth: 1, ..plain() })));
    }

    #[test]
    fn every_quota_is_held() {
        let policy = with(
            "[rule.quota]\nconnections = 1\nrequests = 1\nrequests-per-second = 2\ngrants = 1\npersistent-grants = 0\ncgroups = 1\ncgroup-depth = 2\nids = 70000\ndisk = \"1G\"\ndisk-files = 1000\nids-per-grant = 65536\npressure-watches = 2\nlinks = 2\npublished-ports = 2\naddresses = 1\nnesting-blocks = 3\nnesting-depth = 1\nnesting-user-blocks = 2\n",
        );
        let owner = HostUid(PERSON);
        let ports = [HostPort { address: None, port: 8080 }; 3];
        let (full, pair) = (UsageNow { links: 2, published_ports: 2, ..UsageNow::default() }, [LINK, LINK]);
        let one = UsageNow { connections: 1, requests: 1, grants: 1, cgroups: 1, ..UsageNow::default() };
        let none = UsageNow::default();
        let soon = UsageNow { requests_per_second: 12, ..none };
        let requests = [
            (Request::Connect, one, "connections"),
            (Request::Call, one, "requests"),
            (Request::Call, soon, "requests-per-second"),
            (Request::CreateGrant(plain()), one, "grants"),
            (Request::CreateGrant(plain()), UsageNow { cgroups: 1, ..none }, "cgroups"),
            (Request::CreateGrant(NewGrant { persistent: true, ..plain() }), none, "persistent-grants"),
            (Request::UseGrant { owner, verb: Verb::Persist }, none, "persistent-grants"),
            (Request::CreateGrant(NewGrant { ids: Some(65537), ..plain() }), none, "ids-per-grant"),
            (Request::CreateGrant(plain()), UsageNow { disk: (1 << 30) + 1, ..none }, "disk"),
            (Request::CreateGrant(plain()), UsageNow { disk_files: 1001, ..none }, "disk-files"),
            (Request::CreateGrant(NewGrant { pressure: 3, ..plain() }), none, "pressure-watches"),
            (Request::CreateCgroup { owner, depth: 1 }, one, "cgroups"),
            (Request::CreateCgroup { owner, depth: 3 }, none, "cgroup-depth"),
            (Request::AddLink { owner, link: LINK }, full, "links"),
            (Request::Publish { owner, ports: &ports[..1] }, full, "published-ports"),
            (Request::Publish { owner, ports: &ports }, none, "published-ports"),
            (Request::CreateGrant(NewGrant { links: &pair, ..plain() }), none, "addresses"),
            (Request::CreateGrant(NewGrant { nesting: 4, ..plain() }), none, "nesting-blocks"),
            (Request::CreateGrant(NewGrant { depth: 2, ..plain() }), none, "nesting-depth"),
            (Request::CreateGrant(NewGrant { user_blocks: Some(3), ..plain() }), none, "nesting-user-blocks"),
        ];
        for (request, usage, name) in requests {
            let denial = denial(&policy, PERSON, &request, &usage);
            assert_eq!(denial.code, DenialCode::QuotaExceeded, "{request:?}");
            assert!(denial.message.contains(&format!(" {name}")), "{}", denial.message);
            assert_eq!(denial.resource.as_deref(), Some(name));
            assert!(denial.quota.is_some() && denial.usage.is_some());
            assert!(denial.hint.is_some());
        }
        let waits = UsageNow { requests_per_second: 11, ..none };
        let verdict = judge(&policy, &caller(PERSON), &Request::Call, &waits);
        assert!(matches!(verdict, Verdict::Allow { .. }), "{verdict:?}");
        let fits = [
            Request::CreateGrant(NewGrant { pressure: 2, ..plain() }),
            Request::CreateCgroup { owner, depth: 2 },
        ];
        assert!(fits.iter().all(|request| allowed(&policy, PERSON, request)));
    }

    #[test]
    fn who_has_too_many_files_gets_no_ids_but_to_remove_some() {
        let policy = with("quota.disk = \"10G\"\n");
        let create = |grant: NewGrant<'static>, usage: UsageNow| {
            let verdict = judge(&policy, &caller(PERSON), &Request::CreateGrant(grant), &usage);
            matches!(verdict, Verdict::Allow { .. })
        };
        let used = |disk| UsageNow { disk, disk_files: 9, disk_age: 7300, ..UsageNow::default() };
        let tidies = NewGrant { tidies: true, ..plain() };
        let full = used((10 << 30) + 1);
        assert!(create(plain(), used(10 << 30)) && !create(plain(), full));
        assert!(create(tidies, full), "nothing could be removed");
        assert!(!create(tidies, UsageNow { tidying: 1, ..full }), "all could be had by that word");
        assert!(create(tidies, UsageNow { tidying: 1, ..used(1) }));
        // Nobody inside keeps the account from it, nor the account those inside.
        let inside = NewGrant { depth: 1, ..tidies };
        assert!(create(tidies, UsageNow { tidying_inside: 1, ..full }));
        assert!(create(inside, UsageNow { tidying: 1, ..full }));
        assert!(!create(inside, UsageNow { tidying_inside: 1, ..full }));
        assert!(create(NewGrant { ids: None, ..plain() }, full), "no file belongs to a grant without ids");
        let denial = denial(&policy, PERSON, &Request::CreateGrant(plain()), &full);
        assert_eq!(
            denial.message,
            "files of the account's ids take 10.0 GiB of disk, more than the 10.0 GiB that policy allows, as measured 2 hours ago"
        );
        let figures = (denial.resource.as_deref(), denial.quota, denial.usage);
        assert_eq!(figures, (Some("disk"), Some(10 << 30), Some((10 << 30) + 1)));
        for verb in [Verb::Release, Verb::Kill, Verb::Attach] {
            let request = Request::UseGrant { owner: HostUid(PERSON), verb };
            assert!(matches!(judge(&policy, &caller(PERSON), &request, &full), Verdict::Allow { .. }));
        }
        // As shipped there is no such limit.
        let most = UsageNow { disk: u64::MAX, disk_files: u64::MAX, ..UsageNow::default() };
        assert!(matches!(
            judge(&with(""), &caller(PERSON), &Request::CreateGrant(plain()), &most),
            Verdict::Allow { .. }
        ));
    }

    #[test]
    fn what_access_says_is_done() {
        let owner = HostUid(PERSON);
        let key = "memory.swappiness".to_owned().try_into().unwrap();
        let create = Request::CreateGrant(plain());
        let lasting = Request::CreateGrant(NewGrant { persistent: true, ..plain() });
        let ask = |action| Verdict::Ask { action, rule: "s.toml:1 site".to_owned(), otherwise: None };
        for (text, request, action) in [
            ("access.grant = \"ask\"\n", create, Action::CreateGrant),
            ("access.grant = \"ask\"\n", lasting, Action::CreateGrant),
            ("access.grant = \"ask\"\naccess.persistent = \"ask\"\n", lasting, Action::CreatePersistentGrant),
            (
                "access.persistent = \"ask\"\n",
                Request::UseGrant { owner, verb: Verb::Persist },
                Action::CreatePersistentGrant,
            ),
            ("access.limits = \"ask\"\n", Request::SetLimits { owner, limits: &[] }, Action::SetLimits),
            (
                "access.raw-write = \"ask\"\n",
                Request::WriteRaw { owner, key: &key, value: "1" },
                Action::WriteRaw,
            ),
            ("access.link = \"ask\"\n", Request::AddLink { owner, link: LINK }, Action::AddLink),
            (
                "access.link = \"ask\"\n",
                Request::CreateGrant(NewGrant { links: &[LINK], ..plain() }),
                Action::AddLink,
            ),
        ] {
            let verdict = judge(&with(text), &caller(PERSON), &request, &UsageNow::default());
            assert_eq!(verdict, ask(action), "{text}");
            let no = with(&text.replace("ask", "deny"));
            let denial = denial(&no, PERSON, &request, &UsageNow::default());
            assert_eq!(denial.code, DenialCode::NotAuthorized, "{text}");
        }
        let closed = with("access.connect = \"deny\"\naccess.setgroups = \"deny\"\n");
        assert!(!allowed(&closed, PERSON, &Request::Connect));
        assert!(!allowed(&closed, PERSON, &create));
        let map = Request::UseGrant { owner: HostUid(PERSON), verb: Verb::MapDirectory };
        assert!(allowed(&closed, PERSON, &map));
        assert!(!allowed(&with("access.mounts = \"deny\"\n"), PERSON, &map));
        let without = NewGrant { setgroups: false, ..plain() };
        assert!(allowed(&closed, PERSON, &Request::CreateGrant(without)));
        let no_ids = NewGrant { ids: None, ..plain() };
        assert!(allowed(&closed, PERSON, &Request::CreateGrant(no_ids)));
    }

    #[test]
    fn ceilings_hold_at_creation_and_later() {
        let policy = with("grant-ceiling = { \"memory.max\" = \"1G\" }\n");
        let owner = HostUid(PERSON);
        for (value, fits) in [(Some(1 << 30), true), (Some((1 << 30) + 1), false), (None, false)] {
            let limits = [(LimitKey::MemoryMax, LimitValue::Bytes(value))];
            let create = Request::CreateGrant(NewGrant { limits: &limits, asked: &limits, ..plain() });
            let set = Request::SetLimits { owner, limits: &limits };
            for request in [create, set] {
                assert_eq!(allowed(&policy, PERSON, &request), fits, "{request:?}");
                assert!(allowed(&policy, ROOT, &request));
            }
        }
        let limits = [(LimitKey::MemoryMax, LimitValue::Bytes(None))];
        let denial =
            denial(&policy, PERSON, &Request::SetLimits { owner, limits: &limits }, &UsageNow::default());
        assert_eq!(
            (denial.resource.as_deref(), denial.limit.as_deref()),
            (Some("memory.max"), Some("1073741824"))
        );
        assert_eq!(denial.message, "memory.max = max is above the ceiling of 1073741824 that policy sets");
    }

    #[test]
    fn metrics_are_roots_and_whom_a_rule_lets() {
        let built_in = Policy::built_in().unwrap();
        assert!(
            allowed(&built_in, ROOT, &Request::Metrics) && !allowed(&built_in, PERSON, &Request::Metrics)
        );
        let collector = with("uids = [1000]\naccess.metrics = \"allow\"\n");
        assert!(allowed(&collector, PERSON, &Request::Metrics));
        assert!(!allowed(&collector, PERSON + 1, &Request::Metrics));
        let all = judge_consented(
            &built_in,
            &caller(PERSON),
            &Request::Metrics,
            &UsageNow::default(),
            &Action::ALL,
        );
        assert!(matches!(all, Verdict::Deny(_)), "nobody can agree to it: {all:?}");
    }

    #[test]
    fn controllers_that_are_not_listed_are_refused_whatever_the_way() {
        let policy = with(
            "access.controllers = [\"cpu\", \"pids\"]\nraw.write = [\"memory.swap.high\", \"cpu.idle\"]\ngrant-ceiling = { \"memory.max\" = \"1G\" }\n",
        );
        let owner = HostUid(PERSON);
        let memory = [(LimitKey::MemoryMax, LimitValue::Bytes(Some(1)))];
        let pids = [(LimitKey::PidsMax, LimitValue::Count(Some(1)))];
        let both = [pids[0].clone(), memory[0].clone()];
        let key = |text: &str| text.to_owned().try_into().unwrap();
        let (swap, idle) = (key("memory.swap.high"), key("cpu.idle"));
        let create = |limits| Request::CreateGrant(NewGrant { limits, asked: limits, ..plain() });
        for (request, fits) in [
            (create(&memory), false),
            (create(&both), false),
            (create(&pids), true),
            (Request::SetLimits { owner, limits: &memory }, false),
            (Request::SetLimits { owner, limits: &both }, false),
            (Request::SetLimits { owner, limits: &pids }, true),
            (Request::WriteRaw { owner, key: &swap, value: "1" }, false),
            (Request::WriteRaw { owner, key: &idle, value: "1" }, true),
            (Request::LegacyController { name: "memory" }, false),
            (Request::LegacyController { name: "blkio" }, false),
            (Request::LegacyController { name: "cpuacct" }, true),
            (Request::LegacyController { name: "freezer" }, true),
        ] {
            assert_eq!(allowed(&policy, PERSON, &request), fits, "{request:?}");
            assert!(
                allowed(&policy, ROOT, &request) || matches!(request, Request::WriteRaw { .. }),
                "{request:?}"
            );
            if fits {
                continue;
            }
            let denial = denial(&policy, PERSON, &request, &UsageNow::default());
            assert_eq!((denial.code, denial.rule.as_str()), (DenialCode::NotAuthorized, "s.toml:1 site"));
            assert!(denial.message.contains("the controller"), "{}", denial.message);
            assert!(denial.hint.unwrap().contains("access.controllers"));
            // Nobody can agree to it.
            let all = judge_consented(&policy, &caller(PERSON), &request, &UsageNow::default(), &Action::ALL);
            assert!(matches!(all, Verdict::Deny(_)), "{request:?}: {all:?}");
        }
        // A ceiling of policy's own is no wish of the account's.
        let given = policy.limits_of_new(&caller(PERSON), &[]);
        assert!(!given.is_empty());
        assert!(allowed(&policy, PERSON, &Request::CreateGrant(NewGrant { limits: &given, ..plain() })));
        let door = with("access.legacy = \"deny\"\n");
        assert!(!allowed(&door, PERSON, &Request::LegacyController { name: "cpu" }));
    }

    #[test]
    fn devices_that_are_not_listed_are_refused_to_those_outside_of_their_group() {
        let node = NodeName::new("kvm").unwrap();
        let ask = |by_group| Request::UseDevice { owner: HostUid(PERSON), node: &node, by_group };
        for (text, by_group, fits) in [
            ("", false, false),
            ("", true, true),
            ("access.devices = [\"/dev/kvm\"]\n", false, true),
            ("access.devices = [\"/dev/fuse\", \"/dev/k*\"]\n", false, true),
            ("access.devices = [\"/dev/fuse\"]\n", false, false),
        ] {
            assert_eq!(allowed(&with(text), PERSON, &ask(by_group)), fits, "{text:?} {by_group}");
            let foreign = Request::UseDevice { owner: HostUid(PERSON + 1), node: &node, by_group };
            assert!(!allowed(&with(text), PERSON, &foreign), "of another's grant");
        }
    }

    #[test]
    fn files_that_are_not_listed_are_refused() {
        let policy = Policy::built_in().unwrap();
        let owner = HostUid(PERSON);
        for name in ["devices.allow", "cgroup.procs", "memory.limit_in_bytes", "cgroup.kill", "memory.min"] {
            let key = name.to_owned().try_into().unwrap();
            for uid in [PERSON, ROOT] {
                assert!(
                    !allowed(&policy, uid, &Request::WriteRaw { owner, key: &key, value: "1" }),
                    "{name}"
                );
            }
        }
        let key = "cgroup.procs".to_owned().try_into().unwrap();
        assert!(!allowed(&policy, PERSON, &Request::ReadRaw { owner, key: &key }));
    }

    fn any_verb() -> impl Strategy<Value = Verb> {
        prop::sample::select(vec![
            Verb::Read,
            Verb::Attach,
            Verb::Adopt,
            Verb::Persist,
            Verb::Freeze,
            Verb::Thaw,
            Verb::Kill,
            Verb::Cgroup,
            Verb::Release,
            Verb::RemoveLink,
            Verb::Unpublish,
            Verb::ForgetRange,
            Verb::MapDirectory,
        ])
    }

    proptest! {
        #[test]
        fn nobody_but_root_reaches_anothers_grant(uid in 1u32.., owner: u32, verb in any_verb(), groups: Vec<u32>) {
            prop_assume!(uid != owner);
            let policy = Policy::built_in().unwrap();
            let groups = groups.into_iter().map(HostGid).collect();
            let caller = Caller { uid: HostUid(uid), gid: HostGid(0), groups, application: None };
            let request = Request::UseGrant { owner: HostUid(owner), verb };
            let verdict = judge(&policy, &caller, &request, &UsageNow::default());
            let denial = match &verdict {
                Verdict::Deny(denial) => denial,
                Verdict::Ask { action: Action::ManageOthers, otherwise: Some(denial), .. } => denial,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(denial.code, DenialCode::NotVisible);
        }

        #[test]
        fn what_is_allowed_fits_the_quotas(grants: u64, cgroups: u64, watches: u64, ids: u32, pressure: usize) {
            let policy = Policy::built_in().unwrap();
            let usage = UsageNow { grants, cgroups, pressure_watches: watches, ..UsageNow::default() };
            let grant = NewGrant { ids: Some(ids), pressure, ..plain() };
            if let Verdict::Allow { .. } = judge(&policy, &caller(PERSON), &Request::CreateGrant(grant), &usage) {
                let quotas = policy.quotas(&caller(PERSON));
                prop_assert!(grants < quotas.grants && cgroups < quotas.cgroups);
                prop_assert!(u64::from(ids) <= quotas.ids_per_grant);
                prop_assert!(pressure == 0 || watches + pressure as u64 <= quotas.pressure_watches);
            }
        }
    }
}
