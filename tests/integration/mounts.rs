//! Directories as mounts whose files belong to a container's ids, and the account's own ids in a user namespace: what system
//! containers are stored with. And callers who want more than that.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::Path,
};

use rustix::fs::{StatVfsMountFlags, fstatvfs};

use crate::common::{Broker, Client, Grant, Lab, Options, Place, User, checker};

// A process of the user's whose namespace has the range of this name and the user's own ids; for as long as the grant lives.
fn storage(user: &User, client: &Client, name: &str) -> (Grant, Place) {
    let place = Place::new(user, &user.home);
    let options = Options::new().fd("userns", &place.userns).with("own-ids", true);
    let grant = client.create(name, options).unwrap();
    (grant, place)
}

// The same as a container has it, without the user's own ids.
fn container(user: &User, client: &Client, name: &str, directory: &Path) -> (Grant, Place) {
    let place = Place::new(user, directory);
    let grant = client.create(name, Options::new().fd("userns", &place.userns)).unwrap();
    (grant, place)
}

// An image below the user's home, and a container's own directories, made as their ids: what is on disk.
fn image(user: &User, client: &Client) -> u32 {
    let (grant, place) = storage(user, client, "cgrant-images");
    place.does(&["root"]);
    // 65536 is the user.
    place.does(&["mkdir", "image", "755", "65536:65536"]);
    place.does(&["mkdir", "image/rootfs", "755", "0:0"]);
    place.does(&["file", "image/rootfs/su", "4755", "0:0"]);
    place.does(&["file", "image/rootfs/mail", "640", "1000:8"]);
    client.release(&grant.path, true).unwrap();
    grant.uid
}

