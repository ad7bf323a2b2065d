//! The bus front on a real dbus-daemon of this test's own, with its configuration and our policy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use cgrant_proto::{CreateGrant, ManagerProxy};
use cgrant_wire::{ConnectionId, EndReason, Event, Op, boot::FrontKind};
use futures_util::StreamExt;
use support::{BUS_FRONT_UID, Front, GRANT, GRANT_PATH, block_on, eventually};
use tempfile::TempDir;
use zbus::{Connection, Message, MessageStream, Variant, connection::Builder};

/// A message bus.
struct Daemon {
    directory: TempDir,
    child: Option<Child>,
}

impl Daemon {
    /// Makes the directory and the configuration. `policy` stands in for the account that the policy names, which no
    /// test machine has.
    fn prepare(policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let shipped =
            fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../dbus/org.cgrant.Broker1.conf"))
                .unwrap();
        assert!(shipped.contains("user=\"cgrant-bus\""));
        fs::write(directory.path().join("broker.conf"), shipped.replace("user=\"cgrant-bus\"", policy))
            .unwrap();
        let config = format!(
            r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={0}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{0}/broker.conf</include>
</busconfig>
"#,
            directory.path().display()
        );
        fs::write(directory.path().join("bus.conf"), config).unwrap();
        Self { directory, child: None }
    }

    fn started() -> Self {
        let mut daemon = Self::prepare(&format!("user=\"{BUS_FRONT_UID}\""));
        daemon.start();
        daemon
    }

