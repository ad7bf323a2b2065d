//! When a step fails or the disk is full, nothing of the others remains.

use std::{fs, os::fd::OwnedFd, path::PathBuf};

use crate::common::{
    Broker, Client, Grant, Lab, Options, Process, User,
    bus::Refused,
    checker,
    level::{Level, nesting, release},
};

struct Request {
    user: User,
    client: Client,
    stage: Process,
    before: Vec<(String, String)>,
}

impl Request {
    fn new(lab: &Lab, broker: &Broker) -> Self {
        let user = lab.user();
        let client = user.client(broker.socket());
        client.names();
        let stage = user.sleeper();
        let before = stage.cgroups();
        Self { user, client, stage, before }
    }

    // A grant of everything: cgroup, limits, ids, a stage that is attached, a namespace that is mapped.
    fn all_of_it(&self, name: &str) -> (Result<Grant, Refused>, Process) {
        let (process, namespace) = self.user.userns();
        (self.client.create(name, everything(&self.stage, &namespace)), process)
    }
}

fn everything(stage: &Process, namespace: &OwnedFd) -> Options {
    Options::new()
        .lifetime("persistent")
        .limits(&[("pids.max", "60"), ("memory.max", "128M")])
        .fd("stage", &stage.pidfd)
        .fd("userns", namespace)
}

fn each_step_of_a_request_fails_in_turn(lab: &Lab) {
    let broker = lab.broker();
    let request = Request::new(lab, &broker);
    broker.order_fault("count");
    let (grant, _process) = request.all_of_it("whole");
    let grant = grant.unwrap();
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("create")).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    request.client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
    for (number, step) in steps.iter().enumerate() {
        let request = Request::new(lab, &broker);
        broker.order_fault(&format!("fail:{}", number + 1));
        let (result, process) = request.all_of_it("part");
        assert!(broker.fault_done(), "{step} was not reached");
        broker.fault_steps();
        if step.contains("answer") {
            // Made and recorded: nothing takes it back any more, whatever becomes of the answer.
            request.client.release(&result.unwrap().path, true).unwrap();
            checker::assert_empty(lab);
            continue;
        }
        let refused = result.err().unwrap_or_else(|| panic!("{step} failed, and the grant was made"));
        refused.is("KernelRefused", step);
        checker::assert_empty(lab);
        assert!(request.stage.is_alive(), "{step}");
        assert_eq!(request.stage.cgroups(), request.before, "{step}: the stage is back where it was");
        // The map is the one effect that can't be taken back; it comes last.
        if !step.contains("mapped") {
            assert_eq!(fs::read_to_string(format!("/proc/{}/uid_map", process.pid)).unwrap(), "", "{step}");
        }
        assert!(request.client.names().is_empty());
    }
}

// Asked for by an ordinary user of a container, who may have one block there: nothing of what failed is counted.
fn each_step_of_a_users_request_inside_fails_in_turn(lab: &Lab) {
    const ANN: u32 = 7;
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 1 }\n");
    let broker = lab.broker();
    let user = lab.user();
    let outer = user.client(broker.socket());
    let one = Level::new(&user, &outer, "one", nesting(1));
    let ann = one.client_of(lab, &user, ANN, broker.socket());
    let ask = |name: &str| {
        let stage = one.process(lab, &user, ANN, &["files"]);
        let before = stage.cgroups();
        let (process, namespace) = one.userns_of(&user, ANN);
        (ann.create(name, everything(&stage, &namespace)), stage, before, process)
    };
    broker.order_fault("count");
    let (grant, ..) = ask("part");
    let steps: Vec<String> =
        broker.fault_steps().into_iter().filter(|step| step.starts_with("create")).collect();
    assert!(steps.len() >= 6, "{steps:?}");
    ann.release(&grant.unwrap().path, true).unwrap();
    for (number, step) in steps.iter().enumerate() {
        broker.order_fault(&format!("fail:{}", number + 1));
        let (result, stage, before, process) = ask("part");
        assert!(broker.fault_done(), "{step} was not reached");
        broker.fault_steps();
        if step.contains("answer") {
            ann.release(&result.unwrap().path, true).unwrap();
            continue;
        }
        let refused = result.err().unwrap_or_else(|| panic!("{step} failed, and the grant was made"));
        refused.is("KernelRefused", step);
        assert!(stage.is_alive(), "{step}");
        assert_eq!(stage.cgroups(), before, "{step}: the stage is back where it was");
        if !step.contains("mapped") {
            assert_eq!(fs::read_to_string(format!("/proc/{}/uid_map", process.pid)).unwrap(), "", "{step}");
        }
        assert!(ann.names().is_empty(), "{step}");
        checker::assert_in_order(lab);
        let bare = Options::new().no_range().lifetime("persistent");
        ann.manager::<_, ()>("ForgetRange", &"part").unwrap_or_else(|r| panic!("{step}: {r:?}"));
        let other = ann.create("other", bare).unwrap_or_else(|r| panic!("{step}: {r:?}"));
        ann.release(&other.path, false).unwrap();
    }
    release(&outer, &one.grant.path, Options::new().with("force", true)).unwrap();
    checker::assert_empty(lab);
}

