//! What a container is, seen from inside: a Debian in which units, packages, users and devices work as on a machine of its own, and
//! systems with other inits.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::common::{
    Lab, Network, checker,
    containers::{Shell, busybox, debian, text},
    wait_until,
};

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
}

// Packages that the Debian of the suite lacks, with all that they need, as the machine's apt gets them. Fetched once.
fn packages(suite: &str) -> PathBuf {
    const WANTED: [&str; 4] = ["dbus-user-session", "hello", "iputils-ping", "sudo"];
    let root = debian(suite);
    let fetched = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{suite}-packages"));
    if !fetched.exists() {
        let unfinished = PathBuf::from(format!("{}.new", fetched.display()));
        let _ = fs::remove_dir_all(&unfinished);
        for directory in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(unfinished.join(directory)).unwrap();
        }
        let apt = || {
            let mut command = Command::new("apt-get");
            let own = |name: &str, place: &str| format!("{name}={}", unfinished.join(place).display());
            command.args([
                "-q",
                "-o",
                &format!("Dir::Etc::sourcelist={}/etc/apt/sources.list", root.display()),
            ]);
            command.args(["-o", "Dir::Etc::sourceparts=/dev/null"]);
            command.args(["-o", &own("Dir::State", "state"), "-o", &own("Dir::Cache", "cache")]);
            command.args(["-o", &format!("Dir::State::status={}/var/lib/dpkg/status", root.display())]);
            // The directory is the test's, which apt's own user can't enter.
            command.args(["-o", "APT::Sandbox::User=root"]);
            command
        };
        run(apt().arg("update"));
        run(apt().args(["install", "--download-only", "--yes", "--no-install-recommends"]).args(WANTED));
        fs::remove_dir_all(unfinished.join("state")).unwrap();
        fs::rename(unfinished, &fetched).unwrap();
    }
    fetched.join("cache/archives")
}

// A container, and what a shell in it prints.
struct Inside<'a> {
    shell: &'a Shell<'a>,
    name: &'a str,
}

impl Inside<'_> {
    #[track_caller]
    fn says(&self, script: &str, expected: &str) {
        let printed = self.shell.done(&["exec", self.name, "--", "sh", "-euc", script]);
        assert_eq!(printed, expected, "{script}");
    }

    #[track_caller]
    fn is_whole(&self) {
        let script = "systemctl is-system-running --wait || true; systemctl --failed --no-legend --no-pager; \
            find /etc/systemd/system /run/systemd/system -lname /dev/null; systemd-detect-virt";
        let printed = self.shell.done(&["exec", self.name, "--", "sh", "-euc", script]);
        let logged =
            || self.shell.done(&["exec", self.name, "--", "journalctl", "-b", "-p", "4", "--no-pager"]);
        assert_eq!(printed, "running\ncontainer-other\n", "{}", logged());
    }

    // All files of a directory into one inside.
    fn takes(&self, directory: &Path, place: &str) {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(directory).args(["-c", "."]).stdout(Stdio::piped());
        let mut tar = tar.spawn().unwrap();
        let script = format!("mkdir -p {place}; tar -x -C {place}");
        let mut command = self.shell.command(&["exec", self.name, "--", "sh", "-euc", &script]);
        run(command.stdin(tar.stdout.take().unwrap()));
        assert!(tar.wait().unwrap().success());
    }
}

