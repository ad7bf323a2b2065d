//! Other people's clients: busctl, gdbus and dbus-send speak with the broker on its own socket and on a real bus; and
//! what they see there is the contract in `dbus/`.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
};

use zbus_xml::Node;

use crate::common::{
    Broker, Client, Lab, Options, User, bus::MANAGER_PATH, checker, daemon::Daemon, wait_until,
};

const CONTRACT: [&str; 7] = [
    include_str!("../../dbus/org.cgrant.Broker1.Manager.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Grant.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Cgroup.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Links.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Ids.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Mounts.xml"),
    include_str!("../../dbus/org.cgrant.Broker1.Account.xml"),
];

fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {}{text}", String::from_utf8_lossy(&stderr));
    text
}

fn address(broker: &Broker) -> String {
    format!("unix:path={}", broker.socket().display())
}

fn dbus_send_speaks_peer_to_peer(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let peer = format!("--peer={}", address(&broker));
    let send = |words: &[&str]| {
        let mut command = user.command("dbus-send");
        command.args([&peer, "--print-reply", MANAGER_PATH]).args(words);
        output(&mut command)
    };
    assert!(send(&["org.freedesktop.DBus.Introspectable.Introspect"]).contains("org.cgrant.Broker1.Manager"));
    let client = user.client(broker.socket());
    let grant = client.create("sent", Options::new()).unwrap();
    let ranges = send(&["org.cgrant.Broker1.Manager.ListRanges"]);
    assert!(ranges.contains(&format!("uint32 {}", grant.uid)) && ranges.contains("\"sent\""), "{ranges}");
    let instance = send(&[
        "org.freedesktop.DBus.Properties.Get",
        "string:org.cgrant.Broker1.Manager",
        "string:Instance",
    ]);
    assert!(instance.contains(&lab.instance), "{instance}");
    assert!(send(&["org.freedesktop.DBus.Peer.Ping"]).contains("method return"));
}

fn gdbus_and_busctl_speak_peer_to_peer(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let address = address(&broker);
    let gdbus = |words: &[&str]| {
        let mut command = user.command("gdbus");
        command.args(words).args(["--address", &address]);
        output(&mut command)
    };
    let seen = gdbus(&["introspect", "--dest", "x.y", "--object-path", MANAGER_PATH]);
    assert!(seen.contains("interface org.cgrant.Broker1.Manager") && seen.contains("CreateGrant"), "{seen}");
    let listed = gdbus(&[
        "call",
        "--dest",
        "x.y",
        "--object-path",
        MANAGER_PATH,
        "--method",
        "org.cgrant.Broker1.Manager.ListGrants",
        "{}",
    ]);
    assert!(listed.contains("(@a(osu) [],)"), "{listed}");
    let busctl = |words: &[&str]| {
        let mut command = user.command("busctl");
        command.arg(format!("--address={address}")).args(words);
        output(&mut command)
    };
    let rows =
        busctl(&["call", "org.cgrant.Broker1", MANAGER_PATH, "org.cgrant.Broker1.Manager", "ListRanges"]);
    assert_eq!(rows.trim(), "a(uuuss) 0");
    let seen = busctl(&["introspect", "org.cgrant.Broker1", MANAGER_PATH]);
    assert!(seen.contains(".CreateGrant") && seen.contains(".GrantRemoved"), "{seen}");
    let instance = busctl(&[
        "get-property",
        "org.cgrant.Broker1",
        MANAGER_PATH,
        "org.cgrant.Broker1.Manager",
        "Instance",
    ]);
    assert_eq!(instance.trim(), format!("s \"{}\"", lab.instance));
}

fn changes_do_not_disturb_who_is_just_connecting(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("restless", Options::new()).unwrap();
    let address = address(&broker);
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            // sd-bus says Hello to what it takes for a bus, and gives up if it hears anything before the answer.
            for _ in 0..60 {
                let mut command = user.command("busctl");
                command.arg(format!("--address={address}"));
                output(command.args(["introspect", "org.cgrant.Broker1", MANAGER_PATH]));
            }
        });
        let mut pids = 10..;
        while !connecting.is_finished() {
            let number = pids.next().unwrap().to_string();
            client.set_limits(&grant.path, &[("pids.max", &number)]).unwrap();
        }
    });
}

/// dbus-daemon lets nobody in whom /etc/passwd does not know: the bus front has an account, and so have the callers.
/// These are in every Debian.
pub fn accounts(lab: &Lab) -> [User; 2] {
    lab.write_config("[accounts]\nbus-front = \"backup\"\n");
    ["games", "news"].map(|name| {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        User::new(line.split(':').nth(2).unwrap().parse().unwrap(), &[], &lab.scratch, &lab.programs)
    })
}