fn a_refused_change_of_limits_changes_nothing(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let grant = client.create("limits", Options::new().limits(&[("pids.max", "60")])).unwrap();
    broker.order_fault("fail:1");
    client
        .set_limits(&grant.path, &[("pids.max", "10"), ("memory.max", "32M")])
        .unwrap_err()
        .is("KernelRefused", "set limits");
    broker.fault_steps();
    assert_eq!(client.value(&grant.path, "pids.max"), "60");
    assert_eq!(client.value(&grant.path, "memory.max"), "max");
    checker::assert_in_order(lab);
}

fn a_release_that_fails_can_be_repeated(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    for number in 1..=4 {
        let grant = client.create("again", Options::new().lifetime("persistent")).unwrap();
        broker.order_fault(&format!("fail:{number}"));
        client.release(&grant.path, false).unwrap_err().is("KernelRefused", "release");
        let step = broker.fault_steps().pop().unwrap();
        // After the last step it is gone already; before, another release goes on where the first stopped.
        let again = client.release(&grant.path, false);
        if step.contains("forgotten") {
            again.unwrap_err().is("NoSuchGrant", "");
        } else {
            again.unwrap_or_else(|r| panic!("{step}: {r:?}"));
        }
        checker::assert_empty(lab);
    }
}

// A small file system that is full, at a directory of the lab's.
struct Full {
    place: PathBuf,
}

impl Full {
    fn at(place: PathBuf) -> Self {
        fs::create_dir_all(&place).unwrap();
        let options = "size=64k,mode=700";
        nix::mount::mount(Some("tmpfs"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options))
            .unwrap();
        Self { place }
    }

    fn fill(&self) {
        let _ = fs::write(self.place.join("filler"), vec![0; 1 << 20]);
        assert!(fs::write(self.place.join("more"), vec![0; 8192]).is_err(), "there is room left");
        let _ = fs::remove_file(self.place.join("more"));
    }

    fn empty(&self) {
        fs::remove_file(self.place.join("filler")).unwrap();
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn a_full_disk_is_a_refusal_and_never_half_a_grant(lab: &Lab) {
    for (which, lifetime, place) in [
        ("run directory", "connection", lab.runtime_dir().join("state")),
        ("state directory", "persistent", lab.state_dir()),
        ("record of ids", "persistent", lab.ids.join("ids")),
        ("ids in use", "persistent", lab.ids.join("ids-live")),
    ] {
        fs::create_dir_all(lab.runtime_dir()).unwrap();
        let full = Full::at(place);
        let broker = lab.broker();
        let client = lab.user().client(broker.socket());
        let ask = |name: &str| client.create(name, Options::new().lifetime(lifetime));
        let before = ask("before").unwrap();
        full.fill();
        let refused = ask("during").expect_err(which);
        assert_eq!(refused.name, "RecordUnwritable", "{which}: {refused:?}");
        assert!(refused.message.contains("space"), "{which}: {refused:?}");
        assert_eq!(client.names(), ["before"], "{which}");
        checker::assert_in_order(lab);
        // A full disk keeps nobody from giving things back.
        client.release(&before.path, false).unwrap_or_else(|r| panic!("{which}: {r:?}"));
        full.empty();
        let after = ask("after").unwrap_or_else(|r| panic!("{which}: {r:?}"));
        client.release(&after.path, false).unwrap();
        checker::assert_empty(lab);
        drop((client, broker, full));
    }
}

crate::tests![
    each_step_of_a_request_fails_in_turn,
    each_step_of_a_users_request_inside_fails_in_turn,
    a_refused_change_of_limits_changes_nothing,
    a_release_that_fails_can_be_repeated,
    a_full_disk_is_a_refusal_and_never_half_a_grant,
];
