//! The policy in force: every rule there is, in order, and which of them is for a caller.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use crate::{
    application::{Application, ApplicationPattern, Maker},
    controller::Controllers,
    diagnostic::FileError,
    ids::{HostGid, HostUid},
    limit::{LimitKey, LimitValue},
    rule::{
        AccessRules, Ceilings, Door, Ids, LifetimeRules, NetworkRules, PolicyFile, Quotas, RawRules, Rule,
    },
};

/// The text of the built-in policy.
pub const BUILT_IN: &str = include_str!("../../../policy/default.toml");

/// How many ids a grant has if nobody says.
pub const DEFAULT_IDS: u32 = 65_536;

/// What the built-in policy is called in place of a file.
const BUILT_IN_NAME: &str = "built-in";

/// Who calls, as the kernel said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The caller's uid, which is also the account that is charged.
    pub uid: HostUid,
    /// Its primary gid.
    pub gid: HostGid,
    /// Its supplementary groups.
    pub groups: Vec<HostGid>,
    /// The application that its process is of, by the kernel's word on its cgroup.
    pub application: Option<Application>,
}

impl Caller {
    /// An account of which no more is known than its uid: its groups are told by its connections only.
    pub fn by_uid(uid: HostUid) -> Self {
        Self { uid, gid: HostGid(uid.0), groups: Vec::new(), application: None }
    }
}

/// A policy file: its name, and what is in it.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The name that answers and logs show.
    pub name: &'a str,
    /// The text.
    pub text: &'a str,
}

/// The rules in force, complete: what a rule in a file did not say is filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    rules: Vec<Entry>,
    everybody: Entry,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    matches: Rule,
    ruling: Ruling,
}

/// What a rule says, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruling {
    /// `FILE:LINE NAME`, or `built-in NAME`.
    pub label: String,
    /// What is said to each kind of request.
    pub access: AccessRules,
    /// How much an account may have.
    pub quotas: Quotas,
    /// Limits that no grant may be above.
    pub grant_ceilings: Ceilings,
    /// Limits on all grants of the account together.
    pub account_ceilings: Ceilings,
    /// Files of the kernel's. Shared, as they are many and the rest of a rule is often another one.
    pub raw: Arc<RawRules>,
    /// What links may be like.
    pub network: NetworkRules,
    /// What else ends grants than their holders.
    pub lifetime: LifetimeRules,
}

impl Policy {
    /// The built-in policy below the rules of these files, which are taken in the order of their names.
    ///
    /// # Errors
    /// The first mistake in any file, with its place. Nothing of any file is used then.
    pub fn parse(files: &[Source<'_>]) -> Result<Self, FileError> {
        let built_in = Source { name: BUILT_IN_NAME, text: BUILT_IN };
        let defaults = PolicyFile::parse(built_in.name, built_in.text)?;
        let Some(base) = defaults.rule.last().map(|rule| rule.get_ref().clone()) else {
            return Err(incomplete());
        };
        let mut sorted = files.to_vec();
        sorted.sort_by_key(|file| file.name);
        let mut rules = Vec::new();
        for file in sorted {
            for rule in PolicyFile::parse(file.name, file.text)?.rule {
                let span = rule.span();
                let place = FileError::at(file.name, file.text, &span, "").line;
                let rule = rule.into_inner();
                if rule.applications.is_some() && rule.says_of_the_account() {
                    return Err(FileError::at(
                        file.name,
                        file.text,
                        &(span.start..span.start),
                        "account-ceiling, quota.cgroups and quota.cgroup-depth bound all of an account together; a rule with `applications` can't have them",
                    ));
                }
                let label = format!("{}:{place} {}", file.name, rule.name.0);
                rules.push(Entry::new(rule, label, &base)?);
            }
        }
        for rule in defaults.rule {
            let rule = rule.into_inner();
            let label = format!("{BUILT_IN_NAME} {}", rule.name.0);
            rules.push(Entry::new(rule, label, &base)?);
        }
        let everybody = rules.pop().ok_or_else(incomplete)?;
        Ok(Self { rules, everybody })
    }

    /// The policy without any files.
    ///
    /// # Errors
    /// None that a released program could have: its own text is at fault.
    pub fn built_in() -> Result<Self, FileError> {
        Self::parse(&[])
    }

    /// The names of groups that rules have. Each must be looked up before the policy is used.
    pub fn group_names(&self) -> BTreeSet<&str> {
        self.rules
            .iter()
            .flat_map(|entry| entry.matches.groups.iter().flatten())
            .map(|name| &*name.0)
            .collect()
    }

    /// The policy with its groups' names looked up. A group that does not exist has no members.
    #[must_use]
    pub fn with_groups(mut self, lookup: impl Fn(&str) -> Option<HostGid>) -> Self {
        for entry in &mut self.rules {
            let names = entry.matches.groups.iter().flatten();
            entry.matches.resolved = names.filter_map(|name| lookup(&name.0)).collect();
        }
        self
    }

    /// The rule for this caller: the first that is for it.
    ///
    /// A rule for an application says nothing about what bounds all of the account together; that is as the account's own rule
    /// says ([`account_ruling`](Self::account_ruling)). Where the account itself could have made the application's name,
    /// every number is the lower one of both rules, and [`judge`](crate::judge()) asks the account's own rule too.
    pub fn ruling(&self, caller: &Caller) -> Cow<'_, Ruling> {
        let found = self.entry(caller);
        if found.matches.applications.is_none() {
            return Cow::Borrowed(&found.ruling);
        }
        let account = self.account_ruling(caller);
        let mut ruling = found.ruling.clone();
        ruling.quotas = found.quotas_within(account, caller);
        ruling.account_ceilings = account.account_ceilings.clone();
        if found.is_doubted(caller) {
            ruling.lower_to(account);
        }
        Cow::Owned(ruling)
    }

