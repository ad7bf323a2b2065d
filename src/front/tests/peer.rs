//! The socket front over its whole life, with clients of zbus's, raw bytes, and whatever D-Bus tools there are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixListener},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cgrant_proto::{
    Account, AccountProxy, AddLink, AdoptGrant, AttachTo, CgroupProxy, Code, CreateGrant, Error,
    ExplainRequest, ForgetDeparted, GrantProxy, IdsProxy, Lifetime, LinksProxy, ListGrants, ManagerProxy,
    MapDirectory, MountsProxy, ReleaseGrant, ReportDisk, Target,
};
use cgrant_wire::{
    Attach, AttachTarget, BlockUse, CreateGrant as CreateOp, DiskReport, EndReason, Event, Explain, FdIndex,
    GrantChange, GrantId, Holder, Inquiry, LinkEnd, LinkKind, LinkRequest, MapDirectory as MapOp, MapSource,
    Op, PublishedPort, RangeRequest, Transport,
};
use futures_util::StreamExt;
use rustix::fs::{CWD, Mode, OFlags, openat};
use support::{
    FRONT_UID, Front, GRANT, GRANT_PATH, block_on, client, eventually, grant, link, read_to_end, read_until,
    refusal,
};
use zbus::{Connection, Fd, Message, MessageStream, OwnedVariant, Variant, message::Flags};

const MANAGER_PATH: &str = "/org/cgrant/Broker1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

async fn call<B: serde::Serialize + zbus::DynamicType>(
    connection: &Connection,
    path: &str,
    interface: Option<&str>,
    member: &str,
    body: &B,
) -> zbus::Result<Message> {
    connection.call_method(None::<&str>, path, interface, member, body).await
}

fn error_name(result: zbus::Result<Message>) -> String {
    match result.unwrap_err() {
        zbus::Error::MethodError(name, ..) => name.to_string(),
        zbus::Error::FDO(error) => zbus::DBusError::name(&*error).to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_method_of_the_manager_is_its_operation() {
    let front = Front::socket();
    block_on(async {
        let (connection, number) = client(&front, 1000).await;
        let manager = ManagerProxy::new(&connection).await.unwrap();
        let file = File::open("/dev/null").unwrap();
        let limits = [("pids.max".to_owned(), "5".to_owned())];
        let options = CreateGrant::new()
            .key("once")
            .lifetime(Lifetime::Process(file.as_fd()))
            .range_count(1000)
            .range_named(false)
            .setgroups(false)
            .own_ids()
            .nesting(2)
            .tidies()
            .userns(file.as_fd())
            .stage(file.as_fd())
            .limits(&limits)
            .pressure(&["cpu"])
            .links(vec![
                AddLink::new().netns(file.as_fd()).ports(&["8080:80".parse().unwrap()]),
                AddLink::new().tap().name("tap0"),
            ]);
        let (path, result, payload) = manager.create_grant("web", &options).await.unwrap();
        assert_eq!(path.as_str(), GRANT_PATH);
        assert_eq!(
            (result.new, result.uid, result.gid, result.count),
            (Some(true), Some(200_000), Some(300_000), Some(65536))
        );
        assert_eq!(result.id.as_deref(), Some("00c0ffee00c0ffee"));
        assert!(rustix::fs::fstat(&payload).is_ok());
        assert_eq!(result.links.unwrap()[0].text("address4"), Some("10.1.2.16/22"));
        assert!(rustix::fs::fstat(&result.taps.unwrap()["tap0"]).is_ok());
        let seen = front.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].connection, seen[0].fds), (number, 4));
        let holder = Holder::Process(FdIndex(0));
        let range = Some(RangeRequest { count: 1000, named: false, setgroups: false, own_ids: true });
        let expected = CreateOp {
            name: "web".to_owned(),
            key: "once".to_owned(),
            holder,
            range,
            range_name: String::new(),
            userns: Some(FdIndex(1)),
            stage: Some(FdIndex(2)),
            limits: limits.to_vec(),
            pressure: vec!["cpu".to_owned()],
            links: vec![
                LinkRequest { netns: Some(FdIndex(3)), ports: vec![port("8080:80")], ..plain_link() },
                LinkRequest { kind: LinkKind::Tap, name: "tap0".to_owned(), ..plain_link() },
            ],
            nesting: 2,
            tidies: true,
        };
        assert_eq!(seen[0].op, Op::CreateGrant(expected));

        manager
            .create_grant("", &CreateGrant::new().no_range().lifetime(Lifetime::Persistent))
            .await
            .unwrap();
        manager.create_grant("", &CreateGrant::new().range_name("files")).await.unwrap();
        let ops: Vec<_> = front.seen().into_iter().map(|seen| seen.op).collect();
        let [Op::CreateGrant(bare), Op::CreateGrant(plain)] = &ops[..] else { panic!("{ops:?}") };
        assert_eq!((bare.range, bare.holder), (None, Holder::Persistent));
        let default = RangeRequest { count: 0, named: true, setgroups: true, own_ids: false };
        assert_eq!((plain.range, plain.holder), (Some(default), Holder::Connection));
        assert_eq!((bare.range_name.as_str(), plain.range_name.as_str()), ("", "files"));

        let listed = manager.list_grants(&ListGrants::new().all()).await.unwrap();
        assert_eq!((listed[0].0.as_str(), listed[0].1.as_str(), listed[0].2), (GRANT_PATH, "web", 1000));
        assert_eq!(manager.get_grant("web", &Account::new().account(7)).await.unwrap().as_str(), GRANT_PATH);
        let usage = manager.get_usage(&Account::new()).await.unwrap();
        assert_eq!(usage, (1000, "built-in any-user".to_owned(), vec![("grants".to_owned(), 1, 16)]));
        assert_eq!(manager.list_accounts(&ListGrants::new().all()).await.unwrap(), [1000]);
        let rules = manager.list_rules(&ListGrants::new().all()).await.unwrap();
        let row = ("quota.grants".to_owned(), "3".to_owned());
        assert_eq!(rules, [("a.toml:1 x".to_owned(), "uids 7".to_owned(), vec![row])]);
        let account = AccountProxy::new(&connection, "/org/cgrant/Broker1/account/1000").await.unwrap();
        let ranges = manager.list_ranges().await.unwrap();
        assert_eq!(ranges, [(1, 2, 3, "web".to_owned(), "00c0ffee00c0ffee".to_owned())]);
        let departed = manager.list_departed(&Account::new().account(1).to_remove()).await.unwrap();
        assert_eq!(departed, [(1, "alice".to_owned(), 2, 3, "retired".to_owned(), 4)]);
        manager.forget_departed(&[2, 3], &ForgetDeparted::new().incomplete()).await.unwrap();
        manager.report_disk(65536, 131_072, &[(65536, 5, 6)], &ReportDisk::new().incomplete()).await.unwrap();
        manager.forget_range("web").await.unwrap();
        let explained =
            manager.explain("ForgetRange", &ExplainRequest::new().option("name", "web")).await.unwrap();
        assert!(!explained.flag("allowed"));
        assert_eq!(explained.text("error"), Some("org.cgrant.Error.QuotaExceeded"));
        assert_eq!(
            (explained.text("resource"), explained.text("hint")),
            (Some("grants"), Some("release one"))
        );
        let bridges = manager.list_bridges().await.unwrap();
        assert_eq!(
            (bridges[0].text("name"), bridges[0].text("subnet4")),
            (Some("default"), Some("10.1.0.0/22"))
        );
        let text = |text: &str| text.to_owned();
        let finding = (text("nft"), false, text("not there"), text("install nftables"));
        assert_eq!(manager.examine_network().await.unwrap(), [finding]);
        let ops: Vec<_> = front.seen().into_iter().map(|seen| seen.op).collect();
        assert_eq!(
            ops,
            [
                Op::ListGrants { all: true, nested: false },
                Op::FindGrant { name: "web".to_owned(), account: Some(7) },
                Op::Usage { account: None },
                Op::ListAccounts { all: true },
                Op::ListRules { all: true },
                Op::ListRanges,
                Op::ListDeparted { account: Some(1), to_remove: true },
                Op::ForgetDeparted { firsts: vec![2, 3], incomplete: true },
                Op::ReportDisk(DiskReport {
                    first: 65536,
                    count: 131_072,
                    blocks: vec![BlockUse { first: 65536, bytes: 5, files: 6 }],
                    incomplete: true,
                }),
                Op::ForgetRange { name: "web".to_owned() },
                Op::Explain(Box::new(Explain {
                    question: Inquiry::ForgetRange { name: "web".to_owned() },
                    account: None,
                    groups: Vec::new(),
                    application: String::new(),
                })),
                Op::ListBridges,
                Op::ExamineNetwork,
            ]
        );
        assert_eq!((account.uid().await.unwrap(), account.usage().await.unwrap()["grants"]), (1000, 1));
        assert_eq!(account.quotas().await.unwrap()["grants"], 16);
        assert_eq!(account.rule().await.unwrap(), "built-in any-user");
        assert_eq!(account.disk_measured().await.unwrap(), 77);
        assert_eq!(manager.version().await.unwrap(), "1.2.3");
        assert_eq!(manager.controllers().await.unwrap(), ["cpu", "memory"]);
        assert_eq!(
            manager.features().await.unwrap(),
            [("pidfd-info".to_owned(), true, "reads /proc".to_owned())]
        );
    });
}

