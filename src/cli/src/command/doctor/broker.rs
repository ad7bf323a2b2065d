//! What the broker says about itself, its host and the caller's account.

use cgrant_container::{Session, SessionError};
use cgrant_proto::{Account, Description, Endpoint};

use super::Finding;
use crate::{
    Client,
    error::{Doing, Failure},
};

/// The controllers that a grant can have, the name each has on v1 if it limits there too, and what is not to be had without it.
const CONTROLLERS: [(&str, &str, &str); 6] = [
    ("cpu", "cpu", "cpu.max and cpu.weight"),
    ("cpuset", "cpuset", "cpuset.cpus"),
    ("io", "io", "io.max"),
    ("memory", "memory", "memory.max, memory.high and memory.swap.max"),
    ("pids", "pids", "pids.max"),
    ("hugetlb", "hugetlb", "hugetlb.*"),
];

/// What the broker says; or, instead, what is wrong with reaching it.
pub(super) fn findings(client: &Client) -> Result<Vec<Finding>, Finding> {
    let answers =
        Session::connect(&client.endpoint).and_then(|session| Answers::ask(&session)).map_err(unreachable)?;
    Ok(answers.findings(&client.endpoint))
}

fn unreachable(error: SessionError) -> Finding {
    let failure: Result<(), Failure> = Err(error).doing(|| "ask the broker".to_owned());
    let line = failure.err().map(|failure| failure.line()).unwrap_or_default();
    let (what, mend) =
        line.trim_start_matches("cgrant: ").split_once("; ").unwrap_or((&line, "see the broker's log"));
    Finding::fail("broker", what, mend)
}

/// What was asked, together.
#[derive(Debug)]
struct Answers {
    version: String,
    instance: String,
    hierarchy: String,
    systemd: bool,
    controllers: Vec<String>,
    features: Vec<(String, bool, String)>,
    account: u32,
    rule: String,
    usage: Vec<(String, u64, u64)>,
    network: Result<Vec<(String, bool, String, String)>, String>,
    bridges: Vec<Description>,
}

impl Answers {
    fn ask(session: &Session) -> Result<Self, SessionError> {
        let manager = session.manager()?;
        let options = Account::new();
        session.call(async {
            let (account, rule, usage) = manager.get_usage(&options).await?;
            Ok(Self {
                version: manager.version().await?,
                instance: manager.instance().await?,
                hierarchy: manager.hierarchy().await?,
                systemd: manager.systemd().await?,
                controllers: manager.controllers().await?,
                features: manager.features().await?,
                account,
                rule,
                usage,
                network: manager.examine_network().await.map_err(|error| error.to_string()),
                bridges: manager.list_bridges().await.unwrap_or_default(),
            })
        })
    }

    fn findings(&self, endpoint: &Endpoint) -> Vec<Finding> {
        let place = match endpoint {
            Endpoint::Socket(path) => path.display().to_string(),
            Endpoint::SystemBus => "the system bus".to_owned(),
            Endpoint::Bus(address) => address.clone(),
        };
        let broker = format!("instance {} of version {} answers at {place}", self.instance, self.version);
        let mut findings = vec![Finding::ok("broker", broker), self.hierarchy(), self.tree()];
        findings.extend(CONTROLLERS.iter().map(|controller| self.controller(controller)));
        findings.extend(self.features.iter().map(feature));
        let account = format!("uid {}, quotas of {}", self.account, self.rule);
        findings.push(Finding::ok("account", account));
        findings.extend(self.usage.iter().map(usage));
        match &self.network {
            Ok(rows) => findings.extend(rows.iter().map(network)),
            Err(error) => findings.push(Finding::warn("network", error, "see the broker's log")),
        }
        findings.extend(self.bridges.iter().map(bridge));
        findings
    }

    fn hierarchy(&self) -> Finding {
        match self.hierarchy.as_str() {
            "v2" => Finding::ok("cgroup hierarchy", "v2: controllers are delegated to containers"),
            kind => Finding::warn(
                "cgroup hierarchy",
                format!(
                    "{kind}: limits hold, but controllers of v1 can't be delegated safely into a container"
                ),
                "boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all",
            ),
        }
    }

    fn tree(&self) -> Finding {
        match self.systemd {
            true => Finding::ok("cgroup tree", "in a scope that systemd delegated to the broker"),
            false => Finding::ok("cgroup tree", "the broker's own, below the root of each hierarchy"),
        }
    }

