//! The original CGManager as a peer, where it is installed and can run: out of sight of the machine, whose `/run` and `/sys/fs/cgroup`
//! it would write to, and with the memory controller only.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    Bench,
    common::{Host, Kind, wait_until},
    peers::{is_installed, remove_cgroups},
};

/// How it is started. Its cgroup2 root is a cgroup of the benchmark's: there it makes a cgroup and enables controllers, and a mount
/// of cgroup2 from elsewhere would change the options of the machine's. That of memory is the machine's, as the broker's is.
const START: &str = r#"
echo $$ >"$1/cgroup.procs"
echo $$ >"$2/cgroup.procs"
exec unshare --mount --cgroup --propagation private sh -ec '
echo $$ >"$2/own/cgroup.procs"
mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/cgmanager
mount --bind "$3" /sys/fs/cgroup/cgmanager
mount -t tmpfs -o mode=0755 tmpfs /run
exec cgmanager --skip="$4"' sh "$@"
"#;

/// A running one. It ends, and its cgroups are gone, when this is dropped.
pub struct Original {
    child: Child,
    /// Its socket, where clients of the benchmark see it.
    pub socket: PathBuf,
    /// What it takes for the root of cgroup2.
    cgroup: PathBuf,
}

impl Original {
    /// Starts it; else says why not.
    pub fn start(bench: &Bench) -> Result<Self, String> {
        let host = &bench.lab.host;
        if !is_installed("cgmanager") {
            return Err("cgmanager: not installed".to_owned());
        }
        if host.kind != Kind::Hybrid || !host.is_v1("memory") {
            return Err(
                "cgmanager: not on this host, where memory is not on cgroup v1 beside cgroup v2".to_owned()
            );
        }
        let directory = bench.lab.scratch.join("original");
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let cgroup = host.cgroup2().root.join(format!("cgm-{}-original", bench.lab.instance));
        fs::create_dir_all(cgroup.join("own")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-ec", START, "sh"]).arg(&host.with("memory").unwrap().root).arg(&cgroup);
        command.arg(&directory).arg(all_but_memory(host));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut original = Self { child, socket: directory.join("sock"), cgroup };
        wait_until("CGManager listens", || {
            let end = original.child.try_wait().unwrap();
            assert!(end.is_none(), "CGManager ended: {end:?}");
            UnixStream::connect(&original.socket).is_ok()
        });
        Ok(original)
    }

    /// Its process, by program name.
    pub fn processes(&self) -> Vec<(u32, String)> {
        vec![(self.child.id(), "cgmanager".to_owned())]
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        remove_cgroups(&self.cgroup);
    }
}

// It would mount what nobody has mounted, and change settings at the root of what somebody has.
fn all_but_memory(host: &Host) -> String {
    let controllers = fs::read_to_string("/proc/cgroups").unwrap();
    let controllers = controllers.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned);
    let named = host.trees.iter().map(|tree| tree.name.clone()).filter(|name| name.starts_with("name="));
    let others = controllers.filter(|name| name != "memory" && !name.starts_with('#'));
    others.chain(named).collect::<Vec<_>>().join(",")
}
