//! CGManager's interface as clients see it, and as an attacker tries it: the real program, with an engine that is played.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::{
    io::Write,
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cgrant_wire::{Legacy, LegacyCall, Op, Place, Refusal, RefusalCode, Surface, legacy::OnSocket};
use rustix::net::{RecvFlags, SendFlags, sockopt};
use support::{
    FRONT_UID, Front, block_on, eventually,
    legacy::{Client, INTERFACE, PATH, datagram, identify, pair, receive},
    read_to_end,
};
use zbus::{Fd, Message, Variant};

const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";
const UNKNOWN: &str = "org.freedesktop.DBus.Error.UnknownMethod";

fn me() -> u32 {
    std::process::id()
}

fn place(path: &str) -> Place {
    Place { controllers: "memory".to_owned(), path: path.to_owned() }
}

/// The calls that came since the last time, and whether each had a socket beside it.
fn calls(front: &Front) -> Vec<(LegacyCall, bool)> {
    let seen = front.seen().into_iter();
    seen.map(|seen| match seen.op {
        Op::Legacy(Legacy { exchange, call }) => {
            assert_eq!(seen.fds, usize::from(exchange.is_some()));
            (call, exchange.is_some())
        }
        other => panic!("{other:?}"),
    })
    .collect()
}

/// Those of them that are methods, and not only about a socket.
fn methods(front: &Front) -> Vec<(LegacyCall, bool)> {
    calls(front).into_iter().filter(|(call, _)| !matches!(call, LegacyCall::Socket(_))).collect()
}

#[test]
fn every_plain_method_is_its_call() {
    let front = Front::socket();
    front.play(|played| (played.value, played.tasks) = ("12".to_owned(), vec![5, 6]));
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let answered = |message: Message| message.body().signature().to_string_no_parens();
        client.call("Ping", &1).await.unwrap();
        let reply = client.call("GetPidCgroup", &("memory", 7)).await.unwrap();
        assert_eq!(reply.body().deserialize::<String>().unwrap(), "a/b");
        client.call("GetPidCgroupAbs", &("memory", 7)).await.unwrap();
        for (path, existed) in [("new", -1), ("old", 1)] {
            let reply = client.call("Create", &("memory", path)).await.unwrap();
            assert_eq!(reply.body().deserialize::<i32>().unwrap(), existed);
            let reply = client.call("Remove", &("memory", path, 1)).await.unwrap();
            assert_eq!(reply.body().deserialize::<i32>().unwrap(), existed);
        }
        assert_eq!(answered(client.call("Chown", &("memory", "a", 1, 2)).await.unwrap()), "");
        client.call("Chmod", &("memory", "a", "tasks", 0o664)).await.unwrap();
        client.call("MovePid", &("memory", "a", 7)).await.unwrap();
        client.call("MovePidAbs", &("memory", "a", 7)).await.unwrap();
        let reply = client.call("GetValue", &("memory", "a", "k")).await.unwrap();
        assert_eq!(reply.body().deserialize::<String>().unwrap(), "12");
        client.call("SetValue", &("memory", "a", "k", "v")).await.unwrap();
        let reply = client.call("GetTasks", &("memory", "a")).await.unwrap();
        assert_eq!(reply.body().deserialize::<Vec<i32>>().unwrap(), [5, 6]);
        client.call("GetTasksRecursive", &("memory", "a")).await.unwrap();
        let reply = client.call("ListChildren", &("memory", "a")).await.unwrap();
        assert_eq!(reply.body().deserialize::<Vec<String>>().unwrap(), ["x", "yy"]);
        client.call("RemoveOnEmpty", &("memory", "a")).await.unwrap();
        client.call("Prune", &("memory", "a")).await.unwrap();
        let reply = client.call("ListControllers", &()).await.unwrap();
        assert_eq!(reply.body().deserialize::<Vec<String>>().unwrap(), ["cpu,cpuacct", "memory"]);
        let reply = client.call("ListKeys", &("memory", "a")).await.unwrap();
        let keys: Vec<(String, u32, u32, u32)> = reply.body().deserialize().unwrap();
        assert_eq!(keys, [("tasks".to_owned(), 2, 3, 33188), ("k".to_owned(), u32::MAX, 3, 33188)]);
    });
    let controllers = || "memory".to_owned();
    let key = || "k".to_owned();
    let expected = [
        LegacyCall::PidCgroup { controllers: controllers(), absolute: false, pid: Some(7) },
        LegacyCall::PidCgroup { controllers: controllers(), absolute: true, pid: Some(7) },
        LegacyCall::Create(place("new")),
        LegacyCall::Remove { place: place("new"), recursive: true },
        LegacyCall::Create(place("old")),
        LegacyCall::Remove { place: place("old"), recursive: true },
        LegacyCall::Chown { place: place("a"), ids: Some((1, 2)) },
        LegacyCall::Chmod { place: place("a"), file: "tasks".to_owned(), mode: 0o664 },
        LegacyCall::MovePid { place: place("a"), absolute: false, pid: Some(7) },
        LegacyCall::MovePid { place: place("a"), absolute: true, pid: Some(7) },
        LegacyCall::GetValue { place: place("a"), key: key() },
        LegacyCall::SetValue { place: place("a"), key: key(), value: "v".to_owned() },
        LegacyCall::Tasks { place: place("a"), recursive: false },
        LegacyCall::Tasks { place: place("a"), recursive: true },
        LegacyCall::Children(place("a")),
        LegacyCall::RemoveOnEmpty(place("a")),
        LegacyCall::Prune(place("a")),
        LegacyCall::Controllers,
        LegacyCall::Keys(place("a")),
    ];
    assert_eq!(calls(&front), expected.map(|call| (call, false)));
}