    /// The first rule that is for the caller.
    fn entry(&self, caller: &Caller) -> &Entry {
        self.rules.iter().find(|entry| entry.is_for(caller)).unwrap_or(&self.everybody)
    }

    /// The rule for the caller's account, whatever application it is.
    pub fn account_ruling(&self, caller: &Caller) -> &Ruling {
        let is_for = |entry: &&Entry| entry.matches.applications.is_none() && entry.is_for(caller);
        &self.rules.iter().find(is_for).unwrap_or(&self.everybody).ruling
    }

    /// The account's own rule, if the caller's is one for an application whose name the account itself could have made. What
    /// that gives, this one has to give too: nobody has more than the account by a name of its own making.
    pub fn doubted(&self, caller: &Caller) -> Option<&Ruling> {
        self.entry(caller).is_doubted(caller).then(|| self.account_ruling(caller))
    }

    /// Does any rule ask which application a caller is?
    pub fn tells_applications_apart(&self) -> bool {
        self.rules.iter().any(|entry| entry.matches.applications.is_some())
    }

    /// How much the caller may have, as [`ruling`](Self::ruling) says it. Asked for each request, so nothing else is looked at.
    pub fn quotas(&self, caller: &Caller) -> Cow<'_, Quotas> {
        let found = self.entry(caller);
        match found.matches.applications {
            None => Cow::Borrowed(&found.ruling.quotas),
            Some(_) => Cow::Owned(found.quotas_within(self.account_ruling(caller), caller)),
        }
    }

    /// Limits to set on the cgroup above all grants of the caller's account.
    pub fn account_ceilings(&self, caller: &Caller) -> Vec<(LimitKey, LimitValue)> {
        self.account_ruling(caller).account_ceilings.limits().to_vec()
    }

    /// The rules that are for the caller: what holds for it, and if that is a rule for an application what its account's own
    /// rule says.
    pub fn rules_for(&self, caller: &Caller) -> Vec<Cow<'_, Ruling>> {
        let (own, account) = (self.ruling(caller), self.account_ruling(caller));
        let is_one = own.label == account.label;
        std::iter::once(own).chain((!is_one).then_some(Cow::Borrowed(account))).collect()
    }

    /// What a rule says otherwise than the last of the built-in ones, which has what no other says: key and value, as they would
    /// stand in a file. Of that one itself, all.
    pub fn differences(&self, ruling: &Ruling) -> Vec<(String, String)> {
        let (base, mut rows) = (&self.everybody.ruling, ruling.settings());
        if ruling.label != base.label {
            let known = base.settings();
            rows.retain(|row| !known.contains(row));
        }
        rows
    }

    /// How many ids a new grant of the caller's has for which so many are asked; 0 for as many as the range of a name has, or
    /// [`DEFAULT_IDS`]. Who does not say how many gets no more than policy lets a grant have.
    pub fn ids_of_new(&self, caller: &Caller, asked: u32) -> u32 {
        let most = u32::try_from(self.quotas(caller).ids_per_grant).unwrap_or(u32::MAX);
        if asked == 0 && most < DEFAULT_IDS { most } else { asked }
    }

    /// Every rule, in the order in which they are tried: what it says, and whom it is for in the words of its file.
    pub fn rules(&self) -> impl Iterator<Item = (&Ruling, String)> {
        self.rules.iter().chain([&self.everybody]).map(|entry| (&entry.ruling, entry.whom()))
    }

    /// What its ceilings say that a host can't keep, a sentence each, told of the rule that says it; `lacks` is why the host can't have
    /// a limit. Who such a rule is for gets no grants: a ceiling is kept or nothing is made below it.
    pub fn unkept(&self, lacks: impl Fn(LimitKey) -> Option<String>) -> Vec<String> {
        let entries = self.rules.iter().chain([&self.everybody]);
        let of = |entry: &Entry, table: &str, ceilings: &Option<Ceilings>| {
            let limits = ceilings.iter().flat_map(Ceilings::limits);
            let lacking = limits.filter(|(key, value)| !value.is_unlimited(*key));
            let said = lacking.filter_map(|(key, _)| Some((key, lacks(*key)?)));
            let sentence = |(key, why): (&LimitKey, String)| {
                format!(
                    "{}: {key} of {table} can't be kept on this host, so whom it is for gets no grants: {why}",
                    entry.ruling.label
                )
            };
            said.map(sentence).collect::<Vec<_>>()
        };
        entries
            .flat_map(|entry| {
                let grant = of(entry, "grant-ceiling", &entry.matches.grant_ceiling);
                grant.into_iter().chain(of(entry, "account-ceiling", &entry.matches.account_ceiling))
            })
            .collect()
    }

    /// The controllers that a new grant of the caller's gets.
    pub fn controllers_of_new(&self, caller: &Caller) -> Controllers {
        let own = &self.ruling(caller).access.controllers;
        self.doubted(caller).map_or_else(|| own.clone(), |account| own.common(&account.access.controllers))
    }

    /// The limits that a new grant of the caller's gets: those asked for, and every ceiling that they don't name.
    pub fn limits_of_new(
        &self,
        caller: &Caller,
        asked: &[(LimitKey, LimitValue)],
    ) -> Vec<(LimitKey, LimitValue)> {
        let unnamed = |(key, _): &&(LimitKey, LimitValue)| !asked.iter().any(|(named, _)| named == key);
        let ruling = self.ruling(caller);
        let both = self.doubted(caller).map(|account| ruling.grant_ceilings.lower(&account.grant_ceilings));
        let ceilings = both.as_ref().unwrap_or(&ruling.grant_ceilings).limits();
        asked.iter().chain(ceilings.iter().filter(unnamed)).cloned().collect()
    }
}

