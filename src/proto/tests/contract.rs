//! The proxies against `dbus/*.xml`: a peer that knows nothing but the XML answers them. What a proxy calls must be in
//! the XML, with that signature; everything in the XML must be in a proxy, and be read by it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
};

use cgrant_proto::{
    Account, AccountProxy, AddLink, AdoptGrant, Asked, Asking, AttachTo, CgroupProxy, CreateGrant,
    ExplainRequest, ForgetDeparted, GrantProxy, IdsProxy, LinksProxy, ListGrants, ManagerProxy, MapDirectory,
    MountsProxy, ReleaseGrant, ReportDisk,
    names::{CGROUP, GRANT, IDS, LINKS, MANAGER, MANAGER_PATH, MOUNTS, grant_path},
};
use futures_util::StreamExt;
use zbus::{
    Connection, Fd, Guid, Message, MessageStream, ObjectPath, Variant, connection::Builder, message::Type,
};
use zbus_xml::{ArgDirection, Node};

/// What the XML says about one interface.
#[derive(Default)]
struct Interface {
    methods: BTreeMap<String, (String, String)>,
    properties: BTreeMap<String, String>,
    signals: BTreeMap<String, String>,
}

fn signature(args: &[zbus_xml::Arg<'_>], direction: Option<ArgDirection>) -> String {
    args.iter()
        .filter(|arg| direction.is_none() || arg.direction() == direction)
        .map(|arg| arg.ty().to_string())
        .collect()
}

fn contract() -> BTreeMap<String, Interface> {
    let mut interfaces = BTreeMap::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dbus")).unwrap() {
        let path = file.unwrap().path();
        // CGManager's interface is none of these proxies'.
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("org.cgrant.") || !name.ends_with(".xml") {
            continue;
        }
        let node = Node::from_reader(File::open(path).unwrap()).unwrap();
        for found in node.interfaces() {
            let mut interface = Interface::default();
            for method in found.methods() {
                let input = signature(method.args(), Some(ArgDirection::In));
                let output = signature(method.args(), Some(ArgDirection::Out));
                interface.methods.insert(method.name().to_string(), (input, output));
            }
            for property in found.properties() {
                interface.properties.insert(property.name().to_string(), property.ty().to_string());
            }
            for signal in found.signals() {
                interface.signals.insert(signal.name().to_string(), signature(signal.args(), None));
            }
            interfaces.insert(found.name().to_string(), interface);
        }
    }
    interfaces
}

fn null() -> Fd<'static> {
    Fd::from(std::os::fd::OwnedFd::from(File::open("/dev/null").unwrap()))
}

/// Keys of several results, and one that this library does not know.
fn dictionary() -> HashMap<&'static str, Variant<'static>> {
    let link = HashMap::from([("name", Variant::new("eth0"))]);
    HashMap::from([
        ("count", Variant::new(7u32)),
        ("name", Variant::new("eth0")),
        ("links", Variant::new(vec![link])),
        ("taps", Variant::new(HashMap::from([("tap0", null())]))),
        ("later", Variant::new("x")),
    ])
}

/// Some value of a single complete type.
fn value(signature: &str) -> Variant<'static> {
    match signature {
        "s" => Variant::new("text"),
        "u" => Variant::new(7u32),
        "t" => Variant::new(7u64),
        "b" => Variant::new(true),
        "o" => Variant::new(ObjectPath::try_from(grant_path("0123456789abcdef")).unwrap()),
        "h" => Variant::Fd(null()),
        "as" => Variant::new(vec!["text"]),
        "au" => Variant::new(vec![7u32]),
        "a{st}" => Variant::new(HashMap::from([("grants", 7u64)])),
        "a{ss}" => Variant::new(HashMap::from([("key", "value")])),
        "a{sv}" => Variant::new(dictionary()),
        "aa{sv}" => Variant::new(vec![dictionary()]),
        "a(ss)" => Variant::new(vec![("one", "two")]),
        "a(sbs)" => Variant::new(vec![("one", true, "two")]),
        "a(sbss)" => Variant::new(vec![("one", true, "two", "three")]),
        "a(stt)" => Variant::new(vec![("one", 1u64, 2u64)]),
        "a(ssa(ss))" => Variant::new(vec![("one", "two", vec![("key", "value")])]),
        "a(osu)" => {
            Variant::new(vec![(ObjectPath::try_from(grant_path("0123456789abcdef")).unwrap(), "one", 2u32)])
        }
        "a(usuusu)" => Variant::new(vec![(1u32, "two", 3u32, 4u32, "five", 6u32)]),
        "a(uuuss)" => Variant::new(vec![(1u32, 2u32, 3u32, "four", "five")]),
        other => panic!("no value for {other}"),
    }
}