fn a_machine_of_its_own(lab: &Lab, suite: &str) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    shell.import(lab, &debian(suite), suite);
    // As udev makes it, which not every machine has.
    let nodes = lab.scratch.join("nodes");
    let nodes = nodes.display();
    network.host.sh(&format!(
        "mkdir {nodes}; mount -t tmpfs -o mode=755 nodes {nodes}; cd {nodes}; mkdir net pts shm
         for node in null,3 zero,5 full,7 random,8 urandom,9; do mknod -m 666 ${{node%,*}} c 1 ${{node#*,}}; done
         mknod -m 666 tty c 5 0; mknod -m 666 net/tun c 10 200; ln -s pts/ptmx ptmx; ln -s /proc/self/fd fd; ln -s fd/0 stdin
         mount --rbind /dev/pts pts; mount --rbind {nodes} /dev"
    ));
    let key = user.home.join("key");
    fs::write(&key, "of a file").unwrap();
    std::os::unix::fs::chown(&key, Some(user.uid), None).unwrap();
    let key = format!("the.file=@{}", key.display());
    let words = [
        &[
            "launch",
            suite,
            "one",
            "--wait",
            "--link",
            "--timezone",
            "Asia/Tokyo",
            "--proxy",
            "--device",
            "net/tun",
        ][..],
        &["--env", "ODD=50% \"x\"", "--credential", "the.text=a text", "--credential", &key],
    ];
    run(shell.command(&words.concat()).env("http_proxy", "http://proxy.test:3128"));
    let one = Inside { shell: &shell, name: "one" };
    one.is_whole();
    names_and_time_are_its_own(&one);
    units_are_confined_and_told(&one);
    one.says(TUN, "tun0\n");
    packages_and_users_work(&one, suite);
    // What is its own stays; boots are told apart.
    shell.done(&["exec", "one", "--", "systemctl", "reboot"]);
    wait_until("it has rebooted", || shell.json(&["info", "one"])["reboots"] == 1);
    shell.done(&["wait", "one"]);
    one.is_whole();
    one.says(
        "getent hosts friend; date +%Z; journalctl --list-boots --no-pager | grep -cE '^ *(-1|0) '",
        "10.9.9.9        friend\nJST\n2\n",
    );
    shell.done(&["stop", "one"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off");
    checker::assert_empty(lab);
    shell.done(&["delete", "one"]);
}

// IFF_TUN and IFF_NO_PI, by TUNSETIFF.
const TUN: &str = "perl -e 'open(F, \"+<\", \"/dev/net/tun\") or die $!; my $r = pack(\"a16sx22\", \"tun0\", 0x1001); \
    ioctl(F, 0x400454ca, $r) or die $!; print grep { s/^ *(tun0):.*/$1/s && ($_ .= \"\\n\") } `cat /proc/net/dev`'";

fn names_and_time_are_its_own(one: &Inside<'_>) {
    one.says("hostname -f; hostnamectl --static; getent hosts one | tr -s ' '", "one\none\n127.0.1.1 one\n");
    one.says("date +%Z; timedatectl show -p Timezone --value", "JST\nAsia/Tokyo\n");
    // The file is its own, and not a mount that nothing can be renamed over.
    one.says("sed -i '$a 10.9.9.9 friend' /etc/hosts; getent hosts friend", "10.9.9.9        friend\n");
    one.says(
        "sort -u /proc/sys/kernel/random/boot_id | wc -l; journalctl -b -q -n 1 -o cat | wc -l",
        "1\n1\n",
    );
}

fn units_are_confined_and_told(one: &Inside<'_>) {
    let told = "echo $ODD $http_proxy";
    one.says(told, "50% \"x\" http://proxy.test:3128\n");
    one.says(&format!("systemd-run -q --wait -P sh -c '{told}'"), "50% \"x\" http://proxy.test:3128\n");
    let options = "-p PrivateTmp=yes -p DynamicUser=yes -p PrivateNetwork=yes -p ProtectSystem=strict -p StateDirectory=foo \
        -p PrivateUsers=yes -p PrivateDevices=yes -p SetCredential=set:here -p LoadCredential=the.file";
    let script = "cd $CREDENTIALS_DIRECTORY; cat set; echo; cat the.file; echo; touch /var/lib/foo/x; \
        touch /etc/x 2>/dev/null || echo closed; ls /tmp | wc -l; wc -l </proc/net/dev; test $(id -u) -ge 61184";
    one.says(
        &format!("systemd-run -q --wait -P {options} sh -euc '{script}'"),
        "here\nof a file\nclosed\n0\n3\n",
    );
    one.says("cat /run/credentials/@system/the.text; stat -c ' %a' /run/host/credentials", "a text 700\n");
}

fn packages_and_users_work(one: &Inside<'_>, suite: &str) {
    one.takes(&packages(suite), "/srv/packages");
    one.says(
        "cd /srv/packages; for file in *.deb; do dpkg-deb -f $file; echo Filename: ./$file; \
         echo Size: $(stat -c %s $file); echo SHA256: $(sha256sum $file | cut -c 1-64); echo; done >Packages
         rm -rf /etc/apt/sources.list.d; echo 'deb [trusted=yes] file:/srv/packages ./' >/etc/apt/sources.list
         export DEBIAN_FRONTEND=noninteractive
         { apt-get update && apt-get install -y --no-install-recommends hello sudo iputils-ping dbus-user-session
         } >/tmp/apt 2>&1 || cat /tmp/apt
         hello; stat -c '%a %u' /usr/bin/sudo",
        "Hello, world!\n4755 0\n",
    );
    // Nobody is kept from becoming somebody else, and everybody may ping.
    one.says(
        "useradd -m -s /bin/sh ann; echo 'ann ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ann
         grep NoNewPrivs /proc/self/status | tr -d '\\t'
         su - ann -c 'sudo -n id -u 2>&1; ping -q -c 1 127.0.0.1 >/dev/null && echo pinged; whoami'",
        "NoNewPrivs:0\n0\npinged\nann\n",
    );
    one.says(
        "uid=$(id -u ann); systemctl start user@$uid; systemctl is-active user@$uid
         su ann -c \"XDG_RUNTIME_DIR=/run/user/$uid systemctl --user is-system-running --wait\"
         su ann -c \"XDG_RUNTIME_DIR=/run/user/$uid systemd-run --user -q --wait -P sh -c 'echo \\$http_proxy'\"",
        "active\nrunning\nhttp://proxy.test:3128\n",
    );
}

fn debian_12_is_a_machine(lab: &Lab) {
    a_machine_of_its_own(lab, "bookworm");
}

fn debian_13_is_a_machine(lab: &Lab) {
    a_machine_of_its_own(lab, "trixie");
}

// A Debian with System V's init and OpenRC, made once.
fn openrc() -> PathBuf {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openrc");
    if !made.exists() {
        let unfinished = PathBuf::from(format!("{}.new", made.display()));
        let _ = fs::remove_dir_all(&unfinished);
        let options = ["--quiet", "--format=directory", "--variant=minbase"];
        let include = "--include=openrc,sysvinit-core,login,passwd,procps";
        run(Command::new("mmdebstrap").args(options).args([include, "bookworm"]).arg(&unfinished));
        fs::rename(unfinished, &made).unwrap();
    }
    made
}

fn openrc_boots_and_ends(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &openrc(), "openrc");
    shell.done(&["launch", "openrc", "one", "--wait"]);
    let logged = || shell.done(&["logs", "one", "--console"]);
    wait_until("somebody can log in on its console", || logged().contains("one login:"));
    let one = Inside { shell: &shell, name: "one" };
    one.says(
        "ps -p 1 -o comm=; rc-status --runlevel; getent hosts one | tr -s ' '",
        "init\ndefault\n127.0.1.1 one\n",
    );
    shell.done(&["stop", "one"]);
    assert_eq!(shell.json(&["info", "one"])["ended"], "power off", "{}", logged());
    checker::assert_empty(lab);
    shell.done(&["delete", "one"]);
}

fn what_it_can_not_be_told_is_refused(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.fails(&["launch", "box", "one", "--timezone", "Mars/Base"], 4, "for the time zone Mars/Base");
    shell.fails(&["launch", "box", "one", "--timezone", "../x"], 2, "is no time zone");
    let refused = "policy does not let this account have /dev/loop-control";
    shell.fails(&["launch", "box", "one", "--device", "loop-control"], 1, refused);
    shell.fails(&["create", "box", "one", "--credential", "a=@none"], 2, "the credential \"a\"");
    shell.fails(&["create", "box", "one", "--env", "NOT_SET_HERE"], 2, "is not set here");
    assert_eq!(shell.state("one"), "none");
    // One that never says that it has booted is waited for no longer than it takes to run.
    shell.done(&["launch", "box", "one", "--wait"]);
    assert_eq!(shell.state("one"), "running");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![
    debian_12_is_a_machine,
    debian_13_is_a_machine,
    openrc_boots_and_ends,
    what_it_can_not_be_told_is_refused,
];
