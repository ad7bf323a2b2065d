//! cgroup2.