#[test]
fn failures_have_cgmanagers_names_and_texts() {
    let front = Front::socket();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let invalid = |text: &str| (INVALID.to_owned(), text.to_owned());
        assert_eq!(client.fails("Create", &"memory").await, invalid("Invalid arguments to Create method"));
        assert_eq!(client.fails("Ping", &()).await, invalid("Invalid arguments to Ping method"));
        let long = "x".repeat(4097);
        assert_eq!(client.fails("Create", &("memory", &long)).await, invalid("invalid request"));
        front.play(|played| played.elsewhere = true);
        let text = "GetPidCgroup called from non-init namespace";
        assert_eq!(client.fails("GetPidCgroup", &("memory", 1)).await, invalid(text));
        let text = "GetPidCgroupAbs called from non-init namespace";
        assert_eq!(client.fails("GetPidCgroupAbs", &("memory", 1)).await, invalid(text));
        let text = "Escape request from different namespace requires a proxy";
        assert_eq!(client.fails("MovePid", &("memory", "", 1)).await, invalid(text));
        assert_eq!(client.fails("MovePidAbs", &("memory", "", 1)).await, invalid(text));
        let text = "chown called from different user namespace";
        assert_eq!(client.fails("Chown", &("memory", "", 1, 1)).await, invalid(text));
        front.refuse("Legacy", Refusal::new(RefusalCode::NotAuthorized, "not yours"));
        assert_eq!(client.fails("Prune", &("memory", "")).await, invalid("invalid request"));
        assert_eq!(client.fails("Nothing", &()).await.0, UNKNOWN);
        let elsewhere = client.bus.call_method(None::<&str>, "/", Some(INTERFACE), "Ping", &1).await;
        let native = "org.cgrant.Broker1.Manager";
        let other = client.bus.call_method(None::<&str>, PATH, Some(native), "ListRanges", &()).await;
        let hello = client.bus.call_method(
            None::<&str>,
            "/org/freedesktop/DBus",
            Some("org.freedesktop.DBus"),
            "Hello",
            &(),
        );
        for result in [elsewhere, other, hello.await] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("UnknownMethod") || error.contains("no method"), "{error}");
        }
    });
}

