//! Callers who show what is not theirs, ask for what they may not have, or for more than their share: refused with the reason,
//! and nothing of it remains.

use std::{fs, os::fd::OwnedFd};

use crate::common::{
    Client, Container, Lab, Network, Node, Options, User,
    bus::Refused,
    checker,
    network::namespace_of,
    node::{Tcp, Udp},
    wait_until,
};

fn add(client: &Client, grant: &str, netns: &OwnedFd) -> Result<crate::common::network::Link, Refused> {
    client.add_link(grant, Options::new().netns(netns))
}

fn descriptors_that_are_not_the_callers(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let (user, other) = (lab.user(), lab.user());
    let client = user.client(broker.socket());
    let grant = client.create("mine", Options::new().no_range()).unwrap();
    let refused = |what: &str, netns: &OwnedFd, name: &str| {
        let refused = add(&client, &grant.path, netns).err().unwrap_or_else(|| panic!("{what} was taken"));
        assert_eq!(refused.name, name, "{what}: {refused:?}");
        assert!(!refused.message.is_empty());
        network.assert_as_before();
    };
    let theirs = Node::container(&other);
    refused("another user's namespace", &theirs.netns, "NotAuthorized");
    refused("the host's namespace", &network.host.netns, "NotAuthorized");
    refused("the machine's namespace", &namespace_of(std::process::id(), "net"), "NotAuthorized");
    refused("a namespace of root's", &network.outside.netns, "NotAuthorized");
    // The user's own process, and no namespace of its own.
    let sleeper = user.sleeper();
    refused("the namespace that the caller is in", &namespace_of(sleeper.pid, "net"), "NotAuthorized");
    let own = Node::container(&user);
    refused("a user namespace", &own.userns, "InvalidDescriptor");
    refused("a mount namespace", &namespace_of(own.process.pid, "mnt"), "InvalidDescriptor");
    refused("a pidfd", &own.process.pidfd, "InvalidDescriptor");
    let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    refused("a device", &file, "InvalidDescriptor");
    let path = rustix::fs::open(
        format!("/proc/{}/ns/net", own.process.pid),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    refused("a path that proves nothing", &path, "InvalidDescriptor");
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    refused("a pipe", &pipe, "InvalidDescriptor");
    client.add_link(&grant.path, Options::new()).unwrap_err().is("InvalidArgument", "netns");
    // Another's grant, with a namespace of one's own.
    let stranger = other.client(broker.socket());
    let refused = add(&stranger, &grant.path, &theirs.netns).unwrap_err();
    assert!(
        ["NoSuchGrant", "NotAuthorized", "org.freedesktop.DBus.Error.UnknownObject"]
            .contains(&refused.name.as_str()),
        "{refused:?}"
    );
    network.assert_as_before();
    // And the right one is taken.
    add(&client, &grant.path, &own.netns).unwrap();
}

fn a_namespace_that_dies_in_the_middle(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("mine", Options::new().no_range()).unwrap();
    // Its last process ends sooner or later after the request was begun; the request's own descriptor is the last to hold it.
    for delay in [0, 1, 2, 3, 5, 8, 13, 21] {
        let node = Node::container(&user);
        let netns = node.netns.try_clone().unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(delay));
            drop(node);
        });
        let options = Options::new().netns(&netns).ports(&["8080:80"]);
        drop(netns);
        let result = client.add_link(&grant.path, options);
        killer.join().unwrap();
        if let Err(refused) = result {
            assert!(["KernelRefused", "InvalidDescriptor"].contains(&refused.name.as_str()), "{refused:?}");
        }
        wait_until("the link is gone with its namespace", || client.links(&grant.path).is_empty());
        network.assert_as_before();
    }
    assert!(broker.log().lines().all(|line| !line.contains("panicked")), "{}", broker.log());
}

