//! From the engine's answer to the reply that the contract has for the call.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use cgrant_proto::names::{IDS, MOUNTS};
use cgrant_wire::{Answer, Created, Explanation, FdIndex, GrantInfo, Refusal, RefusalCode, Usage};
use zbus::{Fd, Message, ObjectPath, Variant};

use crate::{
    contract::Contract,
    describe,
    fault::{Fault, code, details},
    object::{Object, path_of},
};

/// How an answer becomes a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// An empty reply.
    Done,
    /// `CreateGrant`.
    Created,
    /// `ListGrants`.
    Grants,
    /// `GetGrant`.
    GrantPath,
    /// `GetUsage`.
    Usage,
    /// `ListAccounts`.
    Accounts,
    /// `ListRules`.
    Rules,
    /// `ListRanges`.
    Ranges,
    /// `ListDeparted`.
    Departed,
    /// `Explain`.
    Explained,
    /// `ListBridges`.
    Bridges,
    /// `ExamineNetwork`.
    Findings,
    /// `AddLink`.
    Linked,
    /// `Attach`.
    Attached,
    /// `GetValues`.
    Values,
    /// `Stat`.
    Stat,
    /// `ListProcesses`.
    Processes,
    /// `ListCgroups`.
    Cgroups,
    /// `OpenCgroup`.
    Directory,
    /// `MapDirectory` and `MakeDevice`.
    Mount,
    /// One property of a grant or of the broker.
    Property {
        /// Of which interface.
        interface: String,
        /// Which.
        property: String,
    },
    /// All properties of one interface, or of all for an empty name.
    Properties {
        /// Which interface.
        interface: String,
    },
    /// `GetManagedObjects`.
    Managed,
    /// Introspection of the directory of the grants.
    GrantsXml,
    /// Introspection of a grant.
    GrantXml,
    /// Introspection of the directory of the accounts.
    AccountsXml,
    /// Introspection of an account.
    AccountXml,
}

