//! Which cgroup hierarchies this host has, and the broker's place in each.
//!
//! Found from `/proc/self/mountinfo` and the magic number of what is opened, never from a version. Each hierarchy is
//! held open by its mount's directory; nothing later goes by a path from the file system's root.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use cgrant_sys::{
    Dir, ProcFs,
    mount::{CGROUP1_MAGIC, CGROUP2_MAGIC, mount_cgroup2_detached, statfs_magic},
};
use cgrant_wire::boot::Placement;

use super::{
    error::CgroupError,
    mounts::{Kind, Mount, mounts, same_hierarchy},
    node::Node,
};

/// What the one v2 hierarchy is called.
pub(super) const CGROUP2: &str = "cgroup2";
/// Inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_NAMESPACE: &str = "cgroup:[4026531835]";

/// Longest list of controllers, in bytes.
const MAX_CONTROLLERS: usize = 4096;

/// One hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    /// [`CGROUP2`], or the v1 controllers as `/proc/self/cgroup` has them.
    pub name: String,
    /// v1 or v2.
    pub kind: Kind,
    /// v1: its controllers; v2: those that grants get.
    pub controllers: Vec<String>,
    /// v2: controllers that the root of the mount has.
    pub offered: Vec<String>,
    /// v2: controllers that could not be enabled, and why.
    pub refused: Vec<(String, String)>,
    /// Root of the mount.
    pub mount: Dir,
    /// Path of the mount's root in the engine's cgroup namespace; `/` nearly always.
    pub mount_path: String,
    /// The broker's node, [`Hierarchy::base_path`].
    pub base: Node,
    /// Path of the broker's node in the engine's cgroup namespace.
    pub base_path: String,
    /// Was the node delegated by systemd?
    pub in_scope: bool,
    /// The mount itself where it is the engine's own and attached nowhere.
    pub detached: Option<OwnedFd>,
}

/// All hierarchies of the host.
#[derive(Debug)]
pub(crate) struct Hierarchies {
    /// Those of v1, ordered by name.
    pub v1: Vec<Hierarchy>,
    /// The one of v2, which every host has.
    pub v2: Hierarchy,
}

impl Hierarchies {
    /// All, cgroup2 last: the order in which processes are moved and cgroups are made.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Hierarchy> {
        self.v1.iter().chain([&self.v2])
    }

    /// The hierarchy that has a controller, by its v2 name.
    pub fn controller(&self, name: &str) -> Option<&Hierarchy> {
        let v1_name = if name == "io" { "blkio" } else { name };
        self.all().find(|hierarchy| {
            let wanted = if hierarchy.kind == Kind::V1 { v1_name } else { name };
            hierarchy.controllers.iter().any(|controller| controller == wanted)
        })
    }
}

impl Hierarchy {
    /// Opens a cgroup by its path as `/proc/PID/cgroup` has it.
    ///
    /// # Errors
    /// `ENOENT` if there is none, or it lies outside of what is mounted.
    pub fn open(&self, path: &str) -> io::Result<Dir> {
        let below = strip(path, &self.mount_path).ok_or(io::ErrorKind::NotFound)?;
        let names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
        let mut pieces = pieces(&names).into_iter();
        let Some(first) = pieces.next() else { return self.mount.try_clone() };
        pieces.try_fold(self.mount.open_below(first)?, |dir, piece| dir.open_below(piece))
    }
}

/// The names on a way, as many together as the kernel takes in one path.
fn pieces<'n, 'p>(names: &'n [&'p str]) -> Vec<&'n [&'p str]> {
    const MAX_PATH: usize = 4095;
    let (mut pieces, mut rest) = (Vec::new(), names);
    while !rest.is_empty() {
        let mut length = 0;
        let fits = rest.iter().take_while(|name| {
            length += name.len() + 1;
            length <= MAX_PATH
        });
        let (piece, later) = rest.split_at(fits.count().max(1));
        pieces.push(piece);
        rest = later;
    }
    pieces
}

/// What comes after `above` in `path`; `None` if it is not below it.
pub(crate) fn strip<'p>(path: &'p str, above: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(above.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/'))
}

/// All hierarchies of this host, v1 first and in a fixed order, cgroup2 last; in each the node of the instance.
///
/// # Errors
/// [`CgroupError::NoHierarchy`] if cgroup2 can't be had; [`CgroupError::NoPlacement`]; what the kernel refuses.
pub(super) fn find(instance: &str, placements: &[Placement]) -> Result<Hierarchies, CgroupError> {
    let proc = ProcFs::open().map_err(CgroupError::system("opening /proc"))?;
    let own = proc.cgroups(std::process::id()).map_err(CgroupError::system("reading /proc/self/cgroup"))?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(CgroupError::system("reading /proc/self/mountinfo"))?;
    let mounts = mounts(&mountinfo);
    let mut names: Vec<String> =
        own.into_iter().map(|(name, _)| name).filter(|name| name != CGROUP2).collect();
    names.sort_unstable();
    let mut v1 = Vec::new();
    for name in names {
        let candidates = mounts.iter().filter(|mount| mount.shows(&name));
        if let Some((dir, mount)) = reachable(candidates, CGROUP1_MAGIC) {
            v1.push(place(name, Kind::V1, dir, mount.root.clone(), instance, placements)?);
        }
    }
    let (dir, root, detached) = cgroup2(&mounts)?;
    let mut v2 = place(CGROUP2.to_owned(), Kind::V2, dir, root, instance, placements)?;
    v2.detached = detached;
    Ok(Hierarchies { v1, v2 })
}

