//! `cgrant doctor`: what this machine can and cannot do, and how to mend it.

mod broker;
mod host;
mod legacy;
mod subordinate;

use serde::Serialize;
use serde_json::Value;

use crate::{
    Client,
    error::Failure,
    exit,
    output::{self, List},
};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// Something is done in another way, or can't be had.
    Warn,
    /// Containers or grants do not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    check: String,
    /// What was found and what follows from it.
    finding: String,
    /// How to mend it; empty if there is nothing to mend.
    mend: String,
}

impl Finding {
    fn ok(check: impl Into<String>, finding: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, check: check.into(), finding: finding.into(), mend: String::new() }
    }

    fn warn(check: impl Into<String>, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, check: check.into(), finding: finding.into(), mend: mend.into() }
    }

    fn fail(check: impl Into<String>, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, check: check.into(), finding: finding.into(), mend: mend.into() }
    }
}

pub(crate) fn run(client: &Client) -> Result<u8, Failure> {
    // The trial of user namespaces forks: it comes before the connection, whose runtime may make threads.
    let host = host::Host::own();
    let mut findings = host.findings();
    findings.extend(subordinate::findings(std::path::Path::new("/")));
    match broker::findings(client) {
        Ok(more) => findings.extend(more),
        Err(finding) => {
            findings.extend(host.cgroup_features());
            findings.push(finding);
        }
    }
    findings.push(legacy::finding());
    let code = verdict(&findings);
    let items = findings.iter().filter_map(|finding| serde_json::to_value(finding).ok());
    output::print(
        client.format,
        &List::new(&["VERDICT", "CHECK", "FINDING", "MEND"], items.collect::<Vec<Value>>()),
    )?;
    Ok(code)
}

fn verdict(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.verdict).max() {
        Some(Verdict::Fail) => exit::REFUSED,
        _ => exit::DONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_count() {
        let (ok, warn) = (Finding::ok("a", "b"), Finding::warn("a", "b", "c"));
        assert_eq!(verdict(&[ok.clone(), warn.clone()]), exit::DONE);
        assert_eq!(verdict(&[Finding::fail("a", "b", "c"), warn, ok]), exit::REFUSED);
    }
}
