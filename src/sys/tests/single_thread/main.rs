//! Tests of what only a process with one thread can do, and of what changes the process that does it.
//!
//! Without libtest, which starts threads. Every test runs in a child of its own, made with `Clone3`, and reports by its
//! status. Needs root, and says so by failing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod children;
mod devices;
mod links;
mod mounts;
mod namespaces;
mod peers;
mod programs;
mod rights;

use std::process::ExitCode;

use cgrant_sys::{Clone3, Exit};

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(probe) = arguments.first().and_then(|argument| argument.strip_prefix("--probe=")) {
        return programs::probe(probe);
    }
    let tests: Vec<Test> = [
        children::TESTS,
        devices::TESTS,
        links::TESTS,
        mounts::TESTS,
        namespaces::TESTS,
        peers::TESTS,
        programs::TESTS,
        rights::TESTS,
    ]
    .concat();
    if arguments.iter().any(|argument| argument == "--list") {
        // What a test runner reads; there is no ignored test to list.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let mut failed = 0;
    let mut passed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| is_wanted(name)) {
        let exit = in_child(|| {
            test();
            0
        });
        println!("test {name} ... {}", if exit == Exit::Code(0) { "ok" } else { "FAILED" });
        if exit == Exit::Code(0) { passed += 1 } else { failed += 1 }
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    ExitCode::from(u8::from(failed != 0))
}

/// Runs `child` in a child of this process, and waits for it.
fn in_child(child: impl FnOnce() -> i32) -> Exit {
    Clone3::new().spawn(child).expect("cannot make a child").pidfd.wait().expect("cannot wait for the child")
}

/// The number of the error that `result` must be.
fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().expect("not an error of the kernel's")
}

/// Is there something to read, or the end, within ten seconds?
fn is_readable_soon(fd: impl std::os::fd::AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).expect("cannot poll") == 1
}
