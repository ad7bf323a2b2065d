//! Each right that polkit is asked about, over a real polkitd with the actions as they are shipped: what nobody is asked for, what an
//! administrator is asked for, and what rules of the administrator's see of links to the host's networks.

use std::collections::BTreeMap;

use crate::common::{
    Broker, Client, Lab, Network, Node, Options, PATIENCE, User,
    bus::{CGROUP, MANAGER, MANAGER_PATH, Refused},
    network::LINKS,
    polkit::Desk,
    wait_until,
};

use super::polkit::sees_polkit;

/// What polkit says of a default: `yes`, and `auth_admin_keep` (PolkitImplicitAuthorization).
const YES: u32 = 5;
const ADMINISTRATOR: u32 = 4;

/// Where every right is polkit's to give.
const RIGHTS: &str = "\
[[rule]]
name = \"rights\"
access = { grant = \"ask\", persistent = \"ask\", limits = \"ask\", link = \"ask\" }
grant-ceiling = { \"pids.max\" = 50 }
";
const OFFICE: &str = "[[network.bridge]]\nname = \"office\"\ndevice = \"office\"\nsubnet4 = \"10.77.0.0/24\"\nrange4 = \"10.77.0.100-10.77.0.120\"\n";

/// Who asks, and what about.
struct Scene {
    client: Client,
    grant: String,
    theirs: String,
    node: Node,
}

impl Scene {
    fn set(&self, key: &str, value: &str) -> Result<(), Refused> {
        self.client.ask(&self.grant, CGROUP, "SetLimits", &BTreeMap::from([(key, value)]))
    }

    fn make(&self, name: &str, options: Options) -> Result<(), Refused> {
        self.client.ask(MANAGER_PATH, MANAGER, "CreateGrant", &(name, options.no_range().0))
    }

    fn link(&self, options: Options) -> Result<(), Refused> {
        self.client.ask(&self.grant, LINKS, "AddLink", &options.netns(&self.node.netns).0)
    }

    fn publish(&self, port: &str) -> Result<(), Refused> {
        self.client.ask(&self.grant, LINKS, "PublishPorts", &("eth0", vec![port]))
    }
}

fn office() -> Options {
    Options::new().with("bridge", "office")
}

/// The action, what it is by default, a request that needs it, and what a no to it is.
type Row = (&'static str, u32, fn(&Scene) -> Result<(), Refused>, &'static str);

const ROWS: [Row; 8] = [
    ("create-grant", YES, |scene| scene.make("another", Options::new()), ""),
    ("set-limits", YES, |scene| scene.set("pids.max", "9"), ""),
    ("add-link", YES, |scene| scene.link(Options::new()), ""),
    (
        "create-persistent-grant",
        ADMINISTRATOR,
        |scene| scene.make("lasting", Options::new().lifetime("persistent")),
        "NotAuthorized",
    ),
    ("exceed-quota", ADMINISTRATOR, |scene| scene.set("pids.max", "51"), "QuotaExceeded"),
    ("write-raw", ADMINISTRATOR, |scene| scene.set("cpu.uclamp.min", "0"), "NotAuthorized"),
    (
        "manage-others",
        ADMINISTRATOR,
        |scene| scene.client.ask(&scene.theirs, CGROUP, "Kill", &()),
        "NoSuchGrant",
    ),
    ("host-network", ADMINISTRATOR, |scene| scene.link(office()), "NoSuchBridge"),
];

/// A bridge of the administrator's with something on it, so that it is up.
fn open_office(lab: &Lab, network: &Network<'_>) {
    lab.write_config(OFFICE);
    network.host.sh(
        "ip link add office address 02:00:00:00:77:01 type bridge; ip link add desk type veth peer name chair
         for device in office desk chair; do echo 1 >/proc/sys/net/ipv6/conf/$device/disable_ipv6; done
         ip address add 10.77.0.1/24 dev office; ip link set desk master office
         for device in office desk chair; do ip link set $device up; done",
    );
    wait_until("the office is open", || {
        network.host.run(&["ip", "link", "show", "office"]).contains("state UP")
    });
    network.look();
}

fn close_office(network: &Network<'_>) {
    network.assert_as_before();
    network.host.sh("ip link del desk; ip link del office");
    network.look();
}

fn broker(lab: &Lab, network: &Network<'_>, desk: &Desk) -> Broker {
    let broker = network.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    broker
}

fn scene(user: &User, broker: &Broker, theirs: &str) -> Scene {
    let client = user.client(broker.socket());
    let name = format!("of-{}", client.process.as_ref().unwrap().pid);
    let grant = client.create(&name, Options::new().no_range()).unwrap().path;
    let node = Node::container(user);
    node.sh("ip link set lo up");
    Scene { client, grant, theirs: theirs.to_owned(), node }
}

fn defaults_are_those_that_are_promised(lab: &Lab) {
    let desk = Desk::start(lab, &[]);
    let promised: BTreeMap<String, [u32; 3]> = ROWS
        .iter()
        .map(|(action, default, ..)| (format!("org.cgrant.broker1.{action}"), [*default; 3]))
        .collect();
    // For who sits at the machine, whose session is not in front, and who has none.
    assert_eq!(desk.defaults(), promised);
}

fn each_right_is_asked_for_by_its_action(lab: &Lab) {
    let network = Network::new(lab);
    open_office(lab, &network);
    lab.write_policy(RIGHTS);
    let (user, other) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&user, &other]);
    let broker = broker(lab, &network, &desk);
    let theirs = other.client(broker.socket());
    let grant = theirs.create("theirs", Options::new().no_range()).unwrap().path;

    let scene_of = || scene(&user, &broker, &grant);
    let agreed = scene_of();
    let mut agent = desk.agent(lab, agreed.client.process.as_ref().unwrap(), "yes");
    for (action, default, request, _) in ROWS {
        let done = request(&agreed);
        // What the kernel says to it is no matter of rights.
        let may = done.as_ref().err().is_none_or(|refused| {
            ["Unsupported", "KernelRefused"].contains(&refused.name.as_str()) && action == "write-raw"
        });
        assert!(may, "{action}: {done:?}");
        if default == YES {
            assert!(agent.is_left_alone(), "somebody was asked about {action}");
        } else {
            let asked = agent.hear();
            assert!(asked.starts_with(&format!("asked org.cgrant.broker1.{action} ")), "{asked}");
        }
    }
    let links: Vec<String> = agreed.client.links(&agreed.grant).into_iter().map(|link| link.bridge).collect();
    assert_eq!(links, ["default", "office"]);

    // Who is told no has nothing of it; what is its own needs nobody.
    let denied = scene_of();
    let mut agent = desk.agent(lab, denied.client.process.as_ref().unwrap(), "no");
    for (action, default, request, error) in ROWS {
        if default == YES {
            continue;
        }
        let refused = request(&denied).err().unwrap_or_else(|| panic!("{action} without a yes"));
        assert_eq!(refused.name, error, "{action}: {refused:?}");
        assert!(agent.hear().starts_with(&format!("asked org.cgrant.broker1.{action} ")));
        // Of others' grants not even that they are there is told.
        if action != "manage-others" {
            assert!(refused.text("rule").is_some_and(|rule| rule.contains("rights")), "{refused:?}");
            assert!(refused.text("hint").is_some_and(|hint| hint.contains("said no")), "{refused:?}");
        }
    }
    assert!(denied.client.links(&denied.grant).is_empty());
    // Over the rest of what is the host's: not NoSuchBridge, for there is one.
    denied.link(Options::new()).unwrap();
    let refusals = [
        denied.publish("80:80").unwrap_err(),
        denied.link(Options::new().with("address4", "10.77.0.111")).unwrap_err(),
    ];
    for refused in refusals {
        assert!(agent.hear().starts_with("asked org.cgrant.broker1.host-network "));
        refused.is("NotAuthorized", "");
        assert!(refused.text("hint").is_some_and(|hint| hint.contains("said no")), "{refused:?}");
    }
    let lasting = agreed.client.find("lasting").unwrap();
    agreed.client.release(&lasting, false).unwrap();
    drop((agreed, denied, theirs, agent, broker));
    close_office(&network);
}

