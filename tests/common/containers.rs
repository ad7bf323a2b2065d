//! Containers as an ordinary user runs them, with the command alone, and the roots that they are made of.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use super::{Broker, Lab, Network, User};

/// Where the packaged broker of a virtual machine listens.
pub const PACKAGED: &str = "/run/cgrant/public/bus";

/// The command as the user, against the test's broker.
pub struct Shell<'a> {
    user: &'a User,
    socket: PathBuf,
    programs: PathBuf,
    network: Option<&'a Network<'a>>,
}

impl<'a> Shell<'a> {
    pub fn new(lab: &Lab, user: &'a User, broker: &Broker) -> Self {
        Self { user, socket: broker.socket().to_owned(), programs: lab.programs.clone(), network: None }
    }

    /// In the network that the broker has for a host.
    pub fn beside(lab: &Lab, user: &'a User, broker: &Broker, network: &'a Network<'a>) -> Self {
        Self { network: Some(network), ..Self::new(lab, user, broker) }
    }

    /// With the packaged broker of a virtual machine.
    pub fn packaged(lab: &Lab, user: &'a User) -> Self {
        Self { user, socket: PACKAGED.into(), programs: lab.programs.clone(), network: None }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        if let Some(network) = self.network {
            return network.cgrant_at(self.user, &self.socket, words);
        }
        let mut command = self.user.command(self.programs.join("cgrant"));
        command.args(words).env("CGRANT_SOCKET", &self.socket);
        command
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    pub fn done(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(
            output.status.code(),
            Some(0),
            "cgrant {words:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Must fail so, in one sentence with these words.
    #[track_caller]
    pub fn fails(&self, words: &[&str], code: i32, saying: &str) {
        let output = self.output(words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "cgrant {words:?}: {}{said}", text(&output.stdout));
        assert!(said.contains(saying), "cgrant {words:?}: {said}");
    }

    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let printed = self.done(&[&["--format", "json"], words].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    pub fn state(&self, name: &str) -> String {
        let list = self.json(&["list"]);
        let found = list.as_array().unwrap().iter().find(|item| item["name"] == name);
        found.map_or_else(|| "none".to_owned(), |item| item["state"].as_str().unwrap().to_owned())
    }

    pub fn import(&self, lab: &Lab, tree: &Path, alias: &str) {
        let archive = lab.scratch.join(format!("{alias}.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--xattrs", "-C"]).arg(tree).arg("-cf").arg(&archive).arg(".");
        assert!(tar.status().unwrap().success());
        fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
        self.done(&["image", "import", archive.to_str().unwrap(), "--alias", alias, "--quiet"]);
        fs::remove_file(archive).unwrap();
    }

    /// Into the innermost of these containers, each in the one before, by its root.
    #[track_caller]
    pub fn import_inside(&self, levels: &[&str], archive: &Path, alias: &str) {
        let words = inside(levels, &["cgrant", "image", "import", "-", "--alias", alias, "--quiet"]);
        let output = self.command(&words).stdin(File::open(archive).unwrap()).output().unwrap();
        assert!(output.status.success(), "{levels:?}: {}{}", text(&output.stdout), text(&output.stderr));
    }
}

/// What the command is told so that this is executed in the innermost of these containers, each in the one before. Without any, the
/// words are the command's own.
pub fn inside<'w>(levels: &[&'w str], words: &[&'w str]) -> Vec<&'w str> {
    let mut all = Vec::new();
    for name in levels {
        all.extend(["cgrant", "exec", name, "--"]);
    }
    all.extend(words);
    assert_eq!(all.remove(0), "cgrant");
    all
}

/// What the command is told so that this is executed in the innermost of these containers, in each by this user of it.
pub fn by<'w>(users: &[&'w str], levels: &[&'w str], words: &[&'w str]) -> Vec<&'w str> {
    let mut all = Vec::new();
    for (name, user) in levels.iter().zip(users) {
        all.extend(["cgrant", "exec", name, "--user", user, "--"]);
    }
    all.extend(words);
    all.remove(0);
    all
}

/// Imports an archive there.
#[track_caller]
pub fn import_by(shell: &Shell<'_>, archive: &Path, users: &[&str], levels: &[&str]) {
    let words = by(users, levels, &["cgrant", "image", "import", "-", "--alias", "debian", "--quiet"]);
    let output = shell.command(&words).stdin(fs::File::open(archive).unwrap()).output().unwrap();
    assert!(output.status.success(), "{users:?}: {}{}", text(&output.stdout), text(&output.stderr));
}

/// Names and states of what `cgrant --format json list` printed.
pub fn states(printed: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(printed).unwrap();
    let state =
        |item: &Value| format!("{} {}", item["name"].as_str().unwrap(), item["state"].as_str().unwrap());
    list.as_array().unwrap().iter().map(state).collect()
}

/// What `cgrant --format json list --tree` printed: names and states, each with those inside of it.
pub fn tree(printed: &str) -> String {
    fn all(list: &Value) -> String {
        let one = |item: &Value| {
            format!(
                "{} {} [{}]",
                item["name"].as_str().unwrap(),
                item["state"].as_str().unwrap(),
                all(&item["inside"])
            )
        };
        list.as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(" ")
    }
    all(&serde_json::from_str(printed).unwrap())
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A root with busybox as everything.
pub fn busybox(lab: &Lab) -> PathBuf {
    let root = lab.scratch.join("busybox");
    for name in ["", "bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "tmp"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(program.expect("busybox-static is not installed"), root.join("bin/busybox")).unwrap();
    for applet in [
        "cat", "chmod", "echo", "grep", "hostname", "id", "ip", "kill", "ls", "mv", "ping", "poweroff", "ps",
        "reboot", "rm", "sh", "sleep", "stat", "stty", "tail", "touch", "true", "tty", "wc",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::respawn:/bin/sh -c 'echo ready; exec /bin/sleep 10000'\n")
        .unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home:/bin/sh\n")
        .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nann:x:1000:\n").unwrap();
    fs::write(root.join("etc/hosts"), "").unwrap();
    fs::write(root.join("etc/hostname"), "image\n").unwrap();
    root
}

/// A root with busybox and the command with all that it is linked with, as an archive.
pub fn busybox_with_command(lab: &Lab) -> PathBuf {
    let root = busybox(lab);
    let place = |file: &Path, at: &Path| {
        let at = root.join(at.strip_prefix("/").unwrap());
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::copy(file, at).unwrap();
    };
    let program = lab.programs.join("cgrant");
    place(&program, Path::new("/bin/cgrant"));
    let libraries = text(&Command::new("ldd").arg(&program).output().unwrap().stdout);
    for path in libraries.split_ascii_whitespace().filter(|word| word.starts_with('/')) {
        place(&fs::canonicalize(path).unwrap(), Path::new(path));
    }
    // What is mounted over where there is a network.
    fs::write(root.join("etc/resolv.conf"), "").unwrap();
    let archive = lab.scratch.join("small.tar");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--owner=0", "--group=0", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg(".");
    assert!(tar.status().unwrap().success());
    archive
}

/// Where a virtual machine has the root of a Debian container; see tests/vm/images.
const DEBIAN: &str = "/opt/debian.tar";

/// Debian with the command in it, as an archive; in a virtual machine of that machine's own suite.
pub fn debian_with_command(lab: &Lab) -> PathBuf {
    let archive = lab.scratch.join("debian.tar");
    let tar = |words: &[&str], tree: &Path| {
        let done = Command::new("tar").args(words).arg(&archive).arg("-C").arg(tree).arg(".").status();
        assert!(done.unwrap().success());
    };
    match Path::new(DEBIAN).exists() {
        true => drop(fs::copy(DEBIAN, &archive).unwrap()),
        false => tar(&["--numeric-owner", "--xattrs", "-cf"], &debian("bookworm")),
    }
    let more = lab.scratch.join("more");
    let program = more.join("usr/local/bin/cgrant");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::copy(lab.programs.join("cgrant"), &program).unwrap();
    tar(&["--numeric-owner", "--owner=0", "--group=0", "-rf"], &more);
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
    archive
}

/// A Debian as mmdebstrap makes it, made once.
pub fn debian(suite: &str) -> PathBuf {
    debian_with(suite, suite, "")
}

/// One that has podman.
pub fn debian_with_podman(suite: &str) -> PathBuf {
    const MORE: &str = ",podman,crun,netavark,aardvark-dns,fuse-overlayfs,iptables,nftables,busybox-static";
    debian_with(suite, &format!("{suite}-podman"), MORE)
}

fn debian_with(suite: &str, name: &str, more: &str) -> PathBuf {
    const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,login,passwd,util-linux,procps";
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !made.exists() {
        let unfinished = PathBuf::from(format!("{}.new", made.display()));
        let _ = fs::remove_dir_all(&unfinished);
        let include = format!("--include={PACKAGES}{more}");
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--format=directory", "--variant=minbase", &include, suite])
            .arg(&unfinished);
        assert!(command.status().expect("mmdebstrap is not installed").success());
        fs::rename(unfinished, &made).unwrap();
    }
    made
}
