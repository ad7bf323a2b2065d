//! Other people's launchers, each set up to run /bin/true in the same busybox root, cold, from nothing to gone.
//!
//! What they leave behind on the machine by design (pivot cgroups, state) is removed afterwards if it was not there before.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    Bench,
    common::{Host, User},
    runner::View,
};

/// First id of the unprivileged peers' maps; its own range, away from the broker's.
const SUBIDS: (u32, u32) = (1_000_000, 65_536);

/// One peer.
pub struct Peer {
    pub name: String,
    pub view: View,
    /// Runs as the unprivileged user.
    pub user: bool,
    /// Needs subordinate ids in /etc and cgroups of its own.
    pub delegated: bool,
    /// `{id}` stands for a name that is new each time.
    pub command: Vec<String>,
}

/// The peers' files.
pub struct Peers {
    pub directory: PathBuf,
    pivots: Vec<PathBuf>,
    delegated: Vec<PathBuf>,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn root_peer(name: &str, view: View, command: &str) -> Peer {
    Peer { name: name.to_owned(), view, user: false, delegated: false, command: words(command) }
}

fn user_peer(name: &str, command: &str) -> Peer {
    Peer { user: true, ..root_peer(name, View::Machine, command) }
}

impl Peers {
    /// Makes the root directory and every peer's configuration.
    pub fn prepare(bench: &Bench) -> Self {
        let directory = bench.lab.scratch.join("peers");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        make_root(&directory.join("root"));
        let names = ["lxc.pivot", "libpod_parent", "payload", "supervisor"];
        let trees = bench.lab.host.trees.iter();
        let hierarchies = trees.flat_map(|tree| names.map(|name| tree.root.join(name)));
        let peers = Self {
            directory,
            pivots: hierarchies.filter(|pivot| !pivot.exists()).collect(),
            delegated: Vec::new(),
        };
        peers.write_lxc(&bench.user);
        peers.write_etc(&bench.user);
        peers
    }

    /// The busybox root directory.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where the files are that stand in for those of /etc.
    pub fn etc(&self) -> PathBuf {
        self.directory.join("etc")
    }

    /// All peers that can run on this host and are installed; the names of the others, with the reason.
    pub fn all(&self, host: &Host) -> (Vec<Peer>, Vec<String>) {
        use crate::common::Kind;
        let root = self.root().display().to_string();
        let place = self.directory.display();
        let bwrap = format!("bwrap --unshare-all --bind {root} / --proc /proc --dev /dev /bin/true");
        let unshare = format!("unshare -mpuinCUrf --root={root} --mount-proc /bin/true");
        let lxc = |config: &str| {
            format!("lxc-execute -P {place}/{config} -n cgb{{id}} -f {place}/{config}.conf -- /bin/true")
        };
        let nspawn =
            format!("systemd-nspawn -q --register=no --keep-unit --private-network -D {root} /bin/true");
        let oci = |program: &str, bundle: &str| {
            format!("{program} --root {place}/state-{program} run -b {place}/{bundle} cgb{{id}}")
        };
        let mut peers = vec![
            root_peer("fork + exec of /bin/true, root", View::Machine, "/bin/true"),
            user_peer("fork + exec of /bin/true, user", "/bin/true"),
            root_peer("unshare, all namespaces, root", View::Machine, &unshare),
            user_peer("unshare, all namespaces, user", &unshare),
            root_peer("bwrap --unshare-all, root", View::Machine, &bwrap),
            user_peer("bwrap --unshare-all, user", &bwrap),
            root_peer("lxc-execute, root", View::Machine, &lxc("lxc")),
            root_peer("systemd-nspawn, root", View::Machine, &nspawn),
            Peer { delegated: true, ..user_peer("lxc-execute, user with subordinate ids", &lxc("lxc-user")) },
        ];
        let mut absent = Vec::new();
        for program in ["crun", "runc"] {
            if !is_installed(program) {
                absent.push(format!("{program}: not installed"));
                continue;
            }
            self.write_bundle(program, "v1");
            self.write_bundle(program, "v2");
            if host.kind == Kind::V2 {
                absent.push(format!("{program}, cgroup v1: this host has none"));
            } else {
                peers.push(root_peer(
                    &format!("{program} run, cgroup v1, root"),
                    View::V1,
                    &oci(program, &format!("{program}-v1")),
                ));
            }
            if host.kind == Kind::V1 {
                absent.push(format!("{program}, cgroup v2: this host mounts none"));
            } else {
                peers.push(root_peer(
                    &format!("{program} run, cgroup v2, root"),
                    View::V2,
                    &oci(program, &format!("{program}-v2")),
                ));
            }
        }
        for version in [View::V1, View::V2] {
            // Privileged, and without a limit: else it asks for controllers and BPF programs that not every host lets it have.
            let podman = format!(
                "podman --root {place}/podman --runroot {place}/podman-run --log-level error --cgroup-manager cgroupfs \
                 --runtime crun run --rm --privileged --pids-limit 0 --network none --ulimit nofile=1024:1024 \
                 --ulimit nproc=1024:1024 --rootfs {root} /bin/true"
            );
            match (version, host.kind) {
                (View::V1, Kind::V2) => absent.push("podman, cgroup v1: this host has none".to_owned()),
                (View::V2, Kind::V1) => absent.push("podman, cgroup v2: this host mounts none".to_owned()),
                _ => {
                    let name = format!(
                        "podman run --rm, cgroup {}, root",
                        if version == View::V1 { "v1" } else { "v2" }
                    );
                    peers.push(root_peer(&name, version, &podman));
                }
            }
        }
        peers.retain(|peer| {
            let there = is_installed(&peer.command[0]);
            if !there {
                absent.push(format!("{}: not installed", peer.name));
            }
            there
        });
        (peers, absent)
    }

