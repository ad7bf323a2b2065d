//! Containers whose root is a copy of their image's files: where nothing can be mapped or laid over, and where that is asked for.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rustix::{
    fs::{XattrFlags, getxattr, setxattr},
    process::Signal,
};

use crate::common::{
    Broker, Lab, Process, User, checker,
    containers::{Shell, busybox, text},
    wait_until,
};

/// `security.capability` of version 2: cap_net_raw, effective and permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

// A file system that nobody else sees, with the user's data in it.
struct Disk<'a> {
    lab: &'a Lab,
    broker: &'a Broker,
    user: &'a User,
    place: PathBuf,
    holder: Process,
}

impl<'a> Disk<'a> {
    fn new(lab: &'a Lab, broker: &'a Broker, user: &'a User, kind: &str, options: &str) -> Self {
        let place = lab.scratch.join(kind);
        fs::create_dir(&place).unwrap();
        let script = format!(
            "mount -t {kind} -o {options} {kind} {0} && touch {0}/.there && exec sleep 100000",
            place.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        let holder = Process::of(command.stdin(Stdio::null()).stdout(Stdio::null()));
        let there = format!("/proc/{}/root{}/.there", holder.pid, place.display());
        wait_until("the file system is mounted", || Path::new(&there).exists());
        Self { lab, broker, user, place, holder }
    }

    // The command where that is seen.
    fn command(&self, words: &[&str]) -> Command {
        let inner = self.user.command(self.lab.programs.join("cgrant"));
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.pid)).arg("--");
        command.arg(inner.get_program()).args(inner.get_args()).args(words).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("XDG_DATA_HOME", &self.place).env("CGRANT_SOCKET", self.broker.socket());
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> (String, String) {
        let output = self.output(words);
        let (out, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "cgrant {words:?}: {out}{said}");
        (out, said)
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, saying: &str) {
        let output = self.output(words);
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(code) && said.contains(saying), "cgrant {words:?}: {said}");
        let lines = said.lines().filter(|line| line.starts_with("cgrant: ")).count();
        assert_eq!(lines, 1, "{said}");
    }

    // Names in a directory of the user's data.
    fn names(&self, directory: &str) -> Vec<String> {
        let path = format!("/proc/{}/root{}/cgrant/{directory}", self.holder.pid, self.place.display());
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn import(&self, tree: &Path) {
        let archive = archive(self.lab, tree);
        self.done(&["image", "import", archive.to_str().unwrap(), "--alias", "box", "--quiet"]);
    }
}

fn archive(lab: &Lab, tree: &Path) -> PathBuf {
    let archive = lab.scratch.join("box.tar");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "-C"]);
    assert!(tar.arg(tree).arg("-cf").arg(&archive).arg(".").status().unwrap().success());
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
    archive
}