fn what_policy_does_not_give(lab: &Lab) {
    let network = Network::new(lab);
    let (user, banned, favoured) = (lab.user(), lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"none\"\nuids = [{}]\n[rule.access]\nlink = \"deny\"\n\
         [[rule]]\nname = \"more\"\nuids = [{}]\n[rule.network]\nports = [\"1-65535\"]\nfixed-addresses = [\"10.0.0.0/8\", \"172.16.0.0/12\", \"fd00::/8\"]\n\
         [[rule]]\nname = \"few\"\n[rule.quota]\nlinks = 2\npublished-ports = 2\n[rule.network]\nmax-upload = \"8M\"\n",
        banned.uid, favoured.uid
    ));
    let broker = network.broker();
    let client = banned.client(broker.socket());
    let grant = client.create("g", Options::new().no_range()).unwrap();
    let node = Node::container(&banned);
    add(&client, &grant.path, &node.netns).unwrap_err().is("NotAuthorized", "");

    let client = user.client(broker.socket());
    let grant = client.create("g", Options::new().no_range()).unwrap();
    let node = Node::container(&user);
    let asking = |options: Options| client.add_link(&grant.path, options.netns(&node.netns)).map(drop);
    for (what, options, name) in [
        ("a port of root's", Options::new().ports(&["80:80"]), "NotAuthorized"),
        (
            "an address of its own choice",
            Options::new().with("address4", "10.9.8.7".to_owned()),
            "NotAuthorized",
        ),
        (
            "an IPv6 address of its own choice",
            Options::new().with("address6", "fd00::7".to_owned()),
            "NotAuthorized",
        ),
        ("a bridge that there is not", Options::new().with("bridge", "nowhere".to_owned()), "NoSuchBridge"),
        ("a VLAN", Options::new().with("vlan", 42_u16), "NotAuthorized"),
        ("three ports of two", Options::new().ports(&["2001:1", "2002:2", "2003:3"]), "QuotaExceeded"),
        ("a port that is none", Options::new().ports(&["0:80"]), "InvalidArgument"),
        ("a port that is too large", Options::new().ports(&["65536:80"]), "InvalidArgument"),
        ("a word for a port", Options::new().ports(&["http"]), "InvalidArgument"),
        ("a port of another carrier", Options::new().ports(&["2001:1/sctp"]), "InvalidArgument"),
        ("an address that is not the host's", Options::new().ports(&["203.0.113.1:2001:1"]), ""),
        ("the same port twice", Options::new().ports(&["2001:1", "2001:2"]), ""),
        ("a name with a slash", Options::new().with("name", "a/b".to_owned()), "InvalidName"),
        ("a name that is too long", Options::new().with("name", "a".repeat(16)), "InvalidName"),
        ("no name at all", Options::new().with("name", "..".to_owned()), "InvalidName"),
        ("loopback's name", Options::new().with("name", "lo".to_owned()), ""),
        ("a tiny MTU", Options::new().with("mtu", 10_u32), "InvalidArgument"),
        ("an endless MTU", Options::new().with("mtu", 1_000_000_u32), "InvalidArgument"),
        ("an unknown kind", Options::new().with("kind", "wire".to_owned()), "InvalidArgument"),
        ("an unknown option", Options::new().with("colour", "red".to_owned()), "InvalidArgument"),
    ] {
        let refused = asking(options).err().unwrap_or_else(|| panic!("{what} was given"));
        assert!(name.is_empty() || refused.name == name, "{what}: {refused:?}");
        assert!(!refused.message.is_empty() && !refused.message.ends_with('.'), "{what}: {refused:?}");
        assert!(refused.name != "Internal", "{what}: {refused:?}");
        network.assert_as_before();
    }
    // What is met is told with its figures.
    asking(Options::new()).unwrap();
    asking(Options::new().ports(&["2001:1", "2002:2"])).unwrap();
    let refused = asking(Options::new()).unwrap_err();
    refused.is("QuotaExceeded", "link");
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(2), Some(2)), "{refused:?}");
    let refused = client.publish(&grant.path, "eth1", &["2003:3"]).unwrap_err();
    refused.is("QuotaExceeded", "port");
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(2), Some(2)), "{refused:?}");
    assert_eq!(client.links(&grant.path)[1].ports.len(), 2);
    let link = client.links(&grant.path).remove(0);
    assert!(
        link.all.get("upload").and_then(|v| u64::try_from(v).ok()).is_some_and(|rate| rate <= 8_000_000),
        "{link:?}"
    );
    drop(client);
    broker.settle();
    network.assert_as_before();

    // Whom policy favours has a low port, and the address that it wants, once.
    let client = favoured.client(broker.socket());
    let subnet = |of: &Container| of.link.address4.unwrap().octets();
    let probe = Container::new(&favoured, &client, "probe", Options::new().ports(&["80:80"]));
    let [a, b, c, _] = subnet(&probe);
    let wanted = format!("{a}.{b}.{c}.201");
    let fixed = Container::new(&favoured, &client, "fixed", Options::new().with("address4", wanted.clone()));
    assert_eq!(fixed.link.ip4(), wanted);
    assert!(fixed.node.pings(&probe.link.ip4()));
    for taken in [wanted.clone(), probe.link.gateway4.unwrap().to_string(), probe.link.ip4()] {
        let refused = Container::try_new(&favoured, &client, "late", Options::new().with("address4", taken))
            .err()
            .unwrap();
        assert_eq!(refused.name, "AddressInUse", "{refused:?}");
    }
    let refused = Container::try_new(
        &favoured,
        &client,
        "late",
        Options::new().with("address4", "10.255.255.255".to_owned()),
    )
    .err();
    assert!(
        refused.is_some_and(|refused| ["InvalidArgument", "NotAuthorized"].contains(&refused.name.as_str()))
    );
    fixed.release(&client);
    probe.release(&client);
}