fn a_real_bus_carries_the_same_objects(lab: &Lab) {
    let [user, stranger] = accounts(lab);
    let daemon = Daemon::start(lab);
    let broker = lab.setup().bus(&daemon.address).start();
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    let busctl = |words: &[&str]| {
        let mut command = user.command("busctl");
        command.arg(format!("--address={}", daemon.address)).args(words);
        command.output().unwrap()
    };
    wait_until("the name is on the bus", || busctl(&["introspect", &name, MANAGER_PATH]).status.success());
    let call = |method: &str, arguments: &[&str]| {
        let words =
            [&["call", &name, MANAGER_PATH, "org.cgrant.Broker1.Manager", method], arguments].concat();
        let output = busctl(&words);
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    // Who calls is what the bus daemon says.
    let (done, said) = call("GetUsage", &["a{sv}", "0"]);
    assert!(
        done && said.contains(&format!("u\" {}", user.uid)) || said.contains(&format!(" {} ", user.uid)),
        "{said}"
    );
    let (done, said) = call("CreateGrant", &["sa{sv}", "bus", "1", "lifetime", "s", "persistent"]);
    assert!(done && said.contains("/org/cgrant/Broker1/grant/"), "{said}");
    checker::assert_in_order(lab);
    let on_socket = user.client(broker.socket());
    assert_eq!(on_socket.names(), ["bus"], "the same grants on both transports");
    let (done, said) = call("ListGrants", &["a{sv}", "0"]);
    assert!(done && said.contains("\"bus\""), "{said}");
    let (done, said) = call("ListGrants", &["a{sv}", "1", "all", "b", "true"]);
    assert!(!done && said.contains("root"), "{said}");
    // Somebody else on the bus.
    let mut command = stranger.command("busctl");
    command.arg(format!("--address={}", daemon.address));
    command.args([
        "call",
        &name,
        MANAGER_PATH,
        "org.cgrant.Broker1.Manager",
        "GetGrant",
        "sa{sv}",
        "bus",
        "0",
    ]);
    assert!(!command.output().unwrap().status.success());
    let mut gdbus = user.command("gdbus");
    gdbus.args(["introspect", "--address", &daemon.address, "--dest", &name, "--object-path", MANAGER_PATH]);
    assert!(output(&mut gdbus).contains("CreateGrant"));
    // A grant of a connection ends when its caller leaves the bus.
    let root = Client::on_bus(&daemon.address, &name);
    let grant = root.create("of-root", Options::new()).unwrap();
    assert!(grant.new);
    drop(root);
    wait_until("the caller's grant ended with it", || checker::records(lab).len() == 1);
    let path = on_socket.find("bus").unwrap();
    on_socket.release(&path, false).unwrap();
    checker::assert_empty(lab);
    drop(on_socket);
    drop(broker);
}

fn the_bus_may_go_and_come_back(lab: &Lab) {
    let [user, _] = accounts(lab);
    let daemon = Daemon::start(lab);
    let broker = lab.setup().bus(&daemon.address).start();
    let client = user.client(broker.socket());
    let grant = client.create("stays", Options::new()).unwrap();
    drop(daemon);
    // The socket does not notice.
    client.set_limits(&grant.path, &[("pids.max", "9")]).unwrap();
    let _ = fs::remove_file(lab.scratch.join("bus.socket"));
    let daemon = Daemon::start(lab);
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    wait_until("the name is on the bus again", || {
        let mut command = user.command("busctl");
        command.arg(format!("--address={}", daemon.address)).args(["introspect", &name, MANAGER_PATH]);
        command.output().unwrap().status.success()
    });
    assert_eq!(client.value(&grant.path, "pids.max"), "9");
    drop(client);
    drop(broker);
}

type Shape = BTreeMap<String, Vec<String>>;

// What an interface promises, line by line, without comments and order.
fn shape(xml: &str) -> Shape {
    let node = Node::from_reader(xml.as_bytes()).unwrap_or_else(|error| panic!("{error}: {xml}"));
    let mut shape = Shape::new();
    for interface in node.interfaces() {
        let mut lines = Vec::new();
        for method in interface.methods() {
            let arguments: Vec<String> = method
                .args()
                .iter()
                .map(|a| format!("{:?} {} {:?}", a.direction(), a.ty(), a.name()))
                .collect();
            lines.push(format!("method {}({})", method.name(), arguments.join(", ")));
        }
        for signal in interface.signals() {
            let arguments: Vec<String> =
                signal.args().iter().map(|a| format!("{} {:?}", a.ty(), a.name())).collect();
            lines.push(format!("signal {}({})", signal.name(), arguments.join(", ")));
        }
        for property in interface.properties() {
            let changes = property
                .annotations()
                .iter()
                .map(|a| format!("{}={}", a.name(), a.value()))
                .collect::<Vec<_>>();
            lines.push(format!(
                "property {} {} {:?} {}",
                property.name(),
                property.ty(),
                property.access(),
                changes.join(" ")
            ));
        }
        lines.sort();
        shape.insert(interface.name().to_string(), lines);
    }
    shape
}

fn what_runs_is_what_the_contract_says(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("seen", Options::new()).unwrap();
    let mut running = shape(&client.introspect(MANAGER_PATH));
    running.extend(shape(&client.introspect(&grant.path)));
    running.extend(shape(&client.introspect(&format!("/org/cgrant/Broker1/account/{}", user.uid))));
    let mut promised = Shape::new();
    for xml in CONTRACT {
        promised.extend(shape(xml));
    }
    assert_eq!(promised.len(), 7);
    running.retain(|name, _| name.starts_with("org.cgrant."));
    for (name, lines) in &promised {
        assert_eq!(running.get(name), Some(lines), "{name}: what runs and the contract differ");
    }
    assert_eq!(
        running.len(),
        promised.len(),
        "interfaces that the contract does not have: {:?}",
        running.keys()
    );
    // The path from the root is there to be walked.
    let mut path = String::from("/");
    for part in ["org", "cgrant", "Broker1"] {
        let node = Node::from_reader(client.introspect(&path).as_bytes()).unwrap();
        assert!(node.nodes().iter().any(|n| n.name() == Some(part)), "{part} is not below {path}");
        path = Path::new(&path).join(part).to_str().unwrap().to_owned();
    }
}

crate::tests![
    dbus_send_speaks_peer_to_peer,
    gdbus_and_busctl_speak_peer_to_peer,
    changes_do_not_disturb_who_is_just_connecting,
    a_real_bus_carries_the_same_objects,
    the_bus_may_go_and_come_back,
    what_runs_is_what_the_contract_says,
];