#[test]
fn every_method_of_a_grant_is_its_operation() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let cgroup = CgroupProxy::new(&connection, GRANT_PATH).await.unwrap();
        let file = File::open("/dev/null").unwrap();
        let options = AttachTo::new().target(Target::Stage).tree();
        assert_eq!(cgroup.attach(Fd::from(&file), &options).await.unwrap(), 3);
        cgroup.set_limits(&HashMap::from([("cpu.max".to_owned(), "max".to_owned())])).await.unwrap();
        assert_eq!(cgroup.get_values(&["cpu.max"]).await.unwrap()["cpu.max"], "value of cpu.max");
        assert_eq!(cgroup.stat().await.unwrap()["memory-current"], OwnedVariant::from(4096u64));
        assert_eq!(
            cgroup.list_processes().await.unwrap().len(),
            20_000,
            "an answer too long for one datagram"
        );
        cgroup.freeze().await.unwrap();
        cgroup.thaw().await.unwrap();
        cgroup.kill().await.unwrap();
        cgroup.create_cgroup("a/b").await.unwrap();
        cgroup.remove_cgroup("a/b").await.unwrap();
        assert_eq!(cgroup.list_cgroups().await.unwrap(), ["a", "a/b"]);
        assert!(rustix::fs::fstat(cgroup.open_cgroup("").await.unwrap()).is_ok());
        let grant_proxy = GrantProxy::new(&connection, GRANT_PATH).await.unwrap();
        grant_proxy.adopt(&AdoptGrant::new()).await.unwrap();
        grant_proxy.adopt(&AdoptGrant::new().lifetime(Lifetime::Process(file.as_fd()))).await.unwrap();
        grant_proxy.release(&ReleaseGrant::new().kill()).await.unwrap();
        let (grant, path) = (GRANT, "a/b".to_owned());
        let ops: Vec<_> = front.seen().into_iter().map(|seen| seen.op).collect();
        assert_eq!(
            ops,
            [
                Op::Attach(Attach { grant, pidfd: FdIndex(0), target: AttachTarget::Stage, tree: true }),
                Op::SetLimits { grant, limits: vec![("cpu.max".to_owned(), "max".to_owned())] },
                Op::GetValues { grant, keys: vec!["cpu.max".to_owned()] },
                Op::Stat { grant },
                Op::ListProcesses { grant },
                Op::Freeze { grant },
                Op::Thaw { grant },
                Op::Kill { grant },
                Op::CreateCgroup { grant, path: path.clone() },
                Op::RemoveCgroup { grant, path },
                Op::ListCgroups { grant },
                Op::OpenCgroup { grant, path: String::new() },
                Op::Adopt { grant, holder: Holder::Connection },
                Op::Adopt { grant, holder: Holder::Process(FdIndex(0)) },
                Op::Release { grant, kill: true, force: false },
            ]
        );
        assert_eq!(grant_proxy.name().await.unwrap(), "web");
        assert_eq!(grant_proxy.lifetime().await.unwrap(), "connection");
        assert_eq!(cgroup.limits().await.unwrap()["pids.max"], "100");
        assert!(cgroup.populated().await.unwrap());
        let ids = IdsProxy::new(&connection, GRANT_PATH).await.unwrap();
        assert_eq!(ids.uid().await.unwrap(), 200_000);
    });
}