fn incomplete() -> FileError {
    FileError::at(
        BUILT_IN_NAME,
        BUILT_IN,
        &(0..0),
        "the last rule of the built-in policy does not say everything",
    )
}

impl Ruling {
    /// All that it says: key and value, as they would stand in a file.
    pub fn settings(&self) -> Vec<(String, String)> {
        let part = |name: &str, rows: Vec<(String, String)>| {
            let name = name.to_owned();
            rows.into_iter().map(move |(key, value)| (format!("{name}.{key}"), value))
        };
        part("access", self.access.rows())
            .chain(part("quota", self.quotas.rows()))
            .chain(part("grant-ceiling", self.grant_ceilings.rows()))
            .chain(part("account-ceiling", self.account_ceilings.rows()))
            .chain(part("network", self.network.rows()))
            .chain(part("lifetime", self.lifetime.rows()))
            .chain(part("raw", self.raw.rows()))
            .collect()
    }
}

impl Rule {
    /// Does it bound what an account has together?
    fn says_of_the_account(&self) -> bool {
        self.account_ceiling.is_some() || self.quota.bounds_the_account()
    }
}

impl Ruling {
    /// No number of links above the other's, no yes where the other says no; quotas are told apart before. Lists stay: what one of theirs
    /// names, the other has to be asked about too.
    fn lower_to(&mut self, other: &Self) {
        let rate =
            |own: u64, other: u64| if own == 0 || other == 0 { own.max(other) } else { own.min(other) };
        self.network.max_upload = rate(self.network.max_upload, other.network.max_upload);
        self.network.max_download = rate(self.network.max_download, other.network.max_download);
        self.network.open &= other.network.open;
        self.lifetime = self.lifetime.shorter(&other.lifetime);
        self.access.limit_devices = self.access.limit_devices.max(other.access.limit_devices);
        if other.access.unlimited_devices == Door::Deny {
            self.access.unlimited_devices = Door::Deny;
        }
    }
}