    fn start(&mut self) {
        let child = Command::new("dbus-daemon")
            .arg(format!("--config-file={}/bus.conf", self.directory.path().display()))
            .args(["--nofork", "--nopidfile", "--nosyslog"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let socket = self.directory.path().join("bus");
        eventually("the bus listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            let _ = fs::remove_file(self.directory.path().join("bus"));
        }
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.directory.path().display())
    }

    async fn client(&self) -> Connection {
        Builder::address(self.address().as_str()).build().await.unwrap()
    }

    /// Is the broker's name there, and whose is it?
    fn has_name(&self) -> bool {
        block_on(async {
            let client = self.client().await;
            let proxy = zbus::fdo::DBusProxy::new(&client).await.unwrap();
            proxy.name_has_owner("org.cgrant.Broker1".try_into().unwrap()).await.unwrap()
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn front(daemon: &Daemon) -> Front {
    let front = Front::start(FrontKind::Bus, &daemon.address());
    eventually("the name is on the bus", || daemon.has_name());
    front
}

#[test]
fn a_client_is_introduced_and_served_and_its_end_is_told() {
    let daemon = Daemon::started();
    let front = front(&daemon);
    block_on(async {
        let client = daemon.client().await;
        let manager = ManagerProxy::new(&client).await.unwrap();
        let (path, _, payload) = manager.create_grant("web", &CreateGrant::new()).await.unwrap();
        assert_eq!(path.as_str(), GRANT_PATH);
        assert!(rustix::fs::fstat(&payload).is_ok());
        manager.list_ranges().await.unwrap();
        let clients = front.clients();
        assert_eq!(clients.len(), 1, "introduced once: {clients:?}");
        let (connection, who, pidfd) = &clients[0];
        assert_eq!(who.name, client.unique_name().unwrap().as_str());
        assert_eq!(who.uid, rustix::process::geteuid().as_raw());
        assert_eq!(who.pid, Some(std::process::id()));
        assert!(pidfd, "its process came as a descriptor");
        let seen = front.seen();
        assert!(seen.iter().all(|seen| seen.connection == *connection), "{seen:?}");
        assert!(matches!(seen[0].op, Op::CreateGrant(_)), "{seen:?}");
        drop((manager, client));
    });
    front.await_closed(ConnectionId(1000));
}

#[test]
fn calls_that_wait_for_the_introduction_keep_their_order() {
    let daemon = Daemon::started();
    let front = front(&daemon);
    block_on(async {
        let client = daemon.client().await;
        let mut serials = Vec::new();
        let mut stream = MessageStream::from(&client);
        for index in 0..10 {
            let call = Message::method_call("/org/cgrant/Broker1", "ForgetRange")
                .destination("org.cgrant.Broker1")
                .build(&index.to_string())
                .unwrap();
            client.send(&call).await.unwrap();
            serials.push(call.primary_header().serial_num());
        }
        let mut replies = 0;
        while replies < serials.len() {
            let message = stream.next().await.unwrap().unwrap();
            replies +=
                usize::from(message.header().reply_serial().is_some_and(|serial| serials.contains(&serial)));
        }
        let names: Vec<_> = front
            .seen()
            .into_iter()
            .map(|seen| match seen.op {
                Op::ForgetRange { name } => name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, (0..10).map(|index| index.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn signals_are_for_clients_alone() {
    let daemon = Daemon::started();
    let front = front(&daemon);
    block_on(async {
        let client = daemon.client().await;
        let stranger = daemon.client().await;
        let mut heard = MessageStream::from(&client);
        let mut overheard =
            MessageStream::for_match_rule("type='signal',path_namespace='/org/cgrant'", &stranger, None)
                .await
                .unwrap();
        let manager = ManagerProxy::new(&client).await.unwrap();
        manager.list_ranges().await.unwrap();
        let mut removed = manager.receive_grant_removed().await.unwrap();
        let account = rustix::process::geteuid().as_raw();
        front.event(Event::Ended {
            grant: GRANT,
            name: "web".to_owned(),
            account,
            reason: EndReason::Released,
        });
        let args = removed.next().await.unwrap();
        assert_eq!(args.args().unwrap().reason, "released");
        loop {
            let message = heard.next().await.unwrap().unwrap();
            let header = message.header();
            if header.member().is_some_and(|member| member.as_str() == "Ended") {
                assert_eq!(header.path().unwrap().as_str(), GRANT_PATH);
                assert_eq!(header.destination().unwrap().as_str(), client.unique_name().unwrap().as_str());
                break;
            }
        }
        let nothing = tokio::time::timeout(Duration::from_millis(300), overheard.next()).await;
        assert!(nothing.is_err(), "a stranger overheard {nothing:?}");
    });
}

#[test]
fn a_flood_and_a_giant_are_refused_and_others_served() {
    let daemon = Daemon::started();
    let mut front = front(&daemon);
    block_on(async {
        let client = daemon.client().await;
        let manager = ManagerProxy::new(&client).await.unwrap();
        manager.list_ranges().await.unwrap();
        let before = front.resident();
        let giant = ("web", HashMap::from([("key", Variant::new("x".repeat(8 << 20)))]));
        for _ in 0..3 {
            let result = client
                .call_method(
                    Some("org.cgrant.Broker1"),
                    "/org/cgrant/Broker1",
                    Some("org.cgrant.Broker1.Manager"),
                    "CreateGrant",
                    &giant,
                )
                .await;
            let zbus::Error::MethodError(name, message, _) = result.unwrap_err() else { panic!() };
            assert_eq!(name.as_str(), "org.cgrant.Error.InvalidArgument");
            assert!(message.unwrap().contains("longer than 256 KiB"));
        }
        let after = front.resident();
        assert!(after < before + 4096, "{before} kB before, {after} kB after");
        manager.list_ranges().await.unwrap();

        front.seen();
        front.withhold();
        let mut stream = MessageStream::from(&client);
        for _ in 0..40 {
            let call = Message::method_call(GRANT_PATH, "Freeze")
                .destination("org.cgrant.Broker1")
                .build(&())
                .unwrap();
            client.send(&call).await.unwrap();
        }
        let mut refused = 0;
        while refused < 24 {
            let message = stream.next().await.unwrap().unwrap();
            if let Some(name) = message.header().error_name() {
                assert_eq!(name.as_str(), "org.freedesktop.DBus.Error.LimitsExceeded");
                refused += 1;
            }
        }
        // The other 16 of the 40 are under way.
        front.await_seen(16);
        assert_eq!(front.seen_count(), 16);
        let other = daemon.client().await;
        let call =
            Message::method_call(GRANT_PATH, "Thaw").destination("org.cgrant.Broker1").build(&()).unwrap();
        other.send(&call).await.unwrap();
        front.await_seen(17);
        front.release();
    });
    assert!(front.is_running());
}

#[test]
fn it_waits_for_a_bus_that_comes_and_goes() {
    let mut daemon = Daemon::prepare(&format!("user=\"{BUS_FRONT_UID}\""));
    // It is ready although there is no bus.
    let mut front = Front::start(FrontKind::Bus, &daemon.address());
    eventually("it says what to do", || front.log().contains("give another --bus"));
    let said = front.log();
    assert!(said.contains(" WARN ") && said.contains("no bus at the address that was given"), "{said}");
    daemon.start();
    eventually("the name is on the bus", || daemon.has_name());
    let connection = block_on(async {
        let client = daemon.client().await;
        ManagerProxy::new(&client).await.unwrap().list_ranges().await.unwrap();
        front.clients()[0].0
    });
    daemon.stop();
    front.await_closed(connection);
    assert!(front.is_running());
    daemon.start();
    eventually("the name is on the new bus", || daemon.has_name());
}

#[test]
fn without_the_right_to_the_name_it_stays_and_says_why() {
    let mut daemon = Daemon::prepare("user=\"4294967294\"");
    daemon.start();
    let mut front = Front::start(FrontKind::Bus, &daemon.address());
    eventually("the reason is in the log", || {
        front.log().contains("needs the policy org.cgrant.Broker1.conf and the account cgrant-bus")
    });
    assert!(!daemon.has_name());
    assert!(front.is_running());
}

#[test]
fn an_instance_has_a_name_of_its_own_that_the_policy_covers() {
    let daemon = Daemon::started();
    let _front = Front::start_instance(FrontKind::Bus, &daemon.address(), "test");
    block_on(async {
        let client = daemon.client().await;
        let name = cgrant_proto::names::bus_name("test");
        let proxy = zbus::fdo::DBusProxy::new(&client).await.unwrap();
        while !proxy.name_has_owner(name.as_str().try_into().unwrap()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let manager = ManagerProxy::builder(&client).destination(name).build().await.unwrap();
        manager.list_ranges().await.unwrap();
    });
}

#[test]
fn it_is_idle_when_the_bus_is() {
    let daemon = Daemon::started();
    let front = front(&daemon);
    block_on(async {
        let client = daemon.client().await;
        ManagerProxy::new(&client).await.unwrap().list_ranges().await.unwrap();
        let before = front.settled_wakeups();
        // Others come and go; it is not told.
        for _ in 0..5 {
            let other = daemon.client().await;
            drop(other);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(front.wakeups(), before);
    });
}

#[test]
fn busctl_gdbus_and_dbus_send_use_it() {
    let daemon = Daemon::started();
    let front = front(&daemon);
    let address = daemon.address();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new("timeout").arg("20").arg(program).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{program}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            front.log()
        );
        text
    };
    let manager = "org.cgrant.Broker1.Manager";
    let busctl = format!("--address={address}");
    let tree = run("busctl", &[&busctl, "tree", "--list", "org.cgrant.Broker1"]);
    assert!(tree.lines().any(|line| line == GRANT_PATH), "{tree}");
    let tree = run("busctl", &[&busctl, "introspect", "org.cgrant.Broker1", GRANT_PATH]);
    assert!(tree.contains(".CgroupId") && tree.contains("4711"), "{tree}");
    let method = format!("{manager}.ListGrants");
    let reply = run(
        "gdbus",
        &[
            "call",
            "--address",
            &address,
            "--dest",
            "org.cgrant.Broker1",
            "--object-path",
            "/org/cgrant/Broker1",
            "--method",
            &method,
            "{}",
        ],
    );
    assert_eq!(reply.trim(), format!("([(objectpath '{GRANT_PATH}', 'web', uint32 1000)],)"));
    let bus = format!("--bus={address}");
    let method = format!("{manager}.ListRanges");
    let reply = run(
        "dbus-send",
        &[&bus, "--print-reply", "--dest=org.cgrant.Broker1", "/org/cgrant/Broker1", &method],
    );
    assert!(reply.contains("string \"00c0ffee00c0ffee\""), "{reply}");
    eventually("every client's end is told", || front.clients().len() >= 4);
}