#[test]
fn directories_are_mapped_as_the_contract_says() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let mounts = MountsProxy::new(&connection, GRANT_PATH).await.unwrap();
        let [directory, namespace] = ["/proc/self", "/proc/self/ns/mnt"].map(|path| {
            let flags = if path == "/proc/self" { OFlags::DIRECTORY } else { OFlags::RDONLY };
            openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
        });
        let fds = || (Fd::from(directory.as_fd()), Fd::from(namespace.as_fd()));
        for options in [
            MapDirectory::new().from_range("web").read_only(),
            MapDirectory::new(),
            MapDirectory::new().from_own(7, 8),
        ] {
            let mount = mounts.map_directory(fds().0, fds().1, &options).await.unwrap();
            assert!(rustix::fs::fstat(&mount).is_ok());
        }
        let seen = front.seen();
        let asked = |from, read_only| {
            let (directory, mount_namespace) = (FdIndex(0), FdIndex(1));
            Op::MapDirectory(MapOp { grant: GRANT, directory, mount_namespace, from, read_only })
        };
        let ops: Vec<_> = seen.iter().map(|seen| (seen.op.clone(), seen.fds)).collect();
        assert_eq!(
            ops,
            [
                (asked(MapSource::Range("web".to_owned()), true), 2),
                (asked(MapSource::Own { uid: 0, gid: 0 }, false), 2),
                (asked(MapSource::Own { uid: 7, gid: 8 }, false), 2),
            ]
        );
        assert!(rustix::fs::fstat(mounts.make_device("net/tun").await.unwrap()).is_ok());
        let asked: Vec<_> = front.seen().into_iter().map(|seen| (seen.op, seen.fds)).collect();
        assert_eq!(asked, [(Op::MakeDevice { grant: GRANT, name: "net/tun".to_owned() }, 0)]);
        mounts.allow_device("fuse").await.unwrap();
        let asked: Vec<_> = front.seen().into_iter().map(|seen| (seen.op, seen.fds)).collect();
        assert_eq!(asked, [(Op::AllowDevice { grant: GRANT, name: "fuse".to_owned() }, 0)]);
        for (key, value) in [("recursive", Variant::from(true)), ("as-uid", Variant::from(7u32))] {
            let options = HashMap::from([("from", Variant::from("web")), (key, value)]);
            let body = (fds().0, fds().1, options);
            let refused = call(&connection, GRANT_PATH, None, "MapDirectory", &body).await;
            assert_eq!(error_name(refused), "org.cgrant.Error.InvalidArgument", "{key}");
        }
        assert!(front.seen().is_empty(), "what is refused here does not reach the engine");
    });
}

fn plain_link() -> LinkRequest {
    LinkRequest {
        kind: LinkKind::Veth,
        netns: None,
        name: String::new(),
        bridge: String::new(),
        address4: None,
        address6: None,
        configure: true,
        mtu: 0,
        queue_length: 0,
        upload: 0,
        download: 0,
        vlan: 0,
        ports: Vec::new(),
    }
}

fn port(text: &str) -> PublishedPort {
    let cgrant_proto::Port { address, host, container, transport } = text.parse().unwrap();
    let transport = match transport {
        cgrant_proto::Transport::Tcp => Transport::Tcp,
        cgrant_proto::Transport::Udp => Transport::Udp,
    };
    PublishedPort { address, host, container, transport }
}

#[test]
fn every_method_of_the_links_is_its_operation() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let links = LinksProxy::new(&connection, GRANT_PATH).await.unwrap();
        let net = File::open("/proc/self/ns/net").unwrap();
        let full = AddLink::new()
            .netns(net.as_fd())
            .name("eth0")
            .bridge("lan")
            .address4([10, 0, 0, 9].into())
            .address6("fd00::9".parse().unwrap())
            .configure(false)
            .mtu(9000)
            .queue_length(500)
            .upload(10_000_000_000)
            .download(1)
            .vlan(12)
            .ports(&["[::1]:53:5353/udp".parse().unwrap()]);
        let made = links.add_link(&full).await.unwrap();
        assert_eq!((made.text("name"), made.entries().contains_key("tap")), (Some("eth0"), false));
        let tap = links.add_link(&AddLink::new().tap()).await.unwrap();
        assert!(matches!(*tap.entries()["tap"], Variant::Fd(_)));
        links.remove_link("eth0").await.unwrap();
        let ports = ["80:80".to_owned(), "127.0.0.1:81:81/udp".to_owned()];
        links.publish_ports("eth0", &ports).await.unwrap();
        links.unpublish_ports("eth0", &ports[..1]).await.unwrap();
        let full = LinkRequest {
            kind: LinkKind::Veth,
            netns: Some(FdIndex(0)),
            name: "eth0".to_owned(),
            bridge: "lan".to_owned(),
            address4: Some([10, 0, 0, 9].into()),
            address6: Some("fd00::9".parse().unwrap()),
            configure: false,
            mtu: 9000,
            queue_length: 500,
            upload: 10_000_000_000,
            download: 1,
            vlan: 12,
            ports: vec![port("[::1]:53:5353/udp")],
        };
        let (grant, name) = (GRANT, "eth0".to_owned());
        let ports = ports.map(|text| port(&text)).to_vec();
        let seen = front.seen();
        assert_eq!(seen[0].fds, 1);
        assert_eq!(
            seen.into_iter().map(|seen| seen.op).collect::<Vec<_>>(),
            [
                Op::AddLink { grant, link: full },
                Op::AddLink { grant, link: LinkRequest { kind: LinkKind::Tap, ..plain_link() } },
                Op::RemoveLink { grant, name: name.clone() },
                Op::PublishPorts { grant, name: name.clone(), ports: ports.clone() },
                Op::UnpublishPorts { grant, name, ports: ports[..1].to_vec() },
            ]
        );
        assert_eq!(links.links().await.unwrap().len(), 1);
    });
}

#[test]
fn a_link_that_makes_no_sense_does_not_reach_the_engine() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let net =
            || Variant::Fd(Fd::from(std::os::fd::OwnedFd::from(File::open("/proc/self/ns/net").unwrap())));
        for (options, says) in [
            (vec![], "netns: a veth pair needs the network namespace of its far end"),
            (vec![("kind", Variant::new("tap")), ("netns", net())], "netns: means nothing with kind \"tap\""),
            (vec![("kind", Variant::new("tun"))], "kind: neither \"veth\" nor \"tap\""),
            (vec![("netns", net()), ("address4", Variant::new("fd00::1"))], "address4: not an IPv4 address"),
            (vec![("netns", net()), ("address6", Variant::new("10.0.0.1"))], "address6: not an IPv6 address"),
            (vec![("netns", net()), ("vlan", Variant::new(1u32))], "vlan: not of type u"),
            (vec![("netns", net()), ("nonsense", Variant::new(1u32))], "nonsense: no such option"),
            (
                vec![("netns", net()), ("ports", Variant::new(vec!["0:80"]))],
                "ports: a port is a number from 1 to 65535",
            ),
        ] {
            let options: HashMap<_, _> = options.into_iter().collect();
            let result = call(&connection, GRANT_PATH, None, "AddLink", &options).await;
            let Error::Refused(got) = Error::from(result.unwrap_err()) else { panic!() };
            assert_eq!((got.code, got.message.as_str()), (Code::InvalidArgument, says));
        }
        let links =
            HashMap::from([("links", Variant::new(vec![HashMap::from([("mtu", Variant::new(1u32))])]))]);
        let result = call(&connection, MANAGER_PATH, None, "CreateGrant", &("web", links)).await;
        assert_eq!(
            Error::from(result.unwrap_err()).to_string(),
            "netns: a veth pair needs the network namespace of its far end"
        );
        let result = call(&connection, GRANT_PATH, None, "PublishPorts", &("eth0", vec!["80"])).await;
        assert!(Error::from(result.unwrap_err()).to_string().contains("ports: a published port is written"));
        assert_eq!(front.seen(), [], "nothing of it reached the engine");
    });
}

