//! The original CGManager beside the broker, where it is installed and can run: out of sight of the machine, whose `/run` and
//! `/sys/fs/cgroup` it would write to, and with some controllers only.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::{Host, Kind, Lab, cgmanager::Jail, wait_until};

/// How it is started: its directory, its cgroup, the program, its options, and the roots of the controllers' hierarchies. Its cgroup2
/// root is a cgroup of the caller's: there it makes a cgroup and enables controllers, and a mount of cgroup2 from elsewhere would
/// change the options of the machine's. Those of the controllers are the machine's, as the broker's are.
const START: &str = r#"
directory=$1 cgroup=$2 program=$3 skip=$4 allow=$5
shift 5
for root in "$@"; do echo $$ >"$root/cgroup.procs"; done
echo $$ >"$cgroup/cgroup.procs"
exec unshare --mount --cgroup --propagation private sh -ec '
echo $$ >"$2/own/cgroup.procs"
mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/cgmanager
mount --bind "$1" /sys/fs/cgroup/cgmanager
mount -t tmpfs -o mode=0755 tmpfs /run
exec "$3" "$4" "$5"' sh "$directory" "$cgroup" "$program" "$skip" "$allow"
"#;

/// How a command is started where the socket in its directory is where its clients look for it.
const IN_SIGHT: &str = r#"
directory=$1
shift
mount -t tmpfs -o mode=0755 tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/cgmanager
mount --bind "$directory" /sys/fs/cgroup/cgmanager
exec "$@"
"#;

/// A running one. It ends, and its cgroups are gone, when this is dropped.
pub struct Original {
    child: Child,
    /// Its socket, where clients see it.
    pub socket: PathBuf,
    // What it takes for the root of cgroup2: emptied by its end.
    _cgroup: Jail,
}

impl Original {
    /// Starts this program with these controllers; else says why not.
    pub fn start(lab: &Lab, program: &str, controllers: &[&str]) -> Result<Self, String> {
        let host = &lab.host;
        if host.kind != Kind::Hybrid || !controllers.iter().all(|controller| host.is_v1(controller)) {
            let names = controllers.join(", ");
            return Err(format!(
                "cgmanager: not on this host, where {names} is not on cgroup v1 beside cgroup v2"
            ));
        }
        let directory = lab.scratch.join("original");
        fs::create_dir(&directory).map_err(|error| error.to_string())?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("/cgm-{}-original", lab.instance);
        let cgroup = Jail { dir: host.cgroup2().root.join(&path[1..]), path };
        fs::create_dir_all(cgroup.dir.join("own")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-ec", START, "sh"]).arg(&directory).arg(&cgroup.dir).arg(program);
        command.arg(format!("--skip={}", all_but(host, controllers)));
        command.arg(format!("--allow-autoremove-premounted={}", controllers.join(",")));
        command.args(controllers.iter().map(|controller| &host.with(controller).unwrap().root));
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.scratch.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        let mut original = Self { child, socket: directory.join("sock"), _cgroup: cgroup };
        wait_until("CGManager listens", || {
            let end = original.child.try_wait().unwrap();
            assert!(end.is_none(), "CGManager ended: {end:?}");
            UnixStream::connect(&original.socket).is_ok()
        });
        Ok(original)
    }

    /// The command, started by root where this one's socket is where its clients look for it, with nothing else of CGManager's and no
    /// cgroups.
    pub fn in_sight(&self, command: &Command) -> Command {
        let mut inside = Command::new("unshare");
        inside.args(["--mount", "--propagation", "private", "sh", "-ec", IN_SIGHT, "sh"]);
        inside.arg(self.socket.with_file_name("")).arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
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
        let _ = fs::remove_dir_all(self.socket.with_file_name(""));
    }
}

// It would mount what nobody has mounted, and change settings at the root of what somebody has.
fn all_but(host: &Host, kept: &[&str]) -> String {
    let controllers = fs::read_to_string("/proc/cgroups").unwrap();
    let controllers = controllers.lines().filter_map(|line| line.split('\t').next()).map(str::to_owned);
    let named = host.trees.iter().map(|tree| tree.name.clone()).filter(|name| name.starts_with("name="));
    let others = controllers.filter(|name| !kept.contains(&name.as_str()) && !name.starts_with('#'));
    others.chain(named).collect::<Vec<_>>().join(",")
}
