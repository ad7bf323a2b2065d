//! Names of v1's that nothing stands behind on cgroup2, and why.

/// Files, and what is different.
const FILES: [(&str, &str); 12] = [
    (
        "memory.soft_limit_in_bytes",
        "memory.low protects what is below it, memory.high slows down what is above it, and neither is a limit that holds only when memory is short",
    ),
    ("memory.swappiness", "all cgroups swap alike there, and memory.swap.max bounds it"),
    ("memory.force_empty", "memory.reclaim wants to be told how much"),
    ("memory.pressure_level", "memory.pressure and memory.events tell of want"),
    ("memory.move_charge_at_immigrate", "what a process has used stays counted where it used it"),
    ("memory.memsw.max_usage_in_bytes", "the peak of both together is not counted there"),
    ("memory.memsw.failcnt", "memory and swap have limits of their own there"),
    ("freezer.parent_freezing", "a cgroup there does not tell why it is frozen"),
    ("notify_on_release", "cgroup.events tells when a cgroup is empty; RemoveOnEmpty removes it then"),
    ("release_agent", "cgroup.events tells when a cgroup is empty; RemoveOnEmpty removes it then"),
    ("cgroup.event_control", "files there can be watched themselves"),
    ("cgroup.sane_behavior", "it is a word of v1's alone"),
];

/// Beginnings of names, and what is different, for whatever is not translated.
const BEGINNINGS: [(&str, &str); 12] = [
    ("devices.", "programs decide on devices there, and nobody is handed any over this interface"),
    ("net_cls.", "packets are told apart by the cgroup itself there"),
    ("net_prio.", "packets are told apart by the cgroup itself there"),
    ("perf_event.", "it has no files"),
    ("memory.kmem.", "memory of the kernel's is counted and limited with all other memory there"),
    ("cpu.rt_", "real-time processes have no share of their own there"),
    ("cpuacct.", "time is not told for each CPU there"),
    ("cpuset.mem_", "cpuset has no such switch there"),
    ("cpuset.memory_", "cpuset has no such switch there"),
    ("cpuset.cpu_exclusive", "cpuset has no such switch there"),
    ("cpuset.sched_", "cpuset has no such switch there"),
    ("blkio.", "the io controller has no such file"),
];

/// Endings of names of v1's, and what is different, likewise.
const ENDINGS: [(&str, &str); 3] = [
    ("max_usage_in_bytes", "the peak is not kept by this kernel there"),
    ("usage_in_bytes", "it is not counted there"),
    ("_in_bytes", "it is not counted there"),
];

/// Why nothing stands behind a name of v1's; `None` if it is none, or something may.
pub fn why_lost(key: &str) -> Option<&'static str> {
    if super::translations(key).next().is_some() {
        return None;
    }
    let file = FILES.iter().find(|(name, _)| *name == key);
    let beginning = || BEGINNINGS.iter().find(|(begin, _)| key.starts_with(begin));
    let ending = || ENDINGS.iter().find(|(end, _)| key.ends_with(end));
    file.or_else(beginning).or_else(ending).map(|(_, why)| *why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_equal_says_so() {
        for key in [
            "memory.soft_limit_in_bytes",
            "memory.swappiness",
            "memory.kmem.limit_in_bytes",
            "cpu.rt_runtime_us",
            "cpuacct.usage_percpu",
            "devices.allow",
            "devices.list",
            "net_cls.classid",
            "net_prio.ifpriomap",
            "blkio.weight_device",
            "cpuset.cpu_exclusive",
            "cpuset.memory_migrate",
            "notify_on_release",
            "hugetlb.2MB.max_usage_in_bytes",
        ] {
            assert!(why_lost(key).is_some(), "{key}");
        }
        for key in
            ["memory.max", "cpu.weight", "io.stat", "cpuset.cpus.partition", "pids.max", "x", "", "tasks"]
        {
            assert_eq!(why_lost(key), None, "{key}");
        }
    }
}
