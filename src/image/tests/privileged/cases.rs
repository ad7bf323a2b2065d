//! The cases.

use std::fs::File;
use std::io::Seek;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use cgrant_image::archive::Compression;
use cgrant_image::build::{BuildError, Recipe, build};
use cgrant_image::store::{Alias, Store, StoreError};
use cgrant_image::{
    Act, CopyOptions, Form, ImportError, Imported, LeftOut, PlaceError, Source, UnpackError, copy,
    describe_built, export, identity, import, leftovers, remove_tree, unpack,
};
use cgrant_sys::{Dir, mount};

use crate::scene::{CALLER, IMAGES, INSIDE, Scene, WEB, limits, mapped};

/// Capabilities without a root: `cap_net_raw=ep`.
const CAPS: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An archive as GNU tar makes it of files with odd owners, made by the real root, at `home/image.tar`.
fn make_archive(scene: &Scene) {
    let tree = scene.home().join("source");
    for directory in ["usr/bin", "etc", "var/mail", "dev"] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    std::fs::write(tree.join("usr/bin/ping"), "ping").unwrap();
    std::fs::write(tree.join("usr/bin/su"), "su").unwrap();
    std::fs::hard_link(tree.join("usr/bin/su"), tree.join("usr/bin/other")).unwrap();
    std::os::unix::fs::symlink("usr/bin", tree.join("bin")).unwrap();
    // tar writes lists with the names that ids have on this machine.
    std::fs::copy("/etc/passwd", tree.join("etc/passwd")).unwrap();
    std::fs::copy("/etc/group", tree.join("etc/group")).unwrap();
    std::os::unix::fs::chown(tree.join("var/mail"), Some(0), Some(8)).unwrap();
    std::os::unix::fs::chown(tree.join("usr/bin/ping"), Some(65_535), Some(65_535)).unwrap();
    std::fs::set_permissions(tree.join("usr/bin/su"), PermissionsExt::from_mode(0o4755)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.join("usr/bin/ping"), "security.capability", &CAPS, flags).unwrap();
    let acl =
        cgrant_image::acl::Acl::from_text("user::rwx,user:7:r--,group::r-x,mask::r-x,other::---", 65_536);
    rustix::fs::setxattr(tree.join("etc"), "system.posix_acl_access", &acl.unwrap().to_bytes(), flags)
        .unwrap();
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let null = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&tree.join("dev/null"), kind, nix::sys::stat::Mode::empty(), null).unwrap();
    let status = std::process::Command::new("tar")
        .args(["--create", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--file"])
        .arg(scene.home().join("image.tar"))
        .arg("--directory")
        .arg(&tree)
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    std::os::unix::fs::chown(scene.home().join("image.tar"), Some(CALLER), Some(CALLER)).unwrap();
}

fn archive(home: &Dir) -> File {
    home.open_file("image.tar", rustix::fs::OFlags::RDONLY).unwrap().into()
}

pub fn owners_are_those_of_the_range() {
    let scene = Scene::new();
    make_archive(&scene);
    scene.inside(IMAGES, |home| {
        let image = home.create_dir("image", 0o755).unwrap();
        let imported = import(&image, Source::Archive(archive(&home)), None, &limits(), &mut |_| ()).unwrap();
        assert_eq!(imported.omissions.count, 1, "{:?}", imported.omissions);
        assert_eq!(imported.omissions.first[0].1, LeftOut::Device);
    });
    let path = |name: &str| scene.home().join("image/rootfs").join(name);
    let owner =
        |name: &str| std::fs::symlink_metadata(path(name)).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!(owner(""), (IMAGES, IMAGES));
    assert_eq!(owner("bin"), (IMAGES, IMAGES));
    assert_eq!(owner("var/mail"), (IMAGES, IMAGES + 8));
    assert_eq!(owner("usr/bin/ping"), (IMAGES + 65_535, IMAGES + 65_535));
    assert_eq!(std::fs::metadata(path("usr/bin/su")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(std::fs::metadata(path("usr/bin/su")).unwrap().nlink(), 2);
    let xattr = |name: &str, key: &str| {
        let mut value = vec![0; 1000];
        let length = rustix::fs::getxattr(path(name), key, value.as_mut_slice()).unwrap();
        value.truncate(length);
        value
    };
    // They hold for the range's root alone: the kernel wrote down which.
    let caps = xattr("usr/bin/ping", "security.capability");
    assert_eq!((caps.len(), caps[3]), (24, 3));
    assert_eq!(caps[20..], IMAGES.to_le_bytes());
    let acl = cgrant_image::acl::Acl::from_bytes(&xattr("etc", "system.posix_acl_access"), u32::MAX).unwrap();
    assert!(acl.to_text().contains(&format!("user:{}:r--", IMAGES + 7)), "{}", acl.to_text());
}

pub fn the_callers_id_is_no_owner() {
    let scene = Scene::new();
    let tree = scene.home().join("source/etc");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("setuid"), "").unwrap();
    std::os::unix::fs::chown(tree.join("setuid"), Some(65_536), Some(0)).unwrap();
    let status = std::process::Command::new("tar")
        .args(["--create", "--file"])
        .arg(scene.home().join("image.tar"))
        .arg("--directory")
        .arg(scene.home().join("source"))
        .arg(".")
        .status();
    assert!(status.unwrap().success());
    scene.inside(IMAGES, |home| {
        let image = home.create_dir("image", 0o755).unwrap();
        let result = import(&image, Source::Archive(archive(&home)), None, &limits(), &mut |_| ());
        match result {
            Err(ImportError::Unpack(UnpackError::Place(PlaceError::Owner { id: 65_536, .. }))) => (),
            other => panic!("{other:?}"),
        }
    });
}

pub fn both_sides_use_one_store() {
    let scene = Scene::new();
    make_archive(&scene);
    scene.outside(|home| drop(Store::open(&home.join("data/cgrant")).unwrap()));
    let name: Alias = "debian:test".parse().unwrap();
    scene.inside(IMAGES, |home| {
        let store = Store::open_inside(&home.open_below(&["data", "cgrant"]).unwrap(), INSIDE).unwrap();
        let new = store.begin_image().unwrap();
        let imported =
            import(new.dir(), Source::Archive(archive(&home)), None, &limits(), &mut |_| ()).unwrap();
        store.finish_image(new, imported, "image.tar", std::slice::from_ref(&name)).unwrap();
        // Half made, and its maker will be gone.
        let half = store.begin_image().unwrap();
        half.dir().create_dir("rootfs", 0o700).unwrap();
        std::mem::forget(half);
    });
    scene.outside(|home| {
        let store = Store::open(&home.join("data/cgrant")).unwrap();
        let image = store.image("debian:test").unwrap();
        assert_eq!(image.left_out, 1);
        store.name(image.id, &["mine".parse().unwrap()]).unwrap();
        assert!(store.unname(&name).unwrap());
        // What is half made can't be looked into, so it is left; the files of an image are not the account's to remove.
        store.sweep().unwrap();
        assert!(matches!(store.remove_image(image.id), Err(StoreError::Use { .. })));
        assert!(matches!(store.sweep(), Err(StoreError::Use { .. })));
        assert!(store.images().unwrap().is_empty());
    });
    scene.inside(IMAGES, |home| {
        let store = Store::open_inside(&home.open_below(&["data", "cgrant"]).unwrap(), INSIDE).unwrap();
        drop(store.begin_image().unwrap());
    });
    let images = scene.home().join("data/cgrant/images");
    let names: Vec<_> = std::fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["aliases.json"], "what was half made and half removed is gone");
}

pub fn what_is_exported_has_the_owners_of_the_inside() {
    let scene = Scene::new();
    make_archive(&scene);
    scene.inside(IMAGES, |home| {
        let import_to = |name: &str| {
            let image = home.create_dir(name, 0o755).unwrap();
            let mut tar = archive(&home);
            tar.rewind().unwrap();
            import(&image, Source::Archive(tar), None, &limits(), &mut |_| ()).unwrap();
            image.open_dir("rootfs").unwrap()
        };
        let rootfs = import_to("image");
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE;
        let metadata = "architecture: x86_64\n";
        let mut out = File::from(home.open_file("out.tar.gz", flags).unwrap());
        let form = Form::Unified(metadata);
        export(&rootfs, form, Compression::Gzip, &mut out, &limits(), &mut |_| ()).unwrap();
        out.rewind().unwrap();
        let again = home.create_dir("again", 0o755).unwrap();
        let imported = import(&again, Source::Archive(out), None, &limits(), &mut |_| ()).unwrap();
        assert_eq!(imported.about.architecture, "x86_64");
        let sum = |dir: &Dir| identity(dir, &limits(), &mut |_| ()).unwrap();
        assert_eq!(sum(&again.open_dir("rootfs").unwrap()), sum(&rootfs));
    });
    // Everybody else's tar understands it.
    let listing = std::process::Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner", "--gzip", "--file"])
        .arg(scene.home().join("out.tar.gz"))
        .output()
        .unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(listing.contains(" 65535/65535 "), "{listing}");
    assert!(
        listing.lines().any(|line| line.starts_with("-rwsr-xr-x") && line.contains(" 0/0 ")),
        "{listing}"
    );
}

pub fn another_ranges_tree_is_copied() {
    let scene = Scene::new();
    make_archive(&scene);
    scene.inside(IMAGES, |home| {
        let image = home.create_dir("image", 0o755).unwrap();
        import(&image, Source::Archive(archive(&home)), None, &limits(), &mut |_| ()).unwrap();
    });
    let rootfs = mapped(&scene.home().join("image/rootfs"), IMAGES, WEB);
    scene.inside(WEB, |home| {
        let target = home.create_dir("web", 0o755).unwrap();
        let source = Dir::from_fd(rootfs).unwrap();
        let copied = copy(&source, &target, CopyOptions::default(), &limits(), &mut |_| ()).unwrap();
        assert_eq!(copied.omissions.count, 0);
        let sum = |dir: &Dir| identity(dir, &limits(), &mut |_| ()).unwrap();
        assert_eq!(sum(&source), sum(&target));
    });
    let ping = std::fs::metadata(scene.home().join("web/usr/bin/ping")).unwrap();
    assert_eq!(ping.uid(), WEB + 65_535);
}

pub fn another_ranges_tree_is_piped() {
    let scene = Scene::new();
    make_archive(&scene);
    let (output, input) = std::io::pipe().unwrap();
    scene.inside(IMAGES, |home| {
        let image = home.create_dir("image", 0o755).unwrap();
        import(&image, Source::Archive(archive(&home)), None, &limits(), &mut |_| ()).unwrap();
        let rootfs = image.open_dir("rootfs").unwrap();
        // Less than a pipe holds, so that one may come after the other here.
        export(&rootfs, Form::Plain, Compression::None, input, &limits(), &mut |_| ()).unwrap();
    });
    scene.inside(WEB, |home| {
        let target = home.create_dir("web", 0o755).unwrap();
        unpack(output, None, &target, &limits(), &mut |_| ()).unwrap();
    });
    let owner = |path: &str| std::fs::metadata(scene.home().join(path)).unwrap().uid();
    assert_eq!(owner("image/rootfs/usr/bin/ping"), IMAGES + 65_535);
    assert_eq!(owner("web/usr/bin/ping"), WEB + 65_535);
}

pub fn the_callers_directory_becomes_an_image() {
    let scene = Scene::new();
    scene.outside(|home| {
        std::fs::create_dir_all(home.join("mine/etc")).unwrap();
        std::fs::write(home.join("mine/etc/secret"), "x").unwrap();
        std::fs::set_permissions(home.join("mine/etc/secret"), PermissionsExt::from_mode(0o600)).unwrap();
    });
    scene.inside(IMAGES, |home| {
        let image = home.create_dir("image", 0o755).unwrap();
        let source = Source::Directory(home.open_dir("mine").unwrap(), Some(INSIDE));
        let Imported { entries, .. } = import(&image, source, None, &limits(), &mut |_| ()).unwrap();
        assert_eq!(entries, 3);
    });
    let secret = std::fs::metadata(scene.home().join("image/rootfs/etc/secret")).unwrap();
    assert_eq!((secret.uid(), secret.gid(), secret.mode() & 0o7777), (IMAGES, IMAGES, 0o600));
}

pub fn a_full_disk_is_named() {
    let scene = Scene::new();
    scene.inside(IMAGES, |home| {
        let attributes = mount::MountAttrFlags::empty();
        for (options, keep_free, expected) in [
            ([("size", Some("4M")), ("nr_inodes", Some("0"))], 0, "the file system is full"),
            ([("size", Some("64M")), ("nr_inodes", Some("0"))], 60 << 20, "is nearly full"),
            ([("size", Some("64M")), ("nr_inodes", Some("100"))], 0, "the file system is full"),
        ] {
            let disk = Dir::from_fd(mount::fs_mount("tmpfs", &options, attributes).unwrap()).unwrap();
            let source = tree_of_noise(&home);
            let limits = cgrant_image::Limits { keep_free, ..limits() };
            let error = copy(&source, &disk, CopyOptions::default(), &limits, &mut |_| ()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options:?}: {error}");
        }
    });
}

/// 200 files of together 20 MiB without zeros.
fn tree_of_noise(home: &Dir) -> Dir {
    if let Ok(there) = home.open_dir("noise") {
        return there;
    }
    let noise = home.create_dir("noise", 0o755).unwrap();
    for file in 0..200 {
        noise.write_atomic(format!("f{file}"), &vec![7; 100 << 10], false).unwrap();
    }
    noise
}

pub fn a_mount_is_not_removed() {
    let scene = Scene::new();
    scene.inside(IMAGES, |home| {
        home.create_dir("tree", 0o755).unwrap().create_dir("mounted", 0o755).unwrap();
        let other = mount::fs_mount("tmpfs", &[], mount::MountAttrFlags::empty()).unwrap();
        let place = home.open_below(&["tree", "mounted"]).unwrap();
        mount::move_mount(&other, &place, Path::new("")).unwrap();
        let other = Dir::from_fd(other).unwrap();
        other.write_atomic("precious", b"", false).unwrap();
        remove_tree(&home, "tree".as_ref(), ".old-").unwrap_err();
        assert!(other.exists("precious").unwrap());
    });
}

/// Whoever could mount something over a file waits for somebody to ask it, or wants that removed which is mounted.
pub fn a_mount_over_a_file_is_no_leftover() {
    let scene = Scene::new();
    scene.inside(IMAGES, |home| {
        for (name, uid) in [("old", 5), ("place", 5), ("mounted", 5), ("others", 6), ("place-of-others", 5)] {
            home.write_atomic(name, b"", false).unwrap();
            home.chown(name, uid, uid).unwrap();
        }
        for (from, to) in [("mounted", "place"), ("others", "place-of-others")] {
            let clone = mount::open_tree_clone(&home, Path::new(from), false).unwrap();
            let place = mount::open_place(&scene.home().join(to)).unwrap();
            mount::move_mount(&clone, place, Path::new("")).unwrap();
        }
        home.remove_file("mounted").unwrap();
        let removed = leftovers(&home, &[(5, 5)], Act::Remove, &AtomicU64::default());
        assert_eq!((removed.usage.files, removed.failed, removed.foreign), (1, 0, 0), "{removed:?}");
        let mut names = home.names().unwrap();
        names.sort();
        assert_eq!(names, ["others", "place", "place-of-others"]);
    });
}

/// As in subvolumes of btrfs: files of one mount with device numbers of their own.
pub fn another_device_number_is_no_mount() {
    let scene = Scene::new();
    scene.inside(IMAGES, |home| {
        let mut layers = Vec::new();
        for name in ["upper", "lower"] {
            home.create_dir(name, 0o755).unwrap();
            let layer = mount::fs_mount("tmpfs", &[], mount::MountAttrFlags::empty()).unwrap();
            let place = scene.home().join(name);
            mount::move_mount(&layer, mount::open_place(&place).unwrap(), Path::new("")).unwrap();
            let layer = Dir::from_fd(layer).unwrap();
            layer.write_atomic(name, b"", false).unwrap();
            layer.chown(name, 5, 5).unwrap();
            layers.push(place.to_str().unwrap().to_owned());
        }
        let options = [("lowerdir", Some(layers.join(":"))), ("xino", Some("off".to_owned()))];
        let options = options.each_ref().map(|(key, value)| (*key, value.as_deref()));
        let both = mount::fs_mount("overlay", &options, mount::MountAttrFlags::empty()).unwrap();
        let both = Dir::from_fd(both).unwrap();
        let devices = ["upper", "lower"].map(|name| both.look(name).unwrap().st_dev);
        assert_ne!(devices[0], devices[1]);
        let found = leftovers(&both, &[(5, 5)], Act::Count, &AtomicU64::default());
        assert_eq!((found.usage.files, found.failed), (2, 0), "{found:?}");
    });
}

/// What a build gives with this script as mmdebstrap.
fn built_by(scene: &Scene, script: &str, check: impl FnOnce(&Dir, Result<(), BuildError>, Vec<u64>)) {
    let path = scene.home().join("script");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    scene.inside(IMAGES, |home| {
        let clone = mount::open_tree_clone(&home, Path::new("script"), false).unwrap();
        let place = mount::open_place(Path::new("/usr/bin/mmdebstrap")).unwrap();
        mount::move_mount(&clone, place, Path::new("")).unwrap();
        let image = home.create_dir("image", 0o755).unwrap();
        let recipe = Recipe::new("debian:bookworm", &[]).unwrap();
        let mut steps = Vec::new();
        let result = build(&image, &recipe, &mut |_| (), &mut |progress| steps.push(progress.done));
        check(&image, result, steps);
    });
}

pub fn a_builder_that_fails_says_why() {
    let scene = Scene::new();
    let script = "echo \"I: extracting archives...\"; echo \"E: out of $2\" >&2; exit 3";
    built_by(&scene, script, |_, result, steps| {
        match result.unwrap_err() {
            BuildError::Failed { status, last } => {
                assert_eq!(status, "status 3");
                assert_eq!(last, ["I: extracting archives...", "E: out of --variant=minbase"]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(steps, [3]);
    });
    let scene = Scene::new();
    built_by(&scene, "kill -9 $$", |_, result, _| match result.unwrap_err() {
        BuildError::Failed { status, .. } => assert_eq!(status, "killed by signal 9"),
        other => panic!("{other:?}"),
    });
}

pub fn a_builder_leaves_nothing_beside_the_image() {
    let scene = Scene::new();
    let name = format!("left-{}", std::process::id());
    built_by(&scene, &format!("touch $TMPDIR/{name} && echo \"E: put down\" >&2; exit 3"), |_, result, _| {
        match result.unwrap_err() {
            BuildError::Failed { last, .. } => assert_eq!(last, ["E: put down"]),
            other => panic!("{other:?}"),
        }
    });
    for place in ["/tmp", "/var/tmp", "/dev/shm"] {
        assert!(!Path::new(place).join(&name).exists(), "{place}");
    }
}

pub fn a_builder_has_not_the_callers_account() {
    let scene = Scene::new();
    scene.outside(|home| {
        std::fs::write(home.join("secret"), "secret").unwrap();
        std::fs::set_permissions(home.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    });
    let home = scene.home();
    let home = home.display();
    let script = format!(
        "mkdir /mnt/etc /mnt/seen; echo x >/mnt/etc/hostname; cat {home}/secret >/mnt/seen/secret; ls {home} >/mnt/seen/home; \
         touch {home}/made; chown 65536 /mnt/seen/home && touch /mnt/seen/owned; chown 65535 /mnt/etc && touch /mnt/seen/range; id -u >/mnt/seen/id; true"
    );
    built_by(&scene, &script, |image, result, _| {
        result.unwrap_or_else(|error| panic!("{error}"));
        let seen = image.open_below(&["rootfs", "seen"]).unwrap();
        assert_eq!((seen.read("secret", 100).unwrap(), seen.read("home", 100).unwrap()), Default::default());
        assert_eq!(seen.read("id", 100).unwrap(), "0\n");
        assert!(!seen.exists("owned").unwrap() && seen.exists("range").unwrap());
        assert_eq!(image.open_below(&["rootfs", "etc"]).unwrap().names().unwrap(), ["machine-id"]);
    });
    assert!(!scene.home().join("made").exists());
    assert_eq!(std::fs::metadata(scene.home().join("image/rootfs/etc")).unwrap().uid(), IMAGES + 65_535);
}

pub fn debian_is_built_without_root() {
    let scene = Scene::new();
    scene.outside(|home| drop(Store::open(&home.join("data")).unwrap()));
    scene.inside(IMAGES, |home| {
        let store = Store::open_inside(&home.open_dir("data").unwrap(), INSIDE).unwrap();
        let new = store.begin_image().unwrap();
        let recipe = Recipe::new("debian:bookworm", &[]).unwrap().minimal();
        let mirror = recipe.mirror_of_machine(Path::new("/etc/apt"));
        let recipe = recipe.mirror(mirror);
        let mut done = Vec::new();
        build(new.dir(), &recipe, &mut |_| (), &mut |progress| done.push(progress.done))
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(done.last(), Some(&7));
        let imported = describe_built(new.dir(), &limits(), &mut |_| ()).unwrap();
        // A whole system survives the way out and in, and a copy.
        let rootfs = new.dir().open_dir("rootfs").unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CREATE;
        let mut out = File::from(home.open_file("out", flags).unwrap());
        export(&rootfs, Form::Plain, Compression::Zstd, &mut out, &limits(), &mut |_| ()).unwrap();
        out.rewind().unwrap();
        let again = home.create_dir("again", 0o755).unwrap();
        let unpacked = unpack(out, None, &again, &limits(), &mut |_| ()).unwrap();
        let third = home.create_dir("copy", 0o755).unwrap();
        let copied = copy(&again, &third, CopyOptions::default(), &limits(), &mut |_| ()).unwrap();
        assert_eq!((unpacked.omissions.count, copied.omissions.count), (0, 0));
        assert_eq!(identity(&again, &limits(), &mut |_| ()).unwrap(), imported.id);
        assert_eq!(identity(&third, &limits(), &mut |_| ()).unwrap(), imported.id);
        let name: Alias = "debian:bookworm".parse().unwrap();
        let image = store.finish_image(new, imported, &recipe.source(), &[name]).unwrap();
        assert_eq!((image.about.os.as_str(), image.about.release.as_str()), ("debian", "bookworm"));
        assert!(image.entries > 5000 && image.bytes > 100 << 20, "{image:?}");
    });
    scene.outside(|home| {
        let store = Store::open(&home.join("data")).unwrap();
        let image = store.image("debian:bookworm").unwrap();
        assert_eq!(image.about.architecture, rustix::system::uname().machine().to_str().unwrap());
    });
    let images = scene.home().join("data/images");
    let mut rootfs = std::fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path().join("rootfs"));
    let rootfs = rootfs.find(|path| path.exists()).expect("an image");
    let shadow = std::fs::metadata(rootfs.join("etc/shadow")).unwrap();
    assert_eq!((shadow.uid(), shadow.gid()), (IMAGES, IMAGES + 42));
    assert_eq!(std::fs::read(rootfs.join("etc/machine-id")).unwrap(), b"");
    let names = |name: &str| {
        let entries = std::fs::read_dir(rootfs.join(name)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    for name in ["dev", "proc", "sys", "tmp"] {
        assert!(names(name).is_empty(), "{name}: {:?}", names(name));
    }
    for name in ["etc/hostname", "etc/resolv.conf"] {
        assert!(!rootfs.join(name).exists(), "{name} is this machine's");
    }
    scene.inside(IMAGES, |home| {
        let store = Store::open_inside(&home.open_dir("data").unwrap(), INSIDE).unwrap();
        let image = store.image("debian:bookworm").unwrap();
        store.remove_image(image.id).unwrap();
        assert!(store.images().unwrap().is_empty());
    });
}