    fn controller(&self, (name, name_on_v1, keys): &(&str, &str, &str)) -> Finding {
        let check = format!("controller {name}");
        if self.controllers.iter().any(|controller| controller == name || controller == name_on_v1) {
            return Finding::ok(check, format!("{keys} can be limited"));
        }
        let mend = match *name {
            "memory" => "boot with cgroup_enable=memory".to_owned(),
            // On v1 it bounds one cgroup and none inside that.
            "io" if self.controllers.iter().any(|controller| controller == "blkio") => {
                "boot with cgroup_no_v1=blkio, or systemd.unified_cgroup_hierarchy=1".to_owned()
            }
            _ => format!(
                "the kernel, its command line (cgroup_disable) or the hierarchy's owner keeps {name} back"
            ),
        };
        Finding::warn(check, format!("no limits for {keys}"), mend)
    }
}

fn feature((name, there, otherwise): &(String, bool, String)) -> Finding {
    if name == "polkit" {
        let mend = "install and start polkitd and a system bus, and start the broker with --bus system";
        return match there {
            true => Finding::ok(name, "there: an administrator can agree to what policy says \"ask\" to"),
            false => Finding::warn(name, format!("not there: {otherwise}"), mend),
        };
    }
    let check = format!("kernel: {name}");
    if *there {
        return Finding::ok(check, "there");
    }
    let mend = match name.as_str() {
        "pressure" => "boot with psi=1",
        "memory.swap.max" => "boot with swapaccount=1",
        "memory.high" => {
            "a v2 host has it: boot with systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=all"
        }
        name if name.starts_with("controller ") => "whoever owns the cgroup2 tree must free it",
        _ => "a newer kernel has it",
    };
    Finding::warn(check, format!("not there: {otherwise}"), mend)
}

fn network((subject, good, found, remedy): &(String, bool, String, String)) -> Finding {
    let check = format!("network: {subject}");
    if *good { Finding::ok(check, found) } else { Finding::warn(check, found, remedy) }
}

fn bridge(bridge: &Description) -> Finding {
    let text = |key| bridge.text(key).unwrap_or_default();
    let subnets: Vec<&str> = ["subnet4", "subnet6"].into_iter().filter_map(|key| bridge.text(key)).collect();
    let kind = if bridge.flag("managed") { "the broker's own" } else { "the administrator's" };
    let finding = match subnets.as_slice() {
        [] => format!("{}, {kind}", text("device")),
        subnets => format!("{}, {kind}, {}", text("device"), subnets.join(" and ")),
    };
    Finding::ok(format!("bridge {}", text("name")), finding)
}

fn usage((resource, used, quota): &(String, u64, u64)) -> Finding {
    let check = format!("quota of {resource}");
    let finding = match *quota {
        u64::MAX => format!("{used} in use, without limit"),
        quota => format!("{used} of {quota} in use"),
    };
    if used < quota {
        return Finding::ok(check, finding);
    }
    Finding::warn(check, finding, "release grants ('cgrant grant list'), or ask the administrator for more")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::{super::Verdict, *};

    fn answers() -> Answers {
        Answers {
            version: "1".into(),
            instance: "default".into(),
            hierarchy: "hybrid".into(),
            systemd: false,
            controllers: vec!["cpu".into(), "blkio".into(), "memory".into()],
            features: vec![("so-peerpidfd".into(), false, "pids are checked twice".into())],
            account: 7,
            rule: "built-in any-user".into(),
            usage: vec![("grants".into(), 4, 4), ("ids".into(), 0, 9)],
            network: Ok(vec![
                ("nft".into(), true, "there".into(), String::new()),
                ("forwarding".into(), false, "dropped by table ip docker".into(), "nft add …".into()),
            ]),
            bridges: vec![Description::default()],
        }
    }

    #[test]
    fn what_is_missing_is_a_warning_with_a_way_to_mend_it() {
        let findings = answers().findings(&Endpoint::SystemBus);
        let of = |check: &str| findings.iter().find(|finding| finding.check == check).unwrap();
        assert_eq!(of("broker").verdict, Verdict::Ok);
        for check in [
            "cgroup hierarchy",
            "controller pids",
            "controller io",
            "kernel: so-peerpidfd",
            "quota of grants",
            "network: forwarding",
        ] {
            assert_eq!(of(check).verdict, Verdict::Warn, "{check}");
            assert!(!of(check).mend.is_empty(), "{check}");
        }
        // It is on v1, where it bounds nothing inside.
        assert!(of("controller io").mend.contains("cgroup_no_v1=blkio"));
        for check in ["controller memory", "quota of ids", "account", "network: nft", "bridge "] {
            assert_eq!(of(check).verdict, Verdict::Ok, "{check}");
        }
    }

    #[test]
    fn no_broker_is_a_failure_with_a_way_to_mend_it() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = cgrant_proto::Error::Unreachable { path: "/x".into(), source };
        let finding = unreachable(error.into());
        assert_eq!(finding.verdict, Verdict::Fail);
        assert!(finding.finding.contains("/x") && finding.mend.contains("start cgrantd"), "{finding:?}");
    }
}
