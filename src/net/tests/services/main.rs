//! Port holders, the proxy for `[::1]` and name servers against the kernel, real programs and other users.
//!
//! Without libtest, which starts threads. Every test runs in a child of its own, in a network namespace of its own, and
//! reports by its status. Needs root, dnsmasq and busybox, and says so by failing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod names;
mod ports;
mod proxy;
mod support;

use std::process::ExitCode;

use cgrant_sys::{Clone3, Exit, netlink::Route};
use nix::sched::CloneFlags;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The proxy is this very program, as it is the helper's.
    if arguments.first().is_some_and(|argument| argument == cgrant_net::proxy::ROLE) {
        return cgrant_net::proxy::run();
    }
    let tests: Vec<Test> = [names::TESTS, ports::TESTS, proxy::TESTS].concat();
    if arguments.iter().any(|argument| argument == "--list") {
        // What a test runner reads; there is no ignored test to list.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests.iter().filter(|(name, _)| is_wanted(name)) {
        let child = Clone3::new().flags(CloneFlags::CLONE_NEWNET).spawn(|| {
            Route::open().unwrap().set_up(1, true).unwrap();
            test();
            0
        });
        let is_fine = child.expect("cannot make a child").pidfd.wait().expect("cannot wait") == Exit::Code(0);
        println!("test {name} ... {}", if is_fine { "ok" } else { "FAILED" });
        if is_fine { passed += 1 } else { failed += 1 }
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    ExitCode::from(u8::from(failed != 0))
}