#[test]
fn properties_introspection_and_peer_are_there_and_the_interface_may_be_left_out() {
    let front = Front::socket();
    block_on(async {
        let Client { bus, .. } = Client::new(&front, 1000).await;
        let properties = "org.freedesktop.DBus.Properties";
        for interface in [INTERFACE, ""] {
            let asked = (interface, "api_version");
            let reply = bus.call_method(None::<&str>, PATH, Some(properties), "Get", &asked).await.unwrap();
            assert_eq!(reply.body().deserialize::<Variant<'_>>().unwrap(), Variant::I32(10));
            let reply = bus.call_method(None::<&str>, PATH, Some(properties), "GetAll", &interface);
            let body = reply.await.unwrap().body();
            let all: std::collections::HashMap<String, Variant<'_>> = body.deserialize().unwrap();
            assert_eq!(all, [("api_version".to_owned(), Variant::I32(10))].into());
        }
        let unknown = (INTERFACE, "version");
        assert!(bus.call_method(None::<&str>, PATH, Some(properties), "Get", &unknown).await.is_err());
        let reply = bus.call_method(None::<&str>, PATH, None::<&str>, "Introspect", &()).await.unwrap();
        let xml: String = reply.body().deserialize().unwrap();
        let served = zbus_xml::Node::from_reader(xml.as_bytes()).unwrap();
        let file = include_str!("../../../dbus/org.linuxcontainers.cgmanager0_0.xml");
        let file = zbus_xml::Node::from_reader(file.as_bytes()).unwrap();
        assert!(served.interfaces().iter().any(|interface| interface == &file.interfaces()[0]), "{xml}");
        bus.call_method(None::<&str>, PATH, None::<&str>, "Create", &("memory", "a")).await.unwrap();
        bus.call_method(None::<&str>, "/wherever", Some("org.freedesktop.DBus.Peer"), "Ping", &())
            .await
            .unwrap();
    });
    assert_eq!(calls(&front), [(LegacyCall::Create(place("a")), false)]);
}

#[test]
fn every_method_of_the_contract_is_there() {
    let front = Front::socket();
    let file = include_str!("../../../dbus/org.linuxcontainers.cgmanager0_0.xml");
    let node = zbus_xml::Node::from_reader(file.as_bytes()).unwrap();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        for method in node.interfaces()[0].methods() {
            let (ours, theirs) = pair();
            let fields =
                method.args().iter().filter(|arg| arg.direction() != Some(zbus_xml::ArgDirection::Out));
            let mut body = zbus::wire::StructureBuilder::new();
            for field in fields {
                body = match field.ty().to_string().as_str() {
                    "s" => body.add_field("memory"),
                    "i" => body.add_field(1_i32),
                    "h" => body.add_field(Fd::from(&theirs)),
                    other => panic!("{other}"),
                };
            }
            let name = method.name().to_string();
            let result = match name.as_str() {
                "ListControllers" => client.call(&name, &()).await,
                _ => client.call(&name, &body.build().unwrap()).await,
            };
            assert!(result.is_ok(), "{name}: {result:?}");
            let kick = receive(ours.as_fd(), &mut [0; 8], RecvFlags::DONTWAIT);
            assert_eq!(kick.is_some(), name.ends_with("Scm"), "{name}");
        }
    });
}

