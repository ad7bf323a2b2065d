//! Debian's podman, as the root of a container has it, and the root of a container inside that one: other people's containers in
//! ours.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{
    Lab, checker,
    containers::{Shell, debian_with_podman, inside, text},
};

const POLICY: &str = "[[rule]]\nname = \"engines\"\naccess.devices = [\"/dev/fuse\", \"/dev/net/tun\"]\n";

/// An image of busybox alone.
const IMAGE: &str = "
    mkdir -p /tmp/box/bin /tmp/box/srv; cd /tmp/box; cp /bin/busybox bin/; echo served >srv/index.html
    for name in cat grep httpd id mount sh sleep tail wget; do ln -s busybox bin/$name; done
    tar -c . | podman import --quiet - box:1";

/// Networks: from the engine's own host to what it publishes, and between two of its containers.
const SERVED: &str = "
    podman run --detach --name web --publish 8080:80 $without box:1 httpd -f -h /srv >/dev/null
    for try in $(seq 100); do busybox wget -q -O - http://127.0.0.1:8080/ && break; sleep 0.2; done
    address=$(podman inspect --format '{{.NetworkSettings.IPAddress}}' web)
    podman run --rm $without box:1 wget -q -O - http://$address/";

/// Its cgroup in the tree of the container around it, stopped and running; a command in it.
const MANAGED: &str = "
    pid=$(podman inspect --format '{{.State.Pid}}' web); cgroup=$(sed -n s/^0:://p /proc/$pid/cgroup)
    case $cgroup in /machine.slice/libpod-*.scope/*) echo delegated;; esac
    podman pause web >/dev/null; grep frozen /sys/fs/cgroup$cgroup/cgroup.events
    podman unpause web >/dev/null; podman exec web sh -c 'cat /srv/index.html; cat /proc/self/cgroup | tail -n 1'";

const BUILT: &str = "
    printf 'FROM box:1\\nRUN echo built >/srv/made\\n' | podman build --quiet --tag made - >/dev/null
    podman run --rm $without --network none made cat /srv/made";

const DEVICE: &str = "podman run --rm $without --network none --device /dev/net/tun box:1 sh -c ': <>/dev/net/tun && echo opened'";

// One of the containers, and those around it.
struct Level<'a> {
    shell: &'a Shell<'a>,
    path: &'a [&'a str],
    // What podman has to go without here.
    without: &'static str,
}

impl Level<'_> {
    fn output(&self, script: &str) -> std::process::Output {
        let script = format!("set -eu; without='{}'; {script}", self.without);
        self.shell.output(&inside(self.path, &["bash", "-o", "pipefail", "-c", &script]))
    }

    #[track_caller]
    fn done(&self, script: &str) -> String {
        let output = self.output(script);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{:?}: {script}: {said}{}", self.path, text(&output.stderr));
        said
    }

    #[track_caller]
    fn fails(&self, script: &str, words: &str) {
        let output = self.output(script);
        assert!(!output.status.success(), "{:?}: {script}", self.path);
        assert!(text(&output.stderr).contains(words), "{:?}: {}", self.path, text(&output.stderr));
    }
}

fn archive(lab: &Lab) -> PathBuf {
    let archive = lab.scratch.join("podman.tar");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "-cf"]).arg(&archive).arg("-C");
    assert!(tar.arg(debian_with_podman("bookworm")).arg(".").status().unwrap().success());
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
    archive
}

// Given from outside, to the container that is the last one.
fn put(shell: &Shell<'_>, levels: &[&str], file: &Path, script: &str) {
    let mut command = shell.command(&inside(levels, &["sh", "-c", script]));
    let output = command.stdin(File::open(file).unwrap()).output().unwrap();
    assert!(output.status.success(), "{script}: {}{}", text(&output.stdout), text(&output.stderr));
}

fn podman_runs_at_two_levels(lab: &Lab) {
    lab.write_policy(POLICY);
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let archive = archive(lab);
    shell.done(&["image", "import", archive.to_str().unwrap(), "--alias", "podman", "--quiet"]);
    let wishes = ["--nesting", "--device", "fuse", "--device", "net/tun", "--wait"];
    shell.done(&[&["launch", "podman", "one"], &wishes[..]].concat());
    put(
        &shell,
        &["one"],
        &lab.programs.join("cgrant"),
        "cat >/usr/local/bin/cgrant; chmod 755 /usr/local/bin/cgrant",
    );
    works(&shell, &["one"]);
    put(&shell, &["one"], &archive, "cgrant image import - --alias podman --quiet");
    shell.done(&inside(&["one"], &[&["cgrant", "launch", "podman", "two"], &wishes[..]].concat()));
    works(&shell, &["one", "two"]);
    checker::assert_in_order(lab);
    // All of it lies in ours, and ends with that.
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

fn works(shell: &Shell<'_>, path: &[&str]) {
    let mut level = Level { shell, path, without: "" };
    let controllers = level.done("cat /sys/fs/cgroup/cgroup.controllers");
    let has = |name| controllers.split_ascii_whitespace().any(|known| known == name);
    level.done(IMAGE);
    let inner = "run --rm $without box:1 sh -c 'id -u; grep ^0: /proc/self/cgroup; mount | grep -c \"on / type fuse.fuse-overlayfs\"'";
    match (has("pids"), has("memory")) {
        (true, true) => limits_hold(&level),
        (false, false) => {
            // The host has them on cgroup v1, where nothing is delegated: crun can't have podman's default of processes.
            level.fails("podman run --rm box:1 id", "cgroup controller `pids` is not available");
            level.without = "--pids-limit 0";
            level.fails("podman run --rm $without --memory 64M box:1 id", "memory.max");
            // What the kernel has in every cgroup can be set.
            let own = "podman run --rm $without --cgroup-conf=cgroup.max.descendants=7 box:1 cat /sys/fs/cgroup/cgroup.max.descendants";
            assert_eq!(level.done(own), "7\n");
        }
        both => panic!("{controllers}: {both:?}"),
    }
    assert_eq!(level.done(&format!("podman {inner}")), "0\n0::/\n1\n");
    assert_eq!(level.done(SERVED), "served\nserved\n");
    assert_eq!(level.done(MANAGED), "delegated\nfrozen 1\nserved\n0::/\n");
    assert_eq!(level.done(BUILT), "built\n");
    assert_eq!(level.done(DEVICE), "opened\n");
    level.done("podman rm --force --time 0 web");
    assert_eq!(level.done("podman ps --all --quiet; systemctl --failed --no-legend"), "");
}

// As podman sets them, seen from inside and kept by the kernel.
fn limits_hold(level: &Level<'_>) {
    let seen = "podman run --rm --memory 48M box:1 sh -c 'cd /sys/fs/cgroup; cat memory.max pids.max'";
    assert_eq!(level.done(seen), format!("{}\n2048\n", 48 << 20));
    let full = level.output("podman run --rm --memory 48M --memory-swap 48M box:1 tail /dev/zero");
    assert_eq!(full.status.code(), Some(137), "{}", text(&full.stderr));
}

crate::tests![podman_runs_at_two_levels];
