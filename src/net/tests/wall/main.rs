//! The wall round links, tried with real packets: a host, two accounts with two containers each, a name server and the outside, each
//! in a network namespace of its own. Needs root, `nft` and `ip`; touches no namespace that it did not make.
//!
//! Every attack is first made where there is no wall, and has to succeed there: one that is badly made proves nothing.
//! Everything is tried with `bridge-nf-call-*` at 0, and at 1 where the kernel has it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]

mod attack;
mod frame;
mod life;
mod reach;
mod world;

use std::process::ExitCode;

/// A test: its name and what it runs. It is told whether bridged packets are to pass the host's rules too.
pub type Test = (&'static str, fn(bool));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tests: Vec<Test> = [attack::TESTS, reach::TESTS, life::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        let none = arguments.iter().any(|argument| argument == "--ignored");
        tests.iter().filter(|_| !none).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    assert!(rustix::process::geteuid().is_root(), "these tests need root");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let mut failed = Vec::new();
    let bridged: &[bool] = if world::can_call() {
        &[false, true]
    } else {
        println!("this kernel has no bridge-nf-call: tried without only");
        &[false]
    };
    for (name, test) in tests.into_iter().filter(|(name, _)| chosen(name)) {
        for &called in bridged {
            let passed = std::panic::catch_unwind(|| test(called)).is_ok();
            world::go_home();
            let how = if called { " (bridge-nf-call 1)" } else { "" };
            println!("test {name}{how} ... {}", if passed { "ok" } else { "FAILED" });
            if !passed {
                failed.push(format!("{name}{how}"));
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
