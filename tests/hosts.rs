//! The same tests on every kind of host: this machine and the virtual ones that `tests/vm/run` boots, which prints a
//! matrix of test and host. The modules are those of the integration tests that hold everywhere; where kinds of host
//! differ the test says what each has to do, so that none is skipped.

// What only the integration tests use is dead here.
#[allow(dead_code)]
mod common;

#[path = "integration/attach.rs"]
mod attach;
#[path = "integration/busses.rs"]
mod busses;
#[path = "integration/differential.rs"]
mod differential;
#[path = "integration/events.rs"]
mod events;
#[path = "integration/grants.rs"]
mod grants;
#[path = "integration/holders.rs"]
mod holders;
#[path = "integration/limits.rs"]
mod limits;
#[path = "hosts/placement.rs"]
mod placement;

fn main() -> std::process::ExitCode {
    common::harness::main(&[
        grants::TESTS,
        limits::TESTS,
        attach::TESTS,
        holders::TESTS,
        events::TESTS,
        placement::TESTS,
        busses::TESTS,
        differential::TESTS,
    ])
}
