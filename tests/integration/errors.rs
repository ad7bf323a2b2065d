//! Every error of the native interface, brought about over a real broker, with what it says besides for programs.

use std::{collections::BTreeSet, fs};

use cgrant_proto::Code;

use crate::common::{Client, Lab, Network, Node, Options, User, bus::Refused};

/// A rule that meets each quota and ceiling at once, and gives the rights that the others need.
const POLICY: &str = "\
[[rule]]
name = \"table\"
quota = { grants = 2, ids = 4000000000, ids-per-grant = 4000000000 }
grant-ceiling = { \"pids.max\" = 50 }
network.fixed-addresses = [\"0.0.0.0/0\"]
";

/// What is there when a request is made.
struct Scene {
    user: User,
    client: Client,
    grant: String,
    node: Node,
}

/// The error, what makes a request that ends with it, and what has to be said beside its sentence.
type Row = (Code, fn(&Scene) -> Result<(), Refused>, &'static [&'static str]);

/// Those that only a failing kernel, disk or broker brings about: the first step of a change of limits refuses with it. (What happens to
/// a grant when a disk is really full is in `failures.rs`.)
const INJECTED: [Code; 3] = [Code::RecordUnwritable, Code::TimedOut, Code::Internal];

const ROWS: &[Row] = &[
    (Code::NotAuthorized, |scene| scene.set("memory.min", "1M"), &["rule", "hint"]),
    (Code::QuotaExceeded, |scene| scene.make("third"), &["rule", "resource", "quota", "usage"]),
    (Code::QuotaExceeded, |scene| scene.set("pids.max", "51"), &["rule", "resource", "limit", "hint"]),
    (
        Code::InvalidArgument,
        |scene| scene.client.create("x", Options::new().lifetime("perhaps")).map(drop),
        &["argument"],
    ),
    (Code::InvalidArgument, |scene| scene.set("pids.max", "many"), &[]),
    (Code::InvalidName, |scene| scene.make("../x"), &[]),
    (
        Code::InvalidDescriptor,
        |scene| {
            scene.client.attach(&scene.grant, fs::File::open("/dev/null").unwrap(), Options::new()).map(drop)
        },
        &[],
    ),
    (Code::NoSuchGrant, |scene| scene.client.find("none").map(drop), &["hint"]),
    (
        Code::NoSuchProcess,
        |scene| {
            let mut dead = scene.user.sleeper();
            dead.kill();
            scene.client.attach(&scene.grant, &dead.pidfd, Options::new()).map(drop)
        },
        &[],
    ),
    (Code::NoSuchCgroup, |scene| scene.client.cgroup(&scene.grant, "RemoveCgroup", &"none"), &[]),
    (Code::CgroupExists, |scene| scene.client.cgroup(&scene.grant, "CreateCgroup", &"there"), &[]),
    (Code::NoSuchLink, |scene| scene.client.remove_link(&scene.grant, "eth9"), &[]),
    (Code::LinkExists, |scene| scene.link(Options::new().with("name", "eth0".to_owned())), &[]),
    (Code::NoSuchBridge, |scene| scene.link(Options::new().with("bridge", "nowhere".to_owned())), &["rule"]),
    (
        Code::AddressInUse,
        |scene| {
            let link = scene.client.links(&scene.grant).remove(0);
            scene.link(Options::new().with("address4", link.address4.unwrap().to_string()))
        },
        &[],
    ),
    (Code::Busy, |scene| scene.client.release(&scene.grant, false), &["hint"]),
    (Code::Unsupported, |scene| scene.set("hugetlb.64KB.max", "1M"), &[]),
    (Code::KernelRefused, |scene| scene.set("cpuset.cpus", "4000"), &[]),
];

impl Scene {
    fn set(&self, key: &str, value: &str) -> Result<(), Refused> {
        self.client.set_limits(&self.grant, &[(key, value)])
    }

    fn make(&self, name: &str) -> Result<(), Refused> {
        self.client.create(name, Options::new().no_range()).map(drop)
    }

    fn link(&self, options: Options) -> Result<(), Refused> {
        self.client.add_link(&self.grant, options.netns(&self.node.netns)).map(drop)
    }
}

/// It is this error, in one sentence, with these and no strange details.
#[track_caller]
fn assert_is(code: Code, refused: &Refused, keys: &[&str]) {
    const KNOWN: [&str; 8] = ["rule", "quota", "usage", "resource", "limit", "hint", "argument", "action"];
    refused.is(code.name(), "");
    assert!(!refused.message.is_empty(), "{refused:?}");
    for key in keys {
        assert!(refused.details.contains_key(*key), "{}: no {key} in {refused:?}", code.name());
    }
    for (key, value) in &refused.details {
        assert!(KNOWN.contains(&key.as_str()), "{}: {key} is not in the contract: {refused:?}", code.name());
        let is_number = matches!(key.as_str(), "quota" | "usage");
        assert_eq!(u64::try_from(value).is_ok(), is_number, "{}: {key} in {refused:?}", code.name());
    }
}

fn every_error_is_brought_about_with_its_details(lab: &Lab) {
    let network = Network::new(lab);
    lab.write_policy(POLICY);
    let broker = network.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("first", Options::new()).unwrap().path;
    let second = client.create("second", Options::new().no_range()).unwrap();
    let scene = Scene { node: Node::container(&user), user, client, grant };
    scene.link(Options::new()).unwrap();
    scene.client.cgroup::<_, ()>(&scene.grant, "CreateCgroup", &"there").unwrap();
    let inside = scene.user.sleeper();
    scene.client.attach(&scene.grant, &inside.pidfd, Options::new()).unwrap();
    let mut met = BTreeSet::new();
    for (code, request, keys) in ROWS {
        let refused = request(&scene).err().unwrap_or_else(|| panic!("{}: it was done", code.name()));
        assert_is(*code, &refused, keys);
        met.insert(code.name());
    }
    scene.client.release(&second.path, false).unwrap();
    // The name is looked at after the quota; and no range is as large as what is left of them.
    assert_is(Code::GrantExists, &scene.make("first").unwrap_err(), &["hint"]);
    let much = scene.client.create("much", Options::new().count(3_000_000_000)).unwrap_err();
    assert_is(Code::NoFreeRange, &much, &["rule"]);
    met.extend([Code::GrantExists, Code::NoFreeRange].map(Code::name));
    for code in INJECTED {
        broker.order_fault(&format!("{}:1", code.name()));
        assert_is(code, &scene.set("pids.max", "7").unwrap_err(), &[]);
        assert!(broker.fault_done());
        broker.fault_steps();
        met.insert(code.name());
    }
    // None that the broker has is without a row.
    let all: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(met, all);
    drop(scene);
}

crate::tests![every_error_is_brought_about_with_its_details];
