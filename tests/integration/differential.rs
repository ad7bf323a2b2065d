//! Limits against another implementation: set with ours and read with cgroups-rs, and the reverse.

use cgroups_rs::fs::{
    MaxValue, cpu::CpuController, cpuset::CpuSetController, memory::MemController, pid::PidController,
};

use crate::common::{Client, Grant, Host, Lab, Options, checker};

struct Theirs {
    memory: MemController,
    pids: PidController,
    cpu: CpuController,
    cpuset: CpuSetController,
    v1: [bool; 3],
}

impl Theirs {
    // Their controllers at the grant's own directories, found by the checker.
    fn at(lab: &Lab, account: u32, name: &str) -> Self {
        let place = |controller: &str| {
            let path = checker::place(lab, account, name, controller);
            (path.clone(), path, !lab.host.is_v1(controller))
        };
        let (memory, pids, cpu, cpuset) = (place("memory"), place("pids"), place("cpu"), place("cpuset"));
        Self {
            v1: [!memory.2, !cpu.2, !pids.2],
            memory: MemController::new(memory.0, memory.1, memory.2),
            pids: PidController::new(pids.0, pids.1, pids.2),
            cpu: CpuController::new(cpu.0, cpu.1, cpu.2),
            cpuset: CpuSetController::new(cpuset.0, cpuset.1, cpuset.2),
        }
    }

    fn memory_limit(&self) -> Option<u64> {
        if self.v1[0] {
            let limit = self.memory.memory_stat().limit_in_bytes;
            // v1 writes no limit as the largest number of whole pages.
            (limit < i64::MAX / 2).then(|| u64::try_from(limit).unwrap())
        } else {
            match self.memory.get_mem().unwrap().max {
                Some(MaxValue::Value(limit)) => Some(u64::try_from(limit).unwrap()),
                _ => None,
            }
        }
    }
}

// cgroup v2's weights and v1's shares: 1, 100, 10000 are 2, 1024, 262144 (the kernel's limits and defaults meet).
fn shares(weight: u64) -> [u64; 2] {
    match weight {
        1 => [2, 10],
        100 => [1024, 1024],
        _ => [262_144, 102_400],
    }
}

fn setup(lab: &Lab) -> (crate::common::Broker, Client, Grant, Theirs, u32) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("diff", Options::new()).unwrap();
    let theirs = Theirs::at(lab, user.uid, "diff");
    (broker, client, grant, theirs, user.uid)
}

fn set_with_ours_read_with_theirs(lab: &Lab) {
    let (_broker, client, grant, theirs, _) = setup(lab);
    let set = |key: &str, value: &str| client.set_limits(&grant.path, &[(key, value)]).unwrap();
    for megabytes in [16_u64, 64, 1024] {
        set("memory.max", &format!("{megabytes}M"));
        assert_eq!(theirs.memory_limit(), Some(megabytes << 20));
    }
    set("memory.max", "max");
    assert_eq!(theirs.memory_limit(), None);
    for tasks in [1, 17, 4000] {
        set("pids.max", &tasks.to_string());
        assert_eq!(theirs.pids.get_pid_max().unwrap(), MaxValue::Value(tasks));
    }
    set("pids.max", "max");
    assert_eq!(theirs.pids.get_pid_max().unwrap(), MaxValue::Max);
    for (value, quota, period) in
        [("50000 100000", 50_000, 100_000), ("150%", 150_000, 100_000), ("20000 40000", 20_000, 40_000)]
    {
        set("cpu.max", value);
        assert_eq!((theirs.cpu.cfs_quota().unwrap(), theirs.cpu.cfs_period().unwrap()), (quota, period));
    }
    for weight in [1, 100, 10_000] {
        set("cpu.weight", &weight.to_string());
        let now = theirs.cpu.shares().unwrap();
        if theirs.v1[1] {
            assert!(shares(weight).contains(&now), "weight {weight} is {now} shares");
        } else {
            assert_eq!(now, weight);
        }
    }
    set("cpuset.cpus", "0");
    assert_eq!(theirs.cpuset.cpuset().cpus, [(0, 0)]);
    set("cpuset.cpus", "0-1");
    assert_eq!(theirs.cpuset.cpuset().cpus, [(0, 1)]);
}

fn set_with_theirs_read_with_ours(lab: &Lab) {
    let (_broker, client, grant, theirs, account) = setup(lab);
    let read = |key: &str| client.value(&grant.path, key);
    for megabytes in [16_i64, 64, 1024] {
        theirs.memory.set_limit(megabytes << 20).unwrap();
        assert_eq!(read("memory.max"), (megabytes << 20).to_string());
    }
    theirs.memory.set_limit(-1).unwrap();
    assert_eq!(read("memory.max"), "max");
    theirs.pids.set_pid_max(MaxValue::Value(17)).unwrap();
    assert_eq!(read("pids.max"), "17");
    theirs.pids.set_pid_max(MaxValue::Max).unwrap();
    assert_eq!(read("pids.max"), "max");
    theirs.cpu.set_cfs_quota_and_period(Some(30_000), Some(50_000)).unwrap();
    assert_eq!(read("cpu.max"), "30000 50000");
    if theirs.v1[1] {
        theirs.cpu.set_shares(1024).unwrap();
    } else {
        theirs.cpu.set_shares(100).unwrap();
    }
    assert_eq!(read("cpu.weight"), "100");
    // From below upwards: a parent can't lose a CPU that a child has (v1), and the payload repeats its grant's limits.
    let below = checker::place(lab, account, "diff", "cpuset");
    for directory in ["payload", "monitor", "children", ""] {
        let path = below.join(directory);
        if path.join("cpuset.cpus").exists() {
            CpuSetController::new(path.clone(), path, !lab.host.is_v1("cpuset")).set_cpus("0").unwrap();
        }
    }
    assert_eq!(read("cpuset.cpus"), "0");
    // Both kinds of hierarchy are covered: v1 where there are v1 controllers, v2 elsewhere.
    let host = Host::look();
    assert_eq!(theirs.v1, [host.is_v1("memory"), host.is_v1("cpu"), host.is_v1("pids")]);
}

crate::tests![set_with_ours_read_with_theirs, set_with_theirs_read_with_ours];
