//! What polkit's yes opens: which action could help a request that the rules refuse, and the rules as they are once it is
//! agreed to.

use std::sync::Arc;

use crate::{
    judge::{Action, Denial, DenialCode, NewLink, Request, Verb},
    most::Most,
    network::{BridgeName, Net},
    policy::Ruling,
    rule::{Access, Ceilings, Exception, Span, never_writable},
};

/// The action that somebody could agree to, for a request that is denied.
pub(crate) fn remedy(
    rules: &Ruling,
    request: &Request<'_>,
    denial: &Denial,
    consents: &[Action],
) -> Option<Action> {
    let access = &rules.access;
    let (said, action) = match (denial.code, request) {
        (DenialCode::QuotaExceeded, request) if has_quota(request) => {
            (access.over_quota, Action::ExceedQuota)
        }
        (DenialCode::NotVisible, request) if is_manageable(request) => (access.others, Action::ManageOthers),
        (DenialCode::NotAuthorized, Request::ListAll | Request::ListAccounts | Request::UsageOf { .. }) => {
            (access.others, Action::ManageOthers)
        }
        (DenialCode::NotAuthorized, Request::WriteRaw { key, .. })
            if !rules.raw.write.contains(*key) && !never_writable(key) =>
        {
            (access.unlisted_raw, Action::WriteRaw)
        }
        (DenialCode::NotAuthorized | DenialCode::NoSuchBridge, request) if is_about_links(request) => {
            (access.unlisted_network, Action::HostNetwork)
        }
        _ => return None,
    };
    (said == Exception::Ask && !consents.contains(&action)).then_some(action)
}

/// Does the request count against quotas that somebody may let an account exceed? Not those that keep the broker itself
/// usable: connections, and requests under way. Ids and addresses are the host's, of which there are so many and no more:
/// their records hold those quotas, and know of no consent.
fn has_quota(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::CreateGrant(_)
            | Request::CreateCgroup { .. }
            | Request::SetLimits { .. }
            | Request::AddLink { .. }
            | Request::Publish { .. }
            | Request::UseGrant { verb: Verb::Persist, .. }
    )
}

/// What an administrator may do for another account: look, limit and end. Nothing that moves processes, gives out
/// descriptors or uses up what is the account's; and nothing of root's.
pub(crate) fn is_manageable(request: &Request<'_>) -> bool {
    match request {
        Request::ListAll | Request::ListAccounts | Request::UsageOf { .. } => true,
        Request::UseGrant { owner, verb } => {
            !owner.is_root()
                && matches!(
                    verb,
                    Verb::Read
                        | Verb::Freeze
                        | Verb::Thaw
                        | Verb::Kill
                        | Verb::Release
                        | Verb::RemoveLink
                        | Verb::Unpublish
                )
        }
        Request::SetLimits { owner, .. } | Request::ReadRaw { owner, .. } => !owner.is_root(),
        _ => false,
    }
}

fn is_about_links(request: &Request<'_>) -> bool {
    match request {
        Request::CreateGrant(grant) => !grant.links.is_empty(),
        Request::AddLink { .. } | Request::Publish { .. } => true,
        _ => false,
    }
}

/// The rules once these actions are agreed to for the request. What policy denies without asking stays denied.
pub(crate) fn opened(rules: &Ruling, request: &Request<'_>, consents: &[Action]) -> Ruling {
    let mut opened = rules.clone();
    for action in consents {
        open(&mut opened, request, *action);
    }
    opened
}

fn open(rules: &mut Ruling, request: &Request<'_>, action: Action) {
    let access = &mut rules.access;
    match action {
        Action::CreateGrant => allow(&mut access.grant),
        // Each of these two holds the right to the grant that it is asked for with.
        Action::CreatePersistentGrant => {
            allow(&mut access.persistent);
            allow(&mut access.grant);
        }
        Action::AddLink => {
            allow(&mut access.link);
            allow(&mut access.grant);
        }
        Action::SetLimits => allow(&mut access.limits),
        Action::WriteRaw => {
            allow(&mut access.raw_write);
            if let Request::WriteRaw { key, .. } = request
                && access.unlisted_raw == Exception::Ask
                && !never_writable(key)
            {
                Arc::make_mut(&mut rules.raw).write.insert((*key).clone());
            }
        }
        Action::ExceedQuota if access.over_quota == Exception::Ask => {
            let quotas = &mut rules.quotas;
            for quota in [
                &mut quotas.grants,
                &mut quotas.persistent_grants,
                &mut quotas.cgroups,
                &mut quotas.ids_per_grant,
                &mut quotas.pressure_watches,
                &mut quotas.links,
                &mut quotas.published_ports,
            ] {
                *quota = u64::MAX;
            }
            (quotas.disk, quotas.disk_files) = (Most::UNLIMITED, Most::UNLIMITED);
            (rules.network.max_upload, rules.network.max_download) = (0, 0);
            rules.grant_ceilings = Ceilings::default();
        }
        Action::HostNetwork if access.unlisted_network == Exception::Ask => open_network(rules, request),
        // Others' grants are told from one's own where the request is looked at.
        Action::ExceedQuota | Action::HostNetwork | Action::ManageOthers => (),
    }
}

