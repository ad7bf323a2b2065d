//! See the crate cgrant-scope.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_scope::main()
}
