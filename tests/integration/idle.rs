//! A broker at rest does nothing at all: traced, it makes no system call.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Lab, Options, wait_until};

// In CI for a minute, elsewhere shorter; $CGRANT_IDLE_SECONDS decides.
fn seconds() -> u64 {
    let wanted = std::env::var("CGRANT_IDLE_SECONDS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(if std::env::var("CI").is_ok() { 60 } else { 5 })
}

fn an_idle_broker_makes_no_system_call(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    // With a client that is connected and a grant that lives and is watched for everything there is.
    let wanted =
        Options::new().with("pressure", vec!["cpu".to_owned(), "memory".to_owned(), "io".to_owned()]);
    let grant = client.create("quiet", wanted).unwrap();
    let sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    client.names();
    std::thread::sleep(Duration::from_secs(2));
    let output = lab.scratch.join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&output);
    let processes = broker.processes();
    assert!(processes.len() >= 4, "{processes:?}");
    for (pid, _) in &processes {
        command.args(["-p", &pid.to_string()]);
    }
    let mut tracer =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Each thread shows the call that it waits in as soon as it is traced.
    wait_until("strace is attached", || {
        fs::read_to_string(&output).is_ok_and(|text| text.lines().count() >= processes.len())
    });
    std::thread::sleep(Duration::from_millis(500));
    let before = fs::read_to_string(&output).unwrap();
    std::thread::sleep(Duration::from_secs(seconds()));
    let after = fs::read_to_string(&output).unwrap();
    // One call proves that the trace sees what is done.
    client.names();
    wait_until("strace sees a call", || fs::read_to_string(&output).unwrap().len() > after.len());
    kill_process(Pid::from_child(&tracer), Signal::INT).unwrap();
    let _ = tracer.wait();
    assert_eq!(after, before, "an idle broker made system calls");
}

crate::tests![an_idle_broker_makes_no_system_call];
