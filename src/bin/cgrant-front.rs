//! See the crate cgrant-front.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_front::main()
}
