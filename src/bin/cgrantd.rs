//! See the crate cgrant-supervisor.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_supervisor::main()
}
