//! The helper's orders against real kernel objects. Each test runs in a child of its own, in a network namespace that
//! plays the host, and nothing outside of that is touched. Needs root, `ip` and `nft`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod doctor;
mod failing;
mod hostile;
mod making;
mod mending;
mod process;
mod restoring;
mod support;

use std::process::ExitCode;

use cgrant_sys::{Clone3, Exit};
use nix::sched::CloneFlags;

/// A test: its name and what it runs.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> = [
        making::TESTS,
        failing::TESTS,
        hostile::TESTS,
        mending::TESTS,
        restoring::TESTS,
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
    let mut failed = Vec::new();
    for (name, test) in tests.into_iter().filter(|(name, _)| chosen(name)) {
        let passed = in_namespace(test);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn in_namespace(test: fn()) -> bool {
    let child = Clone3::new()
        .flags(CloneFlags::CLONE_NEWNET)
        .spawn(|| i32::from(std::panic::catch_unwind(test).is_err()));
    child.unwrap().pidfd.wait().unwrap() == Exit::Code(0)
}
