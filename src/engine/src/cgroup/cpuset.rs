//! CPUs and memory nodes of v1 `cpuset` cgroups, which begin with none and take no process until they have some.
//!
//! Source: Documentation/admin-guide/cgroup-v1/cpusets.rst; kernel/cgroup/cpuset-v1.c: on v1 a cpuset has to be a
//! subset of the one above it at every moment, and can't be shrunk below one of its children.

use std::{collections::HashMap, io};

use cgrant_policy::CpuList;
use cgrant_sys::Dir;

use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    mounts::Kind,
    node::Node,
    walk::{Visit, walk},
};

const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";
/// Longest list of CPUs, bytes.
const MAX_LIST: usize = 16 * 1024;

/// The CPUs of a cgroup and of all below it, by the directories' inode numbers.
pub(super) type Masks = HashMap<u64, CpuList>;

/// Is this a v1 hierarchy with the cpuset controller?
pub(crate) fn is_v1_cpuset(hierarchy: &Hierarchy) -> bool {
    hierarchy.kind == Kind::V1 && hierarchy.controllers.iter().any(|controller| controller == "cpuset")
}

/// Gives the instance's node CPUs, and has the kernel give every new cgroup below it those of the one above.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn prepare_base(hierarchy: &Hierarchy) -> Result<(), CgroupError> {
    if !is_v1_cpuset(hierarchy) {
        return Ok(());
    }
    let base = &hierarchy.base;
    let above = hierarchy.base_path.rsplit_once('/').map_or("/", |(above, _)| above);
    let above = if above.is_empty() { "/" } else { above };
    let above = hierarchy.open(above).map_err(CgroupError::kernel("to open", above))?;
    inherit(hierarchy, &Node::new(above, String::new()), base)?;
    base.write("cgroup.clone_children", "1")
        .map_err(CgroupError::kernel("to set", base.path_of("cgroup.clone_children")))
}

/// Gives a new cgroup the CPUs and nodes of the one above it, if this is the v1 cpuset hierarchy and the kernel did not.
/// Says whether it had to: the kernel gives them to every new cgroup below one that it has given them to.
///
/// # Errors
/// What the kernel refuses.
pub(crate) fn inherit(hierarchy: &Hierarchy, above: &Node, node: &Node) -> Result<bool, CgroupError> {
    if !is_v1_cpuset(hierarchy) {
        return Ok(false);
    }
    // The kernel gives both or neither, and what is set here in its place ends with the memory nodes.
    let nodes = node.read(MEMS).map_err(CgroupError::kernel("to read", node.path_of(MEMS)))?;
    if !nodes.is_empty() {
        return Ok(false);
    }
    for file in [CPUS, MEMS] {
        let value = above.read(file).map_err(CgroupError::kernel("to read", above.path_of(file)))?;
        node.write(file, &value).map_err(CgroupError::kernel("to set", node.path_of(file)))?;
    }
    Ok(true)
}

/// What the cgroup and all below it have now.
///
/// # Errors
/// What the kernel refuses to read.
pub(super) fn masks(top: &Node) -> io::Result<Masks> {
    let mut masks = Masks::new();
    let mut note = |dir: &Dir| -> io::Result<()> {
        if let Some(mask) = mask(dir)? {
            masks.insert(dir.inode()?, mask);
        }
        Ok(())
    };
    note(top.dir())?;
    walk(top.dir(), |visit| match visit {
        Visit::Enter { dir, .. } => note(dir),
        Visit::Leave { .. } => io::Result::Ok(()),
    })?;
    Ok(masks)
}

/// What `masks` become when the top one becomes `wanted`: those that were the top's own follow it, narrower ones keep what
/// they still may have.
pub(super) fn changed(masks: &Masks, top: u64, wanted: &CpuList) -> Masks {
    let before = masks.get(&top);
    let change = |mask: &CpuList| match before {
        Some(before) if before != mask => common(mask, wanted).unwrap_or_else(|| wanted.clone()),
        _ => wanted.clone(),
    };
    masks.iter().map(|(inode, mask)| (*inode, change(mask))).collect()
}

/// Sets the CPUs of the cgroup and of all below it: first downwards to old and new together, then upwards to the new ones,
/// so that each is a subset of the one above at every step. Those that `wanted` does not name stay as they are.
///
/// # Errors
/// What the kernel refuses; some are set then.
pub(super) fn set(top: &Node, wanted: &Masks) -> io::Result<()> {
    widen(top.dir(), wanted)?;
    walk(top.dir(), |visit| match visit {
        Visit::Enter { dir, .. } => widen(dir, wanted),
        Visit::Leave { parent, name } => narrow(&parent.open_dir(name)?, wanted),
    })?;
    narrow(top.dir(), wanted)
}

fn widen(dir: &Dir, wanted: &Masks) -> io::Result<()> {
    let Some(wanted) = wanted.get(&dir.inode()?) else { return Ok(()) };
    let Some(now) = mask(dir)? else { return dir.write(CPUS, &wanted.to_string()) };
    if wanted.is_within(&now) {
        return Ok(());
    }
    let both = CpuList::new([now.ranges(), wanted.ranges()].concat()).ok_or(io::ErrorKind::InvalidData)?;
    dir.write(CPUS, &both.to_string())
}

fn narrow(dir: &Dir, wanted: &Masks) -> io::Result<()> {
    match wanted.get(&dir.inode()?) {
        Some(wanted) if mask(dir)?.as_ref() != Some(wanted) => dir.write(CPUS, &wanted.to_string()),
        _ => Ok(()),
    }
}

fn mask(dir: &Dir) -> io::Result<Option<CpuList>> {
    Ok(dir.read(CPUS, MAX_LIST)?.trim().parse().ok())
}

/// The CPUs in both; `None` if there are none.
fn common(a: &CpuList, b: &CpuList) -> Option<CpuList> {
    let overlap = |x: &(u32, u32), y: &(u32, u32)| {
        let (first, last) = (x.0.max(y.0), x.1.min(y.1));
        (first <= last).then_some((first, last))
    };
    CpuList::new(
        a.ranges().iter().flat_map(|x| b.ranges().iter().filter_map(move |y| overlap(x, y))).collect(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().unwrap()
    }

    #[test]
    fn cpus_in_both() {
        assert_eq!(common(&list("0-3,8"), &list("2-9")), Some(list("2-3,8")));
        assert_eq!(common(&list("0"), &list("1")), None);
    }

    #[test]
    fn followers_follow_and_narrower_ones_stay_narrow() {
        let masks: Masks = [(1, list("0-3")), (2, list("0-3")), (3, list("1-2")), (4, list("3"))].into();
        let after = changed(&masks, 1, &list("0-1"));
        assert_eq!(
            (&after[&1], &after[&2], &after[&3], &after[&4]),
            (&list("0-1"), &list("0-1"), &list("1"), &list("0-1"))
        );
    }
}
