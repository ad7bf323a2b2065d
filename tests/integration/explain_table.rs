//! Explain beside the request itself, for every method of the contract and for callers of every kind: what is told before is what
//! comes of it, with the same rule, figures and hints. A method that has no row here fails.

use std::{collections::BTreeSet, os::fd::OwnedFd as Directory};

use zbus::OwnedFd;

use super::explain::{allowed, explain, same};
use crate::common::{
    Broker, Client, Grant, Lab, Network, Node, Options, User,
    bus::{CGROUP, GRANT, MANAGER, MANAGER_PATH as PATH, Refused},
    level,
    place::{MOUNTS, Place},
    wait_until,
};

const CONTRACT: [&str; 5] = [
    include_str!("../../dbus/org.cgrant.Broker1.Manager.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Grant.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Cgroup.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Links.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Mounts.xml"),
];
/// What everybody is answered, about themselves alone; GetGrant, which is ListGrants for one name; and ForgetDeparted and ReportDisk, what
/// root's services say.
const NOT_DECIDED: [&str; 7] =
    ["Explain", "ExamineNetwork", "ForgetDeparted", "GetGrant", "ListBridges", "ListRanges", "ReportDisk"];

/// Bridges of the administrator's that the host lacks, one of which policy does not name: what is refused there is refused before
/// anybody looks.
const BRIDGE: &str = "[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nsubnet4 = \"10.77.0.0/24\"\n\
     [[network.bridge]]\nname = \"hidden\"\ndevice = \"hidden\"\nunfiltered = true\n";