#[test]
fn any_claim_authenticates_and_descriptors_are_agreed_on() {
    let front = Front::socket();
    let ping = Message::method_call(PATH, "Ping").build(&1).unwrap();
    for claim in ["EXTERNAL 30", "EXTERNAL 31303030", "EXTERNAL", "ANONYMOUS 6c6962646275732031", "ANONYMOUS"]
    {
        let (mut stream, theirs) = UnixStream::pair().unwrap();
        front.introduce_at(Surface::Legacy, theirs.into(), 100_000, 1000);
        let data = if claim == "EXTERNAL" { "DATA\r\n" } else { "" };
        let hello = format!("\0AUTH {claim}\r\n{data}NEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        // All at once, and the first message too.
        stream.write_all(&[hello.as_bytes(), ping.data()].concat()).unwrap();
        support::read_until(&mut stream, "AGREE_UNIX_FD\r\nl\u{2}");
    }
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let number = front.introduce_at(Surface::Legacy, theirs.into(), 1000, 1000);
    stream.write_all(b"\0AUTH DBUS_COOKIE_SHA1 30\r\nAUTH\r\n").unwrap();
    support::read_until(&mut stream, &"REJECTED EXTERNAL ANONYMOUS\r\n".repeat(2));
    stream.write_all(b"BEGIN\r\n").unwrap();
    assert!(read_to_end(&mut stream).1);
    front.await_closed(number);
}

#[test]
fn descriptors_may_come_with_the_first_message_and_at_once() {
    let front = Front::socket();
    let (ours, theirs) = pair();
    let (mut stream, accepted) = UnixStream::pair().unwrap();
    front.introduce_at(Surface::Legacy, accepted.into(), 1000, 1000);
    stream.write_all(b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n").unwrap();
    let call = Message::method_call(PATH, "CreateScm").build(&("memory", "old", Fd::from(&theirs))).unwrap();
    let fds = [theirs.as_fd()];
    let send = || {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
        let parts = [std::io::IoSlice::new(call.data())];
        rustix::net::sendmsg(&stream, &parts, &mut control, SendFlags::NOSIGNAL).is_ok()
    };
    // A kernel that can keep descriptors from who is not ready for them does so until the front has the connection.
    eventually("descriptors can be sent", send);
    assert_eq!(datagram(&ours), b"1");
    identify(&ours, me(), 0);
    assert_eq!(datagram(&ours), b"2");
}

#[test]
fn exchanges_are_cgmanagers_to_the_byte() {
    let front = Front::socket();
    front.play(|played| (played.value, played.tasks) = ("a\nb".to_owned(), vec![me(), me()]));
    let int = |number: i32| number.to_ne_bytes().to_vec();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let (ours, theirs) = pair();
        let socket = || Fd::from(&theirs);
        let results = |count: usize| (0..count).map(|_| datagram(&ours)).collect::<Vec<_>>();
        for (path, result) in [("new", b"1"), ("old", b"2")] {
            client.begin("CreateScm", &("memory", path, socket()), &ours).await;
            identify(&ours, me(), 1000);
            assert_eq!(results(1), [result.to_vec()]);
            client.begin("RemoveScm", &("memory", path, 1, socket()), &ours).await;
            identify(&ours, me(), 1000);
            assert_eq!(results(1), [result.to_vec()]);
        }
        client.begin("SetValueScm", &("memory", "a", "k", "v", socket()), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(results(1), [b"1".to_vec()]);
        client.begin("GetValueScm", &("memory", "a", "k", socket()), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(results(1), [b"a\nb\0".to_vec()]);
        client.begin("ListChildrenScm", &("memory", "a", socket()), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(results(3), [int(2), int(5), b"x\0yy\0".to_vec()]);
        client.begin("ListKeysScm", &("memory", "a", socket()), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(results(3), [int(2), int(29), b"tasks\n2\n3\n33188\nk\n-1\n3\n33188\n".to_vec()]);
        client.begin("GetTasksScm", &("memory", "a", socket()), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(results(3), [int(2), b"p".to_vec(), b"p".to_vec()]);
    });
    let is_show = |call: &LegacyCall| matches!(call, LegacyCall::Socket(OnSocket::ShowTasks { .. }));
    let shown = calls(&front).into_iter().filter(|(call, _)| is_show(call));
    assert_eq!(shown.count(), 1);
    front.play(|played| assert!(played.credentials.iter().all(|seen| seen.uid.as_raw() == 1000)));
}

#[test]
fn a_second_credential_is_asked_for_when_the_first_is_there() {
    let front = Front::socket();
    let kinds = [
        UnixDatagram::pair().map(|(a, b)| (a.into(), b.into())),
        UnixStream::pair().map(|(a, b)| (a.into(), b.into())),
    ];
    for pair in kinds {
        let (ours, theirs): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) = pair.unwrap();
        sockopt::set_socket_passcred(&ours, true).unwrap();
        block_on(async {
            let client = Client::new(&front, 1000).await;
            client.begin("ChownScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
            let mut bytes = [0; 8];
            thread::sleep(Duration::from_millis(50));
            assert!(
                receive(ours.as_fd(), &mut bytes, RecvFlags::DONTWAIT).is_none(),
                "nothing was asked for"
            );
            identify(&ours, me(), 7);
            assert_eq!(receive(ours.as_fd(), &mut bytes, RecvFlags::empty()).unwrap().0, 1);
            assert_eq!(bytes[0], b'1');
            assert!(methods(&front).is_empty(), "the engine is asked when both are there");
            identify(&ours, me(), 8);
            assert_eq!(receive(ours.as_fd(), &mut bytes, RecvFlags::empty()).unwrap().0, 1);
            assert_eq!(bytes[0], b'1');
        });
        let call = LegacyCall::Chown { place: place("a"), ids: None };
        assert_eq!(methods(&front), [(call, true)]);
        front.play(|played| {
            let uids: Vec<_> = played.credentials.drain(..).map(|seen| seen.uid.as_raw()).collect();
            assert_eq!(uids, [7, 8]);
        });
    }
}

/// A process that keeps a lock of a socket, which everybody takes who receives from it ("receive") or sets anything about it ("set").
struct Keeper(std::process::Child);

impl Keeper {
    fn of(socket: &UnixDatagram, lock: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("slow_reader");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/slow_reader.c");
        let built = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(source).status().unwrap();
        assert!(built.success(), "the program can't be built");
        let socket = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        let mut command = Command::new(&program);
        let command = command.arg(lock).stdin(socket).stdout(std::process::Stdio::piped());
        let mut keeper = Self(command.spawn().unwrap());
        let mut told = String::new();
        let output = std::io::BufReader::new(keeper.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut { output }, &mut told).unwrap();
        assert_eq!(told, "ready\n");
        keeper
    }

    fn has_lock(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/wchan", self.0.id())).unwrap().contains("userfault")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn who_keeps_the_locks_of_its_socket_holds_up_nobody() {
    let mut front = Front::socket();
    // An engine that does not get it done says so, and touches no socket here.
    front.play(|played| played.held = true);
    // Sent plainly, from "set" on with a socket that does not pass credentials yet; and from "long" on with a long result.
    for lock in ["receive", "set", "long"] {
        block_on(async {
            let (attacker, other) = (Client::new(&front, 1000).await, Client::new(&front, 1001).await);
            let (ours, theirs) = pair();
            sockopt::set_socket_passcred(&theirs, lock != "set").unwrap();
            front.play(|played| played.value = "x".repeat(1 << 20));
            let keeper = Keeper::of(&theirs, if lock == "receive" { lock } else { "set" });
            if lock == "receive" {
                // This one is received, and never is: then what is sent is left for the front.
                identify(&ours, me(), 7);
            }
            eventually("the lock is kept", || keeper.has_lock());
            match lock {
                "receive" => {
                    identify(&ours, me(), 7);
                    let call = ("memory", "a", Fd::from(&theirs));
                    attacker.begin("ChownScm", &call, &ours).await;
                    assert_eq!(datagram(&ours), b"1", "the second is asked for");
                    identify(&ours, me(), 8);
                    assert_eq!(datagram(&ours), b"0");
                }
                "set" => {
                    let (name, _) = attacker.fails("ChownScm", &("memory", "a", Fd::from(&theirs))).await;
                    assert_eq!(name, INVALID);
                }
                _ => {
                    let call = ("memory", "a", "k", Fd::from(&theirs));
                    attacker.begin("GetValueScm", &call, &ours).await;
                    identify(&ours, me(), 7);
                    assert_eq!(datagram(&ours), b"", "there is no room");
                }
            }
            other.call("Ping", &1).await.unwrap();
            other.call("Create", &("memory", "a")).await.unwrap();
        });
    }
    assert!(front.is_running());
}

#[test]
fn what_the_kernel_sends_beside_credentials_is_not_kept() {
    let front = Front::socket();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", front.status("Pid"))).unwrap().count();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let mut before = None;
        for _ in 0..20 {
            let (ours, theirs) = pair();
            // A pidfd for each message that is received or looked at: who has the socket too can ask for it.
            if !cgrant_sys::credentials::set_pass_pidfd(&theirs, true).unwrap() {
                return;
            }
            client.begin("ChownScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
            identify(&ours, me(), 7);
            assert_eq!(datagram(&ours), b"1");
            identify(&ours, me(), 8);
            assert_eq!(datagram(&ours), b"1");
            drop((ours, theirs));
            // From the second on, nothing is opened for the first time any more.
            let now = open();
            let most = *before.get_or_insert(now + 4);
            eventually("a descriptor is kept for each exchange", || open() <= most);
        }
    });
}

#[test]
fn what_fails_in_an_exchange_is_told_over_its_socket() {
    let front = Front::socket();
    front.refuse("Legacy", Refusal::new(RefusalCode::NotAuthorized, "no"));
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let minus = (-1_i32).to_ne_bytes().to_vec();
        for (member, failure) in [
            ("CreateScm", b"0".to_vec()),
            ("PruneScm", b"0".to_vec()),
            ("GetTasksScm", minus.clone()),
            ("ListChildrenScm", minus.clone()),
            ("ListKeysScm", minus),
        ] {
            let (ours, theirs) = pair();
            client.begin(member, &("memory", "a", Fd::from(&theirs)), &ours).await;
            identify(&ours, me(), 1000);
            assert_eq!(datagram(&ours), failure, "{member}");
        }
        let (ours, theirs) = pair();
        client.begin("GetValueScm", &("memory", "a", "k", Fd::from(&theirs)), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(datagram(&ours), b"", "a datagram of nothing");
    });
}

#[test]
fn a_value_of_a_megabyte_and_ten_thousand_processes_arrive() {
    let front = Front::socket();
    let value = "0123456789abcdef".repeat(65536);
    front.play(|played| (played.value, played.tasks) = (value.clone(), vec![me(); 10_000]));
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let (ours, theirs) = pair();
        let room = || sockopt::socket_send_buffer_size(&theirs).unwrap();
        let before = room();
        client.begin("GetValueScm", &("memory", "a", "k", Fd::from(&theirs)), &ours).await;
        identify(&ours, me(), 1000);
        let got = datagram(&ours);
        assert_eq!(got.len(), value.len() + 1);
        eventually("the socket keeps more room than others have", || room() == before);
        assert!(got.starts_with(value.as_bytes()) && got.ends_with(b"\0"));
        let (ours, theirs) = pair();
        client.begin("GetTasksScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(datagram(&ours), 10_000_i32.to_ne_bytes());
        for nth in 0..10_000 {
            let mut byte = [0; 8];
            let (count, shown) = receive(ours.as_fd(), &mut byte, RecvFlags::empty()).unwrap();
            let shown = shown.unwrap();
            assert_eq!(
                (count, byte[0], shown.pid.as_raw_nonzero().get()),
                (1, b'p', me().cast_signed()),
                "{nth}"
            );
        }
    });
}

#[test]
fn who_reads_slowly_gets_all_and_who_reads_nothing_is_waited_for_no_longer() {
    let front = Front::socket();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", front.status("Pid"))).unwrap().count();
    front.play(|played| played.tasks = vec![me(); 2000]);
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let before = open();
        let (unread, theirs) = pair();
        client.begin("GetTasksScm", &("memory", "a", Fd::from(&theirs)), &unread).await;
        identify(&unread, me(), 1000);
        let (ours, theirs) = pair();
        client.begin("GetTasksScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
        identify(&ours, me(), 1000);
        assert_eq!(datagram(&ours), 2000_i32.to_ne_bytes());
        // Longer in all than nothing may be read.
        for count in [600, 600, 800] {
            thread::sleep(Duration::from_secs(16));
            (0..count).for_each(|nth| assert_eq!(datagram(&ours), b"p", "{nth} of {count}"));
        }
        eventually("an exchange is kept for who reads nothing", || open() <= before);
    });
}

#[test]
fn nothing_that_the_front_sends_is_roots_word() {
    let front = Front::socket();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        let (ours, theirs) = pair();
        client.call("CreateScm", &("memory", "a", Fd::from(&theirs))).await.unwrap();
        let (_, kick) = receive(ours.as_fd(), &mut [0; 8], RecvFlags::empty()).unwrap();
        identify(&ours, me(), 1000);
        let (_, result) = receive(ours.as_fd(), &mut [0; 8], RecvFlags::empty()).unwrap();
        for sender in [kick, result] {
            assert_eq!(sender.unwrap().uid.as_raw(), FRONT_UID);
        }
    });
}