#[test]
fn a_request_has_no_more_descriptors_than_the_engine_takes() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let manager = ManagerProxy::new(&connection).await.unwrap();
        let file = File::open("/proc/self/ns/net").unwrap();
        let with = |count| {
            CreateGrant::new()
                .lifetime(Lifetime::Process(file.as_fd()))
                .userns(file.as_fd())
                .stage(file.as_fd())
                .links((0..count).map(|_| AddLink::new().netns(file.as_fd())).collect())
        };
        manager.create_grant("web", &with(12)).await.unwrap();
        assert_eq!(front.seen()[0].fds, 15);
        let error = manager.create_grant("web", &with(13)).await.unwrap_err();
        assert!(error.to_string().contains("links: more than 12 links"), "{error}");
        manager.list_ranges().await.unwrap();
    });
}

#[test]
fn a_refusal_and_wrong_arguments_reach_the_caller() {
    let front = Front::socket();
    front.refuse("CreateGrant", refusal());
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let manager = ManagerProxy::new(&connection).await.unwrap();
        let Err(Error::Refused(got)) = manager.create_grant("web", &CreateGrant::new()).await else {
            panic!()
        };
        assert_eq!((got.code, got.quota, got.usage), (Code::QuotaExceeded, Some(16), Some(16)));
        assert_eq!(got.to_string(), "no more grants (16 of 16 in use) [built-in any-user]; release one");
        front.seen();
        for (option, value, says) in [
            ("nonsense", Variant::new(true), "nonsense: no such option"),
            ("key", Variant::new(5u32), "key: not of type u"),
            ("key", Variant::new("x".repeat(129)), "key: longer than 128 bytes"),
            (
                "lifetime",
                Variant::new("forever"),
                "lifetime: not \"process\", \"connection\" or \"persistent\"",
            ),
            ("lifetime", Variant::new("process"), "holder: lifetime \"process\" needs the pidfd of one"),
            ("range-count", Variant::new(-1i32), "range-count: no option is of type i"),
            ("limits", Variant::new(vec!["a"]), "limits: not of type as"),
        ] {
            let body = ("web", HashMap::from([(option, value)]));
            let result = call(&connection, MANAGER_PATH, None, "CreateGrant", &body).await;
            let Error::Refused(got) = Error::from(result.unwrap_err()) else { panic!() };
            assert_eq!((got.code, got.message.as_str()), (Code::InvalidArgument, says));
        }
        let both = HashMap::from([("no-range", Variant::new(true)), ("range-count", Variant::new(1u32))]);
        let result = call(&connection, MANAGER_PATH, None, "CreateGrant", &("web", both)).await;
        assert_eq!(Error::from(result.unwrap_err()).to_string(), "range-count: means nothing with no-range");
        let long = "x".repeat(300);
        let result = call(&connection, MANAGER_PATH, None, "ForgetRange", &long).await;
        assert_eq!(Error::from(result.unwrap_err()).to_string(), "name: longer than 255 bytes");
        assert_eq!(front.seen(), [], "nothing of it reached the engine");
    });
}

#[test]
fn what_there_is_not_is_said_as_the_specification_names_it() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let manager = "org.cgrant.Broker1.Manager";
        for (path, interface, member, name) in [
            ("/org/cgrant/Broker2", Some(manager), "ListRanges", "UnknownObject"),
            (MANAGER_PATH, Some("org.cgrant.Broker1.Cgroup"), "Freeze", "UnknownInterface"),
            (GRANT_PATH, Some(manager), "ListRanges", "UnknownInterface"),
            ("/", Some(PROPERTIES), "GetAll", "UnknownInterface"),
            (MANAGER_PATH, Some(manager), "Nothing", "UnknownMethod"),
            (MANAGER_PATH, None, "Nothing", "UnknownMethod"),
            (GRANT_PATH, Some("org.cgrant.Broker1.Grant"), "Ended", "UnknownMethod"),
        ] {
            let result = call(&connection, path, interface, member, &()).await;
            assert_eq!(error_name(result), format!("org.freedesktop.DBus.Error.{name}"), "{path} {member}");
        }
        let result = call(&connection, MANAGER_PATH, Some(manager), "ListRanges", &1u32).await;
        assert_eq!(error_name(result), "org.freedesktop.DBus.Error.InvalidArgs");
        for (body, name) in [
            ((manager, "Nothing"), "UnknownProperty"),
            ((manager, "Created"), "UnknownProperty"),
            (("org.cgrant.Broker1.Grant", "Name"), "UnknownInterface"),
            (("org.freedesktop.DBus.Peer", "Name"), "UnknownProperty"),
        ] {
            let result = call(&connection, MANAGER_PATH, Some(PROPERTIES), "Get", &body).await;
            assert_eq!(error_name(result), format!("org.freedesktop.DBus.Error.{name}"), "{body:?}");
        }
        let set = (manager, "Version", Variant::new("2"));
        let result = call(&connection, MANAGER_PATH, Some(PROPERTIES), "Set", &set).await;
        assert_eq!(error_name(result), "org.freedesktop.DBus.Error.PropertyReadOnly");
        let gone = cgrant_wire::Refusal::new(cgrant_wire::RefusalCode::NoSuchGrant, "no such grant");
        front.refuse("Describe", gone);
        let result = call(&connection, GRANT_PATH, None, "Introspect", &()).await;
        assert_eq!(error_name(result), "org.freedesktop.DBus.Error.UnknownObject");
        let result =
            call(&connection, GRANT_PATH, Some(PROPERTIES), "GetAll", &("org.cgrant.Broker1.Grant")).await;
        assert_eq!(error_name(result), "org.cgrant.Error.NoSuchGrant");
    });
}

/// An object that has this interface.
fn object_of(interface: &str) -> &'static str {
    match interface {
        "org.cgrant.Broker1.Manager" => MANAGER_PATH,
        "org.cgrant.Broker1.Account" => "/org/cgrant/Broker1/account/1000",
        _ => GRANT_PATH,
    }
}