impl Entry {
    fn new(matches: Rule, label: String, base: &Rule) -> Result<Self, FileError> {
        let ruling = Ruling {
            label,
            access: matches.access.over(&base.access).ok_or_else(incomplete)?,
            quotas: matches.quota.over(&base.quota).ok_or_else(incomplete)?,
            grant_ceilings: or_base(matches.grant_ceiling.as_ref(), base.grant_ceiling.as_ref()),
            account_ceilings: or_base(matches.account_ceiling.as_ref(), base.account_ceiling.as_ref()),
            raw: Arc::new(matches.raw.over(&base.raw).ok_or_else(incomplete)?),
            network: matches.network.over(&base.network).ok_or_else(incomplete)?,
            lifetime: matches.lifetime.over(&base.lifetime).ok_or_else(incomplete)?,
        };
        Ok(Self { matches, ruling })
    }

    /// Is it a rule for an application, by a name that the caller's account could have made?
    fn is_doubted(&self, caller: &Caller) -> bool {
        let maker = caller.application.as_ref().map(Application::maker);
        self.matches.applications.is_some() && maker == Some(Maker::Account)
    }

    /// The quotas of a rule for an application, beside those of the account's own rule.
    fn quotas_within(&self, account: &Ruling, caller: &Caller) -> Quotas {
        let own = &self.ruling.quotas;
        let quotas = Quotas {
            cgroups: account.quotas.cgroups,
            cgroup_depth: account.quotas.cgroup_depth,
            ..own.clone()
        };
        if self.is_doubted(caller) { quotas.least(&account.quotas) } else { quotas }
    }

    fn is_for(&self, caller: &Caller) -> bool {
        let is_one_of = |patterns: &Vec<ApplicationPattern>| {
            caller
                .application
                .as_ref()
                .is_some_and(|application| patterns.iter().any(|pattern| pattern.names(application)))
        };
        self.matches.applications.as_ref().is_none_or(is_one_of) && self.is_for_account(caller)
    }

    /// Whom the rule is for, as its file says it.
    fn whom(&self) -> String {
        let rule = &self.matches;
        let listed = |key: &str, values: Option<Vec<String>>| {
            values.map(|values| {
                format!("{key} {}", if values.is_empty() { "none".to_owned() } else { values.join(", ") })
            })
        };
        let ids =
            |ids: &Option<Vec<Ids>>| ids.as_ref().map(|ids| ids.iter().map(ToString::to_string).collect());
        let texts = [
            listed("uids", ids(&rule.uids)),
            listed("gids", ids(&rule.gids)),
            listed(
                "groups",
                rule.groups.as_ref().map(|names| names.iter().map(|name| name.0.clone()).collect()),
            ),
        ];
        let mut words: Vec<String> = texts.into_iter().flatten().collect();
        if words.is_empty() {
            words.push("everybody but root".to_owned());
        }
        let accounts = words.join("; ");
        let applications = rule.applications.as_ref();
        listed("of applications", applications.map(|all| all.iter().map(ToString::to_string).collect()))
            .map_or(accounts.clone(), |applications| format!("{accounts}; only {applications}"))
    }

    fn is_for_account(&self, caller: &Caller) -> bool {
        let rule = &self.matches;
        if rule.uids.is_none() && rule.gids.is_none() && rule.groups.is_none() {
            return !caller.uid.is_root();
        }
        let mut gids = std::iter::once(&caller.gid).chain(&caller.groups);
        rule.uids.iter().flatten().any(|ids| ids.0.contains(caller.uid.0))
            || gids.any(|gid| {
                rule.resolved.contains(gid) || rule.gids.iter().flatten().any(|ids| ids.0.contains(gid.0))
            })
    }
}

