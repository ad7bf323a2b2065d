//! Tests that need processes of one thread, real users and real namespaces: they fork, and so can't run under the
//! usual harness. Needs root. Users are uids without an entry anywhere.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod maps;
mod mounts;
mod race;
mod show;
mod support;

use std::process::ExitCode;

/// A test: its name and what it runs.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> =
        maps::TESTS.iter().chain(mounts::TESTS).chain(race::TESTS).chain(show::TESTS).copied().collect();
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
        let passed = std::panic::catch_unwind(test).is_ok();
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