#[test]
fn introspection_and_properties_are_the_contract() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let mut found: BTreeMap<String, zbus_xml::Interface<'static>> = BTreeMap::new();
        let mut paths = vec!["/".to_owned()];
        let mut visited = 0;
        while let Some(path) = paths.pop() {
            visited += 1;
            let reply =
                call(&connection, &path, Some("org.freedesktop.DBus.Introspectable"), "Introspect", &())
                    .await;
            let xml: String = reply.unwrap().body().deserialize().unwrap();
            let node = zbus_xml::Node::from_reader(xml.as_bytes()).unwrap();
            paths.extend(
                node.nodes()
                    .iter()
                    .map(|child| format!("{}/{}", path.trim_end_matches('/'), child.name().unwrap())),
            );
            found.extend(node.interfaces().iter().map(|found| (found.name().to_string(), found.to_owned())));
        }
        assert_eq!(
            visited, 10,
            "/, org, cgrant, Broker1, account, one account, grant, one grant, freedesktop, DBus"
        );
        for path in contract() {
            let node = zbus_xml::Node::from_reader(File::open(&path).unwrap()).unwrap();
            for interface in node.interfaces() {
                let name = interface.name().to_string();
                assert_eq!(found.get(&name), Some(interface), "{}", path.display());
                let object = object_of(&name);
                let reply = call(&connection, object, Some(PROPERTIES), "GetAll", &name).await.unwrap();
                let all: BTreeMap<String, OwnedVariant> = reply.body().deserialize().unwrap();
                let types: BTreeMap<_, _> = all
                    .iter()
                    .map(|(key, value)| (key.clone(), value.value_signature().to_string()))
                    .collect();
                let contract: BTreeMap<_, _> = interface
                    .properties()
                    .map(|property| (property.name().to_string(), property.ty().to_string()))
                    .collect();
                assert_eq!(types, contract, "{name}");
            }
        }
        let reply = call(&connection, MANAGER_PATH, None, "GetManagedObjects", &()).await.unwrap();
        let managed: HashMap<zbus::OwnedObjectPath, HashMap<String, HashMap<String, OwnedVariant>>> =
            reply.body().deserialize().unwrap();
        assert_eq!(managed.len(), 1);
        assert_eq!(managed.values().next().unwrap().len(), 5);
    });
}

/// The files of the broker's own contract; CGManager's interface is on a socket of its own.
fn contract() -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dbus")).unwrap();
    let is_own = |name: &str| name.starts_with("org.cgrant.") && name.ends_with(".xml");
    let files = files.map(|file| file.unwrap().path());
    files.filter(|path| is_own(path.file_name().unwrap().to_str().unwrap())).collect()
}

/// Arguments with every type of the contract, by signature.
fn argument(signature: &str) -> Variant<'static> {
    match signature {
        "s" => Variant::new("x"),
        "a{sv}" => Variant::new(HashMap::<String, Variant<'_>>::new()),
        "a{ss}" => Variant::new(HashMap::<String, String>::new()),
        "as" => Variant::new(Vec::<String>::new()),
        "au" => Variant::new(Vec::<u32>::new()),
        "u" => Variant::new(65536_u32),
        "a(utt)" => Variant::new(Vec::<(u32, u64, u64)>::new()),
        "h" => Variant::Fd(Fd::from(std::os::fd::OwnedFd::from(File::open("/dev/null").unwrap()))),
        other => panic!("no argument for {other}"),
    }
}

#[test]
fn every_method_of_the_contract_is_there() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let mut calls = 0;
        for path in contract() {
            let node = zbus_xml::Node::from_reader(File::open(&path).unwrap()).unwrap();
            for interface in node.interfaces() {
                let name = interface.name().to_string();
                let object = object_of(&name);
                for method in interface.methods() {
                    let inputs: Vec<_> = method
                        .args()
                        .iter()
                        .filter(|arg| arg.direction() == Some(zbus_xml::ArgDirection::In))
                        .map(|arg| argument(&arg.ty().to_string()))
                        .map(|argument| match method.name().as_str() {
                            // Options that are all left out make no link.
                            "AddLink" => Variant::new(HashMap::from([("kind", Variant::new("tap"))])),
                            // Of the methods it is asked about.
                            "Explain" if matches!(argument, Variant::Str(_)) => Variant::new("ListGrants"),
                            _ => argument,
                        })
                        .collect();
                    let reply = if inputs.is_empty() {
                        call(&connection, object, Some(&name), &method.name(), &()).await
                    } else {
                        let mut body = zbus::Structure::builder();
                        for input in inputs {
                            body = body.append_field(input);
                        }
                        call(&connection, object, Some(&name), &method.name(), &body.build().unwrap()).await
                    };
                    let outputs: String = method
                        .args()
                        .iter()
                        .filter(|arg| arg.direction() == Some(zbus_xml::ArgDirection::Out))
                        .map(|arg| arg.ty().to_string())
                        .collect();
                    let reply = reply.unwrap_or_else(|error| panic!("{name}.{}: {error}", method.name()));
                    // One struct and its fields beside each other are told apart by zbus on neither side.
                    let got = reply.header().signature().to_string_no_parens();
                    assert_eq!(got, outputs, "{name}.{}", method.name());
                    calls += 1;
                }
            }
        }
        assert_eq!(calls, 35);
        assert!(front.seen_count() >= 35);
    });
}

#[test]
fn a_call_without_interface_or_without_reply() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        let reply = call(&connection, MANAGER_PATH, None, "ListRanges", &()).await.unwrap();
        assert_eq!(reply.header().signature().to_string(), "a(uuuss)");
        let mut stream = MessageStream::from(&connection);
        let silent = |member: &'static str| {
            Message::method_call(GRANT_PATH, member).with_flags(Flags::NO_REPLY_EXPECTED).build(&()).unwrap()
        };
        connection.send(&silent("Freeze")).await.unwrap();
        connection.send(&silent("Nothing")).await.unwrap();
        let asked = Message::method_call(GRANT_PATH, "Thaw").build(&()).unwrap();
        connection.send(&asked).await.unwrap();
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(first.header().reply_serial(), Some(asked.primary_header().serial_num()));
        let ops: Vec<_> = front.seen().into_iter().map(|seen| seen.op).collect();
        assert_eq!(ops[1..], [Op::Freeze { grant: GRANT }, Op::Thaw { grant: GRANT }]);
    });
}

#[test]
fn signals_go_to_the_account_and_to_root() {
    let front = Front::socket();
    block_on(async {
        let (own, _) = client(&front, 1000).await;
        let (other, _) = client(&front, 1001).await;
        let (root, _) = client(&front, 0).await;
        let mut streams: Vec<_> = [&own, &root, &other].map(MessageStream::from).into();
        for connection in [&own, &other, &root] {
            call(connection, "/", None, "Ping", &()).await.unwrap();
        }
        let proxy = CgroupProxy::new(&own, GRANT_PATH).await.unwrap();
        let mut oom = proxy.receive_oom().await.unwrap();
        let account = 1000;
        front.event(Event::Added { grant: grant() });
        front.event(Event::Changed { grant: GRANT, account, change: GrantChange::Frozen(true) });
        front.event(Event::LinkAdded { grant: GRANT, account, link: link("eth1") });
        let (name, reason) = ("eth1".to_owned(), LinkEnd::FarEndGone);
        front.event(Event::LinkRemoved { grant: GRANT, account, name, reason });
        front.event(Event::Oom { grant: GRANT, account, kills: 3 });
        front.event(Event::Pressure { grant: GRANT, account, resource: "io".to_owned() });
        front.event(Event::Ended { grant: GRANT, name: "web".to_owned(), account, reason: EndReason::Empty });
        // Somebody else's comes last, so that what is heard before it is everything.
        let last = Event::Oom { grant: GrantId(1), account: 1001, kills: 1 };
        front.event(last.clone());
        front.event(Event::Oom { grant: GrantId(2), account: 1000, kills: 1 });
        let expected = [
            "GrantAdded",
            "InterfacesAdded",
            "PropertiesChanged",
            "LinkAdded",
            "LinkRemoved",
            "Oom",
            "Pressure",
            "Ended",
            "GrantRemoved",
            "InterfacesRemoved",
        ];
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut heard = Vec::new();
            let end = [
                "/org/cgrant/Broker1/grant/0000000000000002",
                "/org/cgrant/Broker1/grant/0000000000000002",
                "/org/cgrant/Broker1/grant/0000000000000001",
            ][index];
            loop {
                let message = stream.next().await.unwrap().unwrap();
                if message.message_type() != zbus::message::Type::Signal {
                    continue;
                }
                if message.header().path().unwrap().as_str() == end {
                    break;
                }
                heard.push(message.header().member().unwrap().to_string());
            }
            match index {
                0 => assert_eq!(heard, expected),
                1 => assert_eq!(heard, [&expected[..], &["Oom"]].concat(), "root hears of every account"),
                _ => assert_eq!(heard, [""; 0], "nothing of another account's"),
            }
        }
        assert_eq!(oom.next().await.unwrap().args().unwrap().kills, 3, "a proxy hears it too");
    });
}

