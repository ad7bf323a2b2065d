//! The policy in force: every rule there is, in order, and which of them is for a caller.

use std::collections::BTreeSet;

use crate::{
    diagnostic::FileError,
    ids::{HostGid, HostUid},
    limit::{LimitKey, LimitValue},
    rule::{AccessRules, Ceilings, NetworkRules, PolicyFile, Quotas, RawRules, Rule},
};

/// The text of the built-in policy.
pub const BUILT_IN: &str = include_str!("../../../policy/default.toml");

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
    /// Files of the kernel's.
    pub raw: RawRules,
    /// What links may be like.
    pub network: NetworkRules,
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
                let place = FileError::at(file.name, file.text, &rule.span(), "").line;
                let rule = rule.into_inner();
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
    pub fn ruling(&self, caller: &Caller) -> &Ruling {
        let found = self.rules.iter().find(|entry| entry.is_for(caller));
        &found.unwrap_or(&self.everybody).ruling
    }

    /// How much the caller's account may have.
    pub fn quotas(&self, caller: &Caller) -> &Quotas {
        &self.ruling(caller).quotas
    }

    /// Limits to set on the cgroup above all grants of the caller's account.
    pub fn account_ceilings(&self, caller: &Caller) -> Vec<(LimitKey, LimitValue)> {
        self.ruling(caller).account_ceilings.limits().to_vec()
    }

    /// The limits that a new grant of the caller's gets: those asked for, and every ceiling that they don't name.
    pub fn limits_of_new(
        &self,
        caller: &Caller,
        asked: &[(LimitKey, LimitValue)],
    ) -> Vec<(LimitKey, LimitValue)> {
        let unnamed = |(key, _): &&(LimitKey, LimitValue)| !asked.iter().any(|(named, _)| named == key);
        let ceilings = self.ruling(caller).grant_ceilings.limits();
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

impl Entry {
    fn new(matches: Rule, label: String, base: &Rule) -> Result<Self, FileError> {
        let ruling = Ruling {
            label,
            access: matches.access.over(&base.access).ok_or_else(incomplete)?,
            quotas: matches.quota.over(&base.quota).ok_or_else(incomplete)?,
            grant_ceilings: or_base(matches.grant_ceiling.as_ref(), base.grant_ceiling.as_ref()),
            account_ceilings: or_base(matches.account_ceiling.as_ref(), base.account_ceiling.as_ref()),
            raw: matches.raw.over(&base.raw).ok_or_else(incomplete)?,
            network: matches.network.over(&base.network).ok_or_else(incomplete)?,
        };
        Ok(Self { matches, ruling })
    }

    fn is_for(&self, caller: &Caller) -> bool {
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

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        Caller { uid: HostUid(uid), gid: HostGid(uid), groups: groups.iter().copied().map(HostGid).collect() }
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
        assert_eq!(root.access, person.access);
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
            ("[[rule]]\nname = \"x\"\nname = \"y\"\n", (3, 1), "duplicate"),
            ("[[rules]]\nname = \"x\"\n", (1, 3), "unknown field `rules`"),
        ] {
            let error = Policy::parse(&[Source { name: "p.toml", text }]).unwrap_err();
            assert_eq!((error.line, error.column), place, "{error}");
            assert!(error.message.contains(words), "{error}");
            assert!(error.to_string().starts_with(&format!("p.toml:{}:{}: ", place.0, place.1)));
        }
    }
}
