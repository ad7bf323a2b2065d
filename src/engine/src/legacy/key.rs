//! Which files of a cgroup are written for those who may by its bits. Pure.
//!
//! The engine writes as root, and to some files that means more than to their owner. `release_agent` is a program that the
//! kernel starts as root, `notify_on_release` when it does; `cgroup.event_control` takes descriptors of whoever writes;
//! `devices.allow` asks for a capability of whoever writes; `cgroup.kill` and what moves processes have other rules than
//! bits. So it is the other way round: what is listed is written, nothing else.

/// Beginnings of the files of resource controllers.
const CONTROLLERS: [&str; 15] = [
    "blkio.",
    "cpu.",
    "cpuacct.",
    "cpuset.",
    "dmem.",
    "freezer.",
    "hugetlb.",
    "io.",
    "memory.",
    "misc.",
    "net_cls.",
    "net_prio.",
    "perf_event.",
    "pids.",
    "rdma.",
];

/// The kernel's own files that only concern what is below.
const OWN: [&str; 4] =
    ["cgroup.clone_children", "cgroup.freeze", "cgroup.max.depth", "cgroup.max.descendants"];

/// What would take from others what the engine may take from them: CPUs that belong to nobody else then (the kernel asks for a
/// capability of whoever writes), and time (what is reclaimed is waited for; a trigger ends with the descriptor).
const NEVER: [&str; 6] = [
    "cpu.pressure",
    "cpuset.cpus.exclusive",
    "cpuset.cpus.partition",
    "io.pressure",
    "memory.pressure",
    "memory.reclaim",
];

/// May the file be written at all?
pub fn is_written(key: &str) -> bool {
    if NEVER.contains(&key) {
        return false;
    }
    OWN.contains(&key) || CONTROLLERS.iter().any(|begin| key.len() > begin.len() && key.starts_with(begin))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written() {
        for key in
            ["memory.limit_in_bytes", "cpu.shares", "cpuset.cpus", "freezer.state", "pids.max", "io.max"]
        {
            assert!(is_written(key), "{key}");
        }
    }

    #[test]
    fn what_root_means_more_by_is_not() {
        for key in [
            "release_agent",
            "notify_on_release",
            "release-agent",
            "cgroup.event_control",
            "cgroup.procs",
            "cgroup.threads",
            "cgroup.kill",
            "cgroup.subtree_control",
            "cgroup.type",
            "tasks",
            "devices.allow",
            "devices.deny",
            "memory.",
            "memory",
            "debug.x",
            "cpuset.cpus.partition",
            "cpuset.cpus.exclusive",
            "memory.reclaim",
            "io.pressure",
            "",
        ] {
            assert!(!is_written(key), "{key}");
        }
    }
}