/// The mount that shows most of its hierarchy among those that can be reached and are inside of our cgroup namespace.
fn reachable<'m>(mounts: impl Iterator<Item = &'m Mount>, magic: u64) -> Option<(Dir, &'m Mount)> {
    let mut mounts: Vec<&Mount> = mounts.filter(|mount| mount.is_inside()).collect();
    mounts.sort_by_key(|mount| mount.root.trim_end_matches('/').len());
    mounts.into_iter().find_map(|mount| Some((open_mount(mount, magic).ok()??, mount)))
}

/// Opens a mount; `None` if another one lies on top of it.
fn open_mount(mount: &Mount, magic: u64) -> io::Result<Option<Dir>> {
    let dir = Dir::open(Path::new(&mount.point))?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", dir.as_fd().as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    Ok((id == Some(mount.id) && statfs_magic(&dir)? == magic).then_some(dir))
}

/// The v2 hierarchy: the host's mount, or where nobody has mounted it, one of our own that is attached nowhere.
fn cgroup2(mounts: &[Mount]) -> Result<(Dir, String, Option<OwnedFd>), CgroupError> {
    let candidates = || mounts.iter().filter(|mount| mount.kind == Kind::V2);
    if let Some((dir, mount)) = reachable(candidates(), CGROUP2_MAGIC) {
        return Ok((dir, mount.root.clone(), None));
    }
    // In the initial cgroup namespace a mount sets the options of the one superblock (nsdelegate …) anew, so a host that
    // has cgroup2 mounted where we can't reach it is left alone. In another namespace the options are not ours to set.
    let initial =
        std::fs::read_link("/proc/self/ns/cgroup").is_ok_and(|link| link.as_os_str() == INITIAL_NAMESPACE);
    if initial && candidates().next().is_some() {
        return Err(CgroupError::NoHierarchy);
    }
    let mount = mount_cgroup2_detached().map_err(|_| CgroupError::NoHierarchy)?;
    // Opened anew: what fsmount(2) gives is O_PATH and can't be listed.
    let dir = Dir::open(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))
        .map_err(CgroupError::system("opening the detached cgroup2"))?;
    Ok((dir, "/".to_owned(), Some(mount)))
}

fn place(
    name: String,
    kind: Kind,
    mount: Dir,
    mount_path: String,
    instance: &str,
    placements: &[Placement],
) -> Result<Hierarchy, CgroupError> {
    let given = placements.iter().find(|placement| same_hierarchy(&placement.hierarchy, &name));
    let (base, base_path) = match given {
        Some(placement) => (delegated(&mount, &mount_path, placement)?, placement.path.clone()),
        None => {
            let root = Node::new(
                mount.try_clone().map_err(CgroupError::system("duplicating a descriptor"))?,
                format!("{name}:{mount_path}"),
            );
            let own = format!("cgrant-{instance}");
            let path = format!("{}/{own}", mount_path.trim_end_matches('/'));
            (root.ensure(&own)?.0.into_dir(), path)
        }
    };
    let controllers = match kind {
        Kind::V1 => name.split(',').filter(|part| !part.starts_with("name=")).map(str::to_owned).collect(),
        Kind::V2 => Vec::new(),
    };
    let offered = match kind {
        Kind::V1 => Vec::new(),
        Kind::V2 => {
            let text = mount.read("cgroup.controllers", MAX_CONTROLLERS).unwrap_or_default();
            text.split_ascii_whitespace().map(str::to_owned).collect()
        }
    };
    let base = Node::new(base, format!("{name}:{base_path}"));
    let in_scope = given.is_some();
    Ok(Hierarchy {
        name,
        kind,
        controllers,
        offered,
        refused: Vec::new(),
        mount,
        mount_path,
        base,
        base_path,
        in_scope,
        detached: None,
    })
}

fn delegated(mount: &Dir, mount_path: &str, placement: &Placement) -> Result<Dir, CgroupError> {
    let missing =
        || CgroupError::NoPlacement { hierarchy: placement.hierarchy.clone(), path: placement.path.clone() };
    let below = strip(&placement.path, mount_path).filter(|below| !below.is_empty()).ok_or_else(missing)?;
    let mut dir = mount.try_clone().map_err(CgroupError::system("duplicating a descriptor"))?;
    for name in below.split('/') {
        dir = dir.open_dir(name).map_err(|_| missing())?;
    }
    Ok(dir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_is_too_long_for_one_path_is_gone_in_pieces() {
        let name = "x".repeat(255);
        let names = vec![name.as_str(); 40];
        let pieces = pieces(&names);
        assert_eq!(pieces.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [15, 15, 10]);
        assert!(pieces.iter().all(|piece| piece.join("/").len() < 4096));
        assert_eq!(pieces.concat(), names);
        assert!(super::pieces(&[]).is_empty());
    }

    #[test]
    fn paths_below_paths() {
        for (path, above, expect) in [
            ("/a/b", "/", Some("a/b")),
            ("/a/b", "/a", Some("b")),
            ("/a", "/a", Some("")),
            ("/ab", "/a", None),
            ("/", "/", Some("")),
            ("/../x", "/a", None),
        ] {
            assert_eq!(strip(path, above), expect, "{path} {above}");
        }
    }
}
