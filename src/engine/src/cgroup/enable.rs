//! Handing controllers down on cgroup2: `cgroup.subtree_control` from the mount's root to the grant.
//!
//! Source: Documentation/admin-guide/cgroup-v2.rst, "Enabling and Disabling", "No Internal Process Constraint".

use std::io;

use cgrant_policy::Controllers;
use rustix::io::Errno;

use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    node::{Node, errno},
};

const CONTROL: &str = "cgroup.subtree_control";

/// A controller that could not be enabled, and the kernel's words.
pub(super) type Refused = (String, io::Error);

/// Enables in `node` every controller that it has, for the cgroups below it. Gives those that the kernel refused.
///
/// All are written at once; only if the kernel refuses that, one by one, so that a single one (cpu, with a real-time
/// process somewhere) does not keep the others away.
///
/// # Errors
/// [`CgroupError::ProcessesInside`] if processes sit in `node` itself; what the kernel refuses to read.
pub(super) fn enable_all(node: &Node) -> Result<Vec<Refused>, CgroupError> {
    enable(node, &Controllers::All)
}

/// As [`enable_all`], those of them that are allowed.
fn enable(node: &Node, allowed: &Controllers) -> Result<Vec<Refused>, CgroupError> {
    let Some(have) = node.read_if_there("cgroup.controllers")? else { return Ok(Vec::new()) };
    let on = node.read_if_there(CONTROL)?.unwrap_or_default();
    let missing: Vec<&str> = have
        .split_ascii_whitespace()
        .filter(|name| allowed.allow(name) && !on.split_ascii_whitespace().any(|other| other == *name))
        .collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let all = missing.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if node.write(CONTROL, &all).is_ok() {
        return Ok(Vec::new());
    }
    let mut refused = Vec::new();
    for name in missing {
        if let Err(error) = node.write(CONTROL, &format!("+{name}")) {
            refused.push((name.to_owned(), error));
        }
    }
    let busy = refused.iter().any(|(_, error)| errno(error) == Some(Errno::BUSY));
    if busy && holds_processes(node) {
        return Err(CgroupError::ProcessesInside { cgroup: node.path().to_owned() });
    }
    Ok(refused)
}

/// Enables in a cgroup below the instance's node, for the cgroups below it, what that node hands down and is allowed. `fresh`: it has
/// been made just now, so nothing is enabled.
///
/// # Errors
/// As [`enable_all`].
pub(super) fn hand_on(
    hierarchy: &Hierarchy,
    node: &Node,
    fresh: bool,
    allowed: &Controllers,
) -> Result<(), CgroupError> {
    let on = match fresh {
        true => String::new(),
        false => node.read_if_there(CONTROL)?.unwrap_or_default(),
    };
    let on: Vec<&str> = on.split_ascii_whitespace().collect();
    let wanted = hierarchy.controllers.iter().filter(|name| allowed.allow(name));
    let missing = wanted.filter(|name| !on.contains(&name.as_str()));
    let missing = missing.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if missing.is_empty() || node.write(CONTROL, &missing).is_ok() {
        return Ok(());
    }
    enable(node, allowed).map(drop)
}

/// As [`hand_on`] of all in a cgroup that has been made just now; `false` if something above it does not hand all of that down.
///
/// # Errors
/// What the kernel refuses for another reason.
pub(super) fn hand_on_new(hierarchy: &Hierarchy, node: &Node) -> Result<bool, CgroupError> {
    if hierarchy.controllers.is_empty() {
        return Ok(true);
    }
    let all = hierarchy.controllers.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    Ok(node.write(CONTROL, &all).is_ok())
}

fn holds_processes(node: &Node) -> bool {
    match node.pids(1) {
        Ok(pids) => !pids.is_empty(),
        Err(error) => matches!(error, CgroupError::TooMany { .. }),
    }
}