impl View {
    /// The reply to `call`.
    ///
    /// # Errors
    /// [`Fault`]: the refusal, or a fault of the broker's own if the answer is not one to this question.
    pub fn reply(
        &self,
        contract: &Contract,
        call: &Message,
        result: Result<Answer, Refusal>,
        fds: &[OwnedFd],
    ) -> Result<Message, Fault> {
        let answer = result.map_err(|refusal| self.refusal(refusal))?;
        let header = call.header();
        let reply = Message::method_return(&header);
        let built = match (self, &answer) {
            (Self::Done, Answer::Done) => reply.build(&()),
            (Self::Created, Answer::Created(created)) => reply.build(&created_body(created, fds)?),
            (Self::Grants, Answer::Grants(grants)) => reply.build(
                &grants
                    .iter()
                    .map(|info| Ok((path(info)?, info.name.as_str(), info.account)))
                    .collect::<Result<Vec<_>, Fault>>()?,
            ),
            (Self::GrantPath, Answer::Grant(info)) => reply.build(&path(info)?),
            (Self::Usage, Answer::Usage(usage)) => reply.build(&usage_body(usage)),
            (Self::Explained, Answer::Explained(explanation)) => reply.build(&explanation_body(explanation)),
            (Self::Accounts, Answer::Accounts(accounts)) => reply.build(accounts),
            (Self::Rules, Answer::Rules(rules)) => reply.build(
                &rules.iter().map(|rule| (&rule.label, &rule.whom, &rule.settings)).collect::<Vec<_>>(),
            ),
            (Self::Ranges, Answer::Ranges(ranges)) => reply.build(
                &ranges
                    .iter()
                    .map(|info| {
                        let grant = info.grant.map(|grant| grant.to_string()).unwrap_or_default();
                        (info.range.uid, info.range.gid, info.range.count, info.name.as_str(), grant)
                    })
                    .collect::<Vec<_>>(),
            ),
            (Self::Departed, Answer::Departed(departed)) => {
                reply.build(&departed.iter().map(describe::departed).collect::<Vec<_>>())
            }
            (Self::Bridges, Answer::Bridges(bridges)) => {
                reply.build(&bridges.iter().map(describe::bridge).collect::<Vec<_>>())
            }
            (Self::Findings, Answer::Findings(findings)) => reply.build(
                &findings
                    .iter()
                    .map(|row| (row.subject.as_str(), row.good, row.found.as_str(), row.remedy.as_str()))
                    .collect::<Vec<_>>(),
            ),
            (Self::Linked, Answer::Link(info, tap)) => {
                let mut link = describe::link(info);
                if let Some(tap) = tap {
                    link.insert("tap", Variant::from(descriptor(fds, *tap)?));
                }
                reply.build(&link)
            }
            (Self::Attached, Answer::Attached(count)) => reply.build(count),
            (Self::Values, Answer::Values(values)) => reply.build(&describe::dictionary(values)),
            (Self::Stat, Answer::Stat(stat)) => reply.build(&describe::stat(stat)),
            (Self::Processes, Answer::Processes(pids)) => reply.build(pids),
            (Self::Cgroups, Answer::Cgroups(paths)) => reply.build(paths),
            (Self::Directory, Answer::Cgroup(index)) | (Self::Mount, Answer::Mount(index)) => {
                reply.build(&descriptor(fds, *index)?)
            }
            (Self::Property { interface, property }, answer) => {
                reply.build(&property_of(answer, interface, property)?)
            }
            (Self::Properties { interface }, answer) => reply.build(&properties_of(answer, interface)?),
            (Self::Managed, Answer::Grants(grants)) => reply.build(
                &grants.iter().map(|info| Ok((path(info)?, describe::whole_grant(info)))).collect::<Result<
                    BTreeMap<_, _>,
                    Fault,
                >>(
                )?,
            ),
            (Self::GrantsXml, Answer::Grants(grants)) => {
                let interfaces = Contract::interfaces_of(Object::Grants, false);
                reply.build(&contract.introspect(interfaces, grants.iter().map(|info| info.id.to_string())))
            }
            (Self::GrantXml, Answer::Grant(info)) => {
                let interfaces = Contract::interfaces_of(Object::Grant(info.id), info.range.is_some());
                reply.build(&contract.introspect(interfaces, std::iter::empty()))
            }
            (Self::AccountsXml, Answer::Accounts(accounts)) => {
                let interfaces = Contract::interfaces_of(Object::Accounts, false);
                reply.build(&contract.introspect(interfaces, accounts.iter().map(ToString::to_string)))
            }
            (Self::AccountXml, Answer::Usage(usage)) => {
                let interfaces = Contract::interfaces_of(Object::Account(usage.account), false);
                reply.build(&contract.introspect(interfaces, std::iter::empty()))
            }
            _ => return Err(unexpected()),
        };
        built.map_err(|error| {
            tracing::error!(%error, view = ?self, "cannot build a reply");
            Fault::internal()
        })
    }

    /// Introspection of a grant that is not there: the specification has a word for it.
    fn refusal(&self, refusal: Refusal) -> Fault {
        match (self, refusal.code) {
            (Self::GrantXml, RefusalCode::NoSuchGrant) => Fault::UnknownObject(refusal.message),
            _ => Fault::Refused(refusal),
        }
    }
}

/// The engine answered something else than it was asked.
fn unexpected() -> Fault {
    tracing::error!("the engine's answer does not fit the question");
    Fault::internal()
}

fn path(info: &GrantInfo) -> Result<ObjectPath<'static>, Fault> {
    ObjectPath::try_from(path_of(info.id)).map_err(|_| Fault::internal())
}

fn descriptor(fds: &[OwnedFd], index: FdIndex) -> Result<Fd<'_>, Fault> {
    fds.get(usize::from(index.0)).map(Fd::from).ok_or_else(unexpected)
}

type CreatedBody<'a> = (ObjectPath<'static>, describe::Properties<'a>, Fd<'a>);