fn rules_see_which_of_the_hosts_networks_it_is(lab: &Lab) {
    let network = Network::new(lab);
    open_office(lab, &network);
    let user = lab.user();
    let mut desk = Desk::start(lab, &[&user]);
    desk.rules(&format!(
        "polkit.addRule(function(action, subject) {{
    if (action.id != 'org.cgrant.broker1.host-network') return;
    var said = function(key) {{ return action.lookup(key) || ''; }};
    if (said('account') != '{0}' || said('caller') != '{0}') return polkit.Result.NO;
    if (said('request') == 'publish ports' && said('ports') == '80') return polkit.Result.YES;
    if (said('bridges') != 'office' || said('request') != 'add link') return polkit.Result.NO;
    return ['', '10.77.0.111'].indexOf(said('addresses')) >= 0 ? polkit.Result.YES : polkit.Result.NO;
}});",
        user.uid
    ));
    let broker = broker(lab, &network, &desk);
    let scene = scene(&user, &broker, "/");
    // What policy gives needs no rule.
    scene.link(Options::new()).unwrap();
    scene.link(office()).unwrap();
    scene.link(office().with("address4", "10.77.0.111")).unwrap();
    scene.publish("80:80").unwrap();
    scene.link(office().with("address4", "10.77.0.112")).unwrap_err().is("NoSuchBridge", "office");
    scene.link(Options::new().with("bridge", "nowhere")).unwrap_err().is("NoSuchBridge", "nowhere");
    scene.publish("81:81").unwrap_err().is("NotAuthorized", "81");
    let links: Vec<_> =
        scene.client.links(&scene.grant).into_iter().map(|link| (link.bridge, link.ports)).collect();
    let [default, office, fixed] = links.as_slice() else { panic!("{links:?}") };
    assert_eq!((default.0.as_str(), default.1.len()), ("default", 1));
    assert_eq!((office.0.as_str(), fixed.0.as_str()), ("office", "office"));
    drop((scene, broker));
    close_office(&network);
}

