//! What `/proc/self/mountinfo` says about cgroup hierarchies. Parsing only.
//!
//! Sources: proc_pid_mountinfo(5), cgroups(7).

/// The kind of a cgroup file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One v1 hierarchy.
    V1,
    /// The one v2 hierarchy.
    V2,
}

/// A mount of a cgroup file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Number of the mount, as in `fdinfo`'s `mnt_id`.
    pub id: u64,
    /// Which cgroup is its root, as the reader's cgroup namespace counts paths. Outside of that: `/..`.
    pub root: String,
    /// Where it is.
    pub point: String,
    /// v1 or v2.
    pub kind: Kind,
    /// Options of the superblock; those of v1 name its controllers.
    pub options: Vec<String>,
}

impl Mount {
    /// Is this v1 mount the hierarchy that `/proc/self/cgroup` calls `name`?
    ///
    /// The options of a hierarchy are its controllers and some flags, so that a hierarchy whose controllers are all
    /// among the options is the one: a controller belongs to one hierarchy only.
    pub fn shows(&self, name: &str) -> bool {
        self.kind == Kind::V1 && name.split(',').all(|part| self.options.iter().any(|option| option == part))
    }

    /// Does it show cgroups that are inside of the reader's cgroup namespace?
    pub fn is_inside(&self) -> bool {
        self.root != "/.." && !self.root.starts_with("/../")
    }
}

/// The cgroup mounts of a `mountinfo`, in its order.
pub(super) fn mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let id = fields.next()?.parse().ok()?;
    let root = unescape(fields.nth(2)?)?;
    let point = unescape(fields.next()?)?;
    let mut fields = after.split(' ');
    let kind = match fields.next()? {
        "cgroup" => Kind::V1,
        "cgroup2" => Kind::V2,
        _ => return None,
    };
    let options = unescape(fields.nth(1)?)?.split(',').map(str::to_owned).collect();
    Some(Mount { id, root, point, kind, options })
}

/// Space, tab, newline and backslash are written as three octal digits after a backslash.
fn unescape(field: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => bytes.push(first),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Are these two the same set of v1 controllers? systemd and the kernel don't always name them in one order.
pub(super) fn same_hierarchy(a: &str, b: &str) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text.split(',').map(str::to_owned).collect();
        parts.sort_unstable();
        parts
    };
    a == b || sorted(a) == sorted(b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,xattr,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 /../.. /mnt/with\\040space rw,relatime shared:6 master:1 - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn a_hybrid_host() {
        let mounts = mounts(HYBRID);
        assert_eq!(mounts.len(), 3);
        assert!(mounts[0].shows("cpuacct,cpu") && !mounts[0].shows("cpuset") && mounts[0].is_inside());
        assert!(mounts[1].shows("name=systemd") && !mounts[1].shows("systemd"));
        let v2 = &mounts[2];
        assert_eq!((v2.id, v2.kind, v2.point.as_str()), (41, Kind::V2, "/mnt/with space"));
        assert!(!v2.is_inside() && !v2.shows("nsdelegate"));
    }

    #[test]
    fn lines_that_are_no_mounts_are_passed_over() {
        assert_eq!(mounts("\n - \n1 2 3\n- cgroup2\nx 1 0:1 / / rw - cgroup2 c rw\n"), []);
        assert_eq!(unescape("a\\1b\\134\\400").unwrap(), "a\\1b\\\\400");
    }

    #[test]
    fn the_order_of_controllers_does_not_matter() {
        assert!(same_hierarchy("cpu,cpuacct", "cpuacct,cpu") && !same_hierarchy("cpu", "cpuset"));
    }
}