fn created_body<'a>(created: &'a Created, fds: &'a [OwnedFd]) -> Result<CreatedBody<'a>, Fault> {
    let info = &created.grant;
    let mut result: describe::Properties<'a> =
        BTreeMap::from([("new", Variant::from(created.new)), ("id", Variant::from(info.id.to_string()))]);
    if let Some(range) = info.range {
        result.insert("uid", Variant::from(range.uid));
        result.insert("gid", Variant::from(range.gid));
        result.insert("count", Variant::from(range.count));
    }
    if !info.links.is_empty() {
        result.insert("links", describe::links(&info.links));
    }
    if !created.taps.is_empty() {
        let taps = created.taps.iter().map(|(name, tap)| Ok((name.as_str(), descriptor(fds, *tap)?)));
        result.insert("taps", Variant::from(taps.collect::<Result<BTreeMap<_, _>, Fault>>()?));
    }
    Ok((path(info)?, result, descriptor(fds, created.payload)?))
}

type UsageBody<'a> = (u32, &'a str, Vec<(&'a str, u64, u64)>);

fn usage_body(usage: &Usage) -> UsageBody<'_> {
    let rows = usage.rows.iter().map(|row| (row.resource.as_str(), row.used, row.quota)).collect();
    (usage.account, &usage.rule, rows)
}

fn explanation_body(explanation: &Explanation) -> describe::Properties<'_> {
    let rows: Vec<_> =
        explanation.rows.iter().map(|row| (row.resource.as_str(), row.used, row.quota)).collect();
    let lacks: Vec<_> =
        explanation.lacks.iter().map(|(what, without)| (what.as_str(), without.as_str())).collect();
    let mut body: describe::Properties<'_> = BTreeMap::from([
        ("allowed", Variant::from(explanation.refusal.is_none())),
        ("rule", Variant::from(explanation.rule.as_str())),
        ("rows", Variant::from(rows)),
        ("lacks", Variant::from(lacks)),
    ]);
    for (key, text) in [("application", &explanation.application), ("action", &explanation.action)] {
        if !text.is_empty() {
            body.insert(key, Variant::from(text.as_str()));
        }
    }
    if let Some(refusal) = &explanation.refusal {
        body.insert("error", Variant::from(code(refusal.code).error_name()));
        body.insert("message", Variant::from(refusal.message.as_str()));
        body.extend(details(refusal));
    }
    body
}

/// The properties of one interface of what the answer is about.
fn interface_of<'a>(answer: &'a Answer, interface: &str) -> Result<Option<describe::Properties<'a>>, Fault> {
    match answer {
        Answer::Grant(info) => Ok(describe::grant(info, interface)),
        Answer::BrokerInfo(info) => Ok(describe::broker(info, interface)),
        Answer::Usage(usage) => Ok(describe::account(usage, interface)),
        _ => Err(unexpected()),
    }
}

fn property_of<'a>(answer: &'a Answer, interface: &str, property: &str) -> Result<Variant<'a>, Fault> {
    let mut properties = interface_of(answer, interface)?.ok_or_else(|| no_interface(interface))?;
    // The contract has it, so it is there.
    properties.remove(property).ok_or_else(unexpected)
}

fn properties_of<'a>(answer: &'a Answer, interface: &str) -> Result<describe::Properties<'a>, Fault> {
    if !interface.is_empty() {
        return match interface_of(answer, interface)? {
            None if [IDS, MOUNTS].contains(&interface) => Err(no_interface(interface)),
            properties => Ok(properties.unwrap_or_default()),
        };
    }
    use cgrant_proto::names::{ACCOUNT, CGROUP, GRANT, LINKS, MANAGER};
    let mut all = describe::Properties::new();
    for name in [MANAGER, ACCOUNT, GRANT, CGROUP, LINKS, IDS] {
        all.extend(interface_of(answer, name)?.unwrap_or_default());
    }
    Ok(all)
}

fn no_interface(interface: &str) -> Fault {
    Fault::UnknownInterface(format!("no interface {interface}"))
}
