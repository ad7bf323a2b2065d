//! See the crate cgrant-engine.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_engine::main()
}
