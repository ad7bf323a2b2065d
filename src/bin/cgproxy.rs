//! The program `cgproxy`; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    cgrant_cgproxy::main()
}
