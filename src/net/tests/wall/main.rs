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

use std::{
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    thread,
};

/// Tests at once. Most of their time they wait for what is not to come.
const AT_ONCE: usize = 6;
/// Before the name of the only test that is to run, and whether bridged packets are to pass the host's rules too.
const ALONE: &str = "--alone";

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
    if let [alone, name, called] = &arguments[..]
        && alone == ALONE
    {
        let (_, test) = tests.iter().find(|(known, _)| known == name).expect("a test of this name");
        test(called == "true");
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(*filter));
    let bridged: &[bool] = if world::can_call() {
        &[false, true]
    } else {
        println!("this kernel has no bridge-nf-call: tried without only");
        &[false]
    };
    let trials = tests
        .into_iter()
        .filter(|(name, _)| chosen(name))
        .flat_map(|(name, _)| bridged.iter().map(move |&called| (name, called)));
    let (trials, failed) = (Mutex::new(trials), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((name, called)) = next(&trials) {
                    let failure = run(name, called);
                    failed.lock().unwrap().extend(failure);
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn next<T>(trials: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    trials.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Runs a test in a process of its own, whose namespaces and descriptors are nobody else's. Its name, if it failed.
fn run(name: &str, called: bool) -> Option<String> {
    let mut test = Command::new(std::env::current_exe().unwrap());
    let output = test.args([ALONE, name, &called.to_string()]).output().unwrap();
    let name = format!("{name}{}", if called { " (bridge-nf-call 1)" } else { "" });
    let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat();
    let passed = output.status.success();
    println!("{said}test {name} ... {}", if passed { "ok" } else { "FAILED" });
    (!passed).then_some(name)
}
