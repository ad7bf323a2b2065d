//! `cgrant image …` as an ordinary user: what becomes an image and what does not, whose its files are, and what is left of
//! work that ends before its time.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Broker, Lab, Options, Process, User, checker, wait_until};

struct Scene<'lab> {
    lab: &'lab Lab,
    broker: Broker,
    user: User,
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let broker = lab.broker();
        Self { lab, broker, user: lab.user() }
    }

    fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = self.user.command(self.lab.programs.join("cgrant"));
        command.arg("image").args(words).env("CGRANT_SOCKET", self.lab.runtime_dir().join("public/bus"));
        command
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> (String, String) {
        let output = self.command(words).output().unwrap();
        let (out, error) = text(&output);
        assert_eq!(output.status.code(), Some(0), "cgrant image {words:?}: {out}{error}");
        (out, error)
    }

    // What can't be done has a reason in one line, no result, and leaves nothing half made.
    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, reason: &str) {
        let output = self.command(words).output().unwrap();
        let (out, error) = text(&output);
        assert_eq!(output.status.code(), Some(code), "cgrant image {words:?}: {out}{error}");
        assert!(out.is_empty(), "what failed printed a result: {out}");
        let told: Vec<&str> = error.lines().filter(|line| line.starts_with("cgrant: ")).collect();
        assert_eq!(told.len(), 1, "{error}");
        assert!(told[0].contains(reason), "{error}");
        self.nothing_half_made();
    }

    #[track_caller]
    fn nothing_half_made(&self) {
        let names = names(&self.data().join("images"));
        assert!(names.iter().all(|name| name.len() == 64 || name == "aliases.json"), "{names:?}");
        checker::assert_empty(self.lab);
    }

    fn data(&self) -> PathBuf {
        self.user.home.join(".local/share/cgrant")
    }

    fn images(&self) -> Vec<Value> {
        let output = self.command(&["list", "--format", "json"]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap().as_array().unwrap().clone()
    }

    // A file of the user's with these bytes.
    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.user.home.join(name);
        fs::write(&path, bytes).unwrap();
        chown(&path, Some(self.user.uid), Some(self.user.gid)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    // A tree as root would have it, in a place that the user can't reach.
    fn tree(&self) -> PathBuf {
        let root = self.lab.scratch.join("tree");
        if root.exists() {
            return root;
        }
        for directory in ["etc", "usr/lib", "home/x", "var/mail", "dev"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for name in ["etc/hostname", "home/x/file", "usr/lib/tool"] {
            fs::write(root.join(name), name).unwrap();
        }
        fs::write(
            root.join("etc/os-release"),
            "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME=\"Debian 13\"\n",
        )
        .unwrap();
        fs::hard_link(root.join("etc/hostname"), root.join("etc/other")).unwrap();
        std::os::unix::fs::symlink("../../etc/hostname", root.join("home/x/link")).unwrap();
        for (name, uid, gid, mode) in
            [("home/x", 1000, 1000, 0o700), ("home/x/file", 1000, 1000, 0o640), ("var/mail", 0, 8, 0o2775)]
        {
            chown(root.join(name), Some(uid), Some(gid)).unwrap();
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(root.join("usr/lib/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        run(Command::new("mknod").arg(root.join("dev/x")).args(["c", "1", "3"]));
        root
    }

    // An archive of that tree, the user's.
    fn archive(&self, name: &str, flag: &str) -> String {
        let path = self.file(name, b"");
        run(Command::new("tar")
            .args(["--numeric-owner", flag, "-cf", &path, "-C"])
            .arg(self.tree())
            .arg("."));
        path
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> (String, String) {
    (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn sum(path: &str) -> String {
    let output = run(Command::new("sha256sum").arg(path));
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn disk(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn an_archive_becomes_an_image_and_an_archive_again(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("debian.tar.gz", "-z");
    let (id, said) = scene.done(&["import", &archive, "--alias", "mine"]);
    let id = id.trim().to_owned();
    assert_eq!(id, sum(&archive), "an image is known by what it was made of");
    assert!(said.contains("left out: 1: /dev/x (device node)") && said.contains("unpacking"), "{said}");
    // The account's data directory is its own alone; the files are of a range.
    assert_eq!(disk(&scene.data()), (scene.user.uid, scene.user.gid, 0o700));
    let image = scene.data().join("images").join(&id);
    assert_eq!(disk(&image), (scene.user.uid, scene.user.gid, 0o755));
    let (base, _, mode) = disk(&image.join("rootfs/usr/lib/tool"));
    assert_ne!(base, scene.user.uid);
    assert_eq!(mode, 0o4755);
    assert_eq!(disk(&image.join("rootfs/home/x/file")), (base + 1000, base + 1000, 0o640));
    assert_eq!(disk(&image.join("rootfs/var/mail")), (base, base + 8, 0o2775));
    assert!(!image.join("rootfs/dev/x").exists());
    scene.nothing_half_made();

    let list = scene.images();
    assert_eq!(list.len(), 1);
    assert_eq!(
        (list[0]["id"].as_str().unwrap(), &list[0]["aliases"]),
        (id.as_str(), &serde_json::json!(["mine"]))
    );
    assert_eq!((list[0]["os"].as_str(), list[0]["left_out"].as_u64()), (Some("debian"), Some(1)));
    let table = scene.done(&["list"]).0;
    assert!(table.contains(&id[..12]) && table.contains("Debian 13") && table.contains("mine"), "{table}");

    // What is written again has the owners that it came with.
    let (written, _) = scene.done(&["export", "mine", "out.tar.zst", "--plain", "--quiet"]);
    let out = scene.user.home.join("out.tar.zst");
    assert_eq!(written.trim(), sum(out.to_str().unwrap()));
    assert_eq!(disk(&out).0, scene.user.uid);
    let listed = run(Command::new("tar").args(["--zstd", "--numeric-owner", "-tvf"]).arg(&out));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let has = |words: [&str; 2]| listed.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(["-rw-r----- 1000/1000", "./home/x/file"]), "{listed}");
    assert!(has(["drwxrwsr-x 0/8", "./var/mail"]) && has(["-rwsr-xr-x 0/0", "tool"]), "{listed}");
    assert!(
        listed.contains("./etc/other link to ./etc/hostname")
            || listed.contains("./etc/hostname link to ./etc/other")
    );

    // Both forms come back; whole ones as Incus has them, with what is known of them.
    let (_, said) = scene.done(&["import", "out.tar.zst", "-q"]);
    assert_eq!(said, "");
    scene.done(&["export", &id[..8], "whole.tar", "-q"]);
    let listed = run(Command::new("tar").arg("-tf").arg(scene.user.home.join("whole.tar")));
    assert!(String::from_utf8(listed.stdout).unwrap().starts_with("metadata.yaml\n"));
    let (third, _) = scene.done(&["import", "whole.tar"]);
    let third = scene.images().into_iter().find(|image| image["id"] == third.trim()).unwrap();
    assert_eq!(third["description"], "Debian 13");
    assert_eq!(
        names(&scene.user.home).iter().filter(|name| name.contains("tar")).count(),
        3,
        "no partial files"
    );

    scene.done(&["alias", "add", third["id"].as_str().unwrap(), "mine", "other"]);
    scene.done(&["alias", "remove", "other"]);
    scene.fails(&["alias", "remove", "other"], 1, "there is no image `other`");
    scene.done(&["remove", "mine", &id, &id[..10]]);
    assert_eq!(scene.images().len(), 1, "two were removed");
    scene.done(&["remove", scene.images()[0]["id"].as_str().unwrap()]);
    assert_eq!(names(&scene.data().join("images")), ["aliases.json"]);
    scene.nothing_half_made();
}

fn directories_and_images_in_two_pieces_are_taken(lab: &Lab) {
    let scene = Scene::new(lab);
    let home = &scene.user.home;
    for directory in ["own", "own/etc"] {
        fs::create_dir(home.join(directory)).unwrap();
        chown(home.join(directory), Some(scene.user.uid), Some(scene.user.gid)).unwrap();
    }
    scene.file("own/etc/secret", b"s");
    fs::set_permissions(home.join("own/etc/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let id = scene.done(&["import", "own"]).0;
    let made = scene.data().join("images").join(id.trim()).join("rootfs");
    // What is the user's own is root's there.
    let root = disk(&made).0;
    assert_eq!(disk(&made.join("etc/secret")), (root, root, 0o600));
    assert_ne!(root, scene.user.uid);
    assert_eq!(scene.done(&["import", "own"]).0, id, "the same files are the same image");

    let rootfs = scene.archive("rootfs.tar.xz", "-J");
    fs::write(lab.scratch.join("metadata.yaml"), "architecture: x86_64\nproperties:\n  os: Alpine\n")
        .unwrap();
    let meta = scene.file("meta.tar", b"");
    run(Command::new("tar").args(["-cf", &meta, "-C"]).arg(&lab.scratch).arg("metadata.yaml"));
    let (id, _) = scene.done(&["import", &meta, &rootfs, "--alias", "two"]);
    let image = scene.images().into_iter().find(|image| image["id"] == id.trim()).unwrap();
    assert_eq!((&image["os"], &image["release"]), (&"alpine".into(), &"trixie".into()));
    scene.nothing_half_made();
}

fn what_is_no_image_is_refused_in_one_line(lab: &Lab) {
    let scene = Scene::new(lab);
    let good = scene.archive("good.tar", "--no-xattrs");
    let noise = scene.file("noise", &[7; 4096]);
    let cut = scene.file("cut.tar", &fs::read(&good).unwrap()[..5000]);
    scene.fails(&["import", "nowhere.tar"], 5, "No such file");
    scene.fails(&["import", "/dev/null"], 5, "neither a directory nor a file");
    scene.fails(&["import", &noise], 5, "cannot import");
    scene.fails(&["import", &cut], 5, "cannot import");
    scene.fails(&["import", &good, "--sha256", &"0".repeat(64)], 5, "the checksum is");
    scene.fails(&["import", "http://localhost/x.tar"], 2, "only https:// is");
    scene.fails(&["import", "https://localhost:1/x.tar"], 5, "could not be fetched");
    scene.fails(&["import", "x", "--server", "https://localhost:1/"], 5, "could not be fetched");
    fs::create_dir(scene.user.home.join("empty")).unwrap();
    chown(scene.user.home.join("empty"), Some(scene.user.uid), None).unwrap();
    scene.fails(&["import", "empty"], 5, "there is no system in it");
    // Names that lead out, which nothing makes by itself.
    for (name, rule) in
        [("away.tar", "s,^./etc/hostname,../../x,"), ("link.tar", "s,^./etc/hostname,./home/x/link/y,")]
    {
        let path = scene.file(name, b"");
        run(Command::new("tar")
            .args(["-P", "--transform", rule, "-cf", &path, "-C"])
            .arg(lab.scratch.join("tree"))
            .args(["./home/x/link", "./etc/os-release", "./etc/hostname"]));
        scene.fails(&["import", &path], 5, "");
    }
    assert!(!scene.data().join("images/x").exists() && !scene.data().join("x").exists());
    for verb in ["remove", "export"] {
        let words: &[&str] =
            if verb == "remove" { &["remove", "none"] } else { &["export", "none", "x.tar"] };
        scene.fails(words, 1, "there is no image `none`");
    }
    scene.fails(&["export", "none", "x.zip"], 2, "how it is compressed");
    scene.fails(&["import", &good, "--alias", "a b"], 2, "is no name for an image");
    scene.fails(&["build", "fedora:40"], 2, "`fedora:40` can't be built");
    scene.fails(&["build", "debian:trixie", "--components", "main,a/b"], 2, "`a/b` is no name");
    let (code, reason) = match Path::new("/usr/share/keyrings/ubuntu-archive-keyring.gpg").exists() {
        true => (5, "mmdebstrap failed"),
        false => (4, "apt install ubuntu-keyring"),
    };
    scene.fails(&["build", "ubuntu:noble", "--mirror", "http://127.0.0.1:1/ubuntu"], code, reason);
    scene.fails(&["import", "-", &good], 2, "standard input holds one archive");
    // Standard input is empty here.
    scene.fails(&["import", "-"], 5, "this is no tar archive");
    // What is made to fill disks.
    let bomb = scene.file("bomb.tar.gz", b"");
    fs::File::create(lab.scratch.join("zeros")).unwrap().set_len(300 << 20).unwrap();
    run(Command::new("tar").args(["-z", "-cf", &bomb, "-C"]).arg(&lab.scratch).arg("zeros"));
    scene.fails(&["import", &bomb], 5, "more than 400 times its size");
    scene.fails(&["build", "debian:trixie", "--mirror", "ftp://x"], 2, "is no mirror");
    let id = scene.done(&["import", &good]).0;
    scene.fails(&["export", id.trim(), "/nowhere/x.tar"], 4, "could not be written");
    scene.fails(&["export", id.trim(), "/x.tar"], 4, "could not be written");
}

fn a_damaged_image_is_listed_as_such(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar", "--no-xattrs");
    let id = scene.done(&["import", &archive, "--alias", "bad", "-q"]).0.trim().to_owned();
    let other = scene.archive("b.tar.gz", "-z");
    scene.done(&["import", &other, "--alias", "good", "-q"]);
    let images = scene.data().join("images");
    fs::write(images.join(&id).join("image.json"), "{").unwrap();
    let (table, said) = scene.done(&["list"]);
    let remedy = format!(
        "damaged: its description is not what was written there; 'cgrant image remove {}'",
        &id[..12]
    );
    assert!(table.contains(&remedy) && table.contains("Debian 13") && said.is_empty(), "{table}{said}");
    let listed = scene.images().into_iter().find(|image| image["id"] == id.as_str()).unwrap();
    assert!(listed["damaged"].is_string() && listed["aliases"][0] == "bad", "{listed}");
    scene.fails(&["export", "bad", "x.tar"], 4, "is damaged");
    assert!(!scene.user.home.join("x.tar").exists());
    scene.done(&["remove", "bad"]);
    // Names that can't be read keep nobody from the images, and what would change them does nothing by halves.
    fs::write(images.join("aliases.json"), "[").unwrap();
    let (table, said) = scene.done(&["list"]);
    assert!(table.contains("Debian 13") && said.contains("delete it, and name images anew"), "{table}{said}");
    scene.fails(&["import", &archive, "--alias", "x"], 4, "aliases.json` in the data directory is damaged");
    assert!(!images.join(&id).exists());
    scene.fails(&["remove", &sum(&other)], 4, "aliases.json` in the data directory is damaged");
    fs::remove_file(images.join("aliases.json")).unwrap();
    scene.done(&["remove", &sum(&other)]);
    scene.nothing_half_made();
}

fn an_archive_comes_from_a_program(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar.gz", "-z");
    let bytes = fs::read(&archive).unwrap();
    let import = |input: Stdio, words: &[&str]| {
        let mut command = scene.command(&[&["import", "-"], words].concat());
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let piped = |bytes: &[u8], words: &[&str]| {
        let mut child = import(Stdio::piped(), words);
        // Who refuses it may not read it to its end.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        let output = child.wait_with_output().unwrap();
        let (out, said) = text(&output);
        (output.status.code(), out, said)
    };
    let (code, out, said) = piped(&bytes, &["--alias", "mine"]);
    assert!(code == Some(0) && out.trim() == sum(&archive) && said.contains("receiving"), "{out}{said}");
    // A name that was another image's is told.
    let plain = scene.archive("b.tar", "--no-xattrs");
    let child = import(fs::File::open(&plain).unwrap().into(), &["--alias", "mine"]);
    let (out, said) = text(&child.wait_with_output().unwrap());
    assert_eq!(out.trim(), sum(&plain), "{said}");
    assert!(
        said.contains(&format!("`mine` was a name of the image {} until now", &sum(&archive)[..12])),
        "{said}"
    );
    let (code, _, said) = piped(&bytes, &["--sha256", &sum(&plain)]);
    assert!(code == Some(5) && said.contains("the checksum is"), "{said}");
    let (code, _, said) = piped(&bytes[..bytes.len() / 2], &[]);
    assert!(code == Some(5) && said.contains("is cut off"), "{said}");
    assert_eq!(scene.images().len(), 2);
    scene.nothing_half_made();
}

fn places_that_do_not_serve_are_named(lab: &Lab) {
    let scene = Scene::new(lab);
    let good = scene.archive("good.tar", "--no-xattrs");
    let with = |name: &str, value: &str, words: &[&str]| {
        let output = scene.command(words).env(name, value).output().unwrap();
        (output.status.code(), text(&output).1)
    };
    let (code, said) = with("XDG_DATA_HOME", "/proc/x", &["list"]);
    assert!(code == Some(4) && said.contains("/proc/x/cgrant"), "{said}");
    let foreign = lab.scratch.join("foreign");
    fs::create_dir_all(foreign.join("cgrant")).unwrap();
    let (code, said) = with("XDG_DATA_HOME", foreign.to_str().unwrap(), &["list"]);
    assert!(code == Some(4) && said.contains("belongs to the uid 0"), "{said}");
    let (code, said) = with("HOME", "", &["list"]);
    assert!(code == Some(4) && said.contains("XDG_DATA_HOME"), "{said}");
    let (code, said) = with("CGRANT_SOCKET", "/nowhere/bus", &["import", &good]);
    assert!(code == Some(3) && said.contains("/nowhere/bus"), "{said}");

    // A file system that is nearly full, in a mount namespace of the command's own.
    let full = lab.scratch.join("full");
    fs::create_dir(&full).unwrap();
    let script = format!("mount -t tmpfs -o size=32m,mode=777 full {} && exec \"$@\"", full.display());
    let inner = scene.command(&["import", &good]);
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script, "sh"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir("/").stdin(Stdio::null());
    command
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("XDG_DATA_HOME", &full);
    let output = command.output().unwrap();
    let (out, said) = text(&output);
    assert!(output.status.code() == Some(4) && said.contains("nearly full"), "{out}{said}");

    // Policy that gives no grants.
    lab.write_policy("[[rule]]\nname = \"none\"\n[rule.quota]\ngrants = 0\n");
    scene.broker.reload();
    scene.fails(&["import", &good], 1, "");
}

// The whole way, with the mirror of this machine's apt.
fn debian_is_built_by_an_ordinary_user(lab: &Lab) {
    let scene = Scene::new(lab);
    let (id, said) = scene.done(&["build", "debian:trixie"]);
    assert!(said.contains("I: installing remaining packages"), "{said}");
    let image = &scene.images()[0];
    assert_eq!((&image["id"], &image["aliases"]), (&id.trim().into(), &serde_json::json!(["debian:trixie"])));
    assert_eq!((&image["os"], &image["release"]), (&"debian".into(), &"trixie".into()));
    let rootfs = scene.data().join("images").join(id.trim()).join("rootfs");
    let (base, _, mode) = disk(&rootfs.join("usr/bin/su"));
    assert_eq!(mode, 0o4755);
    assert_ne!(base, scene.user.uid);
    assert!(rootfs.join("usr/lib/systemd/systemd").exists());
    assert_eq!(disk(&rootfs.join("etc/shadow")), (base, base + 42, 0o640));
    scene.done(&["remove", "debian:trixie"]);
    scene.nothing_half_made();
}

fn what_ends_early_leaves_nothing(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("next.tar", "--no-xattrs");
    // A mirror that takes calls and says nothing: the build waits for as long as we like.
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/debian", mirror.local_addr().unwrap());
    let new = || names(&scene.data().join("images")).iter().any(|name| name.starts_with(".new-"));
    let begin = || {
        let words = ["build", "debian:trixie", "--mirror", &url];
        let mut process = scene.command(&words);
        let process = Process::of(process.stdout(Stdio::null()).stderr(Stdio::null()));
        wait_until("the build is under way", || {
            new()
                && !checker::members(&checker::place(lab, scene.user.uid, "cgrant-images", "pids")).is_empty()
                && mirror_was_called(&mirror)
        });
        process
    };
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut process = begin();
        rustix::process::pidfd_send_signal(&process.pidfd, signal).unwrap();
        assert_eq!(process.wait_code(), Some(code));
        scene.nothing_half_made();
    }
    // A command that is killed: its keeper and the broker clear up.
    let mut process = begin();
    process.kill();
    // Whoever comes next finds the way free, however soon.
    scene.done(&["import", &archive]);
    assert!(!new());
    wait_until("the grant is gone", || checker::records(lab).is_empty());
    scene.nothing_half_made();
    // Without a broker the command does it by itself.
    let mut process = begin();
    let mut scene = scene;
    scene.broker.kill_everything();
    rustix::process::pidfd_send_signal(&process.pidfd, Signal::INT).unwrap();
    assert_eq!(process.wait_code(), Some(130));
    assert!(!names(&scene.data().join("images")).iter().any(|name| name.starts_with(".new-")));
    scene.broker.start_again();
    wait_until("the grant is gone", || checker::records(lab).is_empty());
}

fn mirror_was_called(mirror: &TcpListener) -> bool {
    mirror.set_nonblocking(true).unwrap();
    // Closed at once, apt would call again; it is to wait.
    mirror.accept().map(|(stream, _)| std::mem::forget(stream)).is_ok()
}

fn work_on_images_goes_one_after_the_other(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar", "--no-xattrs");
    let mut all: Vec<_> = (0..4)
        .map(|number| {
            let mut command = scene.command(&["import", &archive, "--alias", &format!("n{number}")]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in all.drain(..) {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{:?}", text(&output));
    }
    let images = scene.images();
    assert_eq!((images.len(), images[0]["aliases"].as_array().unwrap().len()), (1, 4));
    scene.nothing_half_made();
}

fn progress_is_drawn_on_a_terminal_alone(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar", "--no-xattrs");
    let inner = scene.command(&["import", &archive]);
    let program = lab.programs.join("cgrant");
    let line = format!("{} image import {archive} 2>&1; echo ended $?", program.display());
    let mut command = scene.user.command("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]);
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    let (out, _) = text(&output);
    assert!(out.contains("\runpacking [") && out.contains("% ") && out.contains("\x1b[K"), "{out:?}");
    // Nothing of the line is left beside what follows it.
    let last = out.rsplit("\x1b[K").next().unwrap();
    assert!(last.contains(&sum(&archive)) && last.trim_end().ends_with("ended 0"), "{out:?}");
    let (_, said) = scene.done(&["import", &archive]);
    assert!(!said.contains(['\r', '\x1b']), "{said:?}");
}

fn an_image_of_a_container_stays(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar", "--no-xattrs");
    scene.done(&["import", &archive, "--alias", "mine", "-q"]);
    let container = |words: &[&str]| {
        let output = scene.user.cgrant(scene.broker.socket(), words);
        assert_eq!(output.status.code(), Some(0), "cgrant {words:?}: {:?}", text(&output));
    };
    container(&["create", "mine", "web"]);
    scene.fails(&["remove", "mine"], 1, "is in use by: web");
    container(&["delete", "web"]);
    scene.done(&["remove", "mine"]);
    scene.nothing_half_made();
}

// A server with HTTPS and a certificate of its own, of files that are whole answers below `directory`.
fn server(lab: &Lab, directory: &Path) -> (Process, String, PathBuf) {
    let (key, certificate) = (lab.scratch.join("key.pem"), lab.scratch.join("cert.pem"));
    run(Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate));
    fs::set_permissions(&certificate, fs::Permissions::from_mode(0o644)).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-HTTP", "-accept", &format!("127.0.0.1:{port}"), "-key"]);
    command.arg(&key).arg("-cert").arg(&certificate).current_dir(directory);
    let server = Process::of(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("the server answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (server, format!("https://localhost:{port}"), certificate)
}

fn images_come_from_servers(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar.xz", "-J");
    let meta = scene.file("meta.tar", b"");
    fs::write(lab.scratch.join("metadata.yaml"), "properties:\n  os: Debian\n").unwrap();
    run(Command::new("tar").args(["-cf", &meta, "-C"]).arg(&lab.scratch).arg("metadata.yaml"));
    let web = lab.scratch.join("web");
    let serve = |path: &str, body: &[u8]| {
        let path = web.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        fs::write(path, [head.as_bytes(), body].concat()).unwrap();
    };
    serve("a.tar.xz", &fs::read(&archive).unwrap());
    serve("meta.tar", &fs::read(&meta).unwrap());
    let item = |kind: &str, path: &str, file: &str| serde_json::json!({ "ftype": kind, "path": path, "sha256": sum(file), "size": fs::metadata(file).unwrap().len() });
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let items = serde_json::json!({ "m": item("incus.tar.xz", "meta.tar", &meta), "r": item("root.tar.xz", "a.tar.xz", &archive) });
    let product = serde_json::json!({ "aliases": "debian/13", "arch": arch, "os": "Debian", "release": "trixie",
        "versions": { "1": { "items": items } } });
    let products = serde_json::json!({ "products": { format!("debian:trixie:{arch}:default"): product } });
    serve("streams/v1/images.json", products.to_string().as_bytes());
    let index = r#"{"index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json"}}}"#;
    serve("streams/v1/index.json", index.as_bytes());

    let (_server, url, certificate) = server(lab, &web);
    let import = |words: &[&str]| {
        let mut command = scene.command(&[&["import"], words].concat());
        let output = command.env("SSL_CERT_FILE", &certificate).output().unwrap();
        (output.status.code(), text(&output))
    };
    let remote = format!("{url}/a.tar.xz");
    let (code, (out, said)) = import(&[&remote, "--sha256", &sum(&archive), "--alias", "one"]);
    assert!(code == Some(0) && said.contains("downloading"), "{out}{said}");
    assert_eq!(out.trim(), sum(&archive));
    let (code, (out, said)) = import(&["debian/13", "--server", &url, "--alias", "two"]);
    assert!(code == Some(0), "{out}{said}");
    let both = [fs::read(&meta).unwrap(), fs::read(&archive).unwrap()].concat();
    assert_eq!(out.trim(), sum(&scene.file("both", &both)), "the fingerprint that Incus has for it");
    let image = scene.images().into_iter().find(|image| image["id"] == out.trim()).unwrap();
    assert!(image["source"].as_str().unwrap().contains(&url), "{image}");

    // What it has not, what comes otherwise than it said, and a server that nobody vouches for.
    let (code, (_, said)) = import(&["debian/12", "--server", &url]);
    assert!(code == Some(5) && said.contains("has no image `debian/12`"), "{said}");
    serve("a.tar.xz", b"other");
    let (code, (_, said)) = import(&["debian/13", "--server", &url]);
    assert!(code == Some(5), "{said}");
    scene.fails(&["import", &remote], 5, "could not be fetched");
    scene.nothing_half_made();
}

// What the grant of a command that was killed is, for as long as the broker has not seen it.
fn a_grant_that_is_about_to_end_is_waited_for(lab: &Lab) {
    let scene = Scene::new(lab);
    let archive = scene.archive("a.tar", "--no-xattrs");
    let client = scene.user.client(scene.broker.socket());
    let grant = client.create("cgrant-images", Options::new().no_range()).unwrap();
    let mut command = scene.command(&["import", &archive, "--quiet"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the command has asked", || scene.broker.log().contains("may not create grant cgrant-images"));
    client.release(&grant.path, true).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", text(&output));
    scene.nothing_half_made();
}

crate::tests![
    images_come_from_servers,
    an_image_of_a_container_stays,
    a_damaged_image_is_listed_as_such,
    an_archive_comes_from_a_program,
    progress_is_drawn_on_a_terminal_alone,
    a_grant_that_is_about_to_end_is_waited_for,
    an_archive_becomes_an_image_and_an_archive_again,
    directories_and_images_in_two_pieces_are_taken,
    what_is_no_image_is_refused_in_one_line,
    places_that_do_not_serve_are_named,
    debian_is_built_by_an_ordinary_user,
    what_ends_early_leaves_nothing,
    work_on_images_goes_one_after_the_other,
];
