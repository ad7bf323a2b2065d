//! CPUs and memory nodes of v1 `cpuset` cgroups, which begin with none and take no process until they have some.
//!
//! Source: Documentation/admin-guide/cgroup-v1/cpusets.rst; kernel/cgroup/cpuset-v1.c: on v1 a cpuset has to be a
//! subset of the one above it at every moment, and can't be shrunk below one of its children.

use cgrant_policy::CpuList;
use cgrant_sys::Dir;

use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    limits::Transaction,
    node::Node,
    walk::{Visit, walk},
};

const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// Gives a new cgroup the CPUs and nodes of the one above it, if this is the v1 cpuset hierarchy and it has none.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn inherit(hierarchy: &Hierarchy, node: &Node) -> Result<(), CgroupError> {
    if !hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
        return Ok(());
    }
    let above = node.above()?;
    for file in [CPUS, MEMS] {
        let own = node.read(file).map_err(CgroupError::kernel("to read", node.path_of(file)))?;
        if own.is_empty() {
            let value = above.read(file).map_err(CgroupError::kernel("to read", node.path_of(file)))?;
            node.write(file, &value).map_err(CgroupError::kernel("to set", node.path_of(file)))?;
        }
    }
    Ok(())
}
