//! The floor: the system calls that nobody can do without for what a grant is.
//!
//! They are not written down here. A grant that the broker made is compared with fresh cgroups; the directories,
//! and what differs in them (values, owners, modes), is what the floor makes and removes.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, openat, unlinkat};

use crate::common::{Host, Lab, Process, User, checker};

/// Files that are events or counters, not settings.
const NO_SETTINGS: [&str; 4] = ["cgroup.procs", "cgroup.threads", "tasks", "cgroup.event_control"];
const ORDER: [&str; 4] = ["payload", "monitor", "children", ""];

/// One system call, or open, write and close. Paths are relative to the directory of an instance.
enum Step {
    Mkdir { tree: usize, path: String },
    Write { tree: usize, path: String, value: String },
    Chown { tree: usize, path: String, uid: u32, gid: u32 },
    Chmod { tree: usize, path: String, mode: u32 },
}

/// The calls, and directories of its own to make them in.
pub struct Floor {
    tops: Vec<(PathBuf, OwnedFd)>,
    steps: Vec<Step>,
    /// The first id of the map.
    first: u32,
}

impl Floor {
    /// Learns from the only grant that `user` has.
    pub fn learn(lab: &Lab, user: &User, first: u32) -> Self {
        let bases = checker::bases(&lab.host, &lab.instance);
        let mut floor = Self { tops: Vec::new(), steps: Vec::new(), first };
        for (name, base) in &bases {
            let top = make_top(&lab.host, base);
            let fresh = top.join("fresh");
            fs::create_dir(&fresh).unwrap();
            let directory =
                openat(CWD, &top, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            floor.tops.push((top, directory.unwrap()));
            floor.learn_tree(name == "cgroup2", base, &format!("u{}", user.uid), &fresh);
            fs::remove_dir(fresh).unwrap();
        }
        floor
    }

    fn learn_tree(&mut self, v2: bool, base: &Path, account: &str, fresh: &Path) {
        let tree = self.tops.len() - 1;
        let grants = subdirectories(&base.join(account));
        assert_eq!(grants.len(), 1, "the floor is learnt from one grant");
        let grant = format!("{account}/{}", grants[0]);
        let parts = subdirectories(&base.join(&grant));
        let mut paths = vec![account.to_owned(), grant.clone()];
        paths.extend(parts.iter().map(|part| format!("{grant}/{part}")));
        for path in &paths {
            self.steps.push(Step::Mkdir { tree, path: path.clone() });
            self.learn_values(tree, base, path, fresh);
        }
        if v2 {
            for path in &paths {
                self.learn_owners(tree, base, path);
            }
        }
    }

    fn learn_values(&mut self, tree: usize, base: &Path, path: &str, fresh: &Path) {
        for file in files(&base.join(path)) {
            let (now, before) = (base.join(path).join(&file), fresh.join(&file));
            let writable = fs::metadata(&now).is_ok_and(|meta| meta.mode() & 0o600 == 0o600);
            if !writable || NO_SETTINGS.contains(&file.as_str()) {
                continue;
            }
            let (Ok(value), Ok(before)) = (fs::read_to_string(&now), fs::read_to_string(&before)) else {
                continue;
            };
            if value == before {
                continue;
            }
            let value = match file.as_str() {
                "cgroup.subtree_control" => {
                    value.split_whitespace().map(|name| format!("+{name} ")).collect()
                }
                _ => value.trim().to_owned(),
            };
            self.steps.push(Step::Write { tree, path: format!("{path}/{file}"), value });
        }
    }

    fn learn_owners(&mut self, tree: usize, base: &Path, path: &str) {
        let all = files(&base.join(path)).into_iter().map(|file| format!("{path}/{file}"));
        for path in all.chain([path.to_owned()]) {
            let meta = fs::metadata(base.join(&path)).unwrap();
            if (meta.uid(), meta.gid()) != (0, 0) {
                self.steps.push(Step::Chown { tree, path: path.clone(), uid: meta.uid(), gid: meta.gid() });
            }
            let mode = meta.mode() & 0o777;
            if meta.is_file() && mode & 0o020 != 0 {
                self.steps.push(Step::Chmod { tree, path, mode });
            }
        }
    }

    /// How many calls making and removing take, maps left out.
    pub fn describe(&self) -> String {
        let count = |is: fn(&Step) -> bool| self.steps.iter().filter(|step| is(step)).count();
        let directories = count(|step| matches!(step, Step::Mkdir { .. }));
        format!(
            "{directories} mkdir, {} writes, {} chown and chmod, 2 maps; {directories} rmdir",
            count(|step| matches!(step, Step::Write { .. })),
            count(|step| matches!(step, Step::Chown { .. } | Step::Chmod { .. }))
        )
    }

    /// Makes what a grant is and maps `process`'s user namespace.
    pub fn create(&self, process: &Process) {
        for step in &self.steps {
            self.take(step);
        }
        let map = format!("0 {} 65536\n", self.first);
        fs::write(format!("/proc/{}/uid_map", process.pid), &map).unwrap();
        fs::write(format!("/proc/{}/gid_map", process.pid), &map).unwrap();
    }

    fn take(&self, step: &Step) {
        let top = |tree: &usize| &self.tops[*tree].1;
        match step {
            Step::Mkdir { tree, path } => mkdirat(top(tree), path, Mode::from_raw_mode(0o755)),
            Step::Write { tree, path, value } => {
                let file = openat(top(tree), path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
                rustix::io::write(&file, value.as_bytes()).map(drop)
            }
            Step::Chown { tree, path, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                chownat(top(tree), path, Some(uid), Some(gid), AtFlags::empty())
            }
            Step::Chmod { tree, path, mode } => {
                chmodat(top(tree), path, Mode::from_raw_mode(*mode), AtFlags::empty())
            }
        }
        .unwrap();
    }

    /// Removes it.
    pub fn release(&self) {
        for step in self.steps.iter().rev() {
            if let Step::Mkdir { tree, path } = step {
                unlinkat(&self.tops[*tree].1, path, AtFlags::REMOVEDIR).unwrap();
            }
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for (top, _) in &self.tops {
            let _ = fs::remove_dir(top);
        }
    }
}

// A directory beside the instance's, prepared like it.
fn make_top(host: &Host, base: &Path) -> PathBuf {
    let top = PathBuf::from(format!("{}-floor", base.display()));
    fs::create_dir(&top).unwrap();
    // What the broker set once, at its start, is no part of a grant's price.
    for file in ["cpuset.cpus", "cpuset.mems", "cgroup.clone_children"] {
        if host.is_v1("cpuset")
            && let Ok(value) = fs::read_to_string(base.join(file))
        {
            fs::write(top.join(file), value.trim()).unwrap();
        }
    }
    if let Ok(controllers) = fs::read_to_string(base.join("cgroup.subtree_control")) {
        let value: String = controllers.split_whitespace().map(|name| format!("+{name} ")).collect();
        fs::write(top.join("cgroup.subtree_control"), value).unwrap();
    }
    top
}

fn subdirectories(directory: &Path) -> Vec<String> {
    let mut names = entries(directory, true);
    names.sort_by_key(|name| ORDER.iter().position(|known| known == name));
    names
}

fn files(directory: &Path) -> Vec<String> {
    let mut names = entries(directory, false);
    names.sort();
    names
}

fn entries(directory: &Path, directories: bool) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let wanted = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir() == directories));
    wanted.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