/// The single complete types of a signature.
fn split(signature: &str) -> Vec<String> {
    match zbus::Signature::try_from(signature).unwrap() {
        zbus::Signature::Unit => Vec::new(),
        zbus::Signature::Structure(fields) => fields.iter().map(ToString::to_string).collect(),
        one => vec![one.to_string()],
    }
}

fn build(builder: zbus::message::Builder<'_>, signature: &str) -> Message {
    let mut body = zbus::Structure::builder();
    let parts = split(signature);
    if parts.is_empty() {
        return builder.build(&()).unwrap();
    }
    for part in parts {
        body = body.append_field(value(&part));
    }
    builder.build(&body.build().unwrap()).unwrap()
}

type Called = Arc<Mutex<BTreeSet<(String, String)>>>;

/// Answers everything as the XML says, and emits every signal once for each call of `Release`.
async fn serve(connection: Connection, called: Called) {
    let contract = contract();
    let mut stream = MessageStream::from(&connection);
    while let Some(Ok(message)) = stream.next().await {
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let header = message.header();
        let (interface, member) =
            (header.interface().unwrap().to_string(), header.member().unwrap().to_string());
        let reply = Message::method_return(&header);
        let reply = if member == "GetAll" {
            let interface: String = message.body().deserialize().unwrap();
            let all: HashMap<_, _> =
                contract[&interface].properties.iter().map(|(name, ty)| (name.as_str(), value(ty))).collect();
            reply.build(&all).unwrap()
        } else if interface == "org.freedesktop.DBus.Properties" {
            let (interface, property): (String, String) = message.body().deserialize().unwrap();
            let ty = &contract[&interface].properties[&property];
            called.lock().unwrap().insert((interface, property));
            reply.build(&value(ty)).unwrap()
        } else if let Some((input, output)) =
            contract.get(&interface).and_then(|found| found.methods.get(&member))
        {
            assert_eq!(&header.signature().to_string_no_parens(), input, "{interface}.{member}");
            called.lock().unwrap().insert((interface, member.clone()));
            build(reply, output)
        } else {
            Message::error(&header, "org.freedesktop.DBus.Error.UnknownMethod").build(&"no").unwrap()
        };
        connection.send(&reply).await.unwrap();
        if member == "Release" {
            emit(&connection, &contract).await;
        }
    }
}

async fn emit(connection: &Connection, contract: &BTreeMap<String, Interface>) {
    for (name, interface) in contract {
        let path = if name == MANAGER { MANAGER_PATH.to_owned() } else { grant_path("0123456789abcdef") };
        for (signal, signature) in &interface.signals {
            let signal = build(Message::signal(path.as_str(), name.as_str(), signal.as_str()), signature);
            connection.send(&signal).await.unwrap();
        }
    }
}

async fn pair() -> (Connection, Called) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
    let client = Builder::unix_stream(ours).p2p().build();
    let (server, client) = tokio::join!(server, client);
    let called = Called::default();
    tokio::spawn(serve(server.unwrap(), Arc::clone(&called)));
    (client.unwrap(), called)
}

