//! Explain: what a request would come to, without it.
//!
//! The parts of a request are checked and put before the decision by the same functions as when it is made; here they have no
//! effect, nothing is said in the log of decisions, and nothing waits for anybody.

use cgrant_policy::{
    Action, Application, Caller as Subject, CgroupPath, GrantName, GrantPath, HostGid, HostUid, NewGrant,
    NodeName, RawKey, Request, Verb, Verdict,
};
use cgrant_wire::{
    Act, Answer, CreateGrant, Explain, Explanation, GrantId, Holder, Inquiry, MapSource, RangeInfo, Refusal,
    RefusalCode,
};

use super::{account, check, create, inside, link, mount, nested, portion, query};
use crate::{
    asking,
    cgroup::CgroupError,
    connection::Caller,
    engine::{Engine, Outcome, refused},
    ids::IdError,
};

/// Whose request is explained.
struct About<'a> {
    engine: &'a Engine,
    caller: &'a Caller,
    subject: Subject,
    /// Is it the caller's own? Then where its process is counts too.
    is_own: bool,
    /// What policy has said so far.
    said: Said,
}

#[derive(Default)]
struct Said {
    rule: String,
    action: Option<Action>,
}

/// Says what a request would come to.
///
/// An attacker wants to learn of other accounts' grants, usage and rules, or to have the broker work for nothing. Who is not root is
/// told what its own request would be refused with, nothing else; what is looked at is bounded by the message, and each question
/// counts as a request.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`] if it is about another account and the caller is not root; a malformed question.
pub fn explain(engine: &Engine, caller: &Caller, ask: &Explain) -> Outcome {
    let own = caller.subject();
    let is_own = ask.account.is_none() && ask.groups.is_empty() && ask.application.is_empty();
    let subject = if is_own { own } else { other(engine, caller, ask)? };
    let mut about = About { engine, caller, subject, is_own, said: Said::default() };
    let refusal = about.put(&ask.question).err();
    let ruling_label = engine.policy().ruling(&about.subject).label.clone();
    let policy = engine.policy();
    let quotas = policy.quotas(&about.subject);
    let rows = query::rows(engine, caller, &quotas, about.charged())?;
    let rule = refusal.as_ref().and_then(|refusal| refusal.rule.clone());
    Ok((
        Answer::Explained(Explanation {
            rule: rule.unwrap_or(if about.said.rule.is_empty() {
                ruling_label
            } else {
                about.said.rule.clone()
            }),
            application: about.subject.application.as_ref().map(ToString::to_string).unwrap_or_default(),
            action: about.said.action.map(Action::id).unwrap_or_default().to_owned(),
            rows,
            lacks: query::kernel_features(engine)
                .into_iter()
                .filter(|row| !row.1)
                .map(|row| (row.0, row.2))
                .collect(),
            refusal,
        }),
        Vec::new(),
    ))
}

/// Somebody else, as root describes them.
fn other(engine: &Engine, caller: &Caller, ask: &Explain) -> Result<Subject, Refusal> {
    let account = HostUid(ask.account.unwrap_or(caller.uid.0));
    if !caller.uid.is_root() {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            "only root may ask for other accounts and programs",
        )
        .rule(engine.policy().ruling(&caller.subject()).label.clone())
        .hint("leave account, groups and application out to ask for yourself"));
    }
    let application = Some(ask.application.as_str()).filter(|text| !text.is_empty()).map(|text| {
        Application::named(text).map_err(|expected| Refusal::new(RefusalCode::InvalidArgument, expected))
    });
    let mut groups = ask.groups.iter().copied().map(HostGid);
    Ok(Subject {
        uid: account,
        gid: groups.next().unwrap_or(HostGid(account.0)),
        groups: groups.collect(),
        application: application.transpose()?,
    })
}

