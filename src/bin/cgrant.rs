//! See the crate cgrant-cli.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_cli::main()
}
