//! The front as a program, so that this crate's tests can start it as the supervisor does.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_front::main()
}