// A small system with all that a copy could get wrong.
fn tree(lab: &Lab) -> PathBuf {
    let root = busybox(lab);
    fs::write(root.join("etc/one"), "x").unwrap();
    fs::hard_link(root.join("etc/one"), root.join("etc/two")).unwrap();
    fs::File::create(root.join("etc/holes")).unwrap().set_len(64 << 20).unwrap();
    fs::write(root.join("home/anns"), "x").unwrap();
    chown(root.join("home/anns"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(root.join("home/anns"), fs::Permissions::from_mode(0o4700)).unwrap();
    // An identity that it shall not have in common with its copies.
    fs::create_dir_all(root.join("var/lib/dbus")).unwrap();
    fs::write(root.join("var/lib/dbus/machine-id"), "00000000000000000000000000000001\n").unwrap();
    // As of a directory that mktemp made, and that was packed as it is.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    root
}

const LOOK: &str = "stat -c '%u:%g %a' / /bin/busybox /home/anns /etc/one; stat -c '%s %b' /etc/holes; \
                    [ $(stat -c %i /etc/one) = $(stat -c %i /etc/two) ] && echo one file";
const SEEN: &str = "0:0 755\n0:0 755\n1000:1000 4700\n0:0 644\n67108864 0\none file\n";

fn where_nothing_can_be_mapped_files_are_copied(lab: &Lab) {
    let (broker, user) = (lab.broker(), lab.user());
    let disk = Disk::new(lab, &broker, &user, "ramfs", "mode=777");
    disk.import(&tree(lab));
    let (_, said) = disk.done(&["launch", "box", "one"]);
    let why = "the image's files are copied: directories of the file system ramfs can't be mapped";
    assert_eq!(said.lines().filter(|line| line.contains(why)).count(), 1, "{said}");
    disk.done(&["create", "box", "two"]);
    disk.done(&["start", "two"]);
    for name in ["one", "two"] {
        assert_eq!(disk.done(&["exec", name, "--", "sh", "-c", LOOK]).0, SEEN);
    }
    let machine = |name: &str| disk.done(&["exec", name, "--", "cat", "/etc/machine-id"]).0;
    assert_ne!(machine("one"), machine("two"));
    assert_eq!(disk.done(&["exec", "one", "--", "cat", "/var/lib/dbus/machine-id"]).0, machine("one"));
    // All else is as with other containers.
    disk.done(&["exec", "one", "--", "touch", "/kept"]);
    disk.done(&["push", "one", lab.scratch.join("box.tar").to_str().unwrap(), "/root/box.tar"]);
    disk.done(&["stop", "one"]);
    disk.done(&["start", "one"]);
    assert_eq!(disk.done(&["exec", "one", "--", "ls", "/kept", "/root"]).0, "/kept\n\n/root:\nbox.tar\n");
    assert_eq!(disk.output(&["exec", "two", "--", "ls", "/kept"]).status.code(), Some(1));
    // They need their image no more.
    disk.done(&["image", "remove", "box"]);
    disk.done(&["stop", "two"]);
    disk.done(&["start", "two"]);
    disk.fails(&["create", "box", "three"], 1, "there is no image `box`");
    disk.done(&["delete", "--force", "one", "two"]);
    assert_eq!(disk.names("containers"), [] as [&str; 0]);
    checker::assert_empty(lab);
}

fn whoever_may_have_nothing_mapped_can_have_copies(lab: &Lab) {
    let (broker, user) = (lab.broker(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    let root = tree(lab);
    let none = XattrFlags::empty();
    setxattr(root.join("bin/busybox"), "security.capability", &CAPABILITY, none).unwrap();
    // For root, ann, the group, the mask and others.
    let acl: Vec<u8> =
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
            .into_iter()
            .flat_map(|(tag, rights, id)| {
                [tag.to_le_bytes().to_vec(), rights.to_le_bytes().to_vec(), id.to_le_bytes().to_vec()]
            })
            .flatten()
            .collect();
    let acl = [2_u32.to_le_bytes().to_vec(), acl].concat();
    setxattr(root.join("etc/one"), "system.posix_acl_access", &acl, none).unwrap();
    let archive = archive(lab, &root);
    shell.done(&["image", "import", archive.to_str().unwrap(), "--alias", "box", "--quiet"]);
    lab.write_policy("[[rule]]\nname = \"none\"\n[rule.access]\nmounts = \"deny\"\n");
    broker.reload();
    // A refusal is one, and not a reason to do otherwise unasked.
    shell.fails(&["launch", "box", "one"], 1, "with --copy it gets files of its own instead");
    let containers = user.home.join(".local/share/cgrant/containers");
    assert_eq!(fs::read_dir(&containers).unwrap().count(), 0);
    checker::assert_empty(lab);
    shell.done(&["launch", "box", "one", "--copy"]);
    assert_eq!(shell.done(&["exec", "one", "--", "sh", "-c", LOOK]), SEEN.replace("0:0 644", "0:0 640"));
    // On disk: capabilities that hold for the container's root alone, and its own users in lists.
    let rootfs = containers.join("one/rootfs");
    let base = fs::metadata(&rootfs).unwrap().uid();
    let mut value = [0; 64];
    let length = getxattr(rootfs.join("bin/busybox"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(
        (length, &value[20..24]),
        (24, &base.to_le_bytes()[..]),
        "the kernel names the namespace's root"
    );
    let length = getxattr(rootfs.join("etc/one"), "system.posix_acl_access", &mut value[..]).unwrap();
    assert_eq!((length, &value[16..20]), (44, &(base + 1000).to_le_bytes()[..]));
    shell.done(&["delete", "--force", "one"]);
    // With directories of one's own, where these may be mapped.
    lab.write_policy("");
    broker.reload();
    let shared = user.home.join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(user.uid), Some(user.gid)).unwrap();
    shell.done(&["launch", "box", "two", "--copy", "--mount", "shared:/srv/x"]);
    shell.done(&["exec", "two", "--", "touch", "/srv/x/by-root"]);
    assert_eq!(fs::metadata(shared.join("by-root")).unwrap().uid(), user.uid);
    shell.done(&["delete", "--force", "two"]);
    checker::assert_empty(lab);
}

fn a_copy_that_can_not_be_made_leaves_nothing(lab: &Lab) {
    let (broker, user) = (lab.broker(), lab.user());
    // 256 MiB stay free.
    let disk = Disk::new(lab, &broker, &user, "tmpfs", "size=272m,mode=777");
    disk.import(&tree(lab));
    let fill = format!("/proc/{}/root{}/fill", disk.holder.pid, disk.place.display());
    fs::write(&fill, vec![7; 16 << 20]).unwrap();
    disk.fails(&["create", "box", "one"], 4, "is nearly full");
    assert_eq!(disk.names("containers"), [] as [&str; 0]);
    checker::assert_empty(lab);
    fs::remove_file(fill).unwrap();
    // Files that can't be read: what the other process says is what is told.
    let gone = format!("/proc/{}/root{}/cgrant/images", disk.holder.pid, disk.place.display());
    let id = disk.names("images").into_iter().find(|name| name.len() == 64).unwrap();
    fs::remove_dir_all(format!("{gone}/{id}/rootfs")).unwrap();
    disk.fails(&["create", "box", "one", "--copy"], 4, "rootfs` in the data directory could not be used");
    assert_eq!(disk.names("containers"), [] as [&str; 0]);
    checker::assert_empty(lab);
}

fn a_copy_that_is_ended_leaves_nothing(lab: &Lab) {
    let (broker, user) = (lab.broker(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    let root = tree(lab);
    // What takes long enough to be met at work.
    fs::write(root.join("etc/noise"), vec![7; 200 << 20]).unwrap();
    let archive = archive(lab, &root);
    shell.done(&["image", "import", archive.to_str().unwrap(), "--alias", "box", "--quiet"]);
    fs::remove_file(archive).unwrap();
    let containers = user.home.join(".local/share/cgrant/containers");
    let names = || fs::read_dir(&containers).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    // On a machine that is fast it may be whole before it can be ended.
    let ended = (0..20).any(|_| {
        let mut command = shell.command(&["create", "box", "one", "--copy"]);
        let mut process = Process::of(command.stdout(Stdio::null()).stderr(Stdio::null()));
        let is_copied = || names().iter().any(|path| path.join("rootfs/etc/noise").exists());
        wait_until("files are copied", is_copied);
        rustix::process::pidfd_send_signal(&process.pidfd, Signal::INT).unwrap();
        match process.wait_code() {
            Some(0) => {
                shell.done(&["delete", "one"]);
                false
            }
            code => {
                assert_eq!(code, Some(130));
                true
            }
        }
    });
    assert!(ended, "each was whole before");
    assert_eq!(names(), [] as [PathBuf; 0]);
    checker::assert_empty(lab);
}

crate::tests![
    where_nothing_can_be_mapped_files_are_copied,
    whoever_may_have_nothing_mapped_can_have_copies,
    a_copy_that_can_not_be_made_leaves_nothing,
    a_copy_that_is_ended_leaves_nothing,
];