/// The members of the signals, and "reply" for replies, in the order in which they came.
fn kinds(bytes: &[u8]) -> Vec<String> {
    let mut rest = bytes;
    let mut kinds = Vec::new();
    while rest.len() >= 16 {
        let number = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap()) as usize;
        let length = 16 + number(12).next_multiple_of(8) + number(4);
        if rest.len() < length {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&rest[..length]).into_owned();
        let signals = ["Oom", "GrantAdded", "InterfacesAdded"];
        let signal = signals.iter().find(|name| text.contains(&format!("\0{name}\0")));
        kinds.push(match rest[1] {
            2 => "reply".to_owned(),
            4 => (*signal.unwrap()).to_owned(),
            other => panic!("a message of type {other}"),
        });
        rest = &rest[length..];
    }
    kinds
}

/// What comes up to the last of this kind.
fn heard_next(stream: &mut std::os::unix::net::UnixStream, last: &str) -> Vec<String> {
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let kinds = kinds(&all);
        if kinds.last().is_some_and(|kind| kind == last) {
            return kinds;
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "closed after {}", all.escape_ascii());
        all.extend_from_slice(&piece[..count]);
    }
}

#[test]
fn nothing_comes_before_the_answer_to_hello() {
    const BEGUN: &[u8] = b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n";
    let front = Front::socket();
    let oom = || front.event(Event::Oom { grant: GRANT, account: 1000, kills: 1 });
    let passed_on = || {
        // Events are taken in their order: this one's has been when the other connection hears it.
        block_on(async {
            let (other, _) = client(&front, 1001).await;
            let mut stream = MessageStream::from(&other);
            call(&other, "/", None, "Ping", &()).await.unwrap();
            front.event(Event::Oom { grant: GRANT, account: 1001, kills: 1 });
            while stream.next().await.unwrap().unwrap().message_type() != zbus::message::Type::Signal {}
        });
    };
    let hello = Message::method_call("/org/freedesktop/DBus", "Hello")
        .destination("org.freedesktop.DBus")
        .interface("org.freedesktop.DBus")
        .build(&())
        .unwrap();
    let list = Message::method_call(MANAGER_PATH, "ListRanges").build(&()).unwrap();
    for first in [&hello, &list] {
        let (mut stream, _) = front.connect(1000);
        stream.write_all(BEGUN).unwrap();
        read_until(&mut stream, "OK ");
        // It is served from now on: signals are for it.
        thread::sleep(Duration::from_millis(50));
        front.event(Event::Added { grant: grant() });
        passed_on();
        stream.write_all(first.data()).unwrap();
        let mut all = Vec::new();
        if std::ptr::eq(first, &raw const hello) {
            all.extend(heard_next(&mut stream, "InterfacesAdded"));
            assert_eq!(all, ["reply", "GrantAdded", "InterfacesAdded"]);
        } else {
            all.extend(heard_next(&mut stream, "reply"));
            assert_eq!(
                all,
                ["GrantAdded", "InterfacesAdded", "reply"],
                "what was before the answer comes before it"
            );
        }
        oom();
        assert_eq!(heard_next(&mut stream, "Oom"), ["Oom"], "and nothing is held back from then on");
    }
    // Who only listens hears what was held back, a little later.
    let (mut listener, _) = front.connect(1000);
    listener.write_all(BEGUN).unwrap();
    read_until(&mut listener, "OK ");
    thread::sleep(Duration::from_millis(50));
    oom();
    assert_eq!(heard_next(&mut listener, "Oom"), ["Oom"]);
}

#[test]
fn a_peer_that_does_not_read_signals_is_disconnected_and_others_hear_them() {
    let front = Front::socket();
    let (mut deaf, number) = front.connect(1000);
    deaf.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").unwrap();
    thread::scope(|scope| {
        block_on(async {
            let (connection, _) = client(&front, 1000).await;
            let mut stream = MessageStream::from(&connection);
            call(&connection, "/", None, "Ping", &()).await.unwrap();
            let count = 6000;
            let front = &front;
            scope.spawn(move || {
                for kills in 0..count {
                    front.event(Event::Oom { grant: GRANT, account: 1000, kills });
                }
            });
            let mut heard = 0;
            while heard < count {
                let message = stream.next().await.unwrap().unwrap();
                if message.message_type() == zbus::message::Type::Signal {
                    assert_eq!(message.body().deserialize::<u64>().unwrap(), heard, "in order, none lost");
                    heard += 1;
                }
            }
        });
    });
    front.await_closed(number);
}

#[test]
fn hostile_bytes_cost_the_sender_its_connection_and_nobody_else_anything() {
    let mut front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        call_ranges(&connection).await;
    });
    let before = front.resident();
    let good = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";
    let header = |kind: u8, body: u32, fields: u32| {
        let mut bytes = vec![b'l', kind, 0, 1];
        bytes.extend(body.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(fields.to_le_bytes());
        [&good[..], &bytes].concat()
    };
    let mut fields_of_nothing = header(1, 0, 8);
    fields_of_nothing.extend([0xff; 8]);
    let cases: Vec<Vec<u8>> = vec![
        b"\n".to_vec(),
        b"\0\n".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100],
        [&b"\0"[..], &vec![b'A'; 100_000]].concat(),
        b"\0BEGIN\r\n".to_vec(),
        [&good[..], b"not a message at all, but bytes"].concat(),
        header(1, 1 << 26, 100),
        header(1, 100, 1 << 26),
        header(1, u32::MAX, u32::MAX),
        header(1, 256 * 1024, 0),
        header(9, 0, 0),
        fields_of_nothing,
    ];
    for bytes in cases {
        for _ in 0..5 {
            let (mut stream, number) = front.connect(1000);
            // The front may close before everything is written.
            let _ = stream.write_all(&bytes);
            let (_, closed) = read_to_end(&mut stream);
            assert!(closed, "still open after {}", bytes[..bytes.len().min(80)].escape_ascii());
            front.await_closed(number);
        }
    }
    assert!(front.is_running());
    let after = front.resident();
    assert!(after < before + 4096, "{before} kB before, {after} kB after");
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        call(&connection, MANAGER_PATH, None, "ListRanges", &()).await.unwrap();
    });
    assert_eq!(front.log().matches("fault in the front").count(), 0, "{}", front.log());
}