impl About<'_> {
    /// Where a grant of this name would be made.
    fn path_of(&self, name: GrantName) -> GrantPath {
        if self.is_own { self.caller.path_of(name) } else { GrantPath::new(self.subject.uid, name) }
    }

    fn charged(&self) -> HostUid {
        if self.is_own { self.caller.charged() } else { self.subject.uid }
    }

    /// Puts one request before the decision.
    fn judge(&mut self, request: &Request<'_>) -> Result<(), Refusal> {
        let verdict = self.engine.verdict(&self.subject, self.charged(), request, &[]);
        match if self.is_own { asking::settled(self.caller, verdict) } else { verdict } {
            Verdict::Allow { rule } => self.said.rule = rule,
            Verdict::Ask { action, rule, otherwise } => {
                self.said.rule = rule;
                self.said.action = self.said.action.or(Some(action));
                if let Some(denial) = otherwise {
                    return Err(refused(*denial));
                }
            }
            Verdict::Deny(denial) => return Err(refused(denial)),
        }
        Ok(())
    }

    /// The grant's account, as far as the one who asks may know of it.
    fn owner(&self, id: GrantId) -> Result<HostUid, Refusal> {
        let grant = self.engine.grant_for(self.caller, id)?;
        // Root asks for somebody who may not know of it.
        if self.subject.uid != grant.account && !self.subject.uid.is_root() {
            return Err(Refusal::new(RefusalCode::NoSuchGrant, format!("there is no grant {id} of theirs")));
        }
        Ok(grant.account)
    }

    fn must_be_outside(&self, what: &str) -> Result<(), Refusal> {
        if self.is_own { inside::must_be_outside(self.engine, self.caller, what) } else { Ok(()) }
    }

    fn uses(&mut self, id: GrantId, verb: Verb) -> Result<HostUid, Refusal> {
        let owner = self.owner(id)?;
        self.judge(&Request::UseGrant { owner, verb })?;
        Ok(owner)
    }

    fn put(&mut self, question: &Inquiry) -> Result<(), Refusal> {
        nested::must_be_there(self.caller, question)?;
        match question {
            Inquiry::CreateGrant(request) => self.create(request),
            Inquiry::Use { grant, act, about } => self.act(*grant, *act, about.as_deref()),
            Inquiry::SetLimits { grant, limits } => self.set_limits(*grant, limits),
            Inquiry::GetValues { grant, keys } => self.get_values(*grant, keys),
            Inquiry::CreateCgroup { grant, path } => {
                let path = CgroupPath::new(path).map_err(|error| check::bad_name(&error))?;
                let owner = self.uses(*grant, Verb::Cgroup)?;
                self.judge(&Request::CreateCgroup { owner, depth: path.depth() })?;
                portion::must_have_room(self.engine, &query::active(self.engine, *grant)?.path, 1)?;
                match self.has_cgroup(*grant, &path)? {
                    true => Err(CgroupError::CgroupExists(path.to_string()).into()),
                    false => Ok(()),
                }
            }
            Inquiry::AddLink { grant, link } => {
                let owner = self.owner(*grant)?;
                self.must_be_outside("add a link")?;
                let existing = self.engine.grant_for(self.caller, *grant)?.live().record.links.clone();
                let requests = std::slice::from_ref(link);
                let whose = (owner, self.caller.nested.as_ref());
                let wishes =
                    link::wishes(self.engine, &self.subject, whose, requests, &existing, None, None)?;
                link::judged(&wishes)
                    .into_iter()
                    .try_for_each(|link| self.judge(&Request::AddLink { owner, link }))?;
                let terms = link::Terms::of(self.engine, &self.subject);
                link::foresee(self.engine, owner, *grant, &terms, &wishes)
            }
            Inquiry::PublishPorts { grant, name, ports } => {
                let owner = self.owner(*grant)?;
                self.must_be_outside("publish ports")?;
                let Some(name) = name else {
                    return self.judge(&Request::Publish { owner, ports: &link::wish::host_ports(ports) });
                };
                let (engine, grant) = (self.engine, self.engine.grant_for(self.caller, *grant)?);
                link::foresee_ports(engine, &grant, name, ports, |ports| {
                    self.judge(&Request::Publish { owner, ports })
                })
            }
            Inquiry::MapDirectory { grant, from } => self.map_directory(*grant, from),
            Inquiry::MakeDevice { grant, name } => {
                let node = NodeName::new(name)
                    .map_err(|error| Refusal::new(RefusalCode::InvalidArgument, error.to_string()))?;
                let owner = self.uses(*grant, Verb::Read)?;
                self.must_be_outside("have a device")?;
                let grant = query::active(self.engine, *grant)?;
                super::device::must_be_own(self.account(), &grant)?;
                super::device::must_have_ids(&grant)?;
                let by_group = match self.caller.nested {
                    Some(_) => {
                        super::device::foresee_inside(self.engine, &self.subject, &grant.path, &node)?;
                        true
                    }
                    None => {
                        let groups: Vec<u32> = self.subject.groups.iter().map(|gid| gid.0).collect();
                        super::device::has_by_group(&node, &groups)?
                    }
                };
                self.judge(&Request::UseDevice { owner, node: &node, by_group })
            }
            Inquiry::AllowDevice { grant, name } => {
                let node = NodeName::new(name)
                    .map_err(|error| Refusal::new(RefusalCode::InvalidArgument, error.to_string()))?;
                let owner = self.uses(*grant, Verb::Read)?;
                self.must_be_outside("have a device")?;
                super::device::must_be_own(self.account(), &*query::active(self.engine, *grant)?)?;
                let own: Vec<u32> = self.subject.groups.iter().map(|gid| gid.0).collect();
                let anyhow = super::device::has_anyhow(&node, self.subject.gid.0, &own)?;
                self.judge(&Request::UseDevice { owner, node: &node, by_group: anyhow })
            }
            Inquiry::ForgetRange { name } => {
                let name = GrantName::new(name).map_err(|error| check::bad_name(&error))?;
                let owner = self.account();
                self.judge(&Request::UseGrant { owner, verb: Verb::ForgetRange })?;
                let ranges = self.ranges()?;
                match ranges.iter().any(|range| range.name == name.as_str()) {
                    true => Ok(()),
                    false => Err(IdError::NoSuchRange(name).into()),
                }
            }
            // Of a container's root, which sees all in there.
            Inquiry::ListGrants { all: true } if self.caller.nested.is_some() => Ok(()),
            Inquiry::ListGrants { all: true } => self.judge(&Request::ListAll),
            Inquiry::ListGrants { all: false }
            | Inquiry::ListAccounts { all: false }
            | Inquiry::ListRules { all: false } => Ok(()),
            Inquiry::ListAccounts { all: true } => self.judge(&Request::ListAccounts),
            Inquiry::ListRules { all: true } => self.judge(&Request::ListRules),
            Inquiry::ListDeparted => {
                let judged = self.judge(&Request::ListAccounts);
                // Nobody is asked about this one.
                self.said.action = None;
                judged
            }
            Inquiry::UsageOf { account } => {
                // From inside there is no other than the caller's own.
                let asked = account.filter(|_| self.caller.nested.is_none());
                let account = asked.map_or(self.subject.uid, HostUid);
                self.judge(&Request::UsageOf { account })
            }
            Inquiry::Connect => self.judge(&Request::Connect),
            Inquiry::Legacy => self.judge(&Request::Legacy),
        }
    }

    fn create(&mut self, request: &CreateGrant) -> Result<(), Refusal> {
        self.must_be_outside("make a grant")?;
        let name = create::name_of(request, GrantId(0))?;
        create::may_tidy(request)?;
        let settings = create::settings_of(self.engine, &self.subject, request)?;
        nested::must_share(self.caller, &settings)?;
        let pressure = check::pressure(&request.pressure)?;
        let label = create::label_of(request, &name)?;
        let account = self.subject.uid;
        nested::may_have_links(self.caller, request)?;
        let owner = (account, self.caller.nested.as_ref());
        let wishes = link::wishes(self.engine, &self.subject, owner, &request.links, &[], None, None)?;
        let ids = create::ids_of(self.engine, &self.subject, request)?;
        let path = self.path_of(name.clone());
        self.judge(&Request::CreateGrant(NewGrant {
            ids: ids.map(create::counted),
            limits: &settings.limits,
            asked: settings.asked(),
            setgroups: request.range.is_some_and(|range| range.setgroups),
            persistent: request.holder == Holder::Persistent,
            pressure: pressure.len(),
            links: &link::judged(&wishes),
            nesting: request.nesting,
            depth: path.depth(),
            user_blocks: create::blocks_with(
                self.engine,
                self.caller,
                create::More { label: label.as_ref(), ids },
            )?,
            tidies: request.tidies,
        }))?;
        for (key, value) in &settings.raw {
            self.judge(&Request::WriteRaw { owner: account, key, value: value.as_str() })?;
        }
        portion::of_new(self.engine, self.caller)?;
        account::must_be_had(self.engine, &self.subject, &settings)?;
        if !path.is_nested() {
            super::device::must_be_limited(self.engine, &self.subject, ids.is_some())?;
        }
        if self.engine.registry().at(&path).is_some() {
            return Err(create::exists(&name));
        }
        let terms = link::Terms::of(self.engine, &self.subject);
        link::foresee(self.engine, account, GrantId(0), &terms, &wishes)?;
        ids.map_or(Ok(()), |count| self.ids(label.as_ref(), count))
    }

    /// Are there ids for another grant?
    fn ids(&self, label: Option<&GrantName>, count: u32) -> Result<(), Refusal> {
        if let Some(inside) = &self.caller.nested {
            let (around, live) = create::ids_inside(self.engine, inside, GrantId(0));
            return Ok(self.engine.ids.foresee_inner(around, label, count, &live)?);
        }
        let policy = self.engine.policy();
        let ruling = policy.ruling(&self.subject);
        let found = self.engine.ids.foresee(self.subject.uid, label, count, ruling.quotas.ids);
        found.map_err(|error| Refusal::from(error).rule(ruling.label.clone()))
    }

    fn set_limits(&mut self, grant: GrantId, limits: &[(String, String)]) -> Result<(), Refusal> {
        let settings = check::settings(limits)?;
        nested::must_share(self.caller, &settings)?;
        self.must_be_outside("set limits")?;
        let owner = self.owner(grant)?;
        self.judge(&Request::SetLimits { owner, limits: &settings.limits })?;
        for (key, value) in &settings.raw {
            self.judge(&Request::WriteRaw { owner, key, value: value.as_str() })?;
        }
        Ok(settings.limits.iter().try_for_each(|(key, _)| self.engine.tree.can_limit(*key))?)
    }

    fn get_values(&mut self, grant: GrantId, keys: &[String]) -> Result<(), Refusal> {
        let owner = self.uses(grant, Verb::Read)?;
        let grant = query::active(self.engine, grant)?;
        // To look changes nothing: what the kernel refuses shows here, too.
        let engine = self.engine;
        let may_read = |key: &RawKey| self.judge(&Request::ReadRaw { owner, key });
        query::values(engine, &grant, keys, may_read).map(drop)
    }

    fn map_directory(&mut self, grant: GrantId, from: &MapSource) -> Result<(), Refusal> {
        self.uses(grant, Verb::MapDirectory)?;
        self.must_be_outside("map a directory")?;
        let grant = query::active(self.engine, grant)?;
        let own_ids = || match self.is_own {
            true => mount::own_ids(self.caller),
            // Whose process that will be is not known.
            false => mount::must_not_be_root(self.subject.uid).map(|()| (self.subject.uid, self.subject.gid)),
        };
        mount::shifts(self.engine, self.subject.uid, &grant, from, own_ids).map(drop)
    }

    /// Whose it is that is made or given.
    fn account(&self) -> HostUid {
        if self.is_own { self.caller.account() } else { self.subject.uid }
    }

    fn ranges(&self) -> Result<Vec<RangeInfo>, Refusal> {
        Ok(match &self.caller.nested {
            Some(inside) => self.engine.ids.list_inner(inside.range, inside.user, |_| None)?,
            None => self.engine.ids.list(self.subject.uid)?,
        })
    }

    fn has_cgroup(&self, grant: GrantId, path: &CgroupPath) -> Result<bool, Refusal> {
        let grant = query::active(self.engine, grant)?;
        Ok(self.engine.tree.has_cgroup(&grant.path, path)?)
    }

    fn act(&mut self, id: GrantId, act: Act, about: Option<&str>) -> Result<(), Refusal> {
        let path = |about: &str| CgroupPath::new(about).map_err(|error| check::bad_name(&error));
        let removed = about.filter(|_| act == Act::RemoveCgroup).map(path).transpose()?;
        let (verb, what) = match act {
            Act::Read => (Verb::Read, ""),
            Act::Attach => (Verb::Attach, "attach processes"),
            Act::Adopt => (Verb::Adopt, "adopt a grant"),
            Act::Persist => (Verb::Persist, "adopt a grant"),
            Act::Freeze => (Verb::Freeze, "freeze or thaw"),
            Act::Thaw => (Verb::Thaw, "freeze or thaw"),
            Act::Kill => (Verb::Kill, "kill a grant"),
            Act::RemoveCgroup | Act::OpenCgroup => (Verb::Cgroup, ""),
            Act::Release => (Verb::Release, "release a grant"),
            Act::RemoveLink => (Verb::RemoveLink, "remove a link"),
            Act::Unpublish => (Verb::Unpublish, "take published ports back"),
        };
        self.uses(id, verb)?;
        if !what.is_empty() {
            self.must_be_outside(what)?;
        }
        let grant = query::active(self.engine, id)?;
        if let Some(path) = removed {
            return match self.has_cgroup(id, &path)? {
                true => Ok(()),
                false => Err(CgroupError::NoSuchCgroup(path.to_string()).into()),
            };
        }
        match (act, about) {
            (Act::OpenCgroup, Some(about)) if !about.is_empty() => {
                Ok(self.engine.tree.open_cgroup(&grant.path, &path(about)?).map(drop)?)
            }
            (Act::RemoveLink | Act::Unpublish, Some(name)) => link::must_have(&grant, name),
            _ => Ok(()),
        }
    }
}