    /// Gives the unprivileged lxc the cgroups that it needs, and puts its runner into them.
    pub fn delegate(&mut self, host: &Host, user: &User, runner: u32) {
        for tree in &host.trees {
            let cgroup = tree.root.join(format!("cgrant-bench-{}", std::process::id()));
            fs::create_dir(&cgroup).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(tree.root.join(file)) {
                    fs::write(cgroup.join(file), value.trim()).unwrap();
                }
            }
            let _ = fs::write(cgroup.join("cgroup.clone_children"), "1");
            chown(&cgroup, Some(user.uid), Some(user.gid)).unwrap();
            for entry in fs::read_dir(&cgroup).unwrap().flatten() {
                chown(entry.path(), Some(user.uid), Some(user.gid)).unwrap();
            }
            fs::write(cgroup.join("cgroup.procs"), runner.to_string()).unwrap();
            self.delegated.push(cgroup);
        }
    }

    // As `runc spec` gives it, without a terminal. On v2 in a cgroup namespace, which it is usual to have there, and without the
    // rules for devices: they cost the loading of a BPF program that has nothing to do with the rest.
    fn write_bundle(&self, program: &str, version: &str) {
        let bundle = self.directory.join(format!("{program}-{version}"));
        fs::create_dir(&bundle).unwrap();
        let status = Command::new(program).arg("spec").current_dir(&bundle).status().unwrap();
        assert!(status.success(), "{program} spec");
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/true"]);
        config["root"] = json!({ "path": self.root(), "readonly": false });
        if version == "v2" {
            config["linux"]["resources"] = json!({});
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            namespaces.push(json!({ "type": "cgroup" }));
        }
        fs::write(path, serde_json::to_string(&config).unwrap()).unwrap();
    }

    fn write_lxc(&self, user: &User) {
        let (first, count) = SUBIDS;
        let config = |more: &str| {
            format!(
                "lxc.rootfs.path = dir:{}\nlxc.uts.name = bench\nlxc.net.0.type = empty\nlxc.mount.auto = proc:mixed sys:ro\n\
                 lxc.autodev = 1\nlxc.pty.max = 1024\nlxc.tty.max = 0\nlxc.apparmor.profile = unconfined\n{more}",
                self.root().display()
            )
        };
        fs::write(self.directory.join("lxc.conf"), config("")).unwrap();
        let map = format!("lxc.idmap = u 0 {first} {count}\nlxc.idmap = g 0 {first} {count}\n");
        fs::write(self.directory.join("lxc-user.conf"), config(&map)).unwrap();
        for name in ["lxc", "lxc-user"] {
            fs::create_dir(self.directory.join(name)).unwrap();
        }
        chown(self.directory.join("lxc-user"), Some(user.uid), Some(user.gid)).unwrap();
    }

    // The machine's own, with the user and its subordinate ids.
    fn write_etc(&self, user: &User) {
        let etc = self.etc();
        fs::create_dir(&etc).unwrap();
        let (first, count) = SUBIDS;
        let lines = [
            ("passwd", format!("bench:x:{}:{}::{}:/bin/sh\n", user.uid, user.gid, user.home.display())),
            ("group", format!("bench:x:{}:\n", user.gid)),
            ("subuid", format!("bench:{first}:{count}\n")),
            ("subgid", format!("bench:{first}:{count}\n")),
        ];
        for (file, line) in lines {
            let text = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
            fs::write(etc.join(file), text + &line).unwrap();
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for pivot in &self.pivots {
            // One that somebody else uses meanwhile is refused.
            remove_cgroups(pivot);
        }
        for cgroup in &self.delegated {
            remove_cgroups(cgroup);
        }
    }
}

/// Removes a cgroup with those below it; one that is in use is left.
pub fn remove_cgroups(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// Is there such a program in `PATH`?
pub fn is_installed(program: &str) -> bool {
    find(program).is_some()
}

/// Where in `PATH` there is such a program.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').map(|directory| Path::new(directory).join(program)).find(|place| place.exists())
}

fn make_root(root: &Path) {
    for directory in
        ["bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"]
    {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static is not installed"), root.join("bin/busybox")).unwrap();
    for name in ["sh", "true"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
}