#[test]
fn variants_full_of_bytes_are_not_unfolded() {
    let front = Front::socket();
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        call(&connection, "/", None, "Ping", &()).await.unwrap();
        let before = front.resident();
        let many = HashMap::from([("key", Variant::new(vec![0u8; 250_000]))]);
        for _ in 0..20 {
            let result = call(&connection, MANAGER_PATH, None, "CreateGrant", &("web", &many)).await;
            assert_eq!(error_name(result), "org.cgrant.Error.InvalidArgument");
        }
        let after = front.resident();
        assert!(after < before + 2048, "{before} kB before, {after} kB after");
    });
}

#[test]
fn another_identity_is_rejected_and_a_silent_peer_times_out() {
    let front = Front::socket();
    let (mut stream, _) = front.connect(1000);
    stream.write_all(b"\0AUTH EXTERNAL 30\r\nAUTH ANONYMOUS\r\n").unwrap();
    let start = Instant::now();
    let (said, closed) = read_to_end(&mut stream);
    assert_eq!(said, b"REJECTED EXTERNAL\r\nREJECTED EXTERNAL\r\n");
    assert!(
        closed && start.elapsed() > Duration::from_secs(4),
        "closed {closed} after {:?}",
        start.elapsed()
    );
}

#[test]
fn a_handshake_and_a_call_byte_by_byte() {
    let front = Front::socket();
    let (mut stream, _) = front.connect(1000);
    let message = Message::method_call(MANAGER_PATH, "ListRanges").build(&()).unwrap();
    let bytes = [&b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n"[..], message.data()].concat();
    for byte in bytes {
        stream.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_micros(300));
    }
    front.await_seen(1);
    // All at once is the same.
    let (mut stream, _) = front.connect(1000);
    let call = Message::method_call(MANAGER_PATH, "ListRanges").build(&()).unwrap();
    stream
        .write_all(&[&b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n"[..], call.data(), call.data()].concat())
        .unwrap();
    front.await_seen(3);
}

fn send_with_fds(stream: &std::os::unix::net::UnixStream, bytes: &[u8], count: usize) {
    let file = File::open("/dev/null").unwrap();
    let fds = vec![file.as_fd(); count];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
    let parts = [std::io::IoSlice::new(bytes)];
    rustix::net::sendmsg(stream, &parts, &mut control, rustix::net::SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn descriptors_are_bounded() {
    let front = Front::socket();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", front.status("Pid"))).unwrap().count();
    let before = open();
    let agreed = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n";
    let plain = b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n";
    let ping = Message::method_call("/", "Ping").build(&()).unwrap();
    // Within the handshake; too many; more than the header names; to a peer that did not agree on any.
    for (handshake, with, count) in [
        (&b"\0"[..], &b"AUTH EXTERNAL\r\n"[..], 1),
        (agreed, ping.data(), 17),
        (agreed, ping.data(), 40),
        (agreed, ping.data(), 3),
        (plain, ping.data(), 1),
    ] {
        let (mut stream, number) = front.connect(1000);
        stream.write_all(handshake).unwrap();
        thread::sleep(Duration::from_millis(50));
        send_with_fds(&stream, with, count);
        front.await_closed(number);
        assert!(read_to_end(&mut stream).1);
    }
    // Spread over the pieces of one message.
    let (stream, number) = front.connect(1000);
    (&stream).write_all(agreed).unwrap();
    thread::sleep(Duration::from_millis(50));
    for byte in ping.data().iter().take(4) {
        send_with_fds(&stream, &[*byte], 5);
    }
    front.await_closed(number);
    eventually("descriptors are closed", || open() <= before);
}

#[test]
fn a_peer_without_descriptors_gets_no_grant_that_it_could_not_hold() {
    let front = Front::socket();
    let (mut stream, _) = front.connect(1000);
    let body = ("web", HashMap::<&str, Variant<'_>>::new());
    let create = Message::method_call(MANAGER_PATH, "CreateGrant").build(&body).unwrap();
    stream.write_all(&[&b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"[..], create.data()].concat()).unwrap();
    read_until(&mut stream, "org.freedesktop.DBus.Error.NotSupported");
    assert_eq!(front.seen(), []);
}

#[test]
fn one_connection_has_16_calls_under_way_and_others_are_served() {
    let front = Front::socket();
    front.withhold();
    let call = Message::method_call(GRANT_PATH, "Freeze").build(&()).unwrap();
    let (mut greedy, _) = front.connect(1000);
    greedy.write_all(b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n").unwrap();
    for _ in 0..100 {
        greedy.write_all(call.data()).unwrap();
    }
    front.await_seen(16);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(front.seen_count(), 16);
    // Two connections of one uid are its 32; a third waits, another uid does not.
    for count in 2..=5 {
        let (mut more, _) = front.connect(1000);
        more.write_all(b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n").unwrap();
        for _ in 0..20 {
            more.write_all(call.data()).unwrap();
        }
        front.await_seen(16 * count.min(2));
        std::mem::forget(more);
    }
    thread::sleep(Duration::from_millis(200));
    assert_eq!(front.seen_count(), 32);
    let (mut other, _) = front.connect(1001);
    other.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").unwrap();
    other.write_all(call.data()).unwrap();
    front.await_seen(33);
    front.release();
    front.await_seen(100 + 4 * 20 + 1);
}

#[test]
fn a_caller_that_does_not_read_its_replies_stops_being_read() {
    let front = Front::socket();
    let call = Message::method_call(GRANT_PATH, "ListProcesses").build(&()).unwrap();
    let (mut greedy, _) = front.connect(1000);
    greedy.write_all(b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n").unwrap();
    greedy.set_nonblocking(true).unwrap();
    let before = front.resident();
    // Each answer has 80 kB.
    for _ in 0..2000 {
        if greedy.write_all(call.data()).is_err() {
            break;
        }
    }
    thread::sleep(Duration::from_millis(500));
    let count = front.seen_count();
    assert!(count < 64, "{count} calls were carried out");
    let after = front.resident();
    assert!(after < before + 16 * 1024, "{before} kB before, {after} kB after");
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        call_ranges(&connection).await;
    });
}

/// What the engine never hears of is in the decision log too, but nobody can fill the log with it.
#[test]
fn refusals_of_the_fronts_own_are_logged_and_bounded() {
    let front = Front::socket();
    block_on(async {
        let options = HashMap::from([("lifetime", Variant::from("a\nforged line"))]);
        let (flooder, _) = client(&front, 1000).await;
        for _ in 0..200 {
            let result = call(&flooder, MANAGER_PATH, None, "CreateGrant", &("web", &options)).await;
            assert_eq!(error_name(result), "org.cgrant.Error.InvalidArgument");
        }
        let (other, _) = client(&front, 1001).await;
        assert!(call(&other, MANAGER_PATH, None, "Nothing", &()).await.is_err());
    });
    let log = front.log();
    let of = |uid: &str| {
        log.lines().filter(|line| line.contains("may not") && line.contains(uid)).collect::<Vec<_>>()
    };
    assert_eq!(of("uid=1000").len(), 20, "{log}");
    let [line] = of("uid=1001")[..] else { panic!("{log}") };
    for field in ["decision", "request=\"Nothing\"", "allowed=false", "error=\"UnknownMethod\"", "reason="] {
        assert!(line.contains(field), "{field}: {line}");
    }
    assert_eq!(log.matches("no more of them are told").count(), 1, "{log}");
    assert!(!log.lines().any(|line| line.starts_with("forged line")), "{log}");
}

async fn call_ranges(connection: &Connection) {
    call(connection, MANAGER_PATH, None, "ListRanges", &()).await.unwrap();
}

#[test]
fn it_has_no_rights_and_sleeps_when_nothing_happens() {
    let front = Front::socket();
    assert_eq!(front.status("Uid").split_whitespace().collect::<Vec<_>>(), [&*FRONT_UID.to_string(); 4]);
    assert_eq!(front.status("Gid").split_whitespace().collect::<Vec<_>>(), [&*FRONT_UID.to_string(); 4]);
    assert_eq!(front.status("Groups"), "");
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(front.status(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(front.status("NoNewPrivs"), "1");
    assert_eq!(front.status("Seccomp"), "2");
    assert_eq!(front.status("Threads"), "1");
    block_on(async {
        let (connection, _) = client(&front, 1000).await;
        call_ranges(&connection).await;
        let before = front.settled_wakeups();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(front.wakeups(), before, "woken up with an idle connection");
    });
    eprintln!("resident: {} kB", front.resident());
}

#[test]
fn it_ends_with_the_engine_and_on_demand() {
    let mut front = Front::socket();
    front.close_engine();
    assert!(front.ended_well());
    let mut front = Front::socket();
    front.withhold();
    let call = Message::method_call(GRANT_PATH, "Freeze").build(&()).unwrap();
    let (mut stream, _) = front.connect(1000);
    stream.write_all(&[&b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"[..], call.data()].concat()).unwrap();
    front.await_seen(1);
    front.stop();
    thread::sleep(Duration::from_millis(100));
    assert!(front.is_running(), "it waits for the answer");
    front.release();
    assert!(front.ended_well());
    let (said, closed) = read_to_end(&mut stream);
    assert!(closed);
    let replies = said.windows(4).filter(|bytes| *bytes == [b'l', 2, 0, 1]).count();
    assert_eq!(replies, 1, "the answer was delivered: {}", said.escape_ascii());
}

/// The broker's socket as tools see it: every connection is introduced as this process's own uid.
struct Listening {
    front: std::sync::Arc<Front>,
    directory: tempfile::TempDir,
}

impl Listening {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("bus")).unwrap();
        let front = std::sync::Arc::new(Front::socket());
        let serving = std::sync::Arc::clone(&front);
        let uid = rustix::process::geteuid().as_raw();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.introduce(stream.into(), uid);
            }
        });
        Self { front, directory }
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.directory.path().display())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new("timeout").arg("20").arg(program).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {text} {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.front.log()
        );
        text
    }
}

#[test]
fn busctl_gdbus_and_dbus_send_use_it() {
    let listening = Listening::new();
    let address = listening.address();
    let manager = "org.cgrant.Broker1.Manager";

    let busctl = format!("--address={address}");
    let tree = listening.run("busctl", &[&busctl, "introspect", "org.cgrant.Broker1", GRANT_PATH]);
    for part in ["org.cgrant.Broker1.Cgroup", ".SetLimits", ".Populated", "65536", ".Oom"] {
        assert!(tree.contains(part), "{part} is not in\n{tree}");
    }
    let reply = listening.run(
        "busctl",
        &[&busctl, "call", "org.cgrant.Broker1", MANAGER_PATH, manager, "GetUsage", "a{sv}", "0"],
    );
    assert_eq!(reply.trim(), "usa(stt) 1000 \"built-in any-user\" 1 \"grants\" 1 16");
    let reply = listening
        .run("busctl", &[&busctl, "get-property", "org.cgrant.Broker1", MANAGER_PATH, manager, "Version"]);
    assert_eq!(reply.trim(), "s \"1.2.3\"");

    let to = ["--dest", "org.cgrant.Broker1", "--object-path", MANAGER_PATH];
    let xml = listening.run("gdbus", &[&["introspect", "--address", &address][..], &to].concat());
    assert!(xml.contains("CreateGrant") && xml.contains("readonly s Version = '1.2.3'"), "{xml}");
    let method = format!("{manager}.ListGrants");
    let reply = listening
        .run("gdbus", &[&["call", "--address", &address][..], &to, &["--method", &method, "{}"]].concat());
    assert_eq!(reply.trim(), format!("([(objectpath '{GRANT_PATH}', 'web', uint32 1000)],)"));

    let peer = format!("--peer={address}");
    let method = format!("{manager}.ForgetRange");
    listening.run("dbus-send", &[&peer, "--print-reply", MANAGER_PATH, &method, "string:web"]);
    let xml = listening
        .run("dbus-send", &[&peer, "--print-reply", "/", "org.freedesktop.DBus.Introspectable.Introspect"]);
    assert!(xml.contains("<node name=\"org\"/>"), "{xml}");
    listening.run("dbus-send", &[&peer, "--print-reply", GRANT_PATH, "org.freedesktop.DBus.Peer.Ping"]);
}

#[test]
fn the_client_library_connects() {
    let listening = Listening::new();
    block_on(async {
        let path = listening.directory.path().join("bus").display().to_string();
        let endpoint = cgrant_proto::Endpoint::parse(&path).unwrap();
        let connection = cgrant_proto::connect(&endpoint).await.unwrap();
        let manager = ManagerProxy::new(&connection).await.unwrap();
        assert_eq!(manager.hierarchy().await.unwrap(), "hybrid");
        let nowhere = cgrant_proto::Endpoint::parse("/nonexistent/bus").unwrap();
        assert!(matches!(cgrant_proto::connect(&nowhere).await, Err(Error::Unreachable { .. })));
    });
}