const POLICY: &str = "\
[[rule]]
name = \"site\"
access.devices = [\"/dev/null\"]
quota = { persistent-grants = 0, cgroup-depth = 2, published-ports = 4, links = 4 }
grant-ceiling = { \"pids.max\" = \"50\" }
[rule.network]
bridges = [\"default\", \"office\", \"gone\"]
ports = [\"2000-3000\"]
vlans = [7]
fixed-addresses = [\"::/0\"]
";

/// Somebody who asks, and what there is to ask about: a grant with ids and a link, and a bare one, of the same or of somebody else.
struct Scene {
    asks: User,
    client: Client,
    grant: Grant,
    bare: Grant,
    node: Node,
    place: Place,
    directory: Directory,
}

impl Scene {
    fn of(&self, grant: &Grant) -> Options {
        Options::new().with("grant", grant.path.clone())
    }

    fn links(&self, link: Options) -> Options {
        self.of(&self.grant).links(vec![link])
    }

    /// A method of the contract on the grant, with any arguments.
    fn on<B: serde::Serialize + zbus::DynamicType>(
        &self,
        interface: &str,
        method: &str,
        body: &B,
    ) -> Result<(), Refused> {
        self.client.ask(&self.grant.path, interface, method, body)
    }
}

type Request = dyn Fn(&Scene) -> Result<(), Refused>;

/// A request: its method, the words for a failure, the options of the question, and the request itself.
struct Row {
    method: &'static str,
    what: String,
    question: Box<dyn Fn(&Scene) -> Options>,
    request: Box<Request>,
}

#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(
        &mut self,
        method: &'static str,
        what: impl std::fmt::Debug,
        question: impl Fn(&Scene) -> Options + 'static,
        request: impl Fn(&Scene) -> Result<(), Refused> + 'static,
    ) {
        let (question, request) = (Box::new(question), Box::new(request));
        self.0.push(Row { method, what: format!("{method} {what:?}"), question, request });
    }

    /// What has no arguments.
    fn plain(&mut self, method: &'static str) {
        self.add(method, "", |scene| scene.of(&scene.grant), move |scene| scene.on(CGROUP, method, &()));
    }

    fn of_cgroups(&mut self) {
        let paths = ["a", "a", "a/b", "a/b/c", "none/b", "../x", "a//b", ".cgrant", "x/.cgrant", ""];
        for method in ["CreateCgroup", "OpenCgroup", "RemoveCgroup"] {
            let mut paths: Vec<&'static str> = paths.into();
            if method == "RemoveCgroup" {
                paths.splice(0..3, ["a/b/c", "a/b", "a", "a", "a/b"]);
            }
            for path in paths {
                self.add(
                    method,
                    path,
                    move |scene| scene.of(&scene.grant).with("path", path),
                    move |scene| scene.on(CGROUP, method, &path),
                );
            }
        }
        for method in ["Stat", "ListProcesses", "ListCgroups", "Freeze", "Thaw", "Kill"] {
            self.plain(method);
        }
        let is_bare = [true, false];
        for bare in is_bare {
            let which =
                move |scene: &Scene| if bare { scene.bare.path.clone() } else { scene.grant.path.clone() };
            self.add(
                "Attach",
                bare,
                move |scene| Options::new().with("grant", which(scene)),
                move |scene| {
                    let process = scene.asks.sleeper();
                    scene.client.attach(&which(scene), &process.pidfd, Options::new()).map(drop)
                },
            );
        }
    }

    fn of_values(&mut self) {
        let keys: [&[&str]; 8] = [
            &[],
            &["pids.max"],
            &["cgroup.procs"],
            &["nonsense"],
            &["hugetlb.64KB.max"],
            &["memory.nonsense"],
            &["memory.stat", "cgroup.procs"],
            &["pids.max"; 129],
        ];
        for keys in keys {
            self.add(
                "GetValues",
                keys.first(),
                move |scene| scene.of(&scene.grant).with("keys", keys.to_vec()),
                move |scene| scene.on(CGROUP, "GetValues", &keys),
            );
        }
        for (key, value) in [
            ("pids.max", "10"),
            ("pids.max", "51"),
            ("pids.max", "many"),
            ("nonsense", "1"),
            ("hugetlb.64KB.max", "1M"),
            ("memory.min", "1M"),
            ("cgroup.procs", "1"),
        ] {
            self.add(
                "SetLimits",
                (key, value),
                move |scene| scene.of(&scene.grant).limits(&[(key, value)]),
                move |scene| scene.client.set_limits(&scene.grant.path, &[(key, value)]),
            );
        }
    }

    fn of_links(&mut self) {
        type Make = fn() -> Options;
        let links: [(&'static str, Make); 11] = [
            ("any", Options::new),
            ("a bridge that cgrantd.toml lacks", || Options::new().with("bridge", "gone")),
            ("a bridge that policy does not name", || Options::new().with("bridge", "hidden")),
            ("what can be no bridge", || Options::new().with("bridge", "a/b")),
            ("a VLAN on the broker's own bridge", || Options::new().with("vlan", 7_u16)),
            ("none where policy wants one", || Options::new().with("bridge", "office")),
            ("ports of the administrator's bridge", || {
                Options::new().with("bridge", "office").with("vlan", 7_u16).ports(&["2000:1"])
            }),
            ("a family that a bridge lacks", || {
                Options::new().with("bridge", "office").with("vlan", 7_u16).with("address6", "2001:db8::7")
            }),
            ("large packets", || Options::new().with("mtu", 60_000_u32)),
            ("somebody's port", || Options::new().ports(&["2100:1"])),
            ("a port that policy does not list", || Options::new().ports(&["80:1"])),
        ];
        for (what, link) in links {
            let whole = |link: Options| Options::new().no_range().links(vec![link]);
            self.add(
                "CreateGrant",
                what,
                move |_| whole(link()).with("name", "new"),
                move |scene| {
                    let made = scene.client.create("new", whole(link().netns(&scene.node.netns)))?;
                    scene.client.release(&made.path, false)
                },
            );
            self.add(
                "AddLink",
                what,
                move |scene| scene.links(link()),
                move |scene| {
                    scene.client.add_link(&scene.grant.path, link().netns(&scene.node.netns)).map(drop)
                },
            );
        }
        for name in ["eth0", "a/b", "all"] {
            self.add(
                "AddLink",
                name,
                move |scene| scene.links(Options::new().with("name", name)),
                move |scene| {
                    let link = Options::new().with("name", name).netns(&scene.node.netns);
                    scene.client.add_link(&scene.grant.path, link).map(drop)
                },
            );
        }
        self.of_ports();
        for name in ["eth9", "a/b", "eth0", "eth0"] {
            self.add(
                "RemoveLink",
                name,
                move |scene| scene.of(&scene.grant).with("name", name),
                move |scene| scene.client.remove_link(&scene.grant.path, name),
            );
        }
    }

    fn of_ports(&mut self) {
        let cases: [(&'static str, &'static [&'static str]); 11] = [
            ("eth0", &["2002:80"]),
            ("eth0", &["2002:80"]),
            ("eth0", &["2002:80", "2003:80"]),
            ("eth0", &["2002:81"]),
            ("eth0", &["2004:1", "2004:2"]),
            ("eth0", &["80:80"]),
            ("eth0", &["0.0.0.0:2005:80"]),
            ("eth0", &["2100:80"]),
            ("eth0", &["2006:1", "2007:1", "2008:1", "2009:1"]),
            ("eth9", &["2005:80"]),
            ("a/b", &["2005:80"]),
        ];
        for (name, ports) in cases {
            let asked = move |scene: &Scene| scene.of(&scene.grant).with("name", name).ports(ports);
            let publish = move |scene: &Scene| scene.client.publish(&scene.grant.path, name, ports);
            self.add("PublishPorts", (name, ports), asked, publish);
        }
        for (name, ports) in cases {
            let asked = move |scene: &Scene| scene.of(&scene.grant).with("name", name).ports(ports);
            let take_back = move |scene: &Scene| scene.client.unpublish(&scene.grant.path, name, ports);
            self.add("UnpublishPorts", (name, ports), asked, take_back);
        }
    }

    fn of_mounts(&mut self) {
        for bare in [false, true] {
            let which =
                move |scene: &Scene| if bare { scene.bare.path.clone() } else { scene.grant.path.clone() };
            for name in ["null", "kmsg", "nothing", "../kmsg", "shm", "console", "loop0", "loop-control"] {
                for method in ["MakeDevice", "AllowDevice"] {
                    self.add(
                        method,
                        (name, bare),
                        move |scene| Options::new().with("grant", which(scene)).with("name", name),
                        move |scene| scene.client.ask(&which(scene), MOUNTS, method, &name),
                    );
                }
            }
            type Make = fn() -> Options;
            let maps: [(&'static str, Make); 6] = [
                ("own", Options::new),
                ("as nobody", || Options::new().with("as-uid", 65_536_u32)),
                ("as root's group", || Options::new().with("as-gid", 0_u32).with("read-only", true)),
                ("a range", || Options::new().with("from", "box")),
                ("no range", || Options::new().with("from", "none")),
                ("what can be no range", || Options::new().with("from", "../x")),
            ];
            for (what, options) in maps {
                self.add(
                    "MapDirectory",
                    (what, bare),
                    move |scene| options().with("grant", which(scene)),
                    move |scene| {
                        let fd = |fd: &Directory| zbus::Fd::from(fd.try_clone().unwrap());
                        let body = (fd(&scene.directory), fd(&scene.place.mntns), options().0);
                        let mount: Result<OwnedFd, Refused> =
                            scene.client.call(&which(scene), MOUNTS, "MapDirectory", &body);
                        mount.map(drop)
                    },
                );
            }
        }
    }

    fn of_accounts(&mut self) {
        for method in ["ListGrants", "ListAccounts", "ListRules"] {
            for all in [false, true] {
                let options = move || Options::new().with("all", all);
                let request = move |scene: &Scene| scene.client.ask(PATH, MANAGER, method, &options().0);
                self.add(method, all, move |_| options(), request);
            }
        }
        let departed = |scene: &Scene| scene.client.ask(PATH, MANAGER, "ListDeparted", &Options::new().0);
        self.add("ListDeparted", "", |_| Options::new(), departed);
        for other in [false, true] {
            let account = move |scene: &Scene| scene.asks.uid + u32::from(other);
            self.add(
                "GetUsage",
                other,
                move |scene| Options::new().with("of", account(scene)),
                move |scene| {
                    let options = Options::new().with("account", account(scene));
                    scene.client.ask(PATH, MANAGER, "GetUsage", &options.0)
                },
            );
        }
        for name in ["none", "../x", "", "box", "box"] {
            self.add(
                "ForgetRange",
                name,
                move |_| Options::new().with("name", name),
                move |scene| scene.client.manager("ForgetRange", &name),
            );
        }
    }

    fn of_the_grant(&mut self) {
        for lifetime in ["perhaps", "persistent", "process", "connection"] {
            self.add(
                "Adopt",
                lifetime,
                move |scene| scene.of(&scene.grant).with("lifetime", lifetime),
                move |scene| {
                    let options = Options::new().lifetime(lifetime);
                    let holder = || &scene.client.process.as_ref().unwrap().pidfd;
                    let options =
                        if lifetime == "process" { options.fd("holder", holder()) } else { options };
                    scene.on(GRANT, "Adopt", &options.0)
                },
            );
        }
        for _ in 0..2 {
            self.add(
                "Release",
                "",
                |scene| scene.of(&scene.grant),
                |scene| scene.client.release(&scene.grant.path, true),
            );
        }
    }
}

fn rows() -> Vec<Row> {
    let mut rows = Rows::default();
    rows.of_cgroups();
    rows.of_values();
    rows.of_links();
    rows.of_mounts();
    rows.of_accounts();
    rows.of_the_grant();
    rows.0
}

fn methods() -> BTreeSet<&'static str> {
    let names = CONTRACT.into_iter().flat_map(|text| text.split("<method name=\"").skip(1));
    names.map(|rest| rest.split('"').next().unwrap()).collect()
}

/// Puts each row's question and request for somebody who asks about grants of `owner`'s; how many were refused and how many done.
fn compare(lab: &Lab, broker: &Broker, owner: &User, asks: &User, is_inside: bool) -> [usize; 2] {
    let mut made = Some(owner.client(broker.socket()));
    let holder = made.as_ref().unwrap();
    let grant = holder.create("box", Options::new()).unwrap();
    let bare = holder.create("bare", Options::new().no_range()).unwrap();
    let far = Node::container(owner);
    holder.add_link(&grant.path, Options::new().ports(&["2001:80"]).netns(&far.netns)).unwrap();
    let place = Place::new(asks, &asks.home);
    let directory = place.opens("open", asks.home.to_str().unwrap());
    let is_holder = asks.uid == owner.uid && !is_inside;
    let client = made.take_if(|_| is_holder).unwrap_or_else(|| asks.client(broker.socket()));
    if is_inside {
        level::put(lab, owner, "bare", client.process.as_ref().unwrap().pid);
    }
    let node = Node::container(asks);
    let scene = Scene { asks: asks.clone(), client, grant, bare, node, place, directory };
    let mut outcomes = [0, 0];
    for row in rows() {
        let question = explain(&scene.client, row.method, (row.question)(&scene));
        let real = (row.request)(&scene);
        let what = format!("{} by {} of {}, inside {is_inside}", row.what, asks.uid, owner.uid);
        outcomes[usize::from(real.is_ok())] += 1;
        match question {
            Ok(answer) => same(&what, &answer, &real),
            // What is no request is no question either.
            Err(refused) => {
                let real = real.err().unwrap_or_else(|| panic!("{what} is done: {refused:?}"));
                assert_eq!(refused.name, real.name, "{what}");
                assert!(refused.message.ends_with(&real.message), "{what}: {refused:?}, {real:?}");
            }
        }
    }
    outcomes
}

fn every_method_is_told_what_it_comes_to(lab: &Lab) {
    let network = Network::new(lab);
    lab.write_config(BRIDGE);
    lab.write_policy(POLICY);
    let broker = network.broker();
    let (user, other) = (lab.user(), lab.user());
    let holder = other.client(broker.socket());
    let taken = holder.create("taken", Options::new().no_range()).unwrap();
    let far = Node::container(&other);
    holder.add_link(&taken.path, Options::new().ports(&["2100:80"]).netns(&far.netns)).unwrap();
    for (asks, is_inside) in [(&user, false), (&lab.root(), false), (&other, false), (&user, true)] {
        let [refused, done] = compare(lab, &broker, &user, asks, is_inside);
        assert!(refused > 40 && done > 3, "{refused} refused and {done} done prove little");
        wait_until("the grants of its connection are gone", || {
            user.client(broker.socket()).names().is_empty()
        });
    }
    holder.release(&taken.path, false).unwrap();
}

/// `create-grant` of `CreateGrant`.
fn word_of(method: &str) -> String {
    let letters = method.char_indices().flat_map(|(at, c)| {
        let dash = (at > 0 && c.is_ascii_uppercase()).then_some('-');
        dash.into_iter().chain([c.to_ascii_lowercase()])
    });
    letters.collect()
}

fn no_method_is_without_a_row(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (all, rows): (_, BTreeSet<_>) = (methods(), rows().iter().map(|row| row.method).collect());
    for method in &rows {
        let words = user.cgrant(broker.socket(), &["explain", &word_of(method)]);
        let said = String::from_utf8_lossy(&words.stderr).into_owned();
        assert!(!said.contains("invalid value"), "the command has no word for {method}: {said}");
    }
    let without: BTreeSet<&str> = all.difference(&rows).copied().collect();
    assert_eq!(without, BTreeSet::from(NOT_DECIDED));
    assert!(rows.is_subset(&all), "a row for what is no method");
    for method in without {
        let refused = explain(&client, method, Options::new()).unwrap_err();
        refused.is("InvalidArgument", "can't be explained");
    }
    // The two that are no methods.
    for request in ["Connect", "CGManager"] {
        assert!(allowed(&explain(&client, request, Options::new()).unwrap()));
    }
}

crate::tests![every_method_is_told_what_it_comes_to, no_method_is_without_a_row];
