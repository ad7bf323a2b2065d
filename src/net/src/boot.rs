//! How the helper starts: boot message, privileges taken away, loop.

use std::process::ExitCode;

/// Runs the helper until the supervisor or the engine is gone.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
