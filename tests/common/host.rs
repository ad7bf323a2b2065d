//! What kind of host the test runs on, and where its cgroup trees are. Knows nothing of the broker's own
//! detection: it reads /proc/self/mountinfo by itself.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The arrangement of cgroup hierarchies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    V1,
    Hybrid,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// `cgroup2`, or the controllers or `name=` of a v1 hierarchy.
    pub name: String,
    /// Where its root is.
    pub root: PathBuf,
}

/// The host.
pub struct Host {
    pub kind: Kind,
    pub systemd: bool,
    pub trees: Vec<Tree>,
    // Keeps a detached cgroup2 tree alive on hosts that have none mounted; the path in `trees` leads through it.
    _cgroup2: Option<OwnedFd>,
}

impl Host {
    /// Looks at the host that this runs on.
    pub fn look() -> Self {
        let mut trees = mounted_trees(&fs::read_to_string("/proc/self/mountinfo").unwrap());
        let v2 = trees.iter().any(|tree| tree.name == "cgroup2");
        let v1 = trees.iter().any(|tree| tree.name != "cgroup2");
        let kind = match (v1, v2) {
            (true, false) => Kind::V1,
            (true, true) => Kind::Hybrid,
            _ => Kind::V2,
        };
        // The kernel has one cgroup2 hierarchy whether or not it is mounted. Only where nothing mounts it may it be
        // mounted again: a second mount would change the options of the first.
        let detached = (!v2).then(detached_cgroup2);
        if let Some(fd) = &detached {
            trees.push(Tree {
                name: "cgroup2".into(),
                root: format!("/proc/self/fd/{}", fd.as_raw_fd()).into(),
            });
        }
        Self { kind, systemd: Path::new("/run/systemd/system").exists(), trees, _cgroup2: detached }
    }

    /// The cgroup2 tree.
    pub fn cgroup2(&self) -> &Tree {
        self.trees.iter().find(|tree| tree.name == "cgroup2").unwrap()
    }

    /// The tree that has a controller.
    pub fn with(&self, controller: &str) -> Option<&Tree> {
        let v1 = self
            .trees
            .iter()
            .find(|tree| tree.name != "cgroup2" && tree.name.split(',').any(|c| c == controller));
        v1.or_else(|| {
            let controllers = fs::read_to_string(self.cgroup2().root.join("cgroup.controllers")).unwrap();
            controllers.split_whitespace().any(|c| c == controller).then(|| self.cgroup2())
        })
    }

    /// Is the controller on a v1 hierarchy?
    pub fn is_v1(&self, controller: &str) -> bool {
        self.with(controller).is_some_and(|tree| tree.name != "cgroup2")
    }
}

fn mounted_trees(mountinfo: &str) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let place: Vec<&str> = left.split(' ').collect();
        let kind: Vec<&str> = right.split(' ').collect();
        if place[3] != "/" {
            continue;
        }
        let name = match kind[0] {
            "cgroup2" => "cgroup2".to_owned(),
            "cgroup" => v1_name(kind[2]),
            _ => continue,
        };
        if !trees.iter().any(|tree| tree.name == name) {
            trees.push(Tree { name, root: place[4].into() });
        }
    }
    trees
}

// The options of a v1 mount beside its controllers.
fn v1_name(options: &str) -> String {
    let others = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all", "none"];
    let names: Vec<&str> =
        options.split(',').filter(|o| !others.contains(o) && !o.starts_with("release_agent=")).collect();
    names.join(",")
}

fn detached_cgroup2() -> OwnedFd {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_create(&context).unwrap();
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}