fn or_base(own: Option<&Ceilings>, base: Option<&Ceilings>) -> Ceilings {
    own.or(base).cloned().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::rule::{Departed, Exception, Logout};

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        Caller {
            uid: HostUid(uid),
            gid: HostGid(uid),
            groups: groups.iter().copied().map(HostGid).collect(),
            application: None,
        }
    }

    fn policy(text: &str) -> Policy {
        Policy::parse(&[Source { name: "a.toml", text }]).unwrap()
    }

    #[test]
    fn the_built_in_policy_is_complete_and_useful() {
        let policy = Policy::built_in().unwrap();
        let person = policy.ruling(&caller(1000, &[]));
        assert_eq!(person.label, "built-in everybody");
        assert!(person.quotas.ids >= 65536 && person.quotas.grants > 0 && person.quotas.connections > 0);
        let root = policy.ruling(&caller(0, &[]));
        assert_eq!(root.label, "built-in root");
        assert!(root.quotas.grants > person.quotas.grants);
        assert_eq!(root.access.grant, person.access.grant);
        assert_eq!((root.access.over_quota, person.access.over_quota), (Exception::Deny, Exception::Ask));
    }

    #[test]
    fn the_first_rule_that_is_for_the_caller_decides() {
        let policy = policy(
            r#"
[[rule]]
name = "two"
uids = [1000, "2000-2999"]
quota.grants = 2

[[rule]]
name = "by gid"
gids = [27]
quota.grants = 3

[[rule]]
name = "by group"
groups = ["staff", "nowhere"]
quota.grants = 4

[[rule]]
name = "nobody"
uids = []
quota.grants = 5
"#,
        )
        .with_groups(|name| (name == "staff").then_some(HostGid(50)));
        assert_eq!(policy.group_names(), ["nowhere", "staff"].into());
        for (caller, label, grants) in [
            (caller(1000, &[27]), "a.toml:2 two", 2),
            (caller(2999, &[]), "a.toml:2 two", 2),
            (caller(3000, &[27]), "a.toml:7 by gid", 3),
            (caller(27, &[]), "a.toml:7 by gid", 3),
            (caller(3000, &[50]), "a.toml:12 by group", 4),
            (caller(3000, &[51]), "built-in everybody", 64),
        ] {
            let ruling = policy.ruling(&caller);
            assert_eq!((ruling.label.as_str(), ruling.quotas.grants), (label, grants));
            assert_eq!(ruling.quotas.cgroups, 4096);
        }
    }

    fn of(uid: u32, path: &str) -> Caller {
        let application = Application::at(path, HostUid(uid)).map(|place| place.application);
        Caller { application, ..caller(uid, &[]) }
    }

    const APPLICATIONS: &str = r#"
[[rule]]
name = "ci"
uids = [1000]
applications = ["unit:ci@*.service", "flatpak:org.example.Ci"]
quota = { grants = 500, ids-per-grant = 7 }
network = { max-upload = "1G" }
lifetime = { logout = "keep", departed = "end" }
grant-ceiling = { "memory.max" = "8G", "pids.max" = 10 }