#[tokio::test]
async fn proxies_and_xml_are_one_contract() {
    let (connection, called) = pair().await;
    let path = grant_path("0123456789abcdef");
    let file = File::open("/dev/null").unwrap();

    let manager = ManagerProxy::new(&connection).await.unwrap();
    let (grant, result, _) =
        manager.create_grant("x", &CreateGrant::new().userns(file.as_fd())).await.unwrap();
    assert_eq!((grant.as_str(), result.count, result.uid), (path.as_str(), Some(7), None));
    assert_eq!(result.links.unwrap()[0].text("name"), Some("eth0"));
    assert!(result.taps.unwrap().contains_key("tap0"));
    manager.list_grants(&ListGrants::new()).await.unwrap();
    manager.get_grant("x", &Account::new()).await.unwrap();
    manager.get_usage(&Account::new()).await.unwrap();
    manager.explain("ListGrants", &ExplainRequest::new().option("all", true)).await.unwrap();
    assert_eq!(manager.list_bridges().await.unwrap()[0].text("name"), Some("eth0"));
    manager.examine_network().await.unwrap();
    manager.list_ranges().await.unwrap();
    manager.list_accounts(&ListGrants::new().all()).await.unwrap();
    manager.list_rules(&ListGrants::new().all()).await.unwrap();
    manager.list_departed(&Account::new()).await.unwrap();
    manager.forget_departed(&[1], &ForgetDeparted::new()).await.unwrap();
    manager.report_disk(1, 2, &[(3, 4, 5)], &ReportDisk::new().incomplete()).await.unwrap();
    manager.forget_range("x").await.unwrap();

    let cgroup = CgroupProxy::new(&connection, path.as_str()).await.unwrap();
    cgroup.attach(Fd::from(&file), &AttachTo::new()).await.unwrap();
    cgroup.set_limits(&HashMap::new()).await.unwrap();
    cgroup.get_values(&[]).await.unwrap();
    cgroup.stat().await.unwrap();
    cgroup.list_processes().await.unwrap();
    cgroup.freeze().await.unwrap();
    cgroup.thaw().await.unwrap();
    cgroup.kill().await.unwrap();
    cgroup.create_cgroup("x").await.unwrap();
    cgroup.remove_cgroup("x").await.unwrap();
    cgroup.list_cgroups().await.unwrap();
    cgroup.open_cgroup("x").await.unwrap();
    let links = LinksProxy::new(&connection, path.as_str()).await.unwrap();
    assert_eq!(links.add_link(&AddLink::new().tap()).await.unwrap().text("name"), Some("eth0"));
    links.remove_link("eth0").await.unwrap();
    links.publish_ports("eth0", &[]).await.unwrap();
    links.unpublish_ports("eth0", &[]).await.unwrap();
    let mounts = MountsProxy::new(&connection, path.as_str()).await.unwrap();
    let (directory, namespace) = (Fd::from(&file), Fd::from(&file));
    mounts.map_directory(directory, namespace, &MapDirectory::new().from_range("x")).await.unwrap();
    mounts.make_device("null").await.unwrap();
    mounts.allow_device("null").await.unwrap();
    let grant = GrantProxy::new(&connection, path.as_str()).await.unwrap();
    grant.adopt(&AdoptGrant::new()).await.unwrap();

    let mut added = manager.receive_grant_added().await.unwrap();
    let mut removed = manager.receive_grant_removed().await.unwrap();
    let mut ended = grant.receive_ended().await.unwrap();
    let mut oom = cgroup.receive_oom().await.unwrap();
    let mut pressure = cgroup.receive_pressure().await.unwrap();
    let mut link_added = links.receive_link_added().await.unwrap();
    let mut link_removed = links.receive_link_removed().await.unwrap();
    grant.release(&ReleaseGrant::new()).await.unwrap();
    assert_eq!(added.next().await.unwrap().args().unwrap().account, 7);
    assert_eq!(removed.next().await.unwrap().args().unwrap().reason, "text");
    assert_eq!(ended.next().await.unwrap().args().unwrap().reason, "text");
    assert_eq!(oom.next().await.unwrap().args().unwrap().kills, 7);
    assert_eq!(pressure.next().await.unwrap().args().unwrap().resource, "text");
    assert_eq!(link_added.next().await.unwrap().args().unwrap().link.text("name"), Some("eth0"));
    assert_eq!(link_removed.next().await.unwrap().args().unwrap().reason, "text");
    let signals: usize = contract().values().map(|interface| interface.signals.len()).sum();
    assert_eq!(signals, 7, "a signal that no proxy has");

    properties(&connection, &path).await;
    asked(&connection, &path).await;
    let expected: BTreeSet<_> = contract()
        .into_iter()
        .flat_map(|(name, interface)| {
            let members = interface.methods.into_keys().chain(interface.properties.into_keys());
            members.map(move |member| (name.clone(), member)).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(*called.lock().unwrap(), expected);
    assert!(
        [MANAGER, GRANT, CGROUP, LINKS, IDS, MOUNTS]
            .iter()
            .all(|name| expected.iter().any(|(interface, _)| interface == name))
    );
}

/// What a person may be asked about is called in a way of its own: by these names, and read as these types.
async fn asked(connection: &Connection, path: &str) {
    let asking = Asking::new(None);
    let manager = Asked::new(ManagerProxy::new(connection).await.unwrap(), &asking);
    manager.create_grant("x", &CreateGrant::new()).await.unwrap();
    manager.list_grants(&ListGrants::new()).await.unwrap();
    manager.get_grant("x", &Account::new()).await.unwrap();
    manager.get_usage(&Account::new()).await.unwrap();
    manager.list_accounts(&ListGrants::new()).await.unwrap();
    let path = path.to_owned();
    let grant = Asked::new(GrantProxy::new(connection, path.clone()).await.unwrap(), &asking);
    grant.adopt(&AdoptGrant::new()).await.unwrap();
    let cgroup = Asked::new(CgroupProxy::new(connection, path.clone()).await.unwrap(), &asking);
    cgroup.set_limits(&HashMap::new()).await.unwrap();
    cgroup.get_values(&[]).await.unwrap();
    cgroup.stat().await.unwrap();
    cgroup.list_processes().await.unwrap();
    cgroup.freeze().await.unwrap();
    cgroup.thaw().await.unwrap();
    cgroup.kill().await.unwrap();
    cgroup.create_cgroup("x").await.unwrap();
    cgroup.list_cgroups().await.unwrap();
    let links = Asked::new(LinksProxy::new(connection, path).await.unwrap(), &asking);
    assert_eq!(links.add_link(&AddLink::new()).await.unwrap().text("name"), Some("eth0"));
    links.remove_link("eth0").await.unwrap();
    links.publish_ports("eth0", &[]).await.unwrap();
    links.unpublish_ports("eth0", &[]).await.unwrap();
    grant.release(&ReleaseGrant::new()).await.unwrap();
}

/// A proxy that keeps properties would ask for all at once; here each is asked for by its name.
async fn properties(connection: &Connection, path: &str) {
    use zbus::proxy::CacheProperties::No;
    let grant = GrantProxy::builder(connection).path(path).cache_properties(No).build().await.unwrap();
    grant.id().await.unwrap();
    grant.name().await.unwrap();
    grant.account().await.unwrap();
    grant.lifetime().await.unwrap();
    grant.created().await.unwrap();
    grant.parent().await.unwrap();
    let cgroup = CgroupProxy::builder(connection).path(path).cache_properties(No).build().await.unwrap();
    cgroup.limits().await.unwrap();
    cgroup.frozen().await.unwrap();
    cgroup.populated().await.unwrap();
    cgroup.cgroup_id().await.unwrap();
    cgroup.hierarchies().await.unwrap();
    let links = LinksProxy::builder(connection).path(path).cache_properties(No).build().await.unwrap();
    links.links().await.unwrap();
    let ids = IdsProxy::builder(connection).path(path).cache_properties(No).build().await.unwrap();
    ids.uid().await.unwrap();
    ids.gid().await.unwrap();
    ids.count().await.unwrap();
    let account = AccountProxy::builder(connection).path(path).cache_properties(No).build().await.unwrap();
    account.uid().await.unwrap();
    account.usage().await.unwrap();
    account.quotas().await.unwrap();
    account.rule().await.unwrap();
    account.disk_measured().await.unwrap();
    ids.nesting().await.unwrap();
    let manager = ManagerProxy::builder(connection).cache_properties(No).build().await.unwrap();
    manager.version().await.unwrap();
    manager.instance().await.unwrap();
    manager.hierarchy().await.unwrap();
    manager.systemd().await.unwrap();
    manager.controllers().await.unwrap();
    manager.features().await.unwrap();
}
