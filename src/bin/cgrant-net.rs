//! See the crate cgrant-net.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_net::main()
}
