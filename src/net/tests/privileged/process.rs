//! The whole program, confined as it is, over its channels.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    process::ExitCode,
};

use cgrant_sys::{Channel, Child, Clone3, Exit, privilege::close_fds_from, seqpacket};
use cgrant_wire::{
    FdIndex,
    boot::{CONTROL_FD, FromChild, LogTarget, NetBoot, ToChild},
    link::LinkKind,
    net::{FromNet, NetEvent, Order, OrderId, Reply, ToNet},
};
use nix::fcntl::{FcntlArg, fcntl};

use crate::{
    Test,
    support::{Host, assert_same, link, namespace, own_bridge, port, run_in, snapshot, v4},
};

pub const TESTS: &[Test] = &[
    ("a_confined_helper_serves", a_confined_helper_serves),
    ("it_ends_with_its_engine_and_leaves_everything", it_ends_with_its_engine_and_leaves_everything),
];

struct Helper {
    child: Child,
    control: Channel,
    engine: Channel,
    next: u64,
    events: Vec<NetEvent>,
}

impl Helper {
    fn start(directory: &Path) -> Self {
        let (control, for_control) = seqpacket::pair().unwrap();
        let (engine, for_engine) = seqpacket::pair().unwrap();
        let child = Clone3::new()
            .spawn(|| {
                // As its own program would have it: nothing but its end of the pair, as descriptor 3.
                close_fds_from(CONTROL_FD, &[for_control.as_fd().as_raw_fd()]).unwrap();
                assert_eq!(fcntl(&for_control, FcntlArg::F_DUPFD(CONTROL_FD)).unwrap(), CONTROL_FD);
                let code = cgrant_net::main();
                i32::from(code != ExitCode::SUCCESS)
            })
            .unwrap();
        let boot = NetBoot {
            instance: "test".into(),
            engine: FdIndex(0),
            directory: FdIndex(1),
            host: FdIndex(2),
            path: directory.to_str().unwrap().into(),
            uid: 64_999,
            gid: 64_999,
            domain: "cgrant".into(),
            dns: vec![v4("198.51.100.1").into()],
            log: LogTarget::Terminal,
        };
        let bytes = cgrant_wire::encode(&ToChild::Net(boot)).unwrap();
        let shared = directory.join("host");
        std::fs::create_dir_all(&shared).unwrap();
        let (directory, shared) = (File::open(directory).unwrap(), File::open(shared).unwrap());
        control.send(&bytes, &[for_engine.as_fd(), directory.as_fd(), shared.as_fd()]).unwrap();
        let ready = control.receive().unwrap().expect("it says something");
        assert_eq!(cgrant_wire::decode::<FromChild>(&ready.bytes).unwrap(), FromChild::Ready);
        Self { child, control, engine, next: 0, events: Vec::new() }
    }

    fn send(&self, message: &ToNet, fds: &[BorrowedFd<'_>]) {
        self.engine.send(&cgrant_wire::encode(message).unwrap(), fds).unwrap();
    }

    fn receive(&self) -> FromNet {
        cgrant_wire::decode(&self.engine.receive().unwrap().unwrap().bytes).unwrap()
    }

    fn restore(&mut self, bridges: Vec<cgrant_wire::net::Bridge>, links: Vec<cgrant_wire::net::Link>) {
        self.send(&ToNet::Restore { bridges, links }, &[]);
        loop {
            match self.receive() {
                FromNet::Restored => return,
                FromNet::Event(event) => self.events.push(event),
                other @ FromNet::Answer { .. } => panic!("{other:?}"),
            }
        }
    }

    fn order(&mut self, order: Order, fds: &[BorrowedFd<'_>]) -> Result<Reply, String> {
        self.next += 1;
        let number = OrderId(self.next);
        self.send(&ToNet::Order { id: number, order }, fds);
        loop {
            match self.receive() {
                FromNet::Answer { id, result } if id == number => {
                    return result.map_err(|failure| failure.message);
                }
                FromNet::Event(event) => self.events.push(event),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn a_confined_helper_serves() {
    let host = Host::new();
    let before = snapshot();
    let directory = tempfile::tempdir().unwrap();
    let mut helper = Helper::start(directory.path());
    let early = helper.order(Order::RemoveLink(link(1).key), &[]);
    assert!(early.is_err(), "orders come after what ought to be");
    helper.restore(Vec::new(), Vec::new());
    let netns = namespace();
    let mut one = link(1);
    one.info.ports = vec![port(80, 80)];
    let order = Order::AddLink { bridge: own_bridge(), link: one.clone(), netns: Some(FdIndex(0)) };
    let reply = helper.order(order, &[netns.as_fd()]).unwrap();
    assert!(matches!(reply, Reply::Link { mtu: 1500, .. }), "{reply:?}");
    run_in(&netns, "busybox ping -c 1 -W 5 10.77.0.1");
    match helper.order(Order::Examine, &[]).unwrap() {
        Reply::Findings(findings) => {
            let nft = findings.iter().find(|finding| finding.subject == "nftables").unwrap();
            assert!(nft.good, "{nft:?}");
        }
        other => panic!("{other:?}"),
    }
    let mut tap = link(2);
    tap.info.kind = LinkKind::Tap;
    let order = Order::AddLink { bridge: own_bridge(), link: tap.clone(), netns: None };
    let reply = helper.order(order, &[]).unwrap();
    assert!(matches!(reply, Reply::Link { tap: Some(FdIndex(0)), .. }), "{reply:?}");
    helper.order(Order::RemoveLink(tap.key), &[]).unwrap();
    run_in(&netns, "ip link del eth0");
    let gone = helper.receive();
    assert_eq!(gone, FromNet::Event(NetEvent::LinkGone { key: one.key, far_end: true }));
    assert_same(&before, &snapshot(), "after the last link");
    let stop = cgrant_wire::encode(&ToChild::Stop).unwrap();
    helper.control.send(&stop, &[]).unwrap();
    assert_eq!(helper.child.pidfd.wait().unwrap(), Exit::Code(0));
    drop(host);
}

fn it_ends_with_its_engine_and_leaves_everything() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let mut helper = Helper::start(directory.path());
    helper.restore(Vec::new(), Vec::new());
    let netns = namespace();
    let mut one = link(1);
    let order = Order::AddLink { bridge: own_bridge(), link: one.clone(), netns: Some(FdIndex(0)) };
    match helper.order(order, &[netns.as_fd()]).unwrap() {
        Reply::Link { ifindex, .. } => one.info.ifindex = ifindex,
        other => panic!("{other:?}"),
    }
    let with_link = snapshot();
    let Helper { child, engine, .. } = helper;
    drop(engine);
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
    assert_same(&with_link, &snapshot(), "without a helper");
    let mut helper = Helper::start(directory.path());
    helper.restore(vec![own_bridge()], vec![one]);
    assert_eq!(helper.events, []);
    assert_same(&with_link, &snapshot(), "with another helper");
    drop(host);
}
