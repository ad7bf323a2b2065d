//! `export` and `import`: a container becomes a file, and a container of another account with other ids; and what is no such file.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::fs::{XattrFlags, setxattr};

use crate::common::{
    Lab, User, checker,
    containers::{Shell, busybox, text},
};

/// `security.capability` of version 2: cap_net_raw, effective and permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// What is looked at inside, before and after.
const LOOK: &str = "stat -c '%n %u:%g %a %s' /home/own /home/anns /etc/one /etc/kept; cat /home/own /etc/kept; \
                    [ $(stat -c %i /home/own) = $(stat -c %i /home/own2) ] && echo one file; \
                    stat -c '%s %b' /etc/holes; ls -d /etc/gone /etc/dir/old 2>/dev/null; ls /etc/dir; \
                    echo $A; cat /etc/machine-id; hostname";

fn tree(lab: &Lab) -> PathBuf {
    let root = busybox(lab);
    for name in ["gone", "one", "kept"] {
        fs::write(root.join("etc").join(name), name).unwrap();
    }
    fs::create_dir(root.join("etc/dir")).unwrap();
    fs::write(root.join("etc/dir/old"), "x").unwrap();
    fs::write(root.join("home/anns"), "x").unwrap();
    std::os::unix::fs::chown(root.join("home/anns"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(root.join("home/anns"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::copy(root.join("bin/busybox"), root.join("bin/busybox-raw")).unwrap();
    setxattr(root.join("bin/busybox-raw"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    setxattr(root.join("etc/one"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    root
}

/// What it changes of its image's files.
const CHANGE: &str = "b=/bin/busybox; echo changed > /home/own; chmod 640 /home/own; $b ln /home/own /home/own2; rm /etc/gone; \
                      rm -r /etc/dir; $b mkdir /etc/dir; echo x > /etc/dir/new; echo more >> /etc/kept; \
                      $b truncate -s 64M /etc/holes";

/// Puts a file of a user's where the other one can read it.
fn hand_over(lab: &Lab, from: &User, name: &str) -> String {
    let to = lab.programs.join(format!("{}-{name}", lab.instance));
    fs::copy(from.home.join(name), &to).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).unwrap();
    to.to_str().unwrap().to_owned()
}

fn rootfs(user: &User, name: &str) -> PathBuf {
    user.home.join(".local/share/cgrant/containers").join(name).join("rootfs")
}

/// A list by which one more id inside may read, as the host sees it (linux/posix_acl_xattr.h).
fn acl(id: u32) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries = [(1, 6, NO_ID), (2, 4, id), (4, 4, NO_ID), (0x10, 4, NO_ID), (0x20, 0, NO_ID)];
    let entries = entries.into_iter().flat_map(|(tag, may, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

fn attribute(file: &Path, name: &str) -> Vec<u8> {
    let mut value = [0; 256];
    let length =
        rustix::fs::getxattr(file, name, &mut value[..]).unwrap_or_else(|error| panic!("{name}: {error}"));
    value[..length].to_vec()
}

/// Two brokers that know nothing of each other, with ids of which none is the other's: there, and back again.
fn a_container_moves_to_another_host_and_back(lab: &Lab) {
    const LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
    let other = Lab::elsewhere(lab);
    let (broker, second) = (lab.broker(), other.broker());
    let (from, to) = (lab.user(), other.user());
    let (here, there) = (Shell::new(lab, &from, &broker), Shell::new(&other, &to, &second));
    here.import(lab, &tree(lab), "box");
    here.done(&["launch", "box", "web"]);
    here.done(&["exec", "web", "--", "sh", "-c", CHANGE]);
    let before = here.done(&["exec", "web", "--", "sh", "-c", LOOK]);
    let upper = from.home.join(".local/share/cgrant/containers/web/upper");
    let uid = |file: &Path| fs::metadata(file).unwrap().uid();
    let first = uid(&upper.join("home/own"));
    // What ann may read besides, there and in all that comes to be in the directory.
    setxattr(upper.join("home/own"), LISTS[0], &acl(first + 1000), XattrFlags::empty()).unwrap();
    setxattr(upper.join("etc/dir"), LISTS[1], &acl(first + 1000), XattrFlags::empty()).unwrap();
    setxattr(upper.join("home/own"), "user.note", b"\0every byte\xff", XattrFlags::empty()).unwrap();
    let looks = |shell: &Shell<'_>, name: &str| {
        let ann = |words: &[&str]| {
            text(&shell.output(&[&["exec", name, "--user", "ann", "--"], words].concat()).stdout)
        };
        let raw = ann(&["busybox-raw", "grep", "CapEff", "/proc/self/status"]);
        (shell.done(&["exec", name, "--", "sh", "-c", LOOK]), ann(&["cat", "/home/own"]), raw)
    };
    let seen = looks(&here, "web");
    assert!(seen.1 == "changed\n" && seen.2.trim().ends_with("2000"), "{seen:?}");
    // The list stands where bits of the group stood.
    assert!(before.contains("/home/own 0:0 640"), "{before}");
    here.done(&["stop", "web"]);
    here.done(&["export", "web", "web.tar.zst"]);
    here.done(&["delete", "web"]);

    let file = hand_over(lab, &from, "web.tar.zst");
    there.done(&["import", &file, "web", "--quiet"]);
    let files = rootfs(&to, "web");
    let base = uid(&files.join("home/own"));
    assert!(base != first && base >= 0x7100_0000, "{base:#x}");
    assert_eq!(attribute(&files.join("home/own"), LISTS[0]), acl(base + 1000));
    assert_eq!(attribute(&files.join("etc/dir"), LISTS[1]), acl(base + 1000));
    assert_eq!(attribute(&files.join("home/own"), "user.note"), b"\0every byte\xff");
    // Version 3, which says whose root may have the capability (linux/capability.h).
    let capability = attribute(&files.join("bin/busybox-raw"), "security.capability");
    assert_eq!((&capability[..4], &capability[20..]), (&[1, 0, 0, 3][..], &base.to_le_bytes()[..]));
    let holes = fs::metadata(files.join("etc/holes")).unwrap();
    assert_eq!((holes.len(), holes.blocks()), (64 << 20, 0), "holes are filled");
    there.done(&["start", "web"]);
    assert_eq!(looks(&there, "web"), seen);
    there.done(&["stop", "web"]);

    // And back.
    there.done(&["export", "web", "back.tar"]);
    there.done(&["delete", "web"]);
    let file = hand_over(&other, &to, "back.tar");
    here.done(&["import", &file, "home", "--quiet"]);
    here.done(&["start", "home"]);
    assert_eq!(looks(&here, "home"), seen);
    let back = rootfs(&from, "home");
    assert!((0x7000_0000..0x7100_0000).contains(&uid(&back.join("home/own"))));
    here.done(&["delete", "--force", "home"]);
    checker::assert_empty(lab);
    checker::assert_empty(&other);
    drop((broker, second));
    let leaks = other.leaks_of_instance();
    assert!(leaks.is_empty(), "{leaks:?}");
    // Cleaning ends everything that this program started, so it comes last.
    other.clean();
}

/// A copy that did not end, a full disk, a broken line: whatever there is of an archive that is not whole.
fn what_was_cut_off_is_refused_and_leaves_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &tree(lab), "box");
    shell.done(&["create", "box", "web"]);
    let store = user.home.join(".local/share/cgrant");
    let left = || {
        let mut names: Vec<PathBuf> = ["containers", "."]
            .iter()
            .flat_map(|place| fs::read_dir(store.join(place)).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names
    };
    for name in ["web.tar", "web.tar.zst", "web.tar.gz"] {
        shell.done(&["export", "web", name]);
        let whole = fs::read(user.home.join(name)).unwrap();
        let before = left();
        let length = whole.len();
        // In the first header, in the description, in files; before the end of the last member; and where compression ends.
        let ends = [0, 1, 511, 700, length / 4, length / 2, length - length / 8, length - 1025, length - 1];
        for end in ends {
            // Of a plain archive the two blocks of zeros at its end say nothing: all members are there.
            if name == "web.tar" && end > length - 1025 {
                continue;
            }
            let part = lab.programs.join(format!("{}-{end}-{name}", lab.instance));
            fs::write(&part, &whole[..end]).unwrap();
            fs::set_permissions(&part, fs::Permissions::from_mode(0o644)).unwrap();
            shell.fails(&["import", part.to_str().unwrap(), "new"], 5, "");
            // The same by a pipe, whose length nobody knows.
            let pipe = shell.command(&["import", "-", "new"]).stdin(fs::File::open(&part).unwrap()).output();
            let pipe = pipe.unwrap();
            assert_eq!(pipe.status.code(), Some(5), "{name} {end}: {}", text(&pipe.stderr));
            assert_eq!(left(), before, "{name} {end}");
            fs::remove_file(part).unwrap();
        }
        // Bytes that are not what was written.
        if name != "web.tar" {
            let mut bad = whole.clone();
            bad[length / 2] ^= 1;
            let part = lab.programs.join(format!("{}-bad-{name}", lab.instance));
            fs::write(&part, bad).unwrap();
            fs::set_permissions(&part, fs::Permissions::from_mode(0o644)).unwrap();
            shell.fails(&["import", part.to_str().unwrap(), "new"], 5, "");
            assert_eq!(left(), before, "{name}");
        }
        // The name is free, and its ids are.
        shell.done(&["import", name, "new", "--quiet"]);
        shell.done(&["delete", "new"]);
    }
    shell.done(&["delete", "web"]);
    checker::assert_empty(lab);
}

fn a_container_moves_to_another_account(lab: &Lab) {
    let broker = lab.broker();
    let (from, to) = (lab.user(), lab.user());
    let (here, there) = (Shell::new(lab, &from, &broker), Shell::new(lab, &to, &broker));
    here.import(lab, &tree(lab), "box");
    let shared = from.home.join("shared");
    fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(from.uid), Some(from.gid)).unwrap();
    let mount = format!("{}:/srv", shared.display());
    here.done(&[
        "launch",
        "box",
        "web",
        "--memory",
        "200M",
        "--env",
        "A=b",
        "--mount",
        &mount,
        "--credential",
        "x=y",
    ]);
    here.done(&["exec", "web", "--", "sh", "-c", CHANGE]);
    here.fails(&["export", "web", "web.tar.zst"], 1, "it is running; stop it first");
    let before = here.done(&["exec", "web", "--", "sh", "-c", LOOK]);
    assert!(
        before.contains("one file\n") && before.contains("changed\n") && !before.contains("gone"),
        "{before}"
    );
    here.done(&["stop", "web"]);
    here.done(&["export", "web", "web.tar.zst"]);
    here.fails(&["export", "web", "web.zip"], 2, ".tar.zst");
    // By a pipe it is the same.
    let piped = here.command(&["export", "web", "-"]).stdout(Stdio::piped()).output().unwrap();
    assert!(piped.status.success() && piped.stdout.len() > 1000, "{}", text(&piped.stderr));

    // The other one has no image, and other ids.
    let file = hand_over(lab, &from, "web.tar.zst");
    let output = there.output(&["import", &file, "moved"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    let left_out = said.lines().find(|line| line.starts_with("left out")).unwrap_or_default();
    assert!(left_out.contains(&mount) && left_out.contains("--credential x"), "{said}");
    there.done(&["start", "moved"]);
    assert_eq!(
        there.done(&["exec", "moved", "--", "sh", "-c", LOOK]),
        before,
        "the same files, and the same machine"
    );
    assert_eq!(there.done(&["get", "moved", "memory.max"]).trim(), "memory.max  200M");
    // As another user than root: what has the capability may do what it is for.
    let raw = ["exec", "moved", "--user", "ann", "--", "busybox-raw", "grep", "CapEff", "/proc/self/status"];
    assert!(there.done(&raw).trim().ends_with("2000"), "{}", there.done(&raw));
    let (ours, theirs) = (rootfs(&to, "moved"), from.home.join(".local/share/cgrant/containers/web/upper"));
    let uid = |path: PathBuf| fs::metadata(path).unwrap().uid();
    assert_ne!(uid(ours.join("home/own")), uid(theirs.join("home/own")), "ids of the other account's");
    assert_eq!(uid(ours.join("home/anns")) - uid(ours.join("home/own")), 1000);
    let mut note = [0; 16];
    let length = rustix::fs::getxattr(ours.join("etc/one"), "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..length], b"kept");
    there.done(&["stop", "moved"]);

    // One that was moved moves on; beside itself it is another machine.
    there.done(&["export", "moved", "again.tar"]);
    there.done(&["import", "again.tar", "twin", "--quiet"]);
    there.done(&["start", "twin"]);
    let twin = there.done(&["exec", "twin", "--", "cat", "/etc/machine-id"]);
    assert!(!before.contains(twin.trim()), "{twin}");
    there.fails(&["import", "again.tar", "twin"], 1, "there is a container `twin` already");
    there.done(&["stop", "twin"]);
    // A file of one's own may have of the host what it says.
    here.done(&["delete", "web"]);
    here.done(&["import", "web.tar.zst", "web", "--host-settings"]);
    let info = here.json(&["info", "web"]).to_string();
    assert!(info.contains("/srv"), "{info}");
    for (shell, names) in [(&here, &["web"][..]), (&there, &["moved", "twin"])] {
        names.iter().for_each(|name| drop(shell.done(&["delete", name])));
    }
    checker::assert_empty(lab);
}

/// An archive of what is in a directory.
fn pack(directory: &Path, archive: &Path, more: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "-P", "-C"]).arg(directory).arg("-cf").arg(archive).args(more);
    assert!(tar.status().unwrap().success());
    fs::set_permissions(archive, fs::Permissions::from_mode(0o644)).unwrap();
}

fn what_is_no_container_is_refused_and_leaves_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &tree(lab), "box");
    shell.done(&["create", "box", "web"]);
    shell.done(&["export", "web", "web.tar"]);
    let list = Command::new("tar")
        .arg("-xOf")
        .arg(user.home.join("web.tar"))
        .arg("container.json")
        .output()
        .unwrap();
    let good = text(&list.stdout);
    let scene = |name: &str, description: &str| {
        let directory = lab.programs.join(format!("{}-{name}", lab.instance));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("container.json"), description).unwrap();
        fs::create_dir(directory.join("rootfs")).unwrap();
        directory
    };
    let archive = lab.programs.join(format!("{}-hostile.tar", lab.instance));
    let refused = |directory: &Path, more: &[&str], saying: &str| {
        pack(directory, &archive, more);
        shell.fails(&["import", archive.to_str().unwrap(), "new"], 5, saying);
        assert_eq!(shell.done(&["list", "--quiet"]).trim(), "web", "{more:?}");
        let left: Vec<_> = fs::read_dir(user.home.join(".local/share/cgrant/containers")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    };
    // What would lie beside its files in the store.
    let more = scene("more", &good);
    for name in ["config.json", "upper", "run"] {
        fs::write(more.join(name), "{}").unwrap();
        refused(&more, &["container.json", "rootfs", name], "nothing else");
    }
    refused(&more, &["rootfs"], "nothing else");
    refused(&more, &["container.json"], "nothing else");
    // Links in the places of both.
    let links = scene("links", &good);
    fs::remove_dir(links.join("rootfs")).unwrap();
    symlink("/etc", links.join("rootfs")).unwrap();
    refused(&links, &["container.json", "rootfs"], "nothing else");
    let link = scene("link", &good);
    fs::remove_file(link.join("container.json")).unwrap();
    symlink("/etc/passwd", link.join("container.json")).unwrap();
    refused(&link, &["container.json", "rootfs"], "nothing else");
    // Names that lead out.
    fs::write(lab.programs.join(format!("{}-out", lab.instance)), "x").unwrap();
    let out = format!("../{}-out", lab.instance);
    refused(&more, &["container.json", "rootfs", &out], "..");
    // Descriptions that are none, or lead elsewhere.
    let image = good.lines().find(|line| line.contains("\"image\"")).unwrap();
    for (name, description) in [
        ("empty", String::new()),
        ("later", good.replace("\"format\": 1", "\"format\": 99")),
        ("image", good.replace(image, "\"image\": \"../../..\",")),
        ("hostname", good.replace("\"hostname\": \"web\"", "\"hostname\": \"a b\"")),
    ] {
        assert_ne!(description, good, "{name}");
        refused(&scene(name, &description), &["container.json", "rootfs"], "");
    }
    shell.done(&["delete", "web"]);
    checker::assert_empty(lab);
}

crate::tests![
    a_container_moves_to_another_account,
    a_container_moves_to_another_host_and_back,
    what_is_no_container_is_refused_and_leaves_nothing,
    what_was_cut_off_is_refused_and_leaves_nothing,
];
