//! The cgroup hierarchies that are mounted here, and where a process sits in each.

use std::{
    io,
    path::{Path, PathBuf},
};

/// What the hierarchy of cgroup v2 is called.
pub const CGROUP2: &str = "cgroup2";

/// A process's place in one hierarchy, as a line of `/proc/PID/cgroup` says it (cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `cgroup2`, or the v1 controllers as the line names them.
    pub hierarchy: String,
    /// Path from the hierarchy's root.
    pub path: String,
}

/// Where the process `pid` sits.
///
/// # Errors
/// What the kernel says to reading `/proc/PID/cgroup`.
pub fn places(pid: u32) -> io::Result<Vec<Place>> {
    Ok(parse_places(&std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?))
}

/// The hierarchies that are mounted with their root, each with its mount point. The same hierarchy appears once.
///
/// # Errors
/// What the kernel says to reading `/proc/self/cgroup` and `/proc/self/mountinfo`.
pub fn mounted() -> io::Result<Vec<(String, PathBuf)>> {
    let own = parse_places(&std::fs::read_to_string("/proc/self/cgroup")?);
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(own
        .into_iter()
        .filter_map(|place| mount_point(&mountinfo, &place.hierarchy).map(|path| (place.hierarchy, path)))
        .collect())
}

fn parse_places(text: &str) -> Vec<Place> {
    text.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let hierarchy = if controllers.is_empty() { CGROUP2 } else { controllers };
            Some(Place { hierarchy: hierarchy.to_owned(), path: path.to_owned() })
        })
        .collect()
}

/// The mount point of `hierarchy`'s root in a mountinfo file (proc_pid_mountinfo(5)).
fn mount_point(mountinfo: &str, hierarchy: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, point) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let (kind, _source, options) = (back.next()?, back.next()?, back.next()?);
        let same = match kind {
            "cgroup2" => hierarchy == CGROUP2,
            "cgroup" => hierarchy.split(',').all(|part| options.split(',').any(|option| option == part)),
            _ => false,
        };
        // A mount point with escaped characters is none of systemd's.
        (same && root == "/" && !point.contains('\\')).then(|| Path::new(point).to_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
23 18 0:21 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,size=4096k,mode=755
24 23 0:22 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
25 23 0:23 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,xattr,name=systemd
26 23 0:24 /docker /mnt/memory rw shared:6 - cgroup cgroup rw,memory
27 23 0:24 / /sys/fs/cgroup/memory rw shared:6 - cgroup cgroup rw,memory
28 23 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
29 23 0:26 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,pids
";

    #[test]
    fn a_hierarchy_is_found_where_its_root_is_mounted() {
        let at = |hierarchy| mount_point(MOUNTINFO, hierarchy).map(|p| p.to_str().unwrap().to_owned());
        assert_eq!(at("cgroup2").unwrap(), "/sys/fs/cgroup/unified");
        assert_eq!(at("name=systemd").unwrap(), "/sys/fs/cgroup/systemd");
        assert_eq!(at("memory").unwrap(), "/sys/fs/cgroup/memory");
        assert_eq!(at("cpu,cpuacct").unwrap(), "/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(at("pids"), None);
        assert_eq!(at("blkio"), None);
    }

    #[test]
    fn places_are_read_line_by_line() {
        let places = parse_places("12:cpu,cpuacct:/a:b\n1:name=systemd:/s\n0::/u\nrubbish\n");
        let as_text: Vec<_> = places.iter().map(|p| format!("{} {}", p.hierarchy, p.path)).collect();
        assert_eq!(as_text, ["cpu,cpuacct /a:b", "name=systemd /s", "cgroup2 /u"]);
    }

    #[test]
    fn this_process_has_a_place() {
        assert!(!places(std::process::id()).unwrap().is_empty());
    }
}
