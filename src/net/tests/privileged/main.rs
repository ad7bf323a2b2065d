//! The helper's orders against real kernel objects. Each test runs in a child of its own, in a network namespace that
//! plays the host, and nothing outside of that is touched. Needs root, `ip`, `bridge`, `nft`, `busybox`, `dnsmasq`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod doctor;
mod failing;
mod forwarding;
mod hostile;
mod making;
mod mending;
mod process;
mod restoring;
mod support;

use std::process::ExitCode;

use cgrant_sys::{Clone3, Exit};
use nix::{
    mount::{MsFlags, mount},
    sched::CloneFlags,
};

/// A test: its name and what it runs.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The proxy is this very program, as it is the helper's.
    if arguments.first().is_some_and(|argument| argument == cgrant_net::proxy::ROLE) {
        return cgrant_net::proxy::run();
    }
    let tests: Vec<Test> = [
        making::TESTS,
        failing::TESTS,
        hostile::TESTS,
        mending::TESTS,
        restoring::TESTS,
        forwarding::TESTS,
        doctor::TESTS,
        process::TESTS,
    ]
    .concat();
    if arguments.iter().any(|argument| argument == "--list") {
        let none = arguments.iter().any(|argument| argument == "--ignored");
        tests.iter().filter(|_| !none).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let (mut passed_count, mut failed) = (0_usize, Vec::new());
    for (name, test) in tests.into_iter().filter(|(name, _)| chosen(name)) {
        let passed = in_namespace(test);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if passed {
            passed_count += 1;
        } else {
            failed.push(name);
        }
    }
    println!("test result: {passed_count} passed; {} failed", failed.len());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Whatever the test starts ends with it, as its child is the first process of a pid namespace.
fn in_namespace(test: fn()) -> bool {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    let child = Clone3::new().flags(flags).spawn(|| {
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), nothing).unwrap();
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), nothing).unwrap();
        i32::from(std::panic::catch_unwind(test).is_err())
    });
    child.unwrap().pidfd.wait().unwrap() == Exit::Code(0)
}
