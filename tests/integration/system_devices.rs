//! Devices of the host's that not everybody may open, in containers of users whom policy or a group gives them; and users who want
//! other ones.

use crate::{
    common::{
        Client, Grant, Lab, Network, Options, Place, User,
        bus::Refused,
        checker,
        containers::{Shell, busybox},
        level::{Level, nesting},
        place::MOUNTS,
        wait_until,
    },
    explain::{explain, same},
};

const GROUP: u32 = 31_010;

// A host's devices. The number is always that of /dev/net/tun, which can be opened everywhere, but for those that may not be had.
fn furnish(lab: &Lab, network: &Network<'_>) {
    let place = lab.scratch.join("host-dev");
    network.host.sh(&format!(
        "mkdir {place}; mount -t tmpfs -o mode=755 dev {place}; cd {place}
         for node in null,3 zero,5 full,7 random,8 urandom,9; do mknod -m 666 ${{node%,*}} c 1 ${{node#*,}}; done
         mknod -m 666 tty c 5 0; mkdir pts shm dri
         for node in kvm,660 read,640 closed,600 dri/renderD128,600 dri/card0,600 seen,664; do
             mknod ${{node%,*}} c 10 200; chown 0:{GROUP} ${{node%,*}}; chmod ${{node#*,}} ${{node%,*}}
         done
         chown 0:0 dri/*
         mknod own c 10 200; chown {GROUP}:{GROUP} own; chmod 660 own
         mknod tty9 c 4 9; chown 0:{GROUP} tty9; chmod 660 tty9
         mknod other c 10 229; chown 0:{GROUP} other; chmod 660 other
         mknod disk b 7 0; chown 0:{GROUP} disk; chmod 660 disk
         >file; chown 0:{GROUP} file; chmod 660 file
         ln -s kvm link; ln -s dri way
         mount -t tmpfs shm shm; mknod shm/kvm c 10 200; chown 0:{GROUP} shm/kvm; chmod 660 shm/kvm
         mount --rbind {place} /dev",
        place = place.display()
    ));
}

const POLICY: &str = "[[rule]]\nname = \"gpu\"\n[rule.access]\ndevices = [\"/dev/dri/renderD*\", \"/dev/disk\", \"/dev/file\", \
    \"/dev/link\", \"/dev/way/*\", \"/dev/shm/*\", \"/dev/nothing\"]\n";

const OPENS: &str = "cd /dev; for node in kvm dri/renderD128; do
        stat -c '%n %u:%g %a %t:%T' $node; : <>$node && echo opened; done; ls dri; chmod 666 kvm && stat -c %a kvm";
const OPENED: &str = "kvm 0:0 660 a:c8\nopened\ndri/renderD128 0:0 600 a:c8\nopened\nrenderD128\n666\n";

fn a_containers_root_has_what_policy_or_a_group_gives(lab: &Lab) {
    lab.write_policy(POLICY);
    let network = Network::new(lab);
    furnish(lab, &network);
    let broker = network.broker();
    let (member, stranger) = (lab.user_in(&[GROUP]), lab.user());
    let shell = Shell::beside(lab, &member, &broker, &network);
    let root = busybox(lab);
    shell.import(lab, &root, "box");
    let devices = ["--device", "kvm", "--device", "dri/renderD128", "--device", "zero"];
    shell.done(&[&["launch", "box", "one"], &devices[..]].concat());
    let inside = |script: &str| shell.done(&["exec", "one", "--", "sh", "-euc", script]);
    assert_eq!(inside(OPENS), OPENED);
    // A root of its own files has them too.
    shell.done(&[&["launch", "--copy", "box", "two"], &devices[..]].concat());
    assert_eq!(shell.done(&["exec", "two", "--", "sh", "-euc", OPENS]), OPENED);
    shell.done(&["delete", "--force", "two"]);
    // Each boot has them, and as they are on the host.
    shell.output(&["exec", "one", "--", "reboot"]);
    wait_until("it has rebooted", || shell.json(&["info", "one"])["reboots"] == 1);
    shell.done(&["wait", "one"]);
    // What was changed at the node stays until the container stops.
    assert_eq!(inside(OPENS), OPENED.replacen("660", "666", 1));

    // The host's numbers now mean something else: a container has what it was given, and what there is at its next start.
    network.host.sh(&format!("rm /dev/kvm; mknod -m 660 /dev/kvm c 1 7; chown 0:{GROUP} /dev/kvm"));
    assert_eq!(inside("stat -c %t:%T /dev/kvm"), "a:c8\n");
    shell.done(&["restart", "one"]);
    assert_eq!(inside("stat -c %t:%T /dev/kvm"), "1:7\n");

    // What policy does not give any more is had until then, too.
    lab.write_policy("");
    broker.reload();
    wait_until("policy is read", || {
        let refused = shell.output(&["launch", "box", "three", "--device", "dri/renderD128"]);
        if refused.status.success() {
            shell.done(&["delete", "--force", "three"]);
        }
        !refused.status.success()
    });
    assert_eq!(inside(": <>/dev/dri/renderD128; echo opened"), "opened\n");
    shell.done(&["stop", "one"]);
    shell.fails(
        &["start", "one"],
        1,
        "policy does not let this account have /dev/dri/renderD128 in containers",
    );
    wait_until("its grant has ended", || shell.json(&["grant", "list"]).as_array().unwrap().is_empty());
    checker::assert_empty(lab);

    // Whoever is in no group of them. What others may read they may read, and no more.
    let shell = Shell::beside(lab, &stranger, &broker, &network);
    shell.import(lab, &root, "box");
    shell.fails(
        &["launch", "box", "one", "--device", "kvm"],
        1,
        "join the group that may read and write it; an administrator can add it to access.devices of the rule",
    );
    assert_eq!(shell.state("one"), "none");
    shell.done(&["launch", "box", "one", "--device", "seen"]);
    let seen = "stat -c '%u:%g %a' /dev/seen; : </dev/seen; echo read; (: <>/dev/seen) 2>&1 || echo closed";
    let printed = shell.done(&["exec", "one", "--", "sh", "-uc", seen]);
    assert!(printed.starts_with("65534:65534 664\nread\n") && printed.ends_with("closed\n"), "{printed}");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

fn make(client: &Client, grant: &Grant, name: &str) -> Result<std::os::fd::OwnedFd, Refused> {
    let node: zbus::OwnedFd = client.call(&grant.path, MOUNTS, "MakeDevice", &(name,))?;
    Ok(node.into())
}

fn grant_of(user: &User, client: &Client) -> (Grant, Place) {
    let place = Place::new(user, &user.home);
    (client.create("web", Options::new().fd("userns", &place.userns)).unwrap(), place)
}

fn nobody_gets_what_is_not_named(lab: &Lab) {
    lab.write_policy(POLICY);
    let network = Network::new(lab);
    furnish(lab, &network);
    let broker = network.broker();
    let (member, stranger) = (lab.user_in(&[GROUP]), lab.user());
    let client = member.client(broker.socket());
    let (grant, place) = grant_of(&member, &client);
    assert_eq!(
        place.attaches(&make(&client, &grant, "kvm").unwrap(), "."),
        "EINVAL",
        "a node is no directory"
    );
    make(&client, &grant, "dri/renderD128").unwrap();
    let long = "x".repeat(60_000);
    for (name, error, words) in [
        ("", "InvalidArgument", "expected a name below /dev"),
        ("/dev/kvm", "InvalidArgument", "expected a name below /dev"),
        ("../dev/kvm", "InvalidArgument", "expected a name below /dev"),
        ("dri/../kvm", "InvalidArgument", "expected a name below /dev"),
        ("dri/./renderD128", "InvalidArgument", "expected a name below /dev"),
        ("dri//renderD128", "InvalidArgument", "expected a name below /dev"),
        ("dri/*", "InvalidArgument", "expected a name below /dev"),
        ("kvm\n", "InvalidArgument", "expected a name below /dev"),
        (&long, "InvalidArgument", ""),
        ("dri", "InvalidArgument", "is no device node"),
        ("file", "InvalidArgument", "is no device node"),
        ("nothing", "InvalidArgument", "the host has no /dev/nothing"),
        ("kvm/x", "InvalidArgument", "the host has no"),
        ("link", "InvalidArgument", "is reached by a link"),
        ("way/renderD128", "InvalidArgument", "is reached by a link"),
        ("shm/kvm", "InvalidArgument", "lies on another mount"),
        ("disk", "NotAuthorized", "is a block device"),
        ("dri/card0", "NotAuthorized", "policy does not let"),
        ("closed", "NotAuthorized", "the group 31010 may not read and write the device"),
        ("read", "NotAuthorized", "the group 31010 may not read and write the device"),
        ("own", "NotAuthorized", "policy does not let"),
        ("tty9", "NotAuthorized", "policy does not let"),
    ] {
        make(&client, &grant, name).unwrap_err().is(error, words);
    }
    // A grant of somebody else's, and one without ids.
    let other = stranger.client(broker.socket());
    let (others, _their_place) = grant_of(&stranger, &other);
    make(&client, &others, "kvm").unwrap_err().is("NoSuchGrant", "");
    make(&other, &others, "kvm").unwrap_err().is("NotAuthorized", "policy does not let");
    lab.root()
        .client(broker.socket())
        .call::<_, zbus::OwnedFd>(&others.path, MOUNTS, "MakeDevice", &("dri/renderD128",))
        .unwrap_err()
        .is("NotAuthorized", "who alone can say");
    let bare = client.create("bare", Options::new().no_range()).unwrap();
    make(&client, &bare, "kvm").unwrap_err().is("InvalidArgument", "the grant has no ids");
    assert!(broker.log().contains("may make device kvm"), "a yes is in the log");
}

// What a node is, and whose, as the host sees it.
fn node(mount: &std::os::fd::OwnedFd) -> (u32, u32, u64) {
    let found = rustix::fs::fstat(mount).unwrap();
    (found.st_uid, found.st_gid, found.st_rdev)
}

fn those_inside_have_nodes_of_what_was_given_around_them(lab: &Lab) {
    lab.write_policy(POLICY);
    let network = Network::new(lab);
    furnish(lab, &network);
    let broker = network.broker();
    let member = lab.user_in(&[GROUP]);
    let client = member.client(broker.socket());
    let one = Level::new(&member, &client, "one", nesting(4));
    let beside = client.create("beside", Options::new()).unwrap();
    let first = one.client(lab, &member, broker.socket());
    let two = one.inner(&member, &first, "two", nesting(1));
    let second = two.client(lab, &member, broker.socket());
    let three = two.inner(&member, &second, "three", Options::new());
    let ids = |name: &str| {
        let all: Vec<(zbus::OwnedObjectPath, String, u32)> =
            client.manager("ListGrants", &Options::new().with("nested", true).0).unwrap();
        let (path, ..) = all.into_iter().find(|(_, known, _)| known == name).unwrap();
        let of = |what| client.property::<u32>(path.as_str(), "org.cgrant.Broker1.Ids", what);
        (of("Uid"), of("Gid"))
    };
    // At each level it is the root of the new container's, whatever the account's groups are, and a mount that can be attached there.
    for (asker, grant, name) in [(&first, &two.grant, "two"), (&second, &three.grant, "three")] {
        let made = node(&make(asker, grant, "dri/renderD128").unwrap());
        let (uid, gid) = ids(name);
        assert_eq!(made, (uid, gid, rustix::fs::makedev(10, 200)), "{name}");
    }
    // The account is in the group of that one, and gave it to nobody: in no name, and by no grant.
    make(&first, &two.grant, "other").unwrap_err().is("NotAuthorized", "was not given /dev/other");
    let question = Options::new().with("grant", two.grant.path.clone()).with("name", "other");
    let question = explain(&first, "MakeDevice", question).unwrap();
    same("other", &question, &make(&first, &two.grant, "other"));
    make(&client, &beside, "other").unwrap();
    make(&first, &two.grant, "other").unwrap_err().is("NotAuthorized", "was not given /dev/other");
    // Nor by what the programs of the outermost may do with the host's node: it has no other.
    client.call::<_, ()>(&one.grant.path, MOUNTS, "AllowDevice", &("other",)).unwrap();
    make(&first, &two.grant, "other").unwrap_err().is("NotAuthorized", "was not given /dev/other");
    for grant in [&one.grant, &beside, &three.grant] {
        let made = make(&first, grant, "dri/renderD128");
        match grant.path == three.grant.path {
            // Its own, by who made it.
            true => drop(made.unwrap()),
            false => drop(made.unwrap_err().is("NoSuchGrant", "")),
        }
    }
    make(&second, &two.grant, "dri/renderD128").unwrap_err().is("NoSuchGrant", "");
    for (name, error) in
        [("disk", "NotAuthorized"), ("../other", "InvalidArgument"), ("link", "InvalidArgument")]
    {
        make(&first, &two.grant, name).unwrap_err().is(error, "");
    }
    // Once the outermost has it, those in it may, too.
    make(&client, &one.grant, "other").unwrap();
    assert_eq!(node(&make(&second, &three.grant, "other").unwrap()).2, rustix::fs::makedev(10, 229));
    // What policy names later is for what is started later.
    lab.write_policy(
        "[[rule]]\nname = \"later\"\naccess.devices = [\"/dev/closed\"]\naccess.limit-devices = \"none\"\n",
    );
    broker.reload();
    let mut made = 0;
    wait_until("policy is read", || {
        made += 1;
        let grant = client.create(&format!("try{made}"), Options::new()).unwrap();
        let allowed = make(&client, &grant, "closed").is_ok();
        client.release(&grant.path, true).unwrap();
        allowed
    });
    let free = Level::new(&member, &client, "free", nesting(1));
    let inner = free.client(lab, &member, broker.socket());
    let bare = free.inner(&member, &inner, "bare", Options::new());
    // Not limited to anything, that one has what policy names, and nothing by a group.
    make(&inner, &bare.grant, "closed").unwrap();
    make(&inner, &bare.grant, "kvm").unwrap_err().is("NotAuthorized", "");
}

crate::tests![
    a_containers_root_has_what_policy_or_a_group_gives,
    nobody_gets_what_is_not_named,
    those_inside_have_nodes_of_what_was_given_around_them,
];