#[test]
fn only_one_end_of_a_pair_is_written_on() {
    let front = Front::socket();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service");
    let service = UnixDatagram::bind(&path).unwrap();
    service.set_nonblocking(true).unwrap();
    let victim = UnixDatagram::unbound().unwrap();
    victim.connect(&path).unwrap();
    let listener = UnixListener::bind(directory.path().join("listener")).unwrap();
    let connected = UnixStream::connect(directory.path().join("listener")).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let bound = UnixDatagram::bind(directory.path().join("bound")).unwrap();
    let long = UnixDatagram::unbound().unwrap();
    let longest = directory.path().join("x".repeat(107 - directory.path().as_os_str().len() - 1));
    rustix::net::bind(&long, &rustix::net::SocketAddrUnix::new(&longest).unwrap()).unwrap();
    long.connect(&longest).unwrap();
    let (seqpacket, _other) = cgrant_sys::seqpacket::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let sockets = [
        victim.as_fd(),
        connected.as_fd(),
        accepted.as_fd(),
        bound.as_fd(),
        long.as_fd(),
        seqpacket.as_fd(),
        tcp.as_fd(),
        file.as_fd(),
        listener.as_fd(),
    ];
    block_on(async {
        let client = Client::new(&front, 1000).await;
        for (nth, socket) in sockets.into_iter().enumerate() {
            let refused = client.fails("CreateScm", &("memory", "a", Fd::from(socket))).await;
            assert_eq!(refused, (INVALID.to_owned(), "invalid request".to_owned()), "{nth}");
        }
        assert!(service.recv(&mut [0; 8]).is_err(), "somebody else's socket was written on");
        assert_eq!(front.seen_count(), 0);
    });
}