fn allow(said: &mut Access) {
    if *said == Access::Ask {
        *said = Access::Allow;
    }
}

fn open_network(rules: &mut Ruling, request: &Request<'_>) {
    let network = &mut rules.network;
    network.ports = vec![Span::ALL];
    network.port_addresses.clear();
    network.vlans = vec![Span::ALL];
    network.fixed_addresses = Net::everywhere();
    let links: &[NewLink<'_>] = match request {
        Request::CreateGrant(grant) => grant.links,
        Request::AddLink { link, .. } => std::slice::from_ref(link),
        _ => &[],
    };
    network.bridges.extend(links.iter().filter_map(|link| link.bridge.parse::<BridgeName>().ok()));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::{
        ids::{HostGid, HostUid},
        judge::{HostPort, NewGrant, UsageNow, Verdict, judge, judge_consented},
        limit::{LimitKey, LimitValue},
        policy::{Caller, Policy, Source},
    };

    const PERSON: HostUid = HostUid(1000);
    const OTHER: HostUid = HostUid(1001);

    fn person() -> Caller {
        Caller { uid: PERSON, gid: HostGid(1000), groups: vec![], application: None }
    }

    fn with(text: &str) -> Policy {
        let text = format!("[[rule]]\nname = \"site\"\n{text}");
        Policy::parse(&[Source { name: "s.toml", text: &text }]).unwrap()
    }

    fn grant<'a>(limits: &'a [(LimitKey, LimitValue)], links: &'a [NewLink<'a>]) -> NewGrant<'a> {
        NewGrant {
            ids: Some(65536),
            limits,
            asked: limits,
            setgroups: false,
            persistent: false,
            pressure: 0,
            links,
            nesting: 0,
            depth: 0,
            user_blocks: None,
            tidies: false,
        }
    }

    fn link(bridge: &str) -> NewLink<'_> {
        NewLink {
            bridge,
            nested: false,
            address4: None,
            address6: None,
            upload: 0,
            download: 0,
            vlan: 0,
            ports: &[HostPort { address: None, port: 80 }],
        }
    }

    fn asked(policy: &Policy, request: &Request<'_>, usage: &UsageNow) -> Option<Action> {
        match judge(policy, &person(), request, usage) {
            Verdict::Ask { action, otherwise, .. } => {
                assert!(otherwise.is_some(), "{request:?}: no word on what is in the way");
                Some(action)
            }
            Verdict::Allow { .. } => panic!("allowed: {request:?}"),
            Verdict::Deny(_) => None,
        }
    }

    #[test]
    fn what_goes_beyond_is_asked_about_and_had_with_consent() {
        let policy =
            with("quota = { grants = 1, disk = \"1G\" }\ngrant-ceiling = { \"memory.max\" = \"1G\" }\n");
        let full = UsageNow { grants: 1, ..UsageNow::default() };
        let stuffed = UsageNow { disk: 2 << 30, ..UsageNow::default() };
        let none = UsageNow::default();
        let limits = [(LimitKey::MemoryMax, LimitValue::Bytes(Some(2 << 30)))];
        let key = "memory.min".to_owned().try_into().unwrap();
        let links = [link("lan")];
        for (request, usage, action) in [
            (Request::CreateGrant(grant(&[], &[])), full, Action::ExceedQuota),
            (Request::CreateGrant(grant(&[], &[])), stuffed, Action::ExceedQuota),
            (Request::CreateGrant(grant(&limits, &[])), none, Action::ExceedQuota),
            (Request::SetLimits { owner: PERSON, limits: &limits }, none, Action::ExceedQuota),
            (Request::WriteRaw { owner: PERSON, key: &key, value: "1" }, none, Action::WriteRaw),
            (Request::CreateGrant(grant(&[], &links)), none, Action::HostNetwork),
            (Request::AddLink { owner: PERSON, link: link("default") }, none, Action::HostNetwork),
            (Request::UseGrant { owner: OTHER, verb: Verb::Kill }, none, Action::ManageOthers),
            (Request::SetLimits { owner: OTHER, limits: &[] }, none, Action::ManageOthers),
            (Request::ListAll, none, Action::ManageOthers),
            (Request::UsageOf { account: OTHER }, none, Action::ManageOthers),
        ] {
            assert_eq!(asked(&policy, &request, &usage), Some(action), "{request:?}");
            let with_it = judge_consented(&policy, &person(), &request, &usage, &[action]);
            assert!(matches!(with_it, Verdict::Allow { .. }), "{request:?}: {with_it:?}");
            // A consent to anything else is worth nothing.
            for other in Action::ALL.into_iter().filter(|other| *other != action) {
                let verdict = judge_consented(&policy, &person(), &request, &usage, &[other]);
                assert!(!matches!(verdict, Verdict::Allow { .. }), "{request:?} by {other:?}");
            }
        }
    }

    #[test]
    fn several_are_asked_for_one_after_the_other() {
        let policy = with("quota.grants = 1\naccess.grant = \"ask\"\n");
        let usage = UsageNow { grants: 1, ..UsageNow::default() };
        let links = [link("lan")];
        let request = Request::CreateGrant(grant(&[], &links));
        let mut consents = Vec::new();
        while let Verdict::Ask { action, .. } =
            judge_consented(&policy, &person(), &request, &usage, &consents)
        {
            assert!(!consents.contains(&action), "asked twice");
            consents.push(action);
        }
        let last = judge_consented(&policy, &person(), &request, &usage, &consents);
        assert!(matches!(last, Verdict::Allow { .. }), "{last:?}");
        assert_eq!(consents, [Action::ExceedQuota, Action::HostNetwork, Action::CreateGrant]);
    }

    #[test]
    fn nobody_is_asked_for_what_could_not_be_had() {
        let none = UsageNow::default();
        // The host's ids are counted elsewhere, too.
        let policy = with("quota.ids = 1000\n");
        assert_eq!(asked(&policy, &Request::CreateGrant(grant(&[], &[])), &none), None);
        let busy = UsageNow { requests: 1 << 20, connections: 1 << 20, ..none };
        assert_eq!(asked(&policy, &Request::Call, &busy), None);
        assert_eq!(asked(&policy, &Request::Connect, &busy), None);
        let key = "cgroup.procs".to_owned().try_into().unwrap();
        assert_eq!(asked(&policy, &Request::WriteRaw { owner: PERSON, key: &key, value: "1" }, &none), None);
        for verb in [Verb::Attach, Verb::Adopt, Verb::Persist, Verb::Cgroup, Verb::MapDirectory] {
            assert_eq!(asked(&policy, &Request::UseGrant { owner: OTHER, verb }, &none), None, "{verb:?}");
        }
        let roots = Request::UseGrant { owner: HostUid(0), verb: Verb::Kill };
        assert_eq!(asked(&policy, &roots, &none), None);
    }

    #[test]
    fn every_action_is_known_to_polkit_and_no_other() {
        const FILE: &str = include_str!("../../../policy/org.cgrant.broker1.policy");
        let mut known: Vec<&str> =
            FILE.split("<action id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let mut used: Vec<&str> = Action::ALL.into_iter().map(Action::id).collect();
        known.sort_unstable();
        used.sort_unstable();
        assert_eq!(known, used);
        // Without this the broker may not ask for others.
        assert_eq!(FILE.matches("policykit.owner\">unix-user:cgrant-bus<").count(), used.len());
        for part in ["<description gettext-domain=\"cgrant\">", "<message gettext-domain=\"cgrant\">"] {
            assert_eq!(FILE.matches(part).count(), used.len(), "{part}");
        }
    }

    #[test]
    fn what_policy_denies_no_consent_opens() {
        let policy = with(
            "[rule.access]\ngrant = \"deny\"\nlimits = \"deny\"\nover-quota = \"deny\"\nothers = \"deny\"\nunlisted-raw = \"deny\"\nunlisted-network = \"deny\"\n[rule.quota]\nlinks = 0\n",
        );
        let key = "memory.min".to_owned().try_into().unwrap();
        for request in [
            Request::CreateGrant(grant(&[], &[])),
            Request::SetLimits { owner: PERSON, limits: &[] },
            Request::WriteRaw { owner: PERSON, key: &key, value: "1" },
            Request::AddLink { owner: PERSON, link: link("default") },
            Request::UseGrant { owner: OTHER, verb: Verb::Read },
            Request::ListAll,
        ] {
            assert_eq!(asked(&policy, &request, &UsageNow::default()), None, "{request:?}");
            let all = judge_consented(&policy, &person(), &request, &UsageNow::default(), &Action::ALL);
            assert!(matches!(all, Verdict::Deny(_)), "{request:?}: {all:?}");
        }
    }
}