[[rule]]
name = "account"
quota = { grants = 5, cgroups = 100 }
network = { max-upload = "1M", max-download = "1M" }
lifetime = { logout = "linger", departed = "keep" }
grant-ceiling = { "memory.max" = "1G", "cpu.max" = "100%" }
account-ceiling = { "memory.max" = "2G" }
"#;

    #[test]
    fn an_application_that_root_made_has_its_own_rule() {
        let policy = policy(APPLICATIONS);
        let ci = of(1000, "/system.slice/ci@3.service");
        let ruling = policy.ruling(&ci);
        assert_eq!(
            (ruling.label.as_str(), ruling.quotas.grants, ruling.network.max_upload),
            ("a.toml:2 ci", 500, 1_000_000_000)
        );
        assert_eq!(ruling.lifetime.logout, Logout::Keep);
        // What bounds all of the account is the account's.
        assert_eq!(ruling.quotas.cgroups, 100);
        assert_eq!(policy.account_ceilings(&ci), [(LimitKey::MemoryMax, LimitValue::Bytes(Some(2 << 30)))]);
        assert_eq!(policy.doubted(&ci), None);
        for other in
            [caller(1000, &[]), of(1000, "/system.slice/x.service"), of(1001, "/system.slice/ci@3.service")]
        {
            assert_eq!(policy.ruling(&other).label, "a.toml:11 account", "{other:?}");
        }
    }

    #[test]
    fn an_application_that_the_account_could_have_made_gives_nothing_more() {
        let policy = policy(APPLICATIONS);
        let unit =
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.example.Ci-1.scope";
        let ci = of(1000, unit);
        let ruling = policy.ruling(&ci);
        assert_eq!(
            (ruling.label.as_str(), ruling.quotas.grants, ruling.quotas.ids_per_grant),
            ("a.toml:2 ci", 5, 7)
        );
        assert_eq!((ruling.network.max_upload, ruling.network.max_download), (1_000_000, 1_000_000));
        // Its grants end wherever those of either would.
        assert_eq!((ruling.lifetime.logout, ruling.lifetime.departed), (Logout::Linger, Departed::End));
        assert_eq!(policy.doubted(&ci).unwrap().label, "a.toml:11 account");
        let given = policy.limits_of_new(&ci, &[]);
        for (key, text) in
            [(LimitKey::MemoryMax, "1G"), (LimitKey::PidsMax, "10"), (LimitKey::CpuMax, "100%")]
        {
            assert!(given.contains(&(key, LimitValue::parse(&key, text).unwrap())), "{key} {given:?}");
        }
    }

    #[test]
    fn who_asks_sees_what_is_for_it() {
        let policy = policy(APPLICATIONS);
        let labels = |caller: &Caller| {
            policy.rules_for(caller).iter().map(|ruling| ruling.label.clone()).collect::<Vec<_>>()
        };
        assert_eq!(labels(&of(1000, "/system.slice/ci@3.service")), ["a.toml:2 ci", "a.toml:11 account"]);
        assert_eq!(labels(&caller(1000, &[])), ["a.toml:11 account"]);
        assert_eq!(labels(&caller(0, &[])), ["built-in root"]);
        let account = policy.account_ruling(&caller(1000, &[]));
        let rows = policy.differences(account);
        let row = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            rows,
            [
                row("quota.grants", "5"),
                row("quota.cgroups", "100"),
                row("grant-ceiling.\"memory.max\"", "\"1073741824\""),
                row("grant-ceiling.\"cpu.max\"", "\"100000 100000\""),
                row("account-ceiling.\"memory.max\"", "\"2147483648\""),
                row("network.max-upload", "1000000"),
                row("network.max-download", "1000000"),
                row("lifetime.logout", "\"linger\""),
                row("lifetime.departed", "\"keep\""),
            ]
        );
        let last = policy.rules().last().unwrap().0;
        assert_eq!(policy.differences(last), last.settings());
        assert_eq!(
            (
                policy.ids_of_new(&of(1000, "/system.slice/ci@3.service"), 0),
                policy.ids_of_new(&caller(1, &[]), 0)
            ),
            (7, 0)
        );
    }

    #[test]
    fn quotas_are_those_of_the_ruling() {
        let policy = policy(APPLICATIONS);
        let of_manager =
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.example.Ci-1.scope";
        for caller in [
            caller(0, &[]),
            caller(1000, &[]),
            caller(1001, &[]),
            of(1000, "/system.slice/ci@3.service"),
            of(1000, of_manager),
        ] {
            assert_eq!(*policy.quotas(&caller), policy.ruling(&caller).quotas, "{caller:?}");
        }
    }

    #[test]
    fn controllers_are_those_that_the_account_has_too() {
        let policy = policy(
            r#"
[[rule]]
name = "app"
applications = ["unit:ci.service", "snap:x"]
access.controllers = ["cpu", "memory"]

[[rule]]
name = "account"
access.controllers = ["cpu", "pids"]
"#,
        );
        let own = |path: &str| format!("/user.slice/user-1000.slice/user@1000.service/app.slice/{path}");
        let of_new = |caller: &Caller| policy.controllers_of_new(caller).to_string();
        assert_eq!(of_new(&caller(1000, &[])), r#"["cpu", "pids"]"#);
        assert_eq!(of_new(&of(1000, "/system.slice/ci.service")), r#"["cpu", "memory"]"#);
        assert_eq!(of_new(&of(1000, &own("snap.x.x-1.scope"))), r#"["cpu"]"#);
        assert_eq!(of_new(&caller(0, &[])), "\"all\"");
    }

    #[test]
    fn every_rule_is_shown_as_it_stands() {
        let policy = policy(APPLICATIONS);
        let rules: Vec<_> = policy.rules().map(|(ruling, whom)| (ruling.label.as_str(), whom)).collect();
        assert_eq!(
            rules[0],
            (
                "a.toml:2 ci",
                "uids 1000; only of applications unit:ci@*.service, flatpak:org.example.Ci".into()
            )
        );
        assert_eq!(rules[1].1, "everybody but root");
        assert_eq!(rules.last().unwrap().0, "built-in everybody");
        // What is shown can be put into a file again, and means the same.
        let built_in = Policy::built_in().unwrap();
        for (ruling, _) in built_in.rules().chain(policy.rules().skip(1)) {
            let text: String =
                ruling.settings().iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            let again =
                Policy::parse(&[Source { name: "x", text: &format!("[[rule]]\nname = \"x\"\n{text}") }])
                    .unwrap();
            let mut shown = again.rules().next().unwrap().0.clone();
            shown.label.clone_from(&ruling.label);
            assert_eq!(shown, *ruling);
        }
    }

    #[test]
    fn a_rule_for_everybody_is_not_for_root() {
        let policy = policy("[[rule]]\nname = \"all\"\naccess.grant = \"deny\"\n");
        assert_eq!(policy.ruling(&caller(1, &[])).label, "a.toml:1 all");
        assert_eq!(policy.ruling(&caller(0, &[])).label, "built-in root");
    }

    #[test]
    fn files_are_taken_in_the_order_of_their_names() {
        let rule = |name: &str| format!("[[rule]]\nname = \"{name}\"\n");
        let (one, two) = (rule("one"), rule("two"));
        let files = [Source { name: "20.toml", text: &two }, Source { name: "10.toml", text: &one }];
        let policy = Policy::parse(&files).unwrap();
        assert_eq!(policy.ruling(&caller(5, &[])).label, "10.toml:1 one");
    }

    #[test]
    fn what_a_host_can_not_keep_is_told_of_the_rule_that_says_it() {
        let policy = policy(
            "[[rule]]\nname = \"disk\"\naccount-ceiling = { \"io.max\" = \"8:0 rbps=1M\", \"pids.max\" = 9 }\n\
             grant-ceiling = { \"memory.high\" = \"1G\" }\n\
             [[rule]]\nname = \"free\"\naccount-ceiling = { \"io.max\" = \"max\" }\n\
             [[rule]]\nname = \"silent\"\n",
        );
        assert!(policy.unkept(|_| None).is_empty());
        let told = policy.unkept(|key| key.lacks_on_v1().map(str::to_owned));
        assert_eq!(told.len(), 2, "{told:?}");
        for (told, parts) in told.iter().zip([
            ["disk", "memory.high of grant-ceiling", "only slows down"],
            ["disk", "io.max of account-ceiling", "cgroup_no_v1=blkio"],
        ]) {
            assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        }
    }

    #[test]
    fn ceilings_fill_in_what_was_not_asked() {
        let policy = policy(
            "[[rule]]\nname = \"c\"\ngrant-ceiling = { \"pids.max\" = 100, \"memory.max\" = \"1G\" }\naccount-ceiling = { \"memory.max\" = \"2G\" }\n",
        );
        let asked = [(LimitKey::MemoryMax, LimitValue::Bytes(Some(5)))];
        let pids = (LimitKey::PidsMax, LimitValue::Count(Some(100)));
        assert_eq!(policy.limits_of_new(&caller(1, &[]), &asked), [asked[0].clone(), pids]);
        let account = policy.account_ceilings(&caller(1, &[]));
        assert_eq!(account, [(LimitKey::MemoryMax, LimitValue::Bytes(Some(2 << 30)))]);
        assert!(policy.account_ceilings(&caller(0, &[])).is_empty());
    }

    #[test]
    fn a_mistake_refuses_everything_and_has_its_place() {
        for (text, place, words) in [
            ("[[rule]]\nname = \"x\"\nquota.grnts = 1\n", (3, 7), "unknown field `grnts`"),
            ("[[rule]]\nname = \"x\"\nquota.grants = -1\n", (3, 16), "from 0 to 65536"),
            ("[[rule]]\nname = \"x\"\nquota.cgroup-depth = 33\n", (3, 22), "from 0 to 32"),
            ("[[rule]]\nname = \"x\"\nquota.grants = \"many\"\n", (3, 16), "whole number"),
            ("[[rule]]\nname = \"x\"\naccess.connect = \"ask\"\n", (3, 18), "unknown variant `ask`"),
            ("[[rule]]\nname = \"x\"\nuids = [1, \"9-5\"]\n", (3, 12), "end can't be before"),
            ("[[rule]]\nname = \"x\"\nuids = [-1]\n", (3, 9), "an id such as 1000"),
            ("[[rule]]\nname = \"x\"\nuids = [4294967295]\n", (3, 9), "an id such as 1000"),
            ("[[rule]]\nname = \"x\"\ngroups = [\"27\"]\n", (3, 11), "`gids`"),
            ("[[rule]]\nname = \"\"\n", (2, 8), "1 to 64"),
            ("[[rule]]\nuids = [1]\n", (1, 1), "missing field `name`"),
            (
                "[[rule]]\nname = \"x\"\n[rule.grant-ceiling]\n\"memory.max\" = \"4GB\"\n",
                (4, 16),
                "1024-based",
            ),
            ("[[rule]]\nname = \"x\"\n[rule.grant-ceiling]\n\"memory.mx\" = \"4G\"\n", (4, 1), "is no limit"),
            (
                "[[rule]]\nname = \"x\"\nraw.write = [\"cpu.idle\", \"cgroup.procs\"]\n",
                (3, 26),
                "around its limits",
            ),
            ("[[rule]]\nname = \"x\"\nraw.write = [\"memory.max\"]\n", (3, 14), "is a limit"),
            ("[[rule]]\nname = \"x\"\nraw.read = [\"../x\"]\n", (3, 13), "neither a limit"),
            ("[[rule]]\nname = \"x\"\nnetwork.ports = [80, \"9-5\"]\n", (3, 22), "from 1 to 65535"),
            ("[[rule]]\nname = \"x\"\nnetwork.vlans = [4095]\n", (3, 18), "from 1 to 4094"),
            ("[[rule]]\nname = \"x\"\nnetwork.max-upload = \"7k\"\n", (3, 22), "bits a second"),
            ("[[rule]]\nname = \"x\"\nnetwork.bridges = [\"A\"]\n", (3, 20), "lower-case"),
            ("[[rule]]\nname = \"x\"\nnetwork.fixed-addresses = [\"10.0.0.1/8\"]\n", (3, 28), "begins at"),
            ("[[rule]]\nname = \"x\"\nlifetime.logout = \"stay\"\n", (3, 19), "unknown variant `stay`"),
            ("[[rule]]\nname = \"x\"\nlifetime.departed = \"linger\"\n", (3, 21), "unknown variant `linger`"),
            ("[[rule]]\nname = \"x\"\nname = \"y\"\n", (3, 1), "duplicate"),
            (
                "[[rule]]\nname = \"x\"\naccess.controllers = [\"cpu\", \"memroy\"]\n",
                (3, 30),
                "there are cpu, cpuset",
            ),
            ("[[rule]]\nname = \"x\"\naccess.controllers = [\"blkio\"]\n", (3, 23), "blkio is io"),
            ("[[rule]]\nname = \"x\"\naccess.controllers = \"none\"\n", (3, 22), "\"all\", or a list"),
            ("[[rule]]\nname = \"x\"\naccess.controllers = [7]\n", (3, 23), "the name of a controller"),
            ("[[rule]]\nname = \"x\"\napplications = [\"exe:/bin/sh\"]\n", (3, 17), "unit:NAME.service"),
            (
                "\n[[rule]]\nname = \"x\"\napplications = [\"snap:a\"]\nquota.cgroups = 9\n",
                (2, 1),
                "all of an account",
            ),
            (
                "[[rule]]\nname = \"x\"\napplications = [\"snap:a\"]\naccount-ceiling = { \"pids.max\" = 9 }\n",
                (1, 1),
                "all of an account",
            ),
            ("[[rules]]\nname = \"x\"\n", (1, 3), "unknown field `rules`"),
        ] {
            let error = Policy::parse(&[Source { name: "p.toml", text }]).unwrap_err();
            assert_eq!((error.line, error.column), place, "{error}");
            assert!(error.message.contains(words), "{error}");
            assert!(error.to_string().starts_with(&format!("p.toml:{}:{}: ", place.0, place.1)));
        }
    }
}