#[test]
fn exchanges_that_stall_end_and_do_not_keep_others_out() {
    let front = Front::socket();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", front.status("Pid"))).unwrap().count();
    block_on(async {
        // Two uids of one account: what a container's users do is counted together.
        let first = Client::of_account(&front, 100_000, 1000).await;
        let second = Client::of_account(&front, 100_001, 1000).await;
        let neighbour = Client::new(&front, 1001).await;
        let before = open();
        let mut pairs = Vec::new();
        for nth in 0..64 {
            let (ours, theirs) = pair();
            let client = if nth % 2 == 0 { &first } else { &second };
            client.begin("CreateScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
            pairs.push(ours);
        }
        let (ours, theirs) = pair();
        for client in [&first, &second] {
            let (name, text) = client.fails("CreateScm", &("memory", "a", Fd::from(&theirs))).await;
            assert_eq!(name, INVALID);
            assert!(text.starts_with("invalid request: "), "{text}");
        }
        first.call("Create", &("memory", "a")).await.unwrap();
        neighbour.begin("CreateScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
        identify(&ours, me(), 1001);
        assert_eq!(datagram(&ours), b"1");
        let start = Instant::now();
        for ours in &pairs {
            assert_eq!(datagram(ours), b"0", "after {:?}", start.elapsed());
        }
        eventually("descriptors are closed", || open() <= before);
        first.begin("CreateScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
    });
}

#[test]
fn the_engine_hears_of_a_connections_end_when_its_exchanges_have_ended() {
    let front = Front::socket();
    block_on(async {
        let (ours, theirs) = pair();
        let client = Client::new(&front, 1000).await;
        let (number, bus) = (client.connection, client.bus.clone());
        client.begin("GetValueScm", &("memory", "a", "k", Fd::from(&theirs)), &ours).await;
        drop(client);
        bus.close().await.unwrap();
        thread::sleep(Duration::from_millis(100));
        assert!(!front.has_closed(number));
        identify(&ours, me(), 1000);
        assert_eq!(datagram(&ours), b"\0");
        front.await_closed(number);
    });
}

#[test]
fn hostile_messages_in_an_exchange_harm_nobody() {
    let mut front = Front::socket();
    block_on(async {
        let client = Client::new(&front, 1000).await;
        // Nothing at all; too much; many; with descriptors.
        let (ours, theirs) = pair();
        client.begin("ChownScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
        ours.send(b"").unwrap();
        assert_eq!(datagram(&ours), b"0");
        let (ours, theirs) = pair();
        client.begin("ChownScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
        ours.send(&[7; 100_000]).unwrap();
        assert_eq!(datagram(&ours), b"1");
        for _ in 0..8 {
            let _ = ours.send(b"x");
        }
        assert_eq!(datagram(&ours), b"1");
        // The end of a stream is the end of it.
        for count in [0, 1] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            client.begin("ChownScm", &("memory", "a", Fd::from(&theirs)), &ours).await;
            (&ours).write_all(&vec![b'p'; count]).unwrap();
            ours.shutdown(std::net::Shutdown::Write).unwrap();
            drop(theirs);
            let (said, closed) = read_to_end(&mut { ours });
            assert_eq!((said, closed), (b"1".repeat(count).into_iter().chain(*b"0").collect(), true));
        }
        client.call("Ping", &1).await.unwrap();
    });
    assert!(front.is_running());
    assert!(!front.log().contains("fault in the front"), "{}", front.log());
}

#[test]
fn dbus_send_gdbus_and_busctl_use_it() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
    let front = std::sync::Arc::new(Front::socket());
    let serving = std::sync::Arc::clone(&front);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serving.introduce_at(Surface::Legacy, stream.into(), 0, 0);
        }
    });
    front.play(|played| (played.value, played.tasks) = ("12".to_owned(), vec![5, 6]));
    let address = format!("unix:path={}/sock", directory.path().display());
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new("timeout").arg("20").arg(program).args(arguments).output().unwrap();
        let (said, errors) =
            (output.stdout.escape_ascii().to_string(), String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(output.status.success(), "{program} {arguments:?}: {said} {errors}\n{}", front.log());
        String::from_utf8(output.stdout).unwrap()
    };
    let peer = format!("--peer={address}");
    let method = |name: &str| format!("{INTERFACE}.{name}");
    let said =
        run("dbus-send", &[&peer, "--print-reply", PATH, &method("Create"), "string:memory", "string:old"]);
    assert!(said.contains("int32 1"), "{said}");
    let said =
        run("dbus-send", &[&peer, "--print-reply", PATH, &method("GetTasks"), "string:memory", "string:"]);
    assert!(said.contains("int32 5") && said.contains("int32 6"), "{said}");
    let to = ["--dest", "org.cgrant.Broker1", "--object-path", PATH, "--method"];
    let call = |name: &str, rest: &[&str]| {
        run("gdbus", &[&["call", "--address", &address][..], &to, &[&method(name)], rest].concat())
    };
    assert_eq!(call("GetValue", &["memory", "a", "k"]).trim(), "('12',)");
    assert_eq!(call("ListControllers", &[]).trim(), "(['cpu,cpuacct', 'memory'],)");
    let busctl = format!("--address={address}");
    let to = ["org.linuxcontainers.cgmanager", PATH, INTERFACE];
    let said = run("busctl", &[&[&busctl[..], "get-property"][..], &to, &["api_version"]].concat());
    assert_eq!(said.trim(), "i 10");
    let said = run("busctl", &[&[&busctl[..], "call"][..], &to, &["ListKeys", "ss", "memory", ""]].concat());
    assert_eq!(said.trim(), "a(suuu) 2 \"tasks\" 2 3 33188 \"k\" 4294967295 3 33188");
}