fn ports_that_are_taken(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let (alice, bob) = (lab.user(), lab.user());
    let (client, other) = (alice.client(broker.socket()), bob.client(broker.socket()));
    // By services of the host's, each of which would be shadowed.
    for (carrier, at, port) in [
        (Tcp, "0.0.0.0:3001", "3001:80"),
        (Tcp, "[::]:3002", "3002:80"),
        (Tcp, "127.0.0.1:3003", "3003:80"),
        (Tcp, "[::1]:3004", "3004:80"),
        (Udp, "0.0.0.0:3005", "3005:80/udp"),
        (Udp, "[::1]:3006", "3006:80/udp"),
        (Tcp, "192.0.2.2:3007", "3007:80"),
        (Tcp, "192.0.2.2:3008", "192.0.2.2:3008:80"),
    ] {
        let service = network.host.bind(carrier, at, false).unwrap();
        let refused =
            Container::try_new(&alice, &client, "web", Options::new().ports(&["4000:80", port])).err();
        let refused = refused.unwrap_or_else(|| panic!("{at} was shadowed"));
        refused.is("AddressInUse", at.rsplit(':').next().unwrap());
        network.assert_as_before();
        network.host.close(service);
    }
    // By another user's container.
    let web = Container::new(&alice, &client, "web", Options::new().ports(&["3001:80", "3001:80/udp"]));
    let b = Container::new(&bob, &other, "b", Options::new());
    let refused = other.publish(&b.grant.path, "eth0", &["3002:80", "3001:80"]).unwrap_err();
    refused.is("AddressInUse", "3001");
    assert!(other.links(&b.grant.path)[0].ports.is_empty(), "a part of it was done");
    network.host.close(network.host.bind(Tcp, "0.0.0.0:3002", false).expect("a part of it was done"));
    // Nobody else can have it on the host, however it asks.
    let stranger = network.node_of(&bob);
    for node in [&stranger, &network.host] {
        for carrier in [Tcp, Udp] {
            for at in ["0.0.0.0", "[::]", "127.0.0.1", "[::1]", "192.0.2.2", "127.5.5.5"] {
                for reuse in [false, true] {
                    let taken = node.bind(carrier, &format!("{at}:3001"), reuse);
                    assert_eq!(taken.err().as_deref(), Some("EADDRINUSE"), "{carrier:?} {at}, reuse {reuse}");
                }
            }
        }
    }
    // TCP alone leaves UDP to others; the same address twice is two ports.
    let more = Container::new(
        &bob,
        &other,
        "more",
        Options::new().ports(&["3010:80", "192.0.2.2:3011:80", "127.0.0.1:3011:81"]),
    );
    network.host.close(network.host.bind(Udp, "0.0.0.0:3010", false).unwrap());
    more.node.serve_all(80);
    more.node.serve_all(81);
    for to in ["192.0.2.2:3010", "192.0.2.2:3011"] {
        network.outside.talk(Tcp, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    }
    network.host.talk(Tcp, "127.0.0.1:3011").unwrap();
    network.host.is_cut_off(Tcp, "[::1]:3011");
    more.release(&other);
    // Taken back it is anybody's.
    web.release(&client);
    for at in ["0.0.0.0:3001", "[::]:3001"] {
        stranger.close(stranger.bind(Tcp, at, false).unwrap());
    }
    b.release(&other);
}

fn ports_come_and_go(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let web = Container::new(&user, &client, "web", Options::new().ports(&["3001:80"]));
    web.node.serve_all(80);
    web.node.serve_all(81);
    let reaches = |port: u16| network.outside.talk(Tcp, &format!("192.0.2.2:{port}")).is_ok();
    client.publish(&web.grant.path, "eth0", &["3002:81", "3003:80"]).unwrap();
    assert!(reaches(3001) && reaches(3002) && reaches(3003));
    client.unpublish(&web.grant.path, "eth0", &["3001:80", "3009:9"]).unwrap();
    network.outside.is_cut_off(Tcp, "192.0.2.2:3001");
    assert!(reaches(3002) && reaches(3003));
    let mut ports = client.links(&web.grant.path).remove(0).ports;
    ports.sort();
    assert_eq!(ports.len(), 2, "{ports:?}");
    client.publish(&web.grant.path, "eth2", &["3002:81"]).unwrap_err().is("NoSuchLink", "eth2");
    drop(client);
    // While no broker runs, somebody takes a port that was published: it is held, or told.
    broker.kill_everything();
    let thief = network.host.bind(Tcp, "0.0.0.0:3002", false).ok();
    broker.start_again();
    let client = user.client(broker.socket());
    wait_until("the other port is open", || reaches(3003));
    if let Some(thief) = thief {
        wait_until("the conflict is named", || broker.log().contains("3002"));
        // It gets what is meant for it.
        network.host.close(thief);
    } else {
        assert!(reaches(3002));
    }
    checker::assert_in_order(lab);
    web.release(&client);
    network.assert_as_before();
}

fn users_of_one_bridge_per_account(lab: &Lab) {
    let network = Network::new(lab);
    let (alice, bob): (User, User) = (lab.user(), lab.user());
    lab.write_policy("[[rule]]\nname = \"apart\"\n[rule.network]\nbridges = [\"account\"]\n");
    let broker = network.broker();
    let (client, other) = (alice.client(broker.socket()), bob.client(broker.socket()));
    let a1 = Container::new(&alice, &client, "a1", Options::new());
    let a2 = Container::new(&alice, &client, "a2", Options::new());
    let b = Container::new(&bob, &other, "b", Options::new());
    assert_ne!(a1.link.gateway4, b.link.gateway4);
    assert_eq!(a1.link.gateway4, a2.link.gateway4);
    for container in [&a1, &a2, &b] {
        container.node.serve_all(7000);
    }
    a1.node.talk(Tcp, &format!("{}:7000", a2.link.ip4())).unwrap();
    for address in b.link.both() {
        a1.node.is_cut_off(Tcp, &format!("{address}:7000"));
    }
    a1.node.is_cut_off(Udp, &format!("{}:7000", b.link.gateway4.unwrap()));
    a1.release(&client);
    a2.release(&client);
    b.release(&other);
}

crate::tests![
    descriptors_that_are_not_the_callers,
    a_namespace_that_dies_in_the_middle,
    what_policy_does_not_give,
    ports_that_are_taken,
    ports_come_and_go,
    users_of_one_bridge_per_account,
];
