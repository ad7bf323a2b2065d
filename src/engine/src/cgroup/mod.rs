//! The grants' cgroups: made, limited, frozen, emptied and removed, on v1, hybrid and v2 hosts alike.
//!
//! May touch: cgroupfs below the instance's node, `cgroup.subtree_control` of what is above it on hosts without systemd, and
//! processes that a caller may move. Knows nothing of callers, policy and records.
//!
//! On every host there is a cgroup2 tree, which carries freezing, killing, process lists and the delegation. v1 hierarchies
//! carry controllers only, and nothing in them is ever the holder's.
//!
//! | module | idea |
//! |---|---|
//! | [`mounts`], [`hierarchy`] | which hierarchies there are, and the instance's node in each |
//! | [`node`], [`walk`] | one cgroup; all cgroups below one |
//! | [`tree`] | the tree over all hierarchies, and finding a grant in it |
//! | [`enable`], [`make`], [`cpuset`] | handing controllers down; making and delegating; CPUs on v1 |
//! | [`equal`] | what is one thing in v1 and v2 |
//! | [`limits`], [`stat`] | limits and figures, the same on v1 and v2 |
//! | [`state`], [`processes`] | freezing, killing, listing |
//! | [`attach`], [`attach_tree`], [`evict`] | moving processes in, with all they fork, and out |
//! | [`subtree`], [`shadow`] | cgroups below a payload; how many on v1 |
//! | [`events`], [`remove`] | what the kernel tells; the end |

mod attach;
mod attach_tree;
mod cpuset;
mod enable;
pub(crate) mod equal;
mod error;
mod events;
mod evict;
mod hierarchy;
mod limits;
mod make;
mod mounts;
mod node;
mod processes;
mod remove;
mod shadow;
mod stat;
mod state;
mod subtree;
mod tree;
mod walk;

#[cfg(test)]
mod tests;

pub use attach::Attached;
pub(crate) use attach::is_orphan;
pub(crate) use cpuset::{inherit as inherit_cpuset, is_v1_cpuset};
pub use error::CgroupError;
pub use events::OomWatch;
pub(crate) use hierarchy::{Hierarchies, Hierarchy};
pub use limits::{Below, Nested, USUAL_WEIGHT};
pub use make::Delegation;
pub(crate) use mounts::Kind;
pub(crate) use node::{Node, is_missing};
pub use state::Patience;
pub use tree::{HostKind, Tree, below_base};
pub(crate) use walk::{Visit, walk};