fn disk(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

fn two_containers_of_an_image_copy_nothing(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let images = image(&user, &client);
    let rootfs = user.home.join("image/rootfs");
    assert_eq!(disk(&user.home.join("image")), (user.uid, user.gid, 0o755));
    assert_eq!(disk(&rootfs.join("su")), (images, images, 0o4755));
    assert_eq!(disk(&rootfs.join("mail")), (images + 1000, images + 8, 0o640));
    for name in ["one", "two"] {
        let (grant, place) = storage(&user, &client, name);
        place.does(&["root"]);
        place.does(&["mkdir", name, "755", "0:0"]);
        for directory in ["lower", "upper", "work", "merged"] {
            place.does(&["mkdir", &format!("{name}/{directory}"), "755", "0:0"]);
        }
        client.release(&grant.path, true).unwrap();
    }
    let run = |name: &str| {
        let (grant, place) = container(&user, &client, name, &user.home.join(name));
        assert_eq!(disk(&user.home.join(name)).0, grant.uid, "the range came back with its name");
        let directory = place.opens("open", "../image/rootfs");
        let options = Options::new().with("from", "cgrant-images").with("read-only", true);
        let mount = client.map(&grant, &directory, &place.mntns, options).unwrap();
        let flags = fstatvfs(&mount).unwrap().f_flag;
        let set = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::RDONLY;
        assert!(flags.contains(set), "{flags:?}");
        place.does(&["root"]);
        assert_eq!(place.attaches(&mount, "lower"), "ok");
        place.does(&["overlay"]);
        (grant, place)
    };
    let (one, two) = (run("one"), run("two"));
    for (_, place) in [&one, &two] {
        assert_eq!(place.does(&["stat", "merged/su"]), "0 0 4755");
        assert_eq!(place.does(&["stat", "merged/mail"]), "1000 8 640");
        assert_eq!(place.tries(&["write", "lower/su", "x"]), "EROFS");
    }
    one.1.does(&["write", "merged/su", "changed"]);
    one.1.does(&["file", "merged/new", "600", "33:33"]);
    one.1.does(&["chown", "merged/mail", "0:0"]);
    assert_eq!(two.1.does(&["read", "merged/su"]), "image/rootfs/su");
    assert_eq!(two.1.tries(&["stat", "merged/new"]), "ENOENT");
    // On disk: the image as it was, the changes in the container's own range.
    assert_eq!(disk(&rootfs.join("mail")), (images + 1000, images + 8, 0o640));
    assert_eq!(fs::read_to_string(rootfs.join("su")).unwrap(), "image/rootfs/su");
    let upper = user.home.join("one/upper");
    assert_eq!(disk(&upper.join("new")), (one.0.uid + 33, one.0.gid + 33, 0o600));
    assert_eq!(fs::read_dir(user.home.join("two/upper")).unwrap().count(), 0);
    assert!(broker.log().contains("may map directory one"), "a yes is in the log");
    for (grant, place) in [one, two] {
        drop(place);
        client.release(&grant.path, true).unwrap();
    }
    checker::assert_empty(lab);
}

fn a_users_directory_in_a_container_stays_the_users(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (shared, at) = (user.home.join("shared"), lab.scratch.join("at"));
    for path in [&shared, &at, &at.join("root"), &at.join("daemon")] {
        fs::create_dir(path).unwrap();
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
    fs::write(shared.join("letter"), "").unwrap();
    fs::set_permissions(shared.join("letter"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(shared.join("letter"), Some(user.uid), Some(user.gid)).unwrap();
    let (grant, place) = container(&user, &client, "web", &at);
    let directory = place.opens("open", shared.to_str().unwrap());
    let as_daemon = || Options::new().with("from", "own").with("as-uid", 33_u32).with("as-gid", 34_u32);
    for (name, options) in [("root", Options::new()), ("daemon", as_daemon())] {
        let mount = client.map(&grant, &directory, &place.mntns, options).unwrap();
        assert_eq!(place.attaches(&mount, name), "ok");
    }
    place.does(&["root"]);
    assert_eq!(place.does(&["stat", "root/letter"]), "0 0 600");
    assert_eq!(place.does(&["stat", "daemon/letter"]), "33 34 600");
    // What root makes belongs to the user; who is not on the map makes nothing.
    place.does(&["write", "root/answer", "by root"]);
    assert_eq!(disk(&shared.join("answer")), (user.uid, user.gid, 0o600));
    assert_eq!(place.tries(&["write", "daemon/answer2", ""]), "EOVERFLOW");
    assert_eq!(place.tries(&["chown", "root/answer", "1:1"]), "EOVERFLOW");
    // A letter of somebody else's there is nobody's, and neither read nor written.
    chown(shared.join("letter"), Some(user.uid + 1), Some(user.gid + 1)).unwrap();
    for name in ["root/letter", "daemon/letter"] {
        assert_eq!(place.does(&["stat", name]), "65534 65534 600");
        assert_eq!(place.tries(&["read", name]), "EACCES");
        assert_eq!(place.tries(&["write", name, "x"]), "EACCES");
    }
}

fn not_what_is_somebody_elses(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let stranger = other.client(broker.socket());
    // Ranges by names of both.
    image(&user, &client);
    image(&other, &stranger);
    let (_theirs, others_place) = container(&other, &stranger, "theirs", &other.home);
    let (grant, place) = container(&user, &client, "web", &user.home);
    let asks = |directory: &OwnedFd, mntns: &OwnedFd, options: Options| {
        client.map(&grant, directory, mntns, options).map(drop).unwrap_err()
    };
    let rootfs = place.opens("open", "image/rootfs");
    let images = || Options::new().with("from", "cgrant-images");

    // Directories: of another account, shown by whoever has them open; of root; of the kernel.
    let others = others_place.opens("open", "image");
    asks(&others, &place.mntns, images()).is("InvalidDescriptor", "not in the mount namespace");
    for (name, words) in [("/etc", "uid 0"), ("/tmp", "uid 0")] {
        asks(&place.opens("open", name), &place.mntns, images()).is("NotAuthorized", words);
    }
    asks(&place.opens("open", "/proc/self"), &place.mntns, images()).is("Unsupported", "proc");
    // What only proves that there is such a directory, and what is none.
    for how in ["open-path", "open-undeclared"] {
        asks(&place.opens(how, "image/rootfs"), &place.mntns, images())
            .is("InvalidDescriptor", "the directory");
    }
    let file = OwnedFd::from(fs::File::open("/etc/passwd").unwrap());
    asks(&file, &place.mntns, images()).is("InvalidDescriptor", "the directory");
    asks(&place.mntns, &place.mntns, images()).is("InvalidDescriptor", "the directory");

    // Namespaces: another account's, the host's, of another kind.
    let hosts = OwnedFd::from(fs::File::open("/proc/self/ns/mnt").unwrap());
    asks(&rootfs, &hosts, images()).is("NotAuthorized", "the host");
    asks(&rootfs, &others_place.mntns, images()).is("NotAuthorized", &format!("uid {}", other.uid));
    asks(&rootfs, &place.userns, images()).is("InvalidDescriptor", "mount namespace");
    asks(&rootfs, &rootfs, images()).is("InvalidDescriptor", "mount namespace");

    // Ids: of a range of another account's, of none, beyond the grant's; of files that are not of that range.
    asks(&rootfs, &place.mntns, Options::new().with("from", "theirs"))
        .is("InvalidArgument", "no range named");
    asks(&rootfs, &place.mntns, Options::new().with("from", "../own")).is("InvalidName", "");
    for key in ["as-uid", "as-gid"] {
        let options = Options::new().with(key, 65_536_u32);
        asks(&place.opens("open", "image"), &place.mntns, options).is("InvalidArgument", "0 to 65535");
    }
    asks(&rootfs, &place.mntns, Options::new()).is("NotAuthorized", "neither yours");
    asks(&rootfs, &place.mntns, Options::new().with("recursive", true)).is("InvalidArgument", "recursive");

    // Grants: another's, one without ids; and root has no say in which directories others' get.
    stranger.map(&grant, &others, &others_place.mntns, images()).unwrap_err().is("NoSuchGrant", "");
    let bare = client.create("bare", Options::new().no_range()).unwrap();
    client.map(&bare, &rootfs, &place.mntns, images()).unwrap_err().is("InvalidArgument", "no ids");
    let root = lab.root().client(broker.socket());
    root.map(&grant, &rootfs, &place.mntns, images()).unwrap_err().is("NotAuthorized", "who alone can say");

    // None of that has harmed what is right.
    client.map(&grant, &rootfs, &place.mntns, images()).unwrap();
    checker::assert_in_order(lab);
}

fn own_ids_are_the_callers_and_roots_are_nobodys(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (grant, place) = storage(&user, &client, "work");
    let map = |kind: &str| {
        let text = fs::read_to_string(format!("/proc/{}/{kind}", place.process.pid)).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(map("uid_map"), format!("0 {} 65536 65536 {} 1", grant.uid, user.uid));
    assert_eq!(map("gid_map"), format!("0 {} 65536 65536 {} 1", grant.gid, user.gid));
    // Rights over what is the user's, and over nothing else.
    place.does(&["root"]);
    let (others, roots) = (user.home.join("others"), user.home.join("roots"));
    for (path, owner) in [(&others, user.uid + 1), (&roots, 0)] {
        fs::write(path, "").unwrap();
        chown(path, Some(owner), Some(user.gid)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for name in ["others", "roots"] {
        assert_eq!(place.tries(&["read", name]), "EACCES", "{name}");
        assert_eq!(place.tries(&["chown", name, "0:0"]), "EPERM", "{name}");
    }
    place.does(&["file", "mine", "600", "65536:65536"]);
    assert_eq!(disk(&user.home.join("mine")), (user.uid, user.gid, 0o600));
    place.does(&["groups"]);
    client.release(&grant.path, true).unwrap();

    let none = client.create("none", Options::new().with("own-ids", true)).unwrap_err();
    none.is("InvalidArgument", "userns");
    let both = Options::new().no_range().with("own-ids", true);
    client.create("none", both).unwrap_err().is("InvalidArgument", "own-ids");
    let root = lab.root();
    let place = Place::new(&root, Path::new("/"));
    let options = Options::new().fd("userns", &place.userns).with("own-ids", true);
    let refused = root.client(broker.socket()).create("roots", options).unwrap_err();
    refused.is("NotAuthorized", "root's own ids");
    assert_eq!(fs::read_to_string(format!("/proc/{}/uid_map", place.process.pid)).unwrap(), "");
    checker::assert_empty(lab);
}

fn who_may_not_leave_groups_keeps_them_with_own_ids_too(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"groups stay\"\n[rule.access]\nsetgroups = \"deny\"\n");
    let broker = lab.broker();
    let user = lab.user_in(&[31_000]);
    let client = user.client(broker.socket());
    let place = Place::new(&user, &user.home);
    let options = || Options::new().fd("userns", &place.userns).with("own-ids", true);
    client.create("work", options()).unwrap_err().is("NotAuthorized", "setgroups");
    client.create("work", options().with("setgroups", false)).unwrap();
    assert_eq!(place.tries(&["groups"]), "EPERM");
    place.does(&["root"]);
    assert_eq!(place.tries(&["groups"]), "EPERM");
    let status = fs::read_to_string(format!("/proc/{}/status", place.process.pid)).unwrap();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    assert_eq!(groups.trim(), "31000");
}

// Who can make a set-group-ID program connect to the broker does not become a member of its group by that.
fn the_gid_of_a_setgid_program_is_not_the_callers(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client_of_group(broker.socket(), 8);
    let place = Place::new(&user, &user.home);
    let own = Options::new().fd("userns", &place.userns).with("own-ids", true);
    client.create("work", own).unwrap_err().is("NotAuthorized", "others too");
    assert_eq!(fs::read_to_string(format!("/proc/{}/gid_map", place.process.pid)).unwrap(), "");
    let (grant, place) = container(&user, &client, "web", &user.home);
    let mine = place.opens("open", ".");
    client.map(&grant, &mine, &place.mntns, Options::new()).unwrap_err().is("NotAuthorized", "others too");
}

fn policy_has_a_word_on_mounts(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"copies\"\n[rule.access]\nmounts = \"deny\"\n");
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (grant, place) = container(&user, &client, "web", &user.home);
    let refused = client.map(&grant, &place.opens("open", "."), &place.mntns, Options::new()).unwrap_err();
    refused.is("NotAuthorized", "policy");
    assert!(refused.details.contains_key("rule") && refused.details.contains_key("hint"));
    assert!(broker.log().contains("may not map directory"), "a no is in the log");
}

// Directories and mount namespaces pass the front: neither calls that take none nor callers who die leave them open.
fn descriptors_that_nobody_wanted_are_closed(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (grant, place) = container(&user, &client, "web", &user.home);
    let open = |broker: &Broker| {
        let all = broker.processes().into_iter().flat_map(|(pid, _)| fs::read_dir(format!("/proc/{pid}/fd")));
        let links = all.flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        let ours = |link: &Path| link.starts_with(&user.home) || link.to_str().unwrap().starts_with("mnt:[");
        links.filter(|link| ours(link)).count()
    };
    let directory = place.opens("open", ".");
    for wrong in [&directory, &place.mntns] {
        let attach = client.attach(&grant.path, wrong.as_fd(), Options::new());
        attach.unwrap_err().is("InvalidDescriptor", "pidfd");
    }
    for _ in 0..50 {
        client.map(&grant, &directory, &place.mntns, Options::new()).unwrap();
        client.map(&grant, &place.mntns, &directory, Options::new()).unwrap_err();
    }
    crate::common::wait_until("all of them are closed", || open(&broker) == 0);
}

crate::tests![
    two_containers_of_an_image_copy_nothing,
    a_users_directory_in_a_container_stays_the_users,
    not_what_is_somebody_elses,
    own_ids_are_the_callers_and_roots_are_nobodys,
    who_may_not_leave_groups_keeps_them_with_own_ids_too,
    the_gid_of_a_setgid_program_is_not_the_callers,
    policy_has_a_word_on_mounts,
    descriptors_that_nobody_wanted_are_closed,
];