fn a_client_of_the_bus_that_goes_takes_its_question_along(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.grants = 0\n");
    let (user, other) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&user, &other]);
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    let path = std::path::Path::new(desk.address.strip_prefix("unix:path=").unwrap());
    let connect = |user: &User| {
        let (process, stream) = user.connect(path);
        Client::of_bus(stream, user.uid, process, &name)
    };
    let create = |client: &Client| {
        client.begin(MANAGER_PATH, MANAGER, "CreateGrant", &("one", Options::new().no_range().0))
    };
    let (mut client, bystander) = (connect(&user), connect(&other));
    let mut silent = desk.agent(lab, client.process.as_ref().unwrap(), "nothing");
    let listener = Client::on_bus(&desk.address, "org.freedesktop.DBus");
    let mut heard = listener.monitor("member='CancelCheckAuthorization'");
    let pending: Vec<_> = (0..4).map(|_| create(&client)).collect();
    assert!(silent.hear().starts_with("asked"));
    // Others are served, and asked about, meanwhile.
    assert!(bystander.names().is_empty());
    let mut agent = desk.agent(lab, bystander.process.as_ref().unwrap(), "yes");
    let mut theirs = create(&bystander);
    assert!(agent.hear().starts_with("asked"));
    bystander.end(&mut theirs, PATIENCE).expect("an answer").unwrap();
    // Its process stays, and could be asked about: it is the connection that ends.
    let process = client.process.take();
    drop((pending, client));
    for _ in 0..4 {
        let is_told = listener.hears_call(&mut heard, "CancelCheckAuthorization");
        assert!(is_told, "polkit was not told of a withdrawal");
    }
    let mut said = silent.hear();
    while said.starts_with("asked") {
        said = silent.hear();
    }
    assert_eq!(said, "cancelled");
    // None of them became a grant, and the account has its questions back.
    let client = connect(&user);
    assert!(client.names().is_empty());
    let mut agent = desk.agent(lab, client.process.as_ref().unwrap(), "yes");
    let mut again = create(&client);
    assert!(agent.hear().starts_with("asked"));
    client.end(&mut again, PATIENCE).expect("an answer").unwrap();
    for client in [client, bystander] {
        client.release(&client.find("one").unwrap(), false).unwrap();
    }
    drop((process, silent, agent, listener, broker));
}

crate::tests![
    defaults_are_those_that_are_promised,
    each_right_is_asked_for_by_its_action,
    rules_see_which_of_the_hosts_networks_it_is,
    a_client_of_the_bus_that_goes_takes_its_question_along,
];
